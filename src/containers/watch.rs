//! The `events` thread: follows Podman's events about our containers.
//!
//! An event only triggers a request for a list; every decision is made from a list. While the stream is open, the main
//! loop requests lists less often than at each tick. The beginning and the end of a stream trigger a list, too, as
//! changes may have been missed.
//!
//! With the events file (no systemd), Podman checks for new events four times a second. Podman 4.3 reports errors
//! inside an answer with status 200; any line that is not an event ends the stream. Without a stream, lists alone are
//! sufficient.

use crate::sorted_map::SortedMap;
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
use crate::json;
use crate::podman::client::Podman;
use crate::text::shown;

/// Delay between the end of a stream and the next one: initial and maximum.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A stream that lasted so long resets the delay.
const STABLE: Duration = Duration::from_secs(10);
/// Maximum length of an event. Podman repeats all labels in it.
const LINE_MAX: u64 = 64 << 10;

/// Handle of the `events` thread.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<WatchShared>,
    requests: SyncSender<()>,
}

#[derive(Debug, Default)]
struct WatchShared {
    is_open: AtomicBool,
    /// Exit codes of last runs, by container id.
    exits: Mutex<SortedMap<String, i64>>,
    /// An [`Event::Changed`] was sent, and no list was requested since; further ones are not needed.
    is_notified: AtomicBool,
}

impl Watch {
    /// Starts the thread, which waits for [`Watch::open`].
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(podman: Podman, owner: &str, events: SyncSender<Event>) -> io::Result<Self> {
        let shared = Arc::<WatchShared>::default();
        // One pending request is sufficient.
        let (requests, inbox) = sync_channel(1);
        let follower = WatchThread { podman, owner: owner.to_owned(), events, shared: Arc::clone(&shared) };
        thread::Builder::new().name("events".to_owned()).stack_size(256 << 10).spawn(move || follower.run(&inbox))?;
        Ok(Self { shared, requests })
    }

    /// Whether the stream is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared.is_open.load(Ordering::Acquire)
    }

    /// Podman is available: opens the stream if it is closed and the delay is over.
    pub fn open(&self) {
        if !self.is_open() {
            let _ = self.requests.try_send(());
        }
    }

    /// The exit code of a container's last run, if an event reported it. Each code is returned once.
    #[must_use]
    pub fn take_exit_code(&self, id: &str) -> Option<i64> {
        self.shared.exits().remove(id)
    }

    /// Drops the exit codes of all containers but these.
    pub fn retain_exit_codes(&self, containers: &[Container]) {
        self.shared.exits().retain(|id, _| containers.iter().any(|container| &container.id == id));
    }

    /// A list is requested now: the next event is reported again.
    pub fn list_requested(&self) {
        self.shared.is_notified.store(false, Ordering::Release);
    }
}

impl WatchShared {
    fn exits(&self) -> MutexGuard<'_, SortedMap<String, i64>> {
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
    fn run(self, requests: &Receiver<()>) {
        let (mut pause, mut next) = (RETRY, Instant::now());
        while requests.recv().is_ok() {
            let begun = Instant::now();
            if begun < next {
                continue;
            }
            let why = self.follow();
            if begun.elapsed() >= STABLE {
                pause = RETRY;
            }
            debug!("no events from Podman for {} s at least: {why}", pause.as_secs());
            next = Instant::now() + pause;
            pause = (pause * 2).min(RETRY_MAX);
            if self.shared.is_open.swap(false, Ordering::AcqRel) {
                self.notify();
            }
        }
    }

    /// Reports events until the stream ends; returns why it ended.
    fn follow(&self) -> String {
        let mut stream = match self.podman.events(OWNER, &self.owner).open() {
            Ok(stream) => BufReader::with_capacity(4 << 10, stream),
            Err(why) => return why.to_string(),
        };
        self.shared.is_open.store(true, Ordering::Release);
        self.notify();
        let mut line = Vec::new();
        loop {
            line.clear();
            match stream.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) => return "the stream ended".to_owned(),
                Ok(_) => match parse(&line) {
                    Some(event) => {
                        self.note_exit(event);
                        self.notify();
                    }
                    None => return format!("not an event: {}", shown(&String::from_utf8_lossy(&line))),
                },
                Err(why) => return why.to_string(),
            }
        }
    }

    fn note_exit(&self, event: EventLine) {
        if let Some((id, code)) = event.exit() {
            self.shared.exits().insert(id, code);
        }
    }

    fn notify(&self) {
        if !self.shared.is_notified.swap(true, Ordering::AcqRel) {
            // Fails only while the program ends.
            let _ = self.events.send(Event::Changed);
        }
    }
}

/// An event. Only its exit code is used: a list does not show it if Podman has restarted the container. All else is
/// read from the list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EventLine {
    action: String,
    #[serde(default)]
    actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Attributes,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attributes {
    #[serde(rename = "containerExitCode")]
    code: Option<String>,
}

impl EventLine {
    /// The container whose run has ended, and its exit code.
    #[must_use]
    pub fn exit(self) -> Option<(String, i64)> {
        let code = self.actor.attributes.code.filter(|_| self.action == "died")?.parse().ok()?;
        Some((self.actor.id, code))
    }
}

/// Parses a line; `None` if it is incomplete or not an event.
#[must_use]
pub fn parse(line: &[u8]) -> Option<EventLine> {
    let event: EventLine = json::from_str(std::str::from_utf8(line).ok()?).ok()?;
    // An array with the same values would be parsed, too.
    (line.starts_with(b"{") && line.ends_with(b"\n") && !event.action.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_complete_events_are_parsed() {
        assert!(parse(b"{\"status\":\"died\",\"Action\":\"died\",\"Actor\":{\"Attributes\":{\"name\":\"x\"}}}\n").is_some());
        let event = parse(b"{\"Action\":\"died\",\"Actor\":{\"ID\":\"c0\",\"Attributes\":{\"containerExitCode\":\"3\"}}}\n").unwrap();
        assert_eq!((event.actor.id, event.actor.attributes.code.as_deref()), ("c0".to_owned(), Some("3")));
        for other in [
            "{\"Action\":\"died\"}",
            "{\"cause\":\"x\",\"message\":\"y\",\"response\":500}\n",
            "\n",
            "{\"Action\":7}\n",
            "[\"died\"]\n",
            "[[[[\n",
        ] {
            assert!(parse(other.as_bytes()).is_none(), "{other}");
        }
    }
}
