//! Every action on containers, every cause of one, and everything that a Recorder can wait for.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock;
use crate::decide::container::{Container, State};
use crate::decide::desired::StopReason;
use crate::decide::offer::Mismatch;
use crate::decide::spec::Tier2ServiceSpec;

/// One action for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Stable id of the microphone; empty if a container has no such label.
    pub device: String,
    /// What to do.
    pub task: Task,
    /// Why.
    pub cause: Cause,
}

/// What to do for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Nothing runs: remove ended containers, create a new one and start it.
    Start {
        /// The spec of the new container.
        spec: Arc<Tier2ServiceSpec>,
        /// A container that is already created from the spec.
        created: Option<OldContainer>,
        /// Ended containers to remove.
        remove: Vec<OldContainer>,
        /// The predecessor, which is started again if the new container does not start.
        fallback: Option<OldContainer>,
    },
    /// Another container runs: create the successor, exchange the names, stop the old one, start the new one. The old
    /// one is kept until the new one is proven, that is, has run for [`PROVEN`].
    Replace {
        /// The spec of the new container.
        spec: Arc<Tier2ServiceSpec>,
        /// A successor that is already created.
        created: Option<OldContainer>,
        /// Ended containers to remove.
        remove: Vec<OldContainer>,
        /// The running container.
        old: OldContainer,
    },
    /// The successor failed: remove it and start its predecessor again.
    FallBack {
        /// What the successor was created from.
        spec: Arc<Tier2ServiceSpec>,
        /// The successor.
        failed: Vec<OldContainer>,
        /// The predecessor.
        old: OldContainer,
    },
    /// Rename a container that runs as desired to the name in its spec.
    Rename {
        /// The container.
        container: OldContainer,
        /// The name that it should have.
        name: String,
    },
    /// Stop and remove containers.
    Remove(Vec<OldContainer>),
}

impl Action {
    /// The spec that should run afterwards.
    #[must_use]
    pub fn spec(&self) -> Option<&Arc<Tier2ServiceSpec>> {
        match &self.task {
            Task::Start { spec, .. } | Task::Replace { spec, .. } | Task::FallBack { spec, .. } => Some(spec),
            Task::Rename { .. } | Task::Remove(_) => None,
        }
    }

    /// The order in which actions begin: starts, replacements, stops.
    #[must_use]
    pub fn rank(&self) -> Rank {
        match &self.task {
            Task::Start { .. } | Task::FallBack { .. } => Rank::Start,
            Task::Replace { .. } | Task::Rename { .. } => Rank::Replacement,
            Task::Remove(_) => Rank::Stop,
        }
    }

    /// Containers that the action stops or removes.
    pub fn ends(&self) -> impl Iterator<Item = &OldContainer> {
        let (many, one) = match &self.task {
            Task::Start { remove, .. } => (&remove[..], None),
            Task::Replace { remove, old, .. } => (&remove[..], Some(old)),
            Task::FallBack { failed, .. } => (&failed[..], None),
            Task::Rename { .. } => (&[][..], None),
            Task::Remove(old) => (&old[..], None),
        };
        many.iter().chain(one)
    }
}

/// When an action begins, compared with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Nothing is recorded before it.
    Start,
    /// The Recorder records until its replacement.
    Replacement,
    /// Nothing should be recorded.
    Stop,
}

/// An existing container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldContainer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How it is removed.
    pub removal: Removal,
}

/// How a container is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Removed only: it has ended.
    Plain,
    /// Stopped first.
    Stop,
    /// Unpaused and stopped first: a paused container receives no signal.
    Unpause,
    /// With force: its process is gone.
    Force,
}

impl From<&Container> for OldContainer {
    fn from(container: &Container) -> Self {
        let removal = match container.state {
            State::Lost => Removal::Force,
            State::Created | State::Exited => Removal::Plain,
            State::Paused => Removal::Unpause,
            _ => Removal::Stop,
        };
        Self { id: container.id.clone(), name: container.name.clone(), removal }
    }
}

/// The result of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// A container was started from the spec.
    Started {
        /// Its id.
        id: String,
        /// How its predecessor differed from the spec.
        differences: Vec<String>,
    },
    /// The predecessor, with this id, was started again.
    FellBack {
        /// Id of the predecessor.
        id: String,
        /// Why the successor failed; `None` if the cause of the action states it.
        why: Option<String>,
    },
    /// A container was renamed.
    Renamed,
    /// Containers were removed.
    Removed,
}

/// Why an action failed: one line with the container, the error and, if it is known, the fix.
#[derive(Debug)]
pub enum Failure {
    /// A prerequisite is missing: an image, a network, a folder, a free name, disk space.
    Prerequisite(String),
    /// The containers changed since the plan; the next list shows how.
    Outdated(String),
    /// Podman reserves a name for a container that does not exist.
    Orphaned(String),
    /// The Controller stops, so nothing was started.
    Stopping,
    /// Anything else.
    Other(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

/// Why an action is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A Recorder should run, and there is no container.
    NotThere,
    /// The container differs from the desired configuration.
    Drift,
    /// The capture of the container stands still; with the details.
    Stalled(String),
    /// The container ended.
    Ended(Ending),
    /// The container was stopped on purpose, and should run again.
    StoppedBefore,
    /// The container exists but was not started, or not since a reboot.
    NotRunning,
    /// The container stays in a transitional state.
    Stuck {
        /// Its name.
        name: String,
        /// The state.
        state: State,
    },
    /// Somebody else renamed the container.
    Renamed(String),
    /// The successor ended before it was proven.
    Unproven(Ending),
    /// The successor of the container is proven.
    Proven,
    /// Another container of the device runs as desired.
    Duplicate,
    /// More Recorders run than are allowed.
    Surplus,
    /// The limit is reached, and the ended container of this Recorder is not needed.
    LimitReached,
    /// No Recorder should run.
    Stop(StopReason),
    /// The database has no such device.
    NoRow,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("desired, but no container exists"),
            Self::Drift => f.write_str("the container differs from the desired configuration"),
            Self::Stalled(why) => f.write_str(why),
            Self::Ended(ending) => write!(f, "the container {ending}"),
            Self::StoppedBefore => f.write_str("desired again after a stop"),
            Self::NotRunning => f.write_str("the container exists but does not run"),
            Self::Stuck { name, state } => write!(f, "container {name} is stuck in state {state}"),
            Self::Renamed(name) => write!(f, "somebody else renamed the container to {name}"),
            Self::Unproven(ending) => write!(f, "the new container {ending}"),
            Self::Proven => f.write_str("its successor is proven"),
            Self::Duplicate => f.write_str("duplicate container for this microphone"),
            Self::Surplus => f.write_str("exceeds max_recorders"),
            Self::LimitReached => f.write_str("max_recorders is reached"),
            Self::Stop(reason) => write!(f, "{reason}"),
            Self::NoRow => f.write_str("no such device in the database"),
        }
    }
}

/// How a container or one of its runs ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Exit(i64),
    /// With this exit code, as memory ran out.
    OutOfMemory(i64),
    /// Its process is gone, and Podman does not know it.
    Lost,
    /// The host was rebooted while it ran.
    Reboot,
    /// How is unknown.
    Unknown,
}

impl Ending {
    /// How an ended container ended.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        match container.state {
            State::Lost => Self::Lost,
            _ if container.is_interrupted => Self::Reboot,
            _ if container.out_of_memory => Self::OutOfMemory(container.exit_code),
            _ => Self::Exit(container.exit_code),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exit(137) => f.write_str("ended with code 137 (SIGKILL, as when memory runs out)"),
            Self::Exit(code @ 129..=192) => write!(f, "ended with code {code} (signal {})", code - 128),
            Self::Exit(code) => write!(f, "ended with code {code}"),
            Self::OutOfMemory(code) => write!(f, "ended with code {code} (out of memory)"),
            Self::Lost => f.write_str("lost its process and Podman did not detect it, as conmon was killed"),
            Self::Reboot => f.write_str("was ended by a reboot of the host"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// What a desired Recorder or its replacement waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// An action for the device is under way.
    Busy,
    /// As many Recorders run as are allowed.
    LimitReached,
    /// Its container is in a transitional state.
    Transitional(State),
    /// Its old container is being removed.
    Removing,
    /// Somebody else paused its container.
    Paused {
        /// Name of the container.
        name: String,
    },
    /// The time of the next attempt after failures.
    BackOff {
        /// That time, by the wall clock.
        until: SystemTime,
        /// Number of failures in a row.
        failures: u32,
    },
    /// Its container differed right after its creation, and is not replaced again before this time.
    Drifting {
        /// By the wall clock.
        until: SystemTime,
    },
    /// Its container carries another hash; whether it differs is not known yet.
    Comparing,
    /// Another Recorder is being replaced, or its successor is not proven yet.
    Turn,
    /// The spec failed, and its predecessor runs.
    FellBack {
        /// Why it failed.
        why: String,
    },
    /// Somebody else created the running container.
    Foreign,
    /// The card does not offer what the profile asks for.
    NotOffered(Mismatch),
}

impl Hold {
    /// Whether this is a fault for health checks, rather than a step of normal operation.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        match self {
            Self::Busy | Self::Transitional(_) | Self::Removing | Self::Comparing | Self::Turn => false,
            Self::LimitReached | Self::Paused { .. } | Self::BackOff { .. } | Self::Drifting { .. } => true,
            Self::FellBack { .. } | Self::Foreign | Self::NotOffered(_) => true,
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("an action is under way"),
            Self::LimitReached => write!(f, "{}", Cause::LimitReached),
            Self::Transitional(state) => write!(f, "its container is {state}"),
            Self::Removing => f.write_str("its old container is being removed"),
            Self::Paused { name } => write!(f, "paused by hand; to resume: podman unpause {name}"),
            Self::BackOff { until, failures } => write!(f, "back-off until {} after {failures} failures", clock::iso_seconds(*until)),
            Self::Drifting { until } => {
                write!(f, "the container differed right after its creation; not replaced before {}", clock::iso_seconds(*until))
            }
            Self::Comparing => f.write_str("its container is compared with the desired configuration"),
            Self::Turn => f.write_str("another Recorder is replaced first"),
            Self::FellBack { why } => write!(f, "fell back to the previous container: {why}"),
            Self::Foreign => f.write_str("somebody else created its container, which is left running"),
            Self::NotOffered(mismatch) => write!(f, "{mismatch}"),
        }
    }
}

/// Time for which a successor must run before its predecessor is removed.
pub const PROVEN: Duration = Duration::from_secs(10);
