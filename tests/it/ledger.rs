//! The ledger of a station: sessions in the table `capture_sessions`, from the first frame to the last one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::live::log_statements;
use super::station::{Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(60);
const RATE: u64 = 384_000;
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const DEVICE: &str = "0869-0389-034F6A21";

/// The size of the buffer, and the number at which a kernel with 32 bits counts its frames from 0 again.
const BUFFER: u64 = 192_000;
const BOUNDARY: u64 = BUFFER << 13;

/// The kernel's view of a stream that delivers frames since it was opened.
struct Capture {
    since: Instant,
    /// Frames that it had delivered then.
    before: u64,
    owner: u32,
}

impl Capture {
    /// The stream began before this process, so that nobody knows who holds it.
    fn begin() -> Capture {
        Capture { since: Instant::now(), before: 0, owner: std::process::id() }
    }

    /// Shows how many frames there are by now, if the card is connected.
    fn advance(&self, root: &Path) {
        let Capture { since, before, owner } = self;
        let frames = (before + (since.elapsed().as_secs_f64() * RATE as f64) as u64) % BOUNDARY;
        let status = format!("state: RUNNING\nowner_pid   : {owner}\ntrigger_time: 30.690000000\n-----\nhw_ptr      : {frames}\n");
        let params = format!("access: RW_INTERLEAVED\nformat: S16_LE\nchannels: 1\nrate: 384000 (384000/1)\nbuffer_size: {BUFFER}\n");
        self.write(root, &status, &params);
    }

    fn write(&self, root: &Path, status: &str, params: &str) {
        let folder = root.join("proc/asound/card0/pcm0c/sub0");
        for (name, text) in [("hw_params", params), ("status", status)] {
            // A reader must never see half of it.
            if fs::write(folder.join("new"), text).is_ok() {
                fs::rename(folder.join("new"), folder.join(name)).unwrap();
            }
        }
    }

    /// Frames arrive until `probe` finds something.
    fn until<T>(&self, station: &Station, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        eventually(SOON, what, || {
            self.advance(&station.tree.present());
            probe()
        })
    }
}

/// `seconds cause` of each session, in their order.
fn sessions(station: &Station) -> Vec<(f64, Option<String>)> {
    let rows = "SELECT extract(epoch from ended_at - started_at)::float8, cause FROM capture_sessions WHERE device = $1 ORDER BY id";
    station.postgres.query(rows, &[&DEVICE]).iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn exists(station: &Station) -> bool {
    station.postgres.value::<String>("SELECT to_regclass('capture_sessions')::text").is_some()
}

#[test]
fn a_session_lasts_from_the_first_frame_to_the_unplugging_whoever_controls() {
    let station = Station::up();
    log_statements(&station);
    station.tree.set(&[Card::ultramic()]);
    let quick = [
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.2"),
        ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.5"),
        ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1"),
    ];
    let mut controller = station.controller_with(&quick);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let capture = Capture::begin();
    let first = capture.until(&station, "a session", || exists(&station).then(|| sessions(&station).pop()).flatten());
    assert_eq!(first.1, None);

    // Nothing more is written while frames arrive.
    let writes = || {
        let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
        log.lines().filter(|line| line.contains("LOG:  execute") && line.contains("INSERT INTO capture_sessions")).count()
    };
    let read = capture.since.elapsed() + Duration::from_secs(6);
    capture.until(&station, "two more reads", || (capture.since.elapsed() > read).then_some(()));
    assert_eq!(writes(), 1);

    let effort = || Some(station.heartbeat()?["meta"]["devices"][DEVICE]["effort"].clone());
    capture.until(&station, "its share", || (effort()?["recorded_24h"].as_f64()? > 0.0 && effort()?["rate"].is_null()).then_some(()));

    // Another Controller continues the session, as no frame is missing.
    controller.kill();
    let _controller = station.controller_with(&quick);
    let longer = capture.until(&station, "a longer session", || sessions(&station).pop().filter(|(seconds, _)| *seconds > first.0 + 1.0));
    assert_eq!((sessions(&station).len(), longer.1), (1, None));

    station.tree.set(&[]);
    eventually(SOON, "its end", || (sessions(&station)[0].1.as_deref() == Some("unplugged")).then_some(()));
    let row = &station.postgres.query("SELECT frames, rate, container, clock->>'boot' FROM capture_sessions", &[])[0];
    let (seconds, _) = sessions(&station)[0].clone();
    let (frames, rate): (i64, i64) = (row.get(0), row.get(1));
    assert!((frames as f64 / rate as f64 - seconds).abs() < 1.0 && rate == RATE as i64, "{frames} frames in {seconds} s");
    assert_eq!(row.get::<_, String>(2).len(), 12);

    let status = || station.postgres.value::<String>("SELECT status FROM devices");
    eventually(SOON, "it is offline", || (status().as_deref() == Some("offline")).then_some(()));

    // A new stream is a new session.
    station.tree.set(&[Card::ultramic().number(9)]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let capture = Capture::begin();
    capture.until(&station, "the next session", || (sessions(&station).len() == 2).then_some(()));
    assert_eq!(sessions(&station)[1].1, None);

    let history = |words: &[&str]| {
        let output = station.controller_command(&[]).arg("history").args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, csv) = history(&["0869", "--csv", "--since", "1h"]);
    let kinds: Vec<&str> = csv.lines().filter_map(|line| line.split(',').nth(1)).collect();
    assert_eq!((code, kinds), (Some(0), vec!["kind", "session", "gap", "session"]), "{csv}");
    assert!(csv.lines().nth(2).unwrap().ends_with(",unplugged,since boot,0"), "{csv}");
    let (code, text) = history(&[]);
    assert!(code == Some(0) && text.contains("gap: unplugged") && text.contains(" recorded, gaps: 1"), "{text}");
    assert_eq!(history(&["nobody"]).0, Some(1));
    assert_eq!(history(&["--since", "yesterday"]).0, Some(1));
}

#[test]
fn a_session_goes_on_under_the_next_controller_also_while_its_profile_is_not_valid() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let quick = [("SILVASONIC_RECONCILE_INTERVAL_S", "0.2"), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")];
    let mut controller = station.controller_with(&quick);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = station.podman.mark(ULTRAMIC);
    let capture = Capture::begin();
    let first = capture.until(&station, "a session", || exists(&station).then(|| sessions(&station).pop()).flatten());
    controller.kill();
    station.postgres.exec("UPDATE microphone_profiles SET config = '{}'");
    let controller = station.controller_with(&quick);
    capture.until(&station, "a longer session", || sessions(&station).pop().filter(|(seconds, _)| *seconds > first.0 + 1.0));
    let told = || Some(station.heartbeat()?["meta"]["devices"][DEVICE].clone());
    capture.until(&station, "it is told", || {
        let device = told()?;
        let why = device["reason"].as_str()?.to_owned();
        (device["recording"] == true && why.contains("profile ultramic_384_evo is invalid")).then_some(())
    });
    assert_eq!(sessions(&station).iter().map(|(_, cause)| cause.as_deref()).collect::<Vec<_>>(), [None]);
    assert_eq!((station.podman.mark(ULTRAMIC), controller.count_log(" captures: running")), (before, 1));
}

#[test]
fn a_counter_that_wraps_continues_a_session_and_another_process_begins_one() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let _controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "0.2")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    // It wraps after some reads, and is read twice after that.
    let seconds = 20;
    let capture = Capture { before: BOUNDARY - seconds * RATE, ..Capture::begin() };
    capture.until(&station, "a session", || (exists(&station) && sessions(&station).len() == 1).then_some(()));
    let read_twice = capture.since.elapsed().max(Duration::from_secs(seconds)) + Duration::from_secs(12);
    capture.until(&station, "two reads after it", || (capture.since.elapsed() > read_twice).then_some(()));
    assert_eq!(sessions(&station).len(), 1);

    let owner = station.inspect(ULTRAMIC).unwrap()["State"]["Pid"].as_u64().unwrap();
    let other = Capture { owner: u32::try_from(owner).unwrap(), ..Capture::begin() };
    other.until(&station, "the session of another process", || (sessions(&station).len() == 2).then_some(()));
    let frames = station.postgres.value::<i64>("SELECT frames FROM capture_sessions ORDER BY id LIMIT 1").unwrap();
    assert!(frames > BOUNDARY as i64 && frames < (BOUNDARY + 60 * RATE) as i64, "{frames}");
    assert_eq!(sessions(&station).iter().map(|(_, cause)| cause.as_deref()).collect::<Vec<_>>(), [Some("unknown"), None]);
}

#[test]
fn old_sessions_are_deleted_only_if_a_setting_says_so() {
    let station = Station::up();
    let controller = station.controller();
    controller.wait_log("seeded user", SOON);
    let insert = |id: i32, age: &str, cause: &str| {
        let columns = "id, device, container, started_at, ended_at, frames, rate, cause, clock";
        let ended = format!("now() - interval '{age}'");
        station
            .postgres
            .exec(&format!("INSERT INTO capture_sessions ({columns}) VALUES ({id}, 'x', 'c', {ended}, {ended}, 0, 1, {cause}, '{{}}')"));
    };
    insert(1, "40 days", "'flap'");
    insert(2, "20 days", "'flap'");
    insert(3, "50 days", "NULL");
    insert(4, "1 minute", "'flap'");
    drop(controller);
    let ids = || station.postgres.value::<String>("SELECT string_agg(id::text, ' ' ORDER BY id) FROM capture_sessions").unwrap();
    let mut controller = station.controller();
    // What is open was not closed before the host was booted.
    let closed = || station.postgres.value::<String>("SELECT cause FROM capture_sessions WHERE id = 3");
    eventually(SOON, "the end of the open one", || (closed().as_deref() == Some("power or boot")).then_some(()));
    assert_eq!(ids(), "1 2 3 4");
    controller.kill();
    let controller = station.controller_with(&[("SILVASONIC_HISTORY_DAYS", "30")]);
    controller.wait_log("deleted 2 sessions that are older than 30 days", SOON);
    assert_eq!(ids(), "2 4");
}

#[test]
fn sessions_without_a_database_are_kept_and_written_later() {
    let mut station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let quick = [("SILVASONIC_RECONCILE_INTERVAL_S", "0.2"), ("SILVASONIC_SHUTDOWN", "keep")];
    let mut controller = station.controller_with(&quick);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let state = station.workspace().join("recorder/.controller-state");
    eventually(SOON, "the saved state", || fs::read_to_string(&state).is_ok_and(|text| text.contains("enrolled")).then_some(()));
    station.postgres.stop();
    let capture = Capture::begin();
    let file = station.workspace().join("recorder/.controller-sessions");
    let saved = || fs::read_to_string(&file).unwrap_or_default();
    capture.until(&station, "a saved session", || saved().contains(DEVICE).then_some(()));
    // A Controller that knows only the file.
    controller.kill();
    drop(controller);
    let controller = station.controller_with(&quick);
    controller.wait_log("using the desired state saved by an earlier run", SOON);
    let before = saved();
    capture.until(&station, "another read", || (saved() != before).then_some(()));
    station.postgres.start();
    capture.until(&station, "one session", || (sessions(&station).len() == 1 && !saved().contains(DEVICE)).then_some(()));
    let (seconds, cause) = sessions(&station)[0].clone();
    assert!(cause.is_none() && seconds > 5.0, "{seconds} {cause:?}");
}
