//! The courier over Redis.
//!
//! Only absolute writes, so that repeating one after a time-out changes nothing. A connection that
//! stays silent is replaced: the library reconnects when a socket breaks, but a peer that vanished
//! without a word breaks nothing.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    AsyncCommands, Client, ConnectionAddr, ErrorKind, ExistenceCheck, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, Script, ServerErrorKind, SetExpiry, SetOptions,
};
use secrecy::{ExposeSecret, SecretString};

use super::{Outgoing, Result, Sent, StoredRequest, Unavailable};
use crate::limits::RateLimit;

/// Longest to wait for a connection or for an answer; well under [`super::TIMEOUT`], so that one
/// of each fits into a call.
const STEP_TIMEOUT: Duration = Duration::from_millis(450);
/// So many silent calls in a row, and the connection is replaced.
const SILENT_CALLS: u32 = 2;
/// What a value that is not text stands for: no id and no JSON, so it matches nothing.
const NOT_TEXT: &str = "\u{fffd}";

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum RedisSettings {
    /// `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    Url(SecretString),
    /// Host, port and password, as older deployments configure it.
    Host {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// `AUTH` password of the default user.
        password: Option<SecretString>,
    },
}

/// The courier over Redis.
#[derive(Clone, Debug)]
pub struct RedisCourier {
    link: Arc<Link>,
}

struct Link {
    client: Client,
    connection: Mutex<ConnectionManager>,
    silent_calls: AtomicU32,
    script: Script,
    admit: Script,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl RedisCourier {
    pub fn new(settings: &RedisSettings) -> anyhow::Result<Self> {
        let client = match settings {
            RedisSettings::Url(url) => Client::open(url.expose_secret()),
            RedisSettings::Host { host, port, password } => {
                let mut login = RedisConnectionInfo::default();
                if let Some(password) = password {
                    login = login.set_password(password.expose_secret());
                }
                ConnectionAddr::Tcp(host.clone(), *port)
                    .into_connection_info()
                    .and_then(|address| Client::open(address.set_redis_settings(login)))
            }
        };
        // The library's message may repeat the URL, password and all.
        let client = client.map_err(|error| error.kind()).map_err(|kind| {
            anyhow::anyhow!("REDIS_URL is not a Redis URL like redis://host:6379 ({kind:?})")
        })?;
        let connection = connect_lazily(&client).context("cannot prepare the Redis connection")?;
        Ok(Self {
            link: Arc::new(Link {
                client,
                connection: Mutex::new(connection),
                silent_calls: AtomicU32::new(0),
                script: Script::new(include_str!("signal.lua")),
                admit: Script::new(include_str!("admit.lua")),
            }),
        })
    }

    fn connection(&self) -> ConnectionManager {
        self.link.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs one call, and replaces the connection after a few that were not answered, or refused
    /// because the server is a replica by now.
    async fn call<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<RedisResult<T>> {
        let answer = tokio::time::timeout(STEP_TIMEOUT * 2, call).await;
        let problem = match answer {
            Ok(Ok(value)) => {
                self.link.silent_calls.store(0, Ordering::Relaxed);
                return Ok(Ok(value));
            }
            Ok(Err(error)) if is_about_the_key(&error) => return Ok(Err(error)),
            // It answers, if with a refusal; but one that has become a replica is the wrong one.
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Server(kind) if kind != ServerErrorKind::ReadOnly) =>
            {
                return Err(Unavailable(error.to_string()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        if self.link.silent_calls.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_CALLS
            && let Ok(fresh) = connect_lazily(&self.link.client)
        {
            self.link.silent_calls.store(0, Ordering::Relaxed);
            *self.link.connection.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        Err(Unavailable(problem))
    }

    pub async fn ping(&self) -> Result<()> {
        let mut connection = self.connection();
        self.call(async move { connection.ping::<String>().await })
            .await?
            .map(drop)
            .map_err(|error| unexpected(&error))
    }

    pub async fn find_request(&self, key: &str) -> Result<Option<StoredRequest>> {
        let (mut one, mut two) = (self.connection(), self.connection());
        let answers = self
            .call(async move {
                tokio::try_join!(one.get::<_, Option<Vec<u8>>>(key), two.pttl::<_, i64>(key))
            })
            .await?;
        match answers {
            Ok((None, _)) => Ok(None),
            Ok((Some(value), ttl)) => Ok(Some(StoredRequest {
                document: String::from_utf8(value).unwrap_or_default(),
                ttl: u64::try_from(ttl).ok().map(Duration::from_millis),
            })),
            Err(_not_a_string) => Ok(Some(StoredRequest { document: String::new(), ttl: None })),
        }
    }

    pub async fn text(&self, key: &str) -> Result<Option<String>> {
        let mut connection = self.connection();
        let value =
            self.call(async move { connection.get::<_, Option<Vec<u8>>>(key).await }).await?;
        Ok(match value {
            Ok(value) => {
                value.map(|value| String::from_utf8(value).unwrap_or_else(|_| NOT_TEXT.to_owned()))
            }
            Err(_not_a_string) => Some(NOT_TEXT.to_owned()),
        })
    }

    pub async fn put(
        &self,
        key: &str,
        value: &str,
        ttl_seconds: u64,
        only_new: bool,
    ) -> Result<()> {
        let mut connection = self.connection();
        let mut options = SetOptions::default().with_expiration(SetExpiry::EX(ttl_seconds));
        if only_new {
            options = options.conditional_set(ExistenceCheck::NX);
        }
        self.call(async move {
            connection.set_options::<_, _, Option<String>>(key, value, options).await
        })
        .await?
        .map(drop)
        .map_err(|error| unexpected(&error))
    }

    pub async fn send(&self, outgoing: &Outgoing<'_>) -> Result<Sent> {
        let mut connection = self.connection();
        let mut script = self.link.script.prepare_invoke();
        script
            .key(super::signal_key(outgoing.session))
            .key(super::rank_key(outgoing.session))
            .key(super::session_key(outgoing.session))
            .key(super::request_key(outgoing.request))
            .arg(outgoing.signal)
            .arg(crate::domain::signal::SIGNAL_TTL_SECONDS)
            .arg(outgoing.rank)
            .arg(super::channel(outgoing.session))
            .arg(outgoing.only_while.pointer.text.as_deref().unwrap_or(""))
            .arg(outgoing.document)
            .arg(crate::domain::request::REQUEST_TTL_SECONDS)
            .arg(outgoing.only_while.document.as_deref().unwrap_or(""));
        let answer: i64 = self
            .call(async move { script.invoke_async(&mut connection).await })
            .await?
            .map_err(|error| unexpected(&error))?;
        Ok(if answer < 0 { Sent::Changed } else { Sent::Published { listeners: answer } })
    }

    pub async fn admit(&self, bucket: &str, limit: RateLimit) -> Result<Option<Duration>> {
        let mut connection = self.connection();
        let drain = u64::try_from(limit.drain().as_micros()).unwrap_or(u64::MAX);
        let mut script = self.link.admit.prepare_invoke();
        script.key(bucket).arg(drain).arg(limit.burst.get());
        let wait: u64 = self
            .call(async move { script.invoke_async(&mut connection).await })
            .await?
            .map_err(|error| unexpected(&error))?;
        Ok((wait > 0).then(|| Duration::from_micros(wait)))
    }
}

fn connect_lazily(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(1)
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_millis(100))
        .set_connection_timeout(Some(STEP_TIMEOUT))
        .set_response_timeout(Some(STEP_TIMEOUT));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// A key of another type: somebody else's data, not a failure of Redis.
fn is_about_the_key(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.kind() == ErrorKind::UnexpectedReturnType
}

fn unexpected(error: &RedisError) -> Unavailable {
    debug_assert_ne!(error.kind(), ErrorKind::Server(ServerErrorKind::CrossSlot));
    Unavailable(error.to_string())
}
