//! The Controller is killed at any moment, again and again: nothing doubles, nobody's recording is interrupted, and what
//! should be is there seconds after the last start.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::podman_faults::proxied;
use super::replace::{PROVEN, assert_never_two, edit, rate};
use super::station::{Dice, Fault, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
const KILLS: u32 = 300;
const CONVERGED: Duration = Duration::from_secs(3);
/// Every so many kills it is left alone until all is as wanted.
const ROUND: u32 = 25;

/// Whoever is not over, by the device in its label.
fn alive(station: &Station) -> Vec<String> {
    let over = |container: &Value| ["created", "exited", "removing"].iter().any(|state| container["State"] == *state);
    let device = |container: &Value| container["Labels"]["io.silvasonic.device_id"].as_str().unwrap().to_owned();
    station.containers().iter().filter(|container| !over(container)).map(device).collect()
}

#[test]
fn a_controller_that_is_killed_at_any_moment_leaves_nothing_double_and_interrupts_nobody() {
    let seed = Dice::seed("KILLS_SEED");
    let mut dice = Dice(seed);
    let station = Station::up();
    let quick = [("SILVASONIC_RECONCILE_INTERVAL_S", "0.1"), ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.2")];
    let mut plugged: BTreeSet<u32> = (0..5).collect();
    let set = |plugged: &BTreeSet<u32>| station.tree.set(&plugged.iter().copied().map(Card::numbered).collect::<Vec<_>>());
    let wait = |plugged: &BTreeSet<u32>, within: Duration| {
        station.podman.wait_running(within, &plugged.iter().copied().map(Card::numbered_recorder).collect::<Vec<_>>());
    };
    set(&plugged);
    let mut controller = station.controller_with(&quick);
    controller.wait_log("seeded user", SOON);
    wait(&plugged, SOON);
    // This one is never touched.
    let mark = || station.podman.mark(&Card::numbered_recorder(0));
    let before = mark();
    for kill in 1..=KILLS {
        thread::sleep(Duration::from_millis(dice.below(220) as u64));
        controller.kill();
        if dice.below(3) > 0 {
            let n = 1 + dice.below(4) as u32;
            if !plugged.remove(&n) {
                plugged.insert(n);
            }
            set(&plugged);
        }
        controller = station.controller_with(&quick);
        let devices = alive(&station);
        assert_eq!(devices.iter().collect::<BTreeSet<_>>().len(), devices.len(), "after kill {kill} of seed {seed}: {devices:?}");
        if kill % ROUND == 0 {
            wait(&plugged, CONVERGED);
            eventually(SOON, "nothing else is left", || (station.containers().len() == plugged.len()).then_some(()));
            assert_eq!(mark(), before, "after kill {kill} of seed {seed}");
            let online = || station.postgres.value::<i64>("SELECT count(*) FROM devices WHERE status = 'online'");
            eventually(SOON, "the rows", || online().filter(|count| *count == plugged.len() as i64));
            assert_eq!(station.postgres.value::<i64>("SELECT count(*) FROM devices"), Some(5));
        }
    }
}

/// It has a profile of its own, which nobody edits.
const UNTOUCHED: &str = "silvasonic-recorder-rode-nt-usb-p1d12";

/// No device has two that are alive.
fn assert_single(station: &Station, when: &str) {
    let devices = alive(station);
    assert_eq!(devices.iter().collect::<BTreeSet<_>>().len(), devices.len(), "{when}: {devices:?}");
}

/// Plugs in so many whose profile is edited, and one that is never touched; the names of their Recorders.
fn with_an_untouched_one(station: &Station, count: u32) -> Vec<String> {
    let cards: Vec<Card> = (1..=count).map(Card::numbered).chain([Card::rode().index(0).at("1-12")]).collect();
    station.tree.set(&cards);
    (1..=count).map(Card::numbered_recorder).chain([UNTOUCHED.to_owned()]).collect()
}

/// Exactly these containers are there and run, and the edited ones were made from the profile as it is.
fn wait_converged(station: &Station, names: &[String], edited: u32, within: Duration, when: &str) {
    eventually(within, &format!("{when}: {names:?} run with {edited} Hz, and nothing else is left"), || {
        let containers = station.containers();
        let running: BTreeSet<&str> = containers
            .iter()
            .filter(|container| container["State"] == "running")
            .filter_map(|container| container["Names"][0].as_str())
            .collect();
        let wanted = containers.len() == names.len() && names.iter().all(|name| running.contains(name.as_str()));
        let current = || names.iter().filter(|name| *name != UNTOUCHED).all(|name| rate(station, name) == Some(edited.into()));
        (wanted && current()).then_some(())
    });
}

#[test]
fn a_controller_that_is_killed_at_any_step_of_a_replacement_leaves_one_recorder() {
    let station = Station::up();
    let names = with_an_untouched_one(&station, 1);
    let begun = SystemTime::now();
    let (proxy, mut controller) = proxied(&station);
    controller.wait_log("seeded user", SOON);
    station.podman.wait_running(SOON, &names);
    let before = station.podman.mark(UNTOUCHED);
    let own = Card::numbered_recorder(1);
    let steps = [
        "POST /create".to_owned(),
        format!("POST /rename?name={own}-old$"),
        format!("POST /rename?name={own}$"),
        "POST /stop".to_owned(),
        "POST /start".to_owned(),
        "DELETE".to_owned(),
    ];
    for (edited, step) in (100_001..).zip(&steps) {
        // It is killed when Podman has done that and has not said so.
        let (when, done) = (format!("killed after {step}"), proxy.held_back(step));
        proxy.set(step, Fault::Late(Duration::from_secs(30)));
        edit(&station, edited);
        eventually(SOON + PROVEN, &when, || (proxy.held_back(step) > done).then_some(()));
        controller.kill();
        assert_single(&station, &when);
        proxy.clear();
        controller = station.controller_with(&[("SILVASONIC_CONTAINER_SOCKET", proxy.path())]);
        wait_converged(&station, &names, edited, SOON + PROVEN, &when);
        assert_eq!(station.podman.mark(UNTOUCHED), before, "{when}");
    }
    assert_never_two(&station.podman.events(begun));
}

#[test]
fn kills_and_edited_profiles_at_any_moment_leave_nothing_double_and_interrupt_nobody_else() {
    const EDITS: u32 = 60;
    const REST: u32 = 30;
    let seed = Dice::seed("EDITS_SEED");
    let mut dice = Dice(seed);
    let station = Station::up();
    let names = with_an_untouched_one(&station, 2);
    let begun = SystemTime::now();
    let quick = [("SILVASONIC_RECONCILE_INTERVAL_S", "0.1")];
    let mut controller = station.controller_with(&quick);
    controller.wait_log("seeded user", SOON);
    station.podman.wait_running(SOON, &names);
    let before = station.podman.mark(UNTOUCHED);
    let mut edited = 384_000;
    for kill in 1..=EDITS {
        if dice.below(3) > 0 {
            edited = 100_000 + kill;
            edit(&station, edited);
        }
        thread::sleep(Duration::from_millis(dice.below(900) as u64));
        controller.kill();
        let when = format!("after kill {kill} of seed {seed}");
        assert_single(&station, &when);
        controller = station.controller_with(&quick);
        if kill % REST == 0 {
            // One after the other, each proven for ten seconds.
            wait_converged(&station, &names, edited, SOON + 4 * PROVEN, &when);
            assert_eq!(station.podman.mark(UNTOUCHED), before, "{when}");
        }
    }
    assert_never_two(&station.podman.events(begun));
}
