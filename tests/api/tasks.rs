//! Agent tasks: every route, on both prefixes, with the state machine enforced.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use support::{ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, PREFIXES, TestApp, Who, unique};

const TASKS: &str = "/api/main/agent/tasks";

fn new_task(who: Who<'_>) -> Value {
    json!({ "taskType": "mail_summary", "userId": who.user, "tenantId": who.tenant })
}

/// Makes a task and says where it is.
async fn make(app: &TestApp, who: Who<'_>) -> String {
    let made = app.post(who, TASKS, new_task(who)).await;
    made.assert(201, "");
    format!("{TASKS}/{}", made.data()["taskId"].as_str().unwrap())
}

/// A call with a body as it is written, or with none.
async fn send(app: &TestApp, who: Who<'_>, method: Method, path: &str, body: &str) -> Answer {
    let call = app.call(who, method, path);
    let call = match body {
        "" => call,
        body => call.header("Content-Type", "application/json").body(body.to_owned()),
    };
    Answer::of(call.send().await.unwrap()).await
}

async fn post(app: &TestApp, path: &str, body: &str) -> Answer {
    send(app, ALICE, Method::POST, path, body).await
}

/// The task's plan: `planSteps` is a JSON string.
fn plan(answer: &Answer) -> &str {
    answer.data()["planSteps"].as_str().unwrap()
}

/// Every step that a task can take, with its own method and body.
const STEPS: [(&str, &str, &str); 6] = [
    ("POST", "start", ""),
    ("PATCH", "progress", r#"{"progress":50}"#),
    ("POST", "complete", ""),
    ("POST", "fail", ""),
    ("PUT", "plan-steps", r#"[{"id":"a"}]"#),
    ("POST", "plan-steps", r#"{"id":"a"}"#),
];

/// Asks for approval on behalf of a task; says the request's id.
async fn gate(app: &TestApp, path: &str) -> String {
    let id = unique("req");
    let task = path.rsplit('/').next().unwrap();
    let body = json!({
        "requestId": id, "sessionId": unique("session"), "actionType": "send_email", "taskId": task,
    });
    app.post(ALICE, "/api/aura/hitl/requests", body).await.assert(201, "");
    id
}

both_modes! {
    async fn a_task_goes_from_requested_to_completed(app: TestApp) {
        for prefix in PREFIXES {
            let tasks = format!("{prefix}/main/agent/tasks");
            let mut body = new_task(ALICE);
            body["description"] = "메일 요약".into();
            body["inputData"] = json!({ "folder": "inbox" });
            let made = app.post(ALICE, &tasks, body).await;
            made.assert(201, "");
            let id = made.data()["taskId"].as_str().unwrap().to_owned();
            assert_eq!(*made.data(), json!({
                "taskId": id, "userId": "user123", "tenantId": "tenant1", "taskType": "mail_summary",
                "status": "REQUESTED", "progress": 0, "description": "메일 요약", "inputData": { "folder": "inbox" },
                "resultData": null, "planSteps": "[]", "hitlRequestId": null, "errorMessage": null,
                "startedAt": null, "completedAt": null, "createdAt": made.data()["createdAt"], "updatedAt": made.data()["createdAt"],
            }));
            let one = format!("{tasks}/{id}");
            let read = app.get(ALICE, &one).await;
            assert_eq!(read.assert(200, "").data(), made.data());

            let started = post(&app, &format!("{one}/start"), "").await;
            started.assert(200, "");
            assert_eq!(started.data()["status"], "IN_PROGRESS");
            assert!(started.data()["startedAt"].is_string());
            let again = post(&app, &format!("{one}/start"), "").await;
            assert_eq!(again.assert(200, "").data(), started.data(), "a second start changes nothing");

            for (sent, progress, description) in [
                (r#"{"progress":40,"description":"읽는 중"}"#, 40, "읽는 중"), (r#"{"progress":100}"#, 100, "읽는 중"),
                (r#"{"progress":0,"description":null}"#, 0, "읽는 중"), (r#"{"progress":60}"#, 60, "읽는 중"),
            ] {
                let answer = send(&app, ALICE, Method::PATCH, &format!("{one}/progress"), sent).await;
                answer.assert(200, "");
                let data = answer.data();
                assert_eq!((&data["progress"], &data["description"]), (&json!(progress), &json!(description)));
                assert_eq!(data["status"], "IN_PROGRESS");
            }
            let done = post(&app, &format!("{one}/complete"), r#"{"mails":12}"#).await;
            let data = done.assert(200, "").data();
            assert_eq!((&data["status"], &data["progress"], &data["resultData"]), (&json!("COMPLETED"), &json!(100), &json!({ "mails": 12 })));
            assert!(data["completedAt"].is_string());
            assert_eq!(data["startedAt"], started.data()["startedAt"]);
            assert_eq!(app.get(ALICE, &one).await.data(), data);
        }
    }
}

both_modes! {
    async fn executing_a_task_starts_it_and_answers_its_id(app: TestApp) {
        for prefix in PREFIXES {
            let made = make(&app, ALICE).await;
            let path = format!("{prefix}{}", made.strip_prefix("/api").unwrap());
            let task = path.rsplit('/').next().unwrap();
            for _twice in 0..2 {
                let executed = post(&app, &format!("{path}/execute"), "").await;
                assert_eq!(*executed.assert(200, "").data(), json!(task));
            }
            assert_eq!(app.get(ALICE, &path).await.data()["status"], "IN_PROGRESS");
            post(&app, &format!("{path}/fail"), "").await.assert(200, "");
            post(&app, &format!("{path}/execute"), "").await.assert(409, "E3002");
        }
        post(&app, "/main/agent/tasks/none/execute", "").await.assert(404, "E1004");
    }
}

both_modes! {
    async fn anybody_may_ask_which_release_this_is(app: TestApp) {
        for prefix in PREFIXES {
            let answer = app.client.get(format!("{}{prefix}/main/info", app.base)).send().await.unwrap();
            let answer = Answer::of(answer).await;
            let version = env!("CARGO_PKG_VERSION");
            assert_eq!(*answer.assert(200, "").data(), json!({ "name": "aura-hitl", "version": version }));
        }
    }
}

both_modes! {
    async fn any_json_or_none_is_kept_as_the_result(app: TestApp) {
        for (body, kept) in [
            ("", "null"), ("  ", "null"), ("null", "null"), ("true", "true"), ("[]", "[]"), ("\"됨\"", "\"됨\""), ("{}", "{}"),
            ("1.10", "1.10"), ("12345678901234567890123", "12345678901234567890123"),
            (r#"{"b":1.10,"a":[1e2,-0.0],"b2":12345678901234567890123}"#, r#"{"b":1.10,"a":[1e2,-0.0],"b2":12345678901234567890123}"#),
        ] {
            let path = make(&app, ALICE).await;
            post(&app, &format!("{path}/start"), "").await.assert(200, "");
            let done = post(&app, &format!("{path}/complete"), body).await;
            done.assert(200, "");
            for answer in [done, app.get(ALICE, &path).await] {
                assert!(answer.text.contains(&format!(r#""resultData":{kept},"planSteps""#)), "{body}: {}", answer.text);
            }
        }
    }
}

both_modes! {
    async fn numbers_in_the_input_are_kept_to_the_letter(app: TestApp) {
        for input in [
            "1.10", "12345678901234567890123", "-0.0", "1E5", "0.1000000000000000055511151231257827",
            r#"{"z":1.10,"a":{"big":12345678901234567890123,"small":1e-400},"z2":"é"}"#, "[1.0,1,1e0]",
        ] {
            let body = format!(r#"{{"taskType":"t","userId":"user123","tenantId":"tenant1","inputData":{input}}}"#);
            let made = post(&app, TASKS, &body).await;
            made.assert(201, "");
            let path = format!("{TASKS}/{}", made.data()["taskId"].as_str().unwrap());
            for answer in [made, app.get(ALICE, &path).await, app.get(ALICE, TASKS).await] {
                assert!(answer.text.contains(&format!(r#""inputData":{input},"resultData""#)), "{input}: {}", answer.text);
            }
        }
    }
}

both_modes! {
    async fn a_task_is_made_for_the_caller_only(app: TestApp) {
        for (field, value, status, code) in [
            ("userId", json!("bob"), 403, "E2001"), ("tenantId", json!("tenant2"), 403, "E2007"),
            ("userId", json!(null), 400, "E4000"), ("tenantId", json!(null), 400, "E4000"), ("taskType", json!(null), 400, "E4000"),
            ("taskType", json!(""), 400, "E4000"), ("taskType", json!("x".repeat(201)), 400, "E4000"), ("taskType", json!(7), 400, "E4000"),
            ("description", json!("x".repeat(2001)), 400, "E4000"), ("description", json!([]), 400, "E4000"),
        ] {
            let mut body = new_task(ALICE);
            body[field] = value;
            let answer = app.post(ALICE, TASKS, body).await;
            answer.assert(status, code);
            assert!(status == 403 || answer.data()[field].is_string(), "{}", answer.text);
        }
        assert_eq!(app.get(ADMIN, TASKS).await.data()["totalElements"], 0);
    }
}

both_modes! {
    async fn a_task_can_fail_for_a_reason_in_the_query_or_in_the_body(app: TestApp) {
        for prefix in PREFIXES {
            for (query, body, kept) in [
                ("?errorMessage=mailbox%20is%20full", "", json!("mailbox is full")),
                ("?errorMessage=%EB%81%9D", "{}", json!("끝")),
                ("", r#"{"errorMessage":"mailbox is full"}"#, json!("mailbox is full")),
                ("", r#"{"errorMessage":null,"more":1}"#, json!(null)), ("", "", json!(null)), ("", "{}", json!(null)),
                ("?errorMessage=query", r#"{"errorMessage":"body"}"#, json!("query")),
            ] {
                let path = make(&app, ALICE).await.replace("/api", prefix);
                let failed = post(&app, &format!("{path}/fail{query}"), body).await;
                let data = failed.assert(200, "").data();
                assert_eq!((&data["status"], &data["errorMessage"]), (&json!("FAILED"), &kept), "{query} {body}");
                assert_eq!(data["completedAt"], Value::Null);
            }
            let path = make(&app, ALICE).await.replace("/api", prefix);
            for (query, body) in [
                (format!("?errorMessage={}", "x".repeat(4001)), ""), ("?errorMessage=a%00b".to_owned(), ""),
                (String::new(), r#"{"errorMessage":7}"#), (String::new(), r#"{"errorMessage":"a\u0000"}"#), (String::new(), "[]"), (String::new(), r#"["full"]"#), (String::new(), "\"full\""),
            ] {
                let answer = post(&app, &format!("{path}/fail{query}"), body).await;
                answer.assert(400, "E4000");
                assert!(answer.data().as_object().is_some_and(|fields| !fields.is_empty()), "{}", answer.text);
            }
            assert_eq!(app.get(ALICE, &path).await.data()["status"], "REQUESTED");
        }
    }
}

both_modes! {
    async fn progress_is_a_whole_number_of_percent(app: TestApp) {
        let path = make(&app, ALICE).await;
        post(&app, &format!("{path}/start"), "").await.assert(200, "");
        for body in [
            r#"{"progress":-1}"#, r#"{"progress":101}"#, r#"{"progress":50.5}"#, r#"{"progress":"50"}"#, r#"{"progress":null}"#,
            "{}", r#"{"progress":99999999999999999999}"#,
        ] {
            let answer = send(&app, ALICE, Method::PATCH, &format!("{path}/progress"), body).await;
            answer.assert(400, "E4000");
            assert!(answer.data()["progress"].is_string(), "{body}: {}", answer.text);
        }
        assert_eq!(app.get(ALICE, &path).await.data()["progress"], 0);
    }
}

both_modes! {
    async fn each_state_allows_its_own_steps_and_no_others(app: TestApp) {
        for (state, allowed) in [
            ("REQUESTED", ["start", "fail", "plan-steps", ""]),
            ("IN_PROGRESS", ["start", "progress", "complete", "fail"]),
            ("WAITING_APPROVAL", ["progress", "fail", "plan-steps", ""]),
            ("COMPLETED", [""; 4]),
            ("FAILED", [""; 4]),
        ] {
            for (method, step, body) in STEPS {
                let path = make(&app, ALICE).await;
                if state != "REQUESTED" {
                    post(&app, &format!("{path}/start"), "").await.assert(200, "");
                }
                match state {
                    "WAITING_APPROVAL" => drop(gate(&app, &path).await),
                    "COMPLETED" => drop(post(&app, &format!("{path}/complete"), "1").await),
                    "FAILED" => drop(post(&app, &format!("{path}/fail"), r#"{"errorMessage":"no"}"#).await),
                    _ => {}
                }
                let before = app.get(ALICE, &path).await;
                assert_eq!(before.data()["status"], state);
                let answer = send(&app, ALICE, method.parse().unwrap(), &format!("{path}/{step}"), body).await;
                if allowed.contains(&step) || (state == "IN_PROGRESS" && step == "plan-steps") {
                    answer.assert(200, "");
                    continue;
                }
                answer.assert(409, "E3002");
                assert_eq!(*answer.data(), json!({ "status": state }), "{step}");
                assert_eq!(app.get(ALICE, &path).await.data(), before.data(), "{step} left its mark");
            }
        }
    }
}

both_modes! {
    async fn a_waiting_task_goes_on_once_its_request_is_decided(app: TestApp) {
        let path = make(&app, ALICE).await;
        post(&app, &format!("{path}/start"), "").await.assert(200, "");
        let request = gate(&app, &path).await;
        let waiting = app.get(ALICE, &path).await;
        assert_eq!((&waiting.data()["status"], &waiting.data()["hitlRequestId"]), (&json!("WAITING_APPROVAL"), &json!(request)));
        post(&app, &format!("{path}/complete"), "").await.assert(409, "E3002");
        send(&app, ALICE, Method::PATCH, &format!("{path}/progress"), r#"{"progress":70}"#).await.assert(200, "");
        app.approve(ALICE, &request).await.assert(200, "");
        let after = app.get(ALICE, &path).await;
        assert_eq!((&after.data()["status"], &after.data()["progress"]), (&json!("IN_PROGRESS"), &json!(70)));
        post(&app, &format!("{path}/complete"), "").await.assert(200, "");
    }
}

both_modes! {
    async fn plans_are_replaced_and_merged_by_step_id(app: TestApp) {
        for prefix in PREFIXES {
            let path = make(&app, ALICE).await.replace("/api", prefix);
            let steps = format!("{path}/plan-steps");
            let table = [
                ("PUT", "[]", "[]"),
                ("PUT", r#"[{"stepId":"b","description":"B","status":"pending","x":1.10},{"id":7}]"#,
                    r#"[{"stepId":"b","description":"B","status":"pending","x":1.10},{"id":7,"status":"pending"}]"#),
                // Flat and wrapped, known steps in their place, new ones behind.
                ("POST", r#"{"type":"plan_step","stepId":"a","status":"in_progress","confidence":0.85,"timestamp":1706152860}"#,
                    r#"[{"stepId":"b","description":"B","status":"pending","x":1.10},{"id":7,"status":"pending"},{"type":"plan_step","stepId":"a","status":"in_progress","confidence":0.85,"timestamp":1706152860}]"#),
                ("POST", r#"[{"type":"plan_step_update","data":{"id":"b","status":"completed"}},{"id":"7","status":"skipped"}]"#,
                    r#"[{"stepId":"b","description":"B","status":"completed","x":1.10,"id":"b"},{"id":"7","status":"skipped"},{"type":"plan_step","stepId":"a","status":"in_progress","confidence":0.85,"timestamp":1706152860}]"#),
                ("POST", "[]",
                    r#"[{"stepId":"b","description":"B","status":"completed","x":1.10,"id":"b"},{"id":"7","status":"skipped"},{"type":"plan_step","stepId":"a","status":"in_progress","confidence":0.85,"timestamp":1706152860}]"#),
                ("PUT", r#"[{"type":"plan_step","data":{"id":"단계","title":"끝","status":"waiting","confidence":1}},{"id":"단계","status":"failed"}]"#,
                    r#"[{"id":"단계","title":"끝","status":"failed","confidence":1}]"#),
            ];
            for (method, body, expected) in table {
                let answer = send(&app, ALICE, method.parse().unwrap(), &steps, body).await;
                assert_eq!(plan(answer.assert(200, "")), expected, "{method} {body}");
                assert_eq!(plan(&app.get(ALICE, &path).await), expected);
            }
        }
    }
}

both_modes! {
    async fn bad_steps_are_named_and_change_nothing(app: TestApp) {
        let path = make(&app, ALICE).await;
        let steps = format!("{path}/plan-steps");
        post(&app, &steps, r#"{"id":"a"}"#).await.assert(200, "");
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(201));
        for step in [
            "{}", "7", "\"a\"", "null", r#"{"stepId":""}"#, r#"{"id":" "}"#, r#"{"id":null}"#, r#"{"id":1.5}"#, r#"{"id":{}}"#,
            r#"{"stepId":"","id":"b"}"#, r#"{"id":"a","status":"done"}"#, r#"{"id":"a","status":"PENDING"}"#, r#"{"id":"a","status":7}"#,
            r#"{"id":"a","confidence":1.01}"#, r#"{"id":"a","confidence":-0.1}"#, r#"{"id":"a","confidence":"1"}"#, r#"{"data":{"title":"x"}}"#, &long,
        ] {
            let one = post(&app, &steps, step).await;
            one.assert(400, "E4000");
            assert!(one.data()["planSteps"].is_string(), "{step}: {}", one.text);
            for method in [Method::POST, Method::PUT] {
                let second = send(&app, ALICE, method, &steps, &format!(r#"[{{"id":"new"}},{step}]"#)).await;
                second.assert(400, "E4000");
                assert!(second.data()["planSteps[1]"].is_string(), "{step}: {}", second.text);
            }
        }
        // A replacement is a list.
        for body in [r#"{"id":"a"}"#, ""] {
            send(&app, ALICE, Method::PUT, &steps, body).await.assert(400, "E4000");
        }
        let many = (0..1001).map(|id| json!({ "id": id })).collect::<Vec<_>>();
        send(&app, ALICE, Method::PUT, &steps, &json!(many).to_string()).await.assert(400, "E4000");
        send(&app, ALICE, Method::PUT, &steps, &json!(many[..1000]).to_string()).await.assert(200, "");
        let over = post(&app, &steps, r#"{"id":"one more"}"#).await;
        assert!(over.assert(400, "E4000").data()["planSteps"].is_string());
        send(&app, ALICE, Method::PUT, &steps, "[]").await.assert(200, "");
        assert_eq!(plan(&app.get(ALICE, &path).await), "[]");
    }
}

both_modes! {
    async fn forty_plan_updates_at_once_lose_nothing(app: TestApp) {
        let path = make(&app, ALICE).await;
        let steps = format!("{path}/plan-steps");
        let updates = (0..40).map(|n| {
            let body = format!(r#"[{{"id":"step-{n}","description":"{n}"}},{{"id":"shared","by-{n}":{n}}}]"#);
            let (app, steps) = (&app, &steps);
            async move {
                // 503 says that nothing was changed, and to try again.
                loop {
                    let answer = post(app, steps, &body).await;
                    if answer.code() != "E5000" {
                        return answer;
                    }
                }
            }
        });
        for answer in futures_util::future::join_all(updates).await {
            answer.assert(200, "");
        }
        let plan: Vec<Value> = serde_json::from_str(plan(&app.get(ALICE, &path).await)).unwrap();
        let ids = plan.iter().map(|step| step["id"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>();
        let expected = (0..40).map(|n| format!("step-{n}")).chain(["shared".to_owned()]).collect();
        assert_eq!((ids, plan.len()), (expected, 41));
        let shared = plan.iter().find(|step| step["id"] == "shared").unwrap();
        for n in 0..40 {
            assert_eq!(shared[format!("by-{n}")], n);
        }
    }
}

/// The `taskId`s of a page.
fn ids(answer: &Answer) -> Vec<String> {
    let content = answer.assert(200, "").data()["content"].as_array().unwrap();
    content.iter().map(|task| task["taskId"].as_str().unwrap().to_owned()).collect()
}

both_modes! {
    async fn lists_are_pages_newest_first(app: TestApp) {
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(make(&app, ALICE).await.rsplit('/').next().unwrap().to_owned());
        }
        made.reverse();
        for prefix in PREFIXES {
            let tasks = format!("{prefix}/main/agent/tasks");
            for (query, content, number, size, pages, first, last) in [
                ("", &made[..], 0, 20, 1, true, true), ("?size=2", &made[..2], 0, 2, 3, true, false),
                ("?page=1&size=2", &made[2..4], 1, 2, 3, false, false), ("?page=2&size=2", &made[4..], 2, 2, 3, false, true),
                ("?page=3&size=2", &[], 3, 2, 3, false, true), ("?size=5", &made[..], 0, 5, 1, true, true),
                ("?page=1&size=5", &[], 1, 5, 1, false, true), ("?size=100", &made[..], 0, 100, 1, true, true),
                ("?page=2147483647&size=100", &[], i32::MAX, 100, 1, false, true),
            ] {
                let page = app.get(ALICE, &format!("{tasks}{query}")).await;
                assert_eq!(ids(&page), content, "{query}");
                let mut fields = page.data().clone();
                fields.as_object_mut().unwrap().remove("content");
                assert_eq!(fields, json!({
                    "totalElements": 5, "totalPages": pages, "number": number, "size": size, "first": first, "last": last,
                    "numberOfElements": content.len(), "empty": content.is_empty(),
                }), "{query}");
            }
        }
        let none = app.get(BOB, TASKS).await;
        assert_eq!(*none.assert(200, "").data(), json!({
            "content": [], "totalElements": 0, "totalPages": 0, "number": 0, "size": 20, "first": true, "last": true,
            "numberOfElements": 0, "empty": true,
        }));
    }
}

both_modes! {
    async fn lists_are_filtered_and_bounded(app: TestApp) {
        let begun = make(&app, ALICE).await;
        post(&app, &format!("{begun}/start"), "").await.assert(200, "");
        let (fresh, bobs, strangers) = (make(&app, ALICE).await, make(&app, BOB).await, make(&app, MALLORY).await);
        let id = |path: &String| path.rsplit('/').next().unwrap().to_owned();
        let (begun, fresh, bobs, strangers) = (id(&begun), id(&fresh), id(&bobs), id(&strangers));
        let both = vec![fresh.clone(), begun.clone()];
        let everybody = vec![bobs.clone(), fresh.clone(), begun.clone()];
        for (who, query, expected) in [
            (ALICE, "", &both), (ALICE, "?userId=user123", &both), (ALICE, "?tenantId=tenant1&userId=user123", &both),
            (ALICE, "?status=IN_PROGRESS", &vec![begun.clone()]), (ALICE, "?status=REQUESTED", &vec![fresh.clone()]),
            (ALICE, "?status=FAILED", &vec![]), (BOB, "", &vec![bobs.clone()]), (MALLORY, "", &vec![strangers]),
            (ADMIN, "", &everybody), (ADMIN, "?userId=bob", &vec![bobs.clone()]), (ADMIN, "?userId=user123&status=REQUESTED", &vec![fresh.clone()]),
            (ADMIN, "?userId=mallory", &vec![]), (ADMIN, "?userId=nobody", &vec![]),
        ] {
            let page = app.get(who, &format!("{TASKS}{query}")).await;
            assert_eq!(ids(&page), *expected, "{} {query}", who.user);
            assert_eq!(page.data()["totalElements"], expected.len(), "{} {query}", who.user);
        }
        for (who, query, status, code) in [
            (ALICE, "?userId=bob", 403, "E2001"), (ALICE, "?tenantId=tenant2", 403, "E2007"), (ADMIN, "?tenantId=tenant2", 403, "E2007"),
            (ALICE, "?size=0", 400, "E4000"), (ALICE, "?size=101", 400, "E4000"), (ALICE, "?size=-1", 400, "E4000"), (ALICE, "?size=x", 400, "E4000"),
            (ALICE, "?page=-1", 400, "E4000"), (ALICE, "?page=1.5", 400, "E4000"), (ALICE, "?page=2147483648", 400, "E4000"),
            (ALICE, "?status=DONE", 400, "E4000"), (ALICE, "?status=", 400, "E4000"), (ALICE, "?size=1&size=2", 400, "E4000"),
            (ADMIN, "?userId=%00", 400, "E4000"), (ADMIN, "?userId=", 400, "E4000"),
        ] {
            let answer = app.get(who, &format!("{TASKS}{query}")).await;
            answer.assert(status, code);
            assert!(status == 403 || answer.data().is_object(), "{query}: {}", answer.text);
        }
    }
}

both_modes! {
    async fn another_tenants_task_is_answered_as_one_that_does_not_exist(app: TestApp) {
        let path = make(&app, ALICE).await;
        let before = app.get(ALICE, &path).await;
        let strange = Who { user: "user123", tenant: "tenant2", role: ADMIN.role };
        let calls = [("GET", "", "")].into_iter().chain(STEPS);
        for (method, step, body) in calls {
            let suffix = if step.is_empty() { String::new() } else { format!("/{step}") };
            let method: Method = method.parse().unwrap();
            for who in [MALLORY, strange] {
                for prefix in PREFIXES {
                    let theirs = send(&app, who, method.clone(), &format!("{}{suffix}", path.replace("/api", prefix)), body).await;
                    let nothing = send(&app, who, method.clone(), &format!("{prefix}/main/agent/tasks/task_none{suffix}"), body).await;
                    theirs.assert(404, "E1004");
                    nothing.assert(404, "E1004");
                    assert_eq!((&theirs.body["message"], theirs.body.get("data")), (&nothing.body["message"], None));
                }
            }
        }
        assert_eq!(app.get(ALICE, &path).await.data(), before.data());
        // Within the tenant, a person and the agent acting for them work on the same task.
        app.get(BOB, &path).await.assert(200, "");
    }
}

over_redis! {
    /// A colleague sees a task and does not touch it: not even by a request that it would wait for.
    async fn only_its_user_or_an_admin_changes_a_task(app: TestApp) {
        for owner in [ALICE, ADMIN] {
            for (method, step, body) in STEPS {
                let path = make(&app, ALICE).await;
                let before = app.get(BOB, &path).await;
                let (method, path_to): (Method, _) = (method.parse().unwrap(), format!("{path}/{step}"));
                send(&app, BOB, method.clone(), &path_to, body).await.assert(403, "E2001");
                let task = path.rsplit('/').next().unwrap();
                let gate = json!({ "sessionId": unique("session"), "actionType": "send", "taskId": task });
                app.post(BOB, "/aura/hitl/requests", gate.clone()).await.assert(403, "E2001");
                assert_eq!(app.get(ALICE, &path).await.data(), before.assert(200, "").data());
                let changed = send(&app, owner, method, &path_to, body).await;
                assert_ne!(changed.status, 403, "{step}: {}", changed.text);
                if step == "start" {
                    app.post(owner, "/aura/hitl/requests", gate).await.assert(201, "");
                    assert_eq!(app.get(ALICE, &path).await.data()["status"], "WAITING_APPROVAL");
                }
            }
        }
        // Nor does a request that an agent wrote to Redis for somebody else.
        if app.mode == Mode::Embedded {
            return;
        }
        let path = make(&app, ALICE).await;
        let task = path.rsplit('/').next().unwrap();
        let asked = Asked::new().with("userId", json!("bob")).with("taskId", json!(task));
        app.ask(&asked).await;
        app.reject(BOB, &asked.id, None).await.assert(200, "");
        assert_ne!(app.task_of(&asked.id).await.id.as_str(), task);
        assert_eq!(app.get(ALICE, &path).await.data()["status"], "REQUESTED");
    }
}
