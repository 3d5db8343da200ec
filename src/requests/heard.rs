//! What is noted when an agent was told of its decision: for the task that we made for its request, and
//! for the signal that nobody seemed to hear. Noted beside the answer, which does not wait for it.

use tracing::debug;

use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;
use crate::domain::record::Record;
use crate::domain::request::Origin;
use crate::domain::signal::signal_request;
use crate::state::AppState;

/// Notes, beside the answer, that the agent of a registered request was told of its approval. Only
/// the person for whom it was registered can be that agent.
pub fn told(app: &AppState, caller: &Caller, record: &Record) {
    if record.origin == Origin::Http && record.is_approved() {
        told_of(app, caller, &record.id);
    }
}

/// The same for whoever knows the id alone; what was not registered and approved is left alone.
pub fn told_of(app: &AppState, caller: &Caller, id: &RequestId) {
    let (asking, caller, id) = (app.clone(), caller.clone(), id.clone());
    let note = async move {
        let now = asking.clock.now();
        if let Err(error) = asking.ledger.note_asked(&caller.tenant, &caller.user, &id, now).await {
            debug!(request_id = %id, %error, "cannot note that its agent asked");
        }
    };
    app.under_way.spawn_on(note, &app.runtime);
}

/// An agent was answered the signal of its request over HTTP: it has heard it. What a person is
/// shown, or an agent of a colleague, nobody has heard.
pub fn answered(app: &AppState, caller: &Caller, signal: &str) {
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
                debug!(request_id = %id, %error, "heard over HTTP, and not noted");
            }
        }
    };
    app.under_way.spawn_on(note, &app.runtime);
}
