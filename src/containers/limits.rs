//! Do the limits of a Recorder hold? What was asked for is compared with what the kernel enforces.
//!
//! Kernels without the memory control group and rootless engines accept limits that nobody keeps. Where the process of a
//! Recorder can be seen, its files in `/proc` and `/sys/fs/cgroup` tell; each kind of limit is told once, with its cure.

use std::collections::BTreeSet;
use std::fs;

use crate::decide::container::{Container, State};
use crate::decide::spec::RecorderSettings;
use crate::decide::spec::{CPU_PERIOD_US, OOM_SCORE_ADJ};
use crate::podman::pidfd::Process;

/// What is enforced for one process, as far as it can be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Enforced {
    oom_score_adj: Option<i64>,
    /// Bytes; `u64::MAX` = no limit.
    memory: Option<u64>,
    /// Microseconds a period of 100 ms; `u64::MAX` = no limit.
    cpu: Option<u64>,
}

/// What was asked for, and what was told.
#[derive(Debug)]
pub struct Limits {
    memory: u64,
    cpu: u64,
    seen: BTreeSet<(String, u32)>,
    told: BTreeSet<&'static str>,
}

impl Limits {
    /// Those that every Recorder gets.
    #[must_use]
    pub fn new(recorder: &RecorderSettings) -> Self {
        Self { memory: recorder.memory, cpu: recorder.cpu_quota, seen: BTreeSet::new(), told: BTreeSet::new() }
    }

    /// Looks at each run once; returns what does not hold and was not told yet.
    pub fn check(&mut self, containers: &[Container]) -> Vec<String> {
        let run = |container: &Container| (container.id.clone(), container.pid);
        self.seen.retain(|seen| containers.iter().any(|container| run(container) == *seen));
        let mut lines = Vec::new();
        for container in containers.iter().filter(|container| container.state == State::Running) {
            if self.seen.contains(&run(container)) || Process::of(container.pid, &container.id).is_none() {
                continue;
            }
            self.seen.insert(run(container));
            let faults = self.faults(enforced(container.pid));
            let news = faults.into_iter().filter(|(kind, _)| self.told.insert(kind));
            lines.extend(news.map(|(_, fault)| format!("{}: {fault}", container.name)));
        }
        lines
    }

    fn faults(&self, is: Enforced) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if let Some(score) = is.oom_score_adj.filter(|score| *score != i64::from(OOM_SCORE_ADJ)) {
            let cure = "a rootless or restricted Podman may not set it: give its service OOMScoreAdjust=-999, or run Podman as root";
            faults.push(("oom", format!("oom_score_adj is {score} instead of {OOM_SCORE_ADJ}; {cure}")));
        }
        if let Some(memory) = is.memory.filter(|memory| *memory > self.memory) {
            let cure =
                "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line, or delegate the memory controller to the user";
            faults.push(("memory", format!("memory is limited to {} instead of {} bytes; {cure}", limit(memory), self.memory)));
        }
        if let Some(cpu) = is.cpu.filter(|cpu| *cpu > self.cpu) {
            let cure = "delegate the cpu controller to the user that runs Podman (Delegate=cpu memory)";
            faults.push(("cpu", format!("processor time is limited to {} instead of {} us in 100 ms; {cure}", limit(cpu), self.cpu)));
        }
        faults
    }
}

fn limit(value: u64) -> String {
    if value == u64::MAX { "nothing".to_owned() } else { value.to_string() }
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

/// `max`, `-1` and what version 1 calls no limit are none.
fn limited(text: &str) -> Option<u64> {
    match text {
        "max" | "-1" => Some(u64::MAX),
        number => number.parse().ok().map(|number: u64| if number > 1 << 60 { u64::MAX } else { number }),
    }
}

/// `50000 100000` or `max 100000`, scaled to our period.
fn quota(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    let (quota, period) = (limited(words.next()?)?, words.next()?.parse::<u64>().ok().filter(|period| *period > 0)?);
    Some(if quota == u64::MAX { quota } else { quota.saturating_mul(CPU_PERIOD_US) / period })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_do_not_hold_are_told_with_a_cure() {
        let limits = Limits { memory: 512 << 20, cpu: 100_000, seen: BTreeSet::new(), told: BTreeSet::new() };
        let good = Enforced { oom_score_adj: Some(-999), memory: Some(512 << 20), cpu: Some(100_000) };
        assert!(limits.faults(good).is_empty());
        assert!(limits.faults(Enforced::default()).is_empty());
        let faults = limits.faults(Enforced { oom_score_adj: Some(0), memory: Some(u64::MAX), cpu: Some(200_000) });
        assert_eq!(faults.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["oom", "memory", "cpu"]);
        assert!(faults[1].1.starts_with("memory is limited to nothing instead of 536870912 bytes; add `cgroup_enable=memory"));
    }

    #[test]
    fn quotas_of_both_versions_are_read() {
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
