//! Microphone profiles: their schema, defaults and matching.
//!
//! One table describes every field. The `config` of a profile (`audio`, `processing`, `stream`) is validated in the
//! same way for every source: a file, a database row, the environment of a Recorder. A file must contain values of the
//! right types; in a row, values of other types are converted as the Python services convert them ([`lenient`]), and
//! Recorders receive the converted values. Unknown keys are kept, for Recorders that use them.
//!
//! Invariant: an invalid match criterion matches no microphone, but its profile still serves for recording, so an edit
//! of the criteria never stops a Recorder. In a file, an invalid criterion is a fault.

use std::fmt;

use serde_json::{Map, Value};

use crate::collect::by_insertion;
use crate::decide::device::Microphone;
use crate::decide::lenient;
use crate::text::shown;
use crate::yaml::{self, YamlFault};

/// Allowed values of a field.
enum FieldKind {
    /// A whole number from 1 to this.
    Count(u64),
    /// A finite number from .0 to .1.
    Number(f64, f64),
    /// `true` or `false`.
    Switch,
    /// One of these texts.
    OneOf(&'static [&'static str]),
}

impl FieldKind {
    /// A value of another type that is read as one of this kind.
    fn converted(&self, value: &Value) -> Option<Value> {
        match self {
            Self::Count(_) => lenient::count(value).map(Value::from),
            Self::Number(..) => lenient::number(value).map(Value::from),
            Self::Switch => lenient::switch(value).map(Value::from),
            Self::OneOf(_) => None,
        }
    }
}

/// Which values are valid.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Those of the right type.
    Strict,
    /// Also those that can be converted.
    Lenient,
}

/// Name, kind, and the default as JSON. With an empty default the field is mandatory, with `null` it may be absent.
type Field = (&'static str, FieldKind, &'static str);

const AUDIO: &[Field] = &[
    ("sample_rate", FieldKind::Count(10_000_000), ""),
    ("channels", FieldKind::Count(64), "1"),
    ("format", FieldKind::OneOf(&["S16LE", "S24LE", "S32LE"]), "\"S16LE\""),
];
const PROCESSING: &[Field] = &[
    ("gain_db", FieldKind::Number(-200.0, 200.0), "0.0"),
    ("chunk_size", FieldKind::Count(1 << 24), "4096"),
    ("highpass_filter_hz", FieldKind::Number(0.0, 5_000_000.0), "null"),
];
const STREAM: &[Field] = &[
    ("raw_enabled", FieldKind::Switch, "true"),
    ("processed_enabled", FieldKind::Switch, "true"),
    ("live_stream_enabled", FieldKind::Switch, "false"),
    ("segment_duration_s", FieldKind::Count(86_400), "10"),
];

/// Whether `path`, such as `audio.sample_rate`, is a field that a Recorder uses.
#[must_use]
pub fn is_field(path: &str) -> bool {
    let sections = [("audio", AUDIO), ("processing", PROCESSING), ("stream", STREAM)];
    path.split_once('.').is_some_and(|(section, field)| {
        sections.iter().any(|(name, fields)| *name == section && fields.iter().any(|(name, ..)| *name == field))
    })
}

/// The only schema version.
const SCHEMA_VERSION: &str = "1.0";

/// A field with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFault {
    /// `audio.sample_rate`
    pub field: String,
    /// What was expected, and what was found.
    pub what: String,
}

impl fmt::Display for FieldFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

fn fault(field: &str, expected: &str, value: &Value) -> FieldFault {
    let value = if value.is_null() { "nothing".to_owned() } else { shown(&value.to_string()).to_string() };
    FieldFault { field: field.to_owned(), what: format!("expected {expected}, got {value}") }
}

/// All faults on one line.
#[must_use]
pub fn joined(faults: &[FieldFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The capture format that a profile requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AudioFormat {
    /// Hz.
    pub rate: u64,
    /// Channels.
    pub channels: u64,
    /// `S16LE`.
    pub format: String,
}

/// Match criteria for a microphone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criteria {
    vendor: Option<String>,
    product: Option<String>,
    name: Option<String>,
}

impl Criteria {
    /// Vendor and product id, if both are given.
    #[must_use]
    pub fn ids(&self) -> Option<(&str, &str)> {
        Some((self.vendor.as_deref()?, self.product.as_deref()?))
    }
}

/// A valid `{audio, processing, stream}` with its defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileConfig {
    fields: Map<String, Value>,
    recorder_json: String,
    criteria: Criteria,
    criteria_faults: Vec<FieldFault>,
}

impl ProfileConfig {
    /// Validates a configuration from a file, and adds its defaults.
    ///
    /// # Errors
    /// Every invalid field.
    pub fn from_json(value: &Value) -> Result<Self, Vec<FieldFault>> {
        Self::read(value, Reading::Strict)
    }

    /// Validates a configuration that another program wrote, converts values of other types, and adds its defaults.
    ///
    /// # Errors
    /// Every invalid field.
    pub fn from_row(value: &Value) -> Result<Self, Vec<FieldFault>> {
        Self::read(value, Reading::Lenient)
    }

    fn read(value: &Value, reading: Reading) -> Result<Self, Vec<FieldFault>> {
        let Some(fields) = value.as_object() else {
            return Err(vec![FieldFault { field: "config".to_owned(), what: fault("", "an object", value).what }]);
        };
        let mut fields = fields.clone();
        let mut faults = Vec::new();
        for (name, schema) in [("audio", AUDIO), ("processing", PROCESSING), ("stream", STREAM)] {
            let section = fields.entry(name).or_insert_with(|| Value::Object(Map::new()));
            match section.as_object_mut() {
                Some(section) => schema.iter().for_each(|field| check(name, field, reading, section, &mut faults)),
                None => faults.push(fault(name, "an object", section)),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut criteria_faults = Vec::new();
        let criteria = read_criteria(&fields["audio"]["match"], reading, &mut criteria_faults);
        Ok(Self { recorder_json: recorder_json(&fields), fields, criteria, criteria_faults })
    }

    /// Faults of the match criteria; the profile matches by the others.
    #[must_use]
    pub fn criteria_faults(&self) -> &[FieldFault] {
        &self.criteria_faults
    }

    /// The format in which the sound card should capture.
    #[must_use]
    pub fn capture(&self) -> AudioFormat {
        let audio = &self.fields["audio"];
        let number = |key: &str| audio[key].as_u64().unwrap_or_default();
        let format = audio["format"].as_str().unwrap_or_default().to_owned();
        AudioFormat { rate: number("sample_rate"), channels: number("channels"), format }
    }

    /// The match criteria.
    #[must_use]
    pub fn criteria(&self) -> &Criteria {
        &self.criteria
    }

    /// The whole configuration, for the database.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.fields.clone())
    }

    /// The part that is passed to a Recorder, with sorted keys. It does not contain the match criteria, because a
    /// change of these must not interrupt a recording.
    #[must_use]
    pub fn recorder_json(&self) -> &str {
        &self.recorder_json
    }
}

fn recorder_json(fields: &Map<String, Value>) -> String {
    let sections = ["audio", "processing", "stream"].map(|name| {
        let mut section = fields[name].clone();
        section.as_object_mut().map(|fields| fields.remove("match"));
        (name.to_owned(), section)
    });
    Value::Object(by_insertion(sections)).to_string()
}

fn check(section: &str, (name, kind, default): &Field, reading: Reading, fields: &mut Map<String, Value>, faults: &mut Vec<FieldFault>) {
    let found = fields.get(*name).unwrap_or(&Value::Null);
    if found.is_null() && !default.is_empty() {
        fields.insert((*name).to_owned(), serde_json::from_str(default).unwrap_or_default());
        return;
    }
    let converted = if reading == Reading::Lenient { kind.converted(found) } else { None };
    let value = converted.as_ref().unwrap_or(found);
    let (is_valid, expected) = match kind {
        FieldKind::Count(most) => {
            (value.as_u64().is_some_and(|count| (1..=*most).contains(&count)), format!("a whole number from 1 to {most}"))
        }
        FieldKind::Number(least, most) => {
            (value.as_f64().is_some_and(|number| (*least..=*most).contains(&number)), format!("a number from {least} to {most}"))
        }
        FieldKind::Switch => (value.is_boolean(), "true or false".to_owned()),
        FieldKind::OneOf(words) => (value.as_str().is_some_and(|word| words.contains(&word)), words.join(" or ")),
    };
    if !is_valid {
        faults.push(fault(&format!("{section}.{name}"), &expected, found));
    } else if let (FieldKind::Number(..), Some(number)) = (kind, value.as_f64()) {
        // 12 and 12.0 are the same setting, so their texts must be equal, too.
        fields.insert((*name).to_owned(), number.into());
    } else if let Some(value) = converted {
        fields.insert((*name).to_owned(), value);
    }
}

fn read_criteria(value: &Value, reading: Reading, faults: &mut Vec<FieldFault>) -> Criteria {
    if !value.is_null() && !value.is_object() {
        faults.push(fault("audio.match", "an object", value));
    }
    let mut text = |name: &str, expected: &str, is_valid: fn(&str) -> bool| match &value[name] {
        Value::Null => None,
        // An empty field of a form.
        Value::String(text) if text.is_empty() && reading == Reading::Lenient => None,
        Value::String(text) if is_valid(text) => Some(text.to_lowercase()),
        other => {
            faults.push(fault(&format!("audio.match.{name}"), expected, other));
            None
        }
    };
    let is_id = |text: &str| text.len() == 4 && text.chars().all(|c| c.is_ascii_hexdigit());
    let id = "four hexadecimal digits in quotes";
    Criteria {
        vendor: text("usb_vendor_id", id, is_id),
        product: text("usb_product_id", id, is_id),
        name: text("alsa_name_contains", "a text that is not empty", |text| !text.trim().is_empty()),
    }
}

/// A profile from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Primary key.
    pub slug: String,
    /// Name for users.
    pub name: String,
    /// Description for users.
    pub description: Option<String>,
    /// Settings for the Recorder, and match criteria.
    pub config: ProfileConfig,
}

impl Profile {
    /// Reads a profile file.
    ///
    /// # Errors
    /// Every fault, as `field: what`.
    pub fn from_yaml(text: &str) -> Result<Self, Vec<YamlFault>> {
        let value = yaml::parse(text).map_err(|fault| vec![fault])?;
        if !value.is_object() {
            let found = if value.is_null() { "an empty file".to_owned() } else { shown(&value.to_string()).to_string() };
            return Err(vec![YamlFault { line: None, what: format!("expected the fields of a profile, got {found}") }]);
        }
        let mut faults = Vec::new();
        if value["schema_version"] != SCHEMA_VERSION {
            faults.push(fault("schema_version", &format!("{SCHEMA_VERSION:?}"), &value["schema_version"]));
        }
        let mut required = |name: &str, expected: &str, is_valid: fn(&str) -> bool| match value[name].as_str().filter(|text| is_valid(text))
        {
            Some(text) => text.to_owned(),
            None => {
                faults.push(fault(name, expected, &value[name]));
                String::new()
            }
        };
        let slug = required("slug", "1-64 of a-z, 0-9, _ and -", |text| {
            (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
        });
        let name = required("name", "1-200 characters", |text| (1..=200).contains(&text.chars().count()));
        for name in ["description", "manufacturer", "model"] {
            if !value[name].is_null() && !value[name].is_string() {
                faults.push(fault(name, "a text", &value[name]));
            }
        }
        let sections = ["audio", "processing", "stream"].into_iter().filter_map(|name| Some((name.to_owned(), value.get(name)?.clone())));
        let checked = ProfileConfig::from_json(&Value::Object(by_insertion(sections)));
        faults.extend(checked.iter().flat_map(|config| config.criteria_faults.iter().cloned()));
        match checked {
            Ok(config) if faults.is_empty() => {
                Ok(Self { slug, name, description: value["description"].as_str().map(str::to_owned), config })
            }
            checked => {
                faults.extend(checked.err().into_iter().flatten());
                let located = |fault: &FieldFault| YamlFault { line: yaml::line_of(text, &fault.field), what: fault.to_string() };
                Err(faults.iter().map(located).collect())
            }
        }
    }
}

/// The best of several profiles for one microphone.
#[derive(Debug, PartialEq, Eq)]
pub enum Match {
    /// No profile matches.
    None,
    /// One profile matches best.
    One {
        /// Its slug.
        slug: String,
        /// 100 by USB ids, 50 by name.
        score: u8,
    },
    /// Several profiles match equally.
    Ambiguous {
        /// Their slugs.
        slugs: Vec<String>,
        /// Their score.
        score: u8,
    },
}

/// Score of match criteria: 100 if both USB ids are equal, 50 if the card name contains the name, else 0.
#[must_use]
pub fn score(criteria: &Criteria, vendor: Option<&str>, product: Option<&str>, card_name: &str) -> u8 {
    let same =
        |expected: &Option<String>, id: Option<&str>| expected.is_some() && expected.as_deref() == id.map(str::to_lowercase).as_deref();
    if same(&criteria.vendor, vendor) && same(&criteria.product, product) {
        100
    } else if criteria.name.as_ref().is_some_and(|part| card_name.to_lowercase().contains(part)) {
        50
    } else {
        0
    }
}

/// The profiles that match a microphone, with their scores.
pub fn scores<'a>(profiles: impl Iterator<Item = (&'a str, &'a Criteria)>, microphone: &Microphone) -> impl Iterator<Item = (&'a str, u8)> {
    let usb = microphone.usb.as_ref();
    let (vendor, product) = (usb.map(|usb| usb.vendor.as_str()), usb.map(|usb| usb.product.as_str()));
    profiles.map(move |(slug, criteria)| (slug, score(criteria, vendor, product, &microphone.name))).filter(|(_, score)| *score > 0)
}

/// The profile with the highest score.
pub fn best<'a>(scores: impl Iterator<Item = (&'a str, u8)>) -> Match {
    let scored: Vec<(&str, u8)> = scores.collect();
    let Some(score) = scored.iter().map(|(_, score)| *score).max() else { return Match::None };
    let mut slugs: Vec<String> = scored.into_iter().filter(|(_, own)| *own == score).map(|(slug, _)| slug.to_owned()).collect();
    match slugs.len() {
        1 => Match::One { slug: slugs.remove(0), score },
        _ => Match::Ambiguous { slugs, score },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn criteria(vendor: Option<&str>, product: Option<&str>, name: Option<&str>) -> Criteria {
        let matching = json!({ "usb_vendor_id": vendor, "usb_product_id": product, "alsa_name_contains": name });
        ProfileConfig::from_json(&json!({ "audio": { "sample_rate": 1, "match": matching } })).unwrap().criteria
    }

    fn faults(text: &str) -> Vec<String> {
        Profile::from_yaml(text).unwrap_err().iter().map(|fault| fault.in_file("f")).collect()
    }

    #[test]
    fn defaults_are_added_and_unknown_keys_are_kept() {
        let config = ProfileConfig::from_json(&json!({ "audio": { "sample_rate": 384_000, "x": 1 }, "y": 2 })).unwrap();
        assert_eq!(
            config.to_json(),
            json!({
                "audio": { "sample_rate": 384_000, "channels": 1, "format": "S16LE", "x": 1 },
                "processing": { "gain_db": 0.0, "chunk_size": 4096, "highpass_filter_hz": null },
                "stream": { "raw_enabled": true, "processed_enabled": true, "live_stream_enabled": false, "segment_duration_s": 10 },
                "y": 2,
            })
        );
        assert!(ProfileConfig::from_json(&config.to_json()).is_ok());
    }

    #[test]
    fn the_recorder_does_not_get_the_criteria() {
        let config = ProfileConfig::from_json(&json!({ "audio": { "sample_rate": 1, "match": { "alsa_name_contains": "x" } } })).unwrap();
        assert!(!config.recorder_json().contains("match"));
        assert!(ProfileConfig::from_json(&serde_json::from_str(config.recorder_json()).unwrap()).is_ok());
    }

    #[test]
    fn every_invalid_field_is_reported_with_its_value_and_the_allowed_values() {
        let cases = [
            (json!("x"), "config: expected an object, got \"x\""),
            (json!(7), "config: expected an object, got 7"),
            (json!({}), "audio.sample_rate: expected a whole number from 1 to 10000000, got nothing"),
            (json!({ "audio": 1 }), "audio: expected an object, got 1"),
            (json!({ "audio": { "sample_rate": "fast" } }), "audio.sample_rate: expected a whole number from 1 to 10000000, got \"fast\""),
            (json!({ "audio": { "sample_rate": 0 } }), "audio.sample_rate: expected a whole number from 1 to 10000000, got 0"),
            (json!({ "audio": { "sample_rate": 1, "format": "MP3" } }), "audio.format: expected S16LE or S24LE or S32LE, got \"MP3\""),
            (json!({ "audio": { "sample_rate": 1 }, "stream": { "raw_enabled": 1 } }), "stream.raw_enabled: expected true or false, got 1"),
            (
                json!({ "audio": { "sample_rate": 1 }, "processing": { "gain_db": "loud" } }),
                "processing.gain_db: expected a number from -200 to 200, got \"loud\"",
            ),
        ];
        for (config, expected) in cases {
            assert_eq!(joined(&ProfileConfig::from_json(&config).unwrap_err()), expected);
        }
    }

    /// A profile with one field set, as a row or a file contains it.
    fn with(field: &str, value: &str) -> Value {
        let (section, name) = field.split_once('.').unwrap();
        let mut config = json!({ "audio": { "sample_rate": 48_000 }, "processing": {}, "stream": {} });
        config[section][name] = serde_json::from_str(value).unwrap();
        config
    }

    #[test]
    fn a_row_is_read_as_pydantic_reads_it_and_a_file_is_not() {
        let whole = |most: &str| format!("a whole number from 1 to {most}");
        let rate = whole("10000000");
        let table = [
            ("audio.sample_rate", "\"96000\"", Ok("96000")),
            ("audio.sample_rate", "\" 96_000.0 \"", Ok("96000")),
            ("audio.sample_rate", "44100.0", Ok("44100")),
            ("audio.sample_rate", "44100.5", Err(rate.as_str())),
            ("audio.sample_rate", "\"44100.5\"", Err(&rate)),
            ("audio.sample_rate", "\"0\"", Err(&rate)),
            ("audio.sample_rate", "\"-1\"", Err(&rate)),
            ("audio.sample_rate", "\"10000001\"", Err(&rate)),
            ("audio.sample_rate", "\"48 kHz\"", Err(&rate)),
            ("audio.sample_rate", "\"\"", Err(&rate)),
            ("audio.sample_rate", "[48000]", Err(&rate)),
            ("audio.channels", "\"2\"", Ok("2")),
            ("audio.channels", "2.0", Ok("2")),
            ("audio.channels", "true", Ok("1")),
            ("audio.channels", "false", Err("a whole number from 1 to 64")),
            ("audio.channels", "\"65\"", Err("a whole number from 1 to 64")),
            ("audio.format", "\"s16le\"", Err("S16LE or S24LE or S32LE")),
            ("audio.format", "16", Err("S16LE or S24LE or S32LE")),
            ("processing.gain_db", "\"12\"", Ok("12.0")),
            ("processing.gain_db", "\" -1.5e1\"", Ok("-15.0")),
            ("processing.gain_db", "true", Ok("1.0")),
            ("processing.gain_db", "\"nan\"", Err("a number from -200 to 200")),
            ("processing.gain_db", "\"inf\"", Err("a number from -200 to 200")),
            ("processing.gain_db", "\"201\"", Err("a number from -200 to 200")),
            ("processing.gain_db", "\"12 dB\"", Err("a number from -200 to 200")),
            ("processing.chunk_size", "\"8192\"", Ok("8192")),
            ("processing.chunk_size", "\"1e3\"", Err("a whole number from 1 to 16777216")),
            ("processing.highpass_filter_hz", "\"1000\"", Ok("1000.0")),
            ("processing.highpass_filter_hz", "\"\"", Err("a number from 0 to 5000000")),
            ("stream.raw_enabled", "\"true\"", Ok("true")),
            ("stream.raw_enabled", "\"YES\"", Ok("true")),
            ("stream.raw_enabled", "1", Ok("true")),
            ("stream.processed_enabled", "\"off\"", Ok("false")),
            ("stream.processed_enabled", "0.0", Ok("false")),
            ("stream.live_stream_enabled", "2", Err("true or false")),
            ("stream.live_stream_enabled", "\"perhaps\"", Err("true or false")),
            ("stream.live_stream_enabled", "\"\"", Err("true or false")),
            ("stream.segment_duration_s", "\"15\"", Ok("15")),
            ("stream.segment_duration_s", "15.0", Ok("15")),
            ("stream.segment_duration_s", "\"86401\"", Err("a whole number from 1 to 86400")),
        ];
        for (field, value, expected) in table {
            let config = with(field, value);
            match (ProfileConfig::from_row(&config), expected) {
                (Ok(read), Ok(normalised)) => {
                    let recorder: Value = serde_json::from_str(read.recorder_json()).unwrap();
                    let (section, name) = field.split_once('.').unwrap();
                    assert_eq!(recorder[section][name].to_string(), normalised, "{field} {value}");
                    assert_eq!(read.to_json()[section][name], recorder[section][name], "{field} {value}");
                }
                (Err(faults), Err(expected)) => {
                    assert_eq!(joined(&faults), format!("{field}: expected {expected}, got {value}"));
                }
                (read, _) => panic!("{field} {value}: {read:?}"),
            }
            // A number without a fraction for a number with one is of the right type.
            assert!(ProfileConfig::from_json(&config).is_err(), "{field} {value}");
        }
    }

    #[test]
    fn what_recorders_get_from_a_row_with_the_right_types_is_as_from_a_file() {
        let config = json!({
            "schema_version": "2.0", "later": { "x": "1" },
            "audio": { "sample_rate": 384_000, "channels": 1, "format": "S16LE", "match_pattern": null, "match": { "usb_vendor_id": "0869" }, "x": "5" },
            "processing": { "gain_db": 12, "chunk_size": 8192, "highpass_filter_hz": null },
            "stream": { "raw_enabled": true, "segment_duration_s": 15, "y": "true" },
        });
        let row = ProfileConfig::from_row(&config).unwrap();
        assert_eq!(row, ProfileConfig::from_json(&config).unwrap());
        // A change of this text replaces running Recorders.
        assert_eq!(
            row.recorder_json(),
            r#"{"audio":{"channels":1,"format":"S16LE","match_pattern":null,"sample_rate":384000,"x":"5"},"processing":{"chunk_size":8192,"gain_db":12.0,"highpass_filter_hz":null},"stream":{"live_stream_enabled":false,"processed_enabled":true,"raw_enabled":true,"segment_duration_s":15,"y":"true"}}"#
        );
    }

    #[test]
    fn in_a_row_an_invalid_criterion_leaves_the_others() {
        let read = |matching: Value| ProfileConfig::from_row(&json!({ "audio": { "sample_rate": 1, "match": matching } })).unwrap();
        let form = read(json!({ "usb_vendor_id": "", "usb_product_id": "", "alsa_name_contains": "UMC" }));
        assert_eq!((form.criteria(), form.criteria_faults()), (&criteria(None, None, Some("umc")), &[][..]));
        let odd = read(json!({ "usb_vendor_id": "0x1397", "usb_product_id": "0509", "alsa_name_contains": "UMC" }));
        assert_eq!(score(odd.criteria(), Some("1397"), Some("0509"), "UMC204HD"), 50);
        assert_eq!(joined(odd.criteria_faults()), "audio.match.usb_vendor_id: expected four hexadecimal digits in quotes, got \"0x1397\"");
    }

    #[test]
    fn invalid_criteria_match_nothing_but_do_not_stop_a_recording() {
        let cases = [
            (json!("x"), "audio.match: expected an object, got \"x\""),
            (json!({ "usb_vendor_id": 869 }), "audio.match.usb_vendor_id: expected four hexadecimal digits in quotes, got 869"),
            (json!({ "alsa_name_contains": "" }), "audio.match.alsa_name_contains: expected a text that is not empty, got \"\""),
        ];
        for (matching, expected) in cases {
            let config = ProfileConfig::from_json(&json!({ "audio": { "sample_rate": 1, "match": matching } })).unwrap();
            assert_eq!(joined(config.criteria_faults()), expected);
            assert_eq!(config.criteria(), &Criteria::default());
        }
        let text = "schema_version: '1.0'\nslug: a\nname: x\naudio:\n  sample_rate: 1\n  match:\n    usb_vendor_id: 869\n";
        assert!(faults(text)[0].starts_with("f:7: audio.match.usb_vendor_id: "));
    }

    #[test]
    fn two_spellings_of_a_number_are_one_recorder_setting() {
        let text = |gain: &str| {
            let value = format!(r#"{{"processing": {{"gain_db": {gain}}}, "audio": {{"sample_rate": 48000}}}}"#);
            ProfileConfig::from_json(&serde_json::from_str(&value).unwrap()).unwrap().recorder_json().to_owned()
        };
        assert_eq!(text("12"), text("12.0"));
        assert!(text("12").starts_with(r#"{"audio":{"channels":1,"format":"S16LE","sample_rate":48000},"processing":"#));
    }

    #[test]
    fn faults_in_a_file_are_reported_with_lines() {
        let text = "schema_version: \"1.0\"\nslug: Bad Slug\nname: x\naudio:\n  sample_rate: fast\n";
        assert_eq!(
            faults(text),
            [
                "f:2: slug: expected 1-64 of a-z, 0-9, _ and -, got \"Bad Slug\"",
                "f:5: audio.sample_rate: expected a whole number from 1 to 10000000, got \"fast\"",
            ]
        );
        for (text, expected) in [
            ("", "f: expected the fields of a profile, got an empty file"),
            ("\u{feff}# nothing\n", "f: expected the fields of a profile, got an empty file"),
            ("- slug: a\n", "f: expected the fields of a profile, got [{\"slug\":\"a\"}]"),
            ("slug\n", "f: expected the fields of a profile, got \"slug\""),
            ("schema_version: '1.0'\nname: a\naudio: {sample_rate: 1}\n", "f: slug: expected 1-64 of a-z, 0-9, _ and -, got nothing"),
            (
                "schema_version: '1.0'\nslug: a\nname: a\naudio:\n  channels: 1\n",
                "f:4: audio.sample_rate: expected a whole number from 1 to 10000000, got nothing",
            ),
        ] {
            assert_eq!(faults(text), [expected]);
        }
    }

    #[test]
    fn scores_depend_on_the_ids_then_the_name() {
        let both = criteria(Some("0869"), Some("0389"), Some("ultra"));
        let upper = criteria(Some("19F7"), Some("00AB"), None);
        let cases = [
            (&both, Some("0869"), Some("0389"), "x", 100),
            (&both, Some("0869"), Some("0000"), "x", 0),
            (&both, Some("0869"), Some("0000"), "UltraMic", 50),
            (&both, None, None, "an ULTRA", 50),
            (&upper, Some("19f7"), Some("00ab"), "", 100),
            (&criteria(None, None, None), Some("19f7"), Some("00ab"), "x", 0),
            (&criteria(Some("19f7"), None, None), Some("19f7"), None, "x", 0),
        ];
        for (criteria, vendor, product, name, expected) in cases {
            assert_eq!(score(criteria, vendor, product, name), expected, "{criteria:?} {vendor:?} {product:?} {name}");
        }
    }

    #[test]
    fn equal_best_scores_are_ambiguous() {
        let (name, ids) = (criteria(None, None, Some("mic")), criteria(Some("0001"), Some("0002"), None));
        let scored = |criteria: &Criteria| score(criteria, Some("0001"), Some("0002"), "Mic");
        let find = |profiles: &[(&'static str, &Criteria)]| match best(profiles.iter().map(|(slug, criteria)| (*slug, scored(criteria)))) {
            Match::None => "none".to_owned(),
            Match::One { slug, score } => format!("{slug} {score}"),
            Match::Ambiguous { slugs, score } => format!("{} {score}", slugs.join("=")),
        };
        assert_eq!(find(&[]), "none");
        assert_eq!(find(&[("a", &name), ("b", &ids)]), "b 100");
        assert_eq!(find(&[("a", &name), ("b", &name)]), "a=b 50");
        assert_eq!(find(&[("a", &ids), ("b", &ids), ("c", &name)]), "a=b 100");
    }
}
