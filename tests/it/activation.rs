//! A Podman whose API service ends when it is idle and starts when a client connects, as systemd's units do it.

use std::time::Duration;

use serde_json::Value;

use super::station::{Activation, Station, eventually};
use super::tree::Card;

/// The service ends 5 s after the last connection; a loaded machine takes its time to start it.
const SOON: Duration = Duration::from_secs(60);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

fn last(station: &Station) -> Activation {
    station.podman.activations().pop().expect("the service was started")
}

/// Waits until the service has ended by itself; how often it had been started then.
fn asleep(station: &Station) -> usize {
    eventually(SOON, "no API service runs", || {
        let runs = station.podman.activations();
        runs.iter().all(|run| run.ended.is_some()).then_some(runs.len())
    })
}

#[test]
fn an_activated_service_ends_when_idle_and_serves_the_client_that_woke_it() {
    let station = Station::plan().activated().without_postgres().without_redis().up();
    let image = station.image("sleeper", "exec sleep 1000");
    station.podman.run("one", &image, &Value::Null);
    let before = asleep(&station);
    // This question starts it.
    let mark = station.podman.mark("one").expect("the container outlived the service");
    assert_eq!(station.inspect("one").unwrap()["State"]["Status"], "running");
    assert_eq!(station.podman.activations().len(), before + 1);
    let used = eventually(SOON, "the end of the service", || last(&station).ended).1;
    assert!(!used.cpu.is_zero() && used.switches > 0, "{used:?}");
    assert_eq!(station.podman.mark("one"), Some(mark));
}

#[test]
fn a_service_that_is_killed_and_started_by_the_next_request_costs_no_recording() {
    let station = Station::plan().activated().up();
    station.tree.set(&[Card::ultramic()]);
    let _controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let mark = station.podman.mark(ULTRAMIC);
    for _ in 0..3 {
        let killed = last(&station).id;
        station.podman.kill_api();
        // The Controller asks nothing while all is quiet.
        station.redis.publish("silvasonic:nudge", "reconcile");
        eventually(SOON, "another service", || (last(&station).id != killed && last(&station).ended.is_none()).then_some(()));
        assert_eq!(station.podman.mark(ULTRAMIC), mark);
    }
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(station.podman.mark(ULTRAMIC), mark);
}

/// Connects a microphone while no API service runs, and the next one needs `delay` before it starts.
fn connect_while_asleep(delay: Duration) {
    let station = Station::plan().activated().up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    // The second look at what was remembered of Podman is over.
    eventually(SOON, "the engine kept", || station.workspace().join("recorder/.controller-engine").exists().then_some(()));
    let mark = station.podman.mark(ULTRAMIC);
    let before = asleep(&station);
    station.podman.slow_activation(delay);
    let logged = controller.log().len();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    // The test itself asks Podman nothing meanwhile, which would start the service, too.
    eventually(SOON, "the start of the Recorder", || {
        let (status, health) = controller.get("/healthy").expect("/healthy answers");
        assert_eq!((status, &health["components"]["podman"]["healthy"]), (200, &Value::Bool(true)), "{health}");
        controller.log()[logged..].contains(&format!("{RODE} started in ")).then_some(())
    });
    let log = controller.log().split_off(logged);
    assert!(!log.contains("[WARN]") && !log.contains("[ERROR]"), "{log}");
    assert_eq!(station.podman.activations().len(), before + 1);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(station.podman.mark(ULTRAMIC), mark);
}

#[test]
fn a_microphone_that_is_connected_while_the_service_sleeps_is_recorded() {
    connect_while_asleep(Duration::ZERO);
}

#[test]
fn a_service_that_starts_slowly_delays_a_new_recorder_and_is_no_fault() {
    connect_while_asleep(Duration::from_secs(3));
}
