//! The Recorder that records: what the source gave is in the files, whatever happens to the program and its disk.
//!
//! The source is a pipe behind ALSA's `file` plugin, in real time. It counts its frames, so each frame in a file is known.
//! Run these by `cargo test --features capture --test it -- recording::`.

use super::recorder::{Recorder, command};
use super::station::sound::{Sound, Wave, alsa_config};
use super::station::{Dice, Station, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use silvasonic_controller::clock;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

const SOON: Duration = Duration::from_secs(30);
const NOWHERE: &str = "redis://127.0.0.1:1/0";

/// A workspace, and a card that gives frames.
struct Bench {
    station: Station,
    sound: Sound,
    config: Value,
}

impl Bench {
    fn up(rate: u32, format: &str, channels: u64, seconds: u64, wave: Wave) -> Bench {
        let station = Station::plan().without_postgres().without_podman().without_redis().up();
        let pipe = station.dir().join("card");
        let sound = Sound::start(&pipe, rate, wave);
        fs::write(station.dir().join("asound.conf"), alsa_config(pipe.to_str().unwrap())).unwrap();
        let audio = json!({"sample_rate": rate, "format": format, "channels": channels});
        let config = json!({"audio": audio, "stream": {"segment_duration_s": seconds}});
        Bench { station, sound, config }
    }

    /// The command, with the environment that leads to this card.
    fn command(&self, redis_url: &str) -> Command {
        let mut command = command(redis_url);
        command.env("ALSA_CONFIG_PATH", self.station.dir().join("asound.conf"));
        command.env("SILVASONIC_RECORDER_WORKSPACE", self.station.workspace()).env("SILVASONIC_RECORDER_RESERVE_MB", "0");
        command.env("SILVASONIC_RECORDER_CONFIG_JSON", self.config.to_string());
        command
    }

    fn start(&self) -> Recorder {
        Recorder::spawn(self.command(NOWHERE))
    }

    /// Like a card, the source keeps no frames for a Recorder that comes later: it begins when the program opens it.
    fn start_card(&self) -> Recorder {
        self.sound.close();
        let recorder = self.start();
        let (fds, pipe) = (format!("/proc/{}/fd", recorder.process.id()), self.station.dir().join("card"));
        let is_open = || fs::read_dir(&fds).ok()?.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == pipe)).then_some(());
        eventually(SOON, "an open card", is_open);
        self.sound.open();
        recorder
    }

    /// Under strace, which delays system calls of its disk by these options.
    fn start_slowed(&self, options: &[&str]) -> Recorder {
        let plain = self.command(NOWHERE);
        let mut command = Command::new("strace");
        // As a grandchild, strace leaves the program our child.
        command.args(["-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"]).args(options).arg(plain.get_program());
        command.env_clear().current_dir("/").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Recorder::spawn(command)
    }

    fn whole(&self) -> PathBuf {
        self.station.workspace().join("data/raw")
    }

    fn unfinished(&self) -> PathBuf {
        self.station.workspace().join(".buffer/raw")
    }

    /// Waits for so many whole files.
    fn wait_files(&self, count: usize) {
        eventually(SOON, &format!("{count} files"), || (names(&self.whole()).len() >= count).then_some(()));
    }

    /// Stops the source, and waits until all of it is read.
    fn exhaust(&mut self) {
        self.sound.stop();
        eventually(SOON, "all frames are read", || (self.sound.unread() == 0).then_some(()));
    }

    /// The files in the order of their time, and of their number.
    fn files(&self) -> Vec<Wav> {
        let mut files: Vec<Wav> = names(&self.whole()).iter().map(|name| Wav::read(&self.whole().join(name))).collect();
        files.sort_by(|one, other| one.start().cmp(other.start()));
        files
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A file as a program reads it that knows nothing about Recorders.
struct Wav {
    name: String,
    rate: u32,
    channels: u16,
    bits: u16,
    data: Vec<u8>,
    guano: String,
}

impl Wav {
    fn read(path: &Path) -> Wav {
        let bytes = fs::read(path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let long = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let short = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        assert_eq!((&bytes[..4], &bytes[8..12]), (b"RIFF".as_slice(), b"WAVE".as_slice()), "{name}");
        assert_eq!(long(4) as usize, bytes.len() - 8, "{name}");
        let mut wav = Wav { name, rate: 0, channels: 0, bits: 0, data: Vec::new(), guano: String::new() };
        let mut at = 12;
        while at < bytes.len() {
            let (id, length) = (&bytes[at..at + 4], long(at + 4) as usize);
            at += 8;
            match id {
                b"fmt " => (wav.channels, wav.rate, wav.bits) = (short(at + 2), long(at + 4), short(at + 14)),
                b"guan" => wav.guano = String::from_utf8(bytes[at..at + length].to_vec()).unwrap(),
                b"data" => wav.data = bytes[at..at + length].to_vec(),
                _ => {}
            }
            at += length + length % 2;
        }
        wav
    }

    /// What sorts files: in GUANO with microseconds.
    fn start(&self) -> &str {
        self.says("Timestamp").unwrap()
    }

    fn says(&self, key: &str) -> Option<&str> {
        self.guano.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    }

    fn frame_bytes(&self) -> usize {
        usize::from(self.channels * self.bits / 8)
    }

    fn frames(&self) -> u64 {
        (self.data.len() / self.frame_bytes()) as u64
    }

    /// The numbers of its frames, by the first four bytes of each.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        self.data.chunks_exact(self.frame_bytes()).map(|frame| {
            let mut number = [0; 4];
            let length = frame.len().min(4);
            number[..length].copy_from_slice(&frame[..length]);
            u64::from(u32::from_le_bytes(number))
        })
    }
}

/// Each frame has its number, in as many bits as there are.
fn count_16(frame: u64, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(frame as u16).to_le_bytes());
}

fn count_24(frame: u64, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(frame as u32).to_le_bytes()[..3]);
}

fn count_32(frame: u64, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(frame as u32).to_le_bytes());
}

/// Two channels.
fn count_stereo(frame: u64, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(frame as u32).to_le_bytes());
    bytes.extend_from_slice(&(!frame as u32).to_le_bytes());
}

/// A tone of 19 kHz in a stream of 384 kHz, 6 dB below full scale.
fn tone(frame: u64, bytes: &mut Vec<u8>) {
    let value = 16_384.0 * phase(frame).sin();
    bytes.extend_from_slice(&(value.round() as i16).to_le_bytes());
}

fn phase(frame: u64) -> f64 {
    (frame * 19_000 % 384_000) as f64 / 384_000.0 * std::f64::consts::TAU
}

#[test]
fn the_files_contain_exactly_what_the_source_gave() {
    let table: [(u32, &str, u64, Wave, u64); 4] = [
        (48_000, "S16LE", 1, count_16, 16),
        (96_000, "S24LE", 1, count_24, 24),
        (48_000, "S32LE", 1, count_32, 32),
        (44_100, "S32LE", 2, count_stereo, 32),
    ];
    std::thread::scope(|scope| {
        for (rate, format, channels, wave, bits) in table {
            scope.spawn(move || {
                let mut bench = Bench::up(rate, format, channels, 1, wave);
                let mut recorder = bench.start();
                bench.wait_files(3);
                bench.exhaust();
                assert!(recorder.stop() < Duration::from_secs(1));
                let files = bench.files();
                let all: Vec<u64> = files.iter().flat_map(Wav::numbers).collect();
                let wrap = 1_u64 << bits.min(32);
                assert_eq!(all.len() as u64, bench.sound.given(), "{format}");
                assert_eq!(bench.sound.missed(), 0);
                assert!(all.iter().enumerate().all(|(at, number)| *number == at as u64 % wrap), "{format}");
                assert_eq!(names(&bench.unfinished()), Vec::<String>::new());
                for (at, file) in files.iter().enumerate() {
                    assert_eq!((file.rate, u64::from(file.channels), u64::from(file.bits)), (rate, channels, bits));
                    if at + 1 < files.len() {
                        assert_eq!(file.frames(), u64::from(rate), "a second each");
                    }
                    assert_eq!(file.says("Silvasonic|Frames"), Some(file.frames().to_string().as_str()));
                    assert_eq!(file.says("Silvasonic|Device"), Some("0869-0389-0001"));
                    assert_eq!(file.says("Silvasonic|Missing At"), None);
                    // 2026-03-26T01-35-00Z_1s_1a2b3c4d_00000000.wav, the time as in its metadata
                    let time = file.start()[..19].replace(':', "-");
                    assert!(
                        file.name.starts_with(&format!("{time}Z_1s_")) && file.name.ends_with(&format!("_{at:08}.wav")),
                        "{}",
                        file.name
                    );
                }
            });
        }
    });
}

/// Frames in files and frames in gaps are together what the source gave. A gap that a kill makes has no mark: start and
/// length of the files tell it. No Controller runs here, so its table of sessions is not compared.
#[test]
fn fifty_kills_lose_what_was_in_memory_and_nothing_else() {
    // A file of its own for each start, and sometimes a second one.
    const KILLS: u64 = 50;
    const BLOCK: u64 = 16_384;
    const RATE: u64 = 192_000;
    let mut bench = Bench::up(192_000, "S32LE", 1, 1, count_32);
    let mut dice = Dice(7);
    for _ in 0..KILLS {
        let mut recorder = bench.start_card();
        recorder.logs("recording hw:1,0 with 192000 Hz");
        let enough = bench.sound.given() + dice.below(16) as u64 * BLOCK;
        eventually(SOON, "some frames", || (bench.sound.given() >= enough).then_some(()));
        recorder.process.signal(Signal::KILL);
        assert_eq!(recorder.process.wait(SOON), 128 + 9);
    }
    let mut recorder = bench.start_card();
    recorder.logs("recording hw:1,0 with 192000 Hz");
    let enough = bench.sound.given() + RATE;
    eventually(SOON, "the last second", || (bench.sound.given() >= enough).then_some(()));
    bench.exhaust();
    recorder.stop();
    assert_eq!(names(&bench.unfinished()), Vec::<String>::new());
    let (mut next, mut lost, mut gaps, mut repaired) = (0, 0, 0, 0);
    // What a reader of the files learns from their metadata alone, and by how much that is wrong.
    let (mut named, mut end, mut errors): (f64, Option<SystemTime>, Vec<f64>) = (0.0, None, Vec::new());
    for file in bench.files() {
        let start = clock::parse(file.start()).unwrap();
        assert_eq!(file.says("Silvasonic|Missing At"), None, "{}", file.name);
        if let Some(end) = end {
            let gap = start.duration_since(end).map_or_else(|error| -error.duration().as_secs_f64(), |gap| gap.as_secs_f64());
            named += gap * RATE as f64;
            errors.push(gap - (file.numbers().next().unwrap() - next) as f64 / RATE as f64);
        }
        end = Some(start + Duration::from_secs_f64(file.frames() as f64 / RATE as f64));
        let first = file.numbers().next().unwrap();
        assert!(first >= next, "{} repeats frames: {first} after {next}", file.name);
        assert!(file.numbers().enumerate().all(|(at, number)| number == first + at as u64), "{} has a gap inside", file.name);
        gaps += u64::from(first > next);
        repaired += u64::from(file.says("Silvasonic|Repaired").is_some());
        lost += first - next;
        next = first + file.frames();
    }
    let total = bench.sound.given() + bench.sound.missed();
    let recorded: u64 = bench.files().iter().map(Wav::frames).sum();
    println!("{recorded} of {total} frames in {} files, {repaired} of them repaired; {gaps} gaps", bench.files().len());
    assert_eq!((recorded + lost, next), (total, total), "each frame is in a file or in a gap");
    // The gaps that start and length of the files tell are those that the source counted.
    let before = bench.files()[0].numbers().next().unwrap();
    let difference = (recorded + before) as f64 + named - total as f64;
    errors.sort_by(|one, other| one.abs().total_cmp(&other.abs()));
    let (median, most) = (errors[errors.len() / 2].abs(), errors[errors.len() - 1].abs());
    println!(
        "{named:.0} frames in gaps by the metadata, {} in fact; of one gap {median:.4} s is wrong, at most {most:.4} s",
        lost - before
    );
    assert!(difference.abs() < RATE as f64 / 2.0, "{difference} frames are neither in a file nor between two files");
    assert!(median < BLOCK as f64 / RATE as f64 && most < 1.0, "of one gap {median} s is wrong, at most {most} s");
    assert!(gaps <= KILLS, "{gaps} gaps");
    // A piece of 256 KiB that is not written yet, a block in each hand, and one on its way; and what the card missed.
    assert!(lost <= KILLS * (65_536 + 3 * BLOCK) + bench.sound.missed(), "{lost} frames lost");
    assert!(repaired > KILLS / 4, "{repaired} files were repaired");
}

#[test]
fn a_disk_that_freezes_for_five_seconds_loses_no_frame() {
    let mut bench = Bench::up(384_000, "S16LE", 1, 2, count_16);
    // the fourth write, and the end of the second file
    let calls = ["-e", "trace=pwrite64,fdatasync", "-e", "inject=pwrite64:delay_enter=5000000:when=4"];
    let mut recorder = bench.start_slowed(&[&calls[..], &["-e", "inject=fdatasync:delay_enter=5000000:when=2"]].concat());
    let frozen = (0..6)
        .filter(|_| {
            let start = Instant::now();
            recorder.logs("wrote ");
            start.elapsed() > Duration::from_secs(4)
        })
        .count();
    assert_eq!(frozen, 2, "files that were late");
    bench.exhaust();
    recorder.stop();
    let all: Vec<u64> = bench.files().iter().flat_map(Wav::numbers).collect();
    assert_eq!((all.len() as u64, bench.sound.missed()), (bench.sound.given(), 0));
    assert!(all.iter().enumerate().all(|(at, number)| *number == at as u64 % 65_536));
}

#[test]
fn a_signal_that_comes_more_than_once_leaves_no_file_unfinished() {
    let bench = Bench::up(48_000, "S32LE", 1, 60, count_32);
    let mut recorder = bench.start();
    eventually(SOON, "two seconds of sound", || (bench.sound.given() > 96_000 && bench.sound.unread() == 0).then_some(()));
    let code = eventually(SOON, "its end", || {
        recorder.process.signal(Signal::TERM);
        recorder.process.exit_code()
    });
    assert_eq!((code, names(&bench.unfinished()).len(), names(&bench.whole()).len()), (0, 0, 1));
}

#[test]
fn the_end_does_not_wait_for_the_disk_and_the_next_start_finishes_the_file() {
    let mut bench = Bench::up(48_000, "S32LE", 1, 60, count_32);
    let calls = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=3000000"];
    let mut recorder = bench.start_slowed(&calls);
    eventually(SOON, "two seconds of sound", || (bench.sound.given() > 96_000 && bench.sound.unread() == 0).then_some(()));
    recorder.process.signal(Signal::TERM);
    let start = Instant::now();
    recorder.logs("the disk takes too long: the last file is finished at the next start");
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(recorder.process.wait(SOON), 0);
    let before = names(&bench.unfinished());
    assert_eq!((before.len(), names(&bench.whole()).len()), (1, 0));

    let mut recorder = bench.start();
    recorder.logs("finished ");
    bench.exhaust();
    recorder.stop();
    let files = bench.files();
    assert_eq!(files.len(), 2);
    assert_eq!(files[0].numbers().next(), Some(0));
    assert!(files[0].frames() > 48_000, "{}", files[0].frames());
}

#[test]
fn a_tone_is_recorded_with_its_frequency_and_without_a_discontinuity() {
    let mut bench = Bench::up(384_000, "S16LE", 1, 1, tone);
    let mut recorder = bench.start();
    bench.wait_files(3);
    bench.exhaust();
    recorder.stop();
    let samples: Vec<f64> = bench
        .files()
        .iter()
        .flat_map(|file| file.data.chunks_exact(2).map(|pair| f64::from(i16::from_le_bytes([pair[0], pair[1]]))).collect::<Vec<_>>())
        .collect();
    // The spectrum at a frequency, of windows of 10 ms: whole periods of 19 kHz, so one and the same phase in all of them.
    let spectrum = |window: &[f64], hertz: f64| {
        let turn = hertz / 384_000.0 * std::f64::consts::TAU;
        let (re, im) = window.iter().enumerate().fold((0.0, 0.0), |(re, im), (at, value)| {
            let angle = turn * at as f64;
            (re + value * angle.cos(), im - value * angle.sin())
        });
        (2.0 * f64::hypot(re, im) / window.len() as f64, im.atan2(re))
    };
    let windows: Vec<&[f64]> = samples.chunks_exact(3840).collect();
    assert!(windows.len() > 300);
    for (at, window) in windows.iter().enumerate() {
        let (amplitude, phase) = spectrum(window, 19_000.0);
        assert!((amplitude - 16_384.0).abs() < 2.0, "{amplitude} in window {at}");
        assert!((phase + std::f64::consts::FRAC_PI_2).abs() < 1e-3, "phase {phase} in window {at}");
        for other in [18_000.0, 20_000.0, 38_000.0, 57_000.0] {
            assert!(spectrum(window, other).0 < 2.0, "{} at {other} Hz in window {at}", spectrum(window, other).0);
        }
    }
    let level =
        (bench.files()[0].says("Silvasonic|Peak dBFS").map(str::to_owned), bench.files()[0].says("Silvasonic|RMS dBFS").map(str::to_owned));
    assert_eq!(level, (Some("-6.02".to_owned()), Some("-9.03".to_owned())));
}

#[test]
fn the_heartbeat_tells_the_level_and_how_the_recording_goes() {
    let station = Station::plan().without_postgres().without_podman().up();
    let bench = Bench::up(384_000, "S16LE", 1, 15, tone);
    let mut recorder = Recorder::spawn(bench.command(&station.redis.url()));
    let key = "silvasonic:status:0869-0389-0001";
    let read = || serde_json::from_str::<Value>(&station.redis.get(key)?).ok();
    let heartbeat = eventually(SOON, "a heartbeat of a recording", || read().filter(|found| found["activity"] == "recording"));
    let recording = &heartbeat["meta"]["recording"];
    assert_eq!((&recording["active"], &recording["device"], &recording["sample_rate"]), (&json!(true), &json!("hw:1,0"), &json!(384_000)));
    assert_eq!((&recording["peak_dbfs"], &recording["rms_dbfs"]), (&json!(-6.02), &json!(-9.03)));
    assert_eq!((&recording["clipped"], &recording["overruns"], &recording["frames_lost"]), (&json!(0), &json!(0), &json!(0)));
    assert!(recording["frames"].as_u64().unwrap() > 300_000, "{recording}");
    assert_eq!(heartbeat["health"]["components"]["recording"], json!({"healthy": true, "details": "recording", "required": true}));
    recorder.stop();
    let last = eventually(SOON, "the last heartbeat", || read().filter(|found| found["meta"]["recording"]["segments_promoted"] == 1));
    assert_eq!(last["meta"]["recording"]["last_file"], names(&bench.whole())[0]);
}

#[test]
fn nothing_is_written_into_the_reserve() {
    let bench = Bench::up(48_000, "S16LE", 1, 1, count_16);
    let mut command = bench.command(NOWHERE);
    command.env("SILVASONIC_RECORDER_RESERVE_MB", "1000000");
    let mut recorder = Recorder::spawn(command);
    let line = recorder.logs("nothing is written: ");
    assert_eq!(line["level"], "error");
    let seen = bench.sound.given();
    eventually(SOON, "two more seconds", || (bench.sound.given() > seen + 96_000).then_some(()));
    recorder.stop();
    assert_eq!((names(&bench.whole()), names(&bench.unfinished())), (Vec::new(), Vec::new()));
}

#[test]
fn a_card_that_is_not_there_is_named() {
    let bench = Bench::up(48_000, "S16LE", 1, 1, count_16);
    let mut command = bench.command(NOWHERE);
    command.env_remove("ALSA_CONFIG_PATH").env("SILVASONIC_RECORDER_DEVICE", "hw:31,0").stderr(std::process::Stdio::null());
    let mut recorder = Recorder::spawn(command);
    let line = recorder.logs("cannot start: hw:31,0: cannot open it: ");
    assert_eq!((recorder.process.wait(SOON), &line["level"]), (1, &json!("error")));
}
