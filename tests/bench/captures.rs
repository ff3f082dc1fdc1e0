//! What it costs to watch captures: the Controller's time for the reads, and what the ledger writes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::it::station::eventually;
use super::measure::watch;
use super::quiet::{SETTLE, refresh, settle, settle_database};
use super::table::Table;
use super::{SOON, Subject, microphones, seeded, setting, wait_running};

const COUNT: u32 = 5;
const RATE: f64 = 384_000.0;
/// In this time each open session is written once.
const UPDATE: Duration = Duration::from_secs(15 * 60);

/// Five microphones whose frames arrive, for `CAPTURES_S` seconds (900).
pub(crate) fn captures(table: &mut Table, subject: &Subject) {
    let span = Duration::from_secs(setting("CAPTURES_S").unwrap_or(UPDATE.as_secs()));
    let station = seeded();
    station.tree.set(&microphones(COUNT));
    let controller = subject.controller(&station, &[]);
    wait_running(&station, COUNT);
    let root = station.tree.present();
    std::thread::spawn(move || {
        let begun = Instant::now();
        while root.exists() {
            advance(&root, begun);
            // A pointer that is older than a second has lost frames.
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let open = "SELECT count(*) FROM capture_sessions WHERE cause IS NULL";
    eventually(SOON, "five sessions", || (station.postgres.value::<i64>(open) == Some(i64::from(COUNT))).then_some(()));
    std::thread::sleep(SETTLE);
    settle(&controller);
    settle_database(&station);
    station.postgres.exec("CHECKPOINT");

    let lsn = || station.postgres.value::<f64>("SELECT (pg_current_wal_lsn() - '0/0')::float8").unwrap();
    let before = lsn();
    let [own] = watch([&[controller.id()]], span);
    let figure = |name: &str| format!("captures, N={COUNT}: {name}");
    table.add(figure("CPU of the Controller"), own.0, "% of a core").limit(0.08);
    table.add(figure("context switches of the Controller"), own.1, "/s");
    if span >= UPDATE {
        let sessions = (lsn() - before) / span.as_secs_f64() * 3600.0;
        station.postgres.exec("CHECKPOINT");
        let before = lsn();
        refresh(&station);
        let written = (sessions + lsn() - before) / f64::from(1 << 20);
        table.add(figure("WAL written, with the hourly refresh of last_seen"), written, "MiB/h").limit(0.05);
    }
    let all = station.postgres.value::<i64>("SELECT count(*) FROM capture_sessions");
    assert_eq!(all, Some(i64::from(COUNT)), "a session was interrupted: other programs keep the processors busy");
}

/// Shows what the kernel would show of streams that were started then.
fn advance(root: &Path, begun: Instant) {
    for card in 0..COUNT {
        let folder = root.join(format!("proc/asound/card{card}/pcm0c/sub0"));
        let frames = (begun.elapsed().as_secs_f64() * RATE) as u64;
        let pid = std::process::id();
        let status = format!("state: RUNNING\nowner_pid   : {pid}\ntrigger_time: 30.690000000\n-----\nhw_ptr      : {frames}\n");
        let params = "access: RW_INTERLEAVED\nformat: S16_LE\nchannels: 1\nrate: 384000 (384000/1)\nbuffer_size: 192000\n";
        for (name, text) in [("hw_params", params), ("status", &status)] {
            // A reader must never see half of it. It fails when the station is gone.
            let _ = fs::write(folder.join("new"), text).and_then(|()| fs::rename(folder.join("new"), folder.join(name)));
        }
    }
}
