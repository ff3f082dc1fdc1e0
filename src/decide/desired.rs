//! Should a device have a running Recorder now?
//!
//! | answer | when                                                                                     |
//! | ------ | ---------------------------------------------------------------------------------------- |
//! | run    | online, enabled, enrolled, with a valid profile                                           |
//! | stop   | offline beyond the grace period, disabled, ignored, reset to pending, without a profile,   |
//! |        | row deleted                                                                              |
//! | keep   | it cannot be told, or not now: whatever runs runs on, and nothing is started              |
//!
//! While the database does not answer, its last word still says what to run, but nothing is stopped on its account.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::collect::by_insertion;
use crate::decide::container::Container;
use crate::decide::device::Microphone;
use crate::decide::presence::{Presence, Presences};
use crate::decide::registry::{Device, Enrollment, Registry};
use crate::decide::spec::{DEVICE_ID, RecorderSettings, Spec};

/// What should be with one device, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// A container like this runs.
    Run(Arc<Spec>),
    /// Whatever is stays.
    Keep(KeepReason),
    /// No container exists.
    Stop(StopReason),
}

/// Why no container should exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The microphone was not seen for longer than the grace period.
    Offline,
    /// A user disabled it.
    Disabled,
    /// A user reset it to pending.
    Pending,
    /// A user ignores it.
    Ignored,
    /// It has no profile.
    NoProfile,
    /// The Controller is asked to stop.
    Shutdown,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offline => "offline",
            Self::Disabled => "disabled",
            Self::Pending => "pending",
            Self::Ignored => "ignored",
            Self::NoProfile => "without a profile",
            Self::Shutdown => "the Controller stops",
        })
    }
}

/// Why nothing is started or stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// The row in `devices` cannot be used.
    Unusable(String),
    /// The last answer of the database says so, but it does not answer now.
    DatabaseAway(StopReason),
    /// The device has no row yet.
    NoRow,
    /// The row is new, and neither the Controller nor a user decided about it.
    Undecided,
    /// The profile has no row.
    ProfileMissing(String),
    /// The profile cannot be used.
    ProfileInvalid {
        /// Its slug.
        slug: String,
        /// What is wrong with it.
        why: String,
    },
    /// The sound cards were not read since the start.
    HardwareUnknown,
    /// It was not seen, but the grace period is not over.
    NotSeen,
    /// The row names no workspace folder yet.
    NoWorkspaceName,
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(why) => write!(f, "its row is unusable: {why}"),
            Self::DatabaseAway(reason) => write!(f, "{reason}, but the database does not answer"),
            Self::NoRow => f.write_str("it is not in the database yet"),
            Self::Undecided => f.write_str("pending, and nobody decided about it yet"),
            Self::ProfileMissing(slug) => write!(f, "profile {slug} is missing"),
            Self::ProfileInvalid { slug, why } => write!(f, "profile {slug} is invalid: {why}"),
            Self::HardwareUnknown => f.write_str("the hardware could not be read yet"),
            Self::NotSeen => f.write_str("not seen for a moment"),
            Self::NoWorkspaceName => f.write_str("its workspace name is not in the database yet"),
        }
    }
}

/// The spec of each device, kept while nothing changes that it is made from: making one takes longer than all else here.
#[derive(Debug)]
pub struct SpecCache {
    recorder: RecorderSettings,
    made: BTreeMap<String, Arc<Spec>>,
}

impl SpecCache {
    /// None made yet. What is the same for all Recorders comes from the settings.
    #[must_use]
    pub fn new(recorder: RecorderSettings) -> Self {
        Self { recorder, made: BTreeMap::new() }
    }

    fn get(&mut self, device: &str, microphone: &Microphone, folder: &str, profile: &str, config_json: &str) -> Arc<Spec> {
        if let Some(spec) = self.made.get(device).filter(|spec| spec.is_of(microphone, folder, profile, config_json)) {
            return Arc::clone(spec);
        }
        let spec = Arc::new(Spec::new(&self.recorder, device, microphone, folder, profile, config_json.to_owned()));
        self.made.insert(device.to_owned(), Arc::clone(&spec));
        spec
    }
}

/// The desired state of all devices that the database or the hardware knows.
#[must_use]
pub fn desired(registry: &Registry, database_known: bool, presences: &Presences, specs: &mut SpecCache) -> BTreeMap<String, Desired> {
    let mut all = BTreeMap::new();
    for (id, row) in &registry.devices {
        let one = match row {
            Ok(device) => of_device(id, device, registry, presences.get(id), specs),
            Err(why) => Desired::Keep(KeepReason::Unusable(why.clone())),
        };
        let one = match one {
            Desired::Stop(reason) if !database_known && !matches!(presences.get(id), Some(Presence::Offline)) => {
                Desired::Keep(KeepReason::DatabaseAway(reason))
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
    if specs.made.len() > all.len() {
        specs.made.retain(|id, _| all.contains_key(id));
    }
    all
}

/// The desired state while the Controller stops: no container exists.
#[must_use]
pub fn none_of(containers: &[Container]) -> BTreeMap<String, Desired> {
    let device = |container: &Container| container.labels.get(DEVICE_ID).cloned().unwrap_or_default();
    by_insertion(containers.iter().map(|container| (device(container), Desired::Stop(StopReason::Shutdown))))
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
        // Nobody decided that: the row is new, as in a database that was lost. What records goes on.
        Enrollment::Pending => return keep(KeepReason::Undecided),
        Enrollment::Ignored => return stop(StopReason::Ignored),
        Enrollment::Enrolled => {}
    }
    let Some(slug) = &device.profile else { return stop(StopReason::NoProfile) };
    let config = match registry.profiles.get(slug) {
        // A sound database cannot lack it: somebody is loading one.
        None => return keep(KeepReason::ProfileMissing(slug.clone())),
        Some(Err(why)) => return keep(KeepReason::ProfileInvalid { slug: slug.clone(), why: why.clone() }),
        Some(Ok(config)) => config,
    };
    match (presence, &device.workspace) {
        (None, _) => keep(KeepReason::HardwareUnknown),
        (Some(Presence::Missing { .. } | Presence::Offline), _) => keep(KeepReason::NotSeen),
        (Some(Presence::Online(_)), None) => keep(KeepReason::NoWorkspaceName),
        (Some(Presence::Online(microphone)), Some(folder)) => Desired::Run(specs.get(id, microphone, folder, slug, config.recorder_json())),
    }
}
