//! The agent's side: what became of its request, waiting for that without Redis, withdrawing a
//! request, and saying that it has acted.
//!
//! An expiry and a withdrawal are outcomes of their own. They reach agents over HTTP only: on a
//! Redis channel an agent would take them for an approval.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{Instrument as _, debug, info};

use crate::approvals::{self, InRedis, Problem};
use crate::core::Core;
use crate::domain::approver::Caller;
use crate::domain::audit::AuditEntry;
use crate::domain::decision::{Candidate, Record, Refusal, Standing, State, may_write};
use crate::domain::ids::{RequestId, SessionId, TenantId, UserId};
use crate::domain::printable::printable;
use crate::domain::request::{Origin, REQUEST_TTL_SECONDS};
use crate::hub::Waiter;
use crate::ledger::{LedgerError, Recorded, Writing};
use crate::{metrics, traces};

/// Outcomes to read at once.
const BATCH: usize = 100;
/// Pause before asking again when a store did not answer: what was told meanwhile may be lost.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, Problem>;

/// A request, as far as anybody knows it.
#[derive(Debug)]
pub enum Found {
    /// The ledger has it.
    InLedger(Box<Record>),
    /// An agent wrote it to Redis, and nobody has decided it.
    InRedis(Box<Candidate>),
}

/// Where one request stands.
///
/// # Errors
/// [`Problem`]; [`Refusal::NotFound`] for strangers and unknown ids alike.
pub async fn find(core: &Core, caller: &Caller, id: &RequestId) -> Result<Found> {
    let record = core.ledger.find_request(&caller.tenant, id).await?;
    if let Some(record) = record {
        return Ok(Found::InLedger(Box::new(record)));
    }
    let found = approvals::look(core, caller, id).await;
    if let InRedis::Request(request) = &found
        && !request.0.request.is_pending()
    {
        // Decided since the ledger was read, or by nobody.
        if let Some(record) = core.ledger.find_request(&caller.tenant, id).await? {
            return Ok(Found::InLedger(Box::new(record)));
        }
    }
    let candidate = approvals::undecided(core, id, found).await?;
    Ok(Found::InRedis(Box::new(candidate)))
}

impl Found {
    /// The session that waits.
    #[must_use]
    pub fn session(&self) -> &SessionId {
        match self {
            Self::InLedger(record) => &record.session,
            Self::InRedis(candidate) => &candidate.request.session,
        }
    }

    /// Whose it is: its own user, else its session's.
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::InLedger(record) => record.user.as_ref(),
            Self::InRedis(candidate) => candidate.user.as_ref(),
        }
    }

    /// The entity tag of what is asked.
    #[must_use]
    pub fn etag(&self) -> String {
        match self {
            Self::InLedger(record) => record.etag(),
            Self::InRedis(candidate) => candidate.request.etag.clone(),
        }
    }

    /// Whether there is no outcome yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        match self {
            Self::InLedger(record) => record.state == State::Pending,
            Self::InRedis(_) => true,
        }
    }
}

/// Withdraws a pending request: nobody can decide it any more. Withdrawing it again is no matter.
///
/// # Errors
/// [`Problem`]; [`Refusal::NotTheOwner`]; [`Refusal::AlreadyDecided`] with what stands, if somebody
/// was faster.
pub async fn cancel(core: &Core, caller: &Caller, id: &RequestId) -> Result<Record> {
    let now = core.clock.now();
    let found = find(core, caller, id).await?;
    if !may_write(found.user(), caller) {
        return Err(Refusal::NotTheOwner.into());
    }
    let candidate = match found {
        Found::InLedger(record) if record.state == State::Pending => approvals::candidate(*record)?,
        Found::InLedger(record) => return withdrawn(*record),
        Found::InRedis(candidate) => *candidate,
    };
    if now >= candidate.expires_at {
        return Err(Refusal::Expired.into());
    }
    let (state, held_for) = (&State::Cancelled, TimeDelta::zero());
    let trace_parent = traces::here();
    let audit = AuditEntry::None;
    let (candidate, if_match) = (&candidate, None);
    let writing = Writing {
        candidate,
        state,
        caller,
        now,
        held_for,
        if_match,
        only_newest: false,
        alone_since: None,
        trace_parent,
        audit,
    };
    match core.ledger.record_outcome(&writing).await? {
        Recorded::Won(record) => {
            info!(request_id = %id, session_id = printable(record.session.as_str()), "withdrawn by its agent");
            metrics::closed(&record);
            tell(core, &record);
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

/// Closes a request whose time is over, if it is still pending.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer.
pub async fn expire(
    core: &Core,
    tenant: &TenantId,
    id: &RequestId,
    now: DateTime<Utc>,
) -> std::result::Result<Option<Record>, LedgerError> {
    let expired = core.ledger.expire(tenant, id, now).await?;
    if let Some(record) = &expired {
        info!(request_id = %id, session_id = printable(record.session.as_str()), "expired undecided");
        metrics::closed(record);
        tell(core, record);
    }
    Ok(expired)
}

/// Wakes whoever waits for a request that was closed, on every replica, and the agent that waits for
/// a registered one with Redis. Nobody waits until that is done, and nothing depends on it: whoever
/// is not woken asks by themselves.
pub(crate) fn tell(core: &Core, record: &Record) {
    core.hub.tell(&record.session);
    let (courier, is_registered) = (core.courier.clone(), record.origin == Origin::Http);
    let (session, tenant, id) = (record.session.clone(), record.tenant.clone(), record.id.clone());
    let telling = async move {
        let agent =
            async { if is_registered { courier.wake_agent(&tenant, &id).await } else { Ok(()) } };
        let (replicas, agent) = tokio::join!(courier.tell_replicas(&session), agent);
        if let Err(error) = replicas.and(agent) {
            debug!(%error, "whoever waits elsewhere will find out by themselves");
        }
    };
    core.under_way.spawn_on(telling.in_current_span(), &core.runtime);
}

/// Notes that the agent has acted on an outcome. Noting it again changes nothing.
///
/// # Errors
/// [`Problem`]; [`Refusal::NotTheOwner`]; [`Refusal::Undecided`] while there is nothing to act on.
pub async fn acknowledge(core: &Core, caller: &Caller, id: &RequestId) -> Result<Record> {
    if let Some(record) = core.ledger.acknowledge(caller, id, core.clock.now()).await? {
        return Ok(record);
    }
    let found = find(core, caller, id).await?;
    if !may_write(found.user(), caller) {
        return Err(Refusal::NotTheOwner.into());
    }
    Err(Refusal::Undecided.into())
}

/// Asks until there is an answer, at most for `wait`: at once, and then whenever the session has
/// news. Ends early when the service stops.
///
/// # Errors
/// The last question's, when there was no answer in time.
pub async fn wait<T, Asking>(
    core: &Core,
    caller: &Caller,
    session: &SessionId,
    wait: Duration,
    ask: impl Fn() -> Asking,
    is_answer: impl Fn(&T) -> bool,
) -> Result<T>
where
    T: Send + 'static,
    Asking: Future<Output = Result<T>> + Send + 'static,
{
    let until = Instant::now() + wait;
    let mut waiter = core.hub.watch(session, caller)?;
    loop {
        let answer = core.ask_in_turn(ask()).await;
        if answer.as_ref().is_ok_and(&is_answer) {
            return answer;
        }
        let again = if answer.is_err() { AFTER_FAILURE } else { wait };
        tokio::select! {
            () = waiter.news() => {}
            () = sleep_until(until) => return answer,
            () = core.stopping.cancelled() => return answer,
            () = sleep(again) => {}
        }
    }
}

/// The outcomes of a session, one after the other, for as long as somebody listens.
#[derive(Debug)]
pub struct Outcomes {
    core: Core,
    tenant: TenantId,
    session: SessionId,
    wanted: Option<RequestId>,
    /// The number of the last one that was told.
    after: i64,
    /// Without a number to go on from: what was settled since then, and nobody has acted on.
    open_since: Option<DateTime<Utc>>,
    unread: std::vec::IntoIter<Record>,
    /// There may be more behind what was read.
    has_more: bool,
    waiter: Waiter,
}

impl Outcomes {
    /// Begins with what came after `after`; without that, with what its agent may still wait for.
    ///
    /// # Errors
    /// [`Problem::Ledger`] when the ledger does not answer.
    pub async fn of(
        core: &Core,
        caller: &Caller,
        session: SessionId,
        wanted: Option<RequestId>,
        after: Option<i64>,
    ) -> Result<Self> {
        let lifetime = TimeDelta::seconds(i64::try_from(REQUEST_TTL_SECONDS).unwrap_or(0));
        let mut outcomes = Self {
            waiter: core.hub.watch(&session, caller)?,
            core: core.clone(),
            tenant: caller.tenant.clone(),
            session,
            wanted,
            after: after.unwrap_or(0),
            open_since: after.is_none().then(|| core.clock.now() - lifetime),
            unread: Vec::new().into_iter(),
            has_more: false,
        };
        outcomes.read().await?;
        if outcomes.after > 0 && outcomes.unread.len() == 0 {
            // A number from before the ledger was restored, or of another session, must not keep
            // what is still to come from being told.
            let last = core.ledger.last_outcome(&outcomes.tenant, &outcomes.session).await?;
            outcomes.after = outcomes.after.min(last);
        }
        Ok(outcomes)
    }

    /// The next outcome; `None` when the service stops.
    pub async fn next(&mut self) -> Option<Record> {
        loop {
            for record in self.unread.by_ref() {
                self.after = record.outcome.unwrap_or(self.after);
                if self.wanted.as_ref().is_none_or(|wanted| *wanted == record.id) {
                    return Some(record);
                }
            }
            if !self.has_more {
                tokio::select! {
                    () = self.waiter.news() => {}
                    () = self.core.stopping.cancelled() => return None,
                }
            }
            while let Err(error) = self.read().await {
                debug!(%error, "a stream waits for the ledger");
                tokio::select! {
                    () = sleep(AFTER_FAILURE) => {}
                    () = self.core.stopping.cancelled() => return None,
                }
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        let (core, tenant) = (self.core.clone(), self.tenant.clone());
        let (session, after, open_since) = (self.session.clone(), self.after, self.open_since);
        let limit = i64::try_from(BATCH).unwrap_or(0);
        let reading = async move {
            let outcomes = core.ledger.outcomes(&tenant, &session, after, open_since, limit);
            outcomes.await.map_err(Problem::from)
        };
        let read = self.core.ask_in_turn(reading).await?;
        self.has_more = read.len() == BATCH;
        self.unread = read.into_iter();
        Ok(())
    }
}
