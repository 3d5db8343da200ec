//! Registers a request over HTTP, in the ledger alone.

use tracing::info;

use super::automatic::{By, register_decided};
use super::error::Result;
use super::load::{InRedis, find_in_redis};
use crate::domain::approver::Caller;
use crate::domain::decision::State;
use crate::domain::printable::printable;
use crate::domain::record::{Candidate, Record, Ruling};
use crate::domain::request::Origin;
use crate::domain::rules::{Refusal, may_write};
use crate::domain::task::TaskStatus;
use crate::ledger::{Change, Registered, Writing};
use crate::permit::{Law, Terms};
use crate::state::AppState;

/// Registers a request for an agent that waits over HTTP, in the ledger alone.
///
/// # Errors
/// [`Refusal::Altered`] when the id belongs to a request with other content; [`Refusal::NotTheOwner`]
/// when the task is another user's.
pub async fn register(
    app: &AppState,
    caller: &Caller,
    candidate: &Candidate,
) -> Result<Registered> {
    let id = &candidate.request.id;
    // While Redis is out of reach, a request in Redis with this id goes unnoticed. That is harmless:
    // the registered one comes first from now on.
    let found = find_in_redis(app, caller, id).await;
    if matches!(found, InRedis::Request(_) | InRedis::Unreadable { .. })
        && app.ledger.find_request(&caller.tenant, id).await?.is_none_or(|it| it.is_only_seen())
    {
        // An agent of this tenant wrote the request to Redis.
        return Err(Refusal::Altered.into());
    }
    let mut is_task_over = false;
    if let Some(task) = &candidate.request.task
        && let Some(task) = app.ledger.find_task(&caller.tenant, task).await?
    {
        if !may_write(Some(&task.user), caller) {
            return Err(Refusal::NotTheOwner.into());
        }
        is_task_over = matches!(task.status, TaskStatus::Completed | TaskStatus::Failed);
    }
    let now = app.clock.now();
    if let Err(error) = app.quotas.check(&app.ledger, caller, candidate, now).await {
        // Registering the same request again does not count.
        if app.ledger.find_request(&caller.tenant, id).await?.is_none() {
            return Err(error.into());
        }
    }
    let law = app.rules.in_force();
    let terms = law.terms(candidate, &caller.tenant);
    let by = By::of(&terms);
    let Terms { ruling, expires_at, .. } = terms;
    let shortened;
    let candidate = if expires_at < candidate.expires_at {
        shortened = Candidate { expires_at, ..candidate.clone() };
        &shortened
    } else {
        candidate
    };
    let decided = if by != By::People && !is_task_over {
        register_decided(app, &law, caller, candidate, by).await?
    } else {
        None
    };
    let registered = match decided {
        Some(Registered::New(record)) => {
            app.quotas.count(caller, candidate).await;
            app.search.write(&record.tenant, &candidate.request);
            return Ok(Registered::New(record));
        }
        Some(registered) => registered,
        None => register_pending(app, ruling, caller, candidate).await?,
    };
    match registered {
        Registered::New(record) => {
            crash_point!("registered");
            app.quotas.count(caller, candidate).await;
            app.inbox.announce(&record.tenant, &record.id);
            app.search.write(&record.tenant, &candidate.request);
            info!(request_id = %record.id, session_id = printable(record.session.as_str()),
                user = printable(caller.user.as_str()), tenant = printable(caller.tenant.as_str()),
                "registered");
            Ok(Registered::New(record))
        }
        Registered::Known(record)
            if record.origin != Origin::Http
                || record.content_hash != candidate.request.content_hash
                || !has_lifetime(&record, candidate, &law) =>
        {
            Err(Refusal::Altered.into())
        }
        Registered::IdTaken => Err(Refusal::Altered.into()),
        known => Ok(known),
    }
}

/// Whether a request was registered with the lifetime that it is registered with now. A rule that is in
/// force, or was, may have shortened it.
fn has_lifetime(record: &Record, candidate: &Candidate, law: &Law) -> bool {
    let (is, asked) =
        (record.expires_at - record.created_at, candidate.expires_at - candidate.created_at);
    is == asked || law.has_file() || record.ruling.version.is_some()
}

/// Registers a request that people decide.
async fn register_pending(
    app: &AppState,
    ruling: Ruling,
    caller: &Caller,
    candidate: &Candidate,
) -> Result<Registered> {
    let now = app.clock.now();
    let state = State::Pending;
    let audit = app.audit_entry(candidate, &state, caller, now);
    let change = Change::Register(ruling);
    let writing = Writing { audit, ..Writing::new(candidate, change, caller, now) };
    Ok(app.ledger.register(&writing).await?)
}
