//! The desired configuration of a Recorder container: its settings, labels, hash and create request.
//!
//! The hash in the label `config_hash` covers everything but the labels, before [`Spec::create_request`] adapts it to
//! the engine. A running container with the desired hash is never changed, nor is one with another hash whose
//! [`Spec::differences`] are none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::collect::by_insertion;
use crate::decide::container::{Engine, Version};
use crate::decide::device::{Microphone, container_name};
use crate::decide::difference::{self, Keys};
use crate::text::fingerprint;

/// Namespace of all our labels.
const LABEL: &str = "io.silvasonic.";

/// Label with the owner: the Controller to which a container belongs.
pub const OWNER: &str = "io.silvasonic.owner";
/// Label with the service of a container; this program manages only `recorder`.
pub const SERVICE: &str = "io.silvasonic.service";
/// Label with the stable id of the microphone.
pub const DEVICE_ID: &str = "io.silvasonic.device_id";
/// Label with [`Spec::hash`].
pub const CONFIG_HASH: &str = "io.silvasonic.config_hash";

const DEVICE: &str = "SILVASONIC_RECORDER_DEVICE";
const CONFIG_JSON: &str = "SILVASONIC_RECORDER_CONFIG_JSON";
/// Where a Recorder finds its workspace.
const WORKSPACE: &str = "/app/workspace";
/// Hexadecimal digits of a hash; that of the Python Controller has twelve.
const HASH_LENGTH: usize = 16;

/// Maximum size of a Recorder's log; conmon drops what exceeds it.
const LOG_BYTES: u64 = 10 << 20;
/// The lowest value at which the kernel may still kill the process when memory runs out.
pub const OOM_SCORE_ADJ: i32 = -999;
/// Major number of all ALSA devices.
const ALSA_MAJOR: u32 = 116;
/// The period of a processor limit.
pub const CPU_PERIOD_US: u64 = 100_000;
/// Time for a Recorder to close its files.
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
    /// Whether its container is privileged.
    pub privileged: bool,
}

/// The desired configuration of one Recorder container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Container name.
    pub name: String,
    /// Workspace folder: the container name without its prefix.
    pub folder: String,
    /// Stable id of the microphone.
    pub device: String,
    profile: String,
    card: u32,
    recorder: Common,
    env: BTreeMap<String, String>,
    hash: String,
}

/// The settings that are common to all Recorders, as strings and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Common {
    image: String,
    network: String,
    owner: String,
    source: String,
    memory: u64,
    cpu_quota: u64,
    restart_tries: u32,
    privileged: bool,
}

impl Spec {
    /// The container that records `microphone` with `profile`, whose settings are `config_json`.
    #[must_use]
    pub fn new(
        recorder: &RecorderSettings,
        device: &str,
        microphone: &Microphone,
        folder: &str,
        profile: &str,
        config_json: String,
    ) -> Self {
        let env = [
            (DEVICE, microphone.alsa_device()),
            ("SILVASONIC_RECORDER_PROFILE_SLUG", profile.to_owned()),
            (CONFIG_JSON, config_json),
            ("SILVASONIC_REDIS_URL", recorder.redis_url.clone()),
            ("SILVASONIC_INSTANCE_ID", device.to_owned()),
            // Empty, so that audio libraries find no sound server and use ALSA.
            ("PULSE_SERVER", String::new()),
            ("PIPEWIRE_RUNTIME_DIR", String::new()),
        ];
        let mut spec = Self {
            name: container_name(folder),
            folder: folder.to_owned(),
            device: device.to_owned(),
            profile: profile.to_owned(),
            card: microphone.card,
            recorder: Common {
                image: recorder.image.clone(),
                network: recorder.network.clone(),
                owner: recorder.owner.clone(),
                source: recorder.workspace.join("recorder").join(folder).to_string_lossy().into_owned(),
                memory: recorder.memory,
                cpu_quota: recorder.cpu_quota,
                restart_tries: recorder.restart_tries,
                privileged: recorder.privileged,
            },
            env: by_insertion(env.into_iter().map(|(name, value)| (name.to_owned(), value))),
            hash: String::new(),
        };
        spec.hash = fingerprint(spec.body().to_string())[..HASH_LENGTH].to_owned();
        spec
    }

    /// Whether a new spec from these inputs would be the same; the settings do not change while the program runs.
    #[must_use]
    pub fn is_of(&self, microphone: &Microphone, folder: &str, profile: &str, config_json: &str) -> bool {
        self.folder == folder
            && self.profile == profile
            && self.env.get(DEVICE).is_some_and(|device| *device == microphone.alsa_device())
            && self.env.get(CONFIG_JSON).is_some_and(|text| text == config_json)
    }

    /// ALSA card index.
    #[must_use]
    pub fn card(&self) -> u32 {
        self.card
    }

    /// Sixteen hexadecimal digits over all but the labels.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Image name.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.recorder.image
    }

    /// Network name.
    #[must_use]
    pub fn network(&self) -> &str {
        &self.recorder.network
    }

    /// Value of the owner label.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.recorder.owner
    }

    /// The labels, by full name.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let labels = [
            ("tier", "2"),
            ("owner", &self.recorder.owner),
            ("service", "recorder"),
            ("device_id", &self.device),
            ("profile", &self.profile),
            ("config_hash", &self.hash),
        ];
        by_insertion(labels.into_iter().map(|(name, value)| (format!("{LABEL}{name}"), value.to_owned())))
    }

    /// Everything but the labels. Keys are sorted, so equal specs produce equal text.
    fn body(&self) -> Value {
        let parts = &self.recorder;
        let mut body = json!({
            "name": self.name,
            "image": parts.image,
            "env": self.env,
            "privileged": parts.privileged,
            "groups": ["audio"],
            "mounts": [
                { "type": "bind", "source": parts.source, "destination": WORKSPACE, "options": ["rbind", "rw", "z"] },
                // A bind mount instead of a device: microphones that are connected later appear in the running
                // container.
                { "type": "bind", "source": "/dev/snd", "destination": "/dev/snd", "options": ["rbind", "rw"] },
            ],
            "netns": { "nsmode": "bridge" },
            "networks": { parts.network.as_str(): {} },
            "restart_policy": "on-failure",
            "restart_tries": parts.restart_tries,
            "resource_limits": {
                "memory": { "limit": parts.memory },
                "cpu": { "period": CPU_PERIOD_US, "quota": parts.cpu_quota },
            },
            "oom_score_adj": OOM_SCORE_ADJ,
            "stop_signal": 15,
            "stop_timeout": STOP_TIMEOUT_S,
            "image_volume_mode": "ignore",
            "log_configuration": { "driver": "k8s-file", "size": LOG_BYTES },
        });
        if parts.restart_tries == 0 {
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
        if !self.recorder.privileged && !engine.rootless {
            // Without privileges the device control group must allow the devices of the bind mount, too. A rootless
            // engine cannot set that; there only the permissions of the files apply.
            request["device_cgroup_rule"] = json!([{ "allow": true, "type": "c", "major": ALSA_MAJOR, "access": "rwm" }]);
        }
        if engine.rootless {
            // The group `audio` in the container is not a group of the host; crun can keep the user's own groups
            // instead.
            request["annotations"] = json!({ "run.oci.keep_original_groups": "1" });
            if engine.version < CLAMPS_OOM_SCORE {
                request.as_object_mut().map(|fields| fields.remove("oom_score_adj"));
            }
        }
        request
    }

    /// The differences between this spec and a container as `inspect` shows it that matter to the recording, one phrase
    /// a field; see [`difference`]. Values that can contain secrets are not shown.
    #[must_use]
    pub fn differences(&self, inspect: &Value) -> Vec<String> {
        let parts = &self.recorder;
        let mut found = Vec::new();
        let text = |pointer: &str| inspect.pointer(pointer).map(difference::plain).unwrap_or_default();
        let number = |pointer: &str| inspect.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        let image = text("/ImageName");
        if !difference::is_same_image(&image, &parts.image) {
            found.push(difference::phrase("image", &image, &parts.image));
        }
        let mut compare = |field: &str, before: &str, after: &str| {
            if before != after {
                found.push(difference::phrase(field, before, after));
            }
        };
        let period = Some(number("/HostConfig/CpuPeriod")).filter(|period| *period > 0).unwrap_or(CPU_PERIOD_US);
        let cpu_quota = number("/HostConfig/CpuQuota").saturating_mul(CPU_PERIOD_US) / period;
        compare("memory", &number("/HostConfig/Memory").to_string(), &parts.memory.to_string());
        compare("cpu_quota", &cpu_quota.to_string(), &parts.cpu_quota.to_string());
        compare("restart_tries", &text("/HostConfig/RestartPolicy/MaximumRetryCount"), &parts.restart_tries.to_string());
        compare("privileged", &text("/HostConfig/Privileged"), &parts.privileged.to_string());
        let networks = inspect.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
        let networks: Vec<&str> = networks.into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
        compare("network", &networks.join(" "), &parts.network);
        let mut mounts = inspect.pointer("/Mounts").and_then(Value::as_array).into_iter().flatten();
        let mount = mounts.find(|mount| mount["Destination"] == WORKSPACE).unwrap_or(&Value::Null);
        let source = mount["Source"].as_str().unwrap_or_default();
        // Not as text: `//` and a `/` at the end change nothing.
        if Path::new(source) != Path::new(&parts.source) {
            compare("workspace", source, &parts.source);
        } else if mount["RW"] == false {
            compare("workspace", "read-only", "read-write");
        }
        let env = inspect.pointer("/Config/Env").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let env: BTreeMap<&str, &str> = by_insertion(env.filter_map(|pair| pair.split_once('=')));
        for (name, after) in &self.env {
            let before = env.get(name.as_str()).copied().unwrap_or_default();
            match name.as_str() {
                _ if before == after => {}
                "SILVASONIC_REDIS_URL" => found.push(format!("{name} (hidden)")),
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
            privileged: true,
        }
    }

    pub(crate) fn spec(device: &str, card: u32) -> Spec {
        let microphone = Microphone { card, pcm: 0, name: "m".to_owned(), usb: None };
        Spec::new(&recorder(), device, &microphone, &format!("p-{device}"), "p", r#"{"audio":{"sample_rate":384000}}"#.to_owned())
    }

    fn engine(rootless: bool, version: Version) -> Engine {
        Engine { version, rootless, runtime: "crun".to_owned(), cgroups: "v2".to_owned() }
    }

    fn inspect_of(spec: &Spec) -> Value {
        json!({
            "Name": spec.name, "ImageName": "localhost/rec:1",
            "HostConfig": { "Privileged": true, "Memory": 512 << 20, "CpuQuota": 100_000, "RestartPolicy": { "MaximumRetryCount": 5 } },
            "NetworkSettings": { "Networks": { "net": {} } },
            "Mounts": [{ "Destination": "/app/workspace", "Source": "/data/recorder/p-a", "RW": true }],
            "Config": { "Env": spec.env.iter().map(|(name, value)| format!("{name}={value}")).chain(["TERM=xterm".to_owned()]).collect::<Vec<_>>() },
        })
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
        let (config, other) = (r#"{"audio":{"sample_rate":384000}}"#, Microphone { card: 0, pcm: 1, name: "m".to_owned(), usb: None });
        assert!(!spec("a", 0).is_of(&other, "p-a", "p", config));
        let changed = Spec::new(&recorder(), "a", &other, "p-a", "p", config.to_owned());
        assert_eq!(changed.env[DEVICE], "hw:0,1");
        assert_ne!(changed.hash(), spec("a", 0).hash());
    }

    #[test]
    fn no_retries_are_another_policy_as_podman_takes_zero_as_no_limit() {
        let with = |tries| {
            let mut spec = spec("a", 0);
            spec.recorder.restart_tries = tries;
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
        let microphone = Microphone { card: 0, pcm: 0, name: "m".to_owned(), usb: None };
        let config = r#"{"audio":{"channels":1,"format":"S16LE","sample_rate":384000},"processing":{"chunk_size":4096,"gain_db":0.0,"highpass_filter_hz":null},"stream":{"live_stream_enabled":false,"processed_enabled":true,"raw_enabled":true,"segment_duration_s":10}}"#;
        let mut spec = Spec::new(&recorder(), "a", &microphone, "p-a", "p", config.to_owned());
        spec.recorder.image = "rec:1".to_owned();
        spec.recorder.source = "/data//recorder/p-a/".to_owned();
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
        let mut spec = Spec::new(&recorder(), "a", &microphone, "p-a", "p", more);
        spec.recorder.image = "rec:1".to_owned();
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
        new.recorder.memory = 1;
        new.env.insert("SILVASONIC_REDIS_URL".to_owned(), "redis://:other@h/0".to_owned());
        new.env.insert("SILVASONIC_RECORDER_CONFIG_JSON".to_owned(), r#"{"audio":{"sample_rate":192000}}"#.to_owned());
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
