//! The one connection to Redis that all calls of this process share. It is made when first needed and
//! replaced when it no longer works. Every call has a time limit, connecting included.
//!
//! The library reconnects only the nodes of a Cluster. This module notices a server that died, a server
//! that stopped answering without closing the connection, and a server that has become a replica. A new
//! login takes effect here, too.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::PubSub;
use redis::{AsyncCommands as _, ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::topology::{ANSWER_TIMEOUT, Connection, Topology};
use super::types::{Result, Unavailable};
use crate::observe::metrics;

/// Longest time to connect, finding the right server included. Leaves time for a command within
/// `CALL_TIMEOUT`.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// Longest duration of a call, connecting included; well under [`super::types::TIMEOUT`].
const CALL_TIMEOUT: Duration = ANSWER_TIMEOUT.saturating_mul(2);
/// After this many consecutive calls without an answer, the connection is replaced.
const MAX_SILENT_CALLS: u32 = 2;
/// Shortest time between two attempts to reconnect to a Cluster of which a node is down.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// A connection, made or being made. All callers that wait for it get the same result.
type Connecting = Shared<BoxFuture<'static, RedisResult<Connection>>>;

/// The shared connection of this process.
pub struct Link {
    topology: ArcSwap<Topology>,
    /// The runtime that runs the connection. It outlives the HTTP worker that first needs the connection.
    runtime: Handle,
    current: Mutex<Connecting>,
    silent_calls: AtomicU32,
    is_renewing: AtomicBool,
}

/// A login that has succeeded.
pub struct Login {
    topology: Arc<Topology>,
    connecting: Connecting,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// A link that connects on its first call.
    pub fn new(topology: Topology) -> Self {
        let (topology, runtime) = (Arc::new(topology), Handle::current());
        let current = Mutex::new(connect(&topology, &runtime));
        let topology = ArcSwap::new(topology);
        let (silent_calls, is_renewing) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { topology, runtime, current, silent_calls, is_renewing }
    }

    /// Whether Redis is a Cluster, whose keys are spread over several servers.
    pub fn is_cluster(&self) -> bool {
        matches!(**self.topology.load(), Topology::Cluster { .. })
    }

    /// A separate connection for subscriptions.
    pub async fn listen(&self) -> RedisResult<PubSub> {
        self.topology.load_full().listen().await
    }

    /// A separate connection for subscriptions to one node of a Cluster; `None` for the only server.
    pub async fn listen_on(&self, node: Option<(String, u16)>) -> RedisResult<PubSub> {
        self.topology.load_full().listen_on(node).await
    }

    /// Logs in to the same data with other credentials. Calls use the new login only after
    /// [`Self::adopt`]. Fails with [`Unavailable`] when the login fails or the settings name other data.
    pub async fn try_login(&self, topology: Topology) -> Result<Login> {
        if !topology.leads_to_same_data_as(&self.topology.load()) {
            let reason = "it is another server or database, which needs a restart";
            return Err(Unavailable(reason.to_owned()));
        }
        let topology = Arc::new(topology);
        let connecting = connect(&topology, &self.runtime);
        let pinged = attempt(&connecting, |mut redis| async move { redis.ping().await }).await;
        pinged.map_err(|error| Unavailable(error.to_string()))?;
        Ok(Login { topology, connecting })
    }

    /// Uses this login for every connection from now on. Running calls finish on the old connection.
    pub fn adopt(&self, login: Login) {
        self.topology.store(login.topology);
        *self.current() = login.connecting;
    }

    /// Runs one call. A failure does not replace the connection.
    pub async fn attempt<T, Work: Future<Output = RedisResult<T>>>(
        &self,
        work: impl FnOnce(Connection) -> Work,
    ) -> RedisResult<T> {
        let connecting = self.current().clone();
        attempt(&connecting, work).await
    }

    /// Runs one call; `key` is the key that it concerns, if any. A failure may replace the connection.
    ///
    /// The outer error says that Redis did not answer, the inner error that the key holds a value of
    /// another type.
    pub async fn call<T, Work: Future<Output = RedisResult<T>>>(
        self: &Arc<Self>,
        key: Option<&str>,
        work: impl FnOnce(Connection) -> Work,
    ) -> Result<RedisResult<T>> {
        let connecting = self.current().clone();
        let error = match attempt(&connecting, work).await {
            Ok(value) => {
                self.silent_calls.store(0, Ordering::Relaxed);
                return Ok(Ok(value));
            }
            Err(error) if is_about_the_key(&error) => return Ok(Err(error)),
            Err(error) => error,
        };
        // On a Cluster, other nodes may answer between two silent calls, so the first one counts.
        let is_one_off = error.is_timeout()
            && !self.is_cluster()
            && self.silent_calls.fetch_add(1, Ordering::Relaxed) + 1 < MAX_SILENT_CALLS;
        let is_broken = !is_connected(&connecting) || !(is_refusal(&error) || is_one_off);
        if is_broken {
            self.silent_calls.store(0, Ordering::Relaxed);
            self.renew(connecting, key);
        }
        Err(Unavailable(error.to_string()))
    }

    fn current(&self) -> MutexGuard<'_, Connecting> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a broken connection, unless another call has already replaced it. The connection to a
    /// Cluster stays in use for the nodes that it still reaches, until a new connection reaches `key`.
    fn renew(self: &Arc<Self>, broken: Connecting, key: Option<&str>) {
        let fresh = connect(&self.topology.load_full(), &self.runtime);
        if !self.is_cluster() || !is_connected(&broken) {
            self.put(&broken, fresh);
        } else if !self.is_renewing.swap(true, Ordering::Relaxed) {
            let (link, key) = (Arc::clone(self), key.map(ToOwned::to_owned));
            self.runtime.spawn(async move {
                let reach = |mut redis: Connection| async move {
                    match key {
                        Some(key) => redis.exists::<_, bool>(key).await.map(drop),
                        None => redis.ping().await,
                    }
                };
                if attempt(&fresh, reach).await.is_ok() {
                    link.put(&broken, fresh);
                }
                sleep(RECONNECT_INTERVAL).await;
                link.is_renewing.store(false, Ordering::Relaxed);
            });
        }
    }

    fn put(&self, broken: &Connecting, fresh: Connecting) {
        let mut current = self.current();
        if current.ptr_eq(broken) {
            *current = fresh;
        }
    }
}

async fn attempt<T, Work: Future<Output = RedisResult<T>>>(
    connecting: &Connecting,
    work: impl FnOnce(Connection) -> Work,
) -> RedisResult<T> {
    let working = async { work(connecting.clone().await?).await };
    timeout(CALL_TIMEOUT, working).await.unwrap_or_else(|_elapsed| Err(too_late()))
}

/// Connects once the result is awaited. Connecting runs in its own task, so it goes on if the caller
/// stops waiting.
fn connect(topology: &Arc<Topology>, runtime: &Handle) -> Connecting {
    let (topology, runtime) = (Arc::clone(topology), runtime.clone());
    async move {
        let connecting = async move { timeout(CONNECT_TIMEOUT, topology.connect()).await };
        match runtime.spawn(connecting).await {
            Ok(Ok(connected)) => connected.inspect(|_connection| metrics::redis_connected()),
            Ok(Err(_elapsed)) => Err(too_late()),
            Err(stopped) => Err(io::Error::from(stopped).into()),
        }
    }
    .boxed()
    .shared()
}

fn is_connected(connecting: &Connecting) -> bool {
    connecting.peek().is_some_and(std::result::Result::is_ok)
}

fn too_late() -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()
}

/// The key holds a value of another type, or one that cannot be parsed. Redis itself works.
fn is_about_the_key(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
        || matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
}

/// The server answered with an error, so the connection works. Not if the server has become a read-only
/// replica: then another server has to be found.
fn is_refusal(error: &RedisError) -> bool {
    let is_replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
    !is_replica && matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}
