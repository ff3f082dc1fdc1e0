//! Lines of Recorders reach `silvasonic:logs`: each once and in order, whatever is restarted meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use silvasonic_controller::decide::container::{Container, State};
use silvasonic_controller::logs::forwarder::LogForwarder;
use silvasonic_controller::podman::client::Podman;
use silvasonic_controller::redis::publisher::Publisher;

use super::station::{Controller, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const RODE: &str = "silvasonic-recorder-rode-nt-usb-p1d2";
const CHANNEL: &str = "silvasonic:logs";

/// Runs each script that is put into the workspace, in the container's own shell, and then removes it.
const SPEAKER: &str = "trap 'echo last words; exit 0' TERM; cd /app/workspace; \
    while :; do for f in [0-9]*; do [ -f $f ] || continue; mv $f now; . ./now; done; sleep 0.02; done";

/// A station whose Recorders do as they are told.
struct Stage {
    station: Station,
    image: String,
}

impl Stage {
    fn with(cards: &[Card], command: &str) -> Stage {
        let station = Station::plan().without_recorder_image().up();
        let image = station.image("speaker", command);
        station.tree.set(cards);
        Stage { station, image }
    }

    fn controller(&self) -> Controller {
        self.station.controller_with(&[("SILVASONIC_RECORDER_IMAGE", &self.image), ("SILVASONIC_LOG_LEVEL", "debug")])
    }

    fn workspace(&self, container: &str) -> PathBuf {
        self.station.workspace().join("recorder").join(container.trim_start_matches("silvasonic-recorder-"))
    }

    /// Has a container run a script.
    fn tell(&self, container: &str, script: &str) {
        let dir = self.workspace(container);
        fs::write(dir.join("next"), script).unwrap();
        fs::rename(dir.join("next"), dir.join("1")).unwrap();
        eventually(SOON, "the script is taken", || (!dir.join("1").exists()).then_some(()));
    }
}

fn next(lines: &Receiver<String>) -> Value {
    serde_json::from_str(&lines.recv_timeout(SOON).expect("a line")).unwrap()
}

fn message(lines: &Receiver<String>) -> String {
    next(lines)["message"].as_str().unwrap().to_owned()
}

/// Takes in lines up to `last`, which must be `1` to `last`.
fn numbered(lines: &Receiver<String>, last: usize) {
    for number in 1..=last {
        assert_eq!(message(lines), number.to_string());
    }
}

#[test]
fn policy_restarts_and_recreations_repeat_and_lose_nothing() {
    let count = "cd /app/workspace; n=$(cat n 2>/dev/null || echo 0); \
        for i in 1 2 3 4 5 6 7; do n=$((n+1)); echo $n; done; echo $n >n; exit 1";
    let stage = Stage::with(&[Card::ultramic()], count);
    let lines = stage.station.redis.listen(CHANNEL);
    let _controller = stage.controller();
    // six runs a container
    numbered(&lines, 3 * 6 * 7);
}

#[test]
fn an_api_service_that_restarts_repeats_and_loses_nothing() {
    let stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let lines = stage.station.redis.listen(CHANNEL);
    let _controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    stage.tell(ULTRAMIC, "n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo $n; sleep 0.01; done");
    for number in 1..=100 {
        assert_eq!(message(&lines), number.to_string());
    }
    stage.station.podman.restart();
    for number in 101..=200 {
        assert_eq!(message(&lines), number.to_string());
    }
    stage.station.podman.stop_api();
    stage.tell(ULTRAMIC, "echo 301; printf 'half '");
    stage.station.podman.start_api();
    for number in 201..=301 {
        assert_eq!(message(&lines), number.to_string());
    }
    stage.station.podman.restart();
    stage.tell(ULTRAMIC, "echo whole");
    assert_eq!(message(&lines), "half whole");
}

#[test]
fn lines_are_dropped_and_counted_while_redis_is_unavailable_and_flow_again_after() {
    let mut stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let lines = stage.station.redis.listen(CHANNEL);
    let controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    stage.tell(ULTRAMIC, "echo before");
    assert_eq!(message(&lines), "before");
    stage.station.redis.stop();
    // The first line detects that Redis is unavailable, the others are dropped while it is.
    stage.tell(ULTRAMIC, "echo lost");
    controller.wait_log(&format!("Redis at {} unavailable: ", stage.station.redis.url()), SOON);
    stage.tell(ULTRAMIC, "seq 1 5000");
    stage.station.redis.start();
    let lines = stage.station.redis.listen(CHANNEL);
    let back = controller.wait_log(&format!("Redis at {} available again after ", stage.station.redis.url()), SOON);
    assert!(back.contains("log lines were dropped") && !back.contains("; 0 log lines"), "{back}");
    stage.tell(ULTRAMIC, "echo after");
    // Late ones of the five thousand may still come before it.
    while message(&lines) != "after" {}
    assert_eq!(stage.station.containers().len(), 1);
}

#[test]
fn a_controller_that_was_killed_goes_on_from_now() {
    let stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let lines = stage.station.redis.listen(CHANNEL);
    let mut controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    stage.tell(ULTRAMIC, "echo early; seq 1 500");
    assert_eq!(message(&lines), "early");
    numbered(&lines, 500);
    controller.kill();
    stage.tell(ULTRAMIC, "echo missed");
    let controller = stage.controller();
    controller.wait_log("; adopted", SOON);
    // Said until it is heard, as nobody knows when exactly the Controller begins to listen.
    let first = eventually(SOON, "a line", || {
        stage.tell(ULTRAMIC, "echo new");
        lines.try_recv().ok()
    });
    assert!(first.contains("\"new\""), "{first}");
    stage.tell(ULTRAMIC, "echo end");
    let rest: Vec<String> = std::iter::from_fn(|| Some(message(&lines)).filter(|line| line != "end")).collect();
    assert!(rest.iter().all(|line| line == "new"), "{rest:?}");
    // The stream that follows must not bring back what was there before the first one.
    stage.station.podman.restart();
    stage.tell(ULTRAMIC, "echo really");
    assert_eq!(message(&lines), "really");
}

#[test]
fn whatever_a_container_writes_becomes_one_payload_a_line() {
    let stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let lines = stage.station.redis.listen(CHANNEL);
    let _controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    let say = |script: &str| {
        stage.tell(ULTRAMIC, script);
        next(&lines)
    };
    let line = say("echo plain");
    let expected = json!({
        "service": "recorder", "instance_id": "0869-0389-034F6A21", "container_name": ULTRAMIC,
        "level": "raw", "message": "plain", "timestamp": line["timestamp"],
    });
    assert_eq!(line, expected);
    assert_eq!(line["timestamp"].as_str().unwrap().len(), "2026-01-31T12:00:00.000001Z".len());
    assert_eq!(say("echo wrong >&2")["message"], "wrong");
    assert_eq!(say("printf begin; sleep 0.3; printf ' and '; sleep 0.3; echo end")["message"], "begin and end");
    assert_eq!(say("echo")["message"], "");
    assert_eq!(say(r"printf 'bad \377\376 \000 end\n'")["message"], "bad \u{fffd}\u{fffd} \0 end");
    let long = say("head -c 40000 /dev/zero | tr '\\0' x; echo; echo next");
    assert_eq!(long["message"].as_str().unwrap(), format!("{} … [cut at 16 KiB]", "x".repeat(16 << 10)));
    assert_eq!(message(&lines), "next");
    assert_eq!(say("head -c 16384 /dev/zero | tr '\\0' y; echo")["message"], "y".repeat(16 << 10));
    for (text, level, message) in [
        (r#"{"event":"e","level":"error"}"#, "error", "e"),
        (r#"{"message":"m"}"#, "info", "m"),
        (r#"{"event":{"a":[1]},"level":["x"]}"#, "[\"x\"]", r#"{"a":[1]}"#),
        (r#"{"event":null,"level":null,"timestamp":null}"#, "info", r#"{"event":null,"level":null,"timestamp":null}"#),
        (r#"{"event":"#, "raw", r#"{"event":"#),
        ("[1]", "raw", "[1]"),
        ("\"s\"", "raw", "\"s\""),
        ("17", "raw", "17"),
        ("true", "raw", "true"),
        ("null", "raw", "null"),
    ] {
        let line = say(&format!("cat <<'END'\n{text}\nEND\n"));
        assert_eq!((&line["level"], &line["message"]), (&json!(level), &json!(message)), "{text}");
    }
}

#[test]
fn last_words_are_heard_before_a_container_is_removed() {
    let stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let lines = stage.station.redis.listen(CHANNEL);
    let controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    stage.tell(ULTRAMIC, "echo hello");
    assert_eq!(message(&lines), "hello");
    stage.station.tree.set(&[]);
    controller.wait_log("stopped and removed", SOON);
    assert_eq!(message(&lines), "last words");
    assert!(lines.try_recv().is_err());
}

#[test]
fn a_burst_arrives_whole_and_in_order() {
    const COUNT: usize = 60_000;
    let stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let lines = stage.station.redis.listen(CHANNEL);
    let _controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    stage.tell(ULTRAMIC, &format!("seq 1 {COUNT}"));
    numbered(&lines, COUNT);
}

/// Podman leaves lines out of a stream whose container has ended before all was sent.
#[test]
fn a_burst_right_before_the_end_arrives_whole_and_in_order() {
    const COUNT: usize = 50_000;
    // Two runs of one container; a third one stays, as of a removed container the rest is read for a second only.
    let runs = "n=0; [ -e /app/workspace/runs ] && read n < /app/workspace/runs; echo $((n+1)) > /app/workspace/runs; [ $n -lt 2 ] || exec sleep 1000";
    let stage = Stage::with(&[Card::ultramic()], &format!("{runs}; echo 1; sleep 1; seq 2 {COUNT}; exit 1"));
    let lines = stage.station.redis.listen(CHANNEL);
    let _controller = stage.controller();
    numbered(&lines, COUNT);
    numbered(&lines, COUNT);
}

#[test]
fn a_flood_holds_no_other_container_up_and_is_reported_when_podman_drops_lines() {
    let stage = Stage::with(&[Card::ultramic(), Card::rode().index(1)], SPEAKER);
    let lines = stage.station.redis.listen(CHANNEL);
    let controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[RODE, ULTRAMIC]);
    stage.tell(ULTRAMIC, "yes flood");
    controller.wait_log("exceeded its size limit", Duration::from_secs(60));
    for number in 0..5 {
        let said = Instant::now();
        stage.tell(RODE, &format!("echo quiet {number}"));
        let flood = eventually(SOON, "the quiet line", || {
            let mut flood = 0;
            while let Ok(line) = lines.recv_timeout(SOON) {
                if line.contains("\"quiet ") {
                    assert!(line.contains(&format!("\"quiet {number}\"")), "{line}");
                    return Some(flood);
                }
                flood += 1;
            }
            None
        });
        assert!(flood > 0 && said.elapsed() < Duration::from_secs(3), "{flood} lines, {:?}", said.elapsed());
    }
    assert_eq!(controller.count_log("exceeded its size limit"), 1);
}

/// Names of the threads that follow a log.
fn followers(controller: &Controller) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", controller.id())).unwrap().flatten();
    tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("log-"))).count()
}

#[test]
fn logs_are_followed_only_while_somebody_listens_and_each_line_comes_once() {
    let stage = Stage::with(&[Card::ultramic(), Card::rode().index(1)], SPEAKER);
    let controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC, RODE]);
    // A pattern may match the channel, too.
    for (round, channel) in [CHANNEL, CHANNEL, "silvasonic:*"].into_iter().enumerate() {
        // A listener comes while another one stays, and both go.
        stage.tell(ULTRAMIC, "echo unheard");
        let written = Instant::now();
        eventually(SOON, "nobody is asked for", || (followers(&controller) == 0).then_some(()));
        eventually(SOON, "two later seconds", || (written.elapsed() > Duration::from_millis(2500)).then_some(()));
        let listener = stage.station.redis.subscribe(channel);
        let begun = Instant::now();
        stage.tell(ULTRAMIC, "echo 1; echo 2");
        let messages = || -> String {
            loop {
                let line = next(&listener.lines);
                // The pattern matches heartbeats, too.
                if let Some(message) = line["message"].as_str() {
                    return message.to_owned();
                }
            }
        };
        assert_eq!((messages(), messages()), ("1".to_owned(), "2".to_owned()), "round {round}");
        println!("the first line came {:?} after the subscription", begun.elapsed());
        assert_eq!(followers(&controller), 2);
        let second = stage.station.redis.subscribe(channel);
        stage.tell(RODE, "echo 3");
        assert_eq!(messages(), "3");
        drop(second);
        stage.tell(ULTRAMIC, "echo 4");
        assert_eq!(messages(), "4");
    }
}

#[test]
fn a_subscriber_is_found_while_postgresql_is_away_or_hangs() {
    let mut stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    for (round, fault) in ["away", "hung"].into_iter().enumerate() {
        eventually(SOON, "nobody is asked for", || (followers(&controller) == 0).then_some(()));
        match fault {
            "away" => stage.station.postgres.stop(),
            _ => stage.station.postgres.stop_hung(),
        }
        let listener = stage.station.redis.subscribe(CHANNEL);
        stage.tell(ULTRAMIC, &format!("echo {fault}"));
        assert_eq!(message(&listener.lines), fault, "round {round}");
        drop(listener);
        match fault {
            "away" => stage.station.postgres.start(),
            _ => stage.station.postgres.resume(),
        }
        let is_well = || stage.station.heartbeat()?["health"]["components"]["database"]["healthy"].as_bool();
        eventually(SOON, "PostgreSQL is well", || is_well().filter(|well| *well));
    }
}

#[test]
fn a_subscriber_hears_a_container_that_ends_and_is_replaced_right_after() {
    let stage = Stage::with(&[Card::ultramic()], SPEAKER);
    let controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    controller.wait_log("seeded user", SOON);
    for round in 0..3 {
        eventually(SOON, "nobody is asked for", || (followers(&controller) == 0).then_some(()));
        let before = stage.station.podman.mark(ULTRAMIC);
        let listener = stage.station.redis.subscribe(CHANNEL);
        let said = format!("said {round}");
        stage.tell(ULTRAMIC, &format!("echo {said}; exit 0"));
        assert_eq!(message(&listener.lines), said);
        eventually(SOON, "a new container", || stage.station.podman.mark(ULTRAMIC).filter(|mark| Some(mark) != before.as_ref()));
        stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
        stage.tell(ULTRAMIC, "echo new");
        assert_eq!(message(&listener.lines), "new");
    }
}

#[test]
fn logs_are_always_followed_where_redis_does_not_tell_who_listens() {
    let stage = Stage::with(&[Card::ultramic()], SPEAKER);
    redis::cmd("ACL").arg(&["SETUSER", "default", "-pubsub"]).exec(&mut stage.station.redis.connection()).unwrap();
    let controller = stage.controller();
    stage.station.podman.wait_running(SOON, &[ULTRAMIC]);
    let line = controller.wait_log("does not tell who listens to silvasonic:logs, so logs are always followed", SOON);
    assert!(line.contains("NOPERM"), "{line}");
    eventually(SOON, "a follower", || (followers(&controller) == 1).then_some(()));
    let listener = stage.station.redis.subscribe(CHANNEL);
    stage.tell(ULTRAMIC, "echo 1");
    assert_eq!(message(&listener.lines), "1");
    // It is no fault of Redis.
    eventually(SOON, "a heartbeat that finds Redis well", || {
        let heartbeat: Value = serde_json::from_str(&stage.station.redis.get("silvasonic:status:controller")?).unwrap();
        (heartbeat["health"]["components"]["redis"]["healthy"] == true).then_some(())
    });
    drop(listener);
    stage.tell(ULTRAMIC, "echo 2");
    assert_eq!((followers(&controller), controller.count_log("does not tell who listens")), (1, 1));
}

/// A service that answers each request to follow with the next of `answers`, and says nothing otherwise.
fn scripted(socket: PathBuf, answers: Vec<Vec<u8>>) {
    let listener = UnixListener::bind(socket).unwrap();
    let mut answers = answers.into_iter();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut client in listener.incoming().map_while(Result::ok) {
            let head = head(&mut client);
            let inspect = r#"{"State":{"Status":"running","StartedAt":"2026-11-24T00:00:00Z"}}"#;
            let body = if head.contains("/logs?") { "" } else { inspect };
            let quiet =
                || Some(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes());
            let answer = if head.contains("follow=true") { answers.next() } else { quiet() };
            let _ = client.write_all(&answer.unwrap_or_default());
            if head.contains("follow=true") && answers.len() == 0 {
                open.push(client);
            }
        }
    });
}

fn head(client: &mut UnixStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn frame(text: &str) -> Vec<u8> {
    let text = format!("2026-11-24T00:00:00Z {text}");
    let mut frame = vec![1, 0, 0, 0];
    frame.extend_from_slice(&(text.len() as u32).to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[test]
fn broken_streams_are_reported_and_read_again_where_they_broke() {
    let station = Station::plan().without_postgres().without_podman().up();
    let lines = station.redis.listen(CHANNEL);
    let socket = station.dir().join("scripted.sock");
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let answer = |parts: &[Vec<u8>]| [std::slice::from_ref(&head), parts].concat().concat();
    let (one, two, three) = (chunk(&frame("1\n")), chunk(&frame("2\n")), chunk(&frame("3\n")));
    let mut four = chunk(&frame("4\n"));
    four.truncate(20);
    scripted(
        socket.clone(),
        vec![
            // a frame that is none
            answer(&[one.clone(), chunk(b"\x03\0\0\0\0\0\0\x01x")]),
            // one that is too long
            answer(&[one.clone(), two.clone(), chunk(b"\x01\0\0\0\x7f\xff\xff\xff")]),
            // a chunk that is cut off
            answer(&[one.clone(), two.clone(), three.clone(), four]),
            // a body that ends within a frame
            answer(&[one.clone(), two.clone(), chunk(&frame("3\n")[..12]), b"0\r\n\r\n".to_vec()]),
            // no HTTP at all
            b"nonsense\r\n\r\n".to_vec(),
            answer(&[one, two, three, chunk(&frame("4\n"))]),
        ],
    );
    let bus = Publisher::start(&station.redis.url(), "controller").unwrap();
    let (events, audience) = std::sync::mpsc::sync_channel(8);
    let mut logs = LogForwarder::new(&Podman::new(socket), bus, events);
    logs.update(&[]);
    let container = Container {
        id: "c1".to_owned(),
        name: "scripted".to_owned(),
        state: State::Running,
        labels: [("io.silvasonic.service".to_owned(), "recorder".to_owned())].into(),
        exit_code: 0,
        out_of_memory: false,
        is_interrupted: false,
        pid: 0,
        started: 0,
    };
    let begun = Instant::now();
    logs.update(&[container]);
    audience.recv_timeout(SOON).unwrap();
    logs.audience_changed();
    numbered(&lines, 4);
    assert!(lines.try_recv().is_err());
    assert!(begun.elapsed() < SOON);
    logs.stop();
}
