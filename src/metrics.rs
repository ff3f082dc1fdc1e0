//! The metrics of the station: what the other parts know, and what is counted here.
//!
//! Invariant: the number of samples is bounded. At most 64 microphones are shown, those that are connected first,
//! and none that was not seen for 30 days; other labels have a fixed number of values.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::clock;
use crate::decide::capture::Capture;
use crate::decide::presence::Presence;
use crate::decide::reason::Reason;
use crate::decide::registry::{Device, Enrollment};
use crate::decide::sessions::{Count, Effort, GapKind};
use crate::health::board::Activity;
use crate::health::openmetrics::{Format, Kind, Writer};
use crate::redis::levels::{Level, Levels};
use crate::report::{Known, Surroundings};
use crate::tally::{ACTIONS, Tally};
use crate::text::shown;

/// Microphones that are shown at most.
const DEVICES: usize = 64;
/// A microphone that was not connected for this time is not shown.
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// Characters of a name or slug that are shown.
const NAME: usize = 64;

const ACTIVITIES: [Activity; 4] = [Activity::Idle, Activity::Recording, Activity::Standby, Activity::Stopping];
const STATES: [&str; 8] = ["recording", "stalled", "waiting", "offline", "pending", "ignored", "disabled", "unknown"];
const CAPTURES: [&str; 5] = ["running", "stalled", "unopened", "unproven", "unknown"];

/// One microphone.
struct Microphone<'a> {
    id: &'a str,
    device: Option<&'a Device>,
    state: &'static str,
    recording: Option<bool>,
    is_connected: bool,
    /// What was counted, the nominal rate and the last frame.
    count: Option<(&'a Count, u64, i64)>,
    effort: Option<Effort>,
}

/// All metrics.
pub fn text(known: &mut Known<'_>, around: &Surroundings<'_>, format: Format) -> String {
    let reasons = known.reasons();
    let known = &*known;
    let all: Vec<Microphone<'_>> = reasons.iter().map(|(id, reason)| microphone(known, id, reason)).collect();
    let mut writer = Writer::new(format);
    let w = &mut writer;
    station(w, known, around);
    w.family(Kind::Gauge, "silvasonic_microphones", "Microphones in each state.");
    for state in STATES {
        w.sample(&[("state", state)], all.iter().filter(|microphone| microphone.state == state).count() as f64);
    }
    let all = limited(all, around.wall);
    microphones(w, known, &all);
    recordings(w, around, &all);
    levels(w, around.levels, &all);
    recorders(w, known.tally, &all);
    host(w, known, around);
    writer.finish()
}

fn microphone<'a>(known: &Known<'a>, id: &'a str, reason: &Reason) -> Microphone<'a> {
    let device = known.database.registry.as_ref().and_then(|registry| registry.devices.get(id)).and_then(|device| device.as_ref().ok());
    let is_connected = matches!(known.hardware.presences.get(id), Some(Presence::Online(_) | Presence::Missing { .. }));
    let state = match (reason.recording, device) {
        (Some(true), _) => "recording",
        _ if reason.stalled => "stalled",
        (None, _) => "unknown",
        (_, Some(Device { enrollment: Enrollment::Pending, .. })) => "pending",
        (_, Some(Device { enrollment: Enrollment::Ignored, .. })) => "ignored",
        (_, Some(Device { enabled: false, .. })) => "disabled",
        _ if !is_connected => "offline",
        _ => "waiting",
    };
    let (count, effort) = (known.ledger.count(id), known.ledger.shares(id));
    Microphone { id, device, state, recording: reason.recording, is_connected, count, effort }
}

/// Without those that were not seen for a month, and those that are too many: the connected ones come first.
fn limited(all: Vec<Microphone<'_>>, now: SystemTime) -> Vec<Microphone<'_>> {
    let oldest = clock::iso_seconds(now - MONTH);
    let (mut shown, mut others) = (Vec::new(), Vec::new());
    for microphone in all {
        // One without a row has a container that this program found.
        let is_recent = |device: &Device| device.last_seen.as_deref().is_some_and(|seen| *seen >= *oldest);
        if microphone.is_connected {
            shown.push(microphone);
        } else if microphone.recording == Some(true) || microphone.device.is_none_or(is_recent) {
            others.push(microphone);
        }
    }
    shown.append(&mut others);
    shown.truncate(DEVICES);
    shown
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn cut(text: &str) -> String {
    shown(text).to_string().chars().take(NAME).collect()
}

fn station(w: &mut Writer, known: &Known<'_>, around: &Surroundings<'_>) {
    w.family(Kind::Info, "silvasonic_build", "Version of the Controller.");
    w.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    w.family(Kind::Gauge, "silvasonic_start_time_seconds", "When the Controller started, in seconds since 1970.");
    w.sample(&[], clock::fractional_seconds(known.started));
    let activity = around.facts.activity;
    w.family(Kind::Gauge, "silvasonic_activity", "What the Controller does: 1 for one activity, 0 for the others.");
    ACTIVITIES.into_iter().for_each(|other| w.sample(&[("activity", other.as_str())], flag(activity == other)));
    let (redis, traffic) = known.heartbeat.traffic();
    let services = [
        ("podman", known.containers.state.is_ok(), known.containers.latency),
        ("postgresql", known.database.state.is_ok(), known.database.latency),
        ("redis", redis.is_ok(), traffic.latency),
    ];
    w.family(Kind::Gauge, "silvasonic_service_up", "Whether a service responds.");
    services.iter().for_each(|(name, is_up, _)| w.sample(&[("service", name)], flag(*is_up)));
    w.family(Kind::Gauge, "silvasonic_service_latency_seconds", "Time until the last answer of a service that responds.");
    for (name, is_up, latency) in services {
        w.sample(&[("service", name)], latency.filter(|_| is_up).map(|latency| latency.as_secs_f64()));
    }
}

fn microphones(w: &mut Writer, known: &Known<'_>, all: &[Microphone<'_>]) {
    w.family(Kind::Info, "silvasonic_microphone", "Name and profile of a microphone.");
    for microphone in all {
        let device = microphone.device;
        let name = device.map_or_else(String::new, |device| cut(&device.model));
        let profile = device.and_then(|device| device.profile.as_deref()).map_or_else(String::new, cut);
        w.sample(&[("device", microphone.id), ("name", &name), ("profile", &profile)], 1.0);
    }
    w.family(Kind::Gauge, "silvasonic_microphone_wanted", "Whether a microphone is enrolled and enabled.");
    for microphone in all {
        let is_wanted = |device: &Device| device.enabled && device.enrollment == Enrollment::Enrolled;
        w.sample(&[("device", microphone.id)], flag(microphone.device.is_some_and(is_wanted)));
    }
    w.family(Kind::Gauge, "silvasonic_microphone_connected", "Whether a microphone is connected.");
    all.iter().for_each(|microphone| w.sample(&[("device", microphone.id)], flag(microphone.is_connected)));
    w.family(Kind::Gauge, "silvasonic_microphone_recording", "Whether a microphone is recorded; absent if that is unknown.");
    all.iter().for_each(|microphone| w.sample(&[("device", microphone.id)], microphone.recording.map(flag)));
    w.family(Kind::Gauge, "silvasonic_capture_state", "Whether frames arrive at a Recorder that runs: 1 for one state, 0 for the others.");
    for microphone in all {
        let state = known.captures.capture(microphone.id).map(|capture| match capture {
            Capture::Running => "running",
            Capture::Standing(_) => "stalled",
            Capture::Unopened | Capture::Taken(_) => "unopened",
            Capture::Unproven => "unproven",
            Capture::Unknown(_) => "unknown",
        });
        CAPTURES.into_iter().for_each(|other| w.sample(&[("device", microphone.id), ("state", other)], flag(state == Some(other))));
    }
}

fn recordings(w: &mut Writer, around: &Surroundings<'_>, all: &[Microphone<'_>]) {
    w.family(Kind::Counter, "silvasonic_frames", "Frames that arrived.");
    for Microphone { id, count, .. } in all {
        w.sample(&[("device", id)], count.map(|(count, ..)| count.frames as f64));
    }
    w.family(Kind::Gauge, "silvasonic_last_frame_timestamp_seconds", "When the last known frame arrived, in seconds since 1970.");
    for Microphone { id, count, .. } in all {
        w.sample(&[("device", id)], count.map(|(.., last)| last as f64 / 1e6));
    }
    w.family(Kind::Gauge, "silvasonic_sample_rate_hertz", "Nominal rate.");
    for Microphone { id, count, .. } in all {
        w.sample(&[("device", id)], count.map(|(_, rate, _)| rate as f64));
    }
    w.family(
        Kind::Gauge,
        "silvasonic_sample_rate_deviation_ratio",
        "Measured rate divided by the nominal one, minus 1; after ten minutes.",
    );
    for Microphone { id, effort, .. } in all {
        let rate = effort.as_ref().and_then(|effort| effort.rate);
        w.sample(&[("device", id)], rate.map(|(rate, nominal)| rate / nominal as f64 - 1.0));
    }
    w.family(Kind::Gauge, "silvasonic_recorded_ratio", "Share of the last 24 hours that was recorded.");
    for Microphone { id, effort, .. } in all {
        w.sample(&[("device", id)], effort.as_ref().map(|effort| effort.share));
    }
    w.family(Kind::Counter, "silvasonic_gaps", "Times without frames that are over, by cause.");
    gaps(w, all, |(gaps, _)| gaps as f64);
    w.family(Kind::Counter, "silvasonic_gap_seconds", "Duration of times without frames that are over, by cause.");
    gaps(w, all, |(_, seconds)| seconds);
    w.family(Kind::Gauge, "silvasonic_capture_bytes_per_second", "What all captures together deliver.");
    w.sample(&[], around.facts.rate as f64);
}

fn levels(w: &mut Writer, levels: &Levels, all: &[Microphone<'_>]) {
    type Value = fn(&Level) -> Option<f64>;
    let families: [(Kind, &'static str, &str, Value); 4] = [
        (Kind::Gauge, "silvasonic_level_peak_dbfs", "Greatest value of the last ten seconds, in dB of full scale.", |level| {
            level.peak_dbfs
        }),
        (Kind::Gauge, "silvasonic_level_rms_dbfs", "Root mean square of the last ten seconds, in dB of full scale.", |level| {
            level.rms_dbfs
        }),
        (Kind::Counter, "silvasonic_clipped_samples", "Samples at the limits of the format.", |level| {
            level.clipped.map(|count| count as f64)
        }),
        (Kind::Counter, "silvasonic_overruns", "Overruns of the card and of the Recorder.", |level| {
            level.overruns.map(|count| count as f64)
        }),
    ];
    for (kind, name, help, value) in families {
        w.family(kind, name, help);
        all.iter().for_each(|microphone| w.sample(&[("device", microphone.id)], levels.get(microphone.id).and_then(value)));
    }
}

/// For each microphone and cause, this of the number of gaps and their seconds.
fn gaps(w: &mut Writer, all: &[Microphone<'_>], value: fn((u64, f64)) -> f64) {
    for Microphone { id, count, .. } in all {
        let gaps = count.iter().flat_map(|(count, ..)| count.gaps);
        gaps.zip(GapKind::LABELS).for_each(|(gaps, cause)| w.sample(&[("device", id), ("cause", cause)], value(gaps)));
    }
}

fn recorders(w: &mut Writer, tally: &Tally, all: &[Microphone<'_>]) {
    w.family(Kind::Counter, "silvasonic_recorder_ends", "Ends of Recorders that no action caused, by exit code.");
    for (device, code, count) in tally.ends.iter().filter(|(device, ..)| all.iter().any(|microphone| microphone.id == device)) {
        w.sample(&[("device", device), ("code", code)], *count as f64);
    }
    w.family(Kind::Histogram, "silvasonic_action_duration_seconds", "Durations of actions on Recorders that were done.");
    ACTIONS.iter().zip(&tally.actions).for_each(|(action, durations)| w.durations(("action", action), durations));
    w.family(Kind::Counter, "silvasonic_action_failures", "Actions on Recorders that failed.");
    ACTIONS.iter().zip(tally.failures).for_each(|(action, count)| w.sample(&[("action", action)], count as f64));
}

fn host(w: &mut Writer, known: &Known<'_>, around: &Surroundings<'_>) {
    let (heartbeat, power) = (known.heartbeat, around.power);
    let ((_, traffic), host, own, runway) = (heartbeat.traffic(), heartbeat.host(), heartbeat.own(), heartbeat.runway());
    w.family(Kind::Counter, "silvasonic_log_lines_forwarded", "Log lines of containers that Redis has accepted.");
    w.sample(&[], traffic.forwarded as f64);
    w.family(Kind::Counter, "silvasonic_log_lines_dropped", "Log lines of containers that were dropped.");
    w.sample(&[], traffic.dropped as f64);
    let read = |values: &Value, field: &str, factor: f64| values[field].as_f64().map(|value| value * factor);
    let (percent, mib, gib) = (0.01, 1_048_576.0, 1_073_741_824.0);
    for (name, help, value) in [
        ("silvasonic_runway_seconds", "How long the free space lasts.", read(runway, "seconds", 1.0)),
        ("silvasonic_workspace_used_bytes", "Used space of the workspace.", read(host, "storage_used_gb", gib)),
        ("silvasonic_workspace_size_bytes", "All space of the workspace.", read(host, "storage_total_gb", gib)),
        ("silvasonic_host_cpu_ratio", "Processor time that is used, of all processors.", read(host, "cpu_percent", percent)),
        ("silvasonic_host_memory_used_bytes", "Memory that is used.", read(host, "memory_used_mb", mib)),
        ("silvasonic_host_memory_size_bytes", "All memory.", read(host, "memory_total_mb", mib)),
        ("silvasonic_host_temperature_celsius", "Temperature of the processor.", power.millidegrees.map(|value| value as f64 / 1000.0)),
        ("silvasonic_host_under_voltage", "Whether the supply voltage is or was too low.", power.under_voltage.map(flag)),
        ("silvasonic_clock_synchronised", "Whether the wall clock is synchronised.", known.ledger.is_synchronised().map(flag)),
        ("silvasonic_controller_cpu_ratio", "Processor time of the Controller, of one processor.", read(own, "cpu_percent", percent)),
        ("silvasonic_controller_memory_bytes", "Memory of the Controller.", read(own, "memory_mb", mib)),
        ("silvasonic_controller_threads", "Threads of the Controller.", read(own, "num_threads", 1.0)),
    ] {
        w.family(Kind::Gauge, name, help);
        w.sample(&[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;
    use std::time::UNIX_EPOCH;

    #[test]
    fn microphones_that_were_not_seen_for_a_month_are_left_out() {
        let device = |last_seen: Option<&str>| Device {
            online: false,
            model: String::new(),
            enrollment: Enrollment::Enrolled,
            enabled: true,
            profile: None,
            config: Map::new(),
            workspace: None,
            last_seen: last_seen.map(str::to_owned),
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_769_860_800);
        let (old, recent, never) = (device(Some("2025-12-30T12:00:00+00:00")), device(Some("2026-01-02T12:00:00+00:00")), device(None));
        let microphone = |id, device, is_connected| Microphone {
            id,
            device,
            state: "offline",
            recording: Some(false),
            is_connected,
            count: None,
            effort: None,
        };
        let all = vec![
            microphone("a", Some(&recent), false),
            microphone("b", Some(&old), false),
            microphone("c", Some(&never), false),
            microphone("d", Some(&never), true),
            microphone("e", None, false),
        ];
        let all = limited(all, now);
        assert_eq!(all.iter().map(|microphone| microphone.id).collect::<Vec<_>>(), ["d", "a", "e"]);
        let ids: Vec<String> = (100..300).map(|id| id.to_string()).collect();
        let all: Vec<Microphone<'_>> = ids.iter().map(|id| microphone(id, Some(&recent), *id == "250")).collect();
        let all = limited(all, now);
        assert_eq!((all.len(), all[0].id, all[1].id), (DEVICES, "250", "100"));
    }
}
