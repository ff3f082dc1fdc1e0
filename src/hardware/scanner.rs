//! Scans all sound cards when something has changed.
//!
//! At every tick the main loop compares the signature of the last scan. Only if it differs, if a card was unclear, or
//! if the last scan is too old, a new scan is requested from the `probe` thread. A scan counts as settled when the next
//! tick's scan has the same result.
//!
//! A scan that does not answer usually hangs in a card, as the kernel holds the lock of a USB device while it resets it.
//! The next scan skips that card until it is reconnected. When the kernel releases the lock, the late scan answers, and
//! its card is scanned again. Invariant: no scan is waited for without a limit, whatever happens to the card in which it
//! hangs.

use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::decide::scan::{Scan, Unknown, UsbAddress};
use crate::event::Event;
use crate::hardware::sysfs::{Watched, scan};
use crate::probe::{self, Marker, Prober, Question, State};

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
    /// Nothing has changed since the last scan.
    Unchanged,
    /// A scan is under way; its result arrives as [`Event::Hardware`].
    Pending,
    /// The hardware is unknown, and why.
    Unknown(String),
}

/// A scan that succeeded.
#[derive(Debug)]
struct Last {
    scan: Scan,
    at: Instant,
    watched: Watched,
}

/// Requests scans, and keeps the last one.
#[derive(Debug)]
pub struct Scanner {
    root: PathBuf,
    events: SyncSender<Event>,
    question: Question<Card>,
    /// The last scan; `None` after a failure.
    last: Option<Last>,
    settled: bool,
    /// How many scans hang, once none can follow.
    exhausted: usize,
}

impl Scanner {
    /// Without a scan.
    #[must_use]
    pub fn new(root: &Path, prober: &Prober, events: SyncSender<Event>) -> Self {
        Self {
            root: root.to_owned(),
            events,
            question: Question::new(prober, ANSWER, ANSWER, STUCK),
            last: None,
            settled: false,
            exhausted: 0,
        }
    }

    /// Checks whether anything has changed, and requests a scan if so.
    pub fn poll(&mut self, now: Instant) -> Poll {
        self.exhausted = 0;
        match self.question.check(now) {
            State::Idle => {}
            State::Pending => return Poll::Pending,
            State::Late(Some((card, _))) => warn!("card {card} does not respond; scanning the other cards without it"),
            // It hangs in the lists of cards, or was not begun.
            State::Late(None) => return Poll::Unknown("no response".to_owned()),
            State::Exhausted(card) => {
                self.exhausted = STUCK + 1;
                let place = card.map_or("the list of cards".to_owned(), |(card, _)| format!("card {card}"));
                return Poll::Unknown(format!("{place} does not respond, nor do {STUCK} others"));
            }
        }
        match &self.last {
            Some(last) if self.settled && now.saturating_duration_since(last.at) < AGAIN && last.watched.is_unchanged() => Poll::Unchanged,
            _ => {
                self.ask(now);
                Poll::Pending
            }
        }
    }

    /// The last scan; `None` after a failure.
    #[must_use]
    pub fn scan(&self) -> Option<&Scan> {
        self.last.as_ref().map(|last| &last.scan)
    }

    /// Handles an answer; `None` if it is late.
    pub fn answered(&mut self, generation: u64, answer: Result<Scan, Unknown>) -> Option<Result<Scan, Unknown>> {
        if let probe::Answer::Late(card) = self.question.answered(generation) {
            if let Some(card) = card.filter(|card| self.is_connected(card)) {
                info!("card {} responds again", card.0);
            }
            self.settled = false;
            return None;
        }
        let before = self.last.take().map(|last| last.scan);
        if let Ok(scan) = &answer {
            self.settled = scan.unclear.is_empty() && before.as_ref() == Some(scan);
            self.last = Some(Last { scan: scan.clone(), at: Instant::now(), watched: Watched::new(&scan.signature, &self.root) });
        }
        Some(answer)
    }

    /// How many scans hang, once so many do that none can follow; otherwise 0.
    #[must_use]
    pub fn hung(&self) -> usize {
        self.exhausted
    }

    /// The connected cards that do not respond.
    pub fn unresponsive(&self) -> impl Iterator<Item = u32> {
        self.question.late_places().filter(|card| self.is_connected(card)).map(|(card, _)| *card)
    }

    /// Whether the last scan found this connection of the card, or is unknown.
    fn is_connected(&self, (card, address): &Card) -> bool {
        self.last.as_ref().is_none_or(|last| last.scan.signature.addresses.get(card) == Some(address))
    }

    fn ask(&mut self, now: Instant) {
        let (root, events) = (self.root.clone(), self.events.clone());
        let stuck: Vec<Card> = self.question.late_places().cloned().collect();
        let read = move |marker: &Marker<Card>| scan(&root, &stuck, |card, address| marker.reach((card, address.clone())));
        self.question.ask(now, read, move |generation, scan| {
            // The receiver is gone when the program ends.
            let _ = events.send(Event::Hardware { generation, scan });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use std::sync::mpsc::sync_channel;
    use std::thread;

    fn card(root: &Path, n: u32, port: &str) {
        let device = root.join(format!("sys/devices/usb1/{port}"));
        let sound = device.join(format!("{port}:1.0/sound/card{n}"));
        for folder in [sound.join(format!("pcmC{n}D0c")), root.join("sys/class/sound"), root.join("sys/bus/usb")] {
            fs::create_dir_all(folder).unwrap();
        }
        symlink(root.join("sys/bus/usb"), device.join("subsystem")).unwrap();
        symlink(&sound, root.join(format!("sys/class/sound/card{n}"))).unwrap();
        fs::write(device.join("uevent"), format!("DEVTYPE=usb_device\nBUSNUM=001\nDEVNUM=00{}\n", n + 2)).unwrap();
        for (name, text) in [("idVendor", "0869\n"), ("idProduct", "0389\n"), ("serial", "S\n")] {
            fs::write(device.join(name), text).unwrap();
        }
        let asound = root.join(format!("proc/asound/card{n}"));
        fs::create_dir_all(&asound).unwrap();
        for (name, text) in [("usbid", "0869:0389\n"), ("id", &format!("r{n}\n")), ("usbbus", &format!("001/00{}\n", n + 2))] {
            fs::write(asound.join(name), text).unwrap();
        }
    }

    #[test]
    fn a_card_that_hangs_and_is_disconnected_meanwhile_hides_no_other() {
        let root = std::env::temp_dir().join(format!("silvasonic-scanner-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        card(&root, 0, "1-1");
        let one = " 0 [r0             ]: USB-Audio - Mic\n                      Mic\n";
        let two = format!("{one} 1 [r1             ]: USB-Audio - Mic\n                      Mic\n");
        fs::write(root.join("proc/asound/cards"), one).unwrap();
        let (events, inbox) = sync_channel(64);
        let mut scanner = Scanner::new(&root, &Prober::start().unwrap(), events);
        let answer = |scanner: &mut Scanner| {
            let Ok(Event::Hardware { generation, scan }) = inbox.recv_timeout(Duration::from_secs(10)) else { panic!("no answer") };
            scanner.answered(generation, scan)
        };
        for _ in 0..2 {
            assert!(matches!(scanner.poll(Instant::now()), Poll::Pending));
            assert_eq!(answer(&mut scanner).unwrap().unwrap().microphones.len(), 1);
        }
        assert!(matches!(scanner.poll(Instant::now()), Poll::Unchanged));

        // Another card hangs, and is disconnected before it is skipped.
        card(&root, 1, "1-2");
        let serial = root.join("sys/devices/usb1/1-2/serial");
        fs::remove_file(&serial).unwrap();
        assert!(Command::new("mkfifo").arg(&serial).status().unwrap().success());
        fs::write(root.join("proc/asound/cards"), &two).unwrap();
        let start = Instant::now();
        assert!(matches!(scanner.poll(start), Poll::Pending));
        while scanner.question.check(start) == State::Pending && !scanner.question.is_at(&(1, b"001/003\n".to_vec())) {
            thread::sleep(Duration::from_millis(5));
        }
        fs::write(root.join("proc/asound/cards"), one).unwrap();
        for seconds in 2..20 {
            let poll = scanner.poll(start + Duration::from_secs(seconds));
            assert!(matches!(poll, Poll::Unchanged), "{poll:?}");
        }
        assert_eq!(scanner.unresponsive().count(), 0);

        // The kernel releases the lock.
        drop(OpenOptions::new().write(true).open(&serial));
        assert!(answer(&mut scanner).is_none());
        assert!(matches!(scanner.poll(start + Duration::from_secs(20)), Poll::Pending));
        assert!(answer(&mut scanner).is_some());
        fs::remove_dir_all(&root).unwrap();
    }
}
