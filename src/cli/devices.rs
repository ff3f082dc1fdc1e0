//! `silvasonic-controller devices`, and the commands by which a user decides about a microphone.
//!
//! The table is made from hardware, database and Podman by the same rules that the running Controller goes by, so it needs
//! none. What only that one knows (back-off, proof of capture) is taken from its last heartbeat, if Redis has one. The
//! decisions write the columns that the web interface writes, and nudge.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use redis::{Client, Connection, RedisError};
use serde_json::{Map, Value, json};

use crate::cache;
use crate::cli::arguments::{Arguments, Name};
use crate::collect::by_insertion;
use crate::config::Config;
use crate::containers::lister::recorders;
use crate::database::connection::{self, Decision, reason};
use crate::decide::desired::{SpecCache, desired};
use crate::decide::device::identify;
use crate::decide::past::Past;
use crate::decide::plan::{View, plan};
use crate::decide::presence::Presences;
use crate::decide::reason::{ReasonInput, online, reasons};
use crate::decide::registry::{Enrollment, Registry};
use crate::hardware::sysfs;
use crate::podman::client::Podman;
use crate::redis::nudge;
use crate::text::{shown, table};

const REDIS: Duration = Duration::from_secs(2);
const STATUS: &str = "silvasonic:status:controller";
/// Time between two pictures of `--watch`.
const WATCH: Duration = Duration::from_secs(1);

/// What a microphone's line shows.
#[derive(Debug)]
struct TableRow {
    id: String,
    name: String,
    port: Option<String>,
    card: Option<u32>,
    profile: Option<String>,
    scores: Vec<(String, u8)>,
    enrollment: String,
    recording: Option<bool>,
    reason: String,
    capture: Option<Value>,
}

/// Shows the microphones once, or again and again.
///
/// # Errors
/// Why the database cannot be read, when nothing was kept of it either.
pub fn show(config: &Config, given: &Arguments<'_>) -> Result<(bool, String), String> {
    let render = |lines: &[TableRow], notes: &[String]| match given.has("--json") {
        true => json!({"microphones": lines.iter().map(TableRow::to_json).collect::<Value>(), "notes": notes}).to_string() + "\n",
        false => text(lines, notes),
    };
    if !given.has("--watch") {
        let (lines, notes) = look(config)?;
        return Ok((true, render(&lines, &notes)));
    }
    let home = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    loop {
        let picture = look(config).map_or_else(|why| format!("{why}\n"), |(lines, notes)| render(&lines, &notes));
        let mut output = io::stdout().lock();
        if output.write_all(format!("{home}{picture}").as_bytes()).and_then(|()| output.flush()).is_err() {
            return Ok((true, String::new()));
        }
        drop(output);
        thread::sleep(WATCH);
    }
}

/// Writes what the user decided about one microphone, and nudges.
///
/// # Errors
/// No such microphone or profile, or why the database refused.
pub fn decide(config: &Config, given: &Arguments<'_>) -> Result<(bool, String), String> {
    let mut db = connection::Connection::connect(&config.database).map_err(|error| unreadable(&reason(&error)))?;
    let registry = Registry::read(&db.snapshot().map_err(|error| unreadable(&reason(&error)))?);
    let id = find(&registry, given.value("ID").unwrap_or_default())?;
    let device = registry.devices.get(&id).and_then(|device| device.as_ref().ok());
    let profile = given.value("PROFILE").map(str::to_owned).or_else(|| device?.profile.clone());
    let (decision, told) = match given.name {
        Name::Enroll => {
            let slugs: Vec<&str> = registry.profiles.keys().map(String::as_str).collect();
            let slugs = slugs.join(", ");
            let Some(profile) = profile else { return Err(format!("{id} has no profile yet; name one: {slugs}")) };
            match registry.profiles.get(&profile) {
                None => return Err(format!("PROFILE: expected one of {slugs}, got {:?}", shown(&profile).to_string())),
                Some(Err(why)) => return Err(format!("profile {profile} is invalid: {why}")),
                Some(Ok(_)) => {}
            }
            let told = format!("enrolled with profile {profile}");
            (Decision::Enroll(profile), told)
        }
        Name::Ignore => (Decision::Ignore, "ignored".to_owned()),
        Name::Reset => (Decision::Reset, "pending, without a profile; a user has to decide anew".to_owned()),
        Name::Enable => (Decision::Enabled(true), "enabled".to_owned()),
        _ => (Decision::Enabled(false), "disabled".to_owned()),
    };
    db.decide(&id, &decision).map_err(|error| format!("{id}: {}", reason(&error)))?;
    let nudged = connect(&config.redis_url)
        .and_then(|mut redis| redis::cmd("PUBLISH").arg(nudge::CHANNEL).arg(nudge::PAYLOAD).query::<i64>(&mut redis));
    let late = match nudged {
        Ok(1..) => "",
        Ok(_) => "; no Controller listens now",
        Err(_) => "; Redis is away, a running Controller sees it at its next tick",
    };
    Ok((true, format!("{id} is {told}{late}\n")))
}

/// The id that was typed, or the only one that begins so.
fn find(registry: &Registry, typed: &str) -> Result<String, String> {
    if registry.devices.contains_key(typed) {
        return Ok(typed.to_owned());
    }
    let fits: Vec<&String> = registry.devices.keys().filter(|id| id.starts_with(typed)).collect();
    match fits[..] {
        [one] => Ok(one.clone()),
        [] => {
            let known: Vec<String> = registry.devices.keys().map(|id| shown(id).to_string()).collect();
            Err(format!("ID: expected one of {}, got {:?}", known.join(", "), shown(typed).to_string()))
        }
        _ => Err(format!("ID: {:?} is the beginning of {} ids; type more of it", shown(typed).to_string(), fits.len())),
    }
}

fn unreadable(why: &str) -> String {
    format!("PostgreSQL cannot be read: {why}")
}

/// Reads hardware, database and Podman; what could not be read is among the notes.
fn look(config: &Config) -> Result<(Vec<TableRow>, Vec<String>), String> {
    let mut notes = Vec::new();
    let rows =
        connection::Connection::connect(&config.database).and_then(|mut db| db.snapshot()).map_err(|error| unreadable(&reason(&error)));
    let database_known = rows.is_ok();
    let rows = rows.or_else(|why| match cache::load(&config.workspace_local) {
        Ok(Some(rows)) => {
            notes.push(format!("{why}; shown is what it said last"));
            Ok(rows)
        }
        _ => Err(why),
    })?;
    let registry = Registry::read(&rows);
    notes.extend(registry.faults.iter().map(|fault| format!("unusable in the database: {fault}")));
    let presences = presences(config, &registry, &mut notes);
    let containers = recorders(&Podman::new(config.socket.clone()), &config.recorder.owner).map_err(|error| error.to_string());
    let desired = desired(&registry, database_known, &presences, &mut SpecCache::new(config.recorder.clone()));
    let plan = plan(&View {
        containers: containers.as_deref().unwrap_or_default(),
        desired: &desired,
        desired_complete: database_known,
        max_recorders: registry.system.max_recorders,
        past: &Past::default(),
        busy: &BTreeSet::new(),
        replacing: false,
        stuck: &BTreeSet::new(),
        now: Instant::now(),
        wall: SystemTime::now(),
    });
    let containers = containers.as_deref().map_err(String::as_str);
    let holds = by_insertion(plan.holds.iter().map(|(device, hold)| (device.clone(), hold.to_string())));
    let known = ReasonInput { registry: &registry, presences: &presences, desired: &desired, holds: &holds, containers };
    let told = heartbeat(config);
    let lines = reasons(&known).into_iter().map(|(id, reason)| {
        let device = registry.devices.get(&id).and_then(|device| device.as_ref().ok());
        let microphone = online(&presences, &id);
        let text = |key: &str| device.and_then(|device| device.config.get(key)?.as_str()).map(str::to_owned);
        // A Controller that sees the same knows more.
        let same = told.get(&id).filter(|told| told["recording"].as_bool() == reason.recording);
        let enrollment = device.map(|device| match (device.enabled, device.enrollment) {
            (false, _) => "disabled",
            (_, Enrollment::Pending) => "pending",
            (_, Enrollment::Enrolled) => "enrolled",
            (_, Enrollment::Ignored) => "ignored",
        });
        TableRow {
            name: device.map(|device| device.model.clone()).unwrap_or_default(),
            port: microphone
                .and_then(|microphone| microphone.usb.as_ref())
                .map(|usb| usb.bus_path.clone())
                .or_else(|| text("usb_bus_path")),
            card: microphone.map(|microphone| microphone.card),
            profile: device.and_then(|device| device.profile.clone()),
            scores: microphone
                .map(|microphone| registry.scores(microphone).map(|(slug, score)| (slug.to_owned(), score)).collect())
                .unwrap_or_default(),
            enrollment: enrollment.unwrap_or("-").to_owned(),
            recording: reason.recording,
            reason: same.and_then(|told| told["reason"].as_str()).map_or(reason.text, str::to_owned),
            capture: same.map(|told| told["capture"].clone()).filter(|capture| !capture.is_null()),
            id,
        }
    });
    Ok((lines.collect(), notes))
}

/// Who is plugged in now, without a grace period.
fn presences(config: &Config, registry: &Registry, notes: &mut Vec<String>) -> Presences {
    let now = Instant::now();
    let mut presences = Presences::new(Duration::ZERO);
    registry.add_devices_to(&mut presences, now);
    match sysfs::scan(&config.host_root, &[], |_, _| {}) {
        Ok(scan) => {
            notes.extend(scan.unclear.iter().map(|(card, why)| format!("card {card} cannot be told now: {}", shown(why))));
            let seen = identify(scan.microphones, &registry.known_ports(), |id| presences.may_be_on(id, &scan.unclear));
            presences.observe(&seen, &scan.unclear, now);
        }
        Err(why) => notes.push(format!("the hardware cannot be read: {why}")),
    }
    presences
}

/// `meta.devices` of the running Controller's last heartbeat.
fn heartbeat(config: &Config) -> Map<String, Value> {
    let read = || -> Option<Map<String, Value>> {
        let mut redis = connect(&config.redis_url).ok()?;
        let text: String = redis::cmd("GET").arg(STATUS).query(&mut redis).ok()?;
        let beat: Value = serde_json::from_str(&text).ok()?;
        beat["meta"]["devices"].as_object().cloned()
    };
    read().unwrap_or_default()
}

/// A connection for one or two commands.
///
/// # Errors
/// Why there is none.
pub fn connect(url: &str) -> Result<Connection, RedisError> {
    let connection = Client::open(url)?.get_connection_with_timeout(REDIS)?;
    connection.set_read_timeout(Some(REDIS))?;
    connection.set_write_timeout(Some(REDIS))?;
    Ok(connection)
}

impl TableRow {
    fn to_json(&self) -> Value {
        let scores: Map<String, Value> = by_insertion(self.scores.iter().map(|(slug, score)| (slug.clone(), (*score).into())));
        json!({"id": self.id, "name": self.name, "port": self.port, "card": self.card, "profile": self.profile, "scores": scores,
            "enrollment": self.enrollment, "recording": self.recording, "reason": self.reason, "capture": self.capture})
    }
}

fn text(lines: &[TableRow], notes: &[String]) -> String {
    let mut rows = vec![["ID", "NAME", "PORT", "CARD", "PROFILE", "SCORES", "ENROLLMENT", "PCM", "STATE"].map(str::to_owned)];
    for line in lines {
        let scores: Vec<String> = line.scores.iter().map(|(slug, score)| format!("{} {score}", shown(slug))).collect();
        let pcm = line.capture.as_ref().map_or("-", |capture| capture["state"].as_str().unwrap_or("-"));
        rows.push([
            shown(&line.id).to_string(),
            shown(&line.name).to_string(),
            line.port.as_ref().map_or_else(|| "-".to_owned(), |port| shown(port).to_string()),
            line.card.map_or_else(|| "-".to_owned(), |card| card.to_string()),
            line.profile.as_ref().map_or_else(|| "-".to_owned(), |profile| shown(profile).to_string()),
            if scores.is_empty() { "-".to_owned() } else { scores.join(", ") },
            line.enrollment.clone(),
            pcm.to_owned(),
            line.reason.clone(),
        ]);
    }
    let mut text = if lines.is_empty() { "no microphone is known or plugged in\n".to_owned() } else { table(&rows) };
    notes.iter().for_each(|note| text.extend([note, "\n"]));
    text
}
