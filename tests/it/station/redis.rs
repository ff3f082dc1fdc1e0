//! A Redis server of its own: TCP port and Unix socket, nothing saved; can be absent, stopped or paused.

use super::process::Ended;
use super::{eventually, free_port, random};
use ::redis::{Client, Connection};
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// One server. Starting it again keeps its port, not its data.
pub(crate) struct Redis {
    dir: PathBuf,
    /// Where clients find it.
    address: String,
    port: u16,
    server: Option<Ended>,
}

impl Redis {
    /// `shared` gives it an address that containers reach, too: theirs is another loopback interface than ours. It comes
    /// from the range that RFC 2544 keeps for tests, is not announced to any network, and goes with the station.
    pub(super) fn new(station: &Path, shared: bool) -> Redis {
        let dir = station.join("redis");
        fs::create_dir(&dir).unwrap();
        let mut address = "127.0.0.1".to_owned();
        if shared {
            let number = random();
            address = format!("198.18.{}.{}", number >> 8 & 255, number % 254 + 1);
            // for the guard, before it exists
            fs::write(dir.join("address"), format!("{address}/32\n")).unwrap();
            let added = Command::new("ip").args(["address", "add", &format!("{address}/32"), "dev", "lo"]).status().expect("ip");
            assert!(added.success(), "{address} could not be added to the loopback interface");
        }
        Redis { dir, address, port: free_port(), server: None }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where clients find it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// For `SILVASONIC_REDIS_URL`.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{}/0", self.address, self.port)
    }

    pub(crate) fn start(&mut self) {
        assert!(self.server.is_none(), "Redis runs already");
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", &self.address, "--protected-mode", "no", "--save", "", "--appendonly", "no"]);
        command.arg("--port").arg(self.port.to_string());
        command.arg("--dir").arg(&self.dir).arg("--unixsocket").arg(self.dir.join("redis.sock"));
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(Ended::spawn(command));
        eventually(Duration::from_secs(10), "Redis takes connections", || {
            if let Some(code) = self.server.as_mut().and_then(Ended::exit_code) {
                panic!("Redis ended with {code}:\n{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
            }
            self.try_connection()
        });
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.signal(Signal::CONT);
            server.signal(Signal::TERM);
            server.wait(Duration::from_secs(10));
        }
    }

    /// Freezes it: connections stay open, nothing is answered.
    pub(crate) fn pause(&mut self) {
        self.server.as_mut().expect("Redis runs").signal(Signal::STOP);
    }

    pub(crate) fn resume(&mut self) {
        self.server.as_mut().expect("Redis runs").signal(Signal::CONT);
    }

    fn try_connection(&self) -> Option<Connection> {
        Client::open(self.url()).unwrap().get_connection_with_timeout(Duration::from_secs(2)).ok()
    }

    pub(crate) fn connection(&self) -> Connection {
        self.try_connection().expect("Redis of the station takes connections")
    }

    /// The text value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        ::redis::cmd("GET").arg(key).query(&mut self.connection()).unwrap()
    }

    /// Keeps and publishes a heartbeat, as the Recorder of this microphone does.
    pub(crate) fn recorder_heartbeat(&self, id: &str, heartbeat: &str) {
        let mut both = ::redis::pipe();
        both.cmd("SET").arg(format!("silvasonic:status:{id}")).arg(heartbeat).arg("EX").arg(30);
        both.cmd("PUBLISH").arg("silvasonic:status").arg(heartbeat);
        let _: () = both.query(&mut self.connection()).unwrap();
    }

    /// How often a command was called.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let text: String = ::redis::cmd("INFO").arg("commandstats").query(&mut self.connection()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Seconds that a key has left; -1 = for ever, -2 = no such key.
    pub(crate) fn ttl(&self, key: &str) -> i64 {
        ::redis::cmd("TTL").arg(key).query(&mut self.connection()).unwrap()
    }

    /// Publishes and returns how many clients received it.
    pub(crate) fn publish(&self, channel: &str, message: &str) -> u32 {
        ::redis::cmd("PUBLISH").arg(channel).arg(message).query(&mut self.connection()).unwrap()
    }

    /// How many clients listen to a channel.
    pub(crate) fn subscribers(&self, channel: &str) -> u32 {
        let (_, count): (String, u32) = ::redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).query(&mut self.connection()).unwrap();
        count
    }

    /// Subscribes to a channel; the messages from now on, until the server ends.
    pub(crate) fn listen(&self, name: &str) -> Receiver<String> {
        let mut connection = self.connection();
        let (sender, receiver) = channel();
        let (ready, subscribed) = channel();
        let name = name.to_owned();
        std::thread::spawn(move || {
            let mut messages = connection.as_pubsub();
            messages.subscribe(&name).unwrap();
            ready.send(()).unwrap();
            while let Ok(message) = messages.get_message() {
                let Ok(text) = message.get_payload() else { return };
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        subscribed.recv().expect("Redis confirms the subscription");
        receiver
    }

    /// Subscribes to a channel, or to a pattern, until it is dropped.
    pub(crate) fn subscribe(&self, name: &str) -> Subscriber {
        let mut connection = self.connection();
        let id = ::redis::cmd("CLIENT").arg("ID").query(&mut connection).unwrap();
        let (sender, lines) = channel();
        let (ready, subscribed) = channel();
        let name = name.to_owned();
        std::thread::spawn(move || {
            let mut messages = connection.as_pubsub();
            if name.contains('*') { messages.psubscribe(&name) } else { messages.subscribe(&name) }.unwrap();
            ready.send(()).unwrap();
            while let Some(text) = messages.get_message().ok().and_then(|message| message.get_payload().ok()) {
                let _ = sender.send(text);
            }
        });
        subscribed.recv().expect("Redis confirms the subscription");
        Subscriber { lines, id, control: self.connection() }
    }
}

/// A subscription that ends.
pub(crate) struct Subscriber {
    pub(crate) lines: Receiver<String>,
    id: i64,
    control: Connection,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let killed: ::redis::RedisResult<()> = ::redis::cmd("CLIENT").arg("KILL").arg("ID").arg(self.id).exec(&mut self.control);
        if !std::thread::panicking() {
            killed.expect("the subscription is ended");
        }
    }
}
