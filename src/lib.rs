//! The Controller of a Silvasonic station: detects USB microphones and keeps a Recorder container running for each.
//!
//! # Map
//!
//! ```text
//!             hardware    /proc/asound, sysfs ─▶ microphones, PCM states        ─┐
//!  main       database    PostgreSQL ─▶ rows; rows to write ◀─                   │   observations
//!   └─▶ controller        the loop: wait, observe, record, act, report  ◀── event┤
//!             containers  Podman ─▶ list; actions ─▶ execute ─▶ podman          ─┤
//!             redis       nudges in; heartbeats and log lines out               ─┘
//!             logs        container logs ─▶ redis
//!             health      /healthy, heartbeat, systemd, host metrics
//!             decide      observations ─▶ desired state ─▶ plan; no effects
//!             cli         the other commands
//! ```
//!
//! | folder         | outside party                      | holds                                                        |
//! | -------------- | ---------------------------------- | ------------------------------------------------------------ |
//! | [`decide`]     | none                               | every decision, and the types that the other folders share    |
//! | [`hardware`]   | `/proc/asound`, sysfs              | scans, microphones online or offline, proof of capture         |
//! | [`database`]   | PostgreSQL                         | connection, statements, seeding, the last answer               |
//! | [`podman`]     | Podman's API socket                | typed client, transport, stream frames, pidfd, kind of mount   |
//! | [`containers`] | the containers of Tier 2           | list, ends, liveness, actions; the only code that changes them |
//! | [`logs`]       | container logs                     | follow while somebody listens, cursor, lines                   |
//! | [`redis`]      | Redis                              | publisher, audience, levels of Recorders, nudges                |
//! | [`health`]     | HTTP clients, systemd, `/proc`     | board, heartbeat, HTTP, status page, notification, host metrics |
//! | [`cli`]        | a terminal, health checks          | one file a command; the answers under the names `curl`, `sh`   |
//!
//! Dependencies have one direction: `main` uses `controller`, which uses the folders, and they use [`event`],
//! [`decide`] and the small files at the top. No two folders use each other. The test `layers` checks these rules.
//!
//! # Threads
//!
//! The main loop owns all state. Every other thread has one task, a small stack and a bounded wait.
//!
//! <!-- threads: compared with /proc/PID/task by a test -->
//!
//! | name        | stack   | waits for                                   | bound of the wait                     | ends                              |
//! | ----------- | ------- | ------------------------------------------- | ------------------------------------- | --------------------------------- |
//! | `main`      | system  | events, the next tick                       | 1 s, 20 s at most                     | after a shutdown                  |
//! | `log`       | 128 KiB | the next log line; standard error           | none: no thread waits for it          | with the process                  |
//! | `poll`      | 256 KiB | signals, health clients                     | none, or 30 s while its port is in use | with the process                  |
//! | `probe`     | 256 KiB | the next read of a card, a PCM or the disk  | 250 ms or 2 s a read, then left behind | with the process, or after a late read |
//! | `database`  | 256 KiB | the next request; PostgreSQL                | 3 s to log in, 5 s a statement        | with the process, or when abandoned |
//! | `podman`    | 256 KiB | the next request; Podman                    | 5 s a list                            | with the process                  |
//! | `events`    | 256 KiB | ends of processes, or Podman's event stream | none: either can come at any time     | with the process                  |
//! | `publisher` | 256 KiB | heartbeats, lines, the next question; Redis | 2 s a reply                           | after the last heartbeat          |
//! | `nudge`     | 128 KiB | a nudge from Redis                          | keepalive probes                      | with the process                  |
//!
//! <!-- /threads -->
//!
//! Short-lived ones: `action` (one for each change of containers, bounded by the deadlines of its calls), `log-…` (one
//! for each log while somebody listens), `engine` (reads the properties of Podman once), `inspect` (asks Podman about
//! single containers: one how they ended, and one how they differ from the desired configuration), `bcrypt` (hashes or
//! verifies the admin's password once), `reset` (authorises a USB device again) and `power` (reads what the host says about power and heat
//! when a microphone is disconnected). Four use disks, which can hang without a limit, so no thread waits for them
//! without one: `lock` (ends when it holds the lock), `files` (at most one for each file in the Recorder workspace
//! and in the state directory of the service, while there is something to read or write), `config` (reads the files that
//! are seeded) and `folder` (creates the folder of a Recorder). A command that connects to PostgreSQL has a thread `deadline`, which ends a call that
//! exceeds its time limit.
//!
//! # Invariants
//!
//! - Unknown is not empty: what cannot be read is an error or `None`, and never causes a stop, a rename or the state
//!   "offline".
//! - Only containers with our owner label are changed: Recorders, declared workers, and at a shutdown all of Tier 2.
//! - A worker never delays, displaces or endangers a Recorder: it has a history and actions of its own.
//! - Decisions are made from the whole state, never from a change; an empty plan means that nothing is left to do. While
//!   nothing happens and nothing waits, they are made every ten seconds.
//! - Ends of processes and Podman's events only trigger a list: actions are planned from a recent list of containers.
//! - The main loop waits only for its next tick and for events; a call that can block has a thread and a deadline.
//! - A disk that hangs delays no Recorder but one whose folder does not exist yet. Files in the Recorder workspace that are
//!   not our own, links and pipes are neither read nor replaced.
//! - A log that nobody reads delays nothing: lines that do not fit into the queue are dropped and counted.
//! - A shortage of descriptors or threads ends nothing: whoever opens many descriptors has a share ([`descriptors`]), and
//!   a thread that cannot be started is reported and tried again.
//! - A thread that hangs for good does not remain: the process replaces itself ([`replace`], [`decide::hang`]).

pub mod builtin;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod clocks;
pub mod collect;
pub mod config;
pub mod config_folder;
pub mod containers;
pub mod controller;
pub mod database;
pub mod decide;
pub mod descriptors;
pub mod event;
pub mod fs;
pub mod hardware;
pub mod health;
pub mod history;
pub mod json;
pub mod ledger;
pub mod lock;
pub mod logger;
pub mod logs;
pub mod metrics;
pub mod podman;
pub mod poll;
pub mod probe;
pub mod rate_limit;
pub mod redis;
pub mod redis_url;
pub mod replace;
pub mod report;
pub mod saver;
pub mod signals;
pub mod sorted_map;
pub mod sorted_set;
pub mod status;
pub mod tally;
pub mod text;
pub mod yaml;
