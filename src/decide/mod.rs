//! Every decision of the program: values in, values out.
//!
//! Nothing in this folder reads a file, a socket, the environment or a clock, and nothing starts a thread; a test
//! checks that. The caller passes the observations, including which are unknown, and the current time.

pub mod action;
pub mod backoff;
pub mod capture;
pub mod container;
pub mod desired;
pub mod device;
pub mod difference;
pub mod effort;
pub mod hang;
pub mod leadership;
pub mod lenient;
pub mod offer;
pub mod past;
pub mod plan;
pub mod presence;
pub mod pressure;
pub mod profile;
pub mod reason;
pub mod recorders;
pub mod registry;
pub mod rest;
pub mod runway;
pub mod saved;
pub mod scan;
pub mod scope;
pub mod sessions;
pub mod shares;
pub mod spec;
pub mod timeline;
pub mod worker;
pub mod workers;
pub mod workspace;
