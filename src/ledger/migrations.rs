//! Applies the migrations that a database lacks. First reads which were applied. Takes a lock only
//! if some are missing, and waits for the lock at most [`LOCK_TIMEOUT`].
//!
//! On Postgres the lock belongs to a transaction on a connection of its own, so that a pooler
//! cannot leave the lock behind on a server connection. Processes that wait for the lock hold no
//! snapshot between two tries, so `CREATE INDEX CONCURRENTLY` does not wait for them. Migrations
//! never run on the pool, because its statements have time-outs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, SqlitePool, raw_sql};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::connect::Ledger;
use super::engine::{Database, Statement};
use super::error::{LedgerError, Result};

static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The longest wait for a connection, and for another process that migrates.
const LOCK_TIMEOUT: Duration = Duration::from_mins(1);
/// The pause between two tries to take the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(250);
/// The longest wait of a migration for the lock on a table: later statements queue behind the
/// migration. In the syntax of Postgres.
const TABLE_LOCK_TIMEOUT: &str = "10s";
/// The key of the advisory lock: the first eight bytes of "aura-hitl".
const LOCK_KEY: i64 = i64::from_be_bytes(*b"aura-hit");

/// The table of applied migrations, as sqlx's migrator creates it: older releases used that
/// migrator.
const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
)";

/// Fills `owned_task.tenant_id` in the rows of older releases, which wrote an empty tenant. The
/// task id finds the tenant, because task ids are still unique across tenants.
macro_rules! fill_owner_tenants {
    () => {
        "UPDATE owned_task o SET tenant_id = t.tenant_id FROM agent_task t
          WHERE o.tenant_id = '' AND t.task_id = o.task_id;"
    };
}

/// Replaces the primary key without the tenant by the unique index with the tenant. Only replicas
/// of an older release need the old key. The transaction locks one table, for a moment: with locks
/// on two tables it could deadlock with another statement.
macro_rules! replace_key {
    ($table:literal, $before:expr) => {
        concat!(
            "BEGIN;
             SET LOCAL lock_timeout = '5s';
             LOCK TABLE ",
            $table,
            " IN ACCESS EXCLUSIVE MODE;
             DO $$ BEGIN
                 IF EXISTS (SELECT FROM pg_constraint
                             WHERE conname = '",
            $table,
            "_pkey' AND conrelid = '",
            $table,
            "'::regclass) THEN ",
            $before,
            " ALTER TABLE ",
            $table,
            " DROP CONSTRAINT ",
            $table,
            "_pkey;
                     ALTER TABLE ",
            $table,
            " ADD CONSTRAINT ",
            $table,
            "_key PRIMARY KEY USING INDEX ",
            $table,
            "_key;
                 END IF;
             END $$;
             COMMIT"
        )
    };
}

/// Creates the index for the new key of `owned_task`. Migrations create those of the other two
/// tables.
const OWNED_TASK_KEY: &str = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS owned_task_key ON \
                              owned_task (tenant_id, task_id)";

/// Drops the schema parts that only replicas of an older release need: the triggers that carry
/// deliveries between the tables of both releases, the table of traces, indexes, and keys without the
/// tenant. The order matters: the tenants in `owned_task` are filled while task ids are still unique
/// across tenants.
const FINISH: [&str; 11] = [
    "SET lock_timeout = '5s'; \
     DROP TRIGGER IF EXISTS hitl_request_of_delivery ON hitl_delivery; RESET lock_timeout",
    "SET lock_timeout = '5s'; \
     DROP TRIGGER IF EXISTS hitl_delivery_of_request ON hitl_request; RESET lock_timeout",
    "DROP FUNCTION IF EXISTS hitl_delivery_of_request, hitl_request_of_delivery",
    "SET lock_timeout = '5s'; DROP TABLE IF EXISTS hitl_trace; RESET lock_timeout",
    "SET lock_timeout = '5s';
     DROP INDEX IF EXISTS hitl_request_session, hitl_request_task, hitl_request_task_open,
                          hitl_request_pending, hitl_request_owed, hitl_request_sent,
                          hitl_request_pending_of, hitl_request_newest, hitl_request_due,
                          hitl_request_resent, hitl_request_task_due, hitl_request_task_waits;
     RESET lock_timeout",
    "SET lock_timeout = '5s'; DROP INDEX IF EXISTS hitl_outbox_due, hitl_outbox_turn, \
     hitl_outbox_age, agent_task_newest, hitl_grant_covers, hitl_grant_granter; \
     RESET lock_timeout",
    fill_owner_tenants!(),
    OWNED_TASK_KEY,
    replace_key!("hitl_request", ""),
    replace_key!(
        "owned_task",
        concat!(
            fill_owner_tenants!(),
            // The remaining rows belong to tasks that no longer exist.
            " DELETE FROM owned_task WHERE tenant_id = '';
              ALTER TABLE owned_task ALTER COLUMN tenant_id DROP DEFAULT;"
        )
    ),
    replace_key!("agent_task", ""),
];

impl Ledger {
    /// Brings the schema up to date, one process at a time. Only reads if the schema is up to date.
    /// Ignores migrations of a newer release, so that a replica of this release can still start.
    ///
    /// # Errors
    /// An error for the operator when the ledger does not answer, another process holds the lock
    /// for too long, or a migration fails or was applied with another text.
    pub async fn migrate(&self, postgres_url: Option<&SecretString>) -> anyhow::Result<()> {
        if self.is_migrated().await? {
            return Ok(());
        }
        match (&self.engine.database, postgres_url) {
            (Database::Postgres(_), Some(url)) => {
                run_postgres(url.expose_secret(), &POSTGRES_MIGRATIONS).await
            }
            (Database::Postgres(_), None) => bail!("migrating Postgres needs its URL"),
            (Database::Sqlite(pool), _) => run_sqlite(pool, &SQLITE_MIGRATIONS).await,
        }
    }

    /// Drops the schema parts that only replicas of an older release need. No such replica may be
    /// running, or start again.
    ///
    /// # Errors
    /// An error for the operator when Postgres cannot be reached, another process holds the lock
    /// for too long, or a step fails. Finishing again is safe.
    pub async fn finish(&self, postgres_url: Option<&SecretString>) -> anyhow::Result<()> {
        match (&self.engine.database, postgres_url) {
            (Database::Postgres(_), Some(url)) => finish_postgres(url.expose_secret()).await,
            (Database::Postgres(_), None) => bail!("migrating Postgres needs its URL"),
            // One process holds the file, so no older release uses it.
            (Database::Sqlite(_), _) => Ok(()),
        }
    }

    /// Whether every migration of this release has been applied.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn is_migrated(&self) -> Result<bool> {
        const APPLIED: Statement = Statement::new(
            "ledger.applied_migrations",
            "SELECT version FROM _sqlx_migrations WHERE success",
        );
        let ours = match &self.engine.database {
            Database::Postgres(_) => &POSTGRES_MIGRATIONS,
            Database::Sqlite(_) => &SQLITE_MIGRATIONS,
        };
        match self.engine.all(APPLIED, &[]).await.map_err(LedgerError::from) {
            Ok(applied) => Ok(ours.iter().all(|migration| applied.contains(&(migration.version,)))),
            // A database that was never migrated has no such table.
            Err(LedgerError::Inconsistent(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Only one process uses a SQLite file, so the migrator needs no lock.
async fn run_sqlite(pool: &SqlitePool, migrations: &Migrator) -> anyhow::Result<()> {
    let mut migrator = Migrator { migrations: migrations.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_ignore_missing(true);
    Ok(migrator.run(pool).await?)
}

/// Applies the missing migrations. Uses two connections: one holds the lock, the other migrates.
async fn run_postgres(url: &str, migrations: &Migrator) -> anyhow::Result<()> {
    let options = options(url)?;
    let mut locking = connect(&options).await?;
    lock(&mut locking).await?;
    let mut connection = connect(&options).await?;
    let applied = applied(&mut connection).await?;
    let is_new_database = applied.is_empty();
    let missing = migrations.iter().filter(|migration| !applied.contains_key(&migration.version));
    for migration in missing {
        info!(version = migration.version, description = %migration.description, "migrating");
        apply(&mut connection, migration).await.with_context(|| {
            format!("migration {} ({})", migration.version, migration.description)
        })?;
    }
    for migration in migrations.iter() {
        let is_ours =
            applied.get(&migration.version).is_none_or(|sum| *sum == hex(&migration.checksum));
        ensure!(is_ours, "migration {} was applied in another wording", migration.version);
    }
    if is_new_database {
        // No replica of an older release can be using a new database.
        finish(&mut connection).await?;
    }
    // The transaction that holds the lock ends with its connection.
    locking.close().await?;
    connection.close().await?;
    Ok(())
}

/// Runs [`FINISH`] under the lock. The second time it changes nothing.
async fn finish_postgres(url: &str) -> anyhow::Result<()> {
    let options = options(url)?;
    let mut locking = connect(&options).await?;
    lock(&mut locking).await?;
    let mut connection = connect(&options).await?;
    finish(&mut connection).await?;
    locking.close().await?;
    connection.close().await?;
    Ok(())
}

async fn finish(connection: &mut PgConnection) -> anyhow::Result<()> {
    drop_half_built(connection, OWNED_TASK_KEY).await?;
    for step in FINISH {
        raw_sql(step).execute(&mut *connection).await?;
    }
    Ok(())
}

fn options(url: &str) -> anyhow::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)?;
    Ok(options.application_name("aura-hitl migrate").extra_float_digits(None))
}

/// Connects and runs a first query, within [`LOCK_TIMEOUT`]. The query is needed because a pooler
/// accepts a client before it has a server connection.
async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    let connecting = async {
        let mut connection = PgConnection::connect_with(options).await?;
        raw_sql("SELECT 1").execute(&mut connection).await?;
        Ok::<_, sqlx::Error>(connection)
    };
    let connected = timeout(LOCK_TIMEOUT, connecting).await.ok();
    let connected = connected.with_context(|| {
        format!("no connection to Postgres within {} s", LOCK_TIMEOUT.as_secs())
    })?;
    Ok(connected?)
}

/// Tries to take the lock until it succeeds or [`LOCK_TIMEOUT`] has passed. Holds no snapshot
/// between two tries.
async fn lock(connection: &mut PgConnection) -> anyhow::Result<()> {
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; \
                 SET LOCAL idle_in_transaction_session_timeout = 0";
    raw_sql(begin).execute(&mut *connection).await?;
    let ask = format!("SELECT pg_try_advisory_xact_lock({LOCK_KEY})");
    let asked_at = Instant::now();
    let mut is_logged = false;
    loop {
        let answer = raw_sql(AssertSqlSafe(ask.clone())).fetch_one(&mut *connection).await?;
        if answer.try_get(0)? {
            return Ok(());
        }
        if asked_at.elapsed() > LOCK_TIMEOUT {
            bail!(
                "another process has been migrating this database for {} s; try again when it has \
                 ended",
                LOCK_TIMEOUT.as_secs()
            );
        }
        if !std::mem::replace(&mut is_logged, true) {
            warn!("another process is migrating this database: waiting for it");
        }
        sleep(LOCK_INTERVAL).await;
    }
}

/// The applied migrations: each version with its checksum in hexadecimal digits.
async fn applied(connection: &mut PgConnection) -> anyhow::Result<BTreeMap<i64, String>> {
    raw_sql(CREATE_TABLE).execute(&mut *connection).await?;
    let read = "SELECT version, encode(checksum, 'hex') FROM _sqlx_migrations WHERE success";
    let rows = raw_sql(read).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Applies one migration and inserts its row into `_sqlx_migrations`. Both happen in one
/// transaction, unless the migration must run outside a transaction (`no_tx`).
async fn apply(connection: &mut PgConnection, migration: &Migration) -> anyhow::Result<()> {
    let note = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ({}, '{}', TRUE, '\\x{}', -1)",
        migration.version,
        migration.description.replace('\'', "''"),
        hex(&migration.checksum)
    );
    if migration.no_tx {
        drop_half_built(connection, migration.sql.as_str()).await?;
        // Each statement is sent by itself: Postgres runs statements of one message in one
        // transaction.
        let lines = migration.sql.as_str().lines().filter(|line| !line.starts_with("--"));
        for statement in lines.collect::<Vec<_>>().join("\n").split_terminator(';') {
            raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await?;
        }
        raw_sql(AssertSqlSafe(note)).execute(connection).await?;
        return Ok(());
    }
    let begin = format!("BEGIN; SET LOCAL lock_timeout = '{TABLE_LOCK_TIMEOUT}'");
    raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
    raw_sql(migration.sql.clone()).execute(&mut *connection).await?;
    raw_sql(AssertSqlSafe(note)).execute(&mut *connection).await?;
    raw_sql("COMMIT").execute(connection).await?;
    Ok(())
}

/// Drops an index that this statement creates and that an earlier attempt left half-built
/// (`indisvalid` is false). Postgres neither uses nor completes such an index, and `IF NOT EXISTS`
/// skips it. Indexes with other names are not dropped: an operator may be building them.
async fn drop_half_built(connection: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
    let read = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid";
    for row in raw_sql(read).fetch_all(&mut *connection).await? {
        let index: String = row.try_get(0)?;
        if statement.split_whitespace().any(|word| word == index) {
            warn!(index, "an earlier migration left this index half-built: it is built anew");
            let drop = format!("DROP INDEX CONCURRENTLY {index}");
            raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // Writing to a `String` never fails.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
