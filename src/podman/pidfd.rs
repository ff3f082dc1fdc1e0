//! The first process of a container, as the kernel shows it.
//!
//! Podman's word that a container runs is a word about the past, and costs a request. Where the processes of the host can
//! be seen, the kernel says at the price of one system call whether the very process that ran still does, by a file
//! descriptor that no later process with the same number can inherit. A Controller in another PID namespace, or on a
//! kernel before 5.3, sees none and asks Podman.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that was seen in the control group of a container.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    handle: OwnedFd,
}

impl Process {
    /// The process of that number, if it lives and is of this container. 0 stands for none.
    #[must_use]
    pub fn of(pid: u32, container: &str) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        // It lived when the file was read if it lives now, so the file is its own.
        Some(Self { pid, handle }).filter(|process| groups.contains(container) && process.lives())
    }

    /// Whether it still runs; what only waits to be collected by its parent does not.
    #[must_use]
    pub fn lives(&self) -> bool {
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
    fn a_process_is_of_a_container_by_its_control_group_only() {
        let group = fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(Process::of(std::process::id(), group.trim()).is_some_and(|own| own.lives()));
        assert!(Process::of(std::process::id(), &"0".repeat(64)).is_none());
        assert!(Process::of(0, "").is_none());
    }

    #[test]
    fn what_nobody_has_collected_yet_does_not_live() {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of(child.id(), "").unwrap();
        child.kill().unwrap();
        let begun = Instant::now();
        while process.lives() {
            assert!(begun.elapsed() < Duration::from_secs(10), "a killed process lives");
        }
        assert!(Process::of(child.id(), "").is_none());
        assert!(fs::exists(format!("/proc/{}", process.pid)).unwrap());
        child.wait().unwrap();
    }
}
