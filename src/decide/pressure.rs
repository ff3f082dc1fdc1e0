//! When the host is short of memory or disk, so that workers must stop.
//!
//! A worker is stopped when the use of a resource reaches its limit, and may run again when the use has been five
//! percentage points lower for a minute. A measurement that is missing changes nothing.

use std::fmt;
use std::time::{Duration, Instant};

/// How far below its limit the use of a resource must be …
const MARGIN: f64 = 5.0;
/// … and for how long.
const CALM: Duration = Duration::from_secs(60);

/// Use of the host in percent at which workers are stopped; 0 = never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShedLimits {
    /// Of its memory.
    pub memory: u8,
    /// Of the disk with the workspace.
    pub disk: u8,
}

/// Use of the host in percent, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Of its memory.
    pub memory: Option<f64>,
    /// Of the disk with the workspace.
    pub disk: Option<f64>,
}

/// What the host is short of, and the limit in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Memory.
    Memory(u8),
    /// Space on the disk with the workspace.
    Disk(u8),
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(limit) => write!(f, "the use of the host's memory has reached {limit} %"),
            Self::Disk(limit) => write!(f, "the use of the disk with the workspace has reached {limit} %"),
        }
    }
}

/// What the host was short of at the last measurement.
#[derive(Debug)]
pub struct Pressure {
    memory: Gauge,
    disk: Gauge,
}

#[derive(Debug)]
struct Gauge {
    limit: u8,
    is_short: bool,
    calm_since: Option<Instant>,
}

impl Pressure {
    /// No shortage yet.
    #[must_use]
    pub fn new(limits: ShedLimits) -> Self {
        let gauge = |limit| Gauge { limit, is_short: false, calm_since: None };
        Self { memory: gauge(limits.memory), disk: gauge(limits.disk) }
    }

    /// Handles a measurement.
    pub fn measured(&mut self, usage: Usage, now: Instant) {
        self.memory.measured(usage.memory, now);
        self.disk.measured(usage.disk, now);
    }

    /// What the host is short of.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        let disk = self.disk.is_short.then_some(Shortage::Disk(self.disk.limit));
        self.memory.is_short.then_some(Shortage::Memory(self.memory.limit)).or(disk)
    }
}

impl Gauge {
    fn measured(&mut self, percent: Option<f64>, now: Instant) {
        let limit = f64::from(self.limit);
        let Some(percent) = percent.filter(|_| self.limit > 0) else {
            self.calm_since = None;
            return;
        };
        if percent >= limit {
            (self.is_short, self.calm_since) = (true, None);
        } else if percent > limit - MARGIN {
            self.calm_since = None;
        } else if now.saturating_duration_since(*self.calm_since.get_or_insert(now)) >= CALM {
            self.is_short = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_stop_at_the_limit_and_return_after_a_calm_minute() {
        let start = Instant::now();
        let mut pressure = Pressure::new(ShedLimits { memory: 90, disk: 0 });
        let steps = [
            (0, Some(89.9), false),
            (10, None, false),
            (20, Some(90.0), true),
            (30, Some(80.0), true),
            (80, Some(86.0), true),
            (90, Some(85.0), true),
            (120, None, true),
            (130, Some(80.0), true),
            (189, Some(80.0), true),
            (190, Some(80.0), false),
            (200, Some(89.0), false),
        ];
        for (second, memory, is_short) in steps {
            pressure.measured(Usage { memory, disk: Some(100.0) }, start + Duration::from_secs(second));
            assert_eq!(pressure.shortage(), is_short.then_some(Shortage::Memory(90)), "{second}");
        }
    }

    #[test]
    fn a_full_disk_is_a_shortage_of_its_own_and_zero_is_never() {
        let now = Instant::now();
        let usage = Usage { memory: Some(100.0), disk: Some(100.0) };
        let shortage = |memory, disk| {
            let mut pressure = Pressure::new(ShedLimits { memory, disk });
            pressure.measured(usage, now);
            pressure.shortage()
        };
        assert_eq!([shortage(0, 0), shortage(0, 95), shortage(90, 95)], [None, Some(Shortage::Disk(95)), Some(Shortage::Memory(90))]);
    }
}
