//! `silvasonic-controller logs`: shows what Recorders log, as it is published on `silvasonic:logs`.
//!
//! For people: one line an event, coloured on a terminal. Lines come from strangers' programs, so control characters are
//! shown, not obeyed. It only listens, and goes on when Redis comes back.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use redis::{Client, RedisError};
use serde_json::Value;

use crate::cli::arguments::{Level, LogView};
use crate::redis::publisher::redacted;
use crate::text::escaped;

const CHANNEL: &str = "silvasonic:logs";
const CONNECT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);

/// Shows lines until standard output is closed.
///
/// # Errors
/// When standard output cannot be written to, or the URL makes no client.
pub fn show(url: &str, view: &LogView) -> io::Result<()> {
    let client = Client::open(url).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
    let coloured = io::stdout().is_terminal();
    let mut told = false;
    loop {
        match listen(&client, view, coloured, &mut told) {
            Ok(result) => return result,
            Err(error) if !told => {
                told = true;
                writeln!(io::stderr(), "no log lines from {}: {error}; trying again every second", redacted(url))?;
            }
            Err(_) => {}
        }
        thread::sleep(RETRY);
    }
}

/// `Ok` when the output is done with, `Err` when Redis is.
fn listen(client: &Client, view: &LogView, coloured: bool, told: &mut bool) -> Result<io::Result<()>, RedisError> {
    let mut connection = client.get_connection_with_timeout(CONNECT)?;
    let mut channel = connection.as_pubsub();
    channel.subscribe(CHANNEL)?;
    *told = false;
    loop {
        let message = channel.get_message()?;
        let Some(line) = render(&String::from_utf8_lossy(message.get_payload_bytes()), view, coloured) else { continue };
        let mut output = io::stdout().lock();
        if let Err(error) = output.write_all(line.as_bytes()).and_then(|()| output.flush()) {
            return Ok(if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) });
        }
    }
}

/// One published line as it is shown, `None` if it is not wanted.
fn render(payload: &str, view: &LogView, coloured: bool) -> Option<String> {
    let event: Value = serde_json::from_str(payload).ok().filter(Value::is_object)?;
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    if view.device.as_deref().is_some_and(|device| device != text("instance_id")) {
        return None;
    }
    let level = Level::parse(text("level")).unwrap_or(Level::Info);
    if view.level.is_some_and(|least| level < least) {
        return None;
    }
    if view.json {
        return Some(format!("{payload}\n"));
    }
    let colour = match level {
        _ if !coloured => "",
        Level::Debug => "\x1b[2m",
        Level::Info => "",
        Level::Warning => "\x1b[33m",
        Level::Error | Level::Critical => "\x1b[31m",
    };
    let reset = if colour.is_empty() { "" } else { "\x1b[0m" };
    let word = if text("level") == "raw" { "-" } else { text("level") };
    let mut line = format!(
        "{colour}{} {:8} {}: {}{reset}\n",
        escaped(text("timestamp")),
        escaped(word),
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

    fn view(device: Option<&str>, level: Option<Level>, json: bool) -> LogView {
        LogView { device: device.map(str::to_owned), level, json }
    }

    #[test]
    fn a_line_is_shown_for_people_or_as_it_came() {
        let plain = "2026-01-01T00:00:00Z warning  a: hot\\u{1b}[2J\n    Traceback\n      line 1\n";
        assert_eq!(render(LINE, &view(None, None, false), false).unwrap(), plain);
        assert!(render(LINE, &view(None, None, false), true).unwrap().starts_with("\x1b[33m2026"));
        assert_eq!(render(LINE, &view(None, None, true), true).unwrap(), format!("{LINE}\n"));
    }

    #[test]
    fn lines_are_chosen_by_device_and_level() {
        assert!(render(LINE, &view(Some("a"), Some(Level::Warning), false), false).is_some());
        assert!(render(LINE, &view(Some("b"), None, false), false).is_none());
        assert!(render(LINE, &view(None, Some(Level::Error), false), false).is_none());
        for garbage in ["", "7", "[]", "{"] {
            assert!(render(garbage, &view(None, None, true), false).is_none());
        }
    }
}
