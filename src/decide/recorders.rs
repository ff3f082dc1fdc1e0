//! What is known of each device's Recorder beyond the last list of containers.
//!
//! [`plan`](crate::decide::plan::plan) decides from the present state alone. What it cannot see is kept here: how earlier
//! runs ended, when a failed start may be tried again, which container was last seen to run as desired, and what a
//! Recorder waits for. All of it is lost with the process; a new Controller begins without failures and adopts what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::collect::by_insertion;
use crate::decide::backoff::{Attempt, Backoffs};
use crate::decide::container::{Container, State};
use crate::decide::desired::Desired;
use crate::decide::plan::{Action, Cause, Ending, Failure, Hold, Plan};
use crate::decide::spec::{CONFIG_HASH, DEVICE_ID};
use crate::text::shown;

/// The Recorders of all devices.
#[derive(Debug, Default)]
pub struct Recorders {
    backoffs: Backoffs,
    devices: BTreeMap<String, Recorder>,
    /// Containers whose end was counted, by id.
    ended: BTreeSet<String>,
    /// The present run of each container, by id: the second in which it began, and its process.
    runs: BTreeMap<String, (u64, u32)>,
    holds: BTreeMap<String, Hold>,
}

#[derive(Debug, Default)]
struct Recorder {
    /// The container that runs as desired.
    container: Option<String>,
    /// How the last run ended, and how many runs did.
    ended: Option<(Ending, u32)>,
    /// Why the last run ended or could not be started, while that explains a hold.
    failure: Option<String>,
}

/// Something worth a line in the log.
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
    /// A desired Recorder is not started.
    Held {
        /// Its device.
        device: String,
        /// What it waits for.
        hold: Hold,
    },
    /// An action started a Recorder.
    Started {
        /// Name of the container.
        name: String,
        /// How long that took.
        took: Duration,
        /// Why it was done.
        cause: Cause,
    },
    /// An action removed containers.
    Removed {
        /// Their names.
        names: Vec<String>,
        /// How long that took.
        took: Duration,
        /// Why it was done.
        cause: Cause,
    },
}

/// When a Recorder that ended runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Podman's restart policy started it already.
    Restarted,
    /// This program starts it after so long.
    After(Duration),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { device, ending, next: Next::Restarted } => {
                write!(f, "the Recorder of {} {ending}; Podman has started it again", shown(device))
            }
            Self::Ended { device, ending, next: Next::After(wait) } => {
                write!(f, "the Recorder of {} {ending}; next start in {} s", shown(device), wait.as_secs())
            }
            Self::Adopted { name } => write!(f, "{name} runs as wanted and is adopted"),
            Self::Held { device, hold } => write!(f, "microphone {device} is not started: {hold}"),
            Self::Started { name, took, cause } => write!(f, "{name} started in {:.2} s: {cause}", took.as_secs_f64()),
            Self::Removed { names, took, cause } => {
                write!(f, "{} stopped and removed in {:.2} s: {cause}", names.join(", "), took.as_secs_f64())
            }
        }
    }
}

impl Recorders {
    /// When a failed action may be tried again.
    #[must_use]
    pub fn backoffs(&self) -> &Backoffs {
        &self.backoffs
    }

    /// A microphone was plugged in or out: what failed before says nothing any more.
    pub fn plugged(&mut self, device: &str) {
        self.backoffs.forget(device);
    }

    /// The Controller stops: nothing that failed before may delay a stop.
    pub fn stopping(&mut self) {
        self.backoffs = Backoffs::default();
    }

    /// Devices whose Recorder runs, with the id of its container.
    pub fn running(&self) -> impl Iterator<Item = (&String, &String)> {
        self.devices.iter().filter_map(|(device, recorder)| Some((device, recorder.container.as_ref()?)))
    }

    /// Takes in a list of containers: which runs ended since the last one. `exit` reports with which code the last run of
    /// a container ended, `Some(None)` if nobody will report it, and `None` while that may still come.
    pub fn observe(
        &mut self,
        containers: &[Container],
        desired: &BTreeMap<String, Desired>,
        exit: impl Fn(&str) -> Option<Option<i64>>,
        now: Instant,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        for (container, code) in self.restarts(containers, exit) {
            let ending = code.map_or(Ending::Unknown, Ending::Exit);
            notes.push(self.note_end(device_of(container), ending, Next::Restarted));
        }
        for container in containers {
            let device = device_of(container);
            let Some(Desired::Run(spec)) = desired.get(device) else { continue };
            match container.state {
                State::Running => self.backoffs.running(device, now),
                State::Exited | State::Lost
                    if container.labels.get(CONFIG_HASH).is_some_and(|hash| hash == spec.hash())
                        && self.ended.insert(container.id.clone()) =>
                {
                    let wait = self.backoffs.failed(device, Attempt::Start(spec.hash()), now);
                    notes.push(self.note_end(device, Ending::of(container), Next::After(wait)));
                }
                _ => {}
            }
        }
        self.ended.retain(|id| containers.iter().any(|container| &container.id == id));
        notes
    }

    /// Containers that began another run since the list before: Podman started them again. While `exit` may still report
    /// how the run before ended, the restart is reported with a later list.
    fn restarts<'a, E>(&mut self, containers: &'a [Container], exit: impl Fn(&str) -> Option<E>) -> Vec<(&'a Container, E)> {
        let mut restarted = Vec::new();
        for container in containers.iter().filter(|container| container.state == State::Running && container.started > 0) {
            let run = (container.started, container.pid);
            match self.runs.get(&container.id) {
                Some(before) if *before == run => continue,
                Some(_) => match exit(&container.id) {
                    Some(how) => restarted.push((container, how)),
                    None => continue,
                },
                None => {}
            }
            self.runs.insert(container.id.clone(), run);
        }
        self.runs.retain(|id, _| containers.iter().any(|container| &container.id == id));
        restarted
    }

    fn note_end(&mut self, device: &str, ending: Ending, next: Next) -> Note {
        let recorder = self.of(device);
        let count = recorder.ended.map_or(0, |(_, count)| count);
        recorder.ended = Some((ending, count + 1));
        recorder.failure = Some(ending.to_string());
        Note::Ended { device: device.to_owned(), ending, next }
    }

    /// Takes in a plan: adopted containers, and what Recorders wait for. The outcome of the last action of a device that
    /// `is_settling` is in no list yet.
    pub fn planned(&mut self, plan: &Plan, containers: &[Container], is_settling: impl Fn(&str) -> bool) -> Vec<Note> {
        let mut notes = Vec::new();
        let runs = |id: &String| containers.iter().any(|container| &container.id == id && !container.state.is_over());
        for (device, recorder) in &mut self.devices {
            recorder.container = recorder.container.take().filter(|id| is_settling(device) || runs(id));
        }
        for (device, id) in &plan.kept {
            let recorder = self.of(device);
            if recorder.container.as_ref() != Some(id) {
                recorder.container = Some(id.clone());
                let name = containers.iter().find(|container| &container.id == id).map_or("", |container| &container.name);
                notes.push(Note::Adopted { name: name.to_owned() });
            }
        }
        for (device, hold) in plan.holds.iter().filter(|(device, hold)| self.holds.get(*device) != Some(*hold)) {
            notes.push(Note::Held { device: device.clone(), hold: *hold });
        }
        self.holds.clone_from(&plan.holds);
        notes
    }

    /// Takes in how an action ended.
    ///
    /// # Errors
    /// Why it failed, as a line for the log.
    pub fn finished(
        &mut self,
        action: &Action,
        result: Result<Option<String>, Failure>,
        took: Duration,
        now: Instant,
    ) -> Result<Note, String> {
        let cause = action.cause.clone();
        match (result, &action.start) {
            (Ok(Some(id)), Some(spec)) => {
                let recorder = self.of(&action.device);
                recorder.container = Some(id);
                recorder.failure = None;
                Ok(Note::Started { name: spec.name.clone(), took, cause })
            }
            (Ok(_), _) => {
                let removed = |id: &String| action.old.iter().any(|old| &old.id == id);
                let recorder = self.of(&action.device);
                recorder.container = recorder.container.take().filter(|id| !removed(id));
                Ok(Note::Removed { names: action.old.iter().map(|old| old.name.clone()).collect(), took, cause })
            }
            (Err(failure), start) => {
                let attempt = start.as_ref().map_or(Attempt::Stop, |spec| Attempt::Start(spec.hash()));
                let why = match failure {
                    Failure::Lacking(why) => {
                        let every = self.backoffs.lacking(&action.device, attempt, now);
                        format!("{why}; tried again every {} s", every.as_secs())
                    }
                    Failure::Other(why) => {
                        self.backoffs.failed(&action.device, attempt, now);
                        why
                    }
                };
                self.of(&action.device).failure = Some(why.clone());
                Err(why)
            }
        }
    }

    /// What each desired Recorder that does not run waits for, with the failure behind it.
    #[must_use]
    pub fn holds(&self) -> BTreeMap<String, String> {
        let text = |(device, hold): (&String, &Hold)| {
            let failure = self.devices.get(device).and_then(|recorder| recorder.failure.as_ref());
            let text = match (hold, failure) {
                (Hold::BackOff { .. }, Some(failure)) => format!("{hold}: {failure}"),
                _ => hold.to_string(),
            };
            (device.clone(), text)
        };
        by_insertion(self.holds.iter().map(text))
    }

    /// How many Recorders run, and which desired ones wait. One that was started just now is in no list yet.
    #[must_use]
    pub fn summary(&self) -> (usize, Vec<String>) {
        let runs = |device: &String| self.devices.get(device).is_some_and(|recorder| recorder.container.is_some());
        let waiting = self.holds.iter().filter(|(device, _)| !runs(device)).map(|(device, hold)| format!("{device}: {hold}"));
        (self.running().count(), waiting.collect())
    }

    /// How the last run of each device ended and how many did, for the heartbeat.
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
    use crate::decide::plan::tests::scene;

    #[test]
    fn an_end_is_counted_once() {
        let mut scene = scene("a:run", "a:exited");
        let mut recorders = Recorders::default();
        let mut ends =
            |scene: &mut crate::decide::plan::tests::Scene| recorders.observe(&scene.containers, &scene.desired, |_| None, scene.now).len();
        assert_eq!(ends(&mut scene), 1);
        assert_eq!(ends(&mut scene), 0);
        scene.containers[0].id = "another".to_owned();
        assert_eq!(ends(&mut scene), 1);
        scene.backoffs = recorders.backoffs;
        assert_eq!(scene.actions(), "");
    }

    #[test]
    fn another_run_of_the_same_container_is_reported_once() {
        let mut scene = scene("a:run b:run", "a:running b:created");
        let mut recorders = Recorders::default();
        let exit = std::cell::Cell::new(Some(7));
        let mut reported = |scene: &mut crate::decide::plan::tests::Scene, started: [u64; 2]| {
            scene.containers.iter_mut().zip(started).for_each(|(container, started)| container.started = started);
            let ended = recorders.restarts(&scene.containers, |_| exit.get());
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
        // Between two runs it is not running, which says nothing yet.
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
    fn a_failure_explains_the_wait_that_follows_it() {
        let mut scene = scene("a:run", "a:exited");
        let mut recorders = Recorders::default();
        for id in ["c0", "c1", "c2"] {
            scene.containers[0].id = id.to_owned();
            recorders.observe(&scene.containers, &scene.desired, |_| None, scene.now);
        }
        scene.backoffs = std::mem::take(&mut recorders.backoffs);
        let notes = recorders.planned(&scene.plan(), &scene.containers, |_| false);
        assert_eq!(notes.len(), 1);
        assert_eq!(recorders.holds()["a"], "back-off until 1970-01-01T00:00:02Z after 3 failures: ended with code 1");
        assert_eq!(recorders.summary(), (0, vec!["a: back-off until 1970-01-01T00:00:02Z after 3 failures".to_owned()]));
        assert_eq!(recorders.ends()["a"], json!({"last": "ended with code 1", "count": 3}));
    }
}
