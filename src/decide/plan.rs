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
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::clock;
use crate::decide::backoff::Backoffs;
use crate::decide::container::{Container, State};
use crate::decide::desired::Desired;
use crate::decide::registry::DEFAULT_MAX_RECORDERS;
use crate::decide::spec::{CONFIG_HASH, DEVICE_ID, Spec};

/// Everything that a plan depends on.
#[derive(Debug)]
pub struct View<'a> {
    /// All containers of ours, running or not.
    pub containers: &'a [Container],
    /// What should be, by device.
    pub wants: &'a BTreeMap<String, Desired>,
    /// Whether a device without a wish is known to be none, so that its container may go.
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
    pub reason: String,
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
    /// Wanted, but waiting: device and why.
    pub holds: BTreeMap<String, String>,
    /// Containers that run as wanted: device and container id.
    pub kept: BTreeMap<String, String>,
}

/// For rounding.
const HALF_A_SECOND: Duration = Duration::from_millis(500);

/// What failed removals are counted under, beside the hashes of failed starts.
pub const STOP: &str = "stop";

/// The reason for a replacement by which a container becomes what is wanted now.
pub const DRIFT: &str = "container is not what is wanted now";

/// How a hold begins that is due to failures.
pub const BACK_OFF: &str = "back-off until";

const CROWDED: &str = "max_recorders is reached";

impl View<'_> {
    /// Whether it makes sense to ask for a container's removal: not while that is under way.
    fn is_removable(&self, container: &Container) -> bool {
        container.state != State::Removing || self.stuck.contains(&container.id)
    }
}

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
    let (crowded, surplus) = crowd(view, &containers);
    let mut plan = Plan::default();
    let mut stops = Vec::new();
    for (device, want) in view.wants {
        let own = containers.get(device.as_str()).map_or(&[][..], Vec::as_slice);
        if view.busy.contains(device) {
            plan.holds.insert(device.clone(), "an action is under way".to_owned());
            continue;
        }
        match want {
            Desired::Keep(_) => {}
            Desired::Stop(why) => stops.extend(remove(view, device, own, why)),
            Desired::Run(_) if surplus.contains(device.as_str()) => stops.extend(remove(view, device, own, "beyond max_recorders")),
            Desired::Run(_) if crowded.contains(device.as_str()) => {
                plan.holds.insert(device.clone(), CROWDED.to_owned());
                // Ended containers of a waiting device serve nobody.
                stops.extend(remove(view, device, own, CROWDED));
            }
            Desired::Run(spec) => run(view, spec, own, &mut plan, &mut stops),
        }
    }
    for (device, own) in containers.iter().filter(|(device, _)| !view.wants.contains_key(**device)) {
        if view.desired_complete && !view.busy.contains(*device) {
            stops.extend(remove(view, device, own, "no such device in the database"));
        }
    }
    stops.retain(|action| view.backoffs.wait(&action.device, STOP, view.now).is_none());
    plan.actions.append(&mut stops);
    plan
}

/// Which devices that should run have no place, and which of those that run must not.
fn crowd<'a>(view: &'a View<'_>, containers: &BTreeMap<&str, Vec<&Container>>) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let alive = |device: &str| containers.get(device).is_some_and(|own| own.iter().any(|container| !container.state.is_over()));
    let has_container = |device: &str| containers.contains_key(device);
    let kept = view.wants.iter().filter(|(device, want)| matches!(want, Desired::Keep(_)) && has_container(device)).count();
    let mut wanted: Vec<&str> =
        view.wants.iter().filter(|(_, want)| matches!(want, Desired::Run(_))).map(|(device, _)| device.as_str()).collect();
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
    let is_wanted =
        |container: &Container| container.name == spec.name && container.labels.get(CONFIG_HASH).is_some_and(|hash| hash == spec.hash());
    let wanted = own.iter().filter(|container| is_wanted(container)).min_by_key(|container| container.state != State::Running);
    let reason = match wanted.map(|container| (container, container.state)) {
        Some((container, State::Running | State::Paused | State::Unknown)) => {
            plan.kept.insert(device.clone(), container.id.clone());
            let others: Vec<&Container> = own.iter().copied().filter(|other| other.id != container.id).collect();
            stops.extend(remove(view, device, &others, "another container records this microphone"));
            return;
        }
        Some((container, state @ (State::Stopping | State::Stopped | State::Removing))) => {
            if !view.stuck.contains(&container.id) {
                plan.holds.insert(device.clone(), format!("its container is {state:?}").to_lowercase());
                return;
            }
            format!("container {} did not come out of state {state:?}", container.name)
        }
        Some((container, State::Exited | State::Lost)) => format!("container {}", ending(container)),
        Some((_, State::Created)) => "container was created but never started".to_owned(),
        None if own.is_empty() => "wanted and not there".to_owned(),
        None => DRIFT.to_owned(),
    };
    if own.iter().any(|container| !view.is_removable(container)) {
        plan.holds.insert(device.clone(), "its old container is being removed".to_owned());
        return;
    }
    if let Some((wait, failures)) = view.backoffs.wait(device, spec.hash(), view.now) {
        let until = clock::iso_seconds(view.wall + wait + HALF_A_SECOND);
        plan.holds.insert(device.clone(), format!("{BACK_OFF} {until} after {failures} failures"));
        return;
    }
    let start = Some(Arc::clone(spec));
    plan.actions.push(Action { device: device.clone(), old: old(view, own), start, reason });
}

fn remove(view: &View<'_>, device: &str, own: &[&Container], reason: &str) -> Option<Action> {
    let old = old(view, own);
    (!old.is_empty()).then(|| Action { device: device.to_owned(), old, start: None, reason: reason.to_owned() })
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

/// How a container ended, in words.
fn ending(container: &Container) -> String {
    match container.state {
        State::Lost => "lost its process, unseen by Podman as conmon was killed".to_owned(),
        _ if container.out_of_memory => format!("ended with code {} (memory ran out)", container.exit_code),
        _ => exit_words(container.exit_code),
    }
}

/// How a run ended, in words.
#[must_use]
pub fn exit_words(code: i64) -> String {
    match code {
        137 => "ended with code 137 (SIGKILL, as when memory runs out)".to_owned(),
        129..=192 => format!("ended with code {code} (signal {})", code - 128),
        _ => format!("ended with code {code}"),
    }
}

/// Containers that began another run since the list before, and how the one before ended: Podman started them again.
/// While `exit` says nothing of a container, its word may still come, and the restart is told with a later list. `runs`
/// keeps the second in which each container's run began, and its process.
pub fn restarts<'a, H>(
    containers: &'a [Container],
    runs: &mut BTreeMap<String, (u64, u32)>,
    exit: impl Fn(&str) -> Option<H>,
) -> Vec<(&'a Container, H)> {
    let mut restarted = Vec::new();
    for container in containers.iter().filter(|container| container.state == State::Running && container.started > 0) {
        let run = (container.started, container.pid);
        match runs.get(&container.id) {
            Some(before) if *before == run => continue,
            Some(_) => match exit(&container.id) {
                Some(how) => restarted.push((container, how)),
                None => continue,
            },
            None => {}
        }
        runs.insert(container.id.clone(), run);
    }
    runs.retain(|id, _| containers.iter().any(|container| &container.id == id));
    restarted
}

/// A wanted container that ended, for the log.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// Device whose Recorder it was.
    pub device: String,
    /// Container id.
    pub id: String,
    /// How, in words.
    pub how: String,
    /// How long until the next start.
    pub wait: Duration,
}

/// Counts ends and runs of wanted containers in `backoffs`; returns the ends that are new.
pub fn count_ends(
    containers: &[Container],
    wants: &BTreeMap<String, Desired>,
    seen: &mut BTreeSet<String>,
    backoffs: &mut Backoffs,
    now: Instant,
) -> Vec<End> {
    let mut ends = Vec::new();
    for container in containers {
        let device = container.labels.get(DEVICE_ID).map_or("", String::as_str);
        let Some(Desired::Run(spec)) = wants.get(device) else { continue };
        match container.state {
            State::Running => backoffs.running(device, now),
            State::Exited | State::Lost
                if container.labels.get(CONFIG_HASH).is_some_and(|hash| hash == spec.hash()) && seen.insert(container.id.clone()) =>
            {
                let wait = backoffs.failed(device, spec.hash(), now);
                ends.push(End { device: device.to_owned(), id: container.id.clone(), how: ending(container), wait });
            }
            _ => {}
        }
    }
    seen.retain(|id| containers.iter().any(|container| &container.id == id));
    ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::spec::tests::spec;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// A station in words: `wants` are `a:run a:keep a:stop`, containers `a:running`, with `!` behind the state for
    /// another hash.
    #[derive(Debug)]
    struct Scene {
        wants: BTreeMap<String, Desired>,
        containers: Vec<Container>,
        complete: bool,
        max: Option<usize>,
        busy: BTreeSet<String>,
        stuck: BTreeSet<String>,
        backoffs: Backoffs,
        now: Instant,
    }

    fn scene(wants: &str, containers: &str) -> Scene {
        let pair = |text: &str| text.split_once(':').map(|(device, word)| (device.to_owned(), word.to_owned())).unwrap();
        let want = |text: &str| {
            let (device, word) = pair(text);
            let want = match word.as_str() {
                "run" => Desired::Run(Arc::new(spec(&device, 0))),
                "keep" => Desired::Keep("unknown".to_owned()),
                _ => Desired::Stop("not wanted".to_owned()),
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
            wants: wants.split_whitespace().map(want).collect(),
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
        fn plan(&self) -> Plan {
            plan(&View {
                containers: &self.containers,
                wants: &self.wants,
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
        fn told(&self) -> String {
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

    fn told(wants: &str, containers: &str) -> String {
        scene(wants, containers).told()
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
            assert_eq!(told("a:run", &container("")), same, "{state}");
            assert_eq!(told("a:run", &container("!")), other, "{state}!");
            assert_eq!(told("a:keep", &container("")), keep, "{state}, keep");
            assert_eq!(told("a:stop", &container("")), stop, "{state}, stop");
        }
    }

    #[test]
    fn starts_come_before_stops() {
        assert_eq!(told("a:stop b:run", "a:running"), "start b, stop a c0");
    }

    #[test]
    fn a_container_without_a_wish_goes_only_when_the_wishes_are_complete() {
        let mut scene = scene("", "a:running");
        assert_eq!(scene.told(), "stop a c0");
        scene.complete = false;
        assert_eq!(scene.told(), "");
    }

    #[test]
    fn one_container_a_device_is_kept_and_further_ones_go() {
        assert_eq!(told("a:run", "a:exited a:running a:running!"), "stop a c0 c2");
        assert_eq!(told("a:run", "a:running! a:exited"), "replace a c0 c1");
    }

    #[test]
    fn busy_devices_are_left_alone() {
        let mut scene = scene("a:run b:stop", "b:running c:running");
        scene.busy = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(scene.told(), "");
    }

    #[test]
    fn a_container_stuck_between_two_states_is_replaced() {
        let mut scene = scene("a:run b:run", "a:stopping b:stopped");
        scene.stuck = ["c0", "c1"].map(str::to_owned).into();
        assert_eq!(scene.told(), "replace a c0, replace b c1");
    }

    #[test]
    fn a_removal_that_does_not_end_is_asked_for_again() {
        let mut scene = scene("a:run b:stop", "a:removing b:removing");
        assert_eq!(scene.told(), "");
        scene.stuck = ["c0", "c1"].map(str::to_owned).into();
        assert_eq!(scene.told(), "replace a c0, stop b c1");
        assert!(scene.plan().actions.iter().all(|action| action.old[0].removal == Removal::Stop));
    }

    #[test]
    fn failed_starts_and_stops_wait_for_their_next_try() {
        let mut scene = scene("a:run b:stop", "a:exited b:running");
        for _ in 0..3 {
            scene.backoffs.failed("a", spec("a", 0).hash(), scene.now);
            scene.backoffs.failed("b", STOP, scene.now);
        }
        assert_eq!(scene.told(), "");
        assert_eq!(scene.plan().holds["a"], "back-off until 1970-01-01T00:00:02Z after 3 failures");
        scene.now += Duration::from_secs(2);
        assert_eq!(scene.told(), "replace a c0, stop b c1");
    }

    #[test]
    fn at_most_max_recorders_run_and_those_that_run_keep_their_place() {
        let mut scene = scene("a:run b:run c:run", "c:running");
        scene.max = Some(2);
        assert_eq!(scene.told(), "start a");
        assert_eq!(scene.plan().crowded().collect::<Vec<_>>(), ["b"]);
        scene.max = Some(0);
        assert_eq!(scene.told(), "stop c c0");
        scene.max = None;
        assert_eq!(scene.told(), "start a, start b");
    }

    #[test]
    fn removing_a_dead_container_costs_nobody_a_place() {
        let mut scene = scene("a:run b:run", "a:exited b:running");
        scene.max = Some(1);
        scene.busy.insert("a".to_owned());
        assert_eq!(scene.told(), "");
    }

    #[test]
    fn a_recorder_that_failed_keeps_its_place() {
        let mut scene = scene("a:run z:run", "z:exited");
        scene.max = Some(1);
        assert_eq!(scene.told(), "replace z c0");
    }

    #[test]
    fn who_is_kept_without_knowing_takes_a_place_too() {
        let mut scene = scene("a:keep b:run", "a:running");
        scene.max = Some(1);
        assert_eq!(scene.told(), "");
    }

    #[test]
    fn an_unknown_limit_stops_nobody() {
        let mut scene = scene("a:run b:run c:run d:run e:run f:run", "a:running b:running c:running d:running e:running f:running");
        scene.max = None;
        assert_eq!(scene.told(), "");
    }

    #[test]
    fn an_end_is_counted_once() {
        let mut scene = scene("a:run", "a:exited");
        let mut seen = BTreeSet::new();
        let mut ends = |scene: &mut Scene| count_ends(&scene.containers, &scene.wants, &mut seen, &mut scene.backoffs, scene.now).len();
        assert_eq!(ends(&mut scene), 1);
        assert_eq!(ends(&mut scene), 0);
        scene.containers[0].id = "another".to_owned();
        assert_eq!(ends(&mut scene), 1);
        assert_eq!(scene.told(), "");
    }

    #[test]
    fn another_run_of_the_same_container_is_told_once() {
        let mut scene = scene("a:run b:run", "a:running b:created");
        let mut runs = BTreeMap::new();
        let exit = std::cell::Cell::new(Some(7));
        let mut told = |scene: &mut Scene, started: [u64; 2]| {
            scene.containers.iter_mut().zip(started).for_each(|(container, started)| container.started = started);
            let ended = restarts(&scene.containers, &mut runs, |_| exit.get());
            ended.iter().map(|(container, how)| format!("{} {how}", device_of(container))).collect::<String>()
        };
        assert_eq!(told(&mut scene, [1, 0]), "");
        assert_eq!(told(&mut scene, [1, 0]), "");
        assert_eq!(told(&mut scene, [2, 0]), "a 7");
        assert_eq!(told(&mut scene, [2, 0]), "");
        scene.containers[0].pid = 7;
        assert_eq!(told(&mut scene, [2, 0]), "a 7");
        scene.containers[1].state = State::Running;
        assert_eq!(told(&mut scene, [2, 3]), "");
        // Between two runs it is not running, which says nothing yet.
        scene.containers[1].state = State::Stopped;
        assert_eq!(told(&mut scene, [2, 3]), "");
        scene.containers[1].state = State::Running;
        exit.set(None);
        assert_eq!(told(&mut scene, [2, 4]), "");
        exit.set(Some(8));
        assert_eq!(told(&mut scene, [2, 4]), "b 8");
        scene.containers[0].id = "another".to_owned();
        assert_eq!(told(&mut scene, [5, 4]), "");
    }

    /// Any mix of wishes, containers and things unknown.
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
                match scene.wants.get(device) {
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
            prop_assert_eq!(scene.told(), "");
        }

        #[test]
        fn the_limit_is_kept_and_nobody_gives_way_to_a_newcomer(mut scene in any_scene()) {
            scene.busy.clear();
            let plan = scene.plan();
            let was_alive: BTreeSet<String> = scene.alive().into_iter().map(str::to_owned).collect();
            let newcomers = plan.actions.iter().filter(|action| action.start.is_some() && !was_alive.contains(&action.device)).count();
            let evicted = plan.actions.iter().filter(|action| action.reason == "beyond max_recorders").count();
            prop_assert!(newcomers == 0 || evicted == 0, "{newcomers} newcomers, {evicted} evicted");
            scene.apply(&plan);
            let wanted = |device: &&str| matches!(scene.wants.get(*device), Some(Desired::Run(_)));
            let running = scene.alive().into_iter().filter(wanted).count();
            let kept = scene.wants.values().filter(|want| matches!(want, Desired::Keep(_))).count();
            let limit = scene.max.unwrap_or(DEFAULT_MAX_RECORDERS.max(was_alive.len()));
            prop_assert!(running <= limit, "{running} run, {limit} may, {kept} are kept");
        }
    }
}
