//! Withdraws a pending request for its agent.

use tracing::info;

use super::error::Result;
use super::load::ledger_candidate;
use super::notify::notify;
use super::read::{Found, find};
use crate::domain::approver::Caller;
use crate::domain::decision::State;
use crate::domain::ids::RequestId;
use crate::domain::printable::printable;
use crate::domain::record::Record;
use crate::domain::rules::{self, Refusal};
use crate::ledger::{Change, Recorded, Writing};
use crate::observe::metrics;
use crate::state::AppState;

/// Withdraws a pending request: nobody can decide it any more. Withdrawing it again changes nothing.
///
/// # Errors
/// [`Refusal::NotTheOwner`]; [`Refusal::AlreadyDecided`] with the decision, if a person decided first;
/// [`Refusal::Expired`]; otherwise those of [`find`] and of the ledger.
pub async fn cancel(app: &AppState, caller: &Caller, id: &RequestId) -> Result<Record> {
    let now = app.clock.now();
    let candidate = match find(app, caller, id).await? {
        Found::InLedger(record) if record.state == State::Pending => ledger_candidate(*record)?,
        Found::InLedger(record) => return settle(*record, caller),
        Found::InRedis(candidate) => *candidate,
    };
    rules::withdraw(&candidate, caller, now)?;
    let writing = Writing::new(&candidate, Change::Withdraw, caller, now);
    match app.ledger.record_outcome(&writing).await? {
        Recorded::Won(record) => {
            info!(request_id = %id, session_id = printable(record.session.as_str()), "withdrawn by its agent");
            metrics::closed(&record);
            notify(app, &record);
            Ok(record)
        }
        Recorded::Lost(record) => settle(record, caller),
        // A withdrawal has neither a vote nor a grant.
        Recorded::MovedOn | Recorded::VotesChanged | Recorded::GrantEnded => {
            Err(Refusal::MovedOn.into())
        }
        Recorded::AnothersSession => Err(Refusal::AnothersSession.into()),
        Recorded::IdTaken => Err(Refusal::NotFound.into()),
    }
}

/// The answer about a request that was closed before it could be withdrawn.
fn settle(record: Record, caller: &Caller) -> Result<Record> {
    rules::judge_lost_withdrawal(&record, caller)?;
    Ok(record)
}
