//! What happens to messages in Slack after they were posted, when the settings, the request or Slack itself
//! is not as it was; and what the commands of operators do there.

use aura_hitl::ledger::SlackMessage;
use aura_hitl::notices::slack::api::{SlackApi, SlackError};
use aura_hitl::notices::slack::{POSTED, SlackChannel};
use aura_hitl::notices::{Channel, DueNotice, Notice, SendResult};
use chrono::{DateTime, Utc};
use support::Program;
use tempfile::TempDir;

use super::*;

const EVE: Who<'static> = Who { user: "eve", tenant: "tenant2", role: Role::User };

/// A notice about a request, for the channel of its tenant.
async fn due(app: &TestApp, request: &Asked, event: &str, at: DateTime<Utc>) -> DueNotice {
    let record = app.record(&request.id).await;
    let notice: Notice = serde_json::from_value(json!({
        "id": "msg_0123", "event": event, "at": at, "tenant": "tenant1", "requestId": request.id,
        "session": request.session, "user": "user123", "action": "send_email", "message": null,
        "risk": null, "rule": null, "status": "pending", "expiresAt": record.expires_at,
        "decidedBy": null, "decidedVia": null, "reason": null, "by": null, "url": null, "context": {},
        "approvers": [], "approvalsNeeded": null, "decisions": ["approve", "reject"],
        "etag": record.etag(),
    }))
    .unwrap();
    let target = if notice.event.closes() { POSTED } else { CHANNEL };
    DueNotice { row: 1, target: target.to_owned(), attempts: 1, created_at: at, notice }
}

fn channel(app: &TestApp, slack: &Slack) -> SlackChannel {
    let (ledger, clock) = (app.state.ledger.clone(), app.state.clock.clone());
    SlackChannel::new(&slack.settings(), &people(), ledger, clock).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_messages_keep_the_language_of_their_reader_and_comments_stand_in_their_thread() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, Some(RULES), Clock::System).await;
        let request = Asked::new().with("tenantId", "tenant2".into());
        app.register(MALLORY, &request).await.assert(201, "");
        eventually(async || (slack.about(&request.id).len() == 2).then_some(())).await;
        all_sent(&app).await;
        let path = format!("/aura/hitl/requests/{}/comments", request.id);
        app.post(EVE, &path, json!({ "text": "왜요?" })).await.assert(201, "");
        let comment = eventually(async || {
            slack.about(&request.id).into_iter().find(|one| one.texts().contains("새 의견"))
        })
        .await;
        let first = slack.about(&request.id).remove(0);
        // Dan is told where he was asked; Eve knows.
        assert_eq!((&*comment.channel, &*first.channel), ("DUDAN", "DUDAN"), "{mode:?}");
        assert_eq!(comment.content["thread_ts"], *first.ts, "{mode:?}");
        app.approve(EVE, &request.id).await.assert(200, "");
        all_sent(&app).await;
        let closed = slack.about(&request.id);
        let texts = closed.iter().map(|message| message.content["text"].as_str().unwrap());
        let outcomes = texts.filter(|text| text.starts_with("승인됨: ")).count();
        assert_eq!(outcomes, 2, "{mode:?}: {closed:?}");
    }
}

/// A try has posted its message, the request was decided meanwhile, and the message could not be changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_try_has_posted_says_the_outcome_after_the_next_one() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, None, Clock::System).await;
        let request = Asked::new();
        let message = asked(&app, &slack, &request).await;
        app.approve(BOB, &request.id).await.assert(200, "");
        closed(&slack, &request.id).await;
        all_sent(&app).await;
        let record = app.record(&request.id).await;
        let noted = SlackMessage { channel: message.channel, ts: message.ts };
        let (ledger, now) = (&app.state.ledger, app.state.clock.now());
        ledger.note_slack_message(&noted, CHANNEL, &record.tenant, &record.id, now).await.unwrap();
        let updates = slack.calls("chat.update");
        let due = due(&app, &request, "request.pending", now).await;
        let sent = channel(&app, &slack).send(&[due]).await;
        assert_eq!(sent, [SendResult::Sent], "{mode:?}");
        assert_eq!(slack.calls("chat.update"), updates + 1, "{mode:?}");
        assert_eq!(slack.about(&request.id).len(), 1, "nothing is posted any more");
        let left = ledger.slack_messages(&record.tenant, &record.id).await.unwrap();
        assert!(left.is_empty(), "{mode:?}: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_comes_late_leaves_the_buttons_of_what_is_asked_anew() {
    for mode in MODES {
        let slack = Slack::start();
        let app = app(mode, &slack, None, Clock::System).await;
        let request = Asked::new();
        asked(&app, &slack, &request).await;
        all_sent(&app).await;
        let (channel, now) = (channel(&app, &slack), app.state.clock.now());
        // The request expired before this message was posted, and waits again.
        let before = due(&app, &request, "request.expired", now - TimeDelta::minutes(5)).await;
        assert_eq!(channel.send(&[before]).await, [SendResult::Sent]);
        let message = slack.about(&request.id).remove(0);
        assert!(message.button("hitl_approve").is_some(), "{mode:?}");
        let text = clicked(&app, &slack, "UBOB", &message, "hitl_approve").await;
        assert_eq!(text, "Approved.", "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_the_settings_no_longer_have_for_a_tenant_is_not_told_of_its_requests() {
    let slack = Slack::start();
    let app = app(Mode::Embedded, &slack, None, Clock::System).await;
    let request = Asked::new();
    app.register(ALICE, &request).await.assert(201, "");
    let mut due = due(&app, &request, "request.pending", app.state.clock.now()).await;
    let channel = channel(&app, &slack);
    for (target, is_told) in [
        (CHANNEL, true),
        (POSTED, true),
        ("UKIM", true),
        ("C0999", false),
        ("UGONE", false),
        // Of another tenant.
        ("UEVE", false),
    ] {
        target.clone_into(&mut due.target);
        assert_eq!(channel.allows(&due).is_ok(), is_told, "{target}");
    }
    "UGONE".clone_into(&mut due.target);
    let why = channel.allows(&due).unwrap_err();
    assert_eq!(why, "the settings no longer have UGONE for tenant tenant1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_an_end_is_not_read_to_its_end() {
    let slack = Slack::start();
    slack.answer([Answer::Endless]);
    let began = Instant::now();
    let answer = SlackApi::new(&slack.settings()).unwrap().call("chat.update", &json!({})).await;
    assert_eq!(answer, Err(SlackError::ForNow("Slack's answer is too long".to_owned())));
    assert!(began.elapsed() < Duration::from_secs(7), "it was not the time that ended it");
}

/// A message comes back with each click on it, in a form where most letters have several bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_click_on_the_longest_message_is_taken() {
    let slack = Slack::start();
    let names = (0..30).map(|number| format!("{number:02}{}", "필".repeat(58))).collect::<Vec<_>>();
    let rules = format!(
        "[[rule]]\nname = '{}'\nwhen = 'true'\napprovers = ['user:bob']\nshow = ['$message', '{}']",
        "규".repeat(30),
        names.join("', '")
    );
    let app = app(Mode::Embedded, &slack, Some(&rules), Clock::System).await;
    for (letter, least) in [("말", 17), ("😀", 9), ("<", 18), ("a", 30)] {
        let context = names.iter().map(|name| (name.clone(), json!(letter.repeat(300))));
        let request = Asked::new()
            .with("actionType", letter.repeat(90).into())
            .with("message", letter.repeat(2000).into())
            .with("context", context.collect::<serde_json::Map<_, _>>().into());
        let message = asked(&app, &slack, &request).await;
        assert!(message.texts().contains(&letter.repeat(1400)), "{letter}: its message");
        let blocks = message.content["blocks"].as_array().unwrap().iter();
        let fields = blocks.filter_map(|block| block["fields"].as_array()).map(Vec::len);
        let fields = fields.sum::<usize>();
        assert!((least..=30).contains(&fields), "{letter}: {fields}");
        assert!(message.texts().contains("More\\nOnly on the page"), "{letter}");
        let text = clicked(&app, &slack, "UBOB", &message, "hitl_approve").await;
        assert_eq!(text, "Approved.", "{letter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clicks_of_another_workspace_are_refused_where_the_settings_name_one() {
    for mode in MODES {
        let slack = Slack::start();
        let app = TestApp::spawn_with(mode, Clock::System, |config| {
            let mut settings = slack.settings();
            settings.team = Some("T1".to_owned());
            config.notices = NoticeSettings {
                public_url: Some("https://dwp.example/api/aura/hitl".to_owned()),
                people: people(),
                slack: Some(settings),
                ..NoticeSettings::default()
            };
        })
        .await;
        let request = Asked::new();
        let message = asked(&app, &slack, &request).await;
        let right = click("UBOB", &message, &message.button("hitl_approve").unwrap());
        let before = counted(&app, "other_team").await;
        for (at, value) in [
            ("/team/id", json!("T2")),
            ("/team", Value::Null),
            // A guest in a shared channel.
            ("/user/team_id", json!("T2")),
        ] {
            let mut wrong = right.clone();
            *wrong.pointer_mut(at).unwrap() = value;
            let (status, body) = Signed::now(&wrong, &app).send(&app).await;
            assert_eq!(status, 403, "{at}: {body}");
            assert!(app.is_undecided(&request.id).await, "{mode:?}");
        }
        assert!(counted(&app, "other_team").await >= before + 3, "{mode:?}");
        let text = said(&app, &slack, "UBOB", &message, &right).await;
        assert_eq!(text, "Approved.", "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_try_slack_with_a_message_of_their_own() {
    let slack = Slack::start();
    let folder = TempDir::new().unwrap();
    let settings = |channels: &str| {
        let api = slack.settings().api_url;
        format!(
            "public_url = 'https://dwp.example'\n[people.kim]\nslack = 'UKIM'\nlanguage = 'ko'\n\
             [people.lee]\nmail = 'lee@example.com'\n[notices.slack]\nbot_token_file = 'token'\n\
             signing_secret_file = 'secret'\napi_url = '{api}'\nchannels = {channels}\n"
        )
    };
    let (one, two) = ("{ tenant1 = 'C0123', tenant3 = 'C0123' }", "{ a = 'C0123', b = 'C0456' }");
    for (name, text) in [
        ("token", fake::TOKEN.to_owned()),
        ("secret", fake::SIGNING_SECRET.to_owned()),
        ("one.toml", settings(one)),
        ("two.toml", settings(two)),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let says = |settings: &str, to: &[&str]| {
        let arguments = [&["--config", settings, "notices", "test", "slack"], to].concat();
        // http:// never leaves this machine.
        let program = Program::new(&folder, &arguments).with("http_proxy", "http://127.0.0.1:9");
        let output = program.output();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains("canary"), "{text}");
        (output.status.success(), text)
    };
    for (settings, to, channel) in [
        ("one.toml", &[][..], "C0123"),
        ("two.toml", &["--to", "C0456"], "C0456"),
        ("two.toml", &["--to", "user:kim"], "DUKIM"),
    ] {
        let before = slack.messages().len();
        let (is_taken, text) = says(settings, to);
        assert!(is_taken && text.starts_with("slack has taken msg_"), "{text}");
        let messages = slack.messages();
        assert_eq!(messages.len(), before + 1);
        let posted = messages.iter().rfind(|message| message.channel == channel).unwrap();
        assert!(posted.texts().contains("req_test") && posted.button("hitl_approve").is_none());
    }
    let calls = slack.calls("chat.postMessage");
    let unknown = |to: &str| {
        format!(
            "aura-hitl: no \"{to}\" has a Slack id in the settings; --to is a channel of \
             notices.slack.channels, or user:KEY or group:KEY of [people.KEY] or [groups_people.KEY]\n"
        )
    };
    for (to, sentence) in [
        (&[][..], "aura-hitl: say to whom to send it: --to C0123 or --to user:kim\n".to_owned()),
        (&["--to", "C0999"], unknown("C0999")),
        (&["--to", "user:lee"], unknown("user:lee")),
        (&["--to", "kim"], unknown("kim")),
    ] {
        assert_eq!(says("two.toml", to), (false, sentence));
    }
    assert_eq!(slack.calls("chat.postMessage"), calls);
    slack.answer([Answer::Error("not_in_channel")]);
    assert_eq!(
        says("one.toml", &[]),
        (false, "aura-hitl: slack did not take it: Slack answers not_in_channel\n".to_owned())
    );
}
