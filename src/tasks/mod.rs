//! The use cases on agent tasks, one in each file. Their rules are in `domain`; their guarantees
//! are in `ledger`.

pub mod change;
pub mod create;
pub mod error;
pub mod open;
pub mod read;

pub use self::error::{Result, TaskError};
