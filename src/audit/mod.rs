//! What auditors and the platform's audit log are told, and how long rows are kept.

pub mod export;
pub mod feed;
pub mod refused_attempts;
pub mod retention;
