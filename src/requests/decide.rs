//! Decides a request: exactly once, by a person who may decide it, with the content that they saw.
//!
//! Four steps. **Load** the request, from Redis or the ledger. **Judge** whether this person may decide
//! it now. **Record** the decision; the ledger accepts exactly one. **Send** its signal. If one of the
//! steps finds the request closed, `Attempt::repeat` answers: the same decision again is a success,
//! another decision is refused.
//!
//! Where a rule of the policy file asks for several approvals, an approval is a vote. The votes before it
//! are read and counted, and then it is written, alone or with the decision, if nobody else has voted
//! meanwhile. Else everything begins anew.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::info;

use super::error::{RequestError, Result};
use super::expire::expire;
use super::load::{
    InRedis, compare_and_report, find_in_redis, ledger_candidate, unreadable, unrecorded_decision,
};
use super::notify::notify;
use super::read::may_see_record;
use super::send::{asked_again, send_if_asked_again, send_now};
use super::standing::votes_on;
use crate::courier::SessionSnapshot;
use crate::delivery::send::SESSION_LIFETIME;
use crate::domain::approver::Caller;
use crate::domain::decision::{Decision, State, Verdict};
use crate::domain::grant::Wish;
use crate::domain::ids::{GrantId, RequestId, SessionId};
use crate::domain::printable::printable;
use crate::domain::record::{
    Candidate, DecidedVia, Delivery, DeliveryReceipt, DeliveryResult, Record, is_same,
};
use crate::domain::request::Origin;
use crate::domain::rules::{ExistingDecision, Expected, Refusal, judge_lost_decision};
use crate::domain::schema::Schema;
use crate::domain::session::SessionPointer;
use crate::ledger::{Change, LEASE, LedgerError, Overdue, Recorded, SeenRequest, Writing};
use crate::observe::metrics;
use crate::permit::{self, Asking, Ballot, Counted, Granted, Permit, Tally, Terms};
use crate::state::AppState;

/// How long to ask the ledger whether it has recorded a decision that it did not confirm.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_millis(900);

/// How often an approval begins anew because others vote at the same time.
const MAX_ROUNDS: u32 = 20;
/// The pause before that, longer each time.
const ROUND_PAUSE: Duration = Duration::from_millis(5);

/// What a caller's decision has come to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The request has this decision.
    Decided(Decided),
    /// The approval is recorded, and more are needed.
    Voted(Voted),
}

/// An approval that is recorded, of a request that needs more of them.
#[derive(Clone, Debug)]
pub struct Voted {
    /// The session that waits.
    pub session: SessionId,
    /// How many people have approved it.
    pub approvals: i64,
    /// How many have to.
    pub needed: i64,
    /// The entity tag of the request.
    pub etag: String,
}

/// The decision in the ledger, for the answer to the caller who made it.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The session that waits.
    pub session: SessionId,
    /// The decision.
    pub decision: Decision,
    /// The entity tag of the request.
    pub etag: String,
    /// The grant that the approval has made.
    pub grant: Option<GrantId>,
}

/// Decides a request, exactly once, and wakes its agent. `expected` is the content that the person saw;
/// `remember` says for which later requests an approval is to stand, too.
///
/// # Errors
/// [`RequestError`]. After [`RequestError::OutcomeUnknown`] the decision may be recorded; after every
/// other error it is not.
pub async fn decide(
    app: &AppState,
    caller: &Caller,
    id: &RequestId,
    verdict: Verdict,
    remember: Option<Wish>,
    expected: &Expected,
) -> Result<Outcome> {
    let attempt = Attempt { app, caller, id, verdict, remember, expected, now: app.clock.now() };
    let mut loaded = attempt.load().await?;
    let mut rounds = 0;
    loop {
        let subject = match loaded {
            Loaded::Open(subject) => subject,
            Loaded::Closed(closed) => return attempt.repeat(closed).await.map(Outcome::Decided),
        };
        let (granted, if_match) = match attempt.judge(&subject).await? {
            Judged::MayDecide { granted, if_match } => (granted, if_match),
            Judged::Closed(closed) => return attempt.repeat(*closed).await.map(Outcome::Decided),
        };
        let permit = match granted {
            Granted::Alone(permit) => Some(*permit),
            Granted::Together(tally) => match Box::pin(attempt.vote(&subject, &tally)).await? {
                Balloted::Decides(permit) => Some(*permit),
                Balloted::Added(voted) => return Ok(Outcome::Voted(voted)),
                Balloted::Closed(closed) => {
                    return attempt.repeat_and_resend(*closed).await.map(Outcome::Decided);
                }
                Balloted::Outdated => None,
            },
        };
        if let Some(permit) = permit {
            let decision = permit.decision().clone();
            match attempt.record(&subject, permit, if_match).await? {
                Written::Won(record) => {
                    let decided = attempt.send(&subject, &record, decision).await;
                    return Ok(Outcome::Decided(decided));
                }
                Written::Lost(closed) => {
                    return attempt.repeat_and_resend(closed).await.map(Outcome::Decided);
                }
                // An older release registered the request, which also wrote it to Redis.
                Written::IsRegistered(record) => {
                    loaded = attempt.of_ledger(*record, &InRedis::NotFound)?;
                    continue;
                }
                Written::Outdated => {}
            }
        }
        rounds += 1;
        if rounds > MAX_ROUNDS {
            let problem = "too many people vote on a request at once".to_owned();
            return Err(LedgerError::NotExecuted(problem).into());
        }
        tokio::time::sleep(ROUND_PAUSE * rounds).await;
        loaded = attempt.load().await?;
    }
}

/// One caller's attempt to decide one request.
pub(super) struct Attempt<'a> {
    pub app: &'a AppState,
    pub caller: &'a Caller,
    pub id: &'a RequestId,
    pub verdict: Verdict,
    pub remember: Option<Wish>,
    pub expected: &'a Expected,
    pub now: DateTime<Utc>,
}

/// The result of the steps load and judge, for a decision that is recorded together with others.
pub(super) enum Prepared {
    /// The request has this decision or this approval already, and the caller repeats it.
    Repeat(Outcome),
    /// The caller may decide the request.
    Open(Box<PreparedDecision>),
    /// Others changed the request while its votes were counted. It is to be prepared again.
    Outdated,
}

impl Prepared {
    /// The decision that may be recorded.
    pub(super) fn open(&self) -> Option<&PreparedDecision> {
        match self {
            Self::Repeat(_) | Self::Outdated => None,
            Self::Open(open) => Some(open),
        }
    }
}

/// A decision or a vote that may be recorded.
pub(super) struct PreparedDecision {
    subject: Subject,
    step: Step,
    /// The entity tag by which the caller named the content.
    if_match: Option<String>,
}

/// What a caller's decision comes to.
enum Step {
    /// It decides the request.
    Decide(Permit),
    /// It is an approval of a request that needs more of them.
    Vote(Ballot, Voted),
}

impl PreparedDecision {
    /// The bytes of the request's document.
    pub(super) fn size(&self) -> usize {
        self.subject.candidate.request.document.len()
    }
}

/// A request that was pending when it was loaded.
pub(super) struct Subject {
    pub candidate: Candidate,
    /// The session's pointer, for a request of Redis. A registered request does not depend on it.
    pub pointer: Option<SessionPointer>,
}

/// A row that this attempt cannot change.
pub(super) struct Closed {
    record: Record,
    /// Whether the caller's request differs from the row's.
    is_altered: bool,
}

impl Closed {
    /// The row that was found in place of this candidate.
    fn of(record: Record, candidate: &Candidate) -> Self {
        Self { is_altered: !is_same(&record, candidate), record }
    }
}

enum Loaded {
    Open(Subject),
    Closed(Closed),
}

enum Judged<'a> {
    MayDecide {
        granted: Granted,
        /// The entity tag by which the caller named the content.
        if_match: Option<&'a str>,
    },
    Closed(Box<Closed>),
}

pub(super) enum Written {
    Won(Record),
    Lost(Closed),
    IsRegistered(Box<Record>),
    /// Somebody has voted since the votes were read, or the grant has ended: nothing was written.
    Outdated,
}

/// An approval that is a vote, counted with those of other people.
enum Counting {
    /// It is the last one that was missing.
    Decides(Box<Permit>),
    /// It is recorded already, and more are missing.
    IsGiven(Voted),
    /// It can be recorded, and more are missing.
    Adds(Box<(Ballot, Voted)>),
    /// The ledger has closed the request.
    Closed(Box<Closed>),
}

/// What has become of an approval that is a vote.
enum Balloted {
    /// It is the last one that was missing, and is to be recorded with the decision.
    Decides(Box<Permit>),
    /// It is recorded, and more are missing.
    Added(Voted),
    /// The ledger has closed the request: nothing was written.
    Closed(Box<Closed>),
    /// The request has changed, or somebody has voted since the votes were read: nothing was written.
    Outdated,
}

impl Attempt<'_> {
    /// Loads and judges, for a decision that is recorded together with others. Reads the ledger, too, for
    /// a request of Redis: alone, the write would find out whether the ledger has a decision.
    pub(super) async fn prepare(&self) -> Result<Prepared> {
        let mut loaded = self.load().await?;
        if let Loaded::Open(subject) = &loaded
            && subject.pointer.is_some()
            && let Some(record) = self.recorded().await?
        {
            let candidate = &subject.candidate;
            // Who repeats a decision must still be allowed to make it.
            if let Judged::Closed(closed) = self.judge(subject).await? {
                let repeated = self.repeat(*closed).await?;
                return Ok(Prepared::Repeat(Outcome::Decided(repeated)));
            }
            match self.written(Recorded::Lost(record), candidate)? {
                Written::IsRegistered(record) => {
                    loaded = self.of_ledger(*record, &InRedis::NotFound)?;
                }
                Written::Lost(closed) => {
                    let repeated = self.repeat_and_resend(closed).await?;
                    return Ok(Prepared::Repeat(Outcome::Decided(repeated)));
                }
                Written::Won(_) | Written::Outdated => {}
            }
        }
        let subject = match loaded {
            Loaded::Open(subject) => subject,
            Loaded::Closed(closed) => {
                let repeated = self.repeat(closed).await?;
                return Ok(Prepared::Repeat(Outcome::Decided(repeated)));
            }
        };
        let (granted, if_match) = match self.judge(&subject).await? {
            Judged::MayDecide { granted, if_match } => (granted, if_match.map(str::to_owned)),
            Judged::Closed(closed) => {
                let repeated = self.repeat(*closed).await?;
                return Ok(Prepared::Repeat(Outcome::Decided(repeated)));
            }
        };
        let step = match granted {
            Granted::Alone(permit) => Step::Decide(*permit),
            Granted::Together(tally) => match self.count(&subject, &tally).await? {
                Some(Counting::Decides(permit)) => Step::Decide(*permit),
                Some(Counting::Adds(added)) => {
                    let (ballot, voted) = *added;
                    Step::Vote(ballot, voted)
                }
                Some(Counting::IsGiven(voted)) => {
                    return Ok(Prepared::Repeat(Outcome::Voted(voted)));
                }
                Some(Counting::Closed(closed)) => {
                    let repeated = self.repeat_and_resend(*closed).await?;
                    return Ok(Prepared::Repeat(Outcome::Decided(repeated)));
                }
                None => return Ok(Prepared::Outdated),
            },
        };
        Ok(Prepared::Open(Box::new(PreparedDecision { subject, step, if_match })))
    }

    /// The write of a prepared decision.
    pub(super) fn writing<'a>(&'a self, prepared: &'a PreparedDecision) -> Writing<'a> {
        let PreparedDecision { subject, step, if_match } = prepared;
        match step {
            Step::Decide(permit) => self.write_of(subject, permit.clone(), if_match.as_deref()),
            Step::Vote(ballot, _voted) => {
                let change = Change::Vote(ballot.clone());
                Writing::new(&subject.candidate, change, self.caller, self.now)
            }
        }
    }

    /// Sends the signal of a prepared decision that was recorded, or tells of a vote.
    pub(super) async fn finish(&self, prepared: PreparedDecision, record: &Record) -> Outcome {
        match prepared.step {
            Step::Decide(permit) => {
                let decision = permit.decision().clone();
                Outcome::Decided(self.send(&prepared.subject, record, decision).await)
            }
            Step::Vote(_ballot, voted) => {
                self.announce(&voted);
                Outcome::Voted(voted)
            }
        }
    }

    /// Why a prepared decision cannot be recorded, as far as its write alone finds out.
    pub(super) async fn refused(&self, prepared: &PreparedDecision) -> Result<()> {
        match self.app.ledger.refusal_of(&self.writing(prepared)).await? {
            Some(refused) => self.written(refused, &prepared.subject.candidate).map(drop),
            None => Ok(()),
        }
    }

    /// Whether the ledger has a prepared decision, after the connection broke during its write.
    pub(super) async fn is_recorded(&self, prepared: &PreparedDecision) -> Option<bool> {
        let permit = match &prepared.step {
            Step::Decide(permit) => permit,
            Step::Vote(..) => return self.has_voted(&prepared.subject.candidate).await,
        };
        let state = State::Decided(permit.decision().clone());
        match tokio::time::timeout(CONFIRMATION_TIMEOUT, self.recorded()).await {
            Ok(Ok(Some(record))) if record.state == state => Some(true),
            Ok(Ok(Some(record))) if record.state != State::Pending => Some(false),
            _ => None,
        }
    }

    /// The row of a prepared decision that was recorded.
    pub(super) async fn row_after(&self, prepared: &PreparedDecision) -> Result<Option<Record>> {
        match &prepared.step {
            Step::Decide(_permit) => self.recorded().await,
            Step::Vote(..) => self.find().await,
        }
    }

    /// Loads the request from Redis, if it is pending there and its session waits for it; else from
    /// the ledger, which is read after Redis.
    async fn load(&self) -> Result<Loaded> {
        let found = find_in_redis(self.app, self.caller, self.id).await;
        let found = match found {
            InRedis::Request(request)
                if request.0.request.is_pending() && request.1.allows(self.id) =>
            {
                let (candidate, pointer) = *request;
                return Ok(Loaded::Open(Subject { candidate, pointer: Some(pointer) }));
            }
            found => found,
        };
        let seen = match self.find().await? {
            Some(record) if !record.is_only_seen() => return self.of_ledger(record, &found),
            seen => seen,
        };
        match found {
            InRedis::NotFound => Err(match seen.map(|seen| seen.state) {
                None => Refusal::NotFound,
                Some(State::Expired) => Refusal::Expired,
                // Redis has lost the request, or its key has just gone.
                Some(_pending) => Refusal::MovedOn,
            }
            .into()),
            InRedis::Unreachable(unavailable) => Err(unavailable.into()),
            InRedis::Unreadable { problem, .. } => Err(unreadable(problem)),
            InRedis::Request(request) => {
                let (candidate, pointer) = &*request;
                self.may_decide(candidate, pointer)?;
                Err(unrecorded_decision(self.app, self.id, candidate).await?)
            }
        }
    }

    /// Loads a request of which the ledger has a record; `found` is what was read from Redis before.
    fn of_ledger(&self, record: Record, found: &InRedis) -> Result<Loaded> {
        let is_altered = compare_and_report(self.app, &record, found);
        if record.state != State::Pending || is_altered {
            return Ok(Loaded::Closed(Closed { record, is_altered }));
        }
        match (record.origin, found) {
            (Origin::Http, _) => {
                Ok(Loaded::Open(Subject { candidate: ledger_candidate(record)?, pointer: None }))
            }
            // Only Redis knows whether the agent still waits for this request.
            (Origin::Redis, InRedis::Unreachable(unavailable)) => Err(unavailable.clone().into()),
            (Origin::Redis, _) => Err(Refusal::MovedOn.into()),
        }
    }

    /// Whether this person may decide the request now, and whether they saw its current content.
    async fn judge<'a>(&self, subject: &'a Subject) -> Result<Judged<'a>> {
        let Subject { candidate, pointer } = subject;
        self.check_schema(candidate)?;
        let granted = match self.may_decide(candidate, &pointer.clone().unwrap_or_default()) {
            // Only the ledger knows whether the request was decided before it expired.
            Err(Refusal::Expired) => match self.recorded().await? {
                Some(record) => {
                    return Ok(Judged::Closed(Box::new(Closed::of(record, candidate))));
                }
                None => return Err(Refusal::Expired.into()),
            },
            // An earlier decision stands.
            Err(Refusal::AnothersSession) => {
                self.report(candidate);
                return match self.recorded().await? {
                    Some(record) if record.state != State::Pending => {
                        Ok(Judged::Closed(Box::new(Closed::of(record, candidate))))
                    }
                    _ => Err(Refusal::AnothersSession.into()),
                };
            }
            judged => judged?,
        };
        let if_match = self.expected.check(&candidate.request.etag)?;
        Ok(Judged::MayDecide { granted, if_match })
    }

    /// Checks edited arguments and an answer against the schema of the request's agent.
    fn check_schema(&self, candidate: &Candidate) -> Result<()> {
        let offer = &candidate.request.offer;
        let (field, value, schema) = match &self.verdict {
            Verdict::Approve | Verdict::Reject { .. } => return Ok(()),
            Verdict::Edit { arguments } => ("arguments", arguments, &offer.arguments_schema),
            Verdict::Respond { response } => ("response", response, &offer.response_schema),
        };
        // A request of Redis takes neither, whatever it says.
        let Some(schema) = schema.as_ref().filter(|_schema| candidate.origin == Origin::Http)
        else {
            return Ok(());
        };
        let unreadable = RequestError::Unreadable("has a schema that cannot be read");
        let Ok(schema) = Schema::read(schema) else { return Err(unreadable) };
        let value = serde_json::from_str(value).unwrap_or_default();
        let mismatches = schema.mismatches(&value);
        if mismatches.is_empty() { Ok(()) } else { Err(RequestError::Mismatch(field, mismatches)) }
    }

    fn may_decide(
        &self,
        candidate: &Candidate,
        pointer: &SessionPointer,
    ) -> std::result::Result<Granted, Refusal> {
        let (caller, verdict, now) = (self.caller, &self.verdict, self.now);
        let remember = self.remember.as_ref();
        let asking = Asking { candidate, pointer, caller, verdict, remember, now };
        permit::judge(&self.app.rules.in_force(), asking)
    }

    /// Counts the votes. `None` if the request has changed.
    async fn count(&self, subject: &Subject, tally: &Tally) -> Result<Option<Counting>> {
        let row = match self.find().await? {
            // Its agent asks again for what the ledger has closed.
            Some(record)
                if subject.pointer.is_some()
                    && record.state != State::Pending
                    && !record.is_only_seen() =>
            {
                let closed = Closed::of(record, &subject.candidate);
                return Ok(Some(Counting::Closed(Box::new(closed))));
            }
            found => self.row_of(subject, found).await?,
        };
        let Some(row) = row else { return Ok(None) };
        // The row's counter is read before the votes: a vote that comes in between makes it outdated.
        crash_point!("counting");
        let given = votes_on(self.app, &self.caller.tenant, self.id).await?;
        let ballot = match tally.count(&subject.candidate, &given, row.ruling.ballots) {
            Counted::Decides(permit) => return Ok(Some(Counting::Decides(Box::new(permit)))),
            Counted::Adds(ballot) => ballot,
        };
        let request = &subject.candidate.request;
        let voted = Voted {
            session: request.session.clone(),
            approvals: ballot.ruling().approvals.unwrap_or(1),
            needed: ballot.ruling().approvals_needed.unwrap_or(1),
            etag: request.etag.clone(),
        };
        Ok(Some(if tally.is_repeated_in(&given) {
            Counting::IsGiven(voted)
        } else {
            Counting::Adds(Box::new((ballot, voted)))
        }))
    }

    /// Counts the votes, and writes this one unless it decides.
    async fn vote(&self, subject: &Subject, tally: &Tally) -> Result<Balloted> {
        let candidate = &subject.candidate;
        let (ballot, voted) = match self.count(subject, tally).await? {
            None => return Ok(Balloted::Outdated),
            Some(Counting::Decides(permit)) => return Ok(Balloted::Decides(permit)),
            Some(Counting::IsGiven(voted)) => return Ok(Balloted::Added(voted)),
            Some(Counting::Closed(closed)) => return Ok(Balloted::Closed(closed)),
            Some(Counting::Adds(added)) => *added,
        };
        let writing = Writing::new(candidate, Change::Vote(ballot), self.caller, self.now);
        let is_written = match self.app.ledger.record_vote(&writing).await {
            Err(error @ LedgerError::OutcomeUnknown(_)) => {
                self.confirm_vote(candidate, error).await?;
                true
            }
            written => written?.is_some(),
        };
        if !is_written {
            return Ok(Balloted::Outdated);
        }
        self.announce(&voted);
        Ok(Balloted::Added(voted))
    }

    /// Tells of a vote just recorded.
    fn announce(&self, voted: &Voted) {
        crash_point!("voted");
        let Voted { approvals, needed, .. } = voted;
        info!(
            session_id = printable(voted.session.as_str()),
            approvals, needed, "approval recorded"
        );
        metrics::voted();
        self.app.inbox.announce(&self.caller.tenant, self.id);
    }

    /// The row of a request on which people vote, which is the lock of the votes: the row that was found,
    /// if people may vote on it. A request of Redis gets one if it has none, or one with other content.
    /// `None` if there is no such row that is pending.
    async fn row_of(&self, subject: &Subject, found: Option<Record>) -> Result<Option<Record>> {
        let candidate = &subject.candidate;
        let is_row = |record: &Record| {
            record.state == State::Pending
                && record.origin == candidate.origin
                && record.content_hash == candidate.request.content_hash
                && self.now < record.expires_at
        };
        let is_free = found.as_ref().is_none_or(Record::is_only_seen);
        if found.as_ref().is_some_and(is_row) || !is_free || candidate.origin != Origin::Redis {
            return Ok(found.filter(is_row));
        }
        let tenant = &self.caller.tenant;
        let Terms { ruling, expires_at, .. } = self.app.rules.in_force().terms(candidate, tenant);
        let seen = SeenRequest {
            request: candidate.request.clone(),
            tenant: candidate.tenant.clone().unwrap_or_else(|| tenant.clone()),
            user: candidate.user.clone(),
            seen_at: self.now,
            asked_at: candidate.created_at,
            expires_at,
            read_at: self.now,
            has_moved_on: false,
            replication_id: None,
            ruling,
        };
        self.app.ledger.write_seen(&[seen]).await?;
        Ok(self.find().await?.filter(is_row))
    }

    /// Asks the ledger whether the vote is recorded, after the connection broke during the write.
    async fn confirm_vote(&self, candidate: &Candidate, error: LedgerError) -> Result<()> {
        match self.has_voted(candidate).await {
            Some(true) => Ok(()),
            _ => Err(RequestError::OutcomeUnknown(error)),
        }
    }

    /// Whether this attempt's vote is recorded; `None` if the ledger does not answer.
    async fn has_voted(&self, candidate: &Candidate) -> Option<bool> {
        let votes = votes_on(self.app, &self.caller.tenant, self.id);
        let votes = tokio::time::timeout(CONFIRMATION_TIMEOUT, votes).await.ok()?.ok()?;
        Some(votes.iter().any(|vote| {
            vote.voter == self.caller.user
                && vote.at == self.now
                && vote.etag == candidate.request.etag
        }))
    }

    /// Records the decision, unless there is one already.
    pub(super) async fn record(
        &self,
        subject: &Subject,
        permit: Permit,
        if_match: Option<&str>,
    ) -> Result<Written> {
        let decision = permit.decision().clone();
        let writing = self.write_of(subject, permit, if_match);
        crash_point!("deciding");
        let recorded = match self.app.ledger.record_outcome(&writing).await {
            Err(error @ LedgerError::OutcomeUnknown(_)) => self.confirm(&decision, error).await?,
            recorded => recorded?,
        };
        self.written(recorded, &subject.candidate)
    }

    fn write_of<'a>(
        &'a self,
        subject: &'a Subject,
        permit: Permit,
        if_match: Option<&'a str>,
    ) -> Writing<'a> {
        let (candidate, pointer) = (&subject.candidate, subject.pointer.as_ref());
        let state = State::Decided(permit.decision().clone());
        // A rule is no user.
        let is_users = permit.ruling().via != DecidedVia::Policy;
        let actor = is_users.then_some(&permit.decision().by);
        let tenant = &self.caller.tenant;
        Writing {
            audit: self.app.audit_entry_of(candidate, &state, tenant, actor, self.now),
            held_for: LEASE,
            if_match,
            only_newest: pointer.is_some_and(|pointer| pointer.request.is_none()),
            alone_since: pointer.map(|_pointer| self.now - SESSION_LIFETIME),
            ..Writing::new(candidate, Change::Decide(permit), self.caller, self.now)
        }
    }

    /// What the ledger's answer to a write means for this attempt.
    fn written(&self, recorded: Recorded, candidate: &Candidate) -> Result<Written> {
        match recorded {
            Recorded::Won(record) => Ok(Written::Won(record)),
            Recorded::Lost(record) => {
                let closed = Closed::of(record, candidate);
                let Closed { record, is_altered } = &closed;
                if *is_altered {
                    self.report(candidate);
                } else if record.state == State::Pending && record.origin == Origin::Http {
                    return Ok(Written::IsRegistered(Box::new(closed.record)));
                }
                Ok(Written::Lost(closed))
            }
            Recorded::VotesChanged | Recorded::GrantEnded => Ok(Written::Outdated),
            Recorded::MovedOn => Err(Refusal::MovedOn.into()),
            Recorded::AnothersSession => {
                self.report(candidate);
                Err(Refusal::AnothersSession.into())
            }
            Recorded::IdTaken => {
                // Another tenant had decided a request under this key.
                self.report(candidate);
                Err(Refusal::NotFound.into())
            }
        }
    }

    /// Asks the ledger whether the decision is recorded, after the connection broke during the write.
    async fn confirm(&self, decision: &Decision, error: LedgerError) -> Result<Recorded> {
        match tokio::time::timeout(CONFIRMATION_TIMEOUT, self.recorded()).await {
            Ok(Ok(Some(record))) if record.state == State::Decided(decision.clone()) => {
                Ok(Recorded::Won(record))
            }
            Ok(Ok(Some(record))) if record.state != State::Pending => Ok(Recorded::Lost(record)),
            _ => Err(RequestError::OutcomeUnknown(error)),
        }
    }

    /// Wakes the agent of a decision just recorded. A failure here does not fail the decision: the
    /// relay sends the signal later.
    pub(super) async fn send(
        &self,
        subject: &Subject,
        record: &Record,
        decision: Decision,
    ) -> Decided {
        crash_point!("decided");
        info!(
            session_id = printable(record.session.as_str()),
            outcome = decision.verdict.status(),
            "decided"
        );
        metrics::decided(self.app.courier.engine(), record);
        self.app.decisions.remember(record, self.now);
        if let Some(pointer) = &subject.pointer {
            // Long-polls on this replica are woken without Redis.
            self.app.hub.notify(&record.session);
            self.app.inbox.announce(&record.tenant, &record.id);
            self.app.search.write(&record.tenant, &subject.candidate.request);
            let document = Some(subject.candidate.request.document.clone());
            send_now(self.app, record, SessionSnapshot { pointer: pointer.clone(), document })
                .await;
        } else {
            notify(self.app, record);
            if record.delivery == Delivery::Owed {
                // Recording the decision has updated the task, too. Without this receipt the relay
                // would handle the delivery again.
                let receipt = DeliveryReceipt::of(record, DeliveryResult::SENT, self.now);
                self.app.ledger.keep_receipt(receipt);
            }
        }
        let etag = subject.candidate.request.etag.clone();
        let grant = record.made_grant().cloned();
        Decided { session: record.session.clone(), decision, etag, grant }
    }

    /// Answers with the decision of a row that this attempt cannot change.
    async fn repeat(&self, Closed { record, is_altered }: Closed) -> Result<Decided> {
        let is_over = record.state == State::Pending && self.now >= record.expires_at;
        // The ledger closes an overdue request under the row's lock, so a decision made in time wins.
        let record = if !is_over {
            record
        } else if let Some(expired) = expire(self.app, &Overdue::of(&record), self.now).await? {
            expired
        } else {
            self.recorded().await?.unwrap_or(record)
        };
        if !may_see_record(self.app, self.caller, &record).await? {
            return Err(self.not_allowed(&record));
        }
        let decision =
            judge_lost_decision(&record, is_altered, self.caller, &self.verdict, self.now)?;
        let etag = record.etag();
        self.expected.check(&etag)?;
        let grant = record.made_grant().cloned();
        if let Some(wish) = &self.remember
            && !self.is_remembered(grant.as_ref(), wish).await?
        {
            // The approval stands, and is not what the caller asks for.
            let (id, session) = (record.id, record.session);
            return Err(Refusal::AlreadyDecided(ExistingDecision { id, session, decision }).into());
        }
        Ok(Decided { session: record.session, decision, etag, grant })
    }

    /// Whether the approval has made a grant as the caller asks for it, which still stands.
    async fn is_remembered(&self, made: Option<&GrantId>, wish: &Wish) -> Result<bool> {
        let Some(id) = made else { return Ok(false) };
        let (ledger, tenant) = (&self.app.ledger, &self.caller.tenant);
        let grant = ledger.find_grant(tenant, id).await?;
        Ok(grant.is_some_and(|grant| grant.fulfils(wish))
            && ledger.is_in_force(tenant, id, self.now).await?)
    }

    /// Why the caller may not decide a closed request that they may not see either: the refusal says
    /// nothing of its decision.
    fn not_allowed(&self, record: &Record) -> RequestError {
        let law = self.app.rules.in_force();
        match ledger_candidate(record.clone()) {
            Ok(candidate) => {
                permit::refusal(&law, &candidate, self.caller, &self.verdict, self.now)
                    .unwrap_or(Refusal::NotFound)
                    .into()
            }
            Err(error) => error,
        }
    }

    /// `Attempt::repeat` for a request that is closed in the ledger and pending in Redis: if its
    /// agent has asked again, the signal is sent again. What a grant approved only the grant says again,
    /// while it stands, and never its granter.
    async fn repeat_and_resend(&self, closed: Closed) -> Result<Decided> {
        let record = closed.record.clone();
        let decided = self.repeat(closed).await?;
        if record.is_unsent() || record.origin != Origin::Redis {
            return Ok(decided);
        }
        if record.used_grant().is_none() {
            send_if_asked_again(self.app, self.id, &record).await?;
        } else if asked_again(self.app, self.id, &record).await?.is_some() {
            let Decided { session, decision, .. } = decided;
            let existing = ExistingDecision { id: record.id, session, decision };
            return Err(Refusal::AlreadyDecided(existing).into());
        }
        Ok(decided)
    }

    /// The ledger's record of this id, unless the request was only seen in Redis.
    pub(super) async fn recorded(&self) -> Result<Option<Record>> {
        Ok(self.find().await?.filter(|record| !record.is_only_seen()))
    }

    async fn find(&self) -> Result<Option<Record>> {
        Ok(self.app.ledger.find_request(&self.caller.tenant, self.id).await?)
    }

    /// Reports a request in Redis that contradicts the ledger.
    fn report(&self, candidate: &Candidate) {
        self.app.forgeries.request(self.id, &candidate.request.document);
    }
}
