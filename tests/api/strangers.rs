//! What is another tenant's looks, on every route, exactly like what is not there; and trying
//! changes nothing.

use std::collections::BTreeMap;

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::decision::State;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::helpers::{Answer, Asked, Operation, PREFIXES, TestApp, Who, operations, unique};

/// One person of each of three tenants; the last one is an admin of theirs.
const PEOPLE: [Who<'static>; 3] = [
    Who { user: "user1", tenant: "tenant1", role: Role::User },
    Who { user: "user2", tenant: "tenant2", role: Role::User },
    Who { user: "user3", tenant: "tenant3", role: Role::Admin },
];

/// What a tenant has: requests found in Redis and registered ones, pending and decided; their
/// sessions; tasks.
struct Belongings {
    owner: Who<'static>,
    requests: Vec<String>,
    sessions: Vec<String>,
    tasks: Vec<String>,
    /// Of the requests, those that nobody has decided.
    pending: Vec<String>,
}

impl Belongings {
    async fn of(app: &TestApp, owner: Who<'static>) -> Self {
        let (mut requests, mut sessions, mut pending) = (Vec::new(), Vec::new(), Vec::new());
        for is_decided in [false, true] {
            let own = |asked: Asked| {
                let asked = asked.with("userId", owner.user.into());
                asked.with("tenantId", owner.tenant.into())
            };
            let registered = own(Asked::new());
            app.register(owner, &registered).await.assert(201, "");
            let found = own(Asked::new());
            // The request says whose it is, or only its session does.
            let of_its_session = own(Asked::new()).with("tenantId", Value::Null);
            for asked in [&found, &of_its_session] {
                app.put(&asked.id, &asked.document.to_string()).await;
                let pointer = json!({ "requestId": asked.id, "userId": owner.user, "tenantId": owner.tenant });
                app.point(&asked.session, &pointer.to_string()).await;
            }
            for asked in [registered, found, of_its_session] {
                if is_decided {
                    app.approve(owner, &asked.id).await.assert(200, "");
                    app.settled(&asked.id).await;
                } else {
                    pending.push(asked.id.clone());
                }
                requests.push(asked.id);
                sessions.push(asked.session);
            }
        }
        let task = json!({ "taskType": "mail", "userId": owner.user, "tenantId": owner.tenant });
        let made = app.post(owner, "/main/agent/tasks", task).await;
        let mut tasks = vec![made.data()["taskId"].as_str().unwrap().to_owned()];
        for id in requests.iter().filter(|id| !pending.contains(id)) {
            tasks.push(app.task_of(id).await.id.to_string());
        }
        Self { owner, requests, sessions, tasks, pending }
    }

    fn named(&self, id: &str) -> &[String] {
        match id {
            "requestId" => &self.requests,
            "sessionId" => &self.sessions,
            "taskId" => &self.tasks,
            other => panic!("no test knows what a {other} is"),
        }
    }
}

/// The operation as this person calls it, with a body that it accepts.
async fn call(app: &TestApp, who: Who<'_>, operation: &Operation, path: &str) -> Answer {
    let call = app.call(who, operation.method.clone(), path).header("X-Trace-Id", "trace-1");
    let call = if let Some(body) = operation.body(who) { call.json(&body) } else { call };
    Answer::of(call.send().await.unwrap()).await
}

/// All that a caller sees of an answer, but its time.
fn seen(answer: &Answer) -> (StatusCode, BTreeMap<String, String>, Value) {
    let headers = answer.headers.iter().filter(|(name, _)| *name != "date");
    let headers = headers.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect();
    (answer.status, headers, answer.bare())
}

both_modes! {
    async fn what_is_anothers_looks_like_what_is_not_there(app: TestApp) {
        let mut all = Vec::new();
        for owner in PEOPLE {
            all.push(Belongings::of(&app, owner).await);
        }
        let mut cases = 0;
        for operation in operations() {
            let Some(id) = operation.id() else { continue };
            for prefix in PREFIXES {
                for theirs in &all {
                    for stranger in PEOPLE.into_iter().filter(|who| who.tenant != theirs.owner.tenant) {
                        let path = |id: &str| format!("{prefix}{}", operation.path_to(id));
                        let nothing = call(&app, stranger, &operation, &path(&unique("x"))).await;
                        if id != "sessionId" {
                            nothing.assert(404, "E1004");
                        }
                        for id in theirs.named(id) {
                            let answer = call(&app, stranger, &operation, &path(id)).await;
                            assert_eq!(seen(&answer), seen(&nothing), "{stranger:?} {} {}", operation.method, path(id));
                            cases += 1;
                        }
                    }
                }
            }
        }
        assert!(cases > 500, "only {cases}");

        // It was all there, it still is, and nobody else has touched it.
        for theirs in &all {
            for id in &theirs.requests {
                app.get(theirs.owner, &format!("/aura/hitl/requests/{id}")).await.assert(200, "");
            }
            for id in &theirs.tasks {
                let task = app.get(theirs.owner, &format!("/main/agent/tasks/{id}")).await;
                assert!(["REQUESTED", "IN_PROGRESS"].contains(&task.data()["status"].as_str().unwrap()), "{}", task.text);
            }
            for id in &theirs.pending {
                app.approve(theirs.owner, id).await.assert(200, "");
            }
            for (id, session) in theirs.requests.iter().zip(&theirs.sessions) {
                let record = app.record(id).await;
                assert!(matches!(&record.state, State::Decided(decision) if decision.by.as_str() == theirs.owner.user), "{record:?}");
                assert_eq!(app.poll(theirs.owner, session, Some(id)).await.unwrap()["requestId"], **id);
            }
        }
    }
}

both_modes! {
    /// Names in the query and in the body, where the address names nothing.
    async fn lists_and_bodies_reach_no_further_than_the_tenant(app: TestApp) {
        let mut all = Vec::new();
        for owner in PEOPLE {
            all.push(Belongings::of(&app, owner).await);
        }
        for theirs in &all {
            for stranger in PEOPLE.into_iter().filter(|who| who.tenant != theirs.owner.tenant) {
                for prefix in PREFIXES {
                    let (user, tenant) = (theirs.owner.user, theirs.owner.tenant);
                    let list = format!("{prefix}/main/agent/tasks");
                    app.get(stranger, &format!("{list}?tenantId={tenant}")).await.assert(403, "E2007");
                    let [one, other] = [user, "nobody"].map(|user| format!("{list}?userId={user}"));
                    let [one, other] = [app.get(stranger, &one).await, app.get(stranger, &other).await];
                    assert_eq!(one.bare()["data"], other.bare()["data"]);
                    assert_eq!((one.status, one.code()), (other.status, other.code()));
                    let own = app.get(stranger, &list).await;
                    for task in own.data()["content"].as_array().unwrap() {
                        assert_eq!(task["tenantId"], stranger.tenant, "{task}");
                    }
                    for (session, request) in theirs.sessions.iter().zip(&theirs.requests) {
                        // In one's own session, for another's request, and the other way round.
                        for path in [format!("{}?requestId={request}", unique("s")), format!("{session}?requestId={}", unique("r"))] {
                            let path = format!("{prefix}/aura/hitl/signals/{path}");
                            let answer = app.get(stranger, &path).await;
                            assert_eq!(answer.assert(200, "").body.get("data"), None, "{}", answer.text);
                        }
                    }
                    for operation in operations() {
                        let Some(body) = operation.body(stranger) else { continue };
                        for (field, value) in [("userId", user), ("tenantId", tenant)] {
                            let mut body = body.clone();
                            if body.get(field).is_none() {
                                continue;
                            }
                            body[field] = value.into();
                            let path = format!("{prefix}{}", operation.path());
                            let call = app.call(stranger, operation.method.clone(), &path).json(&body);
                            let answer = Answer::of(call.send().await.unwrap()).await;
                            answer.assert(403, if field == "userId" { "E2001" } else { "E2007" });
                        }
                    }
                    // A registration that names another's task does not touch it, and does not tell.
                    let registered = async |task: &str| {
                        let body = json!({ "sessionId": unique("session"), "actionType": "send_email", "taskId": task });
                        app.post(stranger, &format!("{prefix}/aura/hitl/requests"), body).await
                    };
                    let [one, other] = [registered(&theirs.tasks[0]).await, registered(&unique("task")).await];
                    assert_eq!((one.status, one.code()), (other.status, other.code()), "{}", one.text);
                    let task = app.call(theirs.owner, Method::GET, &format!("{list}/{}", theirs.tasks[0]));
                    let task = Answer::of(task.send().await.unwrap()).await;
                    assert_eq!((task.data()["status"].as_str(), task.data()["hitlRequestId"].as_str()), (Some("REQUESTED"), None), "{}", task.text);
                }
            }
        }
    }
}
