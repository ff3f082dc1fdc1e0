//! What one look at the sound cards found.

use std::collections::BTreeMap;
use std::fmt;

use crate::decide::device::Microphone;

/// What one look at the hardware found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// What will be different when a card comes or goes.
    pub signature: Signature,
    /// Microphones that were read whole, by card index.
    pub microphones: Vec<Microphone>,
    /// Cards that could not be told yet: index and why.
    pub unclear: Vec<(u32, String)>,
}

/// The list of cards and every card's [`UsbAddress`]: while they hold, so does the [`Scan`] they are from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// `/proc/asound/cards` as it was.
    pub cards: Vec<u8>,
    /// Each USB card's address.
    pub addresses: BTreeMap<u32, UsbAddress>,
}

/// A card's USB address in `/proc/asound/cardN/usbbus`. The kernel gives a device another one at each plugging, so that it
/// also tells a card from the one that had its place and its name before.
pub type UsbAddress = Vec<u8>;

/// The hardware could not be read, so nothing is known about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown(pub String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
