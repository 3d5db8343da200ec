//! Liveness and readiness, for probes.

use std::time::Instant;

use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpResponse, Responder, web};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tracing::warn;
use utoipa::ToSchema;

use super::envelope::{Answer, Envelope, ok};
use super::error::{ErrorCode, RETRY_AFTER_SECONDS};
use super::examples::{failure_with, success};
use crate::state::AppState;

/// The process is alive.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthView {
    /// `UP`.
    #[schema(example = "UP")]
    status: &'static str,
    /// The program's name.
    #[schema(example = "aura-hitl")]
    service: &'static str,
    /// The program's release.
    version: &'static str,
}

/// Whether the service can record and signal decisions.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessView {
    /// `UP`, or `DOWN` while the service is not ready.
    #[schema(example = "UP")]
    status: &'static str,
    /// The program's name.
    #[schema(example = "aura-hitl")]
    service: &'static str,
    /// The program's release.
    version: &'static str,
    /// Both stores answer and the process is not stopping.
    ready: bool,
    /// The store of decisions.
    ledger: StoreView,
    /// The carrier of signals.
    courier: StoreView,
}

/// One of the two stores.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoreView {
    /// `postgres` or `sqlite`; `redis` or `in-process`.
    #[schema(example = "postgres")]
    engine: &'static str,
    /// Whether the store answers.
    ready: bool,
}

/// The process lives.
#[utoipa::path(
    get, path = "/health/live",
    responses((
        status = 200, description = "It lives", body = Envelope<HealthView>,
        example = json!(success("Service is up", json!({
            "status": "UP", "service": "aura-hitl", "version": "0.1.0",
        }))),
    ))
)]
pub async fn live() -> Answer<HealthView> {
    ok(
        "Service is up",
        HealthView {
            status: "UP",
            service: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
        },
    )
}

/// The process lives. `data` is a string: the platform's web application shows it as text.
#[utoipa::path(
    get, path = "/main/health",
    responses((
        status = 200, description = "It lives", body = Envelope<String>,
        example = json!(success("OK", "Main Service is running")),
    ))
)]
pub async fn main_health() -> Answer<&'static str> {
    ok("OK", "Main Service is running")
}

/// The program's name and release.
#[derive(Debug, Serialize, ToSchema)]
pub struct InfoView {
    /// The program's name.
    #[schema(example = "aura-hitl")]
    name: &'static str,
    /// The program's release.
    version: &'static str,
}

/// Name and release.
#[utoipa::path(
    get, path = "/main/info",
    responses((
        status = 200, description = "Name and release", body = Envelope<InfoView>,
        example = json!(success("OK", json!({ "name": "aura-hitl", "version": "0.1.0" }))),
    ))
)]
pub async fn info() -> Answer<InfoView> {
    ok("OK", InfoView { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") })
}

/// Checks the stores, and keeps the last result. Callers that ask during a check share its result: the
/// route needs no token, so many callers must not mean many queries.
#[derive(Debug, Default)]
pub struct StoreHealth(Mutex<Option<(Instant, [StoreError; 2])>>);

/// Why a store is not ready; `None` when it is ready.
type StoreError = Option<String>;

impl StoreHealth {
    /// Whether the ledger and the courier answer, by a check that began after this call.
    pub async fn check(&self, app: &AppState) -> [bool; 2] {
        let asked_at = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((found_at, found)) = &*last
            && *found_at > asked_at
        {
            return found.each_ref().map(Option::is_none);
        }
        // A connection that is opened on an HTTP worker's runtime ends with the worker.
        let asking = app.clone();
        let asking = app.runtime.spawn(async move { asking.check_stores().await });
        let found = asking.await.unwrap_or_else(|panic| [(); 2].map(|()| Some(panic.to_string())));
        let before = last.take().map(|(_, found)| found).unwrap_or_default();
        for (error, before) in found.iter().zip(&before) {
            // Logged once, not at every probe.
            if let Some(error) = error.as_ref().filter(|error| before.as_ref() != Some(error)) {
                warn!(error, "not ready");
            }
        }
        let is_ready = found.each_ref().map(Option::is_none);
        *last = Some((Instant::now(), found));
        is_ready
    }
}

fn readiness_example(status: &str, courier_answers: bool) -> Value {
    json!({
        "status": status, "service": "aura-hitl", "version": "0.1.0", "ready": courier_answers,
        "ledger": { "engine": "postgres", "ready": true },
        "courier": { "engine": "redis", "ready": courier_answers },
    })
}

/// Whether ledger and courier answer. Calls at the same time share one check, at most 2 s old.
#[utoipa::path(
    get, path = "/health/ready",
    responses(
        (
            status = 200, description = "Both stores answer", body = Envelope<ReadinessView>,
            example = json!(success("Service is ready", readiness_example("UP", true))),
        ),
        (
            status = 503, description = "One of them does not", body = Envelope<ReadinessView>,
            headers(("Retry-After" = String, description = "Seconds to wait before trying again.")),
            example = json!(failure_with(ErrorCode::Unavailable, &readiness_example("DOWN", false))),
        ),
    )
)]
pub async fn ready(app: web::Data<AppState>, stores: web::Data<StoreHealth>) -> impl Responder {
    let [ledger, courier] = stores.check(&app).await;
    let ready = ledger && courier && !app.stopping.is_cancelled();
    let view = ReadinessView {
        status: if ready { "UP" } else { "DOWN" },
        service: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        ready,
        ledger: StoreView { engine: app.ledger.engine(), ready: ledger },
        courier: StoreView { engine: app.courier.engine(), ready: courier },
    };
    if view.ready {
        return HttpResponse::Ok().json(Envelope::success("Service is ready", Some(view)));
    }
    let message = "Service is not ready".to_owned();
    HttpResponse::ServiceUnavailable()
        .insert_header((RETRY_AFTER, RETRY_AFTER_SECONDS))
        .json(Envelope::error(ErrorCode::Unavailable.as_str(), message, Some(view)))
}
