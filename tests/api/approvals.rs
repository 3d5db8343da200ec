//! Approve and reject: who may, what it leaves behind, and what everybody is told.

use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::request::ApprovalRequest;
use aura_hitl::domain::rules::{Approvers, UnscopedRequests};
use aura_hitl::domain::task::TaskStatus;
use futures_util::future::join_all;
use redis::AsyncCommands as _;
use reqwest::Method;
use serde_json::{Value, json};
use support::{
    ALICE, Answer, Asked, BOB, MALLORY, Mode, Subscriber, TestApp, Who, eventually, redis, unique,
    until_there_is_room,
};

const PREFIXES: [&str; 2] = ["/api/aura/hitl", "/aura/hitl"];
const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];

/// A request that has been asked.
async fn asked(app: &TestApp) -> Asked {
    let asked = Asked::new();
    app.ask(&asked).await;
    asked
}

over_redis! {
    async fn an_approval_is_recorded_signalled_and_leaves_a_task(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let answer = app.approve(ALICE, &asked.id).await;
        answer.assert(200, "");
        assert_eq!(answer.body["message"], "Request approved successfully");
        assert_eq!(
            *answer.data(),
            json!({ "requestId": asked.id, "sessionId": asked.session, "status": "approved" })
        );
        assert!(app.signal(&asked.session).await.unwrap().contains("\"approval\""));
        assert_eq!(app.task_of(&asked.id).await.task_type, "send_email");
        eventually(async || {
            let record = app.record(&asked.id).await;
            (record.delivery == aura_hitl::domain::record::Delivery::Sent).then_some(())
        })
        .await;
    }
}

over_redis! {
    async fn both_prefixes_decide_and_show_what_was_decided(app: TestApp) {
        for (prefix, verb) in PREFIXES.iter().flat_map(|p| [(p, "approve"), (p, "reject")]) {
            let Asked { id, session, .. } = asked(&app).await;
            let mut subscriber = Subscriber::on(&session).await;
            let body = json!({ "userId": "user123", "reason": "사용자 거절 \"no\"" });
            let answer = app.post(ALICE, &format!("{prefix}/{verb}/{id}"), body).await;
            let State::Decided(decision) = app.record(&id).await.state else { panic!("undecided") };
            let (seconds, millis) = (decision.at.timestamp(), decision.at.timestamp_millis());
            let mut document = Asked::in_session(&session).with("requestId", json!(id)).document;
            let (message, data, signal) = if verb == "approve" {
                document["status"] = "approved".into();
                document["approvedBy"] = "user123".into();
                document["approvedAt"] = millis.into();
                (
                    "Request approved successfully",
                    json!({ "requestId": id, "sessionId": session, "status": "approved" }),
                    format!(
                        r#"{{"type":"approval","requestId":"{id}","status":"approved","timestamp":{seconds}}}"#
                    ),
                )
            } else {
                let reason = "사용자 거절 \"no\"";
                document["status"] = "rejected".into();
                document["rejectedBy"] = "user123".into();
                document["rejectedAt"] = millis.into();
                document["reason"] = reason.into();
                (
                    "Request rejected",
                    json!({ "requestId": id, "sessionId": session, "status": "rejected", "reason": reason }),
                    format!(
                        r#"{{"type":"rejection","requestId":"{id}","status":"rejected","reason":"사용자 거절 \"no\"","timestamp":{seconds}}}"#
                    ),
                )
            };
            answer.assert(200, "");
            assert_eq!(answer.body["message"], message);
            assert_eq!(*answer.data(), data);
            assert_eq!(subscriber.heard().await, std::slice::from_ref(&signal));
            assert_eq!(app.signal(&session).await.unwrap(), signal);
            let as_json = |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();
            let read = app.get(ALICE, &format!("{prefix}/requests/{id}")).await;
            assert_eq!(read.assert(200, "").body["message"], "Approval request retrieved");
            assert_eq!(as_json(read.data()), document);
            let polled = app.get(ALICE, &format!("{prefix}/signals/{session}")).await;
            assert_eq!(polled.assert(200, "").body["message"], "Signal retrieved");
            assert_eq!(*polled.data(), json!(signal));
        }
    }
}

over_redis! {
    async fn a_rejection_without_a_reason_says_user_rejected(app: TestApp) {
        for reason in [Value::Null, json!(""), json!("  ")] {
            let Asked { id, session, .. } = asked(&app).await;
            let body = json!({ "userId": "user123", "reason": reason });
            let answer = app.post(ALICE, &format!("/aura/hitl/reject/{id}"), body).await;
            assert_eq!(answer.assert(200, "").data()["reason"], "User rejected");
            let signal: Value = serde_json::from_str(&app.signal(&session).await.unwrap()).unwrap();
            assert_eq!(signal["reason"], "User rejected");
        }
    }
}

over_redis! {
    async fn the_same_decision_again_gets_the_same_answer_and_signals_nothing(app: TestApp) {
        let Asked { id, session, .. } = asked(&app).await;
        let mut subscriber = Subscriber::on(&session).await;
        let first = app.reject(ALICE, &id, Some("not today")).await;
        first.assert(200, "");
        app.settled(&id).await;
        let owed_since = app.record(&id).await.owed_since;
        for other_reason in [Some("not today"), Some("never"), None] {
            assert_eq!(app.reject(ALICE, &id, other_reason).await.bare(), first.bare());
        }
        assert_eq!(subscriber.heard().await.len(), 1);
        assert_eq!(app.record(&id).await.owed_since, owed_since);
        assert_eq!(app.tasks("tenant1").await.len(), 1);
    }
}

over_redis! {
    async fn any_other_second_decision_is_told_which_one_stands(app: TestApp) {
        let Asked { id, session, .. } = asked(&app).await;
        let mut subscriber = Subscriber::on(&session).await;
        app.reject(ALICE, &id, Some("아니요")).await.assert(200, "");
        let State::Decided(standing) = app.record(&id).await.state else { panic!("undecided") };
        let data = json!({
            "requestId": id, "sessionId": session, "status": "rejected", "reason": "아니요",
            "decidedBy": "user123", "decidedAt": standing.at.format("%Y-%m-%dT%H:%M:%S").to_string(),
        });
        for answer in [
            app.approve(ALICE, &id).await,
            app.approve(BOB, &id).await,
            app.reject(BOB, &id, Some("아니요")).await,
        ] {
            assert_eq!(*answer.assert(409, "E3006").data(), data);
        }
        assert_eq!(subscriber.heard().await.len(), 1);
        assert_eq!(app.record(&id).await.state, State::Decided(standing));
        assert_eq!(app.task_of(&id).await.status, TaskStatus::Failed);
    }
}

/// What a stranger is told about a request in every call there is.
async fn told(app: &TestApp, who: Who<'_>, id: &str) -> Vec<(u16, Value)> {
    [
        app.approve(who, id).await,
        app.reject(who, id, None).await,
        app.get(who, &format!("/aura/hitl/requests/{id}")).await,
    ]
    .iter()
    .map(|answer| (answer.status.as_u16(), answer.bare()))
    .collect()
}

over_redis! {
    async fn another_tenants_request_is_answered_as_one_that_does_not_exist(app: TestApp) {
        let unknown = told(&app, MALLORY, &unique("req")).await;
        assert!(unknown.iter().all(|(status, body)| *status == 404 && body["errorCode"] == "E1004"));
        let Asked { id, session, .. } = asked(&app).await;
        assert_eq!(told(&app, MALLORY, &id).await, unknown, "pending");
        assert!(app.is_unrecorded(&id).await);
        app.approve(ALICE, &id).await.assert(200, "");
        assert_eq!(told(&app, MALLORY, &id).await, unknown, "decided");
        assert_eq!(app.poll(MALLORY, &session, None).await, None);
        assert_eq!(app.poll(MALLORY, &session, Some(&id)).await, None);

        let moved_on = asked(&app).await;
        app.ask(&Asked::in_session(&moved_on.session)).await;
        assert_eq!(told(&app, MALLORY, &moved_on.id).await, unknown, "moved on");
        let broken = asked(&app).await;
        app.put(&broken.id, r#"{"tenantId":"tenant1","status":"pending"}"#).await;
        assert_eq!(told(&app, MALLORY, &broken.id).await, unknown, "unreadable");
        let of_its_session = Asked::new().with("tenantId", Value::Null).with("userId", Value::Null);
        app.ask(&of_its_session).await;
        assert_eq!(told(&app, MALLORY, &of_its_session.id).await, unknown, "by its session");
        let registered = json!({ "sessionId": session, "actionType": "send_email" });
        let registered = app.post(ALICE, "/aura/hitl/requests", registered).await;
        let registered = registered.data()["requestId"].as_str().unwrap();
        assert_eq!(told(&app, MALLORY, registered).await, unknown, "registered");
        let names_her = Asked::new().with("userId", json!("mallory"));
        app.ask(&names_her).await;
        assert_eq!(told(&app, MALLORY, &names_her.id).await, unknown, "names her, other tenant");
    }
}

both_modes! {
    async fn a_request_without_a_tenant_is_its_sessions_tenants(app: TestApp) {
        let request = Asked::new().with("tenantId", Value::Null).with("userId", json!("mallory"));
        app.ask(&request).await;
        app.approve(MALLORY, &request.id).await.assert(404, "E1004");
        app.approve(BOB, &request.id).await.assert(200, "");
        assert_eq!(app.record(&request.id).await.tenant.as_str(), "tenant1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_names_nobody_exists_only_where_the_setting_accepts_it() {
    for setting in [UnscopedRequests::Refuse, UnscopedRequests::Accept] {
        let adjust = |config: &mut aura_hitl::config::Config| {
            config.policy.unscoped_requests = setting;
        };
        let app = TestApp::spawn_with(Mode::Production, Clock::System, adjust).await;
        let (id, session) = (unique("req"), unique("session"));
        app.put(&id, &format!(r#"{{"sessionId":"{session}"}}"#)).await;
        let answer = app.approve(BOB, &id).await;
        if setting == UnscopedRequests::Accept {
            answer.assert(200, "");
            assert_eq!(app.record(&id).await.tenant.as_str(), "tenant1");
            app.approve(MALLORY, &id).await.assert(404, "E1004");
        } else {
            assert_eq!(answer.bare(), app.approve(BOB, &unique("req")).await.bare());
            assert!(app.is_unrecorded(&id).await);
        }
    }
}

/// User ids of two tenants may be equal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_no_tenant_is_nobodys_even_if_it_names_the_caller() {
    let namesake = Who { tenant: "tenant2", ..ALICE };
    {
        let mode = Mode::Production;
        for setting in [UnscopedRequests::Refuse, UnscopedRequests::Accept] {
            let adjust = |config: &mut aura_hitl::config::Config| {
                config.policy.unscoped_requests = setting;
            };
            let app = TestApp::spawn_with(mode, Clock::System, adjust).await;
            let asked = Asked::new().with("tenantId", Value::Null);
            app.put(&asked.id, &asked.document.to_string()).await;
            app.point(&asked.session, &asked.id).await;
            let path = format!("/aura/hitl/requests/{}", asked.id);
            for who in [ALICE, namesake, BOB] {
                let is_seen = setting == UnscopedRequests::Accept && who.user == ALICE.user;
                let (status, code) = if is_seen { (200, "") } else { (404, "E1004") };
                app.get(who, &path).await.assert(status, code);
                app.get(who, &format!("{path}/decision")).await.assert(status, code);
            }
            app.approve(BOB, &asked.id).await.assert(404, "E1004");
            let (status, code) =
                if setting == UnscopedRequests::Accept { (200, "") } else { (404, "E1004") };
            app.approve(namesake, &asked.id).await.assert(status, code);
        }
        // Its session's tenant is its own.
        let app = TestApp::spawn(mode).await;
        let asked = Asked::new().with("tenantId", Value::Null).with("userId", Value::Null);
        app.ask(&asked).await;
        app.approve(namesake, &asked.id).await.assert(404, "E1004");
        app.approve(ALICE, &asked.id).await.assert(200, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_the_requester_policy_only_the_named_user_decides() {
    for mode in MODES {
        let adjust = |config: &mut aura_hitl::config::Config| {
            config.policy.approvers = Approvers::Requester;
        };
        let app = TestApp::spawn_with(mode, Clock::System, adjust).await;
        let Asked { id, .. } = asked(&app).await;
        app.approve(BOB, &id).await.assert(403, "E2001");
        app.approve(MALLORY, &id).await.assert(404, "E1004");
        assert!(app.is_undecided(&id).await);
        app.approve(ALICE, &id).await.assert(200, "");
        if mode == Mode::Embedded {
            continue; // Whoever registers is named.
        }
        let names_nobody = Asked::new().with("userId", Value::Null);
        app.ask(&names_nobody).await;
        // It is the user's whom its session names, if that names one.
        app.approve(BOB, &names_nobody.id).await.assert(403, "E2001");
        app.point(&names_nobody.session, &names_nobody.id).await;
        app.approve(BOB, &names_nobody.id).await.assert(200, "");
        let names_nobody = Asked::new().with("userId", Value::Null);
        app.ask(&names_nobody).await;
        app.approve(ALICE, &names_nobody.id).await.assert(200, "");
        assert_eq!(app.record(&names_nobody.id).await.user.unwrap().as_str(), "user123");
    }
}

over_redis! {
    async fn a_caller_that_says_it_is_an_agent_never_decides(app: TestApp) {
        let Asked { id, session, .. } = asked(&app).await;
        let with = async |verb: &str, name: &str, value: &str| {
            let call = app.call(ALICE, Method::POST, &format!("/aura/hitl/{verb}/{id}"));
            let call = call.header(name, value).json(&json!({ "userId": "user123" }));
            Answer::of(call.send().await.unwrap()).await
        };
        for verb in ["approve", "reject"] {
            for (name, value) in [
                ("X-DWP-Caller-Type", "AGENT"),
                ("X-DWP-Caller-Type", "agent"),
                ("X-DWP-Source", "AURA"),
            ] {
                with(verb, name, value).await.assert(403, "E2001");
            }
            with(verb, "X-DWP-Source", "FRONTEND, AURA").await.assert(400, "E4001");
        }
        assert!(app.is_unrecorded(&id).await);
        assert_eq!(app.signal(&session).await, None);
        with("approve", "X-DWP-Source", "FRONTEND").await.assert(200, "");
    }
}

over_redis! {
    async fn people_whose_names_are_not_ascii_decide_too(app: TestApp) {
        let who = Who { user: "김철수@corp.example", ..ALICE };
        let Asked { id, .. } = asked(&app).await;
        let call = app.client.post(format!("{}/aura/hitl/approve/{id}", app.base));
        let call = call.bearer_auth(app.token(who.user, who.tenant, who.role));
        let call = call.header("X-Tenant-ID", who.tenant).header("X-User-ID", who.user.as_bytes());
        let answer = call.json(&json!({ "userId": who.user })).send().await.unwrap();
        Answer::of(answer).await.assert(200, "");
        assert!(app.stored(&id).await.document.contains(r#""approvedBy":"김철수@corp.example""#));
    }
}

both_modes! {
    async fn the_bodys_user_must_be_the_tokens(app: TestApp) {
        let Asked { id, .. } = asked(&app).await;
        for verb in ["approve", "reject"] {
            let path = format!("/api/aura/hitl/{verb}/{id}");
            app.post(ALICE, &path, json!({ "userId": "bob" })).await.assert(403, "E2001");
            app.post(ALICE, &path, json!({ "userId": "" })).await.assert(403, "E2001");
            app.post(ALICE, &path, json!({})).await.assert(400, "E4000");
        }
        assert!(app.is_undecided(&id).await);
    }
}

/// Makes a task as an agent does, and starts it.
async fn started_task(app: &TestApp, who: Who<'_>) -> String {
    let body = json!({ "taskType": "mail", "userId": who.user, "tenantId": who.tenant });
    let task = app.post(who, "/main/agent/tasks", body).await;
    let id = task.assert(201, "").data()["taskId"].as_str().unwrap().to_owned();
    app.post(who, &format!("/main/agent/tasks/{id}/start"), json!({})).await.assert(200, "");
    id
}

both_modes! {
    async fn a_task_that_its_agent_keeps_goes_on_whatever_is_decided(app: TestApp) {
        for reason in [None, Some("위험")] {
            let task = started_task(&app, ALICE).await;
            let request = Asked::new().with("taskId", json!(task));
            app.ask(&request).await;
            match reason {
                None => app.approve(BOB, &request.id).await.assert(200, "").data().clone(),
                reason => app.reject(BOB, &request.id, reason).await.assert(200, "").data().clone(),
            };
            let kept = app.task_of(&request.id).await;
            assert_eq!((kept.id.as_str(), kept.status), (task.as_str(), TaskStatus::InProgress));
            assert_eq!((kept.task_type.as_str(), kept.user.as_str()), ("mail", "user123"));
            assert_eq!(kept.hitl_request_id.unwrap().as_str(), request.id);
            assert_eq!(kept.error_message.as_deref(), reason.map(|_| "Rejected by bob: 위험"));
        }
        assert_eq!(app.tasks("tenant1").await.len(), 2);
    }
}

both_modes! {
    async fn a_row_that_we_made_fails_on_a_rejection_and_goes_on_after_an_approval(app: TestApp) {
        for (task, rejected) in [(None, true), (Some(unique("own")), true), (None, false)] {
            let request = Asked::new().with("taskId", json!(task));
            app.ask(&request).await;
            let answer = if rejected {
                app.reject(ALICE, &request.id, None).await
            } else {
                app.approve(ALICE, &request.id).await
            };
            answer.assert(200, "");
            let made = app.task_of(&request.id).await;
            assert_eq!(made.input_data.as_deref(), Some(r#"{"to":"a@b.c"}"#));
            assert_eq!((made.task_type.as_str(), made.user.as_str()), ("send_email", "user123"));
            assert_eq!(made.hitl_request_id.as_ref().unwrap().as_str(), request.id);
            assert!(task.is_none_or(|task| made.id.as_str() == task));
            let outcome = (made.status, made.error_message.as_deref());
            if rejected {
                assert_eq!(outcome, (TaskStatus::Failed, Some("Rejected by user123: User rejected")));
            } else {
                assert_eq!(outcome, (TaskStatus::InProgress, None));
            }
        }
    }
}

both_modes! {
    async fn a_row_that_we_made_stays_ours_for_the_next_request_and_is_not_reused_once_it_failed(app: TestApp) {
        let name = unique("task");
        let ask = async |verdict: &str| {
            let asked = Asked::new().with("taskId", name.clone().into());
            app.ask(&asked).await;
            let answer = match verdict {
                "approve" => app.approve(ALICE, &asked.id).await,
                _ => app.reject(ALICE, &asked.id, None).await,
            };
            answer.assert(200, "");
            app.task_of(&asked.id).await
        };
        let first = ask("approve").await;
        assert_eq!((first.id.as_str(), first.status), (name.as_str(), TaskStatus::InProgress));
        let second = ask("reject").await;
        assert_eq!((second.id.as_str(), second.status), (name.as_str(), TaskStatus::Failed));
        let third = ask("approve").await;
        assert_ne!(third.id, first.id);
        assert_eq!((third.status, third.error_message), (TaskStatus::InProgress, None));
    }
}

both_modes! {
    async fn two_tenants_that_name_one_new_task_at_once_each_get_a_row(app: TestApp) {
        for _round in 0..15 {
            let name = unique("task");
            let [ours, theirs] = ["tenant1", "tenant2"].map(|tenant| {
                Asked::new().with("taskId", name.clone().into()).with("tenantId", tenant.into())
            });
            app.register(ALICE, &ours).await.assert(201, "");
            app.register(MALLORY, &theirs).await.assert(201, "");
            let (one, two) = tokio::join!(app.approve(ALICE, &ours.id), app.approve(MALLORY, &theirs.id));
            one.assert(200, "");
            two.assert(200, "");
            for (asked, tenant) in [(&ours, "tenant1"), (&theirs, "tenant2")] {
                let task = app.task_of(&asked.id).await;
                assert_eq!(task.tenant.as_str(), tenant);
                assert_eq!(task.hitl_request_id.unwrap().as_str(), asked.id);
            }
        }
    }
}

both_modes! {
    async fn a_task_that_already_carries_the_requests_id_is_its_row(app: TestApp) {
        let task = started_task(&app, ALICE).await;
        app.sql("UPDATE agent_task SET hitl_request_id = 'req_3f2a9c0d1e4b'").await;
        let request = Asked::new().with("requestId", json!("req_3f2a9c0d1e4b"));
        let request = Asked { id: "req_3f2a9c0d1e4b".to_owned(), ..request };
        app.ask(&request).await;
        app.reject(ALICE, &request.id, None).await.assert(200, "");
        let row = app.task_of(&request.id).await;
        assert_eq!((row.id.as_str(), row.status), (task.as_str(), TaskStatus::InProgress));
        assert_eq!(app.tasks("tenant1").await.len(), 1);
    }
}

over_redis! {
    async fn tasks_that_are_over_or_of_another_tenant_are_left_alone(app: TestApp) {
        let over = started_task(&app, ALICE).await;
        app.post(ALICE, &format!("/main/agent/tasks/{over}/complete"), json!({})).await;
        let request = Asked::new().with("taskId", json!(over));
        app.ask(&request).await;
        app.reject(ALICE, &request.id, None).await.assert(200, "");
        assert_eq!(app.task_of(&request.id).await.status, TaskStatus::Completed);

        let theirs = started_task(&app, MALLORY).await;
        let before = app.tasks("tenant2").await;
        let request = Asked::new().with("taskId", json!(theirs));
        app.ask(&request).await;
        app.reject(ALICE, &request.id, None).await.assert(200, "");
        let row = app.task_of(&request.id).await;
        assert_eq!((row.tenant.as_str(), row.status), ("tenant1", TaskStatus::Failed));
        assert_eq!(app.tasks("tenant2").await, before);
    }
}

over_redis! {
    async fn the_plan_is_taken_from_wherever_the_request_has_it(app: TestApp) {
        for (field, value, plan) in [
            ("planSteps", json!([{ "id": "a", "x": 1 }]), r#"[{"id":"a","x":1}]"#),
            ("planSteps", json!(r#"[{"stepId":"b"}]"#), r#"[{"stepId":"b"}]"#),
            ("context", json!({ "planSteps": [{ "id": "c" }] }), r#"[{"id":"c"}]"#),
            ("context", json!({ "planSteps": "[1]" }), "[1]"),
            ("planSteps", json!("no plan"), "[]"),
            ("context", Value::Null, "[]"),
        ] {
            let request = Asked::new().with(field, value);
            app.ask(&request).await;
            app.approve(ALICE, &request.id).await.assert(200, "");
            assert_eq!(app.task_of(&request.id).await.plan_steps, plan);
        }
    }
}

over_redis! {
    async fn ids_that_are_integers_stand_for_their_digits(app: TestApp) {
        let who = Who { user: "42", tenant: "7", ..ALICE };
        let request = Asked::new()
            .with("userId", json!(42)).with("tenantId", json!(7)).with("taskId", json!(99));
        app.ask(&request).await;
        app.approve(ALICE, &request.id).await.assert(404, "E1004");
        app.approve(who, &request.id).await.assert(200, "");
        let record = app.record(&request.id).await;
        assert_eq!((record.tenant.as_str(), record.task.as_str()), ("7", "99"));
        assert_eq!(record.user.unwrap().as_str(), "42");
        assert_eq!(app.stored(&request.id).await.document.matches("\"userId\":42,").count(), 1);

        let of_its_session = Asked::new().with("tenantId", Value::Null);
        app.ask(&of_its_session).await;
        app.point(&of_its_session.session, &json!({ "tenantId": 7 }).to_string()).await;
        app.approve(ALICE, &of_its_session.id).await.assert(404, "E1004");
        app.approve(who, &of_its_session.id).await.assert(200, "");
    }
}

over_redis! {
    async fn rewriting_a_request_keeps_unknown_fields_and_numbers_to_the_letter(app: TestApp) {
        let (id, session) = (unique("req"), unique("session"));
        let fields = format!(
            r#""requestId":"{id}","sessionId":"{session}","ratio":1.10,"createdAt":12345678901234567890123,"e":1e400,"k":{{"b":1,"a":"\u00e9 \udcff \u0000 값"}},"deep":{}{}"#,
            "[".repeat(3000),
            "]".repeat(3000),
        );
        app.put(&id, &format!(r#"{{{fields},"status":"pending","tenantId":"tenant1"}}"#)).await;
        app.reject(ALICE, &id, Some("값")).await.assert(200, "");
        let State::Decided(decision) = app.record(&id).await.state else { panic!("undecided") };
        let rewritten = format!(
            r#"{{{fields},"status":"rejected","tenantId":"tenant1","rejectedBy":"user123","rejectedAt":{},"reason":"값"}}"#,
            decision.at.timestamp_millis()
        );
        assert_eq!(app.stored(&id).await.document, rewritten);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decided_request_lives_1800_seconds_again_and_its_signal_300() {
    let app = TestApp::spawn(Mode::Production).await;
    let Asked { id, session, .. } = asked(&app).await;
    let mut redis = redis().await;
    let request = format!("hitl:request:{id}");
    redis.expire::<_, ()>(&request, 700).await.unwrap();
    app.approve(ALICE, &id).await.assert(200, "");
    let left: i64 = redis.ttl(&request).await.unwrap();
    assert!((1700..=1800).contains(&left), "{left}");
    let left: i64 = redis.ttl(format!("hitl:signal:{session}")).await.unwrap();
    assert!((200..=300).contains(&left), "{left}");
}

over_redis! {
    async fn a_request_that_cannot_be_read_is_422_and_stays_undecided(app: TestApp) {
        for document in [
            "", "nonsense", "[1]", "\"text\"", "null", "{", "{}", r#"{"status":"pending"}"#,
            r#"{"sessionId":null}"#, r#"{"sessionId":"a b"}"#, r#"{"sessionId":"s","userId":[]}"#,
            r#"{"sessionId":"s","requestId":"req_another"}"#, r#"{"sessionId":"s","context":nan}"#,
            r#"{"sessionId":"s","context":{"to":"a","to":"b"}}"#, r#"{"sessionId":"s","userId":"user123","userId":"bob"}"#,
        ] {
            let id = unique("req");
            app.put(&id, document).await;
            for answer in [app.approve(ALICE, &id).await, app.reject(ALICE, &id, None).await] {
                assert!(answer.assert(422, "E4220").text.contains("ask again"), "{document}");
            }
            assert!(app.is_unrecorded(&id).await, "{document}");
            assert_eq!(app.stored(&id).await.document, document);
        }
        assert!(app.tasks("tenant1").await.is_empty());
    }
}

over_redis! {
    /// Whose it is may stand in its session alone.
    async fn a_foreign_request_that_cannot_be_read_looks_like_none(app: TestApp) {
        for scoped_by_session in [false, true] {
            let (id, session) = (unique("req"), unique("session"));
            let mut document = json!({ "sessionId": session, "actionType": 5 });
            let mut pointer = json!({ "requestId": id });
            let scoped = if scoped_by_session { &mut pointer } else { &mut document };
            scoped["tenantId"] = json!("tenant1");
            app.put(&id, &document.to_string()).await;
            app.point(&session, &pointer.to_string()).await;
            app.approve(ALICE, &id).await.assert(422, "E4220");
            app.approve(MALLORY, &unique("req")).await.assert(404, "E1004");
            app.approve(MALLORY, &id).await.assert(404, "E1004");
        }
    }
}

over_redis! {
    /// In the row that admins look at, a reason begins no line and hides nothing; agents and callers
    /// get it as it was given.
    async fn a_reason_is_escaped_where_people_read_it_among_other_text(app: TestApp) {
        let Asked { id, session, .. } = asked(&app).await;
        let reason = "no\n\u{1b}[2Kapproved \u{202e}dorp\u{200b}";
        let answer = app.reject(ALICE, &id, Some(reason)).await;
        assert_eq!(answer.assert(200, "").data()["reason"], reason);
        app.settled(&id).await;
        let signal: Value = serde_json::from_str(&app.signal(&session).await.unwrap()).unwrap();
        assert_eq!(signal["reason"], reason);
        let said = app.task_of(&id).await.error_message.unwrap();
        assert_eq!(said, "Rejected by user123: no\\n\\u{1b}[2Kapproved \\u{202e}dorp\\u{200b}");
    }
}

over_redis! {
    async fn a_tasks_type_has_at_most_200_characters(app: TestApp) {
        let action = "행동".repeat(150);
        let asked = Asked::new().with("actionType", json!(action));
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        assert_eq!(app.task_of(&asked.id).await.task_type, "행동".repeat(100));
        assert!(app.record(&asked.id).await.document.contains(&action));
    }
}

over_redis! {
    /// Python's json writes these words bare, and nothing else reads them.
    async fn what_python_writes_for_numbers_that_are_none_is_decided_and_kept(app: TestApp) {
        for verb in ["approve", "reject"] {
            let asked = Asked::new();
            let context = r#"{"ratio":NaN,"range":[-Infinity, Infinity],"text":"NaN"}"#;
            let plan = r#"[{"id":"a","confidence":NaN}]"#;
            let document = asked.document.to_string();
            let (kept, _) = document.rsplit_once('}').unwrap();
            let document = kept.replace(r#"{"to":"a@b.c"}"#, context) + r#","planSteps":"# + plan + r#","score":NaN}"#;
            app.ask(&asked).await;
            app.put(&asked.id, &document).await;
            let shown = app.get(ALICE, &format!("/aura/hitl/requests/{}", asked.id)).await;
            assert_eq!(shown.assert(200, "").data().as_str(), Some(document.as_str()));
            let answer = if verb == "approve" { app.approve(ALICE, &asked.id).await } else { app.reject(ALICE, &asked.id, None).await };
            answer.assert(200, "");
            app.settled(&asked.id).await;
            let stored = app.stored(&asked.id).await.document;
            assert!(stored.contains(context) && stored.contains(plan) && stored.contains(r#""score":NaN"#), "{stored}");
            assert_eq!(app.record(&asked.id).await.document, document);
            let shown = app.get(ALICE, &format!("/aura/hitl/requests/{}", asked.id)).await;
            assert!(shown.assert(200, "").data().as_str().unwrap().contains(context), "{}", shown.text);
            // What admins query is JSON to every database.
            let task = app.task_of(&asked.id).await;
            let input: Value = serde_json::from_str(task.input_data.as_deref().unwrap()).unwrap();
            assert_eq!(input, json!({ "ratio": "NaN", "range": ["-Infinity", "Infinity"], "text": "NaN" }));
            assert_eq!(task.plan_steps, r#"[{"id":"a","confidence":"NaN"}]"#);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_key_that_holds_no_text_is_422_and_left_alone() {
    let app = TestApp::spawn(Mode::Production).await;
    let mut redis = redis().await;
    let (list, bytes) = (unique("req"), unique("req"));
    redis.rpush::<_, _, ()>(format!("hitl:request:{list}"), "{}").await.unwrap();
    let not_utf8 = b"{\"sessionId\":\"s\",\"x\":\"\xff\xfe\"}".as_slice();
    redis.set::<_, _, ()>(format!("hitl:request:{bytes}"), not_utf8).await.unwrap();
    for id in [&list, &bytes] {
        app.approve(ALICE, id).await.assert(422, "E4220");
        app.reject(ALICE, id, None).await.assert(422, "E4220");
        app.get(ALICE, &format!("/aura/hitl/requests/{id}")).await.assert(422, "E4220");
        assert!(app.is_unrecorded(id).await);
    }
    assert_eq!(redis.llen::<_, i64>(format!("hitl:request:{list}")).await.unwrap(), 1);
    let kept: Vec<u8> = redis.get(format!("hitl:request:{bytes}")).await.unwrap();
    assert_eq!(kept, not_utf8);

    // A session key of another type names something that no request can be.
    let Asked { id, session, .. } = asked(&app).await;
    let key = format!("hitl:session:{session}");
    redis.del::<_, ()>(&key).await.unwrap();
    redis.rpush::<_, _, ()>(&key, &id).await.unwrap();
    app.approve(ALICE, &id).await.assert(410, "E3007");
    assert!(app.is_unrecorded(&id).await);
}

over_redis! {
    async fn two_hundred_clients_at_once_make_one_decision_and_are_all_told_the_truth(app: TestApp) {
        let Asked { id, session, .. } = asked(&app).await;
        let mut subscriber = Subscriber::on(&session).await;
        let users = (0..10).map(|n| format!("user{n}")).collect::<Vec<_>>();
        let deciding = (0..200).map(|n| {
            let (app, id) = (&app, &id);
            let user = users[n % users.len()].as_str();
            async move {
                let who = Who { user, ..ALICE };
                if n % 20 < 10 {
                    let approve = async || app.approve(who, id).await;
                    (user, "approved", until_there_is_room(approve).await)
                } else {
                    let reject = async || app.reject(who, id, Some(user)).await;
                    (user, "rejected", until_there_is_room(reject).await)
                }
            }
        });
        let answers = join_all(deciding).await;
        let record = app.record(&id).await;
        for (user, verdict, answer) in &answers {
            answer.assert_agrees(&record, user, verdict);
        }
        app.settled(&id).await;
        let mut heard = subscriber.heard().await;
        // Sent again, on a busy machine, if its sending took longer than its lease.
        heard.dedup();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(app.signal(&session).await.as_ref(), heard.first());
        assert_eq!(app.tasks("tenant1").await.len(), 1);
        let stored = app.stored(&id).await.document;
        let stored = ApprovalRequest::read(&record.id, stored).unwrap();
        let State::Decided(decision) = record.state else { panic!("undecided") };
        assert_eq!(stored.status, decision.verdict.status());
    }
}
