//! Nobody passes without a genuine token and the headers that agree with it, on any route.

use std::collections::BTreeSet;

use aura_hitl::api::endpoint::Access;
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::identity::ClaimValue;
use aura_hitl::identity::revocations::Revocations;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use support::forged::{self, Forged, claims, now};
use support::harmful::{BODY, odd_identities};
use support::{
    ALICE, Answer, Asked, MALLORY, Mode, Operation, PREFIXES, TestApp, Who, document, eventually,
    framed, operations,
};

/// What anybody may call. Nothing else answers without a token.
const OPEN: [&str; 5] =
    ["/health/live", "/health/ready", "/main/health", "/main/info", "/v3/api-docs"];

fn secured() -> impl Iterator<Item = Operation> {
    operations().into_iter().filter(|operation| !operation.is_open())
}

/// Every secured operation under both prefixes.
fn calls() -> Vec<(Operation, String)> {
    let under =
        |operation: Operation| operation.paths_to("x-1").map(|path| (operation.clone(), path));
    secured().flat_map(under).collect()
}

/// A token of the service's own secret with these claims.
fn token(app: &TestApp, claims: &Value) -> String {
    forged::token(app.config.jwt.secret.expose_secret().as_bytes(), claims)
}

/// A call with exactly these headers.
async fn call(app: &TestApp, method: &Method, path: &str, headers: HeaderMap) -> Answer {
    let request = app.client.request(method.clone(), format!("{}{path}", app.base));
    let request = request.headers(headers);
    let request = if *method == Method::GET { request } else { request.json(&json!({})) };
    Answer::of(request.send().await.unwrap()).await
}

/// Names and values of headers.
type Pairs<'a> = &'a [(&'a str, &'a str)];

/// Headers from pairs; a repeated name is sent as often as it is given.
fn headers(pairs: Pairs<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

#[test]
fn only_the_open_routes_are_open_and_only_decisions_ask_for_a_person() {
    let with = |access| {
        let operations = operations().into_iter();
        let paths = operations.filter(move |one| one.access == access).map(|one| one.pattern);
        paths.collect::<BTreeSet<_>>()
    };
    assert_eq!(with(Access::Open), BTreeSet::from(OPEN));
    let decisions = [
        "/aura/hitl/approve/{requestId}",
        "/aura/hitl/decisions",
        "/aura/hitl/reject/{requestId}",
        "/aura/hitl/respond/{requestId}",
    ];
    assert_eq!(with(Access::Approver), BTreeSet::from(decisions));
}

/// The table of routes and the document name the same operations, under the same conditions.
#[test]
fn every_route_is_in_the_document_and_nothing_else_is() {
    let document = document();
    let documented = document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    let routes = operations();
    let names = routes.iter().map(|route| (route.method.to_string(), route.pattern.to_owned()));
    assert_eq!(names.collect::<BTreeSet<_>>(), documented.collect());
    for route in routes {
        let asks_for_a_token = route.document.get("security").is_some();
        assert_eq!(asks_for_a_token, !route.is_open(), "{} {}", route.method, route.pattern);
    }
}

both_modes! {
    async fn no_operation_answers_without_a_token(app: TestApp) {
        for (operation, path) in calls() {
            let headers = headers(&[("X-Tenant-ID", "tenant1"), ("X-User-ID", "user123")]);
            let answer = call(&app, &operation.method, &path, headers).await;
            answer.assert(401, "E2000");
            assert_eq!(answer.headers["WWW-Authenticate"], "Bearer", "{path}");
        }
    }
}

both_modes! {
    async fn no_operation_takes_a_hostile_token(app: TestApp) {
        let hostile = forged::all(app.config.jwt.secret.expose_secret().as_bytes());
        for (operation, path) in calls() {
            for Forged { name, authorization, code } in &hostile {
                let headers = headers(&[
                    ("Authorization", authorization), ("X-Tenant-ID", "tenant1"), ("X-User-ID", "user123"),
                ]);
                let answer = call(&app, &operation.method, &path, headers).await;
                let got = (answer.status, answer.code(), answer.headers.get("WWW-Authenticate"));
                let bearer = HeaderValue::from_static("Bearer");
                assert_eq!(
                    got,
                    (StatusCode::UNAUTHORIZED, *code, Some(&bearer)),
                    "{name}: {} {path}", operation.method
                );
            }
        }
    }
}

both_modes! {
    async fn every_operation_checks_the_identity_headers(app: TestApp) {
        let genuine = format!("Bearer {}", app.token("user123", "tenant1", Role::User));
        let twice = format!("{genuine}, {genuine}");
        let (auth, tenant, user) = ("Authorization", "X-Tenant-ID", "X-User-ID");
        let table: &[(Pairs<'_>, u16, &str)] = &[
            (&[(auth, &genuine), (auth, &genuine), (tenant, "tenant1"), (user, "user123")], 400, "E4001"),
            (&[(auth, &twice), (tenant, "tenant1"), (user, "user123")], 401, "E2003"),
            (&[(auth, &genuine), (user, "user123")], 400, "E2006"),
            (&[(auth, &genuine), (tenant, ""), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "  "), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (tenant, "tenant1"), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (tenant, "tenant2"), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1,tenant1"), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1, tenant2"), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, ","), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant2"), (user, "user123")], 403, "E2007"),
            (&[(auth, &genuine), (tenant, "TENANT1"), (user, "user123")], 403, "E2007"),
            (&[(auth, &genuine), (tenant, "tenant1"), (user, "bob")], 403, "E2001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (user, "USER123")], 403, "E2001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (user, "")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (user, " \t")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (user, "user123"), (user, "user123")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (user, "user123"), (user, "bob")], 400, "E4001"),
            (&[(auth, &genuine), (tenant, "tenant1"), (user, "user123,user123")], 400, "E4001"),
        ];
        for (operation, path) in calls() {
            for (pairs, status, code) in table {
                let answer = call(&app, &operation.method, &path, headers(pairs)).await;
                assert_eq!(
                    (answer.status.as_u16(), answer.code()), (*status, *code),
                    "{} {path} {:?}: {}", operation.method, &pairs[1..], answer.text
                );
            }
            let mut unreadable = headers(&[(auth, &genuine), (user, "user123")]);
            unreadable.insert(tenant, HeaderValue::from_bytes(b"\xfftenant1").unwrap());
            call(&app, &operation.method, &path, unreadable).await.assert(403, "E2007");
        }
    }
}

over_redis! {
    /// What a client library would not send.
    async fn identity_headers_are_checked_as_they_come_over_the_wire(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let framing = framed(BODY);
        for operation in secured() {
            for prefix in PREFIXES {
                let path = format!("{prefix}{}", operation.path_to(&asked.id));
                for lines in &odd_identities() {
                    let answer = app.raw(app.head(ALICE, &operation.method, &path) + lines + &framing).await;
                    assert_eq!(answer.first().status, 400, "{path} {lines:?}: {}", answer.text);
                    assert!(answer.is_closed && answer.count() == 1, "{path} {lines:?}: {}", answer.text);
                }
            }
        }
        assert_eq!(app.signal(&asked.session).await, None);
        assert!(app.is_undecided(&asked.id).await);
        let good = app.head(ALICE, &Method::POST, &format!("/aura/hitl/approve/{}", asked.id)) + &ALICE.lines() + &framing;
        assert_eq!(app.raw(good).await.first().status, 200);
    }
}

both_modes! {
    async fn only_decisions_ask_for_the_user_header(app: TestApp) {
        let genuine = format!("Bearer {}", app.token("user123", "tenant1", Role::User));
        for (operation, path) in calls() {
            let headers = headers(&[("Authorization", &genuine), ("X-Tenant-ID", "tenant1")]);
            let answer = call(&app, &operation.method, &path, headers).await;
            if operation.decides() {
                answer.assert(400, "E4001");
            } else {
                assert!(!["E2000", "E2001", "E4001"].contains(&answer.code()), "{}", answer.text);
                assert!([200, 400, 404].contains(&answer.status.as_u16()), "{}", answer.text);
            }
        }
    }
}

over_redis! {
    async fn agents_do_not_decide_but_do_everything_else(app: TestApp) {
        let genuine = format!("Bearer {}", app.token("user123", "tenant1", Role::User));
        let (kind, source) = ("X-DWP-Caller-Type", "X-DWP-Source");
        let asked = Asked::new();
        app.ask(&asked).await;
        let agents: &[(Pairs<'_>, u16)] = &[
            (&[(kind, "AGENT")], 403), (&[(kind, "agent")], 403), (&[(kind, " Agent ")], 403), (&[(kind, "SYSTEM")], 403),
            (&[(source, "AURA")], 403), (&[(source, "aura")], 403), (&[(source, "INTERNAL")], 403), (&[(source, "BATCH")], 403),
            (&[(source, "Aura"), (kind, "USER")], 403), (&[("x-dwp-caller-type", "AGENT"), (source, "FRONTEND")], 403),
            (&[(kind, "AGENTS")], 400), (&[(kind, "")], 400), (&[(kind, "USER;AGENT")], 400), (&[(kind, "\"USER\"")], 400),
            (&[(kind, "USER"), (kind, "AGENT")], 400), (&[(kind, "USER"), (kind, "USER")], 400), (&[(kind, "USER, agent")], 400),
            (&[(source, "FRONTEND,AURA")], 400), (&[(source, "FRONTEND"), (source, "FRONTEND")], 400),
            (&[(kind, "FRONTEND")], 400), (&[(source, "USER")], 400), (&[(kind, "USER"), (source, "BACKEND")], 400),
        ];
        for (operation, path) in calls() {
            // What an agent has withdrawn nobody can decide.
            let withdraws = path.ends_with("/cancel");
            let path = if withdraws { path } else { path.replace("x-1", &asked.id) };
            for (agent, status) in agents {
                let mut pairs = vec![
                    ("Authorization", genuine.as_str()), ("X-Tenant-ID", "tenant1"), ("X-User-ID", "user123"),
                ];
                pairs.extend_from_slice(agent);
                let request = app.client.request(operation.method.clone(), format!("{}{path}", app.base));
                let request = request.headers(headers(&pairs)).json(&json!({ "userId": "user123" }));
                let answer = Answer::of(request.send().await.unwrap()).await;
                if operation.decides() {
                    let code = if *status == 403 { "E2001" } else { "E4001" };
                    assert_eq!((answer.status.as_u16(), answer.code()), (*status, code), "{path} {agent:?}: {}", answer.text);
                } else {
                    assert_ne!(answer.status, StatusCode::FORBIDDEN, "{path} {agent:?}: {}", answer.text);
                }
            }
        }
        assert_eq!(app.signal(&asked.session).await, None);
        let path = format!("/aura/hitl/approve/{}", asked.id);
        let person = app.call(ALICE, Method::POST, &path).header(kind, "USER").header(source, "FRONTEND");
        let answer = Answer::of(person.json(&json!({ "userId": "user123" })).send().await.unwrap()).await;
        answer.assert(200, "");
        assert!(matches!(app.record(&asked.id).await.state, State::Decided(_)));
    }
}

/// A call that approves, with a token of these claims and these headers beside it.
async fn approve_with(app: &TestApp, id: &str, changes: &Value, more: &[(&str, &[u8])]) -> Answer {
    let token = token(app, &claims(changes));
    let sub = changes["sub"].as_str().unwrap_or("user123");
    let path = format!("{}/aura/hitl/approve/{id}", app.base);
    let mut request = app.client.post(path).bearer_auth(token).json(&json!({ "userId": sub }));
    for (name, value) in more {
        request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
    }
    Answer::of(request.send().await.unwrap()).await
}

const PLAIN: [(&str, &[u8]); 2] = [("X-Tenant-ID", b"tenant1"), ("X-User-ID", b"user123")];

both_modes! {
    /// Browsers send Latin-1, Java percent-encoded UTF-8, curl raw UTF-8.
    async fn identity_headers_beyond_ascii_are_equal_in_each_form_that_clients_send(app: TestApp) {
        let forms: [(&str, &[&[u8]]); 4] = [
            ("José", &["José".as_bytes(), b"Jos%C3%A9", b"Jos%c3%a9", b"Jos\xe9", b"%4A%6F%73%C3%A9"]),
            ("김철수", &["김철수".as_bytes(), b"%EA%B9%80%EC%B2%A0%EC%88%98"]),
            ("Doe, Jane", &[b"Doe, Jane", b"Doe%2C%20Jane"]),
            ("50%25", &[b"50%25", b"50%2525"]),
        ];
        for (name, spellings) in forms {
            let named = json!({ "sub": name, "tenant_id": name });
            for spelling in spellings {
                for verdict in ["approve", "reject"] {
                    let asked = Asked::new().with("userId", json!(name)).with("tenantId", json!(name));
                    app.ask(&asked).await;
                    let path = format!("{}/aura/hitl/{verdict}/{}", app.base, asked.id);
                    let call = app.client.post(path).bearer_auth(token(&app, &claims(&named)));
                    let call = call.header("X-Tenant-ID", HeaderValue::from_bytes(spelling).unwrap());
                    let call = call.header("X-User-ID", HeaderValue::from_bytes(spelling).unwrap());
                    let answer = Answer::of(call.json(&json!({ "userId": name })).send().await.unwrap()).await;
                    assert_eq!(answer.status, 200, "{name} {spelling:?}: {}", answer.text);
                    let State::Decided(decision) = app.record(&asked.id).await.state else { panic!() };
                    assert_eq!(decision.by.as_str(), name);
                }
            }
            // Two spellings are two headers, and other names are other people's.
            let asked = Asked::new().with("userId", json!(name)).with("tenantId", json!(name));
            app.ask(&asked).await;
            let tenant = ("X-Tenant-ID", name.as_bytes());
            let encoded = spellings.last().unwrap();
            let twice = approve_with(&app, &asked.id, &named, &[tenant, ("X-User-ID", name.as_bytes()), ("X-User-ID", encoded)]).await;
            twice.assert(400, "E4001");
            let joined = [encoded, b",".as_slice(), encoded].concat();
            approve_with(&app, &asked.id, &named, &[tenant, ("X-User-ID", &joined)]).await.assert(400, "E4001");
            for other in [b"Jos?".as_slice(), b"???", b"%", b"%EA%B9%80", b"Jos\xe8", b"Doe", b"50", "Jose\u{301}".as_bytes()] {
                approve_with(&app, &asked.id, &named, &[tenant, ("X-User-ID", other)]).await.assert(403, "E2001");
                approve_with(&app, &asked.id, &named, &[("X-Tenant-ID", other), ("X-User-ID", encoded)]).await.assert(403, "E2007");
            }
            assert!(app.is_undecided(&asked.id).await);
        }
    }
}

both_modes! {
    /// RFC 8693: whoever `act` names acts for the subject. An agent's own id header proves nothing.
    async fn a_token_with_which_an_agent_acts_decides_nothing(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        for act in [json!({ "sub": "agent-7" }), json!({}), json!("agent-7"), json!(false)] {
            approve_with(&app, &asked.id, &json!({ "act": act }), &PLAIN).await.assert(403, "E2001");
        }
        assert!(app.is_undecided(&asked.id).await);
        let browser = [PLAIN[0], PLAIN[1], ("X-Agent-ID", b"agent-7".as_slice())];
        approve_with(&app, &asked.id, &json!({ "act": null, "jti": "token-1" }), &browser).await.assert(200, "");
    }
}

async fn waiting_with_a_short_token(mode: Mode) {
    let no_leeway = |config: &mut aura_hitl::config::Config| config.jwt.leeway_seconds = 0;
    let app = TestApp::spawn_with(mode, Clock::System, no_leeway).await;
    let asked = Asked::new();
    app.ask(&asked).await;
    for path in [format!("requests/{}/decision", asked.id), format!("signals/{}", asked.session)] {
        let bearer = format!("Bearer {}", token(&app, &claims(&json!({ "exp": now() + 2 }))));
        let headers = || headers(&[("Authorization", &bearer), ("X-Tenant-ID", "tenant1")]);
        let path = format!("/aura/hitl/{path}?waitSeconds=55");
        // Long before the 55 seconds are over.
        let ended = call(&app, &Method::GET, &path, headers());
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), ended).await.unwrap();
        assert_eq!(ended.assert(200, "").headers["Retry-After"], "0");
        eventually(async || {
            let next = call(&app, &Method::GET, "/main/agent/tasks", headers()).await;
            (next.code() == "E2002").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_with_its_token() {
    tokio::join!(
        waiting_with_a_short_token(Mode::Embedded),
        waiting_with_a_short_token(Mode::Production)
    );
}

async fn with_claims(mode: Mode) {
    let app = TestApp::spawn_with(mode, Clock::System, |config| {
        let claim = |value: &str| {
            Some(ClaimValue { name: "client_type".to_owned(), value: value.to_owned() })
        };
        config.jwt.agent_claim = claim("agent");
        config.jwt.person_claim = claim("person");
    })
    .await;
    let asked = Asked::new();
    app.ask(&asked).await;
    for (changes, says) in [
        (json!({ "client_type": "agent" }), "an agent"),
        (json!({ "client_type": ["person", "agent"] }), "an agent"),
        (json!({ "client_type": "person", "act": { "sub": "a" } }), "an agent"),
        (json!({}), "does not say"),
        (json!({ "client_type": "persons" }), "does not say"),
        (json!({ "client_type": { "person": true } }), "does not say"),
    ] {
        let answer = approve_with(&app, &asked.id, &changes, &PLAIN).await;
        assert!(answer.assert(403, "E2001").text.contains(says), "{changes}: {}", answer.text);
    }
    assert!(app.is_undecided(&asked.id).await);
    let person = json!({ "client_type": ["staff", "person"] });
    approve_with(&app, &asked.id, &person, &PLAIN).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_say_who_is_an_agent_and_who_is_a_person() {
    with_claims(Mode::Embedded).await;
    with_claims(Mode::Production).await;
}

async fn with_revocations(mode: Mode) {
    let app = TestApp::spawn_with(mode, Clock::System, |config| {
        config.jwt.max_lifetime_seconds = 3600;
        let list = "jti = [\"stolen\"]\n[[not_before]]\ntenant = \"tenant1\"\nuser = \"bob\"\ntime = \"2026-01-16T12:00:00Z\"";
        config.jwt.revocations = Revocations::read("revoked.toml".as_ref(), list).unwrap();
    })
    .await;
    for (changes, status) in [
        (json!({ "jti": "stolen" }), 401),
        (json!({ "jti": "Stolen" }), 200),
        (json!({ "sub": "bob", "iat": 1_768_564_799 }), 401),
        (json!({ "sub": "bob", "iat": 1_768_564_800 }), 200),
        (json!({ "sub": "bob", "tenant_id": "tenant2", "iat": 1_768_564_799 }), 200),
        (json!({ "exp": now() + 3600 }), 200),
        (json!({ "exp": now() + 3700 }), 401),
        (json!({ "exp": (now() + 600) * 1000 }), 401),
    ] {
        let claims = claims(&changes);
        let bearer = format!("Bearer {}", token(&app, &claims));
        let tenant = claims["tenant_id"].as_str().unwrap();
        let headers = headers(&[("Authorization", &bearer), ("X-Tenant-ID", tenant)]);
        let answer = call(&app, &Method::GET, "/main/agent/tasks", headers).await;
        answer.assert(status, if status == 200 { "" } else { "E2003" });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_and_those_that_live_too_long_are_refused() {
    with_revocations(Mode::Embedded).await;
    with_revocations(Mode::Production).await;
}

over_redis! {
    async fn the_body_names_the_same_person_as_the_token(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        for verdict in ["approve", "reject"] {
            let path = format!("/api/aura/hitl/{verdict}/{}", asked.id);
            for user in ["bob", "USER123", "", " user123"] {
                app.post(ALICE, &path, json!({ "userId": user })).await.assert(403, "E2001");
            }
            let nobody = app.post(ALICE, &path, json!({})).await;
            nobody.assert(400, "E4000");
            assert!(nobody.data()["userId"].is_string(), "{}", nobody.text);
        }
        let stranger = app.approve(MALLORY, &asked.id).await;
        stranger.assert(404, "E1004");
        let nothing = app.approve(ALICE, "req-that-is-not").await;
        nothing.assert(404, "E1004");
        assert_eq!(stranger.body["message"], nothing.body["message"]);
        assert_eq!(stranger.body.get("data"), None);
        assert_eq!(app.signal(&asked.session).await, None);
    }
}

both_modes! {
    async fn genuine_tokens_of_every_issuer_are_taken(app: TestApp) {
        let as_sent = |sub: &'static str, tenant: &'static str, changes: Value| (sub, tenant, changes);
        for (sub, tenant, changes) in [
            as_sent("user123", "tenant1", json!({})),
            as_sent("user123", "42", json!({ "tenant_id": 42 })),
            as_sent("user123", "0", json!({ "tenant_id": 0 })),
            as_sent("user123", "-7", json!({ "tenant_id": -7 })),
            as_sent("user123", "9223372036854775807", json!({ "tenant_id": i64::MAX })),
            as_sent("김철수", "지사", json!({ "sub": "김철수", "tenant_id": "지사" })),
            as_sent("user123", "tenant1", json!({ "role": null })),
            as_sent("user123", "tenant1", json!({ "iat": now() + 60 })),
            as_sent("user123", "tenant1", json!({ "exp": now() - 2 })),
            as_sent("user123", "tenant1", json!({ "nbf": now() - 5, "email": "a@b.c", "jti": [1] })),
            as_sent("user123", "tenant1", json!({ "aud": "elsewhere", "iss": "somebody" })),
            as_sent("user123", "tenant1", json!({ "aud": ["a", "b"], "role": "owner" })),
        ] {
            let token = token(&app, &claims(&changes));
            for scheme in ["Bearer", "bearer", "BEARER"] {
                let headers = headers(&[
                    ("Authorization", &format!("{scheme} {token}")),
                    ("X-Tenant-ID", tenant), ("X-User-ID", sub),
                ]);
                let answer = call(&app, &Method::GET, "/main/agent/tasks", headers).await;
                assert_eq!(answer.status, StatusCode::OK, "{changes}: {}", answer.text);
            }
        }
    }
}

async fn with_audience(mode: Mode) {
    let app = TestApp::spawn_with(mode, Clock::System, |config| {
        config.jwt.audience = Some("aura".to_owned());
        config.jwt.issuer = Some("dwp-auth".to_owned());
    })
    .await;
    for (changes, status, code) in [
        (json!({ "aud": "aura", "iss": "dwp-auth" }), 200, ""),
        (json!({ "aud": ["other", "aura"], "iss": "dwp-auth" }), 200, ""),
        (json!({}), 401, "E2003"),
        (json!({ "aud": "aura" }), 401, "E2003"),
        (json!({ "iss": "dwp-auth" }), 401, "E2003"),
        (json!({ "aud": "other", "iss": "dwp-auth" }), 401, "E2003"),
        (json!({ "aud": [], "iss": "dwp-auth" }), 401, "E2003"),
        (json!({ "aud": "aura", "iss": "somebody" }), 401, "E2003"),
        (json!({ "aud": 7, "iss": "dwp-auth" }), 401, "E2003"),
    ] {
        let bearer = format!("Bearer {}", token(&app, &claims(&changes)));
        let headers = headers(&[("Authorization", &bearer), ("X-Tenant-ID", "tenant1")]);
        let answer = call(&app, &Method::GET, "/main/agent/tasks", headers).await;
        let got = (answer.status.as_u16(), answer.code());
        assert_eq!(got, (status, code), "{changes}: {}", answer.text);
    }
    // What the service itself mints passes its own checks.
    app.get(ALICE, "/main/agent/tasks").await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audience_and_issuer_are_checked_once_they_are_configured() {
    with_audience(Mode::Embedded).await;
    with_audience(Mode::Production).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_service_is_worth_nothing_here() {
    let [here, there] =
        [TestApp::spawn(Mode::Embedded).await, TestApp::spawn(Mode::Embedded).await];
    let who = Who { user: "root", tenant: "tenant1", role: Role::Admin };
    let foreign = there.token(who.user, who.tenant, who.role);
    let headers =
        headers(&[("Authorization", &format!("Bearer {foreign}")), ("X-Tenant-ID", "tenant1")]);
    call(&here, &Method::GET, "/main/agent/tasks", headers).await.assert(401, "E2003");
}
