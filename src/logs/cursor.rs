//! How far a container's log has been forwarded, such that a new stream can go on there: each line once. [p]
//!
//! Podman can be asked for the log since a moment, and shows whole seconds only. A position is therefore counted: the
//! latest second seen, how many frames of it were taken, and how many of earlier seconds came after those, which happens
//! when the wall clock is set back. A new stream begins a little before that second; everything in it up to the last
//! frame that was taken is skipped. That rests on one fact: a log file keeps the order in which the container wrote.
//!
//! Once conmon has thrown the file away at its size limit, frames that a position counts may be gone. A frame of a later
//! second then ends the skipping; with a clock that was set back there is no such frame, and [`Position::start_over`]
//! must be called once a look at the whole log has shown that the counted frames are not there.

/// Streams begin so many seconds before the earliest second in question: small steps of the clock need no care.
const SLACK: u64 = 2;

/// How far the log was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The latest second of which a frame was taken.
    second: u64,
    /// How many frames of it, up to the first one of an earlier second.
    taken: u64,
    /// How many frames after those, as long as none is of a later second.
    beyond: u64,
    /// No frame that is still to come is older.
    oldest: u64,
}

/// What is still to be skipped of a stream that was opened at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    second: u64,
    taken: u64,
    beyond: u64,
}

impl Position {
    /// Before the first frame of a log.
    #[must_use]
    pub fn beginning() -> Self {
        Self::default()
    }

    /// Right at the beginning of a second: frames before it count as taken.
    #[must_use]
    pub fn at(second: u64) -> Self {
        Self { second, taken: 0, beyond: 0, oldest: second }
    }

    /// Notes that a frame was taken.
    pub fn take(&mut self, second: u64) {
        if second > self.second {
            *self = Self { second, taken: 1, beyond: 0, oldest: second };
        } else if second == self.second && self.beyond == 0 {
            self.taken += 1;
        } else {
            self.beyond += 1;
            self.oldest = self.oldest.min(second);
        }
    }

    /// Notes that the clock was set back: frames as old as `second` may come.
    pub fn allow(&mut self, second: u64) {
        self.oldest = self.oldest.min(second);
    }

    /// Where a stream has to begin, in seconds since 1970, to hold all that is still to come.
    #[must_use]
    pub fn since(&self) -> u64 {
        // Without a frame to count there is nothing to skip by.
        if self.taken + self.beyond == 0 { self.oldest } else { self.oldest.saturating_sub(SLACK) }
    }

    /// What of such a stream was taken already.
    #[must_use]
    pub fn skip(&self) -> Skip {
        Skip { second: self.second, taken: self.taken, beyond: self.beyond }
    }

    /// Whether frames of later seconds cannot be relied on to end the skipping.
    #[must_use]
    pub fn needs_a_look(&self, now: u64) -> bool {
        self.taken + self.beyond > 0 && (self.beyond > 0 || self.oldest < self.second || now < self.second)
    }

    /// Forgets what was taken, as the log does not hold it any more.
    pub fn start_over(&mut self) {
        *self = Self::at(self.oldest);
    }
}

impl Skip {
    /// Whether the next frame of the stream, which is of this second, was taken already.
    pub fn is_known(&mut self, second: u64) -> bool {
        if second > self.second {
            *self = Self { second: 0, taken: 0, beyond: 0 };
            return false;
        }
        if self.taken > 0 {
            self.taken -= u64::from(second == self.second);
            return true;
        }
        if self.beyond > 0 {
            self.beyond -= 1;
            return true;
        }
        false
    }

    /// Whether frames that were taken have not shown up yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.taken + self.beyond > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `log` (a second a frame) from `position` as Podman gives it; the indexes of the frames that were new.
    fn read(position: &mut Position, log: &[u64]) -> Vec<usize> {
        let mut skip = position.skip();
        let since = position.since();
        let mut new = Vec::new();
        for (index, second) in log.iter().copied().enumerate().filter(|(_, second)| *second >= since) {
            if !skip.is_known(second) {
                position.take(second);
                new.push(index);
            }
        }
        new
    }

    #[test]
    fn whatever_the_breaks_each_frame_is_new_once_and_in_order() {
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
                        // what `allow` is told when the clock is seen to be set back
                        position.allow(log[..end].iter().copied().min().unwrap_or(0));
                        found.extend(read(&mut position, &log[..end]));
                    }
                    assert_eq!(found, (0..log.len()).collect::<Vec<_>>(), "{log:?} broken after {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn only_what_comes_later_is_new_to_a_position_in_the_middle() {
        let mut position = Position::at(102);
        assert_eq!(read(&mut position, &[100, 101, 102, 102, 103]), [2, 3, 4]);
        assert_eq!(position.since(), 101);
        assert_eq!(Position::beginning().since(), 0);
    }

    #[test]
    fn a_log_that_was_thrown_away_goes_on_with_the_next_second() {
        let mut position = Position::beginning();
        read(&mut position, &[100, 100, 100]);
        assert_eq!(read(&mut position, &[101, 101]), [0, 1]);
        // with a clock that was set back nothing would end the skipping
        let mut position = Position::beginning();
        read(&mut position, &[5000, 1000, 1000]);
        assert!(position.needs_a_look(1001));
        let mut skip = position.skip();
        assert!([1001, 1002].into_iter().all(|second| skip.is_known(second)) && skip.is_pending());
        position.start_over();
        assert_eq!(read(&mut position, &[1001, 1002]), [0, 1]);
    }
}
