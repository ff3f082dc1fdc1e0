//! The connection to PostgreSQL, and its time limits.
//!
//! The server limits each statement (`statement_timeout`). A server that does not answer at all is limited by a
//! [`Deadline`] for each call, which another thread must enforce: the main loop for the `database` thread of
//! [`crate::database::worker`], and a thread of its own in a command.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{Client, Config, Row, Statement};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, send, socket_with};

use crate::config::DatabaseSettings;
use crate::database::deadline::{Armed, Connector, Deadline, Peer};
use crate::database::statements::Raw;

/// Limit for connecting and logging in.
const CONNECT: Duration = Duration::from_secs(3);
/// Limit for the answer to a statement. The server's own limit is shorter, so that its error arrives in time.
const STATEMENT: Duration = Duration::from_secs(5);
/// Limit for disconnecting.
const DISCONNECT: Duration = Duration::from_secs(1);
/// Limit for connecting to ask whether a server answers, and for the answer.
const PING: Duration = Duration::from_millis(800);
/// Asks whether the server uses TLS. It answers with one byte, or reports that it cannot serve a client now.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// At most so many addresses of a host are tried.
const ADDRESSES: usize = 4;
/// So many descriptors must be free to connect: twice what it takes, as other threads open some meanwhile.
const DESCRIPTORS: usize = 14;

/// The limit for a lock is shorter than the one for a statement. So the error shows which of the two it was, and a row
/// that another client has locked does not look like a server that does not respond.
///
/// They are set after connecting, because PgBouncer refuses the start-up parameter `options`.
const LIMITS: &str = "SET statement_timeout = 4500; SET lock_timeout = 2000; SET idle_in_transaction_session_timeout = 30000";
/// The limit for a lock in [`LIMITS`].
const LOCK: Duration = Duration::from_millis(2000);

/// One connection.
pub struct Connection {
    client: Client,
    /// The prepared statement of [`Connection::snapshot`], which runs every second.
    pub(super) snapshot: Option<Statement>,
    /// Whether the rows of workers cannot be read, so that the statement leaves them out.
    pub(super) without_services: bool,
    /// Set when the rows cannot be read as text.
    pub(super) raw: Option<Raw>,
    /// Why calls cannot be ended at their deadline, if so.
    pub unlimited: Option<String>,
    /// Dropped after the client, whose end can block, too.
    disconnecting: Option<Armed>,
    attached: Attached,
}

/// Releases the duplicate of the socket when dropped.
struct Attached(Deadline);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.attach(None);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.disconnecting = Some(self.attached.0.arm(DISCONNECT));
    }
}

impl Connection {
    /// Connects, and sets the limits. Whoever calls it must enforce the deadline from another thread.
    ///
    /// # Errors
    /// The cause.
    pub fn connect(database: &DatabaseSettings, deadline: &Deadline) -> Result<Self, String> {
        let _armed = deadline.arm(CONNECT);
        let mut config = Config::new();
        config
            .port(database.port)
            .user(&database.user)
            .password(&database.password)
            .dbname(&database.name)
            .application_name("silvasonic-controller")
            .connect_timeout(CONNECT)
            .tcp_user_timeout(STATEMENT)
            .keepalives_idle(STATEMENT)
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(3);
        let peer = if database.host.starts_with('/') {
            config.host(&database.host);
            Peer::Unix(format!(".s.PGSQL.{}", database.port))
        } else {
            let addresses = addresses(&database.host, database.port)?;
            config.connect_timeout(CONNECT / addresses.len() as u32);
            for address in &addresses {
                config.hostaddr(*address);
            }
            Peer::Tcp(addresses, database.port)
        };
        let attached = Attached(deadline.clone());
        let (connector, failure) = Connector::new(deadline, peer);
        // At the last moment, as other threads open descriptors meanwhile.
        check_descriptors()?;
        let connected = config.connect(connector).and_then(|mut client| client.batch_execute(LIMITS).map(|()| client));
        let client = connected.map_err(|error| {
            let flaw = database.password_flaw().filter(|_| is_login_refused(&error));
            flaw.map_or_else(|| reason(&error), |flaw| format!("{}; {flaw}", reason(&error)))
        })?;
        let unlimited = failure.lock().unwrap_or_else(PoisonError::into_inner).take().map(|why| why.to_string());
        Ok(Self { client, snapshot: None, without_services: false, raw: None, unlimited, disconnecting: None, attached })
    }

    /// Makes sure that the server answers at all, with a socket of our own. Where a call to the library cannot be ended
    /// at its deadline, a server that accepts and does not answer would otherwise hold one thread after the other.
    ///
    /// # Errors
    /// The server does not answer, or cannot be reached.
    pub fn ping(database: &DatabaseSettings) -> Result<(), String> {
        let ask = |socket: &OwnedFd| {
            set_socket_timeout(socket, Timeout::Send, Some(PING))?;
            set_socket_timeout(socket, Timeout::Recv, Some(PING))?;
            send(socket, &SSL_REQUEST, SendFlags::NOSIGNAL)?;
            recv(socket, &mut [0; 1], RecvFlags::empty())
        };
        match connect_once(database)?.and_then(|socket| Ok(ask(&socket)?.0)) {
            Ok(1..) => Ok(()),
            Ok(0) => Err("the server closed the connection".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(format!("no answer within {} ms", PING.as_millis())),
            Err(error) => Err(format!("error connecting to server: {error}")),
        }
    }

    /// Connects for a command, which waits for the answer.
    ///
    /// # Errors
    /// The cause.
    pub fn connect_for_command(database: &DatabaseSettings) -> Result<Self, String> {
        let deadline = Deadline::default();
        deadline.enforce_by_thread().map_err(|why| format!("cannot start a thread: {why}"))?;
        let result = Self::connect(database, &deadline);
        result.map_err(|why| if deadline.exceeded().is_some() { format!("no answer within {} s", CONNECT.as_secs()) } else { why })
    }

    /// Calls the client, within the limit for a statement.
    pub(super) fn call<T>(&mut self, call: impl FnOnce(&mut Client) -> Result<T, postgres::Error>) -> Result<T, postgres::Error> {
        let _armed = self.attached.0.arm(STATEMENT);
        call(&mut self.client)
    }

    /// Sets the limit for a lock, for all later statements; `None` = as at the beginning.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn limit_locks(&mut self, limit: Option<Duration>) -> Result<(), postgres::Error> {
        let limit = limit.unwrap_or(LOCK).as_millis();
        self.call(|client| client.batch_execute(&format!("SET lock_timeout = {limit}")))
    }

    /// Runs statements in one transaction. If one of them fails, none has an effect.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn transaction<T>(
        &mut self,
        statements: impl FnOnce(&mut Transaction<'_>) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        let deadline = &self.attached.0;
        let armed = deadline.arm(STATEMENT);
        let mut transaction = Transaction { inner: self.client.transaction()?, deadline };
        drop(armed);
        let result = statements(&mut transaction);
        let _armed = deadline.arm(STATEMENT);
        // Dropped without a commit, it is rolled back, which waits for an answer, too.
        result.and_then(|value| transaction.inner.commit().map(|()| value))
    }
}

/// A transaction whose statements have limits.
pub struct Transaction<'a> {
    inner: postgres::Transaction<'a>,
    deadline: &'a Deadline,
}

impl Transaction<'_> {
    /// Executes a statement. Returns the number of rows that it changed.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn execute(&mut self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, postgres::Error> {
        let _armed = self.deadline.arm(STATEMENT);
        self.inner.execute(statement, parameters)
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn query(&mut self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, postgres::Error> {
        let _armed = self.deadline.arm(STATEMENT);
        self.inner.query(statement, parameters)
    }

    /// Executes statements without parameters.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn batch_execute(&mut self, statements: &str) -> Result<(), postgres::Error> {
        let _armed = self.deadline.arm(STATEMENT);
        self.inner.batch_execute(statements)
    }
}

/// Connects without the library: to the socket, or to the first address that accepts. The outer error: the name of the
/// host cannot be resolved.
fn connect_once(database: &DatabaseSettings) -> Result<io::Result<OwnedFd>, String> {
    if database.host.starts_with('/') {
        let connect = || {
            let address = SocketAddrUnix::new(format!("{}/.s.PGSQL.{}", database.host, database.port))?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // It limits connecting, too, which waits while the backlog of the server is full.
            set_socket_timeout(&socket, Timeout::Send, Some(PING))?;
            rustix::net::connect(&socket, &address)?;
            Ok::<_, Errno>(socket)
        };
        return Ok(connect().map_err(Into::into));
    }
    let addresses = addresses(&database.host, database.port)?;
    let limit = PING / addresses.len() as u32;
    let mut result = Err(Errno::ADDRNOTAVAIL.into());
    for address in addresses {
        result = TcpStream::connect_timeout(&SocketAddr::new(address, database.port), limit).map(Into::into);
        if result.is_ok() {
            break;
        }
    }
    Ok(result)
}

/// Makes sure that as many descriptors are free as a connection needs. The library panics when it cannot create its event
/// loop, and a panic ends the program.
fn check_descriptors() -> Result<(), String> {
    let open: Result<Vec<OwnedFd>, _> = (0..DESCRIPTORS).map(|_| eventfd(0, EventfdFlags::CLOEXEC)).collect();
    open.map(drop).map_err(|why| format!("{DESCRIPTORS} free file descriptors are needed to connect: {why}"))
}

/// The addresses of a host. The library would resolve the name on a thread of its own, without which it panics.
fn addresses(host: &str, port: u16) -> Result<Vec<IpAddr>, String> {
    let found = (host, port).to_socket_addrs().map_err(|why| format!("cannot resolve {host:?}: {why}"))?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|address| address.ip()) {
        if addresses.len() < ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(format!("cannot resolve {host:?}: it has no address")) } else { Ok(addresses) }
}

/// Whether the server, or a PgBouncer before it, refused user or password.
fn is_login_refused(error: &postgres::Error) -> bool {
    let code = error.code().map_or("", SqlState::code);
    code.starts_with("28") || code == SqlState::PROTOCOL_VIOLATION.code()
}

/// The error with all its causes on one line. An error of the server is reduced to its message and its code.
#[must_use]
pub fn reason(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("PostgreSQL reports: {} ({})", db.message(), db.code().code()),
        None => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            text
        }
    }
}
