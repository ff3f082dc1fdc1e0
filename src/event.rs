//! The events that wake the main loop.
//!
//! Threads import this file, and it imports none of them: an event only carries values.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::decide::action::{Action, Done, Failure};
use crate::decide::container::{Container, Engine};
use crate::decide::leadership::Standing;
use crate::decide::registry::Row;
use crate::decide::scan::{Scan, Unknown};
use crate::decide::scope::Scope;
use crate::decide::spec::{Kind, Tier2ServiceSpec};
use crate::decide::worker::Worker;

/// Why the database sent no rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRows {
    /// It did not answer in time.
    NoAnswer,
    /// It refused, or cannot be reached.
    Failed(String),
}

/// How a container differs from a spec.
#[derive(Debug)]
pub struct Comparison {
    /// Id of the container.
    pub container: String,
    /// The spec.
    pub spec: Arc<Tier2ServiceSpec>,
    /// The differences that matter, or why they are unknown.
    pub differences: Result<Vec<String>, String>,
}

/// An event for the main loop.
#[derive(Debug)]
pub enum Event {
    /// A termination signal.
    Terminate,
    /// A request to stop and to leave the Recorders running (SIGUSR2).
    Leave,
    /// A request to write the state and the last decisions to the log (SIGUSR1).
    Dump,
    /// A request for an immediate cycle.
    Nudge,
    /// Somebody asks for a text of [`Pages`](crate::health::pages).
    Asked,
    /// Redis has answered which levels the Recorders state, or does not answer.
    Levels,
    /// Somebody listens to the log lines, or nobody does any more.
    Audience,
    /// One of our containers changed, or Podman's event stream was opened or ended.
    Changed,
    /// The result of a scan of the sound cards, or why it failed.
    Hardware {
        /// Number of the thread that sent it.
        generation: u64,
        /// The scan.
        scan: Result<Scan, Unknown>,
    },
    /// The rows of the database, or why they cannot be read.
    Rows {
        /// Number of the thread that sent it.
        generation: u64,
        /// Which rows were to be read.
        scope: Arc<Scope>,
        /// The rows.
        rows: Result<Arc<Vec<Row>>, NoRows>,
    },
    /// The rows that an earlier run saved were read, `None` if there are none.
    Saved(Option<Vec<Row>>),
    /// The files that contain what is seeded were read; the declared workers, if they are known.
    SeedFiles(Option<Vec<Worker>>),
    /// A list of containers, or why it failed.
    Containers {
        /// Number of the request.
        sequence: u64,
        /// When Podman answered.
        received: Instant,
        /// All our containers.
        containers: Result<Vec<Container>, String>,
        /// Podman's properties, if they are known.
        engine: Option<Engine>,
    },
    /// Containers that were compared with the desired configuration.
    Compared(Vec<Comparison>),
    /// Who holds the lock of this owner.
    Lock(Standing),
    /// An action ended.
    Done {
        /// Whether it is for a Recorder or a worker.
        kind: Kind,
        /// The action.
        action: Box<Action>,
        /// Its result, or why it failed.
        result: Result<Done, Failure>,
        /// Its duration.
        took: Duration,
    },
}
