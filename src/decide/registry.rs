//! What the database says, and which of its rows must change. [p]
//!
//! Rows come as JSON text, so that a row of another schema or with a strange value spoils itself only. What a user
//! wrote is not overwritten: the Controller sets the columns that follow the hardware, and a profile and an enrolment
//! once, for a device that nobody decided about. It notes in `devices.config` what it did:
//!
//! | key                     | meaning                                                                  |
//! | ----------------------- | ------------------------------------------------------------------------ |
//! | `auto_enrolled_at`      | enrolled by the Controller; it will not do so again                       |
//! | `auto_suggested`        | profile that the Controller suggested; not suggested again                |
//! | `enrollment_decided_at` | was found enrolled or ignored, so a later `pending` is somebody's wish    |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::collect::by_insertion;
use crate::decide::device::{Microphone, belongs_to_profile, is_workspace_name, workspace_name};
use crate::decide::presence::{Presence, Presences};
use crate::decide::profile::{self, Match, ProfileConfig};
use crate::text::shown;

/// One row as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Row {
    /// `device`, `profile` or `system`.
    pub kind: String,
    /// Primary key.
    pub key: String,
    /// The row, or for `system` its value, as JSON; `None` if it is too large to be looked at.
    pub body: Option<String>,
}

/// Everything that the database says.
#[derive(Debug, Default)]
pub struct Registry {
    /// Devices by stable id, or why a row cannot be used.
    pub devices: BTreeMap<String, Result<Device, String>>,
    /// Profiles by slug, or why one cannot be used.
    pub profiles: BTreeMap<String, Result<ProfileConfig, String>>,
    /// Station-wide settings.
    pub system: System,
    /// What is wrong with single rows, one line each, naming row, value and expectation.
    pub faults: BTreeSet<String>,
    serial_numbers: BTreeSet<String>,
    /// Publisher path that each device was last seen at, also of unusable rows.
    ports: BTreeMap<String, Option<String>>,
    workspace_names: BTreeMap<String, String>,
}

/// The part of `system_config.system` that the Controller needs.
#[derive(Debug, PartialEq, Eq)]
pub struct System {
    /// Most Recorders at a time; `None` if the value is unusable.
    pub max_recorders: Option<usize>,
    /// Whether a perfect match enrols.
    pub auto_enrollment: bool,
}

impl Default for System {
    fn default() -> Self {
        Self { max_recorders: Some(DEFAULT_MAX_RECORDERS), auto_enrollment: true }
    }
}

impl System {
    /// What an unusable row says: no limit that would stop anybody, and nothing that a user may not want.
    const UNUSABLE: Self = Self { max_recorders: None, auto_enrollment: false };
}

/// Longest key of a row, in bytes.
const KEY_LIMIT: usize = 256;

/// How many Recorders run when the setting is absent or unusable.
pub const DEFAULT_MAX_RECORDERS: usize = 5;

/// What a user wants with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enrollment {
    /// Nobody decided yet.
    Pending,
    /// Record it.
    Enrolled,
    /// Leave it alone.
    Ignored,
}

/// A usable row of `devices`.
#[derive(Debug)]
pub struct Device {
    /// `status = 'online'`
    pub online: bool,
    /// Card name at the last sight.
    pub model: String,
    /// What the user wants with it.
    pub enrollment: Enrollment,
    /// The user's switch.
    pub enabled: bool,
    /// Profile, if any.
    pub profile: Option<String>,
    /// Hardware facts, our notes, and what others put there.
    pub config: Map<String, Value>,
    /// Usable workspace name, if any.
    pub workspace: Option<String>,
}

impl Device {
    /// Whether it was ever enrolled or ignored, by the Controller or a user.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        ["auto_enrolled_at", "enrollment_decided_at"].iter().any(|key| self.config.get(*key).is_some_and(|value| !value.is_null()))
    }

    /// ALSA card index that it was last seen at.
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
}

/// One row to write.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// Stable id.
    pub device: String,
    /// A new row's own columns; `None` changes an existing one.
    pub insert: Option<Insert>,
    /// `online` or `offline`; also sets `last_seen`.
    pub status: Option<&'static str>,
    /// Card name.
    pub model: Option<String>,
    /// Keys to set in `config`.
    pub config: Map<String, Value>,
    /// Profile and enrolment to set, if still nobody decided.
    pub enroll: Option<(String, Enrollment)>,
    /// Workspace name to set.
    pub workspace: Option<String>,
    /// What to tell the log when it is done.
    pub note: Option<String>,
}

/// Columns that only a new row gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insert {
    /// Unique: the serial, or the stable id where there is none or another device has it.
    pub serial_number: String,
}

impl Registry {
    /// Reads all rows; those that make no sense are told in `faults` and spoil themselves only.
    #[must_use]
    pub fn read(rows: &[Row]) -> Self {
        let mut registry = Self::default();
        for row in rows {
            let name = format!("{} {:?}", row.kind, shown(&row.key).to_string());
            let value = match &row.body {
                // Keys stand in log lines, labels and names.
                _ if row.key.chars().any(char::is_control) || row.key.len() > KEY_LIMIT => {
                    Err(format!("expected a key of at most {KEY_LIMIT} bytes without control characters"))
                }
                None => Err("expected a row below 64 KiB".to_owned()),
                Some(body) => serde_json::from_str::<Value>(body).map_err(|error| error.to_string()),
            };
            let fault = match row.kind.as_str() {
                "device" => {
                    registry.ports.insert(row.key.clone(), value.as_ref().ok().and_then(port));
                    let device = value.and_then(|value| registry.read_device(&row.key, value));
                    let fault = device.as_ref().err().cloned();
                    registry.devices.insert(row.key.clone(), device);
                    fault
                }
                "profile" => {
                    let profile =
                        value.and_then(|value| ProfileConfig::from_json(&value["config"]).map_err(|faults| profile::joined(&faults)));
                    let fault = match &profile {
                        Ok(config) if config.criteria_faults().is_empty() => None,
                        Ok(config) => Some(format!("it matches nothing: {}", profile::joined(config.criteria_faults()))),
                        Err(why) => Some(why.clone()),
                    };
                    registry.profiles.insert(row.key.clone(), profile);
                    fault
                }
                _ => {
                    let (system, fault) = value.map_or_else(|why| (System::UNUSABLE, Some(why)), |value| read_system(&value));
                    registry.system = system;
                    fault
                }
            };
            registry.faults.extend(fault.map(|why| format!("{name}: {why}")));
        }
        registry
    }

    fn read_device(&mut self, id: &str, value: Value) -> Result<Device, String> {
        // These two are unique columns: also a row that is unusable otherwise holds its values.
        self.serial_numbers.extend(value["serial_number"].as_str().map(str::to_owned));
        if let Some(name) = value["workspace_name"].as_str() {
            self.workspace_names.insert(name.to_owned(), id.to_owned());
        }
        let row: DeviceRow = serde_json::from_value(value).map_err(|error| shown(&error.to_string()).to_string())?;
        let workspace = row.workspace_name.filter(|name| {
            let usable = is_workspace_name(name);
            if !usable {
                let name = shown(name).to_string();
                self.faults.insert(format!(
                    "device {:?}: workspace_name: expected letters, digits, `.`, `_`, `-`, got {name:?}",
                    shown(id).to_string()
                ));
            }
            usable
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
        })
    }

    /// Every id with the bus path it was last seen at, to know microphones again.
    #[must_use]
    pub fn known_ports(&self) -> BTreeMap<String, Option<String>> {
        self.ports.clone()
    }

    /// Tells which devices the database calls online, and where each was last.
    pub fn expect(&self, presences: &mut Presences, now: Instant) {
        for (id, device) in &self.devices {
            let (online, card) = device.as_ref().map_or((false, None), |device| (device.online, device.last_card()));
            presences.expect(id, online, card, now);
        }
    }

    /// The rows that must change so that the database tells what is plugged in, and every microphone that somebody
    /// should decide about is there. `at` is the wall-clock time for notes.
    #[must_use]
    pub fn changes(&self, presences: &Presences, at: &str) -> Vec<RowChange> {
        let mut taken = self.workspace_names.clone();
        let mut serials = self.serial_numbers.clone();
        let mut changes = Vec::new();
        for (id, presence) in presences.iter() {
            let change = match (self.devices.get(id), presence) {
                (None, Presence::Online(microphone)) => Some(self.insert(id, microphone, at, &mut taken, &mut serials)),
                (Some(Ok(device)), Presence::Online(microphone)) => self.update(id, device, microphone, at, &mut taken),
                (Some(Ok(device)), Presence::Offline) if device.online => Some(RowChange { status: Some("offline"), ..RowChange::of(id) }),
                _ => None,
            };
            changes.extend(change);
        }
        changes
    }

    /// Slugs of usable profiles and how well each fits the microphone, where it does at all.
    pub fn scores<'a>(&'a self, microphone: &'a Microphone) -> impl Iterator<Item = (&'a str, u8)> {
        let usable = self.profiles.iter().filter_map(|(slug, config)| Some((slug.as_str(), config.as_ref().ok()?.criteria())));
        profile::scores(usable, microphone)
    }

    /// The usable profile that fits the microphone best.
    #[must_use]
    pub fn fit(&self, microphone: &Microphone) -> Match {
        profile::best(self.scores(microphone))
    }

    fn insert(
        &self,
        id: &str,
        microphone: &Microphone,
        at: &str,
        taken: &mut BTreeMap<String, String>,
        serials: &mut BTreeSet<String>,
    ) -> RowChange {
        let serial = microphone.usb.as_ref().and_then(|usb| usb.serial.clone());
        let serial_number = serial.filter(|serial| serials.insert(serial.clone())).unwrap_or_else(|| id.to_owned());
        let mut change = RowChange {
            insert: Some(Insert { serial_number }),
            status: Some("online"),
            model: Some(microphone.name.clone()),
            config: microphone.config(),
            ..RowChange::of(id)
        };
        self.enroll(&mut change, microphone, at);
        if let Some((profile, Enrollment::Enrolled)) = change.enroll.clone() {
            change.workspace = Some(name_for(id, &profile, microphone, taken));
        }
        change
    }

    fn update(
        &self,
        id: &str,
        device: &Device,
        microphone: &Microphone,
        at: &str,
        taken: &mut BTreeMap<String, String>,
    ) -> Option<RowChange> {
        let mut change = RowChange::of(id);
        if !device.online {
            change.status = Some("online");
        }
        if device.model != microphone.name {
            change.model = Some(microphone.name.clone());
        }
        change.config = by_insertion(microphone.config().into_iter().filter(|(key, value)| device.config.get(key) != Some(value)));
        let suggested = device.config.get("auto_suggested").and_then(Value::as_str);
        match device.enrollment {
            _ if device.is_decided() => {}
            Enrollment::Pending if device.profile.as_deref() == suggested => self.enroll(&mut change, microphone, at),
            Enrollment::Pending => {}
            Enrollment::Enrolled | Enrollment::Ignored => {
                change.config.insert("enrollment_decided_at".to_owned(), at.into());
            }
        }
        // The same suggestion again is no change.
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
            change.workspace = Some(name_for(id, slug, microphone, taken));
        }
        (change != RowChange::of(id)).then_some(change)
    }

    /// Matches the microphone with the profiles: enrols, suggests, or leaves it to the user.
    fn enroll(&self, change: &mut RowChange, microphone: &Microphone, at: &str) {
        let known = change.insert.is_none();
        match self.fit(microphone) {
            Match::One { slug, score: 100 } if self.system.auto_enrollment => {
                change.config.insert("auto_enrolled_at".to_owned(), at.into());
                change.note = Some(format!("enrolled with profile {}: vendor and product id match", shown(&slug)));
                change.enroll = Some((slug, Enrollment::Enrolled));
            }
            Match::One { slug, score } => {
                change.config.insert("auto_suggested".to_owned(), slug.clone().into());
                change.note = Some(format!("waits for the user; profile {} is suggested (score {score})", shown(&slug)));
                change.enroll = Some((slug, Enrollment::Pending));
            }
            Match::Ambiguous { slugs, score } if !known => {
                change.note = Some(format!("waits for the user: profiles {} match alike (score {score})", shown(&slugs.join(", "))));
            }
            Match::None if !known => change.note = Some("waits for the user: no profile matches".to_owned()),
            Match::Ambiguous { .. } | Match::None => {}
        }
    }
}

impl RowChange {
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

/// `config.usb_bus_path` of a row of `devices`.
fn port(row: &Value) -> Option<String> {
    row["config"]["usb_bus_path"].as_str().map(str::to_owned)
}

fn name_for(id: &str, slug: &str, microphone: &Microphone, taken: &mut BTreeMap<String, String>) -> String {
    let others: BTreeSet<&str> = by_insertion(taken.iter().filter(|(_, owner)| *owner != id).map(|(name, _)| name.as_str()));
    let usb = microphone.usb.as_ref();
    let serial = usb.and_then(|usb| usb.serial.as_deref());
    let name = workspace_name(slug, id, serial, usb.map(|usb| usb.bus_path.as_str()), microphone.card.into(), &others);
    taken.insert(name.clone(), id.to_owned());
    name
}

fn read_system(value: &Value) -> (System, Option<String>) {
    let mut system = System::default();
    let Some(fields) = value.as_object() else {
        return (System::UNUSABLE, Some(format!("expected an object, got {}", shown(&value.to_string()))));
    };
    let mut faults = Vec::new();
    match fields.get("max_recorders") {
        None => {}
        Some(value) => {
            system.max_recorders = value.as_u64().and_then(|count| usize::try_from(count).ok());
            if system.max_recorders.is_none() {
                faults.push(format!("max_recorders: expected a whole number, got {}", shown(&value.to_string())));
            }
        }
    }
    match fields.get("auto_enrollment") {
        None => {}
        Some(Value::Bool(on)) => system.auto_enrollment = *on,
        Some(value) => {
            system.auto_enrollment = false;
            faults.push(format!("auto_enrollment: expected true or false, got {}", shown(&value.to_string())));
        }
    }
    (system, (!faults.is_empty()).then(|| faults.join("; ")))
}
