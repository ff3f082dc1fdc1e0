//! What the Controller would do with the Recorders that the Python Controller left on this station; for `check`.

use crate::config::Config;
use crate::containers::lister::recorders;
use crate::decide::container::{Container, State};
use crate::decide::desired::{Desired, SpecCache, desired};
use crate::decide::presence::Presences;
use crate::decide::registry::Registry;
use crate::decide::spec::{CONFIG_HASH, DEVICE_ID, Tier2ServiceSpec};
use crate::podman::client::Podman;
use crate::text::shown;

/// Where its Compose file mounts the Recorder folder.
pub(super) const RECORDER_FOLDER: &str = "/app/recorder-workspace";

/// What happens to a Recorder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It records on.
    Stays(String),
    /// It is interrupted.
    Ends(String),
}

/// The fate of each running Recorder that another program created with our owner label, by container name.
///
/// # Errors
/// Why Podman cannot be asked.
pub(super) fn fates(config: &Config, registry: &Registry, presences: &Presences) -> Result<Vec<(String, Fate)>, String> {
    let podman = Podman::new(config.socket.clone());
    let containers = recorders(&podman, &config.recorder.owner).map_err(|error| error.to_string())?;
    let desired = desired(registry, true, presences, &mut SpecCache::new(config.recorder.clone()));
    let mut fates = Vec::new();
    for container in containers.iter().filter(|container| container.state == State::Running && !is_ours(container)) {
        let device = container.labels.get(DEVICE_ID).map(String::as_str).unwrap_or_default();
        let fate = match desired.get(device) {
            Some(Desired::Run(spec)) => of_wanted(&podman, container, spec)?,
            Some(Desired::Keep(why)) => Fate::Stays(format!("is left running: {why}")),
            Some(Desired::Stop(why)) => Fate::Ends(format!("will be stopped: {why}")),
            None => Fate::Ends(format!("will be stopped: its microphone {} is not in the database", shown(device))),
        };
        fates.push((shown(&container.name).to_string(), fate));
    }
    Ok(fates)
}

/// The Python Controller writes a hash of twelve digits, or none.
fn is_ours(container: &Container) -> bool {
    container.labels.get(CONFIG_HASH).is_some_and(|hash| hash.len() == 16)
}

fn of_wanted(podman: &Podman, container: &Container, spec: &Tier2ServiceSpec) -> Result<Fate, String> {
    let inspect = podman.inspect(&container.id).map_err(|error| error.to_string())?.unwrap_or_default();
    let differences = spec.differences(&inspect);
    Ok(if differences.is_empty() {
        Fate::Stays("is as this Controller would create it".to_owned())
    } else {
        Fate::Ends(format!("will be replaced, after its successor was created: {}", differences.join(", ")))
    })
}
