//! The `probe` thread: reads files that a device, a disk or the kernel may hold up.
//!
//! The main loop must not wait for a sound card in reset or a disk that does not answer. It hands such reads over here;
//! each one sends its result where its owner expects it. When a read takes longer than it was given, its thread is left
//! behind, another one goes on with the next read, and the late result is still sent. An owner has at most one read of a
//! kind under way, so the threads that are left behind are bounded by what can hang.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A scan walks sysfs.
const STACK: usize = 256 << 10;

/// The way to the thread; clones share it.
#[derive(Clone, Debug)]
pub struct Prober {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Debug)]
struct Queue {
    reads: VecDeque<Read>,
    /// Which thread may take reads; those before it were left behind.
    generation: u64,
    /// Until when the present read may take.
    until: Option<Instant>,
}

struct Read {
    patience: Duration,
    run: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "read within {:?}", self.patience)
    }
}

impl Prober {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> io::Result<Self> {
        let queue = Queue { reads: VecDeque::new(), generation: 0, until: None };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), filled: Condvar::new() });
        spawn(&shared, 0)?;
        Ok(Self { shared })
    }

    /// Hands over a read, which should take no longer than `patience`.
    pub fn ask(&self, patience: Duration, read: impl FnOnce() + Send + 'static) {
        self.tend(Instant::now());
        self.shared.queue().reads.push_back(Read { patience, run: Box::new(read) });
        self.shared.filled.notify_all();
    }

    /// Leaves a read behind that takes too long. To be called now and then, as reads may wait behind it.
    pub fn tend(&self, now: Instant) {
        let mut queue = self.shared.queue();
        let is_late = queue.until.is_some_and(|until| now >= until);
        // Without a thread for it, the others wait on and this is tried again.
        if is_late && spawn(&self.shared, queue.generation + 1).is_ok() {
            queue.generation += 1;
            queue.until = None;
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

    /// Waits for the next read; `None` for a thread that was left behind.
    fn next(&self, generation: u64) -> Option<Box<dyn FnOnce() + Send>> {
        let mut queue = self.queue();
        while queue.generation == generation {
            queue.until = None;
            if let Some(read) = queue.reads.pop_front() {
                queue.until = Some(Instant::now() + read.patience);
                return Some(read.run);
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        // A wake-up meant for the present thread may have come here.
        self.filled.notify_all();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_read_that_hangs_holds_up_no_other_and_its_result_comes_late() {
        let prober = Prober::start().unwrap();
        let (results, inbox) = channel();
        let (release, held) = channel::<()>();
        let (begun, has_begun) = channel();
        let late = results.clone();
        prober.ask(Duration::ZERO, move || {
            begun.send(()).unwrap();
            held.recv().unwrap();
            late.send("late").unwrap();
        });
        has_begun.recv_timeout(SOON).unwrap();
        for name in ["first", "second"] {
            let results = results.clone();
            prober.ask(SOON, move || results.send(name).unwrap());
        }
        assert_eq!(inbox.recv_timeout(SOON), Ok("first"));
        assert_eq!(inbox.recv_timeout(SOON), Ok("second"));
        release.send(()).unwrap();
        assert_eq!(inbox.recv_timeout(SOON), Ok("late"));
        // The thread that came back late takes no further read from the other one.
        let last = results.clone();
        prober.ask(SOON, move || last.send("last").unwrap());
        assert_eq!(inbox.recv_timeout(SOON), Ok("last"));
    }

    #[test]
    fn a_read_within_its_time_is_waited_for() {
        let prober = Prober::start().unwrap();
        let (release, held) = channel::<()>();
        prober.ask(SOON, move || held.recv().unwrap());
        prober.tend(Instant::now());
        assert_eq!(prober.shared.queue().generation, 0);
        release.send(()).unwrap();
    }
}
