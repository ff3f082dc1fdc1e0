//! The last log lines, for the status page: kept only while it is open.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::clock;
use crate::json;

/// Number of lines that are kept.
const LIMIT: usize = 64;
/// Longest message, in bytes.
const MESSAGE: usize = 400;

/// The lines; clones share them.
#[derive(Clone, Debug, Default)]
pub struct RecentLines {
    shared: Arc<Mutex<Recent>>,
}

#[derive(Debug, Default)]
struct Recent {
    is_kept: bool,
    /// Number of the last line.
    count: u64,
    lines: VecDeque<Value>,
}

impl RecentLines {
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps lines from now on.
    pub(super) fn open(&self) {
        self.lock().is_kept = true;
    }

    /// Keeps none any more.
    pub(super) fn close(&self) {
        let mut recent = self.lock();
        recent.is_kept = false;
        recent.lines = VecDeque::new();
    }

    /// Adds lines as they are published, if they are kept.
    pub(super) fn add(&self, lines: &[String]) {
        let mut recent = self.lock();
        if !recent.is_kept {
            return;
        }
        // Of many, only the last ones remain.
        recent.count += lines.len().saturating_sub(LIMIT) as u64;
        for line in &lines[lines.len().saturating_sub(LIMIT)..] {
            recent.count += 1;
            let Ok(line) = json::from_str::<Value>(line) else { continue };
            let entry = entry(recent.count, &line);
            if recent.lines.len() == LIMIT {
                recent.lines.pop_front();
            }
            recent.lines.push_back(entry);
        }
    }

    /// All lines that are kept, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Value> {
        self.lock().lines.iter().cloned().collect()
    }
}

fn entry(number: u64, line: &Value) -> Value {
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    let message = text("message");
    let end =
        if message.len() <= MESSAGE { message.len() } else { (0..=MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0) };
    let mark = if end < message.len() { " …" } else { "" };
    let time = clock::parse(text("timestamp")).map(|time| clock::micros(time) / 1_000_000);
    json!({"n": number, "time": time, "service": text("service"), "instance": text("instance_id"), "level": text("level"),
        "message": format!("{}{mark}", &message[..end])})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> String {
        json!({"service": "recorder", "instance_id": "a", "container_name": "c", "level": "raw", "message": message,
            "timestamp": "1970-01-01T00:01:00.5Z"})
        .to_string()
    }

    #[test]
    fn lines_are_kept_only_while_somebody_looks() {
        let recent = RecentLines::default();
        recent.add(&[line("x")]);
        assert!(recent.all().is_empty());
        recent.open();
        recent.add(&[line("<b>\u{1b}[2J"), "no JSON".to_owned()]);
        let expected = json!({"n": 1, "time": 60, "service": "recorder", "instance": "a", "level": "raw", "message": "<b>\u{1b}[2J"});
        assert_eq!(recent.all(), [expected]);
        recent.close();
        assert!(recent.all().is_empty());
        recent.open();
        recent.add(&[line("y")]);
        assert_eq!(recent.all()[0]["n"], 3);
    }

    #[test]
    fn their_number_and_length_are_limited() {
        let recent = RecentLines::default();
        recent.open();
        let long = line(&"é".repeat(MESSAGE));
        recent.add(&vec![long.clone(); 10]);
        recent.add(&vec![long; 1000]);
        let all = recent.all();
        assert_eq!((all.len(), &all[0]["n"], &all[LIMIT - 1]["n"]), (LIMIT, &json!(947), &json!(1010)));
        assert_eq!(all[0]["message"].as_str().unwrap().len(), MESSAGE + " …".len());
    }
}
