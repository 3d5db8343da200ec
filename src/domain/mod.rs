//! The types and rules of approval, without any I/O: who may decide what, and what follows from it.
//!
//! Nothing in here knows HTTP, SQL or Redis. The present time is an argument. Data that others wrote
//! (in Redis, in request bodies) is parsed into one of these types or refused with an error.

pub mod approver;
pub mod audit;
pub mod clock;
pub mod comment;
pub mod decision;
pub mod grant;
pub mod ids;
pub mod json;
pub mod list;
pub mod notice;
pub mod plan;
pub mod printable;
pub mod python_json;
pub mod rate;
pub mod record;
pub mod request;
pub mod rules;
pub mod schema;
pub mod search;
pub mod session;
pub mod signal;
pub mod task;
pub mod visible;
pub mod vote;
pub mod ways;
