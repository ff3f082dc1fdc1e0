//! Reports the health of the Controller: on the board, in heartbeats on Redis and to systemd.
//!
//! Only the main loop calls this, so a heartbeat proves that the loop runs.

use std::io;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use log::{error, info, warn};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::decide::pressure::Usage;
use crate::decide::runway::{Level, Runway};
use crate::event::Event;
use crate::health::board::{Activity, Board};
use crate::health::host::Meter;
use crate::health::sd_notify::Notifier;
use crate::health::workspace::{Watch, placement};
use crate::probe::Prober;
use crate::redis::levels::Levels;
use crate::redis::publisher::{Publisher, Traffic};

/// The state of each component, as `Ok(details)` or the reason of a fault.
#[derive(Debug)]
pub struct Facts {
    /// PostgreSQL responds.
    pub database: Result<String, String>,
    /// Podman responds.
    pub podman: Result<String, String>,
    /// The sound cards can be read.
    pub hardware: Result<String, String>,
    /// Every desired Recorder runs.
    pub containers: Result<String, String>,
    /// Every Recorder that has opened its card gets frames.
    pub capture: Result<String, String>,
    /// What all captures together deliver, in bytes a second.
    pub rate: u64,
    /// Who holds the lock.
    pub lock: Result<String, String>,
    /// What the service is doing.
    pub activity: Activity,
}

/// Updates the board and sends heartbeats.
pub struct Heartbeat {
    board: Board,
    publisher: Publisher,
    meter: Meter,
    workspace: Watch,
    notifier: Notifier,
    usage: Usage,
    interval: Duration,
    next: Instant,
    /// How long the free space lasts.
    level: Level,
    /// `resources`, `host_resources` and `runway` of the last heartbeat.
    own: Value,
    host: Value,
    runway: Value,
}

impl Heartbeat {
    /// The first heartbeat is due at once.
    ///
    /// # Errors
    /// The system has no socket for the notifications, or no thread for a file.
    pub fn new(config: &Config, board: Board, publisher: Publisher, prober: &Prober) -> io::Result<Self> {
        ["database", "podman", "hardware"].into_iter().for_each(|component| board.require(component));
        ["containers", "capture", "lock", "redis", "workspace"].into_iter().for_each(|component| board.include(component));
        let notifier = Notifier::new(config.supervisor.clone())?;
        let (folder, root) = (config.workspace_local.clone(), config.host_root.clone());
        let place = move || placement(&folder, &root);
        let meter = Meter::with_placement([&config.recorder.workspace, &config.workspace_local], place, prober);
        Ok(Self {
            board,
            publisher,
            meter,
            workspace: Watch::start(config)?,
            notifier,
            usage: Usage::default(),
            interval: config.heartbeat,
            next: Instant::now(),
            level: Level::default(),
            own: Value::Null,
            host: Value::Null,
            runway: Value::Null,
        })
    }

    /// When [`Heartbeat::report`] is due.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.next
    }

    /// Whether Redis is available, and no question to it is under way for which somebody waits.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.publisher.state().is_ok() && self.publisher.levels_due().is_none()
    }

    /// Notes a completed cycle.
    pub fn beat(&mut self) {
        self.board.beat();
        self.notifier.beat(Instant::now());
    }

    /// Notes that the process is about to replace itself.
    pub fn replacing(&mut self) {
        self.notifier.replacing();
    }

    /// Whether the thread that sends the heartbeats hangs.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.publisher.is_hung()
    }

    /// Updates the board and sends a heartbeat, with `more` in its `meta`. Returns the use of the host.
    pub fn report(&mut self, facts: &Facts, more: Map<String, Value>, now: Instant) -> Usage {
        self.next = now + self.interval;
        let json = self.heartbeat(facts, more, now);
        match facts.activity {
            Activity::Standby => self.publisher.announce(json, self.ttl()),
            _ => self.publisher.heartbeat(json, self.ttl()),
        }
        self.usage
    }

    /// Sends a last heartbeat, and waits for that until `deadline`.
    pub fn finish(&mut self, facts: &Facts, more: Map<String, Value>, deadline: Instant) {
        let json = self.heartbeat(facts, more, Instant::now());
        match facts.activity {
            // The key belongs to the Controller that leads.
            Activity::Standby => self.publisher.announce(json, self.ttl()),
            _ => drop(self.publisher.finish(json, self.ttl(), deadline)),
        }
    }

    /// The health of this moment.
    #[must_use]
    pub fn health(&self, now: Instant) -> Value {
        self.board.health_json(now).1
    }

    /// Whether Redis is available, and what was sent to it.
    pub fn traffic(&self) -> (Result<(), String>, Traffic) {
        (self.publisher.state(), self.publisher.traffic())
    }

    /// The levels that the Recorders of these microphones state, as [`Publisher::levels`].
    #[must_use]
    pub fn levels(&self, ids: &[&str], events: &SyncSender<Event>) -> Option<Levels> {
        self.publisher.levels(ids, events)
    }

    /// When they are known in any case, as [`Publisher::levels_due`].
    #[must_use]
    pub fn levels_due(&self) -> Option<Instant> {
        self.publisher.levels_due()
    }

    /// `resources` of the last heartbeat; `null` before the first one.
    #[must_use]
    pub fn own(&self) -> &Value {
        &self.own
    }

    /// `host_resources` of the last heartbeat; `null` before the first one.
    #[must_use]
    pub fn host(&self) -> &Value {
        &self.host
    }

    /// `runway` of the last heartbeat.
    #[must_use]
    pub fn runway(&self) -> &Value {
        &self.runway
    }

    /// How long Redis keeps a heartbeat.
    fn ttl(&self) -> Duration {
        (self.interval * 3).max(Duration::from_secs(30))
    }

    fn heartbeat(&mut self, facts: &Facts, more: Map<String, Value>, now: Instant) -> String {
        let mut meta = self.meter.sample();
        if let Some(seen) = self.meter.placement() {
            self.workspace.update(seen);
        }
        self.update_board(facts);
        let percent = |field: &str| meta["host_resources"][field].as_f64();
        self.usage = Usage { memory: percent("memory_percent"), disk: percent("storage_percent") };
        self.runway = self.runway_now(facts.rate);
        self.host = meta["host_resources"].clone();
        self.own = meta["resources"].clone();
        meta.insert("runway".to_owned(), self.runway.clone());
        meta.extend(more);
        self.board.heartbeat(now, SystemTime::now(), meta).to_string()
    }

    /// How long the free space of the workspace lasts, as JSON. A change that matters is logged once.
    fn runway_now(&mut self, rate: u64) -> Value {
        let Some(runway) = Runway::new(self.meter.free(), rate as f64) else { return Value::Null };
        let level = runway.level(self.level);
        let line =
            format!("the workspace is {runway}: {:.1} GB are free, and {:.2} MB/s are recorded", runway.free / 1e9, runway.rate / 1e6);
        match level {
            _ if std::mem::replace(&mut self.level, level) == level => {}
            Level::Enough => info!("{line}"),
            Level::Short => warn!("{line}"),
            Level::Critical => error!("{line}"),
        }
        json!({"text": runway.to_string(), "seconds": runway.seconds().round(), "free_bytes": runway.free, "bytes_per_second": rate})
    }

    /// Updates the board, without a heartbeat.
    pub fn update_board(&mut self, facts: &Facts) {
        let redis = self.publisher.state().map(|()| "connected".to_owned());
        for (component, fact) in [
            ("database", &facts.database),
            ("podman", &facts.podman),
            ("hardware", &facts.hardware),
            ("containers", &facts.containers),
            ("capture", &facts.capture),
            ("lock", &facts.lock),
            ("redis", &redis),
        ] {
            self.board.set(component, fact.as_deref().map_err(String::as_str));
        }
        if let Some(state) = self.workspace.state() {
            self.board.set("workspace", state);
        }
        self.board.set_activity(facts.activity);
        if facts.activity == Activity::Stopping {
            self.notifier.stopping();
        }
    }
}
