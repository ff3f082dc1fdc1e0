//! Why a microphone is recorded or not: one line each, the same in the heartbeat and in the command `devices`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use crate::clock;
use crate::collect::by_insertion;
use crate::decide::container::{Container, State};
use crate::decide::desired::Desired;
use crate::decide::device::Microphone;
use crate::decide::presence::{Presence, Presences};
use crate::decide::profile::Match;
use crate::decide::registry::{Enrollment, Registry};
use crate::decide::spec::DEVICE_ID;
use crate::text::shown;

/// Everything that the reasons depend on.
#[derive(Debug)]
pub struct ReasonInput<'a> {
    /// The last rows of the database.
    pub registry: &'a Registry,
    /// Presence of each microphone.
    pub presences: &'a Presences,
    /// The desired state of each device.
    pub desired: &'a BTreeMap<String, Desired>,
    /// Desired Recorders that wait, and for what.
    pub holds: &'a BTreeMap<String, String>,
    /// All our containers, or why they are unknown.
    pub containers: Result<&'a [Container], &'a str>,
}

/// Whether one microphone is recorded, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Whether its Recorder runs; `None` = unknown.
    pub recording: Option<bool>,
    /// The line to show.
    pub text: String,
}

/// The reason for each microphone in the database, on a sound card or in a label of a container.
#[must_use]
pub fn reasons(known: &ReasonInput<'_>) -> BTreeMap<String, Reason> {
    let device = |container: &Container| container.labels.get(DEVICE_ID).cloned().unwrap_or_default();
    let containers = known.containers.unwrap_or_default();
    let ids: BTreeSet<String> =
        by_insertion(known.registry.devices.keys().chain(known.desired.keys()).cloned().chain(containers.iter().map(device)));
    let entry = |id: String| {
        let reason = reason(known, &id);
        (id, reason)
    };
    by_insertion(ids.into_iter().map(entry))
}

fn reason(known: &ReasonInput<'_>, id: &str) -> Reason {
    let reason = |recording, text: String| Reason { recording, text };
    let containers = match known.containers {
        Ok(containers) => containers,
        Err(why) => return reason(None, format!("unknown: Podman: {}", shown(why))),
    };
    let running =
        |container: &&Container| container.labels.get(DEVICE_ID).is_some_and(|device| device == id) && container.state == State::Running;
    let desired = known.desired.get(id);
    if let Some(container) = containers.iter().find(running) {
        let begun = clock::iso_seconds(UNIX_EPOCH + Duration::from_secs(container.started));
        let since = format!("recording since {begun}");
        return reason(
            Some(true),
            match desired {
                Some(Desired::Run(_)) => known.holds.get(id).map_or_else(|| since.clone(), |hold| format!("{since}; {hold}")),
                Some(Desired::Keep(why)) => format!("{since}, although {why}"),
                Some(Desired::Stop(why)) => format!("{since}, to be stopped: {why}"),
                None => format!("{since}, to be stopped: it is not in the database"),
            },
        );
    }
    let why = match desired {
        Some(Desired::Run(_)) => known.holds.get(id).map_or("starting", String::as_str).to_owned(),
        Some(Desired::Keep(why)) => pending(known, id).map_or_else(|| why.to_string(), |more| format!("pending, {more}")),
        Some(Desired::Stop(why)) => pending(known, id).map_or_else(|| why.to_string(), |more| format!("pending, {more}")),
        None => "it is not in the database".to_owned(),
    };
    reason(Some(false), format!("not recording: {why}"))
}

/// What the user must decide, if the microphone is connected and pending.
fn pending(known: &ReasonInput<'_>, id: &str) -> Option<String> {
    let device = known.registry.devices.get(id)?.as_ref().ok()?;
    let microphone = online(known.presences, id)?;
    if !device.enabled || device.enrollment != Enrollment::Pending {
        return None;
    }
    Some(match known.registry.fit(microphone) {
        Match::None => "no profile matches".to_owned(),
        Match::One { slug, score } => format!("profile {} is suggested (score {score})", shown(&slug)),
        Match::Ambiguous { slugs, score } => format!("ambiguous: {} match equally (score {score})", shown(&slugs.join(", "))),
    })
}

/// The connected microphones that wait for a user, because no profile matches.
#[must_use]
pub fn unmatched(registry: &Registry, presences: &Presences) -> Vec<String> {
    let waits = |id: &&String| {
        let device = registry.devices.get(*id).and_then(|device| device.as_ref().ok());
        let pending = device.is_some_and(|device| device.enabled && device.enrollment == Enrollment::Pending && device.profile.is_none());
        pending && online(presences, id).is_some_and(|microphone| registry.fit(microphone) == Match::None)
    };
    registry.devices.keys().filter(waits).cloned().collect()
}

/// The microphone, if it is connected.
#[must_use]
pub fn online<'a>(presences: &'a Presences, id: &str) -> Option<&'a Microphone> {
    match presences.get(id) {
        Some(Presence::Online(microphone)) => Some(microphone),
        _ => None,
    }
}
