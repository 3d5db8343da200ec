//! Who is asking: what the token and the Gateway's headers say about the caller.

use super::ids::{TenantId, UserId};

/// What a token's `role` allows beyond the caller's own things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sees and decides within their tenant.
    User,
    /// Also lists other people's tasks of their tenant.
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

/// An authenticated caller: the token is genuine and its tenant is the one the call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`.
    pub user: UserId,
    /// The token's `tenant_id`, equal to `X-Tenant-ID`.
    pub tenant: TenantId,
    /// The token's `role`.
    pub role: Role,
    /// The token's `jti`, if it is usable text: at most 256 bytes without control characters.
    pub token_id: Option<String>,
    /// How the call came in; recorded with a decision.
    pub via: Via,
}

/// The Gateway's descriptive headers, for the record only. Each is at most 256 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// `X-DWP-Source`: `FRONTEND`, `AURA`, `INTERNAL`, `BATCH`.
    pub source: Option<String>,
    /// `X-DWP-Caller-Type`: `USER`, `AGENT`, `SYSTEM`.
    pub caller_type: Option<String>,
    /// `X-Agent-ID`.
    pub agent_id: Option<String>,
    /// `X-Trace-Id`, else the trace id of `traceparent`.
    pub trace_id: Option<String>,
    /// `X-Gateway-Request-Id`.
    pub gateway_request_id: Option<String>,
}
