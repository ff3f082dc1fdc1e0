//! Creates the workspace folders of Recorders.
//!
//! A disk can hang, and the action of a Recorder must not wait for it without a limit: its microphone would seem to be
//! in work for ever. So a thread `folder` creates the folder, at most one for each folder, and the action fails after
//! ten seconds and is retried. A retry waits for the thread of the attempt before it, if that still hangs.

use crate::sorted_map::SortedMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::fs::kind;

/// Time limit for an attempt. A disk that is merely slow, such as an SD card that reorganizes itself, takes less.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer that is older is outdated: somebody may have removed the folder meanwhile.
const FRESH: Duration = Duration::from_secs(60);

/// The result of an attempt, and when it ended.
type Answer = Receiver<(Result<(), String>, Instant)>;

/// Creates folders; clones share the attempts.
#[derive(Clone, Debug)]
pub struct Folders {
    workspace: PathBuf,
    make: fn(&Path, &Path) -> io::Result<()>,
    /// The attempts without an answer at their time limit.
    late: Arc<Mutex<SortedMap<String, Answer>>>,
}

impl Folders {
    /// Creates folders in this one.
    #[must_use]
    pub fn new(workspace: PathBuf) -> Self {
        Self { workspace, make, late: Arc::default() }
    }

    /// Creates folders of workers in this one. This process may not see the workspace of the host: then the folders must
    /// exist, and Podman says so if one does not.
    #[must_use]
    pub fn of_workers(workspace: PathBuf) -> Self {
        let make = |workspace: &Path, path: &Path| if workspace.is_dir() { make(workspace, path) } else { Ok(()) };
        Self { make, ..Self::new(workspace) }
    }

    /// Creates a folder unless it exists.
    ///
    /// # Errors
    /// Path and cause.
    pub fn make(&self, folder: &str) -> Result<(), String> {
        self.make_by(folder, LIMIT, self.make)
    }

    fn make_by(&self, folder: &str, limit: Duration, make: fn(&Path, &Path) -> io::Result<()>) -> Result<(), String> {
        let path = self.workspace.join(folder);
        let failure = |what: String| format!("workspace folder {}: {what}", path.display());
        let late = self.late().remove(folder);
        let answer = match late.map(|answer| (answer.try_recv(), answer)) {
            // An attempt takes long, and the answer came after its time limit.
            Some((Ok((made, at)), _)) if at.elapsed() < FRESH => return made.map_err(failure),
            Some((Err(TryRecvError::Empty), answer)) => answer,
            _ => {
                let (outbox, answer) = channel();
                let (workspace, path) = (self.workspace.clone(), path.clone());
                let run = move || {
                    let made = make(&workspace, &path).map_err(|error| error.to_string());
                    // The receiver is kept until an answer arrives, or the program ends.
                    let _ = outbox.send((made, Instant::now()));
                };
                let thread = thread::Builder::new().name("folder".to_owned()).stack_size(128 << 10).spawn(run);
                thread.map_err(|error| failure(format!("cannot start a thread: {error}")))?;
                answer
            }
        };
        match answer.recv_timeout(limit) {
            Ok((made, _)) => made.map_err(failure),
            Err(RecvTimeoutError::Disconnected) => Err(failure("its thread ended without a result".to_owned())),
            Err(RecvTimeoutError::Timeout) => {
                self.late().insert(folder.to_owned(), answer);
                Err(failure(format!("the disk did not respond within {} s", limit.as_secs())))
            }
        }
    }

    fn late(&self) -> MutexGuard<'_, SortedMap<String, Answer>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make(workspace: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(workspace)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        result => return result,
    }
    // Through a link, a Recorder would write to any place of the disk.
    let found = fs::symlink_metadata(path)?.file_type();
    if found.is_dir() { Ok(()) } else { Err(io::Error::other(format!("expected a folder, found {}", kind(found)))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn only_a_folder_is_accepted() {
        let root = std::env::temp_dir().join(format!("silvasonic-folders-{}", std::process::id()));
        let folders = Folders::new(root.join("recorder"));
        for _ in 0..2 {
            assert_eq!(folders.make("a"), Ok(()));
        }
        assert!(root.join("recorder/a").is_dir());
        let place = |name: &str| root.join("recorder").join(name);
        fs::write(place("file"), "").unwrap();
        symlink(place("a"), place("link")).unwrap();
        symlink("/nowhere/at/all", place("dangling")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, place("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for (name, found) in
            [("file", "a regular file"), ("link", "a symbolic link"), ("dangling", "a symbolic link"), ("pipe", "a named pipe")]
        {
            let expected = format!("workspace folder {}: expected a folder, found {found}", place(name).display());
            assert_eq!(folders.make(name), Err(expected));
        }
        assert!(!Path::new("/nowhere").exists());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_disk_that_hangs_costs_one_thread_a_folder_and_delays_no_other_folder() {
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        static RELEASED: Mutex<bool> = Mutex::new(false);
        static CHANGED: std::sync::Condvar = std::sync::Condvar::new();
        fn hangs(_: &Path, path: &Path) -> io::Result<()> {
            if path.ends_with("hangs") {
                BEGUN.fetch_add(1, Ordering::SeqCst);
                drop(CHANGED.wait_while(RELEASED.lock().unwrap(), |released| !*released).unwrap());
            }
            Ok(())
        }
        let folders = Folders::new(PathBuf::from("/workspace"));
        for _ in 0..3 {
            let why = folders.make_by("hangs", Duration::from_millis(1), hangs).unwrap_err();
            assert_eq!(why, "workspace folder /workspace/hangs: the disk did not respond within 0 s");
            assert_eq!(folders.make_by("other", LIMIT, hangs), Ok(()));
        }
        assert!(BEGUN.load(Ordering::SeqCst) <= 1);
        *RELEASED.lock().unwrap() = true;
        CHANGED.notify_all();
        assert_eq!(folders.make_by("hangs", LIMIT, hangs), Ok(()));
        assert!(folders.late().is_empty());
    }
}
