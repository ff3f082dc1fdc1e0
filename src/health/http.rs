//! The server of `GET /healthy` and of the [`Pages`], polled by the `poll` thread: no request waits for another one.
//!
//! It implements the part of HTTP/1.1 that a health check needs: it reads the head of a request, answers and closes; a
//! body and further requests are ignored. The health is read from the [`Board`] at that moment. A request for a text that
//! the main loop prepares waits for it, a second at most.
//!
//! Invariants: a connection costs a slot, its request line and one answer, and is closed after [`LIFE`] at the latest.
//! The slots are a fixed share of the descriptors that the process may open, at most 32. So all connections together
//! cost at most 32 times [`HEAD`] bytes, and each byte of a head is looked at once. A new connection always gets a slot,
//! if necessary that of the oldest one. Without connections, the thread sleeps without a timer; without its port, it
//! tries again every 30 s.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddrV6, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen as listen_on, socket_with, sockopt};

use crate::descriptors;
use crate::health::board::Board;
use crate::health::pages::{Page, Pages, Prepared};

/// Longest head of a request, in bytes. Browsers send the cookies of all programs of a host, whatever their port.
pub const HEAD: usize = 16 << 10;
/// Bytes that are read at once.
const CHUNK: usize = 2048;
/// Beginning of a header that is looked at, in bytes.
const HEADER: usize = 512;
/// Time from the beginning of a connection to its end.
pub const LIFE: Duration = Duration::from_secs(2);
/// How long a request waits for the main loop.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two attempts to listen on a port that is in use.
const RETRY: Duration = Duration::from_secs(30);
/// Pause when the system lacks a file descriptor or memory for another connection.
const SHORTAGE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Where answers come from.
#[derive(Clone)]
pub struct Sources {
    /// The health.
    pub board: Board,
    /// What else is served.
    pub pages: Option<Pages>,
}

/// A server, or the attempts to get its port: recording does not need it.
pub struct Endpoint {
    port: u16,
    sources: Sources,
    server: Option<Server>,
    /// When the first attempt to listen failed.
    failed: Option<Instant>,
    /// When the next attempt is due, while there is no server.
    next: Instant,
}

impl Endpoint {
    /// An endpoint at a port (0 = any free one) of all IPv6 and IPv4 addresses. It listens from the first
    /// [`Endpoint::serve`] on.
    #[must_use]
    pub fn new(port: u16, sources: Sources) -> Self {
        Self { port, sources, server: None, failed: None, next: Instant::now() }
    }

    /// Adds the descriptors to poll.
    pub fn descriptors<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        self.server.iter().for_each(|server| server.descriptors(fds));
    }

    /// When [`Endpoint::serve`] must be called, even if no descriptor is ready.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.server.as_ref().map_or(Some(self.next), Server::deadline)
    }

    /// Serves all connections and accepts new ones, or tries to listen if that is due. Does not block.
    pub fn serve(&mut self, now: Instant) {
        if self.server.is_none() && now >= self.next {
            self.listen(now);
        }
        self.server.iter_mut().for_each(Server::serve);
    }

    fn listen(&mut self, now: Instant) {
        match listen(self.port, self.sources.clone()) {
            Ok((server, port)) => {
                let waited = self.failed.map_or_else(String::new, |at| format!(" after {} s", now.saturating_duration_since(at).as_secs()));
                info!("serving /healthy on port {port}{waited}");
                self.server = Some(server);
            }
            Err(why) => {
                if self.failed.is_none() {
                    warn!("cannot serve /healthy on port {}: {why}; retrying every {} s", self.port, RETRY.as_secs());
                }
                self.failed.get_or_insert(now);
                self.next = now + RETRY;
            }
        }
    }
}

/// Listens on a port. Returns the server and its port.
fn listen(port: u16, sources: Sources) -> io::Result<(Server, u16)> {
    let listener = match listen_dual(port) {
        Ok(listener) => listener,
        Err(error @ (Errno::ADDRINUSE | Errno::ACCESS)) => return Err(error.into()),
        // The kernel has no IPv6, or it is disabled.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?,
    };
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((Server { listener, sources, connections: Vec::new(), slots: descriptors::shares().clients, paused: None }, port))
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

/// The listener and its clients.
struct Server {
    listener: TcpListener,
    sources: Sources,
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

/// Reading -> (Waiting ->) Writing -> Draining -> closed. Draining waits for the client to close: closing with unread input would
/// send a reset, and the client might drop the answer.
enum Phase {
    Reading(Head),
    /// For the main loop.
    Waiting {
        page: Prepared,
        header: &'static str,
        asked: Instant,
    },
    Writing {
        answer: Vec<u8>,
        sent: usize,
    },
    Draining,
}

impl Server {
    fn descriptors<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        if self.paused.is_none() {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let is_waiting = |exchange: &&Exchange| matches!(exchange.phase, Phase::Waiting { .. });
        if let Some(pages) = self.sources.pages.as_ref().filter(|_| self.connections.iter().any(|exchange| is_waiting(&exchange))) {
            fds.push(PollFd::from_borrowed_fd(pages.prepared(), PollFlags::IN));
        }
        // Who waits for a text is not polled: a client that is gone would wake the poll again and again.
        let polled = self.connections.iter().filter(|exchange| !is_waiting(exchange));
        fds.extend(polled.map(|exchange| PollFd::new(&exchange.stream, exchange.phase.waits_for())));
    }

    fn deadline(&self) -> Option<Instant> {
        self.connections.iter().map(Exchange::deadline).chain(self.paused).min()
    }

    /// Serves all connections and accepts new ones, without blocking.
    fn serve(&mut self) {
        self.advance();
        if self.paused.is_none_or(|until| Instant::now() >= until) {
            self.paused = None;
            self.accept();
        }
    }

    /// Advances every connection as far as possible without blocking.
    fn advance(&mut self) {
        let sources = &self.sources;
        if let Some(pages) = &sources.pages {
            if self.connections.iter().any(|connection| matches!(connection.phase, Phase::Waiting { .. })) {
                pages.noticed();
            }
        }
        self.connections.retain_mut(|connection| Instant::now() < connection.ends && connection.advance(sources).unwrap_or(false));
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
                    self.connections.push(Exchange { stream, ends: Instant::now() + LIFE, phase: Phase::Reading(Head::default()) });
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
            Self::Reading(_) | Self::Draining => PollFlags::IN,
            Self::Waiting { .. } => PollFlags::empty(),
            Self::Writing { .. } => PollFlags::OUT,
        }
    }
}

impl Exchange {
    /// When it must be looked at, even if its stream is not ready.
    fn deadline(&self) -> Instant {
        match self.phase {
            Phase::Waiting { asked, .. } => self.ends.min(asked + PATIENCE),
            _ => self.ends,
        }
    }

    /// Reads or writes what is possible now; `false` or an error when the connection must be closed.
    fn advance(&mut self, sources: &Sources) -> io::Result<bool> {
        loop {
            match &mut self.phase {
                Phase::Reading(head) => {
                    let mut bytes = [0; CHUNK];
                    let Some(count) = ready(self.stream.read(&mut bytes))? else { return Ok(true) };
                    if count == 0 {
                        return Ok(false);
                    }
                    self.phase = match head.add(&bytes[..count]) {
                        Progress::Incomplete => continue,
                        Progress::Complete => respond(head, sources),
                        Progress::TooLong => too_long(),
                    };
                }
                Phase::Waiting { page, header, asked } => {
                    self.phase = match sources.pages.as_ref().and_then(|pages| pages.get(*page, *asked)) {
                        Some(text) => writing("200 OK", header, &text),
                        None if asked.elapsed() < PATIENCE => return Ok(true),
                        None => answer("503 Service Unavailable", "", r#"{"error":"the main loop does not answer"}"#),
                    };
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
                    let mut bytes = [0; 4 * CHUNK];
                    return Ok(ready(self.stream.read(&mut bytes))?.is_none_or(|count| count > 0));
                }
            }
        }
    }
}

/// The head of a request, of which only the first line and what matters of the rest is kept.
#[derive(Default)]
struct Head {
    line: Vec<u8>,
    /// The beginning of the current header, in lower case.
    header: Vec<u8>,
    /// Whether the client accepts OpenMetrics.
    accepts_openmetrics: bool,
    /// Whether the first line is complete.
    has_line: bool,
    /// Whether the current line contains nothing yet.
    is_blank: bool,
    size: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Incomplete,
    Complete,
    TooLong,
}

impl Head {
    /// Adds received bytes. Those after the end of the head are ignored.
    fn add(&mut self, bytes: &[u8]) -> Progress {
        for byte in bytes {
            if self.size == HEAD {
                return Progress::TooLong;
            }
            self.size += 1;
            match byte {
                b'\n' if self.is_blank => return Progress::Complete,
                b'\n' => {
                    (self.has_line, self.is_blank) = (true, true);
                    let is_media_type = |part: &[u8]| part.trim_ascii() == b"application/openmetrics-text";
                    let mut types = self.header.strip_prefix(b"accept:").unwrap_or_default().split(|byte| matches!(byte, b',' | b';'));
                    self.accepts_openmetrics |= types.any(is_media_type);
                    self.header.clear();
                }
                byte => {
                    self.is_blank &= *byte == b'\r';
                    if !self.has_line {
                        self.line.push(*byte);
                    } else if self.header.len() < HEADER {
                        self.header.push(byte.to_ascii_lowercase());
                    }
                }
            }
        }
        if self.size == HEAD { Progress::TooLong } else { Progress::Incomplete }
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

fn too_long() -> Phase {
    answer("431 Request Header Fields Too Large", "", &format!("{{\"error\":\"the head of a request has at most {HEAD} bytes\"}}"))
}

fn respond(head: &Head, sources: &Sources) -> Phase {
    const ALLOW: &str = "Allow: GET\r\n";
    let words: Vec<&[u8]> = head.line.trim_ascii_end().split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { return bad_request() };
    if !version.starts_with(b"HTTP/1.") {
        return bad_request();
    }
    let path = without_host(target).split(|byte| *byte == b'?').next().unwrap_or_default();
    let page = sources.pages.as_ref().and_then(|_| Page::at(path, head.accepts_openmetrics));
    match (page, method) {
        (Some((Page::Fixed(text), header)), b"GET") => writing("200 OK", header, text),
        (Some((Page::Prepared(page), header)), b"GET") => Phase::Waiting { page, header, asked: Instant::now() },
        (None, b"GET") if path == b"/healthy" => {
            let (ok, health) = sources.board.health_json(Instant::now());
            answer(if ok { "200 OK" } else { "503 Service Unavailable" }, "", &health.to_string())
        }
        (page, method) if page.is_some() || path == b"/healthy" => {
            answer("405 Method Not Allowed", ALLOW, if method == b"HEAD" { "" } else { r#"{"error":"only GET is allowed"}"# })
        }
        (_, b"HEAD") => answer("404 Not Found", "", ""),
        _ if sources.pages.is_some() => answer("404 Not Found", "", r#"{"error":"only /, /status.json, /metrics and /healthy exist"}"#),
        _ => answer("404 Not Found", "", r#"{"error":"only /healthy exists"}"#),
    }
}

/// `http://host:port/path` -> `/path`: what a client sends to a proxy, each server must understand, too.
fn without_host(target: &[u8]) -> &[u8] {
    const SCHEME: &[u8] = b"http://";
    match target.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            &rest[end..]
        }
        _ => target,
    }
}

fn bad_request() -> Phase {
    answer("400 Bad Request", "", r#"{"error":"not an HTTP/1 request"}"#)
}

/// An answer in JSON.
fn answer(status: &str, header: &str, body: &str) -> Phase {
    writing(status, &format!("Content-Type: application/json\r\n{header}"), body)
}

/// An answer with these headers, of which one is the type of its content.
fn writing(status: &str, header: &str, body: &str) -> Phase {
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n{body}");
    Phase::Writing { answer: answer.into_bytes(), sent: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Sources {
        Sources { board: Board::new("controller", "controller"), pages: None }
    }

    fn head(request: &str) -> Head {
        Head { line: format!("{request} HTTP/1.1\r").into_bytes(), ..Head::default() }
    }

    fn text(phase: Phase) -> String {
        let Phase::Writing { answer, sent: 0 } = phase else { panic!("no answer") };
        String::from_utf8(answer).unwrap()
    }

    /// What a request that arrives in pieces of `size` bytes leads to.
    fn ask(request: &[u8], size: usize, sources: &Sources) -> Option<String> {
        let mut head = Head::default();
        let progress = request.chunks(size).map(|piece| head.add(piece)).find(|progress| *progress != Progress::Incomplete);
        let answer = match progress? {
            Progress::Complete => respond(&head, sources),
            _ => too_long(),
        };
        Some(text(answer))
    }

    #[test]
    fn only_get_healthy_is_answered_with_the_health() {
        let healthy = sources();
        let with_cookies = |size| format!("GET /healthy HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(size - 35));
        let with_query = |size| format!("GET /healthy?{} HTTP/1.1\r\n\r\n", "x".repeat(size - 26));
        assert_eq!((with_cookies(100).len(), with_query(100).len()), (100, 100));
        let table = [
            ("GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "200 OK"),
            ("GET /healthy?verbose HTTP/1.0\n\n".to_owned(), "200 OK"),
            ("GET http://station:9100/healthy HTTP/1.1\r\nHost: station:9100\r\n\r\n".to_owned(), "200 OK"),
            ("GET HTTP://[::1]:9100/healthy?x=/y HTTP/1.1\r\n\r\n".to_owned(), "200 OK"),
            ("GET /healthy HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc".to_owned(), "200 OK"),
            ("GET /healthy HTTP/1.1\r\n\r\nPOST /healthy HTTP/1.1\r\n\r\n".to_owned(), "200 OK"),
            (with_cookies(1200), "200 OK"),
            (with_cookies(HEAD), "200 OK"),
            (with_cookies(HEAD + 1), "431 Request Header Fields Too Large"),
            (with_query(HEAD), "200 OK"),
            (with_query(HEAD + 1), "431 Request Header Fields Too Large"),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
            ("GET http://station HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
            ("GET http://station?/healthy HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
            ("GET /healthyx HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
            ("POST /healthy HTTP/1.1\r\n\r\n".to_owned(), "405 Method Not Allowed"),
            ("HEAD /healthy HTTP/1.1\r\n\r\n".to_owned(), "405 Method Not Allowed"),
            ("POST /x HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
            ("OPTIONS * HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
            ("GET /healthy HTTP/2\r\n\r\n".to_owned(), "400 Bad Request"),
            ("GET /healthy\r\n\r\n".to_owned(), "400 Bad Request"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400 Bad Request"),
            ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "400 Bad Request"),
            ("\r\n\r\n".to_owned(), "400 Bad Request"),
        ];
        for (request, expected) in &table {
            for size in [1, 7, CHUNK, 2 * HEAD] {
                let answer = ask(request.as_bytes(), size, &healthy).unwrap();
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let shown = &request[..request.len().min(80)];
                assert_eq!(head.lines().next(), Some(format!("HTTP/1.1 {expected}").as_str()), "{shown:?} in pieces of {size}");
                assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())) && head.ends_with("Connection: close"));
                assert_eq!(*expected == "200 OK", body.contains("\"components\""), "{shown:?}");
            }
        }
        for incomplete in ["GET /healthy HTTP/1.1\r\nHost: x\r\n".to_owned(), with_cookies(HEAD)[..HEAD - 1].to_owned()] {
            assert_eq!(ask(incomplete.as_bytes(), 1, &healthy), None);
        }
        healthy.board.require("database");
        assert!(text(respond(&head("GET /healthy"), &healthy)).starts_with("HTTP/1.1 503 "));
    }

    #[test]
    fn pages_have_their_own_type_and_only_get() {
        let sources = Sources { pages: Some(Pages::new(|| ()).unwrap()), ..sources() };
        let answer = |request: &str| text(respond(&head(request), &sources));
        let page = answer("GET /");
        assert!(
            page.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Security-Policy: default-src 'none'; ")
        );
        for (request, status) in
            [("HEAD /metrics", 405), ("POST /", 405), ("GET /metrics/", 404), ("GET /healthy", 200), ("PUT /healthy", 405)]
        {
            assert!(answer(request).starts_with(&format!("HTTP/1.1 {status} ")), "{request}");
        }
        for (request, expected) in [("GET /metrics?x=/", Prepared::Metrics), ("GET http://station/status.json", Prepared::Status)] {
            let Phase::Waiting { page, .. } = respond(&head(request), &sources) else { panic!("{request}") };
            assert_eq!(page, expected);
        }
    }

    /// A client that has sent a request, and a server that has taken it.
    fn asking(sources: Sources, request: &str) -> (Server, TcpStream) {
        let (mut server, port) = listen(0, sources).unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        while !matches!(server.connections.first(), Some(Exchange { phase: Phase::Waiting { .. }, .. })) {
            server.serve();
            std::thread::yield_now();
        }
        (server, client)
    }

    #[test]
    fn a_text_is_served_when_the_main_loop_has_prepared_it() {
        let pages = Pages::new(|| ()).unwrap();
        let (mut server, mut client) = asking(
            Sources { pages: Some(pages.clone()), ..sources() },
            "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n",
        );
        assert_eq!(pages.wanted(), [Prepared::OpenMetrics]);
        // The listener, and the descriptor that tells that a text was prepared.
        let ready = |server: &Server| {
            let mut fds = Vec::new();
            server.descriptors(&mut fds);
            (fds.len(), rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap())
        };
        assert_eq!(ready(&server), (2, 0));
        pages.put(Prepared::OpenMetrics, "up 1\n".to_owned(), Instant::now());
        assert_eq!(ready(&server), (2, 1));
        server.serve();
        assert_eq!(ready(&server), (2, 0));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
        assert!(answer.ends_with("Content-Length: 5\r\nCache-Control: no-store\r\nConnection: close\r\n\r\nup 1\n"), "{answer}");
    }

    #[test]
    fn who_waits_in_vain_is_told_so() {
        let pages = Pages::new(|| ()).unwrap();
        let (mut server, mut client) = asking(Sources { pages: Some(pages), ..sources() }, "GET /status.json HTTP/1.1\r\n\r\n");
        let Phase::Waiting { asked, .. } = &mut server.connections[0].phase else { panic!("it does not wait") };
        *asked -= PATIENCE;
        assert!(server.deadline().is_some_and(|deadline| deadline <= Instant::now()));
        server.serve();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with(r#"{"error":"the main loop does not answer"}"#), "{answer}");
    }

    #[test]
    fn of_a_head_only_the_request_line_is_kept() {
        let mut head = Head::default();
        assert_eq!(head.add(b"GET /healthy HTTP/1.1\r\n"), Progress::Incomplete);
        for _ in 0..1000 {
            assert_eq!(head.add(b"Cookie: x\r\n"), Progress::Incomplete);
        }
        assert_eq!(head.line, b"GET /healthy HTTP/1.1\r");
        let _ = head.add("x".repeat(4 * HEADER).as_bytes());
        assert_eq!((head.line.len(), head.header.len()), (22, HEADER));
    }

    #[test]
    fn metrics_are_openmetrics_if_the_client_accepts_them() {
        for (accept, expected) in [
            ("Accept: */*", Prepared::Metrics),
            ("X: application/openmetrics-text", Prepared::Metrics),
            ("Accept: application/openmetrics-texts", Prepared::Metrics),
            ("Accept: text/plain, application/openmetrics-text", Prepared::OpenMetrics),
            ("ACCEPT:application/OpenMetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Prepared::OpenMetrics),
        ] {
            let mut head = Head::default();
            assert_eq!(head.add(format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\nX: y\r\n\r\n").as_bytes()), Progress::Complete);
            let Phase::Waiting { page, .. } = respond(&head, &Sources { pages: Some(Pages::new(|| ()).unwrap()), ..sources() }) else {
                panic!("{accept}");
            };
            assert_eq!(page, expected, "{accept}");
        }
    }

    #[test]
    fn a_port_that_is_in_use_is_tried_again_every_thirty_seconds() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut endpoint = Endpoint::new(port, sources());
        let start = Instant::now();
        assert!(endpoint.deadline().is_some_and(|first| first <= start));
        endpoint.serve(start);
        assert_eq!(endpoint.deadline(), Some(start + RETRY));
        endpoint.serve(start + RETRY);
        drop(taken);
        let next = start + 2 * RETRY;
        endpoint.serve(next - Duration::from_millis(1));
        assert!(endpoint.server.is_none() && endpoint.deadline() == Some(next));
        endpoint.serve(next);
        // While the port is served and nobody asks, nothing is due.
        assert!(endpoint.server.is_some() && endpoint.deadline().is_none());
        let mut fds = Vec::new();
        endpoint.descriptors(&mut fds);
        assert_eq!(fds.len(), 1);
    }
}
