//! Microphones that come, go, flap, move and resemble each other.

use std::time::Duration;

use super::start::ids;
use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";

/// A quick Controller whose log tells every change of presence.
fn quick(station: &Station) -> Controller {
    station.controller_with(&[
        ("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"),
        ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "1"),
        ("SILVASONIC_LOG_LEVEL", "debug"),
    ])
}

/// `name status` of all devices.
fn devices(station: &Station) -> String {
    station.postgres.value("SELECT string_agg(name || ' ' || status, ', ' ORDER BY name) FROM devices").unwrap_or_default()
}

fn wait_devices(station: &Station, expected: &str) {
    eventually(SOON, &format!("devices {expected:?}"), || (devices(station) == expected).then_some(()));
}

/// Enrols every device with a profile, as the web interface would.
fn enroll(station: &Station, profile: &str) {
    station.postgres.exec(&format!("UPDATE devices SET enrollment_status = 'enrolled', profile_slug = '{profile}'"));
}

#[test]
fn plugging_starts_and_unplugging_stops_after_the_grace_period() {
    let station = Station::up();
    let controller = quick(&station);
    controller.wait_log("connected to Podman", SOON);
    assert_eq!(devices(&station), "");
    station.tree.set(&[Card::ultramic()]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    wait_devices(&station, "0869-0389-034F6A21 online");
    station.tree.set(&[]);
    wait_devices(&station, "0869-0389-034F6A21 offline");
    let line = controller.wait_log("stopped and removed", SOON);
    assert!(line.ends_with("offline"), "{line}");
    eventually(SOON, "no container", || station.containers().is_empty().then_some(()));
    station.tree.set(&[Card::ultramic()]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(controller.count_log("enrolled with profile"), 1);
}

#[test]
fn a_flap_within_the_grace_period_changes_nothing() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"), ("SILVASONIC_LOG_LEVEL", "debug")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    let lines = |level: &str| controller.log().lines().filter(|line| line.contains(level)).count();
    controller.wait_log("seeded user", SOON);
    let told = lines("[INFO]") + lines("[WARN]");
    station.tree.set(&[]);
    controller.wait_log("034F6A21: Vanished", SOON);
    station.tree.set(&[Card::ultramic()]);
    controller.wait_log("034F6A21: Returned", SOON);
    station.tree.set(&[Card::ultramic(), Card::speaker().index(1).at("1-3")]);
    assert_eq!(ids(&station), before);
    assert_eq!(lines("[INFO]") + lines("[WARN]"), told, "{}", controller.log());
    assert_eq!(devices(&station), "0869-0389-034F6A21 online");
}

#[test]
fn another_card_index_makes_a_new_container_with_the_new_device() {
    let station = Station::up();
    station.tree.fixture("10-replug-before");
    let controller = quick(&station);
    let rode = "silvasonic-recorder-rode-nt-usb-p1d2";
    station.podman.wait_running(SOON, &[ULTRAMIC, rode]);
    let before = ids(&station);
    station.tree.fixture("11-replug-between");
    station.podman.wait_running(SOON, &[rode]);
    station.tree.fixture("12-replug-after");
    station.podman.wait_running(SOON, &[ULTRAMIC, rode]);
    let device = |name: &str| {
        let inspect = station.inspect(name)?;
        let pairs = inspect["Config"]["Env"].as_array()?.clone();
        pairs.iter().find_map(|pair| pair.as_str()?.strip_prefix("SILVASONIC_RECORDER_DEVICE=").map(str::to_owned))
    };
    assert_eq!((device(ULTRAMIC).as_deref(), device(rode).as_deref()), (Some("hw:2,0"), Some("hw:1,0")));
    assert_eq!(ids(&station)[rode], before[rode]);

    // Within the grace period the old container is replaced rather than found gone.
    station.tree.set(&[Card::ultramic().index(5), Card::rode().index(1)]);
    controller.wait_log("SILVASONIC_RECORDER_DEVICE hw:2,0 -> hw:5,0", SOON);
    eventually(SOON, "the new index", || (device(ULTRAMIC).as_deref() == Some("hw:5,0")).then_some(()));
    assert_eq!(ids(&station)[rode], before[rode]);
}

#[test]
fn a_microphone_with_a_serial_is_known_again_at_another_port_and_one_without_is_not() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let _controller = quick(&station);
    wait_devices(&station, "0869-0389-034F6A21 online, 19f7-0003-port1-2 online");
    station.podman.wait_running(SOON, &[ULTRAMIC, "silvasonic-recorder-rode-nt-usb-p1d2"]);
    let before = ids(&station);
    station.tree.set(&[Card::ultramic().at("1-4.1"), Card::rode().index(1).at("1-4.2")]);
    wait_devices(&station, "0869-0389-034F6A21 online, 19f7-0003-port1-2 offline, 19f7-0003-port1-4.2 online");
    station.podman.wait_running(SOON, &[ULTRAMIC, "silvasonic-recorder-rode-nt-usb-p1d4d2"]);
    assert_eq!(ids(&station)[ULTRAMIC], before[ULTRAMIC]);
    let port = "SELECT config->>'usb_bus_path' FROM devices WHERE name = '0869-0389-034F6A21'";
    eventually(SOON, "the new port", || (station.postgres.value::<String>(port).as_deref() == Some("1-4.1")).then_some(()));
}

#[test]
fn two_identical_microphones_without_serials_on_one_hub_have_their_own_recorders() {
    let station = Station::up();
    station.tree.set(&[Card::generic(0, "1-4.1"), Card::generic(1, "1-4.2")]);
    let controller = quick(&station);
    wait_devices(&station, "0d8c-0014-port1-4.1 online, 0d8c-0014-port1-4.2 online");
    controller.wait_log("0d8c-0014-port1-4.2 needs a decision by the user: no profile matches", SOON);
    enroll(&station, "generic_usb");
    station.podman.wait_running(SOON, &["silvasonic-recorder-generic-usb-p1d4d1", "silvasonic-recorder-generic-usb-p1d4d2"]);
    for (name, device, port) in [("generic-usb-p1d4d1", "hw:0,0", "1-4.1"), ("generic-usb-p1d4d2", "hw:1,0", "1-4.2")] {
        let inspect = station.inspect(&format!("silvasonic-recorder-{name}")).unwrap();
        assert!(inspect["Config"]["Env"].as_array().unwrap().contains(&format!("SILVASONIC_RECORDER_DEVICE={device}").into()));
        assert_eq!(inspect["Config"]["Labels"]["io.silvasonic.device_id"], format!("0d8c-0014-port{port}"));
        assert!(station.workspace().join("recorder").join(name).is_dir());
    }
}

#[test]
fn serials_with_the_same_end_give_different_names() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic().serial("AAAA1234"), Card::ultramic().index(1).id("r4_1").at("1-2").serial("BBBB1234")]);
    let _controller = quick(&station);
    station.podman.wait_running(SOON, &["silvasonic-recorder-ultramic-384-evo-1234", "silvasonic-recorder-ultramic-384-evo-b1234"]);
}

#[test]
fn a_serial_that_two_microphones_share_stays_with_its_owner() {
    let station = Station::up();
    let (owner, twin) = (Card::ultramic(), Card::ultramic().index(1).id("r4_1").at("1-2"));
    station.tree.set(std::slice::from_ref(&owner));
    let _controller = quick(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    station.tree.set(&[owner, twin.clone()]);
    wait_devices(&station, "0869-0389-034F6A21 online, 0869-0389-034F6A21-port1-2 online");
    let second = "silvasonic-recorder-ultramic-384-evo-f6a21";
    station.podman.wait_running(SOON, &[ULTRAMIC, second]);
    assert_eq!(ids(&station)[ULTRAMIC], before[ULTRAMIC]);
    let twins = ids(&station);
    // The owner leaves: the other one stays who it is.
    station.tree.set(&[twin]);
    wait_devices(&station, "0869-0389-034F6A21 offline, 0869-0389-034F6A21-port1-2 online");
    station.podman.wait_running(SOON, &[second]);
    assert_eq!(ids(&station)[second], twins[second]);
}

#[test]
fn a_speaker_is_no_microphone() {
    let station = Station::up();
    station.tree.fixture("07-usb-speaker-no-capture");
    let _controller = quick(&station);
    let profiles = || station.postgres.value::<i64>("SELECT count(*) FROM microphone_profiles");
    eventually(SOON, "the seeded profiles", || (profiles() == Some(8)).then_some(()));
    station.tree.set(&[Card::speaker(), Card::ultramic().index(1).at("1-3")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(devices(&station), "0869-0389-034F6A21 online");
}

#[test]
fn unreadable_sound_cards_stop_nothing() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = quick(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    let breaks: [fn(&std::path::Path); 4] = [
        |root| std::fs::remove_file(root.join("proc/asound/cards")).unwrap(),
        |root| std::fs::write(root.join("proc/asound/cards"), "").unwrap(),
        |root| std::fs::write(root.join("proc/asound/cards"), "<html>").unwrap(),
        |root| std::fs::remove_dir_all(root.join("proc")).unwrap(),
    ];
    for (number, change) in breaks.into_iter().enumerate() {
        station.tree.set(&[Card::ultramic()]);
        station.tree.alter(change);
        eventually(SOON, "the fault in the log", || {
            (controller.count_log("cannot read sound cards; keeping the last known state") > number).then_some(())
        });
        // A whole grace period of this: the clock that counts is the Controller's.
        let ticks = station.postgres.value::<f64>("SELECT extract(epoch FROM clock_timestamp())::float8").unwrap();
        eventually(SOON, "a grace period", || {
            (station.postgres.value::<f64>("SELECT extract(epoch FROM clock_timestamp())::float8")? > ticks + 1.5).then_some(())
        });
        station.tree.set(&[Card::ultramic()]);
        eventually(SOON, "sight again", || (controller.count_log("sound cards are readable again") > number).then_some(()));
    }
    assert_eq!(ids(&station), before);
    assert_eq!(devices(&station), "0869-0389-034F6A21 online");
    assert_eq!(controller.count_log(" disconnected"), 0);
}

#[test]
fn a_half_initialised_card_is_looked_at_again() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    station.tree.alter(|root| std::fs::remove_file(root.join("proc/asound/card0/usbbus")).unwrap());
    let controller = quick(&station);
    controller.wait_log("scanning card 0 again", SOON);
    assert_eq!(devices(&station), "");
    station.tree.set(&[Card::ultramic()]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(devices(&station), "0869-0389-034F6A21 online");
}

#[test]
fn more_microphones_than_places_record_in_order_and_move_up() {
    let station = Station::up();
    let controller =
        station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"), ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.5")]);
    eventually(SOON, "the settings", || station.postgres.value::<i64>("SELECT 1::bigint FROM system_config WHERE key = 'system'"));
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 1}' WHERE key = 'system'");
    let rode = "silvasonic-recorder-rode-nt-usb-p1d2";
    station.tree.set(&[Card::rode()]);
    station.podman.wait_running(SOON, &[rode]);
    let before = ids(&station);
    // By name it would come first, but who runs keeps its place.
    station.tree.set(&[Card::rode(), Card::ultramic().index(1)]);
    controller.wait_log("microphone 0869-0389-034F6A21 is not recorded: max_recorders is reached", SOON);
    assert_eq!(ids(&station), before);
    station.tree.set(&[Card::ultramic().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
}
