//! The lock that lets only one Controller of an owner act, and the thread that waits for it.
//!
//! Two Controllers with the same owner label would replace or stop each other's Recorders. So only the one that holds
//! `.controller-lock-{owner}` in the Recorder workspace changes anything. Another one stands by, and takes over when
//! the holder ends.
//!
//! - The kernel keeps the lock (`flock`, for each open file) and releases it when the process ends, for any reason. A
//!   stopped process (SIGSTOP) keeps it. The lock works between the host and containers that mount the folder. The file
//!   must not be deleted while a Controller runs: a new file is another lock.
//! - A disk can hang, so only the thread `lock` uses the file, twice a second. The thread ends when it holds the lock.
//! - Recording comes first: if the file cannot be used (no access, a FIFO or a link with its name, no `flock` on this
//!   file system), the Controller continues without a lock and logs one warning, while the thread retries.
//! - The descriptor is close-on-exec. A Controller that replaces itself by `exec` ([`crate::replace`]) makes a duplicate
//!   its standard input, which stays open: the lock is never free. The next thread `lock` finds it there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::clock::iso_seconds;
use crate::config::Launch;
use crate::decide::leadership::Standing;
use crate::fs::{is_own, open_regular};
use crate::text::shown;

/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// The lock, held by its file descriptor. Dropping it releases the lock.
#[derive(Debug)]
struct Lock(File);

/// The lock, once this process holds it; until the process ends.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<OnceLock<Lock>>);

impl Held {
    /// Whether this process holds the lock.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.get().is_some()
    }

    /// Another descriptor of the lock, which holds it, too. `None` if this process does not hold it.
    ///
    /// # Errors
    /// The process cannot open another descriptor.
    pub fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        self.0.get().map(|Lock(file)| file.as_fd().try_clone_to_owned()).transpose()
    }
}

/// The result of an attempt to take the lock.
#[derive(Debug)]
enum Attempt {
    Taken(Lock),
    /// Another process holds it; its description.
    HeldBy(String),
}

fn path(workspace: &Path, owner: &str) -> PathBuf {
    workspace.join(format!(".controller-lock-{owner}"))
}

/// Takes the lock if it is free, and writes a description of this process to the file. Can block while the disk hangs.
fn try_take(workspace: &Path, owner: &str) -> Result<Attempt, String> {
    let path = path(workspace, owner);
    fs::create_dir_all(workspace).and_then(|()| take(&path)).map_err(|error| format!("{}: {error}", path.display()))
}

fn take(path: &Path) -> io::Result<Attempt> {
    loop {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let line = io::read_to_string(file.take(256)).unwrap_or_default();
                return Ok(Attempt::HeldBy(shown(line.lines().next().unwrap_or("an unnamed process")).to_string()));
            }
            taken => taken?,
        }
        // If the file was deleted between opening and locking, no other process can find this lock: try again.
        if is_at(path, &file)? {
            // The lock is valid without the description, as on a full or read-only disk, or in a file of another user.
            if is_own(path, &file.metadata()?) {
                let _ = write_holder(&file);
            }
            return Ok(Attempt::Taken(Lock(file)));
        }
    }
}

/// The lock that the process held before it replaced itself, if it is still that of this path.
fn inherited(path: &Path) -> io::Result<Option<Lock>> {
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    if !is_at(path, &file)? {
        return Ok(None);
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(Some(Lock(file)))
}

fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    Ok(fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())))
}

/// Opens the file without following links and without waiting for the other end of a FIFO. On a read-only disk, opens
/// it for reading, which is sufficient for the lock.
fn open(path: &Path) -> io::Result<File> {
    let writable = open_regular(path, File::options().read(true).write(true).create(true).mode(0o600));
    writable.or_else(|why| open_regular(path, File::options().read(true)).map_err(|_| why))
}

fn write_holder(file: &File) -> io::Result<()> {
    let inside = ["/run/.containerenv", "/.dockerenv"].iter().any(|mark| Path::new(mark).exists());
    let (pid, system, now) = (std::process::id(), rustix::system::uname(), iso_seconds(SystemTime::now()));
    let (host, place) = (system.nodename().to_string_lossy(), if inside { "in a container, " } else { "" });
    let line = format!("pid {pid} on {host}, {place}since {now}\n");
    // Readers use only the first line, so the rest of a longer description can be cut off afterwards.
    file.write_all_at(line.as_bytes(), 0)?;
    file.set_len(line.len() as u64)
}

/// Starts the thread. It reports each change, and ends after [`Standing::Leader`].
///
/// # Errors
/// If the thread cannot be started.
pub fn contend(workspace: &Path, owner: &str, launch: Launch, notify: impl Fn(Standing) + Send + 'static) -> io::Result<Held> {
    let (workspace, owner) = (workspace.to_owned(), owner.to_owned());
    let held = Held::default();
    let cell = held.clone();
    let run = move || {
        let lead = |lock| {
            // Set only here, and once.
            let _ = cell.0.set(lock);
            notify(Standing::Leader);
        };
        if launch == Launch::Replacement {
            if let Ok(Some(lock)) = inherited(&path(&workspace, &owner)) {
                return lead(lock);
            }
        }
        let mut last = None;
        loop {
            let standing = match try_take(&workspace, &owner) {
                Ok(Attempt::Taken(lock)) => return lead(lock),
                Ok(Attempt::HeldBy(holder)) => Standing::Standby(holder),
                Err(why) => Standing::Unknown(why),
            };
            if last.as_ref() != Some(&standing) {
                last = Some(standing.clone());
                notify(standing);
            }
            thread::sleep(RETRY);
        }
    };
    thread::Builder::new().name("lock".to_owned()).stack_size(128 << 10).spawn(run)?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, mknodat};
    use std::os::unix::fs::{chown, symlink};
    use std::os::unix::net::UnixListener;

    #[test]
    fn one_process_holds_the_lock_and_others_read_its_description() {
        let folder = std::env::temp_dir().join(format!("silvasonic-lock-{}/new", std::process::id()));
        let Ok(Attempt::Taken(lock)) = try_take(&folder, "a") else { panic!("no lock") };
        let Ok(Attempt::HeldBy(holder)) = try_take(&folder, "a") else { panic!("no holder") };
        assert!(holder.starts_with(&format!("pid {} on ", std::process::id())) && holder.ends_with('Z'), "{holder}");
        assert!(matches!(try_take(&folder, "b"), Ok(Attempt::Taken(_))));
        let (sender, standings) = std::sync::mpsc::channel();
        let held = contend(&folder, "a", Launch::First, move |standing| sender.send(standing).unwrap()).unwrap();
        assert!(matches!(standings.recv().unwrap(), Standing::Standby(_)));
        assert!(held.duplicate().unwrap().is_none());
        drop(lock);
        assert_eq!(standings.recv().unwrap(), Standing::Leader);
        assert!(standings.recv().is_err(), "the thread ends");
        // A duplicate holds the lock, too.
        let duplicate = held.duplicate().unwrap().unwrap();
        drop(held);
        assert!(matches!(try_take(&folder, "a"), Ok(Attempt::HeldBy(_))));
        drop(duplicate);
        assert!(matches!(try_take(&folder, "a"), Ok(Attempt::Taken(_))));
        fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_neither_locked_nor_changed() {
        let folder = std::env::temp_dir().join(format!("silvasonic-lock-things-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = |owner: &str| folder.join(format!(".controller-lock-{owner}"));
        let target = folder.join("target");
        fs::write(&target, "somebody's").unwrap();
        symlink(&target, path("link")).unwrap();
        symlink(folder.join("nothing"), path("dangling")).unwrap();
        symlink("/dev/null", path("device")).unwrap();
        mknodat(CWD, path("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
        drop(UnixListener::bind(path("socket")).unwrap());
        fs::create_dir(path("folder")).unwrap();
        let expected = [("link", "a symbolic link"), ("dangling", "a symbolic link"), ("device", "a symbolic link")];
        for (owner, found) in expected.into_iter().chain([("pipe", "a named pipe"), ("socket", "a socket"), ("folder", "a folder")]) {
            let why = try_take(&folder, owner).unwrap_err();
            assert_eq!(why, format!("{}: expected a regular file, found {found}", path(owner).display()));
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "somebody's");
        assert!(!folder.join("nothing").exists());
        // A file of another user is a lock like any other one, but its content is not ours.
        fs::write(path("foreign"), "theirs").unwrap();
        if rustix::process::geteuid().is_root() {
            chown(path("foreign"), Some(12345), None).unwrap();
            assert!(matches!(try_take(&folder, "foreign"), Ok(Attempt::Taken(_))));
            assert_eq!(fs::read_to_string(path("foreign")).unwrap(), "theirs");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
