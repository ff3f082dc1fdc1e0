//! What the Controller would do with the containers that the Python Controller left on this station; for `check`.

use crate::cli::devices::first_plan;
use crate::config::Config;
use crate::config_folder::ConfigFolder;
use crate::containers::lister::{is_recorder, tier2};
use crate::decide::action::{Cause, Task};
use crate::decide::container::{Container, State};
use crate::decide::desired::{Desired, SpecCache, desired};
use crate::decide::past::Past;
use crate::decide::plan::Plan;
use crate::decide::presence::Presences;
use crate::decide::registry::Registry;
use crate::decide::spec::{CONFIG_HASH, DEVICE_ID};
use crate::decide::workers;
use crate::podman::client::Podman;
use crate::sorted_map::SortedMap;
use crate::text::shown;

/// Where its Compose file mounts the Recorder folder.
pub(super) const RECORDER_FOLDER: &str = "/app/recorder-workspace";

/// What happens to a Recorder or worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It continues.
    Stays(String),
    /// It is interrupted.
    Ends(String),
}

/// The fate of each running Recorder and worker that another program created with our owner label, by container name.
///
/// # Errors
/// Why Podman cannot be asked.
pub(super) fn fates(config: &Config, registry: &Registry, presences: &Presences) -> Result<Vec<(String, Fate)>, String> {
    let podman = Podman::new(config.socket.clone());
    let containers = tier2(&podman, &config.recorder.owner).map_err(|error| error.to_string())?;
    let (recorders, others): (Vec<Container>, Vec<Container>) = containers.into_iter().partition(is_recorder);
    let wanted = desired(registry, true, presences, &mut SpecCache::new(config.recorder.clone()));
    let (plan, past) = first_plan(&podman, &recorders, &wanted, true, registry.system.max_recorders);
    let mut fates = all(&recorders, &wanted, &plan, &past);
    fates.extend(of_workers(config, registry, &podman, others));
    Ok(fates)
}

fn of_workers(config: &Config, registry: &Registry, podman: &Podman, mut containers: Vec<Container>) -> Vec<(String, Fate)> {
    let declared = ConfigFolder::new(config.config_dir.clone()).read_workers().map(|(workers, _)| workers).unwrap_or_default();
    let specs = workers::specs(&config.workers, &declared);
    containers.retain(|container| workers::is_declared(&specs, container));
    let mut seeded = Registry::default();
    seeded.services.clone_from(&registry.services);
    for worker in declared {
        // A row that is absent is seeded first.
        seeded.services.entry(worker.name).or_insert(Ok(worker.enabled));
    }
    let wanted = workers::desired(&specs, &seeded, true, None);
    let (plan, past) = first_plan(podman, &containers, &wanted, false, Some(usize::MAX));
    all(&containers, &wanted, &plan, &past)
}

fn all(containers: &[Container], desired: &SortedMap<String, Desired>, plan: &Plan, past: &Past) -> Vec<(String, Fate)> {
    let theirs = containers.iter().filter(|container| container.state == State::Running && !is_ours(container));
    theirs.map(|container| (shown(&container.name).to_string(), one(container, desired, plan, past))).collect()
}

/// The Python Controller writes a hash of twelve digits, or none.
fn is_ours(container: &Container) -> bool {
    container.labels.get(CONFIG_HASH).is_some_and(|hash| hash.len() == 16)
}

fn one(container: &Container, desired: &SortedMap<String, Desired>, plan: &Plan, past: &Past) -> Fate {
    let device = container.labels.get(DEVICE_ID).map(String::as_str).unwrap_or_default();
    let stops = |task: &Task| matches!(task, Task::Remove(removed) if removed.iter().any(|old| old.id == container.id));
    match plan.actions.iter().find(|action| stops(&action.task)).map(|action| &action.cause) {
        Some(Cause::NoRow) => return Fate::Ends(format!("will be stopped: its microphone {} is not in the database", shown(device))),
        Some(cause) => return Fate::Ends(format!("will be stopped: {cause}")),
        None => {}
    }
    let differences = match desired.get(device) {
        Some(Desired::Run(spec)) => past.differences(container, spec),
        Some(Desired::Keep(why)) => return Fate::Stays(format!("is left running: {why}")),
        _ => None,
    };
    match (differences, plan.holds.get(device)) {
        (Some([]), _) => Fate::Stays("is as this Controller would create it".to_owned()),
        (Some(differences), _) => Fate::Ends(format!("will be replaced, after its successor was created: {}", differences.join(", "))),
        (None, Some(hold)) => Fate::Stays(format!("is left running: {hold}")),
        (None, None) => Fate::Stays("is left running".to_owned()),
    }
}
