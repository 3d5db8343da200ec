//! The courier over Redis: each command is written once, for a single server, Sentinel and Cluster.
//!
//! Every write but the rate limit's sets a key to a value that does not depend on the old one, so
//! repeating it after a timeout does no harm.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{
    AsyncCommands, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind,
    SetExpiry, SetOptions, ToRedisArgs, Value, cmd, from_redis_value,
};

use super::keys::{self, REQUEST_KEY_PREFIX, SESSION_KEY_PREFIX};
use super::link::{Link, Login};
use super::topology::{Connection, Node, RedisSettings};
use super::types::{Outgoing, Polled, Result, Sent, StoredRequest, TIMEOUT, Unavailable};
use crate::domain::ids::SessionId;
use crate::domain::rate::RateLimit;
use crate::domain::request::REQUEST_TTL_SECONDS;
use crate::domain::session::SessionPointer;
use crate::domain::signal::SIGNAL_TTL_SECONDS;

/// The oldest major version of Redis that has every command of the scripts.
const OLDEST_VERSION: u32 = 7;

/// Stands for a value that is not UTF-8 text. It is neither a valid id nor JSON, so it matches nothing.
const NOT_TEXT: &str = "\u{fffd}";
/// Longest time to wait for the number of subscribers on every node of a Cluster.
const COUNT_TIMEOUT: Duration = Duration::from_millis(200);
pub(super) type Script = LazyLock<String>;
static FIND_REQUEST: Script = LazyLock::new(|| without_comments(include_str!("find.lua")));
static POLL: Script = LazyLock::new(|| without_comments(include_str!("poll.lua")));
static SEND_SIGNAL: Script = LazyLock::new(|| without_comments(include_str!("signal.lua")));
static ADMIT: Script = LazyLock::new(|| without_comments(include_str!("admit.lua")));
static REWRITE_REQUEST: Script = LazyLock::new(|| without_comments(include_str!("request.lua")));

/// The courier over Redis.
#[derive(Clone, Debug)]
pub struct RedisCourier {
    link: Arc<Link>,
}

impl RedisCourier {
    pub fn new(settings: &RedisSettings) -> anyhow::Result<Self> {
        Ok(Self { link: Arc::new(Link::new(settings.topology()?)) })
    }

    pub async fn try_login(&self, settings: &RedisSettings) -> Result<Login> {
        let topology = settings.topology().map_err(|error| Unavailable(format!("{error:#}")))?;
        self.link.try_login(topology).await
    }

    pub fn adopt(&self, login: Login) {
        self.link.adopt(login);
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Whether Redis is a Cluster, whose keys are spread over several servers.
    pub fn is_cluster(&self) -> bool {
        self.link.is_cluster()
    }

    pub async fn ping(&self) -> Result<()> {
        let info = self
            .link
            .call(None, |mut redis| async move { redis.server_info().await })
            .await?
            .map_err(|error| unavailable(&error))?;
        check_version(&info)
    }

    pub async fn replication_ids(&self) -> Result<Vec<String>> {
        let mut words = cmd("INFO");
        words.arg("replication");
        let answers = self.on_masters(words).await?;
        let replication_id = |(_node, answer)| {
            let text: String = from_redis_value(answer).ok()?;
            text.lines().find_map(|line| line.strip_prefix("master_replid:")).map(ToOwned::to_owned)
        };
        Ok(answers.into_iter().filter_map(replication_id).collect())
    }

    /// Runs a command on the server or on every master of a Cluster. Each answer comes with the master's
    /// address.
    pub(super) async fn on_masters(&self, words: Cmd) -> Result<Vec<(Node, Value)>> {
        // `attempt`, because this asks all masters: if one is down, the connection need not be replaced.
        let asking = |redis: Connection| async move { redis.on_every_master(words).await };
        self.link.attempt(asking).await.map_err(|error| unavailable(&error))
    }

    pub async fn find_request(&self, key: &str) -> Result<Option<StoredRequest>> {
        if !self.link.is_cluster() {
            let key = vec![key.to_owned()];
            let found: Option<Found> = self.script(&FIND_REQUEST, key, SESSION_KEY_PREFIX).await?;
            return Ok(found.map(stored));
        }
        let answers = self
            .link
            .call(Some(key), |mut one| async move {
                let mut two = one.clone();
                tokio::try_join!(one.get::<_, Option<Vec<u8>>>(key), two.pttl::<_, i64>(key))
            })
            .await?;
        match answers {
            Ok((None, _)) => Ok(None),
            Ok((Some(value), millis)) => Ok(Some(StoredRequest {
                document: String::from_utf8(value).unwrap_or_default(),
                ttl: ttl(millis),
                guessed_session: None,
            })),
            Err(_not_a_string) => Ok(Some(StoredRequest {
                document: String::new(),
                ttl: None,
                guessed_session: None,
            })),
        }
    }

    /// Must not be called on a Cluster, where the keys are in different slots.
    pub async fn poll(&self, session: &SessionId) -> Result<Polled> {
        type Found = [Option<Vec<u8>>; 4];
        let keys = vec![keys::session_key(session), keys::signal_key(session)];
        let found: Found = self.script(&POLL, keys, REQUEST_KEY_PREFIX).await?;
        let [pointer, signal, request, document] = found.map(|value| value.map(text));
        let pointer = SessionPointer::read(pointer);
        Ok(Polled { pointer, signal, answered: request.zip(document) })
    }

    pub async fn text(&self, key: &str) -> Result<Option<String>> {
        let value = self
            .link
            .call(Some(key), |mut redis| async move { redis.get::<_, Option<Vec<u8>>>(key).await })
            .await?;
        Ok(match value {
            Ok(value) => value.map(text),
            Err(_not_a_string) => Some(NOT_TEXT.to_owned()),
        })
    }

    pub async fn set(&self, key: &str, value: &str, ttl_seconds: u64) -> Result<()> {
        self.link
            .call(Some(key), |mut redis| async move {
                let options = SetOptions::default().with_expiration(SetExpiry::EX(ttl_seconds));
                redis.set_options::<_, _, ()>(key, value, options).await
            })
            .await?
            .map_err(|error| unavailable(&error))
    }

    pub async fn publish(&self, channel: &str, payload: &str) -> Result<()> {
        self.link
            .call(
                None,
                |mut redis| async move { redis.publish::<_, _, i64>(channel, payload).await },
            )
            .await?
            .map(drop)
            .map_err(|error| unavailable(&error))
    }

    /// Subscribes to a pattern of channels, and to one more channel.
    pub async fn listen(&self, (pattern, channel): (&str, &str)) -> Result<RedisSubscription> {
        let (mut sink, messages) = with_timeout(self.link.listen()).await?.split();
        with_timeout(sink.psubscribe(pattern)).await?;
        with_timeout(sink.subscribe(channel)).await?;
        Ok(RedisSubscription { sink, messages })
    }

    /// The number of subscribers of each session's channel. Redis does not count subscriptions by pattern,
    /// so the service's own subscription is not included.
    pub async fn listeners(&self, sessions: &[SessionId]) -> Result<Vec<i64>> {
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let mut count = cmd("PUBSUB");
        count.arg("NUMSUB").arg(sessions.iter().map(keys::channel).collect::<Vec<_>>());
        // `attempt`, because this asks all nodes: if one is down, the connection need not be replaced.
        let counting = |redis: Connection| async move { redis.on_every_node(count).await };
        let nodes = self.link.attempt(counting).await.map_err(|error| unavailable(&error))?;
        let mut all = vec![0; sessions.len()];
        for node in nodes {
            let counts: Vec<(Value, i64)> =
                from_redis_value(node).map_err(|error| unavailable(&error.into()))?;
            all.iter_mut().zip(counts).for_each(|(all, (_channel, count))| *all += count);
        }
        Ok(all)
    }

    pub async fn send(&self, outgoing: &Outgoing<'_>) -> Result<Sent> {
        let request = keys::request_key(outgoing.request);
        let session = keys::session_key(outgoing.session);
        let channel = keys::channel(outgoing.session);
        let seen = outgoing.only_if;
        let seen_pointer = seen.pointer.text.as_deref().unwrap_or_default();
        let seen_request = seen.document.as_deref().unwrap_or_default();
        let mut keys = vec![keys::signal_key(outgoing.session), keys::rank_key(outgoing.session)];
        let mut counted = None;
        if self.link.is_cluster() {
            // Count before the session is read: an agent that subscribes later may wait for the answer
            // to another request.
            if outgoing.publish {
                let counting = self.listeners(std::slice::from_ref(outgoing.session));
                let counts = tokio::time::timeout(COUNT_TIMEOUT, counting).await;
                counted = counts.ok().and_then(|counts| counts.ok()?.first().copied());
            }
            // A script cannot reach keys in several slots. So the checks that `signal.lua` makes in one
            // step on a single server are made here, directly before sending.
            let rewriting = (seen_request, outgoing.document, REQUEST_TTL_SECONDS);
            let rewrite = self.script::<bool>(&REWRITE_REQUEST, vec![request], rewriting);
            let (is_same, pointer) = tokio::try_join!(rewrite, self.text(&session))?;
            if !is_same || pointer.unwrap_or_default() != seen_pointer {
                return Ok(Sent::Changed);
            }
        } else {
            keys.extend([session, request]);
        }
        let sending = (
            (outgoing.signal, SIGNAL_TTL_SECONDS, outgoing.rank),
            if outgoing.publish { &channel } else { "" },
            (seen_pointer, seen_request, outgoing.document, REQUEST_TTL_SECONDS),
        );
        let sent =
            self.script::<Option<(Option<i64>, String)>>(&SEND_SIGNAL, keys, sending).await?;
        let Some((listeners, id)) = sent else { return Ok(Sent::Changed) };
        Ok(Sent::Published {
            listeners: listeners.or(counted),
            replication_id: Some(id).filter(|id| !id.is_empty()),
        })
    }

    /// Runs a script whose keys are all in one slot. Sends the script's text with each call, because
    /// `EVALSHA` would need the script to be loaded on every node of a Cluster first.
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        script: &str,
        keys: Vec<String>,
        arguments: impl ToRedisArgs,
    ) -> Result<T> {
        let mut eval = cmd("EVAL");
        eval.arg(script).arg(keys.len()).arg(&keys).arg(arguments);
        self.link
            .call(keys.first().map(String::as_str), |mut redis| async move {
                eval.query_async(&mut redis).await
            })
            .await?
            .map_err(|error| unavailable(&error))
    }

    /// See [`Courier::admit`](super::Courier::admit).
    pub async fn admit(&self, bucket: String, limit: RateLimit) -> Result<Option<Duration>> {
        let drain = u64::try_from(limit.drain().as_micros()).unwrap_or(u64::MAX);
        let wait: u64 = self.script(&ADMIT, vec![bucket], (drain, limit.burst.get())).await?;
        Ok((wait > 0).then(|| Duration::from_micros(wait)))
    }
}

/// Receives published messages, over its own connection.
pub struct RedisSubscription {
    sink: PubSubSink,
    messages: PubSubStream,
}

impl std::fmt::Debug for RedisSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSubscription").finish_non_exhaustive()
    }
}

impl RedisSubscription {
    pub async fn ping(&mut self) -> Result<()> {
        with_timeout(self.sink.ping::<Value>()).await.map(drop)
    }

    pub async fn next(&mut self) -> Result<(String, String)> {
        let message = self.messages.next().await;
        let message = message.ok_or_else(|| Unavailable("the connection is closed".to_owned()))?;
        let payload = String::from_utf8_lossy(message.get_payload_bytes()).into_owned();
        Ok((message.get_channel_name().to_owned(), payload))
    }
}

/// Refuses a server that is older than [`OLDEST_VERSION`].
fn check_version(info: &str) -> Result<()> {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let version = version.unwrap_or_default().trim();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    // A server that does not tell its version is accepted.
    if major.is_some_and(|major| major < OLDEST_VERSION) {
        let reason = format!("Redis is {version}; the service needs {OLDEST_VERSION} or newer");
        return Err(Unavailable(reason));
    }
    Ok(())
}

/// A script without comments, blank lines and indentation, because its text is sent with each call.
pub(super) fn without_comments(script: &str) -> String {
    let lines = script.lines().map(str::trim);
    let code = lines.filter(|line| !line.is_empty() && !line.starts_with("--"));
    code.collect::<Vec<_>>().join("\n")
}

/// What `find.lua` answers about a request: its text, its remaining time to live in milliseconds, and the
/// guessed session with its pointer.
type Found = (Vec<u8>, i64, Option<Vec<u8>>, Option<Vec<u8>>);

pub(super) fn stored((document, millis, session, pointer): Found) -> StoredRequest {
    StoredRequest {
        document: String::from_utf8(document).unwrap_or_default(),
        ttl: ttl(millis),
        guessed_session: session
            .and_then(|session| String::from_utf8(session).ok())
            .map(|session| (session, SessionPointer::read(pointer.map(text)))),
    }
}

/// A remaining time to live; negative if the key does not expire.
fn ttl(millis: i64) -> Option<Duration> {
    u64::try_from(millis).ok().map(Duration::from_millis)
}

fn text(value: Vec<u8>) -> String {
    String::from_utf8(value).unwrap_or_else(|_| NOT_TEXT.to_owned())
}

/// Bounds a call that has no time limit in the library.
pub(super) async fn with_timeout<T>(work: impl Future<Output = RedisResult<T>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| unavailable(&error)),
        Err(_elapsed) => Err(Unavailable("no answer in time".to_owned())),
    }
}

pub(super) fn unavailable(error: &RedisError) -> Unavailable {
    debug_assert_ne!(error.kind(), ErrorKind::Server(ServerErrorKind::CrossSlot));
    Unavailable(error.to_string())
}
