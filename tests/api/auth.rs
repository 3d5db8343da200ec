//! Nobody passes without a genuine token and the headers that agree with it, on any route.

use std::collections::BTreeSet;

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::routes::Access;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::helpers::{
    ALICE, Answer, Asked, MALLORY, Mode, Operation, PREFIXES, TestApp, Who, operations,
};

/// What anybody may call. Nothing else answers without a token.
const OPEN: [&str; 4] = ["/health/live", "/health/ready", "/main/health", "/v3/api-docs"];

fn secured() -> impl Iterator<Item = Operation> {
    operations().into_iter().filter(|operation| !operation.is_open())
}

/// Every secured operation under both prefixes.
fn calls() -> Vec<(Operation, String)> {
    let under = |operation: Operation| {
        PREFIXES.map(|prefix| (operation.clone(), format!("{prefix}{}", operation.path())))
    };
    secured().flat_map(under).collect()
}

/// The present time in Unix seconds.
fn now() -> i64 {
    Clock::System.now().timestamp()
}

fn signed(header: &Value, claims: &Value, key: &[u8], algorithm: Algorithm) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(key);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// A token of the service's own secret with these claims.
fn token(app: &TestApp, claims: &Value) -> String {
    let secret = app.config.jwt.secret.expose_secret().as_bytes();
    signed(&json!({ "alg": "HS256", "typ": "JWT" }), claims, secret, Algorithm::HS256)
}

/// ALICE's claims, with some replaced, or removed when null.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "sub": "user123", "tenant_id": "tenant1", "role": "user", "iat": now(), "exp": now() + 600,
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// The token with one bit of one of its three parts turned over.
fn flipped(token: &str, part: usize, byte: usize, bit: u8) -> String {
    let mut parts = token.split('.').map(ToOwned::to_owned).collect::<Vec<_>>();
    let mut bytes = URL_SAFE_NO_PAD.decode(&parts[part]).unwrap();
    let byte = byte % bytes.len();
    bytes[byte] ^= 1 << bit;
    parts[part] = URL_SAFE_NO_PAD.encode(bytes);
    parts.join(".")
}

/// Values of `Authorization` that stand for nobody, with their error codes.
fn hostile_authorizations(app: &TestApp) -> Vec<(String, String, &'static str)> {
    let secret = app.config.jwt.secret.expose_secret().as_bytes();
    let plain = json!({ "alg": "HS256", "typ": "JWT" });
    let good = claims(&json!({}));
    let genuine = token(app, &good);
    let (message, signature) = genuine.rsplit_once('.').unwrap();
    let unsigned = |header: Value| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(&header), part(&good))
    };
    let mut all: Vec<(String, String, &'static str)> = [
        ("another scheme", "Basic dXNlcjpwYXNz".to_owned(), "E2000"),
        ("a scheme without a token", "Bearer".to_owned(), "E2000"),
        ("a scheme with a blank token", "Bearer  ".to_owned(), "E2000"),
        ("a token without a scheme", genuine.clone(), "E2000"),
    ]
    .map(|(name, value, code)| (name.to_owned(), value, code))
    .to_vec();
    let mut bearer = |name: &str, token: String, code| {
        all.push((name.to_owned(), format!("Bearer {token}"), code));
    };
    bearer("nonsense", "nonsense".to_owned(), "E2003");
    bearer("three blank parts", "..".to_owned(), "E2003");
    bearer("alg none", unsigned(json!({ "alg": "none", "typ": "JWT" })), "E2003");
    bearer("alg None", unsigned(json!({ "alg": "None" })), "E2003");
    bearer("no signature", format!("{message}."), "E2003");
    bearer("half a signature", format!("{message}.{}", &signature[..20]), "E2003");
    bearer("no signature part", message.to_owned(), "E2003");
    bearer("a fourth part", format!("{genuine}.x"), "E2003");
    bearer("two tokens", format!("{genuine} {genuine}"), "E2003");
    for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        bearer(name, signed(&json!({ "alg": name }), &good, secret, algorithm), "E2003");
        bearer(
            &format!("{name} that says HS256"),
            signed(&plain, &good, secret, algorithm),
            "E2003",
        );
    }
    let odd_header = |header: Value| signed(&header, &good, secret, Algorithm::HS256);
    bearer("HS256 that says RS256", odd_header(json!({ "alg": "RS256" })), "E2003");
    bearer("no alg", odd_header(json!({ "typ": "JWT" })), "E2003");
    for crit in [json!(["exp"]), json!(["b64"]), json!([]), json!("exp")] {
        let name = format!("crit {crit}");
        bearer(&name, odd_header(json!({ "alg": "HS256", "crit": crit })), "E2003");
    }
    let by = |key: &[u8]| signed(&plain, &good, key, Algorithm::HS256);
    bearer("another key", by(b"another-secret-of-more-than-32-bytes"), "E2003");
    bearer("an empty key", by(b""), "E2003");
    bearer("half the key", by(&secret[..secret.len() / 2]), "E2003");
    for part in 0..3 {
        for (byte, bit) in [(0, 0), (7, 3), (13, 5), (29, 7)] {
            let name = format!("part {part}: bit {bit} of byte {byte}");
            bearer(&name, flipped(&genuine, part, byte, bit), "E2003");
        }
    }
    for (changes, code) in [
        (json!({ "exp": now() - 59 }), "E2002"),
        (json!({ "exp": now() - 86400 }), "E2002"),
        (json!({ "exp": 0 }), "E2002"),
        (json!({ "exp": (now() + 600).to_string() }), "E2003"),
        (json!({ "exp": 1e300 }), "E2003"),
        (json!({ "exp": true }), "E2003"),
        (json!({ "exp": [now() + 600] }), "E2003"),
        (json!({ "exp": u64::MAX }), "E2003"),
        (json!({ "exp": (now() + 600) * 1000 }), "E2003"),
        (json!({ "exp": null }), "E2003"),
        (json!({ "iat": "now" }), "E2003"),
        (json!({ "nbf": now() + 59 }), "E2003"),
        (json!({ "sub": null }), "E2003"),
        (json!({ "sub": "" }), "E2003"),
        (json!({ "sub": "   " }), "E2003"),
        (json!({ "sub": "user\n123" }), "E2003"),
        (json!({ "sub": 7 }), "E2003"),
        (json!({ "sub": ["user123"] }), "E2003"),
        (json!({ "sub": "x".repeat(257) }), "E2003"),
        (json!({ "tenant_id": null }), "E2003"),
        (json!({ "tenant_id": "" }), "E2003"),
        (json!({ "tenant_id": { "id": "tenant1" } }), "E2003"),
        (json!({ "tenant_id": ["tenant1"] }), "E2003"),
        (json!({ "tenant_id": 1.5 }), "E2003"),
        (json!({ "tenant_id": true }), "E2003"),
        (json!({ "padding": "x".repeat(9000) }), "E2003"),
    ] {
        let name = changes.to_string().chars().take(60).collect::<String>();
        bearer(&name, token(app, &claims(&changes)), code);
    }
    let expired = claims(&json!({ "exp": now() - 86400 }));
    bearer(
        "expired and of another key",
        signed(&plain, &expired, b"another-secret-of-more-than-32-bytes", Algorithm::HS256),
        "E2003",
    );
    all
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
    let decisions = ["/aura/hitl/approve/{requestId}", "/aura/hitl/reject/{requestId}"];
    assert_eq!(with(Access::Approver), BTreeSet::from(decisions));
}

/// The table of routes and the document name the same operations, under the same conditions.
#[test]
fn every_route_is_in_the_document_and_nothing_else_is() {
    let document = serde_json::to_value(aura_hitl::api::document::document()).unwrap();
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
        let hostile = hostile_authorizations(&app);
        for (operation, path) in calls() {
            for (name, value, code) in &hostile {
                let headers = headers(&[
                    ("Authorization", value), ("X-Tenant-ID", "tenant1"), ("X-User-ID", "user123"),
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
            call(&app, &operation.method, &path, unreadable).await.assert(400, "E4001");
        }
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

both_modes! {
    async fn agents_do_not_decide_but_do_everything_else(app: TestApp) {
        let genuine = format!("Bearer {}", app.token("user123", "tenant1", Role::User));
        let (kind, source) = ("X-DWP-Caller-Type", "X-DWP-Source");
        let asked = Asked::new();
        app.ask(&asked).await;
        let agents: &[Pairs<'_>] = &[
            &[(kind, "AGENT")], &[(kind, "agent")], &[(kind, " Agent ")], &[(source, "AURA")],
            &[(source, "aura")], &[(source, "Aura"), (kind, "USER")], &[(kind, "USER"), (kind, "AGENT")],
            &[(kind, "USER, agent")], &[(source, "FRONTEND,AURA")],
            &[("x-dwp-caller-type", "AGENT"), (source, "FRONTEND")],
        ];
        for (operation, path) in calls() {
            let path = path.replace("x-1", &asked.id);
            for agent in agents {
                let mut pairs = vec![
                    ("Authorization", genuine.as_str()), ("X-Tenant-ID", "tenant1"), ("X-User-ID", "user123"),
                ];
                pairs.extend_from_slice(agent);
                let request = app.client.request(operation.method.clone(), format!("{}{path}", app.base));
                let request = request.headers(headers(&pairs)).json(&json!({ "userId": "user123" }));
                let answer = Answer::of(request.send().await.unwrap()).await;
                if operation.decides() {
                    answer.assert(403, "E2001");
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

both_modes! {
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
            as_sent("user123", "tenant1", json!({ "iat": null, "role": null })),
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
