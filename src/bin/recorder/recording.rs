//! Recording: from the sound card to WAV files.
//!
//! ```text
//! card ──▶ capture ──▶ ring ──▶ writer ──▶ segment: .buffer/raw/….wav ──▶ data/raw/….wav
//!             └─────── progress ──┘            wav, metadata, name         repair: at the start
//! ```
//!
//! Two threads: `capture` reads the card and never waits for a disk; `writer` may wait for the disk as long as the ring
//! has room, which is [`BUFFER`] of sound. The main thread asks `progress` for the heartbeat.

mod capture;
mod card;
mod format;
mod level;
mod metadata;
mod name;
mod place;
mod progress;
mod repair;
mod ring;
#[cfg(test)]
mod scratch;
mod segment;
mod wav;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use serde_json::{Map, Value, json};
use silvasonic_controller::health::board::{Activity, Board};

use crate::settings::Settings;
use crate::{FAILURE, Wake};

use self::capture::End;
use self::card::Card;
use self::format::Format;
use self::metadata::Origin;
use self::place::Place;
use self::progress::Progress;
use self::writer::Writer;

/// For how long the disk may hang without a loss …
const BUFFER: Duration = Duration::from_secs(8);
/// … with so much memory at most, and so many blocks at least.
const MEMORY: usize = 64 << 20;
const BLOCKS: usize = 4;
const STACK: usize = 256 << 10;
/// Exit code when the card is not there any more.
const GONE: u8 = 3;

/// A recording that runs.
pub(crate) struct Recording {
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    writer: Receiver<()>,
    facts: Map<String, Value>,
}

impl Recording {
    /// Opens the card and starts both threads. When the capture ends by itself, `wake` is told the exit code.
    pub(crate) fn start(settings: &Settings, board: &Board, wake: &SyncSender<Wake>) -> io::Result<Recording> {
        board.require("recording");
        let format = Format::requested(&settings.config.capture());
        let config = settings.config.to_json();
        let seconds = config["stream"]["segment_duration_s"].as_u64().unwrap_or(10);
        if config["stream"]["raw_enabled"] == false {
            warn!("the profile has stream.raw_enabled false, but this Recorder writes nothing but raw files: they are written");
        }
        let mut card = Card::open(&settings.device, format).map_err(io::Error::other)?;
        let bytes = card.block_bytes();
        let wanted = BUFFER.as_secs() * format.bytes_per_second();
        let count = usize::try_from(wanted).unwrap_or(MEMORY).min(MEMORY).div_ceil(bytes).max(BLOCKS) + 1;
        let (mut filler, drain) = ring::ring(bytes, count);

        let (progress, stop) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let origin = Origin { device: settings.instance.clone(), profile: settings.profile.clone() };
        let place = Place::below(&settings.workspace);
        info!(
            "recording {} with {} Hz, {} channels, {:?} in files of {seconds} s below {}; {} s of kernel buffer, {} MiB of ring",
            settings.device,
            format.rate,
            format.channels,
            format.sample,
            place.data.display(),
            format.duration(card.buffer()).as_secs_f32(),
            (bytes * count) >> 20,
        );
        let writer = Writer::new(place, origin, format, Duration::from_secs(seconds), settings.reserve, (&progress, &stop));
        let (done, ended) = sync_channel(1);
        spawn("writer", move || {
            writer.run(&drain);
            let _ = done.send(());
        })?;
        let (device, wake) = (settings.device.clone(), wake.clone());
        spawn("capture", {
            let (progress, stop) = (Arc::clone(&progress), Arc::clone(&stop));
            move || {
                let Some(end) = capture::run(&mut card, &mut filler, format, &progress, &stop) else { return };
                error!("{device} cannot be read any more: {end}");
                let _ = wake.send(Wake::CaptureEnded(if end == End::Gone { GONE } else { FAILURE }));
            }
        })?;
        let audio = &config["audio"];
        let facts = [
            ("device", json!(settings.device)),
            ("sample_rate", audio["sample_rate"].clone()),
            ("channels", audio["channels"].clone()),
            ("format", audio["format"].clone()),
            ("segment_duration_s", json!(seconds)),
        ];
        let facts = facts.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        Ok(Recording { progress, stop, writer: ended, facts })
    }

    /// Adds `recording` to the heartbeat, and sets the component of this name.
    pub(crate) fn report(&self, board: &Board, meta: &mut Map<String, Value>) {
        let (state, fields) = self.progress.report(Instant::now());
        board.set("recording", state.as_ref().map(String::as_str).map_err(String::as_str));
        board.set_activity(if fields["active"] == true { Activity::Recording } else { Activity::Idle });
        let mut facts = self.facts.clone();
        facts.extend(fields);
        meta.insert("recording".to_owned(), Value::Object(facts));
    }

    /// Ends both threads and the last file. What is not done by then is repaired at the next start.
    pub(crate) fn finish(&self, deadline: Instant) {
        self.stop.store(true, Ordering::Relaxed);
        if self.writer.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_err() {
            warn!("the disk takes too long: the last file is finished at the next start");
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work).map(drop)
}
