//! Which known microphones are there? [p]
//!
//! | state   | seen    | not seen                         | unknown |
//! | ------- | ------- | -------------------------------- | ------- |
//! | online  | online  | missing since now                | online  |
//! | missing | online  | offline after the grace period   | missing, and the period begins anew |
//! | offline | online  | offline                          | offline |
//!
//! Time is the monotonic clock's, so stepping the wall clock changes nothing. A microphone that the database calls
//! online begins as missing: it gets the grace period to show itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::decide::device::Microphone;

/// State of one microphone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Plugged in.
    Online(Microphone),
    /// Not seen, but within the grace period it counts as online.
    Missing {
        /// When it was first not seen.
        since: Instant,
    },
    /// Gone.
    Offline,
}

/// What one observation changed, for the log and for whoever reacts.
#[derive(Debug, PartialEq, Eq)]
pub enum Transition {
    /// Was offline or never seen.
    Appeared,
    /// Was missing, or is plugged in differently; counts as having been online all the time.
    Returned,
    /// Was not seen; the grace period begins.
    Vanished,
    /// The grace period is over.
    Left,
}

/// All microphones ever seen in this run.
#[derive(Debug)]
pub struct Presences {
    grace: Duration,
    states: BTreeMap<String, Presence>,
    /// Card and port at which each was seen last.
    last: BTreeMap<String, (u32, Option<String>)>,
}

impl Presences {
    /// Nobody seen yet.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, states: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// State of one microphone, `None` if it was never expected or seen.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Presence> {
        self.states.get(id)
    }

    /// All states, by stable id.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Presence)> {
        self.states.iter()
    }

    /// The port at which a microphone was last seen in this run.
    #[must_use]
    pub fn last_port(&self, id: &str) -> Option<&str> {
        self.last.get(id)?.1.as_deref()
    }

    /// Whether a microphone was last on one of these cards and may still be there.
    #[must_use]
    pub fn may_be_on(&self, id: &str, unclear: &[(u32, String)]) -> bool {
        !matches!(self.states.get(id), None | Some(Presence::Offline)) && on_one_of(&self.last, id, unclear)
    }

    /// Takes note of a microphone that the database calls online (or offline) and that was not seen in this run yet,
    /// with the card that it was last on.
    pub fn expect(&mut self, id: &str, online: bool, card: Option<u32>, now: Instant) {
        if !self.states.contains_key(id) {
            let state = if online { Presence::Missing { since: now } } else { Presence::Offline };
            self.states.insert(id.to_owned(), state);
            self.last.extend(card.map(|card| (id.to_owned(), (card, None))));
        }
    }

    /// The hardware was read: `seen` is there; who was last on one of the `unclear` cards may be.
    pub fn observe(&mut self, seen: &BTreeMap<String, Microphone>, unclear: &[(u32, String)], now: Instant) -> Vec<(String, Transition)> {
        let mut changes = Vec::new();
        for (id, microphone) in seen {
            let state = Presence::Online(microphone.clone());
            let port = microphone.usb.as_ref().map(|usb| usb.bus_path.clone());
            self.last.insert(id.clone(), (microphone.card, port));
            let change = match self.states.insert(id.clone(), state.clone()) {
                Some(before) if before == state => continue,
                Some(Presence::Online(_) | Presence::Missing { .. }) => Transition::Returned,
                Some(Presence::Offline) | None => Transition::Appeared,
            };
            changes.push((id.clone(), change));
        }
        for (id, state) in self.states.iter_mut().filter(|(id, _)| !seen.contains_key(*id)) {
            let unknown = on_one_of(&self.last, id, unclear);
            match state {
                Presence::Online(_) if !unknown => {
                    *state = Presence::Missing { since: now };
                    changes.push((id.clone(), Transition::Vanished));
                }
                Presence::Missing { since } if unknown => *since = now,
                Presence::Missing { since } if now.saturating_duration_since(*since) >= self.grace => {
                    *state = Presence::Offline;
                    changes.push((id.clone(), Transition::Left));
                }
                _ => {}
            }
        }
        changes
    }

    /// The hardware could not be read: whoever is missing keeps its whole grace period.
    pub fn observe_nothing(&mut self, now: Instant) {
        for state in self.states.values_mut() {
            if let Presence::Missing { since } = state {
                *since = now;
            }
        }
    }

    /// Forgets a microphone that neither the database nor the hardware knows any more.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.states.retain(|id, state| !matches!(state, Presence::Offline) || known(id));
        self.last.retain(|id, _| self.states.contains_key(id));
    }
}

fn on_one_of(last: &BTreeMap<String, (u32, Option<String>)>, id: &str, unclear: &[(u32, String)]) -> bool {
    last.get(id).is_some_and(|(card, _)| unclear.iter().any(|(index, _)| index == card))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        start: Instant,
        presences: Presences,
    }

    fn microphone(card: u32) -> Microphone {
        Microphone { card, name: "m".to_owned(), usb: None }
    }

    impl Fake {
        fn new() -> Self {
            Self { start: Instant::now(), presences: Presences::new(Duration::from_secs(3)) }
        }

        /// `cards`: `a@0` is microphone `a` on card 0, `?0` an unclear card.
        fn see(&mut self, seconds: u64, cards: &[&str]) -> String {
            let mut seen = BTreeMap::new();
            let mut unclear = Vec::new();
            for card in cards {
                match card.split_once('@') {
                    Some((id, card)) => drop(seen.insert(id.to_owned(), microphone(card.parse().unwrap()))),
                    None => unclear.push((card[1..].parse().unwrap(), String::new())),
                }
            }
            let changes = self.presences.observe(&seen, &unclear, self.start + Duration::from_secs(seconds));
            let words: Vec<String> = changes.iter().map(|(id, change)| format!("{id} {change:?}")).collect();
            words.join(", ")
        }
    }

    #[test]
    fn online_at_once_and_offline_after_the_grace_period() {
        let mut fake = Fake::new();
        assert_eq!(fake.see(0, &["a@0"]), "a Appeared");
        assert_eq!(fake.see(1, &["a@0"]), "");
        assert_eq!(fake.see(2, &[]), "a Vanished");
        assert_eq!(fake.see(4, &[]), "");
        assert_eq!(fake.see(5, &[]), "a Left");
        assert_eq!(fake.see(6, &[]), "");
        assert_eq!(fake.see(7, &["a@1"]), "a Appeared");
    }

    #[test]
    fn a_flap_within_the_grace_period_is_no_departure() {
        let mut fake = Fake::new();
        fake.see(0, &["a@0"]);
        fake.see(1, &[]);
        assert_eq!(fake.see(3, &["a@0"]), "a Returned");
        assert_eq!(fake.see(4, &[]), "a Vanished");
        assert_eq!(fake.see(6, &[]), "");
        assert_eq!(fake.see(7, &[]), "a Left");
    }

    #[test]
    fn unknown_never_counts_as_absence() {
        let mut fake = Fake::new();
        fake.see(0, &["a@0"]);
        fake.see(1, &[]);
        fake.presences.observe_nothing(fake.start + Duration::from_secs(100));
        assert_eq!(fake.see(101, &[]), "");
        assert_eq!(fake.see(103, &[]), "a Left");
    }

    #[test]
    fn a_microphone_on_an_unclear_card_is_not_missing() {
        let mut fake = Fake::new();
        fake.see(0, &["a@0", "b@1"]);
        assert_eq!(fake.see(1, &["?0"]), "b Vanished");
        assert_eq!(fake.see(10, &["?0"]), "b Left");
        assert_eq!(fake.presences.get("a"), Some(&Presence::Online(microphone(0))));
    }

    #[test]
    fn who_is_expected_gets_the_grace_period_to_show_up() {
        let mut fake = Fake::new();
        fake.presences.expect("a", true, None, fake.start);
        fake.presences.expect("b", false, None, fake.start);
        assert_eq!(fake.see(1, &[]), "");
        assert_eq!(fake.see(3, &[]), "a Left");
        assert_eq!(fake.see(4, &["b@0"]), "b Appeared");
    }

    #[test]
    fn who_is_expected_on_an_unclear_card_is_not_gone() {
        let mut fake = Fake::new();
        fake.presences.expect("a", true, Some(2), fake.start);
        assert_eq!(fake.see(1, &["?2"]), "");
        assert_eq!(fake.see(10, &["?2"]), "");
        assert_eq!(fake.see(11, &["a@2"]), "a Returned");
    }
}
