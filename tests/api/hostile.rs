//! Input that means harm, or was never meant for us: refused clearly, never a 5xx, never in Redis.

use aura_hitl::domain::clock::Clock;
use chrono::{NaiveDateTime, TimeDelta};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::harmful::{broken_bodies, hostile_ids};
use support::{
    ALICE, Answer, Asked, Mode, Operation, PREFIXES, TestApp, commands_to_redis, framed,
    operations, test_variable, unique,
};

async fn send(app: &TestApp, method: &Method, path: &str, kind: &str, body: Vec<u8>) -> Answer {
    let call = app.call(ALICE, method.clone(), path).header("Content-Type", kind).body(body);
    Answer::of(call.send().await.unwrap()).await
}

/// Everything that Redis was told while `work` ran, as far as it holds `marker`.
async fn told_of(marker: &str, work: impl Future<Output = ()>) -> Vec<String> {
    let client = redis::Client::open(test_variable("TEST_REDIS_URL")).unwrap();
    let mut told = commands_to_redis(&client, work).await;
    told.retain(|line| line.contains(marker));
    told
}

both_modes! {
    async fn hostile_ids_are_refused_before_they_reach_redis(app: TestApp) {
        let marker = unique("hostile");
        let told = told_of(&marker, async {
            for prefix in PREFIXES {
                for operation in operations() {
                    let Some(name) = operation.id() else { continue };
                    let body = operation.body(ALICE).map(|body| body.to_string()).unwrap_or_default();
                    for id in hostile_ids(&marker, name == "sessionId") {
                        let path = format!("{prefix}{}", operation.path_to(&id));
                        let head = app.head(ALICE, &operation.method, &path) + &ALICE.lines();
                        let answer = app.raw(head + &framed(&body)).await.first();
                        let short = path.chars().take(120).collect::<String>();
                        assert_eq!((answer.status.as_u16(), answer.code()), (400, "E4000"), "{short}: {}", answer.text);
                        assert!(answer.data()[name].is_string(), "{short}: {}", answer.text);
                    }
                }
                for id in ["%0A", "*", "a%2Fb"] {
                    let path = format!("{prefix}/aura/hitl/signals/{marker}?requestId={marker}{id}");
                    app.get(ALICE, &path).await.assert(400, "E4000");
                }
                for (field, value) in [
                    ("requestId", format!("{marker}*")), ("requestId", format!("{marker}\n")), ("requestId", String::new()),
                    ("requestId", format!("{marker}{}", "x".repeat(129))), ("sessionId", format!("{marker} x")),
                    ("sessionId", format!("{marker}\u{0}")), ("sessionId", format!("{marker}\r\n")),
                    ("sessionId", format!("{marker}{}", "x".repeat(257))), ("taskId", format!("{marker}/..")),
                    ("taskId", String::new()),
                ] {
                    let mut body = json!({ "sessionId": marker, "actionType": "send_email" });
                    body[field] = value.into();
                    let answer = app.post(ALICE, &format!("{prefix}/aura/hitl/requests"), body).await;
                    answer.assert(400, "E4000");
                    assert!(answer.data()[field].is_string(), "{field}: {}", answer.text);
                }
            }
        })
        .await;
        assert_eq!(told, Vec::<String>::new());

        // A good id does reach Redis: the monitor hears what it should.
        let told = told_of(&marker, async {
            app.get(ALICE, &format!("/aura/hitl/requests/{marker}")).await.assert(404, "E1004");
        })
        .await;
        assert_eq!(told.is_empty(), app.mode == Mode::Embedded, "{told:?}");
    }
}

both_modes! {
    async fn session_ids_may_hold_what_user_ids_hold(app: TestApp) {
        for user in ["a@b.c", "김철수", "a/b", "a*b", "a'b\"c", "{x}", "%0A"] {
            let asked = Asked::in_session(&unique(&format!("session_{user}")));
            app.ask(&asked).await;
            app.approve(ALICE, &asked.id).await.assert(200, "");
            let signal = app.poll(ALICE, &asked.session, Some(&asked.id)).await.unwrap();
            assert_eq!(signal["requestId"], *asked.id, "{user}");
        }
    }
}

/// Every operation that takes a body, under both prefixes, with a body that it accepts.
fn calls_with_bodies() -> Vec<(Operation, String, Value)> {
    let operations = operations().into_iter().filter_map(|one| Some((one.body(ALICE)?, one)));
    let under = |(body, operation): (Value, Operation)| {
        PREFIXES.map(|prefix| {
            (operation.clone(), format!("{prefix}{}", operation.path()), body.clone())
        })
    };
    let calls = operations.flat_map(under).collect::<Vec<_>>();
    assert_eq!(calls.len(), 24, "an operation lost its body");
    calls
}

both_modes! {
    async fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_read(app: TestApp) {
        for (operation, path, body) in calls_with_bodies() {
            let limit = operation.body_limit();
            let mut text = body.to_string().into_bytes();
            text.resize(limit + 1, b' ');
            let over = send(&app, &operation.method, &path, "application/json", text.clone()).await;
            over.assert(413, "E4130");

            // Chunked, so that no length announces it.
            let head = app.head(ALICE, &operation.method, &path) + &ALICE.lines() + "Connection: close\r\n";
            let mut bytes = format!("{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", text.len()).into_bytes();
            bytes.extend(&text);
            bytes.extend(b"\r\n0\r\n\r\n");
            assert!(app.raw(bytes).await.text.starts_with("HTTP/1.1 413"), "{path}");

            // At the limit it is read, and here found to hold something behind its end.
            text.truncate(limit);
            *text.last_mut().unwrap() = b'x';
            send(&app, &operation.method, &path, "application/json", text).await.assert(400, "E4000");
        }
    }
}

both_modes! {
    async fn a_body_that_is_not_declared_as_json_is_415(app: TestApp) {
        for (operation, path, body) in calls_with_bodies() {
            for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", "nonsense"] {
                let answer = send(&app, &operation.method, &path, kind, body.to_string().into_bytes()).await;
                answer.assert(415, "E4150");
            }
        }
        for kind in ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/problem+json"] {
            let asked = Asked::new();
            app.ask(&asked).await;
            let path = format!("/aura/hitl/approve/{}", asked.id);
            send(&app, &Method::POST, &path, kind, br#"{"userId":"user123"}"#.to_vec()).await.assert(200, "");
        }
    }
}

both_modes! {
    async fn broken_bodies_are_400_on_every_route_that_takes_one(app: TestApp) {
        for (operation, path, _body) in calls_with_bodies() {
            for (name, text) in &broken_bodies() {
                let answer = send(&app, &operation.method, &path, "application/json", text.clone()).await;
                let expected = if text.len() > operation.body_limit() { (413, "E4130") } else { (400, "E4000") };
                assert_eq!((answer.status.as_u16(), answer.code()), expected, "{name}: {path}: {}", answer.text);
                let names_a_field = answer.data().as_object().is_some_and(|fields| !fields.is_empty());
                assert!(names_a_field || expected.0 == 413, "{name}: {path}: {}", answer.text);
            }
            // Those that make do without a body take none for none.
            if !path.ends_with("/complete") && !path.ends_with("/fail") {
                for empty in ["", "  \n"] {
                    let answer = send(&app, &operation.method, &path, "application/json", empty.into()).await;
                    answer.assert(400, "E4000");
                    assert!(answer.data().is_object(), "{path}: {}", answer.text);
                }
            }
        }
    }
}

over_redis! {
    async fn what_is_wrong_with_a_body_is_said_by_field(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let (approve, reject) = (format!("/aura/hitl/approve/{}", asked.id), format!("/aura/hitl/reject/{}", asked.id));
        let (requests, tasks) = ("/aura/hitl/requests".to_owned(), "/main/agent/tasks".to_owned());
        let long = |count| "가".repeat(count);
        for (path, body, field) in [
            (&approve, "{}".to_owned(), "userId"),
            (&approve, r#"{"userId":null}"#.to_owned(), "userId"),
            (&approve, r#"{"userId":7}"#.to_owned(), "userId"),
            (&approve, r#"{"userId":["user123"]}"#.to_owned(), "userId"),
            (&approve, r#"{"userId":"user123","userId":"user123"}"#.to_owned(), "body"),
            (&approve, r#"{"userId":"bob","userId":"user123"}"#.to_owned(), "body"),
            (&approve, r#"{"userId":"user\u0000123"}"#.to_owned(), "userId"),
            (&approve, "[]".to_owned(), "body"),
            (&approve, r#"["user123"]"#.to_owned(), "body"),
            (&reject, r#"["user123", "no"]"#.to_owned(), "body"),
            (&requests, r#"[null, "s", "send_email", null, null, null, null, null]"#.to_owned(), "body"),
            (&approve, "null".to_owned(), "body"),
            (&reject, r#"{"userId":"user123","reason":7}"#.to_owned(), "reason"),
            (&reject, r#"{"userId":"user123","reason":{"a":1}}"#.to_owned(), "reason"),
            (&reject, r#"{"userId":"user123","reason":"a","reason":"b"}"#.to_owned(), "body"),
            (&reject, r#"{"userId":"user123","reason":"a\u0000b"}"#.to_owned(), "reason"),
            (&reject, r#"{"userId":"user123","reason":"\ud800"}"#.to_owned(), "reason"),
            (&reject, json!({ "userId": "user123", "reason": long(1001) }).to_string(), "reason"),
            (&requests, r#"{"actionType":"a"}"#.to_owned(), "sessionId"),
            (&requests, r#"{"sessionId":"s"}"#.to_owned(), "actionType"),
            (&requests, r#"{"sessionId":"s","actionType":""}"#.to_owned(), "actionType"),
            (&requests, r#"{"sessionId":"s","actionType":"a\u0000"}"#.to_owned(), "actionType"),
            (&requests, r#"{"sessionId":"s","actionType":"a","context":{"to":"\u0000"}}"#.to_owned(), "context.to"),
            (&requests, r#"{"sessionId":"s","actionType":"a","context":{"\u0000":1}}"#.to_owned(), "context"),
            (&requests, r#"{"sessionId":"s","actionType":"a","context":{"n":1e999}}"#.to_owned(), "context.n"),
            (&requests, r#"{"sessionId":"s","actionType":"a","context":["\udfff"]}"#.to_owned(), "context[0]"),
            (&requests, r#"{"sessionId":"s","actionType":"a","context":{"to":"a","to":"b"}}"#.to_owned(), "context"),
            (&requests, r#"{"sessionId":"s","actionType":"a","expiresInSeconds":1800.5}"#.to_owned(), "expiresInSeconds"),
            (&requests, r#"{"sessionId":"s","actionType":"a","expiresInSeconds":99999999999999999999}"#.to_owned(), "expiresInSeconds"),
            (&requests, r#"{"sessionId":"s","actionType":"a","message":"\u0000"}"#.to_owned(), "message"),
            (&requests, json!({ "sessionId": "s", "actionType": "a", "message": long(2001) }).to_string(), "message"),
            (&requests, r#"{"sessionId":"s","actionType":"a","planSteps":[{"id":"\u0000"}]}"#.to_owned(), "planSteps[0].id"),
            (&tasks, r#"{"userId":"user123","tenantId":"tenant1"}"#.to_owned(), "taskType"),
            (&tasks, r#"{"taskType":"\u0000","userId":"user123","tenantId":"tenant1"}"#.to_owned(), "taskType"),
            (&tasks, r#"{"taskType":"a","userId":"user123","tenantId":"tenant1","description":"\u0000"}"#.to_owned(), "description"),
            (&tasks, r#"{"taskType":"a","userId":"user123","tenantId":"tenant1","inputData":{"a":["\u0000"]}}"#.to_owned(), "inputData.a[0]"),
            (&tasks, json!({ "taskType": long(201), "userId": "user123", "tenantId": "tenant1" }).to_string(), "taskType"),
        ] {
            let answer = send(&app, &Method::POST, path, "application/json", body.clone().into_bytes()).await;
            answer.assert(400, "E4000");
            assert!(answer.data()[field].is_string(), "{body} should name {field}: {}", answer.text);
            assert!(answer.body["message"].as_str().unwrap().contains(field), "{}", answer.text);
            let repeated = ["userId", "reason"].into_iter().find(|name| body.matches(&format!("\"{name}\":")).count() > 1);
            if let Some(name) = repeated {
                assert!(answer.data()["body"].as_str().unwrap().contains(&format!("`{name}`")), "{}", answer.text);
            }
        }
        assert_eq!(app.signal(&asked.session).await, None);
        assert!(app.is_unrecorded(&asked.id).await);
    }
}

over_redis! {
    async fn a_reason_of_a_thousand_characters_arrives_whole(app: TestApp) {
        for letter in ["가", "é", "x", "😀"] {
            let asked = Asked::new();
            app.ask(&asked).await;
            app.reject(ALICE, &asked.id, Some(&letter.repeat(1001))).await.assert(400, "E4000");
            let reason = letter.repeat(1000);
            let answer = app.reject(ALICE, &asked.id, Some(&reason)).await;
            answer.assert(200, "");
            assert_eq!(answer.data()["reason"], *reason);
            let signal: Value = serde_json::from_str(&app.signal(&asked.session).await.unwrap()).unwrap();
            assert_eq!(signal["reason"], *reason);
        }
        // `\ud83d\ude00` is one character.
        let asked = Asked::new();
        app.ask(&asked).await;
        let body = format!(r#"{{"userId":"user123","reason":"{}"}}"#, r"\ud83d\ude00".repeat(1000));
        let path = format!("/aura/hitl/reject/{}", asked.id);
        let answer = send(&app, &Method::POST, &path, "application/json", body.into_bytes()).await;
        assert_eq!(answer.assert(200, "").data()["reason"], *"😀".repeat(1000));
    }
}

#[track_caller]
fn assert_enveloped(answer: &Answer, status: u16, code: &str) {
    answer.assert(status, code);
    assert_eq!(answer.body["status"], "ERROR");
    assert_eq!(answer.body["success"], false);
    assert!(!answer.body["message"].as_str().unwrap().is_empty());
    assert!(!answer.body["traceId"].as_str().unwrap().is_empty());
    assert_eq!(answer.headers["Content-Type"], "application/json");
    let timestamp = answer.body["timestamp"].as_str().unwrap();
    NaiveDateTime::parse_from_str(timestamp, "%Y-%m-%dT%H:%M:%S").unwrap();
    assert_eq!(timestamp.len(), 19, "{timestamp}");
}

both_modes! {
    async fn an_unknown_address_is_404_in_the_envelope(app: TestApp) {
        for prefix in ["/api", "", "/api/api", "/v1"] {
            for path in [
                "/", "/aura", "/aura/hitl", "/aura/hitl/approve", "/aura/hitl/approve/", "/aura/hitl/approve/a/b",
                "/aura/hitl/requests/", "/aura/hitl/cancel/a", "/AURA/hitl/requests", "/main/agent", "/main/agent/tasks/",
                "/main/agent/tasks/a/b", "/main/agent/tasks/a/start/", "/.env", "/metrics/x", "/%2e%2e/etc/passwd",
            ] {
                for method in [Method::GET, Method::POST, Method::DELETE] {
                    let url = format!("{}{prefix}{path}", app.base);
                    let answer = Answer::of(app.client.request(method, url).send().await.unwrap()).await;
                    assert_enveloped(&answer, 404, "E1004");
                    assert_eq!(answer.body.get("data"), None);
                }
            }
        }
    }
}

both_modes! {
    async fn a_wrong_method_is_405_and_says_which_ones_are_right(app: TestApp) {
        let all = operations();
        for operation in &all {
            let right = all.iter().filter(|other| other.pattern == operation.pattern);
            let mut right = right.map(|other| other.method.to_string()).collect::<Vec<_>>();
            right.sort();
            for prefix in PREFIXES {
                for wrong in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
                    if right.iter().any(|method| method == wrong) {
                        continue;
                    }
                    let url = format!("{}{prefix}{}", app.base, operation.path());
                    let request = app.client.request(wrong.parse().unwrap(), url);
                    let answer = Answer::of(request.send().await.unwrap()).await;
                    assert_enveloped(&answer, 405, "E1002");
                    let allowed = answer.headers["Allow"].to_str().unwrap();
                    let mut allowed = allowed.split(", ").collect::<Vec<_>>();
                    allowed.sort_unstable();
                    assert_eq!(allowed, right, "{wrong} {}", operation.pattern);
                }
            }
        }
    }
}

both_modes! {
    async fn every_answer_carries_the_security_headers(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let over = vec![b' '; 20_000];
        let approve = format!("/aura/hitl/approve/{}", asked.id);
        for (answer, status) in [
            (app.get(ALICE, "/health/live").await, 200),
            (app.get(ALICE, "/main/agent/tasks").await, 200),
            (app.get(ALICE, "/swagger-ui/index.html").await, 200),
            (app.get(ALICE, "/v3/api-docs").await, 200),
            (app.get(ALICE, "/nowhere").await, 404),
            (app.get(ALICE, &approve).await, 405),
            (app.post(ALICE, &approve, json!({})).await, 400),
            (send(&app, &Method::POST, &approve, "application/json", over).await, 413),
            (Answer::of(app.client.get(format!("{}/main/agent/tasks", app.base)).send().await.unwrap()).await, 401),
        ] {
            assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
            for (name, value) in [
                ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"),
                ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-store"),
            ] {
                assert_eq!(answer.headers.get(name).unwrap(), value, "{status}");
            }
            let policy = answer.headers["Content-Security-Policy"].to_str().unwrap();
            assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"));
            assert_eq!(answer.headers.get("Server"), None);
        }
    }
}

/// `Access-Control-Allow-Origin` of a call and of the question that browsers ask before it.
async fn allowed_origins(app: &TestApp, origin: &str) -> [Option<String>; 2] {
    let path = "/api/aura/hitl/approve/req-1";
    let asking = app.client.request(Method::OPTIONS, format!("{}{path}", app.base));
    let asking =
        asking.header("Origin", origin).header("Access-Control-Request-Method", "POST").header(
            "Access-Control-Request-Headers",
            "authorization,content-type,x-tenant-id,x-user-id",
        );
    let calling = app.call(ALICE, Method::POST, path).header("Origin", origin);
    let mut found = [None, None];
    for (request, found) in
        [asking, calling.json(&json!({ "userId": "user123" }))].into_iter().zip(&mut found)
    {
        let answer = Answer::of(request.send().await.unwrap()).await;
        let value = answer.headers.get("Access-Control-Allow-Origin");
        *found = value.map(|value| value.to_str().unwrap().to_owned());
        if found.is_some() && answer.status == StatusCode::OK {
            let allowed =
                answer.headers["Access-Control-Allow-Headers"].to_str().unwrap().to_lowercase();
            assert!(
                allowed.contains("x-tenant-id") && allowed.contains("authorization"),
                "{allowed}"
            );
            let methods = answer.headers["Access-Control-Allow-Methods"].to_str().unwrap();
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
                assert!(methods.contains(method), "{method} is not in {methods}");
            }
        }
        // Without an origin beside it, it says nothing to a browser.
        let credentials = answer.headers.get("Access-Control-Allow-Credentials");
        assert!(found.is_none() || credentials.is_some_and(|value| value == "true"));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_configured_origins_may_call_from_a_browser() {
    let configured = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.cors_origins = vec!["http://localhost:4200".to_owned()];
    })
    .await;
    let ours = "http://localhost:4200";
    assert_eq!(
        allowed_origins(&configured, ours).await,
        [Some(ours.to_owned()), Some(ours.to_owned())]
    );
    let nobody = TestApp::spawn(Mode::Embedded).await;
    for origin in [
        "http://localhost:4201",
        "https://localhost:4200",
        "http://evil.example",
        "null",
        "http://localhost:4200.evil.example",
        "http://LOCALHOST:4200x",
    ] {
        assert_eq!(allowed_origins(&configured, origin).await, [None, None], "{origin}");
        assert_eq!(allowed_origins(&nobody, origin).await, [None, None], "{origin}");
    }
    assert_eq!(allowed_origins(&nobody, ours).await, [None, None]);
}

both_modes! {
    async fn sentences_are_in_the_language_that_the_caller_prefers(app: TestApp) {
        let is_korean = |text: &str| text.chars().any(|c| ('가'..='힣').contains(&c));
        for (languages, korean) in [
            ("ko", true), ("ko-KR", true), ("KO", true), ("ko-KR,ko;q=0.9,en-US;q=0.8", true), ("en;q=0.5, ko;q=0.9", true),
            ("en-US,en;q=0.9,ko;q=0.8", false), ("en", false), ("de", false), ("*", false), ("nonsense;;q=x", false), ("", false),
        ] {
            for (path, status) in [("/nowhere", 404), ("/main/agent/tasks?size=0", 400), ("/aura/hitl/requests/req-none", 404)] {
                let call = app.call(ALICE, Method::GET, path).header("Accept-Language", languages);
                let answer = Answer::of(call.send().await.unwrap()).await;
                assert_eq!(answer.status.as_u16(), status);
                assert_eq!(is_korean(answer.body["message"].as_str().unwrap()), korean, "{languages}: {}", answer.text);
                if let Some(field) = answer.data()["size"].as_str() {
                    assert_eq!(is_korean(field), korean, "{languages}: {}", answer.text);
                }
            }
        }
    }
}

both_modes! {
    async fn answers_repeat_the_ids_of_their_call(app: TestApp) {
        let ok = "/main/agent/tasks";
        for path in [ok, "/nowhere", "/aura/hitl/requests/req-none"] {
            let ask = async |headers: &[(&str, &str)]| {
                let call = app.call(ALICE, Method::GET, path);
                let call = headers.iter().fold(call, |call, (name, value)| call.header(*name, *value));
                let answer = Answer::of(call.send().await.unwrap()).await;
                let text = |field: &str| answer.body[field].as_str().map(ToOwned::to_owned);
                (text("traceId"), text("gatewayRequestId"))
            };
            let own = |text: &str| Some(text.to_owned());
            assert_eq!(ask(&[("X-Trace-Id", "trace-7"), ("X-Gateway-Request-Id", "gw-9")]).await, (own("trace-7"), own("gw-9")));
            let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
            assert_eq!(ask(&[("traceparent", parent)]).await, (own("4bf92f3577b34da6a3ce929d0e0e4736"), None));
            assert_eq!(ask(&[("traceparent", parent), ("X-Trace-Id", "trace-7")]).await.0, own("trace-7"));
            for unusable in ["x".repeat(257), String::new(), " ".to_owned()] {
                let (trace, gateway) = ask(&[("X-Trace-Id", &unusable), ("X-Gateway-Request-Id", &unusable)]).await;
                assert_ne!(trace.as_deref(), Some(unusable.as_str()));
                assert_eq!((trace.is_none(), gateway), (path == ok, None), "an error has an id of its own");
            }
        }
    }
}

both_modes! {
    async fn times_are_utc_in_whole_seconds_without_a_zone(app: TestApp) {
        let body = json!({ "taskType": "mail", "userId": "user123", "tenantId": "tenant1" });
        let made = app.post(ALICE, "/main/agent/tasks", body).await;
        let path = format!("/main/agent/tasks/{}/start", made.data()["taskId"].as_str().unwrap());
        let started = app.post(ALICE, &path, Value::Null).await;
        let request = json!({ "sessionId": unique("session"), "actionType": "send_email" });
        let registered = app.post(ALICE, "/aura/hitl/requests", request).await;
        let now = app.state.clock.now().naive_utc();
        for (value, from_now) in [
            (&made.body["timestamp"], 0), (&made.data()["createdAt"], 0), (&made.data()["updatedAt"], 0),
            (&started.data()["startedAt"], 0), (&registered.data()["expiresAt"], 1800),
        ] {
            let time = NaiveDateTime::parse_from_str(value.as_str().unwrap(), "%Y-%m-%dT%H:%M:%S").unwrap();
            assert_eq!(value.as_str().unwrap().len(), 19);
            // An hour off would be a time zone.
            assert!((time - now - TimeDelta::seconds(from_now)).abs() < TimeDelta::minutes(25), "{value}");
        }
    }
}
