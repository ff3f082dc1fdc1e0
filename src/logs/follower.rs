//! Follows the logs of containers and hands their lines to the bus, each once and in order.
//!
//! A thread a container, as ureq carries the HTTP and blocks while there is nothing to read; it costs 100 KiB (measured:
//! stack, buffers and connection), and a flood in one log cannot hold up another one before the bus. The alternative,
//! all streams in one thread over `poll`, would need an HTTP client of its own.
//!
//! A stream ends whenever a run of the container does, and with the API service. It is opened again where the last one
//! ended ([`Position`]), after 0.1 s, or later if that goes on. Of a container that was there when the Controller started
//! (the first list) the lines that follow are forwarded; any other container's log is read from its beginning, as it is
//! younger than the Controller, whoever made it. That needs no word from those who start containers, which a list may
//! overtake.
//!
//! A stream that follows cannot be trusted beyond the end of a run: 0.25 s after it learnt of that, Podman begins to leave
//! out lines at random (nxadm/tail, which chooses between sending a line and stopping), those of the next run too. So
//! what a stream brings is taken only while the run's process lives, which costs a system call for each piece. Where
//! the processes of the host cannot be seen, Podman is asked whether the run is alive, but not again for [`TRUST`]: a
//! request for a line after a pause and seven a second in a flood. Otherwise it is thrown away, and the rest of the run is
//! read without following, which leaves nothing out.
//!
//! What cannot be had, with Podman 4.3 and conmon 2.1:
//! - Beyond its size limit conmon throws the log file away and begins anew. Podman looks four times a second, and what
//!   was written since it last looked is lost; under a flood that is most of it. The first frame of a log tells that this
//!   happened: it is looked at now and then, and the loss is reported.
//! - A last line without a newline is not marked as ended. It is forwarded when its run has ended; if the next run has
//!   written by then, both become one line.
//!
//! Invariants: the main loop is never blocked; a thread waits for a reader, the bus (bounded) or a wish, and a new wish
//! ends each wait but that for the bus.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use crate::decide::container::{Container, Run, State};
use crate::decide::spec::{DEVICE_ID, SERVICE};
use crate::logs::cursor::{Position, Skip};
use crate::logs::line::{Joiner, Origin, StampedText};
use crate::podman::client::{Closer, Error, Podman, StreamRequest};
use crate::podman::frames::{BadFrame, Frames, Output};
use crate::podman::pidfd::Process;
use crate::rate_limit::RateLimit;
use crate::redis::publisher::Publisher;
use crate::text::shown;

/// Between the end of a stream and the next one: at first, and at most.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A stream that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(2);
/// For the last lines of a container that is about to be removed.
const DRAIN: Duration = Duration::from_secs(1);
/// How long lines wait for room on the bus.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so many bytes of log it is checked whether its file is still the same.
const CHECK_BYTES: u64 = 512 << 10;
/// A run that was alive then has not made Podman leave out anything yet.
const TRUST: Duration = Duration::from_millis(150);
/// Read at a time; all lines in it travel together.
const CHUNK: usize = 8 << 10;
const STACK: usize = 256 << 10;

/// The followers of all containers.
#[derive(Debug)]
pub struct LogForwarder {
    podman: Podman,
    bus: Publisher,
    followers: Followers,
    /// When the list was last taken in, by both clocks.
    last: Option<(SystemTime, Instant)>,
    notices: RateLimit,
}

/// What [`LogForwarder`] gives to those who remove containers.
#[derive(Clone, Debug)]
pub struct Drainer {
    followers: Followers,
}

type Followers = Arc<Mutex<BTreeMap<String, Arc<Control>>>>;

/// What a follower's thread and the others tell each other.
#[derive(Debug)]
struct Control {
    wish: Mutex<Instructions>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Instructions {
    /// Read what is left, then wait: the container is about to be removed.
    drain: bool,
    /// That was done; the container may go.
    drained: bool,
    /// The container runs, as of the last list.
    running: bool,
    /// It was missing in the last list.
    missing: bool,
    /// End.
    end: bool,
    /// The wall clock was set back to this second.
    set_back: Option<u64>,
    /// Closes the stream that is open.
    closer: Option<Closer>,
}

impl Instructions {
    /// Whether a stream should not be waited for.
    fn is_urgent(&self) -> bool {
        self.end || self.drain || self.set_back.is_some()
    }

    fn interrupt(&mut self) {
        if let Some(closer) = self.closer.take() {
            closer.close();
        }
    }
}

impl Control {
    fn wish(&self) -> MutexGuard<'_, Instructions> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the wish, ends a wait for the stream, wakes the thread.
    fn urge(&self, change: impl FnOnce(&mut Instructions)) {
        let mut wish = self.wish();
        change(&mut wish);
        wish.interrupt();
        self.changed.notify_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogForwarder {
    /// Follows nothing yet.
    #[must_use]
    pub fn new(podman: &Podman, bus: Publisher) -> Self {
        Self { podman: podman.clone(), bus, followers: Followers::default(), last: None, notices: RateLimit::default() }
    }

    /// Takes in a fresh list: each container in it is followed from now on, the others no longer.
    pub fn keep(&mut self, containers: &[Container]) {
        let (wall, now) = (SystemTime::now(), Instant::now());
        let first = self.last.is_none();
        let set_back = self.last.and_then(|(last_wall, last)| stepped_back(last_wall, wall, now.saturating_duration_since(last)));
        self.last = Some((wall, now));
        let mut followers = locked(&self.followers);
        if let Some(second) = set_back {
            debug!("the clock was set back; log streams are opened again");
            followers.values().for_each(|shared| shared.urge(|wish| wish.set_back = Some(second)));
        }
        followers.retain(|id, shared| {
            if containers.iter().any(|container| &container.id == id) {
                return true;
            }
            // Podman ends the stream of a removed container by itself, after its last line.
            let again = std::mem::replace(&mut shared.wish().missing, true);
            if again {
                shared.urge(|wish| wish.end = true);
            }
            !again
        });
        for container in containers.iter().filter(|container| container.state != State::Created) {
            let running = container.state == State::Running;
            if let Some(shared) = followers.get(&container.id) {
                let mut wish = shared.wish();
                wish.missing = false;
                if wish.running != running {
                    wish.running = running;
                    shared.changed.notify_all();
                }
                continue;
            }
            let start = if first { Start::Now(seconds(wall)) } else { Start::Beginning };
            match self.follow(container, start) {
                Ok(shared) => drop(followers.insert(container.id.clone(), shared)),
                Err(why) => self.notices.warn("thread", &format!("no thread for a log: {why}"), now),
            }
        }
    }

    fn follow(&self, container: &Container, start: Start) -> std::io::Result<Arc<Control>> {
        let wish = Instructions { running: container.state == State::Running, ..Instructions::default() };
        let shared = Arc::new(Control { wish: Mutex::new(wish), changed: Condvar::new() });
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let origin = Origin { service: label(SERVICE), instance: label(DEVICE_ID), container: container.name.clone() };
        let follower = Follower {
            podman: self.podman.clone(),
            id: container.id.clone(),
            shared: Arc::clone(&shared),
            intake: Intake::new(start, origin, self.bus.clone()),
            delay: RETRY,
            first_frame: None,
            checked: 0,
            run: None,
            process: None,
            notices: RateLimit::default(),
        };
        // The kernel shows fifteen bytes; the end of a name tells more than its beginning.
        let tail = container.name.char_indices().rev().nth(10).map_or(0, |(at, _)| at);
        let name = format!("log-{}", &container.name[tail..]).replace('\0', "");
        thread::Builder::new().name(name).stack_size(STACK).spawn(move || follower.run())?;
        Ok(shared)
    }

    /// For those who remove containers.
    #[must_use]
    pub fn drainer(&self) -> Drainer {
        Drainer { followers: Arc::clone(&self.followers) }
    }

    /// Ends all streams at once.
    pub fn stop(&self) {
        locked(&self.followers).values().for_each(|shared| shared.urge(|wish| wish.end = true));
    }
}

impl Drainer {
    /// Lets the last lines of a container that has ended out, before it is removed. Waits a second at most, and says
    /// so when that was not enough.
    pub fn drain(&self, id: &str, name: &str) {
        let Some(shared) = locked(&self.followers).get(id).cloned() else { return };
        shared.urge(|wish| (wish.drain, wish.drained) = (true, false));
        let until = Instant::now() + DRAIN;
        let mut wish = shared.wish();
        while !wish.drained && !wish.end {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                warn!("the last log lines of {name} may be missing: not read within {} s", DRAIN.as_secs());
                return;
            }
            wish = shared.changed.wait_timeout(wish, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The second that the clock shows at least, if it was set back by more than streams put up with.
fn stepped_back(last: SystemTime, wall: SystemTime, elapsed: Duration) -> Option<u64> {
    (wall + Duration::from_secs(1) < last + elapsed).then(|| seconds(wall).saturating_sub(elapsed.as_secs() + 1))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where the first stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Beginning,
    /// After this second; what is in the log already is not forwarded.
    Now(u64),
}

/// Why a stream is over.
enum Over {
    /// Podman said so.
    Ended,
    /// A new wish.
    Interrupted,
    /// The run it followed is over, or cannot be seen.
    Untrusted,
    /// It broke.
    Broken(String),
    /// There is no such container.
    Gone,
    /// What came was no log.
    Bad(BadFrame),
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => write!(f, "ended"),
            Self::Interrupted => write!(f, "interrupted"),
            Self::Untrusted => write!(f, "not to be trusted any more"),
            Self::Broken(why) => write!(f, "{}", shown(why)),
            Self::Gone => write!(f, "no such container"),
            Self::Bad(why) => write!(f, "{why}"),
        }
    }
}

/// Frames in, lines out: all that a stream changes.
struct Intake {
    position: Position,
    /// Frames up to this second were there before us and are counted only.
    mute: Option<u64>,
    joiner: Joiner,
    origin: Origin,
    bus: Publisher,
    /// Of all streams.
    bytes: u64,
}

impl Intake {
    fn new(start: Start, origin: Origin, bus: Publisher) -> Self {
        let (position, mute) = match start {
            Start::Beginning => (Position::beginning(), None),
            Start::Now(second) => (Position::at(second), Some(second)),
        };
        Self { position, mute, joiner: Joiner::default(), origin, bus, bytes: 0 }
    }

    /// Takes in one frame; lines that ended with it go to `lines`.
    fn take(&mut self, skip: &mut Skip, output: Output, frame: &[u8], now: SystemTime, lines: &mut Vec<String>) {
        self.bytes += frame.len() as u64;
        let said = StampedText::read(frame);
        let second = said.second.unwrap_or_else(|| seconds(now));
        if skip.is_known(second) {
            return;
        }
        self.position.take(second);
        if self.mute.is_none_or(|until| second > until) {
            let origin = &self.origin;
            self.joiner.push(output, said, |line| lines.push(origin.payload(line, now)));
        }
    }

    /// Lines that have not ended will not: the run of the container is over.
    fn finish_run(&mut self) {
        let (origin, mut lines) = (&self.origin, Vec::new());
        self.joiner.finish(|line| lines.push(origin.payload(line, SystemTime::now())));
        self.hand_over(lines);
    }

    fn hand_over(&self, lines: Vec<String>) {
        if !lines.is_empty() {
            self.bus.log_lines(lines, PATIENCE);
        }
    }
}

/// One container's thread.
struct Follower {
    podman: Podman,
    id: String,
    shared: Arc<Control>,
    intake: Intake,
    delay: Duration,
    /// What the log began with when it was last looked at.
    first_frame: Option<Vec<u8>>,
    /// How many bytes had come at that time.
    checked: u64,
    /// The run that a stream follows, and when it was seen to be alive.
    run: Option<(Run, Instant)>,
    /// Its process, where that can be seen.
    process: Option<Process>,
    notices: RateLimit,
}

impl Follower {
    fn run(mut self) {
        loop {
            let wish = self.shared.wish();
            let (end, drain, set_back) = (wish.end, wish.drain && !wish.drained, wish.set_back);
            drop(wish);
            if end {
                return;
            }
            if let Some(second) = set_back {
                self.shared.wish().set_back = None;
                self.intake.position.allow(second);
            }
            if drain {
                self.end_run();
                let mut wish = self.shared.wish();
                (wish.drained, wish.drain) = (true, false);
                self.shared.changed.notify_all();
                drop(wish);
                self.rest();
            } else if self.prepare() {
                self.follow();
            } else {
                self.pause();
            }
        }
    }

    /// Whether a stream can be opened: what must not be forwarded or cannot be skipped is dealt with first.
    fn prepare(&mut self) -> bool {
        let muted = self.intake.mute.is_some();
        if !muted && !self.intake.position.needs_a_look(seconds(SystemTime::now())) {
            return true;
        }
        let over = self.read_rest();
        if matches!(over, Over::Ended) {
            self.intake.mute = None;
        }
        matches!(over, Over::Ended)
    }

    /// One run of the container, or what is left of it.
    fn follow(&mut self) {
        let begun = Instant::now();
        match self.podman.last_run(&self.id) {
            Ok(Some(run)) if run.is_alive() => {
                self.process = Process::of(run.pid, &self.id);
                self.run = Some((run, begun));
            }
            Ok(Some(run)) => {
                self.end_run();
                return if matches!(run.state, State::Exited | State::Created) { self.rest() } else { self.pause() };
            }
            Ok(None) => return self.rest(),
            // Podman is away; the main loop tells.
            Err(_) => return self.pause(),
        }
        let over = self.stream(true);
        debug!("log stream of {}: {over}", self.intake.origin.container);
        if begun.elapsed() >= GOOD {
            self.delay = RETRY;
        }
        match over {
            Over::Interrupted => return,
            Over::Gone => return self.rest(),
            Over::Bad(_) => {
                let line = format!("log of {} cannot be read: {over}", self.intake.origin.container);
                self.notices.warn("frames", &line, Instant::now());
            }
            Over::Broken(_) => {}
            Over::Ended | Over::Untrusted => {
                if self.run_is_over() {
                    self.end_run();
                }
            }
        }
        self.pause();
    }

    /// Reads what a run has left.
    fn end_run(&mut self) {
        if matches!(self.read_rest(), Over::Ended) {
            self.intake.finish_run();
            self.check_file();
        }
    }

    /// Whether the run that is followed was alive a moment ago, so that Podman has left out nothing yet.
    fn is_trusted(&mut self) -> bool {
        if let Some(process) = &self.process {
            return process.lives();
        }
        let now = Instant::now();
        let Some((run, seen)) = &mut self.run else { return false };
        if now.saturating_duration_since(*seen) < TRUST {
            return true;
        }
        let alive = matches!(self.podman.last_run(&self.id), Ok(Some(last)) if last.is_alive() && last.started == run.started);
        if alive {
            *seen = now;
        }
        alive
    }

    /// Whether another run has begun, or none is there.
    fn run_is_over(&self) -> bool {
        let Some((run, _)) = &self.run else { return false };
        matches!(self.podman.last_run(&self.id), Ok(Some(last)) if !last.is_alive() || last.started != run.started)
    }

    /// Waits a little, then longer, or for a wish.
    fn pause(&mut self) {
        let until = Instant::now() + self.delay;
        self.delay = (self.delay * 2).min(RETRY_MAX);
        let mut wish = self.shared.wish();
        while !wish.is_urgent() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            wish = self.shared.changed.wait_timeout(wish, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the container has been seen to run anew, or for a wish.
    fn rest(&mut self) {
        self.delay = RETRY;
        let mut wish = self.shared.wish();
        // A list from before the end may still say so; the next one sets it right.
        wish.running = false;
        while !wish.is_urgent() && !wish.running {
            wish = self.shared.changed.wait(wish).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads what there is, without waiting for more.
    fn read_rest(&mut self) -> Over {
        let over = self.stream(false);
        if !matches!(over, Over::Ended) {
            debug!("log of {} could not be read to its end: {over}", self.intake.origin.container);
        }
        over
    }

    /// Reads one stream from the position on, until it ends.
    fn stream(&mut self, follow: bool) -> Over {
        let request = self.podman.log(&self.id, self.intake.position.since(), follow);
        let mut skip = self.intake.position.skip();
        let over = self.read(request, follow, &mut skip);
        if !follow && skip.is_pending() && matches!(over, Over::Ended) {
            // None of the frames that count is there any more.
            self.intake.position.start_over();
            self.tell_loss();
        }
        over
    }

    fn read(&mut self, request: StreamRequest, follow: bool, skip: &mut Skip) -> Over {
        {
            let mut wish = self.shared.wish();
            if wish.end || (follow && wish.is_urgent()) {
                return Over::Interrupted;
            }
            wish.closer = Some(request.closer());
        }
        let over = match request.open() {
            Ok(body) => self.take_in(body, follow, skip),
            Err(error) if error.is_gone() => Over::Gone,
            Err(error) => Over::Broken(error.to_string()),
        };
        // Taken by whoever interrupted.
        match self.shared.wish().closer.take() {
            None => Over::Interrupted,
            Some(_) => over,
        }
    }

    fn take_in(&mut self, mut body: impl Read, follow: bool, skip: &mut Skip) -> Over {
        let mut frames = Frames::default();
        let mut chunk = [0; CHUNK];
        loop {
            let count = match body.read(&mut chunk) {
                Ok(0) if frames.is_whole() => return Over::Ended,
                Ok(0) => return Over::Broken("the stream ends within a frame".to_owned()),
                Ok(count) => count,
                Err(error) => return Over::Broken(error.to_string()),
            };
            if follow && !self.is_trusted() {
                return Over::Untrusted;
            }
            let (now, mut lines) = (SystemTime::now(), Vec::new());
            let pushed = frames.push(&chunk[..count], |output, frame| self.intake.take(skip, output, frame, now, &mut lines));
            self.intake.hand_over(lines);
            if let Err(bad) = pushed {
                return Over::Bad(bad);
            }
            if follow && (self.first_frame.is_none() || self.intake.bytes - self.checked >= CHECK_BYTES) {
                self.check_file();
            }
        }
    }

    /// Looks whether the log still begins as it did; if not, conmon has thrown its file away meanwhile.
    fn check_file(&mut self) {
        self.checked = self.intake.bytes;
        let first = match self.first_frame_now() {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(error) => {
                debug!("log of {} could not be checked: {error}", self.intake.origin.container);
                return;
            }
        };
        if self.first_frame.replace(first.clone()).is_some_and(|before| before != first) {
            self.tell_loss();
        }
    }

    fn first_frame_now(&self) -> Result<Option<Vec<u8>>, Error> {
        let mut body = self.podman.log(&self.id, 0, false).open()?;
        let (mut frames, mut first) = (Frames::default(), None);
        let mut chunk = [0; 1024];
        while first.is_none() {
            match body.read(&mut chunk) {
                Ok(count @ 1..) => {
                    let keep = |_, frame: &[u8]| {
                        first.get_or_insert_with(|| frame.to_vec());
                    };
                    frames.push(&chunk[..count], keep).map_err(|bad| Error::Garbled(bad.to_string()))?;
                }
                Ok(_) => break,
                Err(error) => return Err(Error::Garbled(error.to_string())),
            }
        }
        Ok(first)
    }

    fn tell_loss(&mut self) {
        let line = format!("log of {} passed its size limit and was begun anew, lines may be missing", self.intake.origin.container);
        self.notices.warn("size", &line, Instant::now());
    }
}
