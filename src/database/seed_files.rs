//! Reads the files that contain what is seeded, without anybody waiting for their disk.
//!
//! A thread `config` exists only while it reads; there is at most one. The built-in copies need no thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config_folder::ConfigFolder;
use crate::database::seed::Content;
use crate::decide::worker::Worker;

/// What was read longer ago is read again.
const FRESH: Duration = Duration::from_secs(5);

/// The files; clones share what was read.
#[derive(Clone)]
pub struct SeedFiles {
    folder: ConfigFolder,
    reading: Arc<Mutex<Reading>>,
    /// Called at the end of each reading by the thread, with the declared workers, if they are known.
    done: Arc<dyn Fn(Option<Vec<Worker>>) + Send + Sync>,
}

enum Reading {
    Idle,
    UnderWay,
    /// What was read, and when.
    Done(Box<Content>, Instant),
}

impl SeedFiles {
    /// Nothing is read yet. `done` is called whenever the thread has read the files, with the declared workers, if they
    /// are known.
    #[must_use]
    pub fn new(folder: ConfigFolder, done: impl Fn(Option<Vec<Worker>>) + Send + Sync + 'static) -> Self {
        Self { folder, reading: Arc::new(Mutex::new(Reading::Idle)), done: Arc::new(done) }
    }

    /// Begins to read, unless that is under way.
    pub fn request(&self) {
        let mut reading = self.reading();
        if matches!(*reading, Reading::UnderWay) {
            return;
        }
        let files = self.clone();
        let read = move || {
            let content = Content::read(&files.folder);
            let workers = content.workers();
            *files.reading() = Reading::Done(Box::new(content), Instant::now());
            (files.done)(workers);
        };
        let started = thread::Builder::new().name("config".to_owned()).stack_size(256 << 10).spawn(read);
        // Without a thread, the next call tries again.
        *reading = if started.is_ok() { Reading::UnderWay } else { Reading::Idle };
    }

    /// The content; `None` if it is being read now.
    #[must_use]
    pub fn take(&self) -> Option<Content> {
        if self.folder.is_built_in() {
            return Some(Content::read(&self.folder));
        }
        {
            let mut reading = self.reading();
            match std::mem::replace(&mut *reading, Reading::Idle) {
                Reading::Done(content, at) if at.elapsed() < FRESH => return Some(*content),
                Reading::UnderWay => *reading = Reading::UnderWay,
                Reading::Idle | Reading::Done(..) => {}
            }
        }
        self.request();
        None
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
