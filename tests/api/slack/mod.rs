//! Slack: what is posted, what a click does, and what it does not.

mod fake;
mod later;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::ledger::NOTICE;
use aura_hitl::notices::{Contact, Language, NoticeSettings, People};
use aura_hitl::policy::Policy;
use chrono::TimeDelta;
use serde_json::{Value, json};
use support::{ALICE, Asked, BOB, MALLORY, Mode, TestApp, Who, eventually, eventually_within};

use self::fake::{Answer, CHANNEL, Message, Signed, Slack, click, submission};
use crate::retention::exported;

const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];
const KIM: Who<'static> = Who { user: "kim", tenant: "tenant1", role: Role::User };

/// Bob reads English, Kim and the channel of their tenant's heads Korean; Eve is of another tenant.
fn people() -> People {
    let contact = |key: &str, slack: &str, language| {
        let slack = Some(slack.to_owned());
        (key.to_owned(), Contact { mail: None, slack, language })
    };
    People::new(
        [
            contact(ALICE.user, "UALICE", Language::English),
            contact("bob", "UBOB", Language::English),
            contact("kim", "UKIM", Language::Korean),
            contact("tenant2/eve", "UEVE", Language::Korean),
            contact("tenant2/dan", "UDAN", Language::Korean),
        ]
        .into(),
        std::collections::BTreeMap::new(),
    )
}

const RULES: &str = r#"
[[rule]]
name = "two of them"
when = 'actionType == "pay"'
approvers = ["user:bob", "user:kim", "user:user123"]
quorum = 2
self_approval = false
show = ["$message", "$reason", "to"]

[[rule]]
name = "only reject"
when = 'actionType == "refuse_only"'
approvers = ["user:bob"]
decisions = ["reject"]

[[rule]]
name = "others"
when = 'tenantId == "tenant2"'
approvers = ["user:eve", "user:dan"]

[[rule]]
name = "rest"
when = 'true'
approvers = ["user:bob", "user:user123"]
"#;

async fn app(mode: Mode, slack: &Slack, rules: Option<&str>, clock: Clock) -> TestApp {
    TestApp::spawn_with(mode, clock, |config| {
        config.policy_file = rules.map(|rules| Arc::new(Policy::read(rules).unwrap()));
        config.notices = NoticeSettings {
            public_url: Some("https://dwp.example/api/aura/hitl".to_owned()),
            people: people(),
            slack: Some(slack.settings()),
            ..NoticeSettings::default()
        };
    })
    .await
}

/// Registers a request of Alice's and waits for its message.
async fn asked(app: &TestApp, slack: &Slack, asked: &Asked) -> Message {
    app.register(ALICE, asked).await.assert(201, "");
    posted(slack, &asked.id).await
}

async fn posted(slack: &Slack, request: &str) -> Message {
    eventually(async || slack.about(request).pop()).await
}

/// Waits until every notice is sent.
async fn all_sent(app: &TestApp) {
    eventually(async || {
        for lane in [NOTICE, "slack"] {
            if app.state.ledger.oldest_in_outbox(lane).await.unwrap().is_some() {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// The message once it asks no longer.
async fn closed(slack: &Slack, request: &str) -> Message {
    eventually_within(Duration::from_secs(20), async || {
        let message = slack.about(request).remove(0);
        let asks = ["hitl_approve", "hitl_reject"].iter().any(|id| message.button(id).is_some());
        (!asks).then_some(message)
    })
    .await
}

/// Clicks, and returns what the person was told alone.
async fn clicked(
    app: &TestApp,
    slack: &Slack,
    person: &str,
    message: &Message,
    id: &str,
) -> String {
    let button = message.button(id).unwrap_or_else(|| panic!("{id}: {message:?}"));
    said(app, slack, person, message, &click(person, message, &button)).await
}

async fn said(
    app: &TestApp,
    slack: &Slack,
    person: &str,
    message: &Message,
    payload: &Value,
) -> String {
    let before = slack.private().len();
    let began = Instant::now();
    assert_eq!(Signed::now(payload, app).send(app).await, (200, String::new()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let (channel, user, text) =
        eventually_within(Duration::from_secs(20), async || slack.private().get(before).cloned())
            .await;
    assert_eq!((&*channel, &*user), (&*message.channel, person));
    text
}

async fn counted(app: &TestApp, result: &str) -> u64 {
    let metrics = app.client.get(format!("{}/metrics", app.base)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let series = format!("aura_hitl_slack_calls_total{{result=\"{result}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&*series));
    value.unwrap_or_else(|| panic!("{series}: {metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_asks_and_says_the_outcome_once_there_is_one() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, Some(RULES), Clock::System).await;
        let evil = "<!channel> <https://evil.example|ok> & *bold* \u{202e}";
        let request = Asked::new()
            .with("actionType", "pay".into())
            .with("message", format!("{evil}{}", "x".repeat(1900)).into())
            .with("context", json!({ "to": evil, "iban": "canary-iban" }));
        let message = asked(&app, &slack, &request).await;
        assert_eq!(message.channel, CHANNEL);
        assert!(!message.texts().contains("canary"), "{message:?}");
        assert!(message.texts().contains("\\\\u202E"), "{message:?}");
        for id in ["hitl_approve", "hitl_reject"] {
            let button = message.button(id).unwrap();
            let value: Value = serde_json::from_str(button["value"].as_str().unwrap()).unwrap();
            let etag = app.record(&request.id).await.etag();
            assert_eq!(value, json!({ "request": request.id, "etag": etag }), "{mode:?}");
        }
        let link = format!("https://dwp.example/api/aura/hitl/inbox/?request={}", request.id);
        assert_eq!(message.button("hitl_open").unwrap()["url"], link);

        // Decided elsewhere.
        app.approve(BOB, &request.id).await.assert(202, "");
        app.reject(KIM, &request.id, Some("예산 초과 <!here>")).await.assert(200, "");
        let message = closed(&slack, &request.id).await;
        assert!(message.content["text"].as_str().unwrap().starts_with("Rejected: "), "{message:?}");
        for text in ["Decided by\\nkim", "예산 초과 <!here>"] {
            assert!(message.texts().contains(text), "{text}: {message:?}");
        }

        // Withdrawn, and only to be rejected.
        let withdrawn = Asked::new().with("actionType", "refuse_only".into());
        let message = asked(&app, &slack, &withdrawn).await;
        assert!(
            message.button("hitl_approve").is_none() && message.button("hitl_reject").is_some()
        );
        let cancel = format!("/aura/hitl/requests/{}/cancel", withdrawn.id);
        app.post(ALICE, &cancel, json!({})).await.assert(200, "");
        let message = closed(&slack, &withdrawn.id).await;
        assert!(
            message.content["text"].as_str().unwrap().starts_with("Withdrawn: "),
            "{message:?}"
        );
        all_sent(&app).await;
        // What asks no longer is forgotten.
        let record = app.record(&withdrawn.id).await;
        let left = app.state.ledger.slack_messages(&record.tenant, &record.id).await.unwrap();
        assert!(left.is_empty(), "{mode:?}: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_click_is_a_decision_like_any_other() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, Some(RULES), Clock::System).await;
        let request = Asked::new().with("actionType", "pay".into());
        let message = asked(&app, &slack, &request).await;
        let (voted, decided) = (counted(&app, "voted").await, counted(&app, "decided").await);
        let text = clicked(&app, &slack, "UBOB", &message, "hitl_approve").await;
        assert_eq!(text, "Approval recorded; 1 more needed", "{mode:?}");
        // The same person counts once; the requester may not approve their own.
        let again = clicked(&app, &slack, "UBOB", &message, "hitl_approve").await;
        assert_eq!(again, text);
        let own = clicked(&app, &slack, "UALICE", &message, "hitl_approve").await;
        let over_http = app.approve(ALICE, &request.id).await;
        over_http.assert(403, "E2001");
        assert_eq!(own, over_http.body["message"].as_str().unwrap(), "{mode:?}");
        assert!(app.is_undecided(&request.id).await);
        let text = clicked(&app, &slack, "UKIM", &message, "hitl_approve").await;
        assert_eq!(text, "승인했습니다.");
        let record = app.record(&request.id).await;
        let decision = record.state.decision().unwrap().clone();
        assert_eq!((decision.by.as_str(), decision.verdict.status()), ("kim", "approved"));
        assert_eq!(record.ruling.via.as_str(), "person");
        let lines = exported(&app, &["--from=2020-01-01"]);
        let line = lines.iter().find(|line| line["requestId"] == request.id).unwrap();
        assert_eq!((&line["callerSource"], &line["decidedBy"]), (&json!("SLACK"), &json!("kim")));
        let refused = eventually(async || {
            exported(&app, &["--from=2020-01-01", "--refused"])
                .into_iter()
                .find(|line| line["callerSource"] == "SLACK")
        });
        assert_eq!(refused.await["errorCode"], "E2001");
        let message = closed(&slack, &request.id).await;
        assert!(message.content["text"].as_str().unwrap().starts_with("Approved: "), "{message:?}");
        // The agent hears it.
        let signal = app.poll(ALICE, &request.session, Some(&request.id)).await.unwrap();
        assert_eq!(signal["type"], "approval", "{signal}");
        assert!(counted(&app, "voted").await >= voted + 2);
        assert!(counted(&app, "decided").await > decided);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_asks_for_its_reason() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, None, Clock::System).await;
        for (reason, recorded) in [
            (Some("예산 초과"), "예산 초과"),
            (Some("  "), "User rejected"),
            (None, "User rejected"),
        ] {
            let request = Asked::new();
            let message = asked(&app, &slack, &request).await;
            let button = message.button("hitl_reject").unwrap();
            let dialogs = slack.dialogs().len();
            let payload = click("UKIM", &message, &button);
            assert_eq!(Signed::now(&payload, &app).send(&app).await.0, 200);
            let dialog = eventually(async || slack.dialogs().get(dialogs).cloned()).await;
            assert_eq!(dialog["trigger_id"], payload["trigger_id"]);
            assert_eq!(dialog["view"]["title"]["text"], "거절");
            assert!(app.is_undecided(&request.id).await, "{mode:?}");
            let text =
                said(&app, &slack, "UKIM", &message, &submission("UKIM", &dialog, reason)).await;
            assert_eq!(text, "거절했습니다.");
            let record = app.record(&request.id).await;
            let decision = record.state.decision().unwrap();
            assert_eq!(decision.verdict.reason(), Some(recorded), "{mode:?}");
            assert_eq!(decision.by.as_str(), "kim");
            closed(&slack, &request.id).await;
            // The dialog again, and another's: the same door, the same answers.
            let text =
                said(&app, &slack, "UBOB", &message, &submission("UBOB", &dialog, None)).await;
            assert!(text.contains("no decision any more") || text.starts_with("Already"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_not_a_click_of_now_by_one_who_may_decides_nothing() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, Some(RULES), Clock::System).await;
        let (request, other) = (Asked::new(), Asked::new());
        let message = asked(&app, &slack, &request).await;
        let others_message = asked(&app, &slack, &other).await;
        let approve = message.button("hitl_approve").unwrap();
        let payload = click("UBOB", &message, &approve);
        let now = app.state.clock.now().timestamp();
        let right = Signed::now(&payload, &app);

        // Not Slack's, or not now.
        let before = counted(&app, "forged").await;
        let forged = [
            Signed { signature: right.signature.replace(char::is_numeric, "0"), ..right.clone() },
            Signed { signature: String::new(), ..right.clone() },
            Signed { timestamp: (now - 1).to_string(), ..right.clone() },
            Signed { body: right.body.replace("UBOB", "UKIM"), ..right.clone() },
            Signed::at(&payload, now, "another secret"),
            Signed::at(&payload, now, ""),
        ];
        for call in &forged {
            let (status, body) = call.send(&app).await;
            assert_eq!(status, 403, "{body}");
            assert!(body.contains("E2001") && !body.contains("canary"), "{body}");
        }
        let bare = app.client.post(format!("{}/aura/hitl/slack/interactions", app.base));
        assert_eq!(bare.body(right.body.clone()).send().await.unwrap().status(), 403);
        assert!(counted(&app, "forged").await >= before + 7);
        let before = counted(&app, "late").await;
        for away in [-301, 310] {
            let late = Signed::at(&payload, now + away, fake::SIGNING_SECRET);
            assert_eq!(late.send(&app).await.0, 403);
        }
        assert!(counted(&app, "late").await >= before + 2);
        assert!(app.is_undecided(&request.id).await, "{mode:?}");

        // Not of this message, not of this tenant, not of this content.
        let before = counted(&app, "unknown_message").await;
        let elsewhere = Message { channel: "C0999".to_owned(), ..message.clone() };
        let unknown = Message { ts: "1700000000.999999".to_owned(), ..message.clone() };
        let others = others_message.button("hitl_approve").unwrap();
        for (shown, button) in [(&elsewhere, &approve), (&unknown, &approve), (&message, &others)] {
            let text = said(&app, &slack, "UBOB", shown, &click("UBOB", shown, button)).await;
            assert!(text.starts_with("This message asks for no decision"), "{text}");
        }
        let mut mixed = click("UBOB", &message, &approve);
        mixed["channel"]["id"] = "C0999".into();
        assert_eq!(Signed::now(&mixed, &app).send(&app).await.0, 200);
        eventually(async || (counted(&app, "unknown_message").await >= before + 4).then_some(()))
            .await;
        let before = counted(&app, "unknown_person").await;
        for person in ["UEVE", "UNOBODY"] {
            let text =
                said(&app, &slack, person, &message, &click(person, &message, &approve)).await;
            let refusal =
                if person == "UEVE" { "등록되지 않은 계정" } else { "Not known here" };
            assert!(text.starts_with(refusal), "{text}");
        }
        assert!(counted(&app, "unknown_person").await >= before + 2);
        let mut changed = approve.clone();
        changed["value"] =
            json!({ "request": request.id, "etag": "0".repeat(64) }).to_string().into();
        let text = said(&app, &slack, "UBOB", &message, &click("UBOB", &message, &changed)).await;
        assert!(text.starts_with("Changed since you looked"), "{text}");
        let text = clicked(&app, &slack, "UKIM", &message, "hitl_approve").await;
        assert!(text.contains("rest"), "the rule, in Korean: {text}");
        assert!(
            app.is_undecided(&request.id).await && app.is_undecided(&other.id).await,
            "{mode:?}"
        );

        // No click at all.
        let link = message.button("hitl_open").unwrap();
        let calls = slack.private().len();
        for payload in [click("UBOB", &message, &link), json!({ "type": "view_closed" })] {
            assert_eq!(Signed::now(&payload, &app).send(&app).await.0, 200);
        }
        for payload in [json!([]), json!("x"), json!({ "type": "block_actions" })] {
            assert_eq!(Signed::now(&payload, &app).send(&app).await.0, 400);
        }
        assert_eq!(slack.private().len(), calls);

        // A click counts once, on whichever replica, and the right one counts.
        let before = counted(&app, "replayed").await;
        assert_eq!(right.send(&app).await.0, 200);
        assert_eq!(right.send(&app).await.0, 403);
        let upper = right.signature.to_uppercase().replace("V0", "v0");
        let upper = Signed { signature: upper, ..right.clone() };
        assert_eq!(upper.send(&app).await.0, 403);
        assert!(counted(&app, "replayed").await >= before + 2);
        let told = (message.channel.clone(), "UBOB".to_owned(), "Approved.".to_owned());
        eventually(async || (slack.private().last() == Some(&told)).then_some(())).await;
        assert!(!app.is_undecided(&request.id).await);

        // Decided by now.
        let payload = click("UALICE", &others_message, &others);
        let text = said(&app, &slack, "UALICE", &others_message, &payload).await;
        assert_eq!(text, "Approved.");
        let text =
            said(&app, &slack, "UBOB", &others_message, &click("UBOB", &others_message, &others))
                .await;
        assert!(text.contains("no decision any more") || text.starts_with("Already"), "{text}");
        assert_eq!(app.record(&other.id).await.state.decision().unwrap().by.as_str(), ALICE.user);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_channel_approvers_are_asked_one_by_one() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, Some(RULES), Clock::System).await;
        let request = Asked::new().with("tenantId", "tenant2".into());
        app.register(MALLORY, &request).await.assert(201, "");
        let messages = eventually(async || {
            let messages = slack.about(&request.id);
            (messages.len() == 2).then_some(messages)
        })
        .await;
        let channels = messages.iter().map(|message| &*message.channel).collect::<Vec<_>>();
        assert_eq!(channels, ["DUDAN", "DUEVE"]);
        // Without a tenant, `[people.bob]` is the bob of every tenant; the rule names others.
        let approve = messages[0].button("hitl_approve").unwrap();
        let text =
            said(&app, &slack, "UBOB", &messages[0], &click("UBOB", &messages[0], &approve)).await;
        assert!(text.starts_with("Not approved: rule \"others\""), "{text}");
        assert_eq!(
            clicked(&app, &slack, "UEVE", &messages[1], "hitl_approve").await,
            "승인했습니다."
        );
        eventually_within(Duration::from_secs(20), async || {
            let asks = |message: &Message| message.button("hitl_approve").is_some();
            (!slack.about(&request.id).iter().any(asks)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slack_is_asked_again_when_it_says_so_and_given_up_when_it_never_takes_it() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, None, Clock::manual()).await;
        slack.answer([
            Answer::TooMany(120),
            Answer::Status(503),
            Answer::Error("token_revoked"),
            Answer::Error("internal_error"),
        ]);
        let request = Asked::new();
        app.register(ALICE, &request).await.assert(201, "");
        eventually(async || (slack.calls("chat.postMessage") == 1).then_some(())).await;
        // Not before the time that Slack named.
        app.state.clock.advance(TimeDelta::seconds(100));
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(slack.calls("chat.postMessage"), 1, "{mode:?}");
        eventually_within(Duration::from_secs(30), async || {
            // The worker looks once a second; the request expires after half an hour.
            tokio::time::sleep(Duration::from_secs(1)).await;
            app.state.clock.advance(TimeDelta::seconds(20));
            (!slack.about(&request.id).is_empty()).then_some(())
        })
        .await;
        assert_eq!(slack.calls("chat.postMessage"), 5, "{mode:?}");
        all_sent(&app).await;
        slack.answer([Answer::Error("not_in_channel")]);
        let request = Asked::new();
        app.register(ALICE, &request).await.assert(201, "");
        let failed =
            eventually(async || app.state.ledger.failed_in_outbox(10).await.unwrap().pop()).await;
        assert_eq!((&*failed.request_id, &*failed.target), (&*request.id, CHANNEL));
        assert_eq!(failed.error.as_deref(), Some("Slack answers not_in_channel"));
        // Whoever looks elsewhere decides all the same.
        app.approve(BOB, &request.id).await.assert(200, "");
        all_sent(&app).await;
        assert!(slack.about(&request.id).is_empty());
        // A message that somebody has deleted is of no use any more.
        let request = Asked::new();
        app.register(ALICE, &request).await.assert(201, "");
        posted(&slack, &request.id).await;
        slack.answer([Answer::Error("message_not_found")]);
        app.approve(BOB, &request.id).await.assert(200, "");
        all_sent(&app).await;
        let record = app.record(&request.id).await;
        assert!(
            app.state.ledger.slack_messages(&record.tenant, &record.id).await.unwrap().is_empty()
        );
        assert_ne!(record.state, State::Pending);
    }
}
