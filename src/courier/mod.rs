//! The courier: carries requests and signals between agents and us. It may lose anything; the
//! ledger knows what it still owes.
//!
//! Redis, or nothing: in the embedded mode there are no agents on Redis, and the hub wakes whoever
//! waits in this process. Key names, values and times to live are the wire contract's. Must not
//! decide anything. Requests registered over HTTP have no keys here, only a wake-up.

mod keys;
mod link;
mod redis;
mod topology;
mod types;

use std::future::Future;
use std::time::Duration;

use tracing::Instrument as _;

use self::keys::{ASK, CHANNEL, OUTCOMES, decision_channel, request_key, session_key, signal_key};
pub use self::link::Login;
pub use self::topology::RedisSettings;
use self::types::Result;
pub use self::types::{Outgoing, Polled, Seen, Sent, StoredRequest, TIMEOUT, Unavailable};
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::rate::RateLimit;
use crate::domain::request::REQUEST_TTL_SECONDS;
use crate::domain::session::SessionPointer;
use crate::observe::traces;

use self::redis::{RedisCourier, RedisSubscription};

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

    /// Which replication ids there are now, one by server that holds signals. A server begins
    /// another one when it restarts and when it takes another's place, and may then lack what was
    /// sent last, or everything. Empty where nothing is ever lost.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn replication_ids(&self) -> Result<Vec<String>> {
        on_redis!(self, courier => courier.replication_ids())
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
