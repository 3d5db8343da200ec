//! The same decide-and-signal suite on one Redis, on a Cluster of three masters, and on a master
//! with a replica and Sentinels: real ones, started here. Then what is particular to each: a master
//! dies, freezes, hands a slot over, or is replaced by its replica.

use std::time::Duration;

use aura_hitl::core::Core;
use aura_hitl::courier::{Outgoing, RedisSettings, Sent};
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{Delivery, State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::signal::signal_json;
use aura_hitl::ledger::{LEASE, Recorded};
use aura_hitl::relay::{self, Round};
use chrono::TimeDelta;
use futures_util::StreamExt as _;
use redis::aio::PubSub;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::helpers::{
    ALICE, Asked, BOB, Mode, TestApp, decide_on_ledger, eventually, eventually_within, unique,
};
use crate::servers::{PrivateCluster, PrivateRedis, PrivateSentinels};

/// A Redis, however it is set up.
enum Site {
    Standalone(PrivateRedis),
    Cluster(PrivateCluster),
    Sentinel(PrivateSentinels),
}

impl Site {
    fn url(&self) -> String {
        match self {
            Self::Standalone(redis) => redis.url(),
            Self::Cluster(cluster) => cluster.url(),
            Self::Sentinel(sentinels) => sentinels.url(),
        }
    }

    /// A service on it, and on Postgres.
    async fn app(&self, clock: Clock) -> TestApp {
        let settings = RedisSettings::Url(SecretString::from(self.url()));
        TestApp::spawn_with(Mode::Production, clock, |config| config.redis = Some(settings)).await
    }

    /// The server that has a key.
    fn server_of(&self, key: &str) -> &PrivateRedis {
        match self {
            Self::Standalone(redis) => redis,
            Self::Cluster(cluster) => &cluster.nodes[cluster.node_of(key)],
            Self::Sentinel(sentinels) => &sentinels.servers[0],
        }
    }

    /// What an agent finds under a key, with the rest of its time in seconds.
    async fn find(&self, key: &str) -> Option<(String, i64)> {
        let server = self.server_of(key);
        let value: Option<String> = server.command(&["GET", key]).await;
        Some((value?, server.command(&["TTL", key]).await))
    }

    /// An agent on a session's channel; in a Cluster on another node than the signal's.
    async fn listen(&self, session: &str) -> Listener {
        let signal = format!("hitl:signal:{session}");
        let there = match self {
            Self::Cluster(cluster) => &cluster.nodes[(cluster.node_of(&signal) + 1) % 3],
            _ => self.server_of(&signal),
        };
        Listener::on(there, session).await
    }
}

/// Who hears all that is published to a session.
struct Listener {
    channel: String,
    subscription: PubSub,
}

impl Listener {
    async fn on(server: &PrivateRedis, session: &str) -> Self {
        let channel = format!("hitl:channel:{session}");
        let mut subscription = server.client().get_async_pubsub().await.unwrap();
        subscription.subscribe(&channel).await.unwrap();
        Self { channel, subscription }
    }

    /// All that was said until now. The last word goes the way of the signals, so that it comes
    /// after them.
    async fn heard(&mut self, site: &Site) -> Vec<String> {
        let last = unique("last");
        let signal = self.channel.replace("channel", "signal");
        let _count: i64 = site.server_of(&signal).command(&["PUBLISH", &self.channel, &last]).await;
        let words =
            self.subscription.on_message().map(|word| word.get_payload::<String>().unwrap());
        let until_last = words.take_while(|word| std::future::ready(*word != last)).collect();
        tokio::time::timeout(Duration::from_secs(10), until_last).await.expect("it went missing")
    }
}

/// The signal that the ledger holds for a request.
async fn signal_of(app: &TestApp, asked: &Asked) -> String {
    let record = app.record(&asked.id).await;
    let State::Decided(decision) = &record.state else { panic!("{:?}", record.state) };
    signal_json(&record.id, decision)
}

/// Waits until Redis has the signal that the ledger holds.
async fn is_signalled(app: &TestApp, asked: &Asked, redis: &PrivateRedis) {
    let (signal, key) = (signal_of(app, asked).await, format!("hitl:signal:{}", asked.session));
    eventually(async || {
        let there: Option<String> = redis.try_command(&["GET", &key]).await.ok()?;
        (there.as_ref() == Some(&signal)).then_some(())
    })
    .await;
}

/// Commits a decision of Alice's as a replica does that dies before it has sent the signal.
async fn approve_and_die(app: &TestApp, asked: &Asked) {
    let (ledger, now) = (&app.core.ledger, app.core.clock.now());
    let recorded =
        decide_on_ledger(ledger, ALICE, asked, Origin::Redis, Verdict::Approve, now).await;
    assert!(matches!(recorded, Recorded::Won(_)));
}

/// One round of a replica whose clock is past every lease.
async fn relay_later(app: &TestApp) -> Round {
    let clock = Clock::manual();
    clock.advance(TimeDelta::seconds(10));
    relay::run_once(&Core { clock, ..app.core.clone() }).await.unwrap()
}

mod suite {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn standalone() {
        decide_and_signal(&Site::Standalone(PrivateRedis::start().await)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cluster() {
        decide_and_signal(&Site::Cluster(PrivateCluster::start().await)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sentinel() {
        decide_and_signal(&Site::Sentinel(PrivateSentinels::start().await)).await;
    }

    async fn decide_and_signal(site: &Site) {
        // A clock that stands still, so that the service's own relay never finds a lease run out.
        let clock = Clock::manual();
        let app = &site.app(clock.clone()).await;
        key_and_message_are_the_contracts(app, site).await;
        whoever_has_moved_on_hears_nothing(app, site).await;
        what_was_left_owing_is_sent_if_it_is_still_waited_for(app, site).await;
        a_double_click_is_one_signal_and_asking_again_another(app, site).await;
        registered_requests_are_announced_decided_and_found(app, site).await;
        polls_are_answered_by_redis_and_by_the_ledger(app, site).await;
        an_older_signal_never_replaces_a_newer(app, site, &clock).await;
        nothing_is_sent_once_session_or_request_has_changed(app, site).await;
    }

    async fn key_and_message_are_the_contracts(app: &TestApp, site: &Site) {
        // Braces choose a Cluster's slot.
        for user in ["user123", "김철수@example.com", "a{b}c", "a}b{}c", "{}"] {
            for reason in [None, Some("사용자 거절")] {
                let asked = Asked::in_session(&format!("session_{user}_{}", unique("17")));
                app.ask(&asked).await;
                let mut listener = site.listen(&asked.session).await;
                let (answer, signal) = match reason {
                    None => (
                        app.approve(ALICE, &asked.id).await,
                        r#"{"type":"approval","requestId":"ID","status":"approved","timestamp":AT}"#,
                    ),
                    Some(reason) => (
                        app.reject(ALICE, &asked.id, Some(reason)).await,
                        r#"{"type":"rejection","requestId":"ID","status":"rejected","reason":"사용자 거절","timestamp":AT}"#,
                    ),
                };
                assert_eq!(answer.assert(200, "").data()["sessionId"], asked.session.as_str());
                let at = app.core.clock.now().timestamp().to_string();
                let signal = signal.replace("ID", &asked.id).replace("AT", &at);
                assert_eq!(listener.heard(site).await, [&*signal]);
                let (key, left) =
                    site.find(&format!("hitl:signal:{}", asked.session)).await.unwrap();
                assert_eq!(key, signal);
                assert!((250..=300).contains(&left), "{left}");
                let (request, left) =
                    site.find(&format!("hitl:request:{}", asked.id)).await.unwrap();
                assert!((1750..=1800).contains(&left), "{left}");
                let request: Value = serde_json::from_str(&request).unwrap();
                assert_ne!(request["status"], "pending");
                assert_eq!(request["context"], asked.document["context"]);
                assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Sent);
            }
        }
    }

    async fn whoever_has_moved_on_hears_nothing(app: &TestApp, site: &Site) {
        let late = Asked::new();
        app.ask(&late).await;
        let now = Asked::in_session(&late.session);
        app.ask(&now).await;
        let mut listener = site.listen(&late.session).await;
        app.approve(ALICE, &late.id).await.assert(410, "E3007");
        assert!(listener.heard(site).await.is_empty() && app.is_unrecorded(&late.id).await);
        assert_eq!(site.find(&format!("hitl:signal:{}", late.session)).await, None);
        app.reject(ALICE, &now.id, None).await.assert(200, "");
        assert_eq!(listener.heard(site).await, [signal_of(app, &now).await]);
        // A session without a pointer names nothing.
        let unnamed = Asked::new();
        app.put(&unnamed.id, &unnamed.document.to_string()).await;
        app.approve(ALICE, &unnamed.id).await.assert(200, "");
        is_signalled(app, &unnamed, site.server_of(&format!("hitl:signal:{}", unnamed.session)))
            .await;
    }

    async fn what_was_left_owing_is_sent_if_it_is_still_waited_for(app: &TestApp, site: &Site) {
        let [waits, moved_on, altered] = [(); 3].map(|()| Asked::new());
        for asked in [&waits, &moved_on, &altered] {
            app.ask(asked).await;
            approve_and_die(app, asked).await;
        }
        app.ask(&Asked::in_session(&moved_on.session)).await;
        let other = altered.clone().with("context", json!({ "to": "everybody" }));
        app.ask(&other).await;
        let mut listeners = Vec::new();
        for asked in [&waits, &moved_on, &altered] {
            listeners.push(site.listen(&asked.session).await);
        }
        let expected = Round { sent: 1, superseded: 2, failed: 0 };
        assert_eq!(relay_later(app).await, expected);
        assert_eq!(listeners[0].heard(site).await, [signal_of(app, &waits).await]);
        assert!(listeners[1].heard(site).await.is_empty());
        assert!(listeners[2].heard(site).await.is_empty());
        assert_eq!(app.stored(&other.id).await.document, other.document.to_string());
        assert_eq!(relay_later(app).await, Round::default());
    }

    async fn a_double_click_is_one_signal_and_asking_again_another(app: &TestApp, site: &Site) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let mut listener = site.listen(&asked.session).await;
        for _click in 0..2 {
            app.approve(ALICE, &asked.id).await.assert(200, "");
            app.settled(&asked.id).await;
        }
        app.reject(BOB, &asked.id, None).await.assert(409, "E3006");
        let signal = signal_of(app, &asked).await;
        assert_eq!(listener.heard(site).await, [&*signal]);
        app.ask(&asked.clone().with("createdAt", json!(17))).await;
        assert_eq!(app.poll(ALICE, &asked.session, None).await, None);
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(listener.heard(site).await, [signal]);
        assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Sent);
    }

    async fn registered_requests_are_announced_decided_and_found(app: &TestApp, site: &Site) {
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        app.settled(&asked.id).await;
        let pointer = site.find(&format!("hitl:session:{}", asked.session)).await.unwrap();
        assert!(pointer.0.contains(&asked.id) && pointer.1 > 3500, "{pointer:?}");
        let request = site.find(&format!("hitl:request:{}", asked.id)).await.unwrap();
        assert!(request.0.contains(r#""status":"pending""#) && request.1 > 1750, "{request:?}");
        let mut listener = site.listen(&asked.session).await;
        app.reject(ALICE, &asked.id, None).await.assert(200, "");
        let signal = signal_of(app, &asked).await;
        assert_eq!(listener.heard(site).await, [&*signal]);
        let polled = app.poll(ALICE, &asked.session, Some(&asked.id)).await.unwrap();
        assert_eq!(polled, serde_json::from_str::<Value>(&signal).unwrap());
    }

    async fn polls_are_answered_by_redis_and_by_the_ledger(app: &TestApp, site: &Site) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let poll = async |wanted| app.poll(ALICE, &asked.session, wanted).await;
        let id = Some(asked.id.as_str());
        assert_eq!((poll(None).await, poll(id).await), (None, None));
        app.approve(ALICE, &asked.id).await.assert(200, "");
        app.settled(&asked.id).await;
        let signal = serde_json::from_str::<Value>(&signal_of(app, &asked).await).ok();
        assert_eq!((poll(None).await, poll(id).await), (signal.clone(), signal.clone()));
        let key = format!("hitl:signal:{}", asked.session);
        let _deleted: i64 = site.server_of(&key).command(&["DEL", &key]).await;
        assert_eq!((poll(None).await, poll(id).await), (signal.clone(), signal));
        assert_eq!(poll(Some("req_other")).await, None);
        app.ask(&Asked::in_session(&asked.session)).await;
        assert_eq!((poll(None).await, poll(id).await), (None, None), "moved on");
    }

    async fn an_older_signal_never_replaces_a_newer(app: &TestApp, site: &Site, clock: &Clock) {
        let session = unique("session_a}b");
        let [old, new] = [(); 2].map(|()| Asked::in_session(&session));
        for asked in [&old, &new] {
            app.register(ALICE, asked).await.assert(201, "");
        }
        let document = serde_json::from_str(&app.settled(&old.id).await.document).unwrap();
        approve_and_die(app, &Asked { document, ..old.clone() }).await;
        clock.advance(TimeDelta::seconds(1));
        let mut listener = site.listen(&session).await;
        app.approve(ALICE, &new.id).await.assert(200, "");
        app.settled(&new.id).await;
        assert_eq!(relay_later(app).await, Round { sent: 1, ..Round::default() });
        let expected = [signal_of(app, &new).await, signal_of(app, &old).await];
        assert_eq!(listener.heard(site).await, expected);
        let (key, _left) = site.find(&format!("hitl:signal:{session}")).await.unwrap();
        assert_eq!(key, expected[0]);
    }

    async fn nothing_is_sent_once_session_or_request_has_changed(app: &TestApp, site: &Site) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let mut listener = site.listen(&asked.session).await;
        let session = SessionId::parse(&asked.session).unwrap();
        let id = RequestId::parse(&asked.id).unwrap();
        let judged = app.core.courier.look(&id, &session).await.unwrap();
        let send = async || {
            let (request, session, only_while) = (&id, &session, &judged);
            let (signal, document, rank, aloud) = ("{}", "{}", 1, true);
            let outgoing = Outgoing { request, session, signal, document, rank, aloud, only_while };
            app.core.courier.send(&outgoing).await.unwrap()
        };
        app.put(&asked.id, "something else").await;
        assert_eq!(send().await, Sent::Changed);
        assert_eq!(app.stored(&asked.id).await.document, "something else");
        app.put(&asked.id, &asked.document.to_string()).await;
        app.point(&asked.session, "req_other").await;
        assert_eq!(send().await, Sent::Changed);
        assert!(listener.heard(site).await.is_empty());
        assert_eq!(site.find(&format!("hitl:signal:{session}")).await, None);
    }
}
