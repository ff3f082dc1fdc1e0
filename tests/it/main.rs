//! Integration tests: the real programs against a real Podman, PostgreSQL and Redis in a throw-away station.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, dead_code)]

// the station that a test runs in: services, containers, hardware, the Controller
mod station;
// hardware trees: what the kernel shows of plugged sound cards, recorded or composed
mod tree;

// the harness itself: it comes up, shows what is there, and leaves nothing behind
mod harness;
// what `make test` prints
mod progress;
// services that come late, seeding, databases of the Python Controller
mod arrival;
// a station of the Python project whose Controller is replaced
mod takeover;
// what users write takes effect and stays; nonsense harms only its own row
mod database;
// connections to PostgreSQL, Redis and Podman that are slow, end, or bring other answers
mod connections;
// a PostgreSQL that is away, frozen, refuses, is read-only or locked
mod database_faults;
// descriptors and threads that run out
mod shortage;
// threads that hang for good: the process replaces itself
mod hang;
// a Controller that is killed at any moment
mod kills;
// when each microphone was recorded: sessions in the database
mod ledger;
// what a quiet second costs
mod idle;
// the threads of a running Controller
mod threads;
// nudge, heartbeat and health
mod live;
// microphones that come, go, flap, move and resemble each other
mod plug;
// microphones that were not seen for a month: they cost nothing, and are known again
mod absent;
// a Podman that hangs, goes away or answers late
mod podman_faults;
// a Podman whose API service ends when it is idle and starts for the next client
mod activation;
// Recorders that are replaced, paused, renamed or stopped: no recording is given up for nothing
mod replace;
// Recorders that end, and Recorders that lack what they need to begin
mod ends;
// sound cards that cannot be read, hang, come half or change while they are read; clocks that jump
mod hardware_faults;
// what is typed about microphones, and what is told about them: devices, enroll and the like, check, the dump
mod devices;
// frames that arrive, stand still or cannot be read, and what is done about it
mod capture;
// what is typed at a terminal: scan, profiles check, health, completions, man
mod commands;
// what docs/commands.md shows
mod samples;
// the images of the Containerfile
mod image;
// the status page and the metrics
mod pages;
// what Prometheus makes of the metrics; alerts and dashboard
mod metrics;
// readiness and watchdog for systemd
mod notify;
// recorded hardware trees are read as what was plugged in
mod scan;
// start, stop, crash and adoption
mod start;
// containers for analysis and upload: switched by a row, and never at the cost of a Recorder
mod workers;
// disks that are slow, and things in the place of our files and folders
mod files;
// two Controllers with one owner, and others that recreate our containers
mod standby;
// heartbeats and log lines reach a Redis that comes late, hangs or is away
mod bus;
// a Redis that refuses, closes idle connections, is full or is no Redis
mod redis_faults;
// lines of containers reach Redis once and in order
mod logs;
// the status page in a real browser
mod page;
// health checks get through whatever other clients do
mod healthz;
// the Recorder: its settings, heartbeat, log and end
mod recorder;
// frames of a station that records: in files, or in gaps that the ledger names
mod account;
// the Recorder that records: cargo test --features capture
#[cfg(feature = "capture")]
mod recording;
