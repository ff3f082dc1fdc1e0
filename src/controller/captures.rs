//! The step "observe", for what is captured: the progress of each Recorder, and the sessions that follow from it.

use std::time::{Instant, SystemTime};

use super::Controller;
use crate::decide::capture::Observation;
use crate::decide::spec::CONFIG_HASH;
use crate::ledger::RecordersAre;

impl Controller {
    /// Requests the next read of the card of each Recorder that runs, and notes what was last read.
    pub(super) fn observe_captures(&mut self, now: Instant) {
        let containers = self.containers.containers().unwrap_or_default();
        let pid = |id: &String| containers.iter().find(|container| container.id == *id).map_or(0, |container| container.pid);
        let running = self.recorders.running().map(|(device, id)| (device.as_str(), (id.as_str(), pid(id))));
        self.hardware.refresh_pcms(running, self.database.registry.as_ref(), now);
        let Some(list) = &self.containers.list else { return };
        let observations = self.recorders.running().filter_map(|(device, id)| {
            let container = list.containers.iter().find(|container| container.id == *id)?;
            let proof = self.hardware.proof_of(device, id);
            let is_holder = container.pid > 0 && proof.is_some_and(|(proof, _)| proof.owner() == Some(container.pid));
            let read = proof.map(|(proof, at)| (&proof.state, proof.pointer(), at));
            let hash = container.labels.get(CONFIG_HASH).map_or("", String::as_str);
            Some(Observation { device, container: id, started: container.started, hash, is_holder, read })
        });
        self.rest = self.rest.and(self.captures.observe(observations, now, SystemTime::now()));
    }

    /// Notes which microphones are recorded. A standby observes nothing: the ledger is that of the Controller that leads.
    pub(super) fn keep_ledger(&mut self, now: Instant) {
        if self.leadership.may_act(now) {
            let are = if self.containers.list.is_some() { RecordersAre::Known } else { RecordersAre::Unknown };
            self.ledger.tick(&self.hardware, &self.recorders, are);
        }
    }
}
