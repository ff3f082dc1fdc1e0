//! The ledger: when each microphone was recorded, and why not in between.
//!
//! At each tick the last reads of the PCMs and the ends of Recorders are passed to [`Sessions`], which decides. Rows go to
//! the database when a session begins or ends, and every 15 minutes. What the database does not have for some seconds is
//! kept in a file of the Recorder workspace until it is written. Only the Controller that leads keeps the ledger.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use log::debug;
use serde_json::{Value, json};

use crate::cache::{Content, SESSIONS};
use crate::clocks::{self, Clocks};
use crate::config::Config;
use crate::database::sessions::SessionQueue;
use crate::decide::action::Cause as ActionCause;
use crate::decide::action::{Action, Done, Ending, Failure, Task};
use crate::decide::desired::StopReason;
use crate::decide::presence::Transition;
use crate::decide::recorders::{Note, Recorders};
use crate::decide::sessions::{Cause, Count, Day, Effort, Now, SessionRow, Sessions};
use crate::hardware::state::{Changes, HardwareState};
use crate::rate_limit::RateLimit;
use crate::saver::Saver;

/// Rows that wait this long for the database are saved.
const SAVE: Duration = Duration::from_secs(5);

/// Observes the Recorders, and keeps what is not in the database yet.
pub struct Ledger {
    sessions: Sessions,
    clocks: Clocks,
    queue: SessionQueue,
    saver: Saver,
    /// Receives the rows that an earlier run saved; `None` after that.
    saved: Option<Receiver<Vec<SessionRow>>>,
    /// What waits since when, and what is in the file: versions of the queue.
    waits: Option<(u64, Instant)>,
    in_file: u64,
    rate_limit: RateLimit,
}

/// Whether it is known which Recorders run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordersAre {
    /// It is.
    Known,
    /// It is not.
    Unknown,
}

impl Ledger {
    /// Begins to read what an earlier run saved. `queue` leads to the database.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(config: &Config, queue: &SessionQueue) -> io::Result<Self> {
        let (outbox, saved) = channel();
        let saver = Saver::start_json(SESSIONS, &config.workspace_local, move |rows: Option<Vec<SessionRow>>| {
            // Fails only while the program ends.
            let _ = outbox.send(rows.unwrap_or_default());
        })?;
        Ok(Self {
            sessions: Sessions::new(&clocks::boot().id),
            clocks: Clocks::read(),
            queue: queue.clone(),
            saver,
            saved: Some(saved),
            waits: None,
            in_file: 0,
            rate_limit: RateLimit::default(),
        })
    }

    /// Handles a tick: what was read of the PCMs, and which Recorders run.
    pub fn tick(&mut self, hardware: &HardwareState, recorders: &Recorders, are: RecordersAre) {
        let now = self.clocks.now();
        self.continue_earlier(now);
        for (device, container) in recorders.running() {
            if let Some(proof) = hardware.proof(device) {
                self.sessions.observe(device, container, &proof.stream(&self.clocks), now);
            }
        }
        if are == RecordersAre::Known {
            self.sessions.recorded_by(|device| recorders.running().any(|(other, _)| other == device), now);
        }
        self.hand_out(now);
        self.save(SAVE);
    }

    /// Reads whether the wall clock is synchronised.
    pub fn read_clock(&mut self, root: &Path) {
        self.clocks.read_synchronised(root);
    }

    /// Passes on what must be written.
    fn hand_out(&mut self, now: Now) {
        let rows = self.sessions.due(now);
        if rows.is_empty() {
            return;
        }
        for row in &rows {
            debug!("session of {}: {} frames, {}", row.device, row.frames, row.cause.as_deref().unwrap_or("open"));
        }
        let dropped = self.queue.put(rows);
        if dropped > 0 {
            let line = format!("PostgreSQL is unavailable for so long that {dropped} closed sessions, the oldest ones, are lost");
            self.rate_limit.warn("dropped", &line, Instant::now());
        }
    }

    /// Continues the sessions of an earlier run, once both the file and the database were read.
    fn continue_earlier(&mut self, now: Now) {
        if let Some(saved) = &self.saved {
            match saved.try_recv() {
                Ok(rows) => {
                    let is_empty = rows.is_empty();
                    self.queue.put(rows);
                    self.in_file = if is_empty { self.in_file } else { self.queue.version() };
                    self.saved = None;
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.saved = None,
            }
        }
        let Some(mut rows) = self.queue.take_earlier() else { return };
        // What waits is newer than what was written.
        let waiting = self.queue.waiting();
        rows.retain(|row| !waiting.iter().any(|other| other.id == row.id));
        rows.extend(waiting);
        let merged = self.sessions.continue_from(rows, now);
        self.queue.forget(&merged);
    }

    /// Saves what waits for this time, or that nothing waits any more.
    fn save(&mut self, patience: Duration) {
        let version = self.queue.version();
        if version == self.in_file || self.saved.is_some() {
            return;
        }
        let rows = self.queue.waiting();
        if rows.is_empty() {
            // The file is only changed if it contains something.
            if self.in_file > 0 {
                self.write_file(rows);
            }
            (self.in_file, self.waits) = (0, None);
            return;
        }
        let now = Instant::now();
        let since = self.waits.get_or_insert((version, now)).1;
        if now.saturating_duration_since(since) >= patience {
            self.in_file = version;
            self.write_file(rows);
        }
    }

    fn write_file(&self, rows: Vec<SessionRow>) {
        self.saver.save(move || {
            let text = serde_json::to_string(&rows).map_err(|error| error.to_string())?;
            Ok(Content { text, note: None })
        });
    }

    /// Saves what the database does not have, at most until `deadline`.
    pub fn finish(&mut self, deadline: Instant) {
        self.hand_out(self.clocks.now());
        self.save(Duration::ZERO);
        self.saver.finish(deadline);
    }

    /// Handles microphones that were connected or disconnected.
    pub fn note_connections(&mut self, changes: &Changes) {
        for (device, change) in changes {
            let now = self.clocks.now();
            match change {
                Transition::Vanished | Transition::Left => self.sessions.end(device, None, Cause::Unplugged, now),
                Transition::Returned => self.sessions.explain(device, None, Cause::Flap, now),
                Transition::Appeared => {}
            }
        }
    }

    /// Handles what happened to a Recorder without an action of ours.
    pub fn note(&mut self, note: &Note) {
        let now = self.clocks.now();
        match note {
            Note::Ended { device, ending: Ending::Reboot, .. } => self.sessions.end(device, None, Cause::Power, now),
            Note::Ended { device, ending, .. } => self.sessions.end(device, None, Cause::Ended(*ending), now),
            Note::Foreign { device, .. } => {
                self.sessions.end(device, None, Cause::Replaced(vec!["by somebody else".to_owned()]), now);
            }
            _ => {}
        }
    }

    /// An action begins that stops Recorders.
    pub fn begun(&mut self, action: &Action) {
        let now = self.clocks.now();
        for container in action.ends() {
            self.sessions.explain(&action.device, Some(&container.id), cause(action, &[]), now);
        }
    }

    /// An action that stopped Recorders succeeded. If it failed, the frames show what became of them.
    pub fn finished(&mut self, action: &Action, result: &Result<Done, Failure>) {
        let Ok(done) = result else { return };
        let differences = if let Done::Started { differences, .. } = done { &differences[..] } else { &[] };
        let now = self.clocks.now();
        for container in action.ends() {
            self.sessions.end(&action.device, Some(&container.id), cause(action, differences), now);
        }
        // During a shutdown no tick follows.
        self.hand_out(now);
    }

    /// The last 24 hours of a microphone; `None` if it has no session in them.
    #[must_use]
    pub fn day(&self, device: &str) -> Option<Day> {
        self.sessions.day(device, self.clocks.now())
    }

    /// Whether the wall clock is synchronised; `None` = unknown.
    #[must_use]
    pub fn is_synchronised(&self) -> Option<bool> {
        self.clocks.now().synchronised
    }

    /// What was counted for a microphone since the start, its nominal rate and the time of its last frame.
    #[must_use]
    pub fn count(&self, device: &str) -> Option<(&Count, u64, i64)> {
        self.sessions.count(device)
    }

    /// The share and the rate of a microphone.
    #[must_use]
    pub fn shares(&self, device: &str) -> Option<Effort> {
        self.sessions.effort(device, self.clocks.now())
    }

    /// The share and the rate of a microphone, as JSON; `null` if it has no session.
    #[must_use]
    pub fn effort(&self, device: &str) -> Value {
        let Some(effort) = self.sessions.effort(device, self.clocks.now()) else { return Value::Null };
        let rate = effort.rate.map(|(rate, nominal)| {
            let ppm = (rate / nominal as f64 - 1.0) * 1e6;
            json!({"hz": (rate * 100.0).round() / 100.0, "ppm": (ppm * 10.0).round() / 10.0})
        });
        json!({"recorded_24h": (effort.share * 1e4).round() / 1e4, "rate": rate})
    }
}

/// Why an action ends a session.
fn cause(action: &Action, differences: &[String]) -> Cause {
    match &action.cause {
        ActionCause::Stop(StopReason::Offline) => Cause::Unplugged,
        ActionCause::Stop(_) | ActionCause::NoRow | ActionCause::Surplus | ActionCause::LimitReached => {
            Cause::Stopped(action.cause.to_string())
        }
        ActionCause::Ended(ending) | ActionCause::Unproven(ending) => Cause::Ended(*ending),
        _ if matches!(action.task, Task::Replace { .. }) => Cause::Replaced(differences.to_vec()),
        _ => Cause::Unknown,
    }
}
