//! `make soak`: a station for SOAK_MINUTES (10) with random plugs, faults and kills, and a ledger at the end.
//!
//! Five microphones; the first is never touched, so that its Recorder must not miss a moment. The others have a profile of
//! their own, which is edited now and then. A watcher looks every 100 ms
//! which Recorder processes live. Time without one counts as lost, unless something that was done to this very Recorder
//! within the last seconds, or something that keeps Podman or the hardware from being seen at this moment, explains it.
//! A second Controller comes and goes; it takes over when the first one is killed. In the second half that one is not killed
//! any more, so that what it uses can be compared, and the second one has other settings, which it must not apply. Ends
//! with 1 if anything was lost, doubled, leaked or grown. `SOAK_SEED` repeats a run's dice.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

/// The parts, shared with the integration tests.
#[allow(dead_code)]
mod it {
    pub(crate) mod station;
    pub(crate) mod tree;
}

use it::station::{Controller, Dice, MALLOC, RECORDER, Station, eventually};
use it::tree::Card;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
const COUNT: usize = 5;
/// What a Recorder may take to come (back): two seconds, a back-off of as much, and Podman's own time.
const ALLOWANCE: Duration = Duration::from_secs(6);
/// Until an edited profile has replaced its Recorders: one after the other, each proven for ten seconds.
const REPLACED: Duration = Duration::from_secs(80);
/// How long a microphone has no Recorder while its Recorder is replaced: Podman's own stop and start on a busy machine.
const GAP: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
/// What an allocator may keep for itself.
const TOLERANCE_KIB: i64 = 512;

/// What does not work during a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stops {
    /// Everything works.
    Nothing,
    /// No other Recorder can start: who records goes on, or is back after a [`GAP`].
    Starts,
    /// Podman or the hardware cannot be seen: who is not there yet cannot come.
    All,
}

/// Something that is away for a while.
struct Fault {
    name: &'static str,
    stops: Stops,
    begin: fn(&mut Station),
    end: fn(&mut Station),
}

const FAULTS: [Fault; 10] = [
    Fault {
        name: "PostgreSQL stopped",
        stops: Stops::Nothing,
        begin: |station| station.postgres.stop(),
        end: |station| station.postgres.start(),
    },
    Fault {
        name: "PostgreSQL frozen",
        stops: Stops::Nothing,
        begin: |station| station.postgres.stop_hung(),
        end: |station| station.postgres.resume(),
    },
    Fault { name: "Redis stopped", stops: Stops::Nothing, begin: |station| station.redis.stop(), end: |station| station.redis.start() },
    Fault { name: "Redis frozen", stops: Stops::Nothing, begin: |station| station.redis.pause(), end: |station| station.redis.resume() },
    Fault {
        name: "Podman's service stopped",
        stops: Stops::All,
        begin: |station| station.podman.stop_api(),
        end: |station| station.podman.start_api(),
    },
    Fault {
        name: "Podman's service frozen",
        stops: Stops::All,
        begin: |station| station.podman.freeze_api(),
        end: |station| station.podman.thaw_api(),
    },
    Fault {
        name: CARDS,
        stops: Stops::All,
        begin: |station| station.tree.alter(|root| fs::write(root.join("proc/asound/cards"), "garbage").unwrap()),
        // The cards are shown anew after every fault.
        end: |_| {},
    },
    Fault {
        name: BROKEN,
        stops: Stops::Starts,
        begin: |station| {
            station.podman.exec(&["tag", BROKEN_IMAGE, RECORDER]);
            edit(station);
        },
        end: |station| {
            station.podman.exec(&["tag", SOUND_IMAGE, RECORDER]);
            edit(station);
        },
    },
    Fault {
        name: DISK,
        stops: Stops::Starts,
        begin: |station| {
            let mut stuffing = File::create(stuffing(station)).unwrap();
            while stuffing.write_all(&[0; 4096]).is_ok() {}
            edit(station);
        },
        end: |station| fs::remove_file(stuffing(station)).unwrap(),
    },
    Fault {
        name: TORN,
        stops: Stops::All,
        begin: |station| {
            station.podman.delete(&format!("/containers/{}?force=true&timeout=0", name(1)));
            station.podman.tear_creation(&name(1), ALLOWANCE);
        },
        end: |_| {},
    },
];
const CARDS: &str = "cards unreadable";
const OTHER: (&str, &str) = ("SILVASONIC_RECORDER_MEMORY_LIMIT", "256m");
const BROKEN: &str = "Recorder's image cannot start";
const DISK: &str = "Podman's disk full";
const TORN: &str = "Podman killed in the middle of a creation";

/// The Recorder's image under a name that no fault takes away.
const SOUND_IMAGE: &str = "localhost/sound:latest";
/// Its command does not exist.
const BROKEN_IMAGE: &str = "localhost/broken:latest";

/// What fills Podman's disk.
fn stuffing(station: &Station) -> PathBuf {
    station.dir().join("podman/storage/stuffing")
}

/// A name of the nth Recorder.
fn name(n: usize) -> String {
    if n == 0 { Card::numbered_recorder(0) } else { format!("silvasonic-recorder-edited-{n:04}") }
}

/// A user edits the profile of all but the first microphone.
fn edit(station: &Station) {
    let rate = "to_jsonb(((config->'audio'->>'sample_rate')::int - 90000) % 100000 + 90001)";
    station
        .postgres
        .exec(&format!("UPDATE microphone_profiles SET config = jsonb_set(config, '{{audio,sample_rate}}', {rate}) WHERE slug = 'edited'"));
}

/// What the watcher must know and what it finds, by microphone.
struct Book {
    wanted: [bool; COUNT],
    excused: [Instant; COUNT],
    /// Until then its Recorder may be replaced, which takes no longer than [`GAP`].
    replaced: [Instant; COUNT],
    stopped: Stops,
    lost: [f64; COUNT],
    explained: [f64; COUNT],
    doubled: u32,
}

/// Ids of the living Recorder processes of this station, by microphone.
fn recorders(url: &str) -> [Vec<u32>; COUNT] {
    let mut found: [Vec<u32>; COUNT] = Default::default();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.starts_with("silvasonic-reco")) {
            continue;
        }
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let text = String::from_utf8_lossy(&environment);
        if text.split('\0').any(|pair| pair.strip_prefix("SILVASONIC_REDIS_URL=") == Some(url)) {
            let number = text.split('\0').find_map(|pair| pair.strip_prefix("SILVASONIC_INSTANCE_ID=0869-0389-SER")?.parse::<usize>().ok());
            number.and_then(|number| found.get_mut(number)).into_iter().for_each(|ids| ids.push(id));
        }
    }
    found
}

fn watch(url: &str, book: &Mutex<Book>, stop: &AtomicBool) {
    let mut last = Instant::now();
    let mut seen = [last; COUNT];
    // Something was done to it since.
    let mut done_to = [false; COUNT];
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
        let alive = recorders(url);
        let mut book = book.lock().unwrap();
        let (now, span) = (Instant::now(), last.elapsed().as_secs_f64());
        last = now;
        for (n, ids) in alive.iter().enumerate() {
            book.doubled += u32::from(ids.len() > 1);
            if !ids.is_empty() || !book.wanted[n] {
                (seen[n], done_to[n]) = (now, false);
            } else {
                done_to[n] |= book.stopped == Stops::All || now < book.excused[n];
                let replaced = now - seen[n] < GAP && (now < book.replaced[n] || book.stopped == Stops::Starts);
                let waits = done_to[n] && book.stopped != Stops::Nothing;
                if now < book.excused[n] || replaced || waits {
                    book.explained[n] += span;
                } else {
                    book.lost[n] += span;
                }
            }
        }
    }
}

/// Memory of its own in KiB, open files, threads. Pages of the program that it had not used before are no growth.
fn usage(controller: &Controller) -> [i64; 3] {
    let files = fs::read_dir(format!("/proc/{}/fd", controller.id())).unwrap().count() as i64;
    [controller.status("RssAnon:"), files, controller.status("Threads:")]
}

fn main() -> ExitCode {
    let minutes: f64 = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    println!("a station for {minutes} minutes");
    let mut dice = Dice(Dice::seed("SOAK_SEED"));
    // On a disk of its own, which can be filled; Podman's sandbox sees what is mounted before it begins.
    let mut station = Station::plan().without_podman().up();
    let storage = station.dir().join("podman/storage");
    fs::create_dir_all(&storage).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=384m,mode=755", "tmpfs"]).arg(&storage).status().unwrap();
    assert!(mounted.success());
    station.podman.start();
    station.podman.recorder_image();
    station.podman.exec(&["tag", RECORDER, SOUND_IMAGE]);
    station.podman.program_image("broken", "/nonexistent");
    let mut plugged = [true; COUNT];
    let set = |station: &Station, plugged: &[bool; COUNT]| {
        station.tree.set(&(0..COUNT).filter(|n| plugged[*n]).map(|n| Card::numbered(n as u32)).collect::<Vec<_>>());
    };
    set(&station, &plugged);
    let mut controller = station.controller_with(&[MALLOC]);
    station.podman.wait_running(SOON, &(0..COUNT as u32).map(Card::numbered_recorder).collect::<Vec<_>>());
    controller.wait_log("seeded user", SOON);
    // Nobody matches this one by itself.
    station.postgres.exec(
        "INSERT INTO microphone_profiles (slug, name, config)
           SELECT 'edited', 'edited', jsonb_set(config #- '{audio,match}', '{audio,sample_rate}', '96000')
           FROM microphone_profiles WHERE slug = 'ultramic_384_evo';
         UPDATE devices SET profile_slug = 'edited' WHERE name <> '0869-0389-SER0000'",
    );
    let names: Vec<String> = (0..COUNT).map(name).collect();
    station.podman.wait_running(SOON, &names);

    let now = Instant::now();
    let book = Arc::new(Mutex::new(Book {
        wanted: plugged,
        excused: [now + ALLOWANCE; COUNT],
        replaced: [now; COUNT],
        stopped: Stops::Nothing,
        lost: [0.0; COUNT],
        explained: [0.0; COUNT],
        doubled: 0,
    }));
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (book, stop, url) = (Arc::clone(&book), Arc::clone(&stop), station.redis.url());
        thread::spawn(move || watch(&url, &book, &stop))
    };
    let excuse = |who: Range<usize>| who.for_each(|n| book.lock().unwrap().excused[n] = Instant::now() + ALLOWANCE);
    let edited = || (1..COUNT).for_each(|n| book.lock().unwrap().replaced[n] = Instant::now() + REPLACED);
    let mut ledger: BTreeMap<&str, u32> = BTreeMap::new();
    let mut standby: Option<Controller> = None;
    let mut fault: Option<&Fault> = None;
    let (begun, length) = (Instant::now(), Duration::from_secs_f64(minutes * 60.0));
    let mut before = None;
    while begun.elapsed() < length {
        thread::sleep(Duration::from_millis(300 + dice.below(2500) as u64));
        // At most one thing is away at a time; what is done to microphones goes on meanwhile.
        if let Some(present) = fault {
            if dice.below(3) == 0 {
                (present.end)(&mut station);
                set(&station, &plugged);
                excuse(1..COUNT);
                edited();
                book.lock().unwrap().stopped = Stops::Nothing;
                fault = None;
            }
        } else if dice.below(4) == 0 {
            let next = &FAULTS[dice.below(FAULTS.len())];
            book.lock().unwrap().stopped = next.stops;
            (next.begin)(&mut station);
            *ledger.entry(next.name).or_default() += 1;
            fault = Some(next);
            continue;
        }
        let n = 1 + dice.below(COUNT - 1);
        let podman_answers = !fault.is_some_and(|fault| fault.name.starts_with("Podman"));
        let kind = match dice.below(10) {
            0..=3 if fault.is_none_or(|fault| fault.name != CARDS) => {
                plugged[n] = !plugged[n];
                let mut book = book.lock().unwrap();
                (book.wanted[n], book.excused[n]) = (plugged[n], Instant::now() + ALLOWANCE);
                drop(book);
                set(&station, &plugged);
                if plugged[n] { "plugged" } else { "unplugged" }
            }
            4 => {
                excuse(n..n + 1);
                let Some(id) = recorders(&station.redis.url())[n].first().and_then(|id| Pid::from_raw(*id as i32)) else { continue };
                let _ = kill_process(id, Signal::KILL);
                "Recorder killed"
            }
            5 if podman_answers => {
                excuse(n..n + 1);
                station.podman.delete(&format!("/containers/{}?force=true&timeout=0", name(n)));
                "container removed by hand"
            }
            6 if begun.elapsed() < length / 2 => {
                excuse(1..COUNT);
                controller.kill();
                if let Some(second) = standby.take() {
                    controller = second;
                    "Controller killed, the second takes over"
                } else {
                    controller = station.controller_with(&[MALLOC]);
                    "Controller killed"
                }
            }
            7 if fault.is_none() => {
                edited();
                edit(&station);
                "profile edited"
            }
            8 if fault.is_none() => {
                station.redis.publish("silvasonic:nudge", "reconcile");
                "nudge"
            }
            // Nothing is excused: as long as it stands by, nobody must notice it.
            9 => {
                if standby.take().is_some() {
                    "second Controller killed"
                } else {
                    // One that will never lead would replace every Recorder.
                    let settings: &[_] = if begun.elapsed() < length / 2 { &[MALLOC] } else { &[MALLOC, OTHER] };
                    standby = Some(station.controller_with(settings));
                    "second Controller started"
                }
            }
            _ => continue,
        };
        *ledger.entry(kind).or_default() += 1;
        if before.is_none() && fault.is_none() && begun.elapsed() >= length / 2 {
            standby = None;
            excuse(1..COUNT);
            plugged = [true; COUNT];
            book.lock().unwrap().wanted = plugged;
            before = Some(at_rest(&station, &plugged, &controller, set, &names));
        }
    }
    if let Some(fault) = fault {
        (fault.end)(&mut station);
    }
    drop(standby);
    excuse(1..COUNT);
    edited();
    book.lock().unwrap().stopped = Stops::Nothing;
    plugged = [true; COUNT];
    book.lock().unwrap().wanted = plugged;
    let after = at_rest(&station, &plugged, &controller, set, &names);
    let left = station.containers().len().saturating_sub(COUNT);
    stop.store(true, Ordering::Relaxed);
    watcher.join().unwrap();

    let book = book.lock().unwrap();
    println!("\n{:<44} {:>8}", "done to the station", "times");
    ledger.iter().for_each(|(kind, count)| println!("{kind:<44} {count:>8}"));
    println!("\n{:<44} {:>8}", "found", "");
    let grown = before.map(|before: [i64; 3]| [after[0] - before[0], after[1] - before[1], after[2] - before[2]]).unwrap_or_default();
    let lost: f64 = book.lost.iter().sum();
    for (what, value) in [
        ("seconds without a Recorder, explained", book.explained.iter().sum()),
        ("seconds without a Recorder, unexplained", lost),
        ("  of them the untouched microphone's", book.lost[0] + book.explained[0]),
        ("looks at which a microphone had two", f64::from(book.doubled)),
        ("containers left over", left as f64),
        ("memory grown in the second half, KiB", grown[0] as f64),
        ("open files grown", grown[1] as f64),
        ("threads grown", grown[2] as f64),
    ] {
        println!("{what:<44} {value:>8.1}");
    }
    let sound =
        lost + book.explained[0] == 0.0 && book.doubled == 0 && left == 0 && grown[0] <= TOLERANCE_KIB && grown[1] <= 0 && grown[2] <= 0;
    if before.is_none() || !sound {
        println!("\nNOT SOUND; the Controller's last lines:\n{}", controller.log().lines().rev().take(60).collect::<Vec<_>>().join("\n"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Everything plugged in and running for a while: what the Controller uses then.
fn at_rest(
    station: &Station,
    plugged: &[bool; COUNT],
    controller: &Controller,
    set: impl Fn(&Station, &[bool; COUNT]),
    names: &[String],
) -> [i64; 3] {
    set(station, plugged);
    station.podman.wait_running(Duration::from_secs(90), names);
    // Predecessors go when their successors are proven. What does not go is in the ledger.
    let begun = Instant::now();
    while station.containers().len() > COUNT && begun.elapsed() < REPLACED {
        thread::sleep(LOOK);
    }
    eventually(SOON, "health", || controller.get("/healthy").filter(|(_, health)| health["components"]["redis"]["healthy"] == true));
    // Threads of actions and of logs that ended are gone, connections are open again.
    thread::sleep(Duration::from_secs(12));
    usage(controller)
}
