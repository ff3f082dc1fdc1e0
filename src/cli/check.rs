//! `silvasonic-controller check`: checks everything that a station needs, and changes nothing.

use std::path::Path;

use redis::{Cmd, ConnectionLike, RedisError, cmd};
use rustix::fs::{Access, access, statvfs};
use serde_json::{Value, json};

use crate::cli::arguments::Format;
use crate::cli::devices::{self, HEARTBEAT_KEY, connect};
use crate::cli::profiles;
use crate::cli::takeover::{self, Fate};
use crate::cli::{health, logs};
use crate::config::{Config, SettingFault};
use crate::config_folder::ConfigFolder;
use crate::database::connection::{Connection, reason};
use crate::decide::container::Engine;
use crate::decide::desired::{Desired, SpecCache, desired};
use crate::decide::registry::Registry;
use crate::decide::scope::Scope;
use crate::decide::spec::OOM_SCORE_ADJ;
use crate::decide::workspace::Workspace;
use crate::hardware::sysfs;
use crate::health::workspace::placement;
use crate::json::one_line;
use crate::podman::client::Podman;
use crate::podman::error::Error;
use crate::podman::mount;
use crate::redis::connection::{Subscription, address, describe};
use crate::redis::nudge;
use crate::redis::publisher::redacted;
use crate::text::{NOT_YET, shown, table};

/// A microphone at 384 kHz writes 2.8 GB per hour.
const LOW_SPACE: u64 = 4 << 30;

const DELEGATE: &str = "delegate the control groups to the user: Delegate=memory cpu for user@.service";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// The result of one check.
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    text: String,
    /// How to fix it; empty if nothing is wrong.
    fix: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, subject: &'static str, text: String) {
        self.0.push(Finding { subject, verdict: Verdict::Ok, text, fix: String::new() });
    }

    fn warn(&mut self, subject: &'static str, text: String, fix: &str) {
        self.0.push(Finding { subject, verdict: Verdict::Warning, text, fix: fix.to_owned() });
    }

    fn fail(&mut self, subject: &'static str, text: String, fix: &str) {
        self.0.push(Finding { subject, verdict: Verdict::Failed, text, fix: fix.to_owned() });
    }
}

/// Checks everything. Returns whether nothing failed, and the findings as text.
#[must_use]
pub fn check(settings: Result<Config, Vec<SettingFault>>, format: Format) -> (bool, String) {
    let mut findings = Findings::default();
    match settings {
        Err(faults) => {
            faults.iter().for_each(|fault| findings.fail("settings", fault.to_string(), "correct the variable; --help lists all"));
        }
        Ok(config) => {
            findings.ok("settings", format!("owner {}, tick {} s", config.recorder.owner, config.interval.as_secs_f64()));
            if let Some(flaw) = config.database.password_flaw() {
                findings.warn(
                    "settings",
                    flaw,
                    "see how the file is read that sets it: line ends, spaces and quotes can be part of a value",
                );
            }
            station(&config, &mut findings);
            podman(&config, &mut findings);
            sound(&config, &mut findings);
            database(&config, &mut findings);
            redis(&config, &mut findings);
            workspace(&config, &mut findings);
            profiles(&config, &mut findings);
            workers(&config, &mut findings);
        }
    }
    let Findings(findings) = findings;
    let text = match format {
        Format::Text => to_text(&findings),
        Format::Json => to_json(&findings),
    };
    (is_passed(&findings), text)
}

/// Says if the Compose file is that of the Python Controller, and where settings and profiles come from then.
fn station(config: &Config, findings: &mut Findings) {
    if config.workspace_local == Path::new(takeover::RECORDER_FOLDER) {
        let source = config.config_dir.as_ref().map_or_else(|| "the built-in copies".to_owned(), |folder| folder.display().to_string());
        let root = config.host_root.display();
        findings.ok("station", format!("of the Python Controller; settings and profiles from {source}, sound cards below {root}"));
    }
}

fn is_passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Failed)
}

fn podman(config: &Config, findings: &mut Findings) {
    let podman = Podman::new(config.socket.clone());
    let (engine, controllers) = match podman.ping().and_then(|version| podman.examine(version)) {
        Ok(examined) => examined,
        Err(why) => {
            let fix = match why {
                Error::Forbidden(_) => {
                    "repeat this as root (`sudo -E` keeps the settings), or give this user the right to connect to the socket and to enter its \
                     folders (SocketGroup=, SocketMode= and DirectoryMode= of podman.socket)"
                }
                _ => "start its API with `systemctl enable --now podman.socket`, and set SILVASONIC_CONTAINER_SOCKET to its socket",
            };
            return findings.fail("podman", format!("{}: {why}", config.socket.display()), fix);
        }
    };
    if mount::is_file_mount(&config.socket) {
        findings.warn("podman", "the socket is mounted as a file: it is dead after a restart of podman.socket".to_owned(), mount::ADVICE);
    }
    let kind = if engine.rootless { "rootless" } else { "rootful" };
    findings.ok("podman", format!("{} ({kind}, {}, cgroups {})", engine.version, engine.runtime, engine.cgroups));
    limits(&engine, &controllers, findings);
    let image = &config.recorder.image;
    match podman.image_exists(image) {
        Ok(true) => findings.ok("image", image.clone()),
        Ok(false) => findings.fail("image", format!("{image} is not in Podman's local storage"), "build it, or load it with `podman load`"),
        Err(why) => findings.fail("image", format!("{image}: {why}"), "see Podman's log"),
    }
    let network = &config.recorder.network;
    match podman.network_exists(network) {
        Ok(true) => findings.ok("network", network.clone()),
        Ok(false) => {
            let fix = format!("create it with `podman network create {network}`");
            findings.fail("network", format!("{network} does not exist"), &fix);
        }
        Err(why) => findings.fail("network", format!("{network}: {why}"), "see Podman's log"),
    }
}

/// Which limits of a Recorder the kernel enforces; `controllers` are the control groups that Podman can use.
fn limits(engine: &Engine, controllers: &[String], findings: &mut Findings) {
    let has = |name: &str| controllers.iter().any(|controller| controller.split(',').any(|part| part == name));
    if has("memory") {
        findings.ok("memory limit", "enforced".to_owned());
    } else {
        let fix = if engine.rootless {
            DELEGATE
        } else {
            "add `cgroup_enable=memory cgroup_memory=1` to the kernel command line (/boot/firmware/cmdline.txt)"
        };
        findings.warn("memory limit", "not enforced: no memory control group".to_owned(), fix);
    }
    if has("cpu") {
        findings.ok("cpu limit", "enforced".to_owned());
    } else {
        findings.warn("cpu limit", "not enforced: no cpu control group".to_owned(), DELEGATE);
    }
    if engine.rootless {
        let fix = "set OOMScoreAdjust=-999 for user@.service, or run Podman as root";
        findings.warn("oom_score_adj", format!("{OOM_SCORE_ADJ} is not enforced: Podman is rootless"), fix);
    } else {
        findings.ok("oom_score_adj", format!("{OOM_SCORE_ADJ} is requested as root"));
    }
}

fn sound(config: &Config, findings: &mut Findings) {
    let folder = config.host_root.join("dev/snd");
    if folder.is_dir() {
        findings.ok("/dev/snd", folder.display().to_string());
    } else {
        let fix = "connect a sound card, or load snd-usb-audio; ignore this in a container, as only Recorders need it";
        findings.warn("/dev/snd", format!("{} does not exist", folder.display()), fix);
    }
    match std::fs::read_to_string("/etc/group").map(|groups| groups.lines().any(|line| line.starts_with("audio:"))) {
        Ok(true) => findings.ok("audio group", "exists".to_owned()),
        // In a container, /etc/group is not that of the host, so this is no failure.
        Ok(false) | Err(_) => findings.warn("audio group", "not in /etc/group".to_owned(), "on the host: `groupadd --system audio`"),
    }
    match sysfs::scan(&config.host_root, &[], |_, _| {}) {
        Ok(scan) => {
            for (card, why) in &scan.unclear {
                findings.warn("microphones", format!("cannot identify card {card}: {}", shown(why)), "disconnect and reconnect it");
            }
            findings.ok("microphones", format!("{} connected", scan.microphones.len()));
        }
        Err(why) => {
            findings.fail(
                "microphones",
                why.to_string(),
                "mount the host's /proc/asound and /sys below /host, or make the container privileged",
            );
        }
    }
}

fn database(config: &Config, findings: &mut Findings) {
    let mut db = match Connection::connect_for_command(&config.database) {
        Ok(db) => db,
        Err(why) => {
            let fix = "start PostgreSQL, and check SILVASONIC_DB_HOST, SILVASONIC_DB_PORT, POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB";
            return findings.fail("postgresql", format!("{:?}: {why}", config.database), fix);
        }
    };
    findings.ok("postgresql", format!("{:?}", config.database));
    if let Ok(rows) = db.snapshot(&Scope::Everything) {
        devices(config, &Registry::read(&rows, None), findings);
    }
    match db.missing() {
        Ok((missing, _)) if missing.is_empty() => findings.ok("schema", "complete".to_owned()),
        Ok((missing, _)) => findings.warn("schema", format!("missing: {}", missing.join(", ")), "the Controller creates it at its start"),
        Err(error) => findings.fail("schema", reason(&error), "grant the database user access to the tables"),
    }
    let defaults = ConfigFolder::new(config.config_dir.clone()).credentials();
    let Ok(Some((user, password))) = defaults else { return };
    match db.password_hash(&user) {
        Ok(Some(hash)) if bcrypt::verify(&password, &hash).unwrap_or(false) => {
            findings.warn("password", format!("user {} still has the default password", shown(&user)), "change it in the web interface");
        }
        Ok(Some(_)) => findings.ok("password", format!("user {} has changed the default one", shown(&user))),
        Ok(None) => {
            findings.warn("password", format!("user {} does not exist", shown(&user)), "the Controller creates the user at its start");
        }
        Err(_) => {}
    }
}

/// Microphones that wait for a user, and Recorders of the Python Controller. Faults of the hardware and of Podman are
/// findings of their own.
fn devices(config: &Config, registry: &Registry, findings: &mut Findings) {
    let presences = devices::presences(config, registry, &mut Vec::new());
    if let Some((text, fix)) = devices::fallback(config, registry, &presences) {
        findings.warn("profiles", text, fix);
    }
    for (id, desired) in desired(registry, true, &presences, &mut SpecCache::new(config.recorder.clone())) {
        let Desired::Run(spec) = desired else { continue };
        let Some(mismatch) = &spec.mismatch else { continue };
        let (text, fix) =
            (format!("{}: {mismatch}", shown(&id)), "correct `audio` of the profile, or enroll the microphone with another one");
        if mismatch.is_certain { findings.fail("profiles", text, fix) } else { findings.warn("profiles", text, fix) }
    }
    for (name, fate) in takeover::fates(config, registry, &presences).unwrap_or_default() {
        match fate {
            Fate::Stays(why) => findings.ok("takeover", format!("{name} {why}")),
            Fate::Ends(why) => findings.warn("takeover", format!("{name} {why}"), "see docs/switching.md"),
        }
    }
}

fn redis(config: &Config, findings: &mut Findings) {
    let url = redacted(&config.redis_url);
    // Recording continues without Redis, so nothing here is a failure.
    let mut warn = |text: &str, why: &RedisError| {
        findings.warn("redis", format!("{url}: {text}{}", describe(why)), redis_fix(why));
    };
    let mut redis = match connect(&config.redis_url) {
        Ok(redis) => redis,
        Err(why) => return warn("", &why),
    };
    match cmd("PING").exec(&mut redis) {
        // Other errors concern PING alone.
        Err(why) if matches!(why.code(), None | Some("NOAUTH" | "LOADING")) => return warn("", &why),
        _ => {}
    }
    let mut is_accepted = true;
    for (name, result) in [
        ("SET silvasonic:status:controller", refusal(&mut redis, cmd("SET").arg(HEARTBEAT_KEY).arg("{}").arg("EX").arg(30))),
        ("PUBLISH silvasonic:status", refusal(&mut redis, cmd("PUBLISH").arg("silvasonic:status").arg("{}"))),
        ("PUBLISH silvasonic:logs", refusal(&mut redis, cmd("PUBLISH").arg(logs::CHANNEL).arg("{}"))),
        (
            "SUBSCRIBE silvasonic:nudge",
            address(&config.redis_url).and_then(|address| Subscription::open(&address, nudge::CHANNEL, 1 << 10).map(drop)),
        ),
    ] {
        if let Err(why) = result {
            is_accepted = false;
            warn(&format!("refused {name}: "), &why);
        }
    }
    if is_accepted {
        let of_recorders = redacted(&config.recorder.redis_url);
        let more = if of_recorders == url { String::new() } else { format!("; as Recorders reach it: {of_recorders}") };
        findings.ok("redis", url + &more);
    }
}

/// Whether Redis would execute a command. It checks rights, memory and role when it queues the command of a transaction,
/// which is then discarded, so nothing is changed or published.
fn refusal(redis: &mut dyn ConnectionLike, command: &Cmd) -> Result<(), RedisError> {
    if cmd("MULTI").exec(redis).is_err() {
        // A user without the right to transactions: the log of the Controller will show what is refused.
        return Ok(());
    }
    let queued = command.exec(redis);
    cmd("DISCARD").exec(redis).and(queued)
}

fn redis_fix(why: &RedisError) -> &'static str {
    match why.code() {
        Some("NOAUTH" | "WRONGPASS") => "set user and password in SILVASONIC_REDIS_URL: redis://USER:PASSWORD@HOST:PORT/0",
        Some("NOPERM") => "grant it: `redis-cli ACL SETUSER USER +set +publish +subscribe +pubsub +getrange ~silvasonic:* &silvasonic:*`",
        Some("OOM") => "raise maxmemory of Redis, or delete keys of other programs",
        Some("READONLY") => "set SILVASONIC_REDIS_URL to the primary server: this one is a read-only replica",
        Some("LOADING") => "wait until Redis has loaded its data",
        Some(_) => "see the log of Redis",
        None => "start Redis, and check SILVASONIC_REDIS_URL",
    }
}

fn workspace(config: &Config, findings: &mut Findings) {
    let folder = &config.workspace_local;
    // Whether it can be written is a question of the rights and the mounts of the Controller, not of this user.
    let seen = health::read(config.port).ok().and_then(|(_, mut components)| Some(components.get_mut("workspace")?.take()));
    if let Some(seen) = seen.filter(|seen| seen["details"] != NOT_YET) {
        let details = format!("the Controller reports: {}", shown(seen["details"].as_str().unwrap_or_default()));
        if seen["healthy"] == true {
            findings.ok("workspace", details);
        } else {
            findings.fail("workspace", details, "see docs/install.md, \"The workspace\"");
        }
        return space(folder, findings);
    }
    // The Controller creates it at its first start, so the nearest folder that exists must be writable.
    let Some(existing) = folder.ancestors().find(|folder| folder.exists()) else {
        return findings.fail("workspace", format!("{} does not exist", folder.display()), "set SILVASONIC_WORKSPACE_PATH");
    };
    if let Err(why) = access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        let fix = "make it writable for the user that runs the Controller, and mount it writable";
        return findings.fail("workspace", format!("cannot write to {}: {why}", existing.display()), fix);
    }
    match placement(folder, &config.host_root).map(|seen| Workspace::new(folder.clone()).judge(&seen, false)) {
        Some(Err(why)) => findings.fail("workspace", why, "mount the disk"),
        _ => findings.ok("workspace", folder.display().to_string()),
    }
    space(existing, findings);
}

fn space(folder: &Path, findings: &mut Findings) {
    match statvfs(folder) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let text = format!("{:.1} of {:.1} GB free", gigabytes(free), gigabytes(disk.f_blocks.saturating_mul(disk.f_frsize)));
            if free < LOW_SPACE {
                findings.warn("disk", text, "free space on the disk with the workspace: a microphone at 384 kHz writes 2.8 GB per hour");
            } else {
                findings.ok("disk", text);
            }
        }
        Err(why) => findings.warn("disk", format!("{}: {why}", folder.display()), "check the mount"),
    }
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn profiles(config: &Config, findings: &mut Findings) {
    let fix = "run `silvasonic-controller profiles check`";
    match profiles::check(config.config_dir.clone()) {
        Ok((true, lines)) => findings.ok("profiles", format!("{} files are valid", lines.lines().count())),
        Ok((false, lines)) => {
            let faults = lines.lines().filter(|line| !line.ends_with(": ok")).map(|line| shown(line).to_string());
            faults.for_each(|fault| findings.fail("profiles", fault, fix));
        }
        Err(why) => findings.fail("profiles", why, "set SILVASONIC_CONFIG_DIR, or leave it empty for the built-in copies"),
    }
}

/// Declarations of workers that are not used because of a fault. That all are valid is nothing to say.
fn workers(config: &Config, findings: &mut Findings) {
    // A folder that cannot be read is a finding of the profiles.
    let faults = ConfigFolder::new(config.config_dir.clone()).read_workers().map_or_else(|_| Vec::new(), |(_, faults)| faults);
    faults.iter().for_each(|fault| findings.fail("workers", shown(fault).to_string(), "correct the line; the other files are used"));
}

fn to_text(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let fix = if finding.fix.is_empty() { String::new() } else { format!(" -> {}", finding.fix) };
        [finding.verdict.name().to_owned(), finding.subject.to_owned(), format!("{}{fix}", finding.text)]
    };
    table(&findings.iter().map(line).collect::<Vec<_>>())
}

fn to_json(findings: &[Finding]) -> String {
    let one = |finding: &Finding| {
        let fix = Some(&finding.fix).filter(|fix| !fix.is_empty());
        json!({"subject": finding.subject, "verdict": finding.verdict.name(), "text": finding.text, "fix": fix})
    };
    one_line(&json!({"ok": is_passed(findings), "findings": findings.iter().map(one).collect::<Value>()}).to_string()) + "\n"
}
