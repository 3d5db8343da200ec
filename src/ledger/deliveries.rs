//! Deliveries: which signals are owed, who holds them, and what became of them.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use const_format::{formatcp, str_replace};
use tracing::warn;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::{LedgerError, Result};
use super::requests::REQUEST_COLUMNS;
use crate::domain::ids::{RequestId, TenantId, UserId};
use crate::domain::record::{Delivery, DeliveryReceipt, Record};
use crate::domain::signal::SIGNAL_TTL_SECONDS;

/// How long whoever decides or claims a row has to send its signal before a relay may try. Longer
/// than any call to Redis, short enough that a killed replica's work is picked up at once.
pub const LEASE: TimeDelta = TimeDelta::milliseconds(3000);

/// Most lost signals to owe again in one statement, which has to end in time.
pub const LOST_AT_ONCE: u32 = 1000;

impl Ledger {
    /// Takes the lease of up to `limit` rows whose delivery is due, for [`LEASE`]; the earliest first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn claim_owed(&self, now: DateTime<Utc>, limit: i64) -> Result<Vec<Record>> {
        const CLAIM: &str = formatcp!(
            "UPDATE hitl_request SET due_at = $2, attempts = attempts + 1
              WHERE (tenant_id, request_id) IN (
                  SELECT tenant_id, request_id FROM hitl_request
                   WHERE delivery = 'owed' AND due_at >= '-infinity' AND due_at <= $1
                   ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED
              ) RETURNING {REQUEST_COLUMNS}"
        );
        const CLAIM_OWED: Statement = Statement::new("ledger.claim_owed", CLAIM)
            .on_sqlite(str_replace!(CLAIM, "FOR UPDATE SKIP LOCKED", ""));
        let began = Instant::now();
        let rows = self.engine.fetch_all(CLAIM_OWED, &values![now, now + LEASE, limit]).await?;
        // One odd row must not keep the others from being sent.
        let readable = |row| {
            self.record(row, began)
                .inspect_err(|error| tracing::error!(%error, "a row cannot be sent"))
                .ok()
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Gives a lease back: the delivery is due again at `due_at`.
    ///
    /// # Errors
    /// [`LedgerError`]; the lease then runs out by itself.
    pub async fn postpone(&self, record: &Record, due_at: DateTime<Utc>) -> Result<()> {
        const POSTPONE: Statement = Statement::new(
            "ledger.postpone",
            "UPDATE hitl_request SET due_at = $3
              WHERE tenant_id = $4 AND request_id = $1 AND owed_since = $2 AND delivery = 'owed'",
        );
        let values = values![&record.id, record.owed_since, due_at, &record.tenant];
        self.engine.execute(POSTPONE, &values).await.map(drop)
    }

    /// Owes a settled decision's signal once more. `None` when somebody else was faster.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn owe_again(&self, seen: &Record, now: DateTime<Utc>) -> Result<Option<Record>> {
        const OWE_AGAIN: Statement = Statement::new(
            "ledger.owe_again",
            formatcp!(
                "UPDATE hitl_request
                    SET delivery = 'owed', owed_since = $3, due_at = $4, attempts = 0,
                        sent_at = NULL, listeners = NULL, sent_to = NULL
                  WHERE tenant_id = $5 AND request_id = $1 AND owed_since = $2
                    AND (delivery <> 'owed' OR sent_to IS NOT NULL)
                  RETURNING {REQUEST_COLUMNS}"
            ),
        );
        let values = values![&seen.id, seen.owed_since, now, now + LEASE, &seen.tenant];
        self.request(OWE_AGAIN, &values).await
    }

    /// Owes again up to [`LOST_AT_ONCE`] signals that Redis may have lost, the newest first: those
    /// that went into a history of its data that is none of `replication_ids`, and that would be under
    /// their keys still. Answers how many there were.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn owe_lost(&self, replication_ids: &[String], now: DateTime<Utc>) -> Result<u64> {
        // Not `origin = 'redis'`: that would fit the index of all ids of Redis.
        const OWE_LOST: Statement = Statement::new(
            "ledger.owe_lost",
            "UPDATE hitl_request SET delivery = 'owed', due_at = $1
              WHERE (tenant_id, request_id) IN (
                  SELECT tenant_id, request_id FROM hitl_request
                   WHERE origin <> 'http' AND delivery = 'sent'
                     AND sent_at <= 'infinity' AND sent_at > $2
                     AND $3 NOT LIKE '%' || sent_to || '%'
                   ORDER BY sent_at DESC LIMIT $4
              ) AND delivery = 'sent'",
        );
        let since = now - TimeDelta::seconds(i64::try_from(SIGNAL_TTL_SECONDS).unwrap_or(0));
        let values = values![now, since, replication_ids.join(" "), i64::from(LOST_AT_ONCE)];
        self.engine.execute(OWE_LOST, &values).await
    }

    /// Up to `limit` signals of Redis that went out since then and that nobody heard, of requests made
    /// since `patient`; the latest first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn unheard(
        &self,
        since: DateTime<Utc>,
        patient: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<Record>> {
        // As in `owe_lost`.
        const UNHEARD: Statement = Statement::new(
            "ledger.unheard",
            formatcp!(
                "SELECT {REQUEST_COLUMNS} FROM hitl_request
                  WHERE delivery = 'sent' AND sent_at <= 'infinity' AND sent_at > $1
                    AND listeners = 0 AND created_at > $2 AND origin <> 'http'
                    AND heard_at IS NULL AND decided_at IS NOT NULL
                  ORDER BY sent_at DESC LIMIT $3"
            ),
        );
        self.requests(UNHEARD, &values![since, patient, limit]).await
    }

    /// Owes a signal once more that was sent and that nobody heard, and takes its lease, for
    /// [`LEASE`]. `None` when somebody has heard it, or somebody else was faster.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn claim_unheard(&self, seen: &Record, now: DateTime<Utc>) -> Result<Option<Record>> {
        // `listeners` stays 0: it tells the relay that this signal was sent before.
        const CLAIM_UNHEARD: Statement = Statement::new(
            "ledger.claim_unheard",
            formatcp!(
                "UPDATE hitl_request
                    SET delivery = 'owed', owed_since = $3, due_at = $4, attempts = 0
                  WHERE request_id = $1 AND owed_since = $2 AND origin = 'redis'
                    AND delivery = 'sent' AND listeners = 0 AND heard_at IS NULL
                  RETURNING {REQUEST_COLUMNS}"
            ),
        );
        let values = values![&seen.id, seen.owed_since, now, now + LEASE];
        self.request(CLAIM_UNHEARD, &values).await
    }

    /// Notes that the agent of this user was answered the signal of a request of Redis over HTTP.
    /// Answers whether the request names that user: else nothing is noted.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn heard(
        &self,
        tenant: &TenantId,
        user: &UserId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        const HEARD: Statement = Statement::new(
            "ledger.heard",
            "UPDATE hitl_request SET heard_at = COALESCE(heard_at, $2)
              WHERE request_id = $1 AND tenant_id = $3 AND user_id = $4 AND origin = 'redis'",
        );
        Ok(self.engine.execute(HEARD, &values![id, now, tenant, user]).await? > 0)
    }

    /// Keeps what became of a delivery, to be written soon. Rows are read with it from now on.
    pub fn keep_receipt(&self, receipt: DeliveryReceipt) {
        self.receipts.keep(receipt);
    }

    /// Waits until a receipt is kept.
    pub async fn receipt_kept(&self) {
        self.receipts.news.notified().await;
    }

    /// Whether what became of this row's delivery is kept and not written yet.
    #[must_use]
    pub fn has_unwritten_receipt(&self, record: &Record) -> bool {
        self.receipts.unwritten(record).is_some()
    }

    /// Writes the receipts that are kept; whether all of them could be.
    pub async fn write_receipts(&self) -> bool {
        loop {
            let receipts = self.receipts.some();
            if receipts.is_empty() {
                return true;
            }
            let written = self.record_receipts(&receipts).await;
            crash_point!("noted");
            if let Err(error) = written {
                warn!(count = receipts.len(), %error, "sent, but not noted yet");
                return self.write_each(receipts).await;
            }
        }
    }

    /// Writes one by one, so that a row that somebody holds locked costs only itself. A ledger that
    /// does not answer ends it.
    async fn write_each(&self, receipts: Vec<DeliveryReceipt>) -> bool {
        let mut all = true;
        for receipt in receipts {
            match self.record_receipts(&[receipt]).await {
                Ok(()) => {}
                Err(LedgerError::Locked(_) | LedgerError::Inconsistent(_)) => all = false,
                Err(LedgerError::NotExecuted(_) | LedgerError::OutcomeUnknown(_)) => return false,
            }
        }
        all
    }

    /// Writes the receipt of a row now, if one is kept: for a caller that changes the row next.
    ///
    /// # Errors
    /// [`LedgerError`]; it is tried again.
    pub async fn write_receipt_of(&self, record: &Record) -> Result<()> {
        match self.receipts.unwritten(record) {
            Some(receipt) => self.record_receipts(&[receipt]).await,
            None => Ok(()),
        }
    }

    /// Notes what became of deliveries, but for those of rows that have been owed anew since.
    ///
    /// # Errors
    /// [`LedgerError`]; noting it again is safe.
    pub async fn record_receipts(&self, receipts: &[DeliveryReceipt]) -> Result<()> {
        const RECORD_RECEIPTS: Statement = Statement::new(
            "ledger.record_receipts",
            "UPDATE hitl_request AS r
                SET delivery = m.delivery, listeners = m.listeners, sent_at = m.sent_at,
                    sent_to = m.sent_to
               FROM UNNEST($1::text[], $2::timestamptz[], $3::text[], $4::bigint[],
                           $5::timestamptz[], $6::text[], $7::text[])
                    AS m(request_id, owed_since, delivery, listeners, sent_at, sent_to, tenant_id)
              WHERE r.tenant_id = m.tenant_id AND r.request_id = m.request_id
                AND r.owed_since = m.owed_since AND r.delivery = 'owed'",
        )
        .on_sqlite(
            "UPDATE hitl_request
                SET delivery = $3, listeners = $4, sent_at = $5, sent_to = $6
              WHERE tenant_id = $7 AND request_id = $1 AND owed_since = $2
                AND delivery = 'owed'",
        );
        // In one order everywhere, so that two batches cannot wait for each other.
        let mut sorted = receipts.iter().collect::<Vec<_>>();
        sorted.sort_unstable_by_key(|receipt| (receipt.tenant.as_str(), receipt.request.as_str()));
        let values = |receipt: &DeliveryReceipt| {
            let DeliveryReceipt { tenant, request, owed_since, result, at } = receipt;
            let delivery = delivery_str(result.delivery);
            let sent_to = result.replication_id.as_ref();
            values![request, *owed_since, delivery, result.listeners, *at, sent_to, tenant].to_vec()
        };
        let rows = sorted.into_iter().map(values).collect::<Vec<_>>();
        self.engine.execute_many(RECORD_RECEIPTS, &rows).await?;
        self.receipts.written(receipts);
        Ok(())
    }
}

fn delivery_str(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Owed => "owed",
        Delivery::Sent => "sent",
        Delivery::Superseded => "superseded",
    }
}
