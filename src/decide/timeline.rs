//! Places sessions on the wall clock.
//!
//! A step of the wall clock changes when something happened, not how long it lasted. So the sessions of one boot of the
//! host, and the gaps between them, are told by the clock that begins at the boot; where on the wall clock that was is told
//! by the last session of the boot, as the later time is the better one. Times are microseconds.

use serde_json::Value;

use crate::decide::sessions::SessionRow;
use crate::json;
use crate::sorted_map::SortedMap;

/// By how much the two clocks of a row can differ.
const ROUNDING: i64 = 1_000_000;

/// A boot of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Identifies it.
    pub id: String,
    /// The time from 1970 until the boot, by the wall clock as it is now.
    pub offset: i64,
}

/// A session on the wall clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Time of the first frame.
    pub started: i64,
    /// Time of the last frame.
    pub ended: i64,
    /// By how much the wall clock was stepped during the session.
    pub stepped: i64,
    /// By how much it was stepped since then.
    pub moved: i64,
    /// The boot of the host, if it is known.
    pub boot: Option<String>,
    /// Whether the wall clock was synchronised.
    pub synchronised: Option<bool>,
}

/// The boot of a row, and the time of its last frame since then.
fn boot_time(row: &SessionRow, clock: &Value) -> Option<(String, i64)> {
    let boot = clock["boot"].as_str().filter(|boot| !boot.is_empty())?;
    let (begin, end) = (clock["begin_us"].as_i64()?, clock["end_us"].as_i64()?);
    let difference = end.saturating_sub(begin).saturating_sub(row.ended.saturating_sub(row.started));
    (begin >= 0 && difference.saturating_abs() <= ROUNDING).then(|| (boot.to_owned(), end))
}

/// Places these rows; the present boot of the host is that one.
#[must_use]
pub fn place(rows: &[SessionRow], present: Option<&Boot>) -> Vec<Placed> {
    let mut known = Vec::with_capacity(rows.len());
    // The last frame of each boot, and where the wall clock was then.
    let mut offsets: SortedMap<String, (i64, i64)> = SortedMap::new();
    for row in rows {
        let clock: Value = json::from_str(&row.clock).unwrap_or_default();
        let boot = boot_time(row, &clock);
        if let Some((boot, end)) = &boot {
            let last = offsets.entry(boot.clone()).or_insert((*end, row.ended.saturating_sub(*end)));
            if *end > last.0 {
                *last = (*end, row.ended.saturating_sub(*end));
            }
        }
        let offset = boot.as_ref().map_or(0, |(_, end)| row.ended.saturating_sub(*end));
        let stepped = clock["stepped_s"].as_i64().unwrap_or_default().saturating_mul(1_000_000);
        let (boot, synchronised) = (boot.map(|(boot, _)| boot), clock["synchronised"].as_bool());
        known.push((Placed { started: row.started, ended: row.ended, stepped, moved: 0, boot, synchronised }, offset));
    }
    if let Some(present) = present {
        offsets.insert(present.id.clone(), (i64::MAX, present.offset));
    }
    let place = |(row, (mut placed, offset)): (&SessionRow, (Placed, i64))| {
        let now = placed.boot.as_ref().and_then(|boot| offsets.get(boot));
        placed.moved = now.map_or(0, |(_, now)| now.saturating_sub(offset));
        placed.started = row.started.saturating_add(placed.moved);
        placed.ended = row.ended.saturating_add(placed.moved);
        placed
    };
    rows.iter().zip(known).map(place).collect()
}
