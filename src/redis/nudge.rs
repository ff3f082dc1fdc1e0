//! The `nudge` thread: waits on `silvasonic:nudge` and wakes the main loop at `reconcile`.
//!
//! A nudge carries no data: it says "look now" and nothing else, so a lost one costs a tick at most and many at once
//! are one. The thread sleeps in a read without a time limit; that the other end of the network is still there, TCP
//! keep-alive probes find out.

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
/// A peer that vanished without a word is given up after about a minute and a half.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// Time between cycles on account of nudges that do not end: at first, and at most.
const GAP: Duration = Duration::from_millis(50);
const GAP_MAX: Duration = Duration::from_millis(500);
/// After so long without a nudge the next one is served at once.
const QUIET: Duration = Duration::from_secs(1);

/// The nudges that the main loop has to serve. The first one is served at once; the more follow without a pause, the
/// longer each waits, so that a flood costs a handful of cycles.
#[derive(Debug)]
pub struct Nudges {
    /// Shared with the thread: whether a nudge waits for the main loop already.
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

    /// When a cycle should begin on account of a nudge.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.waiting.then_some(self.next)
    }

    /// Whether a nudge is to be served now; then it is.
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

/// Starts the thread; it connects at once and, whenever that fails or ends, again for ever.
///
/// # Errors
/// A URL that makes no client, or no thread.
pub fn start(url: &str, events: SyncSender<Event>) -> std::io::Result<Nudges> {
    let invalid = |error: RedisError| std::io::Error::new(std::io::ErrorKind::InvalidInput, error.to_string());
    let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    let address = url.into_connection_info().map_err(invalid)?;
    let address = address.set_tcp_settings(TcpSettings::default().set_keepalive(keepalive));
    let client = Client::open(address).map_err(invalid)?;
    let pending = Arc::<AtomicBool>::default();
    let worker = NudgeThread { client, place: redacted(url), events, pending: Arc::clone(&pending) };
    thread::Builder::new().name("nudge".to_owned()).stack_size(128 << 10).spawn(move || worker.run())?;
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
        let mut away: Option<Instant> = None;
        loop {
            let mut subscribed = |lost: &mut Option<Instant>| {
                delay = RETRY;
                if let Some(since) = lost.take() {
                    info!("nudges are heard again after {} s", since.elapsed().as_secs());
                }
            };
            let Err(error) = self.listen(|| subscribed(&mut away)) else { return };
            if away.is_none() {
                away = Some(Instant::now());
                warn!("no nudges from {}: {}; the tick goes on, retrying every 1 to 30 s", self.place, shown(&error.to_string()));
            }
            thread::sleep(delay);
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Listens until the connection is lost; `Ok` when nobody wants nudges any more.
    fn listen(&self, subscribed: impl FnOnce()) -> Result<(), RedisError> {
        let mut connection = self.client.get_connection_with_timeout(CONNECT)?;
        connection.set_read_timeout(Some(CONNECT))?;
        let mut channel = connection.as_pubsub();
        channel.subscribe(CHANNEL)?;
        channel.set_read_timeout(None)?;
        subscribed();
        // Whatever was said while nobody listened is made good for.
        let mut nudged = true;
        loop {
            if nudged && !self.pending.swap(true, Ordering::AcqRel) && self.events.send(Event::Nudge).is_err() {
                return Ok(());
            }
            nudged = channel.get_message()?.get_payload_bytes() == PAYLOAD;
        }
    }
}
