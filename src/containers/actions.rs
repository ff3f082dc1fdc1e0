//! Actions under way, each on a thread of its own.
//!
//! A device with an action under way gets no second one, nor does one whose containers were listed before its last
//! action ended: such a list may show how things were.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use crate::collect::by_insertion;
use crate::config::Config;
use crate::containers::execute::Executor;
use crate::decide::action::{Action, Rank, Task};
use crate::decide::container::Engine;
use crate::event::Event;
use crate::logs::forwarder::Drainer;
use crate::podman::client::Podman;

/// Starts under way at a time: Podman gains nothing from more (measured).
const STARTS_AT_ONCE: usize = 8;
/// A start that takes so long hangs, and takes no place from the others.
const HANGS: Duration = Duration::from_secs(2);
/// What a Recorder gets to close its files before it is killed, as far as a shutdown leaves that.
const PATIENCE: Duration = Duration::from_secs(10);
/// What Podman needs to kill a Recorder that did not end, and to remove it.
const AFTER_KILL: Duration = Duration::from_millis(1500);
/// More actions than this are a crowd, which needs Podman and the processors for itself.
const CROWD: usize = 3;

/// Actions under way, and those whose outcome is in no list yet.
pub struct Actions {
    podman: Podman,
    workspace: PathBuf,
    events: SyncSender<Event>,
    /// By device.
    under_way: BTreeMap<String, UnderWay>,
    /// By device its last action, until a list shows the outcome.
    settled: BTreeMap<String, Settled>,
    /// Set when the Controller was asked to stop; every action looks at it before it starts anything.
    is_stopping: Arc<AtomicBool>,
    /// When everything must have ended, once the Controller was asked to stop.
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Settled {
    /// The last list that was asked for before the action ended.
    sequence: u64,
    is_replacement: bool,
}

#[derive(Debug)]
struct UnderWay {
    rank: Rank,
    is_replacement: bool,
    since: Instant,
    /// The Controller stops and no longer waits for it before it stops the containers of the device.
    is_overtaken: bool,
}

impl Actions {
    /// None yet.
    #[must_use]
    pub fn new(podman: &Podman, config: &Config, events: &SyncSender<Event>) -> Self {
        Self {
            podman: podman.clone(),
            workspace: config.workspace_local.clone(),
            events: events.clone(),
            under_way: BTreeMap::new(),
            settled: BTreeMap::new(),
            is_stopping: Arc::default(),
            deadline: None,
        }
    }

    /// Whether there is room for an action now. What has no room is left to the next plan.
    #[must_use]
    pub fn have_room_for(&self, action: &Action) -> bool {
        let starts = self.under_way.values().filter(|other| other.rank == Rank::Start && other.since.elapsed() < HANGS);
        action.rank() != Rank::Start || starts.count() < STARTS_AT_ONCE
    }

    /// Hands an action to a thread, which reports its end by [`Event::Done`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(&mut self, action: Action, engine: &Engine, drainer: Drainer) -> io::Result<()> {
        let executor = Executor {
            podman: self.podman.clone(),
            drainer,
            engine: engine.clone(),
            workspace: self.workspace.clone(),
            is_stopping: Arc::clone(&self.is_stopping),
            patience: self.patience(),
        };
        let (events, device, since) = (self.events.clone(), action.device.clone(), Instant::now());
        let is_replacement = matches!(action.task, Task::Replace { .. });
        let entry = UnderWay { rank: action.rank(), is_replacement, since, is_overtaken: false };
        let run = move || {
            let result = executor.execute(&action);
            // Only a program that is ending has no inbox.
            let _ = events.send(Event::Done { action: Box::new(action), result, took: since.elapsed() });
        };
        thread::Builder::new().name("action".to_owned()).stack_size(256 << 10).spawn(run)?;
        self.under_way.insert(device, entry);
        Ok(())
    }

    /// The Controller stops, and all containers have to end by `deadline`: nothing is started any more, and an action that
    /// starts something is not waited for. What it still makes, it removes itself or a later list shows.
    pub fn stop_starting(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
        self.is_stopping.store(true, Ordering::Release);
        self.under_way.values_mut().filter(|action| action.rank != Rank::Stop).for_each(|action| action.is_overtaken = true);
    }

    /// What a Recorder gets to close its files before it is killed.
    fn patience(&self) -> Duration {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).saturating_sub(AFTER_KILL));
        left.map_or(PATIENCE, |left| left.clamp(Duration::from_secs(1), PATIENCE))
    }

    /// An action ended when this was the last list that had been asked for.
    pub fn ended(&mut self, device: &str, sequence: u64) {
        let is_replacement = self.under_way.remove(device).is_some_and(|action| action.is_replacement);
        self.settled.insert(device.to_owned(), Settled { sequence, is_replacement });
    }

    /// Forgets the actions whose outcome a list shows.
    pub fn listed(&mut self, sequence: u64) {
        self.settled.retain(|_, settled| settled.sequence >= sequence);
    }

    /// Whether a list may not show the outcome of each action that ended.
    #[must_use]
    pub fn are_ahead_of(&self, sequence: u64) -> bool {
        self.settled.values().any(|settled| settled.sequence >= sequence)
    }

    /// Devices that must be left alone for now.
    #[must_use]
    pub fn busy(&self) -> BTreeSet<String> {
        let under_way = self.under_way.iter().filter(|(_, action)| !action.is_overtaken).map(|(device, _)| device);
        by_insertion(under_way.chain(self.settled.keys()).cloned())
    }

    /// Whether a replacement is under way, or its outcome in no list yet.
    #[must_use]
    pub fn are_replacing(&self) -> bool {
        self.under_way.values().any(|action| action.is_replacement) || self.settled.values().any(|settled| settled.is_replacement)
    }

    /// Whether an action for this device is under way.
    #[must_use]
    pub fn has(&self, device: &str) -> bool {
        self.under_way.contains_key(device)
    }

    /// Whether an action for this device ended whose outcome is in no list yet.
    #[must_use]
    pub fn has_settled(&self, device: &str) -> bool {
        self.settled.contains_key(device)
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether so many are under way that whatever can wait should.
    #[must_use]
    pub fn are_a_crowd(&self) -> bool {
        self.under_way.len() > CROWD
    }
}
