//! `/metrics` for Prometheus: the process's counters, and gauges that are read from the ledger.

use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use chrono::{DateTime, Utc};
use tokio::sync::Mutex;
use tracing::warn;

use crate::api::error::ApiError;
use crate::api::health::StoreHealth;
use crate::ledger::{AUDIT, Backlog};
use crate::observe::log;
use crate::observe::metrics::{self, Readings};
use crate::state::AppState;
use crate::workers::{Failed, Progress, Worker};

/// How old the ledger's figures may be.
const MAX_BACKLOG_AGE: Duration = Duration::from_secs(5);

/// Adds `/metrics`, without the prefix `/api`, which gateways forward.
#[expect(clippy::disallowed_methods, reason = "not one of the API's routes")]
pub fn configure(service: &mut ServiceConfig) {
    service.service(web::resource("/metrics").route(web::get().to(metrics)));
}

async fn metrics(
    app: web::Data<AppState>,
    scrape: web::Data<Scrape>,
) -> Result<HttpResponse, ApiError> {
    let text = scrape.render(&app).await;
    let text = text.map_err(|error| ApiError::internal(&error.to_string()))?;
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text))
}

/// Answers scrapes.
#[derive(Debug, Default)]
pub struct Scrape {
    stores: StoreHealth,
    updated_at: Mutex<Option<Instant>>,
}

impl Scrape {
    /// All metrics in Prometheus' text format. Reads the ledger's figures at most once in
    /// `MAX_BACKLOG_AGE`, however many clients scrape.
    ///
    /// # Errors
    /// When the process has no metrics recorder.
    pub async fn render(&self, app: &AppState) -> anyhow::Result<String> {
        self.update(app).await;
        let (connections_used, connections_idle, max_connections) = app.ledger.connections();
        metrics::render(Readings {
            connections_used,
            connections_idle,
            max_connections,
            calls: app.calls_under_way(),
            max_calls: app.max_calls,
            waiters: app.hub.waiters(),
            unheard: app.unheard.len(),
            dropped_lines: log::dropped_lines(),
        })
    }

    async fn update(&self, app: &AppState) {
        let mut updated_at = self.updated_at.lock().await;
        if updated_at.is_some_and(|at| at.elapsed() < MAX_BACKLOG_AGE) {
            return;
        }
        let [ledger, courier] = self.stores.check(app).await;
        metrics::stores_are_up(ledger, courier);
        let now = app.clock.now();
        let age = |since: Option<DateTime<Utc>>| {
            since.and_then(|since| (now - since).to_std().ok()).unwrap_or_default()
        };
        let ledger = app.ledger.clone();
        // A connection that is opened on an HTTP worker's runtime ends with the worker.
        match app.runtime.spawn(async move { ledger.backlog().await }).await {
            Ok(Ok(Backlog { owed, owed_since, pending, pending_since })) => {
                metrics::backlog((owed, age(owed_since)), (pending, age(pending_since)));
            }
            Ok(Err(error)) => {
                warn!(%error, "cannot tell what is owed");
                metrics::backlog_unknown();
            }
            Err(_panic) => {}
        }
        if app.feeds_audit {
            let ledger = app.ledger.clone();
            let asking = async move { ledger.oldest_in_outbox(AUDIT).await };
            let oldest = app.runtime.spawn(asking).await.ok().and_then(Result::ok).flatten();
            metrics::oldest_audit_entry(age(oldest));
        }
        // Events that no channel has yet, and the notices of each.
        let settings = app.notices.settings();
        for lane in settings.lanes() {
            let (ledger, asked) = (app.ledger.clone(), lane.clone());
            let asking = async move { ledger.oldest_in_outbox(&asked).await };
            let oldest = app.runtime.spawn(asking).await.ok().and_then(Result::ok).flatten();
            metrics::oldest_notice(&lane, age(oldest));
        }
        *updated_at = Some(Instant::now());
    }
}

/// Puts what was measured into buckets, so that it does not pile up between scrapes.
#[derive(Debug)]
pub struct Upkeep;

impl Worker for Upkeep {
    const NAME: &'static str = "metrics";
    /// How often what was measured is put into buckets.
    const INTERVAL: Duration = Duration::from_secs(5);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        metrics::upkeep();
        Ok(Progress::Done)
    }
}
