//! Large bodies of one person are handled one at a time, and other people do not wait for them.

use std::io::Write as _;
use std::net::TcpStream;

use aura_hitl::domain::approver::Role;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::Method;
use serde_json::{Value, json};
use support::{ALICE, Answer, Asked, BOB, MALLORY, Who, eventually, unique};

const REQUESTS: &str = "/aura/hitl/requests";
const TASKS: &str = "/main/agent/tasks";
/// Large bodies of one person that may wait for their turn.
const MOST_WAITING: usize = 8;

/// A registration that is slightly longer than `bytes`.
fn registration(bytes: usize) -> Value {
    Asked::new().with("context", json!({ "text": "x".repeat(bytes) })).registration()
}

fn large() -> Value {
    registration(64 * 1024)
}

#[track_caller]
fn assert_refused(answer: &Answer) {
    answer.assert(429, "E4290");
    let message = answer.body["message"].as_str().unwrap();
    assert!(message.contains("65536 bytes") && message.contains("at most 8"), "{message}");
    assert_eq!(answer.headers["Retry-After"], "1");
}

both_modes! {
    async fn the_ninth_that_waits_is_refused_and_nobody_else_is(app: TestApp) {
        let (bodies, alice) = (app.state.large_bodies.clone(), ALICE.caller());
        let turn = bodies.wait(&alice).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..MOST_WAITING {
            let mut wait = Box::pin(bodies.wait(&alice));
            assert!((&mut wait).now_or_never().is_none());
            waiting.push(wait);
        }
        assert_refused(&app.post(ALICE, REQUESTS, large()).await);
        let task = json!({
            "taskType": "mail", "userId": ALICE.user, "tenantId": ALICE.tenant,
            "inputData": "x".repeat(64 * 1024),
        });
        assert_refused(&app.post(ALICE, TASKS, task).await);
        // A chunked body does not announce its length.
        let chunked = async |body: Value| {
            let (head, body) = (app.head(ALICE, &Method::POST, REQUESTS), body.to_string());
            app.raw(format!(
                "{head}{}Connection: close\r\nContent-Type: application/json\r\n\
                 Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                ALICE.lines(), body.len(),
            )).await
        };
        for (body, status) in [(large(), 429), (registration(60_000), 201)] {
            let answer = chunked(body).await;
            assert_eq!(answer.first().status, status, "{}", answer.text);
        }
        let call = app.call(ALICE, Method::POST, REQUESTS).header("Accept-Language", "ko");
        let korean = Answer::of(call.json(&large()).send().await.unwrap()).await;
        korean.assert(429, "E4290");
        let message = korean.body["message"].as_str().unwrap();
        assert!(message.contains("65536바이트") && message.contains("최대 8개"), "{message}");

        // Small bodies and decisions are not delayed.
        let small = Asked::new();
        app.register(ALICE, &small).await.assert(201, "");
        app.approve(ALICE, &small.id).await.assert(200, "");
        app.post(ALICE, REQUESTS, registration(60_000)).await.assert(201, "");
        // The limit does not apply to another user, another tenant, or the same name in another
        // tenant.
        for who in [BOB, MALLORY, Who { user: ALICE.user, tenant: "tenant2", role: Role::User }] {
            app.post(who, REQUESTS, large()).await.assert(201, "");
        }
        // A waiting call that hangs up frees its place, and so does the call whose turn it was.
        drop(waiting.pop());
        drop(turn);
        drop(waiting);
        app.post(ALICE, REQUESTS, large()).await.assert(201, "");
    }
}

both_modes! {
    async fn those_that_wait_are_served_one_after_the_other(app: TestApp) {
        let turn = app.state.large_bodies.wait(&ALICE.caller()).await.unwrap();
        let calls = (0..=MOST_WAITING).map(|_| app.post(ALICE, REQUESTS, large()));
        let mut calls = calls.collect::<FuturesUnordered<_>>();
        assert_refused(&calls.next().await.unwrap());
        drop(turn);
        while let Some(answer) = calls.next().await {
            answer.assert(201, "");
        }
    }
}

both_modes! {
    async fn a_caller_that_hangs_up_amid_its_body_gives_its_turn_back(app: TestApp) {
        let bodies = app.state.large_bodies.clone();
        let text = large().to_string();
        let head = format!(
            "{}{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            app.head(ALICE, &Method::POST, REQUESTS), ALICE.lines(), text.len(),
        );
        let mut socket = TcpStream::connect(app.base.strip_prefix("http://").unwrap()).unwrap();
        socket.write_all(head.as_bytes()).unwrap();
        socket.write_all(&text.as_bytes()[..text.len() / 2]).unwrap();
        eventually(async || bodies.wait(&ALICE.caller()).now_or_never().is_none().then_some(())).await;
        drop(socket);
        app.post(ALICE, REQUESTS, large()).await.assert(201, "");
    }
}

both_modes! {
    /// Large bodies are checked on a thread of their own, and answered like small ones.
    async fn large_bodies_are_checked_and_kept_like_small_ones(app: TestApp) {
        let padding = "x".repeat(100_000);
        let call = app.call(ALICE, Method::POST, REQUESTS).header("Accept-Language", "ko");
        let wrong = json!({ "sessionId": "session_1", "context": padding });
        let refused = Answer::of(call.json(&wrong).send().await.unwrap()).await;
        refused.assert(400, "E4000");
        assert_eq!(refused.data()["actionType"], "필수 항목입니다", "{}", refused.text);

        let asked = Asked::new().with("context", json!({ "text": padding }));
        let registered = app.register(ALICE, &asked).await;
        let again = app.register(ALICE, &asked).await;
        registered.assert(201, "");
        again.assert(200, "");
        let read = app.get(ALICE, &format!("{REQUESTS}/{}", asked.id)).await;
        for answer in [&registered, &again] {
            assert_eq!(answer.headers["ETag"], read.headers["ETag"]);
        }
        assert_eq!(registered.data()["fingerprint"], app.record(&asked.id).await.fingerprint);

        let task = json!({
            "taskType": "mail", "userId": ALICE.user, "tenantId": ALICE.tenant, "inputData": padding,
        });
        let task = app.post(ALICE, TASKS, task).await;
        task.assert(201, "");
        assert_eq!(task.data()["inputData"], padding);
        let path = format!("{TASKS}/{}", task.data()["taskId"].as_str().unwrap());
        app.post(ALICE, &format!("{path}/start"), json!({})).await.assert(200, "");
        let (step, name) = (json!({ "id": "a", "text": padding }), unique("step"));
        app.post(ALICE, &format!("{path}/plan-steps"), step).await.assert(200, "");
        let broken = json!([{ "id": "b", "text": padding }, name]);
        let refused = app.post(ALICE, &format!("{path}/plan-steps"), broken).await;
        refused.assert(400, "E4000");
        assert!(refused.data()["planSteps[1]"].is_string(), "{}", refused.text);
        let done = app.post(ALICE, &format!("{path}/complete"), json!(padding)).await;
        done.assert(200, "");
    }
}
