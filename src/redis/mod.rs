//! Redis: publishes heartbeats and log lines, reads the levels of Recorders, and receives nudges.

pub mod audience;
pub mod connection;
pub mod levels;
pub mod nudge;
pub mod publisher;
pub mod reply;
