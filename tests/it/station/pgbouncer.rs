//! A PgBouncer before the PostgreSQL server of the station.

use super::postgres::{NAME, own, user};
use super::process::Ended;
use super::{eventually, free_port};
use ::postgres::{Config, NoTls};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// One PgBouncer in session mode; ends when dropped.
pub(crate) struct Pgbouncer {
    port: u16,
    _server: Ended,
}

impl Pgbouncer {
    /// Starts it in a directory of its own below that of the server, and waits until it takes connections.
    pub(super) fn start(postgres: &Path, postgres_port: u16) -> Pgbouncer {
        let (dir, port) = (postgres.join("pgbouncer"), free_port());
        fs::create_dir(&dir).unwrap();
        own(&dir);
        fs::write(dir.join("users"), format!("\"{NAME}\" \"{NAME}\"\n")).unwrap();
        let settings = format!(
            "[databases]\n* = host={} port={postgres_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = users\npool_mode = session\n",
            postgres.display()
        );
        fs::write(dir.join("ini"), settings).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let mut command = Command::new("/usr/sbin/pgbouncer");
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = user();
            command.uid(uid).gid(gid);
        }
        command.arg("ini").current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut server = Ended::spawn(command);
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user(NAME).password(NAME).dbname(NAME).connect_timeout(Duration::from_secs(5));
        eventually(Duration::from_secs(20), "PgBouncer takes connections", || {
            if let Some(code) = server.exit_code() {
                panic!("PgBouncer ended with {code}:\n{}", fs::read_to_string(dir.join("log")).unwrap_or_default());
            }
            config.connect(NoTls).ok()
        });
        Pgbouncer { port, _server: server }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}
