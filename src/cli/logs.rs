//! `silvasonic-controller logs`: shows the log lines of Recorders that are published on `silvasonic:logs`.
//!
//! One line for each event, coloured on a terminal. The lines come from other programs, so invisible characters
//! are escaped. It only subscribes, and connects again after Redis was unavailable.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use redis::{ConnectionInfo, RedisError};
use serde_json::Value;

use crate::cli::arguments::{Format, Level, LogView};
use crate::json;
use crate::redis::connection::{Subscription, address, describe};
use crate::redis::publisher::redacted;
use crate::text::escaped;

pub(super) const CHANNEL: &str = "silvasonic:logs";
/// Memory for a message: a line of 16 KiB with its trace, all of it escaped.
const MESSAGE_LIMIT: usize = 1 << 20;
const RETRY: Duration = Duration::from_secs(1);

/// Whether lines are coloured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Colour {
    Off,
    /// By level.
    On,
}

/// Shows lines until standard output is closed.
///
/// # Errors
/// When standard output cannot be written to, or the URL is not valid.
pub fn show(url: &str, view: &LogView) -> io::Result<()> {
    let address = address(url).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
    let colour = if io::stdout().is_terminal() { Colour::On } else { Colour::Off };
    let mut reported = None;
    loop {
        match listen(&address, view, colour, &mut reported) {
            Ok(result) => return result,
            Err(error) => {
                let why = describe(&error);
                if reported.as_ref() != Some(&why) {
                    writeln!(io::stderr(), "cannot read log lines from {}: {why}; retrying every second", redacted(url))?;
                    reported = Some(why);
                }
            }
        }
        thread::sleep(RETRY);
    }
}

/// Shows lines until writing (`Ok`) or reading (`Err`) ends. Clears `reported` when it is subscribed.
fn listen(address: &ConnectionInfo, view: &LogView, colour: Colour, reported: &mut Option<String>) -> Result<io::Result<()>, RedisError> {
    let mut subscription = Subscription::open(address, CHANNEL, MESSAGE_LIMIT)?;
    *reported = None;
    loop {
        let Some(line) = render(&String::from_utf8_lossy(&subscription.receive()?), view, colour) else { continue };
        let mut output = io::stdout().lock();
        if let Err(error) = output.write_all(line.as_bytes()).and_then(|()| output.flush()) {
            return Ok(if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) });
        }
    }
}

/// The text for one published line; `None` if the user did not select it, or if it is not valid.
fn render(payload: &str, view: &LogView, colour: Colour) -> Option<String> {
    let event: Value = json::from_python(payload).ok().filter(Value::is_object)?;
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    if view.device.as_deref().is_some_and(|device| device != text("instance_id")) {
        return None;
    }
    let level = Level::parse(text("level")).unwrap_or(Level::Info);
    if view.level.is_some_and(|least| level < least) {
        return None;
    }
    if view.format == Format::Json {
        return Some(json::one_line(payload) + "\n");
    }
    let begin = match level {
        _ if colour == Colour::Off => "",
        Level::Debug => "\x1b[2m",
        Level::Info => "",
        Level::Warning => "\x1b[33m",
        Level::Error | Level::Critical => "\x1b[31m",
    };
    let end = if begin.is_empty() { "" } else { "\x1b[0m" };
    let level = if text("level") == "raw" { "-" } else { text("level") };
    let mut line = format!(
        "{begin}{} {:8} {}: {}{end}\n",
        escaped(text("timestamp")),
        escaped(level),
        escaped(text("instance_id")),
        escaped(text("message"))
    );
    for key in ["exc_info", "stack_info"] {
        for extra in event[key].as_str().into_iter().flat_map(str::lines) {
            line.push_str(&format!("    {}\n", escaped(extra)));
        }
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"service":"recorder","instance_id":"a","container_name":"c","level":"warning","message":"hot\u001b[2J","timestamp":"2026-01-01T00:00:00Z","exc_info":"Traceback\n  line 1"}"#;

    fn view(device: Option<&str>, level: Option<Level>, format: Format) -> LogView {
        LogView { device: device.map(str::to_owned), level, format }
    }

    #[test]
    fn a_line_is_shown_as_text_or_as_it_was_published() {
        let plain = "2026-01-01T00:00:00Z warning  a: hot\\u{1b}[2J\n    Traceback\n      line 1\n";
        assert_eq!(render(LINE, &view(None, None, Format::Text), Colour::Off).unwrap(), plain);
        assert!(render(LINE, &view(None, None, Format::Text), Colour::On).unwrap().starts_with("\x1b[33m2026"));
        assert_eq!(render(LINE, &view(None, None, Format::Json), Colour::On).unwrap(), format!("{LINE}\n"));
    }

    #[test]
    fn an_event_is_one_line_of_json_whoever_published_it() {
        let forged = "{\"message\":\"a\u{2028}b\u{85}\",\n\"x\":NaN,\n{\"message\":\"forged\"}\n}";
        assert!(render(forged, &view(None, None, Format::Json), Colour::Off).is_none());
        let pretty = "{\n  \"message\": \"a\u{2028}b\u{85}\",\r\n\"x\":\nNaN, \"y\": \"\\ud800\"\n}\n";
        let line = "{\"message\":\"a\\u2028b\\u0085\",\"x\":null,\"y\":\"\\ufffd\"}\n";
        assert_eq!(render(pretty, &view(None, None, Format::Json), Colour::Off).unwrap(), line);
    }

    #[test]
    fn lines_are_selected_by_device_and_level() {
        assert!(render(LINE, &view(Some("a"), Some(Level::Warning), Format::Text), Colour::Off).is_some());
        assert!(render(LINE, &view(Some("b"), None, Format::Text), Colour::Off).is_none());
        assert!(render(LINE, &view(None, Some(Level::Error), Format::Text), Colour::Off).is_none());
        for garbage in ["", "7", "[]", "{"] {
            assert!(render(garbage, &view(None, None, Format::Json), Colour::Off).is_none());
        }
    }
}
