//! Writes delivery receipts to the database. [`Ledger::keep_receipt`] keeps them in memory until
//! then.

use std::time::Duration;

use crate::ledger::Ledger;
use crate::workers::{Failed, Progress, Worker};

/// The worker that writes delivery receipts.
#[derive(Debug)]
pub struct ReceiptWriter {
    /// Keeps the receipts in memory and writes them.
    pub ledger: Ledger,
}

impl Worker for ReceiptWriter {
    const NAME: &'static str = "receipts";
    /// Longest time between two rounds. Rounds go on while no signal is sent, so that the metric of
    /// the last success stays recent.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Pause after a failed write, before the same receipts are written again.
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
