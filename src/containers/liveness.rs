//! Detects Recorders whose process has ended although Podman reports `running`. Podman learns of an end only from
//! conmon, and reports `running` for ever if conmon was killed.
//!
//! A false detection would interrupt a recording. So a process counts as ended only if it was observed in the control
//! group of this container, is gone, and Podman still reports it one second later. A Controller that cannot see the
//! processes of the host never observes one, and detects nothing.

use crate::sorted_map::SortedMap;
use std::time::{Duration, Instant};

use crate::decide::container::{Container, State};
use crate::podman::pidfd::Process;

/// Podman itself takes 30-300 ms to detect an end.
const CONFIRMED: Duration = Duration::from_secs(1);

/// The processes that were observed, by container id.
#[derive(Debug)]
pub struct Liveness {
    observed: SortedMap<String, Observed>,
    /// How many are observed at most: each holds a descriptor.
    limit: usize,
}

#[derive(Debug)]
struct Observed {
    process: Process,
    /// Since when the process is gone.
    gone_since: Option<Instant>,
    /// Final, also if a failed removal leaves the container in another state.
    lost: bool,
}

impl Liveness {
    /// Nothing is observed yet.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { observed: SortedMap::new(), limit }
    }

    /// Sets [`State::Lost`] for the containers of a new list whose process is gone.
    pub fn update(&mut self, containers: &mut [Container], now: Instant) {
        let keeps = |id: &String, entry: &Observed| {
            containers.iter().any(|container| &container.id == id && (entry.lost || container.state == State::Running))
        };
        self.observed.retain(|id, entry| keeps(id, entry));
        for container in containers {
            let (running, has_room) = (container.state == State::Running, self.observed.len() < self.limit);
            match self.observed.get_mut(&container.id).filter(|entry| entry.process.pid == container.pid || (entry.lost && !running)) {
                None if running && has_room => {
                    if let Some(process) = Process::of(container.pid, &container.id) {
                        self.observed.insert(container.id.clone(), Observed { process, gone_since: None, lost: false });
                    }
                }
                None => {}
                Some(entry) if entry.process.is_alive() => entry.gone_since = None,
                Some(entry) => {
                    let since = *entry.gone_since.get_or_insert(now);
                    entry.lost |= now.saturating_duration_since(since) >= CONFIRMED;
                    if entry.lost && !container.state.is_over() {
                        container.state = State::Lost;
                    }
                }
            }
        }
    }

    /// Whether a process that was observed is gone, independent of the last list.
    #[must_use]
    pub fn has_ended_process(&self) -> bool {
        self.observed.values().any(|entry| !entry.process.is_alive())
    }
}
