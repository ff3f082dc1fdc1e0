//! The connection to PostgreSQL, and its deadlines.
//!
//! Every statement has a deadline on the side of the server (`statement_timeout`). A frozen server does not answer at
//! all, and the client then blocks without limit: only the `database` thread of [`crate::database::worker`] and the
//! commands, which end with their process, may use a connection.

use std::time::Duration;

use postgres::{Client, Config, NoTls, Statement, Transaction};

use crate::config::DatabaseSettings;

const CONNECT: Duration = Duration::from_secs(3);

/// The limit for a lock is shorter than the one for a statement. So the error shows which of the two it was, and a row
/// that another client has locked does not look like a server that does not respond.
const LIMITS: &str = "-c statement_timeout=5000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=30000";

/// One connection.
pub struct Connection {
    pub(super) client: Client,
    /// The prepared statement of [`Connection::snapshot`], which runs every second.
    pub(super) snapshot: Option<Statement>,
}

impl Connection {
    /// Connects, and sets the deadlines.
    ///
    /// # Errors
    /// The cause.
    pub fn connect(database: &DatabaseSettings) -> Result<Self, postgres::Error> {
        let mut config = Config::new();
        config
            .host(&database.host)
            .port(database.port)
            .user(&database.user)
            .password(&database.password)
            .dbname(&database.name)
            .application_name("silvasonic-controller")
            .connect_timeout(CONNECT)
            .tcp_user_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(30))
            .options(LIMITS);
        Ok(Self { client: config.connect(NoTls)?, snapshot: None })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn transaction(&mut self) -> Result<Transaction<'_>, postgres::Error> {
        self.client.transaction()
    }
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
