//! Foreign text in log lines, tables, and fingerprints of text.

use std::fmt;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// State of a source that has not yet responded since the start.
pub const NOT_YET: &str = "not known yet";

/// Maximum length of foreign text in a log line, in characters.
const LIMIT: usize = 200;

/// `text` on one line, shortened, with invisible characters escaped.
///
/// A USB string, a database row or an API response can contain any text, but a log line must stay one line.
#[must_use]
pub fn shown(text: &str) -> Shown<'_> {
    Shown { text, limit: LIMIT }
}

/// `text` on one line, not shortened, with invisible characters escaped.
#[must_use]
pub fn escaped(text: &str) -> Shown<'_> {
    Shown { text, limit: usize::MAX }
}

/// The result of [`shown`] and [`escaped`].
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    text: &'a str,
    limit: usize,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::with_capacity(self.text.len().min(self.limit));
        for (count, c) in self.text.trim_end().chars().enumerate() {
            if count == self.limit {
                line.push_str(&format!("… ({} bytes)", self.text.len()));
                break;
            }
            if is_invisible(c) {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
        f.pad(&line)
    }
}

/// Whether a character has no shape of its own: control and format characters, line and paragraph separators, and tags
/// (Unicode 16: Cc, Cf, Zl, Zp). They move a terminal's cursor, change the order in which a line is displayed, or make
/// two different texts look alike.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with all other characters than ASCII escaped, for a database whose encoding cannot hold them.
#[must_use]
pub fn ascii(text: &str) -> String {
    let escape = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
    text.chars().map(escape).collect()
}

/// The same for all texts and keys in `value`.
#[must_use]
pub fn ascii_value(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(ascii(text)),
        Value::Array(values) => Value::Array(values.iter().map(ascii_value).collect()),
        Value::Object(fields) => Value::Object(ascii_map(fields)),
        other => other.clone(),
    }
}

/// The same for a map.
#[must_use]
pub fn ascii_map(fields: &Map<String, Value>) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in fields {
        map.insert(ascii(key), ascii_value(value));
    }
    map
}

/// Rows as lines with aligned columns.
#[must_use]
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// SHA-256 as 64 hexadecimal digits.
#[must_use]
pub fn fingerprint(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_in_ascii_stays_distinct() {
        assert_eq!(ascii("UltraMic™ 3"), "UltraMic\\u{2122} 3");
        let value = serde_json::json!({ "é": ["™", 1, null], "a": "b" });
        assert_eq!(ascii_value(&value), serde_json::json!({ "\\u{e9}": ["\\u{2122}", 1, null], "a": "b" }));
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_line_of_limited_length(text in any::<String>(), count in 1..300_usize) {
            let line = shown(&text.repeat(count)).to_string();
            prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            // An escaped character has at most ten characters.
            prop_assert!(line.chars().count() <= LIMIT * 10 + 40, "{} characters", line.chars().count());
        }

        // The categories come from the Unicode tables of the crate regex-syntax.
        #[test]
        fn no_control_or_format_character_is_shown(text in r"[a\p{Cc}\p{Cf}\p{Zl}\p{Zp}\x{e0000}-\x{e007f}]{0,20}") {
            for line in [shown(&text).to_string(), escaped(&text).to_string()] {
                prop_assert!(line.chars().all(|c| c.is_ascii_graphic()), "{text:?} is shown as {line:?}");
            }
        }

        #[test]
        fn letters_marks_and_symbols_are_shown_as_they_are(text in r"[\p{L}\p{M}\p{N}\p{P}\p{S}]{0,20}") {
            prop_assert_eq!(shown(&text).to_string(), text);
        }
    }

    #[test]
    fn control_characters_are_escaped_and_long_text_is_cut() {
        assert_eq!(shown("a\nb\x1b[31m\u{202e}").to_string(), r"a\nb\u{1b}[31m\u{202e}");
        assert_eq!(shown(&"x".repeat(300)).to_string(), format!("{}… (300 bytes)", "x".repeat(200)));
        assert_eq!(shown("Käuzchen 🦉").to_string(), "Käuzchen 🦉");
    }
}
