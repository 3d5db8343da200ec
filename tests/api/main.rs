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
mod anothers_session;
mod approvals;
mod audit;
mod auth;
mod belongings;
mod connections;
mod evidence;
mod forged;
mod forgeries;
mod framing;
mod harmful;
#[allow(dead_code, reason = "the checker of `scripts/faults`, here only for its own tests")]
#[path = "../faults/history.rs"]
mod history;
mod hostile;
mod infrastructure;
mod lifecycle;
mod limits;
mod losses;
mod mistakes;
mod open_tasks;
mod outcomes;
mod overruled;
mod processes;
#[allow(dead_code, reason = "some of it is for `scripts/faults`, which shares it")]
#[path = "../faults/proxy.rs"]
mod proxy;
mod quotas;
mod registration;
mod relay;
mod reload;
mod retention;
#[allow(dead_code, reason = "some of it is for `scripts/faults`, which shares it")]
mod servers;
mod stores;
mod strangers;
mod subscriber;
mod tasks;
mod tls;
mod topologies;
mod unheard;
mod waiting;
mod watching;
mod wire;
