//! Which rows are saved for a start without the database, if not all of them fit into the file.

use crate::sorted_set::SortedSet;

use serde_json::Value;

use crate::collect::sort;
use crate::decide::registry::Row;
use crate::json;

/// Rows that fit, and what was left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Fitted {
    /// In the order of before.
    pub rows: Vec<Row>,
    /// The others.
    pub left_out: LeftOut,
}

/// Rows that were left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub count: usize,
    /// The one that was left out first: kind and key.
    pub first: String,
    /// The one that was left out last.
    pub last: String,
}

/// How soon a row is left out.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A microphone that is offline, by the time when it was last seen; without that time first.
    Offline(String),
    /// A profile that no microphone uses.
    Unused,
    /// A microphone or a profile that is used.
    Used,
    /// The settings.
    Settings,
}

/// Leaves out rows until the sizes of the others, in bytes, add up to `limit` at most.
#[must_use]
pub fn fit(rows: Vec<Row>, limit: usize, size: impl Fn(&Row) -> usize) -> Fitted {
    let sizes: Vec<usize> = rows.iter().map(size).collect();
    let mut total = sizes.iter().fold(0_usize, |total, size| total.saturating_add(*size));
    let bodies: Vec<Value> =
        rows.iter().map(|row| row.body.as_deref().and_then(|body| json::from_str(body).ok()).unwrap_or_default()).collect();
    let used: SortedSet<&str> = bodies.iter().filter_map(|body| body["profile_slug"].as_str()).collect();
    let rank = |row: &Row, body: &Value| match row.kind.as_str() {
        "device" if body["status"] == "offline" => Rank::Offline(body["last_seen"].as_str().unwrap_or_default().to_owned()),
        "profile" if !used.contains(row.key.as_str()) => Rank::Unused,
        "device" | "profile" => Rank::Used,
        _ => Rank::Settings,
    };
    let mut order: Vec<(Rank, usize)> = rows.iter().zip(&bodies).map(|(row, body)| rank(row, body)).zip(0..).collect();
    sort(&mut order);
    let (mut out, mut left_out) = (SortedSet::new(), LeftOut::default());
    for (_, index) in order {
        if total <= limit {
            break;
        }
        total = total.saturating_sub(sizes[index]);
        out.insert(index);
        left_out.count += 1;
        left_out.last = format!("{} {:?}", rows[index].kind, rows[index].key);
        if left_out.count == 1 {
            left_out.first.clone_from(&left_out.last);
        }
    }
    let rows = rows.into_iter().enumerate().filter(|(index, _)| !out.contains(index)).map(|(_, row)| row).collect();
    Fitted { rows, left_out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn microphones_that_are_offline_for_the_longest_time_are_left_out_first() {
        let row = |kind: &str, key: &str, body: Value| Row {
            kind: kind.to_owned(),
            key: key.to_owned(),
            body: Some(body.to_string()),
            fault: None,
        };
        let offline = |key: &str, seen: Value| row("device", key, json!({ "status": "offline", "last_seen": seen, "profile_slug": "old" }));
        let rows = vec![
            offline("b", json!("2026-02-01")),
            offline("a", json!("2026-03-01")),
            row("device", "c", json!({ "status": "online", "profile_slug": "used" })),
            offline("d", json!("2026-01-01")),
            offline("e", Value::Null),
            row("profile", "unused", json!({})),
            row("profile", "used", json!({})),
            row("system", "system", json!({})),
        ];
        let keys = |rows: &[Row]| rows.iter().map(|row| row.key.clone()).collect::<Vec<_>>().join(" ");
        for (limit, kept, first, last) in [
            (8, "b a c d e unused used system", "", ""),
            (7, "b a c d unused used system", "device \"e\"", "device \"e\""),
            (5, "a c unused used system", "device \"e\"", "device \"b\""),
            (4, "c unused used system", "device \"e\"", "device \"a\""),
            (3, "c used system", "device \"e\"", "profile \"unused\""),
            (1, "system", "device \"e\"", "profile \"used\""),
            (0, "", "device \"e\"", "system \"system\""),
        ] {
            let fitted = fit(rows.clone(), limit, |_| 1);
            assert_eq!(keys(&fitted.rows), kept);
            assert_eq!(fitted.left_out, LeftOut { count: rows.len() - fitted.rows.len(), first: first.to_owned(), last: last.to_owned() });
        }
    }
}
