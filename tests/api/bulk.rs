//! Several decisions in one call: each judged by itself, or all of them or none.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::rate::RateLimit;
use aura_hitl::domain::rules::Approvers;
use aura_hitl::domain::task::TaskStatus;
use futures_util::future::join_all;
use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::{
    ALICE, Answer, Asked, BOB, MALLORY, Mode, Subscriber, TestApp, Who, eventually, unique,
};

const PATH: &str = "/api/aura/hitl/decisions";

async fn bulk(app: &TestApp, who: Who<'_>, decisions: Value, atomic: bool) -> Answer {
    let body = json!({ "userId": who.user, "decisions": decisions, "atomic": atomic });
    app.post(who, PATH, body).await
}

/// So many requests that are approved, registered or of Redis in turn.
async fn asked(app: &TestApp, count: usize) -> Vec<Asked> {
    let mut all = Vec::new();
    for number in 0..count {
        let asked = Asked::new();
        if number % 2 == 0 {
            app.register(ALICE, &asked).await.assert(201, "");
        } else {
            app.ask(&asked).await;
        }
        all.push(asked);
    }
    all
}

fn approvals(asked: &[Asked]) -> Value {
    asked.iter().map(|one| json!({ "requestId": one.id, "decision": "approve" })).collect()
}

/// Status and error code of each result.
fn statuses(results: &Value) -> Vec<(u64, &str)> {
    let results = results["results"].as_array().unwrap().iter();
    results
        .map(|one| (one["status"].as_u64().unwrap(), one["errorCode"].as_str().unwrap_or("")))
        .collect()
}

both_modes! {
    async fn each_decision_of_a_bulk_is_answered_like_a_single_one(app: TestApp) {
        let all = asked(&app, 6).await;
        let [approved, rejected, repeated, otherwise, theirs, changed] = &all[..] else { panic!() };
        app.approve(ALICE, &repeated.id).await.assert(200, "");
        app.approve(BOB, &otherwise.id).await.assert(200, "");
        app.reject(BOB, &theirs.id, Some("아니요")).await.assert(200, "");
        let unknown = unique("req");
        let tag = app.get(ALICE, &format!("/aura/hitl/requests/{}/detail", approved.id)).await;
        let decisions = json!([
            { "requestId": approved.id, "decision": "approve", "etag": tag.data()["etag"] },
            { "requestId": rejected.id, "decision": "reject", "reason": "사용자 거절" },
            { "requestId": repeated.id, "decision": "approve" },
            { "requestId": otherwise.id, "decision": "reject" },
            { "requestId": theirs.id, "decision": "reject" },
            { "requestId": changed.id, "decision": "approve", "etag": "\"other\"" },
            { "requestId": unknown, "decision": "approve" },
        ]);
        let answer = bulk(&app, ALICE, decisions, false).await;
        answer.assert(200, "");
        assert_eq!(answer.body["message"], "Decisions judged");
        let expected = [
            (200, ""), (200, ""), (200, ""), (409, "E3006"), (409, "E3006"), (412, "E4120"), (404, "E1004"),
        ];
        assert_eq!(statuses(answer.data()), expected);
        let results = answer.data()["results"].as_array().unwrap();
        assert_eq!(results[0]["data"], json!({
            "requestId": approved.id, "sessionId": approved.session, "status": "approved",
        }));
        assert_eq!(results[0]["message"], "Request approved successfully");
        assert_eq!(results[1]["data"]["reason"], "사용자 거절");
        assert_eq!(results[1]["message"], "Request rejected");
        // An error says what a single call would say.
        for (asked, result, verdict) in [(otherwise, &results[3], "reject"), (theirs, &results[4], "reject")] {
            let single = app.post(ALICE, &format!("/aura/hitl/{verdict}/{}", asked.id), json!({ "userId": ALICE.user })).await;
            assert_eq!((&result["message"], &result["data"]), (&single.body["message"], single.data()));
        }
        for (asked, verdict) in [(approved, "approved"), (rejected, "rejected")] {
            let State::Decided(decision) = app.record(&asked.id).await.state else { panic!("undecided") };
            assert_eq!((decision.verdict.status(), decision.by.as_str()), (verdict, ALICE.user));
        }
        assert!(app.is_undecided(&changed.id).await);
        let kept = app.get(ALICE, &format!("/aura/hitl/requests/{}/decision", rejected.id)).await;
        assert_eq!(kept.data()["reason"], "사용자 거절");
        // In Korean, too.
        let decisions = json!({ "userId": ALICE.user, "decisions": [{ "requestId": unknown, "decision": "approve" }] });
        let korean = app.call(ALICE, Method::POST, PATH).header("Accept-Language", "ko").json(&decisions);
        let korean = Answer::of(korean.send().await.unwrap()).await;
        assert_eq!(korean.data()["results"][0]["message"], "없는 요청이거나 내 요청이 아닙니다.");
    }
}

both_modes! {
    async fn two_hundred_are_decided_at_once_and_signalled(app: TestApp) {
        let all = asked(&app, 200).await;
        let mut subscriber = match app.mode {
            Mode::Production => Some(Subscriber::on(&all[1].session).await),
            Mode::Embedded => None,
        };
        let answer = bulk(&app, ALICE, approvals(&all), false).await;
        assert_eq!(statuses(answer.assert(200, "").data()), vec![(200, ""); 200]);
        let ids = answer.data()["results"].as_array().unwrap().iter();
        assert!(ids.map(|one| one["requestId"].as_str().unwrap()).eq(all.iter().map(|one| &one.id)));
        if let Some(subscriber) = &mut subscriber {
            assert_eq!(subscriber.heard().await.len(), 1);
            for asked in all.iter().skip(1).step_by(2) {
                app.settled(&asked.id).await;
                assert!(app.signal(&asked.session).await.unwrap().contains("\"approval\""));
            }
        }
        let whole = asked(&app, 200).await;
        let answer = bulk(&app, ALICE, approvals(&whole), true).await;
        assert_eq!(statuses(answer.assert(200, "").data()), vec![(200, ""); 200]);
        for asked in &whole {
            assert!(!app.is_undecided(&asked.id).await);
        }
        let many = asked(&app, 1).await;
        let too_many = approvals(&[&all[..], &many[..]].concat());
        let refused = bulk(&app, ALICE, too_many, false).await;
        refused.assert(400, "E4000");
        assert_eq!(refused.data()["decisions"], "must have 1 to 200 items");
        assert!(app.is_undecided(&many[0].id).await);
    }
}

both_modes! {
    async fn a_bulk_that_is_not_well_formed_decides_nothing(app: TestApp) {
        let all = asked(&app, 2).await;
        let (one, other) = (json!({ "requestId": all[0].id, "decision": "approve" }), all[1].id.as_str());
        for (second, field, why) in [
            (json!({ "requestId": all[0].id, "decision": "reject" }), "decisions[1].requestId", "is named twice"),
            (json!({ "requestId": "a b", "decision": "approve" }), "decisions[1].requestId", "is not a valid id"),
            (json!({ "decision": "approve" }), "decisions[1].requestId", "is required"),
            (json!({ "requestId": other }), "decisions[1].decision", "is required"),
            (json!({ "requestId": other, "decision": "edit" }), "decisions[1].decision", "must be approve or reject"),
            (json!({ "requestId": other, "decision": 1 }), "decisions[1].decision", "must be a string"),
            (json!({ "requestId": other, "decision": "reject", "reason": "가".repeat(1001) }), "decisions[1].reason", "must have at most 1000 characters"),
        ] {
            for atomic in [false, true] {
                let answer = bulk(&app, ALICE, json!([one, second]), atomic).await;
                answer.assert(400, "E4000");
                assert_eq!(answer.data()[field], why, "{}", answer.text);
            }
        }
        for body in [
            json!({ "userId": ALICE.user }),
            json!({ "userId": ALICE.user, "decisions": [] }),
            json!({ "decisions": [one] }),
            json!({ "userId": ALICE.user, "decisions": [one], "atomic": "yes" }),
            json!([one]),
        ] {
            app.post(ALICE, PATH, body).await.assert(400, "E4000");
        }
        let body = json!({ "userId": BOB.user, "decisions": [one] });
        app.post(ALICE, PATH, body).await.assert(403, "E2001");
        // One tag is not that of several requests.
        for tag in ["\"other\"", "*", "W/\"a\"", "no tag"] {
            for atomic in [false, true] {
                let body = json!({ "userId": ALICE.user, "decisions": [one], "atomic": atomic });
                let call = app.call(ALICE, Method::POST, PATH).header("If-Match", tag).json(&body);
                let answer = Answer::of(call.send().await.unwrap()).await;
                answer.assert(400, "E4000");
                assert_eq!(
                    answer.data()["If-Match"],
                    "is not possible for several requests at once; give each its etag",
                    "{}", answer.text
                );
            }
        }
        let body = json!({ "userId": ALICE.user, "decisions": [one] });
        let call = app.call(ALICE, Method::POST, PATH).header("If-Match", "*").json(&body);
        let call = call.header("Accept-Language", "ko");
        let korean = Answer::of(call.send().await.unwrap()).await;
        assert!(korean.body["message"].as_str().unwrap().contains("각 항목의 etag"), "{}", korean.text);
        for asked in &all {
            assert!(app.is_undecided(&asked.id).await);
        }
    }
}

both_modes! {
    async fn an_atomic_bulk_is_done_whole_or_not_at_all(app: TestApp) {
        let all = asked(&app, 8).await;
        app.approve(BOB, &all[3].id).await.assert(200, "");
        app.approve(ALICE, &all[5].id).await.assert(200, "");
        let mut subscriber = match app.mode {
            Mode::Production => Some(Subscriber::on(&all[1].session).await),
            Mode::Embedded => None,
        };
        let refused = bulk(&app, ALICE, approvals(&all), true).await;
        refused.assert(409, "E3008");
        assert_eq!(refused.body["message"], "Nothing decided: 1 of 8 requests stood in the way.");
        let free = (409, "E3008");
        assert_eq!(
            statuses(refused.data()),
            [free, free, free, (409, "E3006"), free, (200, ""), free, free]
        );
        for (number, asked) in all.iter().enumerate() {
            assert_eq!(app.is_undecided(&asked.id).await, ![3, 5].contains(&number));
        }
        let rest = [&all[..3], &all[4..]].concat();
        let done = bulk(&app, ALICE, approvals(&rest), true).await;
        assert_eq!(statuses(done.assert(200, "").data()), vec![(200, ""); 7]);
        for asked in &rest {
            let State::Decided(decision) = app.record(&asked.id).await.state else { panic!("undecided") };
            assert_eq!(decision.by.as_str(), ALICE.user);
            app.settled(&asked.id).await;
        }
        if let Some(subscriber) = &mut subscriber {
            assert_eq!(subscriber.heard().await.len(), 1);
        }
        // The same again: all are repeats.
        let again = bulk(&app, ALICE, approvals(&rest), true).await;
        assert_eq!(again.assert(200, "").data(), done.data());
        let theirs = bulk(&app, BOB, approvals(&rest), true).await;
        theirs.assert(409, "E3008");
        assert!(statuses(theirs.data()).iter().all(|one| *one == (409, "E3006")));
        bulk(&app, MALLORY, approvals(&rest), true).await.assert(409, "E3008");
    }
}

both_modes! {
    async fn one_write_may_have_several_requests_of_a_session_and_of_a_task(app: TestApp) {
        let made = json!({ "taskType": "t", "userId": ALICE.user, "tenantId": ALICE.tenant });
        let made = app.post(ALICE, "/main/agent/tasks", made).await;
        let task = made.data()["taskId"].as_str().unwrap();
        let session = unique("session_user123");
        let mut all = Vec::new();
        for _request in 0..3 {
            let asked = Asked::in_session(&session).with("taskId", task.into());
            app.register(ALICE, &asked).await.assert(201, "");
            all.push(asked);
        }
        let other = Asked::in_session(&session);
        app.register(ALICE, &other).await.assert(201, "");
        all.push(other);
        let mut decisions = approvals(&all);
        decisions[1] = json!({ "requestId": all[1].id, "decision": "reject", "reason": "아니요" });
        let done = bulk(&app, ALICE, decisions, true).await;
        assert_eq!(statuses(done.assert(200, "").data()), vec![(200, ""); 4]);
        let mut numbers = Vec::new();
        for asked in &all {
            numbers.push(app.record(&asked.id).await.sequence.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4]);
        let task = eventually(async || {
            let task = app.task_of(&all[0].id).await;
            (task.status != TaskStatus::WaitingApproval).then_some(task)
        })
        .await;
        assert_eq!(task.status, TaskStatus::InProgress);
        assert_eq!(task.error_message.as_deref(), Some("Rejected by user123: 아니요"));
        let heard = app.get(ALICE, &format!("/aura/hitl/signals/{session}/stream")).await;
        let order = heard.text.matches("event: ").count();
        assert_eq!(order, 4, "{}", heard.text);
    }
}

both_modes! {
    async fn of_two_atomic_bulks_with_a_common_request_one_is_done(app: TestApp) {
        for _round in 0..10 {
            let all = asked(&app, 7).await;
            let (left, right) = (approvals(&all[..4]), approvals(&all[3..]));
            let answers = join_all([bulk(&app, ALICE, left, true), bulk(&app, BOB, right, true)]).await;
            let done = answers.iter().filter(|answer| answer.status == 200).count();
            let refused = answers.iter().filter(|answer| answer.code() == "E3008").count();
            assert_eq!((done, refused), (1, 1), "{answers:?}");
            let mut decided = 0;
            for asked in &all {
                decided += usize::from(!app.is_undecided(&asked.id).await);
            }
            assert_eq!(decided, 4);
        }
    }
}

/// Longer than Postgres lets one statement wait for a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_atomic_bulk_goes_on_when_a_row_was_locked_for_long() {
    let app = TestApp::spawn(Mode::Production).await;
    let all = asked(&app, 4).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { panic!("no Postgres") };
    let mut holder = PgConnection::connect(url.expose_secret()).await.unwrap();
    let mut holding = holder.begin().await.unwrap();
    let lock = "SELECT 1 FROM hitl_request WHERE request_id = $1 FOR UPDATE";
    sqlx::query(lock).bind(&*all[2].id).execute(&mut *holding).await.unwrap();
    let letting_go = async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert!(app.is_undecided(&all[0].id).await, "all or none");
        holding.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(bulk(&app, ALICE, approvals(&all), true), letting_go);
    assert_eq!(statuses(answer.assert(200, "").data()), vec![(200, ""); 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tags_are_required_each_request_needs_its_own() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn_with(mode, Clock::System, |config| {
            config.policy.require_if_match = true;
        })
        .await;
        let all = asked(&app, 3).await;
        let mut decisions = approvals(&all);
        for (number, form) in [(0, "{}"), (1, "\"{}\"")] {
            let read =
                app.get(ALICE, &format!("/aura/hitl/requests/{}/detail", all[number].id)).await;
            decisions[number]["etag"] =
                form.replace("{}", read.data()["etag"].as_str().unwrap()).into();
        }
        let whole = bulk(&app, ALICE, decisions.clone(), true).await;
        whole.assert(409, "E3008");
        assert_eq!(statuses(whole.data()), [(409, "E3008"), (409, "E3008"), (428, "E4280")]);
        let each = bulk(&app, ALICE, decisions, false).await;
        assert_eq!(statuses(each.assert(200, "").data()), [(200, ""), (200, ""), (428, "E4280")]);
        let star = json!([{ "requestId": all[2].id, "decision": "approve", "etag": "*" }]);
        assert_eq!(statuses(bulk(&app, ALICE, star, false).await.data()), [(428, "E4280")]);
        assert!(app.is_undecided(&all[2].id).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_counts_as_so_many_calls_and_waits_for_room() {
    let limited = async |mode, per_second: u32, burst: u32| {
        TestApp::spawn_with(mode, Clock::System, |config| {
            let number = |number| NonZeroU32::new(number).unwrap();
            config.rate_limit =
                Some(RateLimit { per_second: number(per_second), burst: number(burst) });
        })
        .await
    };
    for mode in [Mode::Embedded, Mode::Production] {
        let name = unique("busy");
        let who = Who { user: &name, tenant: "tenant1", role: Role::User };
        // What is over the burst waits, and is then decided.
        let app = limited(mode, 20, 20).await;
        let all = join_all((0..60).map(async |_| {
            let asked = Asked::new();
            let other = unique("agent");
            let agent = Who { user: &other, ..who };
            app.register(agent, &asked).await.assert(201, "");
            asked
        }))
        .await;
        let began = Instant::now();
        let answer = bulk(&app, who, approvals(&all), false).await;
        assert_eq!(statuses(answer.assert(200, "").data()), vec![(200, ""); 60]);
        assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
        // What finds no room in time says so, each by itself; an atomic one as a whole.
        let app = limited(mode, 1, 5).await;
        let mut all = Vec::new();
        for _request in 0..20 {
            let (asked, other) = (Asked::new(), unique("agent"));
            app.register(Who { user: &other, ..who }, &asked).await.assert(201, "");
            all.push(asked);
        }
        let whole = bulk(&app, Who { user: &unique("hasty"), ..who }, approvals(&all), true).await;
        whole.assert(429, "E4290");
        let other = unique("hasty");
        let answer = bulk(&app, Who { user: &other, ..who }, approvals(&all), false).await;
        let statuses = statuses(answer.assert(200, "").data());
        let done = statuses.iter().filter(|one| **one == (200, "")).count();
        let late = statuses.iter().filter(|one| **one == (429, "E4290")).count();
        assert!((5..=17).contains(&done) && done + late == 20, "{statuses:?}");
        for (asked, (status, _code)) in all.iter().zip(&statuses) {
            assert_eq!(app.is_undecided(&asked.id).await, *status == 429);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_decides_nothing_that_a_single_call_would_not() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn_with(mode, Clock::System, |config| {
            config.policy.approvers = Approvers::Requester;
        })
        .await;
        let all = asked(&app, 4).await;
        for atomic in [false, true] {
            let answer = bulk(&app, BOB, approvals(&all), atomic).await;
            let status = if atomic { 409 } else { 200 };
            assert_eq!(answer.status.as_u16(), status);
            assert_eq!(statuses(answer.data()), vec![(403, "E2001"); 4]);
        }
        for asked in &all {
            assert!(app.is_undecided(&asked.id).await);
        }
        let body = json!({ "userId": BOB.user, "decisions": approvals(&all) });
        for (header, value) in [("X-DWP-Caller-Type", "AGENT"), ("X-DWP-Source", "AURA")] {
            let call = app.call(BOB, Method::POST, PATH).header(header, value).json(&body);
            Answer::of(call.send().await.unwrap()).await.assert(403, "E2001");
        }
    }
}

over_redis! {
    async fn an_atomic_bulk_says_of_which_request_the_agent_has_moved_on(app: TestApp) {
        let session = unique("session_user123");
        let (old, new, other) = (Asked::in_session(&session), Asked::in_session(&session), Asked::new());
        for asked in [&old, &new, &other] {
            app.ask(asked).await;
        }
        let all = [old, new, other];
        let refused = bulk(&app, ALICE, approvals(&all), true).await;
        refused.assert(409, "E3008");
        assert_eq!(statuses(refused.data()), [(410, "E3007"), (409, "E3008"), (409, "E3008")]);
        for asked in &all {
            assert!(app.is_undecided(&asked.id).await);
            assert_eq!(app.signal(&asked.session).await, None);
        }
        let done = bulk(&app, ALICE, approvals(&all[1..]), true).await;
        assert_eq!(statuses(done.assert(200, "").data()), [(200, ""), (200, "")]);
        assert!(app.signal(&session).await.unwrap().contains(&all[1].id));
    }
}
