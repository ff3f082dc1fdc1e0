//! What status pages cost that are open.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::it::station::eventually;
use super::measure::{mebibytes, watch};
use super::quiet::SETTLE;
use super::table::Table;
use super::{SOON, Subject, microphones, seeded, setting, wait_running};

const PAGES: usize = 30;
const MICROPHONES: u32 = 5;

/// Asks as a page does; returns after how long it asks again.
fn ask(port: u16) -> Option<Duration> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /status.json HTTP/1.1\r\nHost: station\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let document: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    Some(Duration::from_secs_f64(document["poll_s"].as_f64()?))
}

/// CPU and memory with many open pages, and with none.
pub(crate) fn page(table: &mut Table, subject: &Subject) {
    if subject.is_peer() {
        return;
    }
    let span = Duration::from_secs(setting("PAGE_S").unwrap_or(60));
    let station = seeded();
    station.tree.set(&microphones(MICROPHONES));
    let controller = subject.controller(&station, &[]);
    wait_running(&station, MICROPHONES);
    thread::sleep(SETTLE * 2);
    let (id, port) = (controller.id(), eventually(SOON, "a port", || controller.port()));
    let memory = || mebibytes(id, "status", "VmRSS:");
    let (memory_without, [without]) = (memory(), watch([&[id]], span));
    let (ends, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let (with, memory_with, rate) = thread::scope(|scope| {
        for _ in 0..PAGES {
            scope.spawn(|| {
                let mut next = Instant::now();
                while !ends.load(Ordering::Relaxed) {
                    if Instant::now() < next {
                        thread::sleep(Duration::from_millis(20));
                        continue;
                    }
                    let wait = ask(port);
                    answers.fetch_add(u64::from(wait.is_some()), Ordering::Relaxed);
                    next = Instant::now() + wait.unwrap_or(Duration::from_secs(1));
                }
            });
        }
        // Until each page knows how often it may ask.
        thread::sleep(SETTLE * 4);
        let before = answers.load(Ordering::Relaxed);
        let [with] = watch([&[id]], span);
        let rate = (answers.load(Ordering::Relaxed) - before) as f64 / span.as_secs_f64();
        let memory = memory();
        ends.store(true, Ordering::Relaxed);
        (with, memory, rate)
    });
    thread::sleep(SETTLE * 2);
    let [after] = watch([&[id]], span);
    let figure = |name: &str| format!("page, N={MICROPHONES}: {name}");
    table.add(figure(&format!("CPU caused by {PAGES} open pages")), with.0 - without.0, "% of a core").limit(0.1);
    table.add(figure("answers"), rate, "/s").limit(6.0);
    table.add(figure(&format!("memory taken by {PAGES} open pages")), memory_with - memory_without, "MiB").limit(1.0);
    table.add(figure("context switches with no open page, before"), without.1, "/s");
    table.add(figure("context switches with no open page, after"), after.1, "/s");
    table.add(figure("CPU with no open page, before"), without.0, "% of a core");
    table.add(figure("CPU with no open page, after"), after.0, "% of a core");
}
