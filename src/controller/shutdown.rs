//! The shutdown after a termination signal: its deadline, and when it is complete.

use std::time::{Duration, Instant};

use log::{error, info};

use super::Controller;
use crate::config::Shutdown;

/// Part of the shutdown time that is reserved for the end of the process, including the last writes.
const EXIT_MARGIN: Duration = Duration::from_millis(600);

impl Controller {
    /// Begins the shutdown.
    pub(super) fn begin_shutdown(&mut self) {
        if self.config.shutdown == Shutdown::Keep || !self.leadership.may_act(Instant::now()) {
            self.config.shutdown = Shutdown::Keep;
            info!("stopping; Recorders continue to run");
            self.shutdown = Some(Instant::now());
        } else {
            info!("stopping all Recorders and workers");
            let deadline = Instant::now() + self.config.shutdown_timeout.saturating_sub(EXIT_MARGIN);
            self.shutdown = Some(deadline);

            self.recorders.stopping();
            self.actions.stop_starting(deadline);
            self.workers.stop(deadline);
            // Only a new list shows whether any container remains.
            self.containers.forget();
            self.config.interval = self.config.interval.min(Duration::from_secs(1));
            self.next_tick = Instant::now();
        }
    }

    /// Begins a shutdown that leaves the Recorders running, unless another one has begun.
    pub(super) fn leave(&mut self) {
        if self.shutdown.is_none() {
            self.config.shutdown = Shutdown::Keep;
            self.begin_shutdown();
        }
    }

    /// Whether the shutdown is complete.
    pub(super) fn is_done(&self) -> bool {
        let Some(deadline) = self.shutdown else { return false };
        if self.config.shutdown == Shutdown::Keep {
            return true;
        }
        if Instant::now() >= deadline {
            match &self.containers.state {
                Ok(()) => error!("not all Recorders stopped in time; Podman continues to stop them"),
                Err(why) => error!("Recorders may still run, as containers are unknown: {why}"),
            }
            return true;
        }
        if !self.actions.is_empty() || !self.workers.actions.is_empty() || self.containers.is_under_way() {
            return false;
        }
        // When the host shuts down, systemd ends the containers itself, and starts no Podman that could be asked.
        if self.containers.have_ended(Instant::now()) {
            info!("all Recorders and workers have ended; Podman does not answer");
            return true;
        }
        // While the containers are unknown, some may run: a list is requested at each tick until the deadline.
        self.containers.list.as_ref().is_some_and(|list| {
            let is_ahead = [&self.actions, &self.workers.actions].iter().any(|actions| actions.are_ahead_of(list.sequence));
            list.containers.is_empty() && list.others.is_empty() && !is_ahead
        })
    }
}
