//! Two small files that make the next start faster and independent of the database: the rows that it returned last, and
//! the properties of the Podman engine, as reading these takes longer than everything else before the first Recorder.
//!
//! The files are in the Recorder workspace. Each is replaced as a whole, and only when its content changed. The first
//! line contains the format and a SHA-256 of the rest. A file that is incomplete, of another format or too large is
//! refused: to record with wrong settings would be worse than to wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decide::container::Engine;
use crate::decide::registry::Row;
use crate::json;
use crate::text::fingerprint;

/// A file, and the name of its format.
#[derive(Clone, Copy, Debug)]
struct CacheFile {
    name: &'static str,
    format: &'static str,
}

const STATE: CacheFile = CacheFile { name: ".controller-state", format: "silvasonic-controller state 1" };
const ENGINE: CacheFile = CacheFile { name: ".controller-engine", format: "silvasonic-controller engine 1" };
/// Longest content that is read, in bytes. A thousand devices take 1 MiB.
const LIMIT: u64 = 16 << 20;

/// Saves the rows of the database in the Recorder workspace, which is created if it is missing.
///
/// # Errors
/// The error of the file system; the old file is unchanged then.
pub fn save(workspace: &Path, rows: &[Row]) -> io::Result<()> {
    STATE.write(workspace, &rows)
}

/// Loads the saved rows, `None` if there are none.
///
/// # Errors
/// Why the file cannot be used.
pub fn load(workspace: &Path) -> Result<Option<Vec<Row>>, String> {
    STATE.read(workspace)
}

/// Saves the properties of the engine whose socket has this owner.
///
/// # Errors
/// The error of the file system; the old file is unchanged then.
pub fn save_engine(workspace: &Path, engine: &Engine, owner: u32) -> io::Result<()> {
    ENGINE.write(workspace, &(engine, owner))
}

/// Loads the properties of the engine and the owner of its socket, `None` if there are none.
///
/// # Errors
/// Why the file cannot be used.
pub fn load_engine(workspace: &Path) -> Result<Option<(Engine, u32)>, String> {
    ENGINE.read(workspace)
}

impl CacheFile {
    fn path(self, workspace: &Path) -> PathBuf {
        workspace.join(self.name)
    }

    fn write(self, workspace: &Path, content: &impl Serialize) -> io::Result<()> {
        fs::create_dir_all(workspace)?;
        let content = serde_json::to_string(content)?;
        let new = workspace.join(format!("{}.new", self.name));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        write!(file, "{} {}\n{content}", self.format, fingerprint(&content))?;
        // Without this, a power failure after the rename could replace the old file by an empty one.
        file.sync_all()?;
        fs::rename(&new, self.path(workspace))
    }

    fn read<T: DeserializeOwned>(self, workspace: &Path) -> Result<Option<T>, String> {
        read(&self.path(workspace), self.format)
    }
}

fn read<T: DeserializeOwned>(path: &Path, format: &str) -> Result<Option<T>, String> {
    let in_file = |what: &str| format!("{}: {what}", path.display());
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_string(&mut text)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(in_file(&error.to_string())),
        Ok(_) if text.len() as u64 > LIMIT => return Err(in_file("expected at most 16 MiB")),
        Ok(_) => {}
    }
    let (head, content) = text.split_once('\n').unwrap_or((&text, ""));
    let sum = head.strip_prefix(format).ok_or_else(|| in_file(&format!("expected a first line that begins with {format:?}")))?;
    if sum.trim() != fingerprint(content) {
        return Err(in_file("the checksum does not match the content"));
    }
    json::from_str(content).map(Some).map_err(|error| in_file(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn saved_rows_are_loaded() {
        let folder = Folder::new("round");
        assert_eq!(load(&folder.0), Ok(None));
        save(&folder.0, &[]).unwrap();
        save(&folder.0, &rows()).unwrap();
        assert_eq!(load(&folder.0), Ok(Some(rows())));
    }

    #[test]
    fn an_incomplete_or_foreign_file_is_refused() {
        let folder = Folder::new("incomplete");
        save(&folder.0, &rows()).unwrap();
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
}
