//! The limit of open files of this process.

use log::warn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::decide::shares::{SUFFICIENT, Shares};

/// The soft limit is raised to this, if the hard limit allows.
const WANTED: u64 = 4096;

/// Raises the limit as far as that is useful and allowed. Warns if it is low all the same.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let possible = maximum.unwrap_or(WANTED).min(WANTED);
    if current.is_some_and(|current| current < possible) {
        if let Err(why) = setrlimit(Resource::Nofile, Rlimit { current: Some(possible), maximum }) {
            warn!("cannot raise the limit of open files to {possible}: {why}");
        }
    }
    let limit = limit();
    if limit < SUFFICIENT {
        let Shares { clients, recorders, .. } = Shares::of(limit);
        warn!(
            "the limit of open files is {limit}, expected at least {SUFFICIENT}: the logs of {recorders} Recorders are forwarded, and \
             {clients} HTTP clients are served at a time; raise it, e.g. with `ulimit -n` or LimitNOFILE="
        );
    }
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The shares of the limit.
#[must_use]
pub fn shares() -> Shares {
    Shares::of(limit())
}
