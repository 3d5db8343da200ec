//! How fast, beside how fast it could be: the steps of a decision alone, then the service, in turns,
//! so that what else the machine does meets both alike.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::{sleep_until, timeout};

use crate::limits;
use crate::lists;
use crate::load::{Run, median, quantile};
use crate::report::Report;
use crate::service::{Service, one};
use crate::start;
use crate::turns::Turns;
use crate::world::{ADMIN, Asked, Call, World, binary, production};

/// How many at once.
const AT_ONCE: [usize; 3] = [1, 16, 64];
/// Rows of a ledger that has grown, and of one that has not: enough for a page of anybody's tasks.
const GROWN: i64 = 1_000_000;
const SMALL: i64 = 2_000;

const STATEMENT: &str = "limit: decision statement";
const GET: &str = "limit: Redis GET";
const SIGNAL: &str = "limit: Redis SET + PUBLISH";
const COURIER: &str = "the courier's steps of a decision";
const AUTHENTICATE: &str = "limit: HTTP, authenticate only";
const CLIENT: &str = "wrk alone: GET /health/live";
const DECIDE: &str = "decision";
const REGISTER: &str = "registration";
const HIT: &str = "GET signals, there is one";
const MISS: &str = "GET signals, there is none";
const READ: &str = "GET requests";

/// What to measure, and for how long.
#[derive(Args)]
pub struct Options {
    /// Only these parts, separated by commas; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Seconds for each run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Runs of each cell, of which the median counts.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Requests of the grown ledger, for `lists`.
    #[arg(long, default_value_t = 1_000_000)]
    pub rows: i64,
    /// Where the figures go as JSON.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench.json"))]
    json: PathBuf,
}

/// A part of the whole.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Decisions, beside the limits of their steps.
    Decisions,
    /// Round trips to the stores for a decision.
    Trips,
    /// From a click to the agent that has subscribed.
    Heard,
    /// Reading signals and requests.
    Reads,
    /// Progress and plan steps.
    Tasks,
    /// Cold start, idle memory, size.
    Start,
    /// A ledger with a million requests and tasks.
    Growth,
    /// Lists of requests for people, with few and with a million.
    Lists,
    /// Two replicas against one.
    Replicas,
}

impl Options {
    /// How long each run takes.
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Measures, and says what came of it.
pub async fn run(options: &Options) -> ExitCode {
    let all = Part::value_variants();
    let parts = if options.only.is_empty() { all } else { &options.only[..] };
    let mut report = Report::default();
    for part in parts {
        match part {
            Part::Decisions => decisions(options, &mut report).await,
            Part::Trips => trips(&mut report).await,
            Part::Heard => heard(options, &mut report).await,
            Part::Reads => reads(options, &mut report).await,
            Part::Tasks => tasks(options, &mut report).await,
            Part::Start => start::measure(&mut report).await,
            Part::Growth => growth(options, &mut report).await,
            Part::Lists => lists::measure(options, &mut report).await,
            Part::Replicas => replicas(options, &mut report).await,
        }
    }
    println!("{}", report.table());
    let json = serde_json::to_string_pretty(&report.json(&machine())).unwrap();
    std::fs::write(&options.json, json).unwrap();
    eprintln!("as JSON: {}", options.json.display());
    if report.refused() == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("{} calls were refused; see above", report.refused());
    ExitCode::FAILURE
}

/// Decisions and the limits of their steps.
async fn decisions(options: &Options, report: &mut Report) {
    let world = World::start().await;
    let limit = world.database("steps").await;
    let mut service = Service::start(&world, "ledger", options.time()).await;
    let (time, watched) = (options.time(), service.watched.clone());
    let mut intakes = Vec::new();
    for _run in 0..options.runs {
        for at_once in AT_ONCE {
            let run = limits::statement(&world, &limit, at_once, time, &watched).await;
            report.add(STATEMENT, at_once, run);
            report.add(GET, at_once, limits::get(&world, at_once, time, &watched).await);
            report.add(SIGNAL, at_once, limits::signal(&world, at_once, time, &watched).await);
            report.add(COURIER, at_once, limits::courier(&world, at_once, time, &watched).await);
            world.forget().await;
            report.add(CLIENT, at_once, service.health(at_once).await);
            report.add(AUTHENTICATE, at_once, service.authenticate(at_once).await);
            let [taken_in, decided] = service.decide(at_once).await;
            intakes.push(taken_in);
            report.add(DECIDE, at_once, decided);
            report.add(REGISTER, at_once, service.register(at_once).await);
        }
    }
    let per_second = |name| report.cell(name, 64).per_second;
    let registrations = per_second(REGISTER) / per_second(DECIDE);
    report.at_least("registrations by decisions × 64", registrations, 1.0, "times");
    let [_client, service, postgres, _redis] = report.cell(DECIDE, 64).cpu[..] else {
        panic!("a service and its two stores are watched")
    };
    report.at_most("Postgres' time on a core for a decision × 64", postgres, 300.0, "µs");
    report.at_most("the service's time on a core for a decision × 64", service, 200.0, "µs");
    let middle = |figure: fn(&Run) -> f64| median(intakes.iter().map(figure));
    report.fact("intake from Redis", middle(|run| run.per_second), "/s");
    report.fact("the service's time on a core for it", middle(|run| run.cpu[1]), "µs");
    report.fact("Postgres' time on a core for it", middle(|run| run.cpu[2]), "µs");
    for at_once in AT_ONCE {
        let composite = report.composite(&[AUTHENTICATE, GET, SIGNAL, STATEMENT], at_once);
        report.fact(format!("composite limit of decisions × {at_once}"), composite, "/s");
        let part = report.cell(DECIDE, at_once).per_second / composite * 100.0;
        let name = format!("decisions of their composite limit × {at_once}");
        if at_once == 64 {
            report.at_least(name, part, 50.0, "%");
        } else {
            report.fact(name, part, "%");
        }
    }
    let cpu = |name| report.cell(name, 64).cpu.iter().sum::<f64>();
    let alone: f64 = [AUTHENTICATE, GET, SIGNAL, STATEMENT].map(cpu).iter().sum();
    let decision = cpu(DECIDE);
    report.fact("a core's time for the steps of a decision alone × 64", alone, "µs");
    report.fact("a core's time for a decision × 64", decision, "µs");
    let p50 = |name| report.cell(name, 1).millis[0];
    let steps = p50(STATEMENT) + p50(GET) + p50(SIGNAL);
    let times = p50(DECIDE) / steps;
    report.fact("p50 of the statement and of both Redis steps × 1", steps, "ms");
    report.at_most("p50 of a decision by that of its steps × 1", times, 2.0, "times");
}

/// What one decision asks of the stores, before it is answered and after.
async fn trips(report: &mut Report) {
    const DECISIONS: usize = 60;
    /// By which an answer of a store is held back.
    const DELAY_MILLIS: u64 = 20;
    let world = World::start().await;
    world.database("trips").await;
    let ledger = Turns::before(world.postgres.port()).await;
    let redis = Turns::before(world.redis.port()).await;
    let url = format!("postgres://postgres@{}/trips", ledger.address);
    let service = production(&world.folder, &url, &format!("redis://{}", redis.address));
    let service = service.serve().await;
    let client = Client::new();
    let asked = Asked::fresh(DECISIONS * 4);
    world.ask(&asked).await;
    let mut asked = asked.chunks(DECISIONS);
    let mut p50_millis = async || {
        let mut took = Vec::new();
        // One after the other.
        for asked in asked.next().unwrap() {
            let began = Instant::now();
            one(&client, &service.base, &world, &asked.approval()).await;
            took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        median(took)
    };
    let _warm = p50_millis().await;
    let commands = world.commands().await;
    let near = p50_millis().await;
    let commands_after = world.commands().await;
    for (store, turns, most) in [("the ledger", &ledger, 1.0), ("Redis", &redis, 2.0)] {
        turns.delay(DELAY_MILLIS);
        let trips = (p50_millis().await - near) / DELAY_MILLIS as f64;
        turns.delay(0);
        let name = format!("round trips to {store} before the answer");
        report.at_most(&name, trips.round(), most, "");
    }
    for (command, after) in commands_after {
        let calls = after - commands.get(&command).copied().unwrap_or(0.0);
        let calls = (calls / DECISIONS as f64).round();
        // Others belong to what goes on in the background.
        if calls > 0.0 {
            report.fact(
                format!("Redis commands for a decision, in scripts too: {command}"),
                calls,
                "",
            );
        }
    }
}

/// From the click to the agent that has subscribed, while nobody hurries.
async fn heard(options: &Options, report: &mut Report) {
    const PER_SECOND: u32 = 100;
    let world = World::start().await;
    let service = Service::start(&world, "ledger", options.time()).await;
    let asked = Asked::fresh(1000);
    world.ask(&asked).await;
    let mut subscriber = world.redis.client().get_async_pubsub().await.unwrap();
    subscriber.psubscribe("hitl:channel:*").await.unwrap();
    let count = asked.len();
    let hearing = tokio::spawn(async move {
        let messages = subscriber.on_message().take(count);
        let messages =
            messages.map(|message| (message.get_channel_name().to_owned(), Instant::now()));
        timeout(Duration::from_mins(1), messages.collect::<Vec<_>>()).await.unwrap()
    });
    let (client, began) = (Client::new(), tokio::time::Instant::now());
    let click = async |number: u32, asked: &Asked| {
        sleep_until(began + Duration::from_secs(1) / PER_SECOND * number).await;
        let clicked = Instant::now();
        one(&client, service.base(), &world, &asked.approval()).await;
        (format!("hitl:channel:{}", asked.session), clicked, clicked.elapsed())
    };
    let clicks = (0..).zip(&asked).map(|(number, asked)| click(number, asked));
    let clicks = join_all(clicks).await;
    let mut answered = clicks.iter().map(|&(_, _, taken)| taken).collect::<Vec<_>>();
    let clicks =
        clicks.into_iter().map(|(channel, at, _)| (channel, at)).collect::<HashMap<_, _>>();
    let heard = hearing.await.unwrap().into_iter();
    let mut heard = heard.map(|(channel, at)| at - clicks[&channel]).collect::<Vec<_>>();
    heard.sort_unstable();
    answered.sort_unstable();
    for (name, sorted) in
        [("the agent has the signal", &heard), ("the person has the answer", &answered)]
    {
        for (which, part) in [("p50", 0.5), ("p99", 0.99)] {
            let millis = quantile(sorted, part);
            report.fact(format!("click, at {PER_SECOND}/s: {name}, {which}"), millis, "ms");
        }
    }
}

/// Signals and requests, as agents and people ask for them.
async fn reads(options: &Options, report: &mut Report) {
    let world = World::start().await;
    let service = Service::start(&world, "ledger", options.time()).await;
    let (time, watched) = (options.time(), service.watched.clone());
    let [answered, waiting] = [Asked::fresh(1000), Asked::fresh(1000)];
    let signals = |asked: &[Asked]| {
        let path = |one: &Asked| format!("/api/aura/hitl/signals/{}", one.session);
        asked.iter().map(|one| Call::get(one.person, path(one))).collect::<Vec<_>>()
    };
    let path = |one: &Asked| format!("/api/aura/hitl/requests/{}", one.request);
    let requests = waiting.iter().map(|one| Call::get(one.person, path(one))).collect::<Vec<_>>();
    for _run in 0..options.runs {
        // Signals live for five minutes.
        world.forget().await;
        world.ask(&answered).await;
        world.ask(&waiting).await;
        let approvals = answered.iter().map(Asked::approval).collect::<Vec<_>>();
        service.each(&approvals).await;
        for at_once in AT_ONCE {
            report.add(GET, at_once, limits::get(&world, at_once, time, &watched).await);
            report.add(AUTHENTICATE, at_once, service.authenticate(at_once).await);
            report.add(HIT, at_once, service.play_well(&signals(&answered), at_once).await);
            report.add(MISS, at_once, service.play_well(&signals(&waiting), at_once).await);
            report.add(READ, at_once, service.play_well(&requests, at_once).await);
        }
    }
    let composite = report.composite(&[AUTHENTICATE, GET], 64);
    report.fact("composite limit of GET signals × 64", composite, "/s");
    for (name, is_wished) in [(HIT, true), (MISS, true), (READ, false)] {
        let part = report.cell(name, 64).per_second / composite * 100.0;
        let name = format!("{name}: of authenticating and one GET × 64");
        if is_wished {
            report.at_least(name, part, 60.0, "%");
        } else {
            report.fact(name, part, "%");
        }
    }
}

/// An agent's progress, and its plan as it grows to twenty steps.
async fn tasks(options: &Options, report: &mut Report) {
    const STEPS: usize = 20;
    let world = World::start().await;
    let service = Service::start(&world, "ledger", options.time()).await;
    let create = |person: usize| {
        let body = json!({
            "taskType": "mail_summary", "userId": world.people[person].user,
            "tenantId": world.people[person].tenant, "inputData": { "folder": "inbox" },
        });
        let path = "/api/main/agent/tasks".to_owned();
        Call { person, method: "POST", path, body: body.to_string() }
    };
    let tasks = (0..1000).map(|number| create(number % ADMIN)).collect::<Vec<_>>();
    let created = service.each(&tasks).await;
    let created = created.iter().map(|task| task["taskId"].as_str().unwrap()).enumerate();
    let created = created.map(|(number, id)| (number % ADMIN, id)).collect::<Vec<_>>();
    let call = |method, (person, id): (usize, &str), what: &str, body: Value| {
        let path = format!("/api/main/agent/tasks/{id}/{what}");
        Call { person, method, path, body: body.to_string() }
    };
    let start = created.iter().map(|&task| call("POST", task, "start", json!({})));
    service.each(&start.collect::<Vec<_>>()).await;
    let (mut progress, mut steps) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        for &task in &created {
            progress.push(call("PATCH", task, "progress", json!({ "progress": step * 5 })));
            let body = json!({
                "type": "plan_step", "stepId": format!("step-{step}"), "status": "in_progress",
                "description": "Read the inbox", "confidence": 0.85, "timestamp": 1_706_152_860,
            });
            steps.push(call("POST", task, "plan-steps", body));
        }
    }
    for _run in 0..options.runs {
        for at_once in AT_ONCE {
            report.add("PATCH progress", at_once, service.play_well(&progress, at_once).await);
            report.add("POST plan-steps", at_once, service.play_well(&steps, at_once).await);
        }
    }
}

/// The same with a ledger that has grown, by turns with one that has not.
async fn growth(options: &Options, report: &mut Report) {
    const NAMES: [[&str; 2]; 4] = [
        ["small ledger: decision", "grown ledger: decision"],
        ["small ledger: own tasks, first page", "grown ledger: own tasks, first page"],
        ["small ledger: all tasks, first page", "grown ledger: all tasks, first page"],
        ["small ledger: GET requests", "grown ledger: GET requests"],
    ];
    let world = World::start().await;
    let mut small = Service::start(&world, "small", options.time()).await;
    let mut grown = Service::start(&world, "grown", options.time()).await;
    grown.database.refill(GROWN).await;
    for _run in 0..options.runs {
        small.database.refill(SMALL).await;
        for (which, service) in [&mut small, &mut grown].into_iter().enumerate() {
            let names = NAMES.map(|names| names[which]);
            let [_, decided] = service.decide(64).await;
            report.add(names[0], 64, decided);
            let requests = service.database.requests_of_tenant0().await;
            let path = |id: &String| format!("/api/aura/hitl/requests/{id}");
            let requests = requests.iter().map(|id| Call::get(0, path(id))).collect::<Vec<_>>();
            let page = |person| [Call::get(person, "/api/main/agent/tasks".to_owned())];
            report.add(names[1], 1, service.play_well(&page(0), 1).await);
            report.add(names[2], 1, service.play_well(&page(ADMIN), 1).await);
            report.add(names[3], 1, service.play_well(&requests, 1).await);
        }
    }
    for (at, [small, grown]) in [64, 1, 1, 1].into_iter().zip(NAMES) {
        let [before, after] = [small, grown].map(|name| report.cell(name, at).millis[0]);
        let times = after / before;
        report.at_most(format!("{grown}: p50 by that of a small one × {at}"), times, 1.15, "times");
    }
}

/// One process, then two that share the connections.
async fn replicas(options: &Options, report: &mut Report) {
    const ONE: &str = "one replica: decision";
    const TWO: &str = "two replicas: decision";
    let world = World::start().await;
    let mut one = Service::start(&world, "one", options.time()).await;
    let mut two = Service::start(&world, "two", options.time()).await;
    two.add_replica().await;
    for _run in 0..options.runs {
        let [_, decided] = one.decide(64).await;
        report.add(ONE, 64, decided);
        let [_, decided] = two.decide(64).await;
        report.add(TWO, 64, decided);
    }
    let times = report.cell(TWO, 64).per_second / report.cell(ONE, 64).per_second;
    report.fact("two replicas by one × 64", times, "times");
}

/// On what it was measured.
fn machine() -> Value {
    let said = |command: &str, arguments: &[&str]| {
        let output = Command::new(command).args(arguments).output().ok()?.stdout;
        Some(String::from_utf8_lossy(&output).trim().to_owned())
    };
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find(|line| line.starts_with("model name"));
    let processor = processor.and_then(|line| line.split_once(": "));
    json!({
        "processor": processor.map(|(_name, model)| model),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": said("uname", &["-sr"]),
        "disk": said("df", &["--output=fstype,source", "/tmp"]),
        "postgres": said("psql", &["--version"]),
        "redis": said("redis-server", &["--version"]),
        "binaryBytes": std::fs::metadata(binary()).map_or(0, |file| file.len()),
    })
}
