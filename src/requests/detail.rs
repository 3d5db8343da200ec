//! Everything that a person sees of one request before they decide it, and what happened to it since.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use super::bound::{BoundRules, Rights};
use super::error::{RequestError, Result};
use super::load::ledger_candidate;
use super::read::{Found, find};
use super::standing::votes_on;
use crate::domain::approver::Caller;
use crate::domain::comment::Comment;
use crate::domain::decision::{Decision, State};
use crate::domain::ids::{RequestId, UserId};
use crate::domain::list::{Listed, Status};
use crate::domain::record::{Candidate, DecidedVia, Delivery, Record, Ruling};
use crate::domain::request::{ApprovalRequest, Origin, edited_fingerprint, shown_context};
use crate::domain::vote::Vote;
use crate::domain::ways::{Offer, PLAIN_WAYS, Way};
use crate::permit::{self, Law, Standing, Terms};
use crate::policy::{Binding, Remember, Sentence};
use crate::state::AppState;

/// A request with its content and its history.
#[derive(Debug)]
pub struct Detail {
    /// What lists show, with the whole message.
    pub row: Listed,
    /// What the caller may do with the request now.
    pub rights: Rights,
    /// Who voted how, the earliest first.
    pub votes: Vec<ShownVote>,
    /// What the policy file says of it, in a sentence; `None` without one.
    pub why: Option<Sentence>,
    /// See [`shown_context`].
    pub context: Box<RawValue>,
    /// A JSON array.
    pub plan_steps: String,
    /// The ledger's row; `None` for a request that only Redis has.
    pub record: Option<Record>,
    /// What happened, the oldest first.
    pub history: Vec<Happened>,
    /// The comments, the oldest first.
    pub comments: Vec<Comment>,
    /// What its agent says of the decision; `None` of an agent on Redis.
    pub offer: Option<Offer>,
    /// How far the rules let an approval stand for later requests.
    pub remember: Remember,
}

/// A vote on a request, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownVote {
    /// Who voted.
    pub voter: UserId,
    /// How the person decides it.
    pub way: Way,
    /// Why the person rejected it.
    pub reason: Option<String>,
    /// The fingerprint of the arguments that the person approved instead of those that were asked.
    pub arguments: Option<String>,
    /// These arguments.
    pub edited: Option<String>,
    /// When, UTC.
    pub at: DateTime<Utc>,
    /// Whether the vote counts for the decision: of a pending request as things are now.
    pub is_counted: bool,
}

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// When, UTC.
    pub at: DateTime<Utc>,
    /// What.
    pub event: Event,
    /// Who did it, if a person did.
    pub by: Option<UserId>,
}

/// What happens to a request, in the usual order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The agent asked.
    Created,
    /// The service saw the request in Redis, or it was decided before that.
    Seen,
    /// A person approved a request that needs more approvals.
    Voted,
    /// A person or a rule approved.
    Approved,
    /// A person approved with other arguments.
    Edited,
    /// A person or a rule rejected.
    Rejected,
    /// A person answered instead.
    Answered,
    /// Nobody decided in time.
    Expired,
    /// The agent withdrew it.
    Cancelled,
    /// The signal went to Redis.
    Sent,
    /// The agent had moved on, so no signal was sent.
    Superseded,
    /// The agent was answered over HTTP.
    Heard,
    /// The agent said that it had acted.
    Acted,
}

impl Event {
    /// The event on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Seen => "seen",
            Self::Voted => "voted",
            Self::Approved => "approved",
            Self::Edited => "edited",
            Self::Rejected => "rejected",
            Self::Answered => "answered",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Sent => "sent",
            Self::Superseded => "superseded",
            Self::Heard => "heard",
            Self::Acted => "acted",
        }
    }
}

/// One request of the caller's tenant, from the ledger or, while only Redis has it, from Redis.
///
/// # Errors
/// Those of [`find`]; [`RequestError::Unreadable`] when somebody has edited the row by hand.
pub async fn detail(app: &AppState, caller: &Caller, id: &RequestId) -> Result<Detail> {
    let now = app.clock.now();
    let bound = BoundRules::read(app).await?;
    let law = app.rules.in_force();
    match find(app, caller, id).await? {
        Found::InRedis(candidate) => {
            let Candidate { request, created_at, .. } = &*candidate;
            let by = candidate.user.clone();
            let mut history = vec![Happened { at: *created_at, event: Event::Created, by }];
            let mut row = of_candidate(&candidate, caller);
            if let Some(seen) = app.ledger.find_listed(&row.tenant, id).await? {
                let is_same = seen.etag == row.etag;
                row = Listed {
                    ruling: if is_same { seen.ruling } else { Ruling::default() },
                    created_at: seen.created_at,
                    has_moved_on: seen.has_moved_on,
                    task: seen.task,
                    ..row
                };
                history.push(Happened { at: seen.created_at, event: Event::Seen, by: None });
            }
            let judged = judge(app, &law, &candidate, &mut row, None, now).await?;
            history.extend(judged.given);
            history.sort_by_key(|happened| (happened.at, happened.event));
            // Only deciding finds out whether the session still waits for it.
            let comments = app.ledger.comments(&row.tenant, id).await?;
            Ok(Detail {
                rights: bound.rights_under(judged.binding.as_ref(), &row, caller, now),
                row,
                votes: judged.votes,
                remember: remember(judged.binding.as_ref(), &candidate),
                why: judged.binding.map(|binding| binding.why()),
                context: shown_context(&request.document),
                plan_steps: request.plan_steps.clone(),
                record: None,
                history,
                comments,
                offer: None,
            })
        }
        Found::InLedger(record) => {
            let request = ApprovalRequest::read(id, record.document.clone());
            let request = request.map_err(RequestError::Unreadable)?;
            let heard_at = app.ledger.heard_at(&record.tenant, id).await?;
            let comments = app.ledger.comments(&record.tenant, id).await?;
            let mut row = of_record(&record, &request);
            let candidate = ledger_candidate((*record).clone())?;
            let judged = judge(app, &law, &candidate, &mut row, Some(&record), now).await?;
            let mut history = history(&record, heard_at);
            history.extend(judged.given);
            history.sort_by_key(|happened| (happened.at, happened.event));
            Ok(Detail {
                rights: bound.rights_under(judged.binding.as_ref(), &row, caller, now),
                row,
                votes: judged.votes,
                remember: remember(judged.binding.as_ref(), &candidate),
                why: judged.binding.map(|binding| binding.why()),
                context: shown_context(&record.document),
                plan_steps: request.plan_steps,
                history,
                comments,
                offer: (record.origin == Origin::Http).then_some(request.offer),
                record: Some(*record),
            })
        }
    }
}

/// How far the rules let an approval of a request stand for later ones.
fn remember(binding: Option<&Binding>, candidate: &Candidate) -> Remember {
    let Some(binding) = binding.filter(|_binding| candidate.user.is_some()) else {
        return Remember::Never;
    };
    let allowed = |remember: &Remember| binding.may_remember(*remember).is_ok();
    [Remember::Any, Remember::Exact].into_iter().find(allowed).unwrap_or_default()
}

/// What the policy file and the votes say of a request.
struct Judged {
    binding: Option<Binding>,
    votes: Vec<ShownVote>,
    /// The approvals that did not decide it.
    given: Vec<Happened>,
}

/// Judges a request under the rules in force. Those say in `row` what a pending request needs; a closed one
/// keeps what was said when it was decided.
async fn judge(
    app: &AppState,
    law: &Law,
    candidate: &Candidate,
    row: &mut Listed,
    record: Option<&Record>,
    now: DateTime<Utc>,
) -> Result<Judged> {
    let binding = law.binding(candidate, &row.tenant);
    let decision = record.and_then(|record| record.state.decision());
    let is_open = record.is_none_or(|record| record.state == State::Pending);
    let was_ruled = row.ruling.version.is_some();
    let given = if was_ruled { votes_on(app, &row.tenant, &row.id).await? } else { Vec::new() };
    let (counts, approvals) = if is_open {
        let Standing { counts, approvals } =
            permit::standing(law, candidate, &row.tenant, &given, now);
        (counts, Some(approvals))
    } else {
        let has_counted = |vote: &Vote| row.ruling.voters.contains(&vote.voter);
        (given.iter().map(has_counted).collect(), None)
    };
    if let Some(approvals) = approvals.filter(|_approvals| law.has_file()) {
        let Terms { ruling, expires_at, .. } = law.terms_of(candidate, binding.as_ref());
        row.ruling = approvals.of(ruling);
        row.expires_at = row.expires_at.min(expires_at);
    }
    let decider = decision.filter(|_decision| was_ruled && row.ruling.via == DecidedVia::Person);
    let is_decider = |user: &UserId| decider.is_some_and(|decision| decision.by == *user);
    let mut votes = Vec::new();
    let mut happened = Vec::new();
    for (vote, is_counted) in given.into_iter().zip(counts) {
        let way = permit::way_of(&vote);
        let Vote { voter, at, arguments, edited, .. } = vote;
        // Who decided has said so last.
        if !is_decider(&voter) {
            happened.push(Happened { at, event: Event::Voted, by: Some(voter.clone()) });
            votes.push(ShownVote { voter, way, reason: None, arguments, edited, at, is_counted });
        }
    }
    votes.extend(decider.map(|Decision { verdict, by, at }| ShownVote {
        voter: by.clone(),
        way: verdict.way(),
        reason: verdict.reason().map(ToOwned::to_owned),
        arguments:
            verdict.arguments().map(|arguments| edited_fingerprint(&row.action_type, arguments)),
        edited: verdict.arguments().map(ToOwned::to_owned),
        at: *at,
        is_counted: true,
    }));
    Ok(Judged { binding, votes, given: happened })
}

fn of_candidate(candidate: &Candidate, caller: &Caller) -> Listed {
    let Candidate { request, origin, tenant, user, created_at, expires_at } = candidate;
    Listed {
        id: request.id.clone(),
        session: request.session.clone(),
        tenant: tenant.clone().unwrap_or_else(|| caller.tenant.clone()),
        user: user.clone(),
        origin: *origin,
        action_type: request.action_type.clone(),
        message: request.message.clone(),
        status: Status::Pending,
        created_at: *created_at,
        asked_at: *created_at,
        has_moved_on: false,
        is_asked_again: false,
        expires_at: *expires_at,
        task: request.task.clone(),
        fingerprint: request.fingerprint.clone(),
        etag: request.etag.clone(),
        decided_by: None,
        decided_at: None,
        reason: None,
        closed_at: None,
        ways: candidate.ways().to_vec(),
        ruling: Ruling::default(),
    }
}

fn of_record(record: &Record, request: &ApprovalRequest) -> Listed {
    let decision = record.state.decision();
    Listed {
        id: record.id.clone(),
        session: record.session.clone(),
        tenant: record.tenant.clone(),
        user: record.user.clone(),
        origin: record.origin,
        action_type: request.action_type.clone(),
        message: request.message.clone(),
        status: match record.asked_again_until {
            Some(_again) => Status::Pending,
            None => Status::parse(record.state.as_str()).unwrap_or(Status::Pending),
        },
        created_at: record.created_at,
        asked_at: record.asked_at,
        has_moved_on: record.has_moved_on,
        is_asked_again: record.asked_again_until.is_some(),
        expires_at: record.asked_again_until.unwrap_or(record.expires_at),
        task: (!record.is_only_seen()).then(|| record.task.clone()),
        fingerprint: record.fingerprint.clone(),
        etag: request.etag.clone(),
        decided_by: decision.map(|decision| decision.by.clone()),
        decided_at: decision.map(|decision| decision.at),
        reason: decision.and_then(|decision| decision.verdict.reason()).map(ToOwned::to_owned),
        closed_at: record.closed_at,
        ways: match record.origin {
            Origin::Redis => PLAIN_WAYS.to_vec(),
            Origin::Http => request.offer.ways.clone(),
        },
        ruling: record.ruling.clone(),
    }
}

/// What the row knows of the past, the oldest first.
fn history(record: &Record, heard_at: Option<DateTime<Utc>>) -> Vec<Happened> {
    let mut history = Vec::new();
    let mut add = |at: Option<DateTime<Utc>>, event, by: Option<&UserId>| {
        history.extend(at.map(|at| Happened { at, event, by: by.cloned() }));
    };
    add(Some(record.asked_at), Event::Created, record.user.as_ref());
    if record.origin == Origin::Redis {
        add(Some(record.created_at), Event::Seen, None);
    }
    match &record.state {
        State::Pending => {}
        State::Decided(decision) => {
            let event = match decision.verdict.way() {
                Way::Approve => Event::Approved,
                Way::Edit => Event::Edited,
                Way::Reject => Event::Rejected,
                Way::Respond => Event::Answered,
            };
            add(Some(decision.at), event, Some(&decision.by));
        }
        State::Expired => add(record.closed_at, Event::Expired, None),
        State::Cancelled => add(record.closed_at, Event::Cancelled, None),
    }
    // A registered request has no signal.
    if record.origin == Origin::Redis {
        let event = match record.delivery {
            Delivery::Superseded => Event::Superseded,
            Delivery::Sent | Delivery::Owed => Event::Sent,
        };
        add(record.sent_at, event, None);
    }
    add(heard_at, Event::Heard, None);
    add(record.acted_at, Event::Acted, None);
    history.sort_by_key(|happened| (happened.at, happened.event));
    history
}
