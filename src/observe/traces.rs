//! Traces over OTLP, if `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A call's trace continues the caller's
//! `traceparent` and covers the decision, the ledger and the courier. When the relay sends a signal later,
//! that is a separate trace, linked to the trace of the decision.
//!
//! The spans within a call have their own target, so that the log ignores them: its lines carry the fields
//! of the call's span only. Without an endpoint these spans are not made.
//! Sampling, batching, headers and resource are set by the SDK's own `OTEL_…` variables:
//! <https://opentelemetry.io/docs/languages/sdk-configuration/>.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName};
use anyhow::{Context as _, ensure};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span, Subscriber, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

/// The target of the spans within a call. The log ignores it.
pub const STEP_TARGET: &str = "aura_hitl::steps";
/// Longest time to wait for the collector at exit.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(300);
/// The variables of the OpenTelemetry SDK that name a collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// The layer that collects spans; `None` if no collector is configured.
///
/// # Errors
/// When the collector's address is not an `http` or `https` URL, or the exporter cannot be built.
pub fn layer<S: Subscriber + for<'span> LookupSpan<'span>>() -> anyhow::Result<Option<impl Layer<S>>>
{
    let mut is_on = false;
    for name in ENDPOINTS {
        let endpoint = std::env::var(name).unwrap_or_default();
        if !endpoint.trim().is_empty() {
            let is_web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
            // The SDK would accept an invalid address without an error.
            ensure!(
                Url::parse(&endpoint).as_ref().is_ok_and(is_web),
                "{name} is {endpoint:?}; it looks like http://collector:4318"
            );
            is_on = true;
        }
    }
    let says = |name: &str, word: &str| {
        std::env::var(name).is_ok_and(|value| value.trim().eq_ignore_ascii_case(word))
    };
    // The Rust SDK does not implement these two variables.
    let is_off = says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none");
    if !is_on || is_off {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_http().build();
    let exporter = exporter.context("cannot send traces (check the variables OTEL_EXPORTER_…)")?;
    let resource = match std::env::var("OTEL_SERVICE_NAME") {
        Ok(_named_there) => Resource::builder(),
        Err(_) => Resource::builder().with_service_name(env!("CARGO_PKG_NAME")),
    };
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .build();
    let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
    let _first = PROVIDER.set(provider);
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target("aura_hitl", Level::INFO));
    Ok(Some(layer))
}

/// Sends the spans that were collected. Called at exit, when no call is running.
pub async fn shut_down() {
    let ending = tokio::task::spawn_blocking(|| {
        PROVIDER.get().map(|provider| provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT))
    });
    // If the collector cannot be reached, the spans are lost, and the process exits all the same.
    let _unsent = ending.await;
}

/// Whether traces are collected.
#[must_use]
pub fn is_enabled() -> bool {
    PROVIDER.get().is_some()
}

/// Makes a call's span a child of the caller's span, and adds the call's method and route.
pub fn join(span: &Span, headers: &HeaderMap, method: &str, route: &str) {
    if is_enabled() {
        let caller = TraceContextPropagator::new().extract(&Headers(headers));
        // Fails only if traces are off.
        let _joined = span.set_parent(caller);
        span.record("otel.kind", "server");
        span.record("otel.name", format!("{method} {route}"));
        span.set_attribute("http.request.method", method.to_owned());
        span.set_attribute("http.route", route.to_owned());
    }
}

/// Adds the status of the answer to a call's span.
pub fn answered(span: &Span, status: u16) {
    if is_enabled() {
        span.set_attribute("http.response.status_code", i64::from(status));
        if status >= 500 {
            span.set_status(Status::error(""));
        }
    }
}

/// A span for a step of the current call; an empty span outside of a call. The span's name is the text of
/// `call` up to the first parenthesis, so `stringify!` of an expression gives a usable name.
#[must_use]
pub fn step(call: &'static str) -> Span {
    if !is_enabled() || Span::current().is_none() {
        return Span::none();
    }
    let name = call.split('(').next().unwrap_or(call);
    info_span!(target: STEP_TARGET, "step", otel.name = name)
}

/// The current position in the trace, as a W3C `traceparent`: <https://www.w3.org/TR/trace-context/>.
#[must_use]
pub fn current_trace_parent() -> Option<String> {
    if !is_enabled() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove("traceparent")
}

/// The root span of a new trace, linked to the trace that caused the work.
#[must_use]
pub fn linked(name: &'static str, trace_parent: Option<String>) -> Span {
    let span = info_span!(target: STEP_TARGET, parent: None, "linked", otel.name = name);
    if let Some(trace_parent) = trace_parent {
        let carrier = HashMap::from([("traceparent".to_owned(), trace_parent)]);
        let cause = TraceContextPropagator::new().extract(&carrier);
        span.add_link(cause.span().span_context().clone());
    }
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
