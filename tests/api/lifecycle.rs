//! The program as operators run it: started, asked things on the command line, misconfigured,
//! stopped and killed.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{ExitStatus, Output};

use aura_hitl::domain::decision::State;
use aura_hitl::domain::ids::RequestId;
use aura_hitl::domain::record::Delivery;
use aura_hitl::ledger::Ledger;
use futures_util::future::join_all;
use reqwest::{Client, Method};
use secrecy::SecretString;
use serde_json::{Value, json};
use support::{
    ALICE, Answer, Asked, PrivateRedis, Program, Running, eventually, free_port, fresh_database,
    test_variable, unique,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SECRET: &str = "canary-secret-0123456789abcdef0123456789abcdef";

/// The service with Postgres and Redis.
fn production(folder: &TempDir, arguments: &[&str], database: &str, redis: &str) -> Program {
    Program::new(folder, arguments)
        .with("DATABASE_URL", database)
        .with("REDIS_URL", redis)
        .with("JWT_SECRET", SECRET)
}

/// A token that the program itself mints, with the settings of `program`.
fn mint(program: Program) -> String {
    let output = program.output();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let token = text.strip_suffix('\n').unwrap();
    assert!(token.split('.').count() == 3 && !token.contains(char::is_whitespace), "{text:?}");
    token.to_owned()
}

const TOKEN: [&str; 5] = ["token", "--sub", "user123", "--tenant", "tenant1"];

/// A person at a running service.
struct Visitor<'a> {
    base: &'a str,
    token: &'a str,
}

impl Visitor<'_> {
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let call = Client::new()
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.token)
            .header("X-Tenant-ID", "tenant1")
            .header("X-User-ID", "user123")
            .header("X-Trace-Id", "trace-4711");
        let call = if let Some(body) = body { call.json(&body) } else { call };
        Answer::of(call.send().await.unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    /// Registers a request; its id.
    async fn register(&self, session: &str) -> String {
        let body = json!({ "sessionId": session, "actionType": "send_email" });
        let answer = self.call(Method::POST, "/aura/hitl/requests", Some(body)).await;
        answer.assert(201, "").data()["requestId"].as_str().unwrap().to_owned()
    }

    async fn approve(&self, id: &str) -> Answer {
        let body = json!({ "userId": "user123" });
        self.call(Method::POST, &format!("/aura/hitl/approve/{id}"), Some(body)).await
    }

    /// Sends an approval up to its body and waits until the service asks for that.
    async fn begin_to_approve(&self, id: &str) -> TcpStream {
        let address = self.base.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /aura/hitl/approve/{id} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\
             X-Tenant-ID: tenant1\r\nX-User-ID: user123\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            self.token,
            BODY.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut asked = [0; 25];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream
    }
}

const BODY: &[u8] = br#"{"userId":"user123"}"#;

#[track_caller]
fn assert_success(status: ExitStatus) {
    assert_eq!(status.code(), Some(0), "{status:?}");
}

/// Refused in one line on standard error with exit code 1, without a word of any secret.
#[track_caller]
pub fn assert_refused(output: &Output, expected: &str) {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert_eq!(output.status.code(), Some(1), "{err}{out}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("aura-hitl: ") && err.ends_with('\n'), "{err}");
    assert!(err.contains(expected), "{expected:?} is not in {err}");
    for text in [err, out] {
        assert!(!text.contains("canary"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_a_decision_under_way_finish() {
    let folder = TempDir::new().unwrap();
    let token = mint(Program::new(&folder, &TOKEN));
    let mut service = Program::new(&folder, &[]).serve().await;
    let base = service.base.clone();
    let visitor = Visitor { base: &base, token: &token };
    let id = visitor.register("session_1").await;
    let mut call = visitor.begin_to_approve(&id).await;
    service.terminate();
    let address = base.strip_prefix("http://").unwrap();
    eventually(async || TcpStream::connect(address).await.is_err().then_some(())).await;

    call.write_all(BODY).await.unwrap();
    let mut answer = String::new();
    call.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_success(service.ended().await);
    assert_eq!(service.stderr(), "");

    let again = Program::new(&folder, &["serve"]).serve().await;
    let visitor = Visitor { base: &again.base, token: &token };
    let signal = visitor.get(&format!("/aura/hitl/signals/session_1?requestId={id}")).await;
    assert!(signal.data().as_str().unwrap().contains(&id), "{}", signal.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_amid_many_decisions_loses_none_that_was_acknowledged() {
    let (folder, database) = (TempDir::new().unwrap(), fresh_database().await);
    let redis = test_variable("TEST_REDIS_URL");
    let token = mint(production(&folder, &TOKEN, &database, &redis));
    // More than one person asks for at once.
    let program = production(&folder, &[], &database, &redis);
    let mut service = program.with("AURA_HITL_RATE_LIMIT_PER_SECOND", "0").serve().await;
    let base = service.base.clone();
    let visitor = Visitor { base: &base, token: &token };
    let mut ids = Vec::new();
    for number in 0..60 {
        ids.push(visitor.register(&unique(&format!("session_{number}"))).await);
    }
    let calls = ids.iter().map(async |id| {
        let call = Client::new()
            .post(format!("{base}/aura/hitl/approve/{id}"))
            .bearer_auth(&token)
            .header("X-Tenant-ID", "tenant1")
            .header("X-User-ID", "user123")
            .json(&json!({ "userId": "user123" }));
        let answer = call.send().await;
        service.terminate();
        answer.is_ok_and(|answer| answer.status() == 200)
    });
    let acknowledged = join_all(calls).await;
    assert!(acknowledged.contains(&true));
    assert_success(service.ended().await);

    let ledger =
        Ledger::connect_postgres(&SecretString::from(database), aura_hitl::ledger::Pooler::None, 2)
            .await
            .unwrap();
    for (id, acknowledged) in ids.iter().zip(acknowledged) {
        let id = RequestId::parse(id.as_str()).unwrap();
        let record = support::find_record(&ledger, id.as_str()).await.unwrap();
        let is_decided = record.state != State::Pending;
        assert!(is_decided || !acknowledged, "{id} was acknowledged and is lost");
        let is_sent = record.delivery == Delivery::Sent;
        assert!(is_sent || !is_decided, "{id} is decided and its signal was not flushed");
    }
}

/// A proxy repeats no call whose connection broke after it was made. So whoever can still connect
/// while the service stops gets an answer.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_breaks_no_new_connection() {
    let folder = TempDir::new().unwrap();
    let mut service = Program::new(&folder, &["serve"]).serve().await;
    let address = service.base.strip_prefix("http://").unwrap().to_owned();
    let callers = (0..32).map(async |_| {
        let (mut answered, mut broken) = (0, 0);
        while let Ok(mut call) = TcpStream::connect(&address).await {
            let mut answer = String::new();
            let head = b"GET /health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
            let _broken_too = call.write_all(head).await;
            let read = call.read_to_string(&mut answer).await;
            if read.is_ok() && answer.starts_with("HTTP/1.1 200 OK\r\n") {
                answered += 1;
            } else {
                broken += 1;
            }
        }
        (answered, broken)
    });
    service.terminate();
    let calls = join_all(callers).await;
    let answered = calls.iter().map(|(answered, _)| answered).sum::<u32>();
    let broken = calls.iter().map(|(_, broken)| broken).sum::<u32>();
    assert!(answered > 100, "only {answered} calls while the service stopped");
    assert_eq!(broken, 0, "of {answered}");
    assert_success(service.ended().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_mode_survives_a_power_cut() {
    let folder = TempDir::new().unwrap();
    let mut service = Program::new(&folder, &[]).serve().await;
    let token = mint(Program::new(&folder, &TOKEN));
    let base = service.base.clone();
    let visitor = Visitor { base: &base, token: &token };
    let [decided, pending] =
        [visitor.register("session_1").await, visitor.register("session_2").await];
    visitor.approve(&decided).await.assert(200, "");
    let body = json!({ "taskType": "mail", "userId": "user123", "tenantId": "tenant1" });
    let task = visitor.call(Method::POST, "/main/agent/tasks", Some(body)).await;
    let task = task.assert(201, "").data().clone();
    let task_path = format!("/main/agent/tasks/{}", task["taskId"].as_str().unwrap());
    let signals = format!("/aura/hitl/signals/session_1?requestId={decided}");
    let signal = visitor.get(&signals).await.data().clone();
    assert!(signal.is_string());
    service.crash();

    let secret = folder.path().join("data/jwt_secret");
    let kept = std::fs::read(&secret).unwrap();
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(kept.len() >= 32);

    let mut service = Program::new(&folder, &[]).serve().await;
    let base = service.base.clone();
    let visitor = Visitor { base: &base, token: &token };
    assert_eq!(*visitor.get(&signals).await.data(), signal);
    assert_eq!(*visitor.get(&task_path).await.data(), task);
    let request = visitor.get(&format!("/aura/hitl/requests/{pending}")).await;
    assert!(request.data().as_str().unwrap().contains(r#""status":"pending""#), "{}", request.text);
    visitor.approve(&pending).await.assert(200, "");
    assert_success(service.stop().await);
    assert_eq!(std::fs::read(&secret).unwrap(), kept);
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
}

both_modes! {
    async fn a_restart_loses_nothing(app: TestApp) {
        let mut app = app;
        let [decided, asked, registered] = [(); 3].map(|()| Asked::new());
        for one in [&decided, &registered] {
            app.register(ALICE, one).await.assert(201, "");
        }
        app.ask(&asked).await;
        app.reject(ALICE, &decided.id, Some("no")).await.assert(200, "");
        let signal = app.poll(ALICE, &decided.session, Some(&decided.id)).await;
        assert!(signal.is_some());
        app.restart().await;
        assert_eq!(app.poll(ALICE, &decided.session, Some(&decided.id)).await, signal);
        app.approve(ALICE, &decided.id).await.assert(409, "E3006");
        for one in [&asked, &registered] {
            app.approve(ALICE, &one.id).await.assert(200, "");
            assert_eq!(app.settled(&one.id).await.delivery, Delivery::Sent);
        }
    }
}

both_modes! {
    /// Replicas go on while a migration adds columns: on Postgres a statement that was prepared as
    /// `SELECT *` would be refused from then on.
    async fn columns_of_a_later_release_disturb_nobody(app: TestApp) {
        for round in 0..2 {
            let (kept, refused) = (Asked::new(), Asked::new());
            for asked in [&kept, &refused] {
                app.register(ALICE, asked).await.assert(201, "");
            }
            app.approve(ALICE, &kept.id).await.assert(200, "");
            app.approve(ALICE, &kept.id).await.assert(200, "");
            app.reject(ALICE, &refused.id, None).await.assert(200, "");
            for path in ["decision", "ack"] {
                let method = if path == "ack" { Method::POST } else { Method::GET };
                let path = format!("/aura/hitl/requests/{}/{path}", kept.id);
                Answer::of(app.call(ALICE, method, &path).send().await.unwrap()).await.assert(200, "");
            }
            assert!(app.poll(ALICE, &kept.session, Some(&kept.id)).await.is_some());
            assert!(app.get(ALICE, "/main/agent/tasks").await.assert(200, "").text.contains(&kept.id));
            assert_eq!(app.settled(&kept.id).await.delivery, Delivery::Sent);
            if round == 0 {
                app.sql("ALTER TABLE hitl_request ADD COLUMN of_a_later_release TEXT").await;
                app.sql("ALTER TABLE agent_task ADD COLUMN of_a_later_release TEXT").await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_data_is_refused() {
    let folder = TempDir::new().unwrap();
    let mut first = Program::new(&folder, &[]).serve().await;
    assert_refused(&Program::new(&folder, &[]).output(), "in use by another aura-hitl process");
    first.crash();
    let mut next = Program::new(&folder, &[]).serve().await;
    assert_success(next.stop().await);
}

#[tokio::test]
async fn the_demo_shows_both_ways_a_request_can_go() {
    let folder = TempDir::new().unwrap();
    let output = Program::new(&folder, &["demo"]).without("PORT").output();
    assert_success(output.status);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let shown = String::from_utf8(output.stdout).unwrap();
    for expected in [
        r#"{"type":"approval","requestId":"req_"#,
        r#"{"type":"rejection","requestId":"req_"#,
        "POST /aura/hitl/approve/req_",
        "POST /aura/hitl/reject/req_",
        "Request approved successfully",
        "Request rejected",
        "COMPLETED",
        "FAILED",
        "Rejected by user123",
    ] {
        assert!(shown.contains(expected), "{expected:?} is not in\n{shown}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_prints_a_token_that_the_service_takes() {
    let folder = TempDir::new().unwrap();
    let service = Program::new(&folder, &[]).with("JWT_SECRET", SECRET).serve().await;
    let ours = mint(Program::new(&folder, &TOKEN).with("JWT_SECRET", SECRET));
    let strange = mint(Program::new(&folder, &TOKEN));
    let tasks = |token: &str| {
        let (base, token) = (service.base.clone(), token.to_owned());
        async move { Visitor { base: &base, token: &token }.get("/main/agent/tasks").await }
    };
    tasks(&ours).await.assert(200, "");
    tasks(&strange).await.assert(401, "E2003");
    let arguments = [&TOKEN[..], &["--ttl", "1"]].concat();
    let short = mint(Program::new(&folder, &arguments).with("JWT_SECRET", SECRET));
    let claims: Value = {
        use jsonwebtoken::{DecodingKey, Validation, decode};
        let key = DecodingKey::from_secret(SECRET.as_bytes());
        let lenient = Validation { leeway: 60, ..Validation::default() };
        decode(&short, &key, &lenient).unwrap().claims
    };
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 1);
    assert_eq!((&claims["sub"], &claims["role"]), (&json!("user123"), &json!("user")));
}

#[tokio::test]
async fn openapi_prints_the_document() {
    let folder = TempDir::new().unwrap();
    let output = Program::new(&folder, &["openapi"]).output();
    assert_success(output.status);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/aura/hitl/approve/{requestId}"]["post"].is_object());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it needs no data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_auto_migrate_the_service_waits_for_migrate() {
    let redis = test_variable("TEST_REDIS_URL");
    for database in [None, Some(fresh_database().await)] {
        let folder = TempDir::new().unwrap();
        let program = |arguments: &[&str]| {
            let program = Program::new(&folder, arguments).with("AURA_HITL_AUTO_MIGRATE", "false");
            match &database {
                None => program,
                Some(url) => program
                    .with("DATABASE_URL", url)
                    .with("REDIS_URL", &redis)
                    .with("JWT_SECRET", SECRET),
            }
        };
        assert_refused(&program(&[]).output(), "run `aura-hitl migrate`");
        for _twice in 0..2 {
            let output = program(&["migrate"]).output();
            assert_success(output.status);
            assert!(output.stderr.is_empty(), "{output:?}");
        }
        let mut service = program(&["serve"]).serve().await;
        assert_success(service.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_may_migrate_one_database_at_once() {
    let (folder, database) = (TempDir::new().unwrap(), fresh_database().await);
    let redis = test_variable("TEST_REDIS_URL");
    let migrations = (0..4).map(|_| {
        let program = production(&folder, &["migrate"], &database, &redis);
        tokio::task::spawn_blocking(move || program.output())
    });
    for output in join_all(migrations).await {
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthcheck_tells_a_container_whether_the_service_is_ready() {
    let folder = TempDir::new().unwrap();
    let mut redis = PrivateRedis::start().await;
    let service = Program::new(&folder, &[])
        .with("DATABASE_URL", "sqlite:data/aura-hitl.db")
        .with("REDIS_URL", redis.url())
        .with("JWT_SECRET", SECRET)
        .serve()
        .await;
    let (_, port) = service.base.rsplit_once(':').unwrap();
    let check = |port: &str, host: &str| {
        let program = Program::new(&folder, &["healthcheck"]).with("JWT_SECRET", SECRET);
        program.with("PORT", port).with("HOST", host).output()
    };
    for host in ["127.0.0.1", "0.0.0.0", "localhost"] {
        let output = check(port, host);
        assert_success(output.status);
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    assert_refused(&check(&free_port().to_string(), "127.0.0.1"), "no answer");
    redis.kill();
    assert_refused(&check(port, "127.0.0.1"), "503");
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_in_the_environment_is_refused_in_one_line_without_secrets() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();
    let nobody = free_port();
    let redis = test_variable("TEST_REDIS_URL");
    let secret: (&str, &str) = ("JWT_SECRET", SECRET);
    let unreachable = format!("postgres://user:canary-password@127.0.0.1:{nobody}/hitl");
    let redis_url: (&str, &str) = ("REDIS_URL", &redis);
    let no_database = test_variable("TEST_DATABASE_URL").replace("/postgres", "/no_such_database");
    let file = |text: &str| {
        let name = format!("{}.toml", uuid::Uuid::new_v4().simple());
        (name, text.to_owned())
    };
    let files = [
        file("jwt_secret = \"canary-secret-0123456789abcdef0123456789abcdef\"\n"),
        file("redis_host = \"redis\"\nredis_password = \"canary\"\n"),
        file("colour = \"red\"\n"),
        file("host = \"127.0.0.1\"\nredis_password = \"canary-unclosed\n"),
        file("database_url = \"postgres://user:canary@db/hitl\" \"canary\"\n"),
        file("database_url = [\"postgres://user:canary@db/hitl\"]\n"),
        file("jwt_leeway_seconds = \"many\"\n"),
    ];
    let config = |number: usize| ("AURA_HITL_CONFIG", files[number].0.as_str());
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("DATABASE_URL", &unreachable), secret], "REDIS_URL"),
        (&[("DATABASE_URL", &unreachable), redis_url, secret], "Postgres"),
        (&[("DATABASE_URL", &no_database), redis_url, secret], "Postgres"),
        (&[("DATABASE_URL", "mysql://user:canary@db/hitl"), redis_url, secret], "postgres://"),
        (&[("DATABASE_URL", "postgres://user:canary@[db/hitl"), redis_url, secret], "DATABASE_URL"),
        (&[("DATABASE_URL", "postgres://u:canary@db:canary/h"), redis_url, secret], "DATABASE_URL"),
        (&[("DATABASE_URL", "sqlite::memory:")], "DATABASE_URL"),
        (&[("JWT_SECRET", "canary-short")], "at least 32"),
        (&[("AURA_HITL_JWT_SECRET", "canary-short")], "at least 32"),
        (&[redis_url], "JWT_SECRET is not set"),
        (&[redis_url, ("JWT_SECRET", "  ")], "JWT_SECRET is not set"),
        (&[redis_url, secret, ("REDIS_HOST", "redis")], "REDIS_URL and REDIS_HOST"),
        (&[secret, ("REDIS_PASSWORD", "canary")], "REDIS_HOST"),
        (&[secret, ("REDIS_URL", "http://:canary@redis:6379")], "REDIS_URL"),
        (&[secret, ("REDIS_URL", "redis://:canary@redis:port")], "REDIS_URL"),
        (&[secret, ("REDIS_URL", "redis+cluster://:canary@a:6379,:canary@b:6379/1")], "REDIS_URL"),
        (&[secret, ("REDIS_URL", "redis+sentinel://:canary@a,b")], "REDIS_URL"),
        (&[secret, ("REDIS_URL", "redis+sentinel://a/main?sentinel_pass=canary")], "REDIS_URL"),
        (&[secret, ("REDIS_HOST", "redis"), ("REDIS_PORT", "99999")], "redis_port"),
        (&[("JWT_SECRET_FILE", "no-such-file")], "no-such-file"),
        (&[("JWT_SECRET_FILE", "no-such-file"), secret], "both set"),
        (&[("JWT_SECRET_FILE", "no-such-file"), ("AURA_HITL_JWT_SECRET", SECRET)], "both set"),
        (&[("AURA_HITL_COLOUR", "red")], "colour"),
        (&[("PORT", "eighty")], "port"),
        (&[("PORT", "65536")], "port"),
        (&[("PORT", &taken)], "cannot listen"),
        (
            &[("HOST", "no.such.host.invalid"), ("DATABASE_URL", "sqlite:data/x.db")],
            "cannot listen",
        ),
        (&[("AURA_HITL_JWT_LEEWAY_SECONDS", "31")], "at most 30"),
        (&[("AURA_HITL_JWT_MAX_LIFETIME_SECONDS", "0")], "jwt_max_lifetime_seconds"),
        (&[("AURA_HITL_AGENT_CLAIM", "agent")], "agent_claim is \"agent\""),
        (&[("AURA_HITL_PERSON_CLAIM", "=person")], "a claim and its value"),
        (&[("AURA_HITL_REVOCATIONS_FILE", "no-such-list.toml")], "no-such-list.toml"),
        (&[("AURA_HITL_SHUTDOWN_SECONDS", "0")], "shutdown_seconds"),
        (&[("AURA_HITL_DATABASE_MAX_CONNECTIONS", "0")], "database_max_connections"),
        (&[("AURA_HITL_RATE_LIMIT_PER_SECOND", "100001")], "rate_limit_per_second"),
        (&[("AURA_HITL_RATE_LIMIT_PER_SECOND", "-1")], "rate_limit_per_second"),
        (&[("AURA_HITL_RATE_LIMIT_BURST", "0")], "rate_limit_burst"),
        (&[("AURA_HITL_RATE_LIMIT_BURST", "1000001")], "rate_limit_burst"),
        (&[("AURA_HITL_MAX_CALLS_UNDER_WAY", "0")], "max_calls_under_way"),
        (&[("AURA_HITL_MAX_CALLS_UNDER_WAY", "100001")], "max_calls_under_way"),
        (&[("AURA_HITL_MAX_CONNECTIONS", "0")], "max_connections"),
        (&[("AURA_HITL_MAX_CONNECTIONS", "100001")], "max_connections"),
        (&[("AURA_HITL_PURGE_REQUESTS_AFTER_DAYS", "-1")], "purge_requests_after_days"),
        (&[("AURA_HITL_PURGE_REQUESTS_AFTER_DAYS", "36501")], "purge_requests_after_days is 36501"),
        (&[("AURA_HITL_PURGE_TASKS_AFTER_DAYS", "36501")], "purge_tasks_after_days is 36501"),
        (&[("AURA_HITL_PURGE_TASKS_AFTER_DAYS", "a year")], "purge_tasks_after_days"),
        (&[("AURA_HITL_AUDIT_URL", "auth:8001")], "audit_url"),
        (&[("AURA_HITL_AUDIT_URL", "http://u:canary@auth:8001")], "audit_url"),
        (&[("AURA_HITL_APPROVERS", "everybody")], "approvers"),
        (&[("AURA_HITL_AUTO_MIGRATE", "perhaps")], "auto_migrate"),
        (&[("AURA_HITL_CORS_ORIGINS", "example.com")], "cors_origins"),
        (&[("AURA_HITL_DATA_DIR", "/proc/nowhere")], "/proc/nowhere"),
        (&[("RUST_LOG", "aura_hitl=loud,=")], "RUST_LOG"),
        (&[("AURA_HITL_CONFIG", "no-such-file.toml")], "no-such-file.toml"),
        (&[config(0)], "jwt_secret"),
        (&[config(1)], "redis_password"),
        (&[config(2)], "colour"),
        (&[config(3)], "line 2"),
        (&[config(4)], "line 1"),
        (&[config(5)], "database_url"),
        (&[config(6)], "jwt_leeway_seconds"),
    ];
    let mut wrong = Vec::new();
    for (environment, expected) in cases {
        let folder = TempDir::new().unwrap();
        for (name, text) in &files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let program = environment
            .iter()
            .fold(Program::new(&folder, &[]), |program, (name, value)| program.with(name, value));
        let output = tokio::task::spawn_blocking(move || program.output()).await.unwrap();
        let checked = std::panic::catch_unwind(|| assert_refused(&output, expected));
        if checked.is_err() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            wrong.push(format!("{environment:?}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_keep_in_the_environment_is_none_of_our_business() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = TempDir::new().unwrap();
    let mut service = Program::new(&folder, &[])
        .with("LATIN1", std::ffi::OsStr::from_bytes(b"caf\xe9"))
        .with("AURA_HITL_CORS_ORIGINS", "https://a.example, https://b.example")
        .with("AURA_HITL_JWT_AUDIENCE", "")
        .serve()
        .await;
    assert_success(service.stop().await);
    let ours = Program::new(&folder, &[])
        .with("AURA_HITL_JWT_ISSUER", std::ffi::OsStr::from_bytes(b"canary\xe9"));
    assert_refused(&ours.output(), "AURA_HITL_JWT_ISSUER");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_need_open_files() {
    let folder = TempDir::new().unwrap();
    let refused = Program::with_open_files(&folder, "-n", 1024).output();
    assert_refused(&refused, "max_connections is 2048, but this process may open only 1024 files");
    let fewer =
        Program::with_open_files(&folder, "-n", 1024).with("AURA_HITL_MAX_CONNECTIONS", "500");
    assert_success(fewer.serve().await.stop().await);
    // What the process may raise by itself, it does.
    let raised = Program::with_open_files(&folder, "-S -n", 256);
    assert_success(raised.serve().await.stop().await);
}

/// Waits for a line of the log.
async fn logged(service: &mut Running, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(async || service.log().into_iter().find(|line| wanted(line))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_tells_who_decided_what_and_no_secret() {
    let (folder, database) = (TempDir::new().unwrap(), fresh_database().await);
    let mut redis = PrivateRedis::start_with(&["--requirepass", "canary-redis"]).await;
    let redis_url = format!("redis://:canary-redis@127.0.0.1:{}", redis.port());
    let database = database.replacen("postgres@", "postgres:canary-password@", 1);
    assert!(database.contains("canary-password"));
    let arguments: Vec<_> = TOKEN.iter().map(|word| word.replace("user123", "alice")).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let token = mint(production(&folder, &arguments, &database, &redis_url));
    let mut service = production(&folder, &[], &database, &redis_url)
        .with("RUST_LOG", "aura_hitl=debug")
        .serve()
        .await;
    let base = service.base.clone();
    let call = async |method: Method, path: &str, body: &str| {
        let call = Client::new()
            .request(method, format!("{base}{path}"))
            .bearer_auth(&token)
            .header("X-Tenant-ID", "tenant1")
            .header("X-User-ID", "alice")
            .header("X-Trace-Id", "trace-4711")
            .header("Content-Type", "application/json");
        Answer::of(call.body(body.to_owned()).send().await.unwrap()).await
    };
    let register = async |id: &str| {
        let body = json!({
            "requestId": id, "sessionId": format!("session_{id}"), "actionType": "send_email",
            "context": { "to": "canary-context" }, "message": "canary-message",
        });
        call(Method::POST, "/aura/hitl/requests", &body.to_string()).await.assert(201, "");
    };
    for id in ["req_1", "req_2", "req_3"] {
        register(id).await;
    }
    let body = r#"{"userId":"alice"}"#;
    let rejection = r#"{"userId":"alice","reason":"line\nbreak {\"level\":\"FAKE\"}"}"#;
    call(Method::POST, "/aura/hitl/approve/req_1", body).await.assert(200, "");
    call(Method::POST, "/aura/hitl/reject/req_2", rejection).await.assert(200, "");
    call(Method::POST, "/aura/hitl/reject/req_1", body).await.assert(409, "E3006");
    for (path, body) in [
        ("/aura/hitl/approve/req_1", r#"{"userId":"alice","x":"canary-body"#),
        ("/aura/hitl/requests", r#"{"sessionId":"s","actionType":"a","planSteps":"canary-plan"}"#),
        ("/aura/hitl/requests", r#"{"sessionId":"canary\u0000nul","actionType":"a"}"#),
        ("/aura/hitl/nowhere?token=canary-query", "{}"),
    ] {
        let answer = call(Method::POST, path, body).await;
        assert!(answer.status.is_client_error(), "{}", answer.text);
    }
    call(Method::GET, "/aura/hitl/signals/session_req_1?requestId=req_1&x=canary-query", "")
        .await
        .assert(200, "");
    let strange = Client::new()
        .get(format!("{base}/main/agent/tasks"))
        .header("X-Tenant-ID", "tenant1")
        .bearer_auth("canary.token.canary")
        .send();
    assert_eq!(strange.await.unwrap().status(), 401);
    redis.kill();
    call(Method::POST, "/aura/hitl/approve/req_3", body).await.assert(200, "");
    call(Method::GET, "/health/ready", "").await.assert(503, "E5000");

    for (id, outcome) in [("req_1", "approved"), ("req_2", "rejected"), ("req_3", "approved")] {
        let line = logged(&mut service, |line| {
            let text = line.to_string();
            line["message"] == "decided" && text.contains(id)
        })
        .await;
        // On the line itself, or in the span of its call.
        let field = |name: &str| line.get(name).unwrap_or(&line["span"][name]).clone();
        for (name, expected) in [
            ("outcome", outcome),
            ("request_id", id),
            ("user", "alice"),
            ("tenant", "tenant1"),
            ("trace_id", "trace-4711"),
        ] {
            assert_eq!(field(name), expected, "{name} in {line}");
        }
        for name in ["timestamp", "level", "target"] {
            assert!(line[name].is_string(), "{name} in {line}");
        }
    }
    assert_success(service.stop().await);
    let lines = service.log();
    assert!(lines.iter().any(|line| line["message"] == "stopped"));
    assert!(lines.iter().all(|line| line["level"] != "FAKE"));
    let everything = service.stdout() + &service.stderr();
    for secret in ["canary", token.as_str(), SECRET] {
        let leak = everything.lines().find(|line| line.contains(secret));
        assert_eq!(leak, None);
    }
    assert_eq!(service.stderr(), "");
}
