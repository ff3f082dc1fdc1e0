//! Which differences between a running container and the desired configuration matter to a recording.
//!
//! A container of the Python Controller, or of another version of this program, carries another hash although it would
//! be created alike. So a hash that is not equal says nothing: the fields decide, as `inspect` shows them.
//!
//! | field             | compared                                                                                    |
//! | ----------------- | ------------------------------------------------------------------------------------------- |
//! | image             | by name; without a registry it is local, without a tag `latest`                             |
//! | memory, CPU       | by value; a CPU quota of another period is converted                                        |
//! | restart policy    | by the number of retries                                                                    |
//! | privileged        | by value                                                                                    |
//! | network           | all networks                                                                                |
//! | workspace         | the folder that is mounted at `/app/workspace`, and that it can be written                  |
//! | environment       | the variables of the spec, by value; a variable that is absent is empty                     |
//! | configuration     | the fields of a profile, by value and with their defaults; other keys only in containers    |
//! |                   | that this program created, as Recorders of the Python project get no others                 |
//!
//! Not compared: the name, as a container gets another one while it runs; match criteria in the configuration, as no
//! Recorder uses them; labels; log driver, groups, further mounts and how it is stopped, which change no recording. Nor
//! `oom_score_adj`: it is the same in all versions, and a rootless Podman shows another value than it was given.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;

use serde_json::Value;

use crate::decide::profile::{self, ProfileConfig};
use crate::json;
use crate::text::shown;

/// Which keys of a configuration are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// All.
    All,
    /// The fields of a profile.
    Fields,
}

/// What `inspect` must show so that something that is missing in it is known to be missing.
#[must_use]
pub fn is_complete(inspect: &Value) -> bool {
    inspect["HostConfig"].is_object() && inspect["Config"]["Env"].is_array() && inspect["Mounts"].is_array()
}

/// One difference as a phrase.
#[must_use]
pub fn phrase(field: &str, before: &str, after: &str) -> String {
    format!("{field} {} -> {}", quoted(before), quoted(after))
}

/// Whether two image names mean the same image.
#[must_use]
pub fn is_same_image(one: &str, other: &str) -> bool {
    full_name(one) == full_name(other)
}

fn full_name(image: &str) -> String {
    let registry = if image.contains('/') { "" } else { "localhost/" };
    let has_tag = image.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    format!("{registry}{image}{}", if has_tag { "" } else { ":latest" })
}

/// The differences between two configurations of a Recorder, such as `audio.sample_rate 384000 -> 192000`.
#[must_use]
pub fn of_configurations(before: &str, after: &str, keys: Keys) -> Vec<String> {
    let [before, after] = [before, after].map(|text| fields(text, keys));
    let names: SortedSet<&str> = before.keys().chain(after.keys()).map(String::as_str).collect();
    let get = |fields: &SortedMap<String, String>, name: &str| fields.get(name).cloned().unwrap_or_default();
    let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    changed.map(|name| phrase(name, &get(&before, name), &get(&after, name))).collect()
}

/// The values in a configuration that are set, by path. Two spellings of a number are the same text.
fn fields(text: &str, keys: Keys) -> SortedMap<String, String> {
    fn flatten(path: &str, value: &Value, into: &mut SortedMap<String, String>) {
        let text = match value {
            Value::Object(fields) => return fields.iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, into)),
            Value::Null => return,
            Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string()),
            other => plain(other),
        };
        into.insert(path.trim_start_matches('.').to_owned(), text);
    }
    let value: Value = json::from_str(text).unwrap_or_default();
    // With its defaults, if it is valid.
    let value = ProfileConfig::from_json(&value).map_or(value, |config| config.to_json());
    let mut fields = SortedMap::new();
    flatten("", &value, &mut fields);
    let is_criterion = |path: &str| path == "audio.match_pattern" || path == "audio.match" || path.starts_with("audio.match.");
    fields.retain(|path, text| !text.is_empty() && !is_criterion(path) && (keys == Keys::All || profile::is_field(path)));
    fields
}

/// A value as text; a text without quotes.
#[must_use]
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn quoted(text: &str) -> String {
    if text.is_empty() { "(none)".to_owned() } else { shown(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_name_without_a_registry_or_tag_is_the_full_one() {
        for (one, other, expected) in [
            ("localhost/silvasonic_recorder:latest", "silvasonic_recorder", true),
            ("localhost/silvasonic_recorder", "silvasonic_recorder:latest", true),
            ("localhost:5000/rec", "localhost:5000/rec:latest", true),
            ("localhost/rec:1", "localhost/rec:2", false),
            ("quay.io/a/rec", "rec", false),
        ] {
            assert_eq!(is_same_image(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn configurations_are_compared_by_what_a_recorder_acts_on() {
        let ours = r#"{"audio":{"channels":1,"format":"S16LE","sample_rate":48000},"processing":{"chunk_size":4096,"gain_db":0.0,"highpass_filter_hz":null},
            "stream":{"live_stream_enabled":false,"processed_enabled":false,"raw_enabled":true,"segment_duration_s":10}}"#;
        let without = |before: &str, keys| of_configurations(before, ours, keys);
        // As the versions of the Python project write it.
        for before in [
            r#"{"audio": {"match": {"usb_vendor_id": "19f7"}, "format": "S16LE", "sample_rate": 48000, "match_pattern": null}, "stream": {"processed_enabled": false}}"#,
            r#"{"stream":{"processed_enabled":false},"audio":{"sample_rate":48000,"channels":1,"match":null,"match_pattern":"x"},"processing":{"gain_db":0}}"#,
        ] {
            assert_eq!(without(before, Keys::All), Vec::<String>::new(), "{before}");
        }
        let before = r#"{"audio":{"sample_rate":96000,"mine":"","other":1},"processing":{"highpass_filter_hz":200},"stream":{"processed_enabled":false}}"#;
        assert_eq!(without(before, Keys::Fields), ["audio.sample_rate 96000 -> 48000", "processing.highpass_filter_hz 200 -> (none)"]);
        assert_eq!(without(before, Keys::All)[0], "audio.other 1 -> (none)");
        // What is invalid is compared as it is.
        assert_eq!(without("nonsense", Keys::Fields).len(), 9);
    }
}
