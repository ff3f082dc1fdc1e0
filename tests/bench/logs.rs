//! Log following under load: how many lines a second arrive, and how old they are then.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use silvasonic_controller::podman::client::Podman;
use silvasonic_controller::podman::frames::Frames;

use super::it::station::Station;
use super::measure::{Used, mebibytes, podman, watch};
use super::table::Table;
use super::{SOON, Subject, microphones, names, seeded, wait_running};

pub(crate) fn floods(table: &mut Table, subject: &Subject) {
    if subject.is_peer() {
        return; // It loses lines, and repeats others.
    }
    flood(table, "burst of 180,000 lines", "seq 1 180000");
    flood(table, "flood of 10 s", "timeout 10 seq 1 1000000000");
}

pub(crate) fn logs(table: &mut Table, subject: &Subject) {
    latency(table, subject, 1, "sleep 1", 20);
    latency(table, subject, 100, "usleep 9000", 10);
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
    let request = Podman::new(station.podman.socket().to_owned()).follow_log(&id, 0);
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
        let before = if ours { Used::of(&[controller.id()]) } else { Used::default() };
        fs::write(station.workspace().join("recorder/ultramic-384-evo-0000/go"), "").unwrap();
        let lines: Vec<(f64, u64)> = std::iter::from_fn(|| lines.recv_timeout(Duration::from_secs(5)).ok())
            .filter_map(|(at, line)| Some((at, line.parse().ok()?)))
            .collect();
        let span = lines.last().unwrap().0 - lines[0].0;
        let (count, missing, again) = gaps(lines.iter().map(|(_, number)| *number));
        table.add(format!("{what}: {who}"), count as f64 / span, "lines/s");
        table.add(format!("{what}: {who}, missing between the first and the last"), missing as f64, "lines");
        table.add(format!("{what}: {who}, repeated or out of order"), again as f64, "lines");
        if ours {
            table.add(
                format!("{what}: CPU of the Controller meanwhile"),
                (Used::of(&[controller.id()]).cpu_ns - before.cpu_ns) as f64 / 1e7 / span,
                "% of a core",
            );
            table.add(format!("{what}: resident memory after it"), mebibytes(controller.id(), "status", "VmRSS:"), "MiB");
        }
        end(child);
    }
}

/// Five containers print the host's uptime (10 ms steps) again and again: what does that cost, and how old is a line
/// when it arrives?
fn latency(table: &mut Table, subject: &Subject, rate: u32, pause: &str, seconds: u64) {
    let figure = |name: &str| format!("5 x {rate} lines/s, one subscriber: {name}");
    let station = seeded();
    let image = station.image("clock", &format!("while :; do read up rest < /proc/uptime; echo $up; {pause}; done"));
    station.tree.set(&microphones(5));
    let messages = subscriber(&station);
    let controller = subject.controller(&station, &[("SILVASONIC_RECORDER_IMAGE", &image)]);
    wait_running(&station, 5);
    messages.recv_timeout(SOON).unwrap();
    thread::sleep(Duration::from_secs(3));
    // Without anybody else who follows, as that costs Podman's service, too.
    let (id, service) = (controller.id(), podman(&station));
    let [own, service] = watch([&[id], &service], Duration::from_secs(seconds));
    for (name, (cpu, _), limit) in [("CPU of the Controller", own, 0.3), ("CPU of Podman's service", service, 0.55)] {
        table.add(figure(name), cpu, "% of a core").limit_if(rate == 1, limit);
    }
    table.add(figure("resident memory"), mebibytes(id, "status", "VmRSS:"), "MiB");

    let (child, lines) = podman_logs(&station, &names(1)[0]);
    lines.recv_timeout(SOON).unwrap();
    // Only what was printed after both were at it: neither has old lines to catch up with.
    let from = uptime() + 1.0;
    thread::sleep(Duration::from_secs(seconds));
    let age = |at: f64, line: &str| line.parse::<f64>().ok().filter(|printed| *printed >= from).map(|printed| (at - printed) * 1000.0);
    let ours: Vec<f64> = messages.try_iter().filter_map(|(at, _, line)| age(at, &line)).collect();
    let podmans: Vec<f64> = lines.try_iter().filter_map(|(at, line)| age(at, &line)).collect();
    end(child);
    for (who, mut ages) in [("podman logs -f", podmans), ("Redis subscriber", ours)] {
        ages.sort_by(f64::total_cmp);
        for (name, part) in [("p50", 50), ("p99", 99)] {
            table.add(figure(&format!("age of a line, {who}, {name}")), ages[(ages.len() - 1) * part / 100], "ms");
        }
    }
}
