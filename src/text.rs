//! Foreign text in log lines, tables, and fingerprints of text.

use std::fmt;

use sha2::{Digest, Sha256};

/// State of a source that has not yet responded since the start.
pub const NOT_YET: &str = "not known yet";

/// Maximum length of foreign text in a log line, in characters.
const LIMIT: usize = 200;

/// `text` on one line, shortened, with control characters escaped.
///
/// A USB string, a database row or an API response can contain any text, but a log line must stay one line.
#[must_use]
pub fn shown(text: &str) -> Shown<'_> {
    Shown { text, limit: LIMIT }
}

/// `text` on one line, not shortened, with control characters escaped.
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
            // Bidirectional controls can change the order in which a line is displayed.
            if c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
        f.pad(&line)
    }
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

    proptest! {
        #[test]
        fn any_text_becomes_one_line_of_limited_length(text in any::<String>(), count in 1..300_usize) {
            let line = shown(&text.repeat(count)).to_string();
            prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            // An escaped character has at most ten characters.
            prop_assert!(line.chars().count() <= LIMIT * 10 + 40, "{} characters", line.chars().count());
        }
    }

    #[test]
    fn control_characters_are_escaped_and_long_text_is_cut() {
        assert_eq!(shown("a\nb\x1b[31m\u{202e}").to_string(), r"a\nb\u{1b}[31m\u{202e}");
        assert_eq!(shown(&"x".repeat(300)).to_string(), format!("{}… (300 bytes)", "x".repeat(200)));
        assert_eq!(shown("Käuzchen 🦉").to_string(), "Käuzchen 🦉");
    }
}
