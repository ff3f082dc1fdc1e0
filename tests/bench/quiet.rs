//! What a station costs on which nothing happens, and how soon a nudge is served.

use std::fs;
use std::time::{Duration, Instant};

use silvasonic_controller::config::Config;
use silvasonic_controller::database::connection::Connection;

use super::it::station::{Controller, Proxy, Station, eventually};
use super::measure::{databases, mebibytes, podman, system_calls, watch};
use super::table::Table;
use super::{SOON, Subject, microphones, seeded, wait_running};

/// Longer than it takes a start to leave nothing behind: seeding, hashing, first heartbeats.
const SETTLE: Duration = Duration::from_secs(8);

/// What a station costs on which nothing happens.
pub(crate) fn quiet(table: &mut Table, subject: &Subject, count: u32) {
    let seconds = std::env::var("BENCH_QUIET_S").ok().and_then(|text| text.parse().ok());
    let span = Duration::from_secs(seconds.unwrap_or(if count == 5 { 600 } else { 20 }));
    let station = seeded();
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 100}' WHERE key = 'system'");
    station.tree.set(&microphones(count));
    let controller = subject.controller(&station, &[]);
    wait_running(&station, count);
    std::thread::sleep(SETTLE);
    settle(&controller);
    // Else PostgreSQL's own look at the new tables, a minute later, would count as the Controller's writing. Whole pages
    // are written as on a real station.
    for setting in ["autovacuum = off", "full_page_writes = on"] {
        station.postgres.exec(&format!("ALTER SYSTEM SET {setting}"));
    }
    station.postgres.exec("SELECT pg_reload_conf()");
    station.postgres.exec("VACUUM ANALYZE");

    let id = controller.id();
    let figure = |name: &str| format!("quiet, N={count}: {name}");
    let lsn = || station.postgres.value::<f64>("SELECT (pg_current_wal_lsn() - '0/0')::float8").unwrap();
    let wal = lsn();
    let (service, servers) = (podman(&station), databases(&station));
    let [own, service_with, servers_with] = watch([&[id], &service, &servers], span);
    let written = (lsn() - wal) / span.as_secs_f64() * 3600.0 / f64::from(1 << 20);
    let limited = |table: &mut Table, name: &str, value: f64, unit: &'static str, limit: Option<f64>| match limit {
        Some(limit) => table.add_limited(figure(name), value, unit, limit),
        None => table.add(figure(name), value, unit),
    };
    let at = |count_of: u32, limit: f64| (count == count_of).then_some(limit);
    limited(table, "CPU of the Controller", own.0, "% of a core", at(5, 0.08));
    limited(table, "context switches of the Controller", own.1, "/s", at(1, 6.0));
    limited(table, "system calls of the Controller", system_calls(&controller, 10), "/s", at(1, 25.0));
    limited(table, "SQL statements", statements(&station, Duration::from_secs(20)), "/s", at(5, 1.0));
    let resident = if count == 1 {
        5.0
    } else if count == 5 {
        5.5
    } else {
        9.0
    };
    limited(table, "resident memory", mebibytes(id, "status", "VmRSS:"), "MiB", Some(resident));
    limited(table, "proportional memory", mebibytes(id, "smaps_rollup", "Pss:"), "MiB", at(5, 3.0));
    if span >= Duration::from_secs(600) {
        // No refresh of `last_seen` falls into this time, so that what the hourly one writes is added.
        station.postgres.exec("CHECKPOINT");
        let before = lsn();
        refresh(&station);
        let refresh = (lsn() - before) / f64::from(1 << 20);
        table.add_limited(figure("WAL written, with the hourly refresh of last_seen"), written + refresh, "MiB/h", 0.02);
    }
    // What the services use on their own is not caused by the Controller.
    drop(controller);
    std::thread::sleep(Duration::from_secs(2));
    let (service, servers) = (podman(&station), databases(&station));
    let [service_without, servers_without] = watch([&service, &servers], span.min(Duration::from_secs(60)));
    limited(table, "CPU caused in Podman's service", service_with.0 - service_without.0, "% of a core", at(5, 0.1));
    limited(table, "CPU caused in PostgreSQL and Redis", servers_with.0 - servers_without.0, "% of a core", at(5, 0.1));
    limited(table, "Podman requests", requests(&station, subject, count), "/s", at(5, 0.1));
}

/// Refreshes `last_seen` of all microphones as the Controller does.
fn refresh(station: &Station) {
    let environment = station.environment();
    let read = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    let mut db = Connection::connect_for_command(&Config::read(read).unwrap().database).unwrap();
    db.touch(&station.postgres.query("SELECT name FROM devices", &[]).iter().map(|row| row.get(0)).collect::<Vec<_>>()).unwrap();
}

/// Podman requests a second, counted on their way; the running Recorders are adopted.
fn requests(station: &Station, subject: &Subject, count: u32) -> f64 {
    let proxy = Proxy::new(station.dir().join("counted.sock"), station.podman.socket());
    let controller = subject.controller(station, &[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
    wait_running(station, count);
    // Longer than it takes to look at Podman a second time.
    std::thread::sleep(SETTLE * 2);
    let (before, begun) = (proxy.requests(), Instant::now());
    std::thread::sleep(Duration::from_secs(60));
    let rate = (proxy.requests() - before) as f64 / begun.elapsed().as_secs_f64();
    drop(controller);
    rate
}

/// The thread that hashes the default password is gone, so that what threads used can be added up.
fn settle(controller: &Controller) {
    let threads = || fs::read_dir(format!("/proc/{}/task", controller.id())).unwrap().flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    eventually(SOON, "no more hashing", || (!threads().any(|task| name(task).trim() == "bcrypt")).then_some(()));
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
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
            station.redis.publish("silvasonic:nudge", "reconcile");
            (eventually(SOON, "a read", || reads().get(before).copied()) - now) * 1000.0
        })
        .collect();
    took.sort_by(f64::total_cmp);
    table.add_limited(format!("nudge -> SQL query, median of {times}"), took[took.len() / 2], "ms", 5.0);
    table.add(format!("nudge -> SQL query, longest of {times}"), took[took.len() - 1], "ms");
    drop(controller);
}
