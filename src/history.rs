//! The last actions and their results, for the state dump on SIGUSR1. Their number is limited, so memory use is
//! constant.

use std::collections::VecDeque;
use std::time::SystemTime;

use crate::clock;

/// Number of lines that are kept.
const LIMIT: usize = 64;

/// The last lines, oldest first.
#[derive(Debug, Default)]
pub struct History {
    entries: VecDeque<(SystemTime, String)>,
}

impl History {
    /// Adds a line with the current time; drops the oldest one at the limit.
    pub fn add(&mut self, line: String) {
        if self.entries.len() == LIMIT {
            self.entries.pop_front();
        }
        self.entries.push_back((SystemTime::now(), line));
    }

    /// The last `count` lines with their times, oldest first.
    pub fn last(&self, count: usize) -> impl Iterator<Item = &(SystemTime, String)> {
        self.entries.range(self.entries.len().saturating_sub(count)..)
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
    fn only_the_last_lines_are_kept() {
        let mut history = History::default();
        (0..1000).for_each(|n| history.add(n.to_string()));
        let lines: Vec<String> = history.lines().collect();
        assert_eq!(lines.len(), LIMIT);
        assert!(lines[0].ends_with(" 936") && lines[LIMIT - 1].ends_with(" 999"), "{lines:?}");
    }
}
