//! The same decide-and-signal suite on one Redis, on a Cluster of three masters, and on a master
//! with a replica and Sentinels: real ones, started here. Then what is particular to each: a master
//! dies, freezes, hands a slot over, or is replaced by its replica.

use std::time::Duration;

use aura_hitl::courier::{Outgoing, RedisSettings, Sent};
use aura_hitl::delivery::relay::Round;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId};
use aura_hitl::domain::record::Delivery;
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::signal::signal_json;
use aura_hitl::ledger::Recorded;
use aura_hitl::server::relay;
use aura_hitl::state::AppState;
use chrono::TimeDelta;
use futures_util::StreamExt as _;
use redis::aio::PubSub;
use secrecy::SecretString;
use serde_json::{Value, json};
use support::{
    ALICE, Asked, BOB, FAILOVER_TIMEOUT, Mode, PrivateCluster, PrivateRedis, PrivateSentinels,
    TestApp, decide_on_ledger, eventually, eventually_within, slot_of, unique,
};

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

    /// The server that has a key.
    fn server_of(&self, key: &str) -> &PrivateRedis {
        match self {
            Self::Standalone(redis) => redis,
            Self::Cluster(cluster) => &cluster.nodes[PrivateCluster::node_of(key)],
            Self::Sentinel(sentinels) => &sentinels.servers[0],
        }
    }

    /// What an agent finds under a key, with the rest of its time in seconds.
    async fn find(&self, key: &str) -> Option<(String, i64)> {
        let server = self.server_of(key);
        let value: Option<String> = server.command(&["GET", key]).await;
        Some((value?, server.command(&["TTL", key]).await))
    }

    /// The server on which a session's agent listens; in a Cluster another than the signal's.
    fn server_of_agent(&self, session: &str) -> &PrivateRedis {
        let signal = format!("hitl:signal:{session}");
        match self {
            Self::Cluster(cluster) => &cluster.nodes[(PrivateCluster::node_of(&signal) + 1) % 3],
            _ => self.server_of(&signal),
        }
    }

    /// An agent on a session's channel.
    async fn listen(&self, session: &str) -> Listener {
        Listener::on(self.server_of_agent(session), format!("hitl:channel:{session}")).await
    }

    /// Waits until the agent's server has received all that was published to the session. The nodes
    /// of a Cluster pass messages on in order, but after `PUBLISH` has answered.
    async fn has_passed_on(&self, session: &str) {
        let channel = unique("last");
        let mut listener = Listener::on(self.server_of_agent(session), channel.clone()).await;
        let signal = format!("hitl:signal:{session}");
        let _count: i64 = self.server_of(&signal).command(&["PUBLISH", &channel, "passed"]).await;
        assert_eq!(listener.next().await, "passed");
    }

    /// Somebody on a channel of another kind.
    async fn subscribe(&self, channel: String) -> Listener {
        Listener::on(self.server_of(&channel), channel).await
    }
}

/// Who hears all that is published to a session.
struct Listener {
    channel: String,
    subscription: PubSub,
}

impl Listener {
    async fn on(server: &PrivateRedis, channel: String) -> Self {
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
        let mut heard = Vec::new();
        loop {
            let word = self.next().await;
            if word == last {
                return heard;
            }
            heard.push(word);
        }
    }

    /// The next that is said.
    async fn next(&mut self) -> String {
        let mut messages = self.subscription.on_message();
        let message = tokio::time::timeout(Duration::from_secs(10), messages.next()).await;
        message.expect("nothing was said").expect("cut off").get_payload().unwrap()
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
        let app = &app_on(site.url(), clock.clone()).await;
        key_and_message_are_the_contracts(app, site).await;
        whoever_has_moved_on_hears_nothing(app, site).await;
        whoever_listens_late_hears_it_once(app, site).await;
        what_was_left_owing_is_sent_if_it_is_still_waited_for(app, site).await;
        a_double_click_is_one_signal_and_asking_again_another(app, site).await;
        registered_requests_are_decided_and_wake_their_agents(app, site).await;
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
                let at = app.state.clock.now().timestamp().to_string();
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
        for asked in [&now, &unnamed] {
            app.settled(&asked.id).await;
        }
    }

    async fn whoever_listens_late_hears_it_once(app: &TestApp, site: &Site) {
        for _ in 0..5 {
            let asked = Asked::new();
            app.ask(&asked).await;
            app.approve(ALICE, &asked.id).await.assert(200, "");
            assert_eq!(app.settled(&asked.id).await.listeners, Some(0));
            site.has_passed_on(&asked.session).await;
            let mut listener = site.listen(&asked.session).await;
            eventually(async || (app.record(&asked.id).await.listeners == Some(1)).then_some(()))
                .await;
            assert_eq!(listener.heard(site).await, [signal_of(app, &asked).await]);
        }
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

    async fn registered_requests_are_decided_and_wake_their_agents(app: &TestApp, site: &Site) {
        let asked = Asked::new();
        let channel = format!("hitl:decision:tenant1:{}", asked.id);
        let mut listener = site.subscribe(channel).await;
        app.register(ALICE, &asked).await.assert(201, "");
        app.reject(ALICE, &asked.id, None).await.assert(200, "");
        eventually(async || (listener.heard(site).await == ["ask"]).then_some(())).await;
        for key in [format!("hitl:request:{}", asked.id), format!("hitl:session:{}", asked.session)]
        {
            assert_eq!(site.find(&key).await, None);
        }
        let polled = app.poll(ALICE, &asked.session, Some(&asked.id)).await.unwrap();
        let signal = signal_of(app, &asked).await;
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
        app.ask(&old).await;
        approve_and_die(app, &old).await;
        clock.advance(TimeDelta::seconds(1));
        app.ask(&new).await;
        let mut listener = site.listen(&session).await;
        app.approve(ALICE, &new.id).await.assert(200, "");
        app.settled(&new.id).await;
        // Its session names the older one once more, so that this may go out.
        app.point(&session, &old.id).await;
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
        let judged = app.state.courier.snapshot(&id, &session).await.unwrap();
        let send = async || {
            let (request, session, only_if) = (&id, &session, &judged);
            let (signal, document, rank, publish) = ("{}", "{}", 1, true);
            let outgoing = Outgoing { request, session, signal, document, rank, publish, only_if };
            app.state.courier.send(&outgoing).await.unwrap()
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

/// A call that takes longer than this hangs; each part of it is bounded by 2 s.
const HANGS: Duration = Duration::from_secs(5);

/// An answer, within bounds.
async fn bounded<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, call).await.expect("the call hangs")
}

/// A service on Postgres and this Redis.
async fn app_on(url: String, clock: Clock) -> TestApp {
    let settings = RedisSettings::Url(SecretString::from(url));
    TestApp::spawn_with(Mode::Production, clock, |config| config.redis = Some(settings)).await
}

/// Something to ask whose request, session and signal are on such masters of a Cluster.
fn asked_where(is_right: impl Fn([usize; 3]) -> bool) -> Asked {
    let is_right = |asked: &Asked| {
        let session = &asked.session;
        let request = format!("hitl:request:{}", asked.id);
        let keys = [request, format!("hitl:session:{session}"), format!("hitl:signal:{session}")];
        is_right(keys.map(|key| PrivateCluster::node_of(&key)))
    };
    std::iter::repeat_with(Asked::new).find(is_right).unwrap()
}

mod cluster {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn while_a_master_is_away_the_other_slots_go_on() {
        for is_frozen in [false, true] {
            let mut cluster = PrivateCluster::start().await;
            let app = app_on(cluster.url(), Clock::System).await;
            let elsewhere: Vec<_> =
                (0..20).map(|_| asked_where(|nodes| !nodes.contains(&2))).collect();
            let request_there = asked_where(|[request, ..]| request == 2);
            let signal_there =
                || asked_where(|nodes| nodes.map(|n| n == 2) == [false, false, true]);
            let [before, owed, registered] = [(); 3].map(|()| signal_there());
            for asked in elsewhere.iter().chain([&before, &owed, &request_there]) {
                app.ask(asked).await;
            }
            app.register(ALICE, &registered).await.assert(201, "");
            app.approve(ALICE, &before.id).await.assert(200, "");
            app.settled(&before.id).await;
            if is_frozen {
                cluster.nodes[2].freeze();
            } else {
                cluster.nodes[2].kill();
            }

            for asked in &elsewhere {
                // What cannot succeed, again and again, leaves the others alone.
                let call = tokio::join!(
                    bounded(app.approve(ALICE, &asked.id)),
                    bounded(app.approve(ALICE, &request_there.id))
                );
                call.0.assert(200, "");
                call.1.assert(503, "E5000");
                let key = format!("hitl:signal:{}", asked.session);
                is_signalled(&app, asked, &cluster.nodes[PrivateCluster::node_of(&key)]).await;
            }
            assert!(app.is_unrecorded(&request_there.id).await);
            for (asked, delivery) in [(&owed, Delivery::Owed), (&registered, Delivery::Sent)] {
                bounded(app.approve(ALICE, &asked.id)).await.assert(200, "");
                assert_eq!(app.record(&asked.id).await.delivery, delivery);
            }
            let polled = bounded(app.poll(ALICE, &registered.session, Some(&registered.id))).await;
            assert_eq!(polled.unwrap()["status"], "approved");
            let ready = app.client.get(format!("{}/health/ready", app.base)).send();
            assert_eq!(bounded(ready).await.unwrap().status(), 200, "for the others it is");
            // A replica that is started now finds those that are there.
            let late = app_on(cluster.url(), Clock::System).await;
            let asked = asked_where(|nodes| !nodes.contains(&2));
            eventually(async || late.state.courier.ping().await.ok()).await;
            late.ask(&asked).await;
            bounded(late.approve(ALICE, &asked.id)).await.assert(200, "");

            // Killed, it comes back empty; frozen, with what it had.
            if is_frozen {
                cluster.nodes[2].thaw();
            } else {
                cluster.nodes[2].start_again().await;
            }
            cluster.is_whole().await;
            for asked in [&owed, &before] {
                is_signalled(&app, asked, &cluster.nodes[2]).await;
            }
            if is_frozen {
                app.approve(ALICE, &request_there.id).await.assert(200, "");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_master_that_falls_silent_is_replaced_by_its_replica() {
        let mut cluster = PrivateCluster::start().await;
        let app = app_on(cluster.url(), Clock::System).await;
        cluster.add_a_replica_of(2).await;
        let (before, after) =
            (asked_where(|nodes| nodes == [2, 2, 2]), asked_where(|nodes| nodes == [2, 2, 2]));
        app.register(ALICE, &before).await.assert(201, "");
        app.ask(&after).await;
        let _replicas: i64 = cluster.nodes[2].command(&["WAIT", "1", "10000"]).await;
        cluster.nodes[2].freeze();
        bounded(app.approve(ALICE, &before.id)).await.assert(200, "");
        eventually_within(FAILOVER_TIMEOUT, async || {
            let answer = bounded(app.approve(ALICE, &after.id)).await;
            (answer.status == 200).then_some(())
        })
        .await;
        app.settled(&after.id).await;
        is_signalled(&app, &after, &cluster.nodes[3]).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_slot_that_moves_is_followed() {
        let cluster = PrivateCluster::start().await;
        let app = app_on(cluster.url(), Clock::System).await;
        let asked = asked_where(|nodes| nodes == [0, 0, 0]);
        app.ask(&asked).await;
        let mut ids = Vec::<String>::new();
        for node in &cluster.nodes {
            ids.push(node.command(&["CLUSTER", "MYID"]).await);
        }
        let to = cluster.nodes[1].port().to_string();
        let keys =
            [format!("hitl:request:{}", asked.id), format!("hitl:session:{}", asked.session)];
        let signal = format!("hitl:signal:{}", asked.session);
        for key in keys.iter().chain([&signal]) {
            let slot = slot_of(key).to_string();
            for (node, state, id) in [(1, "IMPORTING", &ids[0]), (0, "MIGRATING", &ids[1])] {
                let command = ["CLUSTER", "SETSLOT", &slot, state, id];
                let _ok: String = cluster.nodes[node].command(&command).await;
            }
            let migrate = ["MIGRATE", "127.0.0.1", &to, key, "0", "5000"];
            let _ok: String = cluster.nodes[0].command(&migrate).await;
            if key == &keys[0] {
                continue;
            }
            // The request's slot stays half-way: ASK. The session's and the signal's: MOVED.
            for node in [1, 0, 2] {
                let command = ["CLUSTER", "SETSLOT", &slot, "NODE", &ids[1]];
                let _ok: String = cluster.nodes[node].command(&command).await;
            }
        }
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Sent);
        is_signalled(&app, &asked, &cluster.nodes[1]).await;
        assert!(app.stored(&asked.id).await.document.contains("approvedBy"));
        assert!(app.poll(ALICE, &asked.session, None).await.is_some());
    }
}

mod sentinel {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn decisions_go_on_while_the_master_is_replaced() {
        let mut site = PrivateSentinels::start().await;
        let app = app_on(site.url(), Clock::System).await;
        let unknown = Asked::new();
        app.ask(&unknown).await;
        let [before, waits] = [(); 2].map(|()| Asked::new());
        for asked in [&before, &waits] {
            app.register(ALICE, asked).await.assert(201, "");
        }
        app.approve(ALICE, &before.id).await.assert(200, "");
        let _replicas: i64 = site.servers[0].command(&["WAIT", "1", "10000"]).await;
        // The first Sentinel that the service knows goes down with the master, without a word.
        site.freeze_the_first_sentinel();
        site.servers[0].kill();

        bounded(app.approve(ALICE, &waits.id)).await.assert(200, "");
        let (mut acknowledged, mut refused) = (vec![before, waits], 0);
        loop {
            let answer = bounded(app.approve(ALICE, &unknown.id)).await;
            if answer.status == 200 {
                break;
            }
            answer.assert(503, "E5000");
            refused += 1;
            assert!(app.is_unrecorded(&unknown.id).await);
            let asked = Asked::new();
            bounded(app.register(ALICE, &asked)).await.assert(201, "");
            bounded(app.reject(ALICE, &asked.id, Some("아니요"))).await.assert(200, "");
            let polled = bounded(app.poll(ALICE, &asked.session, Some(&asked.id))).await;
            assert_eq!(polled.unwrap()["status"], "rejected", "the ledger answers for Redis");
            acknowledged.push(asked);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(refused > 0);
        assert_eq!(site.master().await, 1);
        is_signalled(&app, &unknown, &site.servers[1]).await;
        acknowledged.push(unknown);
        for asked in &acknowledged {
            assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Sent);
        }
        // A service that starts now finds the new master, too.
        let late = app_on(site.url(), Clock::System).await;
        eventually(async || late.state.courier.ping().await.ok()).await;
        let asked = Asked::new();
        late.ask(&asked).await;
        late.approve(ALICE, &asked.id).await.assert(200, "");
    }

    /// Redis replicates what it has acknowledged only afterwards.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_old_master_took_and_the_new_one_never_got_is_found_there() {
        let mut site = PrivateSentinels::start().await;
        let app = app_on(site.url(), Clock::System).await;
        let [heard, unheard] = [(); 2].map(|()| Asked::new());
        for asked in [&heard, &unheard] {
            app.ask(asked).await;
        }
        let channel = format!("hitl:channel:{}", heard.session);
        let mut agent = Listener::on(&site.servers[0], channel).await;
        let _replicas: i64 = site.servers[0].command(&["WAIT", "1", "10000"]).await;
        site.servers[1].freeze();
        let _cut_off: i64 = site.servers[0].command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
        for asked in [&heard, &unheard] {
            app.approve(ALICE, &asked.id).await.assert(200, "");
            assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Sent);
            is_signalled(&app, asked, &site.servers[0]).await;
        }
        site.servers[0].kill();
        site.servers[1].thaw();

        assert_eq!(agent.next().await, signal_of(&app, &heard).await);
        assert_eq!(site.master().await, 1);
        for asked in [&heard, &unheard] {
            eventually_within(FAILOVER_TIMEOUT, async || {
                let key = format!("hitl:signal:{}", asked.session);
                site.servers[1].try_command::<Option<String>>(&["GET", &key]).await.ok()?
            })
            .await;
            is_signalled(&app, asked, &site.servers[1]).await;
            let record = app.settled(&asked.id).await;
            assert_eq!(record.delivery, Delivery::Sent);
            // Whoever has heard it must not hear it again: it may be waiting for its next answer.
            assert_eq!(record.listeners, Some(i64::from(asked.id == heard.id)));
            assert!(app.stored(&asked.id).await.document.contains("approvedBy"));
            for wanted in [None, Some(asked.id.as_str())] {
                let polled = app.poll(ALICE, &asked.session, wanted).await.unwrap();
                assert_eq!(polled["requestId"], asked.id);
            }
        }
    }
}
