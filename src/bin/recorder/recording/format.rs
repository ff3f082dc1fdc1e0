//! The format of the stream: sample type, rate and channels, as the profile requests it and as the files have it.

use silvasonic_controller::decide::profile::AudioFormat;

/// Signed integers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sample {
    S16,
    /// Three bytes.
    S24,
    S32,
}

impl Sample {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::S16 => 2,
            Self::S24 => 3,
            Self::S32 => 4,
        }
    }

    /// The first value that is too large: 2^15, 2^23 or 2^31.
    pub(super) fn full_scale(self) -> f64 {
        match self {
            Self::S16 => f64::from(1 << 15),
            Self::S24 => f64::from(1 << 23),
            Self::S32 => f64::from(1_u32 << 31),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) sample: Sample,
    /// Hz.
    pub(super) rate: u32,
    pub(super) channels: u16,
}

impl Format {
    /// What a profile requests; its schema has checked the values.
    pub(super) fn requested(audio: &AudioFormat) -> Format {
        let sample = match audio.format.as_str() {
            "S24LE" => Sample::S24,
            "S32LE" => Sample::S32,
            _ => Sample::S16,
        };
        Format { sample, rate: u32::try_from(audio.rate).unwrap_or(u32::MAX), channels: u16::try_from(audio.channels).unwrap_or(u16::MAX) }
    }

    pub(super) fn frame_bytes(self) -> usize {
        self.sample.bytes() * usize::from(self.channels)
    }

    pub(super) fn bytes_per_second(self) -> u64 {
        self.frame_bytes() as u64 * u64::from(self.rate)
    }

    /// The time that so many frames take.
    pub(super) fn duration(self, frames: u64) -> std::time::Duration {
        let rate = u64::from(self.rate.max(1));
        let (seconds, rest) = (frames / rate, frames % rate);
        std::time::Duration::new(seconds, u32::try_from(rest * 1_000_000_000 / rate).unwrap_or_default())
    }

    /// The frames that fit into a time.
    pub(super) fn frames(self, time: std::time::Duration) -> u64 {
        u64::try_from(time.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX)
    }
}

/// Moves samples of 24 bits from four bytes to three, in place; returns the new length. `skip` is the position of the
/// lowest byte: 0 in ALSA's `S24_LE`, 1 in `S32_LE`, whose lowest byte is empty in cards of 24 bits.
pub(super) fn pack(bytes: &mut [u8], skip: usize) -> usize {
    let samples = bytes.len() / 4;
    for sample in 0..samples {
        let from = sample * 4 + skip;
        bytes.copy_within(from..from + 3, sample * 3);
    }
    samples * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn four_bytes_are_packed_into_three() {
        let mut bytes = [1, 2, 3, 0, 4, 5, 0x86, 0xff, 9];
        assert_eq!(pack(&mut bytes[..8], 0), 6);
        assert_eq!(bytes[..6], [1, 2, 3, 4, 5, 0x86]);
        let mut bytes = [0, 1, 2, 3, 0, 4, 5, 0x86];
        assert_eq!(pack(&mut bytes, 1), 6);
        assert_eq!(bytes[..6], [1, 2, 3, 4, 5, 0x86]);
    }

    #[test]
    fn frames_and_times_are_converted_without_drift() {
        let format = Format { sample: Sample::S24, rate: 44_100, channels: 2 };
        assert_eq!((format.frame_bytes(), format.bytes_per_second()), (6, 264_600));
        assert_eq!(format.duration(44_100 * 86_400 + 22_050), Duration::new(86_400, 500_000_000));
        assert_eq!(format.frames(Duration::new(86_400, 500_000_000)), 44_100 * 86_400 + 22_050);
    }

    #[test]
    fn a_profile_names_the_format() {
        for (text, sample) in [("S16LE", Sample::S16), ("S24LE", Sample::S24), ("S32LE", Sample::S32)] {
            let audio = AudioFormat { rate: 96_000, channels: 2, format: text.to_owned() };
            assert_eq!(Format::requested(&audio), Format { sample, rate: 96_000, channels: 2 });
        }
    }
}
