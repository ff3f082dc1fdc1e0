//! The threads of a running Controller are those that the crate documentation lists.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use super::station::{Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn the_fixed_threads_are_those_of_the_table_in_the_crate_documentation() {
    let documentation = include_str!("../../src/lib.rs");
    let table = documentation.split("<!-- threads").nth(1).and_then(|rest| rest.split("<!-- /threads -->").next()).unwrap();
    let listed: BTreeSet<String> =
        table.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next().map(str::to_owned)).collect();
    assert!(listed.contains("main") && listed.len() <= 9, "{listed:?}");
    assert!(listed.iter().all(|name| name.len() <= 15), "the kernel keeps fifteen bytes of a name: {listed:?}");

    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let controller = station.controller();
    let tasks = format!("/proc/{}/task", controller.id());
    let running = || -> BTreeSet<String> {
        let name = |task: fs::DirEntry| {
            let id = task.file_name();
            // The main thread carries the program's name.
            if id.to_str() == Some(controller.id().to_string().as_str()) {
                return Some("main".to_owned());
            }
            fs::read_to_string(task.path().join("comm")).ok().map(|name| name.trim_end().to_owned())
        };
        fs::read_dir(&tasks).unwrap().flatten().filter_map(name).collect()
    };
    let is_short_lived = |name: &String| {
        name.starts_with("log-") || ["action", "engine", "inspect", "bcrypt", "files", "config", "folder", "lock"].contains(&name.as_str())
    };
    // A log is followed only while somebody listens; that it is shows that the start is over.
    let _lines = station.redis.listen("silvasonic:logs");
    let is_up = |names: &BTreeSet<String>| names.iter().any(|name| name.starts_with("log-"));
    let names = eventually(SOON, "the threads of a running station", || {
        let names = running();
        (is_up(&names) && names.iter().filter(|name| !is_short_lived(name)).eq(&listed)).then_some(names)
    });
    assert!(names.len() > listed.len(), "{names:?}");
}
