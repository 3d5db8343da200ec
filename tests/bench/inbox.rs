//! A thousand people of one tenant watch their inboxes on two replicas while requests come and are decided:
//! does each stream hear of each change, how soon, and what does a stream cost?

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aura_hitl::domain::approver::Role;
use clap::Args;
use reqwest::Client;
use serde_json::json;
use support::{PrivatePostgres, PrivateRedis};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::load::quantile;
use crate::usage::memory;
use crate::world::{Person, production};

/// How much of it.
#[derive(Args)]
pub struct Options {
    /// Streams, half of them on each replica.
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Changes a second: registrations and approvals in turns, by turns on both replicas.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Changes.
    #[arg(long, default_value_t = 2000)]
    changes: usize,
}

/// When which change was answered: the request and its status.
type Answered = Arc<Mutex<HashMap<String, Instant>>>;

/// What one stream heard: how long after its answer each change came, at most the time between the answer
/// and the last event of the request, since two changes of one may be one event.
async fn listen(base: String, person: Person, heard: Arc<Mutex<Vec<(String, Instant)>>>) {
    let call = format!(
        "GET /aura/hitl/inbox/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nX-Tenant-ID: {}\r\n\r\n",
        person.token, person.tenant
    );
    let (mut text, mut some) = (String::new(), vec![0; 64 * 1024]);
    let mut socket = loop {
        let mut socket = TcpStream::connect(base.strip_prefix("http://").unwrap()).await.unwrap();
        socket.write_all(call.as_bytes()).await.unwrap();
        let count = socket.read(&mut some).await.unwrap();
        let answer = std::str::from_utf8(&some[..count]).unwrap();
        if answer.starts_with("HTTP/1.1 200") {
            text += answer;
            break socket;
        }
        // Too busy: as the contract says, once more.
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        sleep(Duration::from_millis(200)).await;
    };
    loop {
        let count = socket.read(&mut some).await.unwrap();
        assert!(count > 0, "a stream has ended: {text}");
        text += std::str::from_utf8(&some[..count]).unwrap();
        let at = Instant::now();
        let whole = text.rfind("}\n").map_or(0, |end| end + 1);
        let rest = text.split_off(whole);
        let mut heard = heard.lock().unwrap();
        for event in text.split("\"requestId\":\"").skip(1) {
            let id = event.split('"').next().unwrap();
            if event.contains("\"approved\"") {
                heard.push((id.to_owned(), at));
            }
        }
        text = rest;
    }
}

/// Measures it.
pub async fn run(options: &Options) -> ExitCode {
    let (postgres, redis, folder) =
        (PrivatePostgres::start().await, PrivateRedis::start().await, TempDir::new().unwrap());
    let program = || {
        production(&folder, &postgres.url(), &redis.url())
            .with("RUST_LOG", "warn,aura_hitl::server=info")
            .with("AURA_HITL_AUTO_MIGRATE", "true")
            .with("AURA_HITL_MAX_CONNECTIONS", (options.streams + 1000).to_string())
            .with("AURA_HITL_MAX_WAITS_PER_TENANT", (options.streams + 10).to_string())
    };
    let (one, two) = (program().serve().await, program().serve().await);
    let replicas = [&one, &two];
    sleep(Duration::from_secs(2)).await;
    let before = replicas.map(|replica| memory(replica.pid()));
    let (mut streams, mut all) = (JoinSet::new(), Vec::new());
    for number in 0..options.streams {
        let person = Person::new(&format!("person{number}"), "tenant1", Role::User);
        let heard = Arc::new(Mutex::new(Vec::new()));
        all.push(Arc::clone(&heard));
        streams.spawn(listen(replicas[number % 2].base.clone(), person, heard));
        if number % 50 == 49 {
            sleep(Duration::from_millis(50)).await;
        }
    }
    sleep(Duration::from_secs(3)).await;
    let after = replicas.map(|replica| memory(replica.pid()));
    let grown = after.iter().sum::<u64>().saturating_sub(before.iter().sum::<u64>());
    println!("memory of a stream: {:.1} KiB", grown as f64 / options.streams as f64 / 1024.0);

    let answered: Answered = Arc::default();
    let (client, mut calls) = (Client::new(), JoinSet::new());
    let agent = Arc::new(Person::new("agent", "tenant1", Role::User));
    let mut ticks = interval(Duration::from_secs(2) / options.rate);
    for number in 0..options.changes / 2 {
        ticks.tick().await;
        let bases = [0, 1].map(|other| replicas[(number + other) % 2].base.clone());
        let (client, agent, answered) = (client.clone(), Arc::clone(&agent), Arc::clone(&answered));
        calls.spawn(async move {
            let id = format!("req_{number:012}");
            let body = json!({ "requestId": id, "sessionId": format!("s_{number}"), "actionType": "send" });
            let decision = json!({ "userId": "agent" });
            for (path, body) in [("requests".to_owned(), body), (format!("approve/{id}"), decision)] {
                let base = &bases[usize::from(path != "requests")];
                loop {
                    let call = client.post(format!("{base}/aura/hitl/{path}"));
                    let call = call.bearer_auth(&agent.token).header("X-Tenant-ID", "tenant1");
                    let answer = call.header("X-User-ID", "agent").json(&body).send().await.unwrap();
                    if answer.status().is_success() {
                        break;
                    }
                    // Too busy: as the contract says, once more.
                    assert_eq!(answer.status().as_u16(), 503, "{}", answer.text().await.unwrap());
                    sleep(Duration::from_millis(200)).await;
                }
            }
            answered.lock().unwrap().insert(id, Instant::now());
        });
    }
    calls.join_all().await;
    sleep(Duration::from_secs(3)).await;
    let answered = answered.lock().unwrap();
    let (mut delays, mut missed) = (Vec::new(), 0);
    for heard in &all {
        let heard = heard.lock().unwrap().iter().cloned().collect::<HashMap<_, _>>();
        missed += answered.keys().filter(|id| !heard.contains_key(*id)).count();
        let times = answered.iter().filter_map(|(id, at)| Some(*heard.get(id)? - *at));
        delays.extend(times);
    }
    delays.sort_unstable();
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| quantile(&delays, part));
    println!(
        "{} streams, {} decisions: {missed} missed; heard after p50 {p50:.0} ms, p99 {p99:.0} ms, at most {most:.0} ms",
        options.streams,
        answered.len()
    );
    streams.abort_all();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
