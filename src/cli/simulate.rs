//! `aura-hitl policy simulate`: replays the closed requests of a time span under a policy file, and lists
//! those that would go another way. It changes nothing.
//!
//! Tokens are not in the ledger, so groups and roles that only tokens know count as not named, but for the
//! recorded role of who decided. Where they would make the difference, the line says so.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use anyhow::Context as _;
use chrono::{DateTime, SecondsFormat, Utc};

use super::policy::{in_language, read};
use super::{load, with_wait_notice};
use crate::api::text::Language;
use crate::audit::export;
use crate::domain::clock::Clock;
use crate::domain::ids::{RequestId, SessionId, TenantId, UserId};
use crate::domain::printable::printable;
use crate::domain::request::{ApprovalRequest, Origin, shown_context};
use crate::ledger::Exported;
use crate::policy::rule::Decides;
use crate::policy::{
    Approver, Binding, Cause, NotAllowed, Person, Policy, Remember, Sentence, Subject, Verdict, Way,
};
use crate::server::stores;

/// Replays the requests that were closed from `from` on and before `to`, one at a time.
pub async fn run(
    config: Option<&Path>,
    file: &Path,
    from: &str,
    to: Option<&str>,
) -> anyhow::Result<()> {
    let language = Language::of_terminal();
    let policy = read(file, language)?;
    let span = export::span(from, to, true, Clock::System.now())?;
    let config = load(config)?;
    let ledger = with_wait_notice(stores::open_existing_ledger(&config)).await?;
    let mut replay = Replay::new(&policy, language, BufWriter::new(io::stdout().lock()));
    let read = ledger.export(&span, |row| replay.look_at(row)).await;
    let written = read.context("cannot read the ledger")?.and_then(|()| replay.end());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write the lines"),
    }
}

/// Writes a line for each request that would go another way, and counts all.
struct Replay<'p, W: Write> {
    policy: &'p Policy,
    /// Every group and role that the policy names: what a token could say.
    named: Named,
    language: Language,
    output: W,
    requests: u64,
    changed: u64,
}

impl<'p, W: Write> Replay<'p, W> {
    fn new(policy: &'p Policy, language: Language, output: W) -> Self {
        let named = Named::of(policy);
        Self { policy, named, language, output, requests: 0, changed: 0 }
    }

    fn look_at(&mut self, row: &Exported) -> io::Result<()> {
        self.requests += 1;
        let change = match Past::read(row) {
            Some(past) => past.change(self.policy, &self.named),
            None => Some(Sentence::new(
                "the request cannot be read, so nobody could decide it",
                "요청을 읽을 수 없어 아무도 결정할 수 없습니다",
            )),
        };
        let Some(change) = change else { return Ok(()) };
        self.changed += 1;
        let closed_at = row.decided_at.or(row.settled_at).unwrap_or(row.created_at);
        writeln!(
            self.output,
            "{} {} {} {} {}: {}",
            closed_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            printable(&row.tenant_id),
            printable(&row.request_id),
            printable(&row.action_type),
            printable(&row.status),
            printable(&in_language(change, self.language)),
        )
    }

    fn end(mut self) -> io::Result<()> {
        let (changed, requests) = (self.changed, self.requests);
        let noun = if requests == 1 { "request" } else { "requests" };
        let summary = Sentence::new(
            format!("{changed} of {requests} {noun} would go another way"),
            format!("요청 {requests}건 중 {changed}건이 다르게 처리됩니다"),
        );
        writeln!(self.output, "{}", in_language(summary, self.language))?;
        self.output.flush()
    }
}

/// Groups and roles that only tokens know.
struct Named {
    groups: Vec<String>,
    roles: Vec<String>,
}

impl Named {
    fn of(policy: &Policy) -> Self {
        let (mut groups, mut roles) = (BTreeSet::new(), BTreeSet::new());
        roles.insert(crate::policy::ADMIN.to_owned());
        for rule in policy.rules() {
            let Decides::People(people) = &rule.decides else { continue };
            let escalated = people.escalate.iter().flat_map(|step| &step.approvers);
            for approver in people.approvers.iter().chain(escalated) {
                match approver {
                    Approver::Group { name, .. } => {
                        groups.insert(name.clone());
                    }
                    Approver::Role(role) => {
                        roles.insert(role.clone());
                    }
                    Approver::Tenant | Approver::Requester | Approver::User(_) => {}
                }
            }
        }
        Self { groups: groups.into_iter().collect(), roles: roles.into_iter().collect() }
    }
}

/// How a request was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By a rule.
    Automatic(Verdict),
    /// By a grant.
    Remembered,
    /// By people, in this way.
    People(Way),
    /// Nobody decided it.
    Undecided,
}

/// A closed request.
struct Past {
    request: ApprovalRequest,
    context: Box<serde_json::value::RawValue>,
    /// What was approved instead of the context.
    arguments: Option<String>,
    session: SessionId,
    user: Option<UserId>,
    tenant: TenantId,
    origin: Origin,
    created_at: DateTime<Utc>,
    decided_at: DateTime<Utc>,
    end: End,
    /// Who decided, and then who approved besides.
    deciders: Vec<UserId>,
    /// The role of the first of `deciders`.
    role: Vec<String>,
}

impl Past {
    /// Reads a row; `None` when it holds no valid request.
    fn read(row: &Exported) -> Option<Self> {
        let id = RequestId::parse(row.request_id.as_str()).ok()?;
        let request = ApprovalRequest::read(&id, row.document.clone()).ok()?;
        let user = |id: &String| UserId::parse(id.as_str()).ok();
        let way = match row.status.as_str() {
            "approved" if row.arguments.is_some() => Some(Way::Edit),
            "approved" => Some(Way::Approve),
            "rejected" => Some(Way::Reject),
            "answered" => Some(Way::Respond),
            _ => None,
        };
        let end = match (way, row.decided_via.as_deref()) {
            (Some(Way::Reject), Some("policy")) => End::Automatic(Verdict::Reject),
            (Some(_), Some("policy")) => End::Automatic(Verdict::Approve),
            (Some(_), Some("grant")) => End::Remembered,
            (Some(way), _) => End::People(way),
            (None, _) => End::Undecided,
        };
        let mut deciders = row.decided_by.iter().filter_map(user).collect::<Vec<_>>();
        let voters: Option<Vec<String>> =
            row.voters.as_deref().and_then(|voters| serde_json::from_str(voters).ok());
        for voter in voters.unwrap_or_default().iter().filter_map(user) {
            if !deciders.contains(&voter) {
                deciders.push(voter);
            }
        }
        Some(Self {
            context: shown_context(&request.document),
            arguments: row.arguments.clone(),
            request,
            session: SessionId::parse(row.session_id.as_str()).ok()?,
            user: row.user_id.as_ref().and_then(user),
            tenant: TenantId::parse(row.tenant_id.as_str()).ok()?,
            origin: if row.origin == "http" { Origin::Http } else { Origin::Redis },
            created_at: row.created_at,
            decided_at: row.decided_at.unwrap_or(row.created_at),
            end,
            deciders,
            role: row.decider_role.iter().cloned().collect(),
        })
    }

    /// How the request would go otherwise; `None` when it would go as it went.
    fn change(&self, policy: &Policy, named: &Named) -> Option<Sentence> {
        let bind = |context| {
            policy.bind(&Subject {
                action_type: &self.request.action_type,
                message: self.request.message.as_deref(),
                context,
                user: self.user.as_ref(),
                tenant: Some(&self.tenant),
                session: &self.session,
                task: self.request.task.as_ref(),
                origin: self.origin,
            })
        };
        let asked = bind(self.context.get());
        if let Some(automatic) = asked.automatic() {
            let rule = automatic.rule;
            return match automatic.verdict {
                verdict if self.end == End::Automatic(verdict) => None,
                Verdict::Approve => Some(Sentence::new(
                    format!("rule {rule:?} would approve it at once"),
                    format!("규칙 {rule:?}이(가) 바로 승인합니다"),
                )),
                Verdict::Reject => Some(Sentence::new(
                    format!("rule {rule:?} would reject it at once"),
                    format!("규칙 {rule:?}이(가) 바로 거절합니다"),
                )),
            };
        }
        let binding = match &self.arguments {
            Some(arguments) => asked.and(bind(arguments)),
            None => asked,
        };
        match self.end {
            End::Undecided => None,
            End::Automatic(_) => Some(people_would_decide(&binding)),
            End::Remembered if binding.remember() == Remember::Never || binding.quorum() > 1 => {
                Some(people_would_decide(&binding))
            }
            End::Remembered => self.refused(&binding, Way::Approve, named),
            End::People(way) => {
                self.refused(&binding, way, named).or_else(|| self.missing(&binding, way))
            }
        }
    }

    /// More approvals than there were.
    fn missing(&self, binding: &Binding, way: Way) -> Option<Sentence> {
        let missing = (binding.quorum() as usize).checked_sub(self.deciders.len());
        let missing = missing.filter(|missing| *missing > 0 && way != Way::Reject)?;
        let names = binding.rules().collect::<Vec<_>>().join(", ");
        Some(Sentence::new(
            format!("{missing} more would have to approve ({names})"),
            format!("{missing}명이 더 승인해야 합니다 ({names})"),
        ))
    }

    /// The first of the deciders whom the policy would refuse.
    fn refused(&self, binding: &Binding, way: Way, named: &Named) -> Option<Sentence> {
        let requester = self.user.as_ref();
        let may = |user: &UserId, roles: &[String], groups: &[String]| {
            let person = Person { user, tenant: &self.tenant, roles, groups };
            binding.may(&person, requester, way, self.created_at, self.decided_at)
        };
        let mut unclear = None;
        for (at, user) in self.deciders.iter().enumerate() {
            let roles = if at == 0 { self.role.as_slice() } else { &[] };
            let Err(refusal) = may(user, roles, &[]) else { continue };
            // At its best, what could the token have said?
            if refusal.cause == Cause::NoApprover && may(user, &named.roles, &named.groups).is_ok()
            {
                unclear = unclear.or_else(|| Some(only_by_token(user, &refusal)));
            } else {
                let why = refusal.sentence();
                return Some(Sentence::new(
                    format!("{user} could not: {}", why.en),
                    format!("{user}은(는) 할 수 없습니다: {}", why.ko),
                ));
            }
        }
        unclear
    }
}

fn people_would_decide(binding: &Binding) -> Sentence {
    let why = binding.why();
    Sentence::new(
        format!("people would have to decide: {}", why.en),
        format!("사람이 결정해야 합니다: {}", why.ko),
    )
}

fn only_by_token(user: &UserId, refusal: &NotAllowed) -> Sentence {
    match &refusal.rule {
        Some(rule) => Sentence::new(
            format!("{user} could only by a group or role of the token that rule {rule:?} names"),
            format!(
                "{user}은(는) 규칙 {rule:?}이(가) 정한 그룹이나 역할이 토큰에 있어야 할 수 있습니다"
            ),
        ),
        None => Sentence::new(
            format!("{user} could only with role admin in the token"),
            format!("{user}은(는) 토큰에 admin 역할이 있어야 할 수 있습니다"),
        ),
    }
}
