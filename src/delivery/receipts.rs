//! Receipts of deliveries that the ledger does not have yet. Whoever has sent a signal records a receipt
//! and goes on. While one batch is written the next gathers, so many signals cost few statements.
//!
//! A receipt is kept in memory until it is written: a row without it looks unsent, and its signal would
//! go out once more, to an agent that may wait for something else by then. So every reader of a row in
//! this process applies the receipts to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::warn;

use crate::domain::ids::{RequestId, TenantId};
use crate::domain::record::{DeliveryReceipt, Record};
use crate::ledger::{Ledger, LedgerError};
use crate::workers::{Failed, Progress, Worker};

/// Most receipts to write at once.
const BATCH_SIZE: usize = 256;

/// Which row: ids of registered requests are unique within their tenant only.
type RequestKey = (TenantId, RequestId);

/// The receipts of this process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Receipts {
    unwritten: Arc<Mutex<HashMap<RequestKey, DeliveryReceipt>>>,
    recorded: Arc<Notify>,
}

impl Receipts {
    /// Records a receipt, to be written soon.
    pub fn record(&self, receipt: DeliveryReceipt) {
        self.unwritten().insert((receipt.tenant.clone(), receipt.request.clone()), receipt);
        self.recorded.notify_one();
    }

    /// The receipt for what this row owes, if that was sent already and only the receipt is not written.
    #[must_use]
    pub fn of(&self, record: &Record) -> Option<DeliveryReceipt> {
        let unwritten = self.unwritten();
        let key = (record.tenant.clone(), record.id.clone());
        unwritten.get(&key).filter(|receipt| receipt.owed_since == record.owed_since).cloned()
    }

    /// Brings a row that was read up to what is known of its delivery.
    pub fn apply(&self, record: &mut Record) {
        if let Some(receipt) = self.of(record) {
            record.delivery = receipt.result.delivery;
            record.listeners = receipt.result.listeners;
            record.replication_id = receipt.result.replication_id;
            record.sent_at = Some(receipt.at);
        }
    }

    fn some(&self) -> Vec<DeliveryReceipt> {
        self.unwritten().values().take(BATCH_SIZE).cloned().collect()
    }

    /// Forgets receipts that are written, but for those recorded anew meanwhile.
    fn forget(&self, written: &[DeliveryReceipt]) {
        let mut unwritten = self.unwritten();
        for receipt in written {
            let key = (receipt.tenant.clone(), receipt.request.clone());
            if unwritten.get(&key).is_some_and(|now| now.owed_since == receipt.owed_since) {
                unwritten.remove(&key);
            }
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<RequestKey, DeliveryReceipt>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes receipts.
#[derive(Debug)]
pub struct ReceiptWriter {
    /// Those to write.
    pub receipts: Receipts,
    /// Where to.
    pub ledger: Ledger,
}

impl Worker for ReceiptWriter {
    const NAME: &'static str = "receipts";
    /// Longest between two rounds while nothing is sent, so that the last success is a fresh one.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Pause before receipts that could not be written are tried again.
    const RETRY_INTERVAL: Duration = Duration::from_millis(200);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        if self.receipts.write(&self.ledger).await { Ok(Progress::Done) } else { Err(Failed) }
    }

    async fn wake_up(&mut self) {
        self.receipts.recorded.notified().await;
    }

    async fn finish(&mut self) {
        self.receipts.write(&self.ledger).await;
    }
}

impl Receipts {
    /// Writes what is there; whether all of it could be.
    pub async fn write(&self, ledger: &Ledger) -> bool {
        loop {
            let receipts = self.some();
            if receipts.is_empty() {
                return true;
            }
            let written = ledger.record_receipts(&receipts).await;
            crash_point!("noted");
            match written {
                Ok(()) => self.forget(&receipts),
                Err(error) => {
                    warn!(count = receipts.len(), %error, "sent, but not noted yet");
                    return self.write_each(ledger, receipts).await;
                }
            }
        }
    }

    /// Writes one by one, so that a row that somebody holds locked costs only itself. A ledger that
    /// does not answer ends it.
    async fn write_each(&self, ledger: &Ledger, receipts: Vec<DeliveryReceipt>) -> bool {
        let mut all = true;
        for receipt in receipts {
            match self.write_one(ledger, receipt).await {
                Ok(()) => {}
                Err(LedgerError::Locked(_) | LedgerError::Inconsistent(_)) => all = false,
                Err(LedgerError::NotExecuted(_) | LedgerError::OutcomeUnknown(_)) => return false,
            }
        }
        all
    }

    /// Writes a receipt now, for a caller that must not wait for the others.
    ///
    /// # Errors
    /// [`LedgerError`]; it is tried again.
    pub async fn write_one(
        &self,
        ledger: &Ledger,
        receipt: DeliveryReceipt,
    ) -> Result<(), LedgerError> {
        let receipt = [receipt];
        ledger.record_receipts(&receipt).await?;
        self.forget(&receipt);
        Ok(())
    }
}
