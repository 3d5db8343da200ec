//! Writes that share a statement: what happens to one of them, or to the process, or to the disk,
//! while the others are in the same batch.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use support::history::{Choice, Delivered, Ended};
use support::{Asked, insert_task_of_mallory, try_kill, unique};

use crate::report::{Report, Scale};
use crate::world::{Replica, World, ask, at_once, timed};

const SECOND: Duration = Duration::from_secs(1);

fn approve() -> Choice {
    Choice::approved("user123")
}

/// How many batches a replica has written, and how many writes there were in them.
async fn batches(world: &World, base: &str) -> (u64, u64) {
    let text = world.people.client.get(format!("{base}/metrics")).send().await.unwrap();
    let text = text.text().await.unwrap();
    let figure = |name: &str| {
        let name = format!("aura_hitl_ledger_batch_writes_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |figure| figure.trim().parse().unwrap())
    };
    (figure("count"), figure("sum"))
}

/// Says how many batches there were in all, and how many writes each had on average.
async fn tell_batches(world: &World, report: &mut Report, least: u64) {
    let (mut count, mut writes) = (0, 0);
    for base in world.bases() {
        let (batches, of_them) = batches(world, &base).await;
        count += batches;
        writes += of_them;
    }
    report.count(count, "batches");
    report.count(writes, "writes in them");
    report.demand(count >= least, || format!("only {count} batches"));
    report.demand(writes > count, || "no two writes shared a batch".to_owned());
}

/// One row is locked, one refused by a unique index, and one written by two people at once. The
/// others must not notice.
pub async fn one_row_of_a_batch(scale: Scale, report: &mut Report) {
    let world = World::start(1).await;
    let (base, people) = (world.replicas[0].base(), world.people.clone());
    // A database whose upgrade is not finished: another tenant can take a task's id there.
    let unfinished = "CREATE UNIQUE INDEX agent_task_pkey ON agent_task (task_id)";
    sqlx::query(unfinished).execute(&mut world.database().await).await.unwrap();
    let rounds = scale.of(100, 5);
    let (mut others_waited, mut locked_waited) = (Duration::ZERO, Duration::ZERO);
    let (mut odd, mut agents) = (Vec::new(), world.agents().await);
    for _ in 0..rounds {
        let asked = world.ask_many(40).await;
        let taken = Asked::new().with("taskId", json!(unique("task")));
        ask(&mut agents, &taken).await;
        let mut database = world.database().await;
        let task = taken.document["taskId"].as_str().unwrap();
        insert_task_of_mallory(&mut database, task).await;
        let locked = Asked::new();
        assert_eq!(people.register(&base, &locked).await, Some(201));
        let mut holding = database.begin().await.unwrap();
        sqlx::query("SELECT FROM hitl_request WHERE request_id = $1 FOR UPDATE")
            .bind(&locked.id)
            .execute(&mut *holding)
            .await
            .unwrap();
        let twice = &asked[0];
        let others = asked
            .iter()
            .chain([&taken])
            .map(async |asked| timed(people.decide(&base, &asked.id, &approve())).await);
        let opposite = Choice::rejected("bob", "아니요");
        let both = async {
            let deciding = people.decide(&base, &twice.id, &opposite);
            let choice = approve();
            let behind_the_lock = timed(people.decide(&base, &locked.id, &choice));
            join(deciding, behind_the_lock).await
        };
        let (others, (opposite, (locked_out, took))) = join(join_all(others), both).await;
        locked_waited = locked_waited.max(took);
        if locked_out != (Ended::Fail { status: 503, standing: None }) {
            odd.push(format!("behind the lock: {locked_out:?}"));
        }
        let mut wins = usize::from(opposite == Ended::Ok);
        for (place, (ended, took)) in others.into_iter().enumerate() {
            others_waited = others_waited.max(took);
            let lost = matches!(ended, Ended::Fail { status: 409, standing: Some(_) });
            if place == 0 && (ended == Ended::Ok || lost) {
                wins += usize::from(ended == Ended::Ok);
            } else if ended != Ended::Ok {
                odd.push(format!("beside the lock: {ended:?}"));
            }
        }
        if wins != 1 {
            odd.push(format!("{wins} of two opposite clicks won"));
        }
        holding.rollback().await.unwrap();
        if people.decide(&base, &locked.id, &approve()).await != Ended::Ok {
            odd.push("the lock was released, and the request not decided".to_owned());
        }
    }
    report.count(rounds, "rounds of 43 clicks");
    report.wrongs("other answers", &odd);
    report.at_most(others_waited, SECOND, "slowest beside a lock");
    report.at_most(locked_waited, 3 * SECOND, "slowest behind it");
    tell_batches(&world, report, 0).await;
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

/// Where a replica dies that has many clicks under way. The last is in the midst of a statement.
const DEATHS: [&str; 4] = ["batch-gathered", "batch-written", "batch-apart", "a statement"];

/// All or nothing of each request, and nothing that was acknowledged is lost.
pub async fn crash_in_a_batch(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let mut doomed = world.another_replica();
    let (healthy, people) = (world.replicas[0].base(), world.people.clone());
    let (mut died, mut left) = (0, Vec::new());
    let rounds = scale.of(25, 2);
    for round in 0..rounds {
        for death in DEATHS {
            let is_statement = death == "a statement";
            if is_statement {
                doomed.crash_at("");
            } else {
                // The first batch has few writes, the second has the rest.
                let skipped = if death == "batch-apart" { 0 } else { round % 2 };
                doomed.crash_at(&format!("{death}={skipped}*off->return"));
            }
            doomed.start().await;
            people.until_ready(&doomed.base()).await;
            let asked = world.ask_many(60).await;
            let mut locking = world.database().await;
            let mut holding = locking.begin().await.unwrap();
            if death == "batch-apart" {
                // The row's number of an outcome is taken by a transaction that is not over.
                hold_number(&mut holding, &asked[30].session).await;
            }
            let base = doomed.base();
            let clicks = at_once(asked.clone(), 60, async |_, asked| {
                people.decide(&base, &asked.id, &approve()).await
            });
            let dying = async {
                if is_statement {
                    kill_in_a_statement(&world, &mut doomed).await
                } else {
                    doomed.dies_within(3 * SECOND).await
                }
            };
            let (_, is_dead) = join(clicks, dying).await;
            died += usize::from(is_dead);
            doomed.kill();
            holding.rollback().await.unwrap();
            // Which are written before anybody asks again.
            let written = "SELECT count(*) FROM hitl_request
                            WHERE request_id = ANY($1) AND decided_at IS NOT NULL";
            let ids = asked.iter().map(|asked| asked.id.clone()).collect::<Vec<_>>();
            let written: i64 = sqlx::query_scalar(written)
                .bind(&ids)
                .fetch_one(&mut world.database().await)
                .await
                .unwrap();
            left.push(written);
            at_once(asked, 16, async |_, asked| {
                people.decide_surely(&healthy, &asked.id, &approve()).await
            })
            .await;
        }
    }
    report.count(died, "crashes");
    report.demand(died == rounds * DEATHS.len(), || format!("{died} replicas died"));
    report.count(left.iter().sum::<i64>(), "of their clicks written");
    let rows = "SELECT count(*) FROM hitl_request WHERE decided_at IS NOT NULL";
    let tasks = "SELECT count(*) FROM agent_task";
    let (rows, tasks) = (world.number(rows).await, world.number(tasks).await);
    report.demand(rows == tasks, || format!("{rows} requests and {tasks} tasks"));
    world.replicas[0].thaw();
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

/// Writes an outcome of this session, and does not commit: who wants the number waits.
async fn hold_number(connection: &mut PgConnection, session: &str) {
    let insert = "INSERT INTO hitl_request (request_id, origin, tenant_id, session_id, action_type,
             fingerprint, content_hash, document, task_id, owns_task, created_at, expires_at,
             status, delivery, owed_since, due_at, outcome)
         SELECT 'held_' || $1, 'http', 'tenant1', $1, 'a', 'f', 'h', '{}', 'held', FALSE, now(),
             now(), 'expired', 'sent', now(), now(), 1";
    sqlx::query(insert).bind(session).execute(connection).await.unwrap();
}

/// Stops the server process that runs a batch, kills the replica, and lets the process go on.
async fn kill_in_a_statement(world: &World, doomed: &mut Replica) -> bool {
    let mut database = world.database().await;
    let busy = "SELECT pid FROM pg_stat_activity
                 WHERE state = 'active' AND query LIKE 'WITH parameters%'";
    let until = Instant::now() + 3 * SECOND;
    while Instant::now() < until {
        let pid: Option<i32> =
            sqlx::query_scalar(busy).fetch_optional(&mut database).await.unwrap();
        if let Some(pid) = pid.filter(|pid| try_kill("-STOP", pid)) {
            doomed.kill();
            try_kill("-CONT", &pid);
            return true;
        }
    }
    false
}

/// Each request is clicked in both replicas at once, in opposite orders and with opposite verdicts.
pub async fn overlapping_batches(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let (mut slowest, mut odd) = (Duration::ZERO, Vec::new());
    let rounds = scale.of(100, 10);
    for _ in 0..rounds {
        let asked = world.ask_many(60).await;
        let choices = [approve(), Choice::rejected("bob", "아니요")];
        let clicks = (0..2).map(async |replica: usize| {
            let (base, choice) = (&bases[replica], &choices[replica]);
            let mut ids = asked.iter().map(|asked| asked.id.clone()).collect::<Vec<_>>();
            if replica == 1 {
                ids.reverse();
            }
            let clicks = ids.iter().map(|id| timed(people.decide(base, id, choice)));
            let mut ended = join_all(clicks).await;
            if replica == 1 {
                ended.reverse();
            }
            ended
        });
        let ended = join_all(clicks).await;
        for (one, two) in ended[0].iter().zip(&ended[1]) {
            slowest = slowest.max(one.1).max(two.1);
            let is_lost =
                |ended: &Ended| matches!(ended, Ended::Fail { status: 409, standing: Some(_) });
            let one_won = one.0 == Ended::Ok && is_lost(&two.0);
            let two_won = two.0 == Ended::Ok && is_lost(&one.0);
            if !one_won && !two_won {
                odd.push(format!("{:?} and {:?}", one.0, two.0));
            }
        }
    }
    report.count(rounds * 120, "opposite clicks on two replicas");
    report.wrongs("not won by one and lost by the other", &odd);
    report.at_most(slowest, 2 * SECOND, "slowest answer");
    tell_batches(&world, report, scale.of(200, 20)).await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    report.none(usize::try_from(world.number(deadlocks).await).unwrap(), "deadlocks");
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

/// How long the disk stalls.
const STALL: Duration = Duration::from_millis(1500);

/// Postgres stands still for 1.5 s while 64 people click: every click waits, and none fails.
pub async fn disk_stall(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let (mut slowest, mut failed, mut answered) = (Duration::ZERO, Vec::new(), 0);
    let rounds = scale.of(10, 2);
    for _ in 0..rounds {
        let asked = world.ask_many(600).await;
        let stalling = async {
            tokio::time::sleep(SECOND / 10).await;
            world.postgres.freeze();
            tokio::time::sleep(STALL).await;
            world.postgres.thaw();
        };
        let clicks = at_once(asked, 64, async |place, asked| {
            timed(people.decide(&bases[place % 2], &asked.id, &approve())).await
        });
        let (clicks, ()) = join(clicks, stalling).await;
        answered += clicks.len();
        for (ended, took) in clicks {
            slowest = slowest.max(took);
            if ended != Ended::Ok {
                failed.push(format!("{ended:?} after {took:?}"));
            }
        }
    }
    report.count(rounds, "stalls of 1.5 s");
    report.count(answered, "clicks");
    report.wrongs("clicks that failed", &failed);
    report.at_most(slowest, 3 * SECOND, "slowest answer");
    report.demand(slowest >= STALL, || "no click met the stall".to_owned());
    world.check(report, 10 * SECOND, Delivered::Published).await;
}
