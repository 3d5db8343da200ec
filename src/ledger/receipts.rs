//! Receipts of deliveries that the ledger does not have yet. Whoever has sent a signal leaves a receipt
//! and goes on. While one batch is written the next gathers, so many signals cost few statements.
//!
//! A receipt is kept in memory until it is written: a row without it looks unsent, and its signal would
//! go out once more, to an agent that may wait for something else by then. So every row that the
//! ledger reads is read with its receipt: also with one that was written while the row was read, which
//! the row may have been too early for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::engine::TIMEOUT;
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::record::{DeliveryReceipt, Record};

/// Most receipts to write at once.
const BATCH_SIZE: usize = 256;

/// Which row: ids of registered requests are unique within their tenant only.
type RequestKey = (TenantId, RequestId);

#[derive(Debug)]
struct Kept {
    receipt: DeliveryReceipt,
    written_at: Option<Instant>,
}

/// The receipts of this process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Receipts {
    kept: Arc<Mutex<HashMap<RequestKey, Kept>>>,
    /// Told of each that is kept.
    pub news: Arc<Notify>,
}

impl Receipts {
    /// Keeps a receipt, to be written soon.
    pub fn keep(&self, receipt: DeliveryReceipt) {
        let key = (receipt.tenant.clone(), receipt.request.clone());
        self.kept().insert(key, Kept { receipt, written_at: None });
        self.news.notify_one();
    }

    /// The receipt for what this row owes, if that was sent already and only the receipt is not written.
    pub fn unwritten(&self, record: &Record) -> Option<DeliveryReceipt> {
        self.find(record, |kept| kept.written_at.is_none())
    }

    /// Brings a row up to what is known of its delivery. Reading it began then.
    pub fn apply(&self, record: &mut Record, began: Instant) {
        let may_be_later = |kept: &Kept| kept.written_at.is_none_or(|written| written >= began);
        if let Some(receipt) = self.find(record, may_be_later) {
            record.delivery = receipt.result.delivery;
            record.listeners = receipt.result.listeners;
            record.replication_id = receipt.result.replication_id;
            record.sent_at = Some(receipt.at);
        }
    }

    fn find(&self, record: &Record, which: impl Fn(&Kept) -> bool) -> Option<DeliveryReceipt> {
        let key = (record.tenant.clone(), record.id.clone());
        let kept = self.kept();
        let found = kept.get(&key).filter(|kept| kept.receipt.owed_since == record.owed_since);
        found.filter(|kept| which(kept)).map(|kept| kept.receipt.clone())
    }

    /// A batch to write.
    pub fn some(&self) -> Vec<DeliveryReceipt> {
        let kept = self.kept();
        let unwritten = kept.values().filter(|kept| kept.written_at.is_none());
        unwritten.take(BATCH_SIZE).map(|kept| kept.receipt.clone()).collect()
    }

    /// Notes that receipts are written, but for those kept anew meanwhile. Forgets those that no row
    /// still being read can lack.
    pub fn written(&self, receipts: &[DeliveryReceipt]) {
        let (mut kept, now) = (self.kept(), Instant::now());
        for receipt in receipts {
            let key = (receipt.tenant.clone(), receipt.request.clone());
            if let Some(kept) = kept.get_mut(&key)
                && kept.receipt.owed_since == receipt.owed_since
            {
                kept.written_at = Some(now);
            }
        }
        kept.retain(|_key, kept| kept.written_at.is_none_or(|written| now - written < TIMEOUT));
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<RequestKey, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
