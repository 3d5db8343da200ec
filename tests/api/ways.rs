//! Ways to decide beside approve and reject: with other arguments, or with an answer. Only what the agent
//! said that it can handle when it registered, and never on Redis.

use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::Verdict;
use aura_hitl::domain::task::TaskStatus;
use aura_hitl::ledger::{Exported, Span};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use support::{ALICE, Answer, Asked, BOB, MALLORY, Subscriber, TestApp, Who};

const SCHEMA: &str = r##"{"type":"object","required":["to"],"properties":{"to":{"$ref":"#/$defs/mail"},
    "amount":{"type":"number","maximum":100}},"additionalProperties":false,
    "$defs":{"mail":{"type":"string","pattern":"^[^@]+@[^@]+$"}}}"##;

/// Registers a request whose agent can handle this much.
async fn registered(app: &TestApp, offer: Value) -> Asked {
    let asked = Asked::new();
    let mut body = asked.registration();
    for (field, value) in offer.as_object().unwrap() {
        body[field] = value.clone();
    }
    app.post(ALICE, "/aura/hitl/requests", body).await.assert(201, "");
    asked
}

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

async fn edit(app: &TestApp, who: Who<'_>, id: &str, arguments: Value) -> Answer {
    let body = json!({ "userId": who.user, "arguments": arguments });
    app.post(who, &format!("/api/aura/hitl/approve/{id}"), body).await
}

async fn respond(app: &TestApp, who: Who<'_>, id: &str, response: Value) -> Answer {
    let body = json!({ "userId": who.user, "response": response });
    app.post(who, &format!("/api/aura/hitl/respond/{id}"), body).await
}

async fn decision(app: &TestApp, id: &str) -> Value {
    let read = app.get(ALICE, &format!("/aura/hitl/requests/{id}/decision")).await;
    read.assert(200, "").data().clone()
}

async fn detail(app: &TestApp, id: &str) -> Value {
    let read = app.get(BOB, &format!("/aura/hitl/requests/{id}/detail")).await;
    read.assert(200, "").data().clone()
}

/// The events of a session so far, each with its data.
async fn events(app: &TestApp, session: &str) -> Vec<(String, Value)> {
    let heard = app.get(ALICE, &format!("/aura/hitl/signals/{session}/stream")).await;
    let event = |text: &str| {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let data = serde_json::from_str(field("data: ")?).unwrap();
        Some((field("event: ")?.to_owned(), data))
    };
    heard.text.split("\n\n").filter_map(event).collect()
}

/// The export's lines of the last hour.
async fn exported(app: &TestApp) -> Vec<Value> {
    let (now, hour) = (Clock::System.now(), TimeDelta::hours(1));
    let span = Span { from: now - hour, to: now + hour, undecided: false };
    let mut lines = Vec::new();
    let write = |row: &Exported| {
        lines.push(serde_json::to_value(row).unwrap());
        Ok(())
    };
    app.state.ledger.export(&span, write).await.unwrap().unwrap();
    lines
}

async fn listed(app: &TestApp, status: &str) -> Vec<String> {
    let page = app.get(BOB, &format!("/aura/hitl/requests?status={status}&size=100")).await;
    let content = page.assert(200, "").data()["content"].as_array().unwrap().clone();
    assert_eq!(page.data()["totalElements"], content.len());
    content.into_iter().map(|one| one["requestId"].as_str().unwrap().to_owned()).collect()
}

both_modes! {
    async fn what_an_agent_can_handle_is_a_part_of_its_request(app: TestApp) {
        let offer = json!({
            "decisions": ["respond", "approve", "edit"], "argumentsSchema": schema(),
            "responseSchema": { "type": "string" }, "risk": "high",
        });
        let asked = registered(&app, offer.clone()).await;
        let seen = detail(&app, &asked.id).await;
        assert_eq!(seen["decisions"], json!(["approve", "edit", "respond"]));
        assert_eq!(seen["argumentsSchema"], schema());
        assert_eq!(seen["responseSchema"], json!({ "type": "string" }));
        let page = app.get(BOB, "/aura/hitl/requests").await;
        assert_eq!(page.data()["content"][0]["decisions"], json!(["approve", "edit", "respond"]));
        // A person sees what they approve: it is in the document, and so in the ETag.
        let read = app.get(BOB, &format!("/aura/hitl/requests/{}", asked.id)).await;
        let document: Value = serde_json::from_str(read.data().as_str().unwrap()).unwrap();
        assert_eq!((&document["risk"], &document["argumentsSchema"]), (&json!("high"), &schema()));
        let plain = Asked::new();
        app.register(ALICE, &plain).await.assert(201, "");
        let seen = detail(&app, &plain.id).await;
        assert_eq!(seen["decisions"], json!(["approve", "reject"]));
        for field in ["argumentsSchema", "responseSchema", "arguments", "response"] {
            assert_eq!(seen.get(field), None, "{field}");
        }
        // The same again is the same; another offer is another request.
        let mut body = asked.registration();
        for (field, value) in offer.as_object().unwrap() {
            body[field] = value.clone();
        }
        app.post(ALICE, "/aura/hitl/requests", body.clone()).await.assert(200, "");
        body["risk"] = "critical".into();
        app.post(ALICE, "/aura/hitl/requests", body).await.assert(409, "E3008");
        // What it does not offer is refused, plain rejections too.
        app.reject(BOB, &asked.id, None).await.assert(403, "E2001");
        app.approve(BOB, &asked.id).await.assert(200, "");
    }
}

both_modes! {
    async fn what_is_no_offer_is_refused(app: TestApp) {
        let remote = json!({ "$ref": "https://example.com/schema" });
        for (field, value, why) in [
            ("decisions", json!([]), "must name one or more of approve, reject, edit and respond, each once"),
            ("decisions", json!(["approve", "approve"]), "must name one or more of approve, reject, edit and respond, each once"),
            ("decisions", json!(["delete"]), "must name one or more of approve, reject, edit and respond, each once"),
            ("decisions", json!("approve"), "must be an array"),
            ("risk", json!("huge"), "must be low, medium, high or critical"),
            ("argumentsSchema", remote.clone(), "must not refer to another document: a $ref begins with #"),
            ("responseSchema", remote, "must not refer to another document: a $ref begins with #"),
            ("responseSchema", json!({ "properties": { "a": { "$ref": "#" } } }), "must not refer back to itself"),
            ("argumentsSchema", json!({ "$id": "https://example.com/" }), "must not use $id"),
            ("argumentsSchema", json!({ "description": "가".repeat(32 * 1024) }), "may have at most 32768 bytes"),
        ] {
            let mut body = Asked::new().registration();
            body[field] = value;
            let refused = app.post(ALICE, "/aura/hitl/requests", body).await;
            assert_eq!(refused.assert(400, "E4000").data()[field], why);
        }
        for schema in [json!({ "type": "text" }), json!({ "pattern": "(?=a)" }), json!([])] {
            let mut body = Asked::new().registration();
            body["argumentsSchema"] = schema;
            let call = app.call(ALICE, Method::POST, "/aura/hitl/requests").header("Accept-Language", "ko");
            let refused = Answer::of(call.json(&body).send().await.unwrap()).await;
            assert_eq!(refused.assert(400, "E4000").data()["argumentsSchema"], "올바른 JSON 스키마가 아닙니다");
        }
    }
}

both_modes! {
    async fn an_answer_is_told_to_the_agent_and_nothing_is_approved(app: TestApp) {
        let offer = json!({
            "decisions": ["approve", "reject", "respond"],
            "responseSchema": { "type": "object", "required": ["folder"], "properties": { "folder": { "type": "string" } } },
        });
        let asked = registered(&app, offer).await;
        let wrong = respond(&app, BOB, &asked.id, json!({ "folder": 5 })).await;
        wrong.assert(400, "E4000");
        let why = wrong.data()["/response/folder"].as_str().unwrap();
        assert!(why.starts_with("does not match the agent's schema: "), "{why}");
        respond(&app, BOB, &asked.id, json!({})).await.assert(400, "E4000");
        app.post(BOB, &format!("/aura/hitl/respond/{}", asked.id), json!({ "userId": "bob" })).await.assert(400, "E4000");
        respond(&app, MALLORY, &asked.id, json!({ "folder": "a" })).await.assert(404, "E1004");
        let stale = app.call(BOB, Method::POST, &format!("/aura/hitl/respond/{}", asked.id))
            .header("If-Match", "\"other\"")
            .json(&json!({ "userId": "bob", "response": { "folder": "a" } }));
        Answer::of(stale.send().await.unwrap()).await.assert(412, "E4120");
        assert!(app.is_undecided(&asked.id).await);

        let answered = respond(&app, BOB, &asked.id, json!({ "folder": "받은 편지함" })).await;
        answered.assert(200, "");
        assert_eq!(answered.body["message"], "Request answered");
        assert_eq!(*answered.data(), json!({
            "requestId": asked.id, "sessionId": asked.session, "status": "answered",
            "response": { "folder": "받은 편지함" },
        }));
        let told = decision(&app, &asked.id).await;
        assert_eq!((&told["status"], &told["response"]), (&json!("answered"), &json!({ "folder": "받은 편지함" })));
        assert_eq!((&told["decidedBy"], told.get("arguments"), told.get("reason")), (&json!("bob"), None, None));
        let events = events(&app, &asked.session).await;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].0, "answer");
        assert_eq!(events[0].1["type"], "answer");
        assert_eq!(events[0].1["status"], "answered");
        assert_eq!(events[0].1["response"], json!({ "folder": "받은 편지함" }));
        for _time in 0..2 {
            let polled = app.poll(ALICE, &asked.session, Some(&asked.id)).await.unwrap();
            assert_eq!((&polled["type"], &polled["response"]), (&json!("answer"), &json!({ "folder": "받은 편지함" })));
        }
        let seen = detail(&app, &asked.id).await;
        assert_eq!((&seen["status"], &seen["response"]), (&json!("answered"), &json!({ "folder": "받은 편지함" })));
        assert_eq!(seen["reason"], Value::Null);
        assert_eq!(seen["history"][1]["event"], "answered");
        let read = app.get(BOB, &format!("/aura/hitl/requests/{}", asked.id)).await;
        let document: Value = serde_json::from_str(read.data().as_str().unwrap()).unwrap();
        assert_eq!((&document["status"], &document["answeredBy"]), (&json!("answered"), &json!("bob")));
        // The same again is the same; everything else comes too late.
        let again = respond(&app, BOB, &asked.id, json!({ "folder": "받은 편지함" })).await;
        assert_eq!(again.bare(), answered.bare());
        for late in [
            respond(&app, BOB, &asked.id, json!({ "folder": "other" })).await,
            app.approve(BOB, &asked.id).await,
            app.reject(BOB, &asked.id, None).await,
        ] {
            late.assert(409, "E3006");
            assert!(late.body["message"].as_str().unwrap().starts_with("Already answered by bob"), "{}", late.text);
            assert_eq!(late.data()["status"], "answered");
        }
        let rejected = registered(&app, json!({})).await;
        app.reject(BOB, &rejected.id, None).await.assert(200, "");
        assert_eq!(listed(&app, "answered").await, [asked.id.as_str()]);
        assert_eq!(listed(&app, "rejected").await, [rejected.id.as_str()]);
        assert_eq!(listed(&app, "rejected,answered").await.len(), 2);
        assert_eq!(listed(&app, "pending,answered").await, [asked.id.as_str()]);
        assert_eq!(app.task_of(&asked.id).await.status, TaskStatus::Failed);
        let lines = exported(&app).await;
        assert_eq!(
            [&lines[0]["status"], &lines[0]["reason"], &lines[0]["response"], &lines[0]["arguments"]],
            [&json!("answered"), &Value::Null, &json!(r#"{"folder":"받은 편지함"}"#), &Value::Null]
        );
        assert_eq!((&lines[1]["status"], &lines[1]["reason"]), (&json!("rejected"), &json!("User rejected")));
        // A replica of an older release does not know the column: to it this is a rejection.
        app.sql(format!("UPDATE hitl_request SET response = NULL WHERE request_id = '{}'", asked.id)).await;
        let told = decision(&app, &asked.id).await;
        assert_eq!((&told["status"], &told["reason"]), (&json!("rejected"), &json!("Answered instead")));
    }
}

both_modes! {
    async fn an_edit_is_approved_with_its_own_fingerprint(app: TestApp) {
        let offer = json!({ "decisions": ["approve", "reject", "edit"], "argumentsSchema": schema() });
        let asked = registered(&app, offer.clone()).await;
        let wrong = edit(&app, BOB, &asked.id, json!({ "to": "nobody", "amount": 500, "more": 1 })).await;
        wrong.assert(400, "E4000");
        let fields = wrong.data().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields, ["/arguments", "/arguments/amount", "/arguments/to"]);
        assert!(!wrong.text.contains("nobody"));
        for arguments in [json!([]), json!("a"), json!(1)] {
            let wrong = edit(&app, BOB, &asked.id, arguments).await;
            assert_eq!(wrong.assert(400, "E4000").data()["arguments"], "must be a JSON object");
        }
        assert!(app.is_undecided(&asked.id).await);
        // Numbers are kept as they are written.
        let body = r#"{"userId":"bob","arguments":{"to":"kim@b.c","amount":1.50}}"#;
        let call = app.call(BOB, Method::POST, &format!("/aura/hitl/approve/{}", asked.id));
        let call = call.header("Content-Type", "application/json").body(body);
        let edited = Answer::of(call.send().await.unwrap()).await;
        edited.assert(200, "");
        assert_eq!(edited.body["message"], "Request approved successfully");
        assert!(edited.text.contains(r#""arguments":{"to":"kim@b.c","amount":1.50}"#), "{}", edited.text);
        let told = decision(&app, &asked.id).await;
        assert_eq!(told["status"], "approved");
        assert_eq!(told["arguments"], json!({ "to": "kim@b.c", "amount": 1.5 }));
        let before = app.record(&asked.id).await;
        assert_eq!(told["requestedFingerprint"], before.fingerprint);
        // The fingerprint is that of a request which asks for just this.
        let same = Asked::new();
        let mut body = same.registration();
        body["context"] = json!({});
        let body = body.to_string().replace(r#""context":{}"#, r#""context":{"amount":1.50,"to":"kim@b.c"}"#);
        let call = app.call(ALICE, Method::POST, "/aura/hitl/requests").header("Content-Type", "application/json");
        let same = Answer::of(call.body(body).send().await.unwrap()).await;
        assert_eq!(told["fingerprint"], same.assert(201, "").data()["fingerprint"]);
        assert_ne!(told["fingerprint"], told["requestedFingerprint"]);
        let (kind, event) = events(&app, &asked.session).await.remove(0);
        assert_eq!((kind.as_str(), &event["arguments"]), ("approval", &told["arguments"]));
        assert_eq!((&event["fingerprint"], &event["requestedFingerprint"]), (&told["fingerprint"], &told["requestedFingerprint"]));
        for _time in 0..2 {
            let polled = app.poll(ALICE, &asked.session, Some(&asked.id)).await.unwrap();
            assert_eq!((&polled["type"], &polled["arguments"]), (&json!("approval"), &told["arguments"]));
            assert_eq!(polled["fingerprint"], told["fingerprint"]);
        }
        // Both texts are kept.
        let seen = detail(&app, &asked.id).await;
        assert_eq!((&seen["context"], &seen["arguments"]), (&json!({ "to": "a@b.c" }), &told["arguments"]));
        assert_eq!(seen["history"][1]["event"], "edited");
        let verdict = app.record(&asked.id).await.state.decision().unwrap().verdict.clone();
        assert_eq!(verdict, Verdict::Edit { arguments: r#"{"to":"kim@b.c","amount":1.50}"#.to_owned() });
        assert_eq!(listed(&app, "approved").await, [asked.id.as_str()]);
        let line = exported(&app).await.remove(0);
        assert_eq!((&line["status"], &line["arguments"]), (&json!("approved"), &json!(r#"{"to":"kim@b.c","amount":1.50}"#)));
        assert_eq!(line["fingerprint"], before.fingerprint);
        assert_eq!(app.task_of(&asked.id).await.status, TaskStatus::InProgress);
        // A plain approval is another decision.
        app.approve(BOB, &asked.id).await.assert(409, "E3006");
        edit(&app, BOB, &asked.id, json!({ "to": "lee@b.c" })).await.assert(409, "E3006");
        let plain = registered(&app, offer).await;
        app.approve(BOB, &plain.id).await.assert(200, "");
        edit(&app, BOB, &plain.id, json!({ "to": "kim@b.c" })).await.assert(409, "E3006");
        let told = decision(&app, &plain.id).await;
        assert_eq!((told.get("arguments"), &told["fingerprint"]), (None, &told["requestedFingerprint"]));
    }
}

both_modes! {
    async fn what_an_agent_cannot_handle_is_not_decided(app: TestApp) {
        let plain = Asked::new();
        app.register(ALICE, &plain).await.assert(201, "");
        let only_answers = registered(&app, json!({ "decisions": ["respond"] })).await;
        for answer in [
            edit(&app, BOB, &plain.id, json!({ "to": "kim@b.c" })).await,
            respond(&app, BOB, &plain.id, json!("no")).await,
            app.approve(BOB, &only_answers.id).await,
            app.reject(BOB, &only_answers.id, None).await,
            edit(&app, BOB, &only_answers.id, json!({})).await,
        ] {
            answer.assert(403, "E2001");
            assert!(answer.body["message"].as_str().unwrap().contains("its agent does not take such a decision"));
        }
        let bulk = json!({ "userId": "bob", "decisions": [{ "requestId": only_answers.id, "decision": "approve" }] });
        let bulk = app.post(BOB, "/aura/hitl/decisions", bulk).await;
        assert_eq!(bulk.data()["results"][0]["status"], 403);
        for asked in [&plain, &only_answers] {
            assert!(app.is_undecided(&asked.id).await);
        }
        // Any JSON answers, null too; without a schema it is not looked at.
        respond(&app, BOB, &only_answers.id, Value::Null).await.assert(200, "");
        assert_eq!(decision(&app, &only_answers.id).await.get("response"), Some(&Value::Null));
    }
}

over_redis! {
    async fn an_agent_on_redis_is_sent_approvals_and_rejections_only(app: TestApp) {
        let asked = Asked::new()
            .with("decisions", json!(["approve", "reject", "edit", "respond"]))
            .with("argumentsSchema", json!({ "type": "string" }));
        app.ask(&asked).await;
        let mut agent = Subscriber::on(&asked.session).await;
        edit(&app, ALICE, &asked.id, json!({ "to": "kim@b.c" })).await.assert(403, "E2001");
        respond(&app, ALICE, &asked.id, json!("no")).await.assert(403, "E2001");
        assert_eq!(detail(&app, &asked.id).await["decisions"], json!(["approve", "reject"]));
        let registered = registered(&app, json!({ "decisions": ["respond", "edit"] })).await;
        respond(&app, ALICE, &registered.id, json!("later")).await.assert(200, "");
        app.approve(ALICE, &asked.id).await.assert(200, "");
        let first: Value = serde_json::from_str(&agent.next().await).unwrap();
        assert_eq!((&first["type"], first.as_object().unwrap().len()), (&json!("approval"), 4));
        assert_eq!(app.signal(&registered.session).await, None);
    }
}
