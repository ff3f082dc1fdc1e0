//! What processes use, as the kernel counts it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use super::it::station::{Controller, Station};

/// What processes have used so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) cpu_ns: u64,
    pub(crate) switches: u64,
}

impl Used {
    pub(crate) fn of(ids: &[u32]) -> Used {
        let mut used = Used::default();
        for id in ids {
            for task in fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
                let text = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
                used.cpu_ns += text("schedstat").split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
                let status = text("status");
                let counts = status.lines().filter(|line| line.contains("ctxt_switches")).filter_map(|line| line.split_whitespace().nth(1));
                used.switches += counts.filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
            }
        }
        used
    }
}

impl std::ops::Add for Used {
    type Output = Used;

    fn add(self, other: Used) -> Used {
        Used { cpu_ns: self.cpu_ns + other.cpu_ns, switches: self.switches + other.switches }
    }
}

impl Used {
    /// What was used after `earlier`: percent of a core, and switches a second.
    pub(crate) fn rate_since(self, earlier: Used, seconds: f64) -> (f64, f64) {
        let cpu = self.cpu_ns.saturating_sub(earlier.cpu_ns) as f64 / 1e7 / seconds;
        (cpu, self.switches.saturating_sub(earlier.switches) as f64 / seconds)
    }
}

/// Processor time and switches of some groups of processes over the same `span`: percent of a core, switches a second.
pub(crate) fn watch<const N: usize>(groups: [&[u32]; N], span: Duration) -> [(f64, f64); N] {
    let before = groups.map(Used::of);
    let begun = Instant::now();
    std::thread::sleep(span);
    let after = groups.map(Used::of);
    let seconds = begun.elapsed().as_secs_f64();
    let mut rates = [(0.0, 0.0); N];
    for (rate, (before, after)) in rates.iter_mut().zip(before.iter().zip(after)) {
        *rate = after.rate_since(*before, seconds);
    }
    rates
}

/// The processes of the station's Podman service, which is not activated.
pub(crate) fn podman(station: &Station) -> Vec<u32> {
    processes(&["podman", "system", "service", station.dir().to_str().unwrap()])
}

/// What all runs of an activated Podman service have used: those that have ended, and the one that runs.
pub(crate) fn activated_podman(station: &Station) -> Used {
    loop {
        let runs = station.podman.activations();
        let ended =
            runs.iter().filter_map(|run| run.ended).map(|(_, used)| Used { cpu_ns: used.cpu.as_nanos() as u64, switches: used.switches });
        let running: Vec<u32> = runs.iter().filter(|run| run.ended.is_none()).map(|run| run.id).collect();
        let used = ended.fold(Used::of(&running), |all, one| all + one);
        // Nothing began or ended meanwhile.
        if station.podman.activations().iter().filter(|run| run.ended.is_none()).map(|run| run.id).eq(running) {
            return used;
        }
    }
}

/// The part of the time between two moments since the boot in which an activated Podman service was resident, and how
/// often it was activated.
pub(crate) fn residence(station: &Station, from: Duration, to: Duration) -> (f64, usize) {
    let runs = station.podman.activations();
    let spans = runs.iter().map(|run| (run.began.max(from), run.ended.map_or(to, |(at, _)| at.min(to))));
    let resident: Duration = spans.map(|(began, ended)| ended.saturating_sub(began)).sum();
    (resident.as_secs_f64() / (to - from).as_secs_f64(), runs.iter().filter(|run| run.began >= from && run.began < to).count())
}

/// Time since the boot.
pub(crate) fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// PostgreSQL, with the backends of whoever is connected now, and Redis.
pub(crate) fn databases(station: &Station) -> Vec<u32> {
    [postgres(station), redis(station)].concat()
}

pub(crate) fn redis(station: &Station) -> Vec<u32> {
    processes(&["redis-server", &station.redis.port().to_string()])
}

/// With the backends of whoever is connected now.
pub(crate) fn postgres(station: &Station) -> Vec<u32> {
    let postmaster = processes(&["postgres", "-D", station.dir().to_str().unwrap()]);
    let parent = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok())
    };
    let mut found = processes(&["postgres"]);
    found.retain(|id| parent(id).is_some_and(|parent| postmaster.contains(&parent)));
    found.extend(postmaster);
    found
}

/// Processes whose command line contains all of `words`.
fn processes(words: &[&str]) -> Vec<u32> {
    let ids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let line = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        words.iter().all(|word| line.contains(word))
    })
    .collect()
}

pub(crate) fn mebibytes(id: u32, file: &str, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{id}/{file}")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse::<f64>().ok()).unwrap() / 1024.0
}

/// System calls a second, counted by strace, which stops at SIGINT and prints its summary then.
pub(crate) fn system_calls(controller: &Controller, seconds: u32) -> f64 {
    let command = format!("timeout -s INT {seconds} strace -f -c -p {} 2>&1", controller.id());
    let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let total = text.lines().find(|line| line.ends_with("total")).unwrap_or_else(|| panic!("strace says: {text}"));
    let calls: f64 = total.split_whitespace().filter_map(|word| word.parse().ok()).nth(3).unwrap();
    calls / f64::from(seconds)
}
