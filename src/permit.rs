//! The one door: [`judge`] says whether a caller may decide a request now, and every way to decide asks it.
//!
//! The ledger writes a decision only with a [`Permit`], and a vote only with a [`Ballot`]. Both are made
//! here alone, so a route that decides and does not ask does not compile. All functions are pure.
//!
//! Two texts say who may decide: the policy file, or without one the setting `approvers`. [`Law`] holds
//! what is in force. Where a rule asks for several approvals, [`judge`] gives a [`Tally`], which counts
//! the votes of other people under the policy now in force.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};

use crate::domain::approver::{Caller, Memberships, Role};
use crate::domain::decision::{Decision, Verdict};
use crate::domain::grant::{Grant, Wish};
use crate::domain::ids::{GrantId, MAX_NAME_BYTES, RequestId, TenantId, UserId};
use crate::domain::record::{Candidate, DecidedVia, Record, Ruling};
use crate::domain::request::{Origin, edited_fingerprint, said, shown_context};
use crate::domain::rules::{self, Approvers, Policy as Settings, Refusal};
use crate::domain::session::SessionPointer;
use crate::domain::vote::Vote;
use crate::policy::{self, Binding, Person, Policy, Remember, Risk, Sentence, Subject, Way};

/// The rules of a process. Cheap to clone; a reload changes all clones.
#[derive(Clone, Debug)]
pub struct Rules {
    settings: Settings,
    file: Arc<ArcSwapOption<Policy>>,
}

impl Rules {
    /// These settings, and this policy file if there is one.
    #[must_use]
    pub fn new(settings: Settings, file: Option<Arc<Policy>>) -> Self {
        Self { settings, file: Arc::new(ArcSwapOption::new(file)) }
    }

    /// Puts another policy file in force, from the next call on.
    pub fn set(&self, file: Option<Arc<Policy>>) {
        self.file.store(file);
    }

    /// What is in force now.
    #[must_use]
    pub fn in_force(&self) -> Law {
        Law { settings: self.settings, file: self.file.load_full() }
    }
}

/// The rules in force at one moment.
#[derive(Clone, Debug)]
pub struct Law {
    /// The settings.
    pub settings: Settings,
    /// The policy file. With one, the setting `approvers` says nothing.
    pub file: Option<Arc<Policy>>,
}

/// A key that no rule has: of a request whose row cannot be read. Nobody but an admin sees such a request.
const UNREADABLE: &str = "!";

impl Law {
    /// Whether a policy file is in force.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The version of the policy file.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.file.as_ref().map(|file| file.version())
    }

    /// The settings, without those that the policy file takes the place of.
    fn settings(&self) -> Settings {
        let approvers = if self.has_file() { Approvers::Tenant } else { self.settings.approvers };
        Settings { approvers, ..self.settings }
    }

    /// The rules that bind a request; `None` without a policy file. `tenant` is that of a request that
    /// names none.
    #[must_use]
    pub fn binding(&self, candidate: &Candidate, tenant: &TenantId) -> Option<Binding> {
        let context = shown_context(&candidate.request.document);
        self.binding_with(candidate, tenant, context.get())
    }

    /// The rules that bind a request with this context.
    fn binding_with(
        &self,
        candidate: &Candidate,
        tenant: &TenantId,
        context: &str,
    ) -> Option<Binding> {
        let file = self.file.as_ref()?;
        let Candidate { request, origin, .. } = candidate;
        Some(file.bind(&Subject {
            action_type: &request.action_type,
            message: request.message.as_deref(),
            context,
            user: candidate.user.as_ref(),
            tenant: Some(candidate.tenant.as_ref().unwrap_or(tenant)),
            session: &request.session,
            task: request.task.as_ref(),
            origin: *origin,
        }))
    }

    /// The rules that bind a verdict on a request: of an edit those of what was asked, and those of what
    /// it becomes.
    fn binding_of(
        &self,
        candidate: &Candidate,
        tenant: &TenantId,
        verdict: &Verdict,
    ) -> Option<Binding> {
        let asked = self.binding(candidate, tenant)?;
        match verdict {
            Verdict::Edit { arguments } => {
                Some(asked.and(self.binding_with(candidate, tenant, arguments)?))
            }
            Verdict::Approve | Verdict::Reject { .. } | Verdict::Respond { .. } => Some(asked),
        }
    }

    /// What the rules say of a request that nobody has decided.
    #[must_use]
    pub fn terms(&self, candidate: &Candidate, tenant: &TenantId) -> Terms {
        self.terms_of(candidate, self.binding(candidate, tenant).as_ref())
    }

    /// What these rules, which bind a request, say of it.
    #[must_use]
    pub fn terms_of(&self, candidate: &Candidate, binding: Option<&Binding>) -> Terms {
        let ruling = binding.map_or_else(Ruling::default, |binding| self.ruling_of(binding));
        // Its agent can raise the risk.
        let of_agent = candidate.request.offer.risk.filter(|_| candidate.origin == Origin::Http);
        let of_file = ruling.risk.as_deref().and_then(Risk::parse);
        let risk = of_file.max(of_agent).map(|risk| risk.as_str().to_owned());
        Terms {
            ruling: Ruling { risk, ..ruling },
            expires_at: binding
                .map_or(candidate.expires_at, |binding| expires_at(candidate, binding)),
            is_automatic: candidate.tenant.is_some()
                && binding.is_some_and(|binding| automatic_verdict(binding).is_some()),
            may_be_granted: candidate.tenant.is_some()
                && candidate.user.is_some()
                && binding.is_some_and(|binding| binding.may_remember(Remember::Exact).is_ok()),
        }
    }

    fn ruling_of(&self, binding: &Binding) -> Ruling {
        let (version, rules) = (self.version().unwrap_or_default(), binding.key());
        Ruling {
            rule: binding.rule().map(ToOwned::to_owned),
            version: Some(version.to_owned()),
            binding: Some(short_key(version, &rules)),
            rules: Some(rules),
            risk: Some(binding.risk().as_str().to_owned()),
            approvals_needed: Some(i64::from(binding.quorum())),
            ..Ruling::default()
        }
    }

    /// The ruling of a row whose document cannot be read: nobody may decide it.
    #[must_use]
    pub fn ruling_of_unreadable(&self) -> Ruling {
        let version = self.version().unwrap_or_default();
        Ruling {
            version: Some(version.to_owned()),
            binding: Some(short_key(version, UNREADABLE)),
            rules: Some(UNREADABLE.to_owned()),
            ..Ruling::default()
        }
    }

    /// The rules of a key of this version of the policy file.
    #[must_use]
    pub fn binding_of_rules(&self, rules: &str) -> Option<Binding> {
        self.file.as_ref()?.from_key(rules)
    }
}

/// What the rules in force say of a request that nobody has decided.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What its row keeps of the policy file.
    pub ruling: Ruling,
    /// When it expires: a rule may shorten its time.
    pub expires_at: DateTime<Utc>,
    /// Whether a rule decides it by itself.
    pub is_automatic: bool,
    /// Whether a grant can approve it: the rules let approvals be remembered.
    pub may_be_granted: bool,
}

/// A key that fits into an index, however many rules bind.
fn short_key(version: &str, rules: &str) -> String {
    let mut hash = format!("{:x}", Sha256::digest(rules));
    hash.truncate(24);
    format!("{version} {hash}")
}

fn expires_at(candidate: &Candidate, binding: &Binding) -> DateTime<Utc> {
    let Candidate { created_at, expires_at, .. } = candidate;
    let shortened = binding.expires_in().and_then(|time| created_at.checked_add_signed(time));
    shortened.map_or(*expires_at, |shortened| shortened.min(*expires_at))
}

/// The proof that a decision on a request was judged. Nothing else makes one:
///
/// ```compile_fail
/// use aura_hitl::permit::Permit;
///
/// fn decide_without_asking(permit: Permit) -> Permit {
///     Permit { vote: None, ..permit }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Permit {
    decision: Decision,
    request: RequestId,
    content_hash: String,
    ruling: Ruling,
    vote: Option<Vote>,
    grant: Option<Box<Grant>>,
}

impl Permit {
    /// The decision.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// What the policy file says of the request.
    #[must_use]
    pub fn ruling(&self) -> &Ruling {
        &self.ruling
    }

    /// The vote that completes the decision, if more than one person makes it.
    #[must_use]
    pub fn vote(&self) -> Option<&Vote> {
        self.vote.as_ref()
    }

    /// The grant that is made with the approval.
    #[must_use]
    pub fn grant(&self) -> Option<&Grant> {
        self.grant.as_deref()
    }

    /// Whether the permit is for this request, with the content that it has now.
    #[must_use]
    pub fn is_for(&self, candidate: &Candidate) -> bool {
        self.request == candidate.request.id && self.content_hash == candidate.request.content_hash
    }
}

/// The proof that a vote that does not decide was judged.
#[derive(Clone, Debug)]
pub struct Ballot {
    vote: Vote,
    ruling: Ruling,
    approvals: Approvals,
    request: RequestId,
    content_hash: String,
}

impl Ballot {
    /// The vote.
    #[must_use]
    pub fn vote(&self) -> &Vote {
        &self.vote
    }

    /// What the policy file says of the request. Its `approvals` count this vote, and those for the same
    /// arguments.
    #[must_use]
    pub fn ruling(&self) -> &Ruling {
        &self.ruling
    }

    /// What its row says of all votes with this one.
    #[must_use]
    pub fn approvals(&self) -> Approvals {
        self.approvals
    }

    /// Whether the ballot is for this request, with the content that it has now.
    #[must_use]
    pub fn is_for(&self, candidate: &Candidate) -> bool {
        self.request == candidate.request.id && self.content_hash == candidate.request.content_hash
    }
}

/// Someone who wants to decide a request.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// The request.
    pub candidate: &'a Candidate,
    /// The pointer of its session.
    pub pointer: &'a SessionPointer,
    /// The person.
    pub caller: &'a Caller,
    /// What the person says.
    pub verdict: &'a Verdict,
    /// For which later requests an approval is to stand, too.
    pub remember: Option<&'a Wish>,
    /// The present time, UTC.
    pub now: DateTime<Utc>,
}

/// What a caller may do who may decide a request.
#[derive(Clone, Debug)]
pub enum Granted {
    /// Decide it.
    Alone(Box<Permit>),
    /// Approve it together with other people.
    Together(Box<Tally>),
}

/// Whether this caller may decide this request now.
///
/// # Errors
/// [`Refusal::NotFound`] for callers of other tenants; [`Refusal::NotAllowed`] when the policy file does
/// not let the caller decide, or not remember the approval as the caller asks, or
/// [`Refusal::NotTheRequester`] without one; then what [`rules::check_open`] says. Then nothing may be
/// recorded.
pub fn judge(law: &Law, asking: Asking<'_>) -> Result<Granted, Refusal> {
    let Asking { candidate, pointer, caller, verdict, remember, now } = asking;
    rules::check_caller(candidate, caller, law.settings())?;
    let binding = law.binding_of(candidate, &caller.tenant, verdict);
    if let Some(binding) = &binding
        && let Some(refusal) = refused_by(binding, candidate, caller, verdict, now)
    {
        return Err(refusal);
    }
    let expires_at = binding.as_ref().map_or(candidate.expires_at, |it| expires_at(candidate, it));
    rules::check_open(candidate, pointer, expires_at, now)?;
    // Requesters may reject their own requests, whatever their agents say.
    let rejects_own = verdict.way() == Way::Reject && candidate.user.as_ref() == Some(&caller.user);
    if !rejects_own && !candidate.ways().contains(&verdict.way()) {
        return Err(Refusal::NotOffered(verdict.way()));
    }
    let ruling = binding.as_ref().map_or_else(Ruling::default, |binding| law.ruling_of(binding));
    let grant = match remember {
        Some(wish) => Some(grant_of(binding.as_ref(), &ruling, asking, *wish)?),
        None => None,
    };
    let decision = Decision { verdict: verdict.clone(), by: caller.user.clone(), at: now };
    let permit = Permit {
        decision,
        request: candidate.request.id.clone(),
        content_hash: candidate.request.content_hash.clone(),
        ruling: Ruling { grant: grant.as_ref().map(|grant| grant.id.clone()), ..ruling },
        vote: None,
        grant: grant.map(Box::new),
    };
    match binding {
        Some(binding) if is_approval(verdict) && binding.quorum() > 1 => {
            let vote = Vote {
                voter: caller.user.clone(),
                at: now,
                etag: candidate.request.etag.clone(),
                arguments: verdict
                    .arguments()
                    .map(|arguments| edited_fingerprint(&candidate.request.action_type, arguments)),
                edited: verdict.arguments().map(ToOwned::to_owned),
                memberships: (*caller.memberships).clone(),
                rule: permit.ruling.rule.clone(),
                version: permit.ruling.version.clone(),
                token_id: caller.token_id.clone(),
                is_revoked: false,
            };
            let requester = candidate.user.clone();
            let (tenant, created_at) = (caller.tenant.clone(), candidate.created_at);
            let law = law.clone();
            let tally = Tally { permit, vote, binding, requester, tenant, created_at, now, law };
            Ok(Granted::Together(Box::new(tally)))
        }
        _ => Ok(Granted::Alone(Box::new(permit))),
    }
}

/// The grant that an approval makes.
fn grant_of(
    binding: Option<&Binding>,
    ruling: &Ruling,
    asking: Asking<'_>,
    wish: Wish,
) -> Result<Grant, Refusal> {
    let Asking { candidate, caller, now, .. } = asking;
    let Candidate { request, origin, user, .. } = candidate;
    let refuse = |Sentence { en, ko }| Refusal::NotAllowed { en, ko };
    let binding = binding.ok_or_else(|| refuse(policy::nothing_remembered()))?;
    binding.may_remember(wish.arguments).map_err(|why| refuse(why.sentence()))?;
    let requester = user.clone().ok_or_else(|| refuse(policy::unknown_requester()))?;
    Ok(Grant {
        id: GrantId::generate(),
        tenant: caller.tenant.clone(),
        request: request.id.clone(),
        granter: caller.user.clone(),
        memberships: (*caller.memberships).clone(),
        requester,
        origin: *origin,
        scope: wish.scope,
        session: request.session.clone(),
        action_type: request.action_type.clone(),
        said: (wish.arguments == Remember::Exact).then(|| said(&request.document)),
        rule: ruling.rule.clone(),
        version: ruling.version.clone(),
        token_id: caller.token_id.clone(),
        created_at: now,
        expires_at: now + wish.time,
    })
}

/// Why the policy file does not let a caller decide a request in this way, whatever the state of the
/// request; `None` if it does, or if there is no such file.
#[must_use]
pub fn refusal(
    law: &Law,
    candidate: &Candidate,
    caller: &Caller,
    verdict: &Verdict,
    now: DateTime<Utc>,
) -> Option<Refusal> {
    let binding = law.binding_of(candidate, &caller.tenant, verdict)?;
    refused_by(&binding, candidate, caller, verdict, now)
}

fn refused_by(
    binding: &Binding,
    candidate: &Candidate,
    caller: &Caller,
    verdict: &Verdict,
    now: DateTime<Utc>,
) -> Option<Refusal> {
    let (requester, created_at) = (candidate.user.as_ref(), candidate.created_at);
    let why = binding.may(&person(caller), requester, verdict.way(), created_at, now).err()?;
    let Sentence { en, ko } = why.sentence();
    Some(Refusal::NotAllowed { en, ko })
}

/// An approval that needs those of other people.
#[derive(Clone, Debug)]
pub struct Tally {
    permit: Permit,
    vote: Vote,
    binding: Binding,
    requester: Option<UserId>,
    tenant: TenantId,
    created_at: DateTime<Utc>,
    now: DateTime<Utc>,
    law: Law,
}

/// An approval after the votes were counted.
#[derive(Clone, Debug)]
pub enum Counted {
    /// It is the last one that was missing.
    Decides(Permit),
    /// More are missing.
    Adds(Ballot),
}

impl Tally {
    /// Counts this approval and those that were given before. Each person counts once, if the person may
    /// approve now and has approved the same content and arguments. `ballots` is the counter of the row,
    /// read before the votes. `candidate` is the request, for what its row says of all votes.
    #[must_use]
    pub fn count(&self, candidate: &Candidate, given: &[Vote], ballots: i64) -> Counted {
        let Self { permit, vote, .. } = self;
        let others = given.iter().filter(|other| {
            other.voter != vote.voter
                && other.etag == vote.etag
                && other.arguments == vote.arguments
                && stands(
                    other,
                    &self.binding,
                    self.requester.as_ref(),
                    &self.tenant,
                    self.created_at,
                    self.now,
                )
        });
        let mut voters = others.map(|other| other.voter.clone()).collect::<Vec<_>>();
        voters.push(vote.voter.clone());
        let approvals = i64::try_from(voters.len()).unwrap_or(i64::MAX);
        let is_enough = approvals >= i64::from(self.binding.quorum());
        let ruling = Ruling { approvals: Some(approvals), ballots, ..permit.ruling.clone() };
        if is_enough {
            let ruling = Ruling { voters, ..ruling };
            Counted::Decides(Permit { ruling, vote: Some(vote.clone()), ..permit.clone() })
        } else {
            let Permit { request, content_hash, .. } = permit.clone();
            let others = given.iter().filter(|other| other.voter != vote.voter).cloned();
            let all = others.chain([vote.clone()]).collect::<Vec<_>>();
            let Standing { approvals, .. } =
                standing(&self.law, candidate, &self.tenant, &all, self.now);
            Counted::Adds(Ballot { vote: vote.clone(), ruling, approvals, request, content_hash })
        }
    }

    /// Whether the same vote was given before.
    #[must_use]
    pub fn is_repeated_in(&self, given: &[Vote]) -> bool {
        given.iter().any(|before| before.repeats(&self.vote))
    }
}

/// Whether a vote still counts for the content that it was given for: its token holds, and these rules let
/// its voter approve now.
fn stands(
    vote: &Vote,
    binding: &Binding,
    requester: Option<&UserId>,
    tenant: &TenantId,
    created_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> bool {
    let person = voter(vote, tenant);
    !vote.is_revoked && binding.may(&person, requester, way_of(vote), created_at, now).is_ok()
}

/// The votes on a pending request, as the rules in force count them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which of the votes count, in their order: those of people who may approve, now, what they have
    /// approved, of the content that the request has.
    pub counts: Vec<bool>,
    /// What lists and details say.
    pub approvals: Approvals,
}

/// The approvals of the arguments that most people have approved: of what was asked, or of an edit. Those of
/// what was asked, where no edit has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Approvals {
    /// How many approvals count.
    pub given: i64,
    /// How many it takes.
    pub needed: i64,
}

impl Approvals {
    /// The ruling of a row with these approvals.
    #[must_use]
    pub fn of(self, ruling: Ruling) -> Ruling {
        let Self { given, needed } = self;
        Ruling { approvals: Some(given), approvals_needed: Some(needed), ..ruling }
    }
}

/// Counts the votes on a pending request. A vote for other arguments is judged by the rules of what was
/// asked and of what it becomes, like the decision that it may complete. Without a policy file none counts.
#[must_use]
pub fn standing(
    law: &Law,
    candidate: &Candidate,
    tenant: &TenantId,
    votes: &[Vote],
    now: DateTime<Utc>,
) -> Standing {
    let Some(asked) = law.binding(candidate, tenant) else {
        let approvals = Approvals { given: 0, needed: 1 };
        return Standing { counts: vec![false; votes.len()], approvals };
    };
    let (requester, created_at) = (candidate.user.as_ref(), candidate.created_at);
    let is_current = |vote: &&Vote| vote.etag == candidate.request.etag;
    // The rules of each edit. Votes of an older release did not keep the arguments: the rules of what was
    // asked judge them, unless somebody else has approved the same.
    let mut edits = HashMap::<&str, Binding>::new();
    for vote in votes.iter().filter(is_current) {
        if let (Some(arguments), Some(edited)) = (&vote.arguments, &vote.edited)
            && !edits.contains_key(arguments.as_str())
            && let Some(becomes) = law.binding_with(candidate, tenant, edited)
        {
            edits.insert(arguments, asked.clone().and(becomes));
        }
    }
    let binding_of = |arguments: Option<&str>| {
        arguments.and_then(|arguments| edits.get(arguments)).unwrap_or(&asked)
    };
    let counts = |vote: &Vote| {
        let binding = binding_of(vote.arguments.as_deref());
        is_current(&vote) && stands(vote, binding, requester, tenant, created_at, now)
    };
    let counts = votes.iter().map(counts).collect::<Vec<_>>();
    let mut alike = BTreeMap::<Option<&str>, i64>::new();
    for (vote, _counts) in votes.iter().zip(&counts).filter(|(_, counts)| **counts) {
        *alike.entry(vote.arguments.as_deref()).or_default() += 1;
    }
    let of_asked =
        Approvals { given: alike.remove(&None).unwrap_or(0), needed: i64::from(asked.quorum()) };
    let approvals = alike.into_iter().fold(of_asked, |most, (arguments, given)| {
        let needed = i64::from(binding_of(arguments).quorum());
        if given > most.given { Approvals { given, needed } } else { most }
    });
    Standing { counts, approvals }
}

/// The decision that a rule makes by itself, before any person is asked; `None` if people decide.
///
/// # Errors
/// Those of [`rules::check_open`]: the agent does not wait for this request.
pub fn automatic(
    law: &Law,
    candidate: &Candidate,
    pointer: &SessionPointer,
    now: DateTime<Utc>,
) -> Result<Option<Permit>, Refusal> {
    let Some(tenant) = &candidate.tenant else { return Ok(None) };
    let Some(binding) = law.binding(candidate, tenant) else { return Ok(None) };
    let Some((verdict, by)) = automatic_verdict(&binding) else { return Ok(None) };
    let ruling =
        Ruling { via: DecidedVia::Policy, rule: Some(by.to_string()), ..law.ruling_of(&binding) };
    rules::check_open(candidate, pointer, expires_at(candidate, &binding), now)?;
    Ok(Some(Permit {
        decision: Decision { verdict, by, at: now },
        request: candidate.request.id.clone(),
        content_hash: candidate.request.content_hash.clone(),
        ruling,
        vote: None,
        grant: None,
    }))
}

/// The approval that one of these grants makes, before any person is asked; `None` if none of them does.
/// None does unless every rule that binds the request lets approvals of this kind be remembered, asks for
/// one approval, and lets the granter approve it now.
///
/// # Errors
/// Those of [`rules::check_open`]: the agent does not wait for this request.
pub fn by_grant(
    law: &Law,
    candidate: &Candidate,
    pointer: &SessionPointer,
    grants: &[Grant],
    now: DateTime<Utc>,
) -> Result<Option<Permit>, Refusal> {
    let Some((grant, binding)) = granting(law, candidate, grants, now) else { return Ok(None) };
    rules::check_open(candidate, pointer, expires_at(candidate, &binding), now)?;
    let ruling =
        Ruling { via: DecidedVia::Grant, grant: Some(grant.id.clone()), ..law.ruling_of(&binding) };
    Ok(Some(Permit {
        decision: Decision { verdict: Verdict::Approve, by: grant.granter.clone(), at: now },
        request: candidate.request.id.clone(),
        content_hash: candidate.request.content_hash.clone(),
        ruling,
        vote: None,
        grant: None,
    }))
}

/// Whether one of these grants approves a request that is asked again now.
#[must_use]
pub fn still_grants(
    law: &Law,
    candidate: &Candidate,
    grants: &[Grant],
    now: DateTime<Utc>,
) -> bool {
    granting(law, candidate, grants, now).is_some()
}

/// The first of these grants that approves a request now, and the rules that bind it.
fn granting<'a>(
    law: &Law,
    candidate: &Candidate,
    grants: &'a [Grant],
    now: DateTime<Utc>,
) -> Option<(&'a Grant, Binding)> {
    let tenant = candidate.tenant.as_ref()?;
    let binding = law.binding(candidate, tenant)?;
    let grant = grants.iter().find(|grant| approves(grant, &binding, candidate, tenant, now))?;
    Some((grant, binding))
}

/// Whether a grant approves a request under these rules now.
fn approves(
    grant: &Grant,
    binding: &Binding,
    candidate: &Candidate,
    tenant: &TenantId,
    now: DateTime<Utc>,
) -> bool {
    let Memberships { roles, groups } = &grant.memberships;
    let granter = Person { user: &grant.granter, tenant, roles, groups };
    let (requester, created_at) = (candidate.user.as_ref(), candidate.created_at);
    binding.may_remember(grant.arguments()).is_ok()
        && candidate.ways().contains(&Way::Approve)
        && binding.may(&granter, requester, Way::Approve, created_at, now).is_ok()
        && grant.covers(candidate, tenant, now)
}

/// What the rules decide by themselves, and the name of the rule, which stands for a person's.
fn automatic_verdict(binding: &Binding) -> Option<(Verdict, UserId)> {
    let policy::Automatic { verdict, rule } = binding.automatic()?;
    let verdict = match verdict {
        policy::Verdict::Approve => Verdict::Approve,
        policy::Verdict::Reject => Verdict::Reject { reason: format!("Rejected by rule {rule:?}") },
    };
    // A name may be longer than a user id, in bytes.
    let mut name = rule;
    while name.len() > MAX_NAME_BYTES {
        name = name.get(..name.len() - name.chars().next_back().map_or(1, char::len_utf8))?;
    }
    Some((verdict, UserId::parse(name).ok()?))
}

/// Whether the rules in force decide a request by themselves as it was decided.
#[must_use]
pub fn still_decides(law: &Law, candidate: &Candidate, record: &Record) -> bool {
    let Some(decision) = record.state.decision() else { return false };
    let decides = law.binding(candidate, &record.tenant).and_then(|it| automatic_verdict(&it));
    record.ruling.via == DecidedVia::Policy
        && decides.is_some_and(|(verdict, _rule)| verdict.status() == decision.verdict.status())
}

/// Whether a caller may see a request of their tenant: its requester, who may decide it, who has decided
/// it, and admins. Without a policy file everybody of the tenant may. Voters are not known here.
#[must_use]
pub fn may_see(
    binding: Option<&Binding>,
    seen: &Seen<'_>,
    caller: &Caller,
    now: DateTime<Utc>,
) -> bool {
    caller.role == Role::Admin
        || seen.requester == Some(&caller.user)
        || seen.deciders.contains(&caller.user)
        || binding.is_some_and(|binding| may_decide(binding, seen, caller, now))
}

/// What of a request says who may see and decide it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The user that it names.
    pub requester: Option<&'a UserId>,
    /// Those who have decided it.
    pub deciders: &'a [UserId],
    /// The ways in which it can be decided, as far as its agent goes.
    pub ways: &'a [Way],
    /// When its agent made it, UTC.
    pub created_at: DateTime<Utc>,
}

/// Whether a caller may decide a request in some way, whatever its state.
#[must_use]
pub fn may_decide(binding: &Binding, seen: &Seen<'_>, caller: &Caller, now: DateTime<Utc>) -> bool {
    let person = person(caller);
    seen.ways
        .iter()
        .any(|way| binding.may(&person, seen.requester, *way, seen.created_at, now).is_ok())
}

/// The ages from which a caller may decide requests with these rules: those that name the caller, those
/// that name others, and those that name nobody. `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecidableFrom {
    /// Of requests that name the caller.
    pub own: Option<TimeDelta>,
    /// Of requests that name somebody else.
    pub others: Option<TimeDelta>,
    /// Of requests that name nobody.
    pub nobodys: Option<TimeDelta>,
}

/// The longest life of a request, in seconds: no escalation comes later.
const MAX_AGE_SECONDS: i64 = 86_400;

impl DecidableFrom {
    /// For these rules and this caller. With more age more people may decide, never fewer.
    #[must_use]
    pub fn of(binding: &Binding, caller: &Caller, now: DateTime<Utc>) -> Self {
        let other = UserId::parse(if caller.user.as_str() == "-" { "--" } else { "-" }).ok();
        let earliest = |requester: Option<&UserId>| {
            let may_at = |age: i64| {
                let created_at = now - TimeDelta::seconds(age);
                let seen = Seen { requester, deciders: &[], ways: &Way::ALL, created_at };
                may_decide(binding, &seen, caller, now)
            };
            if may_at(0) {
                return Some(TimeDelta::zero());
            }
            if !may_at(MAX_AGE_SECONDS) {
                return None;
            }
            let (mut too_young, mut old_enough) = (0, MAX_AGE_SECONDS);
            while old_enough - too_young > 1 {
                let middle = i64::midpoint(too_young, old_enough);
                if may_at(middle) {
                    old_enough = middle;
                } else {
                    too_young = middle;
                }
            }
            Some(TimeDelta::seconds(old_enough))
        };
        Self {
            own: earliest(Some(&caller.user)),
            others: earliest(other.as_ref()),
            nobodys: earliest(None),
        }
    }
}

/// Whether a verdict lets the agent act.
fn is_approval(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Approve | Verdict::Edit { .. })
}

/// The way of a vote.
#[must_use]
pub fn way_of(vote: &Vote) -> Way {
    if vote.arguments.is_some() { Way::Edit } else { Way::Approve }
}

fn person(caller: &Caller) -> Person<'_> {
    let Memberships { roles, groups } = &*caller.memberships;
    Person { user: &caller.user, tenant: &caller.tenant, roles, groups }
}

fn voter<'a>(vote: &'a Vote, tenant: &'a TenantId) -> Person<'a> {
    let Memberships { roles, groups } = &vote.memberships;
    Person { user: &vote.voter, tenant, roles, groups }
}
