//! How long it takes until a Recorder runs, beside Podman's own time for the same work.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use silvasonic_controller::config::Config;
use silvasonic_controller::decide::device::Microphone;
use silvasonic_controller::decide::spec::Tier2ServiceSpec;
use silvasonic_controller::podman::client::Podman;

use super::it::station::{Station, eventually};
use super::table::{Check, Table};
use super::{SOON, Subject, microphones, names, seeded, wait_running};

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Requests for `count` containers as ours are, each with a folder of its own.
fn own_requests(station: &Station, count: u32, podman: &Podman) -> Vec<Value> {
    let engine = podman.info(podman.ping().unwrap()).unwrap();
    let environment = station.environment();
    let read = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    let recorder = Config::read(read).unwrap().recorder;
    let config = station.postgres.value::<Value>("SELECT config FROM microphone_profiles WHERE slug = 'ultramic_384_evo'").unwrap();
    let request = |n: u32| {
        let folder = format!("own-{n}");
        fs::create_dir_all(station.workspace().join("recorder").join(&folder)).unwrap();
        let microphone = Microphone { card: n, pcm: 0, name: "bench".to_owned(), usb: None, offer: Default::default() };
        let spec = Tier2ServiceSpec::recorder(&recorder, &folder, &microphone, &folder, "bench", config.to_string());
        spec.create_request(&engine, &spec.name)
    };
    (0..count).map(request).collect()
}

/// Podman's own time for creating and starting `count` containers as ours are, `at_once` side by side.
fn podmans_own(station: &Station, count: u32, at_once: usize) -> f64 {
    let podman = Podman::new(station.podman.socket().to_owned());
    let requests = own_requests(station, count, &podman);
    let next = AtomicUsize::new(0);
    let run = || {
        let mut ids = Vec::new();
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let id = podman.create(request).unwrap().id;
            podman.start(&id).unwrap();
            ids.push(id);
        }
        ids
    };
    let begun = Instant::now();
    let ids: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let took = milliseconds(begun);
    for id in ids {
        podman.remove(&id, Some(Duration::ZERO)).unwrap();
    }
    took
}

/// Podman's own time for one container, the median of five.
fn podmans_median(station: &Station) -> f64 {
    let mut own: Vec<f64> = (0..5).map(|_| podmans_own(station, 1, 1)).collect();
    own.sort_by(f64::total_cmp);
    own[own.len() / 2]
}

/// From starting the program to all Recorders running, with a seeded database.
pub(crate) fn start(table: &mut Table, subject: &Subject, count: u32) {
    let station = seeded();
    station.tree.set(&microphones(count));
    // A first run, as every later one finds what that has left.
    drop(subject.controller(&station, &[]));
    let own = podmans_own(&station, count, count as usize);
    let begun = Instant::now();
    let controller = subject.controller(&station, &[]);
    wait_running(&station, count);
    let took = milliseconds(begun);
    table.add(format!("start -> Recorder running, N={count}"), took, "ms");
    table.add(format!("start, N={count}: Podman's own create + start"), own, "ms");
    table.add(format!("start, N={count}: beyond Podman's own"), took - own, "ms").limit(50.0);
    drop(controller);
}

/// From plugging a microphone in to its Recorder running, at any moment of the tick.
pub(crate) fn plug(table: &mut Table, subject: &Subject, times: u32) {
    let station = seeded();
    let own = podmans_median(&station);
    let controller = subject.controller(&station, &[("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", "0.1")]);
    station.tree.set(&microphones(1));
    wait_running(&station, 1);
    let mut took: Vec<f64> = (0..times)
        .map(|n| {
            station.tree.set(&[]);
            eventually(SOON, "no container", || station.containers().is_empty().then_some(()));
            // Spreads the moments over the tick.
            thread::sleep(Duration::from_millis(u64::from(n) * 50));
            let begun = Instant::now();
            station.tree.set(&microphones(1));
            wait_running(&station, 1);
            milliseconds(begun)
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let median = took[took.len() / 2];
    table.add(format!("plug -> running, median of {times}"), median, "ms");
    table.add(format!("plug -> running, longest of {times}"), took[took.len() - 1], "ms").limit(1050.0 + own);
    table.add("plug: Podman's own create + start, median", own, "ms");
    // A microphone is noticed in half a tick, on average.
    table.add("plug -> running, median, beyond tick / 2 and Podman's own", median - 500.0 - own, "ms").limit(50.0);
    drop(controller);
}

/// From the last death that Podman's own retries allow to a new container that runs. Each microphone dies once.
pub(crate) fn died(table: &mut Table, subject: &Subject, count: u32) {
    if subject.is_peer() {
        return; // It never comes back.
    }
    let station = seeded();
    station.tree.set(&microphones(count));
    let controller = subject.controller(&station, &[("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", "1")]);
    wait_running(&station, count);
    let own = podmans_median(&station);
    let mut took: Vec<f64> = names(count)
        .iter()
        .map(|name| {
            let state = |key: &str| station.inspect(name).map(|inspect| inspect["State"][key].clone());
            let first = station.inspect(name).unwrap();
            let kill = |id: &Value| {
                rustix::process::kill_process(
                    rustix::process::Pid::from_raw(id.as_i64().unwrap() as i32).unwrap(),
                    rustix::process::Signal::KILL,
                )
            };
            let before = first["State"]["Pid"].clone();
            kill(&before).unwrap();
            let again = eventually(SOON, "Podman's retry", || state("Pid").filter(|id| *id != before && *id != 0));
            // A moment for the list that shows the retry.
            thread::sleep(Duration::from_millis(1500));
            kill(&again).unwrap();
            let begun = Instant::now();
            let another = || station.inspect(name).filter(|now| now["Id"] != first["Id"] && now["State"]["Status"] == "running").map(drop);
            eventually(SOON, "another container", another);
            milliseconds(begun)
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let median = took[took.len() / 2];
    table.add(format!("Recorder died -> running again, median of {count}"), median, "ms");
    table.add(format!("Recorder died -> running again, longest of {count}"), took[took.len() - 1], "ms");
    table.add("died: Podman's own create + start, median", own, "ms");
    // Measured once: 194 ms, where Podman's own work took 81 ms. It may not get worse.
    table.add("Recorder died -> running again, median, times Podman's own", median / own, "").limit(194.0 / 81.0);
    drop(controller);
}

/// How long nothing records while an edited profile replaces a Recorder, beside Podman's own stop and start.
pub(crate) fn replace(table: &mut Table, subject: &Subject, times: u32) {
    if subject.is_peer() {
        return; // It removes the Recorder first.
    }
    let station = seeded();
    let podman = Podman::new(station.podman.socket().to_owned());
    let mut own: Vec<f64> = (0..times)
        .map(|_| {
            let ids: Vec<String> = own_requests(&station, 2, &podman).iter().map(|request| podman.create(request).unwrap().id).collect();
            podman.start(&ids[0]).unwrap();
            let begun = Instant::now();
            podman.stop(&ids[0], Duration::from_secs(10)).unwrap();
            podman.start(&ids[1]).unwrap();
            let took = milliseconds(begun);
            for id in ids {
                podman.remove(&id, Some(Duration::ZERO)).unwrap();
            }
            took
        })
        .collect();
    station.tree.set(&microphones(1));
    let controller = subject.controller(&station, &[]);
    wait_running(&station, 1);
    let name = &names(1)[0];
    let id = || station.inspect(name).map(|inspect| inspect["Id"].as_str().unwrap_or_default().to_owned());
    let mut gaps: Vec<f64> = (0..times)
        .map(|n| {
            let (old, begun) = (id().unwrap(), SystemTime::now());
            let rate = format!("to_jsonb({})", 100_000 + n);
            let set = format!("UPDATE microphone_profiles SET config = jsonb_set(config, '{{audio,sample_rate}}', {rate})");
            station.postgres.exec(&format!("{set} WHERE slug = 'ultramic_384_evo'"));
            let only = || station.containers().len() == 1 && id().is_some_and(|id| id != old);
            eventually(SOON, "the successor alone", || only().then_some(()));
            let (events, new) = (station.podman.events(begun), id().unwrap());
            let at = |id: &str, action: &str| events.iter().find(|event| event.id == id && event.action == action).unwrap().at;
            (at(&new, "start") - at(&old, "died")).as_secs_f64() * 1000.0
        })
        .collect();
    own.sort_by(f64::total_cmp);
    gaps.sort_by(f64::total_cmp);
    let middle = times as usize / 2;
    table.add(format!("gap of a replacement, median of {times}"), gaps[middle], "ms").limit(own[middle] + 50.0);
    table.add("replacement: Podman's own stop + start", own[middle], "ms");
    drop(controller);
}

/// Many microphones at once, `rounds` times, each time beside Podman's own time for the same work.
pub(crate) fn crowd(table: &mut Table, subject: &Subject, count: u32, rounds: usize) {
    // Podman is fastest with a few requests side by side; how many, depends on the machine.
    let own: BTreeMap<usize, f64> = [2, 4, 8, 16].map(|at_once| (at_once, podmans_own(&seeded(), count, at_once))).into();
    let best = *own.iter().min_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    let mut took: Vec<(f64, f64)> = (0..rounds).map(|_| (at_once(subject, count), podmans_own(&seeded(), count, best))).collect();
    took.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (ours, podmans) = took[rounds / 2];
    table.add(format!("{count} microphones at once -> all running, median of {rounds}"), ours, "ms");
    table.add(format!("{count} microphones: Podman's own create + start, {best} at a time"), podmans, "ms");
    let (longest, own) = took[rounds - 1];
    for (which, ratio) in [("median", ours / podmans), ("longest", longest / own)] {
        let figure = format!("{count} microphones at once, times Podman's own best, {which} of {rounds}");
        table.add(figure, ratio, "").limit(1.15).check(Check::Ratio(1.15));
    }
}

/// The time until all of `count` new microphones are recorded.
fn at_once(subject: &Subject, count: u32) -> f64 {
    let station = seeded();
    let controller = subject.controller(&station, &[]);
    station.tree.set(&microphones(1));
    wait_running(&station, 1);
    // Shown in one step when it is built, which takes a second.
    station.tree.set(&microphones(count + 1));
    let begun = Instant::now();
    if subject.is_peer() {
        wait_running(&station, count + 1);
    } else {
        // Asking Podman again and again would take half of its time.
        let started = || controller.count_log(" started in ") == count as usize + 1;
        eventually(SOON, "all of them", || started().then_some(()));
    }
    milliseconds(begun)
}
