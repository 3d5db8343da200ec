//! The log has a line for each failure, and never a secret.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, Method};
use serde_json::{Map, Value, json};
use support::{
    Asked, PREFIXES, PrivatePostgres, PrivateRedis, Program, Running, careful_operations, forged,
    free_port, raw,
};
use tempfile::TempDir;

use crate::report::{Report, Scale};
use crate::world::{ask, binary};

/// Every secret holds this word, and nothing else does.
const CANARY: &str = "canary";
const JWT_SECRET: &str = "canary-jwt-secret-0123456789abcdef";
const REDIS_PASSWORD: &str = "canary-redis-password";
const DATABASE_PASSWORD: &str = "canary-database-password";
/// A text that would forge a line of the log if it were written unescaped.
const FORGED: &str = "x\",\"forged\":1}\r\n{\"timestamp\":\"\",\"level\":\"ERROR\",\"forged\":2}\r\n\u{1b}[2J\u{2028}";

/// The service and its stores, all of them with secrets.
struct Nest {
    service: Running,
    postgres: PrivatePostgres,
    redis: PrivateRedis,
    client: Client,
    token: String,
    calls: usize,
    _folder: TempDir,
}

impl Nest {
    async fn start(level: &str, program: &str, points: &str) -> Self {
        let postgres = PrivatePostgres::start().await;
        let redis = PrivateRedis::start_with(&["--requirepass", REDIS_PASSWORD]).await;
        let database = postgres.url().replacen('@', &format!(":{DATABASE_PASSWORD}@"), 1);
        let folder = TempDir::new().unwrap();
        let service = Program::of(&binary(program), &folder, &["serve"])
            .with("DATABASE_URL", database)
            .with("REDIS_URL", redis_url(redis.port()))
            .with("JWT_SECRET", JWT_SECRET)
            .with("RUST_LOG", level)
            .with("FAILPOINTS", points)
            .with("AURA_HITL_RATE_LIMIT_PER_SECOND", "0")
            .serve()
            .await;
        let token = forged::token(JWT_SECRET.as_bytes(), &forged::claims(&json!({})));
        let client = Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Self { service, postgres, redis, client, token, calls: 0, _folder: folder }
    }

    /// A call with secrets in all the places where callers put them.
    async fn call(&mut self, method: Method, path: &str, body: &str) -> Option<u16> {
        self.calls += 1;
        let call = self
            .client
            .request(method, format!("{}{path}", self.service.base))
            .bearer_auth(&self.token)
            .query(&[("access_token", "canary-query"), ("state", FORGED)])
            .header("Cookie", "session=canary-cookie")
            .header("Proxy-Authorization", "Basic canary")
            .header("X-Api-Key", "canary-key")
            .header("Referer", "http://localhost/?token=canary-referer")
            .header("X-Tenant-ID", "tenant1")
            .header("X-User-ID", "user123")
            .header("X-Trace-Id", "x\",\"forged\":3,\"y\":\"")
            .header("X-Agent-ID", "x\",\"forged\":4,\"y\":\"")
            .header("User-Agent", "x\",\"forged\":5,\"y\":\"")
            .header("Content-Type", "application/json");
        let answer = call.body(body.to_owned()).send().await.ok()?;
        let status = answer.status().as_u16();
        let _text = answer.text().await;
        Some(status)
    }

    /// Every operation, with bodies that are taken and others that are not.
    async fn ask_everything(&mut self) {
        for operation in careful_operations() {
            let method: Method = operation.method.as_str().parse().unwrap();
            for path in [
                operation.path(),
                operation.path_to("canary%0A%22%7D"),
                operation.path_to("%1B%5B2J"),
            ] {
                for body in [
                    json!({ "userId": "user123", "reason": secret("reason"), "tenantId": "tenant1", "taskType": secret("type"),
                        "actionType": secret("action"), "sessionId": "session_1", "message": secret("message"),
                        "context": { "password": secret("context") }, "inputData": secret("input"), "progress": 5,
                        "description": secret("description"), "errorMessage": secret("error"), "stepId": secret("step") }).to_string(),
                    json!([{ "id": secret("step"), "status": secret("status") }]).to_string(),
                    json!({ secret("name"): 1, "userId": secret("user") }).to_string(),
                    r#"{"userId":"canary-broken"#.to_owned(),
                    "canary\0\n{\"level\":\"ERROR\",\"forged\":6}".to_owned(),
                ] {
                    for prefix in PREFIXES {
                        self.call(method.clone(), &format!("{prefix}{path}"), &body).await;
                    }
                }
            }
        }
        self.call(Method::GET, "/canary/no/such/address", "").await;
    }

    /// Calls that are refused, some of them only after all parsers.
    async fn knock(&mut self) {
        let address = self.service.base.strip_prefix("http://").unwrap().to_owned();
        let basic = STANDARD.encode("canary:canary");
        let mut authorizations = vec![
            format!("Basic {basic}"),
            "canary".to_owned(),
            "Bearer canary.canary.canary".to_owned(),
        ];
        authorizations.extend(
            forged::all(JWT_SECRET.as_bytes()).into_iter().map(|forged| forged.authorization),
        );
        let claims = json!({ "sub": "x\",\"forged\":7,\"y\":\"", "email": "canary@mail" });
        authorizations.push(format!(
            "Bearer {}",
            forged::token(JWT_SECRET.as_bytes(), &forged::claims(&claims))
        ));
        for authorization in authorizations {
            for tail in [
                "X-Tenant-ID: tenant1\r\n\r\n",
                "Content-Length: x\r\n\r\n",
                "X: canary\r\n canary\r\n\r\n",
            ] {
                let head = format!(
                    "GET /main/agent/tasks?canary=canary HTTP/1.1\r\nHost: canary\r\nConnection: close\r\nAuthorization: {authorization}\r\n{tail}"
                );
                let _answer = raw(address.clone(), head.into_bytes()).await;
                self.calls += 1;
            }
        }
    }

    /// Requests as agents may have written them to Redis, and a click on each.
    async fn decide_odd_requests(&mut self) {
        let client = redis::Client::open(redis_url(self.redis.port())).unwrap();
        let mut agents = client.get_multiplexed_async_connection().await.unwrap();
        for (field, value) in [
            ("context", json!({ "password": secret("context") })),
            ("status", secret("status").into()),
            ("sessionId", secret("session").into()),
            ("tenantId", json!({ "canary": FORGED })),
            ("userId", json!([secret("user")])),
            ("requestId", secret("request").into()),
            ("actionType", json!({ "canary": 1 })),
        ] {
            let asked = Asked::new();
            let id = asked.id.clone();
            ask(&mut agents, &asked.with(field, value)).await;
            self.decide("approve", &id).await;
        }
        for text in ["canary", "{\"canary", "\"canary\"", FORGED] {
            let key = "hitl:request:req_odd";
            redis::cmd("SET").arg(key).arg(text).exec_async(&mut agents).await.unwrap();
            self.decide("reject", "req_odd").await;
        }
        redis::cmd("DEL").arg("hitl:request:req_odd").exec_async(&mut agents).await.unwrap();
        redis::cmd("LPUSH")
            .arg("hitl:request:req_odd")
            .arg("canary")
            .exec_async(&mut agents)
            .await
            .unwrap();
        self.decide("approve", "req_odd").await;
    }

    async fn decide(&mut self, verb: &str, id: &str) -> Option<u16> {
        let body = json!({ "userId": "user123", "reason": secret("reason") }).to_string();
        self.call(Method::POST, &format!("/aura/hitl/{verb}/{id}"), &body).await
    }

    async fn register(&mut self, id: &str) {
        let body = json!({
            "requestId": id, "sessionId": format!("session_{id}"), "actionType": secret("action"),
            "context": { "password": secret("context") }, "message": secret("message"),
        });
        self.call(Method::POST, "/aura/hitl/requests", &body.to_string()).await;
    }

    /// Stores that are frozen, gone, and back with another password; each is noticed.
    async fn lose_the_stores(&mut self, report: &mut Report) {
        for id in ["frozen", "gone", "locked"] {
            self.register(id).await;
        }
        self.postgres.freeze();
        let frozen = self.decide("approve", "frozen").await;
        self.postgres.thaw();
        self.redis.freeze();
        self.call(Method::GET, "/aura/hitl/signals/session_1", "").await;
        self.redis.thaw();
        self.postgres.crash();
        let gone = self.decide("approve", "gone").await;
        self.postgres.start_again().await;
        report.demand((frozen, gone) == (Some(503), Some(503)), || {
            format!("no 503: {frozen:?}, {gone:?}")
        });
        self.redis.kill();
        self.redis.set_arguments(&["--requirepass", "canary-another-password"]);
        self.redis.start_again().await;
        self.decide("approve", "locked").await;
        self.call(Method::GET, "/health/ready", "").await;
    }

    /// Stops the service and looks at each of its lines.
    async fn read(mut self, report: &mut Report) -> (usize, usize) {
        let status = self.service.stop().await;
        report.demand(status.success(), || format!("it ended with {status}"));
        report
            .demand(self.service.stderr().is_empty(), || "something on standard error".to_owned());
        let text = self.service.stdout();
        let lines =
            text.lines().filter_map(|line| wrong_with(line, &self.token)).collect::<Vec<_>>();
        report.wrongs("lines in disorder", &lines);
        (self.calls, text.lines().count())
    }
}

fn redis_url(port: u16) -> String {
    format!("redis://:{REDIS_PASSWORD}@127.0.0.1:{port}")
}

/// A secret that must not be in the log, with a text that would forge a line of it.
fn secret(what: &str) -> String {
    format!("canary-{what}{FORGED}")
}

/// What is wrong with a line of the log, if anything is.
fn wrong_with(line: &str, token: &str) -> Option<String> {
    let shown = line.chars().take(300).collect::<String>();
    let Ok(fields) = serde_json::from_str::<Map<String, Value>>(line) else {
        return Some(format!("no JSON object: {shown}"));
    };
    let is_whole = ["timestamp", "level", "target"].iter().all(|name| {
        fields.get(*name).is_some_and(|value| value.as_str().is_some_and(|text| !text.is_empty()))
    });
    let is_forged = fields.contains_key("forged")
        || fields.get("span").is_some_and(|span| span.get("forged").is_some());
    let (_, signature) = token.rsplit_once('.').unwrap();
    let basic = STANDARD.encode("canary:canary");
    let leak = [CANARY, token, signature, &basic]
        .into_iter()
        .find(|secret| line.to_lowercase().contains(&secret.to_lowercase()));
    if let Some(leak) = leak {
        return Some(format!("a secret ({leak}): {shown}"));
    }
    (is_forged || !is_whole || line.chars().any(char::is_control))
        .then(|| format!("a line that is none: {shown}"))
}

/// Starts that fail, each for a secret that is wrong: one line each, and not the secret.
async fn bad_starts(report: &mut Report) -> usize {
    let nobody = free_port();
    let secret = ("JWT_SECRET", JWT_SECRET.to_owned());
    let redis = ("REDIS_URL", redis_url(nobody));
    let database = |url: String| vec![("DATABASE_URL", url), secret.clone(), redis.clone()];
    let cases = [
        vec![("JWT_SECRET", "canary-short".to_owned())],
        vec![("JWT_SECRET_FILE", "/no/such\nfile".to_owned())],
        database(format!("postgres://user:canary@127.0.0.1:{nobody}/hitl")),
        database("postgres://user:canary@[db/hitl".to_owned()),
        database("postgres://user:canary@db:canary/hitl".to_owned()),
        database(format!("postgres://user:canary@127.0.0.1:{nobody}/hitl?sslmode=sometimes")),
        database(format!("postgres://user:canary@127.0.0.1:{nobody}/hitl?sslmod=canary{FORGED}")),
        database("mysql://user:canary@db/hitl".to_owned()),
        vec![("DATABASE_URL", "sqlite:///proc/no/such\nfolder".to_owned())],
        vec![("REDIS_URL", "http://:canary@redis:6379".to_owned()), secret.clone()],
        vec![("REDIS_URL", "redis://:canary@redis:canary".to_owned()), secret.clone()],
        vec![("REDIS_URL", "redis+canary://x".to_owned()), secret.clone()],
        vec![("REDIS_PASSWORD", "canary".to_owned()), secret.clone()],
        vec![
            ("REDIS_HOST", "redis".to_owned()),
            ("REDIS_PASSWORD", "canary".to_owned()),
            ("REDIS_PORT", "many".to_owned()),
            secret.clone(),
        ],
    ];
    let mut wrong = Vec::new();
    let count = cases.len();
    for case in cases {
        let folder = TempDir::new().unwrap();
        let program =
            Program::of(&binary("AURA_HITL_BINARY"), &folder, &["serve"]).with("RUST_LOG", "trace");
        let program = case.iter().fold(program, |program, (name, value)| program.with(name, value));
        let output = tokio::task::spawn_blocking(move || program.output()).await.unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        wrong.extend(out.lines().filter_map(|line| wrong_with(line, "canary.canary")));
        let is_one_line = err.lines().count() == 1 && err.starts_with("aura-hitl: ");
        if output.status.code() != Some(1) || !is_one_line || err.contains(CANARY) {
            wrong.push(format!("{:?}: {err}", case[0].0));
        }
    }
    report.wrongs("starts that fail otherwise", &wrong);
    count
}

/// A panic: its line is as well-formed as any other.
async fn panics(report: &mut Report) {
    let points = format!("deciding=panic({})", FORGED.replace(['(', ')'], ""));
    let mut nest = Nest::start("info", "AURA_HITL_CRASH_BINARY", &points).await;
    nest.register("panics").await;
    let answer = nest.decide("approve", "panics").await;
    let told = nest
        .service
        .log()
        .iter()
        .any(|line| line["message"].as_str().is_some_and(|text| text.contains("panicked")));
    report.demand(answer == Some(500) && told, || {
        format!("the panic was answered {answer:?}, told: {told}")
    });
    nest.read(report).await;
}

pub async fn canaries(_scale: Scale, report: &mut Report) {
    let (mut calls, mut lines) = (0, 0);
    for level in ["info", "trace"] {
        let mut nest = Nest::start(level, "AURA_HITL_BINARY", "").await;
        nest.ask_everything().await;
        nest.knock().await;
        nest.decide_odd_requests().await;
        nest.lose_the_stores(report).await;
        let (made, written) = nest.read(report).await;
        calls += made;
        lines += written;
    }
    panics(report).await;
    let starts = bad_starts(report).await;
    report.count(calls, "calls with secrets");
    report.count(starts, "failed starts");
    report.count(lines, "lines of the log at info and trace, each one JSON object");
    report.demand(lines > calls, || "the log is empty".to_owned());
}
