//! Where files are: `.buffer/raw` while they are written, `data/raw` when they are whole.
//!
//! Invariant: a file in `data/raw` is whole, and none is ever overwritten.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::name::{self, Run};

#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Unfinished files.
    pub(super) buffer: PathBuf,
    /// Whole files.
    pub(super) data: PathBuf,
}

impl Place {
    pub(super) fn below(workspace: &Path) -> Place {
        Place { buffer: workspace.join(".buffer/raw"), data: workspace.join("data/raw") }
    }

    /// Creates the folders.
    pub(super) fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.buffer)?;
        fs::create_dir_all(&self.data)
    }

    /// Bytes that may still be written to the disk, without root's own reserve.
    pub(super) fn free(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.data)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Moves an unfinished file to where whole ones are. Another file that has its name keeps it.
    pub(super) fn publish(&self, file: &Path, start: SystemTime, duration: Duration, run: &Run, number: u32) -> io::Result<PathBuf> {
        for number in number.. {
            let target = self.data.join(name::file_name(start, duration, run, number));
            match fs::symlink_metadata(&target) {
                Err(error) if error.kind() == ErrorKind::NotFound => return fs::rename(file, &target).map(|()| target),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }
}
