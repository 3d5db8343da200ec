//! Approvals that stand for later requests, while the replica that makes or uses them dies.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use support::Asked;
use tempfile::NamedTempFile;

use crate::report::{Report, Scale};
use crate::world::{Replica, World, ask};

const RULES: &str = r#"
[[rule]]
name = "mails"
when = 'actionType == "send_email"'
approvers = ["user:kim"]
remember = "any"

[[rule]]
name = "else"
when = 'true'
approvers = ["tenant"]
"#;
const GRANTER: &str = "kim";
/// How long after a crash its signal may come: the one that watches Redis must be replaced first.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a request that no grant covers is given to be approved all the same.
const WAIT: Duration = Duration::from_secs(3);
/// Where a replica dies: before the write, after it, and after the signal, before that is noted.
const STEPS: [&str; 3] = ["deciding", "decided", "signalled"];

/// What must be so after all crashes.
#[derive(Default)]
struct Expected {
    /// The requests in whose approval a grant is made.
    making: BTreeSet<String>,
    /// Those that a grant approves, and those of them whose agents wait on Redis.
    granted: BTreeSet<String>,
    on_redis: Vec<Asked>,
    /// Those that none covers.
    pending: BTreeSet<String>,
}

/// Approves a request for the rest of its session. `None` without an answer.
async fn remember(world: &World, base: &str, asked: &Asked) -> Option<(u16, Value)> {
    let remember = json!({ "scope": "session", "arguments": "any", "seconds": 3600 });
    let body = json!({ "userId": GRANTER, "remember": remember });
    let url = format!("{base}/api/aura/hitl/approve/{}", asked.id);
    let sent = world.people.call(Method::POST, &url, GRANTER).json(&body).send().await.ok()?;
    let status = sent.status().as_u16();
    Some((status, sent.json::<Value>().await.ok()?))
}

/// The same, again until there is an answer: the grant's id.
async fn remember_surely(world: &World, base: &str, asked: &Asked) -> Result<String, String> {
    let mut last = None;
    for _ in 0..100 {
        last = remember(world, base, asked).await;
        if let Some((200, body)) = &last {
            let id = body["data"]["grantId"].as_str();
            return id.map(ToOwned::to_owned).ok_or_else(|| body.to_string());
        }
        if last.as_ref().is_some_and(|(status, _body)| *status != 503) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("{}: the granter was answered {last:?}", asked.id))
}

/// Waits until the ledger says this of a request; what it says then.
async fn becomes(world: &World, id: &str, status: &str) -> Option<(String, Option<String>)> {
    let mut database = world.database().await;
    let began = Instant::now();
    loop {
        let row: Option<(String, Option<String>)> =
            sqlx::query_as("SELECT status, decided_via FROM hitl_request WHERE request_id = $1")
                .bind(id)
                .fetch_optional(&mut database)
                .await
                .unwrap();
        let is_so = row.as_ref().is_some_and(|(is, _via)| is == status);
        if is_so || began.elapsed() > RECOVERY_TIMEOUT {
            return row;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn grants_of(world: &World, id: &str) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM hitl_grant WHERE request_id = $1")
        .bind(id)
        .fetch_one(&mut world.database().await)
        .await
        .unwrap()
}

async fn status_of(world: &World, id: &str) -> Option<String> {
    sqlx::query_scalar("SELECT status FROM hitl_request WHERE request_id = $1")
        .bind(id)
        .fetch_optional(&mut world.database().await)
        .await
        .unwrap()
}

/// Whether a request is approved by a grant.
async fn check_granted(world: &World, report: &mut Report, asked: &Asked, what: &str) {
    let row = becomes(world, &asked.id, "approved").await;
    let is_granted = row == Some(("approved".to_owned(), Some("grant".to_owned())));
    report.demand(is_granted, || format!("{what}: {} is {row:?}", asked.id));
}

/// A replica dies while somebody approves with `remember`: approval and grant are there, or neither.
async fn crash_making(
    world: &World,
    report: &mut Report,
    expected: &mut Expected,
    doomed: &mut Replica,
    point: &str,
) {
    let mut agents = world.agents().await;
    let healthy = world.replicas[0].base();
    let first = Asked::new();
    ask(&mut agents, &first).await;
    let _known = becomes(world, &first.id, "pending").await;
    doomed.crash_at(&format!("{point}=return"));
    doomed.start().await;
    world.people.until_ready(&doomed.base()).await;
    let _no_answer = remember(world, &doomed.base(), &first).await;
    let is_dead = doomed.dies_within(Duration::from_secs(5)).await;
    doomed.kill();
    report.demand(is_dead, || format!("{point}: the replica that makes a grant lived on"));
    let (grants, status) = (grants_of(world, &first.id).await, status_of(world, &first.id).await);
    let is_written = point != "deciding";
    let is_whole = grants == i64::from(is_written)
        && status.as_deref() == Some(if is_written { "approved" } else { "pending" });
    report.demand(is_whole, || format!("{point}: it left {grants} grants of a {status:?} request"));
    // The granter clicks again.
    let repeated = remember_surely(world, &healthy, &first).await;
    report.demand(repeated.is_ok(), || format!("{point}: {repeated:?}"));
    expected.making.insert(first.id.clone());
    // What the session asks later is approved; what another asks is not.
    let (later, other) = (Asked::in_session(&first.session), Asked::new());
    // The agent goes on only when it has its answer.
    let _settled = world.quiet_within(RECOVERY_TIMEOUT).await;
    ask(&mut agents, &later).await;
    ask(&mut agents, &other).await;
    check_granted(world, report, &later, point).await;
    expected.granted.insert(later.id.clone());
    expected.pending.insert(other.id);
    expected.on_redis.extend([first, later]);
}

/// The replica that watches Redis dies while it approves by a grant: another one does so, or tells.
async fn crash_using(
    world: &mut World,
    report: &mut Report,
    expected: &mut Expected,
    doomed: &mut Replica,
    point: &str,
) {
    let mut agents = world.agents().await;
    let healthy = world.replicas[0].base();
    let first = Asked::new();
    ask(&mut agents, &first).await;
    let made = remember_surely(world, &healthy, &first).await;
    report.demand(made.is_ok(), || format!("{made:?}"));
    expected.making.insert(first.id.clone());
    let _settled = world.quiet_within(RECOVERY_TIMEOUT).await;
    world.replicas[0].kill();
    doomed.crash_at(&format!("{point}=return"));
    doomed.start().await;
    world.people.until_ready(&doomed.base()).await;
    let (later, other) = (Asked::in_session(&first.session), Asked::new());
    ask(&mut agents, &later).await;
    ask(&mut agents, &other).await;
    let is_dead = doomed.dies_within(RECOVERY_TIMEOUT).await;
    doomed.kill();
    report.demand(is_dead, || format!("{point}: the replica that uses a grant lived on"));
    world.replicas[0].start().await;
    world.people.until_ready(&healthy).await;
    check_granted(world, report, &later, point).await;
    expected.granted.insert(later.id.clone());
    expected.pending.insert(other.id);
    // Once it is ended, nothing of the session is approved.
    let _settled = world.quiet_within(RECOVERY_TIMEOUT).await;
    if let Ok(grant) = made {
        let url = format!("{healthy}/api/aura/hitl/grants/{grant}");
        let ended = world.people.call(Method::DELETE, &url, GRANTER).send().await.unwrap();
        report.demand(ended.status() == 200, || format!("ending a grant: {}", ended.status()));
        let after = Asked::in_session(&first.session);
        ask(&mut agents, &after).await;
        expected.pending.insert(after.id);
    }
    expected.on_redis.extend([first, later]);
}

/// The replica where an agent registers dies after it has approved by a grant: registered again, it is
/// approved.
async fn crash_registering(
    world: &World,
    report: &mut Report,
    expected: &mut Expected,
    doomed: &mut Replica,
) {
    let healthy = world.replicas[0].base();
    let first = Asked::new();
    let answer = world.people.register(&healthy, &first).await;
    report.demand(answer == Some(201), || format!("registering: {answer:?}"));
    let made = remember_surely(world, &healthy, &first).await;
    report.demand(made.is_ok(), || format!("{made:?}"));
    expected.making.insert(first.id.clone());
    doomed.crash_at("decided=return");
    doomed.start().await;
    world.people.until_ready(&doomed.base()).await;
    let (later, other) = (Asked::in_session(&first.session), Asked::new());
    let _no_answer = world.people.register(&doomed.base(), &later).await;
    let is_dead = doomed.dies_within(Duration::from_secs(5)).await;
    doomed.kill();
    report.demand(is_dead, || "the replica where an agent registers lived on".to_owned());
    let again = world.people.register(&healthy, &later).await;
    report.demand(again == Some(200), || format!("registering again: {again:?}"));
    check_granted(world, report, &later, "registering").await;
    let polled = world.people.poll_surely(&healthy, &later.session, Some(&later.id)).await;
    let is_told = polled.as_ref().is_some_and(|text| text.contains("approved"));
    report.demand(is_told, || format!("the agent that registered was told {polled:?}"));
    expected.granted.insert(later.id);
    let answer = world.people.register(&healthy, &other).await;
    report.demand(answer == Some(201), || format!("registering: {answer:?}"));
    expected.pending.insert(other.id);
}

pub async fn replica_killed(scale: Scale, report: &mut Report) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(RULES.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let mut world = World::start_with(1, &[("AURA_HITL_POLICY_FILE", &path)]).await;
    let mut doomed = world.another_replica();
    let mut expected = Expected::default();
    let rounds = scale.of(10, 1);
    for _ in 0..rounds {
        for point in STEPS {
            crash_making(&world, report, &mut expected, &mut doomed, point).await;
            crash_using(&mut world, report, &mut expected, &mut doomed, point).await;
        }
        crash_registering(&world, report, &mut expected, &mut doomed).await;
    }
    report.count(rounds * (2 * STEPS.len() + 1), "crashes");
    let quiet = world.quiet_within(RECOVERY_TIMEOUT).await;
    report.demand(quiet.is_some(), || "signals are still owed".to_owned());
    tokio::time::sleep(WAIT).await;
    check(&world, report, &expected).await;
    world.check_alive(report);
}

/// A request's id, status, `decided_via`, and whether the grant that it names covers it.
type GrantedRow = (String, String, Option<String>, bool);

/// Checks that grants have approved what they cover and nothing else, that each was made once, and that
/// every agent heard.
async fn check(world: &World, report: &mut Report, expected: &Expected) {
    let rows: Vec<GrantedRow> = sqlx::query_as(
        "SELECT r.request_id, r.status, r.decided_via,
                COALESCE(g.granter = r.decided_by AND g.requester = r.user_id
                     AND g.origin = r.origin AND g.action_type = r.action_type
                     AND g.session_id = r.session_id AND g.created_at <= r.decided_at
                     AND g.expires_at > r.decided_at
                     AND (g.ended_at IS NULL OR g.ended_at >= r.decided_at), FALSE)
           FROM hitl_request r
           LEFT JOIN hitl_grant g ON g.tenant_id = r.tenant_id AND g.grant_id = r.grant_id",
    )
    .fetch_all(&mut world.database().await)
    .await
    .unwrap();
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for (id, status, via, is_covered) in rows {
        let is_by_grant = via.as_deref() == Some("grant");
        let is_right = if expected.granted.contains(&id) {
            status == "approved" && is_by_grant && is_covered
        } else if expected.making.contains(&id) {
            status == "approved" && !is_by_grant
        } else {
            status == "pending" && expected.pending.contains(&id)
        };
        if !is_right {
            wrong.push(format!("{id}: {status} by {via:?}, covered: {is_covered}"));
        }
        seen.insert(id);
    }
    let all = [&expected.making, &expected.granted, &expected.pending];
    let lost = all.into_iter().flatten().filter(|id| !seen.contains(*id)).count();
    report.count(expected.granted.len(), "requests that a grant approved");
    report.count(expected.pending.len(), "that none covered");
    report.none(lost, "lost");
    report.wrongs("wrong", &wrong);
    let grants = world.number("SELECT count(*) FROM hitl_grant").await;
    let made = i64::try_from(expected.making.len()).unwrap();
    report.demand(grants == made, || format!("{grants} grants of {made} approvals"));
    let heard = world.aftermath().await.heard;
    let unheard = expected.on_redis.iter().filter(|one| {
        !heard.iter().any(|(session, text)| *session == one.session && text.contains(&one.id))
    });
    report.none(unheard.count(), "agents that heard nothing");
    let is_told_wrongly = |id: &&String| heard.iter().any(|(_session, text)| text.contains(*id));
    report.none(expected.pending.iter().filter(is_told_wrongly).count(), "told without a decision");
}
