//! `silvasonic-controller setup`: prepares a station and starts the service.
//!
//! The steps are commands of other programs (apt, podman, psql, systemctl), so they are in a shell script of the package,
//! which takes the place of this process. In this program they would be larger, and no safer.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::cli::arguments::Arguments;

const SCRIPT: &str = "/usr/libexec/silvasonic/setup";

/// Executes the script. Returns only if that fails, and why.
#[must_use]
pub fn execute(given: &Arguments<'_>) -> String {
    let mut command = Command::new(SCRIPT);
    for option in ["--workspace", "--disk", "--image"] {
        if let Some(value) = given.value(option) {
            command.args([option, value]);
        }
    }
    if given.has("--yes") {
        command.arg("--yes");
    }
    let why = command.exec();
    match why.kind() {
        ErrorKind::NotFound => format!("{SCRIPT} does not exist: it is part of the Debian package, see docs/install.md"),
        _ => format!("{SCRIPT}: {why}"),
    }
}
