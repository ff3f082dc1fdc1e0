//! What a follower's thread shares with the main loop and the actions: its instructions.
//!
//! A control whose follower has no thread holds what the next one goes on with.
//!
//! Invariant: [`Control::interrupt`] ends the wait for a stream that is open, and prevents that one is opened with
//! older instructions, as the follower stores its [`Closer`] under the same lock.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::logs::sink::FrameSink;
use crate::podman::stream::Closer;

/// Shared by one follower's thread and those who instruct it.
#[derive(Debug)]
pub(super) struct Control {
    /// The container's name.
    pub(super) name: String,
    instructions: Mutex<Instructions>,
    changed: Condvar,
}

/// What a follower must do.
#[derive(Debug, Default)]
pub(super) struct Instructions {
    /// What a thread that is started goes on with; `None` while one has it.
    pub(super) parked: Option<FrameSink>,
    /// There is a thread.
    pub(super) has_thread: bool,
    /// End the thread and keep what it knows: nobody listens.
    pub(super) park: bool,
    /// Read what is left, then wait: the container is about to be removed.
    pub(super) drain: bool,
    /// That was done; the container may be removed.
    pub(super) drained: bool,
    /// The container runs, as of the last list.
    pub(super) running: bool,
    /// The container was absent from the last list.
    pub(super) missing: bool,
    /// End the thread.
    pub(super) end: bool,
    /// The wall clock was set back to this second.
    pub(super) set_back: Option<u64>,
    /// Closes the stream that is open.
    pub(super) closer: Option<Closer>,
}

impl Instructions {
    /// Whether a thread could be started.
    pub(super) fn lacks_thread(&self) -> bool {
        !self.has_thread && !self.end
    }

    /// Whether they must be followed at once, without waiting for a stream.
    pub(super) fn is_urgent(&self) -> bool {
        self.end || self.park || self.drain || self.set_back.is_some()
    }
}

impl Control {
    /// For a container whose log is not followed yet.
    pub(super) fn new(sink: FrameSink) -> Self {
        let name = sink.origin.container.clone();
        let instructions = Instructions { parked: Some(sink), ..Instructions::default() };
        Self { name, instructions: Mutex::new(instructions), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Instructions> {
        self.instructions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the instructions, closes the stream and wakes those who wait for a change.
    pub(super) fn interrupt(&self, change: impl FnOnce(&mut Instructions)) {
        let mut instructions = self.lock();
        change(&mut instructions);
        if let Some(closer) = instructions.closer.take() {
            closer.close();
        }
        self.changed.notify_all();
    }

    /// Wakes those who wait for a change.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change.
    pub(super) fn wait<'a>(&self, instructions: MutexGuard<'a, Instructions>) -> MutexGuard<'a, Instructions> {
        self.changed.wait(instructions).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, for a limited time.
    pub(super) fn wait_for<'a>(&self, instructions: MutexGuard<'a, Instructions>, limit: Duration) -> MutexGuard<'a, Instructions> {
        self.changed.wait_timeout(instructions, limit).unwrap_or_else(PoisonError::into_inner).0
    }
}
