//! What is told about microphones, and what a user decides about them at a terminal.

use super::commands::typed;
use super::station::{Controller, Station, eventually};
use super::tree::Card;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

/// What `devices --json` says of a microphone.
fn told(station: &Station, id: &str) -> Value {
    let (code, text, why) = typed(station, "devices --json", &[]);
    assert_eq!(code, Some(0), "{why}");
    let all: Value = serde_json::from_str(&text).unwrap();
    all["microphones"].as_array().unwrap().iter().find(|line| line["id"] == id).cloned().unwrap_or(Value::Null)
}

pub(crate) fn reason(station: &Station, id: &str) -> String {
    told(station, id)["reason"].as_str().unwrap_or_default().to_owned()
}

fn meta(station: &Station) -> Value {
    station.heartbeat().map_or(Value::Null, |beat| beat["meta"]["devices"].clone())
}

fn running(station: &Station) -> Controller {
    station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")])
}

#[test]
fn each_microphone_has_its_reason_and_a_user_decides_about_it() {
    let mut station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1), Card::generic(2, "1-9")]);
    let controller = running(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    let (ultramic, rode, generic) = ("0869-0389-034F6A21", "19f7-0003-port1-2", "0d8c-0014-port1-9");
    let is = |id: &str, beginning: &str| {
        eventually(SOON, &format!("{id}: {beginning}"), || reason(&station, id).starts_with(beginning).then_some(()));
    };
    is(ultramic, "running, but has not opened the card; since 20");
    is(generic, "not recording: pending, no profile matches");
    assert_eq!(told(&station, ultramic)["scores"], json!({"ultramic_192k": 50, "ultramic_384_evo": 100}));
    let same = || meta(&station)[generic]["reason"] == "not recording: pending, no profile matches";
    eventually(SOON, "the reason in the heartbeat", || same().then_some(()));

    // Each decision is one row, and is there at once.
    let decide = |line: &str, answer: &str| assert_eq!(typed(&station, line, &[]), (Some(0), format!("{answer}\n"), String::new()));
    decide("enroll 0d8c generic_usb", "0d8c-0014-port1-9 is enrolled with profile generic_usb");
    is(generic, "running, but has not opened the card; since 20");
    decide("disable 19f7", "19f7-0003-port1-2 is disabled");
    is(rode, "not recording: disabled");
    decide("enable 19f7", "19f7-0003-port1-2 is enabled");
    is(rode, "running, but has not opened the card; since 20");
    decide("ignore 0d8c", "0d8c-0014-port1-9 is ignored");
    is(generic, "not recording: ignored");
    decide("reset 0d8c", "0d8c-0014-port1-9 is pending, without a profile, until a user decides again");
    is(generic, "not recording: pending, no profile matches");
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 2}' WHERE key = 'system'");
    decide("enroll 0d8c generic_usb", "0d8c-0014-port1-9 is enrolled with profile generic_usb");
    is(generic, "not recording: max_recorders is reached");
    station.postgres.exec("UPDATE microphone_profiles SET config = '{}' WHERE slug = 'generic_usb'");
    is(generic, "not recording: profile generic_usb is invalid: audio.sample_rate: expected");
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    is(generic, "not recording: offline");

    for (line, why) in [
        ("enroll 0", "ID: 2 ids begin with \"0\"; specify more characters"),
        ("enroll x", "ID: expected one of 0869-0389-034F6A21, 0d8c-0014-port1-9, 19f7-0003-port1-2, got \"x\""),
        (
            "enroll 0869 nonsense",
            "PROFILE: expected one of audiomoth_usb, behringer_uphoria, focusrite_scarlett, generic_usb, pettersson_m500, rode_nt_usb, ultramic_192k, ultramic_384_evo, got \"nonsense\"",
        ),
    ] {
        assert_eq!(typed(&station, line, &[]), (Some(1), String::new(), format!("silvasonic-controller: {why}\n")));
    }
    assert_eq!(station.podman.wait_running(SOON, &[ULTRAMIC, RODE]), ());
    drop(controller);

    // Without a Controller the same is read from where it is.
    is(ultramic, "running, but has not opened the card; since 20");
    station.podman.stop_api();
    is(ultramic, "unknown: Podman: ");
    let (_, table, _) = typed(&station, "devices", &[]);
    assert!(table.starts_with("ID                  NAME                       PORT  CARD    PROFILE           SCORES"), "{table}");
    station.podman.start_api();
    station.postgres.stop();
    let (_, table, _) = typed(&station, "devices", &[]);
    assert!(table.contains("\n0869-0389-034F6A21  "), "{table}");
    assert!(table.lines().any(|line| line.ends_with("; showing the last known state")), "{table}");
}

#[test]
fn what_the_kernel_says_about_a_capture_is_told() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = running(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let id = "0869-0389-034F6A21";
    let capture = || meta(&station)[id]["capture"].clone();
    eventually(SOON, "closed", || (capture()["state"] == "closed").then_some(()));
    // Recorded while arecord was at it; a picture, so its pointer stands still.
    station.tree.fixture("03-ultramic-recording");
    let line = "its Recorder runs, but the PCM is stalled (RUNNING), 384000 Hz S16_LE 1 ch, held by ";
    assert!(controller.wait_log(line, Duration::from_secs(30)).ends_with(" (397)"));
    let open = |frames: u64, rate: u32| {
        station.tree.alter(|root: &Path| {
            let folder = root.join("proc/asound/card0/pcm0c/sub0");
            let status = format!("state: RUNNING\nowner_pid   : {}\nhw_ptr      : {frames}\n", std::process::id());
            fs::write(folder.join("status"), status).unwrap();
            fs::write(folder.join("hw_params"), format!("format: S16_LE\nchannels: 1\nrate: {rate} ({rate}/1)\n")).unwrap();
        });
    };
    let mut frames = 0;
    eventually(Duration::from_secs(30), "frames that come", || {
        frames += 1;
        open(frames, 384_000);
        (capture()["state"] == "running").then_some(())
    });
    let told = capture();
    assert_eq!((&told["rate"], &told["format"], &told["channels"]), (&json!(384_000), &json!("S16_LE"), &json!(1)));
    assert_eq!((&told["pid"], &told["differences"]), (&json!(std::process::id()), &json!([])));
    controller.wait_log("microphone 0869-0389-034F6A21 captures: running, 384000 Hz S16_LE 1 ch, held by ", SOON);
    // The pointer stands still, at a rate that nobody asked for.
    open(frames, 48_000);
    controller.wait_log("its Recorder runs, but the PCM is stalled (RUNNING), 48000 Hz", Duration::from_secs(30));
    eventually(SOON, "stalled", || (capture()["differences"] == json!(["rate 48000 instead of 384000"])).then_some(()));
}

#[test]
fn sigusr1_writes_state_and_last_decisions_to_the_log() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = running(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    eventually(SOON, "a list with it", || (meta(&station)["0869-0389-034F6A21"]["capture"]["state"] == "closed").then_some(()));
    controller.signal(Signal::USR1);
    controller.wait_log("dump: end", SOON);
    controller.wait_log("dump: hardware ok; database ok; podman ok", SOON);
    controller.wait_log("dump: microphone 0869-0389-034F6A21: running, but has not opened the card; since", SOON);
    controller.wait_log(&format!("Z {ULTRAMIC} started in"), SOON);
    controller.signal(Signal::USR1);
    eventually(SOON, "another dump", || (controller.count_log("dump: end") == 2).then_some(()));
    assert_eq!(controller.exit_code(), None);
}

#[test]
fn limits_that_the_kernel_does_not_hold_are_told() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let controller = running(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    eventually(SOON, "both seen", || (controller.count_log(" started in ") == 2).then_some(()));
    let pid = station.inspect(ULTRAMIC).unwrap()["State"]["Pid"].as_u64().unwrap();
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    // What holds depends on the machine: one that may not set the score says so, once for all Recorders.
    let expected = usize::from(score.trim() != "-999");
    if expected == 1 {
        controller.wait_log(&format!("oom_score_adj is {} instead of -999; ", score.trim()), SOON);
    }
    eventually(SOON, "a heartbeat", || (meta(&station) != Value::Null).then_some(()));
    assert_eq!(controller.count_log("oom_score_adj is"), expected);
    assert_eq!(controller.count_log("memory limit is") + controller.count_log("processor limit is"), 0);
}

#[test]
fn what_a_card_does_not_offer_is_named() {
    let station = Station::up();
    station.tree.set(&[Card::rode()]);
    station.tree.alter(|root| {
        let stream = "RODE at usb-1 : USB Audio\n\nCapture:\n  Interface 1\n    Altset 1\n    Format: S16_LE\n    Channels: 1\n    Rates: 48000, 44100\n";
        fs::write(root.join("proc/asound/card0/stream0"), stream).unwrap();
    });
    let controller = running(&station);
    let id = "19f7-0003-port1-2";
    let mismatch = "its profile asks for 48000 Hz S16LE 2 channels, but the card offers 48000, 44100 Hz S16_LE 1 channel";
    controller.wait_log(&format!("microphone {id}: {mismatch}"), SOON);
    // It is tried all the same: nothing is lost by it.
    station.podman.wait_running(SOON, &[RODE]);
    let reason = || meta(&station)[id]["reason"].as_str().filter(|text| text.ends_with(&format!("; {mismatch}"))).map(str::to_owned);
    eventually(SOON, "the reason", reason);
    let health = || controller.get("/healthy").map(|(_, health)| health["components"]["containers"].clone()).unwrap_or_default();
    let expected = json!({"healthy": true, "required": false, "details": format!("1 running; {id}: {mismatch}")});
    eventually(SOON, "the health", || (health() == expected).then_some(()));
    let (_, devices, _) = typed(&station, "devices", &[]);
    assert!(devices.contains(mismatch), "{devices}");
    let (code, check, _) = typed(&station, "check", &[]);
    assert!(check.contains(&format!("failed   profiles       {id}: {mismatch} -> correct `audio` of the profile")), "{check}");
    assert_eq!(code, Some(1));
    // Another format is named, too.
    let audio = r#"{"audio": {"sample_rate": 48000, "channels": 1, "format": "S24LE"}}"#;
    station.postgres.exec(&format!("UPDATE microphone_profiles SET config = config || '{audio}' WHERE slug = 'rode_nt_usb'"));
    station.podman.wait_running(SOON, &[RODE]);
    let named = "has not opened the card; since ";
    let reason = || meta(&station)[id]["reason"].as_str().filter(|text| text.contains(named)).map(str::to_owned);
    let text = eventually(SOON, named, reason);
    assert!(
        text.ends_with("; its profile asks for 48000 Hz S24LE 1 channel, but the card offers 48000, 44100 Hz S16_LE 1 channel"),
        "{text}"
    );
    // What cannot be read prevents nothing.
    station.tree.set(&[]);
    station.podman.wait_running(SOON, &[""; 0]);
    station.postgres.exec("UPDATE microphone_profiles SET config = jsonb_set(config, '{audio,channels}', '8') WHERE slug = 'rode_nt_usb'");
    station.tree.set(&[Card::rode()]);
    station.tree.alter(|root| fs::remove_file(root.join("proc/asound/card0/stream0")).unwrap());
    station.podman.wait_running(SOON, &[RODE]);
}

#[test]
fn check_reports_what_is_missing_and_how_to_fix_it_and_changes_nothing() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let lines = |text: &str, verdict: &str| text.lines().filter(|line| line.starts_with(verdict)).count();
    let (code, text, why) = typed(&station, "check", &[]);
    assert_eq!((code, why.as_str(), lines(&text, "failed")), (Some(0), "", 0), "{text}");
    for line in [
        "ok       podman         ",
        "ok       image          ",
        "ok       network        ",
        "ok       microphones    1 connected",
        "ok       redis          ",
        "ok       profiles       ",
        "warning  schema         missing: table microphone_profiles, table devices, table system_config, table managed_services, table users, table capture_sessions -> the Controller creates it at its start",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    let tables = station.postgres.value::<i64>("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'");
    assert_eq!((tables, station.containers().len()), (Some(0), 0));
    assert_eq!(fs::read_dir(station.workspace().join("recorder")).unwrap().count(), 0);

    let (_, text, _) = typed(&station, "check", &[("SILVASONIC_RECORDER_REDIS_URL", "redis://:secret@redis:6379/0")]);
    assert!(text.contains("/0; as Recorders reach it: redis://***@redis:6379/0\n"), "{text}");

    let controller = running(&station);
    controller.wait_log("seeded user", SOON);
    let (_, text, _) = typed(&station, "check", &[]);
    assert!(text.contains("user admin still has the default password -> change it"), "{text}");
    assert!(text.contains("ok       schema         complete"), "{text}");
    drop(controller);

    let set = [
        ("SILVASONIC_RECORDER_IMAGE", "localhost/none:1"),
        ("SILVASONIC_NETWORK", "missing"),
        ("SILVASONIC_REDIS_URL", "redis://localhost:1/"),
    ];
    let (code, text, _) = typed(&station, "check --json", &set);
    let told: Value = serde_json::from_str(&text).unwrap();
    let verdict = |subject: &str| {
        told["findings"].as_array().unwrap().iter().find(|finding| finding["subject"] == subject).unwrap()["verdict"].clone()
    };
    assert_eq!((code, &told["ok"]), (Some(1), &json!(false)));
    assert_eq!((verdict("image"), verdict("network"), verdict("redis")), (json!("failed"), json!("failed"), json!("warning")));

    let bare = Station::plan().without_postgres().without_redis().without_podman().up();
    let (code, text, _) = typed(&bare, "check", &[]);
    assert_eq!((code, lines(&text, "failed")), (Some(1), 2), "{text}");
    assert!(text.contains("failed   podman ") && text.contains("failed   postgresql "), "{text}");
    let (code, text, _) = typed(&bare, "check", &[("SILVASONIC_RECONCILE_INTERVAL_S", "never")]);
    let line = "failed  settings  SILVASONIC_RECONCILE_INTERVAL_S: expected seconds from 0.1 to 60, got \"never\" -> correct the variable; --help lists all\n";
    assert_eq!((code, text.as_str()), (Some(1), line));

    // A declaration of a worker with a fault, and one that is valid.
    let folder = bare.dir().join("config");
    fs::create_dir_all(folder.join("workers")).unwrap();
    fs::write(folder.join("workers/mine.yml"), "name: mine\nimage: mine\ncpu: 1\n").unwrap();
    let check = || typed(&bare, "check", &[("SILVASONIC_CONFIG_DIR", folder.to_str().unwrap())]).1;
    assert!(check().contains("failed   workers      workers/mine.yml:3: cpu: expected one of name, "), "{}", check());
    fs::write(folder.join("workers/mine.yml"), "name: mine\nimage: mine\n").unwrap();
    assert!(!check().contains(" workers "), "{}", check());
}

#[test]
fn a_microphone_without_a_profile_gets_the_fallback_once_and_what_helps_is_shown() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::generic(1, "1-9")]);
    let (id, name) = ("0d8c-0014-port1-9", "silvasonic-recorder-generic-usb-p1d9");
    let advice = "no profile matches 0d8c-0014-port1-9";
    let controller = running(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    eventually(SOON, "the advice", || typed(&station, "devices", &[]).1.contains(advice).then_some(()));
    let (_, text, _) = typed(&station, "check", &[]);
    let line =
        format!("warning  profiles       {advice} -> assign a profile with `enroll ID PROFILE`; SILVASONIC_FALLBACK_PROFILE=generic_usb");
    assert!(text.contains(&line), "{text}");
    drop(controller);

    // An unknown slug is one line, and changes nothing.
    let typo = [("SILVASONIC_FALLBACK_PROFILE", "generic")];
    let controller = station.controller_with(&typo);
    controller.wait_log("SILVASONIC_FALLBACK_PROFILE: expected one of audiomoth_usb, ", SOON);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let (_, text, _) = typed(&station, "check", &typo);
    assert!(text.contains("got \"generic\"; microphones that no profile matches stay pending -> set the slug of a profile"), "{text}");
    assert_eq!(controller.count_log("SILVASONIC_FALLBACK_PROFILE"), 1);
    drop(controller);

    let fallback = [("SILVASONIC_FALLBACK_PROFILE", "generic_usb")];
    let controller = station.controller_with(&fallback);
    station.podman.wait_running(SOON, &[ULTRAMIC, name]);
    controller.wait_log("enrolled with the fallback profile generic_usb: no profile matches", SOON);
    // What a user resets stays so, also after a restart.
    let (code, ..) = typed(&station, "reset 0d8c", &[]);
    assert_eq!(code, Some(0));
    eventually(SOON, "its Recorder is gone", || station.inspect(name).is_none().then_some(()));
    drop(controller);
    let controller = station.controller_with(&fallback);
    controller.wait_log("connected to Podman", SOON);
    station.tree.set(&[Card::ultramic(), Card::generic(1, "1-9"), Card::rode().index(2)]);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert!(reason(&station, id).starts_with("not recording: pending"), "{}", reason(&station, id));
    assert_eq!(controller.count_log("fallback"), 0);
}

#[test]
fn check_recognises_a_station_of_the_python_controller_and_says_what_becomes_of_its_containers() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let mut controller = running(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    controller.signal(Signal::TERM);
    controller.wait_exit(SOON);
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 1}' WHERE key = 'system'");
    // Two of the same names with less memory, one of a microphone that the database does not know, and a worker.
    let labels = |service: &str, device: &str| {
        json!({
            "io.silvasonic.tier": "2", "io.silvasonic.owner": "controller", "io.silvasonic.service": service,
            "io.silvasonic.device_id": device, "io.silvasonic.profile": "ultramic_384_evo", "io.silvasonic.config_hash": "0123456789ab",
        })
    };
    let theirs = station.image("theirs", "exec sleep 1000");
    station.podman.run(ULTRAMIC, &theirs, &labels("recorder", "0869-0389-034F6A21"));
    station.podman.run(RODE, &theirs, &labels("recorder", "19f7-0003-port1-2"));
    station.podman.run("silvasonic-recorder-gone", &theirs, &labels("recorder", "gone"));
    station.podman.run("silvasonic-birdnet", &theirs, &labels("birdnet", "birdnet"));
    let environment = [("SILVASONIC_RECORDER_WORKSPACE_LOCAL", "/app/recorder-workspace")];
    let (_, text, _) = typed(&station, "check", &environment);
    for line in [
        "ok       station        of the Python Controller; settings and profiles from the built-in copies, sound cards below /tmp/sv-"
            .to_owned(),
        format!("warning  takeover       {ULTRAMIC} will be replaced, after its successor was created: "),
        format!("warning  takeover       {RODE} will be stopped: exceeds max_recorders -> see docs/switching.md"),
        "warning  takeover       silvasonic-birdnet will be replaced, after its successor was created: image ".to_owned(),
        "warning  takeover       silvasonic-recorder-gone will be stopped: its microphone gone is not in the database".to_owned(),
    ] {
        assert!(text.contains(&line), "{line:?} in\n{text}");
    }
    assert_eq!(station.containers().len(), 4);
    // A worker without a row is seeded first.
    station.postgres.exec("DELETE FROM managed_services");
    let of_worker = || typed(&station, "check", &environment).1.lines().find(|line| line.contains("silvasonic-birdnet")).map(str::to_owned);
    assert!(of_worker().unwrap().contains("silvasonic-birdnet will be replaced"));
    station.postgres.exec("INSERT INTO managed_services (name, enabled) VALUES ('birdnet', FALSE)");
    assert!(of_worker().unwrap().contains("silvasonic-birdnet will be stopped: disabled"));
}

#[test]
fn check_tells_a_user_without_the_right_to_podmans_socket_how_to_get_it() {
    let station = Station::plan().without_postgres().without_redis().without_recorder_image().up();
    let check = || {
        let output = station.controller_command_of_nobody().arg("check").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.contains(" podman ")).map(str::to_owned).unwrap_or_else(|| panic!("{text}"))
    };
    let line = check();
    assert!(line.starts_with("failed ") && line.contains("no right to Podman's socket: Permission denied"), "{line}");
    assert!(
        line.contains(" -> repeat this as root ") && line.contains("or give this user the right") && !line.contains("start its API"),
        "{line}"
    );
    // its folder is closed to the user: the socket may be there or not
    fs::set_permissions(station.dir(), PermissionsExt::from_mode(0o700)).unwrap();
    let line = check();
    assert!(line.contains("no right to Podman's socket: Permission denied"), "{line}");
    fs::set_permissions(station.dir(), PermissionsExt::from_mode(0o755)).unwrap();
    station.podman.stop_api();
    let line = check();
    assert!(line.contains("no Podman service: No such file") && line.contains(" -> start its API"), "{line}");
}
