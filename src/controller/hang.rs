//! Threads that hang: whether the process must be replaced, and what it passes on.

use std::io;
use std::time::Instant;

use log::{error, warn};

use super::Controller;
use crate::decide::hang::{Hung, Work};
use crate::lock::Held;
use crate::replace;

impl Controller {
    /// The lock, for the process that replaces this one.
    #[must_use]
    pub fn lock(&self) -> &Held {
        &self.lock
    }

    /// Notes that the process could not be replaced; it can run on.
    pub fn not_replaced(&mut self, why: &io::Error) {
        error!("cannot replace the process: {why}; it continues, and retries in some minutes if threads still hang");
        self.replacement.failed(Instant::now());
    }

    /// Whether the process must be replaced now, because threads hang that nothing else can end.
    pub(super) fn must_replace(&mut self) -> bool {
        let hung = Hung {
            database: self.database.hung_threads(),
            scans: self.hardware.hung_scans(),
            podman: usize::from(self.containers.is_hung()),
            actions: self.actions.hung() + self.workers.actions.hung(),
            publisher: usize::from(self.heartbeat.is_hung()),
            nudge: usize::from(self.nudges.is_hung()),
        };
        let work = match self.shutdown {
            Some(_) => Work::Shutdown,
            None if self.actions.only_hang() && self.workers.actions.only_hang() => Work::None,
            None => Work::Actions,
        };
        let now = Instant::now();
        if !self.replacement.is_due(&hung, work, now) {
            return false;
        }
        if let Some(thread) = replace::immovable() {
            let line = format!("threads hang ({hung}), but the process cannot be replaced: thread {thread} waits in the kernel; retrying");
            self.rate_limit.warn("replace", &line, now);
            return false;
        }
        warn!("threads hang ({hung}): the process replaces itself; Recorders continue to run and are adopted");
        self.heartbeat.replacing();
        log::logger().flush();
        // What arrived until now, such as a termination signal.
        while let Ok(event) = self.inbox.try_recv() {
            self.handle(event);
        }
        self.shutdown.is_none()
    }
}
