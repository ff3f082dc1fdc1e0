//! A typed client for Podman's REST API on its Unix socket. It returns what Podman answers, and decides nothing.

pub mod client;
pub mod error;
pub mod frames;
mod http;
pub mod mount;
pub mod pidfd;
pub mod stream;
mod transport;
