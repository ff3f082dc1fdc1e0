//! What a quiet second costs: counts of statements and requests, never times.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::live::log_statements;
use super::station::{Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);

/// Listens on `path`, passes everything on to `target` and counts requests. Ends with the test process.
fn counting_proxy(path: &Path, target: &Path) -> Arc<AtomicUsize> {
    let requests = Arc::new(AtomicUsize::new(0));
    let (counter, target) = (Arc::clone(&requests), target.to_owned());
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = UnixStream::connect(&target).unwrap();
            let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            let counter = Arc::clone(&counter);
            thread::spawn(move || forward(client, server, &counter));
        }
    });
    requests
}

/// A request's head ends with an empty line, and none of the Controller's bodies holds one.
fn forward(mut client: UnixStream, mut server: UnixStream, counter: &AtomicUsize) {
    let (mut chunk, mut matched) = ([0; 4096], 0);
    while let Ok(count @ 1..) = client.read(&mut chunk) {
        for byte in &chunk[..count] {
            matched = if *byte == b"\r\n\r\n"[matched] { matched + 1 } else { usize::from(*byte == b'\r') };
            if matched == 4 {
                counter.fetch_add(1, Ordering::SeqCst);
                matched = 0;
            }
        }
        if server.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn a_quiet_cycle_is_one_statement_and_one_podman_request_at_most() {
    let station = Station::up();
    log_statements(&station);
    let socket = station.dir().join("counted.sock");
    let requests = counting_proxy(&socket, station.podman.socket());
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let controller = station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", socket.to_str().unwrap())]);
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-6a21", "silvasonic-recorder-rode-nt-usb-p1d2"]);
    controller.wait_log("seeded user", SOON);

    let statements = || -> Vec<String> {
        let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
        log.lines().filter(|line| line.starts_with("<silvasonic-controller>LOG:  execute")).map(str::to_owned).collect()
    };
    let reads = |statements: &[String]| statements.iter().filter(|line| line.contains("SELECT kind, key")).count();
    // The first reads of the steady state have passed.
    let settled = reads(&statements());
    eventually(SOON, "a quiet cycle", || (reads(&statements()) > settled + 1).then_some(()));
    let (before, asked) = (statements().len(), requests.load(Ordering::SeqCst));
    let cycles = eventually(SOON, "five cycles", || {
        let cycles = reads(&statements()[before..]);
        (cycles >= 5).then_some(cycles)
    });
    let asked = requests.load(Ordering::SeqCst) - asked;
    let statements = statements();
    let since = &statements[before..];
    assert!(since.iter().all(|line| line.contains("SELECT kind, key")), "{since:#?}");
    assert!((1..=cycles + 1).contains(&asked), "{asked} Podman requests in {cycles} cycles");
}
