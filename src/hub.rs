//! The hub: tells whoever waits over HTTP that their session may have news. One per process, with
//! one Pub/Sub connection however many wait, and one subscription per session that is waited for.
//!
//! It carries no answers. Whoever is woken reads them anew, from Redis and the ledger, under the
//! same rules as everybody else: a message that is lost, forged or repeated changes nothing but when
//! that happens. What Pub/Sub loses, a look into the ledger finds a little later.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::core::Core;
use crate::courier::Ear;
use crate::domain::approver::Caller;
use crate::domain::ids::{SessionId, TenantId, UserId};
use crate::limits::TooMany;

/// Longest to wait until a subscription is acknowledged; then the ledger alone has to do.
const SUBSCRIBING: Duration = Duration::from_secs(1);
/// Pause before connecting again.
const RECONNECTING: Duration = Duration::from_millis(500);
/// How often to make sure that the connection still answers.
const PING: Duration = Duration::from_secs(5);
/// How often to look for news that no message told of.
const LOOKING: Duration = Duration::from_secs(1);
/// How far back to look: longer than a write takes, and than clocks differ.
const LOOKING_BACK: TimeDelta = TimeDelta::seconds(10);
/// Most sessions to subscribe to in one command.
const AT_ONCE: usize = 1000;

/// Who waits for which session; cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    sessions: Arc<Mutex<HashMap<SessionId, Watched>>>,
    /// How often each person waits, and how often they may: each wait holds a connection, and one
    /// person must not hold them all.
    people: Arc<Mutex<HashMap<Person, usize>>>,
    most: usize,
    /// Sessions that somebody has begun or ceased to wait for.
    turnover: mpsc::UnboundedSender<SessionId>,
}

type Person = (TenantId, UserId);

/// What [`run`] hears of: sessions that somebody has begun or ceased to wait for.
#[derive(Debug)]
pub struct Turnover(mpsc::UnboundedReceiver<SessionId>);

/// A session that somebody waits for.
#[derive(Debug)]
struct Watched {
    waiters: usize,
    /// Counts the news; 0 until the first subscription is acknowledged.
    news: watch::Sender<u64>,
}

/// Somebody who waits, until it is dropped.
#[derive(Debug)]
pub struct Waiter {
    hub: Hub,
    session: SessionId,
    person: Person,
    news: watch::Receiver<u64>,
}

impl Hub {
    /// A hub that nobody waits at, and at which each person may wait so many times at once.
    #[must_use]
    pub fn new(most: usize) -> (Self, Turnover) {
        let (turnover, heard) = mpsc::unbounded_channel();
        let (sessions, people) = (Arc::default(), Arc::default());
        (Self { sessions, people, most, turnover }, Turnover(heard))
    }

    /// Begins to wait for news of a session. Whatever happens once this has returned is news.
    ///
    /// # Errors
    /// [`TooMany`] when this person waits too often already.
    pub async fn watch(&self, session: &SessionId, caller: &Caller) -> Result<Waiter, TooMany> {
        let person = (caller.tenant.clone(), caller.user.clone());
        {
            let mut people = lock(&self.people);
            let waits = people.entry(person.clone()).or_default();
            if *waits >= self.most {
                return Err(TooMany { retry_after_seconds: 1 });
            }
            *waits += 1;
        }
        let news = {
            let mut sessions = self.sessions();
            let watched = sessions.entry(session.clone()).or_insert_with(|| {
                let _ended = self.turnover.send(session.clone());
                Watched { waiters: 0, news: watch::Sender::new(0) }
            });
            watched.waiters += 1;
            watched.news.subscribe()
        };
        let mut waiter = Waiter { hub: self.clone(), session: session.clone(), person, news };
        let subscribed = waiter.news.wait_for(|news| *news > 0);
        // Without Redis there is the ledger.
        drop(timeout(SUBSCRIBING, subscribed).await);
        Ok(waiter)
    }

    /// Wakes everybody who waits for a session.
    pub fn tell(&self, session: &SessionId) {
        if let Some(watched) = self.sessions().get(session) {
            watched.news.send_modify(|count| *count += 1);
        }
    }

    /// How many wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.sessions().values().map(|watched| watched.waiters).sum()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Watched>> {
        lock(&self.sessions)
    }

    fn is_watched(&self, session: &SessionId) -> bool {
        self.sessions().contains_key(session)
    }

    fn watched(&self) -> Vec<SessionId> {
        self.sessions().keys().cloned().collect()
    }
}

impl Waiter {
    /// Waits for the next news, or for any since the last time.
    pub async fn news(&mut self) {
        // The hub keeps the sender as long as we are here.
        let _heard = self.news.changed().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut people = lock(&self.hub.people);
        if let Some(waits) = people.get_mut(&self.person) {
            *waits -= 1;
            if *waits == 0 {
                people.remove(&self.person);
            }
        }
        drop(people);
        let mut sessions = self.hub.sessions();
        let Some(watched) = sessions.get_mut(&self.session) else { return };
        watched.waiters -= 1;
        if watched.waiters == 0 {
            sessions.remove(&self.session);
            let _ended = self.hub.turnover.send(self.session.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens for those who wait, until the process is asked to stop.
pub async fn run(core: Core, mut turnover: Turnover) {
    let listening = async {
        loop {
            match core.courier.listen().await {
                Ok(ear) => {
                    if let Err(error) = listen(&core.hub, ear, &mut turnover).await {
                        warn!(%error, "the hub hears nothing; whoever waits is told a little later");
                    }
                }
                Err(error) => tracing::debug!(%error, "the hub does not reach Redis"),
            }
            sleep(RECONNECTING).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = look(&core) => {}
        () = core.stopping.cancelled() => {}
    }
}

/// Keeps the subscriptions of one connection and passes on what it hears, until it is lost.
async fn listen(
    hub: &Hub,
    mut ear: Ear,
    turnover: &mut Turnover,
) -> Result<(), crate::courier::Unavailable> {
    let mut subscribed = HashSet::new();
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changed = hub.watched();
    if !changed.is_empty() {
        info!(sessions = changed.len(), "the hub subscribes anew");
    }
    loop {
        let (wanted, unwanted): (Vec<_>, Vec<_>) =
            changed.drain(..).partition(|session| hub.is_watched(session));
        let fresh = wanted.iter().filter(|session| !subscribed.contains(*session)).cloned();
        let fresh = fresh.collect::<HashSet<_>>();
        for some in fresh.iter().collect::<Vec<_>>().chunks(AT_ONCE) {
            ear.subscribe(some).await?;
        }
        subscribed.extend(fresh);
        // From now on they miss nothing; what they have missed, they read.
        for session in &wanted {
            hub.tell(session);
        }
        let gone = unwanted.into_iter().filter(|session| subscribed.remove(session));
        let gone = gone.collect::<Vec<_>>();
        if !gone.is_empty() {
            ear.unsubscribe(&gone.iter().collect::<Vec<_>>()).await?;
        }
        tokio::select! {
            heard = ear.next() => {
                if let Some(session) = heard? {
                    hub.tell(&session);
                }
            }
            _ended = turnover.0.recv_many(&mut changed, AT_ONCE) => {}
            _now = pings.tick() => ear.ping().await?,
        }
    }
}

/// Looks for news that no message told of: those of other replicas while Redis is away, and what
/// Pub/Sub loses.
async fn look(core: &Core) {
    let mut looks = interval(LOOKING);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = HashSet::new();
    loop {
        looks.tick().await;
        if core.hub.sessions().is_empty() {
            known.clear();
            continue;
        }
        let since = core.clock.now() - LOOKING_BACK;
        // If the ledger is away, nothing is settled.
        let Ok(settled) = core.ledger.settled_since(since).await else { continue };
        let settled = settled.into_iter().collect::<HashSet<_>>();
        for (session, _outcome) in settled.difference(&known) {
            core.hub.tell(session);
        }
        known = settled;
    }
}
