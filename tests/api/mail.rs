//! Mail, as a real SMTP server takes it (aiosmtpd) and as another parser reads it (Python's).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::notice::Event;
use aura_hitl::ledger::NOTICE;
use aura_hitl::notices::mail::MailChannel;
use aura_hitl::notices::{
    Channel as _, Contact, DueNotice, Language, MailSecurity, MailSettings, Notice, NoticeSettings,
    People, SendResult,
};
use aura_hitl::policy::Policy;
use chrono::{DateTime, Utc};
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use support::mail::{Mail, MailServer};
use support::{ALICE, Asked, Mode, TestApp, Who};

/// Kim reads Korean; the others English.
fn people() -> People {
    let contact = |key: &str| {
        let language = if key == "kim" { Language::Korean } else { Language::English };
        (
            key.to_owned(),
            Contact { mail: Some(format!("{key}@example.com")), language, slack: None },
        )
    };
    let mut people = ["kim", "lee", "refused", "later", "slow", "lost"]
        .map(contact)
        .into_iter()
        .collect::<BTreeMap<_, _>>();
    people.insert("chat-only".to_owned(), Contact::default());
    let wrong =
        Contact { mail: Some("lee@example.com\r\nBcc: x".to_owned()), ..Contact::default() };
    people.insert("wrong".to_owned(), wrong);
    People::new(people, [contact("finance")].into())
}

fn channel(settings: &MailSettings) -> MailChannel {
    MailChannel::new(settings, &people()).unwrap()
}

/// A notice of a request that waits, with these fields instead of the usual ones.
fn notice(number: u32, changed: &Value) -> Notice {
    let mut notice = json!({
        "id": format!("msg_{number:032x}"), "event": "request.pending", "at": "2026-01-16T12:00:00Z",
        "tenant": "tenant1", "requestId": format!("req-{number}"), "session": "session_1", "user": "user123",
        "action": "send_payment", "message": "Pay 1,000 to ACME?", "risk": "high",
        "rule": "large payments", "status": "pending", "expiresAt": "2026-01-16T12:30:00Z",
        "decidedBy": null, "decidedVia": null, "reason": null, "by": null,
        "url": format!("https://dwp.example/api/aura/hitl/inbox/?request=req-{number}"),
        "context": { "amount": 1000.50, "to": "ACME" }, "approvers": ["group:finance"],
        "approvalsNeeded": 1, "decisions": ["approve", "reject"], "etag": "tag",
    });
    for (name, value) in changed.as_object().unwrap() {
        notice[name] = value.clone();
    }
    serde_json::from_str(&notice.to_string()).unwrap()
}

fn due(target: &str, notice: Notice) -> DueNotice {
    let created_at: DateTime<Utc> = "2026-01-16T12:00:00Z".parse().unwrap();
    DueNotice { row: 1, target: target.to_owned(), attempts: 1, created_at, notice }
}

async fn sent(channel: &MailChannel, due: &[DueNotice]) {
    assert_eq!(channel.send(due).await, vec![SendResult::Sent; due.len()]);
}

/// What holds for every mail.
fn check(mail: &Mail) {
    assert_eq!(mail.0["defects"], json!([]), "{mail:?}");
    assert_eq!(mail.0["count"], 2, "{mail:?}");
    assert!(mail.0["longest"].as_u64().unwrap() <= 998, "{mail:?}");
    assert_eq!(mail.0["from"], "approvals@example.com");
    assert_eq!(mail.header("From"), "Approvals <approvals@example.com>");
    assert_eq!(mail.header("To"), mail.to());
    assert_eq!(mail.header("Auto-Submitted"), "auto-generated");
    assert!(mail.header("Subject").chars().count() < 100, "{mail:?}");
    assert!(mail.headers("Bcc").is_empty() && mail.headers("X-Injected").is_empty(), "{mail:?}");
    assert!(mail.header("Content-Type").starts_with("multipart/alternative"), "{mail:?}");
    // The page is all that a link leads to.
    for part in [mail.text(), mail.html()] {
        assert!(!part.contains("/approve") && !part.contains("/reject"), "{part}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_is_encrypted_and_logged_in_as_the_address_says() {
    for security in [MailSecurity::Tls, MailSecurity::StartTls, MailSecurity::None] {
        let server = MailServer::start(security);
        sent(&channel(&server.settings()), &[due("user:lee", notice(1, &json!({})))]).await;
        let [mail] = &server.taken(1).await[..] else { panic!("{security:?}") };
        check(mail);
        let is_plain = security == MailSecurity::None;
        assert_eq!(mail.0["encrypted"], !is_plain);
        assert_eq!(mail.0["login"].as_str(), (!is_plain).then_some("hitl@example.com"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_tls_or_login_asked_for_nothing_is_sent_and_all_is_tried_again() {
    let (plain, strict) = (MailServer::plain(), MailServer::start(MailSecurity::StartTls));
    // A server that does not offer STARTTLS, also because somebody in between hides it.
    let stripped = MailSettings { security: MailSecurity::StartTls, ..plain.settings() };
    let wrapped = MailSettings { security: MailSecurity::Tls, ..plain.settings() };
    let unknown = MailSettings { authority: None, ..strict.settings() };
    let login = SecretString::from("wrong-canary");
    let locked_out = MailSettings { password: Some(login), ..strict.settings() };
    let anonymous = MailSettings { user: None, password: None, ..strict.settings() };
    let unencrypted = MailSettings { security: MailSecurity::None, ..strict.settings() };
    let stranger = MailSettings { from: "unknown@example.com".to_owned(), ..plain.settings() };
    let gone = MailSettings { port: Some(support::free_port()), ..plain.settings() };
    for (settings, why) in [
        (stripped, "STARTTLS"),
        (wrapped, ""),
        (unknown, "certificate"),
        (locked_out, "535"),
        (anonymous, "530"),
        (unencrypted, ""),
        (stranger, "550"),
        (gone, "refused"),
    ] {
        let results = channel(&settings).send(&[due("user:lee", notice(1, &json!({})))]).await;
        let [SendResult::Later { why: said, not_before: None }] = &results[..] else {
            panic!("{settings:?}: {results:?}");
        };
        assert!(said.contains(why), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
    assert!(plain.mails().is_empty() && strict.mails().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_recipient_is_refused_and_the_others_have_their_mail() {
    let server = MailServer::plain();
    let channel = channel(&server.settings());
    let targets = [
        "user:later",
        "user:lee",
        "user:refused",
        "user:kim",
        "user:chat-only",
        "user:wrong",
        "group:finance",
        "user:nobody",
        "group:kim",
        "user:lost",
        "odd",
    ];
    let all = targets.map(|target| due(target, notice(1, &json!({}))));
    let results = channel.send(&all).await;
    for (target, result) in targets.iter().zip(&results) {
        match (*target, result) {
            ("user:lee" | "user:kim" | "group:finance", SendResult::Sent) => {}
            ("user:later", SendResult::Later { why, .. }) if why.contains("451") => {}
            ("user:lost", SendResult::Later { why, .. }) => assert!(!why.is_empty()),
            ("user:refused", SendResult::GivenUp { why }) => assert!(why.contains("550"), "{why}"),
            (
                "user:chat-only" | "user:wrong" | "user:nobody" | "group:kim" | "odd",
                SendResult::GivenUp { why },
            ) => {
                assert!(!why.contains('\n'), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    let mails = server.taken(4).await;
    let mut to = mails.iter().map(Mail::to).collect::<Vec<_>>();
    to.sort();
    let expected = ["finance", "kim", "lee", "lost"].map(|name| format!("{name}@example.com"));
    assert_eq!(to, expected);
    // What was taken and not confirmed is sent again: the same mail to whoever drops repeats.
    let lost = mails.iter().find(|mail| mail.to().starts_with("lost")).unwrap();
    let _again = channel.send(&[due("user:lost", notice(1, &json!({})))]).await;
    let again = &server.taken(5).await[4];
    assert_eq!(again.header("Message-ID"), lost.header("Message-ID"));
    let ids = mails
        .iter()
        .map(|mail| mail.header("Message-ID"))
        .collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids.len(), 4, "each recipient's mail has its own: {ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_says_what_may_leave_the_service_in_the_language_of_its_reader() {
    let server = MailServer::plain();
    let channel = channel(&server.settings());
    let cases = [
        json!({}),
        json!({ "event": "request.reminder" }),
        json!({ "event": "request.escalated", "approvalsNeeded": 2 }),
        json!({ "event": "request.decided", "status": "approved", "decidedBy": "lee", "decidedVia": "person" }),
        json!({ "event": "request.decided", "status": "rejected", "decidedBy": "lee", "reason": "예산 초과" }),
        json!({ "event": "request.decided", "status": "answered", "decidedBy": "lee" }),
        json!({ "event": "request.decided", "status": "approved", "decidedBy": "reading is fine", "decidedVia": "policy" }),
        json!({ "event": "request.expired", "status": "expired", "url": null }),
        json!({ "event": "request.cancelled", "status": "cancelled", "message": null, "context": {} }),
        json!({ "event": "request.commented", "by": "lee", "user": null, "rule": null, "risk": null }),
    ];
    // One by one, so that no digest comes of them.
    let (mut letters, mut count) = (String::new(), 0);
    for target in ["user:lee", "user:kim"] {
        for case in &cases {
            sent(&channel, &[due(target, notice(1, case))]).await;
            count += 1;
            let mail = server.taken(count).await.remove(count - 1);
            check(&mail);
            writeln!(letters, "=== {}\n{}", mail.header("Subject"), mail.text()).unwrap();
        }
    }
    insta::assert_snapshot!(letters);
    let mails = server.mails();
    let threads = mails.iter().map(|mail| mail.header("References"));
    assert_eq!(
        threads.collect::<std::collections::BTreeSet<_>>().len(),
        1,
        "one request, one thread"
    );
    insta::assert_snapshot!(mails[0].html());
    insta::assert_snapshot!(mails[14].html());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_of_an_agent_is_markup_or_a_header_or_a_line_of_ours() {
    let server = MailServer::plain();
    let evil = "</bdi></td><script>alert(1)</script><a href=\"https://evil.example\">\r\nBcc: x@evil.example\r\n\
                X-Injected: yes\r\n\r\n-- \nDecided by: admin\u{202e}txt\u{200b} & ' \" <img src=x onerror=1>";
    let case = json!({
        "action": evil, "message": evil, "reason": evil, "user": evil, "rule": evil, "decidedBy": evil,
        "decidedVia": evil, "risk": evil, "status": evil, "requestId": evil, "tenant": evil,
        "context": { (evil): evil, "nested": { "a": [evil, 12_345_678_901_234_567_890_u64] } },
        "approvers": [evil],
    });
    let many = (0..7).map(|number| due("user:lee", notice(number, &case)));
    let many = many.collect::<Vec<_>>();
    sent(&channel(&server.settings()), &many[..1]).await;
    sent(&channel(&server.settings()), &many).await;
    let mails = server.taken(2).await;
    for mail in &mails {
        check(mail);
        let (text, html) = (mail.text(), mail.html());
        for tag in ["<script", "<img", "<a href=\"https://evil", "</script"] {
            assert!(!html.contains(tag), "{html}");
        }
        assert_eq!(
            html.matches("<a ").count(),
            html.matches("<a href=\"https://dwp.example/").count()
        );
        for part in [text, html] {
            assert!(!part.contains(['\u{202e}', '\u{200b}']), "{part}");
            assert!(part.contains("\\u202E"), "{part}");
        }
        // The footer begins once; what an agent writes begins with a label or `> `.
        assert_eq!(text.lines().filter(|line| line.starts_with("-- ")).count(), 1, "{text}");
        assert!(!text.lines().any(|line| line.starts_with("Decided by: admin")), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("Bcc")), "{text}");
        let headers = mail.0["raw"].as_str().unwrap().split("\r\n\r\n").next().unwrap();
        assert!(!headers.to_lowercase().contains("bcc:"), "{headers}");
        assert!(headers.is_ascii());
    }
    assert!(mails[0].text().contains("12345678901234567890"), "numbers as they are written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_five_notices_for_one_person_are_one_mail() {
    let server = MailServer::plain();
    let channel = channel(&server.settings());
    let to = |target: &'static str, count: u32| {
        (0..count).map(move |number| due(target, notice(number, &json!({}))))
    };
    let mut mixed = to("user:lee", 6)
        .chain(to("user:kim", 5))
        .chain(to("group:finance", 7))
        .collect::<Vec<_>>();
    mixed[3].notice.event = Event::Decided;
    mixed[3].notice.status = "approved".to_owned();
    // Kim's are not neighbours.
    mixed.swap(0, 9);
    sent(&channel, &mixed).await;
    let mails = server.taken(7).await;
    assert_eq!(mails.len(), 7);
    let of = |name: &str| {
        mails.iter().filter(|mail| mail.to().starts_with(name)).cloned().collect::<Vec<_>>()
    };
    let ([lee], [finance]) = (&of("lee")[..], &of("finance")[..]) else { panic!("{mails:?}") };
    assert_eq!(of("kim").len(), 5);
    assert_eq!(lee.header("Subject"), "6 notices about approvals");
    assert_eq!(finance.header("Subject"), "7 requests wait for approval");
    for number in 0..6 {
        let link = format!("https://dwp.example/api/aura/hitl/inbox/?request=req-{number}");
        assert_eq!(lee.text().matches(&format!("{link}\n")).count(), 1, "{}", lee.text());
        assert_eq!(lee.html().matches(&format!("\"{link}\"")).count(), 1, "{}", lee.html());
    }
    check(lee);
    check(finance);
    // The same notices again are the same mail.
    sent(&channel, &mixed).await;
    let again = server.taken(14).await;
    let ids = |mails: &[Mail]| {
        mails
            .iter()
            .map(|mail| mail.header("Message-ID"))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(ids(&again[7..]), ids(&mails));
    assert_eq!(ids(&mails).len(), 7);
    let korean = to("user:kim", 6).collect::<Vec<_>>();
    sent(&channel, &korean).await;
    insta::assert_snapshot!(server.taken(15).await[14].text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_ends_the_round_before_its_leases_do() {
    let server = MailServer::plain();
    let channel = channel(&server.settings());
    let started = std::time::Instant::now();
    let all = ["user:lee", "user:slow"].map(|target| due(target, notice(1, &json!({}))));
    let results = channel.send(&all).await;
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(results[0], SendResult::Sent);
    assert!(matches!(&results[1], SendResult::Later { .. }), "{results:?}");
}

const RULES: &str = r#"
[[rule]]
name = "payments"
when = 'actionType == "send_payment"'
approvers = ["user:kim", "user:lee"]
quorum = 2
show = ["$message", "to"]
"#;

/// Every address in a mail, as a scanner finds them.
fn links(mail: &Mail) -> Vec<String> {
    let parts = [mail.text(), mail.html()].join("\n");
    let begins = parts.match_indices("http").map(|(at, _)| &parts[at..]);
    let ends = |c: char| c.is_whitespace() || "\"<>'".contains(c);
    begins.map(|link| link.split(ends).next().unwrap().replace("&amp;", "&")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_opens_every_link_of_every_mail_has_decided_nothing() {
    for mode in [Mode::Embedded, Mode::Production] {
        let server = MailServer::plain();
        let port = support::free_port();
        let app = TestApp::spawn_with(mode, Clock::System, |config| {
            config.port = port;
            config.policy_file = Some(Arc::new(Policy::read(RULES).unwrap()));
            config.notices = NoticeSettings {
                public_url: Some(format!("http://127.0.0.1:{port}/api/aura/hitl")),
                people: people(),
                mail: Some(server.settings()),
                ..NoticeSettings::default()
            };
        })
        .await;
        let requests = (0..3)
            .map(|number| {
                Asked::new()
                    .with("actionType", "send_payment".into())
                    .with("message", format!("Pay {number}? https://evil.example/").into())
                    .with("context", json!({ "to": "ACME", "iban": "canary-iban" }))
            })
            .collect::<Vec<_>>();
        for asked in &requests {
            app.register(ALICE, asked).await.assert(201, "");
        }
        let mails = server.taken(6).await;
        let mut opened = 0;
        for mail in &mails {
            check(mail);
            assert!(!mail.0.to_string().contains("canary"), "{mail:?}");
            assert!(mail.text().contains("context.to: ACME"), "{mail:?}");
            for link in links(mail) {
                if link.starts_with("https://evil.example") {
                    continue;
                }
                for method in [Method::GET, Method::HEAD] {
                    // Follows redirects, as scanners do.
                    let answer = app.client.request(method, &link).send().await.unwrap();
                    assert!(answer.status().is_success(), "{link}: {answer:?}");
                    opened += 1;
                }
            }
        }
        // One in the text and one in the HTML of each.
        assert_eq!(opened, 6 * 2 * 2, "{mode:?}");
        for asked in &requests {
            assert!(app.is_undecided(&asked.id).await, "{mode:?}");
            let record = app.record(&asked.id).await;
            let votes = app.state.ledger.votes_on(&record.tenant, &record.id).await.unwrap();
            assert!(votes.is_empty(), "{mode:?}: {votes:?}");
        }
        // People still can.
        let [kim, lee] = ["kim", "lee"].map(|user| Who { user, ..ALICE });
        app.approve(kim, &requests[0].id).await.assert(202, "");
        app.approve(lee, &requests[0].id).await.assert(200, "");
        // The requester has no address, and nobody else is told of the outcome.
        let waits = async |lane: &str| app.state.ledger.oldest_in_outbox(lane).await.unwrap();
        support::eventually(async || {
            (waits(NOTICE).await.is_none() && waits("mail").await.is_none()).then_some(())
        })
        .await;
        assert_eq!(server.mails().len(), 6, "{mode:?}");
    }
}

#[test]
fn an_authority_that_is_none_refuses_the_start() {
    let server = MailSettings {
        security: MailSecurity::Tls,
        host: "mail.example".to_owned(),
        port: None,
        user: None,
        password: None,
        authority: Some("-----BEGIN NOTHING-----".to_owned()),
        from: "approvals@example.com".to_owned(),
    };
    let refused = MailChannel::new(&server, &people()).unwrap_err();
    assert!(format!("{refused:#}").contains("ca_file"), "{refused:#}");
    let secret = MailSettings { authority: Some("whsec_AAAA".to_owned()), ..server.clone() };
    let refused = MailChannel::new(&secret, &people()).unwrap_err();
    assert!(format!("{refused:#}").contains("ca_file has no certificate in PEM"), "{refused:#}");
    let unreadable = MailSettings { authority: None, from: "nobody".to_owned(), ..server };
    let refused = MailChannel::new(&unreadable, &people()).unwrap_err();
    assert!(format!("{refused:#}").contains("notices.mail.from is \"nobody\""), "{refused:#}");
}
