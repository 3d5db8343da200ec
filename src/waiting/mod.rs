//! Wakes agents that wait over HTTP.

pub mod hub;
pub mod inbox;
