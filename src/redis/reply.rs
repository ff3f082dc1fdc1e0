//! Replies of Redis, read with limits on size, nesting and memory.
//!
//! The parser of the crate `redis` reads a string of any announced length into memory, and calls itself for each level of
//! nesting, up to 100 deep. The server may be any program, and the threads have small stacks: so a string beyond the
//! limit is skipped and becomes `Nil`, and a reply with more structure than the commands used here have is an error.

use std::io::{Error, ErrorKind, Result};

use redis::Value;

/// Arrays inside each other, at most. The replies to the commands used here have one level.
const DEPTH: u32 = 4;
/// Longest line: a number, a status or an error.
const LINE: usize = 4 << 10;
const BUFFER: usize = 4 << 10;
/// What an array counts for each of its elements.
const ELEMENT: usize = 64;

/// Reads into a buffer; 0 is the end of the connection.
pub type Source<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<usize>;

/// The replies of one connection.
#[derive(Debug)]
pub struct Replies {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    limit: usize,
}

impl Replies {
    /// A reply may take this many bytes of memory.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0, limit }
    }

    /// Whether nothing was read ahead.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Reads what is there without waiting. Returns how many whole lines were read ahead.
    ///
    /// # Errors
    /// The source fails or ends.
    pub fn read_ahead(&mut self, source: Source<'_>) -> Result<usize> {
        if self.end < BUFFER || self.is_empty() {
            self.read(source)?;
        }
        Ok(self.buffer[self.start..self.end].iter().filter(|byte| **byte == b'\n').count())
    }

    /// The next reply. After an error the connection cannot be used any more.
    ///
    /// # Errors
    /// The source fails or ends, or what it sends is not a reply within the limits.
    pub fn next(&mut self, source: Source<'_>) -> Result<Value> {
        let mut left = self.limit;
        self.value(source, &mut left, 0)
    }

    fn value(&mut self, source: Source<'_>, left: &mut usize, depth: u32) -> Result<Value> {
        let line = self.line(source)?;
        let Some((kind, text)) = line.split_first() else { return Err(invalid("an empty reply")) };
        match kind {
            b'+' if text == b"OK" => Ok(Value::Okay),
            b'+' => Ok(Value::SimpleString(String::from_utf8_lossy(text).into_owned())),
            b'-' => server_error(text),
            b':' => number(text).map(Value::Int),
            b'$' => self.string(source, left, number(text)?),
            b'*' => {
                let Ok(count) = usize::try_from(number(text)?) else { return Ok(Value::Nil) };
                let size = count.checked_mul(ELEMENT).filter(|size| size <= left && depth < DEPTH);
                *left -= size.ok_or_else(|| invalid("a reply beyond the limits"))?;
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    values.push(self.value(&mut *source, left, depth + 1)?);
                }
                Ok(Value::Array(values))
            }
            _ => Err(invalid("something that is not a reply of Redis")),
        }
    }

    fn string(&mut self, source: Source<'_>, left: &mut usize, length: i64) -> Result<Value> {
        let Ok(length) = u64::try_from(length) else { return Ok(Value::Nil) };
        let kept = usize::try_from(length).ok().filter(|length| length <= left);
        *left -= kept.unwrap_or_default();
        let mut bytes = Vec::with_capacity(kept.unwrap_or_default());
        let mut rest = length;
        while rest > 0 {
            let available = self.fill(&mut *source)?;
            let count = available.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            if kept.is_some() {
                bytes.extend_from_slice(&available[..count]);
            }
            self.start += count;
            rest -= count as u64;
        }
        if !self.line(source)?.is_empty() {
            return Err(invalid("a string of another length than announced"));
        }
        Ok(kept.map_or(Value::Nil, |_| Value::BulkString(bytes)))
    }

    /// Up to the next line end, which is taken, too.
    fn line(&mut self, source: Source<'_>) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let available = self.fill(&mut *source)?;
            let end = available.iter().position(|byte| *byte == b'\n').map_or(available.len(), |at| at + 1);
            line.extend_from_slice(&available[..end]);
            self.start += end;
            if let Some(content) = line.strip_suffix(b"\r\n") {
                line.truncate(content.len());
                return Ok(line);
            }
            if line.len() > LINE {
                return Err(invalid("a line that is too long"));
            }
        }
    }

    /// What was read ahead, at least one byte.
    fn fill(&mut self, source: Source<'_>) -> Result<&[u8]> {
        if self.is_empty() {
            self.read(source)?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Reads once into the rest of the buffer, all of which is free when nothing is read ahead.
    fn read(&mut self, source: Source<'_>) -> Result<()> {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        self.end += match source(&mut self.buffer[self.end..])? {
            0 => return Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
            count => count.min(BUFFER - self.end),
        };
        Ok(())
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the server sent {what}"))
}

fn number(text: &[u8]) -> Result<i64> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| invalid("an invalid number"))
}

/// The error that a line tells: a code, and details. The crate's own parser would add 65 kB for this alone.
fn server_error(text: &[u8]) -> Result<Value> {
    let line = String::from_utf8_lossy(text).replace(['\r', '\n'], " ");
    let (code, detail) = line.split_once(' ').map_or((line.as_str(), None), |(code, detail)| (code, Some(detail.to_owned())));
    let error = redis::make_extension_error(code.to_owned(), detail);
    error.try_into().map(Value::ServerError).map_err(|_| invalid("an invalid error"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All replies in `bytes`, which arrive in pieces of `size`.
    fn read(bytes: &[u8], size: usize, limit: usize) -> (Vec<Value>, String) {
        let (mut rest, mut replies, mut found) = (bytes, Replies::new(limit), Vec::new());
        let mut source = |buffer: &mut [u8]| {
            let (piece, tail) = rest.split_at(size.min(rest.len()).min(buffer.len()));
            buffer[..piece.len()].copy_from_slice(piece);
            rest = tail;
            Ok(piece.len())
        };
        loop {
            match replies.next(&mut source) {
                Ok(value) => found.push(value),
                Err(error) => return (found, error.to_string()),
            }
        }
    }

    #[test]
    fn replies_are_the_same_however_they_arrive() {
        let bytes =
            b"+OK\r\n+PONG\r\n:-7\r\n$2\r\na\n\r\n$0\r\n\r\n$-1\r\n*-1\r\n*2\r\n$1\r\nx\r\n*1\r\n:1\r\n-NOPERM no \xff right\r\n-X\r\n";
        let text = |text: &[u8]| Value::BulkString(text.to_vec());
        for size in [1, 2, 7, 4096] {
            let (values, end) = read(bytes, size, 1000);
            let (plain, errors) = values.split_at(8);
            assert_eq!(
                plain,
                [
                    Value::Okay,
                    Value::SimpleString("PONG".to_owned()),
                    Value::Int(-7),
                    text(b"a\n"),
                    text(b""),
                    Value::Nil,
                    Value::Nil,
                    Value::Array(vec![text(b"x"), Value::Array(vec![Value::Int(1)])]),
                ]
            );
            let code = |error: &Value| if let Value::ServerError(error) = error { error.code().to_owned() } else { String::new() };
            assert_eq!(errors.iter().map(code).collect::<Vec<_>>(), ["NOPERM", "X"]);
            assert_eq!(end, "the server closed the connection");
        }
    }

    #[test]
    fn a_long_string_is_skipped_and_the_next_reply_is_read() {
        let message = |length: usize| [b"*1\r\n$", length.to_string().as_bytes(), b"\r\n", &vec![b'x'; length], b"\r\n"].concat();
        let bytes = [message(1 << 20), message(3)].concat();
        let (values, _) = read(&bytes, 4096, 1000);
        assert_eq!(values, [Value::Array(vec![Value::Nil]), Value::Array(vec![Value::BulkString(b"xxx".to_vec())])]);
    }

    #[test]
    fn hostile_replies_end_the_connection_within_a_small_stack() {
        let nested = |depth: usize| ["*1\r\n".repeat(depth), ":1\r\n".to_owned()].concat();
        let table = [
            (nested(99), "beyond the limits"),
            (nested(100_000), "beyond the limits"),
            ("*9223372036854775807\r\n".to_owned(), "beyond the limits"),
            ("*10\r\n*10\r\n:1\r\n".to_owned(), "beyond the limits"),
            ("$9223372036854775807\r\nx".to_owned(), "closed"),
            ("$99999999999999999999\r\n".to_owned(), "an invalid number"),
            ("$1\r\nxy\r\n".to_owned(), "another length"),
            (format!("+{}", "x".repeat(1 << 20)), "too long"),
            ("HTTP/1.1 400 Bad Request\r\n".to_owned(), "not a reply of Redis"),
            ("\r\n".to_owned(), "an empty reply"),
        ];
        let check = move || {
            for (bytes, expected) in table {
                let (values, end) = read(bytes.as_bytes(), 4096, 1000);
                assert!(values.is_empty() && end.contains(expected), "{end}");
            }
            assert_eq!(read(nested(4).as_bytes(), 4096, 1000).0.len(), 1);
        };
        std::thread::Builder::new().stack_size(128 << 10).spawn(check).unwrap().join().unwrap();
    }
}
