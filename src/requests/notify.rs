//! Wakes the agents that wait for a request when the request is closed.

use tracing::{Instrument as _, debug};

use crate::domain::record::Record;
use crate::domain::request::Origin;
use crate::state::AppState;

/// Wakes long-polls and streams of a closed request on every replica, and the agent that waits on
/// Redis for a registered one. Runs in the background. A lost wake-up only delays an agent: each also
/// asks again after a while.
pub(super) fn notify(app: &AppState, record: &Record) {
    app.hub.notify(&record.session);
    app.inbox.announce(&record.tenant, &record.id);
    let (courier, is_registered) = (app.courier.clone(), record.origin == Origin::Http);
    let (session, tenant, id) = (record.session.clone(), record.tenant.clone(), record.id.clone());
    let waking = async move {
        let agent =
            async { if is_registered { courier.wake_agent(&tenant, &id).await } else { Ok(()) } };
        let (replicas, agent) = tokio::join!(courier.notify_replicas(&session), agent);
        if let Err(error) = replicas.and(agent) {
            debug!(%error, "cannot wake the agents of other replicas; they will ask again by themselves");
        }
    };
    app.under_way.spawn_on(waking.in_current_span(), &app.runtime);
}
