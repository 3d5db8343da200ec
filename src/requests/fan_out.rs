//! Replaces the events in the outbox by the notices of every channel and recipient: reads the request,
//! evaluates the policy now in force, and leaves out what the rules do not show.
//!
//! The worker runs in every replica. A lease on the row keeps two of them from taking one event at once, and
//! the statement that deletes an event inserts its notices, so that an event is told once, whoever dies.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use indexmap::IndexMap;
use serde_json::value::RawValue;
use tracing::warn;
use uuid::Uuid;

use super::load::ledger_candidate;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, TenantId, UserId};
use crate::domain::json::RawObject;
use crate::domain::notice::{Cause, Event};
use crate::domain::record::{Candidate, DecidedVia, Record};
use crate::domain::request::shown_context;
use crate::domain::rules::Approvers;
use crate::ledger::{LedgerError, NOTICE, NewOutboxRow, OutboxRow};
use crate::notices::recipients::{Asked, added_by_escalation, approvers};
use crate::notices::slack::POSTED;
use crate::notices::{Lane, Notice, NoticeSettings, Recipient};
use crate::permit::{Law, Terms};
use crate::policy::{Binding, DEFAULT_SHOW};
use crate::state::AppState;
use crate::workers::{Failed, Progress, Worker};

/// How long a replica holds the events that it has claimed.
const LEASE: TimeDelta = TimeDelta::seconds(20);
/// Events to claim at once.
const BATCH_SIZE: usize = 64;
/// Pause before an event is looked at again whose request is not there yet, or is about to be decided by a
/// rule.
const RETRY_DELAY: TimeDelta = TimeDelta::seconds(2);
/// How long an event may wait for that.
const MAX_DELAY: TimeDelta = TimeDelta::seconds(10);

/// The worker that makes notices of events.
#[derive(Debug)]
pub struct FanOut(pub AppState);

impl Worker for FanOut {
    const NAME: &'static str = "notices";
    const INTERVAL: Duration = Duration::from_millis(500);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        run_once(&self.0).await.map_err(|error| {
            warn!(%error, "people are not told of requests yet");
            Failed
        })
    }
}

/// What becomes of an event.
enum Told {
    /// These rows take its place.
    Rows(Vec<NewOutboxRow>),
    /// It is looked at again soon.
    Later,
}

/// Makes notices of up to one batch of events.
async fn run_once(app: &AppState) -> Result<Progress, LedgerError> {
    let settings = app.notices.settings();
    if !settings.is_on() {
        return Ok(Progress::Done);
    }
    let limit = i64::try_from(BATCH_SIZE).unwrap_or(1);
    let now = app.clock.now();
    let events = app.ledger.claim_outbox(NOTICE, now, now + LEASE, limit).await?;
    let law = app.rules.in_force();
    let (mut told, mut rows) = (Vec::new(), Vec::new());
    for event in &events {
        match tell(app, &settings, &law, event).await? {
            Told::Rows(new) => {
                told.push(event.id);
                rows.extend(new);
            }
            Told::Later => {
                app.ledger.postpone_outbox(event.id, now + RETRY_DELAY, None).await?;
            }
        }
    }
    if !told.is_empty() {
        app.ledger.replace_events(&told, &rows).await?;
        crash_point!("fanned-out");
    }
    Ok(Progress::of(events.len(), BATCH_SIZE))
}

async fn tell(
    app: &AppState,
    settings: &NoticeSettings,
    law: &Law,
    row: &OutboxRow,
) -> Result<Told, LedgerError> {
    let nothing = || Ok(Told::Rows(Vec::new()));
    let (Some(event), Ok(cause), Ok(tenant), Ok(id)) = (
        Event::parse(&row.target),
        serde_json::from_str::<Cause>(&row.payload),
        TenantId::parse(row.tenant_id.as_str()),
        RequestId::parse(row.request_id.as_str()),
    ) else {
        warn!(id = row.id, "an event in the outbox cannot be read; nobody is told of it");
        return nothing();
    };
    let now = app.clock.now();
    let may_wait = now - row.created_at < MAX_DELAY;
    let Some(record) = app.ledger.find_request(&tenant, &id).await? else {
        // Somebody has commented on a request that the intake has not seen yet.
        return if may_wait { Ok(Told::Later) } else { nothing() };
    };
    let Ok(candidate) = ledger_candidate(record.clone()) else {
        warn!(request_id = %id, "a request's row cannot be read; nobody is told of it");
        return nothing();
    };
    let is_pending = record.state == State::Pending;
    let binding = law.binding(&candidate, &tenant);
    let terms = law.terms_of(&candidate, binding.as_ref());
    if event == Event::Pending && is_pending && may_wait && terms.is_automatic {
        return Ok(Told::Later);
    }
    let is_anew = cause.since.is_some_and(|since| since != record.created_at);
    if matches!(event, Event::Reminder | Event::Escalated) && (!is_pending || is_anew) {
        return nothing();
    }
    let happened = Happened {
        event,
        cause,
        at: row.created_at,
        now,
        event_row: row,
        settings,
        law,
        record: &record,
        candidate: &candidate,
        binding: binding.as_ref(),
        terms: &terms,
    };
    Ok(Told::Rows(happened.rows()))
}

/// An event of a request, and when it is told.
struct Happened<'a> {
    event: Event,
    cause: Cause,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    event_row: &'a OutboxRow,
    settings: &'a NoticeSettings,
    law: &'a Law,
    record: &'a Record,
    candidate: &'a Candidate,
    binding: Option<&'a Binding>,
    terms: &'a Terms,
}

impl Happened<'_> {
    /// The rows that take the place of the event.
    fn rows(&self) -> Vec<NewOutboxRow> {
        let Self { settings, record, .. } = self;
        let payload = self.notice().json();
        let mut rows = Vec::new();
        for webhook in &settings.webhooks {
            if webhook.wants(self.event, &record.tenant) {
                let lane = Lane::Webhook(webhook.name.clone());
                rows.push(self.row(&lane, webhook.name.clone(), &payload));
            }
        }
        if self.is_for_people() {
            let told = self.recipients();
            let contacts = told.iter().filter_map(|to| Some((to, settings.people.contact(to)?)));
            let contacts = contacts.collect::<Vec<_>>();
            if settings.mail.is_some() {
                for (recipient, contact) in &contacts {
                    if contact.mail.is_some() {
                        rows.push(self.row(&Lane::Mail, recipient.target(), &payload));
                    }
                }
            }
            if let Some(slack) = &settings.slack
                && !(self.event.closes() && slack.channels.contains_key(&record.tenant))
            {
                let channel = slack.channels.get(&record.tenant);
                let mut targets = BTreeSet::new();
                match channel {
                    Some(channel) => targets.extend([channel]),
                    None => targets.extend(contacts.iter().filter_map(|(_, it)| it.slack.as_ref())),
                }
                for target in targets {
                    rows.push(self.row(&Lane::Slack, target.clone(), &payload));
                }
            }
        }
        // Whoever decided, and whoever is told: what asks in Slack asks no longer.
        if settings.slack.is_some() && self.event.closes() {
            rows.push(self.row(&Lane::Slack, POSTED.to_owned(), &payload));
        }
        if self.event == Event::Pending && record.state == State::Pending {
            rows.extend(self.later());
        }
        rows
    }

    /// A row for a channel.
    fn row(&self, lane: &Lane, target: String, payload: &str) -> NewOutboxRow {
        let row = self.event_at(self.at, target, payload);
        NewOutboxRow { kind: lane.kind(), lane: Some(lane.to_string()), due_at: self.now, ..row }
    }

    /// A row for an event at this time.
    fn event_at(&self, at: DateTime<Utc>, target: String, payload: &str) -> NewOutboxRow {
        NewOutboxRow {
            event: self.event_row.id,
            kind: NOTICE,
            lane: None,
            target,
            tenant_id: self.event_row.tenant_id.clone(),
            request_id: self.event_row.request_id.clone(),
            payload: payload.to_owned(),
            created_at: at,
            due_at: at,
        }
    }

    /// The events that come later, while the request is pending: the reminder and the escalations. They are
    /// written now, and told of only if the request still waits then.
    fn later(&self) -> Vec<NewOutboxRow> {
        let Self { record, .. } = self;
        let Some(binding) = self.binding else { return Vec::new() };
        let reminder = binding.remind_after().map(|after| (Event::Reminder, after));
        let escalations = binding.escalates_after().into_iter();
        let escalations = escalations.map(|after| (Event::Escalated, after));
        let row = |(event, after): (Event, TimeDelta)| {
            let at = record.asked_at.checked_add_signed(after)?;
            if at >= record.expires_at {
                return None;
            }
            let cause = Cause {
                by: None,
                after: Some(after.num_seconds()),
                since: Some(record.created_at),
            };
            Some(self.event_at(at.max(self.now), event.as_str().to_owned(), &cause.json()))
        };
        reminder.into_iter().chain(escalations).filter_map(row).collect()
    }

    /// Whether people are told, not only programs. Of what a rule or a grant decides they are not, and not
    /// of what waits no longer, or cannot be decided.
    fn is_for_people(&self) -> bool {
        let Self { record, .. } = self;
        match self.event {
            Event::Decided => record.ruling.via == DecidedVia::Person,
            event if event.asks() => record.state == State::Pending && !record.has_moved_on,
            _ => true,
        }
    }

    /// Who may decide the request.
    fn approvers(&self) -> BTreeSet<Recipient> {
        let Self { settings, law, .. } = self;
        match self.binding {
            Some(binding) => approvers(&settings.people, binding, self.asked(), self.now),
            // Without a policy file, nobody is named but the requester who decides alone.
            None if law.settings.approvers == Approvers::Requester => {
                self.requester().into_iter().collect()
            }
            None => BTreeSet::new(),
        }
    }

    fn asked(&self) -> Asked<'_> {
        let Record { tenant, user, asked_at, .. } = self.record;
        Asked { tenant, requester: user.as_ref(), created_at: *asked_at }
    }

    /// The requester, if the configuration names them.
    fn requester(&self) -> Option<Recipient> {
        let Record { tenant, user, .. } = self.record;
        self.settings.people.person(user.as_ref()?, tenant)
    }

    /// The people and groups who are told: of what waits the approvers, of outcomes the requester, of
    /// comments both. Nobody is told of what they did themselves.
    fn recipients(&self) -> BTreeSet<Recipient> {
        let (people, record) = (&self.settings.people, self.record);
        let mut told = match self.event {
            Event::Pending | Event::Reminder => self.approvers(),
            Event::Escalated => {
                let after = TimeDelta::try_seconds(self.cause.after.unwrap_or(0));
                let begins = after.and_then(|after| record.asked_at.checked_add_signed(after));
                match (self.binding, begins) {
                    (Some(binding), Some(begins)) => {
                        added_by_escalation(people, binding, self.asked(), begins)
                    }
                    _ => BTreeSet::new(),
                }
            }
            Event::Decided | Event::Expired | Event::Cancelled => {
                self.requester().into_iter().collect()
            }
            Event::Commented => self.approvers().into_iter().chain(self.requester()).collect(),
        };
        let by = self.cause.by.as_ref().and_then(|by| UserId::parse(by.as_str()).ok());
        if let Some(by) = by.and_then(|by| people.person(&by, &record.tenant)) {
            told.remove(&by);
        }
        told
    }

    fn notice(&self) -> Notice {
        let &Self { settings, record, candidate, binding, terms, .. } = self;
        let show = binding.map_or_else(|| DEFAULT_SHOW.to_vec(), Binding::show);
        let request = &candidate.request;
        let decision = record.state.decision();
        let (is_decided, shows) = (self.event == Event::Decided, |entry| show.contains(&entry));
        let decision = decision.filter(|_| is_decided);
        let reason = decision.and_then(|decision| decision.verdict.reason());
        let ruling = if is_decided { &record.ruling } else { &terms.ruling };
        Notice {
            id: format!("msg_{}", Uuid::new_v4().simple()),
            event: self.event,
            at: self.at,
            tenant: record.tenant.to_string(),
            request_id: record.id.to_string(),
            session: record.session.to_string(),
            user: record.user.as_ref().map(ToString::to_string),
            action: request.action_type.clone(),
            message: request.message.clone().filter(|_| shows("$message")),
            risk: ruling.risk.clone(),
            rule: ruling.rule.clone(),
            status: self.status().to_owned(),
            expires_at: record.expires_at,
            decided_by: decision.map(|decision| decision.by.to_string()),
            decided_via: decision.map(|_| record.ruling.via.as_str().to_owned()),
            reason: reason.filter(|_| shows("$reason")).map(ToOwned::to_owned),
            by: self.cause.by.clone(),
            url: settings.link(&record.id),
            context: shown_fields(&request.document, &show),
            approvers: binding.map_or_else(Vec::new, |binding| {
                let named = binding.approvers(record.asked_at, self.now);
                let mut named = named.map(ToString::to_string).collect::<Vec<_>>();
                named.dedup();
                named
            }),
            approvals_needed: ruling.approvals_needed,
            decisions: candidate
                .ways()
                .iter()
                .filter(|way| binding.is_none_or(|binding| binding.allows(**way)))
                .map(|way| way.as_str().to_owned())
                .collect(),
            etag: request.etag.clone(),
        }
    }

    /// The status of the request by this event.
    fn status(&self) -> &'static str {
        match self.event {
            Event::Pending | Event::Reminder | Event::Escalated => State::Pending.as_str(),
            Event::Expired => State::Expired.as_str(),
            Event::Cancelled => State::Cancelled.as_str(),
            Event::Decided | Event::Commented => self.record.state.as_str(),
        }
    }
}

/// The fields of the request's context that `show` names, as the agent wrote them.
fn shown_fields(document: &str, show: &[&str]) -> IndexMap<String, Box<RawValue>> {
    let context = shown_context(document);
    let fields = serde_json::from_str::<RawObject>(context.get()).unwrap_or_default();
    let shown = show.iter().filter(|entry| !entry.starts_with('$'));
    let field = |entry: &&str| Some(((*entry).to_owned(), fields.get(*entry)?.to_owned()));
    shown.filter_map(field).collect()
}
