//! Rows of the table `capture_sessions`, on their way to the database.
//!
//! Shared between the main loop and the `database` thread. A row stays here until it is written; a newer version takes the
//! place of an older one. Nothing is written before the rows of an earlier run were read, because one of them may go on.

use crate::sorted_map::SortedMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres::types::Json;
use serde_json::Value;

use crate::database::connection::Connection;
use crate::database::statements::is_about_text;
use crate::decide::sessions::SessionRow;
use crate::json;
use crate::text::ascii;

/// Number of rows that wait at most; they take about 1 MiB.
const LIMIT: usize = 2500;
/// Number of rows of an earlier run that are read at most.
const EARLIER: i64 = 5000;
/// If they cannot be read, it is tried again after this time.
const AGAIN: Duration = Duration::from_secs(60);

/// The rows; clones share them.
#[derive(Clone, Debug, Default)]
pub struct SessionQueue {
    shared: Arc<Mutex<Rows>>,
}

#[derive(Debug, Default)]
struct Rows {
    waiting: SortedMap<i64, SessionRow>,
    /// Counts the changes of what waits.
    version: u64,
    earlier: Earlier,
}

#[derive(Debug)]
enum Earlier {
    /// They were not read yet; not again before this time.
    Unread(Option<Instant>),
    /// They were read.
    Read(Vec<SessionRow>),
    /// They were passed on.
    Taken,
}

impl Default for Earlier {
    fn default() -> Self {
        Self::Unread(None)
    }
}

impl SessionQueue {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds rows, or newer versions of them. Returns how many others were dropped, because too many wait: those that ended
    /// first.
    pub fn put(&self, rows: Vec<SessionRow>) -> usize {
        let mut shared = self.rows();
        shared.version += u64::from(!rows.is_empty());
        shared.waiting.extend(rows.into_iter().map(|row| (row.id, row)));
        let mut dropped = 0;
        while shared.waiting.len() > LIMIT {
            // Larger ids began later.
            let closed = shared.waiting.values().find(|row| row.cause.is_some()).map(|row| row.id);
            let Some(id) = closed.or_else(|| shared.waiting.keys().next().copied()) else { break };
            shared.waiting.remove(&id);
            dropped += 1;
        }
        dropped
    }

    /// Removes rows that became part of others.
    pub fn forget(&self, ids: &[i64]) {
        let mut shared = self.rows();
        for id in ids {
            if shared.waiting.remove(id).is_some() {
                shared.version += 1;
            }
        }
    }

    /// How often what waits has changed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.rows().version
    }

    /// All rows that wait.
    #[must_use]
    pub fn waiting(&self) -> Vec<SessionRow> {
        self.rows().waiting.values().cloned().collect()
    }

    /// Whether no row waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows().waiting.is_empty()
    }

    /// The rows that can be written now: none before the earlier ones were taken.
    pub(super) fn due(&self, is_early: impl Fn(&str) -> bool) -> Vec<SessionRow> {
        let shared = self.rows();
        let is_ready = matches!(shared.earlier, Earlier::Taken);
        shared.waiting.values().filter(|row| is_ready && !is_early(&topic(row))).cloned().collect()
    }

    /// Notes that a row was written.
    pub(super) fn written(&self, row: &SessionRow) {
        let mut shared = self.rows();
        if shared.waiting.get(&row.id) == Some(row) {
            shared.waiting.remove(&row.id);
            shared.version += 1;
        }
    }

    /// Whether the rows of an earlier run must be read now.
    pub(super) fn needs_earlier(&self, now: Instant) -> bool {
        matches!(self.rows().earlier, Earlier::Unread(again) if again.is_none_or(|again| again <= now))
    }

    /// Passes the rows of an earlier run to the main loop; `None` if they could not be read.
    pub(super) fn read(&self, rows: Option<Vec<SessionRow>>, now: Instant) {
        self.rows().earlier = rows.map_or(Earlier::Unread(Some(now + AGAIN)), Earlier::Read);
    }

    /// The rows of an earlier run, once.
    #[must_use]
    pub fn take_earlier(&self) -> Option<Vec<SessionRow>> {
        let mut shared = self.rows();
        if !matches!(shared.earlier, Earlier::Read(_)) {
            return None;
        }
        match std::mem::replace(&mut shared.earlier, Earlier::Taken) {
            Earlier::Read(rows) => Some(rows),
            _ => None,
        }
    }
}

/// The name of a row among those whose write failed.
pub(super) fn topic(row: &SessionRow) -> String {
    format!("session {}", row.id)
}

/// The columns as they are read.
const COLUMNS: &str = "id, coalesce(device, ''), coalesce(container, ''), (extract(epoch from started_at) * 1000000)::bigint,
    (extract(epoch from ended_at) * 1000000)::bigint, frames, rate, cause, coalesce(clock::text, '{}')";

impl Connection {
    /// Writes one row.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn write_session(&mut self, row: &SessionRow) -> Result<(), postgres::Error> {
        match self.try_write_session(row, &row.device) {
            Err(error) if is_about_text(&error) => self.try_write_session(row, &ascii(&row.device)),
            result => result,
        }
    }

    fn try_write_session(&mut self, row: &SessionRow, device: &str) -> Result<(), postgres::Error> {
        let clock: Value = json::from_str(&row.clock).unwrap_or_default();
        let statement = "INSERT INTO capture_sessions (id, device, container, started_at, ended_at, frames, rate, cause, clock)
            VALUES ($1, $2, $3, 'epoch'::timestamptz + $4::bigint * interval '1 microsecond',
                'epoch'::timestamptz + $5::bigint * interval '1 microsecond', $6, $7, $8, $9)
            ON CONFLICT (id) DO UPDATE SET container = excluded.container, started_at = excluded.started_at, ended_at = excluded.ended_at,
                frames = excluded.frames, cause = excluded.cause, clock = excluded.clock";
        self.call(|client| {
            let cause = &row.cause;
            client.execute(
                statement,
                &[&row.id, &device, &row.container, &row.started, &row.ended, &row.frames, &row.rate, cause, &Json(&clock)],
            )
        })
        .map(|_| ())
    }

    /// The rows that are open, those of the last day, and those of the last boot, whose times can be wrong, newest first.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn earlier_sessions(&mut self) -> Result<Vec<SessionRow>, postgres::Error> {
        let statement = format!(
            "SELECT {COLUMNS} FROM capture_sessions WHERE cause IS NULL OR ended_at > now() - interval '1 day'
                 OR clock->>'boot' = (SELECT clock->>'boot' FROM capture_sessions ORDER BY id DESC LIMIT 1)
             ORDER BY cause IS NULL DESC, id DESC LIMIT $1"
        );
        let rows = self.call(|client| client.query(&statement, &[&EARLIER]))?;
        Ok(rows.iter().map(session).collect())
    }

    /// Deletes sessions that ended so many days before the newest one. A clock that is years ahead deletes nothing by itself.
    /// Returns how many.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn delete_sessions(&mut self, days: u16) -> Result<u64, postgres::Error> {
        let statement = "DELETE FROM capture_sessions WHERE cause IS NOT NULL
            AND ended_at < (SELECT least(now(), max(ended_at)) FROM capture_sessions) - make_interval(days => $1)";
        self.call(|client| client.execute(statement, &[&i32::from(days)]))
    }

    /// The rows of this period, which began so many microseconds after 1970, the last one of each device before it, and all of
    /// the same boots of the host and of the present one: if the wall clock was stepped, they can belong to the period.
    ///
    /// # Errors
    /// The error of the server or the connection.
    pub fn sessions_since(&mut self, since: i64, boot: &str) -> Result<Vec<SessionRow>, postgres::Error> {
        let statement = format!(
            "WITH period AS (SELECT 'epoch'::timestamptz + $1::bigint * interval '1 microsecond' AS begin)
             SELECT {COLUMNS} FROM capture_sessions, period WHERE ended_at > begin OR clock->>'boot' = $2
                 OR clock->>'boot' IN (SELECT clock->>'boot' FROM capture_sessions, period WHERE ended_at > begin) OR (device, ended_at) IN
                 (SELECT device, max(ended_at) FROM capture_sessions, period WHERE ended_at <= begin GROUP BY device)
             ORDER BY device, started_at"
        );
        let rows = self.call(|client| client.query(&statement, &[&since, &boot]))?;
        Ok(rows.iter().map(session).collect())
    }
}

fn session(row: &postgres::Row) -> SessionRow {
    SessionRow {
        id: row.get(0),
        device: row.get(1),
        container: row.get(2),
        started: row.get(3),
        ended: row.get(4),
        frames: row.get(5),
        rate: row.get(6),
        cause: row.get(7),
        clock: row.get(8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, cause: Option<&str>) -> SessionRow {
        SessionRow {
            id,
            device: "a".to_owned(),
            container: "c".to_owned(),
            started: id,
            ended: id,
            frames: 0,
            rate: 1,
            cause: cause.map(str::to_owned),
            clock: "{}".to_owned(),
        }
    }

    #[test]
    fn nothing_is_written_before_the_earlier_rows_are_known() {
        let (queue, now) = (SessionQueue::default(), Instant::now());
        queue.put(vec![row(1, None)]);
        assert!(queue.due(|_| false).is_empty() && queue.needs_earlier(now));
        queue.read(None, now);
        assert!(!queue.needs_earlier(now) && queue.needs_earlier(now + AGAIN) && queue.take_earlier().is_none());
        queue.read(Some(vec![row(0, None)]), now);
        assert!(!queue.needs_earlier(now + AGAIN) && queue.due(|_| false).is_empty());
        assert_eq!(queue.take_earlier(), Some(vec![row(0, None)]));
        assert_eq!(queue.due(|_| false), [row(1, None)]);
        assert!(queue.due(|topic| topic == "session 1").is_empty());
        assert_eq!(queue.take_earlier(), None);
    }

    #[test]
    fn a_row_waits_until_its_newest_version_is_written() {
        let queue = SessionQueue::default();
        queue.put(vec![row(1, None), row(2, None)]);
        queue.put(vec![row(1, Some("unknown"))]);
        let version = queue.version();
        queue.written(&row(1, None));
        assert_eq!((queue.waiting().len(), queue.version()), (2, version));
        queue.written(&row(1, Some("unknown")));
        queue.forget(&[2, 3]);
        assert!(queue.is_empty() && queue.version() == version + 2);
    }

    #[test]
    fn the_oldest_closed_rows_are_dropped_if_too_many_wait() {
        let queue = SessionQueue::default();
        let count = LIMIT as i64;
        assert_eq!(queue.put((0..count).map(|id| row(id, Some("unknown").filter(|_| id > 0))).collect()), 0);
        assert_eq!(queue.put(vec![row(count, None), row(count + 1, None)]), 2);
        let ids: Vec<i64> = queue.waiting().iter().map(|row| row.id).collect();
        assert_eq!((ids.len(), &ids[..2]), (LIMIT, &[0, 3][..]));
    }
}
