//! Rate limits and quotas: how much one person, one tenant and all callers together may ask for.

pub mod large_bodies;
pub mod quotas;
pub mod rate;
pub mod too_many;

pub use self::large_bodies::{LARGE_BODY_BYTES, LargeBodies, LargeBodyTurn};
pub use self::rate::Limits;
pub use self::too_many::{Limit, TooMany};

/// Largest request body of a registration or a task, in bytes.
pub const MAX_TASK_BYTES: usize = 1024 * 1024;
