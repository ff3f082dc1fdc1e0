//! Microphones that were not seen for a month: they cost nothing, and are known again when they are connected.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::commands::typed;
use super::database::two_cycles;
use super::start::ids;
use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const KNOWN: &str = "silvasonic-recorder-ultramic-192k-meadow";

/// A Controller that records the second microphone, and soon tells what it knows.
fn running(station: &Station) -> Controller {
    station.tree.set(&[Card::rode().index(1)]);
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    station.podman.wait_running(SOON, &[RODE]);
    controller
}

/// Inserts microphones that were last seen two months ago: `name`, `serial_number`, `workspace_name` and `enabled`, in terms
/// of `n`.
fn insert(station: &Station, count: u32, columns: &str) {
    station.postgres.exec(&format!(
        "INSERT INTO devices (name, serial_number, workspace_name, enabled, model, status, enrollment_status, last_seen, profile_slug, config)
         SELECT {columns}, 'Old', 'offline', 'enrolled', now() - interval '60 days', 'ultramic_192k',
                '{{\"note\": \"kept\", \"enrollment_decided_at\": \"before\", \"usb_bus_path\": \"9-9\"}}'
         FROM generate_series(1, {count}) AS n"
    ));
}

fn insert_ultramic(station: &Station) {
    insert(station, 1, "'0869-0389-034F6A21', '034F6A21', 'ultramic-192k-meadow', TRUE");
}

fn ultramic(station: &Station, expression: &str) -> Option<String> {
    station.postgres.value(&format!("SELECT ({expression})::text FROM devices WHERE name = '0869-0389-034F6A21'"))
}

fn devices_of_heartbeat(station: &Station) -> Vec<String> {
    let beat = station.heartbeat().unwrap_or_default();
    beat["meta"]["devices"].as_object().map(|devices| devices.keys().cloned().collect()).unwrap_or_default()
}

fn state_file(station: &Station) -> String {
    fs::read_to_string(station.workspace().join("recorder/.controller-state")).unwrap_or_default()
}

#[test]
fn they_are_in_the_database_alone() {
    let station = Station::up();
    let _controller = running(&station);
    let told = || eventually(SOON, "a heartbeat", || (!devices_of_heartbeat(&station).is_empty()).then(|| devices_of_heartbeat(&station)));
    assert_eq!(told(), ["19f7-0003-port1-2"]);
    insert(&station, 1000, "'0869-0389-K' || n, 'K' || n, 'ultramic-192k-k' || n, TRUE");
    // One of them was seen later than that.
    station.postgres.exec("UPDATE devices SET last_seen = now() - interval '20 days' WHERE name = '0869-0389-K7'");
    eventually(SOON, "the microphone that was seen", || (told() == ["0869-0389-K7", "19f7-0003-port1-2"]).then_some(()));
    eventually(SOON, "the state file with it", || state_file(&station).contains("0869-0389-K7").then_some(()));
    let size = state_file(&station).len();
    // A new microphone is compared with all of them.
    station.tree.set(&[Card::rode().index(1), Card::ultramic()]);
    station.podman.wait_running(SOON, &[RODE, ULTRAMIC]);
    two_cycles(&station);
    let all = ["0869-0389-034F6A21", "0869-0389-K7", "19f7-0003-port1-2"];
    eventually(SOON, "the new one beside them", || (told() == all).then_some(()));
    assert!(state_file(&station).len() < size + 2000, "{} bytes after {size}", state_file(&station).len());
    // A command shows them.
    let (code, text, why) = typed(&station, "devices --json", &[]);
    assert_eq!(code, Some(0), "{why}");
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(all["microphones"].as_array().unwrap().len(), 1002);
    assert_eq!(typed(&station, "disable 0869-0389-K999", &[]).1, "0869-0389-K999 is disabled\n");
}

#[test]
fn one_that_is_connected_is_known_again_with_its_settings() {
    let station = Station::up();
    let controller = running(&station);
    insert_ultramic(&station);
    two_cycles(&station);
    station.tree.set(&[Card::rode().index(1), Card::ultramic()]);
    station.podman.wait_running(SOON, &[RODE, KNOWN]);
    eventually(SOON, "the row", || (ultramic(&station, "status").as_deref() == Some("online")).then_some(()));
    assert_eq!(ultramic(&station, "config->>'note'").as_deref(), Some("kept"));
    assert_eq!(ultramic(&station, "now() - last_seen < interval '1 minute'").as_deref(), Some("true"));
    assert_eq!(controller.count_log("microphone 0869-0389-034F6A21 enrolled"), 0);
    assert_eq!(station.postgres.value::<i64>("SELECT count(*) FROM devices"), Some(2));
}

#[test]
fn what_a_user_wrote_about_one_counts_when_it_is_connected() {
    let station = Station::up();
    let _controller = running(&station);
    insert_ultramic(&station);
    two_cycles(&station);
    ultramic_set(&station, "enabled = FALSE");
    station.tree.set(&[Card::rode().index(1), Card::ultramic()]);
    let reason = || station.heartbeat().and_then(|beat| Some(beat["meta"]["devices"]["0869-0389-034F6A21"]["reason"].as_str()?.to_owned()));
    eventually(SOON, "disabled", || (reason()? == "not recording: disabled").then_some(()));
    ultramic_set(&station, "enabled = TRUE, last_seen = NULL");
    station.podman.wait_running(SOON, &[RODE, KNOWN]);
}

fn ultramic_set(station: &Station, assignments: &str) {
    station.postgres.exec(&format!("UPDATE devices SET {assignments} WHERE name = '0869-0389-034F6A21'"));
}

#[test]
fn one_without_a_serial_number_is_known_by_its_port() {
    let station = Station::up();
    let mut controller = running(&station);
    eventually(SOON, "the row with its port", || {
        station.postgres.value::<String>("SELECT config->>'usb_port_path' FROM devices WHERE status = 'online'")
    });
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(SOON), 0);
    station.postgres.exec(
        "UPDATE devices SET name = '19f7-0003-port9-9', serial_number = 'x', workspace_name = 'rode-nt-usb-hill', status = 'offline',
         last_seen = now() - interval '60 days', config = config || '{\"usb_bus_path\": \"9-9\"}'",
    );
    let _controller = station.controller();
    station.podman.wait_running(SOON, &["silvasonic-recorder-rode-nt-usb-hill"]);
    assert_eq!(station.postgres.value::<String>("SELECT string_agg(name, ' ') FROM devices").as_deref(), Some("19f7-0003-port9-9"));
}

#[test]
fn what_is_unique_stays_unique() {
    let station = Station::up();
    let _controller = running(&station);
    insert(&station, 1, "'0869-0001-034F6A21', '034F6A21', 'ultramic-384-evo-6a21', TRUE");
    two_cycles(&station);
    station.tree.set(&[Card::rode().index(1), Card::ultramic()]);
    station.podman.wait_running(SOON, &[RODE, "silvasonic-recorder-ultramic-384-evo-f6a21"]);
    assert_eq!(ultramic(&station, "serial_number").as_deref(), Some("0869-0389-034F6A21"));
}

#[test]
fn another_profile_gives_no_name_that_an_old_microphone_has() {
    let station = Station::up();
    let _controller = running(&station);
    insert(&station, 1, "'0869-0001-X', 'X', 'generic-usb-p1d2', TRUE");
    two_cycles(&station);
    station.postgres.exec("UPDATE devices SET profile_slug = 'generic_usb' WHERE name = '19f7-0003-port1-2'");
    let name = || station.postgres.value::<String>("SELECT workspace_name FROM devices WHERE name = '19f7-0003-port1-2'");
    let name = eventually(SOON, "a new name", || name().filter(|name| name.starts_with("generic-usb-")));
    assert_ne!(name, "generic-usb-p1d2");
    station.podman.wait_running(SOON, &[&format!("silvasonic-recorder-{name}")]);
}

#[test]
fn one_that_is_connected_without_a_database_is_known_when_it_returns() {
    let mut station = Station::up();
    let controller = running(&station);
    insert_ultramic(&station);
    two_cycles(&station);
    station.postgres.stop();
    controller.wait_log("using the last known state", SOON);
    station.tree.set(&[Card::rode().index(1), Card::ultramic()]);
    controller.wait_log("microphone 0869-0389-034F6A21 connected", SOON);
    station.postgres.start();
    station.podman.wait_running(2 * SOON, &[RODE, KNOWN]);
    assert_eq!(controller.count_log("microphone 0869-0389-034F6A21 enrolled"), 0);
}

#[test]
fn a_recorder_whose_row_is_old_runs_on() {
    let station = Station::up();
    let mut controller = running(&station);
    let before = ids(&station);
    eventually(SOON, "the row", || {
        station.postgres.value::<String>("SELECT config->>'usb_port_path' FROM devices WHERE status = 'online'")
    });
    controller.kill();
    // As after two months without a Controller, or with a clock that is wrong.
    station.postgres.exec("UPDATE devices SET status = 'offline', last_seen = now() - interval '60 days'");
    fs::remove_file(station.workspace().join("recorder/.controller-state")).unwrap();
    let controller = station.controller();
    controller.wait_log("adopted", SOON);
    two_cycles(&station);
    assert_eq!(ids(&station), before);
    eventually(SOON, "the row", || station.postgres.value::<String>("SELECT name FROM devices WHERE status = 'online'"));
}
