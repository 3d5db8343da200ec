//! The recorder keeps the result of every call as ok, fail or unknown. The checker reads the ledger and
//! Redis afterwards and checks the promises of docs/RELIABILITY.md. It knows the wire contract and the
//! two tables, and uses none of the service's code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use serde_json::Value;

/// A decision: who, `approved` or `rejected`, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    pub by: String,
    pub status: String,
    pub reason: Option<String>,
}

impl Choice {
    pub fn approved(by: &str) -> Self {
        Self { by: by.to_owned(), status: "approved".to_owned(), reason: None }
    }

    pub fn rejected(by: &str, reason: &str) -> Self {
        let reason = Some(reason.to_owned());
        Self { by: by.to_owned(), status: "rejected".to_owned(), reason }
    }
}

/// How a call ended, as far as its caller can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// 200: the caller's decision stands.
    Ok,
    /// Refused: the status, and for 409 E3006 the decision that stands.
    Fail { status: u16, standing: Option<Choice> },
    /// No answer, or one that says that the outcome is unknown.
    Unknown,
}

/// One attempt to decide.
#[derive(Clone, Debug)]
pub struct Call {
    pub request: String,
    pub choice: Choice,
    pub ended: Ended,
}

/// Every call that was made.
#[derive(Debug, Default)]
pub struct History {
    calls: Mutex<Vec<Call>>,
}

impl History {
    pub fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub fn count(&self, which: impl Fn(&Ended) -> bool) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| which(&call.ended)).count()
    }
}

/// A request's row in the ledger.
#[derive(Clone, Debug)]
pub struct Row {
    pub request: String,
    pub session: String,
    /// Whether it was registered over HTTP. Such a request has no signal.
    pub is_registered: bool,
    /// `pending`, `approved`, `rejected`, …
    pub status: String,
    /// What was decided, if anything was.
    pub decision: Option<Choice>,
    /// Unix seconds of the decision.
    pub decided_at: Option<i64>,
    /// `owed`, `sent` or `superseded`.
    pub delivery: String,
    /// Whether `agent_task` has its row.
    pub has_task: bool,
}

impl Row {
    /// The signal of its decision, built from the contract.
    pub fn signal(&self) -> Option<String> {
        let (decision, at) = (self.decision.as_ref()?, self.decided_at?);
        let id = Value::from(self.request.as_str());
        let (kind, reason) = match &decision.reason {
            None => ("approval", String::new()),
            Some(reason) => ("rejection", format!("\"reason\":{},", Value::from(reason.as_str()))),
        };
        let status = &decision.status;
        Some(format!(
            "{{\"type\":\"{kind}\",\"requestId\":{id},\"status\":\"{status}\",{reason}\"timestamp\":{at}}}"
        ))
    }
}

/// The content of both stores once nothing is owed.
#[derive(Clone, Debug, Default)]
pub struct Aftermath {
    /// Every row of the ledger.
    pub rows: Vec<Row>,
    /// Session and text of every message published, in order.
    pub heard: Vec<(String, String)>,
    /// The text under each session's signal key.
    pub keys: BTreeMap<String, String>,
    /// What `GET signals?requestId=` answers for requests that neither of these delivered.
    pub polled: BTreeMap<String, String>,
}

impl Aftermath {
    /// Whether the signal of a row's decision was published, or is under its session's key.
    pub fn has_signalled(&self, row: &Row) -> bool {
        let Some(signal) = row.signal() else { return false };
        self.keys.get(&row.session) == Some(&signal)
            || self.heard.contains(&(row.session.clone(), signal))
    }
}

/// What a row of the fault matrix demands of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Every decision was published at least once.
    Published,
    /// Every decision was published, is under its session's key, or is found by polling for it:
    /// for rows in which Redis loses messages, and the listener with them.
    Found,
    /// No decision is still owed; some were superseded on purpose.
    Settled,
}

/// All violations of the promises. Empty when the promises held.
pub fn check(calls: &[Call], aftermath: &Aftermath, delivered: Delivered) -> Vec<String> {
    let mut wrongs = Vec::new();
    let mut rows = BTreeMap::new();
    for row in &aftermath.rows {
        if rows.insert(row.request.as_str(), row).is_some() {
            wrongs.push(format!("{}: two rows for one request", row.request));
        }
    }
    check_answers(calls, &rows, &mut wrongs);
    check_rows(calls, aftermath, delivered, &mut wrongs);
    check_signals(aftermath, &mut wrongs);
    wrongs
}

/// Every acknowledged decision is stored, and every answer agrees with the stored decision.
fn check_answers(calls: &[Call], rows: &BTreeMap<&str, &Row>, wrongs: &mut Vec<String>) {
    for call in calls {
        let (request, choice) = (&call.request, &call.choice);
        let stored = rows.get(request.as_str()).and_then(|row| row.decision.as_ref());
        match &call.ended {
            Ended::Ok if stored != Some(choice) => {
                wrongs
                    .push(format!("{request}: {choice:?} was acknowledged, stored is {stored:?}"));
            }
            Ended::Fail { standing: Some(standing), .. } if stored != Some(standing) => {
                wrongs.push(format!(
                    "{request}: told that {standing:?} stands, stored is {stored:?}"
                ));
            }
            Ended::Ok | Ended::Fail { .. } | Ended::Unknown => {}
        }
    }
}

/// Every stored decision was attempted by a caller, has its task and was delivered.
fn check_rows(
    calls: &[Call],
    aftermath: &Aftermath,
    delivered: Delivered,
    wrongs: &mut Vec<String>,
) {
    // The attempts that may be stored: all but those that were answered with a refusal.
    let may_stand = calls
        .iter()
        .filter(|call| !matches!(call.ended, Ended::Fail { .. }))
        .map(|call| (call.request.as_str(), &call.choice))
        .collect::<BTreeSet<_>>();
    let published = aftermath
        .heard
        .iter()
        .map(|(session, text)| (session.as_str(), text.as_str()))
        .collect::<BTreeSet<_>>();
    for row in &aftermath.rows {
        let request = &row.request;
        let Some(decision) = &row.decision else { continue };
        if !may_stand.contains(&(request.as_str(), decision)) {
            wrongs.push(format!("{request}: {decision:?} is stored, and nobody decided that"));
        }
        if !row.has_task {
            wrongs.push(format!("{request}: decided, but agent_task has no row"));
        }
        if row.delivery == "owed" {
            wrongs.push(format!("{request}: decided, but its signal is still owed"));
        }
        let signal = row.signal().unwrap_or_default();
        let is_published = published.contains(&(row.session.as_str(), signal.as_str()));
        let is_kept = aftermath.keys.get(&row.session) == Some(&signal);
        let is_polled = aftermath.polled.get(request) == Some(&signal);
        if row.is_registered {
            if is_published || is_kept {
                wrongs.push(format!("{request}: registered, and said in session {}", row.session));
            }
            continue;
        }
        let is_delivered = match delivered {
            Delivered::Published => is_published,
            Delivered::Found => is_published || is_kept || is_polled,
            Delivered::Settled => row.delivery != "sent" || is_published || is_kept,
        };
        if !is_delivered {
            wrongs.push(format!(
                "{request}: {} never reached session {}",
                decision.status, row.session
            ));
        }
    }
}

/// Every message and every signal key agrees with a decision in the ledger.
fn check_signals(aftermath: &Aftermath, wrongs: &mut Vec<String>) {
    let signals = aftermath
        .rows
        .iter()
        .filter_map(|row| Some((row.session.as_str(), row.signal()?)))
        .collect::<BTreeSet<_>>();
    let kept = aftermath.keys.iter();
    for (session, text) in aftermath.heard.iter().map(|(a, b)| (a, b)).chain(kept) {
        if !signals.contains(&(session.as_str(), text.clone())) {
            wrongs.push(format!("{session}: the signal {text} is not what the ledger holds"));
        }
    }
}

/// How many messages were published beyond the first of each.
pub fn duplicates(heard: &[(String, String)]) -> usize {
    heard.len() - heard.iter().collect::<BTreeSet<_>>().len()
}
