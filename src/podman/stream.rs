//! Answers that do not end by themselves, and how another thread ends them.
//!
//! Each has a connection of its own, so that closing it affects nothing else.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;

use crate::podman::error::Error;
use crate::podman::http;

/// A request whose answer is read piece by piece, on a connection of its own: a log, or events.
#[derive(Debug)]
pub struct StreamRequest {
    pub(super) agent: Agent,
    pub(super) url: String,
    pub(super) limit: Option<Duration>,
}

/// Ends a [`StreamRequest`] from another thread, even while that waits.
#[derive(Clone, Debug)]
pub struct Closer(Agent);

impl Closer {
    /// Closes the connection. One that is not open yet will not be opened.
    pub fn close(&self) {
        self.0.clone().shutdown();
    }
}

impl StreamRequest {
    /// A handle that closes the connection.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer(self.agent.clone())
    }

    /// Sends the request and waits for the head of the answer; its body can then be read.
    ///
    /// When a log is followed, Podman 4.3 does not answer before there is a first line.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(self) -> Result<impl Read + use<>, Error> {
        let answer =
            http::request(&self.agent, "GET", &self.url, None, self.limit.map(|limit| http::Limit { first: limit, usual: limit }))?;
        Ok(answer.into_body().into_reader())
    }
}
