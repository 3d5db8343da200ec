//! Servers that die.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join;
use support::history::{Choice, Delivered, Ended};

use crate::report::{Report, Scale};
use crate::world::{World, at_once};

pub async fn postgres_crash(scale: Scale, report: &mut Report) {
    let mut world = World::start(2).await;
    let stops = scale.of(20, 3);
    let (bases, people) = (world.bases(), world.people.clone());
    let (mut agents, clicked) = (world.agents().await, Mutex::new(Vec::new()));
    let done = AtomicBool::new(false);
    let clicking = async {
        while !done.load(Ordering::SeqCst) {
            let mut asked = Vec::new();
            for _ in 0..50 {
                let one = support::Asked::new();
                crate::world::ask(&mut agents, &one).await;
                asked.push(one.id);
            }
            at_once(asked.clone(), 16, async |place, id| {
                people.decide(&bases[place % 2], &id, &Choice::approved("user123")).await
            })
            .await;
            clicked.lock().unwrap().extend(asked);
        }
    };
    let crashing = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..stops {
            tokio::time::sleep(Duration::from_millis(800)).await;
            world.postgres.crash();
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.postgres.start_again().await;
            for base in &bases {
                slowest = slowest.max(people.until_ready(base).await);
            }
        }
        done.store(true, Ordering::SeqCst);
        slowest
    };
    let ((), slowest) = join(clicking, crashing).await;
    report.count(stops, "stops");
    report.at_most(slowest, Duration::from_secs(5), "ready again after");
    // A retry agrees, whatever became of the first click.
    let retried = at_once(clicked.into_inner().unwrap(), 16, async |place, id| {
        people.decide_surely(&bases[place % 2], &id, &Choice::approved("user123")).await
    })
    .await;
    let refused = retried.iter().filter(|ended| **ended != Ended::Ok).count();
    report.none(refused, "retries refused");
    world.check(report, Duration::from_secs(30), Delivered::Published).await;
}
