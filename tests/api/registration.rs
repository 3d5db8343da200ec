//! Requests registered over HTTP, for agents that cannot reach Redis.

use aura_hitl::courier::RedisSettings;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::RequestId;
use aura_hitl::domain::record::Delivery;
use aura_hitl::domain::request::Origin;
use aura_hitl::ledger::Recorded;
use chrono::TimeDelta;
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use support::{
    ALICE, Answer, Asked, BOB, MALLORY, Mode, PREFIXES, PrivateRedis, TestApp, Who,
    commands_to_redis, decide_on_ledger, unique,
};

const REQUESTS: &str = "/api/aura/hitl/requests";
const TASKS: &str = "/api/main/agent/tasks";

/// A registration with an id and a session of its own, changed where `changes` says so.
fn registration(changes: &Value) -> Value {
    let mut body = json!({
        "requestId": unique("req"), "sessionId": unique("session_user123"), "actionType": "send_email",
        "message": "Send it?", "context": { "to": "a@b.c" },
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            body.as_object_mut().unwrap().remove(name);
        } else {
            body[name] = value.clone();
        }
    }
    body
}

fn text<'a>(body: &'a Value, field: &str) -> &'a str {
    body[field].as_str().unwrap()
}

async fn register(app: &TestApp, who: Who<'_>, body: &Value) -> Answer {
    app.post(who, REQUESTS, body.clone()).await
}

/// A task of ALICE's that has begun; where it is, and its id.
async fn begun_task(app: &TestApp) -> (String, String) {
    let body = json!({ "taskType": "mail", "userId": "user123", "tenantId": "tenant1" });
    let made = app.post(ALICE, TASKS, body).await;
    let id = text(made.data(), "taskId").to_owned();
    let path = format!("{TASKS}/{id}");
    app.call(ALICE, Method::POST, &format!("{path}/start")).send().await.unwrap();
    (path, id)
}

/// The request as everybody is shown it.
async fn shown(app: &TestApp, id: &str) -> Value {
    let read = app.get(ALICE, &format!("{REQUESTS}/{id}")).await;
    serde_json::from_str(text(&read.assert(200, "").body, "data")).unwrap()
}

both_modes! {
    async fn a_registration_is_201_then_200_and_other_content_409(app: TestApp) {
        for prefix in PREFIXES {
            let path = format!("{prefix}/aura/hitl/requests");
            let body = registration(&json!({}));
            let made = app.post(ALICE, &path, body.clone()).await;
            made.assert(201, "");
            assert_eq!(*made.data(), json!({
                "requestId": body["requestId"], "sessionId": body["sessionId"], "status": "pending",
                "expiresAt": made.data()["expiresAt"], "fingerprint": made.data()["fingerprint"],
            }));
            for _ in 0..2 {
                let again = app.post(ALICE, &path, body.clone()).await;
                assert_eq!(again.assert(200, "").data(), made.data());
            }
            // The same context in another spelling is the same request.
            let spelled = body.to_string().replace(r#"{"to":"a@b.c"}"#, r#"{ "to" : "\u0061@b.c" }"#);
            let call = app.call(ALICE, Method::POST, &path).header("Content-Type", "application/json").body(spelled);
            assert_eq!(Answer::of(call.send().await.unwrap()).await.assert(200, "").data(), made.data());

            for (field, value) in [
                ("actionType", json!("delete_all")), ("context", json!({ "to": "evil@b.c" })), ("context", json!(null)),
                ("context", json!({ "to": "a@b.c", "cc": "x" })), ("sessionId", json!(unique("session"))),
            ] {
                let mut other = body.clone();
                other[field] = value;
                app.post(ALICE, &path, other).await.assert(409, "E3008");
            }
            app.post(BOB, &path, body.clone()).await.assert(409, "E3008");
            // Another tenant's ids are its own.
            app.post(MALLORY, &path, body.clone()).await.assert(201, "");
            let document = shown(&app, text(&body, "requestId")).await;
            assert_eq!((&document["context"], &document["userId"]), (&json!({ "to": "a@b.c" }), &json!("user123")));
        }
    }
}

both_modes! {
    async fn whatever_a_registration_says_is_its_content(app: TestApp) {
        let body = registration(&json!({}));
        register(&app, ALICE, &body).await.assert(201, "");
        for (field, value) in [
            ("message", json!("Delete everything?")), ("taskId", json!("task-1")),
            ("planSteps", json!([{ "id": "a" }])), ("expiresInSeconds", json!(60)),
        ] {
            let mut other = body.clone();
            other[field] = value;
            register(&app, ALICE, &other).await.assert(409, "E3008");
        }
        let mut same = body.clone();
        same["userId"] = "user123".into();
        same["tenantId"] = "tenant1".into();
        same["expiresInSeconds"] = 1800.into();
        register(&app, ALICE, &same).await.assert(200, "");
        same["userId"] = "bob".into();
        register(&app, ALICE, &same).await.assert(403, "E2001");
        same["userId"] = "user123".into();
        same["tenantId"] = "tenant2".into();
        register(&app, ALICE, &same).await.assert(403, "E2007");
    }
}

both_modes! {
    async fn a_registration_without_an_id_gets_one_in_the_agents_form(app: TestApp) {
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let made = register(&app, ALICE, &registration(&json!({ "requestId": null }))).await;
            let id = text(made.assert(201, "").data(), "requestId").to_owned();
            let digits = id.strip_prefix("req_").unwrap();
            assert!(digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{id}");
            ids.insert(id);
        }
        assert_eq!(ids.len(), 20);
    }
}

both_modes! {
    async fn a_registered_request_reads_like_those_that_agents_write(app: TestApp) {
        let body = registration(&json!({ "taskId": unique("task"), "planSteps": [{ "id": "a" }], "expiresInSeconds": 60 }));
        register(&app, ALICE, &body).await.assert(201, "");
        let id = text(&body, "requestId");
        let document = shown(&app, id).await;
        let created = document["createdAt"].as_i64().unwrap();
        assert_eq!(document, json!({
            "requestId": id, "sessionId": body["sessionId"], "actionType": "send_email", "context": { "to": "a@b.c" },
            "status": "pending", "userId": "user123", "tenantId": "tenant1", "createdAt": created,
            "message": "Send it?", "taskId": body["taskId"], "planSteps": [{ "id": "a" }],
        }));
        assert_eq!(app.poll(ALICE, text(&body, "sessionId"), Some(id)).await, None);
        assert_eq!(app.record(id).await.delivery, Delivery::Sent, "nothing is owed");
    }
}

/// Agents on Redis take any message on their channel for their answer, so whoever registers in a
/// guessed session must not be able to have anything said or written there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_request_leaves_no_trace_in_redis_but_a_wake_up() {
    // Its own server, so that the monitor sees nobody else's commands.
    let redis = PrivateRedis::start().await;
    let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.redis = Some(RedisSettings::Url(redis.url().into()));
    })
    .await;
    let tenant = Who { tenant: "테넌트:1", ..ALICE };
    let channel = |id: &str| format!("hitl:decision:%ED%85%8C%EB%84%8C%ED%8A%B8%3A1:{id}");
    let [approved, rejected, cancelled, expired] = [(); 4].map(|()| Asked::new());
    let ids = [&approved, &rejected, &cancelled, &expired].map(|asked| asked.id.as_str());
    let mut subscription = redis.client().get_async_pubsub().await.unwrap();
    for id in ids {
        subscription.subscribe(channel(id)).await.unwrap();
    }
    let mut heard = subscription.on_message();
    let work = async {
        let register = async |asked: &Asked, seconds: i64| {
            let mut body = asked.registration();
            body["expiresInSeconds"] = seconds.into();
            app.post(tenant, REQUESTS, body).await.assert(201, "");
        };
        for asked in [&approved, &rejected, &cancelled] {
            register(asked, 60).await;
        }
        register(&expired, 1).await;
        app.approve(tenant, &approved.id).await.assert(200, "");
        app.reject(tenant, &rejected.id, None).await.assert(200, "");
        app.post(tenant, &format!("{REQUESTS}/{}/cancel", cancelled.id), json!({}))
            .await
            .assert(200, "");
        let mut woken = Vec::new();
        for _closed in ids {
            let message = heard.next().await.unwrap();
            assert_eq!(message.get_payload::<String>().unwrap(), "ask");
            woken.push(message.get_channel_name().to_owned());
        }
        woken.sort_unstable();
        let mut expected = ids.map(channel);
        expected.sort_unstable();
        assert_eq!(woken, expected);
    };
    let told = commands_to_redis(&redis.client(), work).await;
    // MONITOR shows what is not ASCII byte by byte; ids and sessions here are ASCII.
    for line in &told {
        let is_about = [&approved, &rejected, &cancelled, &expired]
            .iter()
            .any(|asked| line.contains(&asked.id) || line.contains(&asked.session));
        let is_read =
            line.contains("\"EVAL\"") && line.contains("no-writes") || line.contains(" lua] ");
        let is_wake_up = line.contains("\"PUBLISH\"")
            && (line.contains("\"hitl:decision:") || line.contains("\"hitl:outcomes\""));
        assert!(!is_about || is_read || is_wake_up || line.contains("SUBSCRIBE"), "{line}");
    }
    let keys: Vec<String> = redis.command(&["KEYS", "hitl:*"]).await;
    assert_eq!(keys, Vec::<String>::new());
}

both_modes! {
    async fn user_and_tenant_are_the_tokens(app: TestApp) {
        let body = registration(&json!({ "userId": "user123", "tenantId": "tenant1", "status": "approved", "createdAt": 1 }));
        register(&app, ALICE, &body).await.assert(201, "");
        let document = shown(&app, text(&body, "requestId")).await;
        assert_eq!((&document["userId"], &document["tenantId"], &document["status"]), (&json!("user123"), &json!("tenant1"), &json!("pending")));
        let id = text(&body, "requestId");
        app.approve(MALLORY, id).await.assert(404, "E1004");
        app.get(MALLORY, &format!("{REQUESTS}/{id}")).await.assert(404, "E1004");
        app.approve(BOB, id).await.assert(200, "");
    }
}

both_modes! {
    async fn a_registration_leaves_a_task_that_waits_and_follows_the_decision(app: TestApp) {
        let steps = json!([{ "id": "a", "status": "waiting", "x": 1.5 }]);
        for (approves, status) in [(true, "IN_PROGRESS"), (false, "FAILED")] {
            let body = registration(&json!({ "planSteps": steps }));
            let id = text(&body, "requestId");
            register(&app, ALICE, &body).await.assert(201, "");
            let task = format!("{TASKS}/{}", app.task_of(id).await.id);
            let waiting = app.get(ALICE, &task).await;
            let data = waiting.assert(200, "").data();
            assert_eq!((&data["status"], &data["taskType"], &data["hitlRequestId"]), (&json!("WAITING_APPROVAL"), &json!("send_email"), &json!(id)));
            assert_eq!((&data["inputData"], &data["planSteps"]), (&json!({ "to": "a@b.c" }), &json!(steps.to_string())));
            assert_eq!((&data["userId"], &data["description"]), (&json!("user123"), &json!("Send it?")));
            let decided = if approves { app.approve(ALICE, id).await } else { app.reject(ALICE, id, Some("안 돼요")).await };
            decided.assert(200, "");
            let after = app.get(ALICE, &task).await;
            assert_eq!(after.data()["status"], status);
            let error = after.data()["errorMessage"].as_str().unwrap_or_default();
            assert_eq!(error.contains("user123") && error.contains("안 돼요"), !approves, "{error}");
            let signal = app.poll(ALICE, text(&body, "sessionId"), Some(id)).await.unwrap();
            assert_eq!(signal["requestId"], id);
        }
    }
}

both_modes! {
    async fn the_task_that_an_agent_keeps_goes_on_whatever_is_decided(app: TestApp) {
        for approves in [true, false] {
            let (path, task) = begun_task(&app).await;
            let body = registration(&json!({ "taskId": task }));
            let id = text(&body, "requestId");
            register(&app, ALICE, &body).await.assert(201, "");
            let waiting = app.get(ALICE, &path).await;
            assert_eq!((&waiting.data()["status"], &waiting.data()["hitlRequestId"]), (&json!("WAITING_APPROVAL"), &json!(id)));
            assert_eq!(waiting.data()["taskType"], "mail");
            let decided = if approves { app.approve(ALICE, id).await } else { app.reject(ALICE, id, None).await };
            decided.assert(200, "");
            let after = app.get(ALICE, &path).await;
            assert_eq!(after.data()["status"], "IN_PROGRESS");
            let error = after.data()["errorMessage"].as_str().unwrap_or_default();
            assert_eq!(error.contains("User rejected") && error.contains("user123"), !approves, "{error}");
            assert_eq!(app.get(ALICE, TASKS).await.data()["totalElements"], if approves { 1 } else { 2 }, "no second row");
        }
    }
}

both_modes! {
    async fn a_task_waits_until_all_its_requests_are_decided(app: TestApp) {
        let (path, task) = begun_task(&app).await;
        let session = unique("session");
        let bodies = [(); 2].map(|()| registration(&json!({ "taskId": task, "sessionId": session })));
        for body in &bodies {
            register(&app, ALICE, body).await.assert(201, "");
        }
        for (body, status) in bodies.iter().zip(["WAITING_APPROVAL", "IN_PROGRESS"]) {
            app.approve(ALICE, text(body, "requestId")).await.assert(200, "");
            assert_eq!(app.get(ALICE, &path).await.data()["status"], status);
        }
        // Both answers are there for an agent that matches on the request.
        for body in &bodies {
            let id = text(body, "requestId");
            assert_eq!(app.poll(ALICE, &session, Some(id)).await.unwrap()["requestId"], id);
        }
    }
}

both_modes! {
    async fn a_task_that_is_over_takes_no_more_requests(app: TestApp) {
        for step in ["complete", "fail"] {
            let (path, task) = begun_task(&app).await;
            app.call(ALICE, Method::POST, &format!("{path}/{step}")).send().await.unwrap();
            let before = app.get(ALICE, &path).await;
            let body = registration(&json!({ "taskId": task }));
            register(&app, ALICE, &body).await.assert(409, "E3002");
            assert_eq!(app.get(ALICE, &path).await.data(), before.data());
            app.approve(ALICE, text(&body, "requestId")).await.assert(404, "E1004");
        }
    }
}

both_modes! {
    async fn another_tenants_task_is_neither_joined_nor_touched(app: TestApp) {
        let (path, task) = begun_task(&app).await;
        let before = app.get(ALICE, &path).await;
        let body = registration(&json!({ "taskId": task }));
        register(&app, MALLORY, &body).await.assert(201, "");
        let own = app.get(MALLORY, &path).await;
        assert_eq!(own.assert(200, "").data()["hitlRequestId"], body["requestId"]);
        app.reject(MALLORY, text(&body, "requestId"), None).await.assert(200, "");
        assert_eq!(app.get(ALICE, &path).await.data(), before.data());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_can_be_decided_until_it_expires_and_not_after() {
    for mode in [Mode::Embedded, Mode::Production] {
        let clock = Clock::manual();
        let app = TestApp::spawn_with(mode, clock.clone(), |_| {}).await;
        for lifetime in [None, Some(30), Some(86_400)] {
            let [early, late] =
                [(); 2].map(|()| registration(&json!({ "expiresInSeconds": lifetime })));
            let expected = clock.now() + TimeDelta::seconds(lifetime.unwrap_or(1800));
            for body in [&early, &late] {
                let made = register(&app, ALICE, body).await;
                let expires = expected.format("%Y-%m-%dT%H:%M:%S").to_string();
                assert_eq!(made.assert(201, "").data()["expiresAt"], *expires);
            }
            clock
                .advance(TimeDelta::seconds(lifetime.unwrap_or(1800)) - TimeDelta::microseconds(1));
            app.approve(ALICE, text(&early, "requestId")).await.assert(200, "");
            clock.advance(TimeDelta::microseconds(1));
            let id = text(&late, "requestId");
            for _ in 0..2 {
                app.approve(ALICE, id).await.assert(410, "E3007");
                app.reject(ALICE, id, None).await.assert(410, "E3007");
            }
            let again = register(&app, ALICE, &late).await;
            assert_eq!(again.assert(200, "").data()["status"], "expired", "it is not born again");
            assert!(!matches!(app.record(id).await.state, State::Decided(_)));
            assert_eq!(app.poll(ALICE, text(&late, "sessionId"), Some(id)).await, None);
            // What was decided in time stays decided, and may be heard again.
            app.approve(ALICE, text(&early, "requestId")).await.assert(200, "");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_somebody_was_told_that_time_is_up_nobody_decides_who_came_before() {
    for mode in [Mode::Embedded, Mode::Production] {
        let clock = Clock::manual();
        let app = TestApp::spawn_with(mode, clock.clone(), |_| {}).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        let document: Value = serde_json::from_str(&app.record(&asked.id).await.document).unwrap();
        let registered = Asked { document, ..asked };
        clock.advance(TimeDelta::seconds(1800));
        app.approve(BOB, &registered.id).await.assert(410, "E3007");
        // Alice's click came in time, and was held up on its way to the ledger.
        let in_time = clock.now() - TimeDelta::milliseconds(1);
        let recorded = decide_on_ledger(
            &app.state.ledger,
            ALICE,
            &registered,
            Origin::Http,
            Verdict::Approve,
            in_time,
        )
        .await;
        assert!(matches!(recorded, Recorded::Lost(record) if record.state == State::Expired));
        app.approve(ALICE, &registered.id).await.assert(410, "E3007");
    }
}

over_redis! {
    async fn a_copy_in_redis_that_was_tampered_with_is_not_decided(app: TestApp) {
        for (field, value) in [
            ("context", json!({ "to": "evil@b.c" })), ("actionType", json!("delete_all")), ("userId", json!("bob")),
            ("sessionId", json!(unique("session_other"))),
            ("message", json!("Delete everything?")), ("planSteps", json!([])), ("status", json!("approved")),
        ] {
            let body = registration(&json!({}));
            register(&app, ALICE, &body).await.assert(201, "");
            let id = RequestId::parse(text(&body, "requestId")).unwrap();
            let mut document = shown(&app, id.as_str()).await;
            document[field] = value;
            app.put(id.as_str(), &document.to_string()).await;
            for who in [ALICE, BOB] {
                let answer = app.approve(who, id.as_str()).await;
                assert_eq!((answer.status.as_u16(), answer.code()), (422, "E4220"), "{field}: {}", answer.text);
                // Whoever reads it is shown what was registered.
                let read = app.get(who, &format!("{REQUESTS}/{id}")).await;
                let read: Value = serde_json::from_str(read.assert(200, "").data().as_str().unwrap()).unwrap();
                assert_eq!((&read["message"], &read["status"]), (&json!("Send it?"), &json!("pending")));
            }
            app.get(MALLORY, &format!("{REQUESTS}/{id}")).await.assert(404, "E1004");
            app.approve(MALLORY, id.as_str()).await.assert(404, "E1004");
            assert_eq!(app.record(id.as_str()).await.state, State::Pending, "{field}");
            assert_eq!(app.signal(text(&body, "sessionId")).await, None);
        }
        for broken in ["nonsense", "[]", "{}", "", r#"{"sessionId":"a b"}"#] {
            let body = registration(&json!({}));
            register(&app, ALICE, &body).await.assert(201, "");
            let id = RequestId::parse(text(&body, "requestId")).unwrap();
            app.put(id.as_str(), broken).await;
            app.approve(ALICE, id.as_str()).await.assert(422, "E4220");
            // For them it is as if nobody had registered it.
            app.approve(MALLORY, id.as_str()).await.assert(422, "E4220");
            assert_eq!(app.record(id.as_str()).await.state, State::Pending, "{broken}");
        }
    }
}

both_modes! {
    async fn registrations_are_validated_by_field(app: TestApp) {
        let long = |count| "x".repeat(count);
        for (field, value) in [
            ("sessionId", json!(null)), ("sessionId", json!("")), ("sessionId", json!("a b")), ("sessionId", json!(long(257))), ("sessionId", json!(7)),
            ("actionType", json!(null)), ("actionType", json!("")), ("actionType", json!(long(129))), ("actionType", json!({})),
            ("requestId", json!("")), ("requestId", json!("a/b")), ("requestId", json!(long(129))), ("taskId", json!("a b")),
            ("message", json!(long(2001))), ("message", json!(7)),
            ("expiresInSeconds", json!(86_401)), ("expiresInSeconds", json!(0)), ("expiresInSeconds", json!(-1)),
            ("expiresInSeconds", json!(60.5)), ("expiresInSeconds", json!("60")), ("expiresInSeconds", json!(u64::MAX)),
            ("planSteps", json!({})), ("planSteps", json!("[]")), ("planSteps", json!([7])), ("planSteps", json!([{}])),
            ("planSteps", json!([{ "id": "a", "status": "done" }])), ("planSteps", json!([{ "id": "a", "confidence": 2 }])),
        ] {
            let mut body = registration(&json!({}));
            body[field] = value;
            let answer = register(&app, ALICE, &body).await;
            answer.assert(400, "E4000");
            assert!(answer.data()[field].is_string(), "{field}: {}", answer.text);
            assert_eq!(answer.data().as_object().unwrap().len(), 1, "{}", answer.text);
        }
        let answer = app.post(ALICE, REQUESTS, json!({})).await;
        let fields = answer.assert(400, "E4000").data().as_object().unwrap();
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["actionType", "sessionId"]);
        assert_eq!(app.get(ALICE, TASKS).await.data()["totalElements"], 0);
        for bounds in [1, 86_400] {
            register(&app, ALICE, &registration(&json!({ "expiresInSeconds": bounds }))).await.assert(201, "");
        }
    }
}

both_modes! {
    async fn twenty_registrations_of_one_request_at_once_make_one(app: TestApp) {
        let body = registration(&json!({}));
        let answers = futures_util::future::join_all((0..20).map(|_| register(&app, ALICE, &body))).await;
        let made = answers.iter().filter(|answer| answer.status.as_u16() == 201).count();
        let known = answers.iter().filter(|answer| answer.status.as_u16() == 200).count();
        assert_eq!((made, known), (1, 19), "{answers:?}");
        assert!(answers.iter().all(|answer| answer.data() == answers[0].data()));
        assert_eq!(app.get(ALICE, TASKS).await.data()["totalElements"], 1);
    }
}
