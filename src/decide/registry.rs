//! The rows of the database, and the changes that the Controller makes to them.
//!
//! Rows arrive as JSON text, so a row of another schema or with an invalid value affects only itself. Invariant: the
//! Controller does not overwrite the decisions of a user. It sets the columns that follow the hardware. It sets a
//! profile and an enrolment once, for a device without a decision, and records this in `devices.config`:
//!
//! | key                     | meaning                                                                         |
//! | ----------------------- | ------------------------------------------------------------------------------- |
//! | `auto_enrolled_at`      | the Controller enrolled the device, and does not do it again                    |
//! | `auto_suggested`        | the profile that the Controller suggested; it does not suggest it again         |
//! | `enrollment_decided_at` | the device was enrolled or ignored; if it is `pending` later, a user decided so |

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::collect::by_insertion;
use crate::decide::container::Container;
use crate::decide::device::{Microphone, Port, Usb, belongs_to_profile, folder_of, is_workspace_name, workspace_name};
use crate::decide::lenient;
use crate::decide::presence::{Presence, Presences};
use crate::decide::profile::{self, Match, ProfileConfig};
use crate::decide::spec::DEVICE_ID;
use crate::json;
use crate::text::{ascii, ascii_map, ascii_value, shown};

/// One row as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Row {
    /// `device`, `profile`, `service` or `system`; `absent` is a device of which only port and unique columns were read.
    pub kind: String,
    /// Primary key.
    pub key: String,
    /// The row, for `system` its value, or for `service` whether it is enabled, as JSON; `None` if it is too large or not readable.
    pub body: Option<String>,
    /// Why it is not readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// All rows that the Controller reads.
#[derive(Debug, Default)]
pub struct Registry {
    /// Devices by stable id, or why a row is invalid.
    pub devices: SortedMap<String, Result<Device, String>>,
    /// Profiles by slug, or why a row is invalid.
    pub profiles: SortedMap<String, Result<ProfileConfig, String>>,
    /// Workers by name: whether each is enabled, or why a row is invalid.
    pub services: SortedMap<String, Result<bool, String>>,
    /// Station-wide settings.
    pub system: System,
    /// The faults of single rows, one line each, with row, value and allowed values.
    pub faults: SortedSet<String>,
    serial_numbers: SortedSet<String>,
    /// USB port at which each device was last observed; invalid rows included.
    ports: SortedMap<String, Port>,
    workspace_names: SortedMap<String, String>,
}

/// The part of `system_config.system` that the Controller needs.
///
/// A row or key that is absent or invalid says nothing: the last known value stays in force. If no value was ever
/// known, a default applies that stops no Recorder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Maximum number of Recorders. `None` = never known: [`DEFAULT_MAX_RECORDERS`] for new Recorders, and none is stopped.
    pub max_recorders: Option<usize>,
    /// Whether a profile with the USB ids of a new device enrols it.
    pub auto_enrollment: bool,
}

impl Default for System {
    fn default() -> Self {
        Self { max_recorders: None, auto_enrollment: true }
    }
}

/// Longest key of a row, in bytes.
const KEY_LIMIT: usize = 256;

/// Number of Recorders up to which new ones start while the setting is unknown.
pub const DEFAULT_MAX_RECORDERS: usize = 5;

/// The decision about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enrollment {
    /// No decision yet.
    Pending,
    /// Record it.
    Enrolled,
    /// Do not record it.
    Ignored,
}

/// A valid row of `devices`.
#[derive(Debug)]
pub struct Device {
    /// `status = 'online'`
    pub online: bool,
    /// Card name when it was last observed.
    pub model: String,
    /// The decision about it.
    pub enrollment: Enrollment,
    /// Whether recording is enabled.
    pub enabled: bool,
    /// Profile, if any.
    pub profile: Option<String>,
    /// Facts about the hardware, the keys in the table above, and keys of other programs.
    pub config: Map<String, Value>,
    /// Workspace name, if there is a valid one.
    pub workspace: Option<String>,
    /// When it was last connected, if it is offline; as text that begins with the date.
    pub last_seen: Option<String>,
}

impl Device {
    /// Whether the Controller or a user ever enrolled or ignored it.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        ["auto_enrolled_at", "enrollment_decided_at"].iter().any(|key| self.config.get(*key).is_some_and(|value| !value.is_null()))
    }

    /// ALSA card index at which it was last observed.
    #[must_use]
    pub fn last_card(&self) -> Option<u32> {
        self.config.get("alsa_card_index")?.as_u64()?.try_into().ok()
    }
}

#[derive(Deserialize)]
struct DeviceRow {
    model: String,
    status: String,
    enrollment_status: Enrollment,
    enabled: bool,
    profile_slug: Option<String>,
    #[serde(default)]
    config: Value,
    workspace_name: Option<String>,
    #[serde(default)]
    last_seen: Value,
}

/// A change of one row of `devices`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// Stable id.
    pub device: String,
    /// Columns of a new row; `None` changes an existing row.
    pub insert: Option<Insert>,
    /// `online` or `offline`; also sets `last_seen`.
    pub status: Option<&'static str>,
    /// Card name.
    pub model: Option<String>,
    /// Keys to set in `config`.
    pub config: Map<String, Value>,
    /// Profile and enrolment to set, if there is still no decision.
    pub enroll: Option<(String, Enrollment)>,
    /// Workspace name to set.
    pub workspace: Option<String>,
    /// Log line for when it is written.
    pub note: Option<String>,
}

/// Columns that are set only in a new row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insert {
    /// Unique: the serial number, or the stable id if there is none or another device has the same one.
    pub serial_number: String,
}

/// What decides about rows, beside the rows and the microphones.
struct Rule<'a> {
    /// Wall-clock time for `devices.config`.
    at: &'a str,
    /// A valid profile for those that no profile matches.
    fallback: Option<&'a str>,
    /// All our containers; `None` = unknown.
    containers: Option<&'a [Container]>,
}

/// Unique values that earlier changes have taken.
#[derive(Default)]
struct New {
    /// Workspace names, each with its device.
    names: SortedMap<String, String>,
    serial_numbers: SortedSet<String>,
}

impl Registry {
    /// Reads all rows. An invalid row is reported in `faults` and affects only itself. `previous` are the last known
    /// settings, which stay in force where the rows contain none.
    #[must_use]
    pub fn read(rows: &[Row], previous: Option<&System>) -> Self {
        let mut registry = Self { system: previous.cloned().unwrap_or_default(), ..Self::default() };
        if let Some(kept) = previous.filter(|known| known.max_recorders.is_some() && !rows.iter().any(|row| row.kind == "system")) {
            registry.faults.insert(format!("system \"system\": no such row; keeping {kept}"));
        }
        for row in rows {
            let name = format!("{} {:?}", shown(&row.kind), shown(&row.key).to_string());
            let value = match &row.body {
                // Log lines, labels and names contain the key.
                _ if row.key.chars().any(char::is_control) || row.key.len() > KEY_LIMIT => {
                    Err(format!("expected a key of at most {KEY_LIMIT} bytes without control characters"))
                }
                None => Err(row.fault.clone().unwrap_or_else(|| "expected a row below 64 KiB".to_owned())),
                Some(body) => json::from_str::<Value>(body).map_err(|error| error.to_string()),
            };
            let fault = match row.kind.as_str() {
                "device" => {
                    registry.ports.insert(row.key.clone(), value.as_ref().map(port).unwrap_or_default());
                    let device = value.and_then(|value| registry.read_device(&row.key, value));
                    let fault = device.as_ref().err().cloned();
                    registry.devices.insert(row.key.clone(), device);
                    fault
                }
                // Its faults show when it is connected.
                "absent" => {
                    if let Ok(value) = value {
                        registry.ports.insert(row.key.clone(), port(&value));
                        registry.take_unique(&row.key, &value);
                    }
                    None
                }
                "profile" => {
                    let profile =
                        value.and_then(|value| ProfileConfig::from_row(&value["config"]).map_err(|faults| profile::joined(&faults)));
                    let fault = match &profile {
                        Ok(config) if config.criteria_faults().is_empty() => None,
                        Ok(config) => Some(format!("ignoring a match criterion: {}", profile::joined(config.criteria_faults()))),
                        Err(why) => Some(why.clone()),
                    };
                    registry.profiles.insert(row.key.clone(), profile);
                    fault
                }
                "service" => {
                    let enabled = value.and_then(|value| value.as_bool().ok_or_else(|| "expected true or false".to_owned()));
                    let fault = enabled.as_ref().err().cloned();
                    registry.services.insert(row.key.clone(), enabled);
                    fault
                }
                "system" => {
                    let (system, fault) = read_system(value, previous);
                    registry.system = system;
                    fault
                }
                // Saved by another version of this program.
                _ => Some("unknown kind of row; it is ignored".to_owned()),
            };
            registry.faults.extend(fault.map(|why| format!("{name}: {why}")));
        }
        registry
    }

    /// Two columns are unique: their values are taken, even if the row is otherwise invalid.
    fn take_unique(&mut self, id: &str, row: &Value) {
        self.serial_numbers.extend(row["serial_number"].as_str().map(str::to_owned));
        if let Some(name) = row["workspace_name"].as_str() {
            self.workspace_names.insert(name.to_owned(), id.to_owned());
        }
    }

    fn read_device(&mut self, id: &str, value: Value) -> Result<Device, String> {
        self.take_unique(id, &value);
        let row: DeviceRow = serde_json::from_value(value).map_err(|error| shown(&error.to_string()).to_string())?;
        let workspace = row.workspace_name.filter(|name| {
            let is_valid = is_workspace_name(name);
            if !is_valid {
                let name = shown(name).to_string();
                self.faults.insert(format!(
                    "device {:?}: workspace_name: expected letters, digits, `.`, `_`, `-`, got {name:?}",
                    shown(id).to_string()
                ));
            }
            is_valid
        });
        let config = match row.config {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        Ok(Device {
            online: row.status == "online",
            model: row.model,
            enrollment: row.enrollment_status,
            enabled: row.enabled,
            profile: row.profile_slug,
            config,
            workspace,
            last_seen: row.last_seen.as_str().map(str::to_owned),
        })
    }

    /// Each id with the USB port at which it was last observed, to identify microphones again.
    #[must_use]
    pub fn known_ports(&self) -> SortedMap<String, Port> {
        self.ports.clone()
    }

    /// Whether the row of this microphone is known, with the port at which it is now. Otherwise the row of another one,
    /// which was not seen for long, may be the better one.
    #[must_use]
    pub fn is_at_port(&self, id: &str, microphone: &Microphone) -> bool {
        let is_same = |usb: &Usb, known: &Port| match (&usb.port_path, &known.port_path) {
            (None, None) => known.bus_path.as_ref() == Some(&usb.bus_path),
            (here, known) => here == known,
        };
        match (self.devices.get(id), &microphone.usb) {
            (None, _) => false,
            // Nothing is written to an invalid row.
            (Some(Err(_)), _) | (Some(Ok(_)), None) => true,
            (Some(Ok(_)), Some(usb)) => self.ports.get(id).is_some_and(|known| is_same(usb, known)),
        }
    }

    /// Adds all devices to `presences`, with the state and card of each in the database.
    pub fn add_devices_to(&self, presences: &mut Presences, now: Instant) {
        for (id, device) in &self.devices {
            match device {
                Ok(device) if device.online => presences.add_online(id, device.last_card(), now),
                Ok(device) => presences.add_offline(id, device.last_card()),
                Err(_) => presences.add_offline(id, None),
            }
        }
    }

    /// The changes that make the rows agree with the connected microphones, with a new row for each unknown one. `at`
    /// is the wall-clock time for `devices.config`; `fallback` is the profile for microphones that no profile matches.
    /// While the `containers` are unknown, no workspace name is given: one of them may record to a folder already.
    #[must_use]
    pub fn changes(&self, presences: &Presences, at: &str, fallback: Option<&str>, containers: Option<&[Container]>) -> Vec<RowChange> {
        let fallback = fallback.filter(|slug| matches!(self.profiles.get(*slug), Some(Ok(_))));
        let rule = Rule { at, fallback, containers };
        let mut new = New::default();
        let mut changes = Vec::new();
        for (id, presence) in presences.iter() {
            let change = match (self.devices.get(id), presence) {
                (None, Presence::Online(microphone)) => Some(self.insert(id, microphone, &rule, &mut new)),
                (Some(Ok(device)), Presence::Online(microphone)) => self.update(id, device, microphone, &rule, &mut new),
                (Some(Ok(device)), Presence::Offline) if device.online => Some(RowChange { status: Some("offline"), ..RowChange::of(id) }),
                _ => None,
            };
            changes.extend(change);
        }
        changes
    }

    /// Why the profile for microphones that no profile matches cannot serve, if so. Without any profile, they are not
    /// seeded yet.
    #[must_use]
    pub fn fallback_fault(&self, fallback: &str) -> Option<String> {
        let fault = match self.profiles.get(fallback) {
            Some(Ok(_)) => return None,
            Some(Err(why)) => format!("profile {fallback} is invalid: {why}"),
            None if self.profiles.is_empty() => return None,
            None => {
                let slugs: Vec<&str> = self.profiles.keys().map(String::as_str).collect();
                format!("expected one of {}, got {fallback:?}", shown(&slugs.join(", ")))
            }
        };
        Some(format!("SILVASONIC_FALLBACK_PROFILE: {fault}; microphones that no profile matches stay pending"))
    }

    /// Slugs and scores of the valid profiles that match the microphone.
    pub fn scores<'a>(&'a self, microphone: &'a Microphone) -> impl Iterator<Item = (&'a str, u8)> {
        let valid = self.profiles.iter().filter_map(|(slug, config)| Some((slug.as_str(), config.as_ref().ok()?.criteria())));
        profile::scores(valid, microphone)
    }

    /// The valid profile that matches the microphone best.
    #[must_use]
    pub fn fit(&self, microphone: &Microphone) -> Match {
        profile::best(self.scores(microphone))
    }

    fn insert(&self, id: &str, microphone: &Microphone, rule: &Rule<'_>, new: &mut New) -> RowChange {
        let serial = microphone.usb.as_ref().and_then(|usb| usb.serial.clone());
        let is_free = |serial: &String| !self.serial_numbers.contains(serial) && new.serial_numbers.insert(serial.clone());
        let serial_number = serial.filter(is_free).unwrap_or_else(|| id.to_owned());
        let mut change = RowChange {
            insert: Some(Insert { serial_number }),
            status: Some("online"),
            model: Some(microphone.name.clone()),
            config: microphone.config(),
            ..RowChange::of(id)
        };
        self.enroll(&mut change, microphone, rule);
        if let Some((profile, Enrollment::Enrolled)) = change.enroll.clone() {
            change.workspace = self.name_for(id, &profile, microphone, rule, new);
        }
        change
    }

    fn update(&self, id: &str, device: &Device, microphone: &Microphone, rule: &Rule<'_>, new: &mut New) -> Option<RowChange> {
        let mut change = RowChange::of(id);
        if !device.online {
            change.status = Some("online");
        }
        // Where the encoding of the database cannot hold a text, it was written in ASCII.
        if device.model != microphone.name && device.model != ascii(&microphone.name) {
            change.model = Some(microphone.name.clone());
        }
        let is_written =
            |key: &str, value: &Value| device.config.get(key).is_some_and(|known| known == value || *known == ascii_value(value));
        change.config = by_insertion(microphone.config().into_iter().filter(|(key, value)| !is_written(key, value)));
        let suggested = device.config.get("auto_suggested").and_then(Value::as_str);
        match device.enrollment {
            _ if device.is_decided() => {}
            Enrollment::Pending if device.profile.as_deref() == suggested => self.enroll(&mut change, microphone, rule),
            Enrollment::Pending => {}
            Enrollment::Enrolled | Enrollment::Ignored => {
                change.config.insert("enrollment_decided_at".to_owned(), rule.at.into());
            }
        }
        // The profile is already suggested.
        if change.enroll.as_ref().is_some_and(|(slug, to)| *to == Enrollment::Pending && suggested == Some(slug)) {
            change.enroll = None;
            change.note = None;
            change.config.remove("auto_suggested");
        }
        let enrolled_with = match &change.enroll {
            Some((slug, Enrollment::Enrolled)) => Some(slug.as_str()),
            _ if device.enrollment == Enrollment::Enrolled => device.profile.as_deref(),
            _ => None,
        };
        if let Some(slug) = enrolled_with.filter(|slug| !device.workspace.as_deref().is_some_and(|name| belongs_to_profile(name, slug))) {
            change.workspace = self.name_for(id, slug, microphone, rule, new);
        }
        (change != RowChange::of(id)).then_some(change)
    }

    /// A workspace name for a device. If its container runs, that is the name of the folder to which it records: the first
    /// version of the Python Controller does not save the name, and cuts it short in another way.
    fn name_for(&self, id: &str, slug: &str, microphone: &Microphone, rule: &Rule<'_>, new: &mut New) -> Option<String> {
        let others: SortedSet<&str> =
            self.workspace_names.iter().chain(&new.names).filter(|(_, owner)| *owner != id).map(|(name, _)| name.as_str()).collect();
        let is_own = |container: &&Container| container.labels.get(DEVICE_ID).is_some_and(|device| device == id);
        let running = rule.containers?.iter().filter(|container| !container.state.is_over()).filter(is_own);
        let mut folders = running.filter_map(|container| folder_of(&container.name));
        let in_use = folders.find(|folder| belongs_to_profile(folder, slug) && !others.contains(folder));
        let usb = microphone.usb.as_ref();
        let (serial, bus_path) = (usb.and_then(|usb| usb.serial.as_deref()), usb.map(|usb| usb.bus_path.as_str()));
        let unused = || workspace_name(slug, id, serial, bus_path, microphone.card.into(), &others);
        let name = in_use.map_or_else(unused, str::to_owned);
        new.names.insert(name.clone(), id.to_owned());
        Some(name)
    }

    /// Matches the microphone with the profiles: enrols it, suggests a profile, or requests a decision by the user.
    fn enroll(&self, change: &mut RowChange, microphone: &Microphone, rule: &Rule<'_>) {
        let is_new = change.insert.is_some();
        let fallback = rule.fallback.filter(|_| self.system.auto_enrollment);
        match self.fit(microphone) {
            Match::One { slug, score: 100 } if self.system.auto_enrollment => {
                change.config.insert("auto_enrolled_at".to_owned(), rule.at.into());
                change.note = Some(format!("enrolled with profile {}: vendor and product id match", shown(&slug)));
                change.enroll = Some((slug, Enrollment::Enrolled));
            }
            Match::One { slug, score } => {
                change.config.insert("auto_suggested".to_owned(), slug.clone().into());
                change.note = Some(format!("needs a decision by the user: profile {} is suggested (score {score})", shown(&slug)));
                change.enroll = Some((slug, Enrollment::Pending));
            }
            Match::Ambiguous { slugs, score } if is_new => {
                change.note =
                    Some(format!("needs a decision by the user: profiles {} match equally (score {score})", shown(&slugs.join(", "))));
            }
            Match::None if fallback.is_some() => {
                let slug = fallback.unwrap_or_default();
                change.config.insert("auto_enrolled_at".to_owned(), rule.at.into());
                change.note = Some(format!("enrolled with the fallback profile {}: no profile matches", shown(slug)));
                change.enroll = Some((slug.to_owned(), Enrollment::Enrolled));
            }
            Match::None if is_new => change.note = Some("needs a decision by the user: no profile matches".to_owned()),
            Match::Ambiguous { .. } | Match::None => {}
        }
    }
}

impl RowChange {
    /// The same with texts in ASCII. Ids, serial numbers and workspace names are ASCII always.
    #[must_use]
    pub fn in_ascii(&self) -> Self {
        Self { model: self.model.as_deref().map(ascii), config: ascii_map(&self.config), ..self.clone() }
    }

    fn of(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            insert: None,
            status: None,
            model: None,
            config: Map::new(),
            enroll: None,
            workspace: None,
            note: None,
        }
    }
}

/// The port in `config` of a row of `devices`.
fn port(row: &Value) -> Port {
    let text = |key: &str| row["config"][key].as_str().map(str::to_owned);
    Port { bus_path: text("usb_bus_path"), port_path: text("usb_port_path") }
}

/// The row of the settings with those keys of an earlier one that it lacks and that decide about Recorders.
#[must_use]
pub fn completed(mut row: Row, earlier: &Row) -> Row {
    let read = |row: &Row| json::from_str::<Map<String, Value>>(row.body.as_deref()?).ok();
    if let (Some(mut fields), Some(earlier)) = (read(&row), read(earlier)) {
        let lacks: Vec<&str> = ["max_recorders", "auto_enrollment"].into_iter().filter(|key| !fields.contains_key(*key)).collect();
        let kept: Vec<(&str, &Value)> = lacks.into_iter().filter_map(|key| Some((key, earlier.get(key)?))).collect();
        if !kept.is_empty() {
            fields.extend(kept.into_iter().map(|(key, value)| (key.to_owned(), value.clone())));
            row.body = Some(Value::Object(fields).to_string());
        }
    }
    row
}

/// The settings in the row, and its faults. No fault stops a Recorder or enrols a device.
fn read_system(value: Result<Value, String>, previous: Option<&System>) -> (System, Option<String>) {
    let mut system = previous.cloned().unwrap_or_default();
    let value = value.and_then(|value| match value {
        Value::Object(fields) => Ok(fields),
        other => Err(format!("expected an object, got {}", shown(&other.to_string()))),
    });
    let fields = match value {
        Ok(fields) => fields,
        Err(why) => {
            system.auto_enrollment = false;
            return (system, Some(why));
        }
    };
    let mut faults = Vec::new();
    match fields.get("max_recorders").map(|value| (value, limit(value))) {
        Some((_, Some(count))) => system.max_recorders = Some(count),
        Some((value, None)) => faults.push(format!("max_recorders: expected a whole number, got {}", shown(&value.to_string()))),
        None => {
            if let Some(kept) = system.max_recorders {
                faults.push(format!("max_recorders: expected a whole number, got nothing; keeping {kept}"));
            }
        }
    }
    match fields.get("auto_enrollment") {
        None => {}
        Some(value) => {
            let on = lenient::switch(value);
            system.auto_enrollment = on.unwrap_or(false);
            if on.is_none() {
                faults.push(format!("auto_enrollment: expected true or false, got {}", shown(&value.to_string())));
            }
        }
    }
    (system, (!faults.is_empty()).then(|| faults.join("; ")))
}

/// A number of Recorders. A switch is no number here, although pydantic reads `false` as 0: that would stop all.
fn limit(value: &Value) -> Option<usize> {
    if value.is_boolean() { None } else { lenient::count(value)?.try_into().ok() }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(count) = self.max_recorders {
            write!(f, "max_recorders {count}, ")?;
        }
        write!(f, "auto_enrollment {}", self.auto_enrollment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::offer::Offer;
    use serde_json::json;

    fn system(previous: Option<&System>, value: Option<&str>) -> System {
        let row = |value: &str| Row { kind: "system".to_owned(), key: "system".to_owned(), body: Some(value.to_owned()), fault: None };
        Registry::read(&value.map(row).into_iter().collect::<Vec<_>>(), previous).system
    }

    const fn is(max_recorders: Option<usize>, auto_enrollment: bool) -> System {
        System { max_recorders, auto_enrollment }
    }

    /// A microphone without a matching profile, and its row with these columns.
    fn unmatched(row: Value, auto_enrollment: bool, fallback: Option<&str>) -> Option<RowChange> {
        beside(Some(&[]), row, auto_enrollment, fallback)
    }

    /// The same beside these containers.
    fn beside(containers: Option<&[Container]>, row: Value, auto_enrollment: bool, fallback: Option<&str>) -> Option<RowChange> {
        let text = |kind: &str, key: &str, body: &Value| Row {
            kind: kind.to_owned(),
            key: key.to_owned(),
            body: Some(body.to_string()),
            fault: None,
        };
        let mut rows = vec![
            text("profile", "generic_usb", &json!({"config": {"audio": {"sample_rate": 48_000}}})),
            text("profile", "bad", &json!({"config": {"audio": {"sample_rate": 0}}})),
            text("profile", "other", &json!({"config": {"audio": {"sample_rate": 1, "match": {"alsa_name_contains": "other"}}}})),
            text("system", "system", &json!({"max_recorders": 5, "auto_enrollment": auto_enrollment})),
        ];
        let microphone = Microphone { card: 1, pcm: 0, name: "Mic".to_owned(), usb: None, offer: Offer::default() };
        if !row.is_null() {
            let mut columns = json!({
                "model": "Mic", "status": "online", "enrollment_status": "pending", "enabled": true, "profile_slug": null,
                "config": microphone.config(), "workspace_name": null, "serial_number": "m",
            });
            for (key, value) in row.as_object().unwrap() {
                match columns[key].as_object_mut() {
                    Some(fields) => fields.extend(value.as_object().unwrap().clone()),
                    None => columns[key] = value.clone(),
                }
            }
            rows.push(text("device", "m", &columns));
        }
        let mut presences = Presences::new(std::time::Duration::ZERO);
        presences.observe(&SortedMap::from([("m".to_owned(), microphone)]), &[], Instant::now());
        Registry::read(&rows, None).changes(&presences, "now", fallback, containers).into_iter().next()
    }

    #[test]
    fn a_microphone_that_no_profile_matches_is_enrolled_with_the_fallback_once() {
        let enrolled = Some(("generic_usb".to_owned(), Enrollment::Enrolled));
        let fallback = Some("generic_usb");
        let change = unmatched(Value::Null, true, fallback).unwrap();
        assert_eq!((&change.enroll, change.config["auto_enrolled_at"].as_str()), (&enrolled, Some("now")));
        assert_eq!(change.note.as_deref(), Some("enrolled with the fallback profile generic_usb: no profile matches"));
        assert!(change.workspace.is_some_and(|name| belongs_to_profile(&name, "generic_usb")));
        // Also one that waited already.
        assert_eq!(unmatched(json!({}), true, fallback).unwrap().enroll, enrolled);
        // Neither without the setting, nor without automatic enrolment, nor with a profile that cannot serve.
        for (on, fallback) in [(true, None), (false, fallback), (true, Some("bad")), (true, Some("absent"))] {
            let change = unmatched(Value::Null, on, fallback).unwrap();
            assert_eq!(change.note.as_deref(), Some("needs a decision by the user: no profile matches"));
            assert_eq!((change.enroll, unmatched(json!({}), on, fallback)), (None, None), "{on} {fallback:?}");
        }
        // What the Controller or a user decided before stays.
        for row in [
            json!({"config": {"auto_enrolled_at": "before"}}),
            json!({"config": {"enrollment_decided_at": "before"}}),
            json!({"enrollment_status": "ignored", "config": {"enrollment_decided_at": "before"}}),
            json!({"profile_slug": "other"}),
        ] {
            assert_eq!(unmatched(row.clone(), true, fallback), None, "{row}");
        }
        let ignored = unmatched(json!({"enrollment_status": "ignored"}), true, fallback).unwrap();
        assert_eq!((ignored.enroll, ignored.config.keys().next().map(String::as_str)), (None, Some("enrollment_decided_at")));
    }

    #[test]
    fn a_folder_to_which_a_container_records_keeps_its_name() {
        let mut scene = crate::decide::plan::tests::scene("m:run", "m:running?");
        let name = |scene: &crate::decide::plan::tests::Scene, row: Value| {
            beside(Some(&scene.containers), row, true, Some("generic_usb")).and_then(|change| change.workspace)
        };
        let enrolled = || json!({"enrollment_status": "enrolled", "profile_slug": "generic_usb"});
        let with = |scene: &mut crate::decide::plan::tests::Scene, container: &str| {
            scene.containers[0].name = container.to_owned();
            [name(scene, enrolled()), name(scene, Value::Null)].map(Option::unwrap)
        };
        assert_eq!(with(&mut scene, "silvasonic-recorder-generic-usb-p1d4"), ["generic-usb-p1d4"; 2]);
        for other in ["silvasonic-recorder-other-p1d4", "silvasonic-recorder-generic-usb-p1d4-old", "by-hand"] {
            assert_eq!(with(&mut scene, other), ["generic-usb-c001"; 2], "{other}");
        }
        let given = json!({"enrollment_status": "enrolled", "profile_slug": "generic_usb", "workspace_name": "generic-usb-1"});
        assert_eq!(name(&scene, given), None);
        // Another device, or one that has ended.
        with(&mut scene, "silvasonic-recorder-generic-usb-p1d4");
        scene.containers[0].state = crate::decide::container::State::Exited;
        assert_eq!(name(&scene, enrolled()).as_deref(), Some("generic-usb-c001"));
        assert_eq!(beside(None, enrolled(), true, None).and_then(|change| change.workspace), None);
    }

    #[test]
    fn a_row_of_which_only_the_identity_was_read_is_no_device_but_its_names_are_taken() {
        let body = json!({"serial_number": "s", "workspace_name": "generic-usb-c001", "config": {"usb_bus_path": "1-2"}});
        let absent = Row { kind: "absent".to_owned(), key: "old".to_owned(), body: Some(body.to_string()), fault: None };
        let profile = json!({"config": {"audio": {"sample_rate": 48_000}}});
        let profile = Row { kind: "profile".to_owned(), key: "generic_usb".to_owned(), body: Some(profile.to_string()), fault: None };
        let registry = Registry::read(&[absent, profile], None);
        assert!(registry.devices.is_empty() && registry.faults.is_empty());
        assert_eq!(registry.known_ports()["old"].bus_path.as_deref(), Some("1-2"));
        let microphone = Microphone { card: 1, pcm: 0, name: "Mic".to_owned(), usb: None, offer: Offer::default() };
        let mut presences = Presences::new(std::time::Duration::ZERO);
        presences.observe(&SortedMap::from([("s".to_owned(), microphone)]), &[], Instant::now());
        let changes = registry.changes(&presences, "now", Some("generic_usb"), Some(&[]));
        assert!(changes[0].workspace.as_ref().is_some_and(|name| name != "generic-usb-c001"), "{changes:?}");
    }

    #[test]
    fn a_microphone_is_at_its_port_if_its_lasting_address_is_known() {
        let usb = |port_path: Option<&str>| Usb {
            vendor: "1".to_owned(),
            product: "2".to_owned(),
            serial: None,
            bus_path: "1-2".to_owned(),
            port_path: port_path.map(str::to_owned),
            address: "001/002".to_owned(),
        };
        let at = |row: &str, usb: Option<Usb>| {
            let body =
                format!("{{\"model\": \"\", \"status\": \"\", \"enrollment_status\": \"pending\", \"enabled\": true, \"config\": {row}}}");
            let row = Row { kind: "device".to_owned(), key: "m".to_owned(), body: Some(body), fault: None };
            let microphone = Microphone { card: 1, pcm: 0, name: "Mic".to_owned(), usb, offer: Offer::default() };
            Registry::read(&[row], None).is_at_port("m", &microphone)
        };
        let known = r#"{"usb_bus_path": "1-2", "usb_port_path": "pci/2"}"#;
        assert!(at(known, Some(usb(Some("pci/2")))) && at(known, None));
        assert!(!at(known, Some(usb(Some("pci/3")))) && !at(known, Some(usb(None))));
        // As the Python Controller writes it.
        let old = r#"{"usb_bus_path": "1-2"}"#;
        assert!(at(old, Some(usb(None))) && !at(old, Some(usb(Some("pci/2")))));
        assert!(
            !Registry::default().is_at_port("m", &Microphone { card: 1, pcm: 0, name: String::new(), usb: None, offer: Offer::default() })
        );
    }

    #[test]
    fn a_fallback_that_cannot_serve_is_named_with_what_was_expected() {
        let body = |rate: u32| Some(json!({"config": {"audio": {"sample_rate": rate}}}).to_string());
        let row = |key: &str, rate| Row { kind: "profile".to_owned(), key: key.to_owned(), body: body(rate), fault: None };
        let registry = Registry::read(&[row("good", 1), row("bad", 0)], None);
        assert_eq!(registry.fallback_fault("good"), None);
        assert_eq!(
            registry.fallback_fault("typo").as_deref(),
            Some("SILVASONIC_FALLBACK_PROFILE: expected one of bad, good, got \"typo\"; microphones that no profile matches stay pending")
        );
        assert!(
            registry.fallback_fault("bad").unwrap().starts_with("SILVASONIC_FALLBACK_PROFILE: profile bad is invalid: audio.sample_rate")
        );
        assert_eq!(Registry::default().fallback_fault("typo"), None);
    }

    #[test]
    fn settings_that_are_absent_or_invalid_keep_the_last_known_value() {
        let ten = is(Some(10), false);
        for (value, expected) in [
            (None, is(Some(10), false)),
            (Some("{}"), is(Some(10), false)),
            (Some("{\"auto_enrollment\": true}"), is(Some(10), true)),
            (Some("{\"max_recorders\": 2}"), is(Some(2), false)),
            (Some("{\"max_recorders\": \"many\", \"auto_enrollment\": true}"), is(Some(10), true)),
            (Some("{\"max_recorders\": null}"), is(Some(10), false)),
            (Some("7"), is(Some(10), false)),
            (Some("{"), is(Some(10), false)),
        ] {
            assert_eq!(system(Some(&ten), value), expected, "{value:?}");
        }
        // An invalid switch enrols nobody, whatever was known.
        assert_eq!(system(Some(&is(Some(10), true)), Some("{\"auto_enrollment\": 2}")), is(Some(10), false));
        assert_eq!(system(Some(&is(Some(10), true)), Some("7")), is(Some(10), false));
    }

    #[test]
    fn settings_of_other_json_types_are_read_as_pydantic_reads_them() {
        let ten = is(Some(10), true);
        for (value, expected) in [
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("\"5\"", Some(5)),
            ("\" 5.0 \"", Some(5)),
            ("0", Some(0)),
            ("5.5", None),
            ("-1", None),
            ("\"five\"", None),
            ("\"\"", None),
            // pydantic reads these as 1 and 0, which would stop Recorders.
            ("true", None),
            ("false", None),
        ] {
            let row = format!("{{\"max_recorders\": {value}}}");
            assert_eq!(system(Some(&ten), Some(&row)).max_recorders, expected.or(Some(10)), "{value}");
            let faults = faults_of("system", &row);
            match expected {
                Some(_) => assert_eq!(faults, Vec::<String>::new(), "{value}"),
                None => assert_eq!(faults, [format!("system \"k\": max_recorders: expected a whole number, got {value}")]),
            }
        }
        for (value, expected) in [
            ("true", Some(true)),
            ("\"true\"", Some(true)),
            ("\"Yes\"", Some(true)),
            ("1", Some(true)),
            ("1.0", Some(true)),
            ("\"false\"", Some(false)),
            ("\"off\"", Some(false)),
            ("0", Some(false)),
            ("2", None),
            ("\"perhaps\"", None),
            ("null", None),
        ] {
            let row = format!("{{\"auto_enrollment\": {value}}}");
            assert_eq!(system(Some(&ten), Some(&row)).auto_enrollment, expected.unwrap_or(false), "{value}");
            let faults = faults_of("system", &row);
            match expected {
                Some(_) => assert_eq!(faults, Vec::<String>::new(), "{value}"),
                None => assert_eq!(faults, [format!("system \"k\": auto_enrollment: expected true or false, got {value}")]),
            }
        }
    }

    /// The faults of a registry with one row.
    fn faults_of(kind: &str, body: &str) -> Vec<String> {
        let row = Row { kind: kind.to_owned(), key: "k".to_owned(), body: Some(body.to_owned()), fault: None };
        Registry::read(&[row], None).faults.into_iter().collect()
    }

    #[test]
    fn an_invalid_criterion_is_named_and_the_others_match() {
        let matching = |criteria: &str| format!("{{\"config\": {{\"audio\": {{\"sample_rate\": 48000, \"match\": {criteria}}}}}}}");
        for (criteria, fault) in [
            ("null", None),
            ("{\"usb_vendor_id\": \"\", \"usb_product_id\": \"\", \"alsa_name_contains\": \"\"}", None),
            (
                "{\"usb_vendor_id\": \"0x0869\"}",
                Some("audio.match.usb_vendor_id: expected four hexadecimal digits in quotes, got \"0x0869\""),
            ),
        ] {
            let expected: Vec<String> =
                fault.map(|fault| format!("profile \"k\": ignoring a match criterion: {fault}")).into_iter().collect();
            assert_eq!(faults_of("profile", &matching(criteria)), expected, "{criteria}");
        }
    }

    #[test]
    fn a_row_without_a_key_keeps_what_the_row_before_it_contained() {
        let row =
            |body: Option<&str>| Row { kind: "system".to_owned(), key: "system".to_owned(), body: body.map(str::to_owned), fault: None };
        let earlier = r#"{"max_recorders":10,"auto_enrollment":false,"station_name":"Oak"}"#;
        for (new, expected) in [
            (Some("{}"), Some(r#"{"auto_enrollment":false,"max_recorders":10}"#)),
            (Some(r#"{"max_recorders": 2}"#), Some(r#"{"auto_enrollment":false,"max_recorders":2}"#)),
            (Some(r#"{"max_recorders": null, "auto_enrollment": true}"#), Some(r#"{"max_recorders": null, "auto_enrollment": true}"#)),
            (Some("7"), Some("7")),
            (Some("{"), Some("{")),
            (None, None),
        ] {
            assert_eq!(completed(row(new), &row(Some(earlier))), row(expected), "{new:?}");
        }
        assert_eq!(completed(row(Some("{}")), &row(Some("7"))), row(Some("{}")));
    }

    #[test]
    fn a_row_of_another_version_changes_no_settings() {
        let row = Row { kind: "later\n".to_owned(), key: "k".to_owned(), body: Some("{\"max_recorders\": 0}".to_owned()), fault: None };
        let registry = Registry::read(&[row], Some(&is(Some(10), true)));
        assert_eq!(registry.system, is(Some(10), true));
        assert!(registry.faults.iter().any(|fault| fault == "later \"k\": unknown kind of row; it is ignored"), "{:?}", registry.faults);
    }

    #[test]
    fn a_row_that_is_not_readable_affects_only_itself() {
        let row = |key: &str, body: Option<&str>, fault: Option<&str>| Row {
            kind: "profile".to_owned(),
            key: key.to_owned(),
            body: body.map(str::to_owned),
            fault: fault.map(str::to_owned),
        };
        let valid = "{\"config\": {\"audio\": {\"sample_rate\": 48000}}}";
        let registry = Registry::read(&[row("bad", None, Some("not valid")), row("good", Some(valid), None)], None);
        assert!(registry.profiles["good"].is_ok());
        assert_eq!(registry.faults.into_iter().collect::<Vec<_>>(), ["profile \"bad\": not valid"]);
    }

    #[test]
    fn settings_that_were_never_known_limit_new_recorders_only() {
        for value in [None, Some("{}"), Some("{\"station_name\": \"Oak\"}")] {
            assert_eq!(system(None, value), is(None, true), "{value:?}");
        }
        assert_eq!(system(None, Some("[]")), is(None, false));
        // What is never known later is still not a default.
        assert_eq!(system(Some(&System::default()), None), is(None, true));
    }

    #[test]
    fn a_row_that_disappeared_is_named_with_the_values_in_force() {
        let faults = |previous: &System| Registry::read(&[], Some(previous)).faults.into_iter().collect::<Vec<_>>();
        assert_eq!(faults(&System::default()), Vec::<String>::new());
        assert_eq!(faults(&is(Some(10), true)), ["system \"system\": no such row; keeping max_recorders 10, auto_enrollment true"]);
    }
}
