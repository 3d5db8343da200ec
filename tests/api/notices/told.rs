//! Who is told, and what: by the rules of the policy file.

use std::collections::BTreeMap;

use aura_hitl::domain::ids::TenantId;
use aura_hitl::ledger::OutboxRow;
use aura_hitl::notices::slack::POSTED;
use aura_hitl::notices::{Contact, Language, MailSecurity, MailSettings, Notice, People};
use aura_hitl::notices::{NoticeSettings, SlackSettings};
use chrono::{DateTime, Utc};
use support::{free_port, unique};

use super::*;

const RULES: &str = r#"
[groups]
finance = ["kim", "bob", "tenant2/lee"]

[[rule]]
name = "payments"
when = 'actionType == "pay"'
risk = "high"
approvers = ["group:finance", "role:admin", "user:user123", "user:tenant2/cho"]
self_approval = false
remind_after = "5m"
escalate = [{ after = "10m", approvers = ["group:heads", "user:park"] }]
show = ["to", "amount", "missing"]

[[rule]]
name = "reads"
when = 'actionType == "read"'
auto = "approve"

[[rule]]
name = "all else"
when = "true"
approvers = ["tenant"]
"#;

/// Everybody by mail: `kim`, `bob`, `alice` and so on; `finance`, `heads` and `admin` have shared addresses.
fn people() -> People {
    let contact = |name: &str| Contact {
        mail: Some(format!("{name}@example.com")),
        slack: Some(format!("U{}", name.to_uppercase())),
        language: Language::Korean,
    };
    let all = |names: &[&str]| {
        let names = names.iter().map(|name| ((*name).to_owned(), contact(&name.replace('/', ""))));
        names.collect::<BTreeMap<_, _>>()
    };
    People::new(
        all(&["kim", "bob", "user123", "park", "tenant2/lee", "tenant2/cho", "stranger"]),
        all(&["finance", "heads", "admin"]),
    )
}

fn mail() -> MailSettings {
    MailSettings {
        security: MailSecurity::None,
        host: "127.0.0.1".to_owned(),
        port: Some(free_port()),
        authority: None,
        user: None,
        password: None,
        from: "a@example.com".to_owned(),
    }
}

/// Every row of a lane, as the channel's worker gets it, also those that it holds. No server takes them.
async fn rows(app: &TestApp, lane: &str) -> Vec<(OutboxRow, Notice)> {
    let now = app.state.clock.now() + TimeDelta::hours(12);
    let rows = app.state.ledger.claim_outbox(lane, now, now, 1000).await.unwrap();
    rows.into_iter()
        .map(|row| {
            let notice = serde_json::from_str(&row.payload).unwrap();
            (row, notice)
        })
        .collect()
}

/// Who has been told in a lane so far: event and target. Takes them away.
async fn told(app: &TestApp, lane: &str) -> Vec<(String, String)> {
    eventually(async || {
        // Only what comes later is left of the events.
        let oldest = app.state.ledger.oldest_in_outbox(NOTICE).await.unwrap();
        oldest.is_none_or(|oldest| oldest > app.state.clock.now()).then_some(())
    })
    .await;
    let rows = rows(app, lane).await;
    let ids = rows.iter().map(|(row, _)| row.id).collect::<Vec<_>>();
    app.state.ledger.delete_outbox(&ids).await.unwrap();
    let mut told = rows
        .into_iter()
        .map(|(row, notice)| (notice.event.as_str().to_owned(), row.target))
        .collect::<Vec<_>>();
    told.sort();
    told
}

fn pairs(event: &str, targets: &[&str]) -> Vec<(String, String)> {
    let mut pairs =
        targets.iter().map(|target| (event.to_owned(), (*target).to_owned())).collect::<Vec<_>>();
    pairs.sort();
    pairs
}

fn payment() -> Asked {
    Asked::new().with("actionType", "pay".into()).with(
        "context",
        json!({ "to": "kim@corp", "amount": 9_007_199_254_740_993_u64, "iban": "canary-iban" }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_to_whom_the_policy_names_and_outcomes_to_the_requester() {
    for mode in MODES {
        let notices = NoticeSettings {
            public_url: Some("https://dwp.example".to_owned()),
            people: people(),
            mail: Some(mail()),
            ..NoticeSettings::default()
        };
        let app = app(mode, Clock::manual(), notices, Some(RULES)).await;
        let asked = payment();
        app.register(ALICE, &asked).await.assert(201, "");
        // Alice is an approver, but not of her own; lee and cho are of another tenant.
        assert_eq!(
            told(&app, "mail").await,
            pairs("request.pending", &["group:admin", "group:finance", "user:bob", "user:kim"]),
            "{mode:?}"
        );
        app.state.clock.advance(TimeDelta::minutes(5));
        assert_eq!(
            told(&app, "mail").await,
            pairs("request.reminder", &["group:admin", "group:finance", "user:bob", "user:kim"]),
            "{mode:?}"
        );
        app.state.clock.advance(TimeDelta::minutes(5));
        let added = ["group:heads", "user:park"];
        assert_eq!(told(&app, "mail").await, pairs("request.escalated", &added), "{mode:?}");

        let path = format!("/aura/hitl/requests/{}/comments", asked.id);
        app.post(BOB, &path, json!({ "text": "why?" })).await.assert(201, "");
        let others = [
            "group:admin",
            "group:finance",
            "group:heads",
            "user:user123",
            "user:kim",
            "user:park",
        ];
        assert_eq!(told(&app, "mail").await, pairs("request.commented", &others), "{mode:?}");
        app.approve(BOB, &asked.id).await.assert(200, "");
        assert_eq!(
            told(&app, "mail").await,
            pairs("request.decided", &["user:user123"]),
            "{mode:?}"
        );

        // Of another tenant: other people.
        let theirs = payment().with("userId", "stranger".into()).with("tenantId", "tenant2".into());
        app.register(STRANGER, &theirs).await.assert(201, "");
        let of_theirs = [
            "group:admin",
            "group:finance",
            "user:user123",
            "user:bob",
            "user:kim",
            "user:tenant2/cho",
            "user:tenant2/lee",
        ];
        assert_eq!(told(&app, "mail").await, pairs("request.pending", &of_theirs), "{mode:?}");
        // Withdrawn before the reminder: nobody is reminded.
        let cancel = format!("/aura/hitl/requests/{}/cancel", theirs.id);
        app.post(STRANGER, &cancel, json!({})).await.assert(200, "");
        app.state.clock.advance(TimeDelta::minutes(11));
        assert_eq!(told(&app, "mail").await, [], "{mode:?}");

        // What a rule decides, and what anybody of the tenant may decide, is mailed to nobody.
        for action in ["read", "send_email"] {
            let asked = Asked::new().with("actionType", action.into());
            app.register(ALICE, &asked).await.assert(201, "");
        }
        assert_eq!(told(&app, "mail").await, [], "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slack_is_told_in_the_channel_of_the_tenant_or_else_person_by_person() {
    for mode in MODES {
        let slack = SlackSettings {
            bot_token: "xoxb-canary".into(),
            signing_secret: "canary".into(),
            team: None,
            channels: [(TenantId::parse("tenant1").unwrap(), "C1".to_owned())].into(),
            api_url: format!("http://127.0.0.1:{}", free_port()).parse().unwrap(),
        };
        let notices = NoticeSettings {
            public_url: Some("https://dwp.example".to_owned()),
            people: people(),
            slack: Some(slack),
            ..NoticeSettings::default()
        };
        let app = app(mode, Clock::manual(), notices, Some(RULES)).await;
        let ours = payment();
        app.register(ALICE, &ours).await.assert(201, "");
        assert_eq!(told(&app, "slack").await, pairs("request.pending", &["C1"]), "{mode:?}");
        app.approve(BOB, &ours.id).await.assert(200, "");
        // The outcome takes the place of what was posted; nobody gets a message of their own.
        let others = async || {
            let mut told = told(&app, "slack").await;
            told.retain(|(_, target)| target != POSTED);
            told
        };
        assert_eq!(others().await, [], "{mode:?}");

        let theirs = payment().with("userId", "stranger".into()).with("tenantId", "tenant2".into());
        app.register(STRANGER, &theirs).await.assert(201, "");
        let approvers =
            ["UADMIN", "UUSER123", "UBOB", "UFINANCE", "UKIM", "UTENANT2CHO", "UTENANT2LEE"];
        assert_eq!(told(&app, "slack").await, pairs("request.pending", &approvers), "{mode:?}");
        let cancel = format!("/aura/hitl/requests/{}/cancel", theirs.id);
        app.post(STRANGER, &cancel, json!({})).await.assert(200, "");
        assert_eq!(others().await, [], "{mode:?}");
    }
}

/// Texts that no rule shows, in every field of a request and in the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_that_the_rule_does_not_show() {
    for mode in MODES {
        let receiver = Receiver::start();
        let mut notices = to(&receiver);
        (notices.people, notices.mail) = (people(), Some(mail()));
        let app = app(mode, Clock::System, notices, Some(RULES)).await;
        let asked = payment().with("message", "canary-message".into());
        app.register(ALICE, &asked).await.assert(201, "");
        let path = format!("/aura/hitl/requests/{}/comments", asked.id);
        app.post(BOB, &path, json!({ "text": "canary-comment" })).await.assert(201, "");
        app.reject(BOB, &asked.id, Some("canary-reason")).await.assert(200, "");
        all_sent(&app).await;
        let arrived = receiver.received();
        assert_eq!(arrived.len(), 3, "{mode:?}");
        let token = app.token(ALICE.user, ALICE.tenant, ALICE.role);
        for one in &arrived {
            let text = format!("{one:?}");
            assert!(!text.contains("canary") && !text.contains(&token), "{text}");
            let data = &one.json()["data"];
            assert_eq!(data["message"], Value::Null);
            assert_eq!(data["reason"], Value::Null);
            // As the agent wrote it, also beyond what a float can say.
            assert!(
                one.body.contains(r#""context":{"to":"kim@corp","amount":9007199254740993}"#),
                "{text}"
            );
            assert_eq!((&data["rule"], &data["risk"]), (&json!("payments"), &json!("high")));
        }
        for (row, _notice) in rows(&app, "mail").await {
            assert!(!row.payload.contains("canary"), "{row:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_asks_on_redis_is_told_once_seen_and_what_expires_too() {
    for mode in MODES {
        let receiver = Receiver::start();
        let redis = RedisSettings::Url(test_variable("TEST_REDIS_URL").into());
        let (notices, clock) = (to(&receiver), Clock::manual());
        let app = TestApp::spawn_with(mode, clock, |config| {
            (config.notices, config.redis) = (notices, Some(redis));
            support::watch_redis(config);
        })
        .await;
        let asked = Asked::in_session(&unique("session"));
        app.ask(&asked).await;
        eventually(async || (receiver.events_of(&asked.id) == ["request.pending"]).then_some(()))
            .await;
        // Seen again and again, told once.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        assert_eq!(receiver.events_of(&asked.id), ["request.pending"], "{mode:?}");

        let late = Asked::new();
        app.register(ALICE, &late).await.assert(201, "");
        app.state.clock.advance(TimeDelta::hours(1));
        eventually(async || {
            let of_late = receiver.events_of(&late.id);
            (of_late == ["request.pending", "request.expired"]).then_some(())
        })
        .await;
        let expired = receiver.received();
        let expired = expired.iter().find(|one| one.event() == "request.expired").unwrap();
        assert_eq!(expired.json()["data"]["status"], "expired", "{mode:?}");
    }
}

/// A request that has gone from Redis and is made anew has reminders of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reminder_of_a_request_that_was_made_anew_is_not_told() {
    for mode in MODES {
        let receiver = Receiver::start();
        let app = app(mode, Clock::System, to(&receiver), None).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        all_sent(&app).await;
        let since = app.record(&asked.id).await.created_at;
        let before = since - TimeDelta::minutes(10);
        for cause in [
            json!({ "after": 1, "since": before }),
            json!({ "after": 1, "since": since }),
            // Written by an older release.
            json!({ "after": 1 }),
        ] {
            app.sql(format!(
                "INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
                 SELECT 'notice', 'request.reminder', tenant_id, request_id, '{cause}', created_at, created_at
                   FROM hitl_request WHERE request_id = '{}'",
                asked.id
            ))
            .await;
        }
        all_sent(&app).await;
        let events = receiver.events_of(&asked.id);
        let reminders = events.iter().filter(|event| *event == "request.reminder").count();
        assert_eq!(reminders, 2, "{mode:?}: {events:?}");
    }
}

/// What a bulk, atomic or not, decides is told request by request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulks_and_votes_are_told_once_for_each_request() {
    const TWO: &str = "[[rule]]\nname = 'two'\nwhen = 'true'\napprovers = ['tenant']\nquorum = 2";
    for mode in MODES {
        let receiver = Receiver::start();
        let app = app(mode, Clock::System, to(&receiver), Some(TWO)).await;
        let asked = [0; 4].map(|_| Asked::new());
        for one in &asked {
            app.register(ALICE, one).await.assert(201, "");
        }
        for one in &asked {
            app.approve(ALICE, &one.id).await.assert(202, "");
        }
        for (part, atomic) in [(&asked[..2], true), (&asked[2..], false)] {
            let decisions =
                part.iter().map(|one| json!({ "requestId": one.id, "decision": "approve" }));
            let decisions = decisions.collect::<Vec<_>>();
            let bulk = json!({ "userId": BOB.user, "decisions": decisions, "atomic": atomic });
            app.post(BOB, "/aura/hitl/decisions", bulk).await.assert(200, "");
        }
        all_sent(&app).await;
        for one in &asked {
            let events = receiver.events_of(&one.id);
            assert_eq!(events, ["request.pending", "request.decided"], "{mode:?}");
        }
        let decided: DateTime<Utc> =
            receiver.received()[0].json()["timestamp"].as_str().unwrap().parse().unwrap();
        assert!(decided <= app.state.clock.now());
    }
}
