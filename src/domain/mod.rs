//! The rules, without any I/O: who may decide what, and what follows from it.
//!
//! Nothing in here knows HTTP, SQL or Redis. Time is passed in. Everything that reads a
//! stranger's data (Redis, request bodies) ends in one of these types or in an error.

pub mod approver;
pub mod audit;
pub mod clock;
pub mod decision;
pub mod ids;
pub mod json;
pub mod plan;
pub mod printable;
pub mod python_json;
pub mod rate;
pub mod record;
pub mod request;
pub mod rules;
pub mod session;
pub mod signal;
pub mod task;
