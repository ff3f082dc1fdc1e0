//! The `events` thread: Podman's word that something happened to a container of ours.
//!
//! A hint and never a truth: it says that a list is worth asking for, and each decision is made from a list. While the
//! stream is up, the main loop asks for lists now and then instead of at each tick. That the stream begins or breaks is a
//! hint, too, as things may have happened unseen.
//!
//! With the events file (no systemd), Podman looks for news four times a second. Podman 4.3 tells of errors inside an
//! answer of 200; whatever is no event ends the stream. Without one, everything goes on by lists.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use serde::Deserialize;

use crate::decide::container::Container;
use crate::decide::spec::OWNER;
use crate::event::Event;
use crate::podman::client::Podman;
use crate::text::shown;

/// Between the end of a stream and the next one: at first, and at most.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A stream that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(10);
/// Longest event that is read. Podman repeats all labels in it.
const LINE: u64 = 64 << 10;

/// The other end of the `events` thread.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<WatchShared>,
    wishes: SyncSender<()>,
}

#[derive(Debug, Default)]
struct WatchShared {
    up: AtomicBool,
    /// With which code each container's last run ended, by id.
    exits: Mutex<BTreeMap<String, i64>>,
    /// An [`Event::Changed`] is on its way; one is as good as many.
    told: AtomicBool,
}

impl Watch {
    /// Starts the thread, which waits for [`Watch::open`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(podman: Podman, owner: &str, events: SyncSender<Event>) -> io::Result<Self> {
        let shared = Arc::<WatchShared>::default();
        // One wish is as good as many.
        let (wishes, inbox) = sync_channel(1);
        let follower = WatchThread { podman, owner: owner.to_owned(), events, shared: Arc::clone(&shared) };
        thread::Builder::new().name("events".to_owned()).stack_size(256 << 10).spawn(move || follower.run(&inbox))?;
        Ok(Self { shared, wishes })
    }

    /// Whether hints come.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Acquire)
    }

    /// Podman is there: opens the stream if there is none and it is time to.
    pub fn open(&self) {
        if !self.is_up() {
            let _ = self.wishes.try_send(());
        }
    }

    /// With which code a container's last run ended, if that was told since it was last asked for.
    #[must_use]
    pub fn take_exit_code(&self, id: &str) -> Option<i64> {
        self.shared.exits().remove(id)
    }

    /// Forgets the codes of other containers than these.
    pub fn keep(&self, containers: &[Container]) {
        self.shared.exits().retain(|id, _| containers.iter().any(|container| &container.id == id));
    }

    /// A list is asked for now; what happens from here on is told again.
    pub fn taken(&self) {
        self.shared.told.store(false, Ordering::Release);
    }
}

impl WatchShared {
    fn exits(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct WatchThread {
    podman: Podman,
    owner: String,
    events: SyncSender<Event>,
    shared: Arc<WatchShared>,
}

impl WatchThread {
    fn run(self, wishes: &Receiver<()>) {
        let (mut pause, mut next) = (RETRY, Instant::now());
        while wishes.recv().is_ok() {
            let begun = Instant::now();
            if begun < next {
                continue;
            }
            let why = self.follow();
            if begun.elapsed() >= GOOD {
                pause = RETRY;
            }
            debug!("no events from Podman for {} s at least: {why}", pause.as_secs());
            next = Instant::now() + pause;
            pause = (pause * 2).min(RETRY_MAX);
            if self.shared.up.swap(false, Ordering::AcqRel) {
                self.tell();
            }
        }
    }

    /// Tells of events until there are no more, and says why.
    fn follow(&self) -> String {
        let mut stream = match self.podman.events(OWNER, &self.owner).open() {
            Ok(stream) => BufReader::with_capacity(4 << 10, stream),
            Err(why) => return why.to_string(),
        };
        self.shared.up.store(true, Ordering::Release);
        self.tell();
        let mut line = Vec::new();
        loop {
            line.clear();
            match stream.by_ref().take(LINE).read_until(b'\n', &mut line) {
                Ok(0) => return "the stream ended".to_owned(),
                Ok(_) => match event(&line) {
                    Some(event) => {
                        self.note_exit(event);
                        self.tell();
                    }
                    None => return format!("not an event: {}", shown(&String::from_utf8_lossy(&line))),
                },
                Err(why) => return why.to_string(),
            }
        }
    }

    fn note_exit(&self, said: EventLine) {
        if let Some(code) = said.actor.attributes.code.and_then(|code| code.parse().ok()).filter(|_| said.action == "died") {
            self.shared.exits().insert(said.actor.id, code);
        }
    }

    fn tell(&self) {
        if !self.shared.told.swap(true, Ordering::AcqRel) {
            // Only a program that is ending has no inbox.
            let _ = self.events.send(Event::Changed);
        }
    }
}

/// An event. What it means is left to the list, but for the exit code of a run that Podman follows with another one.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EventLine {
    action: String,
    #[serde(default)]
    actor: Actor,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Attributes,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attributes {
    #[serde(rename = "containerExitCode")]
    code: Option<String>,
}

/// The event in a line, if that is whole and says what happened.
fn event(line: &[u8]) -> Option<EventLine> {
    let said: EventLine = serde_json::from_slice(line).ok()?;
    (line.ends_with(b"\n") && !said.action.is_empty()).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::event;

    #[test]
    fn only_whole_events_are_events() {
        assert!(event(b"{\"status\":\"died\",\"Action\":\"died\",\"Actor\":{\"Attributes\":{\"name\":\"x\"}}}\n").is_some());
        let said = event(b"{\"Action\":\"died\",\"Actor\":{\"ID\":\"c0\",\"Attributes\":{\"containerExitCode\":\"3\"}}}\n").unwrap();
        assert_eq!((said.actor.id, said.actor.attributes.code.as_deref()), ("c0".to_owned(), Some("3")));
        for other in ["{\"Action\":\"died\"}", "{\"cause\":\"x\",\"message\":\"y\",\"response\":500}\n", "\n", "{\"Action\":7}\n", "[[[[\n"]
        {
            assert!(event(other.as_bytes()).is_none(), "{other}");
        }
    }
}
