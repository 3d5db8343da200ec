//! People and programs are told of requests: by webhooks, to those whom the policy names, at least once,
//! and nothing leaves the service that a rule does not show.

mod failing;
mod receiver;
mod settings;
mod told;

use std::sync::Arc;

use aura_hitl::courier::RedisSettings;
use aura_hitl::domain::clock::Clock;
use aura_hitl::ledger::NOTICE;
use aura_hitl::notices::NoticeSettings;
use aura_hitl::policy::Policy;
use chrono::TimeDelta;
use serde_json::{Value, json};
use support::{ALICE, Asked, BOB, Mode, TestApp, Who, eventually, test_variable};

use self::receiver::Receiver;

const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];

/// Somebody of another tenant.
const STRANGER: Who<'static> = Who { user: "stranger", tenant: "tenant2", ..ALICE };

/// A service with these settings of notices; also the embedded one has agents on Redis.
async fn app(mode: Mode, clock: Clock, notices: NoticeSettings, rules: Option<&str>) -> TestApp {
    let redis = RedisSettings::Url(test_variable("TEST_REDIS_URL").into());
    TestApp::spawn_with(mode, clock, |config| {
        (config.notices, config.redis) = (notices, Some(redis));
        config.policy_file = rules.map(|rules| Arc::new(Policy::read(rules).unwrap()));
    })
    .await
}

fn to(receiver: &Receiver) -> NoticeSettings {
    NoticeSettings {
        public_url: Some("https://dwp.example/api/aura/hitl".to_owned()),
        webhooks: vec![receiver.settings("ops")],
        ..NoticeSettings::default()
    }
}

/// Waits until every event and notice of the webhook is sent.
async fn all_sent(app: &TestApp) {
    eventually(async || {
        let ledger = &app.state.ledger;
        let waits = [NOTICE, "webhook/ops"].map(async |lane| ledger.oldest_in_outbox(lane).await);
        let [events, notices] = waits;
        (events.await.unwrap().is_none() && notices.await.unwrap().is_none()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_told_once_with_what_the_contract_names() {
    for mode in MODES {
        let receiver = Receiver::start();
        let app = app(mode, Clock::System, to(&receiver), None).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        app.register(ALICE, &asked).await.assert(200, "");
        let path = format!("/aura/hitl/requests/{}/comments", asked.id);
        app.post(BOB, &path, json!({ "text": "why now?" })).await.assert(201, "");
        for _twice in 0..2 {
            app.reject(BOB, &asked.id, Some("예산 초과")).await.assert(200, "");
        }
        let withdrawn = Asked::new();
        app.register(ALICE, &withdrawn).await.assert(201, "");
        let cancel = format!("/aura/hitl/requests/{}/cancel", withdrawn.id);
        app.post(ALICE, &cancel, json!({})).await.assert(200, "");
        all_sent(&app).await;

        let of_it = ["request.pending", "request.commented", "request.decided"];
        assert_eq!(receiver.events_of(&asked.id), of_it, "{mode:?}");
        let of_other = ["request.pending", "request.cancelled"];
        assert_eq!(receiver.events_of(&withdrawn.id), of_other, "{mode:?}");
        let arrived = receiver.received();
        assert!(arrived.iter().all(|one| one.headers["content-type"] == "application/json"));
        let decided = arrived.iter().find(|one| one.event() == "request.decided").unwrap();
        let mut body = decided.json();
        let data = body["data"].as_object_mut().unwrap();
        let expires_at = data.remove("expiresAt").unwrap();
        let timestamp = body.as_object_mut().unwrap().remove("timestamp").unwrap();
        for time in [&expires_at, &timestamp] {
            chrono::DateTime::parse_from_rfc3339(time.as_str().unwrap()).unwrap();
        }
        let expected = json!({ "type": "request.decided", "data": {
            "requestId": asked.id, "tenantId": "tenant1", "sessionId": asked.session, "userId": ALICE.user,
            "actionType": "send_email", "message": asked.document["message"], "risk": null, "rule": null,
            "status": "rejected", "decidedBy": BOB.user, "decidedVia": "person", "reason": "예산 초과",
            "url": format!("https://dwp.example/api/aura/hitl/inbox/?request={}", asked.id),
            "context": {},
        } });
        assert_eq!(body, expected, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_channel_no_event_is_written() {
    for mode in MODES {
        let app = app(mode, Clock::System, NoticeSettings::default(), None).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        app.approve(BOB, &asked.id).await.assert(200, "");
        let oldest = app.state.ledger.oldest_in_outbox(NOTICE).await.unwrap();
        assert_eq!(oldest, None, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_receiver_is_down_people_decide_and_it_is_told_later() {
    for mode in MODES {
        let mut receiver = Receiver::down();
        let app = app(mode, Clock::manual(), to(&receiver), None).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        app.approve(BOB, &asked.id).await.assert(200, "");
        eventually(async || {
            app.state.clock.advance(TimeDelta::seconds(30));
            let oldest = app.state.ledger.oldest_in_outbox(NOTICE).await.unwrap();
            oldest.is_none().then_some(())
        })
        .await;
        receiver.come_up();
        eventually(async || {
            app.state.clock.advance(TimeDelta::minutes(30));
            (receiver.events_of(&asked.id).len() >= 2).then_some(())
        })
        .await;
        all_sent(&app).await;
        let mut events = receiver.events_of(&asked.id);
        events.sort();
        assert_eq!(events, ["request.decided", "request.pending"], "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_hears_of_its_events_and_tenants_only() {
    for mode in MODES {
        let (all, some) = (Receiver::start(), Receiver::start());
        let mut notices = to(&all);
        let mut filtered = some.settings("some");
        filtered.events = [aura_hitl::domain::notice::Event::Decided].into();
        let tenant = aura_hitl::domain::ids::TenantId::parse("tenant2").unwrap();
        filtered.tenants = Some([tenant].into());
        notices.webhooks.push(filtered);
        let app = app(mode, Clock::System, notices, None).await;
        let (ours, theirs) = (Asked::new(), Asked::new().with("tenantId", "tenant2".into()));
        let theirs = theirs.with("userId", STRANGER.user.into());
        for (who, asked) in [(ALICE, &ours), (STRANGER, &theirs)] {
            app.register(who, asked).await.assert(201, "");
            app.approve(who, &asked.id).await.assert(200, "");
        }
        all.at_least(4).await;
        let arrived = some.at_least(1).await;
        all_sent(&app).await;
        let told = arrived.iter().map(|one| (one.event(), one.request())).collect::<Vec<_>>();
        assert_eq!(told, [("request.decided".to_owned(), theirs.id.clone())], "{mode:?}");
        let ids = |receiver: &Receiver, request: &str| {
            let arrived = receiver.received();
            let of_it = arrived.iter().filter(|one| one.request() == request);
            let of_it = of_it.filter(|one| one.event() == "request.decided");
            of_it.map(|one| one.id().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&all, &theirs.id), ids(&some, &theirs.id), "one event has one id");
        let value: Value = arrived[0].json();
        assert_eq!(value["data"]["tenantId"], "tenant2");
    }
}
