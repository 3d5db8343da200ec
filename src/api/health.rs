//! Whether the service lives, and whether it can decide.

use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpResponse, Responder, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::envelope::{Answer, Envelope, ok};
use crate::core::Core;

/// That the process lives.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthView {
    /// `UP`.
    #[schema(example = "UP")]
    status: &'static str,
    /// Which program.
    #[schema(example = "aura-hitl")]
    service: &'static str,
    /// Which release.
    version: &'static str,
}

/// Whether decisions can be taken and signalled.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessView {
    /// Both stores answer and the process is not stopping.
    ready: bool,
    /// Where decisions are recorded.
    ledger: StoreView,
    /// How signals travel.
    courier: StoreView,
}

/// One of the two stores.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoreView {
    /// `postgres` or `sqlite`; `redis` or `in-process`.
    #[schema(example = "postgres")]
    engine: &'static str,
    /// It answers.
    ready: bool,
}

/// The process lives.
#[utoipa::path(get, path = "/health/live", tag = "health",
    responses((status = 200, description = "It lives", body = super::envelope::Envelope<HealthView>)))]
pub async fn live() -> Answer<HealthView> {
    up()
}

/// The same, where the Gateway's clients look for it.
#[utoipa::path(get, path = "/main/health", tag = "health",
    responses((status = 200, description = "It lives", body = super::envelope::Envelope<HealthView>)))]
pub async fn main_health() -> Answer<HealthView> {
    up()
}

fn up() -> Answer<HealthView> {
    ok(
        "Service is up",
        HealthView {
            status: "UP",
            service: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
        },
    )
}

/// Ledger and courier answer. Asked anew each time; at most 2 s old.
#[utoipa::path(get, path = "/health/ready", tag = "health",
    responses(
        (status = 200, description = "Both stores answer", body = super::envelope::Envelope<ReadinessView>),
        (status = 503, description = "One of them does not", headers(("Retry-After" = String, description = "Seconds to wait before trying again.")), body = super::envelope::Envelope<ReadinessView>),
    ))]
pub async fn ready(core: web::Data<Core>) -> impl Responder {
    let (ledger, courier) = tokio::join!(core.ledger.ping(), core.courier.ping());
    let view = ReadinessView {
        ready: ledger.is_ok() && courier.is_ok() && !core.stopping.is_cancelled(),
        ledger: StoreView { engine: core.ledger.engine(), ready: ledger.is_ok() },
        courier: StoreView { engine: core.courier.engine(), ready: courier.is_ok() },
    };
    if view.ready {
        return HttpResponse::Ok().json(Envelope::success("Service is ready", Some(view)));
    }
    let message = "Service is not ready".to_owned();
    HttpResponse::ServiceUnavailable().insert_header((RETRY_AFTER, "1")).json(Envelope::error(
        "E5000",
        message,
        Some(view),
    ))
}
