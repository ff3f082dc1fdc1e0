//! What must hold for any bytes; each function panics where it does not.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use silvasonic_controller::decide::profile::Profile;
use silvasonic_controller::hardware::sysfs::parse_cards;
use silvasonic_controller::json;
use silvasonic_controller::logs::line::{Joiner, Origin, StampedText};
use silvasonic_controller::podman::client::Podman;
use silvasonic_controller::podman::frames::Frames;
use silvasonic_controller::redis::connection::address;
use silvasonic_controller::redis::publisher::redacted;
use silvasonic_controller::redis::reply::Replies;
use silvasonic_controller::text::is_invisible;

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
        let _ = std::fs::remove_file(&path);
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
            let again =
                silvasonic_controller::decide::profile::ProfileConfig::from_json(&profile.config.to_json()).expect("its own JSON is valid");
            assert_eq!(again.recorder_json(), profile.config.recorder_json());
        }
        Err(faults) => assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.contains('\n') && fault.len() < 4096), "{faults:?}"),
    }
}
