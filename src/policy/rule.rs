//! One rule of a policy: its condition, whom it lets decide, and what it asks of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::expression::Expression;
use super::words::{Person, Remember, Risk, Sentence, Way};
use crate::domain::ids::{TenantId, UserId};

/// A rule of the policy file.
#[derive(Debug)]
pub struct Rule {
    /// The name, unique in the file.
    pub name: String,
    /// The position in the file, from 0.
    pub(super) position: usize,
    /// `when`
    pub(super) condition: Expression,
    /// The text of `when`.
    pub when: String,
    /// `risk`
    pub risk: Risk,
    /// `show`: what may leave the service in a notice.
    pub show: Vec<String>,
    /// `auto`, or whom the rule lets decide.
    pub decides: Decides,
}

/// Who decides under a rule.
#[derive(Debug)]
pub enum Decides {
    /// `auto`
    Machine(Verdict),
    /// `approvers` and what belongs to them.
    People(People),
}

/// What a rule decides by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `auto = "approve"`
    Approve,
    /// `auto = "reject"`
    Reject,
}

impl Verdict {
    /// `approve` or `reject`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Reject => "reject",
        }
    }
}

/// Whom a rule lets decide, and what it asks of them.
#[derive(Debug)]
pub struct People {
    /// `approvers`
    pub approvers: Vec<Approver>,
    /// `quorum`: how many distinct people must approve.
    pub quorum: u32,
    /// `self_approval`: whether the requester may approve, edit or respond as an approver.
    pub self_approval: bool,
    /// `decisions`, in the order of [`Way::ALL`].
    pub decisions: Vec<Way>,
    /// `remember`
    pub remember: Remember,
    /// `expires_in`
    pub expires_in: Option<TimeDelta>,
    /// `remind_after`
    pub remind_after: Option<TimeDelta>,
    /// `escalate`
    pub escalate: Vec<Escalation>,
}

/// More approvers, once a request has waited.
#[derive(Debug)]
pub struct Escalation {
    /// Counted from `createdAt`.
    pub after: TimeDelta,
    /// Whom it adds.
    pub approvers: Vec<Approver>,
}

impl Escalation {
    /// Whether its time has come.
    #[must_use]
    pub fn has_begun(&self, created_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        created_at.checked_add_signed(self.after).is_some_and(|begins| begins <= now)
    }
}

impl People {
    /// Whether the person is one of the approvers, also those of escalations whose time has come.
    #[must_use]
    pub fn include(
        &self,
        person: &Person<'_>,
        requester: Option<&UserId>,
        created_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> bool {
        self.named(created_at, now).any(|approver| approver.is(person, requester))
    }

    /// The approvers, also those of escalations whose time has come.
    pub(super) fn named(
        &self,
        created_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> impl Iterator<Item = &Approver> {
        let begun = self.escalate.iter().filter(move |step| step.has_begun(created_at, now));
        self.approvers.iter().chain(begun.flat_map(|step| &step.approvers))
    }
}

/// Whom one entry of `approvers` names.
#[derive(Clone, Debug)]
pub enum Approver {
    /// `tenant`: everybody of the request's tenant.
    Tenant,
    /// `requester`: the user whom the agent acts for.
    Requester,
    /// `user:cho`, `user:tenant2/kim`
    User(Member),
    /// `group:finance`: of the file, or of the token's `groups`.
    Group {
        /// The group's name.
        name: String,
        /// Its members in the file; nobody when only tokens know the group.
        members: Arc<Members>,
    },
    /// `role:admin`: of the token's `role` or `roles`.
    Role(String),
}

impl Approver {
    /// Whether the entry names this person.
    #[must_use]
    pub fn is(&self, person: &Person<'_>, requester: Option<&UserId>) -> bool {
        match self {
            Self::Tenant => true,
            Self::Requester => requester == Some(person.user),
            Self::User(member) => member.is(person.user, person.tenant),
            Self::Group { name, members } => {
                person.groups.contains(name) || members.include(person.user, person.tenant)
            }
            Self::Role(role) => person.roles.contains(role),
        }
    }

    /// How sentences name it.
    #[must_use]
    pub fn sentence(&self) -> Sentence {
        match self {
            Self::Tenant => Sentence::new("anybody of the tenant", "테넌트의 누구나"),
            Self::Requester => Sentence::new("the requester", "요청자"),
            Self::User(member) => {
                Sentence::new(format!("user {member}"), format!("사용자 {member}"))
            }
            Self::Group { name, .. } => {
                Sentence::new(format!("group {name}"), format!("그룹 {name}"))
            }
            Self::Role(role) => Sentence::new(format!("role {role}"), format!("역할 {role}")),
        }
    }
}

/// As in the policy file.
impl fmt::Display for Approver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant => f.write_str("tenant"),
            Self::Requester => f.write_str("requester"),
            Self::User(member) => write!(f, "user:{member}"),
            Self::Group { name, .. } => write!(f, "group:{name}"),
            Self::Role(role) => write!(f, "role:{role}"),
        }
    }
}

/// A user id in the policy file: of one tenant, or of every tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The tenant; `None` for every tenant.
    pub tenant: Option<TenantId>,
    /// The user.
    pub user: UserId,
}

impl Member {
    /// Reads `kim` or `tenant2/kim`. What follows the first slash is the user.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim() != text {
            return None;
        }
        let (tenant, user) = match text.split_once('/') {
            Some((tenant, user)) => (Some(TenantId::parse(tenant).ok()?), user),
            None => (None, text),
        };
        Some(Self { tenant, user: UserId::parse(user).ok()? })
    }

    /// Whether it names this user of this tenant.
    #[must_use]
    pub fn is(&self, user: &UserId, tenant: &TenantId) -> bool {
        self.user == *user && self.tenant.as_ref().is_none_or(|only| only == tenant)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "{tenant}/{}", self.user),
            None => write!(f, "{}", self.user),
        }
    }
}

/// The members of a group of the policy file.
#[derive(Debug, Default)]
pub struct Members {
    /// Of every tenant.
    everywhere: BTreeSet<UserId>,
    /// Of one tenant.
    somewhere: BTreeMap<UserId, BTreeSet<TenantId>>,
}

impl Members {
    /// The group of these members.
    #[must_use]
    pub fn new(members: Vec<Member>) -> Self {
        let mut all = Self::default();
        for Member { tenant, user } in members {
            match tenant {
                Some(tenant) => {
                    all.somewhere.entry(user).or_default().insert(tenant);
                }
                None => {
                    all.everywhere.insert(user);
                }
            }
        }
        all
    }

    /// Whether this user of this tenant is a member.
    #[must_use]
    pub fn include(&self, user: &UserId, tenant: &TenantId) -> bool {
        self.everywhere.contains(user)
            || self.somewhere.get(user).is_some_and(|tenants| tenants.contains(tenant))
    }

    /// The members in a tenant, by name.
    #[must_use]
    pub fn in_tenant(&self, tenant: &TenantId) -> BTreeSet<&UserId> {
        let somewhere = self.somewhere.iter().filter(|(_, tenants)| tenants.contains(tenant));
        self.everywhere.iter().chain(somewhere.map(|(user, _)| user)).collect()
    }

    /// Whether nobody is a member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.everywhere.is_empty() && self.somewhere.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_of_one_tenant_or_of_every_tenant() {
        let user = |text| UserId::parse(text).unwrap();
        let tenant = |text| TenantId::parse(text).unwrap();
        let kim = Member::parse("kim").unwrap();
        let other_kim = Member::parse("tenant2/kim").unwrap();
        let slashed = Member::parse("tenant2/corp/kim").unwrap();
        assert_eq!(slashed, Member { tenant: Some(tenant("tenant2")), user: user("corp/kim") });
        for (member, is_in_1, is_in_2) in [(&kim, true, true), (&other_kim, false, true)] {
            assert_eq!(member.is(&user("kim"), &tenant("tenant1")), is_in_1);
            assert_eq!(member.is(&user("kim"), &tenant("tenant2")), is_in_2);
            assert!(!member.is(&user("lee"), &tenant("tenant2")));
        }
        assert_eq!((kim.to_string(), other_kim.to_string()), ("kim".into(), "tenant2/kim".into()));
        for text in ["", "/kim", "tenant2/", " kim", "kim ", "a\nb"] {
            assert_eq!(Member::parse(text), None, "{text:?}");
        }

        let lee = Member::parse("lee").unwrap();
        let group = Members::new(vec![other_kim, lee]);
        for (name, is_in_1, is_in_2) in
            [("kim", false, true), ("lee", true, true), ("cho", false, false)]
        {
            assert_eq!(group.include(&user(name), &tenant("tenant1")), is_in_1, "{name}");
            assert_eq!(group.include(&user(name), &tenant("tenant2")), is_in_2, "{name}");
            assert_eq!(group.in_tenant(&tenant("tenant1")).contains(&user(name)), is_in_1);
            assert_eq!(group.in_tenant(&tenant("tenant2")).contains(&user(name)), is_in_2);
        }
        assert!(!group.is_empty() && Members::default().is_empty());
    }

    #[test]
    fn an_escalation_begins_with_its_time_and_never_where_clocks_end() {
        let step = Escalation { after: TimeDelta::seconds(60), approvers: Vec::new() };
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        assert!(!step.has_begun(at(1000), at(1059)));
        assert!(step.has_begun(at(1000), at(1060)));
        assert!(!step.has_begun(at(1000), at(0)));
        assert!(!step.has_begun(DateTime::<Utc>::MAX_UTC, DateTime::<Utc>::MAX_UTC));
    }
}
