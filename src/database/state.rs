//! What should be recorded, as the database said last, and when it is asked again.
//!
//! One request is on its way at a time, and a second one after a nudge. A database that does not answer is away for now, and its last word stands, be it
//! that of an earlier run; a thread that a frozen server holds is left behind after a while, and another one tries anew.

use std::io;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use crate::cache;
use crate::clock;
use crate::config::Config;
use crate::database::worker::{Request, Worker};
use crate::decide::presence::{Presence, Presences};
use crate::decide::registry::{Registry, Row, RowChange};
use crate::event::Event;
use crate::rate_limit::RateLimit;
use crate::text::NOT_YET;

/// How often `last_seen` of present microphones is refreshed. A refresh writes some 10 kB to the disk, as it is mostly the
/// first since the last checkpoint.
const TOUCH: Duration = Duration::from_secs(3600);
/// A database that has not answered after this is away for now.
const ANSWER: Duration = Duration::from_secs(3);
/// A database thread that owes an answer for so long is left behind …
const OVERDUE: Duration = Duration::from_secs(15);
/// … unless so many are already.
const ABANDONED: usize = 3;

/// Asks the database, and keeps what it said last.
pub struct DatabaseState {
    config: Config,
    events: SyncSender<Event>,
    store: Worker,
    abandoned: Vec<JoinHandle<()>>,
    notices: RateLimit,
    asked: Option<Instant>,
    /// A nudge came while an answer was on its way, which may be older than what the nudge is about.
    doubted: bool,
    touched: Instant,
    /// Whether this tick's differences were written.
    recorded: bool,
    rows: Vec<Row>,
    /// The database's last word in an earlier run, until it or this one is used.
    remembered: Option<Vec<Row>>,
    /// What the rows mean; `None` while there never was a word.
    pub registry: Option<Registry>,
    /// Whether the last answer was one, or why not.
    pub state: Result<(), String>,
}

impl DatabaseState {
    /// Starts the thread and reads what is remembered.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(config: &Config, events: &SyncSender<Event>) -> io::Result<Self> {
        let remembered = cache::load(&config.workspace_local).unwrap_or_else(|why| {
            warn!("the last known desired state is ignored: {why}");
            None
        });
        Ok(Self {
            config: config.clone(),
            events: events.clone(),
            store: Worker::start(config, 0, events.clone())?,
            abandoned: Vec::new(),
            notices: RateLimit::default(),
            asked: None,
            doubted: false,
            touched: Instant::now(),
            recorded: false,
            rows: Vec::new(),
            remembered,
            registry: None,
            state: Err(NOT_YET.to_owned()),
        })
    }

    /// At a tick: asks, or sees to an answer that does not come. While all is as it was, an answer that says the same
    /// again wakes nobody.
    pub fn ask(&mut self, presences: &Presences, all_is_as_it_was: bool, now: Instant) {
        self.recorded = false;
        match self.asked() {
            None if now.duration_since(self.touched) >= TOUCH && self.state.is_ok() => {
                self.touched = now;
                let online = presences.iter().filter(|(_, presence)| matches!(presence, Presence::Online(_)));
                self.request(Request::Touch(online.map(|(id, _)| id.clone()).collect()));
            }
            None => {
                let quiet = all_is_as_it_was && self.state.is_ok() && self.differences(presences).is_empty();
                self.request(if quiet { Request::Check } else { Request::Read });
            }
            Some(since) if now.duration_since(since) >= OVERDUE => self.replace_store(),
            Some(since) if now.duration_since(since) >= ANSWER => {
                self.away("PostgreSQL does not answer, its last word stands", "does not answer".to_owned());
            }
            Some(_) => {}
        }
    }

    /// What is on its way may be too old; another request follows it.
    pub fn doubt(&mut self) {
        if self.asked().is_some() && !self.doubted {
            self.doubted = true;
            self.store.ask(Request::Read);
        }
    }

    /// Since when an answer is waited for.
    fn asked(&mut self) -> Option<Instant> {
        if self.store.is_idle() {
            (self.asked, self.doubted) = (None, false);
        }
        self.asked
    }

    fn request(&mut self, request: Request) {
        self.store.ask(request);
        self.asked = Some(Instant::now());
    }

    /// The thread may be blocked for good by a frozen server; another one tries anew.
    fn replace_store(&mut self) {
        self.abandoned.retain(|thread| !thread.is_finished());
        if self.abandoned.len() >= ABANDONED {
            return;
        }
        match Worker::start(&self.config, self.store.generation + 1, self.events.clone()) {
            Ok(store) => {
                self.abandoned.push(std::mem::replace(&mut self.store, store).abandon());
                self.doubted = false;
                self.request(Request::Read);
            }
            Err(why) => self.notices.warn("thread", &format!("no thread for PostgreSQL: {why}"), Instant::now()),
        }
    }

    /// Takes in an answer; that of a thread which was left behind says nothing.
    pub fn answered(&mut self, generation: u64, rows: Result<Vec<Row>, String>) {
        if generation != self.store.generation {
            return;
        }
        match rows {
            Err(why) => self.away(&format!("PostgreSQL cannot be read, its last word stands: {why}"), why),
            Ok(rows) => {
                self.remembered = None;
                self.state = Ok(());
                self.notices.inform("database", "PostgreSQL answers again", Instant::now());
                if self.registry.is_none() || rows != self.rows {
                    self.go_by(rows);
                    self.tell_faults();
                }
            }
        }
    }

    /// The last word stands. At a start without the database it is that of an earlier run.
    fn away(&mut self, line: &str, why: String) {
        self.notices.warn("database", line, Instant::now());
        self.state = Err(why);
        if let Some(rows) = self.remembered.take() {
            info!("until PostgreSQL answers, what it said last says what to record");
            self.go_by(rows);
        }
    }

    fn go_by(&mut self, rows: Vec<Row>) {
        self.registry = Some(Registry::read(&rows));
        self.rows = rows;
    }

    fn tell_faults(&mut self) {
        let Some(registry) = &self.registry else { return };
        for fault in &registry.faults {
            if let Some(line) = self.notices.fault(&format!("row {fault}"), fault, Instant::now()) {
                warn!("unusable in the database: {line}");
            }
        }
        self.notices.retain("row ", |fault| registry.faults.contains(fault));
    }

    /// The hardware was looked at since the last differences were written.
    pub fn is_behind(&mut self) {
        self.recorded = false;
    }

    /// Writes what the hardware says differently: once a tick, after the database was read.
    pub fn record(&mut self, presences: &Presences) {
        if self.state.is_err() || self.recorded || self.asked().is_some() {
            return;
        }
        self.recorded = true;
        let changes = self.differences(presences);
        if !changes.is_empty() {
            self.request(Request::Write(changes));
        }
    }

    fn differences(&self, presences: &Presences) -> Vec<RowChange> {
        self.registry.as_ref().map(|registry| registry.changes(presences, &clock::iso(SystemTime::now()))).unwrap_or_default()
    }
}
