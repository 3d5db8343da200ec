//! The log line, the trace span and the metrics of each call.

use actix_web::HttpMessage as _;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use tracing::field::Empty;
use tracing::{Span, info};
use tracing_actix_web::{RequestId, RootSpanBuilder};

use super::error::{ApiError, ErrorCode};
use super::headers::via;
use super::refusals;
use crate::observe::{metrics, traces};

/// Makes the span of each call. All log lines of the call carry its fields.
#[derive(Debug)]
pub struct CallSpan;

/// When a call began, and the pattern of its route, so that the route is matched only once.
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
        metrics::answered(method, &route, status, took, refused.map(|error| error.code().reason()));
        if let Some(error) = refused {
            if error.code() == ErrorCode::AlreadyDecided {
                metrics::decision_conflicted();
            }
            refusals::record(request, &route, error);
        }
    }
}
