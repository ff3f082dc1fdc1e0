//! PostgreSQL: the connection and its time limits, the statements, seeding, and what it answered last.

pub mod connection;
pub mod seed;
pub mod state;
pub mod worker;
