//! Writes the receipts of deliveries that the ledger keeps in memory; see [`Ledger::keep_receipt`].

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::ledger::Ledger;

/// Pause before receipts that could not be written are tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Writes receipts until the process is asked to stop and nothing is under way any more.
pub async fn run(ledger: Ledger, under_way: TaskTracker) {
    loop {
        tokio::select! {
            biased;
            () = ledger.receipt_kept() => {}
            () = under_way.wait() => break,
        }
        while !ledger.write_receipts().await {
            tokio::select! {
                () = sleep(RETRY_INTERVAL) => {}
                () = under_way.wait() => break,
            }
        }
    }
    ledger.write_receipts().await;
}
