//! The thread `writer`: cuts the stream into files.
//!
//! The stream is continuous: the next file begins with the next frame. Where frames are missing, a new file begins, so
//! that time is true within a file; only a file that is younger than a second goes on, with a mark. A disk that fails is
//! tried again until it works; one whose free space is down to the reserve is left alone until there is more.
//!
//! Invariants: nothing is written into the reserve. Nothing is deleted. The thread ends when the capture has ended, or
//! soon after the request to stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::format::Format;
use super::level::Level;
use super::metadata::Origin;
use super::name::Run;
use super::place::Place;
use super::progress::Progress;
use super::repair::repair;
use super::ring::{Block, Drain, Gap};
use super::segment::{Plan, Segment};
use super::wav;

/// How long to wait for a block before something else is looked at.
const WAIT: Duration = Duration::from_millis(200);
/// A disk that fails is tried again after this time.
const RETRY: Duration = Duration::from_millis(250);
/// A file that cannot be written for so long is left for the next start.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How often the free space is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What may be written between two looks, and for the end of a file.
const MARGIN: u64 = 4 << 20;

/// The result of an operation that is repeated until it succeeds.
enum Outcome<T> {
    Done(T),
    /// The program has to end, or the file has to be given up.
    GivenUp,
}

pub(super) struct Writer {
    place: Place,
    origin: Origin,
    format: Format,
    /// Frames of a file.
    most: u64,
    /// Bytes of free space that stay free.
    reserve: u64,
    free: fn(&Place) -> io::Result<u64>,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    run: Run,
    number: u32,
    segment: Option<Segment>,
    /// What is missing before the next frame.
    gap: Gap,
    looked: Option<Instant>,
    /// The free space is down to the reserve; the frames that were not written since.
    withheld: Option<u64>,
    /// A file of this start was given up.
    unfinished: bool,
}

impl Writer {
    pub(super) fn new(
        place: Place,
        origin: Origin,
        format: Format,
        segment: Duration,
        reserve: u64,
        (progress, stop): (&Arc<Progress>, &Arc<AtomicBool>),
    ) -> Writer {
        let most = format.frames(segment).clamp(1, wav::MOST / format.frame_bytes() as u64);
        Writer {
            place,
            origin,
            format,
            most,
            reserve,
            free: Place::free,
            progress: Arc::clone(progress),
            stop: Arc::clone(stop),
            run: Run::random(),
            number: 0,
            segment: None,
            gap: Gap::NONE,
            looked: None,
            withheld: None,
            unfinished: false,
        }
    }

    pub(super) fn run(mut self, drain: &Drain) {
        if let Outcome::GivenUp = self.persist("create its folders", |writer| writer.place.prepare()) {
            return;
        }
        repair(&self.place);
        loop {
            match drain.next(WAIT) {
                Ok(block) => {
                    self.take(&block);
                    drain.give(block);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if self.is_stopping() => break,
                Err(RecvTimeoutError::Timeout) => self.write_due(),
            }
        }
        self.close();
    }

    fn take(&mut self, block: &Block) {
        self.gap.add(block.gap);
        if self.gap != Gap::NONE && self.segment.as_ref().is_some_and(|segment| segment.frames() >= u64::from(self.format.rate)) {
            self.close();
        }
        let frame = self.format.frame_bytes();
        let (mut at, mut level) = (0, block.level);
        while at < block.len {
            let frames = ((block.len - at) / frame) as u64;
            if self.is_withheld(frames) || !self.open(block, (at / frame) as u64) {
                self.gap.frames += frames;
                return;
            }
            let Some(segment) = &mut self.segment else { return };
            if self.gap != Gap::NONE {
                segment.miss(std::mem::take(&mut self.gap));
            }
            let end = at + segment.room().min(frames) as usize * frame;
            // The level is that of the block; the file in which the block begins has it.
            segment.append(&block.data()[at..end], std::mem::take(&mut level));
            at = end;
            if segment.room() == 0 {
                self.close();
            }
        }
        self.write_due();
    }

    /// Makes sure that there is a file. A new one begins with this frame of the block, and has what is missing before it.
    fn open(&mut self, block: &Block, frame: u64) -> bool {
        if self.segment.is_some() {
            return true;
        }
        let start = block.start + self.format.duration(frame);
        let created = self.persist("create a file", |writer| {
            writer.place.prepare()?;
            let plan = Plan { start, most: writer.most, gap: writer.gap };
            Segment::create(&writer.place, &writer.origin, writer.format, &plan, (&writer.run, writer.number))
        });
        let Outcome::Done(segment) = created else { return false };
        self.gap = Gap::NONE;
        self.number += 1;
        self.segment = Some(segment);
        true
    }

    fn write_due(&mut self) {
        let now = Instant::now();
        while self.segment.as_ref().is_some_and(|segment| segment.is_due(now)) {
            let written = self.persist("write", |writer| writer.segment.as_mut().map_or(Ok(()), Segment::write));
            if let Outcome::GivenUp = written {
                return self.abandon();
            }
        }
    }

    /// Ends the file.
    fn close(&mut self) {
        let finished = self.persist("finish a file", |writer| match &mut writer.segment {
            Some(segment) if segment.frames() > 0 => {
                writer.place.prepare()?;
                let done = segment.finish(&writer.place, &writer.origin, &writer.run);
                if done.is_err() && !segment.exists() {
                    return Ok(None);
                }
                done.map(Some)
            }
            _ => Ok(None),
        });
        let Outcome::Done(path) = finished else { return self.abandon() };
        let Some(segment) = self.segment.take() else { return };
        let Some(path) = path else {
            error!("a file with {} frames is lost: somebody has removed it from {}", segment.frames(), self.place.buffer.display());
            return;
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.progress.file(&name, segment.frames());
        info!("wrote {name}: {}", summary(segment.frames(), segment.level(), segment.overruns()));
        if std::mem::take(&mut self.unfinished) {
            repair(&self.place);
        }
    }

    fn abandon(&mut self) {
        let Some(segment) = self.segment.take() else { return };
        let lost = Gap { overruns: 0, frames: segment.unwritten() };
        self.unfinished = true;
        self.gap.add(lost);
        self.progress.lost(lost);
    }

    /// Whether the free space is down to the reserve, so that these frames must not be written.
    fn is_withheld(&mut self, frames: u64) -> bool {
        let now = Instant::now();
        if self.looked.is_none_or(|last| now.duration_since(last) >= LOOK) {
            self.looked = Some(now);
            // Unknown is not full: the write itself says what is wrong.
            if let Ok(free) = (self.free)(&self.place) {
                self.judge(free);
            }
        }
        if let Some(count) = &mut self.withheld {
            *count += frames;
            self.progress.lost(Gap { overruns: 0, frames });
        }
        self.withheld.is_some()
    }

    fn judge(&mut self, free: u64) {
        let (mb, reserve) = (free / 1_000_000, self.reserve / 1_000_000);
        // A file's worth more to begin again than to go on, so that it does not change every second.
        let file = self.most * self.format.frame_bytes() as u64;
        match self.withheld {
            None if free < self.reserve + MARGIN => {
                let fault = format!("nothing is written: {mb} MB of the disk are free, the reserve is {reserve} MB");
                error!("{fault}; recording continues when there is more space");
                self.progress.set_fault(Some(fault));
                self.close();
                self.withheld = Some(0);
            }
            Some(frames) if free >= self.reserve + MARGIN + file => {
                info!("writing again: {mb} MB of the disk are free; {frames} frames were not written");
                self.progress.set_fault(None);
                self.withheld = None;
            }
            _ => {}
        }
    }

    /// Repeats an operation until it succeeds, the program has to stop, or a file has to be given up.
    fn persist<T>(&mut self, what: &str, mut operation: impl FnMut(&mut Writer) -> io::Result<T>) -> Outcome<T> {
        let mut failing: Option<Instant> = None;
        loop {
            let error = match operation(self) {
                Ok(value) => {
                    if let Some(since) = failing {
                        info!("can {what} again after {:.1} s", since.elapsed().as_secs_f32());
                        self.progress.set_fault(None);
                    }
                    return Outcome::Done(value);
                }
                Err(error) => error,
            };
            let since = *failing.get_or_insert_with(|| {
                let fault = format!("cannot {what} in {}: {error}", self.place.buffer.display());
                error!("{fault}; trying again");
                self.progress.set_fault(Some(fault));
                Instant::now()
            });
            if self.is_stopping() || (self.segment.is_some() && since.elapsed() >= GIVE_UP) {
                warn!("gave up after {:.1} s to {what}: {error}", since.elapsed().as_secs_f32());
                return Outcome::GivenUp;
            }
            thread::sleep(RETRY);
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// `720000 frames, peak -12.3 dBFS, RMS -40.1 dBFS, 0 samples clipped, 0 overruns`
fn summary(frames: u64, level: &Level, overruns: u64) -> String {
    let dbfs = |value: Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.1} dBFS"));
    format!(
        "{frames} frames, peak {}, RMS {}, {} samples clipped, {overruns} overruns",
        dbfs(level.peak_dbfs()),
        dbfs(level.rms_dbfs()),
        level.clipped
    )
}

#[cfg(test)]
mod tests {
    use super::super::format::Sample;
    use super::super::ring::ring;
    use super::super::scratch::Scratch;
    use super::*;
    use std::fs;
    use std::sync::Mutex;
    use std::time::SystemTime;

    const FORMAT: Format = Format { sample: Sample::S16, rate: 1000, channels: 1 };

    fn writer(scratch: &Scratch, segment: Duration) -> Writer {
        let origin = Origin { device: "device".to_owned(), profile: "profile".to_owned() };
        let mut writer = Writer::new(scratch.place(), origin, FORMAT, segment, 0, (&Arc::default(), &Arc::default()));
        writer.free = |_| Ok(u64::MAX);
        writer
    }

    /// A block whose samples count from a number.
    fn block(first: u64, frames: u64, gap: Gap) -> Block {
        let bytes: Vec<u8> = (first..first + frames).flat_map(|value| (value as u16).to_le_bytes()).collect();
        let start = SystemTime::UNIX_EPOCH + FORMAT.duration(1_000_000 + first);
        Block { len: bytes.len(), level: Level::of(Sample::S16, &bytes), bytes: bytes.into(), start, gap }
    }

    /// The whole files in order: name, samples, and the line with the places of missing frames.
    fn files(scratch: &Scratch) -> Vec<(String, Vec<u16>, Option<String>)> {
        let mut paths: Vec<_> = fs::read_dir(scratch.place().data).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort_by_key(|path| path.to_str().unwrap().rsplit('_').next().unwrap().to_owned());
        let read = |path: std::path::PathBuf| {
            let bytes = fs::read(&path).unwrap();
            let head = wav::parse(&bytes).unwrap();
            assert_eq!(bytes.len(), head.data_at + head.data as usize);
            let samples = bytes[head.data_at..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            let marks = head.text.unwrap().lines().find_map(|line| Some(line.strip_prefix("Silvasonic|Missing At: ")?.to_owned()));
            (path.file_name().unwrap().to_str().unwrap().split("s_").next().unwrap().to_owned(), samples, marks)
        };
        paths.into_iter().map(read).collect()
    }

    #[test]
    fn the_next_file_begins_with_the_next_frame() {
        let scratch = Scratch::new();
        let (mut filler, drain) = ring(2 * 300, 30);
        for part in 0..21 {
            let source = block(part * 300, 300, Gap::NONE);
            let target = filler.block();
            target.bytes.copy_from_slice(source.data());
            (target.len, target.start) = (source.len, source.start);
            filler.pass(300);
        }
        drop(filler);
        writer(&scratch, Duration::from_secs(2)).run(&drain);
        let files = files(&scratch);
        let all: Vec<u16> = files.iter().flat_map(|(_, samples, _)| samples.clone()).collect();
        assert_eq!(all, (0..6300).collect::<Vec<u16>>());
        let names: Vec<&str> = files.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["1970-01-01T00-16-40Z_2", "1970-01-01T00-16-42Z_2", "1970-01-01T00-16-44Z_2", "1970-01-01T00-16-46Z_1"]);
        assert_eq!(fs::read_dir(scratch.place().buffer).unwrap().count(), 0);
    }

    #[test]
    fn missing_frames_begin_a_file_or_are_marked_in_a_young_one() {
        let scratch = Scratch::new();
        let mut writer = writer(&scratch, Duration::from_secs(10));
        writer.take(&block(0, 500, Gap::NONE));
        writer.take(&block(600, 600, Gap { overruns: 1, frames: 100 }));
        writer.take(&block(1300, 10, Gap { overruns: 2, frames: 100 }));
        writer.close();
        let found: Vec<_> = files(&scratch).into_iter().map(|(name, samples, marks)| (name, samples.len(), marks)).collect();
        let expected = [("1970-01-01T00-16-40Z_1", 1100, "500:100"), ("1970-01-01T00-16-41Z_1", 10, "0:100")];
        assert_eq!(found, expected.map(|(name, frames, marks)| (name.to_owned(), frames, Some(marks.to_owned()))));
    }

    #[test]
    fn a_kill_does_not_hide_that_frames_are_missing() {
        let scratch = Scratch::new();
        let mut writer = writer(&scratch, Duration::from_secs(10));
        writer.take(&block(100, 500, Gap { overruns: 1, frames: 100 }));
        writer.segment.as_mut().unwrap().write().unwrap();
        drop(writer);
        repair(&scratch.place());
        let found: Vec<_> = files(&scratch).into_iter().map(|(_, samples, marks)| (samples.len(), marks)).collect();
        assert_eq!(found, [(500, Some("0:100".to_owned()))]);
    }

    #[test]
    fn nothing_is_written_into_the_reserve() {
        static FREE: Mutex<u64> = Mutex::new(0);
        let scratch = Scratch::new();
        let mut writer = writer(&scratch, Duration::from_secs(2));
        writer.free = |_| Ok(*FREE.lock().unwrap());
        writer.reserve = 1000;
        let mut take = |first: u64, free: u64| {
            *FREE.lock().unwrap() = free;
            writer.looked = None;
            writer.take(&block(first, 100, Gap::NONE));
            writer.withheld
        };
        let table = [
            (MARGIN + 5_000, None),
            (MARGIN + 1_000, None),
            (MARGIN + 999, Some(100)),
            (0, Some(200)),
            (MARGIN + 4_999, Some(300)),
            (MARGIN + 5_000, None),
        ];
        for (at, (free, withheld)) in table.into_iter().enumerate() {
            assert_eq!(take(at as u64 * 100, free), withheld, "{free} bytes");
        }
        writer.close();
        let found: Vec<_> = files(&scratch).into_iter().map(|(_, samples, marks)| (samples[0], samples.len(), marks)).collect();
        assert_eq!(found, [(0, 200, None), (500, 100, Some("0:300".to_owned()))]);
    }

    #[test]
    fn an_unknown_free_space_is_not_a_full_disk() {
        let scratch = Scratch::new();
        let mut writer = writer(&scratch, Duration::from_secs(2));
        writer.free = |_| Err(io::ErrorKind::TimedOut.into());
        writer.reserve = 1000;
        writer.take(&block(0, 100, Gap::NONE));
        assert_eq!(writer.withheld, None);
    }

    #[test]
    fn folders_that_somebody_removes_come_back() {
        let scratch = Scratch::new();
        let mut writer = writer(&scratch, Duration::from_secs(1));
        writer.take(&block(0, 500, Gap::NONE));
        let place = scratch.place();
        fs::remove_dir_all(&place.data).unwrap();
        writer.take(&block(500, 600, Gap::NONE));
        assert_eq!(files(&scratch).len(), 1);
        fs::remove_dir_all(&place.buffer).unwrap();
        writer.close();
        assert_eq!(files(&scratch).len(), 1, "what was removed is lost, and nothing else");
        writer.take(&block(1100, 1000, Gap::NONE));
        writer.close();
        assert_eq!(files(&scratch).iter().map(|(_, samples, _)| samples.len()).sum::<usize>(), 2000);
    }
}
