//! Rate limits and quotas: how much one person, one tenant and all callers together may ask for.

pub mod quotas;
pub mod rate;
pub mod too_many;

pub use self::rate::Limits;
pub use self::too_many::{Limit, TooMany};

/// Largest request body of a registration or a task, in bytes.
pub const MAX_TASK_BYTES: usize = 1024 * 1024;
