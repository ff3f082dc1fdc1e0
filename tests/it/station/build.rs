//! The images of the Containerfile, built in a station's Podman.

use super::{Station, image};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

const SOURCE: &str = env!("CARGO_MANIFEST_DIR");
/// What the Containerfile compiles in.
const RUST: &str = "docker.io/library/rust:1-slim-trixie";

/// Builds images.
pub(crate) struct Builder<'a>(&'a Station);

impl Builder<'_> {
    /// Makes what the Containerfile compiles in. No registry is in reach: an image of that name, in which `cargo build`
    /// brings the programs of this source tree.
    pub(crate) fn new(station: &Station) -> Builder<'_> {
        let base = station.dir().join("base");
        let script = |name: &str, text: &str| {
            fs::write(base.join("bin").join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(base.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        for folder in ["bin", "programs", "proc", "sys", "dev", "run", "tmp", "etc"] {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
        for applet in ["sh", "sed", "cp", "mkdir", "ls", "ln", "rm", "grep", "cat"] {
            symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        fs::copy(image::static_program("silvasonic-controller"), base.join("programs/silvasonic-controller")).unwrap();
        let (recorder, libraries) = image::capturing_recorder();
        fs::copy(recorder, base.join("programs/silvasonic-recorder")).unwrap();
        let mut listed = String::new();
        for library in &libraries {
            let target = base.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(library, target).unwrap();
            listed.push_str(&format!("\tlib => {} (0x1)\n", library.display()));
        }
        fs::write(base.join("libraries"), listed).unwrap();
        fs::create_dir_all(base.join("usr/share/alsa")).unwrap();
        fs::copy("/usr/share/alsa/alsa.conf", base.join("usr/share/alsa/alsa.conf")).unwrap();
        script("rustc", "echo host: some-target");
        script("ldd", "cat /libraries");
        let install = "install -y --no-install-recommends libasound2-dev pkg-config";
        script("apt-get", &format!("[ \"$*\" = update ] || [ \"$*\" = \"{install}\" ]"));
        let (controller, recorder) = (
            "build --release --locked --bin silvasonic-controller --target some-target",
            "build --release --locked --features capture --bin silvasonic-recorder",
        );
        script(
            "cargo",
            &format!(
                "ls src/main.rs profiles/*.yml Cargo.lock defaults.yml || exit 1\n\
                 case \"$*\" in\n\
                 \"{controller}\") mkdir -p target/some-target && cp -r /programs target/some-target/release;;\n\
                 \"{recorder}\") mkdir -p target && cp -r /programs target/release;;\n\
                 *) exit 1;;\nesac"
            ),
        );
        let archive = station.dir().join("base.tar");
        let packed = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&base).arg(".").status().unwrap();
        assert!(packed.success());
        station.podman.exec(&["import", archive.to_str().unwrap(), RUST]);
        Builder(station)
    }

    /// The libraries of the Recorder.
    pub(crate) fn libraries(&self) -> Vec<String> {
        image::capturing_recorder().1.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    /// Builds a stage; the full name of its image.
    pub(crate) fn build(&self, stage: &str) -> String {
        let image = format!("localhost/silvasonic_{stage}:latest");
        // The default network's bridge has the same name in all sandboxes.
        self.0.podman.exec(&["build", "--quiet", "--network=none", "--target", stage, "-t", &image, SOURCE]);
        image
    }
}
