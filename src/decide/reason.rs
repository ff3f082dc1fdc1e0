//! Why a microphone is recorded or not: one line each, the same in the heartbeat and in the command `devices`.
//!
//! A microphone is recorded if its Recorder runs and frames arrive. Where the kernel cannot be asked whether they do, the
//! line tells the state of the container.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use crate::clock;
use crate::decide::capture::{Capture, Standing};
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
    pub desired: &'a SortedMap<String, Desired>,
    /// Desired Recorders that wait, and for what.
    pub holds: &'a SortedMap<String, String>,
    /// All our containers, or why they are unknown.
    pub containers: Result<&'a [Container], &'a str>,
    /// Whether the Recorders that run capture, by device.
    pub captures: &'a SortedMap<String, Capture>,
}

/// Whether one microphone is recorded, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Whether frames arrive; `None` = unknown.
    pub recording: Option<bool>,
    /// Whether its Recorder runs, but has opened the card and gets no frames.
    pub stalled: bool,
    /// The line to show.
    pub text: String,
}

/// The reason for each microphone in the database, on a sound card or in a label of a container.
#[must_use]
pub fn reasons(known: &ReasonInput<'_>) -> SortedMap<String, Reason> {
    let device = |container: &Container| container.labels.get(DEVICE_ID).cloned().unwrap_or_default();
    let containers = known.containers.unwrap_or_default();
    let ids: SortedSet<String> =
        known.registry.devices.keys().chain(known.desired.keys()).cloned().chain(containers.iter().map(device)).collect();
    let entry = |id: String| {
        let reason = reason(known, &id);
        (id, reason)
    };
    ids.into_iter().map(entry).collect()
}

fn reason(known: &ReasonInput<'_>, id: &str) -> Reason {
    let reason = |recording, text: String| Reason { recording, stalled: false, text };
    let containers = match known.containers {
        Ok(containers) => containers,
        Err(why) => return reason(None, format!("unknown: Podman: {}", shown(why))),
    };
    let running =
        |container: &&Container| container.labels.get(DEVICE_ID).is_some_and(|device| device == id) && container.state == State::Running;
    let desired = known.desired.get(id);
    if let Some(container) = containers.iter().find(running) {
        let begun = clock::iso_seconds(UNIX_EPOCH + Duration::from_secs(container.started));
        let capture = known.captures.get(id).unwrap_or(&Capture::Unproven);
        let (recording, state) = running_text(capture, &begun);
        let text = match desired {
            Some(Desired::Run(spec)) => {
                let mismatch = spec.mismatch.as_ref().filter(|_| recording != Some(true)).map(ToString::to_string);
                let hold = known.holds.get(id).cloned();
                let mismatch = mismatch.filter(|mismatch| Some(mismatch) != hold.as_ref());
                [Some(state), hold, mismatch].into_iter().flatten().collect::<Vec<_>>().join("; ")
            }
            Some(Desired::Keep(why)) => format!("{state}, although {why}"),
            Some(Desired::Stop(why)) => format!("{state}, to be stopped: {why}"),
            None => format!("{state}, to be stopped: it is not in the database"),
        };
        return Reason { recording, stalled: matches!(capture, Capture::Standing(_)), text };
    }
    let why = match desired {
        Some(Desired::Run(spec)) => {
            let hold = known.holds.get(id).map_or("starting", String::as_str);
            match &spec.mismatch {
                Some(mismatch) => format!("{hold}; {mismatch}"),
                None => hold.to_owned(),
            }
        }
        Some(Desired::Keep(why)) => pending(known, id).map_or_else(|| why.to_string(), |more| format!("pending, {more}")),
        Some(Desired::Stop(why)) => pending(known, id).map_or_else(|| why.to_string(), |more| format!("pending, {more}")),
        None => "it is not in the database".to_owned(),
    };
    reason(Some(false), format!("not recording: {why}"))
}

/// Whether a Recorder that runs since then records, and the text.
fn running_text(capture: &Capture, begun: &str) -> (Option<bool>, String) {
    match capture {
        Capture::Running => (Some(true), format!("recording since {begun}")),
        Capture::Unopened => (Some(false), format!("running, but has not opened the card; since {begun}")),
        Capture::Taken(holder) => {
            (Some(false), format!("running, but its card is held by another program: {}; since {begun}", shown(holder)))
        }
        Capture::Standing(standing) => (Some(false), format!("not recording: its Recorder runs since {begun}, but {standing}")),
        Capture::Unproven => (None, format!("running since {begun}; the next read of the card shows whether frames arrive")),
        Capture::Unknown(why) => (None, format!("running since {begun}; whether frames arrive is unknown: {}", shown(why))),
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no frames arrive since {} ({})", clock::iso_seconds(self.since), shown(&self.state))?;
        match self.steps {
            Some((count, last)) => write!(f, "; {count} steps did not help, the last one at {}", clock::iso_seconds(last)),
            None => Ok(()),
        }
    }
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
