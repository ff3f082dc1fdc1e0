//! Wall-clock times as text and as numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Whole seconds since 1970.
#[must_use]
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds since 1970, with their decimals.
#[must_use]
pub fn fractional_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Microseconds since 1970.
#[must_use]
pub fn micros(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}

/// The time that is so many microseconds after 1970.
#[must_use]
pub fn of_micros(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// `2026-01-31T12:00:00.000001Z`: ISO 8601, UTC, microseconds.
#[must_use]
pub fn iso(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// As [`iso`], with milliseconds: `2026-01-31T12:00:00.000Z`.
#[must_use]
pub fn iso_millis(time: SystemTime) -> String {
    let mut text = iso(time);
    text.replace_range(23.., "Z");
    text
}

/// As [`iso`], without decimals: `2026-01-31T12:00:00Z`.
#[must_use]
pub fn iso_seconds(time: SystemTime) -> String {
    let mut text = iso(time);
    text.replace_range(19.., "Z");
    text
}

/// Reads the format of [`iso`], and variants: a space instead of `T`, any number of decimals, a zone such as `+01:00`.
/// Without a zone, the time is UTC.
#[must_use]
pub fn parse(text: &str) -> Option<SystemTime> {
    let (day, clock) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(day, '-', [4, 2, 2])?;
    let zone_at = clock.find(['Z', 'z', '+', '-']).unwrap_or(clock.len());
    let (clock, zone) = clock.split_at(zone_at);
    let (clock, decimals) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let offset = match zone {
        "" | "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone[1..].split_at_checked(2)?;
            let [hours] = numbers(hours, ':', [2])?;
            let [minutes] = numbers(minutes.trim_start_matches(':'), ':', [2])?;
            (hours * 60 + minutes) * if zone.starts_with('-') { -60 } else { 60 }
        }
    };
    if decimals.is_empty() || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let valid = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !valid || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Nine digits, padded with zeros.
    let nanos = decimals.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    // The inverse of `date`, in years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second - offset;
    Some(UNIX_EPOCH + Duration::new(u64::try_from(seconds).ok()?, nanos))
}

/// Exactly `N` numbers with the given numbers of digits.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, digits) in found.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

/// Days since 1970-01-01 -> year, month, day, counted in years that begin in March, so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_utc_with_microseconds() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
            (1_709_251_199, 999_999, "2024-02-29T23:59:59.999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
            (1_795_564_799, 500_000, "2026-11-24T23:59:59.500000Z"),
        ];
        for (seconds, micros, text) in cases {
            assert_eq!(iso(UNIX_EPOCH + Duration::new(seconds, micros * 1000)), text);
        }
    }

    #[test]
    fn times_are_read_with_decimals_and_zones() {
        let cases = [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
            ("2000-02-29T23:59:59.5Z", "2000-02-29T23:59:59.500000Z"),
            ("2026-11-24 02:37:47.438068892", "2026-11-24T02:37:47.438068Z"),
            ("2026-03-01T00:30:00+01:00", "2026-02-28T23:30:00.000000Z"),
            ("2026-12-31T23:30:00-0130", "2027-01-01T01:00:00.000000Z"),
            ("2100-01-01T00:00:00Z", "2100-01-01T00:00:00.000000Z"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).map(iso).as_deref(), Some(expected), "{text}");
        }
        for day in 0..80_000 {
            let time = UNIX_EPOCH + Duration::from_secs(day * 86_400 + 7);
            assert_eq!(parse(&iso(time)), Some(time));
        }
        for text in [
            "",
            "T",
            "now",
            "2026-11-24",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "2026-13-01T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T02:37Z",
            "2026-11-24T02:37:47.Z",
            "2026-11-24T02:37:47.xZ",
            "2026-11-24T02:37:47+1",
            "2026-11-24T02:37:47+é",
            "+026-11-24T02:37:47Z",
            "2026-11-24T02:37:47Zulu",
            "99999-01-01T00:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
