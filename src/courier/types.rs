//! What is asked of the courier, and what it answers.

use std::time::Duration;

use crate::domain::ids::{RequestId, SessionId};
use crate::domain::session::SessionPointer;

/// Longest any call to the courier takes, reconnecting included.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// The courier did not answer, or not in time. What was asked may have happened nevertheless, so
/// everything asked of it may safely be asked again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the courier is out of reach: {0}")]
pub struct Unavailable(pub String);

/// What the courier answers.
pub type Result<T> = std::result::Result<T, Unavailable>;

/// A request as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// The key's value; empty when it is not text at all, which no request is.
    pub document: String,
    /// The rest of its time to live; `None` when it has no end.
    pub ttl: Option<Duration>,
    /// The session that it seems to name and what that names, where both can be read at once.
    pub beside: Option<(String, SessionPointer)>,
}

/// What there was of a session and its request when it was judged whether a signal may go out.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// What the session named.
    pub pointer: SessionPointer,
    /// The request's text; `None` without one, empty when it was not text at all.
    pub document: Option<String>,
}

/// What there is of a session for those who ask for its signal.
#[derive(Clone, Debug, Default)]
pub struct Polled {
    /// What it names.
    pub pointer: SessionPointer,
    /// Its signal.
    pub signal: Option<String>,
    /// The request that the signal seems to answer, and its text, where all can be read at once.
    pub answered: Option<(String, String)>,
}

/// A signal on its way.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Which request it answers.
    pub request: &'a RequestId,
    /// Whom it wakes.
    pub session: &'a SessionId,
    /// The signal's JSON.
    pub signal: &'a str,
    /// The request's JSON from then on.
    pub document: &'a str,
    /// Of two signals of a session the one with the higher rank stays under the key.
    pub rank: i64,
    /// Whether subscribers are told; else it is only put under its key.
    pub aloud: bool,
    /// It goes out only while session and request are exactly what was judged.
    pub only_while: &'a Seen,
}

/// What became of a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It is under its key and was published.
    Published {
        /// Agents that were subscribed to the channel at that moment, as `PUBSUB NUMSUB` counts
        /// them; `None` when it was not published, or a node of a Cluster did not say.
        listeners: Option<i64>,
        /// The history of data that it is part of now; see [`Courier::replication_ids`](super::Courier::replication_ids).
        history: Option<String>,
    },
    /// The session's pointer or its request had changed; nothing was sent.
    Changed,
}
