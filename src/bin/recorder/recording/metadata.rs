//! What a file says about itself, as GUANO text: keys of GUANO 1.0, and our own under `Silvasonic|`.

use std::fmt::Write;
use std::time::SystemTime;

use silvasonic_controller::clock;

use super::format::Format;
use super::level::Level;
use super::ring::Gap;

/// What all files of this Recorder say.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// Stable id of the microphone.
    pub(super) device: String,
    pub(super) profile: String,
}

/// What is missing before a frame of a file.
pub(super) type Missing = (u64, Gap);

/// The text of a file.
pub(super) fn text(origin: &Origin, format: Format, start: SystemTime, frames: u64, level: &Level, missing: &[Missing]) -> String {
    let mut text = format!(
        "GUANO|Version: 1.0\nTimestamp: {}\nSamplerate: {}\nLength: {:.6}\nTE: 1\n\
         Silvasonic|Version: {}\nSilvasonic|Device: {}\nSilvasonic|Profile: {}\nSilvasonic|Frames: {frames}\n",
        clock::iso(start),
        format.rate,
        format.duration(frames).as_secs_f64(),
        env!("CARGO_PKG_VERSION"),
        origin.device,
        origin.profile,
    );
    let mut line = |key: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(text, "Silvasonic|{key}: {value}");
        }
    };
    line("Peak dBFS", level.peak_dbfs());
    line("RMS dBFS", level.rms_dbfs());
    line("Clipped", (level.clipped > 0).then_some(level.clipped as f64));
    let mut sum = Gap::NONE;
    missing.iter().for_each(|(_, gap)| sum.add(*gap));
    if !missing.is_empty() {
        let _ = writeln!(text, "Silvasonic|Overruns: {}\nSilvasonic|Missing Frames: {}", sum.overruns, sum.frames);
        // The last line, as it is the one to be cut.
        let places: Vec<String> = missing.iter().take(100).map(|(at, gap)| format!("{at}:{}", gap.frames)).collect();
        let _ = writeln!(text, "Silvasonic|Missing At: {}", places.join(" "));
    }
    text
}

/// The text of a file whose end was not written: what is not known any more is left out.
pub(super) fn repaired(text: &str, format: Format, frames: u64) -> String {
    let unknown = ["Length:", "Silvasonic|Frames:", "Silvasonic|Peak", "Silvasonic|RMS", "Silvasonic|Clipped", "Silvasonic|Repaired"];
    let known = text.lines().map(|line| line.trim_end_matches('\0')).filter(|line| !line.is_empty());
    let mut kept: String = known.filter(|line| !unknown.iter().any(|key| line.starts_with(key))).flat_map(|line| [line, "\n"]).collect();
    let _ = write!(kept, "Length: {:.6}\nSilvasonic|Frames: {frames}\nSilvasonic|Repaired: true\n", format.duration(frames).as_secs_f64());
    kept
}

/// The time of the first frame.
pub(super) fn timestamp(text: &str) -> Option<SystemTime> {
    text.lines().find_map(|line| clock::parse(line.strip_prefix("Timestamp:")?.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::format::Sample;
    use super::*;
    use std::time::Duration;

    const FORMAT: Format = Format { sample: Sample::S16, rate: 1000, channels: 1 };

    fn sample(missing: &[Missing]) -> String {
        let origin = Origin { device: "0869-0389-1".to_owned(), profile: "ultramic".to_owned() };
        let level = Level::of(Sample::S16, &[0xff, 0x7f, 0, 0]);
        text(&origin, FORMAT, SystemTime::UNIX_EPOCH + Duration::from_millis(1500), 2500, &level, missing)
    }

    #[test]
    fn a_file_says_when_and_by_what_it_was_recorded() {
        let text = sample(&[]);
        for line in [
            "GUANO|Version: 1.0",
            "Timestamp: 1970-01-01T00:00:01.500000Z",
            "Samplerate: 1000",
            "Length: 2.500000",
            "TE: 1",
            "Silvasonic|Device: 0869-0389-1",
            "Silvasonic|Profile: ultramic",
            "Silvasonic|Frames: 2500",
            "Silvasonic|Peak dBFS: 0",
            "Silvasonic|RMS dBFS: -3.01",
            "Silvasonic|Clipped: 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(text.starts_with("GUANO|") && !text.contains("Missing"));
        assert_eq!(timestamp(&text), Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)));
    }

    #[test]
    fn what_is_missing_is_marked_with_its_place() {
        let text = sample(&[(0, Gap { overruns: 1, frames: 20 }), (700, Gap { overruns: 2, frames: 5 })]);
        assert!(text.ends_with("Silvasonic|Overruns: 3\nSilvasonic|Missing Frames: 25\nSilvasonic|Missing At: 0:20 700:5\n"), "{text}");
    }

    #[test]
    fn a_repair_keeps_what_is_still_true() {
        let before = sample(&[(0, Gap { overruns: 1, frames: 20 })]);
        let after = repaired(&before, FORMAT, 100);
        let gone: Vec<&str> = before.lines().filter(|line| !after.lines().any(|kept| kept == *line)).collect();
        assert_eq!(gone.len(), 5, "{gone:?}");
        assert!(after.ends_with("Length: 0.100000\nSilvasonic|Frames: 100\nSilvasonic|Repaired: true\n"), "{after}");
        assert_eq!(repaired(&after, FORMAT, 100), after);
        assert_eq!(timestamp(&after), timestamp(&before));
    }
}
