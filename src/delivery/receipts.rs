//! Writes the receipts of deliveries that the ledger keeps in memory; see [`Ledger::keep_receipt`].

use std::time::Duration;

use crate::ledger::Ledger;
use crate::workers::{Failed, Progress, Worker};

/// Writes receipts.
#[derive(Debug)]
pub struct ReceiptWriter {
    /// Where they are kept and written.
    pub ledger: Ledger,
}

impl Worker for ReceiptWriter {
    const NAME: &'static str = "receipts";
    /// Longest between two rounds while nothing is sent, so that the last success is a fresh one.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Pause before receipts that could not be written are tried again.
    const RETRY_INTERVAL: Duration = Duration::from_millis(200);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        if self.ledger.write_receipts().await { Ok(Progress::Done) } else { Err(Failed) }
    }

    async fn wake_up(&mut self) {
        self.ledger.receipt_kept().await;
    }

    async fn finish(&mut self) {
        self.ledger.write_receipts().await;
    }
}
