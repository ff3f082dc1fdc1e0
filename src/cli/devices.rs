//! `silvasonic-controller devices`, and the commands that write a user's decision about a microphone.
//!
//! The table is computed from hardware, database and Podman with the functions that the Controller uses, so it does not
//! need a running Controller. What only the Controller knows (back-off, for how long no frames have arrived) is read from
//! its last heartbeat in Redis, if there is one. A decision writes the columns that the web interface writes, and nudges the Controller.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use redis::RedisError;
use serde_json::{Map, Value, json};

use crate::cache;
use crate::cli::arguments::{Arguments, Command, Format};
use crate::cli::workers;
use crate::collect::by_insertion;
use crate::config::Config;
use crate::containers::lister::{compare, recorders};
use crate::database::connection::{self, reason};
use crate::database::statements::Decision;
use crate::decide::capture::{Capture, Captures, Observation};
use crate::decide::container::{Container, State};
use crate::decide::desired::{Desired, SpecCache, desired};
use crate::decide::device::{Microphone, identify};
use crate::decide::past::{Compared, Past};
use crate::decide::plan::{Plan, View, plan};
use crate::decide::presence::Presences;
use crate::decide::reason::{ReasonInput, online, reasons, unmatched};
use crate::decide::registry::{Enrollment, Registry};
use crate::decide::scope::Scope;
use crate::decide::spec::DEVICE_ID;
use crate::event::Comparison;
use crate::hardware::pcm::{Proof, Recorder, prove};
use crate::hardware::sysfs;
use crate::json::{from_python, one_line};
use crate::podman::client::Podman;
use crate::redis::connection::{Connection, address};
use crate::redis::nudge;
use crate::text::{shown, table};

/// Memory for a reply: a heartbeat takes about 1 KiB for each microphone.
const REPLY_LIMIT: usize = 1 << 20;
pub(super) const HEARTBEAT_KEY: &str = "silvasonic:status:controller";
/// Refresh interval of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);

/// One line of the table.
#[derive(Debug)]
struct TableRow {
    id: String,
    name: String,
    port: Option<String>,
    card: Option<u32>,
    alsa_device: Option<String>,
    profile: Option<String>,
    scores: Vec<(String, u8)>,
    enrollment: String,
    recording: Option<bool>,
    stalled: bool,
    reason: String,
    capture: Option<Value>,
    effort: Option<Value>,
}

/// Shows the microphones, once or with `--watch` repeatedly. `false` if a Recorder has opened its card and gets no frames.
///
/// # Errors
/// Why the database cannot be read, if there is no saved state either.
pub fn show(config: &Config, given: &Arguments<'_>) -> Result<(bool, String), String> {
    let render = |rows: &[TableRow], notes: &[String]| match given.format() {
        Format::Json => {
            let all = json!({"microphones": rows.iter().map(TableRow::to_json).collect::<Value>(), "notes": notes});
            one_line(&all.to_string()) + "\n"
        }
        Format::Text => to_text(rows, notes),
    };
    if !given.has("--watch") {
        let (rows, notes) = read_all(config)?;
        return Ok((!rows.iter().any(|row| row.stalled), render(&rows, &notes)));
    }
    let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    loop {
        let screen = read_all(config).map_or_else(|why| format!("{why}\n"), |(rows, notes)| render(&rows, &notes));
        let mut output = io::stdout().lock();
        if output.write_all(format!("{clear}{screen}").as_bytes()).and_then(|()| output.flush()).is_err() {
            return Ok((true, String::new()));
        }
        drop(output);
        thread::sleep(REFRESH);
    }
}

/// Writes a user's decision about one microphone to the database, and nudges the Controller.
///
/// # Errors
/// No such microphone or profile, or why the database cannot be read or written.
pub fn decide(config: &Config, given: &Arguments<'_>) -> Result<(bool, String), String> {
    let mut db = connection::Connection::connect_for_command(&config.database).map_err(|why| cannot_read(&why))?;
    let registry = Registry::read(&db.snapshot(&Scope::Everything).map_err(|error| cannot_read(&reason(&error)))?, None);
    let typed = given.value("ID").unwrap_or_default();
    if let (Some(name), switch) = (workers::find(config, &registry, typed), given.command) {
        let enabled = match switch {
            Command::Enable => true,
            Command::Disable => false,
            _ => return Err(format!("{name} is a worker; it can be enabled or disabled")),
        };
        db.switch_service(&name, enabled).map_err(|error| format!("{name}: {}", reason(&error)))?;
        let outcome = if enabled { "enabled" } else { "disabled" };
        return Ok((true, format!("worker {name} is {outcome}{}\n", nudge(config))));
    }
    let id = find_id(&registry, typed)?;
    let device = registry.devices.get(&id).and_then(|device| device.as_ref().ok());
    let profile = given.value("PROFILE").map(str::to_owned).or_else(|| device?.profile.clone());
    let (decision, outcome) = match given.command {
        Command::Enroll => {
            let slugs: Vec<&str> = registry.profiles.keys().map(String::as_str).collect();
            let slugs = slugs.join(", ");
            let Some(profile) = profile else { return Err(format!("{id} has no profile; specify one of {slugs}")) };
            match registry.profiles.get(&profile) {
                None => return Err(format!("PROFILE: expected one of {slugs}, got {:?}", shown(&profile).to_string())),
                Some(Err(why)) => return Err(format!("profile {profile} is invalid: {why}")),
                Some(Ok(_)) => {}
            }
            let outcome = format!("enrolled with profile {profile}");
            (Decision::Enroll(profile), outcome)
        }
        Command::Ignore => (Decision::Ignore, "ignored".to_owned()),
        Command::Reset => (Decision::Reset, "pending, without a profile, until a user decides again".to_owned()),
        Command::Enable => (Decision::Enable, "enabled".to_owned()),
        _ => (Decision::Disable, "disabled".to_owned()),
    };
    db.decide(&id, &decision).map_err(|error| format!("{id}: {}", reason(&error)))?;
    Ok((true, format!("{id} is {outcome}{}\n", nudge(config))))
}

/// Nudges the Controller. Returns a phrase if no Controller received that.
fn nudge(config: &Config) -> &'static str {
    let nudged = connect(&config.redis_url)
        .and_then(|mut redis| redis::cmd("PUBLISH").arg(nudge::CHANNEL).arg(nudge::PAYLOAD).query::<i64>(&mut redis));
    match nudged {
        Ok(1..) => "",
        Ok(_) => "; no Controller received the nudge",
        Err(_) => "; Redis is unavailable, so it takes effect at the next tick of a running Controller",
    }
}

/// The id that equals `typed`, or the only id that begins with it.
fn find_id(registry: &Registry, typed: &str) -> Result<String, String> {
    if registry.devices.contains_key(typed) {
        return Ok(typed.to_owned());
    }
    let matches: Vec<&String> = registry.devices.keys().filter(|id| id.starts_with(typed)).collect();
    match matches[..] {
        [one] => Ok(one.clone()),
        [] => {
            let known: Vec<String> = registry.devices.keys().map(|id| shown(id).to_string()).collect();
            Err(format!("ID: expected one of {}, got {:?}", known.join(", "), shown(typed).to_string()))
        }
        _ => Err(format!("ID: {} ids begin with {:?}; specify more characters", matches.len(), shown(typed).to_string())),
    }
}

pub(super) fn cannot_read(why: &str) -> String {
    format!("cannot read PostgreSQL: {why}")
}

/// Reads hardware, database and Podman. The notes list what could not be read.
fn read_all(config: &Config) -> Result<(Vec<TableRow>, Vec<String>), String> {
    let mut notes = Vec::new();
    let rows = connection::Connection::connect_for_command(&config.database)
        .and_then(|mut db| db.snapshot(&Scope::Everything).map_err(|error| reason(&error)))
        .map_err(|why| cannot_read(&why));
    let database_known = rows.is_ok();
    let rows = rows.or_else(|why| match cache::load(&config.workspace_local) {
        Ok(Some(rows)) => {
            notes.push(format!("{why}; showing the last known state"));
            Ok(rows)
        }
        _ => Err(why),
    })?;
    let registry = Registry::read(&rows, None);
    notes.extend(registry.faults.iter().map(|fault| format!("invalid row in the database: {fault}")));
    let presences = presences(config, &registry, &mut notes);
    notes.extend(fallback(config, &registry, &presences).map(|(text, fix)| format!("{text}: {fix}")));
    let podman = Podman::new(config.socket.clone());
    let containers = recorders(&podman, &config.recorder.owner).map_err(|error| format!("{}: {error}", config.socket.display()));
    let desired = desired(&registry, database_known, &presences, &mut SpecCache::new(config.recorder.clone()));
    let (plan, _) = first_plan(&podman, containers.as_deref().unwrap_or_default(), &desired, database_known, registry.system.max_recorders);
    let containers = containers.as_deref().map_err(String::as_str);
    let holds = plan.holds.iter().map(|(device, hold)| (device.clone(), hold.to_string())).collect();
    let (proofs, captures) = captures(config, &registry, &presences, containers.unwrap_or_default());
    let input =
        ReasonInput { registry: &registry, presences: &presences, desired: &desired, holds: &holds, containers, captures: &captures };
    let reported = heartbeat(config, "devices");
    let runway = heartbeat(config, "runway");
    let runway = runway.get("text").and_then(Value::as_str);
    notes.extend(runway.map(|text| format!("the workspace is {} at the rate of the last heartbeat", shown(text))));
    let rows = reasons(&input).into_iter().map(|(id, reason)| {
        let device = registry.devices.get(&id).and_then(|device| device.as_ref().ok());
        let microphone = online(&presences, &id);
        let text = |key: &str| device.and_then(|device| device.config.get(key)?.as_str()).map(str::to_owned);
        let effort = reported.get(&id).map(|reported| reported["effort"].clone()).filter(|effort| !effort.is_null());
        // If the last heartbeat agrees, it has more details.
        let reported = reported.get(&id).filter(|reported| containers.is_ok() && reported["recording"].as_bool() == reason.recording);
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
            alsa_device: microphone.map(Microphone::alsa_device),
            profile: device.and_then(|device| device.profile.clone()),
            scores: microphone
                .map(|microphone| registry.scores(microphone).map(|(slug, score)| (slug.to_owned(), score)).collect())
                .unwrap_or_default(),
            enrollment: enrollment.unwrap_or("-").to_owned(),
            recording: reason.recording,
            stalled: reason.stalled || reported.is_some_and(|reported| reported["stalled"] == true),
            reason: reported.and_then(|reported| reported["reason"].as_str()).map_or(reason.text, str::to_owned),
            capture: reported
                .map(|reported| reported["capture"].clone())
                .filter(|capture| !capture.is_null())
                .or_else(|| proofs.get(&id).map(Proof::to_json)),
            effort,
            id,
        }
    });
    Ok((rows.collect(), notes))
}

/// What a Controller that starts now would do, and what it would know about containers that carry another hash.
pub(super) fn first_plan(
    podman: &Podman,
    containers: &[Container],
    desired: &SortedMap<String, Desired>,
    desired_complete: bool,
    max_recorders: Option<usize>,
) -> (Plan, Past) {
    let mut past = Past::default();
    let (now, wall, none) = (Instant::now(), SystemTime::now(), SortedSet::new());
    let with = |past: &Past| {
        let (busy, stuck) = (&none, &none);
        plan(&View { containers, desired, desired_complete, max_recorders, past, busy, replacing: false, stuck, now, wall })
    };
    for Comparison { container, spec, differences } in compare(podman, with(&past).compare) {
        if let Ok(differences) = differences {
            past.compared.insert(container, Compared { hash: spec.hash().to_owned(), differences });
        }
    }
    (with(&past), past)
}

/// The microphones that no profile matches, or why their profile cannot serve; and what to do.
pub(super) fn fallback(config: &Config, registry: &Registry, presences: &Presences) -> Option<(String, &'static str)> {
    let slug = config.fallback_profile.as_deref();
    if let Some(fault) = slug.and_then(|slug| registry.fallback_fault(slug)) {
        return Some((fault, "set the slug of a profile, or no value"));
    }
    let ids: Vec<String> = unmatched(registry, presences).iter().map(|id| shown(id).to_string()).collect();
    let fix = match slug {
        None => "assign a profile with `enroll ID PROFILE`; SILVASONIC_FALLBACK_PROFILE=generic_usb enrols microphones like these",
        Some(_) => "assign a profile with `enroll ID PROFILE`",
    };
    (!ids.is_empty()).then(|| (format!("no profile matches {}", ids.join(", ")), fix))
}

/// What the kernel reports about the Recorders that run.
fn captures(
    config: &Config,
    registry: &Registry,
    presences: &Presences,
    containers: &[Container],
) -> (SortedMap<String, Proof>, SortedMap<String, Capture>) {
    let running: SortedMap<&str, &Container> = containers
        .iter()
        .filter(|container| container.state == State::Running)
        .filter_map(|container| Some((container.labels.get(DEVICE_ID)?.as_str(), container)))
        .collect();
    let recorders: Vec<Recorder> = running
        .iter()
        .filter_map(|(device, container)| Recorder::new(registry, presences, device, (&container.id, container.pid)))
        .collect();
    let (proofs, now) = (prove(&config.host_root, &recorders), Instant::now());
    let mut captures = Captures::new(Duration::ZERO, false);
    let observations = recorders.iter().map(|Recorder { device, container, .. }| {
        let read = proofs.get(device).map(|proof| (&proof.state, proof.pointer(), now));
        Observation { device, container, started: 0, hash: "", is_holder: false, read }
    });
    captures.observe(observations, now, SystemTime::now());
    let captures = captures.all().map(|(device, capture)| (device.to_owned(), capture)).collect();
    (proofs, captures)
}

/// The microphones that are connected now, without a grace period.
pub(super) fn presences(config: &Config, registry: &Registry, notes: &mut Vec<String>) -> Presences {
    let now = Instant::now();
    let mut presences = Presences::new(Duration::ZERO);
    registry.add_devices_to(&mut presences, now);
    match sysfs::scan(&config.host_root, &[], |_, _| {}) {
        Ok(scan) => {
            notes.extend(scan.unclear.iter().map(|(card, why)| format!("cannot identify card {card}: {}", shown(why))));
            let observed = identify(scan.microphones, &registry.known_ports(), |id| presences.may_be_on(id, &scan.unclear));
            presences.observe(&observed, &scan.unclear, now);
        }
        Err(why) => notes.push(format!("cannot read sound cards: {why}")),
    }
    presences
}

/// A section of `meta` in the last heartbeat of the Controller; empty if there is none.
pub(super) fn heartbeat(config: &Config, section: &str) -> Map<String, Value> {
    let read = || -> Option<Map<String, Value>> {
        let mut redis = connect(&config.redis_url).ok()?;
        let text: String = redis::cmd("GET").arg(HEARTBEAT_KEY).query(&mut redis).ok()?;
        let heartbeat: Value = from_python(&text).ok()?;
        heartbeat["meta"][section].as_object().cloned()
    };
    read().unwrap_or_default()
}

/// A connection for one or two commands.
///
/// # Errors
/// Why Redis is unavailable.
pub fn connect(url: &str) -> Result<Connection, RedisError> {
    Connection::open(&address(url)?, REPLY_LIMIT)
}

impl TableRow {
    fn to_json(&self) -> Value {
        let scores = by_insertion(self.scores.iter().map(|(slug, score)| (slug.clone(), (*score).into())));
        json!({"id": self.id, "name": self.name, "port": self.port, "card": self.card, "alsa_device": self.alsa_device, "profile": self.profile, "scores": scores,
            "enrollment": self.enrollment, "recording": self.recording, "stalled": self.stalled, "reason": self.reason, "capture": self.capture,
            "effort": self.effort})
    }
}

/// The state of the PCM, and the measured rate if it is known.
fn pcm_cell(state: &str, effort: Option<&Value>) -> String {
    let rate = effort.and_then(|effort| Some((effort["rate"]["hz"].as_f64()?, effort["rate"]["ppm"].as_f64()?)));
    rate.map_or_else(|| shown(state).to_string(), |(hz, ppm)| format!("{}, {hz:.2} Hz ({ppm:+.1} ppm)", shown(state)))
}

/// Which part of the last 24 h was recorded.
fn share_cell(effort: Option<&Value>) -> String {
    effort.and_then(|effort| effort["recorded_24h"].as_f64()).map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn to_text(rows: &[TableRow], notes: &[String]) -> String {
    let mut cells = vec![["ID", "NAME", "PORT", "CARD", "PROFILE", "SCORES", "ENROLLMENT", "PCM", "24 H", "STATE"].map(str::to_owned)];
    for row in rows {
        let scores: Vec<String> = row.scores.iter().map(|(slug, score)| format!("{} {score}", shown(slug))).collect();
        let pcm = row.capture.as_ref().map_or("-", |capture| capture["state"].as_str().unwrap_or("-"));
        cells.push([
            shown(&row.id).to_string(),
            shown(&row.name).to_string(),
            row.port.as_ref().map_or_else(|| "-".to_owned(), |port| shown(port).to_string()),
            row.alsa_device.clone().unwrap_or_else(|| "-".to_owned()),
            row.profile.as_ref().map_or_else(|| "-".to_owned(), |profile| shown(profile).to_string()),
            if scores.is_empty() { "-".to_owned() } else { scores.join(", ") },
            row.enrollment.clone(),
            pcm_cell(pcm, row.effort.as_ref()),
            share_cell(row.effort.as_ref()),
            shown(&row.reason).to_string(),
        ]);
    }
    let mut text = if rows.is_empty() { "no microphone is known or connected\n".to_owned() } else { table(&cells) };
    notes.iter().for_each(|note| text.extend([note, "\n"]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_day_and_the_measured_rate_are_shown() {
        let effort = json!({"recorded_24h": 0.9731, "rate": {"hz": 383_998.2, "ppm": -4.7}});
        assert_eq!(pcm_cell("running", Some(&effort)), "running, 383998.20 Hz (-4.7 ppm)");
        assert_eq!(share_cell(Some(&effort)), "97.3 %");
        let early = json!({"recorded_24h": 0.0, "rate": null});
        assert_eq!((pcm_cell("running", Some(&early)), share_cell(Some(&early))), ("running".to_owned(), "0.0 %".to_owned()));
        assert_eq!((pcm_cell("-", None), share_cell(None)), ("-".to_owned(), "-".to_owned()));
    }

    #[test]
    fn foreign_text_stays_on_the_line_of_its_microphone() {
        let hostile = "a\n0869-0389-2\u{1b}[2J\u{61c}";
        let row = TableRow {
            id: hostile.to_owned(),
            name: hostile.to_owned(),
            port: Some(hostile.to_owned()),
            card: None,
            alsa_device: None,
            profile: Some(hostile.to_owned()),
            scores: vec![(hostile.to_owned(), 50)],
            enrollment: "pending".to_owned(),
            recording: Some(false),
            stalled: false,
            // these two may come from a heartbeat in Redis
            reason: hostile.to_owned(),
            capture: Some(json!({"state": hostile})),
            effort: Some(json!({"recorded_24h": hostile, "rate": hostile})),
        };
        let text = to_text(&[row], &[]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains(['\u{1b}', '\u{61c}']), "{text:?}");
    }
}
