//! How a request to Podman can fail. A variant or a cause exists where a caller handles it in its own way.

use std::fmt;
use std::time::Duration;

/// Why a request has no result.
#[derive(Debug)]
pub enum Error {
    /// No service listens on the socket.
    Unreachable(String),
    /// This user has no right to the socket, or to a folder on the way to it.
    Forbidden(String),
    /// No complete answer within the deadline. The requested change may have been made, or may still be made.
    Timeout(Duration),
    /// The connection broke, or the answer does not have the form that the API defines.
    Invalid(String),
    /// Podman answered with an error.
    Refused {
        /// HTTP status.
        status: u16,
        /// Podman's innermost error, the only text that is stable.
        cause: String,
        /// The whole error.
        message: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "no Podman service: {why}"),
            Self::Forbidden(why) => write!(f, "no right to Podman's socket: {why}"),
            Self::Timeout(limit) => write!(f, "no answer from Podman within {} s", limit.as_secs()),
            Self::Invalid(what) => write!(f, "unusable answer from Podman: {what}"),
            Self::Refused { status, message, .. } => write!(f, "Podman answered {status}: {message}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Whether the container, image or network does not exist. For a container that is being removed, Podman answers
    /// 500.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. }) || self.is_cause(cause::NO_CONTAINER)
    }

    /// Whether Podman's innermost error reads `cause`.
    #[must_use]
    pub fn is_cause(&self, text: &str) -> bool {
        matches!(self, Self::Refused { cause, .. } if cause == text)
    }
}

/// Texts of Podman's `cause` that callers handle.
pub mod cause {
    /// No container of that name or id.
    pub const NO_CONTAINER: &str = "no such container";
    /// Another container has that name.
    pub const NAME_TAKEN: &str = "that name is already in use";
    /// The image is not in Podman's local storage; `create` never pulls one.
    pub const NO_IMAGE: &str = "image not known";
    /// The network is not defined.
    pub const NO_NETWORK: &str = "network not found";
    /// A bind source or device is missing.
    pub const NO_FILE: &str = "no such file or directory";
    /// The container is in a state in which this cannot be done.
    pub const WRONG_STATE: &str = "container state improper";
    /// The disk with Podman's storage is full.
    pub const NO_SPACE: &str = "no space left on device";
}
