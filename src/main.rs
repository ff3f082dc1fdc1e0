//! The program: command line, settings, logger, threads and exit code. It makes no decisions.

use std::backtrace::Backtrace;
use std::ffi::OsString;
use std::io::{ErrorKind, Stderr, Write};
use std::panic::PanicHookInfo;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use log::{Log, debug, error, info};
use silvasonic_controller::cli::arguments::{self, Arguments, Command, Format, Invocation};
use silvasonic_controller::cli::scan::ScanReport;
use silvasonic_controller::cli::sh::Typed;
use silvasonic_controller::cli::{check, completions, curl, devices, health, history, logs, man, profiles, setup, sh, workers};
use silvasonic_controller::config::{Config, Launch, LogFormat, SERVICE_SETTINGS, SettingFault, VARIABLES, parse_environment};
use silvasonic_controller::config_folder::ConfigFolder;
use silvasonic_controller::controller::{Controller, End};
use silvasonic_controller::descriptors;
use silvasonic_controller::event::Event;
use silvasonic_controller::health::board::Board;
use silvasonic_controller::health::heartbeat::Heartbeat;
use silvasonic_controller::health::http::{Endpoint, Sources};
use silvasonic_controller::health::pages::Pages;
use silvasonic_controller::json::one_line;
use silvasonic_controller::logger::{self, Logger};
use silvasonic_controller::poll;
use silvasonic_controller::probe::Prober;
use silvasonic_controller::redis::publisher::Publisher;
use silvasonic_controller::replace;
use silvasonic_controller::signals::{Second, Signal, Signals};

const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// Capacity of the event queue; when it is full, senders wait.
const QUEUE: usize = 64;

/// Threads without which the program cannot continue. What becomes of another one that panics is decided by whoever
/// started it, and by the panic strategy of the build.
const INDISPENSABLE: [&str; 3] = ["main", "poll", "log"];

/// Whether the result is good, and the text to print; or why the command failed.
type CommandResult = Result<(bool, String), String>;

fn main() -> ExitCode {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    // Health checks of other images give their command to curl, or to a shell.
    let Typed { program, words, failure } = match sh::unwrapped(program, words.collect()) {
        Ok(typed) => typed,
        Err(error) => {
            report(&error);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let code = if curl::is_called(&program) { answer_as_curl(&words) } else { answer(&words) };
    match failure {
        Some(failure) if code != ExitCode::SUCCESS => ExitCode::from(failure),
        _ => code,
    }
}

fn answer(words: &[String]) -> ExitCode {
    match arguments::parse(words) {
        Ok(Invocation::Execute(given)) => execute(&given).unwrap_or_else(|code| code),
        Ok(Invocation::Help(spec)) => print(&arguments::help(spec)),
        Ok(Invocation::Version) => print(concat!("silvasonic-controller ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            report(&error.to_string());
            ExitCode::from(WRONG_USAGE)
        }
    }
}

/// Executes a command. The error is an exit code: what is wrong was reported already.
fn execute(given: &Arguments) -> Result<ExitCode, ExitCode> {
    Ok(match given.command {
        Command::Run => run(settings(given.command)?),
        Command::Logs => match logs::show(&settings(given.command)?.redis_url, &given.log_view()) {
            Ok(()) => ExitCode::from(SUCCESS),
            Err(why) => fail(&why.to_string()),
        },
        Command::Devices => finish(devices::show(&settings(given.command)?, given)),
        Command::History => finish(history::show(&settings(given.command)?, given)),
        Command::Enroll | Command::Ignore | Command::Reset | Command::Enable | Command::Disable => {
            finish(devices::decide(&settings(given.command)?, given))
        }
        Command::Workers => finish(workers::show(&settings(given.command)?, given)),
        Command::Setup => fail(&setup::execute(given)),
        Command::Check => finish(Ok(check::check(read_settings(given.command), given.format()))),
        Command::Scan => finish(scan(&settings(given.command)?, given)),
        Command::CheckProfiles => finish(profiles::check(given.value("DIR").map(Into::into).or(settings(given.command)?.config_dir))),
        Command::Health => finish(health::show(settings(given.command)?.port)),
        Command::Completions => print(&completions::script(given.value("SHELL").unwrap_or_default())),
        Command::Man => print(&man::page(env!("CARGO_PKG_VERSION"))),
    })
}

fn scan(config: &Config, given: &Arguments) -> CommandResult {
    // Unreadable profiles are reported, and the microphones are shown without them.
    let (profiles, faults) = ConfigFolder::new(config.config_dir.clone()).read_profiles().unwrap_or_else(|why| (Vec::new(), vec![why]));
    faults.iter().for_each(|fault| report(fault));
    let card = given.value("--card").and_then(|card| card.parse().ok());
    let scan = ScanReport::read(&config.host_root, &profiles, card)?;
    let text = match given.format() {
        _ if given.has("--profile") => scan.profile(&profiles)?,
        Format::Json => one_line(&scan.to_json().to_string()) + "\n",
        Format::Text => scan.table(),
    };
    Ok((true, text))
}

fn finish(result: CommandResult) -> ExitCode {
    match result {
        Ok((is_good, text)) => match print(&text) {
            printed if is_good => printed,
            _ => ExitCode::from(FAILURE),
        },
        Err(why) => fail(&why),
    }
}

fn fail(why: &str) -> ExitCode {
    report(why);
    ExitCode::from(FAILURE)
}

/// The settings in the environment or, if it has none of them and a command needs some, those of the service of this
/// host.
fn read_settings(command: Command) -> Result<Config, Vec<SettingFault>> {
    let own = |name: &str| std::env::var_os(name);
    let is_set = VARIABLES.iter().any(|(name, ..)| own(name).is_some());
    let variables = if command == Command::Run || is_set { Vec::new() } else { settings_of_service() };
    let of_service = |name: &str| variables.iter().rev().find(|(variable, _)| variable == name).map(|(_, value)| value.clone());
    // One call: each other one would be another copy of it, 15 kB of program.
    Config::read_with(|name| own(name).or_else(|| of_service(name)), Path::exists)
}

/// None if there is no service; reports why they cannot be read.
fn settings_of_service() -> Vec<(String, OsString)> {
    match std::fs::read_to_string(SERVICE_SETTINGS) {
        Ok(text) => parse_environment(&text),
        Err(why) => {
            if why.kind() != ErrorKind::NotFound {
                report(&format!("{SERVICE_SETTINGS}: {why}; the defaults apply: repeat this with sudo to use the settings of the service"));
            }
            Vec::new()
        }
    }
}

fn settings(command: Command) -> Result<Config, ExitCode> {
    read_settings(command).map_err(|faults| {
        faults.iter().for_each(|fault| report(&fault.to_string()));
        ExitCode::from(WRONG_USAGE)
    })
}

fn run(config: Config) -> ExitCode {
    if config.launch == Launch::Replacement {
        replace::restore_name();
    }
    // The thread `log` must exist before anything is logged: nobody may read the log.
    let format = match config.log_format {
        LogFormat::Text => logger::text,
        LogFormat::Json => logger::json,
    };
    let logger = match Logger::start(format, std::io::stderr()) {
        Ok(logger) => logger,
        Err(why) => return fail(&format!("cannot start: {why}")),
    };
    logger.install(config.log_level);
    std::panic::set_hook(Box::new({
        let logger = logger.clone();
        move |panic| report_panic(panic, &logger)
    }));
    descriptors::raise_limit();
    info!("silvasonic-controller {} starts; owner {}", env!("CARGO_PKG_VERSION"), config.recorder.owner);
    if !config.without_meaning.is_empty() {
        debug!("set, but without a meaning for this Controller: {}", config.without_meaning.join(", "));
    }
    let (events, inbox) = sync_channel(QUEUE);
    let code = match start(config, events, inbox) {
        Ok(mut controller) => {
            while controller.run() == End::Replace {
                let why = replace::replace(controller.lock());
                controller.not_replaced(&why);
            }
            info!("stopped");
            SUCCESS
        }
        Err(why) => {
            error!("cannot start: {why}");
            FAILURE
        }
    };
    logger.flush();
    ExitCode::from(code)
}

/// The panic hook: writes where the bug is, without the queue of the log, and aborts if the program cannot continue
/// without this thread.
fn report_panic(panic: &PanicHookInfo<'_>, logger: &Logger<Stderr>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("?");
    logger.write_last(&format!("bug in thread {name}: {panic}\n{}", Backtrace::force_capture()));
    if INDISPENSABLE.contains(&name) {
        std::process::abort();
    }
}

fn start(config: Config, events: SyncSender<Event>, inbox: Receiver<Event>) -> std::io::Result<Controller> {
    let signals = Signals::register(Second::Ends, {
        let events = events.clone();
        move |signal| {
            let event = match signal {
                Signal::Terminate => Event::Terminate,
                Signal::Dump => Event::Dump,
                Signal::Leave => Event::Leave,
            };
            // If the queue is disconnected, the program is already ending.
            !matches!(events.try_send(event), Err(TrySendError::Full(_)))
        }
    })?;
    let board = Board::new("controller", "controller");
    let prober = Prober::start()?;
    let publisher = Publisher::start(&config.redis_url, "controller")?;
    let heartbeat = Heartbeat::new(&config, board.clone(), publisher.clone(), &prober)?;
    // A queue that is full wakes the loop, too.
    let asked = events.clone();
    let pages = if config.status_page { Some(Pages::new(move || drop(asked.try_send(Event::Asked)))?) } else { None };
    poll::start(signals, Endpoint::new(config.port, Sources { board, pages: pages.clone() }))?;
    Controller::new(config, (&events, inbox), &prober, (heartbeat, pages), publisher)
}

fn answer_as_curl(words: &[String]) -> ExitCode {
    // Malformed settings are no fault of the server that is asked.
    let output = curl::execute(words, read_settings(Command::Health).ok().map(|config| config.port));
    if !output.error.is_empty() {
        // If standard error is closed, the exit code reports it.
        let _ = writeln!(std::io::stderr(), "{}", output.error);
    }
    print(&output.body);
    ExitCode::from(output.code)
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(SUCCESS),
        Err(_) => ExitCode::from(FAILURE),
    }
}

fn report(text: &str) {
    // If standard error is closed, there is no other place to report.
    let _ = writeln!(std::io::stderr(), "silvasonic-controller: {text}");
}
