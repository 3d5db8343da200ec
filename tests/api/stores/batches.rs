//! Group commit: writes that arrive together share statements and commits, and each has its own
//! answer. A row that is locked, refused or written twice costs only itself. On every ledger; what
//! needs a second connection, on Postgres.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::task::{Task, TaskStatus};
use aura_hitl::ledger::{LedgerError, Overdue, Recorded, Registered};
use chrono::TimeDelta;
use futures_util::future::{join, join_all, join3};
use serde_json::json;
use support::{ALICE, Asked, BOB, Mode, Who, decide_on_ledger, unique, writing};

use super::{Stores, no, now, seconds, won};

/// A decision, as the use case asks for it.
async fn decide(
    stores: &Stores,
    who: Who<'_>,
    asked: &Asked,
    verdict: Verdict,
) -> Result<Recorded, LedgerError> {
    let now = now();
    let (candidate, caller) = (asked.candidate(Origin::Redis, now), who.caller());
    let state = State::Decided(who.decides(verdict, now));
    stores.ledger.record_outcome(&writing(&candidate, &state, &caller, now)).await
}

/// A step of a task, as its agent takes it.
async fn change(stores: &Stores, task: &Task) -> Result<bool, LedgerError> {
    let updated_at = task.updated_at + TimeDelta::seconds(1);
    let after = Task { progress: 50, updated_at, ..task.clone() };
    stores.ledger.replace_task(task, &after).await
}

on_all_stores! {
    async fn of_many_writes_at_once_each_has_its_own_answer(stores: Stores) {
        let now = now();
        let fresh = (0..100).map(|_| Asked::new()).collect::<Vec<_>>();
        let known = (0..20).map(|_| Asked::new()).collect::<Vec<_>>();
        for asked in &known {
            won(stores.decide(BOB, asked, no(), now).await);
        }
        let registered = (0..50).map(|_| Asked::new()).collect::<Vec<_>>();
        let decisions = fresh.iter().chain(&known);
        let decisions = join_all(decisions.map(|asked| {
            stores.decide(ALICE, asked, Verdict::Approve, now)
        }));
        let registrations =
            join_all(registered.iter().map(|asked| stores.register(ALICE, asked, now)));
        let (decisions, registrations) = join(decisions, registrations).await;
        for (asked, recorded) in fresh.iter().chain(&known).zip(decisions) {
            let (Recorded::Won(record) | Recorded::Lost(record)) = recorded else {
                panic!("{recorded:?}")
            };
            assert_eq!(record.id.as_str(), asked.id);
            let is_fresh = fresh.iter().any(|fresh| fresh.id == asked.id);
            let expected = if is_fresh {
                ALICE.decides(Verdict::Approve, now)
            } else {
                BOB.decides(no(), now)
            };
            assert_eq!(record.state, State::Decided(expected));
            assert!(stores.task("tenant1", record.task.as_str()).await.is_some());
        }
        for (asked, registered) in registered.iter().zip(registrations) {
            let Registered::New(record) = registered else { panic!("{registered:?}") };
            assert_eq!((record.id.as_str(), record.state), (&*asked.id, State::Pending));
        }
    }

    async fn of_many_tasks_that_change_at_once_each_has_its_own_answer(stores: Stores) {
        let mut tasks = Vec::new();
        for _ in 0..80 {
            tasks.push(stores.keep_task(ALICE, now()).await);
        }
        let later = |task: &Task, progress| Task {
            progress,
            updated_at: task.updated_at + TimeDelta::seconds(1),
            ..task.clone()
        };
        // Every eighth was read before somebody else changed it; every ninth is changed twice.
        let changing = tasks.iter().enumerate().map(async |(n, task)| {
            let seen = if n % 8 == 0 { later(task, 1) } else { task.clone() };
            let (one, two) = (later(task, 50), later(task, 60));
            let change = stores.ledger.replace_task(&seen, &one);
            if n % 9 == 0 {
                let (one, two) = join(change, stores.ledger.replace_task(&seen, &two)).await;
                [one.unwrap(), two.unwrap()]
            } else {
                [change.await.unwrap(), false]
            }
        });
        let changed = join_all(changing).await;
        for (n, (task, changed)) in tasks.iter().zip(changed).enumerate() {
            let is = stores.task("tenant1", task.id.as_str()).await.unwrap();
            let expected = match changed {
                [false, false] => 0,
                [true, false] => 50,
                [false, true] => 60,
                [true, true] => panic!("{n}: both were told that they changed the task"),
            };
            assert_eq!((is.progress, expected == 0), (expected, n % 8 == 0), "{n}");
        }
    }

    // Registered and decided at once, in one session and for one task.
    async fn writes_of_one_session_and_one_task_follow_each_other(stores: Stores) {
        let (now, session, task) = (now(), unique("session"), unique("task"));
        let asked = (0..30).map(|_| Asked::in_session(&session).with("taskId", json!(task)));
        let asked = asked.collect::<Vec<_>>();
        let registered = join_all(asked.iter().map(|asked| stores.register(ALICE, asked, now)));
        assert!(registered.await.iter().all(|one| matches!(one, Registered::New(_))));
        let decided = join_all(asked.iter().map(async |asked| {
            won(stores.decide_as(ALICE, asked, Origin::Http, Verdict::Approve, now).await)
        }))
        .await;
        let numbers = decided.iter().map(|record| record.sequence.unwrap()).collect::<BTreeSet<_>>();
        assert_eq!(numbers, (1..=30).collect());
        assert_eq!(stores.task("tenant1", &task).await.unwrap().status, TaskStatus::InProgress);
    }

    async fn requests_of_one_session_and_one_task_expire_together(stores: Stores) {
        let (now, session, task) = (now(), unique("session"), unique("task"));
        let asked = (0..10).map(|_| Asked::in_session(&session).with("taskId", json!(task)));
        let registering = asked.map(async |asked| {
            match stores.register(ALICE, &asked, now).await {
                Registered::New(record) => Overdue::of(&record),
                other => panic!("{other:?}"),
            }
        });
        let overdue = join_all(registering).await;
        let late = now + seconds(3600);
        assert_eq!(stores.ledger.overdue(late, 100).await.unwrap().len(), 10);
        // Each of them twice.
        let expiring = overdue.iter().chain(&overdue);
        let expired = join_all(expiring.map(|overdue| stores.ledger.expire(overdue, late))).await;
        let expired = expired.into_iter().filter_map(Result::unwrap).collect::<Vec<_>>();
        let numbers = expired.iter().map(|record| record.sequence.unwrap()).collect::<Vec<_>>();
        assert_eq!(numbers.len(), 10, "each expires once");
        assert_eq!(numbers.into_iter().collect::<BTreeSet<_>>(), (1..=10).collect());
        assert!(expired.iter().all(|record| record.state == State::Expired));
        assert_eq!(stores.ledger.overdue(late, 100).await.unwrap(), []);
        let task = stores.task("tenant1", &task).await.unwrap();
        assert_eq!(task.status, TaskStatus::Failed, "{:?}", task.error_message);
    }

    async fn a_caller_that_hangs_up_takes_no_other_down(stores: Stores) {
        let asked = (0..60).map(|_| Asked::new()).collect::<Vec<_>>();
        let deciding = asked.iter().enumerate().map(async |(place, asked)| {
            let deciding = decide(&stores, ALICE, asked, Verdict::Approve);
            if place % 3 == 0 {
                // Dropped at different moments: in the queue, and in a batch.
                let patience = Duration::from_micros(50 * u64::try_from(place).unwrap());
                let _hung_up = tokio::time::timeout(patience, deciding).await;
            } else {
                won(deciding.await.unwrap());
            }
        });
        join_all(deciding).await;
        for asked in &asked {
            // Whoever hung up may ask again.
            let recorded = decide(&stores, ALICE, asked, Verdict::Approve).await.unwrap();
            let (Recorded::Won(record) | Recorded::Lost(record)) = recorded else {
                panic!("{recorded:?}")
            };
            assert!(matches!(record.state, State::Decided(_)));
        }
    }

    async fn a_refused_row_costs_only_itself(stores: Stores) {
        // SQLite has no such constraint to add; a trigger refuses there.
        let refuse = if stores.postgres.is_some() {
            "ALTER TABLE hitl_request ADD CONSTRAINT no_refusal CHECK (action_type <> 'refused')"
        } else {
            "CREATE TRIGGER no_refusal BEFORE INSERT ON hitl_request
               WHEN new.action_type = 'refused'
              BEGIN SELECT RAISE(ABORT, 'refused'); END"
        };
        stores.sql(refuse).await.unwrap();
        let deciding = (0..60).map(async |place| {
            let is_bad = place % 20 == 10;
            let asked = Asked::new();
            let asked =
                if is_bad { asked.with("actionType", json!("refused")) } else { asked };
            match decide(&stores, ALICE, &asked, Verdict::Approve).await {
                Ok(Recorded::Won(_)) => assert!(!is_bad),
                Err(LedgerError::Inconsistent(_)) => assert!(is_bad),
                other => panic!("{other:?}"),
            }
        });
        join_all(deciding).await;
    }
}

/// Rows that one statement has written have the transaction in common. On one thread all calls have handed
/// their write over before the first batch is sent.
#[tokio::test]
async fn writes_at_once_share_commits_and_a_single_one_has_its_own() {
    let stores = Stores::open(Mode::Production).await;
    let pool = stores.postgres.clone().unwrap();
    let commits = async || -> i64 {
        let query = "SELECT COUNT(DISTINCT xmin::text) FROM hitl_request";
        sqlx::query_scalar(query).fetch_one(&pool).await.unwrap()
    };
    for done in 0..3 {
        won(stores.decide(ALICE, &Asked::new(), Verdict::Approve, now()).await);
        assert_eq!(commits().await, done + 1);
    }
    let asked = (0..200).map(|_| Asked::new()).collect::<Vec<_>>();
    let deciding = asked.iter().map(|asked| stores.decide(ALICE, asked, Verdict::Approve, now()));
    join_all(deciding).await.into_iter().for_each(|recorded| drop(won(recorded)));
    let commits = commits().await - 3;
    assert!(commits <= 10, "{commits} commits for 200 decisions at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_row_holds_no_other_up() {
    let stores = Stores::open(Mode::Production).await;
    let pool = stores.postgres.clone().unwrap();
    let locked = Asked::new();
    stores.register(ALICE, &locked, now()).await;
    let task = stores.keep_task(ALICE, now()).await;
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(stores.keep_task(ALICE, now()).await);
    }
    let of_locked_task = Asked::new().with("taskId", json!(task.id.as_str()));
    let mut holding = pool.begin().await.unwrap();
    for lock in [
        format!("SELECT FROM hitl_request WHERE request_id = '{}' FOR UPDATE", locked.id),
        format!("SELECT FROM agent_task WHERE task_id = '{}' FOR UPDATE", task.id),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *holding).await.unwrap();
    }
    let began = Instant::now();
    let others = (0..50).map(|_| Asked::new()).collect::<Vec<_>>();
    let others = async {
        let deciding = others.iter().map(|asked| decide(&stores, ALICE, asked, no()));
        let changing = tasks.iter().map(|task| change(&stores, task));
        let (decided, changed) = join(join_all(deciding), join_all(changing)).await;
        for recorded in decided {
            drop(won(recorded.unwrap()));
        }
        assert!(changed.into_iter().all(|changed| changed.unwrap()));
        began.elapsed()
    };
    let behind_the_lock = async {
        let now = now();
        let (candidate, caller) = (locked.candidate(Origin::Http, now), BOB.caller());
        let state = State::Decided(BOB.decides(no(), now));
        let writing = writing(&candidate, &state, &caller, now);
        let deciding = stores.ledger.record_outcome(&writing);
        let (one, two, changed) = join3(
            Box::pin(deciding),
            Box::pin(decide(&stores, BOB, &of_locked_task, no())),
            change(&stores, &task),
        )
        .await;
        assert!(matches!(changed, Err(LedgerError::Locked(_))), "{changed:?}");
        ([one, two], began.elapsed())
    };
    let (others, (locked_out, took)) = join(others, behind_the_lock).await;
    assert!(others < took, "the others waited {others:?}, those behind the lock {took:?}");
    for recorded in locked_out {
        assert!(matches!(recorded, Err(LedgerError::Locked(_))), "{recorded:?}");
    }
    holding.rollback().await.unwrap();
    let late = decide_on_ledger(&stores.ledger, BOB, &locked, Origin::Http, no(), now()).await;
    won(late);
}

/// A lock on the whole table: nobody can be served, and nobody waits for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_locked_table_every_caller_is_told_in_time_that_nothing_was_written() {
    let stores = Stores::open(Mode::Production).await;
    let pool = stores.postgres.clone().unwrap();
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE hitl_request").execute(&mut *holding).await.unwrap();
    let asked = (0..300).map(|_| Asked::new()).collect::<Vec<_>>();
    let deciding = asked.iter().enumerate().map(async |(place, asked)| {
        // One after the other for 600 ms.
        tokio::time::sleep(Duration::from_millis(2) * u32::try_from(place).unwrap()).await;
        let began = Instant::now();
        let recorded = decide(&stores, ALICE, asked, Verdict::Approve).await;
        let is_told = matches!(recorded, Err(LedgerError::Locked(_) | LedgerError::NotExecuted(_)));
        assert!(is_told, "{recorded:?}");
        began.elapsed()
    });
    let slowest = join_all(deciding).await.into_iter().max().unwrap();
    assert!(slowest < Duration::from_millis(2500), "{slowest:?}");
    holding.rollback().await.unwrap();
    let count = "SELECT COUNT(*) FROM hitl_request";
    let written: i64 = sqlx::query_scalar(count).fetch_one(&pool).await.unwrap();
    assert_eq!(written, 0);
    let deciding = asked.iter().map(|asked| stores.decide(ALICE, asked, Verdict::Approve, now()));
    join_all(deciding).await.into_iter().for_each(|recorded| drop(won(recorded)));
}

/// Two replicas that decide the same requests in opposite orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_two_replicas_that_overlap_decide_each_request_once() {
    let stores = Stores::open(Mode::Production).await;
    let other = stores.another_ledger().await;
    let asked = (0..200).map(|_| Asked::new()).collect::<Vec<_>>();
    let began = Instant::now();
    let one = join_all(asked.iter().map(|asked| decide(&stores, ALICE, asked, Verdict::Approve)));
    let two = join_all(asked.iter().rev().map(|asked| {
        decide_on_ledger(&other, BOB, asked, Origin::Redis, no(), Clock::System.now())
    }));
    let (one, mut two) = join(one, two).await;
    two.reverse();
    for (one, two) in one.into_iter().zip(two) {
        match (one.unwrap(), two) {
            (Recorded::Won(won), Recorded::Lost(standing))
            | (Recorded::Lost(standing), Recorded::Won(won)) => {
                assert_eq!(standing.state, won.state);
            }
            both => panic!("{both:?}"),
        }
    }
    assert!(began.elapsed() < Duration::from_secs(5), "they waited for each other");
}
