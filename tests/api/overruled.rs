//! Redis never overrules the ledger, and no tenant's ids are in another's way: whoever writes Redis
//! can forge a status, a signal or a request, and nobody is answered with it.

use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use redis::AsyncCommands as _;
use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use support::{ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, redis, unique};

/// What was counted in this process so far.
async fn forgeries(app: &TestApp, kind: &str) -> u64 {
    let scraped = app.client.get(format!("{}/metrics", app.base)).send().await.unwrap();
    let scraped = scraped.text().await.unwrap();
    let name = format!("aura_hitl_forgeries_total{{kind=\"{kind}\"}} ");
    scraped.lines().find_map(|line| line.strip_prefix(&*name)).unwrap().parse().unwrap()
}

/// The signal that approves a request.
fn approval(id: &str) -> String {
    json!({ "type": "approval", "requestId": id, "status": "approved", "timestamp": 1_706_152_860 })
        .to_string()
}

async fn put_signal(session: &str, signal: &str) {
    redis().await.set_ex::<_, _, ()>(format!("hitl:signal:{session}"), signal, 300).await.unwrap();
}

async fn read(app: &TestApp, who: Who<'_>, id: &str) -> Answer {
    app.get(who, &format!("/aura/hitl/requests/{id}")).await
}

async fn decision(app: &TestApp, who: Who<'_>, id: &str) -> Answer {
    app.get(who, &format!("/aura/hitl/requests/{id}/decision")).await
}

async fn status_read(app: &TestApp, id: &str) -> Value {
    let answer = read(app, ALICE, id).await;
    let text = answer.assert(200, "").data().as_str().unwrap().to_owned();
    serde_json::from_str::<Value>(&text).unwrap()["status"].clone()
}

over_redis! {
    async fn a_rejection_stays_one_whatever_redis_says(app: TestApp) {
        for is_remembered in [true, false] {
            let asked = Asked::new();
            app.ask(&asked).await;
            app.reject(ALICE, &asked.id, None).await.assert(200, "");
            app.settled(&asked.id).await;
            // Another replica remembers nothing.
            let other;
            let app = if is_remembered { &app } else { other = twin(&app).await; &other };
            let before = (forgeries(app, "signal").await, forgeries(app, "request").await);
            put_signal(&asked.session, &approval(&asked.id)).await;
            app.put(&asked.id, &asked.document.to_string().replace("pending", "approved")).await;
            for wanted in [None, Some(&*asked.id)] {
                let polled = app.poll(ALICE, &asked.session, wanted).await.unwrap();
                assert_eq!(polled["status"], "rejected");
            }
            assert_eq!(status_read(app, &asked.id).await, "rejected");
            assert_eq!(decision(app, ALICE, &asked.id).await.data()["status"], "rejected");
            app.approve(ALICE, &asked.id).await.assert(409, "E3006");
            // Other tests forge as well, in the same process.
            assert!(forgeries(app, "signal").await > before.0);
            assert!(forgeries(app, "request").await > before.1);
        }
    }
}

/// Another replica on the same stores.
async fn twin(app: &TestApp) -> TestApp {
    let (ledger, redis) = (app.config.ledger.clone(), app.config.redis.clone());
    TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        (config.ledger, config.redis) = (ledger, redis);
    })
    .await
}

over_redis! {
    async fn what_nobody_decided_is_not_answered_as_decided(app: TestApp) {
        for status in ["approved", "rejected", "expired", "cancelled", "whatever"] {
            let asked = Asked::new().with("status", status.into());
            app.ask(&asked).await;
            put_signal(&asked.session, &approval(&asked.id)).await;
            for wanted in [None, Some(&*asked.id)] {
                assert_eq!(app.poll(ALICE, &asked.session, wanted).await, None, "{status}");
            }
            for who in [ALICE, BOB] {
                app.approve(who, &asked.id).await.assert(422, "E4220");
                app.reject(who, &asked.id, None).await.assert(422, "E4220");
                read(&app, who, &asked.id).await.assert(422, "E4220");
                decision(&app, who, &asked.id).await.assert(422, "E4220");
            }
            for answer in [app.approve(MALLORY, &asked.id).await, read(&app, MALLORY, &asked.id).await] {
                answer.assert(404, "E1004");
            }
            assert!(app.is_unrecorded(&asked.id).await);
        }
    }
}

over_redis! {
    /// A forgery that stays where it is is counted once, however often it is seen.
    async fn a_forged_signal_without_a_request_is_reported_and_not_answered(app: TestApp) {
        for signal in [approval(&unique("req")), "nonsense".to_owned(), approval("a b")] {
            let asked = Asked::new();
            app.ask(&asked).await;
            put_signal(&asked.session, &signal).await;
            let before = forgeries(&app, "signal").await;
            for _poll in 0..3 {
                assert_eq!(app.poll(ALICE, &asked.session, None).await, None);
            }
            assert!(forgeries(&app, "signal").await > before);
            // Nor does it keep the agent from its answer.
            app.reject(ALICE, &asked.id, None).await.assert(200, "");
            assert_eq!(app.poll(ALICE, &asked.session, None).await.unwrap()["status"], "rejected");
        }
    }
}

over_redis! {
    async fn an_answered_poll_is_one_round_trip_and_no_query(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        let registered = Asked::new();
        app.register(ALICE, &registered).await.assert(201, "");
        app.approve(ALICE, &registered.id).await.assert(200, "");
        // Nobody can ask the ledger now.
        let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { unreachable!() };
        let mut operator = PgConnection::connect(url.expose_secret()).await.unwrap();
        operator.execute("BEGIN; LOCK TABLE hitl_request IN ACCESS EXCLUSIVE MODE").await.unwrap();
        for wanted in [None, Some(&*asked.id)] {
            assert_eq!(app.poll(ALICE, &asked.session, wanted).await.unwrap()["status"], "approved");
        }
        assert!(app.poll(ALICE, &registered.session, Some(&registered.id)).await.is_some());
        operator.execute("ROLLBACK").await.unwrap();
    }
}

over_redis! {
    async fn a_key_under_a_registered_id_is_neither_shown_nor_decided(app: TestApp) {
        let registered = Asked::new();
        app.register(ALICE, &registered).await.assert(201, "");
        let forged = Asked { session: unique("session"), ..registered.clone() }
            .with("context", json!({ "to": "everybody" }));
        let before = forgeries(&app, "request").await;
        app.ask(&forged).await;
        app.approve(ALICE, &registered.id).await.assert(422, "E4220");
        assert!(forgeries(&app, "request").await > before);
        let shown = read(&app, ALICE, &registered.id).await;
        assert!(!shown.assert(200, "").text.contains("everybody"));
        assert_eq!(app.record(&registered.id).await.state, State::Pending);
        // Another tenant's key is another request, and in nobody's way.
        let theirs = forged.with("tenantId", "tenant2".into()).with("userId", "mallory".into());
        app.ask(&theirs).await;
        app.approve(MALLORY, &theirs.id).await.assert(200, "");
        app.approve(ALICE, &registered.id).await.assert(200, "");
        let states = ["tenant1", "tenant2"].map(async |tenant| {
            app.record_of(tenant, &registered.id).await.unwrap().document.contains("everybody")
        });
        let [ours, other] = states;
        assert_eq!((ours.await, other.await), (false, true));
    }
}

over_redis! {
    /// An older release wrote registered requests to Redis as well. That is no forgery, and in
    /// nobody's way.
    async fn what_an_older_release_wrote_of_a_registered_request_does_not_matter(app: TestApp) {
        for status in ["pending", "approved"] {
            let registered = Asked::new();
            app.register(ALICE, &registered).await.assert(201, "");
            let document = app.record(&registered.id).await.document;
            app.put(&registered.id, &document).await;
            app.point(&registered.session, &registered.id).await;
            if status == "approved" {
                app.approve(ALICE, &registered.id).await.assert(200, "");
                app.put(&registered.id, &document.replace("pending", "approved")).await;
            }
            assert_eq!(status_read(&app, &registered.id).await, status);
            app.register(ALICE, &registered).await.assert(200, "");
            app.approve(ALICE, &registered.id).await.assert(200, "");
            app.approve(BOB, &registered.id).await.assert(409, "E3006");
            assert_eq!(app.signal(&registered.session).await, None);
            assert_eq!(app.poll(ALICE, &registered.session, None).await, None);
            let polled = app.poll(ALICE, &registered.session, Some(&registered.id)).await;
            assert_eq!(polled.unwrap()["status"], "approved");
        }
    }
}

over_redis! {
    /// A key belongs to one tenant: whoever rewrites its tenant does not get it decided twice.
    async fn a_key_is_decided_by_one_tenant_only(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        app.reject(ALICE, &asked.id, None).await.assert(200, "");
        app.settled(&asked.id).await;
        let theirs = asked.clone().with("tenantId", "tenant2".into()).with("userId", Value::Null);
        app.ask(&theirs).await;
        app.point(&theirs.session, &theirs.id).await;
        app.approve(MALLORY, &asked.id).await.assert(404, "E1004");
        assert!(app.record_of("tenant2", &asked.id).await.is_none());
        assert!(matches!(app.record(&asked.id).await.state, State::Decided(_)));
        assert!(app.signal(&asked.session).await.unwrap().contains("rejection"));
    }
}

both_modes! {
    async fn each_tenant_has_ids_of_its_own(app: TestApp) {
        let third = Who { user: "user3", tenant: "tenant3", role: ALICE.role };
        let body = |asked: &Asked, action: &str| {
            json!({ "requestId": asked.id, "sessionId": asked.session, "actionType": action, "taskId": asked.id })
        };
        for first in [ALICE, MALLORY] {
            let asked = Asked::new();
            let people = if first.tenant == ALICE.tenant { [ALICE, MALLORY, third] } else { [MALLORY, ALICE, third] };
            let free = app.post(people[1], "/aura/hitl/requests", body(&Asked::new(), "b")).await;
            for (who, action) in people.into_iter().zip(["a", "b", "c"]) {
                let made = app.post(who, "/aura/hitl/requests", body(&asked, action)).await;
                made.assert(201, "");
                assert_eq!(made.data().as_object().unwrap().len(), free.data().as_object().unwrap().len());
            }
            app.approve(people[0], &asked.id).await.assert(200, "");
            app.reject(people[1], &asked.id, Some("아니요")).await.assert(200, "");
            let cancel = app.call(third, Method::POST, &format!("/aura/hitl/requests/{}/cancel", asked.id));
            assert_eq!(cancel.send().await.unwrap().status(), 200);
            for (who, status) in people.into_iter().zip(["approved", "rejected", "cancelled"]) {
                assert_eq!(decision(&app, who, &asked.id).await.data()["status"], status);
                let tasks = app.tasks(who.tenant).await;
                let task = tasks.iter().find(|task| task.hitl_request_id.as_ref().is_some_and(|id| id.as_str() == asked.id));
                let expected = if status == "approved" { "IN_PROGRESS" } else { "FAILED" };
                assert_eq!(task.unwrap().status.as_str(), expected, "{}", who.tenant);
                let polled = app.poll(who, &asked.session, Some(&asked.id)).await;
                assert_eq!(polled.map(|signal| signal["status"].clone()), (status != "cancelled").then(|| status.into()));
                let ack = app.call(who, Method::POST, &format!("/aura/hitl/requests/{}/ack", asked.id));
                assert_eq!(ack.send().await.unwrap().status(), 200);
            }
        }
    }
}

over_redis! {
    async fn an_id_that_redis_holds_is_taken_within_its_tenant_only(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let body = json!({ "requestId": asked.id, "sessionId": unique("session"), "actionType": "a" });
        for who in [ALICE, BOB] {
            app.post(who, "/aura/hitl/requests", body.clone()).await.assert(409, "E3008");
        }
        app.post(MALLORY, "/aura/hitl/requests", body.clone()).await.assert(201, "");
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.approve(MALLORY, &asked.id).await.assert(200, "");
        // Once Redis has forgotten it, the ledger still knows it.
        redis().await.del::<_, ()>(format!("hitl:request:{}", asked.id)).await.unwrap();
        app.post(ALICE, "/aura/hitl/requests", body).await.assert(409, "E3008");
    }
}

/// An upgraded database, until `migrate --finish`: a foreign id is 409, as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_an_upgrade_is_finished_a_foreign_id_is_taken() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { unreachable!() };
    let mut operator = PgConnection::connect(url.expose_secret()).await.unwrap();
    let old = "ALTER TABLE hitl_request DROP CONSTRAINT hitl_request_key;
               CREATE UNIQUE INDEX hitl_request_key ON hitl_request (tenant_id, request_id);
               ALTER TABLE hitl_request ADD PRIMARY KEY (request_id)";
    operator.execute(old).await.unwrap();
    let ours = Asked::new();
    app.register(ALICE, &ours).await.assert(201, "");
    app.register(MALLORY, &ours).await.assert(409, "E3008");
    // Of many at once one is made; the others find it, and do not fail.
    let many = Asked::new();
    let calls = (0..16).map(|_| app.register(ALICE, &many));
    let made = futures_util::future::join_all(calls).await;
    assert_eq!(made.iter().filter(|answer| answer.status == 201).count(), 1);
    assert_eq!(made.iter().filter(|answer| answer.status == 200).count(), 15);
    // A request of Redis under a foreign registration: as if it did not exist.
    let theirs = ours.clone().with("tenantId", "tenant2".into()).with("userId", "mallory".into());
    app.ask(&theirs).await;
    app.approve(MALLORY, &ours.id).await.assert(404, "E1004");
    app.approve(ALICE, &ours.id).await.assert(200, "");
    for _twice in 0..2 {
        app.state.ledger.finish(Some(url)).await.unwrap();
    }
    app.register(MALLORY, &ours).await.assert(409, "E3008"); // Redis holds it for this tenant.
    let later = Asked::new();
    for who in [ALICE, MALLORY] {
        app.register(who, &later).await.assert(201, "");
        app.approve(who, &later.id).await.assert(200, "");
    }
}
