//! What `hitl:session:{sessionId}` says: which request the agent asked for last.
//!
//! The agent takes the first message on its channel for the answer to that request, whatever the
//! message says. So this pointer is what keeps a signal for one request from answering another.

use serde_json::value::RawValue;

use super::ids::{RequestId, TenantId, UserId};
use super::json::{self, RawObject};

/// The pointer as it was read, and what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionPointer {
    /// The exact text in Redis; `None` when there is no key. A signal is sent only while it is
    /// still this text.
    pub text: Option<String>,
    /// The request the session names, if any. Not validated: it is only compared.
    pub request: Option<String>,
    /// The session's tenant, if it names one.
    pub tenant: Option<TenantId>,
    /// The session's user, if it names one.
    pub user: Option<UserId>,
}

impl SessionPointer {
    /// Reads the key's value: a JSON object, a JSON string, or (older writers) the bare request
    /// id. Anything else names a request that no request can be, which is the safe reading.
    #[must_use]
    pub fn read(text: Option<String>) -> Self {
        let Some(value) = text.as_deref() else { return Self::default() };
        let mut pointer = Self::default();
        if let Ok(object) = serde_json::from_str::<RawObject>(value) {
            let name = |field| json::present(&object, field).and_then(json::text_or_digits);
            pointer.request = json::present(&object, "requestId").map(name_or_raw);
            pointer.tenant = name("tenantId").and_then(|tenant| TenantId::parse(tenant).ok());
            pointer.user = name("userId").and_then(|user| UserId::parse(user).ok());
        } else if let Ok(raw) = serde_json::from_str::<&RawValue>(value) {
            pointer.request = (raw.get() != "null").then(|| name_or_raw(raw));
        } else {
            pointer.request = Some(value.trim().to_owned());
        }
        pointer.request = pointer.request.filter(|id| !id.is_empty());
        pointer.text = text;
        pointer
    }

    /// Whether the session names this request, or names nothing: only then may a signal for it
    /// reach the session. If the session names nothing, the ledger has the last word: it may know a
    /// newer request.
    #[must_use]
    pub fn allows(&self, request: &RequestId) -> bool {
        self.request.as_deref().is_none_or(|named| named == request.as_str())
    }

    /// Whether the session names this request.
    #[must_use]
    pub fn names(&self, request: &RequestId) -> bool {
        self.request.as_deref() == Some(request.as_str())
    }
}

fn name_or_raw(value: &RawValue) -> String {
    json::text_or_digits(value).unwrap_or_else(|| value.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Option<String> {
        SessionPointer::read(Some(text.to_owned())).request
    }

    #[test]
    fn every_form_of_pointer_is_understood() {
        assert_eq!(named(r#"{"requestId":"req_1","tenantId":7}"#).as_deref(), Some("req_1"));
        assert_eq!(named("req_1").as_deref(), Some("req_1"));
        assert_eq!(named("\"req_1\"").as_deref(), Some("req_1"));
        assert_eq!(named("12345").as_deref(), Some("12345"));
        assert_eq!(named("{}"), None);
        assert_eq!(named("null"), None);
        assert_eq!(named(""), None);
        assert_eq!(named("  "), None);
    }

    #[test]
    fn what_is_not_understood_names_another_request() {
        let id = RequestId::parse("req_1").unwrap();
        for odd in
            ["[\"req_1\"]", "true", "{broken", r#"{"requestId":"req_2"}"#, r#"{"requestId":{}}"#]
        {
            assert!(!SessionPointer::read(Some(odd.to_owned())).allows(&id), "{odd}");
        }
        assert!(SessionPointer::read(None).allows(&id));
        assert!(SessionPointer::read(Some("req_1".to_owned())).allows(&id));
    }
}
