//! Tells systemd that the Controller is up, that its main loop moves, and that it stops (`sd_notify(3)`).
//!
//! Called by the main loop only: what feeds the watchdog must be what is watched. A message that cannot be sent at once
//! is dropped, as nothing may hold the loop.

use crate::config::Supervisor;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

/// Sends the messages.
#[derive(Debug)]
pub struct Notifier {
    supervisor: Option<(Supervisor, UnixDatagram)>,
    /// When the watchdog was fed last; `None` until the Controller is up.
    fed: Option<Instant>,
    stopping: bool,
}

impl Notifier {
    /// One that says nothing if there is nobody to be told.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn new(supervisor: Option<Supervisor>) -> io::Result<Self> {
        let connected = |supervisor: Supervisor| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            io::Result::Ok((supervisor, socket))
        };
        Ok(Self { supervisor: supervisor.map(connected).transpose()?, fed: None, stopping: false })
    }

    /// The main loop has completed a round: the first one means that the Controller is up, the others feed the watchdog,
    /// twice as often as it asks for.
    pub fn beat(&mut self, now: Instant) {
        let Some((supervisor, _)) = &self.supervisor else { return };
        let message = match (self.fed, supervisor.watchdog) {
            (None, _) => "READY=1\nWATCHDOG=1",
            (Some(fed), Some(watchdog)) if now.saturating_duration_since(fed) >= watchdog / 2 => "WATCHDOG=1",
            _ => return,
        };
        self.fed = Some(now);
        self.send(message);
    }

    /// The Controller is about to end.
    pub fn stopping(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.send("STOPPING=1");
        }
    }

    fn send(&self, message: &str) {
        if let Some((supervisor, socket)) = &self.supervisor {
            let _ = socket.send_to_addr(message.as_bytes(), &supervisor.address);
        }
    }
}
