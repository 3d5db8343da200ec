//! `aura-hitl migrate`: brings the database schema up to date.

use std::path::Path;

use super::{load, with_wait_notice};
use crate::ledger::patience::patiently;
use crate::server::stores;

/// Migrates the schema. `finish` also drops the parts that only an older release needs.
pub async fn run(file: Option<&Path>, finish: bool) -> anyhow::Result<()> {
    let config = load(file)?;
    let migrating = async {
        let opening = patiently(async || stores::open_ledger(&config, false).await);
        let (ledger, _lock) = opening.await?;
        patiently(async || stores::migrate(&config, &ledger).await).await?;
        if finish {
            patiently(async || stores::finish(&config, &ledger).await).await?;
        }
        anyhow::Ok(ledger)
    };
    let ledger = with_wait_notice(migrating).await?;
    if finish {
        println!("the {} schema is up to date and finished", ledger.engine());
    } else {
        println!("the {} schema is up to date", ledger.engine());
    }
    Ok(())
}
