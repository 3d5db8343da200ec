//! What auditors learn beyond the decisions: attempts to decide that were refused.

use aura_hitl::audit::retention::{self, Retention};
use aura_hitl::domain::clock::Clock;
use chrono::TimeDelta;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::Executor as _;
use support::{ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, eventually, unique};

use crate::retention::{exported, number};

const ROWS: &str = "SELECT COUNT(*) FROM hitl_refused_attempt";

/// The refused attempts, once there are so many.
async fn refused(app: &TestApp, count: i64) -> Vec<Value> {
    eventually(async || (number(app, ROWS).await >= count).then_some(())).await;
    let lines = exported(app, &["--from=2020-01-01", "--refused"]);
    assert_eq!(i64::try_from(lines.len()).unwrap(), count, "{lines:?}");
    lines
}

/// A call that decides, with these headers in place of nothing or of our own.
async fn decide(
    app: &TestApp,
    who: Who<'_>,
    verb: &str,
    id: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut call = app
        .client
        .post(format!("{}/api/aura/hitl/{verb}/{id}", app.base))
        .bearer_auth(app.token(who.user, who.tenant, who.role));
    let ours = [("X-Tenant-ID", who.tenant), ("X-User-ID", who.user)];
    let ours = ours.iter().filter(|(name, _)| headers.iter().all(|(other, _)| other != name));
    for (name, value) in ours.chain(headers) {
        call = call.header(*name, *value);
    }
    Answer::of(call.json(&json!({ "userId": who.user })).send().await.unwrap()).await
}

both_modes! {
    async fn a_refused_attempt_says_who_wanted_what_and_why_not(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let id = asked.id.as_str();
        let agent = [
            ("X-DWP-Caller-Type", "AGENT"), ("X-DWP-Source", "AURA"), ("X-Agent-ID", "agent-7"),
            ("X-Trace-Id", "trace-1"), ("X-Gateway-Request-Id", "gateway-1"),
        ];
        decide(&app, ALICE, "approve", id, &agent).await.assert(403, "E2001");
        let stale = format!("\"{}\"", "0".repeat(64));
        decide(&app, ALICE, "reject", id, &[("If-Match", &stale)]).await.assert(412, "E4120");
        decide(&app, MALLORY, "approve", id, &[]).await.assert(404, "E1004");
        decide(&app, ALICE, "approve", id, &[("X-User-ID", "bob")]).await.assert(403, "E2001");
        decide(&app, ALICE, "approve", id, &[("X-Tenant-ID", "tenant2")]).await.assert(403, "E2007");
        app.approve(ALICE, id).await.assert(200, "");
        decide(&app, BOB, "reject", id, &[]).await.assert(409, "E3006");

        let rows = refused(&app, 6).await;
        let said = |row: &Value| {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            (text("tenantId"), text("userId"), text("verdict"), text("errorCode"))
        };
        let row = |tenant: &str, user: &str, verdict: &str, code: &str| {
            (tenant.to_owned(), user.to_owned(), verdict.to_owned(), code.to_owned())
        };
        let expected = [
            row("tenant1", "user123", "approved", "E2001"), row("tenant1", "user123", "rejected", "E4120"),
            row("tenant2", "mallory", "approved", "E1004"), row("tenant1", "user123", "approved", "E2001"),
            row("tenant1", "user123", "approved", "E2007"), row("tenant1", "bob", "rejected", "E3006"),
        ];
        assert_eq!(rows.iter().map(said).collect::<Vec<_>>(), expected);
        for row in &rows {
            assert_eq!(row["requestId"], id);
            assert_eq!(row["role"], "user");
            assert!(!row["reason"].as_str().unwrap().is_empty());
            assert!(row["attemptedAt"].as_str().unwrap().ends_with('Z'));
        }
        let via = ["callerType", "callerSource", "agentId", "traceId", "gatewayRequestId"].map(|name| rows[0][name].as_str());
        assert_eq!(via, ["AGENT", "AURA", "agent-7", "trace-1", "gateway-1"].map(Some));
        assert_eq!(rows[1]["ifMatch"].as_str(), Some(&*stale));
        assert_eq!(rows[0]["ifMatch"], Value::Null);
    }
}

both_modes! {
    async fn what_is_no_attempt_to_decide_leaves_no_row(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let id = asked.id.as_str();
        // Nobody's: without a token, or with somebody else's secret.
        let nobody = app.client.post(format!("{}/aura/hitl/approve/{id}", app.base));
        Answer::of(nobody.send().await.unwrap()).await.assert(401, "E2000");
        // Malformed, and no decision.
        app.post(ALICE, &format!("/aura/hitl/approve/{id}"), json!([])).await.assert(400, "E4000");
        app.get(MALLORY, &format!("/aura/hitl/requests/{id}")).await.assert(404, "E1004");
        app.approve(ALICE, id).await.assert(200, "");
        // Rows are written in their order, so none of the others is on its way.
        decide(&app, MALLORY, "approve", id, &[]).await.assert(404, "E1004");
        assert_eq!(refused(&app, 1).await[0]["userId"], "mallory");
    }
}

both_modes! {
    async fn the_token_is_named_by_its_id(app: TestApp) {
        let claims = json!({
            "sub": "user123", "tenant_id": "tenant1", "jti": "token-9", "role": "admin",
            "iat": support::forged::now(), "exp": support::forged::now() + 600,
        });
        let token = support::forged::token(app.config.jwt.secret.expose_secret().as_bytes(), &claims);
        let id = unique("req");
        let call = app.client.post(format!("{}/aura/hitl/approve/{id}", app.base)).bearer_auth(token);
        let call = call.header("X-Tenant-ID", "tenant1").header("X-User-ID", "user123");
        let answer = call.json(&json!({ "userId": "user123" })).send().await.unwrap();
        Answer::of(answer).await.assert(404, "E1004");
        let rows = refused(&app, 1).await;
        assert_eq!((&rows[0]["tokenId"], &rows[0]["role"]), (&json!("token-9"), &json!("admin")));
    }
}

both_modes! {
    async fn a_flood_of_one_person_leaves_a_bounded_number_of_rows(app: TestApp) {
        let id = unique("req");
        for _ in 0..130 {
            app.approve(MALLORY, &id).await.assert(404, "E1004");
        }
        app.approve(BOB, &id).await.assert(404, "E1004");
        eventually(async || {
            let bob = "SELECT COUNT(*) FROM hitl_refused_attempt WHERE user_id = 'bob'";
            (number(&app, bob).await == 1).then_some(())
        })
        .await;
        let rows = number(&app, ROWS).await;
        // One more for each ten seconds that this took.
        assert!((101..120).contains(&rows), "{rows}");
    }
}

both_modes! {
    async fn refused_attempts_go_with_the_requests(app: TestApp) {
        app.approve(MALLORY, &unique("req")).await.assert(404, "E1004");
        refused(&app, 1).await;
        let keeping = Retention { requests: Some(TimeDelta::days(30)), tasks: None };
        for (days, gone) in [(29, 0), (31, 1)] {
            let then = Clock::System.now() + TimeDelta::days(days);
            let counted = retention::count(&app.state.ledger, keeping, then).await.unwrap();
            assert_eq!(counted.attempts, gone);
            let purged = retention::run_once(&app.state.ledger, keeping, then).await.unwrap();
            assert_eq!(purged.attempts, gone);
        }
        refused(&app, 0).await;
    }
}

/// While the rows cannot be written, people are answered as ever; the rows come later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_does_not_wait_for_the_row() {
    let app = TestApp::spawn(Mode::Production).await;
    let aura_hitl::config::LedgerConfig::Postgres { url, .. } = &app.config.ledger else {
        panic!("no Postgres")
    };
    let mut locking =
        <sqlx::PgConnection as sqlx::Connection>::connect(url.expose_secret()).await.unwrap();
    locking.execute("BEGIN; LOCK TABLE hitl_refused_attempt").await.unwrap();
    let id = unique("req");
    for _ in 0..3 {
        app.approve(MALLORY, &id).await.assert(404, "E1004");
    }
    assert_eq!(number_locked(&mut locking).await, 0);
    locking.execute("COMMIT").await.unwrap();
    refused(&app, 3).await;
}

async fn number_locked(connection: &mut sqlx::PgConnection) -> i64 {
    sqlx::query_scalar(ROWS).fetch_one(connection).await.unwrap()
}

/// What was refused just before the service stops is written before it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_loses_no_row() {
    for mode in [Mode::Embedded, Mode::Production] {
        let mut app = TestApp::spawn(mode).await;
        app.approve(MALLORY, &unique("req")).await.assert(404, "E1004");
        app.restart().await;
        assert_eq!(number(&app, ROWS).await, 1);
    }
}

both_modes! {
    async fn a_decision_says_with_which_role_and_token_it_was_made(app: TestApp) {
        let claims = json!({
            "sub": "user123", "tenant_id": "tenant1", "jti": "token-7", "role": "admin",
            "iat": support::forged::now(), "exp": support::forged::now() + 600,
        });
        let token = support::forged::token(app.config.jwt.secret.expose_secret().as_bytes(), &claims);
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        let call = app.client.post(format!("{}/aura/hitl/approve/{}", app.base, asked.id)).bearer_auth(token);
        let call = call.header("X-Tenant-ID", "tenant1").header("X-User-ID", "user123");
        let answer = call.json(&json!({ "userId": "user123" })).send().await.unwrap();
        Answer::of(answer).await.assert(200, "");
        let lines = exported(&app, &["--from=2020-01-01"]);
        assert_eq!((&lines[0]["tokenId"], &lines[0]["deciderRole"]), (&json!("token-7"), &json!("admin")));
    }
}

both_modes! {
    async fn each_refusal_in_a_bulk_is_evidence_like_that_of_a_single_call(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let unknown = support::unique("req");
        for atomic in [false, true] {
            let body = json!({ "userId": ALICE.user, "atomic": atomic, "decisions": [
                { "requestId": asked.id, "decision": "reject", "etag": "other" },
                { "requestId": unknown, "decision": "approve" },
            ] });
            app.post(ALICE, "/aura/hitl/decisions", body).await;
        }
        let rows = refused(&app, 4).await;
        let said = |row: &Value| {
            ["requestId", "userId", "verdict", "errorCode"].map(|name| row[name].as_str().unwrap().to_owned())
        };
        let of = |id: &str, verdict: &str, code: &str| {
            [id, ALICE.user, verdict, code].map(str::to_owned)
        };
        let once = [of(&asked.id, "rejected", "E4120"), of(&unknown, "approved", "E1004")];
        assert_eq!(rows.iter().map(said).collect::<Vec<_>>(), [once.clone(), once].concat());
        assert_eq!(rows[0]["ifMatch"], "other");
    }
}
