//! The statements, each as a named function. What they mean is decided by their callers.

use postgres::types::Json;
use serde_json::Value;

use crate::database::connection::{Connection, Transaction};
use crate::decide::registry::{Enrollment, Row, RowChange};

/// Larger rows are fetched without their content.
const ROW_LIMIT: i32 = 64 << 10;

/// The whole desired state, each row as text.
const SNAPSHOT: &str = "SELECT kind, key, CASE WHEN length(body) <= $1 THEN body END FROM (
      SELECT 'device' AS kind, name::text AS key, (to_jsonb(d) - 'last_seen')::text AS body FROM devices d
      UNION ALL SELECT 'profile', slug::text, jsonb_build_object('config', config)::text FROM microphone_profiles
      UNION ALL SELECT 'system', key::text, value::text FROM system_config WHERE key = 'system') rows
    WHERE key IS NOT NULL ORDER BY kind, key";

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

impl Connection {
    /// Reads the whole desired state in one statement.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn snapshot(&mut self) -> Result<Vec<Row>, postgres::Error> {
        let statement = match self.snapshot.take() {
            Some(statement) => statement,
            None => self.call(|client| client.prepare(SNAPSHOT))?,
        };
        // Kept only after a success: when a table was altered, PostgreSQL refuses the old plan, and the next call
        // prepares another.
        let rows = self.call(|client| client.query(&statement, &[&ROW_LIMIT]))?;
        self.snapshot = Some(statement);
        Ok(rows.into_iter().map(|row| Row { kind: row.get(0), key: row.get(1), body: row.get(2) }).collect())
    }

    /// Inserts a new device or updates a known one. It does not replace a decision that the user made since the row was
    /// read. Returns false if the row is locked by another client, for which it does not wait, or was deleted.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn write(&mut self, change: &RowChange) -> Result<bool, postgres::Error> {
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
