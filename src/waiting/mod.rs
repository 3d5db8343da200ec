//! Agents that wait over HTTP.

pub mod hub;
