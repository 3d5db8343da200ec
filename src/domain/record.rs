//! A request before the ledger's write ([`Candidate`]), its row in the ledger ([`Record`]), and the
//! delivery of its signal.

use chrono::{DateTime, TimeDelta, Utc};

use super::decision::{State, Verdict};
use super::ids::{GrantId, RequestId, SessionId, TaskId, TenantId, UserId};
use super::request::{AGENT_TIMEOUT, ApprovalRequest, Origin};
use super::ways::{PLAIN_WAYS, Way};

/// How long an agent that missed a message may take to find the signal under its key.
const KEY_LOOKUP_TIMEOUT: TimeDelta = TimeDelta::seconds(30);

/// A request that may be decided now, with its tenant, its user and its times.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The request itself.
    pub request: ApprovalRequest,
    /// Where the request was first written.
    pub origin: Origin,
    /// The tenant that the request names, else the one that its session names; `None` if neither does.
    pub tenant: Option<TenantId>,
    /// The user that the request names, else the one that its session names; `None` if neither does.
    pub user: Option<UserId>,
    /// When the request was made, UTC.
    pub created_at: DateTime<Utc>,
    /// When the request expires, UTC. From then on nobody may decide it.
    pub expires_at: DateTime<Utc>,
}

impl Candidate {
    /// The ways in which the request can be decided, as far as its agent goes.
    #[must_use]
    pub fn ways(&self) -> &[Way] {
        match self.origin {
            Origin::Redis => &PLAIN_WAYS,
            Origin::Http => &self.request.offer.ways,
        }
    }
}

/// The delivery state of a signal. Only requests of Redis have signals; a request registered over HTTP
/// is `Sent` from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The signal still has to be sent to Redis.
    Owed,
    /// Redis has the signal, or there is no signal to send.
    Sent,
    /// The session had moved on before the signal was sent, so the signal is never sent.
    Superseded,
}

/// How a request was decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecidedVia {
    /// People decided.
    #[default]
    Person,
    /// A rule of the policy file decided by itself. `decided_by` is the rule's name.
    Policy,
    /// A person had approved such requests beforehand.
    Grant,
}

impl DecidedVia {
    /// `person`, `policy` or `grant`: the value on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Policy => "policy",
            Self::Grant => "grant",
        }
    }

    /// The value of the column `decided_via`.
    #[must_use]
    pub fn column(self) -> Option<&'static str> {
        match self {
            Self::Person => None,
            Self::Policy | Self::Grant => Some(self.as_str()),
        }
    }

    /// Reads the column `decided_via`.
    #[must_use]
    pub fn of_column(column: Option<&str>) -> Self {
        match column {
            Some("policy") => Self::Policy,
            Some("grant") => Self::Grant,
            _ => Self::Person,
        }
    }
}

/// What the policy file said of a request when its row was last written. Without a policy file it says
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
    /// How the request was decided, if it was.
    pub via: DecidedVia,
    /// The name of the rule that binds.
    pub rule: Option<String>,
    /// The version of the policy file.
    pub version: Option<String>,
    /// Stands for that version and the rules that bind. The ledger knows which these are.
    pub binding: Option<String>,
    /// The rules that bind, as the policy spells them. Only of a ruling that is to be written.
    pub rules: Option<String>,
    /// `low`, `medium`, `high` or `critical`.
    pub risk: Option<String>,
    /// How many people have to approve: of a pending request with votes, the arguments that most have
    /// approved.
    pub approvals_needed: Option<i64>,
    /// How many have approved them: approvals that counted at the last vote.
    pub approvals: Option<i64>,
    /// How often votes on the request were written. A vote is only written if this is as it was when the
    /// votes were read.
    pub ballots: i64,
    /// Whose approvals counted when the request was approved by more than one person.
    pub voters: Vec<UserId>,
    /// The grant that approved the request, or that its approval made.
    pub grant: Option<GrantId>,
}

/// A request's row in the ledger, table `hitl_request`.
#[derive(Clone, Debug)]
pub struct Record {
    /// The request's id.
    pub id: RequestId,
    /// Where the request was first written.
    pub origin: Origin,
    /// The agent session that waits for the answer.
    pub session: SessionId,
    /// The request's tenant: the one it names, else its session's, else that of the caller who closed it.
    pub tenant: TenantId,
    /// The user that the request or its session names.
    pub user: Option<UserId>,
    /// See [`ApprovalRequest::fingerprint`].
    pub fingerprint: String,
    /// See [`ApprovalRequest::content_hash`].
    pub content_hash: String,
    /// The whole request as JSON, as it was before the decision.
    pub document: String,
    /// The id of the request's row in `agent_task`.
    pub task: TaskId,
    /// When the service first knew of the request, UTC: when it was registered, seen in Redis, or
    /// decided.
    pub created_at: DateTime<Utc>,
    /// When its agent made the request, UTC. Differs from `created_at` only for requests of Redis: it is
    /// computed from the remaining time to live of the key, and it orders the requests of a session.
    pub asked_at: DateTime<Utc>,
    /// When the request expires, UTC. From then on nobody may decide it.
    pub expires_at: DateTime<Utc>,
    /// Column `moved_on`: for a request that was only seen in Redis, whether its session waited for
    /// something else when the service last looked. Then nobody may decide it. Decisions do not rely on
    /// this; they read the session.
    pub has_moved_on: bool,
    /// The request was decided, and its agent has asked again: the same request is pending in Redis once
    /// more, at most until then, UTC.
    pub asked_again_until: Option<DateTime<Utc>>,
    /// The state of the request.
    pub state: State,
    /// Whether the signal still has to be sent.
    pub delivery: Delivery,
    /// Since when the signal is owed, UTC. It also orders the signals of a session: a newer signal has a
    /// later time.
    pub owed_since: DateTime<Utc>,
    /// How many subscribers the channel had when the signal was published; `None` when the signal was not
    /// published, or Redis did not tell the number.
    pub listeners: Option<i64>,
    /// Column `sent_to`: the replication id of the Redis that took the signal. If Redis has another id
    /// now, it may have lost the signal.
    pub replication_id: Option<String>,
    /// When the signal was sent, UTC.
    pub sent_at: Option<DateTime<Utc>>,
    /// Column `outcome`: the position of this request among the closed requests of its session, from 1;
    /// `None` while the request is pending.
    pub sequence: Option<i64>,
    /// Column `settled_at`: when the request was closed (decided, expired or withdrawn), UTC.
    pub closed_at: Option<DateTime<Utc>>,
    /// When the agent acknowledged that it had acted on the outcome, UTC.
    pub acted_at: Option<DateTime<Utc>>,
    /// What the policy file said.
    pub ruling: Ruling,
}

impl Record {
    /// Whether the ledger has this request only because it was seen in Redis: nobody has decided or
    /// withdrawn it. Such a row is no proof of anything. Its content may be older than Redis', and only
    /// Redis says whether the request may be decided, as if there were no row.
    #[must_use]
    pub fn is_only_seen(&self) -> bool {
        self.origin == Origin::Redis && matches!(self.state, State::Pending | State::Expired)
    }

    /// Whether the request was approved, as it was asked or with other arguments.
    #[must_use]
    pub fn is_approved(&self) -> bool {
        let decision = self.state.decision();
        decision.is_some_and(|one| matches!(one.verdict, Verdict::Approve | Verdict::Edit { .. }))
    }

    /// The grant that approved the request.
    #[must_use]
    pub fn used_grant(&self) -> Option<&GrantId> {
        self.ruling.grant.as_ref().filter(|_grant| self.ruling.via == DecidedVia::Grant)
    }

    /// The grant that a person's approval of the request has made.
    #[must_use]
    pub fn made_grant(&self) -> Option<&GrantId> {
        self.ruling.grant.as_ref().filter(|_grant| self.ruling.via == DecidedVia::Person)
    }

    /// The entity tag of the request: see [`etag`](super::request::etag).
    #[must_use]
    pub fn etag(&self) -> String {
        super::request::etag(&self.document)
    }

    /// Whether the signal is owed and has never been sent. A signal that is owed again because Redis may
    /// have lost it has been sent: its agent may have received it.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        self.delivery == Delivery::Owed && self.replication_id.is_none()
    }

    /// Whether the signal was published to no subscriber, and the request is younger than
    /// [`AGENT_TIMEOUT`]. Then the agent may still wait; its session pointer says whether it does.
    #[must_use]
    pub fn is_missed_within_agent_timeout(&self, now: DateTime<Utc>) -> bool {
        self.listeners == Some(0) && now < self.asked_at + AGENT_TIMEOUT
    }

    /// Whether the signal was published to no subscriber, and became owed less than `KEY_LOOKUP_TIMEOUT`
    /// ago. This decides for sessions without a pointer: in that time the agent can hardly have found the
    /// signal under its key and made another request.
    #[must_use]
    pub fn is_missed_within_lookup_timeout(&self, now: DateTime<Utc>) -> bool {
        self.listeners == Some(0) && now < self.owed_since + KEY_LOOKUP_TIMEOUT
    }
}

/// The result of a delivery, as the ledger stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryResult {
    /// `Sent` or `Superseded`.
    pub delivery: Delivery,
    /// See [`Record::listeners`].
    pub listeners: Option<i64>,
    /// See [`Record::replication_id`].
    pub replication_id: Option<String>,
}

impl DeliveryResult {
    /// The signal is never sent.
    pub const SUPERSEDED: Self =
        Self { delivery: Delivery::Superseded, listeners: None, replication_id: None };
    /// Redis has the signal, and no replication id is stored: if Redis loses the signal, it is not sent
    /// again.
    pub const SENT: Self = Self { delivery: Delivery::Sent, listeners: None, replication_id: None };
}

/// The result of one delivery, to be stored in its row.
#[derive(Clone, Debug)]
pub struct DeliveryReceipt {
    /// The tenant of the row.
    pub tenant: TenantId,
    /// The request of the row.
    pub request: RequestId,
    /// The row's `owed_since` when the signal was sent. If the row has a later time by now, the signal is
    /// owed again, and the receipt is ignored.
    pub owed_since: DateTime<Utc>,
    /// The result.
    pub result: DeliveryResult,
    /// When the signal was sent or found superseded, UTC.
    pub at: DateTime<Utc>,
}

impl DeliveryReceipt {
    /// The receipt for the delivery that this row owes.
    #[must_use]
    pub fn of(record: &Record, result: DeliveryResult, at: DateTime<Utc>) -> Self {
        let (tenant, request) = (record.tenant.clone(), record.id.clone());
        Self { tenant, request, owed_since: record.owed_since, result, at }
    }
}

/// Whether a request has the same content and the same tenant as the ledger's row under its id. A request
/// without a tenant has the row's.
#[must_use]
pub fn is_same(record: &Record, asked: &Candidate) -> bool {
    record.content_hash == asked.request.content_hash
        && asked.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
}

/// What Redis holds under the key of a request that the ledger knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CourierCopy {
    /// No request, or one whose status is not `pending`.
    NotPending,
    /// The same request, with the status `pending`.
    Pending,
    /// A pending request with other content, or text that is not a valid request. An agent that waits for
    /// its answer must not get the answer to the ledger's request.
    Other,
}

impl CourierCopy {
    /// Compares the text under a request's key with the ledger's row.
    #[must_use]
    pub fn of(record: &Record, document: Option<&str>) -> Self {
        let Some(document) = document else { return Self::NotPending };
        match ApprovalRequest::read(&record.id, document.to_owned()) {
            Ok(request) if !request.is_pending() => Self::NotPending,
            Ok(request) if request.content_hash == record.content_hash => Self::Pending,
            _ => Self::Other,
        }
    }
}
