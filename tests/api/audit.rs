//! The Auth server's audit log is fed: once per registration and per first decision, at least once
//! when something breaks, and never in the way of a decision.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpResponse, HttpServer, web};
use aura_hitl::courier::RedisSettings;
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::ledger::AUDIT;
use chrono::TimeDelta;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use support::{
    Answer, Asked, Mode, Program, Running, TestApp, Who, eventually, free_port, fresh_database,
    test_variable, unique,
};
use tempfile::TempDir;

/// A person and a tenant as the Auth server has them.
const KIM: Who<'static> = Who { user: "42", tenant: "7", role: Role::User };
/// Somebody whose id is no integer, in the same tenant.
const LEE: Who<'static> = Who { user: "user123", tenant: "7", role: Role::User };
/// Somebody of a tenant whose id is no integer.
const STRANGER: Who<'static> = Who { user: "1", tenant: "07", role: Role::User };

/// How the Auth server answers.
#[derive(Clone, Copy, Debug)]
enum Answers {
    /// 204, as it should.
    Well,
    /// 204, but only after a long time.
    Late,
    /// It has taken the entry, and says that it failed.
    Falsely,
    /// 400 to every entry whose actor is not an integer.
    Choosily,
    /// With a redirect to where entries are taken, too.
    Elsewhere,
}

/// An Auth server of one's own.
struct Auth {
    port: u16,
    taken: Arc<Mutex<Vec<Value>>>,
    answers: Arc<Mutex<Answers>>,
    server: Option<ServerHandle>,
}

impl Auth {
    /// One that is not there yet.
    fn down() -> Self {
        let (taken, answers) = (Arc::default(), Arc::new(Mutex::new(Answers::Well)));
        Self { port: free_port(), taken, answers, server: None }
    }

    fn start() -> Self {
        let mut auth = Self::down();
        auth.come_up();
        auth
    }

    fn come_up(&mut self) {
        let (taken, answers) = (self.taken.clone(), self.answers.clone());
        let take = move |body: web::Json<Value>| {
            let is_odd = body["actorUserId"].is_null();
            taken.lock().unwrap().push(body.into_inner());
            let answers = *answers.lock().unwrap();
            async move {
                match answers {
                    Answers::Choosily if is_odd => HttpResponse::BadRequest().finish(),
                    Answers::Well | Answers::Choosily => HttpResponse::NoContent().finish(),
                    Answers::Late => {
                        tokio::time::sleep(Duration::from_mins(1)).await;
                        HttpResponse::NoContent().finish()
                    }
                    Answers::Falsely => HttpResponse::InternalServerError().finish(),
                    Answers::Elsewhere => HttpResponse::TemporaryRedirect()
                        .insert_header(("Location", "/elsewhere"))
                        .finish(),
                }
            }
        };
        let elsewhere = self.taken.clone();
        let server = HttpServer::new(move || {
            let elsewhere = elsewhere.clone();
            #[expect(clippy::disallowed_methods, reason = "these routes are not the service's")]
            App::new().route("/auth/internal/audit-logs", web::post().to(take.clone())).route(
                "/elsewhere",
                web::to(move || {
                    elsewhere.lock().unwrap().push(json!("redirected"));
                    async { HttpResponse::NoContent().finish() }
                }),
            )
        });
        let server = server.workers(1).bind(("127.0.0.1", self.port)).unwrap().run();
        self.server = Some(server.handle());
        tokio::spawn(server);
    }

    fn url(&self) -> String {
        // With and without a slash at the end is the same.
        format!("http://127.0.0.1:{}/auth/", self.port)
    }

    fn answer(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    fn taken(&self) -> Vec<Value> {
        self.taken.lock().unwrap().clone()
    }

    /// The entries, once there are so many; in the order of their times.
    async fn taken_at_least(&self, count: usize) -> Vec<Value> {
        let mut taken = eventually(async || {
            let taken = self.taken();
            (taken.len() >= count).then_some(taken)
        })
        .await;
        taken.sort_by_key(|entry| entry["metadata"]["timestamp"].as_i64());
        taken
    }
}

async fn app(mode: Mode, auth: &Auth, clock: Clock) -> TestApp {
    let url = auth.url().parse().unwrap();
    // Both ledgers, each with agents on Redis.
    let redis = RedisSettings::Url(test_variable("TEST_REDIS_URL").into());
    TestApp::spawn_with(mode, clock, |config| {
        (config.audit_url, config.redis) = (Some(url), Some(redis));
    })
    .await
}

/// Waits until nothing is left to send.
async fn all_noted(app: &TestApp) {
    eventually(async || {
        let oldest = app.state.ledger.oldest_in_outbox(AUDIT).await.unwrap();
        oldest.is_none().then_some(())
    })
    .await;
}

/// A request in Redis, of this person's.
async fn ask(app: &TestApp, who: Who<'_>) -> Asked {
    let asked = Asked::new().with("userId", who.user.into()).with("tenantId", who.tenant.into());
    app.put(&asked.id, &asked.document.to_string()).await;
    app.point(&asked.session, &asked.id).await;
    asked
}

const MODES: [Mode; 2] = [Mode::Embedded, Mode::Production];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_registration_and_first_decision_is_told_once() {
    for mode in MODES {
        let auth = Auth::start();
        let app = app(mode, &auth, Clock::System).await;
        let started = app.state.clock.now().timestamp_millis();
        let (registered, asked) = (Asked::new(), ask(&app, KIM).await);
        app.register(KIM, &registered).await.assert(201, "");
        app.register(KIM, &registered).await.assert(200, "");
        for _twice in 0..2 {
            app.approve(KIM, &registered.id).await.assert(200, "");
            app.reject(KIM, &asked.id, Some("예산 초과")).await.assert(200, "");
        }
        app.approve(KIM, &asked.id).await.assert(409, "E3006");
        // Withdrawn and expired requests are no actions of the log.
        let withdrawn = Asked::new();
        app.register(KIM, &withdrawn).await.assert(201, "");
        let cancel = format!("/aura/hitl/requests/{}/cancel", withdrawn.id);
        app.post(KIM, &cancel, json!({})).await.assert(200, "");

        all_noted(&app).await;
        let mut taken = auth.taken();
        taken.sort_by_key(|entry| entry["metadata"]["timestamp"].as_i64());
        for entry in &mut taken {
            let time = entry["metadata"].as_object_mut().unwrap().remove("timestamp").unwrap();
            let time = time.as_i64().unwrap();
            assert!((started..=app.state.clock.now().timestamp_millis()).contains(&time), "{time}");
        }
        let entry = |asked: &Asked, action: &str| {
            json!({
                "tenantId": 7, "actorUserId": 42, "action": action, "resourceType": "HITL", "resourceId": null,
                "metadata": { "requestId": asked.id, "sessionId": asked.session, "actionType": "send_email" },
            })
        };
        let mut rejected = entry(&asked, "HITL_REJECT");
        rejected["metadata"]["reason"] = "예산 초과".into();
        let expected = [
            entry(&registered, "HITL_REQUEST"),
            entry(&registered, "HITL_APPROVE"),
            rejected,
            entry(&withdrawn, "HITL_REQUEST"),
        ];
        assert_eq!(taken, expected, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_integer_is_named_and_a_tenant_that_is_none_is_not_sent() {
    for mode in MODES {
        let auth = Auth::start();
        let app = app(mode, &auth, Clock::System).await;
        let unsendable = Asked::new();
        app.register(STRANGER, &unsendable).await.assert(201, "");
        app.approve(STRANGER, &unsendable.id).await.assert(200, "");
        assert_eq!(app.state.ledger.oldest_in_outbox(AUDIT).await.unwrap(), None);

        let asked = ask(&app, LEE).await;
        app.approve(LEE, &asked.id).await.assert(200, "");
        all_noted(&app).await;
        let taken = auth.taken();
        assert_eq!(taken.len(), 1, "{taken:?}");
        assert_eq!(taken[0]["actorUserId"], Value::Null);
        assert_eq!(taken[0]["metadata"]["userId"], "user123");
        let scraped = app.client.get(format!("{}/metrics", app.base)).send().await.unwrap();
        let scraped = scraped.text().await.unwrap();
        let unsendable = "aura_hitl_audit_entries_total{result=\"unsendable\"} ";
        let count = scraped.lines().find_map(|line| line.strip_prefix(unsendable)).unwrap();
        assert!(count.parse::<u64>().unwrap() >= 2, "{count}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_down_people_decide_and_it_is_told_later() {
    for mode in MODES {
        let mut auth = Auth::down();
        let app = app(mode, &auth, Clock::manual()).await;
        let asked = Asked::new();
        app.register(KIM, &asked).await.assert(201, "");
        app.approve(KIM, &asked.id).await.assert(200, "");
        let metric = async |name: &str| {
            let scraped = app.client.get(format!("{}/metrics", app.base)).send().await.unwrap();
            let scraped = scraped.text().await.unwrap();
            let value = scraped.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.unwrap().parse::<f64>().unwrap()
        };
        eventually(async || {
            let failed = metric("aura_hitl_audit_entries_total{result=\"failed\"}").await;
            (failed >= 2.0).then_some(())
        })
        .await;
        auth.come_up();
        // The pauses between two tries pass on this clock.
        eventually(async || {
            app.state.clock.advance(TimeDelta::seconds(60));
            (auth.taken().len() >= 2).then_some(())
        })
        .await;
        all_noted(&app).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lies_or_sends_elsewhere_is_told_again_until_it_says_that_it_has_it() {
    for mode in MODES {
        let auth = Auth::start();
        auth.answer(Answers::Falsely);
        let app = app(mode, &auth, Clock::manual()).await;
        let asked = ask(&app, KIM).await;
        app.approve(KIM, &asked.id).await.assert(200, "");
        auth.taken_at_least(1).await;
        auth.answer(Answers::Elsewhere);
        eventually(async || {
            app.state.clock.advance(TimeDelta::seconds(60));
            (auth.taken().len() >= 2).then_some(())
        })
        .await;
        auth.answer(Answers::Well);
        eventually(async || {
            app.state.clock.advance(TimeDelta::seconds(60));
            let oldest = app.state.ledger.oldest_in_outbox(AUDIT).await.unwrap();
            oldest.is_none().then_some(())
        })
        .await;
        let taken = auth.taken();
        assert!(taken.len() >= 3 && taken.iter().all(|entry| *entry == taken[0]), "{taken:?}");
        assert_eq!(taken[0]["metadata"]["requestId"], *asked.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_slows_nobody_and_is_told_once_at_a_time() {
    for mode in MODES {
        let auth = Auth::start();
        auth.answer(Answers::Late);
        let app = app(mode, &auth, Clock::manual()).await;
        let asked = ask(&app, KIM).await;
        app.approve(KIM, &asked.id).await.assert(200, "");
        auth.taken_at_least(1).await;
        // While it is awaited the row is held: no other replica claims it.
        let now = app.state.clock.now();
        let until = now + TimeDelta::seconds(20);
        let claimed = app.state.ledger.claim_outbox(AUDIT, now, until, 16).await.unwrap();
        assert!(claimed.is_empty(), "{claimed:?}");
        let others = ask(&app, KIM).await;
        app.approve(KIM, &others.id).await.assert(200, "");
        // A process that dies now leaves a row that the next one claims once the lease is over.
        let later = until + TimeDelta::seconds(1);
        let claimed = app.state.ledger.claim_outbox(AUDIT, later, later, 16).await.unwrap();
        assert!(claimed.iter().any(|row| row.payload.contains(&asked.id)), "{claimed:?}");
    }
}

both_modes! {
    async fn without_an_address_nothing_is_kept_for_it(app: TestApp) {
        let asked = Asked::new();
        app.register(KIM, &asked).await.assert(201, "");
        app.approve(KIM, &asked.id).await.assert(200, "");
        assert_eq!(app.state.ledger.oldest_in_outbox(AUDIT).await.unwrap(), None);
    }
}

/// A replica that dies after the server has taken an entry and before that is noted: the other one
/// sends it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_replica_has_sent_and_not_noted_is_sent_by_another() {
    const SECRET: &str = "a secret that the Auth server shares with us";
    let (auth, folder, database) = (Auth::start(), TempDir::new().unwrap(), fresh_database().await);
    let program = |arguments: &[&str]| {
        Program::new(&folder, arguments)
            .with("JWT_SECRET", SECRET)
            .with("DATABASE_URL", &database)
            .with("REDIS_URL", test_variable("TEST_REDIS_URL"))
            .with("AURA_HITL_AUDIT_URL", auth.url())
    };
    let token = program(&["token", "--sub", "42", "--tenant", "7"]).output();
    let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
    auth.answer(Answers::Late);
    let mut first: Running = program(&[]).serve().await;
    let body = json!({ "sessionId": unique("session"), "actionType": "send_email" });
    let call = Client::new()
        .request(Method::POST, format!("{}/aura/hitl/requests", first.base))
        .bearer_auth(&token)
        .header("X-Tenant-ID", "7")
        .json(&body);
    Answer::of(call.send().await.unwrap()).await.assert(201, "");
    auth.taken_at_least(1).await;
    first.crash();
    auth.answer(Answers::Well);
    let _second: Running = program(&[]).serve().await;
    let mut connection =
        <sqlx::PgConnection as sqlx::Connection>::connect(&database).await.unwrap();
    // The lease ends.
    sqlx::query("UPDATE hitl_outbox SET due_at = created_at")
        .execute(&mut connection)
        .await
        .unwrap();
    let entries = auth.taken_at_least(2).await;
    assert_eq!(entries[0], entries[1]);
    eventually(async || {
        let left = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM hitl_outbox");
        let left = left.fetch_one(&mut connection).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_entry_does_not_wait_behind_those_that_were_refused() {
    const REFUSED: usize = 80;
    for mode in MODES {
        let auth = Auth::start();
        auth.answer(Answers::Choosily);
        let app = app(mode, &auth, Clock::manual()).await;
        for _ in 0..REFUSED {
            app.register(LEE, &Asked::new()).await.assert(201, "");
        }
        auth.taken_at_least(REFUSED).await;
        app.state.clock.advance(TimeDelta::hours(2));
        let before = auth.taken().len();
        app.register(KIM, &Asked::new()).await.assert(201, "");
        // A round or two may have been under way; there are five of refused ones.
        let sent_before = eventually(async || {
            let taken = auth.taken();
            taken.iter().skip(before).position(|entry| entry["actorUserId"] == 42)
        })
        .await;
        assert!(sent_before < REFUSED / 2, "{mode:?}: {sent_before} went first");
    }
}

/// What a rule decides as it is registered is told like what people decide: that it was asked, and what was
/// decided. A rule is no user; who granted is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_decided_without_people_is_told_as_asked_and_decided() {
    let rules = "[[rule]]\nname = '5'\nwhen = 'actionType == \"read\"'\nauto = 'approve'\n
                 [[rule]]\nname = 'no'\nwhen = 'actionType == \"drop\"'\nauto = 'reject'\n
                 [[rule]]\nname = 'mails'\nwhen = 'true'\napprovers = ['tenant']\nremember = 'any'";
    let policy = std::sync::Arc::new(aura_hitl::policy::Policy::read(rules).unwrap());
    let lee = Who { user: "43", ..KIM };
    for mode in MODES {
        let auth = Auth::start();
        let app = app(mode, &auth, Clock::manual()).await;
        app.state.rules.set(Some(policy.clone()));
        let register = async |action: &str| {
            // One time for each, to order them by.
            app.state.clock.advance(TimeDelta::seconds(1));
            let asked = Asked::new().with("actionType", action.into());
            app.register(KIM, &asked).await.assert(201, "");
            asked.id
        };
        let (read, drop, mail) =
            (register("read").await, register("drop").await, register("mail").await);
        app.state.clock.advance(TimeDelta::seconds(1));
        let remember = json!({ "scope": "requester", "arguments": "any", "seconds": 60 });
        let body = json!({ "userId": lee.user, "remember": remember });
        app.post(lee, &format!("/aura/hitl/approve/{mail}"), body).await.assert(200, "");
        let granted = register("mail").await;
        all_noted(&app).await;
        let mut taken = auth.taken();
        let key = |entry: &Value| {
            let word = u8::from(entry["action"] != "HITL_REQUEST");
            (entry["metadata"]["timestamp"].as_i64(), word)
        };
        taken.sort_by_key(key);
        let told = taken.iter().map(|entry| {
            let id = entry["metadata"]["requestId"].as_str().unwrap();
            (id, entry["action"].as_str().unwrap(), entry["actorUserId"].as_i64())
        });
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                (&*read, "HITL_REQUEST", Some(42)),
                (&*read, "HITL_APPROVE", None),
                (&*drop, "HITL_REQUEST", Some(42)),
                (&*drop, "HITL_REJECT", None),
                (&*mail, "HITL_REQUEST", Some(42)),
                (&*mail, "HITL_APPROVE", Some(43)),
                (&*granted, "HITL_REQUEST", Some(42)),
                (&*granted, "HITL_APPROVE", Some(43)),
            ],
            "{mode:?}"
        );
        for entry in &taken {
            assert_eq!(entry["metadata"].get("userId"), None, "{entry}");
        }
    }
}
