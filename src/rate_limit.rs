//! A rate limit for log messages about faults that last.
//!
//! Without it, such a fault would be logged at every tick. [`RateLimit::fault`] returns a message the first time, when
//! the text changes, and every five minutes with the number of repetitions. [`RateLimit::cleared`] ends a fault.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::{info, warn};

const INTERVAL: Duration = Duration::from_secs(300);

/// The current faults, by topic.
#[derive(Debug, Default)]
pub struct RateLimit {
    current: BTreeMap<String, Repeated>,
}

#[derive(Debug)]
struct Repeated {
    text: String,
    since: Instant,
    /// When a message was last returned.
    logged: Instant,
    /// Number of repetitions since then.
    repeated: u32,
}

impl RateLimit {
    /// The message to log for a fault, or `None` if it was logged recently.
    pub fn fault(&mut self, topic: &str, text: &str, now: Instant) -> Option<String> {
        let new = || Repeated { text: text.to_owned(), since: now, logged: now, repeated: 0 };
        let Some(fault) = self.current.get_mut(topic) else {
            self.current.insert(topic.to_owned(), new());
            return Some(text.to_owned());
        };
        if fault.text != text {
            *fault = Repeated { since: fault.since, ..new() };
            return Some(text.to_owned());
        }
        fault.repeated += 1;
        if now.saturating_duration_since(fault.logged) < INTERVAL {
            return None;
        }
        fault.logged = now;
        let repeated = std::mem::take(&mut fault.repeated);
        Some(format!("{text} (repeated {repeated} times since the last message)"))
    }

    /// Ends a fault. Returns how long it lasted, if there was one.
    pub fn cleared(&mut self, topic: &str, now: Instant) -> Option<Duration> {
        self.current.remove(topic).map(|fault| now.saturating_duration_since(fault.since))
    }

    /// Logs a fault as a warning, unless it was logged recently.
    pub fn warn(&mut self, topic: &str, text: &str, now: Instant) {
        self.fault(topic, text, now).into_iter().for_each(|line| warn!("{line}"));
    }

    /// Ends a fault. Logs `text` and how long it lasted, if there was one.
    pub fn inform(&mut self, topic: &str, text: &str, now: Instant) {
        self.cleared(topic, now).into_iter().for_each(|lasted| info!("{text} after {} s", lasted.as_secs()));
    }

    /// Ends the faults of a group of topics that are not current any more, without a message.
    pub fn retain(&mut self, group: &str, current: impl Fn(&str) -> bool) {
        self.current.retain(|topic, _| topic.strip_prefix(group).is_none_or(&current));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_fault_is_logged_once_and_again_after_five_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut limit = RateLimit::default();
        assert_eq!(limit.fault("db", "unavailable", at(0)).as_deref(), Some("unavailable"));
        assert_eq!(limit.fault("db", "unavailable", at(1)), None);
        assert_eq!(limit.fault("db", "refused", at(2)).as_deref(), Some("refused"));
        assert_eq!(limit.fault("db", "refused", at(3)), None);
        assert_eq!(limit.fault("db", "refused", at(302)).as_deref(), Some("refused (repeated 2 times since the last message)"));
        assert_eq!(limit.cleared("db", at(303)), Some(Duration::from_secs(303)));
        assert_eq!(limit.cleared("db", at(304)), None);
    }
}
