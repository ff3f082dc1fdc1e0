//! The `probe` thread: runs reads that a device, a disk or the kernel may block.
//!
//! The main loop must not wait for a sound card in reset or a disk that does not respond, so it submits such reads
//! here. If a read exceeds its time limit, its thread is abandoned and another thread continues with the next read.
//!
//! Each owner has a [`Question`], which it asks repeatedly. An answer has a deadline: after it, the answer is unknown,
//! and the question can be asked again, without the place in which the late read hangs. Invariant: an owner waits for
//! one answer at a time, and a question has a limited number of late reads, so the number of abandoned threads is
//! limited.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::rate_limit::RateLimit;

/// In bytes; enough for a scan of sysfs.
const STACK: usize = 256 << 10;

/// Handle of the thread; clones share it.
#[derive(Clone, Debug)]
pub struct Prober {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queue {
    reads: VecDeque<Read>,
    /// Number of the current thread; threads with lower numbers are abandoned.
    generation: u64,
    /// Deadline of the current read.
    deadline: Option<Instant>,
    rate_limit: RateLimit,
}

/// A question of one owner, such as a scan of all sound cards. A read can mark the place (`P`) that it has reached, so
/// that the next read skips the place in which this one hangs.
#[derive(Debug)]
pub struct Question<P> {
    prober: Prober,
    /// Time limit of a read, after which other reads do not wait for it.
    limit: Duration,
    /// After this time without an answer, the answer is unknown.
    deadline: Duration,
    /// Number of reads that can be late at the same time.
    late_limit: usize,
    /// Number of the current read.
    number: u64,
    /// When the current read was requested, and how far it is.
    current: Option<(Instant, Arc<Mutex<Progress<P>>>)>,
    /// Reads without an answer after the deadline, and the places in which they hang.
    late: Vec<(u64, Option<P>)>,
}

/// How far a read is.
#[derive(Clone, Debug)]
enum Progress<P> {
    /// Another read is before it.
    Queued,
    /// It is running, at a place or between two.
    Running(Option<P>),
    /// It has ended; its answer is on the way.
    Ended,
    /// The deadline passed before it began, so it does not run at all.
    Cancelled,
}

/// The state of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum State<P> {
    /// It can be asked.
    Idle,
    /// An answer is expected.
    Pending,
    /// The deadline has passed, so the answer is unknown. The question can be asked again, without the place in which
    /// the read hangs.
    Late(Option<P>),
    /// The deadline has passed, and too many reads are late to ask again.
    Exhausted(Option<P>),
}

/// What an answer belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<P> {
    /// The current read.
    Current,
    /// A read after whose deadline the question could be asked again, and the place in which it had hung.
    Late(Option<P>),
}

/// Marks the places that a read reaches.
pub struct Marker<P>(Arc<Mutex<Progress<P>>>);

impl<P> Marker<P> {
    /// The read begins with this place.
    pub fn reach(&self, place: P) {
        *lock(&self.0) = Progress::Running(Some(place));
    }
}

impl<P: Clone + PartialEq + Send + 'static> Question<P> {
    /// A question that was not asked yet.
    #[must_use]
    pub fn new(prober: &Prober, limit: Duration, deadline: Duration, late_limit: usize) -> Self {
        Self { prober: prober.clone(), limit, deadline, late_limit, number: 0, current: None, late: Vec::new() }
    }

    /// Submits a read. `send` receives its result, and its number for [`Question::answered`].
    pub fn ask<T>(
        &mut self,
        now: Instant,
        read: impl FnOnce(&Marker<P>) -> T + Send + 'static,
        send: impl FnOnce(u64, T) + Send + 'static,
    ) {
        let (number, marker) = (self.number, Marker(Arc::new(Mutex::new(Progress::Queued))));
        self.current = Some((now, Arc::clone(&marker.0)));
        self.prober.submit(self.limit, move || {
            {
                let mut progress = lock(&marker.0);
                if matches!(*progress, Progress::Cancelled) {
                    return;
                }
                *progress = Progress::Running(None);
            }
            let result = read(&marker);
            *lock(&marker.0) = Progress::Ended;
            send(number, result);
        });
    }

    /// The state at this time. Must be called regularly, because other reads may wait for a late one.
    pub fn check(&mut self, now: Instant) -> State<P> {
        self.prober.check_deadline(now);
        let Some((asked, progress)) = &self.current else { return State::Idle };
        if now.saturating_duration_since(*asked) < self.deadline {
            return State::Pending;
        }
        let place = {
            let mut progress = lock(progress);
            match &*progress {
                Progress::Ended => return State::Pending,
                Progress::Running(place) if self.late.len() >= self.late_limit => return State::Exhausted(place.clone()),
                Progress::Running(place) => {
                    self.late.push((self.number, place.clone()));
                    place.clone()
                }
                Progress::Queued | Progress::Cancelled => {
                    *progress = Progress::Cancelled;
                    None
                }
            }
        };
        self.number += 1;
        self.current = None;
        State::Late(place)
    }

    /// Notes that an answer with this number arrived.
    pub fn answered(&mut self, number: u64) -> Answer<P> {
        if number == self.number {
            self.current = None;
            return Answer::Current;
        }
        let late = self.late.iter().position(|(late, _)| *late == number).map(|index| self.late.remove(index));
        Answer::Late(late.and_then(|(_, place)| place))
    }

    /// Whether the current read has reached this place.
    #[cfg(test)]
    pub(crate) fn is_at(&self, place: &P) -> bool {
        self.current.as_ref().is_some_and(|(_, progress)| matches!(&*lock(progress), Progress::Running(Some(at)) if at == place))
    }

    /// The places in which late reads hang.
    pub fn late_places(&self) -> impl Iterator<Item = &P> {
        self.late.iter().filter_map(|(_, place)| place.as_ref())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Read {
    limit: Duration,
    run: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "read within {:?}", self.limit)
    }
}

impl Prober {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let queue = Queue { reads: VecDeque::new(), generation: 0, deadline: None, rate_limit: RateLimit::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        spawn(&shared, 0)?;
        Ok(Self { shared })
    }

    /// Submits a read with a time limit.
    pub fn submit(&self, limit: Duration, read: impl FnOnce() + Send + 'static) {
        self.check_deadline(Instant::now());
        self.shared.queue().reads.push_back(Read { limit, run: Box::new(read) });
        self.shared.changed.notify_all();
    }

    /// Abandons the current read if it exceeded its time limit. Must be called regularly, because other reads may wait.
    pub fn check_deadline(&self, now: Instant) {
        let mut queue = self.shared.queue();
        let is_late = queue.deadline.is_some_and(|deadline| now >= deadline);
        if is_late {
            match spawn(&self.shared, queue.generation + 1) {
                Ok(()) => {
                    queue.generation += 1;
                    queue.deadline = None;
                    queue.rate_limit.cleared("thread", now);
                }
                // The next call tries again.
                Err(why) => {
                    let line = format!("cannot start a thread for reads of the hardware; retrying: {why}");
                    queue.rate_limit.warn("thread", &line, now);
                }
            }
        }
    }
}

fn spawn(shared: &Arc<Shared>, generation: u64) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("probe".to_owned()).stack_size(STACK).spawn(move || shared.serve(generation)).map(|_| ())
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn serve(&self, generation: u64) {
        while let Some(read) = self.next(generation) {
            read();
        }
    }

    /// Waits for the next read; `None` if this thread was abandoned.
    fn next(&self, generation: u64) -> Option<Box<dyn FnOnce() + Send>> {
        let mut queue = self.queue();
        while queue.generation == generation {
            queue.deadline = None;
            if let Some(read) = queue.reads.pop_front() {
                queue.deadline = Some(Instant::now() + read.limit);
                return Some(read.run);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        // This thread may have consumed a notification for the current thread.
        self.changed.notify_all();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_read_that_hangs_delays_no_other_read_and_its_late_result_is_sent() {
        let prober = Prober::start().unwrap();
        let (results, inbox) = channel();
        let (release, blocked) = channel::<()>();
        let (begun, has_begun) = channel();
        let late = results.clone();
        prober.submit(Duration::ZERO, move || {
            begun.send(()).unwrap();
            blocked.recv().unwrap();
            late.send("late").unwrap();
        });
        has_begun.recv_timeout(SOON).unwrap();
        for name in ["first", "second"] {
            let results = results.clone();
            prober.submit(SOON, move || results.send(name).unwrap());
        }
        assert_eq!(inbox.recv_timeout(SOON), Ok("first"));
        assert_eq!(inbox.recv_timeout(SOON), Ok("second"));
        release.send(()).unwrap();
        assert_eq!(inbox.recv_timeout(SOON), Ok("late"));
        // The abandoned thread runs no further read.
        let last = results.clone();
        prober.submit(SOON, move || last.send("last").unwrap());
        assert_eq!(inbox.recv_timeout(SOON), Ok("last"));
    }

    #[test]
    fn an_answer_after_the_deadline_is_unknown_and_the_question_can_be_asked_again() {
        let prober = Prober::start().unwrap();
        let (start, deadline) = (Instant::now(), Duration::from_secs(2));
        let mut question = Question::<char>::new(&prober, Duration::ZERO, deadline, 2);
        let (outbox, answers) = channel();
        let mut releases = Vec::new();
        let mut ask = |question: &mut Question<char>, place: Option<char>| {
            let (outbox, (release, blocked), (begun, has_begun)) = (outbox.clone(), channel::<()>(), channel());
            let read = move |marker: &Marker<char>| {
                place.into_iter().for_each(|place| marker.reach(place));
                begun.send(()).unwrap();
                let _ = blocked.recv();
            };
            question.ask(start, read, move |number, ()| outbox.send(number).unwrap());
            has_begun.recv_timeout(SOON).unwrap();
            releases.push(release);
        };
        assert_eq!(question.check(start), State::Idle);
        ask(&mut question, Some('a'));
        assert_eq!(question.check(start), State::Pending);
        assert_eq!(question.check(start + deadline), State::Late(Some('a')));
        assert_eq!(question.check(start + deadline * 9), State::Idle);
        // A read that hangs between two places is late, too.
        ask(&mut question, None);
        assert_eq!(question.check(start + deadline), State::Late(None));
        ask(&mut question, Some('b'));
        assert_eq!(question.check(start + deadline), State::Exhausted(Some('b')));
        assert_eq!(question.late_places().collect::<Vec<_>>(), [&'a']);
        // One of them answers, and so there is room for another one.
        drop(releases.remove(0));
        assert_eq!(question.answered(answers.recv_timeout(SOON).unwrap()), Answer::Late(Some('a')));
        assert_eq!(question.check(start + deadline), State::Late(Some('b')));
        releases.clear();
        for _ in 0..2 {
            assert!(matches!(question.answered(answers.recv_timeout(SOON).unwrap()), Answer::Late(_)));
        }
        assert_eq!(question.check(start), State::Idle);
    }

    #[test]
    fn a_read_whose_deadline_passes_in_the_queue_never_runs() {
        let prober = Prober::start().unwrap();
        let (release, blocked) = channel::<()>();
        prober.submit(SOON, move || blocked.recv().unwrap_or_default());
        let mut question = Question::<()>::new(&prober, SOON, Duration::ZERO, 0);
        let (outbox, answers) = channel();
        let start = Instant::now();
        for _ in 0..2 {
            let outbox = outbox.clone();
            question.ask(start, |_| (), move |number, ()| outbox.send(number).unwrap());
            assert_eq!(question.check(start), State::Late(None));
        }
        question.ask(start, |_| (), move |number, ()| outbox.send(number).unwrap());
        drop(release);
        assert_eq!(question.answered(answers.recv_timeout(SOON).unwrap()), Answer::Current);
        assert!(answers.recv_timeout(SOON).is_err());
    }

    #[test]
    fn a_read_within_its_time_limit_is_not_abandoned() {
        let prober = Prober::start().unwrap();
        let (release, blocked) = channel::<()>();
        prober.submit(SOON, move || blocked.recv().unwrap());
        prober.check_deadline(Instant::now());
        assert_eq!(prober.shared.queue().generation, 0);
        release.send(()).unwrap();
    }
}
