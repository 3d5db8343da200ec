//! Notices to webhooks, while their receivers fail or the replica that sends is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use aura_hitl::domain::approver::Role;
use futures_util::future::join;
use reqwest::Method;
use serde_json::{Value, json};
use support::history::Choice;
use support::{Asked, Who, free_port};
use tempfile::TempDir;

use crate::report::{Report, Scale};
use crate::world::{People, Replica, World, at_once, percentile, timed};

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// How long after the last decision everything may take to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(90);
pub const TENANTS: [&str; 2] = ["tenant1", "tenant2"];

/// How a receiver answers.
#[derive(Clone, Copy)]
pub enum Answers {
    Well,
    /// Of every second notice it says at first that it failed, though it has taken it.
    Lying,
    /// After so many milliseconds.
    Slowly(u64),
    /// Never in time.
    Hanging,
}

#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    /// The id of the notice, and its body.
    taken: Arc<Mutex<Vec<(String, String)>>>,
}

impl Receiver {
    pub fn start(answers: Answers) -> Self {
        let (port, taken) = (free_port(), Arc::<Mutex<Vec<_>>>::default());
        let taking = taken.clone();
        let take = move |call: HttpRequest, body: String| {
            let id = call.headers().get("webhook-id").unwrap().to_str().unwrap().to_owned();
            let mut taken = taking.lock().unwrap();
            let is_first = taken.iter().all(|(before, _body)| *before != id);
            let lies = is_first && taken.len() % 2 == 0;
            taken.push((id, body));
            async move {
                match answers {
                    Answers::Lying if lies => {
                        return HttpResponse::build(StatusCode::INTERNAL_SERVER_ERROR).finish();
                    }
                    Answers::Slowly(millis) => {
                        tokio::time::sleep(Duration::from_millis(millis)).await;
                    }
                    Answers::Hanging => tokio::time::sleep(Duration::from_mins(1)).await,
                    Answers::Well | Answers::Lying => {}
                }
                HttpResponse::NoContent().finish()
            }
        };
        let server = HttpServer::new(move || App::new().default_service(web::to(take.clone())));
        let server = server.workers(1).disable_signals().bind(("127.0.0.1", port)).unwrap().run();
        tokio::spawn(server);
        Self { port, taken }
    }

    fn taken(&self) -> Vec<(String, Value)> {
        let taken = self.taken.lock().unwrap().clone();
        taken.into_iter().map(|(id, body)| (id, serde_json::from_str(&body).unwrap())).collect()
    }
}

/// The settings of these webhooks, each with the tenants that it hears of.
fn settings(folder: &TempDir, webhooks: &[(&str, &Receiver, &str)]) -> String {
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let table = |(name, receiver, tenants): &(&str, &Receiver, &str)| {
        let (port, secret) = (receiver.port, secret.display());
        format!(
            "[[notices.webhook]]\nname = '{name}'\nurl = 'http://127.0.0.1:{port}/'\nsecret_file = '{secret}'\n{tenants}\n"
        )
    };
    let text = webhooks.iter().map(table).collect::<String>();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Registers a request in a tenant and approves it, until each has an answer.
async fn register_and_approve(people: &People, base: &str, asked: &Asked, tenant: &'static str) {
    let who = Who { user: "user123", tenant, role: Role::User };
    let body = json!({
        "requestId": asked.id, "sessionId": asked.session, "actionType": "send_email",
        "message": format!("of {tenant}"),
    });
    let decide = json!({ "userId": who.user });
    for (path, body) in [("requests".to_owned(), &body), (format!("approve/{}", asked.id), &decide)]
    {
        let url = format!("{base}/api/aura/hitl/{path}");
        for _ in 0..200 {
            let sent = people.call_by(who, Method::POST, &url).json(body).send().await;
            if sent.is_ok_and(|answer| [200, 201].contains(&answer.status().as_u16())) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Starts a replica that dies by itself, right after it has sent or has replaced events.
pub async fn start_dying(world: &World) -> Replica {
    let mut dying = world.another_replica();
    dying.crash_at("notice-sent=5%return;fanned-out=5%return");
    dying.start().await;
    dying
}

/// Kills one replica after a while and starts it again, and the one that dies by itself if it has.
pub async fn kill_one(world: &mut World, dying: &mut Replica, which: usize) {
    tokio::time::sleep(Duration::from_millis(1200)).await;
    world.replicas[which].kill();
    world.replicas[which].start().await;
    if !dying.is_alive() {
        dying.kill();
        dying.start().await;
    }
}

/// Waits until the outbox is empty.
pub async fn all_told(world: &World, report: &mut Report, limit: Duration) {
    let began = Instant::now();
    while world.number("SELECT count(*) FROM hitl_outbox").await > 0 {
        if began.elapsed() > limit {
            let left = world.number("SELECT count(*) FROM hitl_outbox").await;
            report.broken(&format!("{left} notices were not sent in time"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    report
        .figure(format!("all told {:.1} s after the last decision", began.elapsed().as_secs_f64()));
}

/// Checks that a receiver was told of each of these requests and of both of its events, of no other
/// tenant, and that one id stands for one body.
pub fn check(report: &mut Report, name: &str, receiver: &Receiver, told: &BTreeSet<String>) {
    let taken = receiver.taken();
    let mut events = BTreeMap::<String, BTreeSet<String>>::new();
    let mut bodies = BTreeMap::<String, Value>::new();
    let (mut foreign, mut altered) = (0, 0);
    for (id, body) in &taken {
        let request = body["data"]["requestId"].as_str().unwrap().to_owned();
        foreign += usize::from(!told.contains(&request));
        events.entry(request).or_default().insert(body["type"].as_str().unwrap().to_owned());
        altered +=
            usize::from(bodies.insert(id.clone(), body.clone()).is_some_and(|it| it != *body));
    }
    let missing = told.iter().filter(|id| events.get(*id).is_none_or(|events| events.len() < 2));
    report.none(missing.count(), &format!("requests that {name} was not told of"));
    report.none(foreign, &format!("notices of another tenant at {name}"));
    report.none(altered, &format!("ids with two bodies at {name}"));
    report.figure(format!(
        "{name}: {} notices, {} repeats",
        taken.len(),
        taken.len() - bodies.len()
    ));
}

/// 1,000 requests of two tenants, three webhooks of which one lies and two hear of one tenant each, and two
/// replicas that are killed in turn, sometimes between sending and noting.
pub async fn replicas_killed(scale: Scale, report: &mut Report) {
    let folder = TempDir::new().unwrap();
    let all = Receiver::start(Answers::Lying);
    let [one, two] = [0, 1].map(|_| Receiver::start(Answers::Well));
    let file = settings(
        &folder,
        &[
            ("all", &all, ""),
            ("one", &one, "tenants = ['tenant1']"),
            ("two", &two, "tenants = ['tenant2']"),
        ],
    );
    let mut world = World::start_with(2, &[("AURA_HITL_CONFIG", &file)]).await;
    let mut dying = start_dying(&world).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let asked = (0..scale.of(1000, 200)).map(|place| (Asked::new(), TENANTS[place % 2]));
    let asked = asked.collect::<Vec<_>>();
    let working = at_once(asked.iter().collect(), 16, async |place, (asked, tenant)| {
        register_and_approve(&people, &bases[place % 2], asked, tenant).await;
    });
    let done = Arc::new(AtomicUsize::new(0));
    let killing = async {
        let mut kills = 0;
        while done.load(Ordering::Relaxed) == 0 {
            kill_one(&mut world, &mut dying, kills % 2).await;
            kills += 1;
        }
        kills
    };
    let working = async {
        working.await;
        done.store(1, Ordering::Relaxed);
    };
    let (kills, _worked) = join(killing, working).await;
    dying.kill();
    report.count(asked.len(), "requests");
    report.count(kills, "kills");
    all_told(&world, report, TOLD_WITHIN).await;
    let of = |only: Option<&str>| {
        let of_it = asked.iter().filter(|(_, tenant)| only.is_none_or(|only| only == *tenant));
        of_it.map(|(asked, _)| asked.id.clone()).collect::<BTreeSet<_>>()
    };
    check(report, "all", &all, &of(None));
    check(report, "one", &one, &of(Some("tenant1")));
    check(report, "two", &two, &of(Some("tenant2")));
    world.check_alive(report);
}

/// Receivers that hang, are slow and are not there: decisions are as fast as without, and one that is well is
/// told of everything.
pub async fn receivers_fail(scale: Scale, report: &mut Report) {
    let folder = TempDir::new().unwrap();
    let (well, slow) = (Receiver::start(Answers::Well), Receiver::start(Answers::Slowly(300)));
    let hanging = Receiver::start(Answers::Hanging);
    let absent = Receiver { port: free_port(), taken: Arc::default() };
    let file = settings(
        &folder,
        &[
            ("well", &well, ""),
            ("slow", &slow, ""),
            ("hanging", &hanging, ""),
            ("absent", &absent, ""),
        ],
    );
    let count = scale.of(1000, 200);
    let (without, _) = decision_times(&World::start_with(2, &[]).await, count).await;
    let mut world = World::start_with(2, &[("AURA_HITL_CONFIG", &file)]).await;
    let (with, asked) = decision_times(&world, count).await;
    report.count(count, "requests");
    for (mut times, name) in [(without, "without"), (with.clone(), "with")] {
        let [p50, p99] = [50, 99].map(|percent| percentile(&mut times, percent).as_secs_f64());
        report.figure(format!(
            "decisions {name} webhooks: p50 {:.1} ms, p99 {:.1} ms",
            p50 * 1e3,
            p99 * 1e3
        ));
    }
    let mut with = with;
    report.at_most(percentile(&mut with, 99), Duration::from_secs(2), "p99 of decisions");
    let began = Instant::now();
    let told = asked.iter().map(|asked| asked.id.clone()).collect::<BTreeSet<_>>();
    while well.taken().len() < 2 * told.len() && began.elapsed() < TOLD_WITHIN {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    check(report, "well", &well, &told);
    report.demand(!slow.taken().is_empty(), || "the slow one was told nothing".to_owned());
    report.demand(!hanging.taken().is_empty(), || "the hanging one was told nothing".to_owned());
    let failed = world.number("SELECT count(*) FROM hitl_outbox WHERE failed_at IS NOT NULL").await;
    report.none(usize::try_from(failed).unwrap(), "notices given up too early");
    world.check_alive(report);
}

/// How long decisions on registered requests take.
async fn decision_times(world: &World, count: usize) -> (Vec<Duration>, Vec<Asked>) {
    let (bases, people) = (world.bases(), world.people.clone());
    let asked = (0..count).map(|_| Asked::new()).collect::<Vec<_>>();
    let times = at_once(asked.iter().collect(), 8, async |place, asked: &Asked| {
        let base = &bases[place % bases.len()];
        while people.register(base, asked).await != Some(201) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (_ended, took) =
            timed(people.decide_surely(base, &asked.id, &Choice::approved("user123"))).await;
        took
    })
    .await;
    (times, asked)
}
