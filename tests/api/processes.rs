//! Two processes of the real binary on one database and one Redis, as replicas run.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use aura_hitl::courier::{Courier, RedisSettings};
use aura_hitl::domain::decision::State;
use aura_hitl::domain::ids::{RequestId, TenantId, UserId};
use aura_hitl::domain::record::Record;
use aura_hitl::domain::task::TaskFilter;
use aura_hitl::identity;
use aura_hitl::identity::JwtConfig;
use aura_hitl::ledger::Ledger;
use futures_util::StreamExt as _;
use reqwest::Client;
use secrecy::SecretString;
use serde_json::{Value, json};
use support::{
    ALICE, Answer, Asked, Subscriber, eventually, find_record, fresh_database, put_request,
    put_session, test_variable, unique, until_there_is_room,
};

const SECRET: &str = "a secret that the Auth server shares with us";

/// One process; killed when dropped.
struct Process {
    child: Child,
    base: String,
}

impl Process {
    /// Starts `aura-hitl` on a free port, which it tells in its log.
    fn start(database: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_aura-hitl"))
            .envs([("DATABASE_URL", database), ("JWT_SECRET", SECRET), ("PORT", "0")])
            .env("REDIS_URL", test_variable("TEST_REDIS_URL"))
            .env("RUST_LOG", "info,aura_hitl::api::call_span=warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(address) = line["address"].as_str() {
                    let _nobody_waits = tell.send(address.to_owned());
                }
            }
        });
        let address = told.recv_timeout(Duration::from_mins(1)).expect("it does not listen");
        Self { child, base: format!("http://{address}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Two replicas, the stores that they share, and the people who click.
struct Replicas {
    processes: [Process; 2],
    ledger: Ledger,
    courier: Courier,
    client: Client,
}

impl Replicas {
    async fn start() -> Self {
        let database = fresh_database().await;
        // Both find the database empty: only one of them may migrate it.
        let starting = [0, 1].map(|_| {
            let database = database.clone();
            tokio::task::spawn_blocking(move || Process::start(&database))
        });
        let [one, two] = starting;
        let processes = [one.await.unwrap(), two.await.unwrap()];
        let settings = RedisSettings::Url(SecretString::from(test_variable("TEST_REDIS_URL")));
        let replicas = Self {
            processes,
            ledger: Ledger::connect_postgres(
                &SecretString::from(database),
                aura_hitl::ledger::Pooler::None,
                2,
            )
            .await
            .unwrap(),
            courier: Courier::redis(&settings).unwrap(),
            client: Client::new(),
        };
        for process in &replicas.processes {
            let ready = format!("{}/health/ready", process.base);
            eventually(async || {
                let answer = replicas.client.get(&ready).send().await.ok()?;
                answer.status().is_success().then_some(())
            })
            .await;
        }
        replicas
    }

    async fn ask(&self, asked: &Asked) {
        put_request(&self.courier, &asked.id, &asked.document.to_string()).await;
        put_session(&self.courier, &asked.session, &asked.id).await;
    }

    /// A click of somebody's: even clicks go to one replica, odd ones to the other.
    async fn decide(&self, click: usize, id: &str) -> (String, &'static str, Answer) {
        let user = format!("user{}", click % 7);
        let (verb, verdict) =
            if click % 4 < 2 { ("approve", "approved") } else { ("reject", "rejected") };
        let config = JwtConfig::with_secret(SecretString::from(SECRET));
        let (sub, tenant) =
            (UserId::parse(user.as_str()).unwrap(), TenantId::parse(ALICE.tenant).unwrap());
        let token = identity::mint(&config, &sub, &tenant, ALICE.role, 600).unwrap();
        let base = &self.processes[click % 2].base;
        let call = self
            .client
            .post(format!("{base}/api/aura/hitl/{verb}/{id}"))
            .bearer_auth(token)
            .header("X-Tenant-ID", ALICE.tenant)
            .header("X-User-ID", &user)
            .json(&json!({ "userId": user, "reason": format!("click {click}") }));
        let click = async || Answer::of(call.try_clone().unwrap().send().await.unwrap()).await;
        (user, verdict, until_there_is_room(click).await)
    }

    async fn record(&self, id: &str) -> Record {
        let id = RequestId::parse(id).unwrap();
        find_record(&self.ledger, id.as_str()).await.unwrap()
    }

    async fn count_tasks(&self) -> u64 {
        let tenant = TenantId::parse(ALICE.tenant).unwrap();
        let filter = TaskFilter { tenant, user: None, status: None, page: 0, size: 1 };
        self.ledger.list_tasks(&filter).await.unwrap().1
    }
}

/// What was heard, each message once. A signal whose sending took longer than its lease, on a busy machine,
/// is sent again, and is the same then.
fn without_repetitions(heard: Vec<String>) -> BTreeSet<String> {
    heard.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_over_two_replicas_make_one_decision() {
    let replicas = Replicas::start().await;
    let asked = Asked::new();
    replicas.ask(&asked).await;
    let mut subscriber = Subscriber::on_redis(format!("hitl:channel:{}", asked.session)).await;
    let clicks = (0..200).map(|click| replicas.decide(click, &asked.id));
    let answers = futures_util::future::join_all(clicks).await;
    let record = replicas.record(&asked.id).await;
    for (user, verdict, answer) in &answers {
        answer.assert_agrees(&record, user, verdict);
    }
    assert_eq!(without_repetitions(subscriber.heard().await).len(), 1);
    assert_eq!(replicas.count_tasks().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_decisions_over_two_replicas_agree_with_the_ledger() {
    let replicas = Replicas::start().await;
    let prefix = unique("session");
    let asked = (0..50).map(|n| Asked::in_session(&format!("{prefix}_{n}"))).collect::<Vec<_>>();
    let mut subscriber = Subscriber::on_redis(format!("hitl:channel:{prefix}*")).await;
    for asked in &asked {
        replicas.ask(asked).await;
    }
    // Eight clicks on each request, those on the same request next to each other.
    let clicks = asked.iter().flat_map(|asked| (0..8).map(move |click| (click, asked)));
    let answers = futures_util::stream::iter(clicks)
        .map(async |(click, asked)| (asked, replicas.decide(click, &asked.id).await))
        .buffer_unordered(40)
        .collect::<Vec<_>>()
        .await;
    assert_eq!(answers.len(), 400);
    for (asked, (user, verdict, answer)) in &answers {
        answer.assert_agrees(&replicas.record(&asked.id).await, user, verdict);
    }
    let heard = without_repetitions(subscriber.heard().await);
    assert_eq!(heard.len(), asked.len());
    for asked in &asked {
        let State::Decided(decision) = replicas.record(&asked.id).await.state else {
            panic!("undecided")
        };
        let signal = heard.iter().find(|signal| signal.contains(&format!("\"{}\"", asked.id)));
        let signal: Value = serde_json::from_str(signal.unwrap()).unwrap();
        assert_eq!(signal["status"], decision.verdict.status());
        assert_eq!(signal["reason"].as_str(), decision.verdict.reason());
    }
    assert_eq!(replicas.count_tasks().await, 50);
}
