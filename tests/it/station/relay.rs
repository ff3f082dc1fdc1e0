//! A relay between the Controller and a service. It passes bytes on, and disturbs the answers in the way that it is told
//! to. It knows no protocol: what arrives from the service until the next bytes of the client is one answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown, sockopt};

/// What happens to answers. Numbers of bytes count from the beginning of the fault, for each connection.
#[derive(Clone, Debug)]
pub(crate) enum Disturbance {
    /// They arrive byte by byte, with this pause.
    Drip(Duration),
    /// They arrive only after this time.
    Delay(Duration),
    /// The connection ends after so many bytes.
    Cut(usize),
    /// It ends with a reset; over a Unix socket, with an end.
    Reset(usize),
    /// Answers end after so many bytes, but the connection still takes requests.
    HalfClose(usize),
    /// Each arrives twice.
    Repeat,
    /// Each is the one to the request before.
    Shift,
    /// These bytes are the answer to each request, which the service does not receive.
    Fake(Vec<u8>),
    /// The same, and the connection ends.
    FakeEnd(Vec<u8>),
    /// These bytes are the answer, followed by more and more of those.
    Endless(Vec<u8>, Vec<u8>),
}

/// Where a relay or a service listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// A socket with this path.
    Unix(PathBuf),
    /// A port of the loopback interface; a relay takes any free one for 0.
    Tcp(u16),
}

/// The relay; its threads end with the test process.
pub(crate) struct Relay {
    address: Address,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    current: Mutex<Current>,
    changed: Condvar,
}

#[derive(Default)]
struct Current {
    disturbance: Option<Arc<Disturbance>>,
    /// Increases with each change.
    generation: u64,
    /// How many pieces of answers were disturbed.
    disturbed: usize,
    /// The last answer of any connection.
    last: Vec<u8>,
}

impl Relay {
    pub(crate) fn new(address: Address, target: Address) -> Relay {
        let shared = Arc::<Shared>::default();
        let (address, listener): (Address, OwnedFd) = match address {
            Address::Unix(path) => (Address::Unix(path.clone()), UnixListener::bind(path).unwrap().into()),
            Address::Tcp(port) => {
                let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
                (Address::Tcp(listener.local_addr().unwrap().port()), listener.into())
            }
        };
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok(client) = rustix::net::accept(&listener) {
                let (shared, target) = (Arc::clone(&server), target.clone());
                thread::spawn(move || drop(serve(client, &target, &shared)));
            }
        });
        Relay { address, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        match self.address {
            Address::Tcp(port) => port,
            Address::Unix(_) => panic!("a Unix socket has no port"),
        }
    }

    /// From now on this happens to all answers.
    pub(crate) fn set(&self, disturbance: Disturbance) {
        self.change(Some(disturbance));
    }

    /// Everything is passed on again. What was held back arrives at once.
    pub(crate) fn clear(&self) {
        self.change(None);
    }

    fn change(&self, disturbance: Option<Disturbance>) {
        let mut current = self.shared.current();
        (current.disturbance, current.disturbed) = (disturbance.map(Arc::new), 0);
        current.generation += 1;
        self.shared.changed.notify_all();
    }

    /// How many pieces of answers were disturbed in this way.
    pub(crate) fn disturbed(&self) -> usize {
        self.shared.current().disturbed
    }
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap()
    }

    /// The present disturbance, with its number.
    fn now(&self) -> (Option<Arc<Disturbance>>, u64) {
        let current = self.current();
        (current.disturbance.clone(), current.generation)
    }

    fn note(&self) {
        self.current().disturbed += 1;
    }

    /// Waits, at most as long as this disturbance lasts.
    fn pause(&self, generation: u64, time: Duration) {
        let until = Instant::now() + time;
        let mut current = self.current();
        while current.generation == generation {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            current = self.changed.wait_timeout(current, left).unwrap().0;
        }
    }
}

impl Address {
    fn connect(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Address::Unix(path) => UnixStream::connect(path)?.into(),
            Address::Tcp(port) => TcpStream::connect(("127.0.0.1", *port))?.into(),
        })
    }
}

/// Both ends of a connection; they are closed when both threads have dropped them.
struct Pair {
    client: File,
    service: Option<File>,
    exchange: Mutex<Exchange>,
}

#[derive(Default)]
struct Exchange {
    /// The disturbance when the last request arrived.
    asked: u64,
    /// What the service has answered to it.
    answer: Vec<u8>,
}

fn serve(client: OwnedFd, target: &Address, shared: &Arc<Shared>) -> io::Result<()> {
    let _ = sockopt::set_tcp_nodelay(&client, true); // fails over a Unix socket
    // Faked answers need no service.
    let service = target.connect().ok();
    if let Some(service) = &service {
        let _ = sockopt::set_tcp_nodelay(service, true);
    }
    let pair = Arc::new(Pair { client: client.into(), service: service.map(File::from), exchange: Mutex::default() });
    if pair.service.is_some() {
        let (pair, shared) = (Arc::clone(&pair), Arc::clone(shared));
        thread::spawn(move || {
            let ended = pair.answers(&shared);
            // The other thread drops the pair, too, and a reset closes the socket without an end.
            let how = if matches!(ended, Ok(Ended::Reset)) { Shutdown::Read } else { Shutdown::Both };
            let _ = shutdown(&pair.client, how);
        });
    }
    let result = pair.requests(shared);
    if let Some(service) = &pair.service {
        let _ = shutdown(service, Shutdown::Both);
    }
    result
}

impl Exchange {
    /// A request arrives; the answer to the one before.
    fn next(&mut self, asked: u64) -> Vec<u8> {
        self.asked = asked;
        std::mem::take(&mut self.answer)
    }

    /// Keeps what belongs to the answer, but not all of an endless one. Returns the disturbance of its request.
    fn keep(&mut self, piece: &[u8]) -> u64 {
        if self.answer.len() < 1 << 20 {
            self.answer.extend_from_slice(piece);
        }
        self.asked
    }
}

/// How answers ended.
enum Ended {
    Normally,
    Reset,
}

impl Pair {
    /// Passes requests on until the client goes away.
    fn requests(&self, shared: &Shared) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = (&self.client).read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let (disturbance, generation) = shared.now();
            let previous = self.exchange.lock().unwrap().next(generation);
            let is_next = !previous.is_empty();
            if is_next {
                shared.current().last.clone_from(&previous);
            }
            match disturbance.as_deref() {
                Some(Disturbance::Fake(bytes)) => {
                    shared.note();
                    (&self.client).write_all(bytes)?;
                    continue;
                }
                Some(Disturbance::FakeEnd(bytes)) => {
                    shared.note();
                    return (&self.client).write_all(bytes);
                }
                Some(Disturbance::Endless(begin, more)) => {
                    shared.note();
                    (&self.client).write_all(begin)?;
                    while shared.now().1 == generation {
                        (&self.client).write_all(more)?;
                    }
                    return Ok(());
                }
                Some(Disturbance::Shift) => {
                    shared.note();
                    let other = if is_next { previous } else { shared.current().last.clone() };
                    (&self.client).write_all(&other)?;
                }
                _ => {}
            }
            let Some(mut service) = self.service.as_ref() else { return Ok(()) };
            service.write_all(&buffer[..count])?;
        }
    }

    /// Passes answers on, or disturbs them, until the service goes away.
    fn answers(&self, shared: &Shared) -> io::Result<Ended> {
        let mut buffer = vec![0; 64 << 10];
        let (mut counted, mut passed) = (0, 0);
        let mut service = self.service.as_ref().expect("a service that answers");
        loop {
            let count = service.read(&mut buffer)?;
            if count == 0 {
                return Ok(Ended::Normally);
            }
            let piece = &buffer[..count];
            let asked = self.exchange.lock().unwrap().keep(piece);
            let (disturbance, generation) = shared.now();
            if counted != generation {
                (counted, passed) = (generation, 0);
            }
            let Some(disturbance) = disturbance else {
                (&self.client).write_all(piece)?;
                continue;
            };
            match *disturbance {
                Disturbance::Drip(pause) => {
                    for byte in piece {
                        (&self.client).write_all(&[*byte])?;
                        shared.pause(generation, pause);
                    }
                }
                Disturbance::Delay(time) => {
                    shared.note();
                    shared.pause(generation, time);
                    (&self.client).write_all(piece)?;
                    continue;
                }
                Disturbance::Cut(limit) | Disturbance::Reset(limit) | Disturbance::HalfClose(limit) => {
                    let part = count.min(limit - passed);
                    (&self.client).write_all(&piece[..part])?;
                    passed += part;
                    if passed < limit {
                        continue;
                    }
                    shared.note();
                    match *disturbance {
                        Disturbance::Cut(_) => return Ok(Ended::Normally),
                        Disturbance::Reset(_) => {
                            let _ = sockopt::set_socket_linger(&self.client, Some(Duration::ZERO));
                            return Ok(Ended::Reset);
                        }
                        _ => {
                            shutdown(&self.client, Shutdown::Write)?;
                            while service.read(&mut buffer)? > 0 {}
                            return Ok(Ended::Normally);
                        }
                    }
                }
                Disturbance::Repeat => (&self.client).write_all(&piece.repeat(2))?,
                // The request that follows is answered with it.
                Disturbance::Shift if asked == generation => continue,
                // The request came before.
                Disturbance::Shift | Disturbance::Fake(_) | Disturbance::FakeEnd(_) | Disturbance::Endless(..) => {
                    (&self.client).write_all(piece)?;
                    continue;
                }
            }
            shared.note();
        }
    }
}
