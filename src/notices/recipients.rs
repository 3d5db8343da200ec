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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::ids::SessionId;
    use crate::domain::request::Origin;
    use crate::notices::Contact;
    use crate::policy::{Policy, Subject};

    const RULES: &str = r#"
[groups]
finance = ["kim", "lee", "tenant2/cho"]

[[rule]]
name = "broken"
when = 'actionType == "two" && context.missing == 1'
approvers = ["user:kim", "role:admin"]

[[rule]]
name = "two"
when = 'actionType == "two"'
approvers = ["group:finance"]

[[rule]]
name = "own"
when = 'actionType == "own"'
approvers = ["requester", "user:kim"]

[[rule]]
name = "strict"
when = 'actionType == "strict"'
approvers = ["group:finance", "group:heads"]
self_approval = false
escalate = [{ after = "10m", approvers = ["user:park", "user:kim"] }]

[[rule]]
name = "anybody"
when = 'actionType == "anybody"'
approvers = ["tenant"]
"#;

    /// Who is told of an action that the requester's agent asks for in a tenant, after so many minutes.
    fn told(action: &str, requester: &str, tenant: &str, minutes: i64) -> Vec<String> {
        let contacts = |names: &[&str]| {
            let names = names.iter().map(|name| ((*name).to_owned(), Contact::default()));
            names.collect::<std::collections::BTreeMap<_, _>>()
        };
        let people = People::new(
            contacts(&["kim", "lee", "cho", "park", "tenant2/lee"]),
            contacts(&["heads", "admin"]),
        );
        let policy = Policy::read(RULES).unwrap();
        let (user, tenant) = (UserId::parse(requester).unwrap(), TenantId::parse(tenant).unwrap());
        let session = SessionId::parse("s").unwrap();
        let binding = policy.bind(&Subject {
            action_type: action,
            message: None,
            context: "{}",
            user: Some(&user),
            tenant: Some(&tenant),
            session: &session,
            task: None,
            origin: Origin::Http,
        });
        let created_at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let asked = Asked { tenant: &tenant, requester: Some(&user), created_at };
        let now = created_at + TimeDelta::minutes(minutes);
        let told = approvers(&people, &binding, asked, now);
        if minutes == 10 {
            let added = added_by_escalation(&people, &binding, asked, now);
            let added = added.iter().map(Recipient::target).collect::<Vec<_>>();
            // Whoever could decide before is not told again.
            assert_eq!(added, ["user:park"]);
        }
        told.iter().map(Recipient::target).collect()
    }

    #[test]
    fn only_those_are_told_whom_the_rules_name_and_who_may_decide() {
        // A rule that failed binds too: only kim is let by both. Roles are told at their shared address.
        assert_eq!(told("two", "alice", "tenant1", 0), ["user:kim", "group:admin"]);
        // The requester decides, and is told; somebody whom the settings do not know is not.
        assert_eq!(told("own", "lee", "tenant1", 0), ["user:kim", "user:lee"]);
        assert_eq!(told("own", "alice", "tenant1", 0), ["user:kim"]);
        // Not of one's own where one may not approve it.
        assert_eq!(told("strict", "lee", "tenant1", 0), ["user:kim", "group:heads"]);
        // Members of one tenant, reached by that tenant's table.
        let of_tenant2 = ["user:cho", "user:kim", "user:tenant2/lee", "group:heads"];
        assert_eq!(told("strict", "alice", "tenant2", 0), of_tenant2);
        // Only once the escalation has begun.
        let before = ["user:kim", "user:lee", "group:heads"];
        assert_eq!(told("strict", "alice", "tenant1", 9), before);
        let after = ["user:kim", "user:lee", "user:park", "group:heads"];
        assert_eq!(told("strict", "alice", "tenant1", 10), after);
        // Everybody of a tenant is nobody in particular. Where no rule matches, an admin decides.
        assert_eq!(told("anybody", "alice", "tenant1", 0), Vec::<String>::new());
        assert_eq!(told("else", "alice", "tenant1", 0), ["group:admin"]);
    }
}
