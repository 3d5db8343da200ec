//! How fast, beside how fast it could be: the steps of a decision alone, then the service, in turns,
//! so that what else the machine does meets both alike.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::helpers::eventually_within;
use crate::limits;
use crate::load::{Run, Watched, wrk};
use crate::report::Report;
use crate::servers::Running;
use crate::world::{Asked, Call, Database, World, binary, script};

/// How many at once.
pub const AT_ONCE: [usize; 3] = [1, 16, 64];
/// More decisions than any run makes in a second.
const MOST_PER_SECOND: u64 = 8000;

pub const STATEMENT: &str = "limit: decision statement";
pub const GET: &str = "limit: Redis GET";
pub const SIGNAL: &str = "limit: Redis SET + PUBLISH";
pub const COURIER: &str = "the courier's steps of a decision";
pub const AUTHENTICATE: &str = "limit: HTTP, authenticate only";
pub const CLIENT: &str = "wrk: GET /health/live";
pub const DECIDE: &str = "decision";

/// What to measure, and for how long.
#[derive(Args)]
pub struct Options {
    /// Only these parts; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Seconds for each run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Runs of each cell, of which the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where the figures go as JSON.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench.json"))]
    json: PathBuf,
}

/// A part of the whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
enum Part {
    /// Decisions, beside the limits of their steps.
    Decisions,
}

impl Options {
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    pub fn runs(&self) -> usize {
        self.runs
    }
}

/// Measures, and says what came of it.
pub async fn run(options: &Options) -> ExitCode {
    let wanted: HashSet<Part> = if options.only.is_empty() {
        Part::value_variants().iter().copied().collect()
    } else {
        options.only.iter().copied().collect()
    };
    let mut report = Report::default();
    if wanted.contains(&Part::Decisions) {
        decisions(options, &mut report).await;
    }
    println!("{}", report.table());
    let json = serde_json::to_string_pretty(&report.json(&machine())).unwrap();
    std::fs::write(&options.json, json).unwrap();
    eprintln!("{}", options.json.display());
    ExitCode::SUCCESS
}

/// Decisions and the limits of their steps, in turns.
async fn decisions(options: &Options, report: &mut Report) {
    let world = World::start().await;
    let limit = world.database("steps").await;
    let mut bench = Bench::start(&world, "service", options.time()).await;
    bench.warm_up().await;
    let (time, watched) = (options.time(), bench.watched.clone());
    for _run in 0..options.runs {
        for at_once in AT_ONCE {
            let run = limits::statement(&world, &limit, at_once, time, &watched).await;
            report.add(STATEMENT, at_once, run);
            report.add(GET, at_once, limits::get(&world, at_once, time, &watched).await);
            report.add(SIGNAL, at_once, limits::signal(&world, at_once, time, &watched).await);
            report.add(COURIER, at_once, limits::courier(&world, at_once, time, &watched).await);
            world.forget().await;
            report.add(CLIENT, at_once, bench.health(at_once).await);
            report.add(AUTHENTICATE, at_once, bench.authenticate(at_once).await);
            report.add(DECIDE, at_once, bench.decide(at_once).await);
        }
    }
    let decide = AT_ONCE.map(|at_once| report.cell(DECIDE, at_once).unwrap());
    for (at_once, decide) in AT_ONCE.into_iter().zip(&decide) {
        let composite = report.composite(&[AUTHENTICATE, GET, SIGNAL, STATEMENT], at_once).unwrap();
        report.fact(format!("composite limit of a decision × {at_once}"), composite, "/s");
        let part = decide.per_second / composite * 100.0;
        if at_once == 64 {
            report.at_least("decisions of their composite limit × 64", part, 50.0, "%");
        } else {
            report.fact(format!("decisions of their composite limit × {at_once}"), part, "%");
        }
    }
    let p50 = |name| report.cell(name, 1).unwrap().millis[0];
    let steps = p50(STATEMENT) + p50(GET) + p50(SIGNAL);
    report.fact("p50 of the statement + of the Redis steps × 1", steps, "ms");
    let times = decide[0].millis[0] / steps;
    report.at_most("a decision's p50 by that of its steps × 1", times, 2.0, "×");
}

/// A service with a database of its own, and what is asked of it.
pub struct Bench<'a> {
    pub world: &'a World,
    pub service: Running,
    pub database: Database,
    /// The service, Postgres, Redis.
    pub watched: Watched,
    time: Duration,
}

impl<'a> Bench<'a> {
    pub async fn start(world: &'a World, name: &str, time: Duration) -> Self {
        let mut database = world.database(name).await;
        let service = world.program(&database.url).serve().await;
        let pids = [service.pid(), postgres_pid(&mut database.connection).await, redis_pid(world).await];
        Self { world, service, database, watched: Watched(pids.to_vec()), time }
    }

    /// What runs for the first time is slower.
    pub async fn warm_up(&mut self) {
        let time = std::mem::replace(&mut self.time, Duration::from_secs(2));
        self.authenticate(16).await;
        self.decide(16).await;
        self.time = time;
    }

    /// A script of these calls for wrk.
    pub fn script(&self, calls: &[Call]) -> PathBuf {
        let file = self.world.folder.path().join("calls");
        std::fs::write(&file, script(&self.world.people, calls)).unwrap();
        file
    }

    pub async fn play(&self, calls: &[Call], at_once: usize) -> Run {
        wrk(&self.service.base, &self.script(calls), at_once, self.time, &self.watched).await
    }

    /// The least that a call can cost: what the client alone takes.
    pub async fn health(&self, at_once: usize) -> Run {
        let run = self.play(&[Call::get(0, "/health/live".to_owned())], at_once).await;
        assert_eq!(run.refused, 0);
        run
    }

    /// Says who is calling and is told, with no question to any store, that no task has such an id.
    pub async fn authenticate(&self, at_once: usize) -> Run {
        let people = 0..self.world.people.len();
        let call = |person| Call::get(person, "/api/main/agent/tasks/no%20id".to_owned());
        let run = self.play(&people.map(call).collect::<Vec<_>>(), at_once).await;
        assert_eq!(run.refused, run.calls, "not every call was told that the id is none");
        run
    }

    /// Approves requests that agents have just written, and makes sure that every one is recorded
    /// and signalled.
    pub async fn decide(&mut self, at_once: usize) -> Run {
        let count = usize::try_from(MOST_PER_SECOND * self.time.as_secs()).unwrap();
        let asked = Asked::fresh(count);
        self.world.ask(&asked).await;
        let calls = asked.iter().map(Asked::approval).collect::<Vec<_>>();
        let began = aura_hitl::domain::clock::Clock::System.now();
        let run = self.play(&calls, at_once).await;
        assert!(run.calls < calls.len() as u64, "too few requests were written");
        assert_eq!(run.refused, 0, "decisions were refused: {}", self.service.stderr());
        let decided = eventually_within(Duration::from_secs(20), async || {
            let (decided, sent): (i64, i64) = sqlx::query_as(
                "SELECT count(*), count(*) FILTER (WHERE delivery = 'sent') FROM hitl_request
                  WHERE settled_at >= $1 AND status = 'approved'",
            )
            .bind(began)
            .fetch_one(&mut self.database.connection)
            .await
            .unwrap();
            (decided == sent).then(|| u64::try_from(decided).unwrap())
        })
        .await;
        // What was under way when the client stopped was decided, too.
        let most = run.calls + at_once as u64;
        assert!(
            (run.calls..=most).contains(&decided),
            "{} answers, and {decided} decisions in the ledger", run.calls
        );
        assert_eq!(self.signals(&asked).await, decided, "signals under their keys");
        self.world.forget().await;
        run
    }

    async fn signals(&self, asked: &[Asked]) -> u64 {
        let (mut connection, mut there) = (self.world.connection.clone(), 0);
        for some in asked.chunks(1000) {
            let mut asking = redis::cmd("EXISTS");
            some.iter().for_each(|one| {
                asking.arg(format!("hitl:signal:{}", one.session));
            });
            there += asking.query_async::<u64>(&mut connection).await.unwrap();
        }
        there
    }
}

async fn postgres_pid(connection: &mut PgConnection) -> u32 {
    let file: String = sqlx::query_scalar("SELECT pg_read_file('postmaster.pid')")
        .fetch_one(connection)
        .await
        .unwrap();
    file.lines().next().unwrap().trim().parse().unwrap()
}

async fn redis_pid(world: &World) -> u32 {
    let info: String = world.redis.command(&["INFO", "server"]).await;
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:"));
    pid.unwrap().trim().parse().unwrap()
}

/// On what it was measured.
fn machine() -> Value {
    let said = |command: &str, arguments: &[&str]| {
        let output = Command::new(command).args(arguments).output().ok()?.stdout;
        Some(String::from_utf8_lossy(&output).trim().to_owned())
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| line.split_once(": ").map(|(_name, value)| value.to_owned());
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(value);
    json!({
        "processor": model,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": said("uname", &["-sr"]),
        "disk": said("df", &["--output=fstype,source", "/tmp"]),
        "postgres": said("pg_config", &["--version"]),
        "redis": said("redis-server", &["--version"]),
        "binaryBytes": std::fs::metadata(binary()).map_or(0, |file| file.len()),
    })
}
