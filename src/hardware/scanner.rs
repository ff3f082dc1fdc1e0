//! Looks at all sound cards when something changed.
//!
//! At every tick the main loop compares the signature of the last scan; only when it differs, something was unclear, or it
//! is a while ago, the `probe` thread is asked for a new scan. A scan counts as settled when another one at the next tick
//! gives the same.
//!
//! A scan that does not answer hangs in a card, as the kernel holds the lock of a USB device that it resets. The next one
//! passes over that card, as long as it is the same plugging of it. The kernel lets go in the end; the answer of the scan
//! that was given up says that its card can be looked at again.

use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::decide::scan::{Scan, Unknown, UsbAddress};
use crate::event::Event;
use crate::hardware::sysfs::{is_unchanged, scan};
use crate::probe::Prober;

/// A scan takes a millisecond.
const ANSWER: Duration = Duration::from_secs(2);
/// Changes that no mark tells are found after this.
const AGAIN: Duration = Duration::from_secs(60);
/// Scans that may hang at a time.
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

/// Asks for scans, and keeps the last one.
#[derive(Debug)]
pub struct Scanner {
    root: PathBuf,
    events: SyncSender<Event>,
    prober: Prober,
    /// Tells the answer that is waited for from those of scans that were given up.
    generation: u64,
    /// The card that the present scan is at.
    at: Arc<Mutex<Option<Card>>>,
    asked: Option<Instant>,
    /// The last scan, since when nothing failed, and when it was.
    last: Option<(Scan, Instant)>,
    settled: bool,
    /// Scans that were given up, by generation, and where they hang.
    stuck: Vec<(u64, Card)>,
}

impl Scanner {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(root: &Path, prober: &Prober, events: SyncSender<Event>) -> Self {
        Self {
            root: root.to_owned(),
            events,
            prober: prober.clone(),
            generation: 0,
            at: Arc::default(),
            asked: None,
            last: None,
            settled: false,
            stuck: Vec::new(),
        }
    }

    /// Looks whether anything changed, and asks for a scan if so.
    pub fn poll(&mut self, now: Instant) -> Poll {
        self.prober.check_deadline(now);
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
                self.ask();
                self.asked = Some(now);
                Poll::Asked
            }
        }
    }

    /// Takes in an answer; `None` if it is that of a scan which was given up.
    pub fn answered(&mut self, generation: u64, answer: Result<Scan, Unknown>) -> Option<Result<Scan, Unknown>> {
        if generation != self.generation {
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

    fn ask(&self) {
        let (root, events, generation, at) = (self.root.clone(), self.events.clone(), self.generation, Arc::clone(&self.at));
        let stuck: Vec<Card> = self.stuck.iter().map(|(_, card)| card.clone()).collect();
        self.prober.submit(ANSWER, move || {
            let is_at = |card| *at.lock().unwrap_or_else(PoisonError::into_inner) = card;
            let scan = scan(&root, &stuck, |card, plugging| is_at(Some((card, plugging.clone()))));
            is_at(None);
            // Nobody listens when the program ends.
            let _ = events.send(Event::Hardware { generation, scan });
        });
    }

    /// Goes on without the card in which the present scan hangs.
    fn pass_over(&mut self) -> Result<(), String> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Between two cards there is nothing that could hang for long.
        let card = at.ok_or("no answer")?;
        if self.stuck.len() >= STUCK {
            return Err(format!("no answer from card {}, nor from {STUCK} before it", card.0));
        }
        warn!("card {} does not answer; the others are looked at without it", card.0);
        self.stuck.push((self.generation, card));
        self.generation += 1;
        self.at = Arc::default();
        Ok(())
    }
}
