//! The environment of a row: its own Postgres and Redis, replicas of the release binary, agents,
//! people who click, and a subscriber of all channels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::ids::{TenantId, UserId};
use aura_hitl::identity;
use aura_hitl::identity::JwtConfig;
use futures_util::StreamExt as _;
use redis::aio::MultiplexedConnection;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::belongings::Service;
use support::history::{Aftermath, Call, Choice, Delivered, Ended, History, Row, check};
use support::{
    Answer, Asked, PrivatePostgres, PrivateRedis, Program, RawAnswer, Running, Who, eventually,
    free_port, kill, unique,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::report::Report;

/// The JWT secret.
pub const SECRET: &str = "a secret that the Auth server shares with us";
/// The tenant of most callers.
pub const TENANT: &str = "tenant1";
/// How long a person waits for an answer. Every answer must come sooner.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The binary under test: the release build, or its twin with crash points compiled in.
pub fn binary(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    PathBuf::from(path.unwrap_or_else(|| panic!("{variable} is not set: run scripts/faults")))
}

/// One process of the service, on a port that it keeps over restarts.
pub struct Replica {
    pub port: u16,
    variables: Vec<(String, String)>,
    binary: PathBuf,
    folder: TempDir,
    running: Option<Running>,
}

impl Replica {
    fn new(variables: &[(&str, String)]) -> Self {
        let own = |&(name, ref value): &(&str, String)| (name.to_owned(), value.clone());
        Self {
            port: free_port(),
            variables: variables.iter().map(own).collect(),
            binary: binary("AURA_HITL_BINARY"),
            folder: TempDir::new().unwrap(),
            running: None,
        }
    }

    /// Sets a variable of its environment from the next start on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.variables.retain(|(set, _)| set != name);
        self.variables.push((name.to_owned(), value.into()));
    }

    /// Runs the build with crash points from the next start on; each is `name=action`, as the
    /// crate `fail` reads them, joined by `;`.
    pub fn crash_at(&mut self, points: &str) {
        self.binary = binary("AURA_HITL_CRASH_BINARY");
        self.set("FAILPOINTS", points);
    }

    /// Starts it and waits until it listens.
    pub async fn start(&mut self) {
        assert!(self.running.is_none(), "it is running");
        let program = Program::of(&self.binary, &self.folder, &["serve"]);
        let program =
            self.variables.iter().fold(program, |program, (name, value)| program.with(name, value));
        self.running = Some(program.with("PORT", self.port.to_string()).serve().await);
    }

    /// `kill -9`, unless it is gone already.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Waits for the process to end by itself; says whether it did.
    pub async fn dies_within(&mut self, limit: Duration) -> bool {
        let began = Instant::now();
        while self.is_alive() {
            if began.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// Freezes the process.
    pub fn freeze(&mut self) {
        kill("-STOP", self.process().pid());
    }

    /// Lets a frozen process go on.
    pub fn thaw(&mut self) {
        kill("-CONT", self.process().pid());
    }

    /// Whether the process is still there.
    pub fn is_alive(&mut self) -> bool {
        self.running.as_mut().is_some_and(Running::is_alive)
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Running {
        self.running.as_mut().expect("it is not running")
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn base(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Resident memory in MiB.
    pub fn memory(&mut self) -> f64 {
        let pid = self.process().pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
    }
}

/// Everything that a row needs.
pub struct World {
    pub postgres: PrivatePostgres,
    pub redis: PrivateRedis,
    pub replicas: Vec<Replica>,
    pub people: People,
    pub listener: Listener,
    variables: Vec<(&'static str, String)>,
}

/// How long no signal may be owed before all count as sent: a replica notices a restarted Redis, and
/// owes the lost signals again, within about a second.
const QUIET_INTERVAL: Duration = Duration::from_millis(1500);

impl World {
    /// Starts the stores and this many replicas.
    pub async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, &[]).await
    }

    /// Like `start`, with further settings for every replica.
    pub async fn start_with(replicas: usize, settings: &[(&'static str, &str)]) -> Self {
        // So that requests are known before they are decided.
        let events = ["--notify-keyspace-events", "Kg$x"];
        let (postgres, redis) =
            (PrivatePostgres::start().await, PrivateRedis::start_with(&events).await);
        let mut variables = vec![
            ("DATABASE_URL", postgres.url()),
            ("REDIS_URL", redis.url()),
            ("JWT_SECRET", SECRET.to_owned()),
            ("RUST_LOG", "info,aura_hitl::api::call_span=warn".to_owned()),
            // Few people make many calls here. Only the row on floods sets a limit.
            ("AURA_HITL_RATE_LIMIT_PER_SECOND", "0".to_owned()),
        ];
        variables.extend(settings.iter().map(|&(name, value)| (name, value.to_owned())));
        let mut world = Self {
            listener: Listener::start(redis.url()).await,
            replicas: (0..replicas).map(|_| Replica::new(&variables)).collect(),
            people: People::new(),
            postgres,
            redis,
            variables,
        };
        for replica in &mut world.replicas {
            replica.start().await;
        }
        for replica in &world.replicas {
            world.people.until_ready(&replica.base()).await;
        }
        world
    }

    /// Another replica, not started yet.
    pub fn another_replica(&self) -> Replica {
        Replica::new(&self.variables)
    }

    /// A running replica that reaches Postgres and not Redis: what it decides is owed, and due at
    /// once, to the relays of the others.
    pub async fn replica_without_redis(&self) -> Replica {
        let mut replica = self.another_replica();
        replica.set("REDIS_URL", format!("redis://127.0.0.1:{}", free_port()));
        replica.start().await;
        replica
    }

    /// One more replica not started yet.
    pub fn add_replica(&mut self) -> &mut Replica {
        self.replicas.push(self.another_replica());
        self.replicas.last_mut().unwrap()
    }

    /// Where each replica is reached.
    pub fn bases(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::base).collect()
    }

    /// A connection to Redis for the agents.
    pub async fn agents(&self) -> MultiplexedConnection {
        self.redis.client().get_multiplexed_async_connection().await.unwrap()
    }

    /// New requests, each in a session of its own, written as Aura writes them.
    pub async fn ask_many(&self, count: usize) -> Vec<Asked> {
        let mut redis = self.agents().await;
        let asked = (0..count).map(|_| Asked::new()).collect::<Vec<_>>();
        for asked in &asked {
            ask(&mut redis, asked).await;
        }
        asked
    }

    pub async fn database(&self) -> PgConnection {
        PgConnection::connect(&self.postgres.url()).await.unwrap()
    }

    /// A count from the ledger.
    pub async fn number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&mut self.database().await).await.unwrap()
    }

    /// Every row of the ledger, but for requests that were only seen in Redis.
    pub async fn rows(&self) -> Vec<Row> {
        type Columns = (
            String,
            String,
            bool,
            String,
            Option<String>,
            Option<i64>,
            Option<String>,
            String,
            bool,
        );
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT request_id, session_id, origin = 'http', status, decided_by,
                    floor(extract(epoch FROM decided_at))::bigint, reason, coalesce(d.delivery, r.delivery),
                    EXISTS (SELECT 1 FROM agent_task t
                             WHERE t.task_id = r.task_id AND t.tenant_id = r.tenant_id)
               FROM hitl_request r LEFT JOIN hitl_delivery d USING (tenant_id, request_id)
              WHERE NOT (origin = 'redis' AND status IN ('pending', 'expired'))",
        )
        .fetch_all(&mut self.database().await)
        .await
        .unwrap();
        let row = |(
            request,
            session,
            is_registered,
            status,
            by,
            decided_at,
            reason,
            delivery,
            has_task,
        ): Columns| {
            let decision = by.map(|by| Choice { by, status: status.clone(), reason });
            Row {
                request,
                session,
                is_registered,
                status,
                decision,
                decided_at,
                delivery,
                has_task,
            }
        };
        rows.into_iter().map(row).collect()
    }

    /// Every key in Redis that a pattern names.
    async fn keys(&self, pattern: &str) -> Vec<String> {
        let mut redis = self.agents().await;
        let mut cursor = 0_u64;
        let mut found = Vec::new();
        loop {
            let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg(&["MATCH", pattern, "COUNT", "1000"])
                .query_async(&mut redis)
                .await
                .unwrap();
            found.extend(keys);
            if next == 0 {
                return found;
            }
            cursor = next;
        }
    }

    /// Every signal key in Redis with its text.
    pub async fn signal_keys(&self) -> BTreeMap<String, String> {
        let mut redis = self.agents().await;
        let mut found = BTreeMap::new();
        for key in self.keys("hitl:signal:*").await {
            let text: Option<String> =
                redis::cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
            let session = key.strip_prefix("hitl:signal:").unwrap().to_owned();
            found.extend(text.map(|text| (session, text)));
        }
        found
    }

    /// The content of both stores, to compare it later, without requests that were only seen in Redis.
    pub async fn everything(&self) -> BTreeSet<String> {
        let rows = "SELECT 'hitl_request ' || r::text FROM hitl_request r
                     WHERE NOT (origin = 'redis' AND status IN ('pending', 'expired'))
                    UNION ALL SELECT 'hitl_delivery ' || d::text FROM hitl_delivery d
                    UNION ALL SELECT 'agent_task ' || t::text FROM agent_task t";
        let rows: Vec<String> =
            sqlx::query_scalar(rows).fetch_all(&mut self.database().await).await.unwrap();
        let mut all = BTreeSet::from_iter(rows);
        let mut redis = self.agents().await;
        for key in self.keys("*").await {
            let value: Option<Vec<u8>> =
                redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
            all.insert(format!("{key} {value:?}"));
        }
        all
    }

    /// The content of both stores once no signal is owed.
    pub async fn settled(&self) -> BTreeSet<String> {
        self.quiet_within(Duration::from_secs(30)).await.expect("signals are still owed");
        self.everything().await
    }

    /// Checks that the stores did not change, and that no replica died or panicked.
    pub async fn check_untouched(&mut self, report: &mut Report, before: &BTreeSet<String>) {
        let now = self.everything().await;
        let changed = before.symmetric_difference(&now).cloned().collect::<Vec<_>>();
        report.wrongs("changes in the stores", &changed);
        self.check_alive(report);
    }

    /// Checks that no replica died or panicked.
    pub fn check_alive(&mut self, report: &mut Report) {
        for replica in &mut self.replicas {
            report.demand(replica.is_alive(), || "the process is gone".to_owned());
            let said = replica.process().stdout() + &replica.process().stderr();
            let panics = said.lines().filter(|line| line.contains("panic"));
            report.wrongs("panics", &panics.map(ToOwned::to_owned).collect::<Vec<_>>());
        }
    }

    /// Sends bytes to the first replica as they are.
    pub async fn raw(&self, bytes: impl Into<Vec<u8>>) -> RawAnswer {
        support::raw(self.replicas[0].address(), bytes.into()).await
    }

    /// The first lines of a call on a socket of one's own, up to the token.
    pub fn head(&self, who: Who<'_>, method: &Method, path: &str) -> String {
        support::head(&self.people.token(who), method, path)
    }

    /// Waits until no signal is owed. Returns how long that took, or `None` after `limit`.
    pub async fn quiet_within(&self, limit: Duration) -> Option<Duration> {
        let began = Instant::now();
        let mut quiet_since = None;
        while began.elapsed() < limit + QUIET_INTERVAL {
            let owed = "SELECT count(*) FROM hitl_delivery WHERE delivery = 'owed'";
            if self.number(owed).await == 0 {
                let since = *quiet_since.get_or_insert_with(|| began.elapsed());
                if began.elapsed() >= since + QUIET_INTERVAL {
                    return Some(since);
                }
            } else {
                quiet_since = None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Makes the ledger owe the signals of these decided requests, as a replica leaves it that dies
    /// between the decision and the signal.
    pub async fn owe(&self, requests: &[String]) {
        sqlx::query(
            "UPDATE hitl_delivery
                SET delivery = 'owed', owed_since = clock_timestamp(), due_at = clock_timestamp(),
                    attempts = 0, sent_at = NULL, sent_to = NULL, listeners = NULL
              WHERE request_id = ANY($1)",
        )
        .bind(requests)
        .execute(&mut self.database().await)
        .await
        .unwrap();
    }

    /// Waits up to 10 s until what a request owes Redis is there, or need not be any more.
    pub async fn delivered(&self, request: &str) {
        let mut database = self.database().await;
        let query = "SELECT coalesce(d.delivery, r.delivery)
                       FROM hitl_request r LEFT JOIN hitl_delivery d USING (tenant_id, request_id)
                      WHERE request_id = $1";
        eventually(async || {
            let delivery: Option<String> = sqlx::query_scalar(query)
                .bind(request)
                .fetch_optional(&mut database)
                .await
                .unwrap();
            delivery.filter(|delivery| delivery != "owed").map(drop)
        })
        .await;
    }

    /// The content of both stores now.
    pub async fn aftermath(&self) -> Aftermath {
        self.listener.caught_up(self.agents().await).await;
        Aftermath {
            rows: self.rows().await,
            heard: self.listener.heard(),
            keys: self.signal_keys().await,
            ..Aftermath::default()
        }
    }

    /// Polls for signals that were neither published nor are under a key, as their agents do.
    async fn poll_for_the_rest(&self, aftermath: &mut Aftermath) {
        let base = self.replicas[0].base();
        let heard = aftermath.heard.iter().map(|(session, _)| session).collect::<BTreeSet<_>>();
        let is_quiet = |row: &&Row| !heard.contains(&row.session) && !aftermath.has_signalled(row);
        let rest = aftermath.rows.iter().filter(is_quiet).cloned().collect::<Vec<_>>();
        for row in rest {
            let answer = self.people.poll(&base, &row.session, Some(&row.request)).await;
            if let Ok(Some(signal)) = answer {
                aftermath.polled.insert(row.request, signal);
            }
        }
    }

    /// Waits until no signal is owed, counts the calls and runs the checker.
    pub async fn check(
        &self,
        report: &mut Report,
        limit: Duration,
        delivered: Delivered,
    ) -> Aftermath {
        match self.quiet_within(limit).await {
            Some(took) => report.at_most(took, limit, "all signals out after"),
            None => report.demand(false, || format!("signals still owed after {limit:?}")),
        }
        let mut aftermath = self.aftermath().await;
        if delivered == Delivered::Found {
            self.poll_for_the_rest(&mut aftermath).await;
            report.count(aftermath.polled.len(), "found only by polling");
        }
        let calls = self.people.history.calls();
        report.count(calls.len(), "calls");
        report.count(self.people.history.count(|ended| *ended == Ended::Ok), "acknowledged");
        report.count(self.people.history.count(|ended| *ended == Ended::Unknown), "unknown");
        report.wrongs("wrong", &check(&calls, &aftermath, delivered));
        report.wrongs("unexpected answers", &self.people.surprises());
        aftermath
    }
}

/// Writes a request and its session's pointer as Aura does.
pub async fn ask(redis: &mut MultiplexedConnection, asked: &Asked) {
    try_ask(redis, asked).await.unwrap();
}

/// Like `ask`, on a Redis that may not answer.
pub async fn try_ask(redis: &mut MultiplexedConnection, asked: &Asked) -> redis::RedisResult<()> {
    let pointer = json!({
        "sessionId": asked.session, "requestId": asked.id, "userId": asked.document["userId"],
        "tenantId": asked.document["tenantId"],
    });
    try_write(redis, asked, pointer.to_string().as_bytes()).await
}

async fn try_write(
    redis: &mut MultiplexedConnection,
    asked: &Asked,
    pointer: &[u8],
) -> redis::RedisResult<()> {
    redis::pipe()
        .set_ex(format!("hitl:request:{}", asked.id), asked.document.to_string(), 1800)
        .ignore()
        .set_ex(format!("hitl:session:{}", asked.session), pointer, 3600)
        .ignore()
        .exec_async(redis)
        .await
}

impl Service for World {
    fn call(&self, who: Who<'_>, method: Method, path: &str) -> RequestBuilder {
        self.people.call_by(who, method, &format!("{}{path}", self.replicas[0].base()))
    }

    async fn write(&self, _owner: Who<'static>, asked: &Asked, pointer: &str) {
        try_write(&mut self.agents().await, asked, pointer.as_bytes()).await.unwrap();
    }
}

/// A user's token as the Auth server issues it.
pub fn token(user: &str, tenant: &str) -> String {
    mint(Who { user, tenant, role: Role::User })
}

fn mint(who: Who<'_>) -> String {
    let config = JwtConfig::with_secret(SecretString::from(SECRET));
    let (user, tenant) = (UserId::parse(who.user).unwrap(), TenantId::parse(who.tenant).unwrap());
    identity::mint(&config, &user, &tenant, who.role, 7200).unwrap()
}

/// The people who click, and the recorder beside them. Cheap to clone.
#[derive(Clone)]
pub struct People {
    pub history: Arc<History>,
    pub client: Client,
    tokens: Arc<Mutex<BTreeMap<String, String>>>,
    surprises: Arc<Mutex<Vec<String>>>,
}

impl People {
    fn new() -> Self {
        Self {
            history: Arc::default(),
            client: Client::builder().timeout(ANSWER_TIMEOUT).build().unwrap(),
            tokens: Arc::default(),
            surprises: Arc::default(),
        }
    }

    /// A person's token, the same for two hours.
    pub fn token(&self, who: Who<'_>) -> String {
        let mut tokens = self.tokens.lock().unwrap();
        tokens.entry(format!("{who:?}")).or_insert_with(|| mint(who)).clone()
    }

    /// A call by a person, with token and identity headers.
    pub fn call_by(&self, who: Who<'_>, method: Method, url: &str) -> RequestBuilder {
        self.client
            .request(method, url)
            .bearer_auth(self.token(who))
            .header("X-Tenant-ID", who.tenant)
            .header("X-User-ID", who.user)
    }

    /// A call of a user of [`TENANT`], with token and identity headers.
    pub fn call(&self, method: Method, url: &str, user: &str) -> RequestBuilder {
        self.call_by(Who { user, tenant: TENANT, role: Role::User }, method, url)
    }

    /// One click, recorded.
    pub async fn decide(&self, base: &str, request: &str, choice: &Choice) -> Ended {
        self.click(base, request, choice).await.0
    }

    /// The same, with the answer's status and body.
    pub async fn click(
        &self,
        base: &str,
        request: &str,
        choice: &Choice,
    ) -> (Ended, Option<(u16, Value)>) {
        let verb = if choice.status == "approved" { "approve" } else { "reject" };
        let mut body = json!({ "userId": choice.by });
        if let Some(reason) = &choice.reason {
            body["reason"] = reason.as_str().into();
        }
        let url = format!("{base}/api/aura/hitl/{verb}/{request}");
        let sent = self.call(reqwest::Method::POST, &url, &choice.by).json(&body).send().await;
        let answer = match sent {
            Err(_broken) => None,
            Ok(response) => {
                let status = response.status().as_u16();
                if matches!(status, 429 | 503) && !response.headers().contains_key("retry-after") {
                    self.surprise(format!("{request}: {status} without Retry-After"));
                }
                response.json::<Value>().await.ok().map(|body| (status, body))
            }
        };
        let ended = answer.as_ref().map_or(Ended::Unknown, |(status, body)| {
            self.understand(request, choice, *status, body)
        });
        self.history.record(Call {
            request: request.to_owned(),
            choice: choice.clone(),
            ended: ended.clone(),
        });
        (ended, answer)
    }

    /// Clicks until an answer names the decision, as a person does who got no answer.
    pub async fn decide_surely(&self, base: &str, request: &str, choice: &Choice) -> Ended {
        for _ in 0..100 {
            let ended = self.decide(base, request, choice).await;
            match ended {
                Ended::Unknown | Ended::Fail { status: 503, .. } => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                ended => return ended,
            }
        }
        self.surprise(format!("{request}: a hundred clicks were not answered"));
        Ended::Unknown
    }

    /// Registers a request over HTTP as its user; says the answer's status.
    pub async fn register(&self, base: &str, asked: &Asked) -> Option<u16> {
        let mut body = json!({ "requestId": asked.id, "sessionId": asked.session });
        for field in ["actionType", "context", "taskId", "expiresInSeconds"] {
            if let Some(value) = asked.document.get(field) {
                body[field] = value.clone();
            }
        }
        let url = format!("{base}/api/aura/hitl/requests");
        let sent = self.call(reqwest::Method::POST, &url, "user123").json(&body).send().await;
        sent.ok().map(|answer| answer.status().as_u16())
    }

    /// `GET signals`: the signal, or `None` when there is none; an error is the answer's status.
    pub async fn poll(
        &self,
        base: &str,
        session: &str,
        wanted: Option<&str>,
    ) -> Result<Option<String>, u16> {
        let url = format!("{base}/api/aura/hitl/signals/{session}");
        let call = self.call(reqwest::Method::GET, &url, "user123");
        let call = wanted.iter().fold(call, |call, id| call.query(&[("requestId", id)]));
        let answer = call.send().await.map_err(|_broken| 0_u16)?;
        let status = answer.status().as_u16();
        let body = answer.json::<Value>().await.map_err(|_broken| 0_u16)?;
        if status == 200 { Ok(body["data"].as_str().map(ToOwned::to_owned)) } else { Err(status) }
    }

    /// Polls until there is an answer, as an agent does: a busy replica may say 503.
    pub async fn poll_surely(
        &self,
        base: &str,
        session: &str,
        wanted: Option<&str>,
    ) -> Option<String> {
        for _ in 0..100 {
            match self.poll(base, session, wanted).await {
                Ok(found) => return found,
                Err(_busy) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        self.surprise(format!("{session}: a hundred polls were not answered"));
        None
    }

    /// What an answer says.
    pub fn understand(&self, request: &str, choice: &Choice, status: u16, body: &Value) -> Ended {
        let data = &body["data"];
        match status {
            200 => {
                let is_ours = data["requestId"] == request
                    && data["status"] == choice.status.as_str()
                    && data["reason"].as_str() == choice.reason.as_deref();
                if !is_ours {
                    self.surprise(format!("{request}: {choice:?} was answered {body}"));
                }
                Ended::Ok
            }
            // Only this sentence promises that nothing was recorded.
            503 if body["message"].as_str().is_some_and(|text| text.contains("nothing was")) => {
                Ended::Fail { status, standing: None }
            }
            503 => Ended::Unknown,
            409 if data["decidedBy"].is_string() => {
                let text = |name: &str| data[name].as_str().map(ToOwned::to_owned);
                let standing = Choice {
                    by: text("decidedBy").unwrap_or_default(),
                    status: text("status").unwrap_or_default(),
                    reason: text("reason"),
                };
                Ended::Fail { status, standing: Some(standing) }
            }
            500.. => {
                self.surprise(format!("{request}: {status} {body}"));
                Ended::Unknown
            }
            status => Ended::Fail { status, standing: None },
        }
    }

    fn surprise(&self, what: String) {
        self.surprises.lock().unwrap().push(what);
    }

    /// Answers that the contract does not allow.
    pub fn surprises(&self) -> Vec<String> {
        self.surprises.lock().unwrap().clone()
    }

    /// Whether a replica says that it is ready.
    pub async fn is_ready(&self, base: &str) -> bool {
        let asked = self.client.get(format!("{base}/health/ready")).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    /// Waits up to 30 s for a replica to be ready; says how long that took.
    pub async fn until_ready(&self, base: &str) -> Duration {
        let began = Instant::now();
        while !self.is_ready(base).await {
            assert!(began.elapsed() < Duration::from_secs(30), "{base} is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }
}

/// Subscribes to all sessions' channels. Subscribes again when Redis is back.
pub struct Listener {
    heard: Arc<Mutex<Vec<(Instant, String, String)>>>,
    marks: Arc<AtomicUsize>,
    listening: JoinHandle<()>,
}

/// The channel of the harness's end markers, which are no signals.
const MARKER_CHANNEL: &str = "hitl:channel:mark-of-the-harness";

impl Listener {
    pub async fn start(url: String) -> Self {
        let (heard, marks) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicUsize>::default());
        let (hearing, marking) = (heard.clone(), marks.clone());
        let (subscribed, first) = tokio::sync::oneshot::channel();
        let mut subscribed = Some(subscribed);
        let listening = tokio::spawn(async move {
            let client = redis::Client::open(url).unwrap();
            loop {
                if let Ok(mut subscription) = client.get_async_pubsub().await
                    && subscription.psubscribe("hitl:channel:*").await.is_ok()
                {
                    if let Some(subscribed) = subscribed.take() {
                        let _starter_is_gone = subscribed.send(());
                    }
                    let mut messages = subscription.on_message();
                    while let Some(message) = messages.next().await {
                        let channel = message.get_channel_name();
                        if channel == MARKER_CHANNEL {
                            marking.fetch_add(1, Ordering::SeqCst);
                            continue;
                        }
                        let session = channel.strip_prefix("hitl:channel:").unwrap().to_owned();
                        let text = message.get_payload().unwrap();
                        hearing.lock().unwrap().push((Instant::now(), session, text));
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        first.await.unwrap();
        Self { heard, marks, listening }
    }

    /// From now on nobody is subscribed.
    pub fn stop(&self) {
        self.listening.abort();
    }

    /// Session and text of every message so far, in order.
    pub fn heard(&self) -> Vec<(String, String)> {
        let heard = self.heard.lock().unwrap();
        heard.iter().map(|(_at, session, text)| (session.clone(), text.clone())).collect()
    }

    /// When the first message of a session came after `since`.
    pub fn heard_since(&self, session: &str, since: Instant) -> Option<Instant> {
        let heard = self.heard.lock().unwrap();
        heard.iter().find(|(at, to, _text)| to == session && *at >= since).map(|(at, ..)| *at)
    }

    /// Waits until everything published so far has been heard: Redis keeps the order.
    pub async fn caught_up(&self, mut redis: MultiplexedConnection) {
        let before = self.marks.load(Ordering::SeqCst);
        let began = Instant::now();
        while self.marks.load(Ordering::SeqCst) == before {
            assert!(began.elapsed() < Duration::from_secs(10), "the listener hears nothing");
            let _listeners: i64 = redis::cmd("PUBLISH")
                .arg(MARKER_CHANNEL)
                .arg("")
                .query_async(&mut redis)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// The answer once there is one: a machine with other work may be too slow for its stores at first.
pub async fn answered(ask: impl AsyncFn() -> Answer) -> Answer {
    for _ in 0..10 {
        let answer = ask().await;
        if answer.status != StatusCode::SERVICE_UNAVAILABLE {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ask().await
}

/// Runs a call and says how long it took.
pub async fn timed<T>(call: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    let value = call.await;
    (value, began.elapsed())
}

/// This many people work through a list at once. `work` gets each item's index.
pub async fn at_once<T, R>(
    items: Vec<T>,
    people: usize,
    work: impl AsyncFn(usize, T) -> R,
) -> Vec<R> {
    futures_util::stream::iter(items.into_iter().enumerate())
        .map(|(place, item)| work(place, item))
        .buffer_unordered(people)
        .collect()
        .await
}

/// Numbers between -1 and 1, spread evenly, the same in every run.
pub fn spread(place: usize) -> f64 {
    let place = u32::try_from(place).expect("fewer than four thousand million");
    let golden = 0.618_033_988_749_895 * f64::from(place);
    2.0 * golden.fract() - 1.0
}

/// The smallest value that so many percent do not exceed.
pub fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(place).copied().unwrap_or_default()
}

/// A session's name that nobody else uses.
pub fn new_session() -> String {
    unique("session_user123")
}
