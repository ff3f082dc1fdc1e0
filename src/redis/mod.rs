//! Redis: publishes heartbeats and log lines, and receives nudges.

pub mod audience;
pub mod connection;
pub mod nudge;
pub mod publisher;
pub mod reply;
