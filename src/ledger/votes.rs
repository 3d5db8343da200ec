//! Votes, table `hitl_vote`: reading them. They are written with the row of their request (`writing`),
//! which is their lock.

use chrono::{DateTime, Utc};

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use super::request_row::names;
use crate::domain::approver::Memberships;
use crate::domain::ids::{RequestId, TenantId, UserId};
use crate::domain::vote::Vote;

/// The most votes that are read. Each person has one on a request, and needs the right to it.
const MAX_VOTES: i64 = 1000;

#[derive(sqlx::FromRow)]
struct VoteRow {
    voter: String,
    voted_at: DateTime<Utc>,
    etag: String,
    arguments: Option<String>,
    edited: Option<String>,
    voter_roles: String,
    voter_groups: String,
    rule: Option<String>,
    policy_version: Option<String>,
    token_id: Option<String>,
}

impl Ledger {
    /// The votes on a request, the earliest first.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn votes_on(&self, tenant: &TenantId, id: &RequestId) -> Result<Vec<Vote>> {
        const VOTES_ON: Statement = Statement::new(
            "ledger.votes_on",
            "SELECT voter, voted_at, etag, arguments, edited, voter_roles, voter_groups, rule,
                    policy_version, token_id
               FROM hitl_vote WHERE tenant_id = $1 AND request_id = $2
              ORDER BY voter LIMIT $3",
        );
        let rows: Vec<VoteRow> =
            self.engine.fetch_all(VOTES_ON, &values![tenant, id, MAX_VOTES]).await?;
        let readable = |row: VoteRow| {
            Some(Vote {
                voter: UserId::parse(row.voter).ok()?,
                at: row.voted_at,
                etag: row.etag,
                arguments: row.arguments,
                edited: row.edited,
                memberships: Memberships {
                    roles: names(Some(&row.voter_roles)),
                    groups: names(Some(&row.voter_groups)),
                },
                rule: row.rule,
                version: row.policy_version,
                token_id: row.token_id,
                is_revoked: false,
            })
        };
        let mut votes = rows.into_iter().filter_map(readable).collect::<Vec<_>>();
        votes.sort_by_key(|vote| vote.at);
        Ok(votes)
    }
}
