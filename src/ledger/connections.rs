//! The connections to Postgres. Each connection leads to a server that accepts writes, and every
//! statement runs under our time-outs. A connection is used again only while its state is known.
//!
//! A connection is made in a task of its own: a caller that stops waiting does not cancel the task,
//! and the next caller gets the connection. [`Connections`] is a sqlx executor, so queries run on
//! it as on sqlx's own pool. An error before the statement was sent is [`NotSent`]. This module
//! must not know tables.

use std::fmt::{self, Debug, Display, Formatter};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use deadpool::Runtime;
use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolConfig, PoolError, QueueMode, RecycleError, RecycleResult,
    TimeoutType, Timeouts,
};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, iter, once};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use sqlx::error::DatabaseError;
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgDatabaseError, PgQueryResult, PgRow, PgSeverity, PgStatement,
    PgTypeInfo,
};
use sqlx::{
    Connection as _, Describe, Either, Execute, Executor, PgConnection, Postgres, Row as _, SqlStr,
    raw_sql,
};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

/// The longest time to make a connection, log in and check the server. The caller waits only for
/// [`CALLER_TIMEOUT`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that a caller waits for a connection, whether a free one or a new one.
const CALLER_TIMEOUT: Duration = Duration::from_millis(1900);
/// The longest time to wait for a free connection while all are in use. Together with
/// `lock_timeout` (1 s) this limits a call to 1.9 s under overload.
const POOL_WAIT_TIMEOUT: Duration = Duration::from_millis(900);
/// The longest time to wait for the server's answer to a statement. Longer than
/// `statement_timeout`.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(1900);
/// A connection that was used within this time is not pinged before its next use, so that under
/// load a decision is one round trip. Shorter than any restart of Postgres.
const MAX_UNPINGED_IDLE: Duration = Duration::from_millis(100);
/// How long a session keeps its cached plans. A plan that Postgres made while a table was small
/// reads the whole table, and only an ANALYZE would replace the plan. Postgres 15 needs about 4 ms
/// of a core to plan a decision anew, and 0.4 ms to run a decision. Ten busy connections then cost
/// 8 ms of a core per second.
const MAX_PLAN_AGE: Duration = Duration::from_secs(5);
/// The longest time to wait for the answer to a ping, and for a connection to close.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest time of the check whether two connections share a session.
const SHARING_TIMEOUT: Duration = Duration::from_millis(1500);
/// The age at which a connection is closed, so that a changed login takes effect on all
/// connections.
const MAX_AGE: Duration = Duration::from_mins(30);
/// How long a connection may be idle before it is closed.
const MAX_IDLE: Duration = Duration::from_mins(10);
/// How often idle connections are checked against [`MAX_IDLE`].
const IDLE_CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// The kind of connection pooler between this service and Postgres.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooler {
    /// No pooler, or a pooler in session mode: a session keeps its settings.
    #[default]
    None,
    /// A pooler in transaction mode: each transaction may run on another server connection, and
    /// settings last only for a transaction. So every statement runs in a transaction that sets its
    /// own time-outs.
    Transaction,
}

/// Asks the server whether this session is read-only.
macro_rules! is_read_only {
    () => {
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean"
    };
}

/// Sets up a session, and asks whether it is read-only.
///
/// - `statement_timeout` and `lock_timeout` are shorter than [`STATEMENT_TIMEOUT`], so that Postgres gives
///   up before the caller, and no statement runs on without a caller.
/// - `jit` is off: Postgres guesses that a batch has many rows, and would compile its plan anew each time.
///   That takes up to 0.5 s where running it takes a few milliseconds.
/// - `enable_seqscan` is off: every statement has an index, and statistics from when a table was small made
///   Postgres read it from end to end now and then.
/// - `plan_cache_mode` makes Postgres plan a statement once, for any values. By itself it may plan it for
///   its values each time. In a database that grew it did so with decisions, and to plan one took longer
///   than to run it.
const SESSION: &str = concat!(
    "SET statement_timeout = 1800; SET lock_timeout = 1000; SET jit = off; SET enable_seqscan = off; \
     SET plan_cache_mode = force_generic_plan; SET idle_in_transaction_session_timeout = 5000; \
     SET default_transaction_isolation = 'read committed'; ",
    is_read_only!()
);
/// Begins a transaction with the same settings, except for `plan_cache_mode`: its statement is prepared and
/// planned each time anyway, so it is planned for its values.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 1800; \
                     SET LOCAL lock_timeout = 1000; SET LOCAL jit = off; \
                     SET LOCAL enable_seqscan = off; \
                     SET LOCAL plan_cache_mode = force_custom_plan; \
                     SET LOCAL idle_in_transaction_session_timeout = 5000";

/// Nothing was executed: no connection was available, or the connection was lost before the commit
/// was sent.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotSent(String);

fn not_sent(why: impl Display) -> sqlx::Error {
    sqlx::Error::AnyDriverError(Box::new(NotSent(why.to_string())))
}

/// Makes connections, and checks each before it is used again.
#[derive(Debug)]
struct ConnectionManager {
    options: ArcSwap<PgConnectOptions>,
    pooler: Pooler,
}

impl Manager for ConnectionManager {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<PgConnection> {
        log_in(&self.options.load_full(), self.pooler).await
    }

    async fn recycle(
        &self,
        connection: &mut PgConnection,
        metrics: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if metrics.age() > MAX_AGE {
            return Err(RecycleError::message("it is too old"));
        }
        if self.pooler == Pooler::None && are_plans_old(metrics) {
            // The answer also shows that the server answers, so no ping is needed.
            let discarded = raw_sql("DISCARD PLANS").execute(connection);
            let discarded = timeout(PING_TIMEOUT, discarded).await;
            discarded.map_err(|_elapsed| RecycleError::message("it does not answer"))??;
        } else if metrics.last_used() > MAX_UNPINGED_IDLE {
            let pinged = timeout(PING_TIMEOUT, connection.ping()).await;
            pinged.map_err(|_elapsed| RecycleError::message("it does not answer"))??;
        }
        Ok(())
    }
}

/// Whether cached plans have to be discarded. The age of a connection is divided into spans of
/// [`MAX_PLAN_AGE`]: plans are discarded at the first use in each span.
fn are_plans_old(metrics: &Metrics) -> bool {
    let spans = |age: Duration| age.as_nanos() / MAX_PLAN_AGE.as_nanos();
    let age = metrics.age();
    spans(age) > spans(age.saturating_sub(metrics.last_used()))
}

/// Connects, and refuses a read-only server: after a failover the address may lead to a standby for
/// a while.
pub async fn log_in(options: &PgConnectOptions, pooler: Pooler) -> sqlx::Result<PgConnection> {
    let mut connection = PgConnection::connect_with(options).await?;
    let statement = match pooler {
        Pooler::None => SESSION,
        Pooler::Transaction => is_read_only!(),
    };
    check_writable(&raw_sql(statement).fetch_one(&mut connection).await?)?;
    Ok(connection)
}

/// Whether two open connections share one server process. If so, a pooler in transaction mode
/// stands between this service and Postgres. A pooler that serves other clients at the same time
/// may use two server processes, and is then not recognised.
pub async fn share_a_session(options: &PgConnectOptions) -> bool {
    let asking = async {
        let (mut one, mut two) = tokio::try_join!(
            PgConnection::connect_with(options),
            PgConnection::connect_with(options)
        )?;
        // One after the other: two queries at the same time would get two server processes.
        let mut pids = [0; 2];
        for (pid, connection) in pids.iter_mut().zip([&mut one, &mut two]) {
            let answer = raw_sql("SELECT pg_backend_pid()").fetch_one(&mut *connection).await?;
            *pid = answer.try_get::<i32, _>(0)?;
        }
        close(vec![one, two]).await;
        let [one, two] = pids;
        Ok::<_, sqlx::Error>(one == two)
    };
    // Without two connections in time the answer is not known. Then no pooler is assumed.
    timeout(SHARING_TIMEOUT, asking).await.is_ok_and(|shared| shared.unwrap_or(false))
}

fn check_writable(is_read_only: &PgRow) -> sqlx::Result<()> {
    if is_read_only.try_get(0)? {
        return Err(not_sent("the server is read-only: it is a standby, or was set so"));
    }
    Ok(())
}

/// The connections of this process; cheap to clone.
#[derive(Clone)]
pub struct Connections {
    pool: Pool<ConnectionManager>,
    /// The runtime in which connections are made and whose I/O they use. It outlives the HTTP
    /// workers.
    runtime: Handle,
}

impl Debug for Connections {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

/// A connection in use. Only [`PooledConnection::give_back`] returns the connection to the pool. If
/// the value is dropped before, the state of the connection is unknown, and the connection is
/// closed.
struct PooledConnection(Option<Object<ConnectionManager>>);

impl PooledConnection {
    fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        self.0.as_deref_mut().ok_or_else(|| not_sent("the connection is gone"))
    }

    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

impl Connections {
    /// Makes the pool. Connections are made when they are first needed.
    pub fn new(options: PgConnectOptions, pooler: Pooler, max: u32) -> sqlx::Result<Self> {
        let manager = ConnectionManager { options: ArcSwap::from_pointee(options), pooler };
        let config = PoolConfig {
            max_size: usize::try_from(max).unwrap_or(usize::MAX),
            timeouts: Timeouts {
                wait: Some(POOL_WAIT_TIMEOUT),
                create: Some(CONNECT_TIMEOUT),
                recycle: None,
            },
            queue_mode: QueueMode::Lifo,
        };
        let pool = Pool::builder(manager).config(config).runtime(Runtime::Tokio1).build();
        let pool = pool.map_err(not_sent)?;
        let runtime = Handle::current();
        let weak_pool = pool.weak();
        runtime.spawn(async move {
            loop {
                sleep(IDLE_CHECK_INTERVAL).await;
                let Some(pool) = weak_pool.upgrade().filter(|pool| !pool.is_closed()) else {
                    break;
                };
                close(pool.retain(|_, metrics| metrics.last_used() < MAX_IDLE).removed).await;
            }
        });
        Ok(Self { pool, runtime })
    }

    /// The options of new connections.
    pub fn options(&self) -> Arc<PgConnectOptions> {
        self.pool.manager().options.load_full()
    }

    /// The pooler between this service and the server.
    pub fn pooler(&self) -> Pooler {
        self.pool.manager().pooler
    }

    /// Sets the options of new connections. Open connections stay open, for at most [`MAX_AGE`].
    pub fn set_options(&self, options: PgConnectOptions) {
        self.pool.manager().options.store(Arc::new(options));
    }

    /// The number of open connections, of idle connections, and the maximum of open connections.
    pub fn count(&self) -> (u32, usize, u32) {
        let status = self.pool.status();
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        (number(status.size), status.available, number(status.max_size))
    }

    /// Closes idle connections. Connections in use are closed when they are given back.
    pub async fn close(&self) {
        let idle = self.pool.retain(|_, _| false).removed;
        self.pool.close();
        close(idle).await;
    }

    /// Checks on a pooled connection that the server accepts writes. Closes the connection if the
    /// server is read-only.
    pub async fn check_writable(&self) -> sqlx::Result<()> {
        let mut pooled = self.check_out().await?;
        let asking = raw_sql(is_read_only!()).fetch_one(pooled.connection()?);
        check_writable(&within_statement_timeout(asking).await?)?;
        pooled.give_back();
        Ok(())
    }

    /// Runs statements without parameters, as one message. If there are several statements, they
    /// begin and end a transaction themselves.
    pub async fn run_raw(&self, statements: &'static str) -> sqlx::Result<()> {
        let mut pooled = self.check_out().await?;
        within_statement_timeout(raw_sql(statements).execute(pooled.connection()?)).await?;
        pooled.give_back();
        Ok(())
    }

    async fn check_out(&self) -> sqlx::Result<PooledConnection> {
        let pool = self.pool.clone();
        let getting = self.runtime.spawn(async move { pool.get().await });
        match timeout(CALLER_TIMEOUT, getting).await {
            Ok(Ok(Ok(connection))) => Ok(PooledConnection(Some(connection))),
            Ok(Ok(Err(PoolError::Timeout(TimeoutType::Wait)))) => {
                Err(not_sent("every connection to Postgres is in use"))
            }
            Ok(Ok(Err(PoolError::Backend(error)))) => Err(not_sent(error)),
            Ok(Ok(Err(error))) => Err(not_sent(error)),
            Ok(Err(stopped)) => Err(not_sent(stopped)),
            Err(_elapsed) => Err(not_sent("no connection to Postgres in time")),
        }
    }

    /// Runs one statement as it is run behind this kind of pooler, and collects its whole answer: no
    /// statement of the ledger answers many rows.
    async fn run<'q>(
        &self,
        behind: Pooler,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> sqlx::Result<Vec<Answer>> {
        let mut pooled = self.check_out().await?;
        let connection = pooled.connection()?;
        let answer = match behind {
            Pooler::None => {
                within_statement_timeout(connection.fetch_many(query).try_collect()).await
            }
            Pooler::Transaction => run_in_transaction(connection, query).await,
        };
        if answer.as_ref().err().is_none_or(leaves_connection_usable) {
            pooled.give_back();
        }
        answer
    }

    /// Runs one statement that Postgres plans for its values, and returns its rows. Takes four round trips
    /// instead of one: it runs in a transaction, which has its own `plan_cache_mode`.
    pub async fn rows_planned_for_values<'q>(
        &self,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> sqlx::Result<Vec<PgRow>> {
        let answers = self.run(Pooler::Transaction, query).await?;
        Ok(answers.into_iter().filter_map(Either::right).collect())
    }
}

/// One item of the answer to a statement: a row, or the summary at the end.
type Answer = Either<PgQueryResult, PgRow>;

async fn within_statement_timeout<T>(
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    let too_late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    timeout(STATEMENT_TIMEOUT, work).await.unwrap_or_else(|_elapsed| Err(too_late().into()))
}

/// Runs a query in a transaction of its own. Nothing is written before the commit, so the outcome
/// is unknown only after a failed commit.
async fn run_in_transaction<'q>(
    connection: &mut PgConnection,
    query: impl Execute<'q, Postgres> + 'q,
) -> sqlx::Result<Vec<Answer>> {
    let uncommitted = async {
        raw_sql(BEGIN).execute(&mut *connection).await?;
        let answer = connection.fetch_many(Unnamed(query)).try_collect().await;
        if answer.as_ref().err().is_some_and(leaves_connection_usable) {
            raw_sql("ROLLBACK").execute(&mut *connection).await?;
        }
        answer
    };
    let answer = within_statement_timeout(uncommitted).await.map_err(|error| match error {
        error @ sqlx::Error::Database(_) => error,
        error => not_sent(error),
    })?;
    within_statement_timeout(raw_sql("COMMIT").execute(connection)).await?;
    Ok(answer)
}

/// Whether the connection can be used again after this error: only if the server says that it gave
/// up this one statement. After any other error the connection is closed, for example when the
/// server has become read-only, no longer knows a prepared statement, or the connection was lost.
fn leaves_connection_usable(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    // Constraint violation (23), invalid value (22), transaction rolled back (40), lock not
    // available (55), statement cancelled (57014).
    code.is_some_and(|code| {
        code == "57014" || ["22", "23", "40", "55"].iter().any(|class| code.starts_with(class))
    })
}

/// Whether the server ended the session with this error. The statement may have been executed.
pub fn ends_session(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

async fn close(connections: Vec<PgConnection>) {
    for connection in connections {
        let _best_effort = timeout(PING_TIMEOUT, connection.close()).await;
    }
}

impl<'c> Executor<'c> for &'c Connections {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Answer>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let answers = once(self.run(self.pooler(), query));
        answers.map_ok(|answers| iter(answers.into_iter().map(Ok))).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let first = async move {
            Ok(self.run(self.pooler(), query).await?.into_iter().find_map(Either::right))
        };
        first.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        async move { self.check_out().await?.connection()?.prepare_with(sql, parameters).await }
            .boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        async move { self.check_out().await?.connection()?.describe(sql).await }.boxed()
    }
}

/// A connection outside the pool. A pooler in transaction mode may give each transaction another
/// server connection, which would not know a named prepared statement. So statements are prepared
/// without a name.
#[derive(Debug)]
pub struct Unpooled<'c>(pub &'c mut PgConnection);

impl<'c> Executor<'c> for Unpooled<'c> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Answer>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.0.fetch_many(Unnamed(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.0.fetch_optional(Unnamed(query))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        self.0.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        self.0.describe(sql)
    }
}

/// A query that is prepared without a name.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}
