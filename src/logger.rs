//! The program's own log: a bounded queue of lines, and the `log` thread that writes them.
//!
//! Standard error can block for as long as nobody reads it: a hung journald, a pager, a terminal after Ctrl-S. So only
//! the `log` thread writes. Lines that do not fit into the queue are dropped and counted, and one line reports their
//! number in their place.
//!
//! Invariants: a thread that logs never waits for a reader. A line is formatted before the lock of the queue is taken,
//! so a value that panics while it is formatted costs its own line only.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::json;
use simplelog::{ConfigBuilder, WriteLogger};

use crate::clock;

/// Maximum number of lines in the queue.
const LINES: usize = 1024;
/// Maximum number of bytes in the queue.
const BYTES: usize = 256 << 10;
/// How long the end of the program waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(200);
/// How long the end of the program waits before it tries again to take the lock of the queue.
const LOCKED: Duration = Duration::from_millis(1);
/// A single write of this size does not block if the descriptor is ready.
const ATOMIC: usize = 4096;

/// Formats a record as a line, line feed included.
pub type Formatter = fn(&Record<'_>) -> Vec<u8>;

/// Handle of the log; clones share it.
pub struct Logger<W> {
    queue: Arc<Queue>,
    format: Formatter,
    output: Arc<W>,
}

impl<W> Clone for Logger<W> {
    fn clone(&self) -> Self {
        Self { queue: Arc::clone(&self.queue), format: self.format, output: Arc::clone(&self.output) }
    }
}

impl<W> std::fmt::Debug for Logger<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logger")
    }
}

impl<W: AsFd + Send + Sync + 'static> Logger<W> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(format: Formatter, output: W) -> io::Result<Self> {
        let logger = Self { queue: Arc::default(), format, output: Arc::new(output) };
        let thread = logger.clone();
        thread::Builder::new().name("log".to_owned()).stack_size(128 << 10).spawn(move || thread.run())?;
        Ok(logger)
    }

    /// Makes it the logger of this process.
    pub fn install(&self, level: LevelFilter) {
        // Fails only if a logger is already set.
        let _ = log::set_boxed_logger(Box::new(self.clone())).map(|()| log::set_max_level(level));
    }

    /// Writes an error past the queue, for a program that is about to abort. Waits 200 ms at most, and for no lock.
    pub fn write_last(&self, message: &str) {
        let line = self.line(Level::Error, format_args!("{message}"));
        let deadline = Instant::now() + LAST_LINES;
        let (done, is_done) = channel();
        let (logger, last) = (self.clone(), line.clone());
        let write = move || {
            // The lines before it, if the thread `log` still moves.
            logger.queue.wait_until_written(Instant::now() + LAST_LINES / 2);
            let written = write_all(&*logger.output, &last);
            let _ = done.send(written);
        };
        match thread::Builder::new().stack_size(64 << 10).spawn(write) {
            Ok(_) => drop(is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()))),
            // The system has no thread.
            Err(_) => drop(write_if_ready(&*self.output, &line[..line.len().min(ATOMIC)], LAST_LINES)),
        }
    }

    fn line(&self, level: Level, message: std::fmt::Arguments<'_>) -> Vec<u8> {
        (self.format)(&Record::builder().level(level).target(env!("CARGO_CRATE_NAME")).args(message).build())
    }

    fn run(&self) {
        // Lines that could not be written or did not fit, since the last report.
        let mut lost = 0;
        loop {
            let entry = self.queue.next();
            if let Entry::Dropped(count) = entry {
                lost += count;
            }
            if lost > 0 {
                let report = self.line(Level::Warn, format_args!("{lost} log lines were dropped, because nobody read the log in time"));
                if write_all(&*self.output, &report).is_ok() {
                    lost = 0;
                }
            }
            if let Entry::Line(line) = entry {
                // If the other end is closed or the disk is full, a later line reports it.
                lost += u64::from(write_all(&*self.output, &line).is_err());
            }
            self.queue.written();
        }
    }
}

impl<W: AsFd + Send + Sync + 'static> Log for Logger<W> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && metadata.target().starts_with("silvasonic")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.queue.push((self.format)(record));
        }
    }

    /// Waits until all lines are written, 200 ms at most.
    fn flush(&self) {
        self.queue.wait_until_written(Instant::now() + LAST_LINES);
    }
}

/// `2026-11-25T10:00:00.123Z [INFO] message`
#[must_use]
pub fn text(record: &Record<'_>) -> Vec<u8> {
    let config = ConfigBuilder::new()
        .set_time_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build();
    let line = Line::default();
    line.bytes().extend_from_slice(format!("{} ", clock::iso_millis(SystemTime::now())).as_bytes());
    // One for each line: a shared one would format under a lock, and a panic would poison it.
    WriteLogger::new(LevelFilter::Trace, config, line.clone()).log(record);
    std::mem::take(&mut line.bytes())
}

/// `{"event":"message","level":"info","timestamp":"2026-11-25T10:00:00.123Z"}`, with the level names of Python.
#[must_use]
pub fn json(record: &Record<'_>) -> Vec<u8> {
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    };
    let line = json!({ "timestamp": clock::iso_millis(SystemTime::now()), "level": level, "event": record.args().to_string() });
    (line.to_string() + "\n").into_bytes()
}

#[derive(Clone, Default)]
struct Line(Arc<Mutex<Vec<u8>>>);

impl Line {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Entry {
    Line(Vec<u8>),
    /// So many lines were dropped here.
    Dropped(u64),
}

#[derive(Default)]
struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Lines dropped after the last entry.
    dropped: u64,
    /// The thread writes an entry.
    is_writing: bool,
}

impl Lines {
    fn push(&mut self, line: Vec<u8>) {
        // After the first line that was dropped, all are dropped until half of the queue is free: a slow reader then gets
        // runs of lines with a gap between them, and not a report after each line.
        let share = if self.dropped > 0 { 2 } else { 1 };
        if self.entries.len() >= LINES / share || self.bytes + line.len() > BYTES / share {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            self.entries.push_back(Entry::Dropped(std::mem::take(&mut self.dropped)));
        }
        self.bytes += line.len();
        self.entries.push_back(Entry::Line(line));
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front();
        if let Some(Entry::Line(line)) = &entry {
            self.bytes -= line.len();
        }
        entry.or_else(|| (self.dropped > 0).then(|| Entry::Dropped(std::mem::take(&mut self.dropped))))
    }
}

impl Queue {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Vec<u8>) {
        self.lines().push(line);
        self.changed.notify_all();
    }

    fn next(&self) -> Entry {
        let mut lines = self.lines();
        loop {
            if let Some(entry) = lines.pop() {
                lines.is_writing = true;
                return entry;
            }
            lines = self.changed.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn written(&self) {
        self.lines().is_writing = false;
        self.changed.notify_all();
    }

    /// Does not wait for the lock beyond the deadline: a panic may have happened under it.
    fn wait_until_written(&self, deadline: Instant) {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let lines = match self.lines.try_lock() {
                Ok(lines) => lines,
                Err(TryLockError::Poisoned(error)) => error.into_inner(),
                // Another thread has it for some microseconds.
                Err(TryLockError::WouldBlock) => {
                    thread::sleep(LOCKED.min(left));
                    continue;
                }
            };
            if lines.entries.is_empty() && lines.dropped == 0 && !lines.is_writing {
                return;
            }
            drop(self.changed.wait_timeout(lines, left));
        }
    }
}

/// Writes a whole line, if possible with one system call.
fn write_all(output: &impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(output, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Another process made the descriptor non-blocking.
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(output, PollFlags::OUT)], None)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One write, if the descriptor becomes ready in time.
fn write_if_ready(output: &impl AsFd, bytes: &[u8], limit: Duration) -> Result<usize, Errno> {
    let limit = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    match poll(&mut [PollFd::new(output, PollFlags::OUT)], Some(&limit))? {
        0 => Err(Errno::TIMEDOUT),
        _ => rustix::io::write(output, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, Ordering};

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_json_line_is_one_object_whatever_the_message_holds() {
        for (level, name) in [(Level::Error, "error"), (Level::Warn, "warning"), (Level::Info, "info"), (Level::Trace, "debug")] {
            let line = json(&Record::builder().level(level).args(format_args!("a \"quoted\"\nline \u{1b}")).build());
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!((&value["level"], &value["event"]), (&name.into(), &"a \"quoted\"\nline \u{1b}".into()));
            let time = value["timestamp"].as_str().unwrap();
            assert!(time.ends_with('Z') && time.len() == "2026-11-25T10:00:00.123Z".len(), "{time}");
        }
    }

    /// Level and message only.
    fn plain(record: &Record<'_>) -> Vec<u8> {
        format!("{} {}\n", record.level(), record.args()).into_bytes()
    }

    /// A logger whose output blocks until the other end is read.
    fn blocked() -> (Logger<UnixStream>, UnixStream) {
        let (reader, mut writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        while writer.write(&[b'x'; 1024]).is_ok() {}
        while writer.write(b"x").is_ok() {}
        writer.set_nonblocking(false).unwrap();
        reader.set_read_timeout(Some(SOON)).unwrap();
        (Logger::start(plain, writer).unwrap(), reader)
    }

    fn info(logger: &Logger<UnixStream>, message: &str) {
        logger.queue.push(logger.line(Level::Info, format_args!("{message}")));
    }

    #[test]
    fn a_flush_that_ends_early_has_written_the_last_line() {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let logger = Logger::start(plain, writer).unwrap();
        // Others use the queue, too.
        let other = logger.clone();
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        let using = thread::spawn(move || {
            while !has_ended.load(Ordering::Relaxed) {
                drop(other.queue.lines());
            }
        });
        let mut lines = BufReader::new(reader);
        let mut line = String::new();
        for number in 0..500 {
            info(&logger, &number.to_string());
            let start = Instant::now();
            logger.flush();
            if start.elapsed() < LAST_LINES {
                line.clear();
                lines.read_line(&mut line).unwrap();
                assert_eq!(line, format!("INFO {number}\n"));
            } else {
                // A busy machine: it is written later.
                while lines.read_line(&mut line).is_err() {
                    thread::yield_now();
                }
            }
        }
        ended.store(true, Ordering::Relaxed);
        using.join().unwrap();
    }

    struct Bug;

    impl std::fmt::Display for Bug {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("while it is formatted")
        }
    }

    #[test]
    fn what_nobody_reads_is_dropped_counted_and_reported_in_its_place() {
        let (logger, reader) = blocked();
        let start = Instant::now();
        for number in 0..3000 {
            info(&logger, &format!("line {number}"));
        }
        logger.flush();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        let first = lines.next().unwrap();
        assert_eq!(first.trim_start_matches('x'), "INFO line 0");
        let mut read = 1;
        let report = loop {
            let line = lines.next().unwrap();
            if line != format!("INFO line {read}") {
                break line;
            }
            read += 1;
        };
        // The thread itself holds one line more than the queue, if it was quick.
        assert!((LINES..=LINES + 1).contains(&read), "{read}");
        assert_eq!(report, format!("WARN {} log lines were dropped, because nobody read the log in time", 3000 - read));
        info(&logger, "after the gap");
        assert_eq!(lines.next().unwrap(), "INFO after the gap");
    }

    #[test]
    fn a_last_message_waits_for_neither_the_reader_nor_a_lock() {
        let (logger, _reader) = blocked();
        info(&logger, "in the way");
        let start = Instant::now();
        logger.write_last("bug");
        let locked = logger.queue.lines();
        logger.write_last("bug under the lock");
        drop(locked);
        assert!(start.elapsed() < 3 * LAST_LINES, "{:?}", start.elapsed());
        // With a reader it arrives, after what was logged before.
        let (other, writer) = UnixStream::pair().unwrap();
        other.set_read_timeout(Some(SOON)).unwrap();
        let logger = Logger::start(plain, writer).unwrap();
        info(&logger, "before");
        logger.write_last("bug");
        let mut lines = BufReader::new(other).lines().map(Result::unwrap);
        assert_eq!([lines.next().unwrap(), lines.next().unwrap()], ["INFO before", "ERROR bug"]);
    }

    #[test]
    fn a_value_that_panics_while_it_is_formatted_costs_its_own_line_only() {
        let (other, writer) = UnixStream::pair().unwrap();
        other.set_read_timeout(Some(SOON)).unwrap();
        let logger = Logger::start(text, writer).unwrap();
        let bug = catch_unwind(AssertUnwindSafe(|| logger.queue.push(logger.line(Level::Info, format_args!("{Bug}")))));
        assert!(bug.is_err());
        info(&logger, "fine");
        let line = BufReader::new(other).lines().next().unwrap().unwrap();
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, "[INFO] fine");
        assert_eq!((time.len(), clock::parse(time).is_some()), ("2026-11-25T10:00:00.123Z".len(), true), "{line}");
    }
}
