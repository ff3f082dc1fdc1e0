//! What the loop tells: the health, the heartbeat, and the texts that are served beside them while somebody asks.

use std::time::{Duration, Instant, SystemTime};

use rustix::system::uname;
use serde_json::json;

use super::Controller;
use crate::health::heartbeat::Facts;
use crate::health::openmetrics::Format;
use crate::health::pages::Prepared;
use crate::redis::levels::Levels;
use crate::report::Known;
use crate::{metrics, status};

impl Controller {
    /// Updates the health components, and sends the heartbeat when it is due.
    pub(super) fn report(&mut self) {
        self.heartbeat.beat();
        let now = Instant::now();
        let facts = self.known().facts();
        // Sent up to half a tick early, to avoid another wake-up.
        let is_due = now + self.config.interval.min(Duration::from_secs(1)) / 2 >= self.heartbeat.due();
        // Not before it is known who leads: the heartbeat would present this Controller as the leader.
        if is_due && (self.leadership.is_standby() || self.leadership.may_act(now)) {
            self.report_workers();
            self.ledger.read_clock(&self.config.host_root);
            let meta = self.known().meta();
            let usage = self.heartbeat.report(&facts, meta, now);
            self.workers.measured(usage, now);
        } else {
            self.heartbeat.update_board(&facts);
        }
        self.prepare_pages(&facts, now);
    }

    /// Prepares the texts that somebody asks for, once Redis has answered or was given the time for that.
    fn prepare_pages(&mut self, facts: &Facts, now: Instant) {
        let Some(pages) = self.pages.clone() else { return };
        let wanted = pages.wanted();
        if wanted.is_empty() {
            return;
        }
        let running: Vec<&str> = self.recorders.running().map(|(device, _)| device.as_str()).collect();
        let Some(levels) = self.heartbeat.levels(&running, &self.events) else { return };
        for page in wanted {
            let text = match page {
                Prepared::Status => self.status(facts, &levels, now),
                Prepared::Metrics => self.metrics(Format::Prometheus, facts, &levels, now),
                Prepared::OpenMetrics => self.metrics(Format::OpenMetrics, facts, &levels, now),
            };
            pages.put(page, text, now);
        }
    }

    /// The state of the station, for the status page, which listens to log lines from now on.
    fn status(&mut self, facts: &Facts, levels: &Levels, now: Instant) -> String {
        self.logs.page_asked(now);
        self.report_workers();
        let served = self.pages.as_ref().map_or(0, |pages| pages.take_served(Prepared::Status));
        let pace = self.pace.answered(served, now);
        let power = self.hardware.power(now);
        let surroundings = status::Surroundings {
            health: self.heartbeat.health(now),
            activity: facts.activity.as_str(),
            host: self.heartbeat.host().clone(),
            host_name: uname().nodename().to_string_lossy().into_owned(),
            runway: self.heartbeat.runway().clone(),
            power: json!({"under_voltage": power.under_voltage, "temperature_c": power.millidegrees.map(|degrees| degrees / 1000)}),
            levels: levels.clone(),
            pace,
            started: self.started,
            log: self.logs.recent().all(),
        };
        status::document(&mut self.known(), surroundings, SystemTime::now()).to_string()
    }

    fn metrics(&mut self, format: Format, facts: &Facts, levels: &Levels, now: Instant) -> String {
        let (redis, traffic) = self.heartbeat.traffic();
        let around = metrics::Surroundings {
            started: self.started,
            wall: SystemTime::now(),
            activity: facts.activity,
            rate: facts.rate,
            redis: redis.is_ok(),
            traffic,
            power: self.hardware.power(now),
            own: self.heartbeat.own().clone(),
            host: self.heartbeat.host().clone(),
            runway: self.heartbeat.runway().clone(),
            levels: levels.clone(),
        };
        metrics::text(&mut self.known(), &around, format)
    }

    pub(super) fn known(&mut self) -> Known<'_> {
        Known {
            hardware: &self.hardware,
            database: &self.database,
            containers: &self.containers,
            actions: &self.actions,
            recorders: &self.recorders,
            workers: &self.workers.report,
            captures: &self.captures,
            leadership: &self.leadership,
            ledger: &self.ledger,
            history: &self.history,
            tally: &self.tally,
            specs: &mut self.specs,
            is_stopping: self.shutdown.is_some(),
        }
    }
}
