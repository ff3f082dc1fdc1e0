//! `make bench`: what the Controller costs and how quick it is, in one run on real services.
//!
//! Prints a table with this machine's name; `--json` prints the same as JSON. Where Podman itself takes most of the
//! time, its own time for the same work is measured in the same run and shown beside. Quiet figures are averages over
//! `BENCH_QUIET_S` seconds (20). Names of sections (start, plug, quiet, nudge, logs) as arguments choose some.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

/// The parts, shared with the integration tests.
#[allow(dead_code)]
mod it {
    pub(crate) mod station;
    pub(crate) mod tree;
}

use it::station::{Controller, NETWORK, RECORDER, Station, eventually};
use it::tree::Card;
use serde_json::{Value, json};
use silvasonic_controller::config::Recorder;
use silvasonic_controller::device::Microphone;
use silvasonic_controller::podman::Podman;
use silvasonic_controller::podman::frames::Frames;
use silvasonic_controller::spec::Spec;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);

fn main() {
    let mut table = Table::new();
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |section: &str| chosen.is_empty() || chosen.iter().any(|name| name == section);
    if wanted("start") {
        start(&mut table, 1);
        start(&mut table, 3);
    }
    if wanted("plug") {
        plug(&mut table, 20);
    }
    if wanted("quiet") {
        quiet(&mut table, 1);
        quiet(&mut table, 5);
    }
    if wanted("nudge") {
        nudge(&mut table, 20);
    }
    if wanted("logs") {
        flood(&mut table, "burst of 180,000 lines", "seq 1 180000");
        flood(&mut table, "flood of 10 s", "timeout 10 seq 1 1000000000");
        latency(&mut table, 1, "sleep 1", 20);
        latency(&mut table, 100, "usleep 9000", 10);
    }
    table.print(std::env::args().any(|argument| argument == "--json"));
}

/// Rows of figure, value, unit.
struct Table {
    machine: String,
    rows: Vec<(String, f64, &'static str)>,
}

impl Table {
    fn new() -> Self {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_start_matches(['\t', ' ', ':']).to_owned();
        Self {
            machine: format!("{}, {} cores {model}", name.trim(), thread::available_parallelism().map_or(0, Into::into)),
            rows: Vec::new(),
        }
    }

    fn add(&mut self, figure: impl Into<String>, value: f64, unit: &'static str) {
        let figure = figure.into();
        eprintln!("{figure}: {value:.3} {unit}");
        self.rows.push((figure, value, unit));
    }

    fn print(&self, as_json: bool) {
        if as_json {
            let rows: Vec<Value> =
                self.rows.iter().map(|(figure, value, unit)| json!({"figure": figure, "value": value, "unit": unit})).collect();
            println!("{}", json!({"machine": self.machine, "figures": rows}));
            return;
        }
        println!("\n{}\n", self.machine);
        for (figure, value, unit) in &self.rows {
            println!("{figure:<66} {value:>10.3} {unit}");
        }
    }
}

/// `count` UltraMics with serials of their own.
fn microphones(count: u32) -> Vec<Card> {
    (0..count).map(|n| Card::ultramic().index(n).id(&format!("r4_{n}")).serial(format!("SER{n:04}")).at(&format!("1-{}", n + 1))).collect()
}

fn names(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("silvasonic-recorder-ultramic-384-evo-{n:04}")).collect()
}

/// A station whose database is seeded and whose Podman is warm.
fn seeded() -> Station {
    let station = Station::up();
    let controller = station.controller();
    controller.wait_log("seeded user", SOON);
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 50}' WHERE key = 'system'");
    station
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Podman's own time for creating and starting `count` containers of our making, side by side.
fn podmans_own(station: &Station, count: u32) -> f64 {
    let podman = Podman::new(station.podman.socket().to_owned());
    let engine = podman.info(podman.ping().unwrap()).unwrap();
    let recorder = Recorder {
        image: RECORDER.to_owned(),
        network: NETWORK.to_owned(),
        owner: "bench".to_owned(),
        workspace: station.workspace(),
        redis_url: station.redis.url(),
        memory: 512 << 20,
        cpu_quota: 100_000,
        restart_tries: 5,
    };
    let config = station.postgres.value::<Value>("SELECT config FROM microphone_profiles WHERE slug = 'ultramic_384_evo'").unwrap();
    let requests: Vec<Value> = (0..count)
        .map(|n| {
            let folder = format!("own-{n}");
            fs::create_dir_all(station.workspace().join("recorder").join(&folder)).unwrap();
            let microphone = Microphone { card: n, name: "bench".to_owned(), usb: None };
            Spec::new(&recorder, &folder, &microphone, &folder, "bench", config.to_string()).create_request(&engine)
        })
        .collect();
    let begun = Instant::now();
    let ids: Vec<String> = thread::scope(|scope| {
        let run = |request: &Value| {
            let id = podman.create(request).unwrap().id;
            podman.start(&id).unwrap();
            id
        };
        let threads: Vec<_> = requests.iter().map(|request| scope.spawn(move || run(request))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let took = milliseconds(begun);
    for id in ids {
        podman.remove(&id, Some(Duration::ZERO)).unwrap();
    }
    took
}

/// From starting the program to all Recorders running, with a seeded database.
fn start(table: &mut Table, count: u32) {
    let station = seeded();
    let own = podmans_own(&station, count);
    station.tree.set(&microphones(count));
    let names = names(count);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let controller = station.controller();
    station.podman.wait_running(SOON, &names);
    let took = milliseconds(begun);
    table.add(format!("start -> Recorder running, N={count}"), took, "ms");
    table.add("  Podman's own create + start", own, "ms");
    table.add("  beyond Podman's own", took - own, "ms");
    drop(controller);
}

/// From plugging a microphone in to its Recorder running, at any moment of the tick.
fn plug(table: &mut Table, times: u32) {
    let station = seeded();
    let own = podmans_own(&station, 1);
    let controller = station.controller_with(&[("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.1")]);
    controller.wait_log("connected to Podman", SOON);
    let mut took: Vec<f64> = (0..times)
        .map(|n| {
            // Spreads the moments over the tick.
            thread::sleep(Duration::from_millis(u64::from(n) * 50));
            let begun = Instant::now();
            station.tree.set(&microphones(1));
            station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-0000"]);
            let took = milliseconds(begun);
            station.tree.set(&[]);
            eventually(SOON, "no container", || station.containers().is_empty().then_some(()));
            took
        })
        .collect();
    took.sort_by(f64::total_cmp);
    table.add(format!("plug -> running, median of {times}"), took[took.len() / 2], "ms");
    table.add(format!("plug -> running, longest of {times}"), took[took.len() - 1], "ms");
    table.add("  Podman's own create + start", own, "ms");
}

/// What a process has used so far.
#[derive(Clone, Copy, Default)]
struct Used {
    cpu_ns: u64,
    switches: u64,
}

impl Used {
    fn of(id: u32) -> Self {
        let mut used = Self::default();
        for task in fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
            let text = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            used.cpu_ns += text("schedstat").split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            let status = text("status");
            let counts = status.lines().filter(|line| line.contains("ctxt_switches")).filter_map(|line| line.split_whitespace().nth(1));
            used.switches += counts.filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
        }
        used
    }

    fn of_all(ids: &[u32]) -> Self {
        ids.iter()
            .map(|id| Self::of(*id))
            .fold(Self::default(), |a, b| Self { cpu_ns: a.cpu_ns + b.cpu_ns, switches: a.switches + b.switches })
    }
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

fn kib(id: u32, file: &str, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{id}/{file}")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok()).unwrap()
}

/// What a station costs on which nothing happens.
fn quiet(table: &mut Table, count: u32) {
    let span = std::env::var("BENCH_QUIET_S").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let station = seeded();
    station.tree.set(&microphones(count));
    let names = names(count);
    let controller = station.controller();
    station.podman.wait_running(SOON, &names.iter().map(String::as_str).collect::<Vec<_>>());
    controller.wait_log("default password", SOON);
    // The thread that found that out is gone, so that what threads used can be added up.
    let threads = || fs::read_dir(format!("/proc/{}/task", controller.id())).unwrap().flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    eventually(SOON, "no more hashing", || (!threads().any(|task| name(task).trim() == "bcrypt")).then_some(()));
    let directory = station.dir().to_str().unwrap();
    // A backend's title names the socket it came from; the harness's own connections are gone by now.
    let database = processes(&["postgres: silvasonic silvasonic"]);
    let others = [
        ("Podman's service", processes(&["podman", "system", "service", directory])),
        ("PostgreSQL + Redis", database.into_iter().chain(processes(&["redis-server", &station.redis.port().to_string()])).collect()),
    ];
    let id = controller.id();
    let before = (Used::of(id), others.each_ref().map(|(_, ids)| Used::of_all(ids)));
    let begun = Instant::now();
    thread::sleep(Duration::from_secs(span));
    let seconds = begun.elapsed().as_secs_f64();
    let percent = |before: Used, after: Used| (after.cpu_ns - before.cpu_ns) as f64 / 1e7 / seconds;
    let after = Used::of(id);
    table.add(format!("quiet, N={count}: CPU of the Controller"), percent(before.0, after), "% of a core");
    for ((name, ids), before) in others.iter().zip(before.1) {
        table.add(format!("quiet, N={count}: CPU of {name}"), percent(before, Used::of_all(ids)), "% of a core");
    }
    table.add(format!("quiet, N={count}: context switches of the Controller"), (after.switches - before.0.switches) as f64 / seconds, "/s");
    table.add(format!("quiet, N={count}: system calls of the Controller"), system_calls(&controller, 10), "/s");
    table.add(format!("quiet, N={count}: resident memory"), kib(id, "status", "VmRSS:") / 1024.0, "MiB");
    table.add(format!("quiet, N={count}: proportional memory"), kib(id, "smaps_rollup", "Pss:") / 1024.0, "MiB");
}

/// Counted by strace, which stops at SIGINT and prints its summary then.
fn system_calls(controller: &Controller, seconds: u32) -> f64 {
    let command = format!("timeout -s INT {seconds} strace -f -c -p {} 2>&1", controller.id());
    let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let total = text.lines().find(|line| line.ends_with("total")).unwrap_or_else(|| panic!("strace says: {text}"));
    let calls: f64 = total.split_whitespace().filter_map(|word| word.parse().ok()).nth(3).unwrap();
    calls / f64::from(seconds)
}

/// From PUBLISH to the query, by the clock of PostgreSQL's log.
fn nudge(table: &mut Table, times: usize) {
    let station = seeded();
    for setting in ["log_statement = 'all'", "log_line_prefix = '%n '"] {
        station.postgres.exec(&format!("ALTER SYSTEM SET {setting}"));
    }
    station.postgres.exec("SELECT pg_reload_conf()");
    let controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "60")]);
    eventually(SOON, "the subscription", || (station.redis.subscribers("silvasonic:nudge") == 1).then_some(()));
    let reads = || -> Vec<f64> {
        let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
        let lines = log.lines().filter(|line| line.contains("execute") && line.contains("SELECT kind, key"));
        lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
    };
    let mut took: Vec<f64> = (0..times)
        .map(|_| {
            thread::sleep(Duration::from_millis(1100));
            let before = reads().len();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
            station.redis.publish("silvasonic:nudge", "reconcile");
            (eventually(SOON, "a read", || reads().get(before).copied()) - now) * 1000.0
        })
        .collect();
    took.sort_by(f64::total_cmp);
    table.add(format!("nudge -> SQL query, median of {times}"), took[took.len() / 2], "ms");
    table.add(format!("nudge -> SQL query, longest of {times}"), took[took.len() - 1], "ms");
    drop(controller);
}

/// `podman logs -f` of one container; its lines, each with the host's uptime at its arrival.
fn podman_logs(station: &Station, name: &str) -> (Child, Receiver<(f64, String)>) {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/podman-sandbox"));
    command.arg("exec").arg(station.dir().join("podman")).args(["podman", "logs", "-f", name]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, receiver) = channel();
    thread::spawn(move || lines.map_while(Result::ok).all(|line| sender.send((uptime(), line)).is_ok()));
    (child, receiver)
}

/// What arrives at a Redis subscriber, likewise: device and message.
fn subscriber(station: &Station) -> Receiver<(f64, String, String)> {
    let messages = station.redis.listen("silvasonic:logs");
    let (sender, receiver) = channel();
    thread::spawn(move || {
        messages.iter().all(|message| {
            let at = uptime();
            let line: Value = serde_json::from_str(&message).unwrap();
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            sender.send((at, text("container_name"), text("message"))).is_ok()
        })
    });
    receiver
}

/// Seconds since boot, as `/proc/uptime` counts them; read once, as a flood asks for it often.
fn uptime() -> f64 {
    static BEGAN: OnceLock<(f64, Instant)> = OnceLock::new();
    let read = || fs::read_to_string("/proc/uptime").unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let (uptime, at) = BEGAN.get_or_init(|| (read(), Instant::now()));
    uptime + at.elapsed().as_secs_f64()
}

fn end(mut child: Child) {
    let group = rustix::process::Pid::from_child(&child);
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    let _ = child.wait();
}

/// Whether numbers come one after the other: how many are missing and how many come again or out of order.
fn gaps(numbers: impl Iterator<Item = u64>) -> (u64, u64, u64) {
    let (mut count, mut missing, mut again, mut last) = (0, 0, 0, None);
    for number in numbers {
        count += 1;
        match last {
            Some(last) if number <= last => again += 1,
            Some(last) => missing += number - last - 1,
            None => {}
        }
        last = Some(last.unwrap_or(0).max(number));
    }
    (count, missing, again)
}

/// Lines as Podman's API delivers them, read and thrown away but for their number: what a client could reach at best.
fn api_logs(station: &Station, name: &str) -> Receiver<(f64, String)> {
    let id = station.inspect(name).unwrap()["Id"].as_str().unwrap().to_owned();
    let request = Podman::new(station.podman.socket().to_owned()).log(&id, 0, true);
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let (mut stream, mut frames, mut chunk) = (request.open().unwrap(), Frames::default(), [0; 16 << 10]);
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            let pass = |_, frame: &[u8]| {
                let line = String::from_utf8_lossy(frame);
                let _ = sender.send((uptime(), line.split_whitespace().last().unwrap_or_default().to_owned()));
            };
            frames.push(&chunk[..count], pass).unwrap();
        }
    });
    receiver
}

/// One container prints as fast as it can. Each reader has a station to itself, as all share two cores. Beyond 10 MiB
/// conmon begins the log file anew, and whoever reads it misses lines: the burst stays below that, the flood does not.
fn flood(table: &mut Table, what: &str, command: &str) {
    let name = "silvasonic-recorder-ultramic-384-evo-0000";
    for who in ["podman logs -f", "Podman's API alone", "Redis subscriber"] {
        let station = seeded();
        let script = format!("while [ ! -e /app/workspace/go ]; do usleep 10000; done; {command}; exec sleep 1000");
        let image = station.image("flood", &script);
        station.tree.set(&microphones(1));
        let settings: &[(&str, &str)] = &[("SILVASONIC_RECORDER_IMAGE", &image), ("SILVASONIC_SHUTDOWN", "keep")];
        let mut controller = station.controller_with(settings);
        station.podman.wait_running(SOON, &[name]);
        let ours = who == "Redis subscriber";
        if !ours {
            controller.signal(rustix::process::Signal::TERM);
            controller.wait_exit(SOON);
        }
        let (child, lines) = match who {
            "podman logs -f" => podman_logs(&station, name),
            "Podman's API alone" => (Command::new("true").process_group(0).spawn().unwrap(), api_logs(&station, name)),
            _ => {
                let (messages, (sender, receiver)) = (subscriber(&station), channel());
                thread::spawn(move || messages.iter().all(|(at, _, line)| sender.send((at, line)).is_ok()));
                (Command::new("true").process_group(0).spawn().unwrap(), receiver)
            }
        };
        let before = if ours { Used::of(controller.id()) } else { Used::default() };
        fs::write(station.workspace().join("recorder/ultramic-384-evo-0000/go"), "").unwrap();
        let lines: Vec<(f64, u64)> = std::iter::from_fn(|| lines.recv_timeout(Duration::from_secs(5)).ok())
            .filter_map(|(at, line)| Some((at, line.parse().ok()?)))
            .collect();
        let span = lines.last().unwrap().0 - lines[0].0;
        let (count, missing, again) = gaps(lines.iter().map(|(_, number)| *number));
        table.add(format!("{what}: {who}"), count as f64 / span, "lines/s");
        table.add("  missing, of those between the first and the last", missing as f64, "lines");
        table.add("  repeated or out of order", again as f64, "lines");
        if ours {
            table.add(
                "  CPU of the Controller meanwhile",
                (Used::of(controller.id()).cpu_ns - before.cpu_ns) as f64 / 1e7 / span,
                "% of a core",
            );
            table.add("  resident memory after it", kib(controller.id(), "status", "VmRSS:") / 1024.0, "MiB");
        }
        end(child);
    }
}

/// Five containers print the host's uptime (10 ms steps) again and again: how old is a line when it arrives?
fn latency(table: &mut Table, rate: u32, pause: &str, seconds: u64) {
    let station = seeded();
    let image = station.image("clock", &format!("while :; do read up rest < /proc/uptime; echo $up; {pause}; done"));
    station.tree.set(&microphones(5));
    let names = names(5);
    let messages = subscriber(&station);
    let controller = station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", &image)]);
    station.podman.wait_running(SOON, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let (child, own) = podman_logs(&station, &names[0]);
    own.recv_timeout(SOON).unwrap();
    messages.recv_timeout(SOON).unwrap();
    let before = Used::of(controller.id());
    let begun = Instant::now();
    thread::sleep(Duration::from_secs(seconds));
    let span = begun.elapsed().as_secs_f64();
    let used = Used::of(controller.id());
    // Only what was printed after both were at it: neither has old lines to catch up with.
    let from = uptime() - span + 1.0;
    let age = |at: f64, line: &str| line.parse::<f64>().ok().filter(|printed| *printed >= from).map(|printed| (at - printed) * 1000.0);
    let ours = messages.try_iter().filter_map(|(at, _, line)| age(at, &line)).collect();
    let podmans = own.try_iter().filter_map(|(at, line)| age(at, &line)).collect();
    end(child);
    for (who, ages) in [("podman logs -f", podmans), ("Redis subscriber", ours)] {
        let mut ages: Vec<f64> = ages;
        ages.sort_by(f64::total_cmp);
        for (name, part) in [("p50", 50), ("p99", 99)] {
            table.add(format!("5 x {rate} lines/s: {who}, {name} of {} lines", ages.len()), ages[(ages.len() - 1) * part / 100], "ms");
        }
    }
    table.add(format!("5 x {rate} lines/s: CPU of the Controller"), (used.cpu_ns - before.cpu_ns) as f64 / 1e7 / span, "% of a core");
    table.add(format!("5 x {rate} lines/s: resident memory"), kib(controller.id(), "status", "VmRSS:") / 1024.0, "MiB");
}
