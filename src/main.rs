//! The Controller of a Silvasonic station: flags, settings, logger, signals, exit code. No decisions.

use std::backtrace::Backtrace;
use std::io::{LineWriter, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use log::{error, info};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use silvasonic_controller::bus::Bus;
use silvasonic_controller::cli::{self, Command, USAGE};
use silvasonic_controller::config::{Config, VARIABLES};
use silvasonic_controller::controller::{Controller, Event};
use silvasonic_controller::status::Board;
use silvasonic_controller::vitals::Vitals;
use silvasonic_controller::{healthz, viewer};
use simplelog::{ConfigBuilder, WriteLogger};

const STOPPED: u8 = 0;
const CANNOT_GO_ON: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// Events that wait while the main loop is busy; senders wait beyond.
const INBOX: usize = 64;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match cli::parse(&words) {
        Ok(Command::Help) => print(&help()),
        Ok(Command::Version) => print(concat!("silvasonic-controller ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Run) => with_settings(run),
        Ok(Command::Logs(view)) => with_settings(|config| match viewer::show(&config.redis_url, &view) {
            Ok(()) => ExitCode::from(STOPPED),
            Err(why) => {
                complain(&why.to_string());
                ExitCode::from(CANNOT_GO_ON)
            }
        }),
        Err(misuse) => {
            complain(&misuse.to_string());
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn with_settings(go: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::read(|name| std::env::var_os(name)) {
        Ok(config) => go(config),
        Err(faults) => {
            faults.iter().for_each(|fault| complain(&fault.to_string()));
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn run(config: Config) -> ExitCode {
    start_logger(&config);
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        error!("bug in thread {}: {panic}\n{}", thread.name().unwrap_or("?"), Backtrace::force_capture());
        std::process::abort();
    }));
    info!("silvasonic-controller {} starts; owner {}", env!("CARGO_PKG_VERSION"), config.recorder.owner);
    let (events, inbox) = sync_channel(INBOX);
    match start(config, events, inbox) {
        Ok(controller) => controller.run(),
        Err(why) => {
            error!("cannot start: {why}");
            return ExitCode::from(CANNOT_GO_ON);
        }
    }
    info!("stopped");
    ExitCode::from(STOPPED)
}

fn start(config: Config, events: SyncSender<Event>, inbox: Receiver<Event>) -> std::io::Result<Controller> {
    forward_signals(events.clone())?;
    let board = Board::new("controller", "controller");
    let bus = Bus::start(&config.redis_url, "controller")?;
    let vitals = Vitals::new(&config, board.clone(), bus.clone());
    match healthz::start(config.port, board) {
        Ok(port) => info!("health is served on port {port}"),
        // A health check that nobody can reach is no reason not to record.
        Err(why) => error!("no health check: port {}: {why}", config.port),
    }
    Controller::new(config, events, inbox, vitals, bus)
}

/// The first termination signal is an event; the second one ends the program where it stands.
fn forward_signals(events: SyncSender<Event>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let forward = move || {
        let mut signals = signals.forever();
        if signals.next().is_some() && events.send(Event::Terminate).is_ok() {
            signals.next();
        }
        std::process::exit(STOPPED.into());
    };
    thread::Builder::new().name("signals".to_owned()).stack_size(128 << 10).spawn(forward)?;
    Ok(())
}

/// Lines on standard error, each written at once and whole.
fn start_logger(config: &Config) {
    let format = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_thread_level(log::LevelFilter::Off)
        .set_target_level(log::LevelFilter::Off)
        .set_location_level(log::LevelFilter::Off)
        .add_filter_allow_str("silvasonic")
        .build();
    // Fails only if there is a logger already.
    let _ = WriteLogger::init(config.log_level, format, LineWriter::new(std::io::stderr()));
}

fn help() -> String {
    let mut text = format!("{USAGE}\nSettings are environment variables:\n");
    for (name, default, meaning) in VARIABLES {
        text.push_str(&format!("  {name}\n      {meaning} [{default}]\n"));
    }
    text
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(STOPPED),
        Err(_) => ExitCode::from(CANNOT_GO_ON),
    }
}

fn complain(text: &str) {
    // Without standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "silvasonic-controller: {text}");
}
