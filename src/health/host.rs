//! The resources that this process and its host use, for the heartbeat's `meta`, from `/proc` and `statvfs`.
//!
//! The percentages of processor time are for the time between two readings, so a [`Meter`] keeps the last reading.
//!
//! Invariant: a number that cannot be read is `null`, never 0 and never an error; no decision depends on a metric. As
//! `statvfs` blocks while a disk does not respond, the `probe` thread calls it; reading `/proc` does not block.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::from_utf8;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::param::page_size;
use serde_json::{Map, Value, json};

use crate::collect::by_insertion;
use crate::decide::workspace::Placement;
use crate::fs::open;
use crate::probe::{self, Prober, Question, State};

/// Of `/proc/stat`, what matters is at its beginning.
const LIMIT: usize = 16 << 10;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;
/// Clock ticks per second in `/proc/…/stat`: 100 in user space on all supported architectures.
const TICKS: f64 = 100.0;

/// Reads the metrics, and keeps what the next reading is compared with.
pub struct Meter {
    files: Files,
    storage: Storage,
    last: Reading,
    /// Free space of the workspace in bytes.
    free: Option<f64>,
    /// Where the workspace is.
    placement: Option<Placement>,
}

/// A disk responds within this time. After it, other reads do not wait for it any more.
const PATIENCE: Duration = Duration::from_millis(250);

/// After this time, the disk is asked again.
const AGAIN: Duration = Duration::from_secs(60);
/// Number of readings that may hang at the same time.
const STUCK: usize = 2;

/// Usage of the file system of the workspace. Each sample requests the reading for the next one.
struct Storage {
    question: Question<()>,
    look: Arc<dyn Fn() -> Seen + Send + Sync>,
    outbox: Sender<(u64, Seen)>,
    answers: Receiver<(u64, Seen)>,
}

/// What one reading has found.
type Seen = (Option<Usage>, Option<Placement>);

/// Usage of one file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    used: f64,
    total: f64,
    /// Without the blocks that are reserved for root.
    free: f64,
    percent: f64,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    /// Busy ticks and all ticks of the host since it started.
    host: Option<(u64, u64)>,
    /// Number of processors.
    processors: Option<usize>,
    /// This process.
    own: Option<Process>,
    /// All memory of the host and what is available of it, in bytes.
    memory: Option<(f64, f64)>,
}

/// What `/proc/self/stat` says about this process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Process {
    /// Ticks since it started.
    ticks: u64,
    threads: u64,
    /// Pages of resident memory.
    pages: u64,
}

/// The files that are read.
struct Files {
    stat: KernelFile,
    own: KernelFile,
    memory: KernelFile,
}

/// A file of the kernel, which stays open: to read it again costs one system call instead of three.
struct KernelFile {
    path: PathBuf,
    file: Option<File>,
}

impl Meter {
    /// Takes the first reading. `storage_*` are for the file system of the first of these folders that exists: in a
    /// container, the workspace of the host may not be visible, and only the Recorder folder is.
    #[must_use]
    pub fn new(folders: [&Path; 2], prober: &Prober) -> Self {
        Self::at(Path::new("/proc"), folders, || None, prober)
    }

    /// Likewise, and looks with each sample where the workspace is.
    #[must_use]
    pub fn with_placement(folders: [&Path; 2], place: impl Fn() -> Option<Placement> + Send + Sync + 'static, prober: &Prober) -> Self {
        Self::at(Path::new("/proc"), folders, place, prober)
    }

    fn at(proc: &Path, folders: [&Path; 2], place: impl Fn() -> Option<Placement> + Send + Sync + 'static, prober: &Prober) -> Self {
        let folders = folders.map(Path::to_owned);
        let look = move || (folders.iter().find_map(|folder| usage(folder)), place());
        let mut files = Files::of(proc);
        Self { last: files.read(), files, storage: Storage::new(prober, look), free: None, placement: None }
    }

    /// `resources` (this process) and `host_resources`: MiB, GiB, percent; processor time since the last call.
    pub fn sample(&mut self) -> Map<String, Value> {
        let now = self.files.read();
        let last = std::mem::replace(&mut self.last, now);

        let elapsed = now.at.saturating_duration_since(last.at).as_secs_f64();
        let own_cpu = now.own.zip(last.own).map(|(now, last)| percent(now.ticks.saturating_sub(last.ticks) as f64 / TICKS, elapsed));
        let resources = json!({
            "cpu_percent": own_cpu,
            "memory_mb": now.own.map(|own| round(own.pages as f64 * page_size() as f64 / MIB)),
            "num_threads": now.own.map(|own| own.threads),
        });

        let host_cpu = now.host.zip(last.host).map(|((busy, all), (last_busy, last_all))| {
            percent(busy.saturating_sub(last_busy) as f64, all.saturating_sub(last_all) as f64)
        });
        let memory = now.memory.map(|(total, available)| (total - available, total));
        let (storage, placement) = self.storage.latest(now.at);
        self.placement = placement;
        self.free = storage.map(|usage| usage.free);
        let host = json!({
            "cpu_percent": host_cpu,
            "cpu_count": now.processors,
            "memory_used_mb": memory.map(|(used, _)| round(used / MIB)),
            "memory_total_mb": memory.map(|(_, total)| round(total / MIB)),
            "memory_percent": memory.map(|(used, total)| percent(used, total)),
            "storage_used_gb": storage.map(|usage| round(usage.used / GIB)),
            "storage_total_gb": storage.map(|usage| round(usage.total / GIB)),
            "storage_percent": storage.map(|usage| usage.percent),
        });
        by_insertion([("resources".to_owned(), resources), ("host_resources".to_owned(), host)])
    }
}

impl Meter {
    /// Free space of the workspace in bytes at the last sample.
    #[must_use]
    pub fn free(&self) -> Option<f64> {
        self.free
    }

    /// Where the workspace was at the last sample; `None` if its disk did not respond.
    #[must_use]
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }
}

impl Storage {
    /// Requests the first reading.
    fn new(prober: &Prober, look: impl Fn() -> Seen + Send + Sync + 'static) -> Self {
        let (outbox, answers) = channel();
        let question = Question::new(prober, PATIENCE, AGAIN, STUCK);
        let mut storage = Self { question, look: Arc::new(look), outbox, answers };
        storage.ask(Instant::now());
        storage
    }

    fn ask(&mut self, now: Instant) {
        let (look, outbox) = (Arc::clone(&self.look), self.outbox.clone());
        self.question.ask(
            now,
            move |_| look(),
            move |number, seen| {
                // The receiver is gone when the program ends.
                let _ = outbox.send((number, seen));
            },
        );
    }

    /// The reading, nothing while there is none; requests the next one.
    fn latest(&mut self, now: Instant) -> Seen {
        let mut latest = (None, None);
        while let Ok((number, seen)) = self.answers.try_recv() {
            if self.question.answered(number) == probe::Answer::Current {
                latest = seen;
            }
        }
        if matches!(self.question.check(now), State::Idle | State::Late(_)) {
            self.ask(now);
        }
        latest
    }
}

fn usage(path: &Path) -> Option<Usage> {
    let fs = rustix::fs::statvfs(path).ok()?;
    let unit = fs.f_frsize as f64;
    let (used, free) = (fs.f_blocks.saturating_sub(fs.f_bfree) as f64 * unit, fs.f_bavail as f64 * unit);
    // Blocks that are reserved for root count neither as used nor as free, as in `df`.
    Some(Usage { used, total: fs.f_blocks as f64 * unit, free, percent: percent(used, used + free) })
}

impl Files {
    fn of(proc: &Path) -> Self {
        let file = |name: &str| KernelFile { path: proc.join(name), file: None };
        Self { stat: file("stat"), own: file("self/stat"), memory: file("meminfo") }
    }

    fn read(&mut self) -> Reading {
        let mut buffer = vec![0; LIMIT];
        let count = |text: &str| text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
        let stat = self.stat.read(&mut buffer);
        let (host, processors) = (stat.and_then(host_ticks), stat.map(count).filter(|count| *count > 0));
        let own = self.own.read(&mut buffer).and_then(Process::parse);
        let memory = self.memory.read(&mut buffer).and_then(|text| field(text, "MemTotal:").zip(field(text, "MemAvailable:")));
        Reading { at: Instant::now(), host, processors, own, memory }
    }
}

impl KernelFile {
    /// The beginning of the file, which the kernel writes anew for each read from its beginning.
    fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a str> {
        let file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path).ok()?,
        };
        let length = file.read_at(buffer, 0).ok()?;
        self.file = Some(file);
        let text = &buffer[..length];
        // A limit may cut a character, but not in a line that is read.
        Some(from_utf8(text).unwrap_or_else(|error| from_utf8(&text[..error.valid_up_to()]).unwrap_or_default()))
    }
}

/// Busy ticks and all ticks from the first line of `/proc/stat`. Waiting for a disk counts as idle; the time of guests
/// is part of `user`.
fn host_ticks(stat: &str) -> Option<(u64, u64)> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
    let ticks: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    let all: u64 = ticks.iter().sum();
    Some((all.saturating_sub(idle), all))
}

impl Process {
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = fields(stat)?;
        // The first one is the state, which is field 3 in proc(5).
        let mut skip = |count: usize| fields.nth(count)?.parse::<u64>().ok();
        let (user, system) = (skip(11)?, skip(0)?);
        let (threads, pages) = (skip(4)?, skip(3)?);
        Some(Self { ticks: user + system, threads, pages })
    }
}

/// The fields of `/proc/…/stat` after the name of the program, from the state on. That name may contain blanks and
/// parentheses.
pub(crate) fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

/// The bytes after a name, as in `MemTotal:   1234 kB`.
fn field(text: &str, name: &str) -> Option<f64> {
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()?;
    Some(kib as f64 * 1024.0)
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { round(100.0 * part / whole) } else { 0.0 }
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::thread;

    #[test]
    fn a_process_is_read_with_any_name_of_the_program() {
        let process = Process { ticks: 100, threads: 9, pages: 7 };
        let table =
            [("12 (a b) c) S 1 1 1 0 -1 4194560 10 0 0 0 70 30 0 0 20 0 9 0 5 6 7 8", Some(process)), ("12 (x) S 1", None), ("", None)];
        for (stat, expected) in table {
            assert_eq!(Process::parse(stat), expected, "{stat:?}");
        }
        assert_eq!(host_ticks("cpu  10 1 9 70 10 0 0 0 5 5\ncpu0 1 1 1 1\n"), Some((20, 100)));
        assert_eq!(host_ticks("cpu  10 x\n"), None);
    }

    #[test]
    fn this_host_has_memory_threads_and_storage() {
        // In a container the first folder is that of the host, and not visible.
        let mut meter = Meter::new([Path::new("/nowhere"), Path::new("/")], &Prober::start().unwrap());
        let end = Instant::now() + Duration::from_secs(10);
        let mut sample = meter.sample();
        while sample["host_resources"]["storage_total_gb"].is_null() && Instant::now() < end {
            sample = meter.sample();
        }
        for name in ["memory_used_mb", "memory_total_mb", "storage_total_gb", "cpu_count"] {
            assert!(sample["host_resources"][name].as_f64().unwrap() > 0.0, "{name} in {sample:?}");
        }
        assert!(sample["resources"]["memory_mb"].as_f64().unwrap() > 0.5);
        assert!(sample["resources"]["num_threads"].as_u64().unwrap() >= 1);
        assert!(sample["host_resources"]["cpu_percent"].is_f64());
    }

    #[test]
    fn a_disk_that_hangs_blocks_nothing_and_is_read_again_when_it_responds() {
        let (disk, answers) = channel();
        let answers = Mutex::new(answers);
        let mut storage = Storage::new(&Prober::start().unwrap(), move || (answers.lock().unwrap().recv().ok(), None));
        let usage = |used| Usage { used, total: 4.0, free: 3.0, percent: 25.0 };
        let start = Instant::now();
        assert_eq!(storage.latest(start), (None, None));
        assert_eq!(storage.latest(start), (None, None));
        for used in [1.0, 2.0] {
            disk.send(usage(used)).unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            let seen = std::iter::repeat_with(|| storage.latest(start).0).take_while(|_| Instant::now() < end).flatten().next();
            assert_eq!(seen, Some(usage(used)));
            assert_eq!(storage.latest(start), (None, None));
        }
    }

    #[test]
    fn a_disk_that_never_responds_again_is_asked_again_after_a_minute() {
        let (begun, readings) = channel();
        let mut storage = Storage::new(&Prober::start().unwrap(), move || {
            begun.send(()).unwrap();
            thread::park_timeout(Duration::from_secs(60));
            (None, None)
        });
        let (start, mut asked) = (Instant::now(), 0);
        while readings.recv_timeout(Duration::from_secs(2)).is_ok() {
            asked += 1;
            storage.latest(start + AGAIN * asked + Duration::from_secs(1));
        }
        assert_eq!(asked as usize, STUCK + 1, "the number of readings that hang is limited");
    }

    #[test]
    fn what_cannot_be_read_is_null() {
        let sample = Meter::at(Path::new("/nowhere"), [Path::new("/nowhere"); 2], || None, &Prober::start().unwrap()).sample();
        for group in ["resources", "host_resources"] {
            let numbers = sample[group].as_object().unwrap();
            assert!(numbers.values().all(Value::is_null), "{numbers:?}");
        }
    }
}
