//! The command line: a file per command.

mod demo;
mod export;
mod healthcheck;
mod inbox_demo;
mod migrate;
mod notices;
mod openapi;
mod policy;
mod purge;
mod requests;
mod serve;
mod simulate;
mod token;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use self::token::RoleName;
use crate::config::Config;

/// How long a command waits for the database before it says so.
const NOTICE_DELAY: Duration = Duration::from_secs(2);

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
        /// Three agents ask; decide on the inbox page. Prints a link that opens it signed in.
        #[arg(long, conflicts_with = "interactive")]
        inbox: bool,
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
    /// Delete requests that were closed long ago, and tasks that ended long ago, then exit.
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
        /// Also requests that expired or were withdrawn, by the time of that.
        #[arg(long, conflicts_with = "refused")]
        all: bool,
        /// In place of decisions: the attempts to decide that were refused.
        #[arg(long)]
        refused: bool,
    },
    /// Show the requests that wait, or what became of others, as a table.
    Requests {
        /// Which: pending, approved, rejected, expired, cancelled; several by comma.
        #[arg(long, value_delimiter = ',', default_value = "pending")]
        status: Vec<String>,
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<String>,
        /// At most this many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Show them again every two seconds, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Try the channels by which people are told of requests, and send again what was given up.
    #[command(subcommand)]
    Notices(NoticesCommand),
    /// Try a policy file, which says who may decide.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the OpenAPI document.
    Openapi,
    /// Exit 0 if the service on HOST:PORT is ready; for containers.
    Healthcheck,
}

#[derive(Subcommand)]
enum NoticesCommand {
    /// Send a made-up notice by a channel, and say what its receiver answers.
    Test {
        /// The channel: the name of a webhook, mail, or slack.
        channel: String,
        /// To whom, of mail and Slack: user:kim or group:finance, as the settings name them, or the id of a
        /// channel of Slack.
        #[arg(long, value_name = "RECIPIENT")]
        to: Option<String>,
    },
    /// Show the notices that were given up, the latest first.
    List {
        /// Those that were given up.
        #[arg(long, required = true)]
        failed: bool,
        /// At most this many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Send notices again that were given up.
    Resend {
        /// The number that `list --failed` shows.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<i64>,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Say whether the file can be put in force, or what is wrong with it.
    Check {
        /// The policy file.
        file: PathBuf,
    },
    /// Say which rules bind a request, why, and who may decide it.
    Explain {
        /// The policy file.
        file: PathBuf,
        /// The request: its JSON, or the id of one in the ledger.
        #[arg(long, value_name = "ID|JSON")]
        request: String,
        /// The tenant of a request in the ledger that was registered over HTTP.
        #[arg(long)]
        tenant: Option<String>,
    },
    /// List the closed requests that would go another way under the file.
    Simulate {
        /// The policy file.
        file: PathBuf,
        /// Closed from then on: a date, which is its midnight in UTC, or an RFC 3339 instant.
        #[arg(long, value_name = "TIME")]
        from: String,
        /// Closed before then; now, when absent.
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
    },
}

/// Runs the command that the arguments name. Prints an error as one line on standard error.
pub async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aura-hitl: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let file = arguments.config.as_deref();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(file).await,
        Command::Demo { inbox: true, .. } => inbox_demo::run().await,
        Command::Demo { interactive, .. } => demo::run(interactive).await,
        Command::Token { sub, tenant, role, ttl } => token::run(file, sub, tenant, role, ttl),
        Command::Migrate { finish } => migrate::run(file, finish).await,
        Command::Purge { older_than, tasks_older_than, dry_run } => {
            purge::run(file, &older_than, tasks_older_than.as_deref(), dry_run).await
        }
        Command::Export { from, to, all, refused } => {
            export::run(file, &from, to.as_deref(), all, refused).await
        }
        Command::Requests { status, tenant, limit, watch } => {
            requests::run(file, &status, tenant.as_deref(), limit, watch).await
        }
        Command::Notices(NoticesCommand::Test { channel, to }) => {
            notices::test(file, &channel, to.as_deref()).await
        }
        Command::Notices(NoticesCommand::List { limit, .. }) => notices::list(file, limit).await,
        Command::Notices(NoticesCommand::Resend { id, .. }) => notices::resend(file, id).await,
        Command::Policy(PolicyCommand::Check { file: rules }) => policy::check(&rules),
        Command::Policy(PolicyCommand::Explain { file: rules, request, tenant }) => {
            policy::explain(file, &rules, &request, tenant.as_deref()).await
        }
        Command::Policy(PolicyCommand::Simulate { file: rules, from, to }) => {
            simulate::run(file, &rules, &from, to.as_deref()).await
        }
        Command::Openapi => openapi::run(),
        Command::Healthcheck => healthcheck::run(file).await,
    }
}

/// An error and its causes in one line. Many libraries repeat a cause in their own message, so a cause
/// that is already there is left out.
fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // sqlx appends the line in Postgres' own source code.
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

/// Runs `work`, and prints a line on standard error if it takes longer than [`NOTICE_DELAY`].
async fn with_wait_notice<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => done,
        () = tokio::time::sleep(NOTICE_DELAY) => {
            eprintln!("aura-hitl: waiting for the database");
            work.await
        }
    }
}

/// Loads the settings. Prints each warning as one line on standard error.
fn load(file: Option<&Path>) -> anyhow::Result<Config> {
    let config = Config::load(file)?;
    for warning in &config.warnings {
        eprintln!("aura-hitl: warning: {warning}");
    }
    Ok(config)
}
