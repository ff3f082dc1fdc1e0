//! Forwards the log lines of containers to Redis: each line once and in order.

pub mod cursor;
pub mod follow;
pub mod line;
