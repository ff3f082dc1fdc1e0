//! The main loop: wait, observe, decide, act.
//!
//! It owns all state and never blocks on anything but its own tick: PostgreSQL and Podman answer through events from
//! their threads, and each action runs on a thread of its own. Decisions are made by the pure files (`presence`,
//! `registry`, `want`, `plan`); what cannot be known is handed to them as unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, error, info, warn};
use serde_json::{Map, Value, json};

use crate::backoff::Backoffs;
use crate::bus::Bus;
use crate::capture::{Capture, Proof};
use crate::clock;
use crate::config::{Config, Shutdown};
use crate::device::identify;
use crate::events::Events;
use crate::execute::{Failure, execute};
use crate::hardware::{Hardware, Look};
use crate::inventory::Inventory;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::logs::Logs;
use crate::memory;
use crate::notice::Notices;
use crate::nudge::{self, Pending};
use crate::plan::{Action, Plan, STOP, View, count_ends, plan};
use crate::podman::{Container, Engine, Podman, State};
use crate::presence::{self, Presence, Presences};
use crate::profile;
use crate::reason::{Known, Reason, online, reasons};
use crate::registry::{Registry, Row};
use crate::spec::DEVICE_ID;
use crate::store::{Request, Store};
use crate::sysfs::{Scan, Unknown};
use crate::text::shown;
use crate::vitals::{Facts, Vitals};
use crate::want::{Specs, Want, wants};
use crate::witness::Witness;

/// Starts under way at a time: Podman gains nothing from more (measured).
const STARTS_AT_ONCE: usize = 8;
/// How often Podman is asked for a list while it tells of events, nothing is in between and nothing is to be done.
const QUIET: Duration = Duration::from_secs(15);
/// What is done is planned from a list that came no longer ago. What happens meanwhile is told by an event, but late.
const FRESH: Duration = Duration::from_secs(1);
/// While more than a few actions are under way, each list takes time from them: so long between two.
const CROWD: usize = 3;
const PACE: Duration = Duration::from_millis(400);
/// Podman's own clean-up or restart takes 30-300 ms: so often, and for so long, its end is looked for.
const RECHECK: Duration = Duration::from_millis(100);
const RESTLESS: Duration = Duration::from_secs(2);
/// How often `last_seen` of present microphones is refreshed.
const TOUCH: Duration = Duration::from_secs(300);
/// An in-between state of a container that lasts so long has no end of its own.
const STUCK: Duration = Duration::from_secs(20);
/// A card that cannot be told for so long is none that is being plugged in.
const UNCLEAR: Duration = Duration::from_secs(10);
/// A database that has not answered after this is away for now.
const ANSWER: Duration = Duration::from_secs(3);
/// A database thread that owes an answer for so long is abandoned …
const OVERDUE: Duration = Duration::from_secs(15);
/// … unless so many are abandoned already.
const ABANDONED: usize = 3;
/// Time between cycles on account of nudges that do not end: at first, and at most.
const NUDGE_GAP: Duration = Duration::from_millis(50);
const NUDGE_GAP_MAX: Duration = Duration::from_millis(500);
/// The loop shows that it moves at least this often, whatever the settings.
const LONGEST_SLEEP: Duration = Duration::from_secs(20);
/// For the last heartbeat.
const FAREWELL: Duration = Duration::from_millis(300);
const NOT_YET: &str = "not known yet";
/// All of the shutdown.
const SHUTDOWN: Duration = Duration::from_millis(11_500);

/// Whatever can wake the main loop.
#[derive(Debug)]
pub enum Event {
    /// A termination signal.
    Terminate,
    /// Somebody wants to see state and last decisions in the log.
    Dump,
    /// Somebody wants a cycle at once.
    Nudge,
    /// Podman says that something happened to a container of ours, or that it can no longer say so.
    Changed,
    /// What a look at the sound cards found, or why nothing.
    Hardware {
        /// Which thread's it is.
        generation: u64,
        /// All cards.
        scan: Result<Scan, Unknown>,
    },
    /// The database's answer, or why there is none.
    Rows {
        /// Which thread's it is.
        generation: u64,
        /// The desired state.
        rows: Result<Vec<Row>, String>,
    },
    /// Podman's answer, or why there is none.
    Containers {
        /// Which request's it is.
        sequence: u64,
        /// All containers of ours.
        containers: Result<Vec<Container>, String>,
        /// What engine it is.
        engine: Option<Engine>,
    },
    /// An action ended.
    Done {
        /// The action.
        action: Box<Action>,
        /// Id of the container it started, or why it failed.
        result: Result<Option<String>, Failure>,
        /// How long it took.
        took: Duration,
    },
}

/// All state of the program.
pub struct Controller {
    config: Config,
    podman: Podman,
    inbox: Receiver<Event>,
    events: SyncSender<Event>,
    notices: Notices,
    next_tick: Instant,
    vitals: Vitals,
    nudge_pending: Pending,
    nudged: bool,
    next_nudge: Instant,
    nudge_gap: Duration,

    cards: Hardware,
    presences: Presences,
    /// The last look at the hardware, until the first word of the database says which microphone is which.
    first_scan: Option<Scan>,
    /// Cards that cannot be told, and since when.
    unclear: BTreeMap<u32, Instant>,
    /// Whether the last look at the hardware told anything, or why not; likewise below.
    hardware: Result<(), String>,

    store: Store,
    abandoned: Vec<JoinHandle<()>>,
    asked_store: Option<Instant>,
    rows: Vec<Row>,
    /// The database's last word in an earlier run, until it or this one is used.
    remembered: Option<Vec<Row>>,
    registry: Option<Registry>,
    database: Result<(), String>,
    /// A nudge came while an answer was on its way, which may be older than what the nudge is about.
    ask_again: bool,
    touched: Instant,
    /// Whether this tick's differences were written.
    recorded: bool,

    inventory: Inventory,
    logs: Logs,
    hints: Events,
    sequence: u64,
    asked_podman: bool,
    /// When the last list was asked for.
    asked_at: Instant,
    /// Something happened while a list was on its way, which may be older.
    list_again: bool,
    /// When the next list is due before the next tick.
    recheck: Option<Instant>,
    /// When the last list came.
    listed: Instant,
    engine: Option<Engine>,
    podman_state: Result<(), String>,
    containers: Option<(u64, Vec<Container>)>,
    in_between: BTreeMap<String, Instant>,
    witness: Witness,
    limits: Limits,
    capture: Capture,
    journal: Journal,
    /// How the last Recorder of each device ended, and how many did in this run.
    ends: BTreeMap<String, (String, u32)>,
    ended: BTreeSet<String>,
    known_running: BTreeMap<String, String>,
    holds: BTreeMap<String, String>,

    specs: Specs,
    backoffs: Backoffs,
    /// Actions under way by device, and whether they start something.
    jobs: BTreeMap<String, bool>,
    /// By device the last list that was asked for before its last action ended.
    settled: BTreeMap<String, u64>,
    leaving: Option<Instant>,
}

impl Controller {
    /// Starts the threads for nudges, sound cards, PostgreSQL and Podman; the first tick is due at once.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(config: Config, events: SyncSender<Event>, inbox: Receiver<Event>, vitals: Vitals, bus: Bus) -> io::Result<Self> {
        let now = Instant::now();
        // First of all, so that it listens before the first cycle ends.
        let nudge_pending = nudge::start(&config.redis_url, events.clone())?;
        let podman = Podman::new(config.socket.clone());
        let remembered = memory::load(&config.workspace_local).unwrap_or_else(|why| {
            warn!("the last known desired state is ignored: {why}");
            None
        });
        let (limits, capture) = (Limits::new(&config.recorder), Capture::start(&config.host_root)?);
        Ok(Self {
            store: Store::start(&config, 0, events.clone())?,
            logs: Logs::new(&podman, bus),
            inventory: Inventory::start(podman.clone(), &config, events.clone())?,
            hints: Events::start(podman.clone(), &config.recorder.owner, events.clone())?,
            cards: Hardware::start(&config.host_root, events.clone())?,
            presences: Presences::new(config.grace),
            specs: Specs::new(config.recorder.clone()),
            config,
            podman,
            inbox,
            events,
            notices: Notices::default(),
            next_tick: now,
            vitals,
            nudge_pending,
            nudged: false,
            next_nudge: now,
            nudge_gap: NUDGE_GAP,
            first_scan: None,
            unclear: BTreeMap::new(),
            hardware: Err(NOT_YET.to_owned()),
            abandoned: Vec::new(),
            asked_store: None,
            registry: None,
            remembered,
            rows: Vec::new(),
            database: Err(NOT_YET.to_owned()),
            ask_again: false,
            touched: now,
            recorded: false,
            sequence: 0,
            asked_podman: false,
            asked_at: now,
            list_again: false,
            recheck: None,
            listed: now,
            engine: None,
            podman_state: Err(NOT_YET.to_owned()),
            containers: None,
            in_between: BTreeMap::new(),
            witness: Witness::default(),
            limits,
            capture,
            journal: Journal::default(),
            ends: BTreeMap::new(),
            ended: BTreeSet::new(),
            known_running: BTreeMap::new(),
            holds: BTreeMap::new(),
            backoffs: Backoffs::default(),
            jobs: BTreeMap::new(),
            settled: BTreeMap::new(),
            leaving: None,
        })
    }

    /// Runs until a termination signal is done with.
    pub fn run(mut self) {
        loop {
            let now = Instant::now();
            if now >= self.next_tick || self.nudge_is_due(now) {
                self.observe();
            }
            if self.recheck.is_some_and(|due| now >= due) {
                self.ask_podman();
            }
            self.wait();
            if self.is_done() {
                break;
            }
            self.record();
            self.act();
            self.report();
        }
        self.logs.stop();
        let facts = self.facts();
        let more = self.meta();
        self.vitals.finish(&facts, more, Instant::now() + FAREWELL);
    }

    /// Sleeps until there is something to do, and takes in every event that is there.
    fn wait(&mut self) {
        let nudge = self.nudged.then_some(self.next_nudge);
        let deadlines = [Some(self.next_tick), Some(self.vitals.due()), nudge, self.recheck, self.leaving];
        let until = deadlines.into_iter().flatten().min().unwrap_or(self.next_tick);
        let mut event = self.inbox.recv_timeout(until.saturating_duration_since(Instant::now()).min(LONGEST_SLEEP));
        while let Ok(next) = event {
            self.take_in(next);
            event = self.inbox.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    /// Whether a cycle should begin on account of a nudge. The first one is served at once; the more follow without a
    /// pause, the longer each waits, so that a flood costs a handful of cycles.
    fn nudge_is_due(&mut self, now: Instant) -> bool {
        if !self.nudged || now < self.next_nudge {
            return false;
        }
        let quiet = now.saturating_duration_since(self.next_nudge) >= Duration::from_secs(1);
        self.nudge_gap = if quiet { NUDGE_GAP } else { (self.nudge_gap * 2).min(NUDGE_GAP_MAX) };
        self.next_nudge = now + self.nudge_gap;
        self.nudged = false;
        self.nudge_pending.store(false, Ordering::Release);
        self.ask_again = self.asked_store.is_some();
        self.ask_podman();
        true
    }

    /// Shows what is known, and sends the heartbeat when its time has come.
    fn report(&mut self) {
        self.vitals.beat();
        let now = Instant::now();
        let facts = self.facts();
        // Half a tick early is better than another wake-up.
        if now + self.config.interval.min(Duration::from_secs(1)) / 2 >= self.vitals.due() {
            let more = self.meta();
            self.vitals.report(&facts, more, now);
        } else {
            self.vitals.show(&facts);
        }
    }

    /// How it is with each microphone; none while the database never answered.
    fn reasons(&mut self) -> BTreeMap<String, Reason> {
        let Some(registry) = &self.registry else { return BTreeMap::new() };
        let wants = wants(registry, self.database.is_ok(), &self.presences, &mut self.specs);
        let containers = match (&self.containers, &self.podman_state) {
            (Some((_, containers)), _) => Ok(&containers[..]),
            (None, Err(why)) => Err(why.as_str()),
            (None, Ok(())) => Err(NOT_YET),
        };
        reasons(&Known { registry, presences: &self.presences, wants: &wants, holds: &self.holds, containers })
    }

    /// What the heartbeat tells of each microphone: the same with the proof of capture, and how its Recorders ended.
    fn meta(&mut self) -> Map<String, Value> {
        let reasons = self.reasons();
        let entry = |(id, reason): (String, Reason)| {
            let capture = self.capture.of(&id).filter(|_| reason.recording == Some(true)).map(Proof::to_json);
            (id, json!({"recording": reason.recording, "reason": reason.text, "capture": capture}))
        };
        let mut meta = Map::from_iter([("devices".to_owned(), reasons.into_iter().map(entry).collect())]);
        if !self.ends.is_empty() {
            let ends = self.ends.iter().map(|(device, (how, count))| (device.clone(), json!({"last": how, "count": count})));
            meta.insert("ends".to_owned(), ends.collect());
        }
        meta
    }

    /// Has the PCMs of running Recorders looked at, now and then.
    fn look_at_capture(&mut self, now: Instant) {
        let (running, presences, registry) = (&self.known_running, &self.presences, &self.registry);
        self.capture.look(now, || {
            let recorder = |id: &String| {
                let device = registry.as_ref()?.devices.get(id)?.as_ref().ok()?;
                let profile = registry.as_ref()?.profiles.get(device.profile.as_ref()?)?.as_ref().ok();
                Some((id.clone(), online(presences, id)?.card, profile.map(profile::Config::capture)))
            };
            running.keys().filter_map(recorder).collect()
        });
    }

    /// State and last decisions to the log.
    fn dump(&mut self) {
        let told = |state: &Result<(), String>| state.clone().map_or_else(|why| why, |()| "fine".to_owned());
        info!("dump: hardware {}; database {}; podman {}", told(&self.hardware), told(&self.database), told(&self.podman_state));
        let events = if self.hints.is_up() { "come" } else { "do not come" };
        info!("dump: list {} of containers, {:.1} s old; events {events}", self.sequence, self.listed.elapsed().as_secs_f64());
        for (id, reason) in self.reasons() {
            let capture = self.capture.of(&id).map(|proof| format!("; PCM {proof}")).unwrap_or_default();
            let busy = if self.jobs.contains_key(&id) { "; an action is under way" } else { "" };
            info!("dump: microphone {}: {}{capture}{busy}", shown(&id), reason.text);
        }
        self.journal.lines().for_each(|line| info!("dump: {line}"));
        info!("dump: end");
    }

    fn facts(&self) -> Facts {
        let fine = |state: &Result<(), String>, fine: &str| state.clone().map(|()| fine.to_owned());
        let running = self.known_running.len();
        // A Recorder that was started just now is in no list yet.
        let waiting = self.holds.iter().filter(|(device, _)| !self.known_running.contains_key(*device));
        let waiting: Vec<String> = waiting.map(|(device, why)| format!("{device}: {why}")).collect();
        let containers = match &self.podman_state {
            Err(_) => Err("unknown".to_owned()),
            Ok(()) if waiting.is_empty() => Ok(format!("{running} running")),
            Ok(()) => Err(format!("{running} running; {}", waiting.join("; "))),
        };
        Facts {
            database: fine(&self.database, "connected"),
            podman: fine(&self.podman_state, "connected"),
            hardware: self.hardware.clone().map(|()| {
                let silent = self.cards.silent().map(|card| format!("; card {card} does not answer"));
                silent.fold("readable".to_owned(), |details, card| details + &card)
            }),
            containers,
            activity: match (self.leaving, running) {
                (Some(_), _) => "stopping",
                (None, 0) => "idle",
                (None, _) => "recording",
            },
        }
    }

    /// Looks at the hardware and asks PostgreSQL and Podman how things are.
    fn observe(&mut self) {
        let now = Instant::now();
        self.next_tick = now + self.config.interval;
        self.recorded = false;
        if self.leaving.is_some() {
            self.ask_podman();
            return;
        }
        match self.cards.look(now) {
            Look::Same(scan) => self.note_scan(scan),
            Look::Asked => {}
            Look::Unknown(why) => self.note_hardware(Err(why)),
        }
        self.look_at_capture(now);
        self.ask_store();
        if self.doubts_list(now) {
            self.ask_podman();
        }
    }

    fn note_hardware(&mut self, scan: Result<Scan, String>) {
        match scan {
            Ok(scan) => {
                self.cleared("hardware", "sound cards are readable again");
                self.hardware = Ok(());
                self.note_scan(scan);
            }
            Err(why) => {
                self.first_scan = None;
                self.fault("hardware", &format!("sound cards cannot be read, everything stays as it is: {why}"));
                self.hardware = Err(why);
                self.presences.observe_nothing(Instant::now());
            }
        }
        // What was found is written in this very tick.
        self.recorded = false;
    }

    fn note_scan(&mut self, scan: Scan) {
        let Some(registry) = &self.registry else {
            self.first_scan = Some(scan);
            return;
        };
        let now = Instant::now();
        self.unclear.retain(|card, _| scan.unclear.iter().any(|(index, _)| index == card));
        for (card, why) in &scan.unclear {
            debug!("card {card} is looked at again: {why}");
            if now.duration_since(*self.unclear.entry(*card).or_insert(now)) >= UNCLEAR {
                let line = format!("card {card} cannot be told from another, whatever it is: {why}");
                self.notices.fault(&format!("unclear {card}"), &line, now).into_iter().for_each(|line| warn!("{line}"));
            }
        }
        let mut known = registry.known_ports();
        for (id, port) in &mut known {
            if let Some(last) = self.presences.last_port(id) {
                *port = Some(last.to_owned());
            }
        }
        let seen = identify(scan.microphones, &known, |id| self.presences.may_be_on(id, &scan.unclear));
        registry.expect(&mut self.presences, now);
        for (id, change) in self.presences.observe(&seen, &scan.unclear, now) {
            // Whatever failed before, it is plugged in anew.
            self.backoffs.forget(&id);
            match (change, self.presences.get(&id)) {
                (presence::Change::Came, Some(Presence::Online(microphone))) => {
                    let port = microphone.usb.as_ref().map_or("no USB port", |usb| usb.bus_path.as_str());
                    info!(
                        "microphone {} is plugged in: {:?}, card {}, port {port}",
                        id,
                        shown(&microphone.name).to_string(),
                        microphone.card
                    );
                }
                (presence::Change::Went, _) => info!("microphone {id} is gone"),
                (change, _) => debug!("microphone {id}: {change:?}"),
            }
        }
        self.presences.retain(|id| registry.devices.contains_key(id));
    }

    fn ask_store(&mut self) {
        let now = Instant::now();
        match self.asked_store {
            None => {
                let request = if now.duration_since(self.touched) >= TOUCH && self.database.is_ok() {
                    self.touched = now;
                    let online = self.presences.iter().filter(|(_, presence)| matches!(presence, Presence::Online(_)));
                    Request::Touch(online.map(|(id, _)| id.clone()).collect())
                } else {
                    Request::Read
                };
                self.store.ask(request);
                self.asked_store = Some(now);
            }
            Some(since) if now.duration_since(since) >= OVERDUE => self.replace_store(),
            Some(since) if now.duration_since(since) >= ANSWER => {
                self.fault("database", "PostgreSQL does not answer, its last word stands");
                self.database = Err("does not answer".to_owned());
                self.remember();
            }
            Some(_) => {}
        }
    }

    /// The thread may be blocked for good by a frozen server; another one tries anew.
    fn replace_store(&mut self) {
        self.abandoned.retain(|thread| !thread.is_finished());
        if self.abandoned.len() >= ABANDONED {
            return;
        }
        match Store::start(&self.config, self.store.generation + 1, self.events.clone()) {
            Ok(store) => {
                self.abandoned.push(std::mem::replace(&mut self.store, store).abandon());
                self.store.ask(Request::Read);
                self.asked_store = Some(Instant::now());
            }
            Err(why) => self.fault("thread", &format!("no thread for PostgreSQL: {why}")),
        }
    }

    /// Whether the last list may no longer hold although no event says so.
    fn doubts_list(&self, now: Instant) -> bool {
        let old = now.saturating_duration_since(self.listed) >= QUIET;
        let known = self.hints.is_up() && self.containers.is_some();
        // An action that lasts may have met a Podman that hangs.
        let quiet = self.jobs.is_empty() && self.in_between.is_empty() && !self.witness.misses_one();
        old || !known || !quiet
    }

    fn ask_podman(&mut self) {
        let now = Instant::now();
        let next = self.asked_at + PACE;
        if self.jobs.len() > CROWD && now < next {
            self.recheck = Some(next);
            return;
        }
        self.recheck = None;
        if !self.asked_podman {
            self.asked_podman = true;
            self.asked_at = now;
            self.hints.taken();
            self.sequence += 1;
            self.inventory.ask(self.sequence);
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Terminate => self.leave(),
            Event::Dump => self.dump(),
            Event::Nudge => self.nudged = true,
            Event::Changed => {
                self.list_again = self.asked_podman;
                self.ask_podman();
            }
            Event::Hardware { generation, scan } => {
                if let Some(scan) = self.cards.answered(generation, scan) {
                    self.note_hardware(scan.map_err(|why| why.to_string()));
                }
            }
            Event::Rows { generation, rows } if generation == self.store.generation => {
                self.asked_store = None;
                self.note_rows(rows);
                if std::mem::take(&mut self.ask_again) {
                    self.ask_store();
                }
            }
            Event::Rows { .. } => {}
            Event::Containers { sequence, containers, engine } => {
                self.asked_podman = false;
                self.engine = engine;
                self.note_containers(sequence, containers);
                // An action ended after this list was asked for: its outcome is in the next one.
                if std::mem::take(&mut self.list_again) || self.settled.values().any(|settled| *settled >= sequence) {
                    self.ask_podman();
                }
            }
            Event::Done { action, result, took } => self.note_done(&action, result, took),
        }
    }

    fn note_rows(&mut self, rows: Result<Vec<Row>, String>) {
        match rows {
            Err(why) => {
                self.fault("database", &format!("PostgreSQL cannot be read, its last word stands: {why}"));
                self.database = Err(why);
                self.remember();
            }
            Ok(rows) => {
                self.remembered = None;
                self.database = Ok(());
                self.cleared("database", "PostgreSQL answers again");
                if self.registry.is_some() && rows == self.rows {
                    return;
                }
                let registry = Registry::read(&rows);
                for fault in &registry.faults {
                    if let Some(line) = self.notices.fault(&format!("row {fault}"), fault, Instant::now()) {
                        warn!("unusable in the database: {line}");
                    }
                }
                self.notices.retain("row ", |fault| registry.faults.contains(fault));
                self.go_by(rows, registry);
            }
        }
    }

    /// A start without the database: what it said last in an earlier run says what to run.
    fn remember(&mut self) {
        if let Some(rows) = self.remembered.take() {
            info!("until PostgreSQL answers, what it said last says what to record");
            let registry = Registry::read(&rows);
            self.go_by(rows, registry);
        }
    }

    /// Goes by these rows from now on; the first ones say which microphone is which.
    fn go_by(&mut self, rows: Vec<Row>, registry: Registry) {
        self.rows = rows;
        self.registry = Some(registry);
        if let Some(scan) = self.first_scan.take() {
            self.note_scan(scan);
        }
    }

    fn note_containers(&mut self, sequence: u64, containers: Result<Vec<Container>, String>) {
        match containers {
            Err(why) => {
                self.containers = None;
                self.fault("podman", &format!("containers are unknown, running Recorders are left alone: {why}"));
                self.podman_state = Err(why);
            }
            Ok(mut containers) => {
                self.cleared("podman", "Podman answers again");
                self.podman_state = Ok(());
                self.hints.open();
                // A log is read from its beginning whenever that begins, and a crowd of starts has no time for it.
                if self.jobs.len() <= CROWD {
                    self.logs.keep(&containers);
                }
                let now = Instant::now();
                self.listed = now;
                self.witness.judge(&mut containers, now);
                self.limits.look(&containers).iter().for_each(|line| warn!("{line}"));
                let between = |container: &&Container| matches!(container.state, State::Stopping | State::Stopped | State::Removing);
                let since = |id: &String| self.in_between.get(id).copied().unwrap_or(now);
                self.in_between = containers.iter().filter(between).map(|container| (container.id.clone(), since(&container.id))).collect();
                // What an action of ours does, its end tells.
                let restless = |container: &Container| {
                    let since = self.in_between.get(&container.id);
                    let ours = container.labels.get(DEVICE_ID).is_some_and(|device| self.jobs.contains_key(device));
                    !ours && since.is_some_and(|since| now.saturating_duration_since(*since) < RESTLESS)
                };
                if containers.iter().any(restless) {
                    self.recheck = Some(now + RECHECK);
                }
                self.containers = Some((sequence, containers));
            }
        }
    }

    fn note_done(&mut self, action: &Action, result: Result<Option<String>, Failure>, took: Duration) {
        let device = &action.device;
        self.jobs.remove(device);
        self.settled.insert(device.clone(), self.sequence);
        let topic = format!("action {device}");
        match result {
            Ok(started) => {
                self.cleared(&topic, "works again");
                if let (Some(spec), Some(id)) = (&action.start, started) {
                    self.decided(format!("{} started in {:.2} s: {}", spec.name, took.as_secs_f64(), action.reason));
                    self.known_running.insert(device.clone(), id);
                } else {
                    let names: Vec<&str> = action.old.iter().map(|old| old.name.as_str()).collect();
                    self.decided(format!("{} stopped and removed in {:.2} s: {}", names.join(", "), took.as_secs_f64(), action.reason));
                    let removed = |id: &String| action.old.iter().any(|old| &old.id == id);
                    self.known_running.retain(|_, id| !removed(id));
                }
            }
            Err(failure) => {
                let attempt = action.start.as_ref().map_or(STOP, |spec| spec.hash());
                let now = Instant::now();
                let why = match failure {
                    Failure::Lacking(why) => {
                        let every = self.backoffs.lacking(device, attempt, now);
                        format!("{why}; tried again every {} s", every.as_secs())
                    }
                    Failure::Other(why) => {
                        let wait = self.backoffs.failed(device, attempt, now);
                        debug!("microphone {device}: next try in {} s", wait.as_secs());
                        why
                    }
                };
                self.journal.note(why.clone());
                self.fault(&topic, &why);
            }
        }
        // The list that shows the outcome; the one that is on its way may be older.
        self.ask_podman();
    }

    /// Writes to the database what the hardware says differently: once a tick, after the database was read.
    fn record(&mut self) {
        let Some(registry) = self.registry.as_ref().filter(|_| self.database.is_ok() && self.hardware.is_ok()) else { return };
        if self.asked_store.is_some() || self.recorded || self.leaving.is_some() {
            return;
        }
        self.recorded = true;
        let changes = registry.changes(&self.presences, &clock::iso(SystemTime::now()));
        if !changes.is_empty() {
            self.store.ask(Request::Write(changes));
            self.asked_store = Some(Instant::now());
        }
    }

    /// Plans from all that is known and starts the actions.
    fn act(&mut self) {
        let now = Instant::now();
        let Some((sequence, containers)) = self.containers.take() else { return };
        self.settled.retain(|_, settled| *settled >= sequence);
        if let Some((wants, wants_complete)) = self.wants(&containers) {
            self.count_ends(&containers, &wants, now);
            let busy = self.jobs.keys().chain(self.settled.keys()).cloned().collect();
            let stuck =
                self.in_between.iter().filter(|(_, since)| now.duration_since(**since) >= STUCK).map(|(id, _)| id.clone()).collect();
            let plan = plan(&View {
                containers: &containers,
                wants: &wants,
                wants_complete,
                max_recorders: self.registry.as_ref().and_then(|registry| registry.system.max_recorders),
                backoffs: &self.backoffs,
                busy: &busy,
                stuck: &stuck,
                now,
            });
            self.tell(&plan, &containers);
            if plan.actions.is_empty() || now.saturating_duration_since(self.listed) < FRESH {
                plan.actions.into_iter().for_each(|action| self.start(action));
            } else {
                self.ask_podman();
            }
        }
        self.containers = Some((sequence, containers));
    }

    /// What should be, and whether that is all; `None` while the database never answered.
    fn wants(&mut self, containers: &[Container]) -> Option<(BTreeMap<String, Want>, bool)> {
        if self.leaving.is_some() {
            let device = |container: &Container| container.labels.get(DEVICE_ID).cloned().unwrap_or_default();
            let stop = |container| (device(container), Want::Stop("the Controller stops".to_owned()));
            return Some((containers.iter().map(stop).collect(), true));
        }
        let registry = self.registry.as_ref()?;
        let wants = wants(registry, self.database.is_ok(), &self.presences, &mut self.specs);
        Some((wants, self.database.is_ok() && self.hardware.is_ok()))
    }

    fn count_ends(&mut self, containers: &[Container], wants: &BTreeMap<String, Want>, now: Instant) {
        for end in count_ends(containers, wants, &mut self.ended, &mut self.backoffs, now) {
            let line = format!("the Recorder of {} {}; next start in {} s", end.device, end.how, end.wait.as_secs());
            warn!("{line}");
            self.journal.note(line);
            let count = self.ends.get(&end.device).map_or(0, |(_, count)| *count);
            self.ends.insert(end.device, (end.how, count + 1));
        }
    }

    /// Logs what is new in a plan: adopted containers and Recorders that have no place.
    fn tell(&mut self, plan: &Plan, containers: &[Container]) {
        let runs = |id: &String| containers.iter().any(|container| &container.id == id && !container.state.is_over());
        let settled = &self.settled;
        self.known_running.retain(|device, id| settled.contains_key(device) || runs(id));
        for (device, id) in &plan.kept {
            if self.known_running.get(device) != Some(id) {
                let name = containers.iter().find(|container| &container.id == id).map_or("", |container| &container.name);
                self.decided(format!("{name} runs as wanted and is adopted"));
                self.known_running.insert(device.clone(), id.clone());
            }
        }
        for (device, why) in plan.holds.iter().filter(|(device, why)| self.holds.get(*device) != Some(*why)) {
            debug!("microphone {device} is not started: {why}");
        }
        for device in plan.crowded() {
            self.fault(&format!("place {device}"), &format!("microphone {device} is not recorded: max_recorders is reached"));
        }
        self.notices.retain("place ", |device| plan.crowded().any(|crowded| crowded == device));
        self.holds.clone_from(&plan.holds);
    }

    /// Tells what was done, and keeps it for a dump.
    fn decided(&mut self, line: String) {
        info!("{line}");
        self.journal.note(line);
    }

    /// Hands an action to a thread of its own.
    fn start(&mut self, action: Action) {
        let starts = action.start.is_some();
        let Some(engine) = self.engine.clone() else { return };
        if starts && self.jobs.values().filter(|starts| **starts).count() >= STARTS_AT_ONCE {
            return;
        }
        let (podman, events, workspace) = (self.podman.clone(), self.events.clone(), self.config.workspace_local.clone());
        let (device, drainer) = (action.device.clone(), self.logs.drainer());
        let run = move || {
            let begun = Instant::now();
            let result = execute(&podman, &drainer, &engine, &workspace, &action);
            // Only a program that is ending has no inbox.
            let _ = events.send(Event::Done { action: Box::new(action), result, took: begun.elapsed() });
        };
        match thread::Builder::new().name("action".to_owned()).stack_size(256 << 10).spawn(run) {
            Ok(_) => drop(self.jobs.insert(device, starts)),
            Err(why) => self.fault("thread", &format!("no thread for an action: {why}")),
        }
    }

    fn leave(&mut self) {
        if self.config.shutdown == Shutdown::Keep {
            info!("stopping; Recorders run on");
            self.leaving = Some(Instant::now());
        } else {
            info!("stopping all Recorders");
            self.leaving = Some(Instant::now() + SHUTDOWN);
            // Nothing that failed before may keep a Recorder from being stopped now.
            self.backoffs = Backoffs::default();
            // Whether any is left, a fresh list says.
            self.containers = None;
            self.config.interval = self.config.interval.min(Duration::from_secs(1));
            self.next_tick = Instant::now();
        }
    }

    fn is_done(&mut self) -> bool {
        let Some(deadline) = self.leaving else { return false };
        if self.config.shutdown == Shutdown::Keep {
            return true;
        }
        if Instant::now() >= deadline {
            match &self.podman_state {
                Ok(()) => error!("not all Recorders could be stopped in time; Podman goes on with it"),
                Err(why) => error!("Recorders may run on, as containers are unknown: {why}"),
            }
            return true;
        }
        if !self.jobs.is_empty() || self.asked_podman {
            return false;
        }
        // Unknown containers may be running ones: Podman is asked again at each tick until the deadline.
        let stopped = |(sequence, containers): &(u64, Vec<Container>)| {
            containers.is_empty() && self.settled.values().all(|settled| settled < sequence)
        };
        self.containers.as_ref().is_some_and(stopped)
    }

    fn fault(&mut self, topic: &str, text: &str) {
        if let Some(line) = self.notices.fault(topic, text, Instant::now()) {
            warn!("{line}");
        }
    }

    fn cleared(&mut self, topic: &str, text: &str) {
        if let Some(lasted) = self.notices.cleared(topic, Instant::now()) {
            info!("{text} after {} s", lasted.as_secs());
        }
    }
}
