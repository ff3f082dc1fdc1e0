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
//! | created, exited, lost | replace        | replace         | –     | stop   |
//! | stopping … for long   | replace        | replace         | –     | stop   |
//! | removing              | wait           | wait            | –     | wait   |
//!
//! A place is taken first by who runs, then by who has a container or an action under way, so that a Recorder that
//! failed a moment ago does not lose its place to a newcomer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::clock;
use crate::decide::backoff::{Attempt, Backoffs};
use crate::decide::container::{Container, State};
use crate::decide::desired::{Desired, StopReason};
use crate::decide::registry::DEFAULT_MAX_RECORDERS;
use crate::decide::spec::{CONFIG_HASH, DEVICE_ID, Spec};

/// Everything that a plan depends on.
#[derive(Debug)]
pub struct View<'a> {
    /// All containers of ours, running or not.
    pub containers: &'a [Container],
    /// The desired state of each device.
    pub desired: &'a BTreeMap<String, Desired>,
    /// Whether a device without a desired state is known to be none, so that its container may go.
    pub desired_complete: bool,
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
    /// The same by the wall clock, for words only.
    pub wall: SystemTime,
}

/// A container that an action removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldContainer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it takes.
    pub removal: Removal,
}

/// What it takes to remove a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It has ended.
    Plain,
    /// It must be asked to end first.
    Stop,
    /// Force, as nobody is there to be asked.
    Force,
}

/// One thing to do for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Stable id of the microphone; empty if a container does not say.
    pub device: String,
    /// Containers to stop and remove first.
    pub old: Vec<OldContainer>,
    /// Container to create and start then.
    pub start: Option<Arc<Spec>>,
    /// Why.
    pub cause: Cause,
}

/// Why something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A Recorder should run, and there is no container.
    NotThere,
    /// The container is another one than is desired now.
    Drift,
    /// The container ended.
    Ended(Ending),
    /// The container was created and never started.
    NeverStarted,
    /// The container stays in a state that should pass.
    Stuck {
        /// Its name.
        name: String,
        /// That state.
        state: State,
    },
    /// Another container of the device runs as desired.
    Twin,
    /// More Recorders run than are allowed.
    Surplus,
    /// The Recorder waits for a place, and its ended container serves nobody.
    Crowded,
    /// No Recorder should run.
    Stop(StopReason),
    /// The database has no such device.
    NoRow,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("wanted and not there"),
            Self::Drift => f.write_str("container is not what is wanted now"),
            Self::Ended(ending) => write!(f, "container {ending}"),
            Self::NeverStarted => f.write_str("container was created but never started"),
            Self::Stuck { name, state } => write!(f, "container {name} did not come out of state {state:?}"),
            Self::Twin => f.write_str("another container records this microphone"),
            Self::Surplus => f.write_str("beyond max_recorders"),
            Self::Crowded => f.write_str("max_recorders is reached"),
            Self::Stop(reason) => write!(f, "{reason}"),
            Self::NoRow => f.write_str("no such device in the database"),
        }
    }
}

/// How a container or one of its runs ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Exit(i64),
    /// With this exit code, as memory ran out.
    OutOfMemory(i64),
    /// Its process is gone, and Podman does not know.
    Lost,
    /// Nobody reports how.
    Unknown,
}

impl Ending {
    /// How an ended container ended.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        match container.state {
            State::Lost => Self::Lost,
            _ if container.out_of_memory => Self::OutOfMemory(container.exit_code),
            _ => Self::Exit(container.exit_code),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exit(137) => f.write_str("ended with code 137 (SIGKILL, as when memory runs out)"),
            Self::Exit(code @ 129..=192) => write!(f, "ended with code {code} (signal {})", code - 128),
            Self::Exit(code) => write!(f, "ended with code {code}"),
            Self::OutOfMemory(code) => write!(f, "ended with code {code} (memory ran out)"),
            Self::Lost => f.write_str("lost its process, unseen by Podman as conmon was killed"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// What a desired Recorder waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// An action of ours is under way.
    Busy,
    /// As many Recorders run as are allowed.
    Crowded,
    /// Its container is in a state that passes.
    InBetween(State),
    /// Its old container is being removed.
    Removing,
    /// The next try after failures.
    BackOff {
        /// When it comes, by the wall clock.
        until: SystemTime,
        /// How many tries failed.
        failures: u32,
    },
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("an action is under way"),
            Self::Crowded => write!(f, "{}", Cause::Crowded),
            Self::InBetween(state) => write!(f, "its container is {state}"),
            Self::Removing => f.write_str("its old container is being removed"),
            Self::BackOff { until, failures } => write!(f, "back-off until {} after {failures} failures", clock::iso_seconds(*until)),
        }
    }
}

/// Why an action failed: one line that names the container, what went wrong and, where it is known, the cure.
#[derive(Debug)]
pub enum Failure {
    /// Something that a start needs is not there: an image, a network, a folder, a free name, space.
    Lacking(String),
    /// Anything else.
    Other(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

/// Actions, and why wanted Recorders are not started.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do now, starts first.
    pub actions: Vec<Action>,
    /// Desired, but waiting: device and for what.
    pub holds: BTreeMap<String, Hold>,
    /// Containers that run as wanted: device and container id.
    pub kept: BTreeMap<String, String>,
}

/// For rounding.
const HALF_A_SECOND: Duration = Duration::from_millis(500);

impl View<'_> {
    /// Whether it makes sense to ask for a container's removal: not while that is under way.
    fn is_removable(&self, container: &Container) -> bool {
        container.state != State::Removing || self.stuck.contains(&container.id)
    }
}

impl Plan {
    /// Devices that should record but have no place.
    pub fn crowded(&self) -> impl Iterator<Item = &str> {
        self.holds.iter().filter(|(_, hold)| **hold == Hold::Crowded).map(|(device, _)| device.as_str())
    }
}

/// Decides; see the table above.
#[must_use]
pub fn plan(view: &View<'_>) -> Plan {
    let containers = by_device(view.containers);
    let (crowded, surplus) = crowd(view, &containers);
    let mut plan = Plan::default();
    let mut stops = Vec::new();
    for (device, desired) in view.desired {
        let own = containers.get(device.as_str()).map_or(&[][..], Vec::as_slice);
        if view.busy.contains(device) {
            plan.holds.insert(device.clone(), Hold::Busy);
            continue;
        }
        match desired {
            Desired::Keep(_) => {}
            Desired::Stop(reason) => stops.extend(remove(view, device, own, Cause::Stop(*reason))),
            Desired::Run(_) if surplus.contains(device.as_str()) => stops.extend(remove(view, device, own, Cause::Surplus)),
            Desired::Run(_) if crowded.contains(device.as_str()) => {
                plan.holds.insert(device.clone(), Hold::Crowded);
                stops.extend(remove(view, device, own, Cause::Crowded));
            }
            Desired::Run(spec) => run(view, spec, own, &mut plan, &mut stops),
        }
    }
    for (device, own) in containers.iter().filter(|(device, _)| !view.desired.contains_key(**device)) {
        if view.desired_complete && !view.busy.contains(*device) {
            stops.extend(remove(view, device, own, Cause::NoRow));
        }
    }
    stops.retain(|action| view.backoffs.wait(&action.device, Attempt::Stop, view.now).is_none());
    plan.actions.append(&mut stops);
    plan
}

/// Which devices that should run have no place, and which of those that run must not.
fn crowd<'a>(view: &'a View<'_>, containers: &BTreeMap<&str, Vec<&Container>>) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let alive = |device: &str| containers.get(device).is_some_and(|own| own.iter().any(|container| !container.state.is_over()));
    let has_container = |device: &str| containers.contains_key(device);
    let kept = view.desired.iter().filter(|(device, want)| matches!(want, Desired::Keep(_)) && has_container(device)).count();
    let mut wanted: Vec<&str> =
        view.desired.iter().filter(|(_, desired)| matches!(desired, Desired::Run(_))).map(|(device, _)| device.as_str()).collect();
    let places = view.max_recorders.unwrap_or(DEFAULT_MAX_RECORDERS).saturating_sub(kept);
    if wanted.len() <= places {
        return (BTreeSet::new(), BTreeSet::new());
    }
    wanted.sort_by_cached_key(|device| match () {
        () if alive(device) => 0,
        () if has_container(device) || view.busy.contains(*device) => 1,
        () => 2,
    });
    let (surplus, crowded): (BTreeSet<&str>, BTreeSet<&str>) = wanted[places..].iter().partition(|device| alive(device));
    // An unknown limit admits nobody new, but stops nobody either.
    (crowded, if view.max_recorders.is_some() { surplus } else { BTreeSet::new() })
}

fn run(view: &View<'_>, spec: &Arc<Spec>, own: &[&Container], plan: &mut Plan, stops: &mut Vec<Action>) {
    let device = &spec.device;
    let is_desired =
        |container: &Container| container.name == spec.name && container.labels.get(CONFIG_HASH).is_some_and(|hash| hash == spec.hash());
    let found = own.iter().filter(|container| is_desired(container)).min_by_key(|container| container.state != State::Running);
    let cause = match found.map(|container| (container, container.state)) {
        Some((container, State::Running | State::Paused | State::Unknown)) => {
            plan.kept.insert(device.clone(), container.id.clone());
            let others: Vec<&Container> = own.iter().copied().filter(|other| other.id != container.id).collect();
            stops.extend(remove(view, device, &others, Cause::Twin));
            return;
        }
        Some((container, state @ (State::Stopping | State::Stopped | State::Removing))) => {
            if !view.stuck.contains(&container.id) {
                plan.holds.insert(device.clone(), Hold::InBetween(state));
                return;
            }
            Cause::Stuck { name: container.name.clone(), state }
        }
        Some((container, State::Exited | State::Lost)) => Cause::Ended(Ending::of(container)),
        Some((_, State::Created)) => Cause::NeverStarted,
        None if own.is_empty() => Cause::NotThere,
        None => Cause::Drift,
    };
    if own.iter().any(|container| !view.is_removable(container)) {
        plan.holds.insert(device.clone(), Hold::Removing);
        return;
    }
    if let Some((wait, failures)) = view.backoffs.wait(device, Attempt::Start(spec.hash()), view.now) {
        plan.holds.insert(device.clone(), Hold::BackOff { until: view.wall + wait + HALF_A_SECOND, failures });
        return;
    }
    let start = Some(Arc::clone(spec));
    plan.actions.push(Action { device: device.clone(), old: old(view, own), start, cause });
}

fn remove(view: &View<'_>, device: &str, own: &[&Container], cause: Cause) -> Option<Action> {
    let old = old(view, own);
    (!old.is_empty()).then(|| Action { device: device.to_owned(), old, start: None, cause })
}

fn old(view: &View<'_>, own: &[&Container]) -> Vec<OldContainer> {
    own.iter()
        .filter(|container| view.is_removable(container))
        .map(|container| {
            let removal = match container.state {
                State::Lost => Removal::Force,
                State::Created | State::Exited => Removal::Plain,
                _ => Removal::Stop,
            };
            OldContainer { id: container.id.clone(), name: container.name.clone(), removal }
        })
        .collect()
}

fn by_device(containers: &[Container]) -> BTreeMap<&str, Vec<&Container>> {
    let mut devices: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for container in containers {
        devices.entry(container.labels.get(DEVICE_ID).map_or("", String::as_str)).or_default().push(container);
    }
    devices
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::decide::desired::KeepReason;
    use crate::decide::spec::tests::spec;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// A station as text: `desired` is `a:run a:keep a:stop`, containers `a:running`, with `!` behind the state for
    /// another hash.
    #[derive(Debug)]
    pub(crate) struct Scene {
        pub(crate) desired: BTreeMap<String, Desired>,
        pub(crate) containers: Vec<Container>,
        complete: bool,
        max: Option<usize>,
        busy: BTreeSet<String>,
        stuck: BTreeSet<String>,
        pub(crate) backoffs: Backoffs,
        pub(crate) now: Instant,
    }

    pub(crate) fn scene(desired: &str, containers: &str) -> Scene {
        let pair = |text: &str| text.split_once(':').map(|(device, word)| (device.to_owned(), word.to_owned())).unwrap();
        let want = |text: &str| {
            let (device, word) = pair(text);
            let want = match word.as_str() {
                "run" => Desired::Run(Arc::new(spec(&device, 0))),
                "keep" => Desired::Keep(KeepReason::NotSeen),
                _ => Desired::Stop(StopReason::Disabled),
            };
            (device, want)
        };
        let container = |(number, text): (usize, &str)| {
            let (device, word) = pair(text);
            let state = serde_json::from_str(&format!("\"{}\"", word.trim_end_matches('!'))).unwrap();
            let own = spec(&device, u32::from(word.ends_with('!')));
            Container {
                id: format!("c{number}"),
                name: own.name.clone(),
                state,
                labels: own.labels(),
                exit_code: 1,
                out_of_memory: false,
                pid: 0,
                started: 0,
            }
        };
        Scene {
            desired: desired.split_whitespace().map(want).collect(),
            containers: containers.split_whitespace().enumerate().map(container).collect(),
            complete: true,
            max: Some(5),
            busy: BTreeSet::new(),
            stuck: BTreeSet::new(),
            backoffs: Backoffs::default(),
            now: Instant::now(),
        }
    }

    impl Scene {
        pub(crate) fn plan(&self) -> Plan {
            plan(&View {
                containers: &self.containers,
                desired: &self.desired,
                desired_complete: self.complete,
                max_recorders: self.max,
                backoffs: &self.backoffs,
                busy: &self.busy,
                stuck: &self.stuck,
                now: self.now,
                wall: SystemTime::UNIX_EPOCH,
            })
        }

        /// `start a`, `replace a c0`, `stop b c1 c2`
        pub(crate) fn actions(&self) -> String {
            let tell = |action: &Action| {
                let old: String = action.old.iter().map(|old| format!(" {}", old.id)).collect();
                let verb = match (&action.start, old.is_empty()) {
                    (Some(_), true) => "start",
                    (Some(_), false) => "replace",
                    (None, _) => "stop",
                };
                format!("{verb} {}{old}", action.device)
            };
            self.plan().actions.iter().map(tell).collect::<Vec<_>>().join(", ")
        }
    }

    fn actions(desired: &str, containers: &str) -> String {
        scene(desired, containers).actions()
    }

    #[test]
    fn the_table_in_the_header_holds() {
        let rows = [
            ("", "start a", "start a", "", ""),
            ("running", "", "replace a c0", "", "stop a c0"),
            ("paused", "", "replace a c0", "", "stop a c0"),
            ("stopping", "", "replace a c0", "", "stop a c0"),
            ("stopped", "", "replace a c0", "", "stop a c0"),
            ("created", "replace a c0", "replace a c0", "", "stop a c0"),
            ("exited", "replace a c0", "replace a c0", "", "stop a c0"),
            ("removing", "", "", "", ""),
        ];
        for (state, same, other, keep, stop) in rows {
            let container = |mark: &str| if state.is_empty() { String::new() } else { format!("a:{state}{mark}") };
            assert_eq!(actions("a:run", &container("")), same, "{state}");
            assert_eq!(actions("a:run", &container("!")), other, "{state}!");
            assert_eq!(actions("a:keep", &container("")), keep, "{state}, keep");
            assert_eq!(actions("a:stop", &container("")), stop, "{state}, stop");
        }
    }

    #[test]
    fn starts_come_before_stops() {
        assert_eq!(actions("a:stop b:run", "a:running"), "start b, stop a c0");
    }

    #[test]
    fn a_container_without_a_desired_state_goes_only_when_all_are_known() {
        let mut scene = scene("", "a:running");
        assert_eq!(scene.actions(), "stop a c0");
        scene.complete = false;
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn one_container_a_device_is_kept_and_further_ones_go() {
        assert_eq!(actions("a:run", "a:exited a:running a:running!"), "stop a c0 c2");
        assert_eq!(actions("a:run", "a:running! a:exited"), "replace a c0 c1");
    }

    #[test]
    fn busy_devices_are_left_alone() {
        let mut scene = scene("a:run b:stop", "b:running c:running");
        scene.busy = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn a_container_stuck_between_two_states_is_replaced() {
        let mut scene = scene("a:run b:run", "a:stopping b:stopped");
        scene.stuck = ["c0", "c1"].map(str::to_owned).into();
        assert_eq!(scene.actions(), "replace a c0, replace b c1");
    }

    #[test]
    fn a_removal_that_does_not_end_is_asked_for_again() {
        let mut scene = scene("a:run b:stop", "a:removing b:removing");
        assert_eq!(scene.actions(), "");
        scene.stuck = ["c0", "c1"].map(str::to_owned).into();
        assert_eq!(scene.actions(), "replace a c0, stop b c1");
        assert!(scene.plan().actions.iter().all(|action| action.old[0].removal == Removal::Stop));
    }

    #[test]
    fn failed_starts_and_stops_wait_for_their_next_try() {
        let mut scene = scene("a:run b:stop", "a:exited b:running");
        for _ in 0..3 {
            scene.backoffs.failed("a", Attempt::Start(spec("a", 0).hash()), scene.now);
            scene.backoffs.failed("b", Attempt::Stop, scene.now);
        }
        assert_eq!(scene.actions(), "");
        assert_eq!(scene.plan().holds["a"].to_string(), "back-off until 1970-01-01T00:00:02Z after 3 failures");
        scene.now += Duration::from_secs(2);
        assert_eq!(scene.actions(), "replace a c0, stop b c1");
    }

    #[test]
    fn at_most_max_recorders_run_and_those_that_run_keep_their_place() {
        let mut scene = scene("a:run b:run c:run", "c:running");
        scene.max = Some(2);
        assert_eq!(scene.actions(), "start a");
        assert_eq!(scene.plan().crowded().collect::<Vec<_>>(), ["b"]);
        scene.max = Some(0);
        assert_eq!(scene.actions(), "stop c c0");
        scene.max = None;
        assert_eq!(scene.actions(), "start a, start b");
    }

    #[test]
    fn removing_a_dead_container_costs_nobody_a_place() {
        let mut scene = scene("a:run b:run", "a:exited b:running");
        scene.max = Some(1);
        scene.busy.insert("a".to_owned());
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn a_recorder_that_failed_keeps_its_place() {
        let mut scene = scene("a:run z:run", "z:exited");
        scene.max = Some(1);
        assert_eq!(scene.actions(), "replace z c0");
    }

    #[test]
    fn who_is_kept_without_knowing_takes_a_place_too() {
        let mut scene = scene("a:keep b:run", "a:running");
        scene.max = Some(1);
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn an_unknown_limit_stops_nobody() {
        let mut scene = scene("a:run b:run c:run d:run e:run f:run", "a:running b:running c:running d:running e:running f:running");
        scene.max = None;
        assert_eq!(scene.actions(), "");
    }

    /// Any mix of desired states, containers and things unknown.
    fn any_scene() -> impl Strategy<Value = Scene> {
        let device = |n: usize| ["a", "b", "c", "d", "e", "f", "g"][n].to_owned();
        let wants = vec((0..6usize, select(&["run", "run", "keep", "stop"][..])), 0..8);
        let states = &["created", "running", "running", "stopping", "stopped", "exited", "paused", "removing", "odd"];
        let state = select(&states[..]);
        let containers = vec((0..7usize, state, any::<bool>(), any::<bool>()), 0..10);
        let max = proptest::option::of(0..6usize);
        (wants, containers, any::<bool>(), max, vec(0..7usize, 0..3)).prop_map(move |(wants, containers, complete, max, busy)| {
            let wants: Vec<String> = wants.iter().map(|(n, want)| format!("{}:{want}", device(*n))).collect();
            let mark = |same: bool| if same { "" } else { "!" };
            let told: Vec<String> = containers.iter().map(|(n, state, same, _)| format!("{}:{state}{}", device(*n), mark(*same))).collect();
            let mut scene = scene(&wants.join(" "), &told.join(" "));
            scene.stuck = containers.iter().enumerate().filter(|(_, container)| container.3).map(|(n, _)| format!("c{n}")).collect();
            (scene.complete, scene.max, scene.busy) = (complete, max, busy.into_iter().map(device).collect());
            scene
        })
    }

    fn device_of(container: &Container) -> &str {
        &container.labels[DEVICE_ID]
    }

    impl Scene {
        /// What Podman makes of a plan that is carried out to its end.
        fn apply(&mut self, plan: &Plan) {
            for action in &plan.actions {
                self.containers.retain(|container| action.old.iter().all(|old| old.id != container.id));
                if let Some(spec) = &action.start {
                    let id = format!("new {}", action.device);
                    let (name, labels) = (spec.name.clone(), spec.labels());
                    self.containers.push(Container {
                        id,
                        name,
                        state: State::Running,
                        labels,
                        exit_code: 0,
                        out_of_memory: false,
                        pid: 0,
                        started: 0,
                    });
                }
            }
            self.stuck.retain(|id| self.containers.iter().any(|container| &container.id == id));
        }

        fn alive(&self) -> BTreeSet<&str> {
            self.containers.iter().filter(|container| !container.state.is_over()).map(device_of).collect()
        }
    }

    proptest! {
        #[test]
        fn nothing_that_cannot_be_told_is_touched(scene in any_scene()) {
            for action in &scene.plan().actions {
                let device = action.device.as_str();
                prop_assert!(!scene.busy.contains(device));
                match scene.desired.get(device) {
                    None => prop_assert!(scene.complete && action.start.is_none()),
                    Some(Desired::Keep(why)) => prop_assert!(false, "{why}"),
                    Some(Desired::Stop(_)) => prop_assert!(action.start.is_none()),
                    // What runs as wanted gives way to a limit only, and to that only if it is known.
                    Some(Desired::Run(spec)) => for old in &action.old {
                        let container = scene.containers.iter().find(|container| container.id == old.id).unwrap();
                        prop_assert_eq!(device_of(container), device);
                        let sound = container.state == State::Running && container.labels[CONFIG_HASH] == spec.hash();
                        let twin = |other: &Container| device_of(other) == device && other.id != old.id;
                        prop_assert!(!sound || scene.max.is_some() || scene.containers.iter().any(twin));
                    },
                }
            }
        }

        #[test]
        fn starts_come_first_and_a_device_has_one_action(scene in any_scene()) {
            let plan = scene.plan();
            let stops = plan.actions.iter().skip_while(|action| action.start.is_some());
            prop_assert!(stops.into_iter().all(|action| action.start.is_none()));
            let devices: BTreeSet<&str> = plan.actions.iter().map(|action| action.device.as_str()).collect();
            prop_assert_eq!(devices.len(), plan.actions.len());
        }

        #[test]
        fn a_plan_that_is_carried_out_leaves_nothing_to_do(mut scene in any_scene()) {
            let plan = scene.plan();
            scene.apply(&plan);
            prop_assert_eq!(scene.actions(), "");
        }

        #[test]
        fn the_limit_is_kept_and_nobody_gives_way_to_a_newcomer(mut scene in any_scene()) {
            scene.busy.clear();
            let plan = scene.plan();
            let was_alive: BTreeSet<String> = scene.alive().into_iter().map(str::to_owned).collect();
            let newcomers = plan.actions.iter().filter(|action| action.start.is_some() && !was_alive.contains(&action.device)).count();
            let evicted = plan.actions.iter().filter(|action| action.cause == Cause::Surplus).count();
            prop_assert!(newcomers == 0 || evicted == 0, "{newcomers} newcomers, {evicted} evicted");
            scene.apply(&plan);
            let wanted = |device: &&str| matches!(scene.desired.get(*device), Some(Desired::Run(_)));
            let running = scene.alive().into_iter().filter(wanted).count();
            let kept = scene.desired.values().filter(|want| matches!(want, Desired::Keep(_))).count();
            let limit = scene.max.unwrap_or(DEFAULT_MAX_RECORDERS.max(was_alive.len()));
            prop_assert!(running <= limit, "{running} run, {limit} may, {kept} are kept");
        }
    }
}
