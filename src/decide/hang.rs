//! Decides when threads that hang are a reason to replace the process.
//!
//! Every call that can block has a deadline, and a thread that exceeds it is ended or abandoned. This is for what hangs
//! all the same: another process image, with the same id, has none of these threads. It costs half a second in which
//! nothing is observed; Recorders continue and are adopted.

use std::fmt;
use std::time::{Duration, Instant};

/// So many threads that hang are reason enough. A thread without which a function is lost counts as much.
const LIMIT: usize = 3;
/// It must be so for this time: after a pause of the whole process, all answers seem to be late for a moment.
const CONFIRMED: Duration = Duration::from_secs(5);
/// Time between two replacements: what hangs again at once is not helped by another one.
const AGAIN: Duration = Duration::from_secs(600);

/// The threads that hang, far beyond their deadlines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hung {
    /// Abandoned threads that wait for PostgreSQL.
    pub database: usize,
    /// Scans of the sound cards, once so many hang that none can follow.
    pub scans: usize,
    /// The thread that lists containers.
    pub podman: usize,
    /// Actions: the microphone of each has none other meanwhile.
    pub actions: usize,
    /// The thread that publishes to Redis.
    pub publisher: usize,
    /// The thread that receives nudges.
    pub nudge: usize,
}

impl Hung {
    fn is_enough(&self) -> bool {
        let lost = self.scans + self.podman + self.actions + self.publisher + self.nudge;
        lost > 0 || self.database >= LIMIT
    }
}

impl fmt::Display for Hung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("database", self.database),
            ("probe", self.scans),
            ("podman", self.podman),
            ("action", self.actions),
            ("publisher", self.publisher),
            ("nudge", self.nudge),
        ];
        let shown: Vec<String> = counts.iter().filter(|(_, count)| *count > 0).map(|(thread, count)| format!("{count} {thread}")).collect();
        write!(f, "{}", shown.join(", "))
    }
}

/// What a replacement must not interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    None,
    /// Actions, which are not hung: a container may be half created or replaced.
    Actions,
    /// A shutdown.
    Shutdown,
}

/// When the process is replaced.
#[derive(Debug)]
pub struct Replacement {
    /// When it was last replaced, or could not be.
    last: Option<Instant>,
    /// Since when threads that hang are a reason.
    since: Option<Instant>,
}

impl Replacement {
    /// `last`: when this process began, if it is a replacement.
    #[must_use]
    pub fn new(last: Option<Instant>) -> Self {
        Self { last, since: None }
    }

    /// Whether it is due now. Must be called regularly.
    pub fn is_due(&mut self, hung: &Hung, work: Work, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if !hung.is_enough() {
            self.since = None;
            return false;
        }
        let is_confirmed = now.saturating_duration_since(since) >= CONFIRMED;
        is_confirmed && work == Work::None && self.last.is_none_or(|last| now.saturating_duration_since(last) >= AGAIN)
    }

    /// Notes that the process could not be replaced.
    pub fn failed(&mut self, now: Instant) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_function_or_several_threads_are_a_reason() {
        let start = Instant::now();
        let table = [
            (Hung::default(), false, ""),
            (Hung { database: LIMIT - 1, ..Hung::default() }, false, "2 database"),
            (Hung { database: LIMIT, ..Hung::default() }, true, "3 database"),
            (Hung { podman: 1, ..Hung::default() }, true, "1 podman"),
            (Hung { publisher: 1, nudge: 1, ..Hung::default() }, true, "1 publisher, 1 nudge"),
            (Hung { database: 1, actions: 2, ..Hung::default() }, true, "1 database, 2 action"),
            (Hung { scans: 9, ..Hung::default() }, true, "9 probe"),
        ];
        for (hung, expected, text) in table {
            let mut replacement = Replacement::new(None);
            assert!(!replacement.is_due(&hung, Work::None, start));
            assert_eq!((replacement.is_due(&hung, Work::None, start + CONFIRMED), hung.to_string().as_str()), (expected, text));
        }
    }

    #[test]
    fn neither_actions_nor_a_shutdown_are_interrupted_and_it_is_rare() {
        let (start, hung) = (Instant::now(), Hung { database: LIMIT, ..Hung::default() });
        let mut replacement = Replacement::new(None);
        for work in [Work::Actions, Work::Shutdown] {
            assert!(!replacement.is_due(&hung, work, start) && !replacement.is_due(&hung, work, start + CONFIRMED));
        }
        assert!(replacement.is_due(&hung, Work::None, start + CONFIRMED));
        replacement.failed(start);
        for mut replacement in [replacement, Replacement::new(Some(start))] {
            assert!(!replacement.is_due(&hung, Work::None, start + AGAIN - CONFIRMED));
            assert!(!replacement.is_due(&hung, Work::None, start + AGAIN - Duration::from_secs(1)));
            assert!(replacement.is_due(&hung, Work::None, start + AGAIN));
        }
    }

    #[test]
    fn what_answers_again_within_seconds_is_no_reason() {
        let (start, hung) = (Instant::now(), Hung { podman: 1, ..Hung::default() });
        let mut replacement = Replacement::new(None);
        assert!(!replacement.is_due(&hung, Work::None, start));
        assert!(!replacement.is_due(&Hung::default(), Work::None, start + CONFIRMED));
        assert!(!replacement.is_due(&hung, Work::None, start + 2 * CONFIRMED));
        assert!(replacement.is_due(&hung, Work::None, start + 3 * CONFIRMED));
    }
}
