//! The earlier events on which a plan depends and which no list of containers shows.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::time::Instant;

use crate::decide::action::{Ending, PROVEN};
use crate::decide::backoff::Backoffs;
use crate::decide::container::{Container, State};
use crate::decide::spec::{CONFIG_HASH, Tier2ServiceSpec};

/// Facts about devices and containers, collected since the start of the program.
#[derive(Debug)]
pub struct Past {
    /// When a failed start or stop may be retried, by device.
    pub failures: Backoffs,
    /// When a container that differs right after its creation may be replaced again, by device.
    pub drifts: Backoffs,
    /// Specs that failed, so that their predecessor was started again, by device.
    pub rejected: SortedMap<String, Rejected>,
    /// The sound card in each device's last desired spec, to detect a microphone that was connected again.
    pub cards: SortedMap<String, u32>,
    /// Containers that an action of ours stopped or removed, by id.
    pub stopped: SortedSet<String>,
    /// Containers that somebody else created to replace ours, by id.
    pub foreign: SortedSet<String>,
    /// Containers to be replaced because their capture stands still, by id, and why.
    pub stalled: SortedMap<String, String>,
    /// Devices whose capture stands still.
    pub standing: SortedSet<String>,
    /// The runs of each container, by id.
    pub runs: SortedMap<String, Runs>,
    /// How containers with another hash differ from their desired spec, by id.
    pub compared: SortedMap<String, Compared>,
}

/// A container that was compared with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Hash of the spec.
    pub hash: String,
    /// The differences that matter; none if the container would be created alike.
    pub differences: Vec<String>,
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
    /// The second in which the current run began, and its process.
    pub current: (u64, u32),
    /// When it was first listed.
    pub since: Instant,
    /// How the run before ended, if that run was listed, too.
    pub ended: Option<Ending>,
}

impl Default for Past {
    fn default() -> Self {
        Self {
            failures: Backoffs::default(),
            drifts: Backoffs::of_drifts(),
            rejected: SortedMap::new(),
            cards: SortedMap::new(),
            stopped: SortedSet::new(),
            foreign: SortedSet::new(),
            stalled: SortedMap::new(),
            standing: SortedSet::new(),
            runs: SortedMap::new(),
            compared: SortedMap::new(),
        }
    }
}

impl Past {
    /// Whether a container is as this spec requires: it was created from it, or would be created alike.
    #[must_use]
    pub fn matches(&self, container: &Container, spec: &Tier2ServiceSpec) -> bool {
        has_hash_of(container, spec) || self.differences(container, spec).is_some_and(<[String]>::is_empty)
    }

    /// How a container with another hash differs from a spec, if it was compared with it.
    #[must_use]
    pub fn differences(&self, container: &Container, spec: &Tier2ServiceSpec) -> Option<&[String]> {
        let compared = self.compared.get(&container.id).filter(|compared| compared.hash == spec.hash())?;
        Some(&compared.differences)
    }

    /// Whether a container has run long enough without an end that its predecessor may be removed.
    #[must_use]
    pub fn is_proven(&self, container: &Container, now: Instant) -> bool {
        let runs = self.runs.get(&container.id);
        container.state == State::Running
            && runs.is_some_and(|runs| runs.ended.is_none() && now.saturating_duration_since(runs.since) >= PROVEN)
    }

    /// How a run of this container ended, if one ended and no action of ours stopped it.
    #[must_use]
    pub fn ending(&self, container: &Container) -> Option<Ending> {
        match container.state {
            State::Exited | State::Lost if !self.stopped.contains(&container.id) => Some(Ending::of(container)),
            _ => self.runs.get(&container.id)?.ended,
        }
    }

    /// Why a spec with this hash was rejected.
    #[must_use]
    pub fn rejection(&self, device: &str, hash: &str) -> Option<&str> {
        self.rejected.get(device).filter(|rejected| rejected.hash == hash).map(|rejected| rejected.why.as_str())
    }
}

/// Whether a container was created from this spec.
#[must_use]
pub fn has_hash_of(container: &Container, spec: &Tier2ServiceSpec) -> bool {
    container.labels.get(CONFIG_HASH).is_some_and(|hash| hash == spec.hash())
}
