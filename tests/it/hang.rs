//! Threads that hang for good: the process replaces itself, and nobody notices but the log.
//!
//! A sandbox that forbids `pidfd_getfd` keeps the Controller from ending calls to PostgreSQL, so each server process that
//! is frozen costs it a thread.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::station::{Controller, Station, eventually, free_port, throughout};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const REPLACES: &str = "the process replaces itself";

/// Forbids system call 438, `pidfd_getfd`, on all architectures; then executes the other words.
const SANDBOX: &str = "
import ctypes, os, struct, sys
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 438), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
";

/// A Controller that records, in the sandbox.
fn in_sandbox(station: &Station, settings: &[(&str, &str)]) -> Controller {
    station.tree.set(&[Card::ultramic()]);
    let controller = Controller::run(station.controller_command_after(&["python3", "-c", SANDBOX], settings));
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    controller.wait_log("cannot limit the time that PostgreSQL takes to answer", SOON);
    controller
}

/// Freezes the server process of the Controller's newest connection, `count` times.
fn freeze(station: &Station, controller: &Controller, count: usize) {
    let newest = "SELECT pid FROM pg_stat_activity WHERE application_name = 'silvasonic-controller' ORDER BY backend_start DESC LIMIT 1";
    for _ in 0..count {
        let pid = eventually(SOON, "a server process", || station.postgres.value::<i32>(newest));
        let connected = controller.count_log("connected to PostgreSQL");
        kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
        eventually(SOON, "another connection", || (controller.count_log("connected to PostgreSQL") > connected).then_some(()));
    }
}

fn threads(controller: &Controller) -> usize {
    fs::read_dir(format!("/proc/{}/task", controller.id())).unwrap().count()
}

#[test]
fn hung_threads_end_with_the_process_that_replaces_itself() {
    let station = Station::up();
    let (path, port) = (station.dir().join("notify"), free_port());
    let socket = UnixDatagram::bind(&path).unwrap();
    let (sender, messages) = channel();
    // Without a reader, the socket is full after some messages. The thread ends with this process.
    thread::spawn(move || {
        let mut message = [0; 256];
        while let Ok(length) = socket.recv(&mut message) {
            let _ = sender.send(String::from_utf8_lossy(&message[..length]).into_owned());
        }
    });
    let notified = |text: &str| {
        eventually(SOON, text, || messages.try_iter().any(|message| message == text).then_some(()));
    };
    let settings = [
        ("SILVASONIC_CONTROLLER_PORT", port.to_string()),
        ("NOTIFY_SOCKET", path.to_str().unwrap().to_owned()),
        ("WATCHDOG_USEC", "1000000".to_owned()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut controller = in_sandbox(&station, &settings);
    notified("READY=1\nWATCHDOG=1");
    let before = station.podman.mark(ULTRAMIC);
    // Another database, so that it has no connection to freeze.
    let standby = station.controller_with(&[("SILVASONIC_DB_HOST", "127.0.0.1"), ("SILVASONIC_DB_PORT", "1")]);
    standby.wait_log("stands by", SOON);
    let usual = threads(&controller);

    freeze(&station, &controller, 2);
    assert_eq!((threads(&controller), controller.count_log(REPLACES)), (usual + 2, 0));
    freeze(&station, &controller, 1);
    let line = controller.wait_log(REPLACES, SOON);
    assert!(line.contains("threads hang (3 database)"), "{line}");
    let adopted = controller.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    println!("{line}\n{adopted}");
    notified("RELOADING=1\nWATCHDOG=1");
    notified("READY=1\nWATCHDOG=1");
    notified("WATCHDOG=1");
    eventually(SOON, "health", || controller.get("/healthy").filter(|(status, _)| *status == 200));
    assert_eq!(controller.port(), Some(port));
    let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", controller.id())).unwrap();
    assert_eq!(file("comm"), "silvasonic-cont\n");
    let program = station.controller_command(&[]).get_program().to_str().unwrap().to_owned();
    assert_eq!(file("cmdline"), program + "\0");
    eventually(SOON, "the usual threads", || (threads(&controller) <= usual).then_some(()));
    eventually(SOON, "a switch of the user", || {
        station.postgres.exec("UPDATE devices SET enabled = FALSE");
        station.containers().is_empty().then_some(())
    });
    station.postgres.exec("UPDATE devices SET enabled = TRUE");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_ne!(station.podman.mark(ULTRAMIC), before);
    assert_eq!((controller.count_log("stopped and removed"), controller.count_log("starts; owner")), (1, 2));

    // The same happens at once again, and is no reason so soon.
    freeze(&station, &controller, 3);
    eventually(SOON, "three hung threads", || (threads(&controller) >= usual + 3).then_some(()));
    assert_eq!((controller.count_log(REPLACES), standby.count_log("takes over"), controller.exit_code()), (1, 0, None));
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(SOON), 0);
    standby.wait_log("takes over", SOON);
    station.postgres.resume();
}

#[test]
fn a_server_that_is_frozen_as_a_whole_costs_one_thread() {
    for host in ["", "127.0.0.1"] {
        let station = Station::up();
        let host = if host.is_empty() { station.postgres.socket_dir().to_str().unwrap() } else { host };
        let mut controller = in_sandbox(&station, &[("SILVASONIC_DB_HOST", host)]);
        let usual = threads(&controller);
        station.postgres.stop_hung();
        eventually(SOON, "one hung thread", || (threads(&controller) > usual).then_some(()));
        // Long enough for several deadlines.
        throughout(Duration::from_secs(12), "one thread hangs", || {
            (threads(&controller), controller.count_log(REPLACES), controller.exit_code()) == (usual + 1, 0, None)
        });
        let known = controller.count_log("PostgreSQL is available again");
        station.postgres.resume();
        eventually(Duration::from_secs(5), "PostgreSQL is used again", || {
            (controller.count_log("PostgreSQL is available again") > known).then_some(())
        });
        eventually(SOON, "the usual threads", || (threads(&controller) <= usual).then_some(()));
    }
}

#[test]
fn a_process_that_cannot_replace_itself_continues() {
    let station = Station::up();
    // Together, they are longer than what a stack of 256 KiB allows.
    let long = "x".repeat(100_000);
    let mut controller = in_sandbox(&station, &[("LONG_A", &long), ("LONG_B", &long)]);
    let id = controller.id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &id, "--stack=262144:"]).status().unwrap().success());
    let before = station.podman.mark(ULTRAMIC);
    freeze(&station, &controller, 3);
    let line = controller.wait_log("cannot replace the process", SOON);
    assert!(line.contains("Argument list too long"), "{line}");
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC, "silvasonic-recorder-rode-nt-usb-p1d2"]);
    eventually(SOON, "health", || controller.get("/healthy").filter(|(status, _)| *status == 200));
    assert_eq!((controller.count_log(REPLACES), controller.exit_code()), (1, None));
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    station.postgres.resume();
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(SOON), 0);
}
