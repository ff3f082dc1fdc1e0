//! The Recorder of this milestone: a placeholder that opens no audio device.
//!
//! It tests the chain from a connected microphone to a running container: it reads and validates the settings that the
//! Controller passes, reports its health, and ends on SIGTERM. It does not capture sound: an image with a program that
//! does replaces it.
//!
//! Invariants: with malformed settings it ends at once and reports each fault. Redis, a health check or a full pipe
//! neither end it nor delay its end after SIGTERM by more than a second.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{LevelFilter, Log, Record, error, info};
use serde_json::{Value, json};
use silvasonic_controller::decide::profile::ProfileConfig;
use silvasonic_controller::health::board::Board;
use silvasonic_controller::health::host::Meter;
use silvasonic_controller::health::http::Endpoint;
use silvasonic_controller::json::from_str;
use silvasonic_controller::logger::Logger;
use silvasonic_controller::probe::Prober;
use silvasonic_controller::redis::publisher::{Publisher, redacted};
use silvasonic_controller::signals::{Signal, Signals};
use silvasonic_controller::text::shown;
use silvasonic_controller::{clock, poll};

const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;
const WRONG_USAGE: u8 = 2;

const INTERVAL: Duration = Duration::from_secs(10);
/// How long Redis keeps a heartbeat.
const TTL: Duration = Duration::from_secs(30);
/// Time limit for publishing the last heartbeat.
const LAST_HEARTBEAT: Duration = Duration::from_millis(300);
/// Time limit for the end of the program after a signal.
const EXIT_DEADLINE: Duration = Duration::from_millis(800);
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

/// The settings that the Controller passes.
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
            report("expected no arguments, --help or --version");
            return ExitCode::from(WRONG_USAGE);
        }
    }
    // First of all: process 1 has no default action for signals, so an earlier signal would be lost.
    let (signals, stop) = match forward_signals() {
        Ok(forwarded) => forwarded,
        Err(why) => {
            report(&format!("cannot start: signals: {why}"));
            return ExitCode::from(FAILURE);
        }
    };
    let logger = match Logger::start(json_line, io::stdout()) {
        Ok(logger) => logger,
        Err(why) => {
            report(&format!("cannot start: {why}"));
            return ExitCode::from(FAILURE);
        }
    };
    logger.install(LevelFilter::Info);
    std::panic::set_hook(Box::new({
        let logger = logger.clone();
        move |panic| {
            logger.write_last(&format!("bug in thread {}: {panic}", thread::current().name().unwrap_or("?")));
            std::process::abort();
        }
    }));
    let settings = match read(|name| std::env::var_os(name)) {
        Ok(settings) => settings,
        Err(faults) => {
            faults.iter().for_each(|fault| report(fault));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let code = match run(&settings, signals, &stop) {
        Ok(()) => SUCCESS,
        Err(why) => {
            error!("cannot start: {why}");
            FAILURE
        }
    };
    logger.flush();
    ExitCode::from(code)
}

fn run(settings: &Settings, signals: Signals, stop: &Receiver<()>) -> io::Result<()> {
    let board = Board::new("recorder", &settings.instance);
    board.include("redis");
    poll::start(signals, Endpoint::new(settings.port, board.clone()))?;
    let publisher = Publisher::start(&settings.redis_url, &settings.instance)?;
    info!(
        "recorder {} started for {} on {}, profile {}, {}",
        env!("CARGO_PKG_VERSION"),
        shown(&settings.instance),
        settings.device,
        settings.profile,
        settings.config.recorder_json()
    );
    let mut meter = Meter::new([Path::new(WORKSPACE); 2], &Prober::start()?);
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
    let _ = publisher.finish(heartbeat(), TTL, Instant::now() + LAST_HEARTBEAT);
    info!("recorder stopped");
    Ok(())
}

/// Sends a message after the first SIGTERM or SIGINT. A second signal, or [`EXIT_DEADLINE`], ends the program at once.
///
/// As process 1 of a container the program needs handlers, because signals have no default action there.
fn forward_signals() -> io::Result<(Signals, Receiver<()>)> {
    let (stop, stopped) = sync_channel(1);
    let signals = Signals::register(move |signal| {
        if signal == Signal::Terminate {
            request_stop(&stop);
        }
        true
    })?;
    Ok((signals, stopped))
}

fn request_stop(stop: &SyncSender<()>) {
    let end = || {
        thread::sleep(EXIT_DEADLINE);
        std::process::exit(SUCCESS.into());
    };
    let timer = thread::Builder::new().name("exit-deadline".to_owned()).stack_size(64 << 10).spawn(end);
    if matches!(stop.try_send(()), Err(TrySendError::Disconnected(()))) || timer.is_err() {
        std::process::exit(SUCCESS.into());
    }
}

/// Reads the environment. Returns all faults together, without secrets. An empty value counts as unset.
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
    let mut check = |index: usize, expected: &str, is_valid: fn(&str) -> bool| {
        let value = values[index].take()?;
        if is_valid(&value) {
            return Some(value);
        }
        let name = VARIABLES[index].0;
        let shown = if name == "SILVASONIC_REDIS_URL" { redacted(&value) } else { shown(&value).to_string() };
        faults.push(format!("{name}: expected {expected}, got \"{shown}\""));
        None
    };
    let device = check(0, "hw:N,M with two numbers", is_device);
    let profile = check(1, NAME, is_name);
    let config = check(2, "JSON", |text| from_str::<Value>(text).is_ok());
    let instance = check(3, NAME, is_name);
    let redis_url = check(4, "a Redis URL", |text| redis::Client::open(text).is_ok());
    let port = check(5, "a port number from 0 to 65535", |text| text.parse::<u16>().is_ok());
    let config = config.and_then(|text| {
        let value = from_str(&text).unwrap_or_default();
        let add_faults = |found: Vec<_>| faults.extend(found.iter().map(|fault| format!("SILVASONIC_RECORDER_CONFIG_JSON: {fault}")));
        ProfileConfig::from_row(&value).map_err(add_faults).ok()
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

/// Users choose names in the database; a name only has to fit into a log line.
fn is_name(text: &str) -> bool {
    text.len() <= 256 && !text.chars().any(char::is_control)
}

/// Each log line is a JSON object on standard output; the Controller forwards it to Redis.
fn json_line(record: &Record<'_>) -> Vec<u8> {
    line(&record.level().as_str().to_lowercase(), &record.args().to_string()).into_bytes()
}

fn line(level: &str, event: &str) -> String {
    let mut line = json!({"event": event, "level": level, "timestamp": clock::iso(SystemTime::now())}).to_string();
    line.push('\n');
    line
}

fn help() -> String {
    let mut text = String::from(
        "Placeholder for the recording of one microphone: reports health and heartbeats, opens no audio device.\n\n\
         Usage: silvasonic-recorder [--help | --version]\n\nSettings are environment variables:\n",
    );
    for (name, default, meaning) in VARIABLES {
        text.push_str(&format!("  {name}\n      {meaning} [{}]\n", default.unwrap_or("required")));
    }
    text
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(SUCCESS),
        Err(_) => ExitCode::from(FAILURE),
    }
}

fn report(text: &str) {
    // If standard error is closed, there is no other place to report.
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
    fn optional_variables_have_a_default() {
        let settings = read_with(&[]).map_err(|faults| faults.join("\n")).unwrap();
        assert_eq!((settings.redis_url.as_str(), settings.port), ("redis://localhost:6379/0", 9500));
    }

    #[test]
    fn all_faults_are_reported_together_and_without_secrets() {
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
