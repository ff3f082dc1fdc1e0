//! `silvasonic-controller history`: when each microphone was recorded, and why not in between.
//!
//! The share of the time that was recorded is the sampling effort, which a publication must state.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::cli::arguments::{Arguments, Format};
use crate::clock::{self, iso_seconds, micros, of_micros};
use crate::clocks;
use crate::config::Config;
use crate::database::connection::{Connection, reason};
use crate::decide::effort::{Effort, Kind, Length, Part, efforts};
use crate::json::one_line;
use crate::text::{shown, table};

/// The period without `--since`.
const PERIOD: &str = "7d";
/// Longest period; the server computes with it.
const LONGEST: u64 = 100 * 365 * 24 * 3600;

/// Shows sessions, gaps and shares.
///
/// # Errors
/// The period is malformed, no such microphone was recorded, or why the database cannot be read.
pub fn show(config: &Config, given: &Arguments<'_>) -> Result<(bool, String), String> {
    let now = SystemTime::now();
    let since = given.value("--since").unwrap_or(PERIOD);
    let since = parse_since(since, now).ok_or_else(|| {
        format!("--since: expected a period such as 24h or 30d, or a time such as 2026-05-01, got {:?}", shown(since).to_string())
    })?;
    let present = clocks::boot();
    let rows = Connection::connect_for_command(&config.database)
        .and_then(|mut db| db.sessions_since(micros(since), &present.id).map_err(|error| reason(&error)))
        .map_err(|why| format!("cannot read PostgreSQL: {why}"))?;
    let mut efforts = efforts(&rows, micros(since), micros(now), Some(&present));
    if let Some(id) = given.value("ID") {
        efforts.retain(|effort| effort.device.starts_with(id));
        if efforts.is_empty() {
            return Err(format!("ID: no session of {:?} is known", shown(id).to_string()));
        }
    }
    let text = match given.format() {
        _ if given.has("--csv") => to_csv(&efforts),
        Format::Json => one_line(&json!({"microphones": efforts.iter().map(to_json).collect::<Value>()}).to_string()) + "\n",
        Format::Text => to_text(&efforts),
    };
    Ok((true, text))
}

/// `24h` or `30d` before now, a day, or a time.
fn parse_since(text: &str, now: SystemTime) -> Option<SystemTime> {
    let text = text.trim();
    let unit = match text.chars().last()? {
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return clock::parse(text).or_else(|| clock::parse(&format!("{text}T00:00:00Z"))),
    };
    let count: u64 = text[..text.len() - 1].parse().ok()?;
    let seconds = count.checked_mul(unit).filter(|seconds| *seconds <= LONGEST)?;
    now.checked_sub(Duration::from_secs(seconds)).map(|since| since.max(SystemTime::UNIX_EPOCH))
}

fn time(micros: i64) -> String {
    iso_seconds(of_micros(micros))
}

fn seconds(part: &Part<'_>) -> f64 {
    (part.to - part.from) as f64 / 1e6
}

/// `2d 03:04:05`.
fn duration(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match seconds / 86_400 {
        0 => clock,
        days => format!("{days}d {clock}"),
    }
}

/// What must be known about the length of a gap.
fn doubt(length: Length) -> String {
    match length {
        Length::SinceBoot(0) | Length::Synchronised | Length::Unknown => String::new(),
        Length::SinceBoot(step) if step < 0 => format!("; clock: stepped back by {}", duration(step.saturating_neg())),
        Length::SinceBoot(step) => format!("; clock: stepped by {}", duration(step)),
        Length::NotSynchronised => "; clock: not synchronised".to_owned(),
    }
}

/// The clock by which the length of a gap is known, and by how many seconds the wall clock was stepped meanwhile.
fn length_of(length: Length) -> (&'static str, i64) {
    match length {
        Length::SinceBoot(step) => ("since boot", step / 1_000_000),
        Length::Synchronised => ("synchronised", 0),
        Length::NotSynchronised => ("not synchronised", 0),
        Length::Unknown => ("unknown", 0),
    }
}

fn to_text(efforts: &[Effort<'_>]) -> String {
    if efforts.is_empty() {
        return "no session is known\n".to_owned();
    }
    let mut cells = vec![["ID", "FROM", "TO", "DURATION", "STATE"].map(str::to_owned)];
    let mut summary = String::new();
    for effort in efforts {
        let id = shown(effort.device).to_string();
        for part in &effort.parts {
            let state = match part.kind {
                Kind::Session(row, stepped) => {
                    let open = if row.cause.is_none() { ", open" } else { "" };
                    format!("recorded at {} Hz{open}{}", row.rate, doubt(Length::SinceBoot(stepped)))
                }
                Kind::Gap(cause, length) => format!("gap: {}{}", shown(cause), doubt(length)),
            };
            cells.push([id.clone(), time(part.from), time(part.to), duration(part.to - part.from), state]);
        }
        let (share, all) = (effort.share() * 100.0, duration(effort.to - effort.from));
        summary.push_str(&format!("{id}: {share:.2} % of {all} recorded, gaps: {}\n", effort.gaps()));
    }
    table(&cells) + &summary
}

fn to_json(effort: &Effort<'_>) -> Value {
    let part = |part: &Part<'_>| {
        let (from, to, seconds) = (clock::iso(of_micros(part.from)), clock::iso(of_micros(part.to)), seconds(part));
        match part.kind {
            Kind::Session(row, _) => {
                json!({"kind": "session", "from": from, "to": to, "seconds": seconds, "id": row.id, "container": row.container,
                "frames": row.frames, "rate": row.rate, "cause": row.cause, "clock": crate::json::from_str::<Value>(&row.clock).unwrap_or_default()})
            }
            Kind::Gap(cause, length) => {
                let (clock, stepped) = length_of(length);
                json!({"kind": "gap", "from": from, "to": to, "seconds": seconds, "cause": cause,
                    "clock": {"length": clock, "stepped_s": stepped}})
            }
        }
    };
    json!({"id": effort.device, "from": clock::iso(of_micros(effort.from)), "to": clock::iso(of_micros(effort.to)), "share": effort.share(),
        "recorded_s": effort.recorded as f64 / 1e6, "parts": effort.parts.iter().map(part).collect::<Value>()})
}

/// A field of CSV; one that a spreadsheet could mistake for a formula begins with an apostrophe.
fn field(text: &str) -> String {
    let text = shown(text).to_string().replace('"', "\"\"");
    let guard = if text.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    if text.contains([',', '"']) { format!("\"{guard}{text}\"") } else { format!("{guard}{text}") }
}

fn to_csv(efforts: &[Effort<'_>]) -> String {
    let mut text = "device,kind,from,to,seconds,frames,rate,container,cause,clock,stepped_s\n".to_owned();
    for effort in efforts {
        for part in &effort.parts {
            let (device, from, to, seconds) =
                (field(effort.device), clock::iso(of_micros(part.from)), clock::iso(of_micros(part.to)), seconds(part));
            match part.kind {
                Kind::Session(row, stepped) => {
                    let (container, cause) = (field(&row.container), field(row.cause.as_deref().unwrap_or_default()));
                    text.push_str(&format!(
                        "{device},session,{from},{to},{seconds:.3},{},{},{container},{cause},,{}\n",
                        row.frames,
                        row.rate,
                        stepped / 1_000_000
                    ));
                }
                Kind::Gap(cause, length) => {
                    let (clock, stepped) = length_of(length);
                    text.push_str(&format!("{device},gap,{from},{to},{seconds:.3},,,,{},{clock},{stepped}\n", field(cause)));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::sessions::SessionRow;

    fn row(device: &str, from: i64, to: i64, cause: Option<&str>) -> SessionRow {
        let second = 1_000_000;
        SessionRow {
            id: from,
            device: device.to_owned(),
            container: "0123456789ab".to_owned(),
            started: from * second,
            ended: to * second,
            frames: (to - from) * 384_000,
            rate: 384_000,
            cause: cause.map(str::to_owned),
            clock: "{}".to_owned(),
        }
    }

    #[test]
    fn a_period_is_a_duration_or_a_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let before = |seconds| Some(now - Duration::from_secs(seconds));
        let cases = [
            ("90m", before(5400)),
            ("24h", before(86_400)),
            ("30d", before(2_592_000)),
            ("2001-09-09", clock::parse("2001-09-09T00:00:00Z")),
            ("2001-09-09T01:00:00+01:00", clock::parse("2001-09-09T00:00:00Z")),
            ("36499d", Some(SystemTime::UNIX_EPOCH)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_since(text, now), expected, "{text}");
        }
        for text in ["", "d", "-1d", "1w", "99999999999999999999d", "1e9d", "yesterday", "é", "2001-13-01"] {
            assert_eq!(parse_since(text, now), None, "{text}");
        }
    }

    #[test]
    fn sessions_gaps_and_shares_are_shown() {
        let rows = [row("a", 0, 90_000, Some("unplugged")), row("a", 90_010, 100_000, None)];
        let efforts = efforts(&rows, 0, 100_000_000_000, None);
        let text = "ID  FROM                  TO                    DURATION     STATE
a   1970-01-01T00:00:00Z  1970-01-02T01:00:00Z  1d 01:00:00  recorded at 384000 Hz
a   1970-01-02T01:00:00Z  1970-01-02T01:00:10Z  00:00:10     gap: unplugged
a   1970-01-02T01:00:10Z  1970-01-02T03:46:40Z  02:46:30     recorded at 384000 Hz, open
a: 99.99 % of 1d 03:46:40 recorded, gaps: 1
";
        assert_eq!(to_text(&efforts), text);
        let csv = "device,kind,from,to,seconds,frames,rate,container,cause,clock,stepped_s
a,session,1970-01-01T00:00:00.000000Z,1970-01-02T01:00:00.000000Z,90000.000,34560000000,384000,0123456789ab,unplugged,,0
a,gap,1970-01-02T01:00:00.000000Z,1970-01-02T01:00:10.000000Z,10.000,,,,unplugged,unknown,0
a,session,1970-01-02T01:00:10.000000Z,1970-01-02T03:46:40.000000Z,9990.000,3836160000,384000,0123456789ab,,,0
";
        assert_eq!(to_csv(&efforts), csv);
        let json = to_json(&efforts[0]);
        assert_eq!((json["share"].as_f64(), json["parts"][1]["cause"].as_str()), (Some(0.9999), Some("unplugged")));
    }

    #[test]
    fn a_step_of_the_clock_and_one_that_is_not_synchronised_are_named() {
        let clock = |boot: &str, begin: i64, end: i64, more: &str| {
            format!("{{\"boot\":\"{boot}\",\"begin_us\":{},\"end_us\":{}{more}}}", begin * 1_000_000, end * 1_000_000)
        };
        let mut rows =
            [row("a", 10, 90, Some("unplugged")), row("a", 86_500, 86_600, Some("power or boot")), row("a", 86_700, 86_710, None)];
        rows[0].clock = clock("b", 10, 90, "");
        rows[1].clock = clock("b", 100, 200, ",\"synchronised\":false,\"stepped_s\":-5");
        rows[2].clock = clock("c", 10, 20, ",\"synchronised\":true");
        let efforts = efforts(&rows, 0, 100_000_000_000, None);
        let text = "ID  FROM                  TO                    DURATION  STATE
a   1970-01-02T00:00:10Z  1970-01-02T00:01:30Z  00:01:20  recorded at 384000 Hz
a   1970-01-02T00:01:30Z  1970-01-02T00:01:40Z  00:00:10  gap: unplugged; clock: stepped by 1d 00:00:05
a   1970-01-02T00:01:40Z  1970-01-02T00:03:20Z  00:01:40  recorded at 384000 Hz; clock: stepped back by 00:00:05
a   1970-01-02T00:03:20Z  1970-01-02T00:05:00Z  00:01:40  gap: power or boot; clock: not synchronised
a   1970-01-02T00:05:00Z  1970-01-02T00:05:10Z  00:00:10  recorded at 384000 Hz, open
";
        assert!(to_text(&efforts).starts_with(text), "{}", to_text(&efforts));
        let csv = to_csv(&efforts);
        assert!(csv.contains(",unplugged,since boot,86405\n") && csv.contains(",power or boot,not synchronised,0\n"), "{csv}");
        let gap = &to_json(&efforts[0])["parts"][1];
        assert_eq!((gap["seconds"].as_f64(), gap["clock"]["stepped_s"].as_i64()), (Some(10.0), Some(86_405)));
    }

    #[test]
    fn foreign_text_stays_in_its_field() {
        let rows = [row("=a,\"\n\u{1b}", 0, 10, Some("x, \"y\""))];
        let csv = to_csv(&efforts(&rows, 0, 20_000_000, None));
        assert_eq!(csv.lines().count(), 3, "{csv}");
        assert!(csv.contains("\n\"'=a,\"\"\\n\\u{1b}\",gap,") && csv.ends_with(",\"x, \"\"y\"\"\",unknown,0\n"), "{csv}");
        assert!(!to_text(&efforts(&rows, 0, 20_000_000, None)).contains('\u{1b}'));
    }
}
