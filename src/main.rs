//! The program. Whatever goes wrong is one line on standard error and exit code 1.

use std::process::ExitCode;

use aura_hitl::cli;

#[tokio::main]
async fn main() -> ExitCode {
    #[cfg(feature = "crash-points")]
    let _armed = fail::FailScenario::setup();
    cli::main().await
}
