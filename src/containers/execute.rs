//! Carries out one action: the only code that changes containers.
//!
//! Runs on a short-lived thread an action, so that no slow call of one Recorder delays another. Whatever happens half
//! way is seen in the next list of containers and planned for; nothing here retries.

use std::path::Path;
use std::time::Duration;

use log::{info, warn};

use crate::decide::container::Engine;
use crate::decide::plan::{Action, Cause, Failure, OldContainer, Removal};
use crate::decide::spec::{OWNER, SERVICE, Spec};
use crate::logs::follow::Drainer;
use crate::podman::client::{Error, Outcome, Podman, cause};
use crate::text::shown;

/// What a Recorder gets to close its files before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes and starts what the action says; returns the id of the started container.
///
/// # Errors
/// [`Failure`].
pub fn execute(podman: &Podman, drainer: &Drainer, engine: &Engine, workspace: &Path, action: &Action) -> Result<Option<String>, Failure> {
    if let (Some(spec), Some(old)) = (&action.start, action.old.first()) {
        if action.cause == Cause::Drift {
            tell_differences(podman, spec, old);
        }
        if action.old.iter().any(|old| old.removal == Removal::Stop) {
            check_needs(podman, workspace, spec)?;
        }
    }
    for old in &action.old {
        remove(podman, drainer, old)?;
    }
    action.start.as_deref().map(|spec| start(podman, engine, workspace, spec)).transpose()
}

/// Says which fields make a container differ from what is wanted now.
fn tell_differences(podman: &Podman, spec: &Spec, old: &OldContainer) {
    if let Ok(Some(inspect)) = podman.inspect(&old.id) {
        let differences = spec.differences(&inspect);
        if !differences.is_empty() {
            info!("{}: changed since it was created: {}", old.name, differences.join(", "));
        }
    }
}

/// What runs is not stopped for something that cannot be made.
fn check_needs(podman: &Podman, workspace: &Path, spec: &Spec) -> Result<(), Failure> {
    let name = &spec.name;
    make_folder(workspace, spec)?;
    let told = |error: Error| format!("{name} is not replaced: {error}");
    if !podman.image_exists(spec.image()).map_err(told)? {
        return Err(Failure::Lacking(format!("{name} is not replaced: {}", no_image(spec))));
    }
    if !podman.network_exists(spec.network()).map_err(told)? {
        return Err(Failure::Lacking(format!("{name} is not replaced: {}", no_network(spec))));
    }
    Ok(())
}

/// Podman refuses a bind whose source is missing, and would make it as the wrong user if it did not.
fn make_folder(workspace: &Path, spec: &Spec) -> Result<(), Failure> {
    let folder = workspace.join(&spec.folder);
    std::fs::create_dir_all(&folder)
        .map_err(|error| Failure::Lacking(format!("{} cannot be created: workspace folder {}: {error}", spec.name, folder.display())))
}

fn no_image(spec: &Spec) -> String {
    format!("image {} is not on this machine; build or load it (podman image ls)", spec.image())
}

fn no_network(spec: &Spec) -> String {
    format!("network {} does not exist; make it with `podman network create {0}`", spec.network())
}

fn remove(podman: &Podman, drainer: &Drainer, old: &OldContainer) -> Result<(), Failure> {
    if old.removal == Removal::Stop {
        match podman.stop(&old.id, PATIENCE) {
            Ok(Outcome::Gone) => return Ok(()),
            Ok(_) => {}
            // A container whose conmon died cannot be stopped in order; removal with force still ends it.
            Err(error @ Error::Refused { .. }) => warn!("{} could not be stopped in order and is removed by force: {error}", old.name),
            Err(error) => return Err(format!("{} could not be stopped: {error}", old.name).into()),
        }
    }
    // The log goes with the container.
    drainer.drain(&old.id, &old.name);
    let patience = match old.removal {
        Removal::Plain => None,
        Removal::Stop => Some(PATIENCE),
        Removal::Force => Some(Duration::ZERO),
    };
    podman.remove(&old.id, patience).map(|_| ()).map_err(|error| format!("{} could not be removed: {error}", old.name).into())
}

fn start(podman: &Podman, engine: &Engine, workspace: &Path, spec: &Spec) -> Result<String, Failure> {
    let name = &spec.name;
    make_folder(workspace, spec)?;
    let request = spec.create_request(engine);
    let created = podman.create(&request).map_err(|error| create_fault(podman, spec, &error))?;
    for warning in created.warnings.iter().flatten() {
        warn!("{name}: Podman warns: {}", shown(warning));
    }
    match podman.start(&created.id) {
        Ok(Outcome::Done | Outcome::Already) => Ok(created.id),
        Ok(Outcome::Gone) => Err(format!("{name} was removed by somebody before it could start").into()),
        Err(error) => {
            // Left in place it would hold the name. After any other error it may run: the next list tells.
            if matches!(error, Error::Refused { .. }) {
                let _ = podman.remove(&created.id, None);
            }
            Err(format!("{name} cannot be started: {error}").into())
        }
    }
}

/// The cure where there is one.
fn create_fault(podman: &Podman, spec: &Spec, error: &Error) -> Failure {
    let lacking = |what: String| Failure::Lacking(format!("{} cannot be created: {what}", spec.name));
    if error.is_cause(cause::NO_IMAGE) {
        return lacking(no_image(spec));
    }
    if error.is_cause(cause::NO_NETWORK) {
        return lacking(no_network(spec));
    }
    if error.is_cause(cause::NAME_TAKEN) {
        let inspect = podman.inspect(&spec.name).ok().flatten();
        let label = |name: &str| inspect.as_ref().and_then(|inspect| inspect.pointer("/Config/Labels")?.get(name)?.as_str());
        if label(OWNER) == Some(spec.owner()) && label(SERVICE) == Some("recorder") {
            return lacking("a container of that name was made meanwhile".to_owned());
        }
        let owner = label(OWNER).map_or_else(|| "none".to_owned(), |owner| shown(owner).to_string());
        return lacking(format!("a foreign container has that name (owner label: {owner}); rename or remove it"));
    }
    if error.is_cause(cause::NO_FILE) {
        return lacking(format!("{error}; it must exist on the Podman host (SILVASONIC_WORKSPACE_PATH, /dev/snd)"));
    }
    if error.is_cause(cause::NO_SPACE) {
        return lacking(format!("{error}; make room on the disk with Podman's storage"));
    }
    format!("{} cannot be created: {error}", spec.name).into()
}
