//! The account of frames of a whole station: what each source gave is in a file, or in a gap that the ledger names.
//!
//! Each source is a pipe behind ALSA's `file` plugin. What the kernel would show of its card is composed from what the
//! Recorder took out of the pipe, so the ledger counts the frames that the files must contain.

use super::station::sound::{Sound, alsa_config};
use super::station::{Station, eventually};
use super::tree::Card;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SOON: Duration = Duration::from_secs(60);
const MICROPHONES: u32 = 5;
/// Of each microphone: 50 in all.
const KILLS: usize = 10;
const RATE: f64 = 384_000.0;
const HEAD: usize = 4096;
/// Frames that a kill may cost: a piece of 256 KiB that is not written yet, a block in each hand, and one on its way.
const IN_MEMORY: u64 = 131_072 + 3 * 32_768;
/// By how much the ledger may be beside the truth, in seconds: a pipe holds 1.4 s of frames that are older than the
/// Recorder that reads them, which the buffer of a card would not; and what a Recorder has in memory is older than the
/// moment at which it took it.
const BESIDE: f64 = 2.5;

/// Every two frames have the number of the pair.
fn pairs(frame: u64, bytes: &mut Vec<u8>) {
    let half = if frame % 2 == 0 { frame / 2 } else { frame >> 17 };
    bytes.extend_from_slice(&(half as u16).to_le_bytes());
}

struct Microphone<'a> {
    station: &'a Station,
    number: u32,
    sound: Sound,
    /// When frame 0 was given, in seconds since 1970.
    begin: f64,
    /// The process of the Recorder, and how many frames earlier ones took.
    owner: Option<Pid>,
    before: u64,
    kills: usize,
}

impl Microphone<'_> {
    fn new(station: &Station, number: u32) -> Microphone<'_> {
        let folder = folder(station, number);
        fs::create_dir_all(&folder).unwrap();
        let begin = seconds(SystemTime::now());
        let sound = Sound::start(&folder.join(".card"), RATE as u32, pairs);
        Microphone { station, number, sound, begin, owner: None, before: 0, kills: 0 }
    }

    /// The process of the Recorder, if it runs.
    fn find_owner(&self) -> Option<Pid> {
        let process = self.station.inspect(&Card::numbered_recorder(self.number))?["State"]["Pid"].as_i64()?;
        Pid::from_raw(process.try_into().unwrap())
    }

    /// Shows what the kernel would.
    fn show(&mut self) {
        let taken = self.sound.given() - self.sound.unread();
        let is_alive = |pid: &Pid| Path::new(&format!("/proc/{}/fd", pid.as_raw_nonzero())).exists();
        // Nobody takes frames between the end of one process and the begin of the next.
        if self.owner.take_if(|owner| !is_alive(owner)).is_some() {
            self.before = taken;
        }
        if self.owner.is_none() {
            self.owner = self.find_owner().filter(is_alive);
        }
        let (status, params) = match self.owner {
            Some(owner) if taken > self.before => (
                format!("state: RUNNING\nowner_pid   : {}\nhw_ptr      : {}\n", owner.as_raw_nonzero(), taken - self.before),
                "format: S16_LE\nchannels: 1\nrate: 384000 (384000/1)\n",
            ),
            _ => ("closed\n".to_owned(), "closed\n"),
        };
        let folder = self.station.tree.present().join(format!("proc/asound/card{}/pcm0c/sub0", self.number));
        for (name, text) in [("hw_params", params), ("status", &status)] {
            fs::write(folder.join("new"), text).unwrap();
            fs::rename(folder.join("new"), folder.join(name)).unwrap();
        }
    }

    fn kill(&mut self) {
        kill_process(self.owner.unwrap(), Signal::KILL).unwrap();
        self.kills += 1;
    }
}

fn folder(station: &Station, number: u32) -> PathBuf {
    station.workspace().join(format!("recorder/ultramic-384-evo-{number:04}"))
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// First frame and number of frames of each run of frames, and how many frames are missing inside files.
fn runs(folder: &Path) -> (Vec<(u64, u64)>, u64) {
    let (mut runs, mut inside) = (Vec::new(), 0);
    for entry in fs::read_dir(folder.join("data/raw")).unwrap() {
        let begin = runs.len();
        for pair in fs::read(entry.unwrap().path()).unwrap()[HEAD..].chunks_exact(4) {
            let frame = u64::from(u32::from_le_bytes(pair.try_into().unwrap())) * 2;
            match runs[begin..].last_mut() {
                Some((first, count)) if *first + *count == frame => *count += 2,
                last => {
                    inside += last.map_or(0, |(first, count)| frame - *first - *count);
                    runs.push((frame, 2));
                }
            }
        }
    }
    runs.sort_unstable();
    (runs, inside)
}

/// A row of the ledger.
struct Session {
    begin: f64,
    end: f64,
    frames: f64,
    cause: Option<String>,
}

fn sessions(station: &Station, number: u32) -> Vec<Session> {
    let rows = "SELECT extract(epoch from started_at)::float8, extract(epoch from ended_at)::float8, frames, cause \
                FROM capture_sessions WHERE device LIKE '%' || $1 ORDER BY id";
    let serial = format!("SER{number:04}");
    let row = |row: &postgres::Row| Session { begin: row.get(0), end: row.get(1), frames: row.get::<_, i64>(2) as f64, cause: row.get(3) };
    station.postgres.query(rows, &[&serial]).iter().map(row).collect()
}

/// Open sessions and all of them, by serial number.
fn counts(station: &Station) -> BTreeMap<String, (i64, i64)> {
    let rows = "SELECT right(device, 7), count(*) FILTER (WHERE cause IS NULL), count(*) FROM capture_sessions GROUP BY 1";
    station.postgres.query(rows, &[]).iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

#[test]
fn across_fifty_kills_each_frame_is_in_a_file_or_in_a_gap_that_the_ledger_names() {
    let station = Station::plan().without_recorder_image().up();
    station.podman.recording_image(Some(&alsa_config("/app/workspace/.card")));
    station.tree.set(&(0..MICROPHONES).map(Card::numbered).collect::<Vec<_>>());
    let mut microphones: Vec<Microphone<'_>> = (0..MICROPHONES).map(|number| Microphone::new(&station, number)).collect();
    // Podman starts a killed Recorder again; the Controller itself would wait up to a minute after some of them.
    let settings = [("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "100"), ("SILVASONIC_RECONCILE_INTERVAL_S", "0.2")];
    let mut controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &(0..MICROPHONES).map(Card::numbered_recorder).collect::<Vec<_>>());
    eventually(SOON, "the ledger", || {
        microphones.iter_mut().for_each(Microphone::show);
        station.postgres.value::<String>("SELECT to_regclass('capture_sessions')::text")
    });
    // Each is killed as soon as the ledger knows that it records.
    let begun = Instant::now();
    eventually(Duration::from_secs(600), "all kills, and a session after the last one", || {
        microphones.iter_mut().for_each(Microphone::show);
        let counts = counts(&station);
        let known = |microphone: &Microphone<'_>| counts.get(&format!("SER{:04}", microphone.number)).copied().unwrap_or_default();
        let is_due = |microphone: &Microphone<'_>| known(microphone) == (1, microphone.kills as i64 + 1);
        let is_last = microphones.iter().all(|microphone| microphone.kills == KILLS && is_due(microphone));
        microphones.iter_mut().filter(|microphone| microphone.kills < KILLS && is_due(microphone)).for_each(Microphone::kill);
        is_last.then_some(())
    });
    println!("{} kills in {:?}", MICROPHONES as usize * KILLS, begun.elapsed());
    for microphone in &mut microphones {
        microphone.sound.stop();
    }
    eventually(SOON, "all frames are taken", || {
        microphones.iter_mut().for_each(Microphone::show);
        microphones.iter().all(|microphone| microphone.sound.unread() == 0).then_some(())
    });
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(SOON), 0);

    for Microphone { number, sound, begin, .. } in &microphones {
        let (runs, inside) = runs(&folder(&station, *number));
        let (sessions, total) = (sessions(&station, *number), sound.given() + sound.missed());
        // The Recorder cannot know what the pipe had no room for while none read it.
        assert!(inside <= sound.missed(), "{inside} frames are missing inside files, the source missed {}", sound.missed());
        // What is in no file.
        let (mut next, mut lost) = (0, Vec::new());
        for (first, count) in &runs {
            assert!(*first >= next, "frames are repeated: {first} after {next}");
            if *first > next {
                lost.push((next, *first));
            }
            next = first + count;
        }
        if total > next {
            lost.push((next, total));
        }
        let recorded: u64 = runs.iter().map(|(_, count)| count).sum();
        let missing: u64 = lost.iter().map(|(from, to)| to - from).sum();
        assert_eq!((recorded + missing, next.max(total)), (total, total), "each frame is in one file, or in none");
        // A piece that is not written yet and some blocks, a kill; and what the source missed.
        assert!(missing <= sound.missed() + KILLS as u64 * IN_MEMORY, "{missing} frames are missing");

        // The ledger: a session a run, and a named gap a kill. Before the first one and after the last one is the end.
        assert_eq!(sessions.len(), KILLS + 1);
        let causes: Vec<&str> = sessions.iter().map(|session| session.cause.as_deref().unwrap_or("open")).collect();
        // Podman may have started it again before anybody could ask for the code.
        let is_named = |cause: &&str| ["recorder ended (code 137)", "recorder ended (code unknown)"].contains(cause);
        assert!(causes[..KILLS].iter().all(is_named), "{causes:?}");
        let mut gaps: Vec<(f64, f64)> = sessions.windows(2).map(|pair| (pair[0].end, pair[1].begin)).collect();
        let named: f64 = gaps.iter().map(|(from, to)| (to - from) * RATE).sum();
        gaps.push((0.0, sessions[0].begin));
        gaps.push((sessions[KILLS].end, f64::INFINITY));
        let time = |frame: &u64| begin + *frame as f64 / RATE;
        for (from, to) in &lost {
            let is_named = gaps.iter().any(|gap| gap.0 - BESIDE <= time(from) && time(to) <= gap.1 + BESIDE);
            assert!(is_named, "frames {from} to {to} of microphone {number} are in no gap: {gaps:?}");
        }
        // And the two together are the time between them.
        let counted: f64 = sessions.iter().map(|session| session.frames).sum();
        let between = (sessions[KILLS].end - sessions[0].begin) * RATE;
        assert!((counted + named - between).abs() <= BESIDE * RATE, "{counted} + {named} frames in {between}");
        assert!(counted <= sound.given() as f64, "{counted} frames of {}", sound.given());
        println!(
            "microphone {number}: {total} frames = {recorded} in {} runs + {missing} in {} gaps of the files ({} missed by the source); the ledger: {counted} \
             frames in {} sessions + {named:.0} in {KILLS} named gaps = {:.0} of {between:.0}",
            runs.len(),
            lost.len(),
            sound.missed(),
            sessions.len(),
            counted + named
        );
    }
}
