//! A socket between the Controller and Podman that passes requests on, counts them, and answers some of them as no sound
//! Podman would. Each request gets a connection of its own to Podman, so that an answer ends where that ends.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is taken in and never answered.
    Hang,
    /// These bytes are the answer, and the connection stays open.
    Stall(&'static str),
    /// These bytes are the answer, and the connection ends.
    Answer(String),
    /// A head, and then more and more of the same.
    Endless(&'static str),
    /// It is passed on only after that long.
    Delay(Duration),
}

/// The proxy; its threads end with the test process.
pub(crate) struct Proxy {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    target: PathBuf,
    /// Their first lines.
    requests: Mutex<Vec<String>>,
    /// A part of the request's first line, and what happens to such requests.
    fault: Mutex<Option<(String, Fault)>>,
}

impl Proxy {
    pub(crate) fn new(path: PathBuf, target: &Path) -> Proxy {
        let shared = Arc::new(Shared { target: target.to_owned(), requests: Mutex::default(), fault: Mutex::new(None) });
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

    /// How many of them contain `part` in their first line.
    pub(crate) fn requests_for(&self, part: &str) -> usize {
        self.shared.requests.lock().unwrap().iter().filter(|first| first.contains(part)).count()
    }

    /// From now on this happens to requests whose first line contains `part`.
    pub(crate) fn set(&self, part: &str, fault: Fault) {
        *self.shared.fault.lock().unwrap() = Some((part.to_owned(), fault));
    }

    /// Everything is passed on again.
    pub(crate) fn clear(&self) {
        *self.shared.fault.lock().unwrap() = None;
    }
}

fn serve(mut client: UnixStream, shared: &Shared) -> io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body)?;
    let first = head.lines().next().unwrap_or_default();
    shared.requests.lock().unwrap().push(first.to_owned());
    let fault = shared.fault.lock().unwrap().clone().filter(|(part, _)| first.contains(part.as_str()));
    match fault.map(|(_, fault)| fault) {
        None => {}
        Some(Fault::Delay(time)) => thread::sleep(time),
        Some(Fault::Hang) => return client.read_exact(&mut byte),
        Some(Fault::Stall(text)) => {
            client.write_all(text.as_bytes())?;
            return client.read_exact(&mut byte);
        }
        Some(Fault::Answer(text)) => return client.write_all(text.as_bytes()),
        Some(Fault::Endless(text)) => {
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")?;
            loop {
                client.write_all(text.as_bytes())?;
            }
        }
    }
    let mut podman = UnixStream::connect(&shared.target)?;
    podman.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    podman.write_all(&body)?;
    // Whoever goes away takes the other end along: a follower closes its connection while Podman is silent.
    let (mut watched, podmans) = (client.try_clone()?, podman.try_clone()?);
    thread::spawn(move || {
        let _ = watched.read(&mut [0]);
        let _ = podmans.shutdown(Shutdown::Both);
    });
    io::copy(&mut podman, &mut client)?;
    client.shutdown(Shutdown::Both)
}
