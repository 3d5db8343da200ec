//! Tasks that the service made itself for approved requests come to an end.

use aura_hitl::audit::retention::{self, Retention};
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::task::{Task, TaskStatus};
use aura_hitl::tasks::open;
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::json;
use support::{ALICE, Answer, Asked, BOB, Mode, Subscriber, TestApp, Who, eventually};

const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];
const NOT_REPORTED: &str = r#"{"reportedByAgent":false}"#;

async fn spawn(mode: Mode) -> TestApp {
    TestApp::spawn_with(mode, Clock::manual(), |_| {}).await
}

/// Registers a request and approves it.
async fn approved(app: &TestApp) -> Asked {
    let asked = Asked::new();
    app.register(ALICE, &asked).await.assert(201, "");
    app.approve(ALICE, &asked.id).await.assert(200, "");
    app.settled(&asked.id).await;
    asked
}

/// So many seconds later, once the worker has looked.
async fn after(app: &TestApp, seconds: i64) {
    app.state.clock.advance(TimeDelta::seconds(seconds));
    open::run_once(&app.state.ledger, &app.state.clock).await.unwrap();
}

#[track_caller]
fn assert_ended(task: &Task, status: TaskStatus, result: Option<&str>, error: Option<&str>) {
    let ended = (task.status, task.result_data.as_deref(), task.error_message.as_deref());
    assert_eq!(ended, (status, result, error));
    let progress = if status == TaskStatus::Completed { 100 } else { 0 };
    assert_eq!(task.progress, progress);
    assert_eq!(task.completed_at.is_some(), status == TaskStatus::Completed);
}

/// Asks where a request stands, with these headers.
async fn ask(app: &TestApp, path: &str, headers: &[(&str, &str)]) {
    ask_as(app, ALICE, path, headers).await;
}

async fn ask_as(app: &TestApp, who: Who<'_>, path: &str, headers: &[(&str, &str)]) {
    let call = app.call(who, Method::GET, path);
    let call = headers.iter().fold(call, |call, (name, value)| call.header(*name, *value));
    Answer::of(call.send().await.unwrap()).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_approval_completes_its_task() {
    for mode in MODES {
        let app = spawn(mode).await;
        let asked = approved(&app).await;
        for _twice in 0..2 {
            let path = format!("/aura/hitl/requests/{}/ack", asked.id);
            app.post(ALICE, &path, json!({})).await.assert(200, "");
            assert_ended(&app.task_of(&asked.id).await, TaskStatus::Completed, None, None);
        }
        let before = app.task_of(&asked.id).await;
        after(&app, 301).await;
        assert_eq!(app.task_of(&asked.id).await, before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_request_was_heard_if_its_agent_asked_for_the_decision() {
    for mode in MODES {
        let app = spawn(mode).await;
        let [asked, polled, looked, silent] = [
            approved(&app).await,
            approved(&app).await,
            approved(&app).await,
            approved(&app).await,
        ];
        let decision = |asked: &Asked| format!("/aura/hitl/requests/{}/decision", asked.id);
        ask(&app, &decision(&asked), &[]).await;
        let signals = format!("/aura/hitl/signals/{}?requestId={}", polled.session, polled.id);
        ask(&app, &signals, &[("X-DWP-Caller-Type", "AGENT")]).await;
        for headers in [
            [("Origin", "http://localhost:4200")],
            [("X-DWP-Source", "FRONTEND")],
            [("X-DWP-Caller-Type", "USER")],
            [("Sec-Fetch-Mode", "cors")],
            [("Referer", "http://localhost:4200/")],
            [("X-Forwarded-Origin", "http://localhost:4200")],
        ] {
            ask(&app, &decision(&looked), &headers).await;
        }
        // Another user's look is none of the agent's.
        for headers in [&[][..], &[("X-DWP-Caller-Type", "AGENT")]] {
            ask_as(&app, BOB, &decision(&looked), headers).await;
        }
        // That the agents asked is noted beside the answer.
        eventually(async || {
            let heard = crate::retention::number(
                &app,
                "SELECT COUNT(*) FROM hitl_request WHERE heard_at IS NOT NULL",
            )
            .await;
            (heard == 2).then_some(())
        })
        .await;
        after(&app, 290).await;
        for one in [&asked, &polled, &looked, &silent] {
            assert_eq!(app.task_of(&one.id).await.status, TaskStatus::InProgress);
        }
        after(&app, 20).await;
        for heard in [&asked, &polled] {
            assert_ended(
                &app.task_of(&heard.id).await,
                TaskStatus::Completed,
                Some(NOT_REPORTED),
                None,
            );
        }
        let nobody = Some("approved, but no agent was listening");
        for unheard in [&looked, &silent] {
            assert_ended(&app.task_of(&unheard.id).await, TaskStatus::Failed, None, nobody);
        }
        // They become old like any other.
        let keeping = Retention { requests: None, tasks: Some(TimeDelta::days(1)) };
        let then = app.state.clock.now() + TimeDelta::days(2);
        assert_eq!(retention::run_once(&app.state.ledger, keeping, then).await.unwrap().tasks, 4);
        assert_eq!(
            open::run_once(&app.state.ledger, &app.state.clock).await.unwrap(),
            0,
            "each is looked at once"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_redis_was_heard_if_somebody_listened() {
    let app = spawn(Mode::Production).await;
    let (heard, unheard) = (Asked::new(), Asked::new());
    let _subscriber = Subscriber::on(&heard.session).await;
    for asked in [&heard, &unheard] {
        app.ask(asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
    }
    after(&app, 310).await;
    // A signal that nobody heard may have been published once more meanwhile.
    after(&app, 310).await;
    assert_ended(&app.task_of(&heard.id).await, TaskStatus::Completed, Some(NOT_REPORTED), None);
    let nobody = Some("approved, but no agent was listening");
    assert_ended(&app.task_of(&unheard.id).await, TaskStatus::Failed, None, nobody);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_keeps_or_has_reported_on_is_left_alone() {
    for mode in MODES {
        let app = spawn(mode).await;
        let body = json!({ "taskType": "mail", "userId": "user123", "tenantId": "tenant1" });
        let task = app.post(ALICE, "/main/agent/tasks", body).await;
        let task = task.data()["taskId"].as_str().unwrap().to_owned();
        let kept = Asked::new().with("taskId", task.into());
        app.register(ALICE, &kept).await.assert(201, "");
        app.approve(ALICE, &kept.id).await.assert(200, "");
        let reported = approved(&app).await;
        app.state.clock.advance(TimeDelta::seconds(1));
        let progress = format!("/main/agent/tasks/{}/progress", app.task_of(&reported.id).await.id);
        let call = app.call(ALICE, Method::PATCH, &progress).json(&json!({ "progress": 40 }));
        Answer::of(call.send().await.unwrap()).await.assert(200, "");
        app.settled(&kept.id).await;
        after(&app, 310).await;
        for asked in [&kept, &reported] {
            assert_eq!(app.task_of(&asked.id).await.status, TaskStatus::InProgress);
        }
    }
}
