//! The part of the step "act" for workers: the same planner with a history and actions of their own.
//!
//! A worker never delays a Recorder: its containers are not counted, its actions begin only when no action for a
//! Recorder is planned or under way, one at a time, and nothing waits for their end.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use log::{debug, info, warn};
use serde_json::{Map, Value};

use super::Controller;
use crate::config::Config;
use crate::containers::actions::Actions;
use crate::decide::action::{Action, Done, Failure, Rank};
use crate::decide::container::Container;
use crate::decide::desired::{Desired, stop_all};
use crate::decide::plan::{View, plan};
use crate::decide::pressure::{Pressure, Usage};
use crate::decide::recorders::{Finished, Note, Recorders};
use crate::decide::rest::Rest;
use crate::decide::spec::Kind;
use crate::decide::worker::{Worker, WorkerSettings};
use crate::decide::workers::{self, WorkerSpecs};
use crate::event::Event;
use crate::podman::client::Podman;

/// For whom actions may begin in this cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something is to be done for a Recorder: a worker may only be stopped.
    Recorders,
    /// Nothing is: workers may start.
    Workers,
}

/// The state of all workers.
pub(super) struct Workers {
    settings: WorkerSettings,
    /// The declarations from which the specs were made.
    declared: Vec<Worker>,
    specs: WorkerSpecs,
    pressure: Pressure,
    pub(super) actions: Actions,
    pub(super) history: Recorders,
    /// The last failure of each worker that was logged.
    told: SortedMap<String, String>,
    /// The state that the last plan was made for.
    desired: SortedMap<String, Desired>,
    /// What the heartbeat says about them, see [`Controller::report_workers`].
    pub(super) report: Map<String, Value>,
}

impl Workers {
    /// None is known yet.
    pub(super) fn new(podman: &Podman, config: &Config, events: &SyncSender<Event>) -> Self {
        Self {
            settings: config.workers.clone(),
            declared: Vec::new(),
            specs: WorkerSpecs::new(),
            pressure: Pressure::new(config.shed),
            actions: Actions::new(Kind::Worker, podman, config, events),
            history: Recorders::of_workers(),
            told: SortedMap::new(),
            desired: SortedMap::new(),
            report: Map::new(),
        }
    }

    /// Handles a measurement of the host. Returns whether other decisions follow from it.
    pub(super) fn measured(&mut self, usage: Usage, now: Instant) -> Rest {
        let before = self.pressure.shortage();
        self.pressure.measured(usage, now);
        match self.pressure.shortage() {
            after if after == before || self.specs.is_empty() => return Rest::Undisturbed,
            Some(shortage) => warn!("{shortage}: workers are stopped; Recorders continue"),
            None => info!("memory and disk suffice again: workers may run"),
        }
        Rest::Disturbed
    }

    /// Begins a shutdown: all containers must end by `deadline`.
    pub(super) fn stop(&mut self, deadline: Instant) {
        self.history.stopping();
        self.actions.stop_starting(deadline);
    }

    fn declare(&mut self, declared: Option<&Vec<Worker>>) {
        if let Some(declared) = declared.filter(|declared| **declared != self.declared) {
            self.declared.clone_from(declared);
            self.specs = workers::specs(&self.settings, declared);
        }
    }
}

impl Controller {
    /// Makes a plan for workers and starts its actions.
    pub(super) fn act_on_workers(&mut self, containers: &[Container], sequence: u64, turn: Turn, now: Instant) {
        self.workers.declare(self.database.workers.as_ref());
        self.workers.actions.listed(sequence);
        let is_stopping = self.shutdown.is_some();
        let Some((desired, containers)) = self.desired_workers(containers) else { return };
        let busy = self.workers.actions.busy();
        let exit = |id: &str| self.containers.take_exit_code(id);
        let ended = self.workers.history.observe(&containers, &desired, |name| busy.contains(name), exit, now);
        ended.iter().for_each(|note| self.log_worker(note));
        let plan = plan(&View {
            containers: &containers,
            desired: &desired,
            desired_complete: is_stopping,
            max_recorders: Some(usize::MAX),
            past: self.workers.history.past(),
            busy: &busy,
            replacing: self.workers.actions.are_replacing(),
            stuck: &if containers.is_empty() { SortedSet::new() } else { self.containers.stuck(now) },
            now,
            wall: SystemTime::now(),
        });
        let actions = &self.workers.actions;
        let notes = self.workers.history.planned(&plan, &containers, &desired, |name| actions.has_unlisted(name));
        notes.iter().for_each(|note| self.log_worker(note));
        self.plans_are_at_rest &= plan.is_at_rest(&containers, Kind::Worker);
        if turn == Turn::Workers {
            self.containers.compare(plan.compare, now);
        }
        let may_begin = |action: &Action| action.rank() == Rank::Stop || (turn == Turn::Workers && !is_stopping);
        let actions: Vec<Action> = plan.actions.into_iter().filter(may_begin).collect();
        if actions.is_empty() || self.containers.is_fresh(now) {
            actions.into_iter().for_each(|action| self.start_worker(action));
        } else {
            self.containers.request(&self.actions);
        }
        self.workers.desired = desired;
    }

    /// Brings what the heartbeat says about workers up to date.
    pub(super) fn report_workers(&mut self) {
        let (registry, holds) = (self.database.registry.as_ref(), self.workers.history.holds());
        self.workers.report = workers::reasons(&self.workers.desired, registry, &holds, self.containers.others());
    }

    /// The desired state, and the containers that it is about. While the Controller stops, these are all that it owns.
    fn desired_workers(&self, containers: &[Container]) -> Option<(SortedMap<String, Desired>, Vec<Container>)> {
        if self.shutdown.is_some() {
            return Some((stop_all(containers), containers.to_vec()));
        }
        let registry = self.database.registry.as_ref()?;
        let specs = &self.workers.specs;
        let desired = workers::desired(specs, registry, self.database.state.is_ok(), self.workers.pressure.shortage());
        Some((desired, containers.iter().filter(|container| workers::is_declared(specs, container)).cloned().collect()))
    }

    fn start_worker(&mut self, action: Action) {
        let Some(engine) = &self.containers.engine else { return };
        if !self.workers.actions.have_room_for(&action) {
            return;
        }
        match self.workers.actions.start(action.clone(), engine, self.logs.drainer()) {
            Ok(()) => self.workers.history.begun(&action),
            // The next plan contains it again.
            Err(why) => self.rate_limit.warn("thread", &format!("cannot start a thread for an action; retrying: {why}"), Instant::now()),
        }
    }

    /// Handles the result of an action. A failure is logged once, until it is another one.
    pub(super) fn finish_worker(&mut self, action: &Action, result: Result<Done, Failure>, took: Duration) {
        let name = &action.device;
        self.workers.actions.ended(name, self.containers.sequence);
        match self.workers.history.finished(action, result, took, Instant::now()) {
            Finished::Done(note) | Finished::StillDiffers { note, .. } => {
                self.workers.told.remove(name);
                self.log_worker(&note);
            }
            Finished::Failed(why) => {
                if self.workers.told.get(name) != Some(&why) {
                    warn!("{why}");
                    self.history.add(why.clone());
                    self.workers.told.insert(name.clone(), why);
                }
            }
            Finished::Dropped(why) => debug!("worker {name}: {why}"),
        }
        // This list shows the outcome; one that was requested before may be older.
        self.containers.request(&self.actions);
    }

    fn log_worker(&mut self, note: &Note) {
        self.log_as(note, note.of_worker());
    }
}
