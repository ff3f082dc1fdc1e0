//! Health checks get through whatever other clients do. The Recorder serves as the program: it needs the least.

use super::recorder::Recorder;
use super::station::{Station, eventually, free_port};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const NOBODY: &str = "redis://127.0.0.1:1/0";

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Sends a text and returns status and body of the answer.
fn ask(port: u16, request: &str) -> (u16, String) {
    let mut stream = connect(port);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn healthy(port: u16) -> Duration {
    let start = Instant::now();
    let (status, body) = ask(port, "GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n");
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, health["status"].as_str()), (200, Some("ok")));
    start.elapsed()
}

/// Reads until the other side ends the connection, one way or another.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn each_request_gets_the_answer_it_deserves() {
    let recorder = Recorder::start(NOBODY);
    let port = recorder.port();
    healthy(port);
    let table = [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 404),
        ("POST /healthy HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc".to_owned(), 405),
        ("nonsense\r\n\r\n".to_owned(), 400),
        (format!("GET /healthy HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(1200)), 200),
        (format!("GET /healthy?{} HTTP/1.1\r\n\r\n", "x".repeat(15 << 10)), 200),
        (format!("GET /healthy HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(16 << 10)), 431),
        ("GET http://127.0.0.1/healthy HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 200),
        ("GET /healthy HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n".to_owned(), 200),
    ];
    for (request, status) in table {
        assert_eq!(ask(port, &request).0, status, "{request:?}");
    }
}

#[test]
fn every_answer_closes_and_a_refused_method_names_the_allowed_one() {
    let recorder = Recorder::start(NOBODY);
    let port = recorder.port();
    for (request, allow) in
        [("GET /healthy HTTP/1.0\r\n\r\n", false), ("DELETE /healthy HTTP/1.1\r\n\r\n", true), ("nonsense\r\n\r\n", false)]
    {
        let mut stream = connect(port);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert_eq!(answer.contains("\r\nAllow: GET\r\n"), allow, "{answer}");
    }
}

#[test]
fn both_families_of_addresses_are_served() {
    let recorder = Recorder::start(NOBODY);
    let port = recorder.port();
    healthy(port);
    // A machine without IPv6 has no such loopback address.
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET /healthy HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[test]
fn silent_slow_and_endless_clients_delay_nobody_and_cost_nothing() {
    let recorder = Recorder::start(NOBODY);
    let port = recorder.port();
    healthy(port);
    let memory = || recorder.status("VmRSS:").trim_end_matches(" kB").parse::<i64>().unwrap();
    let before = memory();

    let silent: Vec<TcpStream> = (0..200).map(|_| connect(port)).collect();
    assert!(healthy(port) < Duration::from_secs(1), "after 200 silent clients");
    let endless: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = connect(port);
            stream.set_nonblocking(true).unwrap();
            // A request line is all that is kept.
            let mut left = 1 << 20;
            while left > 0 {
                match stream.write(&[b'x'; 16 << 10]) {
                    Ok(count) => left -= count.min(left),
                    Err(_) => break,
                }
            }
            stream
        })
        .collect();
    assert!(healthy(port) < Duration::from_secs(1), "after 40 clients with endless heads");
    let halfway = memory();
    assert!(halfway - before < 1024, "{before} kB grew to {halfway} kB");

    let mut slow = connect(port);
    slow.set_nonblocking(true).unwrap();
    let start = Instant::now();
    let mut next = start;
    // one byte at a time, until the server has enough of it
    while start.elapsed() < Duration::from_secs(5) {
        if Instant::now() >= next {
            if slow.write(b"G").is_err() {
                break;
            }
            next += Duration::from_millis(200);
            healthy(port);
        }
        if !matches!(slow.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock) {
            break;
        }
    }
    let took = start.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(3)).contains(&took), "a slow client lasted {took:?}");
    for mut stream in silent.into_iter().chain(endless) {
        stream.set_nonblocking(false).unwrap();
        assert!(is_closed(&mut stream));
    }
    let after = memory();
    assert!(after - before < 1024, "{before} kB grew to {after} kB");
}

#[test]
fn a_port_that_becomes_free_is_served_within_half_a_minute() {
    let station = Station::plan().without_postgres().without_redis().without_podman().up();
    let port = free_port();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let controller = station.controller_with(&[("SILVASONIC_CONTROLLER_PORT", &port.to_string())]);
    let line = controller.wait_log("cannot serve /healthy", Duration::from_secs(10));
    assert!(line.ends_with(&format!("on port {port}: Address already in use (os error 98); retrying every 30 s")), "{line}");
    drop(taken);
    controller.wait_log(&format!("serving /healthy on port {port} after 30 s"), Duration::from_secs(40));
    eventually(Duration::from_secs(5), "an answer", || controller.get("/healthy"));
    assert_eq!(controller.count_log("cannot serve /healthy"), 1);
}
