//! What happens when there is too much to do: one person's flood is answered 429 and reaches
//! nobody else, and a service without room says so at once.

use std::num::NonZeroU32;
use std::time::Instant;

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::RequestId;
use aura_hitl::domain::rate::RateLimit;
use aura_hitl::domain::request::Origin;
use aura_hitl::server::Replica;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::Method;
use support::{
    ADMIN, ALICE, Answer, Asked, BOB, Mode, Operation, PrivatePostgres, PrivateRedis, Program,
    TestApp, Who, decide_on_ledger, eventually, operations, redis, unique,
};
use tempfile::TempDir;

const TASKS: &str = "/main/agent/tasks";

fn limit(per_second: u32, burst: u32) -> RateLimit {
    let number = |number| NonZeroU32::new(number).unwrap();
    RateLimit { per_second: number(per_second), burst: number(burst) }
}

async fn limited(mode: Mode, per_second: u32, burst: u32) -> TestApp {
    TestApp::spawn_with(mode, Clock::System, |config| {
        config.rate_limit = Some(limit(per_second, burst));
    })
    .await
}

/// Somebody whose bucket in the tests' Redis nobody else fills.
fn somebody(user: &str) -> Who<'_> {
    Who { user, ..ALICE }
}

/// An answer to somebody who asks too much.
#[track_caller]
fn assert_limited(answer: &Answer) {
    answer.assert(429, "E4290");
    assert_eq!(answer.body["status"], "ERROR");
    assert_eq!(answer.body["success"], false);
    assert!(answer.body["traceId"].is_string(), "{}", answer.text);
    let seconds = answer.headers["Retry-After"].to_str().unwrap();
    assert!(seconds.parse::<u64>().unwrap() >= 1 && !seconds.starts_with('+'), "{seconds}");
}

/// Sends so many calls, eight at a time, and counts those that were admitted; the others must have
/// been told to wait.
async fn flood(app: &TestApp, base: &str, who: Who<'_>, calls: usize) -> usize {
    let token = app.token(who.user, who.tenant, who.role);
    let calls = (0..calls).map(async |_| {
        let call = app.client.get(format!("{base}{TASKS}")).bearer_auth(&token);
        let answer = Answer::of(call.header("X-Tenant-ID", who.tenant).send().await.unwrap()).await;
        if answer.status == 200 {
            return 1;
        }
        assert_limited(&answer);
        0
    });
    futures_util::stream::iter(calls).buffer_unordered(8).fold(0, async |sum, one| sum + one).await
}

/// The most that a limit admits on so many replicas since `began`: a burst, what has drained since,
/// and each replica's tenth of both.
fn at_most(burst: usize, per_second: usize, replicas: usize, began: Instant) -> usize {
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let tenth = (burst / 10).max(1) + (per_second / 10).max(1) * seconds;
    burst + per_second * seconds + replicas * tenth
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_floods_is_told_to_wait_and_nobody_else_notices() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = limited(mode, 1, 20).await;
        let (name, other) = (unique("flood"), unique("neighbour"));
        let began = Instant::now();
        let admitted = flood(&app, &app.base, somebody(&name), 200).await;
        let most = at_most(20, 1, 1, began);
        assert!((20..=most).contains(&admitted), "{mode:?}: {admitted} of at most {most}");
        let neighbours = [
            somebody(&other),
            Who { tenant: "tenant2", ..somebody(&name) },
            Who { tenant: "tenant", user: &format!("1:{name}"), role: Role::User },
            Who { tenant: "{tenant1}", user: &format!("{{{name}}}"), role: Role::Admin },
        ];
        for neighbour in neighbours {
            let admitted = flood(&app, &app.base, neighbour, 20).await;
            assert_eq!(admitted, 20, "{mode:?}: {neighbour:?}");
        }
        // In time there is room again.
        eventually(async || (app.get(somebody(&name), TASKS).await.status == 200).then_some(()))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_secured_operation_is_limited_and_no_other() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = limited(mode, 1, 1).await;
        let name = unique("flood");
        let who = somebody(&name);
        // Calls are quicker than one a second.
        let until_limited = async |operation: &Operation| {
            for _attempt in 0..1000 {
                let call = app.call(who, operation.method.clone(), &operation.path());
                let answer = Answer::of(call.send().await.unwrap()).await;
                if answer.status == 429 {
                    return Some(answer);
                }
            }
            None
        };
        for operation in operations().iter().filter(|operation| !operation.is_open()) {
            assert_limited(&until_limited(operation).await.expect(operation.pattern));
        }
        let korean = app.call(who, Method::GET, TASKS).header("Accept-Language", "ko");
        let korean = Answer::of(korean.send().await.unwrap()).await;
        assert_limited(&korean);
        assert!(korean.body["message"].as_str().unwrap().contains("요청"), "{}", korean.text);
        for operation in operations().iter().filter(|operation| operation.is_open()) {
            for _attempt in 0..20 {
                let call = app.call(who, operation.method.clone(), &operation.path());
                assert_eq!(call.send().await.unwrap().status(), 200, "{}", operation.pattern);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_beyond_the_limit_is_not_made_at_all() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = limited(mode, 1, 5).await;
        let name = unique("flood");
        let mut requests = Vec::new();
        for _number in 0..40 {
            // Each of somebody else's, whose one call it is.
            let asked = Asked::new().with("userId", unique("asker").into());
            app.ask(&asked).await;
            requests.push(asked);
        }
        let answers = requests.iter().map(|asked| app.approve(somebody(&name), &asked.id));
        let answers = futures_util::future::join_all(answers).await;
        let mut limited = 0;
        for (asked, answer) in requests.iter().zip(&answers) {
            if answer.status == 200 {
                assert!(matches!(app.record(&asked.id).await.state, State::Decided(_)));
                continue;
            }
            assert_limited(answer);
            assert!(app.is_undecided(&asked.id).await, "{mode:?}");
            assert_eq!(app.signal(&asked.session).await, None);
            // Somebody else may still decide it.
            app.reject(Who { user: &unique("other"), ..ALICE }, &asked.id, None)
                .await
                .assert(200, "");
            limited += 1;
        }
        assert!((1..=35).contains(&limited), "{mode:?}: {limited}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_admit_together_what_one_admits() {
    const BURST: usize = 100;
    let app = limited(Mode::Production, 1, 100).await;
    let other = Replica::start(&app.config, Clock::System).await.unwrap();
    let other_base = format!("http://{}", other.address);
    let name = unique("flood");
    let (one, two) = tokio::join!(
        flood(&app, &app.base, somebody(&name), 300),
        flood(&app, &other_base, somebody(&name), 300)
    );
    // Each alone would admit a whole burst. Half of one more is left for questions to Redis that a
    // busy machine did not answer in time, and for what drained meanwhile.
    assert!((BURST..BURST * 3 / 2).contains(&(one + two)), "{one} + {two}");
    assert!(one > 0 && two > 0, "{one} + {two}");

    // What Redis keeps is one key that goes away by itself.
    let key = format!("hitl:rate:7:tenant1:{name}");
    let (empty_at, ttl): (i64, i64) =
        redis::pipe().get(&key).pttl(&key).query_async(&mut redis().await).await.unwrap();
    let now = Clock::System.now().timestamp_micros();
    assert!((0..=110_000).contains(&ttl), "{ttl}");
    assert!((empty_at - now).abs() < 300_000_000, "{empty_at} at {now}");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_limit_holds_and_locks_nobody_out() {
    let mut redis = PrivateRedis::start().await;
    let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.redis = Some(redis.settings());
        config.rate_limit = Some(limit(1, 20));
    })
    .await;
    let check = async |fault: &str| {
        let (name, other) = (unique("flood"), unique("neighbour"));
        let began = Instant::now();
        let admitted = flood(&app, &app.base, somebody(&name), 100).await;
        let most = at_most(20, 1, 1, began);
        assert!((20..=most).contains(&admitted), "{fault}: {admitted} of at most {most}");
        assert_eq!(flood(&app, &app.base, somebody(&other), 20).await, 20, "{fault}");
    };
    check("with Redis").await;
    redis.freeze();
    check("frozen").await;
    redis.thaw();
    redis.kill();
    check("killed").await;
    redis.start_again().await;
    let _: () = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    check("full").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_of_0_is_no_limit() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn(mode).await;
        let name = unique("flood");
        assert_eq!(flood(&app, &app.base, somebody(&name), 300).await, 300);
    }
    // As operators set it.
    for (rate, is_limited) in [("0", false), ("1", true)] {
        let folder = TempDir::new().unwrap();
        let token = Program::new(&folder, &["token", "--sub", "user123", "--tenant", "tenant1"]);
        let token = String::from_utf8(token.output().stdout).unwrap();
        let service = Program::new(&folder, &[])
            .with("AURA_HITL_RATE_LIMIT_PER_SECOND", rate)
            .with("AURA_HITL_RATE_LIMIT_BURST", "1")
            .serve()
            .await;
        let client = reqwest::Client::new();
        let mut limited = 0;
        for _call in 0..100 {
            let call = client.get(format!("{}{TASKS}", service.base)).bearer_auth(token.trim());
            let answer = call.header("X-Tenant-ID", "tenant1").send().await.unwrap();
            limited += usize::from(answer.status() == 429);
        }
        assert_eq!(limited > 0, is_limited, "{rate}: {limited}");
    }
}

/// Turned away because there is too much to do: nothing was begun.
#[track_caller]
fn assert_shed(answer: &Answer) {
    answer.assert(503, "E5000");
    assert_eq!(answer.headers["Retry-After"], "1");
    assert!(is_shed(answer), "{}", answer.text);
}

fn is_shed(answer: &Answer) -> bool {
    answer.body["message"].as_str().unwrap().contains("Too busy: nothing was done")
}

over_redis! {
    async fn without_room_every_call_is_turned_away_and_what_is_owed_still_goes_out(app: TestApp) {
        let room = u32::try_from(app.config.max_calls_under_way).unwrap();
        let taken = app.state.call_permits.clone().try_acquire_many_owned(room).unwrap();
        for operation in operations() {
            let call = app.call(ALICE, operation.method.clone(), &operation.path());
            let example = &operation.document["requestBody"]["content"]["application/json"]["example"];
            let call = if example.is_null() { call } else { call.json(example) };
            let answer = Answer::of(call.send().await.unwrap()).await;
            if operation.is_open() {
                assert_eq!(answer.status, 200, "{}", operation.pattern);
            } else {
                assert_shed(&answer);
            }
        }
        let korean = app.call(ALICE, Method::GET, TASKS).header("Accept-Language", "ko").send();
        let korean = Answer::of(korean.await.unwrap()).await;
        assert!(korean.assert(503, "E5000").body["message"].as_str().unwrap().contains("혼잡"), "{}", korean.text);

        let asked = Asked::new();
        app.ask(&asked).await;
        let now = app.state.clock.now() - aura_hitl::ledger::LEASE;
        decide_on_ledger(&app.state.ledger, BOB, &asked, Origin::Redis, Verdict::Approve, now).await;
        eventually(async || app.signal(&asked.session).await).await;
        app.settled(&asked.id).await;

        drop(taken);
        app.get(ADMIN, TASKS).await.assert(200, "");
        app.approve(BOB, &asked.id).await.assert(200, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_is_stuck_further_calls_are_turned_away_at_once() {
    const ROOM: usize = 4;
    let postgres = PrivatePostgres::start().await;
    let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.ledger = aura_hitl::config::LedgerConfig::Postgres {
            pooler: aura_hitl::ledger::Pooler::None,
            url: postgres.url().into(),
            max_connections: 2,
        };
        config.max_calls_under_way = ROOM;
    })
    .await;
    let mut requests = Vec::new();
    for _number in 0..40 {
        let asked = Asked::new();
        app.ask(&asked).await;
        requests.push(asked);
    }
    postgres.freeze();
    // Somebody who does not wait for the answer: the work goes on, and takes up its room.
    let impatient = app.approve(BOB, &requests[0].id);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(500), impatient).await.is_err());
    assert_eq!(app.state.call_permits.available_permits(), ROOM - 1);
    let mut calls = requests
        .iter()
        .skip(1)
        .map(async |asked| (asked, app.approve(BOB, &asked.id).await))
        .collect::<FuturesUnordered<_>>();
    let mut shed = Vec::new();
    let mut answers = 0;
    while let Some((asked, answer)) = calls.next().await {
        answer.assert(503, "E5000");
        assert_eq!(answer.headers["Retry-After"], "1");
        if is_shed(&answer) {
            shed.push(asked);
        } else if answers == 0 {
            panic!("the first answer came from a store: {}", answer.text);
        }
        answers += 1;
    }
    assert_eq!(answers, 39);
    postgres.thaw();
    eventually(async || (app.state.call_permits.available_permits() == ROOM).then_some(())).await;
    for asked in shed {
        let id = RequestId::parse(&asked.id).unwrap();
        // Two connections, some of which were cut off: the pool may need a moment.
        let record = eventually(async || {
            app.state.ledger.find_request(&ALICE.caller().tenant, &id).await.ok()
        })
        .await;
        assert!(record.is_none(), "{record:?}");
    }
    for asked in &requests {
        app.approve(BOB, &asked.id).await.assert(200, "");
        let State::Decided(decision) = app.record(&asked.id).await.state else {
            panic!("undecided")
        };
        assert_eq!(decision.verdict, Verdict::Approve);
        app.settled(&asked.id).await;
        assert!(app.signal(&asked.session).await.unwrap().contains(&asked.id));
    }
}
