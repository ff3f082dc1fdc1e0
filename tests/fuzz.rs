//! The fuzz targets on inputs from a fixed seed: real ones, changed at random places. `make fuzz` goes further.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/targets.rs"]
mod targets;

#[path = "it/station/dice.rs"]
#[allow(dead_code, clippy::print_stdout)]
mod dice;

use dice::Dice;

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

fn run(target: fn(&[u8]), count: usize, samples: &[&[u8]]) {
    let mut dice = Dice(0x5eed_1234_5678_9abc);
    samples.iter().for_each(|sample| target(sample));
    for _ in 0..count {
        target(&mutated(&mut dice, samples));
    }
}

#[test]
fn lists_of_cards() {
    let two = b" 0 [r4             ]: USB-Audio - UltraMic384K_EVO 16bit r4\n                      Dodotronic at usb-1, full speed\n10 [Intel          ]: HDA-Intel - HDA Intel\n";
    run(targets::cards, 20_000, &[two, b"--- no soundcards ---\n", b" 0 [a]: x - y\n 0 [a]: USB-Audio - \xff\0]: [\n"]);
}

#[test]
fn log_streams() {
    let line = b"\x01\0\0\0\0\0\0\x232026-11-23T09:11:46Z {\"event\": \"ab\"}\n\x02\0\0\0\0\0\0\x04abc\n";
    run(targets::frames, 10_000, &[line, b"\x01\0\0\0\0\0\0\x02ab\x01\0\0\0\0\0\0\x01\n", b"\x01\0\0\0\x7f\xff\xff\xff", b"\x03abc"]);
}

#[test]
fn json() {
    let python = br#"{"event": "\ud83d\ude00 \ud800", "rms": NaN, "peak": [-Infinity, 1e999], "x": {"\u202e": null}}"#;
    let nested = ["[".repeat(31), "]".repeat(31)].concat();
    run(targets::json, 40_000, &[python, "{\n\"a\":\t\"\u{2028}\u{e0041}\"}".as_bytes(), nested.as_bytes(), b"[1 2]", b"\"\\u12"]);
}

#[test]
fn replies() {
    let message = b"*3\r\n$7\r\nmessage\r\n$16\r\nsilvasonic:nudge\r\n$9\r\nreconcile\r\n+OK\r\n:1\r\n";
    let nested = "*1\r\n".repeat(99);
    run(targets::replies, 20_000, &[message, nested.as_bytes(), b"-NOPERM no\r\n$-1\r\n", b"$600\r\nxx\r\n*-1\r\n", b"*8\r\n:1\r\n"]);
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
    run(targets::redis_url, 40_000, &urls);
}

/// Removes the socket at the end, however that comes.
struct Tidy;

impl Drop for Tidy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(targets::socket());
    }
}

#[test]
fn answers() {
    let _tidy = Tidy;
    let list = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nLibpod-Api-Version: 4.3.1\r\n\r\n2d\r\n[{\"Id\":\"a\",\"Names\":[\"b\"],\"State\":\"running\"}]\n\r\n0\r\n\r\n";
    let error = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 65\r\n\r\n{\"cause\":\"no such container\",\"message\":\"no such container\",\"response\":500}";
    run(targets::answer, 1_500, &[list, error, b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"]);
}

#[test]
fn profiles() {
    let files: [&[u8]; 3] = [
        include_bytes!("../profiles/ultramic_384_evo.yml"),
        include_bytes!("../profiles/generic_usb.yml"),
        b"a: &a [1, 2]\nb: {c: *a, d: !x 1}\n---\n...\n",
    ];
    run(targets::profile, 4_000, &files);
}
