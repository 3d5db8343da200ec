//! The agent's side over HTTP: waiting, streams, withdrawing, expiry, acknowledging, and that what
//! was approved is what runs.

use std::time::{Duration, Instant};

use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::ids::{TenantId, UserId};
use aura_hitl::domain::signal::signal_json;
use aura_hitl::identity;
use aura_hitl::ledger::{Exported, Span};
use aura_hitl::requests::expire;
use chrono::{DateTime, TimeDelta};
use futures_util::future::join_all;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use redis::AsyncCommands as _;
use support::{
    ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, Subscriber, TestApp, Who, eventually, redis,
    unique,
};

const HITL: &str = "/aura/hitl";

/// Registers a request; its id, and what it was answered.
async fn register(app: &TestApp, session: &str, context: Value) -> (String, Answer) {
    register_for(app, session, context, 1800).await
}

async fn register_for(
    app: &TestApp,
    session: &str,
    context: Value,
    seconds: u32,
) -> (String, Answer) {
    let id = unique("req");
    let body = json!({
        "requestId": id, "sessionId": session, "actionType": "send_email", "context": context,
        "expiresInSeconds": seconds,
    });
    let answer = app.post(ALICE, &format!("{HITL}/requests"), body).await;
    answer.assert(201, "");
    (id, answer)
}

async fn decision(app: &TestApp, who: Who<'_>, id: &str, wait: u64) -> Answer {
    app.get(who, &format!("{HITL}/requests/{id}/decision?waitSeconds={wait}")).await
}

async fn close(app: &TestApp, who: Who<'_>, id: &str, how: &str) -> Answer {
    let call = app.call(who, Method::POST, &format!("{HITL}/requests/{id}/{how}"));
    Answer::of(call.send().await.unwrap()).await
}

async fn approve(app: &TestApp, id: &str) {
    app.approve(ALICE, id).await.assert(200, "");
}

async fn reject(app: &TestApp, id: &str, reason: &str) {
    let body = json!({ "userId": ALICE.user, "reason": reason });
    app.post(ALICE, &format!("{HITL}/reject/{id}"), body).await.assert(200, "");
}

/// A stream, as a client reads it.
struct Stream {
    response: Response,
    text: String,
}

/// One event: `id`, `event`, `data`.
type Event = (String, String, Value);

impl Stream {
    async fn open(app: &TestApp, session: &str, last: Option<&str>) -> Self {
        let call = app.call(ALICE, Method::GET, &format!("{HITL}/signals/{session}/stream"));
        let call = last.into_iter().fold(call, |call, last| call.header("Last-Event-ID", last));
        let response = call.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["Content-Type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// The next event; waits up to 10 s for it. `None` when the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, _rest)) = self.text.split_once("\n\n") {
                let length = block.len() + 2;
                let field = |name: &str| {
                    let prefix = format!("{name}: ");
                    block.lines().find_map(|line| Some(line.strip_prefix(&prefix)?.to_owned()))
                };
                let event = (field("id"), field("event"), field("data"));
                self.text.drain(..length);
                if let (Some(id), Some(event), Some(data)) = event {
                    return Some((id, event, serde_json::from_str(&data).unwrap()));
                }
            }
            let reading = tokio::time::timeout(Duration::from_secs(10), self.response.chunk());
            let chunk = reading.await.expect("the stream is silent").ok().flatten()?;
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    async fn requests(&mut self, count: usize) -> Vec<String> {
        let mut requests = Vec::new();
        for _ in 0..count {
            let (.., data) = self.next().await.unwrap();
            requests.push(data["requestId"].as_str().unwrap().to_owned());
        }
        requests
    }
}

over_redis! {
    async fn a_wait_ends_with_the_decision(app: TestApp) {
        for prefix in ["/api", ""] {
            let session = unique("session");
            let (id, _) = register(&app, &session, json!(1)).await;
            let named = format!("{prefix}{HITL}/signals/{session}?waitSeconds=20&requestId={id}");
            let began = Instant::now();
            let deciding = async {
                eventually(async || (app.state.hub.waiters() >= 2).then_some(())).await;
                reject(&app, &id, "사용자 거절").await;
            };
            let (signal, outcome, ()) = tokio::join!(
                app.get(ALICE, &named), decision(&app, BOB, &id, 20), deciding
            );
            assert!(began.elapsed() < Duration::from_secs(15), "nobody was woken");
            let record = app.record(&id).await;
            let expected = signal_json(&record.id, record.state.decision().unwrap());
            assert_eq!(signal.assert(200, "").data(), &Value::from(expected));
            let fields = outcome.assert(200, "").data();
            assert_eq!((&fields["status"], &fields["reason"], &fields["decidedBy"]), (&json!("rejected"), &json!("사용자 거절"), &json!("user123")));
        }
        eventually(async || (app.state.hub.waiters() == 0).then_some(())).await;
    }
}

both_modes! {
    async fn a_wait_that_is_over_says_to_ask_again(app: TestApp) {
        let session = unique("session");
        let (id, _) = register(&app, &session, json!(1)).await;
        let path = format!("{HITL}/signals/{session}");
        for (query, retries) in [("", false), ("?waitSeconds=0", true), ("?waitSeconds=1", true)] {
            let answer = app.get(ALICE, &format!("{path}{query}")).await;
            assert_eq!(answer.assert(200, "").body.get("data"), None);
            assert_eq!(answer.headers.get("Retry-After").is_some_and(|value| value == "0"), retries, "{query}");
        }
        let answer = decision(&app, ALICE, &id, 1).await;
        assert_eq!(answer.assert(200, "").data()["status"], "pending");
        assert_eq!(answer.headers["Retry-After"], "0");
        for seconds in ["56", "-1", "1.5", "x", ""] {
            let answer = app.get(ALICE, &format!("{path}?waitSeconds={seconds}")).await;
            assert_eq!(answer.assert(400, "E4000").data()["waitSeconds"], "must be from 0 to 55");
            app.get(ALICE, &format!("{HITL}/requests/{id}/decision?waitSeconds={seconds}")).await.assert(400, "E4000");
        }
        // What nobody knows is not waited for.
        decision(&app, ALICE, &unique("req"), 20).await.assert(404, "E1004");
        decision(&app, MALLORY, &id, 20).await.assert(404, "E1004");
    }
}

over_redis! {
    async fn an_agent_on_redis_can_wait_over_http_too(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let pending = decision(&app, ALICE, &asked.id, 0).await;
        assert_eq!(pending.assert(200, "").data()["status"], "pending");
        let deciding = async {
            eventually(async || (app.state.hub.waiters() >= 1).then_some(())).await;
            app.approve(BOB, &asked.id).await.assert(200, "");
        };
        let (answer, ()) = tokio::join!(decision(&app, ALICE, &asked.id, 20), deciding);
        assert_eq!((&answer.data()["status"], &answer.data()["decidedBy"]), (&json!("approved"), &json!(BOB.user)));
        assert_eq!(answer.data()["fingerprint"], pending.data()["fingerprint"]);
        let settled = app.settled(&asked.id).await;
        let told = decision(&app, ALICE, &asked.id, 0).await;
        assert_eq!(told.data()["signal"]["state"], "sent");
        assert_eq!(told.data()["signal"]["listeners"], json!(settled.listeners));
    }
}

both_modes! {
    async fn a_stream_tells_every_outcome_once_and_in_order(app: TestApp) {
        let session = unique("session");
        let mut stream = Stream::open(&app, &session, None).await;
        let mut ids = Vec::new();
        for step in ["approve", "reject", "cancel"] {
            let (id, _) = register(&app, &session, json!(step)).await;
            match step {
                "approve" => approve(&app, &id).await,
                "reject" => reject(&app, &id, "no").await,
                _ => drop(close(&app, ALICE, &id, "cancel").await),
            }
            ids.push(id);
        }
        for (number, (kind, status)) in [("approval", "approved"), ("rejection", "rejected"), ("cancelled", "cancelled")].into_iter().enumerate() {
            let (id, event, data) = stream.next().await.unwrap();
            assert_eq!((id, &*event), ((number + 1).to_string(), kind));
            assert_eq!((&data["type"], &data["status"]), (&json!(kind), &json!(status)));
            assert_eq!(data["requestId"], *ids[number]);
            assert!(data["timestamp"].is_i64() && data["fingerprint"].as_str().unwrap().len() == 64);
        }
        // What was missed, and nothing else.
        for last in 0..3 {
            let mut again = Stream::open(&app, &session, Some(&last.to_string())).await;
            assert_eq!(again.requests(3 - last).await, ids[last..]);
        }
        // Without a place to go on from: what nobody has acted on.
        close(&app, ALICE, &ids[1], "ack").await.assert(200, "");
        let mut open = Stream::open(&app, &session, None).await;
        assert_eq!(open.requests(2).await, [ids[0].clone(), ids[2].clone()]);
        for odd in ["x", "-1", "1.5", "99999999999999999999"] {
            let call = app.call(ALICE, Method::GET, &format!("{HITL}/signals/{session}/stream"));
            let call = call.header("Last-Event-ID", odd).send().await.unwrap();
            Answer::of(call).await.assert(400, "E4001");
        }
        // A stranger hears nothing of it.
        let call = app.call(MALLORY, Method::GET, &format!("{HITL}/signals/{session}/stream"));
        let strange = Answer::of(call.header("Last-Event-ID", "0").send().await.unwrap()).await;
        assert!(strange.status == 200 && !strange.text.contains("data"), "{}", strange.text);
        // It ends with the service.
        app.state.stopping.cancel();
        assert_eq!(stream.next().await, None);
    }
}

both_modes! {
    async fn outcomes_at_the_same_moment_have_numbers_of_their_own(app: TestApp) {
        let session = unique("session");
        let ids = join_all((0..24).map(async |n| register(&app, &session, json!(n)).await.0)).await;
        let mut stream = Stream::open(&app, &session, None).await;
        join_all(ids.iter().map(async |id| approve(&app, id).await)).await;
        let (mut numbers, mut told) = (Vec::new(), Vec::new());
        for _ in &ids {
            let (number, _, data) = stream.next().await.unwrap();
            numbers.push(number.parse::<i64>().unwrap());
            told.push(data["requestId"].as_str().unwrap().to_owned());
        }
        assert_eq!(numbers, (1..=24).collect::<Vec<_>>());
        let mut all = ids.clone();
        all.sort();
        told.sort();
        assert_eq!(told, all);
    }
}

both_modes! {
    async fn what_is_withdrawn_cannot_be_decided(app: TestApp) {
        let session = unique("session");
        let (id, _) = register(&app, &session, json!(1)).await;
        close(&app, MALLORY, &id, "cancel").await.assert(404, "E1004");
        for _ in 0..2 {
            let answer = close(&app, ALICE, &id, "cancel").await;
            assert_eq!(answer.assert(200, "").data(), &json!({ "requestId": id, "sessionId": session, "status": "cancelled" }));
        }
        let late = app.approve(ALICE, &id).await;
        assert_eq!(late.assert(410, "E3007").data()["status"], "cancelled");
        let request = app.get(ALICE, &format!("{HITL}/requests/{id}")).await;
        let document: Value = serde_json::from_str(request.assert(200, "").data().as_str().unwrap()).unwrap();
        assert_eq!(document["status"], "cancelled");
        let record = app.record(&id).await;
        let task = app.state.ledger.find_task(&record.tenant, &record.task).await.unwrap().unwrap();
        assert_eq!((task.status.as_str(), task.error_message.as_deref()), ("FAILED", Some("Withdrawn by its agent")));

        // One that somebody has decided.
        let (id, _) = register(&app, &session, json!(2)).await;
        approve(&app, &id).await;
        let answer = close(&app, ALICE, &id, "cancel").await;
        assert_eq!(answer.assert(409, "E3006").data()["status"], "approved");
        close(&app, ALICE, &unique("req"), "cancel").await.assert(404, "E1004");
    }
}

over_redis! {
    async fn what_an_agent_withdraws_that_it_wrote_to_redis_cannot_be_decided_or_signalled(app: TestApp) {
        let asked = Asked::new();
        let mut subscriber = Subscriber::on(&asked.session).await;
        app.ask(&asked).await;
        close(&app, ALICE, &asked.id, "cancel").await.assert(200, "");
        app.approve(ALICE, &asked.id).await.assert(410, "E3007");
        assert_eq!(decision(&app, ALICE, &asked.id, 0).await.data()["status"], "cancelled");
        let request = app.get(ALICE, &format!("{HITL}/requests/{}", asked.id)).await;
        assert!(request.data().as_str().unwrap().contains(r#""status":"cancelled""#), "{}", request.text);

        assert_eq!(subscriber.heard().await, Vec::<String>::new());
        assert_eq!(app.signal(&asked.session).await, None);
    }
}

async fn expires(mode: Mode) {
    let clock = Clock::manual();
    let app = TestApp::spawn_with(mode, clock.clone(), |_config| {}).await;
    let session = unique("session");
    let (id, _) = register_for(&app, &session, json!(1), 30).await;
    let (late, _) = register_for(&app, &session, json!(2), 600).await;
    let mut stream = Stream::open(&app, &session, None).await;
    let waiting = tokio::spawn({
        let call =
            app.call(ALICE, Method::GET, &format!("{HITL}/requests/{id}/decision?waitSeconds=20"));
        async move { Answer::of(call.send().await.unwrap()).await }
    });
    eventually(async || (app.state.hub.waiters() >= 2).then_some(())).await;
    clock.advance(TimeDelta::seconds(31));
    let _by_us_or_the_worker = expire::run_once(&app.state).await.unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!(answer.assert(200, "").data()["status"], "expired");
    let (_, event, data) = stream.next().await.unwrap();
    assert_eq!((&*event, &data["requestId"]), ("expired", &json!(id)));
    app.approve(ALICE, &id).await.assert(410, "E3007");
    close(&app, ALICE, &id, "cancel").await.assert(410, "E3007");
    close(&app, ALICE, &id, "ack").await.assert(200, "");
    let record = app.record(&id).await;
    let task = app.state.ledger.find_task(&record.tenant, &record.task).await.unwrap().unwrap();
    assert_eq!(task.status.as_str(), "FAILED");
    assert_eq!(task.error_message.unwrap(), format!("Nobody decided on {id} in time"));
    assert_eq!(decision(&app, ALICE, &late, 0).await.data()["status"], "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_expire_by_themselves_embedded() {
    expires(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_expire_by_themselves_production() {
    expires(Mode::Production).await;
}

both_modes! {
    async fn acting_on_an_outcome_is_noted_once(app: TestApp) {
        let (id, _) = register(&app, &unique("session"), json!(1)).await;
        close(&app, ALICE, &id, "ack").await.assert(409, "E3008");
        close(&app, MALLORY, &id, "ack").await.assert(404, "E1004");
        close(&app, ALICE, &unique("req"), "ack").await.assert(404, "E1004");
        approve(&app, &id).await;
        close(&app, MALLORY, &id, "ack").await.assert(404, "E1004");
        let first = close(&app, ALICE, &id, "ack").await;
        let acted = app.record(&id).await.acted_at.unwrap();
        let again = close(&app, ADMIN, &id, "ack").await;
        assert_eq!(first.assert(200, "").data(), again.assert(200, "").data());
        assert_eq!(app.record(&id).await.acted_at, Some(acted));
        assert_eq!(decision(&app, ALICE, &id, 0).await.data()["actedAt"], first.data()["actedAt"]);
    }
}

both_modes! {
    async fn only_what_the_person_looked_at_is_decided(app: TestApp) {
        let session = unique("session");
        let (id, answer) = register(&app, &session, json!({ "to": "a@b.c" })).await;
        let looked = app.get(ALICE, &format!("{HITL}/requests/{id}")).await;
        let etag = looked.headers["ETag"].to_str().unwrap().to_owned();
        let fingerprint = answer.data()["fingerprint"].as_str().unwrap().to_owned();
        assert_eq!(answer.headers["ETag"], looked.headers["ETag"]);
        assert_ne!(etag, format!("\"{fingerprint}\""));
        let decide = async |verb: &str, tag: &str| {
            let call = app.call(ALICE, Method::POST, &format!("{HITL}/{verb}/{id}")).header("If-Match", tag);
            Answer::of(call.json(&json!({ "userId": ALICE.user })).send().await.unwrap()).await
        };
        for other in ["\"x\"".to_owned(), format!("W/{etag}"), "\"\"".to_owned(), "\"a\", \"b\"".to_owned()] {
            for verb in ["approve", "reject"] {
                decide(verb, &other).await.assert(412, "E4120");
            }
        }
        for odd in ["", "x", "W/", &fingerprint, &format!("\"{fingerprint}\"")] {
            let answer = decide("approve", odd).await;
            assert!(answer.assert(412, "E4120").text.contains("Changed since"), "{odd}: {}", answer.text);
        }
        // What a proxy that compresses answers makes of it is not "changed".
        let bare = etag.trim_matches('"');
        for weakened in [format!("W/{etag}"), format!("\"{bare}-gzip\""), format!("W/\"{bare}-br\""), format!("\"{bare};gzip\"")] {
            let answer = decide("approve", &weakened).await;
            assert!(answer.assert(412, "E4120").text.contains("weakened"), "{weakened}: {}", answer.text);
        }
        assert_eq!(decision(&app, ALICE, &id, 0).await.data()["status"], "pending");
        let answer = decide("approve", &format!("\"other\", {etag}")).await;
        assert_eq!(answer.assert(200, "").headers["ETag"], etag);
        assert_eq!(if_match(&app, &id).await.as_deref(), Some(bare));
        decide("approve", &etag).await.assert(200, "");
        decide("approve", "*").await.assert(200, "");
        decide("approve", "\"x\"").await.assert(412, "E4120");
        decide("reject", "\"x\"").await.assert(409, "E3006");
        assert_eq!(decision(&app, ALICE, &id, 0).await.data()["fingerprint"], *fingerprint);
    }
}

over_redis! {
    async fn what_an_agent_has_changed_in_redis_since_the_person_looked_is_not_decided(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let etag = app.get(ALICE, &format!("{HITL}/requests/{}", asked.id)).await.headers["ETag"].clone();
        app.ask(&asked.clone().with("context", json!({ "to": "somebody@else" }))).await;
        let decide = async |tag| {
            let call = app.call(ALICE, Method::POST, &format!("{HITL}/approve/{}", asked.id)).header("If-Match", tag);
            Answer::of(call.json(&json!({ "userId": ALICE.user })).send().await.unwrap()).await
        };
        decide(etag.clone()).await.assert(412, "E4120");
        assert!(app.is_unrecorded(&asked.id).await);
        // Whatever it says is its content, and nothing but when and how it was written is not.
        for (field, value) in [
            ("message", json!("Delete everything?")), ("planSteps", json!([{ "id": "a" }])), ("amount", json!(7)),
            ("params", json!({})), ("userId", json!("bob")), ("actionType", json!("delete")),
        ] {
            app.ask(&asked.clone().with(field, value)).await;
            decide(etag.clone()).await.assert(412, "E4120");
        }
        let spelled = serde_json::to_string_pretty(&asked.clone().with("createdAt", json!(1)).document).unwrap();
        app.put(&asked.id, &spelled).await;
        let request = format!("{HITL}/requests/{}", asked.id);
        let tags = async || {
            let (read, decision) = tokio::join!(app.get(ALICE, &request), decision(&app, ALICE, &asked.id, 0));
            [read.headers["ETag"].clone(), decision.headers["ETag"].clone()]
        };
        assert_eq!(tags().await, [etag.clone(), etag.clone()]);
        let answer = decide(etag.clone()).await;
        assert_eq!(answer.assert(200, "").headers["ETag"], etag);
        // The same after the decision, from Redis and from the ledger.
        app.settled(&asked.id).await;
        assert_eq!(tags().await, [etag.clone(), etag.clone()]);
        assert_eq!(decide(etag.clone()).await.assert(200, "").headers["ETag"], etag);
        assert_eq!(format!("\"{}\"", if_match(&app, &asked.id).await.unwrap()), etag.to_str().unwrap());
    }
}

/// The tag that was kept with a decision.
async fn if_match(app: &TestApp, id: &str) -> Option<String> {
    let span = Span {
        from: DateTime::UNIX_EPOCH,
        to: Clock::System.now() + TimeDelta::days(1),
        undecided: false,
    };
    let mut kept = None;
    let keep = |row: &Exported| {
        let row = serde_json::to_value(row).unwrap();
        if row["requestId"] == id {
            kept = row["ifMatch"].as_str().map(ToOwned::to_owned);
        }
        Ok(())
    };
    app.state.ledger.export(&span, keep).await.unwrap().unwrap();
    kept
}

async fn if_match_is_required(mode: Mode) {
    let app =
        TestApp::spawn_with(mode, Clock::System, |config| config.policy.require_if_match = true)
            .await;
    let asked = Asked::new();
    app.ask(&asked).await;
    let read = app.get(ALICE, &format!("{HITL}/requests/{}", asked.id)).await;
    let etag = read.headers["ETag"].to_str().unwrap();
    for verb in ["approve", "reject"] {
        let decide = async |tag: Option<&str>| {
            let call = app.call(ALICE, Method::POST, &format!("{HITL}/{verb}/{}", asked.id));
            let call = if let Some(tag) = tag { call.header("If-Match", tag) } else { call };
            Answer::of(call.json(&json!({ "userId": ALICE.user })).send().await.unwrap()).await
        };
        decide(None).await.assert(428, "E4280");
        decide(Some("*")).await.assert(428, "E4280");
        decide(Some("\"x\"")).await.assert(
            if verb == "approve" { 412 } else { 409 },
            if verb == "approve" { "E4120" } else { "E3006" },
        );
        if verb == "approve" {
            decide(Some(etag)).await.assert(200, "");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_names_what_was_looked_at_where_that_is_required() {
    if_match_is_required(Mode::Embedded).await;
    if_match_is_required(Mode::Production).await;
}

over_redis! {
    /// Whoever may see may read; writing is the owner's, or an admin's.
    async fn only_its_user_or_an_admin_acknowledges_and_withdraws_a_request(app: TestApp) {
        let session = unique("session");
        for owner in [ALICE, ADMIN] {
            let (registered, _) = register(&app, &session, json!({ "for": owner.user })).await;
            // One of a session's user, and one that names nobody at all.
            let asked = Asked::new().with("userId", Value::Null);
            app.ask(&asked).await;
            for id in [&registered, &asked.id] {
                for step in ["cancel", "ack"] {
                    close(&app, BOB, id, step).await.assert(403, "E2001");
                    close(&app, MALLORY, id, step).await.assert(404, "E1004");
                }
                assert_eq!(decision(&app, BOB, id, 0).await.assert(200, "").data()["status"], "pending");
                close(&app, owner, id, "cancel").await.assert(200, "");
                close(&app, BOB, id, "cancel").await.assert(403, "E2001");
                close(&app, BOB, id, "ack").await.assert(403, "E2001");
                assert_eq!(app.record(id).await.acted_at, None);
                close(&app, owner, id, "ack").await.assert(200, "");
            }
        }
        let asked = Asked::new().with("userId", Value::Null);
        app.ask(&asked).await;
        app.point(&asked.session, &asked.id).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        for (who, status) in [(ALICE, 403), (BOB, 403), (ADMIN, 200)] {
            close(&app, who, &asked.id, "ack").await.assert(status, if status == 200 { "" } else { "E2001" });
        }
    }
}

over_redis! {
    /// An agent on Redis waits in the same session: it hears nothing of the registered request, whose
    /// own agent learns of the decision.
    async fn a_stream_tells_what_the_channel_must_not(app: TestApp) {
        let asked = Asked::new();
        let mut subscriber = Subscriber::on(&asked.session).await;
        let (id, _) = register(&app, &asked.session, json!(1)).await;
        let mut stream = Stream::open(&app, &asked.session, None).await;
        app.ask(&asked).await;
        approve(&app, &id).await;
        let (number, event, data) = stream.next().await.unwrap();
        assert_eq!((&*number, &*event, &data["requestId"]), ("1", "approval", &json!(id)));
        assert_eq!(subscriber.heard().await, Vec::<String>::new());
        assert_eq!(app.signal(&asked.session).await, None);
        assert_eq!(decision(&app, ALICE, &id, 0).await.data()["status"], "approved");
    }
}

both_modes! {
    async fn a_number_that_is_ahead_of_the_ledger_hides_nothing(app: TestApp) {
        let session = unique("session");
        for number in 1..3 {
            let mut stream = Stream::open(&app, &session, Some("99")).await;
            let (id, _) = register(&app, &session, json!(number)).await;
            approve(&app, &id).await;
            assert_eq!(stream.requests(1).await, [id]);
        }
    }
}

both_modes! {
    async fn whoever_hangs_up_waits_no_longer(app: TestApp) {
        use std::io::Write as _;
        let session = unique("session");
        let address = app.base.strip_prefix("http://").unwrap().to_owned();
        for path in ["?waitSeconds=55", "/stream"] {
            let head = app.head(ALICE, &Method::GET, &format!("{HITL}/signals/{session}{path}"));
            let mut socket = std::net::TcpStream::connect(&address).unwrap();
            socket.write_all(format!("{head}{}\r\n", ALICE.lines()).as_bytes()).unwrap();
            eventually(async || (app.state.hub.waiters() == 1).then_some(())).await;
            drop(socket);
            eventually(async || (app.state.hub.waiters() == 0).then_some(())).await;
        }
    }
}

async fn spawn_strict(mode: Mode) -> TestApp {
    TestApp::spawn_with(mode, Clock::System, |config| {
        config.max_waits_per_person = 2;
        config.jwt.leeway_seconds = 0;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_cannot_hold_all_connections() {
    let app = spawn_strict(Mode::Embedded).await;
    let session = unique("session");
    let _one = Stream::open(&app, &session, None).await;
    let two = Stream::open(&app, &session, None).await;
    for path in ["?waitSeconds=1", "/stream"] {
        let answer = app.get(ALICE, &format!("{HITL}/signals/{session}{path}")).await;
        answer.assert(429, "E4290");
        assert!(answer.headers.contains_key("Retry-After"));
    }
    app.get(BOB, &format!("{HITL}/signals/{session}?waitSeconds=1")).await.assert(200, "");
    app.get(ALICE, &format!("{HITL}/signals/{session}")).await.assert(200, "");
    drop(two);
    let again = async || {
        let answer = app.get(ALICE, &format!("{HITL}/signals/{session}?waitSeconds=1")).await;
        (answer.status == 200).then_some(())
    };
    eventually(again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_its_token() {
    let app = spawn_strict(Mode::Embedded).await;
    let (user, tenant) =
        (UserId::parse(ALICE.user).unwrap(), TenantId::parse(ALICE.tenant).unwrap());
    let token = identity::mint(&app.config.jwt, &user, &tenant, Role::User, 2).unwrap();
    let url = format!("{}{HITL}/signals/{}/stream", app.base, unique("session"));
    let call = app.client.get(url).bearer_auth(token).header("X-Tenant-ID", ALICE.tenant);
    let mut stream = Stream { response: call.send().await.unwrap(), text: String::new() };
    assert_eq!(stream.response.status(), 200);
    assert_eq!(stream.next().await, None);
}

/// However many wait over HTTP, we are no subscriber of a session's channel: those that
/// `PUBSUB NUMSUB` counts are agents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_counts_no_subscriber_when_we_wait() {
    let app = TestApp::spawn(Mode::Production).await;
    let session = unique("session");
    let (id, _) = register(&app, &session, json!(1)).await;
    let waits = (0..10).map(|_| {
        let call = app.call(
            ALICE,
            Method::GET,
            &format!("{HITL}/signals/{session}?waitSeconds=20&requestId={id}"),
        );
        tokio::spawn(async move { Answer::of(call.send().await.unwrap()).await })
    });
    let waits = waits.collect::<Vec<_>>();
    eventually(async || (app.state.hub.waiters() == 10).then_some(())).await;
    let channel = format!("hitl:channel:{session}");
    let counted: (String, i64) = ::redis::cmd("PUBSUB")
        .arg("NUMSUB")
        .arg(&channel)
        .query_async(&mut redis().await)
        .await
        .unwrap();
    assert_eq!(counted.1, 0);
    // A message that is none wakes everybody, and nobody takes it for an answer.
    redis()
        .await
        .publish::<_, _, ()>(&channel, r#"{"type":"approval","requestId":"x"}"#)
        .await
        .unwrap();
    approve(&app, &id).await;
    for wait in waits {
        assert!(wait.await.unwrap().assert(200, "").data().as_str().unwrap().contains(&id));
    }
}
