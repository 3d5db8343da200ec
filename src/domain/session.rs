//! The session pointer, `hitl:session:{sessionId}` in Redis: it names the request that the agent asked
//! last.
//!
//! An agent treats the first message on its channel as the answer to that request, whichever request
//! the message names. So a signal may be sent only while the pointer names its request.

use serde_json::value::RawValue;

use super::ids::{RequestId, TenantId, UserId};
use super::json::{self, RawObject};
use super::python_json;

/// A session pointer: its text and its parsed fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionPointer {
    /// The exact text in Redis; `None` when the key does not exist. A signal is sent only if Redis still
    /// holds this text.
    pub text: Option<String>,
    /// The request that the session names. Not validated, because it is only compared with ids.
    pub request: Option<String>,
    /// The session's tenant, if the pointer names one.
    pub tenant: Option<TenantId>,
    /// The session's user, if the pointer names one.
    pub user: Option<UserId>,
    /// The pointer names a field twice, or its tenant or user is not a valid id. Then nobody can tell
    /// whose session this is, and `tenant` and `user` are `None`.
    pub is_ambiguous: bool,
}

impl SessionPointer {
    /// Reads the key's value: a JSON object, a JSON string, or the bare request id (older agents write
    /// that). Any other text becomes a `request` that equals no valid id, so that no signal is sent.
    #[must_use]
    pub fn read(text: Option<String>) -> Self {
        let Some(value) = text.as_deref() else { return Self::default() };
        let mut pointer = Self::default();
        if let Ok(object) = serde_json::from_str::<RawObject>(value) {
            pointer.request = json::present(&object, "requestId").map(name_or_raw);
            match (id(&object, "tenantId", TenantId::parse), id(&object, "userId", UserId::parse)) {
                (Ok(tenant), Ok(user)) if !python_json::repeats_a_name(value) => {
                    (pointer.tenant, pointer.user) = (tenant, user);
                }
                _ => pointer.is_ambiguous = true,
            }
        } else if let Ok(raw) = serde_json::from_str::<&RawValue>(value) {
            pointer.request = (raw.get() != "null").then(|| name_or_raw(raw));
        } else {
            pointer.request = Some(value.trim().to_owned());
        }
        pointer.request = pointer.request.filter(|id| !id.is_empty());
        pointer.text = text;
        pointer
    }

    /// Whether the session names this request or no request. Only then may a signal for this request be
    /// sent to the session. If the session names no request, the ledger decides: it may know a newer
    /// request in this session.
    #[must_use]
    pub fn allows(&self, request: &RequestId) -> bool {
        self.request.as_deref().is_none_or(|named| named == request.as_str())
    }

    /// Whether the session names another tenant or another user than these.
    #[must_use]
    pub fn is_anothers(&self, tenant: Option<&TenantId>, user: Option<&UserId>) -> bool {
        let is_another_tenant = self.tenant.as_ref().zip(tenant).is_some_and(|(a, b)| a != b);
        is_another_tenant || self.user.as_ref().zip(user).is_some_and(|(a, b)| a != b)
    }

    /// Whether the session names this request.
    #[must_use]
    pub fn names(&self, request: &RequestId) -> bool {
        self.request.as_deref() == Some(request.as_str())
    }
}

/// The id in a field: `Ok(None)` when it is absent, null or blank, `Err` when it is not a valid id.
fn id<T, E>(
    object: &RawObject,
    field: &str,
    parse: impl FnOnce(String) -> Result<T, E>,
) -> Result<Option<T>, ()> {
    let Some(value) = json::present(object, field) else { return Ok(None) };
    let text = json::text_or_digits(value).ok_or(())?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|_invalid| ())
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
    fn a_session_without_a_valid_user_names_no_user() {
        let read = |fields: &str| {
            let text = format!(r#"{{"requestId":"req_1",{fields}}}"#);
            let pointer = SessionPointer::read(Some(text));
            assert!(pointer.names(&RequestId::parse("req_1").unwrap()), "{fields}");
            (pointer.user.map(|user| user.to_string()), pointer.is_ambiguous)
        };
        let long = format!(r#""userId":"{}""#, "v".repeat(300));
        for fields in [
            r#""userId":["vic"]"#,
            r#""userId":"vic\u0000""#,
            r#""userId":1.5"#,
            &long,
            r#""userId":"vic","userId":"col""#,
            r#""userId":"vic","user\u0049d":"col""#,
            r#""userId":"vic","tenantId":["t"]"#,
            r#""userId":"vic","tenantId":"a","tenantId":"b""#,
        ] {
            assert_eq!(read(fields), (None, true), "{fields}");
        }
        for fields in [r#""userId":null"#, r#""userId":" ""#, r#""tenantId":"t""#] {
            assert_eq!(read(fields), (None, false), "{fields}");
        }
        assert_eq!(read(r#""userId":7,"tenantId":"t""#), (Some("7".to_owned()), false));
    }

    #[test]
    fn a_session_is_anothers_only_if_it_names_another_tenant_or_user() {
        let (tenant, user) = (TenantId::parse("t").unwrap(), UserId::parse("u").unwrap());
        let is_anothers = |text: &str| {
            SessionPointer::read(Some(text.to_owned())).is_anothers(Some(&tenant), Some(&user))
        };
        for text in [r#"{"tenantId":"t","userId":"u"}"#, r#"{"userId":"u"}"#, "{}", "req_1"] {
            assert!(!is_anothers(text), "{text}");
        }
        for text in [r#"{"tenantId":"t2","userId":"u"}"#, r#"{"userId":"u2"}"#] {
            assert!(is_anothers(text), "{text}");
        }
        let pointer = SessionPointer::read(Some(r#"{"tenantId":"t","userId":"u"}"#.to_owned()));
        assert!(!pointer.is_anothers(None, None));
    }

    #[test]
    fn a_pointer_that_cannot_be_parsed_names_another_request() {
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
