//! What the tests of tests/api, tests/faults and tests/bench share: the service and the people
//! around it, and the servers that a test starts, kills and damages by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a test that is surprised should fail loudly"
)]
#![allow(
    clippy::must_use_candidate,
    clippy::new_without_default,
    clippy::return_self_not_must_use,
    reason = "these are for the interface of a library, and tests see when they forget a result"
)]

pub mod belongings;
pub mod forged;
pub mod harmful;
pub mod helpers;
pub mod history;
pub mod proxy;
pub mod servers;
pub mod tls;
