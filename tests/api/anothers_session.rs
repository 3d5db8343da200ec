//! Sessions that are another's: a request whose session names somebody else, or that the ledger knows
//! as another tenant's, wakes nobody there.

use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::record::Delivery;
use aura_hitl::domain::rules::Approvers;
use chrono::TimeDelta;
use redis::AsyncCommands as _;
use reqwest::Method;
use serde_json::{Value, json};
use support::{
    ALICE, Answer, Asked, BOB, MALLORY, Mode, Subscriber, TestApp, Who, eventually, redis, unique,
};

/// A request that somebody of another tenant wrote into this session.
fn forged(session: &str) -> Asked {
    Asked::in_session(session)
        .with("tenantId", json!(MALLORY.tenant))
        .with("userId", json!(MALLORY.user))
}

over_redis! {
    async fn a_request_is_not_decided_in_a_session_that_names_somebody_else(app: TestApp) {
        for pointer in [
            json!({ "tenantId": "tenant1", "userId": "user123" }),
            json!({ "tenantId": "tenant1" }),
            json!({ "tenantId": "tenant2", "userId": "user123" }),
            json!({ "userId": "user123" }),
        ] {
            let asked = forged(&unique("session"));
            app.put(&asked.id, &asked.document.to_string()).await;
            let mut pointer = pointer;
            pointer["requestId"] = json!(asked.id);
            app.point(&asked.session, &pointer.to_string()).await;
            let mut subscriber = Subscriber::on(&asked.session).await;
            app.approve(MALLORY, &asked.id).await.assert(422, "E4220");
            app.approve(ALICE, &asked.id).await.assert(404, "E1004");
            assert!(app.is_unrecorded(&asked.id).await, "{pointer}");
            assert_eq!(app.signal(&asked.session).await, None);
            assert!(subscriber.heard().await.is_empty(), "{pointer}");
        }
    }
}

over_redis! {
    async fn where_the_ledger_knows_another_tenants_request_nobody_else_wakes_the_agent(app: TestApp) {
        let before = Asked::new();
        app.ask(&before).await;
        app.approve(ALICE, &before.id).await.assert(200, "");
        app.settled(&before.id).await;
        let waits = Asked::in_session(&before.session);
        app.ask(&waits).await;
        let evil = forged(&before.session);
        app.put(&evil.id, &evil.document.to_string()).await;
        let mut subscriber = Subscriber::on(&before.session).await;
        let consistent = json!({
            "requestId": evil.id, "tenantId": MALLORY.tenant, "userId": MALLORY.user,
        });
        let bare = json!({ "requestId": evil.id });
        for pointer in [bare.to_string(), evil.id.clone(), consistent.to_string()] {
            app.point(&before.session, &pointer).await;
            app.approve(MALLORY, &evil.id).await.assert(422, "E4220");
        }
        assert!(app.is_unrecorded(&evil.id).await);
        assert!(subscriber.heard().await.is_empty());
        // Its own tenant's request is decided there as ever.
        app.ask(&waits).await;
        app.approve(ALICE, &waits.id).await.assert(200, "");
        assert!(subscriber.next().await.contains(&waits.id));
    }
}

over_redis! {
    async fn what_was_decided_stands_though_its_session_is_anothers_by_now(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        app.put(&asked.id, &asked.document.to_string()).await;
        let pointer = json!({ "requestId": asked.id, "tenantId": "tenant2", "userId": "mallory" });
        app.point(&asked.session, &pointer.to_string()).await;
        let mut subscriber = Subscriber::on(&asked.session).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.reject(ALICE, &asked.id, None).await.assert(409, "E3006");
        assert!(subscriber.heard().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_does_not_say_plainly_whose_it_is_lends_nobodys_name() {
    let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.policy.approvers = Approvers::Requester;
    })
    .await;
    let long = format!(r#""tenantId":"tenant1","userId":"{}""#, "v".repeat(300));
    for (tenant, names, status) in [
        (json!("tenant1"), r#""tenantId":"tenant1","userId":["user123"]"#, 422),
        (json!("tenant1"), r#""tenantId":"tenant1","userId":"user123\u0000""#, 422),
        (json!("tenant1"), &*long, 422),
        (json!("tenant1"), r#""tenantId":"tenant1","userId":"user123","userId":"bob""#, 422),
        (json!("tenant1"), r#""tenantId":"tenant2","userId":"user123""#, 422),
        (Value::Null, r#""tenantId":"tenant2","tenantId":"tenant1""#, 404),
        (Value::Null, r#""tenantId":["tenant1"],"userId":"user123""#, 404),
    ] {
        let asked = Asked::new().with("tenantId", tenant).with("userId", Value::Null);
        app.put(&asked.id, &asked.document.to_string()).await;
        let pointer = format!(r#"{{"requestId":"{}",{names}}}"#, asked.id);
        app.point(&asked.session, &pointer).await;
        for who in [ALICE, BOB] {
            let answer = app.approve(who, &asked.id).await;
            assert_eq!(answer.status, status, "{names}");
        }
        assert!(app.is_unrecorded(&asked.id).await, "{names}");
    }
}

/// Polls as the agent of this person.
async fn poll_as_agent(app: &TestApp, who: Who<'_>, session: &str) -> Answer {
    let call = app.call(who, Method::GET, &format!("/aura/hitl/signals/{session}"));
    Answer::of(call.header("X-DWP-Caller-Type", "AGENT").send().await.unwrap()).await
}

/// A request of Redis that was approved while nobody listened.
async fn approved_unheard(app: &TestApp, asked: &Asked) {
    app.ask(asked).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    assert_eq!(app.settled(&asked.id).await.listeners, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_colleagues_agent_does_not_hear_for_the_requests_own() {
    let app = TestApp::spawn(Mode::Production).await;
    let [asked, nobodys] = [Asked::new(), Asked::new().with("userId", Value::Null)];
    app.ask(&nobodys).await;
    app.point(&nobodys.session, &nobodys.id).await;
    app.approve(ALICE, &nobodys.id).await.assert(200, "");
    app.settled(&nobodys.id).await;
    approved_unheard(&app, &asked).await;
    poll_as_agent(&app, BOB, &asked.session).await.assert(200, "");
    poll_as_agent(&app, BOB, &nobodys.session).await.assert(200, "");
    let mut subscribers =
        [Subscriber::on(&asked.session).await, Subscriber::on(&nobodys.session).await];
    assert!(subscribers[0].next().await.contains(&asked.id));
    assert!(subscribers[1].next().await.contains(&nobodys.id));
    // Its own user's agent has heard it, though a colleague's had looked before.
    let asked = Asked::new();
    approved_unheard(&app, &asked).await;
    poll_as_agent(&app, BOB, &asked.session).await.assert(200, "");
    poll_as_agent(&app, ALICE, &asked.session).await.assert(200, "");
    let record = app.record(&asked.id).await;
    let before = record.created_at - TimeDelta::seconds(1);
    eventually(async || {
        let unheard = app.state.ledger.unheard(before, before, 1000).await.unwrap();
        unheard.iter().all(|unheard| unheard.id != record.id).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_its_session_has_moved_on_an_unheard_signal_is_over_for_every_replica() {
    let app = TestApp::spawn(Mode::Production).await;
    let asked = Asked::new();
    approved_unheard(&app, &asked).await;
    let mut redis = redis().await;
    let pointer: String = redis.get(format!("hitl:session:{}", asked.session)).await.unwrap();
    app.ask(&Asked::in_session(&asked.session)).await;
    let mut subscriber = Subscriber::on(&asked.session).await;
    eventually(async || {
        let record = app.record(&asked.id).await;
        (record.delivery == Delivery::Superseded).then_some(())
    })
    .await;
    app.point(&asked.session, &pointer).await;
    let record = app.record(&asked.id).await;
    let claimed = app.state.ledger.claim_unheard(&record, app.state.clock.now()).await.unwrap();
    assert!(claimed.is_none());
    let since = record.created_at - TimeDelta::seconds(1);
    let unheard = app.state.ledger.unheard(since, since, 1000).await.unwrap();
    assert!(unheard.iter().all(|unheard| unheard.id != record.id));
    assert!(subscriber.heard().await.is_empty());
}

both_modes! {
    async fn all_values_of_if_match_count_and_a_star_stands_alone(app: TestApp) {
        let decide = async |values: &[&str], status: u16| {
            let asked = Asked::new();
            app.ask(&asked).await;
            let mut call = app.call(ALICE, Method::POST, &format!("/aura/hitl/approve/{}", asked.id));
            let read = app.get(ALICE, &format!("/aura/hitl/requests/{}", asked.id)).await;
            let tag = read.headers["etag"].to_str().unwrap().to_owned();
            for value in values {
                call = call.header("If-Match", value.replace("TAG", &tag));
            }
            let answer = call.json(&json!({ "userId": ALICE.user })).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{values:?}");
        };
        for values in [&["*"][..], &[" * "], &["TAG"], &["\"a\", TAG"], &["\"a\"", "TAG"]] {
            decide(values, 200).await;
        }
        for values in [
            &["*", "\"a\""][..], &["\"a\"", "*"], &["*", "TAG"], &["TAG, *"], &["*, TAG"],
            &["*", "*"], &["\"a\"", "\"b\""], &["*,"],
        ] {
            decide(values, 412).await;
        }
    }
}
