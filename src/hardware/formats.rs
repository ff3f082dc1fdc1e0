//! What a USB sound card can capture, parsed from `/proc/asound/cardN/stream0`.
//!
//! The kernel prints one block for each altsetting (`sound/usb/proc.c`). The only text that is not the kernel's own is
//! the product string in the first line. It may contain line breaks and forge a line `Capture:`, so the last such line
//! counts.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::decide::offer::{Setting, profile_format};

/// In bytes; much more than the altsettings of any card need.
const STREAM_LIMIT: u64 = 256 << 10;
/// Highest rate in a profile, in Hz.
const RATE_LIMIT: u64 = 10_000_000;

/// Rates at which microphones and converters work, in Hz.
const USUAL_RATES: [u64; 15] =
    [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000, 250_000, 256_000, 352_800, 384_000];

/// The capture settings of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// In Hz.
    pub sample_rate: u64,
    /// Number of channels.
    pub channels: u64,
    /// `S16LE`, `S24LE` or `S32LE`.
    pub format: &'static str,
}

/// What the PCM of this card below `root` can capture. The file has the number of the PCM.
///
/// # Errors
/// The file cannot be read, or has no valid part about capture.
pub fn read(root: &Path, card: u32, pcm: u32) -> Result<Vec<Setting>, String> {
    let path = root.join(format!("proc/asound/card{card}/stream{pcm}"));
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(STREAM_LIMIT).read_to_end(&mut text));
    read.map_err(|error| error.to_string())
        .and_then(|_| parse(&String::from_utf8_lossy(&text)))
        .map_err(|why| format!("stream{pcm}: {why}"))
}

/// Parses the part about capture.
///
/// # Errors
/// Why there is no valid part about capture.
pub fn parse(text: &str) -> Result<Vec<Setting>, String> {
    let (start, _) = text.lines().enumerate().filter(|(_, line)| *line == "Capture:").last().ok_or("no line `Capture:`")?;
    let mut settings: Vec<Setting> = Vec::new();
    let mut next = Setting { formats: Vec::new(), channels: 0, rates: Vec::new(), continuous: false };
    for line in text.lines().skip(start + 1) {
        let (key, value) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
        match key {
            "Format" => next.formats = value.split_whitespace().filter(|name| is_format(name)).map(str::to_owned).collect(),
            "Channels" => next.channels = value.trim().parse().unwrap_or(0),
            "Rates" => (next.rates, next.continuous) = rates(value),
            // The next altsetting begins; values that it lacks are not inherited from the one before.
            key if key.starts_with("Altset ") => (next.formats, next.channels, next.rates) = (Vec::new(), 0, Vec::new()),
            _ => {}
        }
        if !next.formats.is_empty() && next.channels > 0 && !next.rates.is_empty() && !settings.contains(&next) {
            settings.push(next.clone());
        }
    }
    if settings.is_empty() { Err("no altsetting with format, channels and rates".to_owned()) } else { Ok(settings) }
}

/// Whether ALSA can name a format so. Other text comes from elsewhere and could hold control characters.
fn is_format(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// `48000, 44100` or `4000 - 96000 (continuous)`; whether it is a range.
fn rates(value: &str) -> (Vec<u64>, bool) {
    // The kernel prints these unsigned numbers as signed ones (`%d`).
    let rate = |text: &str| {
        let rate: i64 = text.trim().parse().ok()?;
        let rate = if rate < 0 { rate + (1 << 32) } else { rate };
        u64::try_from(rate).ok().filter(|rate| *rate > 0)
    };
    match value.trim().strip_suffix("(continuous)").and_then(|range| range.split_once(" - ")) {
        Some((low, high)) => match (rate(low), rate(high)) {
            (Some(low), Some(high)) => (vec![low, high], true),
            _ => (Vec::new(), true),
        },
        None => (value.split(',').filter_map(rate).collect(), false),
    }
}

/// The highest rate that a profile can contain. The ends of a range say what the converter accepts, often without a
/// meaning for sound, so the highest usual rate within it counts.
fn best_rate(setting: &Setting) -> Option<u64> {
    let possible = setting.rates.iter().copied().filter(|rate| *rate <= RATE_LIMIT).max();
    if !setting.continuous {
        return possible;
    }
    let (low, high) = (setting.rates.iter().min()?, setting.rates.iter().max()?);
    USUAL_RATES.iter().rev().find(|rate| (low..=high).contains(rate)).copied().or(possible)
}

/// The best settings that a profile can contain: the highest rate, then the widest format, then the most channels.
#[must_use]
pub fn best(settings: &[Setting]) -> Option<Choice> {
    let choices = settings.iter().flat_map(|setting| {
        let rate = best_rate(setting);
        let format = setting.formats.iter().filter_map(|format| profile_format(format)).max();
        Some((rate?, format?, setting.channels)).filter(|_| setting.channels <= 64)
    });
    choices.max().map(|(sample_rate, format, channels)| Choice { sample_rate, channels, format })
}

/// As JSON.
#[must_use]
pub fn to_json(settings: &[Setting]) -> Value {
    let to_json = |setting: &Setting| json!({"formats": setting.formats, "channels": setting.channels, "rates": setting.rates, "continuous": setting.continuous});
    settings.iter().map(to_json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::offer::summary;

    /// As recorded (`tests/fixtures/04`), with more altsettings as other cards have them.
    const TEXT: &str = "\
RODE Microphones RODE NT-USB at usb-0000:00:07.0-2, full speed : USB Audio

Playback:
  Status: Stop
  Interface 2
    Altset 1
    Format: S16_LE
    Channels: 2
    Endpoint: 0x02 (2 OUT) (ADAPTIVE)
    Rates: 192000
    Bits: 16

Capture:
  Status: Running
    Interface = 1
    Altset = 1
    Packet Size = 768
    Momentary freq = 384000 Hz (0x180.0000)
  Interface 1
    Altset 1
    Format: S16_LE
    Channels: 1
    Endpoint: 0x81 (1 IN) (ASYNC)
    Rates: 48000, 44100
    Bits: 16
    Channel map: MONO
  Interface 1
    Altset 2
    Format: S24_3LE
    Channels: 2
    Rates: 8000 - 48000 (continuous)
  Interface 1
    Altset 3
    Format: SPECIAL DSD_U32_BE
    Channels: 2
    Rates: 352800
";

    #[test]
    fn capture_settings_are_parsed_and_the_best_ones_chosen() {
        let settings = parse(TEXT).unwrap();
        assert_eq!(
            summary(&settings),
            "48000, 44100 Hz S16_LE 1 channel; 8000-48000 Hz S24_3LE 2 channels; 352800 Hz SPECIAL/DSD_U32_BE 2 channels"
        );
        assert_eq!(best(&settings), Some(Choice { sample_rate: 48_000, channels: 2, format: "S24LE" }));
        assert_eq!(best(&settings[2..]), None);
    }

    #[test]
    fn what_cannot_be_the_name_of_a_format_is_left_out() {
        let text = "Capture:\n  Altset 1\n    Format: S16_LE \u{1b}[31m\n    Channels: 1\n    Rates: 48000\n";
        assert_eq!(summary(&parse(text).unwrap()), "48000 Hz S16_LE 1 channel");
    }

    #[test]
    fn the_highest_usual_rate_within_a_range_is_chosen() {
        let best_of = |rates: &str| {
            let text = format!("Capture:\n  Interface 2\n    Altset 1\n    Format: S16_LE\n    Channels: 1\n    Rates: {rates}\n");
            parse(&text).ok().and_then(|settings| best(&settings)).map(|choice| choice.sample_rate)
        };
        for (rates, expected) in [
            ("4000 - 2147483647 (continuous)", Some(384_000)),
            // 0xffffffff as the kernel prints it.
            ("4000 - -1 (continuous)", Some(384_000)),
            ("4000 - 20000000 (continuous)", Some(384_000)),
            ("8000 - 48000 (continuous)", Some(48_000)),
            ("8000 - 47999 (continuous)", Some(44_100)),
            ("5000 - 260000 (continuous)", Some(256_000)),
            ("96000 - 96000 (continuous)", Some(96_000)),
            // No usual rate is possible.
            ("500000 - 500000 (continuous)", Some(500_000)),
            ("49000 - 50000 (continuous)", Some(50_000)),
            ("20000000 - 30000000 (continuous)", None),
            ("0 - 0 (continuous)", None),
            ("- (continuous)", None),
            ("44100, 48000, 88200, 96000", Some(96_000)),
            ("312500", Some(312_500)),
        ] {
            assert_eq!(best_of(rates), expected, "{rates}");
        }
    }

    #[test]
    fn hostile_and_broken_text_chooses_nothing() {
        let forged = "X\n\nCapture:\n    Altset 1\n    Format: S32_LE\n    Channels: 64\n    Rates: 999999\n at usb-1 : USB Audio\n";
        // The product string of a speaker may forge a part about capture; sysfs shows that it has none. Before a real
        // one, it is ignored.
        assert_eq!(best(&parse(&format!("{forged}{TEXT}")).unwrap()).unwrap().sample_rate, 48_000);
        let block = |body: &str| format!("Capture:\n    Altset 1\n{body}");
        for text in [
            String::new(),
            "Capture:".to_owned(),
            TEXT[..TEXT.find("Capture:").unwrap()].to_owned(),
            block("    Format: S16_LE\n    Channels: 1\n"),
            block("    Format: S16_LE\n    Channels: -1\n    Rates: 1\n"),
            block("    Format: S16_LE\n    Channels: 1\n    Rates: 0, x, 99999999999999999999999\n"),
            block("    Format:\n    Channels: 1\n    Rates: 1\n"),
            block("    Format: S16_LE\n    Channels: 1\n    Altset 2\n    Rates: 48000\n"),
        ] {
            assert!(parse(&text).is_err(), "{text:?}");
        }
        for extreme in ["Channels: 65\n    Rates: 1", "Channels: 1\n    Rates: 10000001"] {
            assert_eq!(best(&parse(&block(&format!("    Format: S16_LE\n    {extreme}\n"))).unwrap()), None);
        }
    }
}
