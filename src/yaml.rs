//! YAML text -> JSON value, with limits. [p]
//!
//! The only file that uses serde_yaml. Its parser takes seconds for 100 kB of nested brackets, so size and nesting are
//! bounded before it sees the text; aliases it bounds itself.

use serde_json::Value;

/// Largest file that is parsed, in bytes.
pub const SIZE_LIMIT: usize = 64 << 10;
/// Deepest nesting of brackets, and of indentation in columns.
const FLOW_LIMIT: usize = 32;
const INDENT_LIMIT: usize = 64;

/// A text that is no usable YAML.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line, counted from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
}

/// Parses one document.
///
/// # Errors
/// [`Fault`], when the text is too large, nested too deeply or no YAML.
pub fn parse(text: &str) -> Result<Value, Fault> {
    if text.len() > SIZE_LIMIT {
        return Err(Fault { line: None, what: format!("expected at most {SIZE_LIMIT} bytes, got {}", text.len()) });
    }
    let mut depth = 0_usize;
    for (index, line) in text.lines().enumerate() {
        let indent = line.bytes().take_while(|byte| b" -?".contains(byte)).count();
        for byte in line.bytes() {
            match byte {
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > FLOW_LIMIT || indent > INDENT_LIMIT {
                return Err(Fault { line: Some(index + 1), what: "nested too deeply".to_owned() });
            }
        }
    }
    serde_yaml::from_str(text).map_err(|error| Fault { line: error.location().map(|at| at.line()), what: error.to_string() })
}

/// The line of a field such as `audio.sample_rate`, counted from 1; that of its nearest parent if it is absent.
#[must_use]
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let mut found = None;
    let mut lines = text.lines().enumerate().peekable();
    let mut outer = None;
    for key in path.split('.') {
        loop {
            let (index, line) = lines.next()?;
            let content = line.trim_start();
            let indent = line.len() - content.len();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            if outer.is_some_and(|outer| indent <= outer) {
                return found;
            }
            let is_key = content.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
            if is_key {
                found = Some(index + 1);
                outer = Some(indent);
                break;
            }
            if lines.peek().is_none() {
                return found;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_tell_the_line() {
        assert_eq!(parse("a: 1\nb: [").unwrap_err().line, Some(3));
        assert_eq!(parse("a: 1\n").unwrap(), serde_json::json!({ "a": 1 }));
    }

    #[test]
    fn bombs_are_refused_at_once() {
        let bombs = [
            "[".repeat(60_000),
            "{a: ".repeat(15_000),
            "- ".repeat(30_000),
            (0..250).map(|n| format!("{}a:\n", " ".repeat(n))).collect(),
            "a".repeat(SIZE_LIMIT + 1),
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n".to_owned(),
        ];
        for bomb in bombs {
            assert!(parse(&bomb).is_err(), "{}", &bomb[..40]);
        }
    }

    #[test]
    fn a_field_is_found_below_its_parents() {
        let text = "# x\nname: a\naudio:\n  match:\n    name: b\n  # c\n  sample_rate: 1\nstream:\n  rate: 2\n";
        for (path, line) in
            [("name", Some(2)), ("audio.sample_rate", Some(7)), ("audio.match.name", Some(5)), ("stream.missing", Some(8)), ("none", None)]
        {
            assert_eq!(line_of(text, path), line, "{path}");
        }
    }
}
