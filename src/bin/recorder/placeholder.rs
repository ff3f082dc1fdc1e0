//! What takes the place of `recording` in a build without the feature `capture`: nothing is recorded.

use std::io;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use serde_json::{Map, Value};
use silvasonic_controller::health::board::Board;

use crate::Wake;
use crate::settings::Settings;

/// Nothing.
pub(crate) struct Recording;

impl Recording {
    pub(crate) fn start(_: &Settings, _: &Board, _: &SyncSender<Wake>) -> io::Result<Recording> {
        Ok(Recording)
    }

    /// Adds nothing to the heartbeat.
    pub(crate) fn report(&self, _: &Board, _: &mut Map<String, Value>) {}

    pub(crate) fn finish(&self, _: Instant) {}
}
