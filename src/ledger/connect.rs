//! The ledger of this process: how it is reached, whether it can write, and its end.

use std::future::Future;
use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _, raw_sql};

use super::connections::{Connections, Pooler, log_in, share_a_session};
use super::engine::{Database, Engine};
use super::error::Result;
use super::login::LoginError;
use super::receipts::Receipts;

/// Longest to wait for Postgres at start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest to wait for SQLite's only connection, for which everybody queues.
const SQLITE_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);

/// The ledger of this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(super) engine: Engine,
    pub(super) receipts: Receipts,
}

impl Ledger {
    fn new(database: Database) -> Self {
        Self { engine: Engine::new(database), receipts: Receipts::default() }
    }

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
        let connecting = Box::pin(async {
            let options = reach(url.expose_secret(), pooler).await?;
            Connections::new(options, pooler, max_connections)
        });
        Ok(Self::new(Database::Postgres(logging_in(url, connecting).await?)))
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
        fn place(options: &PgConnectOptions) -> impl PartialEq {
            // Without a name it is the one of the user.
            let database = options.get_database().unwrap_or(options.get_username());
            (options.get_host(), options.get_port(), options.get_socket(), database)
        }
        let Database::Postgres(connections) = &self.engine.database else {
            return Err(LoginError::final_word("Postgres needs a restart"));
        };
        let trying = Box::pin(async {
            let new = PgConnectOptions::from_str(url.expose_secret())?;
            let current = connections.options();
            if place(&new) != place(&current) {
                let reason = "it is another server or database, which needs a restart";
                return Err(sqlx::Error::Configuration(reason.into()));
            }
            reach(url.expose_secret(), connections.pooler()).await
        });
        logging_in(url, trying).await
    }

    /// Every connection from now on is made this way. Those that are open live on, at most half an
    /// hour.
    pub fn adopt(&self, login: PgConnectOptions) {
        if let Database::Postgres(connections) = &self.engine.database {
            connections.set_options(login);
        }
    }

    /// Opens or makes a `SQLite` file, in WAL mode with full synchronisation: an acknowledged decision
    /// survives a power cut. One connection, so writers queue in order instead of meeting
    /// `SQLITE_BUSY`.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the file cannot be opened.
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
            // begin no transaction on this connection again.
            .after_release(|connection, _| {
                Box::pin(async move {
                    // What is queued before it, a rollback too, has run when this is answered.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options);
        let pool = Box::pin(connecting).await?;
        // SQLite opens a file that it may not write, for reading.
        write_header(&pool).await?;
        Ok(Self::new(Database::Sqlite(pool)))
    }

    /// The database file's pool, when there is one.
    #[must_use]
    pub fn sqlite_pool(&self) -> Option<SqlitePool> {
        match &self.engine.database {
            Database::Postgres(_) => None,
            Database::Sqlite(pool) => Some(pool.clone()),
        }
    }

    /// `postgres` or `sqlite`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        match self.engine.database {
            Database::Postgres(_) => "postgres",
            Database::Sqlite(_) => "sqlite",
        }
    }

    /// Whether rows can be written. Asking costs no write, unless a write failed since the last one
    /// that is known to have succeeded.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when they cannot.
    pub async fn check_writable(&self) -> Result<()> {
        let checking = async {
            match &self.engine.database {
                Database::Postgres(connections) => connections.check_writable().await?,
                // Taking the write lock tells whether the file may be written, and writes nothing.
                Database::Sqlite(pool) => {
                    pool.begin_with("BEGIN IMMEDIATE").await?.rollback().await?;
                }
            }
            if self.engine.has_write_failed() {
                match &self.engine.database {
                    // As many bytes as a full disk has no room for.
                    Database::Postgres(connections) => connections.run_raw(WRITE_AND_UNDO).await?,
                    Database::Sqlite(pool) => write_header(pool).await?,
                }
                self.engine.write_succeeded();
            }
            Ok(())
        };
        self.engine.call("ledger.check_writable", checking).await
    }

    /// Connections in use, idle ones, and how many there may be.
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

const WRITE_AND_UNDO: &str = "BEGIN;
     INSERT INTO owned_task (tenant_id, task_id)
     SELECT '', n || repeat(md5(random()::text), 32) FROM generate_series(1, 16) AS n;
     ROLLBACK";

/// Writes the header's page as it was: the smallest write that reaches the disk. The page has a field
/// for applications, which nobody reads here.
async fn write_header(pool: &SqlitePool) -> sqlx::Result<()> {
    sqlx::query("PRAGMA user_version = 0").execute(pool).await.map(drop)
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

/// How connections are made, after one has been: it says what is wrong.
async fn reach(url: &str, pooler: Pooler) -> sqlx::Result<PgConnectOptions> {
    // Without the start-up parameters that PgBouncer refuses: `options` and `extra_float_digits`.
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
