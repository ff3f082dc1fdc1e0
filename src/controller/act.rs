//! The step "act": plans from the desired state and the list of containers, starts the actions, and handles their
//! results.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::time::{Duration, Instant, SystemTime};

use log::{debug, info, warn};

use super::Controller;
use super::workers::Turn;
use crate::containers::state::List;
use crate::decide::action::{Action, Cause, Done, Failure};
use crate::decide::capture::{Capture, Step};
use crate::decide::container::Container;
use crate::decide::desired::{Desired, desired, stop_all};
use crate::decide::plan::{Plan, View, plan};
use crate::decide::recorders::{Finished, Note};
use crate::decide::spec::Kind;
use crate::text::shown;

impl Controller {
    /// Makes a plan and starts its actions.
    pub(super) fn act(&mut self) {
        let now = Instant::now();
        self.plans_are_at_rest = false;
        if !self.leadership.may_act(now) {
            return;
        }
        self.database.lead();
        let Some(List { sequence, containers, others }) = self.containers.list.clone() else { return };
        self.actions.listed(sequence);
        let Some((desired, desired_complete)) = self.desired(&containers) else { return };
        let busy = self.actions.busy();
        let exit = |id: &str| self.containers.take_exit_code(id);
        let ended = self.recorders.observe(&containers, &desired, |device| busy.contains(device), exit, now);
        ended.iter().for_each(|note| self.log(note));
        self.help_captures(&desired, &busy, now);
        let plan = plan(&View {
            containers: &containers,
            desired: &desired,
            desired_complete,
            max_recorders: self.database.registry.as_ref().and_then(|registry| registry.system.max_recorders),
            past: self.recorders.past(),
            busy: &busy,
            replacing: self.actions.are_replacing(),
            stuck: &self.containers.stuck(now),
            now,
            wall: SystemTime::now(),
        });
        self.note_plan(&plan, &containers, &desired);
        let is_calm = plan.actions.is_empty() && plan.compare.is_empty();
        self.plans_are_at_rest = plan.is_at_rest(&containers, Kind::Recorder);
        self.containers.compare(plan.compare, now);
        if plan.actions.is_empty() || self.containers.is_fresh(now) {
            plan.actions.into_iter().for_each(|action| self.start(action));
        } else {
            self.containers.request(&self.actions);
        }
        let turn = if is_calm && self.actions.is_empty() { Turn::Workers } else { Turn::Recorders };
        self.act_on_workers(&others, sequence, turn, now);
    }

    /// Takes the steps that are due against captures that stand still. The planner replaces Recorders.
    fn help_captures(&mut self, desired: &SortedMap<String, Desired>, busy: &SortedSet<String>, now: Instant) {
        self.captures.forget(|device| desired.contains_key(device));
        let may_act = |device: &str| matches!(desired.get(device), Some(Desired::Run(_))) && !busy.contains(device);
        let mut stalled = SortedMap::new();
        let mut resets = Vec::new();
        for (device, container, step, why) in self.captures.due(now).filter(|(device, ..)| may_act(device)) {
            match step {
                Step::Replace => drop(stalled.insert(container.to_owned(), why)),
                Step::ResetUsb => resets.push((device.to_owned(), why)),
            }
        }
        let standing = self.captures.all().filter(|(_, capture)| matches!(capture, Capture::Standing(_)));
        self.recorders.set_standing(standing.map(|(device, _)| device.to_owned()).collect(), stalled);
        // One at a time, as devices may share a hub.
        if let Some((device, why)) = resets.pop().filter(|_| self.shutdown.is_none()) {
            let line = match self.hardware.reset_usb(&device) {
                true => format!("microphone {}: {why}; its USB device is authorised again", shown(&device)),
                false => format!("microphone {}: {why}; it has no USB device that could be authorised again", shown(&device)),
            };
            warn!("{line}");
            self.history.add(line);
            self.captures.taken(&device, now, SystemTime::now());
        }
    }

    /// The desired state, and whether it is complete; `None` until the database has responded for the first time.
    fn desired(&mut self, containers: &[Container]) -> Option<(SortedMap<String, Desired>, bool)> {
        if self.shutdown.is_some() {
            return Some((stop_all(containers), true));
        }
        let registry = self.database.registry.as_ref()?;
        let known = self.database.state.is_ok();
        let desired = desired(registry, known, &self.hardware.presences, &mut self.specs);
        // A row that was not read yet is no row that does not exist.
        let has_rows = known && !self.hardware.is_waiting() && self.database.covers(containers);
        Some((desired, has_rows && self.hardware.state.is_ok()))
    }

    /// Logs what is new in a plan: adopted containers, and Recorders over the limit.
    fn note_plan(&mut self, plan: &Plan, containers: &[Container], desired: &SortedMap<String, Desired>) {
        let notes = self.recorders.planned(plan, containers, desired, |device| self.actions.has_unlisted(device));
        notes.iter().for_each(|note| self.log(note));
        for device in plan.over_limit() {
            let line = format!("microphone {device} is not recorded: max_recorders is reached");
            self.rate_limit.warn(&format!("limit {device}"), &line, Instant::now());
        }
        self.rate_limit.retain("limit ", |device| plan.over_limit().any(|other| other == device));
    }

    /// Writes a note to the log and, unless it is only a hold, to the history.
    fn log(&mut self, note: &Note) {
        self.ledger.note(note);
        self.tally.note(note);
        self.log_as(note, note.to_string());
    }

    /// Likewise, with this text.
    pub(super) fn log_as(&mut self, note: &Note, line: String) {
        match note {
            Note::Held { .. } => return debug!("{line}"),
            Note::Mismatched { .. } | Note::Ended { .. } | Note::Foreign { .. } | Note::FellBack { .. } => warn!("{line}"),
            Note::Adopted { .. } | Note::Started { .. } | Note::Renamed { .. } | Note::Removed { .. } => info!("{line}"),
        }
        self.history.add(line);
    }

    /// Starts an action on its own thread.
    fn start(&mut self, action: Action) {
        let Some(engine) = &self.containers.engine else { return };
        if !self.actions.have_room_for(&action) {
            return;
        }
        match self.actions.start(action.clone(), engine, self.logs.drainer()) {
            Ok(()) => {
                self.recorders.begun(&action);
                self.ledger.begun(&action);
                if let Cause::Stalled(why) = &action.cause {
                    warn!("microphone {}: {why}; its Recorder is replaced", shown(&action.device));
                    self.captures.taken(&action.device, Instant::now(), SystemTime::now());
                }
                self.rate_limit.inform("thread", "threads for actions can be started again", Instant::now());
            }
            // The next plan contains it again.
            Err(why) => self.rate_limit.warn("thread", &format!("cannot start a thread for an action; retrying: {why}"), Instant::now()),
        }
    }

    /// Handles the result of an action.
    pub(super) fn finish(&mut self, action: &Action, result: Result<Done, Failure>, took: Duration) {
        let now = Instant::now();
        let topic = format!("action {}", action.device);
        self.actions.ended(&action.device, self.containers.sequence);
        self.ledger.finished(action, &result);
        self.tally.finished(action, &result, took);
        match self.recorders.finished(action, result, took, now) {
            Finished::Done(note) => {
                self.rate_limit.inform(&topic, &format!("microphone {}: works again", shown(&action.device)), now);
                self.log(&note);
            }
            Finished::StillDiffers { note, warning } => {
                self.rate_limit.warn(&topic, &warning, now);
                self.history.add(note.to_string());
            }
            Finished::Failed(why) => {
                self.rate_limit.warn(&topic, &why, now);
                self.history.add(why);
            }
            Finished::Dropped(why) => debug!("microphone {}: {why}", shown(&action.device)),
        }
        // This list shows the outcome; one that was requested before may be older.
        self.containers.request(&self.actions);
    }
}
