//! Comments on a pending request. They wake its agent and the inboxes of people; the request stays
//! pending, whatever they say.

use tracing::{Instrument as _, debug, info};

use super::error::Result;
use super::read::{Found, find};
use crate::domain::approver::Caller;
use crate::domain::comment::{Author, Comment};
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::request::Origin;
use crate::domain::rules::{Refusal, judge_closed};
use crate::ledger::NewComment;
use crate::state::AppState;

/// The result of an attempt to comment.
#[derive(Debug)]
pub enum Added {
    /// The comment was written.
    Comment(Comment),
    /// The request has as many comments as it may have.
    TooMany,
}

/// Writes a comment on a pending request that the caller may see.
///
/// # Errors
/// Those of [`find`]; [`Refusal::AlreadyDecided`], [`Refusal::Expired`] or [`Refusal::Cancelled`] when the
/// request is closed.
pub async fn add(
    app: &AppState,
    caller: &Caller,
    id: &RequestId,
    author: Author,
    text: String,
) -> Result<Added> {
    let found = find(app, caller, id).await?;
    let now = app.clock.now();
    let (tenant, origin) = match &found {
        Found::InLedger(record) => {
            judge_closed(record, now)?;
            (record.tenant.clone(), record.origin)
        }
        Found::InRedis(candidate) if now >= candidate.expires_at => {
            return Err(Refusal::Expired.into());
        }
        Found::InRedis(candidate) => {
            (candidate.tenant.clone().unwrap_or_else(|| caller.tenant.clone()), candidate.origin)
        }
    };
    let session = found.session().clone();
    let new = NewComment {
        tenant: &tenant,
        request: id,
        session: &session,
        caller,
        author,
        text: &text,
        now,
    };
    let Some(number) = app.ledger.insert_comment(&new).await? else {
        if let Some(record) = app.ledger.find_request(&tenant, id).await? {
            judge_closed(&record, now)?;
        }
        return Ok(Added::TooMany);
    };
    info!(number, author = author.as_str(), "commented");
    notify(app, &tenant, id, &session, origin);
    let user = caller.user.clone();
    Ok(Added::Comment(Comment { request: id.clone(), number, user, author, text, at: now }))
}

/// The comments of a request that the caller may see, the oldest first.
///
/// # Errors
/// Those of [`find`].
pub async fn list(app: &AppState, caller: &Caller, id: &RequestId) -> Result<Vec<Comment>> {
    let tenant = match find(app, caller, id).await? {
        Found::InLedger(record) => record.tenant,
        Found::InRedis(candidate) => candidate.tenant.unwrap_or_else(|| caller.tenant.clone()),
    };
    Ok(app.ledger.comments(&tenant, id).await?)
}

/// Wakes the streams of the request's agent and of people on every replica, in the background. Who is
/// not woken finds the comment in the ledger a little later.
fn notify(app: &AppState, tenant: &TenantId, id: &RequestId, session: &SessionId, origin: Origin) {
    app.hub.notify(session);
    app.inbox.announce(tenant, id);
    let courier = app.courier.clone();
    let (tenant, id, session) = (tenant.clone(), id.clone(), session.clone());
    let waking = async move {
        let agent = async {
            if origin == Origin::Http { courier.wake_agent(&tenant, &id).await } else { Ok(()) }
        };
        let (replicas, agent) = tokio::join!(courier.notify_replicas(&session), agent);
        if let Err(error) = replicas.and(agent) {
            debug!(%error, "cannot tell other replicas of a comment; they find it by themselves");
        }
    };
    app.under_way.spawn_on(waking.in_current_span(), &app.runtime);
}
