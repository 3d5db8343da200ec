//! Benchmarks against the release binary with real PostgreSQL and Redis. Run by `scripts/bench`,
//! which builds what is measured.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark that is surprised should fail loudly; it shares the tests' helpers"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
mod inbox;
mod limits;
mod lists;
mod load;
mod peers;
mod policy;
mod report;
mod service;
mod speed;
mod start;
mod turns;
mod usage;
mod waiting;
mod world;

/// Measures the service.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Decisions and everything else over HTTP, beside what the machine can do.
    Speed(speed::Options),
    /// Agents that wait over HTTP, half of them by stream and half by long-poll.
    Waiting(waiting::Options),
    /// People who watch their inboxes on two replicas.
    Inbox(inbox::Options),
    /// The service beside Restate.
    Peers(peers::Options),
    /// Requests judged by a policy file of ten rules, on one core.
    Policy(policy::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Arguments::parse().what {
        What::Speed(options) => speed::run(&options).await,
        What::Waiting(options) => waiting::run(&options).await,
        What::Inbox(options) => inbox::run(&options).await,
        What::Peers(options) => peers::run(&options).await,
        What::Policy(options) => policy::run(&options),
    }
}
