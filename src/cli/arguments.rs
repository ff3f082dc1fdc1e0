//! The command line: one table, from which parsing, help, completions and the manual page are made. [p]
//!
//! A new command is a variant of [`Name`], an entry of [`COMMANDS`], and an arm in `main`; the compiler asks for the arm.

use std::fmt;

use crate::config::VARIABLES;

/// What the program is called.
pub const PROGRAM: &str = "silvasonic-controller";
/// What it is for.
pub const ABOUT: &str = "Finds USB microphones and keeps a Recorder container running for each.";

/// What the program can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Control the station.
    Run,
    /// Show the log lines of Recorders as they come.
    Logs,
    /// Show microphones and why they are recorded or not.
    Devices,
    /// Record a microphone.
    Enroll,
    /// Leave a microphone alone.
    Ignore,
    /// Ask again about a microphone.
    Reset,
    /// Switch a microphone on.
    Enable,
    /// Switch a microphone off.
    Disable,
    /// Look whether everything that a station needs is there.
    Check,
    /// Show what is plugged in.
    Scan,
    /// Validate the settings' files.
    CheckProfiles,
    /// Ask a running Controller how it is.
    Health,
    /// Print a shell's completions.
    Completions,
    /// Print the manual page.
    Man,
}

/// One command.
#[derive(Debug)]
pub struct Entry {
    /// Which one.
    pub name: Name,
    /// What is typed, one word or two.
    pub words: &'static str,
    /// What may follow it, in this order, and whether it must.
    pub operands: &'static [(Placeholder, bool)],
    /// Its options.
    pub options: &'static [Choice],
    /// One line, beginning with a verb.
    pub about: &'static str,
    /// More for who asks; sentences, or empty.
    pub more: &'static str,
}

/// An option of a command.
#[derive(Debug)]
pub struct Choice {
    /// With its dashes.
    pub name: &'static str,
    /// What it takes.
    pub value: Option<Placeholder>,
    /// One line.
    pub about: &'static str,
}

/// What an option takes, or a command behind its options.
#[derive(Debug)]
pub struct Placeholder {
    /// As help shows it.
    pub name: &'static str,
    /// What may stand there.
    pub kind: ValueKind,
}

/// What may stand in a place.
#[derive(Debug)]
pub enum ValueKind {
    /// Anything.
    Text,
    /// A whole number.
    Number,
    /// A folder's path.
    Folder,
    /// One of these or the beginning of one, upper or lower case.
    Word(&'static [&'static str]),
}

const JSON: &str = "as JSON, for programs";
const ID: (Placeholder, bool) = (Placeholder { name: "ID", kind: ValueKind::Text }, true);

/// Every command; the first is what happens without one.
pub const COMMANDS: &[Entry] = &[
    Entry {
        name: Name::Run,
        words: "run",
        operands: &[],
        options: &[],
        about: "control the station until SIGTERM; also without a command",
        more: "SIGTERM and SIGINT stop all Recorders, unless SILVASONIC_SHUTDOWN says otherwise; a second one ends the program at once.",
    },
    Entry {
        name: Name::Logs,
        words: "logs",
        operands: &[],
        options: &[
            Choice {
                name: "--device",
                value: Some(Placeholder { name: "ID", kind: ValueKind::Text }),
                about: "only those of this microphone",
            },
            Choice {
                name: "--level",
                value: Some(Placeholder { name: "LEVEL", kind: ValueKind::Word(&["debug", "info", "warning", "error", "critical"]) }),
                about: "only those at least as severe",
            },
            Choice { name: "--json", value: None, about: "as they were published" },
        ],
        about: "show log lines of Recorders as they come",
        more: "They come from Redis; it is waited for.",
    },
    Entry {
        name: Name::Devices,
        words: "devices",
        operands: &[],
        options: &[
            Choice { name: "--watch", value: None, about: "again every second" },
            Choice { name: "--json", value: None, about: JSON },
        ],
        about: "show all microphones, and why each is recorded or not",
        more: "Reads hardware, database and Podman, so it works without a running Controller; without the database by what that said \
               last. What only the Controller knows, such as when a \
               failed Recorder is tried again and whether sound comes in, is taken from its last heartbeat.",
    },
    Entry {
        name: Name::Enroll,
        words: "enroll",
        operands: &[ID, (Placeholder { name: "PROFILE", kind: ValueKind::Text }, false)],
        options: &[],
        about: "record a microphone with a profile",
        more: "Without PROFILE with the one that it has or that was suggested. The beginning of an ID is enough if no other begins so.",
    },
    Entry { name: Name::Ignore, words: "ignore", operands: &[ID], options: &[], about: "leave a microphone alone, for good", more: "" },
    Entry {
        name: Name::Reset,
        words: "reset",
        operands: &[ID],
        options: &[],
        about: "forget what was decided about a microphone",
        more: "It is pending then, without a profile, and is not enrolled by itself again.",
    },
    Entry { name: Name::Enable, words: "enable", operands: &[ID], options: &[], about: "switch a microphone on again", more: "" },
    Entry {
        name: Name::Disable,
        words: "disable",
        operands: &[ID],
        options: &[],
        about: "switch a microphone off; its enrolment stays",
        more: "",
    },
    Entry {
        name: Name::Check,
        words: "check",
        operands: &[],
        options: &[Choice { name: "--json", value: None, about: JSON }],
        about: "look whether everything that a station needs is there",
        more: "Changes nothing. One line each: ok, warning or failed, and the cure. Exits with 1 if anything failed.",
    },
    Entry {
        name: Name::Scan,
        words: "scan",
        operands: &[],
        options: &[
            Choice { name: "--profile", value: None, about: "print a profile file for the microphone" },
            Choice { name: "--card", value: Some(Placeholder { name: "N", kind: ValueKind::Number }), about: "only this sound card" },
            Choice { name: "--json", value: None, about: JSON },
        ],
        about: "show the USB microphones that are plugged in",
        more: "Reads the hardware and the profiles' files only, so it works without any service. A microphone without a serial, or whose \
               serial another one has, too, may be known by another id to the database. Exits with 1 if the hardware cannot be read.",
    },
    Entry {
        name: Name::CheckProfiles,
        words: "profiles check",
        operands: &[(Placeholder { name: "DIR", kind: ValueKind::Folder }, false)],
        options: &[],
        about: "validate defaults.yml and profiles/*.yml of a folder",
        more: "Without DIR those that the Controller would use: in SILVASONIC_CONFIG_DIR, or built in. A folder without profiles/ may \
               hold the profiles itself. One line a file: ok, or file:line: field: reason. Exits with 1 if anything is wrong.",
    },
    Entry {
        name: Name::Health,
        words: "health",
        operands: &[],
        options: &[],
        about: "ask the Controller that runs on this machine how it is",
        more: "Exits with 0 if it is well, with 1 if it is not or does not answer within 3 seconds: a health check for containers.",
    },
    Entry {
        name: Name::Completions,
        words: "completions",
        operands: &[(Placeholder { name: "SHELL", kind: ValueKind::Word(&["bash", "zsh", "fish"]) }, true)],
        options: &[],
        about: "print the completions of this command line for a shell",
        more: "",
    },
    Entry {
        name: Name::Man,
        words: "man",
        operands: &[],
        options: &[],
        about: "print the manual page",
        more: "To read it: silvasonic-controller man | man -l -",
    },
];

/// Which lines `logs` shows, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LogView {
    /// Only those of this device.
    pub device: Option<String>,
    /// Only those at least as severe.
    pub level: Option<Level>,
    /// As they were published.
    pub json: bool,
}

/// Severity of a line of a Recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who look for a fault.
    Debug,
    /// Also lines without a level.
    Info,
    /// Something is not as it should be.
    Warning,
    /// Something failed.
    Error,
    /// Nothing goes on.
    Critical,
}

impl Level {
    /// Reads a level as loggers write it; any case.
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

/// What was typed.
#[derive(Debug)]
pub enum Invocation<'a> {
    /// Do something.
    Do(Arguments<'a>),
    /// Print how the program or one of its commands is used.
    Help(Option<&'static Entry>),
    /// Print the version.
    Version,
}

/// A command with its options and operands.
#[derive(Debug)]
pub struct Arguments<'a> {
    /// Which command.
    pub name: Name,
    values: Vec<(&'static str, &'a str)>,
}

impl<'a> Arguments<'a> {
    /// Whether an option was given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// The value of an option (`--card`) or operand (`DIR`); of words, the whole one.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.values.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Which log lines are wanted.
    #[must_use]
    pub fn log_view(&self) -> LogView {
        let level = self.value("--level").and_then(Level::parse);
        LogView { device: self.value("--device").map(str::to_owned), level, json: self.has("--json") }
    }
}

/// A word that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub struct Misuse(String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; see --help", self.0)
    }
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// The first word that makes no sense, and what was expected.
pub fn parse(words: &[String]) -> Result<Invocation<'_>, Misuse> {
    let (entry, rest) = match words {
        [] => (&COMMANDS[0], words),
        [word, ..] if matches!(word.as_str(), "--help" | "-h" | "help") => return Ok(Invocation::Help(None)),
        [word] if matches!(word.as_str(), "--version" | "-V") => return Ok(Invocation::Version),
        _ => command(words)?,
    };
    let mut given = Arguments { name: entry.name, values: Vec::new() };
    let mut rest = rest.iter().map(String::as_str);
    while let Some(word) = rest.next() {
        let (name, attached) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let choice = entry.options.iter().find(|choice| choice.name == name);
        // The first one that is not given yet.
        match (choice, entry.operands.iter().find(|(value, _)| !given.has(value.name))) {
            _ if matches!(word, "--help" | "-h") => return Ok(Invocation::Help(Some(entry))),
            (Some(Choice { name, value: None, .. }), _) if attached.is_none() => given.values.push((name, "")),
            (Some(Choice { name, value: Some(value), .. }), _) => {
                let text = attached.or_else(|| rest.next()).ok_or_else(|| Misuse(format!("{name}: expected {}", expected(value))))?;
                given.values.push((name, checked(name, value, text)?));
            }
            (None, Some((value, _))) if !word.starts_with('-') => {
                given.values.push((value.name, checked(value.name, value, word)?));
            }
            _ => return Err(Misuse(format!("expected {}, got {word:?}", usage(entry)))),
        }
    }
    match entry.operands.iter().find(|(value, must)| *must && !given.has(value.name)) {
        Some((value, _)) => Err(Misuse(format!("{}: expected {}", entry.words, expected(value)))),
        None => Ok(Invocation::Do(given)),
    }
}

/// The command that the words begin with, and the words behind it.
fn command(words: &[String]) -> Result<(&'static Entry, &[String]), Misuse> {
    for entry in COMMANDS {
        let own = entry.words.split(' ').count();
        if words.len() >= own && entry.words.split(' ').eq(words[..own].iter().map(String::as_str)) {
            return Ok((entry, &words[own..]));
        }
    }
    let known: Vec<&str> = COMMANDS.iter().map(|entry| entry.words).collect();
    Err(Misuse(format!("expected {}, --help, --version or nothing, got {:?}", known.join(", "), words[0])))
}

fn checked<'a>(name: &str, value: &Placeholder, text: &'a str) -> Result<&'a str, Misuse> {
    let found = match value.kind {
        ValueKind::Text | ValueKind::Folder => (!text.is_empty()).then_some(text),
        ValueKind::Number => text.parse::<u32>().ok().map(|_| text),
        ValueKind::Word(words) => {
            let start = text.to_ascii_lowercase();
            words.iter().copied().find(|word| !start.is_empty() && word.starts_with(&start))
        }
    };
    found.ok_or_else(|| Misuse(format!("{name}: expected {}, got {text:?}", expected(value))))
}

fn expected(value: &Placeholder) -> String {
    match value.kind {
        ValueKind::Text => value.name.to_owned(),
        ValueKind::Number => "a whole number".to_owned(),
        ValueKind::Folder => "a folder".to_owned(),
        ValueKind::Word(words) => words.join(", "),
    }
}

/// `logs [--device ID] [--level LEVEL] [--json]`
#[must_use]
pub fn usage(entry: &Entry) -> String {
    let mut text = entry.words.to_owned();
    for choice in entry.options {
        text.push_str(&format!(" [{}]", shape(choice)));
    }
    for (value, must) in entry.operands {
        text.push_str(&if *must { format!(" {}", value.name) } else { format!(" [{}]", value.name) });
    }
    text
}

/// `--level LEVEL`
#[must_use]
pub fn shape(choice: &Choice) -> String {
    match &choice.value {
        Some(value) => format!("{} {}", choice.name, value.name),
        None => choice.name.to_owned(),
    }
}

/// The options of a command and the operands that are one of some words: how they look, and what they mean.
#[must_use]
pub fn details(entry: &Entry) -> Vec<(String, String)> {
    let meaning = |about: &str, value: Option<&Placeholder>| match value.map(|value| &value.kind) {
        Some(ValueKind::Word(words)) if about.is_empty() => words.join(", "),
        Some(ValueKind::Word(words)) => format!("{about}: {}", words.join(", ")),
        _ => about.to_owned(),
    };
    let options = entry.options.iter().map(|choice| (shape(choice), meaning(choice.about, choice.value.as_ref())));
    let operands = entry.operands.iter().map(|(value, _)| (value.name.to_owned(), meaning("", Some(value))));
    options.chain(operands).filter(|(_, meaning)| !meaning.is_empty()).collect()
}

/// What `--help` prints.
#[must_use]
pub fn help(entry: Option<&Entry>) -> String {
    let mut text = String::new();
    let table = |text: &mut String, rows: Vec<(String, String)>| {
        let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
        rows.iter().for_each(|(left, right)| text.push_str(&format!("  {left:width$}  {right}\n")));
    };
    if let Some(entry) = entry {
        text.push_str(&format!("{PROGRAM} {}: {}\n\nUsage: {PROGRAM} {}\n\n", entry.words, entry.about, usage(entry)));
        let rows = details(entry);
        if !rows.is_empty() {
            table(&mut text, rows);
            text.push('\n');
        }
        text.push_str(&wrapped(entry.more));
        return text.trim_end().to_owned() + "\n";
    }
    text.push_str(&format!(
        "{ABOUT}\n\nUsage: {PROGRAM} [COMMAND] [OPTIONS]\n       {PROGRAM} [COMMAND] --help | --version\n\nCommands:\n"
    ));
    table(&mut text, COMMANDS.iter().map(|entry| (entry.words.to_owned(), entry.about.to_owned())).collect());
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

    /// What is done, and the values; or the misuse.
    fn parse_line(line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match parse(&words) {
            Ok(Invocation::Do(given)) => format!("{:?} {:?}", given.name, given.values),
            Ok(Invocation::Help(entry)) => format!("help {}", entry.map_or("", |entry| entry.words)),
            Ok(Invocation::Version) => "version".to_owned(),
            Err(misuse) => misuse.to_string(),
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
        let Ok(Invocation::Do(given)) = parse(&words) else { panic!("no command") };
        assert_eq!(given.log_view(), LogView { device: Some("a".to_owned()), level: Some(Level::Error), json: false });
    }

    #[test]
    fn what_makes_no_sense_is_named_with_what_was_expected() {
        let commands = "expected run, logs, devices, enroll, ignore, reset, enable, disable, check, scan, profiles check, health, completions, man, --help, --version or nothing, got";
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
        for text in COMMANDS.iter().map(|entry| help(Some(entry))) {
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines.iter().all(|line| line.len() <= 90 && line.trim_end() == *line), "{text}");
        }
        let logs = help(Some(&COMMANDS[1]));
        assert!(logs.contains("\n  --level LEVEL  only those at least as severe: debug, info, warning, error, critical\n"), "{logs}");
    }
}
