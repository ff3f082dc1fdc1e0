//! The connection to PostgreSQL, and its time limits.
//!
//! The server limits each statement (`statement_timeout`). A server that does not answer at all is limited by a
//! [`Deadline`] for each call, which another thread must enforce: the main loop for the `database` thread of
//! [`crate::database::worker`], and a thread of its own in a command.

use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::Duration;

use postgres::types::ToSql;
use postgres::{Client, Config, Statement};
use rustix::event::{EventfdFlags, eventfd};

use crate::config::DatabaseSettings;
use crate::database::deadline::{Armed, Connector, Deadline, Peer};
use crate::database::statements::Raw;

/// Limit for connecting and logging in.
const CONNECT: Duration = Duration::from_secs(3);
/// Limit for the answer to a statement. The server's own limit is shorter, so that its error arrives in time.
const STATEMENT: Duration = Duration::from_secs(5);
/// Limit for disconnecting.
const DISCONNECT: Duration = Duration::from_secs(1);
/// At most so many addresses of a host are tried.
const ADDRESSES: usize = 4;
/// So many descriptors must be free to connect: twice what it takes, as other threads open some meanwhile.
const DESCRIPTORS: usize = 14;

/// The limit for a lock is shorter than the one for a statement. So the error shows which of the two it was, and a row
/// that another client has locked does not look like a server that does not respond.
const LIMITS: &str = "-c statement_timeout=4500 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=30000";

/// One connection.
pub struct Connection {
    client: Client,
    /// The prepared statement of [`Connection::snapshot`], which runs every second.
    pub(super) snapshot: Option<Statement>,
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
            .keepalives_retries(3)
            .options(LIMITS);
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
        let client = config.connect(connector).map_err(|error| reason(&error))?;
        let unlimited = failure.lock().unwrap_or_else(PoisonError::into_inner).take().map(|why| why.to_string());
        Ok(Self { client, snapshot: None, raw: None, unlimited, disconnecting: None, attached })
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
        let limit = limit.map_or_else(|| "DEFAULT".to_owned(), |limit| limit.as_millis().to_string());
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

    /// Executes statements without parameters.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn batch_execute(&mut self, statements: &str) -> Result<(), postgres::Error> {
        let _armed = self.deadline.arm(STATEMENT);
        self.inner.batch_execute(statements)
    }
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
