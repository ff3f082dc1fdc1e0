//! The names of files: `2026-03-26T01-35-00Z_10s_1a2b3c4d_00000000.wav`.
//!
//! UTC of the first frame, duration in whole seconds, a number of eight hexadecimal digits that the program draws at its
//! start, and the number of the file since then. The processor of a station reads the time from the name, and ignores
//! files with other names.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

use silvasonic_controller::clock;

/// What distinguishes the files of one start of the program from those of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run(String);

impl Run {
    pub(super) fn random() -> Run {
        Run(format!("{:08x}", RandomState::new().build_hasher().finish() as u32))
    }
}

/// A name; the duration is rounded, but is at least 1 s.
pub(super) fn file_name(start: SystemTime, duration: Duration, run: &Run, number: u32) -> String {
    let time = clock::iso_seconds(start).replace(':', "-");
    let seconds = (duration + Duration::from_millis(500)).as_secs().max(1);
    format!("{time}_{seconds}s_{}_{:08}.wav", run.0, number % 100_000_000)
}

/// Run and number of a file, from its name or from that of an unfinished file of the Python Recorder (`run_number.wav`).
pub(super) fn parse(name: &str) -> Option<(Run, u32)> {
    let mut parts = name.strip_suffix(".wav")?.rsplit('_');
    let (number, run) = (parts.next()?, parts.next()?);
    let is_run = run.len() == 8 && run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_number = number.len() == 8 && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_run && is_number).then(|| Some((Run(run.to_owned()), number.parse().ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_agreed_form() {
        let run = Run("1a2b3c4d".to_owned());
        let start = clock::parse("2026-03-26T01:35:00.999Z").unwrap();
        let table = [
            (Duration::from_secs(10), 0, "2026-03-26T01-35-00Z_10s_1a2b3c4d_00000000.wav"),
            (Duration::from_millis(9_499), 7, "2026-03-26T01-35-00Z_9s_1a2b3c4d_00000007.wav"),
            (Duration::from_millis(3), 100_000_001, "2026-03-26T01-35-00Z_1s_1a2b3c4d_00000001.wav"),
        ];
        for (duration, number, expected) in table {
            let name = file_name(start, duration, &run, number);
            assert_eq!(name, expected);
            assert_eq!(parse(&name), Some((run.clone(), number % 100_000_000)));
        }
    }

    #[test]
    fn runs_differ() {
        let (one, other) = (Run::random(), Run::random());
        assert!(one != other && one.0.len() == 8);
    }

    #[test]
    fn other_names_tell_nothing() {
        assert_eq!(parse("1a2b3c4d_00000012.wav"), Some((Run("1a2b3c4d".to_owned()), 12)));
        for name in ["", ".wav", "a.wav", "1A2B3C4D_00000012.wav", "1a2b3c4d_12.wav", "1a2b3c4d_00000012.flac", "é_00000012.wav"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
