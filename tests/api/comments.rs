//! Comments on pending requests: who writes them, who reads them, and who is woken.

use std::time::Duration;

use aura_hitl::domain::clock::Clock;
use chrono::TimeDelta;
use futures_util::future::join_all;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, find_record, unique};

fn path(id: &str) -> String {
    format!("/api/aura/hitl/requests/{id}/comments")
}

async fn comment(app: &TestApp, who: Who<'_>, id: &str, text: &str) -> Answer {
    let call = app.call(who, Method::POST, &path(id)).header("X-DWP-Caller-Type", "USER");
    Answer::of(call.json(&json!({ "text": text })).send().await.unwrap()).await
}

/// The next event of a stream with this name, and its data.
async fn next(stream: &mut Response, text: &mut String, wanted: &str) -> Value {
    loop {
        while let Some((event, rest)) = text.split_once("\n\n") {
            let (event, rest) = (event.to_owned(), rest.to_owned());
            *text = rest;
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            if field("event: ") == Some(wanted) {
                return serde_json::from_str(field("data: ").unwrap()).unwrap();
            }
        }
        let chunk = tokio::time::timeout(Duration::from_secs(5), stream.chunk());
        let chunk = chunk.await.unwrap_or_else(|_| panic!("no {wanted} came")).unwrap().unwrap();
        *text += std::str::from_utf8(&chunk).unwrap();
    }
}

/// What a stream of an inbox says next of a request. That it was made may be heard after the stream opened.
async fn next_change(stream: &mut Response, text: &mut String) -> Value {
    loop {
        let told = next(stream, text, "request").await;
        if told["change"] != "created" {
            return told;
        }
    }
}

async fn open(app: &TestApp, path: &str) -> Response {
    let stream = app.call(ALICE, Method::GET, path).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    stream
}

both_modes! {
    async fn whoever_sees_a_request_may_comment_until_it_is_decided(app: TestApp) {
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        let first = comment(&app, BOB, &asked.id, "어느 폴더인가요? \"a\"").await;
        first.assert(201, "");
        assert_eq!(first.body["message"], "Comment added");
        let at = first.data()["at"].as_str().unwrap();
        assert_eq!(*first.data(), json!({
            "requestId": asked.id, "number": 1, "userId": "bob", "author": "person",
            "text": "어느 폴더인가요? \"a\"", "at": at,
        }));
        // Its agent answers, with the token of its user.
        let answer = app.call(ALICE, Method::POST, &path(&asked.id)).header("X-DWP-Caller-Type", "AGENT");
        let answer = Answer::of(answer.json(&json!({ "text": "inbox" })).send().await.unwrap()).await;
        assert_eq!(answer.assert(201, "").data()["author"], "agent");
        assert_eq!(answer.data()["number"], 2);
        let listed = app.get(ADMIN, &path(&asked.id)).await;
        assert_eq!(listed.assert(200, "").body["message"], "Comments retrieved");
        assert_eq!(listed.data()["comments"], json!([first.data(), answer.data()]));
        let detail = app.get(BOB, &format!("/aura/hitl/requests/{}/detail", asked.id)).await;
        assert_eq!(detail.data()["comments"], listed.data()["comments"]);
        assert_eq!(detail.data()["status"], "pending");
        // Nobody else.
        comment(&app, MALLORY, &asked.id, "me, too").await.assert(404, "E1004");
        app.get(MALLORY, &path(&asked.id)).await.assert(404, "E1004");
        comment(&app, ALICE, &unique("req"), "?").await.assert(404, "E1004");
        for (text, why) in [
            (json!(""), "is required"), (json!(" \n"), "is required"), (Value::Null, "is required"),
            (json!("가".repeat(2001)), "must have at most 2000 characters"), (json!(7), "must be a string"),
        ] {
            let refused = app.post(BOB, &path(&asked.id), json!({ "text": text })).await;
            assert_eq!(refused.assert(400, "E4000").data()["text"], why);
        }
        app.get(BOB, &format!("{}?page=1", path(&asked.id))).await.assert(400, "E4000");
        comment(&app, BOB, &asked.id, &"가".repeat(2000)).await.assert(201, "");
        app.approve(ALICE, &asked.id).await.assert(200, "");
        let late = comment(&app, BOB, &asked.id, "too late").await;
        assert_eq!(late.assert(409, "E3006").data()["decidedBy"], ALICE.user);
        assert_eq!(app.get(BOB, &path(&asked.id)).await.data()["comments"].as_array().unwrap().len(), 3);
        let cancelled = Asked::new();
        app.register(ALICE, &cancelled).await.assert(201, "");
        app.post(ALICE, &format!("/aura/hitl/requests/{}/cancel", cancelled.id), json!({})).await;
        comment(&app, BOB, &cancelled.id, "?").await.assert(410, "E3007");
    }
}

over_redis! {
    async fn a_request_in_redis_takes_comments_and_its_agent_is_sent_nothing(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let mut agent = support::Subscriber::on(&asked.session).await;
        comment(&app, BOB, &asked.id, "why?").await.assert(201, "");
        let detail = app.get(ALICE, &format!("/aura/hitl/requests/{}/detail", asked.id)).await;
        assert_eq!(detail.data()["comments"][0]["text"], "why?");
        assert_eq!(app.signal(&asked.session).await, None);
        app.approve(ALICE, &asked.id).await.assert(200, "");
        // The first that it hears is the signal.
        assert!(agent.next().await.contains("\"approval\""));
        comment(&app, BOB, &asked.id, "too late").await.assert(409, "E3006");
        let known = app.get(ALICE, &format!("/aura/hitl/requests/{}/detail", asked.id)).await;
        assert_eq!(known.data()["comments"].as_array().unwrap().len(), 1);
    }
}

both_modes! {
    async fn a_request_has_at_most_a_hundred_comments(app: TestApp) {
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        let mut numbers = Vec::new();
        for _round in 0..10 {
            let answers = join_all((0..10).map(|_| comment(&app, BOB, &asked.id, "?"))).await;
            for answer in answers {
                numbers.push(answer.assert(201, "").data()["number"].as_i64().unwrap());
            }
        }
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(1..=100));
        let refused = comment(&app, BOB, &asked.id, "?").await;
        refused.assert(409, "E3008");
        assert!(refused.body["message"].as_str().unwrap().starts_with("Too many comments"));
        let korean = app.call(BOB, Method::POST, &path(&asked.id)).header("Accept-Language", "ko");
        let korean = Answer::of(korean.json(&json!({ "text": "?" })).send().await.unwrap()).await;
        assert!(korean.body["message"].as_str().unwrap().starts_with("의견이 너무 많음"));
    }
}

both_modes! {
    async fn a_comment_wakes_the_stream_of_its_session_before_the_decision(app: TestApp) {
        let (asked, other) = (Asked::new(), Asked::new());
        for asked in [&asked, &other] {
            app.register(ALICE, asked).await.assert(201, "");
        }
        comment(&app, BOB, &asked.id, "before").await.assert(201, "");
        let stream = format!("/aura/hitl/signals/{}/stream", asked.session);
        let (mut agent, mut text) = (open(&app, &stream).await, String::new());
        let heard = next(&mut agent, &mut text, "comment").await;
        assert_eq!(heard, json!({
            "type": "comment", "requestId": asked.id, "number": 1, "userId": "bob",
            "author": "person", "text": "before", "timestamp": heard["timestamp"],
        }));
        assert!(heard["timestamp"].as_i64().unwrap() > 1_700_000_000);
        comment(&app, BOB, &other.id, "elsewhere").await.assert(201, "");
        comment(&app, BOB, &asked.id, "mind the date").await.assert(201, "");
        app.approve(BOB, &asked.id).await.assert(200, "");
        let heard = next(&mut agent, &mut text, "comment").await;
        assert_eq!((&heard["number"], &heard["text"]), (&json!(2), &json!("mind the date")));
        let decided = next(&mut agent, &mut text, "approval").await;
        assert_eq!(decided["requestId"], asked.id);
        // The ids go on counting outcomes, and what was told is not told twice.
        let third = Asked::in_session(&asked.session);
        app.register(ALICE, &third).await.assert(201, "");
        comment(&app, BOB, &third.id, "third").await.assert(201, "");
        assert_eq!(next(&mut agent, &mut text, "comment").await["text"], "third");
        // Of one request only.
        let one = format!("{stream}?requestId={}", third.id);
        let (mut agent, mut text) = (open(&app, &one).await, String::new());
        assert_eq!(next(&mut agent, &mut text, "comment").await["text"], "third");
    }
}

both_modes! {
    async fn a_comment_is_told_in_the_inboxes_of_its_tenant(app: TestApp) {
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        let inbox = "/aura/hitl/inbox/stream";
        let (mut own, mut text) = (open(&app, inbox).await, String::new());
        next(&mut own, &mut text, "counts").await;
        for _time in 0..2 {
            comment(&app, BOB, &asked.id, "?").await.assert(201, "");
            let told = next_change(&mut own, &mut text).await;
            assert_eq!(told, json!({ "requestId": asked.id, "status": "pending", "change": "commented" }));
        }
        app.approve(BOB, &asked.id).await.assert(200, "");
        let told = next_change(&mut own, &mut text).await;
        assert_eq!((&told["change"], &told["status"]), (&json!("decided"), &json!("approved")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comment_whose_message_is_lost_is_found_in_the_ledger() {
    let app = TestApp::spawn(Mode::Production).await;
    let asked = Asked::new();
    app.register(ALICE, &asked).await.assert(201, "");
    let (mut agent, mut heard) =
        (open(&app, &format!("/aura/hitl/signals/{}/stream", asked.session)).await, String::new());
    let (mut inbox, mut told) = (open(&app, "/aura/hitl/inbox/stream").await, String::new());
    next(&mut inbox, &mut told, "counts").await;
    // As if another replica had written it, and Redis had lost its messages.
    app.sql(format!(
        "INSERT INTO hitl_comment (tenant_id, request_id, number, session_id, user_id, author, text,
                                   created_at)
         VALUES ('tenant1', '{}', 1, '{}', 'bob', 'person', 'lost', now())",
        asked.id, asked.session
    ))
    .await;
    assert_eq!(next(&mut agent, &mut heard, "comment").await["text"], "lost");
    assert_eq!(next_change(&mut inbox, &mut told).await["change"], "commented");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comments_go_with_their_request() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn(mode).await;
        let (old, young) = (Asked::new(), Asked::new());
        for asked in [&old, &young] {
            app.register(ALICE, asked).await.assert(201, "");
            comment(&app, BOB, &asked.id, "?").await.assert(201, "");
            app.approve(BOB, &asked.id).await.assert(200, "");
        }
        let time = |column: &str| {
            let then = (Clock::System.now() - TimeDelta::days(40)).to_rfc3339();
            format!("{column} = '{then}'")
        };
        for asked in [&old, &young] {
            let at = time("created_at");
            app.sql(format!("UPDATE hitl_comment SET {at} WHERE request_id = '{}'", asked.id))
                .await;
        }
        let columns = ["settled_at", "decided_at", "created_at", "owed_since"].map(time).join(", ");
        app.sql(format!(
            "UPDATE hitl_request SET {columns}, delivery = 'sent' WHERE request_id = '{}'",
            old.id
        ))
        .await;
        let retention = aura_hitl::audit::retention::Retention {
            requests: Some(TimeDelta::days(30)),
            tasks: None,
        };
        let purged =
            aura_hitl::audit::retention::purge(&app.state.ledger, retention, Clock::System.now());
        assert_eq!(purged.await.unwrap().requests, 1);
        assert!(find_record(&app.state.ledger, &old.id).await.is_none());
        let left = async |asked: &Asked| {
            let (tenant, id) = (
                aura_hitl::domain::ids::TenantId::parse("tenant1").unwrap(),
                aura_hitl::domain::ids::RequestId::parse(asked.id.as_str()).unwrap(),
            );
            app.state.ledger.comments(&tenant, &id).await.unwrap().len()
        };
        assert_eq!((left(&old).await, left(&young).await), (0, 1));
    }
}
