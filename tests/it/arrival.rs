//! Services that come after the Controller, seeding, and databases of the Python Controller.

use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

use super::database::two_cycles;
use super::station::{Contents, PeerVersion, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

#[test]
fn postgresql_may_come_after_the_controller() {
    let mut station = Station::plan().without_postgres().up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller();
    controller.wait_log("cannot read PostgreSQL", SOON);
    station.postgres.start();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("PostgreSQL is available again", SOON);
}

#[test]
fn podman_may_come_after_the_controller_and_its_socket_may_be_stale() {
    let station = Station::plan().without_podman().up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller();
    let line = controller.wait_log("cannot list containers", SOON);
    assert!(line.contains("no Podman service: No such file"), "{line}");
    // A socket file that nobody serves.
    fs::create_dir_all(station.podman.socket().parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(station.podman.socket()).unwrap());
    controller.wait_log("no Podman service: Connection refused", SOON);
    fs::remove_file(station.podman.socket()).unwrap();
    station.podman.start();
    station.podman.recorder_image();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("Podman is available again", SOON);
}

#[test]
fn a_missing_image_or_network_is_named_with_its_cure() {
    let station = Station::plan().without_recorder_image().up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller();
    controller.wait_log("image localhost/silvasonic_recorder:latest is not in Podman's local storage: no Recorder can start", SOON);
    let line = controller.wait_log(&format!("{ULTRAMIC} cannot be created"), SOON);
    assert!(line.contains("build or load it"), "{line}");
    station.podman.recorder_image();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
}

#[test]
fn seeding_twice_changes_nothing_that_a_user_wrote() {
    let station = Station::up();
    let first = station.controller();
    first.wait_log("seeded user admin", SOON);
    assert_eq!(first.count_log("seeded profile"), 8);
    drop(first);
    station.postgres.exec(
        "UPDATE system_config SET value = '{\"max_recorders\": 2, \"station_name\": \"Oak\"}' WHERE key = 'system';
         UPDATE microphone_profiles SET name = 'mine' WHERE slug = 'generic_usb';
         DELETE FROM microphone_profiles WHERE slug = 'audiomoth_usb';
         UPDATE users SET is_active = FALSE",
    );
    let second = station.controller();
    // The default password still holds.
    second.wait_log("user admin still has the default password", SOON);
    assert_eq!(second.count_log("seeded"), 1, "{}", second.log());
    second.wait_log("seeded profile audiomoth_usb", SOON);
    let text = |sql: &str| station.postgres.value::<String>(sql).unwrap();
    assert_eq!(
        text("SELECT value::text FROM system_config"),
        "{\"station_name\": \"Oak\", \"max_recorders\": 2, \"auto_enrollment\": true}"
    );
    assert_eq!(text("SELECT name FROM microphone_profiles WHERE slug = 'generic_usb'"), "mine");
    assert_eq!(text("SELECT username || is_active || left(password_hash, 7) FROM users"), "adminfalse$2b$12$");
    assert_eq!(
        text("SELECT (config - 'processing' - 'stream')::text FROM microphone_profiles WHERE slug = 'rode_nt_usb' AND is_system"),
        "{\"audio\": {\"match\": {\"usb_vendor_id\": \"19f7\", \"usb_product_id\": \"0003\", \"alsa_name_contains\": \"RODE NT-USB\"}, \"format\": \"S16LE\", \"channels\": 2, \"sample_rate\": 48000}}"
    );
}

#[test]
fn sections_that_exist_get_the_keys_that_they_lack() {
    let station = Station::plan().without_podman().without_redis().up();
    let folder = station.dir().join("config");
    fs::create_dir_all(folder.join("profiles")).unwrap();
    // Without a section `auth`, nobody is seeded, and that is no fault.
    let defaults = "system: {latitude: null, longitude: 10.5, station_name: Elm, own: 1}\nother: {a: 1, b: {c: 2, d: 3}, n: null}\n";
    fs::write(folder.join("defaults.yml"), defaults).unwrap();
    let settings = [("SILVASONIC_CONFIG_DIR", folder.to_str().unwrap()), ("SILVASONIC_LOG_LEVEL", "debug")];
    let start = || {
        // What an earlier run knew would come before the defaults.
        let _ = fs::remove_file(station.workspace().join("recorder/.controller-state"));
        let controller = station.controller_with(&settings);
        controller.wait_log("no user is seeded", SOON);
        assert_eq!(controller.count_log("[ERROR]"), 0, "{}", controller.log());
        controller
    };
    let json = |sql: &str| station.postgres.query(sql, &[])[0].get::<_, Value>(0);
    let system = || json("SELECT value FROM system_config WHERE key = 'system'");
    let set = |value: &str| station.postgres.exec(&format!("UPDATE system_config SET value = '{value}' WHERE key = 'system'"));
    drop(start());
    assert_eq!(system(), json!({ "longitude": 10.5, "max_recorders": 5, "station_name": "Elm", "auto_enrollment": true, "own": 1 }));
    assert_eq!(json("SELECT value FROM system_config WHERE key = 'other'"), json!({ "a": 1, "b": { "c": 2, "d": 3 }, "n": null }));
    assert_eq!(station.postgres.value::<i64>("SELECT count(*) FROM users"), Some(0));

    let complete = json!({ "longitude": 10.5, "max_recorders": 5, "station_name": "Elm", "auto_enrollment": true, "own": 1 });
    for (row, expected) in [
        ("{}", complete.clone()),
        (
            r#"{"latitude": 1, "longitude": null, "max_recorders": "7", "station_name": "Oak", "auto_enrollment": false, "x": 2}"#,
            json!({ "latitude": 1, "longitude": null, "max_recorders": "7", "station_name": "Oak", "auto_enrollment": false, "x": 2, "own": 1 }),
        ),
        ("[1]", json!([1])),
        (r#""station_name""#, json!("station_name")),
        ("null", json!(null)),
    ] {
        set(row);
        let first = start();
        assert_eq!(system(), expected, "{row}");
        assert_eq!(first.count_log("settings system: added "), usize::from(expected.is_object()), "{row}");
        drop(first);
        // A start that has nothing to add writes nothing.
        let written = "SELECT string_agg(key || updated_at || xmin || xmax, ' ' ORDER BY key) FROM system_config";
        let before = station.postgres.value::<String>(written);
        drop(start());
        assert_eq!(station.postgres.value::<String>(written), before, "{row}");
    }
    station.postgres.exec("UPDATE system_config SET value = '{\"b\": {}, \"x\": 1}' WHERE key = 'other'");
    drop(start());
    assert_eq!(json("SELECT value FROM system_config WHERE key = 'other'"), json!({ "a": 1, "b": {}, "n": null, "x": 1 }));

    // A section that another client has locked is skipped, and completed later.
    set("{}");
    let mut other = station.postgres.client();
    other.batch_execute("BEGIN; SELECT 1 FROM system_config FOR UPDATE").unwrap();
    let controller = start();
    assert_eq!(system(), json!({}));
    drop((controller, other));
    drop(start());
    assert_eq!(system(), complete);

    // A limit that nobody set stops no Recorder.
    station.postgres.exec(
        "INSERT INTO devices (name, serial_number, model, enrollment_status, config)
           SELECT 'd' || n, 's' || n, 'x', 'enrolled', '{}' FROM generate_series(1, 6) n",
    );
    set("{}");
    let controller = start();
    controller.wait_log("max_recorders is not seeded: more than 5 microphones are recorded", SOON);
    assert_eq!(system(), json!({ "longitude": 10.5, "station_name": "Elm", "auto_enrollment": true, "own": 1 }));
}

#[test]
fn broken_files_are_reported_and_spoil_nothing_else() {
    let station = Station::up();
    let folder = station.dir().join("config");
    fs::create_dir_all(folder.join("profiles")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write(
        "defaults.yml",
        "system:\n  max_recorders: many\n  station_name: Oak\nother: {a: 1, b: {c: 2}}\nauth: {default_username: eve, default_password: '1'}\n",
    );
    write("defaults.override.yml", "other: {b: {c: 3}}\nauth: {default_username: ann}\n");
    write("profiles/good.yml", "schema_version: '1.0'\nslug: good\nname: Good\naudio: {sample_rate: 48000}\n");
    write("profiles/bad.yml", "schema_version: '1.0'\nslug: bad\nname: Bad\naudio:\n  sample_rate: fast\n");
    write("profiles/broken.yml", "a: [");
    write("profiles/nul.yml", "schema_version: '1.0'\nslug: nul\nname: \"a\\0b\"\naudio: {sample_rate: 48000}\n");
    write("profiles/notes.txt", "not a profile");
    let controller = station.controller_with(&[("SILVASONIC_CONFIG_DIR", folder.to_str().unwrap())]);
    controller.wait_log(
        "seeding profiles: profiles/bad.yml:5: audio.sample_rate: expected a whole number from 1 to 10000000, got \"fast\"",
        SOON,
    );
    controller.wait_log("seeding profiles: profiles/broken.yml:", SOON);
    controller.wait_log("seeding profiles: profiles/nul.yml", SOON);
    controller
        .wait_log("seeding settings: defaults.yml:2: system.max_recorders: expected a whole number from 0 to 1000, got \"many\"", SOON);
    controller.wait_log("seeded user ann", SOON);
    let text = |sql: &str| station.postgres.value::<String>(sql).unwrap();
    assert_eq!(text("SELECT string_agg(key || value::text, ' ') FROM system_config"), "other{\"a\": 1, \"b\": {\"c\": 3}}");
    assert_eq!(text("SELECT string_agg(slug, ' ') FROM microphone_profiles"), "good");
}

#[test]
fn a_long_password_is_refused() {
    let station = Station::up();
    let folder = station.dir().join("config");
    fs::create_dir_all(folder.join("profiles")).unwrap();
    let text = format!("auth: {{default_username: ann, default_password: '{}'}}\n", "x".repeat(73));
    fs::write(folder.join("defaults.yml"), text).unwrap();
    let controller = station.controller_with(&[("SILVASONIC_CONFIG_DIR", folder.to_str().unwrap())]);
    controller.wait_log("seeding auth: defaults.yml:1: auth.default_password: expected at most 72 bytes, got 73", SOON);
    assert_eq!(station.postgres.value::<i64>("SELECT count(*) FROM users"), Some(0));
}

#[test]
fn a_database_of_the_python_controller_serves_and_keeps_all_that_it_contains() {
    for version in PeerVersion::ALL {
        let station = Station::up();
        station.postgres.make_peer_database(version);
        let before = Contents::of(&station.postgres);
        station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
        let controller = station.controller();
        station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
        controller.wait_log("user admin still has the default password", SOON);
        // The whole life of a microphone: suspended by the user, unplugged, connected elsewhere.
        station.postgres.exec("UPDATE devices SET enabled = FALSE WHERE name LIKE '19f7%'");
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        station.tree.set(&[Card::rode().index(1)]);
        let status = "SELECT status FROM devices WHERE name LIKE '%034F6A21'";
        eventually(SOON, "offline", || (station.postgres.value::<String>(status)? == "offline").then_some(()));
        station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        two_cycles(&station);
        station.postgres.exec("DROP TABLE reads");
        assert_eq!(before.lost(&station.postgres), Vec::<String>::new(), "{version:?}");
        let is_old = version == PeerVersion::V0_3_0;
        assert_eq!(controller.count_log("created column devices.workspace_name"), usize::from(is_old), "{version:?}");
        assert_eq!(controller.count_log("[ERROR]") + controller.count_log("invalid row"), 0, "{version:?}: {}", controller.log());
        // A loss would be noticed.
        station.postgres.exec("DROP INDEX ix_uploads_recording_id; UPDATE weather SET source = 'x'");
        assert_eq!(before.lost(&station.postgres).len(), 2, "{version:?}");
    }
}

#[test]
fn without_a_database_the_last_known_state_starts_what_is_plugged_in() {
    let mut station = Station::up();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let mut first = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    station.postgres.exec("UPDATE devices SET enabled = FALSE WHERE name LIKE '19f7%'");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    first.signal(rustix::process::Signal::TERM);
    first.wait_exit(SOON);
    assert!(station.containers().is_empty());

    station.postgres.stop();
    let second = station.controller();
    // What was disabled stays so; what is not plugged in is not started.
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    second.wait_log("cannot read PostgreSQL", SOON);
    station.tree.set(&[Card::rode().index(1)]);
    second.wait_log("stopped and removed", SOON);
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = super::start::ids(&station);
    station.postgres.start();
    second.wait_log("PostgreSQL is available again", SOON);
    station.postgres.exec("UPDATE devices SET enabled = TRUE");
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    assert_eq!(super::start::ids(&station)[ULTRAMIC], before[ULTRAMIC]);
    drop(second);

    // A torn file is ignored with one line.
    let file = station.workspace().join("recorder/.controller-state");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let third = station.controller();
    let line = third.wait_log("ignoring the desired state saved by an earlier run", SOON);
    assert!(line.contains("checksum"), "{line}");
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    eventually(SOON, "the file anew", || (fs::read(&file).unwrap() == whole).then_some(()));
}
