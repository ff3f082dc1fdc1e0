//! A Podman that hangs, lies, floods or goes away: running Recorders are left alone, and all is caught up with after it.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use silvasonic_controller::cache;
use silvasonic_controller::decide::container::Engine;

use super::start::ids;
use super::station::{Controller, Fault, Proxy, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
/// How soon all is as wanted after a fault: two seconds, and Podman's own time for a start or a stop
/// on a busy machine.
const CAUGHT_UP: Duration = Duration::from_secs(10);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";
const THIRD: &str = "silvasonic-recorder-generic-usb-p1d9";

pub(crate) fn proxied(station: &Station) -> (Proxy, Controller) {
    proxied_with(station, &[])
}

pub(crate) fn proxied_with(station: &Station, settings: &[(&str, &str)]) -> (Proxy, Controller) {
    let proxy = Proxy::new(station.dir().join("proxy.sock"), station.podman.socket());
    let settings = [settings, &[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]].concat();
    let controller = station.controller_with(&settings);
    (proxy, controller)
}

/// What an untouched Recorder keeps.
fn marks(station: &Station, names: &[&str]) -> Vec<(Value, Value)> {
    names.iter().map(|name| station.podman.mark(name).unwrap()).collect()
}

fn answer(status: &str, body: &str) -> Fault {
    Fault::Answer(format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

fn third(station: &Station, enabled: bool) {
    station.postgres.exec(&format!("UPDATE devices SET enabled = {enabled} WHERE name LIKE '%port1-9'"));
}

#[test]
fn whatever_podman_answers_recorders_are_left_alone_and_all_is_caught_up_with() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1), Card::generic(2, "1-9")]);
    let (proxy, controller) = proxied(&station);
    station.podman.wait_running(SOON, &[RODE, ULTRAMIC]);
    eventually(SOON, "the third row", || station.postgres.value::<String>("SELECT name FROM devices WHERE name LIKE '%port1-9'"));
    third(&station, false);
    station.postgres.exec("UPDATE devices SET enrollment_status = 'enrolled', profile_slug = 'generic_usb' WHERE name LIKE '%port1-9'");
    let before = marks(&station, &[ULTRAMIC, RODE]);
    let all = "GET";
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let faults: Vec<(&str, Fault)> = vec![
        ("no answer from Podman within 5 s", Fault::Hang),
        (
            "no answer from Podman within",
            Fault::Stall("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n[{\"Id\":"),
        ),
        ("no answer from Podman within", Fault::Delay(Duration::from_secs(30))),
        ("unusable answer from Podman", Fault::Answer("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n[{\"Id\":".to_owned())),
        ("unusable answer from Podman", Fault::Answer("\u{1}\u{2}\u{3} no HTTP at all\r\n\r\n".to_owned())),
        ("unusable answer from Podman", answer("200 OK", "[{\"Id\": 7}]")),
        ("unusable answer from Podman", answer("200 OK", &nested)),
        ("unusable answer from Podman", Fault::Endless("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[")),
        (
            "Podman answered 500: everything is broken",
            answer("500 Internal Server Error", r#"{"cause":"x","message":"everything is broken","response":500}"#),
        ),
        // The service is gone behind the proxy, and then a frozen one.
        ("unusable answer from Podman", Fault::Hang),
        ("no answer from Podman within", Fault::Hang),
    ];
    let last = faults.len();
    for (number, (told, fault)) in faults.into_iter().enumerate() {
        let (unknown, known) = (controller.count_log(told), controller.count_log("Podman is available again"));
        match number + 1 {
            n if n == last - 1 => station.podman.stop_api(),
            n if n == last => station.podman.freeze_api(),
            _ => proxy.set(all, fault),
        }
        third(&station, number % 2 == 0);
        eventually(SOON, &format!("{told:?} told of fault {number}"), || (controller.count_log(told) > unknown).then_some(()));
        let status = || controller.get("/healthy").filter(|(status, _)| *status == 503);
        eventually(SOON, "health 503", status);
        match number + 1 {
            n if n == last - 1 => station.podman.start_api(),
            n if n == last => station.podman.thaw_api(),
            _ => proxy.clear(),
        }
        let begun = Instant::now();
        let wanted: &[&str] = if number % 2 == 0 { &[ULTRAMIC, RODE, THIRD] } else { &[ULTRAMIC, RODE] };
        station.podman.wait_running(CAUGHT_UP, wanted);
        println!("fault {number}: caught up after {:?}", begun.elapsed());
        eventually(SOON, "the closing line", || (controller.count_log("Podman is available again") > known).then_some(()));
        assert_eq!(marks(&station, &[ULTRAMIC, RODE]), before, "after fault {number}");
    }
    let peak = controller.status("VmHWM:");
    assert!(peak < 40 << 10, "{peak} KiB");
}

#[test]
fn a_call_that_hangs_for_one_recorder_holds_up_no_other() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let (proxy, controller) = proxied(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let id = ids(&station)[ULTRAMIC].clone();
    proxy.set(&format!("{id}/stop"), Fault::Hang);
    station.postgres.exec("UPDATE devices SET enabled = false");
    let asked = proxy.requests();
    eventually(SOON, "lists go on", || (proxy.requests() > asked + 2).then_some(()));
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(CAUGHT_UP, &[ULTRAMIC, RODE]);
    assert_eq!(ids(&station)[ULTRAMIC], id);
    // The call's own deadline ends it, and the next try gets through.
    proxy.clear();
    station.podman.wait_running(Duration::from_secs(30), &[RODE]);
    assert_eq!(controller.count_log("cannot be stopped: no answer from Podman within 20 s"), 1);
}

#[test]
fn answers_that_come_late_end_in_one_container_a_microphone() {
    let station = Station::up();
    let (proxy, controller) = proxied(&station);
    controller.wait_log("connected to Podman", SOON);
    proxy.set("/containers/", Fault::Delay(Duration::from_secs(4)));
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(Duration::from_secs(30), &[ULTRAMIC, RODE]);
    proxy.clear();
    let before = marks(&station, &[ULTRAMIC, RODE]);
    eventually(SOON, "health", || {
        controller.get("/healthy").filter(|(_, health)| health["components"]["containers"]["details"] == "2 running")
    });
    assert_eq!(station.containers().len(), 2);
    assert_eq!(marks(&station, &[ULTRAMIC, RODE]), before);
}

#[test]
fn events_wake_the_loop_and_without_them_lists_go_on() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let proxy = Proxy::new(station.dir().join("proxy.sock"), station.podman.socket());
    // Only an event can be the reason for a list within the next minute.
    let rare = [("SILVASONIC_CONTAINER_SOCKET", proxy.path()), ("SILVASONIC_RECONCILE_INTERVAL_S", "60"), ("SILVASONIC_SHUTDOWN", "keep")];
    let first = station.controller();
    station.podman.wait_running(SOON, &[RODE, ULTRAMIC]);
    drop(first);
    let mut second = station.controller_with(&rare);
    second.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    let before = marks(&station, &[RODE]);
    let open = || (proxy.requests_for("/events") == 1).then_some(());
    eventually(SOON, "the stream", open);
    station.podman.exec(&["rm", "-f", "-t", "0", ULTRAMIC]);
    station.podman.wait_running(CAUGHT_UP, &[RODE, ULTRAMIC]);
    assert_eq!(marks(&station, &[RODE]), before);
    second.signal(Signal::TERM);
    second.wait_exit(SOON);

    // What Podman 4.3 answers when it has no events.
    proxy.set("/events", answer("200 OK", "{\"cause\":\"x\",\"message\":\"no events\",\"response\":500}\n"));
    let third = station.controller_with(&[rare[0]]);
    third.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    let asked = proxy.requests_for("/containers/json");
    eventually(SOON, "a list at each tick", || (proxy.requests_for("/containers/json") >= asked + 4).then_some(()));
    station.podman.exec(&["rm", "-f", "-t", "0", ULTRAMIC]);
    station.podman.wait_running(CAUGHT_UP, &[RODE, ULTRAMIC]);
    assert_eq!(marks(&station, &[RODE]), before);
}

#[test]
fn what_podman_was_at_the_last_start_is_gone_by_until_it_says_otherwise() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let (proxy, mut first) = proxied(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let workspace = station.workspace().join("recorder");
    let kept = || cache::load_engine(&workspace).unwrap();
    let (engine, owner) = eventually(SOON, "the engine kept", kept);
    first.signal(Signal::TERM);
    first.wait_exit(SOON);

    // It is slow to say what it is, which delays nothing.
    proxy.set("/info", Fault::Hang);
    let second = station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
    station.podman.wait_running(CAUGHT_UP, &[ULTRAMIC]);
    drop(second);
    proxy.clear();
    station.podman.exec(&["rm", "-f", "-t", "0", ULTRAMIC]);

    // The memory is wrong: of another engine, which is found out, and behind another socket, which is seen at once.
    let wrong = Engine { runtime: "another".to_owned(), ..engine.clone() };
    cache::save_engine(&workspace, &wrong, owner).unwrap();
    let third = station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
    third.wait_log("(rootful, another, cgroups", SOON);
    third.wait_log(&format!("(rootful, {}, cgroups", engine.runtime), SOON);
    // It is told before it is kept.
    eventually(SOON, "the right engine kept", || kept().filter(|known| *known == (engine.clone(), owner)));
    drop(third);
    cache::save_engine(&workspace, &wrong, owner + 1).unwrap();
    let fourth = station.controller();
    fourth.wait_log("connected to Podman", SOON);
    assert_eq!(fourth.count_log("another, cgroups"), 0);
}
