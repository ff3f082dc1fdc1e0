//! The presence of each known microphone: online, missing or offline.
//!
//! | state   | observed | not observed                   | unknown                               |
//! | ------- | -------- | ------------------------------ | ------------------------------------- |
//! | online  | online   | missing since now              | online                                |
//! | missing | online   | offline after the grace period | missing; the grace period begins again |
//! | offline | online   | offline                        | offline                               |
//!
//! Times are those of the monotonic clock, so a step of the wall clock has no effect. A microphone that is online in
//! the database begins as missing: it becomes offline only after the grace period.

use crate::sorted_map::SortedMap;
use std::time::{Duration, Instant};

use crate::decide::device::{Microphone, Port};

/// Presence of one microphone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Connected.
    Online(Microphone),
    /// Not observed; during the grace period it counts as online.
    Missing {
        /// The first scan without it.
        since: Instant,
    },
    /// Disconnected.
    Offline,
}

/// A change of a presence.
#[derive(Debug, PartialEq, Eq)]
pub enum Transition {
    /// Connected; it was offline or unknown before.
    Appeared,
    /// Connected again within the grace period, or with another card or port; it counts as online in between.
    Returned,
    /// No longer observed; the grace period begins.
    Vanished,
    /// The grace period is over.
    Left,
}

/// The presence of all microphones of the database and of this run.
#[derive(Debug)]
pub struct Presences {
    grace: Duration,
    states: SortedMap<String, Presence>,
    /// Card and port at which each was last observed.
    last: SortedMap<String, (u32, Option<Port>)>,
}

impl Presences {
    /// No microphone is known yet.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, states: SortedMap::new(), last: SortedMap::new() }
    }

    /// Presence of one microphone; `None` if it is not known.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Presence> {
        self.states.get(id)
    }

    /// All presences, by stable id.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Presence)> {
        self.states.iter()
    }

    /// The port at which a microphone was last observed in this run.
    #[must_use]
    pub fn last_port(&self, id: &str) -> Option<&Port> {
        self.last.get(id)?.1.as_ref()
    }

    /// Whether a microphone that is not offline was last observed on one of these unidentified cards.
    #[must_use]
    pub fn may_be_on(&self, id: &str, unclear: &[(u32, String)]) -> bool {
        !matches!(self.states.get(id), None | Some(Presence::Offline)) && on_one_of(&self.last, id, unclear)
    }

    /// Adds a microphone that is online in the database, last on `card`, unless it is known.
    pub fn add_online(&mut self, id: &str, card: Option<u32>, now: Instant) {
        self.add(id, Presence::Missing { since: now }, card);
    }

    /// Adds a microphone that is offline in the database, last on `card`, unless it is known.
    pub fn add_offline(&mut self, id: &str, card: Option<u32>) {
        self.add(id, Presence::Offline, card);
    }

    fn add(&mut self, id: &str, state: Presence, card: Option<u32>) {
        if !self.states.contains_key(id) {
            self.states.insert(id.to_owned(), state);
            self.last.extend(card.map(|card| (id.to_owned(), (card, None))));
        }
    }

    /// Applies a scan: `observed` are connected, and the `unclear` cards could not be identified. Whether a microphone
    /// that was last on one of these is connected is unknown.
    pub fn observe(
        &mut self,
        observed: &SortedMap<String, Microphone>,
        unclear: &[(u32, String)],
        now: Instant,
    ) -> Vec<(String, Transition)> {
        let mut changes = Vec::new();
        for (id, microphone) in observed {
            let state = Presence::Online(microphone.clone());
            let port = microphone.usb.as_ref().map(Port::from);
            self.last.insert(id.clone(), (microphone.card, port));
            let change = match self.states.insert(id.clone(), state.clone()) {
                Some(before) if before == state => continue,
                Some(Presence::Online(_) | Presence::Missing { .. }) => Transition::Returned,
                Some(Presence::Offline) | None => Transition::Appeared,
            };
            changes.push((id.clone(), change));
        }
        for (id, state) in self.states.iter_mut().filter(|(id, _)| !observed.contains_key(*id)) {
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

    /// Applies a failed scan: the grace period of each missing microphone begins again.
    pub fn observe_unknown(&mut self, now: Instant) {
        for state in self.states.values_mut() {
            if let Presence::Missing { since } = state {
                *since = now;
            }
        }
    }

    /// Removes microphones that are offline and not known to the database.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.states.retain(|id, state| !matches!(state, Presence::Offline) || known(id));
        self.last.retain(|id, _| self.states.contains_key(id));
    }
}

fn on_one_of(last: &SortedMap<String, (u32, Option<Port>)>, id: &str, unclear: &[(u32, String)]) -> bool {
    last.get(id).is_some_and(|(card, _)| unclear.iter().any(|(index, _)| index == card))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::offer::Offer;

    struct Fake {
        start: Instant,
        presences: Presences,
    }

    fn microphone(card: u32) -> Microphone {
        Microphone { card, pcm: 0, name: "m".to_owned(), usb: None, offer: Offer::default() }
    }

    impl Fake {
        fn new() -> Self {
            Self { start: Instant::now(), presences: Presences::new(Duration::from_secs(3)) }
        }

        /// `cards`: `a@0` is microphone `a` on card 0, `?0` an unclear card.
        fn scan(&mut self, seconds: u64, cards: &[&str]) -> String {
            let mut observed = SortedMap::new();
            let mut unclear = Vec::new();
            for card in cards {
                match card.split_once('@') {
                    Some((id, card)) => drop(observed.insert(id.to_owned(), microphone(card.parse().unwrap()))),
                    None => unclear.push((card[1..].parse().unwrap(), String::new())),
                }
            }
            let changes = self.presences.observe(&observed, &unclear, self.start + Duration::from_secs(seconds));
            let lines: Vec<String> = changes.iter().map(|(id, change)| format!("{id} {change:?}")).collect();
            lines.join(", ")
        }
    }

    #[test]
    fn online_at_once_and_offline_after_the_grace_period() {
        let mut fake = Fake::new();
        assert_eq!(fake.scan(0, &["a@0"]), "a Appeared");
        assert_eq!(fake.scan(1, &["a@0"]), "");
        assert_eq!(fake.scan(2, &[]), "a Vanished");
        assert_eq!(fake.scan(4, &[]), "");
        assert_eq!(fake.scan(5, &[]), "a Left");
        assert_eq!(fake.scan(6, &[]), "");
        assert_eq!(fake.scan(7, &["a@1"]), "a Appeared");
    }

    #[test]
    fn a_short_disconnection_within_the_grace_period_is_not_offline() {
        let mut fake = Fake::new();
        fake.scan(0, &["a@0"]);
        fake.scan(1, &[]);
        assert_eq!(fake.scan(3, &["a@0"]), "a Returned");
        assert_eq!(fake.scan(4, &[]), "a Vanished");
        assert_eq!(fake.scan(6, &[]), "");
        assert_eq!(fake.scan(7, &[]), "a Left");
    }

    #[test]
    fn a_failed_scan_never_makes_a_microphone_offline() {
        let mut fake = Fake::new();
        fake.scan(0, &["a@0"]);
        fake.scan(1, &[]);
        fake.presences.observe_unknown(fake.start + Duration::from_secs(100));
        assert_eq!(fake.scan(101, &[]), "");
        assert_eq!(fake.scan(103, &[]), "a Left");
    }

    #[test]
    fn a_microphone_on_an_unclear_card_is_not_missing() {
        let mut fake = Fake::new();
        fake.scan(0, &["a@0", "b@1"]);
        assert_eq!(fake.scan(1, &["?0"]), "b Vanished");
        assert_eq!(fake.scan(10, &["?0"]), "b Left");
        assert_eq!(fake.presences.get("a"), Some(&Presence::Online(microphone(0))));
    }

    #[test]
    fn a_microphone_that_is_online_in_the_database_is_offline_only_after_the_grace_period() {
        let mut fake = Fake::new();
        fake.presences.add_online("a", None, fake.start);
        fake.presences.add_offline("b", None);
        assert_eq!(fake.scan(1, &[]), "");
        assert_eq!(fake.scan(3, &[]), "a Left");
        assert_eq!(fake.scan(4, &["b@0"]), "b Appeared");
    }

    #[test]
    fn a_microphone_of_the_database_on_an_unclear_card_is_not_offline() {
        let mut fake = Fake::new();
        fake.presences.add_online("a", Some(2), fake.start);
        assert_eq!(fake.scan(1, &["?2"]), "");
        assert_eq!(fake.scan(10, &["?2"]), "");
        assert_eq!(fake.scan(11, &["a@2"]), "a Returned");
    }
}
