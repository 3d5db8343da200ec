//! Sends a decision's signal at once, to an agent on Redis. If that fails, the relay sends it later.

use tracing::{info, warn};

use super::error::Result;
use super::load::redis_candidate;
use super::notify::notify;
use crate::courier::SessionSnapshot;
use crate::domain::ids::RequestId;
use crate::domain::record::{Delivery, DeliveryReceipt, Record, is_same};
use crate::domain::request::ApprovalRequest;
use crate::observe::metrics::{self, By};
use crate::state::AppState;

/// Sends the signal of a decision just recorded. If that fails, the ledger still says that the signal is
/// owed, and the relay sends it.
pub(super) async fn send_now(app: &AppState, record: &Record, seen: SessionSnapshot) {
    let delivered = app.sender().deliver(record, Some(seen)).await;
    metrics::delivered(By::Decider, delivered.as_ref().ok().map(|settled| settled.delivery));
    match delivered {
        Ok(settled) => {
            crash_point!("signalled");
            if settled.delivery == Delivery::Superseded {
                // The agent may wait over HTTP, on another replica.
                notify(app, record);
            }
            app.ledger.keep_receipt(DeliveryReceipt::of(record, settled, app.clock.now()));
        }
        Err(error) => {
            warn!(request_id = %record.id, %error, "decided; the relay will signal it");
            let (app, record) = (app.clone(), record.clone());
            let runtime = app.runtime.clone();
            app.under_way.clone().spawn_on(
                async move {
                    // Without this the relay would wait for the lease to run out.
                    let _given_back = app.ledger.postpone(&record, app.clock.now()).await;
                },
                &runtime,
            );
        }
    }
}

/// Sends the signal once more if a decided request is pending in Redis again: its agent has asked
/// again, after a restart or because Redis lost the answer.
pub(super) async fn send_if_asked_again(
    app: &AppState,
    id: &RequestId,
    record: &Record,
) -> Result<()> {
    let Some(snapshot) = asked_again(app, id, record).await? else { return Ok(()) };
    // The ledger only owes a signal again that it has recorded as sent.
    app.ledger.write_receipt_of(record).await?;
    if let Some(record) = app.ledger.owe_again(record, app.clock.now()).await? {
        crash_point!("owed-again");
        info!(request_id = %id, "the agent asked again; its signal is sent again");
        send_now(app, &record, snapshot).await;
    }
    Ok(())
}

/// What Redis has of a decided request whose agent has asked again. Reads Redis anew, because what was
/// read before may be older than the signal.
pub(super) async fn asked_again(
    app: &AppState,
    id: &RequestId,
    record: &Record,
) -> Result<Option<SessionSnapshot>> {
    let Some(stored) = app.courier.find_request(id).await? else { return Ok(None) };
    let Ok(request) = ApprovalRequest::read(id, stored.document) else { return Ok(None) };
    let pointer = app.courier.session_of(stored.guessed_session, &request.session).await?;
    let asked = redis_candidate(request, &pointer, stored.ttl, app.clock.now());
    if !(asked.request.is_pending() && is_same(record, &asked) && pointer.names(id))
        || pointer.is_anothers(Some(&record.tenant), record.user.as_ref())
    {
        return Ok(None);
    }
    Ok(Some(SessionSnapshot { pointer, document: Some(asked.request.document) }))
}
