//! HTTP requests to Podman: settings of a connection, one request, and its answer or error.
//!
//! The functions here know no route of the API. The deadline of each request is chosen by the caller.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body, Timeout};

use crate::podman::error::Error;
use crate::podman::transport::{NoResolver, UnixConnector};
use crate::text::shown;

/// Podman 4.x and 5.x answer alike under this prefix.
pub(super) const BASE: &str = "http://podman/v4.0.0/libpod";

/// Largest answer that is read. A list takes about 1.5 kB for each container.
const ANSWER_LIMIT: u64 = 8 << 20;

const CONNECT: Duration = Duration::from_secs(2);

/// Buffers of a connection, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    pub(super) input: usize,
    pub(super) output: usize,
}

/// Deadlines of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// For the whole request, with the start of a service that sleeps.
    pub(super) first: Duration,
    /// For the rest of an answer that has begun.
    pub(super) usual: Duration,
}

/// A client with connections of its own. `begin` is the deadline for the beginning of an answer.
pub(super) fn agent(path: PathBuf, buffers: Buffers, begin: Option<Duration>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .user_agent("silvasonic-controller")
        .max_redirects(0)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(begin)
        .max_response_header_size(16 << 10)
        .input_buffer_size(buffers.input)
        .output_buffer_size(buffers.output)
        // A service that systemd starts for its socket ends only when no connection is open; another one costs 0.1 ms.
        .max_idle_connections(0)
        .max_idle_connections_per_host(0)
        .build();
    Agent::with_parts(config, UnixConnector { path }, NoResolver)
}

/// Sends one request. An answer with status 400 or higher becomes [`Error::Refused`].
pub(super) fn request(agent: &Agent, method: &str, url: &str, body: Option<&Value>, limit: Option<Limit>) -> Result<Response<Body>, Error> {
    // Once the answer has begun, the service is awake.
    let rest = limit.map(|limit| limit.usual);
    let limit = limit.map(|limit| limit.first);
    let answer = match (method, body) {
        ("POST", Some(body)) => agent.post(url).config().timeout_global(limit).timeout_recv_body(rest).build().send_json(body),
        ("POST", None) => agent.post(url).config().timeout_global(limit).timeout_recv_body(rest).build().send_empty(),
        ("DELETE", _) => agent.delete(url).config().timeout_global(limit).timeout_recv_body(rest).build().call(),
        _ => agent.get(url).config().timeout_global(limit).timeout_recv_body(rest).build().call(),
    };
    let limit = limit.unwrap_or(CONNECT);
    let answer = answer.map_err(|error| fault(error, limit))?;
    let status = answer.status().as_u16();
    if status < 400 {
        return Ok(answer);
    }
    let text = text(answer, limit)?;
    // Unknown routes answer in plain text and without Podman's headers.
    #[derive(Deserialize)]
    struct ErrorBody {
        cause: String,
        message: String,
    }
    let error = crate::json::from_str(&text).unwrap_or(ErrorBody { cause: String::new(), message: text });
    Err(Error::Refused { status, cause: error.cause, message: shown(&error.message).to_string() })
}

pub(super) fn text(mut answer: Response<Body>, limit: Duration) -> Result<String, Error> {
    let bytes = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec().map_err(|error| fault(error, limit))?;
    String::from_utf8(bytes).map_err(|_| Error::Invalid("not UTF-8".to_owned()))
}

pub(super) fn json<T: DeserializeOwned>(answer: Response<Body>, limit: Duration) -> Result<T, Error> {
    let text = text(answer, limit)?;
    crate::json::from_str(&text).map_err(|error| Error::Invalid(format!("{error} in {}", shown(&text))))
}

fn fault(error: ureq::Error, limit: Duration) -> Error {
    match error {
        ureq::Error::Timeout(Timeout::Connect) => Error::Timeout(CONNECT.min(limit)),
        ureq::Error::Timeout(_) => Error::Timeout(limit),
        ureq::Error::Io(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::Unreachable(error.to_string()),
            io::ErrorKind::PermissionDenied => Error::Forbidden(error.to_string()),
            io::ErrorKind::WouldBlock => Error::Timeout(CONNECT.min(limit)),
            _ => Error::Invalid(error.to_string()),
        },
        error => Error::Invalid(error.to_string()),
    }
}

/// Percent-encodes all characters that are not unreserved in a URL.
pub(super) fn query(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len() * 3), |mut url, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(byte.into());
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
        url
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_filters_are_safe_in_a_url() {
        assert_eq!(query("localhost/rec:1"), "localhost%2Frec%3A1");
        assert_eq!(query("{\"é\"}"), "%7B%22%C3%A9%22%7D");
    }
}
