//! The courier: carries requests and signals between the agents and the service. Redis may lose data at
//! any time; the ledger knows which signals are still owed.
//!
//! The courier is Redis, or, in the embedded mode, the process itself: then all agents use HTTP, and
//! `waiting::hub` wakes them. Key names, values and times to live follow the wire contract. The courier
//! decides nothing. A request registered over HTTP has no keys in Redis, only a wake-up message.

mod intake;
mod keys;
mod link;
mod redis;
mod topology;
mod types;

use std::future::Future;
use std::time::Duration;

use tracing::Instrument as _;

pub use self::intake::{Changed, Looked, RedisChanges, Scan};
use self::keys::{
    ASK_MESSAGE, CHANGED_PREFIX, OUTCOMES_CHANNEL, SESSION_CHANNEL_PREFIX, decision_channel,
    request_key, session_key, signal_key,
};
pub use self::link::Login;
pub use self::topology::RedisSettings;
use self::types::Result;
pub use self::types::{
    Outgoing, Polled, ScanSettings, Sent, SessionSnapshot, StoredRequest, TIMEOUT, Unavailable,
};
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::json;
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

/// Calls Redis, for at most [`TIMEOUT`]. The in-process courier returns the default value.
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
    /// A courier over Redis. It connects on the first call, so that the service can start while Redis is
    /// down. Connections run on the Tokio runtime in which this is called.
    ///
    /// # Errors
    /// When the settings are not valid: see [`RedisSettings::check`].
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

    /// Logs in to the same Redis with another user, password or list of certificate authorities. The
    /// courier uses the new login only after [`Self::adopt`].
    ///
    /// # Errors
    /// [`Unavailable`] when the login fails, or the settings name another Redis.
    pub async fn try_login(&self, settings: Option<&RedisSettings>) -> Result<Login> {
        match (self, settings) {
            (Self::Redis(courier), Some(settings)) => bounded(courier.try_login(settings)).await,
            _ => Err(Unavailable("having Redis or not needs a restart".to_owned())),
        }
    }

    /// Uses this login for every connection from now on.
    pub fn adopt(&self, login: Login) {
        if let Self::Redis(courier) = self {
            courier.adopt(login);
        }
    }

    /// Asks the courier for a sign of life.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer, or is older than the service needs.
    pub async fn ping(&self) -> Result<()> {
        on_redis!(self, courier => courier.ping())
    }

    /// The present replication ids, one per Redis server that holds signals. A server gets a new id when
    /// it restarts or replaces another server; then it may lack the latest signals, or all of them. Empty
    /// in-process.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
    pub async fn replication_ids(&self) -> Result<Vec<String>> {
        on_redis!(self, courier => courier.replication_ids())
    }

    /// The request under `hitl:request:{requestId}`.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
    pub async fn find_request(&self, id: &RequestId) -> Result<Option<StoredRequest>> {
        on_redis!(self, courier => courier.find_request(&request_key(id)))
    }

    /// The pointer of a request's session. `guessed_session` is the pointer that was read together with
    /// the request; Redis is asked only if that is another session's.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
    pub async fn session_of(
        &self,
        guessed_session: Option<(String, SessionPointer)>,
        session: &SessionId,
    ) -> Result<SessionPointer> {
        match guessed_session {
            Some((guessed, pointer)) if guessed == session.as_str() => Ok(pointer),
            _ => self.session(session).await,
        }
    }

    /// The request under its key and the pointer of its session, read concurrently.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
    pub async fn snapshot(&self, id: &RequestId, session: &SessionId) -> Result<SessionSnapshot> {
        let (stored, pointer) = tokio::try_join!(self.find_request(id), self.session(session))?;
        Ok(SessionSnapshot { pointer, document: stored.map(|stored| stored.document) })
    }

    /// The session pointer, `hitl:session:{sessionId}`.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
    pub async fn session(&self, session: &SessionId) -> Result<SessionPointer> {
        let text = on_redis!(self, courier => courier.text(&session_key(session)))?;
        Ok(SessionPointer::read(text))
    }

    /// The signal under `hitl:signal:{sessionId}` and the session pointer, in one round trip where
    /// possible.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
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
    /// [`Unavailable`] when Redis does not answer.
    pub async fn signal(&self, session: &SessionId) -> Result<Option<String>> {
        on_redis!(self, courier => courier.text(&signal_key(session)))
    }

    /// Writes a request's JSON under its key, with the time to live of a request.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer; the key may have been written nevertheless.
    pub async fn put_request(&self, id: &RequestId, document: &str) -> Result<()> {
        self.set(&request_key(id), document, REQUEST_TTL_SECONDS).await
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer; the key may have been set nevertheless.
    pub async fn set(&self, key: &str, value: &str, ttl_seconds: u64) -> Result<()> {
        on_redis!(self, courier => courier.set(key, value, ttl_seconds))
    }

    /// Sends a signal: sets its key, publishes it, then writes the decided request under its key.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer; the signal may have been sent nevertheless.
    pub async fn send(&self, outgoing: &Outgoing<'_>) -> Result<Sent> {
        match self {
            Self::Redis(courier) => {
                bounded(courier.send(outgoing)).instrument(traces::step("courier.send")).await
            }
            Self::InProcess => Ok(Sent::Published { listeners: None, replication_id: None }),
        }
    }

    /// Tells all replicas that a registered request of this session was closed. The session's own channel
    /// gets no message, because an agent there would take it for an approval.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer. Then the other replicas find out from the ledger.
    pub async fn notify_replicas(&self, session: &SessionId) -> Result<()> {
        on_redis!(self, courier => courier.publish(OUTCOMES_CHANNEL, session.as_str()))
    }

    /// Tells all replicas which requests have changed, for their inboxes. Uses the same channel as
    /// [`Self::notify_replicas`], which every login may use. The payload has a space, so that a replica of
    /// an older release does not take it for a session's id.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer. Then the other replicas find out from the ledger.
    pub async fn announce(&self, changed: &[(TenantId, RequestId)]) -> Result<()> {
        let ids = changed.iter().map(|(tenant, id)| (tenant.as_str(), id.as_str()));
        let ids = json::raw(&ids.collect::<Vec<_>>());
        let message = format!("{CHANGED_PREFIX}{ids}");
        on_redis!(self, courier => courier.publish(OUTCOMES_CHANNEL, &message))
    }

    /// Wakes an agent that waits on Redis for a registered request. The message holds no decision; the
    /// agent fetches it over HTTP.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer. Then the agent finds out when it asks next.
    pub async fn wake_agent(&self, tenant: &TenantId, id: &RequestId) -> Result<()> {
        on_redis!(self, courier => courier.publish(&decision_channel(tenant, id), ASK_MESSAGE))
    }

    /// Subscribes to the channels of all sessions and to the channel of the replicas. `None` in-process,
    /// where no other process publishes.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
    pub async fn listen(&self) -> Result<Option<Subscription>> {
        match self {
            Self::Redis(courier) => {
                let channels = (&*format!("{SESSION_CHANNEL_PREFIX}*"), OUTCOMES_CHANNEL);
                Ok(Some(Subscription(bounded(courier.listen(channels)).await?)))
            }
            Self::InProcess => Ok(None),
        }
    }

    /// The next ids of a pass over all requests in Redis, from about `count` keys of any kind. An id may
    /// come twice. `None` when the pass is over.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis, or any master of a Cluster, does not answer. Then begin a new pass.
    pub async fn scan(&self, scan: &mut Scan, count: usize) -> Result<Option<Vec<RequestId>>> {
        on_redis!(self, courier => courier.scan(scan, count))
    }

    /// Reads many requests with the pointers of their sessions. Requests that are too many bytes together
    /// are left out; the first is always read.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer.
    pub async fn look(&self, ids: &[RequestId]) -> Result<Vec<Looked>> {
        on_redis!(self, courier => courier.look(ids))
    }

    /// Whether Redis announces every change of a key that the intake needs to know. `false` also when the
    /// service may not ask.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis, or any master of a Cluster, does not answer or refuses the question.
    pub async fn announces_changes(&self) -> Result<bool> {
        on_redis!(self, courier => courier.announces_changes())
    }

    /// Subscribes to the changes of requests and sessions that Redis announces. `None` in-process.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis, or any master of a Cluster, does not answer or refuses.
    pub async fn listen_to_changes(&self) -> Result<Option<RedisChanges>> {
        match self {
            Self::Redis(courier) => Ok(Some(bounded(courier.listen_to_changes()).await?)),
            Self::InProcess => Ok(None),
        }
    }

    /// The number of agents subscribed to each session's channel, in the order of `sessions`.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis, or any node of a Cluster, does not answer.
    pub async fn listeners(&self, sessions: &[SessionId]) -> Result<Vec<i64>> {
        match self {
            Self::Redis(courier) => bounded(courier.listeners(sessions)).await,
            Self::InProcess => Ok(vec![0; sessions.len()]),
        }
    }

    /// Counts a call in a rate-limit bucket that all replicas share. Returns `None` if the call was
    /// counted, or, if the bucket is full, the time until it has room. Always `None` in-process.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer; the call may have been counted nevertheless.
    pub async fn admit(&self, bucket: String, limit: RateLimit) -> Result<Option<Duration>> {
        on_redis!(self, courier => courier.admit(bucket, limit))
    }
}

/// A message received by a [`Subscription`].
#[derive(Debug)]
pub enum ChannelEvent {
    /// A replica reports that a registered request of this session was closed.
    Outcome(SessionId),
    /// A replica reports that these requests have changed.
    Changed(Vec<(TenantId, RequestId)>),
    /// A message on a session's channel. Anybody with access to Redis may have published it.
    Message(Message),
    /// A message that the service does not know.
    Other,
}

/// A message on the channel of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The channel's name without `hitl:channel:`. It is a session id, but may be an invalid one.
    pub channel: String,
    /// The message's text. Bytes that are not UTF-8 are replaced, so such a message equals no signal.
    pub payload: String,
}

impl Message {
    /// The session of the channel; `None` when the name is not a valid session id.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        SessionId::parse(self.channel.clone()).ok()
    }
}

/// The changed requests that a replica names; `None` when the text is not of a replica.
fn read_changed(text: &str) -> Option<Vec<(TenantId, RequestId)>> {
    let ids = serde_json::from_str::<Vec<(String, String)>>(text).ok()?;
    let read = |(tenant, id)| Some((TenantId::parse(tenant).ok()?, RequestId::parse(id).ok()?));
    ids.into_iter().map(read).collect()
}

/// Receives published messages, over its own connection to Redis.
#[derive(Debug)]
pub struct Subscription(RedisSubscription);

impl Subscription {
    /// Waits for the next message. The future may be dropped without losing a message.
    ///
    /// # Errors
    /// [`Unavailable`] when the connection is closed. Then no further message arrives.
    pub async fn next(&mut self) -> Result<ChannelEvent> {
        let (channel, payload) = self.0.next().await?;
        if let Some(channel) = channel.strip_prefix(SESSION_CHANNEL_PREFIX) {
            return Ok(ChannelEvent::Message(Message { channel: channel.to_owned(), payload }));
        }
        if channel != OUTCOMES_CHANNEL {
            return Ok(ChannelEvent::Other);
        }
        if let Some(changed) = payload.strip_prefix(CHANGED_PREFIX) {
            return Ok(read_changed(changed).map_or(ChannelEvent::Other, ChannelEvent::Changed));
        }
        let session = SessionId::parse(payload).ok();
        Ok(session.map_or(ChannelEvent::Other, ChannelEvent::Outcome))
    }

    /// Checks that the connection still works.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer on it.
    pub async fn ping(&mut self) -> Result<()> {
        self.0.ping().await
    }
}
