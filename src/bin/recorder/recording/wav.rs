//! The head of a WAV file: format, metadata, and the number of bytes that follow.
//!
//! It has one page, so that the frames after it are written in whole pages. The metadata are a `guan` chunk: GUANO, text
//! lines `key: value`, which programs for bat calls read; a `JUNK` chunk fills the page.

use super::format::{Format, Sample};

/// Length of our head.
pub(super) const HEAD: usize = 4096;
/// RIFF, fmt, and the heads of three chunks.
const FIXED: usize = 12 + 24 + 8 + 8 + 8;
/// The most bytes of frames that the length fields can tell.
pub(super) const MOST: u64 = u32::MAX as u64 - HEAD as u64;

/// Our head for so many bytes of frames. Of a longer text, the last lines are left out.
pub(super) fn head(format: Format, data: u64, text: &str) -> Vec<u8> {
    let mut end = text.len().min(HEAD - FIXED - 1);
    if end < text.len() {
        end = text.as_bytes()[..end].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    }
    let mut text = text.as_bytes()[..end].to_vec();
    if text.len() % 2 == 1 {
        text.push(b'\n');
    }
    let data = u32::try_from(data).unwrap_or(u32::MAX - HEAD as u32);
    let frame = format.frame_bytes();
    let mut head = Vec::with_capacity(HEAD);
    head.extend(b"RIFF");
    head.extend((HEAD as u32 - 8 + data + data % 2).to_le_bytes());
    head.extend(b"WAVEfmt ");
    head.extend(16_u32.to_le_bytes());
    head.extend(1_u16.to_le_bytes());
    head.extend(format.channels.to_le_bytes());
    head.extend(format.rate.to_le_bytes());
    head.extend(u32::try_from(format.bytes_per_second()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend((frame as u16).to_le_bytes());
    head.extend((format.sample.bytes() as u16 * 8).to_le_bytes());
    head.extend(b"guan");
    head.extend((text.len() as u32).to_le_bytes());
    head.extend(&text);
    let fill = HEAD - 8 - 8 - head.len();
    head.extend(b"JUNK");
    head.extend((fill as u32).to_le_bytes());
    head.resize(HEAD - 8, 0);
    head.extend(b"data");
    head.extend(data.to_le_bytes());
    head
}

/// What a head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) format: Format,
    /// The metadata, if they are GUANO.
    pub(super) text: Option<String>,
    /// Where the frames begin.
    pub(super) data_at: usize,
    /// How many bytes of frames the head claims.
    pub(super) data: u32,
}

/// Reads the head of a WAV file of whole bytes, ours or another's. `None`: it is none, or it is cut.
pub(super) fn parse(bytes: &[u8]) -> Option<Head> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if bytes.get(..4)? != b"RIFF" || bytes.get(8..12)? != b"WAVE" {
        return None;
    }
    let (mut at, mut format, mut text) = (12, None, None);
    loop {
        let (name, length) = (bytes.get(at..at + 4)?, number(at + 4)?);
        let body = at + 8;
        if name == b"data" {
            return Some(Head { format: format?, text, data_at: body, data: length });
        }
        let end = body.checked_add(usize::try_from(length).ok()?)?;
        match name {
            b"fmt " => format = Some(parse_format(bytes.get(body..end)?)?),
            b"guan" => text = String::from_utf8(bytes.get(body..end)?.to_vec()).ok(),
            _ => {}
        }
        at = end.checked_add(length as usize % 2)?;
    }
}

fn parse_format(chunk: &[u8]) -> Option<Format> {
    let short = |at: usize| Some(u16::from_le_bytes([*chunk.get(at)?, *chunk.get(at + 1)?]));
    let sample = match short(14)? {
        16 => Sample::S16,
        24 => Sample::S24,
        32 => Sample::S32,
        _ => return None,
    };
    let rate = u32::from(short(4)?) | u32::from(short(6)?) << 16;
    let format = Format { sample, rate, channels: short(2)? };
    (rate > 0 && format.channels > 0).then_some(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { sample: Sample::S24, rate: 384_000, channels: 2 };

    #[test]
    fn what_is_written_is_read() {
        for text in ["", "a: 1\n", "a: 12\n", &"line: of twenty byte\n".repeat(400)] {
            for data in [0, 6, MOST] {
                let head = head(FORMAT, data, text);
                assert_eq!(head.len(), HEAD);
                let found = parse(&head).unwrap();
                assert_eq!((found.format, found.data_at, u64::from(found.data)), (FORMAT, HEAD, data));
                let found = found.text.unwrap();
                let kept = found.trim_end_matches('\n');
                assert!(text.starts_with(kept) && (text.len() < HEAD / 2 || kept.len() > 4000), "{found:?}");
                assert!(kept.is_empty() || kept.len() == text.trim_end().len() || kept.ends_with("byte"), "{found:?}");
            }
        }
    }

    #[test]
    fn the_head_has_the_layout_of_wav() {
        let head = head(FORMAT, 600, "k: v\n");
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        assert_eq!((&head[..4], number(4), &head[8..16], number(16)), (b"RIFF".as_slice(), 4096 - 8 + 600, b"WAVEfmt ".as_slice(), 16));
        assert_eq!(head[20..36], [1, 0, 2, 0, 0, 0xdc, 5, 0, 0, 0x28, 0x23, 0, 6, 0, 24, 0]);
        assert_eq!((&head[36..50], &head[50..54]), (b"guan\x06\x00\x00\x00k: v\n\n".as_slice(), b"JUNK".as_slice()));
        assert_eq!((&head[4088..4092], number(4092)), (b"data".as_slice(), 600));
    }

    #[test]
    fn damaged_heads_are_no_heads() {
        let good = head(FORMAT, 600, "k: v\n");
        for end in 0..HEAD {
            assert_eq!(parse(&good[..end]), None, "{end}");
        }
        for at in 0..HEAD {
            for value in [0, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = parse(&bytes); // ends, and does not panic
            }
        }
        assert_eq!(parse(&vec![0; HEAD]), None);
    }

    #[test]
    fn heads_of_other_programs_are_read() {
        // As FFmpeg begins a file: a list after the format, and lengths that it will correct at the end.
        let mut bytes =
            b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\xbb\x00\x00\x00\x77\x01\x00\x02\x00\x10\x00".to_vec();
        bytes.extend(b"LIST\x1a\x00\x00\x00INFOISFT\x0d\x00\x00\x00Lavf59.27.100\x00data\xff\xff\xff\xff");
        let format = Format { sample: Sample::S16, rate: 48_000, channels: 1 };
        assert_eq!(parse(&bytes), Some(Head { format, text: None, data_at: 78, data: u32::MAX }));
    }
}
