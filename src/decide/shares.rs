//! How many file descriptors those may use who open many, so that the others never lack one.
//!
//! A shortage must not stop what the program is for: reading the sound cards, PostgreSQL, lists and actions of Podman,
//! Redis. So HTTP clients, starts at the same time and what is kept for each Recorder are limited to a share of what
//! the limit of open files leaves. With the usual limits, the shares are larger than what is ever used.

/// What the rest of the program opens at most at the same time, and what a connection to PostgreSQL needs to be free.
const RESERVED: usize = 30;
/// HTTP clients: at least and at most.
const CLIENTS: (usize, usize) = (2, 32);
/// Starts at the same time: Podman gains nothing from more (measured).
const STARTS: usize = 8;
/// A start has a connection to Podman, and opens another file now and then.
const PER_START: usize = 2;
/// The process that is watched; the connection of the log, the process of its run, and a request about that.
const PER_RECORDER: usize = 4;
/// Below this limit the shares are so small that they can be noticed.
pub const SUFFICIENT: u64 = 256;

/// Shares of a limit of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// HTTP clients at the same time.
    pub clients: usize,
    /// Starts of Recorders at the same time.
    pub starts: usize,
    /// Recorders whose log is followed and whose process is watched.
    pub recorders: usize,
}

impl Shares {
    /// The shares of this limit.
    #[must_use]
    pub fn of(limit: u64) -> Self {
        let rest = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(RESERVED);
        let clients = (rest / 4).clamp(CLIENTS.0, CLIENTS.1);
        let starts = (rest / 8).clamp(1, STARTS);
        Self { clients, starts, recorders: rest.saturating_sub(clients + starts * PER_START) / PER_RECORDER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_what_is_reserved_and_grow_with_the_limit() {
        let shares = |limit| {
            let Shares { clients, starts, recorders } = Shares::of(limit);
            (clients, starts, recorders)
        };
        assert_eq!(shares(0), (2, 1, 0));
        assert_eq!(shares(40), (2, 1, 1));
        assert_eq!(shares(64), (8, 4, 4));
        assert_eq!(shares(SUFFICIENT), (32, 8, 44));
        assert_eq!(shares(1024).2, 236);
        for limit in 34..5000 {
            let (clients, starts, recorders) = shares(limit);
            assert!((RESERVED + clients + starts * PER_START + recorders * PER_RECORDER) as u64 <= limit, "{limit}");
        }
        assert_eq!(shares(u64::MAX).0, 32);
    }
}
