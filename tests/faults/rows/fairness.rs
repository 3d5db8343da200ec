//! A flood: one account uses its limits to the full. A neighbour's calls may take at most
//! `MAX_RATIO` times as long as without the flood.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aura_hitl::domain::approver::Role;
use reqwest::{Client, Method};
use support::history::{Choice, Ended};
use support::{Asked, Who, unique};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::report::{Report, Scale};
use crate::world::{World, percentile};

/// The largest allowed ratio of the neighbour's median with a flood to that without.
const MAX_RATIO: f64 = 4.0;
/// Time from one of the neighbour's rounds to the next.
const ROUND_INTERVAL: Duration = Duration::from_millis(50);
/// Calls that the flood sends a second: as many as the service's default limit allows an account.
const CALLS_PER_SECOND: u32 = 50;
/// Most calls of the flood that wait for their answers at once.
const MAX_IN_FLIGHT: usize = 16;
/// Pause between the start of a flood and the measurement, and again after the end of the flood.
const PAUSE: Duration = Duration::from_secs(2);

/// The user of a flood, in a tenant of its own.
fn flooder(number: usize) -> Who<'static> {
    let tenant = ["tenant2", "tenant3"][number];
    Who { user: "flooder", tenant, role: Role::User }
}

/// The tasks of a flood, which run until this is dropped, and the number of its open sockets.
#[derive(Default)]
struct Flood {
    running: JoinSet<()>,
    open: Arc<AtomicUsize>,
}

/// The durations of the neighbour's calls.
#[derive(Default)]
struct Times {
    polls: Vec<Duration>,
    decisions: Vec<Duration>,
}

pub async fn floods(scale: Scale, report: &mut Report) {
    let any_number = [("AURA_HITL_RATE_LIMIT_PER_SECOND", "0")];
    let limited = [("AURA_HITL_RATE_LIMIT_PER_SECOND", "50")];
    flooded(scale, report, ("idle sockets", 1500), &any_number, async |world, flood| {
        open(world, flood, 2048, String::new()).await;
    })
    .await;
    flooded(scale, report, ("streams", 1500), &any_number, async |world, flood| {
        for number in 0..2 {
            let who = flooder(number);
            let path = "/api/aura/hitl/signals/session_flooder_1/stream";
            let head = world.head(who, &Method::GET, path) + &who.lines();
            open(world, flood, 1024, format!("{head}\r\n")).await;
        }
    })
    .await;
    flooded(
        scale,
        report,
        ("pending requests", scale.of(400, 100)),
        &limited,
        async |world, flood| {
            register(world, flood, r#"{"to":"a@b.c"}"#.to_owned());
        },
    )
    .await;
    flooded(
        scale,
        report,
        ("documents of 1 MiB", scale.of(10, 3)),
        &limited,
        async |world, flood| {
            let row = |number| format!(r#"{{"row":{number},"text":"{}"}}"#, "x".repeat(72));
            let rows = (10_000..20_200).map(row).collect::<Vec<_>>().join(",");
            register(world, flood, format!("[{rows}]"));
        },
    )
    .await;
}

/// Measures a neighbour's calls without and with a flood. The flood must have at least `least`
/// sockets open or requests registered. The two measurements take turns, so that other load on the
/// machine affects both alike.
async fn flooded(
    scale: Scale,
    report: &mut Report,
    (name, least): (&str, usize),
    settings: &[(&'static str, &str)],
    begin: impl AsyncFn(&World, &mut Flood),
) {
    let mut world = World::start_with(1, settings).await;
    let (pairs, rounds) = scale.of((4, 40), (1, 40));
    let (mut calm, mut during, mut failed) = (Times::default(), Times::default(), Vec::new());
    // Warms up: the very first calls are slower, so they are not measured.
    neighbour(&world, 10, &mut Times::default(), &mut failed).await;
    let mut size = 0;
    for _ in 0..pairs {
        neighbour(&world, rounds / 2, &mut calm, &mut failed).await;
        let mut flood = Flood::default();
        begin(&world, &mut flood).await;
        tokio::time::sleep(PAUSE).await;
        neighbour(&world, rounds, &mut during, &mut failed).await;
        size = size.max(flood.open.load(Ordering::SeqCst));
        flood.running.shutdown().await;
        tokio::time::sleep(PAUSE).await;
        neighbour(&world, rounds / 2, &mut calm, &mut failed).await;
    }
    let registered = "SELECT count(*) FROM hitl_request WHERE user_id = 'flooder'";
    let size = size.max(world.number(registered).await.unsigned_abs().try_into().unwrap());
    report.demand(size >= least, || format!("{name}: only {size}"));
    for (call, mut calm, mut during) in
        [("polls", calm.polls, during.polls), ("decisions", calm.decisions, during.decisions)]
    {
        let [calm, during] =
            [&mut calm, &mut during].map(|times| percentile(times, 50).as_secs_f64() * 1e3);
        let ratio = during / calm;
        let figures =
            format!("{size} {name}: {call} p50 {calm:.1} -> {during:.1} ms ({ratio:.2} times)");
        report.demand(ratio <= MAX_RATIO, || figures.clone());
        report.figure(figures);
    }
    report.wrongs("neighbour's calls that failed", &failed);
    world.check_alive(report);
}

/// Polls and decides as the neighbour, one call after the other, and measures each call.
async fn neighbour(world: &World, rounds: usize, times: &mut Times, failed: &mut Vec<String>) {
    let (base, people) = (world.replicas[0].base(), &world.people);
    let choice = Choice::approved("user123");
    let mut ticks = tokio::time::interval(ROUND_INTERVAL);
    for asked in world.ask_many(rounds).await {
        ticks.tick().await;
        let began = Instant::now();
        let polled = people.poll(&base, &asked.session, None).await;
        times.polls.push(began.elapsed());
        failed.extend(polled.err().map(|status| format!("a poll was answered {status}")));
        let began = Instant::now();
        let decided = people.decide(&base, &asked.id, &choice).await;
        times.decisions.push(began.elapsed());
        failed.extend((decided != Ended::Ok).then(|| format!("a decision: {decided:?}")));
    }
}

/// Opens this many sockets, sends the same bytes on each and keeps it open. A socket that the
/// service closes is opened again a second later.
async fn open(world: &World, flood: &mut Flood, sockets: usize, bytes: String) {
    let address = world.replicas[0].address();
    for _ in 0..sockets {
        let (bytes, open) = (bytes.clone(), flood.open.clone());
        flood.running.spawn(async move {
            loop {
                if let Ok(mut socket) = TcpStream::connect(address).await
                    && socket.write_all(bytes.as_bytes()).await.is_ok()
                {
                    // Reads the start of the answer. A socket that sends nothing gets no answer.
                    let mut some = [0; 1024];
                    let is_silent = bytes.is_empty();
                    open.fetch_add(usize::from(is_silent), Ordering::SeqCst);
                    let first = socket.read(&mut some).await.unwrap_or(0);
                    let is_let_in = some[..first].starts_with(b"HTTP/1.1 200");
                    open.fetch_add(usize::from(is_let_in), Ordering::SeqCst);
                    while matches!(socket.read(&mut some).await, Ok(1..)) {}
                    open.fetch_sub(usize::from(is_silent || is_let_in), Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        // Sockets are opened one by one: the test measures open sockets, not a burst of connects.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Registers requests with this context, as fast as the limit allows one account.
fn register(world: &World, flood: &mut Flood, context: String) {
    let (base, people) = (world.replicas[0].base(), world.people.clone());
    let client = Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    flood.running.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / CALLS_PER_SECOND);
        let mut calls = JoinSet::new();
        loop {
            ticks.tick().await;
            while calls.try_join_next().is_some() {}
            if calls.len() >= MAX_IN_FLIGHT {
                continue;
            }
            let (id, session) = (Asked::new().id, unique("session_flooder"));
            let body = format!(
                r#"{{"requestId":"{id}","sessionId":"{session}","actionType":"send_email","context":{context}}}"#
            );
            let who = flooder(0);
            let url = format!("{base}/api/aura/hitl/requests");
            let call = client.post(url).bearer_auth(people.token(who));
            let call = call.header("X-Tenant-ID", who.tenant).body(body);
            let call = call.header("Content-Type", "application/json");
            calls.spawn(async move {
                // The answer does not matter: most calls are refused, and some fail to be sent.
                let _answer = call.send().await;
            });
        }
    });
}
