//! PostgreSQL: the connection and its deadlines, the schema, the statements, the seeders, and the last known desired
//! state.

pub mod connection;
pub mod deadline;
pub mod last_settings;
pub mod refusals;
pub mod schema;
pub mod seed;
pub mod seed_files;
pub mod sessions;
pub mod state;
pub mod statements;
pub mod worker;
