//! The last known state of the hardware: which microphones are connected.
//!
//! At each tick the sound cards are scanned if they changed, each microphone is identified, and its presence is kept:
//! online, missing or offline. Invariant: a scan that fails changes no presence. A single one is no fault of the station
//! either, as a card that is disconnected meanwhile can make it fail: only a second one in a row is reported.

use crate::sorted_map::SortedMap;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use log::{debug, info};

use crate::config::Config;
use crate::decide::device::identify;
use crate::decide::presence::{Presence, Presences, Transition};
use crate::decide::reason::online;
use crate::decide::registry::Registry;
use crate::decide::rest::Rest;
use crate::decide::scan::{Scan, Unknown};
use crate::decide::scope::{Absent, Others};
use crate::event::Event;
use crate::hardware::pcm::{PcmMonitor, Proof, Recorder};
use crate::hardware::power::{self, Power};
use crate::hardware::scanner::{Poll, Scanner};
use crate::hardware::usb;
use crate::probe::Prober;
use crate::rate_limit::RateLimit;
use crate::text::NOT_YET;
use crate::text::shown;

/// A card that cannot be identified for this time is not one that is just being connected.
const UNCLEAR: Duration = Duration::from_secs(10);

/// Microphones, and how their presence changed.
pub type Changes = Vec<(String, Transition)>;

/// The rows by which microphones are identified.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Those that were read; `None` until the first answer of the database.
    pub registry: Option<&'a Registry>,
    /// What is known of the others.
    pub absent: Absent,
}

/// Scans the hardware, and keeps the last known state.
pub struct HardwareState {
    root: PathBuf,
    scanner: Scanner,
    pcms: PcmMonitor,
    power: power::Monitor,
    rate_limit: RateLimit,
    /// Which microphones are connected.
    pub presences: Presences,
    /// The last scan with a microphone whose row was not read yet, as it was before the first answer of the database.
    unidentified: Option<Scan>,
    /// What must be read of microphones that were not seen for long.
    pub others: Others,
    /// Cards that cannot be identified, and since when.
    unclear: SortedMap<u32, Instant>,
    /// Whether the last scan succeeded, or its error.
    pub state: Result<(), String>,
    /// Whether the last scan failed.
    failed: bool,
    /// The state for health checks: one failure after a success does not count.
    health: Result<(), String>,
}

impl HardwareState {
    /// Without a scan.
    #[must_use]
    pub fn new(config: &Config, prober: &Prober, events: &SyncSender<Event>) -> Self {
        Self {
            root: config.host_root.clone(),
            scanner: Scanner::new(&config.host_root, prober, events.clone()),
            pcms: PcmMonitor::new(&config.host_root, prober),
            power: power::Monitor::new(&config.host_root, prober),
            rate_limit: RateLimit::default(),
            presences: Presences::new(config.grace),
            unidentified: None,
            others: Others::Nothing,
            unclear: SortedMap::new(),
            state: Err(NOT_YET.to_owned()),
            failed: false,
            health: Err(NOT_YET.to_owned()),
        }
    }

    /// Checks at a tick whether anything has changed. Returns the changes of presences, which may depend on time alone
    /// unless the hardware is at rest; `None` while they are unknown.
    #[must_use]
    pub fn poll(&mut self, rows: Rows<'_>, now: Instant, rest: Rest) -> Option<Changes> {
        match self.scanner.poll(now) {
            Poll::Unchanged if rest == Rest::Undisturbed => return Some(Vec::new()),
            Poll::Unchanged => {
                let scan = self.scanner.scan().cloned()?;
                return Some(self.observe(scan, rows));
            }
            Poll::Pending => {}
            Poll::Unknown(why) => self.set_unknown(why),
        }
        None
    }

    /// Handles the result of a scan; `None` if that scan was abandoned.
    #[must_use]
    pub fn answered(&mut self, generation: u64, scan: Result<Scan, Unknown>, rows: Rows<'_>) -> Option<Changes> {
        Some(match self.scanner.answered(generation, scan)? {
            Ok(scan) => {
                self.rate_limit.inform("hardware", "sound cards are readable again", Instant::now());
                (self.state, self.health) = (Ok(()), Ok(()));
                self.failed = false;
                self.observe(scan, rows)
            }
            Err(why) => {
                self.set_unknown(why.to_string());
                Vec::new()
            }
        })
    }

    /// Identifies the microphones of a scan for which rows were missing.
    #[must_use]
    pub fn identify_earlier(&mut self, rows: Rows<'_>) -> Changes {
        self.unidentified.take().map(|scan| self.observe(scan, rows)).unwrap_or_default()
    }

    /// Whether microphones are connected that are not identified yet.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.unidentified.is_some()
    }

    /// Whether nothing changes with time alone: each microphone is connected or not, and no card is unclear.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let is_missing = self.presences.iter().any(|(_, presence)| matches!(presence, Presence::Missing { .. }));
        self.state.is_ok() && !self.failed && !self.is_waiting() && self.unclear.is_empty() && !is_missing
    }

    /// As text, for health checks.
    ///
    /// # Errors
    /// The sound cards could not be read twice in a row, or never.
    pub fn details(&self) -> Result<String, String> {
        self.health.clone()?;
        let unresponsive = self.scanner.unresponsive().map(|card| format!("; card {card} does not respond"));
        Ok(unresponsive.fold("readable".to_owned(), |details, card| details + &card))
    }

    /// Requests reads of the PCMs of these running Recorders, with the ids and first processes of their containers, when
    /// they are due.
    pub fn refresh_pcms<'a>(
        &mut self,
        running: impl Iterator<Item = (&'a str, (&'a str, u32))>,
        registry: Option<&Registry>,
        now: Instant,
    ) {
        let presences = &self.presences;
        self.pcms
            .refresh(now, || running.filter_map(|(device, container)| Recorder::new(registry?, presences, device, container)).collect());
    }

    /// What was last read about the PCM of a running Recorder.
    #[must_use]
    pub fn proof(&self, device: &str) -> Option<&Proof> {
        self.pcms.proof(device)
    }

    /// Likewise, for the Recorder in this container, and when it was read.
    #[must_use]
    pub fn proof_of(&self, device: &str, container: &str) -> Option<(&Proof, Instant)> {
        self.pcms.proof_of(device, container)
    }

    /// Authorises the USB device of a microphone again; see [`usb::reset`]. Returns whether it has one.
    pub fn reset_usb(&self, device: &str) -> bool {
        let usb = online(&self.presences, device).and_then(|microphone| microphone.usb.as_ref());
        usb.inspect(|usb| usb::reset(&self.root, device, usb)).is_some()
    }

    /// What the sensors of the host showed when this was last asked.
    pub fn power(&mut self, now: Instant) -> Power {
        self.power.latest(now)
    }

    /// How many scans hang, once so many do that none can follow; otherwise 0.
    #[must_use]
    pub fn hung_scans(&self) -> usize {
        self.scanner.hung()
    }

    fn set_unknown(&mut self, why: String) {
        let now = Instant::now();
        self.unidentified = None;
        let line = format!("cannot read sound cards; keeping the last known state: {why}");
        if std::mem::replace(&mut self.failed, true) {
            self.rate_limit.warn("hardware", &line, now);
            self.health = Err(why.clone());
        } else {
            debug!("{line}");
        }
        self.state = Err(why);
        self.presences.observe_unknown(now);
    }

    fn observe(&mut self, mut scan: Scan, Rows { registry, absent }: Rows<'_>) -> Changes {
        let Some(registry) = registry else {
            self.unidentified = Some(scan);
            return Vec::new();
        };
        let now = Instant::now();
        self.report_unclear(&scan, now);
        let mut known = registry.known_ports();
        for (id, port) in known.iter_mut() {
            if let Some(last) = self.presences.last_port(id) {
                last.clone_into(port);
            }
        }
        let connected = identify(std::mem::take(&mut scan.microphones), &known, |id| self.presences.may_be_on(id, &scan.unclear));
        let is_known = connected.iter().all(|(id, microphone)| registry.is_at_port(id, microphone));
        self.others = if is_known { Others::Nothing } else { Others::Identity };
        // The row of one may be among those that were not read. It is identified again when they are; until the database
        // answers, better a row that is known than none.
        let is_preliminary = !is_known && absent != Absent::Known;
        self.unidentified = is_preliminary.then(|| Scan { microphones: connected.values().cloned().collect(), ..scan.clone() });
        if is_preliminary && absent == Absent::Expected {
            return Vec::new();
        }
        registry.add_devices_to(&mut self.presences, now);
        let changes = self.presences.observe(&connected, &scan.unclear, now);
        changes.iter().for_each(|(id, change)| self.report(id, change));
        self.presences.retain(|id| registry.devices.contains_key(id));
        changes
    }

    fn report_unclear(&mut self, scan: &Scan, now: Instant) {
        self.unclear.retain(|card, _| scan.unclear.iter().any(|(index, _)| index == card));
        self.rate_limit.retain("unclear ", |card| card.parse().is_ok_and(|card| self.unclear.contains_key(&card)));
        for (card, why) in &scan.unclear {
            debug!("scanning card {card} again: {why}");
            if now.duration_since(*self.unclear.entry(*card).or_insert(now)) >= UNCLEAR {
                let line = format!("cannot identify card {card}: {why}");
                self.rate_limit.warn(&format!("unclear {card}"), &line, now);
            }
        }
    }

    fn report(&self, id: &str, change: &Transition) {
        match (change, self.presences.get(id)) {
            (Transition::Appeared, Some(Presence::Online(microphone))) => {
                let port = microphone.usb.as_ref().map_or("no USB port", |usb| usb.bus_path.as_str());
                let name = shown(&microphone.name).to_string();
                info!("microphone {id} connected: {name:?}, card {}, port {port}", microphone.card);
            }
            (Transition::Left, _) => {
                info!("microphone {id} disconnected");
                power::report(&self.root, id, self.presences.last_port(id).and_then(|port| port.bus_path.as_deref()));
            }
            (change, _) => debug!("microphone {id}: {change:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::device::Microphone;
    use crate::decide::offer::Offer;
    use crate::decide::registry::Row;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn a_microphone_without_a_row_waits_for_the_rows_of_those_not_seen_for_long() {
        let config = Config::read(|_| None).unwrap();
        let (events, _inbox) = sync_channel(1);
        let (unknown, known) = (Registry::default(), Registry::read(&[row("alsa-card1")], None));
        for (registry, absent, is_identified, is_waiting) in [
            (&unknown, Absent::Expected, false, true),
            (&unknown, Absent::Unavailable, true, true),
            (&unknown, Absent::Known, true, false),
            (&known, Absent::Expected, true, false),
        ] {
            let mut hardware = HardwareState::new(&config, &Prober::start().unwrap(), &events);
            let microphone = Microphone { card: 1, pcm: 0, name: String::new(), usb: None, offer: Offer::default() };
            let scan = Scan { microphones: vec![microphone], ..Scan::default() };
            let rows = |absent| Rows { registry: Some(registry), absent };
            assert!(hardware.answered(0, Ok(scan), rows(absent)).is_some());
            let identified = |hardware: &HardwareState| online(&hardware.presences, "alsa-card1").is_some();
            assert_eq!((identified(&hardware), hardware.is_waiting()), (is_identified, is_waiting), "{absent:?}");
            assert_eq!(hardware.others == Others::Identity, registry.devices.is_empty());
            // When they are known, it waits no more.
            let _ = hardware.identify_earlier(rows(Absent::Known));
            assert!(identified(&hardware) && !hardware.is_waiting());
        }
    }

    fn row(key: &str) -> Row {
        Row { kind: "device".to_owned(), key: key.to_owned(), body: None, fault: None }
    }

    #[test]
    fn health_depends_on_the_second_failed_scan_in_a_row() {
        let config = Config::read(|_| None).unwrap();
        let (events, _inbox) = sync_channel(1);
        let mut hardware = HardwareState::new(&config, &Prober::start().unwrap(), &events);
        let mut scan = |succeeds: bool| {
            let scan = if succeeds { Ok(Scan::default()) } else { Err(Unknown("no such file".to_owned())) };
            assert!(hardware.answered(0, scan, Rows { registry: None, absent: Absent::Unavailable }).is_some());
            (hardware.state.is_ok(), hardware.details().is_ok())
        };
        // Before the first success, nothing is known.
        assert_eq!(scan(false), (false, false));
        assert_eq!(scan(true), (true, true));
        assert_eq!(scan(false), (false, true));
        assert_eq!(scan(false), (false, false));
        assert_eq!(scan(false), (false, false));
        for _ in 0..3 {
            assert_eq!(scan(true), (true, true));
            assert_eq!(scan(false), (false, true));
        }
    }
}
