//! What can be done to containers, why, and why something waits: every action and every reason on one page.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock;
use crate::decide::container::{Container, State};
use crate::decide::desired::StopReason;
use crate::decide::spec::Spec;

/// One thing to do for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Stable id of the microphone; empty if a container does not say.
    pub device: String,
    /// What to do.
    pub task: Task,
    /// Why.
    pub cause: Cause,
}

/// What to do for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Nothing runs: remove what ended, create a container and start it.
    Start {
        /// What is created.
        spec: Arc<Spec>,
        /// A container that is already created from it.
        created: Option<OldContainer>,
        /// Containers that ended.
        remove: Vec<OldContainer>,
        /// A container that ended, and is started again if the new one does not start.
        fallback: Option<OldContainer>,
    },
    /// Another container runs: create the successor, exchange the names, stop the old one, start the new one. The old one
    /// is kept until the new one is proven.
    Replace {
        /// What is created.
        spec: Arc<Spec>,
        /// A successor that is already created.
        created: Option<OldContainer>,
        /// Containers that ended.
        remove: Vec<OldContainer>,
        /// The container that runs.
        old: OldContainer,
    },
    /// The successor failed: remove it and start its predecessor again.
    FallBack {
        /// What the successor was created from.
        spec: Arc<Spec>,
        /// The successor.
        failed: Vec<OldContainer>,
        /// The predecessor.
        old: OldContainer,
    },
    /// Give a container that runs as desired its name back.
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
    pub fn spec(&self) -> Option<&Arc<Spec>> {
        match &self.task {
            Task::Start { spec, .. } | Task::Replace { spec, .. } | Task::FallBack { spec, .. } => Some(spec),
            Task::Rename { .. } | Task::Remove(_) => None,
        }
    }

    /// The order in which actions are begun: what starts a Recorder, what replaces one, what stops one.
    #[must_use]
    pub fn rank(&self) -> Rank {
        match &self.task {
            Task::Start { .. } | Task::FallBack { .. } => Rank::Start,
            Task::Replace { .. } | Task::Rename { .. } => Rank::Replacement,
            Task::Remove(_) => Rank::Stop,
        }
    }

    /// Containers that the action asks to end or removes.
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

/// When an action is begun among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Nothing is recorded until it is done.
    Start,
    /// Something is recorded meanwhile.
    Replacement,
    /// Nothing has to be recorded.
    Stop,
}

/// A container that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldContainer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it takes to remove it.
    pub removal: Removal,
}

/// What it takes to remove a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It has ended.
    Plain,
    /// It must be asked to end first.
    Stop,
    /// It is paused, and must go on before it can be asked to end.
    Unpause,
    /// Force, as nobody is there to be asked.
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

/// What came of an action.
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
        /// Why the successor failed; `None` if the cause of the action says it.
        why: Option<String>,
    },
    /// A container was renamed.
    Renamed,
    /// Containers were removed.
    Removed,
}

/// Why an action failed: one line that names the container, what went wrong and, where it is known, the cure.
#[derive(Debug)]
pub enum Failure {
    /// A prerequisite is missing: an image, a network, a folder, a free name, disk space.
    Prerequisite(String),
    /// The containers are not what the plan took them for; another look tells.
    Outdated(String),
    /// Podman holds a name for a container that does not exist.
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

/// Why something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A Recorder should run, and there is no container.
    NotThere,
    /// The container is another one than is desired now.
    Drift,
    /// The container ended.
    Ended(Ending),
    /// The container was stopped on purpose, and should run again.
    StoppedBefore,
    /// The container exists and does not run, as before its first start or after a reboot.
    NotRunning,
    /// The container stays in a state that should pass.
    Stuck {
        /// Its name.
        name: String,
        /// That state.
        state: State,
    },
    /// Somebody gave the container another name.
    Renamed(String),
    /// The successor ended before it was proven.
    Unproven(Ending),
    /// The successor of the container is proven.
    Proven,
    /// Another container of the device runs as desired.
    Twin,
    /// More Recorders run than are allowed.
    Surplus,
    /// The Recorder waits for a place, and its ended container serves nobody.
    Crowded,
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
            Self::Ended(ending) => write!(f, "the container {ending}"),
            Self::StoppedBefore => f.write_str("desired again after a stop"),
            Self::NotRunning => f.write_str("the container exists but does not run"),
            Self::Stuck { name, state } => write!(f, "container {name} is stuck in state {state}"),
            Self::Renamed(name) => write!(f, "somebody renamed the container to {name}"),
            Self::Unproven(ending) => write!(f, "the new container {ending}"),
            Self::Proven => f.write_str("its successor is proven"),
            Self::Twin => f.write_str("duplicate container for this microphone"),
            Self::Surplus => f.write_str("exceeds max_recorders"),
            Self::Crowded => f.write_str("max_recorders is reached"),
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
    /// Its process is gone, and Podman does not know.
    Lost,
    /// The host went down under it.
    Reboot,
    /// Nobody reports how.
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
            Self::Lost => f.write_str("lost its process without Podman's notice, as conmon was killed"),
            Self::Reboot => f.write_str("ended with a reboot of the host"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// What a desired Recorder, or its replacement, waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// An action of ours is under way.
    Busy,
    /// As many Recorders run as are allowed.
    Crowded,
    /// Its container is in a state that passes.
    InBetween(State),
    /// Its old container is being removed.
    Removing,
    /// Somebody paused its container.
    Paused {
        /// Name of the container.
        name: String,
    },
    /// The next try after failures.
    BackOff {
        /// When it comes, by the wall clock.
        until: SystemTime,
        /// How many tries failed.
        failures: u32,
    },
    /// A container that differed right after it was made is not replaced again before this time.
    Drifting {
        /// By the wall clock.
        until: SystemTime,
    },
    /// Another Recorder is being replaced, and its successor is not proven yet.
    Turn,
    /// The spec failed, and its predecessor runs.
    FellBack {
        /// Why it failed.
        why: String,
    },
    /// Somebody else made the container that runs.
    Foreign,
}

impl Hold {
    /// Whether it takes a person, or time that should not be needed, to end it.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        match self {
            Self::Busy | Self::InBetween(_) | Self::Removing | Self::Turn => false,
            Self::Crowded | Self::Paused { .. } | Self::BackOff { .. } | Self::Drifting { .. } => true,
            Self::FellBack { .. } | Self::Foreign => true,
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("an action is under way"),
            Self::Crowded => write!(f, "{}", Cause::Crowded),
            Self::InBetween(state) => write!(f, "its container is {state}"),
            Self::Removing => f.write_str("its old container is being removed"),
            Self::Paused { name } => write!(f, "paused by hand; to resume: podman unpause {name}"),
            Self::BackOff { until, failures } => write!(f, "back-off until {} after {failures} failures", clock::iso_seconds(*until)),
            Self::Drifting { until } => {
                write!(f, "the container differed right after it was made; not replaced before {}", clock::iso_seconds(*until))
            }
            Self::Turn => f.write_str("another Recorder is replaced first"),
            Self::FellBack { why } => write!(f, "fell back to the container of before, as {why}"),
            Self::Foreign => f.write_str("somebody else made its container, which is left running"),
        }
    }
}

/// Time for which a successor must run before its predecessor goes.
pub const PROVEN: Duration = Duration::from_secs(10);
