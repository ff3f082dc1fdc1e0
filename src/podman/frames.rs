//! Splits the bytes of a log stream into frames. [p]
//!
//! Podman sends each stretch of a container's output behind eight bytes: 1 for standard output or 2 for standard error,
//! three zeros, and the length, high byte first. Network chunks end anywhere, so bytes are taken as they come.
//!
//! Invariant: what waits for its rest is less than one frame, and a frame is at most [`FRAME_LIMIT`] bytes; after an
//! error the stream has no meaning any more.

use std::fmt;

/// Longest frame that is believed. Podman's are about 8 KiB; journald's can be a whole line.
pub const FRAME_LIMIT: usize = 1 << 20;

const HEAD: usize = 8;

/// Which of a container's outputs it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why bytes are no frame.
#[derive(Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// The head does not begin with 1 or 2 and three zeros.
    Head([u8; HEAD]),
    /// It says that it is longer than any frame may be.
    Long(usize),
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(head) => write!(f, "{head:?} is no head of a log frame"),
            Self::Long(length) => write!(f, "a log frame of {length} bytes"),
        }
    }
}

/// The bytes that are not a whole frame yet.
#[derive(Debug, Default)]
pub struct Frames {
    rest: Vec<u8>,
}

impl Frames {
    /// Takes in `bytes` and hands each frame that is whole to `each`, in order.
    ///
    /// # Errors
    /// The first thing that is no frame; those before it have been handed over.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Output, &[u8])) -> Result<(), BadFrame> {
        if self.rest.is_empty() {
            // The usual case: nothing is copied but an incomplete end.
            let used = split(bytes, &mut each)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            self.rest.extend_from_slice(bytes);
            let used = split(&self.rest, &mut each)?;
            self.rest.drain(..used);
        }
        // A long frame of long ago is no reason to keep its memory.
        if self.rest.is_empty() && self.rest.capacity() > 64 << 10 {
            self.rest = Vec::new();
        }
        Ok(())
    }

    /// Whether the bytes so far end where a frame ends.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }
}

/// The frames at the beginning of `bytes`; how many bytes they take.
fn split(bytes: &[u8], each: &mut impl FnMut(Output, &[u8])) -> Result<usize, BadFrame> {
    let mut used = 0;
    while let Some(head) = bytes[used..].first_chunk::<HEAD>() {
        let output = match head {
            [1, 0, 0, 0, ..] => Output::Stdout,
            [2, 0, 0, 0, ..] => Output::Stderr,
            _ => return Err(BadFrame::Head(*head)),
        };
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > FRAME_LIMIT {
            return Err(BadFrame::Long(length));
        }
        let Some(content) = bytes.get(used + HEAD..used + HEAD + length) else { break };
        each(output, content);
        used += HEAD + length;
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
            assert!(frames.is_whole());
        }
    }

    #[test]
    fn an_incomplete_frame_waits_for_its_rest() {
        let mut frames = Frames::default();
        assert_eq!(collect(&mut frames, b"\x01\0\0\0\0\0\0\x05ab").unwrap(), []);
        assert!(!frames.is_whole());
        assert_eq!(collect(&mut frames, b"cde").unwrap(), [(Output::Stdout, b"abcde".to_vec())]);
    }

    #[test]
    fn what_is_no_frame_is_an_error_after_the_frames_before_it() {
        let mut found = 0;
        let bad = Frames::default().push(b"\x01\0\0\0\0\0\0\x01xHTTP/1.1", |_, _| found += 1);
        assert_eq!((bad, found), (Err(BadFrame::Head(*b"HTTP/1.1")), 1));
        for (bytes, error) in [
            (&b"\x01\0\0\x01\0\0\0\0"[..], BadFrame::Head([1, 0, 0, 1, 0, 0, 0, 0])),
            (b"\x00\0\0\0\0\0\0\x01", BadFrame::Head([0, 0, 0, 0, 0, 0, 0, 1])),
            (b"\x02\0\0\0\xff\xff\xff\xff", BadFrame::Long(0xffff_ffff)),
            (b"\x02\0\0\0\0\x10\0\x01", BadFrame::Long(FRAME_LIMIT + 1)),
        ] {
            assert_eq!(collect(&mut Frames::default(), bytes), Err(error));
        }
    }
}
