//! A Podman of its own (tests/podman-sandbox), or one that the environment names; asked over its Unix socket.

use super::{eventually, http, image};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The sandbox's program.
pub(crate) const SANDBOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/podman-sandbox");
/// The network that Recorders join.
pub(crate) const NETWORK: &str = "silvasonic-net";
/// The Recorder's image.
pub(crate) const RECORDER: &str = "localhost/silvasonic_recorder:latest";

const API: &str = "/v4.0.0/libpod";

/// Something that happened to a container.
#[derive(Clone, Debug)]
pub(crate) struct Happened {
    /// Since 1970.
    pub(crate) at: Duration,
    /// As Podman calls it: `create`, `rename`, `start`, `died`, `remove` …
    pub(crate) action: String,
    pub(crate) id: String,
    /// Its name then.
    pub(crate) name: String,
    /// In its label.
    pub(crate) device: String,
    /// Its exit code, where it `died`.
    pub(crate) code: String,
}

/// A run of an API service that a connection activated ([`Plan::activated`](super::Plan::activated)).
#[derive(Clone, Debug)]
pub(crate) struct Activation {
    /// Its process.
    pub(crate) id: u32,
    /// Since the boot.
    pub(crate) began: Duration,
    /// Likewise, and what it used, once it has ended.
    pub(crate) ended: Option<(Duration, ServiceUse)>,
}

/// What an ended service used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServiceUse {
    pub(crate) cpu: Duration,
    pub(crate) switches: u64,
}

/// One Podman. Its socket's path is known before it is started.
pub(crate) struct Podman {
    dir: PathBuf,
    socket: PathBuf,
    options: Vec<String>,
}

impl Podman {
    /// A sandbox below `station`; `options` go to `podman-sandbox up`.
    pub(super) fn new(station: &Path, options: &[String]) -> Podman {
        let dir = station.join("podman");
        // rootless, the sandbox puts the socket where only its user may look
        let socket = dir.join(if options.iter().any(|o| o == "--user") { "xdg/podman.sock" } else { "podman.sock" });
        Podman { dir, socket, options: options.to_vec() }
    }

    /// A Podman that somebody else started and that stays.
    pub(crate) fn external(socket: PathBuf) -> Podman {
        Podman { dir: PathBuf::new(), socket, options: Vec::new() }
    }

    /// For `SILVASONIC_CONTAINER_SOCKET`.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Brings the sandbox up with the network, and with no image yet.
    pub(crate) fn start(&self) {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.sandbox("up", &[&["--no-install", "--network", NETWORK][..], &options].concat());
    }

    /// Ends the API service; containers run on.
    pub(crate) fn stop_api(&self) {
        self.sandbox("stop-api", &[]);
    }

    /// Undoes [`Podman::stop_api`].
    pub(crate) fn start_api(&self) {
        self.sandbox("start-api", &[]);
    }

    /// Restarts the API service; containers run on.
    pub(crate) fn restart(&self) {
        self.sandbox("restart", &[]);
    }

    /// Freezes the API service: it takes requests and answers none. Not conmon, so containers run on.
    pub(crate) fn freeze_api(&self) {
        self.signal_api("STOP");
    }

    /// Undoes [`Podman::freeze_api`].
    pub(crate) fn thaw_api(&self) {
        self.signal_api("CONT");
    }

    /// Kills the API service on the spot, as a crash or a lack of memory does; containers run on.
    pub(crate) fn kill_api(&self) {
        // What is in the file is the activator, if there is one.
        let activated = self.activations().into_iter().rfind(|run| run.ended.is_none()).map(|run| run.id as i32);
        let written = || fs::read_to_string(self.dir.join("api.pid")).ok()?.trim().parse().ok();
        let id = activated.or_else(written).and_then(Pid::from_raw);
        kill_process(id.expect("the API service runs"), Signal::KILL).expect("SIGKILL to the API service");
    }

    /// Waits until somebody creates a container of that name, and kills the API service when its storage knows the container
    /// and its database does not yet; then starts it again. Whether that moment was met: the name can be neither used nor seen.
    pub(crate) fn tear_creation(&self, name: &str, deadline: Duration) -> bool {
        let stored = || {
            let files = ["overlay", "vfs"].map(|driver| self.dir.join(format!("storage/{driver}-containers/containers.json")));
            let text = files.iter().find_map(|file| fs::read(file).ok()).unwrap_or_default();
            let list: Value = serde_json::from_slice(&text).unwrap_or_default();
            let names = |container: &Value| container["names"].as_array().is_some_and(|names| names.iter().any(|own| own == name));
            list.as_array().and_then(|list| Some(list.iter().find(|container| names(container))?["id"].to_string()))
        };
        let (before, begun) = (stored(), Instant::now());
        // The moment is shorter than `eventually` looks.
        while stored().is_none_or(|id| before.as_ref() == Some(&id)) {
            if begun.elapsed() > deadline {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        self.kill_api();
        self.start_api();
        stored().is_some() && self.inspect(name).is_none()
    }

    fn signal_api(&self, signal: &str) {
        let service = format!("system service .*{}/", self.dir.display());
        assert!(Command::new("pkill").arg(format!("-{signal}")).arg("-f").arg(service).status().unwrap().success());
    }

    /// Each run of the API service since the start of the sandbox, which has to be one with `--activate`.
    pub(crate) fn activations(&self) -> Vec<Activation> {
        let journal = fs::read_to_string(self.dir.join("log/activations")).unwrap_or_default();
        let mut runs: Vec<Activation> = Vec::new();
        // The last line may be half-written.
        for line in journal.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let line: Value = serde_json::from_str(line).expect("a line of the activator");
            let at = Duration::from_secs_f64(line["at"].as_f64().expect("a time"));
            let id = line["pid"].as_u64().expect("a process") as u32;
            if line["what"] == "began" {
                runs.push(Activation { id, began: at, ended: None });
            } else if let Some(run) = runs.iter_mut().rfind(|run| run.id == id) {
                let cpu = Duration::from_secs_f64(line["cpu_s"].as_f64().expect("seconds"));
                run.ended = Some((at, ServiceUse { cpu, switches: line["switches"].as_u64().expect("a count") }));
            }
        }
        runs
    }

    /// The next runs of the API service begin only that long after the connection that activates them.
    pub(crate) fn slow_activation(&self, delay: Duration) {
        fs::write(self.dir.join("log/activations.delay"), delay.as_secs_f64().to_string()).expect("a file of the sandbox");
    }

    /// What a power failure leaves: no container runs, all of them still exist.
    pub(crate) fn reboot(&self) {
        self.sandbox("reboot", &[]);
    }

    /// Runs the podman program with these arguments; its standard output.
    pub(crate) fn exec(&self, args: &[&str]) -> String {
        let output = self.sandbox("exec", &[&["podman"], args].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a shell command with the podman program at hand; its standard output.
    pub(crate) fn shell(&self, command: &str) -> String {
        let output = self.sandbox("exec", &["sh", "-c", command]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn sandbox(&self, verb: &str, args: &[&str]) -> Output {
        assert!(!self.dir.as_os_str().is_empty(), "{verb}: this Podman is not ours");
        let mut command = Command::new(SANDBOX);
        // the working directory tells the guard whose process this is
        command.arg(verb).arg(&self.dir).args(args).current_dir(self.dir.parent().expect("a sandbox lies in a station"));
        let output = command.stdin(Stdio::null()).output().expect("podman-sandbox");
        assert!(output.status.success(), "podman-sandbox {verb} {args:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// One API request below `/v4.0.0/libpod`, e.g. `get("/_ping")`. Panics when the socket does not answer.
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, "application/json", b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.request("POST", path, "application/json", &body)
    }

    pub(crate) fn delete(&self, path: &str) -> (u16, Value) {
        self.request("DELETE", path, "application/json", b"")
    }

    fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> (u16, Value) {
        let ask = || {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.set_write_timeout(Some(Duration::from_secs(60)))?;
            http::request(&mut stream, method, &format!("{API}{path}"), content_type, body)
        };
        let (status, body) = ask().unwrap_or_else(|e| panic!("{method} {path} at {}: {e}", self.socket.display()));
        (status, http::json(&body))
    }

    /// All containers, also those that do not run, as the list call describes them.
    pub(crate) fn containers(&self) -> Vec<Value> {
        match self.get("/containers/json?all=true") {
            (200, Value::Array(list)) => list,
            // one was removed while the list was made
            (500, error) if error["cause"] == "no such container" => self.containers(),
            other => panic!("list of containers: {other:?}"),
        }
    }

    /// What a container keeps while nobody touches it: its id, and when it was started last.
    pub(crate) fn mark(&self, name: &str) -> Option<(Value, Value)> {
        self.inspect(name).map(|inspect| (inspect["Id"].clone(), inspect["State"]["StartedAt"].clone()))
    }

    /// What happened to containers since then, in order.
    pub(crate) fn events(&self, since: SystemTime) -> Vec<Happened> {
        let seconds = since.duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
        let (status, text) = self.get(&format!("/events?stream=false&since={seconds}"));
        assert_eq!(status, 200, "events: {text}");
        let list = match text {
            Value::String(lines) => lines.lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect(),
            one => vec![one],
        };
        let attribute = |event: &Value, name: &str| event["Actor"]["Attributes"][name].as_str().unwrap_or_default().to_owned();
        let mut events: Vec<Happened> = list
            .iter()
            .filter(|event| event["Type"] == "container")
            .map(|event| Happened {
                at: Duration::from_nanos(event["timeNano"].as_u64().expect("a time")),
                action: event["Action"].as_str().unwrap_or_default().to_owned(),
                id: event["Actor"]["ID"].as_str().unwrap_or_default().to_owned(),
                name: attribute(event, "name"),
                device: attribute(event, "io.silvasonic.device_id"),
                code: attribute(event, "containerExitCode"),
            })
            .collect();
        events.sort_by_key(|event| event.at);
        events
    }

    /// The container of that name, if there is one.
    pub(crate) fn inspect(&self, name: &str) -> Option<Value> {
        match self.get(&format!("/containers/{}/json", http::encode(name))) {
            (200, container) => Some(container),
            (404, _) => None,
            // it is being removed at this moment
            (500, error) if error["cause"] == "no such container" => None,
            other => panic!("inspect {name}: {other:?}"),
        }
    }

    /// Makes and starts a container of an image, as somebody other than the Controller would.
    pub(crate) fn run(&self, name: &str, image: &str, labels: &Value) -> String {
        let body = json!({"name": name, "image": image, "labels": labels, "Networks": {NETWORK: {}}, "netns": {"nsmode": "bridge"}});
        let (status, made) = self.post("/containers/create", &body);
        assert_eq!(status, 201, "create {name}: {made}");
        let (status, started) = self.post(&format!("/containers/{name}/start"), &Value::Null);
        assert_eq!(status, 204, "start {name}: {started}");
        made["Id"].as_str().expect("an id").to_owned()
    }

    pub(crate) fn has_image(&self, name: &str) -> bool {
        self.get(&format!("/images/{name}/exists")).0 == 204
    }

    /// Makes the network in a Podman that is not ours; true if it was not there before.
    pub(crate) fn create_network(&self) -> bool {
        if self.get(&format!("/networks/{NETWORK}/exists")).0 == 204 {
            return false;
        }
        let (status, answer) = self.post("/networks/create", &json!({"name": NETWORK, "driver": "bridge", "dns_enabled": true}));
        assert!(status < 300, "network {NETWORK}: {answer}");
        true
    }

    /// Makes the Recorder's image from the program of this source tree.
    pub(crate) fn recorder_image(&self) {
        self.import(RECORDER, image::recorder(), &["ENTRYPOINT [\"/silvasonic-recorder\"]"]);
    }

    /// Makes an image of a Recorder that records, with this configuration of ALSA instead of this machine's.
    pub(crate) fn recording_image(&self, config: Option<&str>) {
        let heap = format!("ENV {}={}", super::MALLOC.0, super::MALLOC.1);
        self.import(RECORDER, &image::recording(config), &["ENTRYPOINT [\"/silvasonic-recorder\"]", &heap]);
    }

    /// Makes an image `localhost/NAME:latest` whose containers run this shell command; the image's full name.
    pub(crate) fn image(&self, name: &str, command: &str) -> String {
        let full = format!("localhost/{name}:latest");
        let command = format!("CMD {}", json!(["/bin/sh", "-c", command]));
        self.import(&full, image::busybox(), &[&command, "ENV PATH=/bin"]);
        full
    }

    /// Makes an image `localhost/NAME:latest` whose containers run this program; the image's full name.
    pub(crate) fn program_image(&self, name: &str, program: &str) -> String {
        let full = format!("localhost/{name}:latest");
        self.import(&full, image::busybox(), &[&format!("CMD {}", json!([program]))]);
        full
    }

    fn import(&self, name: &str, archive: &[u8], changes: &[&str]) {
        let mut path = format!("/images/import?reference={}", http::encode(name));
        for change in changes {
            path.push_str("&changes=");
            path.push_str(&http::encode(change));
        }
        let (status, answer) = self.request("POST", &path, "application/x-tar", archive);
        assert_eq!(status, 200, "import of {name}: {answer}");
    }

    /// Waits until exactly these containers run, and no other one.
    pub(crate) fn wait_running(&self, deadline: Duration, names: &[impl AsRef<str>]) {
        let mut wanted: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        wanted.sort_unstable();
        eventually(deadline, &format!("exactly {wanted:?} run"), || {
            let mut running: Vec<String> = self
                .containers()
                .iter()
                .filter(|c| c["State"] == "running")
                .filter_map(|c| c["Names"][0].as_str().map(str::to_owned))
                .collect();
            running.sort();
            (running == wanted).then_some(())
        });
    }
}
