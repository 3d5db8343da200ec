//! Records in the ledger that an agent has read its decision or its signal over HTTP. Other jobs need
//! to know: `tasks` completes tasks that this service made for a request, and `delivery` publishes
//! signals again that had no subscriber. Recording runs in the background; no answer waits for it.

use tracing::debug;

use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;
use crate::domain::record::Record;
use crate::domain::request::Origin;
use crate::domain::signal::signal_request;
use crate::state::AppState;

/// Records that the agent of a registered request has read its approval. Other requests and outcomes
/// are left alone. The ledger only accepts the caller for whom the request was registered.
pub fn record_decision_read(app: &AppState, caller: &Caller, record: &Record) {
    if record.origin == Origin::Http && record.is_approved() {
        record_decision_read_by_id(app, caller, &record.id);
    }
}

/// [`record_decision_read`] for callers that only have the id. The ledger ignores requests that are
/// not registered or not approved.
pub fn record_decision_read_by_id(app: &AppState, caller: &Caller, id: &RequestId) {
    let (asking, caller, id) = (app.clone(), caller.clone(), id.clone());
    let note = async move {
        let now = asking.clock.now();
        if let Err(error) = asking.ledger.note_asked(&caller.tenant, &caller.user, &id, now).await {
            debug!(request_id = %id, %error, "cannot record that its agent has read the decision");
        }
    };
    app.under_way.spawn_on(note, &app.runtime);
}

/// Records that an agent has read the signal of its own request over HTTP. A signal that a person
/// reads, or the agent of another user, still counts as unheard.
pub fn record_signal_read(app: &AppState, caller: &Caller, signal: &str) {
    if caller.via.caller_type.as_deref() != Some("AGENT") {
        return;
    }
    let Some(id) = signal_request(signal).and_then(|id| RequestId::parse(id).ok()) else {
        return;
    };
    if !app.unheard.is_first_answer(&id, &caller.user) {
        return;
    }
    let (asking, tenant, user) = (app.clone(), caller.tenant.clone(), caller.user.clone());
    let note = async move {
        match asking.ledger.heard(&tenant, &user, &id, asking.clock.now()).await {
            Ok(true) => asking.unheard.forget(&id),
            Ok(false) => {}
            Err(error) => {
                asking.unheard.unanswered(&id, &user);
                debug!(request_id = %id, %error, "cannot record that its agent has read the signal");
            }
        }
    };
    app.under_way.spawn_on(note, &app.runtime);
}
