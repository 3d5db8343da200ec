//! What strangers write into Redis: requests, session pointers, signals. Whatever it is, it is read
//! without harm; what is understood is kept to the letter.
#![no_main]

use aura_hitl::domain::decision::{Decision, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId, TenantId, UserId};
use aura_hitl::domain::python_json::{self, canonical};
use aura_hitl::domain::request::{ApprovalRequest, decided_document};
use aura_hitl::domain::session::SessionPointer;
use aura_hitl::domain::signal::{signal_json, signal_request};
use chrono::DateTime;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|text: &str| {
    let id = RequestId::parse("req_1").unwrap();
    let pointer = SessionPointer::read(Some(text.to_owned()));
    assert_eq!(pointer.text.as_deref(), Some(text));
    let named = pointer.request.as_deref();
    assert_eq!(pointer.allows(&id), named.is_none_or(|named| named == "req_1"));
    let _read = signal_request(text);
    if let Ok(raw) = serde_json::from_str::<&RawValue>(text) {
        spelled_anew(raw.get());
        assert_eq!(python_json::quoted(text), text);
    }
    names(&id, text);
    if let Ok(request) = ApprovalRequest::read(&id, text.to_owned()) {
        understood(&id, &request);
    }
});

/// One spelling for one meaning: spelling it again changes nothing, and neither does its meaning.
fn spelled_anew(text: &str) {
    let once = canonical(text);
    assert_eq!(canonical(&once), once);
    if let Ok(before) = serde_json::from_str::<Value>(text) {
        assert_eq!(before, serde_json::from_str::<Value>(&once).unwrap());
    }
}

/// What agents write of a session, with any name that is one, is read as it was meant.
fn names(id: &RequestId, text: &str) {
    let names = (SessionId::parse(text), UserId::parse(text), TenantId::parse(text));
    if let (Ok(session), Ok(user), Ok(tenant)) = names {
        let pointer = serde_json::json!({
            "sessionId": session.as_str(), "requestId": id.as_str(),
            "userId": user.as_str(), "tenantId": tenant.as_str(),
        });
        let pointer = SessionPointer::read(Some(pointer.to_string()));
        assert_eq!(pointer.request.as_deref(), Some(id.as_str()));
        assert_eq!((pointer.user, pointer.tenant), (Some(user), Some(tenant)));
    }
}

fn decisions(text: &str) -> [Decision; 2] {
    let reason = text.chars().filter(|letter| *letter != '\0').take(1000).collect();
    let by = UserId::parse("user123").unwrap();
    let at = DateTime::from_timestamp_millis(1_706_152_860_123).unwrap();
    [Verdict::Approve, Verdict::Reject { reason }].map(|verdict| Decision {
        verdict,
        by: by.clone(),
        at,
    })
}

fn understood(id: &RequestId, request: &ApprovalRequest) {
    let text = request.document.as_str();
    let before = python_json::fields(text).unwrap();
    assert!(serde_json::from_str::<&RawValue>(&request.context).is_ok());
    assert!(serde_json::from_str::<Vec<&RawValue>>(&request.plan_steps).is_ok());
    for decision in decisions(text) {
        signal(id, &decision);
        let after = decided_document(text, &decision);
        let fields = python_json::fields(&after).unwrap();
        let set: &[&str] = match decision.verdict {
            Verdict::Approve => &["status", "approvedBy", "approvedAt"],
            Verdict::Reject { .. } => &["status", "rejectedBy", "rejectedAt", "reason"],
        };
        // Every field where it was and as it was, but for those that the decision sets.
        for (old, new) in before.iter().zip(&fields) {
            assert_eq!(old.0, new.0);
            assert!(set.contains(&old.0.as_str()) || old.1 == new.1, "{}", old.0);
        }
        assert!(fields.keys().skip(before.len()).all(|name| set.contains(&name.as_str())));
        assert!(set.iter().all(|name| fields.contains_key(*name)));
        assert_eq!(decided_document(&after, &decision), after);
        let read = ApprovalRequest::read(id, after).expect("a decided request cannot be read");
        assert_eq!(read.status, decision.verdict.status());
        assert_eq!(
            (&read.session, &read.user, &read.tenant, &read.fingerprint, &read.context),
            (
                &request.session,
                &request.user,
                &request.tenant,
                &request.fingerprint,
                &request.context
            )
        );
    }

    // The same, spelled differently or written at another time, is the same; with another field it
    // is not.
    let hash = |document: String| ApprovalRequest::read(id, document).unwrap().content_hash;
    assert_eq!(hash(canonical(text)), request.content_hash);
    let with = |name: &str| {
        let value = before.len().to_string();
        let mut fields = before.clone();
        fields.insert(name.to_owned(), &value);
        python_json::object(&fields)
    };
    assert_eq!(hash(with("createdAt")), request.content_hash);
    let other = "a field that nobody knows";
    assert!(before.contains_key(other) || hash(with(other)) != request.content_hash);
}

/// Exactly the contract's fields, in its order; and we know our own again.
fn signal(id: &RequestId, decision: &Decision) {
    let signal = signal_json(id, decision);
    let fields: RawObject = serde_json::from_str(&signal).unwrap();
    let names = fields.keys().map(String::as_str).collect::<Vec<_>>();
    let expected: &[&str] = match decision.verdict {
        Verdict::Approve => &["type", "requestId", "status", "timestamp"],
        Verdict::Reject { .. } => &["type", "requestId", "status", "reason", "timestamp"],
    };
    assert_eq!(names, expected);
    let value: Value = serde_json::from_str(&signal).unwrap();
    assert_eq!(value["reason"].as_str(), decision.verdict.reason());
    assert_eq!(signal_request(&signal).as_deref(), Some(id.as_str()));
}
