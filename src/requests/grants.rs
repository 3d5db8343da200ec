//! Lists and ends grants: approvals that stand for later requests. They are made by `decide`, and used by
//! `automatic`.

use tracing::info;

use super::error::Result;
use crate::domain::approver::Caller;
use crate::domain::grant::Grant;
use crate::domain::ids::GrantId;
use crate::domain::printable::printable;
use crate::state::AppState;

/// The grants in force that the caller made; for an admin those of everybody of the tenant.
///
/// # Errors
/// `RequestError::Ledger` when the ledger does not answer.
pub async fn list(app: &AppState, caller: &Caller) -> Result<Vec<Grant>> {
    Ok(app.ledger.grants_of(caller, app.clock.now()).await?)
}

/// Ends a grant: it approves nothing that is asked from now on. Ending it again changes nothing. `None` if
/// there is no such grant, or it is another's and the caller is no admin.
///
/// # Errors
/// `RequestError::Ledger` when the ledger does not answer.
pub async fn end(app: &AppState, caller: &Caller, id: &GrantId) -> Result<Option<Grant>> {
    let grant = app.ledger.end_grant(caller, id, app.clock.now()).await?;
    if grant.is_some() {
        info!(grant = %id, user = printable(caller.user.as_str()), "grant ended");
    }
    Ok(grant)
}
