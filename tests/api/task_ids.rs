//! Task ids are separate for each tenant: two tenants may each have a task with the same id, and
//! neither can tell that the other tenant's task exists.

use crate::retention::number;
use aura_hitl::audit::retention::{self, Retention};
use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::clock::Clock;
use aura_hitl::ledger::Overdue;
use chrono::TimeDelta;
use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use support::{ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, unique};

const TASKS: &str = "/api/main/agent/tasks";

/// A request that names a task.
fn naming(who: Who<'_>, task: &str) -> Asked {
    Asked::in_session(&unique("session"))
        .with("taskId", json!(task))
        .with("userId", json!(who.user))
        .with("tenantId", json!(who.tenant))
}

async fn register(app: &TestApp, who: Who<'_>, task: &str) -> Asked {
    let asked = naming(who, task);
    app.register(who, &asked).await.assert(201, "");
    asked
}

/// The task as the service shows it to this person.
async fn seen(app: &TestApp, who: Who<'_>, task: &str) -> Value {
    let answer = app.get(who, &format!("{TASKS}/{task}")).await;
    let data = answer.assert(200, "").data().clone();
    assert_eq!((&data["taskId"], &data["tenantId"]), (&json!(task), &json!(who.tenant)));
    data
}

async fn status(app: &TestApp, who: Who<'_>, task: &str) -> String {
    seen(app, who, task).await["status"].as_str().unwrap().to_owned()
}

/// Calls one step of a task.
async fn step(
    app: &TestApp,
    who: Who<'_>,
    (method, path): (Method, String),
    body: Value,
) -> Answer {
    let call = app.call(who, method, &format!("{TASKS}/{path}"));
    Answer::of(call.json(&body).send().await.unwrap()).await
}

both_modes! {
    async fn one_id_in_two_tenants_is_two_tasks(app: TestApp) {
        let task = unique("task");
        let ours = register(&app, ALICE, &task).await;
        let before = seen(&app, ALICE, &task).await;
        let theirs = register(&app, MALLORY, &task).await;
        assert_eq!(seen(&app, ALICE, &task).await, before);
        assert_eq!(seen(&app, MALLORY, &task).await["hitlRequestId"], json!(theirs.id));
        for (who, request) in [(ALICE, &ours.id), (MALLORY, &theirs.id)] {
            let list = app.get(who, TASKS).await;
            let list = list.data()["content"].as_array().unwrap();
            assert_eq!(list.len(), 1);
            assert_eq!(list[0]["hitlRequestId"], json!(request));
        }

        let plan = json!([{ "stepId": "theirs" }]);
        step(&app, MALLORY, (Method::PUT, format!("{task}/plan-steps")), plan).await.assert(200, "");
        let fifty = json!({ "progress": 50 });
        step(&app, MALLORY, (Method::PATCH, format!("{task}/progress")), fifty).await.assert(200, "");
        assert_eq!(seen(&app, ALICE, &task).await, before);
        let merged = json!({ "stepId": "ours" });
        step(&app, ALICE, (Method::POST, format!("{task}/plan-steps")), merged).await.assert(200, "");
        assert_eq!(seen(&app, ALICE, &task).await["planSteps"], json!(r#"[{"stepId":"ours","status":"pending"}]"#));

        // A decision in one tenant releases that tenant's task; the other tenant's task still
        // waits.
        app.approve(ALICE, &ours.id).await.assert(200, "");
        assert_eq!(status(&app, ALICE, &task).await, "IN_PROGRESS");
        let waits = seen(&app, MALLORY, &task).await;
        assert_eq!(waits["status"], "WAITING_APPROVAL");
        let done = json!({ "sent": true });
        step(&app, ALICE, (Method::POST, format!("{task}/complete")), done).await.assert(200, "");
        assert_eq!(status(&app, ALICE, &task).await, "COMPLETED");
        assert_eq!(seen(&app, MALLORY, &task).await, waits);
        let over = seen(&app, ALICE, &task).await;
        app.reject(MALLORY, &theirs.id, Some("no")).await.assert(200, "");
        assert_eq!(status(&app, MALLORY, &task).await, "FAILED");
        assert_eq!(seen(&app, ALICE, &task).await, over);
    }
}

both_modes! {
    async fn what_ends_one_tenants_task_leaves_the_others(app: TestApp) {
        // Their request is withdrawn.
        let task = unique("task");
        let (ours, theirs) = (register(&app, ALICE, &task).await, register(&app, MALLORY, &task).await);
        let before = seen(&app, ALICE, &task).await;
        let cancel = format!("/aura/hitl/requests/{}/cancel", theirs.id);
        app.post(MALLORY, &cancel, json!({})).await.assert(200, "");
        assert_eq!(status(&app, MALLORY, &task).await, "FAILED");
        assert_eq!(seen(&app, ALICE, &task).await, before);
        // Our task fails.
        let why = json!({ "errorMessage": "broken" });
        step(&app, ALICE, (Method::POST, format!("{task}/fail")), why).await.assert(200, "");
        app.approve(ALICE, &ours.id).await.assert(200, "");
        assert_eq!(seen(&app, MALLORY, &task).await["errorMessage"], "Withdrawn by its agent");

        // Their request expires.
        let task = unique("task");
        register(&app, ALICE, &task).await;
        let theirs = register(&app, MALLORY, &task).await;
        let before = seen(&app, ALICE, &task).await;
        let past = Clock::System.now() + TimeDelta::hours(1);
        let overdue = Overdue::of(&app.record(&theirs.id).await);
        app.state.ledger.expire(&overdue, past).await.unwrap().unwrap();
        assert_eq!(status(&app, MALLORY, &task).await, "FAILED");
        assert_eq!(seen(&app, ALICE, &task).await, before);

        // Their approval is acknowledged. Our task is closed because no agent reported on it.
        let task = unique("task");
        let (ours, theirs) = (register(&app, ALICE, &task).await, register(&app, MALLORY, &task).await);
        app.approve(ALICE, &ours.id).await.assert(200, "");
        app.approve(MALLORY, &theirs.id).await.assert(200, "");
        let before = seen(&app, ALICE, &task).await;
        let ack = format!("/aura/hitl/requests/{}/ack", theirs.id);
        app.post(MALLORY, &ack, json!({})).await.assert(200, "");
        assert_eq!(status(&app, MALLORY, &task).await, "COMPLETED");
        assert_eq!(seen(&app, ALICE, &task).await, before);
        let theirs = seen(&app, MALLORY, &task).await;
        let later = Clock::System.now() + TimeDelta::hours(1);
        app.state.ledger.close_open_tasks(later, 100, later).await.unwrap();
        assert_eq!(status(&app, ALICE, &task).await, "FAILED", "no agent was listening");
        assert_eq!(seen(&app, MALLORY, &task).await, theirs);
    }
}

both_modes! {
    /// Neither the status nor the body of an answer shows that another tenant has a task with this
    /// id.
    async fn no_answer_tells_whether_another_tenant_has_the_id(app: TestApp) {
        let [waits, over, agents] = [unique("task"), unique("task"), unique("task")];
        register(&app, ALICE, &waits).await;
        let ended = register(&app, ALICE, &over).await;
        app.reject(ALICE, &ended.id, None).await.assert(200, "");
        register(&app, BOB, &agents).await;
        let mut told = Vec::new();
        for task in [&waits, &over, &agents, &unique("task")] {
            let id = unique("req");
            let session = unique("session");
            let redacted = |answer: &Answer| {
                let text = answer.text.replace(task.as_str(), "TASK").replace(&id, "REQUEST");
                let mut body: Value = serde_json::from_str(&text.replace(&session, "SESSION")).unwrap();
                for changing in ["timestamp", "traceId"] {
                    body[changing].take();
                }
                if let Some(data) = body.get_mut("data").and_then(Value::as_object_mut) {
                    data.retain(|name, _value| !name.ends_with("At"));
                }
                (answer.status.as_u16(), body.to_string())
            };
            let path = format!("{TASKS}/{task}");
            let mut answers = vec![redacted(&app.get(MALLORY, &path).await)];
            let body = json!({ "requestId": id, "sessionId": session, "actionType": "send", "taskId": task });
            for _twice in 0..2 {
                answers.push(redacted(&app.post(MALLORY, "/aura/hitl/requests", body.clone()).await));
            }
            answers.push(redacted(&app.get(MALLORY, &path).await));
            answers.push(redacted(&app.get(MALLORY, &format!("/aura/hitl/requests/{id}/decision")).await));
            answers.push(redacted(&app.approve(MALLORY, &id).await));
            for (method, part, body) in [
                (Method::PUT, "plan-steps", json!([{ "id": "a" }])),
                (Method::PATCH, "progress", json!({ "progress": 5 })),
                (Method::POST, "complete", json!(1)),
                (Method::POST, "fail", json!({})),
            ] {
                answers.push(redacted(&step(&app, MALLORY, (method, format!("{task}/{part}")), body).await));
            }
            answers.push(redacted(&app.get(MALLORY, &path).await));
            told.push(answers);
        }
        let free = told.pop().unwrap();
        assert_eq!((free[0].0, free[1].0, free[2].0, free[3].0), (404, 201, 200, 200));
        for answers in told {
            for (taken, free) in answers.iter().zip(&free) {
                assert_eq!(taken, free);
            }
        }
        assert_eq!(status(&app, ALICE, &waits).await, "WAITING_APPROVAL");
    }
}

both_modes! {
    async fn purges_keep_two_tenants_tasks_apart(app: TestApp) {
        let task = unique("task");
        let (ours, theirs) = (register(&app, ALICE, &task).await, register(&app, MALLORY, &task).await);
        app.reject(MALLORY, &theirs.id, None).await.assert(200, "");
        app.approve(ALICE, &ours.id).await.assert(200, "");
        let before = seen(&app, ALICE, &task).await;
        let then = Clock::System.now() + TimeDelta::days(400);
        let keeping = |requests: bool, tasks: bool| Retention {
            requests: requests.then(|| TimeDelta::days(90)),
            tasks: tasks.then(|| TimeDelta::days(90)),
        };
        let purged = retention::run_once(&app.state.ledger, keeping(true, false), then).await.unwrap();
        assert_eq!(purged.requests, 2);
        assert_eq!(number(&app, "SELECT COUNT(*) FROM owned_task").await, 2);
        // Only the other tenant's task is purged. Ours stays, with its row in `owned_task`.
        let purged = retention::run_once(&app.state.ledger, keeping(false, true), then).await.unwrap();
        assert_eq!(purged.tasks, 1);
        assert_eq!(number(&app, "SELECT COUNT(*) FROM owned_task WHERE tenant_id = 'tenant1'").await, 1);
        assert_eq!(number(&app, "SELECT COUNT(*) FROM owned_task").await, 1);
        assert_eq!(seen(&app, ALICE, &task).await, before);
        app.get(MALLORY, &format!("{TASKS}/{task}")).await.assert(404, "E1004");
        // The other tenant names the same task id again, and gets a new task of its own.
        let again = register(&app, MALLORY, &task).await;
        assert_eq!(status(&app, MALLORY, &task).await, "WAITING_APPROVAL");
        app.approve(MALLORY, &again.id).await.assert(200, "");
        let refused = register(&app, ALICE, &task).await;
        app.reject(ALICE, &refused.id, None).await.assert(200, "");
        assert_eq!(status(&app, ALICE, &task).await, "FAILED", "we had made it");
        assert_eq!(status(&app, MALLORY, &task).await, "IN_PROGRESS");
    }
}

over_redis! {
    async fn a_request_of_redis_names_its_own_tenants_task(app: TestApp) {
        let task = unique("task");
        register(&app, MALLORY, &task).await;
        let before = seen(&app, MALLORY, &task).await;
        let asked = naming(ALICE, &task);
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(seen(&app, ALICE, &task).await["hitlRequestId"], json!(asked.id));
        assert_eq!(seen(&app, MALLORY, &task).await, before);
    }
}

/// Until `migrate --finish`, an upgraded database allows a task id only once. A request that names
/// another tenant's task gets a task with another id, as in the older release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_an_upgrade_is_finished_a_foreign_task_stands_in_the_way() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { unreachable!() };
    let mut operator = PgConnection::connect(url.expose_secret()).await.unwrap();
    let old = "ALTER TABLE agent_task DROP CONSTRAINT agent_task_key;
               CREATE UNIQUE INDEX agent_task_key ON agent_task (tenant_id, task_id);
               ALTER TABLE agent_task ADD PRIMARY KEY (task_id);
               ALTER TABLE owned_task DROP CONSTRAINT owned_task_key;
               ALTER TABLE owned_task ALTER COLUMN tenant_id SET DEFAULT '';
               ALTER TABLE owned_task ADD PRIMARY KEY (task_id)";
    operator.execute(old).await.unwrap();
    let (task, ours) = (unique("task"), unique("task"));
    register(&app, ALICE, &task).await;
    let before = seen(&app, ALICE, &task).await;
    let theirs = register(&app, MALLORY, &task).await;
    let other = app.record_of(MALLORY.tenant, &theirs.id).await.unwrap().task;
    assert_ne!(other.as_str(), task);
    assert_eq!(status(&app, MALLORY, other.as_str()).await, "WAITING_APPROVAL");
    app.get(MALLORY, &format!("{TASKS}/{task}")).await.assert(404, "E1004");
    assert_eq!(seen(&app, ALICE, &task).await, before);
    // Concurrent requests of one tenant that name the same task all get that task.
    let many = unique("task");
    let calls = (0..16).map(|_| register(&app, ALICE, &many));
    for asked in futures_util::future::join_all(calls).await {
        assert_eq!(app.record(&asked.id).await.task.as_str(), many);
    }

    // `finish` gives the `owned_task` rows that an older release's purge left to the right tenant.
    let approved = register(&app, ALICE, &ours).await;
    app.approve(ALICE, &approved.id).await.assert(200, "");
    for statement in [
        format!("DELETE FROM hitl_request WHERE request_id = '{}'", approved.id),
        format!("INSERT INTO owned_task SELECT '{ours}'"),
        "INSERT INTO owned_task SELECT 'gone'".to_owned(),
    ] {
        operator.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    }
    for _twice in 0..2 {
        app.state.ledger.finish(Some(url)).await.unwrap();
    }
    assert_eq!(number(&app, "SELECT COUNT(*) FROM owned_task").await, 1);
    assert_eq!(
        number(&app, "SELECT COUNT(*) FROM owned_task WHERE tenant_id = 'tenant1'").await,
        1
    );
    let refused = register(&app, ALICE, &ours).await;
    app.reject(ALICE, &refused.id, None).await.assert(200, "");
    assert_eq!(status(&app, ALICE, &ours).await, "FAILED", "we had made it");

    let later = register(&app, MALLORY, &task).await;
    assert_eq!(seen(&app, MALLORY, &task).await["hitlRequestId"], json!(later.id));
    app.approve(MALLORY, &later.id).await.assert(200, "");
    assert_eq!(seen(&app, ALICE, &task).await, before);
}
