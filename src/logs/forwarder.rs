//! Keeps one follower for each container, from one list of containers to the next.
//!
//! Containers of the first list existed when the Controller started: only lines that they write from then on are
//! forwarded. The log of any other container is read from its beginning, as that container is younger than the
//! Controller, no matter which program created it. So the actions that start containers need not report them here, and
//! it does not matter whether a list arrives before the end of such an action.
//!
//! Invariant: nothing in this file waits, except [`Drainer::drain`], which runs on the thread of an action.

use crate::sorted_map::SortedMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, warn};

use crate::decide::container::{Container, State};
use crate::decide::spec::{DEVICE_ID, SERVICE};
use crate::descriptors;
use crate::logs::control::Control;
use crate::logs::follower;
use crate::logs::line::Origin;
use crate::logs::sink::{FrameSink, Start, seconds};
use crate::podman::client::Podman;
use crate::rate_limit::RateLimit;
use crate::redis::publisher::Publisher;

/// Time to read the last lines of a container before it is removed.
const DRAIN: Duration = Duration::from_secs(1);

/// The followers of all containers.
#[derive(Debug)]
pub struct LogForwarder {
    podman: Podman,
    publisher: Publisher,
    followers: Followers,
    /// Containers whose log is to be followed, but is not yet, and where it begins.
    waiting: SortedMap<String, Start>,
    /// How many logs are followed at most: each holds descriptors.
    limit: usize,
    /// When the last list was handled, by the wall clock and the monotonic one.
    last_update: Option<(SystemTime, Instant)>,
    rate_limit: RateLimit,
}

/// For the actions that remove containers.
#[derive(Clone, Debug)]
pub struct Drainer {
    followers: Followers,
}

/// By container id.
type Followers = Arc<Mutex<SortedMap<String, Arc<Control>>>>;

fn lock(followers: &Followers) -> MutexGuard<'_, SortedMap<String, Arc<Control>>> {
    followers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogForwarder {
    /// Without followers.
    #[must_use]
    pub fn new(podman: &Podman, publisher: Publisher) -> Self {
        Self {
            podman: podman.clone(),
            publisher,
            followers: Followers::default(),
            waiting: SortedMap::new(),
            limit: descriptors::shares().recorders,
            last_update: None,
            rate_limit: RateLimit::default(),
        }
    }

    /// Handles a new list: each container in it has a follower from now on, the others have none.
    pub fn update(&mut self, containers: &[Container]) {
        let (wall, now) = (SystemTime::now(), Instant::now());
        let is_first = self.last_update.is_none();
        let set_back = self.last_update.and_then(|(last_wall, last)| set_back_to(last_wall, wall, now.saturating_duration_since(last)));
        self.last_update = Some((wall, now));
        let mut followers = lock(&self.followers);
        if let Some(second) = set_back {
            debug!("the clock was set back; opening log streams again");
            followers.values().for_each(|control| control.interrupt(|instructions| instructions.set_back = Some(second)));
        }
        followers.retain(|id, control| {
            if containers.iter().any(|container| &container.id == id) {
                return true;
            }
            // Podman itself ends the stream of a removed container, after the last line.
            let was_missing = std::mem::replace(&mut control.lock().missing, true);
            if was_missing {
                control.interrupt(|instructions| instructions.end = true);
            }
            !was_missing
        });
        for container in containers.iter().filter(|container| container.state != State::Created) {
            let running = container.state == State::Running;
            if let Some(control) = followers.get(&container.id) {
                let mut instructions = control.lock();
                instructions.missing = false;
                if instructions.running != running {
                    instructions.running = running;
                    control.notify();
                }
                continue;
            }
            let first = if is_first { Start::After(seconds(wall)) } else { Start::Beginning };
            let start = *self.waiting.entry(container.id.clone()).or_insert(first);
            if followers.len() >= self.limit {
                continue;
            }
            match self.follow(container, start) {
                Ok(control) => {
                    self.waiting.remove(&container.id);
                    followers.insert(container.id.clone(), control);
                }
                Err(why) => self.rate_limit.warn("thread", &format!("cannot start a thread for a log; retrying: {why}"), now),
            }
        }
        drop(followers);
        self.waiting.retain(|id, _| containers.iter().any(|container| &container.id == id));
        self.report_waiting(now);
    }

    /// Reports that logs are not followed for lack of descriptors.
    fn report_waiting(&mut self, now: Instant) {
        let (count, limit) = (self.waiting.len(), self.limit);
        if count > 0 && lock(&self.followers).len() >= limit {
            let line = format!("{count} logs are not forwarded yet: {limit} is the most at a time, for lack of file descriptors");
            self.rate_limit.warn("limit", &line, now);
        } else {
            self.rate_limit.cleared("limit", now);
        }
        if count == 0 {
            self.rate_limit.cleared("thread", now);
        }
    }

    fn follow(&self, container: &Container, start: Start) -> io::Result<Arc<Control>> {
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let origin = Origin { service: label(SERVICE), instance: label(DEVICE_ID), container: container.name.clone() };
        let control = Arc::new(Control::new(container.state == State::Running));
        let sink = FrameSink::new(start, origin, self.publisher.clone());
        follower::start(&self.podman, &container.id, Arc::clone(&control), sink)?;
        Ok(control)
    }

    /// For the actions that remove containers.
    #[must_use]
    pub fn drainer(&self) -> Drainer {
        Drainer { followers: Arc::clone(&self.followers) }
    }

    /// Ends all followers at once.
    pub fn stop(&self) {
        lock(&self.followers).values().for_each(|control| control.interrupt(|instructions| instructions.end = true));
    }
}

impl Drainer {
    /// Forwards the last lines of a container that has ended, before it is removed. Waits a second at most, and logs a
    /// warning when that was not enough.
    pub fn drain(&self, id: &str, name: &str) {
        let Some(control) = lock(&self.followers).get(id).cloned() else { return };
        control.interrupt(|instructions| (instructions.drain, instructions.drained) = (true, false));
        let until = Instant::now() + DRAIN;
        let mut instructions = control.lock();
        while !instructions.drained && !instructions.end {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                warn!("the last log lines of {name} may be lost: not read within {} s", DRAIN.as_secs());
                return;
            }
            instructions = control.wait_for(instructions, left);
        }
    }
}

/// The earliest second that the wall clock may have shown since the last list, if it was set back by more than a
/// second.
fn set_back_to(last: SystemTime, wall: SystemTime, elapsed: Duration) -> Option<u64> {
    (wall + Duration::from_secs(1) < last + elapsed).then(|| seconds(wall).saturating_sub(elapsed.as_secs() + 1))
}
