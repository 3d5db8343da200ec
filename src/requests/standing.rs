//! Votes and grants as they stand now: what was said with a token that has been revoked since counts no
//! longer, like what people have said who lost the right to decide.

use chrono::{DateTime, Utc};

use crate::domain::grant::Grant;
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::record::Candidate;
use crate::domain::vote::Vote;
use crate::ledger::LedgerError;
use crate::state::AppState;

/// The votes on a request, the earliest first.
pub(super) async fn votes_on(
    app: &AppState,
    tenant: &TenantId,
    id: &RequestId,
) -> Result<Vec<Vote>, LedgerError> {
    let mut votes = app.ledger.votes_on(tenant, id).await?;
    for vote in &mut votes {
        vote.is_revoked =
            app.tokens.is_revoked(vote.token_id.as_deref(), tenant, &vote.voter, vote.at);
    }
    Ok(votes)
}

/// The grants that cover a request of this tenant.
pub(super) async fn covering_grants(
    app: &AppState,
    candidate: &Candidate,
    tenant: &TenantId,
    now: DateTime<Utc>,
) -> Result<Vec<Grant>, LedgerError> {
    let mut grants = app.ledger.covering_grants(candidate, tenant, now).await?;
    grants.retain(|grant| {
        let token_id = grant.token_id.as_deref();
        !app.tokens.is_revoked(token_id, tenant, &grant.granter, grant.created_at)
    });
    Ok(grants)
}
