//! The last known desired state, and when the database is read again.
//!
//! One request is under way at a time. After a nudge, whose change the request may have missed, another one follows at
//! once, so at most one waits. While the database is unavailable, the last known state is used, or the one that an earlier run saved. A call that a frozen server does not answer is ended at
//! its deadline, and the next request connects again. If the thread hangs nevertheless, it is abandoned and another one
//! connects; the number of abandoned threads is limited.

use std::io;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use crate::cache;
use crate::clock;
use crate::config::Config;
use crate::database::refusals::Refusals;
use crate::database::worker::{Request, Worker};
use crate::decide::presence::{Presence, Presences};
use crate::decide::registry::{Registry, Row, RowChange};
use crate::event::{Event, NoRows};
use crate::rate_limit::RateLimit;
use crate::text::NOT_YET;

/// How often `last_seen` of connected microphones is updated. An update writes about 10 kB to the disk: it is usually
/// the first one since the last checkpoint, and then PostgreSQL writes whole pages to its log.
const TOUCH: Duration = Duration::from_secs(3600);
/// A database that has not answered within this time counts as unavailable.
const ANSWER: Duration = Duration::from_secs(3);
/// While the database is unavailable, it is asked this often, however long a tick is.
const RETRY: Duration = Duration::from_secs(2);
/// While an answer is missing, the deadline is looked at this often, however long a tick is.
const CHECK: Duration = Duration::from_secs(1);
/// A `database` thread that has not answered within this time is abandoned …
const OVERDUE: Duration = Duration::from_secs(30);
/// … and one that is still in a call this long after the call was ended …
const STUCK: Duration = Duration::from_secs(2);
/// … unless this many abandoned threads exist.
const ABANDONED: usize = 3;

/// Whether the hardware is as it was at the last tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// It is.
    Unchanged,
    /// It is not, or that is unknown.
    ChangedOrUnknown,
}

/// Reads the database, and keeps the last known state.
pub struct DatabaseState {
    config: Config,
    events: SyncSender<Event>,
    worker: Worker,
    abandoned: Vec<JoinHandle<()>>,
    /// Rows that are not written before their time.
    refusals: Refusals,
    rate_limit: RateLimit,
    /// When a request was last sent.
    last_request: Instant,
    last_touch: Instant,
    /// Whether this Controller leads: only then anything is written.
    leads: bool,
    /// Whether the differences of this tick were written.
    recorded: bool,
    rows: Vec<Row>,
    /// The state that an earlier run saved, until it is used or the database answers.
    saved: Option<Vec<Row>>,
    /// The parsed rows; `None` until the first state is known.
    pub registry: Option<Registry>,
    /// Whether the last read succeeded, or its error.
    pub state: Result<(), String>,
}

impl DatabaseState {
    /// Starts the thread, and loads the state that an earlier run saved.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(config: &Config, events: &SyncSender<Event>) -> io::Result<Self> {
        let saved = cache::load(&config.workspace_local).unwrap_or_else(|why| {
            warn!("ignoring the desired state saved by an earlier run: {why}");
            None
        });
        let refusals = Refusals::default();
        Ok(Self {
            config: config.clone(),
            events: events.clone(),
            worker: Worker::start(config, 0, events.clone(), &refusals)?,
            abandoned: Vec::new(),
            refusals,
            rate_limit: RateLimit::default(),
            last_request: Instant::now(),
            last_touch: Instant::now(),
            leads: false,
            recorded: false,
            rows: Vec::new(),
            saved,
            registry: None,
            state: Err(NOT_YET.to_owned()),
        })
    }

    /// Sends a request at a tick, or handles a missing answer. While nothing has changed, an answer with the same rows
    /// does not wake the main loop.
    pub fn ask(&mut self, presences: &Presences, hardware: Hardware, now: Instant) {
        self.recorded = false;
        match self.worker.waiting_since() {
            None if self.leads && now.duration_since(self.last_touch) >= TOUCH && self.state.is_ok() => {
                self.last_touch = now;
                let online = presences.iter().filter(|(_, presence)| matches!(presence, Presence::Online(_)));
                self.request(Request::Touch(online.map(|(id, _)| id.clone()).collect()));
            }
            None => {
                let is_behind = self.leads && !self.differences(presences).is_empty();
                let quiet = hardware == Hardware::Unchanged && self.state.is_ok() && !is_behind;
                self.request(if quiet { Request::Check } else { Request::Read });
            }
            Some(since) if now.saturating_duration_since(since) >= ANSWER => self.set_unavailable(&NoRows::NoAnswer),
            Some(_) => {}
        }
    }

    /// When [`Self::poll`] must be called at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        if self.worker.waiting_since().is_none() {
            return self.state.is_err().then(|| self.last_request + RETRY);
        }
        // The thread sets the deadline a moment after the request was sent.
        Some(self.worker.deadline().until().unwrap_or_else(|| Instant::now() + CHECK))
    }

    /// Ends a call that is overdue, replaces a thread that hangs, and asks again while the database is unavailable.
    pub fn poll(&mut self, now: Instant) {
        let deadline = self.worker.deadline();
        deadline.enforce(now);
        let is_stuck = deadline.exceeded().is_some_and(|at| now.saturating_duration_since(at) >= STUCK);
        let waits = now.saturating_duration_since(self.worker.waiting_since().unwrap_or(self.last_request));
        if self.worker.waiting_since().is_none() {
            if self.state.is_err() && waits >= RETRY {
                self.request(Request::Read);
            }
        } else if is_stuck || waits >= OVERDUE {
            self.replace_worker();
        }
    }

    /// How many abandoned threads still hang.
    #[must_use]
    pub fn hung_threads(&self) -> usize {
        self.abandoned.iter().filter(|thread| !thread.is_finished()).count()
    }

    /// Sends another request if one is under way, as its answer may be older than the nudge.
    pub fn ask_again(&mut self) {
        if self.worker.waiting_since().is_some() && !self.worker.has_next() {
            self.worker.ask(Request::Read);
        }
    }

    fn request(&mut self, request: Request) {
        self.worker.ask(request);
        self.last_request = Instant::now();
    }

    /// Abandons the thread, which hangs although its call was ended, and starts another one.
    fn replace_worker(&mut self) {
        self.abandoned.retain(|thread| !thread.is_finished());
        if self.abandoned.len() >= ABANDONED {
            return;
        }
        match Worker::start(&self.config, self.worker.generation + 1, self.events.clone(), &self.refusals) {
            Ok(worker) => {
                self.rate_limit.cleared("thread", Instant::now());
                self.abandoned.push(std::mem::replace(&mut self.worker, worker).abandon());
                if self.leads {
                    self.worker.lead();
                }
                self.request(Request::Read);
            }
            Err(why) => self.rate_limit.warn("thread", &format!("cannot start a thread for PostgreSQL; retrying: {why}"), Instant::now()),
        }
    }

    /// This Controller leads from now on: it seeds, and writes what differs.
    pub fn lead(&mut self) {
        if !std::mem::replace(&mut self.leads, true) {
            self.worker.lead();
            if self.worker.waiting_since().is_some() {
                self.ask_again();
            } else {
                self.request(Request::Read);
            }
        }
    }

    /// Handles an answer; that of an abandoned thread is ignored.
    pub fn answered(&mut self, generation: u64, rows: Result<Vec<Row>, NoRows>) {
        if generation != self.worker.generation {
            return;
        }
        match rows {
            Err(why) => self.set_unavailable(&why),
            Ok(rows) => {
                self.saved = None;
                self.state = Ok(());
                self.rate_limit.inform("database", "PostgreSQL is available again", Instant::now());
                if self.registry.is_none() || rows != self.rows {
                    self.apply(rows);
                    self.report_faults();
                }
            }
        }
    }

    /// Keeps the last known state. After a start without the database, that is the one that an earlier run saved.
    fn set_unavailable(&mut self, why: &NoRows) {
        let (line, state) = match why {
            NoRows::NoAnswer => ("PostgreSQL does not respond; using the last known state".to_owned(), "does not respond".to_owned()),
            NoRows::Failed(why) => (format!("cannot read PostgreSQL; using the last known state: {why}"), why.clone()),
        };
        self.rate_limit.warn("database", &line, Instant::now());
        self.state = Err(state);
        if let Some(rows) = self.saved.take() {
            info!("using the desired state saved by an earlier run until PostgreSQL responds");
            self.apply(rows);
        }
    }

    fn apply(&mut self, rows: Vec<Row>) {
        self.registry = Some(Registry::read(&rows, self.registry.as_ref().map(|known| &known.system)));
        self.rows = rows;
    }

    fn report_faults(&mut self) {
        let Some(registry) = &self.registry else { return };
        for fault in &registry.faults {
            if let Some(line) = self.rate_limit.fault(&format!("row {fault}"), fault, Instant::now()) {
                warn!("invalid row in the database: {line}");
            }
        }
        self.rate_limit.retain("row ", |fault| registry.faults.contains(fault));
    }

    /// Notes that a scan has ended, so that its differences are written within this tick.
    pub fn hardware_scanned(&mut self) {
        self.recorded = false;
    }

    /// Writes the differences between hardware and rows: once a tick, after the rows were read.
    pub fn record(&mut self, presences: &Presences) {
        if !self.leads || self.state.is_err() || self.recorded || self.worker.waiting_since().is_some() {
            return;
        }
        self.recorded = true;
        let changes = self.differences(presences);
        if !changes.is_empty() {
            self.request(Request::Write(changes));
        }
    }

    /// The differences to write now.
    fn differences(&self, presences: &Presences) -> Vec<RowChange> {
        let Some(registry) = &self.registry else { return Vec::new() };
        let now = Instant::now();
        let mut changes = registry.changes(presences, &clock::iso(SystemTime::now()));
        changes.retain(|change| !self.refusals.is_early(&change.device, now));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::worker::FakeWorker;
    use std::sync::mpsc::sync_channel;
    use std::thread;

    fn state() -> (DatabaseState, FakeWorker) {
        let mut config = Config::read(|_| None).unwrap();
        config.workspace_local = "/nonexistent".into();
        let (events, _inbox) = sync_channel(1);
        let mut state = DatabaseState::start(&config, &events).unwrap();
        let (worker, thread) = FakeWorker::start();
        state.worker = worker;
        (state, thread)
    }

    #[test]
    fn a_nudge_during_a_read_leads_to_another_read_at_once() {
        let (mut state, thread) = state();
        let presences = Presences::new(Duration::ZERO);
        let tick = |state: &mut DatabaseState| state.ask(&presences, Hardware::Unchanged, Instant::now());
        // A nudge without a read is followed by the read of its cycle.
        state.ask_again();
        assert!(!thread.begin());
        tick(&mut state);
        assert!(thread.begin() && !thread.begin());
        // Each of many nudges in a row, even if its read is already the second one.
        for _ in 0..5 {
            state.ask_again();
            tick(&mut state);
            thread.answer();
            assert!(thread.begin(), "the change of the nudge is read without waiting for a tick");
        }
        // A flood of them, before that read begins, leads to one.
        (0..9).for_each(|_| state.ask_again());
        thread.answer();
        assert!(thread.begin() && !thread.begin());
        thread.answer();
        assert_eq!(state.worker.waiting_since(), None);
    }

    #[test]
    fn a_database_that_answers_one_read_after_another_is_not_one_that_does_not_respond() {
        let (mut state, thread) = state();
        state.worker.ask(Request::Read);
        let first = state.worker.waiting_since().unwrap();
        assert!(thread.begin());
        state.ask_again();
        assert_eq!(state.worker.waiting_since(), Some(first));
        thread::sleep(Duration::from_millis(2));
        thread.answer();
        assert!(state.worker.waiting_since().unwrap() > first);
    }
}
