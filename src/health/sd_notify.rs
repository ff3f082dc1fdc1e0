//! Notifies systemd that the Controller is ready, that its main loop runs, that it replaces itself, and that it stops
//! (`sd_notify(3)`).
//!
//! Only the main loop calls this, as the watchdog must detect when that loop is stuck. A message that cannot be sent at
//! once is dropped, so that the loop never blocks.

use crate::config::Supervisor;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

/// Sends the messages.
#[derive(Debug)]
pub struct Notifier {
    supervisor: Option<(Supervisor, UnixDatagram)>,
    /// When the last message for the watchdog was sent; `None` until the Controller is ready.
    last_beat: Option<Instant>,
    stopping: bool,
}

impl Notifier {
    /// Without a supervisor, nothing is sent.
    ///
    /// # Errors
    /// The system has no socket.
    pub fn new(supervisor: Option<Supervisor>) -> io::Result<Self> {
        let connected = |supervisor: Supervisor| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            io::Result::Ok((supervisor, socket))
        };
        Ok(Self { supervisor: supervisor.map(connected).transpose()?, last_beat: None, stopping: false })
    }

    /// Notes that the main loop has completed a cycle. After the first one, the Controller is ready. The watchdog gets
    /// a message twice as often as it requires.
    pub fn beat(&mut self, now: Instant) {
        let Some((supervisor, _)) = &self.supervisor else { return };
        let message = match (self.last_beat, supervisor.watchdog) {
            (None, _) => "READY=1\nWATCHDOG=1",
            (Some(last), Some(watchdog)) if now.saturating_duration_since(last) >= watchdog / 2 => "WATCHDOG=1",
            _ => return,
        };
        self.last_beat = Some(now);
        self.send(message);
    }

    /// Notifies once that the Controller is about to end.
    pub fn stopping(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.send("STOPPING=1");
        }
    }

    /// Notifies that the process replaces itself. Whatever completes a cycle next, the new one or, if that fails, this
    /// one, is ready again.
    pub fn replacing(&mut self) {
        self.send("RELOADING=1\nWATCHDOG=1");
        self.last_beat = None;
    }

    fn send(&self, message: &str) {
        if let Some((supervisor, socket)) = &self.supervisor {
            let _ = socket.send_to_addr(message.as_bytes(), &supervisor.address);
        }
    }
}
