//! The sampling effort: sessions of each microphone in a period, the gaps between them, and the share that was recorded.

use crate::collect::sort_by_key;
use crate::sorted_map::SortedMap;

use crate::decide::sessions::SessionRow;

/// One microphone in a period. Times are microseconds since 1970.
#[derive(Debug, PartialEq, Eq)]
pub struct Effort<'a> {
    /// Stable id of the microphone.
    pub device: &'a str,
    /// The period: from its beginning, or the first session of the microphone …
    pub from: i64,
    /// … until its end, or the last frame of an open session that is known.
    pub to: i64,
    /// How much of it was recorded.
    pub recorded: i64,
    /// Sessions and gaps, which are all of the period.
    pub parts: Vec<Part<'a>>,
}

/// A part of a period.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Its beginning.
    pub from: i64,
    /// Its end.
    pub to: i64,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What a part of a period is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// All frames arrived.
    Session(&'a SessionRow),
    /// Nothing was recorded, and why.
    Gap(&'a str),
}

impl Effort<'_> {
    /// The share that was recorded, from 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.to > self.from { self.recorded as f64 / (self.to - self.from) as f64 } else { 0.0 }
    }

    /// Number of gaps.
    #[must_use]
    pub fn gaps(&self) -> usize {
        self.parts.iter().filter(|part| matches!(part.kind, Kind::Gap(_))).count()
    }
}

/// The effort of each microphone from `since` until `now`. The rows include the last one of each before `since`.
#[must_use]
pub fn efforts(rows: &[SessionRow], since: i64, now: i64) -> Vec<Effort<'_>> {
    let mut devices: SortedMap<&str, Vec<&SessionRow>> = SortedMap::new();
    for row in rows {
        devices.entry(&row.device).or_default().push(row);
    }
    devices.into_iter().filter_map(|(device, rows)| of_device(device, rows, since, now)).collect()
}

fn of_device<'a>(device: &'a str, mut rows: Vec<&'a SessionRow>, since: i64, now: i64) -> Option<Effort<'a>> {
    sort_by_key(&mut rows, |row| (row.started, row.ended));
    let from = rows.first()?.started.max(since).min(now);
    let mut effort = Effort { device, from, to: from, recorded: 0, parts: Vec::new() };
    // Why nothing was recorded after the last session, `None` while it is open.
    let mut cause = None;
    for row in rows {
        let gap = row.started.min(now);
        if gap > effort.to {
            // A row that is open although another one follows was not closed, as the Controller could not do it.
            let kind = Kind::Gap(cause.unwrap_or("unknown"));
            effort.parts.push(Part { from: effort.to, to: gap, kind });
            effort.to = gap;
        }
        cause = row.cause.as_deref();
        // After a step of the wall clock, sessions can overlap.
        let end = row.ended.min(now);
        if end > effort.to {
            effort.parts.push(Part { from: effort.to, to: end, kind: Kind::Session(row) });
            effort.recorded += end - effort.to;
            effort.to = end;
        }
    }
    if let Some(cause) = cause.filter(|_| now > effort.to) {
        effort.parts.push(Part { from: effort.to, to: now, kind: Kind::Gap(cause) });
        effort.to = now;
    }
    Some(effort)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, device: &str, started: i64, ended: i64, cause: Option<&str>) -> SessionRow {
        SessionRow {
            id,
            device: device.to_owned(),
            container: "c".to_owned(),
            started,
            ended,
            frames: 1,
            rate: 1,
            cause: cause.map(str::to_owned),
            clock: "{}".to_owned(),
        }
    }

    /// `from-to` of each part; a gap with its cause.
    fn shown(effort: &Effort<'_>) -> String {
        let part = |part: &Part<'_>| match part.kind {
            Kind::Session(_) => format!("{}-{}", part.from, part.to),
            Kind::Gap(cause) => format!("{}-{} {cause}", part.from, part.to),
        };
        let parts: Vec<String> = effort.parts.iter().map(part).collect();
        format!("{}: {} of {}", parts.join(", "), effort.recorded, effort.to - effort.from)
    }

    #[test]
    fn sessions_and_gaps_are_all_of_the_period() {
        const STALLED: Option<&str> = Some("stalled");
        const FLAP: Option<&str> = Some("flap");
        type Sessions = &'static [(i64, i64, Option<&'static str>)];
        let cases: [(Sessions, &str); 8] = [
            (&[(10, 20, STALLED), (25, 40, None)], "10-20, 20-25 stalled, 25-40: 25 of 30"),
            (&[(10, 20, STALLED), (25, 40, FLAP)], "10-20, 20-25 stalled, 25-40, 40-100 flap: 25 of 90"),
            (&[(2, 4, FLAP), (25, 30, None)], "5-25 flap, 25-30: 5 of 25"),
            (&[(2, 30, None)], "5-30: 25 of 25"),
            (&[(2, 4, FLAP)], "5-100 flap: 0 of 95"),
            // Not closed; overlapping after a step of the clock; in the future.
            (&[(10, 20, None), (30, 40, None)], "10-20, 20-30 unknown, 30-40: 20 of 30"),
            (&[(10, 40, FLAP), (20, 30, STALLED), (35, 50, None)], "10-40, 40-50: 40 of 40"),
            (&[(10, 20, FLAP), (200, 300, None)], "10-20, 20-100 flap: 10 of 90"),
        ];
        for (sessions, expected) in cases {
            let rows: Vec<SessionRow> = (0..).zip(sessions).map(|(id, (from, to, cause))| row(id, "a", *from, *to, *cause)).collect();
            let efforts = efforts(&rows, 5, 100);
            assert_eq!(shown(&efforts[0]), expected);
            let sum: i64 = efforts[0].parts.iter().map(|part| part.to - part.from).sum();
            assert_eq!(sum, efforts[0].to - efforts[0].from);
        }
    }

    #[test]
    fn each_microphone_has_its_own_effort() {
        let rows = [row(1, "b", 0, 50, None), row(2, "a", 0, 25, Some("flap")), row(3, "b", 60, 100, None)];
        let efforts = efforts(&rows, 0, 100);
        let shares: Vec<(&str, f64, usize)> = efforts.iter().map(|effort| (effort.device, effort.share(), effort.gaps())).collect();
        assert_eq!(shares, [("a", 0.25, 1), ("b", 0.9, 1)]);
        assert!(self::efforts(&[], 0, 100).is_empty());
    }
}
