//! A PostgreSQL that is away, frozen, refuses, is read-only or locked: Recorders are left alone, known microphones start
//! all the same, and all is caught up with after it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::ends::Disk;
use super::station::{Controller, Station, eventually, throughout};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
/// How soon things happen that do not need the database, and all is as it should be once it is back: two seconds, and
/// Podman's own time.
const SERVED: Duration = Duration::from_secs(10);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

/// What goes wrong, what the log says of it, and how it ends.
struct Fault {
    told: &'static str,
    begin: fn(&mut Station) -> Option<postgres::Client>,
    end: fn(&mut Station),
}

fn setting(station: &Station, sql: &str) {
    station.postgres.exec(sql);
    station.postgres.exec("SELECT pg_reload_conf()");
}

const FAULTS: [Fault; 4] = [
    Fault {
        told: "cannot read PostgreSQL; using the last known state",
        begin: |station| {
            station.postgres.stop();
            None
        },
        end: |station| station.postgres.start(),
    },
    Fault {
        told: "PostgreSQL does not respond; using the last known state",
        begin: |station| {
            station.postgres.stop_hung();
            None
        },
        end: |station| station.postgres.resume(),
    },
    Fault {
        told: "cannot execute UPDATE in a read-only transaction",
        begin: |station| {
            setting(station, "ALTER SYSTEM SET default_transaction_read_only = on");
            None
        },
        end: |station| setting(station, "ALTER SYSTEM SET default_transaction_read_only = off"),
    },
    Fault {
        told: "canceling statement due to lock timeout",
        begin: |station| {
            let mut client = station.postgres.client();
            client.batch_execute("BEGIN; LOCK TABLE devices IN SHARE ROW EXCLUSIVE MODE").unwrap();
            Some(client)
        },
        end: |_| {},
    },
];

fn rode(station: &Station) -> Option<String> {
    station.postgres.value("SELECT status FROM devices WHERE name LIKE '19f7%'")
}

/// Two microphones that the database knows and that are recorded.
fn both_recorded(station: &Station) -> ([Card; 2], Controller) {
    let both = [Card::ultramic(), Card::rode().index(1)];
    station.tree.set(&both);
    let controller = station.controller_with(&[("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.5")]);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    controller.wait_log("seeded user", SOON);
    (both, controller)
}

#[test]
fn whatever_postgresql_does_known_microphones_are_recorded() {
    let mut station = Station::up();
    let (both, controller) = both_recorded(&station);
    let before = station.podman.mark(ULTRAMIC);
    for (number, fault) in FAULTS.iter().enumerate() {
        station.tree.set(&both[..1]);
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        eventually(SOON, "offline", || rode(&station).filter(|status| status == "offline"));
        let told = controller.count_log(fault.told);
        let held = (fault.begin)(&mut station);
        station.tree.set(&both);
        // Found within a tick, and written in vain, whatever the database does.
        station.podman.wait_running(SERVED, &[ULTRAMIC, RODE]);
        eventually(SOON, &format!("{:?} in the log", fault.told), || (controller.count_log(fault.told) > told).then_some(()));
        (fault.end)(&mut station);
        drop(held);
        let begun = Instant::now();
        eventually(SERVED, &format!("online in the database after fault {number}"), || rode(&station).filter(|status| status == "online"));
        println!("fault {number}: caught up after {:?}", begun.elapsed());
        station.postgres.exec("UPDATE devices SET enabled = FALSE WHERE name LIKE '19f7%'");
        station.podman.wait_running(SERVED, &[ULTRAMIC]);
        station.postgres.exec("UPDATE devices SET enabled = TRUE WHERE name LIKE '19f7%'");
        station.podman.wait_running(SERVED, &[ULTRAMIC, RODE]);
        assert_eq!(station.podman.mark(ULTRAMIC), before, "after fault {number}");
    }
    is_well(&controller);
}

/// How soon PostgreSQL is used again once it answers.
const AGAIN: Duration = Duration::from_secs(5);

/// Numbers of threads and descriptors of the Controller.
fn held(controller: &Controller) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", controller.id())).unwrap().count();
    (count("task"), count("fd"))
}

/// Waits for the line that says so, after `begin` made PostgreSQL answer again.
fn available_again(controller: &Controller, begin: impl FnOnce()) {
    let known = controller.count_log("PostgreSQL is available again");
    begin();
    let begun = Instant::now();
    eventually(AGAIN, "PostgreSQL is used again", || (controller.count_log("PostgreSQL is available again") > known).then_some(()));
    println!("used again after {:?}", begun.elapsed());
}

#[test]
fn a_postgresql_that_hangs_again_and_again_is_used_again_each_time() {
    for host in ["", "127.0.0.1"] {
        let station = Station::up();
        station.tree.set(&[Card::ultramic()]);
        let host = if host.is_empty() { station.postgres.socket_dir().to_str().unwrap() } else { host };
        let controller = station.controller_with(&[("SILVASONIC_DB_HOST", host)]);
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        controller.wait_log("seeded user", SOON);
        let before = held(&controller);
        let container = station.podman.mark(ULTRAMIC);
        // Longer than the deadlines, and between those for a log-in and a statement.
        for hang in [12, 4] {
            station.postgres.stop_hung();
            throughout(Duration::from_secs(hang), "threads and descriptors are bounded", || {
                let during = held(&controller);
                during.0 <= before.0 + 1 && during.1 <= before.1 + 4
            });
            available_again(&controller, || station.postgres.resume());
        }
        let after = eventually(SOON, "no thread left", || Some(held(&controller)).filter(|held| held.0 <= before.0));
        assert!(after.1 <= before.1 + 2, "{before:?}, {after:?}");
        station.postgres.exec("UPDATE devices SET enabled = FALSE");
        station.podman.wait_running(SERVED, &[] as &[&str]);
        station.postgres.exec("UPDATE devices SET enabled = TRUE");
        station.podman.wait_running(SERVED, &[ULTRAMIC]);
        assert_ne!(station.podman.mark(ULTRAMIC), container);
    }
}

#[test]
fn a_backend_that_hangs_alone_is_replaced_by_another_one() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    let backend = "SELECT pid FROM pg_stat_activity WHERE application_name = 'silvasonic-controller'";
    for _ in 0..4 {
        let pid =
            eventually(SOON, "a backend", || station.postgres.value::<i32>(&format!("{backend} ORDER BY backend_start DESC LIMIT 1")));
        let connected = controller.count_log("connected to PostgreSQL");
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::STOP).unwrap();
        eventually(SERVED, "another connection", || (controller.count_log("connected to PostgreSQL") > connected).then_some(()));
    }
    eventually(SOON, "available", || controller.get("/healthy").filter(|(status, _)| *status == 200));
    station.postgres.resume();
}

#[test]
fn a_server_that_accepts_and_never_answers_holds_nothing_up() {
    let mut station = Station::plan().without_postgres().up();
    station.tree.set(&[Card::ultramic()]);
    let silent = std::net::TcpListener::bind(("127.0.0.1", station.postgres.port())).unwrap();
    let controller = station.controller_with(&[("SILVASONIC_DB_HOST", "127.0.0.1")]);
    controller.wait_log("PostgreSQL does not respond", SOON);
    let before = held(&controller);
    throughout(Duration::from_secs(12), "threads and descriptors are bounded", || {
        let during = held(&controller);
        during.0 <= before.0 && during.1 <= before.1 + 4
    });
    drop(silent);
    available_again(&controller, || station.postgres.start());
    station.podman.wait_running(SOON, &[ULTRAMIC]);
}

#[test]
fn without_free_descriptors_the_program_waits_for_some() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let mut station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    let before = station.podman.mark(ULTRAMIC);
    let process = Pid::from_raw(controller.id() as i32);
    let limit = |current| Rlimit { current: Some(current), maximum: Some(1024) };
    // None of those that are open is closed, but no other is opened.
    prlimit(process, Resource::Nofile, limit(3)).unwrap();
    station.postgres.stop();
    controller.wait_log("free file descriptors are needed to connect", SOON);
    throughout(Duration::from_secs(5), "the Controller runs", || controller.exit_code().is_none());
    assert_eq!(controller.count_log("free file descriptors are needed to connect"), 1);
    station.postgres.start();
    // Enough for some of what a connection needs, but not for all.
    let open = fs::read_dir(format!("/proc/{}/fd", controller.id())).unwrap().count() as u64;
    for more in 0..20 {
        prlimit(process, Resource::Nofile, limit(open + more)).unwrap();
        throughout(Duration::from_millis(1100), "the Controller runs", || controller.exit_code().is_none());
        station.postgres.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'silvasonic-controller'");
    }
    prlimit(process, Resource::Nofile, limit(3)).unwrap();
    station.postgres.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'silvasonic-controller'");
    throughout(Duration::from_secs(2), "the Controller runs", || controller.exit_code().is_none());
    available_again(&controller, || {
        prlimit(process, Resource::Nofile, limit(1024)).unwrap();
    });
    is_well(&controller);
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    assert_eq!(controller.count_log("bug in thread"), 0);
}

#[test]
fn locked_rows_delay_no_other_row() {
    let station = Station::up();
    let controller = station.controller_with(&[("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.5")]);
    eventually(SOON, "the settings", || station.postgres.value::<i64>("SELECT 1::bigint FROM system_config WHERE key = 'system'"));
    station.postgres.exec("UPDATE system_config SET value = value || '{\"auto_enrollment\": false}' WHERE key = 'system'");
    let cards: Vec<Card> = (0..12).map(Card::numbered).collect();
    station.tree.set(&cards);
    let devices = |status: &str| station.postgres.value::<i64>(&format!("SELECT count(*) FROM devices WHERE status = '{status}'"));
    eventually(SOON, "twelve rows", || (devices("online") == Some(12)).then_some(()));
    station.postgres.exec("UPDATE devices SET enrollment_status = 'ignored'");
    station.postgres.exec("UPDATE system_config SET value = value || '{\"auto_enrollment\": true}' WHERE key = 'system'");
    station.tree.set(&[]);
    eventually(SOON, "twelve rows offline", || (devices("offline") == Some(12)).then_some(()));

    let mut client = station.postgres.client();
    client.batch_execute("BEGIN; SELECT name FROM devices FOR UPDATE").unwrap();
    let begun = Instant::now();
    let mut all = cards.clone();
    all.push(Card::rode().index(12).at("2-1"));
    station.tree.set(&all);
    eventually(Duration::from_secs(4), "the row of a new microphone", || rode(&station));
    println!("written after {:?}", begun.elapsed());
    station.podman.wait_running(SERVED, &["silvasonic-recorder-rode-nt-usb-p2d1"]);
    // A switch of the user takes effect meanwhile, and what cannot be written is reported.
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 0}' WHERE key = 'system'");
    station.podman.wait_running(SERVED, &[] as &[&str]);
    controller.wait_log("another client has locked its row; retrying", SOON);
    drop(client);
    eventually(Duration::from_secs(6), "thirteen rows online", || (devices("online") == Some(13)).then_some(()));
    let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
    assert_eq!(log.matches("lock timeout").count(), 0, "{log}");
}

#[test]
fn writes_that_are_refused_are_tried_ever_more_rarely() {
    let station = Station::up();
    station.postgres.exec("ALTER SYSTEM SET log_min_error_statement = error");
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller_with(&[("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.5")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    station.postgres.exec(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused %', clock_timestamp(); END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON devices FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    station.tree.set(&[Card::ultramic(), Card::rode().index(1), Card::generic(2, "1-4")]);
    let begun = Instant::now();
    let refused = || fs::read_to_string(station.dir().join("postgres/log")).unwrap().matches("ERROR:  refused").count();
    // Two rows, after 0, 1, 3, 7 and 15 s.
    eventually(Duration::from_secs(60), "ten refusals", || (refused() >= 10).then_some(()));
    assert!(begun.elapsed() > Duration::from_secs(13), "{:?}", begun.elapsed());
    // Each refusal has another text. The log says so three times for each row, whatever the text.
    assert!((2..=6).contains(&controller.count_log("cannot write device")), "{}", controller.log());
    station.postgres.exec("DROP TRIGGER refuse ON devices");
    eventually(Duration::from_secs(40), "both rows", || {
        (station.postgres.value::<i64>("SELECT count(*) FROM devices") == Some(3)).then_some(())
    });
}

#[test]
fn a_full_disk_of_the_database_stops_nobody() {
    let station = Station::up();
    let (both, controller) = both_recorded(&station);
    let before = station.podman.mark(ULTRAMIC);
    station.tree.set(&both[..1]);
    eventually(SOON, "offline", || rode(&station).filter(|status| status == "offline"));

    let tiny = station.dir().join("tiny");
    fs::create_dir(&tiny).unwrap();
    let owner = fs::metadata(station.dir().join("postgres/data")).unwrap();
    let _disk = Disk::mount(tiny.clone(), &format!("size=256k,uid={},gid={},mode=700", owner.uid(), owner.gid()));
    station.postgres.exec(&format!("CREATE TABLESPACE tiny LOCATION '{}'", tiny.display()));
    station.postgres.exec("ALTER TABLE devices SET TABLESPACE tiny");
    let filler = tiny.join("filler");
    assert!(fs::write(&filler, vec![0; 1 << 20]).is_err(), "a disk of 256 KiB takes more");
    // Whoever reads an old state keeps PostgreSQL from reusing the place of rows that have changed since.
    let mut reader = station.postgres.client();
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM devices").unwrap();
    let mut writer = station.postgres.client();
    let full = (0..10_000).find_map(|_| writer.batch_execute("UPDATE devices SET last_seen = now()").err());
    assert_eq!(full.and_then(|error| error.code().cloned()), Some(postgres::error::SqlState::DISK_FULL));

    station.tree.set(&both);
    station.podman.wait_running(SERVED, &[ULTRAMIC, RODE]);
    controller.wait_log("to the database: PostgreSQL reports: could not extend file", SOON);
    drop(reader);
    fs::remove_file(&filler).unwrap();
    eventually(SERVED, "online in the database", || rode(&station).filter(|status| status == "online"));
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    is_well(&controller);
    station.postgres.exec("ALTER TABLE devices SET TABLESPACE pg_default");
    station.postgres.exec("DROP TABLESPACE tiny");
}

fn is_well(controller: &Controller) {
    eventually(SOON, "health 200", || controller.get("/healthy").filter(|(status, _)| *status == 200));
}

#[test]
fn a_database_that_refuses_stops_nobody() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    // No superuser, as those are let in always.
    station.postgres.exec("CREATE ROLE station LOGIN PASSWORD 'station'; ALTER DATABASE silvasonic OWNER TO station");
    station.postgres.exec("GRANT ALL ON SCHEMA public TO station");
    let controller = station.controller_with(&[("POSTGRES_USER", "station"), ("POSTGRES_PASSWORD", "station")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = super::start::ids(&station);
    let end = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'station') ended";
    station.postgres.exec("ALTER ROLE station NOLOGIN");
    station.postgres.value::<i64>(end);
    let line = controller.wait_log("cannot read PostgreSQL; using the last known state", SOON);
    eventually(SOON, "the reason", || (controller.count_log("is not permitted to log in") > 0).then_some(()));
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    eventually(SOON, "a health check that says so", || controller.get("/healthy").filter(|(status, _)| *status == 503));
    assert_eq!(super::start::ids(&station), before, "{line}");
    station.postgres.exec("ALTER ROLE station LOGIN");
    station.podman.wait_running(SERVED, &[ULTRAMIC, RODE]);
    assert_eq!(super::start::ids(&station)[ULTRAMIC], before[ULTRAMIC]);
}
