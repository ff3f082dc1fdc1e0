//! The layer rules, read off the source: which folder may use which, and who alone may do what.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// One file of `src/`: its path below that, and its code without comments, strings and unit tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// The folder that it belongs to; a file at the top stands for itself.
    fn layer(&self) -> &str {
        layer(&self.path)
    }
}

fn layer(path: &str) -> &str {
    path.split_once('/').map_or(path.trim_end_matches(".rs"), |(folder, _)| folder)
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let read = |file: &PathBuf| Source {
        path: file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(),
        code: code(&fs::read_to_string(file).unwrap()),
    };
    files.iter().map(read).collect()
}

/// A file's text up to its unit tests, without line comments and the insides of strings.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut code = String::new();
    for line in text.lines() {
        let (mut quoted, mut escaped, mut before) = (false, false, ' ');
        for c in line.chars() {
            match c {
                '/' if before == '/' && !quoted => {
                    code.pop();
                    break;
                }
                '"' if !escaped && before != '\'' => quoted = !quoted,
                _ if quoted => {}
                c => code.push(c),
            }
            escaped = c == '\\' && !escaped;
            before = c;
        }
        code.push('\n');
    }
    code
}

/// The layers of this crate that a file names in `use` lines and paths.
fn uses(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in ["crate::", "silvasonic_controller::"] {
        for (at, _) in code.match_indices(name) {
            let rest = &code[at + name.len()..];
            // `use crate::{a, b::c}` names several
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
                None => vec![rest],
            };
            for name in names {
                let word: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.insert(word);
            }
        }
    }
    found
}

/// Arrows between layers, each with a file that draws it.
fn arrows(sources: &[Source]) -> BTreeMap<(String, String), String> {
    let mut arrows = BTreeMap::new();
    for source in sources {
        for target in uses(&source.code) {
            if target != source.layer() {
                arrows.insert((source.layer().to_owned(), target), source.path.clone());
            }
        }
    }
    arrows
}

/// A way along the arrows that comes back to where it began, if there is one.
fn circle(arrows: &BTreeMap<(String, String), String>) -> Option<Vec<String>> {
    fn walk(at: &str, way: &mut Vec<String>, done: &mut BTreeSet<String>, arrows: &BTreeMap<(String, String), String>) -> bool {
        if let Some(start) = way.iter().position(|layer| layer == at) {
            way.drain(..start);
            way.push(at.to_owned());
            return true;
        }
        if done.contains(at) {
            return false;
        }
        way.push(at.to_owned());
        for (_, next) in arrows.keys().filter(|(from, _)| from == at) {
            if walk(next, way, done, arrows) {
                return true;
            }
        }
        way.pop();
        done.insert(at.to_owned());
        false
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|(from, _)| {
        let mut way = Vec::new();
        walk(from, &mut way, &mut done, arrows).then_some(way)
    })
}

/// Files outside `allowed` whose code contains one of the words.
fn offenders<'a>(sources: &'a [Source], words: &[&str], allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let named = |source: &'a Source| words.iter().find(|word| source.code.contains(*word)).map(|word| format!("{}: {word}", source.path));
    sources.iter().filter(|source| !allowed(&source.path)).filter_map(named).collect()
}

/// What a file that only decides has no business with.
const EFFECTS: [&str; 13] = [
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "std::process",
    "std::io",
    "std::os",
    "rustix",
    "SystemTime::now",
    "Instant::now",
    "Mutex",
    "mpsc",
    "log::",
];

/// Methods of the Podman client that change something.
const CHANGES: [&str; 6] = [".create(", ".start(", ".stop(", ".remove(", ".rename(", ".unpause("];

#[test]
fn no_layer_uses_one_that_uses_it() {
    assert_eq!(circle(&arrows(&sources())), None);
}

#[test]
fn decisions_use_decisions_and_plain_values_only() {
    let used: BTreeSet<(String, String)> =
        arrows(&sources()).into_iter().filter(|((from, _), _)| from == "decide").map(|((_, to), file)| (to, file)).collect();
    let plain = ["text", "clock", "collect", "json", "sorted_map", "sorted_set", "yaml"];
    let wrong: Vec<_> = used.iter().filter(|(to, _)| !plain.contains(&to.as_str())).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn decisions_have_no_effects_and_read_no_clock() {
    assert_eq!(offenders(&sources(), &EFFECTS, |path| layer(path) != "decide"), Vec::<String>::new());
}

#[test]
fn only_execute_changes_containers() {
    let speaks_to_podman = |source: &Source| uses(&source.code).contains("podman") || source.layer() == "podman";
    let sources: Vec<Source> = sources().into_iter().filter(speaks_to_podman).collect();
    assert!(sources.iter().any(|source| source.path == "containers/execute.rs"));
    let podman_call = |source: &Source| CHANGES.iter().any(|call| source.code.contains(&format!("podman{call}")));
    let callers: Vec<&str> = sources.iter().filter(|source| podman_call(source)).map(|source| source.path.as_str()).collect();
    assert_eq!(callers, ["containers/execute.rs"]);
}

#[test]
fn only_config_reads_the_environment() {
    let allowed = |path: &str| path == "config.rs" || path == "main.rs" || path == "bin/recorder/settings.rs";
    assert_eq!(offenders(&sources(), &["env::var", "env::vars"], allowed), Vec::<String>::new());
}

#[test]
fn foreign_json_is_limited_before_it_is_parsed() {
    // The profile's defaults are constants of its own.
    let allowed = |path: &str| path == "json.rs" || path == "decide/profile.rs";
    let parsers = ["serde_json::from_str", "serde_json::from_slice", "serde_json::from_reader", "serde_json::Deserializer", "read_json"];
    assert_eq!(offenders(&sources(), &parsers, allowed), Vec::<String>::new());
}

#[test]
fn folders_do_not_know_the_loop_nor_the_commands() {
    for ((from, to), file) in arrows(&sources()) {
        let wrong = match to.as_str() {
            "controller" => from != "main",
            "cli" => from != "main",
            _ => false,
        };
        assert!(!wrong, "{file}: {from} uses {to}");
    }
}

#[test]
fn each_rule_can_fail() {
    let source = |path: &str, code: &str| Source { path: path.to_owned(), code: self::code(code) };
    let back = [source("podman/a.rs", "use crate::logs::x;"), source("logs/b.rs", "let y = crate::podman::y();")];
    let way = circle(&arrows(&back)).unwrap();
    assert_eq!(way.len(), 3, "{way:?}");
    let long = [source("a/x.rs", "use crate::{b, text};"), source("b/x.rs", "use crate::c::y;"), source("c/x.rs", "use crate::a::z;")];
    assert!(circle(&arrows(&long)).is_some());
    let effect = [source("decide/x.rs", "fn f() { let now = Instant::now(); }")];
    assert_eq!(offenders(&effect, &EFFECTS, |_| false), ["decide/x.rs: Instant::now"]);
    // Neither a comment, nor a string, nor a unit test draws an arrow.
    let quiet = source(
        "decide/x.rs",
        "//! like crate::podman\nlet x = \"crate::podman \\\" // std::fs\"; // crate::logs\n#[cfg(test)]\nuse crate::cli::x;",
    );
    assert_eq!(uses(&quiet.code), BTreeSet::new());
    assert_eq!(offenders(&[quiet], &EFFECTS, |_| false), Vec::<String>::new());
}
