//! systemd is told that the Controller is up, that its main loop moves, and that it stops. A datagram socket of the test's
//! own stands for systemd's.

use super::station::{Station, eventually};
use rustix::process::Signal;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// The next message, `None` if there is none within `patience`.
fn next(socket: &UnixDatagram, patience: Duration) -> Option<String> {
    let mut message = [0; 256];
    socket.set_read_timeout(Some(patience)).unwrap();
    let length = socket.recv(&mut message).ok()?;
    Some(String::from_utf8(message[..length].to_vec()).unwrap())
}

#[test]
fn systemd_hears_ready_then_the_watchdog_only_while_the_loop_moves_then_stopping() {
    let station = Station::plan().without_postgres().without_redis().without_podman().up();
    let path = station.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut controller = station.controller_with(&[
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "1000000"),
        ("SILVASONIC_SHUTDOWN", "keep"),
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"),
    ]);
    assert_eq!(next(&socket, SOON).as_deref(), Some("READY=1\nWATCHDOG=1"));
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(next(&socket, SOON).as_deref(), Some("WATCHDOG=1"));
    }
    let took = start.elapsed();
    assert!((Duration::from_millis(1450)..Duration::from_millis(2400)).contains(&took), "three messages in {took:?}");

    // Whoever stands still feeds nobody.
    controller.signal(Signal::STOP);
    eventually(SOON, "the last message", || next(&socket, Duration::from_millis(1200)).is_none().then_some(()));
    assert!(controller.exit_code().is_none());
    controller.signal(Signal::CONT);
    assert_eq!(next(&socket, SOON).as_deref(), Some("WATCHDOG=1"));

    controller.signal(Signal::TERM);
    eventually(SOON, "STOPPING=1", || (next(&socket, SOON).as_deref() == Some("STOPPING=1")).then_some(()));
    assert_eq!(controller.wait_exit(SOON), 0);
}

#[test]
fn the_units_are_ones_that_systemd_understands() {
    for (file, manager) in [("silvasonic-controller.service", "--system"), ("silvasonic-controller.user.service", "--user")] {
        let unit = format!("{}/packaging/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(unit).unwrap();
        // Nothing that a station in the field waits for.
        for waits in ["network-online.target", "postgresql", "redis"] {
            assert!(!text.contains(waits), "{file}: {waits}");
        }
        let text = text.replace("/usr/bin/silvasonic-controller", env!("CARGO_BIN_EXE_silvasonic-controller"));
        let dir = std::env::temp_dir().join(format!("sv-unit-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("silvasonic-controller.service");
        fs::write(&path, text).unwrap();
        let verified = Command::new("systemd-analyze").args([manager, "verify", "--man=no"]).arg(&path).output();
        fs::remove_dir_all(&dir).unwrap();
        let Ok(verified) = verified else { return eprintln!("systemd-analyze is not installed: skipped") };
        let complaints = String::from_utf8_lossy(&verified.stderr);
        // of this unit; others of the machine may have faults of their own, or no manager of a user
        let is_verified = verified.status.success() || manager == "--user";
        assert!(is_verified && !complaints.contains("silvasonic-controller.service"), "{complaints}");
    }
}

#[test]
fn an_abstract_socket_is_found_and_a_watchdog_that_is_not_ours_is_not_fed() {
    let station = Station::plan().without_postgres().without_redis().without_podman().up();
    let name = format!("silvasonic-test-{}", station.dir().file_name().unwrap().to_str().unwrap());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let controller = station.controller_with(&[
        ("NOTIFY_SOCKET", &format!("@{name}")),
        ("WATCHDOG_USEC", "200000"),
        ("WATCHDOG_PID", "1"),
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"),
    ]);
    assert_eq!(next(&socket, SOON).as_deref(), Some("READY=1\nWATCHDOG=1"));
    assert_eq!(next(&socket, Duration::from_secs(1)), None);
    drop(controller);
    // What nobody reads, and what makes no sense, holds nothing up.
    for other in ["/nowhere", "vsock:2:1", "@", ""] {
        let mut controller = station.controller_with(&[("NOTIFY_SOCKET", other), ("WATCHDOG_USEC", "x")]);
        eventually(SOON, "an answer", || controller.get("/healthy"));
        assert!(controller.exit_code().is_none(), "{other:?}");
    }
}
