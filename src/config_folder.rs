//! The folder with `defaults.yml`, `defaults.override.yml`, `profiles/` and `workers/`: reads the files and reports their
//! faults. For what it lacks, the built-in copies serve.
//!
//! It validates what the Controller knows, and passes on the rest. Invariants: a fault names the file and the line that
//! contain it; no file blocks; a YAML file that is not read is reported, unless its name begins with a dot.

use crate::collect::sort_by_key;
use crate::sorted_set::SortedSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use log::debug;
use serde_json::{Map, Value};

use crate::builtin;
use crate::config::has_config;
use crate::decide::profile::Profile;
use crate::decide::worker::Worker;
use crate::text::shown;
use crate::yaml::{self, YamlFault};

/// The settings files, in the order in which they are merged.
const SETTINGS: [&str; 2] = [DEFAULTS, "defaults.override.yml"];
const DEFAULTS: &str = "defaults.yml";
const PROFILES: &str = "profiles";
/// The folder with the declarations of workers.
const WORKERS: &str = "workers";
/// bcrypt ignores all bytes after these.
const PASSWORD_LIMIT: usize = 72;

/// The folder with the defaults and the profiles; `None` = the built-in copies.
#[derive(Clone, Debug)]
pub struct ConfigFolder(Option<PathBuf>);

/// One file of settings or a profile: its name, and its text or why it cannot be read.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: Result<String, YamlFault>,
}

/// A fault in a file.
#[derive(Clone, Debug)]
pub(crate) struct FileFault {
    pub(crate) file: String,
    pub(crate) fault: YamlFault,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fault.in_file(&self.file))
    }
}

/// The sections to seed, and the faults of the others.
type Sections = (Map<String, Value>, Vec<FileFault>);

/// The settings files, parsed and merged.
struct Settings {
    merged: Map<String, Value>,
    /// Name, text and value of each file, in the order in which they were merged.
    files: Vec<(String, String, Value)>,
}

impl Settings {
    /// A fault in a field, in the last file that sets it; in one that nothing sets, in the file with its section.
    fn fault(&self, path: &[&str], what: &str) -> FileFault {
        let depth = |value: &Value| {
            let has = |depth: &usize| value.pointer(&format!("/{}", path[..*depth].join("/"))).is_some();
            (1..=path.len()).take_while(has).count()
        };
        let field = path.join(".");
        let deepest = self.files.iter().map(|(.., value)| depth(value)).max().unwrap_or_default();
        let place = self.files.iter().rev().find(|(.., value)| deepest > 0 && depth(value) == deepest);
        let (file, text, _) = place.or(self.files.first()).map_or((DEFAULTS, "", &Value::Null), |(file, text, value)| (file, text, value));
        FileFault { file: file.to_owned(), fault: YamlFault { line: yaml::line_of(text, &field), what: format!("{field}: {what}") } }
    }
}

impl ConfigFolder {
    /// The folder, or the built-in copies.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self(folder)
    }

    /// Whether it is the built-in copies, so that reading does not wait for a disk.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.0.is_none()
    }

    /// Name and password of the admin user, from the section `auth`; `None` if there is no such section.
    ///
    /// # Errors
    /// The faults of the section.
    pub(crate) fn credentials(&self) -> Result<Option<(String, String)>, Vec<FileFault>> {
        credentials(&self.merged()?).map_err(|fault| vec![fault])
    }

    /// The faults of the settings files.
    pub(crate) fn settings_faults(&self) -> Vec<FileFault> {
        match self.merged() {
            Ok(settings) => {
                [self.ignored_settings(), system_faults(&settings), credentials(&settings).err().into_iter().collect()].concat()
            }
            Err(faults) => [self.ignored_settings(), faults].concat(),
        }
    }

    /// The sections to seed, and the faults of the others. In `system`, the built-in copy completes what the files leave
    /// out, and keys that are null are left out: the services of v0.3.0 expect numbers there, and those of later
    /// versions read an absent key as null.
    ///
    /// # Errors
    /// The faults of files that cannot be read as YAML: then nothing is known.
    pub(crate) fn sections(&self) -> Result<Sections, Vec<FileFault>> {
        let mut settings = self.merged()?;
        let wrong = system_faults(&settings);
        settings.merged.remove("auth");
        if let Some(system) = settings.merged.remove("system").filter(|_| wrong.is_empty()) {
            let mut complete = Self(None).merged()?.merged.remove("system").unwrap_or_default();
            merge(&mut complete, &system);
            if let Some(fields) = complete.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            settings.merged.insert("system".to_owned(), complete);
        }
        Ok((settings.merged, [self.ignored_settings(), wrong].concat()))
    }

    /// The defaults with the override merged into them.
    fn merged(&self) -> Result<Settings, Vec<FileFault>> {
        let in_file = |file: &str, fault: YamlFault| FileFault { file: file.to_owned(), fault };
        let plain = |file: &str, what: String| in_file(file, YamlFault { line: None, what });
        let (mut files, mut faults) = (Vec::new(), Vec::new());
        for Source { name, text } in self.settings_sources() {
            match text.and_then(|text| Ok((yaml::parse(&text)?, text))) {
                Ok((value @ (Value::Object(_) | Value::Null), text)) => files.push((name, text, value)),
                Ok((other, _)) => faults.push(plain(&name, format!("expected sections, got {}", shown(&other.to_string())))),
                Err(fault) => faults.push(in_file(&name, fault)),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        if !files.first().is_some_and(|(name, ..)| is_spelling(name, DEFAULTS)) {
            if let Some(folder) = self.0.as_deref().filter(|folder| !has_config(folder, Path::exists)) {
                return Err(vec![plain(DEFAULTS, format!("no such file in {}", folder.display()))]);
            }
            let built_in = yaml::parse(builtin::DEFAULTS).map_err(|fault| vec![in_file(DEFAULTS, fault)])?;
            files.insert(0, (DEFAULTS.to_owned(), builtin::DEFAULTS.to_owned(), built_in));
        }
        let mut merged = Value::Null;
        files.iter().for_each(|(.., value)| merge(&mut merged, value));
        match merged {
            Value::Object(merged) => Ok(Settings { merged, files }),
            _ => Err(vec![plain(&files[0].0, "expected sections, got an empty file".to_owned())]),
        }
    }

    /// The spellings of the names of the settings files that the folder contains, e.g. `defaults.yaml`; the one that is
    /// read comes first.
    fn settings_spellings(&self) -> [Vec<String>; 2] {
        // Without the right to list the folder, only the usual names are tried.
        let names = self.0.as_deref().and_then(|folder| file_names(folder).ok()).unwrap_or_default();
        SETTINGS.map(|usual| {
            let mut found: Vec<String> = names.iter().filter_map(|name| name.to_str()).map(str::to_owned).collect();
            found.retain(|name| is_spelling(name, usual));
            sort_by_key(&mut found, |name| name != usual);
            if found.is_empty() { vec![usual.to_owned()] } else { found }
        })
    }

    /// The settings files that exist, in the order in which they are merged.
    fn settings_sources(&self) -> Vec<Source> {
        let Some(folder) = &self.0 else {
            return vec![Source { name: DEFAULTS.to_owned(), text: Ok(builtin::DEFAULTS.to_owned()) }];
        };
        let read = |spellings: Vec<String>| {
            let name = spellings.into_iter().next()?;
            let text = read_text(&folder.join(&name)).transpose()?;
            Some(Source { name, text })
        };
        self.settings_spellings().into_iter().filter_map(read).collect()
    }

    /// The names of the settings files that exist.
    pub(crate) fn settings_files(&self) -> Vec<String> {
        let ignored = self.ignored_settings().into_iter().map(|fault| fault.file);
        self.settings_sources().into_iter().map(|source| source.name).chain(ignored).collect()
    }

    /// Settings files that are not read, because there is another spelling of the name.
    fn ignored_settings(&self) -> Vec<FileFault> {
        let ignored = |spellings: Vec<String>| {
            let what = format!("not read, because {} exists, too", spellings[0]);
            let fault = YamlFault { line: None, what };
            spellings.into_iter().skip(1).map(move |file| FileFault { file, fault: fault.clone() })
        };
        self.settings_spellings().into_iter().flat_map(ignored).collect()
    }

    /// The valid profiles, and one line for each fault of the others.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read_profiles(&self) -> Result<(Vec<Profile>, Vec<String>), String> {
        let mut faults = Vec::new();
        let mut profiles: Vec<(String, Profile)> = Vec::new();
        for Source { name, text } in self.profile_sources()? {
            let read = text.map_err(|fault| vec![fault]).and_then(|text| Profile::from_yaml(&text).map(|profile| (text, profile)));
            match read {
                Ok((text, profile)) => match profiles.iter().find_map(|(other, earlier)| slug_conflict(&text, &profile, other, earlier)) {
                    Some(fault) => faults.push(fault.in_file(&name)),
                    None => profiles.push((name, profile)),
                },
                Err(found) => faults.extend(found.iter().map(|fault| fault.in_file(&name))),
            }
        }
        Ok((profiles.into_iter().map(|(_, profile)| profile).collect(), faults))
    }

    /// The declared workers, and one line for each fault of the other files. A built-in worker is replaced by a file with
    /// its name, also if that file has a fault.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read_workers(&self) -> Result<(Vec<Worker>, Vec<String>), String> {
        let built_in = builtin::WORKERS.iter().map(|(name, text)| (format!("{WORKERS}/{name}"), Ok((*text).to_owned())));
        let folder = self.0.as_ref().map(|folder| folder.join(WORKERS));
        let sources = match folder {
            Some(folder) if !matches!(fs::metadata(&folder), Err(error) if error.kind() == ErrorKind::NotFound) => {
                yaml_files(&folder, &format!("{WORKERS}/"))?
            }
            _ => Vec::new(),
        };
        let stem = |name: &str| Path::new(name).file_stem().map(OsStr::to_ascii_lowercase);
        let given: SortedSet<_> = sources.iter().map(|source| stem(&source.name)).collect();
        let all = sources.into_iter().map(|source| (source.name, source.text));
        let (mut workers, mut faults): (Vec<(String, Worker)>, Vec<String>) = (Vec::new(), Vec::new());
        for (is_file, (name, text)) in all.map(|one| (true, one)).chain(built_in.map(|one| (false, one))) {
            match text.map_err(|fault| vec![fault]).and_then(|text| Ok((Worker::from_yaml(&text)?, text))) {
                Ok((worker, text)) => match workers.iter().find(|(_, known)| known.name == worker.name) {
                    Some((other, _)) if is_file => {
                        let what = format!("name: {other} declares {}, too", worker.name);
                        faults.push(YamlFault { line: yaml::line_of(&text, "name"), what }.in_file(&name));
                    }
                    None if is_file || !given.contains(&stem(&name)) => workers.push((name, worker)),
                    _ => {}
                },
                Err(found) => faults.extend(found.iter().map(|fault| fault.in_file(&name))),
            }
        }
        Ok((workers.into_iter().map(|(_, worker)| worker).collect(), faults))
    }

    pub(crate) fn profile_sources(&self) -> Result<Vec<Source>, String> {
        match &self.0 {
            Some(folder) if folder.join(PROFILES).exists() || !has_config(folder, Path::exists) => {
                yaml_files(&folder.join(PROFILES), &format!("{PROFILES}/"))
            }
            _ => {
                let source = |(name, text): &(&str, &str)| Source { name: format!("profiles/{name}"), text: Ok((*text).to_owned()) };
                Ok(builtin::PROFILES.iter().map(source).collect())
            }
        }
    }
}

/// The fault of a profile whose slug an earlier file has.
pub(crate) fn slug_conflict(text: &str, profile: &Profile, other: &str, earlier: &Profile) -> Option<YamlFault> {
    let what = format!("slug: {other} has the slug {}, too", profile.slug);
    (profile.slug == earlier.slug).then(|| YamlFault { line: yaml::line_of(text, "slug"), what })
}

/// Reads the YAML files of a folder in the order of their names, each named with a prefix.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn yaml_files(folder: &Path, prefix: &str) -> Result<Vec<Source>, String> {
    let names = file_names(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut sources = Vec::new();
    for file in names.iter().filter(|file| is_yaml(file)) {
        let name = format!("{prefix}{}", shown(&file.to_string_lossy()));
        // macOS keeps the attributes of `x.yml` in `._x.yml`, and Emacs its lock in `.#x.yml`.
        if file.as_encoded_bytes().starts_with(b".") {
            debug!("{name} is not read: its name begins with a dot");
            continue;
        }
        // `None`: it was deleted meanwhile.
        let text = read_text(&folder.join(file)).transpose();
        sources.extend(text.map(|text| Source { name, text }));
    }
    Ok(sources)
}

fn file_names(folder: &Path) -> io::Result<SortedSet<OsString>> {
    fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

fn is_yaml(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("yml") || extension.eq_ignore_ascii_case("yaml"))
}

/// Whether a name is another spelling of a usual one: `Defaults.YAML` of `defaults.yml`.
fn is_spelling(name: &str, usual: &str) -> bool {
    let stem = |name: &str| Path::new(name).file_stem().map(OsStr::to_ascii_lowercase);
    is_yaml(OsStr::new(name)) && stem(name) == stem(usual)
}

/// Whether a file holds settings and not a profile.
pub(crate) fn is_settings_file(name: &str) -> bool {
    SETTINGS.iter().any(|usual| is_spelling(name, usual))
}

/// Reads a whole file, or finds out that it is too large; `None` if it does not exist. The file is opened without
/// blocking, as a pipe would wait for a writer.
fn read_text(path: &Path) -> Result<Option<String>, YamlFault> {
    let fault = |what: String| YamlFault { line: None, what };
    let failed = |error: io::Error| fault(error.to_string());
    let file = match crate::fs::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => return Err(fault(format!("a link to {}, which does not exist", shown(&target.to_string_lossy())))),
            Err(_) => return Ok(None),
        },
        result => result.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(fault("expected a file".to_owned()));
    }
    if metadata.len() > yaml::SIZE_LIMIT as u64 {
        return Err(fault(format!("expected at most {} bytes, got {}", yaml::SIZE_LIMIT, metadata.len())));
    }
    let mut bytes = Vec::new();
    file.take(yaml::SIZE_LIMIT as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    yaml::decode(bytes).map(Some)
}

/// Merges `over` into `base`, object by object.
pub(crate) fn merge(base: &mut Value, over: &Value) {
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

/// Name and password of the admin user; a station whose users are made elsewhere has none.
fn credentials(settings: &Settings) -> Result<Option<(String, String)>, FileFault> {
    let Some(auth) = settings.merged.get("auth").filter(|auth| !auth.is_null()) else { return Ok(None) };
    let text = |key: &str| {
        let value = auth[key].as_str().filter(|text| !text.is_empty() && !text.contains('\0'));
        value.map(str::to_owned).ok_or_else(|| settings.fault(&["auth", key], "expected a text in quotes"))
    };
    let (user, password) = (text("default_username")?, text("default_password")?);
    if password.len() > PASSWORD_LIMIT {
        let what = format!("expected at most {PASSWORD_LIMIT} bytes, got {}", password.len());
        return Err(settings.fault(&["auth", "default_password"], &what));
    }
    Ok(Some((user, password)))
}

/// The known keys of `system` that have a wrong type or value, each with what was expected.
fn system_faults(settings: &Settings) -> Vec<FileFault> {
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
    let Some(system) = settings.merged.get("system") else { return Vec::new() };
    let Some(fields) = system.as_object() else {
        return vec![settings.fault(&["system"], &format!("expected an object, got {}", shown(&system.to_string())))];
    };
    let wrong = |(key, expected, fits): &Check| {
        let value = fields.get(*key).filter(|value| !fits(value))?;
        Some(settings.fault(&["system", key], &format!("expected {expected}, got {}", shown(&value.to_string()))))
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
        let files = ConfigFolder::new(None);
        let (sections, _) = files.sections().unwrap();
        assert_eq!(sections.keys().collect::<Vec<_>>(), ["system"]);
        assert!(files.settings_faults().is_empty());
        let (profiles, faults) = files.read_profiles().unwrap();
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(profiles.len(), builtin::PROFILES.len());
    }

    /// A config folder with these files, removed when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn with(name: &str, files: &[(&str, &[u8])]) -> Self {
            let folder = std::env::temp_dir().join(format!("silvasonic-config-{name}-{}", std::process::id()));
            fs::create_dir_all(folder.join("profiles")).unwrap();
            files.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
            Self(folder)
        }

        fn workers(&self) -> (Vec<(String, String)>, Vec<String>) {
            let (workers, faults) = ConfigFolder::new(Some(self.0.clone())).read_workers().unwrap();
            (workers.into_iter().map(|worker| (worker.name, worker.image)).collect(), faults)
        }

        fn profiles(&self) -> (Vec<String>, Vec<String>) {
            let (profiles, faults) = ConfigFolder::new(Some(self.0.clone())).read_profiles().unwrap();
            (profiles.into_iter().map(|profile| profile.slug).collect(), faults)
        }

        fn settings(&self) -> Result<Value, Vec<String>> {
            let texts = |faults: &[FileFault]| faults.iter().map(ToString::to_string).collect::<Vec<_>>();
            let files = ConfigFolder::new(Some(self.0.clone()));
            let faults = files.settings_faults();
            match files.sections() {
                Ok((sections, _)) if faults.is_empty() => Ok(Value::Object(sections)),
                _ => Err(texts(&faults)),
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const PROFILE: &str = "schema_version: \"1.0\"\nslug: a\nname: A\naudio:\n  sample_rate: 1\n";

    #[test]
    fn each_profile_file_is_read_or_its_fault_is_named_with_file_and_line() {
        let utf16: Vec<u8> = [0xfeff].into_iter().chain(PROFILE.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        let long = format!("{PROFILE}# {}", "™".repeat(yaml::SIZE_LIMIT));
        let check = |name: &str, bytes: &[u8], expected: Result<(), &str>| {
            let folder = Folder::with("one", &[(&format!("profiles/{name}"), bytes)]);
            let (read, faults) = folder.profiles();
            let expected = match expected {
                Ok(()) => (vec!["a".to_owned()], vec![]),
                Err(fault) => (vec![], vec![fault.to_owned()]),
            };
            assert_eq!((read, faults), expected, "{name}");
        };
        check("a.yml", PROFILE.as_bytes(), Ok(()));
        check("a.yaml", PROFILE.as_bytes(), Ok(()));
        check("B.YML", PROFILE.as_bytes(), Ok(()));
        check("mine.yml", &[b"\xef\xbb\xbf", PROFILE.as_bytes()].concat(), Ok(()));
        check("dos.yml", PROFILE.replace('\n', "\r\n").as_bytes(), Ok(()));
        check("anchor.yml", b"schema_version: &v \"1.0\"\nslug: a\nname: *v\naudio: {sample_rate: 1}\n", Ok(()));
        check("marked.yml", format!("---\n{PROFILE}...\n").as_bytes(), Ok(()));
        check("utf16.yml", &utf16, Err("profiles/utf16.yml: expected UTF-8 text, got UTF-16: save it as UTF-8"));
        check(
            "latin1.yml",
            &[PROFILE.as_bytes(), b"description: K\xe4uzchen\n"].concat(),
            Err("profiles/latin1.yml:6: expected UTF-8 text, got the byte 0xE4: save it as UTF-8"),
        );
        check("empty.yml", b"", Err("profiles/empty.yml: expected the fields of a profile, got an empty file"));
        check("mark.yml", b"\xef\xbb\xbf", Err("profiles/mark.yml: expected the fields of a profile, got an empty file"));
        check("list.yml", b"- a\n", Err("profiles/list.yml: expected the fields of a profile, got [\"a\"]"));
        check(
            "two.yml",
            format!("{PROFILE}---\n{PROFILE}").as_bytes(),
            Err("profiles/two.yml:6: expected one document, but another one begins here"),
        );
        check(
            "twice.yml",
            format!("{PROFILE}  channels: 1\n  sample_rate: 2\n").as_bytes(),
            Err("profiles/twice.yml:7: audio: duplicate key \"sample_rate\""),
        );
        check(
            "merged.yml",
            format!("{PROFILE}stream:\n  <<: {{}}\n").as_bytes(),
            Err("profiles/merged.yml:7: stream: merge keys (<<) are not supported"),
        );
        check(
            "tab.yml",
            b"slug: a\naudio:\n\tsample_rate: 1\n",
            Err(
                "profiles/tab.yml:3: found character that cannot start any token, while scanning for the next token; this line begins with a \
                     tab: indent with spaces",
            ),
        );
        check(
            "open.yml",
            b"slug: [a\n",
            Err("profiles/open.yml:1: did not find expected ',' or ']', while parsing a flow sequence in line 1"),
        );
        check(
            "flow.yml",
            b"{schema_version: \"1.0\", slug: a,\n name: A, audio: {\n  sample_rate: fast}}\n",
            Err("profiles/flow.yml:3: audio.sample_rate: expected a whole number from 1 to 10000000, got \"fast\""),
        );
        check(
            "lost.yml",
            b"schema_version: \"1.0\"\nname: A\naudio: {sample_rate: 1}\n",
            Err("profiles/lost.yml: slug: expected 1-64 of a-z, 0-9, _ and -, got nothing"),
        );
        check("long.yml", long.as_bytes(), Err("profiles/long.yml: expected at most 65536 bytes, got 196672"));
        check(
            "line\nbreak.yml",
            b"a: [\n",
            Err("profiles/line\\nbreak.yml:1: did not find expected node content, while parsing a flow node"),
        );
        check("nul.yml", b"slug: \"\\0\"\n", Err("profiles/nul.yml:1: slug: expected a text without NUL, got \"\\0\""));
    }

    #[test]
    fn hidden_and_other_files_are_not_profiles() {
        let folder = Folder::with(
            "hidden",
            &[
                ("profiles/._c.yml", b"\0\x05\x16\x07\0\x02\0\0Mac OS X"),
                ("profiles/.yml", b"["),
                ("profiles/c.yml~", b"["),
                ("profiles/c.yml.bak", b"["),
                ("profiles/c.yml", PROFILE.as_bytes()),
            ],
        );
        // The lock of Emacs.
        std::os::unix::fs::symlink("user@host.123", folder.0.join("profiles/.#c.yml")).unwrap();
        assert_eq!(folder.profiles(), (vec!["a".to_owned()], vec![]));
    }

    #[test]
    fn of_two_files_with_one_slug_the_later_is_a_fault() {
        let folder = Folder::with("slug", &[("profiles/a.yaml", PROFILE.as_bytes()), ("profiles/a.yml", PROFILE.as_bytes())]);
        assert_eq!(
            folder.profiles(),
            (vec!["a".to_owned()], vec!["profiles/a.yml:2: slug: profiles/a.yaml has the slug a, too".to_owned()])
        );
    }

    #[test]
    fn pipes_folders_links_and_huge_files_are_faults_and_do_not_block() {
        let folder = Folder::with("odd", &[]);
        let profiles = folder.0.join("profiles");
        fs::create_dir(profiles.join("folder.yml")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, profiles.join("pipe.yml"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        fs::File::create(profiles.join("huge.yml")).unwrap().set_len(100 << 20).unwrap();
        std::os::unix::fs::symlink("nowhere", profiles.join("link.yml")).unwrap();
        std::os::unix::fs::symlink("loop.yml", profiles.join("loop.yml")).unwrap();
        let expected = [
            "profiles/folder.yml: expected a file",
            "profiles/huge.yml: expected at most 65536 bytes, got 104857600",
            "profiles/link.yml: a link to nowhere, which does not exist",
            "profiles/loop.yml: Too many levels of symbolic links (os error 40)",
            "profiles/pipe.yml: expected a file",
        ];
        assert_eq!(folder.profiles(), (vec![], expected.map(str::to_owned).to_vec()));
    }

    const DEFAULT: &str = "system:\n  latitude: 1\nauth:\n  default_username: me\n  default_password: \"secret\"\n";

    #[test]
    fn each_settings_file_is_read_or_its_faults_are_named_with_file_and_line() {
        let system = |fields: Value| {
            let mut system = json!({ "max_recorders": 5, "station_name": "Silvasonic", "auto_enrollment": true });
            merge(&mut system, &fields);
            system
        };
        const LONG: &[u8] = b"auth:\n  default_password: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n";
        let check = |files: &[(&str, &[u8])], expected: Result<Value, &[&str]>| {
            let folder = Folder::with("settings", files);
            let expected = expected.map_err(|faults| faults.iter().map(|fault| (*fault).to_owned()).collect::<Vec<_>>());
            let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
            assert_eq!(folder.settings(), expected, "{names:?}");
        };
        check(&[("defaults.yml", DEFAULT.as_bytes())], Ok(json!({ "system": system(json!({ "latitude": 1 })) })));
        check(&[("defaults.yaml", DEFAULT.as_bytes())], Ok(json!({ "system": system(json!({ "latitude": 1 })) })));
        check(
            &[("Defaults.YML", DEFAULT.as_bytes()), ("defaults.override.yaml", b"\xef\xbb\xbfsystem: {latitude: 2}\r\n")],
            Ok(json!({ "system": system(json!({ "latitude": 2 })) })),
        );
        check(
            &[("defaults.yml", DEFAULT.as_bytes()), ("defaults.override.yml", b"# nothing\n")],
            Ok(json!({ "system": system(json!({ "latitude": 1 })) })),
        );
        check(
            &[("defaults.yml", b""), ("defaults.override.yml", DEFAULT.as_bytes())],
            Ok(json!({ "system": system(json!({ "latitude": 1 })) })),
        );
        check(
            &[("._defaults.yml", b"\0\x05"), ("defaults.yml", DEFAULT.as_bytes())],
            Ok(json!({ "system": system(json!({ "latitude": 1 })) })),
        );
        check(
            &[("defaults.yaml", b"["), ("defaults.yml", DEFAULT.as_bytes())],
            Err(&["defaults.yaml: not read, because defaults.yml exists, too"]),
        );
        check(&[("defaults.yml", b"# nothing\n")], Err(&["defaults.yml: expected sections, got an empty file"]));
        check(&[("defaults.yml", b"- a\n")], Err(&["defaults.yml: expected sections, got [\"a\"]"]));
        check(
            &[("defaults.yml", DEFAULT.as_bytes()), ("defaults.override.yml", b"a: [\n")],
            Err(&["defaults.override.yml:1: did not find expected node content, while parsing a flow node"]),
        );
        check(
            &[("defaults.yml", b"a: 1\na: 2\n"), ("defaults.override.yml", b"b: 1\n\nb: 2\n")],
            Err(&["defaults.yml:2: duplicate key \"a\"", "defaults.override.yml:3: duplicate key \"b\""]),
        );
        check(
            &[("defaults.yml", DEFAULT.as_bytes()), ("defaults.override.yml", b"a: 1\n---\nb: 2\n")],
            Err(&["defaults.override.yml:2: expected one document, but another one begins here"]),
        );
        check(
            &[("defaults.yml", DEFAULT.as_bytes()), ("defaults.override.yml", b"a: \"\xe4\"\n")],
            Err(&["defaults.override.yml:1: expected UTF-8 text, got the byte 0xE4: save it as UTF-8"]),
        );
        check(
            &[("defaults.yml", DEFAULT.as_bytes()), ("defaults.override.yml", b"system:\n  latitude: north\n")],
            Err(&["defaults.override.yml:2: system.latitude: expected a number from -90 to 90, or null, got \"north\""]),
        );
        check(
            &[("defaults.yml", DEFAULT.as_bytes()), ("defaults.override.yml", b"x: 1\nsystem: off\n")],
            Err(&["defaults.override.yml:2: system: expected an object, got \"off\""]),
        );
        check(
            &[("defaults.yml", DEFAULT.as_bytes()), ("defaults.override.yml", LONG)],
            Err(&["defaults.override.yml:2: auth.default_password: expected at most 72 bytes, got 73"]),
        );
        check(
            &[("defaults.yml", b"system: {}\nauth:\n  default_username: me\n")],
            Err(&["defaults.yml:2: auth.default_password: expected a text in quotes"]),
        );
        check(
            &[("defaults.yml", b"system: {}\n"), ("defaults.override.yml", b"auth:\n  default_username: 7\n")],
            Err(&["defaults.override.yml:2: auth.default_username: expected a text in quotes"]),
        );
        // A station without an admin user of ours.
        check(
            &[("defaults.yml", b"system: {}\nauth:\n"), ("defaults.override.yml", b"x: {a: null}\n")],
            Ok(json!({ "system": system(json!({})), "x": { "a": null } })),
        );
        check(
            &[("defaults.yml", b"system: {latitude: null, longitude: 10.5, max_recorders: 7, own: null}\n")],
            Ok(json!({ "system": system(json!({ "longitude": 10.5, "max_recorders": 7 })) })),
        );
        let folder = Folder::with("settings", &[("defaults.override.yml", b"[")]);
        let open = "defaults.override.yml:1: did not find expected node content, while parsing a flow node";
        assert_eq!(folder.settings(), Err(vec![open.to_owned()]));
        fs::write(folder.0.join("defaults.yml"), DEFAULT).unwrap();
        fs::remove_file(folder.0.join("defaults.override.yml")).unwrap();
        std::os::unix::fs::symlink("/mnt/usb/override.yml", folder.0.join("defaults.override.yml")).unwrap();
        assert_eq!(folder.settings(), Err(vec!["defaults.override.yml: a link to /mnt/usb/override.yml, which does not exist".to_owned()]));
        fs::remove_file(folder.0.join("defaults.override.yml")).unwrap();
        fs::create_dir(folder.0.join("defaults.override.yml")).unwrap();
        assert_eq!(folder.settings(), Err(vec!["defaults.override.yml: expected a file".to_owned()]));
    }

    #[test]
    fn the_built_in_copies_serve_for_what_a_folder_lacks() {
        let folder = Folder::with("parts", &[("defaults.override.yml", b"system: {latitude: 2}\nauth: {default_password: mine}\n")]);
        fs::remove_dir(folder.0.join("profiles")).unwrap();
        let settings = folder.settings().unwrap();
        assert_eq!((&settings["system"]["latitude"], &settings["system"]["max_recorders"]), (&json!(2), &json!(5)));
        let credentials = ConfigFolder::new(Some(folder.0.clone())).credentials();
        assert_eq!(credentials.unwrap(), Some(("admin".to_owned(), "mine".to_owned())));
        assert_eq!(folder.profiles().0.len(), builtin::PROFILES.len());
        fs::create_dir(folder.0.join("profiles")).unwrap();
        assert_eq!(folder.profiles(), (Vec::new(), Vec::new()));

        fs::remove_file(folder.0.join("defaults.override.yml")).unwrap();
        fs::remove_dir(folder.0.join("profiles")).unwrap();
        assert_eq!(folder.settings(), Err(vec![format!("defaults.yml: no such file in {}", folder.0.display())]));
        assert!(ConfigFolder::new(Some(folder.0.clone())).read_profiles().is_err());
    }

    #[test]
    fn a_wrong_type_in_a_known_key_is_named() {
        let faults = |system: Value| {
            let merged = Map::from_iter([("system".to_owned(), system)]);
            system_faults(&Settings { merged, files: Vec::new() }).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let wrong = faults(json!({ "latitude": "north", "max_recorders": -1, "station_name": 3, "auto_enrollment": "yes", "x": [] }));
        assert_eq!(
            wrong,
            [
                "defaults.yml: system.latitude: expected a number from -90 to 90, or null, got \"north\"",
                "defaults.yml: system.max_recorders: expected a whole number from 0 to 1000, got -1",
                "defaults.yml: system.station_name: expected a text, got 3",
                "defaults.yml: system.auto_enrollment: expected true or false, got \"yes\"",
            ]
        );
        assert!(faults(json!({ "latitude": null, "longitude": 13.4 })).is_empty());
    }

    #[test]
    fn a_file_takes_the_place_of_the_built_in_worker_also_if_it_has_a_fault() {
        let built_in = ("birdnet".to_owned(), "localhost/silvasonic_birdnet:latest".to_owned());
        let folder = Folder::with("workers", &[]);
        assert_eq!(folder.workers(), (vec![built_in.clone()], Vec::new()));
        fs::create_dir(folder.0.join("workers")).unwrap();
        assert_eq!(folder.workers(), (vec![built_in.clone()], Vec::new()));
        let write = |file: &str, text: &str| fs::write(folder.0.join("workers").join(file), text).unwrap();
        write("mine.yml", "name: birdnet\nimage: mine\n");
        assert_eq!(folder.workers().0, [("birdnet".to_owned(), "mine".to_owned())]);
        write("other.yml", "name: birdnet\nimage: other\n");
        assert_eq!(folder.workers().1, ["workers/other.yml:1: name: workers/mine.yml declares birdnet, too"]);
        fs::remove_file(folder.0.join("workers/mine.yml")).unwrap();
        write("other.yml", "name: bats\nimage: bats\n");
        write("birdnet.yml", "name: birdnet\nimage: mine\ncpu: 1\n");
        let (workers, faults) = folder.workers();
        assert_eq!((workers.len(), faults.len()), (1, 1));
        assert!(faults[0].starts_with("workers/birdnet.yml:3: cpu: expected one of name, "), "{faults:?}");
    }
}
