//! Names of things, each parsed once: a value of these types is known to be safe as a Redis key,
//! a SQL parameter and a log field.

use std::fmt;

use uuid::Uuid;

/// Longest request or task id, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// Longest session, user or tenant id, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// The text cannot be an id of this kind. It is not repeated in the error: it may be hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}")]
pub struct InvalidId {
    /// Which kind of id was expected, as an API user calls it (`requestId`, `sessionId`, …).
    pub kind: &'static str,
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks the text and takes it over.
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
    /// An agent session's id: 1–256 bytes without white space or control characters. It holds
    /// whatever a user id holds, so `@`, `/` and letters of any script are fine.
    SessionId, "sessionId", |text| is_name(text) && !text.chars().any(char::is_whitespace)
);
id_type!(
    /// A person, as the token's `sub` names them: 1–256 bytes without control characters.
    UserId, "userId", is_name
);
id_type!(
    /// A tenant, as the token's `tenant_id` names it: 1–256 bytes without control characters.
    TenantId, "tenantId", is_name
);

impl TaskId {
    /// A new id for a task of ours: `task_` and 32 hex digits.
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
