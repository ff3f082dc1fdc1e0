//! Start and end: what a fresh start makes, what a stop takes away, what a crash leaves to be adopted.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::station::process::unread;
use super::station::{Controller, NETWORK, RECORDER, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

/// Name -> id of all Recorder containers.
pub(crate) fn ids(station: &Station) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    station.containers().iter().map(|container| (text(&container["Names"][0]), text(&container["Id"]))).collect()
}

#[test]
fn a_fresh_start_records_the_microphone_that_is_there() {
    let station = Station::up();
    station.tree.fixture("02-ultramic-serial");
    let _controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);

    let inspect = station.inspect(ULTRAMIC).unwrap();
    let environment: BTreeMap<&str, &str> =
        inspect["Config"]["Env"].as_array().unwrap().iter().filter_map(|pair| pair.as_str().unwrap().split_once('=')).collect();
    assert_eq!(environment["SILVASONIC_RECORDER_DEVICE"], "hw:0,0");
    assert_eq!(environment["SILVASONIC_RECORDER_PROFILE_SLUG"], "ultramic_384_evo");
    assert_eq!(environment["SILVASONIC_REDIS_URL"], station.redis.url());
    assert_eq!(environment["SILVASONIC_INSTANCE_ID"], "0869-0389-034F6A21");
    assert_eq!((environment["PULSE_SERVER"], environment["PIPEWIRE_RUNTIME_DIR"]), ("", ""));
    assert_eq!(environment.get("SILVASONIC_RECORDER_RESERVE_MB"), None);
    assert_eq!(
        serde_json::from_str::<Value>(environment["SILVASONIC_RECORDER_CONFIG_JSON"]).unwrap(),
        json!({
            "audio": { "sample_rate": 384_000, "channels": 1, "format": "S16LE" },
            "processing": { "gain_db": 12.0, "chunk_size": 8192, "highpass_filter_hz": 1000.0 },
            "stream": { "raw_enabled": true, "processed_enabled": true, "live_stream_enabled": true, "segment_duration_s": 15 },
        })
    );
    let labels = &inspect["Config"]["Labels"];
    assert_eq!(labels["io.silvasonic.tier"], "2");
    assert_eq!(labels["io.silvasonic.owner"], "controller");
    assert_eq!(labels["io.silvasonic.service"], "recorder");
    assert_eq!(labels["io.silvasonic.device_id"], "0869-0389-034F6A21");
    assert_eq!(labels["io.silvasonic.profile"], "ultramic_384_evo");
    assert_eq!(labels["io.silvasonic.config_hash"].as_str().unwrap().len(), 16);
    assert_eq!(inspect["ImageName"], RECORDER);
    let host = &inspect["HostConfig"];
    assert_eq!(host["Privileged"], true);
    assert_eq!(host["GroupAdd"], json!(["audio"]));
    assert_eq!(host["OomScoreAdj"], -999);
    assert_eq!(host["Memory"], 512 << 20);
    assert_eq!((&host["CpuQuota"], &host["CpuPeriod"]), (&json!(100_000), &json!(100_000)));
    assert_eq!(host["RestartPolicy"], json!({ "Name": "on-failure", "MaximumRetryCount": 5 }));
    assert_eq!(host["LogConfig"]["Type"], "k8s-file");
    assert_eq!(host["LogConfig"]["Size"], "10.49MB");
    assert_eq!(inspect["NetworkSettings"]["Networks"].as_object().unwrap().keys().collect::<Vec<_>>(), [NETWORK]);
    assert_eq!(inspect["Config"]["StopSignal"], 15);
    assert_eq!(inspect["Config"]["StopTimeout"], 10);
    let folder = station.workspace().join("recorder/ultramic-384-evo-6a21");
    let mounts: BTreeMap<&str, (&str, bool)> = inspect["Mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| (mount["Destination"].as_str().unwrap(), (mount["Source"].as_str().unwrap(), mount["RW"].as_bool().unwrap())))
        .collect();
    assert_eq!(mounts, BTreeMap::from([("/app/workspace", (folder.to_str().unwrap(), true)), ("/dev/snd", ("/dev/snd", true))]));
    assert!(folder.is_dir());

    let row = "SELECT to_jsonb(d) - 'last_seen' - 'config' FROM devices d WHERE last_seen > now() - interval '1 minute'";
    assert_eq!(
        station.postgres.value::<Value>(row),
        Some(json!({
            "name": "0869-0389-034F6A21", "serial_number": "034F6A21", "model": "UltraMic384K_EVO 16bit r4", "status": "online",
            "enrollment_status": "enrolled", "enabled": true, "profile_slug": "ultramic_384_evo", "workspace_name": "ultramic-384-evo-6a21",
        }))
    );
    assert_eq!(
        station.postgres.value::<Value>("SELECT config - 'auto_enrolled_at' FROM devices WHERE config ? 'auto_enrolled_at'"),
        Some(json!({
            "alsa_card_index": 0, "alsa_device": "hw:0,0", "alsa_name": "UltraMic384K_EVO 16bit r4", "usb_vendor_id": "0869",
            "usb_product_id": "0389", "usb_serial": "034F6A21", "usb_bus_path": "1-1",
            "usb_port_path": "pci0000:00/0000:00:07.0/1",
        }))
    );
}

#[test]
fn a_killed_controller_leaves_recorders_running_and_the_next_one_adopts_them() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let mut first = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    let before = ids(&station);
    first.kill();
    drop(first);
    let second = station.controller();
    second.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    second.wait_log(&format!("{RODE} is already running as desired; adopted"), SOON);
    assert_eq!(ids(&station), before);
    assert_eq!(second.count_log("started in"), 0);
}

#[test]
fn a_termination_signal_stops_all_recorders_side_by_side() {
    for signal in [Signal::TERM, Signal::INT] {
        let station = Station::up();
        // Each needs its whole ten seconds.
        let stubborn = station.image("stubborn", "trap '' TERM; while :; do sleep 1000; done");
        station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
        let mut controller = station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", stubborn.as_str())]);
        station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
        controller.signal(signal);
        // Compose kills what has not ended after 10 s, unless its file says otherwise.
        assert_eq!(controller.wait_exit(Duration::from_secs(10)), 0);
        assert_eq!(station.containers(), Vec::<Value>::new());
    }
}

#[test]
fn the_end_comes_before_compose_kills_whatever_hangs() {
    let mut station = Station::up();
    let stubborn = station.image("stubborn", "trap '' TERM; while :; do sleep 1000; done");
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", stubborn.as_str())]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    station.redis.pause();
    station.podman.freeze_api();
    station.postgres.stop_hung();
    controller.signal(Signal::TERM);
    let code = controller.wait_exit(Duration::from_secs(10));
    assert_eq!(code, 0);
    station.podman.thaw_api();
    station.postgres.resume();
    station.redis.resume();
}

#[test]
fn the_log_of_a_station_of_the_python_controller_is_json_as_its_log_shippers_expect() {
    let station = Station::plan().without_postgres().without_redis().without_podman().up();
    let controller = station.controller_with(&[
        ("SILVASONIC_DEVELOPMENT_MODE", "False"),
        ("SILVASONIC_LOG_LEVEL", "DEBUG"),
        ("SILVASONIC_CONTROLLER_LOG_STARTUP_S", "300.0"),
        ("SILVASONIC_CONTROLLER_MONITOR_POLL_INTERVAL_S", "10"),
        ("SILVASONIC_LOG_FORWARDER_POLL_INTERVAL_S", "often"),
    ]);
    let line = controller.wait_log("without a meaning for this Controller", SOON);
    let names =
        "SILVASONIC_CONTROLLER_LOG_STARTUP_S, SILVASONIC_CONTROLLER_MONITOR_POLL_INTERVAL_S, SILVASONIC_LOG_FORWARDER_POLL_INTERVAL_S";
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], line["event"].as_str().unwrap().ends_with(names)), (&json!("debug"), true), "{line}");
    controller.wait_log("cannot list containers", SOON);
    for line in controller.log().lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(object.as_object().unwrap().keys().collect::<Vec<_>>(), ["event", "level", "timestamp"], "{line}");
    }
}

#[test]
fn with_keep_a_termination_signal_touches_nothing_and_an_upgrade_neither() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller_with(&[("SILVASONIC_SHUTDOWN", "keep")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(1)), 0);
    let mut controller = station.controller();
    controller.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    controller.signal(Signal::USR2);
    assert_eq!(controller.wait_exit(Duration::from_secs(1)), 0);
    // A stop that was asked for would be over when the next Controller has adopted the container.
    let next = station.controller();
    next.wait_log(&format!("{ULTRAMIC} is already running as desired; adopted"), SOON);
    next.wait_log("seeded user admin", SOON);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(ids(&station), before);
    assert_eq!(next.count_log("ended with code"), 0);
}

#[test]
fn signals_that_mean_nothing_do_nothing() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    for signal in [Signal::HUP, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::IO, Signal::XCPU, Signal::XFSZ] {
        controller.signal(signal);
    }
    controller.signal(Signal::USR1);
    controller.wait_log("dump: end", SOON);
    assert_eq!(ids(&station), before);
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(SOON), 0);
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let station = Station::up();
    let stubborn = station.image("stubborn", "trap '' TERM; while :; do sleep 1000; done");
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", stubborn.as_str())]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.signal(Signal::TERM);
    controller.wait_log("stopping all Recorders", SOON);
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(2)), 0);
}

#[test]
fn a_log_that_nobody_reads_delays_neither_recorders_nor_the_end() {
    let station = Station::up();
    let (mut reader, writer) = unread();
    let mut controller = Controller::logging_to(station.controller_command(&[]), writer);
    station.tree.set(&[Card::ultramic()]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(eventually(SOON, "health", || controller.get("/healthy")).0, 200);
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
    assert_eq!(station.containers(), Vec::<Value>::new());
    // Nothing of it came through: the stream was full all the time.
    let mut text = Vec::new();
    reader.read_to_end(&mut text).unwrap();
    assert!(text.iter().all(|byte| *byte == b'x'));
}

#[test]
fn containers_of_others_are_left_alone() {
    let station = Station::up();
    let idle = station.image("idle", "while :; do sleep 1000; done");
    let labels = |owner: &str, service: &str| json!({ "io.silvasonic.owner": owner, "io.silvasonic.service": service, "io.silvasonic.device_id": "x" });
    station.podman.run("another-owner", &idle, &labels("else", "recorder"));
    station.podman.run("another-service", &idle, &labels("controller", "birdnet"));
    // Somebody else's container holds the name that the Recorder needs.
    station.podman.run(ULTRAMIC, &idle, &json!({}));
    let before = ids(&station);
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let mut controller = station.controller();
    let line = controller.wait_log("a foreign container has that name", SOON);
    assert!(line.contains(ULTRAMIC) && line.contains("rename or remove it"), "{line}");
    station.podman.wait_running(SOON, &["another-owner", "another-service", ULTRAMIC, RODE]);
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
    assert_eq!(ids(&station), before);
}

#[test]
fn a_container_that_lost_its_device_is_removed() {
    let station = Station::up();
    let idle = station.image("idle", "while :; do sleep 1000; done");
    let labels = json!({ "io.silvasonic.owner": "controller", "io.silvasonic.service": "recorder", "io.silvasonic.device_id": "gone" });
    station.podman.run("silvasonic-recorder-gone", &idle, &labels);
    let controller = station.controller();
    let line = controller.wait_log("silvasonic-recorder-gone stopped and removed", SOON);
    assert!(line.contains("no such device in the database"), "{line}");
    eventually(SOON, "the container is gone", || station.containers().is_empty().then_some(()));
}

#[test]
fn wrong_settings_are_reported_together_and_end_with_code_2() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_silvasonic-controller"))
        .env("SILVASONIC_DB_PORT", "x")
        .env("SILVASONIC_SHUTDOWN", "maybe")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "silvasonic-controller: SILVASONIC_DB_PORT: expected a port number from 1 to 65535, got \"x\"\n\
         silvasonic-controller: SILVASONIC_SHUTDOWN: expected stop or keep, got \"maybe\"\n"
    );
    let run = |flag: &str| std::process::Command::new(env!("CARGO_BIN_EXE_silvasonic-controller")).arg(flag).output().unwrap();
    assert!(String::from_utf8(run("--version").stdout).unwrap().starts_with("silvasonic-controller 0."));
    assert!(String::from_utf8(run("--help").stdout).unwrap().contains("SILVASONIC_RECORDER_MEMORY_LIMIT"));
    assert_eq!(run("--frobnicate").status.code(), Some(2));
}

#[test]
fn a_rootless_podman_gets_what_it_can_do() {
    let station = Station::plan().podman_options(&["--user", "silva", "--fake-snd"]).up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let (_, version) = station.podman.get("/version");
    let version = version["Version"].as_str().unwrap();
    controller.wait_log(&format!("connected to Podman {version} (rootless"), SOON);
    // Below 4.7 a rootless start with a negative score fails.
    let inspect = station.inspect(ULTRAMIC).unwrap();
    assert_eq!(inspect["HostConfig"]["OomScoreAdj"], 0);
    assert_eq!(inspect["Config"]["Annotations"]["run.oci.keep_original_groups"], "1");
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
    assert_eq!(station.containers(), Vec::<Value>::new());
}

#[test]
fn what_runs_is_not_stopped_for_an_image_that_is_not_there() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = station.controller_with(&[("SILVASONIC_SHUTDOWN", "keep")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    first.signal(Signal::TERM);
    first.wait_exit(SOON);
    let mistyped = station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", "localhost/mistyped")]);
    let line = mistyped.wait_log("is not replaced", SOON);
    assert!(line.contains("image localhost/mistyped is not in Podman's local storage"), "{line}");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(ids(&station), before);
}

#[test]
fn a_stop_waits_for_podman_to_come_back() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    station.podman.stop_api();
    station.redis.publish("silvasonic:nudge", "reconcile");
    controller.wait_log("cannot list containers", SOON);
    controller.signal(Signal::TERM);
    controller.wait_log("stopping all Recorders", SOON);
    station.podman.start_api();
    assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
    assert_eq!(station.containers(), Vec::<Value>::new());
}

#[test]
fn a_paused_recorder_is_adopted_once() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"), ("SILVASONIC_SHUTDOWN", "keep")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    station.podman.exec(&["pause", ULTRAMIC]);
    controller.signal(Signal::TERM);
    controller.wait_exit(SOON);
    let next = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "0.1")]);
    next.wait_log("; adopted", SOON);
    next.wait_log("seeded user", SOON);
    assert_eq!(next.count_log("; adopted"), 1);
}

/// Opens each sound device. That no driver serves pcmC9D0c (see podman-sandbox) is said only to whom its control group lets.
const OPEN: &str = "for node in /dev/snd/*; do (exec 3<$node) 2>&1 | sed \"s|^|$node |\"; done; echo done; exec sleep 1000";

#[test]
fn without_privilege_a_recorder_has_the_sound_devices_and_no_others() {
    let engine = std::env::var("STATION_PODMAN").unwrap_or_else(|_| "--fake-snd".to_owned());
    for user in ["", "--user silva"] {
        let options: Vec<&str> = engine.split_whitespace().chain(user.split_whitespace()).collect();
        let station = Station::plan().podman_options(&options).up();
        let image = station.image("open", OPEN);
        station.tree.set(&[Card::ultramic()]);
        let settings = [
            ("SILVASONIC_RECORDER_PRIVILEGED", "false"),
            ("SILVASONIC_RECORDER_IMAGE", image.as_str()),
            ("SILVASONIC_RECORDER_RESERVE_MB", "2000"),
        ];
        let _controller = station.controller_with(&settings);
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        let inspect = station.inspect(ULTRAMIC).unwrap();
        assert_eq!(inspect["HostConfig"]["Privileged"], false);
        assert!(inspect["Config"]["Env"].as_array().unwrap().contains(&"SILVASONIC_RECORDER_RESERVE_MB=2000".into()), "{inspect}");
        let said = || Some(station.podman.exec(&["logs", ULTRAMIC])).filter(|said| said.contains("done"));
        let said = eventually(SOON, "its words", said);
        let node = said.lines().find(|line| line.contains("pcmC9D0c")).unwrap_or_else(|| panic!("{said}"));
        assert!(node.contains("No such device"), "{options:?}: {said}");
    }
}

#[test]
fn a_user_without_any_rights_but_the_socket_and_the_workspace_records() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let nobody = 65_534;
    std::os::unix::fs::chown(station.workspace().join("recorder"), Some(nobody), Some(nobody)).unwrap();
    std::os::unix::fs::chown(station.podman.socket(), Some(nobody), Some(nobody)).unwrap();
    let mut controller = Controller::run(station.controller_command_of_nobody());
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", controller.id())).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Uid:\t65534\t65534\t65534\t65534"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    eventually(SOON, "health", || controller.get("/healthy").filter(|(status, _)| *status == 200));
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
    assert_eq!(station.containers(), Vec::<Value>::new());
}
