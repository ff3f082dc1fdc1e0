//! The `podman` thread: lists our containers when asked, and learns once per connection what engine it talks to.
//!
//! Only reads. A hung Podman blocks this thread for the list's deadline and nobody else.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread;

use log::{info, warn};

use crate::config::Recorder;
use crate::controller::Event;
use crate::podman::{Container, Engine, Error, Podman};
use crate::spec::{OWNER, SERVICE};

/// The other end of the `podman` thread.
#[derive(Debug)]
pub struct Inventory {
    requests: Sender<u64>,
}

impl Inventory {
    /// Starts the thread; it connects at the first request.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(podman: Podman, recorder: Recorder, events: SyncSender<Event>) -> std::io::Result<Self> {
        let (requests, inbox) = channel();
        let worker = Worker { podman, recorder, events, engine: None, overdue: false };
        thread::Builder::new().name("podman".to_owned()).stack_size(256 << 10).spawn(move || worker.run(&inbox))?;
        Ok(Self { requests })
    }

    /// Asks for a list; the answer carries `sequence`.
    pub fn ask(&self, sequence: u64) {
        // The thread ends only with the program.
        let _ = self.requests.send(sequence);
    }
}

struct Worker {
    podman: Podman,
    recorder: Recorder,
    events: SyncSender<Event>,
    engine: Option<Engine>,
    /// The last list did not come in time: Podman hangs, or the list is slow.
    overdue: bool,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<u64>) {
        while let Ok(sequence) = inbox.recv() {
            let containers = self.list();
            self.overdue = matches!(containers, Err(Error::Timeout(_)));
            // Another Podman may come; one that is merely slow or stumbles stays what it is.
            if matches!(containers, Err(Error::Unreachable(_))) {
                self.engine = None;
            }
            let containers = containers.map_err(|error| error.to_string());
            let engine = self.engine.clone();
            if self.events.send(Event::Containers { sequence, containers, engine }).is_err() {
                return;
            }
        }
    }

    fn list(&mut self) -> Result<Vec<Container>, Error> {
        // A hung service is asked briefly, so that its return is not missed for the rest of a list's deadline.
        let version = if self.overdue || self.engine.is_none() { Some(self.podman.ping()?) } else { None };
        if let Some(version) = version.filter(|_| self.engine.is_none()) {
            let engine = self.podman.info(version)?;
            info!(
                "connected to Podman {version} ({}, {}, cgroups {})",
                if engine.rootless { "rootless" } else { "rootful" },
                engine.runtime,
                engine.cgroups
            );
            self.engine = Some(engine);
            self.check_needs();
        }
        // Other services of a station carry the same owner label; they are not this program's.
        let mut containers = self.podman.list(OWNER, &self.recorder.owner)?;
        let is = |container: &Container, label: &str, value: &str| container.labels.get(label).is_some_and(|found| found == value);
        containers.retain(|container| is(container, OWNER, &self.recorder.owner) && is(container, SERVICE, "recorder"));
        Ok(containers)
    }

    /// What will be missing at the first start is better known before it.
    fn check_needs(&self) {
        let Recorder { image, network, .. } = &self.recorder;
        if matches!(self.podman.image_exists(image), Ok(false)) {
            warn!("image {image} is not on this machine: no Recorder can start until it is built or loaded");
        }
        if matches!(self.podman.network_exists(network), Ok(false)) {
            warn!("network {network} does not exist: no Recorder can start until `podman network create {network}`");
        }
    }
}
