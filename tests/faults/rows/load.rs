//! Too many calls, and clients that are too slow.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use reqwest::Method;
use sqlx::Executor as _;
use support::history::{Choice, Delivered, Ended};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::report::{Report, Scale};
use crate::world::{People, TENANT, World, at_once, percentile, token};

pub async fn pool_exhausted(scale: Scale, report: &mut Report) {
    let world = World::start(1).await;
    let (base, people) = (world.replicas[0].base(), world.people.clone());
    let clients = 500;
    let rounds = scale.of(10, 1);
    let (mut slowest, mut turned_away, mut odd) = (Duration::ZERO, 0, Vec::new());
    for _ in 0..rounds {
        let asked = world.ask_many(clients).await;
        // All ten connections of the pool wait for this lock.
        let mut database = world.database().await;
        database.execute("BEGIN; LOCK TABLE hitl_request IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let calls = at_once(asked.clone(), clients, async |_, asked| {
            let began = Instant::now();
            let ended = people.decide(&base, &asked.id, &Choice::approved("user123")).await;
            (ended, began.elapsed())
        });
        for (ended, took) in calls.await {
            slowest = slowest.max(took);
            match ended {
                Ended::Fail { status: 503, .. } | Ended::Unknown => turned_away += 1,
                other => odd.push(format!("{other:?}")),
            }
        }
        database.execute("ROLLBACK").await.unwrap();
        at_once(asked, 64, async |_, asked| {
            people.decide_surely(&base, &asked.id, &Choice::approved("user123")).await
        })
        .await;
    }
    report.count(rounds * clients, "calls by 500 clients on a pool of 10");
    report.count(turned_away, "answered 503");
    report.wrongs("other answers", &odd);
    // The promise is 2 s of the release binary; a quick run takes the debug one.
    report.at_most(slowest, Duration::from_secs(scale.of(2, 4)), "slowest answer");
    world.check(report, Duration::from_secs(10), Delivered::Published).await;
}

/// What a slow client sends: at once, and then a byte at a time.
struct Slow {
    at_once: String,
    dribbled: &'static str,
}

/// How long it took until the service had closed the connection; `None` if it never did.
async fn until_closed(world: &World, slow: &Slow, limit: Duration) -> Option<Duration> {
    let mut socket = TcpStream::connect(world.replicas[0].address()).await.unwrap();
    let began = Instant::now();
    let talking = async {
        let (mut from, mut to) = socket.split();
        let dribbling = async {
            let _closed = to.write_all(slow.at_once.as_bytes()).await;
            for byte in slow.dribbled.as_bytes().iter().cycle() {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if slow.dribbled.is_empty() || to.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let listening = async {
            let mut answer = [0; 4096];
            while matches!(from.read(&mut answer).await, Ok(1..)) {}
        };
        tokio::select! {
            () = dribbling => {}
            () = listening => {}
        }
    };
    tokio::time::timeout(limit, talking).await.ok().map(|()| began.elapsed())
}

pub async fn slow_clients(scale: Scale, report: &mut Report) {
    let world = World::start(1).await;
    let (base, people) = (world.replicas[0].base(), world.people.clone());
    let id = world.ask_many(1).await.remove(0).id;
    let head = format!(
        "POST /api/aura/hitl/approve/{id} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {}\r\n\
         X-Tenant-ID: {TENANT}\r\nX-User-ID: user123\r\nContent-Type: application/json\r\n",
        token("user123", TENANT)
    );
    let kinds = [
        ("nothing", Slow { at_once: String::new(), dribbled: "" }),
        (
            "a head, slowly",
            Slow {
                at_once: String::new(),
                dribbled: "GET / HTTP/1.1\r\nX-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            },
        ),
        ("half a head", Slow { at_once: head.clone(), dribbled: "" }),
        ("no body", Slow { at_once: format!("{head}Content-Length: 1000\r\n\r\n"), dribbled: "" }),
        (
            "a body, slowly",
            Slow { at_once: format!("{head}Content-Length: 1000\r\n\r\n{{"), dribbled: " " },
        ),
        (
            "a body for nobody, slowly",
            Slow {
                at_once: "POST /nowhere HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n"
                    .to_owned(),
                dribbled: " ",
            },
        ),
    ];
    let sockets = scale.of(1000, 200);
    let limit = Duration::from_secs(10);
    let slow = (0..sockets).map(|place| {
        let (name, slow) = &kinds[place % kinds.len()];
        let world = &world;
        // A second of grace to measure with: what takes longer is told by how much.
        async move { (*name, until_closed(world, slow, limit * 2).await) }
    });
    let began = Instant::now();
    let serving = async {
        let mut took = Vec::new();
        while began.elapsed() < Duration::from_secs(8) {
            let asked = Instant::now();
            let url = format!("{base}/api/aura/hitl/requests/{id}");
            let answer = people.call(Method::GET, &url, "user123").send().await;
            took.push(if answer.is_ok_and(|answer| answer.status() == 200) {
                asked.elapsed()
            } else {
                limit
            });
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        took
    };
    let (closed, mut others) = join(join_all(slow), serving).await;
    report.count(sockets, "slow sockets");
    let left_open = closed
        .iter()
        .filter(|(_, took)| took.is_none())
        .map(|(name, _)| format!("a client that sends {name} was still there after 20 s"))
        .collect::<Vec<_>>();
    report.wrongs("left open", &left_open);
    let slowest = closed.iter().filter_map(|(_, took)| *took).max().unwrap_or_default();
    report.at_most(slowest, limit, "all closed after");
    report.count(others.len(), "calls by others");
    report.at_most(percentile(&mut others, 99), Duration::from_millis(500), "their p99");
    report.demand(
        world.number("SELECT count(*) FROM hitl_request WHERE status <> 'pending'").await == 0,
        || "something was decided".to_owned(),
    );
}

/// Polls by one user for a while, at a rate; their times and how many were 429.
async fn polls(
    people: &People,
    base: &str,
    user: &str,
    rate: u32,
    period: Duration,
) -> (Vec<Duration>, usize, Vec<String>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let began = Instant::now();
    let mut calls = Vec::new();
    while began.elapsed() < period {
        ticks.tick().await;
        let url = format!("{base}/api/aura/hitl/signals/session_{user}_1");
        let call = people.call(Method::GET, &url, user);
        calls.push(tokio::spawn(async move {
            let asked = Instant::now();
            let answer = call.send().await;
            (answer, asked.elapsed())
        }));
    }
    let (mut times, mut refused, mut odd) = (Vec::new(), 0, Vec::new());
    for call in calls {
        let (answer, took) = call.await.unwrap();
        match answer {
            Ok(answer) if answer.status() == 200 => times.push(took),
            Ok(answer)
                if answer.status() == 429 && answer.headers().contains_key("retry-after") =>
            {
                refused += 1;
            }
            other => odd.push(format!("{user}: {other:?}")),
        }
    }
    (times, refused, odd)
}

pub async fn flood(scale: Scale, report: &mut Report) {
    let world = World::start_with(2, &[("AURA_HITL_RATE_LIMIT_PER_SECOND", "50")]).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let (segments, period) = scale.of((12, Duration::from_secs(5)), (2, Duration::from_secs(3)));
    let (mut calm, mut flooded, mut odd) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sent, mut refused) = (0, 0);
    for segment in 0..segments {
        let is_flooded = segment % 2 == 1;
        let neighbours = (0..8).map(|n| {
            let (people, base) = (&people, &bases[n % 2]);
            async move { polls(people, base, &format!("neighbour{n}"), 20, period).await }
        });
        let flooding = async {
            if !is_flooded {
                return [(); 2].map(|()| (Vec::new(), 0, Vec::new()));
            }
            // The same user on both replicas, 200 calls/s in all.
            let flooding = bases.iter().map(|base| polls(&people, base, "flooder", 100, period));
            join_all(flooding).await.try_into().unwrap()
        };
        let (neighbours, floods) = join(join_all(neighbours), flooding).await;
        for (times, refused, wrong) in neighbours {
            if is_flooded { &mut flooded } else { &mut calm }.extend(times);
            odd.extend(wrong);
            odd.extend((refused > 0).then(|| format!("{refused} neighbours' calls were refused")));
        }
        for (times, refusals, wrong) in floods {
            sent += times.len() + refusals;
            refused += refusals;
            odd.extend(wrong);
        }
    }
    report.count(sent, "calls by one user at 200/s");
    report.count(refused, "refused with 429");
    report.demand(refused * 2 > sent, || "most of the flood was let through".to_owned());
    report.wrongs("wrong answers", &odd);
    let [calm, flooded] = [&mut calm, &mut flooded].map(|times| percentile(times, 99));
    let ratio = flooded.as_secs_f64() / calm.as_secs_f64();
    report.count(format!("{:.1}", calm.as_secs_f64() * 1e3), "ms neighbours' p99 without");
    report.count(format!("{:.1}", flooded.as_secs_f64() * 1e3), "ms with the flood");
    report.demand(scale.is_quick || ratio <= 1.2, || format!("{ratio:.2} times as slow"));
}
