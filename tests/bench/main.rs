//! `make bench`: what the Controller costs and how quick it is, in one run on real services.
//!
//! Prints a table with this machine's name and, where there is one, the limit that each figure should keep; `--json`
//! prints the same as JSON. Where Podman itself takes most of the time, its own time for the same work is measured in
//! the same run and shown beside. `PEER="command"` sends another Controller with the same environment variables through
//! the same table. Names of sections choose some: program, decision, start, plug, died, crowd, quiet, nudge, logs.
//! Quiet figures are averages over `BENCH_QUIET_S` seconds (20; N=5: 600).
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

/// The parts, shared with the integration tests.
#[allow(dead_code)]
#[path = "../it"]
mod it {
    pub(crate) mod station;
    pub(crate) mod tree;
}

mod logs;
mod measure;
mod program;
mod quiet;
mod table;
mod times;

use it::station::{Controller, MALLOC, Station};
use it::tree::Card;
use std::process::Command;
use std::time::Duration;
use table::Table;

const SOON: Duration = Duration::from_secs(60);

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let subjects: Vec<Subject> = [None].into_iter().chain(std::env::var("PEER").ok().map(Some)).map(|peer| Subject { peer }).collect();
    let mut table = Table::new(subjects.len());
    let mut section = |name: &str, measure: &dyn Fn(&mut Table, &Subject)| {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            for (column, subject) in subjects.iter().enumerate() {
                table.column = column;
                measure(&mut table, subject);
            }
        }
    };
    section("program", &program::program);
    section("decision", &program::decision);
    section("start", &|table, subject| times::start(table, subject, 1));
    section("start", &|table, subject| times::start(table, subject, 3));
    section("plug", &|table, subject| times::plug(table, subject, 20));
    section("died", &|table, subject| times::died(table, subject, 5));
    section("replace", &|table, subject| times::replace(table, subject, 5));
    section("crowd", &|table, subject| times::crowd(table, subject, 50));
    section("quiet", &|table, subject| quiet::quiet(table, subject, 1));
    section("quiet", &|table, subject| quiet::quiet(table, subject, 5));
    section("quiet", &|table, subject| quiet::quiet(table, subject, 50));
    section("nudge", &|table, subject| quiet::nudge(table, subject, 20));
    section("logs", &logs::logs);
    table.print(std::env::args().any(|argument| argument == "--json"));
}

/// A Controller that is measured: this one, or a peer by its command line.
struct Subject {
    peer: Option<String>,
}

impl Subject {
    fn is_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// Starts it with this station's environment.
    fn controller(&self, station: &Station, overrides: &[(&str, &str)]) -> Controller {
        let Some(peer) = &self.peer else { return station.controller_with(&[overrides, &[MALLOC]].concat()) };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec {peer}"));
        station.dress(&mut command, overrides);
        Controller::run(command)
    }
}

/// `count` UltraMics with serials of their own.
fn microphones(count: u32) -> Vec<Card> {
    (0..count).map(Card::numbered).collect()
}

fn names(count: u32) -> Vec<String> {
    (0..count).map(Card::numbered_recorder).collect()
}

/// A station whose database is seeded and whose Podman is warm.
fn seeded() -> Station {
    let station = Station::up();
    let controller = station.controller();
    controller.wait_log("seeded user", SOON);
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 100}' WHERE key = 'system'");
    station
}

/// Waits until all of the first `count` microphones are recorded.
fn wait_running(station: &Station, count: u32) {
    station.podman.wait_running(SOON, &names(count));
}
