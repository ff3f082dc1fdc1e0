//! x
pub mod backoff;
pub mod config;
pub mod device;
pub mod podman;
pub mod presence;
pub mod sysfs;
pub mod text;
