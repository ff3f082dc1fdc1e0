//! How soon the Controller notices that somebody stopped or removed a Recorder's container by hand.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::it::station::{Controller, Station, eventually};
use super::meter::Meter;
use super::quiet::SETTLE;
use super::table::Table;
use super::{SOON, Subject, microphones, names, seeded, wait_running};

/// As in a container without `pid: host`: the processes of the host cannot be seen.
const NAMESPACE: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// What somebody does to a container.
#[derive(Clone, Copy)]
enum Deed {
    Stop,
    Remove,
}

pub(crate) fn by_hand(table: &mut Table, subject: &Subject, times: u32) {
    for (deed, name) in [(Deed::Stop, "stopped"), (Deed::Remove, "removed")] {
        let seen = noticed(subject, deed, times, &[]);
        table.add(format!("{name} by hand -> noticed, longest of {times}"), seen, "ms").limit(1000.0);
        if !subject.is_peer() {
            let unseen = noticed(subject, deed, times, &NAMESPACE);
            table.add(format!("{name} by hand -> noticed, without pid: host, longest of {times}"), unseen, "ms").limit(15_000.0);
        }
    }
}

/// The longest time from the end of a container to the Controller's first request that creates or starts one.
fn noticed(subject: &Subject, deed: Deed, times: u32, words: &[&str]) -> f64 {
    let station = seeded();
    station.tree.set(&microphones(times));
    let meter = Meter::new(station.dir().join("metered.sock"), station.podman.socket());
    let settings = [("SILVASONIC_CONTAINER_SOCKET", meter.path())];
    let _controller = match words {
        [] => subject.controller(&station, &settings),
        words => Controller::run(station.controller_command_after(words, &settings)),
    };
    wait_running(&station, times);
    std::thread::sleep(SETTLE);
    let longest = names(times).into_iter().enumerate().map(|(n, name)| {
        // Spreads the moments over the tick.
        std::thread::sleep(Duration::from_millis(1000 + n as u64 * 130));
        once(&station, &meter, deed, &name)
    });
    longest.max_by(f64::total_cmp).unwrap()
}

fn once(station: &Station, meter: &Meter, deed: Deed, name: &str) -> f64 {
    let (id, asked, since) = (station.inspect(name).unwrap()["Id"].as_str().unwrap().to_owned(), meter.count(), SystemTime::now());
    match deed {
        Deed::Stop => station.podman.post(&format!("/containers/{name}/stop"), &serde_json::Value::Null),
        Deed::Remove => station.podman.delete(&format!("/containers/{name}?force=true&timeout=0")),
    };
    let acts = |line: &str| line.starts_with("POST ") && (line.contains("/containers/create") || line.contains("/start "));
    let request = || meter.requests().split_off(asked).into_iter().find(|(_, line)| acts(line));
    let (at, _) = eventually(SOON, "the Controller creates or starts a container", request);
    let ended = || station.podman.events(since).into_iter().find(|event| event.id == id && event.action == "died");
    let died = eventually(SOON, "the end in Podman's events", ended).at;
    at.duration_since(UNIX_EPOCH).unwrap().saturating_sub(died).as_secs_f64() * 1000.0
}
