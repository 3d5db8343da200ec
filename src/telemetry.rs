//! Logs: one JSON object a line on standard output, with the ids that tie a line to a call.
//!
//! Never in a log: a token, a secret, a request's `context`, a query string.

use std::str::FromStr as _;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::HeaderMap;
use anyhow::{Context as _, ensure};
use tracing::field::Empty;
use tracing::{Span, info};
use tracing_actix_web::{RequestId, RootSpanBuilder};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::api::error::ApiError;
use crate::domain::approver::Via;
use crate::{metrics, refused_attempts, traces};

/// Longest header value that is repeated in a log, an answer or the ledger.
const MAX_HEADER_CHARS: usize = 256;

/// Lines that wait to be written, at most: standard output may be a pipe that nobody reads.
const MAX_WAITING_LINES: usize = 16 * 1024;
/// Longest that the process waits at its end for the rest of the log to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines of the log that were dropped because nobody read it.
pub fn dropped_lines() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Writes the rest of the log when dropped; see `FLUSH_TIMEOUT`.
#[derive(Debug)]
#[must_use = "the log ends when this is dropped"]
pub struct LogGuard(Option<WorkerGuard>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let Some(guard) = self.0.take() else { return };
        // The library writes to standard output itself when its writer does not end.
        let (done, waiting) = mpsc::channel();
        std::thread::spawn(move || {
            drop(guard);
            done.send(())
        });
        let _written_or_not = waiting.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Starts logging, and tracing if a collector is configured; `RUST_LOG` sets the level of the log,
/// `info` by default. A thread of its own writes the log, so that nothing waits for a reader.
///
/// # Errors
/// When `RUST_LOG` is not a filter, the collector's address is none, or this was started before.
pub fn start() -> anyhow::Result<LogGuard> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.trim().is_empty() => {
            let wrong = || format!("RUST_LOG is {filter:?}; it looks like info,sqlx=warn");
            // A word alone that is no level would be a module's name, and silence all others.
            let is_level = |word: &str| {
                word.is_empty() || word.contains('=') || LevelFilter::from_str(word).is_ok()
            };
            ensure!(filter.split(',').map(str::trim).all(is_level), wrong());
            EnvFilter::try_new(&filter).ok().with_context(wrong)?
        }
        _ => EnvFilter::new("info"),
    };
    let no_steps = Directive::from_str(&format!("{}=off", traces::STEPS))?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("log")
        .finish(std::io::stdout());
    let _first = DROPPED.set(writer.error_counter());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_filter(filter.add_directive(no_steps));
    tracing_subscriber::registry().with(traces::layer()?).with(lines).try_init()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a bug: something panicked")));
    Ok(LogGuard(Some(guard)))
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
