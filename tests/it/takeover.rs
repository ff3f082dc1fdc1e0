//! A station of the Python project whose Controller is replaced by ours: the image, and nothing else.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::database::two_cycles;
use super::station::{CONTROLLER, Contents, PeerStation, PeerVersion, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(30);
const ULTRAMIC: &str = "0869-0389-034F6A21";
const RODE: &str = "19f7-0003-port1-4.2";

/// Connects two microphones, and starts the Recorders of both as the Python Controller does; the names of their containers, sorted.
fn recording(peer: &PeerStation, version: PeerVersion) -> [String; 2] {
    peer.tree.set(&[Card::ultramic(), Card::rode().at("1-4.2").index(1)]);
    let workspace = if version == PeerVersion::V0_3_0 { "" } else { ", workspace_name = 'rode-nt-usb-p1d4'" };
    peer.postgres.exec(&format!(
        "UPDATE devices SET status = 'online' WHERE name = '{ULTRAMIC}';
         INSERT INTO microphone_profiles (slug, name, config, is_system) VALUES ('rode_nt_usb', 'RODE NT-USB', '{{\"audio\": {{\"match\":
           {{\"usb_vendor_id\": \"19f7\", \"usb_product_id\": \"0003\", \"alsa_name_contains\": \"RODE NT-USB\"}}, \"format\": \"S16LE\",
           \"channels\": 2, \"sample_rate\": 48000, \"match_pattern\": null}}, \"stream\": {{\"raw_enabled\": true}},
           \"processing\": {{\"gain_db\": 0, \"chunk_size\": 4096, \"highpass_filter_hz\": null}}}}', TRUE);
         INSERT INTO devices (name, serial_number, model, status, enrollment_status, last_seen, profile_slug, config)
           VALUES ('{RODE}', '{RODE}', 'RODE NT-USB', 'online', 'enrolled', now(), 'rode_nt_usb',
             '{{\"alsa_card_index\": 1, \"alsa_device\": \"hw:1,0\", \"alsa_name\": \"RODE NT-USB\", \"usb_vendor_id\": \"19f7\",
                \"usb_product_id\": \"0003\", \"usb_serial\": null, \"usb_bus_path\": \"1-4.2\"}}');
         UPDATE devices SET enabled = TRUE {workspace} WHERE name = '{RODE}';"
    ));
    [RODE, ULTRAMIC].map(|device| peer.start_recorder(device))
}

/// The containers that run, but for those of Tier 1.
fn recorders(peer: &PeerStation) -> Vec<String> {
    let own = |container: &Value| container["Labels"]["io.silvasonic.tier"] == "2" && container["State"] == "running";
    let names = peer.containers().into_iter().filter(own).map(|container| container["Names"][0].as_str().unwrap().to_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Waits until `curl` in the Controller's container reports that it is healthy.
fn wait_healthy(peer: &PeerStation) {
    let curl = format!("podman exec {CONTROLLER} curl -f http://localhost:9100/healthy >/dev/null 2>&1; echo $?");
    eventually(SOON, "a health check with curl", || (peer.sandboxed(&curl) == "0\n").then_some(()));
    assert_eq!(peer.sandboxed(&format!("podman healthcheck run {CONTROLLER} >/dev/null 2>&1; echo $?")), "0\n");
}

/// Waits until these Recorders run and no other one.
fn wait_recorders(peer: &PeerStation, names: &[String]) {
    eventually(SOON, &format!("exactly {names:?}"), || (recorders(peer) == names).then_some(()));
}

/// Starts our Controller, and waits until it has adopted these Recorders, which run on.
fn adopt(peer: &PeerStation, names: &[String]) {
    let marks = || names.iter().map(|name| peer.podman.mark(name)).collect::<Vec<_>>();
    let before = marks();
    peer.start_controller();
    for name in names {
        peer.wait_log(&format!("{name} is already running as desired; adopted"), SOON);
    }
    two_cycles(peer);
    wait_healthy(peer);
    assert_eq!(marks(), before, "{}", peer.log());
    assert_eq!(recorders(peer), names);
    let log = peer.log();
    for word in ["(none) -> (none)", "ERROR", "\"level\":\"error\"", "started in", "cannot"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

/// Takes a station over, back and over again. No Recorder of the Python Controller is restarted, and nothing is lost.
fn take_over(version: PeerVersion, changes: &[(&'static str, &str)]) {
    let peer = PeerStation::up(version, changes);
    let names = recording(&peer, version);
    let contents = Contents::of(&peer.postgres);
    let recording = peer.workspace().join("recorder/rode-nt-usb-p1d4/data/raw/a.wav");
    fs::create_dir_all(recording.parent().unwrap()).unwrap();
    fs::write(&recording, "sound").unwrap();

    adopt(&peer, &names);
    let is_recording = |beat: &Value| {
        [RODE, ULTRAMIC]
            .iter()
            .all(|device| beat["meta"]["devices"][device]["reason"].as_str().is_some_and(|reason| reason.starts_with("running")))
    };
    let reported = eventually(SOON, "both in the heartbeat", || peer.heartbeat().filter(is_recording));
    assert_eq!(reported["health"]["status"], "ok", "{reported}");
    assert!(reported["meta"]["host_resources"]["storage_percent"].is_number(), "{reported}");
    let devices = peer.sandboxed(&format!("podman exec {CONTROLLER} /silvasonic-controller devices"));
    assert_eq!(devices.matches("running, but has not opened the card").count(), 2, "{devices}");
    assert!(!devices.contains("compared with"), "{devices}");
    // What a Controller of the Python project looks for: its rows, and its containers by label, name and hash.
    assert_eq!(contents.lost(&peer.postgres), Vec::<String>::new(), "{version:?}");
    if version != PeerVersion::V0_3_0 {
        let seeded = "SELECT EXISTS (SELECT FROM microphone_profiles WHERE slug = 'of_the_user')
            AND EXISTS (SELECT FROM system_config WHERE key = 'notes')";
        assert_eq!(peer.postgres.value::<bool>(seeded), Some(true));
    }

    // A microphone that comes later is recorded by a container of ours, in a folder of the host.
    peer.tree.set(&[Card::ultramic(), Card::rode().at("1-4.2").index(1), Card::numbered(2)]);
    let more = Card::numbered_recorder(2);
    let all = [names[0].clone(), more.clone(), names[1].clone()];
    wait_recorders(&peer, &all);
    let made = peer.inspect(&more).unwrap();
    let source = made["Mounts"].as_array().unwrap().iter().find(|mount| mount["Destination"] == "/app/workspace").unwrap();
    assert_eq!(source["Source"], peer.workspace().join("recorder/ultramic-384-evo-0002").to_str().unwrap());
    let like = peer.inspect(&names[0]).unwrap();
    for field in ["/ImageName", "/HostConfig/Memory", "/HostConfig/CpuQuota", "/HostConfig/RestartPolicy", "/HostConfig/Privileged"] {
        assert_eq!(made.pointer(field), like.pointer(field), "{field}");
    }

    // Back: Compose allows ten seconds. No Recorder is left unless they are to be kept, and nothing else has gone.
    let keeps = changes.contains(&("SILVASONIC_SHUTDOWN", "keep"));
    assert_eq!(peer.stop_controller(), 0);
    assert_eq!(recorders(&peer), if keeps { all.to_vec() } else { Vec::new() });
    assert_eq!(contents.lost(&peer.postgres), Vec::<String>::new(), "{version:?}");
    assert_eq!(fs::read_to_string(&recording).unwrap(), "sound");
    if !keeps {
        let mut again = [RODE, "0869-0389-SER0002", ULTRAMIC].map(|device| peer.start_recorder(device));
        again.sort();
        assert_eq!(again, all);
    }
    // And over again.
    adopt(&peer, &all);
}

#[test]
fn a_station_of_v0_3_0_is_taken_over_without_a_restart() {
    take_over(PeerVersion::V0_3_0, &[]);
}

#[test]
fn a_station_of_v0_8_0_is_taken_over_without_a_restart() {
    take_over(PeerVersion::V0_8_0, &[]);
}

#[test]
fn a_station_with_settings_of_its_own_is_taken_over_without_a_restart() {
    let settings = [
        ("SILVASONIC_DEVELOPMENT_MODE", "False"),
        // Without an effect on the Controller: Compose sets it.
        ("SILVASONIC_NETWORK", "another-net"),
        ("SILVASONIC_RECORDER_IMAGE", "localhost/recorder_of_the_user:2"),
        ("SILVASONIC_RECORDER_MEMORY_LIMIT", "256m"),
        ("SILVASONIC_RECORDER_CPU_LIMIT", "0.75"),
        ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "3"),
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.5"),
        ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "5"),
        ("SILVASONIC_HEARTBEAT_INTERVAL_S", "2"),
        ("SILVASONIC_CONTROLLER_LOG_STARTUP_S", "60"),
        ("SILVASONIC_CONTROLLER_MONITOR_POLL_INTERVAL_S", "5"),
        ("SILVASONIC_LOG_FORWARDER_POLL_INTERVAL_S", "0.5"),
        ("SILVASONIC_ENCRYPTION_KEY", "c2lsdmFzb25pYw=="),
        ("SILVASONIC_SHUTDOWN", "keep"),
    ];
    take_over(PeerVersion::Later, &settings);
}
