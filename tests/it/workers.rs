//! Workers: seeded, started, switched, adopted and stopped, and never at the cost of a Recorder.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::commands::typed;
use super::podman_faults::proxied_with;
use super::station::{Fault, NETWORK, Station, eventually};
use super::tree::Card;

const SOON: Duration = Duration::from_secs(20);
const ULTRAMIC: &str = "silvasonic-recorder-ultramic-384-evo-6a21";
const PROBE: &str = "silvasonic-probe";
const DECLARED: &str = "name: probe\nimage: localhost/probe:latest\nrecordings: read\nworkspace: true\ndatabase: true\nenabled: true\n";
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait; done";

/// A folder of settings with these declarations; its path.
fn folder(station: &Station, workers: &[(&str, &str)]) -> String {
    let folder = station.dir().join("config");
    fs::create_dir_all(folder.join("workers")).unwrap();
    fs::create_dir_all(folder.join("profiles")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["defaults.yml", "profiles/ultramic_384_evo.yml", "profiles/generic_usb.yml"] {
        fs::copy(source.join(file), folder.join(file)).unwrap();
    }
    workers.iter().for_each(|(name, text)| fs::write(folder.join("workers").join(name), text).unwrap());
    folder.to_str().unwrap().to_owned()
}

/// What the heartbeat says about a worker.
fn told(station: &Station, worker: &str) -> Option<Value> {
    Some(station.heartbeat()?["meta"]["workers"].get(worker)?.clone())
}

/// Waits until the heartbeat tells a reason that contains `text`.
fn wait_told(station: &Station, worker: &str, text: &str) {
    eventually(SOON, &format!("{worker}: {text}"), || {
        told(station, worker).filter(|told| told["reason"].as_str().is_some_and(|reason| reason.contains(text)))
    });
}

#[test]
fn a_worker_is_switched_by_its_row_and_takes_no_place_of_a_recorder() {
    let station = Station::up();
    station.image("probe", IDLE);
    let bad = "name: bad\nimage: localhost/probe:latest\noom_score_adj: -1\n";
    let config = folder(&station, &[("probe.yml", DECLARED), ("bad.yml", bad)]);
    let settings = [("SILVASONIC_CONFIG_DIR", config.as_str()), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")];
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &[ULTRAMIC, PROBE]);
    station.postgres.exec("UPDATE system_config SET value = value || '{\"max_recorders\": 1}' WHERE key = 'system'");

    let inspect = station.inspect(PROBE).unwrap();
    assert_eq!(inspect["HostConfig"]["Privileged"], false);
    assert!(inspect["HostConfig"]["OomScoreAdj"].as_i64().unwrap() >= 0, "{}", inspect["HostConfig"]["OomScoreAdj"]);
    let mounts = inspect["Mounts"].as_array().unwrap();
    let mounts: Vec<(&str, bool)> = mounts.iter().map(|mount| (mount["Destination"].as_str().unwrap(), mount["RW"] == true)).collect();
    assert!(mounts.contains(&("/data/recorder", false)) && mounts.contains(&("/data/probe", true)) && mounts.len() == 2, "{mounts:?}");
    assert!(station.workspace().join("probe").is_dir());
    assert_eq!(controller.count_log("workers/bad.yml:3: oom_score_adj: expected a whole number from 0 to 1000, got -1"), 1);
    wait_told(&station, "probe", "running");
    wait_told(&station, "birdnet", "waits for its image localhost/silvasonic_birdnet:latest");

    let mark = station.podman.mark(ULTRAMIC);
    let (code, text, why) = typed(&station, "disable probe", &settings);
    assert_eq!((code, text.as_str()), (Some(0), "worker probe is disabled\n"), "{why}");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    wait_told(&station, "probe", "disabled");
    // The image of the other one is looked for again now and then.
    eventually(SOON, "both in the table", || {
        let (_, text, _) = typed(&station, "workers", &settings);
        (text.contains("probe") && text.contains("disabled") && text.contains("waits for its image")).then_some(())
    });
    assert_eq!(typed(&station, "enable probe", &settings).0, Some(0));
    station.podman.wait_running(SOON, &[ULTRAMIC, PROBE]);
    // A row that is absent says nothing.
    station.postgres.exec("DELETE FROM managed_services WHERE name = 'probe'");
    wait_told(&station, "probe", "not in the database");
    // Nor is it seeded a second time, when the seeders run again.
    controller.wait_log("seeded user admin", SOON);
    assert_eq!(station.postgres.value::<i64>("SELECT count(*) FROM managed_services"), Some(1));
    station.podman.wait_running(SOON, &[ULTRAMIC, PROBE]);
    assert_eq!(station.podman.mark(ULTRAMIC), mark);
    assert_eq!(controller.count_log("waits for its image"), 1);

    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
    assert_eq!(station.containers(), Vec::<Value>::new());
}

#[test]
fn a_worker_whose_creation_hangs_delays_no_recorder() {
    let station = Station::up();
    station.image("probe", IDLE);
    let config = folder(&station, &[("probe.yml", DECLARED)]);
    station.postgres.exec(
        "CREATE TABLE managed_services (name TEXT PRIMARY KEY, enabled BOOLEAN NOT NULL DEFAULT TRUE, updated_at TIMESTAMPTZ NOT NULL DEFAULT now());
         INSERT INTO managed_services (name, enabled) VALUES ('probe', FALSE), ('birdnet', FALSE)",
    );
    let (proxy, controller) = proxied_with(&station, &[("SILVASONIC_CONFIG_DIR", &config)]);
    proxy.set("containers/create silvasonic-probe", Fault::Hang);
    controller.wait_log("connected to Podman", SOON);
    station.postgres.exec("UPDATE managed_services SET enabled = TRUE WHERE name = 'probe'");
    eventually(SOON, "the creation of the worker hangs", || (proxy.requests_for("containers/create silvasonic-probe") > 0).then_some(()));
    station.tree.set(&[Card::ultramic()]);
    station.podman.wait_running(Duration::from_secs(10), &[ULTRAMIC]);
    // A user who disabled it before the first start is respected.
    assert_eq!(station.postgres.value::<bool>("SELECT enabled FROM managed_services WHERE name = 'birdnet'"), Some(false));
    assert_eq!(proxy.requests_for("containers/create silvasonic-birdnet"), 0);
}

#[test]
fn a_worker_of_the_python_controller_is_adopted_and_an_unknown_one_is_left_alone_until_the_end() {
    let station = Station::up();
    let image = station.image("silvasonic_birdnet", IDLE);
    let workspace = station.workspace();
    fs::create_dir(workspace.join("birdnet")).unwrap();
    let environment = station.environment();
    let of = |name: &str| environment.iter().find(|(known, _)| *known == name).map_or("silvasonic", |(_, value)| value);
    let host = of("SILVASONIC_DB_HOST");
    let host = if host.starts_with('/') || ["localhost", "127.0.0.1"].contains(&host) { "host.containers.internal" } else { host };
    let mount = |source: &str, options: [&str; 2]| json!({ "type": "bind", "source": workspace.join(source), "destination": format!("/data/{source}"), "options": options });
    let (status, made) = station.podman.post(
        "/containers/create",
        &json!({
            "name": "silvasonic-birdnet", "image": image,
            "labels": { "io.silvasonic.tier": "2", "io.silvasonic.owner": "controller", "io.silvasonic.service": "birdnet",
                        "io.silvasonic.device_id": "birdnet", "io.silvasonic.config_hash": "0123456789ab" },
            "env": { "SILVASONIC_INSTANCE_ID": "birdnet", "SILVASONIC_REDIS_URL": station.redis.url(), "SILVASONIC_DB_HOST": host,
                     "SILVASONIC_DB_PORT": of("SILVASONIC_DB_PORT"), "POSTGRES_USER": of("POSTGRES_USER"),
                     "POSTGRES_PASSWORD": of("POSTGRES_PASSWORD"), "POSTGRES_DB": of("POSTGRES_DB") },
            "mounts": [mount("recorder", ["rbind", "ro"]), mount("birdnet", ["rbind", "rw"])],
            "netns": { "nsmode": "bridge" }, "Networks": { NETWORK: {} }, "restart_policy": "on-failure", "restart_tries": 5,
            "resource_limits": { "memory": { "limit": 512 << 20 }, "cpu": { "period": 100_000, "quota": 100_000 } }, "oom_score_adj": 500,
        }),
    );
    assert_eq!(status, 201, "{made}");
    assert_eq!(station.podman.post("/containers/silvasonic-birdnet/start", &Value::Null).0, 204);
    let mark = station.podman.mark("silvasonic-birdnet");
    let labels = |owner: &str| json!({ "io.silvasonic.tier": "2", "io.silvasonic.owner": owner, "io.silvasonic.service": "other", "io.silvasonic.device_id": "other" });
    station.podman.run("silvasonic-other", &image, &labels("controller"));
    station.podman.run("foreign", &image, &labels("else"));
    let mut controller = station.controller();
    controller.wait_log("silvasonic-birdnet is already running as desired; adopted", SOON);
    assert_eq!(station.podman.mark("silvasonic-birdnet"), mark);
    station.podman.wait_running(SOON, &["silvasonic-birdnet", "silvasonic-other", "foreign"]);
    controller.signal(Signal::TERM);
    assert_eq!(controller.wait_exit(Duration::from_secs(12)), 0);
    station.podman.wait_running(SOON, &["foreign"]);
}

#[test]
fn workers_give_way_when_memory_is_short_and_recorders_do_not() {
    let station = Station::up();
    station.image("probe", IDLE);
    let config = folder(&station, &[("probe.yml", DECLARED)]);
    let settings = [("SILVASONIC_CONFIG_DIR", config.as_str()), ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")];
    station.tree.set(&[Card::ultramic()]);
    let mut controller = station.controller_with(&settings);
    station.podman.wait_running(SOON, &[ULTRAMIC, PROBE]);
    let mark = station.podman.mark(ULTRAMIC);
    controller.kill();
    let controller = station.controller_with(&[&settings[..], &[("SILVASONIC_SHED_MEMORY_PERCENT", "1")]].concat());
    let line = controller.wait_log("silvasonic-probe stopped and removed", SOON);
    assert!(line.contains("the use of the host's memory has reached 1 %"), "{line}");
    wait_told(&station, "probe", "the use of the host's memory has reached 1 %");
    station.podman.wait_running(SOON, &[ULTRAMIC]);
    assert_eq!(station.podman.mark(ULTRAMIC), mark);
}
