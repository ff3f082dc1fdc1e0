//! The desired state of each device: whether a Recorder should run.
//!
//! | state | when                                                                                                  |
//! | ----- | ----------------------------------------------------------------------------------------------------- |
//! | run   | online, enabled, enrolled, with a valid profile                                                       |
//! | stop  | offline after the grace period, disabled, ignored, reset to pending, no profile assigned, row deleted |
//! | keep  | unknown, or not decided yet: a running Recorder continues, and none is started                        |
//!
//! While the database does not respond, the last rows that were read still decide what runs, but nothing is stopped
//! because of them.

use crate::sorted_map::SortedMap;
use std::fmt;
use std::sync::Arc;

use crate::decide::container::Container;
use crate::decide::device::Microphone;
use crate::decide::offer::Mismatch;
use crate::decide::presence::{Presence, Presences};
use crate::decide::pressure::Shortage;
use crate::decide::profile::ProfileConfig;
use crate::decide::registry::{Device, Enrollment, Registry};
use crate::decide::spec::{DEVICE_ID, RecorderSettings, Tier2ServiceSpec};

/// The desired state of one device, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// A container with this spec runs.
    Run(Arc<Tier2ServiceSpec>),
    /// No change.
    Keep(KeepReason),
    /// No container exists.
    Stop(StopReason),
}

/// Why no container should exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The microphone was not detected for longer than the grace period.
    Offline,
    /// A user disabled it.
    Disabled,
    /// A user reset it to pending.
    Pending,
    /// A user ignores it.
    Ignored,
    /// It has no profile.
    NoProfile,
    /// The host is short of something, and a worker gives way.
    Shortage(Shortage),
    /// The Controller is asked to stop.
    Shutdown,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shortage(shortage) => return write!(f, "{shortage}"),
            Self::Offline => "offline",
            Self::Disabled => "disabled",
            Self::Pending => "pending",
            Self::Ignored => "ignored",
            Self::NoProfile => "no profile assigned",
            Self::Shutdown => "the Controller stops",
        })
    }
}

/// Why nothing is started or stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// The row in `devices` is invalid.
    InvalidRow(String),
    /// The last known rows require a stop, but the database does not respond now.
    DatabaseUnavailable(StopReason),
    /// The device or worker has no row yet, or not any more.
    NoRow,
    /// The row is new, and neither the Controller nor a user has decided about it.
    Undecided,
    /// The profile has no row.
    ProfileMissing(String),
    /// The profile is invalid.
    ProfileInvalid {
        /// Its slug.
        slug: String,
        /// Why it is invalid.
        why: String,
    },
    /// The sound cards have not been read since the start.
    HardwareUnknown,
    /// It is not detected, but the grace period is not over.
    NotDetected,
    /// The row contains no workspace folder yet.
    NoWorkspaceName,
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRow(why) => write!(f, "its database row is invalid: {why}"),
            Self::DatabaseUnavailable(reason) => write!(f, "{reason}, but the database does not respond"),
            Self::NoRow => f.write_str("it is not in the database yet"),
            Self::Undecided => f.write_str("pending, not decided yet"),
            Self::ProfileMissing(slug) => write!(f, "profile {slug} is missing"),
            Self::ProfileInvalid { slug, why } => write!(f, "profile {slug} is invalid: {why}"),
            Self::HardwareUnknown => f.write_str("the sound cards are not known yet"),
            Self::NotDetected => f.write_str("not detected, within the grace period"),
            Self::NoWorkspaceName => f.write_str("its workspace name is not in the database yet"),
        }
    }
}

/// The spec of each device, kept until its inputs change: creating one takes longer than all else here.
#[derive(Debug)]
pub struct SpecCache {
    recorder: RecorderSettings,
    specs: SortedMap<String, Arc<Tier2ServiceSpec>>,
}

impl SpecCache {
    /// An empty cache. The settings that are common to all Recorders do not change.
    #[must_use]
    pub fn new(recorder: RecorderSettings) -> Self {
        Self { recorder, specs: SortedMap::new() }
    }

    fn get(&mut self, device: &str, microphone: &Microphone, folder: &str, profile: &str, config: &ProfileConfig) -> Arc<Tier2ServiceSpec> {
        let config_json = config.recorder_json();
        if let Some(spec) = self.specs.get(device).filter(|spec| spec.is_of(microphone, folder, profile, config_json)) {
            return Arc::clone(spec);
        }
        let mut spec = Tier2ServiceSpec::recorder(&self.recorder, device, microphone, folder, profile, config_json.to_owned());
        spec.mismatch = Mismatch::find(&microphone.offer, config.capture());
        let spec = Arc::new(spec);
        self.specs.insert(device.to_owned(), Arc::clone(&spec));
        spec
    }
}

/// The desired state of all devices in the database or detected by the hardware.
#[must_use]
pub fn desired(registry: &Registry, database_known: bool, presences: &Presences, specs: &mut SpecCache) -> SortedMap<String, Desired> {
    let mut all = SortedMap::new();
    for (id, row) in &registry.devices {
        let one = match row {
            Ok(device) => of_device(id, device, registry, presences.get(id), specs),
            Err(why) => Desired::Keep(KeepReason::InvalidRow(why.clone())),
        };
        let one = match one {
            Desired::Stop(reason) if !database_known && !matches!(presences.get(id), Some(Presence::Offline)) => {
                Desired::Keep(KeepReason::DatabaseUnavailable(reason))
            }
            one => one,
        };
        all.insert(id.clone(), one);
    }
    for (id, _) in presences.iter().filter(|(_, presence)| !matches!(presence, Presence::Offline)) {
        if !all.contains_key(id) {
            all.insert(id.clone(), Desired::Keep(KeepReason::NoRow));
        }
    }
    if specs.specs.len() > all.len() {
        specs.specs.retain(|id, _| all.contains_key(id));
    }
    all
}

/// The desired state while the Controller stops: no container exists.
#[must_use]
pub fn stop_all(containers: &[Container]) -> SortedMap<String, Desired> {
    let device = |container: &Container| container.labels.get(DEVICE_ID).cloned().unwrap_or_default();
    containers.iter().map(|container| (device(container), Desired::Stop(StopReason::Shutdown))).collect()
}

fn of_device(id: &str, device: &Device, registry: &Registry, presence: Option<&Presence>, specs: &mut SpecCache) -> Desired {
    let stop = Desired::Stop;
    let keep = Desired::Keep;
    if presence == Some(&Presence::Offline) {
        return stop(StopReason::Offline);
    }
    if !device.enabled {
        return stop(StopReason::Disabled);
    }
    match device.enrollment {
        Enrollment::Pending if device.is_decided() => return stop(StopReason::Pending),
        // Not a decision: the row is new, as in a database that was lost and created again. A running Recorder
        // continues.
        Enrollment::Pending => return keep(KeepReason::Undecided),
        Enrollment::Ignored => return stop(StopReason::Ignored),
        Enrollment::Enrolled => {}
    }
    let Some(slug) = &device.profile else { return stop(StopReason::NoProfile) };
    let config = match registry.profiles.get(slug) {
        // A foreign key makes this impossible in a complete database: it is being restored.
        None => return keep(KeepReason::ProfileMissing(slug.clone())),
        Some(Err(why)) => return keep(KeepReason::ProfileInvalid { slug: slug.clone(), why: why.clone() }),
        Some(Ok(config)) => config,
    };
    match (presence, &device.workspace) {
        (None, _) => keep(KeepReason::HardwareUnknown),
        (Some(Presence::Missing { .. } | Presence::Offline), _) => keep(KeepReason::NotDetected),
        (Some(Presence::Online(_)), None) => keep(KeepReason::NoWorkspaceName),
        (Some(Presence::Online(microphone)), Some(folder)) => Desired::Run(specs.get(id, microphone, folder, slug, config)),
    }
}
