//! A station of the Python project whose Controller is replaced: image and nothing else.

use std::time::Duration;

use serde_json::Value;

use super::station::{CONTROLLER, Contents, PeerStation, PeerVersion, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(30);
const ULTRAMIC: &str = "0869-0389-034F6A21";
const RODE: &str = "19f7-0003-port1-4.2";

/// Connects two microphones, and starts the Recorders of both as the Python Controller does; the names of their containers.
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
    [ULTRAMIC, RODE].map(|device| peer.start_recorder(device))
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

/// Takes a station over, and back, and over again. No Recorder of the Python Controller is restarted.
fn take_over(version: PeerVersion, changes: &[(&'static str, &str)]) {
    let peer = PeerStation::up(version, changes);
    let names = recording(&peer, version);
    let marks = || names.each_ref().map(|name| peer.podman.mark(name));
    let (before, contents) = (marks(), Contents::of(&peer.postgres));

    peer.start_controller();
    for name in &names {
        peer.wait_log(&format!("{name} is already running as desired; adopted"), SOON);
    }
    super::database::two_cycles(&peer.station);
    peer.postgres.exec("DROP TABLE reads");
    assert_eq!(marks(), before, "{version:?}: {}", peer.log());
    assert_eq!(recorders(&peer), names);
    assert_eq!(contents.lost(&peer.postgres), Vec::<String>::new(), "{version:?}");
    let log = peer.log();
    for word in ["(none) -> (none)", "ERROR", "started in", "cannot"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
    wait_healthy(&peer);
}

#[test]
fn a_station_of_v0_3_0_is_taken_over_without_a_restart() {
    take_over(PeerVersion::V0_3_0, &[]);
}

#[test]
fn a_station_of_v0_8_0_is_taken_over_without_a_restart() {
    take_over(PeerVersion::V0_8_0, &[]);
}
