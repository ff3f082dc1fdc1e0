//! The command line as typed -> what to do. [p]

use std::fmt;

/// What the program was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Control the station.
    Run,
    /// Print how it is used.
    Help,
    /// Print the version.
    Version,
    /// Show the log lines of Recorders as they come.
    Logs(LogView),
}

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

/// How to use the program; the settings are appended.
pub const USAGE: &str = "\
Finds USB microphones and keeps a Recorder container running for each.

Usage:
  silvasonic-controller           control the station until SIGTERM
  silvasonic-controller logs [--device ID] [--level LEVEL] [--json]
                                  show log lines of Recorders as they come;
                                  LEVEL: debug, info, warning, error, critical
  silvasonic-controller --help | --version
";

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
pub fn parse(words: &[String]) -> Result<Command, Misuse> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => Ok(Command::Run),
        ["--help" | "-h"] => Ok(Command::Help),
        ["--version" | "-V"] => Ok(Command::Version),
        ["logs", ref options @ ..] => parse_logs(options).map(Command::Logs),
        [word, ..] => Err(Misuse(format!("expected logs, --help, --version or nothing, got {word:?}"))),
    }
}

fn parse_logs(options: &[&str]) -> Result<LogView, Misuse> {
    let mut view = LogView::default();
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let (name, value) = option.split_once('=').map_or((*option, None), |(name, value)| (name, Some(value)));
        let mut value = || value.or_else(|| rest.next().copied()).ok_or_else(|| Misuse(format!("{name}: expected a value")));
        match name {
            "--json" if name == *option => view.json = true,
            "--device" => view.device = Some(value()?.to_owned()),
            "--level" => {
                let text = value()?;
                let level = Level::parse(text);
                view.level =
                    Some(level.ok_or_else(|| Misuse(format!("--level: expected debug, info, warning, error or critical, got {text:?}")))?);
            }
            _ => return Err(Misuse(format!("expected --device ID, --level LEVEL or --json, got {option:?}"))),
        }
    }
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Command, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).map_err(|misuse| misuse.to_string())
    }

    #[test]
    fn commands_and_options_are_read() {
        assert_eq!(parse_line(""), Ok(Command::Run));
        assert_eq!(parse_line("-h"), Ok(Command::Help));
        assert_eq!(parse_line("--version"), Ok(Command::Version));
        let view = |device: Option<&str>, level, json| Ok(Command::Logs(LogView { device: device.map(str::to_owned), level, json }));
        assert_eq!(parse_line("logs"), view(None, None, false));
        assert_eq!(parse_line("logs --device a-1 --level=WARN --json"), view(Some("a-1"), Some(Level::Warning), true));
    }

    #[test]
    fn what_makes_no_sense_is_named_with_what_was_expected() {
        let cases = [
            ("log", "expected logs, --help, --version or nothing, got \"log\"; see --help"),
            ("--help x", "expected logs, --help, --version or nothing, got \"--help\"; see --help"),
            ("logs x", "expected --device ID, --level LEVEL or --json, got \"x\"; see --help"),
            ("logs --json=1", "expected --device ID, --level LEVEL or --json, got \"--json=1\"; see --help"),
            ("logs --device", "--device: expected a value; see --help"),
            ("logs --level loud", "--level: expected debug, info, warning, error or critical, got \"loud\"; see --help"),
        ];
        for (line, expected) in cases {
            assert_eq!(parse_line(line).unwrap_err(), expected, "{line}");
        }
    }
}
