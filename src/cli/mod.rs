//! The commands of `silvasonic-controller`, one file for each, and what the program answers under the names `curl` and
//! `sh`.

pub mod arguments;
pub mod check;
pub mod completions;
pub mod curl;
pub mod devices;
pub mod health;
pub mod history;
pub mod logs;
pub mod man;
pub mod profiles;
pub mod scan;
pub mod setup;
pub mod sh;
mod takeover;
pub mod workers;
