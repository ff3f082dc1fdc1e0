//! Recorders that end, however they do, and Recorders that cannot begin because something is missing.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::podman_faults::{answer, proxied};
use super::start::ids;
use super::station::{Controller, RECORDER, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
/// How soon things work again after their cause is gone: two seconds between tries, and Podman's own time on a busy
/// machine; doubling pauses would be longer by then.
const AGAIN: Duration = Duration::from_secs(7);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

/// Ends with the code that somebody writes into a file of its folder.
pub(crate) const MORTAL: &str =
    "while [ ! -e /app/workspace/end ]; do usleep 20000; done; read code < /app/workspace/end; rm /app/workspace/end; exit $code";

fn microphones(count: u32) -> Vec<Card> {
    (0..count).map(Card::numbered).collect()
}

fn state(station: &Station, name: &str, key: &str) -> Value {
    station.inspect(name).map(|inspect| inspect["State"][key].clone()).unwrap_or_default()
}

fn kill(id: &Value) {
    kill_process(Pid::from_raw(id.as_i64().unwrap().try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
}

fn wait_running(station: &Station, count: u32) {
    station.podman.wait_running(SOON, &(0..count).map(Card::numbered_recorder).collect::<Vec<_>>());
}

#[test]
fn whatever_ends_a_recorder_it_comes_back_and_the_others_do_not_notice() {
    let station = Station::up();
    let image = station.image("mortal", MORTAL);
    station.tree.set(&microphones(5));
    let settings = [
        ("SILVASONIC_RECORDER_IMAGE", image.as_str()),
        ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "1"),
        ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1"),
    ];
    let controller = station.controller_with(&settings);
    wait_running(&station, 5);
    let before = ids(&station);
    let untouched = state(&station, &Card::numbered_recorder(4), "StartedAt");
    let end = |n: u32, code: &str| {
        let folder = station.workspace().join(format!("recorder/ultramic-384-evo-{n:04}"));
        fs::write(folder.join("new"), format!("{code}\n")).unwrap();
        fs::rename(folder.join("new"), folder.join("end")).unwrap();
    };
    // Done on purpose, removed and stopped by hand, and one whose conmon is killed with it.
    end(0, "0");
    station.podman.delete(&format!("/containers/{}?force=true&timeout=0", Card::numbered_recorder(1)));
    station.podman.post(&format!("/containers/{}/stop?timeout=0", Card::numbered_recorder(2)), &Value::Null);
    let lost = station.inspect(&Card::numbered_recorder(3)).unwrap();
    kill(&lost["State"]["ConmonPid"]);
    kill(&lost["State"]["Pid"]);
    eventually(SOON, "four new containers that run", || {
        let now = ids(&station);
        let fresh = (0..4).all(|n| now.get(&Card::numbered_recorder(n)).is_some_and(|id| *id != before[&Card::numbered_recorder(n)]));
        (fresh && now.len() == 5 && (0..4).all(|n| state(&station, &Card::numbered_recorder(n), "Status") == "running")).then_some(())
    });
    controller.wait_log("the Recorder of 0869-0389-SER0000 ended with code 0; next start in 0 s", SOON);
    controller.wait_log("the Recorder of 0869-0389-SER0003 lost its process and Podman did not detect it, as conmon was killed", SOON);
    assert_eq!(ids(&station)[&Card::numbered_recorder(4)], before[&Card::numbered_recorder(4)]);
    assert_eq!(state(&station, &Card::numbered_recorder(4), "StartedAt"), untouched);

    // Crashes again and again: Podman's own try is spent each time, and the time between ours grows.
    let crash = |code: &str| {
        end(4, code);
        controller.wait_log(&format!("the Recorder of 0869-0389-SER0004 ended with code {code}; Podman restarted it"), SOON);
        end(4, code);
    };
    for (code, line) in [
        ("3", "the Recorder of 0869-0389-SER0004 ended with code 3; next start in 0 s"),
        ("4", "the Recorder of 0869-0389-SER0004 ended with code 4; next start in 1 s"),
    ] {
        let old = ids(&station)[&Card::numbered_recorder(4)].clone();
        crash(code);
        controller.wait_log(line, SOON);
        let another = || ids(&station).get(&Card::numbered_recorder(4)).filter(|id| **id != old).map(|_| ());
        eventually(SOON, "a new container", || another().filter(|()| state(&station, &Card::numbered_recorder(4), "Status") == "running"));
    }
    let expected = json!({"last": "ended with code 4", "count": 4});
    eventually(SOON, "the cause in the heartbeat", || {
        station.heartbeat().filter(|beat| beat["meta"]["ends"]["0869-0389-SER0004"] == expected)
    });
}

#[test]
fn a_killed_recorder_comes_back_also_if_the_processes_of_the_host_are_not_visible() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    // As in a container without `pid: host`.
    let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let command = station.controller_command_after(&namespace, &[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    let controller = Controller::run(command);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    // What ends before the Controller has seen it run is no end to it.
    let reason = || station.heartbeat()?["meta"]["devices"]["0869-0389-034F6A21"]["reason"].as_str().map(str::to_owned);
    eventually(SOON, "the Controller sees it", || reason().filter(|reason| reason.starts_with("running")));
    let started = state(&station, ULTRAMIC, "StartedAt");
    // Podman restarts it.
    kill(&state(&station, ULTRAMIC, "Pid"));
    eventually(SOON, "the Recorder runs again", || {
        let again = state(&station, ULTRAMIC, "Status") == "running" && state(&station, ULTRAMIC, "StartedAt") != started;
        again.then_some(())
    });
    controller.wait_log("the Recorder of 0869-0389-034F6A21 ended", SOON);
}

#[test]
fn an_end_for_lack_of_memory_is_named_if_podman_knows_it() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let (proxy, controller) = proxied(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    let id = ids(&station)[ULTRAMIC].clone();
    let body = json!({"State": {"OOMKilled": true}}).to_string();
    proxy.set(&format!("GET {id} /json$"), answer("200 OK", &body));
    station.podman.exec(&["stop", "-t", "0", ULTRAMIC]);
    controller.wait_log("the Recorder of 0869-0389-034F6A21 ended with code 137 (out of memory); next start in 0 s", SOON);
}

#[test]
fn a_conmon_that_is_killed_alone_stops_no_recording() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "0.1")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = station.inspect(ULTRAMIC).unwrap();
    kill(&before["State"]["ConmonPid"]);
    // Long enough for the Recorder to write lines that nobody reads any more, and for many looks at it.
    let process = format!("/proc/{}", before["State"]["Pid"]);
    let beats = || station.redis.get("silvasonic:status:controller").is_some();
    eventually(SOON, "a heartbeat", || beats().then_some(()));
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert!(fs::exists(process).unwrap());
    assert_eq!(ids(&station)[ULTRAMIC], before["Id"]);
    assert_eq!(controller.count_log("lost its process"), 0);
}

#[test]
fn a_recorder_that_takes_too_much_memory_is_killed_alone_and_comes_back() {
    let station = Station::up();
    // Keeps 190 MB in memory, and goes on until somebody ends that.
    let greedy = "while [ ! -e /app/workspace/end ]; do usleep 20000; done; exec tail -c 190000000 /dev/zero";
    let image = station.image("greedy", greedy);
    station.tree.set(&microphones(2));
    let settings = [
        ("SILVASONIC_RECORDER_IMAGE", image.as_str()),
        ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "1"),
        ("SILVASONIC_RECORDER_MEMORY_LIMIT", "16m"),
    ];
    let controller = station.controller_with(&settings);
    wait_running(&station, 2);
    let before = ids(&station);
    fs::write(station.workspace().join("recorder/ultramic-384-evo-0000/end"), "").unwrap();
    controller.wait_log("the Recorder of 0869-0389-SER0000 ended with code 137 (SIGKILL, as when memory runs out)", SOON);
    eventually(SOON, "a new container", || {
        ids(&station).get(&Card::numbered_recorder(0)).filter(|id| **id != before[&Card::numbered_recorder(0)]).map(|_| ())
    });
    assert_eq!(ids(&station)[&Card::numbered_recorder(1)], before[&Card::numbered_recorder(1)]);
}

/// Waits until a start was tried in vain for so long that doubling pauses would be longer than [`AGAIN`].
fn in_vain(controller: &Controller, line: &str) {
    let line = controller.wait_log(line, SOON);
    assert!(line.contains("retried every 2 s"), "{line}");
    let tries = || controller.count_log("Z after 0 failures");
    let begun = tries();
    eventually(Duration::from_secs(30), "five tries", || (tries() >= begun + 4).then_some(()));
}

#[test]
fn what_a_start_needs_is_named_and_found_as_soon_as_it_is_there() {
    let station = Station::plan().without_recorder_image().up();
    station.tree.set(&[Card::ultramic()]);
    let debug = [("SILVASONIC_LOG_LEVEL", "debug"), ("SILVASONIC_RECORDER_IMAGE", RECORDER)];
    let controller = station.controller_with(&debug);
    in_vain(&controller, "image localhost/silvasonic_recorder:latest is not in Podman's local storage; build or load it");
    let reason = |beat: &Value| beat["meta"]["devices"]["0869-0389-034F6A21"]["reason"].as_str().map(str::to_owned).unwrap_or_default();
    eventually(SOON, "the cause in the heartbeat", || {
        let reason = reason(&station.heartbeat()?);
        (reason.starts_with("not recording: back-off until 20") && reason.contains("is not in Podman's local storage")).then_some(())
    });
    station.podman.recorder_image();
    eventually(AGAIN, "the Recorder", || (state(&station, ULTRAMIC, "Status") == "running").then_some(()));
    controller.wait_log("works again after", SOON);
    drop(controller);
    station.podman.exec(&["rm", "-f", "-t", "0", ULTRAMIC]);

    let controller = station.controller_with(&[debug[0], ("SILVASONIC_NETWORK", "elsewhere")]);
    in_vain(&controller, "network elsewhere does not exist; create it with `podman network create elsewhere`");
    station.podman.exec(&["network", "create", "elsewhere"]);
    eventually(AGAIN, "the Recorder", || (state(&station, ULTRAMIC, "Status") == "running").then_some(()));
    drop(controller);
    station.podman.exec(&["rm", "-f", "-t", "0", ULTRAMIC]);
    station.podman.exec(&["network", "rm", "elsewhere"]);

    let folder = station.workspace().join("recorder/ultramic-384-evo-6a21");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    let foreign = station.podman.run(RODE, &station.image("foreign", "exec sleep 1000"), &json!({"who": "me"}));
    station.tree.set(&[Card::ultramic(), Card::rode().index(1), Card::generic(2, "1-9")]);
    let controller = station.controller_with(&debug);
    in_vain(&controller, "workspace folder");
    controller.wait_log("a foreign container has that name (owner label: none); rename or remove it", SOON);
    // Another one is not held up by those two.
    station.postgres.exec("UPDATE devices SET enrollment_status = 'enrolled', profile_slug = 'generic_usb' WHERE profile_slug IS NULL");
    let generic = "silvasonic-recorder-generic-usb-p1d9";
    eventually(AGAIN, "the third Recorder", || (state(&station, generic, "Status") == "running").then_some(()));
    assert_eq!(ids(&station).get(RODE), Some(&foreign));
    fs::remove_file(&folder).unwrap();
    station.podman.exec(&["rm", "-f", "-t", "0", RODE]);
    station.podman.wait_running(AGAIN, &[ULTRAMIC, RODE, generic]);
}

#[test]
fn what_is_left_created_or_stopping_becomes_a_running_recorder() {
    let station = Station::up();
    // Does not end when it is asked to.
    let image = station.image("stubborn", "trap '' TERM; while :; do sleep 1; done");
    station.tree.set(&microphones(2));
    let settings = [("SILVASONIC_RECORDER_IMAGE", image.as_str())];
    let mut first = station.controller_with(&settings);
    wait_running(&station, 2);
    first.wait_log("seeded user", SOON);
    first.kill();
    // As a Controller leaves it that was killed between creating and starting.
    let labels = station.inspect(&Card::numbered_recorder(0)).unwrap()["Config"]["Labels"].clone();
    station.podman.delete(&format!("/containers/{}?force=true&timeout=0", Card::numbered_recorder(0)));
    let (status, created) =
        station.podman.post("/containers/create", &json!({"name": Card::numbered_recorder(0), "image": image, "labels": labels}));
    assert_eq!(status, 201, "{created}");
    assert_eq!(state(&station, &Card::numbered_recorder(0), "Status"), "created");
    let before = ids(&station);
    let controller = station.controller_with(&settings);
    wait_running(&station, 2);
    // It was made from the desired spec, so it is what is started.
    assert_eq!(ids(&station)[&Card::numbered_recorder(0)], before[&Card::numbered_recorder(0)]);
    controller.wait_log("the container exists but does not run", SOON);

    // Somebody stops it by hand, which takes a while: it is waited for, and then there is a new one.
    std::thread::scope(|scope| {
        scope.spawn(|| station.podman.post(&format!("/containers/{}/stop?timeout=3", Card::numbered_recorder(1)), &Value::Null));
        eventually(SOON, "stopping", || (state(&station, &Card::numbered_recorder(1), "Status") == "stopping").then_some(()));
        assert_eq!(ids(&station)[&Card::numbered_recorder(1)], before[&Card::numbered_recorder(1)]);
    });
    eventually(SOON, "a new container", || {
        ids(&station).get(&Card::numbered_recorder(1)).filter(|id| **id != before[&Card::numbered_recorder(1)]).map(|_| ())
    });
    wait_running(&station, 2);
}

/// A file system of a few blocks below a station; unmounted at the end, also by the station's guard.
pub(crate) struct Disk(std::path::PathBuf);

impl Disk {
    pub(crate) fn mount(path: std::path::PathBuf, options: &str) -> Disk {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status().unwrap();
        assert!(mounted.success());
        Disk(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_and_room_is_found_as_soon_as_it_is_there() {
    // Podman's sandbox sees what is mounted before it begins.
    let station = Station::plan().without_podman().up();
    let workspace = station.workspace().join("recorder");
    // The root directory and one file; a folder is one too many.
    let _disk = Disk::mount(workspace.clone(), "size=64k,nr_inodes=3,mode=755");
    station.podman.start();
    station.podman.recorder_image();
    fs::write(workspace.join("one"), "").unwrap();
    fs::write(workspace.join("two"), "").unwrap();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller_with(&[("SILVASONIC_LOG_LEVEL", "debug")]);
    in_vain(&controller, "cannot be created: workspace folder");
    controller.wait_log("cannot save the desired state for a start without PostgreSQL", SOON);
    // One for the Controller's own file, one for the folder.
    fs::remove_file(workspace.join("one")).unwrap();
    fs::remove_file(workspace.join("two")).unwrap();
    eventually(AGAIN, "the Recorder", || (state(&station, ULTRAMIC, "Status") == "running").then_some(()));
}

#[test]
fn without_retries_of_podman_the_controller_alone_starts_a_recorder_again() {
    let station = Station::up();
    let image = station.image("mortal", MORTAL);
    station.tree.set(&[Card::ultramic()]);
    let settings = [("SILVASONIC_RECORDER_IMAGE", image.as_str()), ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "0")];
    let controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let policy = &station.inspect(ULTRAMIC).unwrap()["HostConfig"]["RestartPolicy"];
    assert_eq!((&policy["Name"], &policy["MaximumRetryCount"]), (&json!("no"), &json!(0)));
    let before = ids(&station)[ULTRAMIC].clone();
    let folder = station.workspace().join("recorder/ultramic-384-evo-6a21");
    fs::write(folder.join("new"), "3\n").unwrap();
    fs::rename(folder.join("new"), folder.join("end")).unwrap();
    controller.wait_log("ended with code 3; next start in 0 s", SOON);
    eventually(SOON, "a new container that runs", || {
        let is_new = ids(&station).get(ULTRAMIC).is_some_and(|id| *id != before);
        (is_new && state(&station, ULTRAMIC, "Status") == "running").then_some(())
    });
    assert_eq!(controller.count_log("Podman restarted it"), 0);
    // What runs with this setting is adopted.
    assert_eq!(controller.count_log("is replaced"), 0);
}
