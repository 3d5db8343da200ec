//! The hub: wakes those who wait over HTTP when their session may have news. One per process, with
//! one Pub/Sub connection that hears every session by one pattern, however many wait. A pattern,
//! so that `PUBSUB NUMSUB` of a session's channel counts agents and never us.
//!
//! It carries no answers. Whoever is woken reads them anew, from Redis and the ledger, under the
//! same rules as everybody else: a message that is lost, forged or repeated changes nothing but when
//! that happens. What Pub/Sub loses, a look into the ledger finds a little later. Each
//! message also goes to the [`Watcher`], which reports those that are not ours.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::courier::{ChannelEvent, Courier, Subscription, Unavailable};
use crate::domain::approver::Caller;
use crate::domain::clock::Clock;
use crate::domain::ids::{SessionId, TenantId, UserId};
use crate::forgery::watcher::Watcher;
use crate::ledger::Ledger;
use crate::limits::{Limit, TooMany};

/// Pause before connecting again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// How often to make sure that the connection still answers.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How often to look for news that no message told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How far back to look: longer than a write takes, and than clocks differ.
const LOOK_BACK: TimeDelta = TimeDelta::seconds(10);

/// Who waits for which session; cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    sessions: Arc<Mutex<HashMap<SessionId, Watched>>>,
    /// Each wait holds a connection, and neither one person nor one tenant may hold them all.
    waits: Arc<Mutex<Waits>>,
    limits: WaitLimits,
}

/// How many long-polls and streams may be open at once.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// Of one person.
    pub per_person: usize,
    /// Of one tenant.
    pub per_tenant: usize,
    /// Of everybody.
    pub in_all: usize,
}

/// How many are open.
#[derive(Debug, Default)]
struct Waits {
    people: HashMap<Person, usize>,
    tenants: HashMap<TenantId, usize>,
    in_all: usize,
}

impl Waits {
    fn begin(&mut self, person: &Person, limits: WaitLimits) -> Result<(), TooMany> {
        let of_person = self.people.get(person).copied().unwrap_or(0);
        let of_tenant = self.tenants.get(&person.0).copied().unwrap_or(0);
        let limit = if of_person >= limits.per_person {
            Limit::WaitsOfPerson(limits.per_person)
        } else if of_tenant >= limits.per_tenant {
            Limit::WaitsOfTenant(limits.per_tenant)
        } else if self.in_all >= limits.in_all {
            Limit::Waits(limits.in_all)
        } else {
            self.people.insert(person.clone(), of_person + 1);
            self.tenants.insert(person.0.clone(), of_tenant + 1);
            self.in_all += 1;
            return Ok(());
        };
        Err(TooMany { limit, retry_after_seconds: 1 })
    }

    fn end(&mut self, person: &Person) {
        one_less(&mut self.people, person);
        one_less(&mut self.tenants, &person.0);
        self.in_all -= 1;
    }
}

fn one_less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

type Person = (TenantId, UserId);

/// A session that somebody waits for.
#[derive(Debug)]
struct Watched {
    waiters: usize,
    /// Counts the news.
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
    /// A hub that nobody waits at, with these limits.
    #[must_use]
    pub fn new(limits: WaitLimits) -> Self {
        Self { sessions: Arc::default(), waits: Arc::default(), limits }
    }

    /// Begins to wait for news of a session. Whatever happens once this has returned is news; while
    /// Redis is away, the ledger tells it.
    ///
    /// # Errors
    /// [`TooMany`] when this person, their tenant or everybody waits too often already.
    pub fn watch(&self, session: &SessionId, caller: &Caller) -> Result<Waiter, TooMany> {
        let person = (caller.tenant.clone(), caller.user.clone());
        lock(&self.waits).begin(&person, self.limits)?;
        let news = {
            let mut sessions = self.sessions();
            let watched = sessions
                .entry(session.clone())
                .or_insert_with(|| Watched { waiters: 0, news: watch::Sender::new(0) });
            watched.waiters += 1;
            watched.news.subscribe()
        };
        Ok(Waiter { hub: self.clone(), session: session.clone(), person, news })
    }

    /// Wakes everybody who waits for a session.
    pub fn notify(&self, session: &SessionId) {
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

    /// Wakes everybody: they may have missed something.
    fn notify_all(&self) {
        for watched in self.sessions().values() {
            watched.news.send_modify(|count| *count += 1);
        }
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
        lock(&self.hub.waits).end(&self.person);
        let mut sessions = self.hub.sessions();
        let Some(watched) = sessions.get_mut(&self.session) else { return };
        watched.waiters -= 1;
        if watched.waiters == 0 {
            sessions.remove(&self.session);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What listening for those who wait takes.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Who waits.
    pub hub: Hub,
    /// Where news come from.
    pub courier: Courier,
    /// What no message told of.
    pub ledger: Ledger,
    /// What time it is.
    pub clock: Clock,
    /// Checks the messages.
    pub watcher: Watcher,
}

/// Listens for those who wait, until the process is asked to stop.
pub async fn run(listener: Listener, stopping: CancellationToken) {
    let listener = &listener;
    let mut last_error = None;
    let listening = async {
        loop {
            match listener.courier.listen().await {
                Ok(Some(subscription)) => {
                    last_error = None;
                    if let Err(error) = listen(listener, subscription).await {
                        warn!(%error, "the hub hears nothing; whoever waits is told a little later");
                    }
                }
                // Nobody else publishes anything.
                Ok(None) => std::future::pending().await,
                Err(error) if last_error.as_ref() == Some(&error.0) => {}
                Err(error) => {
                    warn!(%error, "the hub cannot listen; whoever waits is told a little later");
                    last_error = Some(error.0);
                }
            }
            sleep(RECONNECT_PAUSE).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = look(listener) => {}
        () = stopping.cancelled() => {}
    }
}

/// Passes on what one connection hears, until it is lost.
async fn listen(listener: &Listener, mut subscription: Subscription) -> Result<(), Unavailable> {
    info!("the hub listens");
    // From now on nobody misses anything; what they have missed, they read.
    listener.hub.notify_all();
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            heard = subscription.next() => match heard? {
                ChannelEvent::Outcome(session) => listener.hub.notify(&session),
                ChannelEvent::Message(message) => {
                    if let Some(session) = message.session() {
                        listener.hub.notify(&session);
                    }
                    listener.watcher.heard(message);
                }
                ChannelEvent::Other => {}
            },
            _now = pings.tick() => subscription.ping().await?,
        }
    }
}

/// Looks for news that no message told of: those of other replicas while Redis is away, and what
/// Pub/Sub loses.
async fn look(listener: &Listener) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = HashSet::new();
    loop {
        looks.tick().await;
        if listener.hub.sessions().is_empty() {
            known.clear();
            continue;
        }
        let since = listener.clock.now() - LOOK_BACK;
        // If the ledger is away, nothing is settled.
        let Ok(settled) = listener.ledger.settled_since(since).await else { continue };
        let settled = settled.into_iter().collect::<HashSet<_>>();
        for (session, _outcome) in settled.difference(&known) {
            listener.hub.notify(session);
        }
        known = settled;
    }
}
