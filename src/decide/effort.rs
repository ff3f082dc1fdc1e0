//! The sampling effort: sessions of each microphone in a period, the gaps between them, and the share that was recorded.

use crate::collect::sort_by_key;
use crate::sorted_map::SortedMap;

use crate::decide::sessions::{STEP_MICROS, SessionRow};
use crate::decide::timeline::{Boot, Placed, place};

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
    /// All frames arrived; the wall clock was stepped by so many microseconds meanwhile.
    Session(&'a SessionRow, i64),
    /// Nothing was recorded, and why.
    Gap(&'a str, Length),
}

/// By which clock the length of a gap is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// By the one that begins at the boot of the host; the wall clock was stepped by so many microseconds meanwhile.
    SinceBoot(i64),
    /// By the wall clock, which was synchronised before and after it.
    Synchronised,
    /// By the wall clock, which was not synchronised.
    NotSynchronised,
    /// By the wall clock, and nobody knows whether it was synchronised.
    Unknown,
}

impl Length {
    /// The length of the gap between two sessions. After the last one, the time is `now`.
    fn of(before: &Placed, after: Option<&Placed>, present: Option<&Boot>) -> Self {
        let boot = after.map_or(present.map(|boot| &boot.id), |after| after.boot.as_ref());
        if before.boot.is_some() && before.boot.as_ref() == boot {
            let later = after.map_or(0, |after| after.stepped.saturating_add(after.moved));
            let stepped = before.moved.saturating_sub(later);
            return Self::SinceBoot(if stepped.saturating_abs() >= STEP_MICROS { stepped } else { 0 });
        }
        match (before.synchronised, after.and_then(|after| after.synchronised)) {
            (Some(true), Some(true)) => Self::Synchronised,
            (Some(false), _) | (_, Some(false)) => Self::NotSynchronised,
            _ => Self::Unknown,
        }
    }
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
        self.parts.iter().filter(|part| matches!(part.kind, Kind::Gap(..))).count()
    }
}

/// The effort of each microphone from `since` until `now`, in the present boot of the host. The rows include the last one
/// of each before `since`.
#[must_use]
pub fn efforts<'a>(rows: &'a [SessionRow], since: i64, now: i64, present: Option<&Boot>) -> Vec<Effort<'a>> {
    let mut devices: SortedMap<&str, Vec<(&SessionRow, Placed)>> = SortedMap::new();
    for (row, placed) in rows.iter().zip(place(rows, present)) {
        devices.entry(&row.device).or_default().push((row, placed));
    }
    devices.into_iter().filter_map(|(device, rows)| of_device(device, rows, (since, now), present)).collect()
}

fn of_device<'a>(
    device: &'a str,
    mut rows: Vec<(&'a SessionRow, Placed)>,
    (since, now): (i64, i64),
    present: Option<&Boot>,
) -> Option<Effort<'a>> {
    sort_by_key(&mut rows, |(_, placed)| (placed.started, placed.ended));
    let from = rows.first()?.1.started.max(since).min(now);
    let mut effort = Effort { device, from, to: from, recorded: 0, parts: Vec::new() };
    // The last session, and why nothing was recorded after it, `None` while it is open.
    let mut last: Option<(&Placed, Option<&str>)> = None;
    for (row, placed) in &rows {
        let gap = placed.started.min(now);
        if gap > effort.to {
            // A row that is open although another one follows was not closed, as the Controller could not do it.
            let cause = last.and_then(|(_, cause)| cause).unwrap_or("unknown");
            let length = last.map_or(Length::Unknown, |(before, _)| Length::of(before, Some(placed), present));
            effort.parts.push(Part { from: effort.to, to: gap, kind: Kind::Gap(cause, length) });
            effort.to = gap;
        }
        last = Some((placed, row.cause.as_deref()));
        // After a step of the wall clock, sessions of different boots can overlap.
        let end = placed.ended.min(now);
        if end > effort.to {
            effort.parts.push(Part { from: effort.to, to: end, kind: Kind::Session(row, placed.stepped) });
            effort.recorded += end - effort.to;
            effort.to = end;
        }
    }
    if let Some((before, Some(cause))) = last.filter(|_| now > effort.to) {
        let length = Length::of(before, None, present);
        effort.parts.push(Part { from: effort.to, to: now, kind: Kind::Gap(cause, length) });
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
            Kind::Session(..) => format!("{}-{}", part.from, part.to),
            Kind::Gap(cause, _) => format!("{}-{} {cause}", part.from, part.to),
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
            let efforts = efforts(&rows, 5, 100, None);
            assert_eq!(shown(&efforts[0]), expected);
            let sum: i64 = efforts[0].parts.iter().map(|part| part.to - part.from).sum();
            assert_eq!(sum, efforts[0].to - efforts[0].from);
        }
    }

    #[test]
    fn each_microphone_has_its_own_effort() {
        let rows = [row(1, "b", 0, 50, None), row(2, "a", 0, 25, Some("flap")), row(3, "b", 60, 100, None)];
        let efforts = efforts(&rows, 0, 100, None);
        let shares: Vec<(&str, f64, usize)> = efforts.iter().map(|effort| (effort.device, effort.share(), effort.gaps())).collect();
        assert_eq!(shares, [("a", 0.25, 1), ("b", 0.9, 1)]);
        assert!(self::efforts(&[], 0, 100, None).is_empty());
    }

    #[test]
    fn a_step_of_the_clock_in_a_gap_changes_no_length_and_is_named() {
        const SECOND: i64 = 1_000_000;
        let year = 365 * 86_400 * SECOND;
        // Seconds since boot, and by how much the wall clock was wrong then.
        let at = |id, boot: &str, begin: i64, end: i64, wrong: i64, synchronised: bool, cause| SessionRow {
            clock: format!(
                "{{\"boot\":\"{boot}\",\"begin_us\":{},\"end_us\":{},\"synchronised\":{synchronised}}}",
                begin * SECOND,
                end * SECOND
            ),
            ..row(id, "a", begin * SECOND + wrong, end * SECOND + wrong, cause)
        };
        let shown = |effort: &Effort<'_>| {
            let part = |part: &Part<'_>| match part.kind {
                Kind::Session(..) => format!("{}", (part.to - part.from) / SECOND),
                Kind::Gap(cause, length) => format!("{} {cause} {length:?}", (part.to - part.from) / SECOND),
            };
            effort.parts.iter().map(part).collect::<Vec<_>>().join(", ")
        };
        let (unplugged, power) = (Some("unplugged"), Some("power or boot"));
        for wrong in [-year, year] {
            let first = || at(1, "b", 10, 100, wrong, false, unplugged);
            // In a gap between two sessions, also if another microphone saw it first.
            let rows = [first(), at(2, "b", 110, 200, 0, true, None)];
            let found = efforts(&rows, 0, 300 * SECOND, None);
            assert_eq!(shown(&found[0]), format!("90, 10 unplugged SinceBoot({}), 90", -wrong));
            assert_eq!((found[0].recorded, found[0].to - found[0].from), (180 * SECOND, 190 * SECOND));
            // In one that lasts.
            let rows = [first()];
            let found = efforts(&rows, 0, 300 * SECOND, Some(&Boot { id: "b".to_owned(), offset: 0 }));
            assert_eq!(shown(&found[0]), format!("90, 200 unplugged SinceBoot({})", -wrong));
        }
        // Across a boot, only a synchronised clock tells it.
        for (before, after, expected) in [(true, true, "Synchronised"), (true, false, "NotSynchronised"), (false, true, "NotSynchronised")]
        {
            let rows = [at(1, "b", 10, 100, 0, before, power), at(2, "c", 10, 20, 190 * SECOND, after, None)];
            assert_eq!(shown(&efforts(&rows, 0, 300 * SECOND, None)[0]), format!("90, 100 power or boot {expected}, 10"));
        }
        // A clock that contradicts its row is not believed.
        let rows = [SessionRow { ended: 50 * SECOND, ..at(1, "b", 10, 100, 0, true, unplugged) }, at(2, "b", 110, 120, 0, true, None)];
        assert_eq!(shown(&efforts(&rows, 0, 300 * SECOND, None)[0]), "40, 60 unplugged Synchronised, 10");
    }
}
