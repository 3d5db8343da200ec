//! The one connection that all calls of this process share: made when first needed, and replaced
//! when it does not serve any more. Every call is bounded, connecting included.
//!
//! The library keeps the nodes of a Cluster connected, and nothing else: a server that died, one
//! that vanished without a word and one that has become a replica are noticed here. Another way to
//! log in takes effect here, too.

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

use super::topology::{Connection, STEP_TIMEOUT, Topology};
use super::types::{Result, Unavailable};
use crate::observe::metrics;

/// Longest that connecting takes, finding the right server included; leaves time for a command.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// Longest that a call takes, connecting included; well under [`super::types::TIMEOUT`].
const CALL_TIMEOUT: Duration = STEP_TIMEOUT.saturating_mul(2);
/// So many silent calls in a row, and the connection is replaced.
const SILENT_CALLS: u32 = 2;
/// Shortest time between two connections to the same Cluster, while some node of it is away.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// A connection that is there or being made. Whoever waits for it shares what comes of it.
type Connecting = Shared<BoxFuture<'static, RedisResult<Connection>>>;

/// The connection of this process.
pub struct Link {
    topology: ArcSwap<Topology>,
    /// Connections live here: longer than the HTTP workers that first need them.
    runtime: Handle,
    current: Mutex<Connecting>,
    silent_calls: AtomicU32,
    is_renewing: AtomicBool,
}

/// A way to log in that has been tried.
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
    /// Connects when first called.
    pub fn new(topology: Topology) -> Self {
        let (topology, runtime) = (Arc::new(topology), Handle::current());
        let current = Mutex::new(connect(&topology, &runtime));
        let topology = ArcSwap::new(topology);
        let (silent_calls, is_renewing) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { topology, runtime, current, silent_calls, is_renewing }
    }

    /// Whether keys are spread over several servers.
    pub fn is_cluster(&self) -> bool {
        matches!(**self.topology.load(), Topology::Cluster { .. })
    }

    /// A connection of its own, which hears what is published.
    pub async fn listen(&self) -> RedisResult<PubSub> {
        self.topology.load_full().listen().await
    }

    /// Logs in to the same place by other means. Nothing changes until [`Self::adopt`].
    pub async fn try_login(&self, topology: Topology) -> Result<Login> {
        if !topology.is_the_same_place_as(&self.topology.load()) {
            let reason = "it is another server or database, which needs a restart";
            return Err(Unavailable(reason.to_owned()));
        }
        let topology = Arc::new(topology);
        let connecting = connect(&topology, &self.runtime);
        let pinged = attempt(&connecting, |mut redis| async move { redis.ping().await }).await;
        pinged.map_err(|error| Unavailable(error.to_string()))?;
        Ok(Login { topology, connecting })
    }

    /// Every connection from now on is made like this one. Calls under way end on the one they have.
    pub fn adopt(&self, login: Login) {
        self.topology.store(login.topology);
        *self.current() = login.connecting;
    }

    /// Runs one call and draws no conclusion from its failure.
    pub async fn attempt<T, Work: Future<Output = RedisResult<T>>>(
        &self,
        work: impl FnOnce(Connection) -> Work,
    ) -> RedisResult<T> {
        let connecting = self.current().clone();
        attempt(&connecting, work).await
    }

    /// Runs one call, about a key if about any. The inner error says that the key holds something
    /// of another type.
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
        // One silent node of a Cluster hides among others that answer.
        let is_one_off = error.is_timeout()
            && !self.is_cluster()
            && self.silent_calls.fetch_add(1, Ordering::Relaxed) + 1 < SILENT_CALLS;
        let is_worn = !is_connected(&connecting) || !(is_refusal(&error) || is_one_off);
        if is_worn {
            self.silent_calls.store(0, Ordering::Relaxed);
            self.renew(connecting, key);
        }
        Err(Unavailable(error.to_string()))
    }

    fn current(&self) -> MutexGuard<'_, Connecting> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a connection, unless somebody else has. That of a Cluster stays in use, for the nodes
    /// that it serves well, until another reaches the key that it did not.
    fn renew(self: &Arc<Self>, worn: Connecting, key: Option<&str>) {
        let fresh = connect(&self.topology.load_full(), &self.runtime);
        if !self.is_cluster() || !is_connected(&worn) {
            self.put(&worn, fresh);
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
                    link.put(&worn, fresh);
                }
                sleep(RENEWAL_PAUSE).await;
                link.is_renewing.store(false, Ordering::Relaxed);
            });
        }
    }

    fn put(&self, worn: &Connecting, fresh: Connecting) {
        let mut current = self.current();
        if current.ptr_eq(worn) {
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

/// Connects once somebody waits for it; in a task of its own, so that it goes on when they do not.
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

/// A key of another type, or with something that cannot be read: somebody else's data, not a failure
/// of Redis.
fn is_about_the_key(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
        || matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
}

/// The server's own answer; but one that has become a replica is the wrong server.
fn is_refusal(error: &RedisError) -> bool {
    let is_replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
    !is_replica && matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}
