//! The use cases on approval requests, one file each. Each is a sequence of steps: load, judge, record,
//! send. The rules are in `domain`; `ledger` keeps the guarantees.

pub mod acknowledge;
pub mod answers;
pub mod automatic;
pub mod bound;
pub mod bulk;
pub mod comments;
pub mod decide;
pub mod detail;
pub mod error;
pub mod expire;
pub mod fan_out;
pub mod grants;
pub mod inbox;
pub mod intake;
pub mod list;
pub mod load;
pub mod notify;
pub mod read;
pub mod read_receipts;
pub mod rebind;
pub mod register;
pub mod send;
pub mod signal;
mod standing;
pub mod stream;
pub mod wait;
pub mod withdraw;

pub use self::error::{RequestError, Result};
