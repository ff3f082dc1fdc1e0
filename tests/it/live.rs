//! Nudge, heartbeat and health of the Controller, on a real Redis.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::start::ids;
use super::station::process::Ended;
use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const NUDGE: &str = "silvasonic:nudge";

/// Makes PostgreSQL log every statement with the name of its client.
pub(crate) fn log_statements(station: &Station) {
    station.postgres.exec("ALTER SYSTEM SET log_statement = 'all'");
    station.postgres.exec("ALTER SYSTEM SET log_line_prefix = '<%a>'");
    station.postgres.exec("SELECT pg_reload_conf()");
}

/// How often the Controller has read the desired state.
fn reads(station: &Station) -> usize {
    let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
    log.lines().filter(|line| line.starts_with("<silvasonic-controller>LOG:  execute") && line.contains("SELECT kind, key")).count()
}

/// A Controller whose tick is so slow that only nudges make it look.
fn slow(station: &Station) -> Controller {
    log_statements(station);
    let controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "60")]);
    eventually(SOON, "the subscription", || (station.redis.subscribers(NUDGE) == 1).then_some(()));
    // One at the start, and one because nudges may have been missed before the subscription, unless they coincide.
    let (mut seen, mut since) = (0, Instant::now());
    eventually(SOON, "the end of the first reads", || {
        let now = reads(station);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        (seen > 0 && since.elapsed() > Duration::from_secs(1)).then_some(())
    });
    controller
}

#[test]
fn a_nudge_starts_a_cycle_and_other_words_do_not() {
    let station = Station::up();
    let _controller = slow(&station);
    let before = reads(&station);
    for word in ["x", "", "reconcile now", "RECONCILE"] {
        station.redis.publish(NUDGE, word);
    }
    assert_eq!(station.redis.publish(NUDGE, "reconcile"), 1);
    eventually(SOON, "a read", || (reads(&station) > before).then_some(()));
    // Had the other words counted, theirs would have come first.
    assert_eq!(reads(&station), before + 1);
    // And the whole chain: a microphone is plugged in, a nudge, and it records long before the tick.
    station.tree.set(&[Card::ultramic()]);
    station.redis.publish(NUDGE, "reconcile");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
}

#[test]
fn ten_thousand_nudges_are_a_handful_of_cycles() {
    let station = Station::up();
    let _controller = slow(&station);
    let before = reads(&station);
    let mut flood = redis::pipe();
    for _ in 0..10_000 {
        flood.cmd("PUBLISH").arg(NUDGE).arg("reconcile").ignore();
    }
    flood.query::<()>(&mut station.redis.connection()).unwrap();
    eventually(SOON, "a read", || (reads(&station) > before).then_some(()));
    // The last nudge of the flood still counts: a microphone that came just before it is found.
    station.tree.set(&[Card::ultramic()]);
    station.redis.publish(NUDGE, "reconcile");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let cycles = reads(&station) - before;
    assert!(cycles <= 12, "{cycles} reads");
}

#[test]
fn a_redis_that_is_away_frozen_or_full_delays_no_cycle() {
    let mut station = Station::plan().without_redis().up();
    log_statements(&station);
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    controller.wait_log("cannot receive nudges from", SOON);
    let ten_cycles = |station: &Station| {
        let so_far = reads(station);
        eventually(SOON, "ten cycles", || (reads(station) >= so_far + 10).then_some(()));
    };
    station.redis.start();
    eventually(SOON, "the subscription", || (station.redis.subscribers(NUDGE) == 1).then_some(()));
    controller.wait_log("receiving nudges again", SOON);
    station.redis.pause();
    ten_cycles(&station);
    station.redis.resume();
    station.redis.stop();
    ten_cycles(&station);
    station.redis.start();
    eventually(Duration::from_secs(40), "the subscription again", || (station.redis.subscribers(NUDGE) == 1).then_some(()));
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").exec(&mut station.redis.connection()).unwrap();
    ten_cycles(&station);
    eventually(SOON, "the refusal on the board", || {
        let (_, health) = controller.get("/healthy")?;
        (health["components"]["redis"]["healthy"] == false).then_some(())
    });
    assert_eq!(ids(&station), before);
}

#[test]
fn the_heartbeat_tells_how_station_and_host_are() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let heartbeats = station.redis.listen("silvasonic:status");
    let mut controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let next = |wanted: &dyn Fn(&Value) -> bool| {
        eventually(SOON, "such a heartbeat", || {
            let heartbeat: Value = serde_json::from_str(&heartbeats.recv_timeout(SOON).ok()?).unwrap();
            (heartbeat["service"] == "controller" && wanted(&heartbeat)).then_some(heartbeat)
        })
    };
    let well = |heartbeat: &Value| {
        let is_well = |component: &str| heartbeat["health"]["components"][component]["healthy"] == true;
        heartbeat["health"]["status"] == "ok" && is_well("containers") && is_well("workspace")
    };
    let heartbeat = next(&|heartbeat| heartbeat["activity"] == "idle" && well(heartbeat));
    assert_eq!(heartbeat["instance_id"], "controller");
    assert!(heartbeat["timestamp"].as_f64().unwrap() > 1.7e9);
    let components = heartbeat["health"]["components"].as_object().unwrap();
    assert_eq!(
        components.keys().collect::<Vec<_>>(),
        ["capture", "containers", "controller", "database", "hardware", "lock", "podman", "redis", "workspace"]
    );
    for (name, component) in components {
        assert!(
            component["healthy"] == true && component["details"].is_string() && component["required"].is_boolean(),
            "{name}: {component}"
        );
    }
    let kept: Value = serde_json::from_str(&station.redis.get("silvasonic:status:controller").unwrap()).unwrap();
    assert_eq!(kept["service"], "controller");
    assert!((1..=30).contains(&station.redis.ttl("silvasonic:status:controller")));

    let (own, host) = (&heartbeat["meta"]["resources"], &heartbeat["meta"]["host_resources"]);
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {heartbeat}"));
    assert!((1.0..100.0).contains(&number(&own["memory_mb"])) && (4.0..40.0).contains(&number(&own["num_threads"])), "{own}");
    assert!((0.0..=800.0).contains(&number(&own["cpu_percent"])) && (0.0..=100.0).contains(&number(&host["cpu_percent"])));
    let said =
        |program: &str, arguments: &[&str]| String::from_utf8(Command::new(program).args(arguments).output().unwrap().stdout).unwrap();
    assert_eq!(number(&host["cpu_count"]), said("nproc", &["--all"]).trim().parse::<f64>().unwrap());
    let free = said("free", &["-m"]);
    let memory: Vec<f64> = free.lines().nth(1).unwrap().split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    assert!((number(&host["memory_total_mb"]) - memory[0]).abs() <= 1.0, "{host} {free}");
    // `free` counts available memory last; other tests run meanwhile.
    assert!((number(&host["memory_used_mb"]) - (memory[0] - memory[5])).abs() <= 0.1 * memory[0], "{host} {free}");
    let df = said("df", &["-k", "--output=size,used,pcent", station.workspace().to_str().unwrap()]);
    let disk: Vec<f64> = df.lines().nth(1).unwrap().split_whitespace().map(|word| word.trim_end_matches('%').parse().unwrap()).collect();
    let gib = |kib: f64| kib / 1024.0 / 1024.0;
    assert!((number(&host["storage_total_gb"]) - gib(disk[0])).abs() <= 0.1, "{host} {df}");
    assert!((number(&host["storage_used_gb"]) - gib(disk[1])).abs() <= 2.0, "{host} {df}");
    assert!((number(&host["storage_percent"]) - disk[2]).abs() <= 2.0, "{host} {df}");

    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(SOON), 0);
    next(&|heartbeat| heartbeat["activity"] == "stopping");
}

#[test]
fn health_names_the_component_at_fault() {
    let mut station = Station::up();
    let controller = station.controller();
    let health = |status: u16| {
        eventually(SOON, &format!("health {status}"), || {
            controller.get("/healthy").filter(|(found, _)| *found == status).map(|(_, health)| health)
        })
    };
    assert_eq!(health(200)["status"], "ok");
    station.postgres.stop();
    let ill = health(503);
    assert_eq!(ill["components"]["database"]["healthy"], false);
    assert_eq!(ill["components"]["podman"]["healthy"], true);
    station.postgres.start();
    health(200);
    station.podman.stop_api();
    // The next request notices it.
    station.redis.publish("silvasonic:nudge", "reconcile");
    assert_eq!(health(503)["components"]["podman"]["healthy"], false);
    station.podman.start_api();
    health(200);
    assert_eq!(controller.get("/other").unwrap().0, 404);
}

#[test]
fn a_wedged_main_loop_is_ill_after_a_minute() {
    let station = Station::plan().without_podman().without_redis().up();
    let controller = station.controller();
    eventually(SOON, "health", || controller.get("/healthy"));
    // Without -f, the main thread is the only one that is held: at its next wait for an event.
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e", "trace=futex", "-e", "inject=futex:delay_enter=120000000", "-p"]);
    strace.arg(controller.id().to_string());
    let _strace = Ended::spawn(strace);
    let health = |live: bool| {
        eventually(Duration::from_secs(80), &format!("a health that is live: {live}"), || {
            controller.get("/healthy").filter(|(status, health)| *status == 503 && health["live"] == live).map(|(_, health)| health)
        })
    };
    assert_eq!(health(true)["components"]["controller"]["healthy"], true);
    let health = health(false);
    assert_eq!(health["components"]["controller"]["healthy"], false);
    assert!(health["components"]["controller"]["details"].as_str().unwrap().starts_with("no cycle completed for 6"), "{health}");
}

#[test]
fn the_logs_command_shows_lines_as_they_come() {
    let station = Station::plan().without_podman().up();
    let viewer = |arguments: &[&str]| {
        let mut command = station.controller_command(&[]);
        command.args(["logs"]).args(arguments);
        Controller::run(command)
    };
    let (all, severe, json) = (viewer(&[]), viewer(&["--level", "error", "--device", "a"]), viewer(&["--json"]));
    eventually(SOON, "three subscribers", || (station.redis.subscribers("silvasonic:logs") == 3).then_some(()));
    let line = |device: &str, level: &str, message: &str| {
        serde_json::json!({ "service": "recorder", "instance_id": device, "level": level, "message": message, "timestamp": "T" })
            .to_string()
    };
    for text in [line("a", "info", "one\u{7}"), line("b", "error", "two"), "nonsense".to_owned(), line("a", "error", "three")] {
        station.redis.publish("silvasonic:logs", &text);
    }
    severe.wait_log("three", SOON);
    assert_eq!(severe.log(), "T error    a: three");
    all.wait_log("three", SOON);
    assert_eq!(all.log(), "T info     a: one\\u{7}\nT error    b: two\nT error    a: three");
    json.wait_log("three", SOON);
    assert_eq!(json.log().lines().next().unwrap(), line("a", "info", "one\u{7}"));
}

#[test]
fn hostile_nudges_are_neither_obeyed_nor_kept() {
    let station = Station::up();
    let controller = slow(&station);
    eventually(SOON, "the subscription", || (station.redis.subscribers(NUDGE) == 1).then_some(()));
    let so_far = reads(&station);
    let mut redis = station.redis.connection();
    for payload in
        [vec![b'x'; 10 << 20], vec![0xff; 1 << 20], b"reconcile\0".to_vec(), b"RECONCILE".to_vec(), Vec::new(), vec![b'['; 100_000]]
    {
        redis::cmd("PUBLISH").arg(NUDGE).arg(payload).exec(&mut redis).unwrap();
    }
    // Served after all those, so they have been read.
    station.redis.publish(NUDGE, "reconcile");
    eventually(SOON, "one cycle", || (reads(&station) > so_far).then_some(()));
    assert!(reads(&station) <= so_far + 1);
    let peak = controller.status("VmHWM:");
    assert!(peak < 40 << 10, "{peak} KiB");
}
