//! Ten thousand agents wait on one process while people decide: does each get its own answer, how
//! soon, and what does their waiting cost?
//!
//! Agents are plain sockets here, so that the client's own work is small. Both share the machine's
//! cores with the service and its stores, so only the comparison with few agents says something.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::ids::{TenantId, UserId};
use aura_hitl::identity;
use aura_hitl::identity::JwtConfig;
use clap::Args;
use futures_util::StreamExt as _;
use reqwest::Client;
use rustix::process::{Resource, Rlimit};
use secrecy::SecretString;
use serde_json::json;
use support::{PrivatePostgres, PrivateRedis, Program, Running};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::usage::{cpu, memory};

const SECRET: &str = "a-secret-for-benchmarks-0123456789";

/// How much of it.
#[derive(Args)]
pub struct Options {
    /// Agents that wait.
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Decisions a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Seconds over which to measure what waiting costs.
    #[arg(long, default_value_t = 20)]
    idle: u64,
}

/// What one round showed.
struct Round {
    /// From a person's click to the agent, for each decision, shortest first.
    delays: Vec<Duration>,
    missed: usize,
    /// Resident, in bytes: before anybody waited, and when all did.
    idle_memory: u64,
    memory: u64,
    files: usize,
    /// Of one core.
    idle_cpu: f64,
}

/// Measures few agents, then many, each on a fresh process.
pub async fn run(options: &Options) -> ExitCode {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let files = Rlimit { current: maximum, maximum };
    let needed = options.agents as u64 + 1000;
    let is_raised = rustix::process::setrlimit(Resource::Nofile, files).is_ok();
    if !is_raised || maximum.is_some_and(|maximum| maximum < needed) {
        eprintln!("this needs {needed} open files: ulimit -Hn {needed}");
        return ExitCode::FAILURE;
    }
    let few = round(10, options).await;
    let many = round(options.agents, options).await;
    let per_agent =
        many.memory.saturating_sub(many.idle_memory) as f64 / options.agents as f64 / 1024.0;
    println!(
        "{:>8} {:>8} {:>8} {:>9} {:>9} {:>10} {:>7} {:>10}",
        "agents", "decided", "missed", "p50 ms", "p99 ms", "RSS MiB", "files", "idle CPU %"
    );
    for (agents, round) in [(10, &few), (options.agents, &many)] {
        println!(
            "{agents:>8} {:>8} {:>8} {:>9.1} {:>9.1} {:>10.1} {:>7} {:>10.2}",
            round.delays.len(),
            round.missed,
            millis(&round.delays, 50),
            millis(&round.delays, 99),
            round.memory as f64 / 1024.0 / 1024.0,
            round.files,
            round.idle_cpu * 100.0,
        );
    }
    let later = millis(&many.delays, 99) - millis(&few.delays, 99);
    println!(
        "per waiting agent: {per_agent:.1} KiB; p99 with {} agents: {later:+.1} ms",
        options.agents
    );
    if few.missed + many.missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn millis(delays: &[Duration], percent: usize) -> f64 {
    let place = (delays.len() * percent).div_ceil(100).saturating_sub(1);
    delays.get(place).map_or(f64::NAN, |delay| delay.as_secs_f64() * 1000.0)
}

async fn round(agents: usize, options: &Options) -> Round {
    let (postgres, redis) = (PrivatePostgres::start().await, PrivateRedis::start().await);
    let folder = TempDir::new().unwrap();
    let binary = std::env::var("AURA_HITL_BINARY").expect("scripts/bench sets AURA_HITL_BINARY");
    let mut service = Program::of(binary.as_ref(), &folder, &["serve"])
        .with("DATABASE_URL", postgres.url())
        .with("REDIS_URL", redis.url())
        .with("JWT_SECRET", SECRET)
        .with("RUST_LOG", "warn,aura_hitl::server=info")
        .with("AURA_HITL_RATE_LIMIT_PER_SECOND", "0")
        .with("AURA_HITL_MAX_CONNECTIONS", (agents + 1000).to_string())
        .with("AURA_HITL_MAX_WAITS_PER_PERSON", (agents + 1).to_string())
        .serve()
        .await;
    let people = Arc::new(People::new(&service));
    let requests = (0..agents).map(|number| format!("req_{number:012x}")).collect::<Vec<_>>();
    let registering = requests.iter().map(|request| people.register(request));
    futures_util::stream::iter(registering).buffer_unordered(32).collect::<()>().await;

    let idle_memory = memory(service.pid());
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut waiting = JoinSet::new();
    for (number, request) in requests.iter().enumerate() {
        let agent = Agent {
            people: Arc::clone(&people),
            request: request.clone(),
            streams: number % 2 == 0,
        };
        let heard = heard.clone();
        waiting.spawn(async move {
            agent.waits().await;
            let _counted = heard.send((agent.request, Instant::now()));
        });
        if number % 50 == 49 {
            // No faster than they are accepted.
            sleep(Duration::from_millis(20)).await;
        }
    }
    sleep(Duration::from_secs(3)).await;
    let (pid, before) = (service.pid(), Instant::now());
    let used = cpu(pid);
    sleep(Duration::from_secs(options.idle)).await;
    let idle_cpu = cpu(pid).saturating_sub(used).as_secs_f64() / before.elapsed().as_secs_f64();
    let (memory, files) =
        (memory(pid), std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());

    let mut clicked = HashMap::new();
    let mut ticks = interval(Duration::from_secs(1) / options.rate);
    let mut clicks = JoinSet::new();
    for request in &requests {
        ticks.tick().await;
        clicked.insert(request.clone(), Instant::now());
        let (people, request) = (Arc::clone(&people), request.clone());
        clicks.spawn(async move { people.approve(&request).await });
    }
    clicks.join_all().await;
    let mut delays = Vec::new();
    while delays.len() < requests.len() {
        let Ok(Some((request, at))) = timeout(Duration::from_secs(15), hearing.recv()).await else {
            break;
        };
        delays.push(at - clicked[&request]);
    }
    delays.sort_unstable();
    let missed = requests.len() - delays.len();
    waiting.abort_all();
    service.stop().await;
    Round { delays, missed, idle_memory, memory, files, idle_cpu }
}

/// Whoever clicks, and whoever registers.
struct People {
    client: Client,
    base: String,
    token: String,
}

impl People {
    fn new(service: &Running) -> Self {
        let jwt = JwtConfig::with_secret(SecretString::from(SECRET));
        let (user, tenant) =
            (UserId::parse("user123").unwrap(), TenantId::parse("tenant1").unwrap());
        let token = identity::mint(&jwt, &user, &tenant, Role::User, 7200).unwrap();
        Self { client: Client::new(), base: service.base.clone(), token }
    }

    async fn post(&self, path: &str, body: serde_json::Value) {
        let call = self.client.post(format!("{}/aura/hitl/{path}", self.base));
        let call = call
            .bearer_auth(&self.token)
            .header("X-Tenant-ID", "tenant1")
            .header("X-User-ID", "user123");
        let answer = call.json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    async fn register(&self, request: &str) {
        let body = json!({ "requestId": request, "sessionId": format!("session_{request}"), "actionType": "send_email" });
        self.post("requests", body).await;
    }

    async fn approve(&self, request: &str) {
        self.post(&format!("approve/{request}"), json!({ "userId": "user123" })).await;
    }
}

/// Waits for the answer to one request.
struct Agent {
    people: Arc<People>,
    request: String,
    streams: bool,
}

impl Agent {
    async fn waits(&self) {
        let People { base, token, .. } = &*self.people;
        let request = &self.request;
        let path = if self.streams { "/stream" } else { "?waitSeconds=55" };
        let call = format!(
            "GET /aura/hitl/signals/session_{request}{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nX-Tenant-ID: tenant1\r\n\r\n"
        );
        let mut socket = TcpStream::connect(base.strip_prefix("http://").unwrap()).await.unwrap();
        let (mut answer, mut some) = (String::new(), [0; 2048]);
        socket.write_all(call.as_bytes()).await.unwrap();
        loop {
            let count = socket.read(&mut some).await.unwrap();
            assert!(count > 0, "the service has closed the connection: {answer}");
            answer += std::str::from_utf8(&some[..count]).unwrap();
            if answer.contains("approval") {
                assert!(answer.contains(request.as_str()), "{request} was told {answer}");
                return;
            }
            if answer.contains("No signal found") {
                answer.clear();
                socket.write_all(call.as_bytes()).await.unwrap();
            }
        }
    }
}
