//! A rate limit for log messages about faults that last, flap or vary.
//!
//! Without it, such a fault would be logged at every tick. [`RateLimit::fault`] returns a message when a fault begins,
//! when its text changes, and from time to time while it lasts, each with the number of messages held back.
//! [`RateLimit::cleared`] ends a fault. Each topic has a budget that no text and no repetition can exceed: a few
//! messages at once, then a handful an hour. Beginnings have a budget of their own, so that varying texts of one fault
//! do not hide the next one.
//!
//! The topics of a group, e.g. one for each microphone, begin with the same word. A group has a larger budget for all of
//! its topics together, so that many topics cannot flood the log either.

use crate::sorted_map::SortedMap;
use std::time::{Duration, Instant};

use log::{info, warn};

/// The same text is repeated after this time, if the budget allows.
const INTERVAL: Duration = Duration::from_secs(300);

/// A number of messages at once, and the time after which another one is allowed.
#[derive(Clone, Copy, Debug)]
struct Budget {
    burst: u32,
    refill: Duration,
}

/// Large enough for a person who provokes faults one after the other and looks for each in the log.
const BEGINNINGS: Budget = Budget { burst: 16, refill: Duration::from_secs(900) };
const CHANGES: Budget = Budget { burst: 2, refill: Duration::from_secs(900) };
const GROUP: Budget = Budget { burst: 32, refill: Duration::from_secs(300) };

/// The current faults, by topic.
#[derive(Debug, Default)]
pub struct RateLimit {
    current: SortedMap<String, Fault>,
    /// What was spent, by topic. Kept when a fault ends, until nothing is spent any more.
    beginnings: SortedMap<String, Spent>,
    changes: SortedMap<String, Spent>,
    groups: SortedMap<String, Spent>,
    /// Messages held back since the last one, by topic.
    held_back: SortedMap<String, u32>,
}

#[derive(Debug)]
struct Fault {
    /// The text that was last returned; `None` if none was.
    text: Option<String>,
    since: Instant,
    /// When a message was last returned.
    logged: Instant,
}

/// The messages that a budget lacks.
#[derive(Clone, Copy, Debug)]
struct Spent {
    count: u32,
    /// When the first of them is given back.
    back: Instant,
}

/// Spends a message, if the budget allows.
fn spend(spent: &mut SortedMap<String, Spent>, topic: &str, budget: Budget, now: Instant) -> bool {
    spent.retain(|_, spent| {
        while spent.count > 0 && now >= spent.back {
            spent.count -= 1;
            spent.back += budget.refill;
        }
        spent.count > 0
    });
    match spent.get_mut(topic) {
        Some(spent) if spent.count >= budget.burst => return false,
        Some(spent) => spent.count += 1,
        None => drop(spent.insert(topic.to_owned(), Spent { count: 1, back: now + budget.refill })),
    }
    true
}

impl RateLimit {
    /// The message to log for a fault, or `None` if it was logged recently or the budget is spent.
    pub fn fault(&mut self, topic: &str, text: &str, now: Instant) -> Option<String> {
        let is_new = !self.current.contains_key(topic);
        let fault = self.current.entry(topic.to_owned()).or_insert(Fault { text: None, since: now, logged: now });
        let is_repeated = fault.text.as_deref() == Some(text);
        let is_due = !is_repeated || now.saturating_duration_since(fault.logged) >= INTERVAL;
        let group = topic.split_once(' ').map_or(topic, |(group, _)| group);
        let allowed = is_due
            && match is_new {
                true => spend(&mut self.beginnings, topic, BEGINNINGS, now),
                false => spend(&mut self.changes, topic, CHANGES, now),
            }
            && spend(&mut self.groups, group, GROUP, now);
        if !allowed {
            *self.held_back.entry(topic.to_owned()).or_default() += 1;
            return None;
        }
        (fault.text, fault.logged) = (Some(text.to_owned()), now);
        match self.held_back.remove(topic) {
            None => Some(text.to_owned()),
            Some(count) if is_repeated => Some(format!("{text} (repeated {count} times since the last message)")),
            Some(count) => Some(format!("{text} (messages held back: {count})")),
        }
    }

    /// Ends a fault. Returns how long it lasted, if there was one.
    pub fn cleared(&mut self, topic: &str, now: Instant) -> Option<Duration> {
        self.current.remove(topic).map(|fault| now.saturating_duration_since(fault.since))
    }

    /// Logs a fault as a warning, unless it was logged recently.
    pub fn warn(&mut self, topic: &str, text: &str, now: Instant) {
        self.fault(topic, text, now).into_iter().for_each(|line| warn!("{line}"));
    }

    /// Ends a fault. Logs `text` and how long it lasted, if the fault was logged.
    pub fn inform(&mut self, topic: &str, text: &str, now: Instant) {
        let is_logged = self.current.get(topic).is_some_and(|fault| fault.text.is_some());
        let lasted = self.cleared(topic, now);
        lasted.filter(|_| is_logged).into_iter().for_each(|lasted| info!("{text} after {} s", lasted.as_secs()));
    }

    /// Ends the faults of a group of topics that are not current any more, without a message.
    pub fn retain(&mut self, group: &str, current: impl Fn(&str) -> bool) {
        self.current.retain(|topic, _| topic.strip_prefix(group).is_none_or(&current));
        self.held_back.retain(|topic, _| topic.strip_prefix(group).is_none_or(&current));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the messages of `fault` in each hour, which is called every second.
    fn hours(mut fault: impl FnMut(&mut RateLimit, u64, Instant) -> bool) -> Vec<usize> {
        let (mut limit, start) = (RateLimit::default(), Instant::now());
        let mut hour = |hour: u64| {
            let mut second = |second| fault(&mut limit, second, start + Duration::from_secs(second));
            (hour * 3600..(hour + 1) * 3600).filter(|at| second(*at)).count()
        };
        vec![hour(0), hour(1)]
    }

    #[test]
    fn a_lasting_fault_is_logged_once_and_again_after_five_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut limit = RateLimit::default();
        assert_eq!(limit.fault("db", "unavailable", at(0)).as_deref(), Some("unavailable"));
        assert_eq!(limit.fault("db", "unavailable", at(1)), None);
        assert_eq!(limit.fault("db", "refused", at(2)).as_deref(), Some("refused (messages held back: 1)"));
        assert_eq!(limit.fault("db", "refused", at(3)), None);
        assert_eq!(limit.fault("db", "refused", at(302)).as_deref(), Some("refused (repeated 1 times since the last message)"));
        assert_eq!(limit.cleared("db", at(303)), Some(Duration::from_secs(303)));
        assert_eq!(limit.cleared("db", at(304)), None);
    }

    #[test]
    fn a_fault_whose_text_varies_is_logged_a_few_times_and_then_a_handful_an_hour() {
        let alternating = hours(|limit, second, now| limit.fault("db", ["closed", "refused"][second as usize % 2], now).is_some());
        let varying = hours(|limit, second, now| limit.fault("db", &format!("error {second}"), now).is_some());
        let lasting = hours(|limit, _, now| limit.fault("db", "refused", now).is_some());
        for counts in [alternating, varying, lasting] {
            assert!(counts[0] <= 7 && counts[1] <= 4, "{counts:?}");
        }
    }

    #[test]
    fn a_fault_that_flaps_is_logged_a_few_times_and_then_a_handful_an_hour() {
        let flapping = hours(|limit, second, now| {
            if second % 2 == 0 {
                return limit.fault("db", "refused", now).is_some();
            }
            limit.inform("db", "available", now);
            false
        });
        assert!(flapping[0] <= 20 && flapping[1] <= 4, "{flapping:?}");
    }

    #[test]
    fn varying_texts_of_one_fault_do_not_hide_the_next_fault() {
        let (mut limit, start) = (RateLimit::default(), Instant::now());
        (0..60).for_each(|second| drop(limit.fault("db", &format!("{second}"), start + Duration::from_secs(second))));
        let end = start + Duration::from_secs(60);
        assert!(limit.cleared("db", end).is_some());
        let next = limit.fault("db", "closed", end);
        assert_eq!(next.as_deref(), Some("closed (messages held back: 57)"));
    }

    #[test]
    fn many_topics_of_a_group_are_limited_together_and_nothing_spent_is_kept_for_ever() {
        let (mut limit, start) = (RateLimit::default(), Instant::now());
        let logged = (0..1000).filter(|row| limit.fault(&format!("row {row}"), "invalid", start).is_some()).count();
        assert_eq!(logged, 32);
        assert!(limit.fault("other", "invalid", start).is_some());
        limit.retain("row ", |_| false);
        assert!(limit.fault("other 2", "invalid", start + Duration::from_secs(86_400)).is_some());
        assert_eq!((limit.current.len(), limit.held_back.len(), limit.beginnings.len()), (2, 0, 1));
    }
}
