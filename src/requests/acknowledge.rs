//! Records that an agent has acted on a decision.

use super::error::Result;
use super::read::find;
use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;
use crate::domain::record::Record;
use crate::domain::rules::{Refusal, may_write};
use crate::state::AppState;

/// Records that the agent has acted on an outcome. Repeating this changes nothing.
///
/// # Errors
/// [`Refusal::NotTheOwner`]; [`Refusal::Undecided`] while the request is pending; otherwise those of
/// [`find`] and of the ledger.
pub async fn acknowledge(app: &AppState, caller: &Caller, id: &RequestId) -> Result<Record> {
    if let Some(record) = app.ledger.acknowledge(caller, id, app.clock.now()).await? {
        return Ok(record);
    }
    let found = find(app, caller, id).await?;
    if !may_write(found.user(), caller) {
        return Err(Refusal::NotTheOwner.into());
    }
    Err(Refusal::Undecided.into())
}
