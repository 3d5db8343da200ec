//! What the service cannot beat: the steps of a decision, each alone, with the service's own code and
//! clients, pools and settings.

use std::sync::Arc;
use std::time::Duration;

use aura_hitl::courier::{Courier, Outgoing, SessionSnapshot};
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{Decision, State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::signal::signal_json;
use aura_hitl::ledger::{Ledger, Recorded};
use secrecy::SecretString;
use support::{candidate, writing};

use crate::load::{Run, Watched, flat_out};
use crate::world::{Asked, Database, POOL, World};

/// More than any of the steps can be done in a second.
const MOST_PER_SECOND: u64 = 12_000;

/// The ledger's decision statement, on rows that are new.
pub async fn statement(
    world: &World,
    database: &Database,
    tasks: usize,
    time: Duration,
    watched: &Watched,
) -> Run {
    let url = SecretString::from(database.url.clone());
    let ledger =
        Ledger::connect_postgres(&url, aura_hitl::ledger::Pooler::None, POOL).await.unwrap();
    let count = usize::try_from(MOST_PER_SECOND * time.as_secs()).unwrap();
    let now = Clock::System.now();
    let works = Asked::fresh(count).into_iter().map(|asked| {
        let caller = world.people[asked.person].caller();
        let decision = Decision { verdict: Verdict::Approve, by: caller.user.clone(), at: now };
        let candidate = candidate(&asked.request, asked.document(), Origin::Redis, now);
        (candidate, caller, State::Decided(decision))
    });
    let works = Arc::new(works.collect::<Vec<_>>());
    let used = ledger.clone();
    let run = flat_out(tasks, time, watched, move |number| {
        let (ledger, works) = (used.clone(), Arc::clone(&works));
        async move {
            let (candidate, caller, state) = works.get(number).expect("too few requests");
            let writing = writing(candidate, state, caller, now);
            let recorded = ledger.record_outcome(&writing).await.unwrap();
            assert!(matches!(recorded, Recorded::Won(_)), "{recorded:?}");
        }
    })
    .await;
    ledger.close().await;
    run
}

/// Requests that are there to be read or answered.
async fn asked(world: &World) -> Arc<Vec<Asked>> {
    let asked = Asked::fresh(1000);
    world.ask(&asked).await;
    Arc::new(asked)
}

/// A GET of a request, over one connection that all share.
pub async fn get(world: &World, tasks: usize, time: Duration, watched: &Watched) -> Run {
    let (asked, connection) = (asked(world).await, world.connection.clone());
    flat_out(tasks, time, watched, move |number| {
        let (asked, mut connection) = (Arc::clone(&asked), connection.clone());
        async move {
            let key = format!("hitl:request:{}", asked[number % asked.len()].request);
            let mut get = redis::cmd("GET");
            let found: Option<Vec<u8>> = get.arg(key).query_async(&mut connection).await.unwrap();
            assert!(found.is_some());
        }
    })
    .await
}

/// A SET of a signal and its PUBLISH, in one round trip over one connection that all share.
pub async fn signal(world: &World, tasks: usize, time: Duration, watched: &Watched) -> Run {
    let (asked, connection) = (asked(world).await, world.connection.clone());
    flat_out(tasks, time, watched, move |number| {
        let (asked, mut connection) = (Arc::clone(&asked), connection.clone());
        async move {
            let Asked { request, session, .. } = &asked[number % asked.len()];
            let signal = format!(
                r#"{{"type":"approval","requestId":"{request}","status":"approved","timestamp":1706152860}}"#
            );
            let mut sending = redis::pipe();
            sending.set_ex(format!("hitl:signal:{session}"), signal.as_str(), 300).ignore();
            sending.publish(format!("hitl:channel:{session}"), signal.as_str()).ignore();
            sending.exec_async(&mut connection).await.unwrap();
        }
    })
    .await
}

/// What the service asks Redis for, by the courier: the request, what its session names, and the
/// script that sends the signal. The request stays as it is, so that it can be done again.
pub async fn courier(world: &World, tasks: usize, time: Duration, watched: &Watched) -> Run {
    let (asked, courier) = (asked(world).await, Courier::redis(&world.redis.settings()).unwrap());
    let now = Clock::System.now();
    flat_out(tasks, time, watched, move |number| {
        let (asked, courier) = (Arc::clone(&asked), courier.clone());
        async move {
            let Asked { request, session, person } = &asked[number % asked.len()];
            let request = RequestId::parse(&**request).unwrap();
            let session = SessionId::parse(&**session).unwrap();
            let stored = courier.find_request(&request).await.unwrap().unwrap();
            let pointer = courier.session(&session).await.unwrap();
            let by = aura_hitl::domain::ids::UserId::parse(format!("user{person:02}")).unwrap();
            let signal =
                signal_json(&request, &Decision { verdict: Verdict::Approve, by, at: now });
            let seen = SessionSnapshot { pointer, document: Some(stored.document.clone()) };
            let outgoing = Outgoing {
                request: &request,
                session: &session,
                signal: &signal,
                document: &stored.document,
                rank: now.timestamp_micros(),
                publish: true,
                only_if: &seen,
            };
            courier.send(&outgoing).await.unwrap();
        }
    })
    .await
}
