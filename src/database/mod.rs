//! PostgreSQL: the connection and its deadlines, the schema, the statements, the seeders, and the last known desired
//! state.

pub mod connection;
pub mod deadline;
pub mod refusals;
pub mod schema;
pub mod seed;
pub mod state;
pub mod statements;
pub mod worker;
