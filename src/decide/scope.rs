//! Which rows of `devices` are read: not those of microphones that were not seen for a month.
//!
//! The running Controller needs the rows of recent microphones, of those that are connected, and of those that have a
//! container. To tell who a microphone is that appears at a port where no loaded row has it, and to give one a name that
//! is new, it needs the ports and the unique columns of all others, too: they are read until that is written.
//! Invariant: a microphone gets a new row, and a container is removed for the lack of one, only after its row was asked
//! for.

use crate::decide::container::Container;
use crate::decide::presence::{Presence, Presences};
use crate::decide::registry::Registry;
use crate::decide::spec::DEVICE_ID;
use crate::sorted_set::SortedSet;

/// The rows to read beside those of recent microphones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Everything,
    /// Only what is needed.
    Needed {
        /// These devices, however long they were not seen.
        devices: SortedSet<String>,
        /// What is read of the others.
        others: Others,
    },
}

/// What is read of microphones that were not seen for a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Nothing.
    Nothing,
    /// Where each was last connected, and its unique columns.
    Identity,
}

/// What is known of the microphones that were not seen for a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Their identities.
    Known,
    /// Nothing yet, but the database answers.
    Expected,
    /// Nothing, as the database does not answer.
    Unavailable,
}

impl Default for Scope {
    fn default() -> Self {
        Self::Needed { devices: SortedSet::new(), others: Others::Nothing }
    }
}

impl Scope {
    /// What these presences and containers need.
    #[must_use]
    pub fn needed(presences: &Presences, containers: &[Container], others: Others) -> Self {
        let present = presences.iter().filter(|(_, presence)| !matches!(presence, Presence::Offline)).map(|(id, _)| id);
        let devices = present.chain(containers.iter().filter_map(|container| container.labels.get(DEVICE_ID)));
        let devices: SortedSet<String> = devices.cloned().collect();
        // A label can contain anything, also text that the database could not convert.
        let is_plain = |id: &String| id.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_control());
        if devices.iter().all(is_plain) { Self::Needed { devices, others } } else { Self::Everything }
    }

    /// The same with the identities of all microphones.
    #[must_use]
    pub fn with_identities(&self) -> Self {
        match self {
            Self::Everything => Self::Everything,
            Self::Needed { devices, .. } => Self::Needed { devices: devices.clone(), others: Others::Identity },
        }
    }

    /// Whether the identities of all microphones are read.
    #[must_use]
    pub fn has_identities(&self) -> bool {
        matches!(self, Self::Everything | Self::Needed { others: Others::Identity, .. })
    }

    /// Whether the row of this device was read, or does not exist.
    #[must_use]
    pub fn covers(&self, registry: &Registry, device: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Needed { devices, .. } => devices.contains(device) || registry.devices.contains_key(device),
        }
    }

    /// Whether rows that were read with this scope are enough where `needed` is.
    #[must_use]
    pub fn is_enough_for(&self, needed: &Self, registry: &Registry) -> bool {
        match (self, needed) {
            (Self::Everything, _) => true,
            (_, Self::Everything) => false,
            (_, Self::Needed { devices, .. }) => {
                (self.has_identities() || !needed.has_identities()) && devices.iter().all(|device| self.covers(registry, device))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::registry::Row;

    #[test]
    fn rows_are_enough_if_each_was_read_or_asked_for() {
        let row = |key: &str| Row { kind: "device".to_owned(), key: key.to_owned(), body: None, fault: None };
        let registry = Registry::read(&[row("recent")], None);
        let scope = |devices: &str, others| Scope::Needed { devices: devices.split_whitespace().map(str::to_owned).collect(), others };
        let (few, all) = (Others::Nothing, Others::Identity);
        for (read, needed, expected) in [
            (scope("", few), scope("", few), true),
            (scope("", few), scope("recent", few), true),
            (scope("", few), scope("recent old", few), false),
            (scope("old", few), scope("recent old", few), true),
            (scope("old", few), scope("", few), true),
            (scope("", few), scope("", all), false),
            (scope("", all), scope("", few), true),
            (scope("", all), scope("old", all), false),
            (Scope::Everything, scope("old", all), true),
            (scope("old", all), Scope::Everything, false),
        ] {
            assert_eq!(read.is_enough_for(&needed, &registry), expected, "{read:?} {needed:?}");
        }
    }

    #[test]
    fn the_label_of_a_container_is_needed_and_one_that_no_database_may_hold_needs_everything() {
        let mut scene = crate::decide::plan::tests::scene("m:run", "m:running?");
        let presences = Presences::new(std::time::Duration::ZERO);
        let needed = |containers: &[Container]| Scope::needed(&presences, containers, Others::Nothing);
        assert_eq!(needed(&scene.containers), Scope::Needed { devices: ["m".to_owned()].into_iter().collect(), others: Others::Nothing });
        scene.containers[0].labels.insert(DEVICE_ID.to_owned(), "m\u{e9}".to_owned());
        assert_eq!(needed(&scene.containers), Scope::Everything);
    }
}
