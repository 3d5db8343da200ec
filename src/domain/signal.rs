//! The two messages that wake an agent on Redis, byte for byte.
//!
//! Agents treat every message as an approval unless its `type` is `rejection`. So no other kind of
//! message may ever be added here: no expiry, no cancellation, no heartbeat.

use serde::Serialize;

use super::decision::Decision;
use super::ids::RequestId;

/// How long `hitl:signal:{sessionId}` lives, in seconds (wire contract).
pub const SIGNAL_TTL_SECONDS: u64 = 300;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    r#type: &'static str,
    request_id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    timestamp: i64,
}

/// The signal's JSON: the wire contract's fields in the contract's order. `timestamp` is the time of
/// the decision in Unix seconds.
#[must_use]
pub fn signal_json(request: &RequestId, decision: &Decision) -> String {
    let wire = Wire {
        r#type: decision.verdict.signal_type(),
        request_id: request.as_str(),
        status: decision.verdict.status(),
        reason: decision.verdict.reason(),
        timestamp: decision.at.timestamp(),
    };
    super::json::raw(&wire).get().to_owned()
}

/// The `requestId` in a signal's JSON; `None` when the signal has none or is not a JSON object.
#[must_use]
pub fn signal_request(signal: &str) -> Option<String> {
    let object = serde_json::from_str::<super::json::RawObject>(signal).ok()?;
    super::json::present(&object, "requestId").and_then(super::json::text_or_digits)
}
