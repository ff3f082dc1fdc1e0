//! How runs ended, beyond what a list shows: whether memory ran out, and the exit codes of runs that Podman followed by
//! another one.
//!
//! Only the log and the counts need it, and Podman may never answer for one container, so no list waits for longer than
//! a moment: a short-lived thread asks, once for each run, and what it learns later is in the next list. There is one
//! such thread at most. While it hangs, which the deadlines of its requests limit, other ends are reported without it.

use crate::sorted_map::SortedMap;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::debug;

use crate::containers::watch::{self, Exits};
use crate::decide::container::{Container, State};
use crate::decide::spec::OWNER;
use crate::podman::client::Podman;

/// An end is reported with the list that shows it, and the next start follows at once. Podman takes some milliseconds to
/// answer.
const MOMENT: Duration = Duration::from_millis(250);

/// Where the exit codes of runs come from that Podman followed by another one: a list does not show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// From the stream of events, which is open.
    FromEvents,
    /// From the events of the past, which are requested when a list shows another run.
    FromHistory,
}

/// What is known of the last runs.
pub struct Ends {
    podman: Podman,
    owner: String,
    exits: Exits,
    /// By container id.
    runs: SortedMap<String, SeenRun>,
    failures: Failures,
    /// Disconnected when the thread has ended.
    asking: Option<Receiver<()>>,
}

/// The last run that a list showed of a container.
struct SeenRun {
    pid: u32,
    /// When that list was requested, in seconds since 1970.
    seen: u64,
}

/// When a run that failed began, and whether it ended because memory ran out; by container id.
#[derive(Clone, Default)]
struct Failures(Arc<Mutex<SortedMap<String, (u64, bool)>>>);

impl Failures {
    fn lock(&self) -> MutexGuard<'_, SortedMap<String, (u64, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ends {
    /// Nothing is known yet. Exit codes are noted in `exits`.
    #[must_use]
    pub fn new(podman: Podman, owner: String, exits: Exits) -> Self {
        Self { podman, owner, exits, runs: SortedMap::new(), failures: Failures::default(), asking: None }
    }

    /// Adds to a list, which was requested at this second, what is known of runs that ended.
    pub fn complete(&mut self, containers: &mut [Container], requested: u64, codes: Codes) {
        let restarted_since = self.restarted_since(containers, requested).filter(|_| codes == Codes::FromHistory);
        let unknown = self.unknown(containers);
        if !unknown.is_empty() || restarted_since.is_some() {
            self.ask(unknown, restarted_since);
        }
        let failures = self.failures.lock();
        for container in containers.iter_mut().filter(|container| has_failed(container)) {
            container.out_of_memory = failures.get(&container.id) == Some(&(container.started, true));
        }
    }

    /// Failed runs of which it was not asked yet whether memory ran out: ids of their containers, and when they began.
    fn unknown(&self, containers: &[Container]) -> Vec<(String, u64)> {
        let mut failures = self.failures.lock();
        failures.retain(|id, _| containers.iter().any(|container| &container.id == id));
        let is_unknown = |container: &&Container| failures.get(&container.id).is_none_or(|(started, _)| *started != container.started);
        let unknown = containers.iter().filter(|container| has_failed(container)).filter(is_unknown);
        unknown.map(|container| (container.id.clone(), container.started)).collect()
    }

    /// The last list before the ends of runs that were followed by another one, in seconds since 1970.
    fn restarted_since(&mut self, containers: &[Container], requested: u64) -> Option<u64> {
        self.runs.retain(|id, _| containers.iter().any(|container| &container.id == id));
        let mut restarted_since = None;
        for container in containers.iter().filter(|container| container.state == State::Running && container.pid > 0) {
            let run = SeenRun { pid: container.pid, seen: requested };
            let before = self.runs.insert(container.id.clone(), run);
            if let Some(before) = before.filter(|before| before.pid != container.pid) {
                restarted_since = restarted_since.into_iter().chain([before.seen]).min();
            }
        }
        restarted_since
    }

    /// Asks Podman, unless an earlier question is not answered yet, and waits for a moment.
    fn ask(&mut self, unknown: Vec<(String, u64)>, restarted_since: Option<u64>) {
        let is_under_way = |asking: &Receiver<()>| asking.try_recv() != Err(TryRecvError::Disconnected);
        if self.asking.as_ref().is_some_and(is_under_way) {
            return;
        }
        let (podman, owner, exits, failures) = (self.podman.clone(), self.owner.clone(), self.exits.clone(), self.failures.clone());
        let (ended, asking) = channel();
        let run = move || {
            if let Some(since) = restarted_since {
                note_codes(&podman, &owner, since, &exits);
            }
            note_failures(&podman, unknown, &failures);
            drop(ended);
        };
        match thread::Builder::new().name("inspect".to_owned()).stack_size(256 << 10).spawn(run) {
            Ok(_) => {
                let _ = asking.recv_timeout(MOMENT);
                self.asking = Some(asking);
            }
            Err(why) => debug!("cannot start a thread to ask how containers have ended: {why}"),
        }
    }
}

fn has_failed(container: &Container) -> bool {
    container.state == State::Exited && container.exit_code != 0
}

fn note_codes(podman: &Podman, owner: &str, since: u64, exits: &Exits) {
    match podman.past_ends(OWNER, owner, since) {
        Ok(lines) => lines.split_inclusive('\n').filter_map(|line| watch::parse(line.as_bytes())).for_each(|end| exits.note(end)),
        Err(why) => debug!("cannot read which containers have ended: {why}"),
    }
}

/// After the first error, the others wait for another list: Podman may hang. The one with the error is not asked again.
fn note_failures(podman: &Podman, unknown: Vec<(String, u64)>, failures: &Failures) {
    for (id, started) in unknown {
        let answer = podman.ran_out_of_memory(&id);
        let is_known = answer.is_ok();
        failures.lock().insert(id, (started, answer.unwrap_or(false)));
        if !is_known {
            return;
        }
    }
}
