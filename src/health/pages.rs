//! What is served beside `/healthy`: the status page, what it shows, and metrics.
//!
//! The main loop prepares a text only when somebody asks for it. The `poll` thread marks it as wanted, wakes the loop and
//! serves other clients until the loop has [`put`](Pages::put) it. A text that is at most [`FRESH`] old serves all who
//! ask, so that many clients cost as much as one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// Greatest age of a text that is served without asking the main loop.
pub const FRESH: Duration = Duration::from_millis(500);

/// The status page: text, style and script in one file.
const STATUS_PAGE: &str = include_str!("page.html");

/// What a path shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// A file of the program.
    Fixed(&'static str),
    /// What the main loop prepares.
    Prepared(Prepared),
}

/// What the main loop prepares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The state of the station, for the status page.
    Status,
    /// The metrics, in the text format of Prometheus.
    Metrics,
    /// The metrics as OpenMetrics.
    OpenMetrics,
}

impl Page {
    /// What a path shows to a client that accepts OpenMetrics or not, and the headers of the answer.
    #[must_use]
    pub fn at(path: &[u8], accepts_openmetrics: bool) -> Option<(Self, &'static str)> {
        Some(match path {
            b"/" => (
                Self::Fixed(STATUS_PAGE),
                "Content-Type: text/html; charset=utf-8\r\n\
                 Content-Security-Policy: default-src 'none'; style-src 'sha256-bfCReIj2Hl+NHvp5C+c+PqwluKbmHNiFXMJ7kfkjN14='; \
                 script-src 'sha256-hnQAJFrlmWm7XsfsMI2U3Aig/CXr2gdHnZXiCzpPXBQ='; \
                 connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
                 X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n",
            ),
            b"/status.json" => (Self::Prepared(Prepared::Status), "Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"),
            b"/metrics" if !accepts_openmetrics => (
                Self::Prepared(Prepared::Metrics),
                "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n",
            ),
            b"/metrics" => (
                Self::Prepared(Prepared::OpenMetrics),
                "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n",
            ),
            _ => return None,
        })
    }
}

/// The prepared texts; clones share them.
#[derive(Clone)]
pub struct Pages {
    shared: Arc<Shared>,
}

struct Shared {
    texts: Mutex<[Text; 3]>,
    /// Readable when a text was prepared.
    prepared: OwnedFd,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Text {
    is_wanted: bool,
    /// How often it was served since [`Pages::take_served`].
    served: u32,
    last: Option<(Instant, Arc<str>)>,
}

impl Pages {
    /// No text is wanted. `wake` wakes the main loop, and must not block.
    ///
    /// # Errors
    /// The system has no descriptor.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> std::io::Result<Self> {
        let prepared = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { texts: Mutex::default(), prepared, wake: Box::new(wake) }) })
    }

    fn texts(&self) -> MutexGuard<'_, [Text; 3]> {
        self.shared.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A text that is no older than [`FRESH`] at this time. Otherwise the main loop is asked for it.
    #[must_use]
    pub fn get(&self, page: Prepared, asked: Instant) -> Option<Arc<str>> {
        let must_wake = {
            let mut texts = self.texts();
            let text = &mut texts[page as usize];
            if let Some((_, last)) = text.last.as_ref().filter(|(at, _)| *at + FRESH >= asked) {
                text.served = text.served.saturating_add(1);
                return Some(Arc::clone(last));
            }
            !std::mem::replace(&mut text.is_wanted, true)
        };
        if must_wake {
            (self.shared.wake)();
        }
        None
    }

    /// How often a text was served since the last call.
    #[must_use]
    pub fn take_served(&self, page: Prepared) -> u32 {
        let mut texts = self.texts();
        std::mem::take(&mut texts[page as usize].served)
    }

    /// The texts that the main loop is asked for.
    #[must_use]
    pub fn wanted(&self) -> Vec<Prepared> {
        let texts = self.texts();
        [Prepared::Status, Prepared::Metrics, Prepared::OpenMetrics].into_iter().filter(|page| texts[*page as usize].is_wanted).collect()
    }

    /// Serves a text.
    pub fn put(&self, page: Prepared, text: String, now: Instant) {
        {
            let mut texts = self.texts();
            let entry = &mut texts[page as usize];
            (entry.is_wanted, entry.last) = (false, Some((now, text.into())));
        }
        // It fails only if the counter is full, and then the descriptor is readable.
        let _ = write(&self.shared.prepared, &1_u64.to_ne_bytes());
    }

    /// Readable when a text was prepared, until [`Pages::noticed`].
    #[must_use]
    pub fn prepared(&self) -> BorrowedFd<'_> {
        self.shared.prepared.as_fd()
    }

    /// Notes that somebody looks for the texts.
    pub fn noticed(&self) {
        // It fails if there is nothing to notice.
        let _ = read(&self.shared.prepared, &mut [0; 8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Base64.
    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digits = |group: &[u8]| -> String {
            let bits = (0..3).fold(0, |bits, at| bits << 8 | usize::from(group.get(at).copied().unwrap_or_default()));
            (0..4).map(|at| if at <= group.len() { char::from(DIGITS[bits >> (18 - 6 * at) & 63]) } else { '=' }).collect()
        };
        bytes.chunks(3).map(digits).collect()
    }

    #[test]
    fn the_page_is_small_and_the_policy_permits_its_own_style_and_script_only() {
        use sha2::{Digest, Sha256};
        assert!(STATUS_PAGE.len() < 20_000, "{} bytes", STATUS_PAGE.len());
        let (_, headers) = Page::at(b"/", false).unwrap();
        for tag in ["style", "script"] {
            let parts: Vec<&str> = STATUS_PAGE.split(&format!("<{tag}>")).collect();
            let [_, rest] = parts[..] else { panic!("one {tag}") };
            let content = rest.split(&format!("</{tag}>")).next().unwrap();
            let hash = format!("{tag}-src 'sha256-{}'", encode(&Sha256::digest(content)));
            assert!(headers.contains(&hash), "expected {hash}");
        }
        // What would make an element of foreign text, and what would ask another host.
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " src=", "@import", "url(", "https:"] {
            assert!(!STATUS_PAGE.contains(word), "{word}");
        }
    }

    #[test]
    fn the_loop_is_woken_once_for_all_who_ask() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let pages = Pages::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        let start = Instant::now();
        assert_eq!(pages.wanted(), []);
        for _ in 0..30 {
            assert_eq!(pages.get(Prepared::Metrics, start), None);
        }
        assert_eq!((woken.load(Ordering::Relaxed), pages.wanted()), (1, vec![Prepared::Metrics]));
        pages.put(Prepared::Metrics, "a".to_owned(), start);
        assert_eq!(pages.wanted(), []);
        for asked in [start, start + FRESH] {
            assert_eq!(pages.get(Prepared::Metrics, asked).as_deref(), Some("a"));
        }
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert_eq!(pages.get(Prepared::Metrics, start + FRESH + Duration::from_millis(1)), None);
        assert_eq!(pages.get(Prepared::Status, start), None);
        assert_eq!((woken.load(Ordering::Relaxed), pages.wanted()), (3, vec![Prepared::Status, Prepared::Metrics]));
    }
}
