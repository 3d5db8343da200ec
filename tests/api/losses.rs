//! Redis loses what it had been given: it is killed and comes back empty. Signals are found again,
//! and nobody hears a second time what they would take for their next answer.

use aura_hitl::courier::{Outgoing, Sent};
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::ids::{RequestId, SessionId};
use aura_hitl::domain::record::{Delivery, DeliveryResult, Record};
use aura_hitl::domain::signal::signal_json;
use chrono::TimeDelta;
use futures_util::StreamExt as _;
use redis::aio::PubSub;
use serde_json::json;
use support::{ALICE, Asked, Mode, PrivateRedis, Subscriber, TestApp, eventually};

async fn app_on(mode: Mode, redis: &PrivateRedis) -> TestApp {
    TestApp::spawn_with(mode, Clock::System, |config| config.redis = Some(redis.settings())).await
}

/// Kills it and starts it again, empty.
async fn wipe(redis: &mut PrivateRedis) {
    redis.kill();
    redis.start_again().await;
}

/// An agent that listens on its session's channel.
async fn agent(redis: &PrivateRedis, session: &str) -> PubSub {
    let mut agent = redis.client().get_async_pubsub().await.unwrap();
    agent.subscribe(format!("hitl:channel:{session}")).await.unwrap();
    agent
}

async fn next(agent: &mut PubSub) -> String {
    let mut messages = agent.on_message();
    let message = tokio::time::timeout(std::time::Duration::from_secs(10), messages.next()).await;
    message.expect("nothing was said").expect("cut off").get_payload().unwrap()
}

async fn under_the_key(redis: &PrivateRedis, session: &str) -> Option<String> {
    redis.command(&["GET", &format!("hitl:signal:{session}")]).await
}

fn signal(record: &Record) -> String {
    let State::Decided(decision) = &record.state else { panic!("{:?}", record.state) };
    signal_json(&record.id, decision)
}

/// Waits until the relay has found out that Redis is another one, and done what it may about it.
async fn noticed(app: &TestApp, before: &Record) -> Record {
    assert!(before.replication_id.is_some());
    eventually(async || {
        let record = app.record(before.id.as_str()).await;
        (record.delivery == Delivery::Sent && record.replication_id != before.replication_id)
            .then_some(record)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_that_nobody_has_heard_is_sent_again() {
    for mode in [Mode::Embedded, Mode::Production] {
        let mut redis = PrivateRedis::start().await;
        let app = app_on(mode, &redis).await;
        let one = &Asked::new();
        app.ask(one).await;
        {
            app.approve(ALICE, &one.id).await.assert(200, "");
            assert!(
                app.settled(&one.id).await.is_missed_within_lookup_timeout(app.state.clock.now())
            );
        }
        wipe(&mut redis).await;
        {
            // As an agent waits that has lost its connection, too.
            let mut agent = agent(&redis, &one.session).await;
            let found = match under_the_key(&redis, &one.session).await {
                Some(found) => found,
                None => next(&mut agent).await,
            };
            let record = app.settled(&one.id).await;
            assert_eq!(found, signal(&record));
            assert_eq!(under_the_key(&redis, &one.session).await, Some(found));
            let key = format!("hitl:request:{}", one.id);
            let stored: String = redis.command(&["GET", &key]).await;
            assert!(stored.contains("approvedBy"), "{stored}");
            assert!(app.poll(ALICE, &one.session, None).await.is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_starts_finds_out_what_redis_has_lost_meanwhile() {
    let mut redis = PrivateRedis::start().await;
    let mut app = app_on(Mode::Production, &redis).await;
    let asked = Asked::new();
    app.ask(&asked).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    let record = app.settled(&asked.id).await;
    redis.kill();
    app.restart().await;
    redis.start_again().await;
    eventually(async || under_the_key(&redis, &asked.session).await).await;
    assert_eq!(under_the_key(&redis, &asked.session).await, Some(signal(&record)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_has_heard_never_answers_its_next_question() {
    let mut redis = PrivateRedis::start().await;
    let app = app_on(Mode::Production, &redis).await;
    let first = Asked::new();
    app.ask(&first).await;
    let mut before = agent(&redis, &first.session).await;
    app.approve(ALICE, &first.id).await.assert(200, "");
    let record = app.settled(&first.id).await;
    assert_eq!(next(&mut before).await, signal(&record));
    let second = Asked::in_session(&first.session);
    app.ask(&second).await;
    // Lost with all the rest: what the session waits for now.
    wipe(&mut redis).await;
    let mut after = agent(&redis, &first.session).await;
    assert_eq!(noticed(&app, &record).await.listeners, Some(1));
    assert_eq!(under_the_key(&redis, &first.session).await, None);
    assert_eq!(app.poll(ALICE, &first.session, None).await, None);
    let named = app.poll(ALICE, &first.session, Some(&first.id)).await.unwrap();
    assert_eq!(named["status"], "approved", "whoever names it may know");
    // The agent asks again for what was lost, and is answered.
    app.ask(&second).await;
    app.reject(ALICE, &second.id, None).await.assert(200, "");
    assert_eq!(next(&mut after).await, signal(&app.record(&second.id).await));
}

/// What there is of a session when a signal is sent that was sent before.
struct Case {
    name: &'static str,
    was_heard: bool,
    /// What the session names: this request, another, or nothing.
    names: Option<&'static str>,
    /// What is under the request's key: as it was decided, nothing, or pending.
    request: &'static str,
    expected: Expected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Key and message.
    SentAgain,
    /// The key alone.
    PutBack,
    /// Neither.
    Left,
    Superseded,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_done_about_a_lost_signal() {
    use Expected::{Left, PutBack, SentAgain, Superseded};
    let redis = PrivateRedis::start().await;
    let clock = Clock::manual();
    let app = TestApp::spawn_with(Mode::Production, clock.clone(), |config| {
        config.redis = Some(redis.settings());
    })
    .await;
    let case = |name, was_heard, names, request, expected| Case {
        name,
        was_heard,
        names,
        request,
        expected,
    };
    let (this, other) = (Some("this"), Some("req_other"));
    let cases = [
        case("unheard, wiped", false, None, "none", SentAgain),
        case("unheard, still there", false, this, "decided", SentAgain),
        case("unheard, forgotten", false, this, "pending", SentAgain),
        case("unheard, moved on", false, other, "decided", Superseded),
        case("unheard, asked otherwise", false, this, "altered", Superseded),
        case("heard, wiped", true, None, "none", Left),
        case("heard, still there", true, this, "decided", PutBack),
        case("heard, forgotten", true, this, "pending", PutBack),
        case("heard, asked again", true, this, "asked again", Left),
        case("heard, moved on", true, other, "decided", Left),
        case("heard, asked otherwise", true, this, "altered", Left),
    ];
    for case in cases {
        let asked = Asked::new();
        app.ask(&asked).await;
        let pending = app.stored(&asked.id).await;
        let heard_then =
            if case.was_heard { Some(agent(&redis, &asked.session).await) } else { None };
        app.approve(ALICE, &asked.id).await.assert(200, "");
        let mut record = app.settled(&asked.id).await;
        drop(heard_then);
        // The place of a wipe, without its other effects.
        record.replication_id = Some("a history that is over".to_owned());
        let (request, session) =
            (format!("hitl:request:{}", asked.id), format!("hitl:session:{}", asked.session));
        let _deleted: i64 =
            redis.command(&["DEL", &format!("hitl:signal:{}", asked.session)]).await;
        match case.names {
            Some("this") => app.point(&asked.session, &asked.id).await,
            Some(other) => app.point(&asked.session, other).await,
            None => _ = redis.command::<i64>(&["DEL", &session]).await,
        }
        let state = &app.state;
        match case.request {
            "none" => _ = redis.command::<i64>(&["DEL", &request]).await,
            "pending" => {
                app.put(&asked.id, &pending.document).await;
                // As old as it was.
                let _ok: i64 = redis.command(&["EXPIRE", &request, "1700"]).await;
            }
            "asked again" => {
                clock.advance(TimeDelta::seconds(9));
                app.put(&asked.id, &pending.document).await;
            }
            "altered" => {
                let other = asked.clone().with("context", json!({ "to": "everybody" }));
                app.put(&asked.id, &other.document.to_string()).await;
            }
            _ => {}
        }
        let mut subscriber = agent(&redis, &asked.session).await;
        let DeliveryResult { delivery, listeners, replication_id } =
            state.sender().deliver(&record, None).await.unwrap();
        let channel = format!("hitl:channel:{}", asked.session);
        let _count: i64 = redis.command(&["PUBLISH", &channel, "end"]).await;
        let is_told = next(&mut subscriber).await != "end";
        let is_there = under_the_key(&redis, &asked.session).await == Some(signal(&record));
        let happened = match (delivery, is_told, is_there) {
            (Delivery::Sent, true, true) => SentAgain,
            (Delivery::Sent, false, true) => PutBack,
            (Delivery::Sent, false, false) => Left,
            (Delivery::Superseded, false, false) => Superseded,
            odd => panic!("{}: {odd:?}", case.name),
        };
        assert_eq!(happened, case.expected, "{}", case.name);
        assert_eq!(replication_id.is_some(), is_there, "{}", case.name);
        if happened != Superseded {
            let heard = if is_told { Some(1) } else { record.listeners };
            assert_eq!(listeners, heard, "{}", case.name);
        }
    }
}

over_redis! {
    async fn a_signal_that_is_not_sent_aloud_is_only_put_under_its_key(app: TestApp) {
        let asked = Asked::new();
        let mut subscriber = Subscriber::on(&asked.session).await;
        let request = &RequestId::parse(&asked.id).unwrap();
        let session = &SessionId::parse(&asked.session).unwrap();
        let only_if = &app.state.courier.snapshot(request, session).await.unwrap();
        let (signal, document, rank, publish) = ("{}", "{}", 1, false);
        let outgoing = Outgoing { request, session, signal, document, rank, publish, only_if };
        let sent = app.state.courier.send(&outgoing).await.unwrap();
        assert!(matches!(sent, Sent::Published { .. }));
        assert!(subscriber.heard().await.is_empty());
        assert_eq!(app.signal(&asked.session).await.as_deref(), Some("{}"));
    }
}
