//! Which microphones are there, as the hardware showed last.
//!
//! Looks at the sound cards at each tick, tells which microphone each one is, and keeps who is online, missing or
//! offline. What cannot be read changes nothing.

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use log::{debug, info};

use crate::config::Config;
use crate::decide::device::identify;
use crate::decide::presence::{Presence, Presences, Transition};
use crate::decide::profile::ProfileConfig;
use crate::decide::reason::online;
use crate::decide::registry::Registry;
use crate::decide::scan::{Scan, Unknown};
use crate::event::Event;
use crate::hardware::pcm::{PcmMonitor, Proof};
use crate::hardware::scanner::{Poll, Scanner};
use crate::probe::Prober;
use crate::rate_limit::RateLimit;
use crate::text::NOT_YET;
use crate::text::shown;

/// A card that cannot be told for so long is none that is being plugged in.
const UNCLEAR: Duration = Duration::from_secs(10);

/// Microphones and what became of them.
pub type Changes = Vec<(String, Transition)>;

/// Looks at the hardware, and keeps what it showed last.
pub struct HardwareState {
    cards: Scanner,
    pcms: PcmMonitor,
    notices: RateLimit,
    /// Who is there.
    pub presences: Presences,
    /// The last look, until the first word of the database says which microphone is which.
    first: Option<Scan>,
    /// Cards that cannot be told, and since when.
    unclear: BTreeMap<u32, Instant>,
    /// Whether the last look told anything, or why not.
    pub state: Result<(), String>,
    /// The look before that told nothing, either.
    failed: bool,
}

impl HardwareState {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(config: &Config, prober: &Prober, events: &SyncSender<Event>) -> Self {
        Self {
            cards: Scanner::new(&config.host_root, prober, events.clone()),
            pcms: PcmMonitor::new(&config.host_root, prober),
            notices: RateLimit::default(),
            presences: Presences::new(config.grace),
            first: None,
            unclear: BTreeMap::new(),
            state: Err(NOT_YET.to_owned()),
            failed: false,
        }
    }

    /// At a tick: looks whether anything changed, and returns what did, as the others do; `None` while that is not known.
    #[must_use]
    pub fn poll(&mut self, registry: Option<&Registry>, now: Instant) -> Option<Changes> {
        match self.cards.poll(now) {
            Poll::Unchanged(scan) => return Some(self.note(scan, registry)),
            Poll::Asked => {}
            Poll::Unknown(why) => self.fail(why),
        }
        None
    }

    /// Takes in what a whole look found; `None` if it says nothing any more.
    #[must_use]
    pub fn answered(&mut self, generation: u64, scan: Result<Scan, Unknown>, registry: Option<&Registry>) -> Option<Changes> {
        Some(match self.cards.answered(generation, scan)? {
            Ok(scan) => {
                self.notices.inform("hardware", "sound cards are readable again", Instant::now());
                self.state = Ok(());
                self.failed = false;
                self.note(scan, registry)
            }
            Err(why) => {
                self.fail(why.to_string());
                Vec::new()
            }
        })
    }

    /// The database had its first word: what was seen before can be told now.
    #[must_use]
    pub fn recall(&mut self, registry: &Registry) -> Changes {
        self.first.take().map(|scan| self.note(scan, Some(registry))).unwrap_or_default()
    }

    /// In words, for health checks.
    ///
    /// # Errors
    /// Why the sound cards cannot be read.
    pub fn details(&self) -> Result<String, String> {
        self.state.clone()?;
        let silent = self.cards.silent().map(|card| format!("; card {card} does not answer"));
        Ok(silent.fold("readable".to_owned(), |details, card| details + &card))
    }

    /// Has the PCMs of these running Recorders read, now and then.
    pub fn refresh_pcms<'a>(&mut self, running: impl Iterator<Item = &'a String>, registry: Option<&Registry>, now: Instant) {
        let presences = &self.presences;
        self.pcms.refresh(now, || {
            let recorder = |id: &String| {
                let device = registry?.devices.get(id)?.as_ref().ok()?;
                let profile = registry?.profiles.get(device.profile.as_ref()?)?.as_ref().ok();
                Some((id.clone(), online(presences, id)?.card, profile.map(ProfileConfig::capture)))
            };
            running.filter_map(recorder).collect()
        });
    }

    /// What was last read of the PCM of a running Recorder.
    #[must_use]
    pub fn proof(&self, device: &str) -> Option<&Proof> {
        self.pcms.of(device)
    }

    fn fail(&mut self, why: String) {
        let now = Instant::now();
        self.first = None;
        let line = format!("sound cards cannot be read, everything stays as it is: {why}");
        // A card that went between two reads makes no sense once, which is nothing to tell.
        if std::mem::replace(&mut self.failed, true) {
            self.notices.warn("hardware", &line, now);
        } else {
            debug!("{line}");
        }
        self.state = Err(why);
        self.presences.observe_unknown(now);
    }

    fn note(&mut self, scan: Scan, registry: Option<&Registry>) -> Changes {
        let Some(registry) = registry else {
            self.first = Some(scan);
            return Vec::new();
        };
        let now = Instant::now();
        self.note_unclear(&scan, now);
        let mut known = registry.known_ports();
        for (id, port) in &mut known {
            if let Some(last) = self.presences.last_port(id) {
                *port = Some(last.to_owned());
            }
        }
        let seen = identify(scan.microphones, &known, |id| self.presences.may_be_on(id, &scan.unclear));
        registry.add_devices_to(&mut self.presences, now);
        let changes = self.presences.observe(&seen, &scan.unclear, now);
        changes.iter().for_each(|(id, change)| self.tell(id, change));
        self.presences.retain(|id| registry.devices.contains_key(id));
        changes
    }

    fn note_unclear(&mut self, scan: &Scan, now: Instant) {
        self.unclear.retain(|card, _| scan.unclear.iter().any(|(index, _)| index == card));
        self.notices.retain("unclear ", |card| card.parse().is_ok_and(|card| self.unclear.contains_key(&card)));
        for (card, why) in &scan.unclear {
            debug!("card {card} is looked at again: {why}");
            if now.duration_since(*self.unclear.entry(*card).or_insert(now)) >= UNCLEAR {
                let line = format!("card {card} cannot be told from another, whatever it is: {why}");
                self.notices.warn(&format!("unclear {card}"), &line, now);
            }
        }
    }

    fn tell(&self, id: &str, change: &Transition) {
        match (change, self.presences.get(id)) {
            (Transition::Appeared, Some(Presence::Online(microphone))) => {
                let port = microphone.usb.as_ref().map_or("no USB port", |usb| usb.bus_path.as_str());
                let name = shown(&microphone.name).to_string();
                info!("microphone {id} is plugged in: {name:?}, card {}, port {port}", microphone.card);
            }
            (Transition::Left, _) => info!("microphone {id} is gone"),
            (change, _) => debug!("microphone {id}: {change:?}"),
        }
    }
}
