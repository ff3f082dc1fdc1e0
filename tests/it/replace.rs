//! A Recorder is replaced: its successor exists before it is given up, it comes back when the successor fails, and never do
//! both run. What concerns many is done one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::database::two_cycles;
use super::devices::reason;
use super::ends::Disk;
use super::podman_faults::{proxied, proxied_with};
use super::start::ids;
use super::station::{Controller, Fault, Happened, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
/// A successor runs for ten seconds before its predecessor goes.
pub(crate) const PROVEN: Duration = Duration::from_secs(10);
/// Podman's lists tell whole seconds.
const ROUNDED: Duration = Duration::from_secs(1);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const DEVICE: &str = "0869-0389-034F6A21";

/// Ends as soon as it is asked to.
const WILLING: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
/// Takes a while to end.
const SLOW: &str = "trap 'sleep 4; exit 0' TERM; while :; do sleep 1000 & wait; done";

/// What a user does who edits the profile of all UltraMics.
pub(crate) fn edit(station: &Station, rate: u32) {
    let set = "UPDATE microphone_profiles SET config = jsonb_set(config, '{audio,sample_rate}',";
    station.postgres.exec(&format!("{set} '{rate}') WHERE slug = 'ultramic_384_evo'"));
}

/// The sample rate that a Recorder was created with.
pub(crate) fn rate(station: &Station, name: &str) -> Option<u64> {
    let inspect = station.inspect(name)?;
    let config =
        inspect["Config"]["Env"].as_array()?.iter().find_map(|pair| pair.as_str()?.strip_prefix("SILVASONIC_RECORDER_CONFIG_JSON="))?;
    serde_json::from_str::<Value>(config).ok()?["audio"]["sample_rate"].as_u64()
}

/// Waits until the container of that name runs and is another one than before.
fn wait_replaced(station: &Station, name: &str, before: &str) {
    eventually(SOON + PROVEN, &format!("another {name} that runs"), || {
        let inspect = station.inspect(name)?;
        (inspect["Id"] != before && inspect["State"]["Status"] == "running").then_some(())
    });
}

/// Waits until these are all containers: no successor and no predecessor is left.
fn wait_only(station: &Station, names: &[&str]) {
    eventually(SOON + PROVEN, &format!("only {names:?}"), || ids(station).keys().eq(names).then_some(()));
}

/// One run of a container.
#[derive(Clone, Debug)]
struct Run {
    device: String,
    id: String,
    from: Duration,
    /// `None` = it runs.
    to: Option<Duration>,
}

/// The runs of all containers, in order.
fn runs(events: &[Happened]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for event in events {
        let open = runs.iter().rposition(|run| run.id == event.id && run.to.is_none());
        match (event.action.as_str(), open) {
            ("start", None) => runs.push(Run { device: event.device.clone(), id: event.id.clone(), from: event.at, to: None }),
            ("died" | "remove", Some(open)) => runs[open].to = Some(event.at),
            _ => {}
        }
    }
    runs
}

/// At no instant do two Recorders of a device run.
pub(crate) fn assert_never_two(events: &[Happened]) {
    let runs = runs(events);
    for (number, run) in runs.iter().enumerate() {
        if let Some(next) = runs[number + 1..].iter().find(|next| next.device == run.device) {
            assert!(run.to.is_some_and(|end| end <= next.from), "{run:?} and {next:?} in {}", told(events));
        }
    }
}

/// Events in short, for messages.
fn told(events: &[Happened]) -> String {
    let line = |event: &Happened| format!("\n{:.3} {} {} {:.6}", event.at.as_secs_f64(), event.action, event.name, event.id);
    events.iter().map(line).collect()
}

/// When something first happened to that container.
fn when(events: &[Happened], id: &str, action: &str) -> Duration {
    let found = events.iter().find(|event| event.id == id && event.action == action);
    found.unwrap_or_else(|| panic!("no {action} of {id} in {}", told(events))).at
}

/// The reason in the heartbeat.
fn beat_reason(station: &Station) -> String {
    let beat = station.heartbeat().unwrap_or_default();
    beat["meta"]["devices"][DEVICE]["reason"].as_str().unwrap_or_default().to_owned()
}

fn component(controller: &Controller) -> Value {
    controller.get("/healthy").map(|(_, health)| health["components"]["containers"].clone()).unwrap_or_default()
}

fn state(station: &Station, name: &str) -> Value {
    station.inspect(name).map(|inspect| inspect["State"]["Status"].clone()).unwrap_or_default()
}

fn folder(station: &Station) -> PathBuf {
    station.workspace().join("recorder/ultramic-384-evo-6a21")
}

/// Takes what room there is; the file is closed, so that its removal gives it back.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

/// Without the limit on Recorders that a new station has.
fn many(station: &Station) {
    eventually(SOON, "the settings", || station.postgres.value::<i64>("SELECT 1::bigint FROM system_config WHERE key = 'system'"));
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 20}' WHERE key = 'system'");
}

#[test]
fn a_recorder_records_until_its_successor_exists_and_they_never_run_both() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let begun = SystemTime::now();
    let (proxy, controller) = proxied(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let (id, before) = (ids(&station)[ULTRAMIC].clone(), station.podman.mark(ULTRAMIC));
    let asked = proxy.requests_for("POST /create");
    proxy.set("POST /create", Fault::Delay(Duration::from_secs(4)));
    edit(&station, 192_000);
    eventually(SOON, "a creation is asked for", || (proxy.requests_for("POST /create") > asked).then_some(()));
    // Podman takes its time.
    two_cycles(&station);
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    assert_eq!(state(&station, ULTRAMIC), "running");
    wait_replaced(&station, ULTRAMIC, &id);
    proxy.clear();
    assert_eq!(rate(&station, ULTRAMIC), Some(192_000));
    // The one of before is kept until the new one is proven.
    assert!(ids(&station).values().any(|kept| *kept == id), "{:?}", ids(&station));
    wait_only(&station, &[ULTRAMIC]);
    let events = station.podman.events(begun);
    let new = ids(&station)[ULTRAMIC].clone();
    let order = [when(&events, &new, "create"), when(&events, &id, "died"), when(&events, &new, "start"), when(&events, &id, "remove")];
    assert!(order.is_sorted(), "{}", told(&events));
    assert!(order[3] - order[2] + ROUNDED >= PROVEN, "{}", told(&events));
    assert_never_two(&events);
    assert_eq!(controller.count_log("audio.sample_rate 384000 -> 192000"), 1);
    assert_eq!(controller.count_log("ended with code"), 0);
}

#[test]
fn while_podmans_disk_is_full_an_edited_profile_interrupts_no_recorder() {
    // Podman's sandbox sees what is mounted before it begins.
    let station = Station::plan().without_podman().up();
    let storage = station.dir().join("podman/storage");
    fs::create_dir_all(&storage).unwrap();
    // The station's guard unmounts it: it removes the containers before, and needs their storage for that.
    std::mem::forget(Disk::mount(storage.clone(), "size=192m,mode=755"));
    station.podman.start();
    station.podman.recorder_image();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let (id, before) = (ids(&station)[ULTRAMIC].clone(), station.podman.mark(ULTRAMIC));
    fill(&storage.join("stuffing"));
    edit(&station, 192_000);
    controller.wait_log("free space on the disk with Podman's storage", SOON);
    two_cycles(&station);
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    assert_eq!(state(&station, ULTRAMIC), "running");
    fs::remove_file(storage.join("stuffing")).unwrap();
    wait_replaced(&station, ULTRAMIC, &id);
    wait_only(&station, &[ULTRAMIC]);
}

#[test]
fn when_its_successor_cannot_start_or_ends_at_once_a_recorder_records_again() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let begun = SystemTime::now();
    let mut first = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = ids(&station);
    first.kill();

    let image = station.podman.program_image("edge", "/nonexistent");
    let settings = [
        ("SILVASONIC_RECORDER_IMAGE", image.as_str()),
        ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "1"),
        ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1"),
    ];
    let controller = station.controller_with(&settings);
    let fell_back = |cause: &str| {
        let is = |reason: &str| reason.starts_with("running, but") && reason.contains("fell back") && reason.contains(cause);
        eventually(SOON + PROVEN, &format!("{cause:?} in the heartbeat"), || is(&beat_reason(&station)).then_some(()));
        assert!(is(&reason(&station, DEVICE)), "{}", reason(&station, DEVICE));
        let line = controller.wait_log("fell back", SOON);
        assert!(line.contains(DEVICE) || line.contains(ULTRAMIC), "{line}");
        assert!(controller.log().contains(cause));
        // Nothing is left of the successor, and there is not another one while nothing changes.
        eventually(SOON, "only the one of before", || (ids(&station) == before).then_some(()));
        station.podman.wait_running(SOON, &[ULTRAMIC]);
        let made = || station.podman.events(begun).iter().filter(|event| event.action == "create").count();
        let creations = made();
        two_cycles(&station);
        two_cycles(&station);
        assert_eq!((made(), ids(&station)), (creations, before.clone()));
    };
    fell_back("attempted to invoke a command that was not found");
    // Repaired by half, and tried again as the profile is another one.
    station.image("edge", "usleep 300000; exit 3");
    edit(&station, 192_000);
    fell_back("ended with code 3");
    station.image("edge", WILLING);
    edit(&station, 96_000);
    wait_replaced(&station, ULTRAMIC, &before[ULTRAMIC]);
    eventually(SOON, "that it fell back is over", || {
        let told = beat_reason(&station);
        (told.starts_with("running, but") && !told.contains("fell back")).then_some(())
    });
    wait_only(&station, &[ULTRAMIC]);
    assert_eq!(rate(&station, ULTRAMIC), Some(96_000));
    // The one of before has ended as it was asked to.
    assert_eq!(controller.count_log("ended with code 0"), 0);
    assert_never_two(&station.podman.events(begun));
}

#[test]
fn an_edited_profile_replaces_its_recorders_one_after_the_other() {
    let station = Station::up();
    station.tree.set(&(0..3).map(Card::numbered).collect::<Vec<_>>());
    let names: Vec<String> = (0..3).map(Card::numbered_recorder).collect();
    let begun = SystemTime::now();
    let _controller = station.controller();
    station.podman.wait_running(SOON, &names);
    let before: BTreeSet<String> = ids(&station).into_values().collect();
    edit(&station, 192_000);
    eventually(SOON + 4 * PROVEN, "three others", || {
        let now = ids(&station);
        (now.keys().eq(&names) && now.values().all(|id| !before.contains(id))).then_some(())
    });
    station.podman.wait_running(SOON, &names);
    let events = station.podman.events(begun);
    assert_never_two(&events);
    // From the end of each Recorder of before to the start of the next one of that device.
    let runs = runs(&events);
    let mut gaps: Vec<(Duration, Duration)> = Vec::new();
    for run in runs.iter().filter(|run| before.contains(&run.id)) {
        let next = runs.iter().find(|next| next.device == run.device && !before.contains(&next.id)).unwrap();
        gaps.push((run.to.unwrap(), next.from));
    }
    gaps.sort();
    assert_eq!(gaps.len(), 3);
    for pair in gaps.windows(2) {
        assert!(pair[1].0 + ROUNDED >= pair[0].1 + PROVEN, "{gaps:?} in {}", told(&events));
    }
}

/// A creation request with a hash that is not ours and a limit that is not the desired one.
fn with_another_limit(body: &str) -> String {
    let mut request: Value = serde_json::from_str(body).unwrap();
    request["labels"]["io.silvasonic.config_hash"] = json!("0123456789abcdef");
    request["resource_limits"]["memory"]["limit"] = json!(64 << 20);
    request.to_string()
}

#[test]
fn a_container_that_never_comes_out_as_wanted_is_replaced_more_and_more_rarely() {
    let station = Station::up();
    let (proxy, controller) = proxied(&station);
    controller.wait_log("connected to Podman", SOON);
    proxy.set("POST /create", Fault::Edit(with_another_limit));
    let begun = SystemTime::now();
    station.tree.set(&[Card::ultramic()]);
    let made = || {
        let events = station.podman.events(begun);
        events.iter().filter(|event| event.action == "create").map(|event| event.at).collect::<Vec<_>>()
    };
    let made = eventually(Duration::from_secs(60), "the first one and three more", || Some(made()).filter(|made| made.len() >= 4));
    // The second try to mend it waits for a second, the third one for two.
    assert!(made[3] - made[1] >= Duration::from_millis(2500), "{made:?}");
    let line = controller.wait_log("right after its creation (memory 67108864 -> 536870912)", SOON);
    assert!(line.contains(ULTRAMIC), "{line}");
    assert_eq!(controller.count_log("right after its creation"), 1);
}

#[test]
fn a_torn_creation_is_cleared_away_and_the_microphone_is_recorded() {
    let station = Station::up();
    let (proxy, controller) = proxied(&station);
    controller.wait_log("connected to Podman", SOON);
    // The moment may be missed.
    eventually(Duration::from_secs(60), "a torn creation", || {
        station.tree.set(&[]);
        eventually(SOON, "no container", || station.containers().is_empty().then_some(()));
        station.tree.set(&[Card::ultramic()]);
        station.podman.tear_creation(ULTRAMIC, SOON).then_some(())
    });
    // Five seconds, and as long as the Controller may not have noticed yet that Podman is back.
    station.podman.wait_running(Duration::from_secs(7), &[ULTRAMIC]);
    assert_eq!(proxy.lines(&format!("DELETE {ULTRAMIC}")).len(), 1);
    assert_eq!(proxy.requests_for("DELETE force=true"), 0);
    assert_eq!(controller.count_log("foreign container"), 0);
}

#[test]
fn a_torn_creation_of_a_successor_interrupts_no_recorder() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let begun = SystemTime::now();
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let (id, before) = (ids(&station)[ULTRAMIC].clone(), station.podman.mark(ULTRAMIC));
    edit(&station, 192_000);
    assert!(station.podman.tear_creation(&format!("{ULTRAMIC}-next"), SOON), "a torn creation of a successor");
    assert_eq!(station.podman.mark(ULTRAMIC), before);
    wait_replaced(&station, ULTRAMIC, &id);
    wait_only(&station, &[ULTRAMIC]);
    let events = station.podman.events(begun);
    let new = ids(&station)[ULTRAMIC].clone();
    assert!(when(&events, &new, "create") <= when(&events, &id, "died"), "{}", told(&events));
    assert_never_two(&events);
    assert_eq!(controller.count_log("foreign container"), 0);
}

#[test]
fn a_termination_signal_ends_a_replacement_and_all_that_it_has_made() {
    let station = Station::up();
    let slow = station.image("slow", SLOW);
    station.tree.set(&[Card::ultramic()]);
    let settings = [("SILVASONIC_RECORDER_IMAGE", slow.as_str())];
    let (proxy, mut controller) = proxied_with(&station, &settings);
    let ended_well = |controller: &mut Controller, signalled: SystemTime| {
        assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
        assert_eq!(ids(&station), BTreeMap::new());
        let events = station.podman.events(signalled);
        let signalled = signalled.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let late = events.iter().filter(|event| event.action == "start" && event.at > signalled).count();
        assert_eq!(late, 0, "{}", told(&events));
    };

    // While the new one is created.
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let asked = proxy.requests_for("POST /create");
    proxy.set("POST /create", Fault::Delay(Duration::from_secs(2)));
    edit(&station, 192_000);
    eventually(SOON, "a creation is asked for", || (proxy.requests_for("POST /create") > asked).then_some(()));
    let signalled = SystemTime::now();
    controller.signal(Signal::TERM);
    ended_well(&mut controller, signalled);
    proxy.clear();

    // While the old one ends.
    let mut controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let id = ids(&station)[ULTRAMIC].clone();
    edit(&station, 96_000);
    eventually(SOON, "stopping", || (state(&station, &id) == "stopping").then_some(()));
    let signalled = SystemTime::now();
    controller.signal(Signal::TERM);
    ended_well(&mut controller, signalled);

    // While the new one has not proven itself yet.
    let mut controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let id = ids(&station)[ULTRAMIC].clone();
    edit(&station, 48_000);
    wait_replaced(&station, ULTRAMIC, &id);
    assert_eq!(ids(&station).len(), 2);
    let signalled = SystemTime::now();
    controller.signal(Signal::TERM);
    ended_well(&mut controller, signalled);
}

#[test]
fn an_end_that_was_asked_for_is_no_failure() {
    let station = Station::up();
    let image = station.image("slow", "trap 'sleep 2; exit 0' TERM; while :; do sleep 1000 & wait; done");
    station.tree.set(&[Card::ultramic()]);
    let settings = [("SILVASONIC_RECORDER_IMAGE", image.as_str()), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")];
    let (proxy, controller) = proxied_with(&station, &settings);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    // Ended and not removed yet, it is seen while it is wanted again.
    proxy.set("DELETE", Fault::Delay(Duration::from_secs(1)));
    let limit = |most: u32| format!("UPDATE system_config SET value = value || '{{\"max_recorders\": {most}}}' WHERE key = 'system'");
    let switches = [
        ("UPDATE devices SET enabled = false".to_owned(), "UPDATE devices SET enabled = true".to_owned()),
        (limit(0), limit(5)),
        ("UPDATE devices SET enabled = false".to_owned(), "UPDATE devices SET enabled = true".to_owned()),
    ];
    let begun = SystemTime::now();
    for (off, on) in &switches {
        let before = station.podman.mark(ULTRAMIC);
        station.postgres.exec(off);
        eventually(SOON, "stopping", || (state(&station, ULTRAMIC) == "stopping").then_some(()));
        station.postgres.exec(on);
        let again = || station.podman.mark(ULTRAMIC).is_some_and(|mark| Some(mark) != before) && state(&station, ULTRAMIC) == "running";
        eventually(SOON, "another run", || again().then_some(()));
    }
    let events = station.podman.events(begun);
    let runs = runs(&events);
    let ends: Vec<Duration> = events.iter().filter(|event| event.action == "died").map(|event| event.at).collect();
    assert_eq!(ends.len(), 3, "{}", told(&events));
    for end in ends {
        let next = runs.iter().find(|run| run.from > end).unwrap();
        // Its removal, the next look, and Podman's own time.
        assert!(next.from - end < Duration::from_secs(4), "{}", told(&events));
    }
    eventually(SOON, "a heartbeat of this run", || {
        station
            .heartbeat()
            .filter(|beat| beat["meta"]["devices"][DEVICE]["reason"].as_str().is_some_and(|reason| reason.starts_with("running")))
    });
    assert_eq!(controller.count_log("ended with code"), 0);
    assert!(station.heartbeat().unwrap()["meta"]["ends"].is_null());
}

#[test]
fn a_reboot_is_no_failure_of_a_recorder() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut first = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    first.wait_log("seeded user", SOON);
    first.kill();
    station.podman.reboot();
    let second = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let recorded = |beat: &Value| beat["meta"]["devices"][DEVICE]["reason"].as_str().is_some_and(|reason| reason.starts_with("running"));
    let beat = eventually(SOON, "a heartbeat of this run", || station.heartbeat().filter(recorded));
    assert!(beat["meta"]["ends"].is_null(), "{beat}");
    assert_eq!(second.count_log("ended with code"), 0);
    assert_eq!(second.count_log("never started"), 0);
}

#[test]
fn a_recorder_that_is_paused_by_hand_is_told_and_left_alone_until_it_is_to_end() {
    let station = Station::up();
    let image = station.image("closing", "trap 'echo closed > /app/workspace/closed; exit 0' TERM; while :; do sleep 1000 & wait; done");
    station.tree.set(&[Card::ultramic()]);
    let settings = [("SILVASONIC_RECORDER_IMAGE", image.as_str()), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")];
    let controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let before = station.podman.mark(ULTRAMIC);
    let begun = SystemTime::now();
    station.podman.exec(&["pause", ULTRAMIC]);
    // No process ends, so that the next list shows it.
    station.redis.publish("silvasonic:nudge", "reconcile");
    eventually(SOON, "paused in the heartbeat", || beat_reason(&station).contains("paused by hand").then_some(()));
    assert!(reason(&station, DEVICE).starts_with("not recording") && reason(&station, DEVICE).contains("paused by hand"));
    let health = component(&controller);
    assert_eq!(health["healthy"], false, "{health}");
    assert!(health["details"].as_str().unwrap().contains("paused"), "{health}");
    two_cycles(&station);
    assert_eq!((station.podman.mark(ULTRAMIC), state(&station, ULTRAMIC)), (before, json!("paused")));
    station.postgres.exec("UPDATE devices SET enabled = false");
    eventually(SOON, "no container", || station.containers().is_empty().then_some(()));
    assert!(folder(&station).join("closed").exists());
    let events = station.podman.events(begun);
    let died: Vec<&str> = events.iter().filter(|event| event.action == "died").map(|event| event.code.as_str()).collect();
    assert_eq!(died, ["0"], "{}", told(&events));
    assert_eq!(controller.count_log("cannot be stopped"), 0);
}

#[test]
fn eight_creations_that_hang_hold_up_no_ninth() {
    let station = Station::up();
    let (proxy, _controller) = proxied(&station);
    many(&station);
    proxy.set("POST /create silvasonic-recorder-ultramic", Fault::Hang);
    let hanging: Vec<Card> = (0..8).map(Card::numbered).collect();
    station.tree.set(&hanging);
    eventually(SOON, "eight creations", || (proxy.requests_for("POST /create silvasonic-recorder-ultramic") == 8).then_some(()));
    station.tree.set(&[hanging, vec![Card::rode().index(8).at("1-12")]].concat());
    station.podman.wait_running(Duration::from_secs(5), &["silvasonic-recorder-rode-nt-usb-p1d12"]);
}

#[test]
fn slow_replacements_hold_up_no_start() {
    let station = Station::up();
    let image = station.image("slow", "trap 'sleep 8; exit 0' TERM; while :; do sleep 1000 & wait; done");
    let _controller = station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", image.as_str())]);
    many(&station);
    let present: Vec<Card> = (0..8).map(Card::numbered).collect();
    station.tree.set(&present);
    let names: Vec<String> = (0..8).map(Card::numbered_recorder).collect();
    station.podman.wait_running(SOON, &names);
    edit(&station, 192_000);
    eventually(SOON, "one of them is stopping", || {
        station.containers().iter().any(|container| container["State"] == "stopping").then_some(())
    });
    station.tree.set(&[present, vec![Card::rode().index(8).at("1-12")]].concat());
    let rode = "silvasonic-recorder-rode-nt-usb-p1d12";
    eventually(Duration::from_secs(5), "the ninth", || (state(&station, rode) == "running").then_some(()));
}

#[test]
fn health_is_well_while_a_recorder_ends_as_asked() {
    let station = Station::up();
    let image = station.image("slow", SLOW);
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let rode = "silvasonic-recorder-rode-nt-usb-p1d2";
    let controller = station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", image.as_str())]);
    station.podman.wait_running(SOON, &[ULTRAMIC, rode]);
    eventually(SOON, "health", || (component(&controller)["healthy"] == true).then_some(()));
    let mut told: BTreeSet<String> = BTreeSet::new();
    station.postgres.exec(&format!("UPDATE devices SET enabled = false WHERE name = '{DEVICE}'"));
    let mut stopping = false;
    eventually(SOON, "its end", || {
        stopping |= state(&station, ULTRAMIC) == "stopping";
        told.insert(component(&controller).to_string());
        (!ids(&station).contains_key(ULTRAMIC)).then_some(())
    });
    assert!(stopping);
    for component in told {
        assert!(component.contains("\"healthy\":true") && !component.contains(DEVICE), "{component}");
    }
}

/// Makes a [`super::ends::MORTAL`] Recorder end.
fn end(station: &Station, code: u32) {
    fs::write(folder(station).join("new"), format!("{code}\n")).unwrap();
    fs::rename(folder(station).join("new"), folder(station).join("end")).unwrap();
}

#[test]
fn a_removal_that_podmans_own_start_forestalls_is_looked_at_again_without_a_word() {
    let station = Station::up();
    let image = station.image("mortal", super::ends::MORTAL);
    station.tree.set(&[Card::ultramic()]);
    let (proxy, controller) = proxied_with(&station, &[("SILVASONIC_RECORDER_IMAGE", image.as_str())]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let id = ids(&station)[ULTRAMIC].clone();
    let message = format!(
        "cannot remove container {id} as it is running - running or paused containers cannot be removed without force: container state improper"
    );
    proxy.once(&format!("DELETE {id}"), Fault::refusal("container state improper", &message));
    end(&station, 0);
    wait_replaced(&station, ULTRAMIC, &id);
    wait_only(&station, &[ULTRAMIC]);
    assert!(proxy.requests_for(&format!("DELETE {id}")) >= 2);
    assert_eq!(controller.count_log("cannot be removed"), 0);
    assert_eq!(controller.count_log("as it is running"), 0);
}

#[test]
fn a_container_that_cannot_be_removed_costs_no_recording() {
    let station = Station::up();
    let image = station.image("mortal", super::ends::MORTAL);
    station.tree.set(&[Card::ultramic()]);
    let settings = [("SILVASONIC_RECORDER_IMAGE", image.as_str()), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")];
    let (proxy, controller) = proxied_with(&station, &settings);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let old = ids(&station)[ULTRAMIC].clone();
    let message = format!("cleaning up container {old}: given PID did not die within timeout");
    proxy.set(&format!("DELETE {old}"), Fault::refusal("given PID did not die within timeout", &message));
    end(&station, 0);
    let another = |container: &Value| container["State"] == "running" && container["Id"] != *old;
    eventually(Duration::from_secs(30), "another Recorder", || station.containers().iter().find(|one| another(one)).cloned());
    eventually(SOON, "that it records in the heartbeat", || beat_reason(&station).starts_with("running, but").then_some(()));
    let line = controller.wait_log("given PID did not die within timeout", SOON);
    assert!(line.contains(ULTRAMIC), "{line}");
    // It is tried again, more and more rarely.
    let tries = || proxy.requests_for(&format!("DELETE {old}"));
    eventually(SOON, "another try", || (tries() >= 2).then_some(()));
    assert!(tries() <= 8, "{}", tries());
    proxy.clear();
    eventually(Duration::from_secs(70), "the old one is gone", || (!ids(&station).values().any(|id| *id == old)).then_some(()));
}

#[test]
fn a_container_that_somebody_renames_or_restarts_is_told_by_its_name_and_recording_goes_on() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let begun = SystemTime::now();
    let controller = station.controller();
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    station.podman.exec(&["rename", ULTRAMIC, "by-hand"]);
    // No process ends, so that the next list shows it.
    station.redis.publish("silvasonic:nudge", "reconcile");
    eventually(SOON, "a Recorder of the wanted name", || (state(&station, ULTRAMIC) == "running").then_some(()));
    wait_only(&station, &[ULTRAMIC]);
    controller.wait_log("by-hand", SOON);
    station.podman.exec(&["restart", "-t", "1", ULTRAMIC]);
    two_cycles(&station);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_never_two(&station.podman.events(begun));
}

#[test]
fn a_podman_that_goes_away_during_the_stop_holds_up_no_end() {
    let station = Station::up();
    let image = station.image("slow", "trap 'sleep 8; exit 0' TERM; while :; do sleep 1000 & wait; done");
    station.tree.set(&[Card::ultramic()]);
    let settings = [("SILVASONIC_RECORDER_IMAGE", image.as_str()), ("SILVASONIC_SHUTDOWN_TIMEOUT_S", "5")];
    let mut controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.signal(Signal::TERM);
    eventually(SOON, "stopping", || (state(&station, ULTRAMIC) == "stopping").then_some(()));
    station.podman.kill_api();
    let code = controller.wait_exit(Duration::from_secs(6));
    assert!(code == 0 || code == 1, "{code}");
    let log = controller.log();
    let last: Vec<&str> = log.lines().rev().take(3).collect();
    assert!(last.iter().any(|line| line.contains("containers are unknown")), "{last:?}");
    station.podman.start_api();
}

/// As when the host shuts down: systemd ends the containers, and refuses to start Podman's service.
#[test]
fn a_podman_that_does_not_answer_holds_up_no_end_if_all_recorders_have_ended() {
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller_with(&[("SILVASONIC_SHUTDOWN_TIMEOUT_S", "600")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    station.podman.kill_api();
    station.podman.exec(&["stop", "-t", "5", ULTRAMIC]);
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(30)), 0);
    assert_eq!(controller.count_log("all Recorders and workers have ended; Podman does not answer"), 1);
    assert_eq!(controller.count_log("may still run"), 0);
    station.podman.start_api();
}
