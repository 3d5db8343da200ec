//! The use cases around an approval request: decide it, register it, read it, and find the signal
//! that answers it. Each is one walk along the path that `lib.rs` draws; the rules themselves are
//! in `domain`, the guarantees in `ledger`.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tracing::{info, warn};

use crate::core::{Core, Undone};
use crate::courier::{Polled, Seen, Unavailable};
use crate::delivery;
use crate::domain::approver::Caller;
use crate::domain::decision::{
    self, Candidate, CourierCopy, Decision, Delivery, Expected, Mark, Record, Refusal, Settled,
    State, Verdict, is_same, is_visible, may_write, settle,
};
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::printable::printable;
use crate::domain::request::{
    ApprovalRequest, Origin, PATIENCE, REQUEST_TTL_SECONDS, Scope, age, closed_document,
    decided_document, status_of,
};
use crate::domain::session::SessionPointer;
use crate::domain::signal::{signal_json, signal_request};
use crate::ledger::{LEASE, LedgerError, Recorded, Registered, Writing};
use crate::limits::TooMany;
use crate::metrics::{self, By};
use crate::quotas::QuotaError;
use crate::{marks, outcomes, traces};

/// How long to ask the ledger what became of a write that it did not confirm.
const CONFIRMATION: Duration = Duration::from_millis(900);

/// Why a use case has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The rules say no.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The request in Redis cannot be read.
    #[error("the request {0}")]
    Unreadable(&'static str),
    /// Redis says that it is not pending, and the ledger knows nothing of it.
    #[error("nobody decided it")]
    DecidedByNobody,
    /// Redis is out of reach and the ledger alone cannot tell.
    #[error(transparent)]
    Courier(#[from] Unavailable),
    /// The ledger is out of reach or wrong.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The caller waits too often already.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// Nothing came of it: a bug.
    #[error(transparent)]
    Undone(#[from] Undone),
    /// The ledger went away while it was told; it may or may not have taken the decision.
    #[error("the ledger did not confirm: {0}")]
    Unconfirmed(LedgerError),
}

impl From<QuotaError> for Problem {
    fn from(error: QuotaError) -> Self {
        match error {
            QuotaError::TooMany(too_many) => too_many.into(),
            QuotaError::Ledger(error) => error.into(),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

type Result<T> = std::result::Result<T, Problem>;

/// A decision that stands, as its maker is told.
#[derive(Debug)]
pub struct Decided {
    /// The session that waits.
    pub session: SessionId,
    /// What stands.
    pub decision: Decision,
    /// The entity tag of what it is about.
    pub etag: String,
}

/// Decides a request, exactly once, and wakes its agent; if it is still what the person expects.
///
/// # Errors
/// [`Problem`]; nothing was recorded then, except perhaps with [`Problem::Unconfirmed`].
pub async fn decide(
    core: &Core,
    caller: &Caller,
    id: &RequestId,
    verdict: Verdict,
    expected: &Expected,
) -> Result<Decided> {
    let attempt = Attempt { core, caller, id, verdict, expected, now: core.clock.now() };
    let found = look(core, caller, id).await;
    if let InRedis::Request(request) = &found {
        let (candidate, pointer) = &**request;
        if candidate.request.is_pending() && pointer.allows(id) {
            return attempt.record(candidate, Some(pointer)).await;
        }
    }
    // Registered, or decided already, or the session names another request. The ledger is read after
    // Redis, so that it knows whatever Redis rightly says.
    if let Some(record) = core.ledger.find_request(&caller.tenant, id).await? {
        return attempt.on_record(record, found).await;
    }
    match found {
        InRedis::Nothing => Err(Refusal::NotFound.into()),
        InRedis::Unreachable(unavailable) => Err(unavailable.into()),
        InRedis::Unreadable { problem, .. } => Err(unreadable(problem)),
        InRedis::Request(request) => {
            let (candidate, pointer) = *request;
            let verdict = attempt.verdict;
            decision::decide(&candidate, &pointer, caller, verdict, attempt.now, core.policy)?;
            Err(decided_by_nobody(core, id, &candidate).await?)
        }
    }
}

/// What to say of a request in Redis that is not pending, and that the ledger, read after it, does
/// not know as this tenant's.
async fn decided_by_nobody(core: &Core, id: &RequestId, found: &Candidate) -> Result<Problem> {
    if core.ledger.find_request_of_redis(id).await?.is_some() {
        // It was another tenant's when it was decided.
        return Ok(Refusal::NotFound.into());
    }
    core.forgeries.request(id, &found.request.document);
    Ok(Problem::DecidedByNobody)
}

/// One caller's attempt to decide one request.
struct Attempt<'a> {
    core: &'a Core,
    caller: &'a Caller,
    id: &'a RequestId,
    verdict: Verdict,
    expected: &'a Expected,
    now: DateTime<Utc>,
}

impl Attempt<'_> {
    /// A request that the ledger knows: registered and pending, or settled one way or another.
    async fn on_record(self, record: Record, found: InRedis) -> Result<Decided> {
        let is_altered = compare(self.core, &record, &found);
        if record.state != State::Pending || is_altered {
            return self.on_standing(record, is_altered).await;
        }
        if record.origin == Origin::Redis {
            // Whether its agent still waits for it, only Redis can tell.
            return Err(match found {
                InRedis::Unreachable(unavailable) => unavailable.into(),
                _ => Refusal::MovedOn.into(),
            });
        }
        self.record(&candidate(record)?, None).await
    }

    /// Something stands in the ledger that this attempt cannot change.
    async fn on_standing(self, record: Record, is_altered: bool) -> Result<Decided> {
        let is_over = record.state == State::Pending && self.now >= record.expires_at;
        // Nobody is told so while somebody who came in time may still be on the way.
        let record = if !is_over {
            record
        } else if let Some(expired) =
            outcomes::expire(self.core, &record.tenant, self.id, self.now).await?
        {
            expired
        } else {
            self.stands().await?.unwrap_or(record)
        };
        let decision = settle(&record, is_altered, self.caller, &self.verdict, self.now)?;
        let etag = record.etag();
        self.expected.check(&etag)?;
        Ok(Decided { session: record.session, decision, etag })
    }

    /// Asks the ledger for the decision, and sends its signal. `pointer` is what the session of a
    /// request of Redis names; a registered request has none.
    async fn record(
        self,
        candidate: &Candidate,
        pointer: Option<&SessionPointer>,
    ) -> Result<Decided> {
        let verdict = self.verdict.clone();
        let names = pointer.cloned().unwrap_or_default();
        let decision =
            decision::decide(candidate, &names, self.caller, verdict, self.now, self.core.policy);
        // Whether its time ran out undecided, only the ledger can tell.
        if matches!(decision, Err(Refusal::Expired))
            && let Some(record) = self.stands().await?
        {
            let is_altered = !is_same(&record, candidate);
            return self.on_standing(record, is_altered).await;
        }
        if matches!(decision, Err(Refusal::AnothersSession)) {
            return self.in_anothers_session(candidate).await;
        }
        let decision = decision?;
        let etag = candidate.request.etag.clone();
        let if_match = self.expected.check(&candidate.request.etag)?;
        let (caller, now, held_for) = (self.caller, self.now, LEASE);
        let state = &State::Decided(decision.clone());
        let only_newest = pointer.is_some_and(|pointer| pointer.request.is_none());
        let alone_since = pointer.map(|_pointer| now - delivery::SESSION_LIFETIME);
        let trace_parent = traces::here();
        let audit = self.core.audit_entry(candidate, state, caller, now);
        let writing = Writing {
            candidate,
            state,
            caller,
            now,
            held_for,
            if_match,
            only_newest,
            alone_since,
            trace_parent,
            audit,
        };
        crash_point!("deciding");
        let recorded = match self.core.ledger.record_outcome(&writing).await {
            Err(error @ LedgerError::OutcomeUnknown(_)) => self.confirm(&decision, error).await?,
            recorded => recorded?,
        };
        match recorded {
            Recorded::Won(record) => {
                crash_point!("decided");
                info!(
                    session_id = printable(record.session.as_str()),
                    outcome = decision.verdict.status(),
                    "decided"
                );
                metrics::decided(self.core, &record);
                self.core.decisions.remember(&record, now);
                let Some(pointer) = pointer else {
                    outcomes::tell(self.core, &record);
                    if record.delivery == Delivery::Owed {
                        // The ledger has looked after its task; without this the relay would.
                        self.core.marks.hand_in(Mark::of(&record, Settled::SENT, now));
                    }
                    return Ok(Decided { session: record.session, decision, etag });
                };
                // Those who wait here need not wait for Redis.
                self.core.hub.tell(&record.session);
                let document = Some(candidate.request.document.clone());
                send_now(self.core, &record, Seen { pointer: pointer.clone(), document }).await;
                Ok(Decided { session: record.session, decision, etag })
            }
            Recorded::Lost(mut record) => {
                self.core.marks.apply(&mut record);
                let was_sent = !record.is_unsent();
                let standing = record.clone();
                let (core, id) = (self.core, self.id);
                let is_altered = !is_same(&record, candidate);
                if is_altered {
                    core.forgeries.request(id, &candidate.request.document);
                } else if record.state == State::Pending && record.origin == Origin::Http {
                    // Registered; an older release wrote it to Redis as well.
                    return Box::pin(self.on_record(record, InRedis::Nothing)).await;
                }
                let decided = self.on_standing(record, is_altered).await?;
                if was_sent && standing.origin == Origin::Redis {
                    send_if_asked_again(core, id, &standing).await?;
                }
                Ok(decided)
            }
            Recorded::MovedOn => Err(Refusal::MovedOn.into()),
            Recorded::AnothersSession => {
                self.core.forgeries.request(self.id, &candidate.request.document);
                Err(Refusal::AnothersSession.into())
            }
            Recorded::IdTaken => {
                // The key was another tenant's when it was decided.
                self.core.forgeries.request(self.id, &candidate.request.document);
                Err(Refusal::NotFound.into())
            }
        }
    }

    /// A request of Redis in a session that names somebody else. If it was decided before, that
    /// stands.
    async fn in_anothers_session(self, candidate: &Candidate) -> Result<Decided> {
        self.core.forgeries.request(self.id, &candidate.request.document);
        match self.stands().await? {
            Some(record) if record.state != State::Pending => {
                let is_altered = !is_same(&record, candidate);
                self.on_standing(record, is_altered).await
            }
            _ => Err(Refusal::AnothersSession.into()),
        }
    }

    /// What the ledger knows under this id.
    async fn stands(&self) -> Result<Option<Record>> {
        Ok(self.core.ledger.find_request(&self.caller.tenant, self.id).await?)
    }

    /// The connection broke while the ledger was told: only the ledger knows how that ended.
    async fn confirm(&self, decision: &Decision, error: LedgerError) -> Result<Recorded> {
        let reading = self.core.ledger.find_request(&self.caller.tenant, self.id);
        match tokio::time::timeout(CONFIRMATION, reading).await {
            Ok(Ok(Some(record))) if record.state == State::Decided(decision.clone()) => {
                Ok(Recorded::Won(record))
            }
            Ok(Ok(Some(record))) if record.state != State::Pending => Ok(Recorded::Lost(record)),
            _ => Err(Problem::Unconfirmed(error)),
        }
    }
}

/// What could be decided of a request that the ledger knows.
///
/// # Errors
/// [`Problem::Unreadable`], when its row was edited by hand.
pub(crate) fn candidate(record: Record) -> Result<Candidate> {
    Ok(Candidate {
        request: ApprovalRequest::read(&record.id, record.document).map_err(Problem::Unreadable)?,
        origin: record.origin,
        tenant: Some(record.tenant),
        user: record.user,
        created_at: record.created_at,
        expires_at: record.expires_at,
    })
}

/// What Redis has under a request's key, as far as it concerns one caller.
pub(crate) enum InRedis {
    /// Nothing, or what is none of the caller's business: there is no telling them apart.
    Nothing,
    /// A request, and what its session names.
    Request(Box<(Candidate, SessionPointer)>),
    /// Something that cannot be read, and does not say that it is another tenant's.
    Unreadable {
        /// What is wrong with it.
        problem: &'static str,
        /// It.
        text: String,
    },
    /// Redis does not answer.
    Unreachable(Unavailable),
}

/// Reads a request from Redis, and what its session names.
pub(crate) async fn look(core: &Core, caller: &Caller, id: &RequestId) -> InRedis {
    let stored = match core.courier.find_request(id).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return InRedis::Nothing,
        Err(unavailable) => return InRedis::Unreachable(unavailable),
    };
    // Judged first: what a stranger is told must not take longer because a request is there.
    let is_foreign = |tenant: Option<&TenantId>| tenant.is_some_and(|is| *is != caller.tenant);
    let scope = Scope::read(&stored.document);
    if is_foreign(scope.tenant.as_ref()) {
        return InRedis::Nothing;
    }
    let pointer = match &scope.session {
        Some(session) => match core.courier.session_of(stored.beside, session).await {
            Ok(pointer) => pointer,
            Err(unavailable) => return InRedis::Unreachable(unavailable),
        },
        None => SessionPointer::default(),
    };
    if scope.tenant.is_none() && is_foreign(pointer.tenant.as_ref()) {
        return InRedis::Nothing;
    }
    let request = match ApprovalRequest::read(id, stored.document.clone()) {
        Ok(request) => request,
        Err(problem) => return InRedis::Unreadable { problem, text: stored.document },
    };
    if pointer.is_ambiguous && (request.tenant.is_none() || request.user.is_none()) {
        // Without a tenant it is nobody's.
        if request.tenant.as_ref() != Some(&caller.tenant) {
            return InRedis::Nothing;
        }
        let problem = "is in a session that does not say plainly whose it is";
        return InRedis::Unreadable { problem, text: stored.document };
    }
    let candidate = in_redis(request, &pointer, stored.ttl, core.clock.now());
    let user = candidate.user.as_ref();
    if is_visible(candidate.tenant.as_ref(), user, caller, core.policy) {
        InRedis::Request(Box::new((candidate, pointer)))
    } else {
        InRedis::Nothing
    }
}

/// Compares what Redis has with what the ledger, read after it, knows under the same id. Reports what
/// differs; says whether somebody asks for something else there, or something else stands there
/// while the ledger waits for a decision.
fn compare(core: &Core, record: &Record, found: &InRedis) -> bool {
    match found {
        InRedis::Nothing | InRedis::Unreachable(_) => false,
        InRedis::Unreadable { text, .. } => {
            core.forgeries.request(&record.id, text);
            true
        }
        InRedis::Request(request) => {
            let asked = &request.0.request;
            let is_altered = !is_same(record, &request.0)
                && (asked.is_pending() || record.state == State::Pending);
            // A decided one has changed with its decision, and must say the same as the ledger.
            if is_altered || !(asked.is_pending() || asked.status == record.state.as_str()) {
                core.forgeries.request(&record.id, &asked.document);
            }
            is_altered
        }
    }
}

/// A request that nobody can decide or be shown.
fn unreadable(problem: &'static str) -> Problem {
    warn!(problem, "a request in Redis cannot be read");
    Problem::Unreadable(problem)
}

/// What could be decided of a request that an agent wrote to Redis.
fn in_redis(
    request: ApprovalRequest,
    pointer: &SessionPointer,
    ttl: Option<Duration>,
    now: DateTime<Utc>,
) -> Candidate {
    let created_at = now - age(ttl);
    let lifetime = TimeDelta::seconds(i64::try_from(REQUEST_TTL_SECONDS).unwrap_or(0));
    // Another tenant's session does not say whose it is.
    let lender = (!pointer.is_anothers(request.tenant.as_ref(), None)).then_some(pointer);
    Candidate {
        tenant: request.tenant.clone().or_else(|| lender?.tenant.clone()),
        user: request.user.clone().or_else(|| lender?.user.clone()),
        request,
        origin: Origin::Redis,
        created_at,
        expires_at: created_at + lifetime,
    }
}

/// Sends the signal of a decision just recorded. A failure is no matter: it stays owed, and is the
/// relay's from then on.
async fn send_now(core: &Core, record: &Record, seen: Seen) {
    let delivered = delivery::deliver(core, record, Some(seen)).await;
    metrics::delivered(By::Decider, delivered.as_ref().ok().map(|settled| settled.delivery));
    match delivered {
        Ok(settled) => {
            crash_point!("signalled");
            if settled.delivery == Delivery::Superseded {
                // Its agent waits over HTTP, perhaps on another replica.
                outcomes::tell(core, record);
            }
            core.marks.hand_in(Mark::of(record, settled, core.clock.now()));
        }
        Err(error) => {
            warn!(request_id = %record.id, %error, "decided; the relay will signal it");
            let (core, record) = (core.clone(), record.clone());
            let runtime = core.runtime.clone();
            core.under_way.clone().spawn_on(
                async move {
                    // Without this the relay would wait for the lease to run out.
                    let _given_back = core.ledger.postpone(&record, core.clock.now()).await;
                },
                &runtime,
            );
        }
    }
}

/// A decided request that is pending in Redis again is an agent that has asked again, after a
/// restart or because Redis lost the answer: it is told once more. Redis is read anew for this,
/// since what we know of it may be older than the signal.
async fn send_if_asked_again(core: &Core, id: &RequestId, record: &Record) -> Result<()> {
    let Some(stored) = core.courier.find_request(id).await? else { return Ok(()) };
    let Ok(request) = ApprovalRequest::read(id, stored.document) else { return Ok(()) };
    let pointer = core.courier.session_of(stored.beside, &request.session).await?;
    let asked = in_redis(request, &pointer, stored.ttl, core.clock.now());
    if !(asked.request.is_pending() && is_same(record, &asked) && pointer.names(id))
        || pointer.is_anothers(Some(&record.tenant), record.user.as_ref())
    {
        return Ok(());
    }
    // What is owed anew must have been noted as sent.
    if let Some(mark) = core.marks.of(record) {
        marks::write_one(core, mark).await?;
    }
    if let Some(record) = core.ledger.owe_again(record, core.clock.now()).await? {
        crash_point!("owed-again");
        info!(request_id = %id, "the agent asked again; it is told again");
        let document = Some(asked.request.document);
        send_now(core, &record, Seen { pointer, document }).await;
    }
    Ok(())
}

/// Registers a request for an agent that waits over HTTP, in the ledger alone.
///
/// # Errors
/// [`Refusal::Altered`] when the id stands for something else already.
pub async fn register(core: &Core, caller: &Caller, candidate: &Candidate) -> Result<Registered> {
    let id = &candidate.request.id;
    // With Redis out of reach nobody can tell. Whatever is there then is never shown or decided.
    let found = look(core, caller, id).await;
    if matches!(found, InRedis::Request(_) | InRedis::Unreadable { .. })
        && core.ledger.find_request(&caller.tenant, id).await?.is_none()
    {
        // An agent of this tenant wrote it.
        return Err(Refusal::Altered.into());
    }
    if let Some(task) = &candidate.request.task
        && let Some(task) = core.ledger.find_task(&caller.tenant, task).await?
        && !may_write(Some(&task.user), caller)
    {
        return Err(Refusal::NotTheOwner.into());
    }
    let (now, held_for, if_match) = (core.clock.now(), TimeDelta::zero(), None);
    if let Err(error) = core.quotas.check(&core.ledger, caller, candidate, now).await {
        // Registering the same again costs nothing.
        if core.ledger.find_request(&caller.tenant, id).await?.is_none() {
            return Err(error.into());
        }
    }
    let (state, trace_parent) = (&State::Pending, traces::here());
    let audit = core.audit_entry(candidate, state, caller, now);
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
    match core.ledger.register(&writing).await? {
        Registered::New(record) => {
            crash_point!("registered");
            core.quotas.count(caller, candidate).await;
            info!(request_id = %record.id, session_id = printable(record.session.as_str()),
                user = printable(caller.user.as_str()), tenant = printable(caller.tenant.as_str()),
                "registered");
            Ok(Registered::New(record))
        }
        Registered::Known(record)
            if record.origin != Origin::Http
                || record.content_hash != candidate.request.content_hash
                || record.expires_at - record.created_at
                    != candidate.expires_at - candidate.created_at =>
        {
            Err(Refusal::Altered.into())
        }
        Registered::IdTaken => Err(Refusal::Altered.into()),
        known => Ok(known),
    }
}

/// The request as one JSON object, as the ledger knows it, and its entity tag. Only an agent on Redis
/// that has asked again since is shown as it asks.
///
/// # Errors
/// [`Problem::Refused`] with [`Refusal::NotFound`] for strangers and unknown ids alike.
pub async fn read_request(
    core: &Core,
    caller: &Caller,
    id: &RequestId,
) -> Result<(String, String)> {
    let found = look(core, caller, id).await;
    let Some(mut record) = core.ledger.find_request(&caller.tenant, id).await? else {
        let Candidate { request, .. } = undecided(core, id, found).await?;
        return Ok((request.document, request.etag));
    };
    core.decisions.remember(&record, core.clock.now());
    core.marks.apply(&mut record);
    let is_altered = compare(core, &record, &found);
    if let InRedis::Request(request) = found
        && request.0.request.is_pending()
        && !is_altered
        && has_been_answered(&record)
    {
        let (Candidate { request, .. }, _pointer) = *request;
        return Ok((request.document, request.etag));
    }
    let etag = record.etag();
    let document = match &record.state {
        State::Pending => record.document,
        State::Decided(decision) => decided_document(&record.document, decision),
        State::Expired | State::Cancelled => closed_document(&record.document, &record.state),
    };
    Ok((document, etag))
}

/// Whether Redis has had the answer to a request of its own: if the same is pending there now, its
/// agent has asked again.
fn has_been_answered(record: &Record) -> bool {
    record.origin == Origin::Redis && record.state.decision().is_some() && !record.is_unsent()
}

/// What Redis has under an id that the ledger, read after it, does not know.
///
/// # Errors
/// [`Problem::DecidedByNobody`] for what says that it was decided, which the ledger would know.
pub(crate) async fn undecided(core: &Core, id: &RequestId, found: InRedis) -> Result<Candidate> {
    match found {
        InRedis::Nothing => Err(Refusal::NotFound.into()),
        InRedis::Unreachable(unavailable) => Err(unavailable.into()),
        InRedis::Unreadable { problem, .. } => Err(unreadable(problem)),
        InRedis::Request(request) if request.0.request.is_pending() => Ok(request.0),
        InRedis::Request(request) => Err(decided_by_nobody(core, id, &request.0).await?),
    }
}

/// The signal of a registered request whose decision is known here.
#[must_use]
pub fn known_signal(
    core: &Core,
    caller: &Caller,
    session: &SessionId,
    wanted: &RequestId,
) -> Option<String> {
    let known = core.decisions.registered(&caller.tenant, wanted)?;
    (known.session == *session).then(|| known.signal())
}

/// The signal that answers what a session waits for, or what the agent names, if that can be told by
/// what was read of the session and a decision that is known here: the common case of one that is
/// answered.
#[must_use]
pub fn signal_at_hand(
    core: &Core,
    caller: &Caller,
    session: &SessionId,
    wanted: Option<&RequestId>,
    polled: &Polled,
) -> Option<String> {
    let named = RequestId::parse(polled.pointer.request.as_deref()?).ok()?;
    let known = core.decisions.of_redis(&named)?;
    let (answered, document) = polled.answered.as_ref()?;
    if wanted.is_some_and(|wanted| *wanted != named)
        || known.tenant != caller.tenant
        || known.session != *session
        || answered != named.as_str()
    {
        return None;
    }
    let status = status_of(document)?;
    if status == State::Pending.as_str() {
        return None;
    }
    let signal = known.signal();
    if polled.signal.as_ref() != Some(&signal) {
        core.forgeries.signal(session, polled.signal.as_deref().unwrap_or_default());
    }
    if status != known.decision.verdict.status() {
        core.forgeries.request(&named, document);
    }
    Some(signal)
}

/// The signal that answers what a session waits for, or what the agent names; never another, and
/// never one that the ledger does not know. `polled` is what was just read of the session.
///
/// # Errors
/// [`Problem::Courier`] when Redis is silent and it cannot be told what the session waits for.
pub async fn find_signal(
    core: &Core,
    caller: &Caller,
    session: &SessionId,
    wanted: Option<&RequestId>,
    polled: Option<std::result::Result<Polled, Unavailable>>,
) -> Result<Option<String>> {
    let record = match wanted {
        Some(wanted) => core.ledger.find_request(&caller.tenant, wanted).await?,
        None => None,
    };
    if let Some(record) = record.as_ref().filter(|record| record.origin == Origin::Http) {
        // Registered requests do not depend on what their session names.
        core.decisions.remember(record, core.clock.now());
        return Ok(answer_of(record, caller, session));
    }
    let polled = match polled {
        Some(polled) => polled?,
        None => core.courier.poll(session).await?,
    };
    if let Some(signal) = signal_at_hand(core, caller, session, wanted, &polled) {
        return Ok(Some(signal));
    }
    let Polled { pointer, signal, .. } = polled;
    let under_the_key = match &signal {
        Some(signal) => answered_by(core, caller, session, signal).await?,
        None => None,
    };
    let named = pointer.request.clone();
    // Read after Redis: what was decided in between is found.
    let record = match (wanted.cloned(), named.clone().map(RequestId::parse)) {
        (Some(id), _) | (None, Some(Ok(id))) => {
            core.ledger.find_request(&caller.tenant, &id).await?
        }
        (None, Some(Err(_invalid))) => None,
        (None, None) => core.ledger.newest_of_redis(session).await?,
    };
    let is_ours =
        |record: &Record| record.origin == Origin::Redis && record.tenant == caller.tenant;
    let Some(mut record) = record.filter(is_ours) else { return Ok(None) };
    core.decisions.remember(&record, core.clock.now());
    core.marks.apply(&mut record);
    let names_nothing = named.is_none() && wanted.is_none();
    let is_under_the_key = under_the_key.as_ref() == Some(&record.id);
    if names_nothing && !is_under_the_key && !still_waits(&record, core.clock.now()) {
        return Ok(None);
    }
    if !delivery::is_waited_for(core, &record, &pointer).await? {
        return Ok(None);
    }
    let stored = core.courier.find_request(&record.id).await?;
    let document = stored.as_ref().map(|stored| &*stored.document);
    if let (Some(status), Some(document)) = (document.and_then(status_of), document)
        && ![State::Pending.as_str(), record.state.as_str()].contains(&&*status)
    {
        core.forgeries.request(&record.id, document);
    }
    let is_answered = match CourierCopy::of(&record, document) {
        CourierCopy::Settled => true,
        // An agent on Redis has asked again, so an earlier answer is not the answer; one that is
        // still owed has simply not reached Redis yet.
        CourierCopy::Pending => record.is_unsent(),
        CourierCopy::Other => false,
    };
    if !is_answered {
        return Ok(None);
    }
    Ok(answer_of(&record, caller, session))
}

/// Which request a signal under a session's key answers, if it says what the ledger says; reports it
/// otherwise.
async fn answered_by(
    core: &Core,
    caller: &Caller,
    session: &SessionId,
    signal: &str,
) -> Result<Option<RequestId>> {
    if core.forgeries.is_known_signal(session, signal) {
        return Ok(None);
    }
    let says_so = |record: &Record| {
        let said = record.state.decision().map(|decision| signal_json(&record.id, decision));
        record.session == *session && said.as_deref() == Some(signal)
    };
    let id = signal_request(signal).and_then(|id| RequestId::parse(id).ok());
    if let Some(id) = id {
        let is_known = core.decisions.of_redis(&id);
        if is_known.is_some_and(|known| known.session == *session && known.signal() == signal) {
            return Ok(Some(id));
        }
        let of_redis = core.ledger.find_request_of_redis(&id).await?;
        if let Some(record) = of_redis.filter(says_so) {
            core.decisions.remember(&record, core.clock.now());
            return Ok(Some(id));
        }
        // An older release signals registered requests, too.
        if core.ledger.find_request(&caller.tenant, &id).await?.is_some_and(|r| says_so(&r)) {
            return Ok(Some(id));
        }
    }
    core.forgeries.signal(session, signal);
    Ok(None)
}

fn answer_of(record: &Record, caller: &Caller, session: &SessionId) -> Option<String> {
    match &record.state {
        State::Decided(decision)
            if record.tenant == caller.tenant && record.session == *session =>
        {
            Some(signal_json(&record.id, decision))
        }
        _ => None,
    }
}

/// Whether an agent whose session names nothing can still be waiting for this answer.
///
/// If Redis was wiped, the session may by now wait for a request that nobody knows, and an agent
/// that asks without a request id takes whatever it gets for its answer. So an answer that never
/// left us counts only while the agent's patience lasts, and one that did only for a moment and
/// only if nobody was listening.
fn still_waits(record: &Record, now: DateTime<Utc>) -> bool {
    match record.delivery {
        Delivery::Owed if record.is_unsent() => now < record.created_at + PATIENCE,
        Delivery::Owed | Delivery::Sent => record.is_unheard(now),
        Delivery::Superseded => false,
    }
}
