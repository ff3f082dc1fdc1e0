//! Does a Recorder's process still live? Podman learns of an end from conmon only, and says `running` for ever when that
//! was killed.
//!
//! A wrong "dead" would interrupt a recording, so only this counts: a process that was seen in the control group of that
//! very container is gone, and a second later Podman still names it. A Controller that cannot see the processes of the
//! host never saw them, and judges nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::decide::container::{Container, State};
use crate::podman::pidfd::Process;

/// Podman itself takes 30-300 ms to notice an end.
const CONFIRMED: Duration = Duration::from_secs(1);

/// The processes that were seen, by container id.
#[derive(Debug, Default)]
pub struct Liveness {
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    process: Process,
    gone: Option<Instant>,
    /// For good, whatever state a removal that failed leaves behind.
    lost: bool,
}

impl Liveness {
    /// Marks the containers of a fresh list as [`State::Lost`] whose process is known to be gone.
    pub fn judge(&mut self, containers: &mut [Container], now: Instant) {
        let keeps = |id: &String, sight: &Seen| {
            containers.iter().any(|container| &container.id == id && (sight.lost || container.state == State::Running))
        };
        self.seen.retain(|id, sight| keeps(id, sight));
        for container in containers {
            let running = container.state == State::Running;
            match self.seen.get_mut(&container.id).filter(|sight| sight.process.pid == container.pid || (sight.lost && !running)) {
                None if running => {
                    if let Some(process) = Process::of(container.pid, &container.id) {
                        self.seen.insert(container.id.clone(), Seen { process, gone: None, lost: false });
                    }
                }
                None => {}
                Some(sight) if sight.process.is_alive() => sight.gone = None,
                Some(sight) => {
                    let since = *sight.gone.get_or_insert(now);
                    sight.lost |= now.saturating_duration_since(since) >= CONFIRMED;
                    if sight.lost && !container.state.is_over() {
                        container.state = State::Lost;
                    }
                }
            }
        }
    }

    /// Whether a process that was seen is gone, whatever the last list said.
    #[must_use]
    pub fn misses_one(&self) -> bool {
        self.seen.values().any(|sight| !sight.process.is_alive())
    }
}
