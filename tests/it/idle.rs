//! What a quiet second costs: counts of statements and requests, never times.

use std::fs;
use std::time::Duration;

use super::live::log_statements;
use super::station::{Proxy, Station, eventually};
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
