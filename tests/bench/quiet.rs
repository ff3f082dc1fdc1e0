//! What a station costs on which nothing happens, and how soon a nudge is served.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use silvasonic_controller::config::Config;
use silvasonic_controller::database::connection::Connection;

use super::it::station::{Controller, Station, eventually};
use super::measure::{Used, activated_podman, databases, mebibytes, podman, postgres, redis, residence, since_boot, system_calls, watch};
use super::meter::Meter;
use super::table::{Check, Table};
use super::{SOON, Subject, microphones, seeded, seeded_in, setting, wait_running};

/// Longer than it takes a start to leave nothing behind: seeding, hashing, first heartbeats.
pub(crate) const SETTLE: Duration = Duration::from_secs(8);

/// What a station costs on which nothing happens.
pub(crate) fn quiet(table: &mut Table, subject: &Subject, count: u32) {
    let span = Duration::from_secs(setting("BENCH_QUIET_S").unwrap_or(if count == 5 { 600 } else { 20 }));
    let station = seeded();
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 100}' WHERE key = 'system'");
    station.tree.set(&microphones(count));
    let meter = Meter::new(station.dir().join("metered.sock"), station.podman.socket());
    let controller = subject.controller(&station, &[("SILVASONIC_CONTAINER_SOCKET", meter.path())]);
    wait_running(&station, count);
    std::thread::sleep(SETTLE);
    settle(&controller);
    settle_database(&station);

    let id = controller.id();
    let figure = |name: &str| format!("quiet, N={count}: {name}");
    let lsn = || station.postgres.value::<f64>("SELECT (pg_current_wal_lsn() - '0/0')::float8").unwrap();
    let (wal, asked) = (lsn(), meter.count());
    let (service, servers) = (podman(&station), databases(&station));
    let [own, service_with, servers_with] = watch([&[id], &service, &servers], span);
    let asked = (meter.count() - asked) as f64 / span.as_secs_f64() * 3600.0;
    let open = meter.open();
    let written = (lsn() - wal) / span.as_secs_f64() * 3600.0 / f64::from(1 << 20);
    table.add(figure("CPU of the Controller"), own.0, "% of a core").limit_if(count < 50, if count == 1 { 0.04 } else { 0.06 });
    table.add(figure("context switches of the Controller"), own.1, "/s").limit_if(count == 1, 4.0);
    table.add(figure("system calls of the Controller"), system_calls(&controller, 10), "/s").limit_if(count == 1, 20.0);
    table.add(figure("SQL statements"), statements(&station, Duration::from_secs(20)), "/s").limit_if(count == 5, 1.0);
    let limit = match count {
        1 => 4.3,
        5 => 5.5,
        _ => 9.0,
    };
    table.add(figure("resident memory"), mebibytes(id, "status", "VmRSS:"), "MiB").limit(limit);
    table.add(figure("proportional memory"), mebibytes(id, "smaps_rollup", "Pss:"), "MiB").limit_if(count == 5, 3.0);
    table.add(figure("open connections to Podman"), open as f64, "").limit(0.0);
    if span >= Duration::from_secs(600) {
        table.add(figure("requests to Podman"), asked, "/h").limit(60.0);
        // No refresh of `last_seen` falls into this time, so that what the hourly one writes is added.
        station.postgres.exec("CHECKPOINT");
        let before = lsn();
        refresh(&station);
        let refresh = (lsn() - before) / f64::from(1 << 20);
        table.add(figure("WAL written, with the hourly refresh of last_seen"), written + refresh, "MiB/h").limit(0.02);
    }
    // What the services use on their own is not caused by the Controller.
    drop(controller);
    std::thread::sleep(Duration::from_secs(2));
    let (service, servers) = (podman(&station), databases(&station));
    let [service_without, servers_without] = watch([&service, &servers], span.min(Duration::from_secs(60)));
    table.add(figure("CPU caused in Podman's service"), service_with.0 - service_without.0, "% of a core").limit_if(count == 5, 0.02);
    table.add(figure("CPU caused in PostgreSQL and Redis"), servers_with.0 - servers_without.0, "% of a core").limit_if(count == 5, 0.1);
}

/// What a station costs in an hour in which nothing happens, where Podman's service ends when nobody asks it anything. What
/// is measured in `QUIET_MINUTES` (20) counts for an hour. Containers are listed every ten minutes.
pub(crate) fn quiet_hour(table: &mut Table, subject: &Subject) {
    const COUNT: u32 = 5;
    let minutes: f64 = setting("QUIET_MINUTES").unwrap_or(20.0);
    let station = seeded_in(Station::plan().activated());
    station.tree.set(&microphones(COUNT));
    let meter = Meter::new(station.dir().join("metered.sock"), station.podman.socket());
    let controller = subject.controller(&station, &[("SILVASONIC_CONTAINER_SOCKET", meter.path())]);
    wait_running(&station, COUNT);
    std::thread::sleep(SETTLE * 2);
    settle(&controller);

    let (own, postgres, redis) = ([controller.id()], postgres(&station), redis(&station));
    let used = || [Used::of(&own), activated_podman(&station), Used::of(&postgres), Used::of(&redis)];
    let (before, asked, from, begun) = (used(), meter.count(), since_boot(), Instant::now());
    let (mut open, mut looks) = (0, 0);
    while begun.elapsed().as_secs_f64() < minutes * 60.0 {
        std::thread::sleep(Duration::from_millis(100));
        open += meter.open();
        looks += 1;
    }
    let (after, to) = (used(), since_boot());
    let requests = meter.requests().split_off(asked);
    show(&requests);

    let seconds = (to - from).as_secs_f64();
    let an_hour = |count: usize| count as f64 / seconds * 3600.0;
    let figure = |name: &str| format!("quiet hour, N={COUNT}, Podman on demand: {name}");
    let (resident, activations) = residence(&station, from, to);
    table.add(figure("time in which its service is resident"), resident * 100.0, "%").limit(1.0);
    table.add(figure("activations"), an_hour(activations), "/h");
    table.add(figure("requests to Podman"), an_hour(requests.len()), "/h").limit(60.0);
    table.add(figure("open connections to Podman, on average"), open as f64 / f64::from(looks), "");
    let sum = |all: &[Used]| all.iter().fold(Used::default(), |sum, one| sum + *one);
    for (who, parts, limit) in [
        ("the Controller", 0..1, None),
        ("Podman, with activations", 1..2, None),
        ("PostgreSQL", 2..3, None),
        ("Redis", 3..4, None),
        ("Controller and Podman", 0..2, Some(0.1)),
        ("all of it together", 0..4, None),
    ] {
        let (cpu, switches) = sum(&after[parts.clone()]).rate_since(sum(&before[parts]), seconds);
        let row = table.add(figure(&format!("CPU of {who}")), cpu, "% of a core");
        if let Some(limit) = limit {
            row.limit(limit);
        }
        table.add(figure(&format!("context switches of {who}")), switches, "/s");
    }
}

/// Prints how often each kind of request came.
fn show(requests: &[(SystemTime, String)]) {
    let mut kinds = BTreeMap::<String, usize>::new();
    for (_, line) in requests {
        let path = line.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" ");
        let parts = path.split('/').map(|part| if part.len() == 64 { "ID" } else { part });
        *kinds.entry(parts.collect::<Vec<_>>().join("/")).or_default() += 1;
    }
    kinds.iter().for_each(|(kind, count)| eprintln!("  {count} x {kind}"));
}

/// What can be counted on a quiet station, and is the same on each machine and under any load.
pub(crate) fn counts(table: &mut Table, subject: &Subject) {
    if subject.is_peer() {
        return; // What it reads cannot be told apart.
    }
    const COUNT: u32 = 5;
    let station = seeded();
    // Its image is not there, which the Controller asks Podman about each minute.
    station.postgres.exec("UPDATE managed_services SET enabled = false");
    station.tree.set(&microphones(COUNT));
    let metered = station.dir().join("metered");
    fs::create_dir(&metered).unwrap();
    let meter = Meter::new(metered.join("podman.sock"), station.podman.socket());
    let socket = format!(".s.PGSQL.{}", station.postgres.port());
    let database = Meter::new(metered.join(&socket), &station.postgres.socket_dir().join(&socket));
    let settings = [("SILVASONIC_CONTAINER_SOCKET", meter.path()), ("SILVASONIC_DB_HOST", metered.to_str().unwrap())];
    let controller = subject.controller(&station, &settings);
    wait_running(&station, COUNT);
    std::thread::sleep(SETTLE * 2);
    settle(&controller);

    let figure = |name: &str| format!("counts, N={COUNT}: {name}");
    // Long enough for the same number of heartbeats and lists of containers, wherever it begins.
    table.add(figure("system calls of the Controller"), system_calls(&controller, 30), "/s").check(Check::About(3.0));
    let threads = fs::read_dir(format!("/proc/{}/task", controller.id())).unwrap().count();
    table.add(figure("threads of the Controller"), threads as f64, "").check(Check::Same);
    table.add(figure("connections to PostgreSQL"), database.open() as f64, "").check(Check::Same);
    // Containers were listed at the start, and are again ten minutes later.
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let asked = meter.count();
    log_statements(&station, "all");
    let log = || fs::read_to_string(station.dir().join("postgres/log")).unwrap();
    let executed = |log: &str| log.lines().filter(|line| line.contains("LOG:  execute")).count();
    let reads = |log: &str| log.lines().filter(|line| line.contains("LOG:  execute") && line.contains("SELECT kind, key")).count();
    let some = reads(&log());
    eventually(SOON, "a read", || (reads(&log()) > some).then_some(()));
    let (before, bytes) = (log(), database.answered());
    std::thread::sleep(Duration::from_secs(54).saturating_sub(begun.elapsed()));
    let (after, answered) = (log(), database.answered() - bytes);
    let asked = meter.requests().split_off(asked);
    show(&asked);
    table.add(figure("open connections to Podman"), meter.open() as f64, "").limit(0.0).check(Check::Same);
    table.add(figure("requests to Podman in 54 s"), asked.len() as f64, "").check(Check::Same);
    let ticks = reads(&after) - reads(&before);
    table.add(figure("SQL statements a tick"), (executed(&after) - executed(&before)) as f64 / ticks as f64, "").check(Check::Same);
    table.add(figure("bytes from PostgreSQL a tick"), answered as f64 / ticks as f64, "B").check(Check::Ratio(1.05));
}

/// Refreshes `last_seen` of all microphones as the Controller does.
pub(crate) fn refresh(station: &Station) {
    let environment = station.environment();
    let read = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    let mut db = Connection::connect_for_command(&Config::read(read).unwrap().database).unwrap();
    db.touch(&station.postgres.query("SELECT name FROM devices", &[]).iter().map(|row| row.get(0)).collect::<Vec<_>>()).unwrap();
}

/// The thread that hashes the default password is gone, so that what threads used can be added up.
pub(crate) fn settle(controller: &Controller) {
    let threads = || fs::read_dir(format!("/proc/{}/task", controller.id())).unwrap().flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    eventually(SOON, "no more hashing", || (!threads().any(|task| name(task).trim() == "bcrypt")).then_some(()));
}

/// PostgreSQL writes nothing of its own any more. Else its look at the new tables, a minute later, would count as the
/// Controller's writing. Whole pages are written as on a real station.
pub(crate) fn settle_database(station: &Station) {
    for setting in ["autovacuum = off", "full_page_writes = on"] {
        station.postgres.exec(&format!("ALTER SYSTEM SET {setting}"));
    }
    station.postgres.exec("SELECT pg_reload_conf()");
    station.postgres.exec("VACUUM ANALYZE");
}

/// Statements a second, by PostgreSQL's own log, which is switched on for that long.
fn statements(station: &Station, span: Duration) -> f64 {
    log_statements(station, "all");
    let count = || {
        let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
        log.lines().filter(|line| line.contains("LOG:  execute") || line.contains("LOG:  statement")).count()
    };
    // The first line that this connection's backend writes shows that the setting has arrived.
    let first = count();
    eventually(SOON, "a statement", || (count() > first).then_some(()));
    let (before, begun) = (count(), Instant::now());
    std::thread::sleep(span);
    let rate = (count() - before) as f64 / begun.elapsed().as_secs_f64();
    log_statements(station, "none");
    rate
}

fn log_statements(station: &Station, which: &str) {
    for setting in [format!("log_statement = '{which}'"), "log_line_prefix = '%n '".to_owned()] {
        station.postgres.exec(&format!("ALTER SYSTEM SET {setting}"));
    }
    station.postgres.exec("SELECT pg_reload_conf()");
}

/// From PUBLISH to the query, by the clock of PostgreSQL's log.
pub(crate) fn nudge(table: &mut Table, subject: &Subject, times: usize) {
    if subject.is_peer() {
        return; // It does not read the database by one statement that could be told.
    }
    let station = seeded();
    log_statements(&station, "all");
    let controller = subject.controller(&station, &[("SILVASONIC_RECONCILE_INTERVAL_S", "60")]);
    eventually(SOON, "the subscription", || (station.redis.subscribers("silvasonic:nudge") == 1).then_some(()));
    let reads = || -> Vec<f64> {
        let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
        let lines = log.lines().filter(|line| line.contains("LOG:  execute s"));
        lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
    };
    let mut took: Vec<f64> = (0..times)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(1100));
            let before = reads().len();
            let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
            station.redis.publish("silvasonic:nudge", "reconcile");
            (eventually(SOON, "a read", || reads().get(before).copied()) - now) * 1000.0
        })
        .collect();
    took.sort_by(f64::total_cmp);
    table.add(format!("nudge -> SQL query, median of {times}"), took[took.len() / 2], "ms").limit(5.0);
    table.add(format!("nudge -> SQL query, longest of {times}"), took[took.len() - 1], "ms");
    drop(controller);
}
