//! Requests that more than one person has to approve, while what counts the votes fails.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use futures_util::future::join;
use reqwest::Method;
use serde_json::{Value, json};
use support::{Asked, kill};
use tempfile::NamedTempFile;

use crate::report::{Report, Scale};
use crate::world::{People, World, at_once};

/// Who may approve; ten of them have to.
const VOTERS: usize = 10;
const QUORUM: usize = 6;

/// The rules: so many of `p0` to `p9`.
fn rules(quorum: usize) -> String {
    let names = (0..VOTERS).map(|number| format!("\"user:p{number}\"")).collect::<Vec<_>>();
    format!(
        "[[rule]]\nname = \"many\"\nwhen = \"true\"\napprovers = [{}]\nquorum = {quorum}\n",
        names.join(", ")
    )
}

fn rules_file(quorum: usize) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(rules(quorum).as_bytes()).unwrap();
    file
}

/// One approval, again until an answer is certain: its status, and what it said.
async fn vote(people: &People, base: &str, id: &str, voter: usize) -> (u16, Value) {
    let user = format!("p{voter}");
    let url = format!("{base}/api/aura/hitl/approve/{id}");
    for _ in 0..150 {
        let sent = people.call(Method::POST, &url, &user).json(&json!({ "userId": user })).send();
        if let Ok(answer) = sent.await {
            let status = answer.status().as_u16();
            let body = answer.json::<Value>().await.unwrap_or_default();
            if status != 503 {
                return (status, body);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (0, Value::Null)
}

/// What everybody said of each request, while something fails.
async fn vote_all(world: &World, asked: &[Asked], voters: usize) -> BTreeMap<String, Vec<u16>> {
    let (bases, people) = (world.bases(), world.people.clone());
    let pairs = asked.iter().flat_map(|one| (0..voters).map(|voter| (one.id.clone(), voter)));
    // Everybody votes on every request, in an order in which the votes of one request meet.
    let answers = at_once(pairs.collect::<Vec<_>>(), 24, async |place, (id, voter)| {
        let (status, _body) = vote(&people, &bases[place % bases.len()], &id, voter).await;
        (id, status)
    })
    .await;
    let mut all = BTreeMap::<String, Vec<u16>>::new();
    for (id, status) in answers {
        all.entry(id).or_default().push(status);
    }
    all
}

/// Id, status, voters, ballots and number of votes of a request.
type VotedRow = (String, String, Option<String>, i64, i64);

/// Checks that each request was decided exactly once, by exactly as many people as it takes, that the rest
/// were told so, and that its agent heard it once.
async fn check(world: &World, report: &mut Report, asked: &[Asked], quorum: usize) {
    let took = world.quiet_within(Duration::from_secs(30)).await;
    report.demand(took.is_some(), || "signals are still owed".to_owned());
    let rows: Vec<VotedRow> = sqlx::query_as(
        "SELECT r.request_id, r.status, r.voters, COALESCE(r.ballots, 0),
                (SELECT count(*) FROM hitl_vote v
                  WHERE v.tenant_id = r.tenant_id AND v.request_id = r.request_id)
           FROM hitl_request r",
    )
    .fetch_all(&mut world.database().await)
    .await
    .unwrap();
    let rows = rows.into_iter().map(|row| (row.0.clone(), row)).collect::<BTreeMap<_, _>>();
    let mut wrong = Vec::new();
    for one in asked {
        let Some((_, status, voters, ballots, given)) = rows.get(&one.id) else {
            wrong.push(format!("{}: no row", one.id));
            continue;
        };
        let voters: Vec<String> =
            voters.as_deref().and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default();
        let mut unique = voters.clone();
        unique.sort();
        unique.dedup();
        let count = i64::try_from(quorum).unwrap();
        let is_right = status == "approved"
            && voters.len() == quorum
            && unique.len() == quorum
            && *ballots >= count
            && *given == count;
        if !is_right {
            wrong.push(format!("{}: {status} by {voters:?}, {ballots} ballots, {given}", one.id));
        }
    }
    report.count(asked.len(), "requests");
    report.wrongs("wrong", &wrong);
    let heard = world.aftermath().await.heard;
    let unheard = asked.iter().filter(|one| {
        !heard.iter().any(|(session, text)| *session == one.session && text.contains(&one.id))
    });
    report.none(unheard.count(), "agents that heard nothing");
}

/// Of everybody who voted on a request, as many as it takes are told that it counts, and one of them that
/// it is decided; later on everybody whose vote counted is told 200, and nobody else.
async fn check_repeats(world: &World, report: &mut Report, asked: &[Asked], quorum: usize) {
    let all = vote_all(world, asked, VOTERS).await;
    let mut wrong = Vec::new();
    for (id, statuses) in all {
        let is = |status: u16| statuses.iter().filter(|is| **is == status).count();
        if is(200) != quorum || is(409) != VOTERS - quorum {
            wrong.push(format!("{id}: {statuses:?}"));
        }
    }
    report.wrongs("wrong repeats", &wrong);
}

pub async fn replica_killed(scale: Scale, report: &mut Report) {
    let file = rules_file(QUORUM);
    let path = file.path().to_str().unwrap().to_owned();
    let mut world = World::start_with(2, &[("AURA_HITL_POLICY_FILE", &path)]).await;
    let asked = world.ask_many(scale.of(200, 20)).await;
    let kills = scale.of(20, 3);
    let mut killed = world.replicas.pop().unwrap();
    let bases = [world.replicas[0].base(), killed.base()];
    let people = world.people.clone();
    let pairs = asked.iter().flat_map(|one| (0..VOTERS).map(|voter| (one.id.clone(), voter)));
    let pairs = pairs.collect::<Vec<_>>();
    let voting = at_once(pairs, 24, async |place, (id, voter)| {
        vote(&people, &bases[place % 2], &id, voter).await.0
    });
    let killing = async {
        for _ in 0..kills {
            tokio::time::sleep(Duration::from_millis(300)).await;
            killed.kill();
            killed.start().await;
        }
    };
    let (answers, ()) = join(voting, killing).await;
    report.count(answers.len(), "votes");
    report.count(kills, "kills");
    let odd = answers.iter().filter(|status| ![200, 202, 409].contains(*status)).count();
    report.none(odd, "other answers");
    world.replicas.push(killed);
    check(&world, report, &asked, QUORUM).await;
    check_repeats(&world, report, &asked, QUORUM).await;
}

pub async fn postgres_restarted(scale: Scale, report: &mut Report) {
    let file = rules_file(QUORUM);
    let path = file.path().to_str().unwrap().to_owned();
    let mut world = World::start_with(2, &[("AURA_HITL_POLICY_FILE", &path)]).await;
    let (rounds, mut all) = (scale.of(10, 2), Vec::new());
    for _ in 0..rounds {
        // 200 votes on 20 requests.
        let asked = world.ask_many(20).await;
        let (bases, people) = (world.bases(), world.people.clone());
        let pairs = asked.iter().flat_map(|one| (0..VOTERS).map(|voter| (one.id.clone(), voter)));
        let pairs = pairs.collect::<Vec<_>>();
        let voting = at_once(pairs, 24, async |place, (id, voter)| {
            vote(&people, &bases[place % 2], &id, voter).await.0
        });
        let restarting = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            world.postgres.crash();
            world.postgres.start_again().await;
        };
        let (answers, ()) = join(voting, restarting).await;
        let odd = answers.iter().filter(|status| ![200, 202, 409].contains(*status)).count();
        report.none(odd, "other answers");
        all.extend(asked);
    }
    report.count(rounds, "restarts");
    check(&world, report, &all, QUORUM).await;
    check_repeats(&world, report, &all, QUORUM).await;
    world.check_alive(report);
}

pub async fn policy_reloaded(scale: Scale, report: &mut Report) {
    // More people have to approve from some moment on; each replica hears of it by itself.
    let (before, after) = (4, QUORUM);
    let file = rules_file(before);
    let path = file.path().to_str().unwrap().to_owned();
    let mut world = World::start_with(2, &[("AURA_HITL_POLICY_FILE", &path)]).await;
    let asked = world.ask_many(scale.of(200, 30)).await;
    // Each has one vote less than it takes.
    let early = vote_all(&world, &asked, before - 1).await;
    let odd = early.values().flatten().filter(|status| **status != 202).count();
    report.none(odd, "votes that were not recorded");
    // A wrong file changes nothing.
    std::fs::write(file.path(), "[[rule]]\nname = \"many\"\n").unwrap();
    for replica in &mut world.replicas {
        kill("-HUP", replica.process().pid());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::write(file.path(), rules(after)).unwrap();
    for replica in &mut world.replicas {
        kill("-HUP", replica.process().pid());
    }
    let is_in_force = |line: &Value| line["message"] == "another policy file is in force";
    for replica in &mut world.replicas {
        support::eventually(async || replica.process().log().iter().any(is_in_force).then_some(()))
            .await;
    }
    // The vote that would have been the last one is not.
    let (bases, people) = (world.bases(), world.people.clone());
    let ids = asked.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    let next = at_once(ids, 16, async |place, id| {
        vote(&people, &bases[place % 2], &id, before - 1).await.0
    })
    .await;
    let early = next.iter().filter(|status| **status != 202).count();
    report.none(early, "decided by too few");
    let rest = vote_all(&world, &asked, VOTERS).await;
    report.count(rest.len(), "decided under the new file");
    check(&world, report, &asked, after).await;
    check_repeats(&world, report, &asked, after).await;
    world.check_alive(report);
}
