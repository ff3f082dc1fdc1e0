//! `silvasonic-controller check`: is everything there that a station needs? Looks, and changes nothing.

use std::path::Path;

use rustix::fs::{Access, access, statvfs};
use serde_json::{Value, json};

use crate::cli::devices::connect;
use crate::cli::profiles;
use crate::config::{Config, SettingFault};
use crate::database::connection::{Connection, reason};
use crate::database::seed::Seeder;
use crate::decide::spec::OOM_SCORE_ADJ;
use crate::hardware::sysfs;
use crate::podman::client::Podman;
use crate::redis::publisher::redacted;
use crate::text::{shown, table};

/// An hour of one microphone at 384 kHz takes 2.8 GB.
const LITTLE_SPACE: u64 = 4 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What was looked at, what was found, and the cure.
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    text: String,
    cure: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, subject: &'static str, text: String) {
        self.0.push(Finding { subject, verdict: Verdict::Ok, text, cure: String::new() });
    }

    fn warn(&mut self, subject: &'static str, text: String, cure: &str) {
        self.0.push(Finding { subject, verdict: Verdict::Warning, text, cure: cure.to_owned() });
    }

    fn fail(&mut self, subject: &'static str, text: String, cure: &str) {
        self.0.push(Finding { subject, verdict: Verdict::Failed, text, cure: cure.to_owned() });
    }
}

/// Looks at everything; returns whether nothing failed, and a line for each thing.
#[must_use]
pub fn examine(settings: Result<Config, Vec<SettingFault>>, as_json: bool) -> (bool, String) {
    let mut findings = Findings::default();
    match settings {
        Err(faults) => {
            faults.iter().for_each(|fault| findings.fail("settings", fault.to_string(), "correct the variable; --help lists all"));
        }
        Ok(config) => {
            findings.ok("settings", format!("owner {}, tick {} s", config.recorder.owner, config.interval.as_secs_f64()));
            podman(&config, &mut findings);
            sound(&config, &mut findings);
            database(&config, &mut findings);
            redis(&config, &mut findings);
            workspace(&config, &mut findings);
            profiles(&config, &mut findings);
        }
    }
    let Findings(findings) = findings;
    let well = findings.iter().all(|finding| finding.verdict != Verdict::Failed);
    (well, if as_json { to_json(&findings, well) } else { to_text(&findings) })
}

fn podman(config: &Config, findings: &mut Findings) {
    let podman = Podman::new(config.socket.clone());
    let (engine, controllers) = match podman.ping().and_then(|version| podman.examine(version)) {
        Ok(examined) => examined,
        Err(why) => {
            let cure = "start its API: `systemctl enable --now podman.socket`, and set SILVASONIC_CONTAINER_SOCKET to its socket";
            return findings.fail("podman", format!("{}: {why}", config.socket.display()), cure);
        }
    };
    let kind = if engine.rootless { "rootless" } else { "rootful" };
    findings.ok("podman", format!("{} ({kind}, {}, cgroups {})", engine.version, engine.runtime, engine.cgroups));
    limits(&controllers, engine.rootless, findings);
    let image = &config.recorder.image;
    match podman.image_exists(image) {
        Ok(true) => findings.ok("image", image.clone()),
        Ok(false) => findings.fail("image", format!("{image} is not on this machine"), "build it, or load it with `podman load`"),
        Err(why) => findings.fail("image", format!("{image}: {why}"), "look at Podman's own log"),
    }
    let network = &config.recorder.network;
    match podman.network_exists(network) {
        Ok(true) => findings.ok("network", network.clone()),
        Ok(false) => findings.fail("network", format!("{network} does not exist"), &format!("`podman network create {network}`")),
        Err(why) => findings.fail("network", format!("{network}: {why}"), "look at Podman's own log"),
    }
}

/// What the kernel will hold of what is asked for.
fn limits(controllers: &[String], rootless: bool, findings: &mut Findings) {
    let has = |name: &str| controllers.iter().any(|controller| controller.split(',').any(|part| part == name));
    if has("memory") {
        findings.ok("memory limit", "holds".to_owned());
    } else {
        let cure = match rootless {
            true => "delegate the controller to the user: Delegate=memory cpu for user@.service",
            false => "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line (/boot/firmware/cmdline.txt)",
        };
        findings.warn("memory limit", "will not hold: there is no memory control group".to_owned(), cure);
    }
    if has("cpu") {
        findings.ok("cpu limit", "holds".to_owned());
    } else {
        let cure = "delegate the controller to the user: Delegate=memory cpu for user@.service";
        findings.warn("cpu limit", "will not hold: there is no cpu control group".to_owned(), cure);
    }
    if rootless {
        let cure = "give the user's service manager OOMScoreAdjust=-999, or run Podman as root";
        findings.warn("oom_score_adj", format!("{OOM_SCORE_ADJ} will not hold: Podman is rootless"), cure);
    } else {
        findings.ok("oom_score_adj", format!("{OOM_SCORE_ADJ} is asked for by root"));
    }
}

fn sound(config: &Config, findings: &mut Findings) {
    let folder = config.host_root.join("dev/snd");
    if folder.is_dir() {
        findings.ok("/dev/snd", folder.display().to_string());
    } else {
        let cure = "plug a sound card in, or load snd-usb-audio; in a container, where only Recorders need it, this says nothing";
        findings.warn("/dev/snd", format!("{} is not there", folder.display()), cure);
    }
    match std::fs::read_to_string("/etc/group").map(|groups| groups.lines().any(|line| line.starts_with("audio:"))) {
        Ok(true) => findings.ok("audio group", "exists".to_owned()),
        // Seen from within a container without users, this says nothing about the host.
        Ok(false) | Err(_) => findings.warn("audio group", "not in /etc/group here".to_owned(), "on the host: `groupadd --system audio`"),
    }
    match sysfs::scan(&config.host_root, &[], |_, _| {}) {
        Ok(scan) => {
            for (card, why) in &scan.unclear {
                findings.warn("microphones", format!("card {card} cannot be told: {}", shown(why)), "plug it in again");
            }
            findings.ok("microphones", format!("{} plugged in", scan.microphones.len()));
        }
        Err(why) => {
            findings.fail("microphones", why.to_string(), "mount the host's /proc/asound and /sys, and set SILVASONIC_HOST_ROOT");
        }
    }
}

fn database(config: &Config, findings: &mut Findings) {
    let mut db = match Connection::connect(&config.database) {
        Ok(db) => db,
        Err(error) => {
            let cure = "start PostgreSQL; SILVASONIC_DB_HOST, SILVASONIC_DB_PORT, POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB";
            return findings.fail("postgresql", format!("{:?}: {}", config.database, reason(&error)), cure);
        }
    };
    findings.ok("postgresql", format!("{:?}", config.database));
    match db.missing() {
        Ok((missing, _)) if missing.is_empty() => findings.ok("schema", "complete".to_owned()),
        Ok((missing, _)) => findings.warn("schema", format!("missing: {}", missing.join(", ")), "made at the Controller's start"),
        Err(error) => findings.fail("schema", reason(&error), "the user needs rights on the tables"),
    }
    let default = Seeder::new(config.config_dir.clone()).credentials();
    let Ok((user, password)) = default else { return };
    match db.password_hash(&user) {
        Ok(Some(hash)) if bcrypt::verify(&password, &hash).unwrap_or(false) => {
            findings.warn("password", format!("user {} still has the default password", shown(&user)), "change it in the web interface");
        }
        Ok(Some(_)) => findings.ok("password", format!("user {} has one of their own", shown(&user))),
        Ok(None) => findings.warn("password", format!("there is no user {}", shown(&user)), "made at the Controller's start"),
        Err(_) => {}
    }
}

fn redis(config: &Config, findings: &mut Findings) {
    let place = redacted(&config.redis_url);
    let ping = connect(&config.redis_url).and_then(|mut redis| redis::cmd("PING").query::<String>(&mut redis));
    match ping {
        Ok(_) => findings.ok("redis", place),
        // Recording goes on without.
        Err(why) => findings.warn("redis", format!("{place}: {}", shown(&why.to_string())), "start Redis; SILVASONIC_REDIS_URL"),
    }
}

fn workspace(config: &Config, findings: &mut Findings) {
    let folder = &config.workspace_local;
    // It is made at the first start, so what counts is the first folder above it that is there.
    let Some(there) = folder.ancestors().find(|folder| folder.exists()) else {
        return findings.fail("workspace", format!("{} is not there", folder.display()), "set SILVASONIC_WORKSPACE_PATH");
    };
    if let Err(why) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let cure = "give it to the user that runs the Controller, or mount it writable";
        return findings.fail("workspace", format!("{} cannot be written to: {why}", there.display()), cure);
    }
    findings.ok("workspace", folder.display().to_string());
    space(there, findings);
}

fn space(folder: &Path, findings: &mut Findings) {
    match statvfs(folder) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let text = format!("{:.1} of {:.1} GB free", gigabytes(free), gigabytes(disk.f_blocks.saturating_mul(disk.f_frsize)));
            if free < LITTLE_SPACE {
                findings.warn("disk", text, "make room: one microphone at 384 kHz writes 2.8 GB an hour");
            } else {
                findings.ok("disk", text);
            }
        }
        Err(why) => findings.warn("disk", format!("{}: {why}", folder.display()), "look at the mount"),
    }
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn profiles(config: &Config, findings: &mut Findings) {
    let cure = "`silvasonic-controller profiles check` shows each file";
    match profiles::check(config.config_dir.clone()) {
        Ok((true, lines)) => findings.ok("profiles", format!("{} files are valid", lines.lines().count())),
        Ok((false, lines)) => {
            let faults = lines.lines().filter(|line| !line.ends_with(": ok")).map(|line| shown(line).to_string());
            faults.for_each(|fault| findings.fail("profiles", fault, cure));
        }
        Err(why) => findings.fail("profiles", why, "set SILVASONIC_CONFIG_DIR, or leave it empty for the built-in copies"),
    }
}

fn to_text(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let cure = if finding.cure.is_empty() { String::new() } else { format!(" -> {}", finding.cure) };
        [finding.verdict.word().to_owned(), finding.subject.to_owned(), format!("{}{cure}", finding.text)]
    };
    table(&findings.iter().map(line).collect::<Vec<_>>())
}

fn to_json(findings: &[Finding], well: bool) -> String {
    let one = |finding: &Finding| {
        let cure = Some(&finding.cure).filter(|cure| !cure.is_empty());
        json!({"subject": finding.subject, "verdict": finding.verdict.word(), "text": finding.text, "cure": cure})
    };
    json!({"ok": well, "findings": findings.iter().map(one).collect::<Value>()}).to_string() + "\n"
}
