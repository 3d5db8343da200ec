//! The hub: wakes long-polls and streams when their session may have an outcome. Each process has one
//! hub with one Pub/Sub connection, which subscribes to all sessions by a pattern. `PUBSUB NUMSUB` does
//! not count patterns, so for a session's channel it counts agents alone.
//!
//! The hub carries no answers. A woken call reads its answer from Redis and the ledger, under the same
//! rules as any other call. So a lost, forged or repeated message only changes when a call reads. The
//! hub also polls the ledger, for outcomes whose message Pub/Sub lost. Each message also goes to the
//! [`Watcher`], which reports messages that this service did not publish.

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
use crate::domain::ids::{RequestId, SessionId, TenantId, UserId};
use crate::forgery::watcher::Watcher;
use crate::ledger::Ledger;
use crate::limits::{Limit, TooMany};
use crate::waiting::inbox::Inbox;
use crate::workers::{Failed, Progress, Worker};

/// Pause before connecting again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);
/// How often to check that the Pub/Sub connection answers.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How far back each poll looks: longer than a write takes, and than the clocks of replicas differ.
const LEDGER_POLL_WINDOW: TimeDelta = TimeDelta::seconds(10);

/// The calls that wait for a session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    sessions: Arc<Mutex<HashMap<SessionId, Watched>>>,
    /// Each wait holds a connection. Neither one person nor one tenant may hold all of them.
    waits: Arc<Mutex<WaitCounts>>,
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
    pub total: usize,
}

/// How many long-polls and streams are open.
#[derive(Debug, Default)]
struct WaitCounts {
    people: HashMap<Person, usize>,
    tenants: HashMap<TenantId, usize>,
    total: usize,
}

impl WaitCounts {
    fn begin(&mut self, person: &Person, limits: WaitLimits) -> Result<(), TooMany> {
        let of_person = self.people.get(person).copied().unwrap_or(0);
        let of_tenant = self.tenants.get(&person.0).copied().unwrap_or(0);
        let limit = if of_person >= limits.per_person {
            Limit::WaitsOfPerson(limits.per_person)
        } else if of_tenant >= limits.per_tenant {
            Limit::WaitsOfTenant(limits.per_tenant)
        } else if self.total >= limits.total {
            Limit::Waits(limits.total)
        } else {
            self.people.insert(person.clone(), of_person + 1);
            self.tenants.insert(person.0.clone(), of_tenant + 1);
            self.total += 1;
            return Ok(());
        };
        Err(TooMany { limit, retry_after_seconds: 1 })
    }

    fn end(&mut self, person: &Person) {
        one_less(&mut self.people, person);
        one_less(&mut self.tenants, &person.0);
        self.total -= 1;
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

/// A session with at least one waiter.
#[derive(Debug)]
struct Watched {
    waiters: usize,
    /// Counts the wake-ups.
    changes: watch::Sender<u64>,
}

/// A long-poll or a stream that counts against the [`WaitLimits`], until this is dropped.
#[derive(Debug)]
pub struct Wait {
    waits: Arc<Mutex<WaitCounts>>,
    person: Person,
}

impl Drop for Wait {
    fn drop(&mut self) {
        lock(&self.waits).end(&self.person);
    }
}

/// A long-poll or a stream that waits for a session, until this is dropped.
#[derive(Debug)]
pub struct Waiter {
    hub: Hub,
    session: SessionId,
    changes: watch::Receiver<u64>,
    _wait: Wait,
}

impl Hub {
    /// A hub without waiters, with these limits.
    #[must_use]
    pub fn new(limits: WaitLimits) -> Self {
        Self { sessions: Arc::default(), waits: Arc::default(), limits }
    }

    /// Begins to wait for a session: the waiter is woken for each outcome from now on. While Redis does
    /// not answer, polling the ledger wakes it.
    ///
    /// # Errors
    /// [`TooMany`] when this person, their tenant or the service has no wait left.
    pub fn watch(&self, session: &SessionId, caller: &Caller) -> Result<Waiter, TooMany> {
        let wait = self.begin_wait(caller)?;
        let changes = {
            let mut sessions = self.sessions();
            let watched = sessions
                .entry(session.clone())
                .or_insert_with(|| Watched { waiters: 0, changes: watch::Sender::new(0) });
            watched.waiters += 1;
            watched.changes.subscribe()
        };
        Ok(Waiter { hub: self.clone(), session: session.clone(), changes, _wait: wait })
    }

    /// Counts a long-poll or a stream.
    ///
    /// # Errors
    /// [`TooMany`] when this person, their tenant or the service has no wait left.
    pub fn begin_wait(&self, caller: &Caller) -> Result<Wait, TooMany> {
        let person = (caller.tenant.clone(), caller.user.clone());
        lock(&self.waits).begin(&person, self.limits)?;
        Ok(Wait { waits: self.waits.clone(), person })
    }

    /// Wakes all waiters of a session.
    pub fn notify(&self, session: &SessionId) {
        if let Some(watched) = self.sessions().get(session) {
            watched.changes.send_modify(|count| *count += 1);
        }
    }

    /// How many long-polls and streams wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        lock(&self.waits).total
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Watched>> {
        lock(&self.sessions)
    }

    /// Wakes all waiters, because they may have missed a message.
    fn notify_all(&self) {
        for watched in self.sessions().values() {
            watched.changes.send_modify(|count| *count += 1);
        }
    }
}

impl Waiter {
    /// Waits for the next wake-up. Returns at once if there was one since the last call.
    pub async fn changed(&mut self) {
        // Never an error: the hub keeps the sender as long as this waiter exists.
        let _woken = self.changes.changed().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
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

/// What [`run`] needs.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The hub whose waiters to wake.
    pub hub: Hub,
    /// The source of messages.
    pub courier: Courier,
    /// Polled for outcomes without a message.
    pub ledger: Ledger,
    /// The source of the current time.
    pub clock: Clock,
    /// Compares the messages with the ledger.
    pub watcher: Watcher,
    /// Told of the changes on other replicas.
    pub inbox: Inbox,
}

/// Wakes waiters until the process is asked to stop.
pub async fn run(listener: Listener, stopping: CancellationToken) {
    let listener = &listener;
    let mut last_error = None;
    let listening = async {
        loop {
            match listener.courier.listen().await {
                Ok(Some(subscription)) => {
                    last_error = None;
                    if let Err(error) = listen(listener, subscription).await {
                        warn!(%error, "the hub has lost its subscription; polling the ledger wakes agents a little later");
                    }
                }
                // Without Redis, no other process publishes.
                Ok(None) => std::future::pending().await,
                Err(error) if last_error.as_ref() == Some(&error.0) => {}
                Err(error) => {
                    warn!(%error, "the hub cannot subscribe; polling the ledger wakes agents a little later");
                    last_error = Some(error.0);
                }
            }
            sleep(RECONNECT_INTERVAL).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = stopping.cancelled() => {}
    }
}

/// Wakes waiters for the messages of one subscription, until its connection is lost.
async fn listen(listener: &Listener, mut subscription: Subscription) -> Result<(), Unavailable> {
    info!("the hub is subscribed");
    // Messages may have been lost before the subscription, so all waiters read once.
    listener.hub.notify_all();
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            heard = subscription.next() => match heard? {
                ChannelEvent::Outcome(session) => listener.hub.notify(&session),
                ChannelEvent::Changed(changed) => {
                    for (tenant, id) in changed {
                        listener.inbox.deliver(&tenant, &id);
                    }
                }
                ChannelEvent::Message(message) => {
                    if let Some(session) = message.session() {
                        listener.hub.notify(&session);
                    }
                    listener.watcher.enqueue(message);
                }
                ChannelEvent::Other => {}
            },
            _now = pings.tick() => subscription.ping().await?,
        }
    }
}

/// Polls the ledger for outcomes and comments without a message: those of other replicas while Redis does not
/// answer, and those whose message Pub/Sub lost.
#[derive(Debug)]
pub struct LedgerPoll {
    listener: Listener,
    known: HashSet<(SessionId, TenantId, RequestId)>,
    known_comments: HashSet<(SessionId, TenantId, RequestId, i64)>,
}

impl From<Listener> for LedgerPoll {
    fn from(listener: Listener) -> Self {
        Self { listener, known: HashSet::new(), known_comments: HashSet::new() }
    }
}

impl Worker for LedgerPoll {
    const NAME: &'static str = "ledger_poll";
    /// How often to poll the ledger for outcomes without a message.
    const INTERVAL: Duration = Duration::from_secs(1);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let Listener { hub, ledger, clock, .. } = &self.listener;
        if hub.sessions().is_empty() {
            self.known.clear();
            self.known_comments.clear();
            return Ok(Progress::Done);
        }
        let since = clock.now() - LEDGER_POLL_WINDOW;
        // While the ledger does not answer, no request is closed.
        let settled = ledger.settled_since(since).await.map_err(|_away| Failed)?;
        let settled = settled.into_iter().collect::<HashSet<_>>();
        for (session, _tenant, _request) in settled.difference(&self.known) {
            hub.notify(session);
        }
        self.known = settled;
        let comments = ledger.commented_since(since).await.map_err(|_away| Failed)?;
        let comments = comments.into_iter().collect::<HashSet<_>>();
        for (session, _tenant, _request, _number) in comments.difference(&self.known_comments) {
            hub.notify(session);
        }
        self.known_comments = comments;
        Ok(Progress::Done)
    }
}
