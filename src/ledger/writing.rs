//! Writes requests: registers, decides, withdraws and expires them. The request and its task change
//! together or not at all.
//!
//! Postgres writes both in one statement, so that a process that dies leaves no open transaction.
//! One statement writes a batch of requests (`batches`): its values are the rows of `given`. SQLite
//! runs the same parts one after the other for each request, in one transaction for the batch.
//!
//! Everything that a statement looks up for a row is a sub-select of one value, which finds its row
//! by an index. A join or `EXISTS` would let Postgres read a whole table for a batch.

mod atomic;

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use const_format::{formatcp, str_replace};
use sqlx::error::DatabaseError;
use tracing::Instrument as _;

use super::batches::{Failure, Subject};
use super::connect::Ledger;
use super::engine::{Statement, Value, values};
use super::error::{LedgerError, Result};
use super::given::given;
use super::request_row::OWED_ANEW;
use super::requests::{FIND, Overdue, REQUEST_COLUMNS, RequestRow};
use crate::domain::approver::{Caller, Memberships, Role};
use crate::domain::audit::AuditEntry;
use crate::domain::decision::{Decision, State};
use crate::domain::grant::Grant;
use crate::domain::ids::{TaskId, TenantId, UserId};
use crate::domain::json;
use crate::domain::notice::Cause;
use crate::domain::printable::printable;
use crate::domain::record::{Candidate, DecidedVia, Record, Ruling};
use crate::domain::request::Origin;
use crate::domain::task::TaskStatus;
use crate::domain::vote::Vote;
use crate::domain::ways::{Offer, Risk};
use crate::observe::metrics::{self, AuditResult};
use crate::observe::traces;
use crate::permit::{Approvals, Ballot, Permit};

/// The input of one write of a request.
#[derive(Debug)]
pub struct Writing<'a> {
    /// The request to write.
    pub candidate: &'a Candidate,
    /// What the write does to the request.
    pub change: Change,
    /// Who registers, decides or withdraws the request.
    pub caller: &'a Caller,
    /// The time of the write, UTC.
    pub now: DateTime<Utc>,
    /// How long this process holds the lease of the signal: [`LEASE`](super::LEASE), or zero to
    /// leave the signal to the relay.
    pub held_for: TimeDelta,
    /// The `If-Match` header: the entity tag of the content that the decider had seen.
    pub if_match: Option<&'a str>,
    /// If true, nothing is written when the ledger knows a newer request of Redis in the session.
    /// Used when the session's pointer in Redis names no request.
    pub only_newest: bool,
    /// If set, nothing is written when another tenant has a request of Redis in the session that
    /// was made after this time. Used for decisions whose signal goes to the session in Redis.
    pub alone_since: Option<DateTime<Utc>>,
    /// The trace context of the write; see [`traces::current_trace_parent`].
    pub trace_parent: Option<String>,
    /// The entry for the Auth server's audit log.
    pub audit: AuditEntry,
    /// The entry for the registration, of a request that is registered as decided.
    pub registration_audit: AuditEntry,
}

/// What a write does to a request. A decision and a vote need the proof that they were judged.
#[derive(Debug)]
pub enum Change {
    /// Registers it. The ruling is what the policy file says of it.
    Register(Ruling),
    /// Withdraws it.
    Withdraw,
    /// Decides it.
    Decide(Permit),
    /// Adds an approval that does not decide it.
    Vote(Ballot),
}

impl Change {
    /// The column `status`.
    fn status(&self) -> &'static str {
        match self {
            Self::Register(_) | Self::Vote(_) => State::Pending.as_str(),
            Self::Withdraw => State::Cancelled.as_str(),
            Self::Decide(permit) => permit.decision().verdict.column_status(),
        }
    }

    fn decision(&self) -> Option<&Decision> {
        match self {
            Self::Decide(permit) => Some(permit.decision()),
            Self::Register(_) | Self::Withdraw | Self::Vote(_) => None,
        }
    }

    /// The columns `approvals_needed` and `approvals`.
    fn approvals(&self) -> [Option<i64>; 2] {
        match self {
            Self::Vote(ballot) => {
                let Approvals { given, needed } = ballot.approvals();
                [Some(needed), Some(given)]
            }
            _ => [
                self.ruling().and_then(|ruling| ruling.approvals_needed),
                self.ruling().and_then(|ruling| ruling.approvals),
            ],
        }
    }

    /// The vote that is written with it.
    fn vote(&self) -> Option<&Vote> {
        match self {
            Self::Decide(permit) => permit.vote(),
            Self::Vote(ballot) => Some(ballot.vote()),
            Self::Register(_) | Self::Withdraw => None,
        }
    }

    /// The grant that is made with it.
    fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Decide(permit) => permit.grant(),
            Self::Register(_) | Self::Withdraw | Self::Vote(_) => None,
        }
    }

    /// The memberships of the person who votes or grants.
    fn memberships(&self) -> Option<&Memberships> {
        let of_vote = self.vote().map(|vote| &vote.memberships);
        of_vote.or_else(|| self.grant().map(|grant| &grant.memberships))
    }

    /// Whether a grant decides it.
    fn is_by_grant(&self) -> bool {
        matches!(self, Self::Decide(permit) if permit.ruling().via == DecidedVia::Grant)
    }

    fn ruling(&self) -> Option<&Ruling> {
        match self {
            Self::Register(ruling) => Some(ruling),
            Self::Withdraw => None,
            Self::Decide(permit) => Some(permit.ruling()),
            Self::Vote(ballot) => Some(ballot.ruling()),
        }
    }
}

impl<'a> Writing<'a> {
    /// A write by this caller, without further conditions, without a lease of the signal, and
    /// without an entry for the audit log.
    #[must_use]
    pub fn new(
        candidate: &'a Candidate,
        change: Change,
        caller: &'a Caller,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            candidate,
            change,
            caller,
            now,
            held_for: TimeDelta::zero(),
            if_match: None,
            only_newest: false,
            alone_since: None,
            trace_parent: traces::current_trace_parent(),
            audit: AuditEntry::None,
            registration_audit: AuditEntry::None,
        }
    }

    /// Checks that a decision or a vote was judged for this request.
    fn check_permit(&self) -> Result<()> {
        match &self.change {
            Change::Vote(ballot) if !ballot.is_for(self.candidate) => {
                let problem = "a vote was judged for another request";
                Err(LedgerError::Inconsistent(problem.to_owned()))
            }
            Change::Decide(permit) if !permit.is_for(self.candidate) => {
                let problem = "a decision was judged for another request";
                Err(LedgerError::Inconsistent(problem.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// The user whose tasks the request may use. `None` allows every task of the tenant: for a
    /// request without a user, and for a request that an admin registers.
    fn task_owner(&self) -> Option<&UserId> {
        let is_registration = matches!(self.change, Change::Register(_));
        let may_use_any_task = is_registration && self.caller.role == Role::Admin;
        self.candidate.user.as_ref().filter(|_| !may_use_any_task)
    }

    /// The task's `error_message` after a rejection; `None` if the request is not rejected.
    fn rejection_message(&self) -> Option<String> {
        let decision = self.change.decision()?;
        let by = printable(decision.by.as_str());
        if decision.verdict.response().is_some() {
            return Some(format!("Answered by {by}, not done"));
        }
        let reason = decision.verdict.reason()?;
        Some(format!("Rejected by {by}: {}", printable(reason)))
    }

    /// What the agent of a registered request says of the decision.
    fn offered(&self) -> Option<&Offer> {
        let Candidate { request, origin, .. } = self.candidate;
        (*origin == Origin::Http).then_some(&request.offer)
    }

    /// The column `risk`: that of the policy file, raised by what the agent says.
    fn risk(&self) -> Option<String> {
        let of_file = self.change.ruling().and_then(|ruling| ruling.risk.as_deref());
        let of_agent = self.offered().and_then(|offer| offer.risk);
        let of_file = of_file.and_then(Risk::parse);
        of_file.max(of_agent).map(|risk| risk.as_str().to_owned())
    }

    /// What the write knows of the event that it causes; `None` for a vote.
    fn cause(&self) -> Option<Cause> {
        match &self.change {
            Change::Register(_) => Some(Cause::default()),
            Change::Decide(permit) => Some(Cause::by(&permit.decision().by)),
            Change::Withdraw => Some(Cause::by(&self.caller.user)),
            Change::Vote(_) => None,
        }
    }

    /// Whether votes were written since those were read with which this decision was judged.
    fn is_outvoted(&self, standing: &Record) -> bool {
        let Change::Decide(permit) = &self.change else { return false };
        permit.vote().is_some()
            && standing.state == State::Pending
            && standing.ruling.ballots != permit.ruling().ballots
    }

    /// The tenant of the row: the request's tenant, else the tenant of the caller.
    fn tenant(&self) -> &TenantId {
        self.candidate.tenant.as_ref().unwrap_or(&self.caller.tenant)
    }

    /// Counts an audit entry that cannot be sent. Called only after the write has succeeded.
    fn count_unsendable(&self) {
        for audit in [&self.audit, &self.registration_audit] {
            if *audit == AuditEntry::Unsendable {
                metrics::audited(AuditResult::Unsendable);
            }
        }
    }

    /// The values of a write, in the order of the columns of [`GIVEN`]. `is_task_taken` says that
    /// the task id that the request names must not be used for a new task: an earlier try failed
    /// because a task with this id exists. `tells` says whether people are told of requests.
    fn values(&self, is_task_taken: bool, tells: bool) -> Vec<Value> {
        let Candidate { request, .. } = self.candidate;
        let Caller { user, role, token_id, via, .. } = self.caller;
        let decision = self.change.decision();
        let [approvals_needed, approvals] = self.change.approvals();
        let (ruling, vote) = (self.change.ruling(), self.change.vote());
        let (grant, memberships) = (self.change.grant(), self.change.memberships());
        // A person who decides or votes gives evidence of the token; a rule has none.
        let is_person = ruling.is_none_or(|ruling| ruling.via == DecidedVia::Person);
        let gives_evidence = is_person && (decision.is_some() || vote.is_some());
        Vec::from(values![
            /* tenant_id */ self.tenant(),
            /* request_id */ &request.id,
            /* origin */ origin_str(self.candidate.origin),
            /* session_id */ &request.session,
            /* user_id */ self.candidate.user.as_ref(),
            /* action_type */ &request.action_type,
            /* fingerprint */ &request.fingerprint,
            /* content_hash */ &request.content_hash,
            /* etag */ &request.etag,
            /* document */ &request.document,
            /* context */ &request.context,
            /* message */ request.message.as_ref(),
            /* plan_steps */ &request.plan_steps,
            /* named_task */ request.task.as_ref(),
            /* new_task: the id of a task that this service makes */ &TaskId::generate(),
            /* is_task_taken */ is_task_taken,
            /* task_owner: NULL allows any */ self.task_owner(),
            /* created_at */ self.candidate.created_at,
            /* expires_at */ self.candidate.expires_at,
            /* status */ self.change.status(),
            /* decided_by */ decision.map(|decision| &decision.by),
            /* decided_at */ decision.map(|decision| decision.at),
            /* reason */ decision.and_then(|decision| decision.verdict.column_reason()),
            /* rejection: the error_message of a rejected task */ self.rejection_message(),
            /* decider_role */ decision.filter(|_by| is_person).and(Some(role.as_str())),
            /* token_id: of the decider's token */
            token_id.as_ref().filter(|_id| gives_evidence),
            /* if_match */ self.if_match,
            /* caller_id */ user,
            /* caller_source */ via.source.as_ref(),
            /* caller_type */ via.caller_type.as_ref(),
            /* agent_id */ via.agent_id.as_ref(),
            /* trace_id */ via.trace_id.as_ref(),
            /* gateway_request_id */ via.gateway_request_id.as_ref(),
            /* trace_parent */ self.trace_parent.as_ref(),
            /* audit */ self.audit.body(),
            /* written_at */ self.now,
            /* due_at */ self.now + self.held_for,
            /* only_newest: only the newest request of Redis in the session */
            self.only_newest,
            /* alone_since: no other tenant's request of Redis in the session since */
            self.alone_since,
            /* decided_via */ ruling.and_then(|ruling| ruling.via.column()),
            /* rule */ ruling.and_then(|ruling| ruling.rule.as_ref()),
            /* policy_version */ ruling.and_then(|ruling| ruling.version.as_ref()),
            /* binding */ ruling.and_then(|ruling| ruling.binding.as_ref()),
            /* risk */ self.risk(),
            /* approvals_needed */ approvals_needed,
            /* approvals */ approvals,
            /* ballots: with the vote; NULL without one */
            vote.and(ruling).map(|ruling| ruling.ballots + 1),
            /* voters */ ruling.and_then(|ruling| as_json(&ruling.voters)),
            /* voter_roles: of who votes or grants */
            memberships.map(|is| json::raw(&is.roles).get().to_owned()),
            /* voter_groups */
            memberships.map(|is| json::raw(&is.groups).get().to_owned()),
            /* arguments: the fingerprint of those that the vote is for */
            vote.and_then(|vote| vote.arguments.as_ref()),
            /* offered */ self.offered().and_then(Offer::column),
            /* new_arguments: of an edit */
            match vote {
                Some(vote) => vote.edited.as_deref(),
                None => decision.and_then(|decision| decision.verdict.arguments()),
            },
            /* response */ decision.and_then(|decision| decision.verdict.response()),
            /* notice: what the write knows of its event */
            tells.then(|| self.cause()).flatten().map(|cause| cause.json()),
            /* grant_id: that decides it, or that it makes */
            ruling.and_then(|ruling| ruling.grant.as_ref()),
            /* grant_scope */ grant.map(|grant| grant.scope.as_str()),
            /* grant_said */ grant.and_then(|grant| grant.said.as_ref()),
            /* grant_until */ grant.map(|grant| grant.expires_at),
            /* registration_audit */ self.registration_audit.body(),
        ])
    }

    /// What the write changes, as far as that is known before. A batch whose rows turn out to have
    /// one task or session in common fails, and is taken apart.
    fn subjects(&self) -> Vec<Subject<'_>> {
        let request = &self.candidate.request;
        let task = request.task.as_ref().map(|task| Subject::Task(self.tenant(), task));
        [Subject::Request(self.tenant(), &request.id), Subject::Session(&request.session)]
            .into_iter()
            .chain(task)
            .collect()
    }
}

/// The result of an attempt to decide or withdraw a request.
#[derive(Debug)]
pub enum Recorded {
    /// This caller's decision or withdrawal was written.
    Won(Record),
    /// Nothing was written: the row as it is in the ledger.
    Lost(Record),
    /// Nothing was written: somebody has voted on the request since the votes were read.
    VotesChanged,
    /// Nothing was written: there is a newer request of Redis in the session; see
    /// [`Writing::only_newest`].
    MovedOn,
    /// Nothing was written: there is a request of another tenant in the session; see
    /// [`Writing::alone_since`].
    AnothersSession,
    /// Nothing was written: the grant that was to decide it has ended.
    GrantEnded,
    /// Nothing was written: another tenant has a request with this id.
    IdTaken,
}

/// The result of an attempt to register a request.
#[derive(Debug)]
pub enum Registered {
    /// The request was inserted and is pending.
    New(Record),
    /// The tenant already has a request with this id: the row as it is in the ledger.
    Known(Record),
    /// Nothing was written: the task that the request would use is completed or failed.
    TaskIsOver,
    /// Nothing was written: another tenant has a request with this id. Happens only in a database
    /// whose upgrade is not finished.
    IdTaken,
}

/// The result of one write of a request.
enum Written {
    /// This row was written.
    Row(Box<RequestRow>),
    /// The conditions of the statement were not met: nothing was written.
    Nothing,
    /// Another tenant has a request with this id: nothing was written.
    IdTaken,
}

impl Ledger {
    /// Writes a decision or a withdrawal if the request is pending or not yet in the ledger. Also
    /// changes the task, and marks the signal of a decision as owed: all of these or none. The
    /// caller then holds the lease of the signal for [`Writing::held_for`].
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. After [`LedgerError::OutcomeUnknown`] the
    /// decision may have been written: read the request to find out.
    pub async fn record_outcome(&self, writing: &Writing<'_>) -> Result<Recorded> {
        let began = Instant::now();
        writing.check_permit()?;
        let statement = match &writing.change {
            change if change.vote().is_some() => RECORD_LAST_VOTE,
            change if change.grant().is_some() => RECORD_WITH_GRANT,
            change if change.is_by_grant() => RECORD_BY_GRANT,
            Change::Decide(permit) if permit.ruling().via == DecidedVia::Policy => RECORD_AUTOMATIC,
            _ => RECORD_OUTCOME,
        };
        match self.write(statement, writing).await? {
            Written::Row(row) => {
                writing.count_unsendable();
                let is_waiting =
                    row.task_status.as_deref() == Some(TaskStatus::WaitingApproval.as_str());
                let record = self.record(*row, began)?;
                if is_waiting {
                    crash_point!("task-waits");
                    // The task has another request that looked pending. If that one was decided at
                    // the same time, neither statement saw the other's decision. A second look,
                    // after both, sees them.
                    let _released =
                        self.release_task(&record.tenant, &record.task, writing.now).await;
                }
                Ok(Recorded::Won(record))
            }
            Written::Nothing => {
                let id = &writing.candidate.request.id;
                match self.find_request(writing.tenant(), id).await? {
                    Some(standing) if writing.is_outvoted(&standing) => Ok(Recorded::VotesChanged),
                    Some(standing) if !standing.is_only_seen() => Ok(Recorded::Lost(standing)),
                    Some(standing)
                        if standing.state == State::Expired
                            && !self.is_refused(writing).await? =>
                    {
                        Ok(Recorded::Lost(standing))
                    }
                    _ if writing.change.is_by_grant() && !self.grant_stands(writing).await? => {
                        Ok(Recorded::GrantEnded)
                    }
                    // A row that was only seen stood in nobody's way.
                    _ if writing.only_newest && self.has_newer_request(writing).await? => {
                        Ok(Recorded::MovedOn)
                    }
                    _ if writing.alone_since.is_some() => Ok(Recorded::AnothersSession),
                    _ if writing.only_newest => Ok(Recorded::MovedOn),
                    _ => {
                        let problem = "a request was neither decided nor found";
                        Err(LedgerError::Inconsistent(problem.to_owned()))
                    }
                }
            }
            Written::IdTaken => Ok(Recorded::IdTaken),
        }
    }

    /// Writes a vote that does not decide, in place of the voter's earlier one. `None` if nothing was
    /// written: the request is not pending or has other content, or somebody has voted since the votes
    /// were read.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. After [`LedgerError::OutcomeUnknown`] the
    /// vote may have been written: read the votes to find out.
    pub async fn record_vote(&self, writing: &Writing<'_>) -> Result<Option<Record>> {
        let began = Instant::now();
        writing.check_permit()?;
        match self.write(RECORD_VOTE, writing).await? {
            Written::Row(row) => Ok(Some(self.record(*row, began)?)),
            Written::Nothing | Written::IdTaken => Ok(None),
        }
    }

    /// Whether the ledger knows a newer request of Redis, or another tenant's, in the session, if
    /// the write depends on that.
    async fn is_refused(&self, writing: &Writing<'_>) -> Result<bool> {
        let session = &writing.candidate.request.session;
        let is_shared = match writing.alone_since {
            Some(since) => self.is_shared(session, writing.tenant(), since).await?,
            None => false,
        };
        Ok(is_shared || (writing.only_newest && self.has_newer_request(writing).await?))
    }

    /// Whether the grant that is to decide a request stands.
    async fn grant_stands(&self, writing: &Writing<'_>) -> Result<bool> {
        let grant = writing.change.ruling().and_then(|ruling| ruling.grant.as_ref());
        match grant {
            Some(grant) => self.is_in_force(writing.tenant(), grant, writing.now).await,
            None => Ok(false),
        }
    }

    /// Whether the ledger knows a newer request of Redis in the session.
    async fn has_newer_request(&self, writing: &Writing<'_>) -> Result<bool> {
        let newest = self.newest_of_redis(&writing.candidate.request.session).await?;
        let Candidate { request, created_at, .. } = writing.candidate;
        Ok(newest.is_some_and(|newest| newest.id != request.id && newest.asked_at > *created_at))
    }

    /// Inserts a pending request and sets its task to `WAITING_APPROVAL`: both or neither.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Registering the same request again is safe.
    pub async fn register(&self, writing: &Writing<'_>) -> Result<Registered> {
        let began = Instant::now();
        let known = match self.write(REGISTER, writing).await? {
            Written::Row(row) => {
                writing.count_unsendable();
                return Ok(Registered::New(self.record(*row, began)?));
            }
            Written::Nothing => {
                self.find_request(writing.tenant(), &writing.candidate.request.id).await?
            }
            Written::IdTaken => return Ok(Registered::IdTaken),
        };
        Ok(known.map_or(Registered::TaskIsOver, Registered::Known))
    }

    /// Runs a write, in a batch with others. Repeats it when a concurrent write took the same task
    /// id, sequence number or request id.
    async fn write(&self, statement: Statement, writing: &Writing<'_>) -> Result<Written> {
        let called_at = Instant::now();
        if let Some(ruling) = writing.change.ruling() {
            self.know_binding(ruling).await?;
        }
        let writes = async {
            let mut is_task_taken = false;
            loop {
                let values = writing.values(is_task_taken, self.tells());
                let written =
                    self.batches.write(statement, values, &writing.subjects(), called_at).await;
                let error = match written {
                    Ok(Some(row)) => return Ok(Written::Row(Box::new(row))),
                    Ok(None) => return Ok(Written::Nothing),
                    Err(Failure::Batch(error)) => return Err(error),
                    Err(Failure::Row(error)) => error,
                };
                if is_task_id_taken(&error) {
                    // Nothing was written. If a concurrent write of this tenant made the task, the
                    // next try sees it. If the task is another tenant's, the next try uses a new
                    // id.
                    is_task_taken = true;
                    crash_point!("task-taken");
                } else if is_anothers_id(&error) || is_id_taken(&error) {
                    let id = values![writing.tenant(), &writing.candidate.request.id];
                    if self.engine.fetch_optional::<RequestRow>(FIND, &id).await?.is_none()
                        && !self.remove_seen_of_another(writing).await?
                    {
                        return Ok(Written::IdTaken);
                    }
                    // A concurrent write of this tenant inserted the row, which the next try sees,
                    // or another tenant's row that was only seen is no longer in the way.
                } else if !is_number_taken(&error) {
                    return Err(error.into());
                }
                // The next try takes the next sequence number.
            }
        };
        writes.instrument(traces::step(statement.name())).await
    }

    /// Removes a row of another tenant that was only seen in Redis: this tenant has written the key
    /// since. Returns whether there was such a row.
    async fn remove_seen_of_another(&self, writing: &Writing<'_>) -> Result<bool> {
        const REMOVE_SEEN: Statement = Statement::new(
            "ledger.remove_seen_of_another",
            "DELETE FROM hitl_request
              WHERE request_id = $2 AND tenant_id <> $1 AND origin = 'redis'
                AND status IN ('pending', 'expired')
              RETURNING 1",
        );
        if writing.candidate.origin != Origin::Redis {
            return Ok(false);
        }
        let values = values![writing.tenant(), &writing.candidate.request.id];
        let removed: Option<(i32,)> = self.engine.fetch_optional(REMOVE_SEEN, &values).await?;
        Ok(removed.is_some())
    }

    /// Sets a pending request whose `expires_at` has passed to `expired`, and fails its task. From
    /// then on no decision on a registered request can be written. A request that was only seen in
    /// Redis gets no sequence number: no agent is told that it expired. `None` when the request is
    /// not pending or has not expired by `now`.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn expire(&self, overdue: &Overdue, now: DateTime<Utc>) -> Result<Option<Record>> {
        let Overdue { tenant, id, session, task } = overdue;
        let subjects =
            [Subject::Request(tenant, id), Subject::Session(session), Subject::Task(tenant, task)];
        let called_at = Instant::now();
        let expiring = async {
            loop {
                let notice = self.tells().then(|| Cause::default().json());
                let values = Vec::from(values![tenant, id, now, notice]);
                match self.batches.write(EXPIRE, values, &subjects, called_at).await {
                    Err(Failure::Row(error)) if is_number_taken(&error) => {}
                    expired => return expired,
                }
            }
        };
        let row = expiring.instrument(traces::step(EXPIRE.name())).await?;
        row.map(|row| self.record(row, called_at)).transpose()
    }
}

/// Users as a JSON array; `None` for none.
fn as_json(users: &[UserId]) -> Option<String> {
    let names = users.iter().map(UserId::as_str).collect::<Vec<_>>();
    (!names.is_empty()).then(|| json::raw(&names).get().to_owned())
}

fn origin_str(origin: Origin) -> &'static str {
    match origin {
        Origin::Redis => "redis",
        Origin::Http => "http",
    }
}

/// The constraint or unique index of Postgres that the error names.
fn filled_index(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(DatabaseError::constraint)
}

/// Whether a concurrent write took the same sequence number in the session.
fn is_number_taken(error: &sqlx::Error) -> bool {
    filled_index(error) == Some("hitl_request_outcome")
}

/// Whether a row with the id of this request exists: of another tenant, or of this tenant by a
/// concurrent write.
fn is_id_taken(error: &sqlx::Error) -> bool {
    filled_index(error)
        .is_some_and(|name| ["hitl_request_pkey", "hitl_request_of_redis"].contains(&name))
}

/// Whether a task with the id that the request names exists: of another tenant, in a database whose
/// upgrade is not finished, or of this tenant by a concurrent write.
fn is_task_id_taken(error: &sqlx::Error) -> bool {
    filled_index(error) == Some("agent_task_pkey")
}

/// Whether another tenant has a request of Redis with this id. Recognises the error of SQLite only.
fn is_anothers_id(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.is_unique_violation() && error.message().ends_with(": hitl_request.request_id")
    })
}

given! {
    GIVEN, GIVEN_ON_SQLITE, 61;
    1 tenant_id, 2 request_id, 3 origin, 4 session_id, 5 user_id, 6 action_type, 7 fingerprint,
    8 content_hash, 9 etag, 10 document, 11 context, 12 message, 13 plan_steps, 14 named_task,
    15 new_task, 16 is_task_taken, 17 task_owner, 18 created_at, 19 expires_at, 20 status,
    21 decided_by, 22 decided_at, 23 reason, 24 rejection, 25 decider_role, 26 token_id,
    27 if_match, 28 caller_id, 29 caller_source, 30 caller_type, 31 agent_id, 32 trace_id,
    33 gateway_request_id, 34 trace_parent, 35 audit, 36 written_at, 37 due_at, 38 only_newest,
    39 alone_since, 40 decided_via, 41 rule, 42 policy_version, 43 binding, 44 risk,
    45 approvals_needed, 46 approvals, 47 ballots, 48 voters, 49 voter_roles, 50 voter_groups,
    51 arguments, 52 offered, 53 new_arguments, 54 response, 55 notice, 56 grant_id,
    57 grant_scope, 58 grant_said, 59 grant_until, 60 registration_audit,
}

/// `given` with the existing task that each request uses, as `kept`: the task that the request
/// names, else the oldest task whose `hitl_request_id` is the request. Both must meet
/// [`IS_USABLE`]. The second `tenant_id` condition is `IS NOT DISTINCT FROM`, which matches no
/// index: otherwise Postgres, on a table that was never analysed, would read all tasks of the tenant
/// instead of those of this request.
const INPUT: &str = formatcp!(
    "input AS MATERIALIZED (
        SELECT given.*, COALESCE(
            (SELECT t.task_id FROM agent_task t
              WHERE t.tenant_id = given.tenant_id AND t.task_id = given.named_task AND {IS_USABLE}),
            (SELECT t.task_id FROM agent_task t
              WHERE t.tenant_id IS NOT DISTINCT FROM given.tenant_id
                AND t.hitl_request_id = given.request_id AND {IS_USABLE}
              ORDER BY t.created_at LIMIT 1)
        ) AS kept
          FROM given
    )"
);

/// Whether the request may use the task `t` of its tenant: the task is of `task_owner`, if there is
/// one, and is not a task that this service made and that is completed or failed.
const IS_USABLE: &str = formatcp!(
    "(t.user_id = given.task_owner OR given.task_owner IS NULL)
     AND NOT (t.status IN ('COMPLETED', 'FAILED') AND {IS_T_OWNED})"
);
/// [`IS_OWNED`] for the task `t`.
const IS_T_OWNED: &str =
    str_replace!(str_replace!(IS_OWNED, "{task}", "t.task_id"), "{tenant}", "given.tenant_id");
/// [`IS_OWNED`] for the task `kept`.
const IS_KEPT_OWNED: &str =
    str_replace!(str_replace!(IS_OWNED, "{task}", "input.kept"), "{tenant}", "input.tenant_id");

/// Whether this service, and not an agent, made a task. An older release wrote `owned_task` rows with
/// an empty tenant. Such a row is still unambiguous, because task ids are unique across tenants until
/// the upgrade is finished.
const IS_OWNED: &str = "(
    (SELECT MAX(r.created_at) FROM hitl_request r
      WHERE r.task_id = {task} AND r.owns_task
        AND r.tenant_id IS NOT DISTINCT FROM {tenant}) IS NOT NULL
    OR (SELECT MAX(o.task_id) FROM owned_task o
         WHERE o.task_id = {task} AND o.tenant_id IN ({tenant}, '')) IS NOT NULL)";

/// The next sequence number in a session, above every number that was ever purged. If a concurrent
/// write takes the same number, the statement fails and is run again.
const NEXT_OUTCOME: &str = "(
    SELECT COALESCE(MAX(taken.outcome), 0) + 1 FROM (
        SELECT MAX(n.outcome) AS outcome FROM hitl_request n
         WHERE n.tenant_id = {row}.tenant_id AND n.session_id = {row}.session_id
        UNION ALL SELECT highest FROM purged_outcome) AS taken)";
const NEXT_OUTCOME_OF_A_WRITE: &str = str_replace!(NEXT_OUTCOME, "{row}", "input");
const NEXT_OUTCOME_OF_A_ROW: &str = str_replace!(NEXT_OUTCOME, "{row}", "d");

/// The column `due_at` of a request: what it owes is in `hitl_delivery` ([`WRITE_DELIVERY`]), and no relay
/// of an older release looks for it here.
const NOT_HERE: &str = "'9999-12-31T23:59:59+00:00'";

/// Inserts the rows of the requests. `kept` is the existing task that a request uses, or `NULL`.
/// `owns_task` says whether this service, and not an agent, made the task. A registered request has
/// no signal. But if its task has another pending request when it is decided, its `delivery` is
/// `owed` until the relay has checked whether the task may go on.
const INSERT_REQUEST: &str = formatcp!(
    "INSERT INTO hitl_request (
        request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
        document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at,
        reason, caller_source, caller_type, agent_id, trace_id, gateway_request_id, delivery,
        owed_since, due_at, if_match, decider_role, token_id, outcome, settled_at, trace_parent,
        message, etag, asked_at, decided_via, rule, policy_version, binding, risk,
        approvals_needed, approvals, ballots, voters, offered, arguments, response, grant_id
     )
     SELECT input.request_id, input.origin, input.tenant_id, input.session_id, input.user_id,
        input.action_type, input.fingerprint, input.content_hash, input.document,
        COALESCE(
            input.kept,
            CASE WHEN NOT input.is_task_taken
                  AND (SELECT t.status FROM agent_task t
                        WHERE t.tenant_id = input.tenant_id AND t.task_id = input.named_task)
                      IS NULL THEN input.named_task END,
            input.new_task
        ),
        input.kept IS NULL OR {IS_KEPT_OWNED}, input.created_at, input.expires_at, input.status,
        input.decided_by, input.decided_at, input.reason, input.caller_source, input.caller_type,
        input.agent_id, input.trace_id, input.gateway_request_id,
        CASE WHEN input.status IN ('pending', 'cancelled') THEN 'sent'
             WHEN input.origin = 'http' AND (
                 SELECT MAX(o.request_id) FROM hitl_request o
                  WHERE o.task_id = input.kept AND o.tenant_id IS NOT DISTINCT FROM input.tenant_id
                    AND o.request_id <> input.request_id AND o.status = 'pending'
             ) IS NULL THEN 'sent'
             ELSE 'owed' END,
        input.written_at, {NOT_HERE}, input.if_match, input.decider_role, input.token_id,
        CASE WHEN input.status <> 'pending' THEN {NEXT_OUTCOME_OF_A_WRITE} END,
        CASE WHEN input.status <> 'pending' THEN input.written_at END, input.trace_parent,
        SUBSTR(input.message, 1, 2000), input.etag, input.created_at, input.decided_via,
        input.rule, input.policy_version, input.binding, input.risk, input.approvals_needed,
        input.approvals, input.ballots, input.voters, input.offered, input.new_arguments,
        input.response, input.grant_id
     FROM input"
);

/// Takes a column from the decision if the row was only seen in Redis, which the decider has read
/// anew. The row of a registered request keeps its own.
macro_rules! of_seen {
    ($($column:literal),+) => {
        concat!($(
            $column, " = CASE WHEN hitl_request.origin = 'redis' THEN excluded.", $column,
            " ELSE hitl_request.", $column, " END, "
        ),+)
    };
}

/// Takes a column from a decision. A withdrawal keeps that of the row.
macro_rules! of_decision {
    ($($column:literal),+) => {
        concat!($(
            $column, " = CASE WHEN excluded.decided_at IS NULL THEN hitl_request.", $column,
            " ELSE excluded.", $column, " END, "
        ),+)
    };
}

/// Writes decisions or withdrawals. A decision with a vote is only written if nobody has voted since the
/// votes were read. Inserts new rows, or updates rows that nobody has decided or
/// withdrawn: of a registered request if it is pending, has not expired and has the same content; of
/// a request that was only seen in Redis, whatever its row says, because the decider has read Redis.
/// If such a row has expired, then only if that was before this decision began: so its agent has
/// asked again since.
const DECIDE_REQUEST: &str = formatcp!(
    "{INSERT_REQUEST}
     WHERE (NOT input.only_newest OR COALESCE(
               (SELECT MAX(COALESCE(newer.asked_at, newer.created_at)) FROM hitl_request newer
                 WHERE newer.session_id = input.session_id AND newer.origin <> 'http'
                   AND newer.request_id <> input.request_id),
               input.created_at) <= input.created_at)
       AND (input.alone_since IS NULL OR
               (SELECT MAX(COALESCE(other.asked_at, other.created_at)) FROM hitl_request other
                 WHERE other.session_id = input.session_id AND other.origin <> 'http'
                   AND COALESCE(other.asked_at, other.created_at) <= 'infinity'
                   AND COALESCE(other.asked_at, other.created_at) > input.alone_since
                   AND other.status NOT IN ('pending', 'expired')
                   AND other.tenant_id <> input.tenant_id
                   AND other.request_id <> input.request_id) IS NULL)
     ORDER BY input.place
     ON CONFLICT (tenant_id, request_id) DO UPDATE SET
        status = excluded.status, decided_by = excluded.decided_by,
        decided_at = excluded.decided_at, reason = excluded.reason,
        caller_source = excluded.caller_source, caller_type = excluded.caller_type,
        agent_id = excluded.agent_id, trace_id = excluded.trace_id,
        gateway_request_id = excluded.gateway_request_id, if_match = excluded.if_match,
        decider_role = excluded.decider_role, token_id = excluded.token_id,
        delivery = excluded.delivery, owed_since = excluded.owed_since,
        due_at = excluded.due_at, attempts = 0, sent_at = NULL, listeners = NULL,
        sent_to = NULL, outcome = excluded.outcome, settled_at = excluded.settled_at,
        {CONTENT_OF_SEEN} {RULING_OF_DECISION} asked_at = excluded.asked_at, moved_on = FALSE,
        ballots = COALESCE(excluded.ballots, hitl_request.ballots),
        arguments = excluded.arguments, response = excluded.response,
        trace_parent = excluded.trace_parent
      WHERE hitl_request.origin = excluded.origin AND CASE WHEN hitl_request.origin = 'redis'
        THEN hitl_request.status = 'pending'
             OR (hitl_request.status = 'expired'
                 AND hitl_request.settled_at < excluded.settled_at)
        ELSE hitl_request.status = 'pending'
             AND hitl_request.expires_at > excluded.settled_at
             AND hitl_request.content_hash = excluded.content_hash END
        AND (excluded.ballots IS NULL
             OR COALESCE(hitl_request.ballots, 0) = excluded.ballots - 1)
     RETURNING {REQUEST_COLUMNS}"
);
const CONTENT_OF_SEEN: &str = of_seen!(
    "session_id",
    "user_id",
    "action_type",
    "fingerprint",
    "content_hash",
    "document",
    "message",
    "etag",
    "task_id",
    "owns_task",
    "expires_at"
);

const RULING_OF_DECISION: &str = of_decision!(
    "decided_via",
    "rule",
    "policy_version",
    "binding",
    "risk",
    "approvals_needed",
    "approvals",
    "voters",
    "grant_id"
);

/// Counts votes that decide nothing: each changes its request's row, under the row's lock, if nobody has
/// voted since the votes were read. The request is pending and has the content that was approved. A vote
/// for other arguments leaves what else the rules say of the arguments that were asked.
const COUNT_VOTE: &str = formatcp!(
    "UPDATE hitl_request AS d
        SET ballots = v.next_ballots,
            approvals = v.counted, approvals_needed = v.needed,
            rule = CASE WHEN v.edited IS NULL THEN v.by_rule ELSE d.rule END,
            policy_version = CASE WHEN v.edited IS NULL THEN v.by_version ELSE d.policy_version END,
            binding = CASE WHEN v.edited IS NULL THEN v.bound ELSE d.binding END,
            risk = CASE WHEN v.edited IS NULL THEN v.of_risk ELSE d.risk END
       FROM (SELECT tenant_id AS of_tenant, request_id AS of_request, origin AS of_origin,
                    content_hash AS of_content, written_at AS at, ballots AS next_ballots,
                    approvals AS counted, approvals_needed AS needed, rule AS by_rule,
                    policy_version AS by_version, binding AS bound, risk AS of_risk,
                    arguments AS edited
               FROM input) AS v
      WHERE d.tenant_id = v.of_tenant AND d.request_id = v.of_request
        AND d.status || '' = 'pending' AND d.origin || '' = v.of_origin
        AND d.content_hash || '' = v.of_content AND d.expires_at > v.at
        AND COALESCE(d.ballots, 0) = v.next_ballots - 1
     RETURNING {REQUEST_COLUMNS}"
);

/// Inserts the votes, or replaces the voters' earlier ones.
const WRITE_VOTE: &str = "\
    INSERT INTO hitl_vote (
        tenant_id, request_id, voter, decision, voted_at, etag, arguments, edited, voter_roles,
        voter_groups, rule, policy_version, token_id
     )
     SELECT d.tenant_id, d.request_id, input.caller_id, 'approve', input.written_at, input.etag,
        input.arguments, input.new_arguments, input.voter_roles, input.voter_groups, input.rule,
        input.policy_version, input.token_id
       FROM written AS d
       JOIN input ON input.tenant_id = d.tenant_id AND input.request_id = d.request_id
      WHERE true
     ON CONFLICT (tenant_id, request_id, voter) DO UPDATE SET
        decision = excluded.decision, voted_at = excluded.voted_at, reason = NULL,
        etag = excluded.etag, arguments = excluded.arguments, edited = excluded.edited,
        voter_roles = excluded.voter_roles, voter_groups = excluded.voter_groups,
        rule = excluded.rule,
        policy_version = excluded.policy_version, token_id = excluded.token_id";

/// Inserts the grants that approvals make.
const WRITE_GRANT: &str = "\
    INSERT INTO hitl_grant (
        tenant_id, grant_id, request_id, granter, granter_roles, granter_groups, requester, origin,
        session_id, scope, action_type, said, rule, policy_version, token_id, created_at, expires_at
     )
     SELECT d.tenant_id, input.grant_id, d.request_id, d.decided_by, input.voter_roles,
        input.voter_groups, d.user_id, d.origin, d.session_id, input.grant_scope, d.action_type,
        input.grant_said, input.rule, input.policy_version, input.token_id, input.written_at,
        input.grant_until
       FROM written AS d
       JOIN input ON input.tenant_id = d.tenant_id AND input.request_id = d.request_id
      WHERE input.grant_scope IS NOT NULL";

/// [`DECIDE_REQUEST`] by grants, each only while nobody has ended it.
const DECIDE_BY_GRANT: &str = str_replace!(
    DECIDE_REQUEST,
    "WHERE (NOT input.only_newest",
    "WHERE (SELECT MAX(g.grant_id) FROM hitl_grant g
             WHERE g.tenant_id = input.tenant_id AND g.grant_id = input.grant_id
               AND g.ended_at IS NULL AND g.expires_at > input.written_at) IS NOT NULL
       AND (NOT input.only_newest"
);

/// Registers requests: inserts rows, except for requests whose task is completed or failed.
const REGISTER_REQUEST: &str = formatcp!(
    "{INSERT_REQUEST}
     WHERE COALESCE((SELECT t.status FROM agent_task t
                      WHERE t.tenant_id = input.tenant_id AND t.task_id = input.kept), '')
           NOT IN ('COMPLETED', 'FAILED')
     ORDER BY input.place
     ON CONFLICT (tenant_id, request_id) DO NOTHING
     RETURNING {REQUEST_COLUMNS}"
);

/// Inserts or updates the tasks of the requests in `written`. A completed or failed task keeps its
/// status. A task with another pending request waits on. A rejection or a withdrawal fails the task
/// only if this service made it. A new registration makes a task its own; a decision does only when
/// the task goes on.
const WRITE_TASK: &str = "\
    INSERT INTO agent_task (
        task_id, user_id, tenant_id, task_type, status, progress, description, input_data,
        plan_steps, hitl_request_id, error_message, started_at, created_at, updated_at
     )
     SELECT d.task_id, COALESCE(d.user_id, input.caller_id), d.tenant_id,
        SUBSTR(d.action_type, 1, 200),
        CASE
            WHEN d.status = 'pending' THEN 'WAITING_APPROVAL'
            WHEN (
                SELECT MAX(o.request_id) FROM hitl_request o
                 WHERE o.task_id = d.task_id AND o.tenant_id IS NOT DISTINCT FROM d.tenant_id
                   AND o.request_id <> d.request_id AND o.status = 'pending'
                   AND o.expires_at > input.written_at
            ) IS NOT NULL THEN 'WAITING_APPROVAL'
            WHEN d.status IN ('rejected', 'cancelled') AND d.owns_task THEN 'FAILED'
            ELSE 'IN_PROGRESS'
        END,
        0, input.message, input.context, input.plan_steps, d.request_id,
        CASE WHEN d.status = 'rejected' THEN input.rejection
             WHEN d.status = 'cancelled' AND d.owns_task
                  THEN 'Withdrawn by its agent' END,
        input.written_at, d.created_at, input.written_at
     FROM written AS d
     JOIN input ON input.tenant_id = d.tenant_id AND input.request_id = d.request_id
     WHERE true ORDER BY d.tenant_id, d.task_id
     ON CONFLICT (tenant_id, task_id) DO UPDATE SET
        status = CASE WHEN agent_task.status IN ('COMPLETED', 'FAILED')
                      THEN agent_task.status ELSE excluded.status END,
        plan_steps = CASE WHEN agent_task.plan_steps = '[]'
                          THEN excluded.plan_steps ELSE agent_task.plan_steps END,
        hitl_request_id = {gate},
        error_message = COALESCE(excluded.error_message, agent_task.error_message),
        started_at = COALESCE(agent_task.started_at, excluded.started_at),
        updated_at = CASE WHEN agent_task.updated_at > excluded.updated_at
                          THEN agent_task.updated_at ELSE excluded.updated_at END";
/// [`WRITE_TASK`] after a decision or a withdrawal.
const WRITE_DECIDED_TASK: &str = str_replace!(
    WRITE_TASK,
    "{gate}",
    "CASE WHEN excluded.status = 'WAITING_APPROVAL'
          THEN agent_task.hitl_request_id ELSE excluded.hitl_request_id END"
);
/// [`WRITE_TASK`] after a registration.
const WRITE_REGISTERED_TASK: &str = str_replace!(WRITE_TASK, "{gate}", "excluded.hitl_request_id");

/// Inserts the deliveries of the signals that decisions owe.
const WRITE_DELIVERY: &str = formatcp!(
    "INSERT INTO hitl_delivery (tenant_id, request_id, delivery, owed_since, due_at)
     SELECT d.tenant_id, d.request_id, d.delivery, d.owed_since, input.due_at
       FROM written AS d
       JOIN input ON input.tenant_id = d.tenant_id AND input.request_id = d.request_id
      WHERE d.delivery = 'owed'
     {OWED_ANEW}"
);

/// Inserts into the outbox: the entries for the Auth server's audit log and the events that people are told
/// of, of those writes that have them.
const WRITE_OUTBOX: &str = "\
    INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
     SELECT m.kind,
        CASE WHEN m.kind = 'audit' THEN 'auth'
             WHEN d.status = 'pending' THEN 'request.pending'
             WHEN d.status = 'cancelled' THEN 'request.cancelled'
             ELSE 'request.decided' END,
        d.tenant_id, d.request_id, CASE WHEN m.kind = 'audit' THEN input.audit ELSE input.notice END,
        input.written_at, input.written_at
       FROM written AS d
       JOIN input ON input.tenant_id = d.tenant_id AND input.request_id = d.request_id
       JOIN (SELECT 'audit' AS kind UNION ALL SELECT 'notice') AS m
         ON CASE WHEN m.kind = 'audit' THEN input.audit ELSE input.notice END IS NOT NULL
      WHERE true";

/// [`WRITE_OUTBOX`] for what is decided without people: first the entry for the registration, of a request
/// that is registered as decided.
const WRITE_OUTBOX_OF_AUTOMATIC: &str = "\
    INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
     SELECT CASE WHEN m.number = 3 THEN 'notice' ELSE 'audit' END,
        CASE WHEN m.number = 3 THEN 'request.decided' ELSE 'auth' END, d.tenant_id, d.request_id,
        CASE m.number WHEN 1 THEN input.registration_audit WHEN 2 THEN input.audit
                      ELSE input.notice END,
        input.written_at, input.written_at
       FROM written AS d
       JOIN input ON input.tenant_id = d.tenant_id AND input.request_id = d.request_id
       JOIN (SELECT 1 AS number UNION ALL SELECT 2 UNION ALL SELECT 3) AS m
         ON CASE m.number WHEN 1 THEN input.registration_audit WHEN 2 THEN input.audit
                          ELSE input.notice END IS NOT NULL
      WHERE true ORDER BY input.place, m.number";

/// The beginning of the later statements of SQLite: the values again, and the row that the statement
/// before has written.
const THEN_WRITE: &str = formatcp!(
    "WITH {GIVEN_ON_SQLITE}, input AS (SELECT given.* FROM given),
     written AS (SELECT {REQUEST_COLUMNS} FROM hitl_request
                  WHERE (tenant_id, request_id) = (SELECT tenant_id, request_id FROM given))"
);

/// The end of a statement of Postgres, after `written`: writes the tasks and the outbox, and
/// returns the rows, each with the place of its values.
const AND_THE_REST: &str = formatcp!(
    "touched AS ({{task}} RETURNING tenant_id, task_id, status), owing AS ({WRITE_DELIVERY}),
     audited AS ({WRITE_OUTBOX})
     SELECT input.place, written.*, touched.status AS task_status
       FROM written
       JOIN input ON input.tenant_id = written.tenant_id
                 AND input.request_id = written.request_id
       JOIN touched ON touched.tenant_id = written.tenant_id
                   AND touched.task_id = written.task_id"
);
const AND_THE_REST_OF_DECISIONS: &str = str_replace!(AND_THE_REST, "{task}", WRITE_DECIDED_TASK);
const AND_THE_REST_OF_AUTOMATIC_DECISIONS: &str =
    str_replace!(AND_THE_REST_OF_DECISIONS, WRITE_OUTBOX, WRITE_OUTBOX_OF_AUTOMATIC);
const AND_THE_REST_OF_REGISTRATIONS: &str =
    str_replace!(AND_THE_REST, "{task}", WRITE_REGISTERED_TASK);

const RECORD_OUTCOME: Statement = Statement::new(
    "ledger.record_outcome",
    formatcp!("WITH {GIVEN}, {INPUT}, written AS ({DECIDE_REQUEST}), {AND_THE_REST_OF_DECISIONS}"),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, {INPUT} {DECIDE_REQUEST}"))
.then(&[
    formatcp!("{THEN_WRITE} {WRITE_DECIDED_TASK}"),
    formatcp!("{THEN_WRITE} {WRITE_DELIVERY}"),
    formatcp!("{THEN_WRITE} {WRITE_OUTBOX}"),
]);

/// [`RECORD_OUTCOME`] for approvals that stand for later requests: also writes the grants.
const RECORD_WITH_GRANT: Statement = Statement::new(
    "ledger.record_with_grant",
    formatcp!(
        "WITH {GIVEN}, {INPUT}, written AS ({DECIDE_REQUEST}), granted AS ({WRITE_GRANT}),
         {AND_THE_REST_OF_DECISIONS}"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, {INPUT} {DECIDE_REQUEST}"))
.then(&[
    formatcp!("{THEN_WRITE} {WRITE_DECIDED_TASK}"),
    formatcp!("{THEN_WRITE} {WRITE_DELIVERY}"),
    formatcp!("{THEN_WRITE} {WRITE_OUTBOX}"),
    formatcp!("{THEN_WRITE} {WRITE_GRANT}"),
]);

/// [`RECORD_OUTCOME`] for what rules and grants decide without people.
const RECORD_AUTOMATIC: Statement = Statement::new(
    "ledger.record_automatic",
    formatcp!(
        "WITH {GIVEN}, {INPUT}, written AS ({DECIDE_REQUEST}), {AND_THE_REST_OF_AUTOMATIC_DECISIONS}"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, {INPUT} {DECIDE_REQUEST}"))
.then(&[
    formatcp!("{THEN_WRITE} {WRITE_DECIDED_TASK}"),
    formatcp!("{THEN_WRITE} {WRITE_DELIVERY}"),
    formatcp!("{THEN_WRITE} {WRITE_OUTBOX_OF_AUTOMATIC}"),
]);

/// [`RECORD_AUTOMATIC`] by grants.
const RECORD_BY_GRANT: Statement = Statement::new(
    "ledger.record_by_grant",
    formatcp!(
        "WITH {GIVEN}, {INPUT}, written AS ({DECIDE_BY_GRANT}), {AND_THE_REST_OF_AUTOMATIC_DECISIONS}"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, {INPUT} {DECIDE_BY_GRANT}"))
.then(&[
    formatcp!("{THEN_WRITE} {WRITE_DECIDED_TASK}"),
    formatcp!("{THEN_WRITE} {WRITE_DELIVERY}"),
    formatcp!("{THEN_WRITE} {WRITE_OUTBOX_OF_AUTOMATIC}"),
]);

/// [`RECORD_OUTCOME`] for decisions that more than one person makes: also writes the last vote.
const RECORD_LAST_VOTE: Statement = Statement::new(
    "ledger.record_last_vote",
    formatcp!(
        "WITH {GIVEN}, {INPUT}, written AS ({DECIDE_REQUEST}), voted AS ({WRITE_VOTE}),
         {AND_THE_REST_OF_DECISIONS}"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, {INPUT} {DECIDE_REQUEST}"))
.then(&[
    formatcp!("{THEN_WRITE} {WRITE_DECIDED_TASK}"),
    formatcp!("{THEN_WRITE} {WRITE_DELIVERY}"),
    formatcp!("{THEN_WRITE} {WRITE_OUTBOX}"),
    formatcp!("{THEN_WRITE} {WRITE_VOTE}"),
]);

const RECORD_VOTE: Statement = Statement::new(
    "ledger.record_vote",
    formatcp!(
        "WITH {GIVEN}, input AS (SELECT given.* FROM given), written AS ({COUNT_VOTE}),
         voted AS ({WRITE_VOTE})
         SELECT input.place, written.*
           FROM written
           JOIN input ON input.tenant_id = written.tenant_id
                     AND input.request_id = written.request_id"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, input AS (SELECT given.* FROM given) {COUNT_VOTE}"))
.then(&[formatcp!("{THEN_WRITE} {WRITE_VOTE}")]);

const REGISTER: Statement = Statement::new(
    "ledger.register",
    formatcp!(
        "WITH {GIVEN}, {INPUT}, written AS ({REGISTER_REQUEST}), {AND_THE_REST_OF_REGISTRATIONS}"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, {INPUT} {REGISTER_REQUEST}"))
.then(&[
    formatcp!("{THEN_WRITE} {WRITE_REGISTERED_TASK}"),
    formatcp!("{THEN_WRITE} {WRITE_OUTBOX}"),
]);

given! {
    GIVEN_OVERDUE, GIVEN_OVERDUE_ON_SQLITE, 5;
    1 of_tenant, 2 of_request, 3 expired_at, 4 notice,
}

/// Expires pending requests. The condition on the status has a form that matches no index: otherwise
/// Postgres would read all of an index of pending requests that it believes to be empty.
const EXPIRE_REQUEST: &str = formatcp!(
    "UPDATE hitl_request AS d
        SET status = 'expired', settled_at = given.expired_at, delivery = 'sent',
            outcome = CASE WHEN d.origin = 'http' THEN {NEXT_OUTCOME_OF_A_ROW} ELSE d.outcome END
       FROM given
      WHERE d.tenant_id = given.of_tenant AND d.request_id = given.of_request
        AND d.status || '' = 'pending' AND d.expires_at <= given.expired_at
     RETURNING {REQUEST_COLUMNS}"
);

/// Fails the tasks of the expired requests, unless a task waits for another pending request.
const EXPIRE_TASK: &str = "\
    UPDATE agent_task
        SET status = 'FAILED',
            updated_at = CASE WHEN agent_task.updated_at > d.settled_at
                              THEN agent_task.updated_at ELSE d.settled_at END,
            error_message = 'Nobody decided on ' || d.request_id || ' in time'
       FROM written AS d
      WHERE agent_task.tenant_id = d.tenant_id AND agent_task.task_id = d.task_id
        AND agent_task.status NOT IN ('COMPLETED', 'FAILED')
        AND (
            SELECT MAX(o.request_id) FROM hitl_request o
             WHERE o.task_id = d.task_id
               AND o.tenant_id IS NOT DISTINCT FROM d.tenant_id AND o.request_id <> d.request_id
               AND o.status = 'pending' AND o.expires_at > d.settled_at
        ) IS NULL";

const EXPIRE: Statement = Statement::new(
    "ledger.expire",
    formatcp!(
        "WITH {GIVEN_OVERDUE}, written AS ({EXPIRE_REQUEST}), touched AS ({EXPIRE_TASK}),
              told AS ({TELL_OF_EXPIRY})
         SELECT given.place, written.*
           FROM written
           JOIN given ON given.of_tenant = written.tenant_id
                     AND given.of_request = written.request_id"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_OVERDUE_ON_SQLITE} {EXPIRE_REQUEST}"))
.then(&[formatcp!("{THEN_EXPIRE} {EXPIRE_TASK}"), formatcp!("{THEN_EXPIRE} {TELL_OF_EXPIRY}")]);

/// [`THEN_WRITE`] after an expiry.
const THEN_EXPIRE: &str = formatcp!(
    "WITH {GIVEN_OVERDUE_ON_SQLITE},
     written AS (SELECT {REQUEST_COLUMNS} FROM hitl_request
                  WHERE (tenant_id, request_id) = (SELECT of_tenant, of_request FROM given))"
);

/// Inserts the events of expiry, if people are told of them.
const TELL_OF_EXPIRY: &str = "\
    INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
     SELECT 'notice', 'request.expired', d.tenant_id, d.request_id, given.notice, given.expired_at,
        given.expired_at
       FROM written AS d
       JOIN given ON given.of_tenant = d.tenant_id AND given.of_request = d.request_id
      WHERE given.notice IS NOT NULL";
