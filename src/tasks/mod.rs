//! The use cases on agent tasks, a file each. The rules themselves are in `domain`, the guarantees in
//! `ledger`.

pub mod change;
pub mod create;
pub mod error;
pub mod open;
pub mod read;

pub use self::error::{Result, TaskError};
