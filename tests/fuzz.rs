//! The fuzz targets on inputs from a fixed seed: real ones, changed at random places. `make fuzz` goes further.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/targets.rs"]
mod targets;

#[path = "it/station/dice.rs"]
#[allow(dead_code, clippy::print_stdout)]
mod dice;

use dice::Dice;
use std::fs;
use std::path::PathBuf;

/// One of the samples with up to eight changes: bytes set, cut out, doubled, or taken from another sample.
fn mutated(dice: &mut Dice, samples: &[&[u8]]) -> Vec<u8> {
    let mut bytes = samples[dice.below(samples.len())].to_vec();
    for _ in 0..dice.below(9) {
        let (at, length) = (dice.below(bytes.len()), dice.below(16));
        let end = (at + length).min(bytes.len());
        match dice.below(4) {
            0 if !bytes.is_empty() => bytes[at] = [0, 0xff, b'\n', b'[', b'{', dice.below(256) as u8][dice.below(6)],
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let other = samples[dice.below(samples.len())];
                let from = dice.below(other.len());
                bytes.splice(at..end, other[from..(from + length).min(other.len())].iter().copied());
            }
        }
    }
    bytes
}

fn run(name: &str, target: fn(&[u8]), count: usize, samples: &[&[u8]]) {
    // `make fuzz` begins with the same samples.
    if let Some(corpus) = std::env::var_os("FUZZ_CORPUS").map(|folder| PathBuf::from(folder).join(name)) {
        fs::create_dir_all(&corpus).unwrap();
        samples.iter().enumerate().for_each(|(number, sample)| fs::write(corpus.join(format!("sample-{number}")), sample).unwrap());
    }
    let mut dice = Dice(0x5eed_1234_5678_9abc);
    samples.iter().for_each(|sample| target(sample));
    for _ in 0..count {
        target(&mutated(&mut dice, samples));
    }
}

#[test]
fn lists_of_cards() {
    let two = b" 0 [r4             ]: USB-Audio - UltraMic384K_EVO 16bit r4\n                      Dodotronic at usb-1, full speed\n10 [Intel          ]: HDA-Intel - HDA Intel\n";
    run("cards", targets::cards, 20_000, &[two, b"--- no soundcards ---\n", b" 0 [a]: x - y\n 0 [a]: USB-Audio - \xff\0]: [\n"]);
}

#[test]
fn log_streams() {
    let line = b"\x01\0\0\0\0\0\0\x232026-11-23T09:11:46Z {\"event\": \"ab\"}\n\x02\0\0\0\0\0\0\x04abc\n";
    run(
        "frames",
        targets::frames,
        10_000,
        &[line, b"\x01\0\0\0\0\0\0\x02ab\x01\0\0\0\0\0\0\x01\n", b"\x01\0\0\0\x7f\xff\xff\xff", b"\x03abc"],
    );
}

#[test]
fn json() {
    let python = br#"{"event": "\ud83d\ude00 \ud800", "rms": NaN, "peak": [-Infinity, 1e999], "x": {"\u202e": null}}"#;
    let nested = ["[".repeat(31), "]".repeat(31)].concat();
    run("json", targets::json, 40_000, &[python, "{\n\"a\":\t\"\u{2028}\u{e0041}\"}".as_bytes(), nested.as_bytes(), b"[1 2]", b"\"\\u12"]);
}

#[test]
fn replies() {
    let message = b"*3\r\n$7\r\nmessage\r\n$16\r\nsilvasonic:nudge\r\n$9\r\nreconcile\r\n+OK\r\n:1\r\n";
    let nested = "*1\r\n".repeat(99);
    run(
        "replies",
        targets::replies,
        20_000,
        &[message, nested.as_bytes(), b"-NOPERM no\r\n$-1\r\n", b"$600\r\nxx\r\n*-1\r\n", b"*8\r\n:1\r\n"],
    );
}

#[test]
fn redis_urls() {
    let urls: [&[u8]; 5] = [
        b"redis://user:secret@redis:6379/0",
        b"redis://:se%40cr@et@[::1]/?protocol=3",
        b"redis+unix:///run/redis.sock?db=1&user=u&pass=secret",
        b"rediss://u:pass?word@host/1#insecure",
        "unix:///x?pass=\u{202e}geheim".as_bytes(),
    ];
    run("redis_url", targets::redis_url, 40_000, &urls);
}

/// Removes what a target made, however it ends.
struct Tidy;

impl Drop for Tidy {
    fn drop(&mut self) {
        let _ = fs::remove_file(targets::socket());
        let _ = fs::remove_dir_all(targets::folder());
    }
}

#[test]
fn answers() {
    let _tidy = Tidy;
    let list = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nLibpod-Api-Version: 4.3.1\r\n\r\n2d\r\n[{\"Id\":\"a\",\"Names\":[\"b\"],\"State\":\"running\"}]\n\r\n0\r\n\r\n";
    let error = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 65\r\n\r\n{\"cause\":\"no such container\",\"message\":\"no such container\",\"response\":500}";
    run(
        "answer",
        targets::answer,
        1_500,
        &[list, error, b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"],
    );
}

#[test]
fn profiles() {
    let files: [&[u8]; 3] = [
        include_bytes!("../profiles/ultramic_384_evo.yml"),
        include_bytes!("../profiles/generic_usb.yml"),
        b"a: &a [1, 2]\nb: {c: *a, d: !x 1}\n---\n...\n",
    ];
    run("profile", targets::profile, 4_000, &files);
}

#[test]
fn environments() {
    let environments: [&[u8]; 4] = [
        b"SILVASONIC_REDIS_URL=redis://u:s3cr3t@redis:6379/0\0POSTGRES_PASSWORD=s3cr3t\xff\0SILVASONIC_DB_HOST=/run/postgresql",
        b"SILVASONIC_RECORDER_MEMORY_LIMIT=1g\0SILVASONIC_RECORDER_CPU_LIMIT=0.25\0SILVASONIC_SHUTDOWN=keep\0SILVASONIC_LOG_LEVEL=TRACE",
        b"POSTGRES_PASSWORD=s3cr3t\0SILVASONIC_REDIS_URL=http://s3cr3t\0SILVASONIC_RECONCILE_INTERVAL_S=0.1\0SILVASONIC_HEARTBEAT_INTERVAL_S=6e1\0SILVASONIC_SHUTDOWN_TIMEOUT_S=600\0POSTGRES_PORT=1",
        "SILVASONIC_WORKSPACE_PATH=/a/../b\0SILVASONIC_NETWORK=\u{202e}x\0SILVASONIC_CONFIG_DIR=c\0POSTGRES_USER=a b".as_bytes(),
    ];
    run("environment", targets::environment, 20_000, &environments);
}

#[test]
fn streams_of_a_card() {
    let recorded = b"RODE NT-USB at usb-1, full speed : USB Audio\n\nPlayback:\n  Status: Stop\n\nCapture:\n  Status: Stop\n  Interface 1\n    Altset 1\n    Format: S16_LE\n    Channels: 1\n    Rates: 48000, 44100\n  Interface 1\n    Altset 2\n    Format: S24_3LE\n    Channels: 2\n    Rates: 8000 - 48000 (continuous)\n";
    let range = b"Capture:\nAltset 1\nFormat: SPECIAL S32_LE\nChannels: 64\nRates: 4000 - -1 (continuous)\n";
    run("stream0", targets::stream0, 40_000, &[recorded, range, b"Capture:\nFormat: S16_LE\nChannels: 65\nRates: 10000001\n"]);
}

/// Rows of a station, and imitations of them.
const ROWS: [&[u8]; 4] = [
    b"device\t0869-0389-1\t{\"model\":\"M\",\"status\":\"online\",\"enrollment_status\":\"enrolled\",\"enabled\":true,\"profile_slug\":\"p\",\"serial_number\":\"1\",\"config\":{\"alsa_card_index\":0,\"usb_bus_path\":\"1-1\",\"auto_enrolled_at\":\"x\"},\"workspace_name\":\"p-1\"}\nprofile\tp\t{\"config\":{\"audio\":{\"sample_rate\":\"96000\",\"match\":{\"usb_vendor_id\":\"0869\",\"usb_product_id\":\"0389\"}}}}\nsystem\tsystem\t{\"max_recorders\":5,\"auto_enrollment\":true}",
    b"device\t0869-0389-port1-1\t{\"model\":\"\\n\",\"status\":\"offline\",\"enrollment_status\":\"pending\",\"enabled\":false,\"profile_slug\":null,\"config\":null,\"workspace_name\":\"../x\"}\ndevice\t1-port1-1\ndevice\t1~0123456789ab\t[]",
    b"system\tsystem\t{\"max_recorders\":-1,\"auto_enrollment\":\"\\u202e\"}\nprofile\t\xff\t{\"config\":{\"audio\":{\"match\":{\"alsa_name_contains\":\"ultra\"}}}}",
    b"x\ty\tz\n\t\t\ndevice\t\t{}\ndevice\t a-port1-2\ndevice\ta-port1-2\t\"",
];

#[test]
fn rows() {
    run("rows", targets::rows, 10_000, &ROWS);
}

#[test]
fn state_files() {
    let _tidy = Tidy;
    let content = br#"[{"kind":"device","key":"k\n","body":"{\"a\": 1}"},{"kind":"profile","key":"\u202e","body":null,"fault":"x"}]"#;
    let files = [&content[..], b"silvasonic-controller state 1 00\n[]", b"[]", b"[[[[{}]]]]"];
    run("state", targets::state, 3_000, &[&files[..], &ROWS[..]].concat());
}

#[test]
fn events() {
    let died = b"{\"Type\":\"container\",\"Action\":\"died\",\"Actor\":{\"ID\":\"c0\",\"Attributes\":{\"name\":\"x\",\"containerExitCode\":\"3\"}}}\n";
    let error = b"{\"cause\":\"x\",\"message\":\"no events\",\"response\":500}\n{\"Action\":\"start\",\"Actor\":{}}\n";
    run("events", targets::events, 40_000, &[died, error, b"{\"Action\":\"died\"}\n{\"Action\":7}\n[[[[\n\xff\n"]);
}

#[test]
fn command_lines() {
    let lines: [&[u8]; 7] = [
        b"logs\n--device=0869-0389-1\n--level\nwarn\n--json",
        b"enroll\n0869\nultramic_384_evo",
        b"profiles\ncheck\n/etc/silvasonic",
        b"scan\n--card\n1\n--profile\n--json",
        b"completions\nZ",
        "devices\n--watch=\u{202e}\n\x1b[31m".as_bytes(),
        b"--help",
    ];
    run("command_line", targets::command_line, 40_000, &lines);
}
