//! What a quiet second costs: counts of statements, requests and allocations, never times.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use super::live::log_statements;
use super::station::{Controller, Proxy, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_quiet_cycle_is_one_statement_and_no_podman_request() {
    let station = Station::up();
    log_statements(&station);
    let proxy = Proxy::new(station.dir().join("counted.sock"), station.podman.socket());
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let controller = station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-6a21", "silvasonic-recorder-rode-nt-usb-p1d2"]);
    controller.wait_log("seeded user", SOON);

    let statements = || -> Vec<String> {
        let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
        log.lines().filter(|line| line.starts_with("<silvasonic-controller>LOG:  execute")).map(str::to_owned).collect()
    };
    let reads = |statements: &[String]| statements.iter().filter(|line| line.contains("SELECT kind, key")).count();
    // The second look at what was remembered of Podman is over.
    eventually(SOON, "the engine kept", || station.workspace().join("recorder/.controller-engine").exists().then_some(()));
    // The first reads of the steady state have passed.
    let settled = reads(&statements());
    eventually(SOON, "a quiet cycle", || (reads(&statements()) > settled + 1).then_some(()));
    let (before, asked) = (statements().len(), proxy.requests());
    let cycles = eventually(SOON, "five cycles", || {
        let cycles = reads(&statements()[before..]);
        (cycles >= 5).then_some(cycles)
    });
    let asked = proxy.requests() - asked;
    let statements = statements();
    let since = &statements[before..];
    assert!(since.iter().all(|line| line.contains("SELECT kind, key")), "{since:#?}");
    // The one that looks whether the events told everything may fall into this time.
    assert!(asked <= 1, "{asked} Podman requests in {cycles} cycles");
}

/// Connections of the Controller to the socket at this path, as the kernel lists them: those that were accepted have the
/// path of the listener.
fn connections(controller: &Controller, path: &std::path::Path) -> usize {
    let own: Vec<String> = fs::read_dir(format!("/proc/{}/fd", controller.id()))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let listing = Command::new("ss").args(["-x", "-n", "-H"]).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    // netid state recv-q send-q local inode peer peer-inode
    let accepted = listing.lines().filter(|line| line.contains(path.to_str().unwrap()));
    accepted.filter(|line| line.split_whitespace().any(|word| own.iter().any(|inode| inode == word))).count()
}

#[test]
fn a_quiet_station_has_no_connection_to_podman_and_asks_it_nothing() {
    let station = Station::up();
    let proxy = Proxy::new(station.dir().join("counted.sock"), station.podman.socket());
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let controller = station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-6a21", "silvasonic-recorder-rode-nt-usb-p1d2"]);
    controller.wait_log("seeded user", SOON);
    eventually(SOON, "the engine kept", || station.workspace().join("recorder/.controller-engine").exists().then_some(()));
    let socket = std::path::PathBuf::from(proxy.path());
    eventually(SOON, "no connection", || (connections(&controller, &socket) == 0).then_some(()));
    let (asked, begun) = (proxy.requests(), Instant::now());
    // Longer than the time between two lists without sight of the processes.
    eventually(Duration::from_secs(30), "seventeen seconds", || {
        assert_eq!(connections(&controller, &socket), 0);
        (begun.elapsed() > Duration::from_secs(17)).then_some(())
    });
    assert_eq!(proxy.requests(), asked);
}

#[test]
fn without_sight_of_the_processes_the_events_are_followed() {
    let station = Station::up();
    let proxy = Proxy::new(station.dir().join("counted.sock"), station.podman.socket());
    station.tree.set(&[Card::ultramic()]);
    // As in a container without `pid: host`.
    let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let _controller = Controller::run(station.controller_command_after(&namespace, &[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]));
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-6a21"]);
    eventually(SOON, "the stream of events", || (proxy.requests_for("/events?stream=true") > 0).then_some(()));
    let lists = || proxy.requests_for("/containers/json?all=true");
    let before = eventually(SOON, "a list", || Some(lists()).filter(|count| *count > 0));
    eventually(Duration::from_secs(30), "another list, fifteen seconds later", || (lists() > before).then_some(()));
}

#[test]
fn a_quiet_tick_of_the_main_loop_allocates_nothing() {
    let station = Station::up();
    let (library, counter) = (station.dir().join("allocations.so"), station.dir().join("allocations"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/allocations.c");
    assert!(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status().unwrap().success());
    fs::write(&counter, 0_u64.to_ne_bytes()).unwrap();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let settings = [("LD_PRELOAD", library.to_str().unwrap()), ("ALLOCATIONS", counter.to_str().unwrap())];
    let controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-6a21", "silvasonic-recorder-rode-nt-usb-p1d2"]);
    controller.wait_log("seeded user", SOON);
    let allocations = || u64::from_ne_bytes(fs::read(&counter).unwrap().try_into().unwrap());
    // How often the main thread has slept.
    let ticks = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", controller.id())).unwrap();
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap().trim().parse().unwrap()
    };
    assert!(allocations() > 1000, "the start allocates");
    // Between those that look at the cards' streams, every five seconds, or send a heartbeat.
    let mut last = (allocations(), ticks());
    eventually(Duration::from_secs(60), "two ticks without an allocation", || {
        let (now, slept) = (allocations(), ticks());
        if now != last.0 {
            last = (now, slept);
        }
        (slept >= last.1 + 2).then_some(())
    });
}

#[test]
fn redis_is_asked_once_a_second_who_listens() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    // A heartbeat uses the connection at each tick.
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-6a21"]);
    controller.wait_log("seeded user", SOON);
    let questions = || -> u64 {
        let text: String = redis::cmd("INFO").arg("commandstats").query(&mut station.redis.connection()).unwrap();
        let calls = |line: &str| line.strip_prefix("cmdstat_pubsub|numsub:calls=")?.split(',').next()?.parse().ok();
        text.lines().find_map(calls).unwrap_or(0)
    };
    let first = eventually(SOON, "a question", || Some(questions()).filter(|count| *count > 0));
    let begun = Instant::now();
    let last = eventually(Duration::from_secs(30), "eight more", || Some(questions()).filter(|count| *count >= first + 8));
    let seconds = begun.elapsed().as_secs_f64();
    assert!((last - first) as f64 <= seconds * 1.1 + 2.0, "{} questions in {seconds:.1} s", last - first);
}
