//! SIGHUP: reads the settings again, `…_FILE`s included, and applies the changed ones while the service
//! runs.
//!
//! All or nothing: if a new setting is not valid, if only a restart can apply it, or if a store refuses
//! the new login, no setting changes and one line of the log says why. New settings apply from the next
//! call on; calls under way keep the old ones. The log names settings, never their values.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use tokio::signal::unix::Signal;
use tracing::{error, info};

use crate::config::{Config, LedgerConfig};
use crate::state::AppState;

/// The settings that can change while the service runs. Of the URLs, only the login and the server's
/// certificate can change. A new entry here needs code in [`reload`] that applies it.
const WHILE_RUNNING: [&str; 20] = [
    "jwt_secret",
    "jwt_secret_previous",
    "jwt_leeway_seconds",
    "jwt_audience",
    "jwt_issuer",
    "jwt_max_lifetime_seconds",
    "agent_claim",
    "person_claim",
    "revocations_file",
    "policy_file",
    "rate_limit_per_second",
    "rate_limit_burst",
    "database_url",
    "redis_url",
    "redis_password",
    "redis_ca_file",
    "public_url",
    "people",
    "groups_people",
    "notices",
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
            // The signal's stream has ended, so no further signal will come.
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

/// Applies the changed settings. Returns their names.
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

    ensure!(
        new.policy_file.is_some() || config.policy_file.is_none(),
        "policy_file is no longer set: to run without the rules in force needs a restart"
    );
    let has_changed = |of: &str| changed.iter().any(|key| key.starts_with(of));
    // All steps that may fail come first, so that nothing is half applied.
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
    if has_changed("policy_file") {
        app.rules.set(new.policy_file.clone());
        if let Some(file) = &new.policy_file {
            info!(version = file.version(), "another policy file is in force");
        }
    }
    if has_changed("rate_limit_") {
        app.limits.set(new.rate_limit);
    }
    // Also if nothing has changed: channels that their receivers have switched off start again.
    app.notices.set(new.notices.clone());
    app.ledger.set_tells(new.notices.is_on());
    let changed = changed.join(", ");
    *config = new;
    Ok(changed)
}
