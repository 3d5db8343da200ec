//! What the agent of a registered request is told of its decision, beside the fields of a signal.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::decision::Decision;
use crate::domain::json::{raw, raw_or_null};
use crate::domain::record::Record;
use crate::domain::request::{ApprovalRequest, Origin, edited_fingerprint};
use crate::domain::signal::signal_json;
use crate::domain::ways::Way;

/// What there is to say of a decision to an agent that can handle more than approve and reject.
#[derive(Debug)]
pub struct Answer {
    /// Of what was approved, if it was; else of what was asked.
    pub fingerprint: String,
    /// The fingerprint of what was asked. Only of an approved request whose agent takes edits, edited or
    /// not: its client can tell from it that this replica knows edits.
    pub requested_fingerprint: Option<String>,
    /// The arguments to act with, if other than those that were asked for.
    pub arguments: Option<Box<RawValue>>,
    /// The answer that was given instead of an approval.
    pub response: Option<Box<RawValue>>,
}

impl Answer {
    /// What there is to say of this request.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let decision = record.state.decision();
        let verdict = decision.map(|decision| &decision.verdict);
        let arguments = verdict.and_then(|verdict| verdict.arguments());
        let mut answer = Self {
            fingerprint: record.fingerprint.clone(),
            requested_fingerprint: None,
            arguments: arguments.map(raw_or_null),
            response: verdict.and_then(|verdict| verdict.response()).map(raw_or_null),
        };
        if record.origin == Origin::Redis || !record.is_approved() {
            return answer;
        }
        let Ok(request) = ApprovalRequest::read(&record.id, record.document.clone()) else {
            return answer;
        };
        if let Some(arguments) = arguments {
            answer.fingerprint = edited_fingerprint(&request.action_type, arguments);
        }
        if arguments.is_some() || request.offer.ways.contains(&Way::Edit) {
            answer.requested_fingerprint = Some(record.fingerprint.clone());
        }
        answer
    }
}

/// How a request was decided under a policy file.
#[must_use]
pub fn decided_via(record: &Record) -> Option<&'static str> {
    let is_ruled = record.state.decision().is_some() && record.ruling.version.is_some();
    is_ruled.then_some(record.ruling.via.as_str())
}

/// The approvals of a request under a policy file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Votes {
    /// How many people have to approve it.
    pub needed: u32,
    /// How many have.
    pub given: u32,
}

impl Votes {
    /// Those of this request.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let ruling = &record.ruling;
        let given = ruling.approvals.unwrap_or(i64::from(record.is_approved()));
        let count = |number: i64| u32::try_from(number).unwrap_or(0);
        ruling.approvals_needed.map(|needed| Self { needed: count(needed), given: count(given) })
    }
}

/// The answer to a poll: the signal's JSON, to which an edit and an answer add their fields, and a policy
/// file how the request was decided. A request of Redis has its signal alone.
#[must_use]
pub fn answer_json(record: &Record, decision: &Decision) -> String {
    let signal = signal_json(&record.id, decision);
    let answer = Answer::of(record);
    let via = decided_via(record).filter(|_via| record.origin == Origin::Http);
    if answer.arguments.is_none() && answer.response.is_none() && via.is_none() {
        return signal;
    }
    let Ok(mut fields) = serde_json::from_str::<crate::domain::json::RawObject>(&signal) else {
        return signal;
    };
    fields.insert("fingerprint".to_owned(), raw(&answer.fingerprint));
    if let Some(requested) = &answer.requested_fingerprint {
        fields.insert("requestedFingerprint".to_owned(), raw(requested));
    }
    if let Some(via) = via {
        fields.insert("decidedVia".to_owned(), raw(via));
        let grant = record.used_grant().map(|grant| raw(grant.as_str()));
        fields.extend(grant.map(|grant| ("grantId".to_owned(), grant)));
        fields.extend(Votes::of(record).map(|votes| ("votes".to_owned(), raw(&votes))));
    }
    for (name, value) in [("arguments", answer.arguments), ("response", answer.response)] {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    }
    raw(&fields).get().to_owned()
}
