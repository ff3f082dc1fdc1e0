//! The thread `capture`: reads the card, and nothing else.
//!
//! Invariant: it waits only for the card, and for that at most as long as a read lasts.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use super::format::Format;
use super::level::Level;
use super::progress::{Progress, SILENT};
use super::ring::{Filler, Gap};

/// What a read gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many frames, in so many bytes; so many more are waiting.
    Frames { frames: u64, bytes: usize, waiting: u64 },
    /// Nothing within its time.
    Nothing,
    /// Frames were lost; the card runs again.
    Overrun,
}

/// Why the card cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is not there any more.
    Gone,
    Failed(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it was disconnected"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A card that runs.
pub(super) trait Input {
    /// Fills the buffer from its beginning. Takes a fraction of a second at most.
    fn read(&mut self, bytes: &mut [u8]) -> Result<Read, End>;
}

/// Reads until the card ends, or until the request to stop; `None` for the latter.
pub(super) fn run(input: &mut impl Input, filler: &mut Filler, format: Format, progress: &Progress, stop: &AtomicBool) -> Option<End> {
    // The end of the last frame, and overruns since then.
    let mut last = Instant::now();
    let (mut overruns, mut is_silent) = (0, false);
    while !stop.load(Ordering::Relaxed) {
        let (frames, bytes, waiting) = match input.read(&mut filler.block().bytes) {
            Ok(Read::Frames { frames, bytes, waiting }) => (frames, bytes, waiting),
            Ok(Read::Nothing) => {
                if !is_silent && last.elapsed() > SILENT {
                    is_silent = true;
                    warn!("the card gives no frames for {} s", SILENT.as_secs());
                }
                continue;
            }
            Ok(Read::Overrun) => {
                overruns += 1;
                continue;
            }
            Err(end) => return Some(end),
        };
        let (now, time) = (Instant::now(), SystemTime::now());
        let age = format.duration(frames + waiting);
        if std::mem::take(&mut is_silent) {
            info!("the card gives frames again, after {:.1} s", last.elapsed().as_secs_f32());
        }
        if overruns > 0 {
            let missing = now.checked_sub(age).map_or(Duration::ZERO, |first| first.saturating_duration_since(last));
            let gap = Gap { overruns: std::mem::take(&mut overruns), frames: format.frames(missing) };
            warn!("{} overruns: about {} frames are lost", gap.overruns, gap.frames);
            filler.miss(gap);
            progress.lost(gap);
        }
        last = now.checked_sub(format.duration(waiting)).unwrap_or(now);
        let block = filler.block();
        (block.len, block.start) = (bytes, time.checked_sub(age).unwrap_or(time));
        block.level = Level::of(format.sample, block.data());
        progress.captured(frames, block.level, now);
        let lost = filler.pass(frames);
        if lost != Gap::NONE {
            progress.lost(lost);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::format::Sample;
    use super::super::ring::ring;
    use super::*;

    const FORMAT: Format = Format { sample: Sample::S16, rate: 1000, channels: 1 };

    /// Plays what it is given, then is gone.
    struct Script(Vec<Result<Read, End>>);

    impl Input for Script {
        fn read(&mut self, bytes: &mut [u8]) -> Result<Read, End> {
            bytes.fill(1);
            if self.0.is_empty() { Err(End::Gone) } else { self.0.remove(0) }
        }
    }

    const TWO: Result<Read, End> = Ok(Read::Frames { frames: 2, bytes: 4, waiting: 1 });

    #[test]
    fn frames_are_passed_on_until_the_card_is_gone() {
        let (mut filler, drain) = ring(8, 8);
        let progress = Progress::default();
        let mut card = Script(vec![TWO, Ok(Read::Nothing), TWO]);
        let end = run(&mut card, &mut filler, FORMAT, &progress, &AtomicBool::new(false));
        assert_eq!(end, Some(End::Gone));
        for _ in 0..2 {
            let block = drain.next(Duration::ZERO).unwrap();
            assert_eq!((block.data(), block.gap), ([1; 4].as_slice(), Gap::NONE));
            let age = SystemTime::now().duration_since(block.start).unwrap();
            assert!(age >= Duration::from_millis(3) && age < Duration::from_secs(60), "{age:?}");
        }
        assert_eq!(progress.report(Instant::now()).1["frames"], 4);
    }

    #[test]
    fn overruns_are_counted_before_the_next_frames() {
        let (mut filler, drain) = ring(8, 8);
        let progress = Progress::default();
        let mut card = Script(vec![TWO, Ok(Read::Overrun), Ok(Read::Overrun), TWO, TWO]);
        run(&mut card, &mut filler, FORMAT, &progress, &AtomicBool::new(false));
        let overruns: Vec<u64> = (0..3).map(|_| drain.next(Duration::ZERO).unwrap().gap.overruns).collect();
        assert_eq!(overruns, [0, 2, 0]);
        assert_eq!(progress.report(Instant::now()).1["overruns"], 2);
    }

    #[test]
    fn a_full_ring_does_not_stop_the_capture() {
        let (mut filler, drain) = ring(8, 2);
        let progress = Progress::default();
        run(&mut Script(vec![TWO; 5]), &mut filler, FORMAT, &progress, &AtomicBool::new(false));
        drop(filler);
        assert_eq!(drain.next(Duration::ZERO).map(|block| block.len), Ok(4));
        assert!(drain.next(Duration::ZERO).is_err());
        let fields = progress.report(Instant::now()).1;
        assert_eq!((&fields["frames"], &fields["frames_lost"]), (&10.into(), &8.into()));
    }

    #[test]
    fn a_request_to_stop_is_followed() {
        let (mut filler, _drain) = ring(8, 2);
        let end = run(&mut Script(vec![TWO]), &mut filler, FORMAT, &Progress::default(), &AtomicBool::new(true));
        assert_eq!(end, None);
    }
}
