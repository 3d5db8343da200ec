//! What one person and one tenant may register and keep open, and that others do not notice.

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::ids::TenantId;
use chrono::{DurationRound as _, TimeDelta};
use serde_json::json;
use support::{ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, eventually, unique};

const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];
/// A third person of the first tenant.
const CAROL: Who<'static> = Who { user: "carol", tenant: "tenant1", role: Role::User };

async fn register(app: &TestApp, who: Who<'_>) -> (String, Answer) {
    let asked = Asked::new();
    let answer = app.register(who, &asked).await;
    (asked.id, answer)
}

#[track_caller]
fn assert_limited(answer: &Answer, setting: &str, limit: &str) {
    answer.assert(429, "E4290");
    let message = answer.body["message"].as_str().unwrap();
    assert!(message.contains(setting) && message.contains(limit), "{message}");
    let wait = answer.headers["Retry-After"].to_str().unwrap().parse::<u64>().unwrap();
    assert!((1..=3600).contains(&wait), "{wait}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_has_so_many_pending_requests() {
    for mode in MODES {
        let app = TestApp::spawn_with(mode, Clock::System, |config| {
            config.quotas.pending_per_person = 3;
        })
        .await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            let (id, answer) = register(&app, ALICE).await;
            answer.assert(201, "");
            ids.push(id);
        }
        let (_, refused) = register(&app, ALICE).await;
        assert_limited(&refused, "max_pending_per_person", "3");
        register(&app, BOB).await.1.assert(201, "");
        // What is registered already is answered as ever, and what is closed makes room.
        let known = Asked { id: ids[0].clone(), ..Asked::new() };
        let again = app.post(ALICE, "/aura/hitl/requests", known.registration()).await;
        assert_ne!(again.status, 429, "{}", again.text);
        app.approve(ALICE, &ids[0]).await.assert(200, "");
        register(&app, ALICE).await.1.assert(201, "");
        // Requests of Redis do not count, and are not counted.
        for _ in 0..if mode == Mode::Production { 5 } else { 0 } {
            let asked = Asked::new();
            app.ask(&asked).await;
            app.approve(ALICE, &asked.id).await.assert(200, "");
        }
        let (_, refused) = register(&app, ALICE).await;
        assert_limited(&refused, "max_pending_per_person", "3");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_so_many_pending_requests() {
    for mode in MODES {
        let app = TestApp::spawn_with(mode, Clock::System, |config| {
            config.quotas.pending_per_tenant = 3;
        })
        .await;
        let (first, answer) = register(&app, ALICE).await;
        answer.assert(201, "");
        for who in [BOB, CAROL] {
            register(&app, who).await.1.assert(201, "");
        }
        for who in [ALICE, BOB, CAROL] {
            assert_limited(&register(&app, who).await.1, "max_pending_per_tenant", "3");
        }
        register(&app, MALLORY).await.1.assert(201, "");
        // Once the count is read anew, what is closed makes room.
        app.approve(ALICE, &first).await.assert(200, "");
        eventually(async || (register(&app, BOB).await.1.status == 201).then_some(())).await;
    }
}

/// A service whose tenants may send 100,000 bytes an hour, at the beginning of an hour.
async fn limited_to_100_000_bytes_an_hour(mode: Mode) -> (TestApp, Clock) {
    let clock = Clock::manual();
    let app = TestApp::spawn_with(mode, clock.clone(), |config| {
        config.quotas.bytes_per_tenant_hour = 100_000;
    })
    .await;
    // Not in the last moments of an hour.
    let hour = clock.now().duration_trunc(TimeDelta::hours(1)).unwrap();
    clock.advance(hour + TimeDelta::minutes(60) - clock.now());
    (app, clock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_registers_so_many_bytes_an_hour() {
    for mode in MODES {
        let (app, clock) = limited_to_100_000_bytes_an_hour(mode).await;
        let big = |id: &str| {
            json!({
                "requestId": id, "sessionId": unique("session"), "actionType": "send_email",
                "context": { "text": "x".repeat(40_000) },
            })
        };
        for who in [ALICE, BOB] {
            app.post(who, "/aura/hitl/requests", big(&unique("req"))).await.assert(201, "");
        }
        let refused = app.post(CAROL, "/aura/hitl/requests", big(&unique("req"))).await;
        assert_limited(&refused, "max_bytes_per_tenant_hour", "100000");
        register(&app, CAROL).await.1.assert(201, "");
        app.post(MALLORY, "/aura/hitl/requests", big(&unique("req"))).await.assert(201, "");
        clock.advance(TimeDelta::hours(1));
        app.post(CAROL, "/aura/hitl/requests", big(&unique("req"))).await.assert(201, "");
    }
}

/// Tasks take from the same hour as requests, whatever of them it is that is large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_writes_so_many_bytes_of_tasks_an_hour() {
    for mode in MODES {
        let (app, clock) = limited_to_100_000_bytes_an_hour(mode).await;
        let tasks = "/main/agent/tasks";
        let task = |who: Who<'_>, input: usize| {
            json!({
                "taskType": "mail", "userId": who.user, "tenantId": who.tenant,
                "inputData": "x".repeat(input),
            })
        };
        let large = json!({ "text": "x".repeat(60_000) });
        let begin = async |who: Who<'_>| {
            let made = app.post(who, tasks, task(who, 1)).await;
            let path = format!("{tasks}/{}", made.data()["taskId"].as_str().unwrap());
            app.post(who, &format!("{path}/start"), json!({})).await.assert(200, "");
            path
        };
        let first = begin(ALICE).await;
        let second = begin(BOB).await;
        app.post(ALICE, tasks, task(ALICE, 60_000)).await.assert(201, "");
        let too_much = [
            app.post(BOB, tasks, task(BOB, 60_000)).await,
            app.post(ALICE, &format!("{first}/complete"), large.clone()).await,
            app.post(
                BOB,
                &format!("{second}/plan-steps"),
                json!({ "id": "a", "text": "x".repeat(60_000) }),
            )
            .await,
        ];
        for refused in too_much {
            assert_limited(&refused, "max_bytes_per_tenant_hour", "100000");
        }
        app.post(ALICE, &format!("{first}/complete"), json!("done")).await.assert(200, "");
        let other = begin(MALLORY).await;
        app.post(MALLORY, &format!("{other}/complete"), large.clone()).await.assert(200, "");
        app.post(MALLORY, tasks, task(MALLORY, 60_000)).await.assert(429, "E4290");
        clock.advance(TimeDelta::hours(1));
        app.post(BOB, &format!("{second}/complete"), large).await.assert(200, "");
    }
}

/// What one replica has registered is known to the others once it has said so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_add_up_what_a_tenant_registers() {
    for mode in MODES {
        let app = TestApp::spawn(mode).await;
        let tenant = TenantId::parse(unique("tenant")).unwrap();
        let hour = app.state.clock.now().duration_trunc(TimeDelta::hours(1)).unwrap();
        let add =
            async |hour, bytes| app.state.ledger.add_usage(&tenant, hour, bytes).await.unwrap();
        assert_eq!(add(hour, 10).await, 10);
        assert_eq!(add(hour, 5).await, 15);
        let next = hour + TimeDelta::hours(1);
        assert_eq!(add(next, 7).await, 7);
        // A replica whose clock is behind adds to the present hour.
        assert_eq!(add(hour, 1).await, 8);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenant_cannot_hold_all_waits_nor_all_waits_all_connections() {
    let app = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.max_waits_per_tenant = 4;
        config.max_connections = 8;
    })
    .await;
    let hub = app.state.hub.clone();
    let session = aura_hitl::domain::ids::SessionId::parse("session_1").unwrap();
    let mut waiters = Vec::new();
    for who in [ALICE, BOB, CAROL, ALICE] {
        waiters.push(hub.watch(&session, &who.caller()).unwrap());
    }
    let path = "/aura/hitl/signals/session_1?waitSeconds=1";
    assert_limited(&app.get(BOB, path).await, "max_waits_per_tenant", "4");
    for _ in 0..2 {
        waiters.push(hub.watch(&session, &MALLORY.caller()).unwrap());
    }
    assert_limited(&app.get(MALLORY, path).await, "max_connections", "6");
    waiters.truncate(3);
    app.get(BOB, path).await.assert(200, "");
}
