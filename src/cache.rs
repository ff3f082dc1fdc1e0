//! What is worth knowing at the next start, kept in two small files: the last word of the database, for a start without
//! it, and what engine Podman is, as asking takes longer than everything else before the first Recorder.
//!
//! The files lie in the Recorder workspace, are written whole or not at all and only when something changed. The first
//! line names the format and a SHA-256 of the rest; a file that is torn, foreign or too large is ignored, as recording
//! with wrong settings would be worse than waiting.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decide::container::Engine;
use crate::decide::registry::Row;
use crate::text::fingerprint;

/// One of the files.
#[derive(Clone, Copy, Debug)]
struct CacheFile {
    name: &'static str,
    format: &'static str,
}

const STATE: CacheFile = CacheFile { name: ".controller-state", format: "silvasonic-controller state 1" };
const ENGINE: CacheFile = CacheFile { name: ".controller-engine", format: "silvasonic-controller engine 1" };
/// A thousand devices take 1 MiB.
const LIMIT: u64 = 16 << 20;

/// Replaces the database's last word below the Recorder workspace, which is made if it is missing.
///
/// # Errors
/// What the file system says; the old file is untouched then.
pub fn save(workspace: &Path, rows: &[Row]) -> io::Result<()> {
    STATE.write(workspace, &rows)
}

/// Reads the database's last word, `None` if there is none.
///
/// # Errors
/// Why it cannot be used.
pub fn load(workspace: &Path) -> Result<Option<Vec<Row>>, String> {
    STATE.read(workspace)
}

/// Replaces what is known of the engine behind a socket of that owner.
///
/// # Errors
/// What the file system says; the old file is untouched then.
pub fn save_engine(workspace: &Path, engine: &Engine, owner: u32) -> io::Result<()> {
    ENGINE.write(workspace, &(engine, owner))
}

/// The engine behind the socket and the socket's owner, `None` if nothing is known.
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
        // Renaming first and losing power then would leave an empty file in the place of the good one.
        file.sync_all()?;
        fs::rename(&new, self.path(workspace))
    }

    fn read<T: DeserializeOwned>(self, workspace: &Path) -> Result<Option<T>, String> {
        read(&self.path(workspace), self.format)
    }
}

fn read<T: DeserializeOwned>(path: &Path, format: &str) -> Result<Option<T>, String> {
    let named = |what: &str| format!("{}: {what}", path.display());
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_string(&mut text)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(&error.to_string())),
        Ok(_) if text.len() as u64 > LIMIT => return Err(named("expected at most 16 MiB")),
        Ok(_) => {}
    }
    let (head, content) = text.split_once('\n').unwrap_or((&text, ""));
    let sum = head.strip_prefix(format).ok_or_else(|| named(&format!("expected a first line that begins with {format:?}")))?;
    if sum.trim() != fingerprint(content) {
        return Err(named("its checksum is not that of its content"));
    }
    serde_json::from_str(content).map(Some).map_err(|error| named(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("silvasonic-memory-{name}-{}", std::process::id()));
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
        let row = |kind: &str, body: Option<&str>| Row { kind: kind.to_owned(), key: "k\n".to_owned(), body: body.map(str::to_owned) };
        vec![row("device", Some("{\"a\": 1}")), row("profile", None)]
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = Folder::new("round");
        assert_eq!(load(&folder.0), Ok(None));
        save(&folder.0, &[]).unwrap();
        save(&folder.0, &rows()).unwrap();
        assert_eq!(load(&folder.0), Ok(Some(rows())));
    }

    #[test]
    fn a_torn_or_foreign_file_is_refused() {
        let folder = Folder::new("torn");
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
