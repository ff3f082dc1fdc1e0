//! Signals as bytes in sockets, for the `poll` thread.
//!
//! The first SIGTERM or SIGINT is delivered as a request to stop. The second one ends the process inside the signal
//! handler, whatever any thread waits for.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::{fmt, io};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook::low_level::pipe;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: stop.
    Terminate,
    /// SIGUSR1: write the state to the log.
    Dump,
}

/// Signals that arrived and are not delivered yet.
pub struct Signals {
    sockets: Vec<(Signal, UnixStream)>,
    waiting: Vec<Signal>,
    deliver: Box<dyn FnMut(Signal) -> bool + Send>,
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} signals wait", self.waiting.len())
    }
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGUSR1. `deliver` must not block; it returns `false` for "not now, try again".
    ///
    /// # Errors
    /// When the system refuses a handler or a socket.
    pub fn register(deliver: impl FnMut(Signal) -> bool + Send + 'static) -> io::Result<Self> {
        let terminated = Arc::new(AtomicBool::new(false));
        let mut sockets = Vec::new();
        for number in [SIGTERM, SIGINT] {
            // Handlers run in this order: the first signal finds the flag unset, and sets it.
            flag::register_conditional_shutdown(number, 0, Arc::clone(&terminated))?;
            flag::register(number, Arc::clone(&terminated))?;
            sockets.push((Signal::Terminate, socket(number)?));
        }
        sockets.push((Signal::Dump, socket(SIGUSR1)?));
        Ok(Self { sockets, waiting: Vec::new(), deliver: Box::new(deliver) })
    }

    /// The sockets to poll.
    pub fn sockets(&self) -> impl Iterator<Item = &UnixStream> {
        self.sockets.iter().map(|(_, socket)| socket)
    }

    /// Delivers what arrived; `false` if something has to be tried again.
    pub fn deliver(&mut self) -> bool {
        for (signal, socket) in &mut self.sockets {
            if drain(socket) {
                self.waiting.push(*signal);
            }
        }
        let deliver = &mut self.deliver;
        self.waiting.retain(|signal| !deliver(*signal));
        self.waiting.is_empty()
    }
}

fn socket(number: i32) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    pipe::register(number, writer)?;
    Ok(reader)
}

/// Whether anything was in the socket.
fn drain(socket: &mut UnixStream) -> bool {
    let mut bytes = [0; 64];
    let mut found = false;
    loop {
        match socket.read(&mut bytes) {
            Ok(1..) => found = true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return found,
        }
    }
}
