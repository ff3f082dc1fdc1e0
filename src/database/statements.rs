//! The statements, each as a named function. What they mean is decided by their callers.

use crate::sorted_map::SortedMap;

use postgres::error::SqlState;
use postgres::types::{FromSql, Json, Type};
use serde_json::{Map, Value};

use crate::database::connection::{Connection, Transaction};
use crate::decide::registry::{Enrollment, Row, RowChange};
use crate::decide::scope::Scope;

/// Larger rows are fetched without their content.
const ROW_LIMIT: i32 = 64 << 10;

/// `last_seen` is read only of microphones that are offline: that of the others changes every hour.
///
/// A microphone matters that is not offline, was seen in the last month, or is one of `$2`; what cannot be told, matters.
/// Of the others, `$3` reads where they were and what is unique. A column that is missing is taken from `missing`, and
/// `last_seen` is compared as text, as it can have any type.
macro_rules! rows {
    ($services:literal) => {
        concat!(
            " FROM (
      SELECT CASE WHEN matters THEN 'device' ELSE 'absent' END AS kind, name::text AS key,
        CASE WHEN matters THEN row - CASE row->>'status' WHEN 'offline' THEN '' ELSE 'last_seen' END
          ELSE jsonb_build_object('serial_number', row->'serial_number', 'workspace_name', row->'workspace_name',
            'config', jsonb_build_object('usb_bus_path', row#>'{config,usb_bus_path}', 'usb_port_path', row#>'{config,usb_port_path}'))
        END::text AS body
        FROM (SELECT NULL::text AS status, NULL::text AS last_seen) missing, LATERAL (
          SELECT name, matters, to_jsonb(d) AS row FROM devices d, LATERAL (
            SELECT coalesce(status::text <> 'offline' OR name::text = ANY ($2)
              OR (to_jsonb(last_seen) #>> '{}') COLLATE \"C\" > to_jsonb(now() - interval '30 days') #>> '{}', TRUE) AS matters) m
          WHERE matters OR $3 OFFSET 0) devices
      UNION ALL SELECT 'profile', slug::text, jsonb_build_object('config', config)::text FROM microphone_profiles
      UNION ALL SELECT 'system', key::text, value::text FROM system_config WHERE key = 'system'",
            $services,
            ") rows
    WHERE key IS NOT NULL ORDER BY kind, key"
        )
    };
}

macro_rules! snapshots {
    ($columns:literal) => {
        [
            concat!($columns, rows!(" UNION ALL SELECT 'service', name::text, to_jsonb(enabled)::text FROM managed_services")),
            concat!($columns, rows!("")),
        ]
    };
}

/// The desired state, each row as text; first with the rows of workers, then without them.
const SNAPSHOT: [&str; 2] = snapshots!("SELECT kind, key, CASE WHEN length(body) <= $1 THEN body END");

/// The same with the bytes that the database holds: PostgreSQL sends no row at all if one of them contains text that it
/// cannot convert to UTF-8.
const RAW_SNAPSHOT: [&str; 2] = snapshots!(
    r"SELECT kind, decode(replace(key, E'\\', E'\\\\'), 'escape'), CASE WHEN octet_length(body) <= $1
      THEN decode(replace(body, E'\\', E'\\\\'), 'escape') END"
);
/// How rows are read that PostgreSQL cannot convert to UTF-8.
#[derive(Debug)]
pub(super) struct Raw {
    /// Encoding of the database.
    encoding: String,
    /// What the server converted for the last snapshot, or could not.
    texts: SortedMap<Vec<u8>, Option<String>>,
}

/// Any value as its bytes.
struct Bytes(Vec<u8>);

impl FromSql<'_> for Bytes {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Whether the server refused text that it cannot convert or store.
pub(super) fn is_about_text(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| [SqlState::CHARACTER_NOT_IN_REPERTOIRE, SqlState::UNTRANSLATABLE_CHARACTER].contains(code))
}

/// A decision of the user about a microphone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Record it with this profile.
    Enroll(String),
    /// Do not record it.
    Ignore,
    /// Remove an earlier decision and the profile.
    Reset,
    /// Resume recording it.
    Enable,
    /// Suspend recording it.
    Disable,
}

/// Whether the server refused a table or column that is missing, or that this user may not read.
fn is_about_access(error: &postgres::Error) -> bool {
    let codes = [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN, SqlState::INSUFFICIENT_PRIVILEGE];
    error.code().is_some_and(|code| codes.contains(code))
}

impl Connection {
    /// Reads the desired state in one statement. A row with text that is not valid in the encoding of the database has a
    /// fault, and the others are read.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn snapshot(&mut self, scope: &Scope) -> Result<Vec<Row>, postgres::Error> {
        match self.read_rows(scope) {
            Err(error) if self.raw.is_none() && is_about_text(&error) => {
                let row = self.call(|client| client.query_one("SELECT getdatabaseencoding()::text", &[]))?;
                self.raw = Some(Raw { encoding: row.get(0), texts: SortedMap::new() });
                self.read_rows(scope)
            }
            // Workers matter less than Recorders: without their table, the other rows are read.
            Err(error) if !self.without_services && is_about_access(&error) => {
                self.without_services = true;
                let rows = self.snapshot(scope);
                self.without_services = rows.is_ok();
                rows
            }
            result => result,
        }
    }

    /// The table of workers may be complete now.
    pub(super) fn services_completed(&mut self) {
        if std::mem::take(&mut self.without_services) {
            self.snapshot = None;
        }
    }

    /// Writes whether a worker is enabled, with the columns that the web interface uses.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn switch_service(&mut self, name: &str, enabled: bool) -> Result<(), postgres::Error> {
        let statement = "INSERT INTO managed_services (name, enabled) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET enabled = excluded.enabled, updated_at = now()";
        self.call(|client| client.execute(statement, &[&name, &enabled])).map(|_| ())
    }

    fn read_rows(&mut self, scope: &Scope) -> Result<Vec<Row>, postgres::Error> {
        let statement = match self.snapshot.take() {
            Some(statement) => statement,
            None => {
                let texts = if self.raw.is_some() { RAW_SNAPSHOT } else { SNAPSHOT };
                let text = texts[usize::from(self.without_services)];
                self.call(|client| client.prepare(text))?
            }
        };
        // Kept only after a success: when a table was altered, PostgreSQL refuses the old plan, and the next call
        // prepares another.
        let devices: Option<Vec<&str>> = match scope {
            Scope::Everything => None,
            Scope::Needed { devices, .. } => Some(devices.iter().map(String::as_str).collect()),
        };
        let found = self.call(|client| client.query(&statement, &[&ROW_LIMIT, &devices, &scope.has_identities()]))?;
        self.snapshot = Some(statement);
        let mut texts = SortedMap::new();
        let mut rows = Vec::new();
        for row in found {
            let (Bytes(key), body): (Bytes, Option<Bytes>) = (row.get(1), row.get(2));
            let name = self.decode(&key, &mut texts)?;
            let body = body.map(|Bytes(body)| self.decode(&body, &mut texts)).transpose()?;
            let is_valid = name.is_some() && body != Some(None);
            let encoding = self.raw.as_ref().map_or("UTF8", |raw| raw.encoding.as_str());
            let fault = (!is_valid).then(|| format!("it contains text that is not valid in the encoding of the database, {encoding}"));
            rows.push(Row {
                kind: row.get(0),
                key: name.unwrap_or_else(|| String::from_utf8_lossy(&key).into_owned()),
                body: body.flatten().filter(|_| is_valid),
                fault,
            });
        }
        if let Some(raw) = &mut self.raw {
            raw.texts = texts;
        }
        Ok(rows)
    }

    /// The text, `None` if it is not valid. What the server had to convert is kept in `texts`, so a steady state needs no
    /// further statements.
    fn decode(&mut self, bytes: &[u8], texts: &mut SortedMap<Vec<u8>, Option<String>>) -> Result<Option<String>, postgres::Error> {
        let raw = self.raw.as_ref().filter(|raw| !bytes.is_ascii() && !["UTF8", "SQL_ASCII"].contains(&raw.encoding.as_str()));
        let Some(raw) = raw else { return Ok(String::from_utf8(bytes.to_vec()).ok()) };
        let text = match raw.texts.get(bytes) {
            Some(text) => text.clone(),
            None => {
                let convert = "SELECT convert_from($1, getdatabaseencoding())";
                match self.call(|client| client.query_one(convert, &[&bytes])) {
                    Ok(row) => Some(row.get(0)),
                    Err(error) if is_about_text(&error) => None,
                    Err(error) => return Err(error),
                }
            }
        };
        texts.insert(bytes.to_vec(), text.clone());
        Ok(text)
    }

    /// Inserts a new device or updates a known one. It does not replace a decision that the user made since the row was
    /// read. Text that the encoding of the database cannot hold is written in ASCII. Returns false if the row is locked by
    /// another client, for which it does not wait, or was deleted.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn write(&mut self, change: &RowChange) -> Result<bool, postgres::Error> {
        match self.try_write(change) {
            Err(error) if is_about_text(&error) => self.try_write(&change.in_ascii()),
            result => result,
        }
    }

    fn try_write(&mut self, change: &RowChange) -> Result<bool, postgres::Error> {
        let profile = change.enroll.as_ref().map(|(slug, _)| slug);
        let enrollment = change.enroll.as_ref().map(|(_, enrollment)| match enrollment {
            Enrollment::Pending => "pending",
            Enrollment::Enrolled => "enrolled",
            Enrollment::Ignored => "ignored",
        });
        let config = Json(&change.config);
        match &change.insert {
            Some(insert) => self.call(|client| client.execute(
                "INSERT INTO devices (name, serial_number, model, status, last_seen, enrollment_status, profile_slug, config, workspace_name)
                 VALUES ($1, $2, coalesce($3, ''), coalesce($4, 'online'), now(), coalesce($5, 'pending'), $6, $7, $8)
                 ON CONFLICT (name) DO NOTHING",
                &[
                    &change.device,
                    &insert.serial_number,
                    &change.model,
                    &change.status,
                    &enrollment,
                    &profile,
                    &config,
                    &change.workspace,
                ],
            )),
            None => self.call(|client| client.execute(
                "UPDATE devices SET
                   status = coalesce($2, status),
                   last_seen = CASE WHEN $2::text IS NULL THEN last_seen ELSE now() END,
                   model = coalesce($3, model),
                   config = CASE WHEN jsonb_typeof(config) = 'object' THEN config ELSE '{}' END || $4,
                   workspace_name = coalesce($5, workspace_name),
                   profile_slug = CASE WHEN undecided THEN $6 ELSE profile_slug END,
                   enrollment_status = CASE WHEN undecided THEN $7 ELSE enrollment_status END
                 FROM (SELECT name AS id, $7::text IS NOT NULL AND enrollment_status = 'pending'
                         AND profile_slug IS NOT DISTINCT FROM config->>'auto_suggested' AS undecided
                       FROM devices WHERE name = $1 FOR UPDATE SKIP LOCKED) known
                 WHERE name = id",
                &[&change.device, &change.status, &change.model, &config, &change.workspace, &profile, &enrollment],
            )),
        }
        .map(|rows| rows > 0 || change.insert.is_some())
    }

    /// Writes a decision of the user, with the statements that the web interface uses.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn decide(&mut self, device: &str, decision: &Decision) -> Result<(), postgres::Error> {
        let update = |set: &str| format!("UPDATE devices SET {set} WHERE name = $1");
        self.call(|client| match decision {
            Decision::Enroll(profile) => {
                let statement = update("enrollment_status = 'enrolled', profile_slug = $2");
                client.execute(&statement, &[&device, profile])
            }
            Decision::Ignore => client.execute(&update("enrollment_status = 'ignored'"), &[&device]),
            Decision::Reset => client.execute(&update("enrollment_status = 'pending', profile_slug = NULL"), &[&device]),
            Decision::Enable => client.execute(&update("enabled = TRUE"), &[&device]),
            Decision::Disable => client.execute(&update("enabled = FALSE"), &[&device]),
        })
        .map(|_| ())
    }

    /// Updates `last_seen` of devices that are still connected, except in rows that another client has locked.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn touch(&mut self, devices: &[String]) -> Result<(), postgres::Error> {
        self.call(|client| {
            client.execute(
                "UPDATE devices SET last_seen = now()
            WHERE name IN (SELECT name FROM devices WHERE name = ANY($1) FOR UPDATE SKIP LOCKED)",
                &[&devices],
            )
        })
        .map(|_| ())
    }

    /// The password hash of a user: `None` if there is no such user, empty if the user has no password.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn password_hash(&mut self, username: &str) -> Result<Option<String>, postgres::Error> {
        let row = self.call(|client| client.query_opt("SELECT password_hash::text FROM users WHERE username = $1", &[&username]))?;
        Ok(row.map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()))
    }

    /// Inserts a user unless the name exists. Returns whether it was inserted.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn insert_user(&mut self, username: &str, password_hash: &str) -> Result<bool, postgres::Error> {
        let statement = "INSERT INTO users (username, password_hash) VALUES ($1, $2) ON CONFLICT (username) DO NOTHING";
        Ok(self.call(|client| client.execute(statement, &[&username, &password_hash]))? > 0)
    }
}

/// Inserts one section of the settings unless its key exists. Returns whether it was inserted.
///
/// # Errors
/// The error of the server or the connection.
pub fn insert_section(transaction: &mut Transaction<'_>, key: &str, value: &Value) -> Result<bool, postgres::Error> {
    let statement = "INSERT INTO system_config (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING";
    Ok(transaction.execute(statement, &[&key, &Json(value)])? > 0)
}

/// Those of the keys that a section lacks; none if it is no object.
///
/// # Errors
/// The error of the server or the connection.
pub fn absent_keys(transaction: &mut Transaction<'_>, section: &str, keys: &[&str]) -> Result<Vec<String>, postgres::Error> {
    let statement = "SELECT name FROM system_config, unnest($2::text[]) name
        WHERE key = $1 AND jsonb_typeof(value) = 'object' AND NOT value ? name";
    Ok(transaction.query(statement, &[&section, &keys])?.into_iter().map(|row| row.get(0)).collect())
}

/// Adds keys to a section, except those that it has got meanwhile. Returns false if another client has locked it.
///
/// # Errors
/// The error of the server or the connection.
pub fn complete_section(transaction: &mut Transaction<'_>, section: &str, fields: &Map<String, Value>) -> Result<bool, postgres::Error> {
    let statement = "UPDATE system_config SET value = $2 || value, updated_at = now() WHERE key =
        (SELECT key FROM system_config WHERE key = $1 AND jsonb_typeof(value) = 'object' FOR UPDATE SKIP LOCKED)";
    Ok(transaction.execute(statement, &[&section, &Json(fields)])? > 0)
}

/// Number of devices that are to be recorded when they are connected.
///
/// # Errors
/// The error of the server or the connection.
pub fn recorded_devices(transaction: &mut Transaction<'_>) -> Result<i64, postgres::Error> {
    let statement = "SELECT count(*) FROM devices WHERE enabled AND enrollment_status = 'enrolled'";
    Ok(transaction.query(statement, &[])?.first().map_or(0, |row| row.get(0)))
}

/// Inserts the row of a worker unless it exists. Returns whether it was inserted.
///
/// # Errors
/// The error of the server or the connection.
pub fn insert_service(transaction: &mut Transaction<'_>, name: &str, enabled: bool) -> Result<bool, postgres::Error> {
    let statement = "INSERT INTO managed_services (name, enabled) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    Ok(transaction.execute(statement, &[&name, &enabled])? > 0)
}

/// Inserts one profile of this version unless its slug exists. Returns whether it was inserted.
///
/// # Errors
/// The error of the server or the connection.
pub fn insert_profile(
    transaction: &mut Transaction<'_>,
    slug: &str,
    name: &str,
    description: Option<&str>,
    config: &Value,
) -> Result<bool, postgres::Error> {
    let statement = "INSERT INTO microphone_profiles (slug, name, description, config, is_system) VALUES ($1, $2, $3, $4, TRUE)
        ON CONFLICT (slug) DO NOTHING";
    Ok(transaction.execute(statement, &[&slug, &name, &description, &Json(config)])? > 0)
}
