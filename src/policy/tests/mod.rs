//! Tests of whole policies.

mod binding;
mod document;
mod file;
mod grants;
mod model;
mod sentences;

use chrono::{DateTime, Utc};

use super::*;
use crate::domain::ids::{SessionId, TenantId, UserId};
use crate::domain::request::Origin;

/// The file of the contract.
const CONTRACT: &str = r#"
[groups]
finance = ["kim", "lee", "tenant2/park"]

[[rule]]
name = "large payments"
when = 'actionType == "send_payment" && context.amount >= 1000.0'
risk = "high"
approvers = ["group:finance", "role:admin", "user:cho"]
quorum = 2
self_approval = false
decisions = ["approve", "reject"]
remember = "never"
expires_in = "30m"
remind_after = "5m"
escalate = [{ after = "10m", approvers = ["group:heads"] }]
show = ["$message", "to", "amount"]

[[rule]]
name = "reading is fine"
when = 'actionType.startsWith("read_")'
auto = "approve"
"#;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_706_152_860 + seconds, 0).unwrap()
}

/// Binds a request of `user` in `tenant1`.
fn bind(policy: &Policy, action: &str, context: &str) -> Binding {
    let (user, tenant) = (UserId::parse("user").unwrap(), TenantId::parse("tenant1").unwrap());
    let session = SessionId::parse("session_1").unwrap();
    policy.bind(&Subject {
        action_type: action,
        message: None,
        context,
        user: Some(&user),
        tenant: Some(&tenant),
        session: &session,
        task: None,
        origin: Origin::Http,
    })
}

/// Somebody of a tenant, with roles and groups of the token.
#[derive(Clone, Debug)]
struct Somebody {
    user: UserId,
    tenant: TenantId,
    roles: Vec<String>,
    groups: Vec<String>,
}

impl Somebody {
    fn new(user: &str) -> Self {
        Self::of("tenant1", user)
    }

    fn of(tenant: &str, user: &str) -> Self {
        Self {
            user: UserId::parse(user).unwrap(),
            tenant: TenantId::parse(tenant).unwrap(),
            roles: vec!["user".to_owned()],
            groups: Vec::new(),
        }
    }

    fn with_role(mut self, role: &str) -> Self {
        self.roles.push(role.to_owned());
        self
    }

    fn with_group(mut self, group: &str) -> Self {
        self.groups.push(group.to_owned());
        self
    }

    fn person(&self) -> Person<'_> {
        Person { user: &self.user, tenant: &self.tenant, roles: &self.roles, groups: &self.groups }
    }
}

/// Whether somebody may decide a request of `user`, `seconds` after it was made.
fn may(binding: &Binding, who: &Somebody, way: Way, seconds: i64) -> Result<(), NotAllowed> {
    let requester = UserId::parse("user").unwrap();
    binding.may(&who.person(), Some(&requester), way, at(0), at(seconds))
}
