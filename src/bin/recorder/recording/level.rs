//! The level of what was captured: peak, root mean square, and samples at the limits.
//!
//! dBFS: 0 is the largest value that the format has, so a sine at full scale has a root mean square of -3.01.

use super::format::Sample;

/// The level of some samples of all channels. Values are parts of full scale.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Level {
    peak: f64,
    squares: f64,
    samples: u64,
    /// Samples with the largest or the smallest value of the format.
    pub(super) clipped: u64,
}

impl Level {
    pub(super) fn of(sample: Sample, bytes: &[u8]) -> Level {
        match sample {
            Sample::S16 => measure(sample, bytes.chunks_exact(2).map(|b| i32::from(i16::from_le_bytes([b[0], b[1]])))),
            Sample::S24 => measure(sample, bytes.chunks_exact(3).map(|b| i32::from_le_bytes([0, b[0], b[1], b[2]]) >> 8)),
            Sample::S32 => measure(sample, bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        }
    }

    pub(super) fn add(&mut self, other: Level) {
        self.peak = self.peak.max(other.peak);
        self.squares += other.squares;
        self.samples += other.samples;
        self.clipped += other.clipped;
    }

    /// `None` while there is no sample, or all are 0.
    pub(super) fn peak_dbfs(&self) -> Option<f64> {
        dbfs(self.peak)
    }

    /// `None` while there is no sample, or all are 0.
    pub(super) fn rms_dbfs(&self) -> Option<f64> {
        dbfs((self.squares / self.samples.max(1) as f64).sqrt())
    }
}

/// With two decimals.
fn dbfs(part: f64) -> Option<f64> {
    (part > 0.0).then(|| (2000.0 * part.log10()).round() / 100.0)
}

fn measure(sample: Sample, values: impl Iterator<Item = i32>) -> Level {
    let full = sample.full_scale();
    let (least, most) = (-full, full - 1.0);
    let (mut low, mut high, mut squares, mut samples, mut clipped) = (0.0_f64, 0.0_f64, 0.0, 0, 0);
    for value in values.map(f64::from) {
        low = low.min(value);
        high = high.max(value);
        squares += value * value;
        samples += 1;
        clipped += u64::from(value <= least || value >= most);
    }
    // The largest value is one step smaller than the smallest one, and counts as full scale as well.
    Level { peak: (high / most).max(-low / full), squares: squares / (full * full), samples, clipped }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes16(values: &[i16]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn known_samples_have_known_levels() {
        let sine = |amplitude: f64| -> Vec<i16> {
            (0..48_000).map(|n| (amplitude * (f64::from(n) * std::f64::consts::TAU / 48.0).sin()).round() as i16).collect()
        };
        let table = [
            (vec![], None, None, 0),
            (vec![0; 10], None, None, 0),
            (vec![i16::MAX, 0, 0, 0], Some(0.0), Some(-6.02), 1),
            (vec![i16::MIN; 4], Some(0.0), Some(0.0), 4),
            (vec![-16_384, 16_384], Some(-6.02), Some(-6.02), 0),
            (vec![1], Some(-90.31), Some(-90.31), 0),
            (sine(3276.7), Some(-20.0), Some(-23.01), 0),
            (sine(32_767.0), Some(0.0), Some(-3.01), 1000),
        ];
        for (values, peak, rms, clipped) in table {
            let level = Level::of(Sample::S16, &bytes16(&values));
            let found = (level.peak_dbfs(), level.rms_dbfs(), level.clipped);
            assert_eq!(found, (peak, rms, clipped), "{:?} …", &values[..values.len().min(4)]);
        }
    }

    #[test]
    fn all_formats_measure_alike() {
        let values = [-0x40_0000_i32, 0x20_0000, 0x7f_ffff, -0x80_0000];
        let packed: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()[..3].to_vec()).collect();
        let wide: Vec<u8> = values.iter().flat_map(|value| ((value << 8) | (0xff * i32::from(*value > 0x7f_0000))).to_le_bytes()).collect();
        for (sample, bytes) in [(Sample::S24, packed), (Sample::S32, wide)] {
            let level = Level::of(sample, &bytes);
            assert_eq!((level.peak_dbfs(), level.rms_dbfs(), level.clipped), (Some(0.0), Some(-2.38), 2), "{sample:?}");
        }
    }

    #[test]
    fn levels_add_up() {
        let all = bytes16(&[100, -200, 300, i16::MAX]);
        let mut sum = Level::of(Sample::S16, &all[..4]);
        sum.add(Level::of(Sample::S16, &all[4..]));
        assert_eq!(sum, Level::of(Sample::S16, &all));
    }
}
