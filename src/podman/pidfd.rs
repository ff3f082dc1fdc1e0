//! The first process of a container, as the kernel sees it.
//!
//! When Podman reports that a container runs, that may be outdated, and it costs a request. Where the Controller can
//! see the processes of the host, one system call shows whether the same process still runs: a file descriptor refers
//! to the process itself, and never to a later one with the same number. In another PID namespace, or on a kernel
//! before 5.3, the Controller cannot see the process and must ask Podman.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process in the control group of a container.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    handle: OwnedFd,
}

/// Whether this process belongs to the first PID namespace, in which all processes of the host are visible.
#[must_use]
pub fn is_in_first_namespace() -> bool {
    // The kernel's own constant (PROC_PID_INIT_INO).
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == "pid:[4026531836]")
}

impl Process {
    /// The process with that number, if it is alive and belongs to this container. 0 stands for none.
    #[must_use]
    pub fn of(pid: u32, container: &str) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        // If it is alive now, it was alive when the file was read; so the file belongs to it.
        Some(Self { pid, handle }).filter(|process| groups.contains(container) && process.is_alive())
    }

    /// For a `poll`: readable once it has ended.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())) == Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn only_its_control_group_assigns_a_process_to_a_container() {
        let group = fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(Process::of(std::process::id(), group.trim()).is_some_and(|own| own.is_alive()));
        assert!(Process::of(std::process::id(), &"0".repeat(64)).is_none());
        assert!(Process::of(0, "").is_none());
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of(child.id(), "").unwrap();
        child.kill().unwrap();
        let begun = Instant::now();
        while process.is_alive() {
            assert!(begun.elapsed() < Duration::from_secs(10), "a killed process is alive");
        }
        assert!(Process::of(child.id(), "").is_none());
        assert!(fs::exists(format!("/proc/{}", process.pid)).unwrap());
        child.wait().unwrap();
    }
}
