//! When each microphone was recorded: sessions of continuous capture, and why each ended.
//!
//! The evidence is the frame counter of the PCM (`hw_ptr`), which counts from the start of a stream. A session begins when
//! the counter advances, and ends with the last frame that was read. While the counter grows by rate x time, nothing was
//! lost, whether or not anybody looked meanwhile; so one session can outlive several runs of the Controller, and a session
//! that was closed in error goes on. An observation that is unknown changes nothing.
//!
//! Durations are those of the monotonic clock, which begins at the boot of the host. The wall clock only places them: if
//! it is stepped, an open session moves with it, as the later time is the better one; so do the closed ones of this boot,
//! where they are told, and the gaps between them.

use crate::collect::sort_by_key;
use crate::sorted_map::SortedMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::decide::action::Ending;
use crate::decide::timeline::{Boot, Placed, place};
use crate::json;

/// An open session is written again after this time.
pub const UPDATE: Duration = Duration::from_secs(15 * 60);
/// The period of a share.
pub const DAY: Duration = Duration::from_secs(24 * 3600);
/// Number of gaps that are shown of a day.
pub const GAPS: usize = 100;
/// How far the counter can be behind or ahead at one read: a period of the card, and the time of a read.
const JITTER: f64 = 1.0;
/// By how much the clock of a card may deviate, as a factor; the largest one that USB allows.
const DEVIATION: f64 = 0.0025;
/// The same if the rate was measured.
const MEASURED_DEVIATION: f64 = 0.0005;
/// Time for which frames are counted before a rate is known.
const MEASURED: Duration = Duration::from_secs(600);
/// A cause that is reported this much later explains the end better than what was known then.
const EXPLAINS: Duration = Duration::from_secs(15);
/// A session of a microphone without a Recorder is closed after this time: how the Recorder ended may still be reported.
const ABSENT: Duration = Duration::from_secs(5);
/// A step of the wall clock that counts.
pub const STEP_MICROS: i64 = 1_000_000;

/// The first characters of the id of a container, as Podman shows it.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// The two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Time since the boot of the host.
    pub at: Duration,
    /// Microseconds since 1970 by the wall clock.
    pub wall: i64,
    /// Whether the wall clock follows a time server; `None` = unknown.
    pub synchronised: Option<bool>,
}

/// The frame counter of a stream at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Counter {
    /// When it was read, since the boot of the host.
    pub at: Duration,
    /// Number of frames since the start of the stream.
    pub pointer: u64,
    /// Nominal rate, in Hz.
    pub rate: u64,
    /// The process that holds the stream; `None` if it is in another PID namespace.
    pub owner: Option<u32>,
    /// When the stream was started, in microseconds of a clock of the kernel; `None` if it does not run.
    pub trigger: Option<u64>,
    /// At this number a kernel with 32 bits counts from 0 again.
    pub boundary: Option<u64>,
}

impl Counter {
    /// The boundary of a kernel with 32 bits for a buffer of this size: the largest multiple by a power of two that fits.
    /// One with 64 bits does not reach its own.
    #[must_use]
    pub fn boundary(buffer: u64) -> Option<u64> {
        let limit = (1 << 31) - 1;
        let mut boundary = Some(buffer).filter(|buffer| (1..limit / 2).contains(buffer))?;
        while boundary * 2 <= limit - buffer {
            boundary *= 2;
        }
        Some(boundary)
    }

    /// Frames since an earlier time, `None` if this is another stream.
    fn since(&self, before: &Self, deviation: f64, rate: f64) -> Option<u64> {
        let is_other_owner = matches!((self.owner, before.owner), (Some(a), Some(b)) if a != b);
        let is_other_start = matches!((self.trigger, before.trigger), (Some(a), Some(b)) if a != b);
        if is_other_owner || is_other_start || self.rate != before.rate || self.at < before.at {
            return None;
        }
        let time = (self.at - before.at).as_secs_f64();
        let tolerance = rate * (JITTER + deviation * time);
        let expected = rate * time;
        let boundary = self.boundary.filter(|boundary| self.pointer < *boundary && before.pointer < *boundary);
        let mut frames = self.pointer as f64 - before.pointer as f64;
        if let Some(boundary) = boundary {
            // As often as it takes, if that explains what is read, and nothing else does.
            let wrapped = frames + ((expected - frames) / boundary as f64).round() * boundary as f64;
            if (wrapped - expected).abs() <= tolerance {
                frames = wrapped;
            }
        }
        (frames >= 0.0 && frames <= expected + tolerance).then_some(frames as u64)
    }
}

/// What one read of a PCM shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Stream {
    /// Nothing: it could not be read.
    Unknown,
    /// No process has opened it.
    Closed,
    /// It runs.
    Runs(Counter),
    /// It is open, but does not run.
    Stands(Counter),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing explains it.
    Unknown,
    /// The Recorder ended.
    Ended(Ending),
    /// No frames arrived.
    Stalled,
    /// Another container took the place of the Recorder; with what differed.
    Replaced(Vec<String>),
    /// A user or a setting requires no Recorder any more; with the reason.
    Stopped(String),
    /// The microphone was disconnected.
    Unplugged,
    /// The same, and it was connected again within the grace period.
    Flap,
    /// The host lost power, or was booted.
    Power,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Ended(Ending::Exit(code) | Ending::OutOfMemory(code)) => write!(f, "recorder ended (code {code})"),
            Self::Ended(_) => f.write_str("recorder ended (code unknown)"),
            Self::Stalled => f.write_str("stalled"),
            Self::Replaced(fields) if fields.is_empty() => f.write_str("replaced"),
            Self::Replaced(fields) => write!(f, "replaced ({})", fields.join(", ")),
            Self::Stopped(why) => write!(f, "stopped by user ({why})"),
            Self::Unplugged => f.write_str("unplugged"),
            Self::Flap => f.write_str("flap"),
            Self::Power => f.write_str("power or boot"),
        }
    }
}

impl Cause {
    /// Of two causes at the same time, the larger one is the reason of the other.
    fn rank(&self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Ended(_) => 1,
            Self::Stalled => 2,
            Self::Replaced(_) | Self::Stopped(_) => 3,
            Self::Unplugged => 4,
            Self::Flap => 5,
            Self::Power => 6,
        }
    }
}

/// A row of the table `capture_sessions`. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SessionRow {
    /// Unique, and larger than those before it.
    pub id: i64,
    /// Stable id of the microphone.
    pub device: String,
    /// The container that recorded, as [`short`] makes its id.
    pub container: String,
    /// Time of the first frame.
    pub started: i64,
    /// Time of the last frame that is known.
    pub ended: i64,
    /// Number of frames.
    pub frames: i64,
    /// Nominal rate, in Hz.
    pub rate: i64,
    /// Why it ended; `None` while it is open.
    pub cause: Option<String>,
    /// How far the times can be trusted, and where to continue, as JSON.
    pub clock: String,
}

/// One session.
#[derive(Clone, Debug)]
struct Session {
    id: i64,
    container: String,
    /// First frame, since boot.
    begin: Duration,
    frames: u64,
    /// From which frames are counted to measure the rate, and how many there were.
    first: (Counter, u64),
    last: Counter,
    /// Last frame, since boot.
    end: Duration,
    /// Microseconds from 1970 to the boot of the host, when the session was last observed.
    offset: i64,
    /// By how much the wall clock was stepped meanwhile, in microseconds.
    stepped: i64,
    /// Whether the wall clock was synchronised, when the session was last observed.
    synchronised: Option<bool>,
    cause: Option<Cause>,
    /// When it was last handed out to be written.
    written: Option<Duration>,
    is_changed: bool,
}

impl Session {
    /// The measured rate, in Hz.
    fn rate(&self) -> Option<f64> {
        let time = self.last.at.checked_sub(self.first.0.at).filter(|time| *time >= MEASURED)?;
        Some(self.frames.checked_sub(self.first.1)? as f64 / time.as_secs_f64())
    }

    /// Frames since the last read, `None` if it is another stream.
    fn since(&self, counter: &Counter) -> Option<u64> {
        match self.rate() {
            Some(rate) => counter.since(&self.last, MEASURED_DEVIATION, rate),
            None => counter.since(&self.last, DEVIATION, self.last.rate as f64),
        }
    }

    /// Seconds that were lost, if these frames arrived since the last read; `None` if none were.
    fn lost(&self, counter: &Counter, frames: u64) -> Option<f64> {
        let nominal = self.last.rate as f64;
        let (rate, deviation) = self.rate().map_or((nominal, DEVIATION), |rate| (rate, MEASURED_DEVIATION));
        let deficit = |from: &Counter, frames: u64, rate: f64, deviation: f64| {
            let time = counter.at.saturating_sub(from.at).as_secs_f64();
            let lost = time - frames as f64 / rate;
            (lost > JITTER + deviation * time).then_some(lost)
        };
        // Small losses, each of them within the tolerance, add up.
        let all = self.frames + frames - self.first.1;
        let step = deficit(&self.last, frames, rate, deviation);
        let total = deficit(&self.first.0, all, nominal, DEVIATION);
        let longest = counter.at.saturating_sub(self.last.at).as_secs_f64();
        step.or(total).map(|lost| lost.min(longest))
    }

    /// Begin and end since 1970, by the wall clock as it is now.
    fn wall(&self, now: Now) -> (i64, i64) {
        (Moment::Boot(micros(self.begin)).wall(now), Moment::Boot(micros(self.end)).wall(now))
    }

    fn row(&self, device: &str, boot: &str) -> SessionRow {
        let Counter { at, pointer, owner, trigger, boundary, .. } = &self.last;
        // A gap after the session shows the rest.
        let rounded = self.stepped.saturating_add(500_000).div_euclid(1_000_000);
        let clock = json!({"synchronised": self.synchronised, "stepped_s": rounded, "boot": boot, "begin_us": micros(self.begin),
            "last_us": micros(*at), "end_us": micros(self.end), "pointer": pointer, "owner": owner, "trigger_us": trigger, "boundary": boundary});
        SessionRow {
            id: self.id,
            device: device.to_owned(),
            container: self.container.clone(),
            started: self.offset.saturating_add(micros(self.begin)),
            ended: self.offset.saturating_add(micros(self.end)),
            frames: i64::try_from(self.frames).unwrap_or(i64::MAX),
            rate: i64::try_from(self.last.rate).unwrap_or(i64::MAX),
            cause: self.cause.as_ref().map(Cause::to_string),
            clock: clock.to_string(),
        }
    }

    /// The session of a row that is open, if the host was not booted since.
    fn of(row: &SessionRow, boot: &str) -> Option<Self> {
        let clock: Value = json::from_str(&row.clock).ok()?;
        if boot.is_empty() || clock["boot"].as_str() != Some(boot) {
            return None;
        }
        let time = |key: &str| clock[key].as_u64().map(Duration::from_micros);
        let last = Counter {
            at: time("last_us")?,
            pointer: clock["pointer"].as_u64()?,
            rate: u64::try_from(row.rate).ok().filter(|rate| *rate > 0)?,
            owner: clock["owner"].as_u64().and_then(|owner| owner.try_into().ok()),
            trigger: clock["trigger_us"].as_u64(),
            boundary: clock["boundary"].as_u64(),
        };
        let (begin, frames) = (time("begin_us")?, u64::try_from(row.frames).ok()?);
        Some(Self {
            id: row.id,
            container: row.container.clone(),
            begin,
            frames,
            first: (last.clone(), frames),
            last,
            end: time("end_us")?,
            offset: row.started.saturating_sub(i64::try_from(begin.as_micros()).ok()?),
            stepped: clock["stepped_s"].as_i64().unwrap_or_default().saturating_mul(1_000_000),
            synchronised: clock["synchronised"].as_bool(),
            cause: None,
            written: None,
            is_changed: false,
        })
    }
}

/// A stream that may become a session.
#[derive(Debug)]
struct Candidate {
    counter: Counter,
    /// The counter at the first frame that belongs to the session.
    origin: u64,
}

/// One microphone.
#[derive(Debug, Default)]
struct Track {
    /// The last session; it is open if it has no cause.
    last: Option<Session>,
    candidate: Option<Candidate>,
    /// What will explain the end of the open session, and since when.
    expected: Option<(Cause, Duration)>,
    /// Since when it has no Recorder.
    absent: Option<Duration>,
    /// What was counted since the start of the Controller.
    count: Count,
    /// The end of the last session of an earlier run, and why it ended.
    earlier: Option<(Moment, GapKind)>,
    /// Sessions before the last one, for a day.
    spans: Vec<Span>,
}

/// A time, in microseconds.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Since 1970, of an earlier boot.
    Wall(i64),
    /// Since the present boot of the host.
    Boot(i64),
}

impl Moment {
    /// Since 1970, by the wall clock as it is now.
    fn wall(self, now: Now) -> i64 {
        match self {
            Self::Wall(time) => time,
            Self::Boot(time) => now.offset().saturating_add(time),
        }
    }
}

/// A session that is over.
#[derive(Debug)]
struct Span {
    begin: Moment,
    end: Moment,
    /// Why it ended; equal causes in a row are stored once.
    cause: Arc<str>,
}

/// The last 24 hours of one microphone. Times are microseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Day {
    /// What is known begins here: 24 hours ago, or with the first session.
    pub from: i64,
    /// Begin and end of each time without frames, and its cause. The last [`GAPS`] ones.
    pub gaps: Vec<(i64, i64, Arc<str>)>,
    /// Begin and number of frames of the session that is open.
    pub open: Option<(i64, u64)>,
}

/// Why nothing was recorded, without details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapKind {
    /// Nothing explains it.
    Unknown,
    /// The Recorder ended.
    Ended,
    /// No frames arrived.
    Stalled,
    /// The Recorder was replaced.
    Replaced,
    /// No Recorder was required.
    Stopped,
    /// The microphone was disconnected.
    Unplugged,
    /// The same, for less than the grace period.
    Flap,
    /// The host lost power, or was booted.
    Power,
}

impl GapKind {
    /// As a label.
    pub const LABELS: [&'static str; 8] = ["unknown", "ended", "stalled", "replaced", "stopped", "unplugged", "flap", "power"];

    /// Of the cause in a row.
    fn of(cause: &str) -> Self {
        let first = cause.split([' ', '(']).next().unwrap_or_default();
        match first {
            "recorder" => Self::Ended,
            "stalled" => Self::Stalled,
            "replaced" => Self::Replaced,
            "stopped" => Self::Stopped,
            "unplugged" => Self::Unplugged,
            "flap" => Self::Flap,
            "power" => Self::Power,
            _ => Self::Unknown,
        }
    }
}

/// What was counted for one microphone since the start of the Controller.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Count {
    /// Frames that arrived.
    pub frames: u64,
    /// Gaps that are over, by kind, and their length in seconds.
    pub gaps: [(u64, f64); GapKind::LABELS.len()],
}

impl Count {
    fn gap(&mut self, kind: GapKind, seconds: f64) {
        let (gaps, sum) = &mut self.gaps[kind as usize];
        *gaps += 1;
        *sum += seconds.max(0.0);
    }
}

/// The share and the rate of one microphone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Which part of the last 24 h was recorded, from 0 to 1.
    pub share: f64,
    /// The measured rate, in Hz, and the nominal one.
    pub rate: Option<(f64, u64)>,
}

/// The sessions of all microphones.
#[derive(Debug)]
pub struct Sessions {
    /// Identifies the boot of the host; empty if it is unknown.
    boot: String,
    tracks: SortedMap<String, Track>,
    /// Sessions that ended before the last one of their microphone, and must be written.
    closed: Vec<SessionRow>,
    last_id: i64,
}

impl Sessions {
    /// Without sessions, for this boot of the host.
    #[must_use]
    pub fn new(boot: &str) -> Self {
        Self { boot: boot.to_owned(), tracks: SortedMap::new(), closed: Vec::new(), last_id: 0 }
    }

    /// Handles a read of the PCM of a microphone whose Recorder is this container.
    pub fn observe(&mut self, device: &str, container: &str, stream: &Stream, now: Now) {
        let known = self.tracks.get(device);
        if *stream == Stream::Unknown || known.is_none() && *stream == Stream::Closed {
            return;
        }
        let is_known = |counter: &Counter| {
            let is_read = |candidate: &Candidate| candidate.counter.at == counter.at;
            let is_older = |last: &Session| counter.at < last.last.at;
            known.is_some_and(|track| track.candidate.as_ref().is_some_and(is_read) || track.last.as_ref().is_some_and(is_older))
        };
        if matches!(stream, Stream::Runs(counter) | Stream::Stands(counter) if is_known(counter)) {
            return;
        }
        let (counter, runs) = match stream {
            Stream::Unknown => return,
            Stream::Closed => {
                let Some(track) = self.tracks.get_mut(device) else { return };
                track.candidate = None;
                track.close(Cause::Unknown);
                return;
            }
            Stream::Runs(counter) => (counter, true),
            Stream::Stands(counter) => (counter, false),
        };
        if counter.rate == 0 {
            return;
        }
        let id = now.wall.max(self.last_id.saturating_add(1));
        let track = self.tracks.entry(device.to_owned()).or_default();
        track.absent = None;
        track.follow(container, counter, runs, now);
        if track.is_open() || !runs {
            return;
        }
        let Some(candidate) = &track.candidate else { return };
        let begun = counter.since(&candidate.counter, DEVIATION, counter.rate as f64).filter(|frames| *frames > 0);
        match begun {
            None => track.candidate = Some(Candidate { counter: counter.clone(), origin: track.origin(container, counter) }),
            Some(frames) => {
                let origin = candidate.origin;
                let all = frames + candidate.counter.pointer.saturating_sub(origin);
                let earliest = track.last.as_ref().map_or(Duration::ZERO, |last| last.end);
                let begin = counter.at.saturating_sub(Duration::from_secs_f64(all as f64 / counter.rate as f64)).max(earliest);
                self.last_id = id;
                let session = Session {
                    id,
                    container: short(container).to_owned(),
                    begin,
                    frames: all,
                    first: (counter.clone(), all),
                    last: counter.clone(),
                    end: counter.at,
                    offset: now.offset(),
                    stepped: 0,
                    synchronised: now.synchronised,
                    cause: None,
                    written: None,
                    is_changed: true,
                };
                track.candidate = None;
                track.expected = None;
                track.count.frames += all;
                let started = session.begin;
                if let Some(before) = track.last.replace(session) {
                    let kind = before.cause.as_ref().map_or(GapKind::Unknown, |cause| GapKind::of(&cause.to_string()));
                    track.count.gap(kind, started.saturating_sub(before.end).as_secs_f64());
                    let row = before.row(device, &self.boot);
                    let oldest = now.a_day_ago();
                    track.spans.retain(|span| span.end.wall(now) >= oldest);
                    track.add(Moment::Boot(micros(before.begin)), Moment::Boot(micros(before.end)), &row);
                    if before.is_changed {
                        self.closed.push(row);
                    }
                }
                track.count_earlier(now);
            }
        }
    }

    /// Something happened that explains the end of a session: one that ended a moment ago, or the open one, which will end.
    /// `container` is the one that it happened to, if it is known.
    pub fn explain(&mut self, device: &str, container: Option<&str>, cause: Cause, now: Now) {
        let Some(track) = self.tracks.get_mut(device) else { return };
        let Some(last) = track.last.as_mut().filter(|last| container.is_none_or(|id| short(id) == last.container)) else { return };
        let Some(known) = &mut last.cause else {
            // At a start, each microphone was missing until the first scan.
            if cause == Cause::Flap && last.written.is_none() {
                return;
            }
            if track.expected.as_ref().is_none_or(|(expected, _)| expected.rank() <= cause.rank()) {
                track.expected = Some((cause, now.at));
            }
            return;
        };
        // The differences of a replacement are known when it is done.
        let is_more = match (&*known, &cause) {
            (Cause::Replaced(less), Cause::Replaced(more)) => less.len() < more.len(),
            (Cause::Unknown, _) | (Cause::Unplugged, Cause::Flap) => true,
            _ => known.rank() < cause.rank() && now.at.saturating_sub(last.end) <= EXPLAINS,
        };
        if is_more && *known != cause {
            *known = cause;
            last.is_changed = true;
        }
    }

    /// The session ended, and this explains it.
    pub fn end(&mut self, device: &str, container: Option<&str>, cause: Cause, now: Now) {
        self.explain(device, container, cause, now);
        let Some(track) = self.tracks.get_mut(device) else { return };
        if track.last.as_ref().is_some_and(|last| container.is_none_or(|id| short(id) == last.container)) {
            track.candidate = None;
            track.close(Cause::Unknown);
        }
    }

    /// Handles the end of a tick in which these microphones, and no others, had a Recorder.
    pub fn recorded_by(&mut self, has_recorder: impl Fn(&str) -> bool, now: Now) {
        for (_, track) in self.tracks.iter_mut().filter(|(device, track)| track.is_open() && !has_recorder(device)) {
            if now.at.saturating_sub(*track.absent.get_or_insert(now.at)) >= ABSENT {
                track.candidate = None;
                track.close(Cause::Unknown);
            }
        }
    }

    /// Handles rows that an earlier run wrote: those that are open are continued or closed. Rows that are known already
    /// are ignored. Returns the ids of those that became parts of others.
    pub fn continue_from(&mut self, rows: Vec<SessionRow>, now: Now) -> Vec<i64> {
        let mut merged = Vec::new();
        let present = Boot { id: self.boot.clone(), offset: now.offset() };
        let placed = place(&rows, Some(&present));
        let mut rows: Vec<(SessionRow, Placed)> = rows.into_iter().zip(placed).collect();
        sort_by_key(&mut rows, |(_, placed)| placed.ended);
        for (mut row, placed) in rows {
            let moment = |time: i64| match &placed.boot {
                Some(boot) if *boot == self.boot => Moment::Boot(time.saturating_sub(now.offset())),
                _ => Moment::Wall(time),
            };
            let (begin, end) = (moment(placed.started), moment(placed.ended));
            self.last_id = self.last_id.max(row.id);
            let track = self.tracks.entry(row.device.clone()).or_default();
            if track.last.as_ref().is_some_and(|last| last.id == row.id) {
                continue;
            }
            if let Some(cause) = &row.cause {
                track.precede(end, GapKind::of(cause), now);
                track.add(begin, end, &row);
                continue;
            }
            let Some(session) = Session::of(&row, &self.boot) else {
                let cause = if self.boot.is_empty() { Cause::Unknown } else { Cause::Power }.to_string();
                track.precede(end, GapKind::of(&cause), now);
                row.cause = Some(cause);
                track.add(begin, end, &row);
                self.closed.push(row);
                continue;
            };
            // The gap before a session of an earlier run was counted then.
            track.earlier = None;
            let Some(last) = &mut track.last else {
                track.last = Some(session);
                continue;
            };
            // It was observed before these rows were read, or two rows are parts of one session.
            let (before, after) = if session.last.at <= last.last.at { (&session, &*last) } else { (&*last, &session) };
            match before.since(&after.last).filter(|frames| before.lost(&after.last, *frames).is_none()) {
                Some(frames) => {
                    let is_older = (session.begin, session.id) < (last.begin, last.id);
                    let (kept, other) = if is_older { (&session, &*last) } else { (&*last, &session) };
                    let all = if kept.last.at <= other.last.at { kept.frames + frames } else { kept.frames };
                    let (end, cause) = (before.end.max(after.end), last.cause.clone());
                    merged.push(other.id);
                    let (last_read, offset) = (after.last.clone(), last.offset);
                    *last = Session { frames: all, last: last_read, end, offset, cause, is_changed: true, ..kept.clone() };
                }
                None => {
                    track.precede(end, GapKind::Unknown, now);
                    row.cause = Some(Cause::Unknown.to_string());
                    track.add(begin, end, &row);
                    self.closed.push(row);
                }
            }
        }
        let oldest = now.a_day_ago();
        self.tracks.values_mut().for_each(|track| {
            track.spans.retain(|span| span.end.wall(now) >= oldest);
            track.count_earlier(now);
        });
        merged
    }

    /// The rows that must be written now: those that changed, and those that are open for a while.
    pub fn due(&mut self, now: Now) -> Vec<SessionRow> {
        let mut rows = std::mem::take(&mut self.closed);
        for (device, track) in self.tracks.iter_mut() {
            let Some(last) = &mut track.last else { continue };
            let is_old = last.cause.is_none() && last.written.is_none_or(|written| now.at.saturating_sub(written) >= UPDATE);
            // A row that is continued is only written again when its counter was read.
            let is_known = last.written.is_some() || last.is_changed || last.end > last.first.0.at;
            if last.is_changed || is_old && is_known {
                (last.is_changed, last.written) = (false, Some(now.at));
                rows.push(last.row(device, &self.boot));
            }
        }
        rows
    }

    /// The share and the rate of a microphone; `None` if it has no session.
    #[must_use]
    pub fn effort(&self, device: &str, now: Now) -> Option<Effort> {
        let track = self.tracks.get(device)?;
        let oldest = now.a_day_ago();
        let spans = track.spans.iter().map(|span| (span.begin.wall(now), span.end.wall(now)));
        let spans = spans.chain(track.last.as_ref().map(|last| last.wall(now)));
        let recorded: i64 = spans.map(|(begin, end)| end.min(now.wall).saturating_sub(begin.max(oldest)).max(0)).sum();
        let open = track.last.as_ref().filter(|last| last.cause.is_none());
        let rate = open.and_then(|last| Some((last.rate()?, last.last.rate)));
        Some(Effort { share: (recorded as f64 / DAY.as_micros() as f64).clamp(0.0, 1.0), rate })
    }

    /// The last 24 hours of a microphone; `None` if it has no session.
    #[must_use]
    pub fn day(&self, device: &str, now: Now) -> Option<Day> {
        let track = self.tracks.get(device)?;
        let oldest = now.a_day_ago();
        let known = |span: &Span| (span.begin.wall(now), span.end.wall(now), Arc::clone(&span.cause));
        let mut spans: Vec<(i64, i64, Arc<str>)> = track.spans.iter().map(known).collect();
        spans.extend(track.last.as_ref().map(|last| {
            let (begin, end) = last.wall(now);
            (begin, end, last.cause.as_ref().map(Cause::to_string).unwrap_or_default().into())
        }));
        sort_by_key(&mut spans, |(begin, end, _)| (*begin, *end));
        let open = track.last.as_ref().filter(|last| last.cause.is_none()).map(|last| (last.wall(now).0, last.frames));
        let mut day = Day { from: spans.first()?.0.clamp(oldest, now.wall.max(oldest)), gaps: Vec::new(), open };
        // Until when it is known what was recorded, and why nothing was after that.
        let (mut known, mut why): (i64, Arc<str>) = (day.from, Arc::default());
        let next = now.wall;
        let end = day.open.is_none().then(|| (next, next, Arc::default()));
        for (begin, end, cause) in spans.into_iter().chain(end) {
            let (begin, end) = (begin.min(next), end.min(next));
            if begin > known {
                day.gaps.push((known, begin, Arc::clone(&why)));
            }
            (known, why) = (known.max(end), if cause.is_empty() { "unknown".into() } else { cause });
        }
        day.gaps.drain(..day.gaps.len().saturating_sub(GAPS));
        Some(day)
    }
}

impl Sessions {
    /// What was counted for a microphone since the start, its nominal rate in Hz and the time of its last frame in
    /// microseconds since 1970; `None` if it has no session.
    #[must_use]
    pub fn count(&self, device: &str) -> Option<(&Count, u64, i64)> {
        let track = self.tracks.get(device)?;
        let last = track.last.as_ref()?;
        let end = last.offset.saturating_add(i64::try_from(last.end.as_micros()).ok()?);
        Some((&track.count, last.last.rate, end))
    }
}

impl Now {
    /// Microseconds from 1970 to the boot of the host.
    #[must_use]
    pub fn offset(self) -> i64 {
        self.wall.saturating_sub(micros(self.at))
    }

    fn a_day_ago(self) -> i64 {
        self.wall.saturating_sub(i64::try_from(DAY.as_micros()).unwrap_or(i64::MAX))
    }
}

impl Track {
    /// Adds a session that is over.
    fn add(&mut self, begin: Moment, end: Moment, row: &SessionRow) {
        let cause = row.cause.as_deref().unwrap_or_default();
        let cause = self.spans.last().filter(|span| *span.cause == *cause).map_or_else(|| cause.into(), |span| Arc::clone(&span.cause));
        self.spans.push(Span { begin, end, cause });
    }

    fn is_open(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.cause.is_none())
    }

    /// Closes the session, if it is open. What was expected to end it is a better cause.
    fn close(&mut self, cause: Cause) {
        let Some(last) = self.last.as_mut().filter(|last| last.cause.is_none()) else { return };
        let end = last.end;
        let expected = self.expected.take().filter(|(expected, at)| expected.rank() > cause.rank() && end <= *at + EXPLAINS);
        last.cause = Some(expected.map_or(cause, |(expected, _)| expected));
        last.is_changed = true;
    }

    /// Handles the end of a session of an earlier run. One that is known already is ignored.
    fn precede(&mut self, end: Moment, kind: GapKind, now: Now) {
        if self.spans.iter().all(|span| span.end.wall(now) < end.wall(now)) {
            self.earlier = Some((end, kind));
        }
    }

    /// Counts the gap between the last session of an earlier run and the first one of this run.
    fn count_earlier(&mut self, now: Now) {
        let Some(last) = &self.last else { return };
        if let Some((end, kind)) = self.earlier.take() {
            let gap = last.wall(now).0.saturating_sub(end.wall(now));
            if gap > 0 {
                self.count.gap(kind, gap as f64 / 1e6);
            }
        }
    }

    /// The counter at the first frame of a session with this stream: what was before belongs to the last one.
    fn origin(&self, container: &str, counter: &Counter) -> u64 {
        let last = self.last.as_ref().filter(|last| last.container == short(container));
        let is_same = last.is_some_and(|last| counter.since(&last.last, DEVIATION, counter.rate as f64).is_some());
        if is_same { counter.pointer } else { 0 }
    }

    /// Extends, continues or closes the last session.
    fn follow(&mut self, container: &str, counter: &Counter, runs: bool, now: Now) {
        let next = Candidate { origin: self.origin(container, counter), counter: counter.clone() };
        let Some(last) = &mut self.last else {
            self.candidate.get_or_insert(next);
            return;
        };
        let is_open = last.cause.is_none();
        let frames = if last.container == short(container) { last.since(counter) } else { None };
        let lost = frames.map(|frames| last.lost(counter, frames));
        if !is_open && (!runs || !matches!((frames, lost), (Some(1..), Some(None)))) {
            self.candidate.get_or_insert(next);
            return;
        }
        let Some(frames) = frames else {
            // Another stream: by another process, or after an overrun by the same one.
            let is_same_owner = last.container == short(container) && counter.owner.is_some() && counter.owner == last.last.owner;
            self.close(if is_same_owner { Cause::Stalled } else { Cause::Unknown });
            self.candidate = Some(next);
            return;
        };
        let step = now.offset().saturating_sub(last.offset);
        if step.abs() >= STEP_MICROS {
            (last.offset, last.stepped) = (now.offset(), last.stepped.saturating_add(step));
            last.is_changed = true;
        }
        last.synchronised = now.synchronised;
        if !is_open {
            last.cause = None;
            last.is_changed = true;
        }
        last.frames += frames;
        self.count.frames += frames;
        let lost = lost.flatten();
        let end = counter.at.saturating_sub(Duration::from_secs_f64(lost.unwrap_or_default())).max(last.end);
        last.end = if frames == 0 { last.end } else { end };
        if lost.is_some() || !runs {
            last.last.pointer = counter.pointer;
            last.last.at = last.end;
            let counter = Counter { trigger: last.last.trigger, ..counter.clone() };
            self.close(Cause::Stalled);
            self.candidate = Some(Candidate { origin: counter.pointer, counter });
        } else if frames > 0 {
            last.last = counter.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::effort::{Kind, Length, efforts};
    use std::time::Duration;

    const WALL: i64 = 1_700_000_000_000_000;
    const RATE: u64 = 384_000;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn now(at: f64) -> Now {
        Now { at: seconds(at), wall: WALL + (at * 1e6) as i64, synchronised: None }
    }

    fn counter(at: f64, pointer: u64) -> Counter {
        Counter { at: seconds(at), pointer, rate: RATE, owner: Some(7), trigger: None, boundary: None }
    }

    /// Reads of one microphone at these seconds, with the frames in seconds; a negative number stands.
    fn reads(sessions: &mut Sessions, reads: &[(f64, f64)]) {
        for (at, frames) in reads {
            let counter = counter(*at, (frames.abs() * RATE as f64) as u64);
            let stream = if frames.is_sign_negative() { Stream::Stands(counter) } else { Stream::Runs(counter) };
            sessions.observe("a", "c", &stream, now(*at));
        }
    }

    /// `begin-end cause` of all rows, in seconds.
    fn shown(rows: &SortedMap<i64, SessionRow>) -> String {
        let second = |micros: i64| (micros - WALL) as f64 / 1e6;
        let line = |row: &SessionRow| format!("{}-{} {}", second(row.started), second(row.ended), row.cause.as_deref().unwrap_or("open"));
        let lines: Vec<String> = rows.values().map(line).collect();
        lines.join(", ")
    }

    fn write(sessions: &mut Sessions, rows: &mut SortedMap<i64, SessionRow>, at: f64) -> usize {
        let due = sessions.due(now(at));
        let count = due.len();
        rows.extend(due.into_iter().map(|row| (row.id, row)));
        count
    }

    #[test]
    fn a_day_consists_of_sessions_and_gaps() {
        type Rows = &'static [(i64, i64, Option<&'static str>)];
        let hour = 3_600_000_000;
        let cases: [(Rows, &str); 7] = [
            (&[], "none"),
            (&[(-30, -26, Some("flap"))], "none"),
            (&[(-30, -20, Some("flap")), (-19, -10, Some("stalled"))], "-24: -20..-19 flap, -10..0 stalled"),
            (&[(-5, -4, Some("unplugged"))], "-5: -4..0 unplugged"),
            (&[(-9, -2, Some("flap")), (-8, -7, Some("stalled"))], "-9: -2..0 stalled"),
            (&[(-3, 2, Some("flap"))], "-3:"),
            (&[(-5, -4, None), (-3, -2, Some("flap"))], "-5: -4..-3 power or boot, -2..0 flap"),
        ];
        for (rows, expected) in cases {
            let mut sessions = Sessions::new("boot");
            let row = |(id, (begin, end, cause)): (i64, &(i64, i64, Option<&str>))| SessionRow {
                id,
                device: "a".to_owned(),
                container: "c".to_owned(),
                started: WALL + begin * hour,
                ended: WALL + end * hour,
                frames: 1,
                rate: 1,
                cause: cause.map(str::to_owned),
                clock: "{}".to_owned(),
            };
            let now = Now { at: seconds(500_000.0), wall: WALL, synchronised: None };
            let _ = sessions.continue_from((1..).zip(rows).map(row).collect(), now);
            let hours = |time: i64| (time - WALL) / hour;
            let text = sessions.day("a", now).map_or("none".to_owned(), |day| {
                let gap = |(from, to, why): &(i64, i64, Arc<str>)| format!(" {}..{} {why}", hours(*from), hours(*to));
                assert_eq!(day.open, None);
                format!("{}:{}", hours(day.from), day.gaps.iter().map(gap).collect::<Vec<_>>().join(","))
            });
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_session_begins_with_the_first_frame_and_ends_with_the_last_one() {
        let (mut sessions, mut rows) = (Sessions::new("boot"), SortedMap::new());
        // One read proves nothing yet.
        reads(&mut sessions, &[(103.0, 3.0)]);
        assert_eq!(write(&mut sessions, &mut rows, 103.0), 0);
        reads(&mut sessions, &[(108.0, 8.0)]);
        assert_eq!(write(&mut sessions, &mut rows, 108.0), 1);
        assert_eq!(shown(&rows), "100-108 open");
        // The same read again, and one that is unknown, change nothing.
        reads(&mut sessions, &[(108.0, 8.0), (113.0, 13.0), (118.0, 18.0)]);
        sessions.observe("a", "c", &Stream::Unknown, now(123.0));
        assert_eq!(write(&mut sessions, &mut rows, 123.0), 0);
        // It stands since the second 120.
        reads(&mut sessions, &[(123.0, -20.0)]);
        assert_eq!(write(&mut sessions, &mut rows, 124.0), 1);
        assert_eq!(shown(&rows), "100-120 stalled");
        reads(&mut sessions, &[(128.0, -20.0), (200.0, 25.0)]);
        write(&mut sessions, &mut rows, 200.0);
        assert_eq!(shown(&rows), "100-120 stalled, 195-200 open");
        assert_eq!(rows.values().map(|row| row.frames).collect::<Vec<_>>(), [20 * RATE as i64, 5 * RATE as i64]);
        sessions.observe("a", "c", &Stream::Closed, now(204.0));
        write(&mut sessions, &mut rows, 205.0);
        assert_eq!(shown(&rows), "100-120 stalled, 195-200 unknown");
    }

    #[test]
    fn an_open_session_is_written_every_quarter_of_an_hour() {
        let mut sessions = Sessions::new("boot");
        let mut writes = 0;
        for read in 1..=720 {
            let at = f64::from(read) * 5.0;
            reads(&mut sessions, &[(100.0 + at, at)]);
            writes += sessions.due(now(100.0 + at)).len();
        }
        assert_eq!(writes, 4);
    }

    #[test]
    fn the_best_cause_explains_an_end() {
        let ended = Cause::Ended(Ending::Exit(1));
        let stopped = || Cause::Stopped("disabled".to_owned());
        let fields = || Cause::Replaced(vec!["image".to_owned()]);
        type Step<'a> = (f64, &'a dyn Fn(&mut Sessions, Now));
        let explain = |cause: Cause| move |sessions: &mut Sessions, now: Now| sessions.explain("a", None, cause.clone(), now);
        let end = |cause: Cause| move |sessions: &mut Sessions, now: Now| sessions.end("a", Some("c"), cause.clone(), now);
        let closed = |sessions: &mut Sessions, now: Now| sessions.observe("a", "c", &Stream::Closed, now);
        let other = |sessions: &mut Sessions, now: Now| sessions.end("a", Some("d"), Cause::Stalled, now);
        let cases: [(&[Step<'_>], &str); 9] = [
            (&[(1.0, &end(ended.clone())), (2.0, &end(Cause::Unplugged))], "unplugged"),
            (&[(1.0, &end(Cause::Unplugged)), (2.0, &end(ended.clone())), (3.0, &explain(Cause::Flap))], "flap"),
            (&[(1.0, &end(ended.clone())), (60.0, &end(Cause::Unplugged))], "recorder ended (code 1)"),
            (&[(1.0, &closed), (9.0, &end(ended.clone()))], "recorder ended (code 1)"),
            (&[(1.0, &closed)], "unknown"),
            (&[(1.0, &explain(Cause::Replaced(Vec::new()))), (2.0, &closed), (12.0, &end(fields()))], "replaced (image)"),
            (&[(1.0, &explain(stopped())), (2.0, &end(ended.clone()))], "stopped by user (disabled)"),
            (&[(1.0, &explain(stopped())), (2.0, &closed)], "stopped by user (disabled)"),
            (&[(1.0, &other)], "open"),
        ];
        for (steps, expected) in cases {
            let (mut sessions, mut rows) = (Sessions::new("boot"), SortedMap::new());
            reads(&mut sessions, &[(103.0, 3.0), (108.0, 8.0)]);
            steps.iter().for_each(|(at, step)| step(&mut sessions, now(108.0 + at)));
            write(&mut sessions, &mut rows, 200.0);
            assert_eq!(shown(&rows), format!("100-108 {expected}"));
        }
    }

    #[test]
    fn gaps_and_frames_are_counted() {
        let gaps = |sessions: &Sessions| {
            let (count, rate, last) = sessions.count("a").unwrap();
            let gaps = count.gaps.iter().zip(GapKind::LABELS).filter(|((gaps, _), _)| *gaps > 0);
            let text: Vec<String> = gaps.map(|((gaps, seconds), kind)| format!("{gaps} {kind} {seconds:.0}")).collect();
            (count.frames / rate, (last - WALL) / 1_000_000, text.join(", "))
        };
        let mut sessions = Sessions::new("boot");
        reads(&mut sessions, &[(103.0, 3.0), (108.0, 8.0)]);
        assert_eq!(gaps(&sessions), (8, 108, String::new()));
        sessions.end("a", None, Cause::Ended(Ending::Exit(1)), now(109.0));
        assert_eq!(gaps(&sessions), (8, 108, String::new()));
        reads(&mut sessions, &[(203.0, 3.0), (208.0, 8.0)]);
        assert_eq!(gaps(&sessions), (16, 208, "1 ended 92".to_owned()));
        sessions.end("a", None, Cause::Unplugged, now(209.0));
        reads(&mut sessions, &[(213.0, 3.0), (218.0, 8.0)]);
        assert_eq!(gaps(&sessions), (24, 218, "1 ended 92, 1 unplugged 2".to_owned()));
        // After a boot, whichever is read first, and however often.
        let mut rows = SortedMap::new();
        write(&mut sessions, &mut rows, 220.0);
        let rows: Vec<SessionRow> = rows.into_values().collect();
        for rows_first in [true, false] {
            let mut sessions = Sessions::new("other");
            if rows_first {
                sessions.continue_from(rows.clone(), now(390.0));
            }
            reads(&mut sessions, &[(403.0, 3.0), (408.0, 8.0)]);
            sessions.continue_from(rows.clone(), now(409.0));
            sessions.continue_from(rows.clone(), now(409.0));
            assert_eq!(gaps(&sessions), (8, 408, "1 power 182".to_owned()));
        }
        // A session that goes on is no gap.
        let mut sessions = Sessions::new("boot");
        sessions.continue_from(rows, now(220.0));
        reads(&mut sessions, &[(223.0, 13.0)]);
        assert_eq!(gaps(&sessions), (5, 223, String::new()));
    }

    #[test]
    fn a_microphone_without_a_recorder_has_no_open_session() {
        let (mut sessions, mut rows) = (Sessions::new("boot"), SortedMap::new());
        reads(&mut sessions, &[(103.0, 3.0), (108.0, 8.0)]);
        for at in [109.0, 112.0] {
            sessions.recorded_by(|_| false, now(at));
        }
        sessions.recorded_by(|_| true, now(113.0));
        write(&mut sessions, &mut rows, 113.0);
        assert_eq!(shown(&rows), "100-108 open");
        sessions.recorded_by(|_| false, now(115.0));
        write(&mut sessions, &mut rows, 115.0);
        assert_eq!(shown(&rows), "100-108 unknown");
        // It was an error: the frames prove it.
        reads(&mut sessions, &[(118.0, 18.0)]);
        write(&mut sessions, &mut rows, 118.0);
        assert_eq!(shown(&rows), "100-118 open");
    }

    #[test]
    fn the_counter_bridges_a_time_without_controller() {
        // Frames in seconds that the new Controller finds at 400, whether it reads the rows first, and what follows.
        for (frames, boot, expected) in
            [(300.0, "boot", "100-400 open"), (150.0, "boot", "100-250 stalled"), (10.0, "other", "100-108 power or boot, 390-400 open")]
        {
            for rows_first in [true, false] {
                let (mut before, mut rows) = (Sessions::new("boot"), SortedMap::new());
                reads(&mut before, &[(103.0, 3.0), (108.0, 8.0)]);
                write(&mut before, &mut rows, 108.0);
                let mut sessions = Sessions::new(boot);
                let known: Vec<SessionRow> = rows.values().cloned().collect();
                if rows_first {
                    sessions.continue_from(known.clone(), now(390.0));
                    reads(&mut sessions, &[(395.0, frames - 5.0), (400.0, frames)]);
                } else {
                    reads(&mut sessions, &[(395.0, frames - 5.0), (400.0, frames)]);
                    sessions.continue_from(known.clone(), now(400.0));
                }
                sessions.continue_from(known, now(400.0));
                write(&mut sessions, &mut rows, 400.0);
                let found = shown(&rows);
                if frames == 150.0 {
                    // What was lost is told, wherever it was.
                    assert!(found.starts_with("100-") && found.ends_with("-400 open") && rows.len() == 2, "{found}");
                } else {
                    assert_eq!(found, expected, "{rows_first}");
                }
            }
        }
    }

    #[test]
    fn rows_of_several_runs_without_a_database_are_one_session() {
        for observed_first in [true, false] {
            let mut rows = SortedMap::new();
            for run in 0..3 {
                let mut sessions = Sessions::new("boot");
                let at = 110.0 + 100.0 * f64::from(run);
                reads(&mut sessions, &[(at, at - 100.0), (at + 5.0, at - 95.0)]);
                write(&mut sessions, &mut rows, at + 5.0);
            }
            assert_eq!(shown(&rows), "100-115 open, 100-215 open, 100-315 open");
            let (saved, last) = (rows.values().cloned().collect::<Vec<_>>(), [(410.0, 310.0), (415.0, 315.0)]);
            let mut sessions = Sessions::new("boot");
            if observed_first {
                reads(&mut sessions, &last);
                write(&mut sessions, &mut rows, 415.0);
            }
            for id in sessions.continue_from(saved, now(416.0)) {
                assert!(rows.remove(&id).is_some());
            }
            reads(&mut sessions, &last);
            write(&mut sessions, &mut rows, 420.0);
            assert_eq!(shown(&rows), "100-415 open", "{observed_first}");
            assert_eq!(rows.values().next().unwrap().frames, 315 * RATE as i64);
        }
    }

    #[test]
    fn small_losses_add_up() {
        let (mut sessions, mut rows) = (Sessions::new("boot"), SortedMap::new());
        // Half a second is lost between two reads.
        for read in 1..=100 {
            reads(&mut sessions, &[(100.0 + 5.0 * f64::from(read), 4.5 * f64::from(read))]);
            write(&mut sessions, &mut rows, 100.0 + 5.0 * f64::from(read));
        }
        let recorded: i64 = rows.values().map(|row| row.ended - row.started).sum();
        assert!(rows.len() > 10 && (recorded - 450_000_000).abs() < 10_000_000, "{recorded} {}", shown(&rows));
    }

    #[test]
    fn a_row_says_whether_the_clock_was_synchronised_when_it_was_last_observed() {
        let mut sessions = Sessions::new("boot");
        reads(&mut sessions, &[(103.0, 3.0), (108.0, 8.0)]);
        let row = sessions.due(now(108.0)).pop().unwrap();
        assert!(row.clock.contains("\"synchronised\":null"), "{}", row.clock);
        let mut next = Sessions::new("boot");
        next.continue_from(vec![row], now(110.0));
        let at = Now { synchronised: Some(true), ..now(113.0) };
        next.observe("a", "c", &Stream::Runs(counter(113.0, 13 * RATE)), at);
        next.end("a", None, Cause::Unplugged, now(114.0));
        let row = next.due(now(114.0)).pop().unwrap();
        assert!(row.clock.contains("\"synchronised\":true"), "{}", row.clock);
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_a_session_and_changes_no_duration() {
        let (mut sessions, mut rows) = (Sessions::new("boot"), SortedMap::new());
        reads(&mut sessions, &[(103.0, 3.0), (108.0, 8.0)]);
        write(&mut sessions, &mut rows, 108.0);
        let year = 365 * 24 * 3_600_000_000;
        for step in [year, -year] {
            let at = Now { wall: now(113.0).wall + step, ..now(113.0) };
            sessions.observe("a", "c", &Stream::Runs(counter(113.0 + 1e-3, 13 * RATE)), at);
            let row = sessions.due(at).pop().unwrap();
            assert_eq!((row.started, row.cause.clone()), (WALL + 100_000_000 + step, None));
            assert!((row.ended - row.started - 13_000_000).abs() < 10_000, "{row:?}");
            assert!(row.clock.contains("\"stepped_s\":"), "{}", row.clock);
        }
        assert!(sessions.effort("a", now(113.0)).unwrap().share < 0.001);
    }

    #[test]
    fn a_step_of_the_wall_clock_in_a_gap_moves_the_closed_sessions_of_this_boot() {
        let year = 365 * 24 * 3_600_000_000;
        for step in [year, -year] {
            let after = |at: f64| Now { wall: now(at).wall + step, ..now(at) };
            let (mut sessions, mut rows) = (Sessions::new("boot"), SortedMap::new());
            reads(&mut sessions, &[(103.0, 3.0), (108.0, 8.0)]);
            sessions.end("a", None, Cause::Unplugged, now(109.0));
            write(&mut sessions, &mut rows, 110.0);
            let day = |sessions: &Sessions, at: f64| {
                let day = sessions.day("a", after(at)).unwrap();
                let second = |time: i64| (time - WALL - step) / 1_000_000;
                let gaps: Vec<(i64, i64)> = day.gaps.iter().map(|(from, to, _)| (second(*from), second(*to))).collect();
                let recorded = sessions.effort("a", after(at)).unwrap().share * DAY.as_secs_f64();
                (second(day.from), gaps, recorded.round())
            };
            assert_eq!(day(&sessions, 150.0), (100, vec![(108, 150)], 8.0));
            // The next Controller, which finds the rows.
            let mut next = Sessions::new("boot");
            next.continue_from(rows.values().cloned().collect(), after(151.0));
            for sessions in [&mut sessions, &mut next] {
                for (at, frames) in [(203.0, 3.0), (208.0, 8.0)] {
                    let counter = Counter { owner: Some(8), ..counter(at, (frames * RATE as f64) as u64) };
                    sessions.observe("a", "d", &Stream::Runs(counter), after(at));
                }
                assert_eq!(day(sessions, 208.0), (100, vec![(108, 200)], 16.0));
                assert_eq!(sessions.count("a").unwrap().0.gaps[GapKind::Unplugged as usize], (1, 92.0));
            }
        }
    }

    #[test]
    fn the_counter_of_a_kernel_with_32_bits_wraps() {
        assert_eq!(Counter::boundary(48_000), Some(48_000 << 15));
        assert_eq!((Counter::boundary(0), Counter::boundary(1 << 40)), (None, None));
        let boundary = Counter::boundary(48_000);
        let wrapping = |at: f64| {
            let pointer = (at * RATE as f64) as u64 % boundary.unwrap();
            Counter { pointer, boundary, ..counter(100.0 + at, 0) }
        };
        let (mut sessions, mut rows) = (Sessions::new("boot"), SortedMap::new());
        // 68 minutes to the boundary; once the Controller is away for three hours.
        for at in (5..20_000).step_by(5).filter(|at| !(5_000..16_000).contains(at)) {
            sessions.observe("a", "c", &Stream::Runs(wrapping(f64::from(at))), now(100.0 + f64::from(at)));
        }
        write(&mut sessions, &mut rows, 20_095.0);
        assert_eq!(shown(&rows), "100-20095 open");
        let row = rows.values().next().unwrap();
        assert!((row.frames - 19_995 * RATE as i64).abs() < 1000, "{row:?}");
    }

    #[test]
    fn the_rate_is_measured_and_the_share_is_that_of_a_day() {
        let mut sessions = Sessions::new("boot");
        for read in 1..=2000 {
            let at = f64::from(read) * 5.0;
            reads(&mut sessions, &[(100.0 + at, at * 1.0001)]);
        }
        let effort = sessions.effort("a", now(10_100.0)).unwrap();
        let (rate, nominal) = effort.rate.unwrap();
        assert!((rate / nominal as f64 - 1.0001).abs() < 1e-6 && (effort.share - 10_000.0 / 86_400.0).abs() < 1e-4, "{effort:?}");
        assert_eq!(sessions.effort("b", now(1.0)), None);
    }

    /// A microphone, its Recorder, and the Controller, with random faults.
    struct Station {
        seed: u64,
        boot: (u64, f64),
        container: u64,
        owner: u32,
        /// When the present stream began, and how long it stood.
        stream: (f64, f64),
        boundary: Option<u64>,
        sessions: Sessions,
        rows: SortedMap<i64, SessionRow>,
        /// Begin, end and cause of each gap.
        gaps: Vec<(f64, f64, String)>,
        /// When each boot began.
        boots: Vec<f64>,
        /// When the wall clock was stepped, and by how many seconds; none across a boot.
        steps: Vec<(f64, i64)>,
    }

    /// The clock of the card.
    const CARD: f64 = 1.00008;

    impl Station {
        fn dice(&mut self, sides: u64) -> u64 {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.seed >> 33) % sides
        }

        fn now(&self, at: f64) -> Now {
            let stepped: i64 = self.steps.iter().filter(|(step, _)| *step <= at).map(|(_, by)| by * 1_000_000).sum();
            Now { at: seconds(at - self.boot.1), wall: WALL + (at * 1e6) as i64 + stepped, synchronised: None }
        }

        fn counter(&self, at: f64) -> Counter {
            let frames = ((at - self.stream.0 - self.stream.1) * RATE as f64 * CARD) as u64;
            let pointer = self.boundary.map_or(frames, |boundary| frames % boundary);
            Counter {
                at: self.now(at).at,
                pointer,
                rate: RATE,
                owner: Some(self.owner),
                trigger: Some((self.stream.0 * 1e6) as u64),
                boundary: self.boundary,
            }
        }

        fn observe(&mut self, stream: &Stream, at: f64) {
            let container = format!("c{}", self.container);
            self.sessions.observe("m", &container, stream, self.now(at));
            self.write(at);
        }

        fn write(&mut self, at: f64) {
            let due = self.sessions.due(self.now(at));
            self.rows.extend(due.into_iter().map(|row| (row.id, row)));
        }

        fn end(&mut self, cause: Cause, at: f64) {
            let container = format!("c{}", self.container);
            self.sessions.end("m", Some(&container), cause, self.now(at));
            self.write(at);
        }

        fn reads(&mut self, from: f64, to: f64) {
            let mut at = from;
            while at < to {
                self.observe(&Stream::Runs(self.counter(at)), at);
                at += 5.0;
            }
        }

        fn begin(&mut self, at: f64) {
            self.container += 1;
            self.owner += 1;
            self.stream = (at, 0.0);
        }

        /// Sometimes steps the wall clock by up to a year, at some instant of so many seconds.
        fn may_step(&mut self, from: f64, period: u64) {
            if self.dice(3) == 0 {
                let (when, year) = (self.dice(period) as f64, 365 * 86_400);
                let by = self.dice(2 * year) as i64 - year as i64;
                self.steps.push((from + when + 0.25, by));
            }
        }

        /// One fault at `at`, after a time in which all was well; the time when frames arrive again.
        fn fault(&mut self, at: f64) -> f64 {
            let again = at + 20.0 + self.dice(3000) as f64;
            self.may_step(at, 60);
            let kind = self.dice(11);
            let cause = match kind {
                0 => {
                    self.end(Cause::Ended(Ending::Exit(1)), at + 0.5);
                    self.end(Cause::Unplugged, at + 1.0);
                    Cause::Unplugged
                }
                1 => {
                    self.end(Cause::Unplugged, at + 1.0);
                    self.sessions.explain("m", None, Cause::Flap, self.now(at + 2.0));
                    Cause::Flap
                }
                2 => {
                    let code = self.dice(200) as i64;
                    self.observe(&Stream::Closed, at + 0.5);
                    self.end(Cause::Ended(Ending::Exit(code)), at + 1.0);
                    Cause::Ended(Ending::Exit(code))
                }
                3 => {
                    let standing = self.counter(at);
                    for second in (2..(again - at) as u64).step_by(5) {
                        let read = at + second as f64;
                        self.observe(&Stream::Stands(Counter { at: self.now(read).at, trigger: None, ..standing.clone() }), read);
                    }
                    self.stream.1 += again - at;
                    self.gaps.push((at, again, Cause::Stalled.to_string()));
                    return again;
                }
                4 => {
                    // An overrun: the same process starts again.
                    let standing = self.counter(at);
                    self.observe(&Stream::Stands(Counter { at: self.now(at + 4.0).at, trigger: None, ..standing }), at + 4.0);
                    self.stream = (again, 0.0);
                    self.gaps.push((at, again, Cause::Stalled.to_string()));
                    return again;
                }
                5 => {
                    self.sessions.explain("m", None, Cause::Replaced(Vec::new()), self.now(at - 0.5));
                    self.end(Cause::Replaced(vec!["image".to_owned()]), at + 1.0);
                    Cause::Replaced(vec!["image".to_owned()])
                }
                6 => {
                    self.sessions.explain("m", None, Cause::Stopped("disabled".to_owned()), self.now(at - 0.5));
                    self.observe(&Stream::Closed, at + 0.5);
                    Cause::Stopped("disabled".to_owned())
                }
                7 => {
                    self.boot = (self.boot.0 + 1, again - 10.0);
                    self.boots.push(self.boot.1);
                    self.restart(again - 5.0);
                    Cause::Power
                }
                8 => {
                    // The Controller is away, and nothing is lost.
                    self.restart(again);
                    return again;
                }
                9 => {
                    // Nothing is known.
                    for second in (2..(again - at) as u64).step_by(5) {
                        self.observe(&Stream::Unknown, at + second as f64);
                    }
                    return again;
                }
                _ => {
                    self.observe(&Stream::Closed, at + 2.0);
                    Cause::Unknown
                }
            };
            self.gaps.push((at, again, cause.to_string()));
            self.begin(again);
            again
        }

        fn restart(&mut self, at: f64) {
            self.sessions = Sessions::new(&format!("boot {}", self.boot.0));
            let day = self.now(at).a_day_ago();
            let rows = self.rows.values().filter(|row| row.cause.is_none() || row.ended >= day).cloned().collect();
            self.sessions.continue_from(rows, self.now(at));
            self.write(at);
        }
    }

    #[test]
    fn over_a_month_with_random_faults_sessions_and_gaps_are_all_of_the_time() {
        let month = 30.0 * 86_400.0;
        for seed in 0..4 {
            let mut station = Station {
                seed,
                boot: (0, -1000.0),
                container: 0,
                owner: 100,
                stream: (0.0, 0.0),
                boundary: Counter::boundary(48_000).filter(|_| seed % 2 == 0),
                sessions: Sessions::new("boot 0"),
                rows: SortedMap::new(),
                gaps: Vec::new(),
                boots: vec![-1000.0],
                steps: Vec::new(),
            };
            let mut at = 0.0;
            while at < month {
                let fault = at + 60.0 + station.dice(9000) as f64 + station.dice(1000) as f64 / 1000.0;
                station.may_step(at, (fault - at) as u64);
                station.reads(at + 2.0, fault);
                at = station.fault(fault);
            }
            station.reads(at + 2.0, at + 100.0);
            let rows: Vec<SessionRow> = station.rows.values().cloned().collect();
            // The truth: seconds by the clock that is never stepped.
            let truth = |row: &SessionRow| {
                let clock: Value = serde_json::from_str(&row.clock).unwrap();
                let boot: usize = clock["boot"].as_str().unwrap().trim_start_matches("boot ").parse().unwrap();
                let time = |key: &str| station.boots[boot] + clock[key].as_i64().unwrap() as f64 / 1e6;
                (boot, time("begin_us"), time("end_us"))
            };
            assert_eq!(rows.len(), station.gaps.len() + 1, "seed {seed}");
            assert!(rows.iter().rev().skip(1).all(|row| row.cause.is_some()) && rows.last().unwrap().cause.is_none());
            for (pair, (begin, end, cause)) in rows.windows(2).zip(&station.gaps) {
                let (before, after) = (&pair[0], &pair[1]);
                let ((_, started, ended), (_, next, _)) = (truth(before), truth(after));
                assert_eq!(before.cause.as_ref(), Some(cause), "seed {seed}: gap at {begin}");
                assert!(started < ended && ended <= next, "{before:?} {after:?}");
                // The last read was some seconds before, or the last write before a power cut.
                let known = if cause == "power or boot" { 905.0 } else { 6.0 };
                assert!((begin - known..begin + 0.2).contains(&ended), "seed {seed}: {cause} at {begin}: {before:?}");
                assert!((next - end).abs() < 2.1, "seed {seed}: {cause} until {end}: {after:?}");
                let frames = (before.ended - before.started) as f64 / 1e6 * RATE as f64 * CARD;
                assert!((before.frames as f64 - frames).abs() < 2.2 * RATE as f64, "seed {seed}: {before:?}");
            }
            // Of each boot, sessions and gaps are all of the true time, and each step of the clock in a gap is named.
            let mut named = 0;
            for rows in rows.chunk_by(|before, after| truth(before).0 == truth(after).0) {
                let effort = efforts(rows, 0, rows.last().unwrap().ended, None).pop().unwrap();
                let begun = truth(&rows[0]).1;
                let all = truth(rows.last().unwrap()).2 - begun;
                assert!(((effort.to - effort.from) as f64 / 1e6 - all).abs() < 0.001, "seed {seed}: {all}");
                assert_eq!(effort.parts.len(), 2 * rows.len() - 1, "seed {seed}");
                let recorded: f64 = rows.iter().map(|row| truth(row).2 - truth(row).1).sum();
                assert!((effort.recorded as f64 / 1e6 - recorded).abs() < 0.001, "seed {seed}: {recorded}");
                for (part, pair) in effort.parts.iter().skip(1).step_by(2).zip(rows.windows(2)) {
                    let (from, to) = (truth(&pair[0]).2, truth(&pair[1]).1);
                    assert!(((part.to - part.from) as f64 / 1e6 - (to - from)).abs() < 0.001, "seed {seed}: {part:?}");
                    let Kind::Gap(_, Length::SinceBoot(stepped)) = part.kind else { panic!("seed {seed}: {part:?}") };
                    // What happens within a read of either end can be told as a step of the session.
                    let is_in = |slack: f64| {
                        let within = station.steps.iter().filter(|(at, _)| (from + slack..to - slack).contains(at));
                        within.map(|(_, by)| by * 1_000_000).sum::<i64>()
                    };
                    if is_in(8.0) == is_in(-8.0) {
                        assert!((stepped - is_in(0.0)).abs() < STEP_MICROS, "seed {seed}: {part:?}");
                        named += usize::from(stepped != 0);
                    }
                }
            }
            assert!(named > 5, "seed {seed}: {named}");
        }
    }
}
