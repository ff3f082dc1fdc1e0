//! What Podman says of our containers, and when it is asked again.
//!
//! A list is asked for at a tick when the last one may no longer hold; at once after an event, a nudge or the end of an
//! action; and every tenth of a second while Podman itself is between two states. One request is on its way at a time, and
//! what happens meanwhile has another one follow it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::collect::by_insertion;
use crate::config::Config;
use crate::containers::actions::Actions;
use crate::containers::lister::Lister;
use crate::containers::liveness::Liveness;
use crate::containers::watch::Watch;
use crate::decide::container::{Container, Engine, State};
use crate::decide::spec::DEVICE_ID;
use crate::event::Event;
use crate::podman::client::Podman;
use crate::rate_limit::RateLimit;
use crate::text::NOT_YET;

/// How often Podman is asked for a list while it tells of events, nothing is in between and nothing is to be done.
const QUIET: Duration = Duration::from_secs(15);
/// What is done is planned from a list that came no longer ago. What happens meanwhile is told by an event, but late.
const FRESH: Duration = Duration::from_secs(1);
/// While more than a few actions are under way, each list takes time from them: so long between two.
const PACE: Duration = Duration::from_millis(400);
/// Podman's own clean-up or restart takes 30-300 ms: so often, and for so long, its end is looked for.
const RECHECK: Duration = Duration::from_millis(100);
const RESTLESS: Duration = Duration::from_secs(2);
/// An in-between state of a container that lasts so long has no end of its own.
const STUCK: Duration = Duration::from_secs(20);

/// A list of our containers.
#[derive(Clone, Debug)]
pub struct List {
    /// Which request's it is.
    pub sequence: u64,
    /// All containers of ours.
    pub containers: Arc<[Container]>,
}

/// Asks Podman, and keeps what it said last.
pub struct ContainersState {
    inventory: Lister,
    hints: Watch,
    notices: RateLimit,
    witness: Liveness,
    /// The last request's number.
    pub sequence: u64,
    under_way: bool,
    asked: Instant,
    /// Something happened while a list was on its way, which may be older.
    again: bool,
    /// When the next list is due before the next tick.
    pub due: Option<Instant>,
    /// When the last list came.
    listed: Instant,
    /// The last list; `None` while it is unknown what containers there are.
    pub list: Option<List>,
    /// What the engine is, once it answered.
    pub engine: Option<Engine>,
    /// Whether the last answer was one, or why not.
    pub state: Result<(), String>,
    in_between: BTreeMap<String, Instant>,
}

impl ContainersState {
    /// Starts the threads for lists and events.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(podman: &Podman, config: &Config, events: &SyncSender<Event>) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            inventory: Lister::start(podman.clone(), config, events.clone())?,
            hints: Watch::start(podman.clone(), &config.recorder.owner, events.clone())?,
            notices: RateLimit::default(),
            witness: Liveness::default(),
            sequence: 0,
            under_way: false,
            asked: now,
            again: false,
            due: None,
            listed: now,
            list: None,
            engine: None,
            state: Err(NOT_YET.to_owned()),
            in_between: BTreeMap::new(),
        })
    }

    /// Whether a list is on its way.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Asks for a list, unless one is on its way or the actions need their time.
    pub fn ask(&mut self, jobs: &Actions) {
        let now = Instant::now();
        let next = self.asked + PACE;
        if jobs.are_a_crowd() && now < next {
            self.due = Some(next);
            return;
        }
        self.due = None;
        if !self.under_way {
            self.under_way = true;
            self.asked = now;
            self.hints.taken();
            self.sequence += 1;
            self.inventory.ask(self.sequence);
        }
    }

    /// Asks if the last list may no longer hold although no event says so.
    pub fn ask_if_doubtful(&mut self, jobs: &Actions, now: Instant) {
        let old = now.saturating_duration_since(self.listed) >= QUIET;
        let known = self.hints.is_up() && self.list.is_some();
        // An action that lasts may have met a Podman that hangs.
        let quiet = jobs.is_empty() && self.in_between.is_empty() && !self.witness.misses_one();
        if old || !known || !quiet {
            self.ask(jobs);
        }
    }

    /// Podman says that something happened.
    pub fn changed(&mut self, jobs: &Actions) {
        self.again = self.under_way;
        self.ask(jobs);
    }

    /// Takes in an answer.
    pub fn answered(&mut self, sequence: u64, containers: Result<Vec<Container>, String>, engine: Option<Engine>, jobs: &Actions) {
        let now = Instant::now();
        self.under_way = false;
        self.engine = engine;
        match containers {
            Err(why) => {
                self.list = None;
                self.notices.warn("podman", &format!("containers are unknown, running Recorders are left alone: {why}"), now);
                self.state = Err(why);
            }
            Ok(mut containers) => {
                self.notices.inform("podman", "Podman answers again", now);
                self.state = Ok(());
                self.hints.open();
                self.hints.keep(&containers);
                self.listed = now;
                self.witness.judge(&mut containers, now);
                self.note_in_between(&containers, jobs, now);
                self.list = Some(List { sequence, containers: containers.into() });
            }
        }
        // An action ended after this list was asked for: its outcome is in the next one.
        if std::mem::take(&mut self.again) || jobs.are_ahead_of(sequence) {
            self.ask(jobs);
        }
    }

    fn note_in_between(&mut self, containers: &[Container], jobs: &Actions, now: Instant) {
        let between = |container: &&Container| matches!(container.state, State::Stopping | State::Stopped | State::Removing);
        let since = |id: &String| self.in_between.get(id).copied().unwrap_or(now);
        self.in_between = by_insertion(containers.iter().filter(between).map(|container| (container.id.clone(), since(&container.id))));
        // What an action of ours does, its end tells.
        let restless = |container: &Container| {
            let since = self.in_between.get(&container.id);
            let ours = container.labels.get(DEVICE_ID).is_some_and(|device| jobs.has(device));
            !ours && since.is_some_and(|since| now.saturating_duration_since(*since) < RESTLESS)
        };
        if containers.iter().any(restless) {
            self.due = Some(now + RECHECK);
        }
    }

    /// Ids of containers that will not come out of an in-between state by themselves.
    #[must_use]
    pub fn stuck(&self, now: Instant) -> BTreeSet<String> {
        let stuck = self.in_between.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= STUCK);
        by_insertion(stuck.map(|(id, _)| id.clone()))
    }

    /// Whether the last list is new enough to act on.
    #[must_use]
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.listed) < FRESH
    }

    /// After a shutdown was asked for, only a fresh list counts.
    pub fn forget(&mut self) {
        self.list = None;
    }

    /// All containers of ours, or why they are unknown.
    ///
    /// # Errors
    /// Why they are unknown.
    pub fn containers(&self) -> Result<&[Container], &str> {
        match (&self.list, &self.state) {
            (Some(list), _) => Ok(&list.containers),
            (None, Err(why)) => Err(why),
            (None, Ok(())) => Err(NOT_YET),
        }
    }

    /// With which code a container's last run ended, or `Some(None)` if nobody tells; `None` while an event still may.
    #[must_use]
    pub fn take_exit_code(&self, id: &str) -> Option<Option<i64>> {
        let code = self.hints.take_exit_code(id);
        (code.is_some() || !self.hints.is_up()).then_some(code)
    }

    /// For a dump: which list was the last one, its age, and whether events come.
    #[must_use]
    pub fn summary(&self) -> String {
        let events = if self.hints.is_up() { "come" } else { "do not come" };
        format!("list {} of containers, {:.1} s old; events {events}", self.sequence, self.listed.elapsed().as_secs_f64())
    }
}
