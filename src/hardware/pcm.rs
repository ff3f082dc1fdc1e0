//! Proof of capture: the state of the PCM that a Recorder should have opened.
//!
//! A running container does not prove that it records. `/proc/asound/cardN/pcm*c/sub*` shows whether the stream is
//! open, whether its pointer moves, its rate and format, and which process holds it. Whether a microphone is recorded
//! depends on it ([`crate::decide::capture`]).
//!
//! Reading these files blocks while the card hangs, so the `probe` thread reads them. A card in which a read hangs is
//! skipped until that read ends, and its state is unknown. Invariant: a card that hangs hides the state of no other.

use crate::sorted_map::SortedMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use serde_json::{Value, json};

use crate::clocks::Clocks;
use crate::collect::sort;
use crate::decide::capture::PcmState;
use crate::decide::presence::Presences;
use crate::decide::profile::{AudioFormat, ProfileConfig};
use crate::decide::reason::online;
use crate::decide::registry::Registry;
use crate::decide::runway::sample_bytes;
use crate::decide::sessions::{Counter, Stream};
use crate::fs as files;
use crate::hardware::holder::{Belonging, Hold, Holder};
use crate::probe::{self, Marker, Prober, Question, State};
use crate::text::shown;

/// Time between two reads while something changes or stands still, and while nothing does.
const SOON: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_secs(5);
/// A read takes a millisecond. After this time, other reads do not wait for it any more.
const PATIENCE: Duration = Duration::from_millis(250);
/// After this time without an answer, the state is unknown.
const SILENT: Duration = Duration::from_secs(15);
/// Number of reads that may hang at the same time.
const STUCK: usize = 8;
/// The files have about 300 bytes.
const LIMIT: usize = 4 << 10;
/// Frames arrive several times within this time.
const MOMENT: Duration = Duration::from_millis(500);
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
    /// Whether that process is certainly not the Recorder.
    is_foreign: bool,
    /// Number of frames that the hardware has delivered.
    pointer: Option<u64>,
    format: Option<String>,
    channels: Option<u64>,
    rate: Option<u64>,
    /// When the stream was started or stopped, in microseconds of a clock of the kernel.
    trigger: Option<u64>,
    /// Size of the buffer, in frames.
    buffer: Option<u64>,
    /// When this was read.
    read: Option<Instant>,
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
            PcmState::Taken(holder) => return write!(f, "held by another program: {}", shown(holder)),
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
        // Of several substreams, the one that runs counts, and before it that of the Recorder.
        let weight = |stream: &Substream| (!stream.is_foreign, stream.runs());
        let Some(stream) = streams.into_iter().filter(|stream| stream.state.is_some()).max_by_key(weight) else { return closed };
        if stream.is_foreign {
            let holder = format!("{} ({})", stream.holder.as_deref().unwrap_or("?"), stream.owner.unwrap_or_default());
            return Self { state: PcmState::Taken(holder), stream, ..closed };
        }
        let previous = before.map(|before| &before.stream).filter(|before| before.owner == stream.owner);
        let state = match (&stream.state, previous.and_then(|previous| previous.pointer)) {
            (Some(_), None) if stream.runs() => PcmState::Open,
            (Some(_), Some(pointer)) if stream.runs() && stream.pointer != Some(pointer) => PcmState::Running,
            (state, _) => PcmState::Stalled(state.clone().unwrap_or_default()),
        };
        let differences = expected.map(|expected| stream.differences(expected)).unwrap_or_default();
        Self { state, stream, differences }
    }

    /// What this shows about the frames.
    #[must_use]
    pub fn stream(&self, clocks: &Clocks) -> Stream {
        let Substream { owner, pointer, rate, trigger, buffer, read, .. } = &self.stream;
        let counter = |trigger: Option<u64>| {
            Some(Counter {
                at: clocks.since_boot((*read)?),
                pointer: (*pointer)?,
                rate: (*rate)?,
                // 0 is a process of another PID namespace.
                owner: owner.filter(|owner| *owner > 0),
                trigger,
                boundary: buffer.and_then(Counter::boundary),
            })
        };
        match &self.state {
            PcmState::Closed | PcmState::Taken(_) => Stream::Closed,
            PcmState::Unknown(_) => Stream::Unknown,
            PcmState::Open | PcmState::Running => counter(*trigger).map_or(Stream::Unknown, Stream::Runs),
            PcmState::Stalled(_) => counter(None).map_or(Stream::Unknown, Stream::Stands),
        }
    }

    /// Number of frames that the hardware has delivered to the Recorder, if it has opened the card.
    #[must_use]
    pub fn pointer(&self) -> Option<u64> {
        self.stream.pointer.filter(|_| !self.stream.is_foreign)
    }

    /// Bytes a second, if frames arrive.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        let Substream { format: Some(format), channels: Some(channels), rate: Some(rate), .. } = &self.stream else { return None };
        let bytes = sample_bytes(format).filter(|_| self.state == PcmState::Running)?;
        rate.checked_mul(*channels)?.checked_mul(bytes)
    }

    /// The process that has opened the card.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        self.stream.owner
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (state, detail) = match &self.state {
            PcmState::Closed => ("closed", None),
            PcmState::Open => ("open", None),
            PcmState::Running => ("running", None),
            PcmState::Stalled(state) => ("stalled", Some(state)),
            PcmState::Taken(holder) => ("taken", Some(holder)),
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
            is_foreign: false,
            pointer: number(status, "hw_ptr"),
            format: field(params, "format"),
            channels: number(params, "channels"),
            rate: number(params, "rate"),
            trigger: field(status, "trigger_time").and_then(|time| micros(&time)),
            buffer: number(params, "buffer_size"),
            read: None,
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

/// `30.690000000`, as microseconds.
fn micros(seconds: &str) -> Option<u64> {
    let (whole, decimals) = seconds.split_once('.')?;
    let micros: u64 = format!("{decimals:0<6}").get(..6)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros)
}

/// Reads all substreams of the PCM below `root`. Their folders are searched once and kept in `known`, with what is known
/// about their holders.
///
/// # Errors
/// What cannot be read, and why.
fn read(root: &Path, recorder: &Recorder, known: &mut Folders) -> Result<Vec<Substream>, String> {
    let card = &recorder.card;
    let Card { index, pcm, .. } = card;
    let mut folders = match known.remove(card) {
        Some(folders) => folders,
        None => folders(&root.join(format!("proc/asound/card{index}/pcm{pcm}c"))).map_err(|error| format!("hw:{index},{pcm}: {error}"))?,
    };
    let substreams = substreams(&mut folders, recorder)?;
    // Kept only after a success: another card may have got the same number.
    known.insert(card.clone(), folders);
    Ok(substreams)
}

fn substreams(folders: &mut [Folder], recorder: &Recorder) -> Result<Vec<Substream>, String> {
    let mut substreams = Vec::new();
    for Folder { path, holder } in folders {
        let text = |name: &str| read_text(&path.join(name)).map_err(|error| format!("{}: {error}", path.join(name).display()));
        let status = text("status")?;
        // A closed substream has no further fields.
        if !status.starts_with("state") {
            substreams.push(Substream::default());
            continue;
        }
        let mut stream = Substream::parse(&status, &text("hw_params")?);
        stream.read = Some(Instant::now());
        // 0 is a process of another PID namespace.
        *holder = stream.owner.filter(|owner| *owner > 0).map(|owner| {
            let hold = Hold { owner, trigger: stream.trigger, container: &recorder.container, pid: recorder.pid };
            holder.take().filter(|known| known.answers(&hold)).unwrap_or_else(|| Holder::look(Path::new("/proc"), &hold))
        });
        stream.holder = holder.as_ref().and_then(|holder| holder.name.clone());
        stream.is_foreign = holder.as_ref().is_some_and(|holder| holder.belonging == Belonging::Foreign);
        substreams.push(stream);
    }
    Ok(substreams)
}

/// The folders of all substreams of a PCM, such as `pcm0c/sub0`.
fn folders(pcm: &Path) -> io::Result<Vec<Folder>> {
    let mut found = Vec::new();
    for sub in fs::read_dir(pcm)? {
        let sub = sub?;
        if sub.file_name().to_string_lossy().starts_with("sub") {
            found.push(sub.path());
        }
    }
    sort(&mut found);
    Ok(found.into_iter().map(|path| Folder { path, holder: None }).collect())
}

fn read_text(path: &Path) -> io::Result<String> {
    files::read_kernel(path, LIMIT)
}

/// A running Recorder.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// Stable id of its microphone.
    pub device: String,
    /// Id of its container.
    pub container: String,
    /// The first process of the container; 0 = unknown.
    pub pid: u32,
    /// The card of the microphone.
    pub card: Card,
    /// The format in its profile.
    pub expected: Option<AudioFormat>,
}

impl Recorder {
    /// The Recorder of a connected microphone, with the id and the first process of its container. What it should record is
    /// unknown while its row or profile is.
    #[must_use]
    pub fn new(registry: &Registry, presences: &Presences, device: &str, (container, pid): (&str, u32)) -> Option<Self> {
        let profile = || registry.profiles.get(registry.devices.get(device)?.as_ref().ok()?.profile.as_ref()?)?.as_ref().ok();
        let microphone = online(presences, device)?;
        let address = microphone.usb.as_ref().map(|usb| usb.address.clone());
        let card = Card { index: microphone.card, pcm: microphone.pcm, address };
        let expected = profile().map(ProfileConfig::capture);
        Some(Self { device: device.to_owned(), container: container.to_owned(), pid, card, expected })
    }
}

/// Reads the PCMs of Recorders, and again after a moment if one is open. For a command: a card that hangs blocks it.
#[must_use]
pub fn prove(root: &Path, recorders: &[Recorder]) -> SortedMap<String, Proof> {
    let mut folders = Folders::new();
    let mut read_all = |before: &SortedMap<String, Proof>| -> SortedMap<String, Proof> {
        let prove_one = |recorder: &Recorder| {
            let streams = read(root, recorder, &mut folders);
            (recorder.device.clone(), Proof::new(before.get(&recorder.device), streams, recorder.expected.as_ref()))
        };
        recorders.iter().map(prove_one).collect()
    };
    let first = read_all(&SortedMap::new());
    if first.values().all(|proof| proof.state != PcmState::Open) {
        return first;
    }
    thread::sleep(MOMENT);
    read_all(&first)
}

/// A card, from its connection to its disconnection, and the PCM that a Recorder opens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Card {
    /// ALSA card index.
    pub index: u32,
    /// Number of the PCM.
    pub pcm: u32,
    /// USB bus and device number, which change at each connection.
    pub address: Option<String>,
}

/// The folder of a substream, and the process that held it at the last read.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    holder: Option<Holder>,
}

/// The folders of substreams, by card.
type Folders = SortedMap<Card, Vec<Folder>>;

/// Reads the substreams of a PCM.
type Read = fn(&Path, &Recorder, &mut Folders) -> Result<Vec<Substream>, String>;

/// What was read about the PCM of a Recorder.
type Reading = (Recorder, Result<Vec<Substream>, String>);

struct Answer {
    number: u64,
    readings: Vec<Reading>,
    folders: Folders,
}

/// Requests reads of the PCMs of running Recorders, and keeps the results.
pub struct PcmMonitor {
    root: PathBuf,
    /// [`read`]; tests replace it, as no file that they create can block.
    read: Read,
    question: Question<Card>,
    outbox: Sender<Answer>,
    answers: Receiver<Answer>,
    folders: Folders,
    next: Instant,
    /// By microphone.
    proofs: SortedMap<String, Proven>,
}

/// What was read for one Recorder.
#[derive(Debug)]
struct Proven {
    /// Id of its container.
    container: String,
    /// The last proof.
    proof: Proof,
    /// When that was read.
    read: Instant,
    /// When the first proof was read.
    since: Instant,
    /// The text that was last reported.
    reported: String,
}

impl PcmMonitor {
    /// Without results.
    #[must_use]
    pub fn new(root: &Path, prober: &Prober) -> Self {
        let (outbox, answers) = channel();
        Self {
            root: root.to_owned(),
            read,
            question: Question::new(prober, PATIENCE, SILENT, STUCK),
            outbox,
            answers,
            folders: Folders::new(),
            next: Instant::now(),
            proofs: SortedMap::new(),
        }
    }

    /// The last proof of a running Recorder.
    #[must_use]
    pub fn proof(&self, device: &str) -> Option<&Proof> {
        self.proofs.get(device).map(|proven| &proven.proof)
    }

    /// The last proof of the Recorder in this container, and when it was read.
    #[must_use]
    pub fn proof_of(&self, device: &str, container: &str) -> Option<(&Proof, Instant)> {
        self.proofs.get(device).filter(|proven| proven.container == container).map(|proven| (&proven.proof, proven.read))
    }

    /// Handles answers, and requests the next read when it is due.
    pub fn refresh(&mut self, now: Instant, recorders: impl FnOnce() -> Vec<Recorder>) {
        while let Ok(Answer { number, readings, folders }) = self.answers.try_recv() {
            if self.question.answered(number) == probe::Answer::Current {
                self.folders = folders;
                self.report(readings, now);
            }
        }
        match self.question.check(now) {
            State::Idle if now >= self.next => self.ask(recorders(), now),
            State::Idle | State::Pending => {}
            State::Late(place) => {
                self.set_unknown(place.as_ref());
                self.ask(recorders(), now);
            }
            State::Exhausted(place) => self.set_unknown(place.as_ref()),
        }
    }

    fn set_unknown(&mut self, place: Option<&Card>) {
        let why = place.map_or_else(|| "no response".to_owned(), |card| format!("card {} does not respond", card.index));
        for proven in self.proofs.values_mut() {
            proven.proof.state = PcmState::Unknown(why.clone());
        }
    }

    fn ask(&mut self, recorders: Vec<Recorder>, now: Instant) {
        // A capture that stands still is helped soon after its time limit.
        let is_settled = recorders.iter().all(|recorder| {
            let is_reported = |proven: &&Proven| proven.proof.to_string() == proven.reported;
            let proven = self.proofs.get(&recorder.device).filter(is_reported);
            proven.is_some_and(|proven| !matches!(proven.proof.state, PcmState::Stalled(_)))
        });
        self.next = now + if is_settled { EVERY } else { SOON };
        self.proofs.retain(|device, _| recorders.iter().any(|recorder| recorder.device == *device));
        if recorders.is_empty() {
            return;
        }
        let stuck: Vec<Card> = self.question.late_places().cloned().collect();
        let (root, read, outbox, mut folders) = (self.root.clone(), self.read, self.outbox.clone(), std::mem::take(&mut self.folders));
        let read_all = move |marker: &Marker<Card>| {
            folders.retain(|card, _| recorders.iter().any(|recorder| recorder.card == *card));
            let read_one = |recorder: Recorder| {
                if stuck.contains(&recorder.card) {
                    let why = format!("card {} does not respond", recorder.card.index);
                    return (recorder, Err(why));
                }
                marker.reach(recorder.card.clone());
                let streams = read(&root, &recorder, &mut folders);
                (recorder, streams)
            };
            let readings: Vec<Reading> = recorders.into_iter().map(read_one).collect();
            (readings, folders)
        };
        self.question.ask(now, read_all, move |number, (readings, folders)| {
            // The receiver is gone when the program ends.
            let _ = outbox.send(Answer { number, readings, folders });
        });
    }

    fn report(&mut self, readings: Vec<Reading>, now: Instant) {
        for (Recorder { device, container, expected, .. }, streams) in readings {
            let before = self.proofs.get(&device).filter(|before| before.container == container);
            let proof = Proof::new(before.map(|before| &before.proof), streams, expected.as_ref());
            let (since, reported) = before.map_or((now, String::new()), |before| (before.since, before.reported.clone()));
            // A Recorder that has just started needs some time, and a card that does not respond is reported by the
            // scanner.
            let early = match proof.state {
                PcmState::Open | PcmState::Unknown(_) => true,
                PcmState::Closed | PcmState::Taken(_) => now.saturating_duration_since(since) < OPENED,
                _ => before.is_none(),
            };
            let text = proof.to_string();
            match proof.state {
                _ if early => debug!("microphone {device}: PCM {proof}"),
                _ if text == reported => {}
                PcmState::Running if proof.differences.is_empty() => info!("microphone {device} captures: {proof}"),
                // Some Recorders open the card later, or never.
                PcmState::Closed => info!("microphone {device}: its Recorder has not opened the sound card"),
                PcmState::Taken(_) => warn!("microphone {device}: its Recorder runs, but the card is {proof}"),
                _ => warn!("microphone {device}: its Recorder runs, but the PCM is {proof}"),
            }
            let reported = if early { reported } else { text };
            self.proofs.insert(device, Proven { container, proof, read: now, since, reported });
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

    fn recorder(pcm: u32) -> Recorder {
        let card = Card { index: 0, pcm, address: None };
        Recorder { device: "a".to_owned(), container: "c".to_owned(), pid: 0, card, expected: None }
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
        assert_eq!((first.rate(), second.rate()), (None, Some(768_000)));
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
    fn what_another_program_captures_is_no_capture() {
        let foreign = |stream: &mut Substream| (stream.is_foreign, stream.holder) = (true, Some("arecord".to_owned()));
        let first = Proof::new(None, stream(foreign), Some(&expected()));
        assert_eq!(first.to_string(), "held by another program: arecord (397)");
        let next = |stream: &mut Substream| stream.pointer = Some(3_000_000);
        let second = Proof::new(Some(&first), stream(|stream| [foreign, next].iter().for_each(|change| change(stream))), None);
        assert_eq!(second.state, PcmState::Taken("arecord (397)".to_owned()));
        assert_eq!((second.pointer(), second.rate(), second.stream(&Clocks::read())), (None, None, Stream::Closed));
        assert_eq!(second.to_json()["state"], "taken");
        // The Recorder holds another substream of the card.
        let streams = [stream(foreign).unwrap(), stream(|stream| stream.owner = Some(7)).unwrap()].concat();
        assert_eq!(Proof::new(Some(&second), Ok(streams), None).state, PcmState::Open);
    }

    #[test]
    fn what_is_captured_is_compared_with_the_profile() {
        let profile = AudioFormat { rate: 250_000, channels: 2, format: "S24LE".to_owned() };
        let proof = Proof::new(None, stream(|_| ()), Some(&profile));
        assert_eq!(proof.differences, ["rate 384000 instead of 250000", "format S16LE instead of S24LE", "channels 1 instead of 2"]);
    }

    #[test]
    fn a_card_that_hangs_hides_the_pcm_state_of_no_other() {
        let root = std::env::temp_dir().join(format!("silvasonic-pcm-{}", std::process::id()));
        fs::create_dir_all(root.join("hang")).unwrap();
        let recorder = |device: &str, index| Recorder {
            device: device.to_owned(),
            container: device.to_owned(),
            pid: 0,
            card: Card { index, pcm: 0, address: None },
            expected: None,
        };
        let recorders = || vec![recorder("a", 0), recorder("b", 1)];
        let mut monitor = PcmMonitor::new(&root, &Prober::start().unwrap());
        // Card 0 hangs while that folder exists.
        monitor.read = |root, recorder, _| {
            while recorder.card.index == 0 && root.join("hang").exists() {
                thread::sleep(Duration::from_millis(5));
            }
            stream(|_| ())
        };
        let (mut now, end) = (Instant::now(), Instant::now() + Duration::from_secs(20));
        let mut wait = |a: &PcmState, b: &PcmState| {
            let is =
                |monitor: &PcmMonitor, device: &str, state: &PcmState| monitor.proof(device).is_some_and(|proof| proof.state == *state);
            while !is(&monitor, "a", a) || !is(&monitor, "b", b) {
                assert!(Instant::now() < end, "{:?}", monitor.proofs);
                monitor.refresh(now, recorders);
                now += Duration::from_secs(1);
                thread::sleep(Duration::from_millis(5));
            }
        };
        let stalled = PcmState::Stalled("RUNNING".to_owned());
        wait(&PcmState::Unknown("card 0 does not respond".to_owned()), &stalled);
        fs::remove_dir_all(&root).unwrap();
        wait(&stalled, &stalled);
    }

    #[test]
    fn a_capture_that_stands_still_is_read_again_sooner() {
        let mut monitor = PcmMonitor::new(Path::new("/nonexistent"), &Prober::start().unwrap());
        let recorder = recorder(0);
        let now = Instant::now();
        let mut next_after = |reads: [Result<Vec<Substream>, String>; 3]| {
            // What is not reported yet is read sooner, too.
            reads.into_iter().for_each(|read| monitor.report(vec![(recorder.clone(), read)], now));
            monitor.ask(vec![recorder.clone()], now);
            monitor.next - now
        };
        let at = |pointer| stream(|stream| stream.pointer = Some(pointer));
        assert_eq!(next_after([at(1), at(2), at(3)]), EVERY);
        assert_eq!(next_after([at(4), at(4), at(4)]), SOON);
        assert_eq!(next_after([at(5), at(6), at(7)]), EVERY);
    }

    #[test]
    fn only_the_pcm_of_the_recorder_counts() {
        let root = std::env::temp_dir().join(format!("silvasonic-pcms-{}", std::process::id()));
        for (pcm, status) in [("pcm0c", STATUS), ("pcm1c", "closed\n")] {
            let folder = root.join("proc/asound/card0").join(pcm).join("sub0");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("status"), status).unwrap();
            fs::write(folder.join("hw_params"), PARAMS).unwrap();
        }
        let mut known = Folders::new();
        let mut state = |pcm| {
            let streams = read(&root, &recorder(pcm), &mut known)?;
            Ok::<_, String>(Proof::new(None, Ok(streams), None).state)
        };
        assert_eq!(state(0), Ok(PcmState::Open));
        assert_eq!(state(1), Ok(PcmState::Closed));
        assert!(state(2).is_err());
        assert_eq!(known.len(), 2);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_proof_shows_the_counter_of_frames() {
        let clocks = Clocks::read();
        let mut proof = Proof::new(None, stream(|stream| stream.read = Some(Instant::now())), None);
        let Stream::Runs(counter) = proof.stream(&clocks) else { panic!("{proof:?}") };
        assert_eq!((counter.pointer, counter.rate, counter.owner, counter.trigger), (1_176_960, 384_000, Some(397), Some(30_690_000)));
        proof.state = PcmState::Stalled("XRUN".to_owned());
        assert_eq!(proof.stream(&clocks), Stream::Stands(Counter { trigger: None, ..counter }));
        proof.state = PcmState::Unknown(String::new());
        assert_eq!(proof.stream(&clocks), Stream::Unknown);
        let times = [
            ("30.69", Some(30_690_000)),
            ("0.000000001", Some(0)),
            ("1.1234567", Some(1_123_456)),
            ("5", None),
            ("x.y", None),
            ("1.é", None),
        ];
        for (text, expected) in times {
            assert_eq!(micros(text), expected, "{text}");
        }
    }

    #[test]
    fn garbage_is_not_capture() {
        for garbage in ["", "\u{0}", "state", "state RUNNING", "hw_ptr : 99999999999999999999999\nstate: \u{1b}[2J"] {
            let stream = Substream::parse(garbage, garbage);
            assert!(!stream.runs() && stream.pointer.is_none(), "{garbage:?}: {stream:?}");
        }
    }
}
