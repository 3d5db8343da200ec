//! The Gateway's descriptive headers: the kind of caller, and the trace. They are not trusted;
//! [`identity`](super::identity) authenticates callers.

use actix_web::http::header::HeaderMap;

use crate::domain::approver::Via;

/// How long a header's value may be to get into the log, an answer or the ledger.
const MAX_HEADER_CHARS: usize = 256;

/// A header's value, if it is printable ASCII of at most 256 characters.
#[must_use]
pub fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty() && value.len() <= MAX_HEADER_CHARS).then(|| value.to_owned())
}

/// The Gateway's descriptive headers. Values that [`header_text`] refuses are left out.
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
