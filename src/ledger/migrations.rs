//! Applies what a database lacks of the migrations: looks first, locks second, and waits for another
//! process only so long.
//!
//! On Postgres the lock is held by a transaction of its own connection: a pooler cannot leave it
//! behind on a server connection, and a migration that runs outside a transaction (`CREATE INDEX
//! CONCURRENTLY`) does not wait for those who wait for the lock. Migrations never run on the pool,
//! whose statements have time-outs.

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

/// Longest to wait for a connection, or for the other process that migrates.
const LOCK_TIMEOUT: Duration = Duration::from_mins(1);
/// How often to ask whether that one has ended.
const LOCK_INTERVAL: Duration = Duration::from_millis(250);
/// Longest that a migration waits for a table that somebody uses: everybody else would queue behind.
const TABLE_TIMEOUT: &str = "10s";
/// Names the lock: the first bytes of "aura-hitl".
const LOCK: i64 = i64::from_be_bytes(*b"aura-hit");

/// The table that sqlx's migrator keeps too; releases before this one used it.
const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
)";

/// Says whose the tasks are of which an older release did not say it; ids are still unique without the
/// tenant.
macro_rules! name_owners {
    () => {
        "UPDATE owned_task o SET tenant_id = t.tenant_id FROM agent_task t
          WHERE o.tenant_id = '' AND t.task_id = o.task_id;"
    };
}

/// Puts the index with the tenant in the place of the key without it, which only replicas of an older
/// release need. The table is locked for a moment only, and no other with it: two at once might wait
/// for a statement that waits for them.
macro_rules! take_key {
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

/// The index for the key of `owned_task`; the other two tables have theirs by migrations.
const OWNED_TASK_KEY: &str = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS owned_task_key ON \
                              owned_task (tenant_id, task_id)";

/// Drops what only replicas of an older release need: the table of traces, indexes, and keys without
/// the tenant. In this order: owners are found as long as task ids are unique without the tenant.
const FINISH: [&str; 8] = [
    "SET lock_timeout = '5s'; DROP TABLE IF EXISTS hitl_trace; RESET lock_timeout",
    "SET lock_timeout = '5s';
     DROP INDEX IF EXISTS hitl_request_session, hitl_request_task, hitl_request_task_open,
                          hitl_request_pending, hitl_request_owed, hitl_request_sent,
                          hitl_request_pending_of;
     RESET lock_timeout",
    "SET lock_timeout = '5s'; DROP INDEX IF EXISTS hitl_outbox_due; RESET lock_timeout",
    name_owners!(),
    OWNED_TASK_KEY,
    take_key!("hitl_request", ""),
    take_key!(
        "owned_task",
        concat!(
            name_owners!(),
            // Their tasks are gone.
            " DELETE FROM owned_task WHERE tenant_id = '';
              ALTER TABLE owned_task ALTER COLUMN tenant_id DROP DEFAULT;"
        )
    ),
    take_key!("agent_task", ""),
];

impl Ledger {
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
        match (&self.engine.database, postgres_url) {
            (Database::Postgres(_), Some(url)) => {
                run_postgres(url.expose_secret(), &POSTGRES_MIGRATIONS).await
            }
            (Database::Postgres(_), None) => bail!("migrating Postgres needs its URL"),
            (Database::Sqlite(pool), _) => run_sqlite(pool, &SQLITE_MIGRATIONS).await,
        }
    }

    /// Drops what only replicas of an older release need. None may be running, or start again.
    ///
    /// # Errors
    /// What the database says; finishing again is safe.
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
            Ok(applied) => Ok(ours.iter().all(|one| applied.contains(&(one.version,)))),
            // A database that was never migrated has no such table, which is an answer too.
            Err(LedgerError::Inconsistent(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// SQLite's file has one process, and its migrator needs no lock.
async fn run_sqlite(pool: &SqlitePool, migrations: &Migrator) -> anyhow::Result<()> {
    let mut migrator = Migrator { migrations: migrations.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_ignore_missing(true);
    Ok(migrator.run(pool).await?)
}

/// Connects twice: to hold the lock, and to migrate.
async fn run_postgres(url: &str, migrations: &Migrator) -> anyhow::Result<()> {
    let options = options(url)?;
    let mut locking = connect(&options).await?;
    lock(&mut locking).await?;
    let mut connection = connect(&options).await?;
    let applied = applied(&mut connection).await?;
    let is_new = applied.is_empty();
    let missing = migrations.iter().filter(|one| !applied.contains_key(&one.version));
    for one in missing {
        info!(version = one.version, description = %one.description, "migrating");
        apply(&mut connection, one)
            .await
            .with_context(|| format!("migration {} ({})", one.version, one.description))?;
    }
    for one in migrations.iter() {
        let is_ours = applied.get(&one.version).is_none_or(|sum| *sum == hex(&one.checksum));
        ensure!(is_ours, "migration {} was applied in another wording", one.version);
    }
    if is_new {
        // No replica of an older release can be using it.
        finish(&mut connection).await?;
    }
    // The transaction that holds the lock ends with its connection.
    locking.close().await?;
    connection.close().await?;
    Ok(())
}

/// Drops what only replicas of an older release need. Does nothing the second time.
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

/// A pooler accepts a client before it has a server for it, so the first answer is waited for too.
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

/// Asks until the lock is ours; between two questions no snapshot is held.
async fn lock(connection: &mut PgConnection) -> anyhow::Result<()> {
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; \
                 SET LOCAL idle_in_transaction_session_timeout = 0";
    raw_sql(begin).execute(&mut *connection).await?;
    let ask = format!("SELECT pg_try_advisory_xact_lock({LOCK})");
    let asked_at = Instant::now();
    let mut is_told = false;
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
        if !std::mem::replace(&mut is_told, true) {
            warn!("another process migrates this database: waiting for it");
        }
        sleep(LOCK_INTERVAL).await;
    }
}

/// What was applied: each version with its checksum in hexadecimal digits.
async fn applied(connection: &mut PgConnection) -> anyhow::Result<BTreeMap<i64, String>> {
    raw_sql(CREATE_TABLE).execute(&mut *connection).await?;
    let read = "SELECT version, encode(checksum, 'hex') FROM _sqlx_migrations WHERE success";
    let rows = raw_sql(read).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Applies one and notes it, in one transaction if it runs in one.
async fn apply(connection: &mut PgConnection, one: &Migration) -> anyhow::Result<()> {
    let note = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ({}, '{}', TRUE, '\\x{}', -1)",
        one.version,
        one.description.replace('\'', "''"),
        hex(&one.checksum)
    );
    if one.no_tx {
        drop_half_built(connection, one.sql.as_str()).await?;
        // One by one: what is sent at once is one transaction.
        let lines = one.sql.as_str().lines().filter(|line| !line.starts_with("--"));
        for statement in lines.collect::<Vec<_>>().join("\n").split_terminator(';') {
            raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await?;
        }
        raw_sql(AssertSqlSafe(note)).execute(connection).await?;
        return Ok(());
    }
    let begin = format!("BEGIN; SET LOCAL lock_timeout = '{TABLE_TIMEOUT}'");
    raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
    raw_sql(one.sql.clone()).execute(&mut *connection).await?;
    raw_sql(AssertSqlSafe(note)).execute(&mut *connection).await?;
    raw_sql("COMMIT").execute(connection).await?;
    Ok(())
}

/// Drops an index of this statement that an earlier attempt left half-built (`indisvalid` is false):
/// Postgres neither uses nor completes it, and `IF NOT EXISTS` would take it for done. Indexes of
/// other names, which an operator may be building, are left alone.
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
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
