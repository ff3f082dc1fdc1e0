//! Plans the actions that bring the containers to the desired state.
//!
//! [`plan`] compares the desired state with the containers that carry our owner label. It returns at most one action
//! for each device, with its cause: first starts, then replacements, then stops. An empty plan means that nothing is
//! left to do. What is unknown never stops a Recorder: without a list of containers there is no plan, and a device
//! whose state is unknown is `Keep`.
//!
//! | container             | run, as desired | run, differs | keep  | stop   |
//! | --------------------- | --------------- | ------------ | ----- | ------ |
//! | none                  | start           | start        | –     | –      |
//! | running               | –               | replace      | –     | stop   |
//! | paused                | –               | –            | –     | stop   |
//! | stopping, stopped     | wait            | replace      | –     | stop   |
//! | created               | start           | restart      | –     | stop   |
//! | exited, lost          | restart         | restart      | –     | stop   |
//! | stopping for too long | restart         | replace      | –     | stop   |
//! | removing              | wait            | wait         | –     | wait   |
//!
//! A container is as desired if it carries the hash of the spec, or if a comparison found no
//! [difference](crate::decide::difference) that matters. A running one with another hash is compared first, and runs on
//! until the result is known.
//!
//! A replacement keeps the old container as `…-old` until the new one has run for ten seconds. If the new one ends
//! before, the old one is started again, and the spec is not tried again until it changes. Only one Recorder is
//! replaced at a time, so that an edit that affects many never interrupts two Recorders at the same time. One whose
//! capture stands still is the first: it has nothing to lose. It does not wait at all if a replacement is to help it.
//!
//! A Recorder that could not open its card, because the card does not offer what the profile asks for, replaces none
//! that runs.
//!
//! If more Recorders are desired than `max_recorders`, running ones have priority, then those that end, then those with
//! a container or an action under way. So a Recorder that has just failed is not displaced by a new one, and a Recorder
//! that runs is stopped only if more run than are allowed. One that is kept prevents a start, but stops no other one.

use crate::collect::sort_by_key;
use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::decide::action::{Action, Cause, Ending, Hold, OldContainer, Task};
use crate::decide::backoff::Attempt;
use crate::decide::container::{Container, State};
use crate::decide::desired::{Desired, KeepReason};
use crate::decide::past::{Past, has_hash_of};
use crate::decide::registry::DEFAULT_MAX_RECORDERS;
use crate::decide::spec::{DEVICE_ID, Kind, Tier2ServiceSpec};

/// The input of a plan.
#[derive(Debug)]
pub struct View<'a> {
    /// All our containers, running or not.
    pub containers: &'a [Container],
    /// The desired state of each device.
    pub desired: &'a SortedMap<String, Desired>,
    /// Whether a device without a desired state is known not to exist, so that its container may be removed.
    pub desired_complete: bool,
    /// Maximum number of Recorders; `None` = unknown, which stops none.
    pub max_recorders: Option<usize>,
    /// Earlier events.
    pub past: &'a Past,
    /// Devices with an action under way, or with one that ended after the list was requested.
    pub busy: &'a SortedSet<String>,
    /// Whether a replacement is among those actions.
    pub replacing: bool,
    /// Ids of containers that have been in a transitional state for too long.
    pub stuck: &'a SortedSet<String>,
    /// Current time.
    pub now: Instant,
    /// Current time by the wall clock, for texts only.
    pub wall: SystemTime,
}

/// Actions, and why desired Recorders are not started or replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do now, in this order.
    pub actions: Vec<Action>,
    /// What desired Recorders wait for, by device.
    pub holds: SortedMap<String, Hold>,
    /// Ids of containers that record or are paused, by device.
    pub kept: SortedMap<String, String>,
    /// Devices with a running container that is as desired.
    pub matching: SortedSet<String>,
    /// Containers to compare with the desired spec, by id.
    pub compare: SortedMap<String, Arc<Tier2ServiceSpec>>,
}

/// For rounding to seconds.
const HALF_A_SECOND: Duration = Duration::from_millis(500);

impl View<'_> {
    /// Whether a removal may begin: not while Podman already removes the container.
    fn is_removable(&self, container: &Container) -> bool {
        container.state != State::Removing || self.stuck.contains(&container.id)
    }

    fn wall_time(&self, wait: Duration) -> SystemTime {
        self.wall + wait + HALF_A_SECOND
    }

    /// Containers that can be removed now.
    fn removable(&self, containers: &[&Container]) -> Vec<OldContainer> {
        containers.iter().filter(|container| self.is_removable(container)).map(|container| OldContainer::from(*container)).collect()
    }

    /// Whether the successor of some Recorder is not proven yet.
    fn is_proving(&self, containers: &SortedMap<&str, Vec<&Container>>) -> bool {
        let proves = |own: &Vec<&Container>| {
            let has_old = own.iter().any(|container| is_old(container) && container.state.is_over());
            has_old && own.iter().any(|container| container.state == State::Running && !self.past.is_proven(container, self.now))
        };
        containers.values().any(proves)
    }
}

impl Plan {
    /// Whether the next plan for these containers is the same while nothing happens: there is nothing to do, and nothing
    /// waits but for the end of another Recorder or, if it is for `kind`, for its next attempt.
    #[must_use]
    pub fn is_at_rest(&self, containers: &[Container], kind: Kind) -> bool {
        let is_at_rest = |hold: &Hold| match hold {
            Hold::LimitReached => true,
            // A worker may begin some seconds late.
            Hold::BackOff { .. } => kind == Kind::Worker,
            _ => false,
        };
        self.actions.is_empty() && self.compare.is_empty() && self.kept.len() == containers.len() && self.holds.values().all(is_at_rest)
    }

    /// Devices that do not record because the limit is reached.
    pub fn over_limit(&self) -> impl Iterator<Item = &str> {
        self.holds.iter().filter(|(_, hold)| **hold == Hold::LimitReached).map(|(device, _)| device.as_str())
    }
}

/// Makes a plan; see the table above.
#[must_use]
pub fn plan(view: &View<'_>) -> Plan {
    let containers = by_device(view.containers);
    let (over_limit, surplus) = apply_limit(view, &containers);
    let mut planner = Planner { view, plan: Plan::default(), turn_is_taken: view.replacing || view.is_proving(&containers) };
    let (standing, others): (Vec<_>, Vec<_>) = view.desired.iter().partition(|(device, _)| view.past.standing.contains(*device));
    for (device, desired) in standing.into_iter().chain(others) {
        let own = containers.get(device.as_str()).map_or(&[][..], Vec::as_slice);
        if view.busy.contains(device) {
            if matches!(desired, Desired::Run(_)) {
                planner.plan.holds.insert(device.clone(), Hold::Busy);
            }
            continue;
        }
        match desired {
            Desired::Keep(_) => {}
            Desired::Stop(reason) => planner.remove(device, own, Cause::Stop(*reason)),
            Desired::Run(_) if surplus.contains(device.as_str()) => planner.remove(device, own, Cause::Surplus),
            Desired::Run(_) if over_limit.contains(device.as_str()) => {
                planner.plan.holds.insert(device.clone(), Hold::LimitReached);
                planner.remove(device, own, Cause::LimitReached);
            }
            Desired::Run(spec) => planner.run(spec, own),
        }
    }
    for (device, own) in containers.iter().filter(|(device, _)| !view.desired.contains_key(**device)) {
        if view.desired_complete && !view.busy.contains(*device) {
            planner.remove(device, own, Cause::NoRow);
        }
    }
    sort_by_key(&mut planner.plan.actions, Action::rank);
    planner.plan
}

/// Applies the limit: which devices must not start, and which running ones must stop.
///
/// Whether a device that is kept must stop or continue is not known: it prevents a start, but stops no other Recorder.
fn apply_limit<'a>(view: &'a View<'_>, containers: &SortedMap<&str, Vec<&Container>>) -> (SortedSet<&'a str>, SortedSet<&'a str>) {
    let own = |device: &str| containers.get(device).map_or(&[][..], Vec::as_slice);
    let alive = |device: &str| own(device).iter().any(|container| !container.state.is_over());
    let has_container = |device: &str| containers.contains_key(device);
    let is_busy = |device: &str| view.busy.contains(device);
    let keeps_place = |device: &str, desired: &Desired| match desired {
        // It is seen again in a moment, or is offline.
        Desired::Keep(KeepReason::NotDetected) => has_container(device) || is_busy(device),
        Desired::Keep(_) => alive(device) || is_busy(device),
        _ => false,
    };
    let kept = view.desired.iter().filter(|(device, desired)| keeps_place(device, desired)).count();
    let mut desired: Vec<&str> =
        view.desired.iter().filter(|(_, desired)| matches!(desired, Desired::Run(_))).map(|(device, _)| device.as_str()).collect();
    let places = view.max_recorders.unwrap_or(DEFAULT_MAX_RECORDERS).saturating_sub(kept);
    if desired.len() <= places {
        return (SortedSet::new(), SortedSet::new());
    }
    sort_by_key(&mut desired, |device| match () {
        // An action under way may be a stop that the list does not show yet.
        () if own(device).iter().any(runs) && !is_busy(device) => 0,
        () if alive(device) => 1,
        () if has_container(device) || is_busy(device) => 2,
        () => 3,
    });
    let over_limit = desired.iter().skip(places).copied().filter(|device| !alive(device)).collect();
    // With an unknown limit, nothing new starts and nothing stops.
    let surplus = desired.iter().skip(view.max_recorders.unwrap_or(usize::MAX)).copied().filter(|device| alive(device)).collect();
    (over_limit, surplus)
}

/// Whether a container runs, and nothing ends it.
fn runs(container: &&Container) -> bool {
    matches!(container.state, State::Running | State::Paused | State::Unknown)
}

/// A Recorder with this spec could not open its card.
fn not_offered(spec: &Tier2ServiceSpec) -> Option<Hold> {
    spec.mismatch.as_ref().filter(|mismatch| mismatch.is_certain).cloned().map(Hold::NotOffered)
}

/// Builds a plan.
struct Planner<'a> {
    view: &'a View<'a>,
    plan: Plan,
    /// Another Recorder is being replaced, or its successor is not proven yet.
    turn_is_taken: bool,
}

impl Planner<'_> {
    /// A Recorder with this spec should run.
    fn run(&mut self, spec: &Arc<Tier2ServiceSpec>, own: &[&Container]) {
        let matches = |container: &&&Container| self.view.past.matches(container, spec);
        let rank = |container: &&&Container| (container.state != State::Running, container.name != spec.name);
        if let Some(container) = own.iter().filter(matches).filter(|container| runs(container)).min_by_key(rank) {
            return self.keep(spec, container, own);
        }
        let is_transitional = |container: &&&Container| {
            matches!(container.state, State::Stopping | State::Stopped | State::Removing) && !self.view.stuck.contains(&container.id)
        };
        if let Some(container) = own.iter().filter(matches).find(is_transitional) {
            return self.hold(spec, Hold::Transitional(container.state));
        }
        let alive = |container: &&&Container| !container.state.is_over() && !matches(container);
        match own.iter().filter(alive).min_by_key(|container| container.state != State::Running) {
            Some(container) => self.replace(spec, container, own),
            None => self.start(spec, own),
        }
    }

    /// This container runs as desired.
    fn keep(&mut self, spec: &Arc<Tier2ServiceSpec>, container: &Container, own: &[&Container]) {
        self.plan.matching.insert(spec.device.clone());
        self.plan.kept.insert(spec.device.clone(), container.id.clone());
        if container.state == State::Paused {
            self.hold(spec, Hold::Paused { name: container.name.clone() });
        }
        if container.state == State::Running && self.view.past.stalled.contains_key(&container.id) {
            return self.replace(spec, container, own);
        }
        let is_proven = self.view.past.is_proven(container, self.view.now);
        let predecessor = own.iter().find(|other| is_old(other) && other.state == State::Exited && !is_proven);
        if let (Some(old), Some(ending)) = (predecessor, self.view.past.ending(container)) {
            return self.fall_back(spec, &[container], old, ending);
        }
        let rest: Vec<&Container> =
            own.iter().copied().filter(|other| other.id != container.id && predecessor.is_none_or(|old| old.id != other.id)).collect();
        let cause = if rest.iter().all(|other| is_old(other)) { Cause::Proven } else { Cause::Duplicate };
        self.tidy(spec, container, &rest, cause);
    }

    /// This container stays: removes the `rest`, and then renames it to the name in the spec.
    fn tidy(&mut self, spec: &Tier2ServiceSpec, container: &Container, rest: &[&Container], cause: Cause) {
        if rest.is_empty() && container.name != spec.name {
            let task = Task::Rename { container: container.into(), name: spec.name.clone() };
            return self.act(&spec.device, task, Cause::Renamed(container.name.clone()));
        }
        self.remove(&spec.device, rest, cause);
    }

    /// This container runs, but a different configuration is desired.
    fn replace(&mut self, spec: &Arc<Tier2ServiceSpec>, old: &Container, own: &[&Container]) {
        let (past, now) = (self.view.past, self.view.now);
        // This one records, whether it is replaced or not.
        if old.state == State::Running {
            self.plan.kept.insert(spec.device.clone(), old.id.clone());
        }
        let others: Vec<&Container> = own.iter().copied().filter(|other| other.id != old.id).collect();
        if old.state == State::Paused {
            return self.hold(spec, Hold::Paused { name: old.name.clone() });
        }
        let stalled = past.stalled.get(&old.id).filter(|_| old.state == State::Running);
        let stays = match past.rejection(&spec.device, spec.hash()) {
            Some(why) if stalled.is_none() => Some(Hold::FellBack { why: why.to_owned() }),
            _ => past.foreign.contains(&old.id).then_some(Hold::Foreign),
        }
        .or_else(|| not_offered(spec));
        if let Some(hold) = stays {
            self.hold(spec, hold);
            return self.tidy(spec, old, &others, Cause::Duplicate);
        }
        let is_uncompared = |container: &&&Container| {
            matches!(container.state, State::Running | State::Unknown)
                && !past.matches(container, spec)
                && past.differences(container, spec).is_none()
        };
        let uncompared: Vec<&Container> = own.iter().filter(is_uncompared).copied().collect();
        if !uncompared.is_empty() && stalled.is_none() {
            self.plan.compare.extend(uncompared.iter().map(|container| (container.id.clone(), Arc::clone(spec))));
            return self.hold(spec, Hold::Comparing);
        }
        if own.iter().any(|container| !self.view.is_removable(container)) {
            return self.hold(spec, Hold::Removing);
        }
        if let Some((wait, failures)) = past.failures.wait(&spec.device, Attempt::Start(spec.hash()), now) {
            return self.hold(spec, Hold::BackOff { until: self.view.wall_time(wait), failures });
        }
        if let Some((wait, _)) = past.drifts.wait(&spec.device, Attempt::Start(spec.hash()), now).filter(|_| stalled.is_none()) {
            return self.hold(spec, Hold::Drifting { until: self.view.wall_time(wait) });
        }
        // If the microphone is another card now, or its capture stands still, the running container does not record it:
        // do not wait.
        let is_moved = past.cards.get(&spec.device).is_some_and(|card| Some(*card) != spec.card());
        if !is_moved && stalled.is_none() && std::mem::replace(&mut self.turn_is_taken, true) {
            return self.hold(spec, Hold::Turn);
        }
        let is_created = |other: &&&Container| other.state == State::Created && has_hash_of(other, spec);
        let created = others.iter().find(is_created).map(|created| created.id.clone());
        let (created, remove): (Vec<&Container>, Vec<&Container>) = others.iter().partition(|other| Some(&other.id) == created.as_ref());
        let task = Task::Replace {
            spec: Arc::clone(spec),
            created: created.first().map(|created| OldContainer::from(*created)),
            remove: self.view.removable(&remove),
            old: old.into(),
        };
        self.act(&spec.device, task, stalled.map_or(Cause::Drift, |why| Cause::Stalled(why.clone())));
    }

    /// Nothing runs.
    fn start(&mut self, spec: &Arc<Tier2ServiceSpec>, own: &[&Container]) {
        let matches = |container: &&&Container| self.view.past.matches(container, spec);
        let ended = own.iter().copied().find(|container| matches(&container) && container.state != State::Created);
        let created = own.iter().copied().find(|container| matches(&container) && container.state == State::Created);
        let cause = match (ended, created) {
            (Some(container), _) if !container.state.is_over() || container.state == State::Removing => {
                Cause::Stuck { name: container.name.clone(), state: container.state }
            }
            (Some(container), _) if self.view.past.stopped.contains(&container.id) => Cause::StoppedBefore,
            (Some(container), _) => Cause::Ended(Ending::of(container)),
            (None, Some(_)) => Cause::NotRunning,
            (None, None) if own.is_empty() => Cause::NotThere,
            (None, None) => Cause::Drift,
        };
        if own.iter().any(|container| !self.view.is_removable(container)) {
            return self.hold(spec, Hold::Removing);
        }
        let predecessor = own.iter().copied().find(|other| is_old(other) && other.state == State::Exited && !matches(&other));
        if let (Some(old), Some(failed), Cause::Ended(ending)) = (predecessor, ended, &cause) {
            return self.fall_back(spec, &[failed], old, *ending);
        }
        if let Some((wait, failures)) = self.view.past.failures.wait(&spec.device, Attempt::Start(spec.hash()), self.view.now) {
            return self.hold(spec, Hold::BackOff { until: self.view.wall_time(wait), failures });
        }
        // The predecessor ended, too, and the desired spec is known to fail.
        let fallback = own.iter().copied().find(|other| other.state == State::Exited && !matches(&other));
        if let (Some(old), Some(_)) = (fallback, self.view.past.rejection(&spec.device, spec.hash())) {
            let failed: Vec<&Container> = own.iter().copied().filter(|other| other.id != old.id).collect();
            return self.fall_back(spec, &failed, old, Ending::of(old));
        }
        let is_used = |container: &&Container| [created, predecessor].into_iter().flatten().any(|used| used.id == container.id);
        let remove: Vec<&Container> = own.iter().copied().filter(|container| !is_used(container)).collect();
        let task = Task::Start {
            spec: Arc::clone(spec),
            created: created.map(OldContainer::from),
            remove: self.view.removable(&remove),
            fallback: predecessor.map(OldContainer::from),
        };
        self.act(&spec.device, task, cause);
    }

    fn fall_back(&mut self, spec: &Arc<Tier2ServiceSpec>, failed: &[&Container], old: &Container, ending: Ending) {
        let task = Task::FallBack { spec: Arc::clone(spec), failed: self.view.removable(failed), old: old.into() };
        self.act(&spec.device, task, Cause::Unproven(ending));
    }

    fn remove(&mut self, device: &str, own: &[&Container], cause: Cause) {
        let old = self.view.removable(own);
        if !old.is_empty() && self.view.past.failures.wait(device, Attempt::Stop, self.view.now).is_none() {
            self.act(device, Task::Remove(old), cause);
        }
    }

    fn act(&mut self, device: &str, task: Task, cause: Cause) {
        self.plan.actions.push(Action { device: device.to_owned(), task, cause });
    }

    fn hold(&mut self, spec: &Tier2ServiceSpec, hold: Hold) {
        self.plan.holds.insert(spec.device.clone(), hold);
    }
}

/// Name of the predecessor of a container that is not proven yet.
#[must_use]
pub fn old_name(name: &str) -> String {
    format!("{name}{OLD}")
}

const OLD: &str = "-old";

fn is_old(container: &Container) -> bool {
    container.name.ends_with(OLD)
}

fn by_device(containers: &[Container]) -> SortedMap<&str, Vec<&Container>> {
    let mut devices: SortedMap<&str, Vec<&Container>> = SortedMap::new();
    for container in containers {
        devices.entry(container.labels.get(DEVICE_ID).map_or("", String::as_str)).or_default().push(container);
    }
    devices
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::decide::action::{Rank, Removal};
    use crate::decide::desired::StopReason;
    use crate::decide::offer::{Mismatch, Setting};
    use crate::decide::past::Compared;
    use crate::decide::profile::AudioFormat;
    use crate::decide::spec::tests::spec;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// A station from text: `desired` is `a:run a:keep a:unsure a:stop`; `containers` is `a:running`. After the state, `!` means
    /// another hash and differences, `~` another hash and no difference, `?` another hash and not compared.
    #[derive(Debug)]
    pub(crate) struct Scene {
        pub(crate) desired: SortedMap<String, Desired>,
        pub(crate) containers: Vec<Container>,
        complete: bool,
        max: Option<usize>,
        busy: SortedSet<String>,
        stuck: SortedSet<String>,
        replacing: bool,
        pub(crate) past: Past,
        pub(crate) now: Instant,
    }

    const OTHER_HASH: [char; 3] = ['!', '~', '?'];

    fn container(id: &str, name: &str, state: State, spec: &Tier2ServiceSpec) -> Container {
        Container {
            id: id.to_owned(),
            name: name.to_owned(),
            state,
            labels: spec.labels(),
            exit_code: 1,
            out_of_memory: false,
            is_interrupted: false,
            pid: 0,
            started: 0,
        }
    }

    pub(crate) fn scene(desired: &str, containers: &str) -> Scene {
        let pair = |text: &str| text.split_once(':').map(|(device, word)| (device.to_owned(), word.to_owned())).unwrap();
        let desired_state = |text: &str| {
            let (device, word) = pair(text);
            let state = match word.as_str() {
                "run" => Desired::Run(Arc::new(spec(&device, 0))),
                "keep" => Desired::Keep(KeepReason::NotDetected),
                "unsure" => Desired::Keep(KeepReason::DatabaseUnavailable(StopReason::Disabled)),
                _ => Desired::Stop(StopReason::Disabled),
            };
            (device, state)
        };
        let parsed = |(number, text): (usize, &str)| {
            let (device, word) = pair(text);
            let unmarked = word.trim_end_matches(OTHER_HASH);
            let state = serde_json::from_str(&format!("\"{}\"", unmarked.trim_end_matches("-old"))).unwrap();
            let own = spec(&device, u32::from(word.ends_with(OTHER_HASH)));
            let name = if unmarked.ends_with("-old") { old_name(&own.name) } else { own.name.clone() };
            container(&format!("c{number}"), &name, state, &own)
        };
        let mut past = Past::default();
        for (number, text) in containers.split_whitespace().enumerate() {
            let differences = match text.chars().last() {
                Some('!') => vec!["card".to_owned()],
                Some('~') => Vec::new(),
                _ => continue,
            };
            let hash = spec(&pair(text).0, 0).hash().to_owned();
            past.compared.insert(format!("c{number}"), Compared { hash, differences });
        }
        Scene {
            desired: desired.split_whitespace().map(desired_state).collect(),
            containers: containers.split_whitespace().enumerate().map(parsed).collect(),
            complete: true,
            max: Some(5),
            busy: SortedSet::new(),
            stuck: SortedSet::new(),
            replacing: false,
            past,
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
                past: &self.past,
                replacing: self.replacing,
                busy: &self.busy,
                stuck: &self.stuck,
                now: self.now,
                wall: SystemTime::UNIX_EPOCH,
            })
        }

        /// `start a`, `start a from c1`, `restart a c0`, `replace a c0`, `fall back a c0 to c1`, `stop b c1 c2`
        pub(crate) fn actions(&self) -> String {
            let ids = |containers: &[OldContainer]| containers.iter().map(|old| format!(" {}", old.id)).collect::<String>();
            let from = |created: &Option<OldContainer>| created.as_ref().map_or_else(String::new, |old| format!(" from {}", old.id));
            let text = |action: &Action| {
                let device = &action.device;
                match &action.task {
                    Task::Start { created, remove, .. } if remove.is_empty() => format!("start {device}{}", from(created)),
                    Task::Start { created, remove, .. } => format!("restart {device}{}{}", ids(remove), from(created)),
                    Task::Replace { created, remove, old, .. } => format!("replace {device} {}{}{}", old.id, ids(remove), from(created)),
                    Task::FallBack { failed, old, .. } => format!("fall back {device}{} to {}", ids(failed), old.id),
                    Task::Rename { container, .. } => format!("rename {device} {}", container.id),
                    Task::Remove(old) => format!("stop {device}{}", ids(old)),
                }
            };
            self.plan().actions.iter().map(text).collect::<Vec<_>>().join(", ")
        }
    }

    fn actions(desired: &str, containers: &str) -> String {
        scene(desired, containers).actions()
    }

    #[test]
    fn a_plan_is_at_rest_while_it_waits_for_nothing() {
        for (desired, containers, is_at_rest) in [
            ("", "", true),
            ("a:run b:keep c:stop", "a:running", true),
            ("a:keep", "a:running", false),
            ("a:run", "a:running~", true),
            ("a:run", "", false),
            ("a:run", "a:exited", false),
            ("a:stop", "a:running", false),
            ("a:run", "a:running!", false),
            ("a:run", "a:running?", false),
            ("a:run", "a:paused", false),
            ("a:run", "a:stopping", false),
            // The old one may be needed until the new one has run for a while.
            ("a:run", "a:running a:exited-old", false),
        ] {
            let scene = scene(desired, containers);
            assert_eq!(scene.plan().is_at_rest(&scene.containers, Kind::Recorder), is_at_rest, "{desired}, {containers}");
        }
        let mut scene = scene("a:run b:run", "a:running");
        scene.max = Some(1);
        assert!(scene.plan().is_at_rest(&scene.containers, Kind::Recorder), "as many run as are allowed");
        scene.max = Some(2);
        let spec = spec("b", 0);
        for _ in 0..3 {
            scene.past.failures.failed("b", Attempt::Start(spec.hash()), scene.now);
        }
        let plan = scene.plan();
        assert!(matches!(plan.holds["b"], Hold::BackOff { .. }));
        assert!(!plan.is_at_rest(&scene.containers, Kind::Recorder) && plan.is_at_rest(&scene.containers, Kind::Worker));
        scene.busy.insert("b".to_owned());
        assert!(!scene.plan().is_at_rest(&scene.containers, Kind::Worker));
    }

    #[test]
    fn the_table_in_the_header_holds() {
        let rows = [
            ("", "start a", "start a", "", ""),
            ("running", "", "replace a c0", "", "stop a c0"),
            ("paused", "", "", "", "stop a c0"),
            ("stopping", "", "replace a c0", "", "stop a c0"),
            ("stopped", "", "replace a c0", "", "stop a c0"),
            ("created", "start a from c0", "restart a c0", "", "stop a c0"),
            ("exited", "restart a c0", "restart a c0", "", "stop a c0"),
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
    fn a_container_without_a_desired_state_is_removed_only_if_all_devices_are_known() {
        let mut scene = scene("", "a:running");
        assert_eq!(scene.actions(), "stop a c0");
        scene.complete = false;
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn one_container_a_device_is_kept_and_others_are_removed() {
        assert_eq!(actions("a:run", "a:exited a:running a:running!"), "stop a c0 c2");
        assert_eq!(actions("a:run", "a:running! a:exited"), "replace a c0 c1");
    }

    #[test]
    fn busy_devices_get_no_action() {
        let mut scene = scene("a:run b:stop", "b:running c:running");
        scene.busy = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn a_container_stuck_in_a_transitional_state_is_replaced() {
        let mut scene = scene("a:run b:run", "a:stopping b:stopped");
        scene.stuck = ["c0", "c1"].map(str::to_owned).into();
        assert_eq!(scene.actions(), "restart a c0, restart b c1");
    }

    #[test]
    fn a_removal_that_does_not_end_is_requested_again() {
        let mut scene = scene("a:run b:stop", "a:removing b:removing");
        assert_eq!(scene.actions(), "");
        scene.stuck = ["c0", "c1"].map(str::to_owned).into();
        assert_eq!(scene.actions(), "restart a c0, stop b c1");
        assert!(scene.plan().actions.iter().flat_map(Action::ends).all(|old| old.removal == Removal::Stop));
    }

    #[test]
    fn failed_starts_and_stops_wait_for_the_next_attempt() {
        let mut scene = scene("a:run b:stop", "a:exited b:running");
        for _ in 0..3 {
            scene.past.failures.failed("a", Attempt::Start(spec("a", 0).hash()), scene.now);
            scene.past.failures.failed("b", Attempt::Stop, scene.now);
        }
        assert_eq!(scene.actions(), "");
        assert_eq!(scene.plan().holds["a"].to_string(), "back-off until 1970-01-01T00:00:02Z after 3 failures");
        scene.now += Duration::from_secs(2);
        assert_eq!(scene.actions(), "restart a c0, stop b c1");
    }

    #[test]
    fn what_no_recorder_can_capture_replaces_nothing() {
        let offer = |format: &str| [Setting { formats: vec![format.to_owned()], channels: 1, rates: vec![48_000], continuous: false }];
        let asked = |format: &str| AudioFormat { rate: 48_000, channels: 1, format: format.to_owned() };
        for (containers, offered, asked_for, expected) in [
            ("", "S16_LE", "S24LE", "start a"),
            ("a:exited", "S16_LE", "S24LE", "restart a c0"),
            ("a:running", "S16_LE", "S24LE", ""),
            ("a:running!", "S16_LE", "S24LE", ""),
            ("a:running!", "S32_LE", "S24LE", "replace a c0"),
        ] {
            let mut scene = scene("a:run", containers);
            let Some(Desired::Run(spec)) = scene.desired.get_mut("a") else { unreachable!() };
            Arc::make_mut(spec).mismatch = Mismatch::find(&offer(offered), asked(asked_for));
            assert_eq!(scene.actions(), expected, "{containers:?}");
        }
    }

    #[test]
    fn at_most_max_recorders_run_and_running_ones_have_priority() {
        let mut scene = scene("a:run b:run c:run", "c:running");
        scene.max = Some(2);
        assert_eq!(scene.actions(), "start a");
        assert_eq!(scene.plan().over_limit().collect::<Vec<_>>(), ["b"]);
        scene.max = Some(0);
        assert_eq!(scene.actions(), "stop c c0");
        scene.max = None;
        assert_eq!(scene.actions(), "start a, start b");
    }

    #[test]
    fn removing_an_ended_container_displaces_no_recorder() {
        let mut scene = scene("a:run b:run", "a:exited b:running");
        scene.max = Some(1);
        scene.busy.insert("a".to_owned());
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn a_recorder_that_failed_is_not_displaced() {
        let mut scene = scene("a:run z:run", "z:exited");
        scene.max = Some(1);
        assert_eq!(scene.actions(), "restart z c0");
    }

    #[test]
    fn a_recorder_that_is_kept_counts_toward_the_limit() {
        let mut scene = scene("a:keep b:run", "a:running");
        scene.max = Some(1);
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn a_recorder_that_runs_is_stopped_only_if_more_run_than_are_allowed() {
        for (desired, containers, busy, expected) in [
            // c was disconnected, d took its place, and c is connected again while it is being stopped.
            ("a:run c:run d:run", "a:running c:stopping d:running", "c", ""),
            // The list may be older than the stop.
            ("a:run c:run d:run", "a:running c:running d:running", "c", ""),
            ("a:run c:run d:run", "a:running c:stopping d:running", "", "stop c c1"),
            // Likewise, but c was disabled, and then the database does not respond any more.
            ("a:run c:unsure d:run", "a:running c:stopping d:running", "c", ""),
            ("a:run c:unsure d:run", "a:running c:running d:running", "", ""),
            ("a:run c:unsure d:run", "a:running c:stopping", "c", ""),
            ("a:run c:unsure d:run", "a:running c:exited", "", "start d"),
            // One that fails while its microphone is not detected for a moment keeps its place.
            ("a:run c:keep d:run", "a:running c:exited", "", ""),
            ("a:run c:keep d:run", "a:running", "c", ""),
            ("a:run c:run d:run", "a:running c:exited", "", "restart c c1"),
            // A user has lowered the limit.
            ("a:run b:run c:run d:run", "a:running b:running c:stopping d:running", "", "stop c c2, stop d c3"),
            ("a:run b:unsure c:run d:run", "a:running b:running c:running d:running", "", "stop d c3"),
        ] {
            let mut scene = scene(desired, containers);
            (scene.max, scene.busy) = (Some(2), busy.split_whitespace().map(str::to_owned).collect());
            assert_eq!(scene.actions(), expected, "{desired}, {containers}");
        }
    }

    #[test]
    fn an_unknown_limit_stops_no_recorder() {
        let mut scene = scene("a:run b:run c:run d:run e:run f:run", "a:running b:running c:running d:running e:running f:running");
        scene.max = None;
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn a_replacement_continues_an_interrupted_one() {
        // created, renamed or not, stopped, started
        assert_eq!(actions("a:run", "a:running! a:created"), "replace a c0 from c1");
        assert_eq!(actions("a:run", "a:running-old! a:created"), "replace a c0 from c1");
        assert_eq!(actions("a:run", "a:stopping-old! a:created"), "replace a c0 from c1");
        assert_eq!(actions("a:run", "a:exited-old! a:created"), "start a from c1");
        assert_eq!(actions("a:run", "a:exited-old! a:running"), "");
        assert_eq!(actions("a:run", "a:exited-old!"), "start a");
    }

    #[test]
    fn a_predecessor_is_removed_when_its_successor_is_proven_and_started_again_when_it_fails() {
        let mut scene = scene("a:run", "a:running a:exited-old!");
        let runs = |ended| crate::decide::past::Runs { current: (1, 1), since: Instant::now(), ended };
        scene.past.runs.insert("c0".to_owned(), runs(None));
        assert_eq!(scene.actions(), "");
        scene.now += crate::decide::action::PROVEN * 2;
        assert_eq!(scene.actions(), "stop a c1");
        scene.past.runs.insert("c0".to_owned(), runs(Some(Ending::Exit(3))));
        assert_eq!(scene.actions(), "fall back a c0 to c1");
        scene.containers[0].state = State::Exited;
        assert_eq!(scene.actions(), "fall back a c0 to c1");
        assert_eq!(scene.plan().actions[0].cause, Cause::Unproven(Ending::Exit(1)));
    }

    #[test]
    fn a_spec_that_failed_is_not_tried_again_while_its_predecessor_runs() {
        let mut scene = scene("a:run", "a:running!");
        let hash = spec("a", 0).hash().to_owned();
        scene.past.rejected.insert("a".to_owned(), crate::decide::past::Rejected { hash, why: "it failed".to_owned() });
        assert_eq!(scene.actions(), "");
        let plan = scene.plan();
        assert_eq!(
            (plan.holds["a"].to_string().as_str(), plan.kept["a"].as_str()),
            ("fell back to the previous container: it failed", "c0")
        );
        scene.past.rejected.clear();
        assert_eq!(scene.actions(), "replace a c0");
    }

    #[test]
    fn a_predecessor_that_ended_is_started_again_while_the_spec_is_known_to_fail() {
        let mut scene = scene("a:run", "a:exited!");
        let hash = spec("a", 0).hash().to_owned();
        scene.past.rejected.insert("a".to_owned(), crate::decide::past::Rejected { hash, why: "it failed".to_owned() });
        assert_eq!(scene.actions(), "fall back a to c0");
        scene.past.rejected.clear();
        assert_eq!(scene.actions(), "restart a c0");
    }

    #[test]
    fn replacements_wait_for_each_other_but_not_for_a_start() {
        let mut scene = scene("a:run b:run c:run", "a:running! b:running!");
        assert_eq!(scene.actions(), "start c, replace a c0");
        assert_eq!(scene.plan().holds["b"], Hold::Turn);
        scene.replacing = true;
        assert_eq!(scene.actions(), "start c");
        // A microphone that is another card now does not wait.
        scene.past.cards.insert("b".to_owned(), 7);
        assert_eq!(scene.actions(), "start c, replace b c1");
    }

    #[test]
    fn a_capture_that_stands_still_gives_way_at_once_and_only_if_it_runs() {
        let mut scene = scene("a:run b:run c:run d:keep", "a:running b:running! c:running d:running");
        scene.past.stalled.extend(["c0", "c3"].map(|id| (id.to_owned(), "no frames".to_owned())));
        assert_eq!(scene.actions(), "replace a c0, replace b c1");
        assert_eq!(scene.plan().actions[0].cause, Cause::Stalled("no frames".to_owned()));
        // Nothing is waited for, and both of two that stand still give way.
        scene.replacing = true;
        scene.past.stalled.insert("c1".to_owned(), "no frames".to_owned());
        assert_eq!(scene.actions(), "replace a c0, replace b c1");
        scene.busy.insert("a".to_owned());
        scene.containers[1].state = State::Paused;
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn a_capture_that_stands_still_is_the_first_that_another_configuration_replaces() {
        let mut scene = scene("a:run b:run c:run", "a:running! b:running! c:running!");
        assert_eq!(scene.actions(), "replace a c0");
        scene.past.standing.insert("b".to_owned());
        assert_eq!(scene.actions(), "replace b c1");
        assert_eq!(scene.plan().holds.keys().collect::<Vec<_>>(), ["a", "c"]);
        // One that is replaced already, or whose successor is not proven yet, comes before.
        scene.replacing = true;
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn the_successor_of_another_device_is_proven_first() {
        let scene = scene("a:run b:run", "a:running a:exited-old! b:running!");
        assert_eq!(scene.actions(), "");
        assert_eq!(scene.plan().holds["b"], Hold::Turn);
    }

    #[test]
    fn a_running_container_with_another_hash_is_compared_and_runs_on_until_it_is_known_to_differ() {
        let mut scene = scene("a:run", "a:running?");
        let desired = spec("a", 0).hash().to_owned();
        let plan = scene.plan();
        assert_eq!((plan.actions.len(), plan.holds["a"].clone(), plan.kept["a"].as_str()), (0, Hold::Comparing, "c0"));
        assert_eq!(plan.compare["c0"].hash(), desired);
        assert!(plan.matching.is_empty());
        let compared = |differences: &[&str], hash: &str| Compared {
            hash: hash.to_owned(),
            differences: differences.iter().map(|text| (*text).to_owned()).collect(),
        };
        // With another spec than the desired one.
        scene.past.compared.insert("c0".to_owned(), compared(&["memory 1 -> 2"], "before"));
        assert_eq!((scene.actions().as_str(), scene.plan().compare.len()), ("", 1));
        scene.past.compared.insert("c0".to_owned(), compared(&[], &desired));
        let plan = scene.plan();
        assert_eq!((scene.actions().as_str(), plan.compare.len(), plan.holds.len()), ("", 0, 0));
        assert!(plan.matching.contains("a"));
        scene.past.compared.insert("c0".to_owned(), compared(&["memory 1 -> 2"], &desired));
        assert_eq!(scene.actions(), "replace a c0");
    }

    #[test]
    fn a_container_that_would_be_created_alike_is_as_good_as_one_with_the_hash() {
        assert_eq!(actions("a:run", "a:exited~"), "restart a c0");
        assert_eq!(scene("a:run", "a:exited~").plan().actions[0].cause, Cause::Ended(Ending::Exit(1)));
        assert_eq!(actions("a:run", "a:stopped~"), "");
        assert_eq!(actions("a:run", "a:running~ a:running!"), "stop a c1");
        assert_eq!(actions("a:run b:run", "a:running~ b:running!"), "replace b c1");
        assert_eq!(actions("a:run", "a:running! a:running?"), "");
        let mut scene = scene("a:run", "a:running~");
        scene.containers[0].name = "by-hand".to_owned();
        assert_eq!(scene.actions(), "rename a c0");
    }

    #[test]
    fn a_container_that_differs_right_after_its_creation_waits() {
        let mut scene = scene("a:run", "a:running!");
        scene.past.drifts.failed("a", Attempt::Start(spec("a", 0).hash()), scene.now);
        assert_eq!(scene.actions(), "");
        assert!(matches!(scene.plan().holds["a"], Hold::Drifting { .. }));
        scene.now += Duration::from_secs(1);
        assert_eq!(scene.actions(), "replace a c0");
    }

    #[test]
    fn a_renamed_container_is_renamed_back_while_it_records() {
        let mut scene = scene("a:run", "a:running");
        scene.containers[0].name = "by-hand".to_owned();
        assert_eq!(scene.actions(), "rename a c0");
    }

    /// Any combination of desired states, containers and unknowns.
    fn any_scene() -> impl Strategy<Value = Scene> {
        let device = |n: usize| ["a", "b", "c", "d", "e", "f", "g"][n].to_owned();
        let desired = vec((0..6usize, select(&["run", "run", "keep", "unsure", "stop"][..])), 0..8);
        let states =
            &["created", "running", "running", "stopping", "stopped", "exited", "exited-old", "running-old", "paused", "removing", "odd"];
        let state = select(&states[..]);
        let containers = vec((0..7usize, state, select(&["", "", "!", "~", "?"][..]), any::<bool>()), 0..10);
        let max = proptest::option::of(0..6usize);
        (desired, containers, any::<bool>(), max, vec(0..7usize, 0..3), any::<bool>()).prop_map(
            move |(desired, containers, complete, max, busy, replacing)| {
                let desired: Vec<String> = desired.iter().map(|(n, state)| format!("{}:{state}", device(*n))).collect();
                let listed: Vec<String> = containers.iter().map(|(n, state, mark, _)| format!("{}:{state}{mark}", device(*n))).collect();
                let mut scene = scene(&desired.join(" "), &listed.join(" "));
                scene.stuck = containers.iter().enumerate().filter(|(_, container)| container.3).map(|(n, _)| format!("c{n}")).collect();
                (scene.complete, scene.max, scene.busy) = (complete, max, busy.into_iter().map(device).collect());
                scene.replacing = replacing;
                scene
            },
        )
    }

    fn device_of(container: &Container) -> &str {
        &container.labels[DEVICE_ID]
    }

    impl Scene {
        /// Applies the effects of a complete plan, and lets ten seconds pass.
        fn apply(&mut self, plan: &Plan) {
            for action in &plan.actions {
                let gone: Vec<&str> = action.ends().map(|old| old.id.as_str()).collect();
                self.containers.retain(|container| !gone.contains(&container.id.as_str()));
                match &action.task {
                    Task::Start { spec, created, .. } | Task::Replace { spec, created, .. } => {
                        self.containers.retain(|container| created.as_ref().is_none_or(|created| created.id != container.id));
                        self.containers.push(container(&format!("new {}", action.device), &spec.name, State::Running, spec));
                    }
                    Task::FallBack { spec, old, .. } => {
                        let rejected = crate::decide::past::Rejected { hash: spec.hash().to_owned(), why: String::new() };
                        self.past.rejected.insert(action.device.clone(), rejected);
                        let old = self.containers.iter_mut().find(|container| container.id == old.id).unwrap();
                        (old.state, old.name) = (State::Running, spec.name.clone());
                    }
                    Task::Rename { container, name } => {
                        let renamed = self.containers.iter_mut().find(|found| found.id == container.id).unwrap();
                        renamed.name.clone_from(name);
                    }
                    Task::Remove(_) => {}
                }
            }
            self.stuck.retain(|id| self.containers.iter().any(|container| &container.id == id));
            for container in &self.containers {
                let runs = crate::decide::past::Runs { current: (1, 1), since: self.now, ended: None };
                self.past.runs.entry(container.id.clone()).or_insert(runs);
            }
            self.now += crate::decide::action::PROVEN;
        }

        fn alive(&self) -> SortedSet<&str> {
            self.containers.iter().filter(|container| !container.state.is_over()).map(device_of).collect()
        }
    }

    proptest! {
        #[test]
        fn nothing_unknown_is_touched(scene in any_scene()) {
            for action in &scene.plan().actions {
                let device = action.device.as_str();
                prop_assert!(!scene.busy.contains(device));
                match scene.desired.get(device) {
                    None => prop_assert!(scene.complete && action.rank() == Rank::Stop),
                    Some(Desired::Keep(why)) => prop_assert!(false, "{why}"),
                    Some(Desired::Stop(_)) => prop_assert_eq!(action.rank(), Rank::Stop),
                    // A Recorder that runs as desired is stopped only because of a known limit.
                    Some(Desired::Run(spec)) => for old in action.ends() {
                        let container = scene.containers.iter().find(|container| container.id == old.id).unwrap();
                        prop_assert_eq!(device_of(container), device);
                        let differs = scene.past.differences(container, spec).is_some_and(|found| !found.is_empty());
                        let matches = container.state == State::Running && (has_hash_of(container, spec) || !differs);
                        let duplicate = |other: &Container| device_of(other) == device && other.id != old.id;
                        prop_assert!(!matches || scene.max.is_some() || scene.containers.iter().any(duplicate));
                    },
                }
            }
        }

        #[test]
        fn starts_come_before_replacements_before_stops_and_a_device_has_one_action(scene in any_scene()) {
            let plan = scene.plan();
            prop_assert!(plan.actions.is_sorted_by_key(Action::rank));
            let devices: SortedSet<&str> = plan.actions.iter().map(|action| action.device.as_str()).collect();
            prop_assert_eq!(devices.len(), plan.actions.len());
        }

        #[test]
        fn at_most_one_recorder_that_runs_is_replaced_at_a_time(scene in any_scene()) {
            let replaced = scene.plan().actions.iter().filter(|action| matches!(action.task, Task::Replace { .. })).count();
            prop_assert!(replaced <= usize::from(!scene.replacing), "{replaced}");
        }

        #[test]
        fn only_a_replacement_ends_a_running_recorder_for_a_successor(scene in any_scene()) {
            for action in scene.plan().actions.iter().filter(|action| action.rank() == Rank::Start) {
                let is_fallback = matches!(action.task, Task::FallBack { .. });
                let state = |old: &OldContainer| scene.containers.iter().find(|container| container.id == old.id).unwrap().state;
                prop_assert!(is_fallback || action.ends().all(|old| state(old) != State::Running));
            }
        }

        #[test]
        fn repeated_plans_leave_nothing_to_do(mut scene in any_scene()) {
            // Replacements run one after the other: a round for each device, and more to remove proven predecessors.
            for _ in 0..10 {
                let plan = scene.plan();
                scene.apply(&plan);
                scene.replacing = false;
            }
            prop_assert_eq!(scene.actions(), "");
        }

        #[test]
        fn no_recorder_that_runs_is_surplus_unless_more_run_than_are_allowed(scene in any_scene()) {
            let records = |container: &&Container| {
                let wanted = matches!(scene.desired.get(device_of(container)), Some(Desired::Run(_)));
                wanted && runs(container) && !scene.busy.contains(device_of(container))
            };
            let recording: SortedSet<&str> = scene.containers.iter().filter(records).map(device_of).collect();
            let plan = scene.plan();
            let surplus = plan.actions.iter().filter(|action| action.cause == Cause::Surplus && recording.contains(action.device.as_str()));
            let too_many = scene.max.map_or(0, |max| recording.len().saturating_sub(max));
            prop_assert_eq!(surplus.count(), too_many);
        }

        #[test]
        fn the_limit_is_kept_and_no_recorder_is_displaced_by_a_new_one(mut scene in any_scene()) {
            scene.busy.clear();
            let plan = scene.plan();
            let was_alive: SortedSet<String> = scene.alive().into_iter().map(str::to_owned).collect();
            let new = plan.actions.iter().filter(|action| action.rank() == Rank::Start && !was_alive.contains(&action.device)).count();
            let stopped = plan.actions.iter().filter(|action| action.cause == Cause::Surplus).count();
            prop_assert!(new == 0 || stopped == 0, "{new} new, {stopped} stopped");
            scene.apply(&plan);
            let desired = |device: &&str| matches!(scene.desired.get(*device), Some(Desired::Run(_)));
            let running = scene.alive().into_iter().filter(desired).count();
            let kept = scene.desired.values().filter(|state| matches!(state, Desired::Keep(_))).count();
            let limit = scene.max.unwrap_or(DEFAULT_MAX_RECORDERS.max(was_alive.len()));
            prop_assert!(running <= limit, "{running} run, {limit} may, {kept} are kept");
        }
    }
}
