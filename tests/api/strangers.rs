//! What is another tenant's looks, on every route, exactly like what is not there; and trying
//! changes nothing.

use aura_hitl::domain::decision::State;
use reqwest::Method;
use serde_json::json;
use support::belongings::{Belongings, PEOPLE, perform};
use support::{Answer, PREFIXES, TestApp, operations, unique};

/// What each of them has, all of it delivered.
async fn everybody(app: &TestApp) -> Vec<Belongings> {
    let mut all = Vec::new();
    for owner in PEOPLE {
        let theirs = Belongings::of(app, owner, 1).await;
        for id in theirs.decided() {
            app.settled(id).await;
        }
        all.push(theirs);
    }
    all
}

both_modes! {
    async fn what_is_anothers_looks_like_what_is_not_there(app: TestApp) {
        let all = everybody(&app).await;
        let mut cases = 0;
        for operation in operations() {
            let Some(id) = operation.id() else { continue };
            for prefix in PREFIXES {
                for theirs in &all {
                    for stranger in PEOPLE.into_iter().filter(|who| who.tenant != theirs.owner.tenant) {
                        let path = |id: &str| format!("{prefix}{}", operation.path_to(id));
                        let nothing = perform(&app, stranger, &operation, &path(&unique("x"))).await;
                        if id != "sessionId" {
                            nothing.assert(404, "E1004");
                        }
                        for id in theirs.named(id) {
                            let answer = perform(&app, stranger, &operation, &path(id)).await;
                            assert_eq!(answer.seen(), nothing.seen(), "{stranger:?} {} {}", operation.method, path(id));
                            cases += 1;
                        }
                    }
                }
            }
        }
        assert!(cases > 400, "only {cases}");

        // It was all there, it still is, and nobody else has touched it.
        for theirs in &all {
            for id in &theirs.requests {
                app.get(theirs.owner, &format!("/aura/hitl/requests/{id}")).await.assert(200, "");
            }
            for id in &theirs.tasks {
                let task = app.get(theirs.owner, &format!("/main/agent/tasks/{id}")).await;
                assert!(["REQUESTED", "WAITING_APPROVAL", "IN_PROGRESS"].contains(&task.data()["status"].as_str().unwrap()), "{}", task.text);
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
        let all = everybody(&app).await;
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
