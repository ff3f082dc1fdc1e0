//! Lines of a container's log: joined from frames, and written as the JSON of `silvasonic:logs`.
//!
//! A line that arrives in parts is kept until its end, at most [`LINE_LIMIT`] bytes for each output. A longer line is
//! cut, marked and forwarded at once; the rest of it is dropped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::clock;
use crate::json;
use crate::podman::frames::Output;

/// Longest line that is forwarded whole.
pub const LINE_LIMIT: usize = 16 << 10;
/// The end of the message of a line that was cut.
pub const CUT: &str = " … [cut at 16 KiB]";
/// Longest `level` and `logger`.
const WORD_LIMIT: usize = 200;

/// The content of a frame: a time stamp and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampedText<'a> {
    /// Whole seconds since 1970, if the frame has a time stamp.
    pub second: Option<u64>,
    /// What the container wrote.
    pub bytes: &'a [u8],
}

impl<'a> StampedText<'a> {
    /// Separates Podman's time stamp from the text. A frame without one is text only.
    #[must_use]
    pub fn parse(frame: &'a [u8]) -> Self {
        let stamp = frame.iter().take(40).position(|byte| *byte == b' ').and_then(|end| {
            let time = clock::parse(std::str::from_utf8(&frame[..end]).ok()?)?;
            Some((time.duration_since(UNIX_EPOCH).ok()?.as_secs(), end))
        });
        match stamp {
            Some((second, end)) => Self { second: Some(second), bytes: &frame[end + 1..] },
            None => Self { second: None, bytes: frame },
        }
    }
}

/// The lines of one container that have not ended yet.
#[derive(Debug, Default)]
pub struct Joiner {
    stdout: Part,
    stderr: Part,
}

/// How a part of a line ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// More of the line follows.
    Open,
    /// The line is complete.
    Newline,
}

#[derive(Debug, Default)]
struct Part {
    bytes: Vec<u8>,
    /// When the line began.
    second: Option<u64>,
    /// It was forwarded already, and the rest of it is dropped.
    cut: bool,
}

/// One line without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its bytes, at most [`LINE_LIMIT`].
    pub bytes: &'a [u8],
    /// Whether there was more.
    pub cut: bool,
    /// When it began, in whole seconds since 1970.
    pub second: Option<u64>,
}

impl Joiner {
    /// Adds a frame, and passes each line that ends in it to `each`.
    pub fn push(&mut self, output: Output, text: StampedText<'_>, mut each: impl FnMut(Line<'_>)) {
        let part = match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        };
        for piece in text.bytes.split_inclusive(|byte| *byte == b'\n') {
            let (part_text, end) = piece.strip_suffix(b"\n").map_or((piece, End::Open), |line| (line, End::Newline));
            part.push(part_text, end, text.second, &mut each);
        }
    }

    /// Ends incomplete lines: nothing will follow.
    pub fn finish(&mut self, mut each: impl FnMut(Line<'_>)) {
        for part in [&mut self.stdout, &mut self.stderr] {
            if part.cut || !part.bytes.is_empty() {
                part.push(b"", End::Newline, None, &mut each);
            }
        }
    }
}

impl Part {
    fn push(&mut self, text: &[u8], end: End, second: Option<u64>, each: &mut impl FnMut(Line<'_>)) {
        let second = self.second.or(second);
        if self.cut {
            // dropped
        } else if self.bytes.len() + text.len() > LINE_LIMIT {
            self.bytes.extend_from_slice(&text[..LINE_LIMIT - self.bytes.len()]);
            each(Line { bytes: whole_characters(&self.bytes), cut: true, second });
            self.cut = true;
        } else if end == End::Open {
            self.bytes.extend_from_slice(text);
        } else if self.bytes.is_empty() {
            each(Line { bytes: text, cut: false, second });
        } else {
            self.bytes.extend_from_slice(text);
            each(Line { bytes: &self.bytes, cut: false, second });
        }
        if end == End::Newline {
            *self = Self::default();
        } else {
            self.second = second;
            if self.cut {
                self.bytes = Vec::new();
            }
        }
    }
}

/// `bytes` without an incomplete character at the end.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    let begin = bytes.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
    match std::str::from_utf8(&bytes[begin..]) {
        // No `error_len`: the character is incomplete.
        Err(error) if error.error_len().is_none() => &bytes[..begin],
        _ => bytes,
    }
}

/// The container that wrote a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Label `service`.
    pub service: String,
    /// Label `device_id`.
    pub instance: String,
    /// The container's name.
    pub container: String,
}

#[derive(Serialize)]
struct Payload<'a> {
    service: &'a str,
    instance_id: &'a str,
    container_name: &'a str,
    level: &'a str,
    message: &'a str,
    timestamp: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logger: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exc_info: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack_info: Option<String>,
}

impl Origin {
    /// The payload for one line. A line without a time stamp gets `now`.
    ///
    /// JSON is read as Python writes it. A field of an object that is not a string is written as JSON; `null` counts as absent.
    #[must_use]
    pub fn payload(&self, line: Line<'_>, now: SystemTime) -> String {
        let bytes = line.bytes.strip_suffix(b"\r").unwrap_or(line.bytes);
        let text = String::from_utf8_lossy(bytes);
        let time = line.second.map_or(now, |second| UNIX_EPOCH + Duration::from_secs(second));
        let mut fields: Option<Map<String, Value>> =
            if !line.cut && text.trim_ascii_start().starts_with('{') { json::from_python(&text).ok() } else { None };
        let structured = fields.is_some();
        let mut field = |name: &str| fields.as_mut().and_then(|fields| fields.remove(name)).and_then(into_text);
        let message = field("event").or_else(|| field("message"));
        let level = field("level").filter(|level| !level.is_empty()).map(|level| truncated(level, WORD_LIMIT));
        let timestamp = field("timestamp").and_then(|text| parse_time(&text)).unwrap_or(time);
        let payload = Payload {
            service: &self.service,
            instance_id: &self.instance,
            container_name: &self.container,
            level: level.as_deref().unwrap_or(if structured { "info" } else { "raw" }),
            message: match &message {
                Some(message) => message,
                None if line.cut => &format!("{text}{CUT}"),
                None => &text,
            },
            timestamp: &clock::iso(timestamp),
            logger: field("logger").map(|logger| truncated(logger, WORD_LIMIT)),
            exc_info: field("exc_info"),
            stack_info: field("stack_info"),
        };
        let mut json = Vec::with_capacity(text.len() + 320);
        // Strings only: serialization cannot fail.
        let _ = serde_json::to_writer(&mut json, &payload);
        String::from_utf8(json).unwrap_or_default()
    }
}

fn into_text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// A time as text, or as seconds since 1970.
fn parse_time(text: &str) -> Option<SystemTime> {
    clock::parse(text).or_else(|| {
        let seconds: f64 = text.parse().ok()?;
        // beyond the year 9999, or NaN
        if !(0.0..253_402_300_800.0).contains(&seconds) {
            return None;
        }
        Some(UNIX_EPOCH + Duration::from_secs_f64(seconds))
    })
}

fn truncated(mut text: String, limit: usize) -> String {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(joiner: &mut Joiner, output: Output, bytes: &[u8]) -> Vec<(String, bool)> {
        let mut found = Vec::new();
        joiner.push(output, StampedText { second: None, bytes }, |line| {
            found.push((String::from_utf8_lossy(line.bytes).into_owned(), line.cut));
        });
        found
    }

    fn payload(line: &[u8]) -> Value {
        let origin = Origin { service: "recorder".to_owned(), instance: "d-1".to_owned(), container: "c".to_owned() };
        let line = Line { bytes: line, cut: false, second: Some(1_795_564_799) };
        serde_json::from_str(&origin.payload(line, UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn a_frame_begins_with_a_time_or_is_all_text() {
        let table: [(&[u8], Option<u64>, &[u8]); 6] = [
            (b"2026-11-24T23:59:59Z hello\n", Some(1_795_564_799), b"hello\n"),
            (b"2026-11-25T00:59:59+01:00 x y", Some(1_795_564_799), b"x y"),
            (b"2026-11-24T23:59:59Z ", Some(1_795_564_799), b""),
            (b"hello world\n", None, b"hello world\n"),
            (b"\xff\xfe \n", None, b"\xff\xfe \n"),
            (b"", None, b""),
        ];
        for (frame, second, bytes) in table {
            assert_eq!(StampedText::parse(frame), StampedText { second, bytes });
        }
    }

    #[test]
    fn parts_are_joined_for_each_output() {
        let mut joiner = Joiner::default();
        assert_eq!(lines(&mut joiner, Output::Stdout, b"be"), []);
        assert_eq!(lines(&mut joiner, Output::Stderr, b"error\n"), [("error".to_owned(), false)]);
        assert_eq!(lines(&mut joiner, Output::Stdout, b"gin\n\nend"), [("begin".to_owned(), false), (String::new(), false)]);
        let mut rest = Vec::new();
        joiner.finish(|line| rest.push(line.bytes.to_vec()));
        assert_eq!(rest, [b"end".to_vec()]);
        joiner.finish(|line| panic!("{line:?}"));
    }

    #[test]
    fn a_long_line_is_forwarded_cut_once_and_memory_stays_small() {
        let mut joiner = Joiner::default();
        let part = vec![b'x'; 8192];
        assert_eq!(lines(&mut joiner, Output::Stdout, &part), []);
        assert_eq!(lines(&mut joiner, Output::Stdout, &part), []);
        assert_eq!(lines(&mut joiner, Output::Stdout, b"y"), [("x".repeat(LINE_LIMIT), true)]);
        for _ in 0..1000 {
            assert_eq!(lines(&mut joiner, Output::Stdout, &part), []);
        }
        assert!(joiner.stdout.bytes.capacity() <= LINE_LIMIT);
        assert_eq!(lines(&mut joiner, Output::Stdout, b"end\nnext\n"), [("next".to_owned(), false)]);
        let exact = [vec![b'x'; LINE_LIMIT], vec![b'\n']].concat();
        assert_eq!(lines(&mut joiner, Output::Stdout, &exact), [("x".repeat(LINE_LIMIT), false)]);
    }

    #[test]
    fn a_cut_leaves_characters_whole_and_is_marked() {
        let mut joiner = Joiner::default();
        let text = format!("x{}", "é".repeat(LINE_LIMIT));
        let cut = lines(&mut joiner, Output::Stdout, text.as_bytes());
        assert_eq!(cut, [(format!("x{}", "é".repeat(LINE_LIMIT / 2 - 1)), true)]);
        let origin = Origin { service: String::new(), instance: String::new(), container: String::new() };
        let json: Value = serde_json::from_str(&origin.payload(Line { bytes: b"{}", cut: true, second: None }, UNIX_EPOCH)).unwrap();
        assert_eq!((&json["message"], &json["level"]), (&"{} … [cut at 16 KiB]".into(), &"raw".into()));
        assert_eq!(whole_characters(&[0x80; 9]), [0x80; 9]);
    }

    #[test]
    fn a_json_object_gives_its_fields() {
        let json = payload(
            br#"{"event":"started","level":"warning","timestamp":"2026-11-24T01:00:00+01:00","logger":"a.b","exc_info":"Traceback","stack_info":"s","x":1}"#,
        );
        let expected = serde_json::json!({
            "service": "recorder", "instance_id": "d-1", "container_name": "c", "level": "warning", "message": "started",
            "timestamp": "2026-11-24T00:00:00.000000Z", "logger": "a.b", "exc_info": "Traceback", "stack_info": "s",
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn wrong_fields_are_shown_or_replaced_and_never_lose_the_line() {
        let table: [(&str, &str, &str); 12] = [
            (r#"{"event":"a","message":"b"}"#, "info", "a"),
            (r#"{"event":null,"message":"b","level":"debug"}"#, "debug", "b"),
            (r#"{"event":["a",{"b":1}]}"#, "info", r#"["a",{"b":1}]"#),
            (r#"{"event":false,"level":30}"#, "30", "false"),
            (r#"{"event":"","level":""}"#, "info", ""),
            (r#"{"x":1}"#, "info", r#"{"x":1}"#),
            ("{}", "info", "{}"),
            (r#"{"event":"cut off"#, "raw", r#"{"event":"cut off"#),
            ("[1,2]", "raw", "[1,2]"),
            ("\"text\"", "raw", "\"text\""),
            ("null", "raw", "null"),
            ("plain\r", "raw", "plain"),
        ];
        for (line, level, message) in table {
            let json = payload(line.as_bytes());
            assert_eq!((&json["level"], &json["message"]), (&level.into(), &message.into()), "{line}");
            assert_eq!(json["timestamp"], "2026-11-24T23:59:59.000000Z");
        }
        let json = payload(br#"{"event":"x","logger":7,"exc_info":true,"stack_info":null,"timestamp":1795564799.25}"#);
        assert_eq!((&json["logger"], &json["exc_info"], json.get("stack_info")), (&"7".into(), &"true".into(), None));
        assert_eq!(json["timestamp"], "2026-11-24T23:59:59.250000Z");
        for wrong in ["\"yesterday\"", "-1", "1e300", "[]", "\"NaN\""] {
            let json = payload(format!("{{\"event\":\"x\",\"timestamp\":{wrong}}}").as_bytes());
            assert_eq!(json["timestamp"], "2026-11-24T23:59:59.000000Z", "{wrong}");
        }
        for (line, level, message) in [
            (r#"{"event":"loud","level":"warning","rms":NaN,"peak":[-Infinity,Infinity]}"#, "warning", "loud"),
            (r#"{"event":"half \ud83d","level":"error","name":"\udc00"}"#, "error", "half \u{fffd}"),
            (r#"{"event":NaN,"message":"m"}"#, "info", "m"),
            (r#"{"rms":NaN}"#, "info", r#"{"rms":NaN}"#),
            (r#"{"event":"x","rms":nan}"#, "raw", r#"{"event":"x","rms":nan}"#),
        ] {
            let json = payload(line.as_bytes());
            assert_eq!((&json["level"], &json["message"]), (&level.into(), &message.into()), "{line}");
        }
        let deep = format!("{{\"event\":{}", "[".repeat(16_000));
        assert_eq!(payload(deep.as_bytes())["level"], "raw");
        assert_eq!(payload(b"bad \xff\xfe \0 end")["message"], "bad \u{fffd}\u{fffd} \0 end");
    }
}
