//! Opens the ledger from the settings, and migrates its schema.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use secrecy::SecretString;

use crate::config::{Config, LedgerConfig, make_private_folder};
use crate::ledger::Ledger;
use crate::ledger::patience::patiently;

/// Opens the ledger; for a service, its SQLite file is locked against a second process.
///
/// # Errors
/// One sentence that says why the ledger cannot be opened.
pub async fn open_ledger(config: &Config, lock: bool) -> anyhow::Result<(Ledger, Option<File>)> {
    match &config.ledger {
        LedgerConfig::Postgres { url, pooler, max_connections } => {
            let ledger = Ledger::connect_postgres(url, *pooler, *max_connections).await?;
            Ok((ledger, None))
        }
        LedgerConfig::Sqlite { file } => {
            if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                make_private_folder(folder)?;
            }
            let lock = if lock { Some(lock_beside(file)?) } else { None };
            let opened = Ledger::open_sqlite(file).await;
            if let Err(error) = &opened
                && error.to_string().contains("file is not a database")
            {
                bail!(
                    "{} is not a SQLite database; move it away, or name another file",
                    file.display()
                );
            }
            let ledger = opened.with_context(|| format!("cannot open {}", file.display()))?;
            Ok((ledger, lock))
        }
    }
}

/// Opens an existing ledger for a command. The service may run at the same time.
///
/// # Errors
/// One sentence that says why the ledger cannot be opened.
pub async fn open_existing_ledger(config: &Config) -> anyhow::Result<Ledger> {
    if let LedgerConfig::Sqlite { file } = &config.ledger {
        ensure!(
            file.is_file(),
            "there is no {}; set AURA_HITL_DATA_DIR, or DATABASE_URL and REDIS_URL",
            file.display()
        );
    }
    let (ledger, _lock) = patiently(async || open_ledger(config, false).await).await?;
    patiently(async || ensure_migrated(&ledger).await).await?;
    Ok(ledger)
}

/// Checks that every migration is applied.
///
/// # Errors
/// One sentence that says how to apply them.
pub async fn ensure_migrated(ledger: &Ledger) -> anyhow::Result<()> {
    ensure!(
        ledger.is_migrated().await?,
        "the database schema is out of date; run `aura-hitl migrate`, or set auto_migrate = true"
    );
    Ok(())
}

/// Brings the ledger's schema up to date.
///
/// # Errors
/// The migrator's error.
pub async fn migrate(config: &Config, ledger: &Ledger) -> anyhow::Result<()> {
    ledger.migrate(postgres_url(config)).await.context("cannot migrate the database")
}

/// Drops the parts of the schema that only replicas of an older release need.
///
/// # Errors
/// The database's error.
pub async fn finish(config: &Config, ledger: &Ledger) -> anyhow::Result<()> {
    ledger.finish(postgres_url(config)).await.context("cannot finish the database's upgrade")
}

fn postgres_url(config: &Config) -> Option<&SecretString> {
    match &config.ledger {
        LedgerConfig::Postgres { url, .. } => Some(url),
        LedgerConfig::Sqlite { .. } => None,
    }
}

/// Locks the SQLite file for one process: two processes on one file could not wake each other's
/// agents.
fn lock_beside(file: &Path) -> anyhow::Result<File> {
    let path = file.with_extension("lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "{} is in use by another aura-hitl process; stop it, or set AURA_HITL_DATA_DIR",
            file.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the data folder"),
    }
}
