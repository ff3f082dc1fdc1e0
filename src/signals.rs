//! Signals as bytes in sockets, for the `poll` thread.
//!
//! The first SIGTERM or SIGINT is delivered as a request to stop. Where a user may want to end the process at once, the
//! second one does so in the signal handler, so a blocked thread cannot prevent it. Signals that mean nothing here do
//! nothing, instead of ending the program.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::{fmt, io};

use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ};
use signal_hook::flag;
use signal_hook::low_level::pipe;

/// The request that a signal makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: stop.
    Terminate,
    /// SIGUSR1: write the state to the log.
    Dump,
    /// SIGUSR2: stop, and leave the Recorders running.
    Leave,
}

/// Signals that would end the program, and mean nothing here: a terminal that closes sends SIGHUP.
const STRAY: [i32; 7] = [SIGHUP, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU, SIGXFSZ];

/// What another SIGTERM or SIGINT does after the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// It ends the process at once.
    Ends,
    /// Nothing: the program limits the time of its end itself.
    Ignored,
}

/// Signals that arrived and are not yet delivered.
pub struct Signals {
    sockets: Vec<(Signal, UnixStream)>,
    pending: Vec<Signal>,
    deliver: Box<dyn FnMut(Signal) -> bool + Send>,
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pending signals", self.pending.len())
    }
}

impl Signals {
    /// Handles SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 from now on, and lets stray signals do nothing. `deliver` must not
    /// block; it returns `false` to be called again.
    ///
    /// # Errors
    /// When a handler cannot be registered or a socket cannot be created.
    pub fn register(second: Second, deliver: impl FnMut(Signal) -> bool + Send + 'static) -> io::Result<Self> {
        let terminated = Arc::new(AtomicBool::new(false));
        let mut sockets = Vec::new();
        for number in [SIGTERM, SIGINT] {
            if second == Second::Ends {
                // Handlers run in this order: the first signal finds the flag unset, and sets it.
                flag::register_conditional_shutdown(number, 0, Arc::clone(&terminated))?;
                flag::register(number, Arc::clone(&terminated))?;
            }
            sockets.push((Signal::Terminate, socket(number)?));
        }
        for number in STRAY {
            // A handler, because a program that is started from here would inherit that a signal is ignored.
            flag::register(number, Arc::default())?;
        }
        sockets.push((Signal::Dump, socket(SIGUSR1)?));
        sockets.push((Signal::Leave, socket(SIGUSR2)?));
        Ok(Self { sockets, pending: Vec::new(), deliver: Box::new(deliver) })
    }

    /// The sockets to poll.
    pub fn sockets(&self) -> impl Iterator<Item = &UnixStream> {
        self.sockets.iter().map(|(_, socket)| socket)
    }

    /// Delivers the signals that arrived. Returns `false` if it must be called again for some of them.
    pub fn deliver(&mut self) -> bool {
        for (signal, socket) in &mut self.sockets {
            if drain(socket) {
                self.pending.push(*signal);
            }
        }
        let deliver = &mut self.deliver;
        self.pending.retain(|signal| !deliver(*signal));
        self.pending.is_empty()
    }
}

fn socket(number: i32) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    pipe::register(number, writer)?;
    Ok(reader)
}

/// Reads everything from the socket. Returns whether there was anything.
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
