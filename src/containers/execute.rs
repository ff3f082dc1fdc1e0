//! Carries out one action: the only code that changes containers.
//!
//! Each action runs on its own short-lived thread, so that a slow call for one Recorder does not delay another. Nothing
//! here retries: if an action ends half way, the next list of containers shows it, and the next plan continues there.
//!
//! A replacement follows this order. A crash or an error at any step leaves one container that records or can be
//! started again, and never two that run:
//!
//! | step                              | what records | when it fails                                   |
//! | --------------------------------- | ------------ | ----------------------------------------------- |
//! | create `NAME-next`                | the old one  | the old one continues to record, unchanged      |
//! | rename `NAME` to `NAME-old`       | the old one  | the same                                        |
//! | rename `NAME-next` to `NAME`      | the old one  | the old one gets its name back                  |
//! | stop `NAME-old`                   | nothing      | the next list shows its state                   |
//! | start `NAME`                      | the new one  | it is removed, and the old one is started again |
//!
//! After a shutdown began, no container is started.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::warn;

use crate::containers::folders::Folders;
use crate::decide::action::{Action, Done, Failure, OldContainer, Removal, Task};
use crate::decide::container::Engine;
use crate::decide::plan::old_name;
use crate::decide::spec::{Kind, OWNER, SERVICE, Tier2ServiceSpec};
use crate::logs::forwarder::Drainer;
use crate::podman::client::{Outcome, Podman};
use crate::podman::error::{Error, cause};
use crate::text::shown;

fn next_name(spec: &Tier2ServiceSpec) -> String {
    format!("{}-next", spec.name)
}

/// Carries out actions.
pub struct Executor {
    /// Client for Podman.
    pub podman: Podman,
    /// Reads the last log lines of a container that is about to be removed.
    pub drainer: Drainer,
    /// Podman's version and properties.
    pub engine: Engine,
    /// Creates the workspace folders.
    pub folders: Folders,
    /// Set when a shutdown begins.
    pub is_stopping: Arc<AtomicBool>,
    /// Time for a Recorder to close its files before it is killed.
    pub stop_timeout: Duration,
}

impl Executor {
    /// Carries out an action.
    ///
    /// # Errors
    /// [`Failure`]: what went wrong.
    pub fn execute(&self, action: &Action) -> Result<Done, Failure> {
        match &action.task {
            Task::Start { spec, created, remove, fallback } => self.start(spec, created.as_ref(), remove, fallback.as_ref()),
            Task::Replace { spec, created, remove, old } => self.replace(spec, created.as_ref(), remove, old),
            Task::FallBack { spec, failed, old } => {
                failed.iter().try_for_each(|failed| self.remove(failed))?;
                self.fall_back(spec, old).map(|id| Done::FellBack { id, why: None })
            }
            Task::Rename { container, name } => self.rename(container, name).map(|()| Done::Renamed),
            Task::Remove(old) => old.iter().try_for_each(|old| self.remove(old)).map(|()| Done::Removed),
        }
    }

    fn start(
        &self,
        spec: &Tier2ServiceSpec,
        created: Option<&OldContainer>,
        remove: &[OldContainer],
        fallback: Option<&OldContainer>,
    ) -> Result<Done, Failure> {
        self.make_folder(spec)?;
        for old in remove {
            if let Err(failure) = self.remove(old) {
                self.rename_stuck(old, failure)?;
            }
        }
        let id = match created {
            Some(created) => {
                if created.name != spec.name {
                    self.rename(created, &spec.name)?;
                }
                created.id.clone()
            }
            None => self.create_with_final_name(spec)?,
        };
        match (self.run(spec, &id), fallback) {
            (Ok(()), _) => Ok(Done::Started { id, differences: Vec::new() }),
            (Err(Failure::Other(why)), Some(old)) => self.fall_back(spec, old).map(|id| Done::FellBack { id, why: Some(why) }),
            (Err(failure), _) => Err(failure),
        }
    }

    fn replace(
        &self,
        spec: &Tier2ServiceSpec,
        created: Option<&OldContainer>,
        remove: &[OldContainer],
        old: &OldContainer,
    ) -> Result<Done, Failure> {
        self.make_folder(spec)?;
        let differences = self.differences(spec, old);
        remove.iter().try_for_each(|left| self.remove(left))?;
        let next = match created {
            Some(created) => created.clone(),
            None => {
                let name = next_name(spec);
                let id = self.create(spec, &name)?;
                OldContainer { id, name, removal: Removal::Plain }
            }
        };
        if self.is_stopping() {
            let _ = self.podman.remove(&next.id, None);
            return Err(Failure::Stopping);
        }
        let aside = OldContainer { name: old_name(&spec.name), ..old.clone() };
        if old.name == spec.name {
            self.rename(old, &aside.name)?;
        }
        if next.name != spec.name {
            if let Err(failure) = self.rename(&next, &spec.name) {
                let _ = self.podman.rename(&old.id, &old.name);
                return Err(failure);
            }
        }
        self.stop(&aside)?;
        match self.run(spec, &next.id) {
            Ok(()) => Ok(Done::Started { id: next.id, differences }),
            Err(Failure::Other(why)) => {
                let _ = self.podman.remove(&next.id, None);
                self.fall_back(spec, &aside).map(|id| Done::FellBack { id, why: Some(why) })
            }
            Err(failure) => Err(failure),
        }
    }

    /// Starts the predecessor again.
    fn fall_back(&self, spec: &Tier2ServiceSpec, old: &OldContainer) -> Result<String, Failure> {
        if old.name != spec.name {
            // It records under any name; a later plan renames it.
            if let Err(error) = self.podman.rename(&old.id, &spec.name) {
                warn!("{} cannot be renamed back: {error}", old.name);
            }
        }
        if self.is_stopping() {
            return Err(Failure::Stopping);
        }
        match self.podman.start(&old.id) {
            Ok(Outcome::Done | Outcome::Already) => Ok(old.id.clone()),
            Ok(Outcome::Gone) => Err(Failure::Outdated(format!("{} was removed by somebody else before it could start again", old.name))),
            Err(error) => Err(Failure::Other(format!("{} cannot be started again: {error}", spec.name))),
        }
    }

    /// Starts a created container. If Podman refuses, removes it.
    fn run(&self, spec: &Tier2ServiceSpec, id: &str) -> Result<(), Failure> {
        let name = &spec.name;
        if self.is_stopping() {
            let _ = self.podman.remove(id, None);
            return Err(Failure::Stopping);
        }
        match self.podman.start(id) {
            Ok(Outcome::Done | Outcome::Already) => Ok(()),
            Ok(Outcome::Gone) => Err(Failure::Outdated(format!("{name} was removed by somebody else before it could start"))),
            Err(error @ Error::Refused { .. }) => {
                // Otherwise it would occupy the name.
                let _ = self.podman.remove(id, None);
                Err(Failure::Other(format!("{name} cannot be started: {error}")))
            }
            // Whether it runs is unknown; the next list shows it.
            Err(error) => Err(Failure::Outdated(format!("{name} cannot be started: {error}"))),
        }
    }

    fn rename(&self, container: &OldContainer, name: &str) -> Result<(), Failure> {
        match self.podman.rename(&container.id, name) {
            Ok(Outcome::Gone) => Err(Failure::Outdated(format!("{} does not exist any more", container.name))),
            Ok(Outcome::Done | Outcome::Already) => Ok(()),
            Err(error) => Err(Failure::Other(format!("{} cannot be renamed to {name}: {error}", container.name))),
        }
    }

    /// Stops a container, and waits until it has ended.
    fn stop(&self, old: &OldContainer) -> Result<(), Failure> {
        if old.removal == Removal::Unpause {
            // A paused container receives no signal. A refusal means that somebody resumed it meanwhile, which is fine.
            if let Some(error) = self.podman.unpause(&old.id).err().filter(|error| !matches!(error, Error::Refused { .. })) {
                return Err(Failure::Other(format!("{} cannot be unpaused: {error}", old.name)));
            }
        }
        match self.podman.stop(&old.id, self.stop_timeout) {
            Ok(_) => Ok(()),
            // A container whose conmon died cannot be stopped gracefully; removal with force still ends it.
            Err(error @ Error::Refused { .. }) => {
                warn!("{} did not stop gracefully and is removed with force: {error}", old.name);
                self.drainer.drain(&old.id, &old.name);
                match self.podman.remove(&old.id, Some(self.stop_timeout)) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Failure::Other(format!("{} cannot be removed: {error}", old.name))),
                }
            }
            Err(error) => Err(Failure::Other(format!("{} cannot be stopped: {error}", old.name))),
        }
    }

    fn remove(&self, old: &OldContainer) -> Result<(), Failure> {
        let timeout = match old.removal {
            Removal::Plain => None,
            Removal::Stop | Removal::Unpause => {
                self.stop(old)?;
                Some(self.stop_timeout)
            }
            Removal::Force => Some(Duration::ZERO),
        };
        // The removal deletes the log, too.
        self.drainer.drain(&old.id, &old.name);
        match self.podman.remove(&old.id, timeout) {
            Ok(_) => Ok(()),
            // Podman's restart policy started it first.
            Err(error) if old.removal == Removal::Plain && error.is_cause(cause::WRONG_STATE) => {
                Err(Failure::Outdated(format!("{} cannot be removed: {error}", old.name)))
            }
            Err(error) => Err(Failure::Other(format!("{} cannot be removed: {error}", old.name))),
        }
    }

    /// Renames a container that has ended and cannot be removed, so that its name is free for the next one. Its removal
    /// is retried later.
    fn rename_stuck(&self, old: &OldContainer, failure: Failure) -> Result<(), Failure> {
        let (Removal::Plain | Removal::Force, Failure::Other(why)) = (old.removal, &failure) else { return Err(failure) };
        let aside = format!("{}-stuck-{}", old.name.split("-stuck-").next().unwrap_or_default(), &old.id[..old.id.len().min(8)]);
        if old.name != aside {
            if self.podman.rename(&old.id, &aside).is_err() {
                return Err(failure);
            }
            warn!("{why}; it is renamed to {aside}, and its removal is retried later");
        }
        Ok(())
    }

    /// Creates a container under its final name. After a crash, Podman can reserve that name for a container that does
    /// not exist; then the container is created under another name and renamed, which Podman allows.
    fn create_with_final_name(&self, spec: &Tier2ServiceSpec) -> Result<String, Failure> {
        match self.create(spec, &spec.name) {
            Err(Failure::Orphaned(_)) => {
                let name = next_name(spec);
                let next = OldContainer { id: self.create(spec, &name)?, name, removal: Removal::Plain };
                self.rename(&next, &spec.name).map(|()| next.id)
            }
            created => created,
        }
    }

    /// Creates a container. First removes one of the same name that a crash of Podman left incomplete.
    fn create(&self, spec: &Tier2ServiceSpec, name: &str) -> Result<String, Failure> {
        if self.is_stopping() {
            return Err(Failure::Stopping);
        }
        let request = spec.create_request(&self.engine, name);
        let mut created = self.podman.create(&request);
        if created.as_ref().is_err_and(|error| error.is_cause(cause::NAME_TAKEN)) && matches!(self.podman.inspect(name), Ok(None)) {
            warn!("{name} was created incompletely, as after a crash of Podman; its remains are removed");
            // Without force, so that a container that somebody else starts at this moment is not removed.
            if let Err(error) = self.podman.remove(name, None) {
                return Err(Failure::Other(format!("{name} was created incompletely and cannot be removed: {error}")));
            }
            created = self.podman.create(&request);
        }
        let created = created.map_err(|error| self.create_failure(spec, name, &error))?;
        for warning in created.warnings.iter().flatten() {
            warn!("{name}: warning by Podman: {}", shown(warning));
        }
        Ok(created.id)
    }

    /// Creates the workspace folder: Podman refuses a bind mount whose source is missing, and a folder that Podman
    /// created would have the wrong owner.
    fn make_folder(&self, spec: &Tier2ServiceSpec) -> Result<(), Failure> {
        let Some(folder) = &spec.folder else { return Ok(()) };
        self.folders.make(folder).map_err(|why| Failure::Prerequisite(format!("{} cannot be created: {why}", spec.name)))
    }

    /// How a container differs from the desired configuration, one phrase a field; empty if only its label differs.
    fn differences(&self, spec: &Tier2ServiceSpec, old: &OldContainer) -> Vec<String> {
        let Ok(Some(inspect)) = self.podman.inspect(&old.id) else { return Vec::new() };
        spec.differences(&inspect)
    }

    /// The failure for an error of Podman's create request, with the fix if it is known.
    fn create_failure(&self, spec: &Tier2ServiceSpec, name: &str, error: &Error) -> Failure {
        let what = match name == spec.name {
            true => format!("{name} cannot be created"),
            false => format!("{} is not replaced", spec.name),
        };
        let missing = |why: String| Failure::Prerequisite(format!("{what}: {why}"));
        if error.is_cause(cause::NO_IMAGE) && spec.kind() == Kind::Worker {
            // A station need not have the image of every worker.
            let why = format!("worker {} waits for its image {}: build or load it, or disable the worker", spec.device, spec.image());
            return Failure::Prerequisite(why);
        }
        if error.is_cause(cause::NO_IMAGE) {
            return missing(format!("image {} is not in Podman's local storage; build or load it (podman image ls)", spec.image()));
        }
        if error.is_cause(cause::NO_NETWORK) {
            return missing(format!("network {} does not exist; create it with `podman network create {0}`", spec.network()));
        }
        if error.is_cause(cause::NAME_TAKEN) {
            let inspect = match self.podman.inspect(name) {
                Ok(None) => return Failure::Orphaned(format!("{what}: Podman reserves its name for a container that does not exist")),
                inspect => inspect.ok().flatten(),
            };
            let label = |name: &str| inspect.as_ref().and_then(|inspect| inspect.pointer("/Config/Labels")?.get(name)?.as_str());
            if label(OWNER) == Some(spec.owner()) && label(SERVICE) == Some(spec.service()) {
                return missing("a container of that name was created meanwhile".to_owned());
            }
            let owner = label(OWNER).map_or_else(|| "none".to_owned(), |owner| shown(owner).to_string());
            return missing(format!("a foreign container has that name (owner label: {owner}); rename or remove it"));
        }
        if error.is_cause(cause::NO_FILE) {
            return missing(format!("{error}; it must exist on the Podman host (SILVASONIC_WORKSPACE_PATH, /dev/snd)"));
        }
        if error.is_cause(cause::NO_SPACE) {
            return missing(format!("{error}; free space on the disk with Podman's storage"));
        }
        Failure::Other(format!("{what}: {error}"))
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }
}
