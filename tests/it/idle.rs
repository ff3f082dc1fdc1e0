//! What a quiet second costs: counts of statements and requests, never times.

use std::fs;
use std::time::Duration;

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
    let listing = std::process::Command::new("ss").args(["-x", "-n", "-H"]).output().unwrap();
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
    let (asked, begun) = (proxy.requests(), std::time::Instant::now());
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
