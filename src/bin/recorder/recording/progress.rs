//! How the recording goes: counters of both threads, for the heartbeat.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::level::Level;
use super::ring::Gap;

/// Without frames for so long, the microphone is not recorded.
pub(super) const SILENT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    counters: Mutex<Counters>,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress { started: Instant::now(), counters: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Counters {
    /// Frames that the card gave.
    captured: u64,
    /// Since the last heartbeat.
    level: Level,
    clipped: u64,
    /// Overruns, and frames that were lost by them, by a full buffer, or for want of space.
    lost: Gap,
    last_frame: Option<Instant>,
    written: u64,
    files: u64,
    last_file: Option<String>,
    /// Why nothing is written.
    fault: Option<String>,
}

impl Progress {
    pub(super) fn captured(&self, frames: u64, level: Level, now: Instant) {
        let mut counters = self.counters();
        counters.captured += frames;
        counters.level.add(level);
        counters.clipped += level.clipped;
        counters.last_frame = Some(now);
    }

    pub(super) fn lost(&self, gap: Gap) {
        self.counters().lost.add(gap);
    }

    pub(super) fn file(&self, name: &str, frames: u64) {
        let mut counters = self.counters();
        counters.files += 1;
        counters.written += frames;
        counters.last_file = Some(name.to_owned());
    }

    /// Why nothing is written, or `None`.
    pub(super) fn set_fault(&self, fault: Option<String>) {
        self.counters().fault = fault;
    }

    /// Whether all is well, with the reason, and the counters. The level is that since the last call.
    pub(super) fn report(&self, now: Instant) -> (Result<String, String>, Map<String, Value>) {
        let mut counters = self.counters();
        let level = std::mem::take(&mut counters.level);
        let last = counters.last_frame.unwrap_or(self.started);
        let state = match &counters.fault {
            _ if now.saturating_duration_since(last) > SILENT => Err(format!("no frames for {} s", SILENT.as_secs())),
            Some(fault) => Err(fault.clone()),
            None if counters.last_frame.is_none() => Ok("waiting for the first frame".to_owned()),
            None => Ok("recording".to_owned()),
        };
        let fields = [
            ("active", json!(state.is_ok() && counters.captured > 0)),
            ("frames", json!(counters.captured)),
            ("frames_written", json!(counters.written)),
            ("frames_lost", json!(counters.lost.frames)),
            ("overruns", json!(counters.lost.overruns)),
            ("peak_dbfs", json!(level.peak_dbfs())),
            ("rms_dbfs", json!(level.rms_dbfs())),
            ("clipped", json!(counters.clipped)),
            ("segments_promoted", json!(counters.files)),
            ("last_file", json!(counters.last_file)),
        ];
        (state, fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
    }

    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Sample;
    use super::*;

    #[test]
    fn frames_and_a_disk_make_a_recording() {
        let progress = Progress::default();
        let now = Instant::now();
        let (state, fields) = progress.report(now);
        assert_eq!((state.as_deref(), &fields["active"]), (Ok("waiting for the first frame"), &json!(false)));
        assert_eq!(progress.report(now + SILENT * 2).0, Err("no frames for 5 s".to_owned()));
        progress.captured(2, Level::of(Sample::S16, &[0xff, 0x7f, 0, 0]), now);
        progress.file("a.wav", 1);
        let (state, fields) = progress.report(now + SILENT);
        assert_eq!(state.as_deref(), Ok("recording"));
        let expected = json!({"active": true, "frames": 2, "frames_written": 1, "frames_lost": 0, "overruns": 0, "peak_dbfs": 0.0,
            "rms_dbfs": -3.01, "clipped": 1, "segments_promoted": 1, "last_file": "a.wav"});
        assert_eq!(Value::Object(fields), expected);
        progress.set_fault(Some("the disk is full".to_owned()));
        let (state, fields) = progress.report(now);
        assert_eq!((state, &fields["peak_dbfs"], &fields["clipped"]), (Err("the disk is full".to_owned()), &Value::Null, &json!(1)));
        assert_eq!(progress.report(now + SILENT * 2).0, Err("no frames for 5 s".to_owned()));
    }
}
