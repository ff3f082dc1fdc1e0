//! The Controller of a Silvasonic station: finds USB microphones and keeps a Recorder container running for each.
//!
//! # Map
//!
//! ```text
//!  hardware ─scan─▶ sight: presences ─┐                          ┌──▶ desired ──▶ store/db (rows to write)
//!                                     ├─▶ controller (the loop) ─┤
//!  store/db ─rows─▶ desired: registry ┤   observe wait record    └──▶ plan ──▶ jobs, execute ──▶ podman
//!  inventory ─list─▶ census ──────────┘   act report ──▶ vitals ──▶ healthz, bus ──▶ Redis
//!  events ─(look now)─▶ census    nudge ─(look now)   logs ──(a thread a container)──┘
//! ```
//!
//! Pure (values in, values out): [`backoff`], [`cli`], [`clock`], [`completion`], [`device`], [`line`],
//! [`manual`], [`notice`], [`by_insertion`], [`plan`],
//! [`position`], [`presence`], [`profile`], [`reason`], [`registry`], [`spec`], [`stream`], [`text`], [`want`], [`yaml`]. Reading the world:
//! [`config`], [`sysfs`] on the thread of [`hardware`], [`db`], [`inventory`], [`events`], [`logs`]. What each said last, and when it is
//! asked again: [`sight`], [`desired`], [`census`], [`jobs`]. Changing the world: [`execute`] (containers, the only place), [`store`] and
//! [`seed`] (database).
//!
//! # Invariants
//!
//! - Unknown is not empty: what could not be read is an error or `None`, and never leads to a stop, a rename or an
//!   "offline".
//! - Only containers with our owner label and `service=recorder` are touched.
//! - Decisions are made from the whole state, never from what changed; an empty plan means that nothing is left to do.
//! - Podman's events are hints: what is done is planned from a list of containers that is fresh.
//! - The main loop waits for nothing but its own tick and events; what can block has a thread and a deadline.

pub mod builtin;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod collect;
pub mod config;
pub mod containers;
pub mod controller;
pub mod database;
pub mod decide;
pub mod event;
pub mod fs;
pub mod hardware;
pub mod health;
pub mod history;
pub mod logs;
pub mod podman;
pub mod poll;
pub mod probe;
pub mod rate_limit;
pub mod redis;
pub mod report;
pub mod signals;
pub mod text;
pub mod yaml;
