//! Whatever can wake the main loop.
//!
//! The threads import this file, and it imports none of them: it carries values only.

use std::time::Duration;

use crate::decide::action::{Action, Done, Failure};
use crate::decide::container::{Container, Engine};
use crate::decide::leadership::Standing;
use crate::decide::registry::Row;
use crate::decide::scan::{Scan, Unknown};

/// A reason to wake the main loop.
#[derive(Debug)]
pub enum Event {
    /// A termination signal.
    Terminate,
    /// Somebody wants to see state and last decisions in the log.
    Dump,
    /// Somebody wants a cycle at once.
    Nudge,
    /// Podman says that something happened to a container of ours, or that it can no longer say so.
    Changed,
    /// What a look at the sound cards found, or why nothing.
    Hardware {
        /// Which thread's it is.
        generation: u64,
        /// All cards.
        scan: Result<Scan, Unknown>,
    },
    /// The database's answer, or why there is none.
    Rows {
        /// Which thread's it is.
        generation: u64,
        /// The desired state.
        rows: Result<Vec<Row>, String>,
    },
    /// Podman's answer, or why there is none.
    Containers {
        /// Which request's it is.
        sequence: u64,
        /// All containers of ours.
        containers: Result<Vec<Container>, String>,
        /// What engine it is.
        engine: Option<Engine>,
    },
    /// Who holds the lock of this owner.
    Lock(Standing),
    /// An action ended.
    Done {
        /// The action.
        action: Box<Action>,
        /// What came of it, or why it failed.
        result: Result<Done, Failure>,
        /// How long it took.
        took: Duration,
    },
}
