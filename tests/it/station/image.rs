//! Container images made on the spot: a tar file built in memory, sent to Podman's import call. No registry is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A root file system as an uncompressed ustar archive.
struct Archive(Vec<u8>);

impl Archive {
    /// What each of our images has: users, the `audio` group, and the mount points that Podman and the Recorder expect.
    fn base() -> Archive {
        let mut archive = Archive(Vec::new());
        for dir in ["bin", "etc", "proc", "sys", "dev", "run", "root", "var", "app", "app/workspace"] {
            archive.entry(dir, b'5', 0o755, "", b"");
        }
        archive.entry("tmp", b'5', 0o1777, "", b"");
        archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
        archive.file("etc/group", 0o644, b"root:x:0:\naudio:x:29:\nnogroup:x:65534:\n");
        archive
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, b'0', mode, "", content);
    }

    fn entry(&mut self, path: &str, kind: u8, mode: u32, target: &str, content: &[u8]) {
        let mut head = [0u8; 512];
        let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(157, target);
        put(257, "ustar\x0000");
        head[156] = kind;
        let sum: u32 = head.iter().map(|&byte| u32::from(byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&head);
        self.0.extend_from_slice(content);
        self.pad(512);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.pad(512);
        self.0
    }

    fn pad(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }
}

/// The Recorder's image: its statically linked program and nothing that could run beside it.
pub(crate) fn recorder() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let program = static_program("silvasonic-recorder");
        let mut archive = Archive::base();
        archive.file("silvasonic-recorder", 0o755, &fs::read(&program).unwrap_or_else(|e| panic!("{}: {e}", program.display())));
        archive.finish()
    })
}

/// The image of a Recorder that records, with this configuration of ALSA, or that of this machine.
pub(crate) fn recording(config: Option<&str>) -> Vec<u8> {
    let (program, libraries) = capturing_recorder();
    let mut archive = Archive::base();
    let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    archive.file("silvasonic-recorder", 0o755, &read(&program));
    for library in &libraries {
        archive.file(library.to_str().expect("an ASCII path").trim_start_matches('/'), 0o755, &read(library));
    }
    let config = config.map_or_else(|| read(Path::new("/usr/share/alsa/alsa.conf")), |config| config.as_bytes().to_vec());
    archive.file("usr/share/alsa/alsa.conf", 0o644, &config);
    archive.finish()
}

/// An image with a shell, for containers that misbehave on purpose.
pub(crate) fn busybox() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("busybox is missing: run tests/setup");
        let applets = Command::new(program).arg("--list").output().expect("busybox --list");
        let mut archive = Archive::base();
        archive.file("bin/busybox", 0o755, &fs::read(program).expect("busybox can be read"));
        for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
            archive.entry(&format!("bin/{applet}"), b'2', 0o777, "busybox", b"");
        }
        archive.finish()
    })
}

/// A static program.
pub(crate) fn static_program(name: &str) -> PathBuf {
    made(&Path::new("static").join(name))
}

/// The Recorder that records, and the libraries that it is linked to.
pub(crate) fn capturing_recorder() -> (PathBuf, Vec<PathBuf>) {
    let program = made(Path::new("capture/silvasonic-recorder"));
    let listed = Command::new("ldd").arg(&program).output().expect("ldd");
    let text = String::from_utf8(listed.stdout).expect("paths of libraries");
    let libraries = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).map(PathBuf::from).collect();
    (program, libraries)
}

/// A program below the target directory; the Makefile knows how it is built and whether it is out of date.
fn made(program: &Path) -> PathBuf {
    // Two that make the same file would be in each other's way.
    static MAKE: Mutex<()> = Mutex::new(());
    let _alone = MAKE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = target_dir().join(program);
    let made = Command::new("make")
        .args(["--silent", "--no-print-directory", "-C", env!("CARGO_MANIFEST_DIR")])
        .arg(&program)
        .env("CARGO_TARGET_DIR", target_dir())
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .expect("make is missing: run tests/setup");
    assert!(made.status.success(), "building {} failed:\n{}", program.display(), String::from_utf8_lossy(&made.stderr));
    program
}

/// Cargo's target directory, told from where this very program is (`target/debug/{deps,examples}/…`).
pub(crate) fn target_dir() -> PathBuf {
    profile_dir().parent().expect("a build profile's directory lies in a target directory").to_path_buf()
}

/// The directory of this build's programs, e.g. `target/debug`.
pub(crate) fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this program");
    exe.ancestors().nth(2).expect("a program below target/").to_path_buf()
}
