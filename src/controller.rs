//! The main loop: wait, observe, record, act, report.
//!
//! The loop owns all state and blocks only until its next tick or event. Sound cards, PostgreSQL and Podman are read by
//! other threads, which send events, and each action runs on its own thread. The last state of each source is kept in
//! `hardware`, `database` and `containers`. All decisions are made in `decide`; what cannot be read is passed to it as
//! unknown.

mod act;
mod captures;
mod hang;
mod report;
mod rest;
mod shutdown;
mod workers;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use self::workers::Workers;
use crate::config::{Config, Launch};
use crate::containers::actions::Actions;
use crate::containers::limits::Limits;
use crate::containers::state::ContainersState;
use crate::database::state::{DatabaseState, Hardware};
use crate::decide::capture::Captures;
use crate::decide::desired::SpecCache;
use crate::decide::hang::Replacement;
use crate::decide::leadership::{Leadership, Standing};
use crate::decide::presence::Transition;
use crate::decide::recorders::Recorders;
use crate::decide::rest::Rest;
use crate::decide::spec::Kind;
use crate::event::{Comparison, Event};
use crate::hardware::state::{Changes, HardwareState, Rows};
use crate::health::heartbeat::Heartbeat;
use crate::health::pages::Pages;
use crate::history::History;
use crate::ledger::Ledger;
use crate::lock::{self, Held};
use crate::logs::forwarder::LogForwarder;
use crate::podman::client::Podman;
use crate::probe::Prober;
use crate::rate_limit::RateLimit;
use crate::redis::audience::{Asker, NEXT_QUESTION};
use crate::redis::nudge::{self, Nudges};
use crate::redis::publisher::Publisher;
use crate::status::Pace;
use crate::tally::Tally;

/// Maximum time between two iterations, independent of the settings: each one resets the watchdog.
const MAX_SLEEP: Duration = Duration::from_secs(20);
/// A heartbeat may wait so long for a tick, which comes a little later each time.
const LATE: Duration = Duration::from_millis(50);
/// Time limit for the last heartbeat and for the last state to be saved.
const LAST_WRITES: Duration = Duration::from_millis(300);

/// Why the main loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A termination signal; the shutdown is complete.
    Stopped,
    /// Threads hang: the process must be replaced. If that fails, the loop can run on.
    Replace,
}

/// All state of the program.
pub struct Controller {
    config: Config,
    started: SystemTime,
    events: SyncSender<Event>,
    inbox: Receiver<Event>,
    next_tick: Instant,
    /// When decisions were last made.
    decided: Instant,
    /// Whether something has happened since then.
    rest: Rest,
    /// Whether the last plans wait for nothing.
    plans_are_at_rest: bool,
    nudges: Nudges,
    /// Deadline of the shutdown, once it began.
    shutdown: Option<Instant>,
    leadership: Leadership,
    lock: Held,
    replacement: Replacement,

    hardware: HardwareState,
    database: DatabaseState,
    containers: ContainersState,
    actions: Actions,
    specs: SpecCache,
    recorders: Recorders,
    workers: Workers,
    ledger: Ledger,
    captures: Captures,

    logs: LogForwarder,
    limits: Limits,
    history: History,
    rate_limit: RateLimit,
    heartbeat: Heartbeat,
    /// What is served beside the health.
    pages: Option<Pages>,
    /// How often the status pages ask.
    pace: Pace,
    tally: Tally,
}

impl Controller {
    /// Starts the threads for nudges, PostgreSQL and Podman; the first tick is due at once.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(
        config: Config,
        (events, inbox): (&SyncSender<Event>, Receiver<Event>),
        prober: &Prober,
        (heartbeat, pages): (Heartbeat, Option<Pages>),
        publisher: Publisher,
    ) -> io::Result<Self> {
        let sender = events.clone();
        let notify = move |standing| drop(sender.send(Event::Lock(standing)));
        let lock = lock::contend(&config.workspace_local, &config.recorder.owner, config.launch, notify)?;
        // Before the other threads, so that it is subscribed before the first cycle ends.
        let nudges = nudge::start(&config.redis_url, events.clone())?;
        let podman = Podman::new(config.socket.clone());
        let asked = publisher.clone();
        let database = DatabaseState::start(&config, Arc::new(move || asked.read_answer()), events)?;
        Ok(Self {
            events: events.clone(),
            inbox,
            started: SystemTime::now(),
            next_tick: Instant::now(),
            decided: Instant::now(),
            rest: Rest::Disturbed,
            plans_are_at_rest: false,
            nudges,
            shutdown: None,
            leadership: Leadership::new(Instant::now()),
            replacement: Replacement::new((config.launch == Launch::Replacement).then(Instant::now)),
            ledger: Ledger::start(&config, database.sessions())?,
            database,
            containers: ContainersState::start(&podman, &config, &lock, events)?,
            lock,
            hardware: HardwareState::new(&config, prober, events),
            workers: Workers::new(&podman, &config, events),
            actions: Actions::new(Kind::Recorder, &podman, &config, events),
            specs: SpecCache::new(config.recorder.clone()),
            recorders: Recorders::default(),
            captures: Captures::new(config.capture_timeout, config.usb_reset),
            logs: LogForwarder::new(&podman, publisher, events.clone()),
            limits: Limits::new(&config.recorder),
            history: History::default(),
            rate_limit: RateLimit::default(),
            heartbeat,
            pages,
            pace: Pace::new(Instant::now()),
            tally: Tally::default(),
            config,
        })
    }

    /// Runs until the shutdown after a termination signal is complete, or until the process must be replaced.
    pub fn run(&mut self) -> End {
        loop {
            let now = Instant::now();
            self.database.poll(now);
            if self.nudges.take(now) {
                self.rest = Rest::Disturbed;
                self.workers.history.nudged();
                self.database.ask_again();
                self.containers.request(&self.actions);
                self.observe();
            } else if now >= self.next_tick {
                self.observe();
            }
            if self.containers.due.is_some_and(|due| now >= due) {
                self.containers.request(&self.actions);
            }
            self.wait();
            if self.is_done() {
                break;
            }
            if self.must_decide() {
                self.record();
                self.act();
                self.report();
            }
            self.heartbeat.beat();
            if self.must_replace() {
                return End::Replace;
            }
        }
        self.logs.stop();
        self.report_workers();
        let (facts, meta) = (self.known().facts(), self.known().meta());
        let deadline = Instant::now() + LAST_WRITES;
        self.heartbeat.finish(&facts, meta, deadline);
        self.ledger.finish(deadline);
        self.database.finish(deadline);
        End::Stopped
    }

    /// Reads the hardware, and requests the state of PostgreSQL and Podman.
    fn observe(&mut self) {
        let now = Instant::now();
        self.next_tick = now + self.config.interval;
        self.logs.tick();
        if self.shutdown.is_some() {
            self.logs.ask(Asker::Publisher);
            self.containers.request(&self.actions);
            return;
        }
        let rest = self.rest_of_all();
        let changes = self.hardware.poll(rows(&self.database), now, rest);
        let hardware = match changes.as_ref().map(Vec::is_empty) {
            Some(true) if rest == Rest::Undisturbed => Hardware::AtRest,
            Some(true) => Hardware::Unchanged,
            _ => Hardware::ChangedOrUnknown,
        };
        if hardware == Hardware::ChangedOrUnknown {
            self.rest = Rest::Disturbed;
        }
        self.note_connections(&changes.unwrap_or_default());
        self.observe_captures(now);
        self.keep_ledger(now);
        if self.leadership.is_decided(now) {
            self.database.ask(&self.hardware.presences, self.containers.containers().ok(), hardware, now);
        }
        let is_asked_in_passing = self.config.interval <= NEXT_QUESTION && self.database.answers_promptly(now);
        self.containers.request_if_stale(&self.actions, now);
        self.logs.ask(if is_asked_in_passing { Asker::MainLoop } else { Asker::Publisher });
    }

    /// Sleeps until an event or a deadline, and handles all events in the queue.
    fn wait(&mut self) {
        let heartbeat = self.leadership.deadline().unwrap_or_else(|| self.heartbeat.due() + LATE);
        let levels = self.heartbeat.levels_due();
        let deadlines =
            [Some(self.next_tick), Some(heartbeat), self.nudges.due(), self.containers.due, self.database.due(), self.shutdown, levels];
        let until = deadlines.into_iter().flatten().min().unwrap_or(self.next_tick);
        let mut event = self.inbox.recv_timeout(until.saturating_duration_since(Instant::now()).min(MAX_SLEEP));
        while let Ok(next) = event {
            self.handle(next);
            event = self.inbox.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    fn handle(&mut self, event: Event) {
        self.rest = Rest::Disturbed;
        match event {
            Event::Terminate => self.begin_shutdown(),
            Event::Leave => self.leave(),
            Event::Dump => {
                self.report_workers();
                self.known().dump().iter().for_each(|line| info!("dump: {line}"));
            }
            Event::Asked | Event::Levels => {}
            Event::Nudge => self.nudges.arrived(),
            Event::Audience => self.logs.audience_changed(),
            Event::Changed => self.containers.changed(&self.actions),
            Event::Hardware { generation, scan } => {
                if let Some(changes) = self.hardware.answered(generation, scan, rows(&self.database)) {
                    self.note_connections(&changes);
                    // The changes are written in the same tick.
                    self.database.observed();
                }
            }
            Event::Rows { generation, scope, rows } => self.database.answered(generation, scope, rows),
            Event::Saved(rows) => self.database.loaded(rows),
            Event::SeedFiles(workers) => self.database.seed_files_read(workers),
            Event::Containers { sequence, received, containers, engine } => {
                if containers.is_ok() && self.containers.list.is_none() {
                    // Workspace names waited for it.
                    self.database.observed();
                }
                self.containers.answered(sequence, received, containers, engine, &self.actions);
                if self.workers.actions.are_ahead_of(sequence) {
                    self.containers.request(&self.actions);
                }
                if let (Ok(containers), Ok(others)) = (self.containers.containers(), self.containers.others()) {
                    // While many actions are under way, following a log would delay them. It can begin later, as a log
                    // is read from its beginning.
                    if !self.actions.are_many() && self.leadership.may_act(Instant::now()) {
                        match others {
                            [] => self.logs.update(containers),
                            others => self.logs.update(&[containers, others].concat()),
                        }
                    }
                    self.limits.check(containers).iter().for_each(|line| warn!("{line}"));
                }
            }
            Event::Compared(comparisons) => {
                self.containers.compared(&comparisons, Instant::now());
                for Comparison { container, spec, differences } in comparisons {
                    let history = if spec.kind() == Kind::Recorder { &mut self.recorders } else { &mut self.workers.history };
                    if let Ok(differences) = differences {
                        history.compared(container, &spec, differences);
                    }
                }
            }
            Event::Lock(standing) => self.note_standing(standing),
            Event::Done { kind: Kind::Recorder, action, result, took } => self.finish(&action, result, took),
            Event::Done { kind: Kind::Worker, action, result, took } => self.finish_worker(&action, result, took),
        }
    }

    /// Handles a result about the lock. The next tick is due at once: after the first result, and with a new list after a
    /// takeover.
    fn note_standing(&mut self, standing: Standing) {
        match &standing {
            Standing::Unknown(_) => warn!("{standing}"),
            Standing::Standby(_) => info!("{standing}"),
            Standing::Leader => {}
        }
        let is_first = !self.leadership.is_decided(Instant::now());
        let previous = self.leadership.update(standing);
        if let Some(holder) = &previous {
            info!("this Controller takes over from {holder}");
            self.containers.forget();
        }
        if is_first || previous.is_some() {
            self.next_tick = Instant::now();
        }
        if self.leadership.may_act(Instant::now()) {
            self.database.lead();
        } else {
            self.database.follow();
        }
        self.containers.request(&self.actions);
    }

    /// Resets the failures of microphones that were connected or disconnected.
    fn note_connections(&mut self, changes: &Changes) {
        self.ledger.note_connections(changes);
        for (id, _) in changes.iter().filter(|(_, change)| matches!(change, Transition::Appeared | Transition::Left)) {
            self.recorders.reconnected(id);
        }
    }

    /// Writes changes of the hardware to the database.
    fn record(&mut self) {
        // The rows of the database identify microphones that were detected before.
        if self.hardware.is_waiting() {
            let changes = self.hardware.identify_earlier(rows(&self.database));
            self.note_connections(&changes);
            self.database.observed();
        }
        if self.shutdown.is_none() {
            self.database.need(&self.hardware.presences, self.containers.containers().unwrap_or_default(), self.hardware.others);
        }
        if self.hardware.state.is_ok() && self.shutdown.is_none() {
            self.database.record(&self.hardware.presences, self.containers.containers().ok());
        }
        // Those of a shutdown; a tick writes the others.
        let _ = self.database.write_sessions(Instant::now());
    }
}

/// The rows by which microphones are identified.
fn rows(database: &DatabaseState) -> Rows<'_> {
    Rows { registry: database.registry.as_ref(), absent: database.absent() }
}
