//! The Recorder of one microphone, as the Controller starts it in a container.
//!
//! It reads and validates the settings that the Controller passes, records (`recording`), reports its health and its
//! level, and ends on SIGTERM. Without the cargo feature `capture` it opens no audio device: it is then a placeholder
//! that needs no sound library, to try the chain from a connected microphone to a running container.
//!
//! | file | holds |
//! | --- | --- |
//! | `settings` | the environment |
//! | `recording` | with `capture`: the threads `capture` and `writer`, and what the heartbeat says of them |
//! | `placeholder` | without `capture`: the same interface, and nothing behind it |
//!
//! Invariants: with malformed settings it ends at once and reports each fault. Redis, a health check, a disk or a full
//! pipe neither end it nor delay its end after SIGTERM by more than a second.

#[cfg(not(feature = "capture"))]
#[path = "placeholder.rs"]
mod recording;
#[cfg(feature = "capture")]
mod recording;
mod settings;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{LevelFilter, Log, Record, error, info};
use serde_json::json;
use silvasonic_controller::health::board::Board;
use silvasonic_controller::health::host::Meter;
use silvasonic_controller::health::http::{Endpoint, Sources};
use silvasonic_controller::logger::Logger;
use silvasonic_controller::probe::Prober;
use silvasonic_controller::redis::publisher::Publisher;
use silvasonic_controller::signals::{Second, Signal, Signals};
use silvasonic_controller::text::shown;
use silvasonic_controller::{clock, poll};

use crate::recording::Recording;
use crate::settings::Settings;

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
/// Time limit for the end of the last file; the rest of [`EXIT_DEADLINE`] is for the last heartbeat.
const LAST_SEGMENT: Duration = Duration::from_millis(500);
/// The same if nobody asks for the end. A signal shortens it.
const UNHURRIED: Duration = Duration::from_secs(10);

/// What ends the main loop.
enum Wake {
    /// SIGTERM or SIGINT.
    Stop,
    /// The sound card cannot be read any more; the exit code.
    #[cfg_attr(not(feature = "capture"), allow(dead_code))]
    CaptureEnded(u8),
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_str()).collect();
    match words[..] {
        [] => {}
        [Some("--help" | "-h")] => return print(&settings::help()),
        [Some("--version" | "-V")] => return print(concat!("silvasonic-recorder ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {
            report("expected no arguments, --help or --version");
            return ExitCode::from(WRONG_USAGE);
        }
    }
    // First of all: process 1 has no default action for signals, so an earlier signal would be lost.
    let (wake, woken) = sync_channel(4);
    let signals = match forward_signals(wake.clone()) {
        Ok(signals) => signals,
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
    let settings = match settings::from_environment() {
        Ok(settings) => settings,
        Err(faults) => {
            faults.iter().for_each(|fault| report(fault));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let code = match run(&settings, signals, &wake, &woken) {
        Ok(code) => code,
        Err(why) => {
            error!("cannot start: {why}");
            FAILURE
        }
    };
    logger.flush();
    ExitCode::from(code)
}

fn run(settings: &Settings, signals: Signals, wake: &SyncSender<Wake>, woken: &Receiver<Wake>) -> io::Result<u8> {
    let board = Board::new("recorder", &settings.instance);
    board.include("redis");
    poll::start(signals, Endpoint::new(settings.port, Sources { board: board.clone(), pages: None }))?;
    let publisher = Publisher::start(&settings.redis_url, &settings.instance)?;
    info!(
        "recorder {} started for {} on {}, profile {}, {}",
        env!("CARGO_PKG_VERSION"),
        shown(&settings.instance),
        settings.device,
        settings.profile,
        settings.config.recorder_json()
    );
    let recording = Recording::start(settings, &board, wake)?;
    let mut meter = Meter::new([&settings.workspace; 2].map(PathBuf::as_path), &Prober::start()?);
    let mut heartbeat = || {
        board.set("redis", publisher.state().as_ref().map(|()| "connected").map_err(String::as_str));
        let mut meta = meter.sample();
        recording.report(&board, &mut meta);
        board.heartbeat(Instant::now(), SystemTime::now(), meta).to_string()
    };
    let code = loop {
        board.beat();
        publisher.heartbeat(heartbeat(), TTL);
        match woken.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => break SUCCESS,
            Ok(Wake::CaptureEnded(code)) => break code,
        }
    };
    recording.finish(Instant::now() + if code == SUCCESS { LAST_SEGMENT } else { UNHURRIED });
    let _ = publisher.finish(heartbeat(), TTL, Instant::now() + LAST_HEARTBEAT);
    info!("recorder stopped");
    Ok(code)
}

/// Sends a message after the first SIGTERM or SIGINT; [`EXIT_DEADLINE`] ends the program if nothing else does. Another one
/// does nothing: when the host shuts down, systemd signals the container, and conmon, which passes it on. The last file
/// would stay unfinished.
///
/// As process 1 of a container the program needs handlers, because signals have no default action there.
fn forward_signals(wake: SyncSender<Wake>) -> io::Result<Signals> {
    let mut is_requested = false;
    Signals::register(Second::Ignored, move |signal| {
        if signal == Signal::Terminate && !std::mem::replace(&mut is_requested, true) {
            request_stop(&wake);
        }
        true
    })
}

fn request_stop(wake: &SyncSender<Wake>) {
    let end = || {
        thread::sleep(EXIT_DEADLINE);
        std::process::exit(SUCCESS.into());
    };
    let timer = thread::Builder::new().name("exit-deadline".to_owned()).stack_size(64 << 10).spawn(end);
    if matches!(wake.try_send(Wake::Stop), Err(TrySendError::Disconnected(_))) || timer.is_err() {
        std::process::exit(SUCCESS.into());
    }
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
