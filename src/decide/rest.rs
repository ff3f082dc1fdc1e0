//! Whether decisions are needed at a tick.

/// What has happened since the last decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing, and nothing waits for a time: decisions would be the same.
    Undisturbed,
    /// Something has changed, is under way, waits, or is unknown.
    Disturbed,
}

impl Rest {
    /// What has happened if both of these have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Disturbed { self } else { other }
    }
}
