//! A PostgreSQL server of its own: fresh cluster, socket and port; can be absent, stopped or hung.

use super::pgbouncer::Pgbouncer;
use super::process::{self, Ended};
use super::{eventually, free_port, image};
use ::postgres::types::{FromSqlOwned, ToSql};
use ::postgres::{Client, Config, NoTls, Row};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Quick, as nothing here has to survive a power cut.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
fsync = off
synchronous_commit = off
full_page_writes = off
shared_buffers = 8MB
max_connections = 40
logging_collector = off
timezone = 'UTC'
";

/// Name of superuser, its password and the database.
pub(crate) const NAME: &str = "silvasonic";

/// One server. Stopping it keeps its data; starting it again keeps its port.
pub(crate) struct Postgres {
    dir: PathBuf,
    port: u16,
    server: Option<Ended>,
}

impl Postgres {
    pub(super) fn new(station: &Path) -> Postgres {
        Postgres { dir: station.join("postgres"), port: free_port(), server: None }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its Unix socket, which PostgreSQL's clients take as a host.
    pub(crate) fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// Starts the server and waits until it takes connections. The first start makes the cluster.
    pub(crate) fn start(&mut self) {
        assert!(self.server.is_none(), "PostgreSQL runs already");
        let data = self.dir.join("data");
        if !data.exists() {
            fs::create_dir_all(&self.dir).unwrap();
            own(&self.dir);
            copy_cluster(&template(&self.dir), &data);
            // In its file, so that a test can set them otherwise.
            let conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
            fs::write(data.join("postgresql.conf"), conf + SETTINGS).unwrap();
        }
        let mut command = program("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(&self.dir).arg("-p").arg(self.port.to_string());
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        command.current_dir(&data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.server = Some(Ended::spawn(command));
        eventually(Duration::from_secs(20), "PostgreSQL takes connections", || {
            if let Some(code) = self.server.as_mut().and_then(Ended::exit_code) {
                panic!("PostgreSQL ended with {code}:\n{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
            }
            self.config().connect(NoTls).ok()
        });
    }

    /// Starts a PgBouncer before it.
    pub(crate) fn pgbouncer(&self) -> Pgbouncer {
        Pgbouncer::start(&self.dir, self.port)
    }

    /// Asks for passwords from now on; that of the only user is its name.
    pub(crate) fn ask_for_passwords(&self) {
        self.exec(&format!("ALTER ROLE {NAME} PASSWORD '{NAME}'"));
        fs::write(self.dir.join("data/pg_hba.conf"), "local all all scram-sha-256\nhost all all all scram-sha-256\n").unwrap();
        self.exec("SELECT pg_reload_conf()");
        let mut without = self.config();
        eventually(Duration::from_secs(10), "passwords are asked for", || without.password("").connect(NoTls).err());
    }

    /// Lets clients that know the password connect at this address, too. The server is started again.
    pub(crate) fn listen_on(&mut self, address: &str) {
        self.exec(&format!("ALTER ROLE {NAME} PASSWORD '{NAME}'"));
        self.exec(&format!("ALTER SYSTEM SET listen_addresses = '127.0.0.1, {address}'"));
        fs::write(self.dir.join("data/pg_hba.conf"), "local all all trust\nhost all all all scram-sha-256\n").unwrap();
        self.stop();
        self.start();
    }

    /// A fast shutdown: clients are disconnected.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            self.resume();
            server.signal(Signal::INT);
            server.wait(Duration::from_secs(20));
        }
    }

    /// Freezes the server with all its connections: packets are taken, nothing is ever answered.
    pub(crate) fn stop_hung(&self) {
        process::signal_below(&self.dir, "postgres", Signal::STOP);
    }

    /// Ends [`Postgres::stop_hung`].
    pub(crate) fn resume(&self) {
        process::signal_below(&self.dir, "postgres", Signal::CONT);
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.dir).port(self.port).user(NAME).password(NAME).dbname(NAME).connect_timeout(Duration::from_secs(5));
        config
    }

    /// A new connection over the Unix socket.
    pub(crate) fn client(&self) -> Client {
        self.config().connect(NoTls).unwrap_or_else(|e| panic!("PostgreSQL of the station: {e}"))
    }

    /// Runs statements without parameters.
    pub(crate) fn exec(&self, sql: &str) {
        self.client().batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// The rows of a query.
    pub(crate) fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.client().query(sql, params).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// The only column of the first row, if there is a row and it is not null; None also while the table does not exist.
    pub(crate) fn value<T: FromSqlOwned>(&self, sql: &str) -> Option<T> {
        match self.client().query(sql, &[]) {
            Ok(rows) => rows.first().and_then(|row| row.get(0)),
            Err(e) if e.code() == Some(&::postgres::error::SqlState::UNDEFINED_TABLE) => None,
            Err(e) => panic!("{sql}: {e}"),
        }
    }
}

/// A PostgreSQL program, to be run as the user `postgres` when we are root (the server refuses root).
fn program(name: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(bin_dir().join(name));
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = user();
        command.uid(uid).gid(gid);
    }
    command.env("LC_ALL", "C.UTF-8").env_remove("PGDATA").env_remove("PGPORT").env_remove("PGHOST");
    command
}

/// Debian keeps the server's programs out of PATH, a directory for each version; the newest one serves.
fn bin_dir() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is missing: run tests/setup");
    let newest = versions
        .filter_map(|entry| {
            let path = entry.ok()?.path().join("bin");
            let version: u32 = path.parent()?.file_name()?.to_str()?.parse().ok()?;
            path.join("postgres").exists().then_some((version, path))
        })
        .max();
    newest.expect("PostgreSQL is missing: run tests/setup").1
}

pub(super) fn user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    ids("postgres").or_else(|| ids("nobody")).expect("a user postgres")
}

pub(super) fn own(path: &Path) {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = user();
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// An initialised cluster with our database, made once and kept in the target directory: `initdb` takes longer than all else.
fn template(scratch: &Path) -> PathBuf {
    let version = bin_dir().parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let kept = image::target_dir().join("tmp").join(format!("postgres-{version}"));
    let owner = if rustix::process::geteuid().is_root() { user().0 } else { rustix::process::geteuid().as_raw() };
    if fs::metadata(&kept).is_ok_and(|meta| meta.uid() == owner) {
        return kept;
    }
    // made where the user postgres may write; only the finished cluster gets the name that others look for
    let fresh = scratch.join("template");
    let mut initdb = program("initdb");
    initdb.args(["-U", NAME, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--wal-segsize=1", "-D"]).arg(&fresh);
    let made = initdb.current_dir(scratch).output().expect("initdb");
    assert!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
    let mut single = program("postgres");
    single.args(["--single", "-F", "-D"]).arg(&fresh).arg("template1").current_dir(scratch);
    let mut child = single.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres --single");
    child.stdin.take().unwrap().write_all(format!("CREATE DATABASE {NAME};\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "CREATE DATABASE failed");

    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    let aside = kept.with_extension(format!("new-{}-{:?}", std::process::id(), std::thread::current().id()));
    copy_cluster(&fresh, &aside);
    if fs::rename(&aside, &kept).is_err() {
        fs::remove_dir_all(&aside).unwrap(); // somebody else was first, or a cluster of another owner is in the way
    }
    fresh
}

fn copy_cluster(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(copied.success(), "{} could not be copied to {}", from.display(), to.display());
}
