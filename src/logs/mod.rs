//! Forwards the log lines of containers to Redis: each line once and in order.

mod control;
pub mod cursor;
mod follower;
pub mod forwarder;
pub mod line;
pub mod recent;
mod sink;
