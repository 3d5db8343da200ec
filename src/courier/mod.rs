//! The courier: carries requests and signals between agents and us. It may lose anything; the
//! ledger knows what it still owes.
//!
//! Redis, or nothing: in the embedded mode there are no agents on Redis, and the hub wakes whoever
//! waits in this process. Key names, values and times to live are the wire contract's. Must not
//! decide anything. Requests registered over HTTP have no keys here, only a wake-up.

mod link;
mod redis;
mod topology;

use std::future::Future;
use std::time::Duration;

use ::redis::cluster_routing::Slot;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tracing::Instrument as _;

pub use self::link::Login;
pub use self::topology::RedisSettings;
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::request::REQUEST_TTL_SECONDS;
use crate::domain::session::SessionPointer;
use crate::limits::RateLimit;
use crate::traces;

use self::redis::{RedisCourier, RedisSubscription};

/// Longest any call to the courier takes, reconnecting included.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// The courier did not answer, or not in time. What was asked may have happened nevertheless, so
/// everything asked of it may safely be asked again.
#[derive(Debug, thiserror::Error)]
#[error("the courier is out of reach: {0}")]
pub struct Unavailable(pub String);

type Result<T> = std::result::Result<T, Unavailable>;

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
        /// The history of data that it is part of now; see [`Courier::histories`].
        history: Option<String>,
    },
    /// The session's pointer or its request had changed; nothing was sent.
    Changed,
}

/// The courier of this process.
#[derive(Clone, Debug)]
pub enum Courier {
    /// The agents' own Redis.
    Redis(RedisCourier),
    /// No Redis: agents reach this process over HTTP.
    InProcess,
}

/// Asks Redis, within [`TIMEOUT`]; without Redis the answer is the default one.
macro_rules! on_redis {
    ($self:ident, $courier:ident => $call:expr) => {
        match $self {
            Courier::Redis($courier) => {
                bounded($call).instrument(traces::step(stringify!($call))).await
            }
            Courier::InProcess => Ok(Default::default()),
        }
    };
}

async fn bounded<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(TIMEOUT, call)
        .await
        .unwrap_or_else(|_elapsed| Err(Unavailable("no answer in time".to_owned())))
}

impl Courier {
    /// A courier over Redis. Connects when first used, so that a Redis that is down does not keep
    /// the service from starting; connections belong to the runtime that this is called in.
    ///
    /// # Errors
    /// When the settings name no Redis.
    pub fn redis(settings: &RedisSettings) -> anyhow::Result<Self> {
        Ok(Self::Redis(RedisCourier::new(settings)?))
    }

    /// `redis` or `in-process`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        match self {
            Self::Redis(_) => "redis",
            Self::InProcess => "in-process",
        }
    }

    /// Logs in to the same Redis by other means: another user, password or list of authorities.
    /// Nothing changes until [`Self::adopt`].
    ///
    /// # Errors
    /// [`Unavailable`] when that Redis does not let us in, or it is another one.
    pub async fn try_login(&self, settings: Option<&RedisSettings>) -> Result<Login> {
        match (self, settings) {
            (Self::Redis(courier), Some(settings)) => bounded(courier.try_login(settings)).await,
            _ => Err(Unavailable("having Redis or not needs a restart".to_owned())),
        }
    }

    /// Every connection from now on is made this way.
    pub fn adopt(&self, login: Login) {
        if let Self::Redis(courier) = self {
            courier.adopt(login);
        }
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// [`Unavailable`] when it does not.
    pub async fn ping(&self) -> Result<()> {
        on_redis!(self, courier => courier.ping())
    }

    /// Which histories of data there are now, one by server that holds signals. A server begins
    /// another one when it restarts and when it takes another's place, and may then lack what was
    /// sent last, or everything. Empty where nothing is ever lost.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn histories(&self) -> Result<Vec<String>> {
        on_redis!(self, courier => courier.histories())
    }

    /// The request under `hitl:request:{requestId}`.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn find_request(&self, id: &RequestId) -> Result<Option<StoredRequest>> {
        on_redis!(self, courier => courier.find_request(&request_key(id)))
    }

    /// What a request's session names: known already if it was read along with the request.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn session_of(
        &self,
        beside: Option<(String, SessionPointer)>,
        session: &SessionId,
    ) -> Result<SessionPointer> {
        match beside {
            Some((guessed, pointer)) if guessed == session.as_str() => Ok(pointer),
            _ => self.session(session).await,
        }
    }

    /// The request under its key and what its session names, at once.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn look(&self, id: &RequestId, session: &SessionId) -> Result<Seen> {
        let (stored, pointer) = tokio::try_join!(self.find_request(id), self.session(session))?;
        Ok(Seen { pointer, document: stored.map(|stored| stored.document) })
    }

    /// What `hitl:session:{sessionId}` names.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn session(&self, session: &SessionId) -> Result<SessionPointer> {
        let text = on_redis!(self, courier => courier.text(&session_key(session)))?;
        Ok(SessionPointer::read(text))
    }

    /// The signal under `hitl:signal:{sessionId}`, and what `hitl:session:{sessionId}` names.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn poll(&self, session: &SessionId) -> Result<Polled> {
        if let Self::Redis(courier) = self
            && !courier.is_cluster()
        {
            let polling = bounded(courier.poll(session));
            return polling.instrument(traces::step("courier.poll")).await;
        }
        let (pointer, signal) = tokio::try_join!(self.session(session), self.signal(session))?;
        Ok(Polled { pointer, signal, answered: None })
    }

    /// The signal under `hitl:signal:{sessionId}`.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn signal(&self, session: &SessionId) -> Result<Option<String>> {
        on_redis!(self, courier => courier.text(&signal_key(session)))
    }

    /// Rewrites a request's JSON, with a request's time to live.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn put_request(&self, id: &RequestId, document: &str) -> Result<()> {
        self.set(&request_key(id), document, REQUEST_TTL_SECONDS).await
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn set(&self, key: &str, value: &str, ttl_seconds: u64) -> Result<()> {
        on_redis!(self, courier => courier.set(key, value, ttl_seconds))
    }

    /// Sends a signal: first the key, then the message, then the request as it is now.
    ///
    /// # Errors
    /// [`Unavailable`]; it may have been sent nevertheless.
    pub async fn send(&self, outgoing: &Outgoing<'_>) -> Result<Sent> {
        match self {
            Self::Redis(courier) => {
                bounded(courier.send(outgoing)).instrument(traces::step("courier.send")).await
            }
            Self::InProcess => Ok(Sent::Published { listeners: None, history: None }),
        }
    }

    /// Tells all replicas that a session has news of which its channel must not know.
    ///
    /// # Errors
    /// [`Unavailable`]; the replicas find out by themselves then.
    pub async fn tell_replicas(&self, session: &SessionId) -> Result<()> {
        on_redis!(self, courier => courier.publish(OUTCOMES, session.as_str()))
    }

    /// Wakes the agent that waits for a registered request with Redis: a reason to ask over HTTP,
    /// never an answer.
    ///
    /// # Errors
    /// [`Unavailable`]; the agent asks by itself then.
    pub async fn wake_agent(&self, tenant: &TenantId, id: &RequestId) -> Result<()> {
        on_redis!(self, courier => courier.publish(&decision_channel(tenant, id), ASK))
    }

    /// Begins to listen to the replicas, and to the channels of all sessions. `None` in-process,
    /// where nobody publishes but this process.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn listen(&self) -> Result<Option<Subscription>> {
        match self {
            Self::Redis(courier) => {
                let channels = (&*format!("{CHANNEL}*"), OUTCOMES);
                Ok(Some(Subscription(bounded(courier.listen(channels)).await?)))
            }
            Self::InProcess => Ok(None),
        }
    }

    /// How many agents are subscribed to the channel of each of these sessions, in their order.
    ///
    /// # Errors
    /// [`Unavailable`]; on a Cluster also when one node did not say.
    pub async fn listeners(&self, sessions: &[SessionId]) -> Result<Vec<i64>> {
        match self {
            Self::Redis(courier) => bounded(courier.listeners(sessions)).await,
            Self::InProcess => Ok(vec![0; sessions.len()]),
        }
    }

    /// Counts a call against a bucket that all replicas share; if it is full, how long to wait
    /// instead. In-process there is nobody to share with.
    ///
    /// # Errors
    /// [`Unavailable`]; it may have been counted nevertheless.
    pub async fn admit(&self, bucket: String, limit: RateLimit) -> Result<Option<Duration>> {
        on_redis!(self, courier => courier.admit(bucket, limit))
    }
}

/// Something that was heard.
#[derive(Debug)]
pub enum Heard {
    /// Another replica says that something was settled in this session.
    Outcome(SessionId),
    /// A message on a session's channel, which anybody may have published.
    Message(Message),
    /// Nothing of ours.
    Other,
}

/// A message on the channel of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What follows `hitl:channel:` in the name of the channel: a session's id, if it is valid.
    pub channel: String,
    /// What was published; of text that is not UTF-8, something that no signal is.
    pub payload: String,
}

impl Message {
    /// The session whose channel it is.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        SessionId::parse(self.channel.clone()).ok()
    }
}

/// Hears what is published, over a connection of its own.
#[derive(Debug)]
pub struct Subscription(RedisSubscription);

impl Subscription {
    /// The next message. Can be dropped and called again.
    ///
    /// # Errors
    /// [`Unavailable`]: this connection hears nothing any more.
    pub async fn next(&mut self) -> Result<Heard> {
        let (channel, payload) = self.0.next().await?;
        if let Some(channel) = channel.strip_prefix(CHANNEL) {
            return Ok(Heard::Message(Message { channel: channel.to_owned(), payload }));
        }
        let session = (channel == OUTCOMES).then(|| SessionId::parse(payload).ok()).flatten();
        Ok(session.map_or(Heard::Other, Heard::Outcome))
    }

    /// Makes sure that it still hears.
    ///
    /// # Errors
    /// [`Unavailable`]: it does not.
    pub async fn ping(&mut self) -> Result<()> {
        self.0.ping().await
    }
}

/// What stands before a request's id in its key (wire contract).
const REQUEST: &str = "hitl:request:";

fn request_key(id: &RequestId) -> String {
    format!("{REQUEST}{id}")
}

/// What stands before the session in the key of its pointer (wire contract).
const SESSION: &str = "hitl:session:";

fn session_key(session: &SessionId) -> String {
    format!("{SESSION}{session}")
}

fn signal_key(session: &SessionId) -> String {
    format!("hitl:signal:{session}")
}

/// Where a signal's rank is kept: in the slot of the signal's own key, so that a Redis Cluster lets
/// one script write both. A key's slot is that of what stands in its first pair of braces, if any:
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.
fn rank_key(session: &SessionId) -> String {
    let key = signal_key(session);
    let plain = format!("{{{key}}}:rank");
    // Braces in the session's id undo ours. Then some number leads to the same slot.
    let numbered = (0_u32..).map(|number| format!("{{{number}}}:{key}:rank"));
    let is_beside = |rank_key: &String| Slot::for_key(rank_key) == Slot::for_key(&key);
    std::iter::once(plain).chain(numbered).find(is_beside).unwrap_or_default()
}

/// What stands before the session in the name of its channel (wire contract).
const CHANNEL: &str = "hitl:channel:";
/// A channel of our own, on which replicas tell each other of outcomes that must not be published on
/// a session's channel, since agents there take anything for an approval. The payload is the session.
const OUTCOMES: &str = "hitl:outcomes";

fn channel(session: &SessionId) -> String {
    format!("{CHANNEL}{session}")
}

/// What stands before tenant and request in the channel of a registered request (wire contract).
const DECISION: &str = "hitl:decision:";
/// The only message there (wire contract).
const ASK: &str = "ask";
/// What RFC 3986 calls unreserved stays as it is; all other bytes are percent-encoded.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The tenant is percent-encoded, so that no tenant's name reaches into another tenant's channels.
fn decision_channel(tenant: &TenantId, id: &RequestId) -> String {
    format!("{DECISION}{}:{id}", utf8_percent_encode(tenant.as_str(), RESERVED))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_channel_of_a_registered_request_is_spelled_like_the_contract_says() {
        let id = RequestId::parse("req.1_a:b@c-d").unwrap();
        for (tenant, spelled) in [
            ("tenant1", "tenant1"),
            ("A-Z_a.z~9", "A-Z_a.z~9"),
            ("a:b/c d*", "a%3Ab%2Fc%20d%2A"),
            ("김", "%EA%B9%80"),
        ] {
            let channel = decision_channel(&TenantId::parse(tenant).unwrap(), &id);
            assert_eq!(channel, format!("hitl:decision:{spelled}:req.1_a:b@c-d"));
        }
    }

    proptest! {
        #[test]
        fn a_rank_is_kept_beside_its_signal(id in "[ab{}]{1,8}") {
            let session = SessionId::parse(id).unwrap();
            let slots = [signal_key(&session), rank_key(&session)].map(Slot::for_key);
            prop_assert_eq!(slots[0], slots[1]);
        }
    }
}
