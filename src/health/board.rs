//! The state that `/healthy` and the heartbeat show, shared by the threads.
//!
//! The board stores the state and writes it as JSON, nothing else: the callers of [`Board::set`] decide what is
//! healthy, `http` and `redis::publisher` send it, and the metrics come from `host`.
//!
//! Invariant: a board never reports "ok" while the main loop is stuck. The state of the loop cannot be set; it depends
//! on the time of the last [`Board::beat`], so that a stuck loop cannot leave an outdated "healthy".

use crate::clock::fractional_seconds;
use crate::sorted_map::SortedMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};

use crate::text::NOT_YET;

/// A main loop that completes no cycle within this time counts as stuck.
pub const STALLED: Duration = Duration::from_secs(60);

/// The state of one process; clones share it.
#[derive(Clone, Debug)]
pub struct Board {
    shared: Arc<Mutex<BoardState>>,
    service: &'static str,
    instance: Arc<str>,
}

/// What a service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing is recorded.
    Idle,
    /// At least one microphone is recorded.
    Recording,
    /// Another Controller leads.
    Standby,
    /// It is about to end.
    Stopping,
}

impl Activity {
    /// As in the heartbeat.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Recording => "recording",
            Self::Standby => "standby",
            Self::Stopping => "stopping",
        }
    }
}

/// Whether the service works without a component.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

#[derive(Debug)]
struct BoardState {
    components: SortedMap<&'static str, Component>,
    activity: Activity,
    beat: Instant,
}

#[derive(Debug)]
struct Component {
    healthy: bool,
    details: String,
    required: bool,
}

impl Board {
    /// A board whose only component is the main loop, which has the name of the service. `instance` is the
    /// `instance_id` in heartbeats.
    #[must_use]
    pub fn new(service: &'static str, instance: &str) -> Self {
        let state = BoardState { components: SortedMap::new(), activity: Activity::Idle, beat: Instant::now() };
        Self { shared: Arc::new(Mutex::new(state)), service, instance: instance.into() }
    }

    /// Adds a component that the service needs to be healthy. It is unhealthy until it is [`set`](Self::set).
    pub fn require(&self, component: &'static str) {
        self.add(component, Need::Required);
    }

    /// Adds a component without which the service still works. It is unhealthy until it is [`set`](Self::set).
    pub fn include(&self, component: &'static str) {
        self.add(component, Need::Optional);
    }

    fn add(&self, component: &'static str, need: Need) {
        let unknown = Component { healthy: false, details: NOT_YET.to_owned(), required: need == Need::Required };
        self.state().components.insert(component, unknown);
    }

    /// Sets a component to healthy or not, with details. One that was never added is not required.
    pub fn set(&self, component: &'static str, fact: Result<&str, &str>) {
        let healthy = fact.is_ok();
        let (Ok(details) | Err(details)) = fact;
        let mut state = self.state();
        let entry = state.components.entry(component).or_insert(Component { healthy, details: String::new(), required: false });
        entry.healthy = healthy;
        if entry.details != details {
            details.clone_into(&mut entry.details);
        }
    }

    /// Sets what the service is doing.
    pub fn set_activity(&self, activity: Activity) {
        self.state().activity = activity;
    }

    /// Notes that the main loop has completed a cycle.
    pub fn beat(&self) {
        self.state().beat = Instant::now();
    }

    /// Whether the service is healthy, and the `health` object with the reasons. `live` depends on the main loop only.
    #[must_use]
    pub fn health_json(&self, now: Instant) -> (bool, Value) {
        let state = self.state();
        let since_beat = now.saturating_duration_since(state.beat);
        let live = since_beat < STALLED;
        let loop_details = if live { "running".to_owned() } else { format!("no cycle completed for {} s", since_beat.as_secs()) };
        let mut components = Map::new();
        let mut ok = live;
        for (name, component) in &state.components {
            ok &= component.healthy || !component.required;
            let entry = json!({"healthy": component.healthy, "details": component.details, "required": component.required});
            components.insert((*name).to_owned(), entry);
        }
        components.insert(self.service.to_owned(), json!({"healthy": live, "details": loop_details, "required": true}));
        (ok, json!({"status": if ok { "ok" } else { "error" }, "live": live, "components": components}))
    }

    /// The payload of a heartbeat. `meta` is copied unchanged: `resources`, `host_resources` and what else the caller
    /// adds.
    #[must_use]
    pub fn heartbeat(&self, now: Instant, time: SystemTime, meta: Map<String, Value>) -> Value {
        let (_, health) = self.health_json(now);
        let activity = self.state().activity;
        // Nobody may take the heartbeat of a standby for that of the Controller that leads.
        let instance = match activity {
            Activity::Standby => format!("{}-standby", self.instance),
            _ => self.instance.to_string(),
        };
        json!({
            "service": self.service,
            "instance_id": instance,
            "timestamp": fractional_seconds(time),
            "health": health,
            "activity": activity.as_str(),
            "meta": meta,
        })
    }

    fn state(&self) -> MutexGuard<'_, BoardState> {
        // Each write leaves the state consistent, so a panic elsewhere does no harm.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn only_required_components_and_a_stuck_loop_make_a_service_unhealthy() {
        type Components = &'static [(&'static str, bool, bool)];
        let table: [(Components, u64, bool); 7] = [
            (&[], 0, true),
            (&[("redis", false, false)], 0, true),
            (&[("database", true, true), ("redis", false, false)], 59, true),
            (&[("database", false, true)], 0, false),
            (&[("database", true, true), ("podman", false, true)], 0, false),
            (&[("database", true, true)], 61, false),
            (&[], 61, false),
        ];
        for (components, seconds, expected) in table {
            let board = Board::new("controller", "controller");
            for (name, healthy, required) in components {
                if *required {
                    board.require(name);
                } else {
                    board.include(name);
                }
                board.set(name, if *healthy { Ok("x") } else { Err("x") });
            }
            let (ok, health) = board.health_json(Instant::now() + Duration::from_secs(seconds));
            assert_eq!(ok, expected, "{components:?} after {seconds} s: {health}");
            assert_eq!(health["status"], if expected { "ok" } else { "error" });
            assert_eq!(health["live"], seconds < 60);
            assert_eq!(health["components"]["controller"]["healthy"], seconds < 60);
        }
    }

    #[test]
    fn a_required_component_is_unhealthy_until_it_is_known() {
        let board = Board::new("controller", "controller");
        board.require("database");
        let (ok, health) = board.health_json(Instant::now());
        assert!(!ok);
        assert_eq!(health["components"]["database"], json!({"healthy": false, "details": "not known yet", "required": true}));
    }

    #[test]
    fn a_heartbeat_has_the_agreed_shape() {
        let board = Board::new("recorder", "0869-0389-1");
        board.set("redis", Ok("connected"));
        board.set_activity(Activity::Recording);
        let mut meta = Map::new();
        meta.insert("resources".to_owned(), json!({"cpu_percent": 0.5}));
        let payload = board.heartbeat(Instant::now(), UNIX_EPOCH + Duration::from_millis(1_500), meta);
        let expected = json!({"service": "recorder", "instance_id": "0869-0389-1", "timestamp": 1.5, "activity": "recording",
            "health": {"status": "ok", "live": true, "components": {
                "recorder": {"healthy": true, "details": "running", "required": true},
                "redis": {"healthy": true, "details": "connected", "required": false}}},
            "meta": {"resources": {"cpu_percent": 0.5}}});
        assert_eq!(payload, expected);
    }
}
