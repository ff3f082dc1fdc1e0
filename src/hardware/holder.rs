//! The process that has opened a sound card, and whether it belongs to a Recorder.
//!
//! The kernel reports its number as the reader sees it; 0 if it is in another PID namespace. It is that of the thread that
//! opened the card. A holder is foreign only if that is certain:
//!
//! - the first process of the container is seen in the control group of the container, so that numbers are comparable;
//! - the holder is seen, in no control group of the container;
//! - it began before the stream did, so that it is no later process with the same number.
//!
//! In all other cases nobody knows whose it is.

use std::path::Path;

use crate::fs as files;

/// The files have some hundred bytes.
const LIMIT: usize = 4 << 10;
/// Ticks of the kernel in `stat` take this many microseconds on all its platforms.
const TICK: u64 = 10_000;

/// A stream that a process holds, and the Recorder that should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold<'a> {
    /// The holder.
    pub owner: u32,
    /// When the stream was started or stopped, in microseconds of a clock of the kernel.
    pub trigger: Option<u64>,
    /// Id of the Recorder's container.
    pub container: &'a str,
    /// The first process of that container; 0 = unknown.
    pub pid: u32,
}

/// Whose a holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belonging {
    /// It is in the container of the Recorder.
    Recorder,
    /// It is certainly not.
    Foreign,
    /// Nobody knows.
    Unknown,
}

/// What is known about a holder.
#[derive(Clone, Debug)]
pub struct Holder {
    owner: u32,
    trigger: Option<u64>,
    container: String,
    pid: u32,
    /// Its name.
    pub name: Option<String>,
    /// Whose it is.
    pub belonging: Belonging,
}

impl Holder {
    /// Looks at the processes below `proc`.
    #[must_use]
    pub fn look(proc: &Path, hold: &Hold<'_>) -> Self {
        let Hold { owner, trigger, container, pid } = *hold;
        let name = read(proc, owner, "comm").map(|name| name.trim_end().to_owned());
        Self { owner, trigger, container: container.to_owned(), pid, name, belonging: belonging(proc, hold) }
    }

    /// Whether another look would show the same.
    #[must_use]
    pub fn answers(&self, hold: &Hold<'_>) -> bool {
        let is_same = self.owner == hold.owner && self.container == hold.container;
        // Whose it was is known for as long as it holds the stream, also while Podman does not respond.
        is_same && (self.belonging == Belonging::Recorder || hold.pid == 0 || (self.pid, self.trigger) == (hold.pid, hold.trigger))
    }
}

fn belonging(proc: &Path, hold: &Hold<'_>) -> Belonging {
    let is_in_container = |pid: u32| read(proc, pid, "cgroup").map(|groups| groups.contains(hold.container));
    if hold.container.is_empty() || hold.pid == 0 || is_in_container(hold.pid) != Some(true) {
        return Belonging::Unknown;
    }
    match is_in_container(hold.owner) {
        Some(true) => Belonging::Recorder,
        Some(false) if began(proc, hold.owner).zip(hold.trigger).is_some_and(|(began, trigger)| began <= trigger) => Belonging::Foreign,
        _ => Belonging::Unknown,
    }
}

/// When a process began, in microseconds since the boot of the host.
fn began(proc: &Path, pid: u32) -> Option<u64> {
    let stat = read(proc, pid, "stat")?;
    // The name before it can contain anything. Field 22 of `stat`, where that behind the name is the third.
    let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    ticks.checked_mul(TICK)
}

fn read(proc: &Path, pid: u32, name: &str) -> Option<String> {
    files::read_kernel(&proc.join(format!("{pid}/{name}")), LIMIT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::mpsc::channel;
    use std::thread;

    const CONTAINER: &str = "5f1d5f1d5f1d";

    /// A composed `/proc`; each process with its name, control group and begin in ticks.
    fn compose(name: &str, processes: &[(u32, &str, &str, &str)]) -> std::path::PathBuf {
        let proc = std::env::temp_dir().join(format!("silvasonic-holder-{name}-{}", std::process::id()));
        for (pid, comm, group, begin) in processes {
            let folder = proc.join(pid.to_string());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("comm"), format!("{comm}\n")).unwrap();
            fs::write(folder.join("cgroup"), format!("0::{group}\n")).unwrap();
            let zeros = "0 ".repeat(17);
            fs::write(folder.join("stat"), format!("{pid} ({comm}) S 1 {zeros}{begin} 4096 0\n")).unwrap();
        }
        proc
    }

    fn hold(owner: u32) -> Hold<'static> {
        Hold { owner, trigger: Some(30_690_000), container: CONTAINER, pid: 10 }
    }

    #[test]
    fn a_holder_is_foreign_only_if_that_is_certain() {
        let group = format!("/machine.slice/libpod-{CONTAINER}.scope");
        let below = format!("../../libpod-{CONTAINER}.scope/container");
        let proc = compose(
            "certain",
            &[
                (10, "recorder", &group, "1000"),
                (11, "sox) R 1", &below, "1001"),
                (12, "are) c (ord", "/user.slice", "3069"),
                (13, "late", "/user.slice", "3070"),
                (14, "odd", "/user.slice", "x"),
                (15, "other", "/machine.slice/libpod-77.scope", "9"),
            ],
        );
        let cases = [
            (hold(10), Belonging::Recorder, Some("recorder")),
            (hold(11), Belonging::Recorder, Some("sox) R 1")),
            (hold(12), Belonging::Foreign, Some("are) c (ord")),
            (hold(15), Belonging::Foreign, Some("other")),
            // A later process with the same number.
            (hold(13), Belonging::Unknown, Some("late")),
            (hold(14), Belonging::Unknown, Some("odd")),
            (Hold { trigger: None, ..hold(12) }, Belonging::Unknown, Some("are) c (ord")),
            // It has ended, or it is in another PID namespace.
            (hold(16), Belonging::Unknown, None),
            (hold(0), Belonging::Unknown, None),
            // The processes of containers cannot be seen, or have other numbers.
            (Hold { pid: 0, ..hold(12) }, Belonging::Unknown, Some("are) c (ord")),
            (Hold { pid: 16, ..hold(12) }, Belonging::Unknown, Some("are) c (ord")),
            (Hold { pid: 15, ..hold(12) }, Belonging::Unknown, Some("are) c (ord")),
            (Hold { container: "", ..hold(12) }, Belonging::Unknown, Some("are) c (ord")),
        ];
        for (hold, belonging, name) in cases {
            let holder = Holder::look(&proc, &hold);
            assert_eq!((holder.belonging, holder.name.as_deref()), (belonging, name), "{hold:?}");
        }
        fs::remove_dir_all(&proc).unwrap();
    }

    #[test]
    fn another_look_follows_another_holder_container_or_start() {
        let group = format!("/libpod-{CONTAINER}");
        let proc = compose("look", &[(10, "recorder", &group, "1000"), (12, "arecord", "/user.slice", "1000")]);
        let foreign = Holder::look(&proc, &hold(12));
        assert!(foreign.answers(&hold(12)) && foreign.answers(&Hold { pid: 0, ..hold(12) }));
        let others = [hold(10), Hold { trigger: Some(1), ..hold(12) }, Hold { pid: 11, ..hold(12) }, Hold { container: "7", ..hold(12) }];
        assert!(others.iter().all(|other| !foreign.answers(other)));
        // A Recorder that starts its stream again is the same.
        let own = Holder::look(&proc, &hold(10));
        assert!(own.answers(&Hold { trigger: None, ..hold(10) }) && !own.answers(&hold(12)));
        fs::remove_dir_all(&proc).unwrap();
    }

    #[test]
    fn the_number_of_a_thread_shows_its_process() {
        let (ids, id) = channel();
        let (end, ended) = channel::<()>();
        let thread = thread::spawn(move || {
            let link = fs::read_link("/proc/thread-self").unwrap();
            ids.send(link.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap()).unwrap();
            let _ = ended.recv();
        });
        let owner = id.recv().unwrap();
        assert_ne!(owner, std::process::id());
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = Hold { owner, trigger: Some(u64::MAX), container: groups.trim(), pid: std::process::id() };
        assert_eq!(Holder::look(Path::new("/proc"), &own).belonging, Belonging::Recorder);
        assert!(began(Path::new("/proc"), owner).is_some_and(|thread| thread >= began(Path::new("/proc"), std::process::id()).unwrap()));
        drop(end);
        thread.join().unwrap();
    }
}
