//! Exports decisions and refused attempts for auditors, feeds the platform's audit log, and deletes
//! old rows.

pub mod export;
pub mod feed;
pub mod refused_attempts;
pub mod retention;
