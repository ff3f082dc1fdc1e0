//! What a plan must know of what happened before, and no list of containers shows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::decide::action::{Ending, PROVEN};
use crate::decide::backoff::Backoffs;
use crate::decide::container::{Container, State};

/// Facts about devices and containers, gathered since the start.
#[derive(Debug)]
pub struct Past {
    /// When a failed start or stop may be tried again, by device.
    pub failures: Backoffs,
    /// When a container that differs right after it was made may be replaced again, by device.
    pub drifts: Backoffs,
    /// Specs that failed and were given up for their predecessor, by device.
    pub rejected: BTreeMap<String, Rejected>,
    /// The card that each device's last desired spec names, to recognise a microphone that was plugged in again.
    pub cards: BTreeMap<String, u32>,
    /// Containers that an action of ours asked to end, by id.
    pub asked_to_end: BTreeSet<String>,
    /// Containers that somebody else made in the place of ours, by id.
    pub foreign: BTreeSet<String>,
    /// The runs of each container, by id.
    pub runs: BTreeMap<String, Runs>,
}

/// A spec that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its hash.
    pub hash: String,
    /// Why it failed.
    pub why: String,
}

/// The runs of one container.
#[derive(Clone, Debug)]
pub struct Runs {
    /// The second in which the present one began, and its process.
    pub present: (u64, u32),
    /// Since when it is seen.
    pub since: Instant,
    /// How an earlier one ended that was seen, too.
    pub ended: Option<Ending>,
}

impl Default for Past {
    fn default() -> Self {
        Self {
            failures: Backoffs::default(),
            drifts: Backoffs::of_drifts(),
            rejected: BTreeMap::new(),
            cards: BTreeMap::new(),
            asked_to_end: BTreeSet::new(),
            foreign: BTreeSet::new(),
            runs: BTreeMap::new(),
        }
    }
}

impl Past {
    /// Whether a container has run for so long without an end that its predecessor may go.
    #[must_use]
    pub fn is_proven(&self, container: &Container, now: Instant) -> bool {
        let runs = self.runs.get(&container.id);
        container.state == State::Running
            && runs.is_some_and(|runs| runs.ended.is_none() && now.saturating_duration_since(runs.since) >= PROVEN)
    }

    /// How a run of this container ended, if one did, and we did not ask for it.
    #[must_use]
    pub fn ending(&self, container: &Container) -> Option<Ending> {
        match container.state {
            State::Exited | State::Lost if !self.asked_to_end.contains(&container.id) => Some(Ending::of(container)),
            _ => self.runs.get(&container.id)?.ended,
        }
    }

    /// Why a spec of this hash was given up.
    #[must_use]
    pub fn rejection(&self, device: &str, hash: &str) -> Option<&str> {
        self.rejected.get(device).filter(|rejected| rejected.hash == hash).map(|rejected| rejected.why.as_str())
    }
}
