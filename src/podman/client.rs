//! A typed client for the part of Podman's REST API that the Controller needs.
//!
//! One [`Podman`] is cheap to clone; each request has a connection and a deadline of its own, and the first one after a
//! pause a longer one, as systemd may have to start the service for it. Answers
//! are mapped to results by their status and errors by their `cause`, as the status differs between versions (a name in
//! use is 500, an unknown image 500 in 4.3 and 404 in 5.x). This file decides nothing: it returns what Podman answered,
//! or why that is unknown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::decide::container::{Container, Engine, Run, State, Version};
use crate::podman::error::Error;
use crate::podman::http::{BASE, Buffers, Limit, agent, json, query, request, text};
use crate::podman::stream::StreamRequest;
use crate::text::shown;

/// Podman answers a ping in 0.1 ms, without access to the disk.
const PING: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_secs(5);
/// After so long without a request, a service that systemd starts on demand has ended; it waits for 5 s by default.
const AWAKE: Duration = Duration::from_secs(4);
/// Starting the service takes 2 to 9 s on a slow machine.
const WAKE: Duration = Duration::from_secs(15);
/// `info` starts conmon, the OCI runtime and dpkg: 0.3 s on a fast machine.
const INFO: Duration = Duration::from_secs(20);
/// Creating and starting use storage, network and cgroups; an SD card can be slow.
const CHANGE: Duration = Duration::from_secs(60);
/// Time for a stop in addition to that of the container itself.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// The events that change a container's row in the list. `cleanup` follows `died` if the container is not restarted.
const EVENTS: [&str; 8] = ["start", "died", "cleanup", "remove", "pause", "unpause", "restart", "rename"];
/// For requests.
const REQUEST: Buffers = Buffers { input: 16 << 10, output: 8 << 10 };
/// For a log that is read to its end.
const READ_LOG: Buffers = Buffers { input: 16 << 10, output: 1 << 10 };
/// For a stream that is idle most of the time: there is one for each container.
const STREAM: Buffers = Buffers { input: 4 << 10, output: 1 << 10 };
/// Enough for ten megabytes of log that are read to the end.
const LOG: Duration = Duration::from_secs(20);

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
    exited: Option<bool>,
}

/// A container that was created.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    /// Id of the new container.
    pub id: String,
    /// What Podman ignored or changed; `null` in 5.x if there is nothing.
    pub warnings: Option<Vec<String>>,
}

/// Whether a request changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did.
    Done,
    /// The container had the requested state already.
    Already,
    /// There is no such container.
    Gone,
}

/// The client. Clones share connections.
#[derive(Clone, Debug)]
pub struct Podman {
    agent: Agent,
    socket: PathBuf,
    rest: Arc<Mutex<Rest>>,
}

/// Whether the service may sleep: systemd starts it for the first connection, and it ends when there was none for a
/// time.
#[derive(Debug, Default)]
struct Rest {
    /// When the last request ended.
    last: Option<Instant>,
    /// Requests that may wait for the start of the service.
    waking: usize,
}

impl Rest {
    /// A request begins; whether it may have to wait for the service.
    fn begin(&mut self, now: Instant) -> bool {
        let wakes = self.waking > 0 || self.last.is_none_or(|last| now.saturating_duration_since(last) >= AWAKE);
        self.waking += usize::from(wakes);
        wakes
    }

    /// It has ended, also without an answer: a service that does not answer in that time hangs.
    fn end(&mut self, woke: bool, now: Instant) {
        self.waking = self.waking.saturating_sub(usize::from(woke));
        self.last = Some(now);
    }
}

impl Podman {
    /// A client for the service on `socket`. It connects when a request needs that, so the socket may be created later.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { agent: agent(socket.clone(), REQUEST, None), socket, rest: Arc::default() }
    }

    /// Follows the log of a container from this second on (0: from its beginning) until its current run ends, each
    /// frame with its time in whole seconds.
    ///
    /// There is no deadline; only a [`Closer`](crate::podman::stream::Closer) ends the wait. The connection costs a
    /// socket and 17 kB.
    #[must_use]
    pub fn follow_log(&self, id: &str, since: u64) -> StreamRequest {
        let url = format!("{}&follow=true", log_url(id, since));
        StreamRequest { agent: agent(self.socket.clone(), STREAM, None), url, limit: None }
    }

    /// Reads the log of a container from this second on (0: from its beginning) to its present end.
    #[must_use]
    pub fn read_log(&self, id: &str, since: u64) -> StreamRequest {
        StreamRequest { agent: agent(self.socket.clone(), READ_LOG, None), url: log_url(id, since), limit: Some(LOG) }
    }

    /// The events from now on of containers with this label value, each as a line of JSON. The stream ends with the
    /// service.
    ///
    /// Without those that do not change a container's row in the list, such as health checks.
    #[must_use]
    pub fn events(&self, label: &str, value: &str) -> StreamRequest {
        let filters = serde_json::json!({ "type": ["container"], "label": [format!("{label}={value}")], "event": EVENTS });
        let url = format!("{BASE}/events?stream=true&filters={}", query(&filters.to_string()));
        StreamRequest { agent: agent(self.socket.clone(), STREAM, Some(QUICK)), url, limit: None }
    }

    /// The events since this second of containers with this label value that report the end of a run, each as a line of
    /// JSON.
    ///
    /// # Errors
    /// [`Error`].
    pub fn past_ends(&self, label: &str, value: &str, since: u64) -> Result<String, Error> {
        let filters = serde_json::json!({ "type": ["container"], "label": [format!("{label}={value}")], "event": ["died"] });
        let answer =
            self.call("GET", &format!("/events?stream=false&since={since}&filters={}", query(&filters.to_string())), None, QUICK)?;
        text(answer, QUICK)
    }

    /// Checks that the service responds, and returns its version.
    ///
    /// # Errors
    /// [`Error`]; `Invalid` if another program than Podman answers.
    pub fn ping(&self) -> Result<Version, Error> {
        let answer = self.call("GET", "/_ping", None, PING)?;
        let version = answer.headers().get("Libpod-Api-Version").and_then(|value| value.to_str().ok()).and_then(Version::parse);
        let text = text(answer, PING)?;
        version.ok_or_else(|| Error::Invalid(format!("ping without a Podman version: {}", shown(&text))))
    }

    /// The properties of the engine. Slow (0.1-0.5 s): to be called once for each service.
    ///
    /// # Errors
    /// [`Error`].
    pub fn info(&self, version: Version) -> Result<Engine, Error> {
        self.examine(version).map(|(engine, _)| engine)
    }

    /// The same, and the control group controllers with which this engine can limit containers.
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
    /// [`Error`]; one invalid row makes the whole list invalid, as a container that is missing in it could be created
    /// again.
    pub fn list(&self, label: &str, value: &str) -> Result<Vec<Container>, Error> {
        let filters = serde_json::json!({ "label": [format!("{label}={value}")] }).to_string();
        let path = format!("/containers/json?all=true&filters={}", query(&filters));
        let rows: Vec<ListRow> = match self.get(&path, QUICK) {
            // A container was removed while Podman built the list.
            Err(error) if error.is_gone() => self.get(&path, QUICK)?,
            rows => rows?,
        };
        rows.into_iter()
            .map(|row| {
                let name =
                    row.names.into_iter().next().ok_or_else(|| Error::Invalid(format!("container {} without a name", shown(&row.id))))?;
                Ok(Container {
                    id: row.id,
                    name,
                    state: row.state,
                    labels: row.labels.unwrap_or_default().into_iter().collect(),
                    exit_code: row.exit_code,
                    out_of_memory: false,
                    // Podman marks only a run that it saw end.
                    is_interrupted: row.state == State::Exited && row.exited == Some(false),
                    pid: row.pid.try_into().unwrap_or(0),
                    started: row.started_at.try_into().unwrap_or(0),
                })
            })
            .collect()
    }

    /// All properties of one container, or `None` if there is none with that name or id.
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

    /// The current or last run of a container, or `None` if there is no such container.
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

    /// Whether the last run of a container ended because memory ran out, if Podman reports that; 4.3 never does.
    ///
    /// # Errors
    /// [`Error`].
    pub fn ran_out_of_memory(&self, id: &str) -> Result<bool, Error> {
        let inspect = self.inspect(id)?;
        Ok(inspect.and_then(|inspect| inspect.pointer("/State/OOMKilled")?.as_bool()).unwrap_or(false))
    }

    /// Creates a container. Names are unique, so two attempts cannot create two containers.
    ///
    /// # Errors
    /// [`Error`]; the causes that callers handle are in [`cause`](crate::podman::error::cause).
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

    /// Removes a container. With `patience`, one that runs is stopped first and has that much time to end; without it,
    /// Podman refuses to remove a container that runs.
    ///
    /// # Errors
    /// [`Error`].
    pub fn remove(&self, id: &str, patience: Option<Duration>) -> Result<Outcome, Error> {
        let force = patience.map_or_else(String::new, |patience| format!("?force=true&timeout={}", patience.as_secs()));
        self.change("DELETE", &format!("/containers/{}{force}", query(id)), CHANGE)
    }

    /// Whether the image is in Podman's local storage.
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
                let outcome = if answer.status() == 304 { Outcome::Already } else { Outcome::Done };
                // The connection can be used again after the answer was read to its end.
                text(answer, limit).map(|_| outcome)
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
        let rest = || self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let wakes = rest().begin(Instant::now());
        let limit = Limit { first: if wakes { limit.max(WAKE) } else { limit }, usual: limit };
        let answer = request(&self.agent, method, &format!("{BASE}{path}"), body, Some(limit));
        rest().end(wakes, Instant::now());
        answer
    }
}

fn log_url(id: &str, since: u64) -> String {
    let since = if since > 0 { format!("&since={since}") } else { String::new() };
    format!("{BASE}/containers/{}/logs?stdout=true&stderr=true&timestamps=true{since}", query(id))
}
