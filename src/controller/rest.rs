//! Quiet ticks: decisions depend on what is known and, while something waits or is under way, on time. While nothing
//! has happened since the last decisions and nothing waits, new ones would be the same, so a tick only observes. This
//! saves a sixth of the processor time that a quiet station costs.
//!
//! Each part says itself whether it waits for something. What is noticed with time alone although no part says so, such
//! as that a Recorder is steady, is noticed with the next decisions, [`AGAIN`] later at most.

use std::time::{Duration, Instant};

use super::Controller;
use crate::decide::rest::Rest;

/// Maximum time between two decisions.
const AGAIN: Duration = Duration::from_secs(10);

impl Controller {
    /// Whether decisions now would be the same as the last ones.
    pub(super) fn rest_of_all(&self) -> Rest {
        let is_at_rest = self.rest == Rest::Undisturbed
            && self.plans_are_at_rest
            && self.shutdown.is_none()
            && self.hardware.is_at_rest()
            && self.database.is_at_rest()
            && self.containers.is_at_rest()
            && self.actions.is_empty()
            && self.workers.actions.is_empty()
            && self.heartbeat.is_at_rest();
        if is_at_rest { Rest::Undisturbed } else { Rest::Disturbed }
    }

    /// Whether decisions are to be made now. Then everything that has happened until now counts for them.
    pub(super) fn must_decide(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now.saturating_duration_since(self.decided) >= AGAIN || self.is_heartbeat_due(now);
        if !is_due && self.rest_of_all() == Rest::Undisturbed {
            return false;
        }
        self.decided = now;
        self.rest = Rest::Undisturbed;
        true
    }
}
