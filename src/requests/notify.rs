//! Waking those who wait for a request that was closed.

use tracing::{Instrument as _, debug};

use crate::domain::record::Record;
use crate::domain::request::Origin;
use crate::state::AppState;

/// Wakes whoever waits for a request that was closed, on every replica, and the agent that waits for
/// a registered one with Redis. Nobody waits until that is done, and nothing depends on it: whoever
/// is not woken asks by themselves.
pub(super) fn notify(app: &AppState, record: &Record) {
    app.hub.notify(&record.session);
    let (courier, is_registered) = (app.courier.clone(), record.origin == Origin::Http);
    let (session, tenant, id) = (record.session.clone(), record.tenant.clone(), record.id.clone());
    let telling = async move {
        let agent =
            async { if is_registered { courier.wake_agent(&tenant, &id).await } else { Ok(()) } };
        let (replicas, agent) = tokio::join!(courier.notify_replicas(&session), agent);
        if let Err(error) = replicas.and(agent) {
            debug!(%error, "whoever waits elsewhere will find out by themselves");
        }
    };
    app.under_way.spawn_on(telling.in_current_span(), &app.runtime);
}
