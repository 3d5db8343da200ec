//! What is over long ago: deleted by `purge` and by the worker, shown to auditors by `export`. The
//! commands run as processes, beside the service and on its stores, as operators run them.

use std::path::Path;
use std::process::Output;

use aura_hitl::audit::retention::{self, Purged, Retention};
use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::request::{ApprovalRequest, Origin};
use aura_hitl::domain::task::TaskStatus;
use aura_hitl::ledger::Overdue;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::{Connection as _, PgConnection};
use support::{
    ALICE, Answer, Asked, BOB, Program, TestApp, decide_on_ledger, eventually, fresh_database,
    request_row, test_variable, unique,
};
use tempfile::TempDir;

use crate::lifecycle::assert_refused;

/// 2,500 approved requests of one moment, each in a session of its own.
fn many() -> String {
    let (created, decided) = ("'2020-01-31T23:00:00+00:00'", "'2020-01-31T23:00:00.000001+00:00'");
    request_row()
        .with("request_id", "'bulk_' || n")
        .with("session_id", "'session_' || n")
        .with("task_id", "'task_' || n")
        .at(&["created_at", "owed_since", "due_at", "sent_at"], created)
        .with("expires_at", "'2020-01-31T23:30:00+00:00'")
        .at(&["decided_at", "settled_at"], decided)
        .insert_each(10_000, 12_499)
}

/// Whatever is owed stays owed: the relay has to wait.
const OWED_FOR_LONG: &str =
    "UPDATE hitl_delivery SET due_at = '2999-01-01T00:00:00+00:00' WHERE delivery = 'owed'";

fn keeping(requests: Option<i64>, tasks: Option<i64>) -> Retention {
    Retention { requests: requests.map(TimeDelta::days), tasks: tasks.map(TimeDelta::days) }
}

/// One round, some days from now.
async fn purge(app: &TestApp, retention: Retention, in_days: i64) -> (u64, u64) {
    let then = Clock::System.now() + TimeDelta::days(in_days);
    let Purged { requests, tasks, .. } =
        retention::run_once(&app.state.ledger, retention, then).await.unwrap();
    (requests, tasks)
}

/// The one number that a query answers.
pub async fn number(app: &TestApp, query: &'static str) -> i64 {
    let query = sqlx::AssertSqlSafe(query);
    match (&app.config.ledger, app.state.ledger.sqlite_pool()) {
        (LedgerConfig::Postgres { url, .. }, _) => {
            let mut connection = PgConnection::connect(url.expose_secret()).await.unwrap();
            sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
        }
        (_, pool) => sqlx::query_scalar(query).fetch_one(&pool.unwrap()).await.unwrap(),
    }
}

async fn register(app: &TestApp, asked: &Asked) {
    app.register(ALICE, asked).await.assert(201, "");
}

/// Registers a request and has it approved, signal and all.
async fn approved(app: &TestApp, session: &str) -> String {
    let asked = Asked::in_session(session);
    register(app, &asked).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    app.settled(&asked.id).await;
    asked.id
}

/// The same, rejected for this reason.
async fn rejected(app: &TestApp, asked: &Asked, reason: &str) {
    register(app, asked).await;
    app.reject(BOB, &asked.id, Some(reason)).await.assert(200, "");
    app.settled(&asked.id).await;
}

async fn withdrawn(app: &TestApp) -> String {
    let asked = Asked::new();
    register(app, &asked).await;
    let path = format!("/aura/hitl/requests/{}/cancel", asked.id);
    Answer::of(app.call(ALICE, Method::POST, &path).send().await.unwrap()).await.assert(200, "");
    asked.id
}

/// The program with the settings and on the stores of a running service.
pub fn beside(app: &TestApp, program: Program) -> Program {
    match &app.config.ledger {
        LedgerConfig::Postgres { url, .. } => program
            .with("DATABASE_URL", url.expose_secret())
            .with("REDIS_URL", test_variable("TEST_REDIS_URL"))
            .with("JWT_SECRET", "a secret that the Auth server shares with us"),
        LedgerConfig::Sqlite { file } => {
            program.with("AURA_HITL_DATA_DIR", file.parent().unwrap().as_os_str())
        }
    }
}

pub fn run(app: &TestApp, arguments: &[&str]) -> Output {
    let folder = TempDir::new().unwrap();
    beside(app, Program::new(&folder, arguments)).output()
}

/// What a command printed; it did well, and had nothing to complain of.
#[track_caller]
pub fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The lines of an export.
#[track_caller]
pub fn exported(app: &TestApp, arguments: &[&str]) -> Vec<Value> {
    let text = printed(&run(app, &[&["export"], arguments].concat()));
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.split_terminator('\n').map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["requestId"].as_str().unwrap()).collect()
}

fn to_the_microsecond(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

async fn decided_at(app: &TestApp, id: &str) -> DateTime<Utc> {
    app.record(id).await.state.decision().unwrap().at
}

both_modes! {
    async fn what_is_settled_goes_and_what_is_pending_or_owed_stays(app: TestApp) {
        let (pending, owed, expired) = (Asked::new(), Asked::new(), Asked::new());
        register(&app, &pending).await;
        register(&app, &expired).await;
        let past = Clock::System.now() + TimeDelta::hours(1);
        let overdue = Overdue::of(&app.record(&expired.id).await);
        app.state.ledger.expire(&overdue, past).await.unwrap().unwrap();
        let turned_down = Asked::new();
        rejected(&app, &turned_down, "no").await;
        let gone = [
            expired.id, turned_down.id, approved(&app, &unique("session")).await, withdrawn(&app).await,
        ];
        let now = Clock::System.now();
        decide_on_ledger(&app.state.ledger, ALICE, &owed, Origin::Redis, Verdict::Approve, now).await;
        app.sql(OWED_FOR_LONG).await;

        let retention = keeping(Some(90), None);
        assert_eq!(purge(&app, retention, 89).await, (0, 0));
        assert_eq!(purge(&app, keeping(None, None), 9999).await, (0, 0), "0 days is never");
        assert_eq!(purge(&app, retention, 91).await, (4, 0));
        for id in &gone {
            assert!(app.is_unrecorded(id).await, "{id}");
        }
        // However a pending row got a time.
        app.sql("UPDATE hitl_request SET settled_at = '2020-01-31T23:00:00+00:00' WHERE status = 'pending'").await;
        assert_eq!(purge(&app, retention, 9999).await, (0, 0));
        assert_eq!(app.record(&pending.id).await.state, State::Pending);
        assert!(app.record(&owed.id).await.is_unsent());
    }
}

over_redis! {
    async fn what_was_signalled_late_is_kept_from_then_on(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        let id = app.settled(&asked.id).await.id.to_string();
        let old = "2020-01-31T23:00:00+00:00";
        app.sql("UPDATE hitl_request SET settled_at = '2020-01-31T23:00:00+00:00'").await;
        assert_eq!(to_the_microsecond(app.record(&id).await.closed_at.unwrap())[..19], old[..19]);
        assert_eq!(purge(&app, keeping(Some(90), None), 89).await, (0, 0));
        assert_eq!(purge(&app, keeping(Some(90), None), 91).await, (1, 0));
    }
}

both_modes! {
    async fn a_purge_goes_in_batches_and_two_at_once_share_the_work(app: TestApp) {
        app.sql(many()).await;
        let retention = keeping(Some(90), None);
        assert_eq!(purge(&app, retention, 0).await, (100, 0));
        assert_eq!(number(&app, "SELECT COUNT(*) FROM hitl_request").await, 2400);
        let now = Clock::System.now();
        let all = || retention::purge(&app.state.ledger, retention, now);
        let (one, two) = tokio::join!(all(), all());
        assert_eq!(one.unwrap().requests + two.unwrap().requests, 2400);
        assert_eq!(number(&app, "SELECT COUNT(*) FROM hitl_request").await, 0);
        assert_eq!(number(&app, "SELECT COUNT(*) FROM owned_task").await, 0, "no agent_task, no owner");
    }
}

both_modes! {
    async fn outcomes_are_numbered_on_after_a_purge(app: TestApp) {
        let session = unique("session");
        for number in [1, 2] {
            let id = approved(&app, &session).await;
            assert_eq!(app.record(&id).await.sequence, Some(number));
        }
        assert_eq!(purge(&app, keeping(Some(90), None), 91).await, (2, 0));
        let (next, elsewhere) = (approved(&app, &session).await, approved(&app, &unique("session")).await);
        assert_eq!(app.record(&next).await.sequence, Some(3));
        assert_eq!(app.record(&elsewhere).await.sequence, Some(3), "numbers only grow");
        // Whoever has seen the second one is told the next.
        let path = format!("/aura/hitl/signals/{session}/stream");
        let stream = app.call(ALICE, Method::GET, &path).header("Last-Event-ID", "2");
        let told = Answer::of(stream.send().await.unwrap()).await.text;
        assert!(told.contains("id: 3\n") && told.contains(&next), "{told}");
        // An expiry goes on, too.
        let asked = Asked::in_session(&session);
        register(&app, &asked).await;
        assert_eq!(purge(&app, keeping(Some(90), None), 91).await, (2, 0));
        let overdue = Overdue::of(&app.record(&asked.id).await);
        let past = Clock::System.now() + TimeDelta::hours(1);
        let expired = app.state.ledger.expire(&overdue, past).await.unwrap().unwrap();
        assert_eq!(expired.sequence, Some(4));
    }
}

both_modes! {
    async fn a_purged_request_is_unknown(app: TestApp) {
        let id = approved(&app, &unique("session")).await;
        app.approve(ALICE, &id).await.assert(200, "");
        assert_eq!(purge(&app, keeping(Some(90), None), 91).await, (1, 0));
        app.approve(ALICE, &id).await.assert(404, "E1004");
        app.get(ALICE, &format!("/aura/hitl/requests/{id}/decision")).await.assert(404, "E1004");
    }
}

async fn status(app: &TestApp, task: &str) -> TaskStatus {
    let tasks = app.tasks("tenant1").await;
    tasks.into_iter().find(|one| one.id.as_str() == task).unwrap().status
}

/// A request for a task, which its agent need not keep.
fn for_task(task: &str) -> Asked {
    Asked::new().with("taskId", task.into())
}

both_modes! {
    async fn a_task_of_ours_stays_ours_when_its_request_goes(app: TestApp) {
        let (over, open) = (unique("task"), unique("task"));
        rejected(&app, &for_task(&over), "no").await;
        let asked = for_task(&open);
        register(&app, &asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        assert_eq!(purge(&app, keeping(Some(90), None), 91).await, (2, 0));
        assert_eq!(status(&app, &over).await, TaskStatus::Failed);
        assert_eq!(status(&app, &open).await, TaskStatus::InProgress);

        // The rejected one is over for good: who asks again gets another one.
        let again = for_task(&over);
        register(&app, &again).await;
        assert_ne!(app.record(&again.id).await.task.as_str(), over);
        // Nobody else would say that the other one has failed.
        rejected(&app, &for_task(&open), "no").await;
        assert_eq!(status(&app, &open).await, TaskStatus::Failed);

        app.approve(ALICE, &again.id).await.assert(200, "");
        app.settled(&again.id).await;
        assert_eq!(number(&app, "SELECT COUNT(*) FROM owned_task").await, 2);
        assert_eq!(purge(&app, keeping(None, Some(365)), 366).await, (0, 2));
        assert_eq!(number(&app, "SELECT COUNT(*) FROM owned_task").await, 0);
    }
}

both_modes! {
    async fn tasks_go_by_a_setting_of_their_own(app: TestApp) {
        let body = json!({ "taskType": "mail", "userId": "user123", "tenantId": "tenant1" });
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let task = app.post(ALICE, "/main/agent/tasks", body.clone()).await;
            tasks.push(task.assert(201, "").data()["taskId"].as_str().unwrap().to_owned());
        }
        let [requested, done, waiting, failed] = <[String; 4]>::try_from(tasks).unwrap();
        for step in ["start", "complete"] {
            let path = format!("/main/agent/tasks/{done}/{step}");
            app.post(ALICE, &path, json!({})).await.assert(200, "");
        }
        register(&app, &for_task(&waiting)).await;
        let asked = for_task(&failed);
        register(&app, &asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        // Given up by an agent's own SQL, one of them while it waits.
        app.sql("UPDATE agent_task SET status = 'FAILED' WHERE status IN ('WAITING_APPROVAL', 'IN_PROGRESS')").await;

        assert_eq!(purge(&app, keeping(None, Some(365)), 364).await, (0, 0));
        assert_eq!(purge(&app, keeping(Some(90), None), 9999).await, (1, 0), "no task goes with its request");
        assert_eq!(app.tasks("tenant1").await.len(), 4);
        assert_eq!(purge(&app, keeping(None, Some(365)), 366).await, (0, 2));
        let mut left: Vec<_> = app.tasks("tenant1").await.into_iter().map(|task| task.id.to_string()).collect();
        let mut expected = vec![requested, waiting];
        left.sort();
        expected.sort();
        assert_eq!(left, expected, "what is not over stays, and what a pending request needs");
    }
}

both_modes! {
    async fn the_worker_purges_what_the_settings_say(app: TestApp) {
        let mut app = app;
        app.sql(many()).await;
        let kept = approved(&app, &unique("session")).await;
        app.config.retention = keeping(Some(90), None);
        app.restart().await;
        eventually(async || {
            let left = number(&app, "SELECT COUNT(*) FROM hitl_request").await;
            (left == 1).then_some(())
        })
        .await;
        assert!(!app.is_unrecorded(&kept).await);
    }
}

both_modes! {
    async fn the_command_purges_beside_a_running_service(app: TestApp) {
        app.sql(many()).await;
        let kept = approved(&app, &unique("session")).await;
        let turned_down = Asked::new();
        rejected(&app, &turned_down, "no").await;
        app.sql("UPDATE agent_task SET updated_at = '2020-01-31T23:00:00+00:00'").await;
        let output = run(&app, &["purge", "--older-than", "90d", "--dry-run"]);
        assert_eq!(printed(&output), "would purge 2500 rows of hitl_request, 0 rows of agent_task, 0 rows of hitl_refused_attempt, 0 rows of hitl_grant\n");
        let output = run(&app, &["purge", "--older-than", "90d"]);
        assert_eq!(printed(&output), "purged 2500 rows of hitl_request, 0 rows of agent_task, 0 rows of hitl_refused_attempt, 0 rows of hitl_grant\n");
        let both = ["purge", "--older-than", "90d", "--tasks-older-than", "1y"];
        let output = run(&app, &[&both[..], &["--dry-run"]].concat());
        assert_eq!(printed(&output), "would purge 0 rows of hitl_request, 1 rows of agent_task, 0 rows of hitl_refused_attempt, 0 rows of hitl_grant\n");
        let output = run(&app, &both);
        assert_eq!(printed(&output), "purged 0 rows of hitl_request, 1 rows of agent_task, 0 rows of hitl_refused_attempt, 0 rows of hitl_grant\n");
        assert!(!app.is_unrecorded(&kept).await && !app.is_unrecorded(&turned_down.id).await);
    }
}

#[tokio::test]
async fn a_purge_or_an_export_that_makes_no_sense_is_refused() {
    let cases: [(&[&str], &str); 13] = [
        (&["purge", "--older-than=ninety"], "--older-than is \"ninety\", which is no duration"),
        (&["purge", "--older-than="], "--older-than is \"\", which is no duration"),
        (&["purge", "--older-than=-1d"], "--older-than is \"-1d\", which is no duration"),
        (&["purge", "--older-than=23h"], "--older-than is 23h; it must be at least 1d"),
        (&["purge", "--older-than=101y"], "it may be at most 36500d"),
        (&["purge", "--older-than=900000000000y"], "--older-than"),
        (&["purge", "--older-than=9d", "--tasks-older-than=9"], "--tasks-older-than is \"9\""),
        (&["purge", "--older-than=9d", "--tasks-older-than=0s"], "it must be at least 1d"),
        (&["export", "--from=yesterday"], "--from is \"yesterday\"; write a date like 2026-01-31"),
        (&["export", "--from=2026-02-30"], "--from is \"2026-02-30\""),
        (&["export", "--from=2026-01-01", "--to=2026-02-01T00:00:00"], "--to is"),
        (&["export", "--from=2026-01-01", "--to=2026-01-01"], "which is not before --to"),
        (&["export", "--from=2999-01-01"], "which is not before --to"),
    ];
    for (arguments, expected) in cases {
        let folder = TempDir::new().unwrap();
        assert_refused(&Program::new(&folder, arguments).output(), expected);
    }
}

both_modes! {
    async fn an_export_says_all_that_is_known_of_a_decision_to_the_letter(app: TestApp) {
        let asked = Asked::new()
            .with("message", "첫 줄\n둘째 \"줄\"\u{2028}\t끝".into())
            .with("context", json!({ "수신": "a@b.c", "금액": 12_000, "a": [1.5, null] }));
        register(&app, &asked).await;
        let path = format!("/aura/hitl/reject/{}", asked.id);
        let call = app.call(BOB, Method::POST, &path).header("X-DWP-Source", "FRONTEND");
        let call = call.header("X-DWP-Caller-Type", "USER").header("X-Trace-Id", "trace-4711");
        let call = call.header("X-Gateway-Request-Id", "gateway-1");
        let reason = "안 돼요\n\"둘째\" 줄\u{2028}끝";
        let body = json!({ "userId": BOB.user, "reason": reason });
        Answer::of(call.json(&body).send().await.unwrap()).await.assert(200, "");
        app.settled(&asked.id).await;
        let path = format!("/aura/hitl/requests/{}/ack", asked.id);
        Answer::of(app.call(ALICE, Method::POST, &path).send().await.unwrap()).await.assert(200, "");
        let pending = Asked::new();
        register(&app, &pending).await;

        let record = app.record(&asked.id).await;
        let lines = exported(&app, &["--from=2020-01-01"]);
        let time = |time: Option<DateTime<Utc>>| json!(to_the_microsecond(time.unwrap()));
        let decision = record.state.decision().unwrap();
        let expected = json!({
            "requestId": asked.id, "tenantId": "tenant1", "sessionId": asked.session,
            "userId": "user123", "actionType": "send_email", "status": "rejected",
            "decidedBy": "bob", "deciderRole": "user", "tokenId": null, "decidedAt": time(Some(decision.at)), "reason": reason,
            "settledAt": time(record.closed_at), "createdAt": time(Some(record.created_at)),
            "expiresAt": time(Some(record.expires_at)), "taskId": record.task.as_str(),
            "origin": "http", "contentHash": record.content_hash,
            "fingerprint": record.fingerprint, "callerSource": "FRONTEND", "callerType": "USER",
            "agentId": null, "traceId": "trace-4711", "gatewayRequestId": "gateway-1", "ifMatch": null,
            "delivery": "sent", "sentAt": null, "actedAt": time(record.acted_at),
            "document": record.document, "arguments": null, "response": null,
        });
        assert_eq!(lines, [expected]);
        // Both hashes, made again as the docs say.
        let document = lines[0]["document"].as_str().unwrap();
        let request = ApprovalRequest::read(&record.id, document.to_owned()).unwrap();
        assert_eq!(lines[0]["contentHash"], request.content_hash);
        let canonical = r#"{"a":[1.5,null],"금액":12000,"수신":"a@b.c"}"#;
        let asked_for = format!(r#"{{"actionType":"send_email","context":{canonical}}}"#);
        assert_eq!(lines[0]["fingerprint"], format!("{:x}", Sha256::digest(asked_for)));
        let members: Value = serde_json::from_str(document).unwrap();
        let mut names: Vec<_> = members.as_object().unwrap().keys().filter(|name| *name != "createdAt").collect();
        names.sort();
        let said: String = names
            .into_iter()
            .map(|name| match name.as_str() {
                "context" => format!("\"context\":{canonical},"),
                _ => format!("\"{name}\":{},", members[name]),
            })
            .collect();
        assert_eq!(lines[0]["contentHash"], format!("{:x}", Sha256::digest(said)));
    }
}

both_modes! {
    async fn an_export_has_the_decisions_of_its_span_in_their_order(app: TestApp) {
        let mut made = Vec::new();
        for first in ["z", "m", "a"] {
            let mut asked = Asked::new();
            asked.id = format!("{first}_{}", asked.id);
            rejected(&app, &asked, "no").await;
            made.push(asked.id);
        }
        let undecided = withdrawn(&app).await;
        app.sql(many()).await;
        let mut times = Vec::new();
        for id in &made {
            times.push(to_the_microsecond(decided_at(&app, id).await));
        }
        // Those of one moment follow their ids.
        let all = exported(&app, &["--from=2020-01-31"]);
        let bulk: Vec<_> = (10000..12500).map(|number| format!("bulk_{number}")).collect();
        let expected: Vec<_> = bulk.iter().chain(&made).map(String::as_str).collect();
        assert_eq!(ids(&all), expected);
        let with_undecided = exported(&app, &["--from=2020-02-01", "--all"]);
        assert_eq!(ids(&with_undecided), [&made[0], &made[1], &made[2], &undecided]);
        assert_eq!(with_undecided[3]["decidedAt"], Value::Null);

        // From a moment on and before another, to the microsecond.
        let between = |from: &str, to: &str| {
            exported(&app, &[&format!("--from={from}"), &format!("--to={to}")])
        };
        assert_eq!(ids(&between(&times[0], &times[2])), [&made[0], &made[1]]);
        assert_eq!(ids(&between("2020-02-01", &times[1])), [&made[0]]);
        for (from, to, count) in [
            ("2020-01-31T23:00:00.000001Z", "2020-01-31T23:00:00.000002Z", 2500),
            ("2020-02-01T08:00:00.000001+09:00", "2020-02-01", 2500),
            ("2020-01-31T23:00:00.000002Z", "2020-02-01", 0),
            ("2020-01-31", "2020-01-31T23:00:00.000001Z", 0),
        ] {
            assert_eq!(between(from, to).len(), count, "{from} {to}");
        }
    }
}

/// A shell with the program as `$0`, on the stores of a running service.
fn shell(app: &TestApp, script: &str) -> Output {
    let folder = TempDir::new().unwrap();
    let arguments = ["-c", script, env!("CARGO_BIN_EXE_aura-hitl")];
    beside(app, Program::of(Path::new("sh"), &folder, &arguments)).output()
}

both_modes! {
    async fn an_export_that_nobody_reads_to_its_end_ends_quietly(app: TestApp) {
        app.sql(many()).await;
        let output = shell(&app, r#"{ "$0" export --from=2020-01-01; echo "exit $?" >&2; } | head -n 1"#);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "exit 0\n");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);
        // But a disk that is full is no success, be it at the first line or at the last.
        approved(&app, &unique("session")).await;
        for from in ["2020-01-01", "2020-02-01"] {
            let output = shell(&app, &format!(r#""$0" export --from={from} > /dev/full"#));
            assert_refused(&output, "cannot write the lines");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_ledger_there_is_nothing_to_purge_or_export() {
    let database = fresh_database().await;
    for arguments in [["purge", "--older-than=90d"], ["export", "--from=2026-01-01"]] {
        let folder = TempDir::new().unwrap();
        assert_refused(&Program::new(&folder, &arguments).output(), "there is no ");
        let program = Program::new(&folder, &arguments)
            .with("DATABASE_URL", &database)
            .with("REDIS_URL", test_variable("TEST_REDIS_URL"))
            .with("JWT_SECRET", "a secret that the Auth server shares with us");
        assert_refused(&program.output(), "run `aura-hitl migrate`");
    }
}
