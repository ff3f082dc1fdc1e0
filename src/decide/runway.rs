//! How long the free space of the workspace lasts, at the rate of all captures.

use std::fmt;

const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;
/// A level that was reached is left only with so much more space, as space comes and goes.
const MARGIN: f64 = 1.1;

/// Until when the free space lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Runway {
    /// Free space in bytes.
    pub free: f64,
    /// What all captures together deliver, in bytes a second.
    pub rate: f64,
}

/// How much attention a runway needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A day or more.
    #[default]
    Enough,
    /// Less than a day.
    Short,
    /// Less than an hour.
    Critical,
}

impl Runway {
    /// `None` without a capture, or while the free space is unknown.
    #[must_use]
    pub fn new(free: Option<f64>, rate: f64) -> Option<Self> {
        free.filter(|_| rate > 0.0).map(|free| Self { free, rate })
    }

    /// In seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.free / self.rate
    }

    /// The level after this one.
    #[must_use]
    pub fn level(&self, before: Level) -> Level {
        let limit = |level, limit: f64| if before >= level { limit * MARGIN } else { limit };
        match self.seconds() {
            seconds if seconds < limit(Level::Critical, HOUR) => Level::Critical,
            seconds if seconds < limit(Level::Short, DAY) => Level::Short,
            _ => Level::Enough,
        }
    }
}

impl fmt::Display for Runway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds() {
            seconds if seconds >= 2.0 * DAY => write!(f, "full in {:.1} days", seconds / DAY),
            seconds if seconds >= 2.0 * HOUR => write!(f, "full in {:.1} hours", seconds / HOUR),
            seconds => write!(f, "full in {:.0} minutes", seconds / 60.0),
        }
    }
}

/// Bytes of one sample in an ALSA format such as `S16_LE`, `None` for an unusual one.
#[must_use]
pub fn sample_bytes(format: &str) -> Option<u64> {
    Some(match format {
        "S8" | "U8" => 1,
        _ if format.contains("24_3") => 3,
        _ if format.starts_with("FLOAT64") => 8,
        _ if format.starts_with("S16") || format.starts_with("U16") => 2,
        _ if ["S24", "U24", "S32", "U32", "FLOAT"].iter().any(|start| format.starts_with(start)) => 4,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_becomes_time() {
        let text = |hours: f64| Runway::new(Some(hours * HOUR * 768_000.0), 768_000.0).unwrap().to_string();
        assert_eq!([text(76.8), text(30.0), text(0.5)], ["full in 3.2 days", "full in 30.0 hours", "full in 30 minutes"]);
        assert_eq!((Runway::new(None, 1.0), Runway::new(Some(1.0), 0.0)), (None, None));
    }

    #[test]
    fn a_level_is_left_with_a_margin() {
        let mut level = Level::default();
        for (hours, expected) in [
            (30.0, Level::Enough),
            (23.9, Level::Short),
            (24.1, Level::Short),
            (0.9, Level::Critical),
            (1.05, Level::Critical),
            (2.0, Level::Short),
            (27.0, Level::Enough),
        ] {
            level = Runway { free: hours * HOUR, rate: 1.0 }.level(level);
            assert_eq!(level, expected, "{hours}");
        }
    }

    #[test]
    fn samples_have_the_size_that_the_kernel_uses() {
        let sizes = ["S16_LE", "S24_LE", "S24_3LE", "S32_LE", "FLOAT_LE", "FLOAT64_BE", "DSD_U8"].map(sample_bytes);
        assert_eq!(sizes, [Some(2), Some(4), Some(3), Some(4), Some(4), Some(8), None]);
    }
}
