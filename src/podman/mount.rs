//! Whether the API socket is mounted as a file, as in a Compose file that names the socket and not its folder.
//!
//! Such a mount refers to the file that was there when the container started. A restart of `podman.socket` creates
//! another one, which the container never sees: only a restart of the container, or a mount of the folder, helps.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What to change.
pub const ADVICE: &str = "in the Compose file mount the folder of the socket, such as `- /run/podman:/run/podman`, instead of the socket, and \
                          set SILVASONIC_CONTAINER_SOCKET: /run/podman/podman.sock";

/// Whether a mount ends at this file.
#[must_use]
pub fn is_file_mount(socket: &Path) -> bool {
    let path = fs::canonicalize(socket).unwrap_or_else(|_| socket.to_owned());
    fs::read("/proc/self/mountinfo").is_ok_and(|mounts| is_mount_point(&mounts, path.as_os_str().as_bytes()))
}

fn is_mount_point(mountinfo: &[u8], path: &[u8]) -> bool {
    // The fifth field; the kernel writes white space and backslashes in it as octal numbers.
    let mut places = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    places.any(|place| unescaped(place) == path)
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| (b'0'..=b'7').contains(byte).then(|| u32::from(byte - b'0'));
    let mut rest = text;
    let mut bytes = Vec::with_capacity(text.len());
    while let [byte, after @ ..] = rest {
        let octal =
            || Some(after.get(..3)?.iter().map(digit).collect::<Option<Vec<_>>>()?.iter().fold(0, |number, digit| number * 8 + digit));
        match octal().filter(|_| *byte == b'\\').and_then(|number| u8::try_from(number).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_the_place_at_which_it_ends() {
        let mounts = b"22 1 0:21 / / rw,relatime - overlay overlay rw\n\
            30 22 0:25 /podman/podman.sock /var/run/container.sock rw,nosuid - tmpfs tmpfs rw\n\
            31 22 0:25 /podman/podman.sock//deleted /run/with\\040space\\134.sock rw - tmpfs tmpfs rw\n\
            32 22 0:25 /podman /run/podman rw,nosuid - tmpfs tmpfs rw\n\
            odd line\n";
        for (path, expected) in [
            ("/var/run/container.sock", true),
            ("/run/with space\\.sock", true),
            ("/run/podman", true),
            ("/run/podman/podman.sock", false),
            ("/podman/podman.sock", false),
            ("line", false),
        ] {
            assert_eq!(is_mount_point(mounts, path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn an_ordinary_file_is_no_mount() {
        assert!(!is_file_mount(Path::new("/nonexistent")));
        assert!(!is_file_mount(&std::env::current_exe().unwrap()));
    }
}
