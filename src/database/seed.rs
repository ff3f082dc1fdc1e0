//! The seeders: they insert the default settings, the profiles of this version and the admin user, where they are
//! absent.
//!
//! Each seeder has its own transaction. When one fails, it is reported and retried; the others are not affected. Rows
//! that exist are never changed: the user may have edited them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use log::{error, info, warn};
use serde_json::{Map, Value};

use crate::builtin;
use crate::database::connection::{Connection, Transaction, reason};
use crate::database::statements::{self, is_about_text};
use crate::decide::profile::Profile;
use crate::rate_limit::RateLimit;
use crate::text::{ascii, ascii_map, ascii_value, shown};
use crate::yaml;

pub(crate) const DEFAULTS: &str = "defaults.yml";
pub(crate) const OVERRIDE: &str = "defaults.override.yml";
const BCRYPT_COST: u32 = 12;
/// bcrypt ignores all bytes after these.
const PASSWORD_LIMIT: usize = 72;

/// The seeders, and which of them must still run.
pub struct Seeder {
    /// Folder with the files; `None` = the built-in copies.
    folder: Option<PathBuf>,
    pending: BTreeSet<&'static str>,
    rate_limit: RateLimit,
    admin: Admin,
}

enum Admin {
    Unknown,
    /// A hash is being computed for this new user.
    Hashing(String, JoinHandle<Result<String, String>>),
    Done,
}

/// One file of settings or a profile, with its name.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Seeder {
    /// Nothing is seeded yet.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, pending: BTreeSet::new(), rate_limit: RateLimit::default(), admin: Admin::Unknown }
    }

    /// Whether a seeder has not succeeded yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty() || !matches!(self.admin, Admin::Done)
    }

    /// Creates missing tables and columns.
    pub fn schema(&mut self, db: &mut Connection) {
        let result = db.complete_schema().map(|created| created.iter().for_each(|what| info!("database: created {what}")));
        self.report("schema", result.map_err(|error| vec![reason(&error)]));
    }

    /// Inserts the default settings into `system_config`. If `system` is absent, but was known before, it is inserted
    /// as it was last known: a default must not stop Recorders that the user allowed.
    pub fn settings(&mut self, db: &mut Connection, last_system: Option<&Value>) {
        let result = self.sections().map_err(|why| vec![why]).and_then(|(mut sections, faults)| {
            if let Some(known) = last_system.filter(|known| known.is_object()) {
                merge(sections.entry("system").or_insert_with(|| Value::Object(Map::new())), known);
            }
            let insert = |transaction: &mut Transaction<'_>, sections: &Map<String, Value>| -> Result<(), postgres::Error> {
                for (key, value) in sections {
                    if statements::insert_section(transaction, key, value)? {
                        info!("seeded settings {}", shown(key));
                    }
                }
                Ok(())
            };
            let result = match db.transaction(|transaction| insert(transaction, &sections)) {
                Err(error) if is_about_text(&error) => db.transaction(|transaction| insert(transaction, &ascii_map(&sections))),
                result => result,
            };
            result.map_err(|error| vec![reason(&error)])?;
            if faults.is_empty() { Ok(()) } else { Err(faults) }
        });
        self.report("settings", result);
    }

    /// Inserts the profiles of this version into `microphone_profiles`.
    pub fn profiles(&mut self, db: &mut Connection) {
        let result = self.read_profiles().map_err(|why| vec![why]).and_then(|(profiles, faults)| {
            let insert = |transaction: &mut Transaction<'_>, text: fn(&str) -> String, json: fn(&Value) -> Value| {
                for profile in &profiles {
                    let (config, name) = (json(&profile.config.to_json()), text(&profile.name));
                    let description = profile.description.as_deref().map(text);
                    if statements::insert_profile(transaction, &profile.slug, &name, description.as_deref(), &config)? {
                        info!("seeded profile {}", profile.slug);
                    }
                }
                Ok(())
            };
            let result = match db.transaction(|transaction| insert(transaction, str::to_owned, Value::clone)) {
                Err(error) if is_about_text(&error) => db.transaction(|transaction| insert(transaction, ascii, ascii_value)),
                result => result,
            };
            result.map_err(|error| vec![reason(&error)])?;
            if faults.is_empty() { Ok(()) } else { Err(faults) }
        });
        self.report("profiles", result);
    }

    /// Inserts the admin user, or checks its password. To hash or verify a password takes 0.2 s or more, so a separate
    /// thread does it. Returns whether that thread is computing a hash.
    pub fn admin(&mut self, db: &mut Connection) -> bool {
        let result = match std::mem::replace(&mut self.admin, Admin::Unknown) {
            Admin::Done => {
                self.admin = Admin::Done;
                return false;
            }
            Admin::Hashing(user, thread) if !thread.is_finished() => {
                self.admin = Admin::Hashing(user, thread);
                return true;
            }
            Admin::Hashing(user, thread) => match thread.join() {
                Ok(Ok(hash)) => db
                    .insert_user(&user, &hash)
                    .map(|new| new.then(|| info!("seeded user {} with the default password; change it", shown(&user))))
                    .map_err(|error| reason(&error)),
                Ok(Err(why)) => Err(why),
                Err(_) => Err("the thread that computes the hash ended without a result".to_owned()),
            }
            .map(|_| Admin::Done),
            Admin::Unknown => self.begin_admin(db),
        };
        let result = result.map(|state| self.admin = state);
        self.report("auth", result.map_err(|why| vec![why]));
        matches!(self.admin, Admin::Hashing(..))
    }

    /// Name and password of the admin user, from the section `auth`.
    ///
    /// # Errors
    /// The fault of the section.
    pub(crate) fn credentials(&self) -> Result<(String, String), String> {
        let (settings, _) = self.merged()?;
        let auth = settings
            .get("auth")
            .ok_or_else(|| format!("{DEFAULTS}: auth: expected a section with default_username and default_password"))?;
        let text = |key: &str| {
            let value = auth[key].as_str().filter(|text| !text.is_empty() && !text.contains('\0'));
            value.map(str::to_owned).ok_or_else(|| format!("{DEFAULTS}: auth.{key}: expected a text in quotes"))
        };
        let (user, password) = (text("default_username")?, text("default_password")?);
        if password.len() > PASSWORD_LIMIT {
            return Err(format!("{DEFAULTS}: auth.default_password: expected at most {PASSWORD_LIMIT} bytes, got {}", password.len()));
        }
        Ok((user, password))
    }

    fn begin_admin(&self, db: &mut Connection) -> Result<Admin, String> {
        let (user, password) = self.credentials()?;
        let stored = db.password_hash(&user).map_err(|error| reason(&error))?;
        let thread = thread::Builder::new().name("bcrypt".to_owned()).stack_size(128 << 10);
        let shortage = |why: io::Error| format!("cannot start a thread for the password; retrying: {why}");
        let Some(hash) = stored else {
            let hash = move || bcrypt::non_truncating_hash(password, BCRYPT_COST).map_err(|error| error.to_string());
            return thread.spawn(hash).map(|thread| Admin::Hashing(user, thread)).map_err(shortage);
        };
        let verify = move || {
            if bcrypt::verify(password, &hash).unwrap_or(false) {
                warn!("user {} still has the default password; change it", shown(&user));
            }
        };
        thread.spawn(verify).map(|_| Admin::Done).map_err(shortage)
    }

    fn report(&mut self, seeder: &'static str, result: Result<(), Vec<String>>) {
        let faults = match result {
            Ok(()) => {
                self.pending.remove(seeder);
                Vec::new()
            }
            Err(faults) => {
                self.pending.insert(seeder);
                faults
            }
        };
        let group = format!("{seeder} ");
        for fault in &faults {
            if let Some(line) = self.rate_limit.fault(&format!("{group}{fault}"), fault, Instant::now()) {
                error!("seeding {seeder}: {line}");
            }
        }
        self.rate_limit.retain(&group, |known| faults.iter().any(|fault| fault == known));
    }

    /// The faults of the defaults and their override, each as `file: field: what`.
    pub(crate) fn settings_faults(&self) -> Vec<String> {
        match self.sections() {
            Ok((_, faults)) => faults.into_iter().chain(self.credentials().err()).collect(),
            Err(why) => vec![why],
        }
    }

    /// The sections to seed, and the faults of the others.
    fn sections(&self) -> Result<(Map<String, Value>, Vec<String>), String> {
        let (mut settings, overridden) = self.merged()?;
        settings.remove("auth");
        let mut faults = Vec::new();
        if let Some(system) = settings.get("system") {
            let wrong: Vec<(String, String)> = system_faults(system);
            for (key, what) in &wrong {
                let file = if overridden["system"].get(key).is_some() { OVERRIDE } else { DEFAULTS };
                let dot = if key.is_empty() { "" } else { "." };
                faults.push(format!("{file}: system{dot}{key}: {what}"));
            }
            if !wrong.is_empty() {
                settings.remove("system");
            }
        }
        Ok((settings, faults))
    }

    /// The defaults with the override merged into them, and the override alone.
    fn merged(&self) -> Result<(Map<String, Value>, Value), String> {
        let parse = |source: &Source| {
            let value = yaml::parse(&source.text).map_err(|fault| match fault.line {
                Some(line) => format!("{}:{line}: {}", source.name, fault.what),
                None => format!("{}: {}", source.name, fault.what),
            })?;
            match value {
                Value::Object(_) | Value::Null => Ok(value),
                other => Err(format!("{}: expected sections, got {}", source.name, shown(&other.to_string()))),
            }
        };
        let defaults = self.read(DEFAULTS)?.ok_or_else(|| format!("{DEFAULTS}: no such file in {}", self.folder_name()))?;
        let mut settings = parse(&defaults)?;
        let overridden = self.read(OVERRIDE)?.map_or(Ok(Value::Null), |source| parse(&source))?;
        merge(&mut settings, &overridden);
        match settings {
            Value::Object(settings) => Ok((settings, overridden)),
            _ => Err(format!("{DEFAULTS}: expected sections, got an empty file")),
        }
    }

    fn folder_name(&self) -> String {
        self.folder.as_ref().map_or_else(|| "the built-in copy".to_owned(), |folder| folder.display().to_string())
    }

    /// Reads one settings file, if it exists.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Source>, String> {
        let Some(folder) = &self.folder else {
            return Ok((name == DEFAULTS).then(|| Source { name: name.to_owned(), text: builtin::DEFAULTS.to_owned() }));
        };
        match read_text(&folder.join(name)) {
            Ok(text) => Ok(Some(Source { name: name.to_owned(), text })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", folder.join(name).display())),
        }
    }

    /// The valid profiles, and one line for each fault of the others.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read_profiles(&self) -> Result<(Vec<Profile>, Vec<String>), String> {
        let mut faults = Vec::new();
        let mut profiles: Vec<Profile> = Vec::new();
        for source in self.profile_sources(&mut faults)? {
            match Profile::from_yaml(&source.text) {
                Ok(profile) if profiles.iter().any(|other| other.slug == profile.slug) => {
                    faults.push(format!("{}: slug: {} is already used by another file", source.name, profile.slug));
                }
                Ok(profile) => profiles.push(profile),
                Err(lines) => faults.extend(lines.iter().map(|line| format!("{}:{line}", source.name))),
            }
        }
        Ok((profiles, faults))
    }

    pub(crate) fn profile_sources(&self, faults: &mut Vec<String>) -> Result<Vec<Source>, String> {
        match &self.folder {
            Some(folder) => yaml_files(&folder.join("profiles"), "profiles/", faults),
            None => {
                let source = |(name, text): &(&str, &str)| Source { name: format!("profiles/{name}"), text: (*text).to_owned() };
                Ok(builtin::PROFILES.iter().map(source).collect())
            }
        }
    }
}

/// Reads the `*.yml` files of a folder in the order of their names, each named with a prefix. A file that cannot be
/// read becomes a fault.
pub(crate) fn yaml_files(folder: &Path, prefix: &str, faults: &mut Vec<String>) -> Result<Vec<Source>, String> {
    let in_folder = |error: io::Error| format!("{}: {error}", folder.display());
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(in_folder)? {
        names.insert(entry.map_err(in_folder)?.file_name().to_string_lossy().into_owned());
    }
    let mut sources = Vec::new();
    for file in names.iter().filter(|name| name.ends_with(".yml")) {
        let name = format!("{prefix}{file}");
        match read_text(&folder.join(file)) {
            Ok(text) => sources.push(Source { name, text }),
            Err(error) => faults.push(format!("{name}: {error}")),
        }
    }
    Ok(sources)
}

/// Reads a whole file, or as much as shows that it is too large. The file is opened without blocking, as a pipe would
/// wait for a writer.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = crate::fs::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("expected a file"));
    }
    file.take(yaml::SIZE_LIMIT as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Merges `over` into `base`, object by object.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    // An empty section, which templates contain, overrides nothing.
                    Some(known) if known.is_object() && (value.is_object() || value.is_null()) => merge(known, value),
                    _ => drop(base.insert(key.clone(), value.clone())),
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// The known keys of `system` that have a wrong type or value, each with what was expected.
fn system_faults(system: &Value) -> Vec<(String, String)> {
    type Check = (&'static str, &'static str, fn(&Value) -> bool);
    let checks: [Check; 5] = [
        ("latitude", "a number from -90 to 90, or null", |value| {
            value.is_null() || value.as_f64().is_some_and(|degrees| degrees.abs() <= 90.0)
        }),
        ("longitude", "a number from -180 to 180, or null", |value| {
            value.is_null() || value.as_f64().is_some_and(|degrees| degrees.abs() <= 180.0)
        }),
        ("max_recorders", "a whole number from 0 to 1000", |value| value.as_u64().is_some_and(|count| count <= 1000)),
        ("station_name", "a text", Value::is_string),
        ("auto_enrollment", "true or false", Value::is_boolean),
    ];
    let Some(fields) = system.as_object() else {
        return vec![(String::new(), format!("expected an object, got {}", shown(&system.to_string())))];
    };
    let wrong = |(key, expected, fits): &Check| {
        let value = fields.get(*key).filter(|value| !fits(value))?;
        Some(((*key).to_owned(), format!("expected {expected}, got {}", shown(&value.to_string()))))
    };
    checks.iter().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_override_is_merged_deeply() {
        let mut base = json!({ "a": { "x": 1, "y": 2 }, "b": 1, "d": { "x": 1 } });
        merge(&mut base, &json!({ "a": { "y": 3, "z": null }, "b": { "c": 1 }, "d": null }));
        assert_eq!(base, json!({ "a": { "x": 1, "y": 3, "z": null }, "b": { "c": 1 }, "d": { "x": 1 } }));
    }

    #[test]
    fn the_built_in_copies_are_valid_and_complete() {
        let seeder = Seeder::new(None);
        let (sections, faults) = seeder.sections().unwrap();
        assert_eq!(sections.keys().collect::<Vec<_>>(), ["system"]);
        assert_eq!(faults, Vec::<String>::new());
        let (profiles, faults) = seeder.read_profiles().unwrap();
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(profiles.len(), builtin::PROFILES.len());
    }

    #[test]
    fn pipes_folders_and_huge_files_are_faults_and_do_not_block() {
        let folder = std::env::temp_dir().join(format!("silvasonic-seed-{}", std::process::id()));
        let profiles = folder.join("profiles");
        fs::create_dir_all(profiles.join("folder.yml")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, profiles.join("pipe.yml"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        fs::File::create(profiles.join("huge.yml")).unwrap().set_len(100 << 20).unwrap();
        let (read, faults) = Seeder::new(Some(folder.clone())).read_profiles().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(read.is_empty());
        assert_eq!(
            faults,
            [
                "profiles/folder.yml: expected a file",
                "profiles/pipe.yml: expected a file",
                "profiles/huge.yml:expected at most 65536 bytes, got 65537"
            ]
        );
    }

    #[test]
    fn a_wrong_type_in_a_known_key_is_named() {
        let faults =
            system_faults(&json!({ "latitude": "north", "max_recorders": -1, "station_name": 3, "auto_enrollment": "yes", "x": [] }));
        let keys: Vec<&str> = faults.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["latitude", "max_recorders", "station_name", "auto_enrollment"]);
        assert_eq!(faults[0].1, "expected a number from -90 to 90, or null, got \"north\"");
        assert!(system_faults(&json!({ "latitude": null, "longitude": 13.4 })).is_empty());
    }
}
