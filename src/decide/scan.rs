//! The result of a scan of the sound cards.

use crate::sorted_map::SortedMap;
use std::fmt;

use crate::decide::device::Microphone;

/// The result of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Changes when a card is connected or disconnected.
    pub signature: Signature,
    /// Microphones that were read completely, by card index.
    pub microphones: Vec<Microphone>,
    /// Cards that could not be identified yet: index and why.
    pub unclear: Vec<(u32, String)>,
}

/// The list of cards and the [`UsbAddress`] of each. While it does not change, the [`Scan`] stays valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Content of `/proc/asound/cards`.
    pub cards: Vec<u8>,
    /// Address of each USB card.
    pub addresses: SortedMap<u32, UsbAddress>,
}

/// USB address of a card, from `/proc/asound/cardN/usbbus`. The kernel assigns a new one at each connection, so it also
/// distinguishes a card from an earlier one with the same index and name.
pub type UsbAddress = Vec<u8>;

/// The hardware cannot be read, so its state is unknown.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown(pub String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
