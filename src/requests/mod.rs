//! The use cases on approval requests, a file each. A use case reads as one line of steps: load, judge,
//! record, send. The rules themselves are in `domain`, the guarantees in `ledger`.

pub mod acknowledge;
pub mod decide;
pub mod error;
pub mod expire;
pub mod heard;
pub mod load;
pub mod notify;
pub mod read;
pub mod register;
pub mod send;
pub mod signal;
pub mod stream;
pub mod wait;
pub mod withdraw;

pub use self::error::{RequestError, Result};
