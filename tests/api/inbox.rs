//! The inbox as a stream: what waits is counted at once and after each change, on every replica, and a
//! person hears of their own tenant alone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aura_hitl::config::Config;
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::ids::{TenantId, UserId};
use aura_hitl::domain::rules::Approvers;
use aura_hitl::identity;
use aura_hitl::server::Replica;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use support::{
    ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, PrivateRedis, TestApp, Who, eventually, redis,
    unique, watch_redis,
};

const STREAM: &str = "/api/aura/hitl/inbox/stream";

/// An open stream, read event by event.
struct Stream {
    response: Response,
    text: String,
}

impl Stream {
    async fn open(app: &TestApp, who: Who<'_>) -> Self {
        Self::of(app.call(who, Method::GET, STREAM).send().await.unwrap())
    }

    fn of(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["Content-Type"], "text/event-stream");
        assert_eq!(response.headers()["X-Accel-Buffering"], "no");
        Self { response, text: String::new() }
    }

    /// The next event and its data; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim().to_owned())
                };
                if let (Some(kind), Some(data)) = (field("event:"), field("data:")) {
                    return Some((kind, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let reading = tokio::time::timeout(Duration::from_secs(10), self.response.chunk());
            let some = reading.await.expect("the stream is silent").ok().flatten()?;
            self.text += std::str::from_utf8(&some).unwrap();
        }
    }

    /// Reads until the counts are these; answers the changes of requests that came before.
    async fn until(&mut self, decidable: u64, mine: u64) -> Vec<(String, String, String)> {
        let mut changes = Vec::new();
        loop {
            let (kind, data) = self.next().await.expect("the stream has ended");
            if kind == "counts" {
                assert_eq!(data.as_object().unwrap().len(), 2, "{data}");
                if data == json!({ "decidable": decidable, "mine": mine }) {
                    return changes;
                }
                continue;
            }
            assert_eq!(kind, "request");
            assert_eq!(data.as_object().unwrap().len(), 3, "{data}");
            let field = |name: &str| data[name].as_str().unwrap().to_owned();
            changes.push((field("requestId"), field("status"), field("change")));
        }
    }

    /// Reads until a change of this request comes.
    async fn until_told_of(&mut self, id: &str) -> Value {
        loop {
            let (kind, data) = self.next().await.expect("the stream has ended");
            if kind == "request" && data["requestId"] == id {
                return data;
            }
        }
    }

    /// What comes within this time.
    async fn within(&mut self, time: Duration) -> Vec<(String, Value)> {
        let mut heard = Vec::new();
        let hearing = async {
            while let Some(event) = self.next().await {
                heard.push(event);
            }
        };
        let _over = tokio::time::timeout(time, hearing).await;
        heard
    }
}

fn told(id: &str, status: &str, change: &str) -> (String, String, String) {
    (id.to_owned(), status.to_owned(), change.to_owned())
}

both_modes! {
    async fn a_person_hears_what_changes_and_how_many_wait(app: TestApp) {
        let first = Asked::new();
        app.register(ALICE, &first).await.assert(201, "");
        let (mut alice, mut bob) = (Stream::open(&app, ALICE).await, Stream::open(&app, BOB).await);
        assert_eq!(alice.next().await.unwrap(), ("counts".to_owned(), json!({ "decidable": 1, "mine": 1 })));
        assert_eq!(bob.next().await.unwrap(), ("counts".to_owned(), json!({ "decidable": 1, "mine": 0 })));

        let second = Asked::new();
        app.register(BOB, &second).await.assert(201, "");
        let created = [told(&second.id, "pending", "created")];
        assert_eq!(alice.until(2, 1).await, created);
        assert_eq!(bob.until(2, 1).await, created);
        app.approve(BOB, &first.id).await.assert(200, "");
        let decided = [told(&first.id, "approved", "decided")];
        assert_eq!(alice.until(1, 0).await, decided);
        assert_eq!(bob.until(1, 1).await, decided);
        app.post(BOB, &format!("/aura/hitl/requests/{}/cancel", second.id), json!({})).await.assert(200, "");
        assert_eq!(alice.until(0, 0).await, [told(&second.id, "cancelled", "cancelled")]);

        let mut body = Asked::new().registration();
        body["expiresInSeconds"] = 1.into();
        let third = body["requestId"].as_str().unwrap().to_owned();
        app.post(ALICE, "/aura/hitl/requests", body).await.assert(201, "");
        alice.until(1, 1).await;
        assert_eq!(alice.until(0, 0).await, [told(&third, "expired", "expired")]);
    }
}

both_modes! {
    async fn nobody_hears_of_another_tenant(app: TestApp) {
        let mut mallory = Stream::open(&app, MALLORY).await;
        mallory.until(0, 0).await;
        let mut alice = Stream::open(&app, ALICE).await;
        for _ in 0..3 {
            let asked = Asked::new();
            app.register(ALICE, &asked).await.assert(201, "");
            app.approve(ALICE, &asked.id).await.assert(200, "");
        }
        let own = Asked::new();
        app.register(MALLORY, &own).await.assert(201, "");
        assert_eq!(mallory.until(1, 1).await, [told(&own.id, "pending", "created")]);
        let heard = alice.within(Duration::from_secs(1)).await;
        assert!(!heard.iter().any(|(_, data)| data["requestId"] == own.id), "{heard:?}");
    }
}

/// Of two requests of one session in Redis, only the one that the session waits for can be decided.
/// Counts and lists agree on that, and streams tell that the other one has changed: when its agent moves on,
/// and when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_agent_no_longer_waits_for_is_not_decidable() {
    for approvers in [Approvers::Tenant, Approvers::Requester] {
        let redis = PrivateRedis::start().await;
        let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
            config.policy.approvers = approvers;
            config.redis = Some(redis.settings());
            watch_redis(config);
        })
        .await;
        let first = Asked::new();
        app.ask(&first).await;
        let mut stream = Stream::open(&app, ALICE).await;
        stream.until(1, 1).await;
        let mut changes = Stream::open(&app, ALICE).await;
        let second = Asked::in_session(&first.session);
        app.ask(&second).await;
        stream.until(1, 2).await;
        let pending = json!({ "requestId": first.id, "status": "pending", "change": "created" });
        assert_eq!(changes.until_told_of(&first.id).await, pending);
        let listed = async |query: &str| {
            let answer = app.get(ALICE, &format!("/aura/hitl/requests?{query}")).await;
            let content = answer.assert(200, "").data()["content"].as_array().unwrap().clone();
            content
                .iter()
                .map(|row| {
                    (row["requestId"].as_str().unwrap().to_owned(), row["mayDecide"] == true)
                })
                .collect::<BTreeSet<_>>()
        };
        let (moved_on, waiting) = ((first.id.clone(), false), (second.id.clone(), true));
        assert_eq!(listed("scope=decidable").await, BTreeSet::from([waiting.clone()]));
        assert_eq!(listed("scope=mine").await, BTreeSet::from([moved_on, waiting]));
        app.ask(&first).await;
        assert_eq!(changes.until_told_of(&first.id).await, pending);
        let (waiting, moved_on) = ((first.id, true), (second.id, false));
        let turned = BTreeSet::from([waiting, moved_on]);
        eventually(async || (listed("scope=mine").await == turned).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_what_the_person_may_decide() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn_with(mode, Clock::System, |config: &mut Config| {
            config.policy.approvers = Approvers::Requester;
        })
        .await;
        let (mut alice, mut bob) = (Stream::open(&app, ALICE).await, Stream::open(&app, BOB).await);
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        alice.until(1, 1).await;
        let heard = bob.within(Duration::from_secs(1)).await;
        assert_eq!(heard[0].1, json!({ "decidable": 0, "mine": 0 }));
        // They may see it.
        assert_eq!(heard[1].1["requestId"], asked.id);
        assert_eq!(heard.len(), 2, "{heard:?}");
    }
}

both_modes! {
    async fn streams_end_with_their_token_and_with_the_service(app: TestApp) {
        let app = TestApp::spawn_with(app.mode, Clock::System, |config| config.jwt.leeway_seconds = 0).await;
        let (user, tenant) = (UserId::parse("user123").unwrap(), TenantId::parse("tenant1").unwrap());
        let token = identity::mint(&app.config.jwt, &user, &tenant, Role::User, 2).unwrap();
        let call = app.client.get(format!("{}{STREAM}", app.base)).bearer_auth(token);
        let mut short = Stream::of(call.header("X-Tenant-ID", "tenant1").send().await.unwrap());
        let mut long = Stream::open(&app, BOB).await;
        let began = Instant::now();
        short.until(0, 0).await;
        assert_eq!(short.next().await, None);
        assert!(began.elapsed() < Duration::from_secs(5));
        long.until(0, 0).await;
        assert_eq!(app.state.hub.waiters(), 1);
        app.state.stopping.cancel();
        assert_eq!(long.next().await, None);
        eventually(async || (app.state.hub.waiters() == 0).then_some(())).await;
    }
}

both_modes! {
    async fn streams_count_as_waits_and_take_no_parameters(app: TestApp) {
        let app = TestApp::spawn_with(app.mode, Clock::System, |config| config.max_waits_per_person = 2).await;
        let _open = [Stream::open(&app, ALICE).await, Stream::open(&app, ALICE).await];
        app.get(ALICE, STREAM).await.assert(429, "E4290");
        let session = unique("session");
        app.get(ALICE, &format!("/aura/hitl/signals/{session}?waitSeconds=1")).await.assert(429, "E4290");
        Stream::open(&app, BOB).await.until(0, 0).await;
        let refused = app.get(BOB, &format!("{STREAM}?since=1")).await;
        refused.assert(400, "E4000");
        assert_eq!(refused.data().as_object().unwrap().keys().collect::<Vec<_>>(), ["since"]);
        let nobody = app.client.get(format!("{}{STREAM}", app.base)).send().await.unwrap();
        Answer::of(nobody).await.assert(401, "E2000");
    }
}

over_redis! {
    /// A change on one replica is heard on all within a second. Lost messages delay it by a second.
    async fn every_replica_hears_of_every_change(app: TestApp) {
        let other = Replica::start(&app.config, Clock::System).await.unwrap();
        let call = |who: Who<'_>| {
            let call = Client::new().get(format!("http://{}{STREAM}", other.address));
            call.bearer_auth(app.token(who.user, who.tenant, who.role)).header("X-Tenant-ID", who.tenant)
        };
        let mut stream = Stream::of(call(ALICE).send().await.unwrap());
        stream.until(0, 0).await;
        for _ in 0..5 {
            let asked = Asked::new();
            app.register(ALICE, &asked).await.assert(201, "");
            let began = Instant::now();
            assert_eq!(stream.until(1, 1).await, [told(&asked.id, "pending", "created")]);
            app.approve(BOB, &asked.id).await.assert(200, "");
            assert_eq!(stream.until(0, 0).await, [told(&asked.id, "approved", "decided")]);
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        }
        // A replica of an older release says nothing: the other one finds it in the ledger.
        let asked = Asked::new();
        let caller = ALICE.caller();
        let candidate = asked.candidate(aura_hitl::domain::request::Origin::Http, app.state.clock.now());
        let pending = aura_hitl::domain::decision::State::Pending;
        let writing = support::writing(&candidate, &pending, &caller, app.state.clock.now());
        app.state.ledger.register(&writing).await.unwrap();
        assert_eq!(stream.until(1, 1).await, [told(&asked.id, "pending", "created")]);

        // Whoever can publish can wake a stream, but cannot make it say anything.
        let forged = json!([["tenant1", asked.id], ["tenant1", "req-none"], ["tenant2", asked.id]]);
        for message in [format!("changed {forged}"), "changed".to_owned(), "changed [[1]]".to_owned(), "changed {}".to_owned()] {
            let _: i64 = redis::AsyncCommands::publish(&mut redis().await, "hitl:outcomes", message).await.unwrap();
        }
        assert_eq!(stream.within(Duration::from_secs(2)).await, []);
        other.stop().await;
    }
}

over_redis! {
    /// An agent on Redis asks; the request is heard of when it is decided at the latest.
    async fn a_request_of_redis_is_heard_of(app: TestApp) {
        let mut stream = Stream::open(&app, ADMIN).await;
        stream.until(0, 0).await;
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(BOB, &asked.id).await.assert(200, "");
        loop {
            let (kind, data) = stream.next().await.unwrap();
            if kind == "request" && data["change"] == "decided" {
                assert_eq!(data, json!({ "requestId": asked.id, "status": "approved", "change": "decided" }));
                break;
            }
        }
    }
}
