//! The command line: one table, from which parsing, help, completions and the manual page are generated.
//!
//! To add a command, add a variant to [`Command`], an entry to [`COMMANDS`] and an arm to `execute` in `main.rs`; the
//! compiler reports a missing arm.

use std::fmt;

use crate::config::VARIABLES;

/// Name of the program.
pub const PROGRAM: &str = "silvasonic-controller";
/// Purpose of the program, one sentence.
pub const ABOUT: &str = "Finds USB microphones and keeps a Recorder container running for each.";

/// A command of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Control the station.
    Run,
    /// Show new log lines of Recorders.
    Logs,
    /// Show microphones and why they are recorded or not.
    Devices,
    /// Show when each microphone was recorded.
    History,
    /// Record a microphone.
    Enroll,
    /// Do not record a microphone.
    Ignore,
    /// Reset the decision about a microphone.
    Reset,
    /// Resume recording a microphone.
    Enable,
    /// Suspend recording a microphone.
    Disable,
    /// Show workers and why they run or not.
    Workers,
    /// Prepare a station.
    Setup,
    /// Check everything that a station needs.
    Check,
    /// Show the connected microphones.
    Scan,
    /// Validate defaults and profiles.
    CheckProfiles,
    /// Show the health of a running Controller.
    Health,
    /// Print shell completions.
    Completions,
    /// Print the manual page.
    Man,
}

/// Syntax and help of one command.
#[derive(Debug)]
pub struct CommandSpec {
    /// The command.
    pub command: Command,
    /// The one or two words that the user types.
    pub words: &'static str,
    /// Its operands, in this order.
    pub operands: &'static [OperandSpec],
    /// Its options.
    pub options: &'static [OptionSpec],
    /// One line, beginning with an imperative verb.
    pub about: &'static str,
    /// More sentences for the help of this command; may be empty.
    pub more: &'static str,
}

/// An option of a command.
#[derive(Debug)]
pub struct OptionSpec {
    /// Name with its dashes.
    pub name: &'static str,
    /// Its value, if it takes one.
    pub value: Option<ValueSpec>,
    /// One line.
    pub about: &'static str,
}

/// An operand of a command.
#[derive(Debug)]
pub enum OperandSpec {
    /// The command fails without it.
    Required(ValueSpec),
    /// The command has a default for it.
    Optional(ValueSpec),
}

impl OperandSpec {
    /// Its name and allowed values.
    #[must_use]
    pub fn value(&self) -> &ValueSpec {
        match self {
            Self::Required(value) | Self::Optional(value) => value,
        }
    }
}

/// The value of an option, or an operand.
#[derive(Debug)]
pub struct ValueSpec {
    /// Name in the help text.
    pub name: &'static str,
    /// Allowed values.
    pub kind: ValueKind,
}

/// Allowed values.
#[derive(Debug)]
pub enum ValueKind {
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// Path of a folder.
    Folder,
    /// One of these words, or the beginning of one; upper or lower case.
    OneOf(&'static [&'static str]),
}

const JSON: OptionSpec = OptionSpec { name: "--json", value: None, about: "print JSON" };
const ID: OperandSpec = OperandSpec::Required(ValueSpec { name: "ID", kind: ValueKind::Text });

/// All commands; the first one is the default.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        command: Command::Run,
        words: "run",
        operands: &[],
        options: &[],
        about: "control the station until SIGTERM; this is the default command",
        more: "SIGTERM and SIGINT stop all Recorders, unless SILVASONIC_SHUTDOWN is keep; a second signal ends the program at once.",
    },
    CommandSpec {
        command: Command::Logs,
        words: "logs",
        operands: &[],
        options: &[
            OptionSpec {
                name: "--device",
                value: Some(ValueSpec { name: "ID", kind: ValueKind::Text }),
                about: "only lines of this microphone",
            },
            OptionSpec {
                name: "--level",
                value: Some(ValueSpec { name: "LEVEL", kind: ValueKind::OneOf(&["debug", "info", "warning", "error", "critical"]) }),
                about: "only lines of at least this level",
            },
            OptionSpec { name: "--json", value: None, about: "print lines as they were published" },
        ],
        about: "show new log lines of Recorders",
        more: "Reads the lines from Redis. If Redis is unavailable, retries every second.",
    },
    CommandSpec {
        command: Command::Devices,
        words: "devices",
        operands: &[],
        options: &[OptionSpec { name: "--watch", value: None, about: "refresh every second" }, JSON],
        about: "show all microphones, and why each is recorded or not",
        more: "Reads hardware, database and Podman, so it works without a running Controller. Without the database it shows the \
               last known state. The time of the next attempt to start a failed Recorder and the state of the sound card are \
               read from the last heartbeat of the Controller.",
    },
    CommandSpec {
        command: Command::History,
        words: "history",
        operands: &[OperandSpec::Optional(ValueSpec { name: "ID", kind: ValueKind::Text })],
        options: &[
            OptionSpec {
                name: "--since",
                value: Some(ValueSpec { name: "TIME", kind: ValueKind::Text }),
                about: "begin, such as 24h, 30d or 2026-05-01; default: 7d",
            },
            JSON,
            OptionSpec { name: "--csv", value: None, about: "print CSV, one line for each session and gap" },
        ],
        about: "show when each microphone was recorded, and its gaps",
        more: "Reads the table capture_sessions. The period of a microphone begins with its first session, and ends now, or with \
               the last frame of an open session in the database, which is updated every 15 minutes. The beginning of an ID is \
               sufficient.",
    },
    CommandSpec {
        command: Command::Enroll,
        words: "enroll",
        operands: &[ID, OperandSpec::Optional(ValueSpec { name: "PROFILE", kind: ValueKind::Text })],
        options: &[],
        about: "record a microphone with a profile",
        more: "Without PROFILE, uses the assigned or suggested profile. The beginning of an ID is sufficient if it is unique.",
    },
    CommandSpec { command: Command::Ignore, words: "ignore", operands: &[ID], options: &[], about: "do not record a microphone", more: "" },
    CommandSpec {
        command: Command::Reset,
        words: "reset",
        operands: &[ID],
        options: &[],
        about: "reset the decision about a microphone",
        more: "The microphone becomes pending, without a profile, and is not enrolled automatically again.",
    },
    CommandSpec {
        command: Command::Enable,
        words: "enable",
        operands: &[ID],
        options: &[],
        about: "resume recording a microphone, or running a worker",
        more: "ID is that of a microphone, or the name of a worker.",
    },
    CommandSpec {
        command: Command::Disable,
        words: "disable",
        operands: &[ID],
        options: &[],
        about: "suspend recording a microphone, or running a worker",
        more: "ID is that of a microphone, whose enrolment does not change, or the name of a worker.",
    },
    CommandSpec {
        command: Command::Workers,
        words: "workers",
        operands: &[],
        options: &[JSON],
        about: "show all workers, and why each runs or not",
        more: "Reads the declarations, database and Podman, so it works without a running Controller. What a worker waits for is \
               read from the last heartbeat of the Controller.",
    },
    CommandSpec {
        command: Command::Setup,
        words: "setup",
        operands: &[],
        options: &[
            OptionSpec { name: "--yes", value: None, about: "do not ask before each step" },
            OptionSpec {
                name: "--workspace",
                value: Some(ValueSpec { name: "DIR", kind: ValueKind::Folder }),
                about: "folder for recordings; without it, SILVASONIC_WORKSPACE_PATH",
            },
            OptionSpec {
                name: "--disk",
                value: Some(ValueSpec { name: "DEV", kind: ValueKind::Text }),
                about: "mount the file system on this device above that folder",
            },
            OptionSpec {
                name: "--image",
                value: Some(ValueSpec { name: "FILE", kind: ValueKind::Text }),
                about: "archive with the image of the Recorder",
            },
        ],
        about: "prepare this machine as a station, and start the service",
        more: "Part of the Debian package. Asks before each step: packages, Podman's socket, disk and workspace, network, database, \
               Redis, the image of the Recorder, the service. What is done already is left as it is.",
    },
    CommandSpec {
        command: Command::Check,
        words: "check",
        operands: &[],
        options: &[JSON],
        about: "check everything that a station needs",
        more: "Changes nothing. Prints one line for each finding: ok, warning or failed, and how to fix it. Exits with 1 if \
               anything failed.",
    },
    CommandSpec {
        command: Command::Scan,
        words: "scan",
        operands: &[],
        options: &[
            OptionSpec { name: "--profile", value: None, about: "print a profile file for the microphone" },
            OptionSpec { name: "--card", value: Some(ValueSpec { name: "N", kind: ValueKind::Number }), about: "only this sound card" },
            JSON,
        ],
        about: "show the connected USB microphones",
        more: "Reads only the hardware and the profile files, so it works without any service. The database may use another ID \
               for a microphone that has no serial number or shares it with another one. Exits with 1 if the hardware cannot \
               be read.",
    },
    CommandSpec {
        command: Command::CheckProfiles,
        words: "profiles check",
        operands: &[OperandSpec::Optional(ValueSpec { name: "DIR", kind: ValueKind::Folder })],
        options: &[],
        about: "validate defaults.yml and profiles/*.yml of a folder",
        more: "Without DIR, validates the files that the Controller uses: those in SILVASONIC_CONFIG_DIR, or the built-in ones. \
               A folder without profiles/ may contain the profiles itself. Prints `file: ok` for each valid file, and \
               `file:line: field: reason` for each fault. Exits with 1 if there is a fault.",
    },
    CommandSpec {
        command: Command::Health,
        words: "health",
        operands: &[],
        options: &[],
        about: "show the health of the Controller that runs on this machine",
        more: "Exits with 0 if the Controller is healthy, with 1 if it is not or does not respond within 3 seconds. Containers \
               can use this command as their health check.",
    },
    CommandSpec {
        command: Command::Completions,
        words: "completions",
        operands: &[OperandSpec::Required(ValueSpec { name: "SHELL", kind: ValueKind::OneOf(&["bash", "zsh", "fish"]) })],
        options: &[],
        about: "print completions for a shell",
        more: "",
    },
    CommandSpec {
        command: Command::Man,
        words: "man",
        operands: &[],
        options: &[],
        about: "print the manual page",
        more: "To read it: silvasonic-controller man | man -l -",
    },
];

/// Which lines `logs` shows, and in which format.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LogView {
    /// Only lines of this device.
    pub device: Option<String>,
    /// Only lines of at least this level.
    pub level: Option<Level>,
    /// Format of a line.
    pub format: Format,
}

/// Output format of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Severity of a log line of a Recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details for finding a fault.
    Debug,
    /// Also lines without a level.
    Info,
    /// Something is wrong, but the program continues normally.
    Warning,
    /// Something failed.
    Error,
    /// The program cannot continue.
    Critical,
}

impl Level {
    /// Reads a level in the usual spellings of loggers, in upper or lower case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "trace" | "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warning,
            "error" => Self::Error,
            "critical" | "fatal" => Self::Critical,
            _ => return None,
        })
    }
}

/// The parsed command line.
#[derive(Debug)]
pub enum Invocation<'a> {
    /// Execute a command.
    Execute(Arguments<'a>),
    /// Print the help of the program or of one command.
    Help(Option<&'static CommandSpec>),
    /// Print the version.
    Version,
}

/// A command with its options and operands.
#[derive(Debug)]
pub struct Arguments<'a> {
    /// The command.
    pub command: Command,
    values: Vec<(&'static str, &'a str)>,
}

impl<'a> Arguments<'a> {
    /// Whether an option was given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// The value of an option (`--card`) or operand (`DIR`); an abbreviated word is completed.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.values.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// The output format that the user chose.
    #[must_use]
    pub fn format(&self) -> Format {
        if self.has("--json") { Format::Json } else { Format::Text }
    }

    /// The log lines that the user selected.
    #[must_use]
    pub fn log_view(&self) -> LogView {
        let level = self.value("--level").and_then(Level::parse);
        LogView { device: self.value("--device").map(str::to_owned), level, format: self.format() }
    }
}

/// A command line that is not valid.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; see --help", self.0)
    }
}

/// Reads the arguments after the program name.
///
/// # Errors
/// The first word that is not valid, and what was expected.
pub fn parse(words: &[String]) -> Result<Invocation<'_>, UsageError> {
    let (spec, rest) = match words {
        [] => (&COMMANDS[0], words),
        [word, ..] if matches!(word.as_str(), "--help" | "-h" | "help") => return Ok(Invocation::Help(None)),
        [word] if matches!(word.as_str(), "--version" | "-V") => return Ok(Invocation::Version),
        _ => find_command(words)?,
    };
    let mut given = Arguments { command: spec.command, values: Vec::new() };
    let mut rest = rest.iter().map(String::as_str);
    while let Some(word) = rest.next() {
        let (name, attached) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let option = spec.options.iter().find(|option| option.name == name);
        let next_operand = spec.operands.iter().map(OperandSpec::value).find(|value| !given.has(value.name));
        match (option, next_operand) {
            _ if matches!(word, "--help" | "-h") => return Ok(Invocation::Help(Some(spec))),
            (Some(OptionSpec { name, value: None, .. }), _) if attached.is_none() => given.values.push((name, "")),
            (Some(OptionSpec { name, value: Some(value), .. }), _) => {
                let missing = || UsageError(format!("{name}: expected {}", expected(value)));
                let text = attached.or_else(|| rest.next()).ok_or_else(missing)?;
                given.values.push((name, checked(name, value, text)?));
            }
            (None, Some(value)) if !word.starts_with('-') => {
                given.values.push((value.name, checked(value.name, value, word)?));
            }
            _ => return Err(UsageError(format!("expected {}, got {word:?}", usage(spec)))),
        }
    }
    let is_missing = |operand: &&OperandSpec| matches!(operand, OperandSpec::Required(value) if !given.has(value.name));
    match spec.operands.iter().find(is_missing) {
        Some(operand) => Err(UsageError(format!("{}: expected {}", spec.words, expected(operand.value())))),
        None => Ok(Invocation::Execute(given)),
    }
}

/// The command that the words begin with, and the words after it.
fn find_command(words: &[String]) -> Result<(&'static CommandSpec, &[String]), UsageError> {
    for spec in COMMANDS {
        let own = spec.words.split(' ').count();
        if words.len() >= own && spec.words.split(' ').eq(words[..own].iter().map(String::as_str)) {
            return Ok((spec, &words[own..]));
        }
    }
    let known: Vec<&str> = COMMANDS.iter().map(|spec| spec.words).collect();
    Err(UsageError(format!("expected {}, --help, --version or nothing, got {:?}", known.join(", "), words[0])))
}

/// The text, with an abbreviated word completed; an error if the text is not allowed.
fn checked<'a>(name: &str, value: &ValueSpec, text: &'a str) -> Result<&'a str, UsageError> {
    let found = match value.kind {
        ValueKind::Text | ValueKind::Folder => (!text.is_empty()).then_some(text),
        ValueKind::Number => text.parse::<u32>().ok().map(|_| text),
        ValueKind::OneOf(words) => {
            let start = text.to_ascii_lowercase();
            words.iter().copied().find(|word| !start.is_empty() && word.starts_with(&start))
        }
    };
    found.ok_or_else(|| UsageError(format!("{name}: expected {}, got {text:?}", expected(value))))
}

fn expected(value: &ValueSpec) -> String {
    match value.kind {
        ValueKind::Text => value.name.to_owned(),
        ValueKind::Number => "a whole number".to_owned(),
        ValueKind::Folder => "a folder".to_owned(),
        ValueKind::OneOf(words) => words.join(", "),
    }
}

/// `logs [--device ID] [--level LEVEL] [--json]`
#[must_use]
pub fn usage(spec: &CommandSpec) -> String {
    let mut text = spec.words.to_owned();
    for option in spec.options {
        text.push_str(&format!(" [{}]", option_syntax(option)));
    }
    for operand in spec.operands {
        match operand {
            OperandSpec::Required(value) => text.push_str(&format!(" {}", value.name)),
            OperandSpec::Optional(value) => text.push_str(&format!(" [{}]", value.name)),
        }
    }
    text
}

/// `--level LEVEL`
#[must_use]
pub fn option_syntax(option: &OptionSpec) -> String {
    match &option.value {
        Some(value) => format!("{} {}", option.name, value.name),
        None => option.name.to_owned(),
    }
}

/// Syntax and meaning of each option, and of each operand that has a fixed set of values.
#[must_use]
pub fn details(spec: &CommandSpec) -> Vec<(String, String)> {
    let meaning = |about: &str, value: Option<&ValueSpec>| match value.map(|value| &value.kind) {
        Some(ValueKind::OneOf(words)) if about.is_empty() => words.join(", "),
        Some(ValueKind::OneOf(words)) => format!("{about}: {}", words.join(", ")),
        _ => about.to_owned(),
    };
    let option = |option: &OptionSpec| (option_syntax(option), meaning(option.about, option.value.as_ref()));
    let options = spec.options.iter().map(option);
    let operands = spec.operands.iter().map(|operand| (operand.value().name.to_owned(), meaning("", Some(operand.value()))));
    options.chain(operands).filter(|(_, meaning)| !meaning.is_empty()).collect()
}

/// Text of `--help`, of the program or of one command.
#[must_use]
pub fn help(spec: Option<&CommandSpec>) -> String {
    let mut text = String::new();
    let table = |text: &mut String, rows: Vec<(String, String)>| {
        let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
        rows.iter().for_each(|(left, right)| text.push_str(&format!("  {left:width$}  {right}\n")));
    };
    if let Some(spec) = spec {
        text.push_str(&format!("{PROGRAM} {}: {}\n\nUsage: {PROGRAM} {}\n\n", spec.words, spec.about, usage(spec)));
        let rows = details(spec);
        if !rows.is_empty() {
            table(&mut text, rows);
            text.push('\n');
        }
        text.push_str(&wrapped(spec.more));
        return text.trim_end().to_owned() + "\n";
    }
    text.push_str(&format!(
        "{ABOUT}\n\nUsage: {PROGRAM} [COMMAND] [OPTIONS]\n       {PROGRAM} [COMMAND] --help | --version\n\nCommands:\n"
    ));
    table(&mut text, COMMANDS.iter().map(|spec| (spec.words.to_owned(), spec.about.to_owned())).collect());
    text.push_str("\nSettings are environment variables:\n");
    for (name, default, meaning) in VARIABLES {
        text.push_str(&format!("  {name}\n      {meaning} [{default}]\n"));
    }
    text
}

/// Lines of at most 80 characters.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let blank = match length {
            0 => "",
            _ if length + word.len() >= 80 => {
                length = 0;
                "\n"
            }
            _ => " ",
        };
        lines.push_str(blank);
        lines.push_str(word);
        length += word.len() + 1;
    }
    if !lines.is_empty() {
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parsed command and its values, or the error text.
    fn parse_line(line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match parse(&words) {
            Ok(Invocation::Execute(given)) => format!("{:?} {:?}", given.command, given.values),
            Ok(Invocation::Help(spec)) => format!("help {}", spec.map_or("", |spec| spec.words)),
            Ok(Invocation::Version) => "version".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn commands_options_and_operands_are_read() {
        let table = [
            ("", "Run []"),
            ("run", "Run []"),
            ("-h", "help "),
            ("--version", "version"),
            ("logs --help", "help logs"),
            ("logs --device a-1 --level=WARN --json", r#"Logs [("--device", "a-1"), ("--level", "warning"), ("--json", "")]"#),
            ("scan --card 3 --profile", r#"Scan [("--card", "3"), ("--profile", "")]"#),
            ("profiles check", "CheckProfiles []"),
            ("profiles check /etc/x", r#"CheckProfiles [("DIR", "/etc/x")]"#),
            ("enroll 0869 generic_usb", r#"Enroll [("ID", "0869"), ("PROFILE", "generic_usb")]"#),
            ("enroll 0869", r#"Enroll [("ID", "0869")]"#),
            ("completions Fi", r#"Completions [("SHELL", "fish")]"#),
        ];
        for (line, expected) in table {
            assert_eq!(parse_line(line), expected, "{line}");
        }
        let words = ["logs", "--device=a", "--level", "e"].map(str::to_owned);
        let Ok(Invocation::Execute(given)) = parse(&words) else { panic!("no command") };
        assert_eq!(given.log_view(), LogView { device: Some("a".to_owned()), level: Some(Level::Error), format: Format::Text });
    }

    #[test]
    fn an_error_names_the_first_wrong_word_and_what_was_expected() {
        let commands = "expected run, logs, devices, history, enroll, ignore, reset, enable, disable, workers, setup, check, scan, profiles check, health, completions, man, --help, --version or nothing, got";
        let table = [
            ("log", format!("{commands} \"log\"; see --help")),
            ("profiles", format!("{commands} \"profiles\"; see --help")),
            ("--version x", format!("{commands} \"--version\"; see --help")),
            ("run --json", "expected run, got \"--json\"; see --help".to_owned()),
            ("logs x", "expected logs [--device ID] [--level LEVEL] [--json], got \"x\"; see --help".to_owned()),
            ("logs --json=1", "expected logs [--device ID] [--level LEVEL] [--json], got \"--json=1\"; see --help".to_owned()),
            ("logs --device", "--device: expected ID; see --help".to_owned()),
            ("logs --device=", "--device: expected ID, got \"\"; see --help".to_owned()),
            ("logs --level loud", "--level: expected debug, info, warning, error, critical, got \"loud\"; see --help".to_owned()),
            ("scan --card one", "--card: expected a whole number, got \"one\"; see --help".to_owned()),
            ("profiles check a b", "expected profiles check [DIR], got \"b\"; see --help".to_owned()),
            ("enroll", "enroll: expected ID; see --help".to_owned()),
            ("enroll a b c", "expected enroll ID [PROFILE], got \"c\"; see --help".to_owned()),
            ("completions", "completions: expected bash, zsh, fish; see --help".to_owned()),
        ];
        for (line, expected) in table {
            assert_eq!(parse_line(line), expected, "{line}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        for text in COMMANDS.iter().map(|spec| help(Some(spec))) {
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines.iter().all(|line| line.len() <= 90 && line.trim_end() == *line), "{text}");
        }
        let logs = help(Some(&COMMANDS[1]));
        assert!(logs.contains("\n  --level LEVEL  only lines of at least this level: debug, info, warning, error, critical\n"), "{logs}");
    }
}
