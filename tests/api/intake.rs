//! The intake: what agents write to Redis is a pending row soon after, with and without keyspace events,
//! on one server, on Sentinel and on a Cluster. Such a row changes no rule, and ends with its key.

use std::time::{Duration, Instant};

use aura_hitl::config::LedgerConfig;
use aura_hitl::courier::RedisSettings;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::ids::RequestId;
use aura_hitl::domain::record::Record;
use aura_hitl::domain::rules::UnscopedRequests;
use chrono::TimeDelta;
use futures_util::StreamExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::{
    ALICE, Asked, BOB, FAILOVER_TIMEOUT, MALLORY, Mode, PrivateCluster, PrivateRedis,
    PrivateSentinels, TestApp, eventually, eventually_within, find_record, unique, watch_redis,
};

/// A Redis that announces changes, and one that does not.
const ANNOUNCING: [&str; 2] = ["--notify-keyspace-events", "KA"];
const SILENT: [&str; 2] = ["--notify-keyspace-events", ""];

/// How soon the contract wants a request to be known, and twice that for a machine that is busy.
const SOON: Duration = Duration::from_secs(4);
/// The same for a key that has gone.
const GONE: Duration = Duration::from_secs(10);

async fn app_on(settings: RedisSettings) -> TestApp {
    TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.redis = Some(settings);
        watch_redis(config);
    })
    .await
}

/// Another replica on the same stores.
async fn twin(app: &TestApp) -> TestApp {
    let (ledger, redis) = (app.config.ledger.clone(), app.config.redis.clone());
    TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.ledger = ledger;
        config.redis = redis;
        config.jwt = app.config.jwt.clone();
        watch_redis(config);
    })
    .await
}

/// Waits for the row of a request to be like this.
async fn row(
    app: &TestApp,
    asked: &Asked,
    within: Duration,
    is: impl Fn(&Record) -> bool,
) -> Record {
    let mut last = None;
    let looking = eventually_within(within, async || {
        last = find_record(&app.state.ledger, &asked.id).await;
        last.clone().filter(|record| is(record))
    });
    let Ok(record) = tokio::time::timeout(within, looking).await else {
        panic!("not within {within:?}")
    };
    record
}

async fn pending(app: &TestApp, asked: &Asked) -> Record {
    row(app, asked, SOON, |record| record.state == State::Pending).await
}

async fn expired(app: &TestApp, asked: &Asked) -> Record {
    row(app, asked, GONE, |record| record.state == State::Expired).await
}

async fn delete(redis: &PrivateRedis, asked: &Asked) {
    let _: i64 = redis.command(&["DEL", &format!("hitl:request:{}", asked.id)]).await;
}

/// Defines a test that runs on a Redis that announces changes, and on one that does not.
macro_rules! announced_or_not {
    ($(async fn $name:ident($redis:ident: PrivateRedis, $app:ident: TestApp) $body:block)*) => {$(
        mod $name {
            use super::*;

            #[allow(unused_mut, unused_variables)]
            async fn check(mut $redis: PrivateRedis) {
                let $app = app_on($redis.settings()).await;
                $body
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn by_events() {
                check(PrivateRedis::start_with(&ANNOUNCING).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn by_passes() {
                check(PrivateRedis::start_with(&SILENT).await).await;
            }
        }
    )*};
}

announced_or_not! {
    async fn what_an_agent_asks_is_known_soon(redis: PrivateRedis, app: TestApp) {
        for round in 0..3 {
            let asked = Asked::new().with("message", json!("Send it?"));
            let before = Instant::now();
            let at = Clock::System.now();
            app.ask(&asked).await;
            let record = pending(&app, &asked).await;
            println!("known after {:?}", before.elapsed());
            assert!(record.is_only_seen() && !record.has_moved_on, "{round}");
            assert_eq!(record.document, asked.document.to_string());
            assert_eq!((record.tenant.as_str(), record.session.as_str()), ("tenant1", &*asked.session));
            assert!(record.created_at >= at && record.created_at - at < TimeDelta::seconds(4));
            let left = record.expires_at - record.created_at;
            assert!(left <= TimeDelta::seconds(1801) && left > TimeDelta::seconds(1795), "{left}");
            // It is decided like any other, makes its task then, and nothing was signalled before.
            assert_eq!(app.signal(&asked.session).await, None);
            assert!(app.tasks("tenant1").await.iter().all(|task| task.hitl_request_id.is_none()
                || task.hitl_request_id.as_ref().unwrap().as_str() != asked.id));
            app.approve(ALICE, &asked.id).await.assert(200, "");
            let record = app.settled(&asked.id).await;
            assert!(record.is_approved());
            assert_eq!(app.task_of(&asked.id).await.hitl_request_id.unwrap().as_str(), asked.id);
            assert!(app.signal(&asked.session).await.unwrap().contains(&asked.id));
            app.approve(ALICE, &asked.id).await.assert(200, "");
            app.reject(BOB, &asked.id, None).await.assert(409, "E3006");
        }
    }

    async fn a_request_waits_a_moment_for_its_session(redis: PrivateRedis, app: TestApp) {
        // The tenant is its session's, which comes half a second later.
        let asked = Asked::new().with("tenantId", Value::Null).with("userId", Value::Null);
        app.put(&asked.id, &asked.document.to_string()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(app.is_unrecorded(&asked.id).await);
        let pointer = json!({ "requestId": asked.id, "tenantId": "tenant2", "userId": "bob" });
        app.point(&asked.session, &pointer.to_string()).await;
        let record = pending(&app, &asked).await;
        assert_eq!((record.tenant.as_str(), record.user.unwrap().as_str()), ("tenant2", "bob"));
        // One that its session never names is known, too, and waits for nobody.
        let before = Asked::new();
        app.ask(&before).await;
        let unnamed = Asked::in_session(&before.session);
        app.put(&unnamed.id, &unnamed.document.to_string()).await;
        assert!(pending(&app, &unnamed).await.has_moved_on);
        app.approve(ALICE, &unnamed.id).await.assert(410, "E3007");
        assert!(!pending(&app, &before).await.has_moved_on);
        // And one whose session names nothing may be decided.
        let alone = Asked::new();
        app.put(&alone.id, &alone.document.to_string()).await;
        assert!(!pending(&app, &alone).await.has_moved_on);
        app.approve(ALICE, &alone.id).await.assert(200, "");
    }

    async fn an_agent_that_asks_on_has_moved_on(redis: PrivateRedis, app: TestApp) {
        let first = Asked::new();
        app.ask(&first).await;
        pending(&app, &first).await;
        let second = Asked::in_session(&first.session);
        app.ask(&second).await;
        pending(&app, &second).await;
        row(&app, &first, SOON, |record| record.has_moved_on).await;
        app.approve(ALICE, &first.id).await.assert(410, "E3007");
        assert_eq!(app.signal(&first.session).await, None);
        assert!(app.record(&first.id).await.is_only_seen());
        app.approve(ALICE, &second.id).await.assert(200, "");
        assert!(app.signal(&first.session).await.unwrap().contains(&second.id));
        assert_eq!(app.poll(ALICE, &first.session, Some(&first.id)).await, None);
        // Its session names the first again.
        app.ask(&first).await;
        row(&app, &first, SOON, |record| !record.has_moved_on).await;
    }

    async fn where_a_session_names_nothing_its_newest_counts(redis: PrivateRedis, app: TestApp) {
        let first = Asked::new();
        app.put(&first.id, &first.document.to_string()).await;
        pending(&app, &first).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let second = Asked::in_session(&first.session);
        app.put(&second.id, &second.document.to_string()).await;
        pending(&app, &second).await;
        row(&app, &first, SOON, |record| record.has_moved_on).await;
        app.approve(ALICE, &first.id).await.assert(410, "E3007");
        assert_eq!(app.poll(ALICE, &first.session, None).await, None);
        app.approve(ALICE, &second.id).await.assert(200, "");
    }

    async fn other_content_replaces_what_was_seen_and_is_what_is_decided(redis: PrivateRedis, app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let before = pending(&app, &asked).await;
        let other = asked.clone().with("context", json!({ "to": "everybody" }));
        app.ask(&other).await;
        // Before it is seen, what Redis has counts.
        let read = app.get(ALICE, &format!("/aura/hitl/requests/{}", asked.id)).await;
        assert!(read.data().as_str().unwrap().contains("everybody"), "{}", read.text);
        let after = row(&app, &asked, SOON, |record| record.content_hash != before.content_hash).await;
        assert_eq!(after.document, other.document.to_string());
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(app.record(&asked.id).await.document, asked.document.to_string());
    }

    async fn a_key_that_goes_closes_its_row_until_it_is_written_anew(redis: PrivateRedis, app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let before = pending(&app, &asked).await;
        delete(&redis, &asked).await;
        let closed = expired(&app, &asked).await;
        assert_eq!(closed.sequence, None);
        app.approve(ALICE, &asked.id).await.assert(410, "E3007");
        app.reject(ALICE, &asked.id, None).await.assert(410, "E3007");
        app.approve(MALLORY, &asked.id).await.assert(404, "E1004");
        let path = format!("/aura/hitl/requests/{}/decision", asked.id);
        assert_eq!(app.get(ALICE, &path).await.data()["status"], "expired");
        assert_eq!(app.signal(&asked.session).await, None);
        app.ask(&asked).await;
        let again = pending(&app, &asked).await;
        assert!(again.created_at > before.created_at && again.closed_at.is_none());
        // It is decided before it is seen again, too.
        delete(&redis, &asked).await;
        expired(&app, &asked).await;
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert!(app.record(&asked.id).await.is_approved());
        // One that runs out.
        let short = Asked::new();
        let (key, text) = (format!("hitl:request:{}", short.id), short.document.to_string());
        let pointer = json!({ "requestId": short.id, "tenantId": "tenant1" }).to_string();
        app.point(&short.session, &pointer).await;
        let _: String = redis.command(&["SET", &key, &text, "EX", "5"]).await;
        let at = Clock::System.now();
        let record = pending(&app, &short).await;
        assert!(record.created_at - at < TimeDelta::seconds(4), "it is when it was seen");
        assert!(record.expires_at - at <= TimeDelta::seconds(6), "{}", record.expires_at - at);
        expired(&app, &short).await;
        app.approve(ALICE, &short.id).await.assert(410, "E3007");
    }

    async fn a_decided_request_that_is_asked_again_is_noted(redis: PrivateRedis, app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        pending(&app, &asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(app.settled(&asked.id).await.asked_again_until, None);
        app.ask(&asked).await;
        let again = row(&app, &asked, GONE * 2, |record| record.asked_again_until.is_some()).await;
        assert!(again.is_approved());
        // The same decision once more answers it.
        app.approve(ALICE, &asked.id).await.assert(200, "");
        let answered = app.settled(&asked.id).await;
        assert!(answered.asked_again_until.is_none() && answered.owed_since > again.owed_since);
        // Other content under its id is nobody's question.
        app.put(&asked.id, &asked.clone().with("x", json!(1)).document.to_string()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let standing = app.record(&asked.id).await;
        assert!(standing.is_approved() && standing.asked_again_until.is_none());
        app.approve(ALICE, &asked.id).await.assert(422, "E4220");
        // Asked again, and given up.
        app.ask(&asked).await;
        row(&app, &asked, GONE * 2, |record| record.asked_again_until.is_some()).await;
        delete(&redis, &asked).await;
        row(&app, &asked, GONE, |record| record.asked_again_until.is_none()).await;
    }

    async fn a_redis_that_lost_its_data_closes_nothing(redis: PrivateRedis, app: TestApp) {
        let all = (0..50).map(|_| Asked::new()).collect::<Vec<_>>();
        for asked in &all {
            app.ask(asked).await;
        }
        for asked in &all {
            pending(&app, asked).await;
        }
        redis.kill();
        redis.start_again().await;
        // Somebody is known on the new one, and found to be gone there.
        let later = Asked::new();
        app.ask(&later).await;
        row(&app, &later, GONE, |record| record.state == State::Pending).await;
        delete(&redis, &later).await;
        expired(&app, &later).await;
        // Nobody may decide what is not there any more. That is not the end of it.
        for asked in &all {
            row(&app, asked, GONE, |record| record.has_moved_on).await;
        }
        for asked in &all {
            assert_eq!(app.record(&asked.id).await.state, State::Pending);
        }
        app.approve(ALICE, &all[0].id).await.assert(410, "E3007");
        assert!(app.record(&all[0].id).await.is_only_seen());
        // Its agent asks once more.
        app.ask(&all[0]).await;
        row(&app, &all[0], GONE, |record| !record.has_moved_on).await;
        app.approve(ALICE, &all[0].id).await.assert(200, "");
    }

    async fn a_request_without_tenant_is_known_once_its_session_has_one(redis: PrivateRedis, app: TestApp) {
        let asked = Asked::new().with("tenantId", Value::Null).with("userId", Value::Null);
        app.put(&asked.id, &asked.document.to_string()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(app.is_unrecorded(&asked.id).await);
        let pointer = |user: &str| json!({ "requestId": asked.id, "tenantId": "tenant1", "userId": user });
        app.point(&asked.session, &pointer("alice").to_string()).await;
        assert_eq!(pending(&app, &asked).await.user.unwrap().as_str(), "alice");
        // Its session is somebody else's by now.
        app.point(&asked.session, &pointer("bob").to_string()).await;
        row(&app, &asked, SOON, |record| record.user.as_ref().unwrap().as_str() == "bob").await;
    }

    async fn a_registered_id_under_a_key_that_changes_tenant_stops_nobody(redis: PrivateRedis, app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        pending(&app, &asked).await;
        // Another tenant registers the id, and writes the key.
        let theirs = asked.clone().with("tenantId", json!("tenant2"));
        app.register(MALLORY, &theirs).await.assert(201, "");
        app.ask(&theirs).await;
        let later = Asked::new();
        tokio::time::sleep(Duration::from_secs(1)).await;
        app.ask(&later).await;
        pending(&app, &later).await;
        let id = RequestId::parse(&*asked.id).unwrap();
        eventually_within(SOON, async || {
            app.state.ledger.find_request_of_redis(&id).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    async fn a_row_that_somebody_has_locked_holds_up_no_other(redis: PrivateRedis, app: TestApp) {
        let [locked, locked_and_gone, locked_and_left, gone, changed] =
            [(); 5].map(|()| Asked::new());
        for asked in [&locked, &locked_and_gone, &locked_and_left, &gone, &changed] {
            app.ask(asked).await;
            pending(&app, asked).await;
        }
        let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { panic!("no Postgres") };
        let mut holder = PgConnection::connect(url.expose_secret()).await.unwrap();
        let mut transaction = holder.begin().await.unwrap();
        let lock = "SELECT 1 FROM hitl_request WHERE request_id = $1 FOR UPDATE";
        for asked in [&locked, &locked_and_gone, &locked_and_left] {
            sqlx::query(lock).bind(&*asked.id).execute(&mut *transaction).await.unwrap();
        }
        let other = |asked: &Asked| asked.clone().with("context", json!({ "to": "everybody" }));
        let is_other = |record: &Record| record.document.contains("everybody");
        for asked in [&locked, &changed] {
            app.ask(&other(asked)).await;
        }
        delete(&redis, &locked_and_gone).await;
        delete(&redis, &gone).await;
        // The agent asks on.
        let new = Asked::in_session(&locked_and_left.session);
        app.ask(&new).await;
        pending(&app, &new).await;
        expired(&app, &gone).await;
        row(&app, &changed, SOON, is_other).await;
        transaction.rollback().await.unwrap();
        row(&app, &locked, GONE, is_other).await;
        expired(&app, &locked_and_gone).await;
        row(&app, &locked_and_left, GONE, |record| record.has_moved_on).await;
    }

    async fn what_is_no_request_of_redis_is_not_shown(redis: PrivateRedis, app: TestApp) {
        let (registered, decided, withdrawn) = (Asked::new(), Asked::new(), Asked::new());
        app.register(ALICE, &registered).await.assert(201, "");
        app.ask(&registered.clone().with("context", json!({ "to": "everybody" }))).await;
        app.ask(&decided).await;
        app.approve(ALICE, &decided.id).await.assert(200, "");
        app.ask(&withdrawn).await;
        pending(&app, &withdrawn).await;
        let path = format!("/aura/hitl/requests/{}/cancel", withdrawn.id);
        app.post(ALICE, &path, json!({})).await.assert(200, "");
        let (broken, nobodys) = (Asked::new(), Asked::new().with("tenantId", Value::Null));
        app.put(&broken.id, "{broken").await;
        app.put(&nobodys.id, &nobodys.document.to_string()).await;
        let forged = Asked::new().with("status", json!("approved"));
        app.ask(&forged).await;
        let last = Asked::new();
        app.ask(&last).await;
        pending(&app, &last).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        for asked in [&broken, &nobodys, &forged] {
            assert!(app.is_unrecorded(&asked.id).await, "{}", asked.document);
        }
        let record = app.record(&registered.id).await;
        assert!(!record.is_only_seen() && record.document.contains("a@b.c"));
        app.approve(ALICE, &registered.id).await.assert(422, "E4220");
        assert_eq!(app.record(&withdrawn.id).await.state, State::Cancelled);
        assert!(app.record(&decided.id).await.is_approved());
        app.approve(ALICE, &forged.id).await.assert(422, "E4220");
        app.approve(ALICE, &broken.id).await.assert(422, "E4220");
        // What was seen, and cannot be read any more, is not shown either.
        app.put(&last.id, "{broken").await;
        expired(&app, &last).await;
        app.approve(ALICE, &last.id).await.assert(422, "E4220");
        let metrics = app.get(ALICE, "/metrics").await.text;
        let unreadable = metrics.lines().find_map(|line| {
            line.strip_prefix("aura_hitl_intake_unreadable_total ")?.parse::<u64>().ok()
        });
        assert!(unreadable.unwrap() >= 2, "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_switched_off_and_on_lose_nothing() {
    let redis = PrivateRedis::start_with(&ANNOUNCING).await;
    let app = app_on(redis.settings()).await;
    let mut all = Vec::new();
    for flags in ["KA", "", "Kg$x", "KEA", "", "K$", "KA"] {
        let _: String = redis.command(&["CONFIG", "SET", "notify-keyspace-events", flags]).await;
        for _ in 0..5 {
            let asked = Asked::new();
            app.ask(&asked).await;
            all.push(asked);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for asked in &all {
        pending(&app, asked).await;
    }
    // The subscription is cut, and asked for again.
    let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let asked = Asked::new();
    app.ask(&asked).await;
    row(&app, &asked, GONE, |record| record.state == State::Pending).await;
    let flags: Vec<String> = redis.command(&["CONFIG", "GET", "notify-keyspace-events"]).await;
    assert_eq!(flags[1].len(), 2, "only read: {flags:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_watches_and_another_takes_over() {
    let redis = PrivateRedis::start_with(&ANNOUNCING).await;
    let one = app_on(redis.settings()).await;
    let two = twin(&one).await;
    let asked = Asked::new();
    one.ask(&asked).await;
    pending(&two, &asked).await;
    let seen = Asked::new();
    one.ask(&seen).await;
    pending(&two, &seen).await;
    drop(one);
    let later = Asked::new();
    two.ask(&later).await;
    row(&two, &later, Duration::from_secs(7), |record| record.state == State::Pending).await;
    // What the other had seen is looked after.
    delete(&redis, &seen).await;
    expired(&two, &seen).await;
    two.approve(ALICE, &asked.id).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_rights_for_it_passes_find_what_events_would() {
    let redis = PrivateRedis::start_with(&[
        "--notify-keyspace-events",
        "KA",
        "--user",
        "plain",
        "on",
        ">pw",
        "~*",
        "+@all",
        "-config",
        "resetchannels",
        "&hitl:*",
    ])
    .await;
    let url = redis.url().replace("redis://", "redis://plain:pw@");
    let app = app_on(RedisSettings::Url(SecretString::from(url))).await;
    let asked = Asked::new();
    app.ask(&asked).await;
    pending(&app, &asked).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_no_lifetime_is_pending_and_wakes_nobody_twice() {
    let redis = PrivateRedis::start_with(&SILENT).await;
    let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.redis = Some(redis.settings());
        config.policy.unscoped_requests = UnscopedRequests::Accept;
        watch_redis(config);
    })
    .await;
    let asked = Asked::new();
    let pointer = json!({ "requestId": asked.id, "tenantId": "tenant1" }).to_string();
    app.point(&asked.session, &pointer).await;
    let key = format!("hitl:request:{}", asked.id);
    let _: String = redis.command(&["SET", &key, &asked.document.to_string()]).await;
    let record = pending(&app, &asked).await;
    assert_eq!((record.expires_at - record.created_at).num_seconds(), 1800);
    // Each time it is read it has its whole life before it: that is no new question.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(app.record(&asked.id).await.expires_at, record.expires_at);
    // A request of no tenant is nobody's until somebody decides it.
    let nobodys = Asked::new().with("tenantId", Value::Null);
    app.put(&nobodys.id, &nobodys.document.to_string()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(app.is_unrecorded(&nobodys.id).await);
    app.approve(ALICE, &nobodys.id).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_known_within_half_a_minute() {
    for flags in [ANNOUNCING, SILENT] {
        let redis = PrivateRedis::start_with(&flags).await;
        let app = app_on(redis.settings()).await;
        let all = (0..3000).map(|_| Asked::new()).collect::<Vec<_>>();
        let mut pipeline = redis::pipe();
        for asked in &all {
            let pointer = json!({ "requestId": asked.id, "tenantId": "tenant1" }).to_string();
            pipeline.set_ex(format!("hitl:request:{}", asked.id), asked.document.to_string(), 1800);
            pipeline.set_ex(format!("hitl:session:{}", asked.session), pointer, 3600);
        }
        let mut connection = redis.client().get_multiplexed_async_connection().await.unwrap();
        let began = Instant::now();
        let _: () = pipeline.query_async(&mut connection).await.unwrap();
        eventually_within(Duration::from_secs(30), async || {
            let seen = app.state.ledger.seen_after("", 5000).await.unwrap();
            (seen.len() == all.len()).then_some(())
        })
        .await;
        println!("{} known after {:?}", all.len(), began.elapsed());
        let seen = app.state.ledger.seen_after("", 5000).await.unwrap();
        assert!(seen.iter().all(|row| !row.has_moved_on));
        for asked in all.iter().take(20) {
            // Who is told to try again, does.
            let answered = eventually(async || {
                Some(app.approve(ALICE, &asked.id).await).filter(|answer| answer.status != 503)
            });
            answered.await.assert(200, "");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_between_two_subscriptions_is_known_soon() {
    let redis = PrivateRedis::start_with(&ANNOUNCING).await;
    let app = app_on(redis.settings()).await;
    let before = Asked::new();
    app.ask(&before).await;
    pending(&app, &before).await;
    for _round in 0..5 {
        let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        let missed = Asked::new();
        app.ask(&missed).await;
        pending(&app, &missed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_is_known_as_it_was_written() {
    let redis = PrivateRedis::start_with(&SILENT).await;
    let app = app_on(redis.settings()).await;
    let all = (0..8).map(|number| {
        let size = if number % 2 == 0 { 1024 * 1024 } else { 100 };
        Asked::new().with("context", json!({ "text": "x".repeat(size) }))
    });
    let all = all.collect::<Vec<_>>();
    for asked in &all {
        app.ask(asked).await;
    }
    for asked in &all {
        let record = row(&app, asked, GONE * 2, |record| record.state == State::Pending).await;
        assert_eq!(record.document.len(), asked.document.to_string().len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_watched_on_every_master() {
    for flags in ["KA", ""] {
        let cluster = PrivateCluster::start().await;
        for node in &cluster.nodes {
            let _: String = node.command(&["CONFIG", "SET", "notify-keyspace-events", flags]).await;
        }
        let app = app_on(RedisSettings::Url(SecretString::from(cluster.url()))).await;
        let all = (0..30).map(|_| Asked::new()).collect::<Vec<_>>();
        let at = |asked: &Asked| PrivateCluster::node_of(&format!("hitl:request:{}", asked.id));
        let nodes = all.iter().map(at).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(nodes.len(), 3);
        for asked in &all {
            app.ask(asked).await;
        }
        for asked in &all {
            assert!(!pending(&app, asked).await.has_moved_on);
        }
        // In a session of its own slot.
        let second = Asked::in_session(&all[0].session);
        app.ask(&second).await;
        row(&app, &all[0], SOON, |record| record.has_moved_on).await;
        app.approve(ALICE, &all[0].id).await.assert(410, "E3007");
        app.approve(ALICE, &second.id).await.assert(200, "");
        delete(&cluster.nodes[at(&all[1])], &all[1]).await;
        expired(&app, &all[1]).await;
        app.approve(ALICE, &all[1].id).await.assert(410, "E3007");
        app.approve(ALICE, &all[2].id).await.assert(200, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_no_request_and_closes_none() {
    let mut sentinels = PrivateSentinels::start().await;
    let app = app_on(RedisSettings::Url(SecretString::from(sentinels.url()))).await;
    let all = (0..40).map(|_| Asked::new()).collect::<Vec<_>>();
    for asked in &all {
        app.ask(asked).await;
        pending(&app, asked).await;
    }
    let master = sentinels.master().await;
    let _: i64 = sentinels.servers[master].command(&["WAIT", "1", "5000"]).await;
    sentinels.servers[master].kill();
    // In the middle of it, agents ask on.
    let asked = Asked::new();
    eventually_within(FAILOVER_TIMEOUT, async || {
        let courier = &app.state.courier;
        let key = format!("hitl:request:{}", asked.id);
        courier.set(&key, &asked.document.to_string(), 1800).await.ok()
    })
    .await;
    let pointer = json!({ "requestId": asked.id, "tenantId": "tenant1" });
    app.point(&asked.session, &pointer.to_string()).await;
    row(&app, &asked, FAILOVER_TIMEOUT, |record| record.state == State::Pending).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for asked in &all {
        assert_eq!(app.record(&asked.id).await.state, State::Pending);
    }
    app.approve(ALICE, &all[0].id).await.assert(200, "");
}

/// The agents that take the first message for their answer, whatever it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_agent_hears_what_was_said_to_another_question() {
    let redis = PrivateRedis::start_with(&ANNOUNCING).await;
    let app = app_on(redis.settings()).await;
    for _ in 0..20 {
        let first = Asked::in_session(&unique("session"));
        app.ask(&first).await;
        pending(&app, &first).await;
        let mut listener = redis.client().get_async_pubsub().await.unwrap();
        listener.subscribe(format!("hitl:channel:{}", first.session)).await.unwrap();
        // It gives up, and asks for something else while somebody approves the first.
        let second = Asked::in_session(&first.session);
        let ((), answer) = tokio::join!(app.ask(&second), app.approve(ALICE, &first.id));
        let mut messages = listener.on_message();
        if answer.status == 200 {
            // It was approved before the agent asked on: this is the answer to the first.
            let heard = tokio::time::timeout(Duration::from_secs(5), messages.next()).await;
            if let Ok(Some(heard)) = heard {
                assert!(heard.get_payload::<String>().unwrap().contains(&first.id));
            }
        } else {
            answer.assert(410, "E3007");
        }
        pending(&app, &second).await;
        app.approve(ALICE, &first.id).await;
        let quiet = tokio::time::timeout(Duration::from_millis(100), messages.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        assert_eq!(app.poll(ALICE, &first.session, None).await, None);
        app.approve(ALICE, &second.id).await.assert(200, "");
        let heard = tokio::time::timeout(Duration::from_secs(5), messages.next()).await;
        assert!(heard.unwrap().unwrap().get_payload::<String>().unwrap().contains(&second.id));
    }
    eventually(async || (app.state.unheard.len() < 100).then_some(())).await;
}
