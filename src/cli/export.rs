//! `aura-hitl export`: writes decisions for auditors.

use std::path::Path;

use super::{load, with_wait_notice};
use crate::audit::export;
use crate::domain::clock::Clock;
use crate::server::stores;

/// Writes the decisions, or the refused attempts, of a time span to standard output.
pub async fn run(
    file: Option<&Path>,
    from: &str,
    to: Option<&str>,
    all: bool,
    refused: bool,
) -> anyhow::Result<()> {
    let span = export::span(from, to, all, Clock::System.now())?;
    let config = load(file)?;
    let ledger = with_wait_notice(stores::open_existing_ledger(&config)).await?;
    let output = std::io::stdout().lock();
    if refused {
        export::refused_attempts(&ledger, &span, output).await
    } else {
        export::decisions(&ledger, &span, output).await
    }
}
