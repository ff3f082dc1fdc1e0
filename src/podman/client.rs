//! A typed client for the part of Podman's REST API that the Controller needs.
//!
//! One [`Podman`] keeps a few connections alive and is cheap to clone; each call has its own deadline. What Podman
//! answers is mapped to outcomes here, by status and, for errors, by the `cause` text, as the status alone differs
//! between versions (a taken name is 500, an unknown image 500 in 4.3 and 404 in 5.x). Nothing in this file decides:
//! it says what happened, or that it could not be learnt.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body, Timeout};

use crate::decide::container::{Container, Engine, Run, State, Version};
use crate::text::shown;

/// Podman 4.x and 5.x answer alike under this prefix.
const BASE: &str = "http://podman/v4.0.0/libpod";

/// Largest answer that is read. A list takes about 1.5 kB a container.
const ANSWER_LIMIT: u64 = 8 << 20;

const CONNECT: Duration = Duration::from_secs(2);
/// Podman answers a ping in 0.1 ms and needs no disk for it.
const PING: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_secs(5);
/// `info` starts conmon, the OCI runtime and dpkg: 0.3 s on a fast machine.
const INFO: Duration = Duration::from_secs(20);
/// Creating and starting touch storage, network and cgroups; an SD card can be slow.
const CHANGE: Duration = Duration::from_secs(60);
/// What a stop or removal may take beyond the container's own time.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// What changes a container's row in the list. `cleanup` follows `died` when nothing restarts it.
const EVENTS: [&str; 8] = ["start", "died", "cleanup", "remove", "pause", "unpause", "restart", "rename"];
/// Room of a connection that waits most of the time, for what comes and what goes: there is one for each container.
const STREAM: (usize, usize) = (4 << 10, 1 << 10);
/// Ten megabytes of log that are not followed.
const LOG: Duration = Duration::from_secs(20);

/// Why a call has no outcome.
#[derive(Debug)]
pub enum Error {
    /// No service behind the socket: missing, stale or not permitted.
    Unreachable(String),
    /// No (whole) answer within the call's deadline; what the call was to change may have happened or may yet.
    Timeout(Duration),
    /// The connection broke, or the answer is not what the API promises.
    Garbled(String),
    /// Podman answered with an error.
    Refused {
        /// HTTP status.
        status: u16,
        /// Podman's innermost error, the only stable text.
        cause: String,
        /// The whole error.
        message: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "no Podman service: {why}"),
            Self::Timeout(limit) => write!(f, "no answer from Podman within {} s", limit.as_secs()),
            Self::Garbled(what) => write!(f, "unusable answer from Podman: {what}"),
            Self::Refused { status, message, .. } => write!(f, "Podman answered {status}: {message}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Whether the thing asked for does not exist. A container that is removed at this moment answers 500.
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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListRow {
    id: String,
    names: Vec<String>,
    state: State,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    exit_code: i64,
    #[serde(default)]
    pid: i64,
    #[serde(default)]
    started_at: i64,
    #[serde(default)]
    exited_at: i64,
}

/// A container that was created.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    /// Id of the new container.
    pub id: String,
    /// What Podman ignored or changed; `null` in 5.x when there is nothing.
    pub warnings: Option<Vec<String>>,
}

/// Whether a call changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did.
    Done,
    /// It was so already.
    Already,
    /// There is no such container.
    Gone,
}

/// The client. Clones share connections.
#[derive(Clone, Debug)]
pub struct Podman {
    agent: Agent,
    socket: PathBuf,
}

/// An answer that is to be read bit by bit, on a connection of its own: a part of a container's log, or events.
#[derive(Debug)]
pub struct StreamRequest {
    agent: Agent,
    url: String,
    limit: Option<Duration>,
}

/// Ends a [`StreamRequest`] from another thread, whatever it waits for.
#[derive(Clone, Debug)]
pub struct Closer(Agent);

impl Closer {
    /// Closes the connection; one that is not open yet will not be opened.
    pub fn close(&self) {
        self.0.clone().shutdown();
    }
}

impl StreamRequest {
    /// What closes the connection.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer(self.agent.clone())
    }

    /// Sends the request and waits for the answer, of which the body can then be read.
    ///
    /// While it follows a log, Podman 4.3 answers no sooner than there is a first line.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(self) -> Result<impl Read + use<>, Error> {
        let answer = request(&self.agent, "GET", &self.url, None, self.limit)?;
        Ok(answer.into_body().into_reader())
    }
}

impl Podman {
    /// A client for the service on `socket`. Connects when a call needs it, so the socket may appear later.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { agent: agent(socket.clone(), (16 << 10, 8 << 10), None), socket }
    }

    /// The log of a container from a second on (0: from its beginning), each frame with its time in whole seconds.
    ///
    /// It can follow the log until the container's current run ends; then it has no deadline, and only [`Closer`] ends
    /// the wait. A connection of its own has a price (a socket, 17 kB), and the point that closing it harms nobody else.
    #[must_use]
    pub fn log(&self, id: &str, since: u64, follow: bool) -> StreamRequest {
        let mut url = format!("{BASE}/containers/{}/logs?stdout=true&stderr=true&timestamps=true", query(id));
        if since > 0 {
            url.push_str(&format!("&since={since}"));
        }
        if follow {
            url.push_str("&follow=true");
        }
        let room = if follow { STREAM } else { (16 << 10, 1 << 10) };
        StreamRequest { agent: agent(self.socket.clone(), room, None), url, limit: (!follow).then_some(LOG) }
    }

    /// What happens from now on to containers with this label value, a line of JSON an event. It ends with the service.
    ///
    /// Health checks and the like, which leave a container's row in the list as it is, are left out.
    #[must_use]
    pub fn events(&self, label: &str, value: &str) -> StreamRequest {
        let filters = serde_json::json!({ "type": ["container"], "label": [format!("{label}={value}")], "event": EVENTS });
        let url = format!("{BASE}/events?stream=true&filters={}", query(&filters.to_string()));
        StreamRequest { agent: agent(self.socket.clone(), STREAM, Some(QUICK)), url, limit: None }
    }

    /// Is the service there, and which version?
    ///
    /// # Errors
    /// [`Error`]; `Garbled` when something else than Podman answers.
    pub fn ping(&self) -> Result<Version, Error> {
        let answer = self.call("GET", "/_ping", None, PING)?;
        let version = answer.headers().get("Libpod-Api-Version").and_then(|value| value.to_str().ok()).and_then(Version::parse);
        let text = text(answer, PING)?;
        version.ok_or_else(|| Error::Garbled(format!("ping without a Podman version: {}", shown(&text))))
    }

    /// What kind of engine it is. Slow (0.1-0.5 s): once per connection.
    ///
    /// # Errors
    /// [`Error`].
    pub fn info(&self, version: Version) -> Result<Engine, Error> {
        self.examine(version).map(|(engine, _)| engine)
    }

    /// The same, and the control group controllers by which this engine can limit containers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn examine(&self, version: Version) -> Result<(Engine, Vec<String>), Error> {
        #[derive(Deserialize)]
        struct Info {
            host: Host,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Host {
            security: Security,
            oci_runtime: Runtime,
            #[serde(default)]
            cgroup_version: String,
            #[serde(default)]
            cgroup_controllers: Option<Vec<String>>,
        }
        #[derive(Deserialize)]
        struct Security {
            rootless: bool,
        }
        #[derive(Deserialize)]
        struct Runtime {
            name: String,
        }
        let Info { host } = self.get("/info", INFO)?;
        let engine = Engine { version, rootless: host.security.rootless, runtime: host.oci_runtime.name, cgroups: host.cgroup_version };
        Ok((engine, host.cgroup_controllers.unwrap_or_default()))
    }

    /// All containers with this label value, running or not.
    ///
    /// # Errors
    /// [`Error`]; one unusable row makes the whole list unusable, as a missing container could be recreated.
    pub fn list(&self, label: &str, value: &str) -> Result<Vec<Container>, Error> {
        let filters = serde_json::json!({ "label": [format!("{label}={value}")] }).to_string();
        let path = format!("/containers/json?all=true&filters={}", query(&filters));
        let rows: Vec<ListRow> = match self.get(&path, QUICK) {
            // A container was removed while Podman put the list together.
            Err(error) if error.is_gone() => self.get(&path, QUICK)?,
            rows => rows?,
        };
        rows.into_iter()
            .map(|row| {
                let name =
                    row.names.into_iter().next().ok_or_else(|| Error::Garbled(format!("container {} without a name", shown(&row.id))))?;
                Ok(Container {
                    id: row.id,
                    name,
                    state: row.state,
                    labels: row.labels.unwrap_or_default(),
                    exit_code: row.exit_code,
                    out_of_memory: false,
                    // A run that Podman saw end has a time of its end.
                    is_interrupted: row.state == State::Exited && row.exited_at <= 0,
                    pid: row.pid.try_into().unwrap_or(0),
                    started: row.started_at.try_into().unwrap_or(0),
                })
            })
            .collect()
    }

    /// Everything Podman knows of one container, or `None` if there is none of that name or id.
    ///
    /// # Errors
    /// [`Error`].
    pub fn inspect(&self, container: &str) -> Result<Option<Value>, Error> {
        match self.get(&format!("/containers/{}/json", query(container)), QUICK) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The present or last run of a container, or `None` if there is no such container.
    ///
    /// # Errors
    /// [`Error`].
    pub fn last_run(&self, id: &str) -> Result<Option<Run>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Inspect {
            state: Inner,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Inner {
            status: State,
            started_at: String,
            #[serde(default)]
            pid: u32,
        }
        match self.get(&format!("/containers/{}/json", query(id)), QUICK) {
            Ok(Inspect { state }) => Ok(Some(Run { state: state.status, started: state.started_at, pid: state.pid })),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the last run of a container ended because memory ran out, as far as Podman knows: 4.3 never says so.
    ///
    /// # Errors
    /// [`Error`].
    pub fn ran_out_of_memory(&self, id: &str) -> Result<bool, Error> {
        let inspect = self.inspect(id)?;
        Ok(inspect.and_then(|inspect| inspect.pointer("/State/OOMKilled")?.as_bool()).unwrap_or(false))
    }

    /// Creates a container; the name decides, so that two attempts cannot make two.
    ///
    /// # Errors
    /// [`Error`]; causes worth knowing are in [`cause`].
    pub fn create(&self, request: &Value) -> Result<Created, Error> {
        let answer = self.call("POST", "/containers/create", Some(request), CHANGE)?;
        json(answer, CHANGE)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start(&self, id: &str) -> Result<Outcome, Error> {
        self.change("POST", &format!("/containers/{}/start", query(id)), CHANGE)
    }

    /// Stops a container: SIGTERM, then SIGKILL after `patience`. Returns when it has ended.
    ///
    /// # Errors
    /// [`Error`].
    pub fn stop(&self, id: &str, patience: Duration) -> Result<Outcome, Error> {
        let path = format!("/containers/{}/stop?timeout={}", query(id), patience.as_secs());
        self.change("POST", &path, patience + STOP_MARGIN)
    }

    /// Gives a container another name, also while it runs (2 ms).
    ///
    /// # Errors
    /// [`Error`].
    pub fn rename(&self, id: &str, name: &str) -> Result<Outcome, Error> {
        self.change("POST", &format!("/containers/{}/rename?name={}", query(id), query(name)), QUICK)
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// [`Error`].
    pub fn unpause(&self, id: &str) -> Result<Outcome, Error> {
        self.change("POST", &format!("/containers/{}/unpause", query(id)), CHANGE)
    }

    /// Removes a container. One that may still run is asked to end first and has `patience` for it; without patience, a
    /// container that runs is refused.
    ///
    /// # Errors
    /// [`Error`].
    pub fn remove(&self, id: &str, patience: Option<Duration>) -> Result<Outcome, Error> {
        let force = patience.map_or_else(String::new, |patience| format!("?force=true&timeout={}", patience.as_secs()));
        self.change("DELETE", &format!("/containers/{}{force}", query(id)), CHANGE)
    }

    /// Whether the image is on this machine.
    ///
    /// # Errors
    /// [`Error`].
    pub fn image_exists(&self, name: &str) -> Result<bool, Error> {
        self.exists(&format!("/images/{}/exists", query(name)))
    }

    /// Whether the network is defined.
    ///
    /// # Errors
    /// [`Error`].
    pub fn network_exists(&self, name: &str) -> Result<bool, Error> {
        self.exists(&format!("/networks/{}/exists", query(name)))
    }

    fn exists(&self, path: &str) -> Result<bool, Error> {
        Ok(self.change("GET", path, QUICK)? != Outcome::Gone)
    }

    fn change(&self, method: &str, path: &str, limit: Duration) -> Result<Outcome, Error> {
        match self.call(method, path, None, limit) {
            Ok(answer) => {
                let change = if answer.status() == 304 { Outcome::Already } else { Outcome::Done };
                // Reading to the end lets the connection be used again.
                text(answer, limit).map(|_| change)
            }
            Err(error) if error.is_gone() => Ok(Outcome::Gone),
            Err(error) => Err(error),
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, Error> {
        let answer = self.call("GET", path, None, limit)?;
        json(answer, limit)
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>, limit: Duration) -> Result<Response<Body>, Error> {
        request(&self.agent, method, &format!("{BASE}{path}"), body, Some(limit))
    }
}

/// A client of its own; `input` and `output` are the room for what comes and for a request's head, `begin` the time limit for the beginning of an answer.
fn agent(path: PathBuf, (input, output): (usize, usize), begin: Option<Duration>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .user_agent("silvasonic-controller")
        .max_redirects(0)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(begin)
        .max_response_header_size(16 << 10)
        .input_buffer_size(input)
        .output_buffer_size(output)
        .max_idle_connections(2)
        .max_idle_connections_per_host(2)
        // A connection that waits unused is a socket, nothing more; Podman keeps its end open.
        .max_idle_age(Duration::from_secs(3600))
        .build();
    Agent::with_parts(config, super::transport::UnixConnector { path }, super::transport::NoResolver)
}

/// One request; an answer of 400 or more becomes [`Error::Refused`].
fn request(agent: &Agent, method: &str, url: &str, body: Option<&Value>, limit: Option<Duration>) -> Result<Response<Body>, Error> {
    let answer = match (method, body) {
        ("POST", Some(body)) => agent.post(url).config().timeout_global(limit).build().send_json(body),
        ("POST", None) => agent.post(url).config().timeout_global(limit).build().send_empty(),
        ("DELETE", _) => agent.delete(url).config().timeout_global(limit).build().call(),
        _ => agent.get(url).config().timeout_global(limit).build().call(),
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
    let said = serde_json::from_str(&text).unwrap_or(ErrorBody { cause: String::new(), message: text });
    Err(Error::Refused { status, cause: said.cause, message: shown(&said.message).to_string() })
}

fn text(mut answer: Response<Body>, limit: Duration) -> Result<String, Error> {
    let bytes = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec().map_err(|error| fault(error, limit))?;
    String::from_utf8(bytes).map_err(|_| Error::Garbled("not UTF-8".to_owned()))
}

fn json<T: DeserializeOwned>(answer: Response<Body>, limit: Duration) -> Result<T, Error> {
    let text = text(answer, limit)?;
    serde_json::from_str(&text).map_err(|error| Error::Garbled(format!("{error} in {}", shown(&text))))
}

/// Texts of Podman's `cause` that callers branch on.
pub mod cause {
    /// No container of that name or id.
    pub const NO_CONTAINER: &str = "no such container";
    /// Another container has that name.
    pub const NAME_TAKEN: &str = "that name is already in use";
    /// The image is not on this machine; `create` never pulls.
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

fn fault(error: ureq::Error, limit: Duration) -> Error {
    match error {
        ureq::Error::Timeout(Timeout::Connect) => Error::Timeout(CONNECT.min(limit)),
        ureq::Error::Timeout(_) => Error::Timeout(limit),
        ureq::Error::Io(error) => match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::PermissionDenied => {
                Error::Unreachable(error.to_string())
            }
            std::io::ErrorKind::WouldBlock => Error::Timeout(CONNECT.min(limit)),
            _ => Error::Garbled(error.to_string()),
        },
        error => Error::Garbled(error.to_string()),
    }
}

/// Percent-encodes what is not unreserved in a URL.
fn query(text: &str) -> String {
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
