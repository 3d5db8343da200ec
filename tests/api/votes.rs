//! Deciding under a policy file: who may, how many it takes, who sees what, and what a rule decides by
//! itself. The rules themselves are tested where they are (`src/policy`); here it is what the service does
//! with them, in both modes.

use std::sync::Arc;
use std::time::Duration;

use aura_hitl::config::Config;
use aura_hitl::courier::RedisSettings;
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::record::DecidedVia;
use aura_hitl::policy::Policy;
use futures_util::future::join_all;
use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use support::forged::{claims, token};
use support::{
    ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, PrivateRedis, Program, Subscriber, TestApp,
    Who, eventually, eventually_within, kill, watch_redis,
};
use tempfile::TempDir;

const RULES: &str = r#"
[groups]
finance = ["kim", "lee", "user123"]

[[rule]]
name = "blocked"
when = 'actionType == "drop_database"'
auto = "reject"

[[rule]]
name = "large payments"
when = 'actionType == "send_payment" && context.amount >= 1000.0'
risk = "high"
approvers = ["group:finance", "role:auditor"]
quorum = 2
self_approval = false

[[rule]]
name = "short"
when = 'actionType == "short"'
approvers = ["tenant"]
expires_in = "1m"

[[rule]]
name = "escalates"
when = 'actionType == "escalates"'
approvers = ["user:kim"]
escalate = [{ after = "10m", approvers = ["user:bob"] }]

[[rule]]
name = "reading is fine"
when = 'actionType.startsWith("read_")'
auto = "approve"

[[rule]]
name = "else"
when = 'true'
approvers = ["user:bob"]
"#;

const KIM: Who<'static> = Who { user: "kim", tenant: "tenant1", role: Role::User };
const LEE: Who<'static> = Who { user: "lee", tenant: "tenant1", role: Role::User };

pub fn rules(text: &str) -> Arc<Policy> {
    Arc::new(Policy::read(text).unwrap())
}

/// A service with these rules. Its Redis announces changes.
pub async fn app_with(mode: Mode, text: &str, clock: Clock) -> (TestApp, Option<PrivateRedis>) {
    let redis = match mode {
        Mode::Embedded => None,
        Mode::Production => {
            Some(PrivateRedis::start_with(&["--notify-keyspace-events", "KA"]).await)
        }
    };
    let app = TestApp::spawn_with(mode, clock, |config| {
        config.policy_file = Some(rules(text));
        if let Some(redis) = &redis {
            with_redis(config, redis.settings());
        }
    })
    .await;
    (app, redis)
}

fn with_redis(config: &mut Config, settings: RedisSettings) {
    config.redis = Some(settings);
    watch_redis(config);
}

/// Another replica on the same stores.
async fn twin(app: &TestApp) -> TestApp {
    let (ledger, redis) = (app.config.ledger.clone(), app.config.redis.clone());
    TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.ledger = ledger;
        config.redis = redis;
        config.jwt = app.config.jwt.clone();
        config.policy_file = app.config.policy_file.clone();
        watch_redis(config);
    })
    .await
}

fn payment() -> Asked {
    Asked::new()
        .with("actionType", json!("send_payment"))
        .with("context", json!({ "amount": 5000, "to": "x" }))
}

pub fn action(action: &str) -> Asked {
    Asked::new().with("actionType", json!(action))
}

pub async fn detail(app: &TestApp, who: Who<'_>, id: &str) -> Answer {
    app.get(who, &format!("/api/aura/hitl/requests/{id}/detail")).await
}

pub async fn listed(app: &TestApp, who: Who<'_>, query: &str) -> Vec<Value> {
    let answer = app.get(who, &format!("/api/aura/hitl/requests?{query}")).await;
    answer.assert(200, "");
    answer.data()["content"].as_array().unwrap().clone()
}

async fn ids(app: &TestApp, who: Who<'_>, query: &str) -> Vec<String> {
    let id = |row: &Value| row["requestId"].as_str().unwrap().to_owned();
    listed(app, who, query).await.iter().map(id).collect()
}

/// Waits until the intake has seen what an agent wrote to Redis, if there is one.
pub async fn known(app: &TestApp, asked: &Asked) {
    let path = format!("/api/aura/hitl/requests?scope=tenant&sessionId={}", asked.session);
    eventually_within(Duration::from_secs(8), async || {
        let answer = app.get(ADMIN, &path).await;
        (answer.data()["totalElements"] != json!(0)
            || answer.data()["numberOfElements"] == json!(1))
        .then_some(())
    })
    .await;
}

under_rules! {
    async fn two_people_approve_a_large_payment(app: TestApp, mode: Mode) {
        // Over HTTP, and on Redis where there is one. There nobody has seen the request before.
        for is_registered in [true, false] {
            let asked = payment();
            if is_registered {
                app.register(ALICE, &asked).await.assert(201, "");
            } else {
                app.ask(&asked).await;
            }
            let refused = app.approve(BOB, &asked.id).await;
            refused.assert(403, "E2001");
            let message = refused.body["message"].as_str().unwrap();
            assert!(message.contains("large payments"), "{message}");
            // The requester is of the group, and may not approve.
            app.approve(ALICE, &asked.id).await.assert(403, "E2001");
            app.approve(ADMIN, &asked.id).await.assert(403, "E2001");

            for _again in 0..2 {
                let first = app.approve(KIM, &asked.id).await;
                first.assert(202, "");
                assert_eq!(first.body["message"], "Approval recorded; 1 more needed");
                assert_eq!(*first.data(), json!({
                    "requestId": asked.id, "sessionId": asked.session, "status": "pending",
                    "approvals": 1, "approvalsNeeded": 2,
                }));
                assert!(first.headers.contains_key("ETag"));
            }
            assert_eq!(app.signal(&asked.session).await, None);
            assert_eq!(app.record(&asked.id).await.state, State::Pending);
            let seen = detail(&app, LEE, &asked.id).await;
            seen.assert(200, "");
            let seen = seen.data();
            assert_eq!(
                (&seen["approvals"], &seen["approvalsNeeded"], &seen["risk"], &seen["rule"]),
                (&json!(1), &json!(2), &json!("high"), &json!("large payments"))
            );
            assert_eq!(seen["mayDecide"], json!(true));
            let vote = &seen["votes"][0];
            assert_eq!(
                (&vote["userId"], &vote["decision"], &vote["counted"]),
                (&json!("kim"), &json!("approve"), &json!(true))
            );
            assert!(seen["why"].as_str().unwrap().contains("large payments"), "{seen}");
            assert!(seen["history"].as_array().unwrap().iter().any(|it| it["event"] == "voted"));

            let second = app.approve(LEE, &asked.id).await;
            second.assert(200, "");
            assert_eq!(*second.data(), json!({
                "requestId": asked.id, "sessionId": asked.session, "status": "approved",
            }));
            let record = app.settled(&asked.id).await;
            assert_eq!(record.state.decision().unwrap().by.as_str(), "lee");
            // Each of them repeats it; nobody else does.
            for who in [KIM, LEE] {
                app.approve(who, &asked.id).await.assert(200, "");
            }
            app.approve(BOB, &asked.id).await.assert(403, "E2001");
            app.reject(KIM, &asked.id, None).await.assert(409, "E3006");
            let seen = detail(&app, KIM, &asked.id).await;
            assert_eq!(seen.data()["votes"].as_array().unwrap().len(), 2, "{}", seen.text);
            assert!(seen.data()["votes"].as_array().unwrap().iter().all(|it| it["counted"] == true));
            let told = app.get(ALICE, &format!("/aura/hitl/requests/{}/decision", asked.id)).await;
            assert_eq!(told.data()["decidedVia"], "person");
            assert_eq!(told.data()["votes"], json!({ "needed": 2, "given": 2 }));
            if mode == Mode::Production && !is_registered {
                let signal: Value =
                    serde_json::from_str(&app.signal(&asked.session).await.unwrap()).unwrap();
                let fields = signal.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
                assert_eq!(fields, ["requestId", "status", "timestamp", "type"]);
            }
        }
    }

    async fn a_korean_reads_how_many_are_missing(app: TestApp, mode: Mode) {
        let asked = payment();
        app.ask(&asked).await;
        let path = format!("/aura/hitl/approve/{}", asked.id);
        let call = app.call(KIM, Method::POST, &path).header("Accept-Language", "ko");
        let answer = Answer::of(call.json(&json!({ "userId": "kim" })).send().await.unwrap()).await;
        answer.assert(202, "");
        assert_eq!(answer.body["message"], "승인 기록됨: 1명의 승인이 더 필요합니다.", "{mode:?}");
    }

    async fn one_rejection_ends_it_and_requesters_reject_their_own(app: TestApp, mode: Mode) {
        let asked = payment();
        app.ask(&asked).await;
        app.approve(KIM, &asked.id).await.assert(202, "");
        app.reject(BOB, &asked.id, None).await.assert(403, "E2001");
        // A later vote of the same person replaces the earlier one.
        app.reject(KIM, &asked.id, Some("no")).await.assert(200, "");
        app.approve(LEE, &asked.id).await.assert(409, "E3006");
        let seen = detail(&app, KIM, &asked.id).await;
        let votes = seen.data()["votes"].as_array().unwrap().clone();
        assert_eq!(votes.len(), 1, "{votes:?}");
        assert_eq!((&votes[0]["decision"], &votes[0]["reason"]), (&json!("reject"), &json!("no")));

        let own = payment();
        app.ask(&own).await;
        app.reject(ALICE, &own.id, None).await.assert(200, "");
        assert_eq!(app.record(&own.id).await.state.as_str(), "rejected", "{mode:?}");
    }

    async fn a_vote_counts_for_the_content_for_which_it_was_given(app: TestApp, mode: Mode) {
        let asked = payment();
        app.ask(&asked).await;
        let tag = detail(&app, KIM, &asked.id).await.headers["ETag"].to_str().unwrap().to_owned();
        app.approve(KIM, &asked.id).await.assert(202, "");
        let path = format!("/aura/hitl/approve/{}", asked.id);
        let approve_if = async |who: Who<'_>, tag: &str| {
            let call = app.call(who, Method::POST, &path).header("If-Match", tag);
            Answer::of(call.json(&json!({ "userId": who.user })).send().await.unwrap()).await
        };
        approve_if(LEE, "\"other\"").await.assert(412, "E4120");
        if mode == Mode::Production {
            // The agent asks for something else under the same id.
            let dearer = Asked { id: asked.id.clone(), ..payment() }
                .with("sessionId", json!(asked.session))
                .with("requestId", json!(asked.id))
                .with("context", json!({ "amount": 9999, "to": "y" }));
            app.put(&asked.id, &dearer.document.to_string()).await;
            approve_if(LEE, &tag).await.assert(412, "E4120");
            // The vote of the other content does not count.
            app.approve(LEE, &asked.id).await.assert(202, "");
            let seen = detail(&app, LEE, &asked.id).await;
            assert_eq!(seen.data()["approvals"], json!(1), "{}", seen.text);
            let counted = seen.data()["votes"].as_array().unwrap().iter();
            let counted = counted.filter(|vote| vote["counted"] == true);
            assert_eq!(counted.map(|vote| &vote["userId"]).collect::<Vec<_>>(), [&json!("lee")]);
            app.approve(KIM, &asked.id).await.assert(200, "");
        } else {
            approve_if(LEE, &tag).await.assert(200, "");
        }
    }

    async fn who_lost_the_right_is_kept_and_not_counted(app: TestApp, mode: Mode) {
        let asked = payment();
        app.ask(&asked).await;
        app.approve(KIM, &asked.id).await.assert(202, "");
        // Kim leaves the group.
        let changed = RULES.replace(r#"["kim", "lee", "user123"]"#, r#"["cho", "lee", "user123"]"#);
        app.state.rules.set(Some(rules(&changed)));
        let cho = Who { user: "cho", ..KIM };
        let seen = detail(&app, LEE, &asked.id).await;
        assert_eq!(seen.data()["approvals"], json!(0), "{}", seen.text);
        assert_eq!(seen.data()["votes"][0]["counted"], json!(false));
        app.approve(LEE, &asked.id).await.assert(202, "");
        // Who has voted may still see it, and may not decide it.
        detail(&app, KIM, &asked.id).await.assert(200, "");
        app.approve(KIM, &asked.id).await.assert(403, "E2001");
        app.approve(cho, &asked.id).await.assert(200, "");
        app.approve(KIM, &asked.id).await.assert(409, "E3006");
        let seen = detail(&app, LEE, &asked.id).await;
        let votes = seen.data()["votes"].as_array().unwrap().clone();
        let counted = votes.iter().filter(|vote| vote["counted"] == true);
        let counted = counted.map(|vote| vote["userId"].as_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(counted, ["lee", "cho"], "{mode:?} {votes:?}");
        assert_eq!(votes.len(), 3);
    }

    async fn roles_and_groups_of_the_token_count(app: TestApp, mode: Mode) {
        let asked = payment();
        app.ask(&asked).await;
        let approve = async |user: &str, more: Value| {
            let mut changes = json!({ "sub": user });
            changes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let secret = app.config.jwt.secret.expose_secret().as_bytes();
            let bearer = token(secret, &claims(&changes));
            let call = app.client.post(format!("{}/aura/hitl/approve/{}", app.base, asked.id));
            let call = call.bearer_auth(bearer).header("X-Tenant-ID", "tenant1");
            let call = call.header("X-User-ID", user).json(&json!({ "userId": user }));
            Answer::of(call.send().await.unwrap()).await
        };
        approve("ann", json!({})).await.assert(403, "E2001");
        approve("ann", json!({ "roles": ["user"], "groups": ["sales"] })).await.assert(403, "E2001");
        approve("ann", json!({ "groups": ["sales", "finance"] })).await.assert(202, "");
        approve("ben", json!({ "roles": ["auditor"] })).await.assert(200, "");
        assert!(app.record(&asked.id).await.is_approved(), "{mode:?}");
    }

    async fn people_see_what_they_may_decide_and_what_is_theirs(app: TestApp, mode: Mode) {
        let (payment, other) = (payment(), action("send_email"));
        for asked in [&payment, &other] {
            app.ask(asked).await;
            known(&app, asked).await;
        }
        let path = |asked: &Asked| format!("/api/aura/hitl/requests/{}", asked.id);
        // Kim may decide the payment, Bob the rest. Alice has asked for both. Zoe has no part in it.
        let zoe = Who { user: "zoe", ..KIM };
        for (who, sees_payment, sees_other) in
            [(KIM, true, false), (BOB, false, true), (ALICE, true, true), (ADMIN, true, true),
             (zoe, false, false), (MALLORY, false, false)]
        {
            for (asked, sees) in [(&payment, sees_payment), (&other, sees_other)] {
                let status = if sees { 200 } else { 404 };
                let code = if sees { "" } else { "E1004" };
                for suffix in ["", "/detail", "/decision"] {
                    let answer = app.get(who, &format!("{}{suffix}", path(asked))).await;
                    answer.assert(status, code);
                }
            }
        }
        // Deciding is refused with a reason, within the tenant.
        app.approve(zoe, &payment.id).await.assert(403, "E2001");
        app.approve(MALLORY, &payment.id).await.assert(404, "E1004");
        assert_eq!(ids(&app, KIM, "").await, [&*payment.id]);
        assert_eq!(ids(&app, BOB, "").await, [&*other.id]);
        assert_eq!(ids(&app, zoe, "").await, Vec::<String>::new());
        // She may reject her own, both of them.
        assert_eq!(ids(&app, ALICE, "").await.len(), 2, "{mode:?}");
        assert_eq!(ids(&app, ALICE, "scope=mine&risk=high").await, [&*payment.id]);
        assert_eq!(ids(&app, ADMIN, "scope=tenant&rule=else").await, [&*other.id]);
        let row = &listed(&app, KIM, "").await[0];
        assert_eq!(
            (&row["mayDecide"], &row["approvalsNeeded"], &row["risk"]),
            (&json!(true), &json!(2), &json!("high"))
        );
        // Of the closed ones: what they decided, or could have.
        app.approve(KIM, &payment.id).await.assert(202, "");
        app.approve(LEE, &payment.id).await.assert(200, "");
        app.reject(BOB, &other.id, None).await.assert(200, "");
        assert_eq!(ids(&app, KIM, "status=approved,rejected").await, [&*payment.id]);
        assert_eq!(ids(&app, BOB, "status=approved,rejected").await, [&*other.id]);
        assert_eq!(ids(&app, zoe, "status=approved,rejected").await, Vec::<String>::new());
        let row = &listed(&app, KIM, "status=approved").await[0];
        assert_eq!((&row["approvals"], &row["decidedVia"]), (&json!(2), &json!("person")));
    }

    async fn a_rule_decides_by_itself(app: TestApp, mode: Mode) {
        for (kind, status, rule) in
            [("read_mail", "approved", "reading is fine"), ("drop_database", "rejected", "blocked")]
        {
            let asked = action(kind);
            let registered = app.register(ALICE, &asked).await;
            registered.assert(201, "");
            assert_eq!(registered.data()["status"], status);
            // Registered again, the answer is the same.
            app.register(ALICE, &asked).await.assert(200, "");
            let told = app.get(ALICE, &format!("/aura/hitl/requests/{}/decision", asked.id)).await;
            let told = told.data();
            assert_eq!(
                (&told["status"], &told["decidedVia"], &told["decidedBy"]),
                (&json!(status), &json!("policy"), &json!(rule)),
                "{mode:?}"
            );
            let task = app.task_of(&asked.id).await;
            assert_eq!(task.hitl_request_id.unwrap().as_str(), asked.id);
            let row = &listed(&app, ALICE, &format!("scope=mine&status={status}")).await[0];
            assert_eq!((&row["decidedVia"], &row["decidedBy"]), (&json!("policy"), &json!(rule)));
            // A person who is called like the rule has decided nothing.
            let namesake = Who { user: rule, ..KIM };
            let answer = if status == "approved" {
                app.approve(namesake, &asked.id).await
            } else {
                app.reject(namesake, &asked.id, None).await
            };
            answer.assert(403, "E2001");
        }
    }

    async fn a_rule_shortens_the_time_and_never_lengthens_it(app: TestApp, mode: Mode) {
        for (seconds, longest) in [(None, 60), (Some(30), 30), (Some(3600), 60)] {
            let asked = action("short");
            let mut body = asked.registration();
            body["expiresInSeconds"] = json!(seconds.unwrap_or(1800));
            app.post(ALICE, "/aura/hitl/requests", body.clone()).await.assert(201, "");
            app.post(ALICE, "/aura/hitl/requests", body).await.assert(200, "");
            let record = app.record(&asked.id).await;
            assert_eq!((record.expires_at - record.created_at).num_seconds(), longest, "{mode:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn escalation_adds_people_once_its_time_has_come() {
    for mode in [Mode::Embedded, Mode::Production] {
        let clock = Clock::manual();
        let (app, _redis) = app_with(mode, RULES, clock.clone()).await;
        let asked = action("escalates");
        app.register(ALICE, &asked).await.assert(201, "");
        assert_eq!(ids(&app, BOB, "").await, Vec::<String>::new());
        app.approve(BOB, &asked.id).await.assert(403, "E2001");
        clock.advance(chrono::TimeDelta::seconds(599));
        assert_eq!(ids(&app, BOB, "").await, Vec::<String>::new());
        clock.advance(chrono::TimeDelta::seconds(2));
        assert_eq!(ids(&app, BOB, "").await, [&*asked.id]);
        assert_eq!(ids(&app, KIM, "").await, [&*asked.id]);
        app.approve(BOB, &asked.id).await.assert(200, "");
    }
}

/// Whoever comes last decides, exactly once, on whichever replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn last_votes_at_once_on_two_replicas_decide_once() {
    let many = RULES.replace("quorum = 2", "quorum = 4").replace(
        r#"["kim", "lee", "user123"]"#,
        r#"["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"]"#,
    );
    let (app, _redis) = app_with(Mode::Production, &many, Clock::System).await;
    let other = twin(&app).await;
    for round in 0..12 {
        let asked = payment();
        // Half of them nobody has seen in Redis before.
        if round % 2 == 0 {
            app.register(ALICE, &asked).await.assert(201, "");
        } else {
            app.ask(&asked).await;
        }
        let names = (0..8).map(|number| format!("p{number}")).collect::<Vec<_>>();
        let votes = names.iter().enumerate().map(|(number, name)| {
            let replica = if number % 2 == 0 { &app } else { &other };
            replica.approve(Who { user: name, ..KIM }, &asked.id)
        });
        let answers = join_all(votes).await;
        let count = |status: u16| answers.iter().filter(|it| it.status.as_u16() == status).count();
        // Three were too few, one decided, and four came when it was decided.
        let statuses = answers.iter().map(|it| it.status.as_u16()).collect::<Vec<_>>();
        assert_eq!((count(202), count(200), count(409)), (3, 1, 4), "{statuses:?}");
        let told = answers.iter().filter(|it| it.status == 202);
        let mut told = told.map(|it| it.data()["approvals"].as_i64().unwrap()).collect::<Vec<_>>();
        told.sort_unstable();
        assert_eq!(told, [1, 2, 3], "each vote was counted once");
        let record = app.settled(&asked.id).await;
        assert_eq!((record.ruling.voters.len(), record.ruling.ballots), (4, 4));
        assert!(record.is_approved());
        // The four whose votes counted may repeat it.
        let mut repeats = 0;
        for name in &names {
            let answer = other.approve(Who { user: name, ..KIM }, &asked.id).await;
            repeats += usize::from(answer.status == 200);
        }
        assert_eq!(repeats, 4);
    }
}

/// Bulks that share requests are each done whole or refused whole, however many come at once, on whichever
/// replica: four of eight complete the votes, and four come too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn atomic_bulks_of_votes_that_collide_are_each_answered() {
    let many = RULES.replace("quorum = 2", "quorum = 4").replace(
        r#"["kim", "lee", "user123"]"#,
        r#"["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"]"#,
    );
    for mode in [Mode::Embedded, Mode::Production] {
        let (app, _redis) = app_with(mode, &many, Clock::System).await;
        let other = if mode == Mode::Production { Some(twin(&app).await) } else { None };
        for _round in 0..4 {
            let mut all = Vec::new();
            for number in 0..6 {
                let asked = payment();
                if number % 2 == 0 {
                    app.register(ALICE, &asked).await.assert(201, "");
                } else {
                    app.ask(&asked).await;
                }
                all.push(asked);
            }
            let names = (0..8).map(|number| format!("p{number}")).collect::<Vec<_>>();
            let voting = names.iter().enumerate().map(|(number, name)| {
                let replica = other.as_ref().filter(|_| number % 2 == 1).unwrap_or(&app);
                let mut items = all
                    .iter()
                    .map(|one| json!({ "requestId": one.id, "decision": "approve" }))
                    .collect::<Vec<_>>();
                items.rotate_left(number % 6);
                let body = json!({ "userId": name, "decisions": items, "atomic": true });
                async move {
                    let who = Who { user: name, ..KIM };
                    replica.post(who, "/aura/hitl/decisions", body).await
                }
            });
            let answers = join_all(voting).await;
            let statuses = answers.iter().map(|it| it.status.as_u16()).collect::<Vec<_>>();
            let count = |status: u16| statuses.iter().filter(|it| **it == status).count();
            assert_eq!((count(200), count(409)), (4, 4), "{mode:?} {statuses:?}");
            for asked in &all {
                let record = app.settled(&asked.id).await;
                assert!(record.is_approved());
                assert_eq!((record.ruling.voters.len(), record.ruling.ballots), (4, 4));
            }
        }
        // Decisions against each other: what one has decided is refused to the others, whole.
        for _round in 0..4 {
            let mut all = Vec::new();
            for _request in 0..5 {
                let asked = action("send_email");
                app.register(ALICE, &asked).await.assert(201, "");
                all.push(asked);
            }
            let deciding = (0..6).map(|number| {
                let verdict = if number % 2 == 0 { "approve" } else { "reject" };
                let mut items = all
                    .iter()
                    .map(|one| json!({ "requestId": one.id, "decision": verdict }))
                    .collect::<Vec<_>>();
                items.rotate_left(number % 5);
                items.truncate(3);
                let replica = other.as_ref().filter(|_| number % 2 == 1).unwrap_or(&app);
                let body = json!({ "userId": "bob", "decisions": items, "atomic": true });
                async move { replica.post(BOB, "/aura/hitl/decisions", body).await }
            });
            let answers = join_all(deciding).await;
            let is_answered = |it: &Answer| it.status == 200 || it.code() == "E3008";
            assert!(answers.iter().all(is_answered), "{mode:?} {answers:?}");
            assert!(answers.iter().any(|it| it.status == 200));
        }
    }
}

/// A decision of a rule reaches agents on Redis like any other, also those that listen late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_on_redis_hears_what_a_rule_decides() {
    let (app, redis) = app_with(Mode::Production, RULES, Clock::System).await;
    let redis = redis.unwrap();
    for (kind, status, pause) in [
        ("read_mail", "approved", 0),
        ("read_mail", "approved", 3),
        ("drop_database", "rejected", 1),
    ] {
        let asked = action(kind);
        app.ask(&asked).await;
        tokio::time::sleep(Duration::from_secs(pause)).await;
        let RedisSettings::Url(url) = redis.settings() else { panic!("it has a URL") };
        let channel = format!("hitl:channel:{}", asked.session);
        let mut agent = Subscriber::at(url.expose_secret(), channel).await;
        let heard = agent.next().await;
        let heard: Value = serde_json::from_str(&heard).unwrap();
        assert_eq!((&heard["requestId"], &heard["status"]), (&json!(asked.id), &json!(status)));
        let record = app.settled(&asked.id).await;
        assert_eq!(record.ruling.via, DecidedVia::Policy);
        assert_eq!(app.task_of(&asked.id).await.hitl_request_id.unwrap().as_str(), asked.id);
        let stored: Value = serde_json::from_str(&app.stored(&asked.id).await.document).unwrap();
        assert_eq!(stored["status"], status);
    }
    // One that waits for something else hears nothing.
    let (old, new) = (action("read_mail"), action("send_email"));
    let new = new.with("sessionId", json!(old.session));
    app.put(&new.id, &new.document.to_string()).await;
    let pointer = json!({
        "sessionId": old.session, "requestId": new.id, "userId": "user123", "tenantId": "tenant1",
    });
    app.point(&old.session, &pointer.to_string()).await;
    app.put(&old.id, &old.document.to_string()).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(app.is_undecided(&old.id).await);
    assert_eq!(app.signal(&old.session).await, None);
}

/// What a rule had decided is told again to an agent that asks again, as long as the rule stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_asks_again_is_told_again_while_the_rule_stands() {
    let (app, _redis) = app_with(Mode::Production, RULES, Clock::System).await;
    let asked = action("read_mail");
    app.ask(&asked).await;
    let decided = async || {
        eventually_within(Duration::from_secs(12), async || {
            let stored: Value =
                serde_json::from_str(&app.stored(&asked.id).await.document).unwrap();
            (stored["status"] == "approved").then_some(())
        })
        .await;
        app.settled(&asked.id).await
    };
    let first = decided().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    app.ask(&asked).await;
    let second = decided().await;
    assert_eq!(first.state, second.state);
    // Without the rule, it is listed, and nobody repeats it.
    app.state.rules.set(Some(rules(&RULES.replace("read_", "see_"))));
    tokio::time::sleep(Duration::from_millis(300)).await;
    app.ask(&asked).await;
    let row = eventually_within(Duration::from_secs(12), async || {
        let rows = listed(&app, ADMIN, &format!("scope=tenant&sessionId={}", asked.session)).await;
        rows.into_iter().next()
    })
    .await;
    assert_eq!((&row["askedAgain"], &row["mayDecide"]), (&json!(true), &json!(false)));
    assert_eq!(app.stored(&asked.id).await.document, asked.document.to_string());
}

/// Rows that were written without a policy file, or under another one, are bound by the one in force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pending_is_bound_by_another_file_and_decided_by_people() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn(mode).await;
        let (payment, read) = (payment(), action("read_mail"));
        for asked in [&payment, &read] {
            app.register(ALICE, asked).await.assert(201, "");
        }
        app.state.rules.set(Some(rules(RULES)));
        // From the next call on.
        app.approve(BOB, &payment.id).await.assert(403, "E2001");
        eventually(async || {
            let row = app.record(&payment.id).await;
            (row.ruling.rule.as_deref() == Some("large payments")).then_some(())
        })
        .await;
        assert_eq!(ids(&app, KIM, "").await, [&*payment.id]);
        // A rule decides what comes, not what was there.
        assert!(app.is_undecided(&read.id).await);
        app.approve(BOB, &read.id).await.assert(403, "E2001");
        app.approve(ADMIN, &read.id).await.assert(200, "");
        app.approve(KIM, &payment.id).await.assert(202, "");
        app.state.rules.set(Some(rules(&RULES.replace("quorum = 2", "quorum = 1"))));
        eventually(async || {
            let row = app.record(&payment.id).await;
            (row.ruling.approvals_needed == Some(1)).then_some(())
        })
        .await;
        assert_eq!(app.record(&payment.id).await.ruling.approvals, Some(1));
        app.approve(LEE, &payment.id).await.assert(200, "");
    }
}

/// The inbox counts what a person may decide, and tells of votes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inboxes_count_under_the_rules() {
    for mode in [Mode::Embedded, Mode::Production] {
        let (app, _redis) = app_with(mode, RULES, Clock::System).await;
        let (payment, other) = (payment(), action("send_email"));
        app.register(ALICE, &payment).await.assert(201, "");
        app.register(ALICE, &other).await.assert(201, "");
        let zoe = Who { user: "zoe", ..KIM };
        for (who, decidable, mine) in [(KIM, 1, 0), (BOB, 1, 0), (ALICE, 2, 2), (zoe, 0, 0)] {
            let answer = app.get(who, "/api/aura/hitl/inbox/stream").await;
            let counts = format!("data: {{\"decidable\":{decidable},\"mine\":{mine}}}");
            assert!(answer.text.contains(&counts), "{who:?}: {}", answer.text);
        }
        let listening = |who: Who<'static>| {
            let call = app.call(who, Method::GET, "/api/aura/hitl/inbox/stream");
            async move {
                let mut response = call.send().await.unwrap();
                let mut text = String::new();
                let reading = async {
                    while let Ok(Some(some)) = response.chunk().await {
                        text += std::str::from_utf8(&some).unwrap();
                    }
                };
                let _open = tokio::time::timeout(Duration::from_secs(3), reading).await;
                text
            }
        };
        let voting = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            app.approve(KIM, &payment.id).await.assert(202, "");
        };
        let (lee, bob, ()) = tokio::join!(listening(LEE), listening(BOB), voting);
        assert!(lee.contains("\"change\":\"voted\""), "{lee}");
        assert!(!bob.contains(&payment.id), "{bob}");
    }
}

/// A wrong file refuses the start with one line. While the service runs, a wrong one changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_is_read_at_start_and_on_sighup_all_or_nothing() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("policy.toml");
    let serve = || {
        Program::new(&folder, &["serve"])
            .with("AURA_HITL_POLICY_FILE", &file)
            .with("JWT_SECRET", "canary-secret-0123456789abcdef0123456789")
    };
    let refused = serve().output();
    assert!(!refused.status.success());
    std::fs::write(&file, "[[rule]]\nname = \"r\"\nwhen = \"true\"\n").unwrap();
    let refused = serve().output();
    let said =
        String::from_utf8(refused.stderr).unwrap() + &String::from_utf8(refused.stdout).unwrap();
    assert!(!refused.status.success(), "{said}");
    let lines = said.lines().filter(|line| line.contains("policy_file")).collect::<Vec<_>>();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains("approvers"), "{said}");

    std::fs::write(&file, RULES).unwrap();
    let mut service = serve().serve().await;
    let reloaded = async |service: &mut support::Running, count: usize| {
        kill("-HUP", service.pid());
        eventually(async || {
            let lines = service.log().into_iter();
            lines.filter(|line| line["target"] == "aura_hitl::server::reload").nth(count)
        })
        .await
    };
    std::fs::write(&file, RULES.replace("quorum = 2", "quorum = 0")).unwrap();
    let line = reloaded(&mut service, 0).await;
    assert_eq!(line["level"], "ERROR");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("large payments") && error.contains("quorum"), "{error}");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(reloaded(&mut service, 1).await["level"], "ERROR");
    std::fs::write(&file, RULES.replace("quorum = 2", "quorum = 3")).unwrap();
    let line = reloaded(&mut service, 2).await;
    assert_eq!(line["message"], "another policy file is in force", "{line}");
    service.stop().await;
}

under_rules! {
    async fn a_bulk_asks_the_same_door(app: TestApp, mode: Mode) {
        let (payment, other, foreign) = (payment(), action("send_email"), action("send_email"));
        for asked in [&payment, &other, &foreign] {
            app.register(ALICE, asked).await.assert(201, "");
        }
        let item = |asked: &Asked| json!({ "requestId": asked.id, "decision": "approve" });
        let bulk = async |who: Who<'_>, asked: &[&Asked], atomic: bool| {
            let decisions = asked.iter().map(|asked| item(asked)).collect::<Vec<_>>();
            let body = json!({ "userId": who.user, "decisions": decisions, "atomic": atomic });
            app.post(who, "/aura/hitl/decisions", body).await
        };
        let statuses = |answer: &Answer| {
            let results = answer.data()["results"].as_array().unwrap().clone();
            results.iter().map(|it| it["status"].as_i64().unwrap()).collect::<Vec<_>>()
        };
        let kims = bulk(KIM, &[&payment, &other], false).await;
        kims.assert(200, "");
        assert_eq!(statuses(&kims), [202, 403], "{mode:?}");
        assert_eq!(kims.data()["results"][0]["data"]["approvalsNeeded"], json!(2));
        // Whole or not at all: her approval is there already, and the other is not hers to give.
        let refused = bulk(KIM, &[&payment, &other], true).await;
        refused.assert(409, "E3008");
        // A vote that decides nothing is done, beside one that completes the quorum, and repeats, too.
        let (second, third) = (self::payment(), self::payment());
        app.register(ALICE, &second).await.assert(201, "");
        app.ask(&third).await;
        for ballots in [1, 1] {
            let whole = bulk(LEE, &[&second, &payment, &third], true).await;
            whole.assert(200, "");
            assert_eq!(statuses(&whole), [202, 200, 202]);
            let voted = &whole.data()["results"][0];
            assert_eq!(voted["message"], "Approval recorded; 1 more needed");
            assert_eq!(voted["data"]["approvals"], json!(1));
            for asked in [&second, &third] {
                assert_eq!(app.record(&asked.id).await.ruling.ballots, ballots);
                assert!(app.is_undecided(&asked.id).await);
            }
            assert_eq!(app.record(&payment.id).await.ruling.voters.len(), 2);
        }
        // Votes alone, and with what decides nothing of its own.
        let fourth = self::payment();
        app.register(ALICE, &fourth).await.assert(201, "");
        let whole = bulk(KIM, &[&fourth], true).await;
        assert_eq!(statuses(&whole), [202]);
        // If one is refused, none of the votes is recorded.
        bulk(LEE, &[&fourth, &other], true).await.assert(409, "E3008");
        assert_eq!(app.record(&fourth.id).await.ruling.ballots, 1);
        let whole = bulk(KIM, &[&second, &third], true).await;
        assert_eq!(statuses(&whole), [200, 200]);
        let bobs = bulk(BOB, &[&other, &foreign], true).await;
        bobs.assert(200, "");
    }
}

under_rules! {
    async fn an_edit_needs_the_rules_of_what_it_becomes(app: TestApp, mode: Mode) {
        let small = || {
            let asked = Asked::new().with("actionType", json!("send_payment"));
            asked.with("context", json!({ "amount": 5, "to": "x" }))
        };
        let rules_with_edits = RULES
            .replace("quorum = 2\n", "quorum = 2\ndecisions = [\"approve\", \"reject\", \"edit\"]\n")
            .replace("approvers = [\"user:bob\"]\n", "approvers = [\"tenant\"]\ndecisions = [\"approve\", \"reject\", \"edit\"]\n");
        app.state.rules.set(Some(rules(&rules_with_edits)));
        let asked = small();
        let mut body = asked.registration();
        body["decisions"] = json!(["approve", "reject", "edit"]);
        app.post(ALICE, "/aura/hitl/requests", body).await.assert(201, "");
        let edit = async |who: Who<'_>, amount: u32| {
            let body = json!({ "userId": who.user, "arguments": { "amount": amount, "to": "x" } });
            app.post(who, &format!("/aura/hitl/approve/{}", asked.id), body).await
        };
        // A small payment anybody may approve; made large, it is for two people of the group.
        let refused = edit(BOB, 7000).await;
        refused.assert(403, "E2001");
        assert!(refused.body["message"].as_str().unwrap().contains("large payments"));
        edit(ALICE, 7000).await.assert(403, "E2001");
        edit(KIM, 7000).await.assert(202, "");
        // That is no word on what was asked: others go on to see it, and may approve that alone.
        assert_eq!(ids(&app, BOB, "").await, [&*asked.id]);
        let row = &listed(&app, BOB, "").await[0];
        assert_eq!((&row["rule"], &row["mayDecide"]), (&json!("else"), &json!(true)), "{row}");
        let seen = detail(&app, BOB, &asked.id).await;
        let vote = seen.data()["votes"][0].clone();
        assert_eq!(vote["decision"], "edit", "{vote}");
        assert!(vote["argumentsFingerprint"].is_string(), "{vote}");
        // Who completes it sees what it is.
        assert_eq!(vote["arguments"], json!({ "amount": 7000, "to": "x" }), "{vote}");
        // Other arguments are another vote.
        edit(LEE, 8000).await.assert(202, "");
        assert!(app.is_undecided(&asked.id).await, "{mode:?}");
        let seen = detail(&app, LEE, &asked.id).await;
        assert_eq!(seen.data()["approvals"], json!(1), "{}", seen.text);
        let edited = |seen: &Answer| {
            let votes = seen.data()["votes"].as_array().unwrap().clone();
            let amount = |vote: &Value| vote["arguments"]["amount"].as_i64().unwrap();
            votes.iter().map(amount).collect::<Vec<_>>()
        };
        assert_eq!(edited(&seen), [7000, 8000]);
        edit(LEE, 7000).await.assert(200, "");
        assert_eq!(edited(&detail(&app, LEE, &asked.id).await), [7000, 7000]);
        let polled = app.poll(ALICE, &asked.session, Some(&asked.id)).await.unwrap();
        assert_eq!(
            (&polled["decidedVia"], &polled["votes"], &polled["arguments"]["amount"]),
            (&json!("person"), &json!({ "needed": 2, "given": 2 }), &json!(7000)), "{polled}"
        );
        assert!(polled["requestedFingerprint"].is_string(), "{polled}");
        let told = app.get(ALICE, &format!("/aura/hitl/requests/{}/decision", asked.id)).await;
        assert_eq!(told.data()["arguments"], json!({ "amount": 7000, "to": "x" }));
        assert_eq!(told.data()["votes"]["given"], json!(2));
        edit(KIM, 7000).await.assert(200, "");
        edit(KIM, 8000).await.assert(409, "E3006");
    }
}

under_rules! {
    async fn lists_agents_and_details_say_the_same_of_votes_for_other_arguments(app: TestApp, mode: Mode) {
        const BUYING: &str = r#"
            [groups]
            finance = ["kim", "lee", "cho"]
            [[rule]]
            name = "large"
            when = 'actionType == "buy" && context.amount >= 1000.0'
            approvers = ["group:finance"]
            quorum = 3
            decisions = ["approve", "reject", "edit"]
            [[rule]]
            name = "small"
            when = 'actionType == "buy"'
            approvers = ["tenant"]
            quorum = 2
            decisions = ["approve", "reject", "edit"]
        "#;
        let cho = Who { user: "cho", ..KIM };
        app.state.rules.set(Some(rules(BUYING)));
        let asked = action("buy").with("context", json!({ "amount": 5 }));
        let mut body = asked.registration();
        body["decisions"] = json!(["approve", "reject", "edit"]);
        app.post(ALICE, "/aura/hitl/requests", body).await.assert(201, "");
        let edit = async |who: Who<'_>, amount: u32| {
            let body = json!({ "userId": who.user, "arguments": { "amount": amount } });
            app.post(who, &format!("/aura/hitl/approve/{}", asked.id), body).await
        };
        // What the list, the agent's question and the detail say.
        let said = async || {
            let seen = detail(&app, ALICE, &asked.id).await;
            let seen = seen.data();
            let row = listed(&app, ALICE, &format!("scope=mine&sessionId={}", asked.session)).await;
            let told = app.get(ALICE, &format!("/aura/hitl/requests/{}/decision", asked.id)).await;
            let told = &told.data()["votes"];
            let counted = seen["votes"].as_array().unwrap().iter();
            (
                [&row[0], seen].map(|of| json!({ "given": of["approvals"], "needed": of["approvalsNeeded"] })),
                told.clone(),
                counted.filter(|vote| vote["counted"] == true).count(),
                row[0]["rule"].clone(),
            )
        };
        let are = |given: u32, needed: u32, counted: usize| {
            let votes = json!({ "given": given, "needed": needed });
            ([votes.clone(), votes.clone()], votes, counted, json!("small"))
        };
        assert_eq!(said().await, are(0, 2, 0), "{mode:?}");
        let first = edit(KIM, 7000).await;
        first.assert(202, "");
        assert_eq!((&first.data()["approvals"], &first.data()["approvalsNeeded"]), (&json!(1), &json!(3)));
        assert_eq!(said().await, are(1, 3, 1));
        // One each: what was asked comes first.
        app.approve(BOB, &asked.id).await.assert(202, "");
        assert_eq!(said().await, are(1, 2, 2));
        edit(LEE, 8000).await.assert(202, "");
        assert_eq!(said().await, are(1, 2, 3));
        // In place of her vote before.
        edit(LEE, 7000).await.assert(202, "");
        assert_eq!(said().await, are(2, 3, 3));
        // In one write with others, too.
        let other = Asked::new().with("actionType", json!("buy")).with("context", json!({ "amount": 1 }));
        app.register(ALICE, &other).await.assert(201, "");
        let items = [&asked, &other].map(|one| json!({ "requestId": one.id, "decision": "approve" }));
        let body = json!({ "userId": "lee", "decisions": items, "atomic": true });
        let path = "/aura/hitl/decisions";
        let whole = app.post(LEE, path, body).await;
        assert_eq!(whole.data()["results"][0]["status"], 200, "{}", whole.text);
        assert!(app.record(&asked.id).await.is_approved());
        assert_eq!(said_of_closed(&app, &asked).await, [2, 2, 2]);

        // Who may no longer approve what it becomes counts no longer, though what was asked is hers still.
        let asked = action("buy").with("context", json!({ "amount": 6 }));
        let mut body = asked.registration();
        body["decisions"] = json!(["approve", "reject", "edit"]);
        app.post(ALICE, "/aura/hitl/requests", body).await.assert(201, "");
        for (who, given) in [(KIM, 1), (LEE, 2)] {
            let body = json!({ "userId": who.user, "arguments": { "amount": 9000 } });
            let voted = app.post(who, &format!("/aura/hitl/approve/{}", asked.id), body).await;
            assert_eq!(voted.data()["approvals"], json!(given), "{}", voted.text);
        }
        let changed = BUYING.replace("\"kim\", ", "");
        app.state.rules.set(Some(rules(&changed)));
        let version = rules(&changed).version().to_owned();
        eventually(async || {
            let row = app.record(&asked.id).await;
            (row.ruling.version.as_deref() == Some(&version)).then_some(())
        })
        .await;
        let seen = detail(&app, ALICE, &asked.id).await;
        let row = &listed(&app, ALICE, &format!("scope=mine&sessionId={}", asked.session)).await[0];
        for of in [row, seen.data()] {
            assert_eq!((&of["approvals"], &of["approvalsNeeded"]), (&json!(1), &json!(3)), "{of}");
        }
        let counted = seen.data()["votes"].as_array().unwrap().iter();
        let counted = counted.map(|vote| vote["counted"].clone()).collect::<Vec<_>>();
        assert_eq!(counted, [json!(false), json!(true)]);
        let body = json!({ "userId": "cho", "arguments": { "amount": 9000 } });
        let voted = app.post(cho, &format!("/aura/hitl/approve/{}", asked.id), body).await;
        voted.assert(202, "");
        assert_eq!(voted.data()["approvals"], json!(2), "{}", voted.text);
    }
}

/// How many approvals a closed request had, as list, poll and stream say.
async fn said_of_closed(app: &TestApp, asked: &Asked) -> [i64; 3] {
    let row = &listed(app, ALICE, "scope=mine&status=approved").await[0];
    assert_eq!(row["requestId"], json!(asked.id));
    let polled = app.poll(ALICE, &asked.session, Some(&asked.id)).await.unwrap();
    let path = format!("/aura/hitl/signals/{}/stream", asked.session);
    let heard = app.get(ALICE, &path).await.text;
    let data = heard.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let streamed: Value = serde_json::from_str(data).unwrap();
    [&row["approvals"], &polled["votes"]["given"], &streamed["votes"]["given"]]
        .map(|it| it.as_i64().unwrap())
}

under_rules! {
    async fn who_may_not_see_a_request_hears_nothing_of_it(app: TestApp, mode: Mode) {
        let asked = payment();
        app.register(ALICE, &asked).await.assert(201, "");
        let comments = format!("/aura/hitl/requests/{}/comments", asked.id);
        app.post(KIM, &comments, json!({ "text": "a secret question" })).await.assert(201, "");
        app.reject(KIM, &asked.id, Some("a private reason")).await.assert(200, "");
        let stream = async |who: Who<'static>| {
            let path = format!("/aura/hitl/signals/{}/stream", asked.session);
            let mut response = app.call(who, Method::GET, &path).send().await.unwrap();
            let mut text = String::new();
            let reading = async {
                while let Ok(Some(some)) = response.chunk().await {
                    text += std::str::from_utf8(&some).unwrap();
                }
            };
            let _open = tokio::time::timeout(Duration::from_secs(2), reading).await;
            text
        };
        for (who, may_see) in [(ALICE, true), (KIM, true), (BOB, false)] {
            let polled = app.poll(who, &asked.session, Some(&asked.id)).await;
            assert_eq!(polled.is_some(), may_see, "{mode:?} {who:?}");
            let heard = stream(who).await;
            for word in ["a secret question", "a private reason", &*asked.id] {
                assert_eq!(heard.contains(word), may_see, "{mode:?} {who:?}: {heard}");
            }
        }
        // Trying to decide it says nothing of its decision either.
        for answer in [app.approve(BOB, &asked.id).await, app.reject(BOB, &asked.id, None).await] {
            answer.assert(403, "E2001");
            assert!(!answer.text.contains("private") && !answer.text.contains(&asked.session));
        }
        app.approve(LEE, &asked.id).await.assert(409, "E3006");
    }

    async fn what_is_not_possible_is_refused_and_never_ignored(app: TestApp, mode: Mode) {
        let asked = action("send_email");
        app.register(ALICE, &asked).await.assert(201, "");
        let path = format!("/aura/hitl/approve/{}", asked.id);
        let remember = json!({ "userId": "bob", "remember": { "scope": "session" } });
        app.post(BOB, &path, remember).await.assert(400, "E4000");
        for field in ["arguments", "response", "remember"] {
            let mut item = json!({ "requestId": asked.id, "decision": "approve" });
            item[field] = json!({ "amount": 1 });
            let body = json!({ "userId": "bob", "decisions": [item] });
            let answer = app.post(BOB, "/aura/hitl/decisions", body).await;
            answer.assert(400, "E4000");
            assert!(answer.data()[format!("decisions[0].{field}")].is_string(), "{}", answer.text);
        }
        assert!(app.is_undecided(&asked.id).await, "{mode:?}");
    }
}

/// A repeat is judged as the first decision was, by whichever way it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_asks_the_rules_in_force() {
    let (app, _redis) = app_with(Mode::Production, RULES, Clock::System).await;
    let asked = payment();
    app.ask(&asked).await;
    app.approve(KIM, &asked.id).await.assert(202, "");
    app.approve(LEE, &asked.id).await.assert(200, "");
    app.settled(&asked.id).await;
    // Its agent asks again: each of the two repeats it, and nobody else decides.
    for who in [KIM, LEE] {
        app.ask(&asked).await;
        app.reject(LEE, &asked.id, None).await.assert(409, "E3006");
        app.approve(who, &asked.id).await.assert(200, "");
        let stored: Value = serde_json::from_str(&app.stored(&asked.id).await.document).unwrap();
        assert_eq!(stored["status"], "approved");
        app.settled(&asked.id).await;
    }
    // Kim leaves the group.
    let changed = RULES.replace(r#"["kim", "lee", "user123"]"#, r#"["lee", "cho"]"#);
    app.state.rules.set(Some(rules(&changed)));
    app.ask(&asked).await;
    for atomic in [false, true] {
        let item = json!({ "requestId": asked.id, "decision": "approve" });
        let body = json!({ "userId": "kim", "decisions": [item], "atomic": atomic });
        let answer = app.post(KIM, "/aura/hitl/decisions", body).await;
        assert_eq!(answer.data()["results"][0]["status"], json!(403), "{atomic}: {}", answer.text);
        let stored = app.stored(&asked.id).await.document;
        assert_eq!(stored, asked.document.to_string(), "the agent was told");
    }
    // Something else under the same id is not what they approved.
    let dearer = Asked { id: asked.id.clone(), ..asked.clone() }
        .with("context", json!({ "amount": 9999, "to": "y" }));
    app.put(&asked.id, &dearer.document.to_string()).await;
    app.approve(LEE, &asked.id).await.assert(422, "E4220");
}
