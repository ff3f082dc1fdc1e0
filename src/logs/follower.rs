//! The thread that follows the log of one container and forwards its lines, each once and in order.
//!
//! One thread for each container, because ureq does the HTTP and blocks while there is nothing to read. A thread costs
//! 100 KiB (measured: stack, buffers and connection), and a flood in one log does not delay another one until both
//! reach the queue for Redis. The alternative, all streams in one thread with `poll`, would need another HTTP client.
//!
//! A stream ends with each run of the container, and with the API service. It is opened again where the last one ended
//! ([`crate::logs::cursor::Position`]), after 0.1 s, or later if that happens again and again.
//!
//! A stream that follows is not reliable after the end of a run: from 0.25 s after it detected that end, Podman leaves
//! out random lines, also of the next run (its library nxadm/tail then chooses between sending a line and stopping). So
//! data of such a stream is used only while the process of the run is alive, which costs one system call for each
//! piece. Where the Controller cannot see the processes of the host, it asks Podman whether the run is alive, but not
//! again for 150 ms: one request for a line after a pause, seven a second in a flood. Other data is dropped, and the
//! rest of the run is read without following, which leaves out nothing.
//!
//! Limits of Podman 4.3 and conmon 2.1:
//! - When the log file exceeds its size limit, conmon replaces it by an empty one. Podman checks for that four times a
//!   second; lines written since its last check are lost, which are most lines in a flood. A changed first frame shows
//!   that the file was replaced: it is checked now and then, and the loss is reported.
//! - A last line without a newline is not marked as ended. It is forwarded after the end of its run; if the next run
//!   has written something by then, both become one line.
//!
//! Invariant: the thread waits for a stream, its instructions or the queue for Redis (limited in time), and new
//! instructions end each wait except that for the queue.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::debug;

use crate::clock::seconds;
use crate::decide::container::{Run, State};
use crate::logs::control::Control;
use crate::logs::cursor::Skip;
use crate::logs::sink::FrameSink;
use crate::podman::client::Podman;
use crate::podman::error::Error;
use crate::podman::frames::{BadFrame, Frames};
use crate::podman::pidfd::Process;
use crate::podman::stream::StreamRequest;
use crate::rate_limit::RateLimit;
use crate::text::shown;

/// Time between the end of a stream and the next one: at first, and at most.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// After a stream that lasted this long, the time between streams is the shortest one again.
const GOOD: Duration = Duration::from_secs(2);
/// The first frame is checked again after this many bytes of log.
const CHECK_BYTES: u64 = 512 << 10;
/// While a run was alive this short a time ago, Podman has left out nothing.
const TRUST: Duration = Duration::from_millis(150);
/// Read at once; all lines in it are queued together.
const CHUNK: usize = 8 << 10;
const STACK: usize = 256 << 10;

/// How a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Until the run ends.
    Follow,
    /// What there is, without waiting for more.
    ReadToEnd,
}

/// Why a stream ended.
enum StreamEnd {
    /// Podman ended it.
    Complete,
    /// There are new instructions.
    Interrupted,
    /// The run that it followed is over, or its state is unknown.
    Unreliable,
    /// The connection broke.
    Broken(String),
    /// There is no such container.
    Gone,
    /// The data is not a log.
    Invalid(BadFrame),
}

impl fmt::Display for StreamEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => write!(f, "complete"),
            Self::Interrupted => write!(f, "interrupted"),
            Self::Unreliable => write!(f, "not reliable any more"),
            Self::Broken(why) => write!(f, "{}", shown(why)),
            Self::Gone => write!(f, "no such container"),
            Self::Invalid(why) => write!(f, "{why}"),
        }
    }
}

/// Starts the thread for the container with this id, unless there is one. It goes on with what the control holds, and
/// ends when it is instructed to.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn start(podman: &Podman, id: &str, control: &Arc<Control>) -> io::Result<()> {
    let mut instructions = control.lock();
    instructions.park = false;
    if !instructions.lacks_thread() {
        return Ok(());
    }
    // The kernel shows fifteen bytes; names differ at their ends rather than their beginnings.
    let tail = control.name.char_indices().rev().nth(10).map_or(0, |(at, _)| at);
    let name = format!("log-{}", &control.name[tail..]).replace('\0', "");
    let (podman, id, shared) = (podman.clone(), id.to_owned(), Arc::clone(control));
    let run = move || {
        let Some(sink) = shared.lock().parked.take() else { return };
        let follower =
            Follower { podman, id, control: shared, sink, delay: RETRY, run: None, process: None, rate_limit: RateLimit::default() };
        follower.run();
    };
    thread::Builder::new().name(name).stack_size(STACK).spawn(run)?;
    instructions.has_thread = true;
    Ok(())
}

/// What belongs to the thread.
struct Follower {
    podman: Podman,
    id: String,
    control: Arc<Control>,
    sink: FrameSink,
    delay: Duration,
    /// The run that a stream follows, and when it was last known to be alive.
    run: Option<(Run, Instant)>,
    /// Its process, where the Controller can see it.
    process: Option<Process>,
    rate_limit: RateLimit,
}

impl Follower {
    fn run(mut self) {
        loop {
            let mut now = self.control.lock();
            let (end, drain, set_back) = (now.end, now.drain && !now.drained, now.set_back);
            if end || now.park && !drain {
                (now.parked, now.has_thread) = (Some(self.sink), false);
                self.control.notify();
                return;
            }
            drop(now);
            if let Some(second) = set_back {
                self.control.lock().set_back = None;
                self.sink.position.clock_set_back(second);
            }
            if drain {
                self.end_run();
                let mut instructions = self.control.lock();
                (instructions.drained, instructions.drain) = (true, false);
                self.control.notify();
                drop(instructions);
                self.rest();
            } else if self.prepare() {
                self.follow();
            } else {
                self.pause();
            }
        }
    }

    /// Reads the log once, if it holds lines that must not be forwarded, or if only a full read shows what to skip.
    /// Returns whether a stream that follows can be opened now.
    fn prepare(&mut self) -> bool {
        let is_muted = self.sink.mute.is_some();
        if !is_muted && !self.sink.position.needs_full_read(seconds(SystemTime::now())) {
            return true;
        }
        let is_complete = matches!(self.read_to_end(), StreamEnd::Complete);
        if is_complete {
            self.sink.mute = None;
        }
        is_complete
    }

    /// Follows one run of the container, or reads the rest of one that is over.
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
            // Podman is unavailable; the main loop reports that.
            Err(_) => return self.pause(),
        }
        let end = self.stream(Mode::Follow);
        debug!("log stream of {}: {end}", self.sink.origin.container);
        if begun.elapsed() >= GOOD {
            self.delay = RETRY;
        }
        match end {
            StreamEnd::Interrupted => return,
            StreamEnd::Gone => return self.rest(),
            StreamEnd::Invalid(_) => {
                let line = format!("cannot read the log of {}: {end}", self.sink.origin.container);
                self.rate_limit.warn("frames", &line, Instant::now());
            }
            StreamEnd::Broken(_) => {}
            StreamEnd::Complete | StreamEnd::Unreliable => {
                if self.run_is_over() {
                    self.end_run();
                }
            }
        }
        self.pause();
    }

    /// Reads the rest of a run that is over.
    fn end_run(&mut self) {
        if matches!(self.read_to_end(), StreamEnd::Complete) {
            self.sink.finish_run();
            self.check_first_frame();
        }
    }

    /// Whether the run was alive a moment ago, so that Podman has left out nothing.
    fn is_reliable(&mut self) -> bool {
        if let Some(process) = &self.process {
            return process.is_alive();
        }
        let now = Instant::now();
        let Some((run, last_alive)) = &mut self.run else { return false };
        if now.saturating_duration_since(*last_alive) < TRUST {
            return true;
        }
        let alive = matches!(self.podman.last_run(&self.id), Ok(Some(last)) if last.is_alive() && last.started == run.started);
        if alive {
            *last_alive = now;
        }
        alive
    }

    /// Whether the run has ended, or another one has begun.
    fn run_is_over(&self) -> bool {
        let Some((run, _)) = &self.run else { return false };
        matches!(self.podman.last_run(&self.id), Ok(Some(last)) if !last.is_alive() || last.started != run.started)
    }

    /// Waits for urgent instructions, at most for a time that grows.
    fn pause(&mut self) {
        let until = Instant::now() + self.delay;
        self.delay = (self.delay * 2).min(RETRY_MAX);
        let mut instructions = self.control.lock();
        while !instructions.is_urgent() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            instructions = self.control.wait_for(instructions, left);
        }
    }

    /// Waits until the container runs again, or for urgent instructions.
    fn rest(&mut self) {
        self.delay = RETRY;
        let mut instructions = self.control.lock();
        // A list from before the end of the run may set this again; the next list corrects it.
        instructions.running = false;
        while !instructions.is_urgent() && !instructions.running {
            // It does not exist any more.
            instructions.end |= instructions.missing;
            if !instructions.end {
                instructions = self.control.wait(instructions);
            }
        }
    }

    /// Reads what there is, without waiting for more.
    fn read_to_end(&mut self) -> StreamEnd {
        let end = self.stream(Mode::ReadToEnd);
        if !matches!(end, StreamEnd::Complete) {
            debug!("cannot read the log of {} to its end: {end}", self.sink.origin.container);
        }
        end
    }

    /// Reads one stream from the position on, until it ends.
    fn stream(&mut self, mode: Mode) -> StreamEnd {
        let since = self.sink.position.since();
        let request = match mode {
            Mode::Follow => self.podman.follow_log(&self.id, since),
            Mode::ReadToEnd => self.podman.read_log(&self.id, since),
        };
        let mut skip = self.sink.position.skip();
        let end = self.open(request, mode, &mut skip);
        if mode == Mode::ReadToEnd && skip.is_pending() && matches!(end, StreamEnd::Complete) {
            // The counted frames are not in the log any more.
            self.sink.position.start_over();
            self.report_loss();
        }
        end
    }

    fn open(&mut self, request: StreamRequest, mode: Mode, skip: &mut Skip) -> StreamEnd {
        {
            let mut instructions = self.control.lock();
            if instructions.end || (mode == Mode::Follow && instructions.is_urgent()) {
                return StreamEnd::Interrupted;
            }
            instructions.closer = Some(request.closer());
        }
        let end = match request.open() {
            Ok(body) => self.read(body, mode, skip),
            Err(error) if error.is_gone() => StreamEnd::Gone,
            Err(error) => StreamEnd::Broken(error.to_string()),
        };
        // `Control::interrupt` takes the closer.
        match self.control.lock().closer.take() {
            None => StreamEnd::Interrupted,
            Some(_) => end,
        }
    }

    fn read(&mut self, mut body: impl Read, mode: Mode, skip: &mut Skip) -> StreamEnd {
        let mut frames = Frames::default();
        let mut chunk = [0; CHUNK];
        loop {
            let count = match body.read(&mut chunk) {
                Ok(0) if frames.is_complete() => return StreamEnd::Complete,
                Ok(0) => return StreamEnd::Broken("the stream ends within a frame".to_owned()),
                Ok(count) => count,
                Err(error) => return StreamEnd::Broken(error.to_string()),
            };
            if mode == Mode::Follow && !self.is_reliable() {
                return StreamEnd::Unreliable;
            }
            let (now, mut lines) = (SystemTime::now(), Vec::new());
            let pushed = frames.push(&chunk[..count], |output, frame| self.sink.push(skip, output, frame, now, &mut lines));
            self.sink.forward(lines);
            if let Err(bad) = pushed {
                return StreamEnd::Invalid(bad);
            }
            if mode == Mode::Follow && (self.sink.first_frame.is_none() || self.sink.bytes - self.sink.checked >= CHECK_BYTES) {
                self.check_first_frame();
            }
        }
    }

    /// Checks whether the log begins with the same frame as before; if not, conmon has replaced its file.
    fn check_first_frame(&mut self) {
        self.sink.checked = self.sink.bytes;
        let first = match self.read_first_frame() {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(error) => {
                debug!("cannot check the log of {}: {error}", self.sink.origin.container);
                return;
            }
        };
        if self.sink.first_frame.replace(first.clone()).is_some_and(|before| before != first) {
            self.report_loss();
        }
    }

    fn read_first_frame(&self) -> Result<Option<Vec<u8>>, Error> {
        let mut body = self.podman.read_log(&self.id, 0).open()?;
        let (mut frames, mut first) = (Frames::default(), None);
        let mut chunk = [0; 1024];
        while first.is_none() {
            match body.read(&mut chunk) {
                Ok(count @ 1..) => {
                    let keep = |_, frame: &[u8]| {
                        first.get_or_insert_with(|| frame.to_vec());
                    };
                    frames.push(&chunk[..count], keep).map_err(|bad| Error::Invalid(bad.to_string()))?;
                }
                Ok(_) => break,
                Err(error) => return Err(Error::Invalid(error.to_string())),
            }
        }
        Ok(first)
    }

    fn report_loss(&mut self) {
        let line =
            format!("the log of {} exceeded its size limit and its file was replaced; lines may be lost", self.sink.origin.container);
        self.rate_limit.warn("size", &line, Instant::now());
    }
}
