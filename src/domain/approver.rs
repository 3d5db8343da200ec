//! The authenticated caller, as the token and the Gateway's headers describe them.

use std::sync::Arc;

use super::ids::{TenantId, UserId};

/// The `role` claim of the token: what the caller may do beyond their own requests and tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sees and decides requests of their tenant.
    User,
    /// Also lists and changes other users' tasks and requests of their tenant.
    Admin,
}

impl Role {
    /// `user` or `admin`, as in the token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// An authenticated caller: the token is valid, and its tenant is the tenant that the call names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`.
    pub user: UserId,
    /// The token's `tenant_id`, equal to `X-Tenant-ID`.
    pub tenant: TenantId,
    /// The token's `role`.
    pub role: Role,
    /// The roles and groups that the token names.
    pub memberships: Arc<Memberships>,
    /// The token's `jti`; `None` when it is missing, longer than 256 bytes, or has control characters.
    pub token_id: Option<String>,
    /// The Gateway's headers; recorded with a decision.
    pub via: Via,
}

/// The roles and groups of a caller, for the approvers of a policy's rule: `role:…` and `group:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memberships {
    /// The token's `role` and `roles`, without repetition.
    pub roles: Vec<String>,
    /// The token's `groups`, without repetition.
    pub groups: Vec<String>,
}

/// The Gateway's headers that describe a call. They are recorded and never checked. Each is at most
/// 256 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// `X-DWP-Source`: `FRONTEND`, `AURA`, `INTERNAL`, `BATCH`.
    pub source: Option<String>,
    /// `X-DWP-Caller-Type`: `USER`, `AGENT`, `SYSTEM`.
    pub caller_type: Option<String>,
    /// `X-Agent-ID`.
    pub agent_id: Option<String>,
    /// `X-Trace-Id`; without that header, the trace id of `traceparent`.
    pub trace_id: Option<String>,
    /// `X-Gateway-Request-Id`.
    pub gateway_request_id: Option<String>,
}
