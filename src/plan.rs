//! What has to be done so that the containers become what is wanted. [p]
//!
//! [`plan`] compares wishes with the containers that carry our owner label and returns actions, at most one a device,
//! starts before stops, each with its reason. An empty plan means that nothing is left to do. It never stops on
//! unknown: without a list of containers there is no plan, and a device that cannot be told is `Keep`.
//!
//! | container             | run, same hash | run, other hash | keep  | stop   |
//! | --------------------- | -------------- | --------------- | ----- | ------ |
//! | none                  | start          | start           | –     | –      |
//! | running, paused       | –              | replace         | –     | stop   |
//! | stopping, stopped     | wait           | replace         | –     | stop   |
//! | created, exited       | replace        | replace         | –     | stop   |
//! | stopping … for long   | replace        | replace         | –     | stop   |
//! | removing              | wait           | wait            | –     | wait   |

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::backoff::Backoffs;
use crate::podman::{Container, State};
use crate::registry::DEFAULT_MAX_RECORDERS;
use crate::spec::{CONFIG_HASH, DEVICE_ID, Spec};
use crate::want::Want;

/// Everything that a plan depends on.
#[derive(Debug)]
pub struct View<'a> {
    /// All containers of ours, running or not.
    pub containers: &'a [Container],
    /// What should be, by device.
    pub wants: &'a BTreeMap<String, Want>,
    /// Whether a device without a wish is known to be none, so that its container may go.
    pub wants_complete: bool,
    /// Most Recorders at a time; `None` = unknown, which stops none.
    pub max_recorders: Option<usize>,
    /// When a failed start may be tried again.
    pub backoffs: &'a Backoffs,
    /// Devices with an action under way, or whose containers were listed before their last action ended.
    pub busy: &'a BTreeSet<String>,
    /// Ids of containers that have been in an in-between state for too long.
    pub stuck: &'a BTreeSet<String>,
    /// Now.
    pub now: Instant,
}

/// A container that an action removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it must be asked to end first.
    pub running: bool,
}

/// One thing to do for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Stable id of the microphone; empty if a container does not say.
    pub device: String,
    /// Containers to stop and remove first.
    pub old: Vec<Old>,
    /// Container to create and start then.
    pub start: Option<Box<Spec>>,
    /// Why.
    pub reason: String,
}

/// Actions, and why wanted Recorders are not started.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do now, starts first.
    pub actions: Vec<Action>,
    /// Wanted, but waiting: device and why.
    pub holds: BTreeMap<String, String>,
    /// Containers that run as wanted: device and container id.
    pub kept: BTreeMap<String, String>,
}

/// What failed removals are counted under, beside the hashes of failed starts.
pub const STOP: &str = "stop";

const CROWDED: &str = "max_recorders is reached";

impl Plan {
    /// Devices that should record but have no place.
    pub fn crowded(&self) -> impl Iterator<Item = &str> {
        self.holds.iter().filter(|(_, why)| *why == CROWDED).map(|(device, _)| device.as_str())
    }
}

/// Decides; see the table above.
#[must_use]
pub fn plan(view: &View<'_>) -> Plan {
    let containers = by_device(view.containers);
    let (admitted, surplus) = admit(view, &containers);
    let mut plan = Plan::default();
    let mut stops = Vec::new();
    for (device, want) in view.wants {
        let own = containers.get(device.as_str()).map_or(&[][..], Vec::as_slice);
        if view.busy.contains(device) {
            plan.holds.insert(device.clone(), "an action is under way".to_owned());
            continue;
        }
        match want {
            Want::Keep(_) => {}
            Want::Stop(why) => stops.extend(remove(device, own, why)),
            Want::Run(_) if surplus.contains(device.as_str()) => stops.extend(remove(device, own, "beyond max_recorders")),
            Want::Run(_) if !admitted.contains(device.as_str()) => {
                plan.holds.insert(device.clone(), CROWDED.to_owned());
                // Ended containers of a waiting device serve nobody.
                stops.extend(remove(device, own, CROWDED));
            }
            Want::Run(spec) => run(view, spec, own, &mut plan, &mut stops),
        }
    }
    for (device, own) in containers.iter().filter(|(device, _)| !view.wants.contains_key(**device)) {
        if view.wants_complete && !view.busy.contains(*device) {
            stops.extend(remove(device, own, "no such device in the database"));
        }
    }
    stops.retain(|action| view.backoffs.wait(&action.device, STOP, view.now).is_none());
    plan.actions.append(&mut stops);
    plan
}

/// Which devices that should run may, and which of those that run must not.
fn admit<'a>(view: &'a View<'_>, containers: &BTreeMap<&str, Vec<&Container>>) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let alive = |device: &str| containers.get(device).is_some_and(|own| own.iter().any(|container| !is_over(container.state)));
    let kept = view.wants.iter().filter(|(device, want)| matches!(want, Want::Keep(_)) && alive(device)).count();
    let mut wanted: Vec<&str> =
        view.wants.iter().filter(|(_, want)| matches!(want, Want::Run(_))).map(|(device, _)| device.as_str()).collect();
    // A busy device is being started or replaced: it has its place already.
    wanted.sort_by_key(|device| !(alive(device) || view.busy.contains(*device)));
    let places = view.max_recorders.unwrap_or(DEFAULT_MAX_RECORDERS).saturating_sub(kept).min(wanted.len());
    let rest = wanted.split_off(places);
    let mut admitted: BTreeSet<&str> = wanted.into_iter().collect();
    let mut surplus = BTreeSet::new();
    for device in rest.into_iter().filter(|device| alive(device)) {
        if view.max_recorders.is_some() {
            surplus.insert(device)
        } else {
            admitted.insert(device)
        };
    }
    (admitted, surplus)
}

fn run(view: &View<'_>, spec: &Spec, own: &[&Container], plan: &mut Plan, stops: &mut Vec<Action>) {
    let device = &spec.device;
    let is_wanted =
        |container: &Container| container.name == spec.name && container.labels.get(CONFIG_HASH).is_some_and(|hash| hash == spec.hash());
    let wanted = own.iter().filter(|container| is_wanted(container)).min_by_key(|container| container.state != State::Running);
    let reason = match wanted.map(|container| (container, container.state)) {
        Some((container, State::Running | State::Paused | State::Unknown)) => {
            plan.kept.insert(device.clone(), container.id.clone());
            let others: Vec<&Container> = own.iter().copied().filter(|other| other.id != container.id).collect();
            stops.extend(remove(device, &others, "another container records this microphone"));
            return;
        }
        Some((container, State::Stopping | State::Stopped)) if !view.stuck.contains(&container.id) => {
            plan.holds.insert(device.clone(), "its container is between two states".to_owned());
            return;
        }
        Some((container, State::Stopping | State::Stopped)) => {
            format!("container {} did not come out of state {:?}", container.name, container.state)
        }
        Some((container, State::Exited)) => format!("container ended with code {}", container.exit_code),
        Some((_, State::Created)) => "container was created but never started".to_owned(),
        Some((_, State::Removing)) => String::new(),
        None if own.is_empty() => "wanted and not there".to_owned(),
        None => "container is not what is wanted now".to_owned(),
    };
    if own.iter().any(|container| container.state == State::Removing) {
        plan.holds.insert(device.clone(), "its old container is being removed".to_owned());
        return;
    }
    if let Some((wait, failures)) = view.backoffs.wait(device, spec.hash(), view.now) {
        plan.holds.insert(device.clone(), format!("next try in {} s after {failures} failures", wait.as_secs() + 1));
        return;
    }
    let start = Some(Box::new(spec.clone()));
    plan.actions.push(Action { device: device.clone(), old: old(own), start, reason });
}

fn remove(device: &str, own: &[&Container], reason: &str) -> Option<Action> {
    let old = old(own);
    (!old.is_empty()).then(|| Action { device: device.to_owned(), old, start: None, reason: reason.to_owned() })
}

fn old(own: &[&Container]) -> Vec<Old> {
    own.iter()
        .filter(|container| container.state != State::Removing)
        .map(|container| Old { id: container.id.clone(), name: container.name.clone(), running: !is_over(container.state) })
        .collect()
}

fn is_over(state: State) -> bool {
    matches!(state, State::Created | State::Exited | State::Removing)
}

fn by_device(containers: &[Container]) -> BTreeMap<&str, Vec<&Container>> {
    let mut devices: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for container in containers {
        devices.entry(container.labels.get(DEVICE_ID).map_or("", String::as_str)).or_default().push(container);
    }
    devices
}

/// A wanted container that ended, for the log.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// Device whose Recorder it was.
    pub device: String,
    /// Container id.
    pub id: String,
    /// Its exit code.
    pub exit_code: i64,
    /// How long until the next start.
    pub wait: Duration,
}

/// Counts ends and runs of wanted containers in `backoffs`; returns the ends that are new.
pub fn count_ends(
    containers: &[Container],
    wants: &BTreeMap<String, Want>,
    seen: &mut BTreeSet<String>,
    backoffs: &mut Backoffs,
    now: Instant,
) -> Vec<End> {
    let mut ends = Vec::new();
    for container in containers {
        let device = container.labels.get(DEVICE_ID).map_or("", String::as_str);
        let Some(Want::Run(spec)) = wants.get(device) else { continue };
        match container.state {
            State::Running => backoffs.running(device, now),
            State::Exited
                if container.labels.get(CONFIG_HASH).is_some_and(|hash| hash == spec.hash()) && seen.insert(container.id.clone()) =>
            {
                let wait = backoffs.failed(device, spec.hash(), now);
                ends.push(End { device: device.to_owned(), id: container.id.clone(), exit_code: container.exit_code, wait });
            }
            _ => {}
        }
    }
    seen.retain(|id| containers.iter().any(|container| &container.id == id));
    ends
}
