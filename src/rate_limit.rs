//! Repeated faults, told once. [p]
//!
//! A fault that lasts would fill the log at every tick. [`RateLimit::fault`] lets its first line through, and another one
//! when the text changes or five minutes have passed; [`RateLimit::cleared`] tells that it is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::{info, warn};

const AGAIN: Duration = Duration::from_secs(300);

/// The faults that last, by topic.
#[derive(Debug, Default)]
pub struct RateLimit {
    open: BTreeMap<String, Repeated>,
}

#[derive(Debug)]
struct Repeated {
    text: String,
    since: Instant,
    told: Instant,
    held: u32,
}

impl RateLimit {
    /// The line to log for a fault, or `None` if it was told already.
    pub fn fault(&mut self, topic: &str, text: &str, now: Instant) -> Option<String> {
        let fresh = || Repeated { text: text.to_owned(), since: now, told: now, held: 0 };
        let Some(notice) = self.open.get_mut(topic) else {
            self.open.insert(topic.to_owned(), fresh());
            return Some(text.to_owned());
        };
        if notice.text != text {
            *notice = Repeated { since: notice.since, ..fresh() };
            return Some(text.to_owned());
        }
        notice.held += 1;
        if now.saturating_duration_since(notice.told) < AGAIN {
            return None;
        }
        notice.told = now;
        let held = std::mem::take(&mut notice.held);
        Some(format!("{text} (still so, {held} times since the last line)"))
    }

    /// How long the fault lasted, if there was one.
    pub fn cleared(&mut self, topic: &str, now: Instant) -> Option<Duration> {
        self.open.remove(topic).map(|notice| now.saturating_duration_since(notice.since))
    }

    /// Logs a fault if it is to be told now.
    pub fn warn(&mut self, topic: &str, text: &str, now: Instant) {
        self.fault(topic, text, now).into_iter().for_each(|line| warn!("{line}"));
    }

    /// Logs that a fault is over, if there was one.
    pub fn inform(&mut self, topic: &str, text: &str, now: Instant) {
        self.cleared(topic, now).into_iter().for_each(|lasted| info!("{text} after {} s", lasted.as_secs()));
    }

    /// Forgets the faults of a group of topics that are not among `current`, without a closing line.
    pub fn retain(&mut self, group: &str, current: impl Fn(&str) -> bool) {
        self.open.retain(|topic, _| topic.strip_prefix(group).is_none_or(&current));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_fault_is_told_once_and_again_after_five_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut notices = RateLimit::default();
        assert_eq!(notices.fault("db", "away", at(0)).as_deref(), Some("away"));
        assert_eq!(notices.fault("db", "away", at(1)), None);
        assert_eq!(notices.fault("db", "refused", at(2)).as_deref(), Some("refused"));
        assert_eq!(notices.fault("db", "refused", at(3)), None);
        assert_eq!(notices.fault("db", "refused", at(302)).as_deref(), Some("refused (still so, 2 times since the last line)"));
        assert_eq!(notices.cleared("db", at(303)), Some(Duration::from_secs(303)));
        assert_eq!(notices.cleared("db", at(304)), None);
    }
}
