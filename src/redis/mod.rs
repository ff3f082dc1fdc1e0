//! Redis: heartbeats and log lines out, nudges in.

pub mod nudge;
pub mod publisher;
