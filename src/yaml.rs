//! Parses YAML into JSON values, for profiles and defaults. Only this file uses `serde_yaml`.
//!
//! It does not validate the content. The caller does, and reports a field by its dotted path; [`line_of`] finds the
//! line of the field. A byte-order mark, which editors of Windows write, is ignored.
//!
//! Invariant: no text costs more than some milliseconds and a megabyte. `serde_yaml` does not guarantee that: its
//! scanner is quadratic in open flow brackets (100 KB of `[` take 12-18 s), and its alias limit counts the aliases
//! but not the size of what they copy. So this file limits size and brackets before it calls the parser, and builds
//! the tree with a visitor that has a budget of nodes, bytes and levels.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_yaml::Deserializer;

use crate::text::shown;

/// Maximum size of a text, in bytes.
pub const SIZE_LIMIT: usize = 64 * 1024;
/// Maximum depth of lists and mappings.
pub const MAX_DEPTH: usize = 32;
/// Maximum number of opening brackets, in quotes and comments, too: so quoting cannot evade it.
const MAX_BRACKETS: usize = 1_000;
/// Maximum number of levels that one line opens with `- - -` or `? ? ?`.
const MAX_INDICATORS: usize = MAX_DEPTH;
/// Maximum number of values in the tree; each use of an alias counts.
const MAX_NODES: usize = 10_000;
/// Maximum number of bytes of strings in the tree; each use of an alias counts.
const MAX_STRING_BYTES: usize = 4 * SIZE_LIMIT;

/// A fault in a YAML text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlFault {
    /// Line, from 1 on, if it is known.
    pub line: Option<usize>,
    /// What is wrong, on one line.
    pub what: String,
}

impl YamlFault {
    /// `file:line: what`, or without a line `file: what`.
    #[must_use]
    pub fn in_file(&self, name: &str) -> String {
        match self.line {
            Some(line) => format!("{name}:{line}: {}", self.what),
            None => format!("{name}: {}", self.what),
        }
    }
}

/// Decodes the content of a file.
///
/// # Errors
/// It is not UTF-8.
pub fn decode(bytes: Vec<u8>) -> Result<String, YamlFault> {
    if matches!(bytes[..], [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..]) {
        return Err(YamlFault { line: None, what: "expected UTF-8 text, got UTF-16: save it as UTF-8".to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let (valid, rest) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        YamlFault { line: Some(line), what: format!("expected UTF-8 text, got the byte 0x{:02X}: save it as UTF-8", rest[0]) }
    })
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Reads one YAML document. An empty text is `null`.
///
/// # Errors
/// One fault, with the line where the parser stopped: malformed YAML, an exceeded limit, or something that JSON does
/// not have (tags, `.nan`, merge keys, duplicate keys).
pub fn parse(text: &str) -> Result<Value, YamlFault> {
    let text = without_mark(text);
    within_limits(text)?;
    let budget = Budget { nodes: Cell::new(MAX_NODES), bytes: Cell::new(MAX_STRING_BYTES) };
    let tree = Tree { budget: &budget, depth: 0 };
    let mut documents = Deserializer::from_str(text);
    let Some(document) = documents.next() else { return Ok(Value::Null) };
    let value = tree.deserialize(document).map_err(|error| describe(text, &error))?;
    match documents.next() {
        None => Ok(value),
        Some(_) => Err(YamlFault { line: second_document(text), what: "expected one document, but another one begins here".to_owned() }),
    }
}

/// Finds the line, from 1 on, of the field at a dotted path, or of its nearest ancestor that exists.
///
/// `None` if the first key of the path does not exist. The text must have been parsed: this does not check the limits.
#[must_use]
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let keys: Vec<&str> = path.split('.').collect();
    (1..=keys.len()).rev().find_map(|depth| line_of_key(text, &keys[..depth]))
}

/// Only an error of the parser carries a line. So this makes the parser fail at the last key of the path.
fn line_of_key(text: &str, keys: &[&str]) -> Option<usize> {
    let is_found = Cell::new(false);
    let document = Deserializer::from_str(without_mark(text)).next()?;
    let error = Finder { keys, is_found: &is_found }.deserialize(document).err()?;
    error.location().filter(|_| is_found.get()).map(|location| location.line())
}

/// Follows the keys of a path, and fails at the last one.
#[derive(Clone, Copy)]
struct Finder<'a> {
    keys: &'a [&'a str],
    is_found: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Finder<'_> {
    type Value = ();
    fn deserialize<D: de::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Finder<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a mapping")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(is_next) = entries.next_key_seed(Key(|key: &str| match self.keys {
            [last] if *last == key => {
                self.is_found.set(true);
                Err("found".to_owned())
            }
            keys => Ok(keys.first() == Some(&key)),
        }))? {
            if is_next {
                return entries.next_value_seed(Self { keys: &self.keys[1..], ..self });
            }
            entries.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// The line at which another document begins.
fn second_document(text: &str) -> Option<usize> {
    let (mut has_begun, mut has_ended) = (false, false);
    for (number, line) in (1..).zip(text.lines()) {
        let first = line.split_whitespace().next().filter(|word| !word.starts_with('#'));
        // Markers begin in the first column.
        match first.filter(|_| !line.starts_with([' ', '\t'])) {
            Some("...") => has_ended = has_begun,
            Some("---") if has_begun => return Some(number),
            Some(word) if word.starts_with('%') && !has_begun => {}
            _ if first.is_none() => {}
            _ if has_ended => return Some(number),
            _ => has_begun = true,
        }
    }
    None
}

/// A fault of the parser in our words. It may have found the fault behind the last line, where a bracket is missing.
fn describe(text: &str, error: &serde_yaml::Error) -> YamlFault {
    let message = error.to_string();
    let mut line = error.location().map(|location| location.line().min(text.lines().count().max(1)));
    let mut what = without_location(&message);
    // For a character that YAML does not allow, the parser knows only its position in bytes.
    if let Some((problem, position)) = message.rsplit_once(" at position ") {
        let before = position.parse().ok().and_then(|position: usize| text.as_bytes().get(..position));
        line = before.map(|before| 1 + before.iter().filter(|byte| **byte == b'\n').count());
        problem.clone_into(&mut what);
    }
    let indentation = line.and_then(|line| text.lines().nth(line - 1)).into_iter().flat_map(str::chars).take_while(|c| c.is_whitespace());
    if indentation.into_iter().any(|c| c == '\t') {
        what.push_str("; this line begins with a tab: indent with spaces");
    }
    YamlFault { line, what: shown(&what).to_string() }
}

/// The message of the parser without the location of the fault, with which our message begins. The line of the context,
/// such as the one of an opening bracket, is kept.
fn without_location(message: &str) -> String {
    let after_digits = |text: &str| text.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
    let mut parts = message.split(" at line ");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        let rest = after_digits(part);
        if index > 0 {
            kept.push_str(&format!(" in line {}", part.trim_end_matches(&rest)));
        }
        kept.push_str(&after_digits(rest.trim_start_matches(" column ")));
    }
    kept
}

/// Refuses texts that would be slow to parse. It only counts, so quoting cannot evade it.
fn within_limits(text: &str) -> Result<(), YamlFault> {
    let refuse = |line, what: String| Err(YamlFault { line, what });
    if text.len() > SIZE_LIMIT {
        return refuse(None, format!("expected at most {SIZE_LIMIT} bytes, got {}", text.len()));
    }
    let mut brackets = 0;
    for (number, line) in (1..).zip(text.lines()) {
        brackets += line.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
        if brackets > MAX_BRACKETS {
            return refuse(Some(number), format!("expected at most {MAX_BRACKETS} opening brackets"));
        }
        let indicators = line.split_whitespace().take_while(|word| matches!(*word, "-" | "?" | ":")).count();
        if indicators > MAX_INDICATORS {
            return refuse(Some(number), format!("nested deeper than {MAX_DEPTH} levels"));
        }
    }
    Ok(())
}

/// The remaining budget of the tree; all levels share it, so it needs cells.
struct Budget {
    nodes: Cell<usize>,
    bytes: Cell<usize>,
}

impl Budget {
    fn spend<E: de::Error>(&self, bytes: usize) -> Result<(), E> {
        let left = (self.nodes.get().checked_sub(1), self.bytes.get().checked_sub(bytes));
        let (Some(nodes), Some(bytes)) = left else {
            return Err(E::custom(format!(
                "too much content: at most {MAX_NODES} values and {MAX_STRING_BYTES} bytes of text, aliases included"
            )));
        };
        self.nodes.set(nodes);
        self.bytes.set(bytes);
        Ok(())
    }
}

/// Builds one value at one depth.
#[derive(Clone, Copy)]
struct Tree<'b> {
    budget: &'b Budget,
    depth: usize,
}

impl Tree<'_> {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;
    fn deserialize<D: de::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a mapping, a list, a text, a 64-bit number, true, false or null")
    }
    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(Value::Null)
    }
    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(Value::Bool(value))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(value.into())
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(value.into())
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.budget.spend(0)?;
        let number = Number::from_f64(value).ok_or_else(|| E::custom(format!("{value} is not a finite number")))?;
        Ok(Value::Number(number))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.budget.spend(value.len())?;
        without_nul(value)?;
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.budget.spend(0)?;
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.budget.spend(0)?;
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key(|key: &str| match key {
            "<<" => Err("merge keys (<<) are not supported".to_owned()),
            key if map.contains_key(key) => Err(format!("duplicate key {key:?}")),
            key if key.contains('\0') => Err(format!("expected a key without NUL, got {key:?}")),
            key => Ok(key.to_owned()),
        }))? {
            self.budget.spend(key.len())?;
            map.insert(key, entries.next_value_seed(inner)?);
        }
        Ok(Value::Object(map))
    }
    fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(de::Error::custom("tags (!name) are not supported"))
    }
}

/// PostgreSQL does not accept text that contains NUL.
fn without_nul<E: de::Error>(text: &str) -> Result<(), E> {
    if text.contains('\0') { Err(E::custom(format!("expected a text without NUL, got {text:?}"))) } else { Ok(()) }
}

/// A key of a mapping: any scalar, as text. The error of the function gets the line of the key.
struct Key<F>(F);

impl<'de, T, F: FnOnce(&str) -> Result<T, String>> DeserializeSeed<'de> for Key<F> {
    type Value = T;
    fn deserialize<D: de::Deserializer<'de>>(self, from: D) -> Result<T, D::Error> {
        from.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Key<F> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a text as key")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<T, E> {
        (self.0)(key).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::{Duration, Instant};

    #[test]
    fn scalars_lists_and_mappings_become_json() {
        let text =
            "a: 1\nb: -2.5\nc: [x, 'y', \"z\"]\nd: {e: null, f: true}\n7: seven\nid: '0869'\nloose: 0869\nanchor: &n {k: v}\nagain: *n\n";
        let expected = json!({"a": 1, "b": -2.5, "c": ["x", "y", "z"], "d": {"e": null, "f": true}, "7": "seven",
            "id": "0869", "loose": "0869", "anchor": {"k": "v"}, "again": {"k": "v"}});
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("# nothing\n").unwrap(), Value::Null);
    }

    #[test]
    fn a_fault_has_a_line_and_a_reason() {
        let table = [
            ("a: 1\nb: [1, 2\n", "f:2: did not find expected ',' or ']', while parsing a flow sequence in line 2"),
            ("a: [1,\n  2\nb: 3\n", "f:3: did not find expected ',' or ']', while parsing a flow sequence in line 1"),
            ("a: 'x\nb: 1\n", "f:2: found unexpected end of stream, while scanning a quoted scalar in line 1"),
            ("a: 1\na: 2\n", "f:2: duplicate key \"a\""),
            ("a: 1\r\na: 2\r\n", "f:2: duplicate key \"a\""),
            ("\u{feff}a: 1\na: 2\n", "f:2: duplicate key \"a\""),
            ("x: 1\na:\n  b: 1\n  # c\n  \"b\": 2\n", "f:5: a: duplicate key \"b\""),
            ("a: {b: 1,\n  c: 2,\n  b: 3}\n", "f:3: a: duplicate key \"b\""),
            ("1: x\n'1': y\n", "f:2: duplicate key \"1\""),
            ("a:\n  b: .nan\n", "f:2: a.b: NaN is not a finite number"),
            ("a: !secret b\n", "f:1: a: tags (!name) are not supported"),
            ("b: &b {x: 1}\na:\n  <<: *b\n", "f:3: a: merge keys (<<) are not supported"),
            ("? [a]\n: b\n", "f:1: invalid type: sequence, expected a text as key"),
            ("a: *nowhere\n", "f:1: unknown anchor"),
            ("a: 1\n---\nb: 2\n", "f:2: expected one document, but another one begins here"),
            ("# c\n---\na: |\n  ---\n\n--- # next\nb: 2\n", "f:6: expected one document, but another one begins here"),
            ("%YAML 1.2\n---\na: 1\n...\n# c\nb: 2\n", "f:6: expected one document, but another one begins here"),
            (
                "a: 99999999999999999999999\n",
                "f:1: a: invalid type: integer `99999999999999999999999` as u128, expected a mapping, a list, a text, a 64-bit number, true, false or null",
            ),
            (
                "a:\n\tb: 1\n",
                "f:2: found character that cannot start any token, while scanning for the next token; this line begins with a tab: indent with spaces",
            ),
            ("a:\n  b: 1\n c: 2\n", "f:3: did not find expected key, while parsing a block mapping"),
            ("a: 1\r\nb: \u{1}x\n", "f:2: control characters are not allowed"),
            ("a: 1\n\u{feff}b: 1\n", "f:2: did not find expected key, while parsing a block mapping"),
            ("a: b: c\n", "f:1: mapping values are not allowed in this context"),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).unwrap_err().in_file("f"), expected, "{text:?}");
        }
        let long = "x".repeat(SIZE_LIMIT + 1);
        assert_eq!(parse(&long).unwrap_err().in_file("f"), "f: expected at most 65536 bytes, got 65537");
    }

    #[test]
    fn a_mark_line_ends_tabs_and_an_end_of_document_are_no_faults() {
        for text in ["\u{feff}a: b\n", "a: b\r\n", "a: b\r", "a:\tb\n", "---\na: b\n...\n", "\u{feff}# c\n\n--- \na: b", "a: b\n\n"] {
            assert_eq!(parse(text), Ok(json!({ "a": "b" })), "{text:?}");
        }
        assert_eq!(parse("\u{feff}"), Ok(Value::Null));
    }

    #[test]
    fn another_encoding_than_utf8_is_named() {
        let utf16 = |order: fn(u16) -> [u8; 2]| "a: b\n".encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let (little, big) = (utf16(u16::to_le_bytes), utf16(u16::to_be_bytes));
        let table: [(Vec<u8>, Result<&str, &str>); 7] = [
            (b"a: \xe2\x84\xa2".to_vec(), Ok("a: \u{2122}")),
            (b"a: b\r\nn: K\xe4uzchen\n".to_vec(), Err("f:2: expected UTF-8 text, got the byte 0xE4: save it as UTF-8")),
            ([b"\xff\xfe".to_vec(), little.clone()].concat(), Err("f: expected UTF-8 text, got UTF-16: save it as UTF-8")),
            ([b"\xfe\xff".to_vec(), big.clone()].concat(), Err("f: expected UTF-8 text, got UTF-16: save it as UTF-8")),
            (little, Err("f: expected UTF-8 text, got UTF-16: save it as UTF-8")),
            (big, Err("f: expected UTF-8 text, got UTF-16: save it as UTF-8")),
            (Vec::new(), Ok("")),
        ];
        for (bytes, expected) in table {
            let decoded = decode(bytes).map_err(|fault| fault.in_file("f"));
            assert_eq!(decoded.as_deref(), expected.map_err(str::to_owned).as_deref());
        }
    }

    #[test]
    fn a_malicious_text_is_refused_quickly_and_with_little_memory() {
        let bomb = format!(
            "a: &a [x,x,x,x,x,x,x,x,x]\n{}",
            ('b'..='z').map(|c| format!("{c}: &{c} [{}]\n", vec![format!("*{}", (c as u8 - 1) as char); 9].join(","))).collect::<String>()
        );
        let copies = format!("a: &a {}\nb:\n{}", "x".repeat(30_000), "- *a\n".repeat(6_000));
        let nested_blocks: String = (0..300).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        let table = [
            "[".repeat(60_000),
            "[".repeat(999),
            "{a: ".repeat(15_000),
            "- ".repeat(30_000),
            "? ".repeat(30_000),
            "a: 'x".repeat(10_000),
            "\"]]]]\": [".repeat(5_000),
            "- &a *a\n".repeat(5_000),
            "x\n".repeat(40_000),
            "-\n".repeat(30_000),
            "&".repeat(60_000),
            "%".repeat(60_000),
            format!("{}[{}]", "'".repeat(3), "[".repeat(900)),
            bomb,
            copies,
            nested_blocks,
            "\u{0}\u{1}".repeat(100),
        ];
        for text in table {
            let started = Instant::now();
            let answer = parse(&text);
            let head: String = text.chars().take(30).collect();
            assert!(started.elapsed() < Duration::from_millis(500), "{head:?} took {:?}", started.elapsed());
            let fault = answer.expect_err(&head).what;
            assert!(fault.len() < 500 && !fault.contains('\n'), "{head:?} gave {fault:?}");
        }
    }

    #[test]
    fn thirty_two_levels_are_read_and_one_more_is_not() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 1)).unwrap_err().what.contains("32 levels"));
    }

    #[test]
    fn a_field_is_found_by_its_path() {
        let text = "\u{feff}# slug: no\r\nslug: a\r\ndescription: |\n  audio:\n    format: no\naudio:\n  match: {usb_vendor_id: '1',\n    x: 2}\n  \
                    'sample_rate': fast\n\n  # format: no\n  format: X\nstream:\n  format: no\nlist: [{audio: 1}]\nquoted: \"x\n\n  processing: no\"\n\
                    ? long\n: {at: *anchor,\n  x: &y 1}\n"
            .replace("*anchor", "&anchor 1");
        let table = [
            ("slug", Some(2)),
            ("audio", Some(6)),
            ("audio.sample_rate", Some(9)),
            ("audio.format", Some(12)),
            ("audio.match.usb_vendor_id", Some(7)),
            ("audio.match.x", Some(8)),
            ("audio.channels", Some(6)),
            ("stream.format", Some(14)),
            ("list.audio", Some(15)),
            ("processing.gain_db", None),
            ("long.x", Some(21)),
        ];
        for (path, line) in table {
            assert_eq!(line_of(&text, path), line, "{path}");
        }
    }
}
