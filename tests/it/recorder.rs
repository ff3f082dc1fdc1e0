//! The Recorder as a program: its settings, heartbeat, log and end.

use super::station::process::{Ended, unread};
use super::station::{Station, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);
const ID: &str = "0869-0389-0001";

/// A Recorder and what it logs, one JSON object a line.
pub(crate) struct Recorder {
    pub(crate) process: Ended,
    log: Receiver<Value>,
}

impl Recorder {
    pub(crate) fn start(redis_url: &str) -> Recorder {
        Recorder::spawn(command(redis_url))
    }

    pub(crate) fn spawn(mut command: Command) -> Recorder {
        command.stdout(Stdio::piped());
        let mut process = Ended::spawn(command);
        let lines = BufReader::new(process.child().stdout.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(serde_json::from_str(&line).unwrap())));
        Recorder { process, log }
    }

    /// The next log line whose event contains `part`.
    pub(crate) fn logs(&self, part: &str) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left).unwrap_or_else(|_| panic!("{part:?} is not logged"));
            if line["event"].as_str().unwrap().contains(part) {
                return line;
            }
        }
    }

    pub(crate) fn port(&self) -> u16 {
        let line = self.logs("serving /healthy on port ");
        line["event"].as_str().unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// A line of `/proc/<id>/status`.
    pub(crate) fn status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    }

    /// SIGTERM; how long the end took. It must be a clean one.
    pub(crate) fn stop(&mut self) -> Duration {
        let start = Instant::now();
        self.process.signal(Signal::TERM);
        assert_eq!(self.process.wait(SOON), 0);
        start.elapsed()
    }
}

pub(crate) fn command(redis_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_silvasonic-recorder"));
    command.env_clear().stdin(Stdio::null()).current_dir("/").envs([
        ("SILVASONIC_RECORDER_DEVICE", "hw:1,0"),
        ("SILVASONIC_RECORDER_PROFILE_SLUG", "ultramic_384_evo"),
        ("SILVASONIC_RECORDER_CONFIG_JSON", r#"{"audio":{"sample_rate":384000}}"#),
        ("SILVASONIC_INSTANCE_ID", ID),
        ("SILVASONIC_REDIS_URL", redis_url),
        ("SILVASONIC_RECORDER_PORT", "0"),
    ]);
    command
}

fn run(change: impl FnOnce(&mut Command)) -> Output {
    let mut command = command("redis://127.0.0.1:1/0");
    change(&mut command);
    command.output().unwrap()
}

fn redis_only() -> Station {
    Station::plan().without_postgres().without_podman().up()
}

#[test]
fn wrong_settings_end_it_at_once_with_a_line_for_each() {
    let output = run(|command| {
        command.env_remove("SILVASONIC_INSTANCE_ID").env("SILVASONIC_RECORDER_DEVICE", "default");
        command.env("SILVASONIC_RECORDER_CONFIG_JSON", r#"{"audio":{"sample_rate":"fast","channels":99}}"#);
        command.env("SILVASONIC_REDIS_URL", "http://u:secret@x");
    });
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [
        "SILVASONIC_INSTANCE_ID: missing",
        "SILVASONIC_RECORDER_DEVICE: expected hw:N,M with two numbers, got \"default\"",
        "SILVASONIC_REDIS_URL: expected a Redis URL, got \"http://***@x\"",
        "SILVASONIC_RECORDER_CONFIG_JSON: audio.sample_rate: expected",
        "SILVASONIC_RECORDER_CONFIG_JSON: audio.channels: expected",
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line["event"].as_str().unwrap().starts_with(expected), "{line}");
        assert_eq!(line["level"], "error");
    }
}

#[test]
fn flags_are_answered_without_settings() {
    let table = [("--version", 0, "silvasonic-recorder "), ("--help", 0, "SILVASONIC_RECORDER_CONFIG_JSON"), ("--nonsense", 2, "")];
    for (flag, code, part) in table {
        let output = run(|command| {
            command.env_clear().arg(flag);
        });
        assert_eq!(output.status.code(), Some(code), "{flag}");
        assert!(String::from_utf8(output.stdout).unwrap().contains(part), "{flag}");
    }
}

#[test]
fn a_heartbeat_has_all_agreed_keys_and_no_others() {
    let station = redis_only();
    let published = station.redis.listen("silvasonic:status");
    let _recorder = Recorder::start(&station.redis.url());
    let heartbeat: Value = serde_json::from_str(&published.recv_timeout(SOON).unwrap()).unwrap();
    let table = [
        ("", "activity health instance_id meta service timestamp"),
        ("/health", "components live status"),
        ("/health/components", "recorder redis"),
        ("/health/components/recorder", "details healthy required"),
        ("/meta", "host_resources resources"),
        ("/meta/resources", "cpu_percent memory_mb num_threads"),
        (
            "/meta/host_resources",
            "cpu_count cpu_percent memory_percent memory_total_mb memory_used_mb storage_percent storage_total_gb storage_used_gb",
        ),
    ];
    for (place, keys) in table {
        let object = heartbeat.pointer(place).and_then(Value::as_object).unwrap_or_else(|| panic!("{place} in {heartbeat}"));
        assert_eq!(object.keys().map(String::as_str).collect::<Vec<_>>().join(" "), keys, "{place}");
    }
}

#[test]
fn its_heartbeat_reaches_redis_even_if_that_comes_later() {
    let mut station = Station::plan().without_postgres().without_podman().without_redis().up();
    let mut recorder = Recorder::start(&station.redis.url());
    let line = recorder.logs(&format!("Redis at {} unavailable: ", station.redis.url()));
    assert_eq!(line["level"], "warn");
    let timestamp = line["timestamp"].as_str().unwrap();
    assert!(timestamp.len() == 27 && timestamp.ends_with('Z') && timestamp.as_bytes()[10] == b'T', "{timestamp}");

    station.redis.start();
    let published = station.redis.listen("silvasonic:status");
    let key = format!("silvasonic:status:{ID}");
    let stored: Value = eventually(SOON, "a heartbeat", || station.redis.get(&key).map(|text| serde_json::from_str(&text).unwrap()));
    recorder.logs(&format!("Redis at {} available again after ", station.redis.url()));
    assert!((1..=30).contains(&station.redis.ttl(&key)));
    assert_eq!((&stored["service"], &stored["instance_id"]), (&json!("recorder"), &json!(ID)));
    assert_eq!((&stored["health"]["status"], &stored["activity"]), (&json!("ok"), &json!("idle")));
    assert!(stored["timestamp"].as_f64().unwrap() > 1.6e9);
    for (group, number) in [("resources", "memory_mb"), ("resources", "num_threads"), ("host_resources", "memory_total_mb")] {
        assert!(stored["meta"][group][number].as_f64().unwrap() > 0.0, "{group}.{number} in {stored}");
    }

    // the one at the end says that Redis is there
    recorder.process.signal(Signal::TERM);
    let last: Value = eventually(SOON, "the last heartbeat", || {
        published
            .try_iter()
            .map(|text| serde_json::from_str::<Value>(&text).unwrap())
            .find(|payload| payload["health"]["components"]["redis"] == json!({"healthy": true, "details": "connected", "required": false}))
    });
    assert_eq!(last["instance_id"], ID);
    assert_eq!(recorder.process.wait(SOON), 0);
}

#[test]
fn it_ends_within_a_second_of_sigterm_whatever_redis_does() {
    let mut station = redis_only();
    let url = station.redis.url();
    for pause in [false, true] {
        let mut recorder = Recorder::start(&url);
        recorder.port();
        let key = format!("silvasonic:status:{ID}");
        eventually(SOON, "a heartbeat", || station.redis.get(&key));
        if pause {
            station.redis.pause();
        }
        let took = recorder.stop();
        assert!(took < Duration::from_secs(1), "{took:?} with Redis paused: {pause}");
    }
    // paused since before the start: its backlog takes the connection, nobody answers
    let mut recorder = Recorder::start(&url);
    recorder.port();
    let took = recorder.stop();
    assert!(took < Duration::from_secs(1), "{took:?} with Redis hanging from the start");
    station.redis.resume();
    station.redis.stop();
    let mut recorder = Recorder::start(&url);
    recorder.logs(&format!("Redis at {} unavailable: ", station.redis.url()));
    let took = recorder.stop();
    assert!(took < Duration::from_secs(1), "{took:?} without Redis");
}

#[test]
fn it_ends_within_a_second_of_sigterm_when_nobody_reads_its_log() {
    let (_reader, writer) = unread();
    let mut command = command("redis://127.0.0.1:1/0");
    command.stdout(writer);
    let mut recorder = Recorder { process: Ended::spawn(command), log: channel().1 };
    const TERM: u64 = 1 << 14;
    eventually(SOON, "SIGTERM is handled", || (u64::from_str_radix(&recorder.status("SigCgt:"), 16).unwrap() & TERM != 0).then_some(()));
    let took = recorder.stop();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn its_heartbeats_continue_when_nobody_reads_its_log() {
    let station = redis_only();
    let (_reader, writer) = unread();
    let mut command = command(&station.redis.url());
    command.stdout(writer);
    let mut recorder = Recorder { process: Ended::spawn(command), log: channel().1 };
    let key = format!("silvasonic:status:{ID}");
    eventually(SOON, "a heartbeat", || station.redis.get(&key));
    let took = recorder.stop();
    assert!(took < Duration::from_secs(1), "{took:?}");
}
