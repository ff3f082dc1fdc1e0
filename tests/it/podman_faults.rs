//! A Podman that hangs, goes away or answers late: running Recorders are left alone, and all is caught up with after it.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use silvasonic_controller::cache::{self, ENGINE};
use silvasonic_controller::decide::container::Engine;

use super::database::two_cycles;
use super::start::ids;
use super::station::{Controller, Fault, NETWORK, Podman, Proxy, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
/// How soon all is as wanted after a fault: two seconds, and Podman's own time for a start or a stop
/// on a busy machine.
const CAUGHT_UP: Duration = Duration::from_secs(10);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

/// Begins or ends a fault.
type Switch = fn(&Podman);

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

pub(crate) fn answer(status: &str, body: &str) -> Fault {
    Fault::Answer(format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

#[test]
fn a_podman_that_is_gone_or_frozen_costs_no_recording_and_all_is_caught_up_with() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let controller = station.controller();
    station.podman.wait_running(SOON, &[RODE, ULTRAMIC]);
    let before = marks(&station, &[ULTRAMIC]);
    let faults: [(&str, Switch, Switch); 2] = [
        ("no Podman service", Podman::stop_api, Podman::start_api),
        ("no answer from Podman within", Podman::freeze_api, Podman::thaw_api),
    ];
    for (number, (details, begin, end)) in faults.into_iter().enumerate() {
        begin(&station.podman);
        station.postgres.exec(&format!("UPDATE devices SET enabled = {} WHERE name LIKE '19f7%'", number == 1));
        eventually(SOON, &format!("{details:?} of fault {number}"), || {
            controller.get("/healthy").filter(|(status, health)| {
                *status == 503 && health["components"]["podman"]["details"].as_str().is_some_and(|text| text.contains(details))
            })
        });
        let known = controller.count_log("Podman is available again");
        end(&station.podman);
        let begun = Instant::now();
        station.podman.wait_running(CAUGHT_UP, if number == 1 { &[ULTRAMIC, RODE][..] } else { &[ULTRAMIC] });
        println!("fault {number}: caught up after {:?}", begun.elapsed());
        eventually(SOON, "the closing line", || (controller.count_log("Podman is available again") > known).then_some(()));
        assert_eq!(marks(&station, &[ULTRAMIC]), before, "after fault {number}");
    }
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
    let line = "cannot be stopped: no answer from Podman within 20 s";
    controller.wait_log(line, SOON);
    assert_eq!(controller.count_log(line), 1);
}

/// Connects another microphone while such a request is not answered, which is given up after 5 s. What happens earlier
/// has not waited for it: at least a list, as nothing is started from one that is older than a second.
fn another_one_meanwhile(station: &Station, proxy: &Proxy, request: &str) {
    eventually(SOON, "the request", || (proxy.requests_for(request) > 0).then_some(()));
    let begun = Instant::now();
    eventually(SOON, "an old list", || (begun.elapsed() > Duration::from_millis(1500)).then_some(()));
    let lists = proxy.requests_for("/containers/json");
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let left = Duration::from_secs(4).saturating_sub(begun.elapsed());
    eventually(left, "a list", || (proxy.requests_for("/containers/json") > lists).then_some(()));
}

#[test]
fn a_container_that_ended_and_cannot_be_inspected_holds_up_no_other() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let (proxy, controller) = proxied_with(&station, &[("SILVASONIC_RECONCILE_INTERVAL_S", "0.2")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    let id = ids(&station)[ULTRAMIC].clone();
    let inspection = format!("GET {id} /json$");
    proxy.add(&inspection, Fault::Hang);
    // So that it stays in the lists.
    proxy.add(&format!("DELETE {id}"), Fault::Hang);
    station.podman.exec(&["stop", "-t", "0", ULTRAMIC]);
    another_one_meanwhile(&station, &proxy, &inspection);
    station.podman.wait_running(SOON, &[RODE]);
    // Its end is reported without what is not known, and that is not asked again.
    controller.wait_log("ended with code 137 (SIGKILL, as when memory runs out); next start in 0 s", SOON);
    let lists = proxy.requests_for("/containers/json");
    eventually(SOON, "ten lists", || (proxy.requests_for("/containers/json") > lists + 10).then_some(()));
    assert_eq!(proxy.requests_for(&inspection), 1);
}

#[test]
fn the_exit_code_of_a_run_that_podman_followed_by_another_one_holds_up_nothing() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let (proxy, controller) = proxied_with(&station, &[("SILVASONIC_RECONCILE_INTERVAL_S", "0.2")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    proxy.set("/events?stream=false", Fault::Hang);
    let process = station.inspect(ULTRAMIC).unwrap()["State"]["Pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(process.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    another_one_meanwhile(&station, &proxy, "/events?stream=false");
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    controller.wait_log("the Recorder of 0869-0389-034F6A21 ended; Podman restarted it", SOON);
}

#[test]
fn a_container_that_cannot_be_compared_holds_up_no_other() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    first.kill();
    let before = marks(&station, &[ULTRAMIC]);
    let proxy = Proxy::new(station.dir().join("proxy.sock"), station.podman.socket());
    let inspection = format!("GET {} /json$", ids(&station)[ULTRAMIC]);
    proxy.set(&inspection, Fault::Hang);
    let second = station.controller_with(&[
        ("SILVASONIC_CONTAINER_SOCKET", proxy.path()),
        ("SILVASONIC_RECORDER_MEMORY_LIMIT", "256m"),
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.2"),
    ]);
    another_one_meanwhile(&station, &proxy, &inspection);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(marks(&station, &[ULTRAMIC]), before);
    // It is retried, and then the difference is found.
    proxy.clear();
    second.wait_log(&format!("{ULTRAMIC} started in"), Duration::from_secs(30));
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
fn ends_and_events_wake_the_loop_and_without_them_lists_go_on() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let proxy = Proxy::new(station.dir().join("proxy.sock"), station.podman.socket());
    // Only an event can be the reason for a list within the next minute.
    let rare = [("SILVASONIC_CONTAINER_SOCKET", proxy.path()), ("SILVASONIC_RECONCILE_INTERVAL_S", "60"), ("SILVASONIC_SHUTDOWN", "keep")];
    let first = station.controller();
    station.podman.wait_running(SOON, &[RODE, ULTRAMIC]);
    drop(first);
    // The processes of the host are visible: a process that ends is the reason for a list, and no event.
    let mut seeing = station.controller_with(&rare);
    seeing.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    let before = marks(&station, &[RODE]);
    for words in [["rm", "-f", "-t", "0", ULTRAMIC], ["stop", "-i", "-t", "0", ULTRAMIC]] {
        let old = station.podman.mark(ULTRAMIC);
        let begun = Instant::now();
        station.podman.exec(&words);
        eventually(CAUGHT_UP, "another Recorder", || station.podman.mark(ULTRAMIC).filter(|mark| Some(mark) != old.as_ref()));
        println!("another one {:?} after podman {words:?}", begun.elapsed());
        station.podman.wait_running(CAUGHT_UP, &[RODE, ULTRAMIC]);
    }
    assert_eq!((marks(&station, &[RODE]), proxy.requests_for("/events?stream=true")), (before.clone(), 0));
    seeing.signal(Signal::TERM);
    seeing.wait_exit(SOON);

    // As in a container without `pid: host`.
    let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let in_namespace = |settings: &[(&'static str, &str)]| Controller::run(station.controller_command_after(&namespace, settings));
    let mut second = in_namespace(&rare);
    second.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    let open = || (proxy.requests_for("/events") == 1).then_some(());
    eventually(SOON, "the stream", open);
    station.podman.exec(&["rm", "-f", "-t", "0", ULTRAMIC]);
    station.podman.wait_running(CAUGHT_UP, &[RODE, ULTRAMIC]);
    assert_eq!(marks(&station, &[RODE]), before);
    second.kill();

    // What Podman 4.3 answers when it has no events.
    proxy.set("/events", answer("200 OK", "{\"cause\":\"x\",\"message\":\"no events\",\"response\":500}\n"));
    let third = in_namespace(&[rare[0]]);
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
    let kept = || -> Option<(Engine, u32)> { ENGINE.read(&workspace).unwrap().map(|text| ENGINE.parse(&workspace, &text).unwrap()) };
    let keep = |engine: &Engine, owner| ENGINE.write(&workspace, &cache::engine(engine, owner).unwrap().text).unwrap();
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
    keep(&wrong, owner);
    let third = station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
    third.wait_log("(rootful, another, cgroups", SOON);
    third.wait_log(&format!("(rootful, {}, cgroups", engine.runtime), SOON);
    // It is told before it is kept.
    eventually(SOON, "the right engine kept", || kept().filter(|known| *known == (engine.clone(), owner)));
    drop(third);
    keep(&wrong, owner + 1);
    let fourth = station.controller();
    fourth.wait_log("connected to Podman", SOON);
    assert_eq!(fourth.count_log("another, cgroups"), 0);
}

#[test]
fn a_container_with_another_hash_runs_on_until_podman_shows_that_it_differs() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let mut first = station.controller();
    station.podman.wait_running(SOON, &[RODE, ULTRAMIC]);
    first.kill();
    let before = marks(&station, &[RODE, ULTRAMIC]);

    // Another log driver or form of the hash is no difference; a limit is one. Podman does not say, or says half of it.
    let beat = ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1");
    let proxy = Proxy::new(station.dir().join("proxy.sock"), station.podman.socket());
    for (fault, why) in [
        (Fault::refusal("internal libpod error", "it is locked"), "it is locked"),
        (answer("200 OK", "{\"Config\":{\"Env\":[]}}"), "does not show its settings"),
    ] {
        proxy.set("GET containers/ /json$", fault);
        let mut second =
            station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path()), ("SILVASONIC_RECORDER_MEMORY_LIMIT", "256m"), beat]);
        let line = second.wait_log("with the desired configuration; it continues to run", SOON);
        assert!(line.contains(why), "{line}");
        two_cycles(&station);
        two_cycles(&station);
        assert_eq!(marks(&station, &[RODE, ULTRAMIC]), before);
        second.kill();
    }
    let reason = || station.heartbeat()?["meta"]["devices"]["0869-0389-034F6A21"]["reason"].as_str().map(str::to_owned);
    let told = eventually(SOON, "the reason", reason);
    assert!(told.starts_with("running") && told.ends_with("; its container is compared with the desired configuration"), "{told}");

    proxy.clear();
    let third =
        station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path()), ("SILVASONIC_RECORDER_MEMORY_LIMIT", "256m"), beat]);
    let limit = |name: &str| station.inspect(name).is_some_and(|found| found["HostConfig"]["Memory"] == 256 << 20);
    let deadline = CAUGHT_UP + Duration::from_secs(20);
    eventually(deadline, "both have the new limit", || (limit(RODE) && limit(ULTRAMIC)).then_some(()));
    for name in [RODE, ULTRAMIC] {
        let line = third.wait_log(&format!("{name} started in"), SOON);
        assert!(line.ends_with("changed: memory 536870912 -> 268435456"), "{line}");
    }
}

#[test]
fn what_another_program_would_have_created_alike_is_inspected_once_for_each_spec() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    first.kill();
    // The same container with another hash, as another version of this program creates it.
    let made = station.inspect(ULTRAMIC).unwrap();
    station.podman.delete(&format!("/containers/{ULTRAMIC}?force=true&timeout=0"));
    let labels = &mut made["Config"]["Labels"].clone();
    labels["io.silvasonic.config_hash"] = "feedfacefeedface".into();
    let environment: serde_json::Map<String, Value> = made["Config"]["Env"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|pair| pair.as_str()?.split_once('='))
        .filter(|(name, _)| name.starts_with("SILVASONIC_"))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let workspace = station.workspace().join("recorder/ultramic-384-evo-6a21");
    let request = json!({
        "name": ULTRAMIC, "image": made["ImageName"], "env": environment, "labels": labels, "privileged": true,
        "netns": { "nsmode": "bridge" }, "networks": { NETWORK: {} },
        "mounts": [{ "type": "bind", "source": workspace, "destination": "/app/workspace" }],
        "restart_policy": "on-failure", "restart_tries": 5,
        "resource_limits": { "memory": { "limit": 512 << 20 }, "cpu": { "quota": 100_000 } },
    });
    assert_eq!(station.podman.post("/containers/create", &request).0, 201);
    assert_eq!(station.podman.post(&format!("/containers/{ULTRAMIC}/start"), &Value::Null).0, 204);
    let before = marks(&station, &[ULTRAMIC]);

    let (proxy, controller) = proxied(&station);
    controller.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    let inspections = || proxy.requests_for("GET containers/ /json$");
    let at_first = eventually(SOON, "the comparison", || Some(inspections()).filter(|count| *count == 1));
    // A criterion is nothing that a Recorder uses: the spec is the same. Another rate is another spec.
    let edit = |path: &str, value: &str| {
        let set =
            format!("UPDATE microphone_profiles SET config = jsonb_set(config, '{{{path}}}', '{value}') WHERE slug = 'ultramic_384_evo'");
        station.postgres.exec(&set);
    };
    edit("audio,match,alsa_name_contains", "\"mic\"");
    two_cycles(&station);
    two_cycles(&station);
    assert_eq!((inspections(), marks(&station, &[ULTRAMIC])), (at_first, before.clone()));
    edit("audio,sample_rate", "192000");
    let line = controller.wait_log(&format!("{ULTRAMIC} started in"), SOON);
    assert!(line.ends_with("changed: audio.sample_rate 384000 -> 192000"), "{line}");
    assert_ne!(marks(&station, &[ULTRAMIC]), before);
}
