//! `silvasonic-controller workers`: shows the workers, and why each runs or not.

use crate::sorted_set::SortedSet;

use serde_json::{Map, Value, json};

use crate::cli::arguments::{Arguments, Format};
use crate::cli::devices::{cannot_read, heartbeat};
use crate::config::Config;
use crate::config_folder::ConfigFolder;
use crate::containers::lister::tier2;
use crate::database::connection::{Connection, reason};
use crate::decide::registry::Registry;
use crate::decide::scope::Scope;
use crate::decide::worker::Worker;
use crate::decide::workers::{desired, reasons, specs};
use crate::json::one_line;
use crate::podman::client::Podman;
use crate::text::{shown, table};

/// Shows the workers.
///
/// # Errors
/// Why the declarations or the database cannot be read.
pub fn show(config: &Config, given: &Arguments<'_>) -> Result<(bool, String), String> {
    let (workers, mut notes) = ConfigFolder::new(config.config_dir.clone()).read_workers()?;
    let rows = Connection::connect_for_command(&config.database)
        .and_then(|mut db| db.snapshot(&Scope::Everything).map_err(|error| reason(&error)))
        .map_err(|why| cannot_read(&why))?;
    let registry = Registry::read(&rows, None);
    let desired = desired(&specs(&config.workers, &workers), &registry, true, None);
    let containers =
        tier2(&Podman::new(config.socket.clone()), &config.recorder.owner).map_err(|error| format!("{}: {error}", config.socket.display()));
    notes.extend(containers.as_ref().err().map(|why| format!("cannot read Podman: {why}")));
    let containers = containers.as_deref().map_err(String::as_str);
    let mut found = reasons(&desired, Some(&registry), &Default::default(), containers);
    // If the last heartbeat agrees, it knows what the worker waits for.
    for (name, reported) in heartbeat(config, "workers") {
        if let Some(own) = found.get_mut(&name).filter(|own| ["enabled", "running"].iter().all(|key| own[*key] == reported[*key])) {
            *own = reported;
        }
    }
    Ok((
        true,
        match given.format() {
            Format::Json => one_line(&json!({ "workers": found, "notes": notes }).to_string()) + "\n",
            Format::Text => to_text(&workers, &found, &notes),
        },
    ))
}

fn to_text(workers: &[Worker], found: &Map<String, Value>, notes: &[String]) -> String {
    let word = |value: &Value, yes: &str, no: &str| value.as_bool().map_or("unknown", |is| if is { yes } else { no }).to_owned();
    let mut cells = vec![["NAME", "IMAGE", "ROW", "CONTAINER", "STATE"].map(str::to_owned)];
    cells.extend(workers.iter().map(|worker| {
        let state = &found[&worker.name];
        let reason = state["reason"].as_str().unwrap_or_default();
        [
            worker.name.clone(),
            worker.image.clone(),
            word(&state["enabled"], "enabled", "disabled"),
            word(&state["running"], "running", "-"),
            shown(reason).to_string(),
        ]
    }));
    let mut text = table(&cells);
    notes.iter().for_each(|note| text.extend([note, "\n"]));
    text
}

/// The worker with this name, if no microphone has it as its id: a declared one, or one with a row.
#[must_use]
pub fn find(config: &Config, registry: &Registry, typed: &str) -> Option<String> {
    let declared = ConfigFolder::new(config.config_dir.clone()).read_workers().map(|(workers, _)| workers).unwrap_or_default();
    let mut names: SortedSet<&str> = registry.services.keys().map(String::as_str).collect();
    names.extend(declared.iter().map(|worker| worker.name.as_str()));
    (!registry.devices.contains_key(typed) && names.contains(typed)).then(|| typed.to_owned())
}
