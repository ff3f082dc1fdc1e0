//! The `nudge` thread: waits on `silvasonic:nudge` and wakes the main loop at `reconcile`.
//!
//! A nudge carries no data: it starts a cycle at once. A lost one therefore costs one tick at most, and many at once
//! have the effect of one. The thread sleeps in a read without a time limit; TCP keep-alive probes detect a peer that
//! vanished.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, IntoConnectionInfo, RedisError};

use crate::event::Event;
use crate::redis::publisher::redacted;
use crate::text::shown;

pub(crate) const CHANNEL: &str = "silvasonic:nudge";
pub(crate) const PAYLOAD: &[u8] = b"reconcile";
const CONNECT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A peer that vanished without closing the connection is given up after 60 s + 3 * 10 s.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// So many probes without an answer end the connection.
const PROBES: u32 = 3;

/// Time between two cycles for nudges that arrive without a pause: at first, and at most.
const GAP: Duration = Duration::from_millis(50);
const GAP_MAX: Duration = Duration::from_millis(500);
/// After this time without a nudge, the next one is served at once.
const QUIET: Duration = Duration::from_secs(1);

/// The nudges that the main loop must serve. The first one is served at once. When more follow without a pause, the
/// time between two cycles grows, so that a flood costs a few cycles only.
#[derive(Debug)]
pub struct Nudges {
    /// Shared with the thread: whether the main loop has a nudge that it has not served.
    pending: Arc<AtomicBool>,
    waiting: bool,
    next: Instant,
    gap: Duration,
}

impl Nudges {
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
    let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
    let address = url.into_connection_info().map_err(invalid)?;
    let address = address.set_tcp_settings(TcpSettings::default().set_keepalive(keepalive));
    let client = Client::open(address).map_err(invalid)?;
    let pending = Arc::<AtomicBool>::default();
    let thread = NudgeThread { client, place: redacted(url), events, pending: Arc::clone(&pending) };
    thread::Builder::new().name("nudge".to_owned()).stack_size(128 << 10).spawn(move || thread.run())?;
    Ok(Nudges { pending, waiting: false, next: Instant::now(), gap: GAP })
}

struct NudgeThread {
    client: Client,
    place: String,
    events: SyncSender<Event>,
    pending: Arc<AtomicBool>,
}

impl NudgeThread {
    fn run(self) {
        let mut delay = RETRY;
        let mut unavailable_since: Option<Instant> = None;
        loop {
            let mut subscribed = |unavailable_since: &mut Option<Instant>| {
                delay = RETRY;
                if let Some(since) = unavailable_since.take() {
                    info!("receiving nudges again after {} s", since.elapsed().as_secs());
                }
            };
            let Err(error) = self.listen(|| subscribed(&mut unavailable_since)) else { return };
            if unavailable_since.is_none() {
                unavailable_since = Some(Instant::now());
                warn!(
                    "cannot receive nudges from {}: {}; changes take effect at the next tick; retrying every 1 to 30 s",
                    self.place,
                    shown(&error.to_string())
                );
            }
            thread::sleep(delay);
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Listens until the connection is lost; `Ok` when the main loop has ended.
    fn listen(&self, subscribed: impl FnOnce()) -> Result<(), RedisError> {
        let mut connection = self.client.get_connection_with_timeout(CONNECT)?;
        connection.set_read_timeout(Some(CONNECT))?;
        let mut channel = connection.as_pubsub();
        channel.subscribe(CHANNEL)?;
        channel.set_read_timeout(None)?;
        subscribed();
        // Nudges that were sent while nobody listened are lost, so the subscription itself counts as one.
        let mut nudged = true;
        loop {
            if nudged && !self.pending.swap(true, Ordering::AcqRel) && self.events.send(Event::Nudge).is_err() {
                return Ok(());
            }
            nudged = channel.get_message()?.get_payload_bytes() == PAYLOAD;
        }
    }
}
