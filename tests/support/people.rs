//! The people of the tests: who calls, and what the API and the ledger make of them. Alice is the
//! one that requests name; Bob is a colleague of hers, the admin is of her tenant, and Mallory is
//! somebody of another one.

use aura_hitl::domain::approver::{Caller, Role, Via};
use aura_hitl::domain::decision::{Decision, Verdict};
use aura_hitl::domain::ids::{TenantId, UserId};
use chrono::{DateTime, Utc};

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub user: &'a str,
    pub tenant: &'a str,
    pub role: Role,
}

impl Who<'_> {
    /// The caller that the API makes of a token.
    pub fn caller(self) -> Caller {
        Caller {
            user: UserId::parse(self.user).unwrap(),
            tenant: TenantId::parse(self.tenant).unwrap(),
            role: self.role,
            memberships: std::sync::Arc::default(),
            token_id: None,
            via: Via::default(),
        }
    }

    /// This person's decision.
    pub fn decides(self, verdict: Verdict, at: DateTime<Utc>) -> Decision {
        Decision { verdict, by: UserId::parse(self.user).unwrap(), at }
    }

    /// The identity headers, as lines.
    pub fn lines(self) -> String {
        format!("X-Tenant-ID: {}\r\nX-User-ID: {}\r\n", self.tenant, self.user)
    }
}

/// The person that requests name.
pub const ALICE: Who<'static> = Who { user: "user123", tenant: "tenant1", role: Role::User };

/// A colleague.
pub const BOB: Who<'static> = Who { user: "bob", tenant: "tenant1", role: Role::User };

/// Somebody of another tenant.
pub const MALLORY: Who<'static> = Who { user: "mallory", tenant: "tenant2", role: Role::User };

/// An admin of the first tenant.
pub const ADMIN: Who<'static> = Who { user: "root", tenant: "tenant1", role: Role::Admin };
