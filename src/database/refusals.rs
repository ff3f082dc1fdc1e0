//! Rows whose last write failed, and when each is written again.
//!
//! Shared between the main loop, which does not send such a row again before its time, and the `database` thread,
//! which notes what the server answered. Each row has its own back-off, so it delays no other row.

use crate::sorted_map::SortedMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time between two attempts to write a row that the server refuses: the server logs each of them.
const REFUSED: Duration = Duration::from_secs(60);
/// The same for a row that another client has locked: an attempt neither waits nor is logged.
const LOCKED: Duration = Duration::from_secs(4);

/// Why a row was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another client has locked it.
    Locked,
    /// The server reported an error.
    Refused,
}

/// The failed rows by device; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    rows: Arc<Mutex<SortedMap<String, Failed>>>,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    count: u32,
    again: Instant,
}

impl Refusals {
    fn rows(&self) -> MutexGuard<'_, SortedMap<String, Failed>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a write failed. Returns how many failed in a row.
    pub fn failed(&self, device: &str, refusal: Refusal, now: Instant) -> u32 {
        let mut rows = self.rows();
        let count = rows.get(device).map_or(0, |failed| failed.count).saturating_add(1);
        let longest = match refusal {
            Refusal::Locked => LOCKED,
            Refusal::Refused => REFUSED,
        };
        let again = now + longest.min(Duration::from_secs(1 << (count - 1).min(6)));
        rows.insert(device.to_owned(), Failed { count, again });
        count
    }

    /// Notes that a row was written. If it had been refused, the cause may be over for the others, too.
    pub fn written(&self, device: &str, now: Instant) {
        let mut rows = self.rows();
        if rows.remove(device).is_some() {
            rows.values_mut().for_each(|failed| failed.again = failed.again.min(now));
        }
    }

    /// Whether no write failed the last time.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows().is_empty()
    }

    /// How many writes of this row failed since the last success.
    #[must_use]
    pub fn count(&self, device: &str) -> u32 {
        self.rows().get(device).map_or(0, |failed| failed.count)
    }

    /// Whether it is too early to write this row again.
    #[must_use]
    pub fn is_early(&self, device: &str, now: Instant) -> bool {
        self.rows().get(device).is_some_and(|failed| now < failed.again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_tried_again_after_its_own_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let refusals = Refusals::default();
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..8 {
            refusals.failed("a", Refusal::Refused, at(now));
            let wait = (0..).find(|wait| !refusals.is_early("a", at(now + wait))).unwrap();
            waits.push(wait);
            now += wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(!refusals.is_early("b", at(now)));
        for _ in 0..8 {
            refusals.failed("b", Refusal::Locked, at(now));
        }
        assert!(refusals.is_early("b", at(now + 3)) && !refusals.is_early("b", at(now + 4)));
        assert_eq!((refusals.count("a"), refusals.count("c")), (8, 0));
    }

    #[test]
    fn a_success_after_a_refusal_lets_the_others_try_again() {
        let now = Instant::now();
        let refusals = Refusals::default();
        for device in ["a", "b"] {
            refusals.failed(device, Refusal::Refused, now);
        }
        refusals.written("other", now);
        assert!(refusals.is_early("b", now));
        refusals.written("a", now);
        assert!(!refusals.is_early("b", now));
        assert_eq!((refusals.count("a"), refusals.count("b")), (0, 1));
    }
}
