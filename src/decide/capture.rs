//! Whether the frames of each microphone arrive, and what is done about a Recorder whose capture stands still.
//!
//! A Recorder whose capture ran and then stands still for the timeout is helped step by step, until frames arrive again:
//!
//! | step           | when                                                 | what                                     |
//! | -------------- | ---------------------------------------------------- | ---------------------------------------- |
//! | 1, 2           | the capture stands still for the timeout             | the Recorder is replaced                 |
//! | 3              | likewise, if the setting allows it                   | the USB device is authorised again       |
//! | all later ones | an hour after the last step                          | the two in turn, or a replacement        |
//!
//! Invariants: nothing is done about a state that is unknown, a capture that runs, a card that another program holds, or a
//! Recorder that has never captured;
//! the time begins anew with each container and after each step. A successor that a step started continues the steps of
//! its predecessor, also if it captures nothing at all; any other new container begins without a history.

use crate::decide::rest::Rest;
use crate::sorted_map::SortedMap;
use std::time::{Duration, Instant, SystemTime};

/// Time between two steps after the first ones.
const HOURLY: Duration = Duration::from_secs(3600);
/// Replacements before another step.
const REPLACEMENTS: u32 = 2;

/// Whether frames arrive, as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PcmState {
    /// No process has opened the card.
    Closed,
    /// It is open; the next read will show whether frames arrive.
    Open,
    /// Frames arrive.
    Running,
    /// It is open, but no frames arrive; with the state that the kernel reports.
    Stalled(String),
    /// Another program than the Recorder has opened it; its name and process.
    Taken(String),
    /// It cannot be read, and why.
    Unknown(String),
}

/// What was last read about the PCM of a running Recorder.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    /// Stable id of the microphone.
    pub device: &'a str,
    /// Id of the container.
    pub container: &'a str,
    /// When its run began, in seconds since 1970.
    pub started: u64,
    /// What the container was created from.
    pub hash: &'a str,
    /// Whether the first process of the container has opened the card.
    pub is_holder: bool,
    /// The state, the pointer of the hardware and the time of the read; `None` = not read yet.
    pub read: Option<(&'a PcmState, Option<u64>, Instant)>,
}

/// Whether a Recorder that runs captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// The kernel cannot be asked, and why.
    Unknown(String),
    /// It was not read yet, or only once.
    Unproven,
    /// This Recorder has not opened its card.
    Unopened,
    /// Another program holds the card; its name and process.
    Taken(String),
    /// Frames arrive.
    Running,
    /// No frames arrive.
    Standing(Standing),
}

/// A capture that stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The state that the kernel reports.
    pub state: String,
    /// Since when, by the wall clock.
    pub since: SystemTime,
    /// Steps that were taken, and when the last one was.
    pub steps: Option<(u32, SystemTime)>,
}

/// What is done about a capture that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The Recorder is replaced.
    Replace,
    /// The USB device is authorised again.
    ResetUsb,
}

/// The captures of all Recorders that run.
#[derive(Debug)]
pub struct Captures {
    /// How long a capture may stand still; zero = for ever.
    timeout: Duration,
    /// Whether USB devices may be authorised again.
    may_reset: bool,
    devices: SortedMap<String, Watch>,
}

#[derive(Debug)]
struct Watch {
    container: String,
    started: u64,
    hash: String,
    /// Whether it runs in the last list.
    runs: bool,
    /// Whether frames arrived from this run, or from the one whose steps it continues.
    captured: bool,
    state: Option<PcmState>,
    /// The pointer, and when it was first read.
    pointer: Option<(Option<u64>, Instant, SystemTime)>,
    /// When it was last read: what nobody has looked at since then is unknown.
    read: Option<Instant>,
    steps: u32,
    last: Option<(Instant, SystemTime)>,
}

impl Captures {
    /// Without observations.
    #[must_use]
    pub fn new(timeout: Duration, may_reset: bool) -> Self {
        Self { timeout, may_reset, devices: SortedMap::new() }
    }

    /// Handles what was last read about each Recorder that runs. Returns whether some capture is in another state.
    pub fn observe<'a>(&mut self, observations: impl Iterator<Item = Observation<'a>>, now: Instant, wall: SystemTime) -> Rest {
        self.devices.values_mut().for_each(|watch| watch.runs = false);
        let (mut is_changed, may_reset) = (false, self.may_reset);
        for observation in observations {
            if !self.devices.contains_key(observation.device) {
                self.devices.insert(observation.device.to_owned(), Watch::new());
            }
            is_changed |= self.devices.get_mut(observation.device).is_some_and(|watch| watch.observe(&observation, may_reset, now, wall));
        }
        for watch in self.devices.values_mut().filter(|watch| !watch.runs) {
            (watch.state, watch.pointer) = (None, None);
        }
        // Steps are remembered while nothing runs, as each one ends a container.
        self.devices.retain(|_, watch| watch.runs || watch.steps > 0);
        let may_be_helped = self.devices.values().any(|watch| watch.runs && watch.captured && watch.stands_still());
        if is_changed || may_be_helped { Rest::Disturbed } else { Rest::Undisturbed }
    }

    /// Forgets the microphones that do not exist any more. The steps of one that is only offline are remembered, as a step
    /// can disconnect it for a while.
    pub fn forget(&mut self, exists: impl Fn(&str) -> bool) {
        self.devices.retain(|device, watch| watch.runs || exists(device));
    }

    /// Whether the Recorder of a microphone captures, if it runs.
    #[must_use]
    pub fn capture(&self, device: &str) -> Option<Capture> {
        self.devices.get(device).filter(|watch| watch.runs).map(Watch::capture)
    }

    /// All Recorders that run.
    pub fn all(&self) -> impl Iterator<Item = (&str, Capture)> {
        self.devices.iter().filter(|(_, watch)| watch.runs).map(|(device, watch)| (device.as_str(), watch.capture()))
    }

    /// The steps that are due, with the containers that they are for and the reasons. [`Captures::taken`] follows when
    /// one is taken.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = (&str, &str, Step, String)> {
        self.devices.iter().filter_map(move |(device, watch)| {
            let step = self.step(watch, now)?;
            let (_, since, _) = watch.pointer?;
            let Capture::Standing(standing) = watch.capture() else { return None };
            let seconds = now.saturating_duration_since(since).as_secs();
            let earlier = if watch.steps == 0 { String::new() } else { format!(", step {} did not help", watch.steps) };
            Some((device.as_str(), watch.container.as_str(), step, format!("no frames for {seconds} s ({}){earlier}", standing.state)))
        })
    }

    fn step(&self, watch: &Watch, now: Instant) -> Option<Step> {
        let (_, since, _) = watch.pointer.filter(|_| watch.runs && watch.captured && watch.stands_still())?;
        let is_early = watch.steps < REPLACEMENTS || watch.steps == REPLACEMENTS && self.may_reset;
        let pause = if is_early { self.timeout } else { self.timeout.max(HOURLY) };
        let is_over = |since: Instant, time| now.saturating_duration_since(since) >= time;
        let stood_still = watch.read?.saturating_duration_since(since);
        let is_due = stood_still >= self.timeout && watch.last.is_none_or(|(last, _)| is_over(last, pause));
        (!self.timeout.is_zero() && is_due).then_some(step_after(watch.steps, self.may_reset))
    }

    /// A step was taken.
    pub fn taken(&mut self, device: &str, now: Instant, wall: SystemTime) {
        if let Some(watch) = self.devices.get_mut(device) {
            watch.steps += 1;
            watch.last = Some((now, wall));
        }
    }
}

/// The step that follows so many others.
fn step_after(steps: u32, may_reset: bool) -> Step {
    match steps.checked_sub(REPLACEMENTS) {
        Some(later) if may_reset && later % 2 == 0 => Step::ResetUsb,
        _ => Step::Replace,
    }
}

impl Watch {
    fn new() -> Self {
        Self {
            container: String::new(),
            started: 0,
            hash: String::new(),
            runs: true,
            captured: false,
            state: None,
            pointer: None,
            read: None,
            steps: 0,
            last: None,
        }
    }

    /// Returns whether this is the first observation of a run, or shows another state than the one before.
    fn observe(&mut self, observation: &Observation<'_>, may_reset: bool, now: Instant, wall: SystemTime) -> bool {
        self.runs = true;
        let mut is_changed = false;
        if self.container != observation.container || self.started != observation.started {
            // After its USB device was authorised again, the card can have another number, and so the Recorder another
            // configuration. Otherwise, a container with another one did not replace the one that stood still.
            let is_reset = self.steps > 0 && step_after(self.steps - 1, may_reset) == Step::ResetUsb;
            if self.steps == 0 || self.hash != observation.hash && !is_reset {
                (self.captured, self.steps, self.last) = (false, 0, None);
            }
            (self.container, self.started) = (observation.container.to_owned(), observation.started);
            self.hash = observation.hash.to_owned();
            (self.state, self.pointer) = (None, None);
            is_changed = true;
        }
        let Some((state, pointer, at)) = observation.read else {
            is_changed |= self.state.is_some();
            (self.state, self.pointer) = (None, None);
            return is_changed;
        };
        self.read = Some(at);
        if self.state.as_ref() != Some(state) {
            self.state = Some(state.clone());
            is_changed = true;
        }
        match state {
            // Nobody knows whether frames arrived meanwhile, or they are those of another program.
            PcmState::Unknown(_) | PcmState::Taken(_) => self.pointer = None,
            _ if self.pointer.is_none_or(|(known, ..)| known != pointer) => {
                let ago = now.saturating_duration_since(at);
                self.pointer = Some((pointer, at, wall.checked_sub(ago).unwrap_or(wall)));
            }
            _ => {}
        }
        // Seen for the first time when it already stood still.
        self.captured |= observation.is_holder && pointer.is_some_and(|frames| frames > 0);
        if *state == PcmState::Running {
            (self.captured, self.steps, self.last) = (true, 0, None);
        }
        is_changed
    }

    fn stands_still(&self) -> bool {
        matches!(self.state, Some(PcmState::Stalled(_) | PcmState::Closed))
    }

    fn capture(&self) -> Capture {
        let standing = |state: &str| {
            let since = self.pointer.map_or(SystemTime::UNIX_EPOCH, |(_, _, since)| since);
            Capture::Standing(Standing { state: state.to_owned(), since, steps: self.last.map(|(_, wall)| (self.steps, wall)) })
        };
        match &self.state {
            None | Some(PcmState::Open) => Capture::Unproven,
            Some(PcmState::Unknown(why)) => Capture::Unknown(why.clone()),
            Some(PcmState::Taken(holder)) => Capture::Taken(holder.clone()),
            Some(PcmState::Running) => Capture::Running,
            Some(PcmState::Closed) if !self.captured => Capture::Unopened,
            Some(PcmState::Closed) => standing("closed"),
            Some(PcmState::Stalled(state)) => standing(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// One microphone whose states are read every five seconds.
    struct Station {
        captures: Captures,
        now: Instant,
        container: u32,
        hash: &'static str,
        is_holder: bool,
        pointer: u64,
    }

    impl Station {
        fn new(may_reset: bool) -> Self {
            Self { captures: Captures::new(TIMEOUT, may_reset), now: Instant::now(), container: 0, hash: "h", is_holder: false, pointer: 0 }
        }

        /// Reads a state: `running`, `standing`, `closed`, `open`, `taken`, `unknown`, `unread`, `gone`. Takes the step
        /// that is due, if any.
        fn read(&mut self, state: &str) -> Option<Step> {
            self.now += Duration::from_secs(5);
            let pcm = match state {
                "running" => PcmState::Running,
                "standing" => PcmState::Stalled("XRUN".to_owned()),
                "closed" => PcmState::Closed,
                "open" => PcmState::Open,
                "taken" => PcmState::Taken("arecord (7)".to_owned()),
                _ => PcmState::Unknown("x".to_owned()),
            };
            self.pointer += u64::from(state == "running");
            let container = self.container.to_string();
            let pointer = (!matches!(state, "closed" | "taken" | "unknown")).then_some(self.pointer);
            let read = (state != "unread").then_some((&pcm, pointer, self.now));
            let observation =
                Observation { device: "a", container: &container, started: 1, hash: self.hash, is_holder: self.is_holder, read };
            self.captures.observe(std::iter::once(observation).filter(|_| state != "gone"), self.now, SystemTime::UNIX_EPOCH);
            let due = self.captures.due(self.now).map(|(_, _, step, _)| step).next();
            if let Some(step) = due {
                self.captures.taken("a", self.now, SystemTime::UNIX_EPOCH);
                if step == Step::Replace {
                    self.container += 1;
                }
            }
            due
        }

        /// Reads the same state for some time. Returns the steps with their seconds.
        fn reads(&mut self, state: &str, seconds: u64) -> Vec<(u64, Step)> {
            let begun = self.now;
            let mut steps = Vec::new();
            while self.now - begun < Duration::from_secs(seconds) {
                if let Some(step) = self.read(state) {
                    steps.push(((self.now - begun).as_secs(), step));
                }
            }
            steps
        }
    }

    #[test]
    fn a_capture_that_stands_still_is_replaced_twice_then_reset_then_helped_every_hour() {
        use Step::{Replace, ResetUsb};
        let mut station = Station::new(true);
        station.reads("running", 20);
        // The last frame was read at the beginning; each new container has its own time.
        let steps = station.reads("standing", 3 * 3600);
        assert_eq!(steps[..4], [(60, Replace), (125, Replace), (190, ResetUsb), (3790, Replace)]);
        assert_eq!(steps.len(), 5);
        let mut station = Station::new(false);
        station.reads("running", 20);
        assert_eq!(station.reads("closed", 2 * 3600), [(65, Replace), (130, Replace), (3730, Replace)]);
    }

    #[test]
    fn another_configuration_begins_anew_unless_it_follows_from_the_reset_of_a_device() {
        use Step::{Replace, ResetUsb};
        for (may_reset, last, after) in [(true, (190, ResetUsb), &[Replace, ResetUsb][..]), (false, (125, Replace), &[])] {
            let mut station = Station::new(may_reset);
            station.reads("running", 20);
            assert_eq!(station.reads("standing", 195).last(), Some(&last));
            station.reads("gone", 5);
            (station.container, station.hash) = (9, "of another card");
            let steps: Vec<Step> = station.reads("standing", 7205).into_iter().map(|(_, step)| step).collect();
            assert_eq!(steps, after);
        }
    }

    #[test]
    fn a_time_without_a_read_does_not_count() {
        let mut station = Station::new(false);
        station.reads("running", 20);
        station.reads("standing", 10);
        // The whole process was stopped meanwhile.
        assert_eq!(station.captures.due(station.now + 10 * TIMEOUT).count(), 0);
        station.now += 10 * TIMEOUT;
        assert_eq!(station.read("running"), None);
    }

    #[test]
    fn frames_end_the_steps() {
        let mut station = Station::new(true);
        station.reads("running", 20);
        assert_eq!(station.reads("standing", 140).len(), 2);
        station.read("open");
        station.reads("running", 10);
        assert_eq!(station.captures.capture("a"), Some(Capture::Running));
        assert_eq!(station.reads("standing", 65), [(60, Step::Replace)]);
    }

    #[test]
    fn nothing_is_done_about_what_never_captured_or_is_unknown() {
        let mut station = Station::new(true);
        for state in ["closed", "standing", "open", "taken", "unknown", "unread"] {
            assert_eq!(station.reads(state, 7200), [], "{state}");
        }
        station.reads("running", 10);
        for state in ["unknown", "unread", "gone", "open", "taken", "running"] {
            assert_eq!(station.reads(state, 7200), [], "{state}");
        }
        // After an unknown time, it may have captured until now.
        station.reads("unknown", 600);
        assert_eq!(station.reads("standing", 60), []);
        // A card that another program held needs time to be opened again.
        station.reads("running", 10);
        station.reads("taken", 600);
        assert_eq!(station.captures.capture("a"), Some(Capture::Taken("arecord (7)".to_owned())));
        assert_eq!(station.reads("closed", 60), []);
        // Another configuration, or a new run, has no history.
        station.container += 1;
        assert_eq!(station.reads("standing", 7200), []);
        let mut never = Station { captures: Captures::new(Duration::ZERO, true), ..Station::new(true) };
        never.reads("running", 10);
        assert_eq!(never.reads("standing", 7200), []);
    }

    #[test]
    fn frames_of_its_own_stream_prove_that_a_recorder_has_captured() {
        let mut station = Station { is_holder: true, ..Station::new(false) };
        assert_eq!(station.reads("standing", 7200), []);
        station.pointer = 4711;
        assert_eq!(station.reads("standing", 70), [(65, Step::Replace)]);
    }

    #[test]
    fn a_recorder_that_has_not_opened_its_card_is_told_as_such() {
        let mut station = Station::new(true);
        station.read("closed");
        assert_eq!(station.captures.capture("a"), Some(Capture::Unopened));
        station.read("running");
        station.read("closed");
        let Some(Capture::Standing(standing)) = station.captures.capture("a") else { panic!("it stands still") };
        assert_eq!(standing.state, "closed");
        station.read("unknown");
        assert_eq!(station.captures.capture("a"), Some(Capture::Unknown("x".to_owned())));
        station.read("gone");
        assert_eq!(station.captures.capture("a"), None);
    }

    proptest! {
        #[test]
        fn a_step_is_for_a_microphone_that_stands_still_itself(
            words in vec((0..4_usize, 0..4_usize, 1..20_usize), 1..30), may_reset in any::<bool>()
        ) {
            let states = [PcmState::Running, PcmState::Stalled("XRUN".to_owned()), PcmState::Closed, PcmState::Unknown(String::new())];
            let (mut captures, mut now, mut pointers) = (Captures::new(TIMEOUT, may_reset), Instant::now(), [0, 0]);
            for (a, b, times) in words {
                for _ in 0..times {
                    now += Duration::from_secs(5);
                    let chosen = [("a", &states[a]), ("b", &states[b])];
                    let observations = chosen.iter().zip(&mut pointers).map(|((device, state), pointer)| {
                        *pointer += u64::from(**state == PcmState::Running);
                        let read = Some((*state, Some(*pointer), now));
                        Observation { device, container: "c", started: 1, hash: "h", is_holder: true, read }
                    });
                    captures.observe(observations, now, SystemTime::UNIX_EPOCH);
                    let due: Vec<String> = captures.due(now).map(|(device, ..)| device.to_owned()).collect();
                    for device in due {
                        let state = chosen.iter().find(|(other, _)| *other == device).unwrap().1;
                        prop_assert!(matches!(state, PcmState::Stalled(_) | PcmState::Closed), "{device}: {state:?}");
                        captures.taken(&device, now, SystemTime::UNIX_EPOCH);
                    }
                }
            }
        }

        #[test]
        fn steps_are_rare_and_for_standing_captures_only(
            words in vec((0..8_usize, 1..40_usize, any::<bool>()), 1..40), may_reset in any::<bool>()
        ) {
            const STATES: [&str; 8] = ["running", "standing", "closed", "open", "taken", "unknown", "unread", "gone"];
            let mut station = Station::new(may_reset);
            // Whether any container captured since the last one that no step started, and when the last step was.
            let (mut captured, mut last, mut standing) = (false, None::<Instant>, 0);
            for (state, times, restarts) in words {
                if restarts && station.captures.devices.get("a").is_none_or(|watch| watch.steps == 0) {
                    station.container += 1;
                    (captured, standing) = (false, 0);
                }
                for _ in 0..times {
                    let state = STATES[state];
                    captured |= state == "running";
                    standing = if matches!(state, "standing" | "closed" | "open") { standing + 1 } else { 0 };
                    if state == "running" {
                        last = None;
                    }
                    let step = station.read(state);
                    let Some(step) = step else { continue };
                    prop_assert!(matches!(state, "standing" | "closed") && captured, "{state}");
                    prop_assert!(standing >= 12, "{standing}");
                    prop_assert!(last.is_none_or(|last| station.now - last >= TIMEOUT));
                    prop_assert!(may_reset || step == Step::Replace);
                    (last, standing) = (Some(station.now), if step == Step::Replace { 0 } else { standing });
                }
            }
        }
    }
}
