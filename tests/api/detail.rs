//! One request in full: its content to the letter, its history, and who may decide it.

use aura_hitl::config::Config;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::rules::Approvers;
use reqwest::Method;
use serde_json::{Value, json};
use support::{ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, eventually, unique};

fn path(id: &str) -> String {
    format!("/api/aura/hitl/requests/{id}/detail")
}

async fn detail(app: &TestApp, who: Who<'_>, id: &str) -> Answer {
    let answer = app.get(who, &path(id)).await;
    answer.assert(200, "");
    assert_eq!(answer.body["message"], "Approval request retrieved");
    answer
}

fn events(answer: &Answer) -> Vec<&str> {
    let history = answer.data()["history"].as_array().unwrap();
    history.iter().map(|happened| happened["event"].as_str().unwrap()).collect()
}

both_modes! {
    async fn a_detail_is_the_listed_request_and_its_content(app: TestApp) {
        let steps = json!([{ "stepId": "step-1", "description": "읽기", "status": "completed" }]);
        let asked = Asked::new()
            .with("message", "보낼까요?".into())
            .with("context", json!({ "to": "a@b.c", "tags": ["x", null] }))
            .with("planSteps", steps.clone());
        app.register(ALICE, &asked).await.assert(201, "");
        let listed = app.get(BOB, "/aura/hitl/requests").await;
        let seen = detail(&app, BOB, &asked.id).await;
        let mut rest = seen.data().clone();
        for (field, value) in listed.data()["content"][0].as_object().unwrap() {
            assert_eq!(rest.as_object_mut().unwrap().remove(field).as_ref(), Some(value), "{field}");
        }
        let created = &listed.data()["content"][0]["createdAt"];
        let expected = json!({
            "context": { "to": "a@b.c", "tags": ["x", null] }, "planSteps": steps, "votes": [],
            "comments": [], "signal": { "state": "none" },
            "history": [{ "at": created, "event": "created", "by": "user123" }],
            "why": "No policy: anybody of tenant1 may decide this request.",
        });
        assert_eq!(rest, expected);
        let read = app.get(BOB, &format!("/aura/hitl/requests/{}", asked.id)).await;
        assert_eq!(seen.headers["ETag"], read.headers["ETag"]);
        assert_eq!(seen.headers["ETag"], format!("\"{}\"", seen.data()["etag"].as_str().unwrap()));
        let korean = app.call(BOB, Method::GET, &path(&asked.id)).header("Accept-Language", "ko");
        let korean = Answer::of(korean.send().await.unwrap()).await;
        assert_eq!(korean.data()["why"], "정책 없음: tenant1의 누구나 이 요청을 결정할 수 있습니다.");
    }
}

both_modes! {
    async fn the_history_says_who_did_what(app: TestApp) {
        let [approved, rejected, cancelled] = [Asked::new(), Asked::new(), Asked::new()];
        for asked in [&approved, &rejected, &cancelled] {
            app.register(ALICE, asked).await.assert(201, "");
        }
        app.approve(BOB, &approved.id).await.assert(200, "");
        let acted = format!("/aura/hitl/requests/{}/ack", approved.id);
        app.post(ALICE, &acted, json!({})).await.assert(200, "");
        app.reject(ADMIN, &rejected.id, Some("아니요")).await.assert(200, "");
        let cancel = format!("/aura/hitl/requests/{}/cancel", cancelled.id);
        app.post(ALICE, &cancel, json!({})).await.assert(200, "");

        let seen = detail(&app, ALICE, &approved.id).await;
        assert_eq!(events(&seen), ["created", "approved", "acted"]);
        assert_eq!(seen.data()["history"][1]["by"], "bob");
        assert_eq!((&seen.data()["status"], &seen.data()["mayDecide"]), (&json!("approved"), &json!(false)));
        assert_eq!((&seen.data()["decidedBy"], &seen.data()["approvals"]), (&json!("bob"), &json!(1)));
        let seen = detail(&app, ALICE, &rejected.id).await;
        assert_eq!(events(&seen), ["created", "rejected"]);
        assert_eq!((&seen.data()["reason"], &seen.data()["decidedBy"]), (&json!("아니요"), &json!("root")));
        assert_eq!(events(&detail(&app, ALICE, &cancelled.id).await), ["created", "cancelled"]);

        let mut body = Asked::new().registration();
        body["expiresInSeconds"] = 1.into();
        let late = body["requestId"].as_str().unwrap().to_owned();
        app.post(ALICE, "/aura/hitl/requests", body).await.assert(201, "");
        let seen = eventually(async || {
            let seen = detail(&app, ALICE, &late).await;
            (seen.data()["status"] == "expired").then_some(seen)
        })
        .await;
        assert_eq!(events(&seen), ["created", "expired"]);
    }
}

both_modes! {
    async fn strangers_learn_nothing_and_unknown_parameters_are_refused(app: TestApp) {
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        let seen = app.get(MALLORY, &path(&asked.id)).await;
        let nothing = app.get(MALLORY, &path(&unique("req"))).await;
        assert_eq!(seen.bare(), nothing.bare());
        seen.assert(404, "E1004");
        for query in ["x=1", "requestId=1", "=", "a=1&a=2", "%FF=1"] {
            let answer = app.get(ALICE, &format!("{}?{query}", path(&asked.id))).await;
            answer.assert(400, "E4000");
            assert_eq!(answer.data().as_object().unwrap().len(), 1, "{}", answer.text);
        }
        detail(&app, ALICE, &format!("{}?", asked.id).replace('?', "")).await;
    }
}

both_modes! {
    /// Byte for byte: no number is read as a number.
    async fn context_is_shown_as_it_was_written(app: TestApp) {
        let context = concat!(
            r#"{"amount":1000.10,"big":123456789012345678901234567890,"tiny":-0.0,"far":1e300,"#,
            r#""name":"\uD55C글 \"q\"","deep":[[[{"a":null}]]],"z":1,"a":2}"#,
        );
        for (context, shown) in [(context, context), ("null", "{}"), ("[1, 2.0]", "[1, 2.0]"), ("\"x\"", "\"x\"")] {
            let asked = Asked::new();
            let body = format!(
                r#"{{"requestId":"{}","sessionId":"{}","actionType":"pay","context":{context}}}"#,
                asked.id, asked.session
            );
            let call = app.call(ALICE, Method::POST, "/aura/hitl/requests");
            let call = call.header("Content-Type", "application/json").body(body);
            Answer::of(call.send().await.unwrap()).await.assert(201, "");
            let seen = detail(&app, BOB, &asked.id).await;
            assert!(seen.text.contains(&format!(r#""context":{shown},"#)), "{}", seen.text);
        }
    }
}

both_modes! {
    async fn a_document_of_a_mebibyte_is_shown_whole(app: TestApp) {
        let text = "가나다 ".repeat(100_000);
        let asked = Asked::new().with("context", json!({ "text": text }));
        app.register(ALICE, &asked).await.assert(201, "");
        assert_eq!(detail(&app, BOB, &asked.id).await.data()["context"]["text"], text);
        let listed = app.get(BOB, "/aura/hitl/requests").await;
        assert!(listed.text.len() < 2000, "{} bytes", listed.text.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reason_names_the_only_person_who_may_decide() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn_with(mode, Clock::System, |config: &mut Config| {
            config.policy.approvers = Approvers::Requester;
        })
        .await;
        let asked = Asked::new();
        app.register(ALICE, &asked).await.assert(201, "");
        for (who, may_decide) in [(ALICE, true), (BOB, false)] {
            let seen = detail(&app, who, &asked.id).await;
            assert_eq!(seen.data()["mayDecide"], may_decide);
            let why = seen.data()["why"].as_str().unwrap();
            assert_eq!(why, "No policy: only user123, whom this request names, may decide it.");
        }
    }
}

over_redis! {
    /// Python writes numbers that JSON does not have; they are strings here. Once decided, too.
    async fn a_request_in_redis_is_shown_before_and_after_its_decision(app: TestApp) {
        let asked = Asked::new();
        let document = asked.document.to_string().replace(
            r#""context":{"to":"a@b.c"}"#,
            r#""context":{"rate":NaN,"most":[Infinity, -Infinity],"amount":12345678901234567890.50,"text":"NaN"},"planSteps":[{"id":1}]"#,
        );
        assert!(document.contains("NaN"), "{document}");
        app.ask(&asked).await;
        app.put(&asked.id, &document).await;
        let context = r#""context":{"rate":"NaN","most":["Infinity", "-Infinity"],"amount":12345678901234567890.50,"text":"NaN"},"planSteps":[{"id":1}]"#;
        let before = detail(&app, BOB, &asked.id).await;
        assert!(before.text.contains(context), "{}", before.text);
        assert_eq!((&before.data()["status"], &before.data()["origin"]), (&json!("pending"), &json!("redis")));
        assert_eq!(before.data()["signal"], json!({ "state": "none" }));
        assert_eq!(before.data()["taskId"], Value::Null);
        assert!(before.data()["agentWaitsUntil"].is_string());
        assert_eq!(events(&before)[0], "created");
        let tag = before.headers["ETag"].clone();

        let approve = app.call(BOB, Method::POST, &format!("/aura/hitl/approve/{}", asked.id));
        let approve = approve.header("If-Match", &tag).json(&json!({ "userId": "bob" }));
        Answer::of(approve.send().await.unwrap()).await.assert(200, "");
        app.settled(&asked.id).await;
        let after = detail(&app, BOB, &asked.id).await;
        assert!(after.text.contains(context), "{}", after.text);
        assert_eq!(after.headers["ETag"], tag);
        assert_eq!(after.data()["signal"]["state"], "sent");
        assert_eq!(after.data()["signal"]["listeners"], 0);
        assert!(after.data()["signal"]["sentAt"].is_string());
        assert_eq!(events(&after), ["created", "seen", "approved", "sent"]);

        // Its agent finds the signal over HTTP.
        let poll = app.call(ALICE, Method::GET, &format!("/aura/hitl/signals/{}", asked.session));
        let poll = Answer::of(poll.header("X-DWP-Caller-Type", "AGENT").send().await.unwrap()).await;
        assert!(poll.data().is_string(), "{}", poll.text);
        eventually(async || {
            let heard = detail(&app, BOB, &asked.id).await;
            (events(&heard).last() == Some(&"heard")).then_some(())
        })
        .await;
        app.get(MALLORY, &path(&asked.id)).await.assert(404, "E1004");
        app.put(&unique("req"), "nonsense").await;
        let broken = unique("req");
        app.put(&broken, "nonsense").await;
        app.get(ALICE, &path(&broken)).await.assert(422, "E4220");
    }
}
