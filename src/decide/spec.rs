//! The desired configuration of a Tier 2 container, a Recorder or a worker: its settings, labels, hash and create
//! request.
//!
//! The hash in the label `config_hash` covers everything but the labels, before [`Tier2ServiceSpec::create_request`]
//! adapts it to the engine. A running container with the desired hash is never changed, nor is one with another hash
//! whose [`Tier2ServiceSpec::differences`] are none.

use crate::sorted_map::SortedMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::decide::container::{Engine, Version};
use crate::decide::device::{Microphone, container_name};
use crate::decide::difference::{self, Keys};
use crate::decide::offer::{Mismatch, Offer};
use crate::decide::worker::{Recordings, Worker, WorkerSettings};
use crate::text::fingerprint;

/// The kinds of Tier 2 containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Records one microphone.
    Recorder,
    /// Analyses or uploads.
    Worker,
}

/// Namespace of all our labels.
const LABEL: &str = "io.silvasonic.";

/// Label with the owner: the Controller to which a container belongs.
pub const OWNER: &str = "io.silvasonic.owner";
/// Label with the tier of a container: [`TIER_2`] for those that only this program creates.
pub const TIER: &str = "io.silvasonic.tier";
/// Value of that label.
pub const TIER_2: &str = "2";
/// Label with the service of a container: [`RECORDER`], or the name of a worker.
pub const SERVICE: &str = "io.silvasonic.service";
/// Service of the Recorders.
pub const RECORDER: &str = "recorder";
/// Label with the stable id of the microphone, or the name of a worker.
pub const DEVICE_ID: &str = "io.silvasonic.device_id";
/// Label with [`Tier2ServiceSpec::hash`].
pub const CONFIG_HASH: &str = "io.silvasonic.config_hash";

const DEVICE: &str = "SILVASONIC_RECORDER_DEVICE";
const CONFIG_JSON: &str = "SILVASONIC_RECORDER_CONFIG_JSON";
const INSTANCE: &str = "SILVASONIC_INSTANCE_ID";
const REDIS_URL: &str = "SILVASONIC_REDIS_URL";
const RESERVE: &str = "SILVASONIC_RECORDER_RESERVE_MB";
/// Variables whose values may be shown.
const PUBLIC: [&str; 9] = [
    DEVICE,
    CONFIG_JSON,
    INSTANCE,
    RESERVE,
    "SILVASONIC_RECORDER_PROFILE_SLUG",
    "PULSE_SERVER",
    "PIPEWIRE_RUNTIME_DIR",
    "SILVASONIC_DB_HOST",
    "SILVASONIC_DB_PORT",
];
/// Where a Recorder finds its workspace.
const WORKSPACE: &str = "/app/workspace";
/// Hexadecimal digits of a hash; that of the Python Controller has twelve.
const HASH_LENGTH: usize = 16;

/// Restarts of a worker by Podman after failures.
const WORKER_RESTARTS: u32 = 5;
/// Maximum size of a container's log; conmon drops what exceeds it.
const LOG_BYTES: u64 = 10 << 20;
/// The lowest value at which the kernel may still kill the process when memory runs out.
pub const OOM_SCORE_ADJ: i32 = -999;
/// Major number of all ALSA devices.
const ALSA_MAJOR: u32 = 116;
/// The period of a processor limit.
pub const CPU_PERIOD_US: u64 = 100_000;
/// Time for a container to close its files.
const STOP_TIMEOUT_S: u64 = 10;
/// First version in which a rootless Podman clamps an `oom_score_adj` that it may not set, instead of failing to start.
const CLAMPS_OOM_SCORE: Version = Version(4, 7, 0);

/// Settings that are common to all Recorder containers.
#[derive(Clone, Debug)]
pub struct RecorderSettings {
    /// Image name.
    pub image: String,
    /// Network name.
    pub network: String,
    /// Value of the owner label.
    pub owner: String,
    /// Workspace folder on the host.
    pub workspace: PathBuf,
    /// Redis URL that is passed to the Recorder.
    pub redis_url: String,
    /// Memory limit in bytes.
    pub memory: u64,
    /// CPU limit in microseconds per 100 ms period.
    pub cpu_quota: u64,
    /// Number of restarts by Podman after failures.
    pub restart_tries: u32,
    /// Free space of the disk, in 10⁶ bytes, that is never written to; `None` = that of the image. A variable that is
    /// not set is not passed on, so that the hash is that of earlier versions.
    pub reserve_mb: Option<u32>,
    /// Whether its container is privileged.
    pub privileged: bool,
}

/// The desired configuration of one Tier 2 container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier2ServiceSpec {
    /// Container name.
    pub name: String,
    /// Stable id of the microphone, or name of the worker.
    pub device: String,
    /// Folder to create before the container, below that of all Recorders or of all workers.
    pub folder: Option<String>,
    service: String,
    profile: Option<String>,
    card: Option<u32>,
    image: String,
    network: String,
    owner: String,
    environment: SortedMap<String, String>,
    mounts: Vec<Mount>,
    devices: Vec<&'static str>,
    groups: Vec<&'static str>,
    memory: u64,
    cpu_quota: u64,
    oom_score_adj: i32,
    restart_tries: u32,
    privileged: bool,
    hash: String,
    /// What the card offers. Not a part of the container.
    offer: Offer,
    /// What the profile asks for and the card does not offer.
    pub mismatch: Option<Mismatch>,
}

/// A folder of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    source: String,
    destination: String,
    access: Access,
}

/// What a container may do with a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

impl Access {
    fn words(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::ReadWrite => "read-write",
        }
    }
}

impl Tier2ServiceSpec {
    /// The container that records `microphone` with `profile`, whose settings are `config_json`.
    #[must_use]
    pub fn recorder(
        recorder: &RecorderSettings,
        device: &str,
        microphone: &Microphone,
        folder: &str,
        profile: &str,
        config_json: String,
    ) -> Self {
        let environment = [
            (DEVICE, microphone.alsa_device()),
            ("SILVASONIC_RECORDER_PROFILE_SLUG", profile.to_owned()),
            (CONFIG_JSON, config_json),
            (REDIS_URL, recorder.redis_url.clone()),
            (INSTANCE, device.to_owned()),
            // Empty, so that audio libraries find no sound server and use ALSA.
            ("PULSE_SERVER", String::new()),
            ("PIPEWIRE_RUNTIME_DIR", String::new()),
        ];
        let reserve = recorder.reserve_mb.map(|megabytes| (RESERVE, megabytes.to_string()));
        let source = recorder.workspace.join("recorder").join(folder).to_string_lossy().into_owned();
        Self {
            name: container_name(folder),
            device: device.to_owned(),
            folder: Some(folder.to_owned()),
            service: RECORDER.to_owned(),
            profile: Some(profile.to_owned()),
            card: Some(microphone.card),
            image: recorder.image.clone(),
            network: recorder.network.clone(),
            owner: recorder.owner.clone(),
            environment: environment.into_iter().chain(reserve).map(|(name, value)| (name.to_owned(), value)).collect(),
            mounts: vec![Mount { source, destination: WORKSPACE.to_owned(), access: Access::ReadWrite }],
            devices: vec!["/dev/snd"],
            groups: vec!["audio"],
            memory: recorder.memory,
            cpu_quota: recorder.cpu_quota,
            oom_score_adj: OOM_SCORE_ADJ,
            restart_tries: recorder.restart_tries,
            privileged: recorder.privileged,
            hash: String::new(),
            offer: Offer::clone(&microphone.offer),
            mismatch: None,
        }
        .hashed()
    }

    /// The container of a worker. It is expendable: without privileges and devices, and the kernel kills it before a
    /// Recorder when memory runs out.
    #[must_use]
    pub fn worker(settings: &WorkerSettings, worker: &Worker) -> Self {
        let name = &worker.name;
        let folder = |folder: &str| settings.workspace.join(folder).to_string_lossy().into_owned();
        let mount = |source: &str, access| Mount { source: folder(source), destination: format!("/data/{source}"), access };
        let mut environment = worker.environment.clone();
        environment.extend([(INSTANCE, name), (REDIS_URL, &settings.redis_url)].map(|(name, value)| (name.to_owned(), value.clone())));
        if worker.database {
            environment.extend(settings.database.clone());
        }
        let recordings = (worker.recordings == Recordings::Read).then(|| mount("recorder", Access::ReadOnly));
        let own = worker.workspace.then(|| mount(name, Access::ReadWrite));
        Self {
            name: worker.container_name(),
            device: name.clone(),
            folder: worker.workspace.then(|| name.clone()),
            service: name.clone(),
            profile: None,
            card: None,
            image: worker.image.clone(),
            network: settings.network.clone(),
            owner: settings.owner.clone(),
            environment,
            mounts: recordings.into_iter().chain(own).collect(),
            devices: Vec::new(),
            groups: Vec::new(),
            memory: worker.memory,
            cpu_quota: worker.cpu_quota,
            oom_score_adj: worker.oom_score_adj.into(),
            restart_tries: WORKER_RESTARTS,
            privileged: false,
            hash: String::new(),
            offer: Offer::default(),
            mismatch: None,
        }
        .hashed()
    }

    fn hashed(mut self) -> Self {
        self.hash = fingerprint(self.body().to_string())[..HASH_LENGTH].to_owned();
        self
    }

    /// Whether a new spec from these inputs would be the same; the settings do not change while the program runs.
    #[must_use]
    pub fn is_of(&self, microphone: &Microphone, folder: &str, profile: &str, config_json: &str) -> bool {
        self.folder.as_deref() == Some(folder)
            && self.offer == microphone.offer
            && self.profile.as_deref() == Some(profile)
            && self.environment.get(DEVICE).is_some_and(|device| *device == microphone.alsa_device())
            && self.environment.get(CONFIG_JSON).is_some_and(|text| text == config_json)
    }

    /// ALSA card index of a Recorder.
    #[must_use]
    pub fn card(&self) -> Option<u32> {
        self.card
    }

    /// What kind of container it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.service == RECORDER { Kind::Recorder } else { Kind::Worker }
    }

    /// Service: [`RECORDER`], or the name of the worker.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Sixteen hexadecimal digits over all but the labels.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Image name.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Network name.
    #[must_use]
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Value of the owner label.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The labels, by full name.
    #[must_use]
    pub fn labels(&self) -> SortedMap<String, String> {
        let labels = [
            ("tier", TIER_2),
            ("owner", &self.owner),
            ("service", &self.service),
            ("device_id", &self.device),
            ("config_hash", &self.hash),
        ];
        let profile = self.profile.as_deref().map(|profile| ("profile", profile));
        labels.into_iter().chain(profile).map(|(name, value)| (format!("{LABEL}{name}"), value.to_owned())).collect()
    }

    /// Everything but the labels. Keys are sorted, so equal specs produce equal text.
    fn body(&self) -> Value {
        let mount = |mount: &Mount| {
            let access = if mount.access == Access::ReadOnly { "ro" } else { "rw" };
            json!({ "type": "bind", "source": mount.source, "destination": mount.destination, "options": ["rbind", access, "z"] })
        };
        // A bind mount instead of a device: microphones that are connected later appear in the running container.
        let device = |device: &&str| json!({ "type": "bind", "source": device, "destination": device, "options": ["rbind", "rw"] });
        let mut body = json!({
            "name": self.name,
            "image": self.image,
            "env": self.environment,
            "privileged": self.privileged,
            "groups": self.groups,
            "mounts": self.mounts.iter().map(mount).chain(self.devices.iter().map(device)).collect::<Value>(),
            "netns": { "nsmode": "bridge" },
            "networks": { self.network.as_str(): {} },
            "restart_policy": "on-failure",
            "restart_tries": self.restart_tries,
            "resource_limits": {
                "memory": { "limit": self.memory },
                "cpu": { "period": CPU_PERIOD_US, "quota": self.cpu_quota },
            },
            "oom_score_adj": self.oom_score_adj,
            "stop_signal": 15,
            "stop_timeout": STOP_TIMEOUT_S,
            "image_volume_mode": "ignore",
            "log_configuration": { "driver": "k8s-file", "size": LOG_BYTES },
        });
        if self.restart_tries == 0 {
            // Podman takes 0 as "no limit".
            body["restart_policy"] = "no".into();
            body.as_object_mut().map(|fields| fields.remove("restart_tries"));
        }
        body
    }

    /// The body of `POST containers/create` for this engine. A successor has another `name` until it replaces a
    /// container.
    #[must_use]
    pub fn create_request(&self, engine: &Engine, name: &str) -> Value {
        let mut request = self.body();
        request["name"] = name.into();
        request["labels"] = json!(self.labels());
        if !self.devices.is_empty() && !self.privileged && !engine.rootless {
            // Without privileges the device control group must allow the devices of the bind mount, too. A rootless
            // engine cannot set that; there only the permissions of the files apply.
            request["device_cgroup_rule"] = json!([{ "allow": true, "type": "c", "major": ALSA_MAJOR, "access": "rwm" }]);
        }
        if engine.rootless {
            // The group `audio` in the container is not a group of the host; crun can keep the user's own groups
            // instead.
            if !self.groups.is_empty() {
                request["annotations"] = json!({ "run.oci.keep_original_groups": "1" });
            }
            if engine.version < CLAMPS_OOM_SCORE {
                request.as_object_mut().map(|fields| fields.remove("oom_score_adj"));
            }
        }
        request
    }

    /// The differences between this spec and a container as `inspect` shows it that matter, one phrase a field;
    /// see [`difference`]. Values that can contain secrets are not shown.
    #[must_use]
    pub fn differences(&self, inspect: &Value) -> Vec<String> {
        let mut found = Vec::new();
        let text = |pointer: &str| inspect.pointer(pointer).map(difference::plain).unwrap_or_default();
        let number = |pointer: &str| inspect.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        let image = text("/ImageName");
        if !difference::is_same_image(&image, &self.image) {
            found.push(difference::phrase("image", &image, &self.image));
        }
        let mut compare = |field: &str, before: &str, after: &str| {
            if before != after {
                found.push(difference::phrase(field, before, after));
            }
        };
        let period = Some(number("/HostConfig/CpuPeriod")).filter(|period| *period > 0).unwrap_or(CPU_PERIOD_US);
        let cpu_quota = number("/HostConfig/CpuQuota").saturating_mul(CPU_PERIOD_US) / period;
        compare("memory", &number("/HostConfig/Memory").to_string(), &self.memory.to_string());
        compare("cpu_quota", &cpu_quota.to_string(), &self.cpu_quota.to_string());
        compare("restart_tries", &text("/HostConfig/RestartPolicy/MaximumRetryCount"), &self.restart_tries.to_string());
        compare("privileged", &text("/HostConfig/Privileged"), &self.privileged.to_string());
        let networks = inspect.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
        let networks: Vec<&str> = networks.into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
        compare("network", &networks.join(" "), &self.network);
        let none = Value::Null;
        for Mount { source, destination, access } in &self.mounts {
            let mut mounts = inspect.pointer("/Mounts").and_then(Value::as_array).into_iter().flatten();
            let mount = mounts.find(|mount| mount["Destination"] == *destination).unwrap_or(&none);
            let field = if destination == WORKSPACE { "workspace" } else { destination };
            let before = mount["Source"].as_str().unwrap_or_default();
            // Not as text: `//` and a `/` at the end change nothing.
            if Path::new(before) != Path::new(source) {
                compare(field, before, source);
                continue;
            }
            let before = if mount["RW"] == false { Access::ReadOnly } else { Access::ReadWrite };
            compare(field, before.words(), access.words());
        }
        let env = inspect.pointer("/Config/Env").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let env: SortedMap<&str, &str> = env.filter_map(|pair| pair.split_once('=')).collect();
        for (name, after) in &self.environment {
            let before = env.get(name.as_str()).copied().unwrap_or_default();
            match name.as_str() {
                _ if before == after => {}
                // The variables of a worker are anything.
                name if !PUBLIC.contains(&name) => found.push(format!("{name} (hidden)")),
                CONFIG_JSON => found.extend(difference::of_configurations(before, after, keys(inspect))),
                _ => found.push(difference::phrase(name, before, after)),
            }
        }
        found
    }
}

/// Which keys of a container's configuration count: this program passes all of them on, the Python Controller does not.
fn keys(inspect: &Value) -> Keys {
    let hash = inspect.pointer("/Config/Labels").and_then(|labels| labels[CONFIG_HASH].as_str());
    if hash.is_some_and(|hash| hash.len() == HASH_LENGTH) { Keys::All } else { Keys::Fields }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn recorder() -> RecorderSettings {
        RecorderSettings {
            image: "localhost/rec:1".to_owned(),
            network: "net".to_owned(),
            owner: "controller".to_owned(),
            workspace: PathBuf::from("/data"),
            redis_url: "redis://:secret@h/0".to_owned(),
            memory: 512 << 20,
            cpu_quota: 100_000,
            restart_tries: 5,
            reserve_mb: None,
            privileged: true,
        }
    }

    pub(crate) fn spec(device: &str, card: u32) -> Tier2ServiceSpec {
        let microphone = Microphone { card, pcm: 0, name: "m".to_owned(), usb: None, offer: Offer::default() };
        Tier2ServiceSpec::recorder(
            &recorder(),
            device,
            &microphone,
            &format!("p-{device}"),
            "p",
            r#"{"audio":{"sample_rate":384000}}"#.to_owned(),
        )
    }

    fn engine(rootless: bool, version: Version) -> Engine {
        Engine { version, rootless, runtime: "crun".to_owned(), cgroups: "v2".to_owned() }
    }

    fn inspect_of(spec: &Tier2ServiceSpec) -> Value {
        json!({
            "Name": spec.name, "ImageName": "localhost/rec:1",
            "HostConfig": { "Privileged": true, "Memory": 512 << 20, "CpuQuota": 100_000, "RestartPolicy": { "MaximumRetryCount": 5 } },
            "NetworkSettings": { "Networks": { "net": {} } },
            "Mounts": [{ "Destination": "/app/workspace", "Source": "/data/recorder/p-a", "RW": true }],
            "Config": { "Env": spec.environment.iter().map(|(name, value)| format!("{name}={value}")).chain(["TERM=xterm".to_owned()]).collect::<Vec<_>>() },
        })
    }

    #[test]
    fn the_hash_of_a_recorder_is_that_of_earlier_versions() {
        let with = |tries, privileged| {
            let settings = RecorderSettings { restart_tries: tries, privileged, ..recorder() };
            let microphone = Microphone { card: 2, pcm: 0, name: "m".to_owned(), usb: None, offer: Offer::default() };
            Tier2ServiceSpec::recorder(&settings, "a", &microphone, "p-a", "p", r#"{"audio":{"sample_rate":384000}}"#.to_owned())
                .hash()
                .to_owned()
        };
        assert_eq!([with(5, true), with(0, true), with(5, false)], ["0d506e1ec4d35b91", "3ee44ac381cd06c4", "c40ce4906b84087c"]);
    }

    #[test]
    fn a_reserve_is_passed_on_if_it_is_set_and_replaces_only_recorders_that_have_another() {
        let with = |reserve_mb| {
            let settings = RecorderSettings { reserve_mb, ..recorder() };
            let microphone = Microphone { card: 0, pcm: 0, name: "m".to_owned(), usb: None, offer: Offer::default() };
            Tier2ServiceSpec::recorder(&settings, "a", &microphone, "p-a", "p", r#"{"audio":{"sample_rate":384000}}"#.to_owned())
        };
        let request = with(Some(2000)).create_request(&engine(false, Version(4, 3, 1)), "n");
        assert_eq!(request["env"][RESERVE], "2000");
        assert_eq!(with(None).create_request(&engine(false, Version(4, 3, 1)), "n")["env"].get(RESERVE), None);
        // As Podman shows it, the environment contains that of the image.
        let mut running = inspect_of(&with(None));
        running["Config"]["Env"].as_array_mut().unwrap().push(format!("{RESERVE}=512").into());
        assert_eq!(with(None).differences(&running), Vec::<String>::new());
        assert_eq!(with(Some(512)).differences(&running), Vec::<String>::new());
        assert_eq!(with(Some(0)).differences(&running), ["SILVASONIC_RECORDER_RESERVE_MB 512 -> 0"]);
    }

    /// A worker that declares all that it may.
    pub(crate) fn worker(name: &str) -> Worker {
        Worker {
            name: name.to_owned(),
            image: "localhost/worker:1".to_owned(),
            memory: 512 << 20,
            cpu_quota: 100_000,
            oom_score_adj: 500,
            environment: SortedMap::from([("THRESHOLD".to_owned(), "0.7".to_owned()), (INSTANCE.to_owned(), "x".to_owned())]),
            recordings: Recordings::Read,
            workspace: true,
            database: true,
            enabled: true,
        }
    }

    pub(crate) fn worker_settings() -> WorkerSettings {
        WorkerSettings {
            network: "net".to_owned(),
            owner: "controller".to_owned(),
            workspace: PathBuf::from("/data"),
            redis_url: "redis://:secret@h/0".to_owned(),
            database: SortedMap::from([("POSTGRES_PASSWORD".to_owned(), "secret".to_owned())]),
        }
    }

    #[test]
    fn a_worker_has_no_privileges_and_sees_recordings_read_only() {
        let spec = Tier2ServiceSpec::worker(&worker_settings(), &worker("birdnet"));
        let request = spec.create_request(&engine(false, Version(5, 4, 2)), "n");
        assert_eq!((spec.name.as_str(), spec.service(), spec.device.as_str()), ("silvasonic-birdnet", "birdnet", "birdnet"));
        assert_eq!((&request["privileged"], &request["groups"], request.get("device_cgroup_rule")), (&json!(false), &json!([]), None));
        assert_eq!(request["oom_score_adj"], 500);
        assert_eq!(
            request["mounts"],
            json!([
                { "type": "bind", "source": "/data/recorder", "destination": "/data/recorder", "options": ["rbind", "ro", "z"] },
                { "type": "bind", "source": "/data/birdnet", "destination": "/data/birdnet", "options": ["rbind", "rw", "z"] },
            ])
        );
        let names = ["POSTGRES_PASSWORD", "SILVASONIC_INSTANCE_ID", "SILVASONIC_REDIS_URL", "THRESHOLD"];
        let values = ["secret", "birdnet", "redis://:secret@h/0", "0.7"];
        assert_eq!(request["env"], names.into_iter().zip(values).map(|(name, value)| (name.to_owned(), json!(value))).collect::<Value>());
        assert_eq!(request["labels"].as_object().unwrap().len(), 5);
        assert_eq!(format!("{:?}", worker_settings()), "workers of controller on net, /data");
    }

    proptest::proptest! {
        /// Whatever a declaration contains: either it is refused, or the worker is harmless to Recorders.
        #[test]
        fn no_declared_worker_is_privileged_or_writes_to_a_recorder(
            name in "[a-z0-9./_-]{0,12}|recorder|recorder-.{0,6}|database|birdnet",
            oom in -2000i64..2000,
            memory in "[0-9]{1,4}[kmgx]?",
            recordings in "none|read|write",
            extra in "|privileged: true\n|devices: [/dev/snd]\n|environment: [{] SILVASONIC_INSTANCE_ID: \"x\" [}]\n",
            flags in proptest::array::uniform2(proptest::bool::ANY),
            rootless in proptest::bool::ANY,
        ) {
            let [workspace, database] = flags;
            let text = format!(
                "name: \"{name}\"\nimage: i\noom_score_adj: {oom}\nmemory_limit: {memory}\nrecordings: {recordings}\nworkspace: {workspace}\ndatabase: {database}\n{extra}"
            );
            let Ok(worker) = Worker::from_yaml(&text) else { return Ok(()) };
            let spec = Tier2ServiceSpec::worker(&worker_settings(), &worker);
            let request = spec.create_request(&engine(rootless, Version(4, 9, 0)), &spec.name);
            let of_a_recorder = |path: &str| Path::new(path).starts_with("/data/recorder") || Path::new("/data/recorder").starts_with(path);
            for mount in request["mounts"].as_array().unwrap() {
                let is_read_only = mount["options"].as_array().unwrap().contains(&json!("ro"));
                proptest::prop_assert!(is_read_only || !of_a_recorder(mount["source"].as_str().unwrap()), "{}", mount);
            }
            proptest::prop_assert_eq!(&request["privileged"], &json!(false));
            proptest::prop_assert!(request["oom_score_adj"].as_i64().unwrap() >= 0);
            proptest::prop_assert!(request["resource_limits"]["memory"]["limit"].as_u64().unwrap() >= 6 << 20);
            proptest::prop_assert_eq!(spec.kind(), Kind::Worker);
            proptest::prop_assert!(!spec.name.starts_with("silvasonic-recorder"));
            proptest::prop_assert_eq!(&request["env"][INSTANCE], &json!(worker.name));
        }
    }

    #[test]
    fn the_hash_follows_the_content_and_not_the_labels() {
        assert_eq!(spec("a", 0).hash(), spec("a", 0).hash());
        assert_ne!(spec("a", 0).hash(), spec("a", 1).hash());
        assert_eq!(spec("a", 0).hash().len(), 16);
        assert_eq!(spec("a", 0).labels()[CONFIG_HASH], spec("a", 0).hash());
    }

    #[test]
    fn another_pcm_of_the_card_is_another_spec() {
        let (config, other) = (
            r#"{"audio":{"sample_rate":384000}}"#,
            Microphone { card: 0, pcm: 1, name: "m".to_owned(), usb: None, offer: Offer::default() },
        );
        assert!(!spec("a", 0).is_of(&other, "p-a", "p", config));
        let changed = Tier2ServiceSpec::recorder(&recorder(), "a", &other, "p-a", "p", config.to_owned());
        assert_eq!(changed.environment[DEVICE], "hw:0,1");
        assert_ne!(changed.hash(), spec("a", 0).hash());
    }

    #[test]
    fn no_retries_are_another_policy_as_podman_takes_zero_as_no_limit() {
        let with = |tries| {
            let mut spec = spec("a", 0);
            spec.restart_tries = tries;
            let request = spec.create_request(&engine(false, Version(4, 3, 1)), "n");
            (request["restart_policy"].clone(), request.get("restart_tries").cloned())
        };
        assert_eq!(with(1), (json!("on-failure"), Some(json!(1))));
        assert_eq!(with(0), (json!("no"), None));
    }

    #[test]
    fn a_create_request_fits_the_engine() {
        let spec = spec("a", 0);
        assert_eq!(spec.create_request(&engine(false, Version(4, 3, 1)), "n")["oom_score_adj"], -999);
        let old = spec.create_request(&engine(true, Version(4, 3, 1)), "n");
        assert_eq!(old.get("oom_score_adj"), None);
        assert_eq!(old["annotations"]["run.oci.keep_original_groups"], "1");
        assert_eq!(spec.create_request(&engine(true, Version(5, 4, 2)), "n")["oom_score_adj"], -999);
    }

    #[test]
    fn a_container_as_the_python_controller_creates_it_does_not_differ() {
        let microphone = Microphone { card: 0, pcm: 0, name: "m".to_owned(), usb: None, offer: Offer::default() };
        let config = r#"{"audio":{"channels":1,"format":"S16LE","sample_rate":384000},"processing":{"chunk_size":4096,"gain_db":0.0,"highpass_filter_hz":null},"stream":{"live_stream_enabled":false,"processed_enabled":true,"raw_enabled":true,"segment_duration_s":10}}"#;
        let mut spec = Tier2ServiceSpec::recorder(&recorder(), "a", &microphone, "p-a", "p", config.to_owned());
        spec.image = "rec:1".to_owned();
        spec.mounts[0].source = "/data//recorder/p-a/".to_owned();
        let mut inspect = inspect_of(&spec);
        inspect["Name"] = "another".into();
        inspect["HostConfig"]["CpuPeriod"] = 50_000.into();
        inspect["HostConfig"]["CpuQuota"] = 50_000.into();
        inspect["HostConfig"]["OomScoreAdj"] = 0.into();
        inspect["Config"]["Labels"] = json!({ CONFIG_HASH: "0123456789ab" });
        let env = [
            "SILVASONIC_RECORDER_DEVICE=hw:0,0",
            "SILVASONIC_RECORDER_PROFILE_SLUG=p",
            r#"SILVASONIC_RECORDER_CONFIG_JSON={"audio": {"match": {"usb_vendor_id": "0869"}, "sample_rate": 384000, "match_pattern": null}}"#,
            "SILVASONIC_REDIS_URL=redis://:secret@h/0",
            "SILVASONIC_INSTANCE_ID=a",
        ];
        inspect["Config"]["Env"] = json!(env);
        // The first version does not set the two variables of sound servers, and has no hash.
        assert_eq!(spec.differences(&inspect), Vec::<String>::new());
        // A key that the Python Controller does not pass on is one that only a container of ours can lack.
        let more = config.replace("\"channels\"", "\"mine\":1,\"channels\"");
        let mut spec = Tier2ServiceSpec::recorder(&recorder(), "a", &microphone, "p-a", "p", more);
        spec.image = "rec:1".to_owned();
        assert_eq!(spec.differences(&inspect), Vec::<String>::new());
        inspect["Config"]["Labels"] = json!({ CONFIG_HASH: "0123456789abcdef" });
        assert_eq!(spec.differences(&inspect), ["audio.mine (none) -> 1"]);
    }

    #[test]
    fn every_field_that_matters_is_a_difference() {
        let spec = spec("a", 0);
        let change = |pointer: &str, value: Value| {
            let mut inspect = inspect_of(&spec);
            *inspect.pointer_mut(pointer).unwrap() = value;
            spec.differences(&inspect)
        };
        let table = [
            ("/ImageName", json!("localhost/rec:2"), "image localhost/rec:2 -> localhost/rec:1"),
            ("/HostConfig/Memory", json!(0), "memory 0 -> 536870912"),
            ("/HostConfig/CpuQuota", json!(50_000), "cpu_quota 50000 -> 100000"),
            ("/HostConfig/RestartPolicy/MaximumRetryCount", json!(3), "restart_tries 3 -> 5"),
            ("/HostConfig/Privileged", json!(false), "privileged false -> true"),
            ("/NetworkSettings/Networks", json!({}), "network (none) -> net"),
            ("/Mounts", json!([]), "workspace (none) -> /data/recorder/p-a"),
            ("/Mounts/0/Source", json!("/data/recorder/q"), "workspace /data/recorder/q -> /data/recorder/p-a"),
            ("/Mounts/0/RW", json!(false), "workspace read-only -> read-write"),
        ];
        for (pointer, value, expected) in table {
            assert_eq!(change(pointer, value), [expected], "{pointer}");
        }
        let without = |name: &str| {
            let mut inspect = inspect_of(&spec);
            let env = inspect.pointer_mut("/Config/Env").and_then(Value::as_array_mut).unwrap();
            env.retain(|pair| !pair.as_str().unwrap().starts_with(name));
            spec.differences(&inspect)
        };
        assert_eq!(without("SILVASONIC_RECORDER_DEVICE"), ["SILVASONIC_RECORDER_DEVICE (none) -> hw:0,0"]);
        assert_eq!(without("SILVASONIC_REDIS_URL"), ["SILVASONIC_REDIS_URL (hidden)"]);
        assert_eq!(without("PULSE_SERVER"), Vec::<String>::new());
        assert!(!without("SILVASONIC_RECORDER_CONFIG_JSON").is_empty());
    }

    #[test]
    fn differences_name_fields_and_hide_secrets() {
        let old = spec("a", 0);
        assert_eq!(old.differences(&inspect_of(&old)), Vec::<String>::new());
        let mut new = spec("a", 1);
        new.memory = 1;
        new.environment.insert("SILVASONIC_REDIS_URL".to_owned(), "redis://:other@h/0".to_owned());
        new.environment.insert("SILVASONIC_RECORDER_CONFIG_JSON".to_owned(), r#"{"audio":{"sample_rate":192000}}"#.to_owned());
        assert_eq!(
            new.differences(&inspect_of(&old)),
            [
                "memory 536870912 -> 1",
                "audio.sample_rate 384000 -> 192000",
                "SILVASONIC_RECORDER_DEVICE hw:0,0 -> hw:1,0",
                "SILVASONIC_REDIS_URL (hidden)",
            ]
        );
    }
}
