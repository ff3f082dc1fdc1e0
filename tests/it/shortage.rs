//! Descriptors and threads that run out: the program goes on, does what it can, and does the rest once there are some.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";
const OTHER: &str = "silvasonic-recorder-rode-nt-usb-p2d1";

fn open_files(controller: &Controller) -> usize {
    fs::read_dir(format!("/proc/{}/fd", controller.id())).map_or(0, Iterator::count)
}

fn is_alive(controller: &mut Controller) {
    assert_eq!(controller.exit_code(), None, "{}", controller.log());
    assert_eq!(controller.count_log("bug in thread"), 0);
}

#[test]
fn with_forty_descriptors_idle_clients_and_logs_keep_nothing_from_what_matters() {
    let mut station = Station::up();
    let image = station.image("talker", "while :; do echo line; sleep 0.2; done");
    let both = [Card::ultramic(), Card::rode().index(1)];
    station.tree.set(&both);
    let words = ["prlimit", "--nofile=40:40"];
    let mut controller = Controller::run(station.controller_command_after(&words, &[("SILVASONIC_RECORDER_IMAGE", &image)]));
    let id = controller.id();
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    controller.wait_log("seeded user", SOON);
    println!("{} files are open", open_files(&controller));
    let lines = station.redis.listen("silvasonic:logs");
    lines.recv_timeout(SOON).unwrap();

    let port = eventually(SOON, "a port", || controller.port());
    let (done, most) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
    thread::scope(|scope| {
        // Each is closed after a while, so there are always new ones.
        scope.spawn(|| {
            let mut idle = Vec::new();
            while !done.load(Ordering::Relaxed) {
                idle.extend(TcpStream::connect(("127.0.0.1", port)));
                if idle.len() > 100 {
                    idle.remove(0);
                }
                let open = fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
                most.fetch_max(open, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..4 {
                let known = controller.count_log("PostgreSQL is available again");
                station.postgres.stop();
                eventually(SOON, "PostgreSQL is missed", || {
                    is_alive(&mut controller);
                    controller.get("/healthy").filter(|(status, _)| *status == 503)
                });
                station.postgres.start();
                eventually(SOON, "PostgreSQL is used again", || {
                    is_alive(&mut controller);
                    (controller.count_log("PostgreSQL is available again") > known).then_some(())
                });
            }
            station.tree.set(&[Card::ultramic(), Card::rode().index(1), Card::rode().id("NTUSB_1").index(2).at("2-1")]);
            eventually(SOON, "three Recorders", || {
                is_alive(&mut controller);
                (station.inspect(OTHER)?["State"]["Status"] == "running").then_some(())
            });
            eventually(SOON, "health", || controller.get("/healthy").filter(|(status, _)| *status == 200));
            lines.try_iter().for_each(drop);
            lines.recv_timeout(SOON).unwrap();
        }));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    println!("{} files were open", most.load(Ordering::Relaxed));
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE, OTHER]);
    // One log is followed at a time, and another one when that has ended.
    let origin = |line: String| serde_json::from_str::<serde_json::Value>(&line).unwrap()["instance_id"].as_str().unwrap().to_owned();
    lines.try_iter().for_each(drop);
    let first = origin(lines.recv_timeout(SOON).unwrap());
    station.postgres.exec(&format!("UPDATE devices SET enabled = FALSE WHERE name = '{first}'"));
    eventually(SOON, "lines of another Recorder", || lines.try_iter().map(origin).any(|next| next != first).then_some(()));
    is_alive(&mut controller);
}

/// Sets how many threads the user of this process may have in all. Only that user may do so, without further rights.
fn limit_threads(controller: &Controller, user: &[&str], count: &str) {
    let id = controller.id().to_string();
    let set = Command::new(user[0]).args(&user[1..]).args(["prlimit", "--pid", &id, &format!("--nproc={count}:")]).status().unwrap();
    assert!(set.success());
}

#[test]
fn without_threads_the_program_goes_on_and_acts_once_there_are_some() {
    let mut station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    // The kernel counts the threads of a user, so this one has no others.
    let user = 200_000 + std::process::id();
    chown(station.workspace().join("recorder"), Some(user), Some(user)).unwrap();
    chown(station.podman.socket(), Some(user), Some(user)).unwrap();
    let ids = [format!("--reuid={user}"), format!("--regid={user}")];
    let words = ["setpriv", &ids[0], &ids[1], "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let mut controller = Controller::run(station.controller_command_after(&words, &[]));
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    let before = station.podman.mark(ULTRAMIC);

    limit_threads(&controller, &words, "1");
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    controller.wait_log("cannot start a thread for an action", SOON);
    for _ in 0..3 {
        let known = controller.count_log("PostgreSQL is available again");
        station.postgres.stop();
        controller.wait_log("cannot read PostgreSQL", SOON);
        station.postgres.start();
        eventually(SOON, "PostgreSQL is used again", || {
            is_alive(&mut controller);
            (controller.count_log("PostgreSQL is available again") > known).then_some(())
        });
    }
    station.podman.stop_api();
    controller.wait_log("cannot list containers", SOON);
    station.podman.start_api();
    chown(station.podman.socket(), Some(user), Some(user)).unwrap();
    controller.wait_log("Podman is available again", SOON);
    is_alive(&mut controller);
    assert_eq!(controller.count_log("cannot start a thread for an action"), 1);
    assert!(station.inspect(RODE).is_none());

    limit_threads(&controller, &words, "1000");
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    eventually(SOON, "health", || controller.get("/healthy").filter(|(status, _)| *status == 200));
    is_alive(&mut controller);
}
