//! The Controller of a Silvasonic station: commands, settings, logger, signals, exit code. No decisions.

use std::backtrace::Backtrace;
use std::io::{LineWriter, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use log::{error, info};
use silvasonic_controller::cli::arguments::{self, Arguments, Invocation, Name};
use silvasonic_controller::cli::scan::ScanReport;
use silvasonic_controller::cli::{check, completions, devices, health, logs, man, profiles};
use silvasonic_controller::config::{Config, SettingFault};
use silvasonic_controller::controller::Controller;
use silvasonic_controller::database::seed::Seeder;
use silvasonic_controller::event::Event;
use silvasonic_controller::health::board::Board;
use silvasonic_controller::health::heartbeat::Heartbeat;
use silvasonic_controller::health::http;
use silvasonic_controller::poll;
use silvasonic_controller::probe::Prober;
use silvasonic_controller::redis::publisher::Publisher;
use silvasonic_controller::signals::{Signal, Signals};
use simplelog::{ConfigBuilder, WriteLogger};

const STOPPED: u8 = 0;
const CANNOT_GO_ON: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// Events that wait while the main loop is busy; senders wait beyond.
const INBOX: usize = 64;

/// What a command prints and whether all is well, or why it failed.
type CommandResult = Result<(bool, String), String>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match arguments::parse(&words) {
        Ok(Invocation::Do(given)) => perform(&given).unwrap_or_else(|code| code),
        Ok(Invocation::Help(entry)) => print(&arguments::help(entry)),
        Ok(Invocation::Version) => print(concat!("silvasonic-controller ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(misuse) => {
            complain(&misuse.to_string());
            ExitCode::from(WRONG_USAGE)
        }
    }
}

/// Does what was asked for; an exit code instead of an error once it has been told.
fn perform(given: &Arguments) -> Result<ExitCode, ExitCode> {
    Ok(match given.name {
        Name::Run => run(settings()?),
        Name::Logs => match logs::show(&settings()?.redis_url, &given.log_view()) {
            Ok(()) => ExitCode::from(STOPPED),
            Err(why) => cannot_go_on(&why.to_string()),
        },
        Name::Devices => conclude(devices::show(&settings()?, given)),
        Name::Enroll | Name::Ignore | Name::Reset | Name::Enable | Name::Disable => conclude(devices::decide(&settings()?, given)),
        Name::Check => conclude(Ok(check::examine(environment(), given.has("--json")))),
        Name::Scan => conclude(scan(&settings()?, given)),
        Name::CheckProfiles => conclude(profiles::check(given.value("DIR").map(Into::into).or(settings()?.config_dir))),
        Name::Health => conclude(health::ask(settings()?.port)),
        Name::Completions => print(&completions::script(given.value("SHELL").unwrap_or_default())),
        Name::Man => print(&man::page(env!("CARGO_PKG_VERSION"))),
    })
}

fn scan(config: &Config, given: &Arguments) -> CommandResult {
    // Without profiles, what is plugged in can be shown all the same.
    let (profiles, faults) = Seeder::new(config.config_dir.clone()).read_profiles().unwrap_or_else(|why| (Vec::new(), vec![why]));
    faults.iter().for_each(|fault| complain(fault));
    let card = given.value("--card").and_then(|card| card.parse().ok());
    let findings = ScanReport::look(&config.host_root, &profiles, card)?;
    let text = match (given.has("--profile"), given.has("--json")) {
        (true, _) => findings.profile(&profiles)?,
        (false, true) => format!("{}\n", findings.to_json()),
        (false, false) => findings.table(),
    };
    Ok((true, text))
}

fn conclude(outcome: CommandResult) -> ExitCode {
    match outcome {
        Ok((well, text)) => match print(&text) {
            printed if well => printed,
            _ => ExitCode::from(CANNOT_GO_ON),
        },
        Err(why) => cannot_go_on(&why),
    }
}

fn cannot_go_on(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(CANNOT_GO_ON)
}

fn environment() -> Result<Config, Vec<SettingFault>> {
    Config::read(|name| std::env::var_os(name))
}

fn settings() -> Result<Config, ExitCode> {
    environment().map_err(|faults| {
        faults.iter().for_each(|fault| complain(&fault.to_string()));
        ExitCode::from(WRONG_USAGE)
    })
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
    let signals = Signals::register({
        let events = events.clone();
        move |signal| {
            let event = match signal {
                Signal::Terminate => Event::Terminate,
                Signal::Dump => Event::Dump,
            };
            // Without an inbox the program is ending already.
            !matches!(events.try_send(event), Err(TrySendError::Full(_)))
        }
    })?;
    let board = Board::new("controller", "controller");
    let prober = Prober::start()?;
    let publisher = Publisher::start(&config.redis_url, "controller")?;
    let heartbeat = Heartbeat::new(&config, board.clone(), publisher.clone(), &prober)?;
    // The thread runs before anything is logged about it, as nobody may read the log.
    let (server, served) = http::listen(config.port, board).map_or_else(|why| (None, Err(why)), |(server, port)| (Some(server), Ok(port)));
    poll::start(signals, server)?;
    match served {
        Ok(port) => info!("health is served on port {port}"),
        // A health check that nobody can reach is no reason not to record.
        Err(why) => error!("no health check: port {}: {why}", config.port),
    }
    Controller::new(config, (&events, inbox), &prober, heartbeat, publisher)
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
