//! The metrics for Prometheus at `/metrics`. This file defines the name, the kind and the meaning of
//! every metric, and a function that counts it.
//!
//! Labels have few values: never an id, a user or a tenant. Figures read from the ledger are the same in
//! all replicas, so queries must use `max`, not `sum`.

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use crate::domain::decision::State;
use crate::domain::record::{Delivery, Record};
use crate::domain::request::Origin;

const BUILD: &str = "aura_hitl_build_info";
const DECISIONS: &str = "aura_hitl_decisions_total";
const DECISION_AGE: &str = "aura_hitl_decision_age_seconds";
const VOTES: &str = "aura_hitl_votes_total";
const OUTCOMES: &str = "aura_hitl_outcomes_total";
const REFUSED: &str = "aura_hitl_refused_total";
const CONFLICTS: &str = "aura_hitl_conflicts_total";
const CALL_DURATION: &str = "aura_hitl_http_request_duration_seconds";
const SIGNALS: &str = "aura_hitl_signals_total";
const OWED: &str = "aura_hitl_signals_owed";
const OLDEST_OWED: &str = "aura_hitl_oldest_owed_seconds";
const PENDING: &str = "aura_hitl_requests_pending";
const OLDEST_PENDING: &str = "aura_hitl_oldest_pending_seconds";
const LEDGER_UP: &str = "aura_hitl_ledger_up";
const COURIER_UP: &str = "aura_hitl_courier_up";
const CONNECTIONS: &str = "aura_hitl_ledger_connections";
const BATCH_WRITES: &str = "aura_hitl_ledger_batch_writes";
const QUEUE_TIME: &str = "aura_hitl_ledger_queue_seconds";
const MAX_CONNECTIONS: &str = "aura_hitl_ledger_connections_max";
const REDIS_CONNECTS: &str = "aura_hitl_redis_connects_total";
const CALLS: &str = "aura_hitl_calls_under_way";
const MAX_CALLS: &str = "aura_hitl_calls_max";
const CLIENTS: &str = "aura_hitl_connections";
const MAX_CLIENTS: &str = "aura_hitl_connections_max";
const WAITERS: &str = "aura_hitl_waiters";
const DROPPED_ATTEMPTS: &str = "aura_hitl_refused_attempts_dropped_total";
const AUDITED: &str = "aura_hitl_audit_entries_total";
const OLDEST_AUDIT: &str = "aura_hitl_oldest_audit_entry_seconds";
const NOTICES: &str = "aura_hitl_notices_total";
const OLDEST_NOTICE: &str = "aura_hitl_oldest_notice_seconds";
const NOTICES_OFF: &str = "aura_hitl_notice_channel_off";
const PURGED: &str = "aura_hitl_purged_total";
const UNHEARD: &str = "aura_hitl_signals_unheard";
const DROPPED_LINES: &str = "aura_hitl_log_lines_dropped_total";
const FORGERIES: &str = "aura_hitl_forgeries_total";
const WORKER_SUCCESS: &str = "aura_hitl_worker_last_success_timestamp_seconds";
const WORKER_FAILURES: &str = "aura_hitl_worker_failures_total";
const INTAKE_SEEN: &str = "aura_hitl_intake_seen_total";
const INTAKE_UNREADABLE: &str = "aura_hitl_intake_unreadable_total";
const INTAKE_SCAN: &str = "aura_hitl_intake_scan_seconds";
const SLACK_CALLS: &str = "aura_hitl_slack_calls_total";
const UNCHECKED_MESSAGES: &str = "aura_hitl_unchecked_messages_total";

/// Histogram buckets for the duration of calls, in seconds: from a fast click to a long-poll.
const CALL_DURATION_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Histogram buckets for the time until people decide, in seconds: up to a day, the longest lifetime of a
/// request.
const DECISION_AGE_BUCKETS: [f64; 11] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 86400.0];
/// Histogram buckets for the number of writes in a batch, up to the most.
const BATCH_WRITES_BUCKETS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// Histogram buckets for the time until a write begins, in seconds, up to the longest.
const QUEUE_TIME_BUCKETS: [f64; 11] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 2.0];

/// The recorder of this process. Several services in one process, as in tests, share it.
static RECORDER: LazyLock<anyhow::Result<PrometheusHandle>> = LazyLock::new(|| {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(CALL_DURATION.to_owned()), &CALL_DURATION_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(DECISION_AGE.to_owned()), &DECISION_AGE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(BATCH_WRITES.to_owned()), &BATCH_WRITES_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(QUEUE_TIME.to_owned()), &QUEUE_TIME_BUCKETS)?
        .install_recorder()?;
    describe();
    Ok(handle)
});

/// Facts that do not change while the process runs.
#[derive(Clone, Copy, Debug)]
pub struct Deployment {
    /// The ledger's engine.
    pub ledger: &'static str,
    /// The courier's engine.
    pub courier: &'static str,
    /// Connections of clients that may be open at once.
    pub max_clients: usize,
}

/// Starts counting. Sets every counter to 0, so that Prometheus sees its first increase. `reasons` are the
/// values of the label `reason` of refused calls.
///
/// # Errors
/// When another recorder is already installed in this process.
pub fn start(
    deployment: Deployment,
    reasons: impl Iterator<Item = &'static str>,
) -> anyhow::Result<()> {
    RECORDER.as_ref().map(drop).map_err(|error| anyhow::anyhow!("cannot count: {error}"))?;
    let Deployment { ledger, courier, max_clients } = deployment;
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION"), "ledger" => ledger, "courier" => courier)
        .set(1);
    for outcome in ["approved", "rejected", "answered"] {
        for origin in ["redis", "http"] {
            decisions(courier, outcome, origin).absolute(0);
        }
    }
    for outcome in ["expired", "cancelled"] {
        counter!(OUTCOMES, "outcome" => outcome).absolute(0);
    }
    for result in [AuditResult::Sent, AuditResult::Failed, AuditResult::Unsendable] {
        audit_entries(result).absolute(0);
    }
    gauge!(OLDEST_AUDIT).set(0);
    gauge!(INTAKE_SCAN).set(0);
    counter!(DROPPED_ATTEMPTS).absolute(0);
    for by in [By::Decider, By::Relay, By::Listener] {
        for result in ["sent", "superseded", "failed"] {
            signals(by, result).absolute(0);
        }
    }
    for reason in reasons {
        counter!(REFUSED, "reason" => reason).absolute(0);
    }
    gauge!(MAX_CLIENTS).set(count(max_clients));
    for table in ["hitl_request", "agent_task"] {
        counter!(PURGED, "table" => table).absolute(0);
    }
    for call in SlackCall::ALL {
        slack_calls(call).absolute(0);
    }
    for forgery in [Forgery::Message, Forgery::Signal, Forgery::Request] {
        forgeries(forgery).absolute(0);
    }
    for name in
        [CONFLICTS, VOTES, REDIS_CONNECTS, UNCHECKED_MESSAGES, INTAKE_SEEN, INTAKE_UNREADABLE]
    {
        counter!(name).absolute(0);
    }
    Ok(())
}

fn describe() {
    describe_gauge!(BUILD, "1; the release, its ledger and its courier.");
    describe_counter!(DECISIONS, "Decisions recorded here.");
    describe_histogram!(DECISION_AGE, "Time from the request to the decision.");
    describe_counter!(VOTES, "Approvals recorded here of requests that need more of them.");
    describe_counter!(OUTCOMES, "Requests closed here without a decision.");
    describe_counter!(REFUSED, "Calls answered with an error.");
    describe_counter!(CONFLICTS, "Decisions refused because the request already had another one.");
    describe_histogram!(CALL_DURATION, "Time from the head of a call to the head of its answer.");
    describe_counter!(SIGNALS, "Deliveries attempted; a failed one stays owed.");
    describe_gauge!(OWED, "Deliveries owed, in the ledger.");
    describe_gauge!(OLDEST_OWED, "Age of the oldest owed delivery in the ledger; 0 without one.");
    describe_gauge!(PENDING, "Pending requests in the ledger.");
    describe_gauge!(
        OLDEST_PENDING,
        "Age of the oldest pending request in the ledger; 0 without one."
    );
    describe_gauge!(LEDGER_UP, "1 if the ledger can be written.");
    describe_gauge!(COURIER_UP, "1 if the courier answers.");
    describe_gauge!(CONNECTIONS, "Connections to the ledger.");
    describe_histogram!(BATCH_WRITES, "Writes of requests that shared one statement.");
    describe_histogram!(QUEUE_TIME, "Time from a call to the beginning of its write.");
    describe_gauge!(MAX_CONNECTIONS, "Most connections to the ledger.");
    describe_counter!(REDIS_CONNECTS, "Connections made to Redis, the first one included.");
    describe_gauge!(CALLS, "Calls in progress.");
    describe_gauge!(MAX_CALLS, "Most calls in progress at once.");
    describe_gauge!(CLIENTS, "Open connections of clients.");
    describe_gauge!(MAX_CLIENTS, "Connections of clients that may be open at once.");
    describe_gauge!(WAITERS, "Agents waiting over HTTP.");
    describe_counter!(
        AUDITED,
        "Entries for the Auth server's audit log; a failed one is sent again."
    );
    describe_counter!(
        NOTICES,
        "Notices to people, by channel; a failed one is sent again, one that was given up is not."
    );
    describe_gauge!(
        OLDEST_NOTICE,
        "Age of the oldest notice that its receiver has not taken, by channel; 0 without one."
    );
    describe_gauge!(NOTICES_OFF, "1 if the receiver of this channel wants no more notices.");
    describe_counter!(DROPPED_ATTEMPTS, "Refused attempts to decide that left no row.");
    describe_gauge!(
        OLDEST_AUDIT,
        "Age of the oldest entry that the Auth server has not accepted; 0 without one."
    );
    describe_counter!(
        DROPPED_LINES,
        "Log lines that were dropped because nobody read standard output."
    );
    describe_counter!(PURGED, "Rows that the purge of this process has deleted.");
    describe_gauge!(UNHEARD, "Signals that had no subscriber and may be published again.");
    describe_counter!(FORGERIES, "Answers found in Redis that the ledger does not know.");
    describe_counter!(
        UNCHECKED_MESSAGES,
        "Messages on sessions' channels that were dropped before they were checked."
    );
    describe_counter!(SLACK_CALLS, "Calls of Slack about clicks, by what became of them.");
    describe_counter!(INTAKE_SEEN, "Pending requests found in Redis that got a row in the ledger.");
    describe_counter!(INTAKE_UNREADABLE, "Requests found in Redis that cannot be read.");
    describe_gauge!(
        INTAKE_SCAN,
        "Duration of the last pass over all keys of Redis; 0 before the first."
    );
    describe_gauge!(
        WORKER_SUCCESS,
        "Unix time at which a worker last ended a round without a failure; at first, its start."
    );
    describe_counter!(WORKER_FAILURES, "Rounds of a worker that failed and are tried again.");
    Collector::default().describe();
}

/// Puts measured values into buckets, so that they do not use up memory between scrapes.
pub fn upkeep() {
    if let Ok(recorder) = RECORDER.as_ref() {
        recorder.run_upkeep();
    }
}

/// A worker begins.
pub fn worker_started(worker: &'static str) {
    counter!(WORKER_FAILURES, "worker" => worker).absolute(0);
    worker_ran(worker, true);
}

/// A worker has ended a round, with or without success.
pub fn worker_ran(worker: &'static str, is_success: bool) {
    if is_success {
        // The machine's clock, with which Prometheus compares it.
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        gauge!(WORKER_SUCCESS, "worker" => worker).set(now.as_secs_f64());
    } else {
        counter!(WORKER_FAILURES, "worker" => worker).increment(1);
    }
}

/// What triggered the sending of a signal.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// The call that made the decision.
    Decider,
    /// The relay, which sends what is still owed.
    Relay,
    /// A new subscriber of a channel whose signal had no subscriber.
    Listener,
}

fn decisions(
    courier: &'static str,
    outcome: &'static str,
    origin: &'static str,
) -> ::metrics::Counter {
    let mode = if courier == "redis" { "production" } else { "embedded" };
    counter!(DECISIONS, "outcome" => outcome, "origin" => origin, "mode" => mode)
}

/// Counts a recorded decision. `courier` is the courier's engine.
pub fn decided(courier: &'static str, record: &Record) {
    let State::Decided(decision) = &record.state else { return };
    let outcome = decision.verdict.status();
    let origin = if record.origin == Origin::Http { "http" } else { "redis" };
    decisions(courier, outcome, origin).increment(1);
    let age = (decision.at - record.asked_at).to_std().unwrap_or_default();
    histogram!(DECISION_AGE, "outcome" => outcome).record(age);
}

/// Counts an approval that decides nothing yet.
pub fn voted() {
    counter!(VOTES).increment(1);
}

/// Counts a request that expired or was withdrawn. A request that was only seen in Redis is not counted
/// when its key goes: agents give up long before.
pub fn closed(record: &Record) {
    if record.is_only_seen() {
        return;
    }
    counter!(OUTCOMES, "outcome" => record.state.as_str()).increment(1);
}

/// Counts an attempted delivery; `None` when it failed.
pub fn delivered(by: By, delivery: Option<Delivery>) {
    let result = match delivery {
        Some(Delivery::Sent) => "sent",
        Some(Delivery::Superseded) => "superseded",
        Some(Delivery::Owed) | None => "failed",
    };
    signals(by, result).increment(1);
}

fn signals(by: By, result: &'static str) -> ::metrics::Counter {
    let by = match by {
        By::Decider => "decider",
        By::Relay => "relay",
        By::Listener => "listener",
    };
    counter!(SIGNALS, "by" => by, "result" => result)
}

/// Counts an answered call: its method, the pattern of its route, its status, its duration, and the reason
/// if it was refused.
pub fn answered(
    method: &str,
    route: &str,
    status: u16,
    duration: Duration,
    refused: Option<&'static str>,
) {
    // Clients may send any method; the label must have few values.
    let method = match method {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        _ => "other",
    };
    let status = match status {
        ..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    };
    let route = route.strip_prefix("/api").unwrap_or(route).to_owned();
    histogram!(CALL_DURATION, "method" => method, "route" => route, "status" => status)
        .record(duration);
    if let Some(reason) = refused {
        counter!(REFUSED, "reason" => reason).increment(1);
    }
}

/// Counts a batch of so many writes.
pub fn batch_written(writes: usize) {
    histogram!(BATCH_WRITES).record(count(writes));
}

/// Counts a write that begins, this long after its call.
pub fn left_queue(after: Duration) {
    histogram!(QUEUE_TIME).record(after);
}

/// Counts a decision that was refused because the request already had another one.
pub fn decision_conflicted() {
    counter!(CONFLICTS).increment(1);
}

/// Counts a new connection of a client.
pub fn client_connected() {
    gauge!(CLIENTS).increment(1);
}

/// Counts a closed connection of a client.
pub fn client_left() {
    gauge!(CLIENTS).decrement(1);
}

/// Counts a new connection to Redis.
pub fn redis_connected() {
    counter!(REDIS_CONNECTS).increment(1);
}

/// Counts a refused attempt to decide that left no row, because there were too many or the ledger did not
/// answer.
pub fn refused_attempt_dropped() {
    counter!(DROPPED_ATTEMPTS).increment(1);
}

/// What became of a notice.
#[derive(Clone, Copy, Debug)]
pub enum NoticeResult {
    /// The receiver has taken it.
    Sent,
    /// It is sent again.
    Failed,
    /// It is not sent again.
    GivenUp,
}

/// Counts what became of a notice.
pub fn notice(channel: &str, result: NoticeResult) {
    notices(channel, result).increment(1);
}

fn notices(channel: &str, result: NoticeResult) -> ::metrics::Counter {
    let result = match result {
        NoticeResult::Sent => "sent",
        NoticeResult::Failed => "failed",
        NoticeResult::GivenUp => "given_up",
    };
    counter!(NOTICES, "channel" => channel.to_owned(), "result" => result)
}

/// Counts notices that were given up because the settings no longer have their channel.
pub fn notices_given_up(channel: &str, count: u64) {
    notices(channel, NoticeResult::GivenUp).increment(count);
}

/// Sets whether the receiver of this channel wants no more notices. Begins to count the channel.
pub fn notice_channel_is_off(channel: &str, is_off: bool) {
    for result in [NoticeResult::Sent, NoticeResult::Failed, NoticeResult::GivenUp] {
        notices(channel, result).increment(0);
    }
    gauge!(NOTICES_OFF, "channel" => channel.to_owned()).set(f64::from(u8::from(is_off)));
}

/// Notes that the settings no longer have this channel, so that no alert stands for it.
pub fn channel_is_gone(channel: &str) {
    notice_channel_is_off(channel, false);
    oldest_notice(channel, Duration::ZERO);
}

/// Sets the age of the oldest notice that its receiver has not taken.
pub fn oldest_notice(channel: &str, age: Duration) {
    gauge!(OLDEST_NOTICE, "channel" => channel.to_owned()).set(age.as_secs_f64());
}

/// The result of sending an entry to the Auth server's audit log.
#[derive(Clone, Copy, Debug)]
pub enum AuditResult {
    /// The Auth server accepted the entry.
    Sent,
    /// The Auth server did not accept the entry. It is sent again.
    Failed,
    /// The entry is never sent: the Auth server accepts only integer tenant ids.
    Unsendable,
}

/// Counts the result of sending an entry to the Auth server's audit log.
pub fn audited(result: AuditResult) {
    audit_entries(result).increment(1);
}

fn audit_entries(result: AuditResult) -> ::metrics::Counter {
    let result = match result {
        AuditResult::Sent => "sent",
        AuditResult::Failed => "failed",
        AuditResult::Unsendable => "unsendable",
    };
    counter!(AUDITED, "result" => result)
}

/// Counts rows of a table that the purge has deleted.
pub fn purged(table: &'static str, rows: u64) {
    counter!(PURGED, "table" => table).increment(rows);
}

/// Where an answer was found in Redis that the ledger does not know. A writer of Redis has forged it, or a
/// failover of the database has lost the decision after its signal was sent.
#[derive(Clone, Copy, Debug)]
pub enum Forgery {
    /// A message on a session's channel. Every replica receives and counts it.
    Message,
    /// The key `hitl:signal:{sessionId}`.
    Signal,
    /// The status in the key `hitl:request:{requestId}`.
    Request,
}

/// Counts an answer that the ledger does not know. The caller must also log it, with `security = true`.
pub fn forged(forgery: Forgery) {
    forgeries(forgery).increment(1);
}

fn forgeries(forgery: Forgery) -> ::metrics::Counter {
    let kind = match forgery {
        Forgery::Message => "message",
        Forgery::Signal => "signal",
        Forgery::Request => "request",
    };
    counter!(FORGERIES, "kind" => kind)
}

/// What became of a call of Slack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlackCall {
    /// The request is decided as the person wants it.
    Decided,
    /// The approval is recorded, and more are needed.
    Voted,
    /// The person is asked for a reason.
    Asked,
    /// The person was told why nothing was decided.
    Refused,
    /// The configuration names nobody with this Slack id for the request's tenant.
    UnknownPerson,
    /// The message asks for no decision, or for one on another request.
    UnknownMessage,
    /// It has not the form of Slack's calls.
    Malformed,
    /// It comes from another workspace than the settings name.
    OtherTeam,
    /// It is not signed by Slack.
    Forged,
    /// It is signed, but too old.
    Late,
    /// It was taken before.
    Replayed,
}

impl SlackCall {
    const ALL: [Self; 11] = [
        Self::Decided,
        Self::Voted,
        Self::Asked,
        Self::Refused,
        Self::UnknownPerson,
        Self::UnknownMessage,
        Self::Malformed,
        Self::OtherTeam,
        Self::Forged,
        Self::Late,
        Self::Replayed,
    ];
}

/// Counts a call of Slack.
pub fn slack_called(call: SlackCall) {
    slack_calls(call).increment(1);
}

fn slack_calls(call: SlackCall) -> ::metrics::Counter {
    let result = match call {
        SlackCall::Decided => "decided",
        SlackCall::Voted => "voted",
        SlackCall::Asked => "asked",
        SlackCall::Refused => "refused",
        SlackCall::UnknownPerson => "unknown_person",
        SlackCall::UnknownMessage => "unknown_message",
        SlackCall::Malformed => "malformed",
        SlackCall::OtherTeam => "other_team",
        SlackCall::Forged => "forged",
        SlackCall::Late => "late",
        SlackCall::Replayed => "replayed",
    };
    counter!(SLACK_CALLS, "result" => result)
}

/// Counts a message on a session's channel that was dropped before it was compared with the ledger.
pub fn message_unchecked() {
    counter!(UNCHECKED_MESSAGES).increment(1);
}

/// Counts requests found in Redis that got a row in the ledger.
pub fn intake_seen(requests: u64) {
    counter!(INTAKE_SEEN).increment(requests);
}

/// Counts a request found in Redis that cannot be read.
pub fn intake_unreadable() {
    counter!(INTAKE_UNREADABLE).increment(1);
}

/// Sets the duration of a pass over all keys of Redis.
pub fn intake_passed(duration: Duration) {
    gauge!(INTAKE_SCAN).set(duration.as_secs_f64());
}

/// Figures that are read at each scrape.
#[derive(Clone, Copy, Debug)]
pub struct Readings {
    /// Connections to the ledger in use.
    pub connections_used: u32,
    /// Idle connections to the ledger.
    pub connections_idle: u32,
    /// Most connections to the ledger.
    pub max_connections: u32,
    /// Calls in progress.
    pub calls: usize,
    /// Most calls in progress at once.
    pub max_calls: usize,
    /// Agents waiting over HTTP.
    pub waiters: usize,
    /// Signals that had no subscriber and may be published again.
    pub unheard: usize,
    /// Log lines that were dropped.
    pub dropped_lines: usize,
}

/// All metrics in Prometheus' text format.
///
/// # Errors
/// When the recorder could not be installed; see [`start`].
pub fn render(readings: Readings) -> anyhow::Result<String> {
    let recorder = RECORDER.as_ref().ok().context("the process does not count")?;
    gauge!(CONNECTIONS, "state" => "used").set(f64::from(readings.connections_used));
    gauge!(CONNECTIONS, "state" => "idle").set(f64::from(readings.connections_idle));
    gauge!(MAX_CONNECTIONS).set(f64::from(readings.max_connections));
    gauge!(CALLS).set(count(readings.calls));
    gauge!(MAX_CALLS).set(count(readings.max_calls));
    gauge!(WAITERS).set(count(readings.waiters));
    gauge!(UNHEARD).set(count(readings.unheard));
    counter!(DROPPED_LINES).absolute(readings.dropped_lines.try_into().unwrap_or(u64::MAX));
    Collector::default().collect();
    Ok(recorder.render())
}

/// Sets whether the ledger can be written and whether the courier answers.
pub fn stores_are_up(ledger: bool, courier: bool) {
    gauge!(LEDGER_UP).set(i32::from(ledger));
    gauge!(COURIER_UP).set(i32::from(courier));
}

/// Sets the number of owed deliveries and of pending requests, each with the age of the oldest.
pub fn backlog(owed: (i64, Duration), pending: (i64, Duration)) {
    gauge!(OWED).set(count(owed.0));
    gauge!(OLDEST_OWED).set(owed.1.as_secs_f64());
    gauge!(PENDING).set(count(pending.0));
    gauge!(OLDEST_PENDING).set(pending.1.as_secs_f64());
}

/// Resets the ages to 0, because the ledger did not answer. An old age would look like a current one.
pub fn backlog_unknown() {
    gauge!(OLDEST_OWED).set(0);
    gauge!(OLDEST_PENDING).set(0);
}

/// Sets the age of the oldest entry that the Auth server has not accepted.
pub fn oldest_audit_entry(age: Duration) {
    gauge!(OLDEST_AUDIT).set(age.as_secs_f64());
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn count<N: TryInto<u64>>(number: N) -> f64 {
    number.try_into().unwrap_or_default() as f64
}
