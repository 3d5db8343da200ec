//! SIGHUP: reads the settings again, `…_FILE`s included, and applies what has changed while the
//! service runs.
//!
//! All or nothing: new settings that are not valid, that only a restart can apply, or with which a
//! store does not let us in are refused in one line of the log, and everything stays as it was.
//! What is applied holds from the next call on; calls under way end under what they began with.
//! The log names settings, never their values.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use tokio::signal::unix::Signal;
use tracing::{error, info};

use crate::config::{Config, LedgerConfig};
use crate::state::AppState;

/// The settings that can change while the service runs; of the URLs only who logs in, and how the
/// server proves its name. A setting is added here together with what applies it, below.
const WHILE_RUNNING: [&str; 15] = [
    "jwt_secret",
    "jwt_secret_previous",
    "jwt_leeway_seconds",
    "jwt_audience",
    "jwt_issuer",
    "jwt_max_lifetime_seconds",
    "agent_claim",
    "person_claim",
    "revocations_file",
    "rate_limit_per_second",
    "rate_limit_burst",
    "database_url",
    "redis_url",
    "redis_password",
    "redis_ca_file",
];

/// Reloads each time the signal comes. Never ends; dropping it ends it.
pub async fn on_hangup(
    mut hangup: Signal,
    file: Option<&Path>,
    mut config: Config,
    app: AppState,
) -> Infallible {
    loop {
        if hangup.recv().await.is_none() {
            // No signal can come any more.
            std::future::pending::<()>().await;
        }
        match reload(file, &mut config, &app).await {
            Ok(changed) if changed.is_empty() => {
                info!("the settings were read again; none has changed");
            }
            Ok(changed) => info!(changed, "the settings were reloaded"),
            Err(error) => {
                let error = format!("{error:#}").replace('\n', " ");
                error!(error, "the settings were not reloaded; all of them stay as they were");
            }
        }
    }
}

/// The names of the settings that have changed.
async fn reload(
    file: Option<&Path>,
    config: &mut Config,
    app: &AppState,
) -> anyhow::Result<String> {
    let new = Config::load(file)?;
    let changed = new.changed_since(config);
    let fixed = changed.iter().filter(|key| !WHILE_RUNNING.contains(key)).copied();
    let fixed = fixed.collect::<Vec<_>>().join(", ");
    ensure!(fixed.is_empty(), "these settings have changed and need a restart: {fixed}");

    let has_changed = |of: &str| changed.iter().any(|key| key.starts_with(of));
    // First all that may fail, then all that cannot.
    let mut ledger = None;
    if has_changed("database_") {
        let LedgerConfig::Postgres { url, .. } = &new.ledger else {
            bail!("DATABASE_URL has changed, which needs a restart without Postgres")
        };
        ledger = Some(app.ledger.try_login(url).await.context("cannot use the new DATABASE_URL")?);
    }
    let mut courier = None;
    if has_changed("redis_") {
        let login = app.courier.try_login(new.redis.as_ref()).await;
        courier = Some(login.context("cannot use the new settings of Redis")?);
    }
    if let Some(login) = ledger {
        app.ledger.adopt(login);
    }
    if let Some(login) = courier {
        app.courier.adopt(login);
    }
    if ["jwt_", "agent_claim", "person_claim", "revocations_file"].into_iter().any(has_changed) {
        app.tokens.set(&new.jwt);
    }
    if has_changed("rate_limit_") {
        app.limits.set(new.rate_limit);
    }
    let changed = changed.join(", ");
    *config = new;
    Ok(changed)
}
