//! The ledger: the one place that knows what was decided.
//!
//! Postgres or SQLite, chosen at start. Methods are the size of a use case, and no transaction
//! crosses this boundary. A decision is won by exactly one caller because the request's row is
//! unique and only changes while it is pending. Must not know HTTP or Redis.

#[macro_use]
mod sql;
#[macro_use]
mod queries;
mod connections;
mod export;
pub mod known_decisions;
mod login;
mod migrations;
mod outbox;
pub mod patience;
mod postgres;
mod refused;
mod sqlite;
mod writes;

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError};
use tracing::Instrument as _;

use self::connections::NotSent;
pub use self::connections::Pooler;
pub use self::export::{Exported, Span};
pub use self::login::LoginError;
pub use self::outbox::{OutboxKind, OutboxRow};
use self::postgres::PgLedger;
pub use self::refused::{ExportedAttempt, RefusedAttempt};
use self::sqlite::SqliteLedger;
use crate::domain::approver::{Caller, Role};
use crate::domain::audit::AuditEntry;
use crate::domain::decision::{Decision, State, Verdict};
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::printable::printable;
use crate::domain::record::{Candidate, Delivery, DeliveryReceipt, Record};
use crate::domain::request::Origin;
use crate::domain::signal::SIGNAL_TTL_SECONDS;
use crate::domain::task::{Task, TaskFilter, TaskStatus};
use crate::observe::metrics::{self, AuditResult};
use crate::observe::traces;

/// Longest any call to the ledger takes: up to 1.9 s for a connection that has to be made, and what
/// is left for its statements.
pub const TIMEOUT: Duration = Duration::from_millis(2900);
/// Longest to wait for Postgres at start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest to wait for SQLite's only connection, for which everybody queues.
const SQLITE_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long whoever decides or claims a row has to send its signal before a relay may try. Longer
/// than any call to Redis, short enough that a killed replica's work is picked up at once.
pub const LEASE: TimeDelta = TimeDelta::milliseconds(3000);

/// Most tasks that a list counts one by one; see [`Ledger::list_tasks`].
pub const COUNTED_TASKS: i64 = 10_000;

/// Most lost signals to owe again in one statement, which has to end in time.
pub const LOST_AT_ONCE: u32 = 1000;

static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Why the ledger did not do what it was asked, by what the caller can conclude.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Nothing was executed: no connection was to be had, or the database refused.
    #[error("the ledger executed nothing: {0}")]
    NotExecuted(String),
    /// Nothing was executed: somebody else holds this row, for too long. Other rows may be free.
    #[error("the ledger executed nothing: {0}")]
    Locked(String),
    /// The connection was lost, or was silent for too long, after the statement had been sent. A
    /// write may or may not have happened.
    #[error("the ledger did not answer: {0}")]
    OutcomeUnknown(String),
    /// It answered something that cannot be: a bug of ours or a hand-edited row.
    #[error("the ledger is inconsistent: {0}")]
    Inconsistent(String),
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match &error {
            sqlx::Error::AnyDriverError(cause) if cause.is::<NotSent>() => {
                Self::NotExecuted(cause.to_string())
            }
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Self::NotExecuted(text),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => Self::OutcomeUnknown(text),
            sqlx::Error::Database(said) => match said.try_downcast_ref::<PgDatabaseError>() {
                Some(said) => from_postgres(said, text),
                None => from_sqlite(said.code().and_then(|code| code.parse().ok()), text),
            },
            _ => Self::Inconsistent(text),
        }
    }
}

/// An ERROR undoes its statement; after a FATAL the statement may have been done. The codes:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn from_postgres(said: &PgDatabaseError, text: String) -> LedgerError {
    let code = said.code();
    if connections::ends_session(said) {
        return LedgerError::OutcomeUnknown(text);
    }
    // Waiting for a lock (55P03), out of time (57014), conflicts (40001) and deadlocks (40P01).
    if ["55P03", "57014", "40001", "40P01"].contains(&code) {
        return LedgerError::Locked(text);
    }
    // Connection trouble (08), read-only (25006), rolled back (40), resources (53), objects in use
    // (55), operators (57), the system (58).
    let is_passing = code == "25006"
        || ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class));
    if is_passing { LedgerError::NotExecuted(text) } else { LedgerError::Inconsistent(text) }
}

/// By the primary code, the lower byte: <https://www.sqlite.org/rescode.html>.
fn from_sqlite(code: Option<u32>, text: String) -> LedgerError {
    match code.map(|code| code & 0xff) {
        // PERM, BUSY, LOCKED, NOMEM, READONLY, FULL, CANTOPEN.
        Some(3 | 5 | 6 | 7 | 8 | 13 | 14) => LedgerError::NotExecuted(text),
        // IOERR: perhaps what failed was only the last flush.
        Some(10) => LedgerError::OutcomeUnknown(text),
        _ => LedgerError::Inconsistent(text),
    }
}

type Result<T> = std::result::Result<T, LedgerError>;

/// Everything that one write of a request needs.
#[derive(Debug)]
pub struct Writing<'a> {
    /// The request.
    pub candidate: &'a Candidate,
    /// Where it stands from then on: [`State::Pending`] to register it, else decided or cancelled.
    pub state: &'a State,
    /// Who does it.
    pub caller: &'a Caller,
    /// When.
    pub now: DateTime<Utc>,
    /// How long the writer holds the delivery: [`LEASE`], or nothing to leave it to the relay.
    pub held_for: TimeDelta,
    /// The entity tag by which the decider named what they had looked at.
    pub if_match: Option<&'a str>,
    /// Whether to write nothing if the ledger knows a newer request of Redis in the session: for a
    /// request of Redis whose session names nothing.
    pub only_newest: bool,
    /// Since when there may be no other tenant's request of Redis in the session, for anything to be
    /// written: for a decision that a signal in the session tells of.
    pub alone_since: Option<DateTime<Utc>>,
    /// Where in a trace it happens; see [`traces::current_trace_parent`].
    pub trace_parent: Option<String>,
    /// What the Auth server's audit log is to be told of it.
    pub audit: AuditEntry,
}

impl<'a> Writing<'a> {
    /// A write by this caller that nothing else stands in the way of, whose delivery nobody holds and
    /// of which the audit log is not told.
    #[must_use]
    pub fn new(
        candidate: &'a Candidate,
        state: &'a State,
        caller: &'a Caller,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            candidate,
            state,
            caller,
            now,
            held_for: TimeDelta::zero(),
            if_match: None,
            only_newest: false,
            alone_since: None,
            trace_parent: traces::current_trace_parent(),
            audit: AuditEntry::None,
        }
    }

    /// Whose task the request may go on with; `None` is anybody's of its tenant: for requests that name
    /// nobody, and those that an admin registers.
    fn task_owner(&self) -> Option<&UserId> {
        let may_choose = *self.state == State::Pending && self.caller.role == Role::Admin;
        self.candidate.user.as_ref().filter(|_| !may_choose)
    }

    /// What `error_message` says of a rejection.
    fn refusal(&self) -> Option<String> {
        let decision = self.state.decision()?;
        let reason = decision.verdict.reason()?;
        let by = decision.by.as_str();
        Some(format!("Rejected by {}: {}", printable(by), printable(reason)))
    }

    /// A request that belongs to no tenant belongs to the decider's from then on.
    fn tenant(&self) -> &TenantId {
        self.candidate.tenant.as_ref().unwrap_or(&self.caller.tenant)
    }

    /// Counts an audit entry that cannot be sent, once the write is known to have won.
    fn count_unsendable(&self) {
        if self.audit == AuditEntry::Unsendable {
            metrics::audited(AuditResult::Unsendable);
        }
    }
}

/// What came of an attempt to decide.
#[derive(Debug)]
pub enum Recorded {
    /// This caller's decision stands.
    Won(Record),
    /// Something else stands: the row as it is.
    Lost(Record),
    /// The ledger knows a newer request of Redis in the session; see [`Writing::only_newest`].
    MovedOn,
    /// The ledger knows a request of another tenant in the session; see [`Writing::alone_since`].
    AnothersSession,
    /// The id is another tenant's.
    IdTaken,
}

/// What came of an attempt to register.
#[derive(Debug)]
pub enum Registered {
    /// The request is pending now.
    New(Record),
    /// The id was known already: the row as it is.
    Known(Record),
    /// The task it names is completed or failed.
    TaskIsOver,
    /// The id is another tenant's, in a database that older replicas may still use.
    IdTaken,
}

/// What one write of a request did.
#[derive(Debug)]
pub enum Written {
    /// It wrote this row.
    Row(Box<RequestRow>),
    /// What is there, or the task, did not allow it.
    Nothing,
    /// Another tenant has the id.
    IdTaken,
}

impl Written {
    fn of(row: Option<RequestRow>) -> Self {
        row.map_or(Self::Nothing, |row| Self::Row(Box::new(row)))
    }
}

/// What is still to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Deliveries owed.
    pub owed: i64,
    /// Since when the first of them is.
    pub owed_since: Option<DateTime<Utc>>,
    /// Pending requests.
    pub pending: i64,
    /// When the first of them was made.
    pub pending_since: Option<DateTime<Utc>>,
}

/// The ledger of this process.
#[derive(Clone, Debug)]
pub enum Ledger {
    /// Shared by all replicas.
    Postgres(PgLedger),
    /// This process's own.
    Sqlite(SqliteLedger),
}

/// Runs the same call on whichever engine there is, within [`TIMEOUT`].
macro_rules! on_engine {
    ($self:ident, $ledger:ident => $call:expr) => {
        bounded(async {
            match $self {
                Ledger::Postgres($ledger) => $ledger.note($call.await),
                Ledger::Sqlite($ledger) => $ledger.note($call.await),
            }
        })
        .instrument(traces::step(stringify!($call)))
        .await
    };
}

async fn bounded<T>(call: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(LedgerError::OutcomeUnknown("no answer in time".to_owned())),
    }
}

/// A question that was not answered has changed nothing.
fn read_only(error: LedgerError) -> LedgerError {
    match error {
        LedgerError::OutcomeUnknown(cause) => LedgerError::NotExecuted(cause),
        error => error,
    }
}

/// In time, or a sentence for whoever operates the service.
async fn logging_in<T>(
    url: &SecretString,
    work: impl Future<Output = sqlx::Result<T>>,
) -> std::result::Result<T, LoginError> {
    let options = url.expose_secret().parse::<PgConnectOptions>().ok();
    tokio::time::timeout(CONNECT_TIMEOUT, work)
        .await
        .map_err(|_elapsed| LoginError::no_answer(options.as_ref()))?
        .map_err(|error| LoginError::new(error, options.as_ref()))
}

impl Ledger {
    /// Connects to Postgres.
    ///
    /// # Errors
    /// [`LoginError`] when it cannot be reached or does not let us in.
    pub async fn connect_postgres(
        url: &SecretString,
        pooler: Pooler,
        max_connections: u32,
    ) -> std::result::Result<Self, LoginError> {
        // On the heap, here and below: what connecting needs is large, and would be part of whatever
        // waits for it.
        let connecting = Box::pin(PgLedger::connect(url.expose_secret(), pooler, max_connections));
        Ok(Self::Postgres(logging_in(url, connecting).await?))
    }

    /// Logs in to the same Postgres database by other means: another user, password or certificate.
    /// Nothing changes until [`Self::adopt`].
    ///
    /// # Errors
    /// [`LoginError`] when that database does not let us in, or it is another one.
    pub async fn try_login(
        &self,
        url: &SecretString,
    ) -> std::result::Result<PgConnectOptions, LoginError> {
        match self {
            Self::Postgres(ledger) => {
                logging_in(url, Box::pin(ledger.try_login(url.expose_secret()))).await
            }
            Self::Sqlite(_) => Err(LoginError::final_word("Postgres needs a restart")),
        }
    }

    /// Every connection from now on is made this way.
    pub fn adopt(&self, login: PgConnectOptions) {
        if let Self::Postgres(ledger) = self {
            ledger.adopt(login);
        }
    }

    /// Opens or makes a SQLite file.
    ///
    /// # Errors
    /// [`LedgerError`] when the file cannot be opened.
    pub async fn open_sqlite(file: &Path) -> Result<Self> {
        let connecting = Box::pin(SqliteLedger::connect(file, SQLITE_ACQUIRE_TIMEOUT));
        Ok(Self::Sqlite(connecting.await?))
    }

    /// The database file's pool, when there is one.
    #[must_use]
    pub fn sqlite_pool(&self) -> Option<SqlitePool> {
        match self {
            Self::Postgres(_) => None,
            Self::Sqlite(ledger) => Some(ledger.pool()),
        }
    }

    /// `postgres` or `sqlite`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// Brings the schema up to date, one process at a time. With nothing to do it only reads.
    /// Migrations that a newer release has applied are left alone, so that an old replica can still
    /// start.
    ///
    /// # Errors
    /// What the database says, as text for whoever operates the service.
    pub async fn migrate(&self, postgres_url: Option<&SecretString>) -> anyhow::Result<()> {
        if self.is_migrated().await? {
            return Ok(());
        }
        match (self, postgres_url) {
            (Self::Postgres(_), Some(url)) => {
                migrations::run_postgres(url.expose_secret(), &POSTGRES_MIGRATIONS).await
            }
            (Self::Postgres(_), None) => anyhow::bail!("migrating Postgres needs its URL"),
            (Self::Sqlite(ledger), _) => {
                migrations::run_sqlite(&ledger.pool(), &SQLITE_MIGRATIONS).await
            }
        }
    }

    /// Drops what only replicas of an older release need. None may be running, or start again.
    ///
    /// # Errors
    /// What the database says; finishing again is safe.
    pub async fn finish(&self, postgres_url: Option<&SecretString>) -> anyhow::Result<()> {
        match (self, postgres_url) {
            (Self::Postgres(_), Some(url)) => {
                migrations::finish_postgres(url.expose_secret()).await
            }
            (Self::Postgres(_), None) => anyhow::bail!("migrating Postgres needs its URL"),
            // One process holds the file, so no older release uses it.
            (Self::Sqlite(_), _) => Ok(()),
        }
    }

    /// Whether every migration of this release has been applied.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn is_migrated(&self) -> Result<bool> {
        let applied = match self {
            Self::Postgres(ledger) => ledger.applied_migrations().await,
            Self::Sqlite(ledger) => ledger.applied_migrations().await,
        };
        let ours = match self {
            Self::Postgres(_) => &POSTGRES_MIGRATIONS,
            Self::Sqlite(_) => &SQLITE_MIGRATIONS,
        };
        match applied.map_err(LedgerError::from) {
            Ok(applied) => Ok(ours.iter().all(|one| applied.contains(&one.version))),
            // A database that was never migrated has no such table, which is an answer too.
            Err(LedgerError::Inconsistent(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether rows can be written. Writes none, unless a write failed since.
    ///
    /// # Errors
    /// [`LedgerError`] when they cannot.
    pub async fn check_writable(&self) -> Result<()> {
        on_engine!(self, ledger => ledger.check_writable())
    }

    /// Connections in use, idle ones, and how many there may be.
    #[must_use]
    pub fn connections(&self) -> (u32, u32, u32) {
        let (size, idle, most) = match self {
            Self::Postgres(ledger) => ledger.connections(),
            Self::Sqlite(ledger) => ledger.connections(),
        };
        let idle = u32::try_from(idle).unwrap_or(size).min(size);
        (size - idle, idle, most)
    }

    /// What is still to do, of all tenants.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn backlog(&self) -> Result<Backlog> {
        let (owed, owed_since, pending, pending_since) =
            on_engine!(self, ledger => ledger.backlog()).map_err(read_only)?;
        Ok(Backlog { owed, owed_since, pending, pending_since })
    }

    /// Closes the connections once they are idle.
    pub async fn close(&self) {
        match self {
            Self::Postgres(ledger) => ledger.close().await,
            Self::Sqlite(ledger) => ledger.close().await,
        }
    }

    /// Records a decision or a withdrawal if the request is undecided, makes its task follow, and
    /// notes that a decision's signal is owed; all or nothing. The caller holds the signal's lease
    /// for [`LEASE`].
    ///
    /// # Errors
    /// [`LedgerError::OutcomeUnknown`] leaves open whether it was recorded; ask again by reading.
    pub async fn record_outcome(&self, writing: &Writing<'_>) -> Result<Recorded> {
        match on_engine!(self, ledger => ledger.record_outcome(writing))? {
            Written::Row(row) => {
                writing.count_unsendable();
                let waits =
                    row.task_status.as_deref() == Some(TaskStatus::WaitingApproval.as_str());
                let record = row.into_record()?;
                if waits {
                    crash_point!("task-waits");
                    // The task has other requests. If one of them was decided at this very moment,
                    // neither decision saw the other's; looking again after both does.
                    let _released =
                        self.release_task(&record.tenant, &record.task, writing.now).await;
                }
                Ok(Recorded::Won(record))
            }
            Written::Nothing => {
                let id = &writing.candidate.request.id;
                match self.find_request(writing.tenant(), id).await? {
                    Some(standing) => Ok(Recorded::Lost(standing)),
                    None if writing.only_newest && self.is_overtaken(writing).await? => {
                        Ok(Recorded::MovedOn)
                    }
                    None if writing.alone_since.is_some() => Ok(Recorded::AnothersSession),
                    None if writing.only_newest => Ok(Recorded::MovedOn),
                    None => {
                        let problem = "a request was neither decided nor found";
                        Err(LedgerError::Inconsistent(problem.to_owned()))
                    }
                }
            }
            Written::IdTaken => Ok(Recorded::IdTaken),
        }
    }

    /// Whether the ledger knows a newer request of Redis in the session.
    async fn is_overtaken(&self, writing: &Writing<'_>) -> Result<bool> {
        let newest = self.newest_of_redis(&writing.candidate.request.session).await?;
        Ok(newest.is_some_and(|newest| newest.created_at > writing.candidate.created_at))
    }

    /// Whether the ledger knows a request of Redis in this session that is another tenant's and was
    /// made since then.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn is_shared(
        &self,
        session: &SessionId,
        tenant: &TenantId,
        since: DateTime<Utc>,
    ) -> Result<bool> {
        on_engine!(self, ledger => ledger.is_shared(session, tenant, since)).map_err(read_only)
    }

    /// Lets a task go on that waits for nothing any more.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer; the task's next step lets it go on, too.
    pub async fn release_task(
        &self,
        tenant: &TenantId,
        task: &TaskId,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        on_engine!(self, ledger => ledger.release_task(tenant, task, now))
    }

    /// Registers a pending request and makes its task wait; all or nothing.
    ///
    /// # Errors
    /// [`LedgerError`]; registering the same request again is safe.
    pub async fn register(&self, writing: &Writing<'_>) -> Result<Registered> {
        let known = match on_engine!(self, ledger => ledger.register(writing))? {
            Written::Row(row) => {
                writing.count_unsendable();
                return Ok(Registered::New(row.into_record()?));
            }
            Written::Nothing => {
                self.find_request(writing.tenant(), &writing.candidate.request.id).await?
            }
            Written::IdTaken => return Ok(Registered::IdTaken),
        };
        Ok(known.map_or(Registered::TaskIsOver, Registered::Known))
    }

    /// The tenant's request of this id.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn find_request(&self, tenant: &TenantId, id: &RequestId) -> Result<Option<Record>> {
        let row = on_engine!(self, ledger => ledger.find_request(tenant, id)).map_err(read_only)?;
        row.map(RequestRow::into_record).transpose()
    }

    /// The request of Redis with this id, whosever it is: its key belongs to one tenant only.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn find_request_of_redis(&self, id: &RequestId) -> Result<Option<Record>> {
        let row =
            on_engine!(self, ledger => ledger.find_request_of_redis(id)).map_err(read_only)?;
        row.map(RequestRow::into_record).transpose()
    }

    /// What was decided of these requests of Redis, each with its session; those that nobody has
    /// decided are left out.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn decisions_of(
        &self,
        ids: &[RequestId],
    ) -> Result<Vec<(RequestId, SessionId, Decision)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = on_engine!(self, ledger => ledger.decisions_of(ids)).map_err(read_only)?;
        let readable = |(id, session, status, by, at, reason): DecisionRow| {
            let verdict = match (&*status, reason) {
                ("approved", None) => Verdict::Approve,
                ("rejected", Some(reason)) => Verdict::Reject { reason },
                _ => return None,
            };
            let by = UserId::parse(by).ok()?;
            let (id, session) = (RequestId::parse(id).ok()?, SessionId::parse(session).ok()?);
            Some((id, session, Decision { verdict, by, at }))
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Closes a pending request whose time is over and fails its task: no decision that is still
    /// under way can be recorded from then on. `None` when it was not pending, or not over.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn expire(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<Option<Record>> {
        let row = on_engine!(self, ledger => ledger.expire(tenant, id, now))?;
        row.map(RequestRow::into_record).transpose()
    }

    /// Where in a trace a request was written or decided last, if that was traced.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn trace_parent(&self, tenant: &TenantId, id: &RequestId) -> Result<Option<String>> {
        on_engine!(self, ledger => ledger.trace_parent(tenant, id)).map_err(read_only)
    }

    /// Up to `limit` pending requests whose time is over, the longest first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn overdue(
        &self,
        now: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<(TenantId, RequestId)>> {
        let ids = on_engine!(self, ledger => ledger.overdue(now, limit)).map_err(read_only)?;
        let readable =
            |(tenant, id)| Some((TenantId::parse(tenant).ok()?, RequestId::parse(id).ok()?));
        Ok(ids.into_iter().filter_map(readable).collect())
    }

    /// Notes that the agent has acted on an outcome; the first time counts. `None` when the tenant
    /// has no such request, it is pending, or it is another's and the caller no admin.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer; noting it again is safe.
    pub async fn acknowledge(
        &self,
        caller: &Caller,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<Option<Record>> {
        let row = on_engine!(self, ledger => ledger.acknowledge(caller, id, now))?;
        let record = row.map(RequestRow::into_record).transpose()?;
        if record.as_ref().is_some_and(Record::is_approved) {
            // Acknowledging again does this again.
            let tenant = &caller.tenant;
            on_engine!(self, ledger => ledger.complete_acted_task(tenant, id, now))?;
        }
        Ok(record)
    }

    /// Up to `limit` outcomes of a session with numbers above `after`, in their order, but for those
    /// of agents on Redis that had moved on. With `open_since`, only those settled since then on which
    /// no agent says to have acted.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn outcomes(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        after: i64,
        open_since: Option<DateTime<Utc>>,
        limit: i64,
    ) -> Result<Vec<Record>> {
        let rows =
            on_engine!(self, ledger => ledger.outcomes(tenant, session, after, open_since, limit))
                .map_err(read_only)?;
        rows.into_iter().map(RequestRow::into_record).collect()
    }

    /// The number of a session's last outcome; 0 without any.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn last_outcome(&self, tenant: &TenantId, session: &SessionId) -> Result<i64> {
        on_engine!(self, ledger => ledger.last_outcome(tenant, session)).map_err(read_only)
    }

    /// What was settled since then, of all tenants, each with its session.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn settled_since(&self, since: DateTime<Utc>) -> Result<Vec<(SessionId, String)>> {
        let settled = on_engine!(self, ledger => ledger.settled_since(since))?;
        let readable = |(session, request)| Some((SessionId::parse(session).ok()?, request));
        Ok(settled.into_iter().filter_map(readable).collect())
    }

    /// The newest request of Redis that is known in a session, whichever tenant's it is: Redis has
    /// one key for a session.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn newest_of_redis(&self, session: &SessionId) -> Result<Option<Record>> {
        let row = on_engine!(self, ledger => ledger.newest_of_redis(session)).map_err(read_only)?;
        row.map(RequestRow::into_record).transpose()
    }

    /// Owes a settled decision's signal once more. `None` when somebody else was faster.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn owe_again(&self, seen: &Record, now: DateTime<Utc>) -> Result<Option<Record>> {
        let row = on_engine!(self, ledger => ledger.owe_again(seen, now, now + LEASE))?;
        row.map(RequestRow::into_record).transpose()
    }

    /// Takes the lease of up to `limit` rows of the outbox that are due, until then.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn claim_outbox(
        &self,
        kind: OutboxKind,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<OutboxRow>> {
        on_engine!(self, ledger => ledger.claim_outbox(kind, now, until, limit))
    }

    /// Gives a lease back: the row of the outbox is due again at `due_at`.
    ///
    /// # Errors
    /// [`LedgerError`]; the lease then runs out by itself.
    pub async fn postpone_outbox(&self, id: i64, due_at: DateTime<Utc>) -> Result<()> {
        on_engine!(self, ledger => ledger.postpone_outbox(id, due_at))
    }

    /// Deletes rows of the outbox whose receivers have taken them.
    ///
    /// # Errors
    /// [`LedgerError`]; the rows are then sent again once their leases are over.
    pub async fn delete_outbox(&self, ids: &[i64]) -> Result<()> {
        on_engine!(self, ledger => ledger.delete_outbox(ids))
    }

    /// When the oldest row of a kind in the outbox was written.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn oldest_in_outbox(&self, kind: OutboxKind) -> Result<Option<DateTime<Utc>>> {
        on_engine!(self, ledger => ledger.oldest_in_outbox(kind)).map_err(read_only)
    }

    /// Up to `limit` signals of Redis that went out since then and that nobody heard, of requests made
    /// since `patient`; the latest first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn unheard(
        &self,
        since: DateTime<Utc>,
        patient: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<Record>> {
        let rows =
            on_engine!(self, ledger => ledger.unheard(since, patient, limit)).map_err(read_only)?;
        rows.into_iter().map(RequestRow::into_record).collect()
    }

    /// Owes a signal once more that was sent and that nobody heard, and takes its lease, for
    /// [`LEASE`]. `None` when somebody has heard it, or somebody else was faster.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn claim_unheard(&self, seen: &Record, now: DateTime<Utc>) -> Result<Option<Record>> {
        let row = on_engine!(self, ledger => ledger.claim_unheard(seen, now, now + LEASE))?;
        row.map(RequestRow::into_record).transpose()
    }

    /// Notes that the agent of this user was answered the signal of a request of Redis over HTTP.
    /// Answers whether the request names that user: else nothing is noted.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn heard(
        &self,
        tenant: &TenantId,
        user: &UserId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        on_engine!(self, ledger => ledger.heard(tenant, user, id, now))
    }

    /// Takes the lease of up to `limit` rows whose delivery is due, for [`LEASE`].
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn claim_owed(&self, now: DateTime<Utc>, limit: i64) -> Result<Vec<Record>> {
        let rows = on_engine!(self, ledger => ledger.claim_owed(now, now + LEASE, limit))?;
        // One odd row must not keep the others from being sent.
        let readable = |row: RequestRow| {
            row.into_record()
                .inspect_err(|error| tracing::error!(%error, "a row cannot be sent"))
                .ok()
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Notes what became of deliveries, but for those of rows that have been owed anew since.
    ///
    /// # Errors
    /// [`LedgerError`]; noting it again is safe.
    pub async fn record_receipts(&self, receipts: &[DeliveryReceipt]) -> Result<()> {
        on_engine!(self, ledger => ledger.record_receipts(receipts))
    }

    /// Owes again up to [`LOST_AT_ONCE`] signals that Redis may have lost, the newest first: those
    /// that went into a history of its data that is none of `replication_ids`, and that would be under
    /// their keys still. Answers how many there were.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn owe_lost(&self, replication_ids: &[String], now: DateTime<Utc>) -> Result<u64> {
        let replication_ids = replication_ids.join(" ");
        let since = now - TimeDelta::seconds(i64::try_from(SIGNAL_TTL_SECONDS).unwrap_or(0));
        on_engine!(self, ledger => ledger.owe_lost(&replication_ids, since, now))
    }

    /// Gives a lease back: the delivery is due again at `due_at`.
    ///
    /// # Errors
    /// [`LedgerError`]; the lease then runs out by itself.
    pub async fn postpone(&self, record: &Record, due_at: DateTime<Utc>) -> Result<()> {
        on_engine!(self, ledger => ledger.postpone(record, due_at))
    }

    /// Deletes up to `limit` requests that were settled before then, and whose signals went out
    /// before then; says how many. Of what is gone the ledger remembers the highest number of an
    /// outcome, and which tasks were ours.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer; purging again is safe.
    pub async fn purge_requests(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        let purged = on_engine!(self, ledger => ledger.purge_requests(before, limit))?;
        Ok(u64::try_from(purged).unwrap_or(0))
    }

    /// How many requests of a tenant, or of one person, that were registered over HTTP are pending;
    /// counts no further than `limit`.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn count_pending(
        &self,
        tenant: &TenantId,
        user: Option<&UserId>,
        limit: u64,
    ) -> Result<u64> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let count = match user {
            Some(user) => {
                on_engine!(self, ledger => ledger.count_pending_of_person(tenant, user, limit))
            }
            None => on_engine!(self, ledger => ledger.count_pending_of_tenant(tenant, limit)),
        };
        Ok(u64::try_from(count.map_err(read_only)?).unwrap_or(0))
    }

    /// Adds to the bytes that a tenant has registered in an hour; says how many there are then.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn add_usage(
        &self,
        tenant: &TenantId,
        hour: DateTime<Utc>,
        bytes: u64,
    ) -> Result<u64> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let used = on_engine!(self, ledger => ledger.add_usage(tenant, hour, bytes))?;
        Ok(u64::try_from(used).unwrap_or(0))
    }

    /// Closes up to `limit` tasks that we made for requests that were approved and signalled before
    /// then, and that nobody has reported on; says how many requests that were.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer; doing it again is safe.
    pub async fn close_open_tasks(
        &self,
        before: DateTime<Utc>,
        limit: i64,
        now: DateTime<Utc>,
    ) -> Result<u64> {
        let closed = on_engine!(self, ledger => ledger.close_open_tasks(before, limit, now))?;
        Ok(u64::try_from(closed).unwrap_or(0))
    }

    /// Notes that the agent of an approved registered request asked for the decision. The first time
    /// counts.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn note_asked(
        &self,
        tenant: &TenantId,
        user: &UserId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        on_engine!(self, ledger => ledger.note_asked(tenant, user, id, now))
    }

    /// Records refused attempts to decide.
    ///
    /// # Errors
    /// [`LedgerError`]; recording them again may record them twice.
    pub async fn insert_refused_attempts(&self, attempts: &[RefusedAttempt]) -> Result<()> {
        on_engine!(self, ledger => ledger.insert_refused_attempts(attempts))
    }

    /// Deletes up to `limit` refused attempts from before then; says how many.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer; purging again is safe.
    pub async fn purge_refused_attempts(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        on_engine!(self, ledger => ledger.purge_refused_attempts(before, limit))
    }

    /// Hands over the refused attempts of a span of time, as [`Self::export`] does decisions.
    ///
    /// # Errors
    /// [`sqlx::Error`], for whoever operates the service.
    pub async fn export_refused_attempts(
        &self,
        span: &Span,
        write: impl FnMut(&ExportedAttempt) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        match self {
            Self::Postgres(ledger) => ledger.export_refused_attempts(span, write).await,
            Self::Sqlite(ledger) => ledger.export_refused_attempts(span, write).await,
        }
    }

    /// Deletes up to `limit` completed and failed tasks that nobody has touched since then and whose
    /// requests are neither pending nor owed; says how many.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer; purging again is safe.
    pub async fn purge_tasks(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        let purged = on_engine!(self, ledger => ledger.purge_tasks(before, limit))?;
        Ok(u64::try_from(purged).unwrap_or(0))
    }

    /// How many requests, refused attempts and tasks the purges would delete in all, without a limit.
    ///
    /// # Errors
    /// [`sqlx::Error`], for whoever operates the service.
    pub async fn count_old(
        &self,
        requests: Option<DateTime<Utc>>,
        tasks: Option<DateTime<Utc>>,
    ) -> sqlx::Result<[u64; 3]> {
        let counts = match self {
            Self::Postgres(ledger) => ledger.count_old(requests, tasks).await?,
            Self::Sqlite(ledger) => ledger.count_old(requests, tasks).await?,
        };
        Ok(counts.map(|count| u64::try_from(count).unwrap_or(0)))
    }

    /// Hands over what was decided in a span of time, row by row, in the order of the decisions; as
    /// it was at one moment, however long the reader takes. Ends early with what `write` says when
    /// it fails.
    ///
    /// # Errors
    /// [`sqlx::Error`], for whoever operates the service.
    pub async fn export(
        &self,
        span: &Span,
        write: impl FnMut(&Exported) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        match self {
            Self::Postgres(ledger) => ledger.export(span, write).await,
            Self::Sqlite(ledger) => ledger.export(span, write).await,
        }
    }

    /// Adds a task.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn insert_task(&self, task: &Task) -> Result<()> {
        on_engine!(self, ledger => ledger.insert_task(task))
    }

    /// A tenant's task.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn find_task(&self, tenant: &TenantId, id: &TaskId) -> Result<Option<Task>> {
        let row = on_engine!(self, ledger => ledger.find_task(tenant, id)).map_err(read_only)?;
        row.map(TaskRow::into_task).transpose()
    }

    /// Writes a task over what it was; `false` when it is not that any more.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn replace_task(&self, before: &Task, after: &Task) -> Result<bool> {
        on_engine!(self, ledger => ledger.replace_task(before, after))
    }

    /// One page of tasks, newest first, and how many there are in all: exact up to
    /// [`COUNTED_TASKS`], else the least that there can be, so that listing takes no longer with a
    /// million tasks than with ten.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn list_tasks(&self, filter: &TaskFilter) -> Result<(Vec<Task>, u64)> {
        let (rows, counted) =
            on_engine!(self, ledger => ledger.list_tasks(filter)).map_err(read_only)?;
        let tasks = rows.into_iter().map(TaskRow::into_task).collect::<Result<Vec<_>>>()?;
        let counted = u64::try_from(counted).unwrap_or(0);
        let (before, here) = (u64::from(filter.page) * u64::from(filter.size), tasks.len() as u64);
        let is_counted = counted <= COUNTED_TASKS.unsigned_abs();
        // A full page may be followed by another one.
        let seen = before + here + u64::from(here == u64::from(filter.size));
        let total = if is_counted || here == 0 { counted } else { counted.max(seen) };
        Ok((tasks, total))
    }
}

fn origin_str(origin: Origin) -> &'static str {
    match origin {
        Origin::Redis => "redis",
        Origin::Http => "http",
    }
}

fn delivery_str(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Owed => "owed",
        Delivery::Sent => "sent",
        Delivery::Superseded => "superseded",
    }
}

/// Request, session, status, by whom, when and why: see [`Ledger::decisions_of`].
type DecisionRow = (String, String, String, String, DateTime<Utc>, Option<String>);

/// A row of `hitl_request`, as far as it is read back.
#[derive(Debug, sqlx::FromRow)]
pub struct RequestRow {
    request_id: String,
    origin: String,
    tenant_id: String,
    session_id: String,
    user_id: Option<String>,
    fingerprint: String,
    content_hash: String,
    document: String,
    task_id: String,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    status: String,
    decided_by: Option<String>,
    decided_at: Option<DateTime<Utc>>,
    reason: Option<String>,
    delivery: String,
    owed_since: DateTime<Utc>,
    listeners: Option<i64>,
    sent_to: Option<String>,
    sent_at: Option<DateTime<Utc>>,
    outcome: Option<i64>,
    settled_at: Option<DateTime<Utc>>,
    acted_at: Option<DateTime<Utc>>,
    #[sqlx(default)]
    task_status: Option<String>,
}

impl RequestRow {
    fn into_record(self) -> Result<Record> {
        let odd =
            |what: &str| LedgerError::Inconsistent(format!("a request's {what} is not valid"));
        let decided = |verdict| -> Result<State> {
            let by = self.decided_by.clone().and_then(|by| UserId::parse(by).ok());
            let by = by.ok_or_else(|| odd("decided_by"))?;
            let at = self.decided_at.ok_or_else(|| odd("decided_at"))?;
            Ok(State::Decided(Decision { verdict, by, at }))
        };
        let state = match self.status.as_str() {
            "pending" => State::Pending,
            "approved" => decided(Verdict::Approve)?,
            "rejected" => {
                let reason = self.reason.clone().ok_or_else(|| odd("reason"))?;
                decided(Verdict::Reject { reason })?
            }
            "expired" => State::Expired,
            "cancelled" => State::Cancelled,
            _ => return Err(odd("status")),
        };
        Ok(Record {
            id: RequestId::parse(self.request_id).map_err(|_invalid| odd("request_id"))?,
            origin: if self.origin == "http" { Origin::Http } else { Origin::Redis },
            session: SessionId::parse(self.session_id).map_err(|_invalid| odd("session_id"))?,
            tenant: TenantId::parse(self.tenant_id).map_err(|_invalid| odd("tenant_id"))?,
            user: self.user_id.map(UserId::parse).transpose().map_err(|_invalid| odd("user_id"))?,
            fingerprint: self.fingerprint,
            content_hash: self.content_hash,
            document: self.document,
            task: TaskId::parse(self.task_id).map_err(|_invalid| odd("task_id"))?,
            created_at: self.created_at,
            expires_at: self.expires_at,
            state,
            delivery: match self.delivery.as_str() {
                "owed" => Delivery::Owed,
                "sent" => Delivery::Sent,
                _ => Delivery::Superseded,
            },
            owed_since: self.owed_since,
            listeners: self.listeners,
            replication_id: self.sent_to,
            sent_at: self.sent_at,
            sequence: self.outcome,
            closed_at: self.settled_at,
            acted_at: self.acted_at,
        })
    }
}

/// A row of `agent_task`.
#[derive(Debug, sqlx::FromRow)]
pub struct TaskRow {
    task_id: String,
    user_id: String,
    tenant_id: String,
    task_type: String,
    status: String,
    progress: i32,
    description: Option<String>,
    input_data: Option<String>,
    result_data: Option<String>,
    plan_steps: String,
    hitl_request_id: Option<String>,
    error_message: Option<String>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TaskRow {
    fn into_task(self) -> Result<Task> {
        let odd = |what: &str| LedgerError::Inconsistent(format!("a task's {what} is not valid"));
        Ok(Task {
            id: TaskId::parse(self.task_id).map_err(|_invalid| odd("task_id"))?,
            user: UserId::parse(self.user_id).map_err(|_invalid| odd("user_id"))?,
            tenant: TenantId::parse(self.tenant_id).map_err(|_invalid| odd("tenant_id"))?,
            task_type: self.task_type,
            status: TaskStatus::parse(&self.status).ok_or_else(|| odd("status"))?,
            progress: self.progress,
            description: self.description,
            input_data: self.input_data,
            result_data: self.result_data,
            plan_steps: self.plan_steps,
            hitl_request_id: self.hitl_request_id.and_then(|id| RequestId::parse(id).ok()),
            error_message: self.error_message,
            started_at: self.started_at,
            completed_at: self.completed_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}
