//! What the loop tells: the health, the heartbeat, and the texts that are served beside them while somebody asks.

use std::time::{Duration, Instant, SystemTime};

use super::Controller;
use crate::health::heartbeat::Facts;
use crate::health::openmetrics::Format;
use crate::health::pages::Prepared;
use crate::report::{Known, Surroundings};
use crate::{metrics, status};

impl Controller {
    /// Updates the health components, and sends the heartbeat when it is due.
    pub(super) fn report(&mut self) {
        let now = Instant::now();
        let facts = self.known().facts();
        // Not before it is known who leads: the heartbeat would present this Controller as the leader.
        if self.is_heartbeat_due(now) && (self.leadership.is_standby() || self.leadership.may_act(now)) {
            self.report_workers();
            self.ledger.read_clock(&self.config.host_root);
            let meta = self.known().meta();
            let usage = self.heartbeat.report(&facts, meta, now);
            self.rest = self.rest.and(self.workers.measured(usage, now));
        } else {
            self.heartbeat.update_board(&facts);
        }
        self.prepare_pages(&facts, now);
    }

    /// Whether a heartbeat is due. It is sent up to half a tick early, to avoid another wake-up.
    pub(super) fn is_heartbeat_due(&self, now: Instant) -> bool {
        now + self.config.interval.min(Duration::from_secs(1)) / 2 >= self.heartbeat.due()
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
            let around = Surroundings { facts, levels: &levels, power: self.hardware.power(now), now, wall: SystemTime::now() };
            let text = match page {
                Prepared::Status => self.status(&around),
                Prepared::Metrics => metrics::text(&mut self.known(), &around, Format::Prometheus),
                Prepared::OpenMetrics => metrics::text(&mut self.known(), &around, Format::OpenMetrics),
            };
            pages.put(page, text, now);
        }
    }

    /// The state of the station, for the status page, which listens to log lines from now on.
    fn status(&mut self, around: &Surroundings<'_>) -> String {
        self.logs.page_asked(around.now);
        self.report_workers();
        let served = self.pages.as_ref().map_or(0, |pages| pages.take_served(Prepared::Status));
        let interval = self.pace.answered(served, around.now);
        let log = self.logs.recent().all();
        status::document(&mut self.known(), around, interval, &log).to_string()
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
            heartbeat: &self.heartbeat,
            started: self.started,
            ledger: &self.ledger,
            history: &self.history,
            tally: &self.tally,
            specs: &mut self.specs,
            is_stopping: self.shutdown.is_some(),
        }
    }
}
