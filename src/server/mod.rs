//! Starts, runs and stops one process of the service. Stopping completes the calls under way and
//! writes the receipts that are still in memory.

pub mod http;
pub mod listening;
pub mod notices;
pub mod reload;
pub mod scrape;
pub mod stores;

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use anyhow::{Context as _, bail, ensure};
use rustix::process::{Resource, Rlimit};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::http::{serve, serve_metrics};
use self::listening::{listen, refuse_new_connections};
use self::notices::run_channels;
use self::scrape::Upkeep;
use self::stores::{ensure_migrated, migrate, open_ledger};
use crate::api::error::ErrorCode;
use crate::audit::feed::{AuditFeed, AuditSender};
use crate::audit::refused_attempts::{AttemptWriter, Queue, RefusedAttempts};
use crate::audit::retention::RetentionWorker;
use crate::config::{Config, LedgerConfig};
use crate::courier::Courier;
use crate::delivery::receipts::ReceiptWriter;
use crate::delivery::relay::{Relay, RelayWorker};
use crate::delivery::release::{TaskReleaser, WaitingTasks};
use crate::delivery::republish::{Republisher, UnheardScan};
use crate::delivery::unheard::Unheard;
use crate::domain::clock::Clock;
use crate::forgery::reports::Forgeries;
use crate::forgery::watcher::{self, Unchecked, Watcher};
use crate::identity::TokenVerifier;
use crate::ledger::known_decisions::KnownDecisions;
use crate::ledger::patience::patiently;
use crate::limits::quotas::Quotas;
use crate::limits::{LargeBodies, Limits};
use crate::notices::Notices;
use crate::notices::strays::Strays;
use crate::observe::metrics::{self, Deployment};
use crate::permit::Rules;
use crate::requests::expire::ExpiryWorker;
use crate::requests::fan_out::FanOut;
use crate::requests::intake::IntakeWorker;
use crate::requests::rebind::RebindWorker;
use crate::search::fill::SearchFiller;
use crate::search::{SearchQueue, SearchTexts, SearchWriter};
use crate::state::AppState;
use crate::tasks::open::OpenTasks;
use crate::waiting::hub::{self, Hub, LedgerPoll, Listener, WaitLimits};
use crate::waiting::inbox::{Announcer, Inbox, InboxWorker, ToReplicas};
use crate::workers::{End, run};

/// How long answers carry `Connection: close` and readiness is false before the listener is closed.
/// Meanwhile the Gateway stops using its connections to this process. Part of `shutdown_seconds`.
const SHUTDOWN_NOTICE_INTERVAL: Duration = Duration::from_millis(1500);
/// Files that a process may have open besides its connections to clients and to Postgres: listener,
/// Redis, SQLite, workers, metrics.
const OTHER_FILES: u64 = 100;
/// How long each step of stopping may take after the last answer: the writes under way, the relay's
/// last round, and closing the ledger.
const SHUTDOWN_STEP_TIMEOUT: Duration = Duration::from_millis(800);

/// One running process of the service. Other replicas may use the same stores.
#[derive(Debug)]
pub struct Replica {
    /// The state that its handlers and workers share.
    pub state: AppState,
    /// The address that it listens on.
    pub address: SocketAddr,
    listener: TcpListener,
    server: ServerHandle,
    serving: JoinHandle<io::Result<()>>,
    workers: JoinSet<()>,
    /// How long readiness is false before the listener is closed.
    notice: Duration,
    /// Locks the SQLite file against a second process; `None` with Postgres.
    _lock: Option<File>,
}

impl Replica {
    /// Starts everything: ledger, migrations, courier, relay, HTTP.
    ///
    /// # Errors
    /// One sentence, when a store, the address or a setting cannot be used.
    pub async fn start(config: &Config, clock: Clock) -> anyhow::Result<Self> {
        make_room_for_connections(config)?;
        let (ledger, lock) = patiently(async || open_ledger(config, true).await).await?;
        if config.auto_migrate {
            patiently(async || migrate(config, &ledger).await).await?;
        } else {
            patiently(async || ensure_migrated(&ledger).await).await?;
        }
        let courier = match (&config.redis, ledger.sqlite_pool()) {
            (Some(settings), _) => Courier::redis(settings)?,
            (None, Some(_pool)) => Courier::InProcess,
            (None, None) => bail!("a shared ledger needs Redis; set REDIS_URL"),
        };
        let runtime = Handle::current();
        let hub = Hub::new(WaitLimits {
            per_person: config.max_waits_per_person,
            per_tenant: config.max_waits_per_tenant,
            // The other quarter of the connections is for calls that do not wait.
            total: (config.max_connections / 4 * 3).max(1),
        });
        let (watcher, unchecked) = Watcher::new();
        let (inbox, to_replicas) = Inbox::new();
        let (search, search_queue) = SearchTexts::new();
        let (refused_attempts, attempts_to_write) = RefusedAttempts::new();
        let app = AppState {
            tokens: TokenVerifier::new(&config.jwt),
            limits: Limits::new(config.rate_limit, &courier, &runtime),
            large_bodies: LargeBodies::default(),
            call_permits: Arc::new(Semaphore::new(config.max_calls_under_way)),
            max_calls: config.max_calls_under_way,
            wait_permits: Arc::new(Semaphore::new(config.max_calls_under_way.div_ceil(4))),
            waiting_tasks: WaitingTasks::default(),
            decisions: KnownDecisions::default(),
            forgeries: Forgeries::default(),
            hub,
            inbox,
            search,
            watcher,
            unheard: Unheard::default(),
            ledger,
            courier,
            clock,
            policy: config.policy,
            rules: Rules::new(config.policy, config.policy_file.clone()),
            refused_attempts,
            quotas: Quotas::new(config.quotas),
            feeds_audit: config.audit_url.is_some(),
            notices: Notices::new(config.notices.clone()),
            stopping: CancellationToken::new(),
            under_way: TaskTracker::new(),
            runtime,
        };
        app.ledger.set_tells(config.notices.is_on());
        metrics::start(
            Deployment {
                ledger: app.ledger.engine(),
                courier: app.courier.engine(),
                max_clients: config.max_connections,
            },
            ErrorCode::ALL.iter().map(|code| code.reason()),
        )?;
        let listener = listen(config)?;
        let address = listener.local_addr()?;
        let server = serve(config, &app, listener.try_clone()?)?;
        let handle = server.handle();
        info!(%address, ledger = app.ledger.engine(), courier = app.courier.engine(),
            version = env!("CARGO_PKG_VERSION"), "listening");
        if let Err(error) = app.courier.ping().await {
            warn!(%error, "started without the courier: not ready until it answers");
        }
        let workers =
            start_workers(config, &app, unchecked, attempts_to_write, to_replicas, search_queue)?;
        Ok(Self {
            address,
            listener,
            server: handle,
            serving: tokio::spawn(server),
            workers,
            state: app,
            notice: SHUTDOWN_NOTICE_INTERVAL.min(Duration::from_secs(config.shutdown_seconds) / 4),
            _lock: lock,
        })
    }

    /// Runs until `asked_to_stop`, then stops. A worker that dies ends the service too.
    ///
    /// # Errors
    /// When the HTTP server or a worker ended without being asked to stop.
    pub async fn run(mut self, asked_to_stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let cause = tokio::select! {
            () = asked_to_stop => None,
            ended = &mut self.serving => Some(format!("the HTTP server ended: {ended:?}")),
            ended = self.workers.join_next() => Some(format!("a worker ended: {ended:?}")),
        };
        match cause {
            None => {
                info!("about to stop");
                self.state.stopping.cancel();
                tokio::time::sleep(self.notice).await;
                self.stop().await;
                Ok(())
            }
            Some(cause) => {
                self.state.stopping.cancel();
                bail!(cause)
            }
        }
    }

    /// Stops the service: refuses new connections, waits for the calls and writes under way, runs
    /// the relay once more, and closes the ledger.
    pub async fn stop(mut self) {
        info!("stopping");
        self.state.stopping.cancel();
        refuse_new_connections(&self.listener, &self.server).await;
        self.server.stop(true).await;
        let in_time =
            |step: &'static str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| async move {
                if tokio::time::timeout(SHUTDOWN_STEP_TIMEOUT, work).await.is_err() {
                    warn!(step, "did not end in time");
                }
            };
        let app = self.state;
        app.under_way.close();
        let under_way = app.under_way.clone();
        in_time("writes under way", Box::pin(async move { under_way.wait().await })).await;
        let last = relay(&app);
        in_time(
            "the relay's last round",
            Box::pin(async move {
                while self.workers.join_next().await.is_some() {}
                let _round = last.run_once().await;
            }),
        )
        .await;
        in_time("closing the ledger", Box::pin(async move { app.ledger.close().await })).await;
        info!("stopped");
    }
}

/// Starts the background workers and, if configured, the metrics server.
fn start_workers(
    config: &Config,
    app: &AppState,
    unchecked: Unchecked,
    refused_attempts: Queue,
    to_replicas: ToReplicas,
    search_queue: SearchQueue,
) -> anyhow::Result<JoinSet<()>> {
    let mut workers = JoinSet::new();
    let (ledger, clock) = (app.ledger.clone(), app.clock.clone());
    let at_once = End::AtOnce(app.stopping.clone());
    let after_round = End::AfterRound(app.stopping.clone());
    let after_calls = End::AfterCalls(app.under_way.clone());
    workers.spawn(run(RelayWorker::from(relay(app)), after_round.clone()));
    let releaser = TaskReleaser {
        waiting: app.waiting_tasks.clone(),
        ledger: ledger.clone(),
        clock: clock.clone(),
    };
    workers.spawn(run(releaser, at_once.clone()));
    let receipts = ReceiptWriter { ledger: ledger.clone() };
    workers.spawn(run(receipts, after_calls.clone()));
    workers.spawn(run(ExpiryWorker(app.clone()), after_round.clone()));
    workers.spawn(run(RebindWorker::new(app.clone()), at_once.clone()));
    let listener = Listener {
        hub: app.hub.clone(),
        courier: app.courier.clone(),
        ledger: ledger.clone(),
        clock: clock.clone(),
        watcher: app.watcher.clone(),
        inbox: app.inbox.clone(),
    };
    let inbox = InboxWorker::new(
        app.inbox.clone(),
        ledger.clone(),
        app.courier.clone(),
        clock.clone(),
        app.rules.clone(),
    );
    workers.spawn(run(inbox, at_once.clone()));
    workers.spawn(run(SearchWriter::new(ledger.clone(), search_queue), at_once.clone()));
    workers.spawn(run(SearchFiller::new(ledger.clone()), at_once.clone()));
    workers.spawn(run(Announcer::new(app.courier.clone(), to_replicas), at_once.clone()));
    workers.spawn(run(LedgerPoll::from(listener.clone()), at_once.clone()));
    workers.spawn(hub::run(listener, app.stopping.clone()));
    let decisions = app.decisions.clone();
    workers.spawn(watcher::run(ledger.clone(), decisions, unchecked, app.stopping.clone()));
    // Only agents on Redis can miss a signal.
    if matches!(app.courier, Courier::Redis(_)) {
        let republisher = Republisher { sender: app.sender() };
        workers.spawn(run(UnheardScan::from(republisher.clone()), at_once.clone()));
        workers.spawn(run(republisher, at_once.clone()));
        if let Some(settings) = config.intake {
            workers.spawn(run(IntakeWorker::new(app.clone(), settings), after_calls.clone()));
        }
    }
    workers.spawn(run(FanOut(app.clone()), after_round.clone()));
    workers.spawn(run_channels(app.clone()));
    let strays =
        Strays { notices: app.notices.clone(), ledger: ledger.clone(), clock: clock.clone() };
    workers.spawn(run(strays, at_once.clone()));
    workers.spawn(run(Upkeep, after_round.clone()));
    if let Some(address) = config.metrics_address {
        workers.spawn(serve_metrics(app, address)?);
    }
    let open_tasks = OpenTasks { ledger: ledger.clone(), clock: clock.clone() };
    workers.spawn(run(open_tasks, after_round.clone()));
    workers.spawn(run(AttemptWriter::new(ledger.clone(), refused_attempts), after_calls));
    if let Some(url) = &config.audit_url {
        let sender = AuditSender::new(url).context("cannot feed the audit log")?;
        let feed = AuditFeed { sender, ledger: ledger.clone(), clock: clock.clone() };
        workers.spawn(run(feed, at_once));
    }
    let retention = RetentionWorker { ledger, clock, retention: config.retention };
    workers.spawn(run(retention, after_round));
    Ok(workers)
}

/// Makes a relay that shares the state of this process.
#[must_use]
pub fn relay(app: &AppState) -> Relay {
    Relay { sender: app.sender(), tasks: app.waiting_tasks.clone() }
}

/// Raises the limit on open files to what the connections need, since each connection is an open
/// file. Without this, a flood of client connections would leave no files for connections to the
/// stores.
fn make_room_for_connections(config: &Config) -> anyhow::Result<()> {
    let stores = match config.ledger {
        LedgerConfig::Postgres { max_connections, .. } => u64::from(max_connections),
        LedgerConfig::Sqlite { .. } => 0,
    };
    let needed = config.max_connections as u64 + stores + OTHER_FILES;
    let allowed = || rustix::process::getrlimit(Resource::Nofile);
    let has_room = |limit: &Rlimit| limit.current.is_none_or(|files| files >= needed);
    let limit = allowed();
    if !has_room(&limit) {
        let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
        // The check below fails if the limit was not raised.
        let _refused = rustix::process::setrlimit(Resource::Nofile, raised);
    }
    ensure!(
        has_room(&allowed()),
        "max_connections is {}, but this process may open only {} files; raise that limit \
         (ulimit -n {needed}) or lower max_connections",
        config.max_connections,
        limit.maximum.unwrap_or_default()
    );
    Ok(())
}
