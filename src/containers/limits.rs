//! Checks that the kernel enforces the requested limits of Recorders.
//!
//! Podman accepts limits that are not enforced: on a kernel without the memory control group, or when it is rootless.
//! If the process of a Recorder is visible to the Controller, its files in `/proc` and `/sys/fs/cgroup` show the limits
//! that apply. A limit that is not enforced is reported once for each kind, with the fix. Nothing here changes a limit.

use crate::sorted_set::SortedSet;
use std::fs;

use crate::decide::container::{Container, State};
use crate::decide::spec::RecorderSettings;
use crate::decide::spec::{CPU_PERIOD_US, OOM_SCORE_ADJ};
use crate::podman::pidfd::Process;

/// The limits that apply to one process; `None` = cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Enforced {
    oom_score_adj: Option<i64>,
    /// Bytes; `u64::MAX` = no limit.
    memory: Option<u64>,
    /// Microseconds in a period of 100 ms; `u64::MAX` = no limit.
    cpu: Option<u64>,
}

/// The requested limits, and what was checked and reported.
#[derive(Debug)]
pub struct Limits {
    memory: u64,
    cpu: u64,
    /// Runs that were checked: container id and process.
    checked: SortedSet<(String, u32)>,
    /// Kinds of limits that were reported.
    reported: SortedSet<&'static str>,
}

impl Limits {
    /// The limits of every Recorder.
    #[must_use]
    pub fn new(recorder: &RecorderSettings) -> Self {
        Self { memory: recorder.memory, cpu: recorder.cpu_quota, checked: SortedSet::new(), reported: SortedSet::new() }
    }

    /// Checks each run once. Returns a line for each kind of limit that is not enforced and was not reported before.
    pub fn check(&mut self, containers: &[Container]) -> Vec<String> {
        let run = |container: &Container| (container.id.clone(), container.pid);
        self.checked.retain(|checked| containers.iter().any(|container| run(container) == *checked));
        let mut lines = Vec::new();
        for container in containers.iter().filter(|container| container.state == State::Running) {
            if self.checked.contains(&run(container)) || Process::of(container.pid, &container.id).is_none() {
                continue;
            }
            self.checked.insert(run(container));
            let faults = self.faults(enforced(container.pid));
            let new = faults.into_iter().filter(|(kind, _)| self.reported.insert(kind));
            lines.extend(new.map(|(_, fault)| format!("{}: {fault}", container.name)));
        }
        lines
    }

    fn faults(&self, is: Enforced) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if let Some(score) = is.oom_score_adj.filter(|score| *score != i64::from(OOM_SCORE_ADJ)) {
            let fix = "a rootless or restricted Podman may not set it: set OOMScoreAdjust=-999 for its service, or run Podman as root";
            faults.push(("oom", format!("oom_score_adj is {score} instead of {OOM_SCORE_ADJ}; {fix}")));
        }
        if let Some(memory) = is.memory.filter(|memory| *memory > self.memory) {
            let fix =
                "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line, or delegate the memory controller to the user";
            faults.push(("memory", format!("the memory limit is {} instead of {} bytes; {fix}", limit(memory), self.memory)));
        }
        if let Some(cpu) = is.cpu.filter(|cpu| *cpu > self.cpu) {
            let fix = "delegate the cpu controller to the user that runs Podman (Delegate=cpu memory)";
            faults.push(("cpu", format!("the processor limit is {} instead of {} us in 100 ms; {fix}", limit(cpu), self.cpu)));
        }
        faults
    }
}

fn limit(value: u64) -> String {
    if value == u64::MAX { "none".to_owned() } else { value.to_string() }
}

fn enforced(pid: u32) -> Enforced {
    let read = |path: &str| fs::read_to_string(path).ok();
    let number = |path: String| limited(read(&path)?.trim());
    let mut is = Enforced {
        oom_score_adj: read(&format!("/proc/{pid}/oom_score_adj")).and_then(|text| text.trim().parse().ok()),
        ..Enforced::default()
    };
    for line in read(&format!("/proc/{pid}/cgroup")).unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if controllers.is_empty() {
            let folder = format!("/sys/fs/cgroup{path}");
            is.memory = is.memory.or_else(|| number(format!("{folder}/memory.max")));
            is.cpu = is.cpu.or_else(|| quota(&read(&format!("{folder}/cpu.max"))?));
        } else if controllers.split(',').any(|controller| controller == "memory") {
            is.memory = number(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"));
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            let folder = format!("/sys/fs/cgroup/{controllers}{path}");
            let file = |name: &str| read(&format!("{folder}/{name}"));
            is.cpu = file("cpu.cfs_quota_us")
                .zip(file("cpu.cfs_period_us"))
                .and_then(|(quota_us, period)| quota(&format!("{quota_us} {period}")));
        }
    }
    is
}

/// Reads a limit. `max`, `-1` and the huge number that control groups version 1 show mean no limit.
fn limited(text: &str) -> Option<u64> {
    match text {
        "max" | "-1" => Some(u64::MAX),
        number => number.parse().ok().map(|number: u64| if number > 1 << 60 { u64::MAX } else { number }),
    }
}

/// Reads `50000 100000` or `max 100000`, scaled to a period of 100 ms.
fn quota(text: &str) -> Option<u64> {
    let mut numbers = text.split_whitespace();
    let (quota, period) = (limited(numbers.next()?)?, numbers.next()?.parse::<u64>().ok().filter(|period| *period > 0)?);
    Some(if quota == u64::MAX { quota } else { quota.saturating_mul(CPU_PERIOD_US) / period })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_not_enforced_are_reported_with_a_fix() {
        let limits = Limits { memory: 512 << 20, cpu: 100_000, checked: SortedSet::new(), reported: SortedSet::new() };
        let good = Enforced { oom_score_adj: Some(-999), memory: Some(512 << 20), cpu: Some(100_000) };
        assert!(limits.faults(good).is_empty());
        assert!(limits.faults(Enforced::default()).is_empty());
        let faults = limits.faults(Enforced { oom_score_adj: Some(0), memory: Some(u64::MAX), cpu: Some(200_000) });
        assert_eq!(faults.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["oom", "memory", "cpu"]);
        assert!(faults[1].1.starts_with("the memory limit is none instead of 536870912 bytes; add `cgroup_enable=memory"));
    }

    #[test]
    fn quotas_of_both_control_group_versions_are_read() {
        for (text, expected) in [
            ("50000 100000\n", Some(50_000)),
            ("max 100000", Some(u64::MAX)),
            ("-1\n 100000\n", Some(u64::MAX)),
            ("25000 50000", Some(50_000)),
            ("1 0", None),
            ("", None),
        ] {
            assert_eq!(quota(text), expected, "{text:?}");
        }
        assert_eq!(limited("9223372036854771712"), Some(u64::MAX));
    }
}
