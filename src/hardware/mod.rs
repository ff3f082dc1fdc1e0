//! `/proc/asound` and sysfs: which microphones are connected, and whether frames arrive from them.

pub mod formats;
pub mod holder;
pub mod pcm;
pub mod power;
pub mod scanner;
pub mod state;
pub mod sysfs;
pub mod usb;
