//! A typed client for Podman's REST API on its Unix socket. It reports what Podman answers, and has no opinion.

pub mod client;
pub mod frames;
pub mod pidfd;
mod transport;
