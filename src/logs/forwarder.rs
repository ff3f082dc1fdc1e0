//! Keeps one follower for each container, from one list of containers to the next, while somebody listens.
//!
//! Containers of the first list existed when the Controller started: only lines that they write from then on are
//! forwarded. The log of any other container is read from its beginning, as that container is younger than the
//! Controller, no matter which program created it. So the actions that start containers need not report them here, and
//! it does not matter whether a list arrives before the end of such an action.
//!
//! A subscriber of Redis listens, and so does a status page that is open. While nobody listens, no log is read. Each
//! container keeps its position; when somebody listens again, its log is read from the moment on at which nobody did the
//! last time.
//!
//! Invariant: nothing in this file waits, except [`Drainer::drain`], which runs on the thread of an action.

use crate::sorted_map::SortedMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, warn};

use crate::clock::seconds;
use crate::decide::container::{Container, State};
use crate::decide::spec::{DEVICE_ID, SERVICE};
use crate::descriptors;
use crate::event::Event;
use crate::logs::control::Control;
use crate::logs::follower;
use crate::logs::line::Origin;
use crate::logs::recent::RecentLines;
use crate::logs::sink::{FrameSink, Start};
use crate::podman::client::Podman;
use crate::rate_limit::RateLimit;
use crate::redis::audience::{Asker, Audience, Moment};
use crate::redis::publisher::Publisher;

/// Time to read the last lines of a container before it is removed.
const DRAIN: Duration = Duration::from_secs(1);
/// An open status page asks every second, or every 8 s if there are many; after this time without a question, it is
/// closed. Its first lines are so old.
const PAGE: Duration = Duration::from_secs(10);
/// Time to ask Redis before that whether somebody listens.
const ASK: Duration = Duration::from_millis(250);

/// The followers of all containers.
#[derive(Debug)]
pub struct LogForwarder {
    podman: Podman,
    publisher: Publisher,
    events: SyncSender<Event>,
    /// Redis is asked who listens.
    is_asking: bool,
    followers: Followers,
    /// Somebody listens.
    is_heard: bool,
    /// Until when the status page counts as open; `None` while it is not.
    page: Option<Instant>,
    /// The last lines, for that page.
    recent: RecentLines,
    /// How many logs are to be followed, but are not yet.
    waiting: usize,
    /// How many logs are followed at most: each holds descriptors.
    limit: usize,
    /// When the clock was last looked at, by the wall clock and the monotonic one.
    last_look: (SystemTime, Instant),
    /// A list was handled.
    has_list: bool,
    rate_limit: RateLimit,
}

/// For the actions that remove containers.
#[derive(Clone, Debug)]
pub struct Drainer {
    podman: Podman,
    publisher: Publisher,
    followers: Followers,
}

/// By container id.
type Followers = Arc<Mutex<SortedMap<String, Arc<Control>>>>;

fn lock(followers: &Followers) -> MutexGuard<'_, SortedMap<String, Arc<Control>>> {
    followers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogForwarder {
    /// Without followers. Each change of the audience is an [`Event::Audience`].
    #[must_use]
    pub fn new(podman: &Podman, publisher: Publisher, events: SyncSender<Event>) -> Self {
        Self {
            podman: podman.clone(),
            publisher,
            events,
            is_asking: false,
            followers: Followers::default(),
            is_heard: false,
            page: None,
            recent: RecentLines::default(),
            waiting: 0,
            limit: descriptors::shares().recorders,
            last_look: (SystemTime::now(), Instant::now()),
            has_list: false,
            rate_limit: RateLimit::default(),
        }
    }

    /// Handles a new list: each container in it has a follower from now on, the others have none.
    pub fn update(&mut self, containers: &[Container]) {
        let first = if self.has_list { Start::Beginning } else { Start::After(seconds(SystemTime::now())) };
        self.has_list = true;
        let mut followers = lock(&self.followers);
        followers.retain(|id, control| {
            if containers.iter().any(|container| &container.id == id) {
                return true;
            }
            let mut instructions = control.lock();
            // Podman itself ends the stream of a removed container, after the last line.
            let was_missing = std::mem::replace(&mut instructions.missing, true);
            let keeps = instructions.has_thread && !was_missing;
            drop(instructions);
            if was_missing {
                control.interrupt(|instructions| instructions.end = true);
            }
            control.notify();
            keeps
        });
        for container in containers.iter().filter(|container| container.state != State::Created) {
            let control = followers.entry(container.id.clone()).or_insert_with(|| self.control(container, first));
            let mut instructions = control.lock();
            instructions.missing = false;
            let running = container.state == State::Running;
            if instructions.running != running {
                instructions.running = running;
                control.notify();
            }
        }
        let has_logs = !followers.is_empty();
        drop(followers);
        if has_logs != self.is_asking {
            self.is_asking = has_logs;
            self.publisher.watch_audience(has_logs.then(|| self.events.clone()));
        }
        self.start();
    }

    /// At each tick: the clock, a change of the audience that no event reported, and threads that could not be started.
    pub fn tick(&mut self) {
        let (wall, now) = (SystemTime::now(), Instant::now());
        let (last_wall, last) = std::mem::replace(&mut self.last_look, (wall, now));
        if let Some(second) = set_back_to(last_wall, wall, now.saturating_duration_since(last)) {
            debug!("the clock was set back; opening log streams again");
            for control in lock(&self.followers).values() {
                control.interrupt(|instructions| match &mut instructions.parked {
                    Some(sink) => sink.position.clock_set_back(second),
                    None => instructions.set_back = Some(second),
                });
            }
        }
        if self.page.is_some_and(|until| now >= until) {
            self.page = None;
            self.recent.close();
        }
        self.audience_changed();
        if self.waiting > 0 {
            self.start();
        }
    }

    /// From now on, this one asks Redis whether somebody listens, as [`Publisher::ask`].
    pub fn ask(&self, asker: Asker) {
        self.publisher.ask(asker);
    }

    /// The status page was asked for: it listens, too.
    pub fn page_asked(&mut self, now: Instant) {
        self.recent.open();
        if self.page.replace(now + PAGE).is_none() {
            self.audience_changed();
        }
    }

    /// The last lines, for the status page.
    #[must_use]
    pub fn recent(&self) -> &RecentLines {
        &self.recent
    }

    /// Begins to follow when somebody listens, and ends that when nobody does.
    pub fn audience_changed(&mut self) {
        let (audience, nobody_at) = self.publisher.audience();
        let has_subscriber = audience == Some(Audience::Somebody);
        let is_heard = has_subscriber || self.page.is_some();
        if is_heard == self.is_heard {
            return;
        }
        self.is_heard = is_heard;
        if is_heard {
            let second = match has_subscriber {
                true => nobody_at.map(|moment| moment.earliest_second(&Moment::now())),
                false => Some(seconds(SystemTime::now() - PAGE)),
            };
            debug!("somebody listens to log lines");
            lock(&self.followers).values().for_each(|control| resume(control, second));
            self.start();
        } else {
            debug!("nobody listens to log lines");
            lock(&self.followers).values().for_each(|control| control.interrupt(|instructions| instructions.park = true));
            self.waiting = 0;
        }
    }

    /// Starts the threads that are lacking.
    fn start(&mut self) {
        if !self.is_heard {
            return;
        }
        let now = Instant::now();
        let followers = lock(&self.followers);
        let mut room = self.limit.saturating_sub(followers.values().filter(|control| control.lock().has_thread).count());
        let mut failed = None;
        self.waiting = 0;
        for (id, control) in followers.iter().filter(|(_, control)| control.lock().lacks_thread()) {
            if room == 0 || failed.is_some() {
                self.waiting += 1;
                continue;
            }
            room -= 1;
            if let Err(why) = follower::start(&self.podman, id, control) {
                self.waiting += 1;
                failed = Some(why);
            }
        }
        drop(followers);
        let (count, limit) = (self.waiting, self.limit);
        match failed {
            Some(why) => self.rate_limit.warn("thread", &format!("cannot start a thread for a log; retrying: {why}"), now),
            None => drop(self.rate_limit.cleared("thread", now)),
        }
        if count > 0 && room == 0 {
            let line = format!("{count} logs are not forwarded yet: {limit} is the most at a time, for lack of file descriptors");
            self.rate_limit.warn("limit", &line, now);
        } else {
            self.rate_limit.cleared("limit", now);
        }
    }

    fn control(&self, container: &Container, start: Start) -> Arc<Control> {
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let origin = Origin { service: label(SERVICE), instance: label(DEVICE_ID), container: container.name.clone() };
        Arc::new(Control::new(FrameSink::new(start, origin, self.publisher.clone(), self.recent.clone())))
    }

    /// For the actions that remove containers.
    #[must_use]
    pub fn drainer(&self) -> Drainer {
        Drainer { podman: self.podman.clone(), publisher: self.publisher.clone(), followers: Arc::clone(&self.followers) }
    }

    /// Ends all followers at once.
    pub fn stop(&self) {
        lock(&self.followers).values().for_each(|control| control.interrupt(|instructions| instructions.end = true));
    }
}

/// Prepares a log that nobody listened to before: it goes on with this second.
fn resume(control: &Control, second: Option<u64>) {
    let mut instructions = control.lock();
    instructions.park = false;
    if let (Some(sink), Some(second)) = (&mut instructions.parked, second) {
        sink.resume(second);
    }
}

impl Drainer {
    /// Forwards the last lines of a container that has ended, before it is removed, if somebody listens. Waits a second
    /// at most, and logs a warning when that was not enough.
    pub fn drain(&self, id: &str, name: &str) {
        let Some(control) = lock(&self.followers).get(id).cloned() else { return };
        if control.lock().lacks_thread() {
            // Somebody may have subscribed since the last question.
            if !self.publisher.is_heard(ASK) {
                return;
            }
            resume(&control, self.publisher.audience().1.map(|moment| moment.earliest_second(&Moment::now())));
            if let Err(why) = follower::start(&self.podman, id, &control) {
                warn!("the last log lines of {name} may be lost: cannot start a thread: {why}");
                return;
            }
        }
        control.interrupt(|instructions| (instructions.drain, instructions.drained) = (true, false));
        let until = Instant::now() + DRAIN;
        let mut instructions = control.lock();
        while !instructions.drained && !instructions.end && instructions.has_thread {
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
