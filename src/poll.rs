//! The `poll` thread: waits for everything that needs no work but an answer, in one system call.
//!
//! Signals and health clients come through sockets, and what they ask for is done at once or handed on. So one thread
//! serves them all, and none of them can hold it up.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::health::http::Server;
use crate::signals::Signals;

/// Time between two attempts to deliver a signal that the main loop has no room for.
const AGAIN: Duration = Duration::from_millis(50);
/// Pause when the kernel has no memory for a poll.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Starts the thread. Without a server it serves signals only.
///
/// # Errors
/// When the system gives no thread.
pub fn start(signals: Signals, server: Option<Server>) -> io::Result<()> {
    let poller = Poller { signals, server };
    thread::Builder::new().name("poll".to_owned()).stack_size(256 << 10).spawn(move || poller.run()).map(|_| ())
}

struct Poller {
    signals: Signals,
    server: Option<Server>,
}

impl Poller {
    fn run(mut self) {
        loop {
            let again = (!self.signals.deliver()).then(|| Instant::now() + AGAIN);
            let until = [again, self.server.as_ref().and_then(Server::deadline)].into_iter().flatten().min();
            if let Err(error) = self.wait(until) {
                warn!("poll: {error}");
                thread::sleep(SHORTAGE);
            }
            if let Some(server) = &mut self.server {
                server.serve();
            }
        }
    }

    fn wait(&self, until: Option<Instant>) -> Result<(), Errno> {
        let mut fds: Vec<PollFd<'_>> = self.signals.sockets().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        if let Some(server) = &self.server {
            server.descriptors(&mut fds);
        }
        // A millisecond more, so that what is due then is due.
        let left = until.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
