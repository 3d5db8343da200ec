//! Deliveries: which signals are owed, which process holds their leases, and the results. A
//! signal's lease is the column `due_at`: until that time no other process sends the signal.
//!
//! `hitl_delivery` is narrow and has few indexes, so that sending a signal does not rewrite its request. A
//! decision writes its row (`writing`); the purge of the request deletes it (`retention`).

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use const_format::{formatcp, str_replace};
use tracing::warn;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::{LedgerError, Result};
use super::request_row::{
    AND_REQUEST, AND_REQUEST_ON_SQLITE, ASKED_AT, CURRENT_COLUMNS, DELIVERY, DELIVERY_COLUMNS,
    OWED_ANEW, OWED_SINCE, REQUEST_COLUMNS, SENT_TO,
};
use crate::domain::ids::{RequestId, TenantId, UserId};
use crate::domain::record::{Delivery, DeliveryReceipt, Record};
use crate::domain::signal::SIGNAL_TTL_SECONDS;

/// How long a process that decides a request, or claims its row, has to send the signal. After that
/// a relay may claim the row. Longer than any call to Redis. Short, so that the signals of a killed
/// replica are soon sent by another.
pub const LEASE: TimeDelta = TimeDelta::milliseconds(3000);

/// The most lost signals that one statement marks as owed again, so that it ends before its
/// time-out.
pub const LOST_AT_ONCE: u32 = 1000;

impl Ledger {
    /// Takes the leases of up to `limit` rows whose delivery is due, for [`LEASE`]; the earliest
    /// first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn claim_owed(&self, now: DateTime<Utc>, limit: i64) -> Result<Vec<Record>> {
        const DUE: &str = "\
            SELECT tenant_id, request_id FROM hitl_delivery
             WHERE delivery = 'owed' AND due_at >= '-infinity' AND due_at <= $1
             ORDER BY due_at, request_id LIMIT $3";
        const TAKE: &str = "UPDATE hitl_delivery SET due_at = $2, attempts = attempts + 1
                             WHERE (tenant_id, request_id)";
        // One statement: a second one to read the requests might end after the leases.
        const CLAIM_OWED: Statement = Statement::new(
            "ledger.claim_owed",
            formatcp!(
                "WITH d AS ({TAKE} IN ({DUE} FOR UPDATE SKIP LOCKED) RETURNING {DELIVERY_COLUMNS})
                 SELECT {CURRENT_COLUMNS} FROM d {AND_REQUEST}"
            ),
        )
        .on_sqlite(formatcp!(
            "SELECT {CURRENT_COLUMNS} FROM hitl_delivery AS d {AND_REQUEST_ON_SQLITE}
              WHERE (d.tenant_id, d.request_id) IN ({DUE})"
        ))
        .then(&[formatcp!("{TAKE} IN ({DUE})")]);
        let began = Instant::now();
        let rows = self.engine.fetch_all(CLAIM_OWED, &values![now, now + LEASE, limit]).await?;
        // A row that cannot be read is skipped, so that the other signals are still sent.
        let readable = |row| {
            self.record(row, began)
                .inspect_err(|error| tracing::error!(%error, "a row cannot be sent"))
                .ok()
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Gives a lease back: the signal is due again at `due_at`.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. The lease then expires by itself.
    pub async fn postpone(&self, record: &Record, due_at: DateTime<Utc>) -> Result<()> {
        const POSTPONE: Statement = Statement::new(
            "ledger.postpone",
            "UPDATE hitl_delivery SET due_at = $3
              WHERE tenant_id = $4 AND request_id = $1 AND owed_since = $2
                AND delivery || '' = 'owed'",
        );
        let values = values![&record.id, record.owed_since, due_at, &record.tenant];
        self.engine.execute(POSTPONE, &values).await.map(drop)
    }

    /// Marks a signal as owed again, and takes its lease for [`LEASE`]. `None` when the signal has
    /// been marked as owed since `seen` was read, or is owed and was never sent.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn owe_again(&self, seen: &Record, now: DateTime<Utc>) -> Result<Option<Record>> {
        // The request's row is the lock: the purge, and whoever notes something of an answered request, look
        // at its `owed_since` again once they have the row. Of a request without a delivery, which an older
        // release has decided, the request's row says what was sent.
        const IS_DONE: &str = formatcp!(
            "r.tenant_id = $5 AND r.request_id = $1 AND {OWED_SINCE} = $2
             AND ({DELIVERY} <> 'owed' OR {SENT_TO} IS NOT NULL)"
        );
        const NOTE: &str = "UPDATE hitl_request AS r SET owed_since = $3, asked_again_until = NULL";
        const OWE: &str = formatcp!(
            "INSERT INTO hitl_delivery (tenant_id, request_id, delivery, owed_since, due_at)
             SELECT r.tenant_id, r.request_id, 'owed', $3, $4 FROM {{requests}}
             {OWED_ANEW}
              WHERE hitl_delivery.owed_since = $2
                AND (hitl_delivery.delivery <> 'owed' OR hitl_delivery.sent_to IS NOT NULL)"
        );
        const OWE_AGAIN: Statement = Statement::new(
            "ledger.owe_again",
            formatcp!(
                "WITH r AS ({NOTE} WHERE {IS_DONE} RETURNING {REQUEST_COLUMNS}),
                      d AS ({OWE_NOTED} RETURNING {DELIVERY_COLUMNS})
                 SELECT {CURRENT_COLUMNS}
                   FROM r JOIN d ON d.tenant_id = r.tenant_id AND d.request_id = r.request_id"
            ),
        )
        .on_sqlite(str_replace!(
            formatcp!(
                "SELECT {CURRENT_COLUMNS} FROM hitl_request AS r
                   JOIN (SELECT 'owed' AS delivery, $3 AS owed_since, NULL AS listeners,
                                NULL AS sent_to, NULL AS sent_at) AS d
                  WHERE {IS_DONE}"
            ),
            "r.asked_again_until",
            "NULL AS asked_again_until"
        ))
        .then(&[
            str_replace!(OWE, "{requests}", formatcp!("hitl_request AS r WHERE {IS_DONE}")),
            formatcp!("{NOTE} WHERE r.tenant_id = $5 AND r.request_id = $1"),
        ]);
        const OWE_NOTED: &str = str_replace!(OWE, "{requests}", "r");
        let values = values![&seen.id, seen.owed_since, now, now + LEASE, &seen.tenant];
        self.request(OWE_AGAIN, &values).await
    }

    /// Marks as owed again up to [`LOST_AT_ONCE`] signals that Redis may have lost, the newest
    /// first. These are the signals whose replication id is not among `replication_ids`, and whose
    /// keys in Redis would not have expired yet. Returns the number of signals.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn owe_lost(&self, replication_ids: &[String], now: DateTime<Utc>) -> Result<u64> {
        // What has no replication id is no signal of Redis. `delivery || ''` matches no index: Postgres
        // looks each row up by its key.
        const OWE_LOST: Statement = Statement::new(
            "ledger.owe_lost",
            "UPDATE hitl_delivery SET delivery = 'owed', due_at = $1
              WHERE (tenant_id, request_id) IN (
                  SELECT tenant_id, request_id FROM hitl_delivery
                   WHERE delivery = 'sent' AND sent_at <= 'infinity' AND sent_at > $2
                     AND $3 NOT LIKE '%' || sent_to || '%'
                   ORDER BY sent_at DESC LIMIT $4
              ) AND delivery || '' = 'sent'",
        );
        let since = now - TimeDelta::seconds(i64::try_from(SIGNAL_TTL_SECONDS).unwrap_or(0));
        let values = values![now, since, replication_ids.join(" "), i64::from(LOST_AT_ONCE)];
        self.engine.execute(OWE_LOST, &values).await
    }

    /// Up to `limit` requests of Redis whose signals no agent has received: published to no
    /// subscriber after `sent_after`, and not read over HTTP. Only requests that were made after
    /// `asked_after`; the latest signal first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn unheard(
        &self,
        sent_after: DateTime<Utc>,
        asked_after: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<Record>> {
        const READ: &str = formatcp!(
            "SELECT {CURRENT_COLUMNS} FROM hitl_delivery AS d {AND_REQUEST}
              WHERE d.delivery = 'sent' AND d.sent_at <= 'infinity' AND d.sent_at > $1
                AND d.listeners = 0 AND {ASKED_AT} > $2
                AND r.origin <> 'http' AND r.heard_at IS NULL AND r.decided_at IS NOT NULL
              ORDER BY d.sent_at DESC LIMIT $3"
        );
        const UNHEARD: Statement = Statement::new("ledger.unheard", READ).on_sqlite(str_replace!(
            READ,
            AND_REQUEST,
            AND_REQUEST_ON_SQLITE
        ));
        self.requests(UNHEARD, &values![sent_after, asked_after, limit]).await
    }

    /// Marks a signal that no agent has received as owed again, and takes its lease for [`LEASE`].
    /// `None` when an agent has received it, or when it has been marked as owed since `seen` was
    /// read.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn claim_unheard(&self, seen: &Record, now: DateTime<Utc>) -> Result<Option<Record>> {
        // `listeners` stays 0, which tells the relay that this signal was published before.
        // The request's row is locked meanwhile, so that nobody notes that it was heard.
        const UNHEARD: &str = "\
            r.tenant_id = $5 AND r.request_id = $1 AND r.origin || '' = 'redis' AND r.heard_at IS NULL";
        const SENT: &str = "\
            d.tenant_id = $5 AND d.request_id = $1 AND d.owed_since = $2 AND d.delivery || '' = 'sent'
            AND d.listeners = 0";
        const TAKE: &str = "UPDATE hitl_delivery AS d
                   SET delivery = 'owed', owed_since = $3, due_at = $4, attempts = 0";
        const CLAIM_UNHEARD: Statement = Statement::new(
            "ledger.claim_unheard",
            formatcp!(
                "WITH r AS (SELECT {REQUEST_COLUMNS} FROM hitl_request AS r
                             WHERE {UNHEARD} FOR NO KEY UPDATE),
                      d AS ({TAKE} WHERE {SENT} AND (SELECT COUNT(*) FROM r) = 1
                            RETURNING {DELIVERY_COLUMNS})
                 SELECT {CURRENT_COLUMNS}
                   FROM r JOIN d ON d.tenant_id = r.tenant_id AND d.request_id = r.request_id"
            ),
        )
        .on_sqlite(str_replace!(
            str_replace!(
                formatcp!(
                    "SELECT {CURRENT_COLUMNS} FROM hitl_request AS r
                       JOIN hitl_delivery AS d WHERE {UNHEARD} AND {SENT}"
                ),
                "COALESCE(d.delivery, r.delivery)",
                "'owed'"
            ),
            "COALESCE(d.owed_since, r.owed_since)",
            "$3"
        ))
        .then(&[formatcp!("{TAKE} WHERE {SENT}")]);
        let values = values![&seen.id, seen.owed_since, now, now + LEASE, &seen.tenant];
        self.request(CLAIM_UNHEARD, &values).await
    }

    /// Stores in `heard_at` that an agent of this user has read the signal of a request of Redis
    /// over HTTP. The first time is kept. Returns `false`, and stores nothing, when this tenant and
    /// user have no request of Redis with this id.
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

    /// Keeps the receipt of a delivery in memory until it is written. From now on every read of the
    /// row includes the receipt.
    pub fn keep_receipt(&self, receipt: DeliveryReceipt) {
        self.receipts.add(receipt);
    }

    /// Waits until a receipt is added by [`Self::keep_receipt`].
    pub async fn receipt_kept(&self) {
        self.receipts.added.notified().await;
    }

    /// Whether this row's delivery has a receipt that is not written yet.
    #[must_use]
    pub fn has_unwritten_receipt(&self, record: &Record) -> bool {
        self.receipts.unwritten(record).is_some()
    }

    /// Writes all receipts that are kept in memory. Returns `false` when a receipt could not be
    /// written.
    pub async fn write_receipts(&self) -> bool {
        loop {
            let receipts = self.receipts.next_batch();
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

    /// Writes receipts one by one, so that a locked row delays only its own receipt. Stops when the
    /// ledger does not answer. Returns whether all were written.
    async fn write_each(&self, receipts: Vec<DeliveryReceipt>) -> bool {
        let mut all_written = true;
        for receipt in receipts {
            match self.record_receipts(&[receipt]).await {
                Ok(()) => {}
                Err(LedgerError::Locked(_) | LedgerError::Inconsistent(_)) => all_written = false,
                Err(LedgerError::NotExecuted(_) | LedgerError::OutcomeUnknown(_)) => return false,
            }
        }
        all_written
    }

    /// Writes the receipt of this row now, if there is one: for a caller that changes the row next.
    ///
    /// # Errors
    /// [`LedgerError`] when the receipt was not written. It stays in memory and is written later.
    pub async fn write_receipt_of(&self, record: &Record) -> Result<()> {
        match self.receipts.unwritten(record) {
            Some(receipt) => self.record_receipts(&[receipt]).await,
            None => Ok(()),
        }
    }

    /// Writes the results of deliveries to their rows. A row that is no longer owed, or that has
    /// been marked as owed again since (another `owed_since`), is not changed.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Writing the receipts again is safe.
    pub async fn record_receipts(&self, receipts: &[DeliveryReceipt]) -> Result<()> {
        const RECORD_RECEIPTS: Statement = Statement::new(
            "ledger.record_receipts",
            "UPDATE hitl_delivery AS d
                SET delivery = m.delivery, listeners = m.listeners, sent_at = m.sent_at,
                    sent_to = m.sent_to
               FROM UNNEST($1::text[], $2::timestamptz[], $3::text[], $4::bigint[],
                           $5::timestamptz[], $6::text[], $7::text[])
                    AS m(request_id, owed_since, delivery, listeners, sent_at, sent_to, tenant_id)
              WHERE d.tenant_id = m.tenant_id AND d.request_id = m.request_id
                AND d.owed_since = m.owed_since AND d.delivery || '' = 'owed'",
        )
        .on_sqlite(
            "UPDATE hitl_delivery
                SET delivery = $3, listeners = $4, sent_at = $5, sent_to = $6
              WHERE tenant_id = $7 AND request_id = $1 AND owed_since = $2
                AND delivery = 'owed'",
        );
        // Every replica locks the rows in the same order, so that two batches cannot deadlock.
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
        self.receipts.mark_written(receipts);
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
