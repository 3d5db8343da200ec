//! A running service: what it consists of, how it starts, and how it stops without losing
//! anything.

use std::fs::{File, TryLockError};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_cors::Cors;
use actix_http::HttpService;
use actix_service::{IntoServiceFactory as _, ServiceFactoryExt as _, fn_service, map_config};
use actix_web::dev::{AppConfig, Server, ServerHandle};
use actix_web::middleware::{DefaultHeaders, from_fn};
use actix_web::{App, HttpServer, web};
use anyhow::{Context as _, bail, ensure};
use rustix::process::{Resource, Rlimit};
use secrecy::SecretString;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use tracing_actix_web::TracingLogger;

use crate::api::envelope::with_call;
use crate::api::error::ApiError;
use crate::api::health::LastAnswer;
use crate::api::text::Text;
use crate::audit::AuditSender;
use crate::auth::TokenVerifier;
use crate::config::{Config, LedgerConfig, make_private_folder};
use crate::connection::{CLOSING, Connection, Connections, take_turns};
use crate::core::Core;
use crate::courier::Courier;
use crate::domain::clock::Clock;
use crate::forgeries::Forgeries;
use crate::hub::{self, Hub, WaitLimits};
use crate::known_decisions::KnownDecisions;
use crate::ledger::{Ledger, LedgerError, LoginError};
use crate::limits::Limits;
use crate::marks::{self, Marks};
use crate::metrics::Scrape;
use crate::quotas::Quotas;
use crate::refused_attempts::{self, RefusedAttempts};
use crate::telemetry::CallSpan;
use crate::unheard::{self, Unheard};
use crate::watcher::{self, Watcher};
use crate::{expiry, metrics, open_tasks, relay, retention, routes};

/// How long an idle connection stays open. Longer than nginx keeps one to us (60 s), so that the
/// Gateway never sends a request into a connection that we are closing.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long answers say `Connection: close` and readiness says no before the service stops accepting:
/// a Gateway then uses none of its connections that we are about to close. Part of
/// `shutdown_seconds`.
const NOTICE: Duration = Duration::from_millis(1500);
/// How long connections are served after the service stopped accepting. A call may be on its way over a
/// connection that was just accepted; a Gateway that is refused its next connection goes elsewhere.
const LAST_CALLS: Duration = Duration::from_millis(500);
/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// Open connections to the metrics' own address.
const METRICS_CONNECTIONS: usize = 32;
/// Files a process may have open beside its connections: listener, Redis, SQLite, workers, metrics.
const OTHER_FILES: u64 = 100;
/// Longest that a command goes on asking a database that does not answer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two of its questions.
const COMMAND_RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Longest that writes under way, the relay's last round and the pool's closing may each take
/// after the last answer has gone out.
const LAST_STEPS: Duration = Duration::from_millis(800);

/// One running process of the service; others may run beside it on the same stores.
#[derive(Debug)]
pub struct Replica {
    /// What it works with.
    pub core: Core,
    /// Where it listens.
    pub address: SocketAddr,
    server: ServerHandle,
    serving: JoinHandle<io::Result<()>>,
    workers: JoinSet<()>,
    notice: Duration,
    _lock: Option<File>,
}

impl Replica {
    /// Starts everything: ledger, migrations, courier, relay, HTTP.
    ///
    /// # Errors
    /// One sentence on what is wrong with the environment.
    pub async fn start(config: &Config, clock: Clock) -> anyhow::Result<Self> {
        make_room_for_connections(config)?;
        let (ledger, lock) = open_ledger(config, true).await?;
        if config.auto_migrate {
            migrate(config, &ledger).await?;
        } else {
            ensure_migrated(&ledger).await?;
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
            // The rest of the connections is for calls that are answered at once.
            in_all: (config.max_connections / 4 * 3).max(1),
        });
        let (watcher, unchecked) = Watcher::new();
        let (refused_attempts, attempts_to_write) = RefusedAttempts::new();
        let core = Core {
            tokens: TokenVerifier::new(&config.jwt),
            limits: Limits::new(config.rate_limit, &courier, &runtime),
            room: Arc::new(Semaphore::new(config.max_calls_under_way)),
            most_calls: config.max_calls_under_way,
            turns: Arc::new(Semaphore::new(config.max_calls_under_way.div_ceil(4))),
            marks: Marks::default(),
            decisions: KnownDecisions::default(),
            forgeries: Forgeries::default(),
            hub,
            watcher,
            unheard: Unheard::default(),
            ledger,
            courier,
            clock,
            policy: config.policy,
            refused_attempts,
            quotas: Quotas::new(config.quotas),
            feeds_audit: config.audit_url.is_some(),
            stopping: CancellationToken::new(),
            under_way: TaskTracker::new(),
            runtime,
        };
        metrics::start(&core, config.max_connections)?;
        let listener = TcpListener::bind((config.host.as_str(), config.port)).map_err(|error| {
            let address = format!("{}:{}", config.host, config.port);
            cannot_listen(&address, &error, ["HOST", "PORT"])
        })?;
        // The standard library keeps 128 callers waiting at most; of the others, the system lets some
        // believe that they are connected.
        rustix::net::listen(&listener, BACKLOG)?;
        let address = listener.local_addr()?;
        let server = serve(config, &core, listener)?;
        let handle = server.handle();
        info!(%address, ledger = core.ledger.engine(), courier = core.courier.engine(),
            version = env!("CARGO_PKG_VERSION"), "listening");
        if let Err(error) = core.courier.ping().await {
            warn!(%error, "started without the courier: not ready until it answers");
        }
        let mut workers = JoinSet::new();
        workers.spawn(relay::run(core.clone()));
        workers.spawn(marks::run(core.clone()));
        workers.spawn(expiry::run(core.clone()));
        workers.spawn(hub::run(core.clone()));
        workers.spawn(watcher::run(core.clone(), unchecked));
        workers.spawn(unheard::run(core.clone()));
        workers.spawn(metrics::run(core.clone()));
        if let Some(address) = config.metrics_address {
            workers.spawn(serve_metrics(&core, address)?);
        }
        workers.spawn(open_tasks::run(core.clone()));
        workers.spawn(refused_attempts::run(core.clone(), attempts_to_write));
        if let Some(url) = &config.audit_url {
            let sender = AuditSender::new(url).context("cannot feed the audit log")?;
            workers.spawn(sender.run(core.clone()));
        }
        workers.spawn(retention::run(core.clone(), config.retention));
        Ok(Self {
            address,
            server: handle,
            serving: tokio::spawn(server),
            workers,
            core,
            notice: NOTICE.min(Duration::from_secs(config.shutdown_seconds) / 4),
            _lock: lock,
        })
    }

    /// Runs until `asked_to_stop`, then stops. A worker that dies ends the service too.
    ///
    /// # Errors
    /// When the service ended by itself.
    pub async fn run(mut self, asked_to_stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let cause = tokio::select! {
            () = asked_to_stop => None,
            ended = &mut self.serving => Some(format!("the HTTP server ended: {ended:?}")),
            ended = self.workers.join_next() => Some(format!("a worker ended: {ended:?}")),
        };
        match cause {
            None => {
                info!("about to stop");
                self.core.stopping.cancel();
                tokio::time::sleep(self.notice).await;
                self.stop().await;
                Ok(())
            }
            Some(cause) => {
                self.core.stopping.cancel();
                bail!(cause)
            }
        }
    }

    /// Stops: no new connections, finish what is under way, send what is owed, close.
    pub async fn stop(mut self) {
        info!("stopping");
        self.core.stopping.cancel();
        self.server.stop(true).await;
        let in_time =
            |step: &'static str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| async move {
                if tokio::time::timeout(LAST_STEPS, work).await.is_err() {
                    warn!(step, "did not end in time");
                }
            };
        let core = self.core;
        core.under_way.close();
        let under_way = core.under_way.clone();
        in_time("writes under way", Box::pin(async move { under_way.wait().await })).await;
        let last = core.clone();
        in_time(
            "the relay's last round",
            Box::pin(async move {
                while self.workers.join_next().await.is_some() {}
                let _round = relay::run_once(&last).await;
            }),
        )
        .await;
        in_time("closing the ledger", Box::pin(async move { core.ledger.close().await })).await;
        info!("stopped");
    }
}

/// Opens the ledger; for a service, its SQLite file is locked against a second process.
///
/// # Errors
/// One sentence on what is wrong with it.
pub async fn open_ledger(config: &Config, lock: bool) -> anyhow::Result<(Ledger, Option<File>)> {
    match &config.ledger {
        LedgerConfig::Postgres { url, pooler, max_connections } => {
            let ledger = Ledger::connect_postgres(url, *pooler, *max_connections).await?;
            Ok((ledger, None))
        }
        LedgerConfig::Sqlite { file } => {
            if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                make_private_folder(folder)?;
            }
            let lock = if lock { Some(lock_beside(file)?) } else { None };
            let opened = Ledger::open_sqlite(file).await;
            if let Err(error) = &opened
                && error.to_string().contains("file is not a database")
            {
                bail!(
                    "{} is not a SQLite database; move it away, or name another file",
                    file.display()
                );
            }
            let ledger = opened.with_context(|| format!("cannot open {}", file.display()))?;
            Ok((ledger, lock))
        }
    }
}

/// Opens the ledger for a command that needs what is in it; a service may run beside it.
///
/// # Errors
/// One sentence on what is wrong with it.
pub async fn open_existing_ledger(config: &Config) -> anyhow::Result<Ledger> {
    if let LedgerConfig::Sqlite { file } = &config.ledger {
        ensure!(
            file.is_file(),
            "there is no {}; set AURA_HITL_DATA_DIR, or DATABASE_URL and REDIS_URL",
            file.display()
        );
    }
    let (ledger, _lock) = patiently(async || open_ledger(config, false).await).await?;
    patiently(async || ensure_migrated(&ledger).await).await?;
    Ok(ledger)
}

/// Whether Postgres would not do something now, but may in a moment: somebody holds a lock, all
/// connections are taken, or it is starting or stopping.
fn is_passing(cause: &(dyn std::error::Error + 'static)) -> bool {
    let code = match cause.downcast_ref() {
        Some(sqlx::Error::Database(said)) => said.code(),
        Some(sqlx::Error::Io(_)) => return true,
        _ => return false,
    };
    matches!(code.as_deref(), Some("55P03" | "53300" | "57P01" | "57P03" | "40P01"))
}

/// Asks again, for up to `COMMAND_PATIENCE`, while the database does not answer: a command has
/// nobody else who would try again. Only for what may be asked twice.
///
/// # Errors
/// The last answer's.
pub async fn patiently<T>(mut ask: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let may_pass = |error: &anyhow::Error| match error.downcast_ref() {
        Some(LoginError { may_pass, .. }) => *may_pass,
        None if error.chain().any(is_passing) => true,
        None => error.downcast_ref().is_some_and(|error| match error {
            LedgerError::NotExecuted(_)
            | LedgerError::Locked(_)
            | LedgerError::OutcomeUnknown(_) => true,
            LedgerError::Inconsistent(_) => false,
        }),
    };
    let began = Instant::now();
    loop {
        match ask().await {
            Err(error) if may_pass(&error) && began.elapsed() < COMMAND_PATIENCE => {
                tokio::time::sleep(COMMAND_RETRY_INTERVAL).await;
            }
            answer => return answer,
        }
    }
}

async fn ensure_migrated(ledger: &Ledger) -> anyhow::Result<()> {
    ensure!(
        ledger.is_migrated().await?,
        "the database schema is out of date; run `aura-hitl migrate`, or set auto_migrate = true"
    );
    Ok(())
}

/// Brings the ledger's schema up to date.
///
/// # Errors
/// What the migrator says.
pub async fn migrate(config: &Config, ledger: &Ledger) -> anyhow::Result<()> {
    ledger.migrate(postgres_url(config)).await.context("cannot migrate the database")
}

/// Drops what only replicas of an older release need.
///
/// # Errors
/// What the database says.
pub async fn finish(config: &Config, ledger: &Ledger) -> anyhow::Result<()> {
    ledger.finish(postgres_url(config)).await.context("cannot finish the database's upgrade")
}

fn postgres_url(config: &Config) -> Option<&SecretString> {
    match &config.ledger {
        LedgerConfig::Postgres { url, .. } => Some(url),
        LedgerConfig::Sqlite { .. } => None,
    }
}

/// Two processes on one file would not hear each other's wake-ups.
fn lock_beside(file: &Path) -> anyhow::Result<File> {
    let path = file.with_extension("lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "{} is in use by another aura-hitl process; stop it, or set AURA_HITL_DATA_DIR",
            file.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the data folder"),
    }
}

/// A process may open only so many files, and every connection is one: raises that limit as far as
/// needed. Without this a flood of connections would leave none for the stores.
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
        // Whether it was raised is seen below.
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

fn serve(config: &Config, core: &Core, listener: TcpListener) -> anyhow::Result<Server> {
    let core = web::Data::new(core.clone());
    let readiness = web::Data::new(LastAnswer::default());
    let scrape = web::Data::new(Scrape::default());
    let metrics_routes =
        if config.metrics_address.is_none() { routes::configure_metrics } else { |_: &mut _| {} };
    let origins = config.cors_origins.clone();
    let app = move || {
        App::new()
            .app_data(core.clone())
            .app_data(readiness.clone())
            .app_data(scrape.clone())
            .app_data(web::PathConfig::default().error_handler(|_error, _request| {
                let text = Text::new("is not valid", "형식이 올바르지 않습니다");
                ApiError::invalid_field("path", text).into()
            }))
            .configure(metrics_routes)
            .configure(routes::configure)
            .default_service(web::to(routes::unknown))
            .wrap(cors(&origins))
            .wrap(security_headers())
            .wrap(from_fn(with_call))
            .wrap(TracingLogger::<CallSpan>::new())
            .wrap(from_fn(take_turns))
    };
    // As many as actix starts.
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let server = Server::build()
        .max_concurrent_connections(config.max_connections.div_ceil(workers))
        // Without the notice, in whole seconds.
        .shutdown_timeout(config.shutdown_seconds.saturating_sub(2).max(1))
        .disable_signals();
    let stopping = server.graceful_shutdown_signal();
    let connections = Connections::new(config.max_connections);
    // What `HttpServer` does, which takes no connections of our own making.
    let serve_connections = move || {
        let stopping = stopping.clone();
        let app = app().into_factory().map_err(|error| error.error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move {
                    stopping.notified().await;
                    tokio::time::sleep(LAST_CALLS).await;
                }
            })
            // `Connection` times heads, and not only the first.
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(CLOSING)
            .keep_alive(KEEP_ALIVE)
            .on_connect_ext(Connection::introduce)
            // Host and address, from which we make nothing.
            .h1(map_config(app, |()| AppConfig::default()));
        let connections = Arc::clone(&connections);
        fn_service(move |stream: TcpStream| {
            let peer = stream.peer_addr().ok();
            std::future::ready(Ok((Connection::new(stream, &connections), peer)))
        })
        .and_then(http)
    };
    Ok(server.listen("http", listener, serve_connections).context("cannot listen")?.run())
}

/// One sentence with the names of the settings that mend it.
fn cannot_listen(address: &str, error: &io::Error, [host, port]: [&str; 2]) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::AddrInUse => {
            format!("another program uses this port; stop it, or set {port} to a free one")
        }
        ErrorKind::PermissionDenied => {
            format!("this port is for privileged users; set {port} to 1024 or more")
        }
        _ => format!(
            "it is no address of this machine; set {host} to 127.0.0.1 for this machine alone, or \
             to 0.0.0.0 for all others too"
        ),
    };
    anyhow::anyhow!("cannot listen on {address}: {advice}")
}

/// Serves the metrics at an address of their own, until the service stops.
fn serve_metrics(
    core: &Core,
    address: SocketAddr,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let stopping = core.stopping.clone();
    let core = web::Data::new(core.clone());
    let scrape = web::Data::new(Scrape::default());
    let app = move || {
        let app = App::new().app_data(core.clone()).app_data(scrape.clone());
        app.configure(routes::configure_metrics)
    };
    let server = HttpServer::new(app).workers(1).max_connections(METRICS_CONNECTIONS);
    let server = server.disable_signals().bind(address);
    let metrics_address = ["AURA_HITL_METRICS_ADDRESS"; 2];
    let server =
        server.map_err(|error| cannot_listen(&address.to_string(), &error, metrics_address))?.run();
    Ok(async move {
        let handle = server.handle();
        tokio::select! {
            ended = server => warn!(?ended, "the metrics' server ended"),
            () = stopping.cancelled() => handle.stop(false).await,
        }
    })
}

fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default()
        .block_on_origin_mismatch(false)
        .allowed_methods(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
        .allow_any_header()
        .expose_headers(["ETag", "Retry-After"])
        // The web application sends its calls with credentials, although only the token counts.
        .supports_credentials()
        .max_age(3600);
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}

/// For browsers that reach us directly. Nothing here may be cached, framed or sniffed; Swagger UI
/// brings its own style sheet into the page.
fn security_headers() -> DefaultHeaders {
    DefaultHeaders::new()
        .add(("X-Content-Type-Options", "nosniff"))
        .add(("X-Frame-Options", "DENY"))
        .add(("Referrer-Policy", "no-referrer"))
        .add(("Cache-Control", "no-store"))
        .add((
            "Content-Security-Policy",
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
        ))
}
