//! Redis: heartbeats and log lines out, by one thread with one connection.
//!
//! It reads nothing but the replies; nudges have a connection of their own. The callers build the JSON. For a caller
//! that wants to know, it asks once a second whether somebody listens to the log lines ([`crate::redis::audience`]), and
//! while somebody looks, which levels the Recorders state ([`crate::redis::levels`]). On a quiet station another thread,
//! which is awake anyway, sends that question and reads the answer ([`Publisher::ask`], [`Publisher::read_answer`]);
//! whatever is unusual about it is left to this thread.
//!
//! A server may close a connection that is idle. That is detected before something is sent, and a new connection is
//! opened without a message. A server may also refuse one operation and accept others: a full one refuses SET only, and
//! rights are given by command and channel. So each operation has a fault of its own, which lasts until that operation
//! succeeds.
//!
//! Invariants: queueing never fails, and waits only while Redis is available and no longer than the caller allows. What
//! cannot be sent is dropped and counted. A log line is sent at most once: after a broken connection it is unknown
//! whether the line arrived, so it is not sent again. A heartbeat may be sent again, as it replaces the previous one.
//! Memory is bounded by [`QUEUE_LINES`] and [`QUEUE_BYTES`]. With nothing to send or to ask, the thread sleeps without a
//! timer.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};
use redis::{ConnectionInfo, Pipeline, RedisError, Value};

use crate::event::Event;
use crate::redis::audience::{self, Asker, Audience, Inquiry, Moment};
use crate::redis::connection::{Connection, REPLY, address, describe};
use crate::redis::levels::{self, Levels};
use crate::text::shown;

/// The queue holds at most this many log lines …
pub const QUEUE_LINES: usize = 1024;
/// … and this many bytes of them.
pub const QUEUE_BYTES: usize = 1 << 20;
/// Log lines that are sent in one batch.
const BATCH: usize = 128;
/// Memory for a reply: a status, a number, an error, or the heartbeat of a Recorder.
const REPLY_LIMIT: usize = 16 << 10;
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// To connect and send takes less, with all deadlines together: a thread that takes longer hangs.
const HUNG: Duration = Duration::from_secs(300);

const STATUS: &str = "silvasonic:status";
const LOGS: &str = "silvasonic:logs";

/// The queue to the thread; clones share it.
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<PublisherShared>,
}

#[derive(Debug)]
struct PublisherShared {
    queue: Mutex<Queue>,
    /// Something was queued.
    filled: Condvar,
    /// There is room for lines, or Redis is unavailable.
    room: Condvar,
    /// Redis has answered who listens, or is unavailable.
    answered: Condvar,
    /// The thread has ended.
    finished: Condvar,
}

#[derive(Debug)]
struct Queue {
    heartbeat: Option<StatusMessage>,
    lines: VecDeque<String>,
    bytes: usize,
    /// Tickets of the callers that wait for room, in the order of arrival; `next_ticket` is the next free one.
    waiting: VecDeque<u64>,
    next_ticket: u64,
    /// Lines that were dropped and not reported yet.
    dropped: u64,
    /// Lines that were dropped and reported.
    reported: u64,
    /// Lines that Redis has accepted.
    forwarded: u64,
    /// How long the last answer took.
    latency: Option<Duration>,
    inquiry: Inquiry,
    levels: levels::Inquiry,
    /// Who asks.
    asker: Asker,
    /// The connection, while the thread waits for work.
    resting: Option<Resting>,
    /// The question that was asked in passing needs the thread.
    is_overdue: bool,
    /// Callers that wait for the answer to a question.
    asking: u32,
    /// Who is told that the audience changed; without one, Redis is not asked.
    interested: Option<SyncSender<Event>>,
    /// Why Redis is unavailable.
    fault: Option<String>,
    /// Why Redis refused each operation the last time.
    refused: [Option<String>; OPERATIONS.len()],
    /// Whether lines are dropped at once, as there is no connection.
    disconnected: bool,
    finishing: bool,
    finished: bool,
    /// Since when the thread connects or sends; `None` while it waits.
    busy_since: Option<Instant>,
}

/// A connection that the thread does not use now.
#[derive(Debug)]
struct Resting {
    connection: Connection,
    /// When the question was sent in passing whose answer was not read yet.
    asked: Option<Moment>,
}

#[derive(Debug)]
struct StatusMessage {
    /// Whether it is kept under the key of this instance, or published only.
    is_kept: bool,
    json: String,
    ttl: Duration,
    made: Instant,
}

/// What was sent since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Log lines that Redis has accepted.
    pub forwarded: u64,
    /// Log lines that were dropped.
    pub dropped: u64,
    /// How long the last answer took.
    pub latency: Option<Duration>,
}

/// What the thread does next.
enum Work {
    Send(Batch),
    /// Asks who listens to the log lines.
    Ask,
    /// Reads the answer to the question that was asked in passing.
    ReadAnswer,
    /// Asks which levels the Recorders of these microphones state, and reports the answer.
    AskLevels(Vec<String>, SyncSender<Event>),
}

/// What is sent at once.
struct Batch {
    heartbeat: Option<StatusMessage>,
    lines: Vec<String>,
}

/// What Redis may refuse, each for reasons of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Keep,
    PublishStatus,
    PublishLines,
}

const OPERATIONS: [Operation; 3] = [Operation::Keep, Operation::PublishStatus, Operation::PublishLines];

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => write!(f, "SET"),
            Self::PublishStatus => write!(f, "PUBLISH to {STATUS}"),
            Self::PublishLines => write!(f, "PUBLISH to {LOGS}"),
        }
    }
}

impl Operation {
    /// What its refusal means.
    fn effect(self) -> &'static str {
        match self {
            Self::Keep => "heartbeats are published, but not kept; retrying with each heartbeat",
            Self::PublishStatus => "heartbeats are not published; retrying with each heartbeat",
            Self::PublishLines => "log lines are dropped; retrying with each line",
        }
    }
}

/// How Redis answered a batch.
#[derive(Default)]
struct Outcome {
    /// For each operation in the batch: done, or why it was refused.
    results: [Option<Result<(), String>>; OPERATIONS.len()],
    refused_lines: u64,
    /// How many clients received the last line.
    receivers: Option<i64>,
}

impl Outcome {
    fn add(&mut self, operation: Operation, reply: Result<(), String>) {
        self.refused_lines += u64::from(operation == Operation::PublishLines && reply.is_err());
        let result = &mut self.results[operation as usize];
        if !matches!(result, Some(Err(_))) {
            *result = Some(reply);
        }
    }
}

impl Publisher {
    /// Starts the thread `publisher`. It connects at once, and again whenever that fails or the connection ends.
    ///
    /// `instance` names the heartbeat's key: `silvasonic:status:<instance>`.
    ///
    /// # Errors
    /// The URL is invalid (the text does not show its password), or the thread cannot be started.
    pub fn start(url: &str, instance: &str) -> io::Result<Self> {
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a Redis URL", redacted(url)));
        let address = address(url).map_err(invalid)?;
        let queue = Queue {
            heartbeat: None,
            lines: VecDeque::new(),
            bytes: 0,
            waiting: VecDeque::new(),
            next_ticket: 0,
            dropped: 0,
            reported: 0,
            forwarded: 0,
            latency: None,
            inquiry: Inquiry::new(),
            levels: levels::Inquiry::default(),
            asker: Asker::Publisher,
            resting: None,
            is_overdue: false,
            asking: 0,
            interested: None,
            fault: Some("not connected yet".to_owned()),
            refused: Default::default(),
            disconnected: false,
            finishing: false,
            finished: false,
            busy_since: Some(Instant::now()),
        };
        let shared = Arc::new(PublisherShared {
            queue: Mutex::new(queue),
            filled: Condvar::new(),
            room: Condvar::new(),
            answered: Condvar::new(),
            finished: Condvar::new(),
        });
        let thread = PublisherThread {
            shared: Arc::clone(&shared),
            address,
            place: redacted(url),
            key: format!("{STATUS}:{instance}"),
            tried: Moment::now(),
            fault_since: None,
            refused_since: [None; OPERATIONS.len()],
            drops_logged: None,
        };
        thread::Builder::new().name("publisher".to_owned()).stack_size(256 << 10).spawn(move || thread.run())?;
        Ok(Self { shared })
    }

    /// Queues a heartbeat that is published, but not kept.
    pub fn announce(&self, json: String, ttl: Duration) {
        self.shared.queue().heartbeat = Some(StatusMessage { is_kept: false, json, ttl, made: Instant::now() });
        self.shared.filled.notify_one();
    }

    /// Queues a heartbeat, which Redis deletes after `ttl`. It replaces one that was not sent yet.
    pub fn heartbeat(&self, json: String, ttl: Duration) {
        self.shared.queue().heartbeat = Some(StatusMessage { is_kept: true, json, ttl, made: Instant::now() });
        self.shared.filled.notify_one();
    }

    /// Queues a line for `silvasonic:logs`; it is dropped and counted if the queue is full or Redis unavailable.
    pub fn log_line(&self, json: String) {
        self.log_lines(vec![json], Duration::ZERO);
    }

    /// Queues lines in order, and waits for room. When no line found room for `patience`, the rest is dropped and
    /// counted; while Redis is unavailable, all of them are, at once.
    ///
    /// Callers are served in the order of arrival, so that a flood from one thread delays a line of another one only by
    /// what is queued already.
    pub fn log_lines(&self, lines: Vec<String>, patience: Duration) {
        let mut lines = lines.into_iter().peekable();
        let mut queue = self.shared.queue();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push_back(ticket);
        let mut until = None;
        while !queue.disconnected && lines.peek().is_some() {
            if queue.waiting.front() == Some(&ticket) {
                while let Some(line) = lines.next_if(|line| queue.has_room_for(line)) {
                    queue.bytes += line.len();
                    queue.lines.push_back(line);
                    until = None;
                }
                if lines.peek().is_none() {
                    break;
                }
                self.shared.filled.notify_one();
            }
            let until = *until.get_or_insert_with(|| Instant::now() + patience);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = self.shared.room.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.waiting.retain(|waiting| *waiting != ticket);
        queue.dropped += lines.count() as u64;
        let next = !queue.waiting.is_empty();
        drop(queue);
        self.shared.filled.notify_one();
        if next {
            self.shared.room.notify_all();
        }
    }

    /// From now on asks whether somebody listens to the log lines, and reports each change with [`Event::Audience`]; or
    /// does not ask any more.
    pub fn watch_audience(&self, interested: Option<SyncSender<Event>>) {
        self.shared.queue().interested = interested;
        self.shared.filled.notify_one();
    }

    /// From now on, this one asks whether somebody listens. The main loop does so now, if it is due; while the thread is
    /// awake, it asks itself. Does not wait; [`Publisher::read_answer`] must follow.
    pub fn ask(&self, asker: Asker) {
        let mut queue = self.shared.queue();
        let is_asked = queue.is_asked();
        match (std::mem::replace(&mut queue.asker, asker), asker) {
            (Asker::MainLoop, Asker::Publisher) => {
                queue.is_overdue |= is_asked;
                self.shared.filled.notify_one();
            }
            (_, Asker::MainLoop) if queue.interested.is_some() && !is_asked && queue.inquiry.is_almost_due() => {
                let asked = Some(Moment::now());
                let sent = queue.resting.take().filter(|resting| resting.connection.send_now(audience::QUESTION));
                queue.resting = sent.map(|resting| Resting { asked, ..resting });
                if queue.is_asked() {
                    queue.inquiry.asked();
                } else {
                    queue.is_overdue = true;
                    self.shared.filled.notify_one();
                }
            }
            _ => {}
        }
    }

    /// Reads the answer to a question that was asked in passing, if it is there and as usual. Does not wait.
    pub fn read_answer(&self) {
        let mut queue = self.shared.queue();
        let Some(Resting { connection, asked: Some(moment) }) = &mut queue.resting else { return };
        let moment = *moment;
        let answer = connection.has_lines(audience::LINES).unwrap_or(false).then(|| read_answer(|| connection.reply_now()));
        // What was read cannot be read again.
        let is_usable = answer.is_none() || matches!(answer, Some(Ok(Ok(_)))) && connection.has_read_all();
        queue.resting = queue.resting.take().filter(|_| is_usable);
        if let Some(Ok(Ok(audience))) = answer {
            queue.resting.iter_mut().for_each(|resting| resting.asked = None);
            drop(queue);
            self.shared.learn(|inquiry| inquiry.answer(Some(audience), moment));
        } else {
            queue.is_overdue = true;
            self.shared.filled.notify_one();
        }
    }

    /// Who listens, `None` until that is known; and the last moment at which nobody did.
    #[must_use]
    pub fn audience(&self) -> (Option<Audience>, Option<Moment>) {
        let queue = self.shared.queue();
        (queue.inquiry.audience, queue.inquiry.nobody_at)
    }

    /// The levels that the Recorders of these microphones state. `None` while Redis is asked: the answer is reported with
    /// [`Event::Levels`], and after a moment there is none ([`Publisher::levels_due`]). Does not wait.
    #[must_use]
    pub fn levels(&self, ids: &[&str], events: &SyncSender<Event>) -> Option<Levels> {
        let mut queue = self.shared.queue();
        if queue.fault.is_some() {
            return Some(Levels::new());
        }
        let levels = queue.levels.get(ids, events, Instant::now());
        if queue.levels.is_wanted() {
            self.shared.filled.notify_one();
        }
        levels
    }

    /// When [`Publisher::levels`] answers in any case, if somebody waits for that.
    #[must_use]
    pub fn levels_due(&self) -> Option<Instant> {
        self.shared.queue().levels.due()
    }

    /// Asks now whether somebody listens. Without an answer within `limit`, nobody does.
    #[must_use]
    pub fn is_heard(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut queue = self.shared.queue();
        let before = queue.inquiry.sent;
        if !queue.inquiry.is_refused {
            queue.inquiry.due = Instant::now();
            queue.asking += 1;
            self.shared.filled.notify_one();
            while !queue.disconnected && queue.inquiry.answered <= before {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    queue.asking -= 1;
                    return false;
                }
                queue = self.shared.answered.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            queue.asking -= 1;
        }
        queue.inquiry.audience == Some(Audience::Somebody)
    }

    /// Whether Redis is available and accepts each kind of data.
    ///
    /// # Errors
    /// The first fault, in one sentence.
    pub fn state(&self) -> Result<(), String> {
        self.shared.queue().state()
    }

    /// What was sent since the start.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let queue = self.shared.queue();
        Traffic { forwarded: queue.forwarded, dropped: queue.reported + queue.dropped, latency: queue.latency }
    }

    /// Whether the thread hangs.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.shared.queue().busy_since.is_some_and(|since| since.elapsed() >= HUNG)
    }

    /// Lets the thread send what is queued and a last heartbeat, then end. Returns whether that succeeded before
    /// `deadline`; if not, the thread ends with the process.
    #[must_use]
    pub fn finish(&self, json: String, ttl: Duration, deadline: Instant) -> bool {
        let mut queue = self.shared.queue();
        queue.heartbeat = Some(StatusMessage { is_kept: true, json, ttl, made: Instant::now() });
        queue.finishing = true;
        self.shared.filled.notify_one();
        while !queue.finished {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.finished.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.state().is_ok()
    }
}

impl PublisherShared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do, and meanwhile leaves the connection to those who come by; `None` when all is sent and
    /// nothing more will be queued.
    fn next(&self, connection: Option<Connection>) -> Option<(Work, Option<Resting>)> {
        let mut queue = self.queue();
        queue.resting = connection.map(|connection| Resting { connection, asked: None });
        loop {
            let batch = queue.take();
            if !queue.waiting.is_empty() {
                self.room.notify_all();
            }
            let work = if !batch.is_empty() {
                Some(Work::Send(batch))
            } else if queue.finishing {
                queue.busy_since = None;
                return None;
            } else if let Some((ids, events)) = queue.levels.take() {
                Some(Work::AskLevels(ids, events))
            } else {
                queue.take_question()
            };
            if let Some(work) = work {
                queue.busy_since = Some(Instant::now());
                return Some((work, queue.resting.take()));
            }
            queue.busy_since = None;
            queue = match queue.next_question() {
                Some(left) => self.filled.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Changes what is known about the audience, and reports that.
    fn learn(&self, change: impl FnOnce(&mut Inquiry)) {
        let mut queue = self.queue();
        let before = queue.inquiry.audience;
        change(&mut queue.inquiry);
        if queue.inquiry.audience != before {
            // If the queue is full, the main loop is awake and looks at the next tick.
            queue.interested.iter().for_each(|events| drop(events.try_send(Event::Audience)));
        }
        // A call to the kernel, even if nobody waits.
        if queue.asking > 0 {
            self.answered.notify_all();
        }
    }

    /// Sleeps until the next try to connect; `false` when the thread must end instead.
    fn pause(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        let mut queue = self.queue();
        queue.busy_since = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if queue.finishing || left.is_zero() {
                queue.busy_since = Some(Instant::now());
                return !queue.finishing;
            }
            queue = self.filled.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&self) {
        self.queue().finished = true;
        self.finished.notify_all();
    }
}

impl Queue {
    fn state(&self) -> Result<(), String> {
        let refused = OPERATIONS.into_iter().zip(&self.refused);
        let mut refused = refused.filter_map(|(operation, why)| why.as_ref().map(|why| format!("refused {operation}: {why}")));
        self.fault.clone().or_else(|| refused.next()).map_or(Ok(()), Err)
    }

    fn has_room_for(&self, line: &str) -> bool {
        self.lines.len() < QUEUE_LINES && self.bytes + line.len() <= QUEUE_BYTES
    }

    /// Whether a question was asked in passing whose answer was not read yet.
    fn is_asked(&self) -> bool {
        self.resting.as_ref().is_some_and(|resting| resting.asked.is_some())
    }

    /// Until the thread must ask who listens; `None` if others do, or nobody wants to know.
    fn next_question(&self) -> Option<Duration> {
        let asks = self.interested.is_some() && (self.asker == Asker::Publisher || self.asking > 0);
        asks.then(|| self.inquiry.due.saturating_duration_since(Instant::now()))
    }

    /// What the thread must do now to know who listens.
    fn take_question(&mut self) -> Option<Work> {
        let is_overdue = std::mem::take(&mut self.is_overdue);
        if is_overdue && self.is_asked() {
            return Some(Work::ReadAnswer);
        }
        let is_due = is_overdue && self.interested.is_some() || self.next_question().is_some_and(|left| left.is_zero());
        is_due.then(|| {
            self.inquiry.asked();
            Work::Ask
        })
    }

    fn take(&mut self) -> Batch {
        let count = self.lines.len().min(BATCH);
        let lines: Vec<String> = self.lines.drain(..count).collect();
        self.bytes -= lines.iter().map(String::len).sum::<usize>();
        Batch { heartbeat: self.heartbeat.take().filter(|heartbeat| heartbeat.made.elapsed() < heartbeat.ttl), lines }
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.heartbeat.is_none() && self.lines.is_empty()
    }
}

/// What belongs to the thread alone.
struct PublisherThread {
    shared: Arc<PublisherShared>,
    address: ConnectionInfo,
    /// The URL without its secrets.
    place: String,
    key: String,
    /// When Redis was last used, or tried.
    tried: Moment,
    /// Since when Redis is unavailable; it was logged then.
    fault_since: Option<Instant>,
    /// Since when each operation is refused; it was logged then.
    refused_since: [Option<Instant>; OPERATIONS.len()],
    /// When lines dropped for lack of room were last logged.
    drops_logged: Option<Instant>,
}

impl PublisherThread {
    fn run(mut self) {
        let mut delay = RETRY;
        loop {
            let why = match self.connect() {
                Ok(connection) => match self.serve(connection, &mut delay) {
                    Some(why) => why,
                    None => break,
                },
                Err(error) => describe(&error),
            };
            self.disconnected(&why);
            if !self.shared.pause(delay) {
                break;
            }
            delay = (delay * 2).min(RETRY_MAX);
        }
        self.shared.end();
    }

    fn connect(&mut self) -> Result<Connection, RedisError> {
        self.tried = Moment::now();
        Connection::open(&self.address, REPLY_LIMIT)
    }

    /// Sends until Redis is unavailable; returns why. `None` when all is sent and the thread must end.
    fn serve(&mut self, connection: Connection, delay: &mut Duration) -> Option<String> {
        let mut connection = Some(connection);
        // The first batch may be empty: it is then a ping, so that "connected" always rests on an answer of Redis.
        let mut work = Work::Send(self.shared.queue().take());
        self.shared.room.notify_all();
        loop {
            let usable = match connection.take().filter(Connection::is_idle) {
                Some(connection) => Ok(connection),
                None if matches!(work, Work::ReadAnswer) => Err(String::new()),
                None => self.connect().map_err(|error| describe(&error)),
            };
            connection = match (work, usable) {
                // Its answer was read before.
                (Work::ReadAnswer, usable) => usable.ok(),
                (Work::Send(batch), Err(why)) => return Some(self.give_back(batch, why)),
                (Work::Send(batch), Ok(mut connection)) => {
                    if let Err(why) = self.send(&mut connection, &batch) {
                        return Some(self.give_back(batch, why));
                    }
                    *delay = RETRY;
                    Some(connection)
                }
                (Work::Ask, Ok(connection)) => self.ask(connection),
                (Work::AskLevels(ids, events), usable) => {
                    let answer =
                        usable.ok().and_then(|mut connection| ask_levels(&mut connection, &ids).ok().map(|levels| (connection, levels)));
                    let (connection, levels) = answer.map_or((None, Levels::new()), |(connection, levels)| (Some(connection), levels));
                    self.shared.queue().levels.answer(levels, Instant::now());
                    // If the queue is full, the main loop is awake, and looks again.
                    let _ = events.try_send(Event::Levels);
                    connection
                }
                // A server that restarts is back before the next heartbeat, which finds out otherwise.
                (Work::Ask, Err(_)) => {
                    self.shared.learn(|inquiry| inquiry.unreachable(self.tried));
                    None
                }
            };
            let (next, resting) = self.shared.next(connection.take())?;
            work = next;
            connection = resting.and_then(|resting| match resting.asked {
                Some(moment) => self.read_answer(resting.connection, moment),
                None => Some(resting.connection),
            });
        }
    }

    fn send(&mut self, connection: &mut Connection, batch: &Batch) -> Result<(), String> {
        self.tried = Moment::now();
        let begin = Instant::now();
        let outcome = send(connection, &self.key, batch)?;
        let mut queue = self.shared.queue();
        queue.latency = Some(begin.elapsed());
        queue.dropped += outcome.refused_lines;
        queue.forwarded += (batch.lines.len() as u64).saturating_sub(outcome.refused_lines);
        drop(queue);
        self.available();
        OPERATIONS.into_iter().zip(outcome.results).for_each(|(operation, result)| self.answered(operation, result));
        if let Some(clients) = outcome.receivers {
            self.shared.learn(|inquiry| inquiry.received(clients, self.tried));
        }
        Ok(())
    }

    /// Asks who listens to the log lines. Returns the connection if it can be used again.
    fn ask(&mut self, mut connection: Connection) -> Option<Connection> {
        self.tried = Moment::now();
        match ask(&mut connection) {
            Ok(answer) => {
                self.learn(answer, self.tried);
                Some(connection)
            }
            Err(Unanswered::Unavailable) => {
                self.shared.learn(|inquiry| inquiry.unreachable(self.tried));
                None
            }
            Err(Unanswered::Broken(why)) => {
                let mut is_refusal = false;
                self.shared.learn(|inquiry| is_refusal = inquiry.broke(self.tried));
                if is_refusal {
                    self.not_told(&why);
                }
                None
            }
        }
    }

    /// Reads the answer to the question that was sent in passing. Returns the connection if it can be used again; without an
    /// answer, the question is asked again on another one.
    fn read_answer(&mut self, mut connection: Connection, asked: Moment) -> Option<Connection> {
        self.tried = asked;
        let deadline = Instant::now() + REPLY;
        match read_answer(|| connection.reply(Some(deadline))) {
            Ok(answer) => {
                self.learn(answer, asked);
                Some(connection)
            }
            Err(_) => {
                self.shared.queue().is_overdue = true;
                None
            }
        }
    }

    /// Notes an answer, or why there is none.
    fn learn(&self, answer: Result<Audience, String>, asked: Moment) {
        if let Some(why) = answer.as_ref().err().filter(|_| !self.shared.queue().inquiry.is_refused) {
            self.not_told(why);
        }
        self.shared.learn(|inquiry| inquiry.answer(answer.ok(), asked));
    }

    /// Reports that Redis does not say who listens.
    fn not_told(&self, why: &str) {
        info!("Redis at {} does not tell who listens to {LOGS}, so logs are always followed: {why}", self.place);
    }

    /// Keeps the heartbeat of a batch that was not sent, and counts its lines as dropped.
    fn give_back(&self, batch: Batch, why: String) -> String {
        let mut queue = self.shared.queue();
        queue.dropped += batch.lines.len() as u64;
        if queue.heartbeat.is_none() {
            queue.heartbeat = batch.heartbeat;
        }
        why
    }

    /// Drops what is queued, as Redis cannot be reached.
    fn disconnected(&mut self, why: &str) {
        let mut queue = self.shared.queue();
        queue.disconnected = true;
        queue.fault = Some(why.to_owned());
        queue.dropped += queue.lines.len() as u64;
        queue.lines.clear();
        queue.bytes = 0;
        drop(queue);
        self.shared.learn(|inquiry| inquiry.unreachable(self.tried));
        self.shared.room.notify_all();
        if self.fault_since.is_none() {
            self.fault_since = Some(Instant::now());
            warn!("Redis at {} unavailable: {why}; heartbeats and log lines are dropped; retrying every 1 to 30 s", self.place);
        }
    }

    /// Redis has done an operation or refused it; `None`: it was not asked to.
    fn answered(&mut self, operation: Operation, result: Option<Result<(), String>>) {
        let Some(result) = result else { return };
        let since = &mut self.refused_since[operation as usize];
        match (&result, *since) {
            (Err(why), None) => {
                *since = Some(Instant::now());
                warn!("Redis at {} refused {operation}: {why}; {}", self.place, operation.effect());
            }
            (Ok(()), Some(begin)) => {
                *since = None;
                info!("Redis at {} accepts {operation} again after {} s", self.place, begin.elapsed().as_secs());
            }
            _ => {}
        }
        self.shared.queue().refused[operation as usize] = result.err();
    }

    fn available(&mut self) {
        let mut queue = self.shared.queue();
        queue.fault = None;
        queue.disconnected = false;
        let now = Instant::now();
        let fault_since = self.fault_since.take();
        let due = self.drops_logged.is_none_or(|last| now.saturating_duration_since(last) > Duration::from_secs(60));
        let is_due = fault_since.is_some() || due && queue.refused[Operation::PublishLines as usize].is_none();
        let dropped = if is_due { std::mem::take(&mut queue.dropped) } else { 0 };
        queue.reported += dropped;
        drop(queue);
        if let Some(since) = fault_since {
            info!(
                "Redis at {} available again after {} s; {dropped} log lines were dropped",
                self.place,
                now.saturating_duration_since(since).as_secs()
            );
        } else if dropped > 0 {
            self.drops_logged = Some(now);
            warn!("Redis at {} is too slow: {dropped} log lines were dropped", self.place);
        }
    }
}

/// Sends a batch and reads all replies.
///
/// # Errors
/// Why Redis is unavailable.
fn send(connection: &mut Connection, key: &str, batch: &Batch) -> Result<Outcome, String> {
    let mut pipe = Pipeline::new();
    let mut operations = Vec::with_capacity(batch.lines.len() + 2);
    if batch.is_empty() {
        pipe.cmd("PING");
    }
    if let Some(heartbeat) = &batch.heartbeat {
        if heartbeat.is_kept {
            pipe.cmd("SET").arg(key).arg(&heartbeat.json).arg("EX").arg(heartbeat.ttl.as_secs().max(1));
            operations.push(Operation::Keep);
        }
        pipe.cmd("PUBLISH").arg(STATUS).arg(&heartbeat.json);
        operations.push(Operation::PublishStatus);
    }
    for line in &batch.lines {
        pipe.cmd("PUBLISH").arg(LOGS).arg(line);
        operations.push(Operation::PublishLines);
    }
    let lost = |error: io::Error| describe(&error.into());
    let deadline = Instant::now() + REPLY;
    connection.send(&pipe.get_packed_pipeline(), deadline).map_err(lost)?;
    let mut outcome = Outcome::default();
    for index in 0..pipe.len() {
        let reply = match connection.reply(Some(deadline)).map_err(lost)? {
            Value::ServerError(error) => {
                let is_general = is_general(error.code());
                let why = describe(&error.into());
                if is_general {
                    return Err(why);
                }
                Err(why)
            }
            Value::Int(clients) => {
                if operations.get(index) == Some(&Operation::PublishLines) {
                    outcome.receivers = Some(clients);
                }
                Ok(())
            }
            _ => Ok(()),
        };
        // The answer to PING has no operation: any answer shows that Redis is available.
        if let Some(operation) = operations.get(index) {
            outcome.add(*operation, reply);
        }
    }
    Ok(outcome)
}

/// Why there is no answer to the question who listens.
enum Unanswered {
    /// The connection ended; the next one may be better.
    Broken(String),
    /// Redis is unavailable.
    Unavailable,
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Unavailable,
            _ => Self::Broken(describe(&error.into())),
        }
    }
}

/// Asks who listens to the log lines; the answer, or why it is refused.
fn ask(connection: &mut Connection) -> Result<Result<Audience, String>, Unanswered> {
    let deadline = Instant::now() + REPLY;
    connection.send(audience::QUESTION, deadline).map_err(Unanswered::from)?;
    read_answer(|| connection.reply(Some(deadline)))
}

/// The answer to that question.
fn read_answer(mut next: impl FnMut() -> io::Result<Value>) -> Result<Result<Audience, String>, Unanswered> {
    let mut answer = Ok(Audience::Nobody);
    for _ in 0..audience::REPLIES {
        let part = match next().map_err(Unanswered::from)? {
            Value::ServerError(error) => {
                if is_general(error.code()) {
                    return Err(Unanswered::Unavailable);
                }
                Err(describe(&error.into()))
            }
            reply => audience::parse(&reply).ok_or_else(|| "an answer of another form than expected".to_owned()),
        };
        answer = match (answer, part) {
            (Err(why), _) | (_, Err(why)) => Err(why),
            (Ok(Audience::Nobody), part) => part,
            (answer, _) => answer,
        };
    }
    Ok(answer)
}

/// Asks which levels the Recorders state. Those that Redis refuses to show, or does not have, are left out.
fn ask_levels(connection: &mut Connection, ids: &[String]) -> io::Result<Levels> {
    let deadline = Instant::now() + REPLY;
    connection.send(&levels::question(STATUS, ids).get_packed_pipeline(), deadline)?;
    let mut found = Levels::new();
    for id in ids {
        if let Some(level) = levels::parse(&connection.reply(Some(deadline))?, id, SystemTime::now()) {
            found.insert(id.clone(), level);
        }
    }
    Ok(found)
}

/// Whether an error concerns the connection and not one operation: a login is missing, or the server loads its data.
fn is_general(code: &str) -> bool {
    matches!(code, "NOAUTH" | "LOADING")
}

/// A Redis URL without its secrets: user, password and query (`?pass=`) are hidden.
///
/// A password may contain characters that should have been escaped. Where the URL can then be read in two ways, all of
/// it is hidden.
#[must_use]
pub fn redacted(url: &str) -> String {
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let (scheme, rest) = url.split_at(url.find("://").filter(|at| is_scheme(&url[..*at])).map_or(0, |at| at + 3));
    let hidden = match (rest.rfind('@'), rest.find('?')) {
        (None, None) => rest.to_owned(),
        (Some(login), None) => format!("***{}", &rest[login..]),
        (None, Some(query)) => format!("{}?***", &rest[..query]),
        (Some(login), Some(query)) if login < query => format!("***{}?***", &rest[login..query]),
        (Some(_), Some(_)) => "***".to_owned(),
    };
    shown(&format!("{scheme}{hidden}")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_url_contains_no_secret() {
        let table = [
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("redis://:secret@redis:6379/0", "redis://***@redis:6379/0"),
            ("redis://user:se/cr@et@redis", "redis://***@redis"),
            ("redis+unix:///run/redis.sock?db=1&pass=secret", "redis+unix:///run/redis.sock?***"),
            ("user:secret@redis\n", "***@redis"),
            ("redis://:se?cret@redis", "redis://***"),
            ("redis://u:secret@redis?db=1", "redis://***@redis?***"),
            ("redis+unix:///x?pass=sec@ret", "redis+unix://***"),
            ("redis+unix:/x?pass=secret&user=a://b", "redis+unix:/x?***"),
            ("", ""),
        ];
        for (url, expected) in table {
            assert_eq!(redacted(url), expected);
        }
        let error = Publisher::start("nonsense://u:secret@x", "controller").unwrap_err().to_string();
        assert!(error.contains("nonsense") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn the_queue_without_redis_is_bounded_and_drops_are_counted() {
        let bus = Publisher::start("redis://127.0.0.1:1/0", "controller").unwrap();
        for _ in 0..2_000 {
            bus.log_line("x".repeat(2_000));
            bus.heartbeat("{}".to_owned(), Duration::from_secs(30));
        }
        let queue = bus.shared.queue();
        assert!(queue.bytes <= QUEUE_BYTES && queue.lines.len() <= QUEUE_LINES);
        assert!(queue.dropped > 0);
        drop(queue);
        assert!(!bus.finish("{}".to_owned(), Duration::from_secs(30), Instant::now() + Duration::from_secs(5)));
        assert!(bus.state().is_err());
    }
}
