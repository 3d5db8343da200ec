//! Receivers that fail: slow, lying, gone; processes that are killed; what is given up and sent again.

use std::process::{Command, Stdio};
use std::time::Duration;

use aura_hitl::domain::notice::Event;
use aura_hitl::ledger::OutboxRow;
use aura_hitl::notices::strays::Strays;
use aura_hitl::workers::Worker as _;
use reqwest::{Client, Method};
use support::{Answer, Program, Running, fresh_database, kill, unique};
use tempfile::TempDir;

use super::receiver::{Answers, SECRET};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_lies_or_sends_elsewhere_gets_the_same_id_until_it_says_that_it_has_it() {
    for mode in MODES {
        let receiver = Receiver::start();
        receiver.answer(Answers::With(500));
        let app = app(mode, Clock::manual(), to(&receiver), None).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        receiver.at_least(1).await;
        for answers in [Answers::Elsewhere, Answers::With(429), Answers::With(204)] {
            let before = receiver.received().len();
            receiver.answer(answers);
            eventually(async || {
                app.state.clock.advance(TimeDelta::seconds(5));
                (receiver.received().len() > before).then_some(())
            })
            .await;
        }
        all_sent(&app).await;
        let arrived = receiver.received();
        assert!(arrived.len() >= 4, "{mode:?}");
        for one in &arrived {
            assert_eq!((one.id(), &one.body), (arrived[0].id(), &arrived[0].body), "{mode:?}");
            assert_eq!(one.path, "/hook", "redirects are not followed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_receiver_holds_up_neither_decisions_nor_other_channels() {
    for mode in MODES {
        let (hanging, well) = (Receiver::start(), Receiver::start());
        hanging.answer(Answers::Late);
        let mut notices = to(&hanging);
        notices.webhooks.push(well.settings("well"));
        let app = app(mode, Clock::System, notices, None).await;
        for _request in 0..20 {
            let asked = Asked::new();
            app.register(ALICE, &asked).await.assert(201, "");
            app.approve(BOB, &asked.id).await.assert(200, "");
        }
        well.at_least(40).await;
        // Its own limit of sends at once, of which its first round may have found fewer.
        hanging.at_least(1).await;
        assert!(hanging.received().len() <= 16, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_takes_for_three_days_is_given_up_and_can_be_sent_again() {
    for mode in MODES {
        let receiver = Receiver::start();
        receiver.answer(Answers::With(503));
        let mut notices = to(&receiver);
        notices.webhooks[0].events = [Event::Pending].into();
        let app = app(mode, Clock::manual(), notices, None).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        receiver.at_least(1).await;
        let failed = async || app.state.ledger.failed_in_outbox(10).await.unwrap();
        app.state.clock.advance(TimeDelta::days(2));
        receiver.at_least(2).await;
        assert!(failed().await.is_empty(), "{mode:?}");
        app.state.clock.advance(TimeDelta::days(2));
        let rows = eventually(async || Some(failed().await).filter(|rows| !rows.is_empty())).await;
        let row = &rows[0];
        assert_eq!((rows.len(), row.lane.as_str(), row.target.as_str()), (1, "webhook/ops", "ops"));
        assert_eq!(row.request_id, asked.id);
        assert_eq!(row.error.as_deref(), Some("it answered 503 Service Unavailable"));
        // It is not the oldest that waits any more, and is not tried.
        assert_eq!(app.state.ledger.oldest_in_outbox("webhook/ops").await.unwrap(), None);
        let tries = receiver.received().len();
        app.state.clock.advance(TimeDelta::days(1));
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(receiver.received().len(), tries, "{mode:?}");

        receiver.answer(Answers::With(204));
        let now = app.state.clock.now();
        assert_eq!(app.state.ledger.resend(Some(row.id + 1000), now).await.unwrap(), 0);
        assert_eq!(app.state.ledger.resend(None, now).await.unwrap(), 1);
        all_sent(&app).await;
        assert_eq!(receiver.received().len(), tries + 1, "{mode:?}");
        assert!(failed().await.is_empty());
    }
}

/// A service in a process of its own, with one webhook.
struct Site {
    folder: TempDir,
    database: String,
    token: String,
}

impl Site {
    async fn new(receiver: &Receiver) -> Self {
        let folder = TempDir::new().unwrap();
        let settings = format!(
            "[[notices.webhook]]\nname = 'ops'\nurl = '{}'\nsecret_file = 'secret'\n",
            receiver.url()
        );
        for (name, text) in [("settings.toml", settings.as_str()), ("secret", SECRET)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut site = Self { folder, database: fresh_database().await, token: String::new() };
        let token = site.program(&["token", "--sub", "alice", "--tenant", "tenant1"]).output();
        String::from_utf8(token.stdout).unwrap().trim().clone_into(&mut site.token);
        site
    }

    fn program(&self, arguments: &[&str]) -> Program {
        Program::new(&self.folder, &[&["--config", "settings.toml"], arguments].concat())
            .with("JWT_SECRET", "a secret that the Auth server shares with us")
            .with("DATABASE_URL", &self.database)
            .with("REDIS_URL", test_variable("TEST_REDIS_URL"))
            // Other tests write their requests to this Redis.
            .with("AURA_HITL_INTAKE", "false")
    }

    /// What a command prints.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.program(arguments).output();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap()
    }

    async fn register(&self, service: &Running) {
        let body = json!({ "sessionId": unique("session"), "actionType": "send_email", "message": "canary-text" });
        let call = Client::new()
            .request(Method::POST, format!("{}/aura/hitl/requests", service.base))
            .bearer_auth(&self.token)
            .header("X-Tenant-ID", "tenant1")
            .json(&body);
        Answer::of(call.send().await.unwrap()).await.assert(201, "");
    }

    async fn sql(&self, statement: &'static str) {
        let mut connection =
            <sqlx::PgConnection as sqlx::Connection>::connect(&self.database).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_replica_has_sent_and_not_noted_is_sent_by_another_with_the_same_id() {
    let receiver = Receiver::start();
    let site = Site::new(&receiver).await;
    receiver.answer(Answers::Late);
    let mut first = site.program(&[]).serve().await;
    site.register(&first).await;
    receiver.at_least(1).await;
    first.crash();
    receiver.answer(Answers::With(204));
    let _second = site.program(&[]).serve().await;
    // The lease ends.
    site.sql("UPDATE hitl_outbox SET due_at = created_at").await;
    let arrived = receiver.at_least(2).await;
    assert_eq!((arrived[0].id(), &arrived[0].body), (arrived[1].id(), &arrived[1].body));
}

/// Nothing is lost when a receiver wants no more: after SIGHUP it gets what it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_gone_is_left_alone_until_the_settings_are_read_again() {
    let receiver = Receiver::start();
    let site = Site::new(&receiver).await;
    receiver.answer(Answers::With(410));
    let mut service = site.program(&[]).serve().await;
    site.register(&service).await;
    receiver.at_least(1).await;
    site.register(&service).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receiver.received().len(), 1, "it is left alone");
    let log = service.log();
    let of_it = |lines: &[Value]| {
        let text = "the receiver wants no more notices";
        lines.iter().filter(|line| line["message"].as_str().unwrap_or("").starts_with(text)).count()
    };
    assert_eq!(of_it(&log), 1, "{log:?}");
    let scraped = Client::new().get(format!("{}/metrics", service.base)).send().await.unwrap();
    let scraped = scraped.text().await.unwrap();
    assert!(
        scraped.contains("aura_hitl_notice_channel_off{channel=\"webhook/ops\"} 1"),
        "{scraped}"
    );

    receiver.answer(Answers::With(204));
    kill("-HUP", service.pid());
    let arrived = receiver.at_least(3).await;
    assert_eq!(
        arrived[0].id(),
        arrived[1..].iter().find(|one| one.body == arrived[0].body).unwrap().id()
    );
    assert!(!service.stdout().contains("canary-text") && !service.stderr().contains("canary-text"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_is_tried_and_what_was_given_up_is_shown_and_sent_again_by_commands() {
    let receiver = Receiver::start();
    let site = Site::new(&receiver).await;
    let says = site.says(&["notices", "test", "ops"]);
    let id = receiver.received()[0].id().to_owned();
    assert_eq!(says, format!("webhook/ops has taken {id}\n"));
    assert_eq!(receiver.received()[0].json()["data"]["requestId"], "req_test");
    // http:// never leaves this machine.
    let proxied =
        site.program(&["notices", "test", "ops"]).with("http_proxy", "http://127.0.0.1:9");
    assert!(proxied.output().status.success());
    receiver.answer(Answers::With(404));
    assert_eq!(
        site.says(&["notices", "test", "ops"]),
        "aura-hitl: webhook/ops did not take it: it answered 404 Not Found\n"
    );
    assert_eq!(
        site.says(&["notices", "test", "spo"]),
        "aura-hitl: no channel is named \"spo\"; there are ops\n"
    );

    let service = site.program(&[]).serve().await;
    site.register(&service).await;
    receiver.at_least(4).await;
    let empty = site.says(&["notices", "list", "--failed"]);
    assert!(empty.ends_with("\n0 notices\n"), "{empty}");
    site.sql(
        "UPDATE hitl_outbox SET created_at = created_at - interval '3 days', due_at = created_at
          WHERE lane = 'webhook/ops'",
    )
    .await;
    let shown = eventually(async || {
        let shown = site.says(&["notices", "list", "--failed"]);
        shown.ends_with("\n1 notice\n").then_some(shown)
    })
    .await;
    let line = shown.lines().find(|line| line.contains("webhook/ops")).unwrap();
    assert!(line.contains("tenant1") && line.contains("it answered 404 Not Found"), "{shown}");
    let id = line.split_whitespace().next().unwrap();
    receiver.answer(Answers::With(204));
    let before = receiver.received().len();
    assert_eq!(
        site.says(&["notices", "resend", "999999"]),
        "aura-hitl: no notice 999999 was given up; `aura-hitl notices list --failed` shows those that were\n"
    );
    assert_eq!(site.says(&["notices", "resend", id]), "1 notice is sent again\n");
    receiver.at_least(before + 1).await;
    assert_eq!(site.says(&["notices", "resend", "--all"]), "0 notices are sent again\n");
}

/// The rows were written before the settings changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_settings_no_longer_tell_a_receiver_is_given_up_and_not_sent() {
    for mode in MODES {
        let receiver = Receiver::start();
        receiver.answer(Answers::With(500));
        let app = app(mode, Clock::System, to(&receiver), None).await;
        let (kept, ours) = (Asked::new(), Asked::new());
        let kept = kept.with("tenantId", "tenant2".into()).with("userId", "stranger".into());
        app.register(ALICE, &ours).await.assert(201, "");
        app.register(STRANGER, &kept).await.assert(201, "");
        receiver.at_least(2).await;
        let mut notices = to(&receiver);
        let tenant2 = aura_hitl::domain::ids::TenantId::parse("tenant2").unwrap();
        notices.webhooks[0].tenants = Some([tenant2].into());
        app.state.notices.set(notices);
        let failed = async || app.state.ledger.failed_in_outbox(10).await.unwrap();
        let rows = eventually(async || Some(failed().await).filter(|rows| !rows.is_empty())).await;
        let before = receiver.received().iter().filter(|one| one.request() == ours.id).count();
        receiver.answer(Answers::With(204));
        all_sent(&app).await;
        assert_eq!((rows.len(), &rows[0].request_id), (1, &ours.id), "{mode:?}");
        let why = "the settings no longer tell it of request.pending of tenant tenant1";
        assert_eq!(rows[0].error.as_deref(), Some(why));
        let after = receiver.received().iter().filter(|one| one.request() == ours.id).count();
        assert_eq!(after, before, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_channel_that_was_removed_is_given_up_after_an_hour() {
    for mode in MODES {
        let (ops, other) = (Receiver::start(), Receiver::start());
        ops.answer(Answers::With(500));
        other.answer(Answers::With(500));
        let mut notices = to(&ops);
        notices.webhooks.push(other.settings("other"));
        notices.webhooks[0].events = [Event::Pending].into();
        notices.webhooks[1].events = [Event::Pending].into();
        let app = app(mode, Clock::manual(), notices, None).await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        ops.at_least(1).await;
        other.at_least(1).await;
        let mut notices = to(&other);
        "other".clone_into(&mut notices.webhooks[0].name);
        app.state.notices.set(notices);
        let mut strays = Strays {
            notices: app.state.notices.clone(),
            ledger: app.state.ledger.clone(),
            clock: app.state.clock.clone(),
        };
        let failed = async || app.state.ledger.failed_in_outbox(10).await.unwrap();
        // Another replica may still have the channel.
        app.state.clock.advance(TimeDelta::minutes(50));
        strays.run_once().await.unwrap();
        assert!(failed().await.is_empty(), "{mode:?}");
        let rows = eventually(async || {
            // Its worker may still be at its last round.
            app.state.clock.advance(TimeDelta::minutes(70));
            strays.run_once().await.unwrap();
            Some(failed().await).filter(|rows| !rows.is_empty())
        })
        .await;
        assert_eq!((rows.len(), &*rows[0].lane), (1, "webhook/ops"), "{mode:?}: {rows:?}");
        let why = "the settings no longer have this channel";
        assert_eq!(rows[0].error.as_deref(), Some(why));
        let waits = app.state.ledger.oldest_in_outbox("webhook/other").await.unwrap();
        assert!(waits.is_some(), "{mode:?}: a channel that is there goes on");
        // With no channel at all, events wait for nobody.
        app.state.notices.set(NoticeSettings::default());
        let late = Asked::new();
        app.register(ALICE, &late).await.assert(201, "");
        app.state.clock.advance(TimeDelta::hours(2));
        eventually(async || {
            app.state.clock.advance(TimeDelta::hours(2));
            strays.run_once().await.unwrap();
            let mut lanes = failed().await.into_iter().map(|row| row.lane).collect::<Vec<_>>();
            lanes.sort();
            lanes.dedup();
            (lanes == ["notice", "webhook/ops", "webhook/other"]).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_does_not_hold_up_the_end_of_the_service() {
    let receiver = Receiver::start();
    let site = Site::new(&receiver).await;
    receiver.answer(Answers::Late);
    let mut service = site.program(&[]).serve().await;
    site.register(&service).await;
    receiver.at_least(1).await;
    assert!(service.stop().await.success());
    let log = service.stdout();
    assert!(log.contains("\"stopped\"") && !log.contains("did not end in time"), "{log}");
}

/// Two replicas, and a receiver that fails half of the time: each request is told at least once, to nobody
/// of another tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_told_at_least_once_and_no_tenant_hears_of_another() {
    const COUNT: usize = 60;
    for mode in MODES {
        let (all, other) = (Receiver::start(), Receiver::start());
        let mut notices = to(&all);
        let mut of_other = other.settings("other");
        of_other.tenants =
            Some([aura_hitl::domain::ids::TenantId::parse("tenant2").unwrap()].into());
        notices.webhooks.push(of_other);
        let app = app(mode, Clock::manual(), notices, None).await;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for place in 0..COUNT {
            all.answer(Answers::With(if place % 2 == 0 { 500 } else { 204 }));
            let (mine, foreign) = (Asked::new(), Asked::new());
            let foreign =
                foreign.with("tenantId", "tenant2".into()).with("userId", "stranger".into());
            app.register(ALICE, &mine).await.assert(201, "");
            app.register(STRANGER, &foreign).await.assert(201, "");
            ours.push(mine.id);
            theirs.push(foreign.id);
        }
        all.answer(Answers::With(204));
        eventually(async || {
            app.state.clock.advance(TimeDelta::minutes(30));
            for lane in [NOTICE, "webhook/ops", "webhook/other"] {
                if app.state.ledger.oldest_in_outbox(lane).await.unwrap().is_some() {
                    return None;
                }
            }
            Some(())
        })
        .await;
        let told =
            all.received().iter().map(super::receiver::Received::request).collect::<Vec<_>>();
        for id in ours.iter().chain(&theirs) {
            assert!(told.contains(id), "{mode:?} {id}");
        }
        let told = other.received();
        assert!(told.iter().all(|one| theirs.contains(&one.request())), "{mode:?}");
        assert!(theirs.iter().all(|id| told.iter().any(|one| one.request() == *id)), "{mode:?}");
    }
}

/// Runs a verifier: the reference library of a language. It reads JSON on its standard input.
fn verified(program: &mut Command, input: &Value) {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    // With each secret alone; not with another one, and not with another body.
    assert_eq!(
        said.trim(),
        "current: verified; previous: verified; other: refused; altered: refused"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_libraries_verify_what_is_sent_with_both_secrets() {
    const PREVIOUS: &str = "whsec_cHJldmlvdXMgc2VjcmV0IG9mIGEgd2ViaG9vaw==";
    const OTHER: &str = "whsec_b3RoZXIgc2VjcmV0IG9mIGFub3RoZXIgd2ViaG9vaw==";
    let receiver = Receiver::start();
    let mut notices = to(&receiver);
    notices.webhooks[0].previous_secret = Some(PREVIOUS.into());
    let app = app(Mode::Embedded, Clock::System, notices, None).await;
    let asked = Asked::new().with("message", "예산 3,000원 – “확인”".into());
    app.register(ALICE, &asked).await.assert(201, "");
    let arrived = receiver.at_least(1).await;
    let input = json!({
        "headers": arrived[0].headers, "body": arrived[0].body,
        "secrets": { "current": SECRET, "previous": PREVIOUS, "other": OTHER },
    });
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/webhooks");
    let python = test_variable("TEST_PYTHON");
    verified(Command::new(python).arg(format!("{fixtures}/verify.py")), &input);
    verified(Command::new("node").arg(format!("{fixtures}/verify.mjs")), &input);
    let rows: Vec<OutboxRow> = app
        .state
        .ledger
        .claim_outbox("webhook/ops", app.state.clock.now(), app.state.clock.now(), 1)
        .await
        .unwrap();
    assert!(rows.is_empty(), "{rows:?}");
}
