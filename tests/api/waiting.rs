//! How existing agents wait, and what that forbids: the contract's five rules, tried with an agent
//! that takes the first message on its session's channel for its answer, whatever it says.

use aura_hitl::config::LedgerConfig;
use aura_hitl::courier::{Outgoing, Sent, SessionSnapshot};
use aura_hitl::delivery::relay::Round;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId};
use aura_hitl::domain::record::Delivery;
use aura_hitl::domain::request::Origin;
use aura_hitl::ledger::Recorded;
use aura_hitl::server::relay;
use aura_hitl::state::AppState;
use chrono::TimeDelta;
use futures_util::StreamExt as _;
use redis::AsyncCommands as _;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};
use support::{
    ALICE, Asked, BOB, MALLORY, Mode, Subscriber, TestApp, Who, decide_on_ledger, eventually,
    reached, redis, unique,
};

const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];

/// The agents' waiting code as the contract describes it.
struct NaiveAgent(Subscriber);

impl NaiveAgent {
    /// Asks, and listens only then.
    async fn ask(app: &TestApp, asked: &Asked) -> Self {
        app.ask(asked).await;
        Self(Subscriber::on(&asked.session).await)
    }

    /// Acts on the first message: whatever is not a rejection is an approval.
    async fn may_act(&mut self) -> bool {
        let message: Value = serde_json::from_str(&self.0.next().await).unwrap();
        message["type"] != "rejection"
    }

    async fn heard_nothing(&mut self) -> bool {
        self.0.heard().await.is_empty()
    }
}

/// A service whose clock stands still, so that its own relay never finds a lease run out.
async fn frozen(mode: Mode) -> (TestApp, Clock) {
    let clock = Clock::manual();
    (TestApp::spawn_with(mode, clock.clone(), |_| {}).await, clock)
}

/// Commits a decision of Alice's as a replica does that dies before it has sent the signal.
async fn approve_and_die(app: &TestApp, asked: &Asked) {
    let (ledger, now) = (&app.state.ledger, app.state.clock.now());
    let recorded =
        decide_on_ledger(ledger, ALICE, asked, Origin::Redis, Verdict::Approve, now).await;
    assert!(matches!(recorded, Recorded::Won(_)));
}

/// One round of a replica whose clock is past every lease.
async fn relay_later(app: &TestApp) -> Round {
    let clock = Clock::manual();
    clock.advance(TimeDelta::seconds(10));
    relay(&AppState { clock, ..app.state.clone() }).run_once().await.unwrap()
}

/// The same request once more, as a restarted agent writes it.
pub fn again(asked: &Asked) -> Asked {
    asked.clone().with("createdAt", json!(17))
}

over_redis! {
    async fn an_agent_that_waits_gets_its_answer_and_nothing_else(app: TestApp) {
        let (go, stop) = (Asked::new(), Asked::new());
        let mut agent = NaiveAgent::ask(&app, &go).await;
        app.approve(ALICE, &go.id).await.assert(200, "");
        assert!(agent.may_act().await);
        let mut other = NaiveAgent::ask(&app, &stop).await;
        app.reject(ALICE, &stop.id, None).await.assert(200, "");
        assert!(!other.may_act().await);
        assert!(agent.heard_nothing().await && other.heard_nothing().await);
    }
}

over_redis! {
    async fn a_late_approval_never_reaches_an_agent_that_waits_for_something_else(app: TestApp) {
        let late = Asked::new();
        NaiveAgent::ask(&app, &late).await;
        let now = Asked::in_session(&late.session);
        let mut agent = NaiveAgent::ask(&app, &now).await;
        for answer in [app.approve(ALICE, &late.id).await, app.reject(BOB, &late.id, None).await] {
            answer.assert(410, "E3007");
        }
        assert!(agent.heard_nothing().await);
        assert_eq!(app.signal(&late.session).await, None);
        assert!(app.is_unrecorded(&late.id).await && app.tasks("tenant1").await.is_empty());
        assert_eq!(app.stored(&late.id).await.document, late.document.to_string());
        app.reject(ALICE, &now.id, None).await.assert(200, "");
        assert!(!agent.may_act().await);
        assert!(agent.heard_nothing().await);
    }
}

over_redis! {
    async fn a_session_that_names_nothing_does_not_keep_a_request_from_being_decided(app: TestApp) {
        for pointer in [None, Some("{}"), Some("null"), Some(""), Some(r#"{"requestId":null}"#)] {
            let asked = Asked::new();
            app.put(&asked.id, &asked.document.to_string()).await;
            if let Some(pointer) = pointer {
                app.point(&asked.session, pointer).await;
            }
            let mut agent = NaiveAgent(Subscriber::on(&asked.session).await);
            app.reject(ALICE, &asked.id, None).await.assert(200, "");
            assert!(!agent.may_act().await, "{pointer:?}");
        }
    }
}

/// Writes a request that is so many seconds old, and no pointer.
async fn put_aged(app: &TestApp, asked: &Asked, age: u64) {
    let key = format!("hitl:request:{}", asked.id);
    app.state.courier.set(&key, &asked.document.to_string(), 1800 - age).await.unwrap();
}

over_redis! {
    async fn in_a_session_that_names_nothing_only_the_newest_known_request_is_decided(app: TestApp) {
        let old = Asked::new();
        let new = Asked::in_session(&old.session);
        put_aged(&app, &old, 60).await;
        put_aged(&app, &new, 30).await;
        app.reject(ALICE, &new.id, None).await.assert(200, "");
        app.settled(&new.id).await;
        let under_the_key = app.signal(&old.session).await;
        let mut agent = NaiveAgent(Subscriber::on(&old.session).await);
        app.approve(ALICE, &old.id).await.assert(410, "E3007");
        assert!(agent.heard_nothing().await && app.is_unrecorded(&old.id).await);
        assert_eq!(app.signal(&old.session).await, under_the_key);
        // One that is newer still is decided; its agent waits for it.
        let newest = Asked::in_session(&old.session);
        put_aged(&app, &newest, 0).await;
        app.approve(ALICE, &newest.id).await.assert(200, "");
        assert!(agent.may_act().await);
        // Another tenant's counts as well: the session is one key in Redis.
        let old = Asked::new();
        let foreign = Asked::in_session(&old.session).with("tenantId", json!("tenant2"));
        put_aged(&app, &old, 60).await;
        put_aged(&app, &foreign, 30).await;
        app.reject(MALLORY, &foreign.id, None).await.assert(200, "");
        app.approve(ALICE, &old.id).await.assert(410, "E3007");
        assert!(app.is_unrecorded(&old.id).await);
        // Nor is it if its session names it: the other tenant's agent may wait there.
        app.point(&old.session, &old.id).await;
        app.approve(ALICE, &old.id).await.assert(422, "E4220");
        assert!(app.is_unrecorded(&old.id).await);
    }
}

over_redis! {
    async fn in_a_session_that_names_nothing_a_poll_is_answered_for_the_newest_request(app: TestApp) {
        let old = Asked::new();
        let new = Asked::in_session(&old.session);
        put_aged(&app, &old, 60).await;
        app.approve(ALICE, &old.id).await.assert(200, "");
        app.settled(&old.id).await;
        let polled = app.poll(ALICE, &old.session, Some(&old.id)).await.unwrap();
        assert_eq!(polled["requestId"], old.id.as_str());
        put_aged(&app, &new, 30).await;
        app.reject(ALICE, &new.id, None).await.assert(200, "");
        app.settled(&new.id).await;
        assert_eq!(app.poll(ALICE, &old.session, Some(&old.id)).await, None);
        let polled = app.poll(ALICE, &old.session, Some(&new.id)).await.unwrap();
        assert_eq!(polled["requestId"], new.id.as_str());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_left_owing_is_superseded_if_its_session_names_nothing_and_a_newer_is_known() {
    let (app, clock) = frozen(Mode::Production).await;
    let old = Asked::new();
    approve_and_die(&app, &old).await;
    clock.advance(TimeDelta::seconds(1));
    let new = Asked::in_session(&old.session);
    approve_and_die(&app, &new).await;
    let mut subscriber = Subscriber::on(&old.session).await;
    let round = relay_later(&app).await;
    assert_eq!(round, Round { sent: 1, superseded: 1, ..Round::default() });
    assert_eq!(app.record(&old.id).await.delivery, Delivery::Superseded);
    assert_eq!(app.record(&new.id).await.delivery, Delivery::Sent);
    let heard = subscriber.heard().await;
    assert!(heard.len() == 1 && heard[0].contains(&new.id), "{heard:?}");
}

over_redis! {
    async fn in_a_session_that_names_nothing_nothing_is_decided_after_something_newer(app: TestApp) {
        let older = Asked::new();
        let newer = Asked::in_session(&older.session);
        app.put(&older.id, &older.document.to_string()).await;
        // As much older as its key has lived longer.
        let mut redis = redis().await;
        redis.expire::<_, ()>(format!("hitl:request:{}", older.id), 1790).await.unwrap();
        app.put(&newer.id, &newer.document.to_string()).await;
        let mut agent = NaiveAgent(Subscriber::on(&older.session).await);
        app.reject(ALICE, &newer.id, None).await.assert(200, "");
        assert!(!agent.may_act().await);
        app.approve(ALICE, &older.id).await.assert(410, "E3007");
        assert!(app.is_unrecorded(&older.id).await && agent.heard_nothing().await);
    }
}

over_redis! {
    async fn a_pointer_may_be_a_bare_id_and_what_is_not_understood_names_another(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let mut agent = NaiveAgent(Subscriber::on(&asked.session).await);
        for other in ["req_other", "\"req_other\"", "[]", "{broken", "true", "7"] {
            app.point(&asked.session, other).await;
            app.approve(ALICE, &asked.id).await.assert(410, "E3007");
        }
        assert!(agent.heard_nothing().await && app.is_unrecorded(&asked.id).await);
        app.point(&asked.session, &asked.id).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert!(agent.may_act().await);
        let polled = app.poll(ALICE, &asked.session, None).await.unwrap();
        assert_eq!(polled["requestId"], asked.id.as_str());
        let quoted = Asked::new();
        app.ask(&quoted).await;
        app.point(&quoted.session, &format!("\"{}\"", quoted.id)).await;
        app.approve(ALICE, &quoted.id).await.assert(200, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_left_owing_is_sent_while_its_session_waits_or_names_nothing() {
    {
        let mode = Mode::Production;
        let (app, _clock) = frozen(mode).await;
        for pointer in [None, Some("{}")] {
            let asked = Asked::new();
            let mut agent = NaiveAgent::ask(&app, &asked).await;
            approve_and_die(&app, &asked).await;
            if let Some(pointer) = pointer {
                app.point(&asked.session, pointer).await;
            }
            assert!(app.poll(ALICE, &asked.session, Some(&asked.id)).await.is_some());
            assert!(agent.heard_nothing().await);
            assert_eq!(relay_later(&app).await, Round { sent: 1, ..Round::default() });
            assert!(agent.may_act().await);
            assert_eq!(app.record(&asked.id).await.delivery, Delivery::Sent);
            assert!(app.signal(&asked.session).await.unwrap().contains(&asked.id));
            assert_eq!(relay_later(&app).await, Round::default());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_left_owing_is_superseded_once_its_session_has_moved_on() {
    {
        let mode = Mode::Production;
        let (app, clock) = frozen(mode).await;
        let first = Asked::new();
        app.ask(&first).await;
        app.approve(ALICE, &first.id).await.assert(200, "");
        app.settled(&first.id).await;
        let under_the_key = app.signal(&first.session).await;
        clock.advance(TimeDelta::seconds(1));

        let owed = Asked::in_session(&first.session);
        app.ask(&owed).await;
        approve_and_die(&app, &owed).await;
        let mut agent = NaiveAgent::ask(&app, &Asked::in_session(&first.session)).await;
        assert_eq!(relay_later(&app).await, Round { superseded: 1, ..Round::default() });
        assert!(agent.heard_nothing().await);
        assert_eq!(app.signal(&first.session).await, under_the_key);
        assert_eq!(app.record(&owed.id).await.delivery, Delivery::Superseded);
        // It stays superseded, and its decider's next click is told that it stands.
        assert_eq!(relay_later(&app).await, Round::default());
        app.approve(ALICE, &owed.id).await.assert(200, "");
        assert!(agent.heard_nothing().await);
        // Until its agent asks for it once more.
        let mut agent = NaiveAgent::ask(&app, &again(&owed)).await;
        app.approve(ALICE, &owed.id).await.assert(200, "");
        assert!(agent.may_act().await);
        app.settled(&owed.id).await;

        // The same id, asked about something else since.
        let owed = Asked::new();
        app.ask(&owed).await;
        approve_and_die(&app, &owed).await;
        let other = owed.clone().with("context", json!({ "to": "everybody" }));
        let mut agent = NaiveAgent::ask(&app, &other).await;
        assert_eq!(app.poll(ALICE, &owed.session, None).await, None);
        assert_eq!(relay_later(&app).await, Round { superseded: 1, ..Round::default() });
        assert!(agent.heard_nothing().await);
        assert_eq!(app.poll(ALICE, &owed.session, None).await, None);
    }
}

over_redis! {
    async fn an_agent_that_asks_again_is_told_again_by_the_same_decision(app: TestApp) {
        let asked = Asked::new();
        // It has heard the first answer: what nobody heard is said again by itself.
        let mut before = NaiveAgent::ask(&app, &asked).await;
        let first = app.approve(ALICE, &asked.id).await;
        app.settled(&asked.id).await;
        assert!(before.may_act().await);
        drop(before);
        let signal = app.signal(&asked.session).await.unwrap();

        let mut agent = NaiveAgent::ask(&app, &again(&asked)).await;
        app.reject(ALICE, &asked.id, None).await.assert(409, "E3006");
        app.approve(BOB, &asked.id).await.assert(409, "E3006");
        assert!(agent.heard_nothing().await);
        assert_eq!(app.approve(ALICE, &asked.id).await.bare(), first.bare());
        app.settled(&asked.id).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(agent.0.heard().await, [signal]);
        let stored = app.stored(&asked.id).await.document;
        assert!(stored.contains("approvedBy"), "{stored}");
        assert_eq!(app.tasks("tenant1").await.len(), 1);
    }
}

over_redis! {
    /// Which session a request is of, its parsed document says, and not the first one that its text
    /// speaks of.
    async fn a_session_that_a_request_speaks_of_is_not_its_own(app: TestApp) {
        let (late, now) = (Asked::new(), Asked::new());
        let own = now.session.clone();
        let quiet = unique("quiet");
        for (spoken_of, status, code) in [
            (format!(r#"{{"context":{{"sessionId":"{quiet}"}},"sessionId":"{own}","#), 410, "E3007"),
            // Readers would not agree on which one it is.
            (format!(r#"{{"sessionId":"{quiet}","sessionId":"{own}","#), 422, "E4220"),
        ] {
            let document = format!(
                r#"{spoken_of}"requestId":"{}","userId":"user123","tenantId":"tenant1","actionType":"send","status":"pending"}}"#,
                late.id
            );
            app.put(&late.id, &document).await;
            // Its own session waits for something else by now; the other one names nothing.
            app.point(&own, &now.id).await;
            app.approve(ALICE, &late.id).await.assert(status, code);
            assert!(app.is_unrecorded(&late.id).await);
            assert_eq!(app.signal(&own).await, None);
        }
    }
}

over_redis! {
    async fn an_agent_that_asks_again_for_something_else_is_not_told(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        for (field, value) in [
            ("context", json!({ "to": "everybody" })),
            ("actionType", json!("delete_mailbox")),
            ("userId", json!("bob")),
            ("sessionId", json!(unique("elsewhere"))),
        ] {
            let mut other = again(&asked).with(field, value);
            other.session = other.document["sessionId"].as_str().unwrap().to_owned();
            let mut agent = NaiveAgent::ask(&app, &other).await;
            app.approve(ALICE, &asked.id).await.assert(422, "E4220");
            assert!(agent.heard_nothing().await, "{field}");
            assert_eq!(app.poll(ALICE, &other.session, None).await, None, "{field}");
            assert_eq!(app.stored(&asked.id).await.document, other.document.to_string());
        }
    }
}

over_redis! {
    async fn a_poll_never_finds_the_answer_to_another_request(app: TestApp) {
        let (before, now) = (Asked::new(), Asked::new());
        let now = Asked { session: before.session.clone(), ..now }
            .with("sessionId", json!(before.session));
        let polled = async |id: Option<&str>| {
            let signal = app.poll(ALICE, &before.session, id).await?;
            Some(signal["requestId"].as_str().unwrap().to_owned())
        };
        let (a, b) = (Some(before.id.clone()), Some(now.id.clone()));
        app.ask(&before).await;
        assert_eq!(polled(None).await, None);
        app.approve(ALICE, &before.id).await.assert(200, "");
        app.settled(&before.id).await;
        assert_eq!((polled(None).await, polled(a.as_deref()).await), (a.clone(), a.clone()));
        assert_eq!(polled(b.as_deref()).await, None);
        assert_eq!(app.poll(ALICE, &unique("session"), a.as_deref()).await, None);
        assert_eq!(app.poll(MALLORY, &before.session, None).await, None);

        app.ask(&again(&before)).await;
        assert_eq!((polled(None).await, polled(a.as_deref()).await), (None, None), "asked again");
        app.approve(ALICE, &before.id).await.assert(200, "");
        app.settled(&before.id).await;
        assert_eq!(polled(None).await, a, "told again");

        app.ask(&now).await;
        for wanted in [None, a.as_deref(), b.as_deref()] {
            assert_eq!(polled(wanted).await, None, "moved on: {wanted:?}");
        }
        app.reject(ALICE, &now.id, None).await.assert(200, "");
        assert_eq!((polled(None).await, polled(b.as_deref()).await), (b.clone(), b));
        assert_eq!(polled(a.as_deref()).await, None);
    }
}

over_redis! {
    async fn a_poll_finds_the_answer_in_the_ledger_when_its_key_is_gone(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        let signal = app.poll(ALICE, &asked.session, None).await;
        assert!(signal.is_some());
        let mut redis = redis().await;
        for gone in [format!("hitl:signal:{}", asked.session), format!("hitl:request:{}", asked.id)] {
            redis.del::<_, ()>(&gone).await.unwrap();
            assert_eq!(app.poll(ALICE, &asked.session, None).await, signal, "without {gone}");
            assert_eq!(app.poll(ALICE, &asked.session, Some(&asked.id)).await, signal);
        }
    }
}

/// When Redis was wiped, its session may by now wait for a request that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_of_a_session_that_names_nothing_finds_only_what_nobody_has_heard() {
    let app = TestApp::spawn(Mode::Production).await;
    let mut redis = redis().await;
    for is_heard in [false, true] {
        let asked = Asked::new();
        app.put(&asked.id, &asked.document.to_string()).await;
        let agent = if is_heard { Some(Subscriber::on(&asked.session).await) } else { None };
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        assert!(app.poll(ALICE, &asked.session, None).await.is_some(), "under the key");
        redis.del::<_, ()>(format!("hitl:signal:{}", asked.session)).await.unwrap();
        let found = app.poll(ALICE, &asked.session, None).await;
        assert_eq!(found.is_none(), agent.is_some(), "{found:?}");
    }

    let (app, clock) = frozen(Mode::Production).await;
    let asked = Asked::new();
    app.put(&asked.id, &asked.document.to_string()).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    app.settled(&asked.id).await;
    clock.advance(TimeDelta::seconds(300));
    redis.del::<_, ()>(format!("hitl:signal:{}", asked.session)).await.unwrap();
    assert_eq!(app.poll(ALICE, &asked.session, None).await, None, "the agent has given up");
    assert!(app.poll(ALICE, &asked.session, Some(&asked.id)).await.is_some());
}

/// Registers a request over HTTP.
async fn register(app: &TestApp, session: &str, action: &str) -> String {
    register_by(app, ALICE, session, action).await
}

async fn register_by(app: &TestApp, who: Who<'_>, session: &str, action: &str) -> String {
    let body = json!({ "sessionId": session, "actionType": action, "expiresInSeconds": 60 });
    let answer = app.post(who, "/api/aura/hitl/requests", body).await;
    answer.assert(201, "").data()["requestId"].as_str().unwrap().to_owned()
}

over_redis! {
    async fn a_registration_beside_an_agent_on_redis_is_answered_by_polling_only(app: TestApp) {
        let asked = Asked::new();
        let mut agent = NaiveAgent::ask(&app, &asked).await;
        let id = register_by(&app, ALICE, &asked.session, "a").await;
        app.approve(ALICE, &id).await.assert(200, "");
        assert!(agent.heard_nothing().await);
        assert!(app.poll(ALICE, &asked.session, Some(&id)).await.is_some());
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert!(agent.may_act().await);
    }
}

over_redis! {
    /// Anybody may register in a session that they guess, before its agent asks and after.
    async fn what_is_registered_in_a_guessed_session_is_not_heard_there(app: TestApp) {
        for who in [MALLORY, BOB, ALICE] {
            for is_first in [false, true] {
                let asked = Asked::new();
                let mut agent = None;
                if !is_first {
                    agent = Some(NaiveAgent::ask(&app, &asked).await);
                }
                let id = register_by(&app, who, &asked.session, "a").await;
                let mut agent = match agent {
                    Some(agent) => agent,
                    None => NaiveAgent::ask(&app, &asked).await,
                };
                app.approve(who, &id).await.assert(200, "");
                assert!(app.poll(who, &asked.session, Some(&id)).await.is_some());
                assert!(agent.heard_nothing().await, "{} {is_first}", who.user);
                assert_eq!(app.poll(ALICE, &asked.session, None).await, None);
                app.reject(ALICE, &asked.id, None).await.assert(200, "");
                assert!(!agent.may_act().await);
            }
        }
    }
}

over_redis! {
    async fn a_registration_never_replaces_a_request_that_an_agent_wrote(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        for who in [ALICE, BOB] {
            let body = json!({
                "requestId": asked.id, "sessionId": unique("session"), "actionType": "a",
            });
            app.post(who, "/aura/hitl/requests", body).await.assert(409, "E3008");
        }
        assert_eq!(app.stored(&asked.id).await.document, asked.document.to_string());
        app.approve(ALICE, &asked.id).await.assert(200, "");
    }
}

over_redis! {
    async fn a_registered_request_whose_copy_was_altered_is_not_decided(app: TestApp) {
        let session = unique("session");
        let id = register(&app, &session, "a").await;
        let mut agent = NaiveAgent(Subscriber::on(&session).await);
        let copy: Value = serde_json::from_str(&app.record(&id).await.document).unwrap();
        for (field, value) in [
            ("context", json!({ "to": "everybody" })),
            ("actionType", json!("b")),
            ("userId", json!("bob")),
            ("sessionId", json!("elsewhere")),
        ] {
            let mut altered = copy.clone();
            altered[field] = value;
            app.put(&id, &altered.to_string()).await;
            app.approve(ALICE, &id).await.assert(422, "E4220");
        }
        app.put(&id, "nonsense").await;
        app.approve(ALICE, &id).await.assert(422, "E4220");
        app.approve(MALLORY, &id).await.assert(422, "E4220");
        assert!(agent.heard_nothing().await);
        assert_eq!(app.record(&id).await.state, State::Pending);
        app.put(&id, &copy.to_string()).await;
        app.approve(ALICE, &id).await.assert(200, "");
    }
}

both_modes! {
    async fn two_registered_requests_of_a_session_are_both_decided_and_both_found(app: TestApp) {
        let session = unique("session");
        let (one, two) = (register(&app, &session, "a").await, register(&app, &session, "b").await);
        app.approve(ALICE, &one).await.assert(200, "");
        app.reject(ALICE, &two, None).await.assert(200, "");
        for (id, status) in [(&one, "approved"), (&two, "rejected")] {
            let found = app.poll(ALICE, &session, Some(id)).await.unwrap();
            assert_eq!((&found["requestId"], &found["status"]), (&json!(id), &json!(status)));
        }
        assert_eq!(app.poll(ALICE, &session, None).await, None, "only requests of Redis");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_request_that_has_expired_is_gone_and_says_nothing() {
    for mode in MODES {
        let (app, clock) = frozen(mode).await;
        let session = unique("session");
        let id = register(&app, &session, "a").await;
        clock.advance(TimeDelta::seconds(60));
        app.approve(ALICE, &id).await.assert(410, "E3007");
        app.reject(ALICE, &id, None).await.assert(410, "E3007");
        assert_eq!(app.poll(ALICE, &session, Some(&id)).await, None);
    }
}

over_redis! {
    async fn session_ids_hold_whatever_a_user_id_holds(app: TestApp) {
        for user in ["kim.min-su@corp.example", "김철수", "a+b%2F/c?d#e&f=g", "'\"\\{}[]"] {
            let asked = Asked::in_session(&format!("session_{user}_{}", unique("1706149260")));
            let mut agent = NaiveAgent::ask(&app, &asked).await;
            let answer = app.reject(ALICE, &asked.id, None).await;
            assert_eq!(answer.assert(200, "").data()["sessionId"], asked.session.as_str());
            assert!(!agent.may_act().await, "{user}");
            for wanted in [None, Some(asked.id.as_str())] {
                let polled = app.poll(ALICE, &asked.session, wanted).await;
                assert_eq!(polled.expect(user)["requestId"], asked.id.as_str());
            }
        }
    }
}

over_redis! {
    async fn nothing_is_sent_once_the_session_is_not_the_one_that_was_judged(app: TestApp) {
        let asked = Asked::new();
        let mut agent = NaiveAgent::ask(&app, &asked).await;
        let session = SessionId::parse(&asked.session).unwrap();
        let id = RequestId::parse(&asked.id).unwrap();
        let judged = app.state.courier.snapshot(&id, &session).await.unwrap();
        let send = async |only_if: &SessionSnapshot| {
            let (request, session, signal, document) = (&id, &session, "{}", "{}");
            let (rank, publish) = (1, true);
            let outgoing = Outgoing { request, session, signal, document, rank, publish, only_if };
            app.state.courier.send(&outgoing).await.unwrap()
        };
        app.ask(&Asked::in_session(&asked.session)).await;
        assert_eq!(send(&judged).await, Sent::Changed);
        assert_eq!(send(&SessionSnapshot::default()).await, Sent::Changed);
        assert!(agent.heard_nothing().await);
        assert_eq!(app.signal(&asked.session).await, None);
        let judged = app.state.courier.snapshot(&id, &session).await.unwrap();
        assert_eq!(reached(&send(&judged).await), 1);
    }
}

/// What an agent may write under an id that it has used before: each asks for something else, or
/// cannot be read.
fn other_requests(asked: &Asked) -> Vec<String> {
    let mut others = [
        ("context", json!({ "to": "everybody" })),
        ("message", json!("Delete everything?")),
        ("args", json!({ "path": "/" })),
        ("userId", json!("bob")),
        ("actionType", json!(["delete_all"])),
        ("context", json!("x".repeat(1_200_000))),
    ]
    .map(|(field, value)| asked.clone().with(field, value).document.to_string())
    .to_vec();
    // As Python writes float("nan").
    others.push(others[0].replace("\"everybody\"", "NaN"));
    others
}

/// The ledger is held up between the look at the request and the sending of its signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_under_the_same_id_while_it_is_decided_is_not_what_was_approved() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { unreachable!() };
    let mut operator = sqlx::PgConnection::connect(url.expose_secret()).await.unwrap();
    for other in 0..other_requests(&Asked::new()).len() {
        let asked = Asked::new();
        let other = other_requests(&asked).swap_remove(other);
        let mut agent = NaiveAgent::ask(&app, &asked).await;
        operator.execute("BEGIN; LOCK TABLE hitl_request IN EXCLUSIVE MODE").await.unwrap();
        let change = async {
            eventually(async || {
                operator.execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
                let waiting = "SELECT COUNT(*) FROM pg_stat_activity
                                WHERE wait_event_type = 'Lock' AND datname = current_database()
                                  AND query LIKE 'WITH parameters AS %'";
                let waiting: i64 =
                    sqlx::query_scalar(waiting).fetch_one(&mut operator).await.unwrap();
                (waiting > 0).then_some(())
            })
            .await;
            app.put(&asked.id, &other).await;
            operator.execute("COMMIT").await.unwrap();
        };
        let (answer, ()) = tokio::join!(app.approve(ALICE, &asked.id), change);
        answer.assert(200, "");
        assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Superseded);
        assert!(agent.heard_nothing().await);
        assert_eq!(app.stored(&asked.id).await.document, other);
        assert_eq!(app.poll(ALICE, &asked.session, None).await, None);
    }
}

over_redis! {
    async fn what_is_asked_under_a_decided_id_does_not_get_the_earlier_answer(app: TestApp) {
        for is_registered in [false, true] {
            for other in 0..other_requests(&Asked::new()).len() {
                let asked = Asked::new();
                if is_registered {
                    app.register(ALICE, &asked).await.assert(201, "");
                } else {
                    app.ask(&asked).await;
                }
                app.approve(ALICE, &asked.id).await.assert(200, "");
                app.settled(&asked.id).await;
                let other = other_requests(&asked).swap_remove(other);
                app.put(&asked.id, &other).await;
                assert_eq!(app.poll(ALICE, &asked.session, None).await, None, "{other:.200}");
                app.approve(ALICE, &asked.id).await.assert(422, "E4220");
                assert_eq!(app.stored(&asked.id).await.document, other);
            }
        }
    }
}

/// Agents give up and ask for the next thing while a person approves the last: on the channel, no
/// approval may come after the moment at which the session changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_moves_on_while_it_is_answered_never_hears_the_old_answer() {
    let app = TestApp::spawn(Mode::Production).await;
    let prefix = unique("session");
    let asked = (0..60).map(|n| Asked::in_session(&format!("{prefix}_{n}"))).collect::<Vec<_>>();
    let mut subscriber = Subscriber::on_redis(format!("hitl:channel:{prefix}*")).await;
    for asked in &asked {
        app.ask(asked).await;
    }
    let approving = futures_util::stream::iter(&asked)
        .map(|asked| app.approve(ALICE, &asked.id))
        .buffered(2)
        .collect::<Vec<_>>();
    let moving = async {
        let mut redis = redis().await;
        for asked in &asked {
            // One call's worth of time, so that moves and decisions meet.
            app.get(ALICE, "/health/ready").await;
            let pointer = json!({ "requestId": "req_next", "tenantId": "tenant1" }).to_string();
            redis::pipe()
                .atomic()
                .set_ex(format!("hitl:session:{}", asked.session), pointer, 3600)
                .publish(format!("hitl:channel:{}", asked.session), format!("moved {}", asked.id))
                .query_async::<()>(&mut redis)
                .await
                .unwrap();
        }
    };
    let (answers, ()) = tokio::join!(approving, moving);
    let mut expected = Vec::new();
    for (asked, answer) in asked.iter().zip(&answers) {
        if answer.status == 200 {
            expected.push(app.settled(&asked.id).await.delivery == Delivery::Sent);
        } else {
            answer.assert(410, "E3007");
            assert!(app.is_unrecorded(&asked.id).await);
            expected.push(false);
        }
    }
    let heard = subscriber.heard().await;
    for (asked, was_sent) in asked.iter().zip(expected) {
        let about = |message: &&String| message.contains(&asked.id);
        let heard = heard.iter().filter(about).collect::<Vec<_>>();
        assert_eq!(heard.len(), 1 + usize::from(was_sent), "{heard:?}");
        assert!(heard.last().unwrap().starts_with("moved"), "{heard:?}");
    }
}
