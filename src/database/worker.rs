//! The `database` thread: owns the connection, seeds, reads the desired state, writes rows.
//!
//! PostgreSQL is behind a thread because a frozen server blocks its caller without limit. The main loop sends requests
//! and hears [`Event::Rows`]; on a quiet station it is not woken to hear that nothing changed. When an answer is overdue,
//! it abandons the thread and starts another. An abandoned thread ends at its next answer, as nobody holds the other end
//! of its channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::info;

use crate::cache;
use crate::config::Config;
use crate::database::connection::{Connection, reason};
use crate::database::seed::Seeder;
use crate::decide::registry::{Row, RowChange};
use crate::event::Event;
use crate::rate_limit::RateLimit;
use crate::text::shown;

/// The admin user waits this long: computing a password hash must not compete with the first Recorder's start.
const SEED_LATER: Duration = Duration::from_secs(2);
/// How long a failed seeder waits for its next try.
const SEED_AGAIN: Duration = Duration::from_secs(60);

/// What the main loop asks for.
#[derive(Debug)]
pub enum Request {
    /// Read the desired state; connects first when needed.
    Read,
    /// The same, but without a word if it is as it was told last.
    Check,
    /// Write these rows, then read.
    Write(Vec<RowChange>),
    /// Note that these devices are still there.
    Touch(Vec<String>),
}

/// The other end of the `database` thread.
#[derive(Debug)]
pub struct Worker {
    requests: Sender<Request>,
    /// How many requests are not answered.
    open: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
    /// Tells the answers of this thread from those of an abandoned one.
    pub generation: u64,
}

impl Worker {
    /// Starts the thread; it connects at the first request.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(config: &Config, generation: u64, events: SyncSender<Event>) -> std::io::Result<Self> {
        let (requests, inbox) = channel();
        let open = Arc::<AtomicUsize>::default();
        let worker = WorkerThread {
            open: Arc::clone(&open),
            config: config.clone(),
            generation,
            events,
            seeder: Seeder::new(config.config_dir.clone()),
            db: None,
            seed_at: None,
            notices: RateLimit::default(),
            remembered: cache::load(&config.workspace_local).ok().flatten(),
            told: false,
        };
        let thread = thread::Builder::new().name("database".to_owned()).stack_size(256 << 10).spawn(move || worker.run(&inbox))?;
        Ok(Self { requests, open, thread, generation })
    }

    /// Hands a request over; the answer comes as an event.
    pub fn ask(&self, request: Request) {
        self.open.fetch_add(1, Ordering::AcqRel);
        // The thread ends only when this sender is gone, or with the program.
        let _ = self.requests.send(request);
    }

    /// Whether all requests are answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Lets go of a thread that does not answer; its handle tells when it has ended.
    #[must_use]
    pub fn abandon(self) -> JoinHandle<()> {
        self.thread
    }
}

struct WorkerThread {
    config: Config,
    generation: u64,
    events: SyncSender<Event>,
    open: Arc<AtomicUsize>,
    seeder: Seeder,
    db: Option<Connection>,
    /// When seeders that are not done are tried (again); `None` = all are done.
    seed_at: Option<Instant>,
    notices: RateLimit,
    /// What the memory file holds.
    remembered: Option<Vec<Row>>,
    /// Whether just that was the last answer.
    told: bool,
}

impl WorkerThread {
    fn run(mut self, inbox: &Receiver<Request>) {
        while let Ok(request) = inbox.recv() {
            let quietly = matches!(request, Request::Check);
            let answer = match request {
                Request::Read | Request::Check => self.read(),
                Request::Write(changes) => {
                    self.write(&changes);
                    self.read()
                }
                Request::Touch(devices) => self.with(|db| db.touch(&devices)).and_then(|()| self.read()),
            };
            let known = self.told && answer.as_ref().is_ok_and(Option::is_none);
            self.open.fetch_sub(1, Ordering::AcqRel);
            if known && quietly {
                continue;
            }
            let rows = answer.map(|changed| changed.or_else(|| self.remembered.clone()).unwrap_or_default());
            self.told = rows.is_ok();
            if self.events.send(Event::Rows { generation: self.generation, rows }).is_err() {
                return;
            }
        }
    }

    /// All rows, or `None` if they are as they were.
    fn read(&mut self) -> Result<Option<Vec<Row>>, String> {
        if self.db.is_none() {
            let db = Connection::connect(&self.config.database).map_err(|error| reason(&error))?;
            info!("connected to PostgreSQL at {:?}", self.config.database);
            self.db = Some(db);
            self.seed_at = Some(Instant::now() + SEED_LATER);
            self.seed_first();
        } else if self.seed_at.is_some_and(|at| at <= Instant::now()) {
            self.seed_later();
        }
        let rows = self.with(Connection::snapshot)?;
        if self.remembered.as_ref() == Some(&rows) {
            return Ok(None);
        }
        self.remember(&rows);
        Ok(Some(rows))
    }

    /// Keeps what changed for a start without a database.
    fn remember(&mut self, rows: &[Row]) {
        match cache::save(&self.config.workspace_local, rows) {
            Ok(()) => drop(self.notices.cleared("memory", Instant::now())),
            Err(why) => {
                let line = format!("the desired state cannot be kept for a start without database: {why}");
                self.notices.warn("memory", &line, Instant::now());
            }
        }
        // Tried once a change, so that a full disk is not asked every second.
        self.remembered = Some(rows.to_vec());
    }

    /// What must be there before the first Recorder can start: schema, settings, profiles.
    fn seed_first(&mut self) {
        if let Some(db) = &mut self.db {
            self.seeder.schema(db);
            self.seeder.settings(db);
            self.seeder.profiles(db);
        }
    }

    /// At a later read: the admin user, whose hash takes its time, and whatever failed.
    fn seed_later(&mut self) {
        self.seed_first();
        let Some(db) = &mut self.db else { return };
        let hashing = self.seeder.admin(db);
        let wait = if hashing { Duration::ZERO } else { SEED_AGAIN };
        self.seed_at = (hashing || self.seeder.is_pending()).then(|| Instant::now() + wait);
    }

    /// A row that is refused spoils no other one.
    fn write(&mut self, changes: &[RowChange]) {
        for change in changes {
            let topic = format!("write {}", change.device);
            let device = shown(&change.device);
            match self.with(|db| db.write(change)) {
                Ok(()) => {
                    self.notices.cleared(&topic, Instant::now());
                    if let Some(note) = &change.note {
                        info!("microphone {device} {note}");
                    }
                }
                Err(why) => self.notices.warn(&topic, &format!("device {device} could not be written: {why}"), Instant::now()),
            }
        }
    }

    /// Runs statements; after an error that may have cost the connection, the next request connects anew.
    fn with<T>(&mut self, statements: impl FnOnce(&mut Connection) -> Result<T, postgres::Error>) -> Result<T, String> {
        let db = self.db.as_mut().ok_or("not connected")?;
        statements(db).map_err(|error| {
            if error.as_db_error().is_none_or(|db| db.code().code().starts_with("57P") || db.code().code().starts_with("08")) {
                self.db = None;
            }
            reason(&error)
        })
    }
}
