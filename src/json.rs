//! JSON from outside: limited before it is parsed, as tolerant as Python's parser where a line comes from Python, and
//! printed on one line.
//!
//! serde_json calls itself for each level of nesting, up to 128 deep, which does not fit the small stacks of threads. So
//! all JSON that this program did not write itself is read by [`from_str`] or [`from_python`].

use std::iter::Peekable;
use std::str::Chars;

use serde::de::{DeserializeOwned, Error as _};
use serde_json::Error;

use crate::text::is_invisible;

/// Arrays and objects inside each other, at most. What other programs of a station write has eight or less.
pub const DEPTH: usize = 32;
/// Longest text that is parsed, in bytes; most callers read less.
pub const SIZE: usize = 16 << 20;

/// Parses JSON of a limited size and depth.
///
/// # Errors
/// The text is too long, nested too deeply, or not valid for the type.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    if text.len() > SIZE {
        return Err(Error::custom(format!("longer than {} MiB", SIZE >> 20)));
    }
    if is_deeper_than(text, DEPTH) {
        return Err(Error::custom(format!("nested deeper than {DEPTH} levels")));
    }
    serde_json::from_str(text)
}

/// Parses JSON as Python's `json` module writes it: NaN and infinite numbers become `null`, and a surrogate without its
/// other half becomes U+FFFD.
///
/// # Errors
/// As for [`from_str`].
pub fn from_python<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    from_str(text).or_else(|error| {
        // A text that is too long or nested too deeply would be copied in vain.
        if !error.is_syntax() {
            return Err(error);
        }
        let strict = one_line(text);
        if strict == text { Err(error) } else { from_str(&strict) }
    })
}

/// The same JSON on one line: without spaces between values, with control and format characters as escapes. What only
/// Python accepts is replaced as by [`from_python`]. Text that is not JSON stays so.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    // A space separates two values that no comma or colon separates: without it, `1 2` would become valid.
    let (mut space, mut value) = (false, false);
    while let Some(c) = chars.next() {
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            space = true;
            continue;
        }
        let is_value = !"{}[],:".contains(c);
        if space && value && is_value {
            line.push(' ');
        }
        (space, value) = (false, is_value);
        if c == '"' {
            line.push(c);
            string(&mut chars, &mut line);
        } else if is_value {
            let start = line.len();
            line.push(c);
            while let Some(c) = chars.next_if(|c| !" \t\n\r{}[],:\"".contains(*c)) {
                line.push(c);
            }
            if is_not_finite(&line[start..]) {
                line.replace_range(start.., "null");
            }
        } else {
            line.push(c);
        }
    }
    line
}

fn is_deeper_than(text: &str, limit: usize) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// NaN and infinity as Python writes them, or a number beyond the range of a double.
fn is_not_finite(word: &str) -> bool {
    let is_number = word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
    matches!(word, "NaN" | "Infinity" | "-Infinity") || is_number && word.parse::<f64>().is_ok_and(f64::is_infinite)
}

/// Copies a string up to its closing quote.
fn string(chars: &mut Peekable<Chars<'_>>, line: &mut String) {
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&'u') => {
                chars.next();
                let Some(code) = hex(chars) else {
                    line.push_str("\\u");
                    continue;
                };
                let low = if (0xd800..0xdc00).contains(&code) { low_surrogate(chars) } else { None };
                match low {
                    Some(low) => [code, low].into_iter().for_each(|code| push_escape(line, code)),
                    None if (0xd800..0xe000).contains(&code) => line.push_str("\\ufffd"),
                    None => push_escape(line, code),
                }
            }
            '\\' => {
                line.push(c);
                line.extend(chars.next());
            }
            '"' => {
                line.push(c);
                return;
            }
            // Below U+0020 no character is valid here; it stays, and so does the fault.
            c if c >= ' ' && is_invisible(c) => c.encode_utf16(&mut [0; 2]).iter().for_each(|code| push_escape(line, *code)),
            c => line.push(c),
        }
    }
}

fn push_escape(line: &mut String, code: u16) {
    line.push_str(&format!("\\u{code:04x}"));
}

/// Takes four hexadecimal digits, if they follow.
fn hex(chars: &mut Peekable<Chars<'_>>) -> Option<u16> {
    let mut ahead = chars.clone();
    let mut code = 0;
    for _ in 0..4 {
        code = code << 4 | u16::try_from(ahead.next()?.to_digit(16)?).ok()?;
    }
    *chars = ahead;
    Some(code)
}

/// Takes an escaped low surrogate, if one follows.
fn low_surrogate(chars: &mut Peekable<Chars<'_>>) -> Option<u16> {
    let mut ahead = chars.clone();
    if ahead.next() != Some('\\') || ahead.next() != Some('u') {
        return None;
    }
    let code = hex(&mut ahead).filter(|code| (0xdc00..0xe000).contains(code))?;
    *chars = ahead;
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn what_python_writes_is_read() {
        let table = [
            (r#"{"a":NaN,"b":[Infinity,-Infinity]}"#, json!({"a": null, "b": [null, null]})),
            (r#"{"a":1e999,"b":-1e999,"c":1e99}"#, json!({"a": null, "b": null, "c": 1e99})),
            (r#"{"a":"NaN, \"Infinity\"","NaN":NaN}"#, json!({"a": "NaN, \"Infinity\"", "NaN": null})),
            (r#"["\ud800","x\udfffy","\ud83d\ude00","\ud83d\ud83d\ude00","\ud83d\u0041"]"#, json!(["�", "x�y", "😀", "�😀", "�A"])),
            ("{\"a\" :\t1 ,\r\n \"b\":[ NaN ]}", json!({"a": 1, "b": [null]})),
            (r#"["\\ud800",NaN]"#, json!([r"\ud800", null])),
        ];
        for (text, expected) in table {
            assert_eq!(from_python::<Value>(text).unwrap(), expected, "{text}");
        }
        let wrong = [
            "{a:NaN}",
            "[nan]",
            "[+Infinity]",
            "[--Infinity]",
            "[1 2]",
            "[NaN NaN]",
            "[\"a\" \"b\"]",
            "[\"\\u12\"]",
            "[\"a\nb\"]",
            "\"a",
            "",
        ];
        for text in wrong {
            assert!(from_python::<Value>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn thirty_two_levels_fit_the_smallest_stack_and_more_are_refused() {
        let parse = || {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                for depth in [33, 99, 127, 100_000] {
                    let text = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                    assert!(from_str::<Value>(&text).is_err() && from_python::<Value>(&text).is_err());
                }
                let text = format!("{}1{}", open.repeat(DEPTH), close.repeat(DEPTH));
                assert_eq!(from_python::<Value>(&text).unwrap().to_string(), text);
            }
        };
        std::thread::Builder::new().stack_size(128 << 10).spawn(parse).unwrap().join().unwrap();
        assert!(from_str::<Value>(&format!("[\"{}\"]", "[".repeat(99))).is_ok());
        assert!(from_str::<Value>(&format!("[{}1]", "[1],".repeat(99))).is_ok());
        assert!(from_str::<Value>(&" ".repeat(SIZE + 1)).unwrap_err().to_string().starts_with("longer than 16 MiB"));
    }

    #[test]
    fn one_event_is_one_line() {
        let text = "{\"a\": \"x\u{2028}\u{202e}\u{e0001}\\n\\\"\" ,\n\n \"b\":\r\n[1, -2.5e3 ,true]}\n";
        let line = one_line(text);
        assert_eq!(line, r#"{"a":"x\u2028\u202e\udb40\udc01\n\"","b":[1,-2.5e3,true]}"#);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    proptest! {
        #[test]
        fn a_value_is_the_same_on_one_line(text in any::<String>(), key in any::<String>(), number in any::<f64>()) {
            let value = json!({key: [text, number, {"a": null}]});
            for json in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let line = one_line(&json);
                prop_assert!(!line.chars().any(is_invisible), "{line:?}");
                prop_assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), serde_json::from_str::<Value>(&json).unwrap());
            }
        }
    }
}
