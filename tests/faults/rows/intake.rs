//! The intake: requests that agents write to Redis are known, whichever replica dies and whatever Redis
//! loses, and none is closed because of that.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::history::{Choice, Delivered, Ended};
use support::{Asked, FAILOVER_TIMEOUT, PrivateSentinels, eventually_within};

use crate::report::{Report, Scale};
use crate::world::{Replica, World, percentile, try_ask};

const SECOND: Duration = Duration::from_secs(1);

const SEEN: &str =
    "SELECT count(*) FROM hitl_request WHERE origin = 'redis' AND status = 'pending'";
const EXPIRED: &str =
    "SELECT count(*) FROM hitl_request WHERE origin = 'redis' AND status = 'expired'";

fn approve() -> Choice {
    Choice::approved("user123")
}

/// The replica that watches Redis: the only one that has counted requests.
async fn leader(world: &World) -> usize {
    for (place, base) in world.bases().iter().enumerate() {
        let answer = world.people.client.get(format!("{base}/metrics")).send().await;
        let Ok(answer) = answer else { continue };
        let text = answer.text().await.unwrap();
        let seen = text.lines().find_map(|line| line.strip_prefix("aura_hitl_intake_seen_total "));
        if seen.is_some_and(|count| count.trim() != "0") {
            return place;
        }
    }
    panic!("no replica watches Redis");
}

/// Writes requests and their sessions, many in one round trip.
async fn ask_at_once(world: &World, asked: &[Asked]) {
    let mut redis = world.agents().await;
    for some in asked.chunks(500) {
        let mut pipeline = redis::pipe();
        for asked in some {
            let pointer =
                serde_json::json!({ "requestId": asked.id, "tenantId": "tenant1" }).to_string();
            let (request, session) =
                (format!("hitl:request:{}", asked.id), format!("hitl:session:{}", asked.session));
            pipeline.set_ex(request, asked.document.to_string(), 1800).ignore();
            pipeline.set_ex(session, pointer, 3600).ignore();
        }
        pipeline.exec_async(&mut redis).await.unwrap();
    }
}

async fn until_seen(world: &World, count: usize, limit: Duration) -> Option<Duration> {
    let began = Instant::now();
    let wanted = i64::try_from(count).unwrap();
    let looking = eventually_within(limit, async || {
        (world.number(SEEN).await == wanted).then(|| began.elapsed())
    });
    tokio::time::timeout(limit, looking).await.ok()
}

/// Kills the replica that watches Redis while it takes in a burst.
pub async fn leader_killed(scale: Scale, report: &mut Report) {
    let mut world = World::start(3).await;
    ask_at_once(&world, &[Asked::new()]).await;
    until_seen(&world, 1, 10 * SECOND).await.unwrap();
    let place = leader(&world).await;
    let asked = (0..scale.of(10_000, 3000)).map(|_| Asked::new()).collect::<Vec<_>>();
    let began = Instant::now();
    ask_at_once(&world, &asked).await;
    let some = i64::try_from(asked.len() / 5).unwrap();
    eventually_within(30 * SECOND, async || (world.number(SEEN).await > some).then_some(())).await;
    world.replicas[place].kill();
    let killed = Instant::now();
    let left = asked.len() + 1 - usize::try_from(world.number(SEEN).await).unwrap();
    report.count(asked.len(), "requests at once");
    report.count(left, "of them unknown when the leader was killed");
    report.demand(left > 0, || "all were known before it was killed".to_owned());
    match until_seen(&world, asked.len() + 1, 60 * SECOND).await {
        Some(_) => report.at_most(began.elapsed(), 30 * SECOND, "all known after"),
        None => report.broken("not all are known"),
    }
    report.at_most(killed.elapsed(), 30 * SECOND, "since the kill");
    // The next one is known again as soon as ever.
    let took = Instant::now();
    ask_at_once(&world, &[Asked::new()]).await;
    until_seen(&world, asked.len() + 2, 10 * SECOND).await;
    report.at_most(took.elapsed(), 2 * SECOND, "one more known after");
    report.none(usize::try_from(world.number(EXPIRED).await).unwrap(), "expired");
    let base = world.replicas[(place + 1) % 3].base();
    let mut odd = Vec::new();
    for asked in asked.iter().step_by(asked.len() / 50) {
        let ended = world.people.decide(&base, &asked.id, &approve()).await;
        if ended != Ended::Ok {
            odd.push(format!("{ended:?}"));
        }
    }
    report.wrongs("answers to a click", &odd);
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

/// Redis loses all that it had, and the replica that watches it dies. Nothing expires because of that.
pub async fn wiped(scale: Scale, report: &mut Report) {
    let mut world = World::start(3).await;
    let asked = (0..500).map(|_| Asked::new()).collect::<Vec<_>>();
    ask_at_once(&world, &asked).await;
    until_seen(&world, asked.len(), 30 * SECOND).await.unwrap();
    let place = leader(&world).await;
    world.redis.kill();
    world.redis.start_again().await;
    if !scale.is_quick {
        // The next one has never seen the requests in Redis.
        world.replicas[place].kill();
    }
    // One more is seen on the new one, and gone from there: absent keys are noticed.
    let later = Asked::new();
    ask_at_once(&world, std::slice::from_ref(&later)).await;
    until_seen(&world, asked.len() + 1, 20 * SECOND).await;
    let _: i64 = world.redis.command(&["DEL", &format!("hitl:request:{}", later.id)]).await;
    let expired =
        eventually_within(20 * SECOND, async || (world.number(EXPIRED).await > 0).then_some(()));
    report.demand(tokio::time::timeout(20 * SECOND, expired).await.is_ok(), || {
        "a key that was deleted is not noticed".to_owned()
    });
    tokio::time::sleep(8 * SECOND).await;
    let expired = usize::try_from(world.number(EXPIRED).await).unwrap();
    report.count(asked.len(), "seen before Redis was wiped");
    report.none(expired.saturating_sub(1), "expired by the wipe");
    let pending = usize::try_from(world.number(SEEN).await).unwrap();
    report.none(asked.len() - pending.min(asked.len()), "not pending any more");
    // Nobody can decide them: nobody knows whether their agents wait.
    let base = world.replicas[(place + 1) % 3].base();
    let mut odd = Vec::new();
    for asked in asked.iter().step_by(25) {
        let ended = world.people.decide(&base, &asked.id, &approve()).await;
        if ended != (Ended::Fail { status: 410, standing: None }) {
            odd.push(format!("{ended:?}"));
        }
    }
    report.wrongs("answers to a click", &odd);
    report.none(world.listener.heard().len(), "signals");
}

/// Switches keyspace events off and on, and cuts the subscription, while agents ask.
pub async fn events_lost(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let mut agents = world.agents().await;
    let (mut late, mut unknown) = (Vec::new(), 0);
    let rounds = scale.of(40, 8);
    for round in 0..rounds {
        let flags = ["Kg$x", "", "K$", "KA"][round % 4];
        let _: String =
            world.redis.command(&["CONFIG", "SET", "notify-keyspace-events", flags]).await;
        if round % 3 == 0 {
            let _: i64 = world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        }
        let asked = (0..20).map(|_| Asked::new()).collect::<Vec<_>>();
        let began = Instant::now();
        for asked in &asked {
            try_ask(&mut agents, asked).await.unwrap();
        }
        let ids = asked.iter().map(|asked| asked.id.clone()).collect::<Vec<_>>();
        let mut database = world.database().await;
        let mut known = BTreeSet::new();
        while known.len() < ids.len() && began.elapsed() < 20 * SECOND {
            let seen = "SELECT request_id FROM hitl_request WHERE request_id = ANY($1)";
            let seen: Vec<String> =
                sqlx::query_scalar(seen).bind(&ids).fetch_all(&mut database).await.unwrap();
            for id in seen {
                if known.insert(id) {
                    late.push(began.elapsed());
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        unknown += ids.len() - known.len();
    }
    report.count(rounds * 20, "requests");
    report.none(unknown, "unknown");
    report.figure(format!("p50 {:.1?}", percentile(&mut late, 50)));
    report.at_most(percentile(&mut late, 100), 10 * SECOND, "known at the latest after");
    report.none(usize::try_from(world.number(EXPIRED).await).unwrap(), "expired");
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

/// The master dies in the middle of a pass over its keys.
pub async fn failover(scale: Scale, report: &mut Report) {
    let mut sentinels = PrivateSentinels::start().await;
    let mut world = World::start(0).await;
    for _ in 0..2 {
        let mut replica = world.another_replica();
        replica.set("REDIS_URL", sentinels.url());
        // A pass over these takes some seconds.
        replica.set("AURA_HITL_INTAKE_KEYS_PER_SECOND", "1000");
        replica.set("AURA_HITL_INTAKE_SCAN_COUNT", "10");
        replica.start().await;
        world.people.until_ready(&replica.base()).await;
        world.replicas.push(replica);
    }
    let master = sentinels.master().await;
    let asked = (0..scale.of(1000, 300)).map(|_| Asked::new()).collect::<Vec<_>>();
    let mut redis =
        sentinels.servers[master].client().get_multiplexed_async_connection().await.unwrap();
    for asked in &asked {
        try_ask(&mut redis, asked).await.unwrap();
    }
    let _: i64 = sentinels.servers[master].command(&["WAIT", "1", "5000"]).await;
    eventually_within(30 * SECOND, async || (world.number(SEEN).await > 50).then_some(())).await;
    let known = world.number(SEEN).await;
    sentinels.servers[master].kill();
    let began = Instant::now();
    let all = until_seen(&world, asked.len(), FAILOVER_TIMEOUT + 30 * SECOND).await;
    report.count(asked.len(), "requests");
    report.count(known, "known when the master was killed");
    report.demand(all.is_some(), || "not all are known".to_owned());
    report.at_most(began.elapsed(), 30 * SECOND, "all known after");
    tokio::time::sleep(6 * SECOND).await;
    report.none(usize::try_from(world.number(EXPIRED).await).unwrap(), "expired");
    let mut odd = Vec::new();
    let base = world.replicas[0].base();
    for asked in asked.iter().step_by(20) {
        let ended = world.people.decide(&base, &asked.id, &approve()).await;
        if ended != Ended::Ok {
            odd.push(format!("{ended:?}"));
        }
    }
    report.wrongs("answers to a click", &odd);
    let alive = world.replicas.iter_mut().map(Replica::is_alive);
    report.none(alive.filter(|is_alive| !is_alive).count(), "replicas died");
}
