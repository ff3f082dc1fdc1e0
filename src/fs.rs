//! Files that are opened without blocking, and files of our own: regular files that belong to this user, in a folder in
//! which other programs, or the user of a station, may leave anything under any name.
//!
//! A link is not followed, a named pipe is not waited for, and what is not our own is neither read nor replaced. A file
//! is our own if it belongs to this user or to the owner of the folder: on a disk without Unix owners (exFAT, or NFS that
//! maps root to another user), all files belong to the owner of the mounted folder.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;

/// Opens a file for reading. Does not block, even if the path is a named pipe without a writer.
///
/// # Errors
/// The error of the system call.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)
}

/// Reads a file of the kernel, at most `limit` bytes. The kernel returns its content in one read if the buffer is large
/// enough, and the standard library would begin with 32 bytes.
///
/// # Errors
/// The error of the system call.
pub fn read_kernel(path: &Path, limit: usize) -> io::Result<String> {
    let mut file = open(path)?;
    let (mut bytes, mut length) = (vec![0; limit], 0);
    loop {
        let count = match file.read(&mut bytes[length..]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        };
        length += count;
        // A short read is the end.
        if count == 0 || length < bytes.len() {
            break;
        }
    }
    bytes.truncate(length);
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// The first bytes of a short file, such as an attribute in sysfs, without white space at the ends; `None` if they cannot
/// be read as text.
#[must_use]
pub fn read_short(path: &Path, limit: u64) -> Option<String> {
    let mut text = String::new();
    open(path).ok()?.take(limit).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// Opens a file of our own for reading.
///
/// # Errors
/// It is no file of our own, or the error of the system call.
pub fn open_own(path: &Path) -> io::Result<File> {
    open_regular(path, OpenOptions::new().read(true)).and_then(|file| check(path, &file.metadata()?).map(|()| file))
}

/// Opens a regular file, whoever it belongs to.
///
/// # Errors
/// It is no regular file, or the error of the system call.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Before it is opened, as to open a device can have effects; and once more, as it can be replaced meanwhile.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        found => check_regular(found?.file_type())?,
    }
    let file = options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32).open(path)?;
    check_regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Creates a file. One of our own with the same name, which a crash has left behind, is removed first.
///
/// # Errors
/// Something else has this name, or the error of the system call.
pub fn create_own(path: &Path) -> io::Result<File> {
    remove_own(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)
}

/// Removes a file of our own, if there is one.
///
/// # Errors
/// Something else has this name, or the error of the system call.
pub fn remove_own(path: &Path) -> io::Result<()> {
    match check_own(path)? {
        true => fs::remove_file(path),
        false => Ok(()),
    }
}

/// Whether there is a file of our own.
///
/// # Errors
/// Something else has this name, or the error of the system call.
pub fn check_own(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        found => check(path, &found?).map(|()| true),
    }
}

/// Whether this user, or the owner of the folder, owns a file.
#[must_use]
pub fn is_own(path: &Path, found: &Metadata) -> bool {
    let is_of_folder = || path.parent().and_then(|folder| fs::metadata(folder).ok()).is_some_and(|folder| folder.uid() == found.uid());
    found.uid() == geteuid().as_raw() || is_of_folder()
}

fn check(path: &Path, found: &Metadata) -> io::Result<()> {
    check_regular(found.file_type())?;
    if is_own(path, found) {
        return Ok(());
    }
    Err(io::Error::other(format!("expected a file of user {}, found one of user {}", geteuid().as_raw(), found.uid())))
}

fn check_regular(found: FileType) -> io::Result<()> {
    if found.is_file() { Ok(()) } else { Err(io::Error::other(format!("expected a regular file, found {}", kind(found)))) }
}

/// A kind of file in words, with its article.
#[must_use]
pub fn kind(found: FileType) -> &'static str {
    match found {
        _ if found.is_file() => "a regular file",
        _ if found.is_dir() => "a folder",
        _ if found.is_symlink() => "a symbolic link",
        _ if found.is_fifo() => "a named pipe",
        _ if found.is_socket() => "a socket",
        _ => "a device",
    }
}
