//! Sound cards that cannot be read, hang, come half or change while they are read; and clocks that jump.

use std::fs;
use std::fs::OpenOptions;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use silvasonic_controller::hardware::sysfs::scan;

use super::live::log_statements;
use super::start::ids;
use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

/// A quick Controller whose log tells every change of presence, with some variables set otherwise.
fn quick(station: &Station, overrides: &[(&str, &str)]) -> Controller {
    let quick = [
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"),
        ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.5"),
        ("SILVASONIC_LOG_LEVEL", "debug"),
    ];
    station.controller_with(&[&quick[..], overrides].concat())
}

/// `name status` of all devices.
fn devices(station: &Station) -> String {
    station.postgres.value("SELECT string_agg(name || ' ' || status, ', ' ORDER BY name) FROM devices").unwrap_or_default()
}

/// All there is to the identity of devices in the database; rows that were written anew have another transaction.
fn rows(station: &Station) -> String {
    station.postgres.value("SELECT string_agg(xmin::text || devices::text, ' ' ORDER BY name) FROM devices").unwrap()
}

/// When a container was started last: an untouched one keeps it.
fn started(station: &Station, name: &str) -> Value {
    station.inspect(name).unwrap()["State"]["StartedAt"].clone()
}

/// A place below the present tree where the card's USB device is.
fn usb_device(root: &Path, port: &str) -> PathBuf {
    root.join("sys/devices/pci0000:00/0000:00:07.0/usb1").join(port)
}

/// Lets time pass in which nothing may happen.
fn pass(seconds: f64) {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    eventually(SOON, "time to pass", || (Instant::now() >= end).then_some(()));
}

fn pipe(path: &Path) {
    fs::remove_file(path).unwrap();
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_card_that_hangs_holds_up_no_other() {
    let station = Station::up();
    // The kernel holds the device's lock: who reads the serial waits for it.
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let (serial, lock) = (PathBuf::from("serial"), station.dir().join("lock"));
    station.tree.alter(|root| {
        let serial = usb_device(root, "1-1").join(&serial);
        pipe(&serial);
        fs::hard_link(&serial, &lock).unwrap();
    });
    let two = station.tree.state();
    station.tree.set(&[Card::rode().index(1)]);
    let controller = quick(&station, &[]);
    station.podman.wait_running(SOON, &[RODE]);
    let before = (ids(&station), started(&station, RODE));
    // A quiet tick does not even open it.
    let hidden = usb_device(&station.tree.present(), "1-2").join("uevent");
    pass(0.5);
    pipe(&hidden);
    pass(2.5);
    assert_eq!(controller.count_log("does not respond"), 0);

    station.tree.show(two);
    controller.wait_log("card 0 does not respond", SOON);
    let details = || controller.get("/healthy").map(|(status, health)| (status, health["components"]["hardware"]["details"].clone()));
    eventually(SOON, "health", || (details()? == (200, "readable; card 0 does not respond".into())).then_some(()));
    assert_eq!((ids(&station), started(&station, RODE)), before);

    // Another one comes and goes meanwhile.
    let third = Card::behringer().index(2).at("1-3");
    let hung = |root: &Path| {
        let serial = usb_device(root, "1-1").join(&serial);
        fs::remove_file(&serial).unwrap();
        fs::hard_link(&lock, &serial).unwrap();
    };
    station.tree.set(&[Card::ultramic(), Card::rode().index(1), third]);
    station.tree.alter(hung);
    eventually(SOON, "the third one", || devices(&station).contains("1397-0509-MC0001 online").then_some(()));
    station.tree.show(two);
    eventually(SOON, "its end", || devices(&station).contains("1397-0509-MC0001 offline").then_some(()));
    assert_eq!((ids(&station)[RODE].clone(), started(&station, RODE)), (before.0[RODE].clone(), before.1));
    assert_eq!(controller.count_log("does not respond; scanning the other cards"), 1, "one plugging, one thread");

    // The lock is released.
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    drop(OpenOptions::new().write(true).open(&lock).unwrap());
    controller.wait_log("card 0 responds again", SOON);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    eventually(SOON, "health", || (details()? == (200, "readable".into())).then_some(()));
    assert_eq!(controller.count_log("cannot read sound cards; keeping the last known state"), 0);
}

#[test]
fn what_cannot_be_read_or_is_half_there_changes_nothing() {
    let station = Station::up();
    let cards = [Card::ultramic(), Card::speaker().index(1).at("1-3")];
    station.tree.set(&cards);
    let controller = quick(&station, &[("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.3")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    eventually(SOON, "the row", || (devices(&station) == "0869-0389-034F6A21 online").then_some(()));
    controller.wait_log("seeded user", SOON);
    let whole = station.tree.state();
    let before = (ids(&station), started(&station, ULTRAMIC), rows(&station));
    let list = fs::read(station.tree.root().join("proc/asound/cards")).unwrap();
    let find = |text: &str| list.windows(text.len()).position(|window| window == text.as_bytes()).unwrap() + text.len();
    let cut = |length: usize| move |root: &Path, list: &[u8]| fs::write(root.join("proc/asound/cards"), &list[..length]).unwrap();
    let remove = |path: &'static str| {
        move |root: &Path, _: &[u8]| {
            let path = root.join(path);
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
    };
    let write = |text: &'static [u8]| move |root: &Path, _: &[u8]| fs::write(root.join("proc/asound/cards"), text).unwrap();
    type Fault<'a> = (&'a str, Box<dyn Fn(&Path, &[u8])>);
    let (unknown, unclear) = ("cannot read sound cards; keeping the last known state", "scanning card 0 again");
    let faults: Vec<Fault<'_>> = vec![
        (unknown, Box::new(write(b""))),
        (unknown, Box::new(write(b"\xff\xfe\0\x01 [garbage\n"))),
        (unknown, Box::new(cut(find("USB-Au")))),
        (unknown, Box::new(cut(find("UltraMic384")))),
        // At the end of a line it looks whole, but the second card is missing in it, or the first one.
        (unclear, Box::new(write(b" 1 [Speaker        ]: USB-Audio - USB Speaker\n"))),
        (unclear, Box::new(write(b" 0 [r4             ]: USB-Aud\n"))),
        (unclear, Box::new(write(b"--- no soundcards ---\n"))),
        (
            unknown,
            Box::new(|root, _| {
                remove_cards(root);
                fs::create_dir(root.join("proc/asound/cards")).unwrap();
            }),
        ),
        (
            unknown,
            Box::new(|root, _| {
                remove_cards(root);
                symlink("/nowhere", root.join("proc/asound/cards")).unwrap();
            }),
        ),
        (unknown, Box::new(|root, _| pipe(&root.join("proc/asound/cards")))),
        (unclear, Box::new(remove("proc/asound/card0/usbbus"))),
        (unclear, Box::new(remove("proc/asound/card0/id"))),
        (unclear, Box::new(remove("sys/class/sound/card0"))),
        (unclear, Box::new(|root, _| fs::remove_dir_all(usb_device(root, "1-1")).unwrap())),
        (unclear, Box::new(|root, _| fs::remove_file(usb_device(root, "1-1").join("idVendor")).unwrap())),
        (unclear, Box::new(|root, _| fs::write(usb_device(root, "1-1").join("uevent"), "").unwrap())),
    ];
    // What is half there is looked at because something in the list is new, be it an empty line.
    let stir = |root: &Path| {
        if let Ok(list) = fs::read(root.join("proc/asound/cards")).map(|list| [&list[..], b"\n"].concat()) {
            fs::write(root.join("proc/asound/cards"), list).unwrap();
        }
    };
    for (number, (told, fault)) in faults.into_iter().enumerate() {
        let (count, readable) = (controller.count_log(told), controller.count_log("readable again"));
        station.tree.alter(|root| {
            if told == unclear {
                stir(root);
            }
            fault(root, &list);
        });
        eventually(SOON, &format!("fault {number} in the log"), || (controller.count_log(told) > count).then_some(()));
        pass(0.5);
        station.tree.show(whole);
        if told == unknown {
            eventually(SOON, "sight again", || (controller.count_log("readable again") > readable).then_some(()));
        }
        assert_eq!((ids(&station), started(&station, ULTRAMIC), rows(&station)), before, "after fault {number}");
        assert_eq!(controller.count_log(" disconnected") + controller.count_log("Vanished"), 0, "after fault {number}");
    }
}

fn remove_cards(root: &Path) {
    fs::remove_file(root.join("proc/asound/cards")).unwrap();
}

#[test]
fn entries_that_vanish_between_two_reads_change_nothing() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = quick(&station, &[]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    eventually(SOON, "the row", || (devices(&station) == "0869-0389-034F6A21 online").then_some(()));
    controller.wait_log("seeded user", SOON);
    let before = (ids(&station), started(&station, ULTRAMIC), rows(&station));
    let root = station.tree.present();
    let stop = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            let (device, away) = (usb_device(&root, "1-1"), root.join("away"));
            let list = fs::read(root.join("proc/asound/cards")).unwrap();
            let files = [root.join("proc/asound/card0/usbbus"), root.join("proc/asound/card0/usbid"), root.join("sys/class/sound/card0")];
            for number in (5..100).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                for path in &files {
                    fs::rename(path, &away).unwrap();
                    thread::yield_now();
                    fs::rename(&away, path).unwrap();
                }
                // Who comes back has another number.
                fs::rename(&device, &away).unwrap();
                fs::write(&files[0], format!("001/{number:03}\n")).unwrap();
                fs::write(away.join("uevent"), format!("DEVTYPE=usb_device\nBUSNUM=001\nDEVNUM={number:03}\n")).unwrap();
                fs::rename(&away, &device).unwrap();
                // Cut short for a moment, and written piece by piece.
                fs::write(root.join("proc/asound/cards"), &list).unwrap();
            }
        });
        let mut seen = [0; 3];
        let mut wrong = None;
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end && wrong.is_none() {
            match scan(&root, &[], |_, _| {}) {
                Err(_) => seen[0] += 1,
                Ok(scan) if !scan.unclear.is_empty() => seen[1] += 1,
                Ok(scan) => {
                    let serials = scan.microphones.iter().map(|microphone| microphone.usb.as_ref()?.serial.as_deref());
                    wrong = (!serials.eq([Some("034F6A21")])).then(|| format!("{scan:?}"));
                    seen[2] += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(wrong, None);
        seen
    });
    assert!(seen.iter().all(|count| *count > 10), "unknown, unclear, seen: {seen:?}");
    assert_eq!((ids(&station), started(&station, ULTRAMIC), rows(&station)), before);
    assert_eq!(controller.count_log(" disconnected") + controller.count_log("Vanished"), 0);
    // And it is still being looked at.
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
}

#[test]
fn another_device_in_the_place_of_one_between_two_ticks_is_a_change() {
    let station = Station::up();
    let old = Card::ultramic().number(5);
    station.tree.set(std::slice::from_ref(&old));
    let controller = quick(&station, &[]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    // The list of cards reads as before: same name, same port, same card.
    let list = fs::read(station.tree.root().join("proc/asound/cards")).unwrap();
    pass(0.5);
    station.tree.set(&[old.serial("BBBB4321").number(6)]);
    assert_eq!(fs::read(station.tree.root().join("proc/asound/cards")).unwrap(), list);
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-4321"]);
    eventually(SOON, "the rows", || (devices(&station) == "0869-0389-034F6A21 offline, 0869-0389-BBBB4321 online").then_some(()));
    assert_eq!(controller.count_log("microphone 0869-0389-034F6A21 disconnected"), 1);
}

#[test]
fn a_flapping_plug_costs_nothing_and_ends_as_it_is_left() {
    let station = Station::up();
    log_statements(&station);
    station.tree.set(&[]);
    let absent = station.tree.state();
    // Each plugging gives it another number.
    let present: Vec<u32> = (5..9)
        .map(|number| {
            station.tree.set(&[Card::ultramic().number(number)]);
            station.tree.state()
        })
        .collect();
    let controller = quick(&station, &[("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "1"), ("SILVASONIC_LOG_LEVEL", "info")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    eventually(SOON, "the row", || (devices(&station) == "0869-0389-034F6A21 online").then_some(()));
    controller.wait_log("seeded user", SOON);
    // The last line of a start: this Recorder opens no card.
    controller.wait_log("has not opened the sound card", Duration::from_secs(30));
    let writes = || {
        let log = fs::read_to_string(station.dir().join("postgres/log")).unwrap();
        let own = log.lines().filter(|line| line.starts_with("<silvasonic-controller>LOG:  execute"));
        own.filter(|line| !line.contains("SELECT kind, key")).count()
    };
    let before = (ids(&station), started(&station, ULTRAMIC), rows(&station), writes(), controller.count_log(""));
    let end = Instant::now() + Duration::from_secs(6);
    // Some 20 times a second, but never in step with the ticks, as then each might meet the same half.
    for (turn, state) in present.iter().cycle().enumerate().take_while(|_| Instant::now() < end) {
        for (half, state) in [absent, *state].into_iter().enumerate() {
            station.tree.show(state);
            thread::sleep(Duration::from_millis(10 + (turn as u64 * 7 + half as u64 * 13) % 31));
        }
    }
    assert_eq!((ids(&station), started(&station, ULTRAMIC), rows(&station), writes(), controller.count_log("")), before);
    station.tree.show(absent);
    eventually(SOON, "its end", || (devices(&station) == "0869-0389-034F6A21 offline" && ids(&station).is_empty()).then_some(()));
}

#[test]
fn fifty_microphones_at_once_are_all_recorded() {
    let station = Station::up();
    let controller = quick(&station, &[("SILVASONIC_LOG_LEVEL", "info")]);
    controller.wait_log("seeded user", SOON);
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 50}' WHERE key = 'system'");
    let lines = controller.count_log("");
    station.tree.set(&(0..50).map(Card::numbered).collect::<Vec<_>>());
    station.podman.wait_running(Duration::from_secs(120), &(0..50).map(Card::numbered_recorder).collect::<Vec<_>>());
    eventually(SOON, "health", || (controller.get("/healthy")?.1["components"]["containers"]["details"] == "50 running").then_some(()));
    // Plugged in, enrolled, started, and no sound card opened.
    assert!((100..=250).contains(&(controller.count_log("") - lines)), "{}", controller.log());
    let log = controller.log();
    // What this machine may not do is no fault of fifty.
    let known =
        |line: &str| ["default password", "oom_score_adj is", "worker birdnet waits for its image"].iter().any(|text| line.contains(text));
    let faults = log.lines().filter(|line| (line.contains("[WARN]") || line.contains("[ERROR]")) && !known(line));
    assert_eq!(faults.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn a_wall_clock_that_jumps_and_a_pause_are_no_absence() {
    let station = Station::up();
    let library = fs::read_dir("/usr/lib").unwrap().flatten().map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    let library = library.into_iter().find(|path| path.exists()).expect("faketime is installed by tests/setup");
    let clock = station.dir().join("clock");
    let turn = |offset: &str| {
        fs::write(clock.with_extension("new"), offset).unwrap();
        fs::rename(clock.with_extension("new"), &clock).unwrap();
    };
    turn("+0d");
    station.tree.set(&[Card::ultramic()]);
    let mut controller = quick(
        &station,
        &[
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
            ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1"),
            ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "3"),
        ],
    );
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    eventually(SOON, "the row", || (devices(&station) == "0869-0389-034F6A21 online").then_some(()));
    controller.wait_log("seeded user", SOON);
    let before = (ids(&station), started(&station, ULTRAMIC), rows(&station));
    let year = || Some((1970.0 + station.heartbeat()?["timestamp"].as_f64()? / 31_556_952.0).floor() as i32);
    let now = eventually(SOON, "a heartbeat", year);
    let here = station.tree.state();
    station.tree.set(&[]);
    let away = station.tree.state();
    station.tree.show(here);
    for (offset, jump) in [("+3653d", 10), ("-3653d", -10)] {
        // In the middle of a grace period.
        let (went, came) = (controller.count_log("034F6A21: Vanished"), controller.count_log("034F6A21: Returned"));
        station.tree.show(away);
        eventually(SOON, "its absence", || (controller.count_log("034F6A21: Vanished") > went).then_some(()));
        turn(offset);
        eventually(SOON, "a heartbeat of another year", || ((year()? - now - jump).abs() <= 1).then_some(()));
        station.tree.show(here);
        eventually(SOON, "its return", || (controller.count_log("034F6A21: Returned") > came).then_some(()));
        assert_eq!(controller.get("/healthy").unwrap().0, 200);
    }
    // A pause longer than the grace period, as of a suspended machine.
    controller.signal(Signal::STOP);
    pass(4.0);
    controller.signal(Signal::CONT);
    turn("+0d");
    eventually(SOON, "a heartbeat of this year", || ((year()? - now).abs() <= 1).then_some(()));
    assert_eq!((ids(&station), started(&station, ULTRAMIC), rows(&station)), before);
    assert_eq!(controller.count_log(" disconnected"), 0);
}
