//! Redis: publishes heartbeats and log lines, and receives nudges.

pub mod nudge;
pub mod publisher;
