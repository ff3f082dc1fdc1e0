//! The program itself: its size, what it is built from, how long that takes, and how long a decision takes.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use silvasonic_controller::config::Config;
use silvasonic_controller::decide::container::{Container, State};
use silvasonic_controller::decide::desired::{Desired, SpecCache, desired};
use silvasonic_controller::decide::device::{Microphone, Usb};
use silvasonic_controller::decide::past::Past;
use silvasonic_controller::decide::plan::{View, plan};
use silvasonic_controller::decide::presence::Presences;
use silvasonic_controller::decide::registry::{Registry, Row};
use silvasonic_controller::sorted_map::SortedMap;
use silvasonic_controller::sorted_set::SortedSet;

use super::Subject;
use super::table::{Check, Table};

fn output(command: &mut Command) -> String {
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Size and crates.
pub(crate) fn size(table: &mut Table, subject: &Subject) {
    if subject.is_peer() {
        return;
    }
    // Beside this program, as the Makefile builds it.
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("silvasonic-controller");
    let stripped = std::env::temp_dir().join(format!("sv-stripped-{}", std::process::id()));
    output(Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(program));
    let length = stripped.metadata().unwrap().len();
    std::fs::remove_file(&stripped).unwrap();
    table.add("program, stripped", length as f64 / 1e6, "MB").limit(2.3).check(Check::Ratio(1.02));
    let tree = output(Command::new("cargo").args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}"]));
    let crates: SortedSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    table.add("crates in the tree, with this one", crates.len() as f64, "").limit(130.0).check(Check::Same);
}

/// A release build from nothing.
pub(crate) fn build(table: &mut Table, subject: &Subject) {
    if subject.is_peer() {
        return;
    }
    let directory = std::env::temp_dir().join(format!("sv-build-{}", std::process::id()));
    let begun = Instant::now();
    output(Command::new("cargo").args(["build", "--release", "--quiet", "--bins", "--target-dir"]).arg(&directory));
    table.add("release build from nothing", begun.elapsed().as_secs_f64(), "s").limit(90.0);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// One decision with a thousand devices and their containers, all as wanted.
pub(crate) fn decision(table: &mut Table, subject: &Subject) {
    if subject.is_peer() {
        return;
    }
    const COUNT: u32 = 1000;
    let mut specs = SpecCache::new(Config::read(|_| None).unwrap().recorder);
    let row = |kind: &str, key: &str, body: serde_json::Value| Row {
        kind: kind.into(),
        key: key.into(),
        body: Some(body.to_string()),
        fault: None,
    };
    let profile = json!({"name": "p", "config": {"audio": {"sample_rate": 384_000}}});
    let mut rows = vec![row("profile", "p", profile), row("system", "system", json!({"max_recorders": COUNT}))];
    let mut seen = SortedMap::new();
    for n in 0..COUNT {
        let (id, serial) = (format!("0869-0389-{n:04}"), format!("{n:04}"));
        let usb = Usb {
            vendor: "0869".into(),
            product: "0389".into(),
            serial: Some(serial.clone()),
            bus_path: format!("1-{n}"),
            port_path: Some(format!("pci0000:00/0000:00:07.0/{n}")),
            address: format!("001/{n:03}"),
        };
        seen.insert(id.clone(), Microphone { card: n, pcm: 0, name: "UltraMic".into(), usb: Some(usb), offer: Default::default() });
        let device = json!({"model": "UltraMic", "serial_number": serial, "status": "online", "enrollment_status": "enrolled", "enabled": true,
            "profile_slug": "p", "config": {"alsa_card_index": n}, "workspace_name": format!("p-{n:04}")});
        rows.push(row("device", &id, device));
    }
    let registry = Registry::read(&rows, None);
    assert!(registry.faults.is_empty(), "{:?}", registry.faults);
    let now = Instant::now();
    let mut presences = Presences::new(Duration::from_secs(3));
    presences.observe(&seen, &[], now);
    let containers: Vec<Container> = desired(&registry, true, &presences, &mut specs)
        .values()
        .map(|want| match want {
            Desired::Run(spec) => Container {
                id: spec.device.clone(),
                name: spec.name.clone(),
                state: State::Running,
                labels: spec.labels(),
                exit_code: 0,
                out_of_memory: false,
                is_interrupted: false,
                pid: 0,
                started: 0,
            },
            other => panic!("{other:?}"),
        })
        .collect();
    let (past, none) = (Past::default(), SortedSet::new());
    let mut took: Vec<f64> = (0..50)
        .map(|_| {
            let begun = Instant::now();
            let desired = desired(&registry, true, &presences, &mut specs);
            let plan = plan(&View {
                containers: &containers,
                desired: &desired,
                desired_complete: true,
                max_recorders: registry.system.max_recorders,
                past: &past,
                replacing: false,
                busy: &none,
                stuck: &none,
                now,
                wall: SystemTime::now(),
            });
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            assert!(plan.actions.is_empty() && plan.kept.len() == COUNT as usize);
            took
        })
        .collect();
    took.sort_by(f64::total_cmp);
    table.add("one decision with 1,000 devices and containers, median", took[took.len() / 2], "ms").limit(2.0);
}
