//! The inbox: tells the streams of people what has changed in their tenant, and how many requests wait.
//!
//! Whoever changes a request announces its id, here and to the other replicas. An announcement carries no
//! status: every tenth of a second a worker reads the changed requests of each tenant that has a stream,
//! once for all its streams, and counts what waits. So a forged, lost or repeated message only changes
//! when a row is read. Once a second the worker also looks for changes whose message was lost.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::courier::Courier;
use crate::domain::approver::Caller;
use crate::domain::clock::Clock;
use crate::domain::ids::{RequestId, TenantId, UserId};
use crate::domain::list::{Owners, Status};
use crate::domain::rules;
use crate::ledger::{BoundWaiting, Changed, Ledger, LedgerError, Waiting};
use crate::permit::{DecidableFrom, Law, Rules};
use crate::workers::{Failed, Progress, Worker};

/// How long changes gather before the streams are told.
const GATHERING_INTERVAL: Duration = Duration::from_millis(100);
/// The least time between two counts of a tenant.
const COUNT_INTERVAL: Duration = Duration::from_millis(250);
/// How often to count although nothing was announced: who may decide what depends on the time, too.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(5);
/// How often to look for changes whose message was lost.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How far back each look goes: longer than a write takes, and than the clocks of replicas differ.
const POLL_WINDOW: TimeDelta = TimeDelta::seconds(10);
/// How long to remember what the streams were told, so that a look does not tell it again.
const MEMORY: Duration = Duration::from_secs(30);
/// News that a stream may be behind. A stream that is further behind ends; its client comes back.
const MAX_UNREAD: usize = 64;
/// Changes to read in one statement.
const BATCH_SIZE: usize = 500;
/// Announcements that may wait to be sent to the other replicas.
const QUEUE_SIZE: usize = 10_000;
/// Announcements in one message to the other replicas.
const MESSAGE_SIZE: usize = 100;

/// A request that has changed, and its tenant.
pub type Announcement = (TenantId, RequestId);

/// The inboxes of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    tenants: Arc<Mutex<HashMap<TenantId, Watched>>>,
    /// Notified when a change is to be told.
    changed: Arc<Notify>,
    /// What the other replicas are to be told.
    to_replicas: mpsc::Sender<Announcement>,
}

/// The receiving end of the queue to the other replicas, for [`Announcer`].
#[derive(Debug)]
pub struct ToReplicas(mpsc::Receiver<Announcement>);

/// A tenant with at least one stream.
#[derive(Debug)]
struct Watched {
    news: broadcast::Sender<Arc<News>>,
    /// The streams of each user.
    users: HashMap<UserId, usize>,
    /// Since when there is a stream, UTC. What changed before is no news.
    since: DateTime<Utc>,
    /// The requests that have changed and are not read yet.
    unread: HashSet<RequestId>,
    /// What the streams were told last of each request, and when.
    told: HashMap<RequestId, Told>,
    /// Whether something has changed since the last count.
    is_count_due: bool,
    counted_at: Option<Instant>,
}

/// What the streams were told of a request.
#[derive(Clone, Debug)]
struct Told {
    /// Its status, how often votes on it were written, the hash of what it says, and whether its agent has
    /// moved on.
    stands: (Status, i64, String, bool),
    last_comment: Option<i64>,
    at: Instant,
}

/// What the streams of a tenant are told at once.
#[derive(Debug)]
pub struct News {
    /// The changed requests.
    pub changed: Vec<Changed>,
    /// What waits now, if it was counted.
    pub waiting: Option<Waiting>,
    /// The rules of each key that binds a changed request.
    pub rules: HashMap<String, String>,
}

/// How many requests of a tenant wait, under the rules in force.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer.
pub async fn count_waiting(
    ledger: &Ledger,
    tenant: &TenantId,
    users: &[UserId],
    rules: &Rules,
) -> Result<Waiting, LedgerError> {
    let waiting = ledger.count_waiting(tenant, users).await?;
    let bound = match rules.in_force().version() {
        Some(version) => Some(ledger.bound_waiting(tenant, version).await?),
        None => None,
    };
    Ok(Waiting { bound, ..waiting })
}

/// One stream of one person, until this is dropped.
#[derive(Debug)]
pub struct Subscription {
    inbox: Inbox,
    caller: Caller,
    news: broadcast::Receiver<Arc<News>>,
}

/// How many requests wait for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Those that the person may decide.
    pub decidable: u64,
    /// Those that name the person.
    pub mine: u64,
}

impl Counts {
    /// What waits for this person.
    #[must_use]
    pub fn of(waiting: &Waiting, caller: &Caller, law: &Law, now: DateTime<Utc>) -> Self {
        let own = waiting.of.get(&caller.user).copied().unwrap_or_default();
        let count = |asked: usize| u64::try_from(asked).unwrap_or(u64::MAX);
        let decidable = match (&waiting.bound, rules::decidable(caller, law.settings)) {
            (Some(bound), _) => count(decidable(bound, caller, law, now)),
            // Counted before the policy file was put in force.
            (None, _) if law.has_file() => 0,
            (None, Owners::All) => waiting.all,
            (None, Owners::Only(_)) => own.decidable,
            (None, Owners::OrNobody(_)) => own.decidable + waiting.of_nobody,
        };
        let again = &waiting.asked_again;
        Self {
            // Only who decided may repeat it.
            decidable: decidable
                + count(again.iter().filter(|(_, by)| by.contains(&caller.user)).count()),
            mine: own.all
                + count(again.iter().filter(|(of, _)| of.as_ref() == Some(&caller.user)).count()),
        }
    }
}

/// How many of the requests that wait the caller may decide under the policy file.
fn decidable(bound: &BoundWaiting, caller: &Caller, law: &Law, now: DateTime<Utc>) -> usize {
    let made_by = |times: &[DateTime<Utc>], age: Option<TimeDelta>| {
        age.map_or(0, |age| times.partition_point(|at| *at <= now - age))
    };
    let count = |(binding, group): (&String, &crate::ledger::WaitingGroup)| {
        let rules = bound.rules.get(binding).and_then(|rules| law.binding_of_rules(rules));
        let Some(rules) = rules else { return 0 };
        let from = DecidableFrom::of(&rules, caller, now);
        let own = group.of.get(&caller.user).map_or(&[][..], Vec::as_slice);
        let others = made_by(&group.all, from.others)
            - made_by(own, from.others)
            - made_by(&group.nobodys, from.others);
        others + made_by(own, from.own) + made_by(&group.nobodys, from.nobodys)
    };
    bound.groups.iter().map(count).sum()
}

impl Inbox {
    /// No inboxes yet, and the receiving end of the queue to the other replicas.
    #[must_use]
    pub fn new() -> (Self, ToReplicas) {
        let (to_replicas, queue) = mpsc::channel(QUEUE_SIZE);
        let inbox = Self { tenants: Arc::default(), changed: Arc::default(), to_replicas };
        (inbox, ToReplicas(queue))
    }

    /// Says on every replica that a request has changed. Does not wait. If the queue is full, the other
    /// replicas find the change in the ledger.
    pub fn announce(&self, tenant: &TenantId, id: &RequestId) {
        self.deliver(tenant, id);
        let _full = self.to_replicas.try_send((tenant.clone(), id.clone()));
    }

    /// Says to the streams of this process that a request has changed.
    pub fn deliver(&self, tenant: &TenantId, id: &RequestId) {
        if let Some(watched) = self.tenants().get_mut(tenant) {
            watched.unread.insert(id.clone());
            self.changed.notify_one();
        }
    }

    /// Begins a stream: it is told of each change from now on.
    #[must_use]
    pub fn subscribe(&self, caller: &Caller, now: DateTime<Utc>) -> Subscription {
        let mut tenants = self.tenants();
        let watched = tenants.entry(caller.tenant.clone()).or_insert_with(|| Watched {
            news: broadcast::Sender::new(MAX_UNREAD),
            users: HashMap::new(),
            since: now,
            unread: HashSet::new(),
            told: HashMap::new(),
            is_count_due: false,
            counted_at: None,
        });
        *watched.users.entry(caller.user.clone()).or_default() += 1;
        let news = watched.news.subscribe();
        Subscription { inbox: self.clone(), caller: caller.clone(), news }
    }

    /// The tenants with streams, and since when each has one.
    fn watched(&self) -> Vec<(TenantId, DateTime<Utc>)> {
        let tenants = self.tenants();
        tenants.iter().map(|(tenant, watched)| (tenant.clone(), watched.since)).collect()
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Watched>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next news; `None` when this stream is too far behind to go on.
    pub async fn next(&mut self) -> Option<Arc<News>> {
        self.news.recv().await.ok()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut tenants = self.inbox.tenants();
        let Some(watched) = tenants.get_mut(&self.caller.tenant) else { return };
        if let Some(streams) = watched.users.get_mut(&self.caller.user) {
            *streams -= 1;
            if *streams == 0 {
                watched.users.remove(&self.caller.user);
            }
        }
        if watched.users.is_empty() {
            tenants.remove(&self.caller.tenant);
        }
    }
}

/// The worker that tells the streams.
#[derive(Debug)]
pub struct InboxWorker {
    /// The streams.
    pub inbox: Inbox,
    /// Where the changed requests are read.
    pub ledger: Ledger,
    /// In-process, no other replica changes anything.
    pub courier: Courier,
    /// The source of the current time.
    pub clock: Clock,
    /// Whether a policy file says who may decide.
    pub rules: Rules,
    polled_at: Option<Instant>,
}

impl InboxWorker {
    /// The worker of these inboxes.
    #[must_use]
    pub fn new(inbox: Inbox, ledger: Ledger, courier: Courier, clock: Clock, rules: Rules) -> Self {
        Self { inbox, ledger, courier, clock, rules, polled_at: None }
    }

    /// Whether to look for changes whose message was lost, in this round.
    fn is_poll_due(&mut self) -> bool {
        let is_recent = self.polled_at.is_some_and(|at| at.elapsed() < POLL_INTERVAL);
        if is_recent || matches!(self.courier, Courier::InProcess) {
            return false;
        }
        self.polled_at = Some(Instant::now());
        true
    }

    /// Tells the streams of one tenant what has changed. Looks for changes `since`, if it is given.
    async fn tell(
        &self,
        tenant: &TenantId,
        since: Option<DateTime<Utc>>,
    ) -> Result<(), LedgerError> {
        // Read before the changes are taken, so that none is lost if this fails.
        let rules = match self.rules.in_force().version() {
            Some(version) => self.ledger.bindings_of(version).await?.into_iter().collect(),
            None => HashMap::new(),
        };
        let mut read = match since {
            Some(since) => self.ledger.changed_since(tenant, since).await?,
            None => Vec::new(),
        };
        let unread = {
            let mut tenants = self.inbox.tenants();
            let Some(watched) = tenants.get_mut(tenant) else { return Ok(()) };
            std::mem::take(&mut watched.unread).into_iter().collect::<Vec<_>>()
        };
        for batch in unread.chunks(BATCH_SIZE) {
            match self.ledger.find_changed(tenant, batch).await {
                Ok(changed) => read.extend(changed),
                Err(error) => {
                    if let Some(watched) = self.inbox.tenants().get_mut(tenant) {
                        watched.unread.extend(unread);
                    }
                    return Err(error);
                }
            }
        }
        let (changed, users) = {
            let mut tenants = self.inbox.tenants();
            let Some(watched) = tenants.get_mut(tenant) else { return Ok(()) };
            let changed = watched.news_of(read);
            watched.is_count_due |= !changed.is_empty();
            let interval = if watched.is_count_due { COUNT_INTERVAL } else { RECOUNT_INTERVAL };
            let is_due = watched.counted_at.is_none_or(|at| at.elapsed() >= interval);
            if is_due {
                (watched.is_count_due, watched.counted_at) = (false, Some(Instant::now()));
            }
            (changed, is_due.then(|| watched.users.keys().cloned().collect::<Vec<_>>()))
        };
        let waiting = match users {
            None => None,
            Some(users) => match count_waiting(&self.ledger, tenant, &users, &self.rules).await {
                Ok(waiting) => Some(waiting),
                Err(error) => {
                    debug!(%error, "the requests that wait are not counted yet");
                    if let Some(watched) = self.inbox.tenants().get_mut(tenant) {
                        watched.is_count_due = true;
                    }
                    None
                }
            },
        };
        if (!changed.is_empty() || waiting.is_some())
            && let Some(watched) = self.inbox.tenants().get(tenant)
        {
            // An error says that nobody listens any more.
            let _gone = watched.news.send(Arc::new(News { changed, waiting, rules }));
        }
        Ok(())
    }

    fn is_count_due(&self) -> bool {
        self.inbox.tenants().values().any(|watched| watched.is_count_due)
    }
}

impl Watched {
    /// The changes that the streams were not told before.
    fn news_of(&mut self, read: Vec<Changed>) -> Vec<Changed> {
        let now = Instant::now();
        let mut news = Vec::new();
        for mut changed in read {
            let told = self.told.get(&changed.id);
            let known = told.and_then(|told| told.last_comment);
            changed.is_commented =
                changed.status == Status::Pending && changed.last_comment > known;
            let last_comment = changed.last_comment.max(known);
            let Changed { status, ballots, has_moved_on, .. } = changed;
            let stands = (status, ballots, changed.content_hash.clone(), has_moved_on);
            let is_news = changed.is_commented || told.is_none_or(|told| told.stands != stands);
            self.told.insert(changed.id.clone(), Told { stands, last_comment, at: now });
            if is_news {
                news.push(changed);
            }
        }
        if !news.is_empty() {
            self.told.retain(|_id, told| now - told.at < MEMORY);
        }
        news
    }
}

impl Worker for InboxWorker {
    const NAME: &'static str = "inbox";
    const INTERVAL: Duration = POLL_INTERVAL;

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let failed = |error: LedgerError| {
            warn!(%error, "inboxes are not told of changes yet");
            Failed
        };
        let window = self.is_poll_due().then(|| self.clock.now() - POLL_WINDOW);
        if let Some(since) = window.filter(|_since| !self.inbox.watched().is_empty()) {
            let commented = self.ledger.commented_since(since).await.map_err(failed)?;
            for (_session, tenant, request, _number) in commented {
                self.inbox.deliver(&tenant, &request);
            }
        }
        for (tenant, since) in self.inbox.watched() {
            self.tell(&tenant, window.map(|start| start.max(since))).await.map_err(failed)?;
        }
        Ok(Progress::Done)
    }

    async fn wake_up(&mut self) {
        let counting = async {
            if self.is_count_due() {
                sleep(COUNT_INTERVAL).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.inbox.changed.notified() => sleep(GATHERING_INTERVAL).await,
            () = counting => {}
        }
    }
}

/// The worker that tells the other replicas.
#[derive(Debug)]
pub struct Announcer {
    courier: Courier,
    queue: mpsc::Receiver<Announcement>,
    unsent: Vec<Announcement>,
}

impl Announcer {
    /// The worker of this queue.
    #[must_use]
    pub fn new(courier: Courier, ToReplicas(queue): ToReplicas) -> Self {
        Self { courier, queue, unsent: Vec::new() }
    }
}

impl Worker for Announcer {
    const NAME: &'static str = "announcer";
    /// Rounds go on while nothing changes, so that the metric of the last success stays recent.
    const INTERVAL: Duration = Duration::from_secs(5);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        // What is lost here, the other replicas find in the ledger.
        let unsent = std::mem::take(&mut self.unsent);
        if !unsent.is_empty()
            && let Err(error) = self.courier.announce(&unsent).await
        {
            debug!(%error, "the other replicas are not told of changes; they find them in the ledger");
        }
        Ok(Progress::Done)
    }

    async fn wake_up(&mut self) {
        self.queue.recv_many(&mut self.unsent, MESSAGE_SIZE).await;
    }
}
