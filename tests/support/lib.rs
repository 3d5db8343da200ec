//! Shared by tests/api, tests/faults and tests/bench: the service, people and agents, and the servers
//! that a test starts, kills and damages. One file per noun; this file re-exports what most tests use.
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

mod agents;
mod answers;
mod asked;
pub mod belongings;
mod eventually;
pub mod forged;
pub mod harmful;
pub mod history;
mod ledger;
pub mod mail;
mod names;
mod operations;
mod people;
mod program;
pub mod proxy;
mod rows;
mod servers;
mod service;
mod sockets;
pub mod tls;

pub use agents::{Subscriber, commands_to_redis, put_request, put_session, reached, redis};
pub use answers::{Answer, until_there_is_room};
pub use asked::{Asked, candidate};
pub use eventually::{eventually, eventually_within};
pub use ledger::{decide_on_ledger, find_record, fresh_database, writing};
pub use names::{test_variable, unique};
pub use operations::{Operation, PREFIXES, careful_operations, document, operations};
pub use people::{ADMIN, ALICE, BOB, MALLORY, Who};
pub use program::{Program, Running};
pub use rows::{SqlRow, insert_task_of_mallory, request_row, task_row};
pub use servers::{
    FAILOVER_TIMEOUT, PgBouncer, PrivateCluster, PrivatePostgres, PrivateRedis, PrivateSentinels,
    Server, Tmpfs, free_port, kill, slot_of, try_kill,
};
pub use service::{Mode, TestApp, config, watch_redis};
pub use sockets::{RawAnswer, framed, head, percent_encoded, raw};
