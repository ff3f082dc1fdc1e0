//! The declaration of a worker: a container for analysis or upload, of which there is one.
//!
//! A declaration is a YAML file. Every fault names its field; a file with a fault declares nothing. A declaration has no
//! field for privileges or devices, and no name with which a worker could write into the folder of a Recorder or of
//! another service.

use crate::sorted_map::SortedMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use crate::text::shown;
use crate::yaml::{self, YamlFault};

/// Names of other services of a station: their containers and their folders in the workspace are not for workers.
const RESERVED: [&str; 9] =
    ["controller", "database", "db-viewer", "gateway", "icecast", "processor", "recorder", "redis", "web-interface"];
/// As for Recorders.
const MEMORY: &str = "a size of at least 6m, such as 512m, 1g or 536870912";

/// Settings that are common to all workers.
#[derive(Clone)]
pub struct WorkerSettings {
    /// Network name.
    pub network: String,
    /// Value of the owner label.
    pub owner: String,
    /// Workspace folder on the host.
    pub workspace: PathBuf,
    /// Redis URL as containers reach it.
    pub redis_url: String,
    /// Variables with which a worker connects to the database.
    pub database: SortedMap<String, String>,
}

impl fmt::Debug for WorkerSettings {
    /// Without the URL and the variables, which contain passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "workers of {} on {}, {}", self.owner, self.network, self.workspace.display())
    }
}

/// What a worker may do with the recordings of all microphones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recordings {
    /// Nothing.
    None,
    /// Read them.
    Read,
}

/// A declared worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its name, which is also its service and device id.
    pub name: String,
    /// Image name.
    pub image: String,
    /// Memory limit in bytes.
    pub memory: u64,
    /// CPU limit in microseconds per 100 ms period.
    pub cpu_quota: u64,
    /// How soon the kernel kills it when memory runs out, 0-1000.
    pub oom_score_adj: u16,
    /// Its own variables.
    pub environment: SortedMap<String, String>,
    /// Whether it reads the recordings.
    pub recordings: Recordings,
    /// Whether it has a folder of its own.
    pub workspace: bool,
    /// Whether it gets the variables for the database.
    pub database: bool,
    /// Whether it is enabled when its row is created.
    pub enabled: bool,
}

impl Worker {
    /// Reads a declaration.
    ///
    /// # Errors
    /// All faults, with their lines.
    pub fn from_yaml(text: &str) -> Result<Self, Vec<YamlFault>> {
        let value = yaml::parse(text).map_err(|fault| vec![fault])?;
        if !value.is_object() {
            return Err(vec![YamlFault { line: None, what: format!("expected fields, got {}", found(Some(&value))) }]);
        }
        let mut fields = Fields { value: &value, text, faults: Vec::new() };
        let worker = Self {
            name: fields.required("name", NAME, |value| value.as_str().filter(|name| is_worker_name(name)).map(str::to_owned)),
            image: fields.required("image", "the name of an image", |value| {
                let is_valid = |text: &&str| (1..=255).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
                value.as_str().filter(is_valid).map(str::to_owned)
            }),
            memory: fields.optional("memory_limit", 512 << 20, MEMORY, |value| match value {
                Value::Number(number) => memory_bytes(&number.to_string()),
                value => memory_bytes(value.as_str()?),
            }),
            cpu_quota: fields.optional("cpu_limit", 100_000, "a number of cores from 0.01 to 512", |value| {
                value.as_f64().filter(|cores| (0.01..=512.0).contains(cores)).map(cpu_quota)
            }),
            oom_score_adj: fields.optional("oom_score_adj", 500, "a whole number from 0 to 1000", |value| {
                value.as_u64()?.try_into().ok().filter(|score| *score <= 1000)
            }),
            environment: fields.optional("environment", SortedMap::new(), "variables, each with a text in quotes", environment),
            recordings: fields.optional("recordings", Recordings::None, "none or read", |value| match value.as_str()? {
                "none" => Some(Recordings::None),
                "read" => Some(Recordings::Read),
                _ => None,
            }),
            workspace: fields.optional("workspace", false, BOOLEAN, Value::as_bool),
            database: fields.optional("database", false, BOOLEAN, Value::as_bool),
            enabled: fields.optional("enabled", false, BOOLEAN, Value::as_bool),
        };
        fields.refuse_unknown();
        if fields.faults.is_empty() { Ok(worker) } else { Err(fields.faults) }
    }

    /// Name of its container.
    #[must_use]
    pub fn container_name(&self) -> String {
        format!("silvasonic-{}", self.name)
    }
}

const NAME: &str = "1-40 lower-case letters, digits or `-`, not the name of another service";
const BOOLEAN: &str = "true or false";
const FIELDS: [&str; 10] =
    ["name", "image", "memory_limit", "cpu_limit", "oom_score_adj", "environment", "recordings", "workspace", "database", "enabled"];

/// The fields of a declaration, and the faults that were found.
struct Fields<'a> {
    value: &'a Value,
    text: &'a str,
    faults: Vec<YamlFault>,
}

impl Fields<'_> {
    fn required<T: Default>(&mut self, field: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> T {
        match self.value.get(field) {
            Some(value) if !value.is_null() => self.optional(field, T::default(), expected, read),
            value => {
                self.fault(field, expected, value);
                T::default()
            }
        }
    }

    fn optional<T>(&mut self, field: &str, default: T, expected: &str, read: impl Fn(&Value) -> Option<T>) -> T {
        let Some(value) = self.value.get(field).filter(|value| !value.is_null()) else { return default };
        read(value).unwrap_or_else(|| {
            self.fault(field, expected, Some(value));
            default
        })
    }

    /// A misspelled field would be a default that nobody wanted.
    fn refuse_unknown(&mut self) {
        let names: Vec<&String> = self.value.as_object().into_iter().flat_map(|fields| fields.keys()).collect();
        for name in names.into_iter().filter(|name| !FIELDS.contains(&name.as_str())) {
            let what = format!("{}: expected one of {}", shown(name), FIELDS.join(", "));
            self.faults.push(YamlFault { line: yaml::line_of(self.text, name), what });
        }
    }

    fn fault(&mut self, field: &str, expected: &str, value: Option<&Value>) {
        let what = match field {
            // Its values can be secrets.
            "environment" => format!("{field}: expected {expected}"),
            _ => format!("{field}: expected {expected}, got {}", found(value)),
        };
        self.faults.push(YamlFault { line: yaml::line_of(self.text, field), what });
    }
}

fn found(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| shown(&value.to_string()).to_string())
}

/// Its container is `silvasonic-NAME`, and those of Recorders begin with `silvasonic-recorder-`.
fn is_worker_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=40).contains(&name.len())
        && name.chars().all(|c| is_plain(c) || c == '-')
        && name.starts_with(is_plain)
        && name.ends_with(is_plain)
        && !RESERVED.contains(&name)
        && !name.starts_with("recorder-")
}

fn environment(value: &Value) -> Option<SortedMap<String, String>> {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let pair = |(name, value): (&String, &Value)| {
        let text = value.as_str().filter(|text| !text.contains('\0') && is_name(name))?;
        Some((name.clone(), text.to_owned()))
    };
    value.as_object()?.iter().map(pair).collect()
}

/// `512m` -> 536870912; the same units as in `podman run --memory`.
#[must_use]
pub fn memory_bytes(text: &str) -> Option<u64> {
    const LEAST: u64 = 6 << 20; // With less, runc and crun fail at start, not at create.
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.char_indices().last()? {
        (at, 'b') => (&lower[..at], 0),
        (at, 'k') => (&lower[..at], 10),
        (at, 'm') => (&lower[..at], 20),
        (at, 'g') => (&lower[..at], 30),
        _ => (lower.as_str(), 0),
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (LEAST..=i64::MAX.unsigned_abs()).contains(&bytes).then_some(bytes)
}

/// Cores -> microseconds per period of 100 ms; the kernel accepts whole numbers from 1000 on.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0.01..=512 cores fit")]
#[must_use]
pub fn cpu_quota(cores: f64) -> u64 {
    (cores * 100_000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        Worker::from_yaml(text).unwrap_err().iter().map(|fault| fault.in_file("w.yml")).collect()
    }

    #[test]
    fn a_short_declaration_gets_the_defaults() {
        let worker = Worker::from_yaml("name: bats\nimage: localhost/bats:1\n").unwrap();
        assert_eq!((worker.memory, worker.cpu_quota, worker.oom_score_adj), (512 << 20, 100_000, 500));
        assert_eq!((worker.recordings, worker.workspace, worker.database, worker.enabled), (Recordings::None, false, false, false));
        assert_eq!(worker.container_name(), "silvasonic-bats");
    }

    #[test]
    fn the_built_in_worker_is_that_of_the_python_project() {
        let [(_, text)] = crate::builtin::WORKERS else { panic!("one worker") };
        let worker = Worker::from_yaml(text).unwrap();
        assert_eq!((worker.name.as_str(), worker.image.as_str()), ("birdnet", "localhost/silvasonic_birdnet:latest"));
        assert_eq!((worker.memory, worker.cpu_quota, worker.oom_score_adj), (512 << 20, 100_000, 500));
        assert_eq!((worker.recordings, worker.workspace, worker.database, worker.enabled), (Recordings::Read, true, true, true));
    }

    #[test]
    fn every_fault_names_its_line_field_and_what_is_allowed() {
        for (line, expected) in [
            ("oom_score_adj: -1", "w.yml:3: oom_score_adj: expected a whole number from 0 to 1000, got -1"),
            ("oom_score_adj: -999", "w.yml:3: oom_score_adj: expected a whole number from 0 to 1000, got -999"),
            ("oom_score_adj: 1001", "w.yml:3: oom_score_adj: expected a whole number from 0 to 1000, got 1001"),
            ("memory_limit: 1m", "w.yml:3: memory_limit: expected a size of at least 6m, such as 512m, 1g or 536870912, got \"1m\""),
            ("cpu_limit: 0", "w.yml:3: cpu_limit: expected a number of cores from 0.01 to 512, got 0"),
            ("recordings: write", "w.yml:3: recordings: expected none or read, got \"write\""),
            ("workspace: 1", "w.yml:3: workspace: expected true or false, got 1"),
            ("environment: { TOKEN: 1 }", "w.yml:3: environment: expected variables, each with a text in quotes"),
        ] {
            assert_eq!(faults(&format!("name: a\nimage: b\n{line}\n")), [expected]);
        }
        assert!(faults("name: a\nimage: b\nprivileged: true\n")[0].starts_with("w.yml:3: privileged: expected one of name, image, "));
        assert_eq!(faults("image: b\n").len(), 1);
        assert_eq!(faults("- a\n"), ["w.yml: expected fields, got [\"a\"]"]);
    }

    #[test]
    fn no_worker_has_the_name_or_the_folder_of_another_service() {
        for name in ["recorder", "recorder-x", "controller", "database", "a/b", "..", "A", "-a", "a-", "", "processor"] {
            assert!(faults(&format!("name: \"{name}\"\nimage: b\n"))[0].starts_with("w.yml:1: name: expected "), "{name}");
        }
    }
}
