//! One Controller for each owner: the lock in the Recorder workspace, and the thread that waits for it.
//!
//! Two Controllers with one owner label would replace or stop each other's Recorders. So only the one that holds
//! `.controller-lock-{owner}` changes anything; another one stands by and takes over when the holder ends.
//!
//! - The kernel keeps the lock (`flock`, for each open file) and releases it at the end of the process, however it ends. A
//!   stopped process (SIGSTOP) keeps it. It works between the host and containers that bind the folder. Nobody may delete
//!   the file while a Controller runs: a new file is another lock.
//! - A disk can hang, so only the thread `lock` touches the file, twice a second, and it ends when it leads.
//! - Capture comes first: with a file that cannot be used (no access, a FIFO or a link in its place, no `flock` there) the
//!   Controller continues without a lock, with one warning, while the thread retries.
//! - The descriptor is close-on-exec. A Controller that replaces itself by `exec` clears that flag first (`fcntl_setfd`)
//!   and passes the number on: process and open file stay the same, so the lock is never free.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::clock::iso_seconds;
use crate::decide::leadership::Standing;
use crate::text::shown;

/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// The lock, in its descriptor. Dropping it releases it.
#[derive(Debug)]
struct Lock(#[allow(dead_code, reason = "the descriptor is the lock")] File);

/// What came of an attempt to take the lock.
#[derive(Debug)]
enum Attempt {
    Taken(Lock),
    Other(String),
}

/// Takes the lock if it is free, and signs it. Can block for as long as the disk does.
fn try_take(workspace: &Path, owner: &str) -> Result<Attempt, String> {
    let path = workspace.join(format!(".controller-lock-{owner}"));
    fs::create_dir_all(workspace).and_then(|()| take(&path)).map_err(|error| format!("{}: {error}", path.display()))
}

fn take(path: &Path) -> io::Result<Attempt> {
    loop {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let line = io::read_to_string(file.take(256)).unwrap_or_default();
                return Ok(Attempt::Other(shown(line.lines().next().unwrap_or("an unnamed process")).to_string()));
            }
            taken => taken?,
        }
        // Removed between opening and locking, it is a lock that nobody else finds.
        let ours = file.metadata()?;
        if fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())) {
            // On a full or read-only disk the lock holds all the same.
            let _ = sign(&file);
            return Ok(Attempt::Taken(Lock(file)));
        }
    }
}

/// Follows no link and waits for no other end of a FIFO. On a disk that is read-only meanwhile, reading is enough.
fn open(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("expected a regular file"));
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let writable = File::options().read(true).write(true).create(true).mode(0o600).custom_flags(flags).open(path);
    writable.or_else(|why| File::options().read(true).custom_flags(flags).open(path).map_err(|_| why))
}

fn sign(file: &File) -> io::Result<()> {
    let inside = ["/run/.containerenv", "/.dockerenv"].iter().any(|mark| Path::new(mark).exists());
    let (pid, system, now) = (std::process::id(), rustix::system::uname(), iso_seconds(SystemTime::now()));
    let (host, place) = (system.nodename().to_string_lossy(), if inside { "in a container, " } else { "" });
    let line = format!("pid {pid} on {host}, {place}since {now}\n");
    // Readers take the first line, so what is left of a longer one may go afterwards.
    file.write_all_at(line.as_bytes(), 0)?;
    file.set_len(line.len() as u64)
}

/// Starts the thread, which reports each change, and ends with [`Standing::Leader`].
///
/// # Errors
/// When the system gives no thread.
pub fn contend(workspace: &Path, owner: &str, notify: impl Fn(Standing) + Send + 'static) -> io::Result<()> {
    let (workspace, owner) = (workspace.to_owned(), owner.to_owned());
    let run = move || {
        let mut last = None;
        loop {
            let standing = match try_take(&workspace, &owner) {
                Ok(Attempt::Taken(lock)) => {
                    // To the end of the process, whichever way it ends.
                    std::mem::forget(lock);
                    return notify(Standing::Leader);
                }
                Ok(Attempt::Other(holder)) => Standing::Standby(holder),
                Err(why) => Standing::Unknown(why),
            };
            if last.as_ref() != Some(&standing) {
                last = Some(standing.clone());
                notify(standing);
            }
            thread::sleep(RETRY);
        }
    };
    thread::Builder::new().name("lock".to_owned()).stack_size(128 << 10).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_the_lock_until_it_is_dropped_and_others_read_who() {
        let folder = std::env::temp_dir().join(format!("silvasonic-lock-{}/new", std::process::id()));
        let Ok(Attempt::Taken(lock)) = try_take(&folder, "a") else { panic!("no lock") };
        let Ok(Attempt::Other(holder)) = try_take(&folder, "a") else { panic!("no holder") };
        assert!(holder.starts_with(&format!("pid {} on ", std::process::id())) && holder.ends_with('Z'), "{holder}");
        assert!(matches!(try_take(&folder, "b"), Ok(Attempt::Taken(_))));
        let (sender, standings) = std::sync::mpsc::channel();
        contend(&folder, "a", move |standing| sender.send(standing).unwrap()).unwrap();
        assert!(matches!(standings.recv().unwrap(), Standing::Standby(_)));
        drop(lock);
        assert_eq!(standings.recv().unwrap(), Standing::Leader);
        assert!(standings.recv().is_err(), "the thread ends");
        std::os::unix::fs::symlink("/dev/null", folder.join(".controller-lock-link")).unwrap();
        assert!(try_take(&folder, "link").is_err());
        fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }
}
