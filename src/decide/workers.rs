//! The desired state of each worker, and why.
//!
//! | row in `managed_services`   | state                                                              |
//! | --------------------------- | ------------------------------------------------------------------ |
//! | enabled                     | run, or stop while the host is short of memory or disk             |
//! | disabled                    | stop; keep while the database does not respond                     |
//! | absent, invalid, not read   | keep: a running worker continues, and none is started              |
//!
//! Only declared workers have a state. Containers of other services are not touched until the Controller stops.

use crate::sorted_map::SortedMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::collect::by_insertion;
use crate::decide::container::{Container, State};
use crate::decide::desired::{Desired, KeepReason, StopReason};
use crate::decide::pressure::Shortage;
use crate::decide::registry::Registry;
use crate::decide::spec::{DEVICE_ID, SERVICE, Tier2ServiceSpec};
use crate::decide::worker::{Worker, WorkerSettings};

/// The spec of each declared worker, by name.
pub type WorkerSpecs = SortedMap<String, Arc<Tier2ServiceSpec>>;

/// The specs of these workers.
#[must_use]
pub fn specs(settings: &WorkerSettings, workers: &[Worker]) -> WorkerSpecs {
    workers.iter().map(|worker| (worker.name.clone(), Arc::new(Tier2ServiceSpec::worker(settings, worker)))).collect()
}

/// The desired state of all declared workers.
#[must_use]
pub fn desired(specs: &WorkerSpecs, registry: &Registry, database_known: bool, shortage: Option<Shortage>) -> SortedMap<String, Desired> {
    let one = |(name, spec): (&String, &Arc<Tier2ServiceSpec>)| {
        let desired = match (registry.services.get(name), shortage) {
            (None, _) => Desired::Keep(KeepReason::NoRow),
            (Some(Err(why)), _) => Desired::Keep(KeepReason::InvalidRow(why.clone())),
            (Some(Ok(false)), _) if database_known => Desired::Stop(StopReason::Disabled),
            (Some(Ok(false)), _) => Desired::Keep(KeepReason::DatabaseUnavailable(StopReason::Disabled)),
            (Some(Ok(true)), Some(shortage)) => Desired::Stop(StopReason::Shortage(shortage)),
            (Some(Ok(true)), None) => Desired::Run(Arc::clone(spec)),
        };
        (name.clone(), desired)
    };
    specs.iter().map(one).collect()
}

/// Whether a container belongs to a declared worker.
#[must_use]
pub fn is_declared(specs: &WorkerSpecs, container: &Container) -> bool {
    let label = |name: &str| container.labels.get(name);
    label(SERVICE).is_some_and(|service| specs.contains_key(service)) && label(SERVICE) == label(DEVICE_ID)
}

/// For the heartbeat: each worker with `enabled` of its row, whether it runs, and why or why not.
#[must_use]
pub fn reasons(
    desired: &SortedMap<String, Desired>,
    registry: Option<&Registry>,
    holds: &SortedMap<String, String>,
    containers: Result<&[Container], &str>,
) -> Map<String, Value> {
    let one = |(name, desired): (&String, &Desired)| {
        let enabled = registry.and_then(|registry| registry.services.get(name)?.as_ref().ok());
        let is_own = |container: &&Container| container.labels.get(DEVICE_ID) == Some(name) && container.labels.get(SERVICE) == Some(name);
        let running = containers.map(|containers| containers.iter().filter(is_own).any(|container| container.state == State::Running));
        let text = match (desired, holds.get(name), running) {
            (Desired::Keep(reason), ..) => reason.to_string(),
            (Desired::Stop(reason), ..) => reason.to_string(),
            (Desired::Run(_), Some(hold), _) => hold.clone(),
            (Desired::Run(_), None, Err(why)) => format!("unknown: {why}"),
            (Desired::Run(_), None, Ok(true)) => "running".to_owned(),
            (Desired::Run(_), None, Ok(false)) => "starting, after the Recorders".to_owned(),
        };
        (name.clone(), json!({ "enabled": enabled, "running": running.ok(), "reason": text }))
    };
    by_insertion(desired.iter().map(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::registry::Row;
    use crate::decide::spec::tests::{worker, worker_settings};

    fn registry(body: Option<&str>) -> Registry {
        let row = |body: &str| Row { kind: "service".to_owned(), key: "birdnet".to_owned(), body: Some(body.to_owned()), fault: None };
        Registry::read(&body.map(row).into_iter().collect::<Vec<_>>(), None)
    }

    #[test]
    fn a_row_switches_a_worker_and_what_is_unknown_changes_nothing() {
        let specs = specs(&worker_settings(), &[worker("birdnet")]);
        let state = |body, known, shortage| match &desired(&specs, &registry(body), known, shortage)["birdnet"] {
            Desired::Run(_) => "run".to_owned(),
            Desired::Keep(reason) => format!("keep: {reason}"),
            Desired::Stop(reason) => format!("stop: {reason}"),
        };
        let short = Some(Shortage::Memory(90));
        for (body, known, shortage, expected) in [
            (Some("true"), true, None, "run"),
            (Some("true"), false, None, "run"),
            (Some("false"), true, None, "stop: disabled"),
            (Some("false"), false, None, "keep: disabled, but the database does not respond"),
            (Some("true"), false, short, "stop: the use of the host's memory has reached 90 %"),
            (None, true, short, "keep: it is not in the database yet"),
            (Some("7"), true, None, "keep: its database row is invalid: expected true or false"),
        ] {
            assert_eq!(state(body, known, shortage), expected);
        }
    }
}
