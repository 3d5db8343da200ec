//! The use cases around an approval request: decide it, register it, read it, and find the signal
//! that answers it. Each is one walk along the path that `lib.rs` draws; the rules themselves are
//! in `domain`, the guarantees in `ledger`.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tracing::{info, warn};

use crate::core::{Core, Undone};
use crate::courier::{Polled, Seen, StoredRequest, Unavailable};
use crate::delivery;
use crate::domain::approver::Caller;
use crate::domain::decision::{
    self, Candidate, CourierCopy, Decision, Delivery, Expected, Mark, Record, Refusal, State,
    Verdict, is_same, is_visible, may_write, settle,
};
use crate::domain::ids::{RequestId, SessionId};
use crate::domain::request::{
    ApprovalRequest, Origin, PATIENCE, REQUEST_TTL_SECONDS, Unreadable, age, closed_document,
    decided_document, is_settled_for,
};
use crate::domain::session::{SessionPointer, is_anothers};
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
    /// Redis says that it was decided, and the ledger knows nothing of it.
    #[error("decided by another program")]
    DecidedElsewhere(String),
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
    let stored = match core.courier.find_request(id).await {
        Ok(Some(stored)) => stored,
        Ok(None) => {
            let record = core.ledger.find_request(id).await?.ok_or(Refusal::NotFound)?;
            return attempt.on_record(record, None, Sending::Now).await;
        }
        // Without Redis only what the ledger knows can be decided; its signal goes out later.
        Err(unavailable) => {
            let record = core.ledger.find_request(id).await?.ok_or(unavailable)?;
            return attempt.on_record(record, None, Sending::Later).await;
        }
    };
    let (candidate, pointer) = match open(core, id, stored, attempt.now).await {
        Ok(opened) => opened,
        Err(problem) => {
            let Some(record) = core.ledger.find_request(id).await? else {
                return Err(hide_from_strangers(problem, caller));
            };
            // What cannot be read is not what the ledger knows.
            return match problem {
                OpenProblem::Unreadable(_) => attempt.on_standing(record, true).await,
                OpenProblem::Courier(_) => attempt.on_record(record, None, Sending::Later).await,
            };
        }
    };
    if candidate.request.is_pending() && pointer.allows(id) {
        let document = Some(candidate.request.document.clone());
        let seen = Seen { pointer: pointer.clone(), document };
        return attempt.record(&candidate, &pointer, Sending::Judged(seen)).await;
    }
    // Decided already, or the session names another request: the ledger knows which, and whether
    // the request was registered, so that its session does not matter.
    if let Some(record) = core.ledger.find_request(id).await? {
        return attempt.on_record(record, Some(&candidate), Sending::Now).await;
    }
    let verdict = attempt.verdict;
    decision::decide(&candidate, &pointer, caller, verdict, attempt.now, core.policy)?;
    Err(Problem::DecidedElsewhere(candidate.request.status))
}

/// What to do about the signal of a decision just recorded.
enum Sending {
    /// Send it.
    Now,
    /// Send it, if all is still as it was seen, which has been judged already.
    Judged(Seen),
    /// Leave it to the relay: Redis does not answer.
    Later,
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
    async fn on_record(
        self,
        record: Record,
        found: Option<&Candidate>,
        sending: Sending,
    ) -> Result<Decided> {
        // A registered request's copy in Redis must say all that was registered, and nothing else.
        // A settled one has changed with its decision, which alters nothing.
        let is_altered = found.is_some_and(|found| {
            !is_same(&record, found)
                && (found.request.is_pending() || record.state == State::Pending)
        });
        if record.state != State::Pending || is_altered {
            return self.on_standing(record, is_altered).await;
        }
        let candidate = candidate(record)?;
        // Whether a registered request may be decided does not depend on what its session names.
        self.record(&candidate, &SessionPointer::default(), sending).await
    }

    /// Something stands in the ledger that this attempt cannot change.
    async fn on_standing(self, record: Record, is_altered: bool) -> Result<Decided> {
        let is_over = record.state == State::Pending
            && record.tenant == self.caller.tenant
            && self.now >= record.expires_at;
        // Nobody is told so while somebody who came in time may still be on the way.
        let record = if is_over {
            match outcomes::expire(self.core, self.id, self.now).await? {
                Some(expired) => expired,
                None => self.core.ledger.find_request(self.id).await?.unwrap_or(record),
            }
        } else {
            record
        };
        let decision = settle(&record, is_altered, self.caller, &self.verdict, self.now)
            .inspect_err(|refusal| warn_if_altered(refusal, self.id))?;
        let etag = record.etag();
        self.expected.check(&etag)?;
        Ok(Decided { session: record.session, decision, etag })
    }

    /// Asks the ledger for the decision, and sends its signal.
    async fn record(
        self,
        candidate: &Candidate,
        pointer: &SessionPointer,
        sending: Sending,
    ) -> Result<Decided> {
        let verdict = self.verdict.clone();
        let decision =
            decision::decide(candidate, pointer, self.caller, verdict, self.now, self.core.policy);
        // What Redis says to be a stranger's may be registered here; and if it is not, it is looked
        // up as an id that does not exist would be, so that an outage does not tell them apart.
        // Whether a registered one's time ran out undecided, only the ledger can tell.
        if matches!(decision, Err(Refusal::NotFound | Refusal::Expired))
            && let Some(record) = self.core.ledger.find_request(self.id).await?
        {
            let is_altered = !is_same(&record, candidate);
            return self.on_standing(record, is_altered).await;
        }
        let decision = decision?;
        let etag = candidate.request.etag.clone();
        let if_match = self.expected.check(&candidate.request.etag)?;
        let held_for = if matches!(sending, Sending::Later) { TimeDelta::zero() } else { LEASE };
        let (caller, now) = (self.caller, self.now);
        let state = &State::Decided(decision.clone());
        let trace_parent = traces::here();
        let audit = self.core.audit_entry(candidate, state, caller, now);
        let writing =
            Writing { candidate, state, caller, now, held_for, if_match, trace_parent, audit };
        crash_point!("deciding");
        let recorded = match self.core.ledger.record_outcome(&writing).await {
            Err(error @ LedgerError::OutcomeUnknown(_)) => self.confirm(&decision, error).await?,
            recorded => recorded?,
        };
        match recorded {
            Recorded::Won(record) => {
                crash_point!("decided");
                info!(session_id = %record.session, outcome = decision.verdict.status(), "decided");
                metrics::decided(self.core, &record);
                // Those who wait here need not wait for Redis.
                self.core.hub.tell(&record.session);
                match sending {
                    Sending::Now => send_now(self.core, &record, None).await,
                    Sending::Judged(seen) => send_now(self.core, &record, Some(seen)).await,
                    Sending::Later => {}
                }
                Ok(Decided { session: record.session, decision, etag })
            }
            Recorded::Lost(mut record) => {
                self.core.marks.apply(&mut record);
                let was_sent = !record.is_unsent();
                let standing = record.clone();
                let (core, id) = (self.core, self.id);
                let is_altered = !is_same(&record, candidate);
                let decided = self.on_standing(record, is_altered).await?;
                if was_sent {
                    send_if_asked_again(core, id, &standing).await?;
                }
                Ok(decided)
            }
        }
    }

    /// The connection broke while the ledger was told: only the ledger knows how that ended.
    async fn confirm(&self, decision: &Decision, error: LedgerError) -> Result<Recorded> {
        let reading = self.core.ledger.find_request(self.id);
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
        request: ApprovalRequest::read(&record.id, record.document)
            .map_err(|unreadable| Problem::Unreadable(unreadable.problem))?,
        origin: record.origin,
        tenant: Some(record.tenant),
        user: record.user,
        created_at: record.created_at,
        expires_at: record.expires_at,
    })
}

fn warn_if_altered(refusal: &Refusal, id: &RequestId) {
    if *refusal == Refusal::Altered {
        warn!(security = true, request_id = %id,
            "a registered request differs from its copy in Redis; it was not decided");
    }
}

/// Reads a request found in Redis and what its session names.
async fn open(
    core: &Core,
    id: &RequestId,
    stored: StoredRequest,
    now: DateTime<Utc>,
) -> std::result::Result<(Candidate, SessionPointer), OpenProblem> {
    let request = ApprovalRequest::read(id, stored.document).map_err(OpenProblem::Unreadable)?;
    let pointer = core.courier.session_of(stored.beside, &request.session).await;
    let pointer = pointer.map_err(OpenProblem::Courier)?;
    let candidate = in_redis(request, &pointer, stored.ttl, now);
    Ok((candidate, pointer))
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
    Candidate {
        tenant: request.tenant.clone().or_else(|| pointer.tenant.clone()),
        user: request.user.clone().or_else(|| pointer.user.clone()),
        request,
        origin: Origin::Redis,
        created_at,
        expires_at: created_at + lifetime,
    }
}

enum OpenProblem {
    Unreadable(Unreadable),
    Courier(Unavailable),
}

/// A request that cannot be read is reported as such, unless it can be seen to be another
/// tenant's: then it does not exist.
fn hide_from_strangers(problem: OpenProblem, caller: &Caller) -> Problem {
    match problem {
        OpenProblem::Courier(unavailable) => unavailable.into(),
        OpenProblem::Unreadable(unreadable) => {
            if unreadable.tenant.is_some_and(|tenant| tenant != caller.tenant) {
                return Refusal::NotFound.into();
            }
            warn!(problem = unreadable.problem, "a request in Redis cannot be read");
            Problem::Unreadable(unreadable.problem)
        }
    }
}

/// Sends the signal of a decision just recorded. A failure is no matter: it stays owed, and is the
/// relay's from then on.
async fn send_now(core: &Core, record: &Record, seen: Option<Seen>) {
    let delivered = delivery::deliver(core, record, seen).await;
    metrics::delivered(By::Decider, delivered.as_ref().ok().map(|settled| settled.delivery));
    match delivered {
        Ok(settled) => {
            crash_point!("signalled");
            if settled.delivery == Delivery::Superseded {
                // Its agent waits over HTTP, perhaps on another replica.
                outcomes::tell(core, &record.session).await;
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
    let Ok((asked, pointer)) = open(core, id, stored, core.clock.now()).await else {
        return Ok(());
    };
    if !(asked.request.is_pending() && is_same(record, &asked) && pointer.allows(id)) {
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
        send_now(core, &record, Some(Seen { pointer, document })).await;
    }
    Ok(())
}

/// Registers a request for an agent that cannot reach Redis, and writes Redis as the agent would.
///
/// # Errors
/// [`Refusal::Altered`] when the id stands for something else already; [`Refusal::SessionTaken`]
/// when the session is somebody else's.
pub async fn register(core: &Core, caller: &Caller, candidate: &Candidate) -> Result<Registered> {
    // With Redis out of reach nobody can tell; the relay will then write only what is not there.
    if let Err(problem @ Problem::Refused(_)) = check_is_free(core, caller, candidate).await {
        return Err(problem);
    }
    if let Some(task) = &candidate.request.task
        && let Some(task) = core.ledger.find_task(&caller.tenant, task).await?
        && !may_write(Some(&task.user), caller)
    {
        return Err(Refusal::NotTheOwner.into());
    }
    let now = core.clock.now();
    if let Err(error) = core.quotas.check(&core.ledger, caller, candidate, now).await {
        // Registering the same again costs nothing.
        let known = core.ledger.find_request(&candidate.request.id).await?;
        if known.is_none_or(|known| known.tenant != caller.tenant) {
            return Err(error.into());
        }
    }
    let (state, trace_parent) = (&State::Pending, traces::here());
    let audit = core.audit_entry(candidate, state, caller, now);
    let (held_for, if_match) = (LEASE, None);
    let writing =
        Writing { candidate, state, caller, now, held_for, if_match, trace_parent, audit };
    match core.ledger.register(&writing).await? {
        Registered::New(record) => {
            crash_point!("registered");
            core.quotas.count(caller, candidate).await;
            info!(request_id = %record.id, session_id = %record.session, user = %caller.user,
                tenant = %caller.tenant, "registered");
            match delivery::announce(core, &record, false).await {
                Ok(settled) => core.marks.hand_in(Mark::of(&record, settled, core.clock.now())),
                Err(error) => {
                    warn!(request_id = %record.id, %error, "registered; not in Redis yet");
                }
            }
            Ok(Registered::New(record))
        }
        Registered::Known(record)
            if record.tenant != caller.tenant
                || record.content_hash != candidate.request.content_hash
                || record.expires_at - record.created_at
                    != candidate.expires_at - candidate.created_at =>
        {
            Err(Refusal::Altered.into())
        }
        known => Ok(known),
    }
}

/// Refuses what would write over somebody else's request or session: whoever waits there takes
/// the first message for their answer.
async fn check_is_free(core: &Core, caller: &Caller, candidate: &Candidate) -> Result<()> {
    let request = &candidate.request;
    let (stored, pointer) = tokio::try_join!(
        core.courier.find_request(&request.id),
        core.courier.session(&request.session)
    )?;
    // What is there and the ledger does not know, an agent wrote.
    if stored.is_some() && core.ledger.find_request(&request.id).await?.is_none() {
        return Err(Refusal::Altered.into());
    }
    let (mut tenant, mut user) = (pointer.tenant.clone(), pointer.user.clone());
    if let (None, Some(named)) = (&tenant, &pointer.request)
        && let Ok(id) = RequestId::parse(named)
        && let Some(stored) = core.courier.find_request(&id).await?
        && let Ok(there) = ApprovalRequest::read(&id, stored.document)
    {
        // Older writers leave it to the request to say whose session it is.
        (tenant, user) = (there.tenant, there.user);
    }
    if is_anothers(tenant.as_ref(), user.as_ref(), caller) {
        warn!(security = true, session_id = %request.session, user = %caller.user,
            tenant = %caller.tenant, "refused to register in somebody else's session");
        return Err(Refusal::SessionTaken.into());
    }
    Ok(())
}

/// The request as one JSON object, as it stands now, and its entity tag. What the ledger knows, the
/// ledger answers: except for an agent on Redis that has asked again since.
///
/// # Errors
/// [`Problem::Refused`] with [`Refusal::NotFound`] for strangers and unknown ids alike.
pub async fn read_request(
    core: &Core,
    caller: &Caller,
    id: &RequestId,
) -> Result<(String, String)> {
    let (stored, record) =
        tokio::join!(core.courier.find_request(id), core.ledger.find_request(id));
    let mut record = record?;
    if let Some(record) = &mut record {
        core.marks.apply(record);
    }
    let is_settled = record.as_ref().is_some_and(|record| {
        let is_closed = matches!(record.state, State::Expired | State::Cancelled);
        is_closed || record.origin == Origin::Http || record.is_unsent()
    });
    let problem = match stored {
        Ok(Some(stored)) if !is_settled => match open_for(core, caller, id, stored).await {
            Ok(Candidate { request, .. }) => {
                // A decided one has grown by its decision, of which the tag says nothing.
                let grown = record.as_ref().filter(|_| !request.is_pending());
                let etag = grown.map_or(request.etag, Record::etag);
                return Ok((request.document, etag));
            }
            Err(problem @ (Problem::Refused(_) | Problem::Unreadable(_))) => return Err(problem),
            Err(problem) => problem,
        },
        Ok(_) => Refusal::NotFound.into(),
        Err(unavailable) => unavailable.into(),
    };
    let record = record.ok_or(problem)?;
    if record.tenant != caller.tenant {
        return Err(Refusal::NotFound.into());
    }
    let etag = record.etag();
    let document = match &record.state {
        State::Pending => record.document,
        State::Decided(decision) => decided_document(&record.document, decision),
        State::Expired | State::Cancelled => closed_document(&record.document, &record.state),
    };
    Ok((document, etag))
}

/// The request as it is in Redis, if the caller may see it. Its session is asked only when the
/// request itself does not name tenant and user.
pub(crate) async fn open_for(
    core: &Core,
    caller: &Caller,
    id: &RequestId,
    stored: StoredRequest,
) -> Result<Candidate> {
    let request = ApprovalRequest::read(id, stored.document)
        .map_err(|unreadable| hide_from_strangers(OpenProblem::Unreadable(unreadable), caller))?;
    let pointer = match (&request.tenant, &request.user) {
        (Some(_), Some(_)) => SessionPointer::default(),
        _ => core.courier.session_of(stored.beside, &request.session).await?,
    };
    let candidate = in_redis(request, &pointer, stored.ttl, core.clock.now());
    let user = candidate.user.as_ref();
    if is_visible(candidate.tenant.as_ref(), user, caller, core.policy) {
        Ok(candidate)
    } else {
        Err(Refusal::NotFound.into())
    }
}

/// The signal that answers what a session waits for, or what the agent names, if that can be told by
/// what was read of the session alone: the common case of one that is answered.
#[must_use]
pub fn signal_at_hand<'a>(
    polled: &'a Polled,
    caller: &Caller,
    wanted: Option<&RequestId>,
) -> Option<&'a str> {
    let named = polled.pointer.request.as_deref()?;
    let signal = polled.signal.as_deref()?;
    let (answered, document) = polled.answered.as_ref()?;
    let is_the_answer = answered == named
        && wanted.is_none_or(|wanted| wanted.as_str() == named)
        && signal_request(signal).as_deref() == Some(named)
        && polled.pointer.tenant.as_ref() == Some(&caller.tenant)
        && RequestId::parse(named.to_owned())
            .is_ok_and(|id| is_settled_for(&id, &caller.tenant, document));
    is_the_answer.then_some(signal)
}

/// The signal that answers what a session waits for, or what the agent names; never another.
/// `polled` is what was just read of the session.
///
/// # Errors
/// [`Problem::Courier`] when Redis is silent and it cannot be told what the session waits for.
pub async fn find_signal(
    core: &Core,
    caller: &Caller,
    session: &SessionId,
    wanted: Option<&RequestId>,
    polled: std::result::Result<Polled, Unavailable>,
) -> Result<Option<String>> {
    let polled = match (polled, wanted) {
        (Ok(polled), _) => polled,
        // Registered requests do not depend on their session, so the ledger alone can answer.
        (Err(unavailable), Some(wanted)) => {
            let record = core.ledger.find_request(wanted).await?;
            let record =
                record.filter(|record| record.origin == Origin::Http).ok_or(unavailable)?;
            return Ok(answer_of(&record, caller, session));
        }
        (Err(unavailable), None) => return Err(unavailable.into()),
    };
    if let Some(signal) = signal_at_hand(&polled, caller, wanted) {
        return Ok(Some(signal.to_owned()));
    }
    let Polled { pointer, signal, .. } = polled;
    let named = pointer.request.clone();
    let target = wanted.map(|wanted| wanted.as_str().to_owned()).or_else(|| named.clone());
    let in_redis = signal.as_deref().and_then(signal_request);
    let record = match target {
        Some(id) => match RequestId::parse(id) {
            Ok(id) => core.ledger.find_request(&id).await?,
            Err(_invalid) => None,
        },
        None => core.ledger.newest_decided(session, &caller.tenant).await?,
    };
    let Some(mut record) = record else { return Ok(None) };
    core.marks.apply(&mut record);
    let names_nothing = named.is_none() && wanted.is_none();
    let is_under_the_key = in_redis.as_deref() == Some(record.id.as_str());
    if names_nothing && !is_under_the_key && !still_waits(&record, core.clock.now()) {
        return Ok(None);
    }
    if record.origin == Origin::Redis && !pointer.allows(&record.id) {
        return Ok(None);
    }
    let stored = core.courier.find_request(&record.id).await?;
    let is_answered =
        match CourierCopy::of(&record, stored.as_ref().map(|stored| &*stored.document)) {
            CourierCopy::Settled => true,
            // An agent on Redis has asked again, so an earlier answer is not the answer; one that is
            // still owed has simply not reached Redis yet.
            CourierCopy::Pending => record.origin == Origin::Http || record.is_unsent(),
            CourierCopy::Other => false,
        };
    if !is_answered {
        return Ok(None);
    }
    Ok(answer_of(&record, caller, session))
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
