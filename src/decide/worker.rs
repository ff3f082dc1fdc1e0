//! The declaration of a worker: a container for analysis or upload, of which there is one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Settings that are common to all workers.
#[derive(Clone)]
pub struct WorkerSettings {
    /// Network name.
    pub network: String,
    /// Value of the owner label.
    pub owner: String,
    /// Workspace folder on the host.
    pub workspace: PathBuf,
    /// Redis URL as containers reach it.
    pub redis_url: String,
    /// Variables with which a worker connects to the database.
    pub database: BTreeMap<String, String>,
}

impl fmt::Debug for WorkerSettings {
    /// Without the URL and the variables, which contain passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "workers of {} on {}, {}", self.owner, self.network, self.workspace.display())
    }
}

/// What a worker may do with the recordings of all microphones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recordings {
    /// Nothing.
    None,
    /// Read them.
    Read,
}

/// A declared worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its name, which is also its service and device id.
    pub name: String,
    /// Image name.
    pub image: String,
    /// Memory limit in bytes.
    pub memory: u64,
    /// CPU limit in microseconds per 100 ms period.
    pub cpu_quota: u64,
    /// How soon the kernel kills it when memory runs out, 0-1000.
    pub oom_score_adj: u16,
    /// Its own variables.
    pub environment: BTreeMap<String, String>,
    /// Whether it reads the recordings.
    pub recordings: Recordings,
    /// Whether it has a folder of its own.
    pub workspace: bool,
    /// Whether it gets the variables for the database.
    pub database: bool,
    /// Whether it is enabled when its row is created.
    pub enabled: bool,
}

impl Worker {
    /// Name of its container.
    #[must_use]
    pub fn container_name(&self) -> String {
        format!("silvasonic-{}", self.name)
    }
}
