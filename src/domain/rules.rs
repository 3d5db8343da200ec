//! The rules of a decision: who may decide which request, until when, and how a second decision is answered.
//!
//! [`check_caller`], [`check_open`] and [`withdraw`] say whether a caller may decide or withdraw a request,
//! apart from the policy file (`permit`). The ledger then
//! records exactly one outcome of each request. [`judge_lost_decision`] and [`judge_lost_withdrawal`] say
//! what the callers are answered whose outcome was not recorded. All functions are pure.

use chrono::{DateTime, Utc};

use super::approver::{Caller, Role};
use super::decision::{Decision, State, Verdict};
use super::ids::{RequestId, SessionId, TenantId, UserId};
use super::list::Owners;
use super::record::{Candidate, DecidedVia, Record};
use super::request::Origin;
use super::session::SessionPointer;
use super::ways::Way;

/// The operator's settings on who may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which users of a tenant may decide a request.
    pub approvers: Approvers,
    /// What happens to requests without a tenant.
    pub unscoped_requests: UnscopedRequests,
    /// Whether a decision needs `If-Match` with the `ETag` of the request that the person saw.
    pub require_if_match: bool,
}

/// Which users of a request's tenant may decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approvers {
    /// Every user of the tenant.
    Tenant,
    /// Only the user that the request names; every user of the tenant when it names none.
    Requester,
}

/// What happens to a request without a tenant, in a session without a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnscopedRequests {
    /// The request is answered as if it did not exist.
    Refuse,
    /// The user whom the request names may decide it; every authenticated user if it names none.
    Accept,
}

/// Why a decision, a withdrawal or an acknowledgement is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request does not exist, or the caller may not see it.
    NotFound,
    /// The request names another user, and [`Approvers::Requester`] lets only that user decide.
    NotTheRequester,
    /// The policy file does not let the caller decide. The sentence names the rule, in English and Korean.
    NotAllowed {
        /// English.
        en: String,
        /// Korean.
        ko: String,
    },
    /// The caller is neither the user of the request nor an admin.
    NotTheOwner,
    /// The session names another request by now.
    MovedOn,
    /// The request expired before anybody decided.
    Expired,
    /// The agent withdrew the request.
    Cancelled {
        /// The request.
        id: RequestId,
        /// Its session.
        session: SessionId,
    },
    /// The request has another decision already.
    AlreadyDecided(ExistingDecision),
    /// The request in Redis differs from the ledger's request under this id.
    Altered,
    /// The session names another tenant or user than the request. Its agent would take the answer as
    /// the answer to its own request.
    AnothersSession,
    /// No tag in `If-Match` is the tag of the request's content.
    Changed,
    /// A tag in `If-Match` is the tag of the request's content, but weakened by a proxy.
    WeakTag,
    /// The agent cannot handle a decision of this way, or waits on Redis, where there is no such decision.
    NotOffered(Way),
    /// [`Policy::require_if_match`] holds, and the caller named no content.
    Unconditional,
    /// The request is pending, so there is no outcome to acknowledge.
    Undecided,
}

/// The content of the request that the person has seen: the caller's `If-Match`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// No `If-Match`: the content that the request has now.
    #[default]
    Anything,
    /// Content with one of these entity tags.
    OneOf {
        /// Strong tags: the content is the same byte for byte.
        strong: Vec<String>,
        /// Weak tags (`W/"…"`): the content may differ in bytes.
        weak: Vec<String>,
    },
}

impl Expected {
    /// Checks that the caller named a content, if the policy demands it.
    ///
    /// # Errors
    /// [`Refusal::Unconditional`].
    pub fn check_is_named(&self, policy: Policy) -> Result<(), Refusal> {
        if policy.require_if_match && *self == Self::Anything {
            return Err(Refusal::Unconditional);
        }
        Ok(())
    }

    /// Compares `etag`, the tag of the request's content, with the caller's tags. Returns the tag if the
    /// caller named it, and `None` without `If-Match`.
    ///
    /// # Errors
    /// [`Refusal::WeakTag`] when the caller named this tag in a form that a proxy has weakened (proxies
    /// that compress answers do so); [`Refusal::Changed`] when the caller named only other tags.
    pub fn check<'a>(&self, etag: &'a str) -> Result<Option<&'a str>, Refusal> {
        let Self::OneOf { strong, weak } = self else { return Ok(None) };
        if strong.iter().any(|tag| tag == etag) {
            return Ok(Some(etag));
        }
        // Apache and other proxies append `-gzip` or the like to the tag of a compressed answer.
        let is_marked = |tag: &String| {
            let mark = tag.strip_prefix(etag);
            mark.is_some_and(|mark| mark.starts_with(|letter: char| !letter.is_alphanumeric()))
        };
        if weak.iter().any(|tag| tag == etag) || strong.iter().chain(weak).any(is_marked) {
            return Err(Refusal::WeakTag);
        }
        Err(Refusal::Changed)
    }
}

/// The decision that a request already has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingDecision {
    /// The request.
    pub id: RequestId,
    /// Its session.
    pub session: SessionId,
    /// The decision.
    pub decision: Decision,
}

/// Whether a caller may see a request: it belongs to the caller's tenant. A request without a tenant is
/// visible only under [`UnscopedRequests::Accept`], and then only to the user whom it names, or to all
/// users if it names none.
#[must_use]
pub fn is_visible(
    tenant: Option<&TenantId>,
    user: Option<&UserId>,
    caller: &Caller,
    policy: Policy,
) -> bool {
    match tenant {
        Some(tenant) => *tenant == caller.tenant,
        None => {
            policy.unscoped_requests == UnscopedRequests::Accept
                && user.is_none_or(|user| *user == caller.user)
        }
    }
}

/// Whose requests of their tenant a caller may decide. Deciding, the lists and the counts of the inbox
/// all ask this function.
#[must_use]
pub fn decidable(caller: &Caller, policy: Policy) -> Owners {
    match policy.approvers {
        Approvers::Tenant => Owners::All,
        Approvers::Requester => Owners::OrNobody(caller.user.clone()),
    }
}

/// Whether a caller may acknowledge or withdraw a visible request, or change a visible task: as its owner
/// or as an admin.
#[must_use]
pub fn may_write(owner: Option<&UserId>, caller: &Caller) -> bool {
    caller.role == Role::Admin || owner == Some(&caller.user)
}

/// Whether the settings let this caller decide this request.
///
/// # Errors
/// The first that applies of [`Refusal::NotFound`] and [`Refusal::NotTheRequester`].
pub fn check_caller(candidate: &Candidate, caller: &Caller, policy: Policy) -> Result<(), Refusal> {
    let user = candidate.user.as_ref();
    if !is_visible(candidate.tenant.as_ref(), user, caller, policy) {
        return Err(Refusal::NotFound);
    }
    if !decidable(caller, policy).include(user) {
        return Err(Refusal::NotTheRequester);
    }
    Ok(())
}

/// Whether anybody can decide this request now: its agent waits for it, and it has not expired.
///
/// `pointer` is the pointer of the request's session. It counts only for requests of Redis.
///
/// # Errors
/// The first that applies of [`Refusal::MovedOn`], [`Refusal::AnothersSession`] and [`Refusal::Expired`].
pub fn check_open(
    candidate: &Candidate,
    pointer: &SessionPointer,
    expires_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), Refusal> {
    let user = candidate.user.as_ref();
    if candidate.origin == Origin::Redis && !pointer.allows(&candidate.request.id) {
        return Err(Refusal::MovedOn);
    }
    if candidate.origin == Origin::Redis && pointer.is_anothers(candidate.tenant.as_ref(), user) {
        return Err(Refusal::AnothersSession);
    }
    if now >= expires_at {
        return Err(Refusal::Expired);
    }
    Ok(())
}

/// The answer to a caller whose decision the ledger did not record, because of the row that it has.
/// `is_altered` says that the caller saw other content than the row has.
///
/// If the row has the same decision by the same caller about the same content, or one to which the caller's
/// vote counted, the caller has repeated it: the decision is returned, and the call succeeds.
///
/// # Errors
/// - [`Refusal::NotFound`] when the row belongs to another tenant.
/// - [`Refusal::Altered`] when the content differs, even if the row is decided: a person who reads
///   "already decided" would relate that to the content that they saw. Also when the row is pending.
/// - [`Refusal::AlreadyDecided`] when the row has another decision, or one by another user.
/// - [`Refusal::Cancelled`] or [`Refusal::Expired`] when the request is closed without a decision.
pub fn judge_lost_decision(
    record: &Record,
    is_altered: bool,
    caller: &Caller,
    verdict: &Verdict,
    now: DateTime<Utc>,
) -> Result<Decision, Refusal> {
    if record.tenant != caller.tenant {
        return Err(Refusal::NotFound);
    }
    match &record.state {
        State::Decided(_) if is_altered => Err(Refusal::Altered),
        State::Decided(standing) => {
            // A rule is no person, whatever its name. What a grant approved its granter has approved.
            let is_decider = record.ruling.via != DecidedVia::Policy && standing.by == caller.user;
            let has_voted = record.ruling.voters.contains(&caller.user);
            if (is_decider || has_voted) && standing.verdict.repeats(verdict) {
                return Ok(standing.clone());
            }
            Err(Refusal::AlreadyDecided(ExistingDecision {
                id: record.id.clone(),
                session: record.session.clone(),
                decision: standing.clone(),
            }))
        }
        State::Cancelled => {
            let (id, session) = (record.id.clone(), record.session.clone());
            Err(Refusal::Cancelled { id, session })
        }
        State::Expired => Err(Refusal::Expired),
        State::Pending if now >= record.expires_at => Err(Refusal::Expired),
        State::Pending => Err(Refusal::Altered),
    }
}

/// Whether this request is still pending, for what only makes sense until then.
///
/// # Errors
/// [`Refusal::AlreadyDecided`], [`Refusal::Cancelled`] or [`Refusal::Expired`] when it is closed.
pub fn judge_closed(record: &Record, now: DateTime<Utc>) -> Result<(), Refusal> {
    match &record.state {
        // Its agent has asked again.
        State::Decided(_) if record.asked_again_until.is_some_and(|until| now < until) => Ok(()),
        State::Decided(decision) => Err(Refusal::AlreadyDecided(ExistingDecision {
            id: record.id.clone(),
            session: record.session.clone(),
            decision: decision.clone(),
        })),
        State::Cancelled => {
            let (id, session) = (record.id.clone(), record.session.clone());
            Err(Refusal::Cancelled { id, session })
        }
        State::Expired => Err(Refusal::Expired),
        State::Pending if now >= record.expires_at => Err(Refusal::Expired),
        State::Pending => Ok(()),
    }
}

/// Whether this caller may withdraw this pending request now.
///
/// # Errors
/// [`Refusal::NotTheOwner`] when the caller is neither the request's user nor an admin;
/// [`Refusal::Expired`] when the request has expired. Then nothing may be recorded.
pub fn withdraw(candidate: &Candidate, caller: &Caller, now: DateTime<Utc>) -> Result<(), Refusal> {
    if !may_write(candidate.user.as_ref(), caller) {
        return Err(Refusal::NotTheOwner);
    }
    if now >= candidate.expires_at {
        return Err(Refusal::Expired);
    }
    Ok(())
}

/// The answer to a caller whose withdrawal the ledger did not record, because of the row that it has. If
/// the request is withdrawn already, the call succeeds.
///
/// # Errors
/// - [`Refusal::NotTheOwner`] when the caller may not withdraw the request, whatever its state.
/// - [`Refusal::AlreadyDecided`] or [`Refusal::Expired`] when the request is closed otherwise.
/// - [`Refusal::Altered`] when the row is pending.
pub fn judge_lost_withdrawal(record: &Record, caller: &Caller) -> Result<(), Refusal> {
    if !may_write(record.user.as_ref(), caller) {
        return Err(Refusal::NotTheOwner);
    }
    match &record.state {
        State::Cancelled => Ok(()),
        State::Decided(decision) => Err(Refusal::AlreadyDecided(ExistingDecision {
            id: record.id.clone(),
            session: record.session.clone(),
            decision: decision.clone(),
        })),
        State::Expired => Err(Refusal::Expired),
        State::Pending => Err(Refusal::Altered),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use chrono::TimeDelta;

    use super::super::approver::Via;
    use super::super::ids::TaskId;
    use super::super::record::{Delivery, Ruling, is_same};
    use super::super::request::ApprovalRequest;
    use super::*;

    /// What `permit::judge` does without a policy file.
    fn decide(
        candidate: &Candidate,
        pointer: &SessionPointer,
        caller: &Caller,
        policy: Policy,
        now: DateTime<Utc>,
    ) -> Result<(), Refusal> {
        check_caller(candidate, caller, policy)?;
        check_open(candidate, pointer, candidate.expires_at, now)
    }

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_706_152_860 + second, 0).unwrap()
    }

    // Few names each, so that equal names are common.

    fn a_user() -> impl Strategy<Value = UserId> {
        prop::sample::select(vec!["alice", "bob"]).prop_map(|name| UserId::parse(name).unwrap())
    }

    fn a_tenant() -> impl Strategy<Value = TenantId> {
        prop::sample::select(vec!["tenant1", "tenant2"])
            .prop_map(|name| TenantId::parse(name).unwrap())
    }

    prop_compose! {
        fn a_caller()(user in a_user(), tenant in a_tenant()) -> Caller {
            Caller {
                user, tenant, role: Role::User, memberships: Arc::default(), token_id: None,
                via: Via::default(),
            }
        }
    }

    fn a_verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Approve),
            "[a-z]{0,2}".prop_map(|reason| Verdict::Reject { reason }),
        ]
    }

    fn a_policy() -> impl Strategy<Value = Policy> {
        let approvers = prop::sample::select(vec![Approvers::Tenant, Approvers::Requester]);
        let unscoped = vec![UnscopedRequests::Refuse, UnscopedRequests::Accept];
        (approvers, prop::sample::select(unscoped)).prop_map(|(approvers, unscoped_requests)| {
            Policy { approvers, unscoped_requests, require_if_match: false }
        })
    }

    fn a_pointer() -> impl Strategy<Value = SessionPointer> {
        prop::sample::select(vec![None, Some("req_1"), Some("req_2"), Some("[]"), Some("{}")])
            .prop_map(|text| SessionPointer::read(text.map(ToOwned::to_owned)))
    }

    prop_compose! {
        fn a_candidate()(
            user in prop::option::of(a_user()),
            tenant in prop::option::of(a_tenant()),
            origin in prop::sample::select(vec![Origin::Redis, Origin::Http]),
            session in prop::sample::select(vec!["s1", "s2"]),
            action in prop::sample::select(vec!["send", "delete"]),
            expires in -3_i64..=3,
        ) -> Candidate {
            let document = serde_json::json!({
                "sessionId": session, "actionType": action,
                "userId": user.as_ref().map(UserId::as_str),
            });
            let id = RequestId::parse("req_1").unwrap();
            let request = ApprovalRequest::read(&id, document.to_string()).unwrap();
            Candidate {
                user: request.user.clone(), request, origin, tenant,
                created_at: at(expires) - TimeDelta::seconds(1800),
                expires_at: at(expires),
            }
        }
    }

    prop_compose! {
        fn a_decision()(verdict in a_verdict(), by in a_user(), second in -9_i64..0) -> Decision {
            Decision { verdict, by, at: at(second) }
        }
    }

    fn a_state() -> impl Strategy<Value = State> {
        prop_oneof![
            3 => a_decision().prop_map(State::Decided),
            1 => Just(State::Pending),
            1 => Just(State::Expired),
            1 => Just(State::Cancelled),
        ]
    }

    prop_compose! {
        fn a_record()(
            kept in a_candidate(), tenant in a_tenant(), state in a_state(),
            via in prop::sample::select(vec![DecidedVia::Person, DecidedVia::Policy]),
            voters in prop::collection::vec(a_user(), 0..2),
        ) -> Record {
            Record {
                id: kept.request.id,
                origin: kept.origin,
                session: kept.request.session,
                tenant,
                user: kept.user,
                fingerprint: kept.request.fingerprint,
                content_hash: kept.request.content_hash,
                document: kept.request.document,
                task: TaskId::parse("task_1").unwrap(),
                created_at: kept.created_at,
                asked_at: kept.created_at,
                has_moved_on: false,
                asked_again_until: None,
                expires_at: kept.expires_at,
                state,
                delivery: Delivery::Sent,
                owed_since: kept.created_at,
                listeners: None,
                replication_id: None,
                sent_at: None,
                sequence: None,
                closed_at: None,
                acted_at: None,
                ruling: Ruling { via, voters, ..Ruling::default() },
            }
        }
    }

    #[test]
    fn a_tag_names_its_content_unless_a_proxy_has_weakened_it() {
        let tag = "a1".repeat(32);
        let (is, other) = (tag.as_str(), "b2".repeat(32));
        let check = |strong: &[&str], weak: &[&str]| {
            let own = |tags: &[&str]| tags.iter().map(ToString::to_string).collect();
            let expected = Expected::OneOf { strong: own(strong), weak: own(weak) };
            expected.check(is).map(|named| named.map(ToOwned::to_owned))
        };
        assert_eq!(Expected::Anything.check(is), Ok(None));
        assert_eq!(check(&[is], &[]), Ok(Some(tag.clone())));
        assert_eq!(check(&[&other, is], &[is]), Ok(Some(tag.clone())));
        for weakened in ["-gzip", "--gzip", ";gzip", "-br"] {
            assert_eq!(check(&[&format!("{is}{weakened}")], &[]), Err(Refusal::WeakTag));
            assert_eq!(check(&[], &[&format!("{is}{weakened}")]), Err(Refusal::WeakTag));
        }
        assert_eq!(check(&[], &[is]), Err(Refusal::WeakTag));
        assert_eq!(check(&[], &[]), Err(Refusal::Changed));
        assert_eq!(check(&[&other, &format!("{is}0"), ""], &[&other]), Err(Refusal::Changed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn only_the_right_person_decides_only_what_the_agent_waits_for_and_only_in_time(
            candidate in a_candidate(), pointer in a_pointer(), caller in a_caller(),
            second in -4_i64..=4, policy in a_policy(),
        ) {
            let now = at(second);
            let outcome = decide(&candidate, &pointer, &caller, policy, now);
            let user = candidate.user.as_ref();
            let accepts = policy.unscoped_requests == UnscopedRequests::Accept;
            let is_mine = match (&candidate.tenant, user) {
                (Some(tenant), _) => *tenant == caller.tenant,
                (None, Some(user)) => accepts && *user == caller.user,
                (None, None) => accepts,
            };
            let may = policy.approvers == Approvers::Tenant
                || user.is_none_or(|user| *user == caller.user);
            let waits = candidate.origin == Origin::Http
                || pointer.request.as_deref().is_none_or(|named| named == "req_1");
            let in_time = now < candidate.expires_at;
            match outcome {
                Ok(()) => prop_assert!(is_mine && may && waits && in_time),
                // The earliest reason is returned, so that callers of other tenants learn nothing.
                Err(refusal) => prop_assert_eq!(refusal, match (is_mine, may, waits, in_time) {
                    (false, ..) => Refusal::NotFound,
                    (_, false, ..) => Refusal::NotTheRequester,
                    (_, _, false, _) => Refusal::MovedOn,
                    (.., false) => Refusal::Expired,
                    _ => return Err(TestCaseError::fail("refused for no reason")),
                }),
            }
        }

        #[test]
        fn only_a_repeat_of_the_recorded_decision_succeeds(
            record in a_record(), asked in prop::option::of(a_candidate()),
            caller in a_caller(), verdict in a_verdict(), second in -4_i64..=4,
        ) {
            let is_altered = asked.as_ref().is_some_and(|asked| !is_same(&record, asked));
            let told = judge_lost_decision(&record, is_altered, &caller, &verdict, at(second));
            let is_mine = record.tenant == caller.tenant;
            let said = |document: &str| {
                let mut said: serde_json::Value = serde_json::from_str(document).unwrap();
                said.as_object_mut().unwrap().remove("createdAt");
                said
            };
            let is_altered = asked.as_ref().is_some_and(|asked| {
                said(&asked.request.document) != said(&record.document)
                    || asked.tenant.as_ref().is_some_and(|tenant| *tenant != record.tenant)
            });
            let State::Decided(standing) = &record.state else {
                let refusal = match record.state {
                    _ if !is_mine => Refusal::NotFound,
                    State::Cancelled => {
                        let (id, session) = (record.id.clone(), record.session.clone());
                        Refusal::Cancelled { id, session }
                    }
                    State::Pending if at(second) < record.expires_at => Refusal::Altered,
                    _ => Refusal::Expired,
                };
                prop_assert_eq!(told, Err(refusal));
                return Ok(());
            };
            let ruling = &record.ruling;
            let has_voted = ruling.voters.contains(&caller.user);
            let has_decided = ruling.via == DecidedVia::Person && standing.by == caller.user;
            let is_repeat = (has_decided || has_voted)
                && matches!(&standing.verdict, Verdict::Approve) == matches!(verdict, Verdict::Approve);
            prop_assert_eq!(told, match (is_mine, is_altered, is_repeat) {
                (false, ..) => Err(Refusal::NotFound),
                (true, true, _) => Err(Refusal::Altered),
                (true, false, true) => Ok(standing.clone()),
                (true, false, false) => Err(Refusal::AlreadyDecided(ExistingDecision {
                    id: record.id.clone(),
                    session: record.session.clone(),
                    decision: standing.clone(),
                })),
            });
        }

        #[test]
        fn only_its_user_or_an_admin_withdraws_a_request_and_only_in_time(
            candidate in a_candidate(), record in a_record(), caller in a_caller(),
            is_admin in any::<bool>(), second in -4_i64..=4,
        ) {
            let caller = Caller { role: if is_admin { Role::Admin } else { Role::User }, ..caller };
            let is_anothers =
                |user: &Option<UserId>| !is_admin && user.as_ref() != Some(&caller.user);
            prop_assert_eq!(withdraw(&candidate, &caller, at(second)), match candidate.expires_at {
                _ if is_anothers(&candidate.user) => Err(Refusal::NotTheOwner),
                expires_at if at(second) < expires_at => Ok(()),
                _ => Err(Refusal::Expired),
            });
            prop_assert_eq!(judge_lost_withdrawal(&record, &caller), match &record.state {
                _ if is_anothers(&record.user) => Err(Refusal::NotTheOwner),
                State::Cancelled => Ok(()),
                State::Expired => Err(Refusal::Expired),
                State::Pending => Err(Refusal::Altered),
                State::Decided(decision) => Err(Refusal::AlreadyDecided(ExistingDecision {
                    id: record.id.clone(),
                    session: record.session.clone(),
                    decision: decision.clone(),
                })),
            });
        }
    }
}
