//! The `podman` thread: lists our containers on request, and reads the properties of the engine once per connection.
//!
//! It only reads. A Podman that hangs blocks this thread until the deadline of the list, and no other thread. What
//! concerns a single container is inspected by short-lived threads, as Podman may answer for all others: how it ended
//! ([`Ends`]), and, once for each spec, how one with another hash than the desired one differs.
//!
//! `info` takes 0.2-0.3 s, as it starts conmon, the OCI runtime and dpkg. So the properties of the engine are cached
//! from one start to the next. The cache is valid while Podman reports the same version on a socket of the same owner.
//! A short-lived thread calls `info` when the first Recorders run, and its result replaces the cached one. Only the
//! form of a create request depends on it. The file of the cache is read and written by a thread of its own, as its disk
//! can hang.

use crate::clock;
use crate::collect::sort_by_key;
use crate::sorted_map::SortedMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use crate::cache::{self, ENGINE};
use crate::config::Config;
use crate::containers::ends::{Codes, Ends};
use crate::containers::watch::Exits;
use crate::decide::container::{Container, Engine, Version};
use crate::decide::difference;
use crate::decide::spec::{OWNER, RECORDER, RecorderSettings, SERVICE, TIER, TIER_2, Tier2ServiceSpec};
use crate::event::{Comparison, Event};
use crate::lock::Held;
use crate::podman::client::Podman;
use crate::podman::error::Error;
use crate::rate_limit::RateLimit;
use crate::saver::Saver;

/// Handle of the `podman` thread.
#[derive(Debug)]
pub struct Lister {
    /// The number of a list, and where exit codes come from.
    requests: Sender<(u64, Codes)>,
    podman: Podman,
    events: SyncSender<Event>,
}

impl Lister {
    /// Starts the thread; it connects at the first request.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(podman: Podman, config: &Config, lock: Held, events: SyncSender<Event>, exits: Exits) -> io::Result<Self> {
        let (requests, inbox) = channel();
        let (loaded, loading) = channel();
        let saver = Saver::start_json(ENGINE, &config.workspace_local, move |cached| {
            // Fails only while the program ends.
            let _ = loaded.send(cached);
        })?;
        let ends = Ends::new(podman.clone(), config.recorder.owner.clone(), exits);
        let lister = Self { requests, podman: podman.clone(), events: events.clone() };
        let engine_cache = EngineCache { podman, lock, socket: config.socket.clone(), saver, recorder: config.recorder.clone() };
        let check = EngineCheck::Due(false);
        let (rate_limit, loading) = (RateLimit::default(), Some(loading));
        let worker = ListerThread { engine_cache, events, loading, cached: None, engine: None, check, overdue: false, rate_limit, ends };
        thread::Builder::new().name("podman".to_owned()).stack_size(256 << 10).spawn(move || worker.run(&inbox))?;
        Ok(lister)
    }

    /// Requests a list; the answer carries `sequence`.
    pub fn request(&self, sequence: u64, codes: Codes) {
        // The thread ends only with the program.
        let _ = self.requests.send((sequence, codes));
    }

    /// Requests how containers differ from their specs, by id, without a delay for lists.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn compare(&self, containers: SortedMap<String, Arc<Tier2ServiceSpec>>) -> io::Result<()> {
        let (podman, events) = (self.podman.clone(), self.events.clone());
        // Fails only while the program ends.
        let run = move || drop(events.send(Event::Compared(compare(&podman, containers))));
        thread::Builder::new().name("inspect".to_owned()).stack_size(256 << 10).spawn(run).map(drop)
    }
}

/// Delay of the check after the first list: the first Recorders start sooner if Podman does nothing else meanwhile.
const FIRST_STARTS: Duration = Duration::from_secs(5);

/// How long the first list waits for the cache: Podman itself needs as long to describe itself.
const CACHE: Duration = Duration::from_millis(250);

/// The properties of the engine, and the owner of its socket.
type Cached = (Engine, u32);

/// Reads the properties of the engine, and writes them to the cache.
#[derive(Clone)]
struct EngineCache {
    podman: Podman,
    lock: Held,
    socket: PathBuf,
    saver: Saver,
    recorder: RecorderSettings,
}

struct ListerThread {
    engine_cache: EngineCache,
    events: SyncSender<Event>,
    /// Receives the properties that an earlier run saved.
    loading: Option<Receiver<Option<Cached>>>,
    /// These, or those of the last connection.
    cached: Option<Cached>,
    engine: Option<Engine>,
    check: EngineCheck,
    /// The last list missed its deadline: Podman hangs or is slow.
    overdue: bool,
    rate_limit: RateLimit,
    ends: Ends,
}

/// The check after the first list of a connection; nothing waits for it.
enum EngineCheck {
    /// Due after the first list; whether the properties came from the cache.
    Due(bool),
    /// Receives the properties if they differ from the cached ones.
    UnderWay(Receiver<Engine>),
}

impl ListerThread {
    fn run(mut self, inbox: &Receiver<(u64, Codes)>) {
        while let Ok((sequence, codes)) = inbox.recv() {
            let requested = clock::seconds(SystemTime::now());
            let mut containers = self.list();
            let received = Instant::now();
            if let Ok(containers) = &mut containers {
                self.ends.complete(containers, requested, codes);
            }
            self.overdue = matches!(containers, Err(Error::Timeout(_)));
            // The next connection may be to another Podman. After a slow answer or an error it is the same one.
            if matches!(containers, Err(Error::Unreachable(_) | Error::Forbidden(_))) {
                self.engine = None;
            }
            let listed = containers.is_ok();
            let containers = containers.map_err(|error| error.to_string());
            let engine = self.engine.clone();
            if self.events.send(Event::Containers { sequence, received, containers, engine }).is_err() {
                return;
            }
            if listed {
                self.check();
            }
        }
    }

    fn list(&mut self) -> Result<Vec<Container>, Error> {
        // A ping has a short deadline, so that the end of a hang is detected sooner than with a list.
        let version = if self.overdue || self.engine.is_none() { Some(self.engine_cache.podman.ping()?) } else { None };
        if let Some(version) = version.filter(|_| self.engine.is_none()) {
            let cached = self.cached(version);
            self.check = EngineCheck::Due(cached.is_some());
            let engine = cached.map_or_else(|| self.engine_cache.podman.info(version), Ok)?;
            self.keep(engine);
        }
        if let EngineCheck::UnderWay(answer) = &self.check {
            if let Ok(engine) = answer.try_recv() {
                self.keep(engine);
            }
        }
        tier2(&self.engine_cache.podman, &self.engine_cache.recorder.owner)
    }

    /// The cached properties, if they are valid for this Podman and could be read by now.
    fn cached(&mut self, version: Version) -> Option<Engine> {
        if let Some(loading) = self.loading.take() {
            match loading.recv_timeout(CACHE) {
                Err(RecvTimeoutError::Timeout) => self.loading = Some(loading),
                result => self.cached = self.cached.take().or(result.ok().flatten()),
            }
        }
        let (engine, owner) = self.cached.clone()?;
        (engine.version == version && Some(owner) == self.engine_cache.socket_owner()).then_some(engine)
    }

    /// Keeps the properties for the next connection.
    fn keep(&mut self, engine: Engine) {
        log_engine(&engine);
        self.cached = self.engine_cache.socket_owner().map(|owner| (engine.clone(), owner));
        self.engine = Some(engine);
    }

    /// Once per connection, after the first list: checks the prerequisites and the cached properties.
    fn check(&mut self) {
        let (EngineCheck::Due(cached), Some(mut engine)) = (&self.check, self.engine.clone()) else { return };
        let (answer, check) = channel();
        let (engine_cache, events, cached) = (self.engine_cache.clone(), self.events.clone(), *cached);
        let run = move || {
            engine_cache.check_prerequisites();
            if cached {
                thread::sleep(FIRST_STARTS);
                let Ok(found) = engine_cache.podman.info(engine.version) else { return };
                if found != engine {
                    // Fails if another connection began meanwhile. The main loop receives the properties with the next
                    // list.
                    let _ = answer.send(found.clone());
                    let _ = events.send(Event::Changed);
                }
                engine = found;
            }
            engine_cache.save(engine);
        };
        match thread::Builder::new().name("engine".to_owned()).stack_size(256 << 10).spawn(run) {
            Ok(_) => {
                self.rate_limit.cleared("thread", Instant::now());
                self.check = EngineCheck::UnderWay(check);
            }
            // It is still due after the next list.
            Err(why) => {
                let line = format!("cannot start a thread for a check of Podman; retrying: {why}");
                self.rate_limit.warn("thread", &line, Instant::now());
            }
        }
    }
}

impl EngineCache {
    fn socket_owner(&self) -> Option<u32> {
        fs::metadata(&self.socket).map(|socket| socket.uid()).ok()
    }

    /// Writes the properties to the cache, if they changed. The file belongs to the Controller that holds the lock.
    fn save(&self, engine: Engine) {
        if !self.lock.is_held() {
            return;
        }
        let Some(owner) = self.socket_owner() else { return };
        self.saver.save(move || cache::engine(&engine, owner));
    }

    /// Warns about a missing image or network before the first start fails.
    fn check_prerequisites(&self) {
        let RecorderSettings { image, network, .. } = &self.recorder;
        if matches!(self.podman.image_exists(image), Ok(false)) {
            warn!("image {image} is not in Podman's local storage: no Recorder can start until it is built or loaded");
        }
        if matches!(self.podman.network_exists(network), Ok(false)) {
            warn!("network {network} does not exist: no Recorder can start; create it with `podman network create {network}`");
        }
    }
}

/// All Tier 2 containers of an owner, running or not: first the Recorders, then those of other services. Tier 1
/// containers may carry the same owner label; this program does not manage them.
///
/// # Errors
/// If Podman cannot list them.
pub fn tier2(podman: &Podman, owner: &str) -> Result<Vec<Container>, Error> {
    let mut containers = podman.list(OWNER, owner)?;
    let is = |container: &Container, label: &str, value: &str| container.labels.get(label).is_some_and(|found| found == value);
    containers.retain(|container| is(container, OWNER, owner) && (is(container, TIER, TIER_2) || is_recorder(container)));
    sort_by_key(&mut containers, |container| !is_recorder(container));
    Ok(containers)
}

/// All Recorder containers of an owner, running or not.
///
/// # Errors
/// If Podman cannot list them.
pub fn recorders(podman: &Podman, owner: &str) -> Result<Vec<Container>, Error> {
    let mut containers = tier2(podman, owner)?;
    containers.retain(is_recorder);
    Ok(containers)
}

/// Whether a container records.
#[must_use]
pub fn is_recorder(container: &Container) -> bool {
    container.labels.get(SERVICE).is_some_and(|service| service == RECORDER)
}

/// Compares containers with their specs. After the first error the others are not inspected: Podman may hang.
pub fn compare(podman: &Podman, containers: SortedMap<String, Arc<Tier2ServiceSpec>>) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for (container, spec) in containers {
        let differences = match podman.inspect(&container) {
            Ok(Some(inspect)) if difference::is_complete(&inspect) => Ok(spec.differences(&inspect)),
            Ok(Some(_)) => Err("Podman does not show its settings".to_owned()),
            // The next list shows it.
            Ok(None) => continue,
            Err(error) => Err(error.to_string()),
        };
        let is_known = differences.is_ok();
        comparisons.push(Comparison { container, spec, differences });
        if !is_known {
            break;
        }
    }
    comparisons
}

fn log_engine(engine: &Engine) {
    let Engine { version, rootless, runtime, cgroups } = engine;
    info!("connected to Podman {version} ({}, {runtime}, cgroups {cgroups})", if *rootless { "rootless" } else { "rootful" });
}
