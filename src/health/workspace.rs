//! Watches on which file system the workspace is, and remembers for the next run that it had one of its own.
//!
//! It is looked at with each heartbeat, by the thread that asks the disk for its free space. What is remembered must not
//! be on the disk that may be missing, so it is in the state directory of the service; without one, as in a container,
//! nothing is remembered.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use log::{error, info};
use rustix::fs::{Access, access, major, minor};

use crate::cache::{Content, MOUNT};
use crate::config::Config;
use crate::decide::workspace::{Placement, Workspace, mount_point};
use crate::saver::Saver;

/// The workspace, as far as it was looked at.
#[derive(Debug)]
pub struct Watch {
    workspace: Workspace,
    path: String,
    state: Option<Result<String, String>>,
    memory: Option<(Saver, Arc<OnceLock<Option<String>>>)>,
}

impl Watch {
    /// Begins to read what an earlier run remembered.
    ///
    /// # Errors
    /// The thread for the file cannot be started.
    pub fn start(config: &Config) -> io::Result<Self> {
        let remember = |folder| {
            let loaded = Arc::new(OnceLock::new());
            let outbox = Arc::clone(&loaded);
            Saver::start_json(MOUNT, folder, move |path: Option<String>| drop(outbox.set(path))).map(|saver| (saver, loaded))
        };
        Ok(Self {
            workspace: Workspace::new(config.workspace_local.clone()),
            path: config.workspace_local.display().to_string(),
            state: None,
            memory: config.state_dir.as_deref().map(remember).transpose()?,
        })
    }

    /// Handles a look at the workspace, and reports a change.
    pub fn update(&mut self, seen: &Placement) {
        let remembered = self.memory.as_ref().and_then(|(_, loaded)| loaded.get());
        let was_mount = remembered.is_some_and(|path| path.as_ref() == Some(&self.path));
        let state = self.workspace.judge(seen, was_mount);
        if let (Some((saver, _)), false, true) = (&self.memory, was_mount, seen.exists && !seen.is_root && state.is_ok()) {
            let path = self.path.clone();
            saver.save(move || Ok(Content { text: serde_json::Value::from(path).to_string(), note: None }));
        }
        match (&state, &self.state) {
            (Err(why), before) if before.as_ref().and_then(|before| before.as_ref().err()) != Some(why) => error!("{why}"),
            (Ok(how), Some(Err(_))) => info!("the workspace is as expected again: {how}"),
            _ => {}
        }
        self.state = Some(state);
    }

    /// The component of health checks; `None` until it was looked at.
    #[must_use]
    pub fn state(&self) -> Option<Result<&str, &str>> {
        self.state.as_ref().map(|state| state.as_deref().map_err(String::as_str))
    }
}

/// Where this folder is, with the `fstab` below `root`. Waits for the disk. `None` if that cannot be found out.
#[must_use]
pub fn placement(folder: &Path, root: &Path) -> Option<Placement> {
    let (nearest, device) = folder.ancestors().find_map(|folder| Some((folder, fs::metadata(folder).ok()?.dev())))?;
    let is_root = fs::metadata("/").ok()?.dev() == device;
    let fstab = is_root.then(|| fs::read_to_string(root.join("etc/fstab")).ok()).flatten();
    Some(Placement {
        device: format!("{}:{}", major(device), minor(device)),
        exists: nearest == folder,
        is_root,
        mount_point: fstab.and_then(|fstab| mount_point(&fstab, folder)),
        refused: access(nearest, Access::WRITE_OK | Access::EXEC_OK).err().map(|why| why.to_string()),
    })
}
