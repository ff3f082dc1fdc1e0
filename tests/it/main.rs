//! Integration tests: the real programs against a real Podman, PostgreSQL and Redis in a throw-away station.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, dead_code)]

// the station that a test runs in: services, containers, hardware, the Controller
mod station;
// hardware trees: what the kernel shows of plugged sound cards, recorded or composed
mod tree;

// the harness itself: it comes up, shows what is there, and leaves nothing behind
mod harness;
