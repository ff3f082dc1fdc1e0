//! What users write to the database takes effect, what they decided stays, and nonsense harms only its own row.

use std::time::{Duration, Instant};

use super::commands::typed;
use super::start::ids;
use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";

fn recording(station: &Station) -> Controller {
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    controller
}

fn ultramic(station: &Station, assignments: &str) {
    station.postgres.exec(&format!("UPDATE devices SET {assignments} WHERE name = '0869-0389-034F6A21'"));
}

fn column(station: &Station, expression: &str) -> Option<String> {
    station.postgres.value(&format!("SELECT ({expression})::text FROM devices WHERE name = '0869-0389-034F6A21'"))
}

/// No successor and no predecessor is left, which is kept until the new Recorder has run for ten seconds.
fn only_two(station: &Station) {
    eventually(2 * SOON, "only two containers", || (station.containers().len() == 2).then_some(()));
}

/// Two whole cycles have passed: the Controller has read the database twice since.
pub(crate) fn two_cycles(station: &Station) {
    let reads = || station.postgres.value::<i64>("SELECT calls FROM reads");
    station.postgres.exec("DROP TABLE IF EXISTS reads; CREATE TABLE reads AS SELECT sum(seq_scan + coalesce(idx_scan, 0))::bigint AS calls FROM pg_stat_user_tables WHERE relname = 'system_config'");
    let before = reads().unwrap();
    eventually(SOON, "two cycles", || {
        let now = station.postgres.value::<i64>(
            "SELECT sum(seq_scan + coalesce(idx_scan, 0))::bigint FROM pg_stat_user_tables WHERE relname = 'system_config'",
        )?;
        (now >= before + 2).then_some(())
    });
}

#[test]
fn the_users_switches_take_effect() {
    let station = Station::up();
    let controller = recording(&station);
    let rode = ids(&station)[RODE].clone();
    ultramic(&station, "enabled = false");
    assert!(controller.wait_log("stopped and removed", SOON).ends_with("disabled"));
    station.podman.wait_running(SOON, &[RODE]);
    ultramic(&station, "enabled = true");
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);

    ultramic(&station, "enrollment_status = 'ignored'");
    station.podman.wait_running(SOON, &[RODE]);
    two_cycles(&station);
    assert_eq!(column(&station, "enrollment_status").as_deref(), Some("ignored"));
    ultramic(&station, "enrollment_status = 'enrolled'");
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);

    ultramic(&station, "enrollment_status = 'pending'");
    station.podman.wait_running(SOON, &[RODE]);
    two_cycles(&station);
    assert_eq!(column(&station, "enrollment_status").as_deref(), Some("pending"));
    assert_eq!(ids(&station)[RODE], rode);
}

#[test]
fn another_profile_means_another_container_and_folder() {
    let station = Station::up();
    let _controller = recording(&station);
    let rode = ids(&station)[RODE].clone();
    ultramic(&station, "profile_slug = 'generic_usb'");
    station.podman.wait_running(SOON, &["silvasonic-recorder-generic-usb-6a21", RODE]);
    assert_eq!(column(&station, "workspace_name").as_deref(), Some("generic-usb-6a21"));
    only_two(&station);
    ultramic(&station, "profile_slug = NULL");
    station.podman.wait_running(SOON, &[RODE]);
    assert_eq!(ids(&station)[RODE], rode);
}

#[test]
fn an_edited_profile_recreates_its_recorders_and_tells_what_changed() {
    let station = Station::up();
    let controller = recording(&station);
    let before = ids(&station);
    station
        .postgres
        .exec("UPDATE microphone_profiles SET config = jsonb_set(config, '{audio,sample_rate}', '192000') WHERE slug = 'ultramic_384_evo'");
    controller.wait_log("audio.sample_rate 384000 -> 192000", SOON);
    eventually(SOON, "a new container", || ids(&station).get(ULTRAMIC).filter(|id| **id != before[ULTRAMIC]).cloned());
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    only_two(&station);
    // Neither another description nor another way of recognising a microphone interrupts its recording.
    let before = ids(&station);
    station.postgres.exec(
        "UPDATE microphone_profiles SET description = 'new', config = jsonb_set(config, '{audio,match,alsa_name_contains}', '\"x\"') WHERE slug = 'ultramic_384_evo'",
    );
    two_cycles(&station);
    assert_eq!(ids(&station), before);
}

#[test]
fn without_auto_enrollment_a_match_is_a_suggestion() {
    let station = Station::up();
    let controller = station.controller();
    eventually(SOON, "the settings", || station.postgres.value::<i64>("SELECT 1::bigint FROM system_config WHERE key = 'system'"));
    station.postgres.exec("UPDATE system_config SET value = value || '{\"auto_enrollment\": false}' WHERE key = 'system'");
    station.tree.set(&[Card::ultramic(), Card::ultramic().ids("0869:0999").no_serial().index(1).id("r4_1").at("1-5")]);
    let line = controller.wait_log("profile ultramic_384_evo is suggested (score 100)", SOON);
    assert!(line.contains("0869-0389-034F6A21"), "{line}");
    // Two profiles match equally, by name only.
    let line = controller.wait_log("match equally (score 50)", SOON);
    assert!(line.contains("0869-0999-port1-5") && line.contains("ultramic_192k, ultramic_384_evo"), "{line}");
    let rows = "SELECT string_agg(enrollment_status || ' ' || coalesce(profile_slug, '-'), ', ' ORDER BY name) FROM devices";
    assert_eq!(station.postgres.value::<String>(rows).as_deref(), Some("pending ultramic_384_evo, pending -"));
    assert!(station.containers().is_empty());
    // Switched on, it enrols what nobody decided about.
    station.postgres.exec("UPDATE system_config SET value = value || '{\"auto_enrollment\": true}' WHERE key = 'system'");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(station.postgres.value::<String>(rows).as_deref(), Some("enrolled ultramic_384_evo, pending -"));
}

#[test]
fn a_device_that_was_enrolled_by_hand_and_reset_stays_pending() {
    let station = Station::up();
    let _controller = recording(&station);
    // As the Python Controller leaves it: enrolled, without our notes.
    ultramic(&station, "config = config - 'auto_enrolled_at'");
    eventually(SOON, "the note", || column(&station, "config->>'enrollment_decided_at'"));
    ultramic(&station, "enrollment_status = 'pending', profile_slug = NULL");
    station.podman.wait_running(SOON, &[RODE]);
    two_cycles(&station);
    assert_eq!(column(&station, "enrollment_status || coalesce(profile_slug, '')").as_deref(), Some("pending"));
}

#[test]
fn garbage_harms_only_its_own_row() {
    let station = Station::up();
    let controller = recording(&station);
    let before = ids(&station);
    station.postgres.exec(
        "INSERT INTO microphone_profiles (slug, name, config) VALUES ('text', 'x', '\"x\"'), ('number', 'x', '7'), ('deaf', 'x', '{\"audio\": {}}'),
           ('huge', 'x', to_jsonb(repeat('x', 1000000)));
         INSERT INTO devices (name, serial_number, model, config, workspace_name) VALUES
           ('bad1', 'b1', 'x', '7', '../../etc'), ('bad2', 'b2', repeat('m', 1000000), '{}', NULL), (E'bad3\\n', 'b3', 'x', '[1e400]', NULL);
         UPDATE devices SET enrollment_status = 'perhaps' WHERE name = 'bad1';",
    );
    for line in [
        "profile \"text\": config: expected an object, got \"x\"",
        "profile \"number\": config: expected an object, got 7",
        "profile \"deaf\": audio.sample_rate: expected a whole number from 1 to 10000000, got nothing",
        "profile \"huge\": expected a row below 64 KiB",
        "device \"bad1\": unknown variant `perhaps`",
        "device \"bad2\": expected a row below 64 KiB",
    ] {
        controller.wait_log(line, SOON);
    }
    // A profile that turns bad starts nothing any more, but what records goes on.
    station.postgres.exec("UPDATE microphone_profiles SET config = '\"broken\"' WHERE slug = 'ultramic_384_evo'");
    controller.wait_log("profile \"ultramic_384_evo\": config: expected an object", SOON);
    two_cycles(&station);
    assert_eq!(ids(&station), before);
    station.postgres.exec("UPDATE system_config SET value = '\"x\"' WHERE key = 'system'");
    controller.wait_log("system \"system\": expected an object, got \"x\"", SOON);
    two_cycles(&station);
    assert_eq!(ids(&station), before);
}

#[test]
fn a_row_that_the_python_services_accept_is_recorded_with() {
    let station = Station::up();
    let (ultramic_id, rode_id) = ("0869-0389-034F6A21", "19f7-0003-00006A21");
    station.tree.set(&[Card::ultramic(), Card::rode().index(1).serial("00006A21")]);
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC, "silvasonic-recorder-rode-nt-usb-6a21"]);
    // Neither slug is one that a file may have, and both make the same name.
    station.postgres.exec(&format!(
        "INSERT INTO microphone_profiles (slug, name, config) VALUES
           ('My_Mic', 'x', '{{\"schema_version\": \"2.0\", \"audio\": {{\"sample_rate\": \"96000\", \"channels\": 2.0, \"match\": null}},
              \"processing\": {{\"gain_db\": \"12\"}}, \"stream\": {{\"raw_enabled\": \"yes\", \"processed_enabled\": 0}}}}'),
           ('my mic', 'x', '{{\"audio\": {{\"sample_rate\": 44100.0}}}}');
         UPDATE devices SET profile_slug = CASE name WHEN '{ultramic_id}' THEN 'My_Mic' ELSE 'my mic' END;"
    ));
    let names = ["silvasonic-recorder-my-mic-6a21", "silvasonic-recorder-my-mic-06a21"];
    station.podman.wait_running(2 * SOON, &names);
    only_two(&station);
    let mut found = std::collections::BTreeMap::new();
    for name in names {
        let container = station.inspect(name).unwrap();
        let variables = container["Config"]["Env"].as_array().unwrap();
        let variable = |key: &str| variables.iter().find_map(|text| text.as_str()?.strip_prefix(&format!("{key}="))).unwrap().to_owned();
        let config: serde_json::Value = serde_json::from_str(&variable("SILVASONIC_RECORDER_CONFIG_JSON")).unwrap();
        assert_eq!(container["Config"]["Labels"]["io.silvasonic.profile"], variable("SILVASONIC_RECORDER_PROFILE_SLUG"));
        found.insert(variable("SILVASONIC_INSTANCE_ID"), (variable("SILVASONIC_RECORDER_PROFILE_SLUG"), config));
    }
    let (slug, config) = &found[ultramic_id];
    assert_eq!(slug, "My_Mic");
    assert_eq!(config["audio"], serde_json::json!({ "sample_rate": 96000, "channels": 2, "format": "S16LE" }));
    assert_eq!(
        (&config["processing"]["gain_db"], &config["stream"]["raw_enabled"], &config["stream"]["processed_enabled"]),
        (&12.0.into(), &true.into(), &false.into())
    );
    let (slug, config) = &found[rode_id];
    assert_eq!((slug.as_str(), &config["audio"]["sample_rate"]), ("my mic", &44100.into()));
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": \"1\", \"auto_enrollment\": \"false\"}'");
    eventually(SOON, "only one container", || (station.containers().len() == 1).then_some(()));
    assert_eq!(controller.count_log("invalid row"), 0, "{}", controller.log());
}

#[test]
fn keys_that_others_put_into_a_devices_config_are_kept() {
    let station = Station::up();
    let _controller = recording(&station);
    ultramic(&station, "config = config || '{\"note\": \"by hand\", \"alsa_card_index\": 99}'");
    eventually(SOON, "the card index again", || (column(&station, "config->'alsa_card_index'").as_deref() == Some("0")).then_some(()));
    assert_eq!(column(&station, "config->>'note'").as_deref(), Some("by hand"));
}

#[test]
fn a_steady_station_writes_nothing() {
    let station = Station::up();
    let controller = recording(&station);
    controller.wait_log("seeded user", SOON);
    two_cycles(&station);
    station.postgres.exec("DROP TABLE reads");
    let writes = || {
        station
            .postgres
            .value::<i64>("SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables")
            .unwrap()
    };
    let reads = || {
        station
            .postgres
            .value::<i64>("SELECT (seq_scan + coalesce(idx_scan, 0))::bigint FROM pg_stat_user_tables WHERE relname = 'system_config'")
            .unwrap()
    };
    let (before, cycles) = (writes(), reads());
    eventually(Duration::from_secs(30), "five cycles", || (reads() >= cycles + 5).then_some(()));
    assert_eq!(writes(), before);
}

#[test]
fn a_lost_database_stops_nobody() {
    let station = Station::up();
    let controller = recording(&station);
    // One that only a user could have enrolled.
    station.tree.set(&[Card::ultramic(), Card::rode().index(1), Card::generic(2, "1-4")]);
    controller.wait_log("0d8c-0014-port1-4 needs a decision by the user", SOON);
    station
        .postgres
        .exec("UPDATE devices SET enrollment_status = 'enrolled', profile_slug = 'generic_usb' WHERE name = '0d8c-0014-port1-4'");
    let generic = "silvasonic-recorder-generic-usb-p1d4";
    station.podman.wait_running(SOON, &[ULTRAMIC, RODE, generic]);
    let before = ids(&station);
    station.postgres.exec("TRUNCATE devices");
    eventually(SOON, "the devices again", || (station.postgres.value::<i64>("SELECT count(*) FROM devices") == Some(3)).then_some(()));
    two_cycles(&station);
    // Half of a reload: the profiles are gone for a moment.
    station.postgres.exec("ALTER TABLE devices DROP CONSTRAINT devices_profile_slug_fkey; DELETE FROM microphone_profiles");
    two_cycles(&station);
    station.postgres.exec("UPDATE system_config SET value = to_jsonb(repeat('x', 100000)) WHERE key = 'system'");
    controller.wait_log("system \"system\": expected a row below 64 KiB", SOON);
    two_cycles(&station);
    assert_eq!(ids(&station), before);
}

#[test]
fn settings_that_disappear_stop_nobody() {
    let mut station = Station::up();
    let cards: Vec<Card> = (0..6).map(Card::numbered).collect();
    let names: Vec<String> = (0..6).map(Card::numbered_recorder).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut controller = station.controller();
    eventually(SOON, "the settings", || station.postgres.value::<i64>("SELECT 1::bigint FROM system_config WHERE key = 'system'"));
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 10}' WHERE key = 'system'");
    station.tree.set(&cards);
    station.podman.wait_running(2 * SOON, &names);
    let before = ids(&station);
    // The last of the seeders, which run twice after a start and add what is absent.
    controller.wait_log("seeded user", SOON);
    station.postgres.exec("UPDATE system_config SET value = value - 'max_recorders' WHERE key = 'system'");
    controller.wait_log("max_recorders: expected a whole number, got nothing; keeping 10", SOON);
    two_cycles(&station);
    // At the next connection or start it is added again, and not with the default limit.
    let limit = "SELECT value->>'max_recorders' FROM system_config WHERE key = 'system'";
    station.postgres.stop();
    station.postgres.start();
    assert_eq!(eventually(SOON, "the limit", || station.postgres.value::<String>(limit)), "10");
    station.postgres.exec("UPDATE system_config SET value = value - 'max_recorders' WHERE key = 'system'");
    two_cycles(&station);
    controller.kill();
    controller = station.controller();
    // Likewise.
    controller.wait_log("default password; change it", SOON);
    assert_eq!(eventually(SOON, "the limit", || station.postgres.value::<String>(limit)), "10");
    two_cycles(&station);
    station.postgres.exec("DELETE FROM system_config");
    controller.wait_log("no such row; keeping max_recorders 10", SOON);
    two_cycles(&station);
    assert_eq!(ids(&station), before);
    // The same holds for the whole row.
    station.postgres.stop();
    station.postgres.start();
    assert_eq!(eventually(SOON, "the row", || station.postgres.value::<String>(limit)), "10");
    two_cycles(&station);
    station.postgres.exec("DELETE FROM system_config");
    two_cycles(&station);
    controller.kill();
    let controller = station.controller();
    assert_eq!(eventually(SOON, "the row", || station.postgres.value::<String>(limit)), "10");
    two_cycles(&station);
    assert_eq!(ids(&station), before);
    assert_eq!(controller.count_log("stopped and removed"), 0);
}

#[test]
fn an_unusable_row_of_one_twin_does_not_make_it_another_microphone() {
    let station = Station::up();
    let (owner, twin) = (Card::ultramic(), Card::ultramic().index(1).id("r4_1").at("1-2"));
    station.tree.set(std::slice::from_ref(&owner));
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    station.tree.set(&[owner, twin]);
    station.podman.wait_running(SOON, &[ULTRAMIC, "silvasonic-recorder-ultramic-384-evo-f6a21"]);
    let before = ids(&station);
    ultramic(&station, "enrollment_status = 'perhaps'");
    controller.wait_log("unknown variant `perhaps`", SOON);
    two_cycles(&station);
    ultramic(&station, "model = repeat('x', 100000)");
    controller.wait_log("expected a row below 64 KiB", SOON);
    two_cycles(&station);
    assert_eq!(ids(&station), before);
    assert_eq!(station.postgres.value::<i64>("SELECT count(*) FROM devices"), Some(2));
    assert_eq!(controller.count_log(" disconnected"), 0);
}

#[test]
fn keys_with_control_characters_forge_no_log_line() {
    let station = Station::up();
    let controller = recording(&station);
    station.postgres.exec(
        "INSERT INTO devices (name, serial_number, model, status, config) VALUES (E'x\\n2026 [ERROR] forged', 's', 'm', 'online', '{}')",
    );
    controller.wait_log("expected a key of at most 256 bytes without control characters", SOON);
    two_cycles(&station);
    assert!(!controller.log().lines().any(|line| line.starts_with("2026 [ERROR] forged")));
}

/// A client of another database of the station's server.
fn client_of(station: &Station, database: &str) -> postgres::Client {
    let mut config = postgres::Config::new();
    config.host_path(station.postgres.socket_dir()).port(station.postgres.port()).user("silvasonic").dbname(database);
    config.connect(postgres::NoTls).unwrap()
}

#[test]
fn text_that_the_database_cannot_hold_or_convert_costs_its_own_row_only() {
    // WIN1252 has bytes without a meaning.
    for (encoding, invalid) in [("SQL_ASCII", "E'\\xff'"), ("LATIN1", ""), ("WIN1252", "E'\\x81'")] {
        let station = Station::up();
        station.postgres.exec(&format!("CREATE DATABASE other ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"));
        let mut client = client_of(&station, "other");
        station.tree.set(&[Card::ultramic().name("UltraMic™ Δ384K"), Card::rode().index(1)]);
        let controller = station.controller_with(&[("POSTGRES_DB", "other")]);
        station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
        controller.wait_log("seeded user", SOON);
        let before = ids(&station);
        if !invalid.is_empty() {
            client.batch_execute("SELECT set_config('client_encoding', getdatabaseencoding()::text, FALSE)").unwrap();
            client
                .batch_execute(&format!(
                    "INSERT INTO devices (name, serial_number, model, config) VALUES ('bad', 'b', 'x' || {invalid}, '{{}}');
                     INSERT INTO devices (name, serial_number, model, config) VALUES ('worse' || {invalid}, 'w', 'x', '{{}}');
                     INSERT INTO microphone_profiles (slug, name, config) VALUES ('bad', 'x', ('{{\"x\": \"' || {invalid} || '\"}}')::jsonb)"
                ))
                .unwrap();
            for row in ["device \"bad\"", "device \"worse", "profile \"bad\""] {
                controller.wait_log(row, SOON);
            }
            let fault = format!("text that is not valid in the encoding of the database, {encoding}");
            eventually(SOON, "three faults", || (controller.count_log(&fault) == 3).then_some(()));
        }
        // The user's switches work, and a steady station writes nothing.
        client.batch_execute("UPDATE devices SET enabled = FALSE WHERE name LIKE '19f7%'").unwrap();
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        let mut writes = || -> i64 {
            let sum = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables";
            client.query_one(sum, &[]).unwrap().get(0)
        };
        let (mut written, mut since) = (writes(), Instant::now());
        eventually(2 * SOON, "four seconds without a write", || {
            let now = writes();
            if now != written {
                (written, since) = (now, Instant::now());
            }
            (since.elapsed() > Duration::from_secs(4)).then_some(())
        });
        assert_eq!(ids(&station)[ULTRAMIC], before[ULTRAMIC]);
        assert_eq!(controller.count_log("cannot read PostgreSQL") + controller.count_log("cannot write device"), 0, "{}", controller.log());
    }
}

#[test]
fn a_foreign_users_table_is_no_reason_to_end() {
    let station = Station::up();
    station.postgres.exec("CREATE TABLE users (id BIGINT PRIMARY KEY, username TEXT UNIQUE); INSERT INTO users VALUES (1, 'admin')");
    let controller = recording(&station);
    eventually(SOON, "the column", || station.postgres.value::<i64>("SELECT count(password_hash) FROM users"));
    two_cycles(&station);
    two_cycles(&station);
    assert_eq!(controller.count_log("bug in thread"), 0);
}

#[test]
fn a_pgbouncer_in_between_changes_nothing() {
    let station = Station::plan().without_podman().without_redis().up();
    let pgbouncer = station.postgres.pgbouncer();
    station.tree.set(&[Card::ultramic()]);
    let port = pgbouncer.port().to_string();
    let controller = station.controller_with(&[("SILVASONIC_DB_HOST", "127.0.0.1"), ("SILVASONIC_DB_PORT", &port)]);
    eventually(SOON, "the microphone in the database", || column(&station, "enrollment_status").filter(|status| status == "enrolled"));
    controller.wait_log("seeded user", SOON);
    // The time limits apply, also after the shorter ones of the writes.
    let mut other = station.postgres.client();
    other.batch_execute("BEGIN; LOCK TABLE system_config IN ACCESS EXCLUSIVE MODE").unwrap();
    controller.wait_log("PostgreSQL reports: canceling statement due to lock timeout (55P03)", SOON);
}

#[test]
fn a_carriage_return_after_the_password_is_named_where_the_password_is_refused() {
    let station = Station::plan().without_podman().without_redis().up();
    station.postgres.ask_for_passwords();
    let settings = [("POSTGRES_PASSWORD", "silvasonic\r")];
    let flaw = "POSTGRES_PASSWORD ends with a control character (U+000D): remove it, unless it belongs to it";
    let refused = format!("PostgreSQL reports: password authentication failed for user \"silvasonic\" (28P01); {flaw}");
    let controller = station.controller_with(&settings);
    let line = controller.wait_log("cannot read PostgreSQL", SOON);
    assert!(line.ends_with(&refused), "{line}");
    let (code, text, _) = typed(&station, "check", &settings);
    assert_eq!(code, Some(1));
    assert!(text.lines().any(|line| line.starts_with("warning  settings") && line.contains(flaw)), "{text}");
    assert!(text.lines().any(|line| line.starts_with("failed   postgresql") && line.contains(&refused)), "{text}");
    // It is used as given: a password that really ends so is accepted.
    station.postgres.exec("ALTER ROLE silvasonic PASSWORD E'silvasonic\\r'");
    eventually(2 * SOON, "the connection", || (controller.count_log("connected to PostgreSQL") > 0).then_some(()));
}
