//! The `podman` thread: lists our containers when asked, and learns once per connection what engine it talks to.
//!
//! Only reads. A hung Podman blocks this thread for the list's deadline and nobody else.
//!
//! Asking Podman what it is takes 0.2-0.3 s (`info` starts conmon, the OCI runtime and dpkg). What it was at the last
//! start holds while it answers with the same version on a socket of the same owner; a short-lived thread asks when the
//! first Recorders run, and its answer replaces what was remembered. Only the form of a create request depends on it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread;
use std::time::Duration;

use log::{info, warn};

use crate::cache;
use crate::config::Config;
use crate::decide::container::{Container, Engine, State, Version};
use crate::decide::spec::RecorderSettings;
use crate::decide::spec::{OWNER, SERVICE};
use crate::event::Event;
use crate::podman::client::Podman;
use crate::podman::error::Error;

/// The other end of the `podman` thread.
#[derive(Debug)]
pub struct Lister {
    requests: Sender<u64>,
}

impl Lister {
    /// Starts the thread; it connects at the first request.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(podman: Podman, config: &Config, events: SyncSender<Event>) -> std::io::Result<Self> {
        let (requests, inbox) = channel();
        let place = EngineCache {
            podman,
            socket: config.socket.clone(),
            workspace: config.workspace_local.clone(),
            recorder: config.recorder.clone(),
        };
        let worker = ListerThread { place, events, engine: None, check: EngineCheck::Due(false), overdue: false };
        thread::Builder::new().name("podman".to_owned()).stack_size(256 << 10).spawn(move || worker.run(&inbox))?;
        Ok(Self { requests })
    }

    /// Asks for a list; the answer carries `sequence`.
    pub fn ask(&self, sequence: u64) {
        // The thread ends only with the program.
        let _ = self.requests.send(sequence);
    }
}

/// The first Recorders start sooner if Podman does nothing else meanwhile.
const FIRST_STARTS: Duration = Duration::from_secs(5);

/// What the threads here need to know.
#[derive(Clone)]
struct EngineCache {
    podman: Podman,
    socket: PathBuf,
    workspace: PathBuf,
    recorder: RecorderSettings,
}

struct ListerThread {
    place: EngineCache,
    events: SyncSender<Event>,
    engine: Option<Engine>,
    check: EngineCheck,
    /// The last list did not come in time: Podman hangs, or the list is slow.
    overdue: bool,
}

/// The second look at this connection's Podman, which is not waited for.
enum EngineCheck {
    /// Due when the first list is out, and whether the engine is what was remembered.
    Due(bool),
    /// Brings what the engine is if that is not what was remembered.
    UnderWay(Receiver<Engine>),
}

impl ListerThread {
    fn run(mut self, inbox: &Receiver<u64>) {
        while let Ok(sequence) = inbox.recv() {
            let containers = self.list();
            self.overdue = matches!(containers, Err(Error::Timeout(_)));
            // Another Podman may come; one that is merely slow or stumbles stays what it is.
            if matches!(containers, Err(Error::Unreachable(_) | Error::Forbidden(_))) {
                self.engine = None;
            }
            let listed = containers.is_ok();
            let containers = containers.map_err(|error| error.to_string());
            let engine = self.engine.clone();
            if self.events.send(Event::Containers { sequence, containers, engine }).is_err() {
                return;
            }
            if listed {
                self.check();
            }
        }
    }

    fn list(&mut self) -> Result<Vec<Container>, Error> {
        // A hung service is asked briefly, so that its return is not missed for the rest of a list's deadline.
        let version = if self.overdue || self.engine.is_none() { Some(self.place.podman.ping()?) } else { None };
        if let Some(version) = version.filter(|_| self.engine.is_none()) {
            let remembered = self.place.remembered(version);
            self.check = EngineCheck::Due(remembered.is_some());
            let engine = remembered.map_or_else(|| self.place.podman.info(version), Ok)?;
            tell(&engine);
            self.engine = Some(engine);
        }
        if let EngineCheck::UnderWay(answer) = &self.check {
            if let Ok(engine) = answer.try_recv() {
                tell(&engine);
                self.engine = Some(engine);
            }
        }
        let mut containers = recorders(&self.place.podman, &self.place.recorder.owner)?;
        for container in containers.iter_mut().filter(|container| container.state == State::Exited && container.exit_code != 0) {
            // Worth a word in the log, and no reason to do without the list.
            container.out_of_memory = self.place.podman.ran_out_of_memory(&container.id).unwrap_or(false);
        }
        Ok(containers)
    }

    /// Once per connection, when the first list is out: whether all is as remembered and as needed.
    fn check(&mut self) {
        let (EngineCheck::Due(remembered), Some(mut engine)) = (&self.check, self.engine.clone()) else { return };
        let (answer, check) = channel();
        let (place, events, remembered) = (self.place.clone(), self.events.clone(), *remembered);
        let run = move || {
            place.check_needs();
            if remembered {
                thread::sleep(FIRST_STARTS);
                let Ok(found) = place.podman.info(engine.version) else { return };
                if found != engine {
                    // Nobody listens when another Podman has come meanwhile. The next list brings it to the main loop.
                    let _ = answer.send(found.clone());
                    let _ = events.send(Event::Changed);
                }
                engine = found;
            }
            place.remember(&engine);
        };
        if let Err(why) = thread::Builder::new().name("engine".to_owned()).stack_size(256 << 10).spawn(run) {
            warn!("no thread to look at Podman a second time: {why}");
        }
        self.check = EngineCheck::UnderWay(check);
    }
}

impl EngineCache {
    /// What the engine was at the last start, if there is no sign that it is another one now.
    fn remembered(&self, version: Version) -> Option<Engine> {
        let remembered = cache::load_engine(&self.workspace).unwrap_or_else(|why| {
            warn!("what Podman was is ignored: {why}");
            None
        });
        let (engine, owner) = remembered?;
        (engine.version == version && Some(owner) == self.socket_owner()).then_some(engine)
    }

    fn socket_owner(&self) -> Option<u32> {
        fs::metadata(&self.socket).map(|socket| socket.uid()).ok()
    }

    /// Keeps what the engine is for the next start, if that is news.
    fn remember(&self, engine: &Engine) {
        let Some(owner) = self.socket_owner() else { return };
        if cache::load_engine(&self.workspace).ok().flatten().is_some_and(|known| known == (engine.clone(), owner)) {
            return;
        }
        if let Err(why) = cache::save_engine(&self.workspace, engine, owner) {
            warn!("what Podman is cannot be kept for the next start: {why}");
        }
    }

    /// What will be missing at the first start is better known before it.
    fn check_needs(&self) {
        let RecorderSettings { image, network, .. } = &self.recorder;
        if matches!(self.podman.image_exists(image), Ok(false)) {
            warn!("image {image} is not on this machine: no Recorder can start until it is built or loaded");
        }
        if matches!(self.podman.network_exists(network), Ok(false)) {
            warn!("network {network} does not exist: no Recorder can start until `podman network create {network}`");
        }
    }
}

/// Our containers, running or not. Other services of a station carry the same owner label; they are not this program's.
///
/// # Errors
/// Why they are unknown.
pub fn recorders(podman: &Podman, owner: &str) -> Result<Vec<Container>, Error> {
    let mut containers = podman.list(OWNER, owner)?;
    let is = |container: &Container, label: &str, value: &str| container.labels.get(label).is_some_and(|found| found == value);
    containers.retain(|container| is(container, OWNER, owner) && is(container, SERVICE, "recorder"));
    Ok(containers)
}

fn tell(engine: &Engine) {
    let Engine { version, rootless, runtime, cgroups } = engine;
    info!("connected to Podman {version} ({}, {runtime}, cgroups {cgroups})", if *rootless { "rootless" } else { "rootful" });
}
