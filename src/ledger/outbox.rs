//! The outbox: what other services still have to be told, written in the statement that makes it
//! true, and claimed by a worker under a lease.

/// What kind of message a row holds; each kind has a worker of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxKind {
    /// An entry of the Auth server's audit log.
    Audit,
}

impl OutboxKind {
    /// Its name in `hitl_outbox.kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
        }
    }
}

/// A row of `hitl_outbox` that this process holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct OutboxRow {
    /// Its number.
    pub id: i64,
    /// What to send.
    pub payload: String,
    /// How often it was claimed, this time included.
    pub attempts: i32,
}
