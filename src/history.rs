//! The last decisions, for a dump on SIGUSR1: a ring of fixed size, so that it costs the same after years.

use std::collections::VecDeque;
use std::time::SystemTime;

use crate::clock;

/// How many are kept.
const KEPT: usize = 64;

/// What was decided and what came of it, oldest first.
#[derive(Debug, Default)]
pub struct History {
    entries: VecDeque<(SystemTime, String)>,
}

impl History {
    /// Notes one line; the oldest goes when there is no room.
    pub fn note(&mut self, line: String) {
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back((SystemTime::now(), line));
    }

    /// All lines with their times.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.entries.iter().map(|(at, line)| format!("{} {line}", clock::iso(*at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ones_are_kept() {
        let mut journal = History::default();
        (0..1000).for_each(|n| journal.note(n.to_string()));
        let lines: Vec<String> = journal.lines().collect();
        assert_eq!(lines.len(), KEPT);
        assert!(lines[0].ends_with(" 936") && lines[KEPT - 1].ends_with(" 999"), "{lines:?}");
    }
}
