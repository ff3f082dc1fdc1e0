//! When a Recorder that failed may be started again.
//!
//! The first failure is retried at once, the next ones after 1, 2, 4 … 60 s, for ever. The failures of a device are
//! reset when its Recorder has run for 60 s, when the microphone is connected again, and when the container spec
//! changes.

use crate::sorted_map::SortedMap;
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(60);
/// Time between two attempts while a prerequisite is missing; an attempt takes Podman about 10 ms.
const PREREQUISITE_RETRY: Duration = Duration::from_secs(2);
/// Likewise for a worker.
const WORKER_RETRY: Duration = Duration::from_secs(3600);
/// A run of this duration resets the failures.
const PROVEN: Duration = Duration::from_secs(60);

/// Maximum time between two replacements of a container that differs right after its creation.
const LONGEST_DRIFT: Duration = Duration::from_secs(3600);

/// The failures of all devices.
#[derive(Debug)]
pub struct Backoffs {
    devices: SortedMap<String, Backoff>,
    /// The delay after the first failure, and after the second one; then it doubles.
    first: [Duration; 2],
    longest: Duration,
    /// Time between two attempts while a prerequisite is missing.
    prerequisite: Duration,
}

impl Default for Backoffs {
    fn default() -> Self {
        Self {
            devices: SortedMap::new(),
            first: [Duration::ZERO, Duration::from_secs(1)],
            longest: LONGEST,
            prerequisite: PREREQUISITE_RETRY,
        }
    }
}

/// What was tried. Failures of one attempt do not delay another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<'a> {
    /// Starting a container from a spec with this hash.
    Start(&'a str),
    /// Stopping and removing containers.
    Stop,
}

#[derive(Debug)]
struct Backoff {
    failures: u32,
    until: Instant,
    running_since: Option<Instant>,
    /// Hash of the spec; `None` for a stop.
    spec: Option<String>,
}

impl Backoffs {
    /// For containers that differ right after their creation: 1 s, doubling up to 1 h.
    #[must_use]
    pub fn of_drifts() -> Self {
        Self {
            devices: SortedMap::new(),
            first: [Duration::from_secs(1), Duration::from_secs(2)],
            longest: LONGEST_DRIFT,
            ..Self::default()
        }
    }

    /// For workers, which need not have an image on every station: each attempt wakes a Podman that sleeps.
    #[must_use]
    pub fn of_workers() -> Self {
        Self { prerequisite: WORKER_RETRY, ..Self::default() }
    }

    /// Somebody may have provided what was missing: it is tried again at once.
    pub fn retry_prerequisites(&mut self) {
        self.devices.retain(|_, backoff| backoff.failures > 0);
    }

    fn delay(&self, failures: u32) -> Duration {
        match failures {
            0 | 1 => self.first[0],
            n => (self.first[1] * (1 << (n - 2).min(16))).min(self.longest),
        }
    }

    /// Number of failures in a row of this device.
    #[must_use]
    pub fn failures(&self, device: &str) -> u32 {
        self.devices.get(device).map_or(0, |backoff| backoff.failures)
    }

    /// Records that an attempt failed, or that the started container ended. Returns the delay before the next attempt.
    pub fn failed(&mut self, device: &str, attempt: Attempt<'_>, now: Instant) -> Duration {
        let backoff = self.of(device, attempt, now);
        if backoff.running_since.take().is_some_and(|since| now.saturating_duration_since(since) >= PROVEN) {
            backoff.failures = 0;
        }
        backoff.failures = backoff.failures.saturating_add(1);
        let failures = backoff.failures;
        let wait = self.delay(failures);
        self.of(device, attempt, now).until = now + wait;
        wait
    }

    /// Records that an attempt was impossible because a prerequisite is missing. This is not a failure of the Recorder:
    /// it is retried at a constant rate, so that it succeeds soon after the prerequisite is available.
    pub fn prerequisite_missing(&mut self, device: &str, attempt: Attempt<'_>, now: Instant) -> Duration {
        let every = self.prerequisite;
        self.of(device, attempt, now).until = now + every;
        every
    }

    /// The failures with this spec; another spec begins without failures.
    fn of(&mut self, device: &str, attempt: Attempt<'_>, now: Instant) -> &mut Backoff {
        let backoff = self.devices.entry(device.to_owned()).or_insert_with(|| Backoff::new(attempt, now));
        if !backoff.is_of(attempt) {
            *backoff = Backoff::new(attempt, now);
        }
        backoff
    }

    /// Records that the Recorder of this device runs.
    pub fn running(&mut self, device: &str, now: Instant) {
        if let Some(backoff) = self.devices.get_mut(device) {
            let since = *backoff.running_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= PROVEN {
                self.devices.remove(device);
            }
        }
    }

    /// Resets the failures: the device or its configuration changed.
    pub fn forget(&mut self, device: &str) {
        self.devices.remove(device);
    }

    /// The remaining delay of an attempt, and the number of failures; `None` = it may begin now.
    #[must_use]
    pub fn wait(&self, device: &str, attempt: Attempt<'_>, now: Instant) -> Option<(Duration, u32)> {
        let backoff = self.devices.get(device).filter(|backoff| backoff.is_of(attempt))?;
        let wait = backoff.until.saturating_duration_since(now);
        (!wait.is_zero()).then_some((wait, backoff.failures))
    }
}

impl<'a> Attempt<'a> {
    fn spec(self) -> Option<&'a str> {
        match self {
            Self::Start(hash) => Some(hash),
            Self::Stop => None,
        }
    }
}

impl Backoff {
    fn new(attempt: Attempt<'_>, now: Instant) -> Self {
        Self { failures: 0, until: now, running_since: None, spec: attempt.spec().map(str::to_owned) }
    }

    fn is_of(&self, attempt: Attempt<'_>) -> bool {
        self.spec.as_deref() == attempt.spec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, start: Instant) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_retry_is_immediate_and_later_ones_double_up_to_a_minute() {
        let start = Instant::now();
        let mut backoffs = Backoffs::default();
        let waits: Vec<u64> = (0..10).map(|_| backoffs.failed("a", Attempt::Start("s"), start).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoffs.wait("a", Attempt::Start("s"), at(59, start)), Some((Duration::from_secs(1), 10)));
        assert_eq!(backoffs.wait("a", Attempt::Start("s"), at(60, start)), None);
        assert_eq!(backoffs.wait("b", Attempt::Start("s"), start), None);
    }

    #[test]
    fn a_missing_prerequisite_is_retried_at_a_constant_rate_and_is_not_a_failure() {
        let start = Instant::now();
        let mut backoffs = Backoffs::default();
        for _ in 0..10 {
            assert_eq!(backoffs.prerequisite_missing("a", Attempt::Start("s"), start).as_secs(), 2);
        }
        assert_eq!(backoffs.wait("a", Attempt::Start("s"), at(1, start)), Some((Duration::from_secs(1), 0)));
        assert_eq!(backoffs.wait("a", Attempt::Start("s"), at(2, start)), None);
        assert_eq!(backoffs.failed("a", Attempt::Start("s"), at(2, start)), Duration::ZERO);
    }

    #[test]
    fn failures_are_reset_after_a_run_of_one_minute_or_a_change() {
        let start = Instant::now();
        let mut backoffs = Backoffs::default();
        let fail = |backoffs: &mut Backoffs, spec: &str, now| backoffs.failed("a", Attempt::Start(spec), now);
        fail(&mut backoffs, "s", start);
        fail(&mut backoffs, "s", start);
        backoffs.running("a", start);
        backoffs.running("a", at(59, start));
        assert_eq!(fail(&mut backoffs, "s", at(59, start)), Duration::from_secs(2));
        backoffs.running("a", at(60, start));
        assert_eq!(fail(&mut backoffs, "s", at(120, start)), Duration::ZERO);
        fail(&mut backoffs, "s", at(120, start));
        assert_eq!(backoffs.wait("a", Attempt::Start("other"), at(120, start)), None);
        assert_eq!(fail(&mut backoffs, "other", at(120, start)), Duration::ZERO);
        fail(&mut backoffs, "other", at(120, start));
        backoffs.forget("a");
        assert_eq!(backoffs.wait("a", Attempt::Start("other"), at(120, start)), None);
    }
}
