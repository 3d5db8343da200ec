//! The ledger from beside the service: a database of one's own, the row of a request whosever it is,
//! and what a use case would write, for tests that call the ledger themselves. `writing` fills in
//! whatever a test does not care about.

use aura_hitl::domain::approver::Caller;
use aura_hitl::domain::audit::AuditEntry;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::{RequestId, TenantId};
use aura_hitl::domain::record::{Candidate, Record, Ruling};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::rules::{Approvers, Policy, UnscopedRequests};
use aura_hitl::domain::session::SessionPointer;
use aura_hitl::ledger::{Change, LEASE, Ledger, Recorded, Writing};
use aura_hitl::permit::{Asking, Granted, Law, judge};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::asked::Asked;
use crate::names::{test_variable, unique};
use crate::people::Who;

/// A new, empty Postgres database.
pub async fn fresh_database() -> String {
    let url = test_variable("TEST_DATABASE_URL");
    let name = unique("hitl");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    let (server, _database) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// Tenants whose requests tests look up by their ids alone.
const TENANTS: [&str; 8] =
    ["tenant1", "tenant2", "tenant3", "7", "José", "김철수", "Doe, Jane", "50%25"];

/// The ledger's row of a request, whosever it is.
pub async fn find_record(ledger: &Ledger, request: &str) -> Option<Record> {
    let id = RequestId::parse(request).unwrap();
    for tenant in TENANTS {
        let tenant = TenantId::parse(tenant).unwrap();
        if let Some(record) = ledger.find_request(&tenant, &id).await.unwrap() {
            return Some(record);
        }
    }
    ledger.find_request_of_redis(&id).await.unwrap()
}

/// What the ledger is asked for, so that the request has this state. A decision is judged as that of a
/// request that its tenant's people decide and that has not expired.
pub fn change(candidate: &Candidate, state: &State, caller: &Caller) -> Change {
    let decision = match state {
        State::Pending => return Change::Register(Ruling::default()),
        State::Cancelled => return Change::Withdraw,
        State::Expired => panic!("nobody writes that a request has expired"),
        State::Decided(decision) => decision,
    };
    let judged = Candidate {
        origin: Origin::Http,
        tenant: Some(caller.tenant.clone()),
        expires_at: decision.at + TimeDelta::hours(1),
        ..candidate.clone()
    };
    let caller = Caller { user: decision.by.clone(), ..caller.clone() };
    let policy = Policy {
        approvers: Approvers::Tenant,
        unscoped_requests: UnscopedRequests::Refuse,
        require_if_match: false,
    };
    let asking = Asking {
        candidate: &judged,
        pointer: &SessionPointer::default(),
        caller: &caller,
        verdict: &decision.verdict,
        remember: None,
        now: decision.at,
    };
    match judge(&Law { settings: policy, file: None }, asking) {
        Ok(Granted::Alone(permit)) => Change::Decide(*permit),
        refused => panic!("{refused:?}"),
    }
}

/// What a use case writes to the ledger, but for what a test sets otherwise:
/// `Writing { only_newest: true, ..writing(…) }`.
pub fn writing<'a>(
    candidate: &'a Candidate,
    state: &State,
    caller: &'a Caller,
    now: DateTime<Utc>,
) -> Writing<'a> {
    Writing {
        candidate,
        change: change(candidate, state, caller),
        caller,
        now,
        held_for: LEASE,
        if_match: None,
        only_newest: false,
        alone_since: None,
        trace_parent: None,
        audit: AuditEntry::None,
        registration_audit: AuditEntry::None,
    }
}

/// Records a decision on the ledger only, as a process does that dies before it signals.
pub async fn decide_on_ledger(
    ledger: &Ledger,
    who: Who<'_>,
    asked: &Asked,
    origin: Origin,
    verdict: Verdict,
    now: DateTime<Utc>,
) -> Recorded {
    let (candidate, caller) = (asked.candidate(origin, now), who.caller());
    let state = State::Decided(who.decides(verdict, now));
    ledger.record_outcome(&writing(&candidate, &state, &caller, now)).await.unwrap()
}
