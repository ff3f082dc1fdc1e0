//! docs/commands.md shows what commands print; here it is printed again. docs/figures.svg is drawn again, too.
//!
//! `UPDATE_DOCS=1 cargo test --test it -- samples::` writes the file's samples anew.

use super::station::{Controller, Station, eventually};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");
const PROMPT: &str = "$ silvasonic-controller ";
const LINE: &str = r#"{"service":"recorder","instance_id":"0869-0389-034F6A21","container_name":"silvasonic-recorder-ultramic-384-evo-6a21","level":"info","message":"segment written","timestamp":"2026-05-01T04:10:00Z"}"#;

/// Lines of `check` and `health` that tell of the machine: the document shows a good one.
const MACHINE: [&str; 8] = [
    "workspace    ok       /srv/station/workspace/recorder is on a file system of its own",
    "ok       workspace      the Controller reports: /srv/station/workspace/recorder is on a file system of its own",
    "ok       podman         4.3.1 (rootful, crun, cgroups v2)",
    "ok       memory limit   enforced",
    "ok       cpu limit      enforced",
    "ok       oom_score_adj  -999 is requested as root",
    "ok       audio group    exists",
    "ok       disk           98.4 of 117.9 GB free",
];

/// What differs from run to run and from machine to machine becomes what the document shows.
fn plain(station: &Station, line: &str) -> String {
    let line = line.replace(&station.dir().display().to_string(), "/srv/station");
    if let Some(shown) = MACHINE.iter().find(|shown| line.get(9..24) == shown.get(9..24)) {
        return (*shown).to_owned();
    }
    let word = |word: &str| {
        if word.len() == 20 && word.starts_with("20") && word.ends_with('Z') {
            return "2026-05-01T04:00:00Z".to_owned();
        }
        match word.rsplit_once(':') {
            Some((head, port)) if head.ends_with("/postgres") => format!("{head}:5432/{}", port.split('/').nth(1).unwrap_or_default()),
            Some((head, _)) if head.ends_with("127.0.0.1") => format!("{head}:6379/0"),
            _ => word.to_owned(),
        }
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn answer(station: &Station, port: u16, words: &str) -> String {
    let port = port.to_string();
    let set = [("SILVASONIC_CONTROLLER_PORT", port.as_str())];
    if words == "logs" {
        let mut command = station.controller_command(&[]);
        command.arg(words);
        let viewer = Controller::run(command);
        return eventually(SOON, "a line", || {
            station.redis.publish("silvasonic:logs", LINE);
            viewer.log().lines().find(|line| line.contains("segment written")).map(|line| format!("{line}\n"))
        });
    }
    let output = station.controller_command(&set).args(words.split_whitespace()).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    text(output.stdout) + &text(output.stderr)
}

#[test]
fn the_samples_of_the_documentation_are_what_the_commands_print() {
    let station = Station::up();
    station.tree.fixture("10-replug-before");
    // The recorded RODE offers one channel, its profile asks for the two of the real one.
    station.tree.alter(|root| {
        let file = root.join("proc/asound/card1/stream0");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("Channels: 1", "Channels: 2")).unwrap();
    });
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    controller.wait_log("seeded user", SOON);
    let told = |id: &str| {
        let beat = station.heartbeat()?;
        let listed = station.containers().len() == 2 && beat["health"]["components"]["containers"]["details"] == "2 running";
        (listed && beat["meta"]["devices"][id]["capture"]["state"] == "closed").then_some(())
    };
    let recorded = || eventually(SOON, "both recorded", || told("0869-0389-034F6A21").and(told("19f7-0003-port1-2")));
    recorded();
    let port = eventually(SOON, "the port", || controller.port());

    let document = fs::read_to_string(FILE).unwrap();
    let mut again = String::new();
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        again.push_str(&format!("{line}\n"));
        if let Some(words) = line.strip_prefix(PROMPT) {
            while lines.peek().is_some_and(|line| !line.starts_with("```") && !line.starts_with('$')) {
                lines.next();
            }
            // What was decided by the last line has come into effect.
            recorded();
            answer(&station, port, words).lines().for_each(|line| again.extend([&plain(&station, line), "\n"]));
        }
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(FILE, &again).unwrap();
    }
    assert!(document == again, "docs/commands.md shows something else (UPDATE_DOCS=1 writes it anew):\n{again}");
}

#[test]
fn the_picture_of_figures_shows_the_reference_run() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let run = fs::File::open(format!("{root}tests/bench/reference.json")).unwrap();
    let drawn = Command::new(format!("{root}docs/figures.py")).stdin(run).output().unwrap();
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let shown = fs::read_to_string(format!("{root}docs/figures.svg")).unwrap();
    assert!(String::from_utf8_lossy(&drawn.stdout) == shown, "docs/figures.svg is of another run: make figures");
}
