//! Deadlines of calls to PostgreSQL, and the way to end a call that exceeds its deadline.
//!
//! The client library waits without limit for a server that does not answer, also when it logs in or disconnects. The
//! thread that calls it sets a deadline; another thread enforces it by `shutdown(2)` on the socket, which ends the
//! call at once with an error. So a hang costs neither a thread nor a descriptor.
//!
//! The library does not hand out its socket. But it calls [`MakeTlsConnect`] after it has connected and before it logs
//! in, and there the socket is found among the descriptors of this process by its peer and duplicated with
//! `pidfd_getfd` (Linux 5.6, needs no privilege for the own process). If the system forbids that, the connection is
//! used without: a call that hangs then holds its thread. [`crate::database::state`] limits their number, and the thread
//! that follows such a one makes sure that the server answers before it calls the library.
//!
//! Invariant: a deadline is set only during a call, so an idle connection is never ended.

use crate::sorted_set::SortedSet;
use std::fs;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use postgres::tls::{MakeTlsConnect, NoTlsError, NoTlsStream};
use postgres::{NoTls, Socket};
use rustix::net::{Shutdown, shutdown};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// How often a command enforces its deadlines.
const CHECK: Duration = Duration::from_millis(100);

/// The deadline of one connection's current call; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Deadline {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// When the deadline of the current call was found exceeded.
    exceeded: Option<Instant>,
    /// The thread was abandoned: whatever it connects is ended at once.
    is_closed: bool,
    socket: Option<OwnedFd>,
}

impl State {
    fn end_call(&self) {
        if let Some(socket) = &self.socket {
            // Fails only if the connection has ended already.
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

/// Ends the deadline when dropped.
#[derive(Debug)]
pub struct Armed(Deadline);

impl Deadline {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the deadline of a call that begins now.
    #[must_use]
    pub fn arm(&self, limit: Duration) -> Armed {
        let mut state = self.state();
        (state.until, state.exceeded) = (Some(Instant::now() + limit), None);
        Armed(self.clone())
    }

    /// When the current call must be ended.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.state().until
    }

    /// Ends the current call if it has exceeded its deadline.
    pub fn enforce(&self, now: Instant) {
        let mut state = self.state();
        if state.until.is_some_and(|until| now >= until) {
            (state.until, state.exceeded) = (None, Some(now));
            state.end_call();
        }
    }

    /// Since when the current call, or else the last one, has exceeded its deadline.
    #[must_use]
    pub fn exceeded(&self) -> Option<Instant> {
        self.state().exceeded
    }

    /// Ends the current call and all later ones.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.end_call();
    }

    /// Enforces the deadlines from a thread of its own, as long as the connection exists. For commands.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn enforce_by_thread(&self) -> io::Result<()> {
        let state: Weak<Mutex<State>> = Arc::downgrade(&self.state);
        let run = move || {
            while let Some(state) = state.upgrade() {
                Self { state }.enforce(Instant::now());
                thread::sleep(CHECK);
            }
        };
        thread::Builder::new().name("deadline".to_owned()).stack_size(64 << 10).spawn(run).map(drop)
    }

    /// The socket whose calls are to be ended; `None` at the end of the connection.
    pub(super) fn attach(&self, socket: Option<OwnedFd>) {
        let mut state = self.state();
        state.socket = socket;
        if state.is_closed || state.exceeded.is_some() {
            state.end_call();
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.0.state().until = None;
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// One of these addresses, at this port.
    Tcp(Vec<IpAddr>, u16),
    /// A socket with this file name.
    Unix(String),
}

impl Peer {
    /// Returns the socket if it is connected to this peer.
    fn filter(&self, socket: OwnedFd) -> Option<OwnedFd> {
        match self {
            Self::Tcp(addresses, port) => {
                let stream = TcpStream::from(socket);
                let peer = stream.peer_addr().ok()?;
                (peer.port() == *port && addresses.contains(&peer.ip())).then(|| stream.into())
            }
            Self::Unix(name) => {
                let stream = UnixStream::from(socket);
                // The server may see its folder under another path, e.g. in a container.
                let peer = stream.peer_addr().ok()?;
                peer.as_pathname()?.file_name()?.to_str().is_some_and(|file| file == name).then(|| stream.into())
            }
        }
    }
}

/// Hands the library's new socket to a [`Deadline`], and connects without TLS.
pub(super) struct Connector {
    deadline: Deadline,
    peer: Peer,
    /// The sockets of this process before it connected.
    earlier: SortedSet<String>,
    /// Why the socket was not found.
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl Connector {
    pub(super) fn new(deadline: &Deadline, peer: Peer) -> (Self, Arc<Mutex<Option<io::Error>>>) {
        let mut earlier = SortedSet::new();
        // Without the list, the first socket with that peer is taken.
        let _ = sockets(|_, name| {
            earlier.insert(name);
            None::<()>
        });
        let failure = Arc::default();
        (Self { deadline: deadline.clone(), peer, earlier, failure: Arc::clone(&failure) }, failure)
    }

    fn find(&self) -> io::Result<OwnedFd> {
        let process = pidfd_open(getpid(), PidfdFlags::empty())?;
        let mut failure = None;
        let found = sockets(|number, name| {
            if self.earlier.contains(&name) {
                return None;
            }
            match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                Ok(socket) => self.peer.filter(socket),
                Err(why) => {
                    // It may be another socket that was closed meanwhile.
                    failure = Some(why.into());
                    None
                }
            }
        })?;
        found.ok_or_else(|| failure.unwrap_or_else(|| io::Error::other("no socket with this peer")))
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = NoTlsStream;
    type TlsConnect = NoTls;
    type Error = NoTlsError;

    fn make_tls_connect(&mut self, _: &str) -> Result<NoTls, NoTlsError> {
        match self.find() {
            Ok(socket) => self.deadline.attach(Some(socket)),
            Err(why) => *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why),
        }
        Ok(NoTls)
    }
}

/// Visits the sockets of this process, each with its number and its name in the kernel, until `visit` returns a value.
fn sockets<T>(mut visit: impl FnMut(i32, String) -> Option<T>) -> io::Result<Option<T>> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // Other threads close descriptors meanwhile.
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(number), Some(name)) = (number, link.to_str().filter(|name| name.starts_with("socket:"))) {
            if let Some(found) = visit(number, name.to_owned()) {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::database::connection::Connection;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    /// Connects to a server that accepts and never answers, and ends the attempt after 50 ms.
    fn connect_in_vain(host: &str, port: u16) {
        let read = |name: &str| match name {
            "SILVASONIC_DB_HOST" => Some(host.into()),
            "SILVASONIC_DB_PORT" => Some(port.to_string().into()),
            _ => None,
        };
        let database = Config::read(read).unwrap().database;
        let deadline = Deadline::default();
        let other = deadline.clone();
        let enforcer = thread::spawn(move || {
            while other.until().is_none() || other.state().socket.is_none() {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(50));
            other.enforce(Instant::now() + Duration::from_secs(60));
        });
        let begun = Instant::now();
        assert!(Connection::connect(&database, &deadline).is_err());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        enforcer.join().unwrap();
        assert!(deadline.exceeded().is_some() && deadline.until().is_none());
        assert!(deadline.state().socket.is_none());
    }

    #[test]
    fn a_log_in_that_hangs_is_ended_over_tcp_and_over_a_unix_socket() {
        let folder = std::env::temp_dir().join(format!("silvasonic-deadline-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let unix = UnixListener::bind(folder.join(format!(".s.PGSQL.{port}"))).unwrap();
        for _ in 0..5 {
            connect_in_vain("127.0.0.1", port);
            connect_in_vain(folder.to_str().unwrap(), port);
        }
        drop((tcp, unix));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_an_abandoned_thread_connects_is_ended_at_once() {
        let deadline = Deadline::default();
        deadline.close();
        let (socket, mut other) = UnixStream::pair().unwrap();
        deadline.attach(Some(socket.into()));
        assert_eq!(io::Read::read(&mut other, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_deadline_ends_with_its_call() {
        let deadline = Deadline::default();
        let (socket, mut other) = UnixStream::pair().unwrap();
        deadline.attach(Some(socket.into()));
        drop(deadline.arm(Duration::ZERO));
        deadline.enforce(Instant::now());
        other.set_nonblocking(true).unwrap();
        assert_eq!(io::Read::read(&mut other, &mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let _armed = deadline.arm(Duration::ZERO);
        deadline.enforce(Instant::now());
        assert_eq!(io::Read::read(&mut other, &mut [0]).unwrap(), 0);
    }
}
