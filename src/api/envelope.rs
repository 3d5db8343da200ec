//! The envelope around every JSON answer, with the ids of the call.

use std::borrow::Cow;
use std::future::Future;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{AcceptLanguage, Header as _, HeaderMap, TryIntoHeaderPair};
use actix_web::middleware::Next;
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, Responder};
use serde::Serialize;
use tracing_actix_web::RequestId;

use super::headers::via;
use super::text::{Language, Text};
use crate::domain::clock::Clock;

tokio::task_local! {
    static CALL: Call;
}

/// The properties of a call that its answer needs.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The caller's trace id, if it sent one.
    pub trace_id: Option<String>,
    /// This service's id of the call. An error without a trace id carries it.
    pub call_id: Option<String>,
    /// The Gateway's id of the call.
    pub gateway_request_id: Option<String>,
    /// The language of the answer's sentences.
    pub language: Language,
}

impl Call {
    /// The call that the current task answers.
    #[must_use]
    pub fn current() -> Self {
        CALL.try_with(Clone::clone).unwrap_or_default()
    }

    /// Makes the call known to what is done for it on another thread.
    pub fn during<T>(self, work: impl FnOnce() -> T) -> T {
        CALL.sync_scope(self, work)
    }

    fn of(request: &ServiceRequest) -> Self {
        let via = via(request.headers());
        let preferred = AcceptLanguage::parse(request).map(|languages| languages.ranked());
        let is_korean = preferred.is_ok_and(|languages| {
            languages
                .iter()
                .find_map(|language| language.item().map(|tag| tag.primary_language() == "ko"))
                .unwrap_or(false)
        });
        Self {
            trace_id: via.trace_id,
            call_id: request.extensions().get::<RequestId>().map(ToString::to_string),
            gateway_request_id: via.gateway_request_id,
            language: if is_korean { Language::Korean } else { Language::English },
        }
    }
}

/// Middleware: sets [`Call::current`] for the envelopes of this call.
///
/// # Errors
/// Those of the inner service.
pub fn with_call<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> impl Future<Output = Result<ServiceResponse<B>, actix_web::Error>> {
    CALL.scope(Call::of(&request), async move { next.call(request).await })
}

/// The envelope, fields in the contract's order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<T> {
    /// `SUCCESS` or `ERROR`.
    #[schema(example = "SUCCESS")]
    status: &'static str,
    /// A sentence for people.
    message: String,
    /// The answer itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
    /// The error code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "E1004")]
    error_code: Option<&'static str>,
    /// Whether the call succeeded.
    success: bool,
    /// UTC, whole seconds, no zone suffix.
    #[schema(example = "2026-01-16T12:00:00")]
    timestamp: String,
    /// The caller's trace id; on errors without one, the id under which the log has the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    /// `X-Gateway-Request-Id`, repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway_request_id: Option<String>,
}

/// A time as clients parse it: UTC, whole seconds, no zone suffix.
#[must_use]
pub fn wire_time(time: chrono::DateTime<chrono::Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%S").to_string()
}

impl<T> Envelope<T> {
    /// The envelope of a success.
    #[must_use]
    pub fn success(message: impl Into<String>, data: Option<T>) -> Self {
        let call = Call::current();
        Self {
            status: "SUCCESS",
            message: message.into(),
            data,
            error_code: None,
            success: true,
            timestamp: wire_time(Clock::System.now()),
            trace_id: call.trace_id,
            gateway_request_id: call.gateway_request_id,
        }
    }

    /// The envelope of an error.
    #[must_use]
    pub fn error(code: &'static str, message: String, data: Option<T>) -> Self {
        let call = Call::current();
        Self {
            status: "ERROR",
            message,
            data,
            error_code: Some(code),
            success: false,
            timestamp: wire_time(Clock::System.now()),
            trace_id: call.trace_id.or(call.call_id),
            gateway_request_id: call.gateway_request_id,
        }
    }
}

/// A successful answer of a handler.
#[derive(Debug)]
pub struct Answer<T> {
    status: StatusCode,
    message: Cow<'static, str>,
    data: Option<T>,
    headers: HeaderMap,
}

impl<T> Answer<T> {
    fn new(status: StatusCode, message: impl Into<Cow<'static, str>>, data: Option<T>) -> Self {
        Self { status, message: message.into(), data, headers: HeaderMap::new() }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, header: impl TryIntoHeaderPair) -> Self {
        // The service only sets valid headers.
        if let Ok((name, value)) = header.try_into_pair() {
            self.headers.insert(name, value);
        }
        self
    }
}

/// 200 with data.
pub fn ok<T>(message: &'static str, data: T) -> Answer<T> {
    Answer::new(StatusCode::OK, message, Some(data))
}

/// 200 without data.
#[must_use]
pub fn nothing<T>(message: &'static str) -> Answer<T> {
    Answer::new(StatusCode::OK, message, None)
}

/// 201 with data.
pub fn created<T>(message: &'static str, data: T) -> Answer<T> {
    Answer::new(StatusCode::CREATED, message, Some(data))
}

/// 202 with data, in the caller's language.
pub fn accepted<T>(message: Text, data: T) -> Answer<T> {
    let message = message.in_language(Call::current().language);
    Answer::new(StatusCode::ACCEPTED, message, Some(data))
}

impl<T: Serialize> Responder for Answer<T> {
    type Body = actix_web::body::BoxBody;

    fn respond_to(self, _request: &HttpRequest) -> HttpResponse {
        let mut response =
            HttpResponse::build(self.status).json(Envelope::success(self.message, self.data));
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
