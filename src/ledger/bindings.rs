//! What binds requests, `hitl_request.binding`: a key that stands for a version of the policy file and the
//! rules of it that bind. Lists find out from the keys what a person may decide, without reading requests.
//!
//! Every key is in `hitl_binding`, with its rules, before a row has it. The rows of an earlier version of the file are found
//! by the index `hitl_request_bound` and bound anew.

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use super::requests::{REQUEST_COLUMNS, RequestRow};
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::record::{Record, Ruling};

/// The most keys of one version that lists ask about. What further keys bind is in no list of what a
/// person may decide.
const MAX_BINDINGS: i64 = 1000;

/// A pending request that is bound by other rules now.
#[derive(Clone, Debug)]
pub struct Rebound {
    /// Its tenant.
    pub tenant: TenantId,
    /// The request.
    pub id: RequestId,
    /// The content that was judged.
    pub content_hash: String,
    /// What the policy file says of it now.
    pub ruling: Ruling,
    /// When it expires now, if that is earlier than before, UTC.
    pub expires_at: DateTime<Utc>,
}

/// A pending request that could not be read.
type Unread = (TenantId, RequestId);

impl Ledger {
    /// Makes the key of a ruling known, before a row is written with it.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Nothing else was written.
    pub(super) async fn know_binding(&self, ruling: &Ruling) -> Result<()> {
        const KNOW: Statement = Statement::new(
            "ledger.know_binding",
            "INSERT INTO hitl_binding (policy_version, binding, rules) VALUES ($1, $2, $3)
             ON CONFLICT DO NOTHING",
        );
        let Ruling { version: Some(version), binding: Some(binding), rules: Some(rules), .. } =
            ruling
        else {
            return Ok(());
        };
        if !self.bindings.has(binding) {
            self.engine.execute(KNOW, &values![version, binding, rules]).await?;
            self.bindings.add(binding);
        }
        Ok(())
    }

    /// The keys of this version of the policy file that any row has or has had, each with its rules.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn bindings_of(&self, version: &str) -> Result<Vec<(String, String)>> {
        const BINDINGS_OF: Statement = Statement::new(
            "ledger.bindings_of",
            "SELECT binding, rules FROM hitl_binding WHERE policy_version = $1
              ORDER BY binding LIMIT $2",
        );
        self.engine.fetch_all(BINDINGS_OF, &values![version, MAX_BINDINGS]).await
    }

    /// The keys that pending requests have now; the empty text stands for none. Reads one row of each key.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn pending_bindings(&self) -> Result<Vec<String>> {
        const FIRST: &str = "SELECT MIN(COALESCE(binding, '')) FROM hitl_request
                              WHERE status = 'pending' AND session_id >= ''";
        const PENDING_BINDINGS: Statement = Statement::new(
            "ledger.pending_bindings",
            formatcp!(
                "WITH RECURSIVE keys(binding) AS (
                    SELECT ({FIRST})
                    UNION ALL
                    SELECT ({FIRST} AND COALESCE(binding, '') > keys.binding) FROM keys
                     WHERE keys.binding IS NOT NULL
                 )
                 SELECT binding FROM keys WHERE binding IS NOT NULL LIMIT 10000"
            ),
        );
        let rows: Vec<(String,)> = self.engine.fetch_all(PENDING_BINDINGS, &[]).await?;
        Ok(rows.into_iter().map(|(binding,)| binding).collect())
    }

    /// Up to `limit` pending requests with this key, of all tenants, and those among them whose rows cannot
    /// be read.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn bound_by(&self, binding: &str, limit: i64) -> Result<(Vec<Record>, Vec<Unread>)> {
        const BOUND_BY: Statement = Statement::new(
            "ledger.bound_by",
            formatcp!(
                "SELECT {REQUEST_COLUMNS} FROM hitl_request
                  WHERE status = 'pending' AND session_id >= '' AND COALESCE(binding, '') = $1
                  ORDER BY COALESCE(binding, ''), tenant_id, request_id LIMIT $2"
            ),
        );
        let rows: Vec<RequestRow> =
            self.engine.fetch_all(BOUND_BY, &values![binding, limit]).await?;
        let (mut records, mut unread) = (Vec::new(), Vec::new());
        for row in rows {
            let key = row.key();
            match (row.into_record(), key) {
                (Ok(record), _) => records.push(record),
                (Err(_edited), Some(key)) => unread.push(key),
                (Err(_edited), None) => {}
            }
        }
        Ok((records, unread))
    }

    /// Stores what the policy file now says of pending requests whose content is as it was judged.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Storing again is safe.
    pub async fn rebind(&self, rows: &[Rebound]) -> Result<()> {
        const REBIND: Statement = Statement::new(
            "ledger.rebind",
            "UPDATE hitl_request AS r
                SET rule = m.by_rule, policy_version = m.by_version, binding = m.bound,
                    risk = m.of_risk, approvals_needed = m.needed, approvals = m.counted,
                    expires_at = CASE WHEN m.until < r.expires_at THEN m.until
                                      ELSE r.expires_at END
               FROM (SELECT m.* FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[],
                                            $5::text[], $6::text[], $7::text[], $8::bigint[],
                                            $9::bigint[], $10::timestamptz[])
                                 AS m(of_tenant, of_request, content, by_rule, by_version, bound,
                                      of_risk, needed, counted, until)
                       JOIN hitl_request l
                         ON l.tenant_id = m.of_tenant AND l.request_id = m.of_request
                        FOR UPDATE OF l SKIP LOCKED) AS m
              WHERE r.tenant_id = m.of_tenant AND r.request_id = m.of_request
                AND r.status = 'pending' AND r.content_hash = m.content",
        )
        .on_sqlite(
            "UPDATE hitl_request
                SET rule = $4, policy_version = $5, binding = $6, risk = $7,
                    approvals_needed = $8, approvals = $9,
                    expires_at = CASE WHEN $10 < expires_at THEN $10 ELSE expires_at END
              WHERE tenant_id = $1 AND request_id = $2 AND status = 'pending'
                AND content_hash = $3",
        );
        let mut sorted = rows.iter().collect::<Vec<_>>();
        sorted.sort_unstable_by_key(|row| (row.tenant.as_str(), row.id.as_str()));
        for row in &sorted {
            self.know_binding(&row.ruling).await?;
        }
        let values = |row: &&Rebound| {
            let Rebound { tenant, id, content_hash, ruling, expires_at } = *row;
            values![
                tenant,
                id,
                content_hash,
                ruling.rule.as_ref(),
                ruling.version.as_ref(),
                ruling.binding.as_ref(),
                ruling.risk.as_ref(),
                ruling.approvals_needed,
                ruling.approvals,
                *expires_at,
            ]
            .to_vec()
        };
        let rows = sorted.iter().map(values).collect::<Vec<_>>();
        self.engine.execute_many(REBIND, &rows).await
    }

    /// Stores that nobody can decide pending requests whose rows cannot be read.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Storing again is safe.
    pub async fn bind_unread(&self, unread: &[Unread], ruling: &Ruling) -> Result<()> {
        const BIND_UNREAD: Statement = Statement::new(
            "ledger.bind_unread",
            "UPDATE hitl_request SET binding = $3, policy_version = $4
              WHERE tenant_id = $1 AND request_id = $2 AND status = 'pending'",
        );
        self.know_binding(ruling).await?;
        for (tenant, id) in unread {
            let (binding, version) = (ruling.binding.as_ref(), ruling.version.as_ref());
            self.engine.execute(BIND_UNREAD, &values![tenant, id, binding, version]).await?;
        }
        Ok(())
    }
}
