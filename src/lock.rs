//! One Controller an owner: the lock in the Recorder workspace, and the thread that waits for it.
//!
//! Two Controllers with one owner label take each other's Recorders for their own and replace or stop them. So only the
//! holder of `.controller-lock-{owner}` changes anything; any other one stands by and takes over when the holder ends.
//!
//! - The kernel keeps the lock (`flock`, per open file) and releases it at the end of the process, however it ends. A
//!   stopped process (SIGSTOP) keeps it. It holds between the host and containers that bind the folder. Nobody may delete
//!   the file while a Controller runs: one that is made anew is another lock.
//! - A disk can hang, so only the thread `lock` calls [`try_take`], every [`RETRY`], and it ends when it leads.
//! - Capture comes first: a file that cannot be used (no right, a FIFO or a link in its place, no `flock` there) makes
//!   [`Standing::Unknown`], and a disk that says nothing for [`PATIENCE`] counts as that. The Controller goes on without a
//!   lock then, with one warning, while the thread goes on trying.
//! - The descriptor is close-on-exec. A Controller that replaces itself by `exec` clears that flag first (`fcntl_setfd`)
//!   and passes the number on: process and open file stay the same, so the lock is not free for a moment.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::clock::iso_seconds;
use crate::text::shown;

/// Time between two attempts.
pub const RETRY: Duration = Duration::from_millis(500);
/// How long the first answer is waited for before the Controller goes on without a lock.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The held lock, in its descriptor. Dropping it releases it, so it is kept for as long as anything may be changed.
#[derive(Debug)]
pub struct Lock(pub File);

/// How this Controller stands to the lock. As text: a line for the log.
#[derive(Debug)]
pub enum Standing {
    /// It holds the lock, to the end.
    Leader(Lock),
    /// Another one does, which signed so: `pid 1 on pi, in a container, since 2026-01-31T12:00:00Z`.
    Standby(String),
    /// Nobody can say, and why.
    Unknown(String),
}

/// Takes the lock if it is free, and signs it. Can block for as long as the disk does.
pub fn try_take(workspace: &Path, owner: &str) -> Standing {
    let path = workspace.join(format!(".controller-lock-{owner}"));
    let taken = fs::create_dir_all(workspace).and_then(|()| take(&path));
    taken.unwrap_or_else(|error| Standing::Unknown(format!("{}: {error}", path.display())))
}

fn take(path: &Path) -> io::Result<Standing> {
    loop {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let line = io::read_to_string(file.take(256)).unwrap_or_default();
                return Ok(Standing::Standby(shown(line.lines().next().unwrap_or("an unnamed process")).to_string()));
            }
            taken => taken?,
        }
        // Removed between opening and locking, it is a lock that nobody else finds.
        let ours = file.metadata()?;
        if fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())) {
            // On a full or read-only disk the lock holds all the same.
            let _ = sign(&file);
            return Ok(Standing::Leader(Lock(file)));
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

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader(_) => write!(f, "this Controller holds the lock"),
            Self::Standby(holder) => write!(f, "this Controller stands by: the lock is held by {holder}"),
            Self::Unknown(why) => write!(f, "this Controller goes on without a lock and tries again: {why}"),
        }
    }
}

/// Starts the thread, which passes each new standing on, and ends with [`Standing::Leader`].
///
/// # Errors
/// When the system gives no thread.
pub fn contend(workspace: &Path, owner: &str, notify: impl Fn(Standing) + Send + 'static) -> io::Result<()> {
    let (workspace, owner, mut told) = (workspace.to_owned(), owner.to_owned(), String::new());
    let run = move || loop {
        match try_take(&workspace, &owner) {
            leader @ Standing::Leader(_) => return notify(leader),
            other if other.to_string() == told => {}
            other => (told, _) = (other.to_string(), notify(other)),
        }
        thread::sleep(RETRY);
    };
    thread::Builder::new().name("lock".to_owned()).stack_size(128 << 10).spawn(run).map(drop)
}

/// Whether anything may be changed, so long after the start: as leader, and when nobody can say who leads.
pub fn may_act(standing: Option<&Standing>, since: Duration) -> bool {
    !matches!(standing, Some(Standing::Standby(_))) && (standing.is_some() || since >= PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_the_lock_until_it_is_dropped_and_others_read_who() {
        let folder = std::env::temp_dir().join(format!("silvasonic-lock-{}/new", std::process::id()));
        let Standing::Leader(lock) = try_take(&folder, "a") else { panic!("no lock") };
        let Standing::Standby(holder) = try_take(&folder, "a") else { panic!("no holder") };
        assert!(holder.starts_with(&format!("pid {} on ", std::process::id())) && holder.ends_with('Z'), "{holder}");
        assert!(matches!(try_take(&folder, "b"), Standing::Leader(_)));
        let (sender, standings) = std::sync::mpsc::channel();
        contend(&folder, "a", move |standing| sender.send(standing).unwrap()).unwrap();
        assert!(matches!(standings.recv().unwrap(), Standing::Standby(_)));
        drop(lock);
        assert!(matches!(standings.recv().unwrap(), Standing::Leader(_)));
        assert!(standings.recv().is_err(), "the thread ends");
        std::os::unix::fs::symlink("/dev/null", folder.join(".controller-lock-link")).unwrap();
        assert!(matches!(try_take(&folder, "link"), Standing::Unknown(_)));
        fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }
}
