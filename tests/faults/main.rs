//! The fault matrix: inflicts each fault on real servers and the release binary, and counts the
//! violations of the promises. Run it with `scripts/faults`.
//!
//! Every row is a function in `rows/`; `world.rs` is what it works on, `history.rs` the recorder
//! and the checker, `proxy.rs` the bad network. A row prints one line, and the run ends with
//! `N passed, N failed`.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a harness that is surprised should fail loudly; it shares the tests' helpers"
)]

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::FutureExt as _;

mod damage;
mod report;
mod rows;
mod world;

use report::{Report, Scale};
/// How long a row may take, so that every run ends.
const ROW_TIMEOUT: Duration = Duration::from_mins(45);

/// Runs the fault matrix.
#[derive(Parser)]
struct Arguments {
    /// Only these rows: 5, or 1,10b,30.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Every row, but fewer repetitions: a few minutes in all.
    #[arg(long)]
    quick: bool,
    /// List the rows and exit.
    #[arg(long)]
    list: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let unknown =
        arguments.only.iter().find(|only| rows::ROWS.iter().all(|row| row.number != *only));
    if let Some(unknown) = unknown {
        eprintln!("there is no row {unknown}; --list shows them");
        return ExitCode::FAILURE;
    }
    let asked = |number: &str| {
        if arguments.only.is_empty() {
            // To build the fuzz targets takes longer than all the quick rows.
            !(arguments.quick && number == "fuzz")
        } else {
            arguments.only.iter().any(|only| only == number)
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for row in rows::ROWS.iter().filter(|row| asked(row.number)) {
        if arguments.list {
            println!("{:>3}  {}", row.number, row.fault);
            continue;
        }
        let started = Instant::now();
        let scale = Scale { is_quick: arguments.quick };
        let mut report = Report::default();
        // A row that panics has failed. The next row runs.
        let running = AssertUnwindSafe((row.run)(scale, &mut report)).catch_unwind();
        match tokio::time::timeout(ROW_TIMEOUT, running).await {
            Ok(Ok(())) => {}
            Ok(Err(_panic)) => report.broken("it panicked, as told above"),
            Err(_elapsed) => report.broken("it did not end in time"),
        }
        println!("{}", report.line(row.number, row.fault, started.elapsed()));
        if report.held() {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    if arguments.list {
        return ExitCode::SUCCESS;
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
