//! Wakes agents that wait over HTTP.

pub mod hub;
