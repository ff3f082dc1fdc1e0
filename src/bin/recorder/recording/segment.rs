//! A file that is being written.
//!
//! Frames are collected and written in large pieces one after the other; the disk is told to keep them once, at the end.
//! Invariant: each operation can be repeated after it has failed, as it writes to the same place again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::format::Format;
use super::level::Level;
use super::metadata::{self, Missing, Origin};
use super::name::{self, Run};
use super::place::Place;
use super::ring::Gap;
use super::wav;

/// So much is written at once …
const PIECE: usize = 256 << 10;
/// … or what has been waiting for so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of a file before its first frame.
pub(super) struct Plan {
    pub(super) start: SystemTime,
    /// The frames with which it is full.
    pub(super) most: u64,
    /// What is missing before its first frame.
    pub(super) gap: Gap,
}

pub(super) struct Segment {
    file: File,
    path: PathBuf,
    format: Format,
    start: SystemTime,
    number: u32,
    /// Frames that it has taken, and the number with which it is full.
    frames: u64,
    most: u64,
    level: Level,
    missing: Vec<Missing>,
    /// Bytes at the end of the file that are not written yet, and since when they wait.
    pending: Vec<u8>,
    written: u64,
    since: Option<Instant>,
}

impl Segment {
    /// Creates the file. `gap` is what is missing before its first frame: in its head from the beginning, so that a kill does
    /// not hide it.
    pub(super) fn create(place: &Place, origin: &Origin, format: Format, plan: &Plan, (run, number): (&Run, u32)) -> io::Result<Segment> {
        let &Plan { start, most, gap } = plan;
        let path = place.buffer.join(name::file_name(start, format.duration(most), run, number));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let missing: Vec<Missing> = (gap != Gap::NONE).then_some((0, gap)).into_iter().collect();
        let mut pending = Vec::with_capacity(PIECE + PIECE / 2);
        let text = metadata::text(origin, format, start, most, &Level::default(), &missing);
        pending.extend(wav::head(format, most * format.frame_bytes() as u64, &text));
        Ok(Segment {
            file,
            path,
            format,
            start,
            number,
            frames: 0,
            most,
            level: Level::default(),
            missing,
            pending,
            written: 0,
            since: None,
        })
    }

    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    pub(super) fn level(&self) -> &Level {
        &self.level
    }

    pub(super) fn overruns(&self) -> u64 {
        self.missing.iter().map(|(_, gap)| gap.overruns).sum()
    }

    /// How many frames it still takes.
    pub(super) fn room(&self) -> u64 {
        self.most - self.frames
    }

    /// Marks that frames are missing here.
    pub(super) fn miss(&mut self, gap: Gap) {
        self.missing.push((self.frames, gap));
    }

    /// Takes frames; they are written later.
    pub(super) fn append(&mut self, frames: &[u8], level: Level) {
        self.since.get_or_insert_with(Instant::now);
        self.pending.extend_from_slice(frames);
        self.frames += (frames.len() / self.format.frame_bytes()) as u64;
        self.level.add(level);
    }

    /// Whether there is enough to be written, or something has waited for too long.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.pending.len() >= PIECE || self.since.is_some_and(|since| now.duration_since(since) >= PATIENCE)
    }

    /// Writes what waits. In whole pieces while there are some, so that no page of the file is written twice.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let whole = self.pending.len() / PIECE * PIECE;
        self.write_first(if whole > 0 { whole } else { self.pending.len() })
    }

    fn write_first(&mut self, bytes: usize) -> io::Result<()> {
        self.file.write_all_at(&self.pending[..bytes], self.written)?;
        self.written += bytes as u64;
        self.pending.drain(..bytes);
        self.since = (!self.pending.is_empty()).then(Instant::now);
        Ok(())
    }

    /// Writes the rest and the head, waits until the disk has them, and moves the file to the whole ones.
    pub(super) fn finish(&mut self, place: &Place, origin: &Origin, run: &Run) -> io::Result<PathBuf> {
        self.write_first(self.pending.len())?;
        let text = metadata::text(origin, self.format, self.start, self.frames, &self.level, &self.missing);
        self.file.write_all_at(&wav::head(self.format, self.frames * self.format.frame_bytes() as u64, &text), 0)?;
        self.file.sync_data()?;
        place.publish(&self.path, self.start, self.format.duration(self.frames), run, self.number)
    }

    /// Whether the file is still where it was created.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Frames that were never written.
    pub(super) fn unwritten(&self) -> u64 {
        (self.pending.len() / self.format.frame_bytes()) as u64
    }
}
