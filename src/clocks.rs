//! Times since the boot of the host, which outlive a Controller.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::clock::micros;
use crate::decide::sessions::Now;

/// Converts times of the monotonic clock, which have no beginning, to times since the boot of the host.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    instant: Instant,
    since_boot: Duration,
}

impl Clocks {
    /// Compares the clocks.
    #[must_use]
    pub fn read() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let since_boot = Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default());
        Self { instant: Instant::now(), since_boot }
    }

    /// The time from the boot of the host until then.
    #[must_use]
    pub fn since_boot(&self, instant: Instant) -> Duration {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.since_boot + later,
            None => self.since_boot.saturating_sub(self.instant - instant),
        }
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { at: self.since_boot(Instant::now()), wall: micros(SystemTime::now()) }
    }
}
