//! A client of Redis that forges decisions.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use support::history::Choice;
use support::{Answer, Asked, eventually_within};

use crate::report::{Report, Scale};
use crate::world::{World, ask, at_once};

/// What is forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Publishes an approval of a pending request.
    Message,
    /// Publishes an approval of a rejected request.
    OppositeMessage,
    /// Puts an approval of a pending request under the signal's key.
    Signal,
    /// Puts an approval of a rejected request under the signal's key.
    OppositeSignal,
    /// Gives a pending request the status `approved`.
    Status,
}

const KINDS: [Kind; 5] =
    [Kind::Message, Kind::OppositeMessage, Kind::Signal, Kind::OppositeSignal, Kind::Status];

pub async fn forged(scale: Scale, report: &mut Report) {
    let mut world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let agents = world.agents().await;
    let places = (0..scale.of(1000, 100)).collect::<Vec<_>>();
    let all = places.len();
    let endings = at_once(places, 20, async |place, _| {
        let (kind, asked) = (KINDS[place % KINDS.len()], Asked::new());
        let mut redis = agents.clone();
        ask(&mut redis, &asked).await;
        if matches!(kind, Kind::OppositeMessage | Kind::OppositeSignal) {
            people
                .decide_surely(&bases[place % 2], &asked.id, &Choice::rejected("user123", "no"))
                .await;
            world.delivered(&asked.id).await;
        }
        forge(&mut redis, kind, &asked).await;
        let mut served = Vec::new();
        for base in &bases {
            for path in [
                format!("signals/{}", asked.session),
                format!("signals/{}?requestId={}", asked.session, asked.id),
                format!("requests/{}", asked.id),
                format!("requests/{}/detail", asked.id),
                format!("requests/{}/decision", asked.id),
            ] {
                let call = people.call(Method::GET, &format!("{base}/aura/hitl/{path}"), "user123");
                let answer = Answer::of(call.send().await.unwrap()).await;
                if says_approved(&answer) {
                    served.push(format!("{kind:?} {path}: {}", answer.text));
                }
            }
        }
        if kind == Kind::Status {
            let url = format!("{}/aura/hitl/approve/{}", bases[place % 2], asked.id);
            let call =
                people.call(Method::POST, &url, "user123").json(&json!({ "userId": "user123" }));
            let answer = Answer::of(call.send().await.unwrap()).await;
            if answer.status != StatusCode::UNPROCESSABLE_ENTITY {
                served.push(format!("approved under a forged status: {}", answer.text));
            }
        }
        (kind, asked, served)
    })
    .await;
    report.count(all, "forgeries");
    let served = endings.iter().flat_map(|(.., served)| served.clone()).collect::<Vec<_>>();
    report.wrongs("served", &served);
    // Every replica gets every message. A forged key is read by at least one replica.
    let messages =
        endings.iter().filter(|(kind, ..)| matches!(kind, Kind::Message | Kind::OppositeMessage));
    let messages = messages.count();
    for base in &bases {
        eventually_within(Duration::from_mins(1), async || {
            (counted(base).await >= messages).then_some(())
        })
        .await;
        let counted = counted(base).await;
        report.demand(counted == messages, || format!("{counted} of {messages} messages counted"));
    }
    let mut reported = BTreeSet::new();
    for replica in &mut world.replicas {
        for line in replica.process().log().iter().filter(|line| line["security"] == true) {
            let named = ["request_id", "session_id"].map(|field| line[field].as_str());
            reported.extend(named.into_iter().flatten().map(ToOwned::to_owned));
        }
    }
    let is_reported =
        |asked: &Asked| reported.contains(&asked.id) || reported.contains(&asked.session);
    let unreported = endings.iter().filter(|(_, asked, _)| !is_reported(asked));
    let unreported = unreported.map(|(kind, asked, _)| format!("{kind:?} {}", asked.id));
    let unreported = unreported.collect::<Vec<_>>();
    report.count(all - unreported.len(), "reported");
    report.wrongs("unreported", &unreported);
    // No genuine decision was reported.
    let decided = world.ask_many(20).await;
    for (place, asked) in decided.iter().enumerate() {
        people.decide_surely(&bases[place % 2], &asked.id, &Choice::approved("user123")).await;
        world.delivered(&asked.id).await;
    }
    let approved =
        world.number("SELECT count(*) FROM hitl_request WHERE status = 'approved'").await;
    report.demand(approved == 20, || format!("{approved} approved in the ledger, not 20"));
    world.check_alive(report);
}

async fn forge(redis: &mut MultiplexedConnection, kind: Kind, asked: &Asked) {
    let signal = json!({
        "type": "approval", "requestId": asked.id, "status": "approved", "timestamp": 1_706_152_860,
    });
    let signal = signal.to_string();
    match kind {
        Kind::Message | Kind::OppositeMessage => {
            let channel = format!("hitl:channel:{}", asked.session);
            redis.publish::<_, _, ()>(channel, signal).await.unwrap();
        }
        Kind::Signal | Kind::OppositeSignal => {
            let key = format!("hitl:signal:{}", asked.session);
            redis.set_ex::<_, _, ()>(key, signal, 300).await.unwrap();
        }
        Kind::Status => {
            let mut document = asked.document.clone();
            document["status"] = json!("approved");
            document["approvedBy"] = json!("user123");
            document["approvedAt"] = json!(1_706_152_860_000_i64);
            let key = format!("hitl:request:{}", asked.id);
            redis.set_ex::<_, _, ()>(key, document.to_string(), 1800).await.unwrap();
        }
    }
}

/// Whether an answer says anywhere that the request was approved.
fn says_approved(answer: &Answer) -> bool {
    fn says(value: &Value) -> bool {
        match value {
            Value::String(text) => {
                text == "approved"
                    || serde_json::from_str(text)
                        .is_ok_and(|value: Value| !value.is_string() && says(&value))
            }
            Value::Array(values) => values.iter().any(says),
            Value::Object(fields) => fields.values().any(says),
            _ => false,
        }
    }
    answer.status.is_success() && says(answer.data())
}

/// How many forged messages a replica has counted.
async fn counted(base: &str) -> usize {
    let metrics = Client::new().get(format!("{base}/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let series = r#"aura_hitl_forgeries_total{kind="message"} "#;
    metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap().parse().unwrap()
}
