//! Quotas: pending requests and registered bytes, the two quantities that limit registrations.

use chrono::{DateTime, Utc};

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use crate::domain::ids::{TenantId, UserId};

impl Ledger {
    /// The number of pending requests that were registered over HTTP: of a tenant, or of one user
    /// of the tenant. Stops counting at `limit`.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn count_pending(
        &self,
        tenant: &TenantId,
        user: Option<&UserId>,
        limit: u64,
    ) -> Result<u64> {
        const OF_PERSON: Statement = Statement::new(
            "ledger.count_pending_of_person",
            "SELECT COUNT(*) FROM (
                SELECT 1 FROM hitl_request
                 WHERE tenant_id = $1 AND user_id = $2 AND status = 'pending' AND origin = 'http'
                 ORDER BY created_at LIMIT $3
             ) AS pending",
        );
        const OF_TENANT: Statement = Statement::new(
            "ledger.count_pending_of_tenant",
            "SELECT COUNT(*) FROM (
                SELECT 1 FROM hitl_request
                 WHERE tenant_id = $1 AND status = 'pending' AND origin = 'http'
                 ORDER BY user_id, created_at LIMIT $2
             ) AS pending",
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (count,): (i64,) = match user {
            Some(user) => self.engine.fetch_one(OF_PERSON, &values![tenant, user, limit]).await?,
            None => self.engine.fetch_one(OF_TENANT, &values![tenant, limit]).await?,
        };
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Adds to the bytes that a tenant has registered in an hour, and returns the sum. A later
    /// `hour` starts a new sum. An earlier `hour`, from a replica whose clock is behind, adds to
    /// the sum of the stored hour.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn add_usage(
        &self,
        tenant: &TenantId,
        hour: DateTime<Utc>,
        bytes: u64,
    ) -> Result<u64> {
        const ADD_USAGE: Statement = Statement::new(
            "ledger.add_usage",
            "INSERT INTO hitl_tenant_usage (tenant_id, hour, bytes) VALUES ($1, $2, $3)
             ON CONFLICT (tenant_id) DO UPDATE SET
                bytes = CASE
                    WHEN hitl_tenant_usage.hour < excluded.hour THEN excluded.bytes
                    ELSE hitl_tenant_usage.bytes + excluded.bytes END,
                hour = CASE
                    WHEN hitl_tenant_usage.hour < excluded.hour THEN excluded.hour
                    ELSE hitl_tenant_usage.hour END
             RETURNING bytes",
        );
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let (used,): (i64,) =
            self.engine.fetch_one(ADD_USAGE, &values![tenant, hour, bytes]).await?;
        Ok(u64::try_from(used).unwrap_or(0))
    }
}
