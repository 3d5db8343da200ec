//! A service of one's own for each test: port 0, a fresh database, its own session names. Both
//! modes run through the same code; production needs the servers that `scripts/test` starts.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aura_hitl::app::Replica;
use aura_hitl::auth;
use aura_hitl::config::{Config, LedgerConfig};
use aura_hitl::core::Core;
use aura_hitl::courier::{Courier, RedisSettings, Sent, StoredRequest};
use aura_hitl::domain::approver::{Caller, Role, Via};
use aura_hitl::domain::audit::AuditEntry;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{Candidate, Decision, Delivery, Record, State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId, TenantId, UserId};
use aura_hitl::domain::request::{ApprovalRequest, Origin};
use aura_hitl::domain::task::{Task, TaskFilter};
use aura_hitl::ledger::{LEASE, Ledger, Pooler, Recorded, Writing};
use aura_hitl::routes::{Access, Entry};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use redis::AsyncCommands as _;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

/// The two ways to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// SQLite, in-process courier.
    Embedded,
    /// Postgres and Redis.
    Production,
}

/// Defines one test per mode; the body gets a [`TestApp`].
#[macro_export]
macro_rules! both_modes {
    ($(#[$doc:meta])* async fn $name:ident($app:ident: TestApp) $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$doc])*
            async fn check($app: $crate::helpers::TestApp) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn embedded() {
                check($crate::helpers::TestApp::spawn($crate::helpers::Mode::Embedded).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn production() {
                check($crate::helpers::TestApp::spawn($crate::helpers::Mode::Production).await).await;
            }
        }
    };
}

/// Defines a test of what agents on Redis need, which the embedded mode does not have.
#[macro_export]
macro_rules! over_redis {
    ($(#[$doc:meta])* async fn $name:ident($app:ident: TestApp) $body:block) => {
        $(#[$doc])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let $app: TestApp = $crate::helpers::TestApp::spawn($crate::helpers::Mode::Production).await;
            $body
        }
    };
}

/// A variable that `scripts/test` sets; a missing one fails the test, it never skips it.
pub fn test_variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"))
}

/// A word that no other test uses.
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(
        "{prefix}_{}_{count}_{}",
        std::process::id(),
        &uuid::Uuid::new_v4().simple().to_string()[..8]
    )
}

/// A new, empty Postgres database.
pub async fn fresh_database() -> String {
    let url = test_variable("TEST_DATABASE_URL");
    let name = unique("hitl");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    let (server, _database) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// The settings of a mode, on a free port. The folder holds what the embedded mode keeps.
pub async fn config(mode: Mode, folder: &TempDir) -> Config {
    let mut config = Config::embedded_in(folder.path()).unwrap();
    // A test's few users ask for more in a second than people do. `limits.rs` sets limits again.
    config.rate_limit = None;
    if mode == Mode::Production {
        config.ledger = LedgerConfig::Postgres {
            url: SecretString::from(fresh_database().await),
            pooler: Pooler::None,
            max_connections: 10,
        };
        config.redis =
            Some(RedisSettings::Url(SecretString::from(test_variable("TEST_REDIS_URL"))));
    }
    config
}

/// A running service and the people around it.
pub struct TestApp {
    pub mode: Mode,
    pub config: Config,
    pub core: Core,
    pub base: String,
    pub client: Client,
    replica: Option<Replica>,
    _data_dir: TempDir,
}

impl TestApp {
    /// A service with the settings of a mode, on the machine's clock.
    pub async fn spawn(mode: Mode) -> Self {
        Self::spawn_with(mode, Clock::System, |_| {}).await
    }

    /// The same with other settings or another clock.
    pub async fn spawn_with(mode: Mode, clock: Clock, adjust: impl FnOnce(&mut Config)) -> Self {
        let folder = TempDir::new().unwrap();
        let mut config = config(mode, &folder).await;
        adjust(&mut config);
        let replica = Replica::start(&config, clock).await.unwrap();
        Self {
            mode,
            base: format!("http://{}", replica.address),
            core: replica.core.clone(),
            client: Client::new(),
            config,
            replica: Some(replica),
            _data_dir: folder,
        }
    }

    /// Stops the service and starts it again on the same stores.
    pub async fn restart(&mut self) {
        self.replica.take().unwrap().stop().await;
        let replica = Replica::start(&self.config, Clock::System).await.unwrap();
        self.base = format!("http://{}", replica.address);
        self.core = replica.core.clone();
        self.client = Client::new();
        self.replica = Some(replica);
    }

    pub fn token(&self, user: &str, tenant: &str, role: Role) -> String {
        let (user, tenant) = (UserId::parse(user).unwrap(), TenantId::parse(tenant).unwrap());
        auth::mint(&self.config.jwt, &user, &tenant, role, 600).unwrap()
    }

    /// A call by a user, with token and both identity headers.
    pub fn call(&self, who: Who<'_>, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.token(who.user, who.tenant, who.role))
            .header("X-Tenant-ID", who.tenant)
            .header("X-User-ID", who.user)
    }

    pub async fn get(&self, who: Who<'_>, path: &str) -> Answer {
        Answer::of(self.call(who, Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, who: Who<'_>, path: &str, body: Value) -> Answer {
        Answer::of(self.call(who, Method::POST, path).json(&body).send().await.unwrap()).await
    }

    pub async fn approve(&self, who: Who<'_>, id: &str) -> Answer {
        let path = format!("/api/aura/hitl/approve/{id}");
        self.post(who, &path, json!({ "userId": who.user })).await
    }

    pub async fn reject(&self, who: Who<'_>, id: &str, reason: Option<&str>) -> Answer {
        let path = format!("/api/aura/hitl/reject/{id}");
        let mut body = json!({ "userId": who.user });
        if let Some(reason) = reason {
            body["reason"] = reason.into();
        }
        self.post(who, &path, body).await
    }

    /// `GET …/signals/{session}`, percent-encoding the session.
    pub async fn poll(&self, who: Who<'_>, session: &str, wanted: Option<&str>) -> Option<Value> {
        let mut url = reqwest::Url::parse(&format!("{}/aura/hitl/signals", self.base)).unwrap();
        url.path_segments_mut().unwrap().push(session);
        if let Some(wanted) = wanted {
            url.query_pairs_mut().append_pair("requestId", wanted);
        }
        let path = url.as_str().strip_prefix(&self.base).unwrap().to_owned();
        let answer = self.get(who, &path).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.body.get("data").map(|data| serde_json::from_str(data.as_str().unwrap()).unwrap())
    }

    /// Writes a request and its session's pointer to Redis as Aura does. Without Redis, registers it.
    pub async fn ask(&self, asked: &Asked) {
        if let Courier::InProcess = self.core.courier {
            let name = |field: &str, other| asked.document[field].as_str().unwrap_or(other);
            let owner = Who {
                user: name("userId", ALICE.user),
                tenant: name("tenantId", ALICE.tenant),
                role: Role::User,
            };
            self.register(owner, asked).await.assert(201, "");
            return;
        }
        self.put(&asked.id, &asked.document.to_string()).await;
        let name = |field: &str, other: &str| match &asked.document[field] {
            Value::Null => json!(other),
            named => named.clone(),
        };
        let pointer = json!({
            "sessionId": asked.session, "requestId": asked.id,
            "userId": name("userId", "user123"), "tenantId": name("tenantId", "tenant1"),
        });
        self.point(&asked.session, &pointer.to_string()).await;
    }

    /// The signal under the session's key, if there is one.
    pub async fn signal(&self, session: &str) -> Option<String> {
        self.core.courier.signal(&SessionId::parse(session).unwrap()).await.unwrap()
    }

    /// The task row that a request has.
    pub async fn task_of(&self, request: &str) -> aura_hitl::domain::task::Task {
        let record = self.record(request).await;
        self.core.ledger.find_task(&record.tenant, &record.task).await.unwrap().unwrap()
    }

    /// The ledger's row of a request; in these tests no two tenants have the same id, unless they
    /// say so.
    pub async fn record(&self, request: &str) -> aura_hitl::domain::decision::Record {
        find_record(&self.core.ledger, request).await.unwrap()
    }

    /// The ledger's row of a tenant's request.
    pub async fn record_of(&self, tenant: &str, request: &str) -> Option<Record> {
        let (tenant, id) = (TenantId::parse(tenant).unwrap(), RequestId::parse(request).unwrap());
        self.core.ledger.find_request(&tenant, &id).await.unwrap()
    }
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub user: &'a str,
    pub tenant: &'a str,
    pub role: Role,
}

/// The person that requests name.
pub const ALICE: Who<'static> = Who { user: "user123", tenant: "tenant1", role: Role::User };
/// A colleague.
pub const BOB: Who<'static> = Who { user: "bob", tenant: "tenant1", role: Role::User };
/// Somebody of another tenant.
pub const MALLORY: Who<'static> = Who { user: "mallory", tenant: "tenant2", role: Role::User };
/// An admin of the first tenant.
pub const ADMIN: Who<'static> = Who { user: "root", tenant: "tenant1", role: Role::Admin };

/// A request as Aura writes it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub id: String,
    pub session: String,
    pub document: Value,
}

impl Asked {
    pub fn new() -> Self {
        Self::in_session(&unique("session_user123"))
    }

    pub fn in_session(session: &str) -> Self {
        let id = unique("req");
        let document = json!({
            "requestId": id, "sessionId": session, "actionType": "send_email",
            "context": { "to": "a@b.c" }, "status": "pending", "userId": "user123",
            "tenantId": "tenant1", "createdAt": 8_123_456_789_u64,
        });
        Self { id, session: session.to_owned(), document }
    }

    /// The same with a field set, or removed when the value is null.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        if value.is_null() {
            self.document.as_object_mut().unwrap().remove(field);
        } else {
            self.document[field] = value;
        }
        self
    }
}

impl Asked {
    /// The body that registers it over HTTP.
    pub fn registration(&self) -> Value {
        let mut body = json!({ "requestId": self.id, "sessionId": self.session });
        for field in ["actionType", "message", "context", "taskId", "planSteps"] {
            if let Some(value) = self.document.get(field) {
                body[field] = value.clone();
            }
        }
        body
    }
}

/// What a call was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Answer {
    /// All of it; of a stream, what comes at once.
    pub async fn of(mut response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let is_stream = headers.get("Content-Type").is_some_and(|kind| kind == "text/event-stream");
        let text = if is_stream {
            let mut text = String::new();
            let reading = async {
                while let Ok(Some(some)) = response.chunk().await {
                    text += std::str::from_utf8(&some).unwrap();
                }
            };
            let _goes_on = tokio::time::timeout(Duration::from_millis(200), reading).await;
            text.replace(": keep-alive\n\n", "")
        } else {
            response.text().await.unwrap()
        };
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { status, headers, text, body }
    }

    pub fn code(&self) -> &str {
        self.body["errorCode"].as_str().unwrap_or("")
    }

    pub fn data(&self) -> &Value {
        &self.body["data"]
    }

    /// Checks status and error code at once.
    #[track_caller]
    pub fn assert(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status.as_u16(), self.code()), (status, code), "{}", self.text);
        self
    }
}

/// Waits up to 10 s for something that happens in the background.
pub async fn eventually<T>(look: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(std::time::Duration::from_secs(10), look).await
}

/// The same for what others take their time over.
pub async fn eventually_within<T>(
    limit: std::time::Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, looking).await.expect("it never happened")
}

impl Who<'_> {
    /// The caller that the API makes of a token.
    pub fn caller(self) -> Caller {
        Caller {
            user: UserId::parse(self.user).unwrap(),
            tenant: TenantId::parse(self.tenant).unwrap(),
            role: self.role,
            token_id: None,
            via: Via::default(),
        }
    }

    /// This person's decision.
    pub fn decides(self, verdict: Verdict, at: DateTime<Utc>) -> Decision {
        Decision { verdict, by: UserId::parse(self.user).unwrap(), at }
    }
}

impl Asked {
    /// What the use cases make of it, for calling the ledger directly; it lives half an hour.
    pub fn candidate(&self, origin: Origin, now: DateTime<Utc>) -> Candidate {
        let id = RequestId::parse(&self.id).unwrap();
        let request = ApprovalRequest::read(&id, self.document.to_string()).unwrap();
        let (tenant, user) = (request.tenant.clone(), request.user.clone());
        let expires_at = now + TimeDelta::seconds(1800);
        Candidate { request, origin, tenant, user, created_at: now, expires_at }
    }
}

impl TestApp {
    /// Registers a request over HTTP, as agents do that cannot reach Redis.
    pub async fn register(&self, who: Who<'_>, asked: &Asked) -> Answer {
        self.post(who, "/aura/hitl/requests", asked.registration()).await
    }

    /// Waits until what a request owes Redis is there, or need not be any more.
    pub async fn settled(&self, request: &str) -> Record {
        eventually(async || {
            let record = self.record(request).await;
            (record.delivery != Delivery::Owed).then_some(record)
        })
        .await
    }

    /// Puts exactly this text under a request's key.
    pub async fn put(&self, id: &str, document: &str) {
        put_request(&self.core.courier, id, document).await;
    }

    /// Makes exactly this text a session's pointer.
    pub async fn point(&self, session: &str, pointer: &str) {
        put_session(&self.core.courier, session, pointer).await;
    }

    /// What is under a request's key.
    pub async fn stored(&self, id: &str) -> StoredRequest {
        let id = RequestId::parse(id).unwrap();
        self.core.courier.find_request(&id).await.unwrap().unwrap()
    }

    /// Whether the ledger has never heard of a request.
    pub async fn is_unrecorded(&self, id: &str) -> bool {
        find_record(&self.core.ledger, id).await.is_none()
    }

    /// Whether the ledger knows no decision on a request.
    pub async fn is_undecided(&self, id: &str) -> bool {
        let record = find_record(&self.core.ledger, id).await;
        record.is_none_or(|record| record.state == State::Pending)
    }

    /// Every task of a tenant.
    pub async fn tasks(&self, tenant: &str) -> Vec<Task> {
        let tenant = TenantId::parse(tenant).unwrap();
        let filter = TaskFilter { tenant, user: None, status: None, page: 0, size: 1000 };
        self.core.ledger.list_tasks(&filter).await.unwrap().0
    }

    /// Runs a statement on the ledger's database, as an operator's or agent's own SQL would.
    pub async fn sql(&self, statement: &'static str) {
        match (&self.config.ledger, self.core.ledger.sqlite_pool()) {
            (LedgerConfig::Postgres { url, .. }, _) => {
                let mut connection = PgConnection::connect(url.expose_secret()).await.unwrap();
                connection.execute(statement).await.unwrap();
            }
            (_, pool) => {
                pool.unwrap().execute(statement).await.unwrap();
            }
        }
    }
}

impl Answer {
    /// The body without what differs from call to call.
    pub fn bare(&self) -> Value {
        let mut body = self.body.clone();
        for field in ["timestamp", "traceId"] {
            body.as_object_mut().unwrap().remove(field);
        }
        body
    }

    /// All that a caller sees of the answer, to the letter, but its time.
    pub fn seen(&self) -> (StatusCode, BTreeMap<String, String>, String) {
        // The CORS middleware names the exposed headers in any order.
        let differs = ["date", "access-control-expose-headers"];
        let headers = self.headers.iter().filter(|(name, _)| !differs.contains(&name.as_str()));
        let headers = headers.map(|(name, value)| (name.to_string(), format!("{value:?}")));
        let time = self.body["timestamp"].as_str().unwrap_or("no time");
        (self.status, headers.collect(), self.text.replace(time, ""))
    }

    /// Checks that this is the truth about the decision that stands: success for whoever made it,
    /// and for everybody else a conflict that names it.
    #[track_caller]
    pub fn assert_agrees(&self, record: &Record, user: &str, verdict: &str) {
        let State::Decided(standing) = &record.state else { panic!("undecided: {record:?}") };
        let stands = standing.verdict.status();
        if standing.by.as_str() == user && stands == verdict {
            self.assert(200, "");
        } else {
            self.assert(409, "E3006");
            assert_eq!(self.data()["decidedBy"], standing.by.as_str());
        }
        assert_eq!(self.data()["status"], stands);
        assert_eq!(self.data()["reason"].as_str(), standing.verdict.reason());
    }
}

/// A connection to the tests' Redis.
pub async fn redis() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(test_variable("TEST_REDIS_URL")).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Every command that a Redis was given while `work` ran, as `MONITOR` shows it.
pub async fn told_to_redis(client: &redis::Client, work: impl Future<Output = ()>) -> Vec<String> {
    let monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.into_on_message::<String>();
    let end = unique("end-of-monitoring");
    work.await;
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("ECHO").arg(&end).exec_async(&mut connection).await.unwrap();
    let mut told = Vec::new();
    let watching = async {
        while let Some(line) = lines.next().await {
            if line.contains(&end) {
                return;
            }
            told.push(line);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), watching).await.expect("the monitor went silent");
    told
}

/// A subscriber.
pub struct Ear {
    subscription: Box<redis::aio::PubSub>,
    channel: String,
}

impl Ear {
    /// On a session's channel.
    pub async fn on(session: &str) -> Self {
        Self::on_redis(format!("hitl:channel:{session}")).await
    }

    /// On a channel of Redis, or on all that a pattern with a `*` names.
    pub async fn on_redis(channel: String) -> Self {
        let client = redis::Client::open(test_variable("TEST_REDIS_URL")).unwrap();
        let mut subscription = Box::new(client.get_async_pubsub().await.unwrap());
        if channel.contains('*') {
            subscription.psubscribe(&channel).await.unwrap();
        } else {
            subscription.subscribe(&channel).await.unwrap();
        }
        Self { subscription, channel }
    }

    /// The next message; waits up to 10 s for it.
    pub async fn next(&mut self) -> String {
        let mut messages = self.subscription.on_message();
        let hearing = tokio::time::timeout(Duration::from_secs(10), messages.next()).await;
        hearing.expect("nothing was published").unwrap().get_payload().unwrap()
    }

    /// Everything that was published until now: Redis keeps the order, so whatever does not come
    /// before a last word of ours was not said.
    pub async fn heard(&mut self) -> Vec<String> {
        let last = unique("last");
        let channel = self.channel.replace('*', "end");
        redis().await.publish::<_, _, ()>(channel, &last).await.unwrap();
        let mut messages = Vec::new();
        loop {
            let message = self.next().await;
            if message == last {
                return messages;
            }
            messages.push(message);
        }
    }
}

/// How many subscribers a signal reached, which went out.
#[track_caller]
pub fn reached(sent: &Sent) -> i64 {
    let Sent::Published { listeners: Some(listeners), .. } = sent else { panic!("{sent:?}") };
    *listeners
}

/// Both addresses of everything.
pub const PREFIXES: [&str; 2] = ["/api", ""];

/// A route of the service, and what the API document says about it.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: Method,
    /// The address, with its ids still in braces.
    pub pattern: &'static str,
    pub access: Access,
    pub document: Value,
}

impl Operation {
    /// The address with ids filled in.
    pub fn path(&self) -> String {
        self.path_to("x-1")
    }

    /// The address with this id, as it goes over the wire.
    pub fn path_to(&self, id: &str) -> String {
        ["{requestId}", "{sessionId}", "{taskId}"]
            .into_iter()
            .fold(self.pattern.to_owned(), |path, name| path.replace(name, id))
    }

    /// Both addresses with this id.
    pub fn paths_to(&self, id: &str) -> [String; 2] {
        PREFIXES.map(|prefix| format!("{prefix}{}", self.path_to(id)))
    }

    /// What the address names: `requestId`, `sessionId`, `taskId`, or nothing.
    pub fn id(&self) -> Option<&'static str> {
        Some(self.pattern.split_once('{')?.1.split_once('}')?.0)
    }

    pub fn is_open(&self) -> bool {
        self.access == Access::Open
    }

    /// Whether its answer does not end.
    pub fn is_stream(&self) -> bool {
        self.pattern.ends_with("/stream")
    }

    pub fn decides(&self) -> bool {
        self.access == Access::Approver
    }

    /// The body that the document gives for an example, as this person would send it; none when
    /// the operation takes none.
    pub fn body(&self, who: Who<'_>) -> Option<Value> {
        let content = &self.document["requestBody"]["content"]["application/json"];
        let mut body = content.get("example")?.clone();
        for (field, value) in [("userId", who.user), ("tenantId", who.tenant)] {
            if let Some(named) = body.get_mut(field) {
                *named = value.into();
            }
        }
        Some(body)
    }

    /// Largest body that it reads, in bytes.
    pub fn body_limit(&self) -> usize {
        if self.decides() { 16 * 1024 } else { 1024 * 1024 }
    }
}

/// Every route.
pub fn operations() -> Vec<Operation> {
    let document = serde_json::to_value(aura_hitl::api::document::document()).unwrap();
    let operation = |entry: Entry| Operation {
        document: document["paths"][entry.path][entry.method.as_str().to_lowercase()].clone(),
        // actix has HTTP types of its own.
        method: entry.method.as_str().parse().unwrap(),
        pattern: entry.path,
        access: entry.access,
    };
    aura_hitl::routes::table().into_iter().map(operation).collect()
}

/// The routes that end by themselves and that change nothing unless they are sent the right body.
pub fn careful_operations() -> Vec<Operation> {
    let mut operations = operations();
    operations.retain(|one| !one.is_stream() && !one.pattern.ends_with("/cancel"));
    operations
}

/// What came back on a socket of one's own.
#[derive(Debug)]
pub struct RawAnswer {
    /// Everything, as it came.
    pub text: String,
    /// Whether the service closed the connection, rather than our patience ending.
    pub is_closed: bool,
}

impl RawAnswer {
    /// The first answer.
    pub fn first(&self) -> Answer {
        let (head, body) = self.text.split_once("\r\n\r\n").unwrap_or((&self.text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no answer: {:?}", self.text));
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: reqwest::header::HeaderMap::new(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
            text: self.text.clone(),
        }
    }

    /// How many answers there are.
    pub fn count(&self) -> usize {
        self.text.matches("HTTP/1.1 ").count() - self.text.matches("HTTP/1.1 100 ").count()
    }
}

impl TestApp {
    /// Sends bytes as they are and reads until the service closes the connection.
    pub async fn raw(&self, bytes: impl Into<Vec<u8>>) -> RawAnswer {
        raw(self.base.strip_prefix("http://").unwrap().to_owned(), bytes.into()).await
    }

    /// The first lines of a call on a socket of one's own, up to the token.
    pub fn head(&self, who: Who<'_>, method: &Method, path: &str) -> String {
        head(&self.token(who.user, who.tenant, who.role), method, path)
    }
}

/// Sends bytes as they are and reads until the service closes the connection.
pub async fn raw(address: impl ToSocketAddrs + Send + 'static, bytes: Vec<u8>) -> RawAnswer {
    let (text, is_closed) = tokio::task::spawn_blocking(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The service may answer and close before it has read everything.
        let _sent = socket.write_all(&bytes);
        let mut answer = Vec::new();
        let mut some = [0; 4096];
        let is_closed = loop {
            match socket.read(&mut some) {
                Ok(0) => break true,
                Ok(count) => answer.extend(&some[..count]),
                Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        };
        (String::from_utf8_lossy(&answer).into_owned(), is_closed)
    })
    .await
    .unwrap();
    RawAnswer { text, is_closed }
}

/// The first lines of a call on a socket of one's own, up to the token.
pub fn head(token: &str, method: &Method, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n")
}

/// What ends the head of a call on a socket of one's own, and the only one on it.
pub fn framed(body: &str) -> String {
    let length = body.len();
    format!(
        "Connection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

impl Who<'_> {
    /// The identity headers, as lines.
    pub fn lines(self) -> String {
        format!("X-Tenant-ID: {}\r\nX-User-ID: {}\r\n", self.tenant, self.user)
    }
}

/// `%`-encodes every byte that is not a letter, a digit or one of `-._~`.
pub fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Tenants whose requests tests look up by their ids alone.
const TENANTS: [&str; 8] =
    ["tenant1", "tenant2", "tenant3", "7", "José", "김철수", "Doe, Jane", "50%25"];

/// The ledger's row of a request, whosever it is.
pub async fn find_record(ledger: &Ledger, request: &str) -> Option<Record> {
    let id = RequestId::parse(request).unwrap();
    for tenant in TENANTS {
        let tenant = TenantId::parse(tenant).unwrap();
        if let Some(record) = ledger.find_request(&tenant, &id).await.unwrap() {
            return Some(record);
        }
    }
    ledger.find_request_of_redis(&id).await.unwrap()
}

/// Puts this text under a request's key, as agents do.
pub async fn put_request(courier: &Courier, id: &str, document: &str) {
    assert!(matches!(courier, Courier::Redis(_)), "no agent on Redis in the embedded mode");
    let key = format!("hitl:request:{id}");
    // Agents are more patient than the service is.
    eventually(async || courier.set(&key, document, 1800).await.ok()).await;
}

/// Makes this text a session's pointer, as agents do.
pub async fn put_session(courier: &Courier, session: &str, pointer: &str) {
    assert!(matches!(courier, Courier::Redis(_)), "no agent on Redis in the embedded mode");
    let key = format!("hitl:session:{session}");
    eventually(async || courier.set(&key, pointer, 3600).await.ok()).await;
}

/// Records a decision on the ledger only, as a process does that dies before it signals.
pub async fn decide_on_ledger(
    ledger: &Ledger,
    who: Who<'_>,
    asked: &Asked,
    origin: Origin,
    verdict: Verdict,
    now: DateTime<Utc>,
) -> Recorded {
    let (candidate, caller) = (asked.candidate(origin, now), who.caller());
    let state = &State::Decided(who.decides(verdict, now));
    let (held_for, trace_parent) = (LEASE, None);
    let audit = AuditEntry::None;
    let writing = Writing {
        candidate: &candidate,
        state,
        caller: &caller,
        now,
        held_for,
        if_match: None,
        only_newest: false,
        alone_since: None,
        trace_parent,
        audit,
    };
    ledger.record_outcome(&writing).await.unwrap()
}
