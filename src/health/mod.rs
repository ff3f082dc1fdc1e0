//! What the program reports about itself and its host: `/healthy`, pages, the heartbeat, the notifications to systemd.

pub mod board;
pub mod heartbeat;
pub mod host;
pub mod http;
pub mod openmetrics;
pub mod pages;
pub mod sd_notify;
pub mod workspace;
