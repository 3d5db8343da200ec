//! Grants, table `hitl_grant`: finding, listing and ending them. They are written with the approvals that
//! make them (`writing`). A grant that was ended or has expired stays until the purge: requests name it.

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use super::request_row::names;
use crate::domain::approver::{Caller, Memberships, Role};
use crate::domain::grant::{Grant, Scope};
use crate::domain::ids::{GrantId, RequestId, SessionId, TenantId, UserId};
use crate::domain::record::Candidate;
use crate::domain::request::{Origin, said};

/// The most grants that are looked at for one request, those first that were made last. Each is a person's
/// approval of the last hours.
const MAX_COVERING: i64 = 10_000;
/// The most of them that are asked whether they approve it, each of other people or tokens.
const MAX_ASKED: i64 = 1000;
/// The most grants of a list.
pub const MAX_LISTED: i64 = 1000;

const COLUMNS: &str = "\
    tenant_id, grant_id, request_id, granter, granter_roles, granter_groups, requester, origin,
    session_id, scope, action_type, said, rule, policy_version, token_id, created_at, expires_at";

#[derive(sqlx::FromRow)]
struct GrantRow {
    tenant_id: String,
    grant_id: String,
    request_id: String,
    granter: String,
    granter_roles: String,
    granter_groups: String,
    requester: String,
    origin: String,
    session_id: String,
    scope: String,
    action_type: String,
    said: Option<String>,
    rule: Option<String>,
    policy_version: Option<String>,
    token_id: Option<String>,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl GrantRow {
    /// `None` for a row that somebody has edited by hand: it approves nothing.
    fn into_grant(self) -> Option<Grant> {
        Some(Grant {
            id: GrantId::parse(self.grant_id).ok()?,
            tenant: TenantId::parse(self.tenant_id).ok()?,
            request: RequestId::parse(self.request_id).ok()?,
            granter: UserId::parse(self.granter).ok()?,
            memberships: Memberships {
                roles: names(Some(&self.granter_roles)),
                groups: names(Some(&self.granter_groups)),
            },
            requester: UserId::parse(self.requester).ok()?,
            origin: match self.origin.as_str() {
                "http" => Origin::Http,
                "redis" => Origin::Redis,
                _ => return None,
            },
            scope: Scope::parse(&self.scope)?,
            session: SessionId::parse(self.session_id).ok()?,
            action_type: self.action_type,
            said: self.said,
            rule: self.rule,
            version: self.policy_version,
            token_id: self.token_id,
            created_at: self.created_at,
            expires_at: self.expires_at,
        })
    }
}

impl Ledger {
    /// The grants in force that cover a request of this tenant, those that stand longest first.
    ///
    /// Of grants on which every policy has the same answer, only the last one that was made: those of one
    /// person with the same roles, groups and token, that let the same be remembered. So those that approve
    /// nothing now, however many, hide none that does.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn covering_grants(
        &self,
        candidate: &Candidate,
        tenant: &TenantId,
        now: DateTime<Utc>,
    ) -> Result<Vec<Grant>> {
        // `tenant_id || ''`, because `tenant_id` would match the index `hitl_grant_tenant`, and Postgres
        // might read all grants of the tenant instead of the requester's.
        const COVERING: Statement = Statement::new(
            "ledger.covering_grants",
            formatcp!(
                "SELECT {COLUMNS} FROM (
                    SELECT {COLUMNS}, ROW_NUMBER() OVER (
                        PARTITION BY granter, granter_roles, granter_groups, token_id,
                                     CASE WHEN said IS NULL THEN 1 ELSE 0 END
                        ORDER BY created_at DESC, expires_at DESC) AS place
                      FROM (
                        SELECT {COLUMNS} FROM hitl_grant
                         WHERE tenant_id || '' = $1 AND requester = $2 AND action_type = $3
                           AND expires_at > $4 AND expires_at <= 'infinity' AND ended_at IS NULL
                           AND origin = $5 AND (scope = 'requester' OR session_id = $6)
                           AND (said IS NULL OR said = $7)
                           AND (origin = 'http' OR created_at <= $8)
                         ORDER BY created_at DESC LIMIT $9) AS covering) AS placed
                  WHERE place = 1 ORDER BY expires_at DESC LIMIT $10"
            ),
        );
        let Candidate { request, user, origin, created_at, .. } = candidate;
        let Some(requester) = user else { return Ok(Vec::new()) };
        let origin = if *origin == Origin::Http { "http" } else { "redis" };
        let values = values![
            tenant,
            requester,
            &request.action_type,
            now,
            origin,
            &request.session,
            said(&request.document),
            *created_at,
            MAX_COVERING,
            MAX_ASKED
        ];
        let rows: Vec<GrantRow> = self.engine.fetch_all(COVERING, &values).await?;
        Ok(rows.into_iter().filter_map(GrantRow::into_grant).collect())
    }

    /// Whether nobody has ended a grant, and it has not expired.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn is_in_force(
        &self,
        tenant: &TenantId,
        id: &GrantId,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        const IS_IN_FORCE: Statement = Statement::new(
            "ledger.is_grant_in_force",
            "SELECT grant_id FROM hitl_grant
              WHERE tenant_id = $1 AND grant_id = $2 AND ended_at IS NULL AND expires_at > $3",
        );
        let values = values![tenant, id, now];
        let found: Option<(String,)> = self.engine.fetch_optional(IS_IN_FORCE, &values).await?;
        Ok(found.is_some())
    }

    /// The grant with this id, whether or not it is in force.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn find_grant(&self, tenant: &TenantId, id: &GrantId) -> Result<Option<Grant>> {
        const FIND_GRANT: Statement = Statement::new(
            "ledger.find_grant",
            formatcp!("SELECT {COLUMNS} FROM hitl_grant WHERE tenant_id = $1 AND grant_id = $2"),
        );
        let row: Option<GrantRow> =
            self.engine.fetch_optional(FIND_GRANT, &values![tenant, id]).await?;
        Ok(row.and_then(GrantRow::into_grant))
    }

    /// The grants in force that a caller made, those that stand longest first: at most `MAX_LISTED`. For
    /// an admin those of everybody of the tenant.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn grants_of(&self, caller: &Caller, now: DateTime<Utc>) -> Result<Vec<Grant>> {
        // `tenant_id || ''` for the reason given in `covering_grants`.
        const OF_GRANTER: Statement = Statement::new(
            "ledger.grants_of_granter",
            formatcp!(
                "SELECT {COLUMNS} FROM hitl_grant
                  WHERE tenant_id || '' = $1 AND expires_at > $2 AND expires_at <= 'infinity'
                    AND ended_at IS NULL AND granter = $4
                  ORDER BY expires_at DESC LIMIT $3"
            ),
        );
        const OF_TENANT: Statement = Statement::new(
            "ledger.grants_of_tenant",
            formatcp!(
                "SELECT {COLUMNS} FROM hitl_grant
                  WHERE tenant_id = $1 AND expires_at > $2 AND expires_at <= 'infinity'
                    AND ended_at IS NULL
                  ORDER BY expires_at DESC LIMIT $3"
            ),
        );
        let tenant = &caller.tenant;
        let rows: Vec<GrantRow> = if caller.role == Role::Admin {
            self.engine.fetch_all(OF_TENANT, &values![tenant, now, MAX_LISTED]).await?
        } else {
            let values = values![tenant, now, MAX_LISTED, &caller.user];
            self.engine.fetch_all(OF_GRANTER, &values).await?
        };
        Ok(rows.into_iter().filter_map(GrantRow::into_grant).collect())
    }

    /// Ends a grant that the caller made, or as an admin one of the tenant. The first end is kept. `None`
    /// if there is no such grant.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Ending again is safe.
    pub async fn end_grant(
        &self,
        caller: &Caller,
        id: &GrantId,
        now: DateTime<Utc>,
    ) -> Result<Option<Grant>> {
        const END_GRANT: Statement = Statement::new(
            "ledger.end_grant",
            formatcp!(
                "UPDATE hitl_grant
                    SET ended_by = CASE WHEN ended_at IS NULL THEN $3 ELSE ended_by END,
                        ended_at = COALESCE(ended_at, $5)
                  WHERE tenant_id = $1 AND grant_id = $2 AND (granter = $3 OR $4)
                  RETURNING {COLUMNS}"
            ),
        );
        let is_admin = caller.role == Role::Admin;
        let values = values![&caller.tenant, id, &caller.user, is_admin, now];
        let row: Option<GrantRow> = self.engine.fetch_optional(END_GRANT, &values).await?;
        Ok(row.and_then(GrantRow::into_grant))
    }
}
