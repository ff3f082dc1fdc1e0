//! Where the frames of a log stream go: the sink skips those that were forwarded before, joins the others to lines, queues
//! these for Redis and keeps them for the status page.

use std::time::{Duration, SystemTime};

use crate::clock::seconds;
use crate::logs::cursor::{Position, Skip};
use crate::logs::line::{Joiner, Origin, StampedText};
use crate::logs::recent::RecentLines;
use crate::podman::frames::Output;
use crate::redis::publisher::Publisher;

/// How long lines wait for room in the queue.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the first stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At the beginning of the log.
    Beginning,
    /// After this second; earlier lines are not forwarded.
    After(u64),
}

/// The state that the frames of a container's log change.
#[derive(Debug)]
pub(super) struct FrameSink {
    pub(super) position: Position,
    /// Frames up to this second were written before the Controller started; they are counted and not forwarded.
    pub(super) mute: Option<u64>,
    pub(super) origin: Origin,
    /// Bytes of all streams.
    pub(super) bytes: u64,
    /// The first frame of the log at the last check, and how many bytes had been read by then.
    pub(super) first_frame: Option<Vec<u8>>,
    pub(super) checked: u64,
    joiner: Joiner,
    publisher: Publisher,
    recent: RecentLines,
}

impl FrameSink {
    pub(super) fn new(start: Start, origin: Origin, publisher: Publisher, recent: RecentLines) -> Self {
        let (position, mute) = match start {
            Start::Beginning => (Position::beginning(), None),
            Start::After(second) => (Position::at(second), Some(second)),
        };
        Self { position, mute, joiner: Joiner::default(), origin, publisher, recent, bytes: 0, first_frame: None, checked: 0 }
    }

    /// Goes on after a time in which nobody listened: lines of before this second are not forwarded any more.
    pub(super) fn resume(&mut self, second: u64) {
        if self.position.skip_to(second) {
            // What was there may have been lost meanwhile, and nobody missed it.
            (self.first_frame, self.joiner) = (None, Joiner::default());
        }
        self.mute = self.position.may_precede(second).then(|| second.saturating_sub(1));
    }

    /// Handles one frame, and adds the lines that end in it to `lines`.
    pub(super) fn push(&mut self, skip: &mut Skip, output: Output, frame: &[u8], now: SystemTime, lines: &mut Vec<String>) {
        self.bytes += frame.len() as u64;
        let text = StampedText::parse(frame);
        let second = text.second.unwrap_or_else(|| seconds(now));
        if skip.is_known(second) {
            return;
        }
        self.position.advance(second);
        if self.mute.is_none_or(|until| second > until) {
            let origin = &self.origin;
            self.joiner.push(output, text, |line| lines.push(origin.payload(line, now)));
        }
    }

    /// Ends incomplete lines: the container's run is over, and the rest of them will not come.
    pub(super) fn finish_run(&mut self) {
        let (origin, mut lines) = (&self.origin, Vec::new());
        self.joiner.finish(|line| lines.push(origin.payload(line, SystemTime::now())));
        self.forward(lines);
    }

    /// Queues lines for Redis, and waits for room; keeps them for the status page.
    pub(super) fn forward(&self, lines: Vec<String>) {
        if !lines.is_empty() {
            self.recent.add(&lines);
            self.publisher.log_lines(lines, PATIENCE);
        }
    }
}
