//! Every address and its handler, on one page. Each is served with and without `/api` in front:
//! some gateways strip it.

use actix_web::web::{self, ServiceConfig, get, patch, post, put};
use actix_web::{HttpResponse, Resource};
use utoipa_swagger_ui::SwaggerUi;

use crate::api::error::ApiError;
use crate::api::{approvals, document, health, signals, tasks};

/// Adds every route.
pub fn configure(app: &mut ServiceConfig) {
    for prefix in ["/api", ""] {
        let document = utoipa_swagger_ui::Config::from(format!("{prefix}{}", document::ADDRESS));
        let page = format!("{prefix}/swagger-ui/{{file:.*}}");
        app.service(SwaggerUi::new(page).config(document));
    }
    for prefix in ["/api", ""] {
        app.service(
            web::scope(prefix)
                .service(
                    at("/aura/hitl/approve/{requestId}", "POST")
                        .route(post().to(approvals::approve)),
                )
                .service(
                    at("/aura/hitl/reject/{requestId}", "POST").route(post().to(approvals::reject)),
                )
                .service(at("/aura/hitl/requests", "POST").route(post().to(approvals::register)))
                .service(
                    at("/aura/hitl/requests/{requestId}", "GET").route(get().to(approvals::read)),
                )
                .service(at("/aura/hitl/signals/{sessionId}", "GET").route(get().to(signals::read)))
                .service(
                    at("/main/agent/tasks", "GET, POST")
                        .route(get().to(tasks::list))
                        .route(post().to(tasks::create)),
                )
                .service(at("/main/agent/tasks/{taskId}", "GET").route(get().to(tasks::read)))
                .service(
                    at("/main/agent/tasks/{taskId}/start", "POST").route(post().to(tasks::start)),
                )
                .service(
                    at("/main/agent/tasks/{taskId}/progress", "PATCH")
                        .route(patch().to(tasks::progress)),
                )
                .service(
                    at("/main/agent/tasks/{taskId}/complete", "POST")
                        .route(post().to(tasks::complete)),
                )
                .service(
                    at("/main/agent/tasks/{taskId}/fail", "POST").route(post().to(tasks::fail)),
                )
                .service(
                    at("/main/agent/tasks/{taskId}/plan-steps", "PUT, POST")
                        .route(put().to(tasks::replace_plan))
                        .route(post().to(tasks::merge_plan)),
                )
                .service(at("/main/health", "GET").route(get().to(health::main_health)))
                .service(at("/health/live", "GET").route(get().to(health::live)))
                .service(at("/health/ready", "GET").route(get().to(health::ready)))
                .service(at(document::ADDRESS, "GET").route(get().to(document::serve))),
        );
    }
}

/// An address that answers other methods than its own with the contract's 405.
fn at(path: &str, methods: &'static str) -> Resource {
    let refuse =
        move || async move { Err::<HttpResponse, _>(ApiError::method_not_allowed(methods)) };
    web::resource(path).default_service(web::to(refuse))
}

/// Whatever has no address.
///
/// # Errors
/// Always: that there is nothing.
pub async fn unknown() -> Result<HttpResponse, ApiError> {
    Err(ApiError::not_found())
}
