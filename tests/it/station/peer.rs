//! A station of the Python project: services that containers find by name, the Controller's container with the options
//! of its Compose file, and the containers of Recorders as its Controller creates them.
//!
//! PostgreSQL and Redis run on the host; a container of the right name forwards to each. A container runtime allows no mount
//! below `/proc`, and this machine has no sound card. So the hardware tree is mounted beside everything else, and one
//! variable that the Compose file does not have names it: `SILVASONIC_HOST_ROOT`. All other options are those of the file.

use super::{Builder, NETWORK, PeerVersion, RECORDER, Station};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// The Controller's container.
pub(crate) const CONTROLLER: &str = "silvasonic-controller";
/// The image that the Python project builds for it; only what is behind the name changes.
const IMAGE: &str = "localhost/silvasonic_controller:latest";

/// A station that the Python Controller ran until now.
pub(crate) struct PeerStation {
    pub(crate) station: Station,
    version: PeerVersion,
    /// Lines of `.env` that replace or follow those of the example.
    changes: Vec<(&'static str, String)>,
}

impl std::ops::Deref for PeerStation {
    type Target = Station;

    fn deref(&self) -> &Station {
        &self.station
    }
}

impl PeerStation {
    /// A station with this database, these lines in `.env` and our image under the name of its own.
    pub(crate) fn up(version: PeerVersion, changes: &[(&'static str, &str)]) -> PeerStation {
        let mut station = Station::plan().redis_for_recorders().up();
        station.postgres.listen_on(station.redis.address());
        station.postgres.make_peer_database(version);
        Builder::new(&station).build("controller");
        if let Some((_, image)) = changes.iter().find(|(name, _)| *name == "SILVASONIC_RECORDER_IMAGE") {
            station.podman.exec(&["tag", RECORDER, image]);
        }
        let changes = changes.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let peer = PeerStation { station, version, changes };
        peer.start_services();
        peer.write_files();
        peer
    }

    /// The value of a variable in `.env`.
    fn setting(&self, name: &str) -> Option<String> {
        self.env_file().into_iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// `.env`, with variables of all services.
    fn env_file(&self) -> Vec<(&'static str, String)> {
        let workspace = format!("{}/", self.workspace().display());
        let mut lines: Vec<(&str, String)> = [
            ("SILVASONIC_DEVELOPMENT_MODE", "True"),
            ("SILVASONIC_REPO_PATH", "/mnt/data/dev/apps/silvasonic"),
            ("SILVASONIC_WORKSPACE_PATH", workspace.as_str()),
            ("SILVASONIC_PODMAN_SOCKET", self.podman.socket().to_str().unwrap()),
            ("SILVASONIC_NETWORK", "silvasonic-net"),
            // Not in the example.
            ("SILVASONIC_HEARTBEAT_INTERVAL_S", "1"),
            ("POSTGRES_USER", "silvasonic"),
            ("POSTGRES_PASSWORD", "silvasonic"),
            ("POSTGRES_DB", "silvasonic"),
            ("SILVASONIC_DB_PORT", "5432"),
            ("SILVASONIC_REDIS_PORT", "6379"),
            ("SILVASONIC_REDIS_URL", "redis://localhost:6379/0"),
            ("SILVASONIC_CONTROLLER_PORT", "9100"),
            ("SILVASONIC_PROCESSOR_PORT", "9200"),
            ("SILVASONIC_WEB_MOCK_PORT", "8001"),
            ("SILVASONIC_DOMAIN_NAME", "silvasonic.local"),
            ("SILVASONIC_HW_PRIMARY_PROFILE", "ultramic_384_evo"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec();
        lines.extend(self.changes.iter().cloned());
        lines
    }

    /// `database` and `redis`, as containers of the network find them: a container of that name, whose kernel forwards.
    fn start_services(&self) {
        self.image("forwarder", "exec sleep 1000");
        for (name, port, target) in [("database", 5432, self.postgres.port()), ("redis", 6379, self.redis.port())] {
            let container = format!("silvasonic-{name}");
            let alias = format!("--network-alias={name}");
            let network = format!("--network={NETWORK}");
            self.podman.exec(&["run", "-d", "--name", &container, &alias, &network, "localhost/forwarder:latest"]);
            let forward = format!(
                "PATH=$PATH:/usr/sbin; echo 1 >/proc/sys/net/ipv4/ip_forward &&
                 iptables -w -t nat -A PREROUTING -p tcp --dport {port} -j DNAT --to-destination {}:{target} &&
                 iptables -w -t nat -A POSTROUTING -j MASQUERADE",
                self.redis.address()
            );
            let pid = self.inspect(&container).unwrap()["State"]["Pid"].to_string();
            let done = Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-c", &forward]).status().expect("nsenter");
            assert!(done.success(), "{container} does not forward");
        }
        self.fix_bridge();
    }

    /// Keeps the address of the network's bridge. It is the lowest one of those that are connected, so it can change with
    /// each container; until the forwarding ones notice that, they send to nowhere.
    fn fix_bridge(&self) {
        let (_, network) = self.podman.get(&format!("/networks/{NETWORK}/json"));
        let bridge = network["network_interface"].as_str().unwrap();
        let address = fs::read_to_string(format!("/sys/class/net/{bridge}/address")).unwrap();
        let fixed = Command::new("ip").args(["link", "set", "dev", bridge, "address", address.trim()]).status().expect("ip");
        assert!(fixed.success(), "the address of {bridge} cannot be set");
    }

    /// The files and folders that the Compose file mounts.
    fn write_files(&self) {
        fs::create_dir_all(self.workspace().join("controller")).unwrap();
        let config = self.dir().join("config");
        fs::create_dir_all(config.join("profiles")).unwrap();
        fs::write(config.join("defaults.yml"), "system:\n  station_name: Oak\nnotes:\n  of_the_user: true\n").unwrap();
        let profile = "schema_version: \"1.0\"\nslug: of_the_user\nname: Of the user\naudio:\n  sample_rate: 250000\n";
        fs::write(config.join("profiles/of_the_user.yml"), profile).unwrap();
        let lines: String = self.env_file().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        fs::write(self.dir().join(".env"), lines).unwrap();
    }

    /// Creates the Controller's container and starts it, as `podman-compose up -d` does.
    pub(crate) fn start_controller(&self) {
        let workspace = self.setting("SILVASONIC_WORKSPACE_PATH").unwrap();
        let is_old = self.version == PeerVersion::V0_3_0;
        let database = if is_old { "POSTGRES_HOST=database" } else { "SILVASONIC_DB_HOST=database" };
        let mut arguments: Vec<String> =
            ["run", "-d", "--name", CONTROLLER, "--privileged", "--network", NETWORK, "--network-alias", "controller"]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(["--restart".to_owned(), "unless-stopped".to_owned()]);
        arguments.extend(["--env-file".to_owned(), self.dir().join(".env").display().to_string()]);
        // No timers here that would run it.
        arguments.extend(
            ["--health-interval", "disable", "--health-cmd", r#"["curl","-f","http://localhost:9100/healthy"]"#].map(str::to_owned),
        );
        for variable in [
            database,
            "SILVASONIC_CONTAINER_SOCKET=/var/run/container.sock",
            "SILVASONIC_NETWORK=silvasonic-net",
            "SILVASONIC_RECORDER_WORKSPACE_LOCAL=/app/recorder-workspace",
            "SILVASONIC_REDIS_URL=redis://redis:6379/0",
            "SILVASONIC_HOST_ROOT=/station/host",
        ] {
            arguments.extend(["-e".to_owned(), variable.to_owned()]);
        }
        let mut mounts = vec![
            format!("{workspace}/controller:/app/workspace:z"),
            format!("{workspace}/recorder:/app/recorder-workspace:z"),
            format!("{}:/var/run/container.sock:z", self.setting("SILVASONIC_PODMAN_SOCKET").unwrap()),
            // The tree is changed by another link beside it.
            format!("{}:/station:ro", self.dir().display()),
        ];
        if !is_old {
            mounts.push(format!("{}:/app/config:ro,z", self.dir().join("config").display()));
        }
        arguments.extend(mounts.into_iter().flat_map(|mount| ["-v".to_owned(), mount]));
        arguments.push(IMAGE.to_owned());
        self.podman.exec(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Stops the Controller's container as Compose does, with ten seconds, and removes it; how it ended.
    pub(crate) fn stop_controller(&self) -> i64 {
        self.podman.exec(&["stop", "--time", "10", CONTROLLER]);
        let code = self.inspect(CONTROLLER).unwrap()["State"]["ExitCode"].as_i64().unwrap();
        self.podman.exec(&["rm", CONTROLLER]);
        code
    }

    /// What the Controller logged.
    pub(crate) fn log(&self) -> String {
        self.sandboxed(&format!("podman logs {CONTROLLER} 2>&1"))
    }

    /// Waits for a line of the Controller that contains `text`.
    pub(crate) fn wait_log(&self, text: &str, deadline: Duration) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(begun.elapsed() < deadline, "not within {deadline:?}: {text:?}\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Creates and starts the Recorder of an enrolled device, as the Python Controller does, and waits until it runs; the
    /// name of the container.
    pub(crate) fn start_recorder(&self, device: &str) -> String {
        let select = "SELECT to_jsonb(d) || jsonb_build_object('profile', p.config, 'text', p.config::text) AS device
            FROM devices d JOIN microphone_profiles p ON slug = profile_slug WHERE d.name = $1";
        let row: Value = self.postgres.query(select, &[&device])[0].get(0);
        let slug = row["profile_slug"].as_str().unwrap();
        let folder = format!("{}-{}", slug.replace('_', "-"), suffix(&row["config"]));
        let name = format!("silvasonic-recorder-{folder}");
        let workspace = PathBuf::from(self.setting("SILVASONIC_WORKSPACE_PATH").unwrap()).join("recorder").join(&folder);
        fs::create_dir_all(&workspace).unwrap();
        let is_old = self.version == PeerVersion::V0_3_0;
        let config = if is_old { row["text"].as_str().unwrap().to_owned() } else { runtime_config(&row["profile"]) };
        let mut environment = json!({
            "SILVASONIC_RECORDER_DEVICE": row["config"]["alsa_device"],
            "SILVASONIC_RECORDER_PROFILE_SLUG": slug,
            "SILVASONIC_RECORDER_CONFIG_JSON": config,
            "SILVASONIC_REDIS_URL": "redis://redis:6379/0",
            "SILVASONIC_INSTANCE_ID": device,
        });
        let mut labels = json!({
            "io.silvasonic.tier": "2",
            "io.silvasonic.owner": "controller",
            "io.silvasonic.service": "recorder",
            "io.silvasonic.device_id": device,
            "io.silvasonic.profile": slug,
        });
        if !is_old {
            environment["PULSE_SERVER"] = "".into();
            environment["PIPEWIRE_RUNTIME_DIR"] = "".into();
            labels["io.silvasonic.config_hash"] = format!("{:012x}", folder.len() * 0x0123_4567_89ab).into();
        }
        let image = self.setting("SILVASONIC_RECORDER_IMAGE").unwrap_or_else(|| RECORDER.to_owned());
        let memory = self.setting("SILVASONIC_RECORDER_MEMORY_LIMIT").unwrap_or_else(|| "512m".to_owned());
        let cpu: f64 = self.setting("SILVASONIC_RECORDER_CPU_LIMIT").map_or(1.0, |limit| limit.parse().unwrap());
        let retries: u32 = self.setting("SILVASONIC_RECORDER_RESTART_MAX_RETRIES").map_or(5, |number| number.parse().unwrap());
        let options = if is_old { json!([]) } else { json!(["z"]) };
        let request = json!({
            "name": name,
            "image": image,
            "netns": { "nsmode": "bridge" },
            "networks": { NETWORK: {} },
            "env": environment,
            "labels": labels,
            "mounts": [{ "type": "bind", "source": workspace, "destination": "/app/workspace", "options": options }],
            "privileged": true,
            "groups": ["audio"],
            "restart_policy": "on-failure",
            "restart_tries": retries,
            "resource_limits": { "memory": { "limit": mebibytes(&memory) << 20 }, "cpu": { "quota": (cpu * 100_000.0) as u64 } },
            "oom_score_adj": -999,
        });
        let (status, answer) = self.podman.post("/containers/create", &request);
        assert_eq!(status, 201, "create {name}: {answer}");
        let (status, answer) = self.podman.post(&format!("/containers/{name}/start"), &Value::Null);
        assert_eq!(status, 204, "start {name}: {answer}");
        name
    }
}

fn mebibytes(limit: &str) -> u64 {
    limit.strip_suffix('m').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{limit}: only mebibytes here"))
}

/// The end of a workspace name: of the serial number, or four characters of the USB port.
fn suffix(config: &Value) -> String {
    let text = |key: &str| config[key].as_str().filter(|text| !text.is_empty()).map(str::to_lowercase);
    match (text("usb_serial"), text("usb_bus_path")) {
        (Some(serial), _) => serial[serial.len().saturating_sub(4)..].to_owned(),
        (None, Some(port)) => format!("p{}", port.replace(['-', '.'], "d")).chars().take(4).collect(),
        (None, None) => format!("c{:03}", config["alsa_card_index"]),
    }
}

/// A profile as a Recorder of later versions gets it: all fields of the model, in its order, with its defaults.
fn runtime_config(profile: &Value) -> String {
    let section = |name: &str, fields: &[(&str, Value)]| {
        let fields = fields.iter().map(|(key, default)| {
            let value = profile[name].get(*key).unwrap_or(default);
            let value = if *key == "match" && value.is_object() { criteria(value) } else { value.to_string() };
            format!("{}:{value}", json!(key))
        });
        format!("{}:{{{}}}", json!(name), fields.collect::<Vec<_>>().join(","))
    };
    let audio = [
        ("sample_rate", Value::Null),
        ("channels", json!(1)),
        ("format", json!("S16LE")),
        ("match_pattern", Value::Null),
        ("match", Value::Null),
    ];
    let processing = [("gain_db", json!(0.0)), ("chunk_size", json!(4096)), ("highpass_filter_hz", Value::Null)];
    let stream = [
        ("raw_enabled", json!(true)),
        ("processed_enabled", json!(true)),
        ("live_stream_enabled", json!(false)),
        ("segment_duration_s", json!(10)),
    ];
    format!("{{{},{},{}}}", section("audio", &audio), section("processing", &processing), section("stream", &stream))
}

fn criteria(value: &Value) -> String {
    let fields = ["usb_vendor_id", "usb_product_id", "alsa_name_contains"].map(|key| format!("{}:{}", json!(key), value[key]));
    format!("{{{}}}", fields.join(","))
}
