//! A long run with a fault of every kind now and then.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join;
use support::history::{Choice, Delivered, Ended};
use support::proxy::Proxy;
use support::{Asked, PrivatePostgres, PrivateRedis};
use tokio::task::JoinSet;

use crate::report::{Report, Scale};
use crate::world::{Replica, World, try_ask};

/// Decisions per second.
const DECISIONS_PER_SECOND: u32 = 200;

pub async fn soak(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    // The first replica is never killed, so its memory can be followed; the second reaches its
    // stores over a bad network.
    let to_redis = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await;
    let to_postgres = Proxy::start(([127, 0, 0, 1], world.postgres.port()).into()).await;
    let second = world.add_replica();
    second.set("REDIS_URL", format!("redis://{}", to_redis.address));
    second.set("DATABASE_URL", format!("postgres://postgres@{}/postgres", to_postgres.address));
    second.start().await;
    world.people.until_ready(&world.replicas[1].base()).await;
    let (bases, people, redis) = (world.bases(), world.people.clone(), world.redis.client());
    let duration = scale.of(Duration::from_mins(30), Duration::from_secs(12));
    let done = AtomicBool::new(false);
    let unasked = AtomicUsize::new(0);

    let clicking = async {
        let mut clicks = JoinSet::new();
        let mut agents = None;
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / DECISIONS_PER_SECOND);
        let began = Instant::now();
        for place in 0_usize.. {
            ticks.tick().await;
            if began.elapsed() > duration {
                break;
            }
            // Agents lose their connection, too. A request that was not written cannot be decided.
            if agents.is_none() {
                agents = redis.get_multiplexed_async_connection().await.ok();
            }
            let asked = Asked::new();
            let asking = async { try_ask(agents.as_mut()?, &asked).await.ok() };
            let asked_in_time = tokio::time::timeout(Duration::from_millis(500), asking).await;
            if !matches!(asked_in_time, Ok(Some(()))) {
                agents = None;
                unasked.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let (people, base) = (people.clone(), bases[place % 2].clone());
            clicks.spawn(async move {
                let choice = if place % 3 == 0 {
                    Choice::rejected("bob", "아직 아닙니다")
                } else {
                    Choice::approved("user123")
                };
                // As a person does: clicks again when the outcome of the first click is unknown.
                for _again in 0..3 {
                    match people.decide(&base, &asked.id, &choice).await {
                        Ended::Unknown | Ended::Fail { status: 503, .. } => {
                            tokio::time::sleep(Duration::from_millis(500)).await;
                        }
                        _known => break,
                    }
                }
            });
            while clicks.try_join_next().is_some() {}
        }
        clicks.join_all().await;
        done.store(true, Ordering::SeqCst);
    };

    let mut memory = Vec::<f64>::new();
    let faulting = async {
        let mut faults = 0_usize;
        let World { replicas, postgres, redis, .. } = &mut world;
        while !done.load(Ordering::SeqCst) {
            tokio::time::sleep(scale.of(Duration::from_secs(5), Duration::from_secs(1))).await;
            memory.push(replicas[0].memory());
            inflict(faults, &mut replicas[1], postgres, redis, &to_redis, &to_postgres).await;
            faults += 1;
        }
        faults
    };
    let ((), faults) = join(clicking, faulting).await;
    report.count(duration.as_secs(), "s");
    report.count(faults, "faults");
    report.count(unasked.into_inner(), "not asked for want of Redis");
    // What it has once it has worked for a while, and what it has at the end.
    let (early, late) = (memory[memory.len() / 4], memory[memory.len() - 1]);
    let growth = 100.0 * (late / early - 1.0);
    report.count(format!("{late:.1}"), "MiB resident");
    report.count(format!("{growth:+.1}"), "% memory since a quarter of the time");
    report.demand(scale.is_quick || growth < 10.0, || format!("memory grew by {growth:.1} %"));
    world.check(report, Duration::from_secs(30), Delivered::Found).await;
}

/// Alternates one fault and its end.
async fn inflict(
    turn: usize,
    replica: &mut Replica,
    postgres: &mut PrivatePostgres,
    redis: &mut PrivateRedis,
    to_redis: &Proxy,
    to_postgres: &Proxy,
) {
    let a_while = || tokio::time::sleep(Duration::from_millis(700));
    match turn % 8 {
        0 => {
            replica.kill();
            a_while().await;
            replica.start().await;
        }
        1 => {
            to_redis.cut();
            a_while().await;
            to_redis.reopen();
        }
        2 => {
            postgres.crash();
            a_while().await;
            postgres.start_again().await;
        }
        3 => {
            redis.freeze();
            a_while().await;
            redis.thaw();
        }
        4 => {
            to_postgres.stall();
            a_while().await;
            to_postgres.reopen();
        }
        5 => {
            postgres.freeze();
            a_while().await;
            postgres.thaw();
        }
        6 => {
            redis.kill();
            a_while().await;
            redis.start_again().await;
        }
        _ => {
            to_postgres.cut();
            to_redis.abandon();
            a_while().await;
            to_postgres.reopen();
        }
    }
}
