//! A sound card that is none: a named pipe that gets frames in real time, and an ALSA configuration that makes `hw:N,M`
//! read it by ALSA's `file` plugin.
//!
//! The plugin does not notice a short read. So each write is as long as a read of the Recorder, and a whole number of memory
//! pages: what the pipe cannot take as a whole is missed, as by a real card.

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most that a user may give to a pipe.
const PIPE: usize = 1 << 20;
const NONBLOCK: i32 = 0o4000;

/// Writes the bytes of a frame.
pub(crate) type Wave = fn(frame: u64, bytes: &mut Vec<u8>);

/// A source of frames, and the pipe to which it gives them.
pub(crate) struct Sound {
    pipe: File,
    frame_bytes: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    given: AtomicU64,
    missed: AtomicU64,
    closed: AtomicBool,
    stop: AtomicBool,
}

impl Sound {
    /// Makes the pipe, and gives frames from the moment on at which somebody reads.
    pub(crate) fn start(path: &Path, rate: u32, wave: Wave) -> Sound {
        mknodat(CWD, path, FileType::Fifo, Mode::from(0o666), 0).unwrap();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        // For reading, too: so a Recorder that ends does not end the pipe.
        let pipe = OpenOptions::new().read(true).write(true).custom_flags(NONBLOCK).open(path).unwrap();
        rustix::pipe::fcntl_setpipe_size(&pipe, PIPE).unwrap();
        let shared = Arc::new(Shared::default());
        let mut frame = Vec::new();
        wave(0, &mut frame);
        let thread = thread::spawn({
            let (pipe, shared) = (pipe.try_clone().unwrap(), Arc::clone(&shared));
            move || give(pipe, &shared, rate, wave)
        });
        Sound { pipe, frame_bytes: frame.len(), shared, thread: Some(thread) }
    }

    /// Frames that were given to the pipe.
    pub(crate) fn given(&self) -> u64 {
        self.shared.given.load(Ordering::SeqCst)
    }

    /// Frames for which the pipe had no room.
    pub(crate) fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::SeqCst)
    }

    /// Frames that nobody has read yet.
    pub(crate) fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.pipe).unwrap() / self.frame_bytes as u64
    }

    /// As a card that nobody has opened: the frames from now on are missed, and those that nobody has read.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // The next one is missed, so that none is on its way after it.
        let missed = self.missed();
        while self.missed() == missed {
            thread::sleep(Duration::from_millis(1));
        }
        let (mut pipe, mut bytes) = (&self.pipe, [0; 1 << 16]);
        loop {
            match pipe.read(&mut bytes) {
                Ok(read) => {
                    let frames = (read / self.frame_bytes) as u64;
                    self.shared.given.fetch_sub(frames, Ordering::SeqCst);
                    self.shared.missed.fetch_add(frames, Ordering::SeqCst);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// As a card that somebody has opened.
    pub(crate) fn open(&self) {
        self.shared.closed.store(false, Ordering::SeqCst);
    }

    /// Gives no more frames; those in the pipe stay.
    pub(crate) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Sound {
    fn drop(&mut self) {
        self.stop();
    }
}

/// As many frames as the Recorder reads at once.
fn period(rate: u32) -> u64 {
    1 << (rate / 10).ilog2()
}

fn give(mut pipe: File, shared: &Shared, rate: u32, wave: Wave) {
    let start = Instant::now();
    let (mut frame, mut bytes) = (0, Vec::new());
    while !shared.stop.load(Ordering::SeqCst) {
        bytes.clear();
        (frame..frame + period(rate)).for_each(|frame| wave(frame, &mut bytes));
        assert_eq!(bytes.len() % 4096, 0, "{} bytes are no whole pages", bytes.len());
        frame += period(rate);
        let due = start + Duration::from_nanos(frame * 1_000_000_000 / u64::from(rate));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let has_room = !shared.closed.load(Ordering::SeqCst) && rustix::io::ioctl_fionread(&pipe).unwrap() as usize + bytes.len() <= PIPE;
        let count = if has_room { &shared.given } else { &shared.missed };
        if has_room {
            assert_eq!(pipe.write(&bytes).unwrap(), bytes.len());
        }
        count.fetch_add(period(rate), Ordering::SeqCst);
    }
}

/// An ALSA configuration in which each card is this pipe.
pub(crate) fn alsa_config(pipe: &str) -> String {
    format!(
        "pcm.hw {{\n\
         \x20   @args [ CARD DEV ]\n\
         \x20   @args.CARD {{ type string }}\n\
         \x20   @args.DEV {{ type string default \"0\" }}\n\
         \x20   type file\n\
         \x20   slave.pcm {{ type null }}\n\
         \x20   file \"/dev/null\"\n\
         \x20   infile \"{pipe}\"\n\
         \x20   format raw\n\
         }}\n"
    )
}
