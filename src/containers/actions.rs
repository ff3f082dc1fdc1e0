//! Actions under way, each on a thread of its own.
//!
//! A device with an action under way gets no second one, nor does one whose containers were listed before its last
//! action ended: such a list may show how things were.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Instant;

use crate::collect::by_insertion;
use crate::config::Config;
use crate::containers::execute::execute;
use crate::decide::container::Engine;
use crate::decide::plan::Action;
use crate::event::Event;
use crate::logs::follow::Drainer;
use crate::podman::client::Podman;

/// Starts under way at a time: Podman gains nothing from more (measured).
const STARTS_AT_ONCE: usize = 8;
/// More actions than this are a crowd, which needs Podman and the processors for itself.
const CROWD: usize = 3;

/// Actions under way, and those whose outcome is in no list yet.
pub struct Actions {
    podman: Podman,
    workspace: PathBuf,
    events: SyncSender<Event>,
    /// By device, and whether they start something.
    under_way: BTreeMap<String, bool>,
    /// By device the last list that was asked for before its last action ended.
    settled: BTreeMap<String, u64>,
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
        }
    }

    /// Hands an action to a thread, which tells its end by [`Event::Done`]; a start beyond [`STARTS_AT_ONCE`] is left to
    /// the next plan.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(&mut self, action: Action, engine: &Engine, drainer: Drainer) -> io::Result<()> {
        let starts = action.start.is_some();
        if starts && self.under_way.values().filter(|starts| **starts).count() >= STARTS_AT_ONCE {
            return Ok(());
        }
        let (podman, events, workspace, engine) = (self.podman.clone(), self.events.clone(), self.workspace.clone(), engine.clone());
        let device = action.device.clone();
        let run = move || {
            let begun = Instant::now();
            let result = execute(&podman, &drainer, &engine, &workspace, &action);
            // Only a program that is ending has no inbox.
            let _ = events.send(Event::Done { action: Box::new(action), result, took: begun.elapsed() });
        };
        thread::Builder::new().name("action".to_owned()).stack_size(256 << 10).spawn(run)?;
        self.under_way.insert(device, starts);
        Ok(())
    }

    /// An action ended when this was the last list that had been asked for.
    pub fn ended(&mut self, device: &str, sequence: u64) {
        self.under_way.remove(device);
        self.settled.insert(device.to_owned(), sequence);
    }

    /// Forgets the actions whose outcome a list shows.
    pub fn listed(&mut self, sequence: u64) {
        self.settled.retain(|_, settled| *settled >= sequence);
    }

    /// Whether a list may not show the outcome of each action that ended.
    #[must_use]
    pub fn are_ahead_of(&self, sequence: u64) -> bool {
        self.settled.values().any(|settled| *settled >= sequence)
    }

    /// Devices that must be left alone for now.
    #[must_use]
    pub fn busy(&self) -> BTreeSet<String> {
        by_insertion(self.under_way.keys().chain(self.settled.keys()).cloned())
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
