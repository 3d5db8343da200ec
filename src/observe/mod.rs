//! Observability: metrics, traces and the log.

pub mod log;
pub mod metrics;
pub mod traces;
