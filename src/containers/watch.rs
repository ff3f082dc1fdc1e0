//! The `events` thread: reports that something happened to our containers.
//!
//! Where the processes of all running containers can be seen, it waits for the end of one of them in one `poll`, and
//! asks Podman nothing. Otherwise it follows Podman's event stream.
//!
//! Either only triggers a request for a list; every decision is made from a list. While the thread watches, the main
//! loop requests lists less often than at each tick. The beginning and the end of a stream trigger a list, too, as
//! changes may have been missed.
//!
//! With the events file (no systemd), Podman checks for new events four times a second. Podman 4.3 reports errors
//! inside an answer with status 200; any line that is not an event ends the stream. Without a stream, lists alone are
//! sufficient.

use crate::sorted_map::SortedMap;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use serde::Deserialize;

use crate::decide::container::Container;
use crate::decide::spec::OWNER;
use crate::event::Event;
use crate::json;
use crate::podman::client::Podman;
use crate::podman::pidfd::Process;
use crate::podman::stream::{Closer, StreamRequest};
use crate::text::shown;

/// Delay between the end of a stream and the next one: initial and maximum.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A stream that lasted so long resets the delay.
const STABLE: Duration = Duration::from_secs(10);
/// Maximum length of an event. Podman repeats all labels in it.
const LINE_MAX: u64 = 64 << 10;
/// Pause after a failed poll, such as when the kernel has no memory for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Handle of the `events` thread.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<WatchShared>,
}

/// Exit codes of last runs, by container id.
#[derive(Clone, Debug, Default)]
pub struct Exits(Arc<Mutex<SortedMap<String, i64>>>);

#[derive(Debug)]
struct WatchShared {
    is_open: AtomicBool,
    exits: Exits,
    /// An [`Event::Changed`] was sent, and no list was requested since; further ones are not needed.
    is_notified: AtomicBool,
    task: Mutex<Task>,
    /// Readable when the task changed.
    changed: OwnedFd,
}

/// What the thread waits for.
#[derive(Debug, Default)]
struct Task {
    /// The ends of these processes.
    processes: Vec<Arc<Process>>,
    /// The stream is to be opened, if its delay is over.
    open: bool,
    /// Closes the stream that is open.
    closer: Option<Closer>,
}

/// What the thread has to do.
enum Work {
    /// A process has ended.
    Report,
    OpenStream,
}

impl Watch {
    /// Starts the thread, which waits for [`Watch::processes`] or [`Watch::open`].
    ///
    /// # Errors
    /// If the thread cannot be started, or there is no free descriptor.
    pub fn start(podman: Podman, owner: &str, events: SyncSender<Event>, exits: Exits) -> io::Result<Self> {
        let shared = Arc::new(WatchShared {
            is_open: AtomicBool::default(),
            exits,
            is_notified: AtomicBool::default(),
            task: Mutex::default(),
            changed: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let follower = WatchThread { podman, owner: owner.to_owned(), events, shared: Arc::clone(&shared) };
        thread::Builder::new().name("events".to_owned()).stack_size(256 << 10).spawn(move || follower.run())?;
        Ok(Self { shared })
    }

    /// Whether the stream is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared.is_open.load(Ordering::Acquire)
    }

    /// Podman is available, and not all processes can be seen: opens the stream if it is closed and the delay is over.
    pub fn open(&self) {
        let mut task = self.shared.task();
        if !self.is_open() && task.closer.is_none() {
            task.open = true;
            self.shared.wake();
        }
    }

    /// These are the processes of all containers that run: their ends are reported, and no stream is needed.
    pub fn processes<'a>(&self, processes: impl Iterator<Item = &'a Arc<Process>> + Clone) {
        let mut task = self.shared.task();
        task.open = false;
        if let Some(closer) = task.closer.take() {
            closer.close();
        }
        let same = |(old, new): (&Arc<Process>, &Arc<Process>)| Arc::ptr_eq(old, new);
        if task.processes.len() != processes.clone().count() || !task.processes.iter().zip(processes.clone()).all(same) {
            task.processes = processes.cloned().collect();
            self.shared.wake();
        }
    }

    /// The exit code of a container's last run, if it was reported. Each code is returned once.
    #[must_use]
    pub fn take_exit_code(&self, id: &str) -> Option<i64> {
        self.shared.exits.lock().remove(id)
    }

    /// Drops the exit codes of all containers but these.
    pub fn retain_exit_codes(&self, containers: &[Container]) {
        self.shared.exits.lock().retain(|id, _| containers.iter().any(|container| &container.id == id));
    }

    /// A list is requested now: the next event is reported again.
    pub fn list_requested(&self) {
        self.shared.is_notified.store(false, Ordering::Release);
    }
}

impl Exits {
    fn lock(&self) -> MutexGuard<'_, SortedMap<String, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the exit code in an event, if there is one.
    pub fn note(&self, event: EventLine) {
        if let Some((id, code)) = event.exit() {
            self.lock().insert(id, code);
        }
    }
}

impl WatchShared {
    fn task(&self) -> MutexGuard<'_, Task> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when it is readable already.
        let _ = rustix::io::write(&self.changed, &1_u64.to_ne_bytes());
    }

    /// Waits for something to do.
    fn next(&self) -> Work {
        loop {
            let mut task = self.task();
            if std::mem::take(&mut task.open) {
                return Work::OpenStream;
            }
            let processes = task.processes.clone();
            drop(task);
            let mut fds = vec![PollFd::new(&self.changed, PollFlags::IN)];
            fds.extend(processes.iter().map(|process| PollFd::from_borrowed_fd(process.descriptor(), PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(why) => {
                    warn!("cannot wait for the ends of processes: {why}");
                    thread::sleep(PAUSE);
                }
            }
            let _ = rustix::io::read(&self.changed, &mut [0; 8]);
            let ended: Vec<&Arc<Process>> =
                processes.iter().zip(&fds[1..]).filter(|(_, fd)| !fd.revents().is_empty()).map(|(process, _)| process).collect();
            if !ended.is_empty() {
                self.task().processes.retain(|process| !ended.iter().any(|ended| Arc::ptr_eq(process, ended)));
                return Work::Report;
            }
        }
    }
}

struct WatchThread {
    podman: Podman,
    owner: String,
    events: SyncSender<Event>,
    shared: Arc<WatchShared>,
}

impl WatchThread {
    fn run(self) {
        let (mut pause, mut next) = (RETRY, Instant::now());
        loop {
            match self.shared.next() {
                Work::Report => self.notify(),
                Work::OpenStream if Instant::now() < next => {}
                Work::OpenStream => {
                    let begun = Instant::now();
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
        }
    }

    /// Reports events until the stream ends; returns why it ended.
    fn follow(&self) -> String {
        let request = self.podman.events(OWNER, &self.owner);
        self.shared.task().closer = Some(request.closer());
        let why = self.read(request);
        self.shared.task().closer = None;
        why
    }

    fn read(&self, request: StreamRequest) -> String {
        let mut stream = match request.open() {
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
                        self.shared.exits.note(event);
                        self.notify();
                    }
                    None => return format!("not an event: {}", shown(&String::from_utf8_lossy(&line))),
                },
                Err(why) => return why.to_string(),
            }
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
