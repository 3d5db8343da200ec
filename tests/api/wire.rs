//! Every wire body of the contract, byte for byte, and the document that describes them. A snapshot
//! that changes is a system of somebody else's that breaks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use aura_hitl::api::error::ErrorCode;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::ids::RequestId;
use chrono::TimeDelta;
use insta::{assert_snapshot, assert_yaml_snapshot};
use reqwest::Method;
use serde_json::{Value, json};
use support::{
    ALICE, Answer, Asked, BOB, Mode, TestApp, document, operations, test_variable, unique,
};

/// 2026-01-16T12:00:00Z.
const NOON_MICROS: i64 = 1_768_564_800_000_000;
const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];

/// A service whose clock stands at noon.
async fn at_noon(mode: Mode) -> TestApp {
    TestApp::spawn_with(mode, Clock::Manual(Arc::new(AtomicI64::new(NOON_MICROS))), |_| {}).await
}

/// The text of an answer, with what differs from run to run replaced: the envelope's own time, and
/// the given ids.
fn wire(answer: &Answer, ids: &[(&str, &str)]) -> String {
    let mut text = answer.text.clone();
    let timestamp = format!(r#""timestamp":"{}""#, answer.body["timestamp"].as_str().unwrap());
    assert_eq!(text.matches(&timestamp).count(), 1);
    text = text.replace(&timestamp, r#""timestamp":"<now>""#);
    replaced(text, ids)
}

fn replaced(text: String, ids: &[(&str, &str)]) -> String {
    ids.iter().fold(text, |text, (id, name)| text.replace(id, name))
}

/// A call with a trace id, so that errors have no random one.
async fn ask(app: &TestApp, method: Method, path: &str, body: Option<Value>) -> Answer {
    let call = app.call(ALICE, method, path).header("X-Trace-Id", "trace-1");
    let call = if let Some(body) = body { call.json(&body) } else { call };
    Answer::of(call.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_from_request_to_signal() {
    {
        let mode = Mode::Production;
        let app = at_noon(mode).await;
        let asked = Asked::new().with("extra", json!({ "z": 1.5, "a": [null] }));
        app.ask(&asked).await;
        let ids = [(asked.id.as_str(), "<request>"), (asked.session.as_str(), "<session>")];
        let none = app.get(ALICE, &format!("/aura/hitl/signals/{}", asked.session)).await;
        assert_snapshot!("no_signal", wire(&none, &ids));
        let pending = app.get(ALICE, &format!("/aura/hitl/requests/{}", asked.id)).await;
        assert_snapshot!("request_pending", wire(&pending, &ids));

        assert_snapshot!("approved", wire(&app.approve(ALICE, &asked.id).await, &ids));
        let signal = app.signal(&asked.session).await.unwrap();
        assert_snapshot!("signal_approval", replaced(signal, &ids));
        let polled = app.get(ALICE, &format!("/aura/hitl/signals/{}", asked.session)).await;
        assert_snapshot!("signal_polled", wire(&polled, &ids));
        let id = RequestId::parse(&asked.id).unwrap();
        let stored = app.state.courier.find_request(&id).await.unwrap().unwrap();
        assert_snapshot!("request_after_approval", replaced(stored.document, &ids));
        let read = app.get(ALICE, &format!("/aura/hitl/requests/{}", asked.id)).await;
        assert_snapshot!("request_approved", wire(&read, &ids));

        let reject = format!("/aura/hitl/reject/{}", asked.id);
        let standing = ask(&app, Method::POST, &reject, Some(json!({ "userId": "user123" }))).await;
        standing.assert(409, "E3006");
        assert_snapshot!("already_approved", wire(&standing, &ids));
        // A task of our own making, as an admin and an agent see it.
        let task = app.task_of(&asked.id).await.id.to_string();
        let read = app.get(ALICE, &format!("/main/agent/tasks/{task}")).await;
        // When it was asked is reckoned from what is left of the key's time to live.
        let created = format!(r#""createdAt":{}"#, read.data()["createdAt"]);
        let own = [(task.as_str(), "<task>"), (created.as_str(), r#""createdAt":"<asked>""#)];
        let ids = [&ids[..], &own].concat();
        assert_snapshot!("task_of_an_approval", wire(&read, &ids));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_from_request_to_signal() {
    {
        let mode = Mode::Production;
        let app = at_noon(mode).await;
        for (name, reason) in [("with_reason", Some("사용자 \"거절\"\n")), ("without_reason", None)]
        {
            let asked = Asked::new();
            app.ask(&asked).await;
            let ids = [(asked.id.as_str(), "<request>"), (asked.session.as_str(), "<session>")];
            let answer = app.reject(ALICE, &asked.id, reason).await;
            assert_snapshot!(format!("rejected_{name}"), wire(&answer, &ids));
            let signal = app.signal(&asked.session).await.unwrap();
            assert_snapshot!(format!("signal_rejection_{name}"), replaced(signal, &ids));
            let id = RequestId::parse(&asked.id).unwrap();
            let stored = app.state.courier.find_request(&id).await.unwrap().unwrap();
            assert_snapshot!(
                format!("request_after_rejection_{name}"),
                replaced(stored.document, &ids)
            );
            let approve = format!("/aura/hitl/approve/{}", asked.id);
            let body = json!({ "userId": "user123" });
            let standing = ask(&app, Method::POST, &approve, Some(body)).await;
            standing.assert(409, "E3006");
            assert_snapshot!(format!("already_rejected_{name}"), wire(&standing, &ids));
        }
    }
}

/// What a subscriber hears is what stands under the key, byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_message_is_the_key_byte_for_byte() {
    use futures_util::StreamExt as _;
    let app = at_noon(Mode::Production).await;
    for reason in [None, Some("사용자 거절")] {
        let asked = Asked::new();
        app.ask(&asked).await;
        let client = redis::Client::open(test_variable("TEST_REDIS_URL")).unwrap();
        let mut subscriber = client.get_async_pubsub().await.unwrap();
        subscriber.subscribe(format!("hitl:channel:{}", asked.session)).await.unwrap();
        match reason {
            None => app.approve(ALICE, &asked.id).await,
            reason => app.reject(ALICE, &asked.id, reason).await,
        }
        .assert(200, "");
        let heard = subscriber.on_message().next().await.unwrap().get_payload::<String>().unwrap();
        assert_eq!(Some(heard), app.signal(&asked.session).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_and_what_it_writes() {
    for mode in MODES {
        let app = at_noon(mode).await;
        let (request, session) = (unique("req"), unique("session_user123"));
        let ids = [(request.as_str(), "<request>"), (session.as_str(), "<session>")];
        let body = json!({
            "requestId": request, "sessionId": session, "actionType": "send_email", "message": "Send it?",
            "context": { "to": "a@b.c" }, "planSteps": [{ "id": "a", "status": "waiting" }],
        });
        let made = ask(&app, Method::POST, "/aura/hitl/requests", Some(body.clone())).await;
        made.assert(201, "");
        assert_snapshot!("registered", wire(&made, &ids));
        let read = app.get(ALICE, &format!("/aura/hitl/requests/{request}")).await;
        assert_snapshot!(
            "request_registered",
            replaced(read.data().as_str().unwrap().to_owned(), &ids)
        );
        let mut other = body;
        other["actionType"] = "delete_all".into();
        let taken = ask(&app, Method::POST, "/aura/hitl/requests", Some(other)).await;
        assert_snapshot!("request_id_taken", wire(&taken, &ids));
        app.state.clock.advance(TimeDelta::seconds(1800));
        let path = format!("/aura/hitl/approve/{request}");
        let late = ask(&app, Method::POST, &path, Some(json!({ "userId": "user123" }))).await;
        late.assert(410, "E3007");
        assert_snapshot!("expired", wire(&late, &ids));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_from_its_beginning_to_its_end() {
    for mode in MODES {
        let app = at_noon(mode).await;
        let body = json!({
            "taskType": "mail_summary", "userId": "user123", "tenantId": "tenant1",
            "description": "메일 요약", "inputData": { "folder": "inbox" },
        });
        let made = ask(&app, Method::POST, "/main/agent/tasks", Some(body)).await;
        let task = made.data()["taskId"].as_str().unwrap().to_owned();
        let ids = [(task.as_str(), "<task>")];
        assert_snapshot!("task_created", wire(&made, &ids));
        let path = format!("/main/agent/tasks/{task}");
        let steps = [
            ("task_started", Method::POST, "start", None),
            (
                "task_plan_replaced",
                Method::PUT,
                "plan-steps",
                Some(json!([{ "stepId": "step-1", "description": "읽기", "status": "pending" }])),
            ),
            (
                "task_plan_merged",
                Method::POST,
                "plan-steps",
                Some(
                    json!({ "type": "plan_step_update", "data": { "id": "step-1", "status": "completed" } }),
                ),
            ),
            ("task_progress", Method::PATCH, "progress", Some(json!({ "progress": 40 }))),
            ("task_completed", Method::POST, "complete", Some(json!({ "mails": 12 }))),
            ("task_refused", Method::POST, "start", None),
        ];
        for (name, method, step, body) in steps {
            app.state.clock.advance(TimeDelta::seconds(1));
            let answer = ask(&app, method, &format!("{path}/{step}"), body).await;
            assert_snapshot!(name, wire(&answer, &ids));
        }
        assert_snapshot!("task_page", wire(&app.get(ALICE, "/main/agent/tasks").await, &ids));
        assert_snapshot!("task_page_empty", wire(&app.get(BOB, "/main/agent/tasks").await, &ids));
    }
}

/// A name that begins with the error's code, a method, an address, headers and a body.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);

/// One answer of every kind of error that a caller can bring about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_in_both_languages() {
    for mode in MODES {
        let app = at_noon(mode).await;
        let asked = Asked::new();
        app.ask(&asked).await;
        let newer = Asked::in_session(&asked.session);
        app.ask(&newer).await;
        let (path, moved_on) =
            ("/aura/hitl/approve/req-none", format!("/aura/hitl/approve/{}", asked.id));
        let tokens = |seconds| {
            aura_hitl::identity::mint(
                &app.config.jwt,
                &aura_hitl::domain::ids::UserId::parse("user123").unwrap(),
                &aura_hitl::domain::ids::TenantId::parse("tenant1").unwrap(),
                ALICE.role,
                seconds,
            )
        };
        let (good, expired) = (tokens(600).unwrap(), tokens(-600).unwrap());
        let (auth, tenant, user) = ("Authorization", "X-Tenant-ID", "X-User-ID");
        let bearer = format!("Bearer {good}");
        let known = [(auth, bearer.as_str()), (tenant, "tenant1"), (user, "user123")];
        let me = r#"{"userId":"user123"}"#;
        let (stale, over) = (format!("Bearer {expired}"), " ".repeat(20_000));
        let table: [Case<'_>; 15] = [
            ("E1002", "GET", path, &known, me),
            ("E1004_address", "GET", "/nowhere", &known, me),
            ("E1004", "POST", path, &known, me),
            ("E2000", "POST", path, &known[1..], me),
            ("E2001_user", "POST", path, &[known[0], known[1], (user, "bob")], me),
            (
                "E2001_agent",
                "POST",
                path,
                &[known[0], known[1], known[2], ("X-DWP-Source", "AURA")],
                me,
            ),
            ("E2002", "POST", path, &[(auth, &stale), known[1], known[2]], me),
            ("E2003", "POST", path, &[(auth, "Bearer x.y.z"), known[1], known[2]], me),
            ("E2006", "POST", path, &[known[0], known[2]], me),
            ("E2007", "POST", path, &[known[0], (tenant, "tenant2"), known[2]], me),
            ("E3007_moved_on", "POST", &moved_on, &known, me),
            ("E4000", "POST", "/aura/hitl/approve/a%20b", &known, me),
            ("E4000_body", "POST", path, &known, "{}"),
            ("E4001", "POST", path, &known[..2], me),
            ("E4130", "POST", path, &known, &over),
        ];
        for (name, method, path, headers, body) in table {
            if name == "E3007_moved_on" && mode == Mode::Embedded {
                continue; // Only agents on Redis move on.
            }
            let mut lines = Vec::new();
            for language in ["en", "ko"] {
                let request =
                    app.client.request(method.parse().unwrap(), format!("{}{path}", app.base));
                let request = request
                    .header("Accept-Language", language)
                    .header("Content-Type", "application/json");
                let request =
                    request.header("X-Trace-Id", "trace-1").header("X-Gateway-Request-Id", "gw-1");
                let request = headers
                    .iter()
                    .fold(request, |request, (name, value)| request.header(*name, *value));
                let answer = Answer::of(request.body(body.to_owned()).send().await.unwrap()).await;
                assert_eq!(answer.code(), &name[..5], "{}", answer.text);
                lines.push(format!("{} {}", answer.status.as_u16(), wire(&answer, &[])));
            }
            assert_snapshot!(format!("error_{name}"), lines.join("\n"));
        }
    }
}

#[test]
fn the_document_changes_only_on_purpose() {
    assert_yaml_snapshot!("openapi", aura_hitl::api::routes::document());
}

/// Every error code is documented, and nothing else is documented as one.
#[test]
fn the_document_knows_the_error_codes() {
    let examples = operations().into_iter().flat_map(|operation| {
        let answers = operation.document["responses"].as_object().unwrap().clone();
        answers.into_iter().flat_map(|(status, answer)| {
            let examples = answer["content"]["application/json"]["examples"].clone();
            let examples = examples.as_object().cloned().unwrap_or_default();
            examples.into_iter().map(move |(code, example)| {
                assert_eq!(example["value"]["errorCode"], code);
                (code, status.clone())
            })
        })
    });
    let codes = ErrorCode::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), code.status().as_str().to_owned()));
    assert_eq!(examples.collect::<BTreeSet<_>>(), codes.collect());
}

/// The document says what several operations share once, and nothing that none of them needs.
#[test]
fn every_component_is_referred_to() {
    let document = document();
    let mut references = BTreeSet::from(["#/components/securitySchemes/bearer".to_owned()]);
    let mut parts = vec![&document];
    while let Some(part) = parts.pop() {
        references.extend(part["$ref"].as_str().map(ToOwned::to_owned));
        match part {
            Value::Object(fields) => parts.extend(fields.values()),
            Value::Array(items) => parts.extend(items),
            _ => {}
        }
    }
    let components = document["components"].as_object().unwrap().iter();
    let components = components.flat_map(|(kind, components)| {
        let names = components.as_object().unwrap().keys();
        names.map(move |name| format!("#/components/{kind}/{name}"))
    });
    assert_eq!(components.collect::<BTreeSet<_>>(), references);
}

#[test]
fn the_document_has_every_status_header_and_example() {
    let operations = operations();
    let ids =
        operations.iter().map(|operation| operation.document["operationId"].as_str().unwrap());
    assert_eq!(
        ids.collect::<BTreeSet<_>>().len(),
        operations.len(),
        "an operation's id is its own"
    );
    for operation in &operations {
        let at = format!("{} {}", operation.method, operation.pattern);
        let document = &operation.document;
        let responses = document["responses"].as_object().unwrap();
        let statuses = responses.keys().map(String::as_str).collect::<BTreeSet<_>>();
        let mut expected = BTreeSet::from(["405"]);
        let has_body = document.get("requestBody").is_some();
        if !operation.is_open() {
            expected.extend(["400", "401", "403", "429", "500", "503"]);
        }
        if operation.pattern.contains('{') && !operation.pattern.contains("/signals/") {
            expected.insert("404");
        }
        if has_body {
            expected.extend(["413", "415"]);
        }
        // A bulk has these in its results.
        let decides_one = operation.decides() && operation.id().is_some();
        if decides_one {
            expected.extend(["410", "412", "428"]);
        }
        let makes_a_task =
            operation.method == Method::POST && operation.pattern.ends_with("/tasks");
        if decides_one || operation.pattern.contains("/requests/") {
            expected.insert("422");
        }
        // Ending something again is no conflict.
        let only_ends = operation.method == Method::DELETE;
        if !operation.is_open() && operation.method != Method::GET && !makes_a_task && !only_ends {
            expected.insert("409");
        }
        let missing = expected.difference(&statuses).collect::<Vec<_>>();
        assert!(missing.is_empty(), "{at} lacks {missing:?}");
        assert!(statuses.iter().any(|status| status.starts_with('2')), "{at}");
        for (status, response) in responses {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{at} {status}");
            let content = response["content"].as_object().unwrap();
            for (kind, content) in content {
                let examples = content["examples"].as_object().map_or(0, serde_json::Map::len);
                assert!(content.get("example").is_some() || examples > 0, "{at} {status} {kind}");
                assert!(content.get("schema").is_some(), "{at} {status} {kind}");
            }
            let header = match status.as_str() {
                "401" => "WWW-Authenticate",
                "405" => "Allow",
                "429" => "Retry-After",
                "503" if !operation.is_open() => "Retry-After",
                _ => continue,
            };
            assert!(response["headers"].get(header).is_some(), "{at} {status} {header}");
        }
        if has_body {
            let content = document["requestBody"]["content"].as_object().unwrap();
            assert!(content.values().all(|content| content.get("example").is_some()), "{at}");
        }
        let parameters = document["parameters"].as_array().cloned().unwrap_or_default();
        let named = |name: &str| parameters.iter().find(|parameter| parameter["name"] == name);
        if !operation.is_open() {
            assert_eq!(named("X-Tenant-ID").unwrap()["required"], true, "{at}");
            assert_eq!(named("X-User-ID").unwrap()["required"], operation.decides(), "{at}");
            for header in [
                "X-DWP-Source",
                "X-DWP-Caller-Type",
                "X-Agent-ID",
                "X-Trace-Id",
                "X-Gateway-Request-Id",
                "traceparent",
                "Accept-Language",
            ] {
                assert!(named(header).is_some(), "{at} {header}");
            }
        }
        // Swagger UI would send what it finds here, chosen or not.
        for parameter in &parameters {
            if parameter["in"] == "header" && parameter["required"] == false {
                assert_eq!(parameter.get("example"), None, "{at} {parameter}");
                assert_eq!(parameter["schema"].get("example"), None, "{at} {parameter}");
                assert_eq!(parameter.get("examples"), None, "{at} {parameter}");
            }
        }
    }
}

both_modes! {
    /// The platform's web application renders `data` of `/main/health` as text.
    async fn health_is_a_sentence_and_readiness_an_object(app: TestApp) {
        for prefix in ["", "/api"] {
            let health = app.client.get(format!("{}{prefix}/main/health", app.base));
            let health = Answer::of(health.send().await.unwrap()).await;
            assert_eq!(*health.assert(200, "").data(), json!("Main Service is running"));
            assert_eq!(health.body["message"], "OK");
            for path in ["live", "ready"] {
                let path = format!("{}{prefix}/health/{path}", app.base);
                let health = Answer::of(app.client.get(&path).send().await.unwrap()).await;
                let data = health.assert(200, "").data().clone();
                let release = (&data["status"], &data["service"], &data["version"]);
                let expected = ("UP".into(), "aura-hitl".into(), env!("CARGO_PKG_VERSION").into());
                assert_eq!(release, (&expected.0, &expected.1, &expected.2), "{path}");
            }
        }
    }
}

/// The examples are what the service takes: each one, sent as it stands, is understood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_bodies_are_accepted() {
    let app = TestApp::spawn(Mode::Embedded).await;
    let body = json!({ "taskType": "t", "userId": "user123", "tenantId": "tenant1" });
    for operation in operations() {
        let content = &operation.document["requestBody"]["content"]["application/json"];
        let Some(example) = content.get("example") else { continue };
        let asked = Asked::new();
        let mut registration = asked.registration();
        registration["decisions"] = json!(["approve", "reject", "respond"]);
        app.post(ALICE, "/aura/hitl/requests", registration).await.assert(201, "");
        let made = app.post(ALICE, "/main/agent/tasks", body.clone()).await;
        let task = made.data()["taskId"].as_str().unwrap();
        app.call(ALICE, Method::POST, &format!("/main/agent/tasks/{task}/start"))
            .send()
            .await
            .unwrap();
        let path = operation.pattern.replace("{requestId}", &asked.id).replace("{taskId}", task);
        let example = example.to_string().replace("req-12345", &asked.id);
        let example = serde_json::from_str::<Value>(&example).unwrap();
        let answer = ask(&app, operation.method.clone(), &path, Some(example)).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text);
        let documented = &operation.document["responses"][answer.status.as_str()]["content"]["application/json"]
            ["example"];
        let mut body = answer.body.clone();
        assert_eq!(body.as_object_mut().unwrap().remove("traceId"), Some("trace-1".into()));
        assert_eq!(shape(&body), shape(documented), "{path}");
        assert_eq!(answer.body["message"], documented["message"]);
    }
}

/// The names of a value's fields.
fn shape(value: &Value) -> Value {
    match value.as_object() {
        Some(fields) => fields
            .iter()
            .map(|(name, field)| {
                // What is somebody's own JSON has no shape of ours.
                let free = ["inputData", "resultData"].contains(&name.as_str());
                (name.clone(), if free { Value::Null } else { shape(field) })
            })
            .collect(),
        None => Value::Null,
    }
}
