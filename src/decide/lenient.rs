//! Values of a JSON type that another program wrote for a number or a switch.
//!
//! Web forms and scripts store `"96000"`, `44100.0` or `"yes"`. The Python services of a station read these values with
//! pydantic, which converts them; so a row that they use is a row that the Controller uses. Each function returns what
//! pydantic reads, or `None` where it refuses the value.

use serde_json::Value;

/// Whole numbers up to this are exact in a JSON number with a fraction.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A whole number that is not negative: `5`, `5.0`, `"5"`, `" 1_000 "`, `"5.0"`, `true`.
#[must_use]
pub fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Bool(on) => Some(u64::from(*on)),
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => digits(text.trim()),
        _ => None,
    }
}

/// A number: `12`, `"12.5"`, `" 1e3 "`, `true`.
#[must_use]
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(on) => Some(f64::from(u8::from(*on))),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => without_underscores(text.trim())?.parse().ok(),
        _ => None,
    }
}

/// A switch: `true`, `1`, `0.0`, `"Yes"`, `"off"`.
#[must_use]
pub fn switch(value: &Value) -> Option<bool> {
    let is_one_of = |text: &str, words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    match value {
        Value::Bool(on) => Some(*on),
        Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
        Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
        Value::String(text) if is_one_of(text, &["1", "t", "true", "y", "yes", "on"]) => Some(true),
        Value::String(text) if is_one_of(text, &["0", "f", "false", "n", "no", "off"]) => Some(false),
        _ => None,
    }
}

/// The whole number, if it is one and is exact.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=EXACT).contains(&number)).then_some(number as u64)
}

/// Digits with an optional `+`, single `_` between them, and zeros after a point.
fn digits(text: &str) -> Option<u64> {
    let (whole, zeros) = text.split_once('.').unwrap_or((text, "0"));
    let is_whole = !zeros.is_empty() && zeros.bytes().all(|digit| digit == b'0');
    without_underscores(whole).filter(|_| is_whole)?.parse().ok()
}

/// The text without its underscores, which may only stand between other characters.
fn without_underscores(text: &str) -> Option<String> {
    let is_misplaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!is_misplaced).then(|| text.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What pydantic 2.14 reads as a whole number, a number and a switch.
    #[test]
    fn values_are_read_as_pydantic_reads_them() {
        type Line = (&'static str, Option<u64>, Option<f64>, Option<bool>);
        let table: &[Line] = &[
            ("96000", Some(96_000), Some(96_000.0), None),
            ("44100.0", Some(44_100), Some(44_100.0), None),
            ("44100.5", None, Some(44_100.5), None),
            ("1e15", Some(1_000_000_000_000_000), Some(1e15), None),
            ("1e20", None, Some(1e20), None),
            ("0", Some(0), Some(0.0), Some(false)),
            ("-0.0", Some(0), Some(0.0), Some(false)),
            ("1", Some(1), Some(1.0), Some(true)),
            ("1.0", Some(1), Some(1.0), Some(true)),
            ("2", Some(2), Some(2.0), None),
            ("-1", None, Some(-1.0), None),
            ("true", Some(1), Some(1.0), Some(true)),
            ("false", Some(0), Some(0.0), Some(false)),
            ("null", None, None, None),
            ("[1]", None, None, None),
            (r#"{"a":1}"#, None, None, None),
            (r#""""#, None, None, None),
            (r#""96000""#, Some(96_000), Some(96_000.0), None),
            (r#""\u00a0 96000\n""#, Some(96_000), Some(96_000.0), None),
            (r#""+96000""#, Some(96_000), Some(96_000.0), None),
            (r#""0096""#, Some(96), Some(96.0), None),
            (r#""96_000""#, Some(96_000), Some(96_000.0), None),
            (r#""96_000.00""#, Some(96_000), Some(96_000.0), None),
            (r#""_96""#, None, None, None),
            (r#""96_""#, None, None, None),
            (r#""96__0""#, None, None, None),
            (r#""96000.""#, None, Some(96_000.0), None),
            (r#""96000.5""#, None, Some(96_000.5), None),
            (r#"".5""#, None, Some(0.5), None),
            (r#""1e3""#, None, Some(1000.0), None),
            (r#""-1.5""#, None, Some(-1.5), None),
            (r#""inf""#, None, Some(f64::INFINITY), None),
            (r#""96 000""#, None, None, None),
            (r#""96,000""#, None, None, None),
            (r#""0x10""#, None, None, None),
            (r#""+ 1""#, None, None, None),
            (r#""--1""#, None, None, None),
            (r#""+""#, None, None, None),
            (r#"".""#, None, None, None),
            (r#""٣""#, None, None, None),
            (r#""18446744073709551616""#, None, Some(18_446_744_073_709_551_616.0), None),
            (r#""1""#, Some(1), Some(1.0), Some(true)),
            (r#""0""#, Some(0), Some(0.0), Some(false)),
            (r#""1.0""#, Some(1), Some(1.0), None),
            (r#""true""#, None, None, Some(true)),
            (r#""tRuE""#, None, None, Some(true)),
            (r#""yes""#, None, None, Some(true)),
            (r#""Y""#, None, None, Some(true)),
            (r#""on""#, None, None, Some(true)),
            (r#""t""#, None, None, Some(true)),
            (r#""False""#, None, None, Some(false)),
            (r#""NO""#, None, None, Some(false)),
            (r#""n""#, None, None, Some(false)),
            (r#""off""#, None, None, Some(false)),
            (r#""f""#, None, None, Some(false)),
            (r#"" true""#, None, None, None),
            (r#""enabled""#, None, None, None),
        ];
        for (json, whole, decimal, on) in table {
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!((count(&value), number(&value), switch(&value)), (*whole, *decimal, *on), "{json}");
        }
    }
}
