//! What is counted for metrics from the start of the Controller on: ends of Recorders, and actions.

use std::time::Duration;

use crate::decide::action::{Action, Done, Ending, Failure, Task};
use crate::decide::recorders::Note;
use crate::health::openmetrics::Durations;

/// Names of the actions.
pub const ACTIONS: [&str; 5] = ["start", "replace", "fall_back", "rename", "remove"];
/// Exit codes that are told apart for each microphone.
const CODES: usize = 16;
/// Pairs of microphone and code that are counted at most.
const ENDS: usize = 64 * (CODES + 1);

/// What is counted from the start of the Controller on.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How often the Recorder of a device ended with a code.
    pub ends: Vec<(String, String, u64)>,
    /// Durations of actions that were done, in the order of [`ACTIONS`].
    pub actions: [Durations; ACTIONS.len()],
    /// How many actions failed.
    pub failures: [u64; ACTIONS.len()],
}

impl Tally {
    /// Counts an end of a Recorder.
    pub fn note(&mut self, note: &Note) {
        let Note::Ended { device, ending, .. } = note else { return };
        let mut code = match ending {
            Ending::Exit(code) => code.to_string(),
            Ending::OutOfMemory(_) => "out_of_memory".to_owned(),
            Ending::Lost | Ending::Reboot | Ending::Unknown => "unknown".to_owned(),
        };
        let of_device = |(other, ..): &&(String, String, u64)| other == device;
        let is_known = self.ends.iter().filter(of_device).any(|(_, known, _)| *known == code);
        if !is_known && self.ends.iter().filter(of_device).count() >= CODES {
            "other".clone_into(&mut code);
        }
        if let Some((.., count)) = self.ends.iter_mut().find(|(other, known, _)| other == device && *known == code) {
            *count += 1;
        } else if self.ends.len() < ENDS {
            self.ends.push((device.clone(), code, 1));
        }
    }

    /// Counts an action that ended. One that was not needed any more does not count.
    pub fn finished(&mut self, action: &Action, result: &Result<Done, Failure>, took: Duration) {
        let index = match action.task {
            Task::Start { .. } => 0,
            Task::Replace { .. } => 1,
            Task::FallBack { .. } => 2,
            Task::Rename { .. } => 3,
            Task::Remove(_) => 4,
        };
        match result {
            Ok(_) => self.actions[index].add(took),
            Err(Failure::Outdated(_) | Failure::Stopping) => {}
            Err(_) => self.failures[index] += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::recorders::Next;

    #[test]
    fn ends_are_counted_by_code_and_bounded() {
        let mut tally = Tally::default();
        let mut end = |device: &str, ending| {
            tally.note(&Note::Ended { device: device.to_owned(), ending, next: Next::Restarted });
        };
        [Ending::Exit(1), Ending::Exit(1), Ending::OutOfMemory(137), Ending::Lost].iter().for_each(|ending| end("a", *ending));
        (0..1000).for_each(|code| end("b", Ending::Exit(code)));
        (0..1000).for_each(|device| (0..100).for_each(|code| end(&format!("c{device}"), Ending::Exit(code))));
        let of = |device: &str| {
            tally.ends.iter().filter(|(other, ..)| other == device).map(|(_, code, count)| (code.as_str(), *count)).collect::<Vec<_>>()
        };
        assert_eq!(of("a"), [("1", 2), ("out_of_memory", 1), ("unknown", 1)]);
        assert_eq!((of("b").len(), of("b").last()), (CODES + 1, Some(&("other", 984))));
        assert_eq!(tally.ends.len(), ENDS);
    }
}
