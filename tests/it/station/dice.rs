//! Random choices that can be made again: a generator which gives the same numbers everywhere (xorshift64).

use std::hash::{BuildHasher, RandomState};

/// Its state, never 0.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A seed from this variable, or any other one; printed, so that a run that failed can be repeated.
    pub(crate) fn seed(variable: &str) -> u64 {
        let seed = std::env::var(variable).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| RandomState::new().hash_one(1) | 1);
        println!("{variable}={seed}");
        seed
    }

    /// A number below `limit`; 0 if there is none.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}
