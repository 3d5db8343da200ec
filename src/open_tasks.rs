//! Closes the tasks that we made for approved requests and that no agent reports on. Without this
//! they would stay `IN_PROGRESS` for ever.
//!
//! An agent that acknowledges has its task completed at once. Once the agent's patience has passed
//! after the approval reached it, a task is `COMPLETED` with `{"reportedByAgent":false}` if the
//! approval was heard, else `FAILED`. Tasks that agents keep are left alone. One worker runs in every
//! replica; which of them closes a task does not matter.

use std::time::Duration;

use actix_web::HttpRequest;
use tracing::{debug, info, warn};

use crate::auth::acts_as_agent;
use crate::core::Core;
use crate::domain::approver::Caller;
use crate::domain::decision::Record;
use crate::domain::ids::RequestId;
use crate::domain::request::{Origin, PATIENCE};
use crate::ledger::LedgerError;

/// How often to look for such tasks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Tasks to close in one statement; if there were as many, the next one follows at once.
const BATCH_SIZE: u64 = 100;

/// Headers that only browsers send.
const SENT_BY_BROWSERS: [&str; 6] = [
    "Origin",
    "X-Forwarded-Origin",
    "Referer",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Site",
    "Sec-Fetch-Dest",
];

/// Runs until the process is asked to stop.
pub async fn run(core: Core) {
    loop {
        match run_once(&core).await {
            Ok(BATCH_SIZE) if !core.stopping.is_cancelled() => continue,
            Ok(0) => {}
            Ok(requests) => info!(requests, "closed tasks that no agent reported on"),
            Err(error) => warn!(%error, "tasks that no agent reports on cannot be closed"),
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = core.stopping.cancelled() => break,
        }
    }
}

/// Closes a batch; says of how many requests.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer.
pub async fn run_once(core: &Core) -> Result<u64, LedgerError> {
    let now = core.clock.now();
    let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
    core.ledger.close_open_tasks(now - PATIENCE, limit, now).await
}

/// Whether a call comes from an agent: its headers or its token say so, or nothing says that a
/// browser sends it. The Gateway takes `Origin` away, and says what it was.
#[must_use]
pub fn is_agent(caller: &Caller, request: &HttpRequest) -> bool {
    let says = |header: &Option<String>, value: &str| {
        header.as_deref().is_some_and(|header| header.eq_ignore_ascii_case(value))
    };
    let has = |name: &str| request.headers().contains_key(name);
    if says(&caller.via.caller_type, "AGENT") || says(&caller.via.source, "AURA") {
        return true;
    }
    let is_person = says(&caller.via.caller_type, "USER") || says(&caller.via.source, "FRONTEND");
    let is_browser = SENT_BY_BROWSERS.into_iter().any(has);
    acts_as_agent(request) || !is_person && !is_browser
}

/// Notes, beside the answer, that the agent of a registered request was told of its approval. Only
/// the person for whom it was registered can be that agent.
pub fn told(core: &Core, caller: &Caller, record: &Record) {
    if record.origin == Origin::Http && record.is_approved() {
        told_of(core, caller, &record.id);
    }
}

/// The same for whoever knows the id alone; what was not registered and approved is left alone.
pub fn told_of(core: &Core, caller: &Caller, id: &RequestId) {
    let (asking, caller, id) = (core.clone(), caller.clone(), id.clone());
    let note = async move {
        let now = asking.clock.now();
        if let Err(error) = asking.ledger.note_asked(&caller.tenant, &caller.user, &id, now).await {
            debug!(request_id = %id, %error, "cannot note that its agent asked");
        }
    };
    core.under_way.spawn_on(note, &core.runtime);
}
