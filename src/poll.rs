//! The `poll` thread: waits for signals and health clients in one system call.
//!
//! Both arrive through sockets, and each is answered at once or passed on to the main loop. Invariant: only `poll`
//! blocks, so no client delays a signal or another client.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::health::http::Endpoint;
use crate::signals::Signals;

/// Time between two attempts to deliver a signal while the event queue is full.
const RETRY: Duration = Duration::from_millis(50);
/// Pause after a failed poll, such as when the kernel has no memory for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the thread.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(signals: Signals, endpoint: Endpoint) -> io::Result<()> {
    let poller = Poller { signals, endpoint };
    thread::Builder::new().name("poll".to_owned()).stack_size(256 << 10).spawn(move || poller.run()).map(|_| ())
}

struct Poller {
    signals: Signals,
    endpoint: Endpoint,
}

impl Poller {
    fn run(mut self) {
        loop {
            self.endpoint.serve(Instant::now());
            let retry = (!self.signals.deliver()).then(|| Instant::now() + RETRY);
            let until = [retry, self.endpoint.deadline()].into_iter().flatten().min();
            if let Err(error) = self.wait(until) {
                warn!("cannot poll: {error}");
                thread::sleep(PAUSE);
            }
        }
    }

    fn wait(&self, until: Option<Instant>) -> Result<(), Errno> {
        let mut fds: Vec<PollFd<'_>> = self.signals.sockets().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        self.endpoint.descriptors(&mut fds);
        // One more millisecond, so that the deadline has passed after the wait.
        let left = until.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
