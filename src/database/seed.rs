//! The seeders: they insert the default settings, the profiles of this version, the rows of workers and the admin user, where they are
//! absent.
//!
//! Each seeder has its own transaction. When one fails, it is reported and retried; the others are not affected. What
//! exists is never changed, because the user may have edited it: of rows that exist, only settings get the keys that
//! they lack. The files are read by a thread of their own ([`crate::database::seed_files`]).

use crate::sorted_set::SortedSet;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use log::{debug, error, info, warn};
use serde_json::{Map, Value};

use crate::collect::by_insertion;
use crate::config_folder::{self, ConfigFolder, FileFault};
use crate::database::connection::{Connection, Transaction, reason};
use crate::database::statements::{self, is_about_text};
use crate::decide::profile::Profile;
use crate::decide::worker::Worker;
use crate::rate_limit::RateLimit;
use crate::text::{ascii, ascii_map, ascii_value, shown};

const BCRYPT_COST: u32 = 12;

/// The seeders, and which of them must still run.
#[derive(Default)]
pub struct Seeder {
    pending: SortedSet<&'static str>,
    rate_limit: RateLimit,
    /// Workers whose rows were there once: one that was deleted since is not inserted again.
    workers: SortedSet<String>,
    admin: Admin,
}

#[derive(Default)]
enum Admin {
    #[default]
    Unknown,
    /// A hash is being computed for this new user.
    Hashing(String, JoinHandle<Result<String, String>>),
    Done,
}

type Sections = (Map<String, Value>, Vec<String>);

/// What is seeded, or why it cannot be read.
pub struct Content {
    /// The sections of settings, and the faults of others.
    settings: Result<Sections, Vec<String>>,
    /// The profiles, and the faults of others.
    profiles: Result<(Vec<Profile>, Vec<String>), String>,
    /// The workers, and the faults of others.
    workers: Result<(Vec<Worker>, Vec<String>), String>,
    /// Name and password of the admin user, if there is one.
    credentials: Result<Option<(String, String)>, String>,
}

impl Content {
    /// Reads all files.
    #[must_use]
    pub fn read(files: &ConfigFolder) -> Self {
        let texts = |faults: Vec<FileFault>| faults.iter().map(ToString::to_string).collect::<Vec<_>>();
        Self {
            settings: files.sections().map(|(sections, faults)| (sections, texts(faults))).map_err(texts),
            profiles: files.read_profiles(),
            workers: files.read_workers(),
            credentials: files.credentials().map_err(|faults| texts(faults).join("; ")),
        }
    }

    /// The declared workers; `None` = unknown.
    #[must_use]
    pub fn workers(&self) -> Option<Vec<Worker>> {
        self.workers.as_ref().ok().map(|(workers, _)| workers.clone())
    }
}

impl Seeder {
    /// Whether a hash is being computed.
    #[must_use]
    pub fn is_hashing(&self) -> bool {
        matches!(self.admin, Admin::Hashing(..))
    }

    /// Whether a seeder has not succeeded yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty() || !matches!(self.admin, Admin::Done)
    }

    /// Creates missing tables and columns.
    pub fn schema(&mut self, db: &mut Connection) {
        let result = db.complete_schema().map(|created| {
            created.iter().for_each(|what| info!("database: created {what}"));
            if created.iter().any(|what| what == "table managed_services") {
                self.workers.clear();
            }
        });
        self.report("schema", result.map_err(|error| vec![reason(&error)]));
    }

    /// Inserts the default settings into `system_config`, and in sections that exist the keys that are absent. The
    /// settings in `system` that were known before replace the defaults: a default must not stop Recorders that the user
    /// allowed.
    pub fn settings(&mut self, db: &mut Connection, content: &Content, last_system: Option<&Value>) {
        let known = last_system.and_then(Value::as_object);
        let result = content.settings.clone().and_then(|(sections, faults)| {
            let result = match db.transaction(|transaction| insert_sections(transaction, &sections, known)) {
                Err(error) if is_about_text(&error) => {
                    db.transaction(|transaction| insert_sections(transaction, &ascii_map(&sections), known.map(ascii_map).as_ref()))
                }
                result => result,
            };
            result.map_err(|error| vec![reason(&error)])?;
            if faults.is_empty() { Ok(()) } else { Err(faults) }
        });
        self.report("settings", result);
    }

    /// Inserts the profiles of this version into `microphone_profiles`.
    pub fn profiles(&mut self, db: &mut Connection, content: &Content) {
        let result = content.profiles.as_ref().map_err(|why| vec![why.clone()]).and_then(|(profiles, faults)| {
            let insert = |transaction: &mut Transaction<'_>, text: fn(&str) -> String, json: fn(&Value) -> Value| {
                for profile in profiles {
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
            if faults.is_empty() { Ok(()) } else { Err(faults.clone()) }
        });
        self.report("profiles", result);
    }

    /// Inserts a row for each declared worker into `managed_services`, once while the program runs.
    pub fn workers(&mut self, db: &mut Connection, content: &Content) {
        let result = content.workers.as_ref().map_err(|why| vec![why.clone()]).and_then(|(workers, faults)| {
            let insert = |transaction: &mut Transaction<'_>| {
                for worker in workers.iter().filter(|worker| !self.workers.contains(&worker.name)) {
                    if statements::insert_service(transaction, &worker.name, worker.enabled)? {
                        info!("seeded worker {}: {}", worker.name, if worker.enabled { "enabled" } else { "disabled" });
                    }
                }
                Ok(())
            };
            db.transaction(insert).map_err(|error| vec![reason(&error)])?;
            self.workers.extend(workers.iter().map(|worker| worker.name.clone()));
            if faults.is_empty() { Ok(()) } else { Err(faults.clone()) }
        });
        self.report("workers", result);
    }

    /// Inserts the admin user, or checks its password. To hash or verify a password takes 0.2 s or more, so a separate
    /// thread does it.
    pub fn admin(&mut self, db: &mut Connection, content: &Content) {
        let result = match std::mem::replace(&mut self.admin, Admin::Unknown) {
            state @ Admin::Done => Ok(state),
            Admin::Hashing(user, thread) if !thread.is_finished() => Ok(Admin::Hashing(user, thread)),
            Admin::Hashing(user, thread) => match thread.join() {
                Ok(Ok(hash)) => db
                    .insert_user(&user, &hash)
                    .map(|new| new.then(|| info!("seeded user {} with the default password; change it", shown(&user))))
                    .map_err(|error| reason(&error)),
                Ok(Err(why)) => Err(why),
                Err(_) => Err("the thread that computes the hash ended without a result".to_owned()),
            }
            .map(|_| Admin::Done),
            Admin::Unknown => begin_admin(db, content),
        };
        let result = result.map(|state| self.admin = state);
        self.report("auth", result.map_err(|why| vec![why]));
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
}

/// Begins to hash or to verify the password.
fn begin_admin(db: &mut Connection, content: &Content) -> Result<Admin, String> {
    let Some((user, password)) = content.credentials.clone()? else {
        debug!("the settings files have no section auth: no user is seeded");
        return Ok(Admin::Done);
    };
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

/// Inserts sections that are absent, and absent keys of the others; `known` is what `system` contained last.
fn insert_sections(
    transaction: &mut Transaction<'_>,
    sections: &Map<String, Value>,
    known: Option<&Map<String, Value>>,
) -> Result<(), postgres::Error> {
    let mut sections = sections.clone();
    if let Some(known) = known {
        let system = sections.entry("system").or_insert_with(|| Value::Object(Map::new()));
        let mut complete = system.clone();
        config_folder::merge(&mut complete, &Value::Object(known.clone()));
        if statements::insert_section(transaction, "system", &complete)? {
            info!("seeded settings system");
            sections.remove("system");
        } else if let Some(defaults) = system.as_object_mut() {
            let last = |key: &str| known.get(key).filter(|value| !value.is_null());
            defaults.iter_mut().for_each(|(key, value)| *value = last(key).unwrap_or(value).clone());
        }
    }
    for (key, value) in &sections {
        if statements::insert_section(transaction, key, value)? {
            info!("seeded settings {}", shown(key));
            continue;
        }
        let Some(defaults) = value.as_object() else { continue };
        let mut absent = statements::absent_keys(transaction, key, &defaults.keys().map(String::as_str).collect::<Vec<_>>())?;
        // A limit that nobody set must not stop a Recorder.
        let limit = defaults.get("max_recorders").filter(|_| key == "system").and_then(Value::as_i64);
        let is_known = known.is_some_and(|known| known.contains_key("max_recorders"));
        if let Some(limit) = limit.filter(|_| !is_known && absent.iter().any(|name| name == "max_recorders")) {
            if statements::recorded_devices(transaction)? > limit {
                debug!("max_recorders is not seeded: more than {limit} microphones are recorded");
                absent.retain(|name| name != "max_recorders");
            }
        }
        let fields = by_insertion(absent.iter().filter_map(|name| Some((name.clone(), defaults.get(name)?.clone()))));
        if !absent.is_empty() && statements::complete_section(transaction, key, &fields)? {
            info!("settings {}: added {}", shown(key), shown(&absent.join(", ")));
        }
    }
    Ok(())
}
