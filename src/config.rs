//! The settings of the program. Only this file reads the environment.
//!
//! [`Config::read`] reads every variable of [`VARIABLES`] once, at start, and reports all faults together, each with
//! the variable, its value, the allowed values, and what to write instead if the mistake is a common one. An empty value
//! counts as unset, because Compose files pass unset variables as empty ones. White space at the ends of a value, such
//! as the carriage return of a file from Windows, is ignored, except in the password. Invariant: no fault contains a
//! secret (the database password, a password in the Redis URL).

use crate::sorted_map::SortedMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::collect::sort_by_key;
use crate::decide::pressure::ShedLimits;
use crate::decide::spec::RecorderSettings;
use crate::decide::worker::{WorkerSettings, cpu_quota, memory_bytes};
use crate::redis_url;
use crate::text::is_invisible;

/// Every variable with its default and meaning, in the order of the README's table.
pub const VARIABLES: &[(&str, &str, &str)] = &[
    ("SILVASONIC_CONTAINER_SOCKET", "/var/run/container.sock", "Podman API socket"),
    ("SILVASONIC_NETWORK", "silvasonic-net", "network that Recorders and workers join"),
    ("SILVASONIC_DB_HOST", "localhost", "PostgreSQL host, or a socket directory when it starts with `/`; older name POSTGRES_HOST"),
    ("SILVASONIC_DB_PORT", "5432", "PostgreSQL port; older name POSTGRES_PORT"),
    ("POSTGRES_USER", "silvasonic", "database user"),
    ("POSTGRES_PASSWORD", "silvasonic", "database password"),
    ("POSTGRES_DB", "silvasonic", "database name"),
    ("SILVASONIC_REDIS_URL", "redis://localhost:6379/0", "Redis"),
    ("SILVASONIC_CONTROLLER_PORT", "9100", "port of /healthy and of the status page; 0 takes any free port and logs it"),
    ("SILVASONIC_STATUS_PAGE", "true", "whether `/`, `/status.json` and `/metrics` are served"),
    ("SILVASONIC_WORKSPACE_PATH", "/mnt/data/workspace", "workspace on the host; Recorder data is below `recorder/`"),
    ("SILVASONIC_RECORDER_WORKSPACE_LOCAL", "<workspace>/recorder", "the same Recorder folder as the Controller sees it"),
    (
        "SILVASONIC_RECORDER_REDIS_URL",
        "from SILVASONIC_REDIS_URL",
        "Redis as containers reach it; `localhost` in SILVASONIC_REDIS_URL becomes `host.containers.internal`",
    ),
    ("SILVASONIC_RECORDER_IMAGE", "localhost/silvasonic_recorder:latest", "Recorder image; never pulled"),
    ("SILVASONIC_RECORDER_MEMORY_LIMIT", "512m", "memory limit of a Recorder: bytes, or with b, k, m, g; at least 6m"),
    ("SILVASONIC_RECORDER_CPU_LIMIT", "1.0", "CPU limit of a Recorder in cores, 0.01-512"),
    ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "5", "Podman's own on-failure retries, 0-100; the Controller itself always retries"),
    (
        "SILVASONIC_RECORDER_RESERVE_MB",
        "that of the image, 512",
        "free space of the workspace's disk, in 10^6 bytes, that Recorders never write to, 0-1000000",
    ),
    ("SILVASONIC_RECORDER_PRIVILEGED", "true", "whether Recorders are privileged containers; false: access to `/dev/snd` only"),
    ("SILVASONIC_RECONCILE_INTERVAL_S", "1.0", "tick of the main loop in seconds, 0.1-60"),
    ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "3.0", "seconds that a disconnected microphone still counts as online, 0-3600"),
    ("SILVASONIC_HEARTBEAT_INTERVAL_S", "10.0", "seconds between heartbeats, 1-60"),
    (
        "SILVASONIC_HOST_ROOT",
        "/host if /host/sys exists, else /",
        "prefix of `proc/asound` and `sys`; `check` also looks for `dev/snd` below it",
    ),
    (
        "SILVASONIC_CONFIG_DIR",
        "/app/config if it holds any of them, else built-in copy",
        "folder with defaults.yml, defaults.override.yml, profiles/*.yml and workers/*.yml",
    ),
    (
        "SILVASONIC_FALLBACK_PROFILE",
        "none",
        "profile with which a microphone is enrolled automatically that no profile matches, such as `generic_usb`",
    ),
    (
        "SILVASONIC_CAPTURE_TIMEOUT_S",
        "60",
        "seconds without frames after which a Recorder that has captured is replaced, 0-86400; 0 = never",
    ),
    ("SILVASONIC_USB_RESET", "false", "whether its USB device is authorised again if two replacements do not help; needs a writable `sys`"),
    ("SILVASONIC_SHED_MEMORY_PERCENT", "0", "use of the host's memory at which workers are stopped, 0-100; 0 = never"),
    ("SILVASONIC_SHED_DISK_PERCENT", "0", "use of the workspace's disk at which workers are stopped, 0-100; 0 = never"),
    ("SILVASONIC_OWNER", "controller", "owner label: only containers that carry it are touched"),
    ("SILVASONIC_SHUTDOWN", "stop", "what SIGTERM does to Recorders and workers: `stop`, or `keep` to adopt them at the next start"),
    ("SILVASONIC_SHUTDOWN_TIMEOUT_S", "9", "seconds for the whole shutdown, 3-600; Recorders get 10 s of them, or what is left"),
    ("SILVASONIC_HISTORY_DAYS", "0", "age in days at which rows of `capture_sessions` are deleted, at most 36500; 0: never"),
    ("SILVASONIC_LOG_LEVEL", "info", "error, warn, info, debug or trace, in any case; also `warning` and `critical`"),
    (
        "SILVASONIC_LOG_FORMAT",
        "text",
        "`text`, or `json`: one object a line with timestamp, level and event; SILVASONIC_DEVELOPMENT_MODE=false means json, too",
    ),
];

/// Variables of the Python Controller that have no meaning here; its stations may set them.
const WITHOUT_MEANING: [&str; 4] = [
    "SILVASONIC_CONTROLLER_LOG_STARTUP_S",
    "SILVASONIC_CONTROLLER_LOG_SUMMARY_INTERVAL_S",
    "SILVASONIC_CONTROLLER_MONITOR_POLL_INTERVAL_S",
    "SILVASONIC_LOG_FORWARDER_POLL_INTERVAL_S",
];

/// Where a container sees the trees of the host, and the folder of settings and profiles, if they are mounted. Compose
/// creates a folder that is missing on the host, so an empty one counts as absent.
const MOUNTED_HOST: &str = "/host";
const MOUNTED_CONFIG: &str = "/app/config";
/// What a folder of settings and profiles can hold.
const CONFIG_PARTS: [&str; 6] = ["defaults.yml", "defaults.yaml", "defaults.override.yml", "defaults.override.yaml", "profiles", "workers"];

/// The name that Podman gives the host in containers.
const HOST_OF_CONTAINERS: &str = "host.containers.internal";

/// Set by a process that replaces itself: the id of that process, which stays the same. Not a setting.
pub const REPLACED: &str = "SILVASONIC_REPLACED";

/// The settings of the service of the host, which commands at a terminal use if they have none of their own.
pub const SERVICE_SETTINGS: &str = "/etc/silvasonic/controller.env";

/// Whether a folder holds settings, profiles or workers.
pub fn has_config(folder: &Path, exists: impl Fn(&Path) -> bool) -> bool {
    CONFIG_PARTS.iter().any(|part| exists(&folder.join(part)))
}

/// The variables in an `EnvironmentFile=` of systemd; the last of equal names counts.
#[must_use]
pub fn parse_environment(text: &str) -> Vec<(String, OsString)> {
    let variable = |line: &str| {
        let (name, value) = line.trim().split_once('=').filter(|_| !line.trim_start().starts_with(['#', ';']))?;
        let value = value.trim();
        let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        Some((name.trim().to_owned(), OsString::from(value)))
    };
    text.lines().filter_map(variable).collect()
}

/// Valid settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Podman API socket.
    pub socket: PathBuf,
    /// How to connect to PostgreSQL.
    pub database: DatabaseSettings,
    /// Redis URL, possibly with a password.
    pub redis_url: String,
    /// Port of `/healthy`; 0 = any.
    pub port: u16,
    /// Whether more than `/healthy` is served.
    pub status_page: bool,
    /// Settings of all Recorder containers.
    pub recorder: RecorderSettings,
    /// Settings of all workers.
    pub workers: WorkerSettings,
    /// When workers are stopped.
    pub shed: ShedLimits,
    /// Path of the Recorder folder in this process's file system.
    pub workspace_local: PathBuf,
    /// Tick of the main loop.
    pub interval: Duration,
    /// How long a disconnected microphone still counts as online.
    pub grace: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Prefix of the host's `proc/asound` and `sys`.
    pub host_root: PathBuf,
    /// How long a capture may stand still; zero = for ever.
    pub capture_timeout: Duration,
    /// Whether USB devices may be authorised again.
    pub usb_reset: bool,
    /// Folder with defaults and profiles; without it, the built-in copies are used.
    pub config_dir: Option<PathBuf>,
    /// Profile for microphones that no profile matches.
    pub fallback_profile: Option<String>,
    /// What a termination signal does to Recorders.
    pub shutdown: Shutdown,
    /// All of the shutdown.
    pub shutdown_timeout: Duration,
    /// Age in days at which sessions are deleted; 0 = never.
    pub history_days: u16,
    /// Lowest level that is logged.
    pub log_level: LevelFilter,
    /// Form of the lines that are logged.
    pub log_format: LogFormat,
    /// Variables that are set, but have no meaning here.
    pub without_meaning: Vec<&'static str>,
    /// systemd, if it started this program with a notification socket.
    pub supervisor: Option<Supervisor>,
    /// Folder of the host for state of the service, if systemd provides one.
    pub state_dir: Option<PathBuf>,
    /// How this process began.
    pub launch: Launch,
}

/// How to connect to PostgreSQL.
#[derive(Clone)]
pub struct DatabaseSettings {
    /// Host name, address, or socket directory.
    pub host: String,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Password.
    pub password: String,
    /// Database name.
    pub name: String,
}

impl DatabaseSettings {
    /// The variables with which a container connects. The port is left out if it is the usual one: the Python Controller
    /// sets none.
    fn as_containers_reach_it(&self) -> SortedMap<String, String> {
        let is_local = self.host.starts_with('/') || ["localhost", "127.0.0.1", "::1"].contains(&self.host.to_ascii_lowercase().as_str());
        let host = if is_local { HOST_OF_CONTAINERS } else { &self.host };
        let port = (self.port != 5432).then(|| ("SILVASONIC_DB_PORT", self.port.to_string()));
        let variables = [
            ("SILVASONIC_DB_HOST", host.to_owned()),
            ("POSTGRES_USER", self.user.clone()),
            ("POSTGRES_PASSWORD", self.password.clone()),
            ("POSTGRES_DB", self.name.clone()),
        ];
        variables.into_iter().chain(port).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What looks like a mistake in the password, which is used as given. Does not contain the password.
    #[must_use]
    pub fn password_flaw(&self) -> Option<String> {
        flaw(&self.password).map(|flaw| format!("POSTGRES_PASSWORD {flaw}"))
    }
}

impl fmt::Debug for DatabaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.name)
    }
}

/// What a termination signal does to Recorders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Stop and remove them.
    Stop,
    /// Keep them running; the next start adopts them.
    Keep,
}

/// Form of the lines that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How a process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// Somebody started it.
    First,
    /// It replaced itself, see [`crate::replace`]. The lock may be its standard input.
    Replacement,
}

/// The notification socket of systemd, see `sd_notify(3)`.
#[derive(Clone, Debug)]
pub struct Supervisor {
    /// Address of the socket.
    pub address: SocketAddr,
    /// Watchdog timeout, if the watchdog is enabled.
    pub watchdog: Option<Duration>,
}

impl Supervisor {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; `None` without a usable socket. systemd sets these
    /// variables, not the user, so malformed ones are ignored.
    #[must_use]
    pub fn new(socket: &OsStr, usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Self> {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            [b'/', ..] => SocketAddr::from_pathname(socket),
            // A vsock address is passed to a virtual machine only, not to its services.
            _ => return None,
        };
        let is_for_us = pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
        let watchdog = usec.and_then(|usec| usec.parse().ok()).filter(|usec| is_for_us && *usec > 0).map(Duration::from_micros);
        Some(Self { address: address.ok()?, watchdog })
    }
}

/// A malformed variable.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingFault {
    name: &'static str,
    value: String,
    expected: &'static str,
    /// What to write instead.
    hint: Option<String>,
}

impl fmt::Display for SettingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {:?}", self.name, self.expected, self.value)?;
        self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

impl Config {
    /// Reads all settings through `lookup`, for a machine on which no optional folder exists.
    ///
    /// # Errors
    /// Every malformed variable, in the table's order.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, Vec<SettingFault>> {
        Self::read_with(lookup, |_| false)
    }

    /// Reads all settings through `lookup` (the process passes `std::env::var_os`). Two defaults depend on whether a
    /// path `exists` (the process passes `Path::exists`).
    ///
    /// # Errors
    /// Every malformed variable, in the table's order.
    pub fn read_with(lookup: impl Fn(&str) -> Option<OsString>, exists: impl Fn(&Path) -> bool) -> Result<Self, Vec<SettingFault>> {
        let mut env = Reader { lookup, faults: Vec::new() };
        let workspace = env.path("SILVASONIC_WORKSPACE_PATH", "/mnt/data/workspace");
        let redis_url = env.redis_url("SILVASONIC_REDIS_URL", "redis://localhost:6379/0");
        let recorder_redis_url = env.redis_url("SILVASONIC_RECORDER_REDIS_URL", &from_containers(&redis_url));
        let mut config = Config {
            workers: WorkerSettings {
                network: String::new(),
                owner: String::new(),
                workspace: workspace.clone(),
                redis_url: recorder_redis_url.clone(),
                database: SortedMap::new(),
            },
            shed: ShedLimits { memory: env.percent("SILVASONIC_SHED_MEMORY_PERCENT"), disk: env.percent("SILVASONIC_SHED_DISK_PERCENT") },
            socket: env.path("SILVASONIC_CONTAINER_SOCKET", "/var/run/container.sock"),
            database: DatabaseSettings {
                host: env.text("SILVASONIC_DB_HOST", Some("POSTGRES_HOST"), "localhost", HOST, is_host),
                port: env.parsed("SILVASONIC_DB_PORT", Some("POSTGRES_PORT"), "5432", "a port number from 1 to 65535", |text| {
                    text.parse().ok().filter(|port| *port > 0)
                }),
                user: env.text("POSTGRES_USER", None, "silvasonic", PLAIN, is_plain),
                password: env.convert(("POSTGRES_PASSWORD", None), "silvasonic", UTF8, Kind::Password, |text| Some(text.to_owned())),
                name: env.text("POSTGRES_DB", None, "silvasonic", PLAIN, is_plain),
            },
            port: env.parsed("SILVASONIC_CONTROLLER_PORT", None, "9100", "a port number from 0 to 65535", |text| text.parse().ok()),
            status_page: env.parsed("SILVASONIC_STATUS_PAGE", None, "true", "true or false", |text| text.parse().ok()),
            recorder: RecorderSettings {
                image: env.text("SILVASONIC_RECORDER_IMAGE", None, "localhost/silvasonic_recorder:latest", PLAIN, is_plain),
                network: env.text("SILVASONIC_NETWORK", None, "silvasonic-net", NETWORK, is_network),
                owner: env.text("SILVASONIC_OWNER", None, "controller", NAME, is_name),
                workspace: workspace.clone(),
                redis_url: recorder_redis_url,
                memory: env.parsed(
                    "SILVASONIC_RECORDER_MEMORY_LIMIT",
                    None,
                    "512m",
                    "a size of at least 6m, such as 512m, 1g or 536870912",
                    memory_bytes,
                ),
                cpu_quota: env.parsed("SILVASONIC_RECORDER_CPU_LIMIT", None, "1.0", "a number of cores from 0.01 to 512", |text| {
                    number_within(text, 0.01, 512.0).map(cpu_quota)
                }),
                restart_tries: env.parsed("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", None, "5", "a whole number from 0 to 100", |text| {
                    text.parse().ok().filter(|tries| *tries <= 100)
                }),
                reserve_mb: env.parsed("SILVASONIC_RECORDER_RESERVE_MB", None, "", "a whole number from 0 to 1000000", reserve_mb),
                privileged: env.parsed("SILVASONIC_RECORDER_PRIVILEGED", None, "true", "true or false", |text| text.parse().ok()),
            },
            workspace_local: env.optional_path("SILVASONIC_RECORDER_WORKSPACE_LOCAL").unwrap_or_else(|| workspace.join("recorder")),
            interval: env.seconds("SILVASONIC_RECONCILE_INTERVAL_S", "1.0", 0.1, 60.0, "seconds from 0.1 to 60"),
            grace: env.seconds("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "3.0", 0.0, 3600.0, "seconds from 0 to 3600"),
            heartbeat: env.seconds("SILVASONIC_HEARTBEAT_INTERVAL_S", "10.0", 1.0, 60.0, "seconds from 1 to 60"),
            host_root: env.optional_path("SILVASONIC_HOST_ROOT").unwrap_or_else(|| {
                let mounted = Path::new(MOUNTED_HOST);
                if exists(&mounted.join("sys")) { mounted } else { Path::new("/") }.to_owned()
            }),
            capture_timeout: env.seconds("SILVASONIC_CAPTURE_TIMEOUT_S", "60", 0.0, 86_400.0, "seconds from 0 to 86400"),
            usb_reset: env.parsed("SILVASONIC_USB_RESET", None, "false", "true or false", |text| text.parse().ok()),
            config_dir: env
                .optional_path("SILVASONIC_CONFIG_DIR")
                .or_else(|| Some(PathBuf::from(MOUNTED_CONFIG)).filter(|folder| has_config(folder, &exists))),
            fallback_profile: env.parsed(
                "SILVASONIC_FALLBACK_PROFILE",
                None,
                "",
                "the slug of a profile: 1-255 printable characters without spaces",
                |text| {
                    if text.is_empty() { Some(None) } else { is_plain(text).then(|| Some(text.to_owned())) }
                },
            ),
            shutdown: env.parsed("SILVASONIC_SHUTDOWN", None, "stop", "stop or keep", |text| match text {
                "stop" => Some(Shutdown::Stop),
                "keep" => Some(Shutdown::Keep),
                _ => None,
            }),
            shutdown_timeout: env.seconds("SILVASONIC_SHUTDOWN_TIMEOUT_S", "9", 3.0, 600.0, "seconds from 3 to 600"),
            history_days: env.parsed("SILVASONIC_HISTORY_DAYS", None, "0", "a whole number of days from 0 to 36500", |text| {
                text.parse().ok().filter(|days| *days <= 36_500)
            }),
            log_level: env.parsed("SILVASONIC_LOG_LEVEL", None, "info", "error, warn, info, debug or trace", log_level),
            log_format: env.log_format(),
            without_meaning: env.set_among(&WITHOUT_MEANING),
            redis_url,
            supervisor: env.supervisor(),
            state_dir: env.state_dir(),
            launch: env.launch(),
        };
        config.workers.network.clone_from(&config.recorder.network);
        config.workers.owner.clone_from(&config.recorder.owner);
        config.workers.database = config.database.as_containers_reach_it();
        if env.faults.is_empty() {
            Ok(config)
        } else {
            sort_by_key(&mut env.faults, |fault| VARIABLES.iter().position(|(name, ..)| *name == fault.name));
            Err(env.faults)
        }
    }
}

/// How a value is used and shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Without white space at its ends.
    Public,
    /// Likewise, but a fault does not show it: it may contain a password.
    Url,
    /// As given, as a password may begin with a space. A fault does not show it.
    Password,
}

/// The name of a variable, and its older name.
type Name = (&'static str, Option<&'static str>);

struct Reader<F> {
    lookup: F,
    faults: Vec<SettingFault>,
}

const UTF8: &str = "UTF-8 text";
const NAME: &str = "1-63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit";
const NETWORK: &str = "the name of a Podman network, not a mode such as host, none or bridge: 1-63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit";
const PLAIN: &str = "1-255 printable characters without spaces";
const HOST: &str = "a host name, an address or an absolute socket directory";
const ABSOLUTE: &str = "an absolute path";

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    /// The value, or the default if it is unset, with the variable's name. `None` if it is not UTF-8; a fault is
    /// recorded.
    fn raw(&mut self, (name, older): Name, default: &str, kind: Kind) -> Option<(&'static str, String)> {
        for name in std::iter::once(name).chain(older) {
            let Some(value) = (self.lookup)(name) else { continue };
            match value.into_string() {
                Ok(text) => {
                    let text = if kind == Kind::Password { &text } else { text.trim() };
                    if !text.is_empty() {
                        return Some((name, text.to_owned()));
                    }
                }
                Err(raw) => {
                    self.fault(name, &raw.to_string_lossy(), UTF8, kind, None);
                    return None;
                }
            }
        }
        Some((name, default.to_owned()))
    }

    fn fault(&mut self, name: &'static str, value: &str, expected: &'static str, kind: Kind, hint: Option<String>) {
        let value = if kind == Kind::Public { value } else { "(hidden)" }.to_owned();
        self.faults.push(SettingFault { name, value, expected, hint });
    }

    fn convert<T>(&mut self, names: Name, default: &str, expected: &'static str, kind: Kind, parse: impl Fn(&str) -> Option<T>) -> T {
        if let Some((name, text)) = self.raw(names, default, kind) {
            let flaw = flaw(&text).filter(|_| kind != Kind::Password);
            match parse(&text) {
                Some(value) if flaw.is_none() => return value,
                _ => {}
            }
            let hint = flaw.map(|flaw| format!("the value {flaw}")).or_else(|| hint(&text, kind).map(str::to_owned));
            self.fault(name, &text, expected, kind, hint);
        }
        // The program ends because of the fault. Until then the default is used, to find the faults of other variables.
        parse(default).unwrap_or_else(|| unreachable!("the default of {} is valid", names.0))
    }

    fn parsed<T>(
        &mut self,
        name: &'static str,
        older: Option<&'static str>,
        default: &str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        self.convert((name, older), default, expected, Kind::Public, parse)
    }

    fn text(
        &mut self,
        name: &'static str,
        older: Option<&'static str>,
        default: &str,
        expected: &'static str,
        valid: fn(&str) -> bool,
    ) -> String {
        self.parsed(name, older, default, expected, |text| valid(text).then(|| text.to_owned()))
    }

    fn seconds(&mut self, name: &'static str, default: &str, least: f64, most: f64, expected: &'static str) -> Duration {
        self.parsed(name, None, default, expected, |text| number_within(text, least, most).map(Duration::from_secs_f64))
    }

    fn percent(&mut self, name: &'static str) -> u8 {
        self.parsed(name, None, "0", "a whole number from 0 to 100", |text| text.parse().ok().filter(|percent| *percent <= 100))
    }

    fn path(&mut self, name: &'static str, default: &str) -> PathBuf {
        self.parsed(name, None, default, ABSOLUTE, absolute_path)
    }

    fn redis_url(&mut self, name: &'static str, default: &str) -> String {
        let expected = "redis://[user:password@]host[:port][/number] or unix:///path";
        self.convert((name, None), default, expected, Kind::Url, |text| {
            redis_url::parse(text).filter(|_| !is_cut_short(text)).map(|_| text.to_owned())
        })
    }

    /// Without the variable, the Python program's switch between colours and JSON decides.
    fn log_format(&mut self) -> LogFormat {
        let mode = self.raw(("SILVASONIC_DEVELOPMENT_MODE", None), "true", Kind::Public).map(|(_, mode)| mode.to_ascii_lowercase());
        let is_production = mode.is_some_and(|mode| ["false", "0", "no", "off"].contains(&mode.as_str()));
        let default = if is_production { "json" } else { "text" };
        self.parsed("SILVASONIC_LOG_FORMAT", None, default, "text or json", |text| match text.to_ascii_lowercase().as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        })
    }

    /// Those of these variables that are set.
    fn set_among(&self, names: &[&'static str]) -> Vec<&'static str> {
        names.iter().copied().filter(|name| (self.lookup)(name).is_some_and(|value| !value.is_empty())).collect()
    }

    fn supervisor(&self) -> Option<Supervisor> {
        let text = |name| (self.lookup)(name).and_then(|value| value.into_string().ok());
        let socket = (self.lookup)("NOTIFY_SOCKET")?;
        Supervisor::new(&socket, text("WATCHDOG_USEC").as_deref(), text("WATCHDOG_PID").as_deref(), std::process::id())
    }

    /// The first folder of `StateDirectory=`, which systemd passes.
    fn state_dir(&self) -> Option<PathBuf> {
        let folders = (self.lookup)("STATE_DIRECTORY")?.into_string().ok()?;
        absolute_path(folders.split(':').next()?)
    }

    fn launch(&self) -> Launch {
        let is_own = |id: OsString| id.to_str() == Some(std::process::id().to_string().as_str());
        if (self.lookup)(REPLACED).is_some_and(is_own) { Launch::Replacement } else { Launch::First }
    }

    fn optional_path(&mut self, name: &'static str) -> Option<PathBuf> {
        self.parsed(name, None, "", ABSOLUTE, |text| if text.is_empty() { Some(None) } else { absolute_path(text).map(Some) })
    }
}

/// What looks like a mistake at the ends of a value, as a phrase that follows the name of the value.
fn flaw(text: &str) -> Option<String> {
    let quotes = ['"', '\''].into_iter().any(|quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote));
    if quotes {
        return Some("is in quotes: remove them, unless they belong to it".to_owned());
    }
    let suspicious = |c: &char| c.is_whitespace() || is_invisible(*c);
    let last = text.chars().next_back().filter(suspicious).map(|c| ("ends", c));
    let (place, c) = last.or_else(|| text.chars().next().filter(suspicious).map(|c| ("begins", c)))?;
    let kind = match c {
        c if c.is_control() => "a control character",
        c if c.is_whitespace() => "white space",
        _ => "an invisible character",
    };
    Some(format!("{place} with {kind} (U+{:04X}): remove it, unless it belongs to it", u32::from(c)))
}

/// What to write instead of a malformed value.
fn hint(text: &str, kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Url if is_cut_short(text) => Some("in a user or password write `#` as %23, `/` as %2F and `?` as %3F"),
        Kind::Public if text == "~" || text.starts_with("~") && text.contains('/') || text.starts_with('$') => {
            Some("`~` and `$` are not expanded: write the whole path, such as /home/USER/data")
        }
        _ => None,
    }
}

/// Whether a URL ends at a character of the password that is not escaped: `redis://user:2024#1@host` is the host `user`.
fn is_cut_short(url: &str) -> bool {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    url.contains('#') || !scheme.ends_with("unix") && !authority.contains('@') && rest.contains('@')
}

/// The URL with which containers reach a Redis: `localhost` is the container itself there, and Podman gives the host a
/// name.
fn from_containers(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| !scheme.ends_with("unix")) else { return url.to_owned() };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let start = authority.rfind('@').map_or(0, |at| at + 1);
    let end = authority[start..].find(':').map_or(authority.len(), |at| start + at);
    if !authority[start..end].eq_ignore_ascii_case("localhost") {
        return url.to_owned();
    }
    format!("{scheme}://{}{HOST_OF_CONTAINERS}{}", &rest[..start], &rest[end..])
}

/// As Python's `logging` names the levels, too.
fn log_level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::Warn),
        "critical" => Some(LevelFilter::Error),
        level => level.parse().ok().filter(|level| *level != LevelFilter::Off),
    }
}

fn absolute_path(text: &str) -> Option<PathBuf> {
    let clean = text.starts_with('/') && !text.chars().any(char::is_control) && !text.split('/').any(|part| part == "..");
    clean.then(|| PathBuf::from(text))
}

fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Podman would read these names as modes of a container's network.
fn is_network(text: &str) -> bool {
    const MODES: [&str; 10] = ["bridge", "container", "default", "host", "none", "ns", "pasta", "pod", "private", "slirp4netns"];
    is_name(text) && !MODES.contains(&text)
}

fn is_plain(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.chars().all(|c| !c.is_whitespace() && !is_invisible(c))
}

fn is_host(text: &str) -> bool {
    is_plain(text) && (text.starts_with('/') || !text.contains('/'))
}

/// `None` if the text is malformed; empty text is no number.
fn reserve_mb(text: &str) -> Option<Option<u32>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().filter(|megabytes| *megabytes <= 1_000_000).map(Some) }
}

fn number_within(text: &str, least: f64, most: f64) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| (least..=most).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        Config::read(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
            .map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_environment_file_is_read_as_systemd_reads_it() {
        let text = "# comment\n; another\n\n A = b c \r\nB=\"quoted #\"\nC='x'\nD=\n#E=1\nnonsense\nA=last\nF=a=b\n";
        let expected = [("A", "b c"), ("B", "quoted #"), ("C", "x"), ("D", ""), ("A", "last"), ("F", "a=b")];
        assert_eq!(parse_environment(text), expected.map(|(name, value)| (name.to_owned(), OsString::from(value))));
    }

    #[test]
    fn only_the_own_id_shows_that_this_process_replaced_itself() {
        let launch =
            |value: Option<String>| Config::read(|name| value.clone().filter(|_| name == REPLACED).map(Into::into)).unwrap().launch;
        assert_eq!(launch(Some(std::process::id().to_string())), Launch::Replacement);
        for other in [None, Some(String::new()), Some((std::process::id() + 1).to_string())] {
            assert_eq!(launch(other), Launch::First);
        }
    }

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let config = read(&[]).unwrap();
        assert_eq!(config.recorder.memory, 512 << 20);
        assert_eq!(config.recorder.cpu_quota, 100_000);
        assert_eq!(config.workspace_local, PathBuf::from("/mnt/data/workspace/recorder"));
        assert_eq!(config.interval, Duration::from_secs(1));
        assert_eq!(config.database.port, 5432);
        assert!(config.config_dir.is_none());
    }

    #[test]
    fn an_empty_value_counts_as_unset_and_older_names_are_read() {
        let config = read(&[("SILVASONIC_DB_HOST", ""), ("POSTGRES_HOST", "db"), ("POSTGRES_PORT", "5433")]).unwrap();
        assert_eq!((config.database.host.as_str(), config.database.port), ("db", 5433));
    }

    #[test]
    fn mounted_folders_are_found_unless_a_variable_names_others() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str, Option<&'a str>);
        let table: [Case<'_>; 8] = [
            (&[], &[], "/", None),
            (&[], &["/host/sys"], "/host", None),
            (&[], &["/host", "/app/config"], "/", None),
            (&[], &["/host/sys", "/app/config/defaults.yml"], "/host", Some("/app/config")),
            (&[], &["/app/config/defaults.override.yaml"], "/", Some("/app/config")),
            (&[], &["/app/config/workers"], "/", Some("/app/config")),
            (
                &[("SILVASONIC_HOST_ROOT", "/"), ("SILVASONIC_CONFIG_DIR", "/mine")],
                &["/host/sys", "/app/config/profiles"],
                "/",
                Some("/mine"),
            ),
            (
                &[("SILVASONIC_HOST_ROOT", ""), ("SILVASONIC_CONFIG_DIR", "")],
                &["/host/sys", "/app/config/profiles"],
                "/host",
                Some("/app/config"),
            ),
        ];
        for (set, existing, host_root, config_dir) in table {
            let lookup = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            let config = Config::read_with(lookup, |path| existing.iter().any(|known| path == Path::new(known))).unwrap();
            assert_eq!(config.host_root, Path::new(host_root), "{set:?} {existing:?}");
            assert_eq!(config.config_dir.as_deref(), config_dir.map(Path::new), "{set:?} {existing:?}");
        }
    }

    #[test]
    fn recorders_reach_a_redis_of_this_machine_by_the_name_of_the_host() {
        for (url, expected) in [
            ("redis://localhost:6379/0", "redis://host.containers.internal:6379/0"),
            ("redis://LocalHost", "redis://host.containers.internal"),
            ("redis://localhost/1", "redis://host.containers.internal/1"),
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://[::1]:6380", "redis://[::1]:6380"),
            ("redis://localhost:p%40ss@localhost:1/0", "redis://localhost:p%40ss@host.containers.internal:1/0"),
            ("redis://redis:6379/0", "redis://redis:6379/0"),
            ("redis://localhost.example:6379/0", "redis://localhost.example:6379/0"),
            ("unix:///run/localhost", "unix:///run/localhost"),
        ] {
            let config = read(&[("SILVASONIC_REDIS_URL", url)]).unwrap();
            assert_eq!((config.redis_url.as_str(), config.recorder.redis_url.as_str()), (url, expected));
        }
        let set = [("SILVASONIC_REDIS_URL", "redis://redis"), ("SILVASONIC_RECORDER_REDIS_URL", "redis://localhost")];
        assert_eq!(read(&set).unwrap().recorder.redis_url, "redis://localhost");
    }

    #[test]
    fn workers_get_the_database_as_containers_reach_it() {
        for (host, port, expected) in [
            ("database", "5432", vec!["silvasonic", "silvasonic", "silvasonic", "database"]),
            ("localhost", "5433", vec!["silvasonic", "silvasonic", "silvasonic", HOST_OF_CONTAINERS, "5433"]),
            ("/run/postgresql", "5432", vec!["silvasonic", "silvasonic", "silvasonic", HOST_OF_CONTAINERS]),
        ] {
            let config = read(&[("SILVASONIC_DB_HOST", host), ("SILVASONIC_DB_PORT", port)]).unwrap();
            assert_eq!(config.workers.database.values().collect::<Vec<_>>(), expected, "{host}");
        }
    }

    #[test]
    fn the_log_is_json_if_one_of_two_variables_says_so() {
        for (mode, format, expected) in [
            ("", "", LogFormat::Text),
            ("True", "", LogFormat::Text),
            ("False", "", LogFormat::Json),
            ("0", "", LogFormat::Json),
            ("false", "text", LogFormat::Text),
            ("true", "json", LogFormat::Json),
        ] {
            let set = [("SILVASONIC_DEVELOPMENT_MODE", mode), ("SILVASONIC_LOG_FORMAT", format)];
            assert_eq!(read(&set).unwrap().log_format, expected, "{mode} {format}");
        }
    }

    #[test]
    fn variables_of_the_python_controller_without_a_meaning_are_accepted_with_any_value() {
        assert!(read(&[]).unwrap().without_meaning.is_empty());
        let set: Vec<_> = WITHOUT_MEANING.iter().map(|name| (*name, "?")).collect();
        assert_eq!(read(&set).unwrap().without_meaning, WITHOUT_MEANING);
    }

    #[test]
    fn every_malformed_variable_is_reported_with_its_value_and_the_allowed_values() {
        let cases = [
            ("SILVASONIC_CONTAINER_SOCKET", "relative.sock"),
            ("SILVASONIC_NETWORK", "a b"),
            ("SILVASONIC_DB_HOST", "a b"),
            ("SILVASONIC_DB_PORT", "0"),
            ("POSTGRES_USER", "a b"),
            ("POSTGRES_DB", "a\u{200b}b"),
            ("SILVASONIC_REDIS_URL", "http://x"),
            ("SILVASONIC_CONTROLLER_PORT", "70000"),
            ("SILVASONIC_STATUS_PAGE", "on"),
            ("SILVASONIC_WORKSPACE_PATH", "/data/../etc"),
            ("SILVASONIC_RECORDER_WORKSPACE_LOCAL", "x"),
            ("SILVASONIC_RECORDER_REDIS_URL", "http://x"),
            ("SILVASONIC_RECORDER_IMAGE", "a b"),
            ("SILVASONIC_RECORDER_MEMORY_LIMIT", "1m"),
            ("SILVASONIC_RECORDER_CPU_LIMIT", "0"),
            ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "101"),
            ("SILVASONIC_RECORDER_RESERVE_MB", "1000001"),
            ("SILVASONIC_RECORDER_PRIVILEGED", "no"),
            ("SILVASONIC_RECONCILE_INTERVAL_S", "NaN"),
            ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "-1"),
            ("SILVASONIC_HEARTBEAT_INTERVAL_S", "61"),
            ("SILVASONIC_HOST_ROOT", "x"),
            ("SILVASONIC_CONFIG_DIR", "x"),
            ("SILVASONIC_FALLBACK_PROFILE", "a b"),
            ("SILVASONIC_CAPTURE_TIMEOUT_S", "-1"),
            ("SILVASONIC_USB_RESET", "perhaps"),
            ("SILVASONIC_SHED_MEMORY_PERCENT", "101"),
            ("SILVASONIC_SHED_DISK_PERCENT", "-1"),
            ("SILVASONIC_OWNER", "-x"),
            ("SILVASONIC_SHUTDOWN", "maybe"),
            ("SILVASONIC_SHUTDOWN_TIMEOUT_S", "2"),
            ("SILVASONIC_HISTORY_DAYS", "36501"),
            ("SILVASONIC_LOG_LEVEL", "off"),
            ("SILVASONIC_LOG_FORMAT", "xml"),
        ];
        let faults = read(&cases).unwrap_err();
        assert_eq!(faults.len(), cases.len(), "{faults:#?}");
        for ((name, value), fault) in cases.iter().zip(&faults) {
            assert!(fault.starts_with(&format!("{name}: expected ")), "{fault}");
            let value = if name.ends_with("REDIS_URL") { "(hidden)" } else { value };
            assert!(fault.ends_with(&format!("got {value:?}")), "{fault}");
        }
    }

    #[test]
    fn a_secret_that_is_not_utf8_is_hidden() {
        let read =
            |name: &str| ["POSTGRES_PASSWORD", "SILVASONIC_REDIS_URL"].contains(&name).then(|| OsStr::from_bytes(b"s3cr3t\xff").to_owned());
        let faults = Config::read(read).unwrap_err();
        assert_eq!(faults.len(), 2);
        assert!(faults.iter().all(|fault| !fault.to_string().contains("s3cr3t")), "{faults:?}");
    }

    #[test]
    fn white_space_at_the_ends_is_ignored_in_every_setting_but_the_password() {
        let spaces = |text: &str| format!(" \t{text}\u{a0} \r\n");
        for (name, value) in [
            ("SILVASONIC_CONTAINER_SOCKET", "/run/podman.sock"),
            ("SILVASONIC_NETWORK", "net"),
            ("SILVASONIC_DB_HOST", "db"),
            ("SILVASONIC_DB_PORT", "5433"),
            ("POSTGRES_HOST", "db"),
            ("POSTGRES_PORT", "5433"),
            ("POSTGRES_USER", "user"),
            ("POSTGRES_DB", "name"),
            ("SILVASONIC_REDIS_URL", "redis://:secret@redis/1"),
            ("SILVASONIC_CONTROLLER_PORT", "0"),
            ("SILVASONIC_STATUS_PAGE", "false"),
            ("SILVASONIC_WORKSPACE_PATH", "/data"),
            ("SILVASONIC_RECORDER_WORKSPACE_LOCAL", "/local"),
            ("SILVASONIC_RECORDER_REDIS_URL", "redis://redis/1"),
            ("SILVASONIC_RECORDER_IMAGE", "image"),
            ("SILVASONIC_RECORDER_MEMORY_LIMIT", "1g"),
            ("SILVASONIC_RECORDER_CPU_LIMIT", "2"),
            ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "0"),
            ("SILVASONIC_RECORDER_RESERVE_MB", "0"),
            ("SILVASONIC_RECORDER_PRIVILEGED", "false"),
            ("SILVASONIC_RECONCILE_INTERVAL_S", "2"),
            ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0"),
            ("SILVASONIC_HEARTBEAT_INTERVAL_S", "60"),
            ("SILVASONIC_HOST_ROOT", "/host"),
            ("SILVASONIC_CONFIG_DIR", "/config"),
            ("SILVASONIC_FALLBACK_PROFILE", "generic_usb"),
            ("SILVASONIC_OWNER", "me"),
            ("SILVASONIC_SHUTDOWN", "keep"),
            ("SILVASONIC_SHUTDOWN_TIMEOUT_S", "600"),
            ("SILVASONIC_HISTORY_DAYS", "365"),
            ("SILVASONIC_LOG_LEVEL", "WARNING"),
            ("SILVASONIC_LOG_FORMAT", "JSON"),
        ] {
            let all = |set: &[(&str, &str)]| format!("{:?}", read(set).unwrap_or_else(|faults| panic!("{faults:?}")));
            let expected = all(&[(name, value)]);
            assert_ne!(expected, all(&[]), "{name} is not read");
            assert_eq!(all(&[(name, &spaces(value))]), expected);
            assert_eq!(all(&[(name, &spaces(""))]), all(&[]), "{name}");
        }
        assert_eq!(read(&[("POSTGRES_PASSWORD", &spaces("x"))]).unwrap().database.password, spaces("x"));
    }

    #[test]
    fn common_mistakes_are_named_in_one_line() {
        const PATH: &str = "expected an absolute path";
        const URL: &str = "expected redis://[user:password@]host[:port][/number] or unix:///path, got \"(hidden)\"";
        const EXPAND: &str = "`~` and `$` are not expanded: write the whole path, such as /home/USER/data";
        const ESCAPE: &str = "in a user or password write `#` as %23, `/` as %2F and `?` as %3F";
        const QUOTES: &str = "the value is in quotes: remove them, unless they belong to it";
        const PLAIN: &str = "expected 1-255 printable characters without spaces";
        let network = |name: &str| format!("expected {NETWORK}, got {name:?}");
        let table = [
            ("SILVASONIC_WORKSPACE_PATH", "~/data", format!("{PATH}, got \"~/data\"; {EXPAND}")),
            ("SILVASONIC_RECORDER_WORKSPACE_LOCAL", "~pi/data", format!("{PATH}, got \"~pi/data\"; {EXPAND}")),
            ("SILVASONIC_CONTAINER_SOCKET", "$XDG_RUNTIME_DIR/podman", format!("{PATH}, got \"$XDG_RUNTIME_DIR/podman\"; {EXPAND}")),
            ("SILVASONIC_CONFIG_DIR", "~", format!("{PATH}, got \"~\"; {EXPAND}")),
            ("SILVASONIC_HOST_ROOT", "\"/host\"", format!("{PATH}, got \"\\\"/host\\\"\"; {QUOTES}")),
            ("SILVASONIC_DB_HOST", "~/run", format!("expected {HOST}, got \"~/run\"; {EXPAND}")),
            ("POSTGRES_USER", "'me'", format!("{PLAIN}, got \"'me'\"; {QUOTES}")),
            ("SILVASONIC_LOG_LEVEL", "\"info\"", format!("expected error, warn, info, debug or trace, got \"\\\"info\\\"\"; {QUOTES}")),
            (
                "POSTGRES_DB",
                "name\u{200b}",
                format!(
                    "{PLAIN}, got \"name\\u{{200b}}\"; the value ends with an invisible character (U+200B): remove it, unless it belongs to it"
                ),
            ),
            (
                "SILVASONIC_CONTROLLER_PORT",
                "\u{feff}9100",
                "expected a port number from 0 to 65535, got \"\\u{feff}9100\"; the value begins with an invisible character (U+FEFF): \
                 remove it, unless it belongs to it"
                    .to_owned(),
            ),
            ("SILVASONIC_NETWORK", "host", network("host")),
            ("SILVASONIC_NETWORK", "none", network("none")),
            ("SILVASONIC_NETWORK", "bridge", network("bridge")),
            ("SILVASONIC_NETWORK", "slirp4netns", network("slirp4netns")),
            ("SILVASONIC_NETWORK", "container:x", network("container:x")),
            ("SILVASONIC_REDIS_URL", "redis://user:2024#pw@host", format!("{URL}; {ESCAPE}")),
            ("SILVASONIC_REDIS_URL", "redis://:pa#ss@host:6379/0", format!("{URL}; {ESCAPE}")),
            ("SILVASONIC_REDIS_URL", "redis://user:2024/pw@host", format!("{URL}; {ESCAPE}")),
            ("SILVASONIC_REDIS_URL", "redis://user:2024?pw@host", format!("{URL}; {ESCAPE}")),
            ("SILVASONIC_REDIS_URL", "redis://user:p@2024#pw@host", format!("{URL}; {ESCAPE}")),
            ("SILVASONIC_REDIS_URL", "unix:///run/redis.sock?pass=2024#pw", format!("{URL}; {ESCAPE}")),
            ("SILVASONIC_REDIS_URL", "\"redis://user:2024@host\"", format!("{URL}; {QUOTES}")),
        ];
        for (name, value, expected) in table {
            assert_eq!(read(&[(name, value)]).unwrap_err(), [format!("{name}: {expected}")]);
        }
        for url in
            ["redis://user:2024%23pw@host", "redis://u:p@host/0?protocol=2", "unix:///run/redis.sock?user=u&pass=p@ss", "redis://[::1]/1"]
        {
            assert_eq!(read(&[("SILVASONIC_REDIS_URL", url)]).unwrap().redis_url, url);
        }
    }

    #[test]
    fn what_looks_like_a_mistake_in_the_password_is_named_without_the_password() {
        let table = [
            ("2024secret\r", Some("ends with a control character (U+000D): remove it, unless it belongs to it")),
            ("2024secret ", Some("ends with white space (U+0020): remove it, unless it belongs to it")),
            ("2024secret\u{a0}", Some("ends with white space (U+00A0): remove it, unless it belongs to it")),
            ("\u{feff}2024secret", Some("begins with an invisible character (U+FEFF): remove it, unless it belongs to it")),
            ("\"2024secret\"", Some("is in quotes: remove them, unless they belong to it")),
            ("2024 secret", None),
            ("\"", None),
        ];
        for (password, expected) in table {
            let database = read(&[("POSTGRES_PASSWORD", password)]).unwrap().database;
            assert_eq!(database.password, password);
            assert_eq!(database.password_flaw(), expected.map(|flaw| format!("POSTGRES_PASSWORD {flaw}")));
        }
    }

    #[test]
    fn secrets_that_are_not_utf8_are_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let lookup =
            |name: &str| ["POSTGRES_PASSWORD", "SILVASONIC_REDIS_URL"].contains(&name).then(|| OsString::from_vec(b"se\xffcret".to_vec()));
        let faults = Config::read(lookup).unwrap_err();
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let expected = ["POSTGRES_PASSWORD", "SILVASONIC_REDIS_URL"].map(|name| format!("{name}: expected UTF-8 text, got \"(hidden)\""));
        assert_eq!(faults, expected);
    }

    #[test]
    fn log_levels_have_the_names_of_python_too() {
        let level = |text| read(&[("SILVASONIC_LOG_LEVEL", text)]).map(|config| config.log_level).ok();
        for (text, expected) in [
            ("warning", Some(LevelFilter::Warn)),
            ("Warning", Some(LevelFilter::Warn)),
            ("WARN", Some(LevelFilter::Warn)),
            ("CRITICAL", Some(LevelFilter::Error)),
            ("critical", Some(LevelFilter::Error)),
            ("Debug", Some(LevelFilter::Debug)),
            ("off", None),
            ("fatal", None),
        ] {
            assert_eq!(level(text), expected, "{text}");
        }
    }

    #[test]
    fn the_readme_has_the_same_table() {
        let readme = include_str!("../README.md");
        let rows: String = VARIABLES.iter().map(|(name, default, meaning)| format!("| `{name}` | `{default}` | {meaning} |\n")).collect();
        assert!(readme.contains(&format!("| --- | --- | --- |\n{rows}<!-- /settings -->")), "expected in README.md:\n{rows}");
    }

    /// The names that follow `before` in a text, such as `${` or `# `.
    fn names_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
        let name = |rest: &'a str| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        text.match_indices(before).map(move |(at, _)| name(&text[at + before.len()..])).filter(|name| !name.is_empty())
    }

    /// `NAME=value` and `# NAME=value` of the example.
    fn examples() -> Vec<(&'static str, &'static str)> {
        let lines = include_str!("../.env.example").lines().map(|line| line.trim_start_matches("# "));
        lines.filter_map(|line| line.split_once('=')).filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_')).collect()
    }

    #[test]
    fn the_example_names_every_setting_with_its_default() {
        let examples = examples();
        for (name, default, _) in VARIABLES {
            let found = examples.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name} is missing in .env.example"));
            let expected = match *name {
                // Where the unit, compose.yml or an advice differ from the default of the program.
                "SILVASONIC_SHUTDOWN_TIMEOUT_S" => "12",
                "SILVASONIC_CONTAINER_SOCKET" => "/run/podman/podman.sock",
                "SILVASONIC_RECORDER_WORKSPACE_LOCAL" => "/mnt/data/workspace/recorder",
                "SILVASONIC_RECORDER_RESERVE_MB" => "512",
                "SILVASONIC_FALLBACK_PROFILE" => "generic_usb",
                "SILVASONIC_RECORDER_REDIS_URL" | "SILVASONIC_CONFIG_DIR" | "SILVASONIC_HOST_ROOT" => "",
                _ => default,
            };
            assert_eq!(found.1, expected, "{name} in .env.example");
        }
        assert!(read(&examples).is_ok(), "{:?}", read(&examples));
        // Only these are not settings of the program.
        let others: Vec<&str> =
            examples.iter().map(|(name, _)| *name).filter(|name| !VARIABLES.iter().any(|(known, ..)| known == name)).collect();
        assert_eq!(others, ["SILVASONIC_PODMAN_SOCKET", "SILVASONIC_DATABASE_IMAGE", "SILVASONIC_REDIS_IMAGE"]);
    }

    #[test]
    fn every_setting_of_the_env_file_reaches_the_controller_of_the_compose_file() {
        let text = include_str!("../compose.yml");
        let compose = crate::yaml::parse(text).unwrap();
        let controller = &compose["services"]["controller"];
        assert_eq!(controller["env_file"], serde_json::json!([{ "path": ".env", "required": false }]));
        // A variable that is set beside the file takes its value from there. podman-compose 1.6 also inserts what is set
        // here into the volumes.
        for (name, value) in controller["environment"].as_object().unwrap() {
            let is_passed = value.as_str().is_some_and(|value| value.starts_with(&format!("${{{name}:-")) && value.ends_with('}'));
            assert!(is_passed || name == "SILVASONIC_CONTAINER_SOCKET", "{name}: {value}");
        }
        // What volumes and networks are made of is in the example, too.
        let examples = examples();
        let unknown: Vec<&str> = names_after(text, "${").filter(|name| !examples.iter().any(|(known, _)| known == name)).collect();
        assert_eq!(unknown, Vec::<&str>::new());
        for name in ["SILVASONIC_PODMAN_SOCKET", "SILVASONIC_WORKSPACE_PATH", "SILVASONIC_HOST_ROOT", "SILVASONIC_CONFIG_DIR"] {
            let volumes = controller["volumes"].as_array().unwrap();
            assert!(
                volumes.iter().any(|volume| names_after(volume.as_str().unwrap(), "${").any(|found| found == name)),
                "{name} has no volume"
            );
        }
        assert_eq!(compose["networks"]["default"]["name"], "${SILVASONIC_NETWORK:-silvasonic-net}");
    }

    #[test]
    fn the_units_read_all_settings_from_their_file() {
        const FILE: &str = "EnvironmentFile=-/etc/silvasonic/controller.env";
        let unit = include_str!("../packaging/silvasonic-controller.service");
        // systemd: a file has precedence over `Environment=`.
        assert!(unit.lines().any(|line| line == FILE), "{unit}");
        let quadlet = include_str!("../packaging/silvasonic-controller.container");
        let (container, service) = quadlet.split_once("\n[Service]\n").unwrap();
        assert!(service.lines().any(|line| line == FILE), "{service}");
        let arguments = container.lines().find_map(|line| line.strip_prefix("PodmanArgs=")).unwrap();
        for (name, ..) in VARIABLES {
            let is_passed = arguments.split(' ').filter_map(|word| word.strip_prefix("--env=")?.strip_suffix('*'));
            assert!(is_passed.into_iter().any(|prefix| name.starts_with(prefix)), "{name}");
        }
        for text in [unit, quadlet] {
            let known = |name: &&str| !name.starts_with("SILVASONIC_") || VARIABLES.iter().any(|(known, ..)| known == name);
            let words = text.split([' ', '=', '\n']).filter(|word| word.starts_with("SILVASONIC_") && !word.ends_with('*'));
            assert_eq!(words.filter(|word| !known(word)).collect::<Vec<_>>(), Vec::<&str>::new());
        }
    }

    #[test]
    fn the_files_allow_the_controller_more_time_to_stop_than_it_takes() {
        let text = [
            include_str!("../compose.yml"),
            include_str!("../packaging/silvasonic-controller.service"),
            include_str!("../packaging/silvasonic-controller.container"),
        ];
        let number = |text: &str, before: &str| -> u64 {
            let rest = &text[text.find(before).unwrap_or_else(|| panic!("{before} is missing")) + before.len()..];
            rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        // A Compose file that does not set a time leaves 10 s.
        assert!(read(&[]).unwrap().shutdown_timeout < Duration::from_secs(10));
        for (text, own, theirs) in [
            (text[0], "SILVASONIC_SHUTDOWN_TIMEOUT_S:-", "stop_grace_period: "),
            (text[1], "SILVASONIC_SHUTDOWN_TIMEOUT_S=", "TimeoutStopSec="),
            (text[2], "SILVASONIC_SHUTDOWN_TIMEOUT_S=", "--stop-timeout="),
            (text[2], "stop-timeout=", "TimeoutStopSec="),
        ] {
            assert!(number(text, own) + 2 <= number(text, theirs), "{own}, {theirs}");
        }
    }

    #[test]
    fn memory_sizes_have_the_units_of_podman() {
        for (text, bytes) in [("512m", Some(512 << 20)), ("1G", Some(1 << 30)), ("6291456", Some(6 << 20)), ("8192k", Some(8 << 20))] {
            assert_eq!(memory_bytes(text), bytes, "{text}");
        }
        for text in ["", "m", "5", "-1m", "1.5g", "99999999999g", "512mb"] {
            assert_eq!(memory_bytes(text), None, "{text}");
        }
    }
}
