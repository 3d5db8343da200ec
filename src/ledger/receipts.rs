//! Delivery receipts in memory, before they are written to their rows. The sender of a signal adds
//! a receipt and does not wait for the write. While one batch is written, the next batch collects,
//! so many signals need few statements.
//!
//! A row whose receipt is not written looks unsent. If its signal were sent again, the agent might
//! already be waiting for another request. So every row that the ledger reads is completed from its
//! receipt. A receipt that is written while a row is read is also applied, because the row may have
//! been read before the write. A written receipt therefore stays in memory for [`TIMEOUT`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::engine::TIMEOUT;
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::record::{DeliveryReceipt, Record};

/// The most receipts that one statement writes.
const BATCH_SIZE: usize = 256;

/// The key of a row: the id of a registered request is unique only within its tenant.
type RequestKey = (TenantId, RequestId);

#[derive(Debug)]
struct Entry {
    receipt: DeliveryReceipt,
    /// When the receipt was written to its row; `None` if it is still to be written.
    written_at: Option<Instant>,
}

/// The receipts of this process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Receipts {
    entries: Arc<Mutex<HashMap<RequestKey, Entry>>>,
    /// Notified when a receipt is added.
    pub added: Arc<Notify>,
}

impl Receipts {
    /// Adds a receipt that is to be written soon.
    pub fn add(&self, receipt: DeliveryReceipt) {
        let key = (receipt.tenant.clone(), receipt.request.clone());
        self.entries().insert(key, Entry { receipt, written_at: None });
        self.added.notify_one();
    }

    /// The receipt of this row's delivery, if there is one that is not written yet.
    pub fn unwritten(&self, record: &Record) -> Option<DeliveryReceipt> {
        self.find(record, |entry| entry.written_at.is_none())
    }

    /// Copies the result of the delivery into a row whose read began at `began`. A receipt that was
    /// written before `began` is skipped: the row already contains it.
    pub fn apply(&self, record: &mut Record, began: Instant) {
        let may_be_missing =
            |entry: &Entry| entry.written_at.is_none_or(|written| written >= began);
        if let Some(receipt) = self.find(record, may_be_missing) {
            record.delivery = receipt.result.delivery;
            record.listeners = receipt.result.listeners;
            record.replication_id = receipt.result.replication_id;
            record.sent_at = Some(receipt.at);
        }
    }

    fn find(&self, record: &Record, is_wanted: impl Fn(&Entry) -> bool) -> Option<DeliveryReceipt> {
        let key = (record.tenant.clone(), record.id.clone());
        let entries = self.entries();
        let found = entries.get(&key).filter(|entry| entry.receipt.owed_since == record.owed_since);
        found.filter(|entry| is_wanted(entry)).map(|entry| entry.receipt.clone())
    }

    /// The next batch of unwritten receipts, at most `BATCH_SIZE`; empty if all are written.
    pub fn next_batch(&self) -> Vec<DeliveryReceipt> {
        let entries = self.entries();
        let unwritten = entries.values().filter(|entry| entry.written_at.is_none());
        unwritten.take(BATCH_SIZE).map(|entry| entry.receipt.clone()).collect()
    }

    /// Marks these receipts as written. A receipt that was replaced during the write, by one with
    /// another `owed_since`, stays unwritten. Removes receipts that were written more than
    /// [`TIMEOUT`] ago: no read that began before their write is still running.
    pub fn mark_written(&self, receipts: &[DeliveryReceipt]) {
        let (mut entries, now) = (self.entries(), Instant::now());
        for receipt in receipts {
            let key = (receipt.tenant.clone(), receipt.request.clone());
            if let Some(entry) = entries.get_mut(&key)
                && entry.receipt.owed_since == receipt.owed_since
            {
                entry.written_at = Some(now);
            }
        }
        entries
            .retain(|_key, entry| entry.written_at.is_none_or(|written| now - written < TIMEOUT));
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<RequestKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
