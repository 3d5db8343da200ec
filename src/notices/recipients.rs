//! Who is told as an approver: the people and groups of the configuration whom the policy names, and who
//! may decide. All functions are pure.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::people::{People, Recipient};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::ways::Way;
use crate::policy::{ADMIN, Approver, Binding, Person};

/// The request that people are told of.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its tenant.
    pub tenant: &'a TenantId,
    /// The user that its agent acts for.
    pub requester: Option<&'a UserId>,
    /// When its agent made it, UTC: escalations count from then.
    pub created_at: DateTime<Utc>,
}

/// Who may decide the request at this time, and is reached by the configuration.
///
/// People are named by `user:`, by the groups of the file, and by `requester`; each must be allowed by
/// every rule that binds, without what only a token knows. Nobody is told of their own request unless they
/// may approve it. A group or role has a shared address, whoever its members are.
#[must_use]
pub fn approvers(
    people: &People,
    binding: &Binding,
    asked: Asked<'_>,
    now: DateTime<Utc>,
) -> BTreeSet<Recipient> {
    let Asked { tenant, requester, created_at } = asked;
    let (mut users, mut names) = (BTreeSet::new(), BTreeSet::new());
    for approver in binding.approvers(created_at, now) {
        match approver {
            Approver::Tenant => {}
            Approver::Requester => users.extend(requester),
            Approver::User(member) => {
                if member.is(&member.user, tenant) {
                    users.insert(&member.user);
                }
            }
            Approver::Group { name, members } => {
                users.extend(members.in_tenant(tenant));
                names.insert(name.as_str());
            }
            Approver::Role(role) => {
                names.insert(role.as_str());
            }
        }
    }
    if binding.needs_admin() {
        names.insert(ADMIN);
    }
    let may_decide = |user: &UserId| {
        let person = Person { user, tenant, roles: &[], groups: &[] };
        let ways = Way::ALL.into_iter().filter(|way| *way != Way::Reject);
        let mut ways = ways.chain((requester != Some(user)).then_some(Way::Reject));
        ways.any(|way| binding.may(&person, requester, way, created_at, now).is_ok())
    };
    let users = users.into_iter().filter(|user| may_decide(user));
    let users = users.filter_map(|user| people.person(user, tenant));
    let groups = names.into_iter().filter_map(|name| people.group(name, tenant));
    users.chain(groups).collect()
}

/// Who may decide the request at `now` and could not just before the escalation that began at `begins`.
#[must_use]
pub fn added_by_escalation(
    people: &People,
    binding: &Binding,
    asked: Asked<'_>,
    begins: DateTime<Utc>,
) -> BTreeSet<Recipient> {
    let just_before = begins - chrono::TimeDelta::microseconds(1);
    let before = approvers(people, binding, asked, just_before);
    let mut after = approvers(people, binding, asked, begins);
    after.retain(|recipient| !before.contains(recipient));
    after
}
