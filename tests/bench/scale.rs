//! What each further Recorder costs, and each device that is only known.

use std::fs;
use std::time::Duration;

use super::it::station::Station;
use super::measure::{mebibytes, watch};
use super::meter::Meter;
use super::quiet::{SETTLE, settle};
use super::table::{Check, Table};
use super::{Subject, microphones, seeded, setting, wait_running};

const FEW: u32 = 1;
const MANY: u32 = 50;
/// Recorders beside known devices.
const BESIDE: u32 = 5;
const KNOWN: u32 = 1000;

/// What a quiet station with some devices costs.
#[derive(Clone, Copy)]
struct Cost {
    values: [f64; 5],
}

/// Names, units and how a later run may differ; in the order of [`Cost`].
const FIGURES: [(&str, &str, Option<Check>); 5] = [
    ("CPU of the Controller", "% of a core", None),
    ("resident memory", "KiB", Some(Check::Ratio(1.1))),
    ("heartbeat", "B", Some(Check::Ratio(1.05))),
    ("state file", "B", Some(Check::Ratio(1.05))),
    ("answer of the query", "B", Some(Check::Ratio(1.05))),
];

pub(crate) fn scale(table: &mut Table, subject: &Subject) {
    let costs = [FEW, 5, 20, MANY].map(|count| {
        let cost = measure(subject, count, 0);
        cost.add(table, &format!("scale, N={count}"), 1.0, true);
        (count, cost)
    });
    let cost_of = |wanted: u32| costs.iter().find(|(count, _)| *count == wanted).expect("one of them").1;
    let more = f64::from(MANY - FEW);
    cost_of(MANY).minus(cost_of(FEW)).add(table, "scale, each further Recorder", more, false);
    let known = measure(subject, BESIDE, KNOWN);
    known.add(table, &format!("scale, N={BESIDE}, {KNOWN} not seen for two months"), 1.0, true);
    // They are in the database alone, so nothing that is made each second or each ten seconds may grow with them.
    let growth = known.minus(cost_of(BESIDE));
    for ((name, unit, _), value) in FIGURES.iter().zip(growth.values).skip(1) {
        if !value.is_nan() {
            // Less than a heartbeat or the memory vary by themselves.
            let limit = if *unit == "KiB" { 0.2 } else { 0.1 };
            table.add(format!("scale, each device not seen for two months: {name}"), value / f64::from(KNOWN), unit).limit(limit);
        }
    }
}

impl Cost {
    fn minus(self, other: Cost) -> Cost {
        let mut values = self.values;
        values.iter_mut().zip(other.values).for_each(|(value, other)| *value -= other);
        Cost { values }
    }

    /// Adds a row a figure, for each of `share` devices.
    fn add(self, table: &mut Table, prefix: &str, share: f64, is_checked: bool) {
        for ((name, unit, check), value) in FIGURES.iter().zip(self.values) {
            // What a peer does not have.
            if value.is_nan() {
                continue;
            }
            let row = table.add(format!("{prefix}: {name}"), value / share, unit);
            if let Some(check) = check.filter(|_| is_checked) {
                row.check(check);
            }
        }
    }
}

/// Runs a station with so many Recorders, and devices that were seen two months ago.
fn measure(subject: &Subject, count: u32, known: u32) -> Cost {
    let station = seeded();
    insert_known(&station, known);
    station.tree.set(&microphones(count));
    let metered = station.dir().join("metered");
    fs::create_dir(&metered).unwrap();
    let socket = format!(".s.PGSQL.{}", station.postgres.port());
    let meter = Meter::new(metered.join(&socket), &station.postgres.socket_dir().join(&socket));
    let host = [("SILVASONIC_DB_HOST", metered.to_str().unwrap())];
    let controller = subject.controller(&station, if subject.is_peer() { &[] } else { &host });
    wait_running(&station, count);
    // A heartbeat, too.
    std::thread::sleep(SETTLE + Duration::from_secs(12));
    settle(&controller);
    let before = (meter.answered(), meter.asked());
    let [(cpu, _)] = watch([&[controller.id()]], Duration::from_secs(setting("SCALE_S").unwrap_or(20)));
    let answer = (meter.answered() - before.0) as f64 / (meter.asked() - before.1) as f64;
    let heartbeat = station.redis.get("silvasonic:status:controller").map_or(f64::NAN, |text| text.len() as f64);
    let state = fs::metadata(station.workspace().join("recorder/.controller-state")).map_or(f64::NAN, |file| file.len() as f64);
    // The file is the one that the Controller has left which seeded the database.
    let (state, answer) = if subject.is_peer() { (f64::NAN, f64::NAN) } else { (state, answer) };
    Cost { values: [cpu, mebibytes(controller.id(), "status", "VmRSS:") * 1024.0, heartbeat, state, answer] }
}

fn insert_known(station: &Station, count: u32) {
    station.postgres.exec(&format!(
        "INSERT INTO devices (name, serial_number, model, status, enrollment_status, last_seen, profile_slug, config, workspace_name)
         SELECT '19f7-0003-K' || n, 'K' || n, 'RODE NT-USB', 'offline', 'enrolled', now() - interval '60 days', 'rode_nt_usb',
                jsonb_build_object('alsa_card_index', 1, 'alsa_device', 'hw:1,0', 'alsa_name', 'RODE NT-USB', 'usb_vendor_id', '19f7',
                                   'usb_product_id', '0003', 'usb_serial', 'K' || n, 'usb_bus_path', '1-2'), 'rode-nt-usb-k' || n
         FROM generate_series(1, {count}) AS n"
    ));
}
