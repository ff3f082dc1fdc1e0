//! The status page in a real browser: what it shows, what it never does, and what it costs.

use super::station::{Browser, Controller, Station, eventually, free_port};
use super::tree::Card;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SOON: Duration = Duration::from_secs(60);
const ID: &str = "0869-0389-034F6A21";
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";

/// A Controller with a port that another one can have after it.
fn controller(station: &Station, port: u16, settings: &[(&str, &str)]) -> Controller {
    let port = port.to_string();
    let all = [&[("SILVASONIC_CONTROLLER_PORT", port.as_str()), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")][..], settings].concat();
    let controller = station.controller_with(&all);
    eventually(SOON, "the Controller serves its port", || controller.port());
    controller
}

fn open(station: &Station, port: u16) -> Browser {
    let browser = Browser::start(station);
    browser.open(&format!("http://127.0.0.1:{port}/"));
    browser
}

/// Nothing was reported on the console, and no other host was asked. Chromium gives requests up when an interface of the
/// machine comes or goes, as those of other tests do; the page asks again.
fn check(browser: &Browser, port: u16) {
    let console: Vec<String> = browser.console().into_iter().filter(|line| !line.contains("net::ERR_NETWORK_CHANGED")).collect();
    assert_eq!(console, Vec::<String>::new());
    let own = format!("http://127.0.0.1:{port}/");
    let requests = browser.requests();
    assert!(requests.len() > 1 && requests.contains(&format!("{own}status.json")), "{requests:?}");
    assert!(requests.iter().all(|url| url.starts_with(&own) || url.starts_with("data:")), "{requests:?}");
}

/// The kernel's view of a card that delivers frames.
fn deliver(root: &Path, card: usize, (rate, channels): (u64, u64), begin: Instant) {
    let frames = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
    let pid = std::process::id();
    let status = format!("state: RUNNING\nowner_pid   : {pid}\ntrigger_time: 30.690000000\n-----\nhw_ptr      : {frames}\n");
    let params = format!("access: RW_INTERLEAVED\nformat: S16_LE\nchannels: {channels}\nrate: {rate} ({rate}/1)\nbuffer_size: 192000\n");
    let folder = root.join(format!("proc/asound/card{card}/pcm0c/sub0"));
    for (name, text) in [("hw_params", params), ("status", status)] {
        if fs::write(folder.join("new"), text).is_ok() {
            fs::rename(folder.join("new"), folder.join(name)).unwrap();
        }
    }
}

#[test]
fn the_page_shows_each_microphone_and_whether_the_controller_is_there() {
    let station = Station::up();
    let port = free_port();
    let mut first = controller(&station, port, &[]);
    first.wait_log("connected to Podman", SOON);
    let browser = open(&station, port);
    browser.wait_text("#summary", "no microphone is known");
    station.tree.set(&[Card::ultramic()]);
    browser.wait_text("#microphones h3", "UltraMic384K_EVO");
    browser.wait_text("#microphones .state", "Not recording");
    browser.wait_text("#microphones p + p", "has not opened the card");
    let begin = Instant::now();
    eventually(SOON, "frames", || {
        deliver(&station.tree.present(), 0, (384_000, 1), begin);
        browser.text("#microphones .state").contains("✓ Recording").then_some(())
    });
    eventually(SOON, "a session", || {
        deliver(&station.tree.present(), 0, (384_000, 1), begin);
        browser.text("#microphones dl").contains("384\u{202f}000 Hz, S16_LE, 1 ch").then_some(())?;
        browser.script("return document.querySelectorAll('#microphones svg .on').length").as_i64().filter(|bars| *bars == 1)
    });
    assert!(browser.text("#station").contains("✓ connected"), "{}", browser.text("#station"));
    assert!(browser.text("#decisions").contains(ULTRAMIC), "{}", browser.text("#decisions"));
    station.tree.set(&[]);
    browser.wait_text("#microphones p + p", "offline");
    browser.wait_text("#microphones summary", "1 gap");
    browser.script("document.querySelector('#microphones summary').click()");
    browser.wait_text("#microphones li", "unplugged");
    check(&browser, port);

    eventually(SOON, "the page has an answer", || browser.text("#away").is_empty().then_some(()));
    first.kill();
    let away = browser.wait_text("#away", "No answer from the Controller since");
    assert!(away.contains("out of date"), "{away}");
    // The browser itself reports on the console that the server is gone.
    let _second = controller(&station, port, &[]);
    eventually(SOON, "the page works again", || browser.text("#away").is_empty().then_some(()));
}

#[test]
fn a_microphone_is_on_the_page_within_two_seconds_also_on_a_phone() {
    let station = Station::up();
    let port = free_port();
    let controller = controller(&station, port, &[]);
    controller.wait_log("connected to Podman", SOON);
    let browser = open(&station, port);
    browser.wait_text("#summary", "no microphone is known");
    let all = || [Card::ultramic(), Card::rode().index(1), Card::generic(2, "1-9")];
    let appear = |(count, name): (usize, &str)| {
        let plugged = Instant::now();
        station.tree.set(&all()[..count]);
        browser.wait_text("#microphones", name);
        plugged.elapsed()
    };
    let times = [(1, "UltraMic384K_EVO"), (2, "RODE NT-USB"), (3, "USB Audio Device")].map(appear);
    // Something else may keep the machine busy, but not each time.
    assert!(times.iter().min().unwrap() <= &Duration::from_secs(2), "{times:?}");
    for theme in ["light", "dark"] {
        show_at(&browser, (360, 800), theme);
    }
}

#[test]
fn foreign_text_stays_text_and_lines_are_read_only_while_the_page_is_open() {
    let hostile = "<img src=x onerror=alert(1)>";
    let station = Station::plan().without_recorder_image().up();
    let image = station.image(
        "hostile",
        r#"trap exit TERM; while :; do echo '<script>document.title="x"</script>'; printf 'a\033[2J\0\377</li></ol>\n'; sleep 0.5; done"#,
    );
    station.tree.set(&[Card::ultramic().name(hostile).manufacturer("\"'></h3><script src=http://example.com/x></script>")]);
    let port = free_port();
    let controller = controller(&station, port, &[("SILVASONIC_RECORDER_IMAGE", &image), ("SILVASONIC_LOG_LEVEL", "debug")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(controller.count_log("somebody listens"), 0);
    let browser = open(&station, port);
    browser.wait_text("#microphones h3", "<img");
    let log = browser.wait_text("#log", "</li></ol>");
    assert!(log.contains("[raw] <script>document.title=\"x\"</script>"), "{log}");
    let made = browser.script("return document.querySelectorAll('img, #log script, #microphones script, #log ol').length");
    assert_eq!(made, 0);
    let before = browser.script("return document.getElementById('log').children.length").as_i64().unwrap();
    eventually(SOON, "more lines", || {
        let lines = browser.script("return document.getElementById('log').children.length").as_i64().unwrap();
        (lines > before + 2).then_some(())
    });
    let unique =
        browser.script("return [...document.querySelectorAll('#log li')].every((line) => !line.textContent.includes('not shown'))");
    assert_eq!(unique, true);
    check(&browser, port);

    browser.open("about:blank");
    controller.wait_log("nobody listens to log lines", SOON);
}

/// A heartbeat of the Recorder of the Ultramic, made so long ago.
fn heartbeat(age: Duration, recording: &Value) -> String {
    heartbeat_of(ID, age, recording)
}

fn heartbeat_of(id: &str, age: Duration, recording: &Value) -> String {
    let time = (SystemTime::now() - age).duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let meta = json!({"recording": recording, "resources": {"cpu_percent": 1.5}});
    json!({"service": "recorder", "instance_id": id, "timestamp": time, "activity": "recording", "health": {}, "meta": meta}).to_string()
}

#[test]
fn the_page_shows_the_level_that_the_recorder_states_and_asks_only_while_it_is_open() {
    let mut station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    let port = free_port();
    let controller = controller(&station, port, &[]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let level = json!({"active": true, "peak_dbfs": -3.52, "rms_dbfs": -21.7, "clipped": 12345, "overruns": 2});
    station.redis.recorder_heartbeat(ID, &heartbeat(Duration::ZERO, &level));
    // The next heartbeats of the Controller come and go, and nobody looks.
    let beats = station.redis.calls("set");
    eventually(SOON, "heartbeats", || (station.redis.calls("set") > beats + 2).then_some(()));
    assert_eq!(station.redis.calls("getrange"), 0);

    let browser = open(&station, port);
    let shows = |what: &str, recording: &Value, age: Duration| {
        eventually(SOON, what, || {
            station.redis.recorder_heartbeat(ID, &heartbeat(age, recording));
            browser.text("#microphones dl").contains(what).then_some(())
        });
    };
    shows("peak -3.52 dBFS, RMS -21.7 dBFS", &level, Duration::ZERO);
    shows("12\u{202f}345 samples", &level, Duration::ZERO);
    let document = controller.get("/status.json").unwrap().1;
    assert_eq!(document["microphones"][0]["level"], json!({"peak_dbfs": -3.52, "rms_dbfs": -21.7, "clipped": 12345, "overruns": 2}));
    // Silence, and text in the place of numbers.
    shows(
        "peak – dBFS, RMS – dBFS",
        &json!({"peak_dbfs": null, "rms_dbfs": "<img src=x onerror=alert(1)>", "overruns": 0}),
        Duration::ZERO,
    );
    let is_gone = |what: &str, heartbeat: &dyn Fn() -> String| {
        shows("peak -1 dBFS, RMS – dBFS", &json!({"peak_dbfs": -1}), Duration::ZERO);
        eventually(SOON, what, || {
            station.redis.recorder_heartbeat(ID, &heartbeat());
            let text = browser.text("#microphones dl");
            (!text.is_empty() && !text.contains("level")).then_some(())
        });
    };
    is_gone("an old heartbeat is not shown", &|| heartbeat(Duration::from_secs(40), &level));
    is_gone("nor is one of another kind", &|| "<img src=x onerror=alert(1)>".to_owned());
    is_gone("nor a long one", &|| heartbeat(Duration::ZERO, &json!({"peak_dbfs": -1, "text": "x".repeat(1 << 20)})));
    assert_eq!(browser.script("return document.querySelectorAll('img').length"), 0);
    // A server that does not answer delays the page by a moment only.
    station.redis.pause();
    eventually(SOON, "a document", || controller.get("/status.json").filter(|(status, _)| *status == 200));
    station.redis.resume();
    check(&browser, port);

    browser.open("about:blank");
    let asked = eventually(SOON, "no more questions", || {
        let (asked, beats) = (station.redis.calls("getrange"), station.redis.calls("set"));
        eventually(SOON, "heartbeats", || (station.redis.calls("set") > beats + 2).then_some(()));
        (station.redis.calls("getrange") == asked).then_some(asked)
    });
    assert!(asked > 0);
}

/// The keys of the document, without those of parts that are described elsewhere.
fn keys(document: &Value) -> BTreeSet<String> {
    let of = |prefix: &str, value: &Value| -> Vec<String> {
        value.as_object().unwrap_or_else(|| panic!("{prefix}: {value}")).keys().map(|key| format!("{prefix}{key}")).collect()
    };
    let parts = [
        ("", document),
        ("clock.", &document["clock"]),
        ("host.", &document["host"]),
        ("power.", &document["power"]),
        ("microphones[].", &document["microphones"][0]),
    ];
    let mut keys: BTreeSet<String> = parts.iter().flat_map(|(prefix, value)| of(prefix, value)).collect();
    keys.extend(of("log[].", &document["log"][0]));
    keys
}

#[test]
fn the_keys_of_the_document_are_those_of_its_description() {
    let text = include_str!("../../docs/interface.md");
    let table = text.split("<!-- status -->").nth(1).and_then(|rest| rest.split("<!-- /status -->").next()).unwrap();
    let described: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next())
        .flat_map(|cell| cell.split('`').step_by(2).filter(|key| !key.is_empty() && *key != ", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let station = Station::up();
    station.tree.set(&[Card::ultramic()]);
    station.tree.alter(|root| {
        let sensor = root.join("sys/class/hwmon/hwmon0");
        fs::create_dir_all(&sensor).unwrap();
        for (file, text) in [("name", "cpu_thermal"), ("temp1_input", "61750"), ("in0_lcrit_alarm", "1")] {
            fs::write(sensor.join(file), text).unwrap();
        }
    });
    let controller = controller(&station, 0, &[("POSTGRES_PASSWORD", "pass-mark"), ("SILVASONIC_USER_PASSWORD", "user-mark")]);
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    let mut asked = || {
        controller
            .get("/status.json")
            .filter(|(status, document)| *status == 200 && document["log"][0].is_object() && document["power"]["under_voltage"] == true)
    };
    let (_, document) = eventually(SOON, "a document with a microphone and a log line", &mut asked);
    assert_eq!(document["version"], 1);
    assert_eq!(document["power"]["temperature_c"], 61);
    assert_eq!(keys(&document), described);
    let all = document.to_string();
    assert!(!all.contains("-mark"), "{all}");
}

/// Shows the page on a screen of this size, into which it must fit.
fn show_at(browser: &Browser, (width, height): (u32, u32), theme: &str) {
    browser.set_screen((width, height), theme);
    let is_drawn = || (browser.script("return innerWidth") == width).then_some(());
    eventually(SOON, "the window has its size", is_drawn);
    let needed = browser.script("return document.documentElement.scrollWidth");
    assert!(needed.as_u64().unwrap() <= u64::from(width), "{needed} px at {width}");
}

/// Draws the pictures in the README: `make pictures`.
#[test]
#[ignore = "writes docs/page-*.webp"]
fn pictures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let station = Station::up();
    let port = free_port();
    station.tree.set(&[Card::ultramic(), Card::rode().index(1)]);
    let mut first = controller(&station, port, &[]);
    station.podman.wait_running(SOON, &[ULTRAMIC, "silvasonic-recorder-rode-nt-usb-p1d2"]);
    first.wait_log("seeded user", SOON);
    first.kill();
    for (id, device, from, to, rate, cause) in [
        (1, "0869-0389-034F6A21", "23 hours", "9.5 hours", 384_000, "unplugged"),
        (2, "0869-0389-034F6A21", "8.8 hours", "20 seconds", 384_000, "recorder ended (code 1)"),
        (3, "19f7-0003-port1-2", "26 hours", "17 hours", 48_000, "power or boot"),
        (4, "19f7-0003-port1-2", "16.2 hours", "5 hours", 48_000, "stalled"),
        (5, "19f7-0003-port1-2", "4.9 hours", "20 seconds", 48_000, "replaced (image)"),
    ] {
        station.postgres.exec(&format!(
            "INSERT INTO capture_sessions SELECT {id}, '{device}', 'c', now() - interval '{from}', now() - interval '{to}', 1, {rate}, '{cause}', '{{}}'"
        ));
    }
    let _second = controller(&station, port, &[]);
    let browser = open(&station, port);
    let begin = Instant::now();
    eventually(SOON, "both record", || {
        deliver(&station.tree.present(), 0, (384_000, 1), begin);
        deliver(&station.tree.present(), 1, (48_000, 2), begin);
        for (id, peak, rms) in [(ID, -18.4, -43.6), ("19f7-0003-port1-2", -9.7, -31.2)] {
            let level = json!({"peak_dbfs": peak, "rms_dbfs": rms, "clipped": 0, "overruns": 0});
            station.redis.recorder_heartbeat(id, &heartbeat_of(id, Duration::ZERO, &level));
        }
        let microphones = browser.text("#microphones");
        let is_whole = microphones.matches("since").count() == 4 && microphones.matches("dBFS, RMS").count() == 2;
        (is_whole && browser.text("#summary").contains("2 of 2") && browser.text("#station").contains("full in")).then_some(())
    });
    for theme in ["light", "dark"] {
        for (size, width, height) in [("phone", 360, 800), ("desk", 1100, 720)] {
            show_at(&browser, (width, height), theme);
            browser.picture(&folder.join(format!("page-{size}-{theme}.webp")));
        }
    }
}
