//! `make bench`: what the Controller costs and how quick it is, in one run on real services.
//!
//! Prints a table with this machine's name and, where there is one, the limit that each figure should keep. Names of
//! sections choose some (`SECTIONS`); `--json` prints the table as JSON, `--save FILE` also writes it there, and
//! `--compare FILE` compares counts and ratios with those of a file. Where Podman itself takes most of the time, its own
//! time for the same work is measured in the same run and shown beside. `PEER="command"` sends another Controller with
//! the same environment variables through the same table.
//!
//! Quiet figures are averages over `BENCH_QUIET_S` seconds (20; N=5: 600), over `QUIET_MINUTES` (20) with a Podman that ends
//! when it is idle, over `CAPTURES_S` (900) while frames arrive, over `PAGE_S` (60) with and without open pages, and over `SCALE_S` seconds (20) for each number of devices.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

/// The parts, shared with the integration tests.
#[allow(dead_code)]
#[path = "../it"]
mod it {
    pub(crate) mod station;
    pub(crate) mod tree;
}

mod arguments;
mod by_hand;
mod captures;
mod logs;
mod measure;
mod meter;
mod page;
mod program;
mod quiet;
mod scale;
mod table;
mod times;

use arguments::Arguments;
use it::station::{Controller, MALLOC, Plan, Station};
use it::tree::Card;
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::Duration;
use table::Table;

const SOON: Duration = Duration::from_secs(60);

/// A part of the table.
struct Section {
    name: &'static str,
    measure: fn(&mut Table, &Subject),
}

const SECTIONS: &[Section] = &[
    Section { name: "size", measure: program::size },
    Section { name: "build", measure: program::build },
    Section { name: "decision", measure: program::decision },
    Section { name: "start", measure: |table, subject| [1, 3].iter().for_each(|count| times::start(table, subject, *count)) },
    Section { name: "plug", measure: |table, subject| times::plug(table, subject, 20) },
    Section { name: "died", measure: |table, subject| times::died(table, subject, 5) },
    Section { name: "by-hand", measure: |table, subject| by_hand::by_hand(table, subject, 5) },
    Section { name: "replace", measure: |table, subject| times::replace(table, subject, 5) },
    Section { name: "crowd", measure: |table, subject| times::crowd(table, subject, 50, 5) },
    Section { name: "counts", measure: quiet::counts },
    Section { name: "quiet", measure: |table, subject| [1, 5, 50].iter().for_each(|count| quiet::quiet(table, subject, *count)) },
    Section { name: "quiet-hour", measure: quiet::quiet_hour },
    Section { name: "captures", measure: captures::captures },
    Section { name: "scale", measure: scale::scale },
    Section { name: "nudge", measure: |table, subject| quiet::nudge(table, subject, 20) },
    Section { name: "logs", measure: logs::logs },
    Section { name: "flood", measure: logs::floods },
    Section { name: "page", measure: page::page },
];

fn main() -> ExitCode {
    let names: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
    let arguments = match Arguments::read(std::env::args().skip(1), &names) {
        Ok(arguments) => arguments,
        Err(fault) => {
            eprintln!("bench: {fault}");
            return ExitCode::from(2);
        }
    };
    let subjects: Vec<Subject> = [None].into_iter().chain(std::env::var("PEER").ok().map(Some)).map(|peer| Subject { peer }).collect();
    let mut table = Table::new(subjects.len());
    for section in SECTIONS.iter().filter(|section| arguments.chooses(section.name)) {
        for (column, subject) in subjects.iter().enumerate() {
            table.column = column;
            (section.measure)(&mut table, subject);
            // What comes next may fail, such as a peer that does not do what is awaited.
            if let Some(path) = &arguments.save {
                table.save(path);
            }
        }
    }
    if arguments.json {
        print!("{}", table.json());
    } else {
        table.print();
    }
    let is_well = arguments.compare.as_ref().is_none_or(|path| table.compare(path));
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A number from the environment.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number is expected")))
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
    seeded_in(Station::plan())
}

/// Likewise, with the parts of a plan.
fn seeded_in(plan: Plan) -> Station {
    let station = plan.up();
    let controller = station.controller();
    controller.wait_log("seeded user", SOON);
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 100}' WHERE key = 'system'");
    station
}

/// Waits until all of the first `count` microphones are recorded.
fn wait_running(station: &Station, count: u32) {
    station.podman.wait_running(SOON, &names(count));
}
