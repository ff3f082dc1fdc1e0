//! A socket between the Controller and Podman that passes requests on, counts them, and answers some of them otherwise.
//! What [`super::Relay`] does to all answers, this does to chosen requests. Each request gets a connection of its own to Podman, so that an answer ends where that ends.
//!
//! What happens to a request is said by rules. A rule's words must all be in the request's line: its method, its path and,
//! for a creation, the container's name; `$` behind a word means that a part of the line ends there. A line is e.g.
//! `POST /v4.0.0/libpod/containers/create HTTP/1.1 silvasonic-recorder-x-1`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What happens to a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is taken in and never answered.
    Hang,
    /// These bytes are the answer, and the connection ends.
    Answer(String),
    /// It is passed on only after that long.
    Delay(Duration),
    /// It is passed on, and Podman's answer only after that long.
    Late(Duration),
    /// It is passed on with another body.
    Edit(fn(&str) -> String),
}

impl Fault {
    /// Podman's own way to say no.
    pub(crate) fn refusal(cause: &str, message: &str) -> Fault {
        let body = json!({"cause": cause, "message": message, "response": 500}).to_string();
        let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json";
        Fault::Answer(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }
}

/// What happens to requests whose line contains all words.
struct Rule {
    words: String,
    fault: Fault,
    /// How many more requests; None = all.
    left: Option<u32>,
}

/// The proxy; its threads end with the test process.
pub(crate) struct Proxy {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    target: PathBuf,
    /// Their lines.
    requests: Mutex<Vec<String>>,
    /// Lines of requests that Podman has answered late.
    late: Mutex<Vec<String>>,
    /// The first one that fits counts.
    rules: Mutex<Vec<Rule>>,
}

fn contains(line: &str, words: &str) -> bool {
    words.split_whitespace().all(|word| match word.strip_suffix('$') {
        Some(end) => line.split_whitespace().any(|part| part.ends_with(end)),
        None => line.contains(word),
    })
}

impl Proxy {
    pub(crate) fn new(path: PathBuf, target: &Path) -> Proxy {
        let shared =
            Arc::new(Shared { target: target.to_owned(), requests: Mutex::default(), late: Mutex::default(), rules: Mutex::default() });
        let listener = UnixListener::bind(&path).unwrap();
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&server);
                thread::spawn(move || drop(serve(client, &shared)));
            }
        });
        Proxy { path, shared }
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// How many requests have come.
    pub(crate) fn requests(&self) -> usize {
        self.requests_for("")
    }

    /// How many lines contain all these words.
    pub(crate) fn requests_for(&self, words: &str) -> usize {
        self.lines(words).len()
    }

    /// The lines that contain all these words.
    pub(crate) fn lines(&self, words: &str) -> Vec<String> {
        self.shared.requests.lock().unwrap().iter().filter(|line| contains(line, words)).cloned().collect()
    }

    /// How many such requests Podman has answered, and the answer is held back.
    pub(crate) fn held_back(&self, words: &str) -> usize {
        self.shared.late.lock().unwrap().iter().filter(|line| contains(line, words)).count()
    }

    /// From now on this happens to requests whose line contains all these words, and nothing to others.
    pub(crate) fn set(&self, words: &str, fault: Fault) {
        self.clear();
        self.add(words, fault);
    }

    /// From now on this happens to requests whose line contains all these words, unless an earlier rule fits.
    pub(crate) fn add(&self, words: &str, fault: Fault) {
        self.rule(words, fault, None);
    }

    /// This happens to the next request whose line contains all these words, unless an earlier rule fits.
    pub(crate) fn once(&self, words: &str, fault: Fault) {
        self.rule(words, fault, Some(1));
    }

    fn rule(&self, words: &str, fault: Fault, left: Option<u32>) {
        self.shared.rules.lock().unwrap().push(Rule { words: words.to_owned(), fault, left });
    }

    /// Everything is passed on again.
    pub(crate) fn clear(&self) {
        self.shared.rules.lock().unwrap().clear();
    }
}

impl Shared {
    /// Notes a request; what happens to it.
    fn asked(&self, line: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        self.requests.lock().unwrap().push(line.to_owned());
        let rule = rules.iter_mut().find(|rule| rule.left != Some(0) && contains(line, &rule.words))?;
        rule.left = rule.left.map(|left| left - 1);
        Some(rule.fault.clone())
    }
}

fn serve(mut client: UnixStream, shared: &Shared) -> io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body)?;
    let name = serde_json::from_slice::<Value>(&body).ok().and_then(|body| Some(body["name"].as_str()?.to_owned())).unwrap_or_default();
    let line = format!("{} {name}", head.lines().next().unwrap_or_default());
    let mut late = None;
    match shared.asked(&line) {
        None => {}
        Some(Fault::Delay(time)) => thread::sleep(time),
        Some(Fault::Late(time)) => late = Some(time),
        Some(Fault::Edit(edit)) => {
            let edited = edit(&String::from_utf8_lossy(&body)).into_bytes();
            let other = |line: &str| !line.to_ascii_lowercase().starts_with("content-length:");
            head = head.lines().filter(|line| !line.is_empty() && other(line)).map(|line| format!("{line}\r\n")).collect();
            head.push_str(&format!("Content-Length: {}\r\n\r\n", edited.len()));
            body = edited;
        }
        Some(Fault::Hang) => return client.read_exact(&mut byte),
        Some(Fault::Answer(text)) => return client.write_all(text.as_bytes()),
    }
    let mut podman = UnixStream::connect(&shared.target)?;
    podman.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    podman.write_all(&body)?;
    if let Some(time) = late {
        let mut answer = Vec::new();
        podman.read_to_end(&mut answer)?;
        shared.late.lock().unwrap().push(line);
        thread::sleep(time);
        return client.write_all(&answer);
    }
    // Whoever goes away takes the other end along: a follower closes its connection while Podman is silent.
    let (mut watched, podmans) = (client.try_clone()?, podman.try_clone()?);
    thread::spawn(move || {
        let _ = watched.read(&mut [0]);
        let _ = podmans.shutdown(Shutdown::Both);
    });
    let answered = io::copy(&mut podman, &mut client);
    // Also when Podman was killed: the watching thread holds the connection, too.
    client.shutdown(Shutdown::Both)?;
    answered.map(drop)
}
