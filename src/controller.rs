//! The main loop: wait, observe, record, act, report.
//!
//! It owns all state and never blocks on anything but its own tick: sound cards, PostgreSQL and Podman answer through
//! events from their threads, and each action runs on a thread of its own. What each of them answered last is kept in the
//! states of `hardware`, `database` and `containers`; decisions are made in `decide`, and what cannot be known is handed
//! to it as unknown.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, error, info, warn};

use crate::config::{Config, Shutdown};
use crate::containers::actions::Actions;
use crate::containers::limits::Limits;
use crate::containers::state::{ContainersState, List};
use crate::database::state::{DatabaseState, Hardware};
use crate::decide::action::{Action, Done, Failure};
use crate::decide::container::Container;
use crate::decide::desired::{Desired, SpecCache, desired, none_of};
use crate::decide::plan::{Plan, View, plan};
use crate::decide::presence::Transition;
use crate::decide::recorders::{Finished, Note, Recorders};
use crate::event::Event;
use crate::hardware::state::{Changes, HardwareState};
use crate::health::heartbeat::Heartbeat;
use crate::history::History;
use crate::logs::forwarder::LogForwarder;
use crate::podman::client::Podman;
use crate::probe::Prober;
use crate::rate_limit::RateLimit;
use crate::redis::nudge::{self, Nudges};
use crate::redis::publisher::Publisher;
use crate::report::Known;
use crate::text::shown;

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
    nudges: Nudges,
    /// Until when a shutdown may take, once it was asked for.
    shutdown: Option<Instant>,

    hardware: HardwareState,
    database: DatabaseState,
    containers: ContainersState,
    actions: Actions,
    specs: SpecCache,
    recorders: Recorders,

    logs: LogForwarder,
    limits: Limits,
    history: History,
    rate_limit: RateLimit,
    heartbeat: Heartbeat,
}

impl Controller {
    /// Starts the threads for nudges, PostgreSQL and Podman; the first tick is due at once.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        config: Config,
        (events, inbox): (&SyncSender<Event>, Receiver<Event>),
        prober: &Prober,
        heartbeat: Heartbeat,
        publisher: Publisher,
    ) -> io::Result<Self> {
        // First of all, so that it listens before the first cycle ends.
        let nudges = nudge::start(&config.redis_url, events.clone())?;
        let podman = Podman::new(config.socket.clone());
        Ok(Self {
            inbox,
            next_tick: Instant::now(),
            nudges,
            shutdown: None,
            database: DatabaseState::start(&config, events)?,
            containers: ContainersState::start(&podman, &config, events)?,
            hardware: HardwareState::new(&config, prober, events),
            actions: Actions::new(&podman, &config, events),
            specs: SpecCache::new(config.recorder.clone()),
            recorders: Recorders::default(),
            logs: LogForwarder::new(&podman, publisher),
            limits: Limits::new(&config.recorder),
            history: History::default(),
            rate_limit: RateLimit::default(),
            heartbeat,
            config,
        })
    }

    /// Runs until a termination signal is done with.
    pub fn run(mut self) {
        loop {
            let now = Instant::now();
            if self.nudges.take(now) {
                self.database.ask_again();
                self.containers.ask(&self.actions);
                self.observe();
            } else if now >= self.next_tick {
                self.observe();
            }
            if self.containers.due.is_some_and(|due| now >= due) {
                self.containers.ask(&self.actions);
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
        let (facts, meta) = (self.known().facts(), self.known().meta());
        self.heartbeat.finish(&facts, meta, Instant::now() + FAREWELL);
    }

    /// Reads the hardware, and asks PostgreSQL and Podman for their state.
    fn observe(&mut self) {
        let now = Instant::now();
        self.next_tick = now + self.config.interval;
        if self.shutdown.is_some() {
            self.containers.ask(&self.actions);
            return;
        }
        let changes = self.hardware.poll(self.database.registry.as_ref(), now);
        let hardware = if changes.as_ref().is_some_and(Vec::is_empty) { Hardware::Unchanged } else { Hardware::ChangedOrUnknown };
        self.note_plugged(&changes.unwrap_or_default());
        self.hardware.refresh_pcms(self.recorders.running().map(|(device, _)| device), self.database.registry.as_ref(), now);
        self.database.ask(&self.hardware.presences, hardware, now);
        self.containers.ask_if_doubtful(&self.actions, now);
    }

    /// Sleeps until there is something to do, and handles every event that is there.
    fn wait(&mut self) {
        let deadlines = [Some(self.next_tick), Some(self.heartbeat.due()), self.nudges.due(), self.containers.due, self.shutdown];
        let until = deadlines.into_iter().flatten().min().unwrap_or(self.next_tick);
        let mut event = self.inbox.recv_timeout(until.saturating_duration_since(Instant::now()).min(LONGEST_SLEEP));
        while let Ok(next) = event {
            self.handle(next);
            event = self.inbox.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Terminate => self.begin_shutdown(),
            Event::Dump => self.known().dump().iter().for_each(|line| info!("dump: {line}")),
            Event::Nudge => self.nudges.arrived(),
            Event::Changed => self.containers.changed(&self.actions),
            Event::Hardware { generation, scan } => {
                if let Some(changes) = self.hardware.answered(generation, scan, self.database.registry.as_ref()) {
                    self.note_plugged(&changes);
                    // What was found is written in this very tick.
                    self.database.hardware_scanned();
                }
            }
            Event::Rows { generation, rows } => self.database.answered(generation, rows),
            Event::Containers { sequence, containers, engine } => {
                self.containers.answered(sequence, containers, engine, &self.actions);
                if let Ok(containers) = self.containers.containers() {
                    // A log is read from its beginning whenever that begins, and a crowd of starts has no time for it.
                    if !self.actions.are_a_crowd() {
                        self.logs.update(containers);
                    }
                    self.limits.check(containers).iter().for_each(|line| warn!("{line}"));
                }
            }
            Event::Done { action, result, took } => self.finish(&action, result, took),
        }
    }

    /// Microphones that came or went are plugged in anew, whatever failed with them before.
    fn note_plugged(&mut self, changes: &Changes) {
        for (id, _) in changes.iter().filter(|(_, change)| matches!(change, Transition::Appeared | Transition::Left)) {
            self.recorders.plugged(id);
        }
    }

    /// Notes how an action ended.
    fn finish(&mut self, action: &Action, result: Result<Done, Failure>, took: Duration) {
        let now = Instant::now();
        let topic = format!("action {}", action.device);
        self.actions.ended(&action.device, self.containers.sequence);
        match self.recorders.finished(action, result, took, now) {
            Finished::Done(note) => {
                self.rate_limit.inform(&topic, &format!("microphone {}: works again", shown(&action.device)), now);
                self.log(&note);
            }
            Finished::DoneInVain { note, warning } => {
                self.rate_limit.warn(&topic, &warning, now);
                self.history.add(note.to_string());
            }
            Finished::Failed(why) => {
                self.rate_limit.warn(&topic, &why, now);
                self.history.add(why);
            }
            Finished::Dropped(why) => debug!("microphone {}: {why}", shown(&action.device)),
        }
        // The list that shows the outcome; the one that is on its way may be older.
        self.containers.ask(&self.actions);
    }

    /// Writes to the database what the hardware shows differently.
    fn record(&mut self) {
        // The first answer of the database says which microphone is which.
        if let Some(registry) = &self.database.registry {
            let changes = self.hardware.identify_earlier(registry);
            self.note_plugged(&changes);
        }
        if self.hardware.state.is_ok() && self.shutdown.is_none() {
            self.database.record(&self.hardware.presences);
        }
    }

    /// Plans from all that is known and starts the actions.
    fn act(&mut self) {
        let now = Instant::now();
        let Some(List { sequence, containers }) = self.containers.list.clone() else { return };
        self.actions.listed(sequence);
        let Some((desired, desired_complete)) = self.desired(&containers) else { return };
        let busy = self.actions.busy();
        let exit = |id: &str| self.containers.take_exit_code(id);
        let ended = self.recorders.observe(&containers, &desired, |device| busy.contains(device), exit, now);
        ended.iter().for_each(|note| self.log(note));
        let plan = plan(&View {
            containers: &containers,
            desired: &desired,
            desired_complete,
            max_recorders: self.database.registry.as_ref().and_then(|registry| registry.system.max_recorders),
            past: self.recorders.past(),
            busy: &busy,
            replacing: self.actions.are_replacing(),
            stuck: &self.containers.stuck(now),
            now,
            wall: SystemTime::now(),
        });
        self.note_plan(&plan, &containers, &desired);
        if plan.actions.is_empty() || self.containers.is_fresh(now) {
            plan.actions.into_iter().for_each(|action| self.start(action));
        } else {
            self.containers.ask(&self.actions);
        }
    }

    /// The desired state, and whether that is all; `None` while the database never answered.
    fn desired(&mut self, containers: &[Container]) -> Option<(BTreeMap<String, Desired>, bool)> {
        if self.shutdown.is_some() {
            return Some((none_of(containers), true));
        }
        let registry = self.database.registry.as_ref()?;
        let known = self.database.state.is_ok();
        let desired = desired(registry, known, &self.hardware.presences, &mut self.specs);
        Some((desired, known && self.hardware.state.is_ok()))
    }

    /// Logs what is new in a plan: adopted containers and Recorders that have no place.
    fn note_plan(&mut self, plan: &Plan, containers: &[Container], desired: &BTreeMap<String, Desired>) {
        let notes = self.recorders.planned(plan, containers, desired, |device| self.actions.has_settled(device));
        notes.iter().for_each(|note| self.log(note));
        for device in plan.crowded() {
            let line = format!("microphone {device} is not recorded: max_recorders is reached");
            self.rate_limit.warn(&format!("place {device}"), &line, Instant::now());
        }
        self.rate_limit.retain("place ", |device| plan.crowded().any(|crowded| crowded == device));
    }

    /// Writes a note to the log and, if something was done, to the history.
    fn log(&mut self, note: &Note) {
        match note {
            Note::Held { .. } => return debug!("{note}"),
            Note::Ended { .. } | Note::Foreign { .. } | Note::FellBack { .. } => warn!("{note}"),
            Note::Adopted { .. } | Note::Started { .. } | Note::Renamed { .. } | Note::Removed { .. } => info!("{note}"),
        }
        self.history.add(note.to_string());
    }

    /// Hands an action to a thread of its own.
    fn start(&mut self, action: Action) {
        let Some(engine) = &self.containers.engine else { return };
        if !self.actions.have_room_for(&action) {
            return;
        }
        self.recorders.begun(&action);
        if let Err(why) = self.actions.start(action, engine, self.logs.drainer()) {
            self.rate_limit.warn("thread", &format!("no thread for an action: {why}"), Instant::now());
        }
    }

    fn begin_shutdown(&mut self) {
        if self.config.shutdown == Shutdown::Keep {
            info!("stopping; Recorders run on");
            self.shutdown = Some(Instant::now());
        } else {
            info!("stopping all Recorders");
            self.shutdown = Some(Instant::now() + SHUTDOWN);
            self.recorders.stopping();
            self.actions.stop_starting();
            // Whether any is left, a fresh list says.
            self.containers.forget();
            self.config.interval = self.config.interval.min(Duration::from_secs(1));
            self.next_tick = Instant::now();
        }
    }

    fn is_done(&self) -> bool {
        let Some(deadline) = self.shutdown else { return false };
        if self.config.shutdown == Shutdown::Keep {
            return true;
        }
        if Instant::now() >= deadline {
            match &self.containers.state {
                Ok(()) => error!("not all Recorders could be stopped in time; Podman goes on with it"),
                Err(why) => error!("Recorders may run on, as containers are unknown: {why}"),
            }
            return true;
        }
        if !self.actions.is_empty() || self.containers.is_under_way() {
            return false;
        }
        // Unknown containers may be running ones: Podman is asked again at each tick until the deadline.
        self.containers.list.as_ref().is_some_and(|list| list.containers.is_empty() && !self.actions.are_ahead_of(list.sequence))
    }

    /// Shows what is known, and sends the heartbeat when its time has come.
    fn report(&mut self) {
        self.heartbeat.beat();
        let now = Instant::now();
        let facts = self.known().facts();
        // Half a tick early is better than another wake-up.
        if now + self.config.interval.min(Duration::from_secs(1)) / 2 >= self.heartbeat.due() {
            let meta = self.known().meta();
            self.heartbeat.report(&facts, meta, now);
        } else {
            self.heartbeat.update_board(&facts);
        }
    }

    fn known(&mut self) -> Known<'_> {
        Known {
            hardware: &self.hardware,
            database: &self.database,
            containers: &self.containers,
            actions: &self.actions,
            recorders: &self.recorders,
            history: &self.history,
            specs: &mut self.specs,
            is_stopping: self.shutdown.is_some(),
        }
    }
}
