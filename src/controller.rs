//! The main loop: wait, observe, record, act, report.
//!
//! It owns all state and never blocks on anything but its own tick: sound cards, PostgreSQL and Podman answer through
//! events from their threads, and each action runs on a thread of its own. What each of them said last is kept in `sight`,
//! `desired`, `census` and `jobs`; decisions are made by the pure files (`presence`, `registry`, `want`, `plan`), and what
//! cannot be known is handed to them as unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, error, info, warn};
use serde_json::{Map, Value, json};

use crate::collect::by_insertion;
use crate::config::{Config, Shutdown};
use crate::containers::actions::Actions;
use crate::containers::limits::Limits;
use crate::containers::state::{ContainersState, List};
use crate::database::state::DatabaseState;
use crate::decide::backoff::Backoffs;
use crate::decide::container::Container;
use crate::decide::desired::{Desired, SpecCache, wants};
use crate::decide::plan::{Action, BACK_OFF, Failure, Plan, STOP, View, count_ends, exit_words, plan, restarts};
use crate::decide::presence::Transition;
use crate::decide::profile;
use crate::decide::reason::{Reason, ReasonInput, online, reasons};
use crate::decide::spec::DEVICE_ID;
use crate::event::Event;
use crate::hardware::pcm::{PcmMonitor, Proof};
use crate::hardware::state::{Changes, HardwareState};
use crate::health::heartbeat::{Facts, Heartbeat};
use crate::history::History;
use crate::logs::follow::LogForwarder;
use crate::podman::client::Podman;
use crate::rate_limit::RateLimit;
use crate::redis::nudge::{self, Pending};
use crate::redis::publisher::Publisher;
use crate::text::shown;

/// Time between cycles on account of nudges that do not end: at first, and at most.
const NUDGE_GAP: Duration = Duration::from_millis(50);
const NUDGE_GAP_MAX: Duration = Duration::from_millis(500);
/// The loop shows that it moves at least this often, whatever the settings.
const LONGEST_SLEEP: Duration = Duration::from_secs(20);
/// For the last heartbeat.
const FAREWELL: Duration = Duration::from_millis(300);
/// All of the shutdown.
const SHUTDOWN: Duration = Duration::from_millis(11_500);

/// All state of the program.
pub struct Controller {
    config: Config,
    inbox: Receiver<Event>,
    next_tick: Instant,
    nudge_pending: Pending,
    nudged: bool,
    next_nudge: Instant,
    nudge_gap: Duration,

    sight: HardwareState,
    desired: DatabaseState,
    census: ContainersState,
    jobs: Actions,
    specs: SpecCache,
    backoffs: Backoffs,
    /// How the last Recorder of each device ended, and how many did in this run.
    ends: BTreeMap<String, (String, u32)>,
    ended: BTreeSet<String>,
    /// The run of each container: when it began, and its process.
    runs: BTreeMap<String, (u64, u32)>,
    known_running: BTreeMap<String, String>,
    holds: BTreeMap<String, String>,
    /// Why the last Recorder of a device ended, or could not be started, while that matters.
    failed: BTreeMap<String, String>,
    leaving: Option<Instant>,

    logs: LogForwarder,
    limits: Limits,
    capture: PcmMonitor,
    journal: History,
    notices: RateLimit,
    vitals: Heartbeat,
}

impl Controller {
    /// Starts the threads for nudges, sound cards, PostgreSQL and Podman; the first tick is due at once.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(config: Config, events: &SyncSender<Event>, inbox: Receiver<Event>, vitals: Heartbeat, bus: Publisher) -> io::Result<Self> {
        let now = Instant::now();
        // First of all, so that it listens before the first cycle ends.
        let nudge_pending = nudge::start(&config.redis_url, events.clone())?;
        let podman = Podman::new(config.socket.clone());
        Ok(Self {
            inbox,
            next_tick: now,
            nudge_pending,
            nudged: false,
            next_nudge: now,
            nudge_gap: NUDGE_GAP,
            desired: DatabaseState::start(&config, events)?,
            census: ContainersState::start(&podman, &config, events)?,
            sight: HardwareState::start(&config, events)?,
            jobs: Actions::new(&podman, &config, events),
            specs: SpecCache::new(config.recorder.clone()),
            backoffs: Backoffs::default(),
            ends: BTreeMap::new(),
            ended: BTreeSet::new(),
            runs: BTreeMap::new(),
            known_running: BTreeMap::new(),
            holds: BTreeMap::new(),
            failed: BTreeMap::new(),
            leaving: None,
            logs: LogForwarder::new(&podman, bus),
            limits: Limits::new(&config.recorder),
            capture: PcmMonitor::start(&config.host_root)?,
            journal: History::default(),
            notices: RateLimit::default(),
            vitals,
            config,
        })
    }

    /// Runs until a termination signal is done with.
    pub fn run(mut self) {
        loop {
            let now = Instant::now();
            if now >= self.next_tick || self.nudge_is_due(now) {
                self.observe();
            }
            if self.census.due.is_some_and(|due| now >= due) {
                self.census.ask(&self.jobs);
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
        let (facts, more) = (self.facts(), self.meta());
        self.vitals.finish(&facts, more, Instant::now() + FAREWELL);
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
        self.desired.doubt();
        self.census.ask(&self.jobs);
        true
    }

    /// Looks at the hardware and asks PostgreSQL and Podman how things are.
    fn observe(&mut self) {
        let now = Instant::now();
        self.next_tick = now + self.config.interval;
        if self.leaving.is_some() {
            self.census.ask(&self.jobs);
            return;
        }
        let changes = self.sight.look(self.desired.registry.as_ref(), now);
        let all_is_as_it_was = changes.as_ref().is_some_and(Vec::is_empty);
        self.forgive(&changes.unwrap_or_default());
        self.look_at_capture(now);
        self.desired.ask(&self.sight.presences, all_is_as_it_was, now);
        self.census.ask_if_doubtful(&self.jobs, now);
    }

    /// Sleeps until there is something to do, and takes in every event that is there.
    fn wait(&mut self) {
        let nudge = self.nudged.then_some(self.next_nudge);
        let deadlines = [Some(self.next_tick), Some(self.vitals.due()), nudge, self.census.due, self.leaving];
        let until = deadlines.into_iter().flatten().min().unwrap_or(self.next_tick);
        let mut event = self.inbox.recv_timeout(until.saturating_duration_since(Instant::now()).min(LONGEST_SLEEP));
        while let Ok(next) = event {
            self.take_in(next);
            event = self.inbox.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Terminate => self.leave(),
            Event::Dump => self.dump(),
            Event::Nudge => self.nudged = true,
            Event::Changed => self.census.changed(&self.jobs),
            Event::Hardware { generation, scan } => {
                if let Some(changes) = self.sight.answered(generation, scan, self.desired.registry.as_ref()) {
                    self.forgive(&changes);
                    // What was found is written in this very tick.
                    self.desired.is_behind();
                }
            }
            Event::Rows { generation, rows } => self.desired.answered(generation, rows),
            Event::Containers { sequence, containers, engine } => {
                self.census.answered(sequence, containers, engine, &self.jobs);
                if let Ok(containers) = self.census.containers() {
                    // A log is read from its beginning whenever that begins, and a crowd of starts has no time for it.
                    if !self.jobs.are_a_crowd() {
                        self.logs.keep(containers);
                    }
                    self.limits.look(containers).iter().for_each(|line| warn!("{line}"));
                }
            }
            Event::Done { action, result, took } => self.note_done(&action, result, took),
        }
    }

    /// Whatever failed before with microphones that came or went, they are plugged in anew.
    fn forgive(&mut self, changes: &Changes) {
        for (id, _) in changes.iter().filter(|(_, change)| matches!(change, Transition::Appeared | Transition::Left)) {
            self.backoffs.forget(id);
        }
    }

    fn note_done(&mut self, action: &Action, result: Result<Option<String>, Failure>, took: Duration) {
        let device = &action.device;
        self.jobs.ended(device, self.census.sequence);
        let topic = format!("action {device}");
        match result {
            Ok(started) => {
                self.notices.inform(&topic, &format!("microphone {}: works again", shown(device)), Instant::now());
                if let (Some(spec), Some(id)) = (&action.start, started) {
                    self.decided(format!("{} started in {:.2} s: {}", spec.name, took.as_secs_f64(), action.reason));
                    self.known_running.insert(device.clone(), id);
                    self.failed.remove(device);
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
                self.notices.warn(&topic, &why, now);
                self.failed.insert(device.clone(), why);
            }
        }
        // The list that shows the outcome; the one that is on its way may be older.
        self.census.ask(&self.jobs);
    }

    /// Writes to the database what the hardware says differently.
    fn record(&mut self) {
        // The first word of the database says which microphone is which.
        if let Some(registry) = &self.desired.registry {
            let changes = self.sight.recall(registry);
            self.forgive(&changes);
        }
        if self.sight.state.is_ok() && self.leaving.is_none() {
            self.desired.record(&self.sight.presences);
        }
    }

    /// Plans from all that is known and starts the actions.
    fn act(&mut self) {
        let now = Instant::now();
        let Some(List { sequence, containers }) = self.census.list.take() else { return };
        self.jobs.listed(sequence);
        if let Some((wants, desired_complete)) = self.wants(&containers) {
            self.note_ends(&containers, &wants, now);
            let plan = plan(&View {
                containers: &containers,
                wants: &wants,
                desired_complete,
                max_recorders: self.desired.registry.as_ref().and_then(|registry| registry.system.max_recorders),
                backoffs: &self.backoffs,
                busy: &self.jobs.busy(),
                stuck: &self.census.stuck(now),
                now,
                wall: SystemTime::now(),
            });
            self.tell(&plan, &containers);
            if plan.actions.is_empty() || self.census.is_fresh(now) {
                plan.actions.into_iter().for_each(|action| self.start(action));
            } else {
                self.census.ask(&self.jobs);
            }
        }
        self.census.list = Some(List { sequence, containers });
    }

    /// What should be, and whether that is all; `None` while the database never answered.
    fn wants(&mut self, containers: &[Container]) -> Option<(BTreeMap<String, Desired>, bool)> {
        if self.leaving.is_some() {
            let device = |container: &Container| container.labels.get(DEVICE_ID).cloned().unwrap_or_default();
            let stop = |container| (device(container), Desired::Stop("the Controller stops".to_owned()));
            return Some((by_insertion(containers.iter().map(stop)), true));
        }
        let registry = self.desired.registry.as_ref()?;
        let known = self.desired.state.is_ok();
        let wants = wants(registry, known, &self.sight.presences, &mut self.specs);
        Some((wants, known && self.sight.state.is_ok()))
    }

    /// Tells how Recorders ended, and counts it.
    fn note_ends(&mut self, containers: &[Container], wants: &BTreeMap<String, Desired>, now: Instant) {
        let mut ends: Vec<(String, String, String)> = Vec::new();
        for (container, code) in restarts(containers, &mut self.runs, |id| self.census.take_exit_code(id)) {
            let how = code.map_or_else(|| "ended".to_owned(), exit_words);
            let device = container.labels.get(DEVICE_ID).cloned().unwrap_or_default();
            ends.push((device, how, "Podman has started it again".to_owned()));
        }
        for end in count_ends(containers, wants, &mut self.ended, &mut self.backoffs, now) {
            ends.push((end.device, end.how, format!("next start in {} s", end.wait.as_secs())));
        }
        for (device, how, next) in ends {
            let line = format!("the Recorder of {} {how}; {next}", shown(&device));
            warn!("{line}");
            self.journal.note(line);
            self.failed.insert(device.clone(), how.clone());
            let count = self.ends.get(&device).map_or(0, |(_, count)| *count);
            self.ends.insert(device, (how, count + 1));
        }
    }

    /// LogForwarder what is new in a plan: adopted containers and Recorders that have no place.
    fn tell(&mut self, plan: &Plan, containers: &[Container]) {
        let runs = |id: &String| containers.iter().any(|container| &container.id == id && !container.state.is_over());
        self.known_running.retain(|device, id| self.jobs.has_settled(device) || runs(id));
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
            let line = format!("microphone {device} is not recorded: max_recorders is reached");
            self.notices.warn(&format!("place {device}"), &line, Instant::now());
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
        let Some(engine) = &self.census.engine else { return };
        if let Err(why) = self.jobs.start(action, engine, self.logs.drainer()) {
            self.notices.warn("thread", &format!("no thread for an action: {why}"), Instant::now());
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
            self.census.list = None;
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
            match &self.census.state {
                Ok(()) => error!("not all Recorders could be stopped in time; Podman goes on with it"),
                Err(why) => error!("Recorders may run on, as containers are unknown: {why}"),
            }
            return true;
        }
        if !self.jobs.is_empty() || self.census.is_under_way() {
            return false;
        }
        // Unknown containers may be running ones: Podman is asked again at each tick until the deadline.
        self.census.list.as_ref().is_some_and(|list| list.containers.is_empty() && !self.jobs.are_ahead_of(list.sequence))
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
        let Some(registry) = &self.desired.registry else { return BTreeMap::new() };
        let presences = &self.sight.presences;
        let wants = wants(registry, self.desired.state.is_ok(), presences, &mut self.specs);
        let told = |(device, why): (&String, &String)| match self.failed.get(device).filter(|_| why.starts_with(BACK_OFF)) {
            Some(cause) => (device.clone(), format!("{why}: {cause}")),
            None => (device.clone(), why.clone()),
        };
        let holds = by_insertion(self.holds.iter().map(told));
        reasons(&ReasonInput { registry, presences, wants: &wants, holds: &holds, containers: self.census.containers() })
    }

    /// What the heartbeat tells of each microphone: the same with the proof of capture, and how its Recorders ended.
    fn meta(&mut self) -> Map<String, Value> {
        let reasons = self.reasons();
        let entry = |(id, reason): (String, Reason)| {
            let capture = self.capture.of(&id).filter(|_| reason.recording == Some(true)).map(Proof::to_json);
            (id, json!({"recording": reason.recording, "reason": reason.text, "capture": capture}))
        };
        let devices: Map<String, Value> = by_insertion(reasons.into_iter().map(entry));
        let mut meta: Map<String, Value> = by_insertion([("devices".to_owned(), devices.into())]);
        if !self.ends.is_empty() {
            let ends = self.ends.iter().map(|(device, (how, count))| (device.clone(), json!({"last": how, "count": count})));
            meta.insert("ends".to_owned(), Value::Object(by_insertion(ends)));
        }
        meta
    }

    /// Has the PCMs of running Recorders looked at, now and then.
    fn look_at_capture(&mut self, now: Instant) {
        let (running, presences, registry) = (&self.known_running, &self.sight.presences, &self.desired.registry);
        self.capture.look(now, || {
            let recorder = |id: &String| {
                let device = registry.as_ref()?.devices.get(id)?.as_ref().ok()?;
                let profile = registry.as_ref()?.profiles.get(device.profile.as_ref()?)?.as_ref().ok();
                Some((id.clone(), online(presences, id)?.card, profile.map(profile::ProfileConfig::capture)))
            };
            running.keys().filter_map(recorder).collect()
        });
    }

    /// State and last decisions to the log.
    fn dump(&mut self) {
        let told = |state: &Result<(), String>| state.clone().map_or_else(|why| why, |()| "fine".to_owned());
        let states = [&self.sight.state, &self.desired.state, &self.census.state].map(told);
        info!("dump: hardware {}; database {}; podman {}", states[0], states[1], states[2]);
        info!("dump: {}", self.census.summary());
        for (id, reason) in self.reasons() {
            let capture = self.capture.of(&id).map(|proof| format!("; PCM {proof}")).unwrap_or_default();
            let busy = if self.jobs.has(&id) { "; an action is under way" } else { "" };
            info!("dump: microphone {}: {}{capture}{busy}", shown(&id), reason.text);
        }
        self.journal.lines().for_each(|line| info!("dump: {line}"));
        info!("dump: end");
    }

    fn facts(&self) -> Facts {
        let connected = |state: &Result<(), String>| state.clone().map(|()| "connected".to_owned());
        let running = self.known_running.len();
        // A Recorder that was started just now is in no list yet.
        let waiting = self.holds.iter().filter(|(device, _)| !self.known_running.contains_key(*device));
        let waiting: Vec<String> = waiting.map(|(device, why)| format!("{device}: {why}")).collect();
        let containers = match &self.census.state {
            Err(_) => Err("unknown".to_owned()),
            Ok(()) if waiting.is_empty() => Ok(format!("{running} running")),
            Ok(()) => Err(format!("{running} running; {}", waiting.join("; "))),
        };
        Facts {
            database: connected(&self.desired.state),
            podman: connected(&self.census.state),
            hardware: self.sight.details(),
            containers,
            activity: match (self.leaving, running) {
                (Some(_), _) => "stopping",
                (None, 0) => "idle",
                (None, _) => "recording",
            },
        }
    }
}
