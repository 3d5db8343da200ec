//! Logs: one JSON object a line on standard output, with the ids that tie a line to a call.
//!
//! Never in a log: a token, a secret, a request's `context`, a query string.

use std::str::FromStr as _;

use actix_web::HttpMessage as _;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::HeaderMap;
use tracing::field::Empty;
use tracing::{Span, info};
use tracing_actix_web::{RequestId, RootSpanBuilder};
use tracing_subscriber::filter::Directive;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::api::error::ApiError;
use crate::domain::approver::Via;
use crate::{metrics, refused_attempts, traces};

/// Longest header value that is repeated in a log, an answer or the ledger.
const MAX_HEADER_CHARS: usize = 256;

/// Starts logging, and tracing if a collector is configured; `RUST_LOG` sets the level of the log,
/// `info` by default.
///
/// # Errors
/// When `RUST_LOG` is not a filter, the collector's address is none, or this was started before.
pub fn start() -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.trim().is_empty() => {
            EnvFilter::try_new(&filter).map_err(|_cause| {
                anyhow::anyhow!("RUST_LOG is {filter:?}; it looks like info,sqlx=warn")
            })?
        }
        _ => EnvFilter::new("info"),
    };
    let no_steps = Directive::from_str(&format!("{}=off", traces::STEPS))?;
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_filter(filter.add_directive(no_steps));
    tracing_subscriber::registry().with(traces::layer()?).with(lines).try_init()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a bug: something panicked")));
    Ok(())
}

/// Makes the span that every line about a call carries.
#[derive(Debug)]
pub struct CallSpan;

/// When a call began, and the pattern of its route: matching once is enough.
struct Began {
    at: std::time::Instant,
    route: String,
}

impl RootSpanBuilder for CallSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let via = via(request.headers());
        let call_id = request.extensions().get::<RequestId>().map(ToString::to_string);
        let route = request.match_pattern().unwrap_or_else(|| "unknown".to_owned());
        let span = tracing::info_span!(
            "call",
            otel.name = Empty,
            otel.kind = Empty,
            method = %request.method(),
            route = &*route,
            call_id,
            trace_id = via.trace_id,
            gateway_request_id = via.gateway_request_id,
            user = Empty,
            tenant = Empty,
            request_id = Empty,
            session_id = Empty,
            task_id = Empty,
        );
        traces::join(&span, request.headers(), request.method().as_str(), &route);
        request.extensions_mut().insert(Began { at: std::time::Instant::now(), route });
        span
    }

    fn on_request_end<B: MessageBody>(
        span: Span,
        outcome: &Result<ServiceResponse<B>, actix_web::Error>,
    ) {
        let Ok(response) = outcome else { return };
        let (request, status) = (response.request(), response.status().as_u16());
        let Some(Began { at, route }) = request.extensions_mut().remove::<Began>() else { return };
        let took = at.elapsed();
        traces::answered(&span, status);
        info!(status, millis = took.as_secs_f64() * 1000.0, "answered");
        let refused = response.response().error().and_then(|error| error.as_error::<ApiError>());
        let method = request.method().as_str();
        metrics::answered(method, &route, status, took, refused.map(ApiError::code));
        if let Some(error) = refused {
            refused_attempts::note(request, &route, error);
        }
    }
}

/// A header's value, if it is plain printable text that is not too long to be kept.
#[must_use]
pub fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty() && value.len() <= MAX_HEADER_CHARS).then(|| value.to_owned())
}

/// The Gateway's descriptive headers. What is not plain printable text is left out.
#[must_use]
pub fn via(headers: &HeaderMap) -> Via {
    let text = |name: &str| header_text(headers, name);
    // https://www.w3.org/TR/trace-context/#traceparent-header: version-traceid-parentid-flags
    let trace_parent = || {
        let parent = text("traceparent")?;
        let id = parent.split('-').nth(1)?;
        (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
    };
    Via {
        source: text("X-DWP-Source"),
        caller_type: text("X-DWP-Caller-Type"),
        agent_id: text("X-Agent-ID"),
        trace_id: text("X-Trace-Id").or_else(trace_parent),
        gateway_request_id: text("X-Gateway-Request-Id"),
    }
}
