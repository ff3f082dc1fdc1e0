//! Proof of capture: the state of the PCM that a Recorder should have opened.
//!
//! A running container does not prove that it records. `/proc/asound/cardN/pcm*c/sub*` shows whether the stream is
//! open, whether its pointer moves, its rate and format, and which process holds it. The command `devices` and the
//! heartbeat show this, and changes are logged; no decision depends on it.
//!
//! Reading these files blocks while the card hangs, so the `probe` thread reads them. Invariant: the main loop requests
//! one read at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use serde_json::{Value, json};

use crate::decide::profile::AudioFormat;
use crate::fs as files;
use crate::probe::Prober;
use crate::text::shown;

/// Time between two reads while something changes, and while nothing does.
const SOON: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_secs(5);
/// A read takes a millisecond. After this time, other reads do not wait for it any more.
const PATIENCE: Duration = Duration::from_millis(250);
/// After this time without an answer, the state is unknown.
const SILENT: Duration = Duration::from_secs(15);
/// The files have about 300 bytes.
const LIMIT: u64 = 4 << 10;
/// Time for a Recorder to open its card.
const OPENED: Duration = Duration::from_secs(10);

/// One PCM substream, from its two files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Substream {
    /// `RUNNING`, `PREPARED`, `XRUN`, …; `None` = closed.
    state: Option<String>,
    /// The process that holds it.
    owner: Option<u32>,
    /// The name of that process.
    holder: Option<String>,
    /// Number of frames that the hardware has delivered.
    pointer: Option<u64>,
    format: Option<String>,
    channels: Option<u64>,
    rate: Option<u64>,
}

/// Whether frames arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PcmState {
    /// No process has opened the card.
    Closed,
    /// It is open; the next read will show whether frames arrive.
    Open,
    /// Frames arrive.
    Running,
    /// It is open, but no frames arrive; with the state that the kernel reports.
    Stalled(String),
    /// It cannot be read, and why.
    Unknown(String),
}

/// What a card captures, if anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Whether frames arrive.
    pub state: PcmState,
    stream: Substream,
    /// Differences between the stream and the profile, as text.
    pub differences: Vec<String>,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            PcmState::Closed => return write!(f, "closed"),
            PcmState::Unknown(why) => return write!(f, "unknown: {}", shown(why)),
            PcmState::Open => write!(f, "open")?,
            PcmState::Running => write!(f, "running")?,
            PcmState::Stalled(state) => write!(f, "stalled ({})", shown(state))?,
        }
        let Substream { format, channels, rate, holder, owner, .. } = &self.stream;
        if let (Some(rate), Some(format), Some(channels)) = (rate, format, channels) {
            write!(f, ", {rate} Hz {} {channels} ch", shown(format))?;
        }
        if let Some(owner) = owner {
            write!(f, ", held by {} ({owner})", shown(holder.as_deref().unwrap_or("?")))?;
        }
        for difference in &self.differences {
            write!(f, "; {difference}")?;
        }
        Ok(())
    }
}

impl Proof {
    /// Compares the substreams of a card with those of the previous read.
    #[must_use]
    pub fn new(before: Option<&Proof>, streams: Result<Vec<Substream>, String>, expected: Option<&AudioFormat>) -> Self {
        let closed = Self { state: PcmState::Closed, stream: Substream::default(), differences: Vec::new() };
        let streams = match streams {
            Ok(streams) => streams,
            Err(why) => return Self { state: PcmState::Unknown(why), ..closed },
        };
        // Of several PCMs, the one that runs counts.
        let Some(stream) = streams.into_iter().filter(|stream| stream.state.is_some()).max_by_key(Substream::runs) else { return closed };
        let previous = before.map(|before| &before.stream).filter(|before| before.owner == stream.owner);
        let state = match (&stream.state, previous.and_then(|previous| previous.pointer)) {
            (Some(_), None) if stream.runs() => PcmState::Open,
            (Some(_), Some(pointer)) if stream.runs() && stream.pointer != Some(pointer) => PcmState::Running,
            (state, _) => PcmState::Stalled(state.clone().unwrap_or_default()),
        };
        let differences = expected.map(|expected| stream.differences(expected)).unwrap_or_default();
        Self { state, stream, differences }
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (state, detail) = match &self.state {
            PcmState::Closed => ("closed", None),
            PcmState::Open => ("open", None),
            PcmState::Running => ("running", None),
            PcmState::Stalled(state) => ("stalled", Some(state)),
            PcmState::Unknown(why) => ("unknown", Some(why)),
        };
        let Substream { format, channels, rate, holder, owner, .. } = &self.stream;
        json!({"state": state, "detail": detail, "rate": rate, "format": format, "channels": channels, "holder": holder, "pid": owner,
            "differences": self.differences})
    }
}

impl Substream {
    /// Parses `status` and `hw_params`.
    #[must_use]
    pub fn parse(status: &str, params: &str) -> Self {
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
            Some(line.trim().to_owned())
        };
        let number = |text: &str, name: &str| field(text, name)?.split_whitespace().next()?.parse::<u64>().ok();
        Self {
            state: field(status, "state"),
            owner: number(status, "owner_pid").and_then(|pid| pid.try_into().ok()),
            holder: None,
            pointer: number(status, "hw_ptr"),
            format: field(params, "format"),
            channels: number(params, "channels"),
            rate: number(params, "rate"),
        }
    }

    fn runs(&self) -> bool {
        self.state.as_deref() == Some("RUNNING")
    }

    fn differences(&self, expected: &AudioFormat) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, is: Option<String>, required: String| {
            if let Some(is) = is.filter(|is| *is != required) {
                differences.push(format!("{what} {} instead of {required}", shown(&is)));
            }
        };
        compare("rate", self.rate.map(|rate| rate.to_string()), expected.rate.to_string());
        compare("format", self.format.as_ref().map(|format| format.replace('_', "")), expected.format.clone());
        compare("channels", self.channels.map(|channels| channels.to_string()), expected.channels.to_string());
        differences
    }
}

/// Reads all capture substreams of a card below `root`. Their folders are searched once and kept in `known`.
///
/// # Errors
/// What cannot be read, and why.
fn read(root: &Path, card: u32, known: &mut Folders) -> Result<Vec<Substream>, String> {
    let folders = match known.remove(&card) {
        Some(folders) => folders,
        None => folders(&root.join(format!("proc/asound/card{card}"))).map_err(|error| format!("card {card}: {error}"))?,
    };
    let substreams = substreams(&folders)?;
    // Kept only after a success: another card may have got the same number.
    known.insert(card, folders);
    Ok(substreams)
}

fn substreams(folders: &[PathBuf]) -> Result<Vec<Substream>, String> {
    let mut substreams = Vec::new();
    for folder in folders {
        let text = |name: &str| read_text(&folder.join(name)).map_err(|error| format!("{}: {error}", folder.join(name).display()));
        let status = text("status")?;
        // A closed substream has no further fields.
        if !status.starts_with("state") {
            substreams.push(Substream::default());
            continue;
        }
        let mut stream = Substream::parse(&status, &text("hw_params")?);
        stream.holder = stream.owner.and_then(|pid| read_text(&PathBuf::from(format!("/proc/{pid}/comm"))).ok());
        stream.holder.iter_mut().for_each(|name| name.truncate(name.trim_end().len()));
        substreams.push(stream);
    }
    Ok(substreams)
}

/// The folders of all capture substreams of a card, such as `pcm0c/sub0`.
fn folders(card: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for pcm in fs::read_dir(card)? {
        let pcm = pcm?;
        let name = pcm.file_name().to_string_lossy().into_owned();
        if name.starts_with("pcm") && name.ends_with('c') {
            for sub in fs::read_dir(pcm.path())? {
                let sub = sub?;
                if sub.file_name().to_string_lossy().starts_with("sub") {
                    found.push(sub.path());
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    files::open(path)?.take(LIMIT).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A running Recorder: its device, its card and the format in its profile.
pub type Recorder = (String, u32, Option<AudioFormat>);

/// The folders of substreams, by card.
type Folders = BTreeMap<u32, Vec<PathBuf>>;

/// The device of a Recorder, the format in its profile, and what was read.
type Reading = (String, Option<AudioFormat>, Result<Vec<Substream>, String>);

struct Answer {
    readings: Vec<Reading>,
    folders: Folders,
}

/// Requests reads of the PCMs of running Recorders, and keeps the results.
pub struct PcmMonitor {
    root: PathBuf,
    prober: Prober,
    outbox: Sender<Answer>,
    answers: Receiver<Answer>,
    folders: Folders,
    asked: Option<Instant>,
    next: Instant,
    /// For each Recorder: the last proof, when the first one was read, and the text that was last reported.
    proofs: BTreeMap<String, (Proof, Instant, String)>,
}

impl PcmMonitor {
    /// Without results.
    #[must_use]
    pub fn new(root: &Path, prober: &Prober) -> Self {
        let (outbox, answers) = channel();
        Self {
            root: root.to_owned(),
            prober: prober.clone(),
            outbox,
            answers,
            folders: Folders::new(),
            asked: None,
            next: Instant::now(),
            proofs: BTreeMap::new(),
        }
    }

    /// The last proof of a running Recorder.
    #[must_use]
    pub fn proof(&self, device: &str) -> Option<&Proof> {
        self.proofs.get(device).map(|(proof, ..)| proof)
    }

    /// Handles answers, and requests the next read when it is due.
    pub fn refresh(&mut self, now: Instant, recorders: impl FnOnce() -> Vec<Recorder>) {
        while let Ok(Answer { readings, folders }) = self.answers.try_recv() {
            self.asked = None;
            self.folders = folders;
            self.report(readings, now);
        }
        if self.asked.is_some_and(|asked| now.saturating_duration_since(asked) >= SILENT) {
            for (proof, ..) in self.proofs.values_mut() {
                proof.state = PcmState::Unknown("a sound card does not respond".to_owned());
            }
        }
        if self.asked.is_none() && now >= self.next {
            let recorders = recorders();
            let is_settled = recorders
                .iter()
                .all(|(device, ..)| self.proofs.get(device).is_some_and(|(proof, _, reported)| proof.to_string() == *reported));
            self.next = now + if is_settled { EVERY } else { SOON };
            self.proofs.retain(|device, _| recorders.iter().any(|(known, ..)| known == device));
            if !recorders.is_empty() {
                self.asked = Some(now);
                self.ask(recorders);
            }
        }
    }

    fn ask(&mut self, recorders: Vec<Recorder>) {
        let (root, outbox, mut folders) = (self.root.clone(), self.outbox.clone(), std::mem::take(&mut self.folders));
        self.prober.submit(PATIENCE, move || {
            folders.retain(|card, _| recorders.iter().any(|(_, other, _)| other == card));
            let readings =
                recorders.into_iter().map(|(device, card, expected)| (device, expected, read(&root, card, &mut folders))).collect();
            // The receiver is gone when the program ends.
            let _ = outbox.send(Answer { readings, folders });
        });
    }

    fn report(&mut self, readings: Vec<Reading>, now: Instant) {
        for (device, expected, streams) in readings {
            let before = self.proofs.get(&device);
            let proof = Proof::new(before.map(|(proof, ..)| proof), streams, expected.as_ref());
            let (since, reported) = before.map_or((now, String::new()), |(_, since, reported)| (*since, reported.clone()));
            // A Recorder that has just started needs some time, and a card that does not respond is reported by the
            // scanner.
            let early = match proof.state {
                PcmState::Open | PcmState::Unknown(_) => true,
                PcmState::Closed => now.saturating_duration_since(since) < OPENED,
                _ => before.is_none(),
            };
            let text = proof.to_string();
            match proof.state {
                _ if early => debug!("microphone {device}: PCM {proof}"),
                _ if text == reported => {}
                PcmState::Running if proof.differences.is_empty() => info!("microphone {device} captures: {proof}"),
                // Some Recorders open the card later, or never.
                PcmState::Closed => info!("microphone {device}: its Recorder has not opened the sound card"),
                _ => warn!("microphone {device}: its Recorder runs, but the PCM is {proof}"),
            }
            let reported = if early { reported } else { text };
            self.proofs.insert(device, (proof, since, reported));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "state: RUNNING\nowner_pid   : 397\ntrigger_time: 30.69\ndelay       : 24960\navail_max   : 48000\n-----\nhw_ptr      : 1176960\nappl_ptr    : 1152000\n";
    const PARAMS: &str =
        "access: RW_INTERLEAVED\nformat: S16_LE\nsubformat: STD\nchannels: 1\nrate: 384000 (384000/1)\nperiod_size: 48000\n";

    fn expected() -> AudioFormat {
        AudioFormat { rate: 384_000, channels: 1, format: "S16LE".to_owned() }
    }

    fn stream(change: impl FnOnce(&mut Substream)) -> Result<Vec<Substream>, String> {
        let mut stream = Substream::parse(STATUS, PARAMS);
        change(&mut stream);
        Ok(vec![Substream::default(), stream])
    }

    #[test]
    fn a_pointer_that_moves_proves_capture() {
        let first = Proof::new(None, stream(|_| ()), Some(&expected()));
        assert_eq!(first.state, PcmState::Open);
        let second = Proof::new(Some(&first), stream(|stream| stream.pointer = Some(3_000_000)), Some(&expected()));
        assert_eq!(second.to_string(), "running, 384000 Hz S16_LE 1 ch, held by ? (397)");
        let third = Proof::new(Some(&second), stream(|stream| stream.pointer = Some(3_000_000)), Some(&expected()));
        assert_eq!(third.state, PcmState::Stalled("RUNNING".to_owned()));
        // Another process has another stream.
        let other = Proof::new(Some(&second), stream(|stream| stream.owner = Some(7)), None);
        assert_eq!(other.state, PcmState::Open);
        let broken = Proof::new(Some(&second), stream(|stream| stream.state = Some("XRUN".to_owned())), None);
        assert_eq!(broken.state, PcmState::Stalled("XRUN".to_owned()));
        assert_eq!(Proof::new(Some(&second), Ok(vec![Substream::parse("closed\n", "closed\n")]), None).state, PcmState::Closed);
        assert_eq!(Proof::new(None, Err("x".to_owned()), None).state, PcmState::Unknown("x".to_owned()));
    }

    #[test]
    fn what_is_captured_is_compared_with_the_profile() {
        let profile = AudioFormat { rate: 250_000, channels: 2, format: "S24LE".to_owned() };
        let proof = Proof::new(None, stream(|_| ()), Some(&profile));
        assert_eq!(proof.differences, ["rate 384000 instead of 250000", "format S16LE instead of S24LE", "channels 1 instead of 2"]);
    }

    #[test]
    fn garbage_is_not_capture() {
        for garbage in ["", "\u{0}", "state", "state RUNNING", "hw_ptr : 99999999999999999999999\nstate: \u{1b}[2J"] {
            let stream = Substream::parse(garbage, garbage);
            assert!(!stream.runs() && stream.pointer.is_none(), "{garbage:?}: {stream:?}");
        }
    }
}
