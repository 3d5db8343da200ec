//! Clients that vanish.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Asked;
use support::history::{Call, Choice, Delivered, Ended, check};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::report::{Report, Scale};
use crate::world::{People, TENANT, World, at_once, token};

pub async fn client_resets(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let alice = Choice::approved("user123");

    // How long decisions take here says how late the cuts must come to meet every stage of one.
    let mut slowest = Duration::ZERO;
    for (place, asked) in world.ask_many(20).await.iter().enumerate() {
        let began = Instant::now();
        people.decide(&bases[place % 2], &asked.id, &alice).await;
        slowest = slowest.max(began.elapsed());
    }
    let steps = u64::try_from(slowest.as_millis()).unwrap().clamp(10, 40);

    let asked = world.ask_many(scale.of(1000, 200)).await;
    let addresses = [world.replicas[0].address(), world.replicas[1].address()];
    let cutting = at_once(asked.clone(), 4, async |place, asked| {
        let step = place as u64 % steps;
        decide_and_reset(&people, addresses[place % 2], &asked, &alice, step).await
    });
    let mut in_transaction = 0;
    let cut = tokio::select! {
        cut = cutting => cut,
        never = watch_transactions(&world, &mut in_transaction) => never,
    };
    report.count(cut.len(), "cuts");
    report.count(steps, "steps of 1 ms");
    report.count(cut.iter().filter(|ended| **ended != Ended::Unknown).count(), "answered first");

    // Work that had begun has ended although its client is gone. Other clicks left no trace.
    let quiet = world.quiet_within(Duration::from_secs(30)).await;
    report.demand(quiet.is_some(), || "signals are still owed".to_owned());
    let aftermath = world.aftermath().await;
    let wrongs = check(&people.history.calls(), &aftermath, Delivered::Published);
    report.wrongs("wrong before the retry", &wrongs);
    let is_decided = |asked: &Asked| aftermath.rows.iter().any(|row| row.request == asked.id);
    let decided = asked.iter().filter(|asked| is_decided(asked)).count();
    report.count(decided, "decided");
    let in_part =
        asked.iter().enumerate().filter(|(place, _)| (*place as u64).is_multiple_of(steps));
    let in_part = in_part.filter(|(_, asked)| is_decided(asked)).count();
    report.none(in_part, "decided by a request of which the end was missing");

    let retrying = at_once(asked, 16, async |place, asked| {
        people.decide_surely(&bases[place % 2], &asked.id, &alice).await
    });
    let retried = tokio::select! {
        retried = retrying => retried,
        never = watch_transactions(&world, &mut in_transaction) => never,
    };
    report.none(retried.iter().filter(|ended| **ended != Ended::Ok).count(), "retries refused");
    report.none(in_transaction, "connections left in a transaction");
    world.check(report, Duration::from_secs(30), Delivered::Published).await;
}

/// One click on a connection that is reset (RST, not FIN) so many milliseconds after the request
/// was sent; before its last byte at step 0.
async fn decide_and_reset(
    people: &People,
    address: SocketAddr,
    asked: &Asked,
    choice: &Choice,
    step: u64,
) -> Ended {
    let body = json!({ "userId": choice.by }).to_string();
    let request = format!(
        "POST /api/aura/hitl/approve/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         X-Tenant-ID: {TENANT}\r\nX-User-ID: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        asked.id,
        token(&choice.by, TENANT),
        choice.by,
        body.len(),
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let sent = if step == 0 { request.len() - 1 } else { request.len() };
    stream.write_all(&request.as_bytes()[..sent]).await.unwrap();
    let after = Duration::from_millis(step.max(1));
    let read = tokio::time::timeout(after, read_answer(&mut stream)).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    let ended = match read {
        Ok(Some((status, body))) => people.understand(&asked.id, choice, status, &body),
        Ok(None) | Err(_) => Ended::Unknown,
    };
    let (request, choice) = (asked.id.clone(), choice.clone());
    people.history.record(Call { request, choice, ended: ended.clone() });
    ended
}

/// Status and body of an answer, once all of it is there.
async fn read_answer(stream: &mut TcpStream) -> Option<(u16, Value)> {
    let mut answer = Vec::new();
    while stream.read_buf(&mut answer).await.ok()? > 0 {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            let status = head.split(' ').nth(1)?.parse().ok()?;
            return Some((status, body));
        }
    }
    None
}

/// Looks again and again how many of the service's connections sit in an open transaction.
async fn watch_transactions(world: &World, most: &mut usize) -> ! {
    let mut database = world.database().await;
    loop {
        let now: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
              WHERE application_name = 'aura-hitl' AND state LIKE 'idle in transaction%'",
        )
        .fetch_one(&mut database)
        .await
        .unwrap();
        *most = (*most).max(usize::try_from(now).unwrap());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
