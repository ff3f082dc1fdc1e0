//! Parses YAML into JSON values, for profiles and defaults. Only this file uses `serde_yaml`.
//!
//! It does not validate the content. The caller does, and reports a field by its dotted path; [`line_of`] finds the
//! line of the field.
//!
//! Invariant: no text costs more than some milliseconds and a megabyte. `serde_yaml` does not guarantee that: its
//! scanner is quadratic in open flow brackets (100 KB of `[` take 12-18 s), and its alias limit counts the aliases
//! but not the size of what they copy. So this file limits size and brackets before it calls the parser, and builds
//! the tree with a visitor that has a budget of nodes, bytes and levels.

use std::cell::Cell;
use std::fmt;

use serde::Deserialize as _;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

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

/// Reads one YAML document. An empty text is `null`.
///
/// # Errors
/// One fault, with the line where the parser stopped: malformed YAML, an exceeded limit, or something that JSON does
/// not have (tags, `.nan`, merge keys, duplicate keys).
pub fn parse(text: &str) -> Result<Value, YamlFault> {
    within_limits(text)?;
    let budget = Budget { nodes: Cell::new(MAX_NODES), bytes: Cell::new(MAX_STRING_BYTES) };
    let tree = Tree { budget: &budget, depth: 0 };
    tree.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
        let line = error.location().map(|location| location.line());
        let what = without_locations(&error.to_string());
        YamlFault { line, what: shown(&what).to_string() }
    })
}

/// Finds the line, from 1 on, of the field at a dotted path, or of its nearest ancestor that exists.
///
/// It reads only keys and indentation: the result is exact in block mappings; in a flow mapping it is the line on which
/// the mapping starts. `None` if the first key of the path does not exist.
#[must_use]
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let keys: Vec<&str> = path.split('.').collect();
    let mut open: Vec<(usize, &str)> = Vec::new();
    let mut block_text: Option<usize> = None;
    let mut best: Option<(usize, usize)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let body = line.trim_start();
        let indent = line.len() - body.len();
        if body.is_empty() || body.starts_with('#') {
            continue;
        }
        if block_text.is_some_and(|parent| indent > parent) {
            continue;
        }
        block_text = None;
        while open.last().is_some_and(|(at, _)| *at >= indent) {
            open.pop();
        }
        let Some((key, value)) = body.split_once(':') else { continue };
        if value.trim_start().starts_with(['|', '>']) {
            block_text = Some(indent);
        }
        open.push((indent, key.trim().trim_matches(['"', '\''])));
        let depth = open.len();
        let is_on_path = depth <= keys.len() && open.iter().zip(&keys).all(|((_, key), expected)| key == expected);
        if is_on_path && best.is_none_or(|(deepest, _)| depth > deepest) {
            best = Some((depth, number));
        }
    }
    best.map(|(_, line)| line)
}

/// The message of the parser without `at line 3 column 1`: our message begins with the line.
fn without_locations(message: &str) -> String {
    let mut parts = message.split(" at line ");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(
            part.trim_start_matches(|c: char| c.is_ascii_digit())
                .trim_start_matches(" column ")
                .trim_start_matches(|c: char| c.is_ascii_digit()),
        );
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
        while let Some(key) = entries.next_key_seed(Key)? {
            self.budget.spend(key.len())?;
            without_nul(&key)?;
            if key == "<<" {
                return Err(de::Error::custom("merge keys (<<) are not supported"));
            }
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("duplicate key {key:?}")));
            }
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

/// A key of a mapping: any scalar, as text.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;
    fn deserialize<D: de::Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        String::deserialize(from)
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
            ("a: 1\nb: [1, 2\n", Some(3), "did not find expected ',' or ']'"),
            ("a: 1\na: 2\n", None, "duplicate key \"a\""),
            ("a:\n  b: .nan\n", Some(2), "not a finite number"),
            ("a: !secret b\n", Some(1), "tags"),
            ("b: &b {x: 1}\na:\n  <<: *b\n", None, "merge keys"),
            ("a: *nowhere\n", Some(1), "unknown anchor"),
            ("a: 1\n---\nb: 2\n", None, "more than one document"),
            ("a: 99999999999999999999999\n", Some(1), "64-bit number"),
            ("a:\n\tb: 1\n", Some(2), "cannot start any token"),
        ];
        for (text, line, part) in table {
            let fault = parse(text).unwrap_err();
            assert!((line.is_none() || fault.line == line) && fault.what.contains(part), "{text:?} gave {fault:?}");
            assert!(!fault.what.contains(" at line "), "{fault:?}");
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
        let text = "# slug: no\nslug: a\ndescription: |\n  audio:\n    format: no\naudio:\n  match: {usb_vendor_id: '1'}\n  'sample_rate': fast\n\n  # format: no\n  format: X\nstream:\n  format: no\n";
        let table = [
            ("slug", Some(2)),
            ("audio", Some(6)),
            ("audio.sample_rate", Some(8)),
            ("audio.format", Some(11)),
            ("audio.match.usb_vendor_id", Some(7)),
            ("audio.channels", Some(6)),
            ("stream.format", Some(13)),
            ("processing.gain_db", None),
        ];
        for (path, line) in table {
            assert_eq!(line_of(text, path), line, "{path}");
        }
    }
}
