//! Reads a file of the Recorder workspace once, and writes what shall be in it, without anybody waiting for the disk.
//!
//! A thread `files` exists only while there is something to read or to write, at most one for each file. While it
//! writes, only the newest content waits for it; so a disk that hangs costs one thread, whatever happens meanwhile.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use log::warn;
use serde::de::DeserializeOwned;

use crate::cache::{CacheFile, Content};
use crate::rate_limit::RateLimit;
use crate::text::fingerprint;

/// In bytes; enough for the deepest JSON that is parsed.
const STACK: usize = 256 << 10;

type Compose = Box<dyn FnOnce() -> Result<Content, String> + Send>;
type Loaded = Box<dyn FnOnce(Option<String>) + Send>;

/// Keeps one file up to date; clones share it.
#[derive(Clone, Debug)]
pub struct Saver {
    shared: Arc<SaverShared>,
}

#[derive(Debug)]
struct SaverShared {
    file: CacheFile,
    workspace: PathBuf,
    slot: Mutex<Slot>,
    idle: Condvar,
}

#[derive(Default)]
struct Slot {
    /// What shall be written next.
    next: Option<Compose>,
    /// Whether the thread exists.
    is_busy: bool,
    /// Fingerprint of the content of the file.
    known: Option<String>,
    /// Why the file could not be used when it was read.
    fault: Option<String>,
    rate_limit: RateLimit,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("is_busy", &self.is_busy).field("waits", &self.next.is_some()).finish_non_exhaustive()
    }
}

impl Saver {
    /// Begins to read the file. `loaded` receives its parsed content, `None` if there is none that can be used.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_json<T: DeserializeOwned>(
        file: CacheFile,
        workspace: &Path,
        loaded: impl FnOnce(Option<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let folder = workspace.to_owned();
        Self::start(file, workspace, move |text| {
            let parsed = text.and_then(|text| file.parse(&folder, &text).map_err(|why| warn!("{}: {why}", file.ignored)).ok());
            loaded(parsed);
        })
    }

    fn start(file: CacheFile, workspace: &Path, loaded: impl FnOnce(Option<String>) + Send + 'static) -> io::Result<Self> {
        let slot = Mutex::new(Slot { is_busy: true, ..Slot::default() });
        let shared = Arc::new(SaverShared { file, workspace: workspace.to_owned(), slot, idle: Condvar::new() });
        spawn(&shared, Some(Box::new(loaded)))?;
        Ok(Self { shared })
    }

    /// Writes this content soon, unless it is in the file already. Content that waits to be written is dropped.
    pub fn save(&self, compose: impl FnOnce() -> Result<Content, String> + Send + 'static) {
        let mut slot = self.shared.slot();
        slot.next = Some(Box::new(compose));
        self.shared.wake(&mut slot);
    }

    /// Waits until nothing is left to write, at most until `deadline`.
    pub fn finish(&self, deadline: Instant) {
        let mut slot = self.shared.slot();
        if slot.next.is_some() {
            self.shared.wake(&mut slot);
        }
        while slot.is_busy {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            slot = self.shared.idle.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn spawn(shared: &Arc<SaverShared>, loaded: Option<Loaded>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("files".to_owned()).stack_size(STACK).spawn(move || shared.run(loaded)).map(drop)
}

impl SaverShared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread unless it exists. If that fails, the next content or the end of the program tries again.
    fn wake(self: &Arc<Self>, slot: &mut Slot) {
        if slot.is_busy {
            return;
        }
        match spawn(self, None) {
            Ok(()) => slot.is_busy = true,
            Err(why) => slot.warn(&format!("{}: cannot start a thread: {why}", self.file.unsaved)),
        }
    }

    fn run(&self, loaded: Option<Loaded>) {
        if let Some(loaded) = loaded {
            self.load(loaded);
        }
        loop {
            let mut slot = self.slot();
            let Some(compose) = slot.next.take() else {
                slot.is_busy = false;
                self.idle.notify_all();
                return;
            };
            drop(slot);
            self.write(compose);
        }
    }

    fn load(&self, loaded: Loaded) {
        let content = self.file.read(&self.workspace);
        let mut slot = self.slot();
        match &content {
            Ok(text) => slot.known = text.as_deref().map(fingerprint),
            Err(why) => {
                warn!("{}: {why}", self.file.ignored);
                slot.fault = Some(why.clone());
            }
        }
        drop(slot);
        loaded(content.ok().flatten());
    }

    fn write(&self, compose: Compose) {
        let result = compose().and_then(|Content { text, note }| {
            let new = fingerprint(&text);
            if self.slot().known.as_ref() == Some(&new) {
                return Ok(());
            }
            self.file.write(&self.workspace, &text)?;
            let mut slot = self.slot();
            slot.known = Some(new);
            match note {
                Some(note) => slot.rate_limit.warn("note", &note, Instant::now()),
                None => drop(slot.rate_limit.cleared("note", Instant::now())),
            }
            Ok(())
        });
        let mut slot = self.slot();
        match result {
            Ok(()) => drop(slot.rate_limit.cleared("save", Instant::now())),
            // The same fault was logged when the file was read.
            Err(why) if slot.fault.as_ref() == Some(&why) => {}
            // One attempt for each change, so that a full disk does not cause a write every second.
            Err(why) => slot.warn(&format!("{}: {why}", self.file.unsaved)),
        }
    }
}

impl Slot {
    fn warn(&mut self, line: &str) {
        self.rate_limit.warn("save", line, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::STATE;
    use std::fs;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn start(name: &str) -> (Saver, Receiver<Option<String>>, Folder) {
        let folder = std::env::temp_dir().join(format!("silvasonic-saver-{name}-{}", std::process::id()));
        let (outbox, loaded) = channel();
        let saver = Saver::start(STATE, &folder, move |text| outbox.send(text).unwrap()).unwrap();
        (saver, loaded, Folder(folder))
    }

    fn content(text: &str) -> Result<Content, String> {
        Ok(Content { text: text.to_owned(), note: None })
    }

    /// Content whose composition waits, like a write to a disk that hangs.
    fn slow(text: &'static str) -> (impl FnOnce() -> Result<Content, String>, Sender<()>, Receiver<()>) {
        let ((release, blocked), (begun, has_begun)) = (channel::<()>(), channel());
        let compose = move || {
            begun.send(()).unwrap();
            let _ = blocked.recv();
            content(text)
        };
        (compose, release, has_begun)
    }

    #[test]
    fn the_newest_content_is_written_and_no_caller_waits_for_the_disk() {
        let (saver, loaded, folder) = start("newest");
        assert_eq!(loaded.recv_timeout(SOON), Ok(None));
        let (first, release, begun) = slow("1");
        saver.save(first);
        begun.recv_timeout(SOON).unwrap();
        saver.save(|| panic!("it is replaced before it is composed"));
        saver.save(|| content("3"));
        // The end of the program waits for its deadline only.
        saver.finish(Instant::now());
        assert_eq!(STATE.read(&folder.0), Ok(None));
        drop(release);
        saver.finish(Instant::now() + SOON);
        assert_eq!(STATE.read(&folder.0), Ok(Some("3".to_owned())));
        assert!(!saver.shared.slot().is_busy, "the thread ends when nothing is left to write");
        saver.save(|| content("4"));
        saver.finish(Instant::now() + SOON);
        assert_eq!(STATE.read(&folder.0), Ok(Some("4".to_owned())));
    }

    #[test]
    fn what_is_in_the_file_is_not_written_again() {
        let (saver, loaded, folder) = start("same");
        loaded.recv_timeout(SOON).unwrap();
        saver.save(|| content("1"));
        saver.finish(Instant::now() + SOON);
        let (again, loaded) = channel();
        let next = Saver::start(STATE, &folder.0, move |text| again.send(text).unwrap()).unwrap();
        assert_eq!(loaded.recv_timeout(SOON), Ok(Some("1".to_owned())));
        fs::remove_dir_all(&folder.0).unwrap();
        for saver in [saver, next] {
            saver.save(|| content("1"));
            saver.finish(Instant::now() + SOON);
            assert!(!folder.0.exists());
        }
    }
}
