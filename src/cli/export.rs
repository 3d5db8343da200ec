//! `aura-hitl export`: writes decisions for auditors.

use std::path::Path;

use super::{load, saying_that_it_waits};
use crate::audit::export;
use crate::domain::clock::Clock;
use crate::server::stores;

/// Writes decisions, or refused attempts, of a span of time to standard output.
pub async fn run(
    file: Option<&Path>,
    from: &str,
    to: Option<&str>,
    all: bool,
    refused: bool,
) -> anyhow::Result<()> {
    let span = export::span(from, to, all, Clock::System.now())?;
    let config = load(file)?;
    let ledger = saying_that_it_waits(stores::open_existing_ledger(&config)).await?;
    let output = std::io::stdout().lock();
    if refused {
        export::refused_attempts(&ledger, &span, output).await
    } else {
        export::decisions(&ledger, &span, output).await
    }
}
