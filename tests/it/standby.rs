//! Two Controllers with one owner: one leads, the other one stands by and takes over; what others recreate is not fought
//! over.
//!
//! A standby publishes its heartbeat under an instance of its own, so that nobody takes it for the leader's, and says in
//! the health component `lock` who holds the lock.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::{Value, json};
use silvasonic_controller::cache::ENGINE;

use super::station::{Controller, Station, eventually};
use super::tree::{Card, Tree};

const SOON: Duration = Duration::from_secs(15);
/// A second is what is promised; the rest is for a machine with other work.
const TAKEOVER: Duration = Duration::from_secs(3);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";
const DEVICE: &str = "0869-0389-034F6A21";
const LEADER: &str = "controller";
const STANDBY: &str = "controller-standby";

const BEAT: (&str, &str) = ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1");
const KEEP: (&str, &str) = ("SILVASONIC_SHUTDOWN", "keep");
/// What makes a Controller replace the Recorders of another one.
const OTHER: (&str, &str) = ("SILVASONIC_RECORDER_MEMORY_LIMIT", "256m");

/// A Controller that is past its start and records.
fn leader(station: &Station, settings: &[(&str, &str)]) -> Controller {
    let controller = station.controller_with(settings);
    controller.wait_log("seeded user", SOON);
    wait_recording(station, &controller);
    controller
}

/// Waits until the Recorder runs and this Controller knows it, so that no heartbeat says otherwise any more.
fn wait_recording(station: &Station, controller: &Controller) {
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let known = ["started in", "is already running as desired; adopted"].map(|what| format!("{ULTRAMIC} {what}"));
    eventually(SOON, "the Recorder is known", || known.iter().any(|line| controller.count_log(line) > 0).then_some(()));
}

/// Waits for the line of a standby that names the leader, while the Recorder is what it was.
fn wait_standby(station: &Station, second: &Controller, first: u32, before: &Option<(Value, Value)>) {
    let line = eventually(SOON, "the second Controller says that it stands by", || {
        assert_eq!(&station.podman.mark(ULTRAMIC), before, "the second Controller touched the first one's Recorder");
        second.log().lines().find(|line| line.contains("stands by")).map(str::to_owned)
    });
    assert!(line.contains(&format!("pid {first} ")), "{line}");
}

/// Waits for so many heartbeats of an instance, with `check` in between. Whoever does not know yet whether it leads says
/// nothing, so each heartbeat of a leader is one that records.
fn wait_beats(messages: &Receiver<String>, instance: &str, count: usize, mut check: impl FnMut()) {
    let mut beats = 0;
    eventually(SOON, &format!("{count} heartbeats of {instance}"), || {
        check();
        for message in messages.try_iter() {
            let beat: Value = serde_json::from_str(&message).unwrap();
            let activity = if beat["instance_id"] == STANDBY { "standby" } else { "idle" };
            if beat["service"] == "controller" {
                assert_eq!(beat["activity"], activity, "{beat}");
                beats += usize::from(beat["instance_id"] == instance);
            }
        }
        (beats >= count).then_some(())
    });
}

#[test]
fn a_second_controller_with_other_settings_stands_by_and_changes_nothing() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let first = leader(&station, &[BEAT]);
    let elsewhere = station.dir().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let no_cards = Tree::new(&elsewhere);
    let spelling = station.redis.url().trim_end_matches("/0").to_owned();
    let row = || station.postgres.value::<String>("SELECT xmin::text || d::text FROM devices d");
    let (before, row_before) = (station.podman.mark(ULTRAMIC), row());
    for setting in [OTHER, ("SILVASONIC_REDIS_URL", &spelling), ("SILVASONIC_HOST_ROOT", no_cards.root().to_str().unwrap())] {
        let messages = station.redis.listen("silvasonic:status");
        let second = station.controller_with(&[BEAT, setting]);
        wait_standby(&station, &second, first.id(), &before);
        let (status, health) = eventually(SOON, "health", || second.get("/healthy").filter(|(status, _)| *status == 200));
        let details = health["components"]["lock"]["details"].as_str().unwrap_or_default();
        assert!(status == 200 && details.contains("stands by") && details.contains(&format!("pid {} ", first.id())), "{health}");
        wait_beats(&messages, STANDBY, 5, || assert_eq!(station.podman.mark(ULTRAMIC), before, "{setting:?}"));
        wait_beats(&messages, LEADER, 1, || {});
        assert_eq!(station.heartbeat().unwrap()["activity"], "idle");
        assert_eq!((station.containers().len(), row()), (1, row_before.clone()), "{setting:?}");
        assert_eq!(second.count_log("stands by"), 1);
    }
}

#[test]
fn each_line_reaches_redis_once_while_another_controller_stands_by() {
    let station = Station::up();
    let image = station.image("counter", "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done");
    station.tree.set(&[Card::ultramic()]);
    let settings = [("SILVASONIC_RECORDER_IMAGE", image.as_str())];
    let first = leader(&station, &settings);
    let before = station.podman.mark(ULTRAMIC);
    let lines = station.redis.listen("silvasonic:logs");
    let second = station.controller_with(&settings);
    second.wait_log("connected to Podman", SOON);
    let mut last = 0;
    for _ in 0..50 {
        let line: Value = serde_json::from_str(&lines.recv_timeout(SOON).unwrap()).unwrap();
        let number = line["message"].as_str().unwrap().parse().unwrap();
        assert!(number > last, "{number} after {last}");
        last = number;
    }
    wait_standby(&station, &second, first.id(), &before);
}

#[test]
fn a_standby_takes_over_within_a_second_when_the_leader_is_killed() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = leader(&station, &[BEAT]);
    let before = station.podman.mark(ULTRAMIC);
    let second = station.controller_with(&[BEAT]);
    wait_standby(&station, &second, first.id(), &before);
    let killed = Instant::now();
    first.kill();
    second.wait_log("takes over", TAKEOVER);
    println!("takeover after {:?}", killed.elapsed());
    second.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    let messages = station.redis.listen("silvasonic:status");
    wait_beats(&messages, LEADER, 2, || {});
    // And it does all that a leader does.
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(station.podman.mark(ULTRAMIC), before);
}

#[test]
fn a_frozen_leader_is_still_the_leader() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = leader(&station, &[BEAT]);
    let before = station.podman.mark(ULTRAMIC);
    let messages = station.redis.listen("silvasonic:status");
    let second = station.controller_with(&[BEAT]);
    first.signal(Signal::STOP);
    // There is something to do, and who is frozen cannot know that somebody else does it.
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    wait_beats(&messages, STANDBY, 6, || assert_eq!(station.inspect(RODE), None, "a standby started a Recorder"));
    assert_eq!(second.count_log("takes over"), 0);
    first.signal(Signal::CONT);
    first.wait_log(&format!("{RODE} started in"), SOON);
    wait_standby(&station, &second, first.id(), &before);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(second.count_log("takes over"), 0);
}

#[test]
fn an_upgrade_with_keep_hands_over_without_a_gap() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut old = leader(&station, &[BEAT, KEEP]);
    let before = station.podman.mark(ULTRAMIC);
    let new = station.controller_with(&[BEAT, KEEP]);
    wait_standby(&station, &new, old.id(), &before);
    let asked = Instant::now();
    old.signal(Signal::TERM);
    assert_eq!(old.wait_exit(TAKEOVER), 0);
    new.wait_log("takes over", TAKEOVER);
    println!("hand-over after {:?}", asked.elapsed());
    new.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    wait_beats(&station.redis.listen("silvasonic:status"), LEADER, 2, || assert_eq!(station.podman.mark(ULTRAMIC), before));
}

#[test]
fn a_standby_that_is_stopped_leaves_the_recorders_of_the_leader_alone() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = leader(&station, &[BEAT]);
    let before = station.podman.mark(ULTRAMIC);
    let mut second = station.controller();
    second.wait_log("connected to Podman", SOON);
    second.signal(Signal::TERM);
    assert_eq!(second.wait_exit(TAKEOVER), 0);
    wait_beats(&station.redis.listen("silvasonic:status"), LEADER, 3, || assert_eq!(station.podman.mark(ULTRAMIC), before));
    assert_eq!(second.count_log("stopped and removed"), 0);
    assert_eq!(first.exit_code(), None);
}

/// A stop is an order to this Controller, and who stands by has none: to stop the station, stop the standby first.
#[test]
fn a_leader_that_is_stopped_stops_its_recorders_and_the_standby_starts_them_again() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = leader(&station, &[]);
    let before = station.podman.mark(ULTRAMIC);
    let second = station.controller();
    wait_standby(&station, &second, first.id(), &before);
    first.signal(Signal::TERM);
    eventually(SOON, "the first Controller ends", || {
        assert_eq!(second.count_log(&format!("{ULTRAMIC} started in")), usize::from(second.count_log("takes over") > 0));
        first.exit_code()
    });
    assert_eq!(first.count_log(&format!("{ULTRAMIC} stopped and removed")), 1);
    second.wait_log("takes over", TAKEOVER);
    second.wait_log(&format!("{ULTRAMIC} started in"), SOON);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_ne!(station.podman.mark(ULTRAMIC), before);
}

#[test]
fn a_controller_in_a_container_and_one_on_the_host_share_the_lock() {
    const BOXED: &str = "boxed";
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = leader(&station, &[KEEP]);
    let before = station.podman.mark(ULTRAMIC);

    // Its own image is built from this very program; here the program is bound into one with a shell.
    let program = station.dir().join("boxed-controller");
    fs::copy(station.static_program("silvasonic-controller"), &program).unwrap();
    let image = station.image("box", "exec /controller");
    let bind = |from: &Path, to: &str| format!("--volume={}:{to}", from.display());
    let database = station.postgres.socket_dir();
    let mut words: Vec<String> = ["run", "-d", "--name", BOXED, "--network=host"].map(str::to_owned).into();
    words.push(bind(&program, "/controller"));
    words.push(bind(&station.workspace().join("recorder"), "/workspace/recorder"));
    words.push(bind(station.podman.socket().parent().unwrap(), "/run/podman"));
    words.push(bind(database, database.to_str().unwrap()));
    words.push(bind(&station.tree.present(), "/host"));
    let inside = [
        ("SILVASONIC_CONTAINER_SOCKET", "/run/podman/podman.sock"),
        ("SILVASONIC_RECORDER_WORKSPACE_LOCAL", "/workspace/recorder"),
        ("SILVASONIC_HOST_ROOT", "/host"),
        KEEP,
        OTHER,
    ];
    let outside = station.environment();
    let outside =
        outside.iter().map(|(name, value)| (*name, value.as_str())).filter(|(name, _)| inside.iter().all(|(other, _)| name != other));
    words.extend(outside.chain(inside).map(|(name, value)| format!("--env={name}={value}")));
    words.push(image);
    station.podman.exec(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let wait_boxed = |text: &str, deadline: Duration| {
        eventually(deadline, &format!("the boxed Controller logs {text:?}"), || {
            assert_eq!(station.podman.mark(ULTRAMIC), before);
            station.sandboxed(&format!("podman logs {BOXED} 2>&1")).lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    };
    let line = wait_boxed("stands by", SOON);
    assert!(line.contains(&format!("pid {} ", first.id())), "{line}");

    // Now it is the boxed one that decides, and it has other settings.
    first.kill();
    eventually(TAKEOVER, "the boxed Controller takes over", || {
        station.sandboxed(&format!("podman logs {BOXED} 2>&1")).contains("takes over").then_some(())
    });
    let limit =
        || station.inspect(ULTRAMIC).filter(|found| found["HostConfig"]["Memory"] == 256 << 20 && found["State"]["Running"] == true);
    eventually(SOON, "the boxed Controller's own Recorder runs", limit);
    let before = station.podman.mark(ULTRAMIC);
    let second = station.controller_with(&[KEEP]);
    let line = second.wait_log("stands by", SOON);
    assert!(line.contains("in a container"), "{line}");
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    station.podman.exec(&["kill", BOXED]);
    second.wait_log("takes over", TAKEOVER);
}

#[test]
fn what_somebody_without_the_lock_recreates_is_left_running_and_reported() {
    const WINDOW: Duration = Duration::from_secs(10);
    let station = Station::up();
    let image = station.image("foreign", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done");
    station.tree.set(&[Card::ultramic()]);
    let controller = leader(&station, &[BEAT]);
    let mut labels = station.inspect(ULTRAMIC).unwrap()["Config"]["Labels"].clone();
    labels["io.silvasonic.config_hash"] = "feedfacefeedface".into();
    let is_foreign = |found: &Value| found["Config"]["Labels"]["io.silvasonic.config_hash"] == "feedfacefeedface";
    // Replaces whatever runs under that name and is not its own, as the Python Controller does.
    let replace = || {
        let Some(found) = station.inspect(ULTRAMIC) else { return };
        if !is_foreign(&found) && found["State"]["Running"] == true {
            station.podman.delete(&format!("/containers/{ULTRAMIC}?force=true&timeout=0"));
            let body = json!({"name": ULTRAMIC, "image": image, "labels": labels});
            if let (201, made) = station.podman.post("/containers/create", &body) {
                station.podman.post(&format!("/containers/{}/start", made["Id"].as_str().unwrap()), &Value::Null);
            }
        }
    };
    let ours = || controller.count_log(&format!("{ULTRAMIC} started in")) - 1;
    let begun = Instant::now();
    while begun.elapsed() < WINDOW {
        replace();
        assert!(ours() <= 3, "recreated {} times within {:?}", ours(), begun.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    println!("recreated {} times", ours());
    // On a busy machine, the foreign container can be back under its name before a list shows that ours is gone. Then
    // ours counts as one that failed.
    let is_told = |text: &str| text.contains("somebody else") || text.contains("fell back to the previous container");
    eventually(SOON, "the line in the log", || controller.log().lines().any(is_told).then_some(()));
    let reason = || station.heartbeat()?["meta"]["devices"][DEVICE]["reason"].as_str().map(str::to_owned);
    eventually(SOON, "the reason in the heartbeat", || reason().filter(|reason| is_told(reason)));
    let left = station.podman.mark(ULTRAMIC);
    assert!(station.inspect(ULTRAMIC).is_some_and(|found| is_foreign(&found) && found["State"]["Running"] == true));
    let mut beats = BTreeSet::new();
    eventually(SOON, "five more heartbeats", || {
        assert_eq!(station.podman.mark(ULTRAMIC), left);
        beats.insert(station.heartbeat()?["timestamp"].to_string());
        (beats.len() > 5).then_some(())
    });
    assert_eq!(station.containers().len(), 1);
}

/// Waits until a Controller without a lock has said so once, however often it tried, and until it has the lock.
fn wait_lockless(station: &Station, controller: &Controller, lock: &Path, mend: impl FnOnce()) {
    let line = controller.wait_log("without a lock", SOON);
    assert!(line.contains(lock.to_str().unwrap()), "{line}");
    wait_recording(station, controller);
    wait_beats(&station.redis.listen("silvasonic:status"), LEADER, 3, || {});
    assert_eq!(controller.count_log("without a lock"), 1);
    mend();
    let signed = || fs::read_to_string(lock).ok().filter(|text| text.starts_with(&format!("pid {} ", controller.id())));
    eventually(SOON, "the lock is taken", signed);
}

#[test]
fn without_a_usable_lock_file_the_controller_records_and_warns_once() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let lock = station.workspace().join("recorder/.controller-lock-controller");
    let target = station.dir().join("precious");
    fs::write(&target, "precious").unwrap();
    for state in ["link", "FIFO", "folder"] {
        match state {
            "link" => symlink(&target, &lock).unwrap(),
            "FIFO" => assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success()),
            _ => fs::create_dir(&lock).unwrap(),
        }
        let controller = station.controller_with(&[BEAT, KEEP]);
        wait_lockless(&station, &controller, &lock, || {
            let removed = if state == "folder" { fs::remove_dir(&lock) } else { fs::remove_file(&lock) };
            removed.unwrap();
        });
        drop(controller);
        fs::remove_file(&lock).unwrap();
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn with_a_lock_file_that_it_may_not_open_the_controller_records_and_warns_once() {
    const NOBODY: u32 = 65_534;
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let folder = station.workspace().join("recorder");
    let lock = folder.join(".controller-lock-controller");
    fs::write(&lock, "").unwrap();
    fs::set_permissions(&lock, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    chown(station.podman.socket(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    command.arg(station.controller_command(&[]).get_program());
    station.dress(&mut command, &[BEAT]);
    command.current_dir("/");
    let controller = Controller::run(command);
    wait_lockless(&station, &controller, &lock, || fs::remove_file(&lock).unwrap());
}

#[test]
fn a_standby_writes_to_the_database_only_when_it_takes_over() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = leader(&station, &[BEAT]);
    let before = station.podman.mark(ULTRAMIC);
    let profile = || station.postgres.value::<i64>("SELECT count(*) FROM microphone_profiles WHERE slug = 'audiomoth_usb'");
    assert_eq!(profile(), Some(1));
    // What each start seeds.
    station.postgres.exec("DELETE FROM microphone_profiles WHERE slug = 'audiomoth_usb'");
    let messages = station.redis.listen("silvasonic:status");
    let second = station.controller_with(&[BEAT]);
    wait_beats(&messages, STANDBY, 3, || assert_eq!(profile(), Some(0), "a standby seeded a profile"));
    wait_standby(&station, &second, first.id(), &before);
    first.kill();
    second.wait_log("takes over", TAKEOVER);
    eventually(SOON, "the profile is seeded", || (profile() == Some(1)).then_some(()));
    assert_eq!(station.podman.mark(ULTRAMIC), before);
}

#[test]
fn who_led_without_a_lock_file_writes_nothing_to_the_database_while_another_controller_leads() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let lock = station.workspace().join("recorder/.controller-lock-controller");
    symlink("nowhere", &lock).unwrap();
    let controller = leader(&station, &[BEAT]);
    controller.wait_log("without a lock", SOON);
    // Another leader: the file comes with its lock.
    let path = station.dir().join("lock");
    fs::write(&path, "pid 1 on another host\n").unwrap();
    let held = fs::File::open(&path).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    fs::rename(&path, &lock).unwrap();
    controller.wait_log("stands by", SOON);
    let before = station.podman.mark(ULTRAMIC);
    let rows = || station.postgres.value::<i64>("SELECT count(*) FROM devices");
    assert_eq!(rows(), Some(1));
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    wait_beats(&station.redis.listen("silvasonic:status"), STANDBY, 4, || assert_eq!(rows(), Some(1), "a standby wrote a row"));
    drop(held);
    controller.wait_log("takes over", TAKEOVER);
    eventually(SOON, "the row of the new microphone", || (rows() == Some(2)).then_some(()));
    assert_eq!(station.podman.mark(ULTRAMIC), before);
}

#[test]
fn a_standby_leaves_the_saved_properties_of_podman_to_the_leader() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let first = leader(&station, &[BEAT]);
    let before = station.podman.mark(ULTRAMIC);
    let workspace = station.workspace().join("recorder");
    let saved = || ENGINE.read(&workspace).unwrap();
    let text = eventually(SOON, "the saved properties", saved);
    // Others, so that the second Controller finds a difference.
    let others = text.replacen("\"runtime\":\"", "\"runtime\":\"another-", 1);
    assert_ne!(others, text);
    ENGINE.write(&workspace, &others).unwrap();
    let messages = station.redis.listen("silvasonic:status");
    let second = station.controller_with(&[BEAT]);
    wait_standby(&station, &second, first.id(), &before);
    second.wait_log("(rootful, another-", SOON);
    eventually(SOON, "the properties that Podman has", || (second.count_log("connected to Podman") == 2).then_some(()));
    wait_beats(&messages, STANDBY, 3, || assert_eq!(saved().as_deref(), Some(others.as_str())));
}
