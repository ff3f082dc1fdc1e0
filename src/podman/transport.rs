//! A Unix-socket transport for ureq: connect, write and read, each with the deadline that ureq sets.
//!
//! The only file that uses `ureq::unversioned`, which may change between minor versions.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, ShutdownHandle, Transport};

use crate::podman::mount;

/// Opens connections to one socket, for any host name in the request.
#[derive(Debug)]
pub(super) struct UnixConnector {
    pub(super) path: PathBuf,
}

impl Connector for UnixConnector {
    type Out = UnixTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<UnixTransport>, ureq::Error> {
        let socket = Arc::new(Socket(connect(&self.path, socket_timeout(details.timeout))?));
        (details.register_shutdown)(Arc::downgrade(&socket) as Weak<dyn ShutdownHandle>)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(UnixTransport { socket, buffers }))
    }
}

/// Connecting to a Unix socket blocks while the backlog of the listener is full. It has no timeout of its own, but
/// obeys the send timeout.
fn connect(path: &Path, limit: Option<Duration>) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, limit)?;
    rustix::net::connect(&socket, &address).map_err(|error| refusal(error.into(), path))?;
    Ok(UnixStream::from(socket))
}

/// The error, with what helps if it lasts for ever.
fn refusal(error: io::Error, path: &Path) -> io::Error {
    if error.kind() != io::ErrorKind::ConnectionRefused || !mount::is_file_mount(path) {
        return error;
    }
    let why = "the socket is mounted as a file, which is dead after a restart of podman.socket until this container is restarted";
    io::Error::new(error.kind(), format!("{error}; {why}: {}", mount::ADVICE))
}

/// A timeout as socket options expect it: never zero, which would mean no timeout.
fn socket_timeout(timeout: NextTimeout) -> Option<Duration> {
    (!timeout.after.is_not_happening()).then(|| (*timeout.after).max(Duration::from_millis(1)))
}

/// A socket timeout is reported as `EAGAIN`; ureq must know which of its deadlines it was.
fn timeout_error(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

/// The socket, shared with ureq's shutdown registry: `Agent::shutdown` ends a blocked read.
#[derive(Debug)]
struct Socket(UnixStream);

impl ShutdownHandle for Socket {
    fn shutdown(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// One connection with ureq's buffers.
#[derive(Debug)]
pub(super) struct UnixTransport {
    socket: Arc<Socket>,
    buffers: LazyBuffers,
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let timeout = timeout.for_write();
        let mut stream = &self.socket.0;
        stream.set_write_timeout(socket_timeout(timeout))?;
        stream.write_all(&self.buffers.output()[..amount]).map_err(|error| timeout_error(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let mut stream = &self.socket.0;
        stream.set_read_timeout(socket_timeout(timeout))?;
        let space = self.buffers.input_append_buf();
        let count = loop {
            match stream.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| timeout_error(error, timeout))?,
            }
        };
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    /// An idle connection can be used again if the peer has neither closed it nor sent anything.
    fn is_open(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&self.socket.0, &mut [0; 1], flags), Err(rustix::io::Errno::AGAIN))
    }
}

/// Resolves every name to one address that is not used: the connector has a path instead.
#[derive(Debug)]
pub(super) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &ureq::config::Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Ok(addresses)
    }
}
