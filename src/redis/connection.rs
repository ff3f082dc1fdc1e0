//! A connection to Redis with a socket of its own.
//!
//! The crate `redis` parses URLs, packs commands and converts values. Its connection is not used, because it hides the
//! socket, whose state shows before a command is sent whether the server has closed it; its reads have no deadline for a
//! whole reply; and the size of a reply is not limited ([`crate::redis::reply`]).

use std::io::{Error, ErrorKind, Read, Result};
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use redis::io::tcp::socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use redis::{Cmd, ConnectionAddr, ConnectionInfo, ConnectionLike, RedisError, RedisResult, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::redis::reply::Replies;
use crate::redis_url;
use crate::text::shown;

/// For connecting to each address of the server.
const CONNECT: Duration = Duration::from_secs(2);
/// For all replies to what was sent at once.
pub const REPLY: Duration = Duration::from_secs(2);
/// A peer that vanished without closing the connection is given up after 60 s + 3 * 10 s.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// So many probes without an answer end the connection.
const PROBES: u32 = 3;

/// One connection. After an error that is not an answer of the server it cannot be used any more.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    replies: Replies,
    /// Whether nothing was read since something was sent.
    has_asked: bool,
    database: i64,
}

/// Reads a URL.
///
/// # Errors
/// It is not a URL of Redis.
pub fn address(url: &str) -> RedisResult<ConnectionInfo> {
    redis_url::parse(url).ok_or_else(|| (redis::ErrorKind::InvalidClientConfig, "the URL is malformed").into())
}

impl Connection {
    /// Connects and logs in. A reply may take `limit` bytes of memory.
    ///
    /// # Errors
    /// Why Redis is unavailable or refuses the login.
    pub fn open(address: &ConnectionInfo, limit: usize) -> RedisResult<Self> {
        let settings = address.redis_settings();
        let socket = connect(address.addr())?;
        socket.set_read_timeout(Some(REPLY))?;
        let mut connection = Self { socket, replies: Replies::new(limit), has_asked: false, database: settings.db() };
        if let Some(password) = settings.password() {
            connection.login(settings.username(), password)?;
        }
        if settings.db() != 0 {
            connection.run(redis::cmd("SELECT").arg(settings.db()))?;
        }
        Ok(connection)
    }

    fn login(&mut self, user: Option<&str>, password: &str) -> RedisResult<()> {
        match self.run(redis::cmd("AUTH").arg(user).arg(password)) {
            // Redis before version 6 has no users.
            Err(error) if user.is_some() && error.to_string().contains("wrong number of arguments") => {
                self.run(redis::cmd("AUTH").arg(password))
            }
            result => result,
        }
    }

    fn run(&mut self, command: &Cmd) -> RedisResult<()> {
        self.req_command(command)?.extract_error().map(drop)
    }

    /// Whether the server has neither closed the connection nor sent anything. Does not wait.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.has_read_all() && matches!(wait(&self.socket, PollFlags::IN | PollFlags::RDHUP, Duration::ZERO), Ok(false))
    }

    /// Whether nothing was read ahead.
    #[must_use]
    pub fn has_read_all(&self) -> bool {
        self.replies.is_empty()
    }

    /// Sends packed commands.
    ///
    /// # Errors
    /// The connection is broken, or the server does not read in time.
    pub fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<()> {
        self.has_asked = true;
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_until(&self.socket, PollFlags::OUT, deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends packed commands if that is possible without waiting. If not, the connection cannot be used any more.
    #[must_use]
    pub fn send_now(&self, bytes: &[u8]) -> bool {
        send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Ok(bytes.len())
    }

    /// Whether so many lines of replies have arrived. Does not wait.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn has_lines(&mut self, count: usize) -> Result<bool> {
        let socket = &self.socket;
        let read = self.replies.read_ahead(&mut |buffer| match recv(socket, buffer, RecvFlags::DONTWAIT) {
            Ok((_, length)) => Ok(length),
            Err(error) => Err(error.into()),
        });
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            read => Ok(read? >= count),
        }
    }

    /// The next reply, if all of it was read ahead.
    ///
    /// # Errors
    /// It was not, or it is not valid. Then the connection cannot be used any more.
    pub fn reply_now(&mut self) -> Result<Value> {
        self.replies.next(&mut |_| Err(ErrorKind::WouldBlock.into()))
    }

    /// Waits for the next reply or message; without a deadline, for any time.
    ///
    /// # Errors
    /// The connection is broken, the deadline has passed, or the reply is not valid.
    pub fn reply(&mut self, deadline: Option<Instant>) -> Result<Value> {
        let mut socket = &self.socket;
        let has_asked = &mut self.has_asked;
        self.replies.next(&mut |buffer| {
            loop {
                // Most replies come in one piece, for which the time limit of the socket is enough.
                if let Some(deadline) = deadline.filter(|_| !std::mem::take(has_asked)) {
                    wait_until(socket, PollFlags::IN, deadline)?;
                }
                match socket.read(buffer) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                    result => return result,
                }
            }
        })
    }
}

/// For [`Cmd::query`].
impl ConnectionLike for Connection {
    fn req_packed_command(&mut self, bytes: &[u8]) -> RedisResult<Value> {
        let deadline = Instant::now() + REPLY;
        self.send(bytes, deadline)?;
        Ok(self.reply(Some(deadline))?)
    }

    fn req_packed_commands(&mut self, bytes: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let deadline = Instant::now() + REPLY;
        self.send(bytes, deadline)?;
        let replies: Result<Vec<Value>> = (0..offset + count).map(|_| self.reply(Some(deadline))).collect();
        Ok(replies?.split_off(offset))
    }

    fn get_db(&self) -> i64 {
        self.database
    }

    fn check_connection(&mut self) -> bool {
        self.run(&redis::cmd("PING")).is_ok()
    }

    fn is_open(&self) -> bool {
        self.is_idle()
    }
}

/// A connection that receives the messages of one channel.
pub struct Subscription {
    connection: Connection,
}

impl Subscription {
    /// Connects and subscribes. A longer message than `limit` is received as an empty one.
    ///
    /// # Errors
    /// Redis is unavailable or refuses the subscription.
    pub fn open(address: &ConnectionInfo, channel: &str, limit: usize) -> RedisResult<Self> {
        let mut connection = Connection::open(address, limit)?;
        match connection.req_command(redis::cmd("SUBSCRIBE").arg(channel))?.extract_error()? {
            Value::Array(reply) if is_text(reply.first(), b"subscribe") => {
                // A message may come at any time.
                connection.socket.set_read_timeout(None)?;
                Ok(Self { connection })
            }
            _ => Err(Error::new(ErrorKind::InvalidData, "the server did not confirm the subscription").into()),
        }
    }

    /// Waits for the next message. TCP keep-alive probes detect a peer that vanished.
    ///
    /// # Errors
    /// The connection is broken, or the server has ended the subscription or sent an error.
    pub fn receive(&mut self) -> RedisResult<Vec<u8>> {
        match self.connection.reply(None)?.extract_error()? {
            Value::Array(mut reply) if reply.len() == 3 && is_text(reply.first(), b"message") => match reply.pop() {
                Some(Value::BulkString(payload)) => Ok(payload),
                _ => Ok(Vec::new()),
            },
            _ => Err(Error::new(ErrorKind::InvalidData, "the server ended the subscription").into()),
        }
    }
}

fn is_text(value: Option<&Value>, text: &[u8]) -> bool {
    matches!(value, Some(Value::BulkString(found)) if found == text)
}

fn connect(address: &ConnectionAddr) -> Result<Socket> {
    let open = |domain, address: &SockAddr| {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.connect_timeout(address, CONNECT)?;
        Ok(socket)
    };
    match address {
        ConnectionAddr::Tcp(host, port) => {
            let mut last = Error::new(ErrorKind::NotFound, "the host name has no address");
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match open(Domain::for_address(address), &address.into()) {
                    Ok(socket) => {
                        let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
                        socket.set_tcp_keepalive(&keepalive)?;
                        return Ok(socket);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        ConnectionAddr::Unix(path) => open(Domain::UNIX, &SockAddr::unix(path)?),
        _ => Err(Error::new(ErrorKind::Unsupported, "TLS is not supported")),
    }
}

fn wait_until(socket: &Socket, events: PollFlags, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A server that sends byte by byte must not delay the end.
    if left.is_zero() || !wait(socket, events, left)? { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
}

/// Waits until the socket has one of the events, is closed or broken; `false` if the time is over.
fn wait(socket: &Socket, events: PollFlags, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(socket, events)], left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Why a connection failed, in one line.
#[must_use]
pub fn describe(error: &RedisError) -> String {
    match error.code() {
        _ if error.is_timeout() => "no answer in time".to_owned(),
        // as the server sent it
        Some(code) => shown(&format!("{code} {}", error.detail().unwrap_or_default())).to_string(),
        None => shown(&error.to_string()).to_string(),
    }
}
