//! The settings of the Recorder: environment variables that the Controller or the image sets.
//!
//! The only reader of the environment. All faults are reported together, without secrets.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;
use silvasonic_controller::decide::profile::ProfileConfig;
use silvasonic_controller::json::from_str;
use silvasonic_controller::redis::publisher::redacted;
use silvasonic_controller::redis_url;
use silvasonic_controller::text::shown;

const NAME: &str = "at most 256 bytes without control characters";

/// What this build does.
const PURPOSE: &str = if cfg!(feature = "capture") {
    "Records one microphone: captures from its sound card and writes WAV files"
} else {
    "Placeholder for the recording of one microphone: reports health and heartbeats, opens no audio device"
};

/// Where the Controller mounts this Recorder's folder.
const WORKSPACE: &str = "/app/workspace";

/// Variable, default (if it may be absent) and meaning.
const VARIABLES: &[(&str, Option<&str>, &str)] = &[
    ("SILVASONIC_RECORDER_DEVICE", None, "ALSA device, hw:N,M"),
    ("SILVASONIC_RECORDER_PROFILE_SLUG", None, "name of the microphone's profile"),
    ("SILVASONIC_RECORDER_CONFIG_JSON", None, "the profile's audio, processing and stream as JSON"),
    ("SILVASONIC_INSTANCE_ID", None, "stable id of the microphone"),
    ("SILVASONIC_REDIS_URL", Some("redis://localhost:6379/0"), "Redis, for heartbeats"),
    ("SILVASONIC_RECORDER_PORT", Some("9500"), "port of /healthy; 0 takes any free port and logs it"),
    #[cfg(feature = "capture")]
    ("SILVASONIC_RECORDER_WORKSPACE", Some(WORKSPACE), "folder in which .buffer/raw and data/raw are"),
    #[cfg(feature = "capture")]
    ("SILVASONIC_RECORDER_RESERVE_MB", Some("512"), "free space of the disk, in 10^6 bytes, that is never written to"),
];

/// The settings that the Controller and the image pass.
pub(crate) struct Settings {
    pub(crate) device: String,
    pub(crate) profile: String,
    pub(crate) config: ProfileConfig,
    pub(crate) instance: String,
    pub(crate) redis_url: String,
    pub(crate) port: u16,
    pub(crate) workspace: PathBuf,
    /// In bytes.
    #[cfg(feature = "capture")]
    pub(crate) reserve: u64,
}

/// Reads the environment of this process.
pub(crate) fn from_environment() -> Result<Settings, Vec<String>> {
    read(|name| std::env::var_os(name))
}

/// Returns all faults together, without secrets. An empty value counts as unset.
fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Settings, Vec<String>> {
    // What is missing is reported first.
    let (mut missing, mut faults) = (Vec::new(), Vec::new());
    let mut checked = |name: &str, expected: &str, is_valid: fn(&str) -> bool| {
        let (_, default, meaning) = VARIABLES.iter().find(|(known, ..)| *known == name)?;
        let value = match (lookup(name).filter(|value| !value.is_empty()), default) {
            (Some(value), _) => value.into_string().map_err(|_| missing.push(format!("{name}: not UTF-8"))).ok()?,
            (None, Some(default)) => (*default).to_owned(),
            (None, None) => {
                missing.push(format!("{name}: missing, expected: {meaning}"));
                return None;
            }
        };
        if is_valid(&value) {
            return Some(value);
        }
        let shown = if name == "SILVASONIC_REDIS_URL" { redacted(&value) } else { shown(&value).to_string() };
        faults.push(format!("{name}: expected {expected}, got \"{shown}\""));
        None
    };
    let device = checked("SILVASONIC_RECORDER_DEVICE", "hw:N,M with two numbers", is_device);
    let profile = checked("SILVASONIC_RECORDER_PROFILE_SLUG", NAME, is_name);
    let config = checked("SILVASONIC_RECORDER_CONFIG_JSON", "JSON", |text| from_str::<Value>(text).is_ok());
    let instance = checked("SILVASONIC_INSTANCE_ID", NAME, is_name);
    let redis_url = checked("SILVASONIC_REDIS_URL", "a Redis URL", |text| redis_url::parse(text).is_some());
    let port = checked("SILVASONIC_RECORDER_PORT", "a port number from 0 to 65535", |text| text.parse::<u16>().is_ok());
    #[cfg(feature = "capture")]
    let reserve = checked("SILVASONIC_RECORDER_RESERVE_MB", "a whole number from 0 to 1000000", |text| {
        text.parse::<u64>().is_ok_and(|megabytes| megabytes <= 1_000_000)
    });
    let workspace = if cfg!(feature = "capture") {
        checked("SILVASONIC_RECORDER_WORKSPACE", "an absolute path", |text| text.starts_with('/'))
    } else {
        Some(WORKSPACE.to_owned())
    };
    let config = config.and_then(|text| {
        let value = from_str(&text).unwrap_or_default();
        let add_faults = |found: Vec<_>| faults.extend(found.iter().map(|fault| format!("SILVASONIC_RECORDER_CONFIG_JSON: {fault}")));
        ProfileConfig::from_row(&value).map_err(add_faults).ok()
    });
    let settings = || {
        Some(Settings {
            device: device?,
            profile: profile?,
            config: config?,
            instance: instance?,
            redis_url: redis_url?,
            port: port?.parse().ok()?,
            workspace: workspace?.into(),
            #[cfg(feature = "capture")]
            reserve: reserve?.parse::<u64>().ok()? * 1_000_000,
        })
    };
    missing.extend(faults);
    settings().filter(|_| missing.is_empty()).ok_or(missing)
}

fn is_device(text: &str) -> bool {
    let is_number = |text: &str| (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.strip_prefix("hw:").and_then(|rest| rest.split_once(',')).is_some_and(|(card, pcm)| is_number(card) && is_number(pcm))
}

/// Users choose names in the database; a name only has to fit into a log line.
fn is_name(text: &str) -> bool {
    text.len() <= 256 && !text.chars().any(char::is_control)
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    let mut text = format!("{PURPOSE}.\n\nUsage: silvasonic-recorder [--help | --version]\n\nSettings are environment variables:\n",);
    for (name, default, meaning) in VARIABLES {
        text.push_str(&format!("  {name}\n      {meaning} [{}]\n", default.unwrap_or("required")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"audio":{"sample_rate":48000}}"#;

    fn read_with(changed: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let usual = [
            ("SILVASONIC_RECORDER_DEVICE", "hw:1,0"),
            ("SILVASONIC_RECORDER_PROFILE_SLUG", "generic_usb"),
            ("SILVASONIC_RECORDER_CONFIG_JSON", CONFIG),
            ("SILVASONIC_INSTANCE_ID", "0869-0389-1"),
        ];
        read(|name| changed.iter().chain(&usual).find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn optional_variables_have_a_default() {
        let settings = read_with(&[]).map_err(|faults| faults.join("\n")).unwrap();
        assert_eq!((settings.redis_url.as_str(), settings.port), ("redis://localhost:6379/0", 9500));
    }

    #[test]
    fn all_faults_are_reported_together_and_without_secrets() {
        let faults = read_with(&[
            ("SILVASONIC_RECORDER_DEVICE", "default"),
            ("SILVASONIC_RECORDER_PROFILE_SLUG", "a\nb"),
            ("SILVASONIC_RECORDER_CONFIG_JSON", r#"{"audio":{"sample_rate":"fast","channels":0}}"#),
            ("SILVASONIC_INSTANCE_ID", ""),
            ("SILVASONIC_REDIS_URL", "ftp://u:secret@x"),
            ("SILVASONIC_RECORDER_PORT", "70000"),
        ])
        .map(|_| ())
        .unwrap_err()
        .join("\n");
        for (name, _, _) in &VARIABLES[..6] {
            assert!(faults.contains(name), "{name} in {faults}");
        }
        assert!(faults.contains("audio.sample_rate: expected") && faults.contains("audio.channels: expected"), "{faults}");
        assert!(!faults.contains("secret"), "{faults}");
        assert!(read_with(&[("SILVASONIC_RECORDER_CONFIG_JSON", "{")]).is_err());
    }

    #[cfg(feature = "capture")]
    #[test]
    fn a_reserve_is_a_number_of_megabytes_and_a_workspace_is_absolute() {
        let settings = read_with(&[]).map_err(|faults| faults.join("\n")).unwrap();
        assert_eq!((settings.reserve, settings.workspace), (512_000_000, PathBuf::from(WORKSPACE)));
        let faults = read_with(&[("SILVASONIC_RECORDER_RESERVE_MB", "1.5"), ("SILVASONIC_RECORDER_WORKSPACE", "data")]);
        let faults = faults.map(|_| ()).unwrap_err().join("\n");
        assert!(
            faults.contains("RESERVE_MB: expected a whole number") && faults.contains("WORKSPACE: expected an absolute path"),
            "{faults}"
        );
    }

    #[test]
    fn devices_are_raw_hardware() {
        let table = [("hw:0,0", true), ("hw:12,3", true), ("plughw:1,0", false), ("hw:1", false), ("hw:,0", false), ("hw:a,0", false)];
        for (text, expected) in table {
            assert_eq!(is_device(text), expected, "{text}");
        }
    }
}
