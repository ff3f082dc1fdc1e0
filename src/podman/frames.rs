//! Splits the bytes of a log stream into frames.
//!
//! Podman sends each piece of a container's output after a header of eight bytes: 1 for standard output or 2 for
//! standard error, three zeros, and the length, high byte first. Network chunks may end anywhere in a frame.
//!
//! Invariant: the bytes that are kept are less than one frame, and a frame has at most [`FRAME_LIMIT`] bytes. After an
//! error, the rest of the stream is meaningless.

use std::fmt;

/// Longest frame that is accepted. Podman's have about 8 KiB; with the journald driver, a frame is a whole line.
pub const FRAME_LIMIT: usize = 1 << 20;

const HEADER: usize = 8;

/// The output of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why bytes are not a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// The header does not begin with 1 or 2 and three zeros.
    Header([u8; HEADER]),
    /// The header contains a length above the limit.
    TooLong(usize),
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(header) => write!(f, "{header:?} is not the header of a log frame"),
            Self::TooLong(length) => write!(f, "a log frame of {length} bytes is too long"),
        }
    }
}

/// The bytes of an incomplete frame.
#[derive(Debug, Default)]
pub struct Frames {
    rest: Vec<u8>,
}

impl Frames {
    /// Adds `bytes`, and passes each complete frame to `each`, in order.
    ///
    /// # Errors
    /// The first bytes that are not a frame; the frames before them were passed on.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Output, &[u8])) -> Result<(), BadFrame> {
        if self.rest.is_empty() {
            // The usual case: only an incomplete frame at the end is copied.
            let used = split(bytes, &mut each)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            self.rest.extend_from_slice(bytes);
            let used = split(&self.rest, &mut each)?;
            self.rest.drain(..used);
        }
        // The memory of a long frame is not kept.
        if self.rest.is_empty() && self.rest.capacity() > 64 << 10 {
            self.rest = Vec::new();
        }
        Ok(())
    }

    /// Whether the bytes so far end at the end of a frame.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Passes on the frames at the beginning of `bytes`; returns their length.
fn split(bytes: &[u8], each: &mut impl FnMut(Output, &[u8])) -> Result<usize, BadFrame> {
    let mut used = 0;
    while let Some(header) = bytes[used..].first_chunk::<HEADER>() {
        let output = match header {
            [1, 0, 0, 0, ..] => Output::Stdout,
            [2, 0, 0, 0, ..] => Output::Stderr,
            _ => return Err(BadFrame::Header(*header)),
        };
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length > FRAME_LIMIT {
            return Err(BadFrame::TooLong(length));
        }
        let Some(content) = bytes.get(used + HEADER..used + HEADER + length) else { break };
        each(output, content);
        used += HEADER + length;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(frames: &mut Frames, bytes: &[u8]) -> Result<Vec<(Output, Vec<u8>)>, BadFrame> {
        let mut found = Vec::new();
        frames.push(bytes, |output, content| found.push((output, content.to_vec())))?;
        Ok(found)
    }

    #[test]
    fn frames_are_found_wherever_the_chunks_end() {
        let stream = b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02\0\n";
        let expected = vec![(Output::Stdout, b"one".to_vec()), (Output::Stderr, vec![]), (Output::Stdout, b"\0\n".to_vec())];
        for size in 1..=stream.len() {
            let mut frames = Frames::default();
            let found: Vec<_> = stream.chunks(size).flat_map(|chunk| collect(&mut frames, chunk).unwrap()).collect();
            assert_eq!(found, expected, "chunks of {size}");
            assert!(frames.is_complete());
        }
    }

    #[test]
    fn an_incomplete_frame_waits_for_its_rest() {
        let mut frames = Frames::default();
        assert_eq!(collect(&mut frames, b"\x01\0\0\0\0\0\0\x05ab").unwrap(), []);
        assert!(!frames.is_complete());
        assert_eq!(collect(&mut frames, b"cde").unwrap(), [(Output::Stdout, b"abcde".to_vec())]);
    }

    #[test]
    fn other_bytes_are_an_error_after_the_frames_before_them() {
        let mut found = 0;
        let bad = Frames::default().push(b"\x01\0\0\0\0\0\0\x01xHTTP/1.1", |_, _| found += 1);
        assert_eq!((bad, found), (Err(BadFrame::Header(*b"HTTP/1.1")), 1));
        for (bytes, error) in [
            (&b"\x01\0\0\x01\0\0\0\0"[..], BadFrame::Header([1, 0, 0, 1, 0, 0, 0, 0])),
            (b"\x00\0\0\0\0\0\0\x01", BadFrame::Header([0, 0, 0, 0, 0, 0, 0, 1])),
            (b"\x02\0\0\0\xff\xff\xff\xff", BadFrame::TooLong(0xffff_ffff)),
            (b"\x02\0\0\0\0\x10\0\x01", BadFrame::TooLong(FRAME_LIMIT + 1)),
        ] {
            assert_eq!(collect(&mut Frames::default(), bytes), Err(error));
        }
    }
}
