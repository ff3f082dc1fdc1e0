//! A throw-away station: PostgreSQL, Redis, Podman, hardware and workspace in one fresh directory below /tmp.
//!
//! All of it is real but the hardware, which is a directory in the shape of `/proc/asound`, `/sys` and `/dev/snd`. Parts
//! can be left out at first and started later, stopped, hung and started again; their addresses never change.
//!
//! Invariant: nothing outlives the station. A guard process (guard.sh) waits for the end of a pipe that this process
//! holds, then ends every process and removes every container, mount, network and file. It does so when the station is
//! dropped, when a test panics, and when this process is killed.

mod browser;
mod build;
mod controller;
mod dice;
mod http;
mod image;
mod peer;
mod peer_database;
mod pgbouncer;
mod podman;
mod postgres;
pub(crate) mod process;
mod proxy;
mod redis;
mod relay;
pub(crate) mod sound;

#[allow(unused_imports)]
pub(crate) use browser::Browser;
pub(crate) use build::Builder;
pub(crate) use controller::Controller;
#[allow(unused_imports)]
pub(crate) use dice::Dice;
#[allow(unused_imports)]
pub(crate) use peer::{CONTROLLER, PeerStation};
#[allow(unused_imports)]
pub(crate) use peer_database::{Contents, PeerVersion};
#[allow(unused_imports)]
pub(crate) use podman::{Activation, Happened, NETWORK, Podman, RECORDER};
pub(crate) use postgres::Postgres;
#[allow(unused_imports)]
pub(crate) use proxy::{Fault, Proxy};
pub(crate) use redis::Redis;
#[allow(unused_imports)]
pub(crate) use relay::{Address, Disturbance, Relay};

use super::tree::Tree;
use serde_json::Value;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// As the image and the unit of systemd set it.
pub(crate) const MALLOC: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0");

/// Checks that something is so for a whole time, e.g. while a server hangs for longer than all deadlines.
#[allow(dead_code)]
pub(crate) fn throughout(time: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(holds(), "not any more after {:?}: {what}", start.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Polls until `probe` finds something. Panics at the deadline, naming what was awaited and showing the Controller's log.
pub(crate) fn eventually<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        if start.elapsed() >= deadline {
            panic!("not within {deadline:?}: {what}{}", controller::log_tail());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Which parts a new station starts with.
pub(crate) struct Plan {
    postgres: bool,
    redis: bool,
    podman: bool,
    redis_for_recorders: bool,
    recorder_image: bool,
    podman_options: Vec<String>,
}

impl Plan {
    pub(crate) fn without_postgres(mut self) -> Plan {
        self.postgres = false;
        self
    }

    pub(crate) fn without_redis(mut self) -> Plan {
        self.redis = false;
        self
    }

    pub(crate) fn without_podman(mut self) -> Plan {
        self.podman = false;
        self
    }

    pub(crate) fn without_recorder_image(mut self) -> Plan {
        self.recorder_image = false;
        self
    }

    /// Lets containers reach Redis, by an address of the station's own on the loopback interface.
    pub(crate) fn redis_for_recorders(mut self) -> Plan {
        self.redis_for_recorders = true;
        self
    }

    /// Options for `podman-sandbox up` instead of `--fake-snd`, e.g. `["--user", "silva", "--fake-snd"]`.
    pub(crate) fn podman_options(mut self, options: &[&str]) -> Plan {
        self.podman_options = options.iter().map(|&option| option.to_owned()).collect();
        self
    }

    /// Podman's API service ends when it is idle for 5 s, and starts again when a client connects, as under systemd.
    pub(crate) fn activated(mut self) -> Plan {
        self.podman_options.push("--activate".to_owned());
        self
    }

    /// Makes the station; its parts come up side by side.
    pub(crate) fn up(self) -> Station {
        let dir = fresh_dir();
        let guard = Guard::watch(&dir);
        for sub in ["workspace", "workspace/recorder"] {
            fs::create_dir(dir.join(sub)).unwrap();
        }
        let mut station = Station {
            postgres: Postgres::new(&dir),
            redis: Redis::new(&dir, self.redis_for_recorders),
            podman: Podman::new(&dir, &self.podman_options),
            tree: Tree::new(&dir),
            guard,
            dir,
        };
        let Station { postgres, redis, podman, .. } = &mut station;
        std::thread::scope(|scope| {
            if self.postgres {
                scope.spawn(|| postgres.start());
            }
            if self.redis {
                scope.spawn(|| redis.start());
            }
            if self.podman {
                podman.start();
                if self.recorder_image {
                    podman.recorder_image();
                }
            }
        });
        station
    }
}

/// The parts of a running station.
pub(crate) struct Station {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) podman: Podman,
    pub(crate) tree: Tree,
    guard: Guard,
    dir: PathBuf,
}

impl Station {
    /// A plan with all parts; no card is plugged. `STATION_PODMAN` in the environment replaces the sandbox's options, so
    /// that all tests can run against another Podman (`--suite trixie --rootfs /var/tmp/trixie --fake-snd`).
    pub(crate) fn plan() -> Plan {
        let options = std::env::var("STATION_PODMAN").unwrap_or_else(|_| "--fake-snd".to_owned());
        Plan {
            postgres: true,
            redis: true,
            podman: true,
            redis_for_recorders: false,
            recorder_image: true,
            podman_options: options.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// A station with all parts.
    pub(crate) fn up() -> Station {
        Station::plan().up()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.dir.join("workspace")
    }

    /// All containers, see [`Podman::containers`].
    pub(crate) fn containers(&self) -> Vec<Value> {
        self.podman.containers()
    }

    /// A container by name, see [`Podman::inspect`].
    pub(crate) fn inspect(&self, name: &str) -> Option<Value> {
        self.podman.inspect(name)
    }

    /// An image with a shell command, see [`Podman::image`].
    pub(crate) fn image(&self, name: &str, command: &str) -> String {
        self.podman.image(name, command)
    }

    /// A program linked statically, as the Makefile makes it.
    pub(crate) fn static_program(&self, name: &str) -> PathBuf {
        image::static_program(name)
    }

    /// What a shell command in the sandbox of Podman prints.
    pub(crate) fn sandboxed(&self, command: &str) -> String {
        self.podman.shell(command)
    }

    /// The environment that points a Controller (or a Recorder) at this station.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.to_str().expect("our paths are ASCII").to_owned();
        vec![
            ("SILVASONIC_CONTAINER_SOCKET", path(self.podman.socket())),
            ("SILVASONIC_NETWORK", NETWORK.to_owned()),
            ("SILVASONIC_DB_HOST", path(self.postgres.socket_dir())),
            ("SILVASONIC_DB_PORT", self.postgres.port().to_string()),
            ("SILVASONIC_REDIS_URL", self.redis.url()),
            ("SILVASONIC_CONTROLLER_PORT", "0".to_owned()),
            ("SILVASONIC_WORKSPACE_PATH", path(&self.workspace())),
            ("SILVASONIC_RECORDER_IMAGE", RECORDER.to_owned()),
            ("SILVASONIC_HOST_ROOT", path(self.tree.root())),
        ]
    }

    /// The Controller's command line: this station's environment and none of ours, but for `overrides`.
    pub(crate) fn controller_command(&self, overrides: &[(&str, &str)]) -> Command {
        let built = || {
            option_env!("CARGO_BIN_EXE_silvasonic-controller")
                .map_or_else(|| image::profile_dir().join("silvasonic-controller"), PathBuf::from)
        };
        // Another build, perhaps behind an emulator: `make aarch64`.
        let other = std::env::var("STATION_CONTROLLER").ok();
        let mut words = other.iter().flat_map(|line| line.split_whitespace());
        let mut command = Command::new(words.next().map_or_else(built, PathBuf::from));
        command.args(words);
        self.dress(&mut command, overrides);
        command
    }

    /// The Controller's command line for a user without any rights, in the root directory.
    pub(crate) fn controller_command_of_nobody(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
        command.arg(self.controller_command(&[]).get_program());
        self.dress(&mut command, &[]);
        command.current_dir("/");
        command
    }

    /// The Controller's command line, executed by another program with these words before it; both have the same id.
    pub(crate) fn controller_command_after(&self, words: &[&str], overrides: &[(&str, &str)]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(self.controller_command(&[]).get_program());
        self.dress(&mut command, overrides);
        command
    }

    /// Gives a command this station's environment and none of ours, but for `overrides`, and its directory.
    pub(crate) fn dress(&self, command: &mut Command, overrides: &[(&str, &str)]) {
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.envs(self.environment()).envs(overrides.iter().copied()).current_dir(&self.dir);
    }

    /// The Controller's last heartbeat, while Redis has it.
    pub(crate) fn heartbeat(&self) -> Option<Value> {
        serde_json::from_str(&self.redis.get("silvasonic:status:controller")?).ok()
    }

    /// Starts the Controller.
    pub(crate) fn controller(&self) -> Controller {
        self.controller_with(&[])
    }

    /// Starts the Controller with some variables set otherwise.
    pub(crate) fn controller_with(&self, overrides: &[(&str, &str)]) -> Controller {
        Controller::spawn(self.controller_command(overrides))
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.guard.release();
    }
}

/// The process that tidies up, whatever happens to this one.
struct Guard(Child);

impl Guard {
    fn watch(dir: &Path) -> Guard {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/station/guard.sh");
        assert!(Path::new(script).exists(), "{script} is gone: without it nothing would tidy up");
        let mut command = Command::new("bash");
        command.arg(script).arg(dir).arg(podman::SANDBOX);
        // its own process group: what is sent to the tests' group, such as Ctrl-C, must not reach it
        command.process_group(0).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null());
        Guard(command.spawn().expect("bash"))
    }

    /// Closes the pipe and waits until all is gone.
    fn release(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A new directory below /tmp. Short, because Unix socket paths end at 107 bytes; readable, for the user postgres.
fn fresh_dir() -> PathBuf {
    loop {
        let dir = PathBuf::from(format!("/tmp/sv-{:06x}", random() & 0xff_ffff));
        match fs::create_dir(&dir) {
            Ok(()) => {
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
                return dir;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => panic!("{}: {e}", dir.display()),
        }
    }
}

/// A TCP port that is free now. Below the range that the kernel hands to outgoing connections, and never the same twice
/// in this process, so that it is still free when a service starts later.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let _ = NEXT.compare_exchange(0, 1 + (random() % u64::from(COUNT)) as u16, Ordering::Relaxed, Ordering::Relaxed);
    loop {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
