//! The Gateway's descriptive headers: who says to be calling, and in which trace. Nothing here is
//! trusted; see [`identity`](super::identity) for what is.

use actix_web::http::header::HeaderMap;

use crate::domain::approver::Via;

/// Longest header value that is repeated in a log, an answer or the ledger.
const MAX_HEADER_CHARS: usize = 256;

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
