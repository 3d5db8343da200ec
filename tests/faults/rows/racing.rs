//! Many people at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join;

use crate::history::{Choice, Delivered};
use crate::report::{Report, Scale};
use crate::world::{Replica, World, at_once};

/// Kills one replica after the other, and starts each again, until told to stop. Says how often.
async fn kill_in_turn(replicas: &mut [Replica], every: Duration, done: &AtomicBool) -> usize {
    let mut kills = 0;
    while !done.load(Ordering::SeqCst) {
        tokio::time::sleep(every).await;
        let count = replicas.len();
        let replica = &mut replicas[kills % count];
        replica.kill();
        kills += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
        replica.start().await;
    }
    kills
}

pub async fn racing_decisions(scale: Scale, report: &mut Report) {
    let mut world = World::start(2).await;
    let asked = world.ask_many(scale.of(1000, 200)).await;
    let (bases, people) = (world.bases(), world.people.clone());
    // Ten clicks on each request next to each other, by seven people who do not agree.
    let clicks = asked.iter().flat_map(|asked| (0..10).map(move |click| (click, asked)));
    let clicks = clicks.map(|(click, asked)| (click, asked.id.clone())).collect::<Vec<_>>();
    let choice = |click: usize| {
        let by = format!("user{}", click % 7);
        if click % 4 < 2 {
            Choice::approved(&by)
        } else {
            Choice::rejected(&by, &format!("{by}의 거절"))
        }
    };
    let done = AtomicBool::new(false);
    let clicking = async {
        at_once(clicks, 16, async |_, (click, id)| {
            people.decide(&bases[click % 2], &id, &choice(click)).await
        })
        .await;
        done.store(true, Ordering::SeqCst);
    };
    let ((), kills) =
        join(clicking, kill_in_turn(&mut world.replicas, Duration::from_secs(2), &done)).await;
    report.count(kills, "kills");
    // Whoever got no answer asks again: every request is decided in the end.
    at_once(asked, 16, async |place, asked| {
        people.decide_surely(&bases[place % 2], &asked.id, &choice(place)).await
    })
    .await;
    world.check(report, Duration::from_secs(30), Delivered::Published).await;
}
