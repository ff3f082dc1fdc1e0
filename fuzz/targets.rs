//! What must hold for any bytes; each function panics where it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use silvasonic_controller::cache;
use silvasonic_controller::cli::arguments::{COMMANDS, Command, CommandSpec, Invocation, OperandSpec, ValueKind, parse};
use silvasonic_controller::config::Config;
use silvasonic_controller::containers::watch;
use silvasonic_controller::decide::desired::{Desired, SpecCache, desired};
use silvasonic_controller::decide::device::{Microphone, Usb, identify, is_workspace_name, serial};
use silvasonic_controller::decide::offer;
use silvasonic_controller::decide::presence::Presences;
use silvasonic_controller::decide::profile::{Profile, ProfileConfig};
use silvasonic_controller::decide::registry::{Registry, Row, System};
use silvasonic_controller::hardware::formats;
use silvasonic_controller::hardware::sysfs::parse_cards;
use silvasonic_controller::json;
use silvasonic_controller::logs::line::{Joiner, Origin, StampedText};
use silvasonic_controller::podman::client::Podman;
use silvasonic_controller::podman::frames::Frames;
use silvasonic_controller::redis::connection::address;
use silvasonic_controller::redis::publisher::redacted;
use silvasonic_controller::redis::reply::Replies;
use silvasonic_controller::text::{fingerprint, is_invisible};

/// What is printed of foreign text: one line, not endless.
fn is_line(text: &str) -> bool {
    !text.chars().any(is_invisible) && text.len() < 4096
}

/// `/proc/asound/cards`: each card comes from a line that names it, and its words hold no line ends and no NUL.
pub(crate) fn cards(data: &[u8]) {
    let Ok(cards) = parse_cards(data) else { return };
    let lines = String::from_utf8_lossy(data).lines().count();
    assert!(cards.values().map(Vec::len).sum::<usize>() <= lines);
    for line in cards.values().flatten() {
        for word in [&line.id, &line.driver, &line.name] {
            assert!(!word.contains('\n'), "{line:?}");
        }
        assert!(!line.name.contains('\0'), "{line:?}");
    }
}

/// A log stream gives the same lines however it is cut into chunks, each one a payload of valid JSON.
pub(crate) fn frames(data: &[u8]) {
    let read = |sizes: &mut dyn FnMut() -> usize| {
        let (mut frames, mut joiner, mut lines) = (Frames::default(), Joiner::default(), Vec::new());
        let origin = Origin { service: "recorder".into(), instance: "a".into(), container: "c".into() };
        let mut rest = data;
        while !rest.is_empty() {
            let (chunk, tail) = rest.split_at(sizes().clamp(1, rest.len()));
            rest = tail;
            let each = |output, frame: &[u8]| {
                joiner.push(output, StampedText::parse(frame), |line| {
                    lines.push((line.bytes.to_vec(), line.cut));
                    let payload = origin.payload(line, SystemTime::UNIX_EPOCH);
                    let value: Value = serde_json::from_str(&payload).expect("a payload is JSON");
                    assert!(value["message"].is_string() && value["level"].is_string() && value["timestamp"].is_string(), "{payload}");
                });
            };
            if frames.push(chunk, each).is_err() {
                break;
            }
        }
        lines
    };
    let whole = read(&mut || usize::MAX);
    assert!(whole.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() <= data.len());
    assert_eq!(whole, read(&mut || 1));
    assert_eq!(whole, read(&mut || 7));
}

/// Where [`answer`] listens, until somebody removes it.
pub(crate) fn socket() -> PathBuf {
    std::env::temp_dir().join(format!("sv-fuzz-{}.sock", std::process::id()))
}

/// Whatever answers in Podman's place: a list comes to an end, with or without a result.
pub(crate) fn answer(data: &[u8]) {
    static SERVER: OnceLock<(Podman, Sender<Vec<u8>>)> = OnceLock::new();
    let (podman, answers) = SERVER.get_or_init(|| {
        let path = socket();
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        let (sender, answers) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            let mut last = Vec::new();
            for mut client in listener.incoming().map_while(Result::ok) {
                // A second attempt at the same list gets the same answer.
                last = answers.try_recv().unwrap_or(last);
                let _ = client.read(&mut [0; 4096]);
                let _ = client.write_all(&last);
            }
        });
        (Podman::new(path), sender)
    });
    answers.send(data.to_vec()).expect("the server runs");
    let begun = Instant::now();
    if let Ok(containers) = podman.list("io.silvasonic.owner", "controller") {
        assert!(containers.len() < 10_000);
    }
    assert!(begun.elapsed() < Duration::from_secs(11));
}

/// JSON of a log line or from Redis: what serde_json accepts has the same value on one line, and what only Python accepts
/// becomes valid JSON.
pub(crate) fn json(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let line = json::one_line(&text);
    if let Ok(value) = json::from_str::<Value>(&text) {
        assert_eq!(json::from_python::<Value>(&text).ok().as_ref(), Some(&value), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&line).ok().as_ref(), Some(&value), "{line:?}");
    }
    if json::from_python::<Value>(&text).is_ok() {
        assert!(serde_json::from_str::<Value>(&line).is_ok() && !line.chars().any(is_invisible), "{line:?}");
        assert_eq!(json::one_line(&line), line);
    }
}

/// Replies of whatever answers in place of Redis: the same ones however they arrive, each within its limit of memory.
pub(crate) fn replies(data: &[u8]) {
    const LIMIT: usize = 512;
    fn size(value: &redis::Value) -> usize {
        match value {
            redis::Value::BulkString(bytes) => bytes.len(),
            redis::Value::Array(values) => values.iter().map(|value| 64 + size(value)).sum(),
            _ => 0,
        }
    }
    let read = |piece: usize| {
        let (mut rest, mut replies, mut values) = (data, Replies::new(LIMIT), Vec::new());
        let mut source = |buffer: &mut [u8]| {
            let (piece, tail) = rest.split_at(piece.min(rest.len()).min(buffer.len()));
            buffer[..piece.len()].copy_from_slice(piece);
            rest = tail;
            Ok(piece.len())
        };
        while let Ok(value) = replies.next(&mut source) {
            assert!(size(&value) <= LIMIT, "{value:?}");
            values.push(value);
        }
        values
    };
    let whole = read(usize::MAX);
    assert_eq!(whole, read(1));
    assert_eq!(whole, read(7));
}

/// A URL of Redis in a message: one line without the password.
pub(crate) fn redis_url(data: &[u8]) {
    let url = String::from_utf8_lossy(data);
    let shown = redacted(&url);
    assert!(!shown.chars().any(is_invisible), "{shown:?}");
    let Ok(address) = address(&url) else { return };
    let password = address.redis_settings().password().unwrap_or_default();
    // A host or a user can have the same name as the password.
    if password.len() > 3 && url.matches(password).count() == 1 {
        assert!(!shown.contains(password), "{shown:?} shows {password:?} of {url:?}");
    }
}

/// A profile file is refused or whole: what was read is read again from its own JSON.
pub(crate) fn profile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Profile::from_yaml(text) {
        Ok(profile) => {
            let again = ProfileConfig::from_json(&profile.config.to_json()).expect("its own JSON is valid");
            assert_eq!(again.recorder_json(), profile.config.recorder_json());
        }
        Err(faults) => {
            let is_one_line = |what: &str| !what.contains('\n') && what.len() < 4096;
            assert!(!faults.is_empty() && faults.iter().all(|fault| is_one_line(&fault.what)), "{faults:?}");
        }
    }
}

/// An environment, as in `/proc/PID/environ`: settings in their ranges, which are the same when they are written out and
/// read again, or faults that name the variable on one line and show no secret.
pub(crate) fn environment(data: &[u8]) {
    let read = |name: &str| {
        let found = data.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        found.map(|value| OsStr::from_bytes(value).to_owned())
    };
    let settings = |config: &Config| {
        let Config { recorder, .. } = config;
        let seconds = |time: Duration| format!("{}", time.as_secs_f64());
        let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
        vec![
            ("SILVASONIC_CONTAINER_SOCKET", path(&config.socket)),
            ("SILVASONIC_NETWORK", recorder.network.clone()),
            ("SILVASONIC_DB_HOST", config.database.host.clone()),
            ("SILVASONIC_DB_PORT", config.database.port.to_string()),
            ("POSTGRES_USER", config.database.user.clone()),
            ("POSTGRES_PASSWORD", config.database.password.clone()),
            ("POSTGRES_DB", config.database.name.clone()),
            ("SILVASONIC_REDIS_URL", config.redis_url.clone()),
            ("SILVASONIC_CONTROLLER_PORT", config.port.to_string()),
            ("SILVASONIC_WORKSPACE_PATH", path(&recorder.workspace)),
            ("SILVASONIC_RECORDER_WORKSPACE_LOCAL", path(&config.workspace_local)),
            ("SILVASONIC_RECORDER_REDIS_URL", recorder.redis_url.clone()),
            ("SILVASONIC_RECORDER_IMAGE", recorder.image.clone()),
            ("SILVASONIC_RECORDER_MEMORY_LIMIT", recorder.memory.to_string()),
            ("SILVASONIC_RECORDER_CPU_LIMIT", format!("{}", recorder.cpu_quota as f64 / 100_000.0)),
            ("SILVASONIC_RECORDER_RESTART_MAX_RETRIES", recorder.restart_tries.to_string()),
            ("SILVASONIC_RECORDER_RESERVE_MB", recorder.reserve_mb.map(|megabytes| megabytes.to_string()).unwrap_or_default()),
            ("SILVASONIC_RECORDER_PRIVILEGED", recorder.privileged.to_string()),
            ("SILVASONIC_RECONCILE_INTERVAL_S", seconds(config.interval)),
            ("SILVASONIC_DEVICE_OFFLINE_GRACE_PERIOD_S", seconds(config.grace)),
            ("SILVASONIC_HEARTBEAT_INTERVAL_S", seconds(config.heartbeat)),
            ("SILVASONIC_HOST_ROOT", path(&config.host_root)),
            ("SILVASONIC_CONFIG_DIR", config.config_dir.as_ref().map(path).unwrap_or_default()),
            ("SILVASONIC_SHED_MEMORY_PERCENT", config.shed.memory.to_string()),
            ("SILVASONIC_SHED_DISK_PERCENT", config.shed.disk.to_string()),
            ("SILVASONIC_FALLBACK_PROFILE", config.fallback_profile.clone().unwrap_or_default()),
            ("SILVASONIC_OWNER", recorder.owner.clone()),
            ("SILVASONIC_SHUTDOWN", format!("{:?}", config.shutdown).to_lowercase()),
            ("SILVASONIC_SHUTDOWN_TIMEOUT_S", seconds(config.shutdown_timeout)),
            ("SILVASONIC_LOG_LEVEL", config.log_level.to_string()),
            ("SILVASONIC_LOG_FORMAT", format!("{:?}", config.log_format).to_lowercase()),
        ]
    };
    match Config::read(read) {
        Ok(config) => {
            let written = settings(&config);
            let again = Config::read(|name| written.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()));
            assert_eq!(again.map(|config| settings(&config)).as_ref(), Ok(&written));
            assert!(config.interval >= Duration::from_millis(100) && config.grace <= Duration::from_secs(3600));
            assert!(config.recorder.memory >= 6 << 20 && config.recorder.cpu_quota >= 1000);
            for path in [&config.socket, &config.workspace_local, &config.recorder.workspace, &config.host_root] {
                assert!(path.is_absolute() && !path.components().any(|part| part.as_os_str() == ".."), "{path:?}");
            }
        }
        Err(faults) => {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            let names: BTreeSet<&str> = lines.iter().filter_map(|line| line.split_once(": expected ")).map(|(name, _)| name).collect();
            assert_eq!(names.len(), lines.len(), "{lines:?}");
            for line in &lines {
                assert!(is_line(line), "{line:?}");
            }
            // A part of the samples' passwords; changed inputs may have it in other values, too.
            let count = |text: &[u8]| text.windows(6).filter(|part| *part == b"s3cr3t").count();
            let secrets = ["POSTGRES_PASSWORD", "SILVASONIC_REDIS_URL"].map(|name| read(name).map_or(0, |value| count(value.as_bytes())));
            let shown: usize = lines.iter().map(|line| count(line.as_bytes())).sum();
            assert!(shown <= count(data) - secrets.iter().sum::<usize>(), "{lines:?}");
        }
    }
}

/// `stream0`: settings that a profile can contain, chosen from the last part about capture alone, and shown on one line.
pub(crate) fn stream0(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(settings) = formats::parse(&text) else { return };
    assert!(!settings.is_empty() && settings.len() <= text.lines().count());
    for setting in &settings {
        assert!(setting.channels > 0 && !setting.formats.is_empty() && !setting.rates.is_empty() && !setting.rates.contains(&0));
    }
    assert!(!offer::summary(&settings).chars().any(is_invisible), "{settings:?}");
    let forged = format!("X\nCapture:\n  Altset 1\n  Format: S32_LE\n  Channels: 2\n  Rates: 10000000\n{text}");
    assert_eq!(formats::parse(&forged).as_ref(), Ok(&settings));
    let Some(choice) = formats::best(&settings) else { return };
    let offers = |setting: &offer::Setting| {
        let (low, high) = (setting.rates.iter().min().copied(), setting.rates.iter().max().copied());
        let between = setting.continuous && low <= Some(choice.sample_rate) && Some(choice.sample_rate) <= high;
        setting.channels == choice.channels && (between || setting.rates.contains(&choice.sample_rate))
    };
    assert!(settings.iter().any(offers), "{choice:?} of {settings:?}");
    let audio = json!({"sample_rate": choice.sample_rate, "channels": choice.channels, "format": choice.format});
    ProfileConfig::from_json(&json!({ "audio": audio })).expect("a valid profile");
}

/// Rows from lines of kind, key and body, with tabs between them; no body is one that was too large.
fn rows_of(data: &[u8]) -> Vec<Row> {
    let text = String::from_utf8_lossy(data);
    let row = |line: &str| {
        let mut parts = line.splitn(3, '\t').map(str::to_owned);
        Some(Row { kind: parts.next()?, key: parts.next()?, body: parts.next(), fault: None })
    };
    text.split('\n').filter_map(row).collect()
}

fn microphone(card: u32, serial: Option<String>, bus_path: &str) -> Microphone {
    let (vendor, product) = ("0869".to_owned(), "0389".to_owned());
    let usb = Usb { vendor, product, serial, bus_path: bus_path.to_owned(), port_path: None, address: format!("1:{card}") };
    Microphone { card, pcm: 0, name: "UltraMic".to_owned(), usb: Some(usb), offer: Default::default() }
}

/// Rows of the database: a faulty one affects only itself and is named on one line; ids stay one-to-one; and what is
/// written or started has names of its own, that are safe as names of files and containers.
pub(crate) fn rows(data: &[u8]) {
    let rows = rows_of(data);
    let registry = Registry::read(&rows, None);
    assert!(registry.faults.iter().all(|fault| is_line(fault)), "{:?}", registry.faults);
    for row in &rows {
        let alone = Registry::read(std::slice::from_ref(row), None);
        let last = rows.iter().rev().find(|other| (other.kind.as_str(), &other.key) == (row.kind.as_str(), &row.key));
        if row.kind == "device" && last == Some(row) {
            assert_eq!(registry.devices[&row.key].is_ok(), alone.devices[&row.key].is_ok(), "{row:?}");
        }
    }
    let known = System { max_recorders: Some(3), auto_enrollment: true };
    let kept = Registry::read(&rows, Some(&known)).system;
    assert!(kept.max_recorders.is_some());
    if rows.iter().all(|row| row.kind == "device" || row.kind == "profile") {
        assert_eq!(kept, known);
    }

    // Serial numbers as the keys: different ones stay different.
    let raw: BTreeSet<&[u8]> = rows.iter().map(|row| row.key.as_bytes().trim_ascii()).filter(|raw| !raw.is_empty()).collect();
    let serials: BTreeSet<String> = raw.iter().filter_map(|raw| serial(raw)).collect();
    assert_eq!(raw.len(), serials.len(), "{raw:?} {serials:?}");
    let connected: Vec<Microphone> = std::iter::once(None)
        .chain(serials.iter().cloned().map(Some))
        .chain(serials.first().cloned().map(Some))
        .take(20)
        .enumerate()
        .map(|(card, serial)| microphone(card as u32, serial, &format!("1-{card}")))
        .collect();
    let count = connected.len();
    let identified = identify(connected, &registry.known_ports(), |_| false);
    let cards: BTreeSet<u32> = identified.values().map(|microphone| microphone.card).collect();
    assert_eq!((identified.len(), cards.len()), (count, count), "{cards:?}");

    let now = Instant::now();
    let mut presences = Presences::new(Duration::ZERO);
    registry.add_devices_to(&mut presences, now);
    presences.observe(&identified, &[], now);
    let changes = registry.changes(&presences, "2026-11-23T09:11:46Z", Some("p"), Some(&[]));
    let changed: BTreeSet<&str> = changes.iter().map(|change| change.device.as_str()).collect();
    assert_eq!(changed.len(), changes.len());
    let names: Vec<&String> = changes.iter().filter_map(|change| change.workspace.as_ref()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    assert!(names.iter().all(|name| is_workspace_name(name)), "{names:?}");
    let numbers: Vec<&String> = changes.iter().filter_map(|change| Some(&change.insert.as_ref()?.serial_number)).collect();
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len(), "{numbers:?}");
    assert!(changes.iter().all(|change| change.note.as_deref().is_none_or(is_line)));

    static CONFIG: OnceLock<Config> = OnceLock::new();
    let config = CONFIG.get_or_init(|| Config::read(|_| None).expect("defaults"));
    let mut specs = SpecCache::new(config.recorder.clone());
    for (id, one) in desired(&registry, true, &presences, &mut specs) {
        match one {
            Desired::Run(spec) => assert!(is_workspace_name(&spec.name) && identified.contains_key(&id), "{spec:?}"),
            Desired::Keep(reason) => assert!(is_line(&reason.to_string()), "{reason:?}"),
            Desired::Stop(_) => assert!(registry.devices[&id].is_ok(), "{id:?}"),
        }
    }
    for (id, one) in desired(&registry, false, &presences, &mut specs) {
        assert!(!matches!(one, Desired::Stop(_)) || !identified.contains_key(&id), "{id:?}: {one:?} without the database");
    }
}

/// A folder of this process, in memory if nothing else is asked for.
pub(crate) fn folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() && std::env::var_os("TMPDIR").is_none() { memory } else { std::env::temp_dir() };
    parent.join(format!("sv-fuzz-{}", std::process::id()))
}

/// The state file: refused on one line or read, and what was written is what is read.
pub(crate) fn state(data: &[u8]) {
    let folder = folder();
    fs::create_dir_all(&folder).expect("a folder");
    let read = |bytes: &[u8]| {
        fs::write(folder.join(".controller-state"), bytes).expect("a file");
        cache::load(&folder).inspect_err(|why| assert!(is_line(why), "{why:?}")).ok().flatten()
    };
    let round = |rows: &[Row]| {
        let content = cache::state(rows.to_vec()).expect("rows are JSON");
        if content.note.is_none() && cache::STATE.write(&folder, &content.text).is_ok() {
            assert_eq!(cache::load(&folder).as_ref().map(|found| found.as_deref()), Ok(Some(rows)));
        }
    };
    // As it is; with a checksum that is right; and as rows.
    let with_checksum = [format!("silvasonic-controller state 1 {}\n", fingerprint(data)).as_bytes(), data].concat();
    for found in [read(data), read(&with_checksum)].into_iter().flatten() {
        round(&found);
    }
    round(&rows_of(data));
}

/// Podman's events: a line is one only if it is complete and JSON by itself, and only the end of a run has an exit code.
pub(crate) fn events(data: &[u8]) {
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let Some(event) = watch::parse(line) else { continue };
        let value: Value = serde_json::from_slice(line).expect("an event is JSON");
        assert!(line.ends_with(b"\n") && value["Action"].as_str().is_some_and(|action| !action.is_empty()), "{value}");
        assert!(watch::parse(&line[..line.len() - 1]).is_none());
        match event.exit() {
            Some((id, code)) => {
                assert_eq!(value["Action"], "died");
                assert_eq!(value["Actor"]["ID"].as_str().unwrap_or_default(), id);
                assert_eq!(value["Actor"]["Attributes"]["containerExitCode"].as_str().and_then(|text| text.parse().ok()), Some(code));
            }
            None => {
                let code = value["Actor"]["Attributes"]["containerExitCode"].as_str().and_then(|text| text.parse::<i64>().ok());
                assert!(value["Action"] != "died" || code.is_none(), "{value}");
            }
        }
    }
}

/// The words of a command line, one a line: understood, and the same when they are written in the usual order; or refused
/// on one line.
pub(crate) fn command_line(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let words: Vec<String> = if text.is_empty() { Vec::new() } else { text.split('\n').map(str::to_owned).collect() };
    let values = |spec: &CommandSpec, words: &[String]| -> Option<BTreeMap<&'static str, String>> {
        let Ok(Invocation::Execute(arguments)) = parse(words) else { return None };
        assert_eq!(arguments.command, spec.command);
        let names = spec.options.iter().map(|option| option.name).chain(spec.operands.iter().map(|operand| operand.value().name));
        Some(names.filter_map(|name| Some((name, arguments.value(name)?.to_owned()))).collect())
    };
    let arguments = match parse(&words) {
        Ok(Invocation::Execute(arguments)) => arguments,
        Ok(Invocation::Help(_) | Invocation::Version) => return assert!(!words.is_empty()),
        Err(error) => {
            let line = error.to_string();
            return assert!(line.ends_with("; see --help") && !line.chars().any(is_invisible), "{line:?}");
        }
    };
    assert!(!words.is_empty() || arguments.command == Command::Run);
    let spec = COMMANDS.iter().find(|spec| spec.command == arguments.command).expect("a command of the table");
    let given = values(spec, &words).expect("parsed before");
    let mut usual: Vec<String> = spec.words.split(' ').map(str::to_owned).collect();
    for option in spec.options.iter().filter(|option| given.contains_key(option.name)) {
        usual.push(if option.value.is_some() { format!("{}={}", option.name, given[option.name]) } else { option.name.to_owned() });
    }
    for operand in spec.operands {
        let value = given.get(operand.value().name);
        assert!(value.is_some() || matches!(operand, OperandSpec::Optional(_)));
        if let ValueKind::OneOf(known) = operand.value().kind {
            assert!(value.is_none_or(|value| known.contains(&value.as_str())), "{value:?}");
        }
        usual.extend(value.cloned());
    }
    assert_eq!(values(spec, &usual).as_ref(), Some(&given), "{usual:?}");
}
