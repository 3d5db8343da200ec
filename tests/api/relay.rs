//! What happens while Redis or Postgres is away, and when it is back: the servers are really
//! killed, frozen and started again.

use std::time::Duration;

use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::record::{Delivery, DeliveryReceipt, DeliveryResult};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::signal::signal_json;
use aura_hitl::domain::task::TaskStatus;
use aura_hitl::ledger::{LEASE, Pooler, Recorded};
use aura_hitl::server::relay;
use aura_hitl::server::{Replica, stores};
use aura_hitl::state::AppState;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sqlx::PgPool;
use support::{
    ALICE, Answer, Asked, Mode, PrivatePostgres, PrivateRedis, Subscriber, TestApp, Who, config,
    decide_on_ledger, eventually, find_record, fresh_database, redis, unique,
};
use tempfile::TempDir;

/// A call that takes longer than this hangs; each part of it is bounded by 2 s.
const HANGS: Duration = Duration::from_secs(5);

/// A service on a Redis of its own. Everything else is as in the mode.
async fn app_on(mode: Mode, redis: &PrivateRedis) -> TestApp {
    TestApp::spawn_with(mode, Clock::System, |config| config.redis = Some(redis.settings())).await
}

/// An answer, within bounds.
async fn bounded<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, call).await.expect("the call hangs")
}

async fn readiness(app: &TestApp) -> Answer {
    let call = app.client.get(format!("{}/health/ready", app.base)).send();
    bounded(async { Answer::of(call.await.unwrap()).await }).await
}

async fn becomes_ready(app: &TestApp) {
    eventually(async || readiness(app).await.status.is_success().then_some(())).await;
}

/// Turned away: nothing was decided, and a retry may help.
#[track_caller]
fn assert_turned_away(answer: &Answer) {
    answer.assert(503, "E5000");
    let retry = answer.headers.get("Retry-After").and_then(|value| value.to_str().ok());
    assert!(retry.is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{:?}", answer.headers);
}

/// Waits until the signal that the ledger holds is the one under the session's key.
async fn signalled(app: &TestApp, asked: &Asked) {
    let record = app.settled(&asked.id).await;
    assert_eq!(record.delivery, Delivery::Sent);
    let State::Decided(decision) = &record.state else { panic!("{:?}", record.state) };
    let signal = app.signal(&asked.session).await;
    assert_eq!(signal.unwrap(), signal_json(&record.id, decision));
}

/// Records a decision the way a process does that dies before it signals: on the ledger only.
async fn decided_and_died(state: &AppState, asked: &Asked, verdict: Verdict, at: DateTime<Utc>) {
    let recorded = decide_on_ledger(&state.ledger, ALICE, asked, Origin::Redis, verdict, at).await;
    assert!(matches!(recorded, Recorded::Won(_)));
}

/// So long ago that whoever decided then holds its lease no more.
fn a_lease_ago() -> DateTime<Utc> {
    Clock::System.now() - LEASE
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_down_registered_requests_go_on_as_if_nothing_were() {
    let mut redis = PrivateRedis::start().await;
    for mode in [Mode::Embedded, Mode::Production] {
        let app = app_on(mode, &redis).await;
        let [approved, rejected, cancelled, written] = [(); 4].map(|()| Asked::new());
        app.register(ALICE, &rejected).await.assert(201, "");
        app.ask(&written).await;
        redis.kill();

        for asked in [&approved, &cancelled] {
            bounded(app.register(ALICE, asked)).await.assert(201, "");
        }
        let answer = bounded(app.approve(ALICE, &approved.id)).await;
        answer.assert(200, "");
        assert_eq!(answer.data()["status"], "approved");
        bounded(app.reject(ALICE, &rejected.id, Some("아니요"))).await.assert(200, "");
        bounded(app.approve(ALICE, &approved.id)).await.assert(200, "");
        bounded(app.reject(ALICE, &approved.id, None)).await.assert(409, "E3006");
        let cancel = format!("/aura/hitl/requests/{}/cancel", cancelled.id);
        bounded(app.post(ALICE, &cancel, Value::Null)).await.assert(200, "");
        for (asked, status) in [(&approved, "approved"), (&rejected, "rejected")] {
            let polled = bounded(app.poll(ALICE, &asked.session, Some(&asked.id))).await;
            assert_eq!(polled.unwrap()["status"], status);
            let path = format!("/aura/hitl/requests/{}", asked.id);
            let read = bounded(app.get(ALICE, &path)).await;
            assert!(read.assert(200, "").data().as_str().unwrap().contains(status));
            assert_eq!(app.record(&asked.id).await.delivery, Delivery::Sent, "nothing is owed");
        }
        assert_turned_away(&bounded(app.approve(ALICE, &written.id)).await);
        assert!(app.is_unrecorded(&written.id).await);

        redis.start_again().await;
        becomes_ready(&app).await;
        for asked in [&approved, &rejected] {
            assert_eq!(app.signal(&asked.session).await, None);
        }
        app.ask(&written).await;
        app.approve(ALICE, &written.id).await.assert(200, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_frozen_every_call_is_answered() {
    let redis = PrivateRedis::start().await;
    let app = app_on(Mode::Production, &redis).await;
    let [registered, unknown, late] = [(); 3].map(|()| Asked::new());
    app.register(ALICE, &registered).await.assert(201, "");
    app.ask(&unknown).await;
    redis.freeze();
    let [request, signals] = [
        format!("/aura/hitl/requests/{}", unknown.id),
        format!("/aura/hitl/signals/{}", unknown.session),
    ];
    for _round in 0..3 {
        let (known, unknown, request, signals, readiness) = tokio::join!(
            bounded(app.approve(ALICE, &registered.id)),
            bounded(app.approve(ALICE, &unknown.id)),
            bounded(app.get(ALICE, &request)),
            bounded(app.get(ALICE, &signals)),
            readiness(&app)
        );
        known.assert(200, "");
        [&unknown, &request, &signals].into_iter().for_each(assert_turned_away);
        readiness.assert(503, "E5000");
    }
    bounded(app.register(ALICE, &late)).await.assert(201, "");
    let many = (0..20).map(|_| bounded(app.approve(ALICE, &unknown.id)));
    join_all(many).await.iter().for_each(assert_turned_away);
    redis.thaw();
    becomes_ready(&app).await;
    app.approve(ALICE, &unknown.id).await.assert(200, "");
    signalled(&app, &unknown).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_names_the_store_that_is_away() {
    let mut redis = PrivateRedis::start().await;
    let app = app_on(Mode::Production, &redis).await;
    let expected = |ready: bool, courier: bool| {
        serde_json::json!({
            "status": if ready { "UP" } else { "DOWN" },
            "service": "aura-hitl",
            "version": env!("CARGO_PKG_VERSION"),
            "ready": ready,
            "ledger": { "engine": "postgres", "ready": true },
            "courier": { "engine": "redis", "ready": courier },
        })
    };
    assert_eq!(*readiness(&app).await.assert(200, "").data(), expected(true, true));
    redis.kill();
    assert_eq!(*readiness(&app).await.assert(503, "E5000").data(), expected(false, false));
    let live = app.client.get(format!("{}/health/live", app.base)).send().await.unwrap();
    assert_eq!(live.status(), 200, "a restart would not bring Redis back");
    redis.start_again().await;
    becomes_ready(&app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_full_decisions_are_kept_and_signalled_after_relief() {
    let redis = PrivateRedis::start().await;
    let app = TestApp::spawn_with(Mode::Production, Clock::manual(), |config| {
        config.redis = Some(redis.settings());
    })
    .await;
    let asked = Asked::new();
    app.ask(&asked).await;
    let _ok: String = redis.command(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    let ballast = "x".repeat(100_000);
    let full = async |number: u32| {
        redis.try_command::<String>(&["SET", &format!("ballast:{number}"), &ballast]).await.err()
    };
    let mut number = 0;
    let refusal = loop {
        if let Some(refusal) = full(number).await {
            break refusal;
        }
        number += 1;
    };
    assert_eq!(refusal.code(), Some("OOM"));

    bounded(app.approve(ALICE, &asked.id)).await.assert(200, "");
    assert_eq!(app.record(&asked.id).await.delivery, Delivery::Owed);
    let polled = bounded(app.poll(ALICE, &asked.session, Some(&asked.id))).await.unwrap();
    assert_eq!(polled["status"], "approved", "pollers do not depend on the key");
    // The relay tries, again and again, beside the service's own rounds.
    let mut failed = 0;
    eventually(async || {
        app.state.clock.advance(LEASE);
        let round = relay(&app.state).run_once().await.unwrap();
        assert_eq!((round.sent, round.superseded), (0, 0));
        failed += round.failed;
        (failed > 2).then_some(())
    })
    .await;
    assert_eq!(app.signal(&asked.session).await, None);
    let _ok: String = redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    app.state.clock.advance(LEASE);
    signalled(&app, &asked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_replicas_send_each_owed_signal_once() {
    let redis = PrivateRedis::start().await;
    let database = SecretString::from(fresh_database().await);
    let replica = || {
        let ledger = LedgerConfig::Postgres {
            url: database.clone(),
            pooler: Pooler::None,
            max_connections: 10,
        };
        let settings = redis.settings();
        TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
            (config.ledger, config.redis) = (ledger, Some(settings));
        })
    };
    let (one, two) = tokio::join!(replica(), replica());
    let prefix = unique("session");
    let mut messages = redis.client().get_async_pubsub().await.unwrap();
    messages.psubscribe(format!("hitl:channel:{prefix}*")).await.unwrap();
    let asked: Vec<_> =
        (0..60).map(|number| Asked::in_session(&format!("{prefix}_{number}"))).collect();
    let dying = asked
        .iter()
        .map(|asked| decided_and_died(&one.state, asked, Verdict::Approve, a_lease_ago()));
    let relaying = async {
        // Beside the two replicas' own rounds: as many at once as can be.
        for _round in 0..6 {
            let (one, two) = (relay(&one.state), relay(&two.state));
            let rounds = tokio::join!(one.run_once(), two.run_once());
            rounds.0.unwrap();
            rounds.1.unwrap();
        }
    };
    tokio::join!(join_all(dying), relaying);
    for asked in &asked {
        assert_eq!(two.settled(&asked.id).await.delivery, Delivery::Sent);
    }
    let end = format!("hitl:channel:{prefix}_end");
    let _listeners: i64 = redis.command(&["PUBLISH", &end, "end"]).await;
    let mut heard: Vec<_> = messages
        .into_on_message()
        .map(|message| message.get_channel_name().to_owned())
        .take_while(|channel| std::future::ready(*channel != end))
        .collect()
        .await;
    heard.sort();
    let mut expected: Vec<_> =
        asked.iter().map(|asked| format!("hitl:channel:{}", asked.session)).collect();
    expected.sort();
    assert_eq!(heard, expected);
}

over_redis! {
    async fn a_decision_whose_process_died_before_the_signal_is_signalled_by_the_relay(app: TestApp) {
        let [approved, rejected] = [(); 2].map(|()| Asked::new());
        let no = Verdict::Reject { reason: "no".to_owned() };
        for (asked, verdict) in [(&approved, Verdict::Approve), (&rejected, no)] {
            app.ask(asked).await;
            decided_and_died(&app.state, asked, verdict, a_lease_ago()).await;
            signalled(&app, asked).await;
            let path = format!("/aura/hitl/requests/{}", asked.id);
            let document = app.get(ALICE, &path).await.assert(200, "").data().clone();
            let document: Value = serde_json::from_str(document.as_str().unwrap()).unwrap();
            assert_ne!(document["status"], "pending");
        }
    }
}

over_redis! {
    async fn a_task_that_nobody_let_go_on_goes_on_with_the_signal(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        // As processes leave it that decide two requests of a task at the same moment, and die
        // before they look at it again. Not due before that is so.
        let at = Clock::System.now() + TimeDelta::hours(1);
        decided_and_died(&app.state, &asked, Verdict::Approve, at).await;
        app.sql("UPDATE agent_task SET status = 'WAITING_APPROVAL'").await;
        app.sql("UPDATE hitl_delivery SET due_at = '2020-01-01'").await;
        signalled(&app, &asked).await;
        assert_eq!(app.task_of(&asked.id).await.status, TaskStatus::InProgress);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owed_is_sent_before_the_service_ends() {
    for mode in [Mode::Embedded, Mode::Production] {
        let (folder, clock, asked) = (TempDir::new().unwrap(), Clock::manual(), Asked::new());
        let config = config(mode, &folder).await;
        let replica = Replica::start(&config, clock.clone()).await.unwrap();
        decided_and_died(&replica.state, &asked, Verdict::Approve, clock.now()).await;
        clock.advance(LEASE);
        replica.stop().await;
        // Without the lock: a program that another test is just starting may hold a copy of it.
        let (ledger, _lock) = stores::open_ledger(&config, false).await.unwrap();
        let record = find_record(&ledger, &asked.id).await;
        assert_eq!(record.unwrap().delivery, Delivery::Sent);
    }
}

over_redis! {
    async fn the_relay_does_not_signal_a_session_that_has_moved_on(app: TestApp) {
        let first = Asked::new();
        let second = Asked::in_session(&first.session);
        app.ask(&first).await;
        app.ask(&second).await;
        decided_and_died(&app.state, &first, Verdict::Approve, a_lease_ago()).await;
        assert_eq!(app.settled(&first.id).await.delivery, Delivery::Superseded);
        assert_eq!(app.signal(&first.session).await, None);
        assert_eq!(app.poll(ALICE, &first.session, None).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_is_away_nothing_is_decided() {
    let mut postgres = PrivatePostgres::start().await;
    let redis = PrivateRedis::start().await;
    let url = SecretString::from(postgres.url());
    let app = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.ledger = LedgerConfig::Postgres { url, pooler: Pooler::None, max_connections: 10 };
        config.redis = Some(redis.settings());
    })
    .await;
    let [asked, registered, before] = [(); 3].map(|()| Asked::new());
    app.ask(&asked).await;
    app.ask(&before).await;
    app.register(ALICE, &registered).await.assert(201, "");
    app.approve(ALICE, &before.id).await.assert(200, "");
    let turned_away = async || {
        let decisions = [&asked, &registered].map(|one| async {
            tokio::join!(
                bounded(app.approve(ALICE, &one.id)),
                bounded(app.reject(ALICE, &one.id, None))
            )
        });
        let other = Asked::new();
        let (decisions, registration, readiness) = tokio::join!(
            join_all(decisions),
            bounded(app.register(ALICE, &other)),
            readiness(&app)
        );
        assert_turned_away(&registration);
        for (yes, no) in &decisions {
            [yes, no].into_iter().for_each(assert_turned_away);
        }
        assert_eq!(readiness.assert(503, "E5000").data()["ledger"]["ready"], false);
        assert_eq!(readiness.data()["courier"]["ready"], true);
        for one in [&asked, &registered] {
            assert_eq!(app.signal(&one.session).await, None);
        }
    };
    postgres.freeze();
    // A connection that was used less than 100 ms ago is not pinged before its next use. A decision
    // that is sent over it is recorded after the thaw, and is answered so. The workers use connections
    // at any time, so all of them have to rest after the freeze.
    tokio::time::sleep(Duration::from_millis(200)).await;
    turned_away().await;
    postgres.thaw();
    becomes_ready(&app).await;
    assert!(app.is_unrecorded(&asked.id).await);
    assert_eq!(app.record(&registered.id).await.state, State::Pending);
    postgres.crash();
    turned_away().await;
    let stored: String = redis.command(&["GET", &format!("hitl:request:{}", asked.id)]).await;
    assert_eq!(serde_json::from_str::<Value>(&stored).unwrap()["status"], "pending");

    postgres.start_again().await;
    becomes_ready(&app).await;
    assert!(matches!(app.record(&before.id).await.state, State::Decided(_)));
    let bob = Who { user: "bob", ..ALICE };
    for one in [&asked, &registered] {
        app.approve(bob, &one.id).await.assert(200, "");
    }
    signalled(&app, &asked).await;
}

/// A row that somebody holds locked keeps its own mark waiting, and nobody else's; and what was sent
/// is not sent again meanwhile, to an agent that may wait for something else by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_row_makes_nobody_hear_twice() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { panic!("no Postgres") };
    let pool = PgPool::connect(url.expose_secret()).await.unwrap();
    let asked = [(); 3].map(|()| Asked::new());
    let mut marks = Vec::new();
    for one in &asked {
        app.ask(one).await;
        app.approve(ALICE, &one.id).await.assert(200, "");
        let record = app.settled(&one.id).await;
        marks.push(DeliveryReceipt::of(
            &record,
            DeliveryResult {
                replication_id: record.replication_id.clone(),
                ..DeliveryResult::SENT
            },
            app.state.clock.now(),
        ));
    }
    // As after sending and before noting; the leases end in a moment, once the receipts are kept.
    sqlx::query(
        "UPDATE hitl_delivery SET delivery = 'owed', sent_to = NULL, sent_at = NULL,
                due_at = now() + interval '1 s'",
    )
    .execute(&pool)
    .await
    .unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM hitl_delivery WHERE request_id = $1 FOR UPDATE")
        .bind(&asked[0].id)
        .execute(&mut *lock)
        .await
        .unwrap();
    for mark in marks {
        app.state.ledger.keep_receipt(mark);
    }
    // Not before: whoever comes to a signal that nobody heard, hears it.
    let mut subscribers = Vec::new();
    for one in &asked {
        subscribers.push(Subscriber::on(&one.session).await);
    }
    for one in &asked[1..] {
        app.settled(&one.id).await;
    }
    // Until the relay has looked at what is due.
    let row = "SELECT delivery FROM hitl_delivery
                WHERE request_id = $1 AND due_at < now() - interval '1 s'";
    let row: String = eventually(async || {
        sqlx::query_scalar(row).bind(&asked[0].id).fetch_optional(&pool).await.unwrap()
    })
    .await;
    assert_eq!(row, "owed");
    // Whoever asks where it stands is told what was done, not what is written.
    assert_eq!(said_of_the_signal(&app, &asked[0]).await, "sent");
    lock.rollback().await.unwrap();
    app.settled(&asked[0].id).await;
    for mut subscriber in subscribers {
        assert!(subscriber.heard().await.is_empty());
    }
}

/// Where the signal of a decided request stands, as the service says.
async fn said_of_the_signal(app: &TestApp, asked: &Asked) -> String {
    let path = format!("/aura/hitl/requests/{}/decision", asked.id);
    let answer = app.get(ALICE, &path).await;
    answer.assert(200, "").data()["signal"]["state"].as_str().unwrap().to_owned()
}

/// Whoever was answered that their decision stands never reads that its signal is owed, although it is
/// noted a moment later that it went out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_that_went_out_is_never_said_to_be_owed() {
    let app = TestApp::spawn(Mode::Production).await;
    for _each in 0..20 {
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(said_of_the_signal(&app, &asked).await, "sent");
    }
}

/// A task that somebody holds locked goes on as soon as it is free, and its signal, which is sent
/// meanwhile, is recorded and not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_task_makes_nobody_hear_twice() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { panic!("no Postgres") };
    let pool = PgPool::connect(url.expose_secret()).await.unwrap();
    let asked = Asked::new();
    let mut subscriber = Subscriber::on(&asked.session).await;
    app.ask(&asked).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    app.settled(&asked.id).await;
    assert_eq!(subscriber.heard().await.len(), 1);
    // As after a decider who died before it looked at the task again and before it sent the signal.
    sqlx::query("UPDATE agent_task SET status = 'WAITING_APPROVAL'").execute(&pool).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM agent_task FOR UPDATE").execute(&mut *lock).await.unwrap();
    sqlx::query(
        "UPDATE hitl_delivery
            SET delivery = 'owed', listeners = NULL, sent_to = NULL, sent_at = NULL, due_at = now()",
    )
    .execute(&pool)
    .await
    .unwrap();
    assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Sent);
    assert_eq!(app.task_of(&asked.id).await.status, TaskStatus::WaitingApproval);
    lock.rollback().await.unwrap();
    eventually(async || {
        let task = app.task_of(&asked.id).await;
        (task.status == TaskStatus::InProgress).then_some(())
    })
    .await;
    assert_eq!(subscriber.heard().await.len(), 1);
}

/// A request that is no text is a request that cannot be read, not a Redis that is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_text_are_not_an_outage() {
    let app = TestApp::spawn(Mode::Production).await;
    let (registered, written) = (Asked::new(), Asked::new());
    app.register(ALICE, &registered).await.assert(201, "");
    app.settled(&registered.id).await;
    let mut redis = redis().await;
    for one in [&registered, &written] {
        let mut bytes = one.document.to_string().into_bytes();
        let at = one.document.to_string().find(&one.session).unwrap();
        bytes[at] = 0xff;
        let key = format!("hitl:request:{}", one.id);
        let () = redis::cmd("SET").arg(key).arg(bytes).query_async(&mut redis).await.unwrap();
        app.approve(ALICE, &one.id).await.assert(422, "E4220");
    }
    assert_eq!(app.record(&registered.id).await.state, State::Pending);
    assert!(app.is_unrecorded(&written.id).await);
}

/// An agent that asks again before it is noted that it was told: a poll does not find the earlier
/// answer, and the same decision tells it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_before_the_note_is_told_again() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { panic!("no Postgres") };
    let pool = PgPool::connect(url.expose_secret()).await.unwrap();
    let [locked, asked] = [(); 2].map(|()| Asked::new());
    let mut marks = Vec::new();
    for one in [&locked, &asked] {
        app.ask(one).await;
        app.approve(ALICE, &one.id).await.assert(200, "");
        let record = app.settled(&one.id).await;
        let settled = DeliveryResult {
            replication_id: record.replication_id.clone(),
            ..DeliveryResult::SENT
        };
        marks.push(DeliveryReceipt::of(&record, settled, app.state.clock.now()));
    }
    // As after sending and before noting, with the leases running.
    let before = "UPDATE hitl_delivery SET delivery = 'owed', sent_to = NULL, sent_at = NULL,
                         due_at = now() + interval '1 hour'";
    sqlx::query(before).execute(&pool).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    let row = "SELECT 1 FROM hitl_delivery WHERE request_id = $1 FOR UPDATE";
    sqlx::query(row).bind(&locked.id).execute(&mut *lock).await.unwrap();
    let asked_mark = marks.pop().unwrap();
    app.state.ledger.keep_receipt(marks.pop().unwrap());
    // Whoever writes marks waits for the lock, and the other mark for them.
    eventually(async || {
        let waiting = "SELECT COUNT(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&pool).await.unwrap();
        (waiting > 0).then_some(())
    })
    .await;
    app.state.ledger.keep_receipt(asked_mark);
    let mut subscriber = Subscriber::on(&asked.session).await;
    app.ask(&asked).await;
    assert_eq!(app.poll(ALICE, &asked.session, None).await, None);
    app.approve(ALICE, &asked.id).await.assert(200, "");
    assert_eq!(subscriber.heard().await.len(), 1);
    lock.rollback().await.unwrap();
    for one in [&locked, &asked] {
        app.settled(&one.id).await;
    }
}
