//! Scans all sound cards when something has changed.
//!
//! At every tick the main loop compares the signature of the last scan. Only if it differs, if a card was unclear, or
//! if the last scan is too old, a new scan is requested from the `probe` thread. A scan counts as settled when the next
//! tick's scan has the same result.
//!
//! A scan that does not answer hangs in a card, as the kernel holds the lock of a USB device while it resets it. The
//! next scan skips that card until it is reconnected. When the kernel releases the lock, the abandoned scan answers,
//! and its card is scanned again.

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
/// Changes that the signature does not show are detected after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// Number of scans that may hang at the same time.
const STUCK: usize = 8;

/// One card, from its connection to its disconnection.
type Card = (u32, UsbAddress);

/// What is known about the hardware at a tick.
#[derive(Debug)]
pub enum Poll {
    /// Nothing has changed since this scan.
    Unchanged(Scan),
    /// A scan is under way; its result arrives as [`Event::Hardware`].
    Pending,
    /// The hardware is unknown, and why.
    Unknown(String),
}

/// Requests scans, and keeps the last one.
#[derive(Debug)]
pub struct Scanner {
    root: PathBuf,
    events: SyncSender<Event>,
    prober: Prober,
    /// Distinguishes the answer of the current scan from those of abandoned ones.
    generation: u64,
    /// The card that the current scan is reading.
    current: Arc<Mutex<Option<Card>>>,
    asked: Option<Instant>,
    /// The last scan and its time; `None` after a failure.
    last: Option<(Scan, Instant)>,
    settled: bool,
    /// Abandoned scans, by generation, and the cards in which they hang.
    stuck: Vec<(u64, Card)>,
}

impl Scanner {
    /// Without a scan.
    #[must_use]
    pub fn new(root: &Path, prober: &Prober, events: SyncSender<Event>) -> Self {
        Self {
            root: root.to_owned(),
            events,
            prober: prober.clone(),
            generation: 0,
            current: Arc::default(),
            asked: None,
            last: None,
            settled: false,
            stuck: Vec::new(),
        }
    }

    /// Checks whether anything has changed, and requests a scan if so.
    pub fn poll(&mut self, now: Instant) -> Poll {
        self.prober.check_deadline(now);
        if let Some(asked) = self.asked {
            if now.saturating_duration_since(asked) < ANSWER {
                return Poll::Pending;
            }
            if let Err(why) = self.skip_card() {
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
                Poll::Pending
            }
        }
    }

    /// Handles an answer; `None` if it is that of an abandoned scan.
    pub fn answered(&mut self, generation: u64, answer: Result<Scan, Unknown>) -> Option<Result<Scan, Unknown>> {
        if generation != self.generation {
            if let Some(index) = self.stuck.iter().position(|(stuck, _)| *stuck == generation) {
                let (_, (card, _)) = self.stuck.remove(index);
                info!("card {card} responds again");
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

    /// The cards that do not respond.
    pub fn unresponsive(&self) -> impl Iterator<Item = u32> {
        self.stuck.iter().map(|(_, (card, _))| *card)
    }

    fn ask(&self) {
        let (root, events, generation, current) = (self.root.clone(), self.events.clone(), self.generation, Arc::clone(&self.current));
        let stuck: Vec<Card> = self.stuck.iter().map(|(_, card)| card.clone()).collect();
        self.prober.submit(ANSWER, move || {
            let set_current = |card| *current.lock().unwrap_or_else(PoisonError::into_inner) = card;
            let scan = scan(&root, &stuck, |card, address| set_current(Some((card, address.clone()))));
            set_current(None);
            // The receiver is gone when the program ends.
            let _ = events.send(Event::Hardware { generation, scan });
        });
    }

    /// Abandons the current scan, and skips the card in which it hangs.
    fn skip_card(&mut self) -> Result<(), String> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Between two cards, nothing can hang for long.
        let card = current.ok_or("no response")?;
        if self.stuck.len() >= STUCK {
            return Err(format!("card {} does not respond, nor do {STUCK} others", card.0));
        }
        warn!("card {} does not respond; scanning the other cards without it", card.0);
        self.stuck.push((self.generation, card));
        self.generation += 1;
        self.current = Arc::default();
        Ok(())
    }
}
