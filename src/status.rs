//! `status.json`: what the status page shows. It only reads the state of the main loop, and contains no secret.
//!
//! docs/interface.md describes each key; a test compares both.

use std::time::{Duration, Instant};

use rustix::system::uname;
use serde_json::{Value, json};

use crate::clock::micros;
use crate::decide::reason::{Reason, online};
use crate::decide::sessions::Day;
use crate::hardware::pcm::Proof;
use crate::redis::levels::Level;
use crate::report::{Known, Surroundings};

/// Changes only if a key gets another meaning or is removed.
const VERSION: u64 = 1;
/// Number of decisions that are shown.
const DECISIONS: usize = 20;

/// How often the pages may ask: each once a second, and all together four times a second.
#[derive(Debug)]
pub struct Pace {
    /// Time between two questions of one page.
    interval: Duration,
    /// Since when the answers are counted, and their number.
    since: Instant,
    count: u32,
}

/// Answers a second.
const RATE: f64 = 4.0;
/// Shortest and longest time between two questions of one page.
const INTERVALS: (f64, f64) = (1.0, 8.0);
/// Time over which answers are counted.
const COUNTED: Duration = Duration::from_secs(4);

impl Pace {
    /// For one page.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { interval: Duration::from_secs_f64(INTERVALS.0), since: now, count: 0 }
    }

    /// So many answers were given since the last call.
    pub fn answered(&mut self, count: u32, now: Instant) -> Duration {
        self.count = self.count.saturating_add(count);
        let time = now.saturating_duration_since(self.since);
        if time >= COUNTED.max(self.interval) {
            let pages = f64::from(self.count) / time.as_secs_f64() * self.interval.as_secs_f64();
            self.interval = Duration::from_secs_f64((pages / RATE).clamp(INTERVALS.0, INTERVALS.1));
            (self.since, self.count) = (now, 0);
        }
        self.interval
    }
}

/// The document at this time, with the time between two questions of a page and the last log lines.
#[must_use]
pub fn document(known: &mut Known<'_>, around: &Surroundings<'_>, interval: Duration, log: &[Value]) -> Value {
    let (heartbeat, power) = (known.heartbeat, around.power);
    let reasons = known.reasons();
    let microphones: Vec<Value> = reasons.into_iter().map(|(id, reason)| microphone(known, &id, reason, around.levels.get(&id))).collect();
    let decisions: Vec<Value> = known.history.last(DECISIONS).map(|(at, line)| json!([seconds(micros(*at)), line])).collect();
    json!({
        "version": VERSION,
        "poll_s": interval.as_secs_f64(),
        "time": micros(around.wall) as f64 / 1e6,
        "started": seconds(micros(known.started)),
        "controller": env!("CARGO_PKG_VERSION"),
        "activity": around.facts.activity.as_str(),
        "health": heartbeat.health(around.now),
        "microphones": microphones,
        "workers": known.workers,
        "runway": heartbeat.runway(),
        "power": {"under_voltage": power.under_voltage, "temperature_c": power.millidegrees.map(|degrees| degrees / 1000)},
        "clock": {"synchronised": known.ledger.is_synchronised()},
        "host": {"name": uname().nodename().to_string_lossy(), "resources": heartbeat.host()},
        "decisions": decisions,
        "log": log,
    })
}

fn microphone(known: &Known<'_>, id: &str, Reason { recording, stalled, text }: Reason, level: Option<&Level>) -> Value {
    let row = known.database.registry.as_ref().and_then(|registry| registry.devices.get(id)?.as_ref().ok());
    let capture = known.captures.capture(id).and_then(|_| known.hardware.proof(id)).map(Proof::to_json);
    let day = known.ledger.day(id);
    let Day { gaps, open, .. } = day.clone().unwrap_or_default();
    let gaps: Vec<Value> = gaps.iter().map(|(from, to, cause)| json!([seconds(*from), seconds(*to), &**cause])).collect();
    let effort = known.ledger.effort(id);
    json!({
        "id": id,
        "name": row.map(|row| &row.model),
        "profile": row.and_then(|row| row.profile.as_ref()),
        "connected": online(&known.hardware.presences, id).is_some(),
        "recording": recording,
        "stalled": stalled,
        "reason": text,
        "since": open.map(|(since, _)| seconds(since)),
        "frames": open.map(|(_, frames)| frames),
        "capture": capture,
        "level": level.map(Level::to_json),
        "rate": effort["rate"],
        "recorded_24h": effort["recorded_24h"],
        "from": day.map(|day| seconds(day.from)),
        "gaps": gaps,
    })
}

fn seconds(micros: i64) -> i64 {
    micros / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pages_ask_less_often() {
        // Pages that are open, and the interval that each of them gets.
        for (pages, expected) in [(1, 1.0), (4, 1.0), (8, 2.0), (30, 7.5), (1000, 8.0)] {
            let start = Instant::now();
            let mut pace = Pace::new(start);
            let (mut interval, mut now) = (Duration::from_secs(1), start);
            for _ in 0..20 {
                // Over a whole number of rounds, each page asks once a round.
                now += interval * 10;
                interval = pace.answered(pages * 10, now);
            }
            assert!((interval.as_secs_f64() - expected).abs() < 0.01, "{pages} pages: {interval:?}");
        }
        let mut pace = Pace::new(Instant::now());
        assert_eq!(pace.answered(100, Instant::now()), Duration::from_secs(1));
    }
}
