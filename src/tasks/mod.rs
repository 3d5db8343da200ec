//! The use cases on agent tasks.

pub mod open;
