//! Carries out one action: the only code that changes containers.
//!
//! Runs on a short-lived thread an action, so that no slow call of one Recorder delays another. Whatever is left half done
//! is seen in the next list of containers and planned for; nothing here retries.
//!
//! A replacement keeps to this order, so that a crash or a refusal at any step leaves one container that records or can
//! be started again, and never two that run:
//!
//! | step                              | what records | when it fails                                   |
//! | --------------------------------- | ------------ | ----------------------------------------------- |
//! | create `NAME-next`                | the old one  | the old one records on, untouched               |
//! | rename `NAME` to `NAME-old`       | the old one  | likewise                                        |
//! | rename `NAME-next` to `NAME`      | the old one  | the old one gets its name back                  |
//! | stop `NAME-old`                   | nothing      | the next list shows what became of it           |
//! | start `NAME`                      | the new one  | it is removed, and the old one is started again |
//!
//! After the Controller was asked to stop, nothing is started any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::warn;

use crate::decide::action::{Action, Done, Failure, OldContainer, Removal, Task};
use crate::decide::container::Engine;
use crate::decide::plan::old_name;
use crate::decide::spec::{OWNER, SERVICE, Spec};
use crate::logs::forwarder::Drainer;
use crate::podman::client::{Outcome, Podman};
use crate::podman::error::{Error, cause};
use crate::text::shown;

fn next_name(spec: &Spec) -> String {
    format!("{}-next", spec.name)
}

/// What an action needs.
pub struct Executor {
    /// The way to Podman.
    pub podman: Podman,
    /// Reads the last log lines of a container that is about to be removed.
    pub drainer: Drainer,
    /// What kind of engine it is.
    pub engine: Engine,
    /// Recorder folder as this process sees it.
    pub workspace: PathBuf,
    /// Set when the Controller was asked to stop.
    pub is_stopping: Arc<AtomicBool>,
    /// What a Recorder gets to close its files before it is killed.
    pub patience: Duration,
}

impl Executor {
    /// Does what the action says.
    ///
    /// # Errors
    /// [`Failure`].
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
        spec: &Spec,
        created: Option<&OldContainer>,
        remove: &[OldContainer],
        fallback: Option<&OldContainer>,
    ) -> Result<Done, Failure> {
        for old in remove {
            if let Err(failure) = self.remove(old) {
                self.put_aside(old, failure)?;
            }
        }
        let id = match created {
            Some(created) => {
                if created.name != spec.name {
                    self.rename(created, &spec.name)?;
                }
                created.id.clone()
            }
            None => self.create_under_its_name(spec)?,
        };
        match (self.run(spec, &id), fallback) {
            (Ok(()), _) => Ok(Done::Started { id, differences: Vec::new() }),
            (Err(Failure::Other(why)), Some(old)) => self.fall_back(spec, old).map(|id| Done::FellBack { id, why: Some(why) }),
            (Err(failure), _) => Err(failure),
        }
    }

    fn replace(&self, spec: &Spec, created: Option<&OldContainer>, remove: &[OldContainer], old: &OldContainer) -> Result<Done, Failure> {
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
    fn fall_back(&self, spec: &Spec, old: &OldContainer) -> Result<String, Failure> {
        if old.name != spec.name {
            // Without its name it records as well; the next list shows it.
            if let Err(error) = self.podman.rename(&old.id, &spec.name) {
                warn!("{} could not get its name back: {error}", old.name);
            }
        }
        if self.is_stopping() {
            return Err(Failure::Stopping);
        }
        match self.podman.start(&old.id) {
            Ok(Outcome::Done | Outcome::Already) => Ok(old.id.clone()),
            Ok(Outcome::Gone) => Err(Failure::Outdated(format!("{} was removed by somebody before it could start again", old.name))),
            Err(error) => Err(Failure::Other(format!("{} cannot be started again: {error}", spec.name))),
        }
    }

    /// Starts a container that was created. When Podman refuses, the container is removed.
    fn run(&self, spec: &Spec, id: &str) -> Result<(), Failure> {
        let name = &spec.name;
        if self.is_stopping() {
            let _ = self.podman.remove(id, None);
            return Err(Failure::Stopping);
        }
        match self.podman.start(id) {
            Ok(Outcome::Done | Outcome::Already) => Ok(()),
            Ok(Outcome::Gone) => Err(Failure::Outdated(format!("{name} was removed by somebody before it could start"))),
            Err(error @ Error::Refused { .. }) => {
                // Left in place it would hold the name.
                let _ = self.podman.remove(id, None);
                Err(Failure::Other(format!("{name} cannot be started: {error}")))
            }
            // It may run: the next list shows that.
            Err(error) => Err(Failure::Outdated(format!("{name} cannot be started: {error}"))),
        }
    }

    fn rename(&self, container: &OldContainer, name: &str) -> Result<(), Failure> {
        match self.podman.rename(&container.id, name) {
            Ok(Outcome::Gone) => Err(Failure::Outdated(format!("{} is gone", container.name))),
            Ok(Outcome::Done | Outcome::Already) => Ok(()),
            Err(error) => Err(Failure::Other(format!("{} cannot be renamed to {name}: {error}", container.name))),
        }
    }

    /// Asks a container to end, and waits until it has.
    fn stop(&self, old: &OldContainer) -> Result<(), Failure> {
        if old.removal == Removal::Unpause {
            // What is paused cannot hear a signal. One that somebody let go on meanwhile is as well.
            if let Some(error) = self.podman.unpause(&old.id).err().filter(|error| !matches!(error, Error::Refused { .. })) {
                return Err(Failure::Other(format!("{} could not be unpaused: {error}", old.name)));
            }
        }
        match self.podman.stop(&old.id, self.patience) {
            Ok(_) => Ok(()),
            // A container whose conmon died cannot be stopped in order; force still ends it.
            Err(error @ Error::Refused { .. }) => {
                warn!("{} could not be stopped in order and is removed by force: {error}", old.name);
                self.drainer.drain(&old.id, &old.name);
                match self.podman.remove(&old.id, Some(self.patience)) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Failure::Other(format!("{} could not be removed: {error}", old.name))),
                }
            }
            Err(error) => Err(Failure::Other(format!("{} could not be stopped: {error}", old.name))),
        }
    }

    fn remove(&self, old: &OldContainer) -> Result<(), Failure> {
        let patience = match old.removal {
            Removal::Plain => None,
            Removal::Stop | Removal::Unpause => {
                self.stop(old)?;
                Some(self.patience)
            }
            Removal::Force => Some(Duration::ZERO),
        };
        // The log goes with the container.
        self.drainer.drain(&old.id, &old.name);
        match self.podman.remove(&old.id, patience) {
            Ok(_) => Ok(()),
            // Podman's own restart policy was quicker.
            Err(error) if old.removal == Removal::Plain && error.is_cause(cause::WRONG_STATE) => {
                Err(Failure::Outdated(format!("{} could not be removed: {error}", old.name)))
            }
            Err(error) => Err(Failure::Other(format!("{} could not be removed: {error}", old.name))),
        }
    }

    /// A container that has ended and cannot be removed must not keep its microphone from being recorded: it loses its
    /// name, and its removal is tried again later.
    fn put_aside(&self, old: &OldContainer, failure: Failure) -> Result<(), Failure> {
        let (Removal::Plain | Removal::Force, Failure::Other(why)) = (old.removal, &failure) else { return Err(failure) };
        let aside = format!("{}-stuck-{}", old.name.split("-stuck-").next().unwrap_or_default(), &old.id[..old.id.len().min(8)]);
        if old.name != aside {
            if self.podman.rename(&old.id, &aside).is_err() {
                return Err(failure);
            }
            warn!("{why}; it is renamed to {aside}, and its removal is tried again later");
        }
        Ok(())
    }

    /// Creates a container under its own name. Where only a crash of Podman still holds that name, it is created under
    /// another one and renamed, which Podman allows.
    fn create_under_its_name(&self, spec: &Spec) -> Result<String, Failure> {
        match self.create(spec, &spec.name) {
            Err(Failure::Orphaned(_)) => {
                let name = next_name(spec);
                let next = OldContainer { id: self.create(spec, &name)?, name, removal: Removal::Plain };
                self.rename(&next, &spec.name).map(|()| next.id)
            }
            created => created,
        }
    }

    /// Creates a container; one that a crash of Podman left half created under the same name is cleared away.
    fn create(&self, spec: &Spec, name: &str) -> Result<String, Failure> {
        self.make_folder(spec)?;
        if self.is_stopping() {
            return Err(Failure::Stopping);
        }
        let request = spec.create_request(&self.engine, name);
        let mut created = self.podman.create(&request);
        if created.as_ref().is_err_and(|error| error.is_cause(cause::NAME_TAKEN)) && matches!(self.podman.inspect(name), Ok(None)) {
            warn!("{name} was created by half, as when Podman crashes; what is left of it is removed");
            // Without force: a container that somebody creates at this moment is left alone.
            if let Err(error) = self.podman.remove(name, None) {
                return Err(Failure::Other(format!("{name} was created by half and cannot be removed: {error}")));
            }
            created = self.podman.create(&request);
        }
        let created = created.map_err(|error| self.create_failure(spec, name, &error))?;
        for warning in created.warnings.iter().flatten() {
            warn!("{name}: Podman warns: {}", shown(warning));
        }
        Ok(created.id)
    }

    /// Podman refuses a bind whose source is missing, and would make it as the wrong user if it did not.
    fn make_folder(&self, spec: &Spec) -> Result<(), Failure> {
        let folder = self.workspace.join(&spec.folder);
        std::fs::create_dir_all(&folder)
            .map_err(|error| Failure::Lacking(format!("{} cannot be created: workspace folder {}: {error}", spec.name, folder.display())))
    }

    /// How a container differs from what is desired, one phrase a field; nothing if only its label does.
    fn differences(&self, spec: &Spec, old: &OldContainer) -> Vec<String> {
        let Ok(Some(inspect)) = self.podman.inspect(&old.id) else { return Vec::new() };
        spec.differences(&inspect)
    }

    /// The fix where there is one.
    fn create_failure(&self, spec: &Spec, name: &str, error: &Error) -> Failure {
        let what = match name == spec.name {
            true => format!("{name} cannot be created"),
            false => format!("{} is not replaced", spec.name),
        };
        let lacking = |why: String| Failure::Lacking(format!("{what}: {why}"));
        if error.is_cause(cause::NO_IMAGE) {
            return lacking(format!("image {} is not on this machine; build or load it (podman image ls)", spec.image()));
        }
        if error.is_cause(cause::NO_NETWORK) {
            return lacking(format!("network {} does not exist; make it with `podman network create {0}`", spec.network()));
        }
        if error.is_cause(cause::NAME_TAKEN) {
            let inspect = match self.podman.inspect(name) {
                Ok(None) => return Failure::Orphaned(format!("{what}: Podman holds its name for a container that does not exist")),
                inspect => inspect.ok().flatten(),
            };
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
        Failure::Other(format!("{what}: {error}"))
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }
}
