//! The `hardware` thread: looks at all sound cards when something changed, so that nothing which hangs there holds up the
//! main loop.
//!
//! At every tick the main loop compares the marks of the last scan; only when they differ, something was unclear, or it is
//! a while ago, a new scan is asked for. A scan counts as settled when another one at the next tick gives the same.
//!
//! A scan that does not answer hangs in a card, as the kernel holds the lock of a USB device that it resets. That thread is
//! left behind and another one passes over that card, as long as it is the same plugging of it. The kernel lets go in the
//! end; the answer of a thread that was left behind says that its card can be looked at again.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use log::{info, warn};

use crate::decide::scan::{Scan, Unknown, UsbAddress};
use crate::event::Event;
use crate::hardware::sysfs::{is_unchanged, scan};

/// A scan takes a millisecond.
const ANSWER: Duration = Duration::from_secs(2);
/// Changes that no mark tells are found after this.
const AGAIN: Duration = Duration::from_secs(60);
/// Threads that may hang at a time.
const STUCK: usize = 8;

/// One card at one plugging.
type Card = (u32, UsbAddress);

/// What a tick learns about the hardware.
#[derive(Debug)]
pub enum Poll {
    /// All is as this scan found it.
    Unchanged(Scan),
    /// The answer comes as [`Event::Scanner`].
    Asked,
    /// Nothing is known now, and why.
    Unknown(String),
}

/// The other end of the `hardware` thread.
#[derive(Debug)]
pub struct Scanner {
    root: PathBuf,
    events: SyncSender<Event>,
    worker: ScannerThread,
    asked: Option<Instant>,
    /// The last scan, since when nothing failed, and when it was.
    last: Option<(Scan, Instant)>,
    settled: bool,
    /// Threads that were left behind, by generation, and where they hang.
    stuck: Vec<(u64, Card)>,
}

/// The thread that is asked.
#[derive(Debug)]
struct ScannerThread {
    generation: u64,
    requests: Sender<Vec<Card>>,
    at: Arc<Mutex<Option<Card>>>,
}

impl Scanner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(root: &Path, events: SyncSender<Event>) -> io::Result<Self> {
        let worker = ScannerThread::start(0, root, events.clone())?;
        Ok(Self { root: root.to_owned(), events, worker, asked: None, last: None, settled: false, stuck: Vec::new() })
    }

    /// Looks whether anything changed, and asks for a scan if so.
    pub fn look(&mut self, now: Instant) -> Poll {
        if let Some(asked) = self.asked {
            if now.saturating_duration_since(asked) < ANSWER {
                return Poll::Asked;
            }
            if let Err(why) = self.pass_over() {
                return Poll::Unknown(why);
            }
        }
        match &self.last {
            Some((scan, at)) if self.settled && now.saturating_duration_since(*at) < AGAIN && is_unchanged(&scan.signature, &self.root) => {
                Poll::Unchanged(scan.clone())
            }
            _ => {
                // The thread ends only when it is left behind.
                let _ = self.worker.requests.send(self.stuck.iter().map(|(_, card)| card.clone()).collect());
                self.asked = Some(now);
                Poll::Asked
            }
        }
    }

    /// Takes in an answer; `None` if it is that of a thread which was left behind.
    pub fn answered(&mut self, generation: u64, answer: Result<Scan, Unknown>) -> Option<Result<Scan, Unknown>> {
        if generation != self.worker.generation {
            if let Some(index) = self.stuck.iter().position(|(stuck, _)| *stuck == generation) {
                let (_, (card, _)) = self.stuck.remove(index);
                info!("card {card} answers again");
            }
            self.settled = false;
            return None;
        }
        self.asked = None;
        let before = self.last.take().map(|(scan, _)| scan);
        if let Ok(scan) = &answer {
            self.settled = scan.unclear.is_empty() && before.as_ref() == Some(scan);
            self.last = Some((scan.clone(), Instant::now()));
        }
        Some(answer)
    }

    /// The cards that do not answer.
    pub fn silent(&self) -> impl Iterator<Item = u32> {
        self.stuck.iter().map(|(_, (card, _))| *card)
    }

    /// Goes on without the card in which the thread hangs.
    fn pass_over(&mut self) -> Result<(), String> {
        let at = self.worker.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Between two cards there is nothing that could hang for long.
        let card = at.ok_or("no answer")?;
        if self.stuck.len() >= STUCK {
            return Err(format!("no answer from card {}, nor from {STUCK} before it", card.0));
        }
        let worker =
            ScannerThread::start(self.worker.generation + 1, &self.root, self.events.clone()).map_err(|why| format!("no thread: {why}"))?;
        warn!("card {} does not answer; the others are looked at without it", card.0);
        self.stuck.push((self.worker.generation, card));
        self.worker = worker;
        Ok(())
    }
}

impl ScannerThread {
    fn start(generation: u64, root: &Path, events: SyncSender<Event>) -> io::Result<Self> {
        let (requests, inbox) = channel();
        let (root, at) = (root.to_owned(), Arc::default());
        let place = Arc::clone(&at);
        let run = move || serve(generation, &root, &inbox, &place, &events);
        thread::Builder::new().name("hardware".to_owned()).stack_size(256 << 10).spawn(run)?;
        Ok(Self { generation, requests, at })
    }
}

fn serve(generation: u64, root: &Path, inbox: &Receiver<Vec<Card>>, place: &Mutex<Option<Card>>, events: &SyncSender<Event>) {
    let at = |card| *place.lock().unwrap_or_else(PoisonError::into_inner) = card;
    while let Ok(stuck) = inbox.recv() {
        let scan = scan(root, &stuck, |card, plugging| at(Some((card, plugging.clone()))));
        at(None);
        if events.send(Event::Hardware { generation, scan }).is_err() {
            return;
        }
    }
}
