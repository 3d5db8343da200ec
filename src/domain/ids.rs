//! Ids, each parsed once: a value of these types is safe to use in a Redis key, as a SQL parameter and
//! in a log field.

use std::fmt;

use uuid::Uuid;

/// Longest request or task id, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// Longest session, user or tenant id, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// The text is not a valid id of this kind. The error does not repeat the text, because the text may
/// be hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}")]
pub struct InvalidId {
    /// The expected kind of id, by its name in the API (`requestId`, `sessionId`, …).
    pub kind: &'static str,
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks the text and makes it an id.
            ///
            /// # Errors
            /// [`InvalidId`] when the text breaks the rules of this kind of id.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) { Ok(Self(text)) } else { Err(InvalidId { kind: $kind }) }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(
    /// An approval request's id: `[A-Za-z0-9._:@-]{1,128}`.
    RequestId, "requestId", is_token
);
id_type!(
    /// An agent task's id: `[A-Za-z0-9._:@-]{1,128}`.
    TaskId, "taskId", is_token
);
id_type!(
    /// An agent session's id: 1–256 bytes without white space or control characters. Agents build it
    /// from a user id, so `@`, `/` and letters of any script are allowed.
    SessionId, "sessionId", |text| is_name(text) && !text.chars().any(char::is_whitespace)
);
id_type!(
    /// A user's id, the token's `sub`: 1–256 bytes without control characters.
    UserId, "userId", is_name
);
id_type!(
    /// A tenant's id, the token's `tenant_id`: 1–256 bytes without control characters.
    TenantId, "tenantId", is_name
);

id_type!(
    /// A grant's id: `[A-Za-z0-9._:@-]{1,128}`.
    GrantId, "grantId", is_token
);

impl GrantId {
    /// A new id: `grant_` and 32 hex digits.
    #[must_use]
    pub fn generate() -> Self {
        Self(format!("grant_{}", Uuid::new_v4().simple()))
    }
}

impl TaskId {
    /// A new id for a task that the service makes: `task_` and 32 hex digits.
    #[must_use]
    pub fn generate() -> Self {
        Self(format!("task_{}", Uuid::new_v4().simple()))
    }
}

fn is_token(text: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@-".contains(&b))
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && !text.trim().is_empty()
        && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_plain_tokens() {
        for good in ["req-12345", "req_3f2a9c0d1e4b", "a", "A.b:c@d-e_f", &"x".repeat(128)] {
            assert!(RequestId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "a b", "a/b", "*", "a\n", "a\0", "req_é", &"x".repeat(129)] {
            assert!(RequestId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn session_ids_hold_what_user_ids_hold() {
        for good in ["session_user123_1706149260", "session_a@b.c_1", "session_김철수_1", "s/1"]
        {
            assert!(SessionId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\u{3000}b", "a\n", "a\0", "a\u{7f}", &"x".repeat(257)] {
            assert!(SessionId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
