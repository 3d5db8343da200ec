//! `aura-hitl purge`: deletes old requests and tasks.

use std::path::Path;

use super::{load, with_wait_notice};
use crate::audit::retention::{self, Retention};
use crate::domain::clock::Clock;
use crate::server::stores;

/// Deletes requests and tasks of these ages, or counts them.
pub async fn run(
    file: Option<&Path>,
    requests: &str,
    tasks: Option<&str>,
    dry_run: bool,
) -> anyhow::Result<()> {
    let requests = Some(retention::age("--older-than", requests)?);
    let tasks = tasks.map(|tasks| retention::age("--tasks-older-than", tasks)).transpose()?;
    let config = load(file)?;
    let ledger = with_wait_notice(stores::open_existing_ledger(&config)).await?;
    let (retention, now) = (Retention { requests, tasks }, Clock::System.now());
    if dry_run {
        println!("would purge {}", retention::count(&ledger, retention, now).await?);
    } else {
        println!("purged {}", retention::purge(&ledger, retention, now).await?);
    }
    Ok(())
}
