//! Grants: approvals that stand for later requests. What they cover, what they never beat, and how they end.

use std::time::Duration;

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::record::DecidedVia;
use aura_hitl::identity::revocations::Revocations;
use chrono::TimeDelta;
use futures_util::future::join_all;
use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use support::forged::{claims, token};
use support::{
    ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, eventually_within, unique,
};

use crate::votes::{app_with, detail, known, listed, rules};

const RULES: &str = r#"
[groups]
searchers = ["kim", "lee"]

[[rule]]
name = "blocked"
when = 'actionType == "search_web" && has(context.blocked)'
auto = "reject"

[[rule]]
name = "large"
when = 'actionType == "search_web" && has(context.large)'
approvers = ["tenant"]
quorum = 2
remember = "any"

[[rule]]
name = "unclear"
when = 'actionType == "search_web" && has(context.size) && context.size > 5'
approvers = ["tenant"]
remember = "exact"

[[rule]]
name = "searches"
when = 'actionType == "search_web"'
approvers = ["group:searchers", "role:auditor", "requester"]
decisions = ["approve", "reject", "edit", "respond"]
remember = "any"

[[rule]]
name = "mails"
when = 'actionType == "send_email"'
approvers = ["tenant"]
remember = "exact"
self_approval = false

[[rule]]
name = "else"
when = 'true'
approvers = ["tenant"]
"#;

const KIM: Who<'static> = Who { user: "kim", tenant: "tenant1", role: Role::User };
const LEE: Who<'static> = Who { user: "lee", tenant: "tenant1", role: Role::User };

fn search() -> Asked {
    Asked::new().with("actionType", json!("search_web")).with("context", json!({ "query": "x" }))
}

fn in_session(asked: Asked, session: &Asked) -> Asked {
    Asked { session: session.session.clone(), ..asked.with("sessionId", json!(session.session)) }
}

/// A body that approves and remembers.
fn body(user: &str, scope: &str, arguments: &str, seconds: i64) -> Value {
    let remember = json!({ "scope": scope, "arguments": arguments, "seconds": seconds });
    json!({ "userId": user, "remember": remember })
}

async fn remember(
    app: &TestApp,
    who: Who<'_>,
    asked: &Asked,
    scope: &str,
    arguments: &str,
) -> Answer {
    let path = format!("/aura/hitl/approve/{}", asked.id);
    app.post(who, &path, body(who.user, scope, arguments, 600)).await
}

/// The id of the grant that an approval of a new request makes.
async fn grant(app: &TestApp, who: Who<'_>, asked: &Asked, scope: &str, arguments: &str) -> String {
    app.register(ALICE, asked).await.assert(201, "");
    let answer = remember(app, who, asked, scope, arguments).await;
    answer.assert(200, "");
    answer.data()["grantId"].as_str().unwrap().to_owned()
}

/// The status of a request that is registered now.
async fn registered(app: &TestApp, who: Who<'_>, asked: &Asked) -> String {
    let answer = app.register(who, asked).await;
    answer.assert(201, "");
    let status = answer.data()["status"].as_str().unwrap().to_owned();
    let record = app.record(&asked.id).await;
    assert_eq!(record.state.as_str(), status);
    assert_eq!(record.ruling.via == DecidedVia::Grant, status == "approved", "{record:?}");
    status
}

async fn grants(app: &TestApp, who: Who<'_>) -> Vec<Value> {
    let answer = app.get(who, "/api/aura/hitl/grants").await;
    answer.assert(200, "");
    answer.data()["grants"].as_array().unwrap().clone()
}

async fn end(app: &TestApp, who: Who<'_>, id: &str) -> Answer {
    let call = app.call(who, Method::DELETE, &format!("/api/aura/hitl/grants/{id}"));
    Answer::of(call.send().await.unwrap()).await
}

under_rules! {
    async fn an_approval_stands_for_later_requests_of_its_session(app: TestApp, mode: Mode, clock: Clock) {
        let first = search();
        let pending = in_session(search(), &first);
        app.register(ALICE, &pending).await.assert(201, "");
        let id = grant(&app, KIM, &first, "session", "any").await;
        // The one that it was made with was approved by a person.
        assert_eq!(app.record(&first.id).await.ruling.via, DecidedVia::Person, "{mode:?}");
        assert!(app.is_undecided(&pending.id).await, "it was asked before");

        let later = in_session(search(), &first).with("context", json!({ "query": "other" }));
        assert_eq!(registered(&app, ALICE, &later).await, "approved");
        let told = app.get(ALICE, &format!("/aura/hitl/requests/{}/decision", later.id)).await;
        let told = told.data();
        assert_eq!(
            (&told["decidedVia"], &told["decidedBy"], &told["grantId"], &told["votes"]),
            (&json!("grant"), &json!("kim"), &json!(id), &json!({ "needed": 1, "given": 1 }))
        );
        let seen = detail(&app, KIM, &later.id).await;
        seen.assert(200, "");
        assert_eq!(
            (&seen.data()["decidedVia"], &seen.data()["grantId"]),
            (&json!("grant"), &json!(id)), "{}", seen.text
        );
        assert!(seen.data()["history"].as_array().unwrap().iter().any(|it| {
            it["event"] == "approved" && it["by"] == "kim"
        }));
        // Registering it again says the same, and so does the granter, who is the same person deciding the
        // same way again. Everything else is another decision.
        app.register(ALICE, &later).await.assert(200, "");
        let repeated = app.approve(KIM, &later.id).await;
        repeated.assert(200, "");
        assert_eq!(*repeated.data(), json!({
            "requestId": later.id, "sessionId": later.session, "status": "approved",
        }));
        for atomic in [false, true] {
            let item = json!({ "requestId": later.id, "decision": "approve" });
            let body = json!({ "userId": "kim", "decisions": [item], "atomic": atomic });
            let bulk = app.post(KIM, "/aura/hitl/decisions", body).await;
            assert_eq!(bulk.data()["results"][0]["status"], 200, "{}", bulk.text);
        }
        app.reject(KIM, &later.id, None).await.assert(409, "E3006");
        app.approve(LEE, &later.id).await.assert(409, "E3006");
        remember(&app, KIM, &later, "session", "any").await.assert(409, "E3006");
        let unchanged = app.record(&later.id).await;
        assert_eq!(unchanged.ruling.via, DecidedVia::Grant);
        let polled = app.poll(ALICE, &later.session, Some(&later.id)).await.unwrap();
        assert_eq!(
            (&polled["status"], &polled["decidedVia"], &polled["grantId"], &polled["votes"]),
            (&json!("approved"), &json!("grant"), &json!(id), &told["votes"]), "{polled}"
        );

        // Whatever differs is for people to decide.
        assert_eq!(registered(&app, ALICE, &search()).await, "pending", "another session");
        let of_bob = in_session(search(), &first).with("userId", json!("bob"));
        assert_eq!(registered(&app, BOB, &of_bob).await, "pending", "another requester");
        let other = in_session(search(), &first).with("actionType", json!("read_mail"));
        assert_eq!(registered(&app, ALICE, &other).await, "pending", "another action");
        let namesake = Who { tenant: "tenant2", ..ALICE };
        let foreign = in_session(search(), &first).with("tenantId", json!("tenant2"));
        app.register(namesake, &foreign).await.assert(201, "");
        assert_eq!(app.record_of("tenant2", &foreign.id).await.unwrap().state.as_str(), "pending", "another tenant");
        if mode == Mode::Production {
            let written = in_session(search(), &first);
            app.ask(&written).await;
            known(&app, &written).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(app.is_undecided(&written.id).await, "another origin");
        }
        clock.advance(TimeDelta::seconds(599));
        assert_eq!(registered(&app, ALICE, &in_session(search(), &first)).await, "approved");
        clock.advance(TimeDelta::seconds(1));
        assert_eq!(registered(&app, ALICE, &in_session(search(), &first)).await, "pending");
        assert_eq!(grants(&app, KIM).await, Vec::<Value>::new());
    }

    async fn an_approval_stands_for_requests_that_say_the_same(app: TestApp, mode: Mode, _clock: Clock) {
        let mail = || Asked::new().with("context", json!({ "to": "a@b.c", "copies": 5 }));
        let first = mail();
        grant(&app, KIM, &first, "requester", "exact").await;
        let later = mail().with("taskId", json!(unique("task")));
        assert_eq!(registered(&app, ALICE, &later).await, "approved", "{mode:?}");
        for (field, value) in [
            ("context", json!({ "to": "a@b.c", "copies": 6 })),
            ("context", json!({ "to": "a@b.c", "copies": 5.0 })),
            ("context", json!({ "to": "a@b.c", "copies": 5, "sessionId": first.session })),
            ("message", json!("Another one?")),
            ("planSteps", json!([{ "stepId": "s1", "description": "more" }])),
            ("risk", json!("low")),
        ] {
            let other = mail().with(field, value.clone());
            assert_eq!(registered(&app, ALICE, &other).await, "pending", "{field} {value}");
        }
        // The requester may never approve it, and so neither does a grant of somebody's own.
        let of_kim = mail().with("userId", json!("kim"));
        assert_eq!(registered(&app, KIM, &of_kim).await, "pending");
        // It never covers more than the rule allows.
        let asked = mail().with("message", json!("and others"));
        app.register(ALICE, &asked).await.assert(201, "");
        let refused = remember(&app, KIM, &asked, "session", "any").await;
        refused.assert(403, "E2001");
        let message = refused.body["message"].as_str().unwrap();
        assert!(message.contains("\"mails\"") && message.contains("exact"), "{message}");
        assert!(app.is_undecided(&asked.id).await);
        assert_eq!(grants(&app, KIM).await.len(), 1);
        // The rule lets only requests be remembered that say the same.
        app.state.rules.set(Some(rules(&RULES.replace("remember = \"exact\"", "remember = \"never\""))));
        assert_eq!(registered(&app, ALICE, &mail()).await, "pending");
        app.state.rules.set(Some(rules(&RULES.replace("remember = \"exact\"", "remember = \"any\""))));
        assert_eq!(registered(&app, ALICE, &mail()).await, "approved");
    }

    async fn what_a_rule_does_not_allow_is_refused_and_nothing_recorded(app: TestApp, mode: Mode, _clock: Clock) {
        let other = Asked::new().with("actionType", json!("other"));
        let large = search().with("context", json!({ "large": true }));
        let unclear = search().with("context", json!({ "size": "big" }));
        for (asked, rule) in [(&other, "\"else\""), (&large, "\"large\""), (&unclear, "\"unclear\"")] {
            app.register(ALICE, asked).await.assert(201, "");
            for _again in 0..2 {
                let refused = remember(&app, KIM, asked, "session", "any").await;
                refused.assert(403, "E2001");
                let message = refused.body["message"].as_str().unwrap();
                assert!(message.contains(rule) && message.starts_with("Not approved: "), "{message}");
            }
            let path = format!("/aura/hitl/approve/{}", asked.id);
            let call = app.call(KIM, Method::POST, &path).header("Accept-Language", "ko");
            let call = call.json(&body("kim", "requester", "any", 1));
            let refused = Answer::of(call.send().await.unwrap()).await;
            let message = refused.body["message"].as_str().unwrap();
            assert!(message.contains(rule) && message.starts_with("승인되지 않음: "), "{message}");
            let record = app.record(&asked.id).await;
            assert!(app.is_undecided(&asked.id).await && record.ruling.ballots == 0, "{mode:?}");
        }
        // Who may not approve does not learn what could be remembered.
        let asked = search();
        app.register(ALICE, &asked).await.assert(201, "");
        remember(&app, BOB, &asked, "session", "any").await.assert(403, "E2001");
        assert!(app.is_undecided(&asked.id).await);
        assert_eq!(grants(&app, ADMIN).await, Vec::<Value>::new());
        // Without a policy file nothing is remembered.
        app.state.rules.set(None);
        let refused = remember(&app, KIM, &asked, "session", "any").await;
        refused.assert(403, "E2001");
        assert!(refused.body["message"].as_str().unwrap().contains("no policy file"));
        assert!(app.is_undecided(&asked.id).await);
    }

    async fn what_is_asked_wrongly_is_named(app: TestApp, mode: Mode, _clock: Clock) {
        let asked = search();
        app.register(ALICE, &asked).await.assert(201, "");
        let path = format!("/aura/hitl/approve/{}", asked.id);
        for (remember, field) in [
            (json!({}), "remember.scope"),
            (json!({ "scope": "tenant", "arguments": "any", "seconds": 1 }), "remember.scope"),
            (json!({ "scope": "session", "seconds": 1 }), "remember.arguments"),
            (json!({ "scope": "session", "arguments": "never", "seconds": 1 }), "remember.arguments"),
            (json!({ "scope": "session", "arguments": "any" }), "remember.seconds"),
            (json!({ "scope": "session", "arguments": "any", "seconds": 0 }), "remember.seconds"),
            (json!({ "scope": "session", "arguments": "any", "seconds": 28801 }), "remember.seconds"),
            (json!({ "scope": "session", "arguments": "any", "seconds": "5" }), "remember.seconds"),
            (json!({ "scope": 5, "arguments": "any", "seconds": 1 }), "remember.scope"),
            (json!("session"), "remember"),
        ] {
            let answer = app.post(KIM, &path, json!({ "userId": "kim", "remember": remember })).await;
            answer.assert(400, "E4000");
            assert!(answer.text.contains(&format!("\"{field}\"")), "{remember}: {}", answer.text);
        }
        // Only an approval can be remembered, even where the person may decide in the other way.
        for (way, extra) in [("reject", "reason"), ("respond", "response")] {
            let mut wish = body("kim", "session", "any", 60);
            wish[extra] = json!("no");
            let path = format!("/aura/hitl/{way}/{}", asked.id);
            for (language, sentence) in [
                ("en", "is possible only with an approval"), ("ko", "승인할 때만 쓸 수 있습니다"),
            ] {
                let call = app.call(KIM, Method::POST, &path).header("Accept-Language", language);
                let answer = Answer::of(call.json(&wish).send().await.unwrap()).await;
                answer.assert(400, "E4000");
                assert_eq!(answer.data()["remember"], sentence, "{}", answer.text);
            }
            wish["remember"] = json!("yes");
            app.post(KIM, &path, wish).await.assert(400, "E4000");
        }
        let mut both = body("kim", "session", "any", 60);
        both["arguments"] = json!({ "query": "y" });
        let answer = app.post(KIM, &path, both).await;
        answer.assert(400, "E4000");
        assert!(answer.text.contains("\"remember\""), "{}", answer.text);
        let bulk = json!({ "userId": "kim", "decisions": [{
            "requestId": asked.id, "decision": "approve",
            "remember": { "scope": "session", "arguments": "any", "seconds": 60 },
        }] });
        app.post(KIM, "/aura/hitl/decisions", bulk).await.assert(400, "E4000");
        let mut beside = body("kim", "session", "any", 60);
        beside["decisions"] = json!([{ "requestId": asked.id, "decision": "approve" }]);
        app.post(KIM, "/aura/hitl/decisions", beside).await.assert(400, "E4000");
        assert!(app.is_undecided(&asked.id).await, "{mode:?}");
        assert_eq!(grants(&app, ADMIN).await, Vec::<Value>::new());
    }

    async fn a_grant_is_as_good_as_its_granter(app: TestApp, mode: Mode, _clock: Clock) {
        grant(&app, KIM, &search(), "requester", "any").await;
        assert_eq!(registered(&app, ALICE, &search()).await, "approved");
        // Kim leaves the group, and comes back.
        app.state.rules.set(Some(rules(&RULES.replace("[\"kim\", \"lee\"]", "[\"lee\"]"))));
        assert_eq!(registered(&app, ALICE, &search()).await, "pending", "{mode:?}");
        app.state.rules.set(Some(rules(RULES)));
        assert_eq!(registered(&app, ALICE, &search()).await, "approved");
        // Every rule that binds counts, now.
        for (context, status) in [
            (json!({ "query": "x", "blocked": 1 }), "rejected"),
            (json!({ "query": "x", "large": 1 }), "pending"),
            (json!({ "query": "x", "size": "big" }), "pending"),
            (json!({ "query": "x", "size": 6 }), "pending"),
            (json!({ "query": "x", "size": 5 }), "approved"),
        ] {
            let asked = search().with("context", context.clone());
            let answer = app.register(ALICE, &asked).await;
            assert_eq!(answer.data()["status"], status, "{context}");
        }
        // Its agent must be able to go on after an approval.
        let answers = search().with("decisions", json!(["reject", "respond"]));
        assert_eq!(registered(&app, ALICE, &answers).await, "pending");
        // Where nobody matches any more, an admin decides.
        app.state.rules.set(Some(rules(&RULES.replace("\"search_web\"'", "\"none\"'").replace("when = 'true'", "when = 'false'"))));
        assert_eq!(registered(&app, ALICE, &search()).await, "pending");
        app.state.rules.set(None);
        assert_eq!(registered(&app, ALICE, &search()).await, "pending");
    }

    async fn a_grant_and_a_vote_end_with_the_token_that_gave_them(app: TestApp, mode: Mode, clock: Clock) {
        let secret = app.config.jwt.secret.expose_secret().as_bytes();
        let kims = token(secret, &claims(&json!({ "sub": "kim", "jti": "stolen" })));
        let asked = search();
        app.register(ALICE, &asked).await.assert(201, "");
        let call = app.client.post(format!("{}/aura/hitl/approve/{}", app.base, asked.id));
        let call = call.bearer_auth(&kims).header("X-Tenant-ID", "tenant1").header("X-User-ID", "kim");
        let call = call.json(&body("kim", "requester", "any", 600));
        Answer::of(call.send().await.unwrap()).await.assert(200, "");
        let large = search().with("context", json!({ "large": 1 }));
        app.register(ALICE, &large).await.assert(201, "");
        app.approve(KIM, &large.id).await.assert(202, "");
        assert_eq!(registered(&app, ALICE, &search()).await, "approved");
        let revoke = |list: &str| {
            let mut config = app.config.jwt.clone();
            config.revocations = Revocations::read("revoked.toml".as_ref(), list).unwrap();
            app.state.tokens.set(&config);
        };
        let not_before = |moment: TimeDelta| {
            let time = (clock.now() + moment).to_rfc3339();
            format!("[[not_before]]\ntenant = \"tenant1\"\nuser = \"kim\"\ntime = \"{time}\"")
        };
        for (list, status) in [
            ("jti = [\"stolen\"]", "pending"),
            ("jti = [\"another\"]", "approved"),
            (&not_before(TimeDelta::minutes(1)), "pending"),
            (&not_before(TimeDelta::minutes(-1)), "approved"),
            (&not_before(TimeDelta::minutes(1)), "pending"),
        ] {
            revoke(list);
            assert_eq!(registered(&app, ALICE, &search()).await, status, "{mode:?} {list}");
        }
        // Kim's vote counts no longer either.
        let seen = detail(&app, BOB, &large.id).await;
        assert_eq!(seen.data()["votes"][0]["counted"], false, "{}", seen.text);
        app.approve(BOB, &large.id).await.assert(202, "");
        revoke("jti = []");
        app.approve(BOB, &large.id).await.assert(200, "");
        assert!(app.record(&large.id).await.is_approved());
    }

    async fn roles_count_as_of_the_grant_and_requesters_as_of_now(app: TestApp, mode: Mode, _clock: Clock) {
        let asked = search();
        app.register(ALICE, &asked).await.assert(201, "");
        let secret = app.config.jwt.secret.expose_secret().as_bytes();
        let zoe = token(secret, &claims(&json!({ "sub": "zoe", "roles": ["auditor"] })));
        let call = app.client.post(format!("{}/aura/hitl/approve/{}", app.base, asked.id));
        let call = call.bearer_auth(zoe).header("X-Tenant-ID", "tenant1").header("X-User-ID", "zoe");
        let answer = Answer::of(call.json(&body("zoe", "requester", "any", 60)).send().await.unwrap()).await;
        answer.assert(200, "");
        let later = search();
        assert_eq!(registered(&app, ALICE, &later).await, "approved", "{mode:?}");
        assert_eq!(app.record(&later.id).await.state.decision().unwrap().by.as_str(), "zoe");
        app.state.rules.set(Some(rules(&RULES.replace("role:auditor", "role:other"))));
        assert_eq!(registered(&app, ALICE, &search()).await, "pending");
        // Requesters, too, as long as they may approve their own.
        let own = search();
        app.register(ALICE, &own).await.assert(201, "");
        remember(&app, ALICE, &own, "requester", "any").await.assert(200, "");
        assert_eq!(registered(&app, ALICE, &search()).await, "approved");
        let strict = RULES.replace("decisions = [", "self_approval = false\ndecisions = [");
        app.state.rules.set(Some(rules(&strict.replace("role:auditor", "role:other"))));
        assert_eq!(registered(&app, ALICE, &search()).await, "pending");
    }

    async fn an_approval_that_is_repeated_makes_one_grant(app: TestApp, mode: Mode, clock: Clock) {
        let asked = search();
        let id = grant(&app, KIM, &asked, "session", "any").await;
        let again = remember(&app, KIM, &asked, "session", "any").await;
        again.assert(200, "");
        assert_eq!(again.data()["grantId"], json!(id), "{mode:?}");
        // The approval alone is a repeat, too; other wishes are not.
        app.approve(KIM, &asked.id).await.assert(200, "");
        remember(&app, KIM, &asked, "requester", "any").await.assert(409, "E3006");
        remember(&app, KIM, &asked, "session", "exact").await.assert(409, "E3006");
        remember(&app, LEE, &asked, "session", "any").await.assert(409, "E3006");
        let plain = search();
        app.register(ALICE, &plain).await.assert(201, "");
        app.approve(KIM, &plain.id).await.assert(200, "");
        remember(&app, KIM, &plain, "session", "any").await.assert(409, "E3006");
        assert_eq!(grants(&app, ADMIN).await.len(), 1);
        // One decides, and only that one is remembered.
        let contested = search();
        app.register(ALICE, &contested).await.assert(201, "");
        let (app, contested) = (&app, &contested);
        let both = [KIM, LEE].map(|who| remember(app, who, contested, "requester", "any"));
        let answers = join_all(both).await;
        let mut statuses = answers.iter().map(|it| it.status.as_u16()).collect::<Vec<_>>();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409]);
        let made = grants(app, ADMIN).await;
        assert_eq!(made.len(), 2, "{made:?}");
        let by = app.record(&contested.id).await.state.decision().unwrap().by.clone();
        assert!(made.iter().any(|it| it["requestId"] == contested.id && it["grantedBy"] == by.as_str()));
        // After it has ended, nothing is remembered.
        clock.advance(TimeDelta::seconds(600));
        remember(app, KIM, &asked, "session", "any").await.assert(409, "E3006");
        app.approve(KIM, &asked.id).await.assert(200, "");
    }

    async fn grants_are_listed_and_ended(app: TestApp, mode: Mode, _clock: Clock) {
        let asked = search();
        let id = grant(&app, KIM, &asked, "session", "any").await;
        let of_lee = grant(&app, LEE, &search(), "requester", "exact").await;
        let mine = grants(&app, KIM).await;
        assert_eq!(mine.len(), 1, "{mode:?}");
        let mut is = mine[0].clone();
        for time in ["createdAt", "expiresAt"] {
            assert_eq!(is.as_object_mut().unwrap().remove(time).unwrap().as_str().unwrap().len(), 19);
        }
        assert_eq!(is, json!({
            "grantId": id, "requestId": asked.id, "grantedBy": "kim", "userId": ALICE.user,
            "scope": "session", "sessionId": asked.session, "origin": "http",
            "actionType": "search_web", "arguments": "any", "rule": "searches",
        }));
        assert_eq!(grants(&app, ADMIN).await.len(), 2);
        assert_eq!(grants(&app, ALICE).await, Vec::<Value>::new());
        assert_eq!(grants(&app, MALLORY).await, Vec::<Value>::new());
        app.get(KIM, "/aura/hitl/grants?size=5").await.assert(400, "E4000");
        for who in [LEE, ALICE, MALLORY, Who { role: Role::Admin, ..MALLORY }] {
            end(&app, who, &id).await.assert(404, "E1004");
        }
        end(&app, KIM, "grant_none").await.assert(404, "E1004");
        end(&app, KIM, "a%20b").await.assert(400, "E4000");
        assert_eq!(registered(&app, ALICE, &in_session(search(), &asked)).await, "approved");
        for _again in 0..2 {
            let ended = end(&app, KIM, &id).await;
            ended.assert(200, "");
            assert_eq!(ended.data()["grantId"], json!(id));
        }
        assert_eq!(grants(&app, KIM).await, Vec::<Value>::new());
        let other = in_session(search(), &asked).with("context", json!({ "query": "other" }));
        assert_eq!(registered(&app, ALICE, &other).await, "pending");
        end(&app, ADMIN, &of_lee).await.assert(200, "");
        assert_eq!(registered(&app, ALICE, &search()).await, "pending");
        // The request that it approved still says which.
        assert_eq!(app.record(&asked.id).await.ruling.grant.unwrap().as_str(), id);
    }
}

/// However many grants approve nothing, a later request is approved by one that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_stands_is_found_behind_many_that_do_not() {
    let names = (0..30).map(|number| format!("p{number}")).collect::<Vec<_>>();
    let searchers = |names: &[String]| {
        let people = [names, &["lee".to_owned()]].concat();
        RULES.replace("[\"kim\", \"lee\"]", &format!("{people:?}"))
    };
    for mode in [Mode::Embedded, Mode::Production] {
        let clock = Clock::manual();
        let (app, _redis) = app_with(mode, &searchers(&names), clock.clone()).await;
        // All were asked before the first was approved, else its grant would approve them.
        let mut waiting = Vec::new();
        for _request in 0..110 {
            let asked = search();
            app.register(ALICE, &asked).await.assert(201, "");
            waiting.push(asked);
        }
        let mut grant = async |user: &str, seconds: i64| {
            let asked = waiting.pop().unwrap();
            let path = format!("/aura/hitl/approve/{}", asked.id);
            let who = Who { user, ..KIM };
            let made = app.post(who, &path, body(user, "requester", "any", seconds)).await;
            made.assert(200, "");
            made.data()["grantId"].as_str().unwrap().to_owned()
        };
        let old = grant("lee", 300).await;
        clock.advance(TimeDelta::seconds(1));
        let stands = grant("lee", 250).await;
        for name in &names {
            // Two of each of those who lose the right, one that ends, and one that expires.
            grant(name, 900).await;
            grant(name, 900).await;
        }
        for number in 0..22 {
            let ended = grant("lee", 800).await;
            end(&app, LEE, &ended).await.assert(200, "");
            grant("lee", 1 + number % 2).await;
        }
        clock.advance(TimeDelta::seconds(2));
        app.state.rules.set(Some(rules(&searchers(&[]))));
        let later = search();
        assert_eq!(registered(&app, ALICE, &later).await, "approved", "{mode:?}");
        assert_eq!(app.record(&later.id).await.ruling.grant.unwrap().as_str(), stands);
        // Another one of the same person takes its place.
        end(&app, LEE, &stands).await.assert(200, "");
        let later = search();
        assert_eq!(registered(&app, ALICE, &later).await, "approved", "{mode:?}");
        assert_eq!(app.record(&later.id).await.ruling.grant.unwrap().as_str(), old);
        end(&app, LEE, &old).await.assert(200, "");
        assert_eq!(registered(&app, ALICE, &search()).await, "pending");
    }
}

/// A grant is written with its decision, or not at all, on whichever of two replicas somebody ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_approved_after_a_grant_was_ended() {
    for mode in [Mode::Embedded, Mode::Production] {
        let (app, _redis) = app_with(mode, RULES, Clock::System).await;
        let app = &app;
        for _round in 0..5 {
            let asked = search();
            let id = grant(app, KIM, &asked, "requester", "any").await;
            let registering = (0..8).map(async |_| {
                let later = search();
                app.register(ALICE, &later).await.assert(201, "");
                later.id
            });
            let (ids, ended) = tokio::join!(join_all(registering), end(app, KIM, &id));
            ended.assert(200, "");
            assert_eq!(registered(app, ALICE, &search()).await, "pending");
            for id in ids {
                let record = app.record(&id).await;
                let is_by_grant = record.ruling.via == DecidedVia::Grant;
                assert_eq!(record.is_approved(), is_by_grant, "{record:?}");
            }
        }
    }
}

/// Agents on Redis hear what a grant approves; what was asked before it is for people to decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_on_redis_is_told_what_a_grant_approves() {
    let (app, _redis) = app_with(Mode::Production, RULES, Clock::System).await;
    let (first, early) = (search(), search());
    for asked in [&early, &first] {
        app.ask(asked).await;
        known(&app, asked).await;
    }
    let made = remember(&app, KIM, &first, "requester", "any").await;
    made.assert(200, "");
    let id = made.data()["grantId"].as_str().unwrap().to_owned();
    assert_eq!(grants(&app, KIM).await[0]["origin"], "redis");

    let later = search();
    let approved = async |asked: &Asked| {
        eventually_within(Duration::from_secs(12), async || {
            let stored: Value =
                serde_json::from_str(&app.stored(&asked.id).await.document).unwrap();
            (stored["status"] == "approved").then_some(())
        })
        .await;
        app.settled(&asked.id).await
    };
    app.ask(&later).await;
    let record = approved(&later).await;
    assert_eq!(record.ruling.via, DecidedVia::Grant);
    assert_eq!(record.ruling.grant.as_ref().unwrap().as_str(), id);
    assert_eq!(record.state.decision().unwrap().by.as_str(), "kim");
    let signal: Value = serde_json::from_str(&app.signal(&later.session).await.unwrap()).unwrap();
    let fields = signal.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields, ["requestId", "status", "timestamp", "type"]);
    // The granter, who saw it before, says the same.
    app.approve(KIM, &later.id).await.assert(200, "");
    app.reject(KIM, &later.id, None).await.assert(409, "E3006");
    assert!(app.is_undecided(&early.id).await);
    // A registered one is another origin.
    assert_eq!(registered(&app, ALICE, &search()).await, "pending");
    // One that waits for something else hears nothing.
    let (old, new) = (search(), Asked::new());
    let new = in_session(new, &old);
    app.put(&new.id, &new.document.to_string()).await;
    let pointer = json!({
        "sessionId": old.session, "requestId": new.id, "userId": ALICE.user, "tenantId": "tenant1",
    });
    app.point(&old.session, &pointer.to_string()).await;
    app.put(&old.id, &old.document.to_string()).await;

    // Asked again, it is told again, as long as the grant stands.
    tokio::time::sleep(Duration::from_millis(300)).await;
    app.ask(&later).await;
    approved(&later).await;
    assert!(app.is_undecided(&old.id).await);
    end(&app, KIM, &id).await.assert(200, "");
    tokio::time::sleep(Duration::from_millis(300)).await;
    app.ask(&later).await;
    let row = eventually_within(Duration::from_secs(12), async || {
        let rows = listed(&app, ADMIN, &format!("scope=tenant&sessionId={}", later.session)).await;
        rows.into_iter().next()
    })
    .await;
    assert_eq!((&row["askedAgain"], &row["mayDecide"]), (&json!(true), &json!(false)));
    // Not even who granted repeats it.
    app.approve(KIM, &later.id).await.assert(409, "E3006");
    assert_eq!(app.stored(&later.id).await.document, later.document.to_string());
    let of_kim = listed(&app, KIM, &format!("sessionId={}", later.session)).await;
    assert!(of_kim.iter().all(|row| row["mayDecide"] == json!(false)), "{of_kim:?}");
    let after = search();
    app.ask(&after).await;
    known(&app, &after).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(app.is_undecided(&after.id).await);
}

/// Rule 9 of docs/policy.md, from its text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rule_of_the_document_remembers_for_a_session() {
    let document = include_str!("../../docs/policy.md");
    let section = document.split_once("### 9 Remember for a session").unwrap().1;
    let rule = section.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    for mode in [Mode::Embedded, Mode::Production] {
        let (app, _redis) = app_with(mode, rule, Clock::System).await;
        let weather = || search().with("context", json!({ "query": "weather" }));
        let first = weather();
        grant(&app, ALICE, &first, "session", "any").await;
        let later = in_session(search(), &first).with("context", json!({ "query": "news" }));
        assert_eq!(registered(&app, ALICE, &later).await, "approved", "{mode:?}");
        assert_eq!(registered(&app, ALICE, &weather()).await, "pending");
        // The rule is not sure.
        let odd = in_session(search(), &first).with("context", json!({ "query": 5 }));
        assert_eq!(registered(&app, ALICE, &odd).await, "pending");
        let long =
            in_session(search(), &first).with("context", json!({ "query": "x".repeat(201) }));
        assert_eq!(registered(&app, ALICE, &long).await, "pending");
    }
}

/// Expired grants go with the requests of their age; those in force stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_purge_deletes_expired_grants() {
    for mode in [Mode::Embedded, Mode::Production] {
        let (app, _redis) = app_with(mode, RULES, Clock::System).await;
        let ledger = &app.state.ledger;
        grant(&app, KIM, &search(), "session", "any").await;
        grant(&app, KIM, &search(), "session", "any").await;
        let now = app.state.clock.now();
        assert_eq!(ledger.purge_grants(now, 100).await.unwrap(), 0);
        assert_eq!(ledger.purge_grants(now + TimeDelta::hours(1), 1).await.unwrap(), 1);
        assert_eq!(grants(&app, KIM).await.len(), 1, "{mode:?}");
    }
}
