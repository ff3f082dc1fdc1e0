//! The history of each device's Recorder, which the last list of containers does not show.
//!
//! [`plan`](crate::decide::plan::plan) decides from the current state and the [`Past`]. The [`Past`] is collected here:
//! how earlier runs ended, when a failed start may be retried, which container records, and what a Recorder waits for.
//! It is kept in memory only: a new Controller begins without failures and adopts the running containers.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::collect::by_insertion;
use crate::decide::action::{Action, Cause, Done, Ending, Failure, Hold, Task};
use crate::decide::backoff::{Attempt, Backoffs};
use crate::decide::container::{Container, State};
use crate::decide::desired::Desired;
use crate::decide::offer::Mismatch;
use crate::decide::past::{Compared, Past, Rejected, Runs, has_hash_of};
use crate::decide::plan::Plan;
use crate::decide::spec::{CONFIG_HASH, DEVICE_ID, Tier2ServiceSpec};
use crate::text::shown;

/// Failures of a predecessor after which the rejected spec is tried again.
const FALLBACK_FAILURES: u32 = 3;

/// Runs that ended in a row, up to which that is not a fault for health checks.
const SHORT_RUNS: u32 = 5;

/// A run of this duration is a steady one.
const STEADY: Duration = Duration::from_secs(60);

/// The Recorders of all devices.
#[derive(Debug, Default)]
pub struct Recorders {
    past: Past,
    devices: SortedMap<String, Recorder>,
    /// Ended containers that were counted, by id.
    counted: SortedSet<String>,
    holds: SortedMap<String, Hold>,
    /// Profiles that ask for what the card of their device does not offer.
    mismatches: SortedMap<String, Mismatch>,
}

#[derive(Debug, Default)]
struct Recorder {
    /// The container that records, or is paused.
    container: Option<String>,
    /// That container was found running, and is not known to be as desired.
    is_unclear: bool,
    /// The last container that an action of this program started and none stopped.
    own: Option<String>,
    /// Somebody else removed that container.
    is_removed: bool,
    /// How the last run ended, and how many runs ended.
    ended: Option<(Ending, u32)>,
    /// How many of them ended in a row, without a steady one in between.
    short_runs: u32,
    /// Why the last run ended or failed to start, while that explains a hold.
    failure: Option<String>,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Note {
    /// A run ended by itself.
    Ended {
        /// Its device.
        device: String,
        /// How.
        ending: Ending,
        /// When the next one begins.
        next: Next,
    },
    /// A container that this program did not start runs as desired.
    Adopted {
        /// Its name.
        name: String,
    },
    /// Somebody else replaced a container of ours.
    Foreign {
        /// Name of the other container.
        name: String,
        /// Its device.
        device: String,
    },
    /// A desired Recorder is not started, or not replaced.
    Held {
        /// Its device.
        device: String,
        /// What it waits for.
        hold: Hold,
    },
    /// The card of a desired Recorder does not offer what its profile asks for.
    Mismatched {
        /// Its device.
        device: String,
        /// What does not fit.
        mismatch: Mismatch,
    },
    /// An action started a Recorder.
    Started {
        /// Name of the container.
        name: String,
        /// Duration.
        took: Duration,
        /// Why.
        cause: Cause,
        /// How its predecessor differed from the spec.
        differences: Vec<String>,
    },
    /// An action started the predecessor of a Recorder again.
    FellBack {
        /// Name of the container.
        name: String,
        /// Why.
        why: String,
    },
    /// An action renamed a container.
    Renamed {
        /// Name before.
        from: String,
        /// Name now.
        to: String,
    },
    /// An action removed containers.
    Removed {
        /// Their names.
        names: Vec<String>,
        /// Duration.
        took: Duration,
        /// Why.
        cause: Cause,
    },
}

/// When a Recorder that ended runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Podman's restart policy has started it.
    Restarted,
    /// This program starts it after this delay.
    After(Duration),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { device, ending, next: Next::Restarted } => {
                write!(f, "the Recorder of {} {ending}; Podman restarted it", shown(device))
            }
            Self::Ended { device, ending, next: Next::After(wait) } => {
                write!(f, "the Recorder of {} {ending}; next start in {} s", shown(device), wait.as_secs())
            }
            Self::Adopted { name } => write!(f, "{name} is already running as desired; adopted"),
            Self::Foreign { name, device } => {
                write!(f, "somebody else replaced the Recorder of {}; the container {} is left running", shown(device), shown(name))
            }
            Self::Held { device, hold } => write!(f, "microphone {device} waits: {hold}"),
            Self::Mismatched { device, mismatch } => write!(f, "microphone {device}: {mismatch}"),
            Self::Started { name, took, cause, differences } => {
                write!(f, "{name} started in {:.2} s: {cause}", took.as_secs_f64())?;
                if !differences.is_empty() {
                    write!(f, "; changed: {}", differences.join(", "))?;
                }
                Ok(())
            }
            Self::FellBack { name, why } => write!(f, "{name} fell back to the previous container: {why}"),
            Self::Renamed { from, to } => write!(f, "{} was renamed back to {to}; it still records", shown(from)),
            Self::Removed { names, took, cause } => {
                write!(f, "{} stopped and removed in {:.2} s: {cause}", names.join(", "), took.as_secs_f64())
            }
        }
    }
}

/// The result of an action, for the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Finished {
    /// It was done.
    Done(Note),
    /// It was done, but the new container still differs from the spec.
    StillDiffers {
        /// What was done.
        note: Note,
        /// What is wrong with it.
        warning: String,
    },
    /// It failed, and why.
    Failed(String),
    /// It is no longer needed, and why.
    Dropped(String),
}

impl Note {
    /// The line for a worker instead of a Recorder.
    #[must_use]
    pub fn of_worker(&self) -> String {
        match self {
            Self::Ended { device, ending, next: Next::Restarted } => format!("worker {device} {ending}; Podman restarted it"),
            Self::Ended { device, ending, next: Next::After(wait) } => {
                format!("worker {device} {ending}; next start in {} s", wait.as_secs())
            }
            Self::Foreign { name, device } => {
                format!("somebody else replaced worker {device}; the container {} is left running", shown(name))
            }
            Self::Held { device, hold } => format!("worker {device} waits: {hold}"),
            Self::Renamed { from, to } => format!("{} was renamed back to {to}; it still runs", shown(from)),
            other => other.to_string(),
        }
    }
}

impl Recorders {
    /// A history of workers: the same, but what is missing for one is tried less often.
    #[must_use]
    pub fn of_workers() -> Self {
        Self { past: Past { failures: Backoffs::of_workers(), ..Past::default() }, ..Self::default() }
    }

    /// A user asks for a cycle: what was missing may be there now.
    pub fn nudged(&mut self) {
        self.past.failures.retry_prerequisites();
    }

    /// The earlier events that a plan depends on.
    #[must_use]
    pub fn past(&self) -> &Past {
        &self.past
    }

    /// A microphone was connected or disconnected: earlier failures do not count any more.
    pub fn reconnected(&mut self, device: &str) {
        self.past.failures.forget(device);
        if let Some(recorder) = self.devices.get_mut(device) {
            recorder.short_runs = 0;
        }
    }

    /// Records how a container differs from a spec.
    pub fn compared(&mut self, container: String, spec: &Tier2ServiceSpec, differences: Vec<String>) {
        self.past.compared.insert(container, Compared { hash: spec.hash().to_owned(), differences });
    }

    /// The captures of these devices stand still, and these containers are to be replaced for that.
    pub fn set_standing(&mut self, standing: SortedSet<String>, stalled: SortedMap<String, String>) {
        (self.past.standing, self.past.stalled) = (standing, stalled);
    }

    /// The Controller stops: earlier failures must not delay a stop.
    pub fn stopping(&mut self) {
        self.past.failures = Past::default().failures;
    }

    /// Devices with a running Recorder, and the id of its container.
    pub fn running(&self) -> impl Iterator<Item = (&String, &String)> {
        let is_paused = |device: &String| matches!(self.holds.get(device), Some(Hold::Paused { .. }));
        let running = self.devices.iter().filter_map(|(device, recorder)| Some((device, recorder.container.as_ref()?)));
        running.filter(move |(device, _)| !is_paused(device))
    }

    /// Handles a list of containers. Returns which runs ended since the last one. `is_busy` returns whether an action
    /// for a device is under way. `exit` returns the exit code of a container's last run: `Some(None)` if it will stay
    /// unknown, `None` while it may still be reported.
    pub fn observe(
        &mut self,
        containers: &[Container],
        desired: &SortedMap<String, Desired>,
        is_busy: impl Fn(&str) -> bool,
        exit: impl Fn(&str) -> Option<Option<i64>>,
        now: Instant,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        for (container, code) in self.restarts(containers, exit, now) {
            let ending = code.map_or(Ending::Unknown, Ending::Exit);
            if let Some(runs) = self.past.runs.get_mut(&container.id) {
                runs.ended = Some(ending);
            }
            notes.push(self.note_end(device_of(container), ending, Next::Restarted));
        }
        notes.extend(self.note_foreign(containers, desired, &is_busy));
        self.note_removals(containers, desired, &is_busy, now);
        for container in containers {
            let device = device_of(container);
            let Some(Desired::Run(spec)) = desired.get(device) else { continue };
            match container.state {
                State::Running => {
                    self.past.failures.running(device, now);
                    let is_steady = |runs: &Runs| now.saturating_duration_since(runs.since) >= STEADY;
                    if let (true, Some(recorder)) = (self.past.runs.get(&container.id).is_some_and(is_steady), self.devices.get_mut(device))
                    {
                        recorder.short_runs = 0;
                    }
                }
                State::Exited | State::Lost if !is_busy(device) && self.is_own_end(container, spec) => {
                    let ending = Ending::of(container);
                    if ending != Ending::Reboot {
                        let wait = self.past.failures.failed(device, Attempt::Start(spec.hash()), now);
                        notes.push(self.note_end(device, ending, Next::After(wait)));
                    }
                    if self.past.failures.failures(device) >= FALLBACK_FAILURES {
                        self.past.rejected.remove(device);
                    }
                }
                _ => {}
            }
        }
        let is_listed = |id: &String| containers.iter().any(|container| &container.id == id);
        self.counted.retain(is_listed);
        self.past.stopped.retain(is_listed);
        self.past.foreign.retain(is_listed);
        self.past.compared.retain(|id, _| is_listed(id));
        let is_current = |device: &String, hash: &str| matches!(desired.get(device), Some(Desired::Run(spec)) if spec.hash() == hash);
        self.past.rejected.retain(|device, rejected| !desired.contains_key(device) || is_current(device, &rejected.hash));
        notes
    }

    /// Whether a container of this spec, or its predecessor after a fallback, ended by itself and was not counted yet.
    fn is_own_end(&mut self, container: &Container, spec: &Tier2ServiceSpec) -> bool {
        let matches = self.past.matches(container, spec);
        let is_fallback = container.name == spec.name && self.past.rejection(&spec.device, spec.hash()).is_some();
        (matches || is_fallback) && !self.past.stopped.contains(&container.id) && self.counted.insert(container.id.clone())
    }

    /// Detects containers with which somebody else replaced ours: the container that this program started does not
    /// exist any more, no action of ours removed it, and another one that was not created from the desired spec runs.
    fn note_foreign(
        &mut self,
        containers: &[Container],
        desired: &SortedMap<String, Desired>,
        is_busy: impl Fn(&str) -> bool,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        for container in containers.iter().filter(|container| container.state == State::Running) {
            let device = device_of(container);
            let (Some(Desired::Run(spec)), Some(recorder)) = (desired.get(device), self.devices.get(device)) else { continue };
            let is_gone = |id: &String| !containers.iter().any(|other| &other.id == id);
            let is_other = recorder.own.as_ref().is_some_and(is_gone);
            let differs = !has_hash_of(container, spec);
            if is_other && differs && !is_busy(device) && self.past.foreign.insert(container.id.clone()) {
                notes.push(Note::Foreign { name: container.name.clone(), device: device.to_owned() });
            }
        }
        notes
    }

    /// Counts each container that this program started and somebody else removed as a failed run. Thus whoever replaces
    /// our containers time and again is not answered at once each time, and what replaced them is listed before the next
    /// start.
    fn note_removals(
        &mut self,
        containers: &[Container],
        desired: &SortedMap<String, Desired>,
        is_busy: impl Fn(&str) -> bool,
        now: Instant,
    ) {
        for (device, recorder) in self.devices.iter_mut().filter(|(device, recorder)| !recorder.is_removed && !is_busy(device)) {
            let (Some(Desired::Run(spec)), Some(own)) = (desired.get(device), &recorder.own) else { continue };
            if containers.iter().any(|container| &container.id == own) {
                continue;
            }
            recorder.is_removed = true;
            // An end that was listed before the removal is counted already.
            if !self.counted.contains(own) {
                self.past.failures.failed(device, Attempt::Start(spec.hash()), now);
                recorder.failure = Some("somebody else removed its container".to_owned());
            }
        }
    }

    /// Containers that Podman restarted since the list before. While `exit` may still report the exit code of the run
    /// before, the restart is returned with a later list.
    fn restarts<'a, E>(&mut self, containers: &'a [Container], exit: impl Fn(&str) -> Option<E>, now: Instant) -> Vec<(&'a Container, E)> {
        let mut restarted = Vec::new();
        for container in containers.iter().filter(|container| container.state == State::Running && container.started > 0) {
            let run = (container.started, container.pid);
            let ended = match self.past.runs.get(&container.id) {
                Some(runs) if runs.current == run => continue,
                // An action of ours ended that run, and has started another one.
                Some(_) if self.past.stopped.contains(&container.id) => None,
                Some(runs) => match exit(&container.id) {
                    Some(how) => {
                        restarted.push((container, how));
                        runs.ended
                    }
                    None => continue,
                },
                None => None,
            };
            self.past.runs.insert(container.id.clone(), Runs { current: run, since: now, ended });
        }
        self.past.runs.retain(|id, _| containers.iter().any(|container| &container.id == id));
        restarted
    }

    fn note_end(&mut self, device: &str, ending: Ending, next: Next) -> Note {
        let recorder = self.of(device);
        let count = recorder.ended.map_or(0, |(_, count)| count);
        recorder.ended = Some((ending, count + 1));
        recorder.short_runs += 1;
        recorder.failure = Some(ending.to_string());
        Note::Ended { device: device.to_owned(), ending, next }
    }

    /// Handles a plan. Returns adopted containers, and what Recorders wait for. `is_unlisted` returns whether the
    /// outcome of a device's last action is not in a list yet.
    pub fn planned(
        &mut self,
        plan: &Plan,
        containers: &[Container],
        desired: &SortedMap<String, Desired>,
        is_unlisted: impl Fn(&str) -> bool,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        let runs = |id: &String| containers.iter().any(|container| &container.id == id && !container.state.is_over());
        for (device, recorder) in self.devices.iter_mut() {
            recorder.container = recorder.container.take().filter(|id| is_unlisted(device) || runs(id));
        }
        // Where nobody knows whether a Recorder should run, one that does records.
        let is_left = |container: &&Container| {
            container.state == State::Running && matches!(desired.get(device_of(container)), Some(Desired::Keep(_)))
        };
        for container in containers.iter().filter(is_left) {
            let recorder = self.of(device_of(container));
            if recorder.container.is_none() {
                recorder.container = Some(container.id.clone());
                recorder.is_unclear = true;
            }
        }
        for (device, id) in &plan.kept {
            if plan.matching.contains(device) {
                self.past.drifts.forget(device);
                if let Some(Desired::Run(spec)) = desired.get(device) {
                    self.past.cards.extend(spec.card().map(|card| (device.clone(), card)));
                }
            }
            let is_adopted = plan.matching.contains(device);
            let recorder = self.of(device);
            if recorder.container.as_ref() != Some(id) {
                recorder.container = Some(id.clone());
                recorder.is_unclear = true;
            }
            if is_adopted && std::mem::take(&mut recorder.is_unclear) {
                let name = containers.iter().find(|container| &container.id == id).map_or("", |container| &container.name);
                notes.push(Note::Adopted { name: name.to_owned() });
            }
        }
        for (device, hold) in plan.holds.iter().filter(|(device, hold)| self.holds.get(*device) != Some(*hold)) {
            notes.push(Note::Held { device: device.clone(), hold: hold.clone() });
        }
        self.holds.clone_from(&plan.holds);
        let certain = |(device, desired): (&String, &Desired)| match desired {
            Desired::Run(spec) => spec.mismatch.clone().filter(|mismatch| mismatch.is_certain).map(|mismatch| (device.clone(), mismatch)),
            _ => None,
        };
        let mismatches = desired.iter().filter_map(certain).collect();
        let before = std::mem::replace(&mut self.mismatches, mismatches);
        let new = self.mismatches.iter().filter(|(device, mismatch)| before.get(*device) != Some(*mismatch));
        notes.extend(new.map(|(device, mismatch)| Note::Mismatched { device: device.clone(), mismatch: mismatch.clone() }));
        notes
    }

    /// Records that an action begins.
    pub fn begun(&mut self, action: &Action) {
        self.past.stopped.extend(action.ends().map(|container| container.id.clone()));
        let ends = |id: &String| action.ends().any(|container| &container.id == id);
        if let Some(recorder) = self.devices.get_mut(&action.device) {
            recorder.own = recorder.own.take().filter(|id| !ends(id));
        }
    }

    /// Records the result of an action.
    pub fn finished(&mut self, action: &Action, result: Result<Done, Failure>, took: Duration, now: Instant) -> Finished {
        let (device, cause) = (&action.device, action.cause.clone());
        let name = action.spec().map_or_else(String::new, |spec| spec.name.clone());
        match result {
            Ok(Done::Started { id, differences }) => {
                self.record_start(device, id);
                let still_differs = self.note_replacement(action, now);
                let found = if differences.is_empty() { format!("label {CONFIG_HASH}") } else { differences.join(", ") };
                let note = Note::Started { name: name.clone(), took, cause, differences };
                match still_differs {
                    true => Finished::StillDiffers {
                        warning: format!(
                            "{name} differs from the desired configuration right after its creation ({found}); it is replaced less and less often"
                        ),
                        note,
                    },
                    false => Finished::Done(note),
                }
            }
            Ok(Done::FellBack { id, why }) => {
                let why = why.unwrap_or_else(|| cause.to_string());
                if let Some(spec) = action.spec() {
                    self.past.rejected.insert(device.clone(), Rejected { hash: spec.hash().to_owned(), why: why.clone() });
                }
                // The action stopped it before; this is another run.
                self.past.stopped.remove(&id);
                self.past.runs.remove(&id);
                self.record_start(device, id);
                Finished::Done(Note::FellBack { name, why })
            }
            Ok(Done::Renamed) => match &action.task {
                Task::Rename { container, name } => Finished::Done(Note::Renamed { from: container.name.clone(), to: name.clone() }),
                _ => Finished::Dropped("not a rename".to_owned()),
            },
            Ok(Done::Removed) => {
                let gone = |id: &String| action.ends().any(|old| &old.id == id);
                let recorder = self.of(device);
                recorder.container = recorder.container.take().filter(|id| !gone(id));
                Finished::Done(Note::Removed { names: action.ends().map(|old| old.name.clone()).collect(), took, cause })
            }
            Err(Failure::Stopping) => Finished::Dropped("the Controller stops".to_owned()),
            Err(Failure::Outdated(why)) => Finished::Dropped(why),
            Err(failure @ (Failure::Prerequisite(_) | Failure::Orphaned(_) | Failure::Other(_))) => {
                let attempt = action.spec().map_or(Attempt::Stop, |spec| Attempt::Start(spec.hash()));
                let why = match failure {
                    Failure::Prerequisite(why) => {
                        let every = self.past.failures.prerequisite_missing(device, attempt, now);
                        format!("{why}; retried every {} s", every.as_secs())
                    }
                    Failure::Other(why) | Failure::Orphaned(why) | Failure::Outdated(why) => {
                        self.past.failures.failed(device, attempt, now);
                        why
                    }
                    Failure::Stopping => String::new(),
                };
                self.of(device).failure = Some(why.clone());
                Finished::Failed(why)
            }
        }
    }

    fn record_start(&mut self, device: &str, id: String) {
        let recorder = self.of(device);
        recorder.own = Some(id.clone());
        recorder.is_removed = false;
        recorder.container = Some(id);
        recorder.is_unclear = false;
        recorder.failure = None;
    }

    /// Counts a replacement. Returns whether an earlier one did not produce the desired configuration.
    fn note_replacement(&mut self, action: &Action, now: Instant) -> bool {
        let (Task::Replace { spec, .. }, Cause::Drift) = (&action.task, &action.cause) else { return false };
        self.past.drifts.failed(&action.device, Attempt::Start(spec.hash()), now);
        self.past.drifts.failures(&action.device) > 1
    }

    /// What each Recorder waits for, with the last failure.
    #[must_use]
    pub fn holds(&self) -> SortedMap<String, String> {
        let text = |(device, hold): (&String, &Hold)| {
            let failure = self.devices.get(device).and_then(|recorder| recorder.failure.as_ref());
            let text = match (hold, failure) {
                (Hold::BackOff { .. }, Some(failure)) => format!("{hold}: {failure}"),
                _ => hold.to_string(),
            };
            (device.clone(), text)
        };
        self.holds.iter().map(text).collect()
    }

    /// What does not fit between the cards of desired Recorders and their profiles. Not a fault: what comes of it is.
    pub fn mismatches(&self) -> impl Iterator<Item = String> {
        self.mismatches.iter().map(|(device, mismatch)| format!("{device}: {mismatch}"))
    }

    /// How many Recorders run, and the faults of others.
    #[must_use]
    pub fn summary(&self) -> (usize, Vec<String>) {
        let faults = self.holds.iter().filter(|(_, hold)| hold.is_fault()).map(|(device, hold)| format!("{device}: {hold}"));
        let short = self.devices.iter().filter_map(|(device, recorder)| {
            let (ending, _) = recorder.ended.filter(|_| recorder.short_runs > SHORT_RUNS)?;
            Some(format!("{device}: {} runs in a row lasted less than {} s; the last one {ending}", recorder.short_runs, STEADY.as_secs()))
        });
        (self.running().count(), faults.chain(short).collect())
    }

    /// How the last run of each device ended, and how many runs ended, for the heartbeat.
    #[must_use]
    pub fn ends(&self) -> Map<String, Value> {
        let ended = |(device, recorder): (&String, &Recorder)| {
            let (ending, count) = recorder.ended?;
            Some((device.clone(), json!({"last": ending.to_string(), "count": count})))
        };
        by_insertion(self.devices.iter().filter_map(ended))
    }

    fn of(&mut self, device: &str) -> &mut Recorder {
        self.devices.entry(device.to_owned()).or_default()
    }
}

fn device_of(container: &Container) -> &str {
    container.labels.get(DEVICE_ID).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::plan::tests::{Scene, scene};

    #[test]
    fn an_end_is_counted_once_and_only_if_no_action_caused_it() {
        let mut scene = scene("a:run", "a:exited");
        let mut recorders = Recorders::default();
        let ends = |recorders: &mut Recorders, scene: &Scene, busy: bool| {
            recorders.observe(&scene.containers, &scene.desired, |_| busy, |_| None, scene.now).len()
        };
        assert_eq!(ends(&mut recorders, &scene, true), 0);
        assert_eq!(ends(&mut recorders, &scene, false), 1);
        assert_eq!(ends(&mut recorders, &scene, false), 0);
        scene.containers[0].id = "another".to_owned();
        assert_eq!(ends(&mut recorders, &scene, false), 1);
        scene.containers[0].id = "stopped by us".to_owned();
        recorders.past.stopped.insert("stopped by us".to_owned());
        assert_eq!(ends(&mut recorders, &scene, false), 0);
        scene.containers[0].id = "before the reboot".to_owned();
        scene.containers[0].is_interrupted = true;
        assert_eq!(ends(&mut recorders, &scene, false), 0);
        scene.past.failures = recorders.past.failures;
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn another_run_of_the_same_container_is_reported_once() {
        let mut scene = scene("a:run b:run", "a:running b:created");
        let mut recorders = Recorders::default();
        let exit = std::cell::Cell::new(Some(7));
        let mut reported = |scene: &mut Scene, started: [u64; 2]| {
            scene.containers.iter_mut().zip(started).for_each(|(container, started)| container.started = started);
            let ended = recorders.restarts(&scene.containers, |_| exit.get(), scene.now);
            ended.iter().map(|(container, how)| format!("{} {how}", device_of(container))).collect::<String>()
        };
        assert_eq!(reported(&mut scene, [1, 0]), "");
        assert_eq!(reported(&mut scene, [1, 0]), "");
        assert_eq!(reported(&mut scene, [2, 0]), "a 7");
        assert_eq!(reported(&mut scene, [2, 0]), "");
        scene.containers[0].pid = 7;
        assert_eq!(reported(&mut scene, [2, 0]), "a 7");
        scene.containers[1].state = State::Running;
        assert_eq!(reported(&mut scene, [2, 3]), "");
        // Between two runs it does not run; a restart is detected only when it runs again.
        scene.containers[1].state = State::Stopped;
        assert_eq!(reported(&mut scene, [2, 3]), "");
        scene.containers[1].state = State::Running;
        exit.set(None);
        assert_eq!(reported(&mut scene, [2, 4]), "");
        exit.set(Some(8));
        assert_eq!(reported(&mut scene, [2, 4]), "b 8");
        scene.containers[0].id = "another".to_owned();
        assert_eq!(reported(&mut scene, [5, 4]), "");
    }

    #[test]
    fn a_predecessor_that_an_action_started_again_did_not_end_by_itself() {
        let mut scene = scene("a:run", "a:running");
        let mut recorders = Recorders::default();
        scene.containers[0].started = 1;
        recorders.restarts(&scene.containers, |_| Some(0), scene.now);
        recorders.past.stopped.insert("c0".to_owned());
        scene.containers[0].started = 2;
        assert!(recorders.restarts(&scene.containers, |_| Some(0), scene.now).is_empty());
    }

    #[test]
    fn a_failure_explains_the_wait_that_follows_it() {
        let mut scene = scene("a:run", "a:exited");
        let mut recorders = Recorders::default();
        for id in ["c0", "c1", "c2"] {
            scene.containers[0].id = id.to_owned();
            recorders.observe(&scene.containers, &scene.desired, |_| false, |_| None, scene.now);
        }
        scene.past.failures = std::mem::take(&mut recorders.past).failures;
        let notes = recorders.planned(&scene.plan(), &scene.containers, &scene.desired, |_| false);
        assert_eq!(notes.len(), 1);
        assert_eq!(recorders.holds()["a"], "back-off until 1970-01-01T00:00:02Z after 3 failures: ended with code 1");
        assert_eq!(recorders.summary(), (0, vec!["a: back-off until 1970-01-01T00:00:02Z after 3 failures".to_owned()]));
        assert_eq!(recorders.ends()["a"], json!({"last": "ended with code 1", "count": 3}));
    }

    #[test]
    fn runs_that_end_again_and_again_are_a_fault_until_one_is_steady() {
        let mut scene = scene("a:run", "a:running");
        let mut recorders = Recorders::default();
        let mut observe = |scene: &Scene| {
            recorders.observe(&scene.containers, &scene.desired, |_| false, |_| Some(Some(3)), scene.now);
            recorders.summary().1
        };
        for run in 1..=8 {
            scene.containers[0].started = run;
            scene.now += Duration::from_secs(3);
            let faults = observe(&scene);
            match run {
                // The first list shows no end yet.
                ..=6 => assert!(faults.is_empty(), "{faults:?}"),
                _ => assert_eq!(faults, [format!("a: {} runs in a row lasted less than 60 s; the last one ended with code 3", run - 1)]),
            }
        }
        scene.now += STEADY;
        assert!(observe(&scene).is_empty());
    }

    #[test]
    fn a_container_is_adopted_when_it_is_known_to_be_as_desired() {
        let mut scene = scene("a:run", "a:running?");
        let mut recorders = Recorders::default();
        let planned = |recorders: &mut Recorders, scene: &Scene| {
            let notes = recorders.planned(&scene.plan(), &scene.containers, &scene.desired, |_| false);
            notes.iter().filter(|note| matches!(note, Note::Adopted { .. })).count()
        };
        assert_eq!((planned(&mut recorders, &scene), recorders.running().count()), (0, 1));
        let Desired::Run(spec) = &scene.desired["a"] else { unreachable!() };
        recorders.compared("c0".to_owned(), spec, Vec::new());
        scene.past.compared = recorders.past.compared.clone();
        assert_eq!(planned(&mut recorders, &scene), 1);
        assert_eq!(planned(&mut recorders, &scene), 0);
    }

    #[test]
    fn a_recorder_is_known_to_run_also_where_nobody_knows_whether_it_should() {
        let mut scene = scene("a:keep b:keep", "a:running a:exited-old b:exited c:running");
        let mut recorders = Recorders::default();
        let mut planned = |scene: &Scene| {
            let notes = recorders.planned(&scene.plan(), &scene.containers, &scene.desired, |_| false);
            (notes.len(), recorders.running().map(|(device, id)| format!("{device} {id}")).collect::<Vec<_>>())
        };
        assert_eq!(planned(&scene), (0, vec!["a c0".to_owned()]));
        // It is adopted when it is known to be as desired.
        scene.desired = self::scene("a:run", "").desired;
        assert_eq!(planned(&scene), (1, vec!["a c0".to_owned()]));
        scene.containers.clear();
        assert_eq!(planned(&scene).1, Vec::<String>::new());
    }

    #[test]
    fn a_container_that_somebody_else_removes_again_and_again_is_started_less_and_less_often() {
        let mut scene = scene("a:run", "a:running");
        let mut recorders = Recorders::default();
        let running = scene.containers.clone();
        let remove = |recorders: &mut Recorders, scene: &mut Scene, last: &[Container]| {
            recorders.record_start("a", "c0".to_owned());
            for containers in [&running[..], last, &[], &[]] {
                recorders.observe(containers, &scene.desired, |_| false, |_| None, scene.now);
            }
            scene.containers.clear();
            scene.past.failures = std::mem::take(&mut recorders.past.failures);
            let actions = scene.actions();
            recorders.past.failures = std::mem::take(&mut scene.past.failures);
            actions
        };
        assert_eq!(remove(&mut recorders, &mut scene, &running), "start a");
        assert_eq!(remove(&mut recorders, &mut scene, &running), "");
        assert_eq!(recorders.past.failures.wait("a", Attempt::Start(""), scene.now), None);
        assert_eq!(recorders.devices["a"].failure.as_deref(), Some("somebody else removed its container"));
        // An end that is listed before the removal counts once.
        let mut ended = running.clone();
        ended[0].state = State::Exited;
        recorders.reconnected("a");
        assert_eq!(remove(&mut recorders, &mut scene, &ended), "start a");
    }

    #[test]
    fn a_container_with_which_somebody_else_replaced_ours_is_left_running() {
        let mut scene = scene("a:run", "a:running");
        let mut recorders = Recorders::default();
        let observe = |recorders: &mut Recorders, scene: &Scene| {
            recorders.observe(&scene.containers, &scene.desired, |_| false, |_| None, scene.now).len()
        };
        recorders.record_start("a", "c0".to_owned());
        assert_eq!(observe(&mut recorders, &scene), 0);
        scene.containers[0].id = "theirs".to_owned();
        scene.containers[0].labels.insert(CONFIG_HASH.to_owned(), "theirs".to_owned());
        assert_eq!(observe(&mut recorders, &scene), 1);
        assert_eq!(observe(&mut recorders, &scene), 0);
        scene.past = recorders.past;
        assert_eq!((scene.actions().as_str(), &scene.plan().holds["a"]), ("", &Hold::Foreign));
    }
}
