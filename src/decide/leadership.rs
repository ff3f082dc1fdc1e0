//! Decides which of several Controllers with the same owner may change anything.

use std::fmt;
use std::time::{Duration, Instant};

/// Time to wait for the first result about the lock. After it the Controller continues without one.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Who holds the lock. As text: a line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This Controller, until it ends.
    Leader,
    /// Another one. It is described as in the lock file: `pid 1 on pi, in a container, since 2026-01-31T12:00:00Z`.
    Standby(String),
    /// Unknown, and why.
    Unknown(String),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => write!(f, "this Controller holds the lock"),
            Self::Standby(holder) => write!(f, "this Controller stands by: the lock is held by {holder}"),
            Self::Unknown(why) => write!(f, "this Controller continues without a lock and retries: {why}"),
        }
    }
}

/// What this Controller knows about the lock.
#[derive(Debug)]
pub struct Leadership {
    since: Instant,
    standing: Option<Standing>,
}

impl Leadership {
    /// The holder of the lock is not known yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, standing: None }
    }

    /// Handles a result about the lock. Returns the previous holder if this Controller takes over.
    pub fn update(&mut self, standing: Standing) -> Option<String> {
        let before = self.standing.replace(standing);
        match (before, &self.standing) {
            (Some(Standing::Standby(holder)), Some(Standing::Leader)) => Some(holder),
            _ => None,
        }
    }

    /// Whether this Controller may change anything: as leader, or if the leader is unknown, as recording comes first.
    #[must_use]
    pub fn may_act(&self, now: Instant) -> bool {
        match &self.standing {
            Some(standing) => !matches!(standing, Standing::Standby(_)),
            None => now.saturating_duration_since(self.since) >= LOCK_TIMEOUT,
        }
    }

    /// Whether it is decided who leads. Before that, the tables of a new database do not exist.
    #[must_use]
    pub fn is_decided(&self, now: Instant) -> bool {
        self.standing.is_some() || self.may_act(now)
    }

    /// When [`Leadership::may_act`] changes without a result.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.standing.is_none().then(|| self.since + LOCK_TIMEOUT)
    }

    /// Whether another Controller leads.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        matches!(self.standing, Some(Standing::Standby(_)))
    }

    /// For health checks: a lock that cannot be used is a fault; another leader is not.
    ///
    /// # Errors
    /// Why the lock cannot be used.
    pub fn details(&self) -> Result<String, String> {
        match &self.standing {
            Some(standing @ Standing::Unknown(_)) => Err(standing.to_string()),
            Some(standing) => Ok(standing.to_string()),
            None => Ok("not known yet".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_leader_keeps_a_controller_from_acting() {
        let start = Instant::now();
        let mut leadership = Leadership::new(start);
        assert!(!leadership.may_act(start) && leadership.may_act(start + LOCK_TIMEOUT));
        assert_eq!(leadership.update(Standing::Standby("pid 1".to_owned())), None);
        assert!(!leadership.may_act(start + LOCK_TIMEOUT) && leadership.is_standby() && leadership.details().is_ok());
        assert_eq!(leadership.update(Standing::Leader).as_deref(), Some("pid 1"));
        assert!(leadership.may_act(start));
        leadership.update(Standing::Unknown("no such file".to_owned()));
        assert!(leadership.may_act(start) && leadership.details().is_err());
    }
}
