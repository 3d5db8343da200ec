//! Malformed and malicious input over HTTP and in Redis.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use redis::aio::MultiplexedConnection;
use reqwest::{Method, StatusCode};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use support::belongings::{Service as _, send};
use support::history::{Choice, Delivered};
use support::{
    ALICE, Answer, Asked, Operation, PREFIXES, RawAnswer, careful_operations, commands_to_redis,
    framed, harmful, operations, unique,
};

use crate::damage::{self, Dice};
use crate::report::{Report, Scale};
use crate::world::{TENANT, World, answered, at_once};

/// Calls at a time. Some need much CPU time, and none may be refused because the machine is busy.
const MAX_CALLS: usize = 16;
/// Sockets at a time. actix closes some of them only after its time-out.
const MAX_SOCKETS: usize = 128;

/// The descriptions of the failures.
fn told(answers: Vec<Option<String>>) -> Vec<String> {
    answers.into_iter().flatten().collect()
}

/// Ids as they never come from a client library: not encoded, and no text of a path.
fn ids_that_are_no_text(marker: &str) -> impl Iterator<Item = Vec<u8>> {
    let bytes: [&[u8]; 7] = [b" x", b"\t", b"\n", b"\r\n", b"\0", b"\x7f", b"\xff\xfe"];
    bytes.into_iter().map(move |bytes| [marker.as_bytes(), bytes].concat())
}

/// Ids with a slash that is not encoded: other paths, which do not exist.
fn ids_that_are_paths(marker: &str) -> impl Iterator<Item = String> {
    let paths = ["ID/x", "../ID", "ID/../ID", "/ID", "ID//", "./ID", "ID/.."];
    paths.into_iter().map(move |path| path.replace("ID", marker))
}

pub async fn hostile_ids(_scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let before = world.settled().await;
    let marker = unique("hostile");
    let (mut calls, mut paths) = (Vec::new(), 0);
    for operation in operations() {
        let Some(kind) = operation.id() else { continue };
        let body = operation.body(ALICE).map(|body| body.to_string()).unwrap_or_default();
        let encoded = harmful::hostile_ids(&marker, kind == "sessionId");
        let ids = encoded.into_iter().map(|id| (id.into_bytes(), 400));
        let ids = ids.chain(ids_that_are_no_text(&marker).map(|id| (id, 400)));
        // A slash that is not encoded makes another path of it, which leads nowhere.
        let ids = ids.chain(ids_that_are_paths(&marker).map(|id| (id.into_bytes(), 404)));
        for (id, status) in ids {
            for path in operation.paths_to("THE-ID") {
                let head = world.head(ALICE, &operation.method, &path) + &ALICE.lines();
                let (before, after) = head.split_once("THE-ID").unwrap();
                let rest = format!("{after}{}", framed(&body));
                calls.push(([before.as_bytes(), &id, rest.as_bytes()].concat(), status));
                paths += usize::from(status == 404);
            }
        }
    }
    report.count(calls.len() - paths, "hostile ids sent");
    report.count(paths, "ids that are paths");
    let mut wrongs = Vec::new();
    let redis = world.redis.client();
    let commands = commands_to_redis(&redis, async {
        let answers = at_once(calls, MAX_SOCKETS, async |_, (bytes, status)| {
            let answer = world.raw(bytes.clone()).await;
            let is_refused = answer.first().status == status && answer.count() == 1;
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
            (!is_refused).then(|| format!("{start:?}: {:?}", answer.text))
        });
        wrongs = told(answers.await);
    })
    .await;
    report.wrongs("answered otherwise than 400, or 404 for a path", &wrongs);
    // What else is said keeps the service's connections alive.
    let commands = commands.into_iter();
    let commands = commands.filter(|line| line.contains("hitl:") || line.contains(&marker));
    report.wrongs("commands to Redis", &commands.collect::<Vec<_>>());
    world.check_untouched(report, &before).await;

    // A good id does reach Redis: the monitor hears what it should.
    let heard = commands_to_redis(&redis, async {
        let path = format!("/api/aura/hitl/requests/{marker}");
        send(&world, ALICE, (&Method::GET, &path), None).await.assert(404, "E1004");
    });
    report.demand(heard.await.iter().any(|line| line.contains(&marker)), || "deaf".to_owned());
}

/// Every route under both prefixes with these endings behind the headers of a call by [`ALICE`].
fn framings(world: &World, id: &str, endings: &[String]) -> Vec<(Operation, String)> {
    let mut calls = Vec::new();
    for operation in careful_operations() {
        for path in operation.paths_to(id) {
            let head = world.head(ALICE, &operation.method, &path) + &ALICE.lines();
            let head = head + "Content-Type: application/json\r\n";
            calls.extend(endings.iter().map(|end| (operation.clone(), format!("{head}{end}"))));
        }
    }
    calls
}

pub async fn framing(_scale: Scale, report: &mut Report) {
    type IsRight = fn(&Operation, &RawAnswer) -> bool;
    let mut world = World::start(1).await;
    let id = world.ask_many(1).await.remove(0).id;
    let before = world.settled().await;
    let is_refused: IsRight =
        |_, answer| answer.first().status == StatusCode::BAD_REQUEST && answer.count() == 1;
    // What does not read its body does not read the chunks either: it answers, and closes.
    let is_refused_if_read: IsRight = |operation, answer| {
        let reads = operation.body(ALICE).is_some();
        answer.count() <= 1 && (!reads || answer.first().status == StatusCode::BAD_REQUEST)
    };
    // Either the body was read and the next request answered, or the connection ended.
    let is_one_body: IsRight = |_, answer| {
        let next = answer.text.matches("the-next").count();
        answer.first().status != StatusCode::INTERNAL_SERVER_ERROR && answer.count() == 1 + next
    };
    let mut calls = Vec::new();
    for (name, endings, is_right) in [
        ("heads in doubt", harmful::ambiguous_heads(), is_refused),
        ("broken chunks", harmful::broken_chunks(), is_refused_if_read),
        ("requests inside bodies", harmful::requests_in_bodies(), is_one_body),
    ] {
        let framings = framings(&world, &id, &endings);
        report.count(framings.len(), name);
        calls.extend(framings.into_iter().map(|(operation, bytes)| (operation, bytes, is_right)));
    }
    for operation in operations() {
        for path in operation.paths_to(&id) {
            let head = world.head(ALICE, &operation.method, &path) + &ALICE.lines();
            let broken = harmful::broken_first_lines(&head).into_iter();
            calls.extend(broken.map(|bytes| (operation.clone(), bytes, is_refused)));
        }
    }
    report.count(calls.len(), "calls in all");
    let wrongs = at_once(calls, MAX_SOCKETS, async |_, (operation, bytes, is_right)| {
        let answer = world.raw(bytes.clone()).await;
        let is_smuggled = answer.text.contains("smuggled");
        let is_right = answer.is_closed && is_right(&operation, &answer);
        (is_smuggled || !is_right).then(|| format!("{bytes:?}: {:?}", answer.text))
    });
    report.wrongs("smuggled, left open or answered otherwise", &told(wrongs.await));
    world.check_untouched(report, &before).await;
}

/// What [`ALICE`] sends as JSON, whatever it is.
async fn post(world: &World, method: &Method, path: &str, text: Vec<u8>) -> Answer {
    let call = world.call(ALICE, method.clone(), path).header("Content-Type", "application/json");
    Answer::of(call.body(text).send().await.unwrap()).await
}

pub async fn broken_bodies(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let request = world.ask_many(1).await.remove(0).id;
    let task = json!({ "taskType": "mail", "userId": ALICE.user, "tenantId": ALICE.tenant });
    let task = send(&world, ALICE, (&Method::POST, "/main/agent/tasks"), Some(task)).await;
    let task = task.data()["taskId"].as_str().unwrap().to_owned();
    // Where something is to be changed it is there.
    let mut routes = Vec::new();
    for operation in operations() {
        let Some(body) = operation.body(ALICE) else { continue };
        let id = if operation.id() == Some("taskId") { &task } else { &request };
        let paths = operation.paths_to(id);
        routes.extend(paths.map(|path| (operation.clone(), path, body.clone())));
    }
    let before = world.settled().await;
    let mut calls = Vec::new();
    for (operation, path, body) in &routes {
        let limit = operation.body_limit();
        let mut over = body.to_string().into_bytes();
        over.resize(limit + 1, b' ');
        let broken = harmful::broken_bodies().into_iter().map(|(_name, text)| text);
        calls.extend(broken.chain([over]).map(|text| {
            let expected = if text.len() > limit { (413, "E4130") } else { (400, "E4000") };
            (operation.method.clone(), path.clone(), text, expected)
        }));
    }
    report.count(routes.len(), "routes with a body");
    report.count(calls.len(), "broken bodies");
    let wrongs = at_once(calls, MAX_CALLS, async |_, (method, path, text, expected)| {
        let start = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
        let answer = post(&world, &method, &path, text).await;
        let is_refused = (answer.status.as_u16(), answer.code()) == expected;
        (!is_refused).then(|| format!("{method} {path} {start:?}: {}", answer.text))
    });
    let wrongs = told(wrongs.await);
    report.wrongs("answered otherwise than 413 or 400", &wrongs);
    world.check_untouched(report, &before).await;

    // Whatever else there is: some of these are in order.
    let (mut dice, cases) = (Dice::new(25), scale.of(10_000, 1_000));
    let calls = (0..cases).map(|_| {
        let (operation, path, body) = dice.pick(&routes);
        let body = if body.is_object() { body.clone() } else { json!({ "steps": body }) };
        (operation.method.clone(), path.clone(), dice.damaged(&body))
    });
    let wrongs = at_once(calls.collect(), MAX_CALLS, async |_, (method, path, text)| {
        let start = String::from_utf8_lossy(&text).into_owned();
        let ask = async || post(&world, &method, &path, text.clone()).await;
        let answer = answered(ask).await;
        (answer.status.as_u16() >= 500).then(|| format!("{method} {path} {start}: {}", answer.text))
    });
    report.count(cases, "bodies damaged by chance");
    report.wrongs("of them answered 5xx", &told(wrongs.await));
    world.check_alive(report);
}

/// What its session's key says, as Aura writes it.
fn pointer(asked: &Asked) -> Value {
    json!({
        "sessionId": asked.session, "requestId": asked.id, "userId": "user123", "tenantId": TENANT,
    })
}

/// A request as it is found in Redis.
struct Found {
    asked: Asked,
    /// The text under its key; none when the key is of another type.
    text: Option<Vec<u8>>,
    pointer: Vec<u8>,
}

impl Found {
    /// With one field that is an odd value.
    fn with(field: &str, value: &str) -> Self {
        let asked = Asked::new();
        let text = damage::with_field(&asked.document, field, value);
        let pointer = pointer(&asked).to_string().into_bytes();
        Self { asked, text: Some(text), pointer }
    }

    /// So many, among them one for each field that is an odd value.
    fn many(count: usize) -> Vec<Self> {
        let fields = Asked::new().document;
        let fields = fields.as_object().unwrap().keys();
        let values = damage::odd_values();
        let each = fields.flat_map(|field| values.iter().map(move |value| (field, value)));
        let mut all = each.map(|(field, value)| Self::with(field, value)).collect::<Vec<_>>();
        let mut dice = Dice::new(22);
        let rest = count.saturating_sub(all.len());
        all.extend((0..rest).map(|_| Self::damaged(&mut dice)));
        all
    }

    /// Damaged by chance, and perhaps its session's pointer too.
    fn damaged(dice: &mut Dice) -> Self {
        let asked = Asked::new();
        let is_of_another_type = dice.below(20) == 0;
        let text = (!is_of_another_type).then(|| dice.damaged(&asked.document));
        let pointer = pointer(&asked);
        let is_pointer_damaged = dice.below(4) == 0;
        let pointer = if is_pointer_damaged {
            dice.damaged(&pointer)
        } else {
            pointer.to_string().into_bytes()
        };
        Self { asked, text, pointer }
    }

    fn key(&self) -> String {
        format!("hitl:request:{}", self.asked.id)
    }

    async fn write(&self, redis: &mut MultiplexedConnection, place: usize) {
        let key = self.key();
        let mut pipe = redis::pipe();
        match (&self.text, place % 4) {
            (Some(text), _) => pipe.set_ex(&key, text, 1800),
            (None, 0) => pipe.rpush(&key, "x"),
            (None, 1) => pipe.hset(&key, "requestId", &self.asked.id),
            (None, 2) => pipe.sadd(&key, "x"),
            (None, _) => pipe.zadd(&key, "x", 1),
        };
        let session = format!("hitl:session:{}", self.asked.session);
        pipe.set_ex(session, &self.pointer, 3600).exec_async(redis).await.unwrap();
    }

    /// Why this text cannot be decided; `None` if it can. Reads it as a common JSON parser: of a repeated
    /// name the last value counts.
    fn objection(&self, row: &Decided) -> Option<String> {
        let text = self.text.as_deref().and_then(|text| std::str::from_utf8(text).ok());
        let Some(text) = text else { return Some("was no text".to_owned()) };
        let plain = without_python_words(text);
        let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(&plain) else {
            return Some(format!("was no object: {text}"));
        };
        let name = |field: &str| {
            let value = fields.get(field)?.get();
            let name = serde_json::from_str(value).unwrap_or_else(|_| value.to_owned());
            (value != "null" && !name.trim().is_empty()).then_some(name)
        };
        let is_same = row.document == text
            && name("sessionId").as_ref() == Some(&row.session)
            && name("requestId").is_none_or(|id| id == row.request)
            && name("tenantId").is_none_or(|tenant| tenant == row.tenant)
            && name("status").is_none_or(|status| status == "pending");
        (!is_same).then(|| format!("says something else: {text}"))
    }
}

/// `true` in place of the bare numbers that Python alone writes: it stands where a value may, joins
/// no other token, and names nobody.
fn without_python_words(text: &str) -> String {
    let (mut plain, mut rest, mut in_string) = (String::new(), text, false);
    while let Some(next) = rest.chars().next() {
        let words = ["NaN", "-Infinity", "Infinity"];
        if let Some(word) = words.into_iter().find(|word| !in_string && rest.starts_with(word)) {
            plain.push_str("true");
            rest = &rest[word.len()..];
            continue;
        }
        let escaped = rest.chars().nth(1).filter(|_| in_string && next == '\\');
        in_string ^= next == '"';
        plain.push(next);
        plain.extend(escaped);
        rest = &rest[next.len_utf8() + escaped.map_or(0, char::len_utf8)..];
    }
    plain
}

/// A decided row of the ledger.
#[derive(sqlx::FromRow)]
struct Decided {
    request: String,
    session: String,
    tenant: String,
    document: String,
}

/// Reads, polls, decides and decides otherwise. Returns the answers that the contract does not allow.
async fn use_it(world: &World, found: &Found, place: usize) -> Vec<String> {
    let Asked { id, session, .. } = &found.asked;
    let (base, prefix) = (world.replicas[0].base(), PREFIXES[place % 2]);
    let mut wrongs = Vec::new();
    let mut read = async |path: String| {
        let path = format!("{prefix}/aura/hitl/{path}");
        let ask = async || send(world, ALICE, (&Method::GET, &path), None).await;
        let answer = answered(ask).await;
        let says_why = || answer.code() != "" && answer.body["message"] != "";
        let is_clear = match answer.status.as_u16() {
            200 => true,
            404 | 410 | 422 => says_why(),
            _ => false,
        };
        if !is_clear {
            wrongs.push(format!("{path}: {} {}", answer.status, answer.text));
        }
    };
    read(format!("requests/{id}")).await;
    read(format!("signals/{session}")).await;
    let choices = [Choice::approved("user123"), Choice::rejected("user123", "no")];
    for choice in [&choices[place % 2], &choices[(place + 1) % 2]] {
        world.people.decide_surely(&base, id, choice).await;
    }
    read(format!("requests/{id}")).await;
    read(format!("signals/{session}?requestId={id}")).await;
    wrongs
}

pub async fn broken_documents(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let all = Found::many(scale.of(10_000, 600));
    let cases = all.len();
    let redis = world.agents().await;
    let used = stream::iter(all.iter().enumerate()).map(async |(place, found)| {
        found.write(&mut redis.clone(), place).await;
        use_it(&world, found, place).await
    });
    let wrongs = used.buffer_unordered(MAX_CALLS).collect::<Vec<_>>().await.concat();
    report.count(cases, "documents");
    report.wrongs("unclear answers to reading", &wrongs);

    let query = "SELECT request_id AS request, session_id AS session, tenant_id AS tenant, document
                   FROM hitl_request WHERE status <> 'pending'";
    let decided: Vec<Decided> =
        sqlx::query_as(query).fetch_all(&mut world.database().await).await.unwrap();
    let decided =
        decided.into_iter().map(|row| (row.request.clone(), row)).collect::<BTreeMap<_, _>>();
    let (mut objections, mut altered) = (Vec::new(), Vec::new());
    for found in &all {
        let id = &found.asked.id;
        if let Some(row) = decided.get(id) {
            objections
                .extend(found.objection(row).map(|why| format!("{id} was decided, and {why}")));
        } else if let Some(text) = &found.text {
            let now: Vec<u8> =
                redis::cmd("GET").arg(found.key()).query_async(&mut redis.clone()).await.unwrap();
            if now != *text {
                altered.push(id.clone());
            }
        }
    }
    report.count(decided.len(), "readable ones decided");
    report.count(cases - decided.len(), "refused");
    report.demand(!decided.is_empty() && decided.len() < cases, || "no mixture".to_owned());
    report.wrongs("decided otherwise than the document says", &objections);
    report.wrongs("refused, and yet rewritten", &altered);
    world.check(report, Duration::from_secs(30), Delivered::Settled).await;
    world.check_alive(report);
}
