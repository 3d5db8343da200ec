//! A request as it is asked ([`Candidate`]) and as the ledger keeps it ([`Record`]), and what became of
//! its signal.

use chrono::{DateTime, TimeDelta, Utc};

use super::decision::{State, Verdict};
use super::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use super::request::{ApprovalRequest, Origin, PATIENCE};

/// How long an agent that missed the message may take to look under the key.
const UNHEARD: TimeDelta = TimeDelta::seconds(30);

/// A request that could be decided now: what is asked, and the frame in which it is asked.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What is asked.
    pub request: ApprovalRequest,
    /// Who wrote it first.
    pub origin: Origin,
    /// The tenant it belongs to: its own, else its session's; `None` when neither says.
    pub tenant: Option<TenantId>,
    /// The user it belongs to: its own, else its session's; `None` when neither says.
    pub user: Option<UserId>,
    /// When it was made, UTC.
    pub created_at: DateTime<Utc>,
    /// From when on nobody may decide it, UTC.
    pub expires_at: DateTime<Utc>,
}

/// What became of the signal of a request of Redis. Registered requests have none: they are `Sent`
/// from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The signal of a decision is not in Redis yet.
    Owed,
    /// Redis has it, or there is nothing to send.
    Sent,
    /// The session had moved on when it was to be sent, so it never will be.
    Superseded,
}

/// A request as the ledger keeps it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The request's id.
    pub id: RequestId,
    /// Who wrote it first.
    pub origin: Origin,
    /// The agent session that waits.
    pub session: SessionId,
    /// Its tenant: its own, its session's, or that of whoever decided it.
    pub tenant: TenantId,
    /// The user it names.
    pub user: Option<UserId>,
    /// See [`ApprovalRequest::fingerprint`].
    pub fingerprint: String,
    /// See [`ApprovalRequest::content_hash`].
    pub content_hash: String,
    /// The whole request as it was written, before the decision.
    pub document: String,
    /// Its row in `agent_task`.
    pub task: TaskId,
    /// When it was made, UTC.
    pub created_at: DateTime<Utc>,
    /// From when on nobody may decide it, UTC.
    pub expires_at: DateTime<Utc>,
    /// Where it stands.
    pub state: State,
    /// What is owed to Redis.
    pub delivery: Delivery,
    /// Since when, UTC. Newer signals of a session have later times here.
    pub owed_since: DateTime<Utc>,
    /// How many subscribers the signal's channel had when it was published; `None` when it was not,
    /// or when nobody could tell.
    pub listeners: Option<i64>,
    /// Which history of Redis' data holds the signal: another one by now may have lost it.
    pub sent_to: Option<String>,
    /// When the signal was sent, UTC.
    pub sent_at: Option<DateTime<Utc>>,
    /// The number of its outcome among those of its session, from 1; `None` while it is pending.
    pub outcome: Option<i64>,
    /// When it ceased to be pending, UTC.
    pub settled_at: Option<DateTime<Utc>>,
    /// When its agent said that it had acted on the outcome, UTC.
    pub acted_at: Option<DateTime<Utc>>,
}

impl Record {
    /// Whether somebody agreed.
    #[must_use]
    pub fn is_approved(&self) -> bool {
        self.state.decision().is_some_and(|decision| decision.verdict == Verdict::Approve)
    }

    /// The entity tag of what was asked: see [`etag`](super::request::etag).
    #[must_use]
    pub fn etag(&self) -> String {
        super::request::etag(&self.document)
    }

    /// Whether Redis has never had what is owed. A signal that is owed because Redis may have lost
    /// it counts as sent: its agent may have got it.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        self.delivery == Delivery::Owed && self.sent_to.is_none()
    }

    /// Whether its agent may still be waiting for a signal that was sent: nobody was listening, and
    /// the agent's patience is not over. Its session says whether it is.
    #[must_use]
    pub fn is_waited_for(&self, now: DateTime<Utc>) -> bool {
        self.listeners == Some(0) && now < self.created_at + PATIENCE
    }

    /// Whether its agent may well wait still for a signal that was sent, if its session does not say
    /// what it waits for: nobody was listening, and there was no time yet to find the signal under its
    /// key and to ask for something else.
    #[must_use]
    pub fn is_unheard(&self, now: DateTime<Utc>) -> bool {
        self.listeners == Some(0) && now < self.owed_since + UNHEARD
    }
}

/// What became of a delivery, to be noted in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryResult {
    /// Sent or superseded.
    pub delivery: Delivery,
    /// See [`Record::listeners`].
    pub listeners: Option<i64>,
    /// See [`Record::sent_to`].
    pub sent_to: Option<String>,
}

impl DeliveryResult {
    /// It never goes out.
    pub const SUPERSEDED: Self =
        Self { delivery: Delivery::Superseded, listeners: None, sent_to: None };
    /// Redis has it, and it does not matter if Redis loses it.
    pub const SENT: Self = Self { delivery: Delivery::Sent, listeners: None, sent_to: None };
}

/// What became of the delivery that a row owed since a certain moment.
#[derive(Clone, Debug)]
pub struct DeliveryReceipt {
    /// Whose row.
    pub tenant: TenantId,
    /// And of which request.
    pub request: RequestId,
    /// Since when it was owed; if it is owed anew since, the receipt counts for nothing.
    pub owed_since: DateTime<Utc>,
    /// What became of it.
    pub result: DeliveryResult,
    /// When.
    pub at: DateTime<Utc>,
}

impl DeliveryReceipt {
    /// What became of the delivery that this row owes.
    #[must_use]
    pub fn of(record: &Record, result: DeliveryResult, at: DateTime<Utc>) -> Self {
        let (tenant, request) = (record.tenant.clone(), record.id.clone());
        Self { tenant, request, owed_since: record.owed_since, result, at }
    }
}

/// Whether a request found in Redis is the one the ledger knows: it says all the same, of the same
/// tenant.
#[must_use]
pub fn is_same(record: &Record, asked: &Candidate) -> bool {
    record.content_hash == asked.request.content_hash
        && asked.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
}

/// What Redis holds under the id of a request that the ledger knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CourierCopy {
    /// Nothing, or a request that is settled.
    Settled,
    /// The same request, waiting for a decision.
    Pending,
    /// Another request, or something that cannot be read: an agent that waits for an answer to it
    /// must not get the answer to this one.
    Other,
}

impl CourierCopy {
    /// Compares the text under a request's key with what the ledger knows.
    #[must_use]
    pub fn of(record: &Record, document: Option<&str>) -> Self {
        let Some(document) = document else { return Self::Settled };
        match ApprovalRequest::read(&record.id, document.to_owned()) {
            Ok(request) if !request.is_pending() => Self::Settled,
            Ok(request) if request.content_hash == record.content_hash => Self::Pending,
            _ => Self::Other,
        }
    }
}
