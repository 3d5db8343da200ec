//! Agents that wait: naive ones, careful ones, late ones.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aura_hitl::domain::approver::Role;
use futures_util::StreamExt as _;
use futures_util::future::join;
use redis::aio::{MultiplexedConnection, PubSubSink};
use reqwest::Method;
use serde_json::Value;
use support::history::{Call, Choice, Delivered, Ended};
use support::{Asked, Who, eventually};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::report::{Report, Scale};
use crate::rows::racing::kill_in_turn;
use crate::world::{Replica, TENANT, World, ask, at_once, new_session, spread};

fn yes() -> Choice {
    Choice::approved("user123")
}

/// Which request a signal is for.
fn request_of(signal: &str) -> String {
    let signal: Value = serde_json::from_str(signal).unwrap();
    signal["requestId"].as_str().unwrap().to_owned()
}

/// One connection that is subscribed to the channels of many sessions.
struct Subscribers {
    sink: tokio::sync::Mutex<PubSubSink>,
    heard: Arc<Mutex<Vec<(String, String)>>>,
    listening: JoinHandle<()>,
}

/// The harness's own channel: marks when an agent asks, in order with the service's messages.
const ASK_CHANNEL: &str = "harness:asks";

impl Subscribers {
    async fn open(world: &World) -> Self {
        let (mut sink, mut stream) = world.redis.client().get_async_pubsub().await.unwrap().split();
        sink.subscribe(ASK_CHANNEL).await.unwrap();
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let hearing = heard.clone();
        let listening = tokio::spawn(async move {
            while let Some(message) = stream.next().await {
                let channel = message.get_channel_name();
                let channel = channel.strip_prefix("hitl:channel:").unwrap_or(channel).to_owned();
                hearing.lock().unwrap().push((channel, message.get_payload().unwrap()));
            }
        });
        Self { sink: tokio::sync::Mutex::new(sink), heard, listening }
    }

    /// Subscribes to a session's channel; Redis has acknowledged it when this returns.
    async fn subscribe(&self, session: &str) {
        self.sink.lock().await.subscribe(format!("hitl:channel:{session}")).await.unwrap();
    }

    /// The messages of a session so far.
    fn of(&self, session: &str) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|(to, _)| to == session).map(|(_, text)| text.clone()).collect()
    }

    /// The messages of a session after its agent had asked for this request.
    fn since_asking(&self, session: &str, request: &str) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let after = heard.iter().skip_while(|(to, text)| to != ASK_CHANNEL || text != request);
        after.filter(|(to, _)| to == session).map(|(_, text)| text.clone()).collect()
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

pub async fn late_subscribers(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let around = scale.of(Duration::from_secs(5), Duration::from_millis(1500));
    let (agents, subscribers) = (world.agents().await, Subscribers::open(&world).await);
    let asked = (0..scale.of(1000, 200)).map(|_| Asked::new()).collect::<Vec<_>>();
    let all = asked.len();
    let found = at_once(asked, all, async |place, asked| {
        let mut redis = agents.clone();
        tokio::time::sleep(Duration::from_millis(10) * u32::try_from(place).unwrap()).await;
        ask(&mut redis, &asked).await;
        let published = Instant::now() + around;
        // As many before as after, most of them close to it.
        let aside = around.mul_f64(spread(place).abs().powi(2));
        let late = spread(place) > 0.0;
        let connects = if late { published + aside } else { published.checked_sub(aside).unwrap() };
        let decided = AtomicBool::new(false);
        let deciding = async {
            tokio::time::sleep_until(published.into()).await;
            people.decide_surely(&bases[place % 2], &asked.id, &yes()).await;
            decided.store(true, Ordering::SeqCst);
        };
        let waiting = async {
            tokio::time::sleep_until(connects.into()).await;
            subscribers.subscribe(&asked.session).await;
            let key = format!("hitl:signal:{}", asked.session);
            let kept: Option<String> =
                redis::cmd("GET").arg(key).query_async(&mut redis).await.unwrap();
            if kept.is_some_and(|signal| request_of(&signal) == asked.id) {
                return Some("under the key");
            }
            let mut patience = Duration::from_secs(15);
            while !patience.is_zero() {
                if subscribers
                    .of(&asked.session)
                    .iter()
                    .any(|signal| request_of(signal) == asked.id)
                {
                    return Some("by message");
                }
                let pause = Duration::from_millis(20);
                tokio::time::sleep(pause).await;
                if decided.load(Ordering::SeqCst) {
                    patience = patience.saturating_sub(pause);
                }
            }
            None
        };
        join(deciding, waiting).await.1
    })
    .await;
    report.count(all, "agents");
    for way in ["under the key", "by message"] {
        let count = found.iter().filter(|found| **found == Some(way)).count();
        report.count(count, way);
        report.demand(count > 0, || format!("nobody found it {way}"));
    }
    report.none(found.iter().filter(|found| found.is_none()).count(), "missed");
    all_heard(&world).await;
    world.check(report, Duration::from_secs(10), Delivered::Published).await;
}

/// Agents as Aura has them: each asks, subscribes up to 2 s after the decision, takes the first message
/// for its answer, never reads the key, and asks again in the same session.
pub async fn deaf_agents(scale: Scale, report: &mut Report) {
    let mut world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let (agents, subscribers) = (world.agents().await, Subscribers::open(&world).await);
    let sessions = (0..scale.of(1000, 60)).map(|_| new_session()).collect::<Vec<_>>();
    let all = sessions.len();
    let endings = at_once(sessions, scale.of(100, 60), async |place, session| {
        let [a, b] = [0, 1].map(|_| Asked::in_session(&session));
        let mut redis = agents.clone();
        ask(&mut redis, &a).await;
        people.decide_surely(&bases[place % 2], &a.id, &yes()).await;
        // From 0 to 2 s.
        tokio::time::sleep(Duration::from_secs(1).mul_f64(1.0 + spread(place))).await;
        subscribers.subscribe(&session).await;
        let hears = async |request: &str| {
            let hearing = eventually(async || {
                let heard = subscribers.of(&session);
                heard.iter().any(|signal| request_of(signal) == request).then_some(())
            });
            tokio::time::timeout(Duration::from_secs(9), hearing).await.is_ok()
        };
        let was_heard = hears(&a.id).await;
        // The agent waits for an answer that nobody gives, longer than the slowest poll interval.
        ask_next(&mut redis, &b).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let taken = subscribers.since_asking(&session, &b.id);
        people.decide_surely(&bases[place / 2 % 2], &b.id, &yes()).await;
        let is_answered = hears(&b.id).await;
        let of_a =
            subscribers.of(&session).iter().filter(|signal| request_of(signal) == a.id).count();
        (was_heard && is_answered, taken, of_a)
    })
    .await;
    report.count(all, "agents");
    report.none(endings.iter().filter(|(heard, ..)| !heard).count(), "missed");
    let taken = endings.iter().flat_map(|(_, taken, _)| taken.clone()).collect::<Vec<_>>();
    report.wrongs("taken for another request", &taken);
    report.none(endings.iter().filter(|(.., of_a)| *of_a > 1).count(), "told twice");
    let again = "somebody listens; published again";
    let again = world.replicas.iter_mut().map(|replica| {
        replica.process().log().iter().filter(|line| line["message"] == again).count()
    });
    let again = again.sum::<usize>();
    report.count(again, "signals published again");
    report.demand(again * 10 >= all * 9, || "too many had listened in time".to_owned());
    all_heard(&world).await;
    world.check(report, Duration::from_secs(10), Delivered::Published).await;
}

/// Waits until all unheard signals have been published again. Every session has a subscriber now.
async fn all_heard(world: &World) {
    eventually(async || {
        let unheard = "SELECT count(*) FROM hitl_delivery WHERE listeners = 0 OR listeners IS NULL";
        (world.number(unheard).await == 0).then_some(())
    })
    .await;
}

/// Writes the next request of a session, and marks that in the order of messages. Returns the text
/// under the signal's key at that moment.
async fn ask_next(redis: &mut MultiplexedConnection, asked: &Asked) -> Option<String> {
    let pointer = serde_json::json!({
        "sessionId": asked.session, "requestId": asked.id, "userId": "user123", "tenantId": TENANT,
    });
    let mut asking = redis::pipe();
    asking.atomic();
    let key = format!("hitl:request:{}", asked.id);
    asking.cmd("SET").arg(key).arg(asked.document.to_string()).arg("EX").arg(1800).ignore();
    let key = format!("hitl:session:{}", asked.session);
    asking.cmd("SET").arg(key).arg(pointer.to_string()).arg("EX").arg(3600).ignore();
    asking.cmd("GET").arg(format!("hitl:signal:{}", asked.session));
    asking.cmd("PUBLISH").arg(ASK_CHANNEL).arg(&asked.id).ignore();
    let (kept,): (Option<String>,) = asking.query_async(redis).await.unwrap();
    kept
}

pub async fn two_in_one_session(scale: Scale, report: &mut Report) {
    let world = World::start(2).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let subscribers = Subscribers::open(&world).await;
    let sessions = (0..scale.of(1000, 60)).map(|_| new_session()).collect::<Vec<_>>();
    let all = sessions.len();
    let lost = at_once(sessions, 40, async |place, session| {
        subscribers.subscribe(&session).await;
        let [first, second] = [0, 1].map(|_| Asked::in_session(&session));
        for asked in [&first, &second] {
            let registered = people.register(&bases[place % 2], asked).await;
            assert_eq!(registered, Some(201));
        }
        let no = Choice::rejected("user123", "아니요");
        let (yes, [left, right]) = (yes(), [&bases[place % 2], &bases[place / 2 % 2]]);
        // One after the other, in both orders, and both at once.
        match place % 3 {
            0 => {
                people.decide_surely(left, &first.id, &yes).await;
                people.decide_surely(right, &second.id, &no).await;
            }
            1 => {
                people.decide_surely(left, &second.id, &no).await;
                people.decide_surely(right, &first.id, &yes).await;
            }
            _ => {
                let one = people.decide_surely(&bases[0], &first.id, &yes);
                join(one, people.decide_surely(&bases[1], &second.id, &no)).await;
            }
        }
        // The agent matches on the request, and finds each answer on each replica.
        let mut lost = 0;
        for asked in [&first, &second] {
            for base in &bases {
                let polled = people.poll_surely(base, &session, Some(&asked.id)).await;
                lost += usize::from(polled.is_none_or(|signal| request_of(&signal) != asked.id));
            }
        }
        lost + usize::from(people.poll_surely(right, &session, None).await.is_some())
    })
    .await;
    report.count(all, "sessions");
    report.none(lost.iter().sum(), "answers not found, or found without naming their request");
    // The checker fails on any message in their sessions.
    world.check(report, Duration::from_secs(10), Delivered::Published).await;
}

/// What happens to request A before its agent asks for B in the same session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// A is approved after B was asked for.
    Late,
    /// A is approved, and approved again after B was asked for.
    Twice,
    /// A is approved while B is asked for.
    Racing,
    /// A is approved by a replica that dies before the signal; a relay sends after B was asked for.
    Crashed,
    /// The same, but the relay sends while B is asked for.
    CrashedAndRacing,
    /// A is asked for again, and approved again by a replica that dies before the signal.
    AskedAgainAndCrashed,
}

const STORIES: [Story; 6] = [
    Story::Late,
    Story::Twice,
    Story::Racing,
    Story::Crashed,
    Story::CrashedAndRacing,
    Story::AskedAgainAndCrashed,
];
/// How long the deciding replica holds the delivery. After that, the relay sends.
const LEASE: Duration = Duration::from_secs(3);

/// What all the naive agents share.
struct SharedState<'a> {
    world: &'a World,
    bases: &'a [String],
    subscribers: Subscribers,
    agents: MultiplexedConnection,
    /// The replicas that are to die. Each permit is for one death.
    doomed: tokio::sync::Mutex<Vec<Replica>>,
    death_permits: Semaphore,
}

/// What became of one session.
#[derive(Default)]
struct Ending {
    /// What the agent took for the answer to B.
    taken: Option<(String, String)>,
    polls: usize,
    crashes: usize,
    /// Requests that others registered in its session, and approved.
    intrusions: usize,
    /// Messages that the agent would have taken for the answer to B, although they were not.
    wrongs: Vec<String>,
}

pub async fn naive_agents(scale: Scale, report: &mut Report) {
    let mut world = World::start(2).await;
    let (bases, sessions) = (world.bases(), scale.of(1000, 42));
    let doomed = (0..4).map(|_| world.another_replica()).collect::<Vec<_>>();
    let mut replicas = std::mem::take(&mut world.replicas);
    let shared = SharedState {
        subscribers: Subscribers::open(&world).await,
        agents: world.agents().await,
        death_permits: Semaphore::new(doomed.len()),
        doomed: doomed.into(),
        world: &world,
        bases: &bases,
    };
    let done = AtomicBool::new(false);
    let living = async {
        let places = (0..sessions).collect::<Vec<_>>();
        let endings = at_once(places, 42, async |_, place| shared.live(place).await).await;
        done.store(true, Ordering::SeqCst);
        endings
    };
    let killing = kill_in_turn(&mut replicas, Duration::from_millis(1500), &done);
    let (endings, kills) = join(living, killing).await;
    let wrongs = endings.iter().flat_map(|ending| ending.wrongs.clone()).collect::<Vec<_>>();
    let crashes = endings.iter().map(|ending| ending.crashes).sum::<usize>();
    report.count(endings.len(), "sessions");
    report.count(crashes, "crashes before the signal");
    report.count(kills, "kills");
    report.count(endings.iter().map(|ending| ending.polls).sum::<usize>(), "polls");
    let intrusions = endings.iter().map(|ending| ending.intrusions).sum::<usize>();
    report.count(intrusions, "approved registrations in guessed sessions");
    report.demand(intrusions >= sessions, || "too few registered in time".to_owned());
    report.wrongs("took another signal for B's", &wrongs);
    // Half of the stories have one.
    report.demand(crashes * 10 >= sessions * 4, || "too few replicas died in time".to_owned());
    let aftermath = world.check(report, Duration::from_secs(15), Delivered::Settled).await;
    let signals = aftermath.rows.iter().map(|row| (row.request.clone(), row.signal()));
    let signals = signals.collect::<BTreeMap<_, _>>();
    let is_answered = |ending: &&Ending| {
        let taken = ending.taken.as_ref();
        taken.is_some_and(|(b, taken)| signals.get(b) == Some(&Some(taken.clone())))
    };
    let answered = endings.iter().filter(is_answered).count();
    report.none(sessions - answered, "agents without the answer to B");
    let superseded = aftermath.rows.iter().filter(|row| row.delivery == "superseded").count();
    report.count(superseded, "signals withheld");
    report.demand(superseded > 0, || "no signal came too late".to_owned());
}

impl SharedState<'_> {
    /// One session: A, then B, and what the agent takes for the answer to B.
    async fn live(&self, place: usize) -> Ending {
        let session = new_session();
        let [a, b] = [0, 1].map(|_| Asked::in_session(&session));
        let (people, base) = (&self.world.people, &self.bases[place / 6 % 2]);
        let mut ending = Ending::default();
        self.subscribers.subscribe(&session).await;
        self.intrude(&session, base, &mut ending).await;
        ask(&mut self.agents.clone(), &a).await;
        self.intrude(&session, base, &mut ending).await;
        let story = STORIES[place % STORIES.len()];
        let kept = match story {
            Story::Late => {
                let kept = self.moves_on_to(&b).await;
                if people.decide(base, &a.id, &yes()).await == Ended::Ok {
                    ending.wrongs.push(format!("{}: approved although it was too late", a.id));
                }
                kept
            }
            Story::Twice => {
                people.decide_surely(base, &a.id, &yes()).await;
                let kept = self.moves_on_to(&b).await;
                people.decide_surely(&self.bases[place % 2], &a.id, &yes()).await;
                kept
            }
            Story::Racing => {
                let moving = async {
                    // From before the click to after it.
                    let after = Duration::from_millis(25).mul_f64(1.0 + spread(place));
                    tokio::time::sleep(after).await;
                    self.moves_on_to(&b).await
                };
                join(people.decide(base, &a.id, &yes()), moving).await.1
            }
            Story::Crashed => {
                ending.crashes += usize::from(self.crash_at("decided", &a).await);
                self.moves_on_to(&b).await
            }
            Story::CrashedAndRacing => {
                ending.crashes += usize::from(self.crash_at("decided", &a).await);
                tokio::time::sleep(LEASE.mul_f64(1.0 + spread(place) / 5.0)).await;
                self.moves_on_to(&b).await
            }
            Story::AskedAgainAndCrashed => {
                people.decide_surely(base, &a.id, &yes()).await;
                self.world.delivered(&a.id).await;
                ask(&mut self.agents.clone(), &a).await;
                ending.crashes += usize::from(self.crash_at("owed-again", &a).await);
                self.moves_on_to(&b).await
            }
        };
        let mut intruder = Ending::default();
        join(
            self.wait_for(&b, &a, kept, place, &mut ending),
            self.intrude(&session, &self.bases[place % 2], &mut intruder),
        )
        .await;
        ending.intrusions += intruder.intrusions;
        ending.wrongs.iter_mut().for_each(|wrong| wrong.insert_str(0, &format!("{story:?}: ")));
        ending
    }

    /// A user of another tenant guesses the session, registers a request in it and approves it.
    async fn intrude(&self, session: &str, base: &str, ending: &mut Ending) {
        let (people, asked) = (&self.world.people, Asked::in_session(session));
        let mallory = Who { user: "mallory", tenant: "tenant2", role: Role::User };
        let call = |path: String, body: Value| {
            let url = format!("{base}/api/aura/hitl/{path}");
            people.call_by(mallory, Method::POST, &url).json(&body).send()
        };
        let made = call("requests".to_owned(), asked.registration()).await;
        if !made.is_ok_and(|answer| answer.status() == 201) {
            return; // The replica was killed.
        }
        let choice = Choice::approved(mallory.user);
        let body = serde_json::json!({ "userId": mallory.user });
        let told = call(format!("approve/{}", asked.id), body).await;
        let ended = match told {
            Ok(answer) if answer.status() == 200 => Ended::Ok,
            _ => Ended::Unknown,
        };
        ending.intrusions += usize::from(ended == Ended::Ok);
        people.history.record(Call { request: asked.id, choice, ended });
    }

    /// The agent gives up on whatever it waited for, and asks for this. Says what was under the
    /// signal's key at that moment, and marks it among all that is heard.
    async fn moves_on_to(&self, b: &Asked) -> Option<String> {
        ask_next(&mut self.agents.clone(), b).await
    }

    /// Lets a replica die while it approves this request. Returns whether it died.
    async fn crash_at(&self, point: &str, asked: &Asked) -> bool {
        let _permit = self.death_permits.acquire().await.unwrap();
        let mut crasher = self.doomed.lock().await.pop().unwrap();
        crasher.crash_at(&format!("{point}=return"));
        crasher.start().await;
        self.world.people.decide(&crasher.base(), &asked.id, &yes()).await;
        let died = crasher.dies_within(Duration::from_secs(2)).await;
        crasher.kill();
        self.doomed.lock().await.push(crasher);
        died
    }

    /// The agent waits for the answer to B: it listens, polls with and without the request's id,
    /// and looks under the key. A person decides once nothing is owed for A any more.
    async fn wait_for(
        &self,
        b: &Asked,
        a: &Asked,
        kept: Option<String>,
        place: usize,
        ending: &mut Ending,
    ) {
        let (people, began) = (&self.world.people, Instant::now());
        let no = Choice::rejected("user123", "아니요");
        let choice = if place % 4 < 2 { yes() } else { no };
        let mut database = self.world.database().await;
        let mut redis = self.agents.clone();
        let mut is_decided = false;
        while began.elapsed() < Duration::from_secs(30) {
            let mut signals = self.subscribers.since_asking(&b.session, &b.id);
            for (turn, wanted) in [None, Some(&*b.id), Some(&*a.id)].into_iter().enumerate() {
                let base = &self.bases[(place + turn) % 2];
                if let Ok(found) = people.poll(base, &b.session, wanted).await {
                    ending.polls += 1;
                    signals.extend(found);
                }
            }
            let key = format!("hitl:signal:{}", b.session);
            let now: Option<String> =
                redis::cmd("GET").arg(key).query_async(&mut redis).await.unwrap();
            signals.extend(now.filter(|now| kept.as_ref() != Some(now)));
            let (of_b, others): (Vec<_>, Vec<_>) =
                signals.into_iter().partition(|signal| request_of(signal) == b.id);
            ending.wrongs.extend(others);
            if let Some(signal) = of_b.into_iter().next() {
                ending.taken = Some((b.id.clone(), signal));
                return;
            }
            let query = "SELECT count(*) FROM hitl_delivery
                          WHERE request_id = $1 AND delivery = 'owed'";
            let owed = sqlx::query_scalar::<_, i64>(query).bind(&a.id);
            if !is_decided && owed.fetch_one(&mut database).await.unwrap() == 0 {
                people.decide_surely(&self.bases[place % 2], &b.id, &choice).await;
                is_decided = true;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}
