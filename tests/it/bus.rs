//! The bus against a real Redis: order, loss and a server that hangs.

use super::station::{Station, eventually};
use silvasonic_controller::redis::publisher::Publisher;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(30);

fn redis_only() -> Station {
    Station::plan().without_postgres().without_podman().up()
}

fn connected(bus: &Publisher) {
    eventually(SOON, "the bus is connected", || bus.state().ok());
}

#[test]
fn log_lines_arrive_once_and_in_order() {
    let station = redis_only();
    let bus = Publisher::start(&station.redis.url(), "controller").unwrap();
    connected(&bus);
    let lines = station.redis.listen("silvasonic:logs");
    let expected: Vec<String> = (0..1000).map(|number| format!("{{\"message\":\"{number} é\"}}")).collect();
    expected.iter().for_each(|line| bus.log_line(line.clone()));
    assert!(bus.finish("{}".to_owned(), TTL, Instant::now() + SOON));
    let received: Vec<String> = expected.iter().map(|_| lines.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(received, expected);
    assert!(lines.try_recv().is_err());
    assert_eq!(station.redis.get("silvasonic:status:controller").as_deref(), Some("{}"));
    assert!((1..=30).contains(&station.redis.ttl("silvasonic:status:controller")));
}

#[test]
fn a_hanging_redis_is_noticed_and_holds_nobody_up() {
    let mut station = redis_only();
    let bus = Publisher::start(&station.redis.url(), "controller").unwrap();
    connected(&bus);
    station.redis.pause();
    let start = Instant::now();
    for number in 0..20_000 {
        bus.log_line(number.to_string());
        bus.heartbeat(number.to_string(), TTL);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let why = eventually(SOON, "the bus notices", || bus.state().err());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(why, "no answer in time");

    station.redis.resume();
    connected(&bus);
    let last =
        eventually(SOON, "the newest heartbeat", || station.redis.get("silvasonic:status:controller").filter(|text| text == "19999"));
    assert_eq!(last, "19999");

    station.redis.pause();
    let start = Instant::now();
    assert!(!bus.finish("{}".to_owned(), TTL, start + Duration::from_millis(300)));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn a_redis_that_refuses_keeps_its_connection_and_gets_the_next() {
    let station = redis_only();
    let bus = Publisher::start(&station.redis.url(), "controller").unwrap();
    connected(&bus);
    let set = |name: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec(&mut station.redis.connection()).unwrap();
    };
    set("maxmemory", "1");
    let heartbeats = station.redis.listen("silvasonic:status");
    bus.heartbeat("full".to_owned(), TTL);
    let why = eventually(SOON, "the refusal", || bus.state().err());
    assert!(why.contains("OOM"), "{why}");
    // published all the same
    assert_eq!(heartbeats.recv_timeout(SOON).unwrap(), "full");
    set("maxmemory", "0");
    bus.heartbeat("fine".to_owned(), TTL);
    connected(&bus);
    assert_eq!(station.redis.get("silvasonic:status:controller").as_deref(), Some("fine"));
}
