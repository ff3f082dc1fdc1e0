//! A container and its engine, as Podman reports them.

use crate::sorted_map::SortedMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Properties of the engine; read once per connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Engine {
    /// Podman's version.
    pub version: Version,
    /// Whether it runs without root.
    pub rootless: bool,
    /// `crun` or `runc`.
    pub runtime: String,
    /// `v1` or `v2`.
    pub cgroups: String,
}

/// Version of the engine, from the headers of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Version(pub u16, pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// Reads `4.3.1` or `5.0.0-dev`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let release = text.split_once('-').map_or(text, |(release, _)| release);
        let mut parts = release.split('.').map(|part| part.parse().ok());
        Some(Self(parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
    }
}

/// State of a container in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Created but not started, or not since a reboot.
    #[serde(alias = "configured", alias = "initialized")]
    Created,
    /// Its process runs, as far as Podman knows.
    Running,
    /// Being stopped.
    Stopping,
    /// Its process ended; Podman's clean-up or a restart follows. Never final.
    Stopped,
    /// Ended; Podman does not restart it.
    #[serde(alias = "dead")]
    Exited,
    /// Paused by somebody else.
    Paused,
    /// Being removed.
    Removing,
    /// Podman reports `running`, but the process is gone; set only by [`crate::containers::liveness`].
    #[serde(skip)]
    Lost,
    /// A state that this version of the Controller does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
            Self::Paused => "paused",
            Self::Removing => "removing",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        })
    }
}

impl State {
    /// Whether nothing runs, and Podman starts nothing by itself.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Created | Self::Exited | Self::Removing | Self::Lost)
    }
}

/// One run of a container, from a start to the end of its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// State of the container.
    pub state: State,
    /// When it began, to the nanosecond, in Podman's format.
    pub started: String,
    /// Its process in Podman's PID namespace; 0 = none.
    pub pid: u32,
}

impl Run {
    /// Whether its process exists, as far as Podman knows.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Running | State::Stopping | State::Paused)
    }
}

/// One row of the list.
#[derive(Clone, Debug)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Name without a slash.
    pub name: String,
    /// State at the time of the list.
    pub state: State,
    /// Its labels.
    pub labels: SortedMap<String, String>,
    /// Exit code of its last run.
    pub exit_code: i64,
    /// Whether its last run ended because memory ran out. It is not part of the list; the lister requests it after a
    /// failure.
    pub out_of_memory: bool,
    /// Whether its last run is over without a recorded end: the host was rebooted while it ran.
    pub is_interrupted: bool,
    /// Its first process in Podman's PID namespace; 0 = none.
    pub pid: u32,
    /// When its last run began, in seconds since 1970; 0 = never.
    pub started: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_a_suffix() {
        for (text, version) in [("4.3.1", Some(Version(4, 3, 1))), ("5.0.0-dev", Some(Version(5, 0, 0))), ("5.4", Some(Version(5, 4, 0)))] {
            assert_eq!(Version::parse(text), version, "{text}");
        }
        for text in ["", "x", "5", "5.x.1"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
