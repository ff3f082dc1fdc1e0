//! Connections to PostgreSQL, Redis and Podman that are slow or end anywhere, and answers that are repeated, exchanged or
//! nonsense: running Recorders are left alone, and each service is used again at once when its connections are sound.

use std::fs;
use std::time::{Duration, Instant};

use super::station::Disturbance::{Cut, Delay, Drip, Endless, Fake, FakeEnd, HalfClose, Repeat, Reset, Shift};
use super::station::{Address, Controller, Disturbance, Relay, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
/// How soon a service is used again …
const AGAIN: Duration = Duration::from_secs(5);
/// … and all Recorders are as they should be: Podman takes its time on a busy machine.
const CAUGHT_UP: Duration = Duration::from_secs(10);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";
/// Longer than any deadline.
const NEVER: Duration = Duration::from_secs(60);

/// What shows that a disturbance has had its effect.
enum Effect {
    /// So many pieces of answers were disturbed, whether that is noticed or not.
    Disturbed(usize),
    /// The service is reported as unhealthy, with this text.
    Unwell(&'static str),
}
use Effect::{Disturbed, Unwell};

struct Service {
    /// In health reports.
    component: &'static str,
    relay: Relay,
    settings: Vec<(&'static str, String)>,
}

fn path(path: &std::path::Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn postgres_over_unix(station: &Station) -> Service {
    let (folder, port) = (station.dir().join("relayed"), station.postgres.port());
    fs::create_dir(&folder).unwrap();
    let name = format!(".s.PGSQL.{port}");
    let target = Address::Unix(station.postgres.socket_dir().join(&name));
    let relay = Relay::new(Address::Unix(folder.join(name)), target);
    Service { component: "database", relay, settings: vec![("SILVASONIC_DB_HOST", path(&folder))] }
}

fn postgres_over_tcp(station: &Station) -> Service {
    let relay = Relay::new(Address::Tcp(0), Address::Tcp(station.postgres.port()));
    let settings = vec![("SILVASONIC_DB_HOST", "127.0.0.1".to_owned()), ("SILVASONIC_DB_PORT", relay.port().to_string())];
    Service { component: "database", relay, settings }
}

fn redis(station: &Station) -> Service {
    let relay = Relay::new(Address::Tcp(0), Address::Tcp(station.redis.port()));
    let settings = vec![("SILVASONIC_REDIS_URL", format!("redis://127.0.0.1:{}/0", relay.port()))];
    Service { component: "redis", relay, settings }
}

fn podman(station: &Station) -> Service {
    let socket = station.dir().join("relayed.sock");
    let relay = Relay::new(Address::Unix(socket.clone()), Address::Unix(station.podman.socket().to_owned()));
    Service { component: "podman", relay, settings: vec![("SILVASONIC_CONTAINER_SOCKET", path(&socket))] }
}

/// Health of a component: whether it is well, and its details.
fn health(controller: &Controller, component: &str) -> (bool, String) {
    let (_, health) = controller.get("/healthy").expect("/healthy answers");
    let component = &health["components"][component];
    (component["healthy"] == true, component["details"].as_str().unwrap_or_default().to_owned())
}

/// Numbers of threads and descriptors of the Controller.
fn held(controller: &Controller) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", controller.id())).unwrap().count();
    (count("task"), count("fd"))
}

/// Writes each device that is set offline into a table.
const NOTE_OFFLINE: &str = "CREATE TABLE set_offline (name TEXT);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO set_offline VALUES (NEW.name); RETURN NEW; END $$;
    CREATE TRIGGER note BEFORE UPDATE ON devices FOR EACH ROW WHEN (NEW.status = 'offline') EXECUTE FUNCTION note()";

/// Disturbs the connections to a service in each of these ways, one after the other. Meanwhile a second microphone is
/// plugged in or unplugged, which must take effect when the disturbance ends at the latest.
fn endures(service: fn(&Station) -> Service, table: Vec<(Disturbance, Effect)>) {
    let station = Station::up();
    let Service { component, relay, settings } = service(&station);
    let both = [Card::ultramic(), Card::rode().index(1)];
    station.tree.set(&both);
    let mut overrides: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // So that each effect shows soon.
    overrides.extend([
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.2"),
        ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.5"),
        ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1"),
    ]);
    let begun = std::time::SystemTime::now();
    let mut controller = station.controller_with(&overrides);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    controller.wait_log("seeded user", SOON);
    eventually(SOON, "health 200", || controller.get("/healthy").filter(|(status, _)| *status == 200));
    station.postgres.exec(NOTE_OFFLINE);
    let mark = station.podman.mark(ULTRAMIC);
    let before = held(&controller);
    let rode = || station.postgres.value::<String>("SELECT status FROM devices WHERE name LIKE '19f7%'").unwrap();
    let heartbeat = || station.heartbeat().and_then(|heartbeat| heartbeat["timestamp"].as_f64());

    for (number, (disturbance, effect)) in table.into_iter().enumerate() {
        let name = format!("{component} {number}, {}", format!("{disturbance:?}").chars().take(40).collect::<String>());
        relay.set(disturbance);
        let plugged = number % 2 == 1;
        station.tree.set(if plugged { &both } else { &both[..1] });
        let set = Instant::now();
        eventually(SOON, &format!("an effect of {name}"), || {
            let (well, details) = health(&controller, component);
            match effect {
                Disturbed(count) => relay.disturbed() >= count,
                Unwell(text) => !well && details.contains(text),
            }
            .then_some(())
        });
        assert_eq!(station.podman.mark(ULTRAMIC), mark, "during {name}");
        let during = held(&controller);
        assert!(during.0 <= before.0 + 4 && during.1 <= before.1 + 12, "{before:?}, {during:?} during {name}");

        relay.clear();
        let cleared = Instant::now();
        let last = heartbeat();
        eventually(AGAIN, &format!("{component} is used again after {name}"), || {
            health(&controller, component).0.then_some(()).filter(|()| component != "redis" || heartbeat() > last)
        });
        let used = cleared.elapsed();
        let recorders: &[&str] = if plugged { &[ULTRAMIC, RODE] } else { &[ULTRAMIC] };
        station.podman.wait_running(CAUGHT_UP, recorders);
        let status = if plugged { "online" } else { "offline" };
        eventually(AGAIN, &format!("{status} after {name}"), || (rode() == status).then_some(()));
        println!("{name}: effect after {:?}, used again after {used:?}, caught up after {:?}", cleared - set, cleared.elapsed());
        assert_eq!(station.podman.mark(ULTRAMIC), mark, "after {name}");
        assert_eq!(controller.exit_code(), None);
    }

    let actions: Vec<String> =
        station.podman.events(begun).into_iter().filter(|event| event.device.starts_with("0869")).map(|event| event.action).collect();
    assert!(actions.iter().all(|action| ["create", "init", "start", "attach"].contains(&action.as_str())), "{actions:?}");
    let offline = station.postgres.value::<i64>("SELECT count(*) FROM set_offline WHERE name LIKE '0869%'");
    assert_eq!(offline, Some(0));
    let after = eventually(SOON, "no thread left", || Some(held(&controller)).filter(|held| held.0 <= before.0 + 1));
    assert!(after.1 <= before.1 + 4, "{before:?}, {after:?}");
    let peak = controller.status("VmHWM:");
    println!("{component}: {before:?}, {after:?}, {peak} KiB");
    assert!(peak < 40 << 10, "{peak} KiB");
    assert_eq!(controller.count_log("bug in thread"), 0);
    // A server that hangs up again and again is asked ever more rarely.
    eventually(Duration::from_secs(35), "nudges are received", || (station.redis.subscribers("silvasonic:nudge") == 1).then_some(()));
}

fn fast() -> Disturbance {
    Drip(Duration::from_micros(20))
}

fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    bytes.as_ref().to_vec()
}

/// An answer of Podman.
fn http(status: &str, body: &str) -> Disturbance {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    FakeEnd(text(format!("{head}\r\n\r\n{body}")))
}

#[test]
fn postgresql_over_a_unix_socket() {
    let table = vec![
        (fast(), Disturbed(2)),
        (Cut(3), Unwell("")),
        (Cut(700), Unwell("")),
        (Delay(NEVER), Unwell("does not respond")),
        (Repeat, Disturbed(3)),
        (Shift, Disturbed(4)),
        (HalfClose(20), Unwell("")),
        (Fake(text("HTTP/1.1 400 Bad Request\r\n\r\n")), Unwell("")),
    ];
    endures(postgres_over_unix, table);
}

#[test]
fn postgresql_over_tcp() {
    let table = vec![
        (Drip(Duration::from_millis(20)), Unwell("does not respond")),
        (Cut(0), Unwell("")),
        (Cut(40), Unwell("")),
        (Reset(0), Unwell("reset")),
        (Reset(30), Unwell("reset")),
        (HalfClose(0), Unwell("")),
        (Shift, Disturbed(6)),
        (Fake(text(b"E\0\0\0\x1fSFATAL\0C57P03\0Mwait\n\x1b[31m\0\0\0")), Unwell("")),
        (Fake(text(b"R\0\0\0\x04\0\xff")), Unwell("")),
    ];
    endures(postgres_over_tcp, table);
}

#[test]
fn redis_with_broken_answers() {
    let table = vec![
        (fast(), Disturbed(3)),
        (Drip(Duration::from_millis(400)), Unwell("no answer in time")),
        (Cut(0), Unwell("")),
        (Cut(2), Unwell("")),
        (Cut(7), Unwell("")),
        (Delay(NEVER), Unwell("no answer in time")),
        (Reset(0), Unwell("reset")),
        (Reset(3), Unwell("reset")),
        (HalfClose(0), Unwell("")),
    ];
    endures(redis, table);
}

#[test]
fn redis_with_other_answers() {
    let table = vec![
        (Repeat, Disturbed(3)),
        (Shift, Disturbed(3)),
        (Fake(text("HTTP/1.1 400 Bad Request\r\n\r\n")), Unwell("")),
        (Fake(text("-LOADING \x1b[31m\rloading\r\n")), Unwell("")),
        (Fake(text("*1\r\n".repeat(99))), Unwell("limits")),
        (Endless(text("$99999999999\r\n"), vec![b'x'; 1 << 16]), Unwell("")),
    ];
    endures(redis, table);
}

#[test]
fn podman_with_broken_answers() {
    let table = vec![
        (fast(), Disturbed(2)),
        (Drip(Duration::from_millis(20)), Unwell("no answer from Podman within")),
        (Cut(0), Unwell("")),
        (Cut(9), Unwell("")),
        (Cut(180), Unwell("")),
        (Cut(500), Unwell("")),
        (Delay(NEVER), Unwell("no answer from Podman within 5 s")),
        (Repeat, Disturbed(3)),
        // Not `Shift`: each request has a connection of its own, so that no answer can be that to another one.
        (HalfClose(0), Unwell("")),
        (HalfClose(100), Unwell("")),
    ];
    endures(podman, table);
}

#[test]
fn podman_with_other_answers() {
    let begin = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let unusable = "unusable answer from Podman";
    let short = format!("{begin}Content-Length: 9000\r\n\r\n[{{\"Id\":");
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let table = vec![
        (Fake(text(&short)), Unwell("no answer from Podman within")),
        (FakeEnd(text(&short)), Unwell(unusable)),
        (FakeEnd(text("\u{1}\u{2}\u{3} no HTTP at all\r\n\r\n")), Unwell(unusable)),
        (http("200 OK", r#"[{"Id": 7}]"#), Unwell(unusable)),
        (http("200 OK", &nested), Unwell(unusable)),
        (Fake(text(format!("{begin}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"))), Unwell(unusable)),
        (Endless(text(format!("{begin}\r\n")), vec![b'['; 1 << 16]), Unwell(unusable)),
        (
            http("500 Internal Server Error", r#"{"cause":"x","message":"everything is broken","response":500}"#),
            Unwell("Podman answered 500: everything is broken"),
        ),
    ];
    endures(podman, table);
}
