//! The `nudge` thread: waits on `silvasonic:nudge` and wakes the main loop at `reconcile`.
//!
//! A nudge carries no data: it starts a cycle at once. A lost one therefore costs one tick at most, and many at once
//! have the effect of one. The thread sleeps in a read without a time limit; TCP keep-alive probes detect a peer that
//! vanished.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use redis::{ConnectionInfo, RedisError};

use crate::event::Event;
use crate::redis::connection::{Subscription, address, describe};
use crate::redis::publisher::redacted;

pub(crate) const CHANNEL: &str = "silvasonic:nudge";
pub(crate) const PAYLOAD: &[u8] = b"reconcile";
/// Memory for a message; a longer one is no nudge.
const MESSAGE_LIMIT: usize = 16 << 10;
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The end of a subscription that lasted this long is reported only if this many attempts to subscribe again fail.
const LASTING: Duration = Duration::from_secs(5);
const SILENT: u32 = 2;

/// Time between two cycles for nudges that arrive without a pause: at first, and at most.
const GAP: Duration = Duration::from_millis(50);
const GAP_MAX: Duration = Duration::from_millis(500);
/// To subscribe takes less, with all deadlines together: a thread that takes longer hangs.
const HUNG: Duration = Duration::from_secs(300);
/// After this time without a nudge, the next one is served at once.
const QUIET: Duration = Duration::from_secs(1);

/// The nudges that the main loop must serve. The first one is served at once. When more follow without a pause, the
/// time between two cycles grows, so that a flood costs a few cycles only.
#[derive(Debug)]
pub struct Nudges {
    /// Shared with the thread: whether the main loop has a nudge that it has not served.
    pending: Arc<AtomicBool>,
    /// Shared with the thread: since when it connects.
    connecting: Connecting,
    waiting: bool,
    next: Instant,
    gap: Duration,
}

/// Since when the thread connects; `None` while it waits for a nudge or sleeps.
type Connecting = Arc<Mutex<Option<Instant>>>;

fn lock(connecting: &Connecting) -> MutexGuard<'_, Option<Instant>> {
    connecting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nudges {
    /// Whether the thread hangs.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        lock(&self.connecting).is_some_and(|since| since.elapsed() >= HUNG)
    }

    /// A nudge arrived.
    pub fn arrived(&mut self) {
        self.waiting = true;
    }

    /// When the cycle for a nudge is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.waiting.then_some(self.next)
    }

    /// Whether a cycle for a nudge is due now; the nudge then counts as served.
    pub fn take(&mut self, now: Instant) -> bool {
        if !self.waiting || now < self.next {
            return false;
        }
        let quiet = now.saturating_duration_since(self.next) >= QUIET;
        self.gap = if quiet { GAP } else { (self.gap * 2).min(GAP_MAX) };
        self.next = now + self.gap;
        self.waiting = false;
        self.pending.store(false, Ordering::Release);
        true
    }
}

/// Starts the thread. It connects at once, and again whenever that fails or the connection ends.
///
/// # Errors
/// The URL is invalid, or the thread cannot be started.
pub fn start(url: &str, events: SyncSender<Event>) -> std::io::Result<Nudges> {
    let invalid = |error: RedisError| std::io::Error::new(std::io::ErrorKind::InvalidInput, error.to_string());
    let address = address(url).map_err(invalid)?;
    let (pending, connecting) = (Arc::<AtomicBool>::default(), Connecting::default());
    let (shared, since) = (Arc::clone(&pending), Arc::clone(&connecting));
    let thread = NudgeThread { address, place: redacted(url), events, pending: shared, connecting: since };
    thread::Builder::new().name("nudge".to_owned()).stack_size(128 << 10).spawn(move || thread.run())?;
    Ok(Nudges { pending, connecting, waiting: false, next: Instant::now(), gap: GAP })
}

struct NudgeThread {
    address: ConnectionInfo,
    place: String,
    events: SyncSender<Event>,
    pending: Arc<AtomicBool>,
    connecting: Connecting,
}

impl NudgeThread {
    fn run(self) {
        let mut delay = RETRY;
        let mut unavailable_since: Option<Instant> = None;
        // After so many more failures the fault is reported.
        let mut silent: u32 = 0;
        loop {
            let mut subscribed_at = None;
            let mut subscribed = || {
                subscribed_at = Some(Instant::now());
                if let Some(since) = unavailable_since.take() {
                    info!("receiving nudges again after {} s", since.elapsed().as_secs());
                }
            };
            let Err(error) = self.listen(&mut subscribed) else { return };
            if subscribed_at.is_some_and(|begin| begin.elapsed() >= LASTING) {
                // A server that restarts or closes an idle connection is available again within a second.
                (delay, silent) = (RETRY, SILENT);
                continue;
            }
            silent = silent.saturating_sub(1);
            if silent == 0 && unavailable_since.is_none() {
                unavailable_since = Some(Instant::now());
                warn!(
                    "cannot receive nudges from {}: {}; changes take effect at the next tick; retrying every 1 to 30 s",
                    self.place,
                    describe(&error)
                );
            }
            thread::sleep(delay);
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Listens until the subscription ends or is refused; `Ok` when the main loop has ended.
    fn listen(&self, subscribed: &mut dyn FnMut()) -> Result<(), RedisError> {
        *lock(&self.connecting) = Some(Instant::now());
        let subscription = Subscription::open(&self.address, CHANNEL, MESSAGE_LIMIT);
        *lock(&self.connecting) = None;
        let mut subscription = subscription?;
        subscribed();
        // Nudges that were sent while nobody listened are lost, so the subscription itself counts as one.
        let mut nudged = true;
        loop {
            if nudged && !self.pending.swap(true, Ordering::AcqRel) && self.events.send(Event::Nudge).is_err() {
                return Ok(());
            }
            nudged = subscription.receive()? == PAYLOAD;
        }
    }
}
