//! The Containerfile: its stages hold one program each, which finds other containers by name and Podman again.

use super::station::{Builder, NETWORK, Station, eventually};
use super::tree::Card;
use std::fs;
use std::process::Command;
use std::time::Duration;

#[test]
fn the_images_hold_one_program_each_that_finds_others_by_name() {
    let station = Station::plan().without_postgres().without_redis().without_recorder_image().up();
    let podman = |args: &[&str]| station.podman.exec(args);
    let builder = Builder::new(&station);
    for (stage, program) in [("controller", "silvasonic-controller"), ("recorder", "silvasonic-recorder")] {
        let image = builder.build(stage);
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
        let mut expected = ["etc/group", "etc/passwd", program].map(str::to_owned).to_vec();
        match stage {
            "controller" => expected.extend(["bin/sh", "curl", "usr/bin/curl"].map(str::to_owned)),
            _ => {
                expected.push("usr/share/alsa/alsa.conf".to_owned());
                expected.extend(builder.libraries().iter().map(|library| library.trim_start_matches('/').to_owned()));
            }
        }
        expected.sort();
        assert_eq!(files, expected);
    }

    // It gets as far as the card that is not there: its libraries and ALSA's configuration are.
    let variables =
        ["RECORDER_DEVICE=hw:31,0", "RECORDER_PROFILE_SLUG=p", "INSTANCE_ID=i", "RECORDER_CONFIG_JSON={\"audio\":{\"sample_rate\":48000}}"];
    let set: String = variables.iter().map(|variable| format!(" -e 'SILVASONIC_{variable}'")).collect();
    let out =
        station.sandboxed(&format!("podman run --rm --read-only --network=none{set} localhost/silvasonic_recorder 2>&1; echo code $?"));
    assert!(out.contains("hw:31,0: cannot open it: ") && out.contains("No such file or directory") && out.ends_with("code 1\n"), "{out}");

    // What is mounted at /host and /app/config is found without a setting; an empty folder is not.
    station.tree.set(&[Card::ultramic()]);
    let config = station.dir().join("config");
    fs::create_dir_all(config.join("profiles")).unwrap();
    let (host, config) = (format!("{}:/host:ro", station.tree.present().display()), format!("{}:/app/config:ro", config.display()));
    let image = "localhost/silvasonic_controller:latest";
    let scan = |volumes: &[&str]| podman(&[&["run", "--rm", "--cap-drop=all"], volumes, &[image, "scan"]].concat());
    assert!(
        scan(&["-v", &host]).contains("  0869-0389-034F6A21  1-1   UltraMic384K_EVO 16bit r4  0869:0389  034F6A21  ultramic_384_evo (100)")
    );
    assert!(scan(&["-v", &host, "-v", &config]).contains("034F6A21  none "), "profiles that are not in the folder");
    fs::remove_dir(station.dir().join("config/profiles")).unwrap();
    assert!(scan(&["-v", &host, "-v", &config]).contains("ultramic_384_evo (100)"));

    // Somebody called `database` who takes no connections: found, and refused.
    let silent = station.image("silent", "exec sleep 1000");
    station.podman.run("database", &silent, &serde_json::json!({}));
    let network = format!("--network={NETWORK}");
    // As in compose.yml: the socket's folder, not the socket.
    let folder = format!("{}:/run/podman", station.podman.socket().parent().unwrap().display());
    podman(&[
        "run",
        "-d",
        "--name",
        "named",
        "--read-only",
        "--cap-drop=all",
        &network,
        "-v",
        &folder,
        "-e",
        "SILVASONIC_DB_HOST=database",
        "-e",
        "SILVASONIC_CONTAINER_SOCKET=/run/podman/podman.sock",
        // As podman-compose before 1.5 writes `["CMD", "curl", …]`.
        "--health-cmd=/bin/sh -c curl' '-f' 'http://localhost:9100/healthy",
        "--health-interval=disable",
        image,
    ]);
    // As in a Compose file that names the socket.
    let file = format!("{}:/var/run/container.sock", station.podman.socket().display());
    podman(&["run", "-d", "--name", "filed", "--cap-drop=all", &network, "-v", &file, image]);
    let told_by = |name: &str, what: &str| {
        eventually(Duration::from_secs(20), what, || {
            let out = station.sandboxed(&format!("podman logs {name} 2>&1"));
            out.lines().find(|line| line.contains(what)).map(str::to_owned)
        })
    };
    let told = |what: &str| told_by("named", what);
    let line = told("cannot read PostgreSQL");
    assert!(line.contains("Connection refused"), "{line}");
    told("connected to Podman");
    told_by("filed", "connected to Podman");
    let check = station.sandboxed("podman exec filed /silvasonic-controller check || true");
    assert!(check.contains("warning  podman         the socket is mounted as a file: "), "{check}");
    // The health check of a Compose file that was made for another image.
    let curl = |words: &str| station.sandboxed(&format!("podman exec named {words} 2>&1; echo code $?"));
    let unhealthy = curl("curl -f http://localhost:9100/healthy");
    assert_eq!(unhealthy, "curl: (22) the server answered 503\ncode 22\n");
    station.sandboxed("podman healthcheck run named || true");
    let health = station.inspect("named").unwrap()["State"]["Health"]["Log"][0].clone();
    assert_eq!((&health["ExitCode"], &health["Output"]), (&1.into(), &"curl: (22) the server answered 503".into()), "{health}");
    let shown = curl("/usr/bin/curl -sS http://127.0.0.1:9100/healthy");
    assert!(shown.contains("\"database\"") && shown.ends_with("code 0\n"), "{shown}");
    // Nobody listens there: the port of the settings answers.
    assert_eq!(curl("curl -f http://localhost:1/healthy"), unhealthy);
    let misused = curl("curl https://example.org");
    assert!(misused.starts_with("this is silvasonic-controller, not curl: ") && misused.ends_with("code 2\n"), "{misused}");
    // The socket is another one after a restart of the service.
    station.podman.stop_api();
    told("cannot list containers");
    station.podman.start_api();
    told("Podman is available again");
    let dead = "the socket is mounted as a file, which is dead after a restart of podman.socket until this container is restarted: in the Compose \
                file mount the folder of the socket, such as `- /run/podman:/run/podman`, instead of the socket, and set \
                SILVASONIC_CONTAINER_SOCKET: /run/podman/podman.sock";
    told_by("filed", dead);
    let named = station.sandboxed("podman logs named 2>&1");
    assert!(!named.contains("mounted as a file"), "{named}");
}
