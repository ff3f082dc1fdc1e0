//! `make run`: a throw-away station around the real Controller, to watch it work and to play with.
//!
//! Services that the environment names already (`SILVASONIC_CONTAINER_SOCKET`, `SILVASONIC_DB_HOST` or `POSTGRES_HOST`,
//! `SILVASONIC_REDIS_URL`) are used; the others are started here and removed at the end. Other settings of the Controller
//! are passed on, so `SILVASONIC_LOG_LEVEL=debug make run` does what it says.
//!
//! The Recorder records: the sound card of this machine, or a tone if there is none. The first file outlives the station.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

/// The parts, shared with the integration tests.
#[allow(dead_code)]
mod it {
    pub(crate) mod station;
    pub(crate) mod tree;
}

use it::station::sound::{Sound, alsa_config};
use it::station::{Controller, NETWORK, Podman, RECORDER, Station};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LINK: &str = ".station";
const STEPS: usize = 5;

fn main() -> ExitCode {
    let stop = stop_signals();
    if Path::new(LINK).exists() {
        println!("A station runs here already: {LINK} leads to {}.", fs::read_link(LINK).unwrap_or_default().display());
        return ExitCode::from(2);
    }
    println!("This starts a throw-away Silvasonic station: PostgreSQL, Redis, Podman, a microphone, the Recorder's image and the");
    println!("Controller. It takes a few seconds. Ctrl-C stops the Recorders and removes everything again.\n");

    let settings = Settings::from_environment();
    let mut plan = Station::plan().without_postgres().without_redis().without_podman();
    let real = real_card();
    if real.is_some() {
        plan = plan.podman_options(&[]); // no make-believe /dev/snd
    } else if settings.redis.is_none() && rustix::process::geteuid().is_root() {
        plan = plan.redis_for_recorders();
    }
    let mut station = plan.up();
    let link = Link::to(station.dir());
    let code = run(&mut station, &settings, real.as_deref(), &stop);
    let kept = first_recording(&station).map(|recording| keep(&recording));
    println!("\nRemoving the station …");
    drop(link);
    drop(station);
    println!("All is gone.");
    if let Some(kept) = kept {
        println!("The first recording is {}.", kept.display());
    }
    ExitCode::from(code)
}

/// Starts the parts, then the Controller, and stays until it ends or somebody asks for the end.
fn run(station: &mut Station, settings: &Settings, real: Option<&str>, stop: &Receiver<i32>) -> u8 {
    let stopped = || stop.try_recv().is_ok();
    step(1, "Microphone", || match real {
        Some(card) => format!("real: {card}"),
        None => {
            let unplugged = station.tree.state();
            station.tree.fixture("02-ultramic-serial");
            for (name, state) in [("unplug", unplugged), ("plug", station.tree.state())] {
                symlink(state.to_string(), station.dir().join("hardware").join(name)).unwrap();
            }
            "simulated, because no USB sound card is plugged: a recorded UltraMic 384K EVO".to_owned()
        }
    });
    if stopped() {
        return 0;
    }
    step(2, "PostgreSQL", || match &settings.database {
        Some(host) => format!("yours, at {host}"),
        None => {
            station.postgres.start();
            format!("port {}", station.postgres.port())
        }
    });
    step(3, "Redis", || match &settings.redis {
        Some(url) => format!("yours, at {url}"),
        None => {
            station.redis.start();
            station.redis.url()
        }
    });
    if stopped() {
        return 0;
    }
    let sound = real.is_none().then(|| tone(station));
    let mut pcm = Pcm { folder: station.tree.present().join("proc/asound/card0/pcm0c/sub0"), taken: 0, looked: Instant::now() };
    let mut borrowed = None;
    step(4, "Podman", || match &settings.podman {
        Some(socket) => {
            borrowed = Some(Borrowed::new(Podman::external(socket.clone())));
            format!("yours, at {}", socket.display())
        }
        None => {
            station.podman.start();
            "in a sandbox with its own storage and network".to_owned()
        }
    });
    if stopped() {
        return 0;
    }
    let config = sound.as_ref().map(|_| alsa_config(&format!("/app/workspace/{PIPE}")));
    step(5, "Recorder's image", || match &mut borrowed {
        Some(borrowed) => borrowed.recorder_image(config.as_deref()).to_owned(),
        None => {
            station.podman.recording_image(config.as_deref());
            RECORDER.to_owned()
        }
    });
    if stopped() {
        return 0;
    }

    explain(station, settings, real.is_none());
    let mut command = station.controller_command(&[]);
    if settings.database.is_some() {
        command.env_remove("SILVASONIC_DB_HOST").env_remove("SILVASONIC_DB_PORT");
    }
    if real.is_some() {
        command.env_remove("SILVASONIC_HOST_ROOT");
    }
    command.envs(settings.passed_on.iter().cloned());
    // For commands from a second terminal.
    let words = command.get_envs().filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value?.to_str()?)));
    let ours = words.filter(|word| word.starts_with("SILVASONIC_") || word.starts_with("POSTGRES_"));
    fs::write(station.dir().join("env"), ours.collect::<Vec<_>>().join(" ")).unwrap();
    let mut controller = Controller::foreground(command);
    let mut is_announced = false;
    loop {
        if let Some(sound) = &sound {
            pcm.follow(sound);
        }
        if let Some(recording) = first_recording(station).filter(|_| !is_announced) {
            is_announced = true;
            println!("\nThe first recording is {}\n", recording.display());
        }
        if let Some(code) = controller.exit_code() {
            println!("\nThe Controller ended with exit code {code}.");
            return u8::try_from(code).unwrap_or(1);
        }
        // the Controller is in a process group of its own, so Ctrl-C reaches only us; a second one it takes as "at once"
        if stop.recv_timeout(Duration::from_millis(50)).is_ok() {
            controller.signal(Signal::TERM);
        }
    }
}

fn step(number: usize, what: &str, work: impl FnOnce() -> String) {
    print!("[{number}/{STEPS}] {what} … ");
    std::io::stdout().flush().unwrap();
    let start = Instant::now();
    let result = work();
    println!("ready in {:.1} s ({result})", start.elapsed().as_secs_f32());
}

fn explain(station: &Station, settings: &Settings, simulated: bool) {
    println!("\nThe Controller's log follows. From a second terminal in this directory:");
    if simulated {
        println!("  make unplug                                      pull the microphone (and: make plug)");
    }
    // root's Podman answers root alone
    let sudo = if rustix::process::geteuid().is_root() && std::env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    println!("  {sudo}env $(cat {LINK}/env) target/debug/silvasonic-controller devices   why each microphone is recorded or not");
    if settings.podman.is_none() {
        println!("  {sudo}tests/podman-sandbox exec $(readlink {LINK})/podman podman ps");
    }
    if settings.database.is_none() {
        println!("  psql -h {} -p {} -U silvasonic -c 'TABLE devices'", station.postgres.socket_dir().display(), station.postgres.port());
    }
    if settings.redis.is_none() {
        println!("  redis-cli -u {} subscribe silvasonic:status silvasonic:logs", station.redis.url());
    }
    println!();
}

/// What the environment says about services and settings.
struct Settings {
    podman: Option<PathBuf>,
    database: Option<String>,
    redis: Option<String>,
    passed_on: Vec<(OsString, OsString)>,
}

impl Settings {
    fn from_environment() -> Settings {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Settings {
            podman: text("SILVASONIC_CONTAINER_SOCKET").map(PathBuf::from),
            database: text("SILVASONIC_DB_HOST").or_else(|| text("POSTGRES_HOST")),
            redis: text("SILVASONIC_REDIS_URL"),
            passed_on: std::env::vars_os()
                .filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("SILVASONIC_") || name.starts_with("POSTGRES_")))
                .collect(),
        }
    }
}

/// In the folder of the simulated microphone's Recorder: what its container reads instead of a sound card.
const PIPE: &str = ".card";
const SIMULATED: &str = "recorder/ultramic-384-evo-6a21";

/// A tone of 1000 Hz, 12 dB below full scale, as the simulated microphone delivers it.
fn tone(station: &Station) -> Sound {
    let folder = station.workspace().join(SIMULATED);
    fs::create_dir_all(&folder).unwrap();
    Sound::start(&folder.join(PIPE), 384_000, |frame, bytes| {
        let angle = (frame % 384) as f64 / 384.0 * std::f64::consts::TAU;
        bytes.extend_from_slice(&((angle.sin() * 8192.0) as i16).to_le_bytes());
    })
}

/// What the kernel would show of the simulated microphone: it runs while its frames are taken.
struct Pcm {
    folder: PathBuf,
    taken: u64,
    looked: Instant,
}

impl Pcm {
    fn follow(&mut self, sound: &Sound) {
        if self.looked.elapsed() < Duration::from_millis(500) {
            return;
        }
        self.looked = Instant::now();
        let taken = sound.given() - sound.unread();
        let (status, params) = match recorder_process().filter(|_| taken > self.taken) {
            Some(id) => (
                format!("state: RUNNING\nowner_pid   : {id}\nhw_ptr      : {taken}\n"),
                "format: S16_LE\nchannels: 1\nrate: 384000 (384000/1)\n",
            ),
            None => ("closed\n".to_owned(), "closed\n"),
        };
        self.taken = taken;
        for (name, text) in [("hw_params", params), ("status", &status)] {
            let new = self.folder.join("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, self.folder.join(name)).unwrap();
        }
    }
}

/// The process of the simulated microphone's Recorder.
fn recorder_process() -> Option<u32> {
    let ids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_recorder = |id: &u32| {
        let read = |name: &str| fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
        let wanted = b"SILVASONIC_INSTANCE_ID=0869-0389-034F6A21";
        read("comm").starts_with(b"silvasonic-reco") && read("environ").split(|&byte| byte == 0).any(|variable| variable == wanted)
    };
    ids.into_iter().find(is_recorder)
}

fn first_recording(station: &Station) -> Option<PathBuf> {
    let folders = fs::read_dir(station.workspace().join("recorder")).ok()?.flatten();
    let files = folders.filter_map(|folder| fs::read_dir(folder.path().join("data/raw")).ok()).flat_map(Iterator::flatten);
    files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|extension| extension == "wav")).min()
}

/// Copies it beside the programs, for whoever started this.
fn keep(recording: &Path) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let place = program.ancestors().nth(3).unwrap().join("recording.wav");
    let _ = fs::remove_file(&place);
    fs::copy(recording, &place).unwrap();
    let id = |name: &str| std::env::var(name).ok().and_then(|id| id.parse().ok());
    let _ = std::os::unix::fs::chown(&place, id("SUDO_UID"), id("SUDO_GID"));
    let here = std::env::current_dir().unwrap_or_default();
    place.strip_prefix(here).map_or(place.clone(), Path::to_path_buf)
}

/// The first USB sound card of this machine.
fn real_card() -> Option<String> {
    let cards = fs::read_to_string("/proc/asound/cards").ok()?;
    cards.lines().find_map(|line| line.split_once("]: USB-Audio - ").map(|(_, name)| name.to_owned()))
}

/// Somebody's own Podman: what we add to it is taken away again.
struct Borrowed {
    podman: Podman,
    image: bool,
    network: bool,
}

impl Borrowed {
    fn new(podman: Podman) -> Borrowed {
        let network = podman.create_network();
        Borrowed { podman, image: false, network }
    }

    fn recorder_image(&mut self, config: Option<&str>) -> &'static str {
        if self.podman.has_image(RECORDER) {
            return "yours";
        }
        self.podman.recording_image(config);
        self.image = true;
        RECORDER
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.image {
            self.podman.delete(&format!("/images/{RECORDER}"));
        }
        if self.network {
            self.podman.delete(&format!("/networks/{NETWORK}"));
        }
    }
}

/// `.station`, for the commands that are typed in a second terminal.
struct Link;

impl Link {
    fn to(dir: &Path) -> Link {
        let _ = fs::remove_file(LINK); // one that leads nowhere
        symlink(dir, LINK).unwrap();
        Link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = fs::remove_file(LINK);
    }
}

fn stop_signals() -> Receiver<i32> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).unwrap();
    let (sender, receiver) = channel();
    std::thread::spawn(move || signals.forever().try_for_each(|signal| sender.send(signal)));
    receiver
}
