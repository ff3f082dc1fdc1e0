//! What is typed at a terminal: hardware and profiles without services, health, completions and the manual page.

use super::recorder::Recorder;
use super::station::{Station, eventually};
use super::tree::Card;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// A station without any service.
fn bare() -> Station {
    Station::plan().without_postgres().without_redis().without_podman().up()
}

/// Exit code, standard output and standard error.
fn run(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub(crate) fn typed(station: &Station, line: &str, set: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = station.controller_command(set);
    command.args(line.split_whitespace());
    run(command)
}

#[test]
fn scan_shows_the_connected_microphones_and_the_profiles_that_match() {
    let station = bare();
    let scan = |line: &str| typed(&station, line, &[]);
    assert_eq!(scan("scan"), (Some(0), "no USB microphone is connected\n".to_owned(), String::new()));

    station.tree.fixture("10-replug-before");
    let table = "\
CARD    ID                  PORT  NAME                       USB IDS    SERIAL    PROFILE (SCORE)         CAPTURES
hw:0,0  0869-0389-034F6A21  1-1   UltraMic384K_EVO 16bit r4  0869:0389  034F6A21  ultramic_384_evo (100)  384000 Hz S16_LE 1 channel
hw:1,0  19f7-0003-port1-2   1-2   RODE NT-USB                19f7:0003  -         rode_nt_usb (100)       48000, 44100 Hz S16_LE 1 channel
";
    assert_eq!(scan("scan"), (Some(0), table.to_owned(), String::new()));
    let (code, text, _) = scan("scan --json --card 1");
    let found: Value = serde_json::from_str(&text).unwrap();
    let rode = json!({
        "id": "19f7-0003-port1-2", "alsa_card_index": 1, "alsa_device": "hw:1,0", "alsa_name": "RODE NT-USB", "usb_vendor_id": "19f7",
        "usb_product_id": "0003", "usb_serial": null, "usb_bus_path": "1-2", "usb_port_path": "pci0000:00/0000:00:07.0/2", "profiles": {"slugs": ["rode_nt_usb"], "score": 100},
        "capture": [{"formats": ["S16_LE"], "channels": 1, "rates": [48000, 44100], "continuous": false}], "capture_fault": null,
    });
    assert_eq!((code, found), (Some(0), json!({"microphones": [rode], "unclear": []})));
    let (code, text, why) = scan("scan --profile");
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(why.ends_with("choose one with --card: 0, 1\n"), "{why}");

    // A card that is coming, one whose capture part is missing, and a name in two profiles.
    station.tree.set(&[Card::ultramic().ids("0869:ffff"), Card::rode().index(1)]);
    station.tree.alter(|root| {
        fs::remove_file(root.join("proc/asound/card0/stream0")).unwrap();
        fs::remove_file(root.join("sys/class/sound/card1")).unwrap();
    });
    let (code, text, _) = scan("scan");
    assert_eq!(code, Some(0));
    assert!(text.contains("  ultramic_192k, ultramic_384_evo (50 each: ambiguous)  unknown: stream0: No such file"), "{text}");
    assert!(text.contains("\ncannot identify card 1: "), "{text}");
    station.tree.alter(|root| fs::write(root.join("proc/asound/cards"), "").unwrap());
    let (code, text, why) = scan("scan");
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(why.contains("proc/asound/cards: expected lines like"), "{why}");
}

#[test]
fn a_scanned_profile_is_valid_and_recognises_its_microphone() {
    let station = bare();
    let folder = station.dir().join("config");
    fs::create_dir_all(folder.join("profiles")).unwrap();
    let config = [("SILVASONIC_CONFIG_DIR", folder.to_str().unwrap())];
    let cases = [
        ("02-ultramic-serial", "sample_rate: 384000\n  channels: 1\n  format: S16LE\n"),
        ("20-multi-capture-pcms", "sample_rate: 48000\n  channels: 2\n  format: S16LE\n"),
        ("40-evil-product-newline-injects-card", "sample_rate: 384000\n  channels: 1\n  format: S16LE\n"),
    ];
    for (fixture, expected) in cases {
        station.tree.fixture(fixture);
        let (code, text, why) = typed(&station, "scan --profile", &config);
        assert_eq!((code, why.as_str()), (Some(0), ""), "{fixture}");
        assert!(text.contains(expected) && !text.contains("guess"), "{fixture}: {text}");
        fs::write(folder.join("profiles/new.yml"), text).unwrap();
        let (code, text, _) = typed(&station, "profiles check", &config);
        assert_eq!((code, text.as_str()), (Some(0), "profiles/new.yml: ok\n"), "{fixture}");
        let (_, text, _) = typed(&station, "scan --json", &config);
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["microphones"][0]["profiles"]["score"], 100, "{fixture}: {text}");
    }
    // The file says what is unknown.
    station.tree.alter(|root| fs::write(root.join("proc/asound/card0/stream0"), "Capture:\n  nonsense").unwrap());
    let (code, text, _) = typed(&station, "scan --profile", &[]);
    assert_eq!(code, Some(0));
    assert!(text.contains("\n# Cannot read what it captures (stream0: no altsetting with format, channels and rates).\n"), "{text}");
    assert!(text.contains("a guess"), "{text}");
}

#[test]
fn each_file_is_ok_or_its_faults_are_listed() {
    let station = bare();
    let check = |line: &str| typed(&station, line, &[]);
    let (code, text, why) = check("profiles check");
    assert_eq!((code, why.as_str()), (Some(0), ""), "{text}");
    assert_eq!(text.lines().next(), Some("defaults.yml: ok"));
    assert!(text.lines().count() == 9 && text.lines().all(|line| line.ends_with(".yml: ok")), "{text}");

    let folder = station.dir().join("config");
    fs::create_dir_all(folder.join("profiles")).unwrap();
    let profile = |slug: &str, rate: &str| {
        format!(
            "schema_version: \"1.0\"\nslug: {slug}\nname: x\naudio:\n  sample_rate: {rate}\n  match:\n    usb_vendor_id: \"0869\"\n    usb_product_id: \"{slug}\"\n"
        )
    };
    let files = [
        ("defaults.yml", "system:\n  latitude: 1\n  max_recorders: many\n".to_owned()),
        ("defaults.override.yml", "system:\n  longitude: east\n".to_owned()),
        ("profiles/a.yml", profile("0001", "1")),
        ("profiles/b.yml", profile("0001", "1")),
        ("profiles/c.yml", profile("0003", "fast")),
        ("profiles/d.yml", "a: [\n".to_owned()),
        ("profiles/e.txt", "no profile".to_owned()),
        ("profiles/._a.yml", "hidden".to_owned()),
        ("profiles/G.YAML", format!("\u{feff}{}", profile("0007", "1").replace('\n', "\r\n"))),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    fs::create_dir(folder.join("profiles/f.yml")).unwrap();
    std::os::unix::fs::symlink("/nowhere", folder.join("profiles/h.yml")).unwrap();
    let expected = "\
defaults.yml:3: system.max_recorders: expected a whole number from 0 to 1000, got \"many\"
defaults.override.yml:2: system.longitude: expected a number from -180 to 180, or null, got \"east\"
profiles/G.YAML: ok
profiles/a.yml: ok
profiles/b.yml:2: slug: profiles/a.yml has the slug 0001, too
profiles/b.yml:7: audio.match: profiles/a.yml has the USB ids 0869:0001, too; neither profile is chosen automatically
profiles/c.yml:5: audio.sample_rate: expected a whole number from 1 to 10000000, got \"fast\"
profiles/d.yml:1: did not find expected node content, while parsing a flow node
profiles/f.yml: expected a file
profiles/h.yml: a link to /nowhere, which does not exist
";
    let line = format!("profiles check {}", folder.display());
    assert_eq!(check(&line), (Some(1), expected.to_owned(), String::new()));
    // the profiles alone
    fs::remove_dir(folder.join("profiles/f.yml")).unwrap();
    fs::remove_file(folder.join("profiles/d.yml")).unwrap();
    let (code, text, _) = check(&format!("{line}/profiles"));
    assert_eq!((code, text.lines().next()), (Some(1), Some("G.YAML: ok")), "{text}");
    let (code, text, why) = check("profiles check /nonexistent");
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(why.contains("/nonexistent: No such file"), "{why}");
}

#[test]
fn a_command_without_settings_uses_those_of_the_service() {
    let station = bare();
    let program = station.controller_command(&[]).get_program().to_owned();
    let health = |set: &str| {
        let script = "mount -t tmpfs tmpfs /etc && mkdir /etc/silvasonic && printf '# port\\nSILVASONIC_CONTROLLER_PORT=\"7\"\\n' \
                      > /etc/silvasonic/controller.env && exec env -i $2 \"$1\" health";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&program).arg(set);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    for (set, port) in [("A=b", 7), ("SILVASONIC_CONTROLLER_PORT=8", 8), ("SILVASONIC_NETWORK=x", 9100)] {
        assert!(health(set).contains(&format!("no response on port {port}: ")), "{set}: {}", health(set));
    }
}

#[test]
fn health_shows_the_components_of_the_program_on_the_port() {
    let station = bare();
    let health = |port: u16| {
        let start = Instant::now();
        let result = typed(&station, "health", &[("SILVASONIC_CONTROLLER_PORT", &port.to_string())]);
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        result
    };
    let recorder = Recorder::start("redis://127.0.0.1:1/0");
    let (code, text, _) = health(recorder.port());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("recorder     ok       running\nredis        warning  "), "{text}");

    let controller = station.controller();
    let port = eventually(SOON, "the port", || controller.port());
    let (code, text, _) = health(port);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("controller   ok       running\n") && text.contains("\ndatabase     failed   "), "{text}");

    // A server that does not respond, one that sends single bytes, one that is not a Controller, and no server.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (code, _, why) = health(port);
    assert!(code == Some(1) && why.ends_with(&format!("no response on port {port}: timeout after 3 s\n")), "{why}");
    let slow = std::thread::spawn(move || {
        let (_silent, mut stream) = (listener.accept().unwrap(), listener.accept().unwrap().0);
        // until the other side has had enough
        while stream.write_all(b"H").is_ok() {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        let (mut stream, _) = listener.accept().unwrap();
        // answered before it was read, it would be reset
        let _ = stream.read(&mut [0; 64]).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n{}").unwrap();
    });
    let (code, _, why) = health(port);
    assert!(code == Some(1) && why.contains("timeout after 3 s"), "{why}");
    let (code, _, why) = health(port);
    assert!(code == Some(1) && why.contains("is not a Controller"), "{why}");
    slow.join().unwrap();
    let (code, _, why) = health(port);
    assert!(code == Some(1) && why.contains("refused"), "{why}");
}

/// A command that may be missing on this machine.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("{program} is not installed: skipped");
    }
    found
}

#[test]
fn completions_and_the_manual_page_are_made_of_the_table() {
    let station = bare();
    let file = |name: &str, line: &str| {
        let (code, text, why) = typed(&station, line, &[]);
        assert_eq!((code, why.as_str()), (Some(0), ""));
        fs::write(station.dir().join(name), text).unwrap();
        station.dir().join(name)
    };
    let shell = |program: &str, script: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(["-c", script]).args(if program == "fish" { &[][..] } else { &["_"] }).args(arguments).current_dir(station.dir());
        // fish writes settings to its home
        command.env("HOME", station.dir());
        let (code, text, why) = run(command);
        assert_eq!((code, why.as_str()), (Some(0), ""), "{program}");
        text
    };
    let table = [
        (vec!["lo"], "logs"),
        (
            vec![""],
            "run logs devices history enroll ignore reset enable disable workers setup check scan profiles health completions man --help --version",
        ),
        (vec!["profiles", ""], "check"),
        (vec!["profiles", "check", "prof"], "profiles.d"),
        (vec!["logs", "--"], "--device --level --json --help"),
        (vec!["logs", "--level", "w"], "warning"),
        (vec!["logs", "--level", "error", "--j"], "--json"),
        (vec!["completions", ""], "bash zsh fish --help"),
    ];
    // the only one there of that beginning: bash gives folders, and links to folders, in the order of the directory
    fs::create_dir(station.dir().join("profiles.d")).unwrap();

    file("c.bash", "completions bash");
    for (words, expected) in &table {
        let script =
            "source ./c.bash; COMP_WORDS=(silvasonic-controller \"$@\"); COMP_CWORD=$#; _silvasonic_controller; echo \"${COMPREPLY[*]}\"";
        assert_eq!(shell("bash", script, words).trim(), *expected, "{words:?}");
    }
    if installed("zsh") {
        file("c.zsh", "completions zsh");
        shell("zsh", "zsh -n ./c.zsh", &[]);
        let script = "compdef() { :; }; _files() { echo profiles.d; }; _describe() { echo ${found%%:*}; }; source ./c.zsh
                      words=(silvasonic-controller \"$@\"); CURRENT=$#words; _silvasonic-controller";
        for (words, _) in table.iter().filter(|(words, _)| words.last() == Some(&"")) {
            let expected = table.iter().find(|(other, _)| other == words).unwrap().1;
            assert_eq!(shell("zsh", script, words).trim(), expected, "{words:?}");
        }
    }
    if installed("fish") {
        file("c.fish", "completions fish");
        shell("fish", "fish -n ./c.fish", &[]);
        for (typed, expected) in [("lo", "logs"), ("profiles ", "check"), ("logs --lev", "--level"), ("logs --level w", "warning")] {
            let script = format!("source ./c.fish; complete -C 'silvasonic-controller {typed}'");
            let found = shell("fish", &script, &[]);
            assert_eq!(found.split_whitespace().next(), Some(expected), "{typed:?}: {found}");
        }
    }
    let page = file("c.8", "man");
    if installed("groff") {
        let mut command = Command::new("groff");
        command.args(["-ww", "-man", "-Tascii", "-P-cbou"]).arg(&page);
        let (code, text, why) = run(command);
        assert_eq!((code, why.as_str()), (Some(0), ""));
        for expected in ["logs [--device ID] [--level LEVEL] [--json]", "--level LEVEL", "SILVASONIC_HOST_ROOT", "EXIT STATUS"] {
            assert!(text.contains(expected), "{expected:?} is missing:\n{text}");
        }
    }
}
