//! A Redis that refuses rights, closes idle connections, is full, or is no Redis at all.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use serde_json::Value;
use silvasonic_controller::event::Event;
use silvasonic_controller::redis::nudge;
use silvasonic_controller::redis::publisher::Publisher;

use super::station::{Address, Controller, Disturbance, Relay, Station, eventually, throughout};

const SOON: Duration = Duration::from_secs(15);
const TTL: Duration = Duration::from_secs(30);
const NUDGE: &str = "silvasonic:nudge";

fn redis_only() -> Station {
    Station::plan().without_postgres().without_podman().up()
}

fn run(station: &Station, command: &[&str]) {
    redis::cmd(command[0]).arg(&command[1..]).exec(&mut station.redis.connection()).unwrap();
}

/// The URL of a user with these rights.
fn user(station: &Station, rights: &[&str]) -> String {
    run(station, &[&["ACL", "SETUSER", "station", "reset", "on", ">secret"], rights].concat());
    station.redis.url().replace("redis://", "redis://station:secret@")
}

#[test]
fn a_refused_subscription_is_reported_and_tried_again() {
    let station = redis_only();
    let url = user(&station, &["~*", "+@all", "resetchannels", "&silvasonic:status", "&silvasonic:logs"]);
    let controller = station.controller_with(&[("SILVASONIC_REDIS_URL", &url)]);
    let line = controller.wait_log("cannot receive nudges from redis://***@", SOON);
    assert!(line.contains("NOPERM") && !line.contains("secret"), "{line}");
    run(&station, &["ACL", "SETUSER", "station", "&silvasonic:nudge"]);
    controller.wait_log("receiving nudges again after ", SOON);
    assert_eq!(station.redis.subscribers(NUDGE), 1);
    assert_eq!(controller.count_log("cannot receive nudges"), 1);
    // The server closes connections whose right was taken.
    run(&station, &["ACL", "SETUSER", "station", "resetchannels"]);
    eventually(SOON, "a second report", || (controller.count_log("cannot receive nudges") == 2).then_some(()));
}

#[test]
fn the_logs_command_says_why_it_shows_nothing() {
    let station = redis_only();
    let url = user(&station, &["~*", "+@all", "resetchannels"]);
    let mut command = station.controller_command(&[("SILVASONIC_REDIS_URL", &url)]);
    command.arg("logs");
    let viewer = Controller::run(command);
    let line = viewer.wait_log("cannot read log lines from redis://***@", SOON);
    assert!(line.contains("NOPERM") && !line.contains("secret"), "{line}");
    run(&station, &["ACL", "SETUSER", "station", "&silvasonic:logs"]);
    eventually(SOON, "the subscription", || (station.redis.subscribers("silvasonic:logs") == 1).then_some(()));
    station.redis.publish("silvasonic:logs", r#"{"message":"heard"}"#);
    viewer.wait_log("heard", SOON);
}

#[test]
fn check_reports_what_redis_refuses_and_changes_nothing() {
    let station = redis_only();
    let check = |url: &str| {
        let output = station.controller_command(&[("SILVASONIC_REDIS_URL", url)]).arg("check").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.contains("  redis ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let heartbeats = station.redis.listen("silvasonic:status");
    let lines = check(&station.redis.url());
    assert!(lines.len() == 1 && lines[0].starts_with("ok "), "{lines:?}");

    let url = user(&station, &["~*", "+@all", "resetchannels", "&silvasonic:logs", "-set"]);
    let lines = check(&url);
    for refused in ["SUBSCRIBE silvasonic:nudge", "SET silvasonic:status:controller", "PUBLISH silvasonic:status"] {
        let found = lines.iter().filter(|line| line.starts_with("warning ") && line.contains(&format!("{refused}: NOPERM")));
        assert_eq!(found.filter(|line| line.contains(" -> ") && line.contains("ACL SETUSER")).count(), 1, "{refused} in {lines:?}");
    }
    assert!(!lines.iter().any(|line| line.contains("silvasonic:logs:")), "{lines:?}");
    // the rights that are needed, and not the one for a transaction
    let url = user(&station, &["~silvasonic:*", "resetchannels", "&silvasonic:*", "+set", "+publish", "+subscribe", "+ping"]);
    let lines = check(&url);
    assert!(lines.len() == 1 && lines[0].starts_with("ok "), "{lines:?}");

    run(&station, &["CONFIG", "SET", "maxmemory", "1"]);
    let lines = check(&station.redis.url());
    assert!(lines.iter().any(|line| line.contains("SET silvasonic:status:controller: OOM") && line.contains("maxmemory")), "{lines:?}");
    run(&station, &["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(station.redis.get("silvasonic:status:controller"), None);
    assert!(heartbeats.try_recv().is_err());
    run(&station, &["ACL", "SETUSER", "default", ">x", "resetpass", ">x"]);
    let lines = check(&station.redis.url());
    assert!(lines.len() == 1 && lines[0].contains("NOAUTH") && lines[0].contains("password"), "{lines:?}");
    let lines = check(&station.redis.url().replace("redis://", "redis://:x@"));
    assert!(lines.len() == 1 && lines[0].starts_with("ok "), "{lines:?}");
}

#[test]
fn a_server_that_closes_idle_connections_loses_nothing_and_is_no_news() {
    let mut station = redis_only();
    let bus = Publisher::start(&station.redis.url(), "controller").unwrap();
    eventually(SOON, "the bus is connected", || bus.state().ok());
    for round in 0..4 {
        match round {
            0 | 3 => run(&station, &["CLIENT", "KILL", "TYPE", "normal"]),
            1 => {
                station.redis.stop();
                station.redis.start();
            }
            _ => {
                // Redis counts in whole seconds.
                run(&station, &["CONFIG", "SET", "timeout", "1"]);
                let clients =
                    || -> String { redis::cmd("CLIENT").arg(&["LIST", "TYPE", "normal"]).query(&mut station.redis.connection()).unwrap() };
                // The one that asks.
                eventually(SOON, "idle connections are closed", || (clients().lines().count() == 1).then_some(()));
            }
        }
        let (lines, heartbeats) = (station.redis.listen("silvasonic:logs"), station.redis.listen("silvasonic:status"));
        let payload = round.to_string();
        let received = if round == 3 {
            bus.heartbeat(payload.clone(), TTL);
            heartbeats
        } else {
            bus.log_line(payload.clone());
            lines
        };
        assert_eq!(received.recv_timeout(Duration::from_millis(900)), Ok(payload));
        assert_eq!(bus.state(), Ok(()));
    }
}

#[test]
fn the_log_of_the_controller_does_not_mention_connections_that_were_only_closed() {
    let mut station = redis_only();
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "4")]);
    let subscribed = |station: &Station| eventually(SOON, "the subscription", || (station.redis.subscribers(NUDGE) == 1).then_some(()));
    subscribed(&station);
    let next_heartbeat = |station: &Station, last: f64| {
        eventually(SOON, "a heartbeat", || {
            let heartbeat: Value = serde_json::from_str(&station.redis.get("silvasonic:status:controller")?).unwrap();
            heartbeat["timestamp"].as_f64().filter(|sent| *sent > last)
        })
    };
    let mut last = 0.0;
    for round in 0..4 {
        last = next_heartbeat(&station, last);
        match round {
            0 | 1 => run(&station, &["CLIENT", "KILL", "TYPE", "normal"]),
            // The subscription has lasted for some seconds.
            2 => run(&station, &["CLIENT", "KILL", "TYPE", "pubsub"]),
            _ => {
                last = next_heartbeat(&station, last);
                station.redis.stop();
                station.redis.start();
            }
        }
        subscribed(&station);
    }
    eventually(SOON, "a heartbeat after the restart", || station.redis.get("silvasonic:status:controller"));
    for text in ["Redis at ", "nudges"] {
        assert_eq!(controller.count_log(text), 0, "{}", controller.log());
    }
}

#[test]
fn a_refused_set_is_one_fault_until_set_works() {
    let station = redis_only();
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    let heartbeats = station.redis.listen("silvasonic:status");
    let healthy = || {
        let heartbeat: Value = serde_json::from_str(&heartbeats.recv_timeout(SOON).unwrap()).unwrap();
        heartbeat["health"]["components"]["redis"]["healthy"].as_bool().unwrap()
    };
    eventually(SOON, "a healthy Redis", || healthy().then_some(()));
    let faults: [(&[&str], &[&str], &str); 2] = [
        (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "OOM"),
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], "READONLY"),
    ];
    for (number, (set, reset, code)) in (1..).zip(faults) {
        run(&station, set);
        eventually(SOON, "an unhealthy Redis", || (!healthy()).then_some(()));
        let log = controller.log();
        let line = log.lines().rfind(|line| line.contains("refused SET: ")).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("[WARN]") && line.contains(code), "{line}");
        assert_eq!([(); 4].map(|()| healthy()), [false; 4]);
        assert_eq!(controller.count_log("Redis at "), 2 * number - 1, "{}", controller.log());
        run(&station, reset);
        eventually(SOON, "the end of the fault", || (controller.count_log("accepts SET again after ") == number).then_some(()));
        eventually(SOON, "a healthy Redis", || healthy().then_some(()));
        assert_eq!(controller.count_log("Redis at "), 2 * number, "{}", controller.log());
    }
}

/// A server that answers so, and its URL.
fn rogue(answer: Disturbance) -> (Relay, String) {
    // Nobody listens at this port, and nobody has to.
    let server = Relay::new(Address::Tcp(0), Address::Tcp(1));
    server.set(answer);
    let url = format!("redis://127.0.0.1:{}/0", server.port());
    (server, url)
}

#[test]
fn nested_replies_end_no_process() {
    let (_server, url) = rogue(Disturbance::Fake(["*1\r\n".repeat(99), ":1\r\n".to_owned()].concat().into_bytes()));
    let bus = Publisher::start(&url, "controller").unwrap();
    let (events, received) = sync_channel(1);
    let _nudges = nudge::start(&url, events).unwrap();
    eventually(SOON, "the fault", || bus.state().err().filter(|why| why.contains("limits")));
    assert!(received.recv_timeout(Duration::from_secs(1)).is_err());
}

#[test]
fn endless_strings_take_no_memory() {
    let mut subscribed = b"*3\r\n$9\r\nsubscribe\r\n$16\r\nsilvasonic:nudge\r\n:1\r\n".to_vec();
    subscribed.extend(b"*3\r\n$7\r\nmessage\r\n$16\r\nsilvasonic:nudge\r\n$99999999999\r\n");
    let servers = [b"$99999999999\r\n".to_vec(), subscribed].map(|begin| rogue(Disturbance::Endless(begin, vec![b'x'; 1 << 16])));
    let station = Station::plan().without_postgres().without_podman().without_redis().up();
    for (_, url) in &servers {
        let controller = station.controller_with(&[("SILVASONIC_REDIS_URL", url)]);
        throughout(Duration::from_secs(4), "the peak of memory is bounded", || controller.status("VmHWM:") < 60 << 10);
    }
}

#[test]
fn an_event_reaches_the_loop_after_a_long_message() {
    let station = redis_only();
    let (events, received) = sync_channel(8);
    let mut nudges = nudge::start(&station.redis.url(), events).unwrap();
    let mut served = || {
        assert!(matches!(received.recv_timeout(SOON).unwrap(), Event::Nudge));
        nudges.arrived();
        eventually(SOON, "the nudge", || nudges.take(Instant::now()).then_some(()));
    };
    served();
    run(&station, &["PUBLISH", NUDGE, &"x".repeat(10 << 20)]);
    run(&station, &["PUBLISH", NUDGE, "reconcile"]);
    served();
    assert_eq!(station.redis.subscribers(NUDGE), 1);
}
