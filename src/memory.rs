//! The last word of the database, kept in a small file for a start without it.
//!
//! The file lies in the Recorder workspace, is written whole or not at all and only when the rows changed. Its first
//! line names the format and a SHA-256 of the rest; a file that is torn, foreign or too large is ignored, as recording
//! with wrong settings would be worse than waiting for the database.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::registry::Row;
use crate::text::fingerprint;

const NAME: &str = ".controller-state";
const FORMAT: &str = "silvasonic-controller state 1";
/// A thousand devices take 1 MiB.
const LIMIT: u64 = 16 << 20;

/// Where the file is.
fn path(workspace: &Path) -> PathBuf {
    workspace.join(NAME)
}

/// Replaces the file below the Recorder workspace, which is made if it is missing.
///
/// # Errors
/// What the file system says; the old file is untouched then.
pub fn save(workspace: &Path, rows: &[Row]) -> io::Result<()> {
    fs::create_dir_all(workspace)?;
    let rows = serde_json::to_string(rows)?;
    let new = workspace.join(format!("{NAME}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    write!(file, "{FORMAT} {}\n{rows}", fingerprint(&rows))?;
    // Renaming first and losing power then would leave an empty file in the place of the good one.
    file.sync_all()?;
    fs::rename(&new, path(workspace))
}

/// Reads the file, `None` if there is none.
///
/// # Errors
/// Why it cannot be used.
pub fn load(workspace: &Path) -> Result<Option<Vec<Row>>, String> {
    let path = path(workspace);
    let named = |what: &str| format!("{}: {what}", path.display());
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(LIMIT + 1).read_to_string(&mut text)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(&error.to_string())),
        Ok(_) if text.len() as u64 > LIMIT => return Err(named("expected at most 16 MiB")),
        Ok(_) => {}
    }
    let (head, rows) = text.split_once('\n').unwrap_or((&text, ""));
    let sum = head.strip_prefix(FORMAT).ok_or_else(|| named(&format!("expected a first line that begins with {FORMAT:?}")))?;
    if sum.trim() != fingerprint(rows) {
        return Err(named("its checksum is not that of its content"));
    }
    serde_json::from_str(rows).map(Some).map_err(|error| named(&error.to_string()))
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
        let whole = fs::read(path(&folder.0)).unwrap();
        for length in 0..whole.len() {
            fs::write(path(&folder.0), &whole[..length]).unwrap();
            assert!(load(&folder.0).is_err(), "{length} of {} bytes", whole.len());
        }
        for foreign in [&b"{}"[..], b"\xff\xfe", b"silvasonic-controller state 2 abc\n[]"] {
            fs::write(path(&folder.0), foreign).unwrap();
            assert!(load(&folder.0).is_err());
        }
    }
}
