//! The last known desired state, and when the database is read again.
//!
//! One request is under way at a time. After a nudge, whose change the request may have missed, another one follows at
//! once, so at most one waits. While the database is unavailable, the last known state is used, or the one that an
//! earlier run saved. A call that a frozen server does not answer is ended at its deadline, and the next request connects
//! again. If the thread hangs nevertheless, it is abandoned and another one connects; the number of abandoned threads is
//! limited.
//!
//! No thread that answers waits for a file. What an earlier run saved is used only if it was read before the database
//! answered. New rows wait until the files were read and their content is seeded, but for two seconds at most.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use crate::cache::{self, STATE};
use crate::clock;
use crate::config::Config;
use crate::config_folder::ConfigFolder;
use crate::database::last_settings::LastSettings;
use crate::database::refusals::Refusals;
use crate::database::seed_files::SeedFiles;
use crate::database::sessions::SessionQueue;
use crate::database::worker::{AfterRead, FILES, Request, SharedState, Worker};
use crate::decide::container::Container;
use crate::decide::presence::{Presence, Presences};
use crate::decide::registry::{Registry, Row, RowChange};
use crate::decide::scope::{Absent, Others, Scope};
use crate::decide::spec::DEVICE_ID;
use crate::decide::worker::Worker as DeclaredWorker;
use crate::event::{Event, NoRows};
use crate::rate_limit::RateLimit;
use crate::saver::Saver;
use crate::text::NOT_YET;

/// How often `last_seen` of connected microphones is updated. An update writes about 10 kB to the disk: it is usually
/// the first one since the last checkpoint, and then PostgreSQL writes whole pages to its log.
const TOUCH: Duration = Duration::from_secs(3600);
/// How often old sessions are deleted.
const DELETE: Duration = Duration::from_secs(24 * 3600);
/// A database that has not answered within this time counts as unavailable.
const ANSWER: Duration = Duration::from_secs(3);
/// Most answers come within a millisecond; what waits for one this long is done by somebody else.
const PROMPT: Duration = Duration::from_millis(500);
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
    /// It is, and nothing else has happened since the last decisions: nothing is to be written.
    AtRest,
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
    shared: SharedState,
    rate_limit: RateLimit,
    /// When a request was last sent.
    last_request: Instant,
    /// How long the last answer took.
    pub latency: Option<Duration>,
    last_touch: Instant,
    /// When old sessions were last deleted.
    last_delete: Option<Instant>,
    /// Whether this Controller leads: only then anything is written.
    leads: bool,
    /// Whether the differences of this tick were written.
    recorded: bool,
    /// Whether there were none.
    has_nothing_to_write: bool,
    /// The last rows; the thread that reads them shares them.
    rows: Arc<Vec<Row>>,
    /// Which rows are read from now on.
    scope: Arc<Scope>,
    /// Whether a microphone needs a name, which must be different from all others.
    wants_names: bool,
    /// Which rows were read last.
    read: Arc<Scope>,
    /// Writes the rows for a start without the database.
    saver: Saver,
    /// The state that an earlier run saved, until it is used or the database answers.
    saved: Option<Vec<Row>>,
    /// What was not read yet.
    unread: Vec<Files>,
    /// Until when new rows wait for it.
    files_until: Instant,
    /// Whether it was reported that this takes longer.
    is_reported: bool,
    /// The declared workers; `None` while they are unknown.
    pub workers: Option<Vec<DeclaredWorker>>,
    /// The parsed rows; `None` until the first state is known.
    pub registry: Option<Registry>,
    /// Whether the last read succeeded, or its error.
    pub state: Result<(), String>,
    /// Whether the last read failed.
    is_unavailable: bool,
}

/// What is read from disks at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    SavedState,
    Seeds,
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SavedState => "the desired state saved by an earlier run",
            Self::Seeds => "the folder with settings and profiles",
        })
    }
}

impl DatabaseState {
    /// Starts the thread, and begins to read the files. The thread calls `after_read` after each read.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(config: &Config, after_read: AfterRead, events: &SyncSender<Event>) -> io::Result<Self> {
        let folder = ConfigFolder::new(config.config_dir.clone());
        let mut unread = vec![Files::SavedState];
        let settings = LastSettings::default();
        let saver = Saver::start_json(STATE, &config.workspace_local, {
            let (events, settings) = (events.clone(), settings.clone());
            move |rows: Option<Vec<Row>>| {
                settings.loaded(rows.as_deref().unwrap_or_default());
                // Fails only while the program ends.
                let _ = events.send(Event::Saved(rows));
            }
        })?;
        let reads_disk = !folder.is_built_in();
        let workers = if reads_disk { None } else { folder.read_workers().ok().map(|(workers, _)| workers) };
        let files = SeedFiles::new(folder, {
            let events = events.clone();
            move |workers| drop(events.send(Event::SeedFiles(workers)))
        });
        if reads_disk {
            unread.push(Files::Seeds);
            files.request();
        }
        let shared = SharedState { refusals: Refusals::default(), settings, files, sessions: SessionQueue::default(), after_read };
        Ok(Self {
            config: config.clone(),
            events: events.clone(),
            worker: Worker::start(config, 0, events.clone(), &shared)?,
            abandoned: Vec::new(),
            shared,
            rate_limit: RateLimit::default(),
            last_request: Instant::now(),
            latency: None,
            last_touch: Instant::now(),
            last_delete: None,
            leads: false,
            recorded: false,
            has_nothing_to_write: false,
            rows: Arc::default(),
            scope: Arc::default(),
            wants_names: false,
            read: Arc::default(),
            saver,
            saved: None,
            workers,
            unread,
            files_until: Instant::now() + FILES,
            is_reported: false,
            registry: None,
            state: Err(NOT_YET.to_owned()),
            is_unavailable: false,
        })
    }

    /// Sends a request at a tick, or handles a missing answer. While nothing has changed, an answer with the same rows
    /// does not wake the main loop.
    pub fn ask(&mut self, presences: &Presences, containers: Option<&[Container]>, hardware: Hardware, now: Instant) {
        self.recorded = false;
        match self.worker.waiting_since() {
            // This reads, too.
            None if self.write_sessions(now) => {}
            None if self.must_delete(now) => {
                self.last_delete = Some(now);
                self.request(Request::DeleteSessions(self.config.history_days));
            }
            None if self.leads && now.duration_since(self.last_touch) >= TOUCH && self.state.is_ok() => {
                self.last_touch = now;
                let online = presences.iter().filter(|(_, presence)| matches!(presence, Presence::Online(_)));
                self.request(Request::Touch(online.map(|(id, _)| id.clone()).collect()));
            }
            None => {
                let is_behind = || self.leads && self.has_read_enough() && !self.differences(presences, containers).is_empty();
                let is_unchanged = match hardware {
                    Hardware::AtRest => true,
                    Hardware::Unchanged => !is_behind(),
                    Hardware::ChangedOrUnknown => false,
                };
                let quiet = is_unchanged && self.state.is_ok() && self.read == self.scope;
                self.request(if quiet { Request::Check } else { Request::Read });
            }
            Some(since) if now.saturating_duration_since(since) >= ANSWER => self.set_unavailable(&NoRows::NoAnswer),
            Some(_) => {}
        }
    }

    /// After a request: whether the thread will soon have read, as PostgreSQL does not keep it waiting.
    #[must_use]
    pub fn answers_promptly(&self, now: Instant) -> bool {
        self.state.is_ok() && self.worker.waiting_since().is_none_or(|since| now.saturating_duration_since(since) < PROMPT)
    }

    /// Whether old sessions must be deleted now.
    fn must_delete(&self, now: Instant) -> bool {
        let is_due = self.last_delete.is_none_or(|last| now.duration_since(last) >= DELETE);
        is_due && self.config.history_days > 0 && self.leads && self.state.is_ok()
    }

    /// When [`Self::poll`] must be called at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let files = (!self.unread.is_empty() && !self.is_reported).then_some(self.files_until);
        [files, self.answer_due()].into_iter().flatten().min()
    }

    /// Whether the files were not read yet, although they may be soon.
    fn waits_for_files(&self) -> bool {
        !self.unread.is_empty() && Instant::now() < self.files_until
    }

    fn answer_due(&self) -> Option<Instant> {
        if self.worker.waiting_since().is_none() {
            return self.state.is_err().then(|| self.last_request + RETRY);
        }
        // The thread sets the deadline a moment after the request was sent.
        Some(self.worker.deadline().until().unwrap_or_else(|| Instant::now() + CHECK))
    }

    /// Ends a call that is overdue, replaces a thread that hangs, and asks again while the database is unavailable.
    pub fn poll(&mut self, now: Instant) {
        if now >= self.files_until && !std::mem::replace(&mut self.is_reported, true) {
            for what in &self.unread {
                warn!("{what} could not be read within {} s, as a disk does not respond; continuing without", FILES.as_secs());
            }
        }
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
            self.worker.ask(Request::Read, &self.scope);
        }
    }

    fn request(&mut self, request: Request) {
        self.worker.ask(request, &self.scope);
        self.last_request = Instant::now();
    }

    /// Abandons the thread, which hangs although its call was ended, and starts another one.
    fn replace_worker(&mut self) {
        self.abandoned.retain(|thread| !thread.is_finished());
        if self.abandoned.len() >= ABANDONED {
            return;
        }
        match Worker::start(&self.config, self.worker.generation + 1, self.events.clone(), &self.shared) {
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
            if self.state.is_ok() {
                self.save();
            }
            self.read_now();
        }
    }

    /// Another Controller leads, although this one may have begun to lead without an answer about the lock: nothing is
    /// written from now on.
    pub fn follow(&mut self) {
        self.leads = false;
        self.worker.follow();
    }

    /// Reads, and seeds before that, without waiting for the next tick.
    fn read_now(&mut self) {
        if self.worker.waiting_since().is_some() {
            self.ask_again();
        } else {
            self.request(Request::Read);
        }
    }

    /// Handles an answer; that of an abandoned thread is ignored.
    pub fn answered(&mut self, generation: u64, scope: Arc<Scope>, rows: Result<Arc<Vec<Row>>, NoRows>) {
        if generation != self.worker.generation {
            return;
        }
        match rows {
            Err(why) => self.set_unavailable(&why),
            Ok(rows) => {
                let is_first = self.registry.is_none();
                self.latency = Some(self.last_request.elapsed());
                self.saved = None;
                self.read = scope;
                (self.state, self.is_unavailable) = (Ok(()), false);
                self.rate_limit.inform("database", "PostgreSQL is available again", Instant::now());
                if is_first || rows != self.rows {
                    self.apply(rows);
                    self.report_faults();
                    if self.leads {
                        self.save();
                    }
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
        (self.state, self.is_unavailable) = (Err(state), true);
        self.use_saved();
    }

    /// Handles the end of reading what an earlier run saved. It is older than any answer of the database.
    pub fn loaded(&mut self, rows: Option<Vec<Row>>) {
        if self.registry.is_none() {
            self.saved = rows;
            if self.is_unavailable {
                self.use_saved();
            }
        }
        self.files_read(Files::SavedState);
    }

    /// Handles the end of reading the files that contain what is seeded.
    pub fn seed_files_read(&mut self, workers: Option<Vec<DeclaredWorker>>) {
        self.workers = workers.or_else(|| self.workers.take());
        self.files_read(Files::Seeds);
    }

    fn files_read(&mut self, files: Files) {
        self.unread.retain(|unread| *unread != files);
        if self.leads && self.unread.is_empty() {
            self.read_now();
        }
    }

    fn use_saved(&mut self) {
        if let Some(rows) = self.saved.take() {
            info!("using the desired state saved by an earlier run until PostgreSQL responds");
            self.apply(Arc::new(rows));
        }
    }

    /// Saves the rows for a start without the database; the settings also if they are absent now.
    fn save(&self) {
        let settings = self.shared.settings.clone();
        let rows = self.rows.iter().filter(|row| row.kind != "absent").cloned().collect();
        self.saver.save(move || cache::state(settings.complete(rows)));
    }

    /// Waits until the last state is saved, at most until `deadline`.
    pub fn finish(&self, deadline: Instant) {
        self.saver.finish(deadline);
    }

    fn apply(&mut self, rows: Arc<Vec<Row>>) {
        self.registry = Some(Registry::read(&rows, self.registry.as_ref().map(|known| &known.system)));
        self.rows = rows;
    }

    fn report_faults(&mut self) {
        let Some(registry) = &self.registry else { return };
        for fault in registry.faults.iter() {
            if let Some(line) = self.rate_limit.fault(&format!("row {fault}"), fault, Instant::now()) {
                warn!("invalid row in the database: {line}");
            }
        }
        self.rate_limit.retain("row ", |fault| registry.faults.contains(fault));
        match self.config.fallback_profile.as_deref().and_then(|slug| registry.fallback_fault(slug)) {
            Some(fault) => self.rate_limit.warn("fallback", &fault, Instant::now()),
            None => drop(self.rate_limit.cleared("fallback", Instant::now())),
        }
    }

    /// Notes that a scan has ended or the containers are known, so that the differences are written within this tick.
    pub fn observed(&mut self) {
        self.recorded = false;
    }

    /// Notes which rows are needed, and requests those that are missing.
    pub fn need(&mut self, presences: &Presences, containers: &[Container], others: Others) {
        if self.registry.is_none() {
            return;
        }
        let needed = Scope::needed(presences, containers, if self.wants_names { Others::Identity } else { others });
        let is_new = *self.scope != needed;
        if is_new {
            self.scope = Arc::new(needed);
            self.worker.set_scope(&self.scope);
        }
        // One that is under way may have begun before, but one that waits has not.
        if !self.has_read_enough() && self.state.is_ok() && (is_new || self.worker.waiting_since().is_none()) {
            self.read_now();
        }
    }

    /// What is known of microphones that were not seen for long.
    #[must_use]
    pub fn absent(&self) -> Absent {
        match self.state {
            Err(_) => Absent::Unavailable,
            Ok(()) if self.read.has_identities() => Absent::Known,
            Ok(()) => Absent::Expected,
        }
    }

    /// Whether the row of each of these containers was read, or does not exist.
    #[must_use]
    pub fn covers(&self, containers: &[Container]) -> bool {
        let mut devices = containers.iter().filter_map(|container| container.labels.get(DEVICE_ID));
        self.registry.as_ref().is_some_and(|registry| devices.all(|device| self.read.covers(registry, device)))
    }

    /// Whether the database responds, and the last [`Self::record`] found nothing to write.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.has_nothing_to_write && self.state.is_ok() && self.read == self.scope && (self.unread.is_empty() || self.is_reported)
    }

    /// Writes the differences between hardware and rows: once a tick, after the rows were read.
    pub fn record(&mut self, presences: &Presences, containers: Option<&[Container]>) {
        self.has_nothing_to_write = false;
        if !self.leads || self.state.is_err() || self.recorded || self.waits_for_files() || self.worker.waiting_since().is_some() {
            return;
        }
        // The answer with the other rows may have come since they were found to be missing.
        if !self.has_read_enough() {
            return;
        }
        let changes = self.differences(presences, containers);
        self.wants_names = changes.iter().any(|change| change.workspace.is_some());
        if self.wants_names && !self.read.has_identities() {
            self.scope = Arc::new(self.scope.with_identities());
            self.worker.set_scope(&self.scope);
            self.read_now();
            return;
        }
        self.recorded = true;
        self.has_nothing_to_write = changes.is_empty() && self.shared.refusals.is_empty();
        if !changes.is_empty() {
            self.request(Request::Write(changes));
        }
    }

    /// Sessions that are not written yet.
    #[must_use]
    pub fn sessions(&self) -> &SessionQueue {
        &self.shared.sessions
    }

    /// Writes sessions that wait, unless a request is under way. Returns whether there are any.
    pub fn write_sessions(&mut self, now: Instant) -> bool {
        if !self.leads || self.state.is_err() || self.worker.waiting_since().is_some() || self.shared.sessions.is_empty() {
            return false;
        }
        let rows = self.shared.sessions.due(|topic| self.shared.refusals.is_early(topic, now));
        let is_any = !rows.is_empty();
        if is_any {
            self.request(Request::Sessions(rows));
        }
        is_any
    }

    /// Whether all rows that are needed were read.
    fn has_read_enough(&self) -> bool {
        self.registry.as_ref().is_some_and(|registry| self.read.is_enough_for(&self.scope, registry))
    }

    /// The differences to write now, once enough was read.
    fn differences(&self, presences: &Presences, containers: Option<&[Container]>) -> Vec<RowChange> {
        let Some(registry) = &self.registry else { return Vec::new() };
        let now = Instant::now();
        let mut changes = registry.changes(presences, &clock::iso(SystemTime::now()), self.config.fallback_profile.as_deref(), containers);
        changes.retain(|change| !self.shared.refusals.is_early(&change.device, now));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::refusals::Refusal;
    use crate::database::worker::FakeWorker;
    use crate::decide::device::Microphone;
    use crate::decide::offer::Offer;
    use crate::decide::sessions::SessionRow;
    use crate::sorted_map::SortedMap;
    use std::sync::mpsc::sync_channel;
    use std::thread;

    fn state() -> (DatabaseState, FakeWorker) {
        let mut config = Config::read(|_| None).unwrap();
        // Nothing can be created there.
        config.workspace_local = "/proc/nonexistent".into();
        let (events, _inbox) = sync_channel(1);
        let mut state = DatabaseState::start(&config, Arc::new(|| ()), &events).unwrap();
        let (worker, thread) = FakeWorker::start();
        state.worker = worker;
        (state, thread)
    }

    #[test]
    fn a_nudge_during_a_read_leads_to_another_read_at_once() {
        let (mut state, thread) = state();
        let presences = Presences::new(Duration::ZERO);
        let tick = |state: &mut DatabaseState| state.ask(&presences, None, Hardware::Unchanged, Instant::now());
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
        state.worker.ask(Request::Read, &state.scope);
        let first = state.worker.waiting_since().unwrap();
        assert!(thread.begin());
        state.ask_again();
        assert_eq!(state.worker.waiting_since(), Some(first));
        thread::sleep(Duration::from_millis(2));
        thread.answer();
        assert!(state.worker.waiting_since().unwrap() > first);
    }

    #[test]
    fn a_tick_writes_the_sessions_that_wait_instead_of_a_read() {
        let (mut state, thread) = state();
        let now = Instant::now();
        state.lead();
        assert!(thread.begin());
        thread.answer();
        state.answered(0, Arc::default(), Ok(rows("new").into()));
        let row = SessionRow {
            id: 1,
            device: "a".to_owned(),
            container: "c".to_owned(),
            started: 0,
            ended: 1,
            frames: 1,
            rate: 1,
            cause: None,
            clock: "{}".to_owned(),
        };
        state.sessions().read(Some(Vec::new()), now);
        assert!(state.sessions().take_earlier().is_some());
        state.sessions().put(vec![row.clone()]);
        assert!(state.write_sessions(now) && !state.write_sessions(now), "one request at a time");
        assert!(thread.begin());
        thread.answer();
        // It was refused; after its back-off, the next tick tries again.
        state.shared.refusals.failed("session 1", Refusal::Refused, now);
        assert!(!state.write_sessions(now) && state.write_sessions(now + Duration::from_secs(1)));
        assert!(thread.begin());
        thread.answer();
        state.sessions().written(&row);
        assert!(!state.write_sessions(now + Duration::from_secs(1)));
    }

    fn rows(key: &str) -> Vec<Row> {
        vec![Row { kind: "device".to_owned(), key: key.to_owned(), body: None, fault: None }]
    }

    #[test]
    fn what_was_not_read_is_requested_at_once_and_nothing_is_written_before() {
        let (mut state, thread) = state();
        let mut presences = Presences::new(Duration::ZERO);
        state.lead();
        assert!(thread.begin());
        thread.answer();
        state.answered(0, Arc::default(), Ok(rows("known").into()));
        state.unread.clear();
        state.need(&presences, &[], Others::Nothing);
        assert!(!thread.begin(), "nothing more is needed");
        let microphone = Microphone { card: 1, pcm: 0, name: String::new(), usb: None, offer: Offer::default() };
        presences.observe(&SortedMap::from([("new".to_owned(), microphone)]), &[], Instant::now());
        state.need(&presences, &[], Others::Identity);
        let scope = thread.begin_read().unwrap();
        assert!(scope.has_identities());
        // An answer to an earlier request.
        thread.answer();
        state.answered(0, Arc::default(), Ok(rows("known").into()));
        state.record(&presences, None);
        assert!(!state.recorded && !thread.begin(), "its row may exist");
        state.answered(0, scope, Ok(rows("known").into()));
        state.record(&presences, None);
        assert!(thread.begin(), "it is written");
        // When the others are not needed any more, that is noticed at the next tick.
        thread.answer();
        state.need(&presences, &[], Others::Nothing);
        assert!(!thread.begin() && state.read != state.scope);
    }

    #[test]
    fn who_led_without_a_lock_writes_nothing_once_another_controller_leads() {
        let (mut state, thread) = state();
        let mut presences = Presences::new(Duration::ZERO);
        state.lead();
        assert!(thread.begin());
        thread.answer();
        state.unread.clear();
        state.answered(0, Arc::default(), Ok(rows("known").into()));
        let microphone = Microphone { card: 1, pcm: 0, name: String::new(), usb: None, offer: Offer::default() };
        presences.observe(&SortedMap::from([("new".to_owned(), microphone)]), &[], Instant::now());
        state.need(&presences, &[], Others::Identity);
        state.answered(0, thread.begin_read().unwrap(), Ok(rows("known").into()));
        thread.answer();
        state.follow();
        state.record(&presences, None);
        assert!(!state.recorded && !thread.begin(), "there is a row to write");
        // Sessions to delete and `last_seen` are due, too.
        for now in [Instant::now(), Instant::now() + TOUCH] {
            state.ask(&presences, None, Hardware::ChangedOrUnknown, now);
            assert!(matches!(thread.next(), Some(Request::Read)));
            thread.answer();
        }
        state.lead();
        assert!(thread.begin());
        thread.answer();
        state.record(&presences, None);
        assert!(matches!(thread.next(), Some(Request::Write(_))));
    }

    #[test]
    fn a_request_that_waits_reads_what_is_needed_when_it_begins() {
        let (mut state, thread) = state();
        state.answered(0, Arc::default(), Ok(rows("known").into()));
        state.ask(&Presences::new(Duration::ZERO), None, Hardware::Unchanged, Instant::now());
        state.ask_again();
        assert!(!thread.begin_read().unwrap().has_identities());
        // One is under way, and one waits.
        state.need(&Presences::new(Duration::ZERO), &[], Others::Identity);
        thread.answer();
        assert!(thread.begin_read().unwrap().has_identities() && !thread.begin());
    }

    #[test]
    fn what_an_earlier_run_saved_is_used_only_until_the_database_answers() {
        // Read before the database fails, and after that.
        for is_early in [true, false] {
            let (mut state, _thread) = state();
            if is_early {
                state.loaded(Some(rows("saved")));
                assert!(state.registry.is_none(), "the database may still answer");
            }
            state.answered(0, Arc::default(), Err(NoRows::NoAnswer));
            if !is_early {
                assert!(state.registry.is_none());
                state.loaded(Some(rows("saved")));
            }
            assert_eq!(*state.rows, rows("saved"));
            state.answered(0, Arc::default(), Ok(rows("new").into()));
            assert_eq!(*state.rows, rows("new"));
        }
        // Read late, whether the database is available or not.
        let (mut state, _thread) = state();
        state.answered(0, Arc::default(), Ok(rows("new").into()));
        state.answered(0, Arc::default(), Err(NoRows::NoAnswer));
        state.loaded(Some(rows("saved")));
        assert_eq!(*state.rows, rows("new"));
    }

    #[test]
    fn new_rows_wait_for_the_files_for_a_limited_time() {
        let (mut state, thread) = state();
        let presences = Presences::new(Duration::ZERO);
        state.lead();
        assert!(thread.begin());
        thread.answer();
        state.answered(0, Arc::default(), Ok(rows("new").into()));
        state.record(&presences, None);
        assert!(!state.recorded && state.waits_for_files());
        assert!(state.due().is_some_and(|due| due <= state.files_until));
        // They are read: the content is seeded at once.
        state.loaded(None);
        assert!(!state.waits_for_files() && thread.begin());
        thread.answer();
        state.record(&presences, None);
        assert!(state.recorded);
        // The disk does not respond.
        let (mut state, _thread) = self::state();
        state.files_until = Instant::now();
        state.poll(Instant::now());
        assert!(!state.waits_for_files() && state.is_reported);
    }
}
