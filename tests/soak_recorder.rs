//! `make soak-recorder`: a Recorder at 384 kHz for SOAK_MINUTES (10), on a disk that freezes for five seconds every minute.
//!
//! The disk is a file system in a file, frozen by `fsfreeze`: whoever writes to it waits. The source counts its frames, so
//! that at the end each of them is looked for. Ends with 1 if a frame is missing or a limit is exceeded. Nothing is killed
//! here; kills are in `tests/it/recording.rs`.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

/// The parts, shared with the integration tests.
#[allow(dead_code)]
mod it {
    pub(crate) mod station;
    pub(crate) mod tree;
}

use it::station::Station;
use it::station::process::Ended;
use it::station::sound::{Sound, alsa_config};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const RATE: u32 = 384_000;
const MINUTE: Duration = Duration::from_secs(60);
const HEAD: usize = 4096;
/// Clock ticks of a second in `/proc/…/stat`.
const TICKS: f64 = 100.0;

const RSS_MIB: f64 = 12.0;
const CPU_PERCENT: f64 = 2.0;

fn main() -> ExitCode {
    let minutes: u64 = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let station = Station::plan().without_postgres().without_podman().without_redis().up();
    let disk = disk(&station, minutes);
    let pipe = station.dir().join("card");
    let mut sound = Sound::start(&pipe, RATE, |frame, bytes| bytes.extend_from_slice(&(frame as u16).to_le_bytes()));
    fs::write(station.dir().join("asound.conf"), alsa_config(pipe.to_str().unwrap())).unwrap();
    let mut recorder = Ended::spawn(command(&station, &disk));
    println!("recording {minutes} minutes of {RATE} Hz; the disk freezes for 5 s every minute");

    let begun = Instant::now();
    for minute in 1..=minutes {
        let due = begun + MINUTE * u32::try_from(minute).unwrap();
        thread::sleep((due - Duration::from_secs(30)).saturating_duration_since(Instant::now()));
        freeze(&disk);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if let Some(code) = recorder.exit_code() {
            println!("the Recorder has ended with code {code}");
            return ExitCode::FAILURE;
        }
    }
    sound.stop();
    while sound.unread() > 0 {
        thread::sleep(Duration::from_millis(20));
    }
    let (rss, cpu) = (rss_mib(recorder.id()), ticks(recorder.id()) / TICKS / begun.elapsed().as_secs_f64() * 100.0);
    let stopping = Instant::now();
    recorder.signal(Signal::TERM);
    recorder.wait(Duration::from_secs(10));
    let end = stopping.elapsed().as_secs_f64();

    let (frames, wrong, files) = count(&disk.join("data/raw"));
    let lost = sound.given() as f64 - frames as f64 + sound.missed() as f64;
    println!("\n{frames} frames in {files} files\n");
    let rows = [
        ("frames lost", lost, 0.0),
        ("frames in a wrong place", wrong as f64, 0.0),
        ("memory (RSS) at most, MiB", rss, RSS_MIB),
        ("processor, % of a core", cpu, CPU_PERCENT),
        ("end after SIGTERM, s", end, 1.0),
    ];
    rows.iter().for_each(|(what, value, limit)| println!("{what:<32} {value:>10.2}   limit {limit}"));
    if rows.iter().all(|(_, value, limit)| value <= limit) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn command(station: &Station, disk: &Path) -> Command {
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("silvasonic-recorder");
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).stdout(fs::File::create(station.dir().join("recorder.log")).unwrap()).envs([
        ("SILVASONIC_RECORDER_DEVICE", "hw:1,0"),
        ("SILVASONIC_RECORDER_PROFILE_SLUG", "ultramic_384_evo"),
        ("SILVASONIC_RECORDER_CONFIG_JSON", r#"{"audio":{"sample_rate":384000},"stream":{"segment_duration_s":15}}"#),
        ("SILVASONIC_INSTANCE_ID", "0869-0389-0001"),
        ("SILVASONIC_REDIS_URL", "redis://127.0.0.1:1/0"),
        ("SILVASONIC_RECORDER_PORT", "0"),
        ("SILVASONIC_RECORDER_RESERVE_MB", "0"),
    ]);
    // As in the image.
    command.env(it::station::MALLOC.0, it::station::MALLOC.1);
    command.env("ALSA_CONFIG_PATH", station.dir().join("asound.conf")).env("SILVASONIC_RECORDER_WORKSPACE", disk);
    command
}

/// A disk for so many minutes; the station's guard unmounts it.
fn disk(station: &Station, minutes: u64) -> PathBuf {
    let (image, disk) = (station.dir().join("disk.img"), station.dir().join("disk"));
    fs::create_dir(&disk).unwrap();
    fs::File::create(&image).unwrap().set_len((minutes + 2) * 60 * u64::from(RATE) * 2 + (128 << 20)).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk));
    disk
}

/// For five seconds, by a process that thaws the disk whatever happens to this one.
fn freeze(disk: &Path) {
    let script = "fsfreeze -f \"$0\" && sleep 5; fsfreeze -u \"$0\"";
    Command::new("sh").args(["-c", script]).arg(disk).spawn().unwrap().wait().unwrap();
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn rss_mib(id: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn ticks(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}

/// Frames in all files, frames that do not follow the one before, and the number of files.
fn count(folder: &Path) -> (u64, u64, usize) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_by_key(|path| path.to_str().unwrap().rsplit('_').next().unwrap().to_owned());
    let (mut frames, mut wrong) = (0, 0);
    for path in &paths {
        for pair in fs::read(path).unwrap()[HEAD..].chunks_exact(2) {
            wrong += u64::from(u16::from_le_bytes([pair[0], pair[1]]) != frames as u16);
            frames += 1;
        }
    }
    (frames, wrong, paths.len())
}
