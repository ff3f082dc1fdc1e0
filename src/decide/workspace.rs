//! Whether the workspace is on the file system on which it is expected.
//!
//! A Recorder keeps the folder that it was started with. If a disk is mounted over the workspace later, or is missing at
//! the start, it records to the root file system, where nobody looks for the recordings. This is reported; no Recorder is
//! touched because of it.

use std::path::{Path, PathBuf};

/// What the next step is, if Recorders write to another file system than they should.
const RESTART: &str = "restart the Controller and its Recorders";

/// Where the folder of the Recorders is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Id of the file system, as `/proc/self/mountinfo` shows it: `8:1`.
    pub device: String,
    /// Whether the folder exists; otherwise, `device` is that of the nearest folder above it.
    pub exists: bool,
    /// Whether it is on the root file system.
    pub is_root: bool,
    /// The folder at which `/etc/fstab` mounts another one.
    pub mount_point: Option<String>,
    /// Why the Controller cannot create folders in it.
    pub refused: Option<String>,
}

/// What earlier looks at the workspace have shown.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    /// The first file system on which the folder was found.
    device: Option<String>,
}

impl Workspace {
    /// The workspace at this path, not looked at yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, device: None }
    }

    /// The state as it is seen now. `was_mount` says whether it had a file system of its own in an earlier run.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn judge(&mut self, seen: &Placement, was_mount: bool) -> Result<String, String> {
        let path = self.path.display();
        if self.device.is_none() && seen.exists {
            self.device = Some(seen.device.clone());
        }
        if let Some(known) = self.device.as_ref().filter(|known| **known != seen.device) {
            return Err(format!(
                "{path} is on file system {}, but was on {known} when the Controller started: a disk was mounted or unmounted; if that is \
                 right, {RESTART}",
                seen.device
            ));
        }
        match &seen.mount_point {
            Some(mount_point) if seen.is_root => {
                return Err(format!(
                    "{path} is on the root file system, but /etc/fstab mounts another one at {mount_point}: mount it, then {RESTART}"
                ));
            }
            None if seen.is_root && was_mount => {
                return Err(format!(
                    "{path} is on the root file system, but had one of its own in an earlier run: mount the disk, then {RESTART}; if it has been \
                     given up, set another SILVASONIC_WORKSPACE_PATH"
                ));
            }
            _ => {}
        }
        match &seen.refused {
            Some(why) => Err(format!("cannot create folders in {path}: {why}")),
            None if seen.is_root => Ok(format!("{path} is on the root file system")),
            None => Ok(format!("{path} is on a file system of its own")),
        }
    }
}

/// The folder above `path` at which an `fstab` mounts a file system, the nearest one. Entries that mount a part of
/// another file system say nothing.
#[must_use]
pub fn mount_point(fstab: &str, path: &Path) -> Option<String> {
    let entries = fstab.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (folder, _, options) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
        let is_part = options.split(',').any(|option| matches!(option, "bind" | "rbind"));
        (folder != "/" && !is_part && path.starts_with(folder)).then_some(folder)
    });
    entries.max_by_key(|folder| folder.len()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Placement {
        Placement { device: "254:0".to_owned(), exists: true, is_root: true, mount_point: None, refused: None }
    }

    fn disk() -> Placement {
        Placement { device: "8:1".to_owned(), is_root: false, ..root() }
    }

    fn workspace() -> Workspace {
        Workspace::new("/mnt/data/workspace/recorder".into())
    }

    #[test]
    fn a_workspace_that_stays_where_it_is_expected_is_well() {
        let fstab = Placement { mount_point: Some("/mnt/data".to_owned()), ..disk() };
        for (seen, was_mount, expected) in [
            (root(), false, "on the root file system"),
            (disk(), false, "on a file system of its own"),
            (disk(), true, "on a file system of its own"),
            (fstab, false, "on a file system of its own"),
        ] {
            let mut workspace = workspace();
            for _ in 0..2 {
                assert_eq!(workspace.judge(&seen, was_mount), Ok(format!("/mnt/data/workspace/recorder is {expected}")), "{seen:?}");
            }
        }
    }

    #[test]
    fn another_file_system_is_reported_until_the_first_one_is_back() {
        let absent = |seen: &Placement| Placement { exists: false, ..seen.clone() };
        for (first, then) in [(root(), disk()), (root(), absent(&disk())), (disk(), root()), (disk(), absent(&root()))] {
            let mut workspace = workspace();
            assert!(workspace.judge(&first, false).is_ok());
            for _ in 0..2 {
                let why = workspace.judge(&then, false).unwrap_err();
                assert!(why.contains(" is on file system ") && why.contains("when the Controller started"), "{why}");
            }
            assert!(workspace.judge(&first, false).is_ok());
        }
        let mut workspace = workspace();
        assert!(workspace.judge(&root(), false).is_ok());
        let why = workspace.judge(&disk(), false).unwrap_err();
        assert!(why.starts_with("/mnt/data/workspace/recorder is on file system 8:1, but was on 254:0 when"), "{why}");
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_may_come_with_a_disk() {
        let mut workspace = workspace();
        let absent = Placement { exists: false, ..root() };
        assert!(workspace.judge(&absent, false).is_ok());
        assert!(workspace.judge(&disk(), false).is_ok());
        assert!(workspace.judge(&root(), false).is_err());
    }

    #[test]
    fn the_root_file_system_in_place_of_a_disk_is_an_error() {
        let fstab = Placement { mount_point: Some("/mnt/data".to_owned()), ..root() };
        for (seen, was_mount, expected) in [
            (&fstab, false, "is on the root file system, but /etc/fstab mounts another one at /mnt/data: mount it, then restart"),
            (&root(), true, "is on the root file system, but had one of its own in an earlier run: mount the disk, then restart"),
        ] {
            let why = workspace().judge(seen, was_mount).unwrap_err();
            assert!(why.starts_with(&format!("/mnt/data/workspace/recorder {expected}")), "{why}");
        }
    }

    #[test]
    fn a_folder_that_refuses_is_an_error() {
        let seen = Placement { refused: Some("Permission denied (os error 13)".to_owned()), ..disk() };
        let why = workspace().judge(&seen, false).unwrap_err();
        assert_eq!(why, "cannot create folders in /mnt/data/workspace/recorder: Permission denied (os error 13)");
    }

    #[test]
    fn the_nearest_mount_point_of_fstab_counts() {
        let fstab = "\
# a comment
/dev/mmcblk0p2 / ext4 defaults 0 1
/dev/sda1 /mnt/data ext4 nofail,x-systemd.device-timeout=10s 0 2
LABEL=x\t/mnt\tauto\tdefaults\t0\t2
/srv/other /mnt/data/workspace none bind 0 0
UUID=1 none swap sw 0 0
#/dev/sdb1 /mnt/data/workspace/recorder ext4 defaults 0 2
broken
";
        for (path, expected) in
            [("/mnt/data/workspace/recorder", Some("/mnt/data")), ("/mnt/database", Some("/mnt")), ("/srv/x", None), ("/", None)]
        {
            assert_eq!(mount_point(fstab, Path::new(path)).as_deref(), expected, "{path}");
        }
        assert_eq!(mount_point("", Path::new("/mnt")), None);
    }
}
