//! Should a device have a running RecorderSettings now? [p]
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
use std::sync::Arc;

use crate::decide::device::Microphone;
use crate::decide::presence::{Presence, Presences};
use crate::decide::registry::{Device, Enrollment, Registry};
use crate::decide::spec::RecorderSettings;
use crate::decide::spec::Spec;

/// What should be with one device, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// A container like this runs.
    Run(Arc<Spec>),
    /// Whatever is stays.
    Keep(String),
    /// No container exists.
    Stop(String),
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

/// The wishes of all devices that the database or the hardware knows.
#[must_use]
pub fn wants(registry: &Registry, database_known: bool, presences: &Presences, specs: &mut SpecCache) -> BTreeMap<String, Desired> {
    let mut wants = BTreeMap::new();
    for (id, row) in &registry.devices {
        let want = match row {
            Ok(device) => want(id, device, registry, presences.get(id), specs),
            Err(why) => Desired::Keep(format!("its row is unusable: {why}")),
        };
        let want = match want {
            Desired::Stop(why) if !database_known && !matches!(presences.get(id), Some(Presence::Offline)) => {
                Desired::Keep(format!("{why}, but the database does not answer"))
            }
            want => want,
        };
        wants.insert(id.clone(), want);
    }
    for (id, _) in presences.iter().filter(|(_, presence)| !matches!(presence, Presence::Offline)) {
        if !wants.contains_key(id) {
            wants.insert(id.clone(), Desired::Keep("it is not in the database yet".to_owned()));
        }
    }
    if specs.made.len() > wants.len() {
        specs.made.retain(|id, _| wants.contains_key(id));
    }
    wants
}

fn want(id: &str, device: &Device, registry: &Registry, presence: Option<&Presence>, specs: &mut SpecCache) -> Desired {
    let stop = |why: &str| Desired::Stop(why.to_owned());
    let keep = |why: &str| Desired::Keep(why.to_owned());
    if presence == Some(&Presence::Offline) {
        return stop("offline");
    }
    if !device.enabled {
        return stop("disabled");
    }
    match device.enrollment {
        Enrollment::Pending if device.is_decided() => return stop("pending"),
        // Nobody decided that: the row is new, as in a database that was lost. What records goes on.
        Enrollment::Pending => return keep("pending, and nobody decided about it yet"),
        Enrollment::Ignored => return stop("ignored"),
        Enrollment::Enrolled => {}
    }
    let Some(slug) = &device.profile else { return stop("without a profile") };
    let config = match registry.profiles.get(slug) {
        // A sound database cannot lack it: somebody is loading one.
        None => return Desired::Keep(format!("profile {slug} is missing")),
        Some(Err(why)) => return Desired::Keep(format!("profile {slug} is invalid: {why}")),
        Some(Ok(config)) => config,
    };
    match (presence, &device.workspace) {
        (None, _) => keep("the hardware could not be read yet"),
        (Some(Presence::Missing { .. } | Presence::Offline), _) => keep("not seen for a moment"),
        (Some(Presence::Online(_)), None) => keep("its workspace name is not in the database yet"),
        (Some(Presence::Online(microphone)), Some(folder)) => Desired::Run(specs.get(id, microphone, folder, slug, config.recorder_json())),
    }
}
