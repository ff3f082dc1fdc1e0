//! A relay on the way to a service, which passes all bytes on and counts them. Connections are passed on one by one: each
//! of a client is one to the service, and ends with it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::SystemTime;

/// The relay; its threads end with the process.
pub(crate) struct Meter {
    path: PathBuf,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    answered: AtomicU64,
    asked: AtomicU64,
    /// Their first lines.
    requests: Mutex<Vec<(SystemTime, String)>>,
}

impl Meter {
    /// Listens at `path` and passes on to `target`.
    pub(crate) fn new(path: PathBuf, target: &Path) -> Meter {
        let counts = Arc::<Counts>::default();
        let listener = UnixListener::bind(&path).unwrap();
        let (server, target) = (Arc::clone(&counts), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (counts, target) = (Arc::clone(&server), target.clone());
                thread::spawn(move || drop(serve(&client, &target, &counts)));
            }
        });
        Meter { path, counts }
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Connections that are open now.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Bytes that the service has sent.
    pub(crate) fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    /// Pieces that clients have sent. A client that waits for each answer sends a piece a question.
    pub(crate) fn asked(&self) -> u64 {
        self.counts.asked.load(Ordering::Relaxed)
    }

    /// HTTP requests so far.
    pub(crate) fn requests(&self) -> Vec<(SystemTime, String)> {
        self.counts.requests.lock().unwrap().clone()
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.counts.requests.lock().unwrap().len()
    }
}

fn serve(client: &UnixStream, target: &Path, counts: &Arc<Counts>) -> io::Result<()> {
    let service = UnixStream::connect(target)?;
    counts.open.fetch_add(1, Ordering::Relaxed);
    let answers = {
        let (service, client, counts) = (service.try_clone()?, client.try_clone()?, Arc::clone(counts));
        thread::spawn(move || {
            let count = |bytes: &[u8]| {
                counts.answered.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            };
            let _ = pass(&service, &client, count);
            let _ = client.shutdown(Shutdown::Both);
        })
    };
    let _ = pass(client, &service, |bytes| {
        counts.asked.fetch_add(1, Ordering::Relaxed);
        // A request's head begins a piece of its own: the client waits for the answer before it sends the next one.
        if ["GET /", "POST /", "DELETE /", "PUT /", "HEAD /"].iter().any(|method| bytes.starts_with(method.as_bytes())) {
            let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
            counts.requests.lock().unwrap().push((SystemTime::now(), String::from_utf8_lossy(line).into_owned()));
        }
    });
    let _ = service.shutdown(Shutdown::Both);
    let _ = answers.join();
    counts.open.fetch_sub(1, Ordering::Relaxed);
    Ok(())
}

fn pass(mut from: &UnixStream, mut to: &UnixStream, count: impl Fn(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        count(&buffer[..length]);
        to.write_all(&buffer[..length])?;
    }
}
