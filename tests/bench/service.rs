//! A running service, and what is asked of it over HTTP; what it says it has done is looked up.

use std::time::{Duration, Instant};

use aura_hitl::domain::clock::Clock;
use futures_util::StreamExt as _;
use reqwest::{Client, Method};
use serde_json::Value;
use sqlx::PgConnection;
use support::{Running, eventually_within};

use crate::load::{Run, Watched, per_call, wrk};
use crate::world::{Asked, Call, Database, World, script};

/// More registrations than any run makes in a second.
const MOST_PER_SECOND: u64 = 8000;
/// More decisions than any run makes in a second, from one connection and from several.
const MOST_DECISIONS_OF_ONE: u64 = 1000;
const MOST_DECISIONS: u64 = 4000;
/// How long the intake may take, for as many requests as a run of some seconds needs.
const INTAKE_LIMIT: Duration = Duration::from_mins(3);

/// A service with a database of its own.
pub struct Service<'a> {
    pub world: &'a World,
    pub database: Database,
    /// Itself, Postgres, Redis.
    pub watched: Watched,
    running: Vec<Running>,
    time: Duration,
}

impl<'a> Service<'a> {
    pub async fn start(world: &'a World, name: &str, time: Duration) -> Self {
        let mut started = Self { time, ..Self::fresh(world, name).await };
        started.warm_up().await;
        started
    }

    /// The same before its first call.
    pub async fn fresh(world: &'a World, name: &str) -> Self {
        let mut database = world.database(name).await;
        let service = world.program(&database.url).serve().await;
        let stores = [postgres_pid(&mut database.connection).await, redis_pid(world).await];
        let watched = Watched([service.pid()].into_iter().chain(stores).collect());
        Self { world, database, watched, running: vec![service], time: Duration::from_secs(1) }
    }

    /// Another process beside it.
    pub async fn add_replica(&mut self) {
        let replica = self.world.program(&self.database.url).serve().await;
        self.running.push(replica);
        self.warm_up().await;
    }

    /// What runs for the first time is slower.
    async fn warm_up(&mut self) {
        let time = std::mem::replace(&mut self.time, Duration::from_secs(2));
        self.authenticate(16).await;
        self.decide(64).await;
        self.time = time;
    }

    pub fn base(&self) -> &str {
        &self.running[0].base
    }

    /// Has wrk play these calls, to each replica its share.
    pub async fn play(&self, calls: &[Call], at_once: usize) -> Run {
        let share = calls.len().div_ceil(self.running.len());
        let playing = self.running.iter().zip(calls.chunks(share)).enumerate();
        let playing = playing.map(|(number, (replica, calls))| {
            let file = self.world.folder.path().join(format!("calls-{number}"));
            std::fs::write(&file, script(&self.world.people, calls)).unwrap();
            let at_once = at_once / self.running.len();
            async move { wrk(&replica.base, &file, at_once, self.time, &self.watched).await }
        });
        let runs = futures_util::future::join_all(playing).await;
        runs.into_iter().reduce(|run, other| run.beside(&other)).unwrap()
    }

    /// The same, and says what the service says when a call does not succeed.
    pub async fn play_well(&self, calls: &[Call], at_once: usize) -> Run {
        let run = self.play(calls, at_once).await;
        if run.refused > 0 {
            let Call { method, path, .. } = &calls[0];
            eprintln!("{} of {} calls like {method} {path} were refused", run.refused, run.calls);
            let log = self.running[0].stdout();
            let warnings = log.lines().rev().filter(|line| !line.contains(r#""level":"INFO""#));
            warnings.take(3).for_each(|line| eprintln!("{line}"));
        }
        run
    }

    /// The least that a call can cost: what the client alone takes.
    pub async fn health(&self, at_once: usize) -> Run {
        self.play_well(&[Call::get(0, "/health/live".to_owned())], at_once).await
    }

    /// Says who is calling and is told, with no question to any store, that no task has such an id.
    pub async fn authenticate(&self, at_once: usize) -> Run {
        let people = 0..self.world.people.len();
        let call = |person| Call::get(person, "/api/main/agent/tasks/no%20id".to_owned());
        let run = self.play(&people.map(call).collect::<Vec<_>>(), at_once).await;
        assert_eq!(run.refused, run.calls, "not every call was told that the id is none");
        Run { refused: 0, ..run }
    }

    /// Has agents write requests, and waits until the intake has given each a row: people decide what their
    /// lists show.
    async fn take_in(&mut self, asked: &[Asked]) -> Run {
        let count = asked.len() as u64;
        let (before, began) = (self.watched.cpu(), Instant::now());
        self.world.ask(asked).await;
        self.until_pending(count).await;
        let mut cpu = vec![0.0];
        cpu.extend(per_call(before, self.watched.cpu(), count));
        let per_second = count as f64 / began.elapsed().as_secs_f64();
        Run { calls: count, refused: 0, per_second, millis: [f64::NAN; 3], cpu }
    }

    /// Waits until so many requests of Redis wait in the ledger.
    async fn until_pending(&mut self, count: u64) {
        let pending =
            "SELECT count(*) FROM hitl_request WHERE status = 'pending' AND origin = 'redis'";
        let began = Instant::now();
        loop {
            let found: i64 =
                sqlx::query_scalar(pending).fetch_one(&mut self.database.connection).await.unwrap();
            if u64::try_from(found).unwrap() == count {
                return;
            }
            assert!(began.elapsed() < INTAKE_LIMIT, "{found} requests are pending, not {count}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Approves requests that agents have written, and makes sure that every one is recorded and
    /// signalled. Returns what their intake came to, and what the decisions did.
    pub async fn decide(&mut self, at_once: usize) -> [Run; 2] {
        let most = if at_once == 1 { MOST_DECISIONS_OF_ONE } else { MOST_DECISIONS };
        let asked = Asked::fresh(usize::try_from(most * self.time.as_secs()).unwrap());
        let taken_in = self.take_in(&asked).await;
        let calls = asked.iter().map(Asked::approval).collect::<Vec<_>>();
        let began = Clock::System.now();
        let run = self.play_well(&calls, at_once).await;
        assert!(run.calls < calls.len() as u64, "too few requests were written");
        let decided = eventually_within(Duration::from_secs(20), async || {
            let (decided, sent): (i64, i64) = sqlx::query_as(
                "SELECT count(*), count(*) FILTER (WHERE d.delivery = 'sent')
                   FROM hitl_request LEFT JOIN hitl_delivery d USING (tenant_id, request_id)
                  WHERE settled_at >= $1 AND status = 'approved'",
            )
            .bind(began)
            .fetch_one(&mut self.database.connection)
            .await
            .unwrap();
            // What was under way when the client stopped is decided a moment later.
            let signals = self.signals(&asked).await;
            (decided == sent && u64::try_from(decided).unwrap() == signals).then_some(signals)
        })
        .await;
        let (fewest, most) = (run.calls - run.refused, run.calls + at_once as u64);
        let is_complete = (fewest..=most).contains(&decided);
        assert!(is_complete, "{fewest} answers with 200, and {decided} decisions in the ledger");
        self.world.forget().await;
        // What was not decided is closed now, and is not part of what is measured next.
        self.until_pending(0).await;
        [taken_in, run]
    }

    /// Registers requests, and makes sure that every one is in the ledger. They are forgotten
    /// afterwards: a person may have a thousand at once.
    pub async fn register(&mut self, at_once: usize) -> Run {
        let count = usize::try_from(MOST_PER_SECOND * self.time.as_secs()).unwrap();
        let asked = Asked::fresh(count);
        let calls = asked.iter().map(Asked::registration).collect::<Vec<_>>();
        // What the run before had under way when its client stopped may have come after it.
        let began = Clock::System.now();
        let run = self.play_well(&calls, at_once).await;
        assert!(run.calls < calls.len() as u64, "too few requests were made up");
        let (fewest, most) = (run.calls - run.refused, run.calls + at_once as u64);
        eventually_within(Duration::from_secs(5), async || {
            let registered = "SELECT count(*) FROM hitl_request
                               WHERE status = 'pending' AND origin = 'http' AND created_at >= $1";
            let registered: i64 = sqlx::query_scalar(registered)
                .bind(began)
                .fetch_one(&mut self.database.connection)
                .await
                .unwrap();
            eprintln!(
                "registered {registered}, expected {fewest}..={most}, refused {}",
                run.refused
            );
            (fewest..=most).contains(&u64::try_from(registered).unwrap()).then_some(())
        })
        .await;
        for forget in [
            "DELETE FROM agent_task WHERE status = 'WAITING_APPROVAL'",
            "DELETE FROM hitl_request WHERE status = 'pending'",
            "VACUUM hitl_request, hitl_delivery, agent_task",
        ] {
            sqlx::query(forget).execute(&mut self.database.connection).await.unwrap();
        }
        run
    }

    /// How many of them have their signal in Redis.
    async fn signals(&self, asked: &[Asked]) -> u64 {
        let (mut connection, mut there) = (self.world.connection.clone(), 0);
        for some in asked.chunks(1000) {
            let mut asking = redis::cmd("EXISTS");
            for one in some {
                asking.arg(format!("hitl:signal:{}", one.session));
            }
            there += asking.query_async::<u64>(&mut connection).await.unwrap();
        }
        there
    }

    /// Makes one call each, 16 at a time, and answers their data. For what comes before measuring.
    pub async fn each(&self, calls: &[Call]) -> Vec<Value> {
        let client = Client::new();
        let calling = calls.iter().map(|call| one(&client, self.base(), self.world, call));
        futures_util::stream::iter(calling).buffered(16).collect().await
    }
}

/// Makes one call, which has to succeed, and answers its data.
pub async fn one(client: &Client, base: &str, world: &World, call: &Call) -> Value {
    let person = &world.people[call.person];
    let method = Method::from_bytes(call.method.as_bytes()).unwrap();
    let request = client
        .request(method, format!("{base}{}", call.path))
        .bearer_auth(&person.token)
        .header("X-Tenant-ID", &person.tenant)
        .header("X-User-ID", &person.user)
        .header("Content-Type", "application/json")
        .body(call.body.clone());
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{} {}: {text}", call.method, call.path);
    serde_json::from_str::<Value>(&text).unwrap()["data"].clone()
}

async fn postgres_pid(connection: &mut PgConnection) -> u32 {
    let file: String = sqlx::query_scalar("SELECT pg_read_file('postmaster.pid')")
        .fetch_one(connection)
        .await
        .unwrap();
    file.lines().next().unwrap().trim().parse().unwrap()
}

async fn redis_pid(world: &World) -> u32 {
    let info: String = world.redis.command(&["INFO", "server"]).await;
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:"));
    pid.unwrap().trim().parse().unwrap()
}
