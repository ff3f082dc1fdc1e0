//! The server of `GET /healthy`, polled by the `poll` thread: no request waits for another one.
//!
//! It implements the part of HTTP/1.1 that a health check needs: it reads the head of a request, answers and closes.
//! The answer is read from the [`Board`] at that moment.
//!
//! Invariants: a connection costs a slot, at most [`HEAD`] bytes and one answer, and is closed after [`LIFE`] at the
//! latest. A new connection always gets a slot, if necessary that of the oldest one. The slots are a fixed share of the
//! descriptors that the process may open. Without connections, the thread sleeps without a timer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddrV6, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen as listen_on, socket_with, sockopt};

use crate::descriptors;
use crate::health::board::Board;

/// Longest head of a request, in bytes.
pub const HEAD: usize = 1024;
/// Time from the beginning of a connection to its end.
pub const LIFE: Duration = Duration::from_secs(2);
/// Pause when the system lacks a file descriptor or memory for another connection.
const SHORTAGE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on a port (0 = any free one) of all IPv6 and IPv4 addresses. Returns the server and its port.
///
/// # Errors
/// The port is in use, or the system has no socket.
pub fn listen(port: u16, board: Board) -> io::Result<(Server, u16)> {
    let listener = match listen_dual(port) {
        Ok(listener) => listener,
        Err(error @ (Errno::ADDRINUSE | Errno::ACCESS)) => return Err(error.into()),
        // The kernel has no IPv6, or it is disabled.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?,
    };
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((Server { listener, board, connections: Vec::new(), slots: descriptors::shares().clients, paused: None }, port))
}

/// Listens for IPv6 and IPv4 on one socket, independent of `net.ipv6.bindv6only`.
fn listen_dual(port: u16) -> Result<TcpListener, Errno> {
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))?;
    listen_on(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The listener and its clients, for the thread that polls them.
pub struct Server {
    listener: TcpListener,
    board: Board,
    /// Number of connections at the same time.
    slots: usize,
    /// Until when no connection is accepted, for lack of file descriptors.
    paused: Option<Instant>,
    /// Oldest first.
    connections: Vec<Exchange>,
}

struct Exchange {
    stream: TcpStream,
    ends: Instant,
    phase: Phase,
}

/// Reading -> Writing -> Draining -> closed. Draining waits for the client to close: closing with unread input would
/// send a reset, and the client might drop the answer.
enum Phase {
    Reading { head: Vec<u8> },
    Writing { answer: Vec<u8>, sent: usize },
    Draining,
}

impl Server {
    /// Adds the descriptors to poll.
    pub fn descriptors<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        if self.paused.is_none() {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        fds.extend(self.connections.iter().map(|exchange| PollFd::new(&exchange.stream, exchange.phase.waits_for())));
    }

    /// When [`Server::serve`] must be called, even if no descriptor is ready.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.connections.iter().map(|exchange| exchange.ends).chain(self.paused).min()
    }

    /// Serves all connections and accepts new ones, without blocking.
    pub fn serve(&mut self) {
        self.advance();
        if self.paused.is_none_or(|until| Instant::now() >= until) {
            self.paused = None;
            self.accept();
        }
    }

    /// Advances every connection as far as possible without blocking.
    fn advance(&mut self) {
        let board = &self.board;
        self.connections.retain_mut(|connection| Instant::now() < connection.ends && connection.advance(board).unwrap_or(false));
    }

    fn accept(&mut self) {
        // Half of the slots: then the others are served, so that a new connection is served before it can lose its slot.
        for _ in 0..self.slots / 2 {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    if self.connections.len() == self.slots {
                        self.connections.remove(0);
                    }
                    let phase = Phase::Reading { head: Vec::new() };
                    self.connections.push(Exchange { stream, ends: Instant::now() + LIFE, phase });
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        // The waiting connection would wake the poll again and again; close the oldest one, and pause.
                        if !self.connections.is_empty() {
                            self.connections.remove(0);
                        }
                        self.paused = Some(Instant::now() + SHORTAGE);
                        return;
                    }
                },
            }
        }
    }
}

impl Phase {
    fn waits_for(&self) -> PollFlags {
        match self {
            Self::Reading { .. } | Self::Draining => PollFlags::IN,
            Self::Writing { .. } => PollFlags::OUT,
        }
    }
}

impl Exchange {
    /// Reads or writes what is possible now; `false` or an error when the connection must be closed.
    fn advance(&mut self, board: &Board) -> io::Result<bool> {
        loop {
            match &mut self.phase {
                Phase::Reading { head } => {
                    let mut bytes = [0; HEAD];
                    let Some(count) = ready(self.stream.read(&mut bytes[..HEAD - head.len()]))? else { return Ok(true) };
                    if count == 0 {
                        return Ok(false);
                    }
                    head.extend_from_slice(&bytes[..count]);
                    let complete = head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n");
                    if complete || head.len() == HEAD {
                        let answer = if complete { respond(head, board) } else { too_long() };
                        self.phase = Phase::Writing { answer, sent: 0 };
                    }
                }
                Phase::Writing { answer, sent } => {
                    let Some(count) = ready(self.stream.write(&answer[*sent..]))? else { return Ok(true) };
                    *sent += count;
                    if *sent == answer.len() {
                        self.stream.shutdown(Shutdown::Write)?;
                        self.phase = Phase::Draining;
                    }
                }
                Phase::Draining => {
                    // One read per round, so that a client that sends a lot of data does not delay the others.
                    let mut bytes = [0; 8 * HEAD];
                    return Ok(ready(self.stream.read(&mut bytes))?.is_none_or(|count| count > 0));
                }
            }
        }
    }
}

/// `None` if the socket is not ready.
fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

fn too_long() -> Vec<u8> {
    answer("431 Request Header Fields Too Large", "", &format!("{{\"error\":\"the head of a request has at most {HEAD} bytes\"}}"))
}

fn respond(head: &[u8], board: &Board) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.trim_ascii_end().split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { return bad_request() };
    if !version.starts_with(b"HTTP/1.") {
        return bad_request();
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    match (path, method) {
        (b"/healthy", b"GET") => {
            let (ok, health) = board.health_json(Instant::now());
            answer(if ok { "200 OK" } else { "503 Service Unavailable" }, "", &health.to_string())
        }
        (b"/healthy", b"HEAD") => answer("405 Method Not Allowed", "Allow: GET\r\n", ""),
        (b"/healthy", _) => answer("405 Method Not Allowed", "Allow: GET\r\n", r#"{"error":"only GET is allowed"}"#),
        (_, b"HEAD") => answer("404 Not Found", "", ""),
        _ => answer("404 Not Found", "", r#"{"error":"only /healthy exists"}"#),
    }
}

fn bad_request() -> Vec<u8> {
    answer("400 Bad Request", "", r#"{"error":"not an HTTP/1 request"}"#)
}

fn answer(status: &str, header: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n{header}Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_get_healthy_is_answered_with_the_health() {
        let healthy = Board::new("controller", "controller");
        let unhealthy = healthy.clone();
        let table = [
            ("GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
            ("GET /healthy?verbose HTTP/1.0\n\n", "200 OK"),
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("GET /healthyx HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /healthy HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("HEAD /healthy HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("POST /x HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("GET /healthy HTTP/2\r\n\r\n", "400 Bad Request"),
            ("GET /healthy\r\n\r\n", "400 Bad Request"),
            ("\u{16}\u{3}\u{1}\r\n\r\n", "400 Bad Request"),
            ("\r\n\r\n", "400 Bad Request"),
        ];
        for (request, expected) in table {
            let answer = String::from_utf8(respond(request.as_bytes(), &healthy)).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(head.lines().next(), Some(format!("HTTP/1.1 {expected}").as_str()), "{request:?}");
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())) && head.ends_with("Connection: close"));
            assert_eq!(expected == "200 OK", body.contains("\"components\""), "{request:?}");
        }
        unhealthy.require("database");
        assert!(respond(b"GET /healthy HTTP/1.1\r\n\r\n", &healthy).starts_with(b"HTTP/1.1 503 "));
    }
}
