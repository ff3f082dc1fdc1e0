//! Two small files that make the next start faster and independent of the database: the rows that it returned last, and
//! the properties of the Podman engine, as reading these takes longer than everything else before the first Recorder.
//!
//! The files are in the Recorder workspace. Each is replaced as a whole, and only when its content changed. The first
//! line contains the format and a SHA-256 of the rest. A file that is incomplete, of another format or too large is
//! refused: to record with wrong settings would be worse than to wait. A link, a pipe or a file of another user in the
//! place of one of them is neither read nor replaced. A disk can hang, so the running Controller reads and writes them
//! by a [`crate::saver::Saver`].

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::decide::container::Engine;
use crate::decide::registry::Row;
use crate::decide::saved::{Fitted, fit};
use crate::fs::{check_own, create_own, open_own, remove_own};
use crate::json;
use crate::text::fingerprint;

/// A file, the name of its format, and how faults are reported.
#[derive(Clone, Copy, Debug)]
pub struct CacheFile {
    name: &'static str,
    format: &'static str,
    /// Begin of the log line about a file that cannot be used.
    pub ignored: &'static str,
    /// Begin of the log line about a file that cannot be written.
    pub unsaved: &'static str,
}

/// The rows of the database.
pub const STATE: CacheFile = CacheFile {
    name: ".controller-state",
    format: "silvasonic-controller state 1",
    ignored: "ignoring the desired state saved by an earlier run",
    unsaved: "cannot save the desired state for a start without PostgreSQL",
};
/// The properties of the engine.
pub const ENGINE: CacheFile = CacheFile {
    name: ".controller-engine",
    format: "silvasonic-controller engine 1",
    ignored: "ignoring the properties of Podman saved by an earlier run",
    unsaved: "cannot save the properties of Podman for the next start",
};
/// The sessions that the database does not have yet.
pub const SESSIONS: CacheFile = CacheFile {
    name: ".controller-sessions",
    format: "silvasonic-controller sessions 1",
    ignored: "ignoring the sessions saved by an earlier run",
    unsaved: "cannot save the sessions that PostgreSQL does not have yet",
};
/// The Recorder folder that had a file system of its own. Not in the workspace, but in the state directory.
pub const MOUNT: CacheFile = CacheFile {
    name: "workspace",
    format: "silvasonic-controller workspace 1",
    ignored: "ignoring what an earlier run remembered about the workspace",
    unsaved: "cannot remember that the workspace has a file system of its own",
};
/// Longest file that is written and read, in bytes. A thousand devices take 1 MiB.
const LIMIT: usize = json::SIZE;
/// Longest content of such a file.
const CONTENT_LIMIT: usize = LIMIT - 256;

/// The content of a file, and what the log says about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    /// JSON.
    pub text: String,
    /// What was left out.
    pub note: Option<String>,
}

/// Composes the content of [`STATE`]. Rows that do not fit are left out, those of the microphones that are offline for
/// the longest time first.
///
/// # Errors
/// Why a row cannot be written as JSON.
pub fn state(rows: Vec<Row>) -> Result<Content, String> {
    state_within(rows, CONTENT_LIMIT)
}

fn state_within(rows: Vec<Row>, limit: usize) -> Result<Content, String> {
    let to_json = |rows: &[Row]| serde_json::to_string(rows).map_err(|error| error.to_string());
    let text = to_json(&rows)?;
    if text.len() <= limit {
        return Ok(Content { text, note: None });
    }
    let size = text.len();
    drop(text);
    // A comma for each row, and the brackets of the list.
    let Fitted { rows, left_out } = fit(rows, limit - 2, |row| serde_json::to_string(row).map_or(usize::MAX, |text| text.len() + 1));
    let note = format!(
        "the saved desired state is incomplete: {size} bytes exceed its limit of {limit}, so {} rows are left out, from {} to {}",
        left_out.count, left_out.first, left_out.last
    );
    Ok(Content { text: to_json(&rows)?, note: Some(note) })
}

/// Composes the content of [`ENGINE`], for the engine whose socket has this owner.
///
/// # Errors
/// Why it cannot be written as JSON.
pub fn engine(engine: &Engine, owner: u32) -> Result<Content, String> {
    serde_json::to_string(&(engine, owner)).map(|text| Content { text, note: None }).map_err(|error| error.to_string())
}

/// Loads the saved rows, `None` if there are none. Waits for the disk.
///
/// # Errors
/// Why the file cannot be used.
pub fn load(workspace: &Path) -> Result<Option<Vec<Row>>, String> {
    STATE.read(workspace)?.map(|text| STATE.parse(workspace, &text)).transpose()
}

impl CacheFile {
    fn path(self, workspace: &Path) -> PathBuf {
        workspace.join(self.name)
    }

    /// Replaces the file. Creates the workspace if it is missing.
    ///
    /// # Errors
    /// Path and cause; the old file is unchanged then.
    pub fn write(self, workspace: &Path, content: &str) -> Result<(), String> {
        let (path, new) = (self.path(workspace), workspace.join(format!("{}.new", self.name)));
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("{path}: {error}")
        };
        fs::create_dir_all(workspace).map_err(at(workspace))?;
        check_own(&path).map_err(at(&path))?;
        let mut file = create_own(&new).map_err(at(&new))?;
        let written = write!(file, "{} {}\n{content}", self.format, fingerprint(content))
            // Without this, a power failure after the rename could replace the old file by an empty one.
            .and_then(|()| file.sync_all())
            // Whatever has taken its place meanwhile is not replaced.
            .and_then(|()| check_own(&path))
            .and_then(|_| fs::rename(&new, &path));
        written.map_err(|error| {
            // It may have filled the disk.
            let _ = remove_own(&new);
            at(&path)(error)
        })
    }

    /// The content, `None` if there is no file.
    ///
    /// # Errors
    /// Path and cause.
    pub fn read(self, workspace: &Path) -> Result<Option<String>, String> {
        let path = self.path(workspace);
        self.read_file(&path).map_err(|what| format!("{}: {what}", path.display()))
    }

    fn read_file(self, path: &Path) -> Result<Option<String>, String> {
        let file = match open_own(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| error.to_string())?,
        };
        let too_large = |size: u64| format!("expected at most {LIMIT} bytes, found {size}");
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        if size > LIMIT as u64 {
            return Err(too_large(size));
        }
        let mut text = String::new();
        // It may grow meanwhile.
        file.take(LIMIT as u64 + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text.len() > LIMIT {
            return Err(too_large(text.len() as u64));
        }
        let (head, content) = text.split_once('\n').unwrap_or((&text, ""));
        let sum = head.strip_prefix(self.format).ok_or_else(|| format!("expected a first line that begins with {:?}", self.format))?;
        if sum.trim() != fingerprint(content) {
            return Err("the checksum does not match the content".to_owned());
        }
        let start = text.len() - content.len();
        text.drain(..start);
        Ok(Some(text))
    }

    /// Parses the content.
    ///
    /// # Errors
    /// Path and cause.
    pub fn parse<T: DeserializeOwned>(self, workspace: &Path, content: &str) -> Result<T, String> {
        json::from_str(content).map_err(|error| format!("{}: {error}", self.path(workspace).display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sorted_map::SortedMap;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
    use std::os::unix::net::UnixListener;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("silvasonic-cache-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn rows() -> Vec<Row> {
        let row = |kind: &str, body: Option<&str>| Row {
            kind: kind.to_owned(),
            key: "k\n".to_owned(),
            body: body.map(str::to_owned),
            fault: None,
        };
        vec![row("device", Some("{\"a\": 1}")), row("profile", None)]
    }

    fn save(workspace: &Path, rows: Vec<Row>) -> Result<(), String> {
        STATE.write(workspace, &state(rows).unwrap().text)
    }

    #[test]
    fn saved_rows_are_loaded() {
        let folder = Folder::new("round");
        assert_eq!(load(&folder.0), Ok(None));
        save(&folder.0, Vec::new()).unwrap();
        save(&folder.0, rows()).unwrap();
        assert_eq!(load(&folder.0), Ok(Some(rows())));
    }

    #[test]
    fn an_incomplete_or_foreign_file_is_refused() {
        let folder = Folder::new("incomplete");
        save(&folder.0, rows()).unwrap();
        let whole = fs::read(STATE.path(&folder.0)).unwrap();
        for length in 0..whole.len() {
            fs::write(STATE.path(&folder.0), &whole[..length]).unwrap();
            assert!(load(&folder.0).is_err(), "{length} of {} bytes", whole.len());
        }
        for foreign in [&b"{}"[..], b"\xff\xfe", b"silvasonic-controller state 2 abc\n[]"] {
            fs::write(STATE.path(&folder.0), foreign).unwrap();
            assert!(load(&folder.0).is_err());
        }
    }

    /// What somebody may leave in the place of a file, and the words for it.
    const THINGS: [(&str, &str); 7] = [
        ("fifo", "expected a regular file, found a named pipe"),
        ("link", "expected a regular file, found a symbolic link"),
        ("dangling", "expected a regular file, found a symbolic link"),
        ("folder", "expected a regular file, found a folder"),
        ("socket", "expected a regular file, found a socket"),
        ("huge", "expected at most 16777216 bytes, found 10737418240"),
        ("foreign", "expected a file of user"),
    ];

    fn place(thing: &str, path: &Path) {
        match thing {
            "fifo" => rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap(),
            "link" => symlink(path.with_file_name("target"), path).unwrap(),
            "dangling" => symlink(path.with_file_name("nothing"), path).unwrap(),
            "folder" => fs::create_dir(path).unwrap(),
            "socket" => drop(UnixListener::bind(path).unwrap()),
            "huge" => fs::File::create(path).unwrap().set_len(10 << 30).unwrap(),
            _ => {
                fs::write(path, "theirs").unwrap();
                chown(path, Some(12345), None).unwrap();
            }
        }
    }

    /// What is in a folder, and its contents.
    fn listing(folder: &Path) -> SortedMap<String, String> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let (name, path) = (entry.as_ref().unwrap().file_name(), entry.unwrap().path());
            let found = fs::symlink_metadata(&path).unwrap();
            let text = if found.is_file() && found.len() < 1 << 20 { fs::read_to_string(&path).unwrap() } else { String::new() };
            let is_special = found.file_type().is_fifo() || found.file_type().is_socket();
            (name.into_string().unwrap(), format!("{} {is_special} {} {text}", crate::fs::kind(found.file_type()), found.uid()))
        };
        fs::read_dir(folder).unwrap().map(entry).collect()
    }

    #[test]
    fn what_is_not_our_file_is_neither_read_nor_replaced() {
        // To give a file to another user needs root.
        let is_root = rustix::process::geteuid().is_root();
        for (thing, expected) in THINGS.iter().filter(|(thing, _)| is_root || *thing != "foreign") {
            for file in [STATE, ENGINE] {
                for name in [file.name.to_owned(), format!("{}.new", file.name)] {
                    let folder = Folder::new("things");
                    fs::write(folder.0.join("target"), "somebody's").unwrap();
                    let is_new = name != file.name;
                    place(thing, &folder.0.join(&name));
                    let before = listing(&folder.0);
                    let read = file.read(&folder.0);
                    match is_new {
                        true => assert_eq!(read, Ok(None), "{thing} {name}"),
                        false => assert_eq!(read.unwrap_err().split_once(&format!("{name}: {expected}")).unwrap().0.lines().count(), 1),
                    }
                    let written = file.write(&folder.0, "[]");
                    // A regular file of ours is replaced, whatever its size.
                    if *thing == "huge" {
                        assert_eq!((written, file.read(&folder.0)), (Ok(()), Ok(Some("[]".to_owned()))), "{name}");
                    } else {
                        assert!(written.unwrap_err().contains(&format!("{name}: {expected}")), "{thing} {name}");
                        assert_eq!(listing(&folder.0), before, "{thing} {name}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_file_of_the_owner_of_the_folder_is_our_own() {
        let folder = Folder::new("owner");
        save(&folder.0, rows()).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(STATE.path(&folder.0), Some(12345), None).unwrap();
            assert!(load(&folder.0).is_err());
            chown(&folder.0, Some(12345), None).unwrap();
        }
        assert_eq!(load(&folder.0), Ok(Some(rows())));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_what_is_written_can_be_read() {
        let row = |n: usize| Row {
            kind: "device".to_owned(),
            key: format!("d{n:03}"),
            body: Some(format!(
                "{{\"status\": \"{}\", \"last_seen\": \"2026-01-{:02}\"}}",
                if n < 90 { "offline" } else { "online" },
                n % 28
            )),
            fault: None,
        };
        let all: Vec<Row> = (0..100).map(row).collect();
        let whole = serde_json::to_string(&all).unwrap().len();
        assert_eq!(state_within(all.clone(), whole).unwrap().note, None);
        for limit in [whole - 1, whole / 2, whole / 9, 2] {
            let content = state_within(all.clone(), limit).unwrap();
            assert!(content.text.len() <= limit, "{} of {limit}", content.text.len());
            let kept: Vec<Row> = serde_json::from_str(&content.text).unwrap();
            let note = content.note.unwrap();
            assert!(note.contains(&format!("so {} rows are left out", all.len() - kept.len())) && !note.contains('\n'), "{note}");
        }
        // The longest content that is written fits with its first line.
        let head = format!("{} {}\n", STATE.format, fingerprint(""));
        assert!(head.len() + CONTENT_LIMIT <= LIMIT);
        let folder = Folder::new("limit");
        let largest = format!("[]{}", " ".repeat(CONTENT_LIMIT - 2));
        STATE.write(&folder.0, &largest).unwrap();
        assert_eq!(load(&folder.0), Ok(Some(Vec::new())));
    }
}
