//! The processes of running containers: which can be seen, and whether they have ended although Podman reports `running`.
//! Podman learns of an end only from conmon, and reports `running` for ever if conmon was killed.
//!
//! A false detection would interrupt a recording. So a process counts as ended only if it was observed in the control
//! group of this container, is gone, and Podman still reports it one second later. A Controller that cannot see the
//! processes of the host never observes one, and detects nothing.

use crate::sorted_map::SortedMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::decide::container::{Container, State};
use crate::podman::pidfd::{self, Process};

/// Podman itself takes 30-300 ms to detect an end.
const CONFIRMED: Duration = Duration::from_secs(1);
/// A container that runs for so long without a process that can be seen has not just ended.
const UNSEEN: Duration = Duration::from_secs(2);

/// How much is seen of the containers that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The process of each, so that each end is seen.
    All,
    /// Processes have been seen, but not that of each container: another list tells whether it has just ended.
    Unclear,
    /// Not all processes can be seen.
    Blind,
}

/// The processes that were observed, by container id.
#[derive(Debug)]
pub struct Liveness {
    observed: SortedMap<String, Observed>,
    /// How many are observed at most: each holds a descriptor.
    limit: usize,
    /// Whether processes of containers can be seen at all.
    sees: bool,
    /// Since when a container runs whose process cannot be seen.
    unseen_since: Option<Instant>,
}

#[derive(Debug)]
struct Observed {
    process: Arc<Process>,
    /// Since when the process is gone.
    gone_since: Option<Instant>,
    /// Final, also if a failed removal leaves the container in another state.
    lost: bool,
}

impl Liveness {
    /// Nothing is observed yet.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { observed: SortedMap::new(), limit, sees: pidfd::is_in_first_namespace(), unseen_since: None }
    }

    /// Sets [`State::Lost`] for the containers of a new list whose process is gone.
    pub fn update(&mut self, containers: &mut [Container], now: Instant) {
        let keeps = |id: &String, entry: &Observed| {
            containers.iter().any(|container| &container.id == id && (entry.lost || container.state == State::Running))
        };
        self.observed.retain(|id, entry| keeps(id, entry));
        for container in &mut *containers {
            let (running, has_room) = (container.state == State::Running, self.observed.len() < self.limit);
            match self.observed.get_mut(&container.id).filter(|entry| entry.process.pid == container.pid || (entry.lost && !running)) {
                None if running && has_room => {
                    if let Some(process) = Process::of(container.pid, &container.id) {
                        self.sees = true;
                        let entry = Observed { process: Arc::new(process), gone_since: None, lost: false };
                        self.observed.insert(container.id.clone(), entry);
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
        let observed = |container: &Container| self.observed.get(&container.id).is_some_and(|entry| entry.process.pid == container.pid);
        let is_unseen = |container: &Container| container.state == State::Running && !observed(container);
        self.unseen_since = containers.iter().any(is_unseen).then(|| self.unseen_since.unwrap_or(now));
    }

    /// How much is seen of the containers that run, as of the last list.
    #[must_use]
    pub fn sight(&self, now: Instant) -> Sight {
        match self.unseen_since {
            _ if !self.sees => Sight::Blind,
            None => Sight::All,
            Some(since) if now.saturating_duration_since(since) < UNSEEN => Sight::Unclear,
            Some(_) => Sight::Blind,
        }
    }

    /// The processes that run.
    pub fn processes(&self) -> impl Iterator<Item = &Arc<Process>> + Clone {
        self.observed.values().filter(|entry| entry.gone_since.is_none()).map(|entry| &entry.process)
    }

    /// Whether a process is gone, and it is not confirmed yet that Podman does not know.
    #[must_use]
    pub fn awaits_confirmation(&self) -> bool {
        self.observed.values().any(|entry| entry.gone_since.is_some() && !entry.lost)
    }

    /// Whether processes were observed, those of all containers that ran, and none of them is left.
    #[must_use]
    pub fn has_seen_all_end(&self, now: Instant) -> bool {
        self.sight(now) == Sight::All && !self.observed.is_empty() && self.observed.values().all(|entry| !entry.process.is_alive())
    }

    /// Whether a process that was observed is gone, independent of the last list.
    #[must_use]
    pub fn has_ended_process(&self) -> bool {
        self.observed.values().any(|entry| !entry.process.is_alive())
    }
}
