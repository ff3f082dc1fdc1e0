//! The `probe` thread: runs reads that a device, a disk or the kernel may block.
//!
//! The main loop must not wait for a sound card in reset or a disk that does not respond, so it submits such reads
//! here. Each read sends its result to its owner. If a read exceeds its time limit, its thread is abandoned and
//! another thread continues with the next read; the late result is still sent. Invariant: an owner has at most one
//! read in progress, so the number of abandoned threads is limited.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
        let queue = Queue { reads: VecDeque::new(), generation: 0, deadline: None };
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
        // If no thread can be started, the next call tries again.
        if is_late && spawn(&self.shared, queue.generation + 1).is_ok() {
            queue.generation += 1;
            queue.deadline = None;
        }
    }
}

fn spawn(shared: &Arc<Shared>, generation: u64) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("probe".to_owned()).stack_size(STACK).spawn(move || shared.serve(generation)).map(|_| ())
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn a_read_within_its_time_limit_is_not_abandoned() {
        let prober = Prober::start().unwrap();
        let (release, blocked) = channel::<()>();
        prober.submit(SOON, move || blocked.recv().unwrap());
        prober.check_deadline(Instant::now());
        assert_eq!(prober.shared.queue().generation, 0);
        release.send(()).unwrap();
    }
}
