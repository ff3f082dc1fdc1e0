//! Does a Recorder's process still live? Podman learns of an end from conmon only, and says `running` for ever when that
//! was killed.
//!
//! A wrong "dead" would interrupt a recording, so only this counts: a process that was seen in the control group of that
//! very container is gone, and a second later Podman still names it. A Controller that cannot see the processes of the
//! host (another PID namespace) never saw them, and judges nobody.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::host;
use crate::podman::{Container, State};

/// Podman itself takes 30-300 ms to notice an end.
const CONFIRMED: Duration = Duration::from_secs(1);

/// The processes that were seen, by container id.
#[derive(Debug, Default)]
pub struct Witness {
    seen: BTreeMap<String, Sight>,
}

#[derive(Debug)]
struct Sight {
    pid: u32,
    /// In clock ticks since boot: tells a process from a later one with its number.
    started: String,
    gone: Option<Instant>,
}

impl Witness {
    /// Marks the containers of a fresh list as [`State::Lost`] whose process is known to be gone.
    pub fn judge(&mut self, containers: &mut [Container], now: Instant) {
        self.seen.retain(|id, _| containers.iter().any(|container| &container.id == id && container.state == State::Running));
        for container in containers.iter_mut().filter(|container| container.state == State::Running && container.pid > 0) {
            let alive = started(container.pid);
            match self.seen.get_mut(&container.id).filter(|sight| sight.pid == container.pid) {
                None => {
                    if let Some(started) = alive.filter(|_| is_of(container.pid, &container.id)) {
                        self.seen.insert(container.id.clone(), Sight { pid: container.pid, started, gone: None });
                    }
                }
                Some(sight) if alive.as_ref() == Some(&sight.started) => sight.gone = None,
                Some(sight) => {
                    let since = *sight.gone.get_or_insert(now);
                    if now.saturating_duration_since(since) >= CONFIRMED {
                        container.state = State::Lost;
                    }
                }
            }
        }
    }

    /// Whether a process that was seen is gone, whatever the last list said.
    #[must_use]
    pub fn misses_one(&self) -> bool {
        self.seen.values().any(|sight| started(sight.pid).as_ref() != Some(&sight.started))
    }
}

/// When the process began; `None` if there is none, or only what its parent has not collected yet.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = host::fields(&stat)?;
    let lives = !matches!(fields.next()?, "Z" | "X");
    fields.nth(18).filter(|_| lives).map(str::to_owned)
}

fn is_of(pid: u32, container: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(container))
}
