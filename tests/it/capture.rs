//! Recording means that frames arrive: what the kernel says about a card is what is told, and what is done about a capture
//! that stands still.

use super::commands::typed;
use super::station::{Controller, Proxy, Station, eventually};
use super::tree::Card;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

const ID: &str = "0869-0389-034F6A21";
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const SOON: Duration = Duration::from_secs(15);
/// Two reads of the card and a heartbeat.
const READ: Duration = Duration::from_secs(30);

/// The PCM of a card in a composed tree.
pub(super) struct Pcm<'a> {
    station: &'a Station,
    card: u32,
    frames: Cell<u64>,
    /// Who holds the stream, and when it was started, in seconds.
    trigger: RefCell<(u64, String)>,
}

/// A program of the host.
struct Program(Child);

impl Program {
    fn start() -> Program {
        Program(Command::new("/bin/sleep").arg("1000").spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Pcm<'a> {
    pub(super) fn of(station: &'a Station) -> Pcm<'a> {
        Pcm::of_card(station, 0)
    }

    pub(super) fn of_card(station: &'a Station, card: u32) -> Pcm<'a> {
        Pcm { station, card, frames: Cell::new(1), trigger: RefCell::default() }
    }

    fn show(&self, status: &str, params: &str) {
        let folder = self.station.tree.present().join(format!("proc/asound/card{}/pcm0c/sub0", self.card));
        for (name, text) in [("hw_params", params), ("status", status)] {
            let new = folder.join("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, folder.join(name)).unwrap();
        }
    }

    fn state(&self, state: &str) {
        let status = format!("state: {state}\nowner_pid   : {}\nhw_ptr      : {}\n", std::process::id(), self.frames.get());
        self.show(&status, "format: S16_LE\nchannels: 1\nrate: 384000 (384000/1)\n");
    }

    /// Frames arrive; the pointer wraps now and then.
    pub(super) fn advance(&self) {
        self.frames.set(self.frames.get() % 10_007 + 1);
        self.state("RUNNING");
    }

    fn close(&self) {
        self.show("closed\n", "closed\n");
    }
}

fn heartbeat(station: &Station) -> Value {
    station.heartbeat().unwrap_or_default()
}

fn told(beat: &Value) -> Value {
    let device = &beat["meta"]["devices"][ID];
    json!([device["recording"], device["stalled"], beat["activity"], beat["health"]["components"]["capture"]["healthy"]])
}

/// Waits until the heartbeat says this; returns the reason.
fn wait_told(station: &Station, what: &str, expected: &Value, mut change: impl FnMut()) -> String {
    eventually(READ, what, || {
        change();
        let beat = heartbeat(station);
        (told(&beat) == *expected).then(|| beat["meta"]["devices"][ID]["reason"].as_str().unwrap().to_owned())
    })
}

fn controller(station: &Station, settings: &[(&str, &str)]) -> Controller {
    let all: Vec<(&str, &str)> = [("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")].iter().chain(settings).copied().collect();
    let controller = station.controller_with(&all);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller
}

fn code(station: &Station) -> Option<i32> {
    typed(station, "devices", &[]).0
}

#[test]
fn recording_means_that_frames_arrive() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = controller(&station, &[]);
    let pcm = Pcm::of(&station);
    let opens_none = || {
        heartbeat(&station)["meta"]["devices"][ID]["reason"]
            .as_str()?
            .starts_with("running, but has not opened the card; since 20")
            .then_some(())
    };
    eventually(READ, "no open card", opens_none);
    assert_eq!(told(&heartbeat(&station)), json!([false, false, "idle", true]));
    assert_eq!(code(&station), Some(0));

    let why = wait_told(&station, "frames", &json!([true, false, "recording", true]), || pcm.advance());
    assert!(why.starts_with("recording since 20"), "{why}");

    for state in ["RUNNING", "XRUN"] {
        pcm.state(state);
        let why = wait_told(&station, state, &json!([false, true, "idle", false]), || {});
        assert!(why.starts_with("not recording: its Recorder runs since 20") && why.ends_with(&format!("({state})")), "{why}");
        let (code, table, _) = typed(&station, "devices", &[]);
        assert!(code == Some(1) && table.contains(&format!("({state})")), "{table}");
        // A fault of one microphone is told, but the station itself is well.
        assert_eq!(controller.get("/healthy").unwrap().0, 200);
        wait_told(&station, "frames again", &json!([true, false, "recording", true]), || pcm.advance());
    }
    // It has captured, so this is not a Recorder that opens no card.
    pcm.close();
    let why = wait_told(&station, "closed", &json!([false, true, "idle", false]), || {});
    assert!(why.ends_with("(closed)"), "{why}");

    // What cannot be read is unknown, and no fault.
    let folder = station.tree.present().join("proc/asound/card0/pcm0c");
    fs::rename(&folder, folder.with_file_name("hidden")).unwrap();
    let why = wait_told(&station, "unknown", &json!([null, false, "recording", true]), || {});
    assert!(why.starts_with("running since 20") && why.contains("; whether frames arrive is unknown: "), "{why}");
    assert_eq!(code(&station), Some(0));
    assert_eq!(station.containers().len(), 1);
}

/// Recording, with a short timeout.
fn captured<'a>(station: &'a Station, settings: &[(&str, &str)]) -> (Controller, Pcm<'a>) {
    station.tree.set(&[Card::ultramic()]);
    let controller = controller(station, &[&[("SILVASONIC_CAPTURE_TIMEOUT_S", "4")], settings].concat());
    let pcm = Pcm::of(station);
    wait_told(station, "frames", &json!([true, false, "recording", true]), || pcm.advance());
    (controller, pcm)
}

fn wait_other(station: &Station, before: &Option<(Value, Value)>) -> Option<(Value, Value)> {
    eventually(READ, "a successor", || station.podman.mark(ULTRAMIC).filter(|_| station.podman.mark(ULTRAMIC) != *before));
    station.podman.wait_running(READ, &[ULTRAMIC]);
    station.podman.mark(ULTRAMIC)
}

#[test]
fn a_frozen_recorder_is_replaced_and_one_that_captures_is_not() {
    let station = Station::up();
    let proxy = Proxy::new(station.dir().join("proxy.sock"), station.podman.socket());
    let (controller, pcm) = captured(&station, &[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
    let before = station.podman.mark(ULTRAMIC);
    station.podman.exec(&["kill", "--signal", "STOP", ULTRAMIC]);
    pcm.state("XRUN");
    let after = wait_other(&station, &before);
    let line = controller.wait_log("; its Recorder is replaced", SOON);
    assert!(line.contains("microphone 0869-0389-034F6A21: no frames for ") && line.contains("(XRUN)"), "{line}");
    controller.wait_log(&format!("{ULTRAMIC} started in "), SOON);
    // It ignores the signal, so that Podman waits for the whole of that time before it kills it.
    assert_eq!(proxy.lines("/stop?").len(), 1);
    assert_eq!(proxy.lines("/stop?timeout=2$").len(), 1, "{:?}", proxy.lines("/stop?"));
    wait_told(&station, "frames again", &json!([true, false, "recording", true]), || pcm.advance());
    // Its predecessor goes when it is proven, and it is left alone.
    eventually(READ, "one container", || {
        pcm.advance();
        (station.containers().len() == 1).then_some(())
    });
    assert_eq!(station.podman.mark(ULTRAMIC), after);
    assert_eq!(controller.count_log("; its Recorder is replaced"), 1);
}

/// What the kernel shows of a stream that a process has just started.
fn held_by(pcm: &Pcm<'_>, owner: u64) {
    pcm.frames.set(pcm.frames.get() % 10_007 + 1);
    if pcm.trigger.borrow().0 != owner {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        pcm.trigger.replace((owner, uptime.split(' ').next().unwrap().to_owned()));
    }
    let trigger = pcm.trigger.borrow().1.clone();
    let status = format!("state: RUNNING\nowner_pid   : {owner}\ntrigger_time: {trigger}\nhw_ptr      : {}\n", pcm.frames.get());
    pcm.show(&status, "format: S16_LE\nchannels: 1\nrate: 384000 (384000/1)\n");
}

#[test]
fn frames_for_another_program_are_no_recording() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = controller(&station, &[("SILVASONIC_CAPTURE_TIMEOUT_S", "2")]);
    let before = station.podman.mark(ULTRAMIC);
    let pcm = Pcm::of(&station);
    let own = station.inspect(ULTRAMIC).unwrap()["State"]["Pid"].as_u64().unwrap();
    let program = Program::start();
    let other = u64::from(program.0.id());
    let held = format!("held by another program: sleep ({other})");
    let wait_held = || wait_told(&station, "another program", &json!([false, false, "idle", true]), || held_by(&pcm, other));

    eventually(READ, "another program in the reason", || wait_held().contains(&held).then_some(()));
    let why = wait_held();
    assert!(why.starts_with(&format!("running, but its card is {held}; since 20")), "{why}");
    controller.wait_log(&format!("microphone {ID}: its Recorder runs, but the card is {held}"), READ);
    let beat = heartbeat(&station);
    assert_eq!(beat["meta"]["devices"][ID]["capture"]["state"], "taken");
    let (code, table, _) = typed(&station, "devices", &[]);
    assert!(code == Some(0) && table.contains(&held), "{table}");
    assert_eq!(station.postgres.value::<i64>("SELECT count(*) FROM capture_sessions"), Some(0));

    wait_told(&station, "frames for the Recorder", &json!([true, false, "recording", true]), || held_by(&pcm, own));
    eventually(READ, "a session", || {
        held_by(&pcm, own);
        (station.postgres.value::<i64>("SELECT count(*) FROM capture_sessions") == Some(1)).then_some(())
    });
    // The card is taken away from a Recorder that has captured. No step follows, as frames arrive there.
    wait_held();
    eventually(READ, "the end of the session", || {
        held_by(&pcm, other);
        let ended = "SELECT count(*) FROM capture_sessions WHERE ended_at IS NOT NULL AND cause IS NOT NULL";
        (station.postgres.value::<i64>(ended) == Some(1)).then_some(())
    });
    let mut beats = std::collections::BTreeSet::new();
    eventually(READ, "heartbeats for longer than the timeout", || {
        held_by(&pcm, other);
        beats.insert(heartbeat(&station)["timestamp"].to_string());
        (beats.len() > 12).then_some(())
    });
    // Who holds it cannot be told once it has ended.
    drop(program);
    wait_told(&station, "the Recorder again", &json!([true, false, "recording", true]), || held_by(&pcm, own));
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    assert_eq!(controller.count_log("is replaced"), 0);
}

/// Two microphones from which frames arrive.
fn two<'a>(station: &'a Station, settings: &[(&str, &str)]) -> (Controller, [String; 2], [Pcm<'a>; 2]) {
    station.tree.set(&[Card::numbered(0), Card::numbered(1)]);
    let controller = station.controller_with(&[&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")], settings].concat());
    let names = [0, 1].map(Card::numbered_recorder);
    station.podman.wait_running(SOON, &[&names[0], &names[1]]);
    let pcms = [0, 1].map(|card| Pcm::of_card(station, card));
    let recording = || {
        pcms.iter().for_each(Pcm::advance);
        let devices = heartbeat(station)["meta"]["devices"].clone();
        devices.as_object().is_some_and(|devices| devices.len() == 2 && devices.values().all(|device| device["recording"] == true))
    };
    eventually(READ, "frames of both", || recording().then_some(()));
    (controller, names, pcms)
}

#[test]
fn what_stands_still_is_the_first_that_an_edit_replaces() {
    let station = Station::up();
    let (_controller, names, pcms) = two(&station, &[("SILVASONIC_CAPTURE_TIMEOUT_S", "0")]);
    let before = [0, 1].map(|n| station.podman.mark(&names[n]));
    pcms[1].state("XRUN");
    eventually(READ, "one stands still", || {
        pcms[0].advance();
        (heartbeat(&station)["meta"]["devices"]["0869-0389-SER0001"]["stalled"] == true).then_some(())
    });
    let edit = "UPDATE microphone_profiles SET config = jsonb_set(config, '{processing,gain_db}', '7') WHERE slug = 'ultramic_384_evo'";
    station.postgres.exec(edit);
    eventually(READ, "a replacement", || {
        pcms[0].advance();
        [0, 1].into_iter().any(|n| station.podman.mark(&names[n]) != before[n]).then_some(())
    });
    assert_eq!(station.podman.mark(&names[0]), before[0]);
}

#[test]
fn of_two_microphones_only_the_one_that_stands_still_is_helped() {
    let station = Station::up();
    let (controller, names, pcms) = two(&station, &[("SILVASONIC_CAPTURE_TIMEOUT_S", "4"), ("SILVASONIC_USB_RESET", "true")]);
    let before = station.podman.mark(&names[1]);
    pcms[0].state("XRUN");
    let devices = station.tree.present().join("sys/bus/usb/devices");
    let authorized: Vec<_> = fs::read_dir(&devices).unwrap().map(|entry| entry.unwrap().path().join("authorized")).collect();
    for file in authorized.iter().filter(|file| file.parent().unwrap().join("busnum").exists()) {
        fs::write(file, "x").unwrap();
    }
    eventually(READ * 3, "all steps for one", || {
        pcms[1].advance();
        (controller.count_log("; its USB device is authorised again") == 1).then_some(())
    });
    assert_eq!(controller.count_log("; its Recorder is replaced"), 2);
    assert_eq!(station.podman.mark(&names[1]), before);
    eventually(SOON, "one device that was authorised again", || {
        pcms[1].advance();
        let written = authorized.iter().filter(|file| fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")).count();
        (written == 1).then_some(())
    });
}

#[test]
fn a_microphone_that_stops_sending_is_helped_step_by_step_until_it_sends() {
    let station = Station::up();
    let (controller, pcm) = captured(&station, &[("SILVASONIC_USB_RESET", "true")]);
    let authorized = station.tree.present().join("sys/bus/usb/devices/1-1/authorized");
    fs::write(&authorized, "x").unwrap();
    let first = station.podman.mark(ULTRAMIC);
    pcm.state("RUNNING");
    let second = wait_other(&station, &first);
    assert_eq!(fs::read_to_string(&authorized).unwrap(), "x");
    let third = wait_other(&station, &second);
    controller.wait_log("; its USB device is authorised again", READ);
    controller.wait_log("its USB device at port 1-1 was authorised again", SOON);
    assert_eq!(fs::read_to_string(&authorized).unwrap(), "1");
    // The heartbeat that is read first may be one before the third step.
    eventually(READ, "three steps", || {
        let why = wait_told(&station, "no frames", &json!([false, true, "idle", false]), || {});
        why.contains("; 3 steps did not help, the last one at 20").then_some(())
    });
    // From now on, once an hour.
    wait_told(&station, "frames again", &json!([true, false, "recording", true]), || pcm.advance());
    assert_eq!(station.podman.mark(ULTRAMIC), third);
    assert_eq!(controller.count_log("; its Recorder is replaced"), 2);
}

#[test]
fn a_recorder_that_opens_no_card_or_whose_card_cannot_be_read_is_left_alone() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = controller(&station, &[("SILVASONIC_CAPTURE_TIMEOUT_S", "1")]);
    let before = station.podman.mark(ULTRAMIC);
    let beats = |count: usize| {
        let mut seen = std::collections::BTreeSet::new();
        eventually(READ, "heartbeats", || {
            seen.insert(heartbeat(&station)["timestamp"].to_string());
            (seen.len() > count).then_some(())
        });
    };
    beats(12);
    // It stands still, but nobody has seen it capture.
    let pcm = Pcm::of(&station);
    pcm.state("XRUN");
    beats(12);
    wait_told(&station, "frames", &json!([true, false, "recording", true]), || pcm.advance());
    let folder = station.tree.present().join("proc/asound/card0/pcm0c");
    fs::rename(&folder, folder.with_file_name("hidden")).unwrap();
    beats(12);
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    assert_eq!(controller.count_log("is replaced"), 0);
}

#[test]
fn a_controller_that_starts_anew_helps_a_capture_that_stood_still_before() {
    let station = Station::up();
    let (mut first, pcm) = captured(&station, &[("SILVASONIC_SHUTDOWN", "keep")]);
    first.kill();
    let before = station.podman.mark(ULTRAMIC);
    let process = station.inspect(ULTRAMIC).unwrap()["State"]["Pid"].as_u64().unwrap();
    pcm.show(&format!("state: XRUN\nowner_pid   : {process}\nhw_ptr      : 4711\n"), "closed\n");
    let _second = station.controller_with(&[("SILVASONIC_CAPTURE_TIMEOUT_S", "4")]);
    wait_other(&station, &before);
}

#[test]
fn free_space_becomes_time_and_a_disconnection_is_told_with_what_the_host_says() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = controller(&station, &[]);
    let pcm = Pcm::of(&station);
    assert_eq!(heartbeat(&station)["meta"]["runway"], Value::Null);
    let runway = eventually(READ, "a runway", || {
        pcm.advance();
        Some(heartbeat(&station)["meta"]["runway"].clone()).filter(Value::is_object)
    });
    // 384 kHz, one channel, 16 bits.
    assert_eq!(runway["bytes_per_second"], 768_000);
    let (free, seconds) = (runway["free_bytes"].as_f64().unwrap(), runway["seconds"].as_f64().unwrap());
    assert!((free / 768_000.0 - seconds).abs() <= 1.0, "{runway}");
    let text = runway["text"].as_str().unwrap();
    assert!(text.starts_with("full in "), "{runway}");
    let note = eventually(READ, "the note of devices", || {
        pcm.advance();
        let (_, table, _) = typed(&station, "devices", &[]);
        table.lines().find(|line| line.starts_with("the workspace is full in ")).map(str::to_owned)
    });
    assert!(note.ends_with(" at the rate of the last heartbeat"), "{note}");

    station.tree.set(&[]);
    let sensor = station.tree.present().join("sys/class/hwmon/hwmon1");
    fs::create_dir_all(&sensor).unwrap();
    fs::write(sensor.join("name"), "rpi_volt\n").unwrap();
    fs::write(sensor.join("in0_lcrit_alarm"), "1\n").unwrap();
    controller.wait_log("microphone 0869-0389-034F6A21 was disconnected; the host reports: under-voltage (rpi_volt)", SOON);
}
