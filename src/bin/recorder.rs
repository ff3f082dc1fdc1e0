//! The Recorder of this milestone: stands in for one microphone's recording, without touching any audio device.
//!
//! It proves the chain from a plugged-in microphone to a running container: reads what the Controller gives it,
//! refuses what is wrong, reports its health and ends when told to. Capture itself is another program's task, which
//! takes its place by image name.
//!
//! Invariants: wrong settings end it at once with one line per fault; nothing outside (Redis, a health check, a full
//! pipe) keeps it from ending within a second of SIGTERM or makes it end by itself.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{LevelFilter, Log, Metadata, Record, error, info};
use serde_json::{Value, json};
use silvasonic_controller::decide::profile::ProfileConfig;
use silvasonic_controller::health::board::Board;
use silvasonic_controller::health::host::Meter;
use silvasonic_controller::probe::Prober;
use silvasonic_controller::redis::publisher::{Publisher, redacted};
use silvasonic_controller::signals::{Signal, Signals};
use silvasonic_controller::text::shown;
use silvasonic_controller::{clock, health::http, poll};

const STOPPED: u8 = 0;
const CANNOT_GO_ON: u8 = 1;
const WRONG_USAGE: u8 = 2;

const INTERVAL: Duration = Duration::from_secs(10);
/// How long Redis remembers a heartbeat.
const TTL: Duration = Duration::from_secs(30);
/// For the last heartbeat.
const FAREWELL: Duration = Duration::from_millis(300);
/// When the program ends after a signal, whatever still blocks it.
const LAST_RESORT: Duration = Duration::from_millis(800);
const NAME: &str = "at most 256 bytes without control characters";
/// Where the Controller mounts this Recorder's folder.
const WORKSPACE: &str = "/app/workspace";

/// Variable, default (if it may be absent) and meaning.
const VARIABLES: [(&str, Option<&str>, &str); 6] = [
    ("SILVASONIC_RECORDER_DEVICE", None, "ALSA device, hw:N,M"),
    ("SILVASONIC_RECORDER_PROFILE_SLUG", None, "name of the microphone's profile"),
    ("SILVASONIC_RECORDER_CONFIG_JSON", None, "the profile's audio, processing and stream as JSON"),
    ("SILVASONIC_INSTANCE_ID", None, "stable id of the microphone"),
    ("SILVASONIC_REDIS_URL", Some("redis://localhost:6379/0"), "Redis, for heartbeats"),
    ("SILVASONIC_RECORDER_PORT", Some("9500"), "port of /healthy; 0 takes any free port and logs it"),
];

/// What the Controller gave this Recorder.
struct Settings {
    device: String,
    profile: String,
    config: ProfileConfig,
    instance: String,
    redis_url: String,
    port: u16,
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_str()).collect();
    match words[..] {
        [] => {}
        [Some("--help" | "-h")] => return print(&help()),
        [Some("--version" | "-V")] => return print(concat!("silvasonic-recorder ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {
            complain("expected no arguments, --help or --version");
            return ExitCode::from(WRONG_USAGE);
        }
    }
    // Before all else: process 1 has no default action for signals, so one that comes earlier would be lost.
    let (signals, stop) = match forward_signals() {
        Ok(forwarded) => forwarded,
        Err(why) => {
            complain(&format!("cannot start: signals: {why}"));
            return ExitCode::from(CANNOT_GO_ON);
        }
    };
    // Fails only if there is a logger already.
    let _ = log::set_logger(&JsonLines).map(|()| log::set_max_level(LevelFilter::Info));
    std::panic::set_hook(Box::new(|panic| {
        error!("bug in thread {}: {panic}", thread::current().name().unwrap_or("?"));
        std::process::abort();
    }));
    let settings = match read(|name| std::env::var_os(name)) {
        Ok(settings) => settings,
        Err(faults) => {
            faults.iter().for_each(|fault| complain(fault));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    match run(&settings, signals, &stop) {
        Ok(()) => ExitCode::from(STOPPED),
        Err(why) => {
            error!("cannot go on: {why}");
            ExitCode::from(CANNOT_GO_ON)
        }
    }
}

fn run(settings: &Settings, signals: Signals, stop: &Receiver<()>) -> io::Result<()> {
    let board = Board::new("recorder", &settings.instance);
    board.include("redis");
    // The thread for signals runs before anything is logged, as nobody may read the log.
    let (server, served) =
        http::listen(settings.port, board.clone()).map_or_else(|why| (None, Err(why)), |(server, port)| (Some(server), Ok(port)));
    poll::start(signals, server)?;
    let publisher = Publisher::start(&settings.redis_url, &settings.instance)?;
    info!(
        "recorder {} started for {} on {}, profile {}, {}",
        env!("CARGO_PKG_VERSION"),
        shown(&settings.instance),
        settings.device,
        settings.profile,
        settings.config.recorder_json()
    );
    match served {
        Ok(port) => info!("health on port {port}"),
        // A health check that nobody can reach is no reason not to record.
        Err(error) => error!("no health check: port {}: {error}", settings.port),
    }
    let mut meter = Meter::new(Path::new(WORKSPACE), &Prober::start()?);
    let mut heartbeat = || {
        board.set("redis", publisher.state().as_ref().map(|()| "connected").map_err(String::as_str));
        board.heartbeat(Instant::now(), SystemTime::now(), meter.sample()).to_string()
    };
    loop {
        board.beat();
        publisher.heartbeat(heartbeat(), TTL);
        match stop.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = publisher.finish(heartbeat(), TTL, Instant::now() + FAREWELL);
    info!("recorder stopped");
    Ok(())
}

/// Turns the first SIGTERM or SIGINT into a message. A second one, or [`LAST_RESORT`], ends the program where it stands.
///
/// The handlers are what lets it end as process 1 of a container, where signals have no default action.
fn forward_signals() -> io::Result<(Signals, Receiver<()>)> {
    let (stop, stopped) = sync_channel(1);
    let signals = Signals::register(move |signal| {
        if signal == Signal::Terminate {
            last_resort(&stop);
        }
        true
    })?;
    Ok((signals, stopped))
}

fn last_resort(stop: &SyncSender<()>) {
    let end = || {
        thread::sleep(LAST_RESORT);
        std::process::exit(STOPPED.into());
    };
    let timer = thread::Builder::new().name("last-resort".to_owned()).stack_size(64 << 10).spawn(end);
    if matches!(stop.try_send(()), Err(TrySendError::Disconnected(()))) || timer.is_err() {
        std::process::exit(STOPPED.into());
    }
}

/// Reads the environment; all faults together, without secrets. An empty value counts as absent.
fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Settings, Vec<String>> {
    let mut faults = Vec::new();
    let mut values = VARIABLES.map(|(name, default, meaning)| match (lookup(name).filter(|value| !value.is_empty()), default) {
        (Some(value), _) => value.into_string().map_err(|_| faults.push(format!("{name}: not UTF-8"))).ok(),
        (None, Some(default)) => Some(default.to_owned()),
        (None, None) => {
            faults.push(format!("{name}: missing, expected: {meaning}"));
            None
        }
    });
    let mut check = |index: usize, expected: &str, fits: fn(&str) -> bool| {
        let value = values[index].take()?;
        if fits(&value) {
            return Some(value);
        }
        let name = VARIABLES[index].0;
        let seen = if name == "SILVASONIC_REDIS_URL" { redacted(&value) } else { shown(&value).to_string() };
        faults.push(format!("{name}: expected {expected}, got \"{seen}\""));
        None
    };
    let device = check(0, "hw:N,M with two numbers", is_device);
    let profile = check(1, NAME, is_name);
    let config = check(2, "JSON", |text| serde_json::from_str::<Value>(text).is_ok());
    let instance = check(3, NAME, is_name);
    let redis_url = check(4, "a Redis URL", |text| redis::Client::open(text).is_ok());
    let port = check(5, "a port number from 0 to 65535", |text| text.parse::<u16>().is_ok());
    let config = config.and_then(|text| {
        let value = serde_json::from_str(&text).unwrap_or_default();
        let refuse = |found: Vec<_>| faults.extend(found.iter().map(|fault| format!("SILVASONIC_RECORDER_CONFIG_JSON: {fault}")));
        ProfileConfig::from_json(&value).map_err(refuse).ok()
    });
    match (device, profile, config, instance, redis_url, port.and_then(|port| port.parse().ok())) {
        (Some(device), Some(profile), Some(config), Some(instance), Some(redis_url), Some(port)) if faults.is_empty() => {
            Ok(Settings { device, profile, config, instance, redis_url, port })
        }
        _ => Err(faults),
    }
}

fn is_device(text: &str) -> bool {
    let is_number = |text: &str| (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.strip_prefix("hw:").and_then(|rest| rest.split_once(',')).is_some_and(|(card, pcm)| is_number(card) && is_number(pcm))
}

/// Names come from the database, where people choose them; they only have to be sayable.
fn is_name(text: &str) -> bool {
    text.len() <= 256 && !text.chars().any(char::is_control)
}

/// Writes each log line as a JSON object on standard output: what the Controller forwards to Redis.
struct JsonLines;

impl Log for JsonLines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("silvasonic")
    }
    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(&record.level().as_str().to_lowercase(), &record.args().to_string());
            // One write a line. Without standard output there is nobody to tell.
            let _ = io::stdout().lock().write_all(line.as_bytes());
        }
    }
    fn flush(&self) {}
}

fn line(level: &str, event: &str) -> String {
    let mut line = json!({"event": event, "level": level, "timestamp": clock::iso(SystemTime::now())}).to_string();
    line.push('\n');
    line
}

fn help() -> String {
    let mut text = String::from(
        "Stands in for the recording of one microphone: reports health and heartbeats, opens no audio device.\n\n\
         Usage: silvasonic-recorder [--help | --version]\n\nSettings are environment variables:\n",
    );
    for (name, default, meaning) in VARIABLES {
        text.push_str(&format!("  {name}\n      {meaning} [{}]\n", default.unwrap_or("required")));
    }
    text
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(STOPPED),
        Err(_) => ExitCode::from(CANNOT_GO_ON),
    }
}

fn complain(text: &str) {
    // Without standard error there is nobody to tell.
    let _ = io::stderr().write_all(line("error", text).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"audio":{"sample_rate":48000}}"#;

    fn read_with(changed: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let usual = [
            ("SILVASONIC_RECORDER_DEVICE", "hw:1,0"),
            ("SILVASONIC_RECORDER_PROFILE_SLUG", "generic_usb"),
            ("SILVASONIC_RECORDER_CONFIG_JSON", CONFIG),
            ("SILVASONIC_INSTANCE_ID", "0869-0389-1"),
        ];
        read(|name| changed.iter().chain(&usual).find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn what_may_be_absent_has_a_default() {
        let settings = read_with(&[]).map_err(|faults| faults.join("\n")).unwrap();
        assert_eq!((settings.redis_url.as_str(), settings.port), ("redis://localhost:6379/0", 9500));
    }

    #[test]
    fn every_fault_is_told_at_once_and_without_secrets() {
        let faults = read_with(&[
            ("SILVASONIC_RECORDER_DEVICE", "default"),
            ("SILVASONIC_RECORDER_PROFILE_SLUG", "a\nb"),
            ("SILVASONIC_RECORDER_CONFIG_JSON", r#"{"audio":{"sample_rate":"fast","channels":0}}"#),
            ("SILVASONIC_INSTANCE_ID", ""),
            ("SILVASONIC_REDIS_URL", "ftp://u:secret@x"),
            ("SILVASONIC_RECORDER_PORT", "70000"),
        ])
        .map(|_| ())
        .unwrap_err()
        .join("\n");
        for (name, _, _) in VARIABLES {
            assert!(faults.contains(name), "{name} in {faults}");
        }
        assert!(faults.contains("audio.sample_rate: expected") && faults.contains("audio.channels: expected"), "{faults}");
        assert!(!faults.contains("secret"), "{faults}");
        assert!(read_with(&[("SILVASONIC_RECORDER_CONFIG_JSON", "{")]).is_err());
    }

    #[test]
    fn devices_are_raw_hardware() {
        let table = [("hw:0,0", true), ("hw:12,3", true), ("plughw:1,0", false), ("hw:1", false), ("hw:,0", false), ("hw:a,0", false)];
        for (text, expected) in table {
            assert_eq!(is_device(text), expected, "{text}");
        }
    }
}
