//! Relays that die, and relays that are away for long.

use std::net::SocketAddr;
use std::time::Duration;

use crate::report::{Report, Scale};
use crate::world::{Listener, Replica, World, ask, at_once};
use support::Asked;
use support::history::{Choice, Delivered, Ended, duplicates};
use support::proxy::Proxy;

/// How many rows a relay claims at once. When it is killed, up to this many signals may be sent but not
/// recorded.
const RELAY_BATCH_SIZE: usize = 32;

fn yes() -> Choice {
    Choice::approved("user123")
}

pub async fn relays_killed(scale: Scale, report: &mut Report) {
    let mut world = World::start(4).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let (asked, most) = scale.of((2000, 500), (400, 8));
    let asked = (0..asked).map(|_| Asked::new()).collect::<Vec<_>>();
    let agents = world.agents().await;
    at_once(asked.clone(), 8, async |place, asked| {
        ask(&mut agents.clone(), &asked).await;
        people.decide_surely(&bases[place % 4], &asked.id, &yes()).await;
    })
    .await;
    report.demand(world.quiet_within(Duration::from_secs(10)).await.is_some(), || {
        "what was decided is not in Redis".to_owned()
    });

    // All of it is owed once more while no relay runs. Redis is a little way off, so that they are
    // killed in the middle of their work.
    world.replicas.iter_mut().for_each(Replica::kill);
    world.owe(&asked.iter().map(|asked| asked.id.clone()).collect::<Vec<_>>()).await;
    world.listener = Listener::start(world.redis.url()).await;
    let redis = Proxy::start(SocketAddr::from(([127, 0, 0, 1], world.redis.port()))).await;
    redis.delay(Duration::from_millis(30));
    for replica in &mut world.replicas {
        replica.set("REDIS_URL", format!("redis://{}", redis.address));
        replica.start().await;
    }
    let owed = "SELECT count(*) FROM hitl_delivery WHERE delivery = 'owed'";
    let mut kills = 0;
    while kills < most && world.number(owed).await > 0 {
        let replica = &mut world.replicas[kills % 4];
        replica.kill();
        kills += 1;
        replica.start().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    report.count(kills, "kills");
    let aftermath = world.check(report, Duration::from_secs(15), Delivered::Published).await;

    // A row is claimed again only if its relay was killed while it held the lease.
    let again = "SELECT sum(attempts - 1)::bigint FROM hitl_delivery";
    let leases = usize::try_from(world.number(again).await).unwrap();
    let duplicates = duplicates(&aftermath.heard);
    report.count(leases, "leases in flight");
    report.count(duplicates, "duplicates");
    report.demand(leases > 0, || "no relay was killed at work".to_owned());
    report.demand(duplicates <= leases, || "more duplicates than leases in flight".to_owned());
    report.demand(duplicates <= RELAY_BATCH_SIZE * kills, || {
        "more than the killed ones held".to_owned()
    });
}

pub async fn relay_away_for_long(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let each = scale.of(100, 30);
    // Of those in Redis half are sent, and half will be owed. Registered ones owe nothing.
    let mut asked = world.ask_many(2 * each).await;
    let registered = (0..2 * each).map(|_| Asked::new()).collect::<Vec<_>>();
    at_once(registered.clone(), 8, async |place, asked| {
        assert_eq!(people.register(&bases[place % 2], &asked).await, Some(201));
    })
    .await;
    asked.extend(registered.clone());
    world.quiet_within(Duration::from_secs(10)).await;
    let decide = async |half: usize| {
        let half = asked.iter().skip(half).step_by(2).cloned().collect::<Vec<_>>();
        let ended = at_once(half, 8, async |place, asked| {
            people.decide_surely(&bases[place % 2], &asked.id, &yes()).await
        })
        .await;
        ended.iter().filter(|ended| **ended != Ended::Ok).count()
    };
    let mut refused = decide(0).await;
    world.quiet_within(Duration::from_secs(10)).await;
    // From now on Redis takes no writes, so no replica can send a signal.
    let _set: String = world.redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    refused += decide(1).await;
    report.none(refused, "decisions refused");

    if scale.is_quick {
        // Five minutes later, as far as ledger and Redis can tell.
        for earlier in [
            "UPDATE hitl_request SET created_at = created_at - interval '301 s'",
            "UPDATE hitl_delivery SET owed_since = owed_since - interval '301 s',
                    sent_at = sent_at - interval '301 s'",
        ] {
            sqlx::query(earlier).execute(&mut world.database().await).await.unwrap();
        }
        for session in world.signal_keys().await.into_keys() {
            let _gone: i64 = world.redis.command(&["DEL", &format!("hitl:signal:{session}")]).await;
        }
        report.count("301 s", "backdated");
    } else {
        tokio::time::sleep(Duration::from_secs(301)).await;
        report.count("301 s", "waited");
    }
    report.demand(world.signal_keys().await.is_empty(), || "a signal is under its key".to_owned());
    let owed = "SELECT count(*) FROM hitl_delivery WHERE delivery = 'owed'";
    let owed = world.number(owed).await;
    report.count(owed, "owed");
    report.demand(usize::try_from(owed) == Ok(each), || "not what should be owed".to_owned());

    let rows = world.rows().await;
    let signal_of = |asked: &Asked| {
        rows.iter().find(|row| row.request == asked.id).and_then(support::history::Row::signal)
    };
    let is_found = async |base: &str, asked: &Asked, wanted: Option<&str>| {
        let found = people.poll_surely(base, &asked.session, wanted).await;
        found.is_some() && found == signal_of(asked)
    };
    let found = at_once(asked.clone(), 8, async |place, asked| {
        let base = &bases[place % 2];
        let is_registered = registered.iter().any(|one| one.id == asked.id);
        // Without the id, a session is asked for requests of Redis only.
        let unnamed = is_registered || is_found(base, &asked, None).await;
        [is_found(base, &asked, Some(&asked.id)).await, unnamed]
    })
    .await
    .concat();
    report.count(found.len(), "polls with and without the id");
    report.none(found.iter().filter(|found| !**found).count(), "missing");
    // Without any Redis at all, registered requests are answered for by the ledger alone.
    let away = world.replica_without_redis().await;
    let base = away.base();
    let found = at_once(registered.clone(), 8, async |_, asked| {
        is_found(&base, &asked, Some(&asked.id)).await
    })
    .await;
    report.count(found.len(), "polls without Redis");
    report.none(found.iter().filter(|found| !**found).count(), "missing without Redis");

    let _set: String = world.redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    world.check(report, Duration::from_secs(15), Delivered::Published).await;
}
