//! Disks that are slow, and what somebody leaves in the place of a file or folder of ours.
//!
//! strace makes a disk slow: it delays the system calls that use it. Only the calls of the Controller are delayed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::ends::Disk;
use super::start::ids;
use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
/// Without a slow disk it takes less than a second; the rest is for a machine with other work. One call takes longer.
const PROMPT: Duration = Duration::from_secs(5);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";
const KEEP: (&str, &str) = ("SILVASONIC_SHUTDOWN", "keep");

/// A Controller whose system calls are delayed by these options of strace.
fn slowed(station: &Station, options: &[&str], overrides: &[(&str, &str)]) -> Controller {
    let program = station.controller_command(&[]);
    let mut command = Command::new("strace");
    // As a grandchild, strace leaves the program our child.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null"]).args(options).arg(program.get_program()).args(program.get_args());
    station.dress(&mut command, overrides);
    Controller::run(command)
}

fn recorder_folder(station: &Station) -> PathBuf {
    station.workspace().join("recorder")
}

#[test]
fn a_disk_that_takes_seconds_to_write_delays_no_recorder() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let options = ["--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=6000000"];
    let mut controller = slowed(&station, &options, &[KEEP]);
    station.podman.wait_running(PROMPT, &[ULTRAMIC]);
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(PROMPT, &[ULTRAMIC, RODE]);
    let state = recorder_folder(&station).join(".controller-state");
    let saved = || fs::read_to_string(&state).ok().filter(|text| text.contains("19f7"));
    eventually(Duration::from_secs(30), "the newest state is saved", saved);
    for line in ["does not respond", "PostgreSQL is available again", "cannot"] {
        assert_eq!(controller.count_log(line), 0, "{line}");
    }
    // The end does not wait for the disk either.
    station.postgres.exec("UPDATE devices SET enabled = false WHERE name LIKE '19f7%'");
    controller.wait_log(&format!("{RODE} stopped and removed"), SOON);
    controller.signal(Signal::TERM);
    // The kernel keeps the process for as long as one of its threads is in such a call.
    controller.wait_log("INFO] stopped", Duration::from_secs(1));
}

#[test]
fn a_disk_that_takes_seconds_to_read_delays_no_recorder() {
    let station = Station::up();
    let config = station.dir().join("config");
    fs::create_dir(&config).unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::copy(repository.join("defaults.yml"), config.join("defaults.yml")).unwrap();
    symlink(repository.join("profiles"), config.join("profiles")).unwrap();
    let folder = ("SILVASONIC_CONFIG_DIR", config.to_str().unwrap());
    station.tree.set(&[Card::ultramic()]);
    let mut first = station.controller_with(&[folder]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let engine = recorder_folder(&station).join(".controller-engine");
    eventually(SOON, "the engine is saved", || engine.exists().then_some(()));
    first.signal(Signal::TERM);
    assert_eq!(first.wait_exit(Duration::from_secs(12)), 0);

    // What belongs to the disk, and nothing else, is slow.
    let paths = [recorder_folder(&station).join(".controller-state"), engine, config.join("defaults.yml")];
    let mut options = vec!["-e", "trace=openat", "-e", "inject=openat:delay_enter=8000000"];
    paths.iter().for_each(|path| options.extend(["-P", path.to_str().unwrap()]));
    let second = slowed(&station, &options, &[folder]);
    station.podman.wait_running(PROMPT, &[ULTRAMIC]);
    second.wait_log("the desired state saved by an earlier run could not be read within 2 s", PROMPT);
    second.wait_log("the folder with settings and profiles could not be read within 2 s", PROMPT);
    // A new microphone is written to the database without the files.
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(PROMPT, &[ULTRAMIC, RODE]);
    assert_eq!(second.count_log("PostgreSQL does not respond"), 0);
    drop(second);

    // Without the database, the saved state is used when it has been read.
    let mut station = station;
    station.podman.exec(&["rm", "-f", "-t", "0", ULTRAMIC, RODE]);
    station.postgres.stop();
    let third = slowed(&station, &options, &[folder]);
    third.wait_log("cannot read PostgreSQL", PROMPT);
    assert_eq!(third.count_log("using the desired state saved by an earlier run"), 0);
    station.podman.wait_running(Duration::from_secs(20), &[ULTRAMIC]);
}

#[test]
fn deleted_settings_come_back_from_a_file_that_is_read_late() {
    let station = Station::up();
    let mut first = station.controller();
    first.wait_log("seeded settings system", SOON);
    station.postgres.exec("UPDATE system_config SET value = jsonb_set(value, '{max_recorders}', '8') WHERE key = 'system'");
    let state = recorder_folder(&station).join(".controller-state");
    let saved = || fs::read_to_string(&state).ok().filter(|text| text.contains(r#"\"max_recorders\": 8"#));
    eventually(SOON, "the settings are saved", saved);
    first.signal(Signal::TERM);
    assert_eq!(first.wait_exit(SOON), 0);
    station.postgres.exec("DELETE FROM system_config");
    let options = ["-e", "trace=openat", "-e", "inject=openat:delay_enter=4000000", "-P", state.to_str().unwrap()];
    let _second = slowed(&station, &options, &[]);
    let row = || station.postgres.value::<i32>("SELECT (value->>'max_recorders')::int FROM system_config WHERE key = 'system'");
    assert_eq!(eventually(SOON, "the settings are seeded", row), 8);
}

#[test]
fn a_folder_that_takes_seconds_to_be_created_delays_no_other_recorder() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let folder = recorder_folder(&station).join("ultramic-384-evo-6a21");
    let options = ["-e", "trace=mkdir,mkdirat", "-e", "inject=mkdir,mkdirat:delay_enter=12000000", "-P", folder.to_str().unwrap()];
    let controller = slowed(&station, &options, &[]);
    station.podman.wait_running(PROMPT, &[RODE]);
    assert_eq!(station.inspect(ULTRAMIC), None);
    let line = controller.wait_log("the disk did not respond within 10 s", SOON);
    assert!(line.contains(&format!("{ULTRAMIC} cannot be created: workspace folder {}", folder.display())), "{line}");
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
}

#[test]
fn the_saved_state_says_when_a_microphone_was_last_seen_only_while_it_is_offline() {
    let station = Station::plan().without_podman().up();
    station.tree.set(&[Card::ultramic()]);
    let _controller = station.controller();
    let state = recorder_folder(&station).join(".controller-state");
    let saved = |status: &str| {
        let status = format!(r#"\"status\": \"{status}\""#);
        eventually(SOON, "the status is saved", || fs::read_to_string(&state).ok().filter(|text| text.contains(&status)))
    };
    assert!(!saved("online").contains("last_seen"));
    station.tree.set(&[]);
    assert!(saved("offline").contains("last_seen"));
}

/// Things that block their reader or lead elsewhere, as shell commands for a path.
const THINGS: [(&str, &str, &str); 4] = [
    ("pipe", "mkfifo $P", "a named pipe"),
    ("link", "ln -s $PWD/target $P", "a symbolic link"),
    ("dangling", "ln -s $PWD/nothing $P", "a symbolic link"),
    ("folder", "mkdir $P", "a folder"),
];

#[test]
fn a_thing_in_the_place_of_a_file_costs_one_line_and_stays() {
    for (thing, command, found) in THINGS {
        let station = Station::up();
        let folder = recorder_folder(&station);
        fs::write(folder.join("target"), "somebody's").unwrap();
        // Of the engine, the file itself; of the state, what becomes it.
        let names = [".controller-state.new", ".controller-engine", ".controller-lock-controller"];
        for name in names {
            let made = Command::new("sh").args(["-c", command]).env("P", name).current_dir(&folder).status().unwrap();
            assert!(made.success());
        }
        station.tree.set(&[Card::ultramic()]);
        let controller = station.controller();
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        for name in names {
            let line = controller.wait_log(&format!("{name}: expected a regular file, found {found}"), SOON);
            assert!(line.contains("WARN"), "{line}");
        }
        // Past the time at which the properties of Podman are saved.
        controller.wait_log("seeded user", SOON);
        assert_eq!(controller.count_log(".controller-engine"), 1, "{thing}");
        assert_eq!(fs::read_to_string(folder.join("target")).unwrap(), "somebody's", "{thing}");
        assert!(!folder.join("nothing").exists(), "{thing}");
        for name in names {
            let found = fs::symlink_metadata(folder.join(name)).unwrap();
            assert!(!found.is_file(), "{thing} {name}");
        }
    }
}

#[test]
fn a_recorder_folder_that_is_a_link_is_refused_and_what_runs_stays() {
    let station = Station::up();
    let (folder, elsewhere) = (recorder_folder(&station).join("ultramic-384-evo-6a21"), station.dir().join("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &folder).unwrap();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let mut controller = station.controller_with(&[KEEP, ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    station.podman.wait_running(SOON, &[RODE]);
    let line = controller.wait_log("expected a folder, found a symbolic link", SOON);
    assert!(line.contains(&format!("{ULTRAMIC} cannot be created: workspace folder {}", folder.display())), "{line}");
    let reason = || station.heartbeat()?["meta"]["devices"]["0869-0389-034F6A21"]["reason"].as_str().map(str::to_owned);
    eventually(SOON, "the reason", || reason().filter(|reason| reason.contains("back-off")));
    assert_eq!(station.inspect(ULTRAMIC), None);
    fs::remove_file(&folder).unwrap();
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);

    // A running Recorder has its folder, whatever becomes of the name.
    let before = ids(&station);
    fs::rename(&folder, station.dir().join("moved")).unwrap();
    symlink(&elsewhere, &folder).unwrap();
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(SOON), 0);
    let next = station.controller_with(&[("SILVASONIC_RECORDER_MEMORY_LIMIT", "256m")]);
    next.wait_log("expected a folder, found a symbolic link", SOON);
    next.wait_log(&format!("{RODE} "), SOON);
    assert_eq!(ids(&station)[ULTRAMIC], before[ULTRAMIC]);
}

/// The health component about the file system of the workspace.
fn placement(controller: &Controller) -> Option<(bool, String)> {
    let component = controller.get("/healthy")?.1["components"]["workspace"].clone();
    Some((component["healthy"] == true, component["details"].as_str()?.to_owned()))
}

#[test]
fn a_disk_that_is_mounted_over_the_workspace_is_reported_and_what_runs_stays() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let is_well = |well| {
        eventually(SOON, "health", || placement(&controller).filter(|(healthy, text)| *healthy == well && !text.contains("known yet")))
    };
    is_well(true);
    let before = ids(&station);
    let disk = Disk::mount(station.workspace(), "mode=755");
    let (_, details) = is_well(false);
    let expected = format!("{} is on file system ", recorder_folder(&station).display());
    assert!(details.starts_with(&expected) && details.contains("a disk was mounted or unmounted; if that is right, restart"), "{details}");
    assert!(controller.wait_log(&expected, SOON).contains("[ERROR]"));
    drop(disk);
    is_well(true);
    controller.wait_log("the workspace is as expected again: ", SOON);
    assert_eq!(controller.count_log(&expected), 1);
    assert_eq!(ids(&station), before);
}

#[test]
fn a_workspace_on_the_root_file_system_is_reported_where_a_disk_is_expected() {
    struct Folder(PathBuf);
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
    let station = Station::plan().without_podman().up();
    // Below /tmp there may be a file system of its own.
    let folder = Folder(PathBuf::from(format!("/var/tmp/silvasonic-workspace-{}", std::process::id())));
    let (local, state) = (folder.0.join("disk/recorder"), station.dir().join("state"));
    fs::create_dir_all(folder.0.join("disk")).unwrap();
    let settings = [
        ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1"),
        ("SILVASONIC_RECORDER_WORKSPACE_LOCAL", local.to_str().unwrap()),
        ("STATE_DIRECTORY", state.to_str().unwrap()),
    ];
    let seen = |expected: &str| {
        let controller = station.controller_with(&settings);
        eventually(SOON, expected, || placement(&controller).filter(|(_, text)| text.contains(expected)));
        controller
    };
    station.tree.set(&[]);
    drop(seen("on the root file system"));
    assert!(!state.join("workspace").exists());
    let disk = Disk::mount(folder.0.join("disk"), "mode=755");
    let controller = seen("on a file system of its own");
    eventually(SOON, "it is remembered", || state.join("workspace").exists().then_some(()));
    drop(controller);
    drop(disk);
    let controller = seen("had one of its own in an earlier run: mount the disk, then restart");
    assert!(!placement(&controller).unwrap().0);
    drop(controller);
    fs::remove_file(state.join("workspace")).unwrap();
    station.tree.alter(|root| {
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/fstab"), format!("LABEL=data {} ext4 defaults,nofail 0 2\n", folder.0.join("disk").display())).unwrap();
    });
    drop(seen("/etc/fstab mounts another one at "));
}
