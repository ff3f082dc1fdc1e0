//! Child processes of a station, and finding those that such a child started itself.

use super::eventually;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// A child that is killed and collected when dropped.
pub(crate) struct Ended {
    child: Child,
    code: Option<i32>,
}

impl Ended {
    /// Starts it in a process group of its own: Ctrl-C at the terminal is for the station's owner to handle, not for its parts.
    pub(crate) fn spawn(mut command: Command) -> Ended {
        let child = command.process_group(0).spawn().unwrap_or_else(|e| panic!("{}: {e}", command.get_program().to_string_lossy()));
        Ended { child, code: None }
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit code if it has ended; 128 + the signal's number if a signal ended it.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        if self.code.is_none() {
            let status = self.child.try_wait().expect("wait for a child");
            self.code = status.map(|s| s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0)));
        }
        self.code
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.exit_code().is_none() {
            // not collected yet, so its id cannot have been given to another process
            kill_process(Pid::from_child(&self.child), signal).expect("signal to a child");
        }
    }

    pub(crate) fn wait(&mut self, deadline: Duration) -> i32 {
        eventually(deadline, "the process ends", || self.exit_code())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if self.exit_code().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Ids of the processes of that (kernel, 15 byte) name that work in a directory below `dir`.
pub(crate) fn below(dir: &Path, name: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw) else { continue };
        let inside = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if inside && fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
            found.push(id);
        }
    }
    found
}

/// Signals all of them, until no new one shows up (a stopped parent makes no more children).
pub(crate) fn signal_below(dir: &Path, name: &str, signal: Signal) {
    let mut done = Vec::new();
    loop {
        let fresh: Vec<Pid> = below(dir, name).into_iter().filter(|id| !done.contains(id)).collect();
        if fresh.is_empty() {
            return;
        }
        for id in fresh {
            let _ = kill_process(id, signal);
            done.push(id);
        }
    }
}

/// The end of a stream that is full and that nobody reads: a write to it blocks for as long as the other end lives.
pub(crate) fn unread() -> (UnixStream, OwnedFd) {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(&[b'x'; 1024]).is_ok() {}
    // The last bytes, too.
    while writer.write(b"x").is_ok() {}
    writer.set_nonblocking(false).unwrap();
    (reader, writer.into())
}
