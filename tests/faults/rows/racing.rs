//! Many people at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::Value;
use support::Asked;
use support::history::{Choice, Delivered, Ended};

use crate::report::{Report, Scale};
use crate::world::{Replica, World, ask, at_once, spread};

/// Kills one replica after the other, and starts each again, until told to stop. Says how often.
pub async fn kill_in_turn(replicas: &mut [Replica], every: Duration, done: &AtomicBool) -> usize {
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
    // Clicks without an answer are repeated, so every request is decided in the end.
    at_once(asked, 16, async |place, asked| {
        people.decide_surely(&bases[place % 2], &asked.id, &choice(place)).await
    })
    .await;
    world.check(report, Duration::from_secs(30), Delivered::Published).await;
}

/// An answer without what differs from call to call.
fn bare((status, mut body): (u16, Value)) -> (u16, Value) {
    for field in ["timestamp", "traceId"] {
        body.as_object_mut().unwrap().remove(field);
    }
    (status, body)
}

pub async fn retry_and_opposite(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let asked = world.ask_many(scale.of(40, 5)).await;
    let choices = [Choice::approved("user123"), Choice::rejected("user123", "사용자 거절")];
    // Twice: when nobody has decided, and when all has been said and done.
    let (mut same, mut opposite, mut wrongs) = (0, 0, Vec::new());
    for _ in 0..2 {
        for asked in &asked {
            let clicks = (0..100).map(async |click: usize| {
                let base = &bases[click % 2];
                loop {
                    let (_, answer) = people.click(base, &asked.id, &choices[click / 2 % 2]).await;
                    match answer {
                        // Too many at once is no answer: click again.
                        None | Some((503, _)) => {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        Some(answer) => return bare(answer),
                    }
                }
            });
            let answers = join_all(clicks).await;
            let (won, lost): (Vec<_>, Vec<_>) =
                answers.into_iter().partition(|(status, _)| *status == 200);
            let is_one = |answers: &[(u16, Value)]| answers.iter().all(|one| *one == answers[0]);
            let is_conflict =
                |(status, body): &(u16, Value)| *status == 409 && body["errorCode"] == "E3006";
            if won.len() != 50 || !is_one(&won) || !is_one(&lost) || !lost.iter().all(is_conflict) {
                wrongs.push(format!("{}: {won:?} against {lost:?}", asked.id));
            }
            same += won.len();
            opposite += lost.len();
        }
        world.quiet_within(Duration::from_secs(10)).await;
    }
    report.count(asked.len(), "requests");
    report.count(same, "times the same");
    report.count(opposite, "times the opposite");
    report.wrongs("requests answered in two ways", &wrongs);
    let aftermath = world.check(report, Duration::from_secs(10), Delivered::Published).await;
    let tasks = world.number("SELECT count(*) FROM agent_task").await;
    let (rows, tasks) = (aftermath.rows.len(), usize::try_from(tasks).unwrap());
    let signals = aftermath.heard.len();
    report.count(format!("{rows}/{tasks}/{signals}"), "rows/tasks/signals");
    // On a machine so busy that a lease runs out, a relay may send what has been sent.
    let again = world.number("SELECT coalesce(sum(attempts), 0)::bigint FROM hitl_delivery").await;
    let again = usize::try_from(again).unwrap();
    report.count(again, "sent by a relay");
    let is_one_each = [rows, tasks] == [asked.len(); 2] && signals <= asked.len() + again;
    report.demand(is_one_each, || "not one of each for each request".to_owned());
}

/// How long before or after a request's expiry a decision is made.
const EXPIRY_MARGIN: Duration = Duration::from_millis(100);

/// A moment near the end; nearer for most.
fn near(end: Instant, place: usize) -> Instant {
    let from_the_end = EXPIRY_MARGIN.mul_f64(spread(place).powi(2));
    if spread(place) < 0.0 { end.checked_sub(from_the_end).unwrap() } else { end + from_the_end }
}

pub async fn expiry_race(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let each = scale.of(500, 60);
    let registered = (0..each).map(|_| Asked::new().with("expiresInSeconds", 30.into()));
    let registered = registered.collect::<Vec<_>>();
    let pause = scale.of(Duration::from_millis(20), Duration::ZERO);
    for (place, asked) in registered.iter().enumerate() {
        assert_eq!(people.register(&bases[place % 2], asked).await, Some(201));
        // They end one after the other, too, so that clicks do not wait for each other.
        tokio::time::sleep(pause).await;
    }

    // Requests that expire in Redis by themselves. A late click gets 404 or 410.
    let agents = world.agents().await;
    let forgotten = (0..each).map(|_| Asked::new()).collect::<Vec<_>>();
    let ended = at_once(forgotten, each, async |place, asked| {
        tokio::time::sleep(Duration::from_millis(8) * u32::try_from(place).unwrap()).await;
        let mut agents = agents.clone();
        ask(&mut agents, &asked).await;
        let (key, lifetime) = (format!("hitl:request:{}", asked.id), Duration::from_millis(500));
        let ends = Instant::now() + lifetime;
        let expires = redis::cmd("PEXPIRE").arg(key).arg(500).exec_async(&mut agents).await;
        expires.unwrap();
        tokio::time::sleep_until(near(ends, place).into()).await;
        let choice = Choice::approved("user123");
        let ended = people.decide_surely(&bases[place % 2], &asked.id, &choice).await;
        tokio::time::sleep_until((ends + EXPIRY_MARGIN).into()).await;
        let again = people.decide_surely(&bases[(place + 1) % 2], &asked.id, &choice).await;
        let all = [ended, again];
        let is_late = |ended: &Ended| matches!(ended, Ended::Fail { status: 404 | 410, .. });
        (all.contains(&Ended::Ok), all.iter().any(is_late))
    })
    .await;
    tell(report, "in Redis", &ended);

    // Registered requests, which only the ledger has.
    if scale.is_quick {
        // Their half minute is shortened; the full run waits for its end.
        sqlx::query(
            "UPDATE hitl_request
                SET expires_at = clock_timestamp() + interval '1 s' + random() * interval '2 s'
              WHERE origin = 'http'",
        )
        .execute(&mut world.database().await)
        .await
        .unwrap();
    }
    let ends: Vec<(String, i64)> = sqlx::query_as(
        "SELECT request_id, (extract(epoch FROM expires_at - clock_timestamp()) * 1e6)::bigint
           FROM hitl_request WHERE origin = 'http'",
    )
    .fetch_all(&mut world.database().await)
    .await
    .unwrap();
    let now = Instant::now();
    let ended = at_once(ends, each, async |place, (id, micros)| {
        let ends = now + Duration::from_micros(u64::try_from(micros).unwrap());
        let click = async |person: usize| {
            let choice = Choice::approved(&format!("user{person}"));
            tokio::time::sleep_until(near(ends, 2 * place + person).into()).await;
            people.decide(&bases[person], &id, &choice).await
        };
        let (one, two) = join(click(0), click(1)).await;
        tokio::time::sleep_until((ends + EXPIRY_MARGIN).into()).await;
        let late = people.decide_surely(&bases[place % 2], &id, &Choice::approved("late")).await;
        let all = [one, two, late];
        let any = |which: fn(&Ended) -> bool| all.iter().any(which);
        let is_decided =
            |ended: &Ended| matches!(ended, Ended::Ok | Ended::Fail { standing: Some(_), .. });
        (any(is_decided), any(|ended| matches!(ended, Ended::Fail { status: 410, .. })))
    })
    .await;
    tell(report, "registered", &ended);

    let kept: i64 = redis::cmd("EXISTS")
        .arg(
            registered.iter().map(|asked| format!("hitl:request:{}", asked.id)).collect::<Vec<_>>(),
        )
        .query_async(&mut agents.clone())
        .await
        .unwrap();
    report.none(usize::try_from(kept).unwrap(), "registered ones in Redis");
    let late = "SELECT count(*) FROM hitl_request WHERE decided_at >= expires_at";
    report.none(usize::try_from(world.number(late).await).unwrap(), "decided after their end");
    world.check(report, Duration::from_secs(10), Delivered::Published).await;
}

/// For each request, whether an answer said that it is decided, and whether one said that it has
/// expired. Exactly one of the two must be true.
fn tell(report: &mut Report, which: &str, ended: &[(bool, bool)]) {
    let count = |wanted| ended.iter().filter(|ended| **ended == wanted).count();
    let (decided, over) = (count((true, false)), count((false, true)));
    report.count(format!("{decided}/{over}"), &format!("{which} decided/over"));
    report.none(count((true, true)), "both");
    report.none(count((false, false)), "neither");
}
