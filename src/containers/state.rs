//! The last list of our containers, and when the next one is requested.
//!
//! A list is requested at a tick if the last one may be outdated; at once after the end of a process, an event, a nudge
//! or the end of an action; and every 100 ms while a container is in a transitional state. One request is under way at a
//! time. If something happens meanwhile, another request follows it.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::containers::actions::Actions;
use crate::containers::ends::Codes;
use crate::containers::lister::{Lister, is_recorder};
use crate::containers::liveness::{Liveness, Sight};
use crate::containers::watch::{Exits, Watch};
use crate::decide::container::{Container, Engine, State};
use crate::decide::spec::{DEVICE_ID, Tier2ServiceSpec};
use crate::descriptors;
use crate::event::{Comparison, Event};
use crate::lock::Held;
use crate::podman::client::Podman;
use crate::rate_limit::RateLimit;
use crate::text::NOT_YET;

/// Time between two lists while the event stream is open, no state is transitional and no action is under way.
const QUIET: Duration = Duration::from_secs(15);
/// The same while the process of each running container can be seen. Most requests of a quiet station are these, and
/// each one may start a service that sleeps, and keeps it for 5 s: a list every five minutes would be 1.7 % of the time.
const QUIET_IN_SIGHT: Duration = Duration::from_secs(600);
/// Maximum age of a list from which actions are planned. An event reports what happens meanwhile, but late.
const FRESH: Duration = Duration::from_secs(1);
/// Time between two lists while many actions are under way: each list delays them.
const BUSY_INTERVAL: Duration = Duration::from_millis(400);
/// Time between two lists while a container is in a transitional state: Podman's own clean-up or restart takes 30-300
/// ms.
const RECHECK: Duration = Duration::from_millis(100);
/// The same after the end of a process, until Podman has detected it.
const RECHECK_ENDED: Duration = Duration::from_millis(30);
/// How long such a container is checked so often.
const RECHECK_MAX: Duration = Duration::from_secs(2);
/// A list or a comparison that takes longer hangs: the deadlines of all its requests together are shorter.
const HUNG: Duration = Duration::from_secs(600);
/// Time between two attempts to compare a container with its spec.
const COMPARE_RETRY: Duration = Duration::from_secs(5);
/// A transitional state that lasts so long does not end by itself.
const STUCK: Duration = Duration::from_secs(20);

/// A list of our containers.
#[derive(Clone, Debug)]
pub struct List {
    /// Number of the request.
    pub sequence: u64,
    /// All our Recorders.
    pub containers: Arc<[Container]>,
    /// All our Tier 2 containers of other services.
    pub others: Arc<[Container]>,
}

/// Requests lists from Podman, and keeps the last one.
pub struct ContainersState {
    lister: Lister,
    watch: Watch,
    rate_limit: RateLimit,
    liveness: Liveness,
    /// Number of the last request.
    pub sequence: u64,
    under_way: bool,
    /// When the last list was requested.
    requested: Instant,
    /// How long the last answer took.
    pub latency: Option<Duration>,
    /// Something happened while a request was under way; its list may be older.
    is_outdated: bool,
    /// When the next list is due before the next tick.
    pub due: Option<Instant>,
    /// When Podman answered with the last list.
    received: Instant,
    /// The last list; `None` while the containers are unknown.
    pub list: Option<List>,
    /// Podman's properties, once they are known.
    pub engine: Option<Engine>,
    /// Whether the last request succeeded, or why not.
    pub state: Result<(), String>,
    /// Containers in a transitional state, and since when.
    transitional: SortedMap<String, Instant>,
    comparing: Comparing,
}

/// Whether containers are compared with their specs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparing {
    /// A request is under way since then.
    UnderWay(Instant),
    /// No request is under way; the next one may be sent at this time.
    From(Instant),
}

impl ContainersState {
    /// Starts the threads for lists and events.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(podman: &Podman, config: &Config, lock: &Held, events: &SyncSender<Event>) -> io::Result<Self> {
        let (now, exits) = (Instant::now(), Exits::default());
        Ok(Self {
            lister: Lister::start(podman.clone(), config, lock.clone(), events.clone(), exits.clone())?,
            watch: Watch::start(podman.clone(), &config.recorder.owner, events.clone(), exits)?,
            rate_limit: RateLimit::default(),
            liveness: Liveness::new(descriptors::shares().recorders),
            sequence: 0,
            under_way: false,
            requested: now,
            latency: None,
            is_outdated: false,
            due: None,
            received: now,
            list: None,
            engine: None,
            state: Err(NOT_YET.to_owned()),
            transitional: SortedMap::new(),
            comparing: Comparing::From(now),
        })
    }

    /// Whether a request is under way.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Whether a thread hangs that lists containers or compares them.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        let list = self.under_way.then_some(self.requested);
        let comparison = match self.comparing {
            Comparing::UnderWay(since) => Some(since),
            Comparing::From(_) => None,
        };
        list.into_iter().chain(comparison).any(|since| since.elapsed() >= HUNG)
    }

    /// Requests a list, unless a request is under way or many actions are.
    pub fn request(&mut self, actions: &Actions) {
        let now = Instant::now();
        let next = self.requested + BUSY_INTERVAL;
        if actions.are_many() && now < next {
            self.due = Some(next);
            return;
        }
        self.due = None;
        if !self.under_way {
            self.under_way = true;
            self.requested = now;
            self.watch.list_requested();
            self.sequence += 1;
            self.lister.request(self.sequence, if self.watch.is_open() { Codes::FromEvents } else { Codes::FromHistory });
        }
    }

    /// Whether the containers are known, no list is on its way, and no container is in a transitional state.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.state.is_ok() && self.list.is_some() && !self.under_way && self.due.is_none() && self.transitional.is_empty()
    }

    /// Requests a list if the last one may be outdated although no event reported a change.
    pub fn request_if_stale(&mut self, actions: &Actions, now: Instant) {
        let in_sight = self.liveness.sight(now) == Sight::All;
        let old = now.saturating_duration_since(self.received) >= if in_sight { QUIET_IN_SIGHT } else { QUIET };
        let known = (in_sight || self.watch.is_open()) && self.list.is_some();
        let has_ended = if in_sight { self.liveness.awaits_confirmation() } else { self.liveness.has_ended_process() };
        // While an action is under way, Podman may hang.
        let quiet = actions.is_empty() && self.transitional.is_empty() && !has_ended;
        if old || !known || !quiet {
            self.request(actions);
        }
    }

    /// Handles an event of Podman: something happened.
    pub fn changed(&mut self, actions: &Actions) {
        self.is_outdated = self.under_way;
        self.request(actions);
    }

    /// Handles the answer to a request; Podman answered at `received`.
    pub fn answered(
        &mut self,
        sequence: u64,
        received: Instant,
        containers: Result<Vec<Container>, String>,
        engine: Option<Engine>,
        actions: &Actions,
    ) {
        let now = Instant::now();
        self.under_way = false;
        self.engine = engine;
        match containers {
            Err(why) => {
                self.list = None;
                self.rate_limit.warn("podman", &format!("cannot list containers; running Recorders are not touched: {why}"), now);
                self.state = Err(why);
            }
            Ok(mut containers) => {
                self.rate_limit.inform("podman", "Podman is available again", now);
                self.state = Ok(());
                self.latency = Some(received.saturating_duration_since(self.requested));
                self.watch.retain_exit_codes(&containers);
                self.received = received;
                self.liveness.update(&mut containers, now);
                match self.liveness.sight(now) {
                    Sight::All => self.watch.processes(self.liveness.processes()),
                    Sight::Unclear => {}
                    Sight::Blind => self.watch.open(),
                }
                self.note_transitional(&containers, actions, now);
                let first_other = containers.iter().position(|container| !is_recorder(container)).unwrap_or(containers.len());
                let others = containers.split_off(first_other).into();
                self.list = Some(List { sequence, containers: containers.into(), others });
            }
        }
        // If an action ended after this list was requested, its outcome is in the next one.
        if std::mem::take(&mut self.is_outdated) || actions.are_ahead_of(sequence) {
            self.request(actions);
        }
    }

    /// Requests how these containers differ from their specs, unless a request is under way or has just failed.
    pub fn compare(&mut self, containers: SortedMap<String, Arc<Tier2ServiceSpec>>, now: Instant) {
        if !containers.is_empty() && matches!(self.comparing, Comparing::From(at) if now >= at) {
            self.comparing = match self.lister.compare(containers) {
                Ok(()) => Comparing::UnderWay(now),
                Err(why) => {
                    let line = format!("cannot start a thread to compare containers with the desired configuration; retrying: {why}");
                    self.rate_limit.warn("compare", &line, now);
                    Comparing::From(now + COMPARE_RETRY)
                }
            };
        }
    }

    /// Handles the answer. A comparison that failed is retried.
    pub fn compared(&mut self, comparisons: &[Comparison], now: Instant) {
        let failed = comparisons.iter().find_map(|comparison| Some((&comparison.spec.name, comparison.differences.as_ref().err()?)));
        self.comparing = Comparing::From(failed.map_or(now, |_| now + COMPARE_RETRY));
        if let Some((name, why)) = failed {
            let line = format!("cannot compare {name} with the desired configuration; it continues to run: {why}");
            self.rate_limit.warn("compare", &line, now);
        } else {
            self.rate_limit.inform("compare", "containers can be compared again", now);
        }
    }

    fn note_transitional(&mut self, containers: &[Container], actions: &Actions, now: Instant) {
        let is_transitional = |container: &&Container| matches!(container.state, State::Stopping | State::Stopped | State::Removing);
        let since = |id: &String| self.transitional.get(id).copied().unwrap_or(now);
        self.transitional =
            containers.iter().filter(is_transitional).map(|container| (container.id.clone(), since(&container.id))).collect();
        // For an action of ours, the end of the action triggers the next list.
        let changes_soon = |container: &Container| {
            let since = self.transitional.get(&container.id);
            let ours = container.labels.get(DEVICE_ID).is_some_and(|device| actions.has(device));
            !ours && since.is_some_and(|since| now.saturating_duration_since(*since) < RECHECK_MAX)
        };
        if containers.iter().any(changes_soon) {
            self.due = Some(now + RECHECK);
        }
        if self.liveness.awaits_confirmation() || self.liveness.sight(now) == Sight::Unclear {
            self.due = Some(now + RECHECK_ENDED);
        }
    }

    /// Ids of containers that have been in a transitional state for too long.
    #[must_use]
    pub fn stuck(&self, now: Instant) -> SortedSet<String> {
        let stuck = self.transitional.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= STUCK);
        stuck.map(|(id, _)| id.clone()).collect()
    }

    /// Whether the last list is new enough to act on.
    #[must_use]
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.received) < FRESH
    }

    /// Drops the last list, so that nothing is decided before a new one arrives.
    pub fn forget(&mut self) {
        self.list = None;
    }

    /// Whether nothing runs although Podman does not answer, as the processes tell.
    #[must_use]
    pub fn have_ended(&self, now: Instant) -> bool {
        self.state.is_err() && self.liveness.has_seen_all_end(now)
    }

    /// All our Recorders, or why they are unknown.
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

    /// All our Tier 2 containers of other services, or why they are unknown.
    ///
    /// # Errors
    /// Why they are unknown.
    pub fn others(&self) -> Result<&[Container], &str> {
        self.containers().map(|_| self.list.as_ref().map_or(&[][..], |list| &list.others))
    }

    /// The exit code of a container's last run. `Some(None)` if it will stay unknown; `None` while an event may still
    /// report it. Without events, the list that shows the next run has come with it.
    #[must_use]
    pub fn take_exit_code(&self, id: &str) -> Option<Option<i64>> {
        let code = self.watch.take_exit_code(id);
        (code.is_some() || !self.watch.is_open()).then_some(code)
    }

    /// For a dump: number and age of the last list, and how changes are detected.
    #[must_use]
    pub fn summary(&self) -> String {
        let events = match self.liveness.sight(Instant::now()) {
            Sight::All => "the ends of processes are watched",
            _ if self.watch.is_open() => "event stream open",
            _ => "event stream closed",
        };
        format!("list {} of containers, {:.1} s old; {events}", self.sequence, self.received.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::spec::Kind;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn the_age_of_a_list_counts_from_the_answer_of_podman() {
        let mut config = Config::read(|_| None).unwrap();
        // Nothing can be created there.
        config.workspace_local = "/proc/nonexistent".into();
        let (events, _inbox) = sync_channel(1);
        let podman = Podman::new("/proc/nonexistent".into());
        let mut state = ContainersState::start(&podman, &config, &Held::default(), &events).unwrap();
        let actions = Actions::new(Kind::Recorder, &podman, &config, &events);
        let received = Instant::now();
        state.answered(1, received, Ok(Vec::new()), None, &actions);
        assert!(state.is_fresh(received) && !state.is_fresh(received + FRESH));
        // It was handled only now.
        let earlier = received.checked_sub(FRESH).unwrap();
        state.answered(2, earlier, Ok(Vec::new()), None, &actions);
        assert!(!state.is_fresh(Instant::now()));
    }
}
