//! The command line. Whatever goes wrong is one line on standard error and exit code 1.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aura_hitl::api::text::{Language, Text};
use aura_hitl::app::{self, Replica};
use aura_hitl::config::{Config, LedgerConfig};
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::ids::{TenantId, UserId};
use aura_hitl::retention::{self, Retention};
use aura_hitl::{api, auth, demo, export, reload, telemetry, traces};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

/// How long a command says nothing while it waits for the database.
const SILENCE: Duration = Duration::from_secs(2);

/// Human-in-the-loop approvals: decides once, records, and wakes the agent.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// A configuration file, read over the defaults and under the environment.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service (also without any command).
    Serve,
    /// Show one approval and one rejection from end to end; needs nothing.
    Demo {
        /// Leave the decisions to you: prints the curl lines to paste.
        #[arg(long)]
        interactive: bool,
    },
    /// Print a token for development.
    Token {
        /// The user.
        #[arg(long)]
        sub: String,
        /// The tenant.
        #[arg(long)]
        tenant: String,
        /// What the user may do.
        #[arg(long, value_enum, default_value = "user")]
        role: RoleName,
        /// Seconds until it expires.
        #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(i64).range(1..=31_536_000))]
        ttl: i64,
    },
    /// Bring the database schema up to date, then exit.
    Migrate {
        /// Also drop what only an older release needs; none of its replicas may be running.
        #[arg(long)]
        finish: bool,
    },
    /// Delete requests that were settled long ago, and tasks that ended long ago, then exit.
    Purge {
        /// Age of the requests, counted from their end, like 90d; at least 1d.
        #[arg(long, value_name = "AGE")]
        older_than: String,
        /// Age of the tasks, counted from their last change; without it they are kept.
        #[arg(long, value_name = "AGE")]
        tasks_older_than: Option<String>,
        /// Only count them.
        #[arg(long)]
        dry_run: bool,
    },
    /// Write decisions to standard output as JSON Lines, the earliest first.
    Export {
        /// Decided from then on: a date, which is its midnight in UTC, or an RFC 3339 instant.
        #[arg(long, value_name = "TIME")]
        from: String,
        /// Decided before then; now, when absent.
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
        /// Also what expired or was withdrawn undecided, by when that was.
        #[arg(long, conflicts_with = "refused")]
        all: bool,
        /// In place of decisions: the attempts to decide that were refused.
        #[arg(long)]
        refused: bool,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Exit 0 if the service on HOST:PORT is ready; for containers.
    Healthcheck,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleName {
    User,
    Admin,
}

#[tokio::main]
async fn main() -> ExitCode {
    #[cfg(feature = "crash-points")]
    let _armed = fail::FailScenario::setup();
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aura-hitl: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, none of them twice, as many libraries would have it.
fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // The driver adds the line of Postgres' own source.
        let cause = match cause.rsplit_once(" at line ") {
            Some((cause, line)) if line.bytes().all(|byte| byte.is_ascii_digit()) => cause,
            _ => &cause,
        };
        if sentence.is_empty() {
            cause.clone_into(&mut sentence);
        } else if !sentence.contains(cause) {
            sentence = format!("{sentence}: {cause}");
        }
    }
    sentence.replace('\n', " ")
}

/// Does this, and says so on standard error if it has to wait.
async fn saying_that_it_waits<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => done,
        () = tokio::time::sleep(SILENCE) => {
            eprintln!("aura-hitl: waiting for the database");
            work.await
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let file = arguments.config.as_deref();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(file).await,
        Command::Demo { interactive } => demo::run(interactive).await,
        Command::Token { sub, tenant, role, ttl } => token(file, sub, tenant, role, ttl),
        Command::Migrate { finish } => migrate(file, finish).await,
        Command::Purge { older_than, tasks_older_than, dry_run } => {
            purge(file, &older_than, tasks_older_than.as_deref(), dry_run).await
        }
        Command::Export { from, to, all, refused } => {
            export(file, &from, to.as_deref(), all, refused).await
        }
        Command::Openapi => print_whole(&api::document::document().to_pretty_json()?),
        Command::Healthcheck => healthcheck(file).await,
    }
}

/// Prints a text whose reader may have had enough of it, as `head` has.
fn print_whole(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

async fn serve(file: Option<&Path>) -> anyhow::Result<()> {
    // Before anything else, so that being asked to reload does not end us, and that being asked to
    // stop is never missed.
    let hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = load(file)?;
    let _log = telemetry::start()?;
    for warning in &config.warnings {
        tracing::warn!(warning, "a variable looks like a misspelt setting");
    }
    let replica = Replica::start(&config, Clock::System).await?;
    greet(&config, file, replica.address);
    let reloading = Box::pin(reload::on_hangup(hangup, file, config, replica.core.clone()));
    let ended = replica
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                never = reloading => match never {},
            }
        })
        .await;
    traces::end().await;
    ended
}

/// The settings. What looks like a mistake is a line of its own on standard error.
fn load(file: Option<&Path>) -> anyhow::Result<Config> {
    let config = Config::load(file)?;
    for warning in &config.warnings {
        eprintln!("aura-hitl: warning: {warning}");
    }
    Ok(config)
}

/// Tells somebody who tries the embedded mode at a terminal what to do now. Logs are for programs.
fn greet(config: &Config, config_file: Option<&Path>, address: SocketAddr) {
    let (LedgerConfig::Sqlite { file }, None) = (&config.ledger, &config.redis) else { return };
    if !std::io::stderr().is_terminal() {
        return;
    }
    let file = absolute(file);
    let file = file.display();
    let token = token_command(&config.data_dir, config_file);
    let lines = Text::new(
        format!(
            "Running; try the API at http://{address}/swagger-ui/\n\
             A token for it: {token}\n\
             Decisions are kept in {file}"
        ),
        format!(
            "실행 중입니다. API 사용해 보기: http://{address}/swagger-ui/\n\
             토큰 발급: {token}\n\
             결정이 저장되는 곳: {file}"
        ),
    );
    eprintln!("{}", lines.in_language(Language::of_terminal()));
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// A command that prints a token for this service, from whichever folder it is given.
fn token_command(data_dir: &Path, config_file: Option<&Path>) -> String {
    let quoted = |path: &Path| {
        let text = path.display().to_string();
        let is_plain = |letter: char| letter.is_alphanumeric() || "/._-".contains(letter);
        if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    let program = std::env::current_exe().ok();
    let on_path = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|folder| folder.join("aura-hitl"))
            .find(|file| file.is_file())
    });
    let on_path = on_path.and_then(|file| file.canonicalize().ok());
    let program = match program {
        Some(program) if on_path.as_ref() != Some(&program) => quoted(&program),
        _ => "aura-hitl".to_owned(),
    };
    let named = std::env::var_os("AURA_HITL_CONFIG").filter(|name| !name.is_empty());
    let config_file = config_file.map(Path::to_path_buf).or(named.map(PathBuf::from));
    let config = config_file.map(|file| format!(" --config {}", quoted(&absolute(&file))));
    // The secret is there; a folder that is not absolute would be another one elsewhere.
    format!(
        "AURA_HITL_DATA_DIR={} {program}{} token --sub user123 --tenant tenant1",
        quoted(&absolute(data_dir)),
        config.unwrap_or_default()
    )
}

fn token(
    file: Option<&Path>,
    sub: String,
    tenant: String,
    role: RoleName,
    ttl: i64,
) -> anyhow::Result<()> {
    let jwt = Config::load_jwt(file)?;
    let user = UserId::parse(sub).context("--sub")?;
    let tenant = TenantId::parse(tenant).context("--tenant")?;
    let role = match role {
        RoleName::User => Role::User,
        RoleName::Admin => Role::Admin,
    };
    println!("{}", auth::mint(&jwt, &user, &tenant, role, ttl)?);
    Ok(())
}

async fn migrate(file: Option<&Path>, finish: bool) -> anyhow::Result<()> {
    let config = load(file)?;
    let migrating = async {
        let opening = app::patiently(async || app::open_ledger(&config, false).await);
        let (ledger, _lock) = opening.await?;
        app::patiently(async || app::migrate(&config, &ledger).await).await?;
        if finish {
            app::patiently(async || app::finish(&config, &ledger).await).await?;
        }
        anyhow::Ok(ledger)
    };
    let ledger = saying_that_it_waits(migrating).await?;
    if finish {
        println!("the {} schema is up to date and finished", ledger.engine());
    } else {
        println!("the {} schema is up to date", ledger.engine());
    }
    Ok(())
}

async fn purge(
    file: Option<&Path>,
    requests: &str,
    tasks: Option<&str>,
    dry_run: bool,
) -> anyhow::Result<()> {
    let requests = Some(retention::age("--older-than", requests)?);
    let tasks = tasks.map(|tasks| retention::age("--tasks-older-than", tasks)).transpose()?;
    let config = load(file)?;
    let ledger = saying_that_it_waits(app::open_existing_ledger(&config)).await?;
    let (retention, now) = (Retention { requests, tasks }, Clock::System.now());
    if dry_run {
        println!("would purge {}", retention::count(&ledger, retention, now).await?);
    } else {
        println!("purged {}", retention::purge(&ledger, retention, now).await?);
    }
    Ok(())
}

async fn export(
    file: Option<&Path>,
    from: &str,
    to: Option<&str>,
    all: bool,
    refused: bool,
) -> anyhow::Result<()> {
    let span = export::span(from, to, all, Clock::System.now())?;
    let config = load(file)?;
    let ledger = saying_that_it_waits(app::open_existing_ledger(&config)).await?;
    let output = std::io::stdout().lock();
    if refused {
        export::refused_attempts(&ledger, &span, output).await
    } else {
        export::decisions(&ledger, &span, output).await
    }
}

async fn healthcheck(file: Option<&Path>) -> anyhow::Result<()> {
    let (host, port) = Config::load_address(file)?;
    let host = match host.as_str() {
        "0.0.0.0" | "::" | "[::]" => "127.0.0.1",
        host => host,
    };
    let host = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() };
    let address = format!("http://{host}:{port}/health/ready");
    let client = reqwest::Client::builder().timeout(Duration::from_secs(3)).build()?;
    let response =
        client.get(&address).send().await.with_context(|| format!("no answer from {address}"))?;
    ensure!(response.status().is_success(), "{address} answers {}", response.status());
    Ok(())
}
