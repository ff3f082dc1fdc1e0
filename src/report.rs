//! Reports on the state of the main loop: components of health checks, `meta` of the heartbeat, and a dump for the log.
//! They only read the state.

use std::time::{Instant, SystemTime};

use serde_json::{Map, Value, json};

use crate::collect::by_insertion;
use crate::containers::actions::Actions;
use crate::containers::state::ContainersState;
use crate::database::state::DatabaseState;
use crate::decide::capture::{Capture, Captures};
use crate::decide::desired::{SpecCache, desired};
use crate::decide::leadership::Leadership;
use crate::decide::reason::{Reason, ReasonInput, reasons};
use crate::decide::recorders::Recorders;
use crate::hardware::pcm::Proof;
use crate::hardware::power::Power;
use crate::hardware::state::HardwareState;
use crate::health::board::Activity;
use crate::health::heartbeat::{Facts, Heartbeat};
use crate::history::History;
use crate::ledger::Ledger;
use crate::redis::levels::Levels;
use crate::sorted_map::SortedMap;
use crate::tally::Tally;
use crate::text::shown;

/// The state of the main loop.
pub struct Known<'a> {
    /// The connected microphones.
    pub hardware: &'a HardwareState,
    /// The rows of the database.
    pub database: &'a DatabaseState,
    /// The containers.
    pub containers: &'a ContainersState,
    /// The actions under way.
    pub actions: &'a Actions,
    /// The history of the Recorders.
    pub recorders: &'a Recorders,
    /// What the heartbeat says about workers.
    pub workers: &'a Map<String, Value>,
    /// When microphones were recorded.
    pub ledger: &'a Ledger,
    /// Whether the Recorders capture.
    pub captures: &'a Captures,
    /// The last decisions.
    pub history: &'a History,
    /// What was counted for metrics.
    pub tally: &'a Tally,
    /// The specs.
    pub specs: &'a mut SpecCache,
    /// Which Controller leads.
    pub leadership: &'a Leadership,
    /// The last heartbeat.
    pub heartbeat: &'a Heartbeat,
    /// When the Controller started.
    pub started: SystemTime,
    /// Whether a shutdown began.
    pub is_stopping: bool,
}

/// What the status page and the metrics show besides the state of the main loop.
pub struct Surroundings<'a> {
    /// Also in the heartbeat.
    pub facts: &'a Facts,
    /// The levels that the Recorders state.
    pub levels: &'a Levels,
    /// What the sensors show.
    pub power: Power,
    /// Now.
    pub now: Instant,
    /// Likewise.
    pub wall: SystemTime,
}

impl Known<'_> {
    /// Why each microphone is recorded or not; empty until the database has responded for the first time.
    #[must_use]
    pub fn reasons(&mut self) -> SortedMap<String, Reason> {
        let Some(registry) = &self.database.registry else { return SortedMap::new() };
        let presences = &self.hardware.presences;
        let desired = desired(registry, self.database.state.is_ok(), presences, self.specs);
        let (holds, containers) = (self.recorders.holds(), self.containers.containers());
        let captures = self.captures.all().map(|(device, capture)| (device.to_owned(), capture)).collect();
        reasons(&ReasonInput { registry, presences, desired: &desired, holds: &holds, containers, captures: &captures })
    }

    /// `meta` of the heartbeat: the reason, the proof of capture and the effort of each microphone, and how Recorders
    /// ended.
    pub fn meta(&mut self) -> Map<String, Value> {
        let reasons = self.reasons();
        let entry = |(id, reason): (String, Reason)| {
            let capture = self.captures.capture(&id).and_then(|_| self.hardware.proof(&id)).map(Proof::to_json);
            let effort = self.ledger.effort(&id);
            let (recording, stalled) = (reason.recording, reason.stalled);
            (id, json!({"recording": recording, "stalled": stalled, "reason": reason.text, "capture": capture, "effort": effort}))
        };
        let devices = by_insertion(reasons.into_iter().map(entry));
        let ends = self.recorders.ends();
        let ends = (!ends.is_empty()).then(|| ("ends".to_owned(), ends.into()));
        let workers = (!self.workers.is_empty()).then(|| ("workers".to_owned(), self.workers.clone().into()));
        by_insertion([("devices".to_owned(), devices.into())].into_iter().chain(ends).chain(workers))
    }

    /// The components of health checks, and the activity of the station.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let connected = |state: &Result<(), String>| state.clone().map(|()| "connected".to_owned());
        let (running, faults) = self.recorders.summary();
        let is_well = faults.is_empty();
        let details = [format!("{running} running")].into_iter().chain(faults).chain(self.recorders.mismatches());
        let details = details.collect::<Vec<_>>().join("; ");
        let containers = match &self.containers.state {
            Err(_) => Err("unknown".to_owned()),
            Ok(()) if is_well => Ok(details),
            Ok(()) => Err(details),
        };
        let captures: Vec<(&str, Capture)> = self.captures.all().collect();
        Facts {
            database: connected(&self.database.state),
            podman: connected(&self.containers.state),
            hardware: self.hardware.details(),
            containers,
            capture: capture_details(&captures),
            rate: captures.iter().filter_map(|(device, _)| self.hardware.proof(device)?.rate()).sum(),
            lock: self.leadership.details(),
            activity: match self.is_stopping {
                _ if self.leadership.is_standby() => Activity::Standby,
                true => Activity::Stopping,
                // Where the kernel cannot be asked, a Recorder that runs is believed.
                false if captures.iter().any(|(_, capture)| matches!(capture, Capture::Running | Capture::Unknown(_))) => {
                    Activity::Recording
                }
                false => Activity::Idle,
            },
        }
    }

    /// The lines of a dump.
    pub fn dump(&mut self) -> Vec<String> {
        let text = |state: &Result<(), String>| state.clone().map_or_else(|why| why, |()| "ok".to_owned());
        let states = [&self.hardware.state, &self.database.state, &self.containers.state].map(text);
        let mut lines = vec![format!("hardware {}; database {}; podman {}", states[0], states[1], states[2]), self.containers.summary()];
        for (id, reason) in self.reasons() {
            let capture = self.hardware.proof(&id).map(|proof| format!("; PCM {proof}")).unwrap_or_default();
            let busy = if self.actions.has(&id) { "; an action is under way" } else { "" };
            lines.push(format!("microphone {}: {}{capture}{busy}", shown(&id), reason.text));
        }
        for (name, worker) in self.workers {
            lines.push(format!("worker {name}: {}", worker["reason"].as_str().unwrap_or_default()));
        }
        lines.extend(self.history.lines());
        lines.push("end".to_owned());
        lines
    }
}

/// How many Recorders capture. Only a Recorder that has opened its card and gets no frames is a fault.
fn capture_details(captures: &[(&str, Capture)]) -> Result<String, String> {
    let (mut running, mut unopened, mut taken, mut unknown, mut standing) = (0, 0, 0, 0, Vec::new());
    for (device, capture) in captures {
        match capture {
            Capture::Running => running += 1,
            Capture::Unopened => unopened += 1,
            Capture::Taken(_) => taken += 1,
            Capture::Unproven | Capture::Unknown(_) => unknown += 1,
            Capture::Standing(capture) => standing.push(format!("{}: {capture}", shown(device))),
        }
    }
    let mut details = format!("{running} captured");
    for (count, what) in [(unopened, "without an open card"), (taken, "held by another program"), (unknown, "unknown")] {
        if count > 0 {
            details.push_str(&format!(", {count} {what}"));
        }
    }
    if standing.is_empty() { Ok(details) } else { Err(format!("{details}; {}", standing.join("; "))) }
}
