//! Agents that subscribe after they have asked, never read the signal's key and never poll: a decision
//! that came first is published again once they listen.

use std::time::Duration;

use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::record::Delivery;
use aura_hitl::domain::signal::signal_json;
use aura_hitl::server::Replica;
use aura_hitl::server::relay;
use aura_hitl::state::AppState;
use chrono::TimeDelta;
use futures_util::StreamExt as _;
use sqlx::{Connection as _, Executor as _};
use support::{ALICE, Asked, Mode, Subscriber, TestApp, eventually};

use crate::waiting::again;

async fn signal(app: &TestApp, asked: &Asked) -> String {
    let record = app.record(&asked.id).await;
    let State::Decided(decision) = &record.state else { panic!("undecided") };
    signal_json(&record.id, decision)
}

/// Asks, and is answered before it listens.
async fn answered_unheard(app: &TestApp) -> Asked {
    let asked = Asked::new();
    app.ask(&asked).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    assert_eq!(app.settled(&asked.id).await.listeners, Some(0));
    asked
}

/// Waits until the ledger says that somebody has heard it, and nobody watches it any more.
async fn is_heard(app: &TestApp, asked: &Asked) {
    eventually(async || {
        let record = app.record(&asked.id).await;
        let is_noted = record.delivery == Delivery::Sent && record.listeners == Some(1);
        (is_noted && app.state.unheard.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_listens_after_the_decision_hears_it_once() {
    let app = TestApp::spawn(Mode::Production).await;
    let agents = futures_util::stream::iter(0..20_u32).map(|place| {
        let app = &app;
        async move {
            let asked = answered_unheard(app).await;
            tokio::time::sleep(Duration::from_millis(50) * place).await;
            let mut subscriber = Subscriber::on(&asked.session).await;
            assert_eq!(subscriber.next().await, signal(app, &asked).await);
            (asked, subscriber)
        }
    });
    let agents = agents.buffer_unordered(20).collect::<Vec<_>>().await;
    for (asked, mut subscriber) in agents {
        is_heard(&app, &asked).await;
        assert!(subscriber.heard().await.is_empty(), "it was said twice");
        assert_eq!(app.signal(&asked.session).await, Some(signal(&app, &asked).await));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_waits_for_something_else_hears_nothing_of_it() {
    let app = TestApp::spawn(Mode::Production).await;
    let late = answered_unheard(&app).await;
    let now = Asked::in_session(&late.session);
    app.ask(&now).await;
    let mut subscriber = Subscriber::on(&late.session).await;
    eventually(async || app.state.unheard.is_empty().then_some(())).await;
    assert!(subscriber.heard().await.is_empty());
    app.reject(ALICE, &now.id, None).await.assert(200, "");
    assert_eq!(subscriber.next().await, signal(&app, &now).await);
    assert!(subscriber.heard().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_names_nothing_or_whose_request_is_another_is_left_alone() {
    let app = TestApp::spawn(Mode::Production).await;
    let [unnamed, altered, gone] =
        [answered_unheard(&app).await, answered_unheard(&app).await, answered_unheard(&app).await];
    app.point(&unnamed.session, "{}").await;
    let other = altered.clone().with("context", serde_json::json!({ "to": "everybody" }));
    app.put(&altered.id, &other.document.to_string()).await;
    let mut redis = support::redis().await;
    let key = format!("hitl:request:{}", gone.id);
    redis::cmd("DEL").arg(key).exec_async(&mut redis).await.unwrap();
    let mut subscribers = Vec::new();
    for asked in [&unnamed, &altered, &gone] {
        subscribers.push(Subscriber::on(&asked.session).await);
    }
    // One that is published again, after all of these were looked at several times.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let heard = answered_unheard(&app).await;
    let mut subscriber = Subscriber::on(&heard.session).await;
    subscriber.next().await;
    for subscriber in &mut subscribers {
        assert!(subscriber.heard().await.is_empty());
    }
    // It names it after all.
    app.point(&unnamed.session, &unnamed.id).await;
    assert_eq!(subscribers[0].next().await, signal(&app, &unnamed).await);
    // The same request once more, as a client writes it that was not sure whether it had.
    app.put(&altered.id, &again(&altered).document.to_string()).await;
    assert_eq!(subscribers[1].next().await, signal(&app, &altered).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_has_given_up_is_told_nothing() {
    let clock = Clock::manual();
    let app = TestApp::spawn_with(Mode::Production, clock.clone(), |_| {}).await;
    let asked = answered_unheard(&app).await;
    clock.advance(TimeDelta::seconds(301));
    let mut subscriber = Subscriber::on(&asked.session).await;
    eventually(async || app.state.unheard.is_empty().then_some(())).await;
    assert!(subscriber.heard().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_left_unheard_another_says_again_and_only_one_of_them() {
    let mut app = TestApp::spawn(Mode::Production).await;
    let asked = answered_unheard(&app).await;
    app.restart().await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(Replica::start(&app.config, Clock::System).await.unwrap());
    }
    eventually(async || {
        others.iter().all(|replica| replica.state.unheard.len() == 1).then_some(())
    })
    .await;
    let mut subscriber = Subscriber::on(&asked.session).await;
    assert_eq!(subscriber.next().await, signal(&app, &asked).await);
    for state in others.iter().map(|replica| &replica.state).chain([&app.state]) {
        eventually(async || state.unheard.is_empty().then_some(())).await;
    }
    assert!(subscriber.heard().await.is_empty(), "two replicas said it");
    for replica in others {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_before_it_says_it_again_leaves_it_to_the_relay() {
    // A clock that stands still, so that no relay finds the lease run out before it should.
    let app = TestApp::spawn_with(Mode::Production, Clock::manual(), |_| {}).await;
    let [waits, moved_on] = [answered_unheard(&app).await, answered_unheard(&app).await];
    for asked in [&waits, &moved_on] {
        let (record, now) = (app.record(&asked.id).await, app.state.clock.now());
        assert!(app.state.ledger.claim_unheard(&record, now).await.unwrap().is_some());
        // Nobody else can.
        assert!(app.state.ledger.claim_unheard(&record, now).await.unwrap().is_none());
    }
    app.ask(&Asked::in_session(&moved_on.session)).await;
    let mut subscribers =
        [Subscriber::on(&waits.session).await, Subscriber::on(&moved_on.session).await];
    let clock = Clock::manual();
    clock.advance(TimeDelta::seconds(10));
    relay(&AppState { clock, ..app.state.clone() }).run_once().await.unwrap();
    assert_eq!(subscribers[0].next().await, signal(&app, &waits).await);
    assert!(subscribers[1].heard().await.is_empty());
    assert_eq!(app.settled(&moved_on.id).await.delivery, Delivery::Superseded);
    assert_eq!(app.settled(&waits.id).await.listeners, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_answered_over_http_has_heard_it_and_a_browser_has_not() {
    let app = TestApp::spawn(Mode::Production).await;
    let poll = async |asked: &Asked, caller_type: &str| {
        let path = format!("/aura/hitl/signals/{}", asked.session);
        let call = app.call(ALICE, reqwest::Method::GET, &path);
        let call = call.header("X-DWP-Caller-Type", caller_type).send().await.unwrap();
        let answer = support::Answer::of(call).await;
        assert_eq!(answer.data().as_str(), Some(&*signal(&app, asked).await));
    };
    let [shown, heard] = [answered_unheard(&app).await, answered_unheard(&app).await];
    poll(&heard, "AGENT").await;
    poll(&heard, "AGENT").await;
    poll(&shown, "USER").await;
    // What a claim finds, other replicas find too.
    let record = app.record(&heard.id).await;
    eventually(async || {
        let before = record.created_at - TimeDelta::seconds(1);
        let unheard = app.state.ledger.unheard(before, before, 10).await;
        (unheard.unwrap().iter().all(|unheard| unheard.id != record.id)).then_some(())
    })
    .await;
    let claimed = app.state.ledger.claim_unheard(&record, app.state.clock.now()).await.unwrap();
    assert!(claimed.is_none());
    let mut subscribers =
        [Subscriber::on(&heard.session).await, Subscriber::on(&shown.session).await];
    assert_eq!(subscribers[1].next().await, signal(&app, &shown).await);
    assert!(subscribers[0].heard().await.is_empty());
}

/// Postgres' own failover, when it is asynchronous, loses what the old primary alone had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_the_database_has_lost_is_not_said_again() {
    let app = TestApp::spawn(Mode::Production).await;
    let asked = answered_unheard(&app).await;
    let aura_hitl::config::LedgerConfig::Postgres { url, .. } = &app.config.ledger else {
        panic!()
    };
    let url = secrecy::ExposeSecret::expose_secret(url);
    let mut database = sqlx::PgConnection::connect(url).await.unwrap();
    let lose = format!("DELETE FROM hitl_request WHERE request_id = '{}'", asked.id);
    database.execute(sqlx::AssertSqlSafe(lose)).await.unwrap();
    let mut subscriber = Subscriber::on(&asked.session).await;
    eventually(async || app.state.unheard.is_empty().then_some(())).await;
    assert!(subscriber.heard().await.is_empty());
}
