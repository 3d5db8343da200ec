//! The service from the outside, in both modes. Run it with `scripts/test`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that is surprised should fail loudly"
)]

#[macro_use]
mod helpers;
mod approvals;
mod auth;
mod hostile;
mod lifecycle;
mod losses;
mod processes;
mod registration;
mod relay;
mod servers;
mod stores;
mod subscriber;
mod tasks;
mod topologies;
mod waiting;
mod wire;
