//! The last known row of the settings, for when it is absent later: a user or a restored dump may delete it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use crate::decide::registry::{Row, completed};
use crate::json;

/// The row; clones share it.
#[derive(Clone, Debug, Default)]
pub struct LastSettings(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    row: Option<Row>,
    /// Whether it is known what an earlier run saved.
    is_loaded: bool,
}

/// What is known about the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    /// Nothing: an earlier run may have saved it.
    Unknown,
    /// It was never seen.
    Never,
    /// It was last seen so.
    Seen(Row),
}

/// A row, with what it lacks of an earlier one. A row that gives no values leaves the earlier one.
fn merged(earlier: Option<&Row>, row: &Row) -> Row {
    let is_object = |row: &Row| row.body.as_deref().is_some_and(|body| json::from_str::<Map<String, Value>>(body).is_ok());
    match earlier {
        None => row.clone(),
        Some(earlier) if is_object(row) || !is_object(earlier) => completed(row.clone(), earlier),
        Some(earlier) => earlier.clone(),
    }
}

fn settings(rows: &[Row]) -> Option<&Row> {
    rows.iter().find(|row| row.kind == "system" && row.body.is_some())
}

impl LastSettings {
    /// Notes rows of the database.
    pub fn answered(&self, rows: &[Row]) {
        if let Some(row) = settings(rows) {
            let mut known = self.known();
            known.row = Some(merged(known.row.as_ref(), row));
        }
    }

    /// Notes the rows that an earlier run saved. They are older than any row of the database.
    pub fn loaded(&self, rows: &[Row]) {
        let mut known = self.known();
        known.is_loaded = true;
        if known.row.is_none() {
            known.row = settings(rows).cloned();
        }
    }

    /// The last known row.
    #[must_use]
    pub fn last(&self) -> Last {
        let known = self.known();
        match &known.row {
            Some(row) => Last::Seen(row.clone()),
            None if known.is_loaded => Last::Never,
            None => Last::Unknown,
        }
    }

    /// These rows, with the last known settings if they are absent, as a whole or a field.
    #[must_use]
    pub fn complete(&self, mut rows: Vec<Row>) -> Vec<Row> {
        let known = self.known();
        match rows.iter_mut().find(|row| row.kind == "system") {
            Some(row) => *row = merged(known.row.as_ref(), row),
            None => rows.extend(known.row.clone()),
        }
        rows
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_disappears_keeps_its_last_value() {
        let last = LastSettings::default();
        last.answered(&[row(r#"{"max_recorders":10,"station_name":"a"}"#)]);
        last.answered(&[row(r#"{"station_name":"b"}"#)]);
        let known = row(r#"{"max_recorders":10,"station_name":"b"}"#);
        assert_eq!(last.last(), Last::Seen(known.clone()));
        last.answered(&[row("7")]);
        assert_eq!(last.last(), Last::Seen(known.clone()));
        assert_eq!(last.complete(Vec::new()), std::slice::from_ref(&known));
        assert_eq!(last.complete(vec![row(r#"{"station_name":"b"}"#)]), [known]);
        assert_eq!(last.complete(vec![row(r#"{"max_recorders":3}"#)]), [row(r#"{"max_recorders":3}"#)]);
    }

    fn row(body: &str) -> Row {
        Row { kind: "system".to_owned(), key: "system".to_owned(), body: Some(body.to_owned()), fault: None }
    }

    #[test]
    fn what_was_saved_never_replaces_what_the_database_answered() {
        let last = LastSettings::default();
        assert_eq!(last.last(), Last::Unknown);
        last.answered(&[]);
        assert_eq!(last.last(), Last::Unknown);
        last.answered(&[row("new")]);
        last.loaded(&[row("saved")]);
        assert_eq!(last.last(), Last::Seen(row("new")));
        assert_eq!(last.complete(vec![row("newer")]), [row("newer")]);
        assert_eq!(last.complete(Vec::new()), [row("new")]);
        let other = LastSettings::default();
        other.loaded(&[row("saved")]);
        assert_eq!(other.last(), Last::Seen(row("saved")));
        let none = LastSettings::default();
        none.loaded(&[]);
        assert_eq!(none.last(), Last::Never);
    }
}
