//! Arguments and results of the courier's calls.

use std::time::Duration;

use crate::domain::ids::{RequestId, SessionId};
use crate::domain::session::SessionPointer;

/// Longest duration of a call to the courier, reconnecting included.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// How the requests in Redis are watched.
#[derive(Clone, Copy, Debug)]
pub struct ScanSettings {
    /// Time from the beginning of one pass over all keys to the next, where Redis announces no changes.
    pub interval: Duration,
    /// How many keys one `SCAN` looks at.
    pub count: usize,
    /// How many keys may be looked at or read in a second.
    pub keys_per_second: u32,
}

/// The courier did not answer in time, or with an error. The call may have taken effect nevertheless, so
/// every call is safe to repeat.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the courier is out of reach: {0}")]
pub struct Unavailable(pub String);

/// The result of a call to the courier.
pub type Result<T> = std::result::Result<T, Unavailable>;

/// A request as found in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// The key's value; empty, and so not a valid request, when the value is not a string of UTF-8.
    pub document: String,
    /// The remaining time to live; `None` when the key does not expire.
    pub ttl: Option<Duration>,
    /// The session that the request seems to name, and that session's pointer, if both were read in one
    /// round trip. The session is guessed from the text: compare it with the parsed request.
    pub guessed_session: Option<(String, SessionPointer)>,
}

/// The session pointer and the request in Redis, as they were when the service decided to send a signal.
#[derive(Clone, Debug, Default)]
pub struct SessionSnapshot {
    /// The session pointer.
    pub pointer: SessionPointer,
    /// The request's text; `None` when there was none, empty when it was not a string of UTF-8.
    pub document: Option<String>,
}

/// A session's pointer and signal, for an agent that polls.
#[derive(Clone, Debug, Default)]
pub struct Polled {
    /// The session pointer.
    pub pointer: SessionPointer,
    /// The signal's JSON, if there is one.
    pub signal: Option<String>,
    /// The id and the text of the request that the signal seems to answer, if all were read in one round
    /// trip. The id is guessed from the signal's text: compare it with the parsed signal.
    pub answered: Option<(String, String)>,
}

/// A signal to be sent.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The request that the signal answers.
    pub request: &'a RequestId,
    /// The session whose agent the signal wakes.
    pub session: &'a SessionId,
    /// The signal's JSON.
    pub signal: &'a str,
    /// The decided request's JSON, written under the request's key.
    pub document: &'a str,
    /// The order of a session's signals. A signal never replaces one of a higher rank under the key.
    pub rank: i64,
    /// Whether to publish the signal on the session's channel. Otherwise only the keys are written.
    pub publish: bool,
    /// The signal is sent only if the session pointer and the request in Redis are still these.
    pub only_if: &'a SessionSnapshot,
}

/// The result of sending a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// The signal is under its key, and was published if that was asked for.
    Published {
        /// The number of subscribers of the channel when the signal was published, as `PUBSUB NUMSUB`
        /// counts them; `None` when the signal was not published, or a node of a Cluster did not answer.
        listeners: Option<i64>,
        /// The replication id of the server that took the signal; see
        /// [`Courier::replication_ids`](super::Courier::replication_ids).
        replication_id: Option<String>,
    },
    /// The session pointer or the request in Redis had changed. Nothing was sent.
    Changed,
}
