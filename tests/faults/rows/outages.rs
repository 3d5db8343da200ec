//! Stores that do not answer, are full or are slow.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::Value;
use support::Asked;
use support::history::{Choice, Delivered, Ended};
use support::proxy::Proxy;

use crate::report::{Report, Scale};
use crate::world::{Listener, World, at_once, percentile, timed};

const SECOND: Duration = Duration::from_secs(1);

fn approve() -> Choice {
    Choice::approved("user123")
}

/// New requests that the ledger knows.
async fn register_many(world: &World, count: usize) -> Vec<Asked> {
    let bases = world.bases();
    let asked = (0..count).map(|_| Asked::new()).collect::<Vec<_>>();
    at_once(asked, 8, async |place, asked| {
        let status = world.people.register(&bases[place % bases.len()], &asked).await;
        assert_eq!(status, Some(201), "{}", asked.id);
        asked
    })
    .await
}

pub async fn redis_wiped(scale: Scale, report: &mut Report) {
    let mut world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let rounds = scale.of(10, 2);
    let mut slowest = Duration::ZERO;
    let mut lost = Vec::new();
    // No agent is subscribed: a signal that had a subscriber is not sent again.
    world.listener.stop();
    for _ in 0..rounds {
        let asked = world.ask_many(scale.of(200, 50)).await;
        let ids = asked.iter().map(|asked| asked.id.clone()).collect::<HashSet<_>>();
        at_once(asked.clone(), 16, async |place, asked| {
            people.decide(&bases[place % 2], &asked.id, &approve()).await
        })
        .await;
        // Some signals have been sent by now, and some have not.
        world.redis.kill();
        world.redis.start_again().await;
        let back = Instant::now();
        let missing = loop {
            let keys = world.signal_keys().await;
            let rows = world.rows().await;
            let missing = rows
                .into_iter()
                // Those of earlier rounds have been lost before. When their agents have had time to
                // find them under their keys, they are no longer put there.
                .filter(|row| ids.contains(&row.request))
                .filter(|row| {
                    row.decision.is_some() && keys.get(&row.session) != row.signal().as_ref()
                })
                .map(|row| row.request)
                .collect::<Vec<_>>();
            if missing.is_empty() || back.elapsed() > 20 * SECOND {
                break missing;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        slowest = slowest.max(back.elapsed());
        lost.extend(missing);
    }
    report.count(rounds, "wipes");
    report.at_most(slowest, 5 * SECOND, "every signal under its key again after");
    report.wrongs("signals lost", &lost);
    world.listener = Listener::start(world.redis.url()).await;
    world.check(report, 10 * SECOND, Delivered::Found).await;
}

pub async fn redis_refused(scale: Scale, report: &mut Report) {
    let mut world = World::start(2).await;
    let outage = scale.of(60, 5) * SECOND;
    let known = register_many(&world, scale.of(1200, 100)).await;
    let unknown = world.ask_many(known.len() / 4).await;
    let (bases, people) = (world.bases(), world.people.clone());
    world.redis.kill();
    // Four clicks on what the ledger knows for each on what only Redis knew, spread over the outage.
    let pause = outage / u32::try_from(known.len()).unwrap();
    let (took, wrong) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let began = Instant::now();
    let clicks = known.iter().enumerate().map(|(place, asked)| {
        let (base, unknown, people) = (&bases[place % 2], unknown.get(place / 4), &people);
        let (took, wrong) = (&took, &wrong);
        async move {
            tokio::time::sleep_until((began + pause * u32::try_from(place).unwrap()).into()).await;
            let (ended, time) = timed(people.decide(base, &asked.id, &approve())).await;
            took.lock().unwrap().push(time);
            if ended != Ended::Ok {
                wrong.lock().unwrap().push(format!("the ledger knows {}: {ended:?}", asked.id));
            }
            let Some(unknown) = unknown.filter(|_| place % 4 == 0) else { return };
            let (ended, time) = timed(people.decide(base, &unknown.id, &approve())).await;
            took.lock().unwrap().push(time);
            if ended != (Ended::Fail { status: 503, standing: None }) {
                wrong.lock().unwrap().push(format!("only Redis knew {}: {ended:?}", unknown.id));
            }
        }
    });
    join_all(clicks).await;
    report.count(began.elapsed().as_secs(), "s without Redis");
    let mut took = took.into_inner().unwrap();
    report.at_most(percentile(&mut took, 99), 2 * SECOND, "answers' p99");
    report.wrongs("other answers than 200 and 503", &wrong.into_inner().unwrap());
    world.redis.start_again().await;
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

pub async fn redis_black_hole(scale: Scale, report: &mut Report) {
    let mut world = World::start(0).await;
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await;
    world.add_replica().set("REDIS_URL", format!("redis://{}", proxy.address));
    world.replicas[0].start().await;
    let (base, people) = (world.replicas[0].base(), world.people.clone());
    people.until_ready(&base).await;
    let rounds = scale.of(20, 2);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let before = world.ask_many(4).await;
        // A server that stops, or connections that nothing comes back on while new ones work.
        let is_frozen = round % 2 == 0;
        if is_frozen {
            world.redis.freeze();
        } else {
            proxy.abandon();
        }
        let began = Instant::now();
        for asked in &before {
            people.decide(&base, &asked.id, &approve()).await;
        }
        if is_frozen {
            tokio::time::sleep(2 * SECOND).await;
            world.redis.thaw();
        }
        let back = if is_frozen { Instant::now() } else { began };
        for asked in world.ask_many(1).await.iter().chain(&before) {
            people.decide_surely(&base, &asked.id, &approve()).await;
        }
        slowest = slowest.max(back.elapsed());
    }
    report.count(rounds, "black holes");
    report.at_most(slowest, 5 * SECOND, "five requests decided after");
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

pub async fn ambiguous_writes(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let asked = world.ask_many(scale.of(1000, 100)).await;
    let mut pauses = 0;
    // Reads pass, so decisions are made. Their signals are written after the callers' time-out.
    for batch in asked.chunks(50) {
        let mode = if pauses % 4 == 3 { "ALL" } else { "WRITE" };
        world.redis.command::<()>(&["CLIENT", "PAUSE", "1500", mode]).await;
        pauses += 1;
        at_once(batch.to_vec(), 50, async |place, asked| {
            let choice =
                if place % 2 == 0 { approve() } else { Choice::rejected("bob", "아니요") };
            people.decide_surely(&bases[place % 2], &asked.id, &choice).await
        })
        .await;
    }
    report.count(pauses, "pauses of 1.5 s");
    let aftermath = world.check(report, 10 * SECOND, Delivered::Published).await;
    let mut redis = world.agents().await;
    let mut differ = Vec::new();
    for row in &aftermath.rows {
        let key = format!("hitl:request:{}", row.request);
        let text: Option<String> =
            redis::cmd("GET").arg(key).query_async(&mut redis).await.unwrap();
        let document: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        let is_kept = aftermath.keys.get(&row.session) == row.signal().as_ref();
        if document["status"] != row.status.as_str() || !is_kept {
            differ.push(format!("{} is {}: {document}", row.request, row.status));
        }
    }
    report.wrongs("keys that differ from the ledger", &differ);
}

pub async fn redis_full(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let asked = world.ask_many(scale.of(1000, 100)).await;
    world.redis.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let decided = at_once(asked, 16, async |place, asked| {
        people.decide(&bases[place % 2], &asked.id, &approve()).await
    })
    .await;
    let refused = decided.iter().filter(|ended| **ended != Ended::Ok).count();
    report.count(decided.len(), "decisions while Redis was full");
    report.none(refused, "refused");
    report.none(world.signal_keys().await.len(), "signals in a full Redis");
    world.redis.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    world.check(report, 5 * SECOND, Delivered::Published).await;
}

pub async fn postgres_frozen(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let rounds = scale.of(20, 2);
    let (mut slowest, mut recovery) = (Duration::ZERO, Duration::ZERO);
    let mut answers = 0;
    let mut odd = Vec::new();
    for _ in 0..rounds {
        let asked = world.ask_many(40).await;
        world.postgres.freeze();
        for (ended, time) in at_once(asked.clone(), 40, async |place, asked| {
            timed(people.decide(&bases[place % 2], &asked.id, &approve())).await
        })
        .await
        {
            answers += 1;
            slowest = slowest.max(time);
            if !matches!(ended, Ended::Unknown | Ended::Fail { status: 503, .. }) {
                odd.push(format!("{ended:?}"));
            }
        }
        world.postgres.thaw();
        let back = Instant::now();
        at_once(asked, 40, async |place, asked| {
            people.decide_surely(&bases[place % 2], &asked.id, &approve()).await
        })
        .await;
        recovery = recovery.max(back.elapsed());
    }
    report.count(rounds, "freezes");
    report.count(answers, "calls meanwhile");
    report.wrongs("answers other than 503", &odd);
    report.at_most(slowest, 3 * SECOND, "slowest answer");
    report.at_most(recovery, 5 * SECOND, "all decided after");
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

pub async fn sigterm(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let (base, people) = (world.replicas[0].base(), world.people.clone());
    let rounds = scale.of(10, 2);
    let (mut slowest_call, mut slowest_exit) = (Duration::ZERO, Duration::ZERO);
    let (mut failed, mut cut_off) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let asked = world.ask_many(500).await;
        let waiting = world.ask_many(100).await;
        let stopped = Mutex::new(None::<Instant>);
        let last_call = Mutex::new(None::<Instant>);
        let finished = || *last_call.lock().unwrap() = Some(Instant::now());
        let deciding = at_once(asked, 32, async |_, asked| {
            if stopped.lock().unwrap().is_none() {
                people.decide(&base, &asked.id, &approve()).await;
                finished();
            }
        });
        let polling = at_once(waiting, 100, async |_, asked| {
            let url = format!("{base}/api/aura/hitl/signals/{}?waitSeconds=55", asked.session);
            let answer = people.call(reqwest::Method::GET, &url, "user123").send().await;
            finished();
            let is_told_to_ask_again = answer.is_ok_and(|answer| {
                answer.status() == 200
                    && answer.headers().get("Retry-After").is_some_and(|value| value == "0")
            });
            (!is_told_to_ask_again).then(|| format!("who waits for {}", asked.session))
        });
        let process = world.replicas[0].process();
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let began = Instant::now();
            process.terminate();
            *stopped.lock().unwrap() = Some(began);
            let status = process.ended().await;
            (status, began, began.elapsed())
        };
        let ((_, polls), (status, began, exit)) = join(join(deciding, polling), stopping).await;
        cut_off.extend(polls.into_iter().flatten());
        if !status.success() {
            failed.push(status.to_string());
        }
        let last = last_call.into_inner().unwrap().unwrap();
        slowest_call = slowest_call.max(last.saturating_duration_since(began));
        slowest_exit = slowest_exit.max(exit);
        world.replicas[0].kill();
        world.replicas[0].start().await;
    }
    report.count(rounds, "stops");
    report.at_most(slowest_call, 2 * SECOND, "last answer after");
    report.at_most(slowest_exit, 10 * SECOND, "exit after");
    report.wrongs("exit codes other than 0", &failed);
    report.count(rounds * 100, "long-polls");
    report.wrongs("not told to ask again", &cut_off);
    // No click is repeated here: every answered decision must be stored, and its signal sent.
    world.check(report, 10 * SECOND, Delivered::Published).await;
}
