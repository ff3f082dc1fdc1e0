//! Microphones that come, go, flap, move and resemble each other.

use std::time::Duration;

use super::start::ids;
use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";

/// A quick Controller whose log tells every change of presence.
fn quick(station: &Station) -> Controller {
    quick_with(station, &[])
}

/// The same, with some variables set otherwise.
fn quick_with(station: &Station, overrides: &[(&str, &str)]) -> Controller {
    let quick =
        [("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"), ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "1"), ("SILVASONIC_LOG_LEVEL", "debug")];
    station.controller_with(&[&quick[..], overrides].concat())
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
fn microphones_without_serials_stay_who_they_are_when_their_buses_swap_numbers() {
    let station = Station::up();
    let (one, other) = ("0000:00:07.0", "0000:00:08.0");
    // Two of the same kind, at the same port of two host controllers.
    station.tree.set(&[Card::generic(0, "1-1").on(one), Card::generic(1, "2-1").on(other)]);
    let mut first = quick_with(&station, &[("SILVASONIC_SHUTDOWN", "keep")]);
    wait_devices(&station, "0d8c-0014-port1-1 online, 0d8c-0014-port2-1 online");
    let (a, b) = ("silvasonic-recorder-generic-usb-p1d1", "silvasonic-recorder-rode-nt-usb-p2d1");
    for (port, profile) in [("1-1", "generic_usb"), ("2-1", "rode_nt_usb")] {
        station.postgres.exec(&format!(
            "UPDATE devices SET enrollment_status = 'enrolled', profile_slug = '{profile}' WHERE name = '0d8c-0014-port{port}'"
        ));
    }
    station.podman.wait_running(SOON, &[a, b]);
    let rows = || {
        let columns = "name, profile_slug, workspace_name, config->>'usb_port_path'";
        let row = format!("SELECT string_agg(concat_ws(' ', {columns}), ', ' ORDER BY name) FROM devices");
        station.postgres.value::<String>(&row).unwrap_or_default()
    };
    let before = "0d8c-0014-port1-1 generic_usb generic-usb-p1d1 pci0000:00/0000:00:07.0/1, \
                  0d8c-0014-port2-1 rode_nt_usb rode-nt-usb-p2d1 pci0000:00/0000:00:08.0/1";
    eventually(SOON, "the rows", || (rows() == before).then_some(()));
    let recorders = ids(&station);

    // A reboot that finds the host controllers in the other order; the cards keep their numbers.
    first.kill();
    drop(first);
    station.tree.set(&[Card::generic(0, "2-1").on(one), Card::generic(1, "1-1").on(other)]);
    let second = quick_with(&station, &[("SILVASONIC_SHUTDOWN", "keep")]);
    let ports = "SELECT string_agg(config->>'usb_bus_path', ' ' ORDER BY name) FROM devices";
    eventually(SOON, "the bus paths", || (station.postgres.value::<String>(ports).as_deref() == Some("2-1 1-1")).then_some(()));
    wait_devices(&station, "0d8c-0014-port1-1 online, 0d8c-0014-port2-1 online");
    assert_eq!(rows(), before);
    assert_eq!(second.count_log("stopped and removed"), 0);
    assert_eq!(ids(&station), recorders);

    // Rows of an older Controller have no such address: they learn it.
    station.postgres.exec("UPDATE devices SET config = config - 'usb_port_path'");
    eventually(SOON, "the addresses", || (rows() == before).then_some(()));

    // The first host controller alone, and then a third one whose bus has a number that the others had.
    station.tree.set(&[Card::generic(0, "1-1").on(one)]);
    wait_devices(&station, "0d8c-0014-port1-1 online, 0d8c-0014-port2-1 offline");
    station.tree.set(&[Card::generic(0, "3-1").on(one), Card::generic(1, "1-1").on("0000:00:09.0")]);
    let names = "SELECT string_agg(split_part(name, '~', 1), ' ' ORDER BY name) FROM devices WHERE status = 'online'";
    let expected = "0d8c-0014-port1-1 0d8c-0014-port1-1";
    eventually(SOON, "the third one", || (station.postgres.value::<String>(names).as_deref() == Some(expected)).then_some(()));
}

#[test]
fn a_serial_number_that_imitates_an_id_takes_nothing_from_others() {
    let station = Station::up();
    let twins = [Card::ultramic().serial("A"), Card::ultramic().index(1).id("r4_1").at("1-2").serial("A")];
    let rode = Card::rode().index(2).at("1-3");
    station.tree.set(&[&twins[..], std::slice::from_ref(&rode)].concat());
    let _controller = quick(&station);
    let known = "0869-0389-A-port1-1 online, 0869-0389-A-port1-2 online, 19f7-0003-port1-3 online";
    wait_devices(&station, known);
    eventually(SOON, "three Recorders", || (ids(&station).len() == 3).then_some(()));
    let before = ids(&station);
    let imitation = Card::ultramic().index(3).id("r4_3").at("1-4").serial("A-port1-2");
    let other = Card::rode().index(4).id("NTUSB_1").at("1-5").serial("port1-3");
    station.tree.set(&[&twins[..], &[rode, imitation, other]].concat());
    eventually(SOON, "both of them", || (devices(&station).matches(" online").count() == 5).then_some(()));
    assert!(known.split(", ").all(|known| devices(&station).contains(known)), "{}", devices(&station));
    eventually(SOON, "five Recorders", || (ids(&station).len() == 5).then_some(()));
    assert!(before.iter().all(|(name, id)| ids(&station)[name] == *id));
}

#[test]
fn a_card_that_captures_with_another_pcm_is_recorded_from_that() {
    let station = Station::up();
    station.tree.fixture("21-capture-on-device-1");
    let _controller = quick(&station);
    let name = "silvasonic-recorder-rode-nt-usb-p1d2";
    station.podman.wait_running(SOON, &[name]);
    let inspect = station.inspect(name).unwrap();
    assert!(inspect["Config"]["Env"].as_array().unwrap().contains(&"SILVASONIC_RECORDER_DEVICE=hw:0,1".into()));
    let row = "SELECT config->>'alsa_device' FROM devices";
    eventually(SOON, "the row", || (station.postgres.value::<String>(row).as_deref() == Some("hw:0,1")).then_some(()));
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
