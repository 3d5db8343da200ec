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
extern crate support;

#[macro_use]
mod rules;

mod anothers_session;
mod approvals;
mod audit;
mod auth;
mod bulk;
mod comments;
mod connections;
mod detail;
mod evidence;
mod forgeries;
mod framing;
mod grants;
mod history;
mod hostile;
mod inbox;
mod infrastructure;
mod intake;
mod large_bodies;
mod lifecycle;
mod limits;
mod lists;
mod losses;
mod mail;
mod mistakes;
mod notices;
mod open_tasks;
mod outcomes;
mod overruled;
mod page;
mod policy;
mod processes;
mod quotas;
mod registration;
mod relay;
mod reload;
mod retention;
mod search;
mod slack;
mod stores;
mod strangers;
mod subscriber;
mod task_ids;
mod tasks;
mod tls;
mod topologies;
mod unheard;
mod votes;
mod waiting;
mod watching;
mod ways;
mod wire;
