//! A replica that dies at a chosen step, while a healthy one goes on.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use support::history::{Choice, Delivered, Ended};
use support::{Asked, insert_task_of_mallory, kill, unique};

use crate::report::{Report, Scale};
use crate::world::{Replica, World, ask};

/// How long after a crash its signal may come.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// What brings a replica to one of its crash points.
#[derive(Clone, Copy, Debug)]
enum By {
    /// A click.
    Deciding,
    /// A click on a decided request that is pending in Redis again.
    AskingAgain,
    /// A click, while another tenant takes the task that the request names.
    TakingItsTask,
    /// A click, while the other request of the same task is being decided.
    DecidingBoth,
    /// An agent that registers.
    Registering,
}

/// What both stores must have after a crash: the whole step, or none of it.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Nothing,
    Decision,
    Registration,
}

impl Leaves {
    /// The status of the request's row.
    fn status(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Decision => Some("approved"),
            Self::Registration => Some("pending"),
        }
    }
}

/// Every crash point that a call meets, in the order in which a request passes them.
const STEPS: [(&str, By, Leaves); 8] = [
    ("registered", By::Registering, Leaves::Registration),
    ("deciding", By::Deciding, Leaves::Nothing),
    ("task-taken", By::TakingItsTask, Leaves::Nothing),
    ("task-waits", By::DecidingBoth, Leaves::Decision),
    ("decided", By::Deciding, Leaves::Decision),
    ("owed-again", By::AskingAgain, Leaves::Decision),
    ("signalled", By::Deciding, Leaves::Decision),
    ("noted", By::Deciding, Leaves::Decision),
];
/// The crash points in the relay.
const RELAY_STEPS: [&str; 2] = ["relay-claimed", "relay-signalled"];
/// The crash points where an unheard signal is published again.
const UNHEARD_STEPS: [&str; 2] = ["unheard-claimed", "unheard-signalled"];

/// Which of a replica's workers dies.
#[derive(Clone, Copy, Debug)]
enum Background {
    Relay,
    Unheard,
}

/// A replica that died where it should.
struct Crash {
    point: &'static str,
    leaves: Leaves,
    asked: Asked,
    /// When the agent asked.
    since: Instant,
    died: Instant,
}

pub async fn crash_at_each_step(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    // A database whose upgrade is not finished: another tenant can take a task's id there.
    let unfinished = "CREATE UNIQUE INDEX agent_task_pkey ON agent_task (task_id)";
    sqlx::query(unfinished).execute(&mut world.database().await).await.unwrap();
    let times = scale.of(100, 2);
    let mut doomed = (0..8).map(|_| world.another_replica()).collect::<Vec<_>>();
    let mut slowest = Duration::ZERO;

    let steps = (0..times).flat_map(|_| STEPS).collect::<Vec<_>>();
    let mut crashes = 0;
    for steps in steps.chunks(doomed.len()) {
        let crashing = doomed.iter_mut().zip(steps);
        let round = join_all(crashing.map(|(crasher, step)| crash(&world, crasher, *step)));
        let round = round.await.into_iter().flatten().collect::<Vec<_>>();
        crashes += round.len();
        slowest = slowest.max(recovered(&world, &round, report).await);
    }
    // A replica may reach its crash point on work that another left behind, before its own click.
    // Then there are fewer crashes than replicas, and another round follows.
    let mut expected = times * STEPS.len();
    for (steps, who) in [(RELAY_STEPS, Background::Relay), (UNHEARD_STEPS, Background::Unheard)] {
        expected += times * steps.len();
        let mut steps = steps.into_iter().cycle();
        for _round in 0..times {
            if crashes >= expected {
                break;
            }
            let points = doomed.len().min(expected - crashes);
            let points = steps.by_ref().take(points).collect::<Vec<_>>();
            let round = match who {
                Background::Relay => crash_relays(&mut world, &mut doomed, &points).await,
                Background::Unheard => crash_unheard(&mut world, &mut doomed, &points).await,
            };
            crashes += round.len();
            slowest = slowest.max(recovered(&world, &round, report).await);
        }
    }

    report.count(STEPS.len() + RELAY_STEPS.len() + UNHEARD_STEPS.len(), "steps");
    report.count(crashes, "crashes");
    report.demand(crashes == expected, || format!("{crashes} of {expected} replicas died"));
    report.at_most(slowest, RECOVERY_TIMEOUT, "from crash to signal at most");
    let stuck = "SELECT count(*) FROM agent_task t
                  WHERE status = 'WAITING_APPROVAL' AND NOT EXISTS
                        (SELECT 1 FROM hitl_request r
                          WHERE r.tenant_id = t.tenant_id AND r.task_id = t.task_id
                            AND r.status = 'pending')";
    report.none(usize::try_from(world.number(stuck).await).unwrap(), "tasks that wait for nothing");
    world.check(report, RECOVERY_TIMEOUT, Delivered::Published).await;
}

/// Starts a replica, and makes it die at this point. `None` when it did not.
async fn crash(
    world: &World,
    crasher: &mut Replica,
    (point, by, leaves): (&'static str, By, Leaves),
) -> Option<Crash> {
    crasher.crash_at(&format!("{point}=return"));
    crasher.start().await;
    let mut crash = None;
    // On a busy machine a click may not reach the crash point in time. Then another request is used.
    for _ in 0..3 {
        let (asked, since) = bring(world, &crasher.base(), by).await;
        if crasher.dies_within(Duration::from_secs(2)).await {
            crash = Some(Crash { point, leaves, asked, since, died: Instant::now() });
            break;
        }
    }
    crasher.kill();
    crash
}

/// Does what brings a replica to its crash point.
async fn bring(world: &World, crasher: &str, by: By) -> (Asked, Instant) {
    let (people, healthy) = (&world.people, &world.replicas[0].base());
    let (mut agents, since, choice) = (world.agents().await, Instant::now(), yes());
    match by {
        By::Deciding => {
            let asked = Asked::new();
            ask(&mut agents, &asked).await;
            people.decide(crasher, &asked.id, &choice).await;
            (asked, since)
        }
        By::AskingAgain => {
            let asked = Asked::new();
            ask(&mut agents, &asked).await;
            people.decide_surely(healthy, &asked.id, &choice).await;
            world.delivered(&asked.id).await;
            world.listener.caught_up(world.agents().await).await;
            let since = Instant::now();
            ask(&mut agents, &asked).await;
            people.decide(crasher, &asked.id, &choice).await;
            (asked, since)
        }
        By::TakingItsTask => {
            let asked = Asked::new().with("taskId", json!(unique("task")));
            ask(&mut agents, &asked).await;
            let mut other = world.database().await;
            let mut taking = other.begin().await.unwrap();
            insert_task_of_mallory(&mut taking, asked.document["taskId"].as_str().unwrap()).await;
            let waited_for = backend(&mut taking).await;
            join(people.decide(crasher, &asked.id, &choice), async {
                waiting_for(world, waited_for, 1).await;
                taking.commit().await.unwrap();
            })
            .await;
            (asked, since)
        }
        By::DecidingBoth => {
            let task = json!(unique("task"));
            let [first, second] =
                [Asked::new(), Asked::new()].map(|asked| asked.with("taskId", task.clone()));
            for asked in [&first, &second] {
                assert_eq!(people.register(healthy, asked).await, Some(201));
                world.delivered(&asked.id).await;
            }
            // While the test holds the task's lock, both decide without seeing each other. The healthy
            // replica gets the lock first and reads before the other has finished, so that only the
            // other one sees that no request of the task is pending.
            let mut other = world.database().await;
            let mut holding = other.begin().await.unwrap();
            sqlx::query("SELECT FROM agent_task WHERE task_id = $1 FOR UPDATE")
                .bind(task.as_str().unwrap())
                .execute(&mut *holding)
                .await
                .unwrap();
            let holder = backend(&mut holding).await;
            let (go, gone) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
            let one = async {
                people.decide(healthy, &second.id, &choice).await;
                gone.notify_one();
            };
            let two = async {
                go.notified().await;
                people.decide(crasher, &first.id, &choice).await
            };
            join(join(one, two), async {
                let ours = waiting_for(world, holder, 1).await;
                go.notify_one();
                let both = waiting_for(world, holder, 2).await;
                let other = both.iter().filter(|pid| !ours.contains(pid));
                other.clone().for_each(|pid| kill("-STOP", pid));
                holding.rollback().await.unwrap();
                gone.notified().await;
                other.for_each(|pid| kill("-CONT", pid));
            })
            .await;
            people.decide_surely(healthy, &second.id, &choice).await;
            (first, since)
        }
        By::Registering => {
            let asked = Asked::new();
            people.register(crasher, &asked).await;
            (asked, since)
        }
    }
}

fn yes() -> Choice {
    Choice::approved("user123")
}

/// The server process of a connection.
async fn backend(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// Waits until so many statements wait for a lock of this connection, at most for a moment; says
/// which server processes run them.
async fn waiting_for(world: &World, backend: i32, count: usize) -> Vec<i32> {
    let mut database = world.database().await;
    let mut waiting = Vec::new();
    for _ in 0..400 {
        waiting = sqlx::query_scalar(
            "WITH RECURSIVE waiting (pid) AS (
                 SELECT $1
                 UNION
                 SELECT a.pid FROM pg_stat_activity a
                   JOIN waiting w ON w.pid = ANY (pg_blocking_pids(a.pid))
             )
             SELECT pid FROM waiting WHERE pid <> $1",
        )
        .bind(backend)
        .fetch_all(&mut database)
        .await
        .unwrap();
        if waiting.len() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    waiting
}

/// Lets relays die. The healthy replica is frozen meanwhile, so that the dying ones claim the owed
/// signals. Those were decided before, and are due at once.
async fn crash_relays(
    world: &mut World,
    doomed: &mut [Replica],
    points: &[&'static str],
) -> Vec<Crash> {
    let healthy = world.replicas[0].base();
    let people = world.people.clone();
    let mut alive = doomed.iter_mut().take(points.len()).collect::<Vec<_>>();
    join_all(alive.iter_mut().zip(points).map(async |(crasher, point)| {
        crasher.crash_at(&format!("{point}=return"));
        crasher.start().await;
    }))
    .await;
    let decided = world.ask_many(points.len()).await;
    for asked in &decided {
        people.decide_surely(&healthy, &asked.id, &yes()).await;
        world.delivered(&asked.id).await;
    }
    world.listener.caught_up(world.agents().await).await;
    world.replicas[0].freeze();
    let mut crashes = Vec::new();
    for (asked, point) in decided.into_iter().zip(points) {
        if alive.is_empty() {
            break;
        }
        let since = Instant::now();
        world.owe(std::slice::from_ref(&asked.id)).await;
        let before = alive.len();
        while alive.len() == before && since.elapsed() < Duration::from_secs(3) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            alive.retain_mut(|crasher| crasher.is_alive());
        }
        if alive.len() < before {
            let (leaves, died) = (Leaves::Decision, Instant::now());
            crashes.push(Crash { point, leaves, asked, since, died });
        }
    }
    doomed.iter_mut().for_each(Replica::kill);
    world.replicas[0].thaw();
    crashes
}

/// Lets replicas die while they publish unheard signals again: each decides before its agent subscribes.
/// The healthy replica is frozen meanwhile, so that the dying ones find the agents.
async fn crash_unheard(
    world: &mut World,
    doomed: &mut [Replica],
    points: &[&'static str],
) -> Vec<Crash> {
    let people = world.people.clone();
    join_all(doomed.iter_mut().zip(points).map(async |(crasher, point)| {
        crasher.crash_at(&format!("{point}=return"));
        crasher.start().await;
    }))
    .await;
    let decided = world.ask_many(points.len()).await;
    for (crasher, asked) in doomed.iter().zip(&decided) {
        people.decide_surely(&crasher.base(), &asked.id, &yes()).await;
        world.delivered(&asked.id).await;
    }
    world.listener.caught_up(world.agents().await).await;
    world.replicas[0].freeze();
    let since = Instant::now();
    let mut agents = world.redis.client().get_async_pubsub().await.unwrap();
    for asked in &decided {
        agents.subscribe(format!("hitl:channel:{}", asked.session)).await.unwrap();
    }
    let crashing = doomed.iter_mut().zip(points).zip(decided);
    let crashes = join_all(crashing.map(async |((crasher, point), asked)| {
        let leaves = Leaves::Decision;
        let is_dead = crasher.dies_within(Duration::from_secs(3)).await;
        is_dead.then(|| Crash { point, leaves, asked, since, died: Instant::now() })
    }))
    .await;
    doomed.iter_mut().for_each(Replica::kill);
    world.replicas[0].thaw();
    crashes.into_iter().flatten().collect()
}

/// Waits until all interrupted work is finished, and clicks again on requests that stayed pending.
/// Returns the longest time after a crash.
async fn recovered(world: &World, crashes: &[Crash], report: &mut Report) -> Duration {
    let took = join_all(crashes.iter().map(|crash| finished(world, crash))).await;
    let mut slowest = Duration::ZERO;
    for (crash, took) in crashes.iter().zip(took) {
        match took {
            Ok(took) => slowest = slowest.max(took),
            Err(wrong) => report.broken(&format!("{}: {wrong}", crash.point)),
        }
    }
    let quiet = world.quiet_within(RECOVERY_TIMEOUT).await;
    report.demand(quiet.is_some(), || "signals are still owed".to_owned());
    slowest
}

/// How long after a crash its work was finished by others, and whether it was all or nothing.
async fn finished(world: &World, crash: &Crash) -> Result<Duration, String> {
    let (people, healthy) = (&world.people, world.replicas[0].base());
    // What was only seen in Redis is no trace of the call.
    let query = "SELECT status FROM hitl_request
                  WHERE request_id = $1
                    AND NOT (origin = 'redis' AND status IN ('pending', 'expired'))";
    let row = sqlx::query_scalar(query).bind(&crash.asked.id);
    let row: Option<String> = row.fetch_optional(&mut world.database().await).await.unwrap();
    if row.as_deref() != crash.leaves.status() {
        return Err(format!("it left {row:?}"));
    }
    let took = match crash.leaves {
        Leaves::Nothing => crash.died,
        // Registered requests have no signal: their agents ask.
        Leaves::Decision if crash.point == "task-waits" => crash.died,
        Leaves::Decision => {
            let heard = || world.listener.heard_since(&crash.asked.session, crash.since);
            within(RECOVERY_TIMEOUT * 2, async || heard()).await.ok_or("the signal never came")?
        }
        Leaves::Registration => {
            let again = people.register(&healthy, &crash.asked).await;
            if again != Some(200) {
                return Err(format!("registering again was answered {again:?}"));
            }
            crash.died
        }
    };
    match people.decide_surely(&healthy, &crash.asked.id, &yes()).await {
        Ended::Ok => Ok(took.saturating_duration_since(crash.died)),
        ended => Err(format!("the retry was answered {ended:?}")),
    }
}

/// Polls until there is a value, at most this long.
async fn within(
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<Instant>,
) -> Option<Instant> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(limit, looking).await.ok()
}
