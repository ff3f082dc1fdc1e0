//! What `make test` prints: `tests/progress` on the output of a Cargo that is a shell script.

use super::harness::Scratch;
use super::station::eventually;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// Three programs with six tests, as `cargo test -- --list` shows them on both of its streams.
const LIST: &str = "
echo '   Compiling sample v0.1.0' >&2
echo '     Running unittests src/lib.rs (target/debug/deps/sample-1)' >&2
printf 'a::one: test\\na::two: test\\na::three: test\\n\\n3 tests, 0 benchmarks\\n'
echo '     Running tests/all.rs (target/debug/deps/all-2)' >&2
printf 'b::four: test\\nb::five: test\\n\\n2 tests, 0 benchmarks\\n'
echo '   Doc-tests sample' >&2
printf 'src/lib.rs - sample (line 7): test\\n\\n1 test, 0 benchmarks\\n'
";

const GOOD: &str = "
running 3 tests
test a::two ... ok
test a::three ... ignored, it takes a day
test a::one - should panic ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s


running 2 tests
printed by b::four, and not by Cargo
test b::five has been running for over 60 seconds
test b::four ... ok
test b::five ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 61.00s


running 1 test
test src/lib.rs - sample (line 7) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

";

/// A failed test whose output looks like a line of Cargo, and one whose result follows what it printed.
const FAILING: &str = "
running 3 tests
test a::one ... FAILED
half a line test a::two ... ok
test a::three ... ok

failures:

---- a::one stdout ----
test a::nine ... ok
running 5 tests
thread 'a::one' panicked at src/lib.rs:1:1

failures:
    a::one

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

";

/// `tests/progress` with a Cargo in `dir` that lists the samples and else does what `run` says.
fn progress(dir: &Path, run: &str) -> Command {
    let cargo = dir.join("cargo");
    fs::write(&cargo, format!("#!/bin/sh\ncd {}\nif [ \"$3\" = --list ]; then {LIST} exit; fi\n{run}\n", dir.display())).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/progress"));
    command.arg(cargo).arg("test").stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// What it prints of a sample, with its exit code; the time in the last line is left out.
fn shown(sample: &str, run: &str) -> (String, Option<i32>) {
    let dir = Scratch::new();
    fs::write(dir.0.join("sample"), sample).unwrap();
    let output = progress(&dir.0, run).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, last) = text.rsplit_once(" in ").unwrap();
    (format!("{head} in …{}", last.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')), output.status.code())
}

#[test]
fn tests_are_numbered_and_all_else_stays_as_it_is() {
    let expected = GOOD
        .replace("test a::two ... ok", "[1 of 6] ok      a::two")
        .replace("test a::three ... ignored, it takes a day", "[2 of 6] ignored a::three (it takes a day)")
        .replace("test a::one - should panic ... ok", "[3 of 6] ok      a::one")
        .replace("test b::four ... ok", "[4 of 6] ok      b::four")
        .replace("test b::five ... ok", "[5 of 6] ok      b::five")
        .replace("test src/lib.rs - sample (line 7) ... ok", "[6 of 6] ok      src/lib.rs - sample (line 7)");
    let summary = "5 tests ok in … s (2 unit, 2 integration, 1 documentation, 1 ignored)\n";
    assert_eq!(shown(GOOD, "cat sample"), (expected + summary, Some(0)));
}

#[test]
fn a_failed_tests_output_is_shown_whole_and_the_exit_code_is_cargos() {
    let expected =
        FAILING.replace("test a::one ... FAILED", "[1 of 6] FAILED  a::one").replace("test a::three ... ok", "[2 of 6] ok      a::three");
    let summary = "1 of 3 tests FAILED in … s, 3 not run: a::one (3 unit)\n";
    assert_eq!(shown(FAILING, "cat sample; exit 101"), (expected + summary, Some(101)));
}

#[test]
fn an_end_without_a_result_is_no_success() {
    let (printed, code) = shown("running 3 tests\ntest a::one ... ok\n", "cat sample; kill -KILL $$");
    assert_eq!(printed, "running 3 tests\n[1 of 6] ok      a::one\ncargo ended with code 137 after 1 of 6 tests in … s\n");
    assert_eq!(code, Some(137));
}

#[test]
fn tests_that_do_not_compile_are_not_run() {
    let dir = Scratch::new();
    let mut command = progress(&dir.0, "");
    fs::write(dir.0.join("cargo"), "#!/bin/sh\necho error: no such thing\nexit 101\n").unwrap();
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: no such thing\n");
    assert_eq!((output.stdout, output.status.code()), (Vec::new(), Some(101)));
}

#[test]
fn a_line_is_shown_while_the_next_test_still_runs() {
    let dir = Scratch::new();
    let run = "echo 'test a::one ... ok'; while [ ! -e shown ]; do sleep 0.05; done; echo 'test a::two ... ok'";
    let mut child = progress(&dir.0, run).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = channel();
    let stdout = child.stdout.take().unwrap();
    let reader = thread::spawn(move || BufReader::new(stdout).lines().for_each(|line| sender.send(line.unwrap()).unwrap()));
    assert_eq!(lines.recv_timeout(SOON).as_deref(), Ok("[1 of 6] ok      a::one"));
    fs::write(dir.0.join("shown"), "").unwrap();
    assert_eq!(lines.recv_timeout(SOON).as_deref(), Ok("[2 of 6] ok      a::two"));
    child.wait().unwrap();
    reader.join().unwrap();
}

#[test]
fn both_streams_in_one_file_keep_their_order() {
    let dir = Scratch::new();
    let run = "for one in one two three; do echo before $one >&2; echo test a::$one ... ok; done";
    let file = fs::File::create(dir.0.join("shown")).unwrap();
    let status = progress(&dir.0, run).stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
    assert!(status.success());
    let shown = fs::read_to_string(dir.0.join("shown")).unwrap();
    let expected = "   Compiling sample v0.1.0\nbefore one\n[1 of 6] ok      a::one\nbefore two\n[2 of 6] ok      a::two\n\
                    before three\n[3 of 6] ok      a::three\n0 tests ok in";
    assert!(shown.starts_with(expected), "{shown}");
}

#[test]
fn a_process_that_a_test_left_behind_holds_nothing_up() {
    let dir = Scratch::new();
    let start = Instant::now();
    let output = progress(&dir.0, "sleep 15 & echo $! > left; cat /dev/null").output().unwrap();
    assert!(start.elapsed() < SOON, "it waited for the process");
    assert_eq!(output.status.code(), Some(0));
    let left = fs::read_to_string(dir.0.join("left")).unwrap();
    assert!(Command::new("sh").args(["-c", &format!("kill {left}")]).status().unwrap().success());
    eventually(SOON, "its end", || (!Path::new("/proc").join(left.trim()).join("exe").exists()).then_some(()));
}
