//! The Controller is killed at any moment, again and again: nothing doubles, nobody's recording is interrupted, and what
//! should be is there seconds after the last start.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::station::{Dice, Station, eventually};
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
