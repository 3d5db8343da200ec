//! The HTTP server: its middleware, its time-outs, and a second server for metrics.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use actix_cors::Cors;
use actix_http::HttpService;
use actix_service::{IntoServiceFactory as _, ServiceFactoryExt as _, fn_service, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceRequest, ServiceResponse};
use actix_web::http::header::{CONTENT_SECURITY_POLICY, HeaderValue, X_FRAME_OPTIONS};
use actix_web::middleware::{DefaultHeaders, Next, from_fn};
use actix_web::{App, HttpServer, web};
use anyhow::Context as _;
use tokio::net::TcpStream;
use tracing::warn;
use tracing_actix_web::TracingLogger;

use super::listening::cannot_listen;
use super::scrape::{self, Scrape};
use crate::api::call_span::CallSpan;
use crate::api::connection::{CLOSE_TIMEOUT, Connection, Connections, track_calls};
use crate::api::envelope::with_call;
use crate::api::error::ApiError;
use crate::api::health::StoreHealth;
use crate::api::page::Page;
use crate::api::routes;
use crate::api::text::Text;
use crate::config::Config;
use crate::state::AppState;

/// How long an idle connection stays open. Longer than nginx keeps one to a backend (60 s), so that the
/// Gateway never sends a call on a connection that the service is closing.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long open connections are still served after the listener is closed. A call may be on its way on
/// a connection that was just accepted. New connections are refused, so the Gateway tries another
/// replica.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// How many connections the metrics server accepts.
const MAX_METRICS_CONNECTIONS: usize = 32;

/// Serves the API on a listener, until the server is stopped.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve(config: &Config, app: &AppState, listener: TcpListener) -> anyhow::Result<Server> {
    let connections = Connections::new(config.max_connections, app.stopping.clone());
    let app = web::Data::new(app.clone());
    let readiness = web::Data::new(StoreHealth::default());
    let scrape = web::Data::new(Scrape::default());
    let document = web::Data::new(routes::document());
    let page = web::Data::new(Page::new(config)?);
    let metrics_routes =
        if config.metrics_address.is_none() { scrape::configure } else { |_: &mut _| {} };
    let origins = config.cors_origins.clone();
    let service = move || {
        App::new()
            .app_data(app.clone())
            .app_data(readiness.clone())
            .app_data(scrape.clone())
            .app_data(document.clone())
            .app_data(page.clone())
            .app_data(web::PathConfig::default().error_handler(|_error, _request| {
                let text = Text::new("is not valid", "형식이 올바르지 않습니다");
                ApiError::invalid_field("path", text).into()
            }))
            .configure(metrics_routes)
            .configure(routes::configure)
            .default_service(web::to(routes::not_found))
            .wrap(cors(&origins))
            .wrap(from_fn(refuse_frames))
            .wrap(security_headers())
            .wrap(from_fn(with_call))
            .wrap(TracingLogger::<CallSpan>::new())
            .wrap(from_fn(track_calls))
    };
    // actix starts this many workers.
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let server = Server::build()
        .max_concurrent_connections(config.max_connections.div_ceil(workers))
        // The rest of the shutdown time after the notice to the Gateway, in whole seconds.
        .shutdown_timeout(config.shutdown_seconds.saturating_sub(2).max(1))
        .disable_signals();
    let stopping = server.graceful_shutdown_signal();
    // As `HttpServer` does it, but with this service's `Connection` in place of a `TcpStream`.
    let serve_connections = move || {
        let stopping = stopping.clone();
        let service = service().into_factory().map_err(|error| error.error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move {
                    stopping.notified().await;
                    tokio::time::sleep(DRAIN_TIMEOUT).await;
                }
            })
            // `Connection` times heads, and not only the first.
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(CLOSE_TIMEOUT)
            .keep_alive(KEEP_ALIVE_TIMEOUT)
            .on_connect_ext(Connection::share_state)
            // Host and address for building URLs, which the service does not do.
            .h1(map_config(service, |()| AppConfig::default()));
        let connections = Arc::clone(&connections);
        fn_service(move |stream: TcpStream| {
            let peer = stream.peer_addr().ok();
            std::future::ready(Ok((Connection::new(stream, &connections), peer)))
        })
        .and_then(http)
    };
    Ok(server.listen("http", listener, serve_connections).context("cannot listen")?.run())
}

/// Serves the metrics on a separate address, until the service stops.
///
/// # Errors
/// One sentence, when nothing can listen there.
pub fn serve_metrics(
    app: &AppState,
    address: SocketAddr,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let stopping = app.stopping.clone();
    let app = web::Data::new(app.clone());
    let scrape = web::Data::new(Scrape::default());
    let service = move || {
        let routes = App::new().app_data(app.clone()).app_data(scrape.clone());
        routes.configure(scrape::configure)
    };
    let server = HttpServer::new(service).workers(1).max_connections(MAX_METRICS_CONNECTIONS);
    let server = server.disable_signals().bind(address);
    let metrics_address = ["AURA_HITL_METRICS_ADDRESS"; 2];
    let server =
        server.map_err(|error| cannot_listen(&address.to_string(), &error, metrics_address))?.run();
    Ok(async move {
        let handle = server.handle();
        tokio::select! {
            ended = server => warn!(?ended, "the metrics' server ended"),
            () = stopping.cancelled() => handle.stop(false).await,
        }
    })
}

fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default()
        .block_on_origin_mismatch(false)
        .allowed_methods(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
        .allow_any_header()
        .expose_headers(["ETag", "Retry-After"])
        // The web application sends its calls with credentials, although only the token counts.
        .supports_credentials()
        .max_age(3600);
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}

/// Middleware: no other page may frame an answer, unless the answer has a policy of its own.
async fn refuse_frames<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let mut response = next.call(request).await?;
    let headers = response.headers_mut();
    if !headers.contains_key(CONTENT_SECURITY_POLICY) {
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    Ok(response)
}

/// Headers for browsers that call the service directly: no caching, no framing, no MIME sniffing.
/// Swagger UI needs inline styles.
fn security_headers() -> DefaultHeaders {
    DefaultHeaders::new()
        .add(("X-Content-Type-Options", "nosniff"))
        .add(("Referrer-Policy", "no-referrer"))
        .add(("Cache-Control", "no-store"))
        .add((
            "Content-Security-Policy",
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
        ))
}
