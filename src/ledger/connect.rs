//! Opens the ledger of this process, checks whether it can write, and closes it.

use std::future::Future;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _, raw_sql};

use super::batches::Batches;
use super::connections::{Connections, Pooler, log_in, share_a_session};
use super::engine::{Database, Engine};
use super::error::Result;
use super::known_bindings::KnownBindings;
use super::login::LoginError;
use super::receipts::Receipts;
use super::request_row::RequestRow;
use super::totals::Totals;

/// The longest wait for Postgres at start and when a login is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for the only connection to SQLite, which all callers share: longer than a disk
/// stalls that is soon well again.
const SQLITE_ACQUIRE_TIMEOUT: Duration = Duration::from_millis(1900);

/// The ledger of this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(super) engine: Engine,
    pub(super) batches: Batches<RequestRow>,
    /// The batches of changes to tasks by their agents. A row that was written is the task's id.
    pub(super) task_batches: Batches<(String,)>,
    pub(super) receipts: Receipts,
    pub(super) totals: Totals,
    pub(super) bindings: KnownBindings,
    /// Whether people are told of requests, so that writes also insert their events.
    tells: Arc<AtomicBool>,
}

impl Ledger {
    fn new(database: Database) -> Self {
        // Writes that wait for a locked row leave a quarter of the connections to others.
        let half = match &database {
            Database::Postgres(connections) => connections.count().2 / 2,
            Database::Sqlite(_) => 1,
        };
        let half = usize::try_from(half).unwrap_or(1);
        let engine = Engine::new(database);
        Self {
            batches: Batches::new(engine.clone(), half),
            task_batches: Batches::new(engine.clone(), half / 2),
            engine,
            receipts: Receipts::default(),
            totals: Totals::default(),
            bindings: KnownBindings::default(),
            tells: Arc::default(),
        }
    }

    /// Whether writes also insert the events that people are told of.
    pub(super) fn tells(&self) -> bool {
        self.tells.load(Ordering::Relaxed)
    }

    /// From now on, writes also insert the events that people are told of, or no longer do.
    pub fn set_tells(&self, tells: bool) {
        self.tells.store(tells, Ordering::Relaxed);
    }

    /// Connects to Postgres.
    ///
    /// # Errors
    /// [`LoginError`] when Postgres cannot be reached, refuses the login, or cannot be used.
    pub async fn connect_postgres(
        url: &SecretString,
        pooler: Pooler,
        max_connections: u32,
    ) -> std::result::Result<Self, LoginError> {
        // Boxed, here and below: the future is large, and would enlarge the futures that await it.
        let connecting = Box::pin(async {
            let options = check_login(url.expose_secret(), pooler).await?;
            Connections::new(options, pooler, max_connections)
        });
        Ok(Self::new(Database::Postgres(within_connect_timeout(url, connecting).await?)))
    }

    /// Tries another login to the same Postgres database: another user, password or certificate.
    /// The ledger uses the new login only after [`Self::adopt`].
    ///
    /// # Errors
    /// [`LoginError`] when Postgres refuses the login, when `url` names another server or database,
    /// or when the ledger is SQLite.
    pub async fn try_login(
        &self,
        url: &SecretString,
    ) -> std::result::Result<PgConnectOptions, LoginError> {
        fn place(options: &PgConnectOptions) -> impl PartialEq {
            // A URL without a database name means the database named after the user.
            let database = options.get_database().unwrap_or(options.get_username());
            (options.get_host(), options.get_port(), options.get_socket(), database)
        }
        let Database::Postgres(connections) = &self.engine.database else {
            return Err(LoginError::permanent("Postgres needs a restart"));
        };
        let attempt = Box::pin(async {
            let offered = PgConnectOptions::from_str(url.expose_secret())?;
            let current = connections.options();
            if place(&offered) != place(&current) {
                let reason = "it is another server or database, which needs a restart";
                return Err(sqlx::Error::Configuration(reason.into()));
            }
            check_login(url.expose_secret(), connections.pooler()).await
        });
        within_connect_timeout(url, attempt).await
    }

    /// Uses this login for every new connection. Open connections stay open, for at most half an
    /// hour.
    pub fn adopt(&self, login: PgConnectOptions) {
        if let Database::Postgres(connections) = &self.engine.database {
            connections.set_options(login);
        }
    }

    /// Opens a SQLite file, or creates it. WAL mode with full synchronisation, so an acknowledged
    /// decision survives a power cut. One connection, so that writers queue in order and do not get
    /// `SQLITE_BUSY`.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the file cannot be opened or written.
    pub async fn open_sqlite(file: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(1));
        let connecting = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(SQLITE_ACQUIRE_TIMEOUT)
            // SQLite rolls back by itself when the disk is full. sqlx does not notice, and could
            // not begin another transaction on this connection. Such a connection is closed.
            .after_release(|connection, _| {
                Box::pin(async move {
                    // The answer to the ping comes after every queued command, also a rollback.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options);
        let pool = Box::pin(connecting).await?;
        // SQLite opens a write-protected file for reading only, without an error. A write shows it.
        write_header(&pool).await?;
        Ok(Self::new(Database::Sqlite(pool)))
    }

    /// The pool of the SQLite file; `None` with Postgres.
    #[must_use]
    pub fn sqlite_pool(&self) -> Option<SqlitePool> {
        match &self.engine.database {
            Database::Postgres(_) => None,
            Database::Sqlite(pool) => Some(pool.clone()),
        }
    }

    /// The name of the engine: `postgres` or `sqlite`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        match self.engine.database {
            Database::Postgres(_) => "postgres",
            Database::Sqlite(_) => "sqlite",
        }
    }

    /// Checks that rows can be written. Writes only after a write has failed, until a check
    /// succeeds.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when rows cannot be written.
    pub async fn check_writable(&self) -> Result<()> {
        let checking = async {
            match &self.engine.database {
                Database::Postgres(connections) => connections.check_writable().await?,
                // The write lock is granted only if the file may be written. Taking it writes
                // nothing.
                Database::Sqlite(pool) => {
                    pool.begin_with("BEGIN IMMEDIATE").await?.rollback().await?;
                }
            }
            if self.engine.has_write_failed() {
                match &self.engine.database {
                    // Enough bytes to fail on a full disk.
                    Database::Postgres(connections) => connections.run_raw(WRITE_AND_UNDO).await?,
                    Database::Sqlite(pool) => write_header(pool).await?,
                }
                self.engine.write_succeeded();
            }
            Ok(())
        };
        self.engine.call("ledger.check_writable", checking).await
    }

    /// The number of connections in use, of idle connections, and the maximum of both together.
    #[must_use]
    pub fn connections(&self) -> (u32, u32, u32) {
        let (size, idle, most) = match &self.engine.database {
            Database::Postgres(connections) => connections.count(),
            Database::Sqlite(pool) => (pool.size(), pool.num_idle(), 1),
        };
        let idle = u32::try_from(idle).unwrap_or(size).min(size);
        (size - idle, idle, most)
    }

    /// Closes the connections once they are idle.
    pub async fn close(&self) {
        match &self.engine.database {
            Database::Postgres(connections) => connections.close().await,
            Database::Sqlite(pool) => pool.close().await,
        }
    }
}

/// Writes 16 rows of about 1 KB and rolls back.
const WRITE_AND_UNDO: &str = "BEGIN;
     INSERT INTO owned_task (tenant_id, task_id)
     SELECT '', n || repeat(md5(random()::text), 32) FROM generate_series(1, 16) AS n;
     ROLLBACK";

/// Sets `user_version`, a field of the file's header that applications may use and this service
/// does not. Its value stays 0, but SQLite writes the page: the smallest write that reaches the
/// disk.
async fn write_header(pool: &SqlitePool) -> sqlx::Result<()> {
    sqlx::query("PRAGMA user_version = 0").execute(pool).await.map(drop)
}

/// Runs `work` within [`CONNECT_TIMEOUT`]. Turns every error into a sentence for the operator.
async fn within_connect_timeout<T>(
    url: &SecretString,
    work: impl Future<Output = sqlx::Result<T>>,
) -> std::result::Result<T, LoginError> {
    let options = url.expose_secret().parse::<PgConnectOptions>().ok();
    tokio::time::timeout(CONNECT_TIMEOUT, work)
        .await
        .map_err(|_elapsed| LoginError::no_answer(options.as_ref()))?
        .map_err(|error| LoginError::new(error, options.as_ref()))
}

/// Makes a connection, checks the database and the pooler, and returns the options for connections.
async fn check_login(url: &str, pooler: Pooler) -> sqlx::Result<PgConnectOptions> {
    // PgBouncer refuses the start-up parameters `options` and `extra_float_digits`.
    let options = PgConnectOptions::from_str(url)?;
    let options = options.application_name("aura-hitl").extra_float_digits(None);
    let mut connection = log_in(&options, pooler).await?;
    let encoding = raw_sql("SHOW server_encoding").fetch_one(&mut connection).await?;
    let encoding: String = encoding.try_get(0)?;
    if encoding != "UTF8" {
        let reason = format!(
            "the database's encoding is {encoding}, which cannot hold every text; create it with \
             ENCODING 'UTF8' TEMPLATE template0"
        );
        return Err(sqlx::Error::Configuration(reason.into()));
    }
    connection.close().await?;
    if pooler == Pooler::None && share_a_session(&options).await {
        let reason = "a pooler in transaction mode stands before it (two connections share one \
                      session); set database_pooler = \"transaction\", or take its session mode";
        return Err(sqlx::Error::Configuration(reason.into()));
    }
    Ok(options)
}
