//! How far a container's log has been forwarded, so that a new stream can continue there and each line is forwarded
//! once.
//!
//! Podman returns the log since a given time, with time stamps in whole seconds. A position therefore counts frames:
//! the latest second, how many frames of it were read, and how many frames of earlier seconds followed, which happens
//! when the wall clock is set back. A new stream begins a little before that second, and all its frames up to the last
//! one that was read are skipped. This requires one fact: a log file keeps the order in which the container wrote.
//!
//! After conmon has replaced a file at its size limit, counted frames may be missing. A frame of a later second then
//! ends the skipping. When the clock was set back, there may be no such frame: if a read of the whole log shows that
//! the counted frames are missing, the caller must call [`Position::start_over`].

/// Streams begin this many seconds earlier than necessary, so that small steps of the clock need no handling.
const SLACK: u64 = 2;

/// How far the log was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The latest second of which a frame was read.
    second: u64,
    /// Number of its frames, up to the first frame of an earlier second.
    read: u64,
    /// Number of frames after those; none of them is of a later second.
    after: u64,
    /// No frame that follows is older than this second.
    oldest: u64,
}

/// What must be skipped of a stream that was opened at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    second: u64,
    read: u64,
    after: u64,
}

impl Position {
    /// Before the first frame of a log.
    #[must_use]
    pub fn beginning() -> Self {
        Self::default()
    }

    /// At the beginning of a second: earlier frames count as read.
    #[must_use]
    pub fn at(second: u64) -> Self {
        Self { second, read: 0, after: 0, oldest: second }
    }

    /// Moves on to the beginning of a second, if all frames that were read are of earlier ones; whether it did. Otherwise
    /// frames of this second or later may follow.
    pub fn skip_to(&mut self, second: u64) -> bool {
        let moves = second > self.second;
        if moves {
            *self = Self::at(second);
        } else {
            self.oldest = self.oldest.min(second);
        }
        moves
    }

    /// Notes that a frame was read.
    pub fn advance(&mut self, second: u64) {
        if second > self.second {
            *self = Self { second, read: 1, after: 0, oldest: second };
        } else if second == self.second && self.after == 0 {
            self.read += 1;
        } else {
            self.after += 1;
            self.oldest = self.oldest.min(second);
        }
    }

    /// Notes that the clock was set back: frames of this second or later may follow.
    pub fn clock_set_back(&mut self, second: u64) {
        self.oldest = self.oldest.min(second);
    }

    /// Whether a stream from here may contain unread frames of before this second.
    #[must_use]
    pub fn may_precede(&self, second: u64) -> bool {
        self.oldest < second
    }

    /// The second since 1970 at which a stream must begin, to contain all frames that were not read.
    #[must_use]
    pub fn since(&self) -> u64 {
        // Without a counted frame, earlier frames could not be recognized and skipped.
        if self.read + self.after == 0 { self.oldest } else { self.oldest.saturating_sub(SLACK) }
    }

    /// What must be skipped of such a stream.
    #[must_use]
    pub fn skip(&self) -> Skip {
        Skip { second: self.second, read: self.read, after: self.after }
    }

    /// Whether the skipping may never end, as frames of later seconds may not follow.
    #[must_use]
    pub fn needs_full_read(&self, now: u64) -> bool {
        self.read + self.after > 0 && (self.after > 0 || self.oldest < self.second || now < self.second)
    }

    /// Forgets the counted frames, as the log does not contain them any more.
    pub fn start_over(&mut self) {
        *self = Self::at(self.oldest);
    }
}

impl Skip {
    /// Whether the next frame of the stream, which is of this second, was read before.
    pub fn is_known(&mut self, second: u64) -> bool {
        if second > self.second {
            *self = Self { second: 0, read: 0, after: 0 };
            return false;
        }
        if self.read > 0 {
            self.read -= u64::from(second == self.second);
            return true;
        }
        if self.after > 0 {
            self.after -= 1;
            return true;
        }
        false
    }

    /// Whether the stream has not reached the last counted frame.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.read + self.after > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `log` (the second of each frame) from `position`, as Podman returns it. Returns the indexes of new frames.
    fn read(position: &mut Position, log: &[u64]) -> Vec<usize> {
        let mut skip = position.skip();
        let since = position.since();
        let mut new = Vec::new();
        for (index, second) in log.iter().copied().enumerate().filter(|(_, second)| *second >= since) {
            if !skip.is_known(second) {
                position.advance(second);
                new.push(index);
            }
        }
        new
    }

    #[test]
    fn wherever_streams_break_each_frame_is_new_once_and_in_order() {
        let clocks: [&[u64]; 5] = [
            &[100, 100, 100, 101, 105, 105],
            &[100, 101, 102, 101, 101, 102, 103, 103],
            // set back by an hour, then forward again
            &[5000, 5001, 5001, 1400, 1400, 1401, 5001, 5001, 5002],
            &[5000, 4000, 3000, 2000, 3000, 4000, 5000],
            &[100; 9],
        ];
        for log in clocks {
            for first in 0..=log.len() {
                for second in first..=log.len() {
                    let mut position = Position::beginning();
                    let mut found = Vec::new();
                    for end in [first, second, log.len(), log.len()] {
                        // as the forwarder reports a clock that was set back
                        position.clock_set_back(log[..end].iter().copied().min().unwrap_or(0));
                        found.extend(read(&mut position, &log[..end]));
                    }
                    assert_eq!(found, (0..log.len()).collect::<Vec<_>>(), "{log:?} broken after {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn only_later_frames_are_new_to_a_position_in_the_middle() {
        let mut position = Position::at(102);
        assert_eq!(read(&mut position, &[100, 101, 102, 102, 103]), [2, 3, 4]);
        assert_eq!(position.since(), 101);
        assert_eq!(Position::beginning().since(), 0);
    }

    #[test]
    fn what_was_written_before_a_second_is_skipped_and_nothing_is_new_twice() {
        let log = [100, 101, 101, 103, 104, 104, 105];
        for read_before in 0..=log.len() {
            for second in 99..=106 {
                let mut position = Position::beginning();
                read(&mut position, &log[..read_before]);
                position.skip_to(second);
                let new = read(&mut position, &log);
                let expected: Vec<usize> = (read_before..log.len()).filter(|index| log[*index] >= second).collect();
                // The rest of a second of which frames were read comes, too.
                let last = if read_before > 0 { log[read_before - 1] } else { 0 };
                let all: Vec<usize> = (read_before..log.len()).collect();
                assert_eq!(new, if second > last { expected } else { all }, "{read_before} frames read, skipped to {second}");
            }
        }
    }

    #[test]
    fn a_replaced_log_continues_with_the_next_second() {
        let mut position = Position::beginning();
        read(&mut position, &[100, 100, 100]);
        assert_eq!(read(&mut position, &[101, 101]), [0, 1]);
        // with a clock that was set back nothing would end the skipping
        let mut position = Position::beginning();
        read(&mut position, &[5000, 1000, 1000]);
        assert!(position.needs_full_read(1001));
        let mut skip = position.skip();
        assert!([1001, 1002].into_iter().all(|second| skip.is_known(second)) && skip.is_pending());
        position.start_over();
        assert_eq!(read(&mut position, &[1001, 1002]), [0, 1]);
    }
}
