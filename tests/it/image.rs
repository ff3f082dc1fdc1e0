//! The Containerfile: its stages hold one static program each, which finds other containers by name.

use super::station::{NETWORK, Station, eventually};
use std::fs;
use std::process::Command;
use std::time::Duration;

const SOURCE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_images_hold_one_static_program_each_that_finds_others_by_name() {
    let station = Station::plan().without_postgres().without_redis().without_recorder_image().up();
    let podman = |args: &[&str]| station.podman.exec(args);
    // In place of the stage that compiles: an image with the programs of this source tree.
    let out = station.dir().join("programs/out");
    fs::create_dir_all(&out).unwrap();
    for program in ["silvasonic-controller", "silvasonic-recorder"] {
        fs::copy(station.static_program(program), out.join(program)).unwrap();
    }
    let archive = station.dir().join("programs.tar");
    let packed = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(station.dir().join("programs")).arg("out").status().unwrap();
    assert!(packed.success());
    podman(&["import", archive.to_str().unwrap(), "localhost/programs"]);

    for (stage, program) in [("controller", "silvasonic-controller"), ("recorder", "silvasonic-recorder")] {
        let image = format!("localhost/silvasonic_{stage}:latest");
        podman(&["build", "--quiet", "--target", stage, "--build-arg", "PROGRAMS=localhost/programs", "-t", &image, SOURCE]);
        let expected = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(podman(&["run", "--rm", "--read-only", "--cap-drop=all", &image, "--version"]), expected);
        // The archive of a container that never ran: what was mounted into one would be in it, too.
        let tar = station.dir().join(stage);
        podman(&["create", "--name", stage, &image]);
        podman(&["export", "-o", tar.to_str().unwrap(), stage]);
        let listed = Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
        let mut files: Vec<String> = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
        files.retain(|name| !name.ends_with('/'));
        files.sort();
        assert_eq!(files, ["etc/group".to_owned(), "etc/passwd".to_owned(), program.to_owned()]);
    }

    // Somebody called `database` who takes no connections: found, and refused.
    let silent = station.image("silent", "exec sleep 1000");
    station.podman.run("database", &silent, &serde_json::json!({}));
    let network = format!("--network={NETWORK}");
    let image = "localhost/silvasonic_controller:latest";
    podman(&["run", "-d", "--name", "named", "--read-only", "--cap-drop=all", &network, "-e", "SILVASONIC_DB_HOST=database", image]);
    let line = eventually(Duration::from_secs(10), "a word about the database", || {
        let out = station.sandboxed("podman logs named 2>&1");
        out.lines().find(|line| line.contains("PostgreSQL cannot be read")).map(str::to_owned)
    });
    assert!(line.contains("Connection refused"), "{line}");
}
