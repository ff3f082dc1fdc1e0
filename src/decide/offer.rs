//! What a card can capture, compared with what a profile asks for.
//!
//! A Recorder opens `hw:N,M`, which converts nothing: with a rate, a number of channels or a format that the card does
//! not have, it cannot be opened as far as the kernel says. So a Recorder that runs is not replaced for such a profile. It
//! is started all the same if none runs, because the list may be wrong and nothing is lost; the mismatch is named. Samples
//! of 24 bits are the exception: a Recorder takes them out of 32.

use std::fmt;
use std::sync::Arc;

use crate::decide::profile::AudioFormat;

/// One altsetting: formats, channels and rates that can be combined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As ALSA names them, `S16_LE`.
    pub formats: Vec<String>,
    /// Number of channels.
    pub channels: u64,
    /// In Hz; for a continuous range, its ends.
    pub rates: Vec<u64>,
    /// Whether all rates between these are possible, too.
    pub continuous: bool,
}

/// All altsettings of a card; empty if they are not known.
pub type Offer = Arc<[Setting]>;

/// A profile that asks for something that the card does not offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    asked: AudioFormat,
    offered: String,
    /// Whether no Recorder can capture so.
    pub is_certain: bool,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AudioFormat { rate, channels, format } = &self.asked;
        write!(f, "its profile asks for {rate} Hz {format} {channels} channel{}, but the card offers {}", plural(*channels), self.offered)
    }
}

impl Mismatch {
    /// Compares an offer with a profile; `None` if the card offers all of it, or nothing is known.
    #[must_use]
    pub fn find(offer: &[Setting], asked: AudioFormat) -> Option<Self> {
        let has = |is_format: fn(&str, &str) -> bool| {
            let fits = |setting: &Setting| {
                let has_format = setting.formats.iter().any(|format| is_format(format, &asked.format));
                setting.has_rate(asked.rate) && setting.channels == asked.channels && has_format
            };
            offer.iter().any(fits)
        };
        if offer.is_empty() || has(is_format) {
            return None;
        }
        let is_certain = !has(contains_format);
        Some(Self { asked, offered: summary(offer), is_certain })
    }
}

impl Setting {
    fn has_rate(&self, rate: u64) -> bool {
        match (self.continuous, self.rates.iter().min(), self.rates.iter().max()) {
            (true, Some(low), Some(high)) => (*low..=*high).contains(&rate),
            _ => self.rates.contains(&rate),
        }
    }
}

/// Whether ALSA's name of a format is the one of a profile. USB sends 24 bits as three bytes; ALSA may show them as four.
fn is_format(alsa: &str, profile: &str) -> bool {
    profile_format(alsa) == Some(profile)
}

/// Whether a Recorder can take samples of a profile's format out of those of the card.
fn contains_format(alsa: &str, profile: &str) -> bool {
    is_format(alsa, profile) || alsa == "S32_LE" && profile == "S24LE"
}

/// The name of a format in profiles, from that in ALSA.
#[must_use]
pub fn profile_format(format: &str) -> Option<&'static str> {
    match format {
        "S16_LE" => Some("S16LE"),
        "S24_3LE" | "S24_LE" => Some("S24LE"),
        "S32_LE" => Some("S32LE"),
        _ => None,
    }
}

/// `48000, 44100 Hz S16_LE 1 channel`
#[must_use]
pub fn summary(settings: &[Setting]) -> String {
    let line = |setting: &Setting| {
        let rates: Vec<String> = setting.rates.iter().map(ToString::to_string).collect();
        let rates = rates.join(if setting.continuous { "-" } else { ", " });
        format!("{rates} Hz {} {} channel{}", setting.formats.join("/"), setting.channels, plural(setting.channels))
    };
    settings.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(rates: &[u64], continuous: bool, format: &str, channels: u64) -> Setting {
        Setting { formats: vec![format.to_owned()], channels, rates: rates.to_vec(), continuous }
    }

    #[test]
    fn only_what_no_recorder_can_open_is_certain() {
        let mono = [setting(&[48_000, 44_100], false, "S16_LE", 1)];
        let wide = [setting(&[8_000, 96_000], true, "S24_3LE", 2), setting(&[384_000], false, "S16_LE", 1)];
        let long = [setting(&[48_000], false, "S32_LE", 2)];
        for (offer, (rate, channels, format), expected) in [
            (&mono[..], (48_000, 1, "S16LE"), None),
            (&mono, (48_000, 2, "S16LE"), Some(true)),
            (&mono, (96_000, 1, "S16LE"), Some(true)),
            (&mono, (48_000, 1, "S24LE"), Some(true)),
            (&wide, (48_000, 2, "S24LE"), None),
            (&wide, (48_000, 1, "S24LE"), Some(true)),
            (&wide, (384_000, 1, "S16LE"), None),
            (&wide, (384_000, 2, "S16LE"), Some(true)),
            (&wide, (96_001, 1, "S16LE"), Some(true)),
            (&long, (48_000, 2, "S32LE"), None),
            (&long, (48_000, 2, "S24LE"), Some(false)),
            (&long, (48_000, 1, "S24LE"), Some(true)),
            (&long, (48_000, 2, "S16LE"), Some(true)),
            (&[], (1, 64, "S32LE"), None),
        ] {
            let found = Mismatch::find(offer, AudioFormat { rate, channels, format: format.to_owned() });
            assert_eq!(found.map(|found| found.is_certain), expected, "{rate} {channels} {format}");
        }
        let found = Mismatch::find(&mono, AudioFormat { rate: 48_000, channels: 2, format: "S16LE".to_owned() }).unwrap();
        assert_eq!(
            found.to_string(),
            "its profile asks for 48000 Hz S16LE 2 channels, but the card offers 48000, 44100 Hz S16_LE 1 channel"
        );
    }
}
