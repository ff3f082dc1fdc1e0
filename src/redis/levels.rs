//! The sound level that each Recorder states in its heartbeat, read while somebody looks at it.
//!
//! A Recorder keeps its heartbeat in Redis. One question reads the beginning of each, up to 12 KiB: what is
//! longer is refused, and Redis sends no more of it. Nothing is asked unless somebody asked for a document within the last
//! moment, and no more often than every two seconds.
//!
//! A level is a statement of a program of somebody else: only numbers are taken from it.

use std::mem;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use redis::{Pipeline, Value};
use serde_json::{Value as Json, json};

use crate::clock::fractional_seconds;
use crate::event::Event;
use crate::json::from_python;
use crate::sorted_map::SortedMap;

/// Longest heartbeat that is read, in bytes; those of this program have 2 KiB.
const HEARTBEAT: usize = 12 << 10;
/// Heartbeats that are read at most.
const COUNT: usize = 64;
/// A heartbeat of another time than this is not used.
const OLD: Duration = Duration::from_secs(30);
/// Age up to which an answer is used again.
const FRESH: Duration = Duration::from_secs(2);
/// How long somebody waits for an answer.
const PATIENCE: Duration = Duration::from_millis(250);

/// What a Recorder states about the sound since its heartbeat before, and about its whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    /// Greatest value, in dB of full scale; unknown, too, if all samples are 0.
    pub peak_dbfs: Option<f64>,
    /// Root mean square, likewise.
    pub rms_dbfs: Option<f64>,
    /// Samples at the limits of the format since the start of the Recorder.
    pub clipped: Option<u64>,
    /// Overruns since the start of the Recorder.
    pub overruns: Option<u64>,
}

impl Level {
    /// For a document.
    #[must_use]
    pub fn to_json(&self) -> Json {
        json!({"peak_dbfs": self.peak_dbfs, "rms_dbfs": self.rms_dbfs, "clipped": self.clipped, "overruns": self.overruns})
    }
}

/// The levels by stable id.
pub type Levels = SortedMap<String, Level>;

/// What is to be asked, and the last answer.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    /// The microphones that are to be asked about, and who is told of the answer.
    wanted: Option<(Vec<String>, SyncSender<Event>)>,
    /// Until when somebody waits for the answer.
    waits_until: Option<Instant>,
    /// When the last answer came, or its absence was noted.
    answered: Option<Instant>,
    levels: Levels,
}

impl Inquiry {
    /// The last answer, unless it is too old: then it is asked for. `None` while it is worth to wait for it.
    pub(super) fn get(&mut self, ids: &[&str], events: &SyncSender<Event>, now: Instant) -> Option<Levels> {
        if ids.is_empty() || self.answered.is_some_and(|at| now.saturating_duration_since(at) < FRESH) {
            self.waits_until = None;
            return Some(self.of(ids));
        }
        let Some(until) = self.waits_until else {
            self.wanted = Some((ids.iter().take(COUNT).map(|id| (*id).to_owned()).collect(), events.clone()));
            self.waits_until = Some(now + PATIENCE);
            return None;
        };
        if now < until {
            return None;
        }
        // Redis does not answer in time: what it says later is for the next who asks.
        (self.waits_until, self.wanted) = (None, None);
        self.answer(Levels::new(), now);
        Some(Levels::new())
    }

    fn of(&self, ids: &[&str]) -> Levels {
        self.levels.iter().filter(|(id, _)| ids.contains(&id.as_str())).map(|(id, level)| (id.clone(), level.clone())).collect()
    }

    /// Until when somebody waits for an answer.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waits_until
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// What is to be asked now.
    pub(super) fn take(&mut self) -> Option<(Vec<String>, SyncSender<Event>)> {
        mem::take(&mut self.wanted)
    }

    /// Notes the answer; an empty one if there is none.
    pub(super) fn answer(&mut self, levels: Levels, now: Instant) {
        (self.levels, self.answered) = (levels, Some(now));
    }
}

/// The question: the beginning of the heartbeat of each microphone, whose key begins with `prefix`.
pub(super) fn question(prefix: &str, ids: &[String]) -> Pipeline {
    let mut pipe = Pipeline::new();
    for id in ids {
        pipe.cmd("GETRANGE").arg(format!("{prefix}:{id}")).arg(0).arg(HEARTBEAT);
    }
    pipe
}

/// The level in a reply, if it is the heartbeat of the Recorder of this microphone, of about `now`.
pub(super) fn parse(reply: &Value, id: &str, now: SystemTime) -> Option<Level> {
    let Value::BulkString(bytes) = reply else { return None };
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= HEARTBEAT)?;
    let heartbeat: Json = from_python(text).ok()?;
    let made = heartbeat["timestamp"].as_f64()?;
    let age = fractional_seconds(now) - made;
    if heartbeat["service"] != "recorder" || heartbeat["instance_id"] != id || age.abs() > OLD.as_secs_f64() {
        return None;
    }
    let recording = &heartbeat["meta"]["recording"];
    let decibels = |name: &str| recording[name].as_f64().filter(|value| value.abs() <= 1000.0);
    let count = |name: &str| recording[name].as_u64();
    let level =
        Level { peak_dbfs: decibels("peak_dbfs"), rms_dbfs: decibels("rms_dbfs"), clipped: count("clipped"), overruns: count("overruns") };
    (level != Level::default()).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;
    use std::time::UNIX_EPOCH;

    fn heartbeat(time: f64, recording: &Json) -> Json {
        json!({"service": "recorder", "instance_id": "a", "timestamp": time, "meta": {"recording": recording}})
    }

    #[test]
    fn a_level_is_what_the_heartbeat_of_this_recorder_states_now() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let whole = json!({"peak_dbfs": -3.5, "rms_dbfs": -20.25, "clipped": 7, "overruns": 1, "frames": 5});
        let level = Level { peak_dbfs: Some(-3.5), rms_dbfs: Some(-20.25), clipped: Some(7), overruns: Some(1) };
        let part = |clipped| Some(Level { clipped: Some(clipped), ..Level::default() });
        let other = |key: &str, value: &str| {
            let mut other = heartbeat(1000.0, &whole);
            other[key] = value.into();
            other.to_string()
        };
        let table = [
            (heartbeat(1000.0, &whole).to_string(), Some(level.clone())),
            (heartbeat(971.0, &whole).to_string(), Some(level.clone())),
            (heartbeat(969.0, &whole).to_string(), None),
            (heartbeat(1031.0, &whole).to_string(), None),
            (heartbeat(1000.0, &json!({"peak_dbfs": null, "rms_dbfs": null, "clipped": 3})).to_string(), part(3)),
            // Whatever is no number of a possible size is left out.
            (heartbeat(1000.0, &json!({"peak_dbfs": "<b>", "rms_dbfs": 1e300, "clipped": 3, "overruns": -1})).to_string(), part(3)),
            (heartbeat(1000.0, &json!({"active": true})).to_string(), None),
            (heartbeat(1000.0, &json!([1])).to_string(), None),
            (heartbeat(1000.0, &whole).to_string().replace("-3.5", "NaN"), Some(Level { peak_dbfs: None, ..level })),
            (other("service", "controller"), None),
            (other("instance_id", "b"), None),
            (heartbeat(1000.0, &json!({"clipped": 3, "x": "x".repeat(HEARTBEAT)})).to_string(), None),
            (format!("{}{}", "[".repeat(40), "]".repeat(40)), None),
            (String::new(), None),
            ("\"".to_owned(), None),
        ];
        for (text, expected) in table {
            let reply = Value::BulkString(text.clone().into_bytes());
            assert_eq!(parse(&reply, "a", now), expected, "{}", &text[..text.len().min(200)]);
        }
        for reply in [Value::Nil, Value::Int(1), Value::BulkString(vec![0xff, 0xfe])] {
            assert_eq!(parse(&reply, "a", now), None);
        }
    }

    #[test]
    fn an_answer_serves_for_a_moment_and_is_waited_for_no_longer_than_another_one() {
        let (events, _inbox) = sync_channel(1);
        let (mut inquiry, start) = (Inquiry::default(), Instant::now());
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        // Without a microphone, nothing is asked.
        assert_eq!(inquiry.get(&[], &events, start), Some(Levels::new()));
        assert!(!inquiry.is_wanted() && inquiry.due().is_none());
        assert_eq!(inquiry.get(&["a", "b"], &events, start), None);
        assert_eq!(inquiry.take().map(|(ids, _)| ids), Some(vec!["a".to_owned(), "b".to_owned()]));
        // It is asked once.
        assert_eq!(inquiry.get(&["a", "b"], &events, after(0.05)), None);
        assert!(!inquiry.is_wanted());
        let levels = Levels::from_iter([("a".to_owned(), Level::default())]);
        inquiry.answer(levels.clone(), after(0.1));
        for (seconds, ids, expected) in [(0.1, ["a", "b"], &levels), (2.0, ["a", "c"], &levels), (2.0, ["c", "d"], &Levels::new())] {
            assert_eq!(inquiry.get(&ids, &events, after(seconds)).as_ref(), Some(expected));
        }
        assert!(!inquiry.is_wanted() && inquiry.due().is_none());
        // Without an answer, nobody waits longer than that, and nobody waits again at once.
        assert_eq!(inquiry.get(&["a"], &events, after(2.2)), None);
        assert_eq!(inquiry.due(), Some(after(2.2) + PATIENCE));
        assert_eq!(inquiry.get(&["a"], &events, after(2.5)), Some(Levels::new()));
        assert!(!inquiry.is_wanted() && inquiry.due().is_none());
        assert_eq!(inquiry.get(&["a"], &events, after(3.0)), Some(Levels::new()));
        assert_eq!(question("x:status", &["a".to_owned(), "b".to_owned()]).len(), 2);
    }
}
