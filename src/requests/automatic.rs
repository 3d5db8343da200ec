//! Decides requests that a rule of the policy file decides by itself, or that a grant approves: when they
//! are registered, and as soon as the intake has seen them in Redis. They are recorded, signalled and listed
//! like those that people decide. What was pending before is for people to decide.

use chrono::{DateTime, Utc};
use tracing::info;

use super::decide::{Attempt, Subject, Written};
use super::error::{RequestError, Result};
use super::load::{InRedis, find_in_redis};
use super::notify::notify;
use super::standing::covering_grants;
use crate::domain::approver::{Caller, Role, Via};
use crate::domain::decision::{State, Verdict};
use crate::domain::ids::{GrantId, RequestId, TenantId, UserId};
use crate::domain::printable::printable;
use crate::domain::record::{
    Candidate, DecidedVia, Delivery, DeliveryReceipt, DeliveryResult, Record,
};
use crate::domain::rules::Expected;
use crate::domain::session::SessionPointer;
use crate::ledger::{Change, LEASE, Recorded, Registered, Writing};
use crate::observe::metrics;
use crate::permit::{self, Law, Permit, Terms};
use crate::state::AppState;

/// A rule, or who made a grant, in place of a person who decides. The name is no evidence of a token.
fn stand_in(name: &UserId, tenant: &TenantId) -> Caller {
    Caller {
        user: name.clone(),
        tenant: tenant.clone(),
        role: Role::User,
        memberships: std::sync::Arc::default(),
        token_id: None,
        via: Via::default(),
    }
}

/// The decision that a rule makes by itself, or else a grant; `None` if people decide.
async fn permit_of(
    app: &AppState,
    law: &Law,
    candidate: &Candidate,
    pointer: &SessionPointer,
    by: By,
    now: DateTime<Utc>,
) -> Result<Option<Permit>> {
    let tenant = candidate.tenant.as_ref();
    let grants = match (by, tenant) {
        (By::Rule, _) => return Ok(permit::automatic(law, candidate, pointer, now)?),
        (By::Grant, Some(tenant)) => covering_grants(app, candidate, tenant, now).await?,
        (By::People, _) | (_, None) => return Ok(None),
    };
    if grants.is_empty() {
        return Ok(None);
    }
    Ok(permit::by_grant(law, candidate, pointer, &grants, now)?)
}

/// What may decide a request before any person is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A rule decides it.
    Rule,
    /// A grant, if there is one.
    Grant,
    /// Nothing.
    People,
}

impl By {
    /// Of a request of which the rules say this.
    pub(super) fn of(terms: &Terms) -> Self {
        match terms {
            Terms { is_automatic: true, .. } => Self::Rule,
            Terms { may_be_granted: true, .. } => Self::Grant,
            _ => Self::People,
        }
    }
}

/// Registers a request as decided, in one write, if a rule or a grant decides it by itself and nobody has
/// registered it before. `None` if people decide it.
pub(super) async fn register_decided(
    app: &AppState,
    law: &Law,
    caller: &Caller,
    candidate: &Candidate,
    by: By,
) -> Result<Option<Registered>> {
    let now = app.clock.now();
    // A registered request does not depend on its session.
    let pointer = SessionPointer::default();
    let Some(permit) = permit_of(app, law, candidate, &pointer, by, now).await? else {
        return Ok(None);
    };
    let known = app.ledger.find_request(&caller.tenant, &candidate.request.id).await?;
    if let Some(known) = known {
        return Ok(Some(Registered::Known(known)));
    }
    let state = State::Decided(permit.decision().clone());
    let by_user = permit.ruling().via == DecidedVia::Grant;
    let actor = by_user.then_some(&permit.decision().by);
    let writing = Writing {
        held_for: LEASE,
        audit: app.audit_entry_of(candidate, &state, &caller.tenant, actor, now),
        registration_audit: app.audit_entry(candidate, &State::Pending, caller, now),
        ..Writing::new(candidate, Change::Decide(permit), caller, now)
    };
    match app.ledger.record_outcome(&writing).await? {
        Recorded::Won(record) => {
            crash_point!("decided");
            log(&record);
            metrics::decided(app.courier.engine(), &record);
            app.decisions.remember(&record, now);
            notify(app, &record);
            if record.delivery == Delivery::Owed {
                let receipt = DeliveryReceipt::of(&record, DeliveryResult::SENT, now);
                app.ledger.keep_receipt(receipt);
            }
            Ok(Some(Registered::New(record)))
        }
        Recorded::Lost(record) => Ok(Some(Registered::Known(record))),
        Recorded::GrantEnded => Ok(None),
        Recorded::IdTaken
        | Recorded::MovedOn
        | Recorded::AnothersSession
        | Recorded::VotesChanged => Ok(Some(Registered::IdTaken)),
    }
}

/// Decides a request of Redis, if a rule or a grant decides it by itself, its agent waits for it, and nobody
/// has decided it. Returns whether it did.
pub(super) async fn decide_seen(app: &AppState, tenant: &TenantId, id: &RequestId) -> Result<bool> {
    let Ok(reader) = UserId::parse("policy") else { return Ok(false) };
    let found = find_in_redis(app, &stand_in(&reader, tenant), id).await;
    let InRedis::Request(request) = found else { return Ok(false) };
    let (candidate, pointer) = *request;
    if !candidate.request.is_pending() || !pointer.allows(id) {
        return Ok(false);
    }
    let now = app.clock.now();
    let law = app.rules.in_force();
    let by = By::of(&law.terms(&candidate, tenant));
    let permit = match permit_of(app, &law, &candidate, &pointer, by, now).await {
        Ok(Some(permit)) => permit,
        Ok(None) | Err(RequestError::Refused(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let decision = permit.decision().clone();
    let caller = stand_in(&decision.by, tenant);
    let attempt = Attempt {
        app,
        caller: &caller,
        id,
        verdict: Verdict::Approve,
        remember: None,
        expected: &Expected::Anything,
        now,
    };
    let subject = Subject { candidate, pointer: Some(pointer) };
    match attempt.record(&subject, permit, None).await {
        Ok(Written::Won(record)) => {
            log(&record);
            attempt.send(&subject, &record, decision).await;
            Ok(true)
        }
        // It is decided already, or its agent has moved on.
        Ok(Written::Lost(_) | Written::IsRegistered(_) | Written::Outdated)
        | Err(RequestError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn log(record: &Record) {
    info!(
        request_id = %record.id,
        session_id = printable(record.session.as_str()),
        rule = record.ruling.rule.as_deref().map(printable),
        grant = record.ruling.grant.as_ref().map(GrantId::as_str),
        outcome = record.state.as_str(),
        "decided without people"
    );
}
