//! The Recorder containers: the last list of them, the actions under way, and the only code that changes them.

pub mod actions;
pub mod ends;
pub mod execute;
pub mod folders;
pub mod limits;
pub mod lister;
pub mod liveness;
pub mod state;
pub mod watch;
