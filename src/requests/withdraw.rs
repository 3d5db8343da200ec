//! Withdrawing a pending request, by its agent.

use tracing::info;

use super::error::Result;
use super::load::candidate;
use super::notify::notify;
use super::read::{Found, find};
use crate::domain::approver::Caller;
use crate::domain::decision::State;
use crate::domain::ids::RequestId;
use crate::domain::printable::printable;
use crate::domain::record::Record;
use crate::domain::rules::{Refusal, Standing, may_write};
use crate::ledger::{Recorded, Writing};
use crate::observe::metrics;
use crate::state::AppState;

/// Withdraws a pending request: nobody can decide it any more. Withdrawing it again is no matter.
///
/// # Errors
/// [`RequestError`]; [`Refusal::NotTheOwner`]; [`Refusal::AlreadyDecided`] with what stands, if somebody
/// was faster.
pub async fn cancel(app: &AppState, caller: &Caller, id: &RequestId) -> Result<Record> {
    let now = app.clock.now();
    let found = find(app, caller, id).await?;
    if !may_write(found.user(), caller) {
        return Err(Refusal::NotTheOwner.into());
    }
    let candidate = match found {
        Found::InLedger(record) if record.state == State::Pending => candidate(*record)?,
        Found::InLedger(record) => return withdrawn(*record),
        Found::InRedis(candidate) => *candidate,
    };
    if now >= candidate.expires_at {
        return Err(Refusal::Expired.into());
    }
    let writing = Writing::new(&candidate, &State::Cancelled, caller, now);
    match app.ledger.record_outcome(&writing).await? {
        Recorded::Won(record) => {
            info!(request_id = %id, session_id = printable(record.session.as_str()), "withdrawn by its agent");
            metrics::closed(&record);
            notify(app, &record);
            Ok(record)
        }
        Recorded::Lost(record) => withdrawn(record),
        Recorded::MovedOn => Err(Refusal::MovedOn.into()),
        Recorded::AnothersSession => Err(Refusal::AnothersSession.into()),
        Recorded::IdTaken => Err(Refusal::NotFound.into()),
    }
}

/// A request that an agent wants to be withdrawn, and that is settled already.
fn withdrawn(record: Record) -> Result<Record> {
    Err(match record.state {
        State::Cancelled => return Ok(record),
        State::Decided(decision) => {
            let (id, session) = (record.id, record.session);
            Refusal::AlreadyDecided(Standing { id, session, decision }).into()
        }
        State::Expired => Refusal::Expired.into(),
        State::Pending => Refusal::Altered.into(),
    })
}
