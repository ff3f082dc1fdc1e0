//! Actions under way, each on a thread of its own.
//!
//! A device has at most one action under way. After an action, the next one of the same device waits for a list of
//! containers that was requested after the end of the first: an earlier list may show the state before it.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::containers::execute::Executor;
use crate::containers::folders::Folders;
use crate::decide::action::{Action, Cause, Rank, Task};
use crate::decide::container::Engine;
use crate::decide::spec::Kind;
use crate::descriptors;
use crate::event::Event;
use crate::logs::forwarder::Drainer;
use crate::podman::client::Podman;

/// A start that takes longer hangs. It is not counted, so that it does not delay the others.
const SLOW_START: Duration = Duration::from_secs(2);
/// Time for a Recorder to close its files before it is killed, unless a shutdown leaves less.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Likewise, for one whose capture stands still. One that lives has had no frame to write for the whole time limit of the
/// capture, and closes its file within a second. One that is frozen ignores the signal, so that all of this time is a gap.
const STALLED_STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Time that Podman needs to kill a Recorder that did not end, and to remove it.
const KILL_MARGIN: Duration = Duration::from_millis(1500);
/// An action that takes longer hangs: the deadlines of all its calls together are shorter.
const HUNG: Duration = Duration::from_secs(600);
/// With more actions than this under way, other requests to Podman are delayed.
const MANY: usize = 3;

/// Actions under way, and those that ended but whose outcome is not in a list yet.
pub struct Actions {
    kind: Kind,
    podman: Podman,
    folders: Folders,
    events: SyncSender<Event>,
    /// By device.
    under_way: SortedMap<String, UnderWay>,
    /// By device: the last action, from its end until a list shows the outcome.
    unlisted: SortedMap<String, Unlisted>,
    /// Set when a shutdown begins; every action checks it before it starts a container.
    is_stopping: Arc<AtomicBool>,
    /// When all containers must have ended, once a shutdown began.
    deadline: Option<Instant>,
    /// Starts at the same time.
    starts: usize,
}

#[derive(Debug)]
struct Unlisted {
    /// The last list that was requested before the action ended.
    sequence: u64,
    is_replacement: bool,
}

#[derive(Debug)]
struct UnderWay {
    rank: Rank,
    is_replacement: bool,
    since: Instant,
    /// The Controller stops, and does not wait for this action before it stops the containers of the device.
    is_abandoned: bool,
}

impl Actions {
    /// No actions for containers of this kind yet.
    #[must_use]
    pub fn new(kind: Kind, podman: &Podman, config: &Config, events: &SyncSender<Event>) -> Self {
        Self {
            kind,
            podman: podman.clone(),
            folders: match kind {
                Kind::Recorder => Folders::new(config.workspace_local.clone()),
                Kind::Worker => Folders::of_workers(config.workers.workspace.clone()),
            },
            events: events.clone(),
            under_way: SortedMap::new(),
            unlisted: SortedMap::new(),
            is_stopping: Arc::default(),
            deadline: None,
            starts: descriptors::shares().starts,
        }
    }

    /// Whether an action may start now: for workers only one at a time, except stops. If not, the next plan contains it again.
    #[must_use]
    pub fn have_room_for(&self, action: &Action) -> bool {
        if self.kind == Kind::Worker && action.rank() != Rank::Stop {
            return self.under_way.is_empty();
        }
        let starts = self.under_way.values().filter(|other| other.rank == Rank::Start && other.since.elapsed() < SLOW_START);
        action.rank() != Rank::Start || starts.count() < self.starts
    }

    /// Starts a thread for an action. The thread reports the end with [`Event::Done`].
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(&mut self, action: Action, engine: &Engine, drainer: Drainer) -> io::Result<()> {
        let executor = Executor {
            podman: self.podman.clone(),
            drainer,
            engine: engine.clone(),
            folders: self.folders.clone(),
            is_stopping: Arc::clone(&self.is_stopping),
            stop_timeout: match action.cause {
                Cause::Stalled(_) => self.stop_timeout().min(STALLED_STOP_TIMEOUT),
                _ => self.stop_timeout(),
            },
        };
        let (events, kind) = (self.events.clone(), self.kind);
        let (device, since) = (action.device.clone(), Instant::now());
        let is_replacement = matches!(action.task, Task::Replace { .. });
        let entry = UnderWay { rank: action.rank(), is_replacement, since, is_abandoned: false };
        let run = move || {
            let result = executor.execute(&action);
            // Fails only while the program ends.
            let _ = events.send(Event::Done { kind, action: Box::new(action), result, took: since.elapsed() });
        };
        thread::Builder::new().name("action".to_owned()).stack_size(256 << 10).spawn(run)?;
        self.under_way.insert(device, entry);
        Ok(())
    }

    /// Begins a shutdown: all containers must end by `deadline`. No container is started from now on. Nothing waits for
    /// an action that starts one: it removes the container itself, or a later list shows it.
    pub fn stop_starting(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
        self.is_stopping.store(true, Ordering::Release);
        self.under_way.values_mut().filter(|action| action.rank != Rank::Stop).for_each(|action| action.is_abandoned = true);
    }

    /// Time for a Recorder to close its files before it is killed.
    fn stop_timeout(&self) -> Duration {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).saturating_sub(KILL_MARGIN));
        left.map_or(STOP_TIMEOUT, |left| left.clamp(Duration::from_secs(1), STOP_TIMEOUT))
    }

    /// Records the end of an action; `sequence` is the last list that was requested before.
    pub fn ended(&mut self, device: &str, sequence: u64) {
        let is_replacement = self.under_way.remove(device).is_some_and(|action| action.is_replacement);
        self.unlisted.insert(device.to_owned(), Unlisted { sequence, is_replacement });
    }

    /// Drops the ended actions whose outcome this list shows.
    pub fn listed(&mut self, sequence: u64) {
        self.unlisted.retain(|_, unlisted| unlisted.sequence >= sequence);
    }

    /// Whether some action ended whose outcome this list may not show.
    #[must_use]
    pub fn are_ahead_of(&self, sequence: u64) -> bool {
        self.unlisted.values().any(|unlisted| unlisted.sequence >= sequence)
    }

    /// Devices for which no action may start now.
    #[must_use]
    pub fn busy(&self) -> SortedSet<String> {
        let under_way = self.under_way.iter().filter(|(_, action)| !action.is_abandoned).map(|(device, _)| device);
        under_way.chain(self.unlisted.keys()).cloned().collect()
    }

    /// Whether a replacement is under way, or ended and its outcome is not in a list yet.
    #[must_use]
    pub fn are_replacing(&self) -> bool {
        self.under_way.values().any(|action| action.is_replacement) || self.unlisted.values().any(|unlisted| unlisted.is_replacement)
    }

    /// Whether an action for this device is under way.
    #[must_use]
    pub fn has(&self, device: &str) -> bool {
        self.under_way.contains_key(device)
    }

    /// Whether an action for this device ended whose outcome is not in a list yet.
    #[must_use]
    pub fn has_unlisted(&self, device: &str) -> bool {
        self.unlisted.contains_key(device)
    }

    /// Whether no action is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// How many actions hang.
    #[must_use]
    pub fn hung(&self) -> usize {
        self.under_way.values().filter(|action| action.since.elapsed() >= HUNG).count()
    }

    /// Whether all actions under way hang, or there are none.
    #[must_use]
    pub fn only_hang(&self) -> bool {
        self.hung() == self.under_way.len()
    }

    /// Whether so many actions are under way that other requests to Podman should wait.
    #[must_use]
    pub fn are_many(&self) -> bool {
        self.under_way.len() > MANY
    }
}
