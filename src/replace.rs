//! Replaces this process by itself (`exec`), when threads hang that nothing else can end.
//!
//! The process keeps its id, arguments, environment, standard output and error, and its limits. All threads end, and
//! all descriptors are closed except the lock, which becomes the standard input, so that it is never free
//! ([`crate::lock`]). `/proc/self/exe` leads to this program even if its file was deleted by an upgrade.
//!
//! `exec` waits until every other thread has ended. A thread that waits in the kernel and cannot be ended, e.g. for a
//! disk that does not respond, would stop the main loop for as long as it waits. So [`immovable`] must be asked before.
//!
//! A signal that arrives between the last look at the events and `exec`, less than a millisecond, is lost; one that
//! arrives between `exec` and [`crate::signals`] has its default action, as at every start.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use signal_hook::consts::SIGPIPE;
use signal_hook::flag;

use crate::config::REPLACED;
use crate::lock::Held;

/// The name of the process, as it is without a replacement. The kernel shows 15 bytes of it.
const NAME: &str = env!("CARGO_PKG_NAME");

/// In the names of kernel functions in which a thread waits for a file system in user space. Such a thread can be ended
/// only before that has read the request.
const FUSE: [&str; 2] = ["fuse", "request_wait_answer"];

/// Replaces this process; returns only the reason why that failed.
#[must_use]
pub fn replace(lock: &Held) -> io::Error {
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_else(|| NAME.into())).args(arguments).env(REPLACED, std::process::id().to_string());
    match lock.duplicate() {
        Ok(None) => {}
        Ok(Some(lock)) => drop(command.stdin(Stdio::from(lock))),
        Err(why) => return why,
    }
    let why = command.exec();
    // The attempt has given SIGPIPE its default action, which would end the program when nobody reads the log.
    let _ = flag::register(SIGPIPE, Arc::default());
    why
}

/// Gives the process its name again: the kernel has named it after `/proc/self/exe`.
pub fn restore_name() {
    // The name serves only those who look for the process.
    let _ = fs::write("/proc/self/comm", NAME);
}

/// A thread that `exec` may wait for without limit, if there is one: its name.
#[must_use]
pub fn immovable() -> Option<String> {
    immovable_below(Path::new("/proc/self/task"))
}

fn immovable_below(tasks: &Path) -> Option<String> {
    let waits = |task: &Path| {
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        let (name, state) = parse(&stat)?;
        let place = fs::read_to_string(task.join("wchan")).unwrap_or_default();
        (state == 'D' || FUSE.iter().any(|name| place.contains(name))).then(|| name.to_owned())
    };
    // Without the list, it is unknown whether there is one.
    let Ok(tasks) = fs::read_dir(tasks) else { return Some("unknown".to_owned()) };
    tasks.flatten().find_map(|task| waits(&task.path()))
}

/// Name and state of a thread.
fn parse(stat: &str) -> Option<(&str, char)> {
    let (rest, state) = stat.rsplit_once(") ")?;
    Some((rest.split_once(" (")?.1, state.chars().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_in_the_kernel_is_immovable() {
        let folder = std::env::temp_dir().join(format!("silvasonic-replace-{}", std::process::id()));
        let task = |id: u32, stat: &str, place: &str| {
            let task = folder.join(id.to_string());
            fs::create_dir_all(&task).unwrap();
            fs::write(task.join("stat"), stat).unwrap();
            fs::write(task.join("wchan"), place).unwrap();
        };
        task(1, "1 (main) S 1 1 1 0", "futex_do_wait");
        task(2, "2 (log-) D (x) S 1 1 1 0", "0");
        assert_eq!(immovable_below(&folder), None);
        for (stat, place) in [("3 (probe) D 1 1 1 0", "mutex_lock"), ("3 (probe) S 1 1 1 0", "request_wait_answer")] {
            task(3, stat, place);
            assert_eq!(immovable_below(&folder).as_deref(), Some("probe"), "{stat}");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert!(immovable_below(&folder).is_some());
    }
}
