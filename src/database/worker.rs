//! The `database` thread: owns the connection, seeds, reads the desired state, writes rows.
//!
//! A thread of its own, as a server can take long to answer, or never answer. The main loop sends requests and receives
//! [`Event::Rows`]; while nothing changes, it is not woken. It enforces the deadline of each call, which ends the call
//! with an error; the next request connects again. If the thread hangs nevertheless, the main loop abandons it and
//! starts another one. An abandoned thread ends after its next answer: its channel has no sender.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::info;
use postgres::error::SqlState;

use crate::collect::sort_by_key;
use crate::config::{Config, DatabaseSettings};
use crate::database::connection::{Connection, reason};
use crate::database::deadline::Deadline;
use crate::database::last_settings::{Last, LastSettings};
use crate::database::refusals::{Refusal, Refusals};
use crate::database::seed::Seeder;
use crate::database::seed_files::SeedFiles;
use crate::database::sessions::{self, SessionQueue};
use crate::decide::registry::{Row, RowChange};
use crate::decide::scope::Scope;
use crate::decide::sessions::SessionRow;
use crate::event::{Event, NoRows};
use crate::rate_limit::RateLimit;
use crate::text::shown;

/// The admin user is seeded this much later: the hash of its password must not delay the start of the first Recorder.
const SEED_LATER: Duration = Duration::from_secs(2);
/// A failed seeder is retried after this time.
const SEED_AGAIN: Duration = Duration::from_secs(60);

/// After a start, new rows wait for the files at most this long: a microphone is better recorded by a default than not.
pub const FILES: Duration = Duration::from_secs(2);

/// How long the write of one row waits for locks, e.g. of its table …
const LOCK: Duration = Duration::from_millis(250);
/// … and how long, if another row of the same request has waited in vain.
const NEXT_LOCK: Duration = Duration::from_millis(20);
/// A locked row is reported after this many attempts: most transactions of other programs are short.
const LOCKED_ATTEMPTS: u32 = 3;

/// A request of the main loop.
#[derive(Debug)]
pub enum Request {
    /// Read the desired state; connect first if necessary.
    Read,
    /// The same, but send no answer if the rows are those of the last answer.
    Check,
    /// Write these rows, then read.
    Write(Vec<RowChange>),
    /// Update `last_seen` of these devices.
    Touch(Vec<String>),
    /// Write these sessions, then read.
    Sessions(Vec<SessionRow>),
    /// Delete sessions that ended so many days ago.
    DeleteSessions(u16),
}

/// The requests that were not answered yet.
#[derive(Debug, Default)]
pub struct Backlog(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Requests that the thread has not begun.
    queued: usize,
    /// These, and the one that it has begun.
    unanswered: usize,
    /// When the oldest one was sent, or when the one before it was answered.
    since: Option<Instant>,
}

impl Backlog {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) {
        let mut counts = self.counts();
        counts.queued += 1;
        counts.unanswered += 1;
        counts.since.get_or_insert_with(Instant::now);
    }

    fn begun(&self) {
        self.counts().queued -= 1;
    }

    fn answered(&self) {
        let mut counts = self.counts();
        counts.unanswered -= 1;
        counts.since = (counts.unanswered > 0).then(Instant::now);
    }
}

/// The other end of the `database` thread.
#[derive(Debug)]
pub struct Worker {
    requests: Sender<Request>,
    /// Which rows a request reads that has not begun.
    scope: Arc<Mutex<Arc<Scope>>>,
    backlog: Arc<Backlog>,
    /// Whether this Controller leads: only then anything is written.
    leads: Arc<AtomicBool>,
    deadline: Deadline,
    thread: JoinHandle<()>,
    /// Distinguishes the answers of this thread from those of an abandoned one.
    pub generation: u64,
}

impl Worker {
    /// Starts the thread; it connects at the first request.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(config: &Config, generation: u64, events: SyncSender<Event>, shared: &SharedState) -> std::io::Result<Self> {
        let (requests, inbox) = channel();
        let (backlog, leads) = (Arc::<Backlog>::default(), Arc::<AtomicBool>::default());
        let (deadline, scope) = (Deadline::default(), Arc::<Mutex<Arc<Scope>>>::default());
        let worker = WorkerThread {
            deadline: deadline.clone(),
            shared: shared.clone(),
            backlog: Arc::clone(&backlog),
            leads: Arc::clone(&leads),
            is_seeded: false,
            database: config.database.clone(),
            generation,
            events,
            seeder: Seeder::default(),
            round: None,
            db: None,
            seed_at: None,
            scope: Arc::clone(&scope),
            rate_limit: RateLimit::default(),
            rows: None,
            is_silent: false,
            sent: None,
        };
        let thread = thread::Builder::new().name("database".to_owned()).stack_size(256 << 10).spawn(move || worker.run(&inbox))?;
        Ok(Self { requests, scope, backlog, leads, deadline, thread, generation })
    }

    /// Sends a request; the answer, with rows of this scope or a later one, arrives as an event.
    pub fn ask(&self, request: Request, scope: &Arc<Scope>) {
        self.set_scope(scope);
        self.backlog.sent();
        // The thread ends only after this sender was dropped, or with the process.
        let _ = self.requests.send(request);
    }

    /// Requests that have not begun read rows of this scope.
    pub fn set_scope(&self, scope: &Arc<Scope>) {
        *self.scope.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(scope);
    }

    /// This Controller leads from now on.
    pub fn lead(&self) {
        self.leads.store(true, Ordering::Release);
    }

    /// Another one leads from now on.
    pub fn follow(&self) {
        self.leads.store(false, Ordering::Release);
    }

    /// Since when an answer is missing; `None` if all requests were answered.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Instant> {
        self.backlog.counts().since
    }

    /// Whether a request that has not begun follows the one that is under way. It will read what is in the database now.
    #[must_use]
    pub fn has_next(&self) -> bool {
        let counts = self.backlog.counts();
        counts.queued > 0 && counts.unanswered > 1
    }

    /// The deadline of the call that the thread waits for. The main loop must enforce it.
    #[must_use]
    pub fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    /// Drops the channel of a thread that does not answer. The handle shows when the thread has ended.
    #[must_use]
    pub fn abandon(self) -> JoinHandle<()> {
        // Nobody enforces its deadlines any more.
        self.deadline.close();
        self.thread
    }
}

/// What all threads for PostgreSQL share: one that replaces another one continues with it.
#[derive(Clone)]
pub struct SharedState {
    /// Rows that are not written before their time.
    pub refusals: Refusals,
    /// The last known settings.
    pub settings: LastSettings,
    /// The files that contain what is seeded.
    pub files: SeedFiles,
    /// Sessions that are not written yet.
    pub sessions: SessionQueue,
    /// Called after each read.
    pub after_read: AfterRead,
}

/// What the thread does for another one, which would have to wake up for it, after each read. Does not wait.
pub type AfterRead = Arc<dyn Fn() + Send + Sync>;

/// A round of the seeders that is not complete yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Seeds what the first Recorder needs.
    First,
    /// Seeds the admin user, too, and retries what failed.
    Later,
}

struct WorkerThread {
    database: DatabaseSettings,
    generation: u64,
    events: SyncSender<Event>,
    backlog: Arc<Backlog>,
    leads: Arc<AtomicBool>,
    deadline: Deadline,
    shared: SharedState,
    seeder: Seeder,
    /// Whether the seeders began on this connection.
    is_seeded: bool,
    /// The round that waits for the files, and when it began.
    round: Option<(Round, Instant)>,
    db: Option<Connection>,
    /// When the next round begins; `None` = all seeders have succeeded, or a round waits for the files.
    seed_at: Option<Instant>,
    /// Which rows are to be read.
    scope: Arc<Mutex<Arc<Scope>>>,
    rate_limit: RateLimit,
    /// The rows of the last answer.
    rows: Option<Arc<Vec<Row>>>,
    /// Whether PostgreSQL did not answer the last call in time.
    is_silent: bool,
    /// The scope of the last answer, if it consisted of these rows.
    sent: Option<Arc<Scope>>,
}

impl WorkerThread {
    fn run(mut self, inbox: &Receiver<Request>) {
        while let Ok(request) = inbox.recv() {
            self.backlog.begun();
            let only_changes = matches!(request, Request::Check);
            let scope = Arc::clone(&self.scope.lock().unwrap_or_else(PoisonError::into_inner));
            let answer = self.serve(request, &scope);
            let is_known = self.sent.as_ref() == Some(&scope) && answer.as_ref().is_ok_and(Option::is_none);
            self.backlog.answered();
            if is_known && only_changes {
                continue;
            }
            let rows = answer.map(|changed| changed.or_else(|| self.rows.clone()).unwrap_or_default());
            self.sent = rows.is_ok().then(|| Arc::clone(&scope));
            if self.events.send(Event::Rows { generation: self.generation, scope, rows }).is_err() {
                return;
            }
        }
    }

    fn serve(&mut self, request: Request, scope: &Scope) -> Result<Option<Arc<Vec<Row>>>, NoRows> {
        match request {
            Request::Read | Request::Check => {}
            // It has waited while another Controller began to lead.
            _ if !self.leads.load(Ordering::Acquire) => {}
            Request::Write(changes) => self.write(changes),
            Request::Touch(devices) => self.touch(&devices),
            Request::Sessions(rows) => self.write_sessions(&rows),
            Request::DeleteSessions(days) => self.delete_sessions(days),
        }
        self.read(scope)
    }

    /// Reads the rows; `None` if they have not changed.
    fn read(&mut self, scope: &Scope) -> Result<Option<Arc<Vec<Row>>>, NoRows> {
        if self.db.is_none() {
            // The thread before this one hangs, because its call could not be ended.
            if self.generation > 0 {
                Connection::ping(&self.database).map_err(|why| self.no_rows(why))?;
            }
            let result = Connection::connect(&self.database, &self.deadline);
            self.is_silent = self.deadline.exceeded().is_some();
            let db = result.map_err(|why| self.no_rows(why))?;
            info!("connected to PostgreSQL at {:?}", self.database);
            if let Some(why) = &db.unlimited {
                let line = format!("cannot limit the time that PostgreSQL takes to answer: {why}; a thread waits for as long as it hangs");
                self.rate_limit.warn("unlimited", &line, Instant::now());
            }
            self.db = Some(db);
            self.is_seeded = false;
        }
        if self.leads.load(Ordering::Acquire) {
            self.seed();
            self.read_sessions();
        }
        let rows = self.with(|db| db.snapshot(scope));
        (self.shared.after_read)();
        let rows = rows.map_err(|why| self.no_rows(why))?;
        if self.rows.as_deref() == Some(&rows) {
            return Ok(None);
        }
        self.shared.settings.answered(&rows);
        let rows = Arc::new(rows);
        self.rows = Some(Arc::clone(&rows));
        Ok(Some(rows))
    }

    /// Seeds at first what the first Recorder needs: schema, settings, profiles. Later the admin user, whose hash takes
    /// long, and what failed. What is not read yet is seeded at a later read.
    fn seed(&mut self) {
        let Some(db) = &mut self.db else { return };
        let now = Instant::now();
        let begins = match std::mem::replace(&mut self.is_seeded, true) {
            false => Some(Round::First),
            true => self.seed_at.is_some_and(|at| at <= now).then_some(Round::Later),
        };
        if let Some(round) = begins {
            (self.round, self.seed_at) = (Some((round, now)), None);
            self.seeder.schema(db);
        }
        let Some((round, begun)) = self.round else { return };
        let last = self.shared.settings.last();
        // If they were deleted, a default must not take the place of what an earlier run saved.
        let is_early = last == Last::Unknown;
        if is_early && now.saturating_duration_since(begun) < FILES {
            return;
        }
        let Some(content) = self.shared.files.take() else { return };
        self.round = None;
        if !is_early {
            let last = match &last {
                Last::Seen(Row { body: Some(body), .. }) => crate::json::from_str(body).ok(),
                _ => None,
            };
            self.seeder.settings(db, &content, last.as_ref());
        }
        self.seeder.profiles(db, &content);
        self.seeder.workers(db, &content);
        if round == Round::Later {
            self.seeder.admin(db, &content);
        }
        let wait = match round {
            _ if self.seeder.is_hashing() => Some(Duration::ZERO),
            _ if is_early => Some(SEED_LATER),
            Round::First => Some(SEED_LATER),
            Round::Later => self.seeder.is_pending().then_some(SEED_AGAIN),
        };
        self.seed_at = wait.map(|wait| now + wait);
    }

    /// Writes each row by itself, so that one that is locked or refused neither affects nor delays the others: new
    /// devices first, and last those whose write failed before.
    fn write(&mut self, mut changes: Vec<RowChange>) {
        sort_by_key(&mut changes, |change| (self.shared.refusals.count(&change.device), change.insert.is_none()));
        let mut waited = false;
        if self.with(|db| db.limit_locks(Some(LOCK))).is_err() {
            return;
        }
        for change in &changes {
            let mut waits = false;
            let result = self.with(|db| {
                let result = db.write(change);
                waits = result.as_ref().is_err_and(|error| error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE));
                result
            });
            self.note_write(change, result);
            if self.db.is_none() {
                return;
            }
            if waits && !std::mem::replace(&mut waited, true) && self.with(|db| db.limit_locks(Some(NEXT_LOCK))).is_err() {
                return;
            }
        }
        // An error shows in the read that follows.
        let _ = self.with(|db| db.limit_locks(None));
    }

    fn note_write(&mut self, change: &RowChange, result: Result<bool, String>) {
        let now = Instant::now();
        let topic = format!("write {}", change.device);
        let device = shown(&change.device);
        match result {
            Ok(true) => {
                self.shared.refusals.written(&change.device, now);
                self.rate_limit.cleared(&topic, now);
                if let Some(note) = &change.note {
                    info!("microphone {device} {note}");
                }
            }
            Ok(false) => {
                if self.shared.refusals.failed(&change.device, Refusal::Locked, now) >= LOCKED_ATTEMPTS {
                    let line = format!("cannot write device {device} to the database: another client has locked its row; retrying");
                    self.rate_limit.warn(&topic, &line, now);
                }
            }
            Err(why) => {
                self.shared.refusals.failed(&change.device, Refusal::Refused, now);
                let line = format!("cannot write device {device} to the database: {why}; retrying every 1 to 60 s");
                self.rate_limit.warn(&topic, &line, now);
            }
        }
    }

    fn touch(&mut self, devices: &[String]) {
        match self.with(|db| db.touch(devices)) {
            Ok(()) => drop(self.rate_limit.cleared("touch", Instant::now())),
            Err(why) => self.rate_limit.warn("touch", &format!("cannot update last_seen in the database: {why}"), Instant::now()),
        }
    }

    /// Reads once the sessions of an earlier run.
    fn read_sessions(&mut self) {
        let now = Instant::now();
        if !self.shared.sessions.needs_earlier(now) {
            return;
        }
        let rows = self.with(Connection::earlier_sessions);
        match &rows {
            Ok(_) => drop(self.rate_limit.cleared("sessions", now)),
            Err(why) => self.rate_limit.warn("sessions", &format!("cannot read capture_sessions in the database; retrying: {why}"), now),
        }
        self.shared.sessions.read(rows.ok(), now);
    }

    /// Writes each session by itself; one that is refused is tried again after its own time.
    fn write_sessions(&mut self, rows: &[SessionRow]) {
        if self.with(|db| db.limit_locks(Some(LOCK))).is_err() {
            return;
        }
        for row in rows {
            let (result, now) = (self.with(|db| db.write_session(row)), Instant::now());
            match result {
                Ok(()) => {
                    self.shared.sessions.written(row);
                    self.shared.refusals.written(&sessions::topic(row), now);
                    self.rate_limit.cleared("write session", now);
                }
                Err(why) => {
                    self.shared.refusals.failed(&sessions::topic(row), Refusal::Refused, now);
                    let line = format!("cannot write a session of {} to the database: {why}; retrying every 1 to 60 s", shown(&row.device));
                    self.rate_limit.warn("write session", &line, now);
                }
            }
            if self.db.is_none() {
                return;
            }
        }
        // An error shows in the read that follows.
        let _ = self.with(|db| db.limit_locks(None));
    }

    fn delete_sessions(&mut self, days: u16) {
        match self.with(|db| db.delete_sessions(days)) {
            Ok(0) => {}
            Ok(count) => info!("deleted {count} sessions that are older than {days} days"),
            Err(why) => self.rate_limit.warn("delete", &format!("cannot delete old sessions from the database: {why}"), Instant::now()),
        }
    }

    fn no_rows(&self, why: String) -> NoRows {
        if self.is_silent { NoRows::NoAnswer } else { NoRows::Failed(why) }
    }

    /// Runs statements. After an error that may have broken the connection, the next request connects again.
    fn with<T>(&mut self, statements: impl FnOnce(&mut Connection) -> Result<T, postgres::Error>) -> Result<T, String> {
        let db = self.db.as_mut().ok_or("not connected")?;
        let result = statements(db);
        // To disconnect is a call with a deadline of its own.
        self.is_silent = self.deadline.exceeded().is_some();
        result.map_err(|error| {
            if error.as_db_error().is_none_or(|db| db.code().code().starts_with("57P") || db.code().code().starts_with("08")) {
                self.db = None;
            }
            reason(&error)
        })
    }
}

/// A worker whose requests a test handles.
#[cfg(test)]
pub(crate) struct FakeWorker {
    inbox: Receiver<Request>,
    scope: Arc<Mutex<Arc<Scope>>>,
    backlog: Arc<Backlog>,
}

#[cfg(test)]
impl FakeWorker {
    pub(crate) fn start() -> (Worker, Self) {
        let (requests, inbox) = channel();
        let (backlog, scope) = (Arc::<Backlog>::default(), Arc::<Mutex<Arc<Scope>>>::default());
        let worker = Worker {
            requests,
            scope: Arc::clone(&scope),
            backlog: Arc::clone(&backlog),
            leads: Arc::default(),
            deadline: Deadline::default(),
            thread: thread::spawn(|| ()),
            generation: 0,
        };
        (worker, Self { inbox, scope, backlog })
    }

    /// Begins with the next request, if there is one.
    pub(crate) fn begin(&self) -> bool {
        self.begin_read().is_some()
    }

    /// The same; what is to be read with it.
    pub(crate) fn begin_read(&self) -> Option<Arc<Scope>> {
        self.next().map(|_| Arc::clone(&self.scope.lock().unwrap()))
    }

    /// The same; the request.
    pub(crate) fn next(&self) -> Option<Request> {
        self.inbox.try_recv().ok().inspect(|_| self.backlog.begun())
    }

    pub(crate) fn answer(&self) {
        self.backlog.answered();
    }
}
